package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// movable is a board with a value, several key-encryption keys, and the root key that they are to be moved to.
func movable(t *testing.T, quorum int) (b *board, target string) {
	t.Helper()
	b = newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: quorum})
	b.Put(b.by["alice"], "db/x", "one")
	_, _, err := b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK)
	b.must(err)
	return b, b.Spare()
}

// moveTo proposes a move, and has all but the last one approve it.
func (b *board) moveTo(target string, before ...string) *state.Change {
	b.T.Helper()
	p, err := b.act("alice", control.ActionMove, target)
	b.must(err)
	for _, o := range before {
		_, err = b.Approve(b.by[o], o, p.Change)
		b.must(err)
	}
	return p.Change
}

func (b *board) approve(person string, ch *state.Change) error {
	b.T.Helper()
	_, err := b.Approve(b.by[person], person, ch)
	return err
}

// kek is what a key-encryption key is wrapped as.
func (b *board) kek(n uint32) []byte {
	b.T.Helper()
	row, err := b.Env.Ledger().Store().Key(context.Background(), custody.Name(custody.KEK, n))
	b.must(err)
	return row
}

// works checks that values are read, written and that all keys can still be rotated.
func (b *board) works() {
	b.T.Helper()
	ctx := context.Background()
	for _, p := range []string{"alice", "bob", "carol"} {
		b.by[p] = b.Login(p)
	}
	api := b.Workload(b.Node(b.by["alice"], "n"), "")
	if v, _, err := b.Get(api, "db/x"); err != nil || v != "one" {
		b.T.Errorf("%q %v", v, err)
	}
	for _, kind := range []string{custody.KEK, custody.CA, custody.Checkpoint} {
		_, _, err := b.Env.RotateKey(ctx, b.by["alice"].Caller, kind)
		b.must(err)
	}
	b.must(b.Env.Rewrap(ctx, b.by["alice"].Caller, func(control.RewrapProgress) error { return nil }))
}

// opens checks with which root keys a closed environment opens.
func (b *board) opens(held, next keyring.Holder, want problem.Reason, says string) {
	b.T.Helper()
	cfg := b.Config
	cfg.Holder, cfg.Next = held, next
	env, err := control.Open(context.Background(), cfg)
	if want != "" {
		b.refused(err, want)
		if !strings.Contains(err.Error(), says) {
			b.T.Errorf("it says %q, not %q", err, says)
		}
		return
	}
	b.must(err)
	b.Env = env
	b.works()
	b.must(env.Close(context.Background()))
}

func TestCustodyMoves(t *testing.T) {
	b, target := movable(t, 2)
	old, next := b.Config.Holder, b.Config.Next
	before := b.kek(1)
	ch := b.moveTo(target, "bob")
	if b.Env.State().Custody.Moved != 0 || !bytes.Equal(before, b.kek(1)) {
		t.Fatal("it was moved before its last approval")
	}
	b.must(b.approve("carol", ch))
	b.stateOf(ch, state.Done)
	s := b.Env.State()
	if s.Custody.Holder != target || s.Custody.Keys != 2 || s.Custody.Moved != s.Next-1 || bytes.Equal(before, b.kek(1)) {
		t.Errorf("the keys are under %+v", s.Custody)
	}
	if got := b.Env.RootHolders(); !slices.Equal(got, []string{target, custody.HolderOf(old).String()}) {
		t.Errorf("there are %v", got)
	}
	b.works()
	if err := b.approve("bob", b.moveTo(custody.HolderOf(old).String())); err != nil {
		t.Fatal(err)
	} else if b.Env.State().Custody.Holder != target {
		t.Error("one approval of two was enough to move back")
	}
	moved := b.Env.State().Custody.Moved
	b.Close()
	says := fmt.Sprintf("were moved to the root holder %s with entry %d, and this server has %s", target, moved, custody.HolderOf(old))
	b.opens(old, nil, problem.ReasonRootHolder, says)
	b.opens(next, nil, "", "")
	b.opens(old, next, "", "")
	b.opens(next, old, "", "")
	stranger, err := file.Create(filepath.Join(t.TempDir(), "root.key"), source(t))
	b.must(err)
	b.opens(stranger, old, problem.ReasonRootHolder, "were moved to the root holder")
	b.Config.Holder, b.Config.Next = next, nil
	b.Open()
}

// A root key that is not genesis' is told from damage, and nothing is unwrapped with it.
func TestWrongRootHolder(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	stranger, err := file.Create(filepath.Join(t.TempDir(), "root.key"), source(t))
	b.must(err)
	b.Close()
	b.opens(stranger, nil, problem.ReasonRootHolder, "are under the root holder "+custody.HolderOf(b.Config.Holder).String()+", and this server has "+custody.HolderOf(stranger).String())
	b.Open()
}

func TestCustodyRefusals(t *testing.T) {
	b, target := movable(t, 1)
	old, next := b.Config.Holder, b.Config.Next
	for what, want := range map[string]problem.Reason{
		"": problem.ReasonInvalid, "file": problem.ReasonInvalid, "file:a b": problem.ReasonInvalid, "file:" + strings.Repeat("a", 129): problem.ReasonInvalid,
		custody.HolderOf(old).String(): problem.ReasonConflict, target + "0": problem.ReasonRootHolder, "tpm" + strings.TrimPrefix(target, "file"): problem.ReasonRootHolder,
	} {
		_, err := b.act("alice", control.ActionMove, what)
		b.refused(err, want)
	}
	text := b.Change("alice", control.ActionMove, target, nil)
	text.New = strings.Repeat("0", 64)
	_, err := b.Env.Propose(context.Background(), b.by["alice"].Caller, control.ProposeRequest{Text: text.Text(), SSHSIG: b.Sign("alice", "change@bailment", text.Text())})
	if err == nil {
		t.Error("a move that is a bundle was proposed")
	}

	// What was proposed is about that root key: with another one configured, or none, nobody can have it carried out.
	ch := b.moveTo(target)
	b.refused(b.approve("alice", ch), problem.ReasonSeparation)
	b.Config.Next = nil
	b.Reopen()
	_, err = b.act("alice", control.ActionMove, target)
	b.refused(err, problem.ReasonRootHolder)
	b.refused(b.approve("bob", ch), problem.ReasonRootHolder)
	b.Spare()
	b.refused(b.approve("bob", ch), problem.ReasonRootHolder)
	b.stateOf(ch, state.Proposed)

	// A root key that does not work moves nothing, and is no fault of who approves.
	entries := b.Env.State().Next
	for _, h := range []keyring.Holder{broken{Holder: next, wrap: true}, broken{Holder: next}, swapped{next}} {
		b.Config.Next = h
		b.Reopen()
		before := b.kek(1)
		if err := b.approve("bob", ch); !problem.Is(err, problem.ReasonStore) && !problem.Is(err, problem.ReasonTampered) {
			t.Errorf("%T: %v", h, err)
		}
		if !bytes.Equal(before, b.kek(1)) || b.Env.State().Custody.Moved != 0 {
			t.Errorf("%T: the keys were moved", h)
		}
	}
	if n := b.Env.State().Next; n != entries {
		t.Errorf("%d entries about a root key that does not work", n-entries)
	}
	b.Config.Next = next
	b.Reopen()
	b.must(b.approve("bob", ch))
	_, err = b.act("alice", control.ActionMove, target)
	b.refused(err, problem.ReasonConflict)
	b.works()
}

// broken fails to wrap, or to unwrap.
type broken struct {
	keyring.Holder
	wrap bool
}

var errBroken = problem.New(problem.ReasonStore, "planted")

func (h broken) Wrap(ctx context.Context, c []byte, key seal.Secret) ([]byte, error) {
	if h.wrap {
		return nil, errBroken
	}
	return h.Holder.Wrap(ctx, c, key)
}

func (h broken) Unwrap(context.Context, []byte, []byte) (seal.Secret, error) {
	return seal.Secret{}, errBroken
}

// swapped gives back another key than it was given.
type swapped struct{ keyring.Holder }

func (h swapped) Unwrap(context.Context, []byte, []byte) (seal.Secret, error) {
	return seal.NewSecret(bytes.Repeat([]byte{7}, seal.KeySize)), nil
}

// A write that fails is done whole or not at all, whether or not its reply was lost; and what there is then opens and works.
func TestCustodyMoveIsWhole(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("persisted %t", lost), func(t *testing.T) {
			b, target := movable(t, 1)
			old, next := b.Config.Holder, b.Config.Next
			open := b.Config.OpenStore
			var f *unsaid
			b.Config.OpenStore = func(ctx context.Context) (store.Store, error) {
				st, err := open(ctx)
				f = &unsaid{Store: st}
				return f, err
			}
			b.Reopen()
			ch := b.moveTo(target)
			f.fails, f.persists = true, lost
			if err := b.approve("bob", ch); err == nil {
				t.Fatal("the failure was not told")
			}
			_ = b.Env.Close(context.Background())
			b.Env = nil
			b.Config.OpenStore = open
			if lost {
				b.opens(old, nil, problem.ReasonRootHolder, "were moved to the root holder")
				b.opens(next, nil, "", "")
			} else {
				b.opens(next, nil, problem.ReasonRootHolder, "are under the root holder")
				b.opens(old, nil, "", "")
			}
			b.Open()
			b.works()
			if got := b.Env.RootHolders()[0]; got != custody.HolderOf(map[bool]keyring.Holder{true: next, false: old}[lost]).String() {
				t.Errorf("they are under %s", got)
			}
			if !lost {
				b.must(b.approve("bob", ch))
				b.works()
			}
		})
	}
}

// unsaid fails the write that replaces key-encryption keys, before or after it is done.
type unsaid struct {
	store.Store
	fails, persists bool
}

func (f *unsaid) Append(ctx context.Context, batch *store.Batch) error {
	if !f.fails || len(batch.Keys) == 0 {
		return f.Store.Append(ctx, batch)
	}
	if f.persists {
		if err := f.Store.Append(ctx, batch); err != nil {
			return err
		}
	}
	return errors.Join(store.ErrUnknown, errors.New("planted"))
}

// Wrapped keys of before the move, under whatever ledger, are found out: they are not those that the entry is about.
func TestCustodyMovedRows(t *testing.T) {
	b, target := movable(t, 1)
	ctx := context.Background()
	before := b.kek(1)
	b.must(b.approve("bob", b.moveTo(target)))
	v := custody.Vault{Holder: b.Config.Next, Genesis: b.Genesis}
	read := b.Env.Ledger().Store().Key
	for name, swap := range map[string]func(string, []byte) []byte{
		"of before":  func(string, []byte) []byte { return before },
		"of another": func(string, []byte) []byte { return b.kek(2) },
		"damaged":    func(_ string, row []byte) []byte { return append(row[:len(row)-1:len(row)-1], row[len(row)-1]^1) },
	} {
		v.Read = func(ctx context.Context, name string) ([]byte, error) {
			row, err := read(ctx, name)
			if name == "kek/1" {
				row = swap(name, row)
			}
			return row, err
		}
		_, err := v.Unseal(ctx, b.Env.State(), b.Env.Ledger().Origin())
		if !problem.Is(err, problem.ReasonTampered) || !strings.Contains(err.Error(), "are not those that entry") {
			t.Errorf("%s: %v", name, err)
		}
	}
	v.Read = read
	if _, err := v.Unseal(ctx, b.Env.State(), b.Env.Ledger().Origin()); err != nil {
		t.Error(err)
	}
}

// A bundle may have it wait; then a person carries it out, with the root key that is there.
func TestCustodyWaits(t *testing.T) {
	b := newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: policy.Files{
		"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1, acts: [{act: custody.move, delay: 24h}]}\n", controltest.EnvName),
	}})
	b.Put(b.by["alice"], "db/x", "one")
	target := b.Spare()
	ch := b.moveTo(target, "bob")
	b.stateOf(ch, state.Waiting)
	b.refused(b.carryOut("alice", ch), problem.ReasonWaiting)
	b.later(24 * time.Hour)
	next := b.Config.Next
	b.Config.Next = nil
	b.Reopen()
	b.refused(b.carryOut("alice", ch), problem.ReasonRootHolder)
	b.Config.Next = broken{Holder: next, wrap: true}
	b.Reopen()
	b.refused(b.carryOut("alice", ch), problem.ReasonStore)
	b.Config.Next = next
	b.Reopen()
	// A key that comes meanwhile is moved too.
	_, _, err := b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK)
	b.must(err)
	b.must(b.carryOut("alice", ch))
	if c := b.Env.State().Custody; c.Holder != target || c.Keys != 2 {
		t.Errorf("%+v", c)
	}
	b.Config.Holder, b.Config.Next = next, nil
	b.Reopen()
	b.works()
}

// In production it takes two besides the proposer, whatever the bundle says, and a root key that is good for it.
func TestCustodyInProduction(t *testing.T) {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newReleases(t).PublicKey())))
	holder, err := file.Create(t.TempDir()+"/root.key", source(t))
	if err != nil {
		t.Fatal(err)
	}
	next, err := file.Create(t.TempDir()+"/root.key", source(t))
	if err != nil {
		t.Fatal(err)
	}
	b := newBoardOf(t, controltest.Options{
		Persons: []string{"alice", "bob", "carol"}, Class: "production", Holder: sturdy{holder},
		Extra: policy.Files{"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + controltest.EnvName +
			"}\nspec:\n  class: production\n  agents: {signers: ['" + key + "']}\n")},
	})
	target := custody.HolderOf(next).String()
	b.Config.Next = next
	b.Reopen()
	_, err = b.act("alice", control.ActionMove, target)
	b.refused(err, problem.ReasonDevelopmentOnly)
	b.Config.Next = sturdy{next}
	b.Reopen()
	ch := b.moveTo(target, "bob")
	b.stateOf(ch, state.Proposed)
	b.refused(b.approve("alice", ch), problem.ReasonSeparation)
	b.must(b.approve("carol", ch))
	b.stateOf(ch, state.Done)
	b.Close()
	b.opens(next, nil, problem.ReasonDevelopmentOnly, "can't open a production environment")
	b.Config.Holder, b.Config.Next = sturdy{next}, sturdy{holder}
	b.Open()
	b.Files["operators.yaml"] = b.operators(map[string]string{"alice": "propose, approve", "bob": "propose, approve", "carol": "approve-bundles, approve-containment"})
	_, err = b.Approve(b.by["bob"], "bob", b.propose("alice", "fewer"))
	b.must(err)
	_, err = b.act("alice", control.ActionMove, custody.HolderOf(holder).String())
	b.refused(err, problem.ReasonQuorum)
}

// Keys are rotated at the same time as they are moved: all there are end up under one root key.
func TestCustodyMovesWhileKeysRotate(t *testing.T) {
	b, target := movable(t, 1)
	ch := b.moveTo(target)
	done := make(chan error, 1)
	go func() {
		var err error
		for range 8 {
			if _, _, err = b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK); err != nil {
				break
			}
		}
		done <- err
	}()
	b.must(b.approve("bob", ch))
	b.must(<-done)
	b.Config.Holder, b.Config.Next = b.Config.Next, nil
	b.Reopen()
	b.works()
}
