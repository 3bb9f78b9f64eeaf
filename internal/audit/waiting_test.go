package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// What waits is carried out when it is due, by who may, and has waited for as long as the bundle asked for, or it is found.
func TestWaitingFaults(t *testing.T) {
	whole, _ := rolled(t)
	carried := index(t, whole, func(e *state.SecretMoved) bool { return e.Change != 0 && e.Secret == "db/w" })
	asks := func(e *state.ChangeProposed) bool { return e.Delay != 0 }
	first := index(t, whole, asks)
	approved := index(t, whole, func(e *state.ChangeApproved) bool { return e.Change == uint64(first) })
	for name, c := range map[string]struct {
		upTo, at int
		edit     func(m *memory, e *state.Entry)
		says     string
	}{
		"a shorter wait": {first, first, func(_ *memory, e *state.Entry) { e.Event.(*state.ChangeProposed).Delay-- }, "the bundle in force asks for 24h"},
		"no wait":        {first, first, func(_ *memory, e *state.Entry) { e.Event.(*state.ChangeProposed).Delay = 0 }, "the bundle in force asks for 24h"},
		"a wait of what does not": {first, index(t, whole, func(e *state.ChangeProposed) bool { return e.Action == policy.ActLiftHold }), func(_ *memory, e *state.Entry) {
			e.Event.(*state.ChangeProposed).Delay = 60
		}, "the bundle in force asks for 0s"},
		"carried out too early": {approved + 1, approved + 1, func(m *memory, e *state.Entry) {
			was, err := state.Decode(m.entries[carried].Body)
			if err != nil {
				t.Fatal(err)
			}
			moved := was.Event.(*state.SecretMoved)
			at, err := state.Decode(m.entries[approved].Body)
			if err != nil {
				t.Fatal(err)
			}
			moved.Change, moved.Actor = uint64(first), at.Event.(*state.ChangeApproved).Actor
			e.Event, e.Time = moved, at.Time+1000
		}, "waits until"},
		"carried out without its approval": {approved, approved, func(m *memory, e *state.Entry) {
			was, err := state.Decode(m.entries[carried].Body)
			if err != nil {
				t.Fatal(err)
			}
			moved := was.Event.(*state.SecretMoved)
			moved.Change, moved.Actor = uint64(first), e.Event.(*state.ChangeApproved).Actor
			e.Event = moved
		}, "is not an approved secret.destroy about this"},
		"carried out by who may not": {carried, carried, func(m *memory, e *state.Entry) {
			x := index(t, m, func(e *state.SecretReleased) bool { return true })
			was, err := state.Decode(m.entries[x].Body)
			if err != nil {
				t.Fatal(err)
			}
			e.Event.(*state.SecretMoved).Actor = was.Event.(*state.SecretReleased).Actor
		}, "is not a person"},
	} {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			m.checkpoint, m.snapshots, m.entries = nil, nil, m.entries[:c.upTo+1:c.upTo+1]
			m.change(t, c.at, func(e *state.Entry) { c.edit(whole, e) })
			_, err := run(m, audit.Options{})
			var f *audit.Fault
			if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != uint64(c.at) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want entry %d: %s", err, c.at, c.says)
			}
		})
	}
}
