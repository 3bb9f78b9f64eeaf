package controltest

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
)

// Service is a CI service that runs jobs: its tokens have the shape that it documents, and its keys are pinned in the bundle.
type Service struct {
	Method string
	Issuer *jwttest.Issuer
	claims map[string]any
	tokens int
}

// NewService makes one of a method: github or gitlab.
func NewService(t testing.TB, method string) *Service {
	t.Helper()
	shape := platformtest.Shapes(t, method)[0]
	return &Service{Method: method, Issuer: jwttest.New(t, shape.Issuer, jose.ES256), claims: shape.Claims}
}

// paths are the identities of jobs, and that of all jobs of the one repository.
var paths = map[string][2]string{
	"github": {"/ci/github/{claims.repository_owner_id}/{claims.repository_id}", "/ci/github/65/74"},
	"gitlab": {"/ci/gitlab/{claims.namespace_id}/{claims.project_id}", "/ci/gitlab/72/20"},
}

// Files are what a bundle says of the service: its authority, one identity for a repository's jobs, and that they read ci/*.
func (s *Service) Files(t testing.TB) policy.Files {
	t.Helper()
	keys, err := json.Marshal(s.Issuer.Keys())
	if err != nil {
		t.Fatal(err)
	}
	return policy.Files{
		"authorities/" + s.Method + ".yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: %s}\nspec: {method: %s, issuer: '%s', keys: '%s'}\n", s.Method, s.Method, s.Issuer.URL, keys),
		"identities/" + s.Method + ".yaml":  fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: %s-jobs}\nspec: {method: %s, authority: %s, path: '%s'}\n", s.Method, s.Method, s.Method, paths[s.Method][0]),
		"grants/ci.yaml":                    fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: jobs-read}\nspec: {actions: [secret.read], identities: [%s], secrets: ['ci/*'], purposes: [runtime]}\n", paths[s.Method][1]),
		"secrets/ci.yaml":                   []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: ci/*}\nspec: {type: opaque}\n"),
	}
}

// Token is a new job's, good from now for as long as is said, for a session key.
func (s *Service) Token(w *World, key *ecdsa.PrivateKey, good time.Duration) []byte {
	w.T.Helper()
	s.tokens++
	thumb, err := seal.Thumbprint(key.Public())
	w.check(err)
	b := attest.Binding{Method: s.Method, Genesis: w.Genesis, SessionKey: thumb}
	audience := b.KeyAudience()
	if s.Method == "gitlab" {
		audience = b.EnvironmentAudience()
	}
	now := w.Now()
	return s.Issuer.Sign(jwttest.With(s.claims, map[string]any{
		"iss": s.Issuer.URL, "aud": audience, "iat": now.Unix(), "exp": now.Add(good).Unix(), "jti": fmt.Sprint(s.Method, s.tokens),
	}))
}

// TryJob attests a job by its token.
func (w *World) TryJob(s *Service, token []byte, key *ecdsa.PrivateKey) (*control.Opened, error) {
	w.T.Helper()
	challenge, _, err := w.Env.Challenge()
	w.check(err)
	return w.Env.Attest(context.Background(), control.AttestRequest{Method: s.Method, Challenge: challenge, Evidence: jwttest.Evidence(token), CSR: CSR(w.T, key)})
}

// Job is a new job, whose token is good for as long as is said.
func (w *World) Job(s *Service, good time.Duration) Actor {
	w.T.Helper()
	key, _ := Key(w.T)
	o, err := w.TryJob(s, s.Token(w, key, good), key)
	w.check(err)
	return w.Enter(key, o)
}

// Renewed is a session renewed by possession with a new key.
func (w *World) Renewed(a Actor) Actor {
	w.T.Helper()
	key, _ := Key(w.T)
	o, err := w.Renew(a, key)
	w.check(err)
	return w.Enter(key, o)
}
