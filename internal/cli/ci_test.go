package cli

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/job"
	"github.com/bailment/bailment/internal/problem"
)

// The kubelet puts a fresh token into the file before the one that is there ends: each renewal is with what is there then.
func TestCITokenFileIsReadAgain(t *testing.T) {
	b := attest.Binding{Method: "k8s-job", Nonce: make([]byte, attest.MinNonce), Genesis: [32]byte{1}, SessionKey: [32]byte{2}}
	part := base64.RawURLEncoding.EncodeToString
	file := filepath.Join(t.TempDir(), "token")
	put := func(id string) string {
		t.Helper()
		token := part([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + part([]byte(`{"iss":"https://issuer.example","jti":"`+id+`","aud":"`+b.EnvironmentAudience()+`"}`)) + ".e30"
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return token
	}
	put("1")
	env := map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1", ci.EnvTokenFile: file}
	method, attester, err := new(ciToken).attester(func(name string) string { return env[name] })
	if err != nil || method.Name != b.Method {
		t.Fatal(method.Name, err)
	}
	for _, id := range []string{"1", "2"} {
		want := put(id)
		evidence, err := attester.Attest(t.Context(), b)
		if err != nil || !strings.Contains(string(evidence), want) {
			t.Errorf("%s, %v", evidence, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := attester.Attest(t.Context(), b); err == nil {
		t.Error("a file that is gone gives a token")
	}
}

// A job's token comes from where its flags say, else from where its service puts it.
func TestCIToken(t *testing.T) {
	part := base64.RawURLEncoding.EncodeToString
	token := part([]byte(`{"alg":"RS256","kid":"1"}`)) + "." + part([]byte(`{"iss":"https://issuer.example","aud":"x"}`)) + ".e30"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := file + "-long"
	if err := os.WriteFile(long, bytes.Repeat([]byte("x"), 2*maxTokenFile), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		flags  ciToken
		env    map[string]string
		method string
		hidden string
		reason problem.Reason
	}{
		"nothing":          {ciToken{}, nil, "", "", problem.ReasonInvalid},
		"both":             {ciToken{env: "A", file: "b"}, nil, "", "", problem.ReasonInvalid},
		"gitlab":           {ciToken{}, map[string]string{"GITLAB_CI": "true", ci.EnvToken: token}, ci.GitLabName, ci.EnvToken, ""},
		"gitlab, named":    {ciToken{env: "MINE"}, map[string]string{"GITLAB_CI": "true", "MINE": token}, ci.GitLabName, "MINE", ""},
		"gitlab, not set":  {ciToken{env: "MINE"}, map[string]string{"GITLAB_CI": "true", ci.EnvToken: token}, "", "", problem.ReasonInvalid},
		"a file":           {ciToken{file: file}, nil, ci.OIDCName, ci.EnvToken, ""},
		"a file, variable": {ciToken{}, map[string]string{ci.EnvTokenFile: file}, ci.OIDCName, ci.EnvToken, ""},
		"flag before":      {ciToken{env: "MINE"}, map[string]string{ci.EnvTokenFile: "/no/such/file", "MINE": token}, ci.OIDCName, "MINE", ""},
		"no file":          {ciToken{file: file + "-not"}, nil, "", "", problem.ReasonInvalid},
		"a long file":      {ciToken{file: long}, nil, "", "", problem.ReasonTooLarge},
		"another method":   {ciToken{method: ci.OIDCName, env: "MINE"}, map[string]string{"GITLAB_CI": "true", "MINE": token}, ci.OIDCName, "MINE", ""},
		"no such method":   {ciToken{method: "corp"}, nil, "", "", problem.ReasonUnknownMethod},
		"not of jobs":      {ciToken{method: "join-token"}, nil, "", "", problem.ReasonUnknownMethod},
		"github, no right": {ciToken{}, map[string]string{"GITHUB_ACTIONS": "true"}, "", "", problem.ReasonInvalid},
	} {
		method, attester, err := c.flags.attester(func(name string) string { return c.env[name] })
		if c.reason != "" {
			if !problem.Is(err, c.reason) || problem.As(err).WayOut() == "" || strings.Contains(err.Error(), token) {
				t.Errorf("%s: %v, want %s", name, err, c.reason)
			}
			continue
		}
		if err != nil || method.Name != c.method || attester == nil {
			t.Errorf("%s: %s, %v", name, method.Name, err)
		} else if p := c.flags.platform(method.Name); !slices.Contains(p.Hidden, c.hidden) {
			t.Errorf("%s: hidden are %q", name, p.Hidden)
		}
	}
}

func TestShowWhoami(t *testing.T) {
	var b bytes.Buffer
	a := newApp()
	a.out = &b
	answer := &job.Answer{
		Method: "gitlab", Audience: "x", Claims: map[string]any{"ref": "a\nb", "list": []any{"x", map[string]any{"y": true}}},
		Server: &v1.AppraiseResponse{Reason: "no-identity", Message: "no rule fits", Fix: "look"},
	}
	if err := a.showWhoami(answer); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"refused     no-identity: no rule fits\n", "try         look\n", "token list  [\"x\",{\"y\":true}]\n", "token ref   a·b\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	b.Reset()
	a.flags.output = formatJSON
	if err := a.showWhoami(&job.Answer{Method: "gitlab"}); err != nil || !strings.Contains(b.String(), `"identity": ""`) {
		t.Errorf("%s, %v", b.String(), err)
	}
}

func TestAsked(t *testing.T) {
	a := newApp()
	if _, err := a.asked(); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("%v", err)
	}
	a.flags.bootstrap = "bailment1:old.example:1/prod#" + strings.Repeat("ab", 32)
	a.flags.addr = "new.example:2"
	if s, err := a.asked(); err != nil || s != strings.Replace(a.flags.bootstrap, "old.example:1", "new.example:2", 1) {
		t.Errorf("%q, %v", s, err)
	}
	a.flags.env = "dev"
	if _, err := a.asked(); !problem.Is(err, problem.ReasonWrongEnvironment) {
		t.Errorf("%v", err)
	}
}
