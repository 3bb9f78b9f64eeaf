package custody_test

import (
	"context"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/state"
)

// Every CA that is trusted because of the ledger leads to genesis: by its number, and by the signature of the CA before it.
func TestCertificatesLeadToGenesis(t *testing.T) {
	ctx := context.Background()
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	for range 11 { // so that numbers don't sort as text
		if _, _, err := w.Env.RotateKey(ctx, alice.Caller, custody.CA); err != nil {
			t.Fatal(err)
		}
	}
	v := custody.Vault{Holder: w.Config.Holder, Genesis: w.Genesis, Read: w.Env.Ledger().Store().Key}
	keys, err := v.Unseal(ctx, w.Env.State(), w.Env.Ledger().Origin())
	if err != nil {
		t.Fatal(err)
	}
	if all := keys.Certificates(); len(all) != 12 || len(keys.Chain()) != 12 || !strings.HasSuffix(all[11].Subject.CommonName, " CA 12") {
		t.Fatalf("%d certificates", len(all))
	}
	current, _ := w.Env.State().CurrentKey(custody.CA)
	first, _ := w.Env.State().Keys.Get("ca/1")
	leaf := alice.Opened.Chain[0]
	for what, k := range map[string]state.KeyFacts{
		"signed by itself":                   {Name: "ca/13", Cert: current.Cert, Cross: current.Cert},
		"signed by an older one":             {Name: "ca/13", Cert: current.Cert, Cross: current.Cross},
		"a session's certificate":            {Name: "ca/13", Cert: leaf, Cross: leaf},
		"another key's":                      {Name: "ca/13", Cert: first.Cert, Cross: current.Cross},
		"no certificate":                     {Name: "ca/13", Cert: []byte("x"), Cross: []byte("x")},
		"a number in front":                  {Name: "ca/0", Cert: current.Cert, Cross: current.Cross},
		"a number that is there, as another": {Name: "ca/012", Cert: current.Cert, Cross: current.Cross},
	} {
		s := w.Env.State().Fork()
		err := s.Apply(s.Next, nil, &state.Entry{Time: s.Time, Event: &state.KeyAdded{Key: k}})
		if err == nil {
			_, err = v.Unseal(ctx, s, w.Env.Ledger().Origin())
			if err == nil || !strings.Contains(err.Error(), "ca/13") {
				t.Errorf("%s: %v", what, err)
			}
		} else if k.Name == "ca/13" {
			t.Errorf("%s: %v", what, err)
		}
	}
}
