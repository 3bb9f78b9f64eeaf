package job

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

func environment(kv ...string) func(string) string {
	return func(name string) string {
		for _, x := range kv {
			if n, v, _ := strings.Cut(x, "="); n == name {
				return v
			}
		}
		return ""
	}
}

func TestDetect(t *testing.T) {
	github := []string{"GITHUB_ACTIONS=true", "ACTIONS_ID_TOKEN_REQUEST_URL=https://token.example/x?a=b", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=t"}
	for name, c := range map[string]struct {
		env    []string
		o      Options
		want   string // platform and method
		aud    Audience
		hidden []string
		reason problem.Reason
	}{
		"github":              {github, Options{}, "github github", AudienceKey, []string{githubURL, githubToken}, ""},
		"github, no right":    {github[:1], Options{}, "", 0, nil, problem.ReasonNotProved},
		"github, no https":    {[]string{"GITHUB_ACTIONS=true", "ACTIONS_ID_TOKEN_REQUEST_URL=http://token.example/", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=t"}, Options{}, "", 0, nil, problem.ReasonInvalid},
		"github, user in it":  {[]string{"GITHUB_ACTIONS=true", "ACTIONS_ID_TOKEN_REQUEST_URL=https://a:b@token.example/", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=t"}, Options{}, "", 0, nil, problem.ReasonInvalid},
		"github, not true":    {[]string{"GITHUB_ACTIONS=false"}, Options{}, "", 0, nil, problem.ReasonInvalid},
		"github in a pod":     {append([]string{"KUBERNETES_SERVICE_HOST=10.0.0.1"}, github...), Options{}, "github github", AudienceKey, []string{githubURL, githubToken}, ""},
		"github, given":       {append([]string{"MINE=a.b.c"}, github...), Options{TokenEnv: "MINE"}, "github github", AudienceEnvironment, []string{githubURL, githubToken, "MINE"}, ""},
		"gitlab":              {[]string{"GITLAB_CI=true", "BAILMENT_ID_TOKEN=a.b.c"}, Options{}, "gitlab gitlab", AudienceEnvironment, []string{"BAILMENT_ID_TOKEN"}, ""},
		"gitlab, other name":  {[]string{"GITLAB_CI=true", "MINE=a.b.c"}, Options{TokenEnv: "MINE"}, "gitlab gitlab", AudienceEnvironment, []string{"MINE"}, ""},
		"gitlab, no token":    {[]string{"GITLAB_CI=true"}, Options{}, "", 0, nil, problem.ReasonNotProved},
		"buildkite":           {[]string{"BUILDKITE=true"}, Options{}, "buildkite buildkite", AudienceKey, nil, ""},
		"circleci":            {[]string{"CIRCLECI=true"}, Options{}, "circleci circleci", AudienceKey, []string{"CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2"}, ""},
		"kubernetes":          {[]string{"KUBERNETES_SERVICE_HOST=10.0.0.1"}, Options{TokenFile: "/var/run/secrets/bailment/token"}, "kubernetes k8s", AudienceEnvironment, nil, ""},
		"kubernetes, its own": {[]string{"KUBERNETES_SERVICE_HOST=10.0.0.1"}, Options{TokenFile: clusterToken}, "", 0, nil, problem.ReasonInvalid},
		"kubernetes, none":    {[]string{"KUBERNETES_SERVICE_HOST=10.0.0.1"}, Options{}, "", 0, nil, problem.ReasonNotProved},
		"generic":             {[]string{"BAILMENT_ID_TOKEN=a.b.c"}, Options{}, "oidc oidc", AudienceEnvironment, []string{"BAILMENT_ID_TOKEN"}, ""},
		"generic, a file":     {nil, Options{TokenFile: "/x", Method: "corp-oidc"}, "oidc corp-oidc", AudienceEnvironment, nil, ""},
		"bad method":          {nil, Options{TokenFile: "/x", Method: "A b"}, "", 0, nil, problem.ReasonInvalid},
		"both":                {nil, Options{TokenFile: "/x", TokenEnv: "Y"}, "", 0, nil, problem.ReasonInvalid},
		"nothing":             {nil, Options{}, "", 0, nil, problem.ReasonInvalid},
		"two":                 {[]string{"GITLAB_CI=true", "BUILDKITE=true"}, Options{}, "", 0, nil, problem.ReasonAmbiguous},
		"two, told":           {[]string{"GITLAB_CI=true", "BUILDKITE=true"}, Options{Platform: "buildkite"}, "buildkite buildkite", AudienceKey, nil, ""},
		"unknown":             {nil, Options{Platform: "x"}, "", 0, nil, problem.ReasonInvalid},
	} {
		p, err := Detect(environment(c.env...), c.o)
		if c.reason != "" {
			if !problem.Is(err, c.reason) || problem.As(err).WayOut() == "" {
				t.Errorf("%s: %v, want %s", name, err, c.reason)
			}
			continue
		}
		if err != nil || p.Name+" "+p.Method != c.want || p.Audience != c.aud || !slices.Equal(p.Hidden, c.hidden) || p.Token == nil || p.Masks != (p.Name == GitHub) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	// The table is made anew each time: what one caller does to his row is not another's.
	p, err := Detect(environment("GITLAB_CI=true", "MINE=a.b.c"), Options{TokenEnv: "MINE"})
	if err != nil {
		t.Fatal(err)
	}
	p.Hidden[0] = "changed"
	if q, err := Detect(environment("GITLAB_CI=true", "MINE=a.b.c"), Options{TokenEnv: "MINE"}); err != nil || q.Hidden[0] != "MINE" {
		t.Errorf("%+v, %v", q, err)
	}
}

func token(claims any) string {
	text, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(text) + ".e30"
}

func TestReadClaims(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "two parts": "a.b", "four": "a.b.c.d", "not base64": "e30.!.e30", "padded": "e30.e30=.e30", "not JSON": "e30." + base64.RawURLEncoding.EncodeToString([]byte("x")) + ".e30",
		"null": token(nil), "a list": token([]int{1}), "long": "e30." + strings.Repeat("A", maxToken) + ".e30", "several lines": "e30.e30.e30\n.",
	} {
		if c, err := ReadClaims(text); !problem.Is(err, problem.ReasonTokenInvalid) || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	c, err := ReadClaims(token(map[string]any{"aud": "x", "n": json.Number("12345678901234567890")}))
	if err != nil || c["n"] != json.Number("12345678901234567890") {
		t.Errorf("%v, %v", c, err)
	}
}

func FuzzReadClaims(f *testing.F) {
	for _, s := range []string{"", "a.b.c", token(map[string]any{"aud": "x"}), token(map[string]any{"aud": []string{"x"}}), token(map[string]any{"aud": 1})} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ReadClaims(text)
		if err != nil && (c != nil || len(text) > 40 && strings.Contains(err.Error(), text)) {
			t.Errorf("%v, %v", c, err)
		}
		c.For("x")
	})
}

func TestClaimsFor(t *testing.T) {
	for name, c := range map[string]struct {
		aud  any
		want bool
	}{
		"it": {"x", true}, "another": {"y", false}, "a list of it": {[]string{"x"}, true}, "and another": {[]string{"x", "y"}, false},
		"empty list": {[]string{}, false}, "none": {nil, false}, "a number": {1, false}, "longer": {"xx", false},
	} {
		claims, err := ReadClaims(token(map[string]any{"aud": c.aud}))
		if err != nil || claims.For("x") != c.want {
			t.Errorf("%s: %v, %v", name, claims, err)
		}
	}
}

// A token that was meant for somebody else is not shown to anybody.
func TestForeignToken(t *testing.T) {
	b := attest.Binding{Genesis: [32]byte{1}, SessionKey: [32]byte{2}}
	p := &Platform{Title: "P", Audience: AudienceEnvironment, Token: variableSource{" " + token(map[string]any{"aud": "sts.amazonaws.com"}) + "\n"}}
	if out, err := (attester{p, ""}).Attest(t.Context(), b); !problem.Is(err, problem.ReasonAudience) || len(out) != 0 {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := (attester{p, "sts.amazonaws.com"}).Attest(t.Context(), b); err != nil || string(out) != token(map[string]any{"aud": "sts.amazonaws.com"}) {
		t.Errorf("%q, %v", out, err)
	}
	p.Token = variableSource{token(map[string]any{"aud": b.KeyAudience()})}
	if _, err := (attester{p, ""}).Attest(t.Context(), b); !problem.Is(err, problem.ReasonAudience) {
		t.Errorf("bound to the key where the environment is expected: %v", err)
	}
	p.Audience = AudienceKey
	if _, err := (attester{p, ""}).Attest(t.Context(), b); err != nil {
		t.Error(err)
	}
}

// issuer is GitHub's address for tokens, as a job finds it.
func issuer(t *testing.T, answer http.HandlerFunc) *requestSource {
	t.Helper()
	s := httptest.NewTLSServer(answer)
	t.Cleanup(s.Close)
	source, err := newRequestSource(s.URL+"/idtoken?api-version=2.0", "the-bearer")
	if err != nil {
		t.Fatal(err)
	}
	out := source.(*requestSource)
	out.client.Transport = s.Client().Transport // its certificate is the test's
	return out
}

func TestRequest(t *testing.T) {
	const audience = "bailment:v1:00:11"
	tries := 0
	s := issuer(t, func(w http.ResponseWriter, r *http.Request) {
		if tries++; tries == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if r.Header.Get("Authorization") != "Bearer the-bearer" || r.URL.Query().Get("audience") != audience || r.URL.Query().Get("api-version") != "2.0" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"count": 1, "value": token(map[string]any{"aud": audience})})
	})
	if text, err := s.Token(t.Context(), audience); err != nil || tries != 2 || text != token(map[string]any{"aud": audience}) {
		t.Errorf("%q, %v after %d", text, err, tries)
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		reason problem.Reason
	}{
		"refused": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, problem.ReasonNotProved},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		}, problem.ReasonNotProved},
		"not JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, problem.ReasonTokenInvalid},
		"no value": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }, problem.ReasonTokenInvalid},
		"too long": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"value":"` + strings.Repeat("x", 2*maxAnswer) + `"}`))
		}, problem.ReasonTokenInvalid},
	} {
		text, err := issuer(t, c.answer).Token(t.Context(), audience)
		if !problem.Is(err, c.reason) || text != "" || strings.Contains(err.Error(), "the-bearer") || strings.Contains(err.Error(), "idtoken") {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	// The right is not shown where nobody answers.
	s.url = &url.URL{Scheme: "https", Host: "127.0.0.1:1", RawQuery: "secret=1"}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Token(ctx, audience); !problem.Is(err, problem.ReasonUnreachable) || strings.Contains(err.Error(), "secret=1") {
		t.Errorf("%v", err)
	}
}

func TestCommandSource(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	program := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(platform string) (string, error) {
		t.Helper()
		p, err := Detect(environment(), Options{Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		return p.Token.Token(t.Context(), `bailment:v1:"x"`)
	}
	if _, err := ask(Buildkite); !problem.Is(err, problem.ReasonNotProved) || !strings.Contains(err.Error(), "is not here") {
		t.Errorf("%v", err)
	}
	program("buildkite-agent", `test "$1 $2 $3" = "oidc request-token --audience" && echo "got $4"`)
	if text, err := ask(Buildkite); err != nil || text != `got bailment:v1:"x"` {
		t.Errorf("%q, %v", text, err)
	}
	program("circleci", `test "$1 $2 $3 $4" = "run oidc get --claims" && echo "got $5"`)
	if text, err := ask(CircleCI); err != nil || text != `got {"aud":"bailment:v1:\"x\""}` {
		t.Errorf("%q, %v", text, err)
	}
	program("circleci", `echo secret; echo secret >&2; exit 1`)
	if text, err := ask(CircleCI); !problem.Is(err, problem.ReasonNotProved) || text != "" || strings.Contains(err.Error(), "secret") {
		t.Errorf("%q, %v", text, err)
	}
	program("circleci", `yes | head -c 1000000`)
	if text, err := ask(CircleCI); err != nil || len(text) > maxAnswer {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestFileSource(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := (fileSource{path}).Token(t.Context(), ""); !problem.Is(err, problem.ReasonNotProved) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(path, []byte("a.b.c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := (fileSource{path}).Token(t.Context(), ""); err != nil || text != "a.b.c" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestMaskCommands(t *testing.T) {
	for value, want := range map[string]string{
		"":                             "",
		"a":                            "::add-mask::a\n",
		"50% \r\n":                     "::add-mask::50%25\n",
		"{\n  key: x\n}":               "::add-mask::key: x\n",
		"one\ntwo2\r\n::add-mask::x\n": "::add-mask::two2\n::add-mask::::add-mask::x\n",
	} {
		if got := string(maskCommands([][]byte{[]byte(value)})); got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}

func TestAudienceFor(t *testing.T) {
	genesis := strings.Repeat("ab", 32)
	if a, err := AudienceFor("bailment1:host.example:8400/prod#" + genesis); err != nil || a != "bailment:v1:"+genesis {
		t.Errorf("%q, %v", a, err)
	}
	if _, err := AudienceFor("x"); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("%v", err)
	}
}

// What a dying process wrote in part is passed over: the holding before it stands.
func TestListen(t *testing.T) {
	whole, err := json.Marshal(holding{Identity: "/ci/x", Leases: []lease{{ID: 7}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		want uint64
	}{
		"nothing": {"", 0}, "cut at once": {string(whole[:20]), 0}, "whole": {string(whole) + "\n", 7}, "and a part": {string(whole) + "\n" + `{"leases":[{"id":8`, 7},
		"the newest": {string(whole) + "\n" + `{"leases":[{"id":9}]}` + "\n", 9},
	} {
		h := listen(strings.NewReader(c.text))
		if (h == nil) != (c.want == 0) || h != nil && h.Leases[0].ID != c.want {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestStartOf(t *testing.T) {
	me := process{PID: os.Getpid()}
	me.Start, _ = startOf(me.PID)
	if me.Start == 0 || !me.is() {
		t.Errorf("%+v", me)
	}
	if me.Start++; me.is() {
		t.Error("another process of this number passes for it")
	}
	if _, ok := startOf(1 << 30); ok {
		t.Error("a process that there can't be")
	}
}
