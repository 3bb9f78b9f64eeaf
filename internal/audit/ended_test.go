package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// over is a real history, to its end.
func over(t *testing.T) (*memory, state.Digest) {
	t.Helper()
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.End(w, controltest.History(w))
	w.Close()
	return load(t, w.Dir+"/data"), w.Genesis
}

// What ended is sound, the audit says that it ended, and whatever is forged about its end is found.
func TestEndFaults(t *testing.T) {
	whole, genesis := over(t)
	r, err := run(whole, audit.Options{Genesis: genesis})
	if err != nil || !r.Complete() || r.Ended != r.Size-1 || len(r.Undecided)+len(r.Violations) != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	at := index(t, whole, func(*state.EnvironmentEnded) bool { return true })
	for name, c := range map[string]struct {
		at   int
		edit func(*state.EnvironmentEnded)
		says string
	}{
		"another genesis":     {at, func(e *state.EnvironmentEnded) { e.Genesis[0]++ }, "is not an approved environment.delete about this"},
		"another environment": {at, func(e *state.EnvironmentEnded) { e.Environment = "other.example" }, "is not an approved environment.delete about this"},
		"another change":      {at, func(e *state.EnvironmentEnded) { e.Change = 1 }, "is not an approved environment.delete about this"},
		"by who may not":      {at, func(e *state.EnvironmentEnded) { e.Actor.Identity = "/human/mallory" }, "duty approve"},
		"a value is kept":     {at, func(e *state.EnvironmentEnded) { e.Values-- }, "legal step"},
		"a key is kept":       {at, func(e *state.EnvironmentEnded) { e.Keys[0].Last++ }, "legal step"},
		"something follows":   {at + 1, nil, "nothing follows that"},
	} {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			m.checkpoint, m.snapshots = nil, nil
			if c.edit != nil {
				m.change(t, at, func(e *state.Entry) { c.edit(e.Event.(*state.EnvironmentEnded)) })
			} else {
				last, err := state.Decode(m.entries[at].Body)
				if err != nil {
					t.Fatal(err)
				}
				body, err := state.Encode(&state.Entry{Time: last.Time, Event: &state.ProtocolRaised{Version: state.Protocol + 1}})
				if err != nil {
					t.Fatal(err)
				}
				m.entries = append(m.entries[:at+1:at+1], store.Entry{Salt: make([]byte, store.SaltSize), Body: body})
				m.rehash(t)
			}
			_, err := run(m, audit.Options{})
			var f *audit.Fault
			if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != uint64(c.at) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want entry %d: %s", err, c.at, c.says)
			}
		})
	}
}
