package audit_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// planted is the directory of a server that entered, past all decisions, what an edit makes of a release: correctly hashed and signed.
func planted(t *testing.T, edit func(*state.SecretReleased)) (w *controltest.World, dir string, index uint64) {
	t.Helper()
	w = controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/password", "correct horse")
	w.Put(alice, "node/seed", "staple")
	_, legal, err := w.Get(api, "db/password")
	if err != nil {
		t.Fatal(err)
	}
	entry, err := state.Decode(w.Stored()[legal.Lease].Body)
	if err != nil {
		t.Fatal(err)
	}
	ev := entry.Event.(*state.SecretReleased)
	ev.Purpose = "migration" // its own lease
	edit(ev)
	index = w.Env.Ledger().Size()
	if err := w.Commit(ev); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return w, filepath.Join(w.Dir, "data"), index
}

// A release that the bundle did not permit is named, although every hash and signature of the ledger is right.
func TestReleaseAgainstTheBundle(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*state.SecretReleased)
		want string
	}{
		"a purpose that the grant does not name": {func(e *state.SecretReleased) { e.Purpose = "debugging" }, "permitted"},
		"another grant":                          {func(e *state.SecretReleased) { e.Ruling.Grant = "provision" }, "permitted"},
		"more assurance than was proved":         {func(e *state.SecretReleased) { e.Assurance = "hardware" }, "attested"},
		"longer than the grant":                  {func(e *state.SecretReleased) { e.Max = e.Max.Add(24 * 3600e9) }, "bounded"},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir, index := planted(t, c.edit)
			l, err := audit.OfStore(context.Background(), open(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			r, err := audit.Run(context.Background(), l, audit.Options{Genesis: w.Genesis})
			var v *audit.Violated
			if !problem.Is(err, problem.ReasonViolated) || !errors.As(err, &v) || v.Count != r.Violated {
				t.Fatalf("got %v", err)
			}
			if !r.Complete() || r.Decided != r.Size || len(r.Violations) == 0 {
				t.Fatalf("%+v", r)
			}
			found := false
			for _, x := range r.Violations {
				found = found || x.Invariant == c.want
				if x.Index != index {
					t.Errorf("entry %d is named: %+v", x.Index, x)
				}
			}
			if !found {
				t.Errorf("found only %+v", r.Violations)
			}

			// Without its bundle it can't be told, and that is said.
			l.Blob, l.BlobsPartial = func(context.Context, store.Digest) ([]byte, error) { return nil, store.ErrNotFound }, true
			r, err = audit.Run(context.Background(), l, audit.Options{Genesis: w.Genesis})
			if c.want == "attested" {
				if !problem.Is(err, problem.ReasonViolated) {
					t.Errorf("it needs no bundle: %v", err)
				}
			} else if err != nil || r.Decided != 0 {
				t.Errorf("%d decided, %v", r.Decided, err)
			}
			if len(r.Undecided) != 1 || r.Undecided[0].To != r.Size {
				t.Errorf("not decided again: %+v", r.Undecided)
			}
		})
	}
	if _, dir, _ := planted(t, func(*state.SecretReleased) {}); dir != "" {
		if _, err := run(load(t, dir), audit.Options{}); err != nil {
			t.Errorf("the form that the plants start from: %v", err)
		}
	}
}

// A report is of bounded size, and counts all.
func TestManyViolations(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	token := w.Token(alice, "web-1", 3600e9)
	for i, x := range w.Stored() {
		entry, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		if ev, ok := entry.Event.(*state.TokenCreated); ok && ev.ID == token.ID() {
			for n := range 300 {
				again := *ev // what was committed is the running checks'
				again.ID = string(rune('a'+n/26/26)) + string(rune('a'+n/26%26)) + string(rune('a'+n%26))
				again.Expires = entry.Time.Add(30 * 24 * 3600e9) // more than any token may have
				if err := w.Commit(&again); err != nil {
					t.Fatal(i, err)
				}
			}
		}
	}
	dir := filepath.Join(w.Dir, "data")
	w.Close()
	l, err := audit.OfStore(context.Background(), open(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Run(context.Background(), l, audit.Options{})
	if !problem.Is(err, problem.ReasonViolated) || r.Violated != 300 || len(r.Violations) != 100 {
		t.Errorf("%d violations, %d listed: %v", r.Violated, len(r.Violations), err)
	}
}
