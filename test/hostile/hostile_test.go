package hostile

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// everybody are the kits of all methods, with authorities that are trusted for one method each.
func everybody(t *testing.T) []kit {
	t.Helper()
	azure := newCloud(t)
	onlyAWS := cmstest.Issue(t, "Amazon Web Services LLC", 11, cmstest.Key(0), nil, nil)
	kits := []kit{
		joinTokens(t), hosts(t), amd(t), intel(t), chips(t), amazon(t, azure.root), microsoft(t, azure, onlyAWS),
		certificates(t, map[string]issued{"azure": {azure.root.Certificate, azure.root.Key}}),
	}
	kits = append(kits, tokens(t)...)
	slices.SortFunc(kits, func(a, b kit) int { return cmp.Compare(a.method, b.method) })
	return kits
}

// siege counts what was sent and checks what it left behind.
type siege struct {
	*house
	t       *testing.T
	sent    map[string]int // by method
	reasons map[[2]string]uint64
}

// refused sends hostile evidence, which must be refused by that reason and change nothing.
func (s *siege) refused(t *testing.T, method string, x try, evidence []byte, want problem.Reason) {
	t.Helper()
	before := s.Env.State()
	res, err := s.send(method, x, evidence)
	switch got := servertest.Reason(err); {
	case err == nil:
		t.Errorf("it was believed: %s", res.Identity)
	case got != string(want):
		t.Errorf("refused as %s, wanted %s: %v", got, want, err)
	}
	if after := s.Env.State(); after.Next != before.Next || after.Holds.Len() != before.Holds.Len() {
		t.Errorf("it left %d entries and %d holds", after.Next-before.Next, after.Holds.Len()-before.Holds.Len())
	}
	s.sent[method]++
	s.reasons[[2]string{method, string(want)}]++
}

// TestHostileEvidence attacks an environment that trusts an authority for every method, over the wire, with evidence that proves nothing.
// Each machine's own evidence is good in the same environment before and after. A refusal names its exact reason and leaves nothing but a
// number: no session, no spent challenge, no hold, no entry of its own.
func TestHostileEvidence(t *testing.T) {
	kits := everybody(t)
	h := newHouse(t, options{files: files(kits)})
	s := &siege{house: h, t: t, sent: map[string]int{}, reasons: map[[2]string]uint64{}}
	var waiting []func(*testing.T)
	for i, k := range kits {
		t.Run(k.method, func(t *testing.T) { waiting = append(waiting, s.attack(t, k, kits[(i+1)%len(kits)])) })
	}
	s.left(t)

	// Challenges that were not answered in time. The clock moves for all at once.
	h.Advance(3 * time.Minute)
	h.serve(generous())
	for _, late := range waiting {
		late(t)
	}
	s.left(t)

	all := 0
	for _, m := range methods.All() {
		if s.sent[m.Name] < 6 {
			t.Errorf("%s was attacked %d times only", m.Name, s.sent[m.Name])
		}
		all += s.sent[m.Name]
	}
	if all < 120 {
		t.Errorf("there were %d hostile evidences only", all)
	}
	t.Logf("%d hostile evidences: %v", all, s.sent)
}

// attack attacks one method. What it returns is to be done when its challenges are over.
func (s *siege) attack(t *testing.T, k, other kit) func(*testing.T) {
	// The machine itself.
	own := s.begin(k.method)
	good := k.good(s.house, own.binding)
	res, err := s.send(k.method, own, good)
	if err != nil {
		t.Fatalf("its own evidence: %v", err)
	}
	enrolled, _ := s.Env.State().Sessions.Get(res.Entry.Index)
	if enrolled == nil || enrolled.Method != k.method {
		t.Fatalf("its own evidence opened %+v", enrolled)
	}

	row := func(name string, x try, evidence []byte, want problem.Reason) {
		t.Helper()
		t.Run(name, func(t *testing.T) { s.refused(t, k.method, x, evidence, want) })
	}
	row("the same request again", own, good, problem.ReasonReplayed)
	if k.challenge != "" {
		row("for another challenge", s.again(k.method, own), good, k.challenge)
	}
	row("by another session key", s.begin(k.method), good, k.key)
	if k.environment != "" {
		x := s.begin(k.method)
		b := x.binding
		b.Genesis[31] ^= 1
		row("made for another environment", x, k.good(s.house, b), k.environment)
	}
	x := s.begin(k.method)
	fresh := k.good(s.house, x.binding)
	stolen := x
	stolen.csr = bytes.Clone(x.csr)
	stolen.csr[len(stolen.csr)-1] ^= 1
	row("a session key that is not the asker's", stolen, fresh, problem.ReasonBadProof)
	made := x
	made.challenge = bytes.Clone(x.challenge)
	made.challenge[0] ^= 1
	row("a challenge that was made up", made, fresh, problem.ReasonChallengeForeign)
	row("nothing", x, nil, problem.ReasonInvalid)
	row("truncated", x, fresh[:len(fresh)/2], problem.ReasonInvalid)
	row("without its end", x, fresh[:len(fresh)-1], problem.ReasonInvalid)
	row("something behind it", x, append(bytes.Clone(fresh), ' '), problem.ReasonInvalid)
	row("a field that is not known", x, append([]byte(`{"x":1,`), fresh[1:]...), problem.ReasonInvalid)
	row("white space", x, append([]byte(`{ `), fresh[1:]...), problem.ReasonInvalid)
	m, err := methods.All().Find(k.method)
	if err != nil {
		t.Fatal(err)
	}
	if most := cmp.Or(m.MaxEvidence, attest.MaxEvidence); most < 1<<20 { // beyond, a request is too large before it has a method
		row("oversized", x, append(bytes.Clone(fresh), bytes.Repeat([]byte(" "), most)...), problem.ReasonTooLarge)
	}
	foreign := x
	foreign.binding.Method = other.method
	wrong := problem.ReasonInvalid
	switch { // tokens have the same document around them
	case k.issuer == "" || other.issuer == "":
	case k.issuer == other.issuer:
		wrong = problem.ReasonTokenInvalid // by another key of an issuer of that name
	default:
		wrong = problem.ReasonIssuer
	}
	row("evidence of "+other.method, x, other.good(s.house, foreign.binding), wrong)
	for _, a := range k.attacks {
		x := s.begin(k.method)
		row(a.name, x, a.make(s.house, x.binding), a.want)
	}

	// Nobody's lies changed what the machine is.
	id, _ := s.Env.State().Identities.Get(enrolled.Identity)
	if id == nil || id.Session != res.Entry.Index || id.Closed {
		t.Errorf("after all that it is %+v", id)
	}
	late := s.begin(k.method)
	evidence := k.good(s.house, late.binding)
	return func(t *testing.T) { s.refused(t, k.method, late, evidence, problem.ReasonChallengeExpired) }
}

// left checks what the ledger has of it: sums, with every refusal in one of them, and no more of them than there are methods, reasons and
// minutes.
func (s *siege) left(t *testing.T) {
	t.Helper()
	from := s.Env.State().Next
	s.must(s.Env.FlushDenials(context.Background()))
	s.must(s.Env.Ledger().Entries(context.Background(), from, 1<<20, func(_ uint64, e store.Entry) error {
		x, err := state.Decode(e.Body)
		if err != nil {
			return err
		}
		d, ok := x.Event.(*state.DenialsSummed)
		if !ok {
			t.Errorf("an entry %T", x.Event)
			return nil
		}
		key := [2]string{d.Method, d.Reason}
		if d.Count > s.reasons[key] {
			t.Errorf("%d refusals of %s as %s too many", d.Count-s.reasons[key], d.Method, d.Reason)
		}
		s.reasons[key] -= min(d.Count, s.reasons[key])
		return nil
	}))
	maps.DeleteFunc(s.reasons, func(_ [2]string, n uint64) bool { return n == 0 })
	if len(s.reasons) > 0 {
		t.Errorf("refusals that are in no sum: %v", s.reasons)
	}
}
