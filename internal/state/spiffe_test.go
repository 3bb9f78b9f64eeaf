package state_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/spiffe"
	"github.com/bailment/bailment/internal/state"
)

func tokenKey(t *testing.T, name string) state.KeyFacts {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := spiffe.MarshalTokenKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return state.KeyFacts{Name: name, Public: public}
}

// after applies events to a state, or says which one was refused.
func after(t *testing.T, s *state.State, events ...state.Event) (*state.State, error) {
	t.Helper()
	f := s.Fork()
	for _, ev := range events {
		e := &state.Entry{Time: f.Time + 1000, Event: ev}
		body, err := state.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Apply(f.Next, body, nil); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// The history leaves jwt/1 to jwt/3, of which jwt/2 signs, ca/1 withdrawn, and a bundle of the partner with sequence number 7.
func TestSPIFFEReducers(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	s := w.Env.State()
	partner, ok := s.Federations.Get("partner")
	if !ok || partner.Sequence != 7 {
		t.Fatalf("%+v", partner)
	}
	named := func(name string) *state.JWTKeyAdded { return &state.JWTKeyAdded{Key: tokenKey(t, name)} }
	refreshed := func(change func(*state.FederationRefreshed)) *state.FederationRefreshed {
		e := &state.FederationRefreshed{Name: "partner", TrustDomain: partner.TrustDomain, Pin: partner.Pin, Document: state.Digest{1}, Sequence: 8, Sequenced: true}
		change(e)
		return e
	}
	issued := func(change func(*state.JWTIssued)) *state.JWTIssued {
		e := &state.JWTIssued{Subject: "/workload/api", Audience: []string{"a"}, Key: "jwt/2", Expires: s.Time + 60_000}
		change(e)
		return e
	}
	cert := named("jwt/4")
	cert.Key.Cert = []byte{1}
	short := named("jwt/4")
	short.Key.Public = short.Key.Public[1:]
	for name, ev := range map[string]state.Event{
		"a number too high":              named("jwt/5"),
		"a number again":                 named("jwt/3"),
		"a key of another kind":          named("ca/3"),
		"a certificate":                  cert,
		"not a key":                      short,
		"a key of tokens as another key": &state.KeyAdded{Key: tokenKey(t, "jwt/4")},
		"a key that isn't":               &state.KeyWithdrawn{Key: "jwt/9"},
		"not a name":                     &state.KeyWithdrawn{Key: "jwt/01"},
		"a key that signs":               &state.KeyWithdrawn{Key: "jwt/2"},
		"the next key":                   &state.KeyWithdrawn{Key: "jwt/3"},
		"the current CA":                 &state.KeyWithdrawn{Key: "ca/2"},
		"a CA again":                     &state.KeyWithdrawn{Key: "ca/1"},
		"a key-encryption key":           &state.KeyWithdrawn{Key: "kek/1"},
		"by the next key":                issued(func(e *state.JWTIssued) { e.Key = "jwt/3" }),
		"by a former key":                issued(func(e *state.JWTIssued) { e.Key = "jwt/1" }),
		"for nobody":                     issued(func(e *state.JWTIssued) { e.Audience = nil }),
		"for nine":                       issued(func(e *state.JWTIssued) { e.Audience = make([]string, 9) }),
		"that is over":                   issued(func(e *state.JWTIssued) { e.Expires = s.Time }),
		"the same bundle":                refreshed(func(e *state.FederationRefreshed) { e.Document = partner.Document }),
		"an earlier one":                 refreshed(func(e *state.FederationRefreshed) { e.Sequence = 6 }),
		"another of the same number":     refreshed(func(e *state.FederationRefreshed) { e.Sequence = 7 }),
		"one without a number":           refreshed(func(e *state.FederationRefreshed) { e.Sequenced, e.Sequence = false, 0 }),
		"of the environment itself":      refreshed(func(e *state.FederationRefreshed) { e.TrustDomain = controltest.EnvName }),
		"of nobody":                      refreshed(func(e *state.FederationRefreshed) { e.TrustDomain = "" }),
	} {
		if _, err := after(t, s, ev); err == nil {
			t.Errorf("%s was applied", name)
		}
	}
	if f, err := after(t, s, issued(func(*state.JWTIssued) {})); err != nil || f.Control != s.Control {
		t.Errorf("a token: %v", err)
	}
	f, err := after(t, s, named("jwt/4"))
	if err != nil {
		t.Fatal(err)
	}
	if k, _ := f.CurrentKey(state.KeyJWT); k.Name != "jwt/3" || len(f.Told(state.KeyJWT)) != 4 || f.Control == s.Control || f.KeysChanged() != f.Next-1 {
		t.Errorf("%s signs", k.Name)
	}
	if f, err = after(t, f, named("jwt/5"), &state.KeyWithdrawn{Key: "jwt/3"}); err != nil {
		t.Fatal(err)
	}
	if told := f.Told(state.KeyJWT); len(told) != 2 || told[0].Name != "jwt/4" || !told[0].Current {
		t.Errorf("%d keys are told", len(told))
	}
	if told := f.Told(state.KeyCA); len(told) != 1 || told[0].Name != "ca/2" {
		t.Errorf("%d CAs are told", len(told))
	}
	// A relation that was approved anew begins anew.
	f, err = after(t, f, refreshed(func(e *state.FederationRefreshed) { e.Pin[0]++; e.Sequence = 1 }))
	if err != nil {
		t.Fatal(err)
	}
	packed, root, err := f.Pack()
	if err != nil {
		t.Fatal(err)
	}
	again, err := state.Restore(packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, same, err := again.Pack(); err != nil || same != root {
		t.Errorf("restored it differs: %v", err)
	}
	if x, ok := again.Federations.Get("partner"); !ok || x.Sequence != 1 || !x.Sequenced {
		t.Errorf("%+v", x)
	}
	// Before the protocol was raised an older server would stop at them.
	early := state.New()
	genesis, err := state.Decode(w.Stored()[0].Body)
	if err != nil {
		t.Fatal(err)
	}
	genesis.Event.(*state.Genesis).Protocol = 0
	if err := early.Apply(0, nil, genesis); err != nil {
		t.Fatal(err)
	}
	for _, ev := range []state.Event{named("jwt/1"), issued(func(*state.JWTIssued) {}), &state.KeyWithdrawn{Key: "ca/1"}, refreshed(func(*state.FederationRefreshed) {})} {
		if _, err := after(t, early, ev); err == nil {
			t.Errorf("%s before its protocol", ev.Kind())
		}
	}
}
