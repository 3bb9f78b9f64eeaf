package control_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/verify"
)

// forger can write a closed environment's database, and has none of its keys but a checkpoint key of his own.
type forger struct {
	w        *controltest.World
	origin   string
	public   ed25519.PublicKey
	signer   note.Signer
	verifier note.Verifier
}

func newForger(t *testing.T, w *controltest.World) *forger {
	t.Helper()
	f := &forger{w: w, origin: ledger.OriginOf(controltest.EnvName, w.Genesis, 0)}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	f.public = public
	vkey, err := note.NewEd25519VerifierKey(f.origin, public)
	check(t, err)
	f.verifier, err = note.NewVerifier(vkey)
	check(t, err)
	f.signer = signer{f.verifier, key}
	return f
}

type signer struct {
	note.Verifier
	key ed25519.PrivateKey
}

func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *forger) store(do func(ctx context.Context, st store.Store)) {
	f.w.T.Helper()
	ctx := context.Background()
	st, err := sqlite.Open(ctx, filepath.Join(f.w.Dir, "data"))
	if err != nil {
		f.w.T.Fatal(err)
	}
	do(ctx, st)
	if err := st.Close(); err != nil {
		f.w.T.Fatal(err)
	}
}

// put stores a checkpoint; nil means one of the head that he signs himself. It returns the one before.
func (f *forger) put(signed []byte) (before []byte) {
	f.store(func(ctx context.Context, st store.Store) {
		var err error
		if before, err = st.Checkpoint(ctx); err != nil {
			f.w.T.Fatal(err)
		}
		if signed == nil {
			head, err := st.Head(ctx)
			if err != nil {
				f.w.T.Fatal(err)
			}
			text := verify.Checkpoint{Origin: f.origin, Size: int64(head.Size), Root: tlog.Hash(head.Root)}.Text()
			if signed, err = note.Sign(&note.Note{Text: text}, f.signer); err != nil {
				f.w.T.Fatal(err)
			}
		}
		if err := st.PutCheckpoint(ctx, signed); err != nil {
			f.w.T.Fatal(err)
		}
	})
	return before
}

// add appends entries as the ledger would, with every hash right, under his own signature.
func (f *forger) add(events ...state.Event) {
	t := f.w.T
	t.Helper()
	f.put(nil)
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	l, err := ledger.Load(ctx, ledger.Config[*state.State]{
		Open: func(ctx context.Context) (store.Store, error) {
			return sqlite.Open(ctx, filepath.Join(f.w.Dir, "data"))
		},
		New: state.New, Restore: state.Restore, Origin: func(*state.State) string { return f.origin },
		Confirm: func(uint64, []byte) func(*state.State) bool { return func(*state.State) bool { return true } },
	})
	fail(err)
	fail(l.Start([]note.Signer{f.signer}, []note.Verifier{f.verifier}))
	for _, ev := range events {
		_, _, err := ledger.Commit(ctx, l, func(_ *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
			body, err := state.Encode(&state.Entry{Time: state.At(at.Time), Event: ev})
			return ledger.Draft{Records: []ledger.Record{{Body: body}}}, struct{}{}, err
		})
		fail(err)
	}
	fail(l.Close())
}

// refused says that neither the server nor an auditor believes the directory.
func (f *forger) refused() {
	t := f.w.T
	t.Helper()
	if env, err := control.Open(context.Background(), f.w.Config); !problem.Is(err, problem.ReasonTampered) {
		t.Errorf("the server says: %v", err)
		if err == nil {
			_ = env.Close(context.Background())
		}
	}
	st, err := sqlite.OpenReadOnly(context.Background(), filepath.Join(f.w.Dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	l, err := audit.OfStore(context.Background(), st)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Run(context.Background(), l, audit.Options{Genesis: f.w.Genesis}); !problem.Is(err, problem.ReasonTampered) {
		t.Errorf("the auditor says: %v", err)
	}
}

// Who can write the database, and has no key, adds a join token of his own to the end of the ledger.
func TestForgedTail(t *testing.T) {
	for name, cover := range map[string]func(f *forger, last []byte){
		"under his own checkpoint":  func(*forger, []byte) {},
		"under the last checkpoint": func(f *forger, last []byte) { f.put(last) },
		"without a checkpoint":      func(f *forger, _ []byte) { change(f.w, "DELETE FROM checkpoint") },
	} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1})
			alice := w.Login("alice")
			w.Put(alice, "node/key", "the crown")
			s := w.Env.State()
			w.Reopen() // unspoilt it starts
			w.Close()
			f := newForger(t, w)
			last := f.put(nil)
			tok, err := jointoken.New(w.Genesis)
			check(t, err)
			f.add(&state.TokenCreated{
				ID: tok.ID(), Public: tok.PublicKey(), Name: "web-9", Expires: state.At(time.Now().Add(time.Hour)),
				Actor:  state.Actor{Identity: "/human/alice", Session: alice.Caller.Session},
				Ruling: state.Ruling{Generation: s.Generation, Bundle: s.Bundle, Evaluator: 1},
			})
			cover(f, last)
			f.refused()
		})
	}
}

// A revocation is cut off, and the checkpoint that covered it is gone.
func TestCheckpointDeleted(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	w.Put(alice, "node/key", "v")
	w.Node(alice, "web-1")
	size := w.Env.Ledger().Size()
	if _, err := w.Env.Revoke(context.Background(), alice.Caller, control.RevokeRequest{Scope: "node:/node/join-token/web-1", Reason: "lost"}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	f := newForger(t, w)
	change(f.w, fmt.Sprintf("DELETE FROM batches WHERE first >= %d", size), fmt.Sprintf("DELETE FROM entries WHERE idx >= %d", size), "DELETE FROM checkpoint")
	f.refused()
}

// The entries name a key of the forger's among those that sign no more, and the wrapped keys of the others are there.
func TestForgedCheckpointKey(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	size := w.Env.Ledger().Size()
	for range 3 {
		if _, _, err := w.Env.RotateKey(context.Background(), alice.Caller, custody.Checkpoint); err != nil {
			t.Fatal(err)
		}
	}
	s := w.Env.State()
	w.Close()
	f := newForger(t, w)
	change(f.w, fmt.Sprintf("DELETE FROM batches WHERE first >= %d", size), fmt.Sprintf("DELETE FROM entries WHERE idx >= %d", size), "DELETE FROM snapshots")
	var events []state.Event
	for n := uint32(2); n <= 4; n++ {
		name := custody.Name(custody.Checkpoint, n)
		k, ok := s.Keys.Get(name)
		if !ok {
			t.Fatalf("there is no %s", name)
		}
		facts := state.KeyFacts{Name: name, Public: k.Public, Cross: k.Cross}
		if n == 2 {
			facts.Public = f.public
		}
		events = append(events, &state.KeyAdded{
			Key: facts, Actor: state.Actor{Identity: "/human/alice", Session: alice.Caller.Session},
			Ruling: state.Ruling{Generation: s.Generation, Bundle: s.Bundle, Evaluator: 1},
		})
	}
	f.add(events...)
	f.refused()
}

// Who can write the database changes an entry of the past and each stored hash that it is compared with by itself. A start reads it
// unless a snapshot covers it, and then the running checks do.
func TestForgedEntry(t *testing.T) {
	for name, covered := range map[string]bool{"read at start": false, "under a snapshot": true} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{})
			alice := w.Login("alice")
			index := w.Env.Ledger().Size()
			w.Put(alice, "node/key", "v")
			w.Put(alice, "node/key", "w") // so that the hash above it is not at the snapshot's edge, which a start reads
			w.Put(alice, "node/key", "x")
			if covered {
				check(t, w.Env.Snapshot(context.Background()))
			}
			w.Put(alice, "node/key", "y")
			var forged []byte
			check(t, w.Env.Ledger().Entries(context.Background(), index, 1, func(_ uint64, e store.Entry) error {
				entry, err := state.Decode(e.Body)
				check(t, err)
				entry.Event.(*state.SecretWritten).Digest[0] ^= 1
				forged, err = state.Encode(entry)
				return err
			}))
			w.Close()
			f := newForger(t, w)
			salt := make([]byte, store.SaltSize)
			leaf := verify.LeafHash(verify.LeafCommitment([store.SaltSize]byte(salt), forged))
			at := tlog.StoredHashIndex(0, int64(index))
			change(w, fmt.Sprintf("UPDATE entries SET data = x'%x%x' WHERE idx = %d", salt, forged, index),
				fmt.Sprintf(`UPDATE batches SET hashes = CAST(substr(hashes, 1, (%[1]d - hash) * 32) || x'%[2]x' || substr(hashes, (%[1]d - hash) * 32 + 33) AS BLOB)
					WHERE hash = (SELECT max(hash) FROM batches WHERE hash <= %[1]d)`, at, leaf[:]))
			if !covered {
				f.refused()
				return
			}
			w.Open()
			_, _, err := w.Env.Check(context.Background())
			if n := w.Env.CheckStatus().Violations; err != nil || n == 0 {
				t.Errorf("the running checks found %d violations, %v", n, err)
			}
		})
	}
}

// A checkpoint key that was rotated away signs no more: who has stolen it, and can write the database, adds nothing to the end.
func TestRetiredCheckpointKey(t *testing.T) {
	ctx := context.Background()
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	f := newForger(t, w)
	vault := custody.Vault{Holder: w.Config.Holder, Genesis: w.Genesis, Read: func(ctx context.Context, name string) ([]byte, error) {
		return w.Env.Ledger().Store().Key(ctx, name)
	}}
	stolen, err := vault.Unseal(ctx, w.Env.State(), f.origin)
	check(t, err)
	f.signer, f.verifier = stolen.Signers()[0], stolen.Verifiers()[0]
	for range 2 {
		_, _, err := w.Env.RotateKey(ctx, alice.Caller, custody.Checkpoint)
		check(t, err)
		w.Reopen() // the batch of the rotation is the newest
	}
	w.Put(alice, "node/key", "v")
	s := w.Env.State()
	w.Close()
	f.add(&state.SecretMoved{
		Secret: "node/key", Version: 1, From: state.Current, To: state.Compromised, Actor: state.Actor{Identity: "/human/alice", Session: alice.Caller.Session},
		Ruling: state.Ruling{Generation: s.Generation, Bundle: s.Bundle, Grant: "writers", Evaluator: 1},
	})
	f.refused()
}
