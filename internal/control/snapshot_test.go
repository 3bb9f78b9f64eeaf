package control_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/storetest"
)

// change changes a closed environment's database, past the store.
func change(w *controltest.World, queries ...string) {
	w.T.Helper()
	db, err := sql.Open("sqlite", filepath.Join(w.Dir, "data", "store.db"))
	if err != nil {
		w.T.Fatal(err)
	}
	defer db.Close()
	for _, q := range queries {
		if _, err := db.Exec(q); err != nil {
			w.T.Fatal(q, err)
		}
	}
}

// A crash between a state root's entry and its snapshot, or a snapshot that can't be read, costs no replay of everything.
func TestSnapshotWindow(t *testing.T) {
	var killed atomic.Bool
	var lowest atomic.Uint64
	w := controltest.New(t, controltest.Options{Wrap: func(s store.Store) store.Store { return snapless{s, &killed, &lowest} }})
	alice := w.Login("alice")
	ctx := context.Background()
	snapshot := func() (covered uint64) {
		t.Helper()
		w.Put(alice, "db/a", "x")
		covered = w.Env.State().Next - 1
		if err := w.Env.Snapshot(ctx); (err != nil) != killed.Load() {
			t.Fatal(err)
		}
		w.Put(alice, "db/a", "y")
		return covered
	}
	startsAfter := func(what string, covered uint64) {
		t.Helper()
		w.Close()
		lowest.Store(^uint64(0))
		w.Open()
		if got := lowest.Load(); got != covered+1 {
			t.Errorf("%s: replayed from %d, want %d", what, got, covered+1)
		}
	}
	older := snapshot()
	newer := snapshot()
	startsAfter("a sound end", newer)
	killed.Store(true)
	snapshot()
	startsAfter("killed once", newer)
	snapshot()
	startsAfter("killed twice", newer)
	w.Close()
	change(w, fmt.Sprintf("UPDATE snapshot_parts SET data = zeroblob(length(data)) WHERE id = (SELECT first_part FROM snapshots WHERE idx = %d)", newer))
	lowest.Store(^uint64(0))
	w.Open()
	if got := lowest.Load(); got != older+1 {
		t.Errorf("a damaged snapshot: replayed from %d, want %d", got, older+1)
	}
}

// snapless stores no snapshot when it is killed, and remembers where the lowest scan of several entries began.
type snapless struct {
	store.Store
	killed *atomic.Bool
	lowest *atomic.Uint64
}

func (s snapless) PutSnapshot(ctx context.Context, index uint64, data []byte) error {
	if s.killed.Load() {
		return errors.New("killed")
	}
	return s.Store.PutSnapshot(ctx, index, data)
}

func (s snapless) Entries(ctx context.Context, from uint64, limit int, fn func(uint64, store.Entry) error) error {
	if limit > 1 && from < s.lowest.Load() {
		s.lowest.Store(from)
	}
	return s.Store.Entries(ctx, from, limit, fn)
}

// A store that fails in a write that nobody waits for is opened again, though all that is asked for are reads.
func TestStoreFailsBesideCommits(t *testing.T) {
	var newest atomic.Pointer[storetest.Faulty]
	w := controltest.New(t, controltest.Options{Wrap: func(s store.Store) store.Store {
		newest.Store(storetest.NewFaulty(s))
		return newest.Load()
	}})
	alice := w.Login("alice")
	w.Put(alice, "node/key", "v")
	node := w.Node(alice, "web-1")
	w.Reopen() // no ciphertext is cached
	newest.Load().Plan(storetest.Fault{Op: storetest.OpPutSnapshot, Call: 1})
	if err := w.Env.Snapshot(context.Background()); err == nil {
		t.Fatal("the fault was not met")
	}
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(5 * time.Millisecond) {
		_, _, err := w.Get(node, "node/key")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still failing: %v; ready says %v", err, w.Env.Ready())
		}
	}
	if n := w.Env.Ledger().Stats().Reloads.Load(); n != 1 {
		t.Errorf("%d reloads", n)
	}
}

// The ledger's time is that of its entries, whatever the store notes beside them.
func TestForgedTime(t *testing.T) {
	for _, time := range []string{"time + 3600000", "1", "1 << 62", "-1 << 62"} {
		w := controltest.New(t, controltest.Options{})
		w.Put(w.Login("alice"), "node/key", "v")
		w.Close()
		change(w, "UPDATE batches SET time = "+time+" WHERE first = (SELECT max(first) FROM batches)")
		w.Open()
		if err := w.Env.Ready(); err != nil {
			t.Errorf("%s: %v", time, err)
		}
		w.Put(w.Login("alice"), "node/key", "w")
	}
}
