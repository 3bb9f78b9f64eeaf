package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// endable is an environment with something of everything, in which ending it waits for a day.
func endable(t *testing.T, quorum int) *board {
	t.Helper()
	b := newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: quorum, Extra: policy.Files{
		"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: %d, acts: [{act: environment.delete, delay: 24h}]}\n", controltest.EnvName, quorum),
	}})
	b.Put(b.by["alice"], "db/x", "one")
	b.Put(b.by["alice"], "db/x", "two")
	return b
}

func (b *board) endTarget() string { return state.EndTarget(controltest.EnvName, b.Genesis) }

// end ends the environment, as everybody agreed a day before. Something of everything is alive.
func (b *board) end(approvers ...string) (by controltest.Actor, node controltest.Actor) {
	b.T.Helper()
	p, err := b.act("alice", control.ActionDelete, b.endTarget())
	b.must(err)
	for _, o := range approvers {
		_, err = b.Approve(b.by[o], o, p.Change)
		b.must(err)
	}
	b.refused(b.carryOut("alice", p.Change), problem.ReasonWaiting)
	b.later(24 * time.Hour)
	node = b.Node(b.by["alice"], "n")
	api := b.Workload(node, "")
	_, _, err = b.Get(api, "db/x")
	b.must(err)
	b.revoke("alice", "identity:/workload/other")
	b.propose("alice", "an open change")
	b.Token(b.by["alice"], "unspent", time.Hour)
	b.must(b.carryOut("bob", p.Change))
	return b.by["alice"], node
}

func TestEnvironmentEnds(t *testing.T) {
	b := endable(t, 2)
	ctx := context.Background()
	for target, want := range map[string]problem.Reason{
		"": problem.ReasonWrongEnvironment, controltest.EnvName: problem.ReasonWrongEnvironment,
		state.EndTarget("other.example", b.Genesis): problem.ReasonWrongEnvironment, state.EndTarget(controltest.EnvName, state.Digest{1}): problem.ReasonWrongEnvironment,
	} {
		_, err := b.act("alice", control.ActionDelete, target)
		b.refused(err, want)
	}
	alice, node := b.end("bob", "carol")

	s := b.Env.State()
	if s.Ended != s.Next-1 || s.Sessions.Len()+s.Leases.Len()+s.Holds.Len()+s.Tokens.Len()+s.Idem.Len() != 0 {
		t.Errorf("it ended with entry %d of %d, and %d sessions, %d leases, %d holds", s.Ended, s.Next, s.Sessions.Len(), s.Leases.Len(), s.Holds.Len())
	}
	s.Changes.All(func(i uint64, c *state.Change) bool {
		if c.Open() {
			t.Errorf("change %d is %s", i, c.State)
		}
		return true
	})
	// Nothing is answered, with or without a session, and nothing is entered.
	calls := map[string]func() error{
		"get":     func() error { _, _, err := b.Get(node, "db/x"); return err },
		"list":    func() error { _, err := b.Env.ListChanges(ctx, alice.Caller, control.ChangeFilter{}); return err },
		"bundle":  func() error { _, _, _, err := b.Env.Bundle(ctx, alice.Caller, state.Digest{}); return err },
		"entries": func() error { return b.Env.Inspect(alice.Caller) },
		"logout":  func() error { return b.Env.Logout(ctx, alice.Caller) },
		"revoke": func() error {
			_, err := b.Env.Revoke(ctx, alice.Caller, control.RevokeRequest{Scope: "everything", Reason: "x"})
			return err
		},
		"challenge":    func() error { _, _, err := b.Env.Challenge(); return err },
		"no session":   func() error { _, _, err := b.Get(controltest.Actor{}, "db/x"); return err },
		"rotate":       func() error { _, _, err := b.Env.RotateKey(ctx, alice.Caller, "ca"); return err },
		"trust bundle": func() error { _, err := b.Env.TrustBundle(); return err },
		"ready":        b.Env.Ready,
		"watch":        func() error { return b.Env.Watch(ctx, node.Caller, 0, func(control.News) error { return nil }) },
		"an entry":     func() error { return b.Commit(&state.DenialsSummed{Method: "session", Reason: "x", Count: 1}) },
		"carry out":    func() error { return b.carryOut("bob", &state.Change{Index: 1}) },
	}
	for name, call := range calls {
		want := problem.ReasonEnvironmentEnded
		if name == "an entry" {
			want = problem.ReasonInternal
		}
		if err := call(); !problem.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.must(b.Env.FlushDenials(ctx))
	b.must(b.Env.Snapshot(ctx))
	b.must(b.Env.Advance(ctx))
	if next := b.Env.State().Next; next != s.Next {
		t.Errorf("%d entries follow the last one", next-s.Next)
	}
	// What is public is read as ever.
	if _, err := b.Env.Ledger().Receipt(ctx, s.Ended); err != nil {
		t.Error(err)
	}
	b.inForce(1)
	b.wiped()
	b.Close()
	b.shut()
}

// wiped checks that nothing that is secret is left in the store.
func (b *board) wiped() {
	b.T.Helper()
	ctx := context.Background()
	st := b.Env.Ledger().Store()
	if left, err := st.SealedUnder(ctx, 0, 0, 10); err != nil || len(left) > 0 {
		b.T.Errorf("left are %v: %v", left, err)
	}
	for _, name := range []string{"kek/1", "ca/1", "checkpoint/1", "mac/1", "jwt/1"} {
		if _, err := st.Key(ctx, name); !errors.Is(err, store.ErrNotFound) {
			b.T.Errorf("%s: %v", name, err)
		}
	}
}

// shut checks that the closed environment can't be opened, says why, and is sound offline.
func (b *board) shut() {
	b.T.Helper()
	ctx := context.Background()
	_, err := control.Open(ctx, b.Config)
	b.refused(err, problem.ReasonEnvironmentEnded)
	b.refused(control.Ended(ctx, b.Config.OpenStore), problem.ReasonEnvironmentEnded) // without its root key
	b.Env = nil
	data := filepath.Join(b.Dir, "data")
	st, err := sqlite.OpenReadOnly(ctx, data)
	b.must(err)
	defer st.Close()
	l, err := audit.OfStore(ctx, st)
	b.must(err)
	r, err := audit.Run(ctx, l, audit.Options{Genesis: b.Genesis, Environment: controltest.EnvName})
	if err != nil || !r.Complete() || r.Violated != 0 || r.Ended == 0 || r.Ended != r.Size-1 {
		b.T.Errorf("%+v: %v", r, err)
	}
}

// What ends is gone from the files, too: also from the write-ahead log that a crash leaves, once the directory was opened again.
func TestEndErasesFiles(t *testing.T) {
	var rows [][]byte
	b := endable(t, 1)
	for _, name := range []string{"kek/1", "ca/1", "checkpoint/1", "mac/1"} {
		row, err := b.Env.Ledger().Store().Key(context.Background(), name)
		b.must(err)
		rows = append(rows, row)
	}
	sec, _ := b.Env.State().Secrets.Get("db/x")
	for _, v := range sec.Versions {
		row, err := b.Env.Ledger().Store().Sealed(context.Background(), v.Sealed)
		b.must(err)
		rows = append(rows, row.Ciphertext, row.WrappedKey)
	}
	crashed := filepath.Join(t.TempDir(), "data")
	open := b.Config.OpenStore
	b.Config.OpenStore = func(ctx context.Context) (store.Store, error) {
		st, err := open(ctx)
		return &failing{Store: st, wiped: func() func() { return b.copy(crashed) }}, err
	}
	b.end("bob")
	b.Close()
	b.Env = nil
	if b.found(crashed, rows) == 0 {
		t.Fatal("a crash leaves nothing, so there is nothing to see")
	}
	open = func(ctx context.Context) (store.Store, error) { return sqlite.Open(ctx, crashed) }
	b.refused(control.Ended(context.Background(), open), problem.ReasonEnvironmentEnded)
	for _, dir := range []string{filepath.Join(b.Dir, "data"), crashed} {
		if n := b.found(dir, rows); n > 0 {
			t.Errorf("%s still has %d of what was secret", dir, n)
		}
	}
}

// found counts what of some texts is in the files of a directory.
func (b *board) found(dir string, texts [][]byte) int {
	b.T.Helper()
	files, err := os.ReadDir(dir)
	b.must(err)
	n := 0
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		b.must(err)
		for _, text := range texts {
			if bytes.Contains(data, text[:min(len(text), 40)]) {
				n++
			}
		}
	}
	return n
}

// A write that fails is done whole or not at all, whether or not its reply was lost.
func TestEndIsWhole(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("persisted %t", lost), func(t *testing.T) {
			b := endable(t, 1)
			p, err := b.act("alice", control.ActionDelete, b.endTarget())
			b.must(err)
			_, err = b.Approve(b.by["bob"], "bob", p.Change)
			b.must(err)
			open := b.Config.OpenStore
			var f *failing
			b.Config.OpenStore = func(ctx context.Context) (store.Store, error) {
				st, err := open(ctx)
				f = &failing{Store: st}
				return f, err
			}
			b.later(24 * time.Hour)
			f.wipes, f.persists = true, lost
			if err := b.carryOut("bob", p.Change); err == nil {
				t.Fatal("the failure was not told")
			}
			_ = b.Env.Close(context.Background())
			b.Env = nil
			env, err := control.Open(context.Background(), b.Config)
			if lost {
				b.refused(err, problem.ReasonEnvironmentEnded)
				return
			}
			b.must(err)
			b.Env = env
			b.by["bob"] = b.Login("bob")
			f.wipes = false
			b.must(b.carryOut("bob", p.Change))
			b.wiped()
		})
	}
}

// copy keeps the write-ahead log from being tidied up until the function that it returns has copied the store's directory, as a crash at
// that moment would leave it.
func (b *board) copy(to string) func() {
	from := filepath.Join(b.Dir, "data")
	held, err := os.Open(filepath.Join(from, "store.db"))
	b.must(err)
	b.must(unix.Flock(int(held.Fd()), unix.LOCK_SH))
	return func() {
		defer held.Close()
		b.must(os.Mkdir(to, 0o700))
		files, err := os.ReadDir(from)
		b.must(err)
		for _, f := range files {
			data, err := os.ReadFile(filepath.Join(from, f.Name()))
			b.must(err)
			b.must(os.WriteFile(filepath.Join(to, f.Name()), data, 0o600))
		}
	}
}

// failing fails the write that wipes, before or after it is done.
type failing struct {
	store.Store
	wipes, persists bool
	wiped           func() func() // is called before it is done, and what it returns after it
}

func (f *failing) Append(ctx context.Context, batch *store.Batch) error {
	if !f.wipes || !batch.Wipe {
		if !batch.Wipe || f.wiped == nil {
			return f.Store.Append(ctx, batch)
		}
		defer f.wiped()()
		return f.Store.Append(ctx, batch)
	}
	if f.persists {
		if err := f.Store.Append(ctx, batch); err != nil {
			return err
		}
	}
	return errors.Join(store.ErrUnknown, errors.New("planted"))
}

// In production it takes two besides the proposer, whatever the bundle says, and a day.
func TestEndInProduction(t *testing.T) {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newReleases(t).PublicKey())))
	holder, err := file.Create(t.TempDir()+"/root.key", source(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]problem.Reason{"too few": problem.ReasonQuorum, "three": ""} {
		t.Run(name, func(t *testing.T) {
			b := newBoardOf(t, controltest.Options{
				Persons: []string{"alice", "bob", "carol"}, Class: "production", Holder: sturdy{holder},
				Extra: policy.Files{"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + controltest.EnvName +
					"}\nspec:\n  class: production\n  agents: {signers: ['" + key + "']}\n")},
			})
			if want != "" {
				b.Files["operators.yaml"] = b.operators(map[string]string{"alice": "propose, approve", "bob": "propose, approve", "carol": "approve-bundles, approve-containment"})
				_, err := b.Approve(b.by["bob"], "bob", b.propose("alice", "fewer"))
				b.must(err)
			}
			p, err := b.act("alice", control.ActionDelete, b.endTarget())
			if want != "" {
				b.refused(err, want)
				return
			}
			b.must(err)
			_, err = b.Approve(b.by["bob"], "bob", p.Change)
			b.must(err)
			b.stateOf(p.Change, state.Proposed)
			_, err = b.Approve(b.by["alice"], "alice", p.Change)
			b.refused(err, problem.ReasonSeparation)
			_, err = b.Approve(b.by["carol"], "carol", p.Change)
			b.must(err)
			b.stateOf(p.Change, state.Waiting)
			b.later(24*time.Hour - time.Minute)
			b.refused(b.carryOut("alice", p.Change), problem.ReasonWaiting)
			b.later(time.Minute)
			b.must(b.carryOut("alice", p.Change))
			if b.Env.State().Ended == 0 {
				t.Error("it goes on")
			}
		})
	}
}

func source(t *testing.T) *seal.Source {
	t.Helper()
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	return src
}
