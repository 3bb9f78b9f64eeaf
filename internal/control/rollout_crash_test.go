package control_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// mortal is a store whose process is killed at a batch: just before it is durable, or just after.
type mortal struct {
	store.Store
	left  *atomic.Int64
	after bool
}

func (s mortal) Append(ctx context.Context, b *store.Batch) error {
	switch left := s.left.Add(-1); {
	case left > 0:
		return s.Store.Append(ctx, b)
	case left == 0 && s.after:
		return errors.Join(s.Store.Append(ctx, b), store.ErrUnknown)
	}
	return store.ErrUnknown
}

// mortals is a rollout whose server may die at any batch.
type mortals struct {
	*staged
	left atomic.Int64
	gone time.Duration
}

// reopen is a restart, some time later. It fails if the server died, then or before.
func (m *mortals) reopen(later time.Duration) error {
	if err := m.Env.Close(context.Background()); err != nil {
		return err
	}
	m.gone += later
	env, err := control.Open(context.Background(), m.Config)
	if err == nil {
		m.Env = env
	}
	return err
}

// play is a change that goes through its rollout, is watched, and taken back by a trigger, as far as the server lives.
func (m *mortals) play(files policy.Files) error {
	ctx := context.Background()
	p, err := m.Propose(m.by["alice"], "alice", files)
	if err != nil {
		return err
	}
	if _, err = m.Approve(m.by["bob"], "bob", p.Change); err != nil {
		return err
	}
	for range 3 {
		if err := m.reopen(11 * time.Minute); err != nil {
			return err
		}
		if err := m.Env.Advance(ctx); err != nil {
			return err
		}
	}
	for _, n := range m.nodes[:2] {
		_, _, _ = m.Get(n, "db/password") // is refused
	}
	return m.Env.Advance(ctx)
}

// Wherever a rollout is interrupted, before or after a batch is durable, what is there is whole: the server opens it, the checks and a replay
// agree with it, and it comes to the same end.
func TestRolloutSurvivesEveryCrash(t *testing.T) {
	for _, after := range []bool{false, true} {
		ended := false
		for at := int64(1); !ended; at++ {
			t.Run(fmt.Sprintf("after=%t at=%d", after, at), func(t *testing.T) {
				m := &mortals{}
				m.left.Store(1 << 40)
				m.staged = newStagedOf(t, controltest.Options{Wrap: func(s store.Store) store.Store { return mortal{s, &m.left, after} }}, stagedRollout, 2)
				now := m.Config.Now
				m.Config.Now = func() time.Time { return now().Add(m.gone) }
				m.must(m.reopen(0))
				files := m.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 7) })
				m.left.Store(at)
				err := m.play(files)
				_ = m.Env.Close(context.Background()) // as far as it can
				ended = err == nil && m.left.Load() > 0
				m.left.Store(1 << 40)
				if m.Env, err = control.Open(context.Background(), m.Config); err != nil {
					m.Env = nil
					t.Fatal(err)
				}
				m.consistent()
				for range 4 {
					m.must(m.reopen(11 * time.Minute))
					m.must(m.Env.Advance(context.Background()))
					m.consistent()
				}
				m.settled(ended)
			})
		}
	}
}

// settled checks that nothing is half done.
func (m *mortals) settled(whole bool) {
	m.T.Helper()
	s, newest := m.Env.State(), (*state.Change)(nil)
	s.Changes.All(func(_ uint64, ch *state.Change) bool {
		if newest == nil || ch.Index > newest.Index {
			newest = ch
		}
		return true
	})
	switch newest.State {
	case state.InForce:
		if s.Bundle != newest.Manifest || whole {
			m.T.Errorf("change %d is in force, and bundle %s is", newest.Index, s.Bundle)
		}
	case state.RolledBack:
		if s.Bundle != newest.Rollback {
			m.T.Errorf("change %d is rolled back, and bundle %s is in force", newest.Index, s.Bundle)
		}
	case state.Proposed:
	default:
		m.T.Errorf("change %d is %s for ever", newest.Index, newest.State)
	}
	if s.Staged() != nil {
		m.T.Errorf("%+v is still on its way", s.Staged())
	}
}
