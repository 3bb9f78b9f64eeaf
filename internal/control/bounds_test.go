package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// twins are a state and a checker that are given the same entries.
type twins struct {
	t     *rapid.T
	s     *state.State
	c     *invariant.Checker
	now   state.Millis
	alice *state.SessionOpened
	ch    *state.ChangeProposed
}

// feed enters an event in both, and returns what the checker says.
func (w *twins) feed(ev state.Event) string {
	w.t.Helper()
	entry := &state.Entry{Time: w.now, Event: ev}
	body, err := state.Encode(entry)
	if err != nil {
		w.t.Fatal(err)
	}
	index := w.s.Next
	var said strings.Builder
	for _, v := range w.c.Feed(index, entry) {
		fmt.Fprintln(&said, v)
	}
	if err := w.s.Apply(index, body, nil); err != nil {
		w.t.Fatal(err)
	}
	return said.String()
}

// later moves the time on: by little, or so that the bounds of the rules fall on the very millisecond.
func (w *twins) later(label string) {
	by := rapid.SampledFrom([]state.Millis{0, 1, 600_000, 900_000, 1_800_000, 3_600_000, 86_400_000}).Draw(w.t, label)
	w.now += max(0, by+rapid.SampledFrom([]state.Millis{-1, 0, 1}).Draw(w.t, "beside"))
}

func (w *twins) actor(person string) state.Actor {
	return state.Actor{Identity: "/human/" + person, Session: 1}
}

func (w *twins) session(n int, ttl state.Millis) {
	e := *w.alice
	e.Identity, e.Expires = fmt.Sprintf("/human/p%d", n), w.now+ttl
	e.Key = state.Digest{0: 0xfe, 1: byte(w.s.Next >> 8), 2: byte(w.s.Next)}
	e.Challenge = fmt.Sprintf("c:%d", w.s.Next)
	w.feed(&e)
}

func (w *twins) revocation(person, scope string) *state.RevocationRecorded {
	return &state.RevocationRecorded{Scope: scope, Cutoff: true, Horizon: w.now, Actor: w.actor(person), Ruling: w.alice.Ruling}
}

// Decision and checker count the same, each by its own model, to the millisecond: whom a revocation stops, also those whom a
// provisional hold of the last hour has stopped, the provisional holds of a day, and the changes of a day.
func TestBoundsAgree(t *testing.T) {
	env := fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1}\n  revocation: {blastLimit: 1}\n", controltest.EnvName)
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Extra: policy.Files{"environment.yaml": env}})
	b := &board{w, map[string]controltest.Actor{"alice": w.Login("alice")}}
	b.revoke("alice", "identity:/workload/none")
	_, err := b.act("alice", control.ActionLiftHold, b.Hold("identity:/workload/none"))
	b.must(err)
	stored, programs := w.Stored(), w.Programs()
	start := func(t *rapid.T) *twins {
		x := &twins{t: t, s: state.New(), c: invariant.New(invariant.Options{
			Genesis: w.Genesis, Program: func(d state.Digest) *policy.Program { return programs[d] },
		})}
		for i, e := range stored {
			entry, err := state.Decode(e.Body)
			b.must(err)
			b.must(x.s.Apply(uint64(i), e.Body, nil))
			x.c.Feed(uint64(i), entry)
			x.now = entry.Time
			switch ev := entry.Event.(type) {
			case *state.SessionOpened:
				x.alice = ev
			case *state.ChangeProposed:
				x.ch = ev
			}
		}
		return x
	}
	t.Run("revocations", rapid.MakeCheck(func(t *rapid.T) {
		x := start(t)
		x.session(8, 1<<40) // so that there are always more than the limit, and the checker says how many
		x.session(9, 1<<40)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			x.later("step")
			if rapid.Bool().Draw(t, "session") {
				x.session(rapid.IntRange(0, 3).Draw(t, "of"), rapid.SampledFrom([]state.Millis{1, 600_000, 900_000}).Draw(t, "ttl"))
				continue
			}
			person, scope := rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "by"), fmt.Sprint("identity:/workload/w", rapid.IntRange(0, 5).Draw(t, "scope"))
			refused := w.Env.DecideProvisional(x.s, x.now, "/human/"+person, scope)
			ev := x.revocation(person, scope)
			ev.Cutoff, ev.Hold, ev.Until = false, true, x.now+900_000
			if said := strings.Contains(x.feed(ev), "sets a provisional hold again"); said != (refused != nil) {
				t.Fatalf("the decision says %v, the checker %v", refused, said)
			}
		}
		x.later("at last")
		scope, err := state.ParseScope("identity:/human/*")
		b.must(err)
		covers, _ := control.DecideTwice(x.s, x.s, scope, x.now)
		want := fmt.Sprintf("for good: %d identities", covers.Identities)
		if said := x.feed(x.revocation("alice", scope.String())); strings.Contains(said, "for good") != (covers.Identities > 1) || covers.Identities > 1 && !strings.Contains(said, want) {
			t.Fatalf("the decision counts %d, and the checker says %s", covers.Identities, said)
		}
	}))
	t.Run("changes", rapid.MakeCheck(func(t *rapid.T) {
		x := start(t)
		x.now += state.Millis(48 * time.Hour / time.Millisecond)
		propose := func() string {
			e := *x.ch
			e.Nonce, e.Expires, e.Idem = fmt.Sprintf("%032x", x.s.Next), x.now+3_600_000, nil
			index := x.s.Next
			said := x.feed(&e)
			x.feed(&state.ChangeRejected{Change: index, Actor: e.Actor, Ruling: e.Ruling})
			return said
		}
		first := rapid.IntRange(0, 2).Draw(t, "first")
		for i := range 199 + rapid.IntRange(0, 2).Draw(t, "more") {
			if i == first {
				x.later("after the first")
			}
			propose()
		}
		x.later("at last")
		refused := control.DecideRoom(x.s, x.now, x.ch.Actor.Identity, x.ch.Action)
		if refused != nil && !problem.Is(refused, problem.ReasonLimit) {
			t.Fatal(refused)
		}
		if said := propose(); strings.Contains(said, "within a day") != (refused != nil) {
			t.Fatalf("the decision says %v, the checker %s", refused, said)
		}
	}))
}
