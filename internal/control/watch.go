package control

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// watchers wakes those who wait for news. Only entries that agents must hear of wake anybody, so
// ordinary load costs nothing here.
type watchers struct {
	mu      sync.Mutex
	control uint64
	wake    chan struct{}
	closed  bool
}

func (w *watchers) tell(control uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if control == w.control {
		return
	}
	w.control = control
	if w.wake != nil {
		close(w.wake)
		w.wake = nil
	}
}

func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.wake != nil {
		close(w.wake)
		w.wake = nil
	}
}

// wait returns when there is news after `since`, or an error when there never will be.
func (w *watchers) wait(ctx context.Context, since uint64) error {
	for {
		w.mu.Lock()
		if w.closed {
			w.mu.Unlock()
			return problem.New(problem.ReasonStopping, "the server is stopping")
		}
		if w.control > since {
			w.mu.Unlock()
			return nil
		}
		if w.wake == nil {
			w.wake = make(chan struct{})
		}
		wake := w.wake
		w.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// News is what a connected agent is told.
type News struct {
	Control    uint64
	Generation uint64
	// Dead is why the watcher's own session gives it nothing now: it was cut off or is held, or the bundle in force does not give its
	// identity to what it proved (another rule, a minimum version of agents).
	Dead    *problem.Problem
	CAChain [][]byte // when it changed, and the first time
	Scopes  []string // revocations since the last news that concern the watcher
}

// lookAgain is how long a watcher whose session is dead waits at most until it is judged anew: a hold may run out, which no entry says.
const lookAgain = 15 * time.Second

// Watch calls tell at once with the present, and then after every change that concerns agents, until the session is over, ctx ends, or
// tell fails. A session that is dead for ever ends it; one that may come back (a hold is lifted, a bundle is changed again) does not, so
// that its agent is told of that as soon as of the refusal.
func (e *Environment) Watch(ctx context.Context, c Caller, since uint64, tell func(News) error) error {
	var known []byte
	var last *News
	for {
		s := e.log.State()
		now := state.At(e.cfg.Now())
		x, err := liveSession(s, c, now)
		if err != nil {
			return err
		}
		n := News{Control: s.Control, Generation: s.Generation}
		if n.Dead, err = e.deadNow(s, x, now); err != nil {
			return err
		}
		for _, v := range revocations(s, now, func(scope state.Scope) bool { return concerns(scope, x) }) {
			if v.Cutoff > since || (v.Hold != nil && v.Hold.Index > since) {
				n.Scopes = append(n.Scopes, v.Scope)
			}
		}
		chain := e.CAChain()
		if newest := chain[len(chain)-1]; !bytes.Equal(newest, known) {
			known, n.CAChain = newest, chain
		}
		if last == nil || last.Control != n.Control || !sameReason(last.Dead, n.Dead) {
			if err := tell(n); err != nil {
				return err
			}
		}
		if n.Dead != nil && forEver(n.Dead) {
			return n.Dead
		}
		last, since = &n, s.Control
		if err := e.waitForNews(ctx, x, since, n.Dead != nil); err != nil {
			return err
		}
	}
}

// waitForNews returns nil when there is something to look at.
func (e *Environment) waitForNews(ctx context.Context, x *state.Session, since uint64, dead bool) error {
	end := x.Expires.Time()
	if dead {
		end = time.Now().Add(lookAgain)
	}
	waiting, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	err := e.watchers.wait(waiting, since)
	switch {
	case err == nil, waiting.Err() == nil || ctx.Err() != nil:
		return err
	case dead:
		return nil
	}
	return problem.New(problem.ReasonSessionExpired, "the session expired")
}

// deadNow says why a live session gives nothing now, or nil. The error is one of asking.
func (e *Environment) deadNow(s *state.State, x *state.Session, now state.Millis) (*problem.Problem, error) {
	if _, p := checkRevoked(s, state.SubjectOf(x), now); p != nil {
		return p, nil
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	return stands(s, governor{prog: prog, bundle: s.Bundle}, e.claims, x), nil
}

// forEver says whether nothing brings back a session that is dead for this.
func forEver(p *problem.Problem) bool {
	return p.Reason == problem.ReasonCutoff || p.Reason == problem.ReasonEnvironmentEnded || p.Reason == problem.ReasonDecommissioned
}

func sameReason(a, b *problem.Problem) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Reason == b.Reason)
}

// Snapshot commits to the reduced state and stores it, so that the next start replays only what came after.
func (e *Environment) Snapshot(ctx context.Context) error {
	e.snapshotMu.Lock()
	defer e.snapshotMu.Unlock()
	s := e.log.State()
	if s.Ended != 0 {
		return nil // nothing follows its last entry
	}
	packed, root, err := s.Pack()
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "writing the state")
	}
	ev := &state.StateRootSet{Index: s.Next - 1, Root: root}
	_, _, err = ledger.Commit(ctx, e.log, func(s *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
		t := &turn{e: e, s: s, at: at, now: state.At(at.Time)}
		if p := ended(s); p != nil {
			return ledger.Draft{}, struct{}{}, p
		}
		_, err := t.enter(ev)
		return t.draft, struct{}{}, err
	})
	if err != nil {
		return err
	}
	return e.log.SaveSnapshot(ctx, ev.Index, packed)
}
