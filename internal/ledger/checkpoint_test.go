package ledger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/internal/store/storetest"
	"github.com/bailment/bailment/verify"
)

// stored is the checkpoint in the store, and how many entries it covers.
func (r *rig) stored(l *ledger.Log[*tally]) ([]byte, uint64) {
	r.t.Helper()
	signed, err := l.Store().Checkpoint(r.t.Context())
	must(r.t, err)
	verifier, err := note.NewVerifier(r.vkey)
	must(r.t, err)
	cp, err := verify.OpenCheckpoint(signed, verifier)
	must(r.t, err)
	return signed, uint64(cp.Size)
}

// The stored checkpoint covers the head after every batch, from genesis on, and is the one that was given out.
func TestCheckpointCoversTheHead(t *testing.T) {
	r := newRig(t)
	l := r.start()
	for i := range 5 {
		signed, size := r.stored(l)
		if size != l.Size() || !bytes.Equal(signed, l.Checkpoint()) {
			t.Fatalf("the stored checkpoint covers %d entries of %d", size, l.Size())
		}
		_, proof, err := add(l, "a", i)
		must(t, err)
		if signed, size := r.stored(l); size != proof.Size || !bytes.Equal(signed, proof.Checkpoint) {
			t.Fatalf("the stored checkpoint covers %d entries, the proof's %d", size, proof.Size)
		}
	}
	// A write that left nothing behind leaves no checkpoint either, neither in the store nor in memory.
	before := l.Checkpoint()
	r.plan(storetest.Fault{Op: storetest.OpAppend, Call: 1})
	if _, _, err := add(l, "a", 9); err == nil {
		t.Fatal("a failed write was acknowledged")
	}
	eventually(t, func() (int, error) { return 0, l.Ready() })
	if signed, _ := r.stored(l); !bytes.Equal(before, signed) || !bytes.Equal(before, l.Checkpoint()) {
		t.Fatal("there is a checkpoint of what was not written")
	}
}

// failing is a signer that can be made to fail.
type failing struct {
	note.Signer
	fail *atomic.Bool
}

func (s failing) Sign(msg []byte) ([]byte, error) {
	if s.fail.Load() {
		return nil, errors.New("the key is away")
	}
	return s.Signer.Sign(msg)
}

// What can't be signed is not written, and published to nobody.
func TestSigningFails(t *testing.T) {
	r := newRig(t)
	var fail atomic.Bool
	must(t, r.tryStartSigning(failing{signerOf(t, r.skey), &fail}))
	l := r.log
	before := l.Checkpoint()
	fail.Store(true)
	if _, _, err := add(l, "a", 1); problem.KindOf(err) != problem.Unavailable {
		t.Fatalf("got %v", err)
	}
	head, err := l.Store().Head(t.Context())
	must(t, err)
	if head.Size != 1 || l.Size() != 1 || l.State().n != 1 || !bytes.Equal(before, l.Checkpoint()) || l.Stats().Reloads.Load() != 0 {
		t.Fatalf("%d entries are stored, %d published, %d reloads", head.Size, l.Size(), l.Stats().Reloads.Load())
	}
	fail.Store(false)
	if _, _, err := add(l, "a", 2); err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())
	if got := r.start().State(); got.n != 2 || got.last["a"] != 2 {
		t.Fatalf("%+v", got)
	}
}

// refusing is a store that calls a batch invalid.
type refusing struct {
	store.Store
	refuse atomic.Bool
}

func (s *refusing) Append(ctx context.Context, b *store.Batch) error {
	if s.refuse.Load() {
		return store.ErrInvalid
	}
	return s.Store.Append(ctx, b)
}

// A batch that the store refuses before it touches anything costs nobody the handle.
func TestInvalidBatch(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	st := &refusing{}
	open := cfg.Open
	cfg.Open = func(ctx context.Context) (_ store.Store, err error) {
		st.Store, err = open(ctx)
		return st, err
	}
	l, err := ledger.Load(t.Context(), cfg)
	must(t, err)
	verifier, err := note.NewVerifier(r.vkey)
	must(t, err)
	must(t, l.Start([]note.Signer{signerOf(t, r.skey)}, []note.Verifier{verifier}))
	st.refuse.Store(true)
	if _, _, err := add(l, "a", 1); !problem.Is(err, problem.ReasonInternal) {
		t.Errorf("got %v", err)
	}
	st.refuse.Store(false)
	if _, _, err := add(l, "a", 2); err != nil || l.Size() != 2 || l.Stats().Reloads.Load() != 0 {
		t.Errorf("%v, %d entries, %d reloads", err, l.Size(), l.Stats().Reloads.Load())
	}
	must(t, l.Close())
}

// exec changes the database as who can write it, and has no key.
func (r *rig) exec(queries ...string) {
	r.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(r.dir, "store.db"))
	must(r.t, err)
	for _, q := range queries {
		_, err := db.Exec(q)
		must(r.t, err)
	}
	must(r.t, db.Close())
}

// A store whose end is not exactly what the ledger signed is not believed.
func TestStartRefuses(t *testing.T) {
	cut := func(size uint64) []string {
		return []string{fmt.Sprintf("DELETE FROM batches WHERE first >= %d", size), fmt.Sprintf("DELETE FROM entries WHERE idx >= %d", size)}
	}
	const forget = "DELETE FROM checkpoint"
	// The store has four entries and the checkpoint `last` when it is spoilt.
	for name, spoil := range map[string]func(r *rig, last []byte){
		"a tail by another key": func(r *rig, _ []byte) { r.forge() },
		"a tail by nobody": func(r *rig, last []byte) {
			r.forge()
			r.put(last)
		},
		"a tail, no checkpoint": func(r *rig, _ []byte) {
			r.forge()
			r.exec(forget)
		},
		"no checkpoint":                 func(r *rig, _ []byte) { r.exec(forget) },
		"cut back":                      func(r *rig, _ []byte) { r.exec(cut(3)...) },
		"cut back, no checkpoint":       func(r *rig, _ []byte) { r.exec(append(cut(3), forget)...) },
		"cut to genesis, no checkpoint": func(r *rig, _ []byte) { r.exec(append(cut(1), forget)...) },
		"cut back, another tail": func(r *rig, last []byte) {
			r.exec(cut(3)...)
			r.forge()
			r.put(last)
		},
		"a changed entry with its leaf hash": func(r *rig, _ []byte) { r.rewrite(1, record("a", 666).Body) },
		"another key":                        func(r *rig, _ []byte) { _, r.vkey, _ = note.GenerateKey(rand.Reader, origin) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			l := r.start()
			for i := range 3 {
				if _, _, err := add(l, "a", i); err != nil {
					t.Fatal(err)
				}
			}
			must(t, l.Close())
			last := r.start().Checkpoint() // unspoilt it starts
			must(t, r.log.Close())
			spoil(r, last)
			if err := r.tryStart(); !problem.Is(err, problem.ReasonTampered) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// forge adds an entry as the ledger would, with all hashes right, and signs with a key that is not the ledger's.
func (r *rig) forge() {
	r.t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	must(r.t, err)
	signer := signerOf(r.t, skey)
	verifier, err := note.NewVerifier(vkey)
	must(r.t, err)
	st, err := sqlite.Open(r.t.Context(), r.dir)
	must(r.t, err)
	head, err := st.Head(r.t.Context())
	must(r.t, err)
	signed, err := note.Sign(&note.Note{Text: verify.Checkpoint{Origin: origin, Size: int64(head.Size), Root: tlog.Hash(head.Root)}.Text()}, signer)
	must(r.t, err)
	must(r.t, st.PutCheckpoint(r.t.Context(), signed))
	must(r.t, st.Close())
	l, err := ledger.Load(r.t.Context(), r.config())
	must(r.t, err)
	must(r.t, l.Start([]note.Signer{signer}, []note.Verifier{verifier}))
	if _, _, err := add(l, "a", 666); err != nil {
		r.t.Fatal(err)
	}
	must(r.t, l.Close())
}

// rewrite changes an entry and the one stored hash that it is compared with first, its leaf's.
func (r *rig) rewrite(index uint64, body []byte) {
	r.t.Helper()
	salt := make([]byte, store.SaltSize)
	leaf := verify.LeafHash(verify.LeafCommitment([store.SaltSize]byte(salt), body))
	at := tlog.StoredHashIndex(0, int64(index))
	r.exec(fmt.Sprintf("UPDATE entries SET data = x'%x%x' WHERE idx = %d", salt, body, index),
		fmt.Sprintf(`UPDATE batches SET hashes = CAST(substr(hashes, 1, (%[1]d - hash) * 32) || x'%[2]x' || substr(hashes, (%[1]d - hash) * 32 + 33) AS BLOB)
			WHERE hash = (SELECT max(hash) FROM batches WHERE hash <= %[1]d)`, at, leaf[:]))
}

// Every slice of every tree is proved to be of it, and one with a changed entry is not, though its leaf hash was changed as well.
func TestVerifySlice(t *testing.T) {
	r := newRig(t)
	l := r.start()
	slice := func(from uint64, limit int) (n int, err error) {
		return l.VerifySlice(t.Context(), from, limit, func(index uint64, e store.Entry) error {
			if index != from+uint64(n) || len(e.Body) == 0 {
				t.Errorf("entry %d of a slice from %d on: %q", index, from, e.Body)
			}
			n++
			return nil
		})
	}
	const size = 21
	for l.Size() < size {
		for from := range l.Size() + 2 {
			for limit := 1; limit < size; limit += 3 {
				want := int(min(uint64(limit), l.Size()-min(from, l.Size())))
				if n, err := slice(from, limit); n != want || err != nil {
					t.Fatalf("%d entries from %d on of %d: %d, %v", limit, from, l.Size(), n, err)
				}
			}
		}
		if _, _, err := add(l, "a", int(l.Size())); err != nil {
			t.Fatal(err)
		}
	}
	s := l.State()
	b, err := json.Marshal(map[string]any{"N": s.n, "Last": s.last})
	must(t, err)
	must(t, l.SaveSnapshot(t.Context(), s.n-1, b))
	_, _, err = add(l, "a", 1) // the entry under the signed root that confirms the snapshot
	must(t, err)
	must(t, l.Close())
	r.rewrite(6, record("a", 666).Body)
	l = r.start() // it is under the snapshot, so the start does not read it
	for from := range l.Size() {
		_, err := l.Receipt(t.Context(), from)
		if bad := from == 6 || from == 7; bad != problem.Is(err, problem.ReasonTampered) || !bad && err != nil {
			t.Errorf("the receipt of entry %d: %v", from, err)
		}
		err = l.Entries(t.Context(), from, 1, func(uint64, store.Entry) error { return nil })
		if bad := from == 6 || from == 7; bad != problem.Is(err, problem.ReasonTampered) || !bad && err != nil {
			t.Errorf("entry %d: %v", from, err)
		}
	}
	for from := range l.Size() {
		for limit := 1; limit < size; limit += 3 {
			_, err := slice(from, limit)
			// A slice that begins behind it begins with its leaf hash.
			if holds := from == 7 || from <= 6 && 6 < from+uint64(limit); holds != problem.Is(err, problem.ReasonTampered) || !holds && err != nil {
				t.Errorf("%d entries from %d on: %v", limit, from, err)
			}
		}
	}
}

// put stores a checkpoint.
func (r *rig) put(signed []byte) {
	r.t.Helper()
	st, err := sqlite.Open(r.t.Context(), r.dir)
	must(r.t, err)
	must(r.t, st.PutCheckpoint(r.t.Context(), signed))
	must(r.t, st.Close())
}

// A store that was taken back in time, or has more than was written, when it is opened again: neither is accepted.
func TestReopenNotices(t *testing.T) {
	for name, swap := range map[string]func(r *rig) (dir string){
		"a younger store": func(r *rig) string { return newRig(r.t).dir },
		"a longer one": func(r *rig) string {
			dir := filepath.Join(r.t.TempDir(), "data")
			data, err := os.ReadFile(filepath.Join(r.dir, "store.db"))
			must(r.t, err)
			must(r.t, os.Mkdir(dir, 0o700))
			must(r.t, os.WriteFile(filepath.Join(dir, "store.db"), data, 0o600))
			other := &rig{t: r.t, dir: dir, skey: r.skey, vkey: r.vkey}
			if _, _, err := add(other.start(), "a", 666); err != nil {
				r.t.Fatal(err)
			}
			must(r.t, other.log.Close())
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			l := r.start()
			for i := range 10 {
				if _, _, err := add(l, "a", i); err != nil {
					t.Fatal(err)
				}
			}
			must(t, l.Close())
			dir := swap(r)
			l = r.start()
			r.mu.Lock()
			r.dir = dir
			r.mu.Unlock()
			r.plan(storetest.Fault{Op: storetest.OpAppend, Call: 1})
			if _, _, err := add(l, "a", 99); err == nil {
				t.Fatal("it was acknowledged")
			}
			deadline := time.Now().Add(10 * time.Second)
			for !problem.Is(l.Ready(), problem.ReasonTampered) {
				if time.Now().After(deadline) {
					t.Fatalf("ready says %v", l.Ready())
				}
				<-time.After(time.Millisecond)
			}
			if _, _, err := add(l, "a", 1); !problem.Is(err, problem.ReasonTampered) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// A log that is opening its store again, which may take as long as it likes, can be closed.
func TestCloseWhileReopening(t *testing.T) {
	r := newRig(t)
	cfg := r.config()
	open, again := cfg.Open, make(chan struct{})
	var opened atomic.Bool
	cfg.Open = func(ctx context.Context) (store.Store, error) {
		if opened.CompareAndSwap(false, true) {
			return open(ctx)
		}
		close(again)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	l, err := ledger.Load(t.Context(), cfg)
	must(t, err)
	verifier, err := note.NewVerifier(r.vkey)
	must(t, err)
	must(t, l.Start([]note.Signer{signerOf(t, r.skey)}, []note.Verifier{verifier}))
	r.plan(storetest.Fault{Op: storetest.OpAppend, Call: 1})
	if _, _, err := add(l, "a", 1); err == nil {
		t.Fatal("a failed write was acknowledged")
	}
	<-again
	done := make(chan error, 1)
	go func() { done <- l.Close() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
}
