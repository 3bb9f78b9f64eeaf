package hostile

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest/aws"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/storetest"
)

// once is a method whose evidence is used by one key only, with what somebody else gets who has it: as it was sent, and as its maker would
// make it for him. That is empty where it is another evidence: tokens without an ID count once by what was signed, which names the key.
type once struct {
	kit
	copied, made problem.Reason
}

// single are all of them: who adds a method to the table adds its machine here.
func single(t *testing.T) []once {
	t.Helper()
	onlyAzure := cmstest.Issue(t, "Web Root", 1, cmstest.Key(1), nil, cmstest.CA)
	kits := map[string]kit{jointoken.Name: joinTokens(t), aws.Name: amazon(t, onlyAzure)}
	unnamed := map[string]bool{}
	for _, k := range tokens(t) {
		kits[k.method] = k
		unnamed[k.method] = platformtest.Shapes(t, k.method)[0].Claims["jti"] == nil
	}
	var out []once
	for _, m := range authority.Methods {
		if !m.Once {
			continue
		}
		k, ok := kits[m.Name]
		if !ok {
			t.Errorf("%s counts once, and nobody tries it here", m.Name)
			continue
		}
		row := once{k, k.key, problem.ReasonTokenSpent}
		switch {
		case m.Name == aws.Name:
			row.made = problem.ReasonInstanceSeen
		case unnamed[m.Name]:
			row.made = ""
		}
		out = append(out, row)
	}
	return out
}

// TestLostAnswers has the store fail at the very commit of an attestation, without and with effect, so that the machine doesn't hear what
// became of it. Whatever that was: the same key gets through and has one enrolment; another key with the same evidence does not.
func TestLostAnswers(t *testing.T) {
	for _, fault := range []storetest.Fault{{}, {Unknown: true}, {Done: true, Unknown: true}} {
		t.Run(fmt.Sprintf("done=%v unknown=%v", fault.Done, fault.Unknown), func(t *testing.T) {
			var newest atomic.Pointer[storetest.Faulty]
			rows := single(t)
			var kits []kit
			for _, r := range rows {
				kits = append(kits, r.kit)
			}
			h := newHouse(t, options{files: files(kits), world: controltest.Options{Wrap: func(s store.Store) store.Store {
				newest.Store(storetest.NewFaulty(s))
				return newest.Load()
			}}})
			for _, r := range rows {
				t.Run(r.method, func(t *testing.T) {
					h.lost(t, r.kit, &newest, fault, r.copied, r.made)
				})
			}
			h.Reopen()
			h.replays(t)
		})
	}
}

func (h *house) lost(t *testing.T, k kit, newest *atomic.Pointer[storetest.Faulty], fault storetest.Fault, copied, made problem.Reason) {
	own := h.begin(k.method)
	good := k.good(h, own.binding)
	thief := h.begin(k.method)
	h.must(h.Env.FlushDenials(t.Context())) // so that the next commit is the attestation's
	before := h.Env.State().Next
	fault.Op, fault.Call = storetest.OpAppend, 1
	broken := newest.Load()
	broken.Plan(fault)
	_, err := h.send(k.method, own, good)
	want := problem.ReasonStore
	if fault.Unknown {
		want = problem.ReasonUnknownOutcome
	}
	if servertest.Reason(err) != string(want) || !broken.Failed() {
		t.Fatalf("the answer that was lost: %v", err)
	}

	// The very same request: the challenge is spent exactly if the commit had effect.
	_, err = h.eventually(t, func() (*pb.SessionResponse, error) { return h.send(k.method, own, good) })
	if fault.Done && servertest.Reason(err) != string(problem.ReasonReplayed) || !fault.Done && err != nil {
		t.Fatalf("the same request again: %v", err)
	}
	// As the agent goes on: with a new challenge, by the same key.
	next := h.again(k.method, own)
	evidence := good
	if k.challenge != "" {
		evidence = k.good(h, next.binding)
	}
	res, err := h.send(k.method, next, evidence)
	if err != nil {
		t.Fatalf("the same key: %v", err)
	}

	for range 2 {
		if _, err := h.send(k.method, thief, good); servertest.Reason(err) != string(copied) {
			t.Errorf("another key with a copy: %v", err)
		}
		if made == "" {
			continue
		}
		if _, err := h.send(k.method, thief, k.good(h, thief.binding)); servertest.Reason(err) != string(made) {
			t.Errorf("another key with what was made for it: %v", err)
		}
	}

	s := h.Env.State()
	x, _ := s.Sessions.Get(res.Entry.Index)
	if x == nil || s.Holds.Len() != 0 {
		t.Fatalf("session %d is %+v, and there are %d holds", res.Entry.Index, x, s.Holds.Len())
	}
	opened := 0
	s.Sessions.From(before, func(i uint64, y *state.Session) bool {
		if y.Identity == x.Identity {
			opened++
			if y.Root != x.Root || y.Key != x.Key {
				t.Errorf("session %d has another enrolment or key: %+v", i, y)
			}
		}
		return true
	})
	if opened != 2 || x.Root != before {
		t.Errorf("%d sessions, of enrolment %d, begun at %d", opened, x.Root, before)
	}
	if id, _ := s.Identities.Get(x.Identity); id == nil || id.Root != x.Root || id.Counter != 0 {
		t.Errorf("the identity is %+v", id)
	}
}

// eventually tries while the store is being opened again.
func (h *house) eventually(t *testing.T, try func() (*pb.SessionResponse, error)) (*pb.SessionResponse, error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(5 * time.Millisecond) {
		res, err := try()
		if err == nil {
			return res, nil
		}
		switch problem.Reason(servertest.Reason(err)) {
		case problem.ReasonStore, problem.ReasonUnknownOutcome, problem.ReasonStarting:
		default:
			return nil, err
		}
		if time.Now().After(deadline) {
			t.Fatalf("still failing: %v", err)
		}
	}
}

// replays judges everything that was entered by the rules' second implementation.
func (h *house) replays(t *testing.T) {
	t.Helper()
	programs := h.Programs()
	c := invariant.New(invariant.Options{Genesis: h.Genesis, Program: func(d state.Digest) *policy.Program { return programs[d] }})
	r := invariant.NewReplayer(nil)
	for i, x := range h.Stored() {
		e, err := state.Decode(x.Body)
		h.must(err)
		if v := append(c.Feed(uint64(i), e), r.Feed(uint64(i), x.Body)...); len(v) > 0 {
			t.Error(v)
		}
	}
	if v := r.Compare(h.Env.State()); len(v) > 0 {
		t.Error(v)
	}
}
