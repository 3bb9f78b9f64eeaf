package platform_test

import (
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/issuers"
	"github.com/bailment/bailment/internal/problem"
)

// published is an issuer that runs: discovery and keys, over TLS.
type published struct {
	mu   sync.Mutex
	url  string
	keys *jose.JSONWebKeySet
}

func (p *published) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": p.url, "jwks_uri": p.url + "/keys"})
	case "/keys":
		_ = json.NewEncoder(w).Encode(p.keys)
	default:
		http.NotFound(w, r)
	}
}

// TestThroughIssuer goes the way of the server: whose keys a token needs, those keys from an issuer that runs, and the verdict.
func TestThroughIssuer(t *testing.T) {
	for _, m := range platformtest.Methods() {
		t.Run(m.Name, func(t *testing.T) {
			site := &published{}
			server := httptest.NewTLSServer(site)
			defer server.Close()
			site.url = server.URL
			s := platformtest.Shapes(t, m.Name)[0]
			s.Issuer = server.URL
			f := platformtest.New(t, m, s, platformtest.Bindings(m.Name)[0], jose.ES256, now, platformtest.Binding())
			site.keys = f.Issuer.Keys()
			a := authority.Authority{Name: "corp", Method: m.Name, Issuer: server.URL, Certificates: []*x509.Certificate{server.Certificate()}}
			params, err := m.Params([]authority.Authority{a})
			if err != nil {
				t.Fatal(err)
			}
			keys := issuers.New(issuers.Config{})
			defer keys.Close()
			verify := func(evidence []byte) error {
				t.Helper()
				head, err := m.Issuer(evidence)
				if err != nil {
					t.Fatal(err)
				}
				set, err := keys.Find(t.Context(), a, head.KeyID)
				if err != nil {
					return err
				}
				_, err = m.Verify(attest.Input{Binding: f.Binding, Evidence: evidence, Now: now, Params: params, Keys: set})
				return err
			}
			if err := verify(f.Good().Evidence); err != nil {
				t.Error(err)
			}
			evil := jwttest.New(t, server.URL, jose.ES256)
			evil.KeyID = "key-of-nobody"
			f.Issuer = evil
			if err := verify(f.Good().Evidence); !problem.Is(err, problem.ReasonTokenInvalid) {
				t.Errorf("a key that was never published: %v", err)
			}
			server.Close()
			if err := verify(f.Good().Evidence); !problem.Is(err, problem.ReasonTokenInvalid) {
				t.Errorf("with the issuer down: %v", err)
			}
		})
	}
}
