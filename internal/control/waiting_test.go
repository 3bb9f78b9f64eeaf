package control_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// waitingBoard is an environment in which what destroys waits for a day, with a version to destroy.
func waitingBoard(t *testing.T) *board {
	t.Helper()
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.Files["environment.yaml"] = []byte(strings.Replace(string(b.Files["environment.yaml"]), "approvals: {required: 1}",
		"approvals: {required: 1, acts: [{act: secret.destroy, delay: 24h}]}", 1))
	b.Files["operators.yaml"] = b.operators(map[string]string{
		"alice": "propose, revoke", "bob": "propose, approve, revoke, admit", "carol": "approve-containment, approve-secrets",
	})
	_, err := b.Approve(b.by["bob"], "bob", b.propose("alice", "waits"))
	b.must(err)
	b.Put(b.by["alice"], "db/x", "one")
	b.Put(b.by["alice"], "db/x", "two")
	_, err = b.Env.Move(context.Background(), b.by["alice"].Caller, control.MoveRequest{Secret: "db/x", Version: 1, To: state.Retired})
	b.must(err)
	return b
}

// later is the same after a while, with those persons logged in, or everybody.
func (b *board) later(d time.Duration, persons ...string) {
	b.T.Helper()
	b.Advance(d)
	for p := range b.by {
		if len(persons) == 0 || slices.Contains(persons, p) {
			b.by[p] = b.Login(p)
		}
	}
}

func (b *board) carryOut(person string, ch *state.Change) error {
	_, err := b.Env.CarryOut(context.Background(), b.by[person].Caller, ch.Index)
	return err
}

func (b *board) stateOf(ch *state.Change, want state.ChangeState) {
	b.T.Helper()
	now, _ := b.Env.State().Changes.Get(ch.Index)
	if st := now.StateAt(state.At(b.Now())); st != want {
		b.T.Fatalf("change %d is %s, want %s", ch.Index, st, want)
	}
}

// waiting is a change that has its approvals, and waits.
func (b *board) waiting() *state.Change {
	b.T.Helper()
	p, err := b.act("alice", control.ActionDestroy, "db/x#1")
	b.must(err)
	b.refused(b.carryOut("carol", p.Change), problem.ReasonConflict) // it has no approval
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	b.stateOf(p.Change, state.Waiting)
	return p.Change
}

// What can't be undone waits after its last approval, and is then carried out by who proposed it or may approve it.
func TestChangeWaits(t *testing.T) {
	for _, by := range []string{"alice", "bob", "carol"} {
		t.Run(by, func(t *testing.T) {
			b := waitingBoard(t)
			ch := b.waiting()
			if v := b.version("db/x", 1); v.State == state.Destroyed {
				t.Fatal("it did not wait")
			}
			_, err := b.Approve(b.by["bob"], "bob", ch)
			b.refused(err, problem.ReasonConflict) // it has all it needs
			b.refused(b.carryOut(by, ch), problem.ReasonWaiting)
			open, err := b.Env.ListChanges(context.Background(), b.by["bob"].Caller, control.ChangeFilter{Open: true})
			if err != nil || len(open) != 1 || open[0].Now != state.Waiting {
				t.Errorf("open are %v: %v", open, err)
			}
			if mine, err := b.Env.ListChanges(context.Background(), b.by["bob"].Caller, control.ChangeFilter{Mine: true}); err != nil || len(mine) != 0 {
				t.Errorf("bob is asked for %v: %v", mine, err)
			}
			b.later(23 * time.Hour)
			b.refused(b.carryOut(by, ch), problem.ReasonWaiting)
			b.later(time.Hour)
			b.must(b.carryOut(by, ch))
			b.stateOf(ch, state.Done)
			if v := b.version("db/x", 1); v.State != state.Destroyed {
				t.Errorf("the version is %s", v.State)
			}
			b.refused(b.carryOut(by, ch), problem.ReasonConflict)
			b.inForce(2)
		})
	}
}

// Who may carry out is who proposed or may approve, and the change of another bundle is none any more.
func TestWaitingIsOver(t *testing.T) {
	ctx := context.Background()
	t.Run("rejected", func(t *testing.T) {
		b := waitingBoard(t)
		ch := b.waiting()
		_, err := b.Env.Reject(ctx, b.by["bob"].Caller, ch.Index, "not so fast")
		b.must(err)
		b.later(25 * time.Hour)
		b.refused(b.carryOut("alice", ch), problem.ReasonConflict)
		b.inForce(2)
	})
	t.Run("withdrawn", func(t *testing.T) {
		b := waitingBoard(t)
		ch := b.waiting()
		_, err := b.Env.Reject(ctx, b.by["alice"].Caller, ch.Index, "I was wrong")
		b.must(err)
		b.stateOf(ch, state.Rejected)
		b.inForce(2)
	})
	t.Run("another bundle", func(t *testing.T) {
		b := waitingBoard(t)
		ch := b.waiting()
		_, err := b.Approve(b.by["bob"], "bob", b.propose("alice", "another"))
		b.must(err)
		b.later(25 * time.Hour)
		b.refused(b.carryOut("alice", ch), problem.ReasonConflict)
		b.inForce(3)
	})
	t.Run("nobody carried it out", func(t *testing.T) {
		b := waitingBoard(t)
		ch := b.waiting()
		b.later(8*24*time.Hour + time.Minute)
		b.stateOf(ch, state.Expired)
		b.refused(b.carryOut("alice", ch), problem.ReasonConflict)
		_, err := b.Env.Reject(ctx, b.by["bob"].Caller, ch.Index, "it is over")
		b.refused(err, problem.ReasonConflict)
		b.inForce(2)
	})
	t.Run("longer than changes are open", func(t *testing.T) {
		b := waitingBoard(t)
		ch := b.waiting()
		b.later(7*24*time.Hour + 23*time.Hour) // proposals in these tests are open for an hour
		b.must(b.carryOut("carol", ch))
		b.inForce(2)
	})
	t.Run("not by everybody", func(t *testing.T) {
		b := waitingBoard(t)
		ch := b.waiting()
		b.later(25 * time.Hour)
		node := b.Node(b.by["bob"], "n")
		_, err := b.Env.CarryOut(ctx, node.Caller, ch.Index)
		b.refused(err, problem.ReasonDuty)
		b.refused(b.carryOut("alice", &state.Change{Index: 1 << 40}), problem.ReasonDuty)
		b.refused(b.carryOut("bob", &state.Change{Index: 1 << 40}), problem.ReasonNotFound)
	})
}

// An approval that is revoked meanwhile does not count, and the wait begins anew with the one that takes its place.
func TestWaitingDerivesFromItsApprovers(t *testing.T) {
	b := waitingBoard(t)
	p, err := b.act("alice", control.ActionDestroy, "db/x#1")
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	b.later(30 * time.Minute)
	b.revoke("bob", "identity:/human/carol")
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.must(err)
	b.later(23*time.Hour+45*time.Minute, "alice") // a day after the first one
	b.refused(b.carryOut("alice", p.Change), problem.ReasonWaiting)
	_, err = b.Env.Revoke(context.Background(), b.by["alice"].Caller, control.RevokeRequest{Scope: b.key("bob"), Reason: "test", Hold: new(bool)})
	b.must(err)
	b.later(time.Hour, "alice")
	b.refused(b.carryOut("alice", p.Change), problem.ReasonQuorum)
	b.inForce(2)
}

func (b *board) version(path string, n uint64) *state.Version {
	b.T.Helper()
	sec, ok := b.Env.State().Secrets.Get(path)
	if !ok {
		b.T.Fatalf("there is no %s", path)
	}
	return sec.Find(n)
}
