package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// asked counts what is asked of a root holder.
type asked struct {
	keyring.Holder
	n *atomic.Int64
}

func (h asked) Wrap(ctx context.Context, c []byte, key seal.Secret) ([]byte, error) {
	h.n.Add(1)
	return h.Holder.Wrap(ctx, c, key)
}

func (h asked) Unwrap(ctx context.Context, c, wrapped []byte) (seal.Secret, error) {
	h.n.Add(1)
	return h.Holder.Unwrap(ctx, c, wrapped)
}

// watched is the root key beside, opened anew as one that counts.
func (b *board) watched() *atomic.Int64 {
	b.T.Helper()
	n := new(atomic.Int64)
	b.Config.Next = asked{b.Config.Next, n}
	b.Reopen()
	return n
}

// delayed is a bundle in which moving the keys waits for a day.
func delayed(t *testing.T) *board {
	t.Helper()
	b := newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: policy.Files{
		"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1, acts: [{act: custody.move, delay: 24h}]}\n", controltest.EnvName),
	}})
	b.Put(b.by["alice"], "db/x", "one")
	return b
}

// A root holder may be slow, far away and counted; nobody has it asked who could not have the keys moved with what it answers.
func TestRootHolderIsAskedForNobody(t *testing.T) {
	t.Run("approving", func(t *testing.T) {
		b, target := movable(t, 1)
		node := b.Node(b.by["alice"], "n")
		b.Files["operators.yaml"] = b.operators(map[string]string{"alice": "propose, approve, admit", "bob": "propose, approve", "carol": "propose"})
		_, err := b.Approve(b.by["bob"], "bob", b.propose("alice", "duties"))
		b.must(err)
		ch := b.moveTo(target)
		n := b.watched()
		b.refused(b.approve("alice", ch), problem.ReasonSeparation)
		b.refused(b.approve("carol", ch), problem.ReasonDuty)
		_, err = b.Approve(node, "bob", ch)
		b.refused(err, problem.ReasonDuty)
		_, err = b.Approve(b.by["bob"], "alice", ch)
		b.refused(err, problem.ReasonSignature)
		other := *ch
		other.Target += "0"
		text := b.Approval("bob", &other).Text()
		_, err = b.Env.Approve(context.Background(), b.by["bob"].Caller, control.ApproveRequest{Change: ch.Index, Text: text, SSHSIG: b.Sign("bob", ceremony.NamespaceChange, text)})
		b.refused(err, problem.ReasonSignature)
		other = *ch
		other.Action = control.ActionForget
		text = b.Approval("bob", &other).Text()
		_, err = b.Env.Approve(context.Background(), b.by["bob"].Caller, control.ApproveRequest{Change: ch.Index, Text: text, SSHSIG: b.Sign("bob", ceremony.NamespaceChange, text)})
		b.refused(err, problem.ReasonSignature)
		if got := n.Load(); got != 0 {
			t.Errorf("the root holder was asked %d times", got)
		}
		b.must(b.approve("bob", ch))
		if n.Load() == 0 {
			t.Error("the plant is none")
		}
	})
	t.Run("carrying out", func(t *testing.T) {
		b := delayed(t)
		target := b.Spare()
		n := b.watched()
		ch := b.moveTo(target, "bob")
		b.stateOf(ch, state.Waiting)
		b.refused(b.carryOut("alice", ch), problem.ReasonWaiting)
		b.later(24 * time.Hour)
		node := b.Node(b.by["alice"], "n")
		_, err := b.Env.CarryOut(context.Background(), node.Caller, ch.Index)
		b.refused(err, problem.ReasonDuty)
		if got := n.Load(); got != 0 {
			t.Errorf("the root holder was asked %d times", got)
		}
		b.must(b.carryOut("alice", ch))
		if n.Load() == 0 {
			t.Error("the plant is none")
		}
	})
}

// A key is made, and wrapped by the root holder, for whoever may rotate it, and his refusal is entered.
func TestKeysAreMadeForNobody(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	n := new(atomic.Int64)
	b.Config.Holder = asked{b.Config.Holder, n}
	b.Reopen()
	node := b.Node(b.by["alice"], "n")
	n.Store(0)
	next := b.Env.State().Next
	for _, kind := range []string{custody.KEK, custody.CA, custody.Checkpoint, custody.JWT} {
		_, _, err := b.Env.RotateKey(context.Background(), node.Caller, kind)
		b.refused(err, problem.ReasonDuty)
	}
	if n.Load() != 0 {
		t.Errorf("the root holder was asked %d times", n.Load())
	}
	if got := b.Env.State().Next - next; got != 4 {
		t.Errorf("%d refusals of 4 were entered", got)
	}
	_, _, err := b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK)
	b.must(err)
	if n.Load() == 0 {
		t.Error("the plant is none")
	}
}

// hanging does not answer until its context ends.
type hanging struct {
	keyring.Holder
	begun   chan struct{}
	bounded *atomic.Bool
}

func (h hanging) Wrap(ctx context.Context, _ []byte, _ seal.Secret) ([]byte, error) {
	_, some := ctx.Deadline()
	h.bounded.Store(some)
	h.begun <- struct{}{}
	<-ctx.Done()
	return nil, problem.Wrap(ctx.Err(), problem.ReasonStore, "planted")
}

// Nor does a root holder that hangs while a key is rotated under it hold up for ever that the keys are moved away from it.
func TestRotationUnderAHangingRootHolder(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	h := hanging{b.Config.Holder, make(chan struct{}), new(atomic.Bool)}
	b.Config.Holder = h
	b.Reopen()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, _, err := b.Env.RotateKey(ctx, b.by["alice"].Caller, custody.KEK)
		done <- err
	}()
	<-h.begun
	if !h.bounded.Load() {
		t.Error("a root holder has for ever to answer")
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a key was made without its root holder")
	}
}

// soon fails a test in which something hangs.
func soon(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

// A root holder that does not answer holds up who waits for it, for a bounded time, and nobody else: values are read and written, whoever
// rotates keys may give up, and the environment is closed.
func TestRootHolderThatHangs(t *testing.T) {
	b, target := movable(t, 1)
	ch := b.moveTo(target)
	h := hanging{b.Config.Next, make(chan struct{}), new(atomic.Bool)}
	b.Config.Next = h
	b.Reopen()
	api := b.Workload(b.Node(b.by["alice"], "n"), "")
	approve := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		text := b.Approval("bob", ch).Text()
		go func() {
			_, err := b.Env.Approve(ctx, b.by["bob"].Caller, control.ApproveRequest{Change: ch.Index, Text: text, SSHSIG: b.Sign("bob", ceremony.NamespaceChange, text)})
			done <- err
		}()
		<-h.begun
		return done
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := approve(ctx)
	if !h.bounded.Load() {
		t.Error("a root holder has for ever to answer")
	}
	b.must(soon(t, "reading", func() error { _, _, err := b.Get(api, "db/x"); return err }))
	b.must(soon(t, "writing", func() error { b.Put(b.by["alice"], "db/y", "two"); return nil }))
	b.refused(soon(t, "refusing", func() error { return b.approve("alice", ch) }), problem.ReasonSeparation)
	for what, do := range map[string]func(context.Context) error{
		"rotating": func(ctx context.Context) error {
			_, _, err := b.Env.RotateKey(ctx, b.by["alice"].Caller, custody.KEK)
			return err
		},
		"approving too": func(ctx context.Context) error {
			text := b.Approval("carol", ch).Text()
			_, err := b.Env.Approve(ctx, b.by["carol"].Caller, control.ApproveRequest{Change: ch.Index, Text: text, SSHSIG: b.Sign("carol", ceremony.NamespaceChange, text)})
			return err
		},
	} {
		limit, stop := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := soon(t, what, func() error { return do(limit) }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
		stop()
	}
	cancel()
	b.refused(<-done, problem.ReasonCanceled)
	_, _, err := b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK)
	b.must(err)

	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	done = approve(ctx)
	b.must(soon(t, "closing", func() error { return b.Env.Close(context.Background()) }))
	b.Env = nil
	cancel()
	if err := <-done; err == nil {
		t.Error("a move was carried out by a closed environment")
	}
	b.Config.Next = h.Holder
	b.Open()
	b.must(b.approve("bob", ch))
	b.works()
}

// Who rewraps and does not read what he is told can't keep the keys where they are.
func TestRewrapHoldsUpNoMove(t *testing.T) {
	b, target := movable(t, 1)
	ch := b.moveTo(target)
	reports, resume := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		first := true
		done <- b.Env.Rewrap(context.Background(), b.by["alice"].Caller, func(control.RewrapProgress) error {
			if first {
				first = false
				close(reports)
				<-resume
			}
			return nil
		})
	}()
	<-reports
	b.must(soon(t, "moving", func() error { return b.approve("bob", ch) }))
	close(resume)
	b.must(<-done)
	b.stateOf(ch, state.Done)
	b.Config.Holder, b.Config.Next = b.Config.Next, nil
	b.Reopen()
	b.works()
	b.consistent()
}

// A root holder whose answer it can't undo is found out by whoever asks it for a new key, before anything is under it.
func TestRotationUnderABadRootHolder(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.Put(b.by["alice"], "db/x", "one")
	good := b.Config.Holder
	bad := &garbling{Holder: good}
	b.Config.Holder = bad
	b.Reopen()
	bad.garbles = true
	_, _, err := b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK)
	b.refused(err, problem.ReasonTampered)
	if n := b.Env.State().KEKs(); n != 1 {
		t.Errorf("there are %d key-encryption keys", n)
	}
	bad.garbles = false
	b.Reopen()
	b.works()
}

// garbling wraps something else than it was given, if it does.
type garbling struct {
	keyring.Holder
	garbles bool
}

func (h *garbling) Wrap(ctx context.Context, c []byte, key seal.Secret) ([]byte, error) {
	if h.garbles {
		key = seal.NewSecret(bytes.Repeat([]byte{7}, seal.KeySize))
	}
	return h.Holder.Wrap(ctx, c, key)
}

// stalling hangs once it has unwrapped as often as it may.
type stalling struct {
	keyring.Holder
	left  *atomic.Int64
	begun chan struct{}
}

func (h stalling) Unwrap(ctx context.Context, c, wrapped []byte) (seal.Secret, error) {
	if h.left.Add(-1) < 0 {
		select {
		case h.begun <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return seal.Secret{}, problem.Wrap(ctx.Err(), problem.ReasonStore, "planted")
	}
	return h.Holder.Unwrap(ctx, c, wrapped)
}

// A key that is entered and can't be loaded, since the root holder hangs, does not keep the environment from closing.
func TestClosingWhileKeysLoad(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	good := b.Config.Holder
	h := stalling{good, new(atomic.Int64), make(chan struct{}, 1)}
	h.left.Store(1) // of the start
	b.Config.Holder = h
	b.Reopen()
	h.left.Store(1) // of what is made
	done := make(chan error, 1)
	go func() {
		_, _, err := b.Env.RotateKey(context.Background(), b.by["alice"].Caller, custody.KEK)
		done <- err
	}()
	<-h.begun
	b.must(soon(t, "closing", func() error { return b.Env.Close(context.Background()) }))
	b.Env = nil
	if err := <-done; err == nil {
		t.Error("a key is used that was not loaded")
	}
	b.Config.Holder = good
	b.Open()
	if n := b.Env.State().KEKs(); n != 2 {
		t.Errorf("there are %d", n)
	}
}
