package control_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Whatever became of the write of a move, the environment that saw it fail goes on with what there is, and moves, rotates and restarts.
func TestCustodyGoesOnAfterItsWrite(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("persisted %t", lost), func(t *testing.T) {
			b, target := movable(t, 1)
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
			deadline := time.Now().Add(20 * time.Second)
			for b.Env.Ready() != nil {
				if time.Now().After(deadline) {
					t.Fatal("it does not come back")
				}
				<-time.After(time.Millisecond)
			}
			if got := b.Env.State().Custody.Moved != 0; got != lost {
				t.Fatalf("moved: %t", got)
			}
			b.works()
			if err := b.approve("bob", ch); lost != problem.Is(err, problem.ReasonConflict) {
				t.Fatal(err)
			}
			b.works()
			b.consistent()
			b.Config.Holder, b.Config.Next = b.Config.Next, nil
			b.Reopen()
			b.works()
		})
	}
}

// After a move nothing of what the keys were wrapped as is in any of the store's files.
func TestCustodyLeavesNothing(t *testing.T) {
	b, target := movable(t, 1)
	before := [][]byte{b.kek(1), b.kek(2)}
	found := func() (n int) {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(b.Dir, "data", "*"))
		b.must(err)
		for _, f := range files {
			data, err := os.ReadFile(f)
			b.must(err)
			for _, row := range before {
				if bytes.Contains(data, row) {
					n++
				}
			}
		}
		return n
	}
	if found() == 0 {
		t.Fatal("they are not there to begin with")
	}
	b.must(b.approve("bob", b.moveTo(target)))
	deadline := time.Now().Add(10 * time.Second)
	for found() > 0 && time.Now().Before(deadline) { // the log is emptied beside the answer
		<-time.After(time.Millisecond)
	}
	if n := found(); n > 0 {
		t.Errorf("they are in the store %d times", n)
	}
	b.Close()
	if n := found(); n > 0 {
		t.Errorf("they are in the closed store %d times", n)
	}
	b.Open()
	b.works()
}

// An approval of a move is about where the keys are now: once they were moved, what was proposed before is void, and nobody can bring
// them back alone with it.
func TestCustodyOfBeforeIsVoid(t *testing.T) {
	b := delayed(t)
	old := custody.HolderOf(b.Config.Holder).String()
	target := b.Spare()
	first, second, third := b.moveTo(target, "bob"), b.moveTo(target, "carol"), b.moveTo(target)
	b.later(24 * time.Hour)
	b.must(b.carryOut("alice", first))
	b.refused(b.carryOut("alice", second), problem.ReasonConflict)
	back := b.moveTo(old, "bob")
	b.later(24 * time.Hour)
	b.must(b.carryOut("bob", back))
	b.refused(b.carryOut("alice", second), problem.ReasonConflict)
	for _, ch := range []*state.Change{second, third} {
		b.refused(b.approve("bob", ch), problem.ReasonConflict)
		b.stateOf(ch, state.Superseded)
	}
	if got := b.Env.RootHolders()[0]; got != old {
		t.Errorf("the keys are under %s", got)
	}
	again := b.moveTo(target, "bob")
	b.stateOf(again, state.Waiting)
	b.later(24 * time.Hour)
	b.must(b.carryOut("carol", again))
	b.consistent()
}

// The same root key under two names is one root key: there is nowhere to move to.
func TestCustodyOfOneRootKey(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.Put(b.by["alice"], "db/x", "one")
	again, err := file.Open(filepath.Join(b.Dir, "root.key"))
	b.must(err)
	b.Config.Next = again
	b.Reopen()
	now := custody.HolderOf(again).String()
	if got := b.Env.RootHolders(); !slices.Equal(got, []string{now}) {
		t.Errorf("there are %v", got)
	}
	_, err = b.act("alice", control.ActionMove, now)
	b.refused(err, problem.ReasonConflict)
	_, err = b.act("alice", control.ActionMove, now+"0")
	b.refused(err, problem.ReasonRootHolder)
	if !strings.Contains(err.Error(), "is the same root key") {
		t.Errorf("it says %q", err)
	}
	b.works()
}

// Whoever comes at the same time, a change is carried out once.
func TestCustodyMovesOnce(t *testing.T) {
	for _, wait := range []bool{false, true} {
		t.Run(fmt.Sprintf("waits %t", wait), func(t *testing.T) {
			var b *board
			var target string
			if wait {
				b = delayed(t)
				target = b.Spare()
			} else {
				b, target = movable(t, 1)
			}
			n := new(atomic.Int64)
			b.Config.Holder, b.Config.Next = asked{b.Config.Holder, n}, asked{b.Config.Next, n}
			b.Reopen()
			first, second := b.moveTo(target), b.moveTo(target)
			if wait {
				for _, ch := range []*state.Change{first, second} {
					b.must(b.approve("bob", ch))
				}
				b.later(24 * time.Hour)
			}
			n.Store(0)
			errs := make(chan error, 4)
			for _, ch := range []*state.Change{first, second} {
				for _, p := range []string{"bob", "carol"} {
					text := b.Approval(p, ch).Text()
					sig := b.Sign(p, ceremony.NamespaceChange, text)
					go func() {
						if wait {
							errs <- b.carryOut(p, ch)
							return
						}
						_, err := b.Env.Approve(context.Background(), b.by[p].Caller, control.ApproveRequest{Change: ch.Index, Text: text, SSHSIG: sig})
						errs <- err
					}()
				}
			}
			done := 0
			for range 4 {
				if err := <-errs; err == nil {
					done++
				} else {
					b.refused(err, problem.ReasonConflict)
				}
			}
			if done != 1 {
				t.Errorf("it was done %d times", done)
			}
			if asked, keys := n.Load(), int64(b.Env.State().KEKs()); asked != 2*keys {
				t.Errorf("the root holders were asked %d times about %d keys", asked, keys)
			}
			b.consistent()
		})
	}
}

// Keys are moved to and fro while all else is done with them; nothing is lost, and it opens with the root key that it says.
func TestCustodyToAndFro(t *testing.T) {
	b, target := movable(t, 1)
	old := custody.HolderOf(b.Config.Holder).String()
	api := b.Workload(b.Node(b.by["alice"], "n"), "")
	alice, ctx := b.by["alice"], context.Background()
	stop := make(chan struct{})
	var g sync.WaitGroup
	for what, do := range map[string]func() error{
		"rotating": func() error { _, _, err := b.Env.RotateKey(ctx, alice.Caller, custody.KEK); return err },
		"tokens":   func() error { _, _, err := b.Env.RotateKey(ctx, alice.Caller, custody.JWT); return err },
		"rewrapping": func() error {
			return b.Env.Rewrap(ctx, alice.Caller, func(control.RewrapProgress) error { return nil })
		},
		"reading": func() error { _, _, err := b.Get(api, "db/x"); return err },
	} {
		g.Go(func() {
			for range 6 {
				if err := do(); err != nil && !problem.Is(err, problem.ReasonStale) && !problem.Is(err, problem.ReasonConflict) && !problem.Is(err, problem.ReasonLimit) &&
					!problem.Is(err, problem.ReasonLifecycle) { // of tokens: the keys of before are published still
					t.Errorf("%s: %v", what, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 5 {
		to := target
		if i%2 == 1 {
			to = old
		}
		if err := b.approve("bob", b.moveTo(to)); err != nil {
			t.Errorf("move %d: %v", i, err)
		}
	}
	close(stop)
	g.Wait()
	if got := b.Env.RootHolders()[0]; got != target {
		t.Errorf("the keys are under %s", got)
	}
	b.consistent()
	b.Config.Holder, b.Config.Next = b.Config.Next, nil
	b.Reopen()
	b.works()
}
