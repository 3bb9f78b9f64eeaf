package platform_test

import (
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/ci"
	"github.com/bailment/bailment/internal/attest/k8s"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
)

// A cluster may be the authority of machines and of jobs. A token of it is one token by whichever method it is shown: who finds a spent one
// can't use it again by another method.
func TestTokenCountsOnceAcrossMethods(t *testing.T) {
	f := platformtest.New(t, k8s.Method(), platformtest.Shapes(t, k8s.Name)[0], platform.ToEnvironment, jose.ES256, now, platformtest.Binding())
	evidence := f.Good().Evidence
	uses := map[string]bool{}
	methods := attest.Methods{k8s.Method(), k8s.JobMethod(), ci.OIDC()}
	for _, m := range methods {
		params, err := m.Params([]authority.Authority{{Name: "cluster", Method: m.Name, Issuer: f.Issuer.URL, Keys: f.Issuer.Keys()}})
		if err != nil {
			t.Fatal(err)
		}
		b := f.Binding
		b.Method = m.Name
		res, err := m.Verify(attest.Input{Binding: b, Evidence: evidence, Now: now, Params: params})
		if err != nil {
			t.Fatal(m.Name, err)
		}
		uses[res.Once] = true
	}
	if len(uses) != 1 {
		t.Errorf("one token may be used %d times: %v", len(uses), uses)
	}
}
