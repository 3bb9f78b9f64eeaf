package invariant_test

import (
	"testing"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// real is a real history, with one of everything.
type real struct {
	entries  []*state.Entry
	bodies   [][]byte
	programs map[state.Digest]*policy.Program
	files    policy.Files // of the bundle in force
	genesis  state.Digest
	cast     controltest.Cast
	state    *state.State
}

func record(t testing.TB, w *controltest.World) *real {
	t.Helper()
	r := &real{programs: w.Programs(), files: w.Files, genesis: w.Genesis, state: w.Env.State()}
	for _, x := range w.Stored() {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		r.entries = append(r.entries, e)
		r.bodies = append(r.bodies, x.Body)
	}
	return r
}

func history(t *testing.T) *real { return historyOf(t) }

func historyOf(t testing.TB) *real {
	t.Helper()
	w := controltest.New(t, controltest.HistoryOptions)
	cast := controltest.History(w)
	r := record(t, w)
	r.cast = cast
	return r
}

func (r *real) options() invariant.Options {
	return invariant.Options{Genesis: r.genesis, Program: func(d state.Digest) *policy.Program { return r.programs[d] }}
}

func (r *real) checker() *invariant.Checker { return invariant.New(r.options()) }

func TestCleanHistory(t *testing.T) {
	r := history(t)
	c := r.checker()
	for i, e := range r.entries {
		for _, v := range c.Feed(uint64(i), e) {
			t.Error(v)
		}
	}
	for _, v := range invariant.Replay(r.all(), r.state) {
		t.Error(v)
	}
	t.Logf("%d entries", len(r.entries))
}

func (r *real) all() func(func(uint64, []byte) bool) {
	return func(yield func(uint64, []byte) bool) {
		for i, b := range r.bodies {
			if !yield(uint64(i), b) {
				return
			}
		}
	}
}
