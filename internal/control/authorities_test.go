package control_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// A bundle of which the verifier can't use one authority can't use any: it is refused when it is proposed, and the machines of the
// others attest as before.
func TestAuthoritiesAreAsTheVerifierTakesThem(t *testing.T) {
	c, d := newAuthority(t, "c"), newAuthority(t, "d")
	w := controltest.New(t, controltest.Options{Extra: policy.Files{
		"environment.yaml": []byte(environmentWith(map[string]authority{"corp": c})),
		"identities/x.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: machines}\n" +
			"spec: {method: x509, authority: corp, path: /node/x509/corp/all}\n"),
	}})
	alice := w.Login("alice")
	for name, more := range map[string]map[string]authority{
		"a name that ends in a dash": {"corp": c, "other-": d}, "a certificate of two": {"corp": c, "other": c},
	} {
		files := maps.Clone(w.Files)
		files["environment.yaml"] = []byte(environmentWith(more))
		_, err := w.Propose(alice, "alice", files)
		if !problem.Is(err, problem.ReasonBundleInvalid) || !strings.Contains(err.Error(), "environment.yaml:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	files := maps.Clone(w.Files)
	files["environment.yaml"] = []byte(environmentWith(map[string]authority{"corp": c, "4.other": d}))
	p, err := w.Propose(alice, "alice", files)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = w.Approve(alice, "alice", p.Change); err != nil || p.Generation != 2 {
		t.Fatal(p, err)
	}
	if _, err := joinByCertificate(t, w, c.machine(t, "m1", time.Hour)); err != nil {
		t.Error(err)
	}
	if _, err := joinByCertificate(t, w, d.machine(t, "m1", time.Hour)); err == nil {
		t.Error("a machine of an authority that no rule names attested")
	}
}
