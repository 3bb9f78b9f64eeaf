package control_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// afterAppend calls a function once, after the next batch is durable and before anybody hears of it. Reads of keys fail while
// failing is above zero.
type afterAppend struct {
	store.Store
	call    *atomic.Pointer[func() error]
	failing *atomic.Int32
}

func (s afterAppend) Append(ctx context.Context, b *store.Batch) error {
	err := s.Store.Append(ctx, b)
	if f := s.call.Swap(nil); f != nil && err == nil {
		return (*f)()
	}
	return err
}

func (s afterAppend) Key(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.failing.Add(-1) >= 0 {
		return nil, errors.New("the disk is slow to wake")
	}
	return s.Store.Key(ctx, name)
}

// rotation is an environment whose rotations are interrupted.
type rotation struct {
	*board
	after   atomic.Pointer[func() error]
	failing atomic.Int32
}

func newRotation(t *testing.T) *rotation {
	t.Helper()
	r := &rotation{}
	w := controltest.New(t, controltest.Options{Wrap: func(s store.Store) store.Store { return afterAppend{s, &r.after, &r.failing} }})
	r.board = &board{w, map[string]controltest.Actor{}}
	r.by["alice"] = w.Login("alice")
	return r
}

func (r *rotation) rotate(kind string) error {
	_, _, err := r.Env.RotateKey(context.Background(), r.by["alice"].Caller, kind)
	return err
}

// verify audits the ledger offline, and the running checks.
func (r *rotation) verify() {
	r.T.Helper()
	r.inForce(1)
	r.Close()
	ctx := context.Background()
	st, err := sqlite.OpenReadOnly(ctx, filepath.Join(r.Dir, "data"))
	r.must(err)
	defer func() {
		r.must(st.Close())
		r.Open()
	}()
	l, err := audit.OfStore(ctx, st)
	r.must(err)
	if _, err := audit.Run(ctx, l, audit.Options{Genesis: r.Genesis}); err != nil {
		r.T.Errorf("the ledger does not verify: %v", err)
	}
}

// A rotation is in use once it is entered, whatever became of who asked for it: the next one follows it, and what is sealed is
// sealed under it.
func TestRotationInterrupted(t *testing.T) {
	for how, interrupt := range map[string]func(r *rotation, kind string){
		"its client goes away": func(r *rotation, kind string) {
			ctx, cancel := context.WithCancel(context.Background())
			gone := func() error { cancel(); return nil }
			r.after.Store(&gone)
			_, _, _ = r.Env.RotateKey(ctx, r.by["alice"].Caller, kind) // whatever it says
		},
		"its outcome is unknown": func(r *rotation, kind string) {
			lost := func() error { return store.ErrUnknown }
			r.after.Store(&lost)
			if err := r.rotate(kind); problem.As(err).Kind != problem.UnknownOutcome {
				r.T.Fatal(err)
			}
			reloaded := func() bool {
				current, ok := r.Env.State().CurrentKey(kind)
				return ok && current.Name == kind+"/2" && r.Env.Ready() == nil
			}
			for deadline := time.Now().Add(time.Minute); !reloaded() && time.Now().Before(deadline); {
				<-time.After(time.Millisecond)
			}
		},
		"the key can't be read at once": func(r *rotation, kind string) {
			r.failing.Store(3)
			if err := r.rotate(kind); err == nil || !strings.Contains(err.Error(), "is entered") {
				r.T.Fatal(err)
			}
			r.failing.Store(0)
		},
	} {
		for _, kind := range []string{"ca", "checkpoint", "kek"} {
			t.Run(how+"/"+kind, func(t *testing.T) {
				r := newRotation(t)
				interrupt(r, kind)
				if current, _ := r.Env.State().CurrentKey(kind); current.Name != kind+"/2" {
					t.Fatalf("%s is current", current.Name)
				}
				out := r.Put(r.by["alice"], "db/a", "x")
				row, err := r.Env.Ledger().Store().Sealed(context.Background(), out.Index)
				r.must(err)
				if want := map[bool]uint32{false: 1, true: 2}[kind == "kek"]; row.KEK != want {
					t.Errorf("sealed under kek/%d", row.KEK)
				}
				r.must(r.rotate(kind))
				r.must(r.Env.Rewrap(context.Background(), r.by["alice"].Caller, func(control.RewrapProgress) error { return nil }))
				row, err = r.Env.Ledger().Store().Sealed(context.Background(), out.Index)
				r.must(err)
				if want := map[bool]uint32{false: 1, true: 3}[kind == "kek"]; row.KEK != want {
					t.Errorf("rewrapped under kek/%d", row.KEK)
				}
				r.verify()
			})
		}
	}
}

// Writers of one secret don't fail each other: each gets a version of its own.
func TestWritersOfOneSecret(t *testing.T) {
	for _, writers := range []int{4, 16, 64} {
		w := controltest.New(t, controltest.Options{})
		alice := w.Login("alice")
		var group sync.WaitGroup
		var failed atomic.Int32
		start := make(chan struct{})
		const all = 96 // of 100 that a secret may have
		for range writers {
			group.Go(func() {
				<-start
				for range all / writers {
					if _, err := w.Env.Put(context.Background(), alice.Caller, control.PutRequest{Secret: "db/a", Value: seal.NewSecret([]byte("v"))}); err != nil {
						failed.Add(1)
						t.Log(err)
					}
				}
			})
		}
		close(start)
		group.Wait()
		sec, _ := w.Env.State().Secrets.Get("db/a")
		if n := failed.Load(); n > 0 || sec.Last != uint64(all/writers*writers) {
			t.Errorf("%d writers: %d of %d writes failed, %d versions", writers, n, all, sec.Last)
		}
		if _, _, err := w.Get(w.Workload(w.Node(alice, "n"), ""), "db/a"); err != nil {
			t.Error(err) // what was sealed ahead opens under the number that it got
		}
	}
}

// A bundle that is not compiled at the moment is compiled for whoever asks, and stops nobody.
func TestQuestionsCompileTheBundle(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	ctx := context.Background()
	for what, ask := range map[string]func() error{
		"keys": func() error { _, err := w.Env.ListKeys(ctx, alice.Caller); return err },
		"rewrap": func() error {
			return w.Env.Rewrap(ctx, alice.Caller, func(control.RewrapProgress) error { return nil })
		},
		"secrets":    func() error { _, _, err := w.Env.ListSecrets(ctx, alice.Caller, "", control.Page{}); return err },
		"leases":     func() error { _, _, err := w.Env.ListLeases(ctx, alice.Caller, "*", control.Page{}); return err },
		"identities": func() error { _, _, err := w.Env.ListIdentities(ctx, alice.Caller, "", control.Page{}); return err },
		"changes":    func() error { _, err := w.Env.ListChanges(ctx, alice.Caller, control.ChangeFilter{}); return err },
		"entries":    func() error { return w.Env.Inspect(alice.Caller) },
		"generate": func() error {
			_, err := w.Env.Generate(ctx, alice.Caller, control.GenerateRequest{Secret: "db/a"})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			w.Env.ForgetPrograms()
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
}
