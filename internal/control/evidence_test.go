package control_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	anchors "github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// fresh changes the method of machines.
func fresh(change func(*attest.Method)) func(attest.Methods) {
	return func(ms attest.Methods) {
		for i := range ms {
			if ms[i].Name == controltest.MethodFresh {
				change(&ms[i])
			}
		}
	}
}

// What the methods make of a bundle's authorities is made once for each bundle, and never kept for another.
func TestParamsAreOfTheirBundle(t *testing.T) {
	var made atomic.Int32
	var given atomic.Value
	f := newFleet(t, fresh(func(m *attest.Method) {
		believed := m.Verify
		m.Params = func(all []anchors.Authority) (any, error) {
			made.Add(1)
			var names []string
			for _, a := range all {
				names = append(names, a.Name)
			}
			return names, nil
		}
		m.Verify = func(in attest.Input) (attest.Result, error) {
			given.Store(in.Params)
			return believed(in)
		}
	}), nil)
	prove := func(want ...string) int32 {
		t.Helper()
		before := made.Load()
		for range 3 {
			f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
			if got, _ := given.Load().([]string); !slices.Equal(got, want) {
				t.Fatalf("it was given %v, not %v", got, want)
			}
		}
		return made.Load() - before
	}
	if n := prove("fleet"); n != 1 {
		t.Errorf("made %d times", n)
	}
	text := string(f.Files["authorities/all.yaml"])
	other := "---\napiVersion: bailment/v1\nkind: Authority\nmetadata: {name: another}\nspec:\n  method: tpm\n" +
		"  endorsementKeys: [\"sha256:" + strings.Repeat("6", 64) + "\"]\n"
	f.must(f.bring("authorities/all.yaml", text+other))
	if n := prove("another", "fleet"); n != 1 {
		t.Errorf("made %d times for the next bundle", n)
	}
	f.must(f.bring("authorities/all.yaml", text))
	if n := prove("fleet"); n != 1 {
		t.Errorf("made %d times for the bundle after that", n)
	}
}

// A bundle of whose authorities a verifier can make nothing is not proposed, and comes into force even less.
func TestAuthoritiesThatAMethodRefuses(t *testing.T) {
	var picky atomic.Bool
	f := newFleet(t, fresh(func(m *attest.Method) {
		m.Params = func(all []anchors.Authority) (any, error) {
			for _, a := range all {
				if a.Name == "cursed" && picky.Load() {
					return nil, errors.New("it is cursed")
				}
			}
			return all, nil
		}
	}), nil)
	files := map[string][]byte{}
	for path, data := range f.Files {
		files[path] = data
	}
	files["authorities/all.yaml"] = append(slices.Clone(files["authorities/all.yaml"]), "---\napiVersion: bailment/v1\nkind: Authority\nmetadata: {name: cursed}\nspec:\n  method: tpm\n  endorsementKeys: [\"sha256:"+strings.Repeat("6", 64)+"\"]\n"...)
	picky.Store(true)
	_, err := f.Propose(f.alice, "alice", files)
	f.refused(err, problem.ReasonBundleInvalid)
	if !strings.Contains(err.Error(), "tpm") {
		t.Errorf("it doesn't say whose: %v", err)
	}
	f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
	if g := f.Env.State().Generation; g != 1 {
		t.Errorf("generation %d", g)
	}
	picky.Store(false)
	if _, err := f.Propose(f.alice, "alice", files); err != nil {
		t.Error(err)
	}
}

// An offer hides something else for each challenge, hello and method, the same each time, and the verifier finds it again: also another
// replica's, and after a restart.
func TestOffers(t *testing.T) {
	offering := func(m *attest.Method) {
		believed := m.Verify
		m.Offer = func(in attest.OfferInput) ([]byte, error) {
			b := make([]byte, 8)
			if _, err := io.ReadFull(in.Random, b); err != nil || in.Now.IsZero() || in.Params == nil {
				return nil, errors.New("it lacks something")
			}
			return in.Secret[:], nil
		}
		m.Verify = func(in attest.Input) (attest.Result, error) {
			out, err := believed(in)
			if err == nil {
				secret := in.Secret([]byte("hello"))
				out.Claims["secret"] = string(hexOf(secret))
			}
			return out, err
		}
	}
	f := newFleet(t, func(ms attest.Methods) {
		for i := range ms {
			if ms[i].Name == controltest.MethodFresh || ms[i].Name == controltest.MethodJob {
				offering(&ms[i])
			}
		}
	}, nil)
	ctx := context.Background()
	challenge := func() []byte {
		t.Helper()
		c, _, err := f.Env.Challenge()
		f.must(err)
		return c
	}
	offer := func(method string, challenge []byte, hello string) string {
		t.Helper()
		o, err := f.Env.Offer(ctx, method, challenge, []byte(hello))
		f.must(err)
		return string(hexOf([32]byte(o)))
	}
	one, two := challenge(), challenge()
	size := f.Env.Ledger().Size()
	said := offer(controltest.MethodFresh, one, "hello")
	if offer(controltest.MethodFresh, one, "hello") != said {
		t.Error("the same hello is offered something else")
	}
	seen := map[string]bool{said: true}
	for _, other := range []string{
		offer(controltest.MethodFresh, two, "hello"), offer(controltest.MethodFresh, one, "hellO"), offer(controltest.MethodFresh, one, ""), offer(controltest.MethodJob, one, "hello"),
	} {
		if seen[other] {
			t.Error("another offer hides the same")
		}
		seen[other] = true
	}
	if f.Env.Ledger().Size() != size {
		t.Error("an offer was entered")
	}
	f.Reopen()
	if offer(controltest.MethodFresh, one, "hello") != said {
		t.Error("after a restart the same hello is offered something else")
	}
	a, err := f.Env.Appraise(ctx, f.EvidenceFor(one, controltest.MethodFresh, controltest.MachineProof("m1", "good"), f.key(), nil))
	f.must(err)
	if a.Claims["secret"] != said {
		t.Error("the verifier does not find what the offer hid")
	}

	foreign := slices.Clone(one)
	foreign[3]++
	_, err = f.Env.Offer(ctx, controltest.MethodFresh, foreign, nil)
	f.refused(err, problem.ReasonChallengeForeign)
	_, err = f.Env.Offer(ctx, "join-token", one, nil)
	f.refused(err, problem.ReasonInvalid)
	_, err = f.Env.Offer(ctx, "magic", one, nil)
	f.refused(err, problem.ReasonUnknownMethod)
}

func hexOf(b [32]byte) []byte {
	const digits = "0123456789abcdef"
	var out []byte
	for _, x := range b {
		out = append(out, digits[x>>4], digits[x&15])
	}
	return out
}

// A bundle that comes into force while evidence is verified under another has it verified again: whoever does not vouch any more does not
// vouch for one session more.
func TestBundleBetweenVerificationAndDecision(t *testing.T) {
	var f *fleet
	var calls atomic.Int32
	var meanwhile atomic.Pointer[func()]
	f = newFleet(t, fresh(func(m *attest.Method) {
		believed := m.Verify
		m.Params = func(all []anchors.Authority) (any, error) { return all, nil }
		m.Verify = func(in attest.Input) (attest.Result, error) {
			calls.Add(1)
			known := slices.ContainsFunc(in.Params.([]anchors.Authority), func(a anchors.Authority) bool { return a.Name == "fleet" && len(a.EndorsementKeys) == 1 })
			if act := meanwhile.Swap(nil); act != nil {
				(*act)()
			}
			if !known {
				return attest.Result{}, problem.New(problem.ReasonBadChain, "nobody vouches for it any more")
			}
			return believed(in)
		}
	}), nil)
	text := string(f.Files["authorities/all.yaml"])
	withdraw := func() {
		f.must(f.bring("authorities/all.yaml", strings.Replace(text, "endorsementKeys: [", "endorsementKeys: [\"sha256:"+strings.Repeat("7", 64)+"\", ", 1)))
	}
	meanwhile.Store(&withdraw)
	_, err := f.prove(controltest.MachineProof("m1", "good"), f.key())
	f.refused(err, problem.ReasonBadChain)
	if n := calls.Load(); n != 2 {
		t.Errorf("verified %d times", n)
	}
	restore := func() { f.must(f.bring("authorities/all.yaml", text)) }
	meanwhile.Store(&restore)
	_, err = f.prove(controltest.MachineProof("m1", "good"), f.key())
	f.refused(err, problem.ReasonBadChain) // refused under the bundle that it was asked under
	unrelated := func() { f.must(f.bring("README.md", "Another bundle.\n")) }
	meanwhile.Store(&unrelated)
	calls.Store(0)
	o, err := f.prove(controltest.MachineProof("m1", "good"), f.key())
	f.must(err)
	if x, _ := f.Env.State().Sessions.Get(o.Index); x.Generation != f.Env.State().Generation || calls.Load() != 2 {
		t.Errorf("generation %d after %d verifications", x.Generation, calls.Load())
	}
}

// A method that claims more than it declares, or speaks where only the server does, is a defect that opens nothing.
func TestMethodsThatOverstep(t *testing.T) {
	f := newFleet(t, nil, nil)
	over := controltest.JobProof("j1", f.Now().Add(time.Minute))
	over.Assurance = identity.Measured
	_, err := f.prove(over, f.key())
	f.refused(err, problem.ReasonInternal)
	agent := controltest.MachineProof("m1", "good")
	agent.Claims["agent"] = map[string]any{"state": "signed"}
	_, err = f.prove(agent, f.key())
	f.refused(err, problem.ReasonInternal)
	if f.Env.State().Uses.Len() != 0 || f.entries("session.opened") != 2 { // of alice and bob
		t.Error("something was opened")
	}
	_, err = f.Env.Attest(context.Background(), control.AttestRequest{Method: "magic"})
	f.refused(err, problem.ReasonUnknownMethod)
}
