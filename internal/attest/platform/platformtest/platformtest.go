// Package platformtest puts the methods whose evidence is a platform's token into states in which they can be tested: with tokens of the
// shapes that the platforms document (shapes/, each with its source), signed by a test's own issuer, and with stand-ins for what gives
// tokens on a platform.
//
// Guaranteed: every method of Methods has a shape, and a Fixture in which its evidence is good. Not guaranteed: that a platform does what
// it documents. Only tests import it.
package platformtest

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/attest/gcp"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/k8s"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/authority"
)

//go:embed shapes
var shapes embed.FS

// Shape is a token as a platform documents it.
type Shape struct {
	Name     string         `json:"name"`
	Source   string         `json:"source"`
	Issuer   string         `json:"issuer"`
	Lifetime int            `json:"lifetime"` // seconds
	Claims   map[string]any `json:"claims"`   // but for iss, aud and the times
}

// Methods are the methods whose evidence is a platform's token.
func Methods() attest.Methods {
	return append(ci.Methods(), k8s.Method(), k8s.JobMethod(), gcp.Method())
}

// bindings is how each method's tokens are bound, the strongest first.
var bindings = map[string][]platform.Binding{
	ci.GitHubName: {platform.ToKey}, ci.GitLabName: {platform.ToEnvironment}, ci.BuildkiteName: {platform.ToKey}, ci.CircleCIName: {platform.ToKey},
	ci.OIDCName: {platform.ToKey, platform.ToEnvironment}, k8s.Name: {platform.ToEnvironment}, k8s.JobName: {platform.ToEnvironment}, gcp.Name: {platform.ToChallenge},
}

// Bindings is how a method's tokens are bound.
func Bindings(method string) []platform.Binding { return bindings[method] }

// Shapes are the shapes of a method's tokens.
func Shapes(t testing.TB, method string) []Shape {
	t.Helper()
	text, err := shapes.ReadFile("shapes/" + method + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var out []Shape
	if err := json.Unmarshal(text, &out); err != nil || len(out) == 0 {
		t.Fatal(method, len(out), err)
	}
	return out
}

// AuthorityName is the authority that the fixtures' issuers are of.
const AuthorityName = "corp"

// Fixture is a method in a state in which a token of its first shape is good.
type Fixture struct {
	jwttest.Target
	// Pinned is Target.Params with the issuer's keys pinned, so that no Input.Keys are needed.
	Pinned any
	// Material makes an attester that gets a good token for Target.Binding from a stand-in for the platform.
	Material attest.Material
}

// New makes a fixture of a shape. The method's tokens are bound as bound says.
func New(t testing.TB, m attest.Method, s Shape, bound platform.Binding, alg jose.SignatureAlgorithm, now time.Time, b attest.Binding) *Fixture {
	t.Helper()
	b.Method = m.Name
	issuer := jwttest.New(t, s.Issuer, alg)
	f := &Fixture{Target: jwttest.Target{
		Method: m, Issuer: issuer, Binding: b, Now: now, Audience: bound.Audience,
		Claims: jwttest.With(s.Claims, map[string]any{
			"iss": s.Issuer, "iat": now.Add(-5 * time.Second).Unix(), "exp": now.Add(time.Duration(s.Lifetime-5) * time.Second).Unix(),
		}),
	}}
	a := authority.Authority{Name: AuthorityName, Method: m.Name, Issuer: s.Issuer}
	f.Params = params(t, m, a)
	a.Keys = issuer.Keys()
	f.Pinned = params(t, m, a)
	f.Material = f.material(t)
	return f
}

// Of is New of the method's first shape, as strongly bound as it may be.
func Of(t testing.TB, m attest.Method, alg jose.SignatureAlgorithm, now time.Time, b attest.Binding) *Fixture {
	t.Helper()
	return New(t, m, Shapes(t, m.Name)[0], bindings[m.Name][0], alg, now, b)
}

func params(t testing.TB, m attest.Method, a authority.Authority) any {
	t.Helper()
	p, err := m.Params([]authority.Authority{a})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// RequestToken is what the stand-in for GitHub asks for.
const RequestToken = "gh-request-token-5e1c"

func (f *Fixture) material(t testing.TB) attest.Material {
	t.Helper()
	sign := func(audience string) []byte {
		return f.Issuer.Sign(jwttest.With(f.Claims, map[string]any{"aud": audience}))
	}
	good := f.Audience(f.Binding)
	switch f.Method.Name {
	case ci.GitHubName:
		return attest.Material{ci.NeedRequestURL: []byte(serve(t, gitHub(sign)) + "/t?v=2"), ci.NeedRequestToken: []byte(RequestToken)}
	case gcp.Name:
		return attest.Material{gcp.NeedMetadata: []byte(serve(t, metadata(sign)))}
	case ci.GitLabName, k8s.Name, k8s.JobName:
		return attest.Material{ci.NeedToken: append(sign(good), '\n')}
	}
	return attest.Material{ci.NeedCommand: []byte(Program(t, good, sign(good)))}
}

func serve(t testing.TB, h http.Handler) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// gitHub stands in for what ACTIONS_ID_TOKEN_REQUEST_URL names.
func gitHub(sign func(string) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+RequestToken || r.URL.Query().Get("v") != "2" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"count": 1800, "value": string(sign(r.URL.Query().Get("audience")))})
	})
}

// metadata stands in for Google's metadata server.
func metadata(sign func(string) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		q := r.URL.Query()
		if r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity" || r.Header.Get("Metadata-Flavor") != "Google" || q.Get("format") != "full" || q.Get("licenses") != "TRUE" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(sign(q.Get("audience")))
	})
}

// Program makes a program that prints the token when one of its arguments holds the audience, and fails for any other.
func Program(t testing.TB, audience string, token []byte) string {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("#!/bin/sh\nfor a; do\n  case \"$a\" in *%s*) cat %q; exit;; esac\ndone\necho not a token: canary >&2\nexit 1\n", audience, filepath.Join(dir, "token"))
	for name, file := range map[string][]byte{"token": token, "program": []byte(text)} {
		if err := os.WriteFile(filepath.Join(dir, name), file, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "program")
}
