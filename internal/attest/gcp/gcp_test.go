package gcp_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/gcp"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/problem"
)

func fixture(t *testing.T) *platformtest.Fixture {
	t.Helper()
	return platformtest.Of(t, gcp.Method(), jose.ES256, platformtest.Now, platformtest.Binding())
}

func TestClaims(t *testing.T) {
	const bad = problem.ReasonTokenInvalid
	f := fixture(t)
	engine := func(change map[string]any) map[string]any {
		whole := f.Claims["google"].(map[string]any)["compute_engine"].(map[string]any)
		return map[string]any{"google": map[string]any{"compute_engine": jwttest.With(whole, change)}}
	}
	for _, c := range []struct {
		name   string
		claims map[string]any
		want   problem.Reason
	}{
		{"as it is", nil, ""},
		// The same issuer gives these to people and service accounts, for any audience.
		{"a service account's own token", map[string]any{"google": nil}, bad},
		{"format standard", map[string]any{"google": map[string]any{}}, bad},
		{"an engine that is a text", map[string]any{"google": map[string]any{"compute_engine": "x"}}, bad},
		{"no instance", engine(map[string]any{"instance_id": nil}), bad},
		{"no project", engine(map[string]any{"project_id": nil}), bad},
		{"no project number", engine(map[string]any{"project_number": nil}), bad},
		{"no zone", engine(map[string]any{"zone": nil}), bad},
		{"an instance as a list", engine(map[string]any{"instance_id": []string{"1"}}), bad},
		{"licenses as a text", engine(map[string]any{"license_id": "1"}), bad},
		{"an instance as a number", engine(map[string]any{"instance_id": 1529}), ""},
		{"no licenses", engine(map[string]any{"license_id": nil}), ""},
	} {
		_, err := f.Method.Verify(f.Input(f.With(c.claims)))
		if c.want == "" && err != nil || c.want != "" && !problem.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	res, err := f.Method.Verify(f.Input(f.With(map[string]any{"email_verified": false})))
	if err != nil || res.Claims["service_account"] != "" || res.Claims["service_account_id"] == "" {
		t.Errorf("an address that is not verified: %v, %v", res.Claims["service_account"], err)
	}
}

// TestBoundToChallenge: nothing needs to be remembered of a token, since it is good for one challenge and one key.
func TestBoundToChallenge(t *testing.T) {
	f := fixture(t)
	res, err := f.Method.Verify(f.Good())
	if err != nil || res.Once != "" {
		t.Fatal(res.Once, err)
	}
	for name, change := range map[string]func(*attest.Binding){
		"another nonce":       func(b *attest.Binding) { b.Nonce = []byte(strings.Repeat("x", 32)) },
		"another session key": func(b *attest.Binding) { b.SessionKey = [32]byte{1} },
		"another environment": func(b *attest.Binding) { b.Genesis = [32]byte{1, 2} },
	} {
		in := f.Good()
		change(&in.Binding)
		if _, err := f.Method.Verify(in); !problem.Is(err, problem.ReasonAudience) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The weaker audiences of other methods are none here.
	for _, aud := range []string{f.Binding.KeyAudience(), f.Binding.EnvironmentAudience()} {
		if _, err := f.Method.Verify(f.Input(f.With(map[string]any{"aud": aud}))); !problem.Is(err, problem.ReasonAudience) {
			t.Errorf("%s: %v", aud, err)
		}
	}
}

func TestMetadataServer(t *testing.T) {
	f := fixture(t)
	token := f.With(nil)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   problem.Reason
	}{
		"without its header": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(token) }, problem.ReasonNotProved},
		"no service account": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, problem.ReasonNotProved},
		"broken":             {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, problem.ReasonUnreachable},
		"no token": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			_, _ = w.Write([]byte("hello"))
		}, problem.ReasonTokenInvalid},
		"a cached token for somebody": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Metadata-Flavor", "Google")
			_, _ = w.Write(f.With(map[string]any{"aud": "https://vault.example.com"}))
		}, problem.ReasonAudience},
	} {
		server := httptest.NewServer(c.answer)
		a, err := f.Method.NewAttester(attest.Material{gcp.NeedMetadata: []byte(server.URL)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Attest(t.Context(), f.Binding)
		server.Close()
		if !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProxyIsNotUsed: another machine must not be the one that asks.
func TestProxyIsNotUsed(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	f := fixture(t)
	a, err := f.Method.NewAttester(f.Material)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), f.Binding); err != nil {
		t.Error(err)
	}
}

func TestAddress(t *testing.T) {
	for text, good := range map[string]bool{
		"":                                true,
		"http://metadata.google.internal": true,
		"http://169.254.169.254":          true,
		"http://127.0.0.1:8080":           true,
		"https://metadata.example":        true,
		"http://metadata.example":         false,
		"http://10.0.0.1":                 false,
		"http://metadata.google.internal.evil.example": false,
		"metadata.google.internal":                     false,
		"http://u:p@127.0.0.1":                         false,
		"file:///etc/passwd":                           false,
	} {
		if _, err := gcp.Method().NewAttester(attest.Material{gcp.NeedMetadata: []byte(text)}); good != (err == nil) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
