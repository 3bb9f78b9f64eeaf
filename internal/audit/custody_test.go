package audit_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
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

// A store whose wrapped keys are not those that its ledger says they are is found out without a root key: one that was copied together, or
// whose server has entered a move that it did not do; and one that kept the keys of an environment that has ended.
func TestCustodyOfTheStore(t *testing.T) {
	w := controltest.New(t, controltest.HistoryOptions)
	cast := controltest.History(w)
	at := w.Env.State().Custody.Moved
	w.Close()
	check := func(edit func(name string, data []byte, err error) ([]byte, error)) error {
		t.Helper()
		l, err := audit.OfStore(context.Background(), open(t, w.Dir+"/data"))
		if err != nil {
			t.Fatal(err)
		}
		read := l.Stored.Key
		l.Stored.Key = func(ctx context.Context, name string) ([]byte, error) {
			data, err := read(ctx, name)
			return edit(name, data, err)
		}
		_, err = audit.Run(context.Background(), l, audit.Options{Genesis: w.Genesis})
		return err
	}
	asIs := func(_ string, data []byte, err error) ([]byte, error) { return data, err }
	faulty := func(name string, err error, index uint64, says string) {
		t.Helper()
		var f *audit.Fault
		if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != index || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want entry %d: %s", name, err, index, says)
		}
	}
	if err := check(asIs); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(string, []byte, error) ([]byte, error){
		"another": func(name string, data []byte, err error) ([]byte, error) {
			if name == "kek/1" {
				data = append(data[:len(data)-1:len(data)-1], data[len(data)-1]^1)
			}
			return data, err
		},
		"missing": func(name string, data []byte, err error) ([]byte, error) {
			if name == "kek/1" {
				return nil, store.ErrNotFound
			}
			return data, err
		},
	} {
		faulty(name, check(edit), at, "are not those that it put under")
	}
	if err := check(func(string, []byte, error) ([]byte, error) { return nil, errors.New("planted") }); problem.Is(err, problem.ReasonTampered) || err == nil {
		t.Errorf("a store that can't be read: %v", err)
	}
	w.Open()
	controltest.End(w, cast)
	ended := w.Env.State().Ended
	w.Close()
	if err := check(asIs); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"mac/1", "kek/1", "jwt/1"} {
		faulty(left, check(func(name string, data []byte, err error) ([]byte, error) {
			if name == left {
				return []byte{1}, nil
			}
			return data, err
		}), ended, "still has the wrapped key "+left)
	}
}
