package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Whatever is forged about where the root key was moved is found, at the entry.
func TestCustodyFaults(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	w.Close()
	whole := load(t, w.Dir+"/data")
	first := index(t, whole, func(*state.CustodyMoved) bool { return true })
	second := index(t, whole, func(e *state.CustodyMoved) bool {
		return e.From.ID != entryAt[*state.CustodyMoved](t, whole, first).From.ID
	})
	genesis := entryAt[*state.CustodyMoved](t, whole, first).From
	for name, c := range map[string]struct {
		at   int
		edit func(*state.CustodyMoved)
		says string
	}{
		"from elsewhere than genesis": {first, func(e *state.CustodyMoved) { e.From.ID += "0" }, "and they are under " + genesis.String()},
		"from where they were before": {second, func(e *state.CustodyMoved) { e.From = genesis }, "and they are under file:"},
		"to elsewhere":                {second, func(e *state.CustodyMoved) { e.To.ID += "0" }, "is not an approved custody.move about this"},
		"to another kind":             {second, func(e *state.CustodyMoved) { e.To.Kind = "tpm" }, "is not an approved custody.move about this"},
		"by the change of before": {second, func(e *state.CustodyMoved) {
			e.Change = entryAt[*state.CustodyMoved](t, whole, first).Change
		}, "is not an approved custody.move about this"},
		"by another change": {first, func(e *state.CustodyMoved) { e.Change = 1 }, "is not an approved custody.move about this"},
		"by who may not":    {first, func(e *state.CustodyMoved) { e.Actor.Identity = "/human/mallory" }, "duty approve"},
		"a key is left":     {first, func(e *state.CustodyMoved) { e.Keys-- }, "legal step"},
		"no digest":         {first, func(e *state.CustodyMoved) { e.Digest = state.Digest{} }, "legal step"},
	} {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			m.checkpoint, m.snapshots = nil, nil
			m.change(t, c.at, func(e *state.Entry) { c.edit(e.Event.(*state.CustodyMoved)) })
			_, err := run(m, audit.Options{})
			var f *audit.Fault
			if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != uint64(c.at) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want entry %d: %s", err, c.at, c.says)
			}
		})
	}
}

// entryAt is the event of an entry.
func entryAt[E state.Event](t *testing.T, m *memory, at int) E {
	t.Helper()
	x, err := state.Decode(m.entries[at].Body)
	if err != nil {
		t.Fatal(err)
	}
	return x.Event.(E)
}
