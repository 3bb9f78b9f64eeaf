package control

import (
	"context"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// DeliverUnrecorded counts a value as handed out that no entry stands for: a planted defect.
func (e *Environment) DeliverUnrecorded() { e.checks.delivered.Add(1) }

// Coverage is what a revocation covers.
type Coverage struct {
	Identities int
	Horizon    state.Millis
	Rotate     []string
}

// DecideTwice surveys a state and adds what came until the head, twice, as when a batch is decided again.
func DecideTwice(before, head *state.State, scope state.Scope, now state.Millis) (first, second Coverage) {
	seen := newCovered()
	survey(before, scope, now, 0, seen)
	t := &turn{s: head, now: now}
	a, b := t.surveyed(scope, seen), t.surveyed(scope, seen)
	return Coverage{a.identities, a.horizon, a.rotate}, Coverage{b.identities, b.horizon, b.rotate}
}

// ForgetPrograms empties the cache of compiled bundles, as many proposals at the moment of a change may.
func (e *Environment) ForgetPrograms() {
	e.programs.mu.Lock()
	defer e.programs.mu.Unlock()
	e.programs.m = nil
}

// DecideRoom says whether there is room for a proposal.
func DecideRoom(s *state.State, now state.Millis, proposer, action string) error {
	t := &turn{s: s, now: now}
	return t.room(proposer, action)
}

// DecideProvisional says whether a person may set a provisional hold.
func (e *Environment) DecideProvisional(s *state.State, now state.Millis, person, scope string) error {
	t := &turn{e: e, s: s, now: now, prog: e.Program()}
	if p := t.provisional(person, scope); p != nil {
		return p
	}
	return nil
}

// TendTokens makes the keys of tokens that are due, as the loop does.
func (e *Environment) TendTokens(ctx context.Context) error { return e.tendTokens(ctx, false) }

// Forget makes a bundle one that can't be compiled.
func (e *Environment) Forget(manifest state.Digest) {
	e.programs.put(manifest, nil, bundlesOf(e.log.State()))
}

// ApproveUnweighed decides about an approval that was prepared before its change was there.
func (e *Environment) ApproveUnweighed(c Caller, person string, r ApproveRequest) error {
	text, err := ceremony.ParseChange(r.Text)
	if err != nil {
		return err
	}
	a := approval{text: text, sig: state.Signature{Person: person, SSHSIG: r.SSHSIG}}
	return e.undone(func(t *turn) error {
		_, err := t.approve(c, r, a)
		return err
	})
}

// RollBackUnweighed decides about a rollback that was prepared before its change was in force.
func (e *Environment) RollBackUnweighed(c Caller, r RollbackRequest) error {
	return e.undone(func(t *turn) error {
		_, err := t.rollBack(c, r, takingBack{})
		return err
	})
}

// undone decides at the head, and enters nothing.
func (e *Environment) undone(decide func(*turn) error) error {
	out, _, err := ledger.Commit(e.run, e.log, func(s *state.State, at ledger.At) (ledger.Draft, error, error) {
		prog, _ := e.programs.get(s.Bundle)
		return ledger.Draft{}, decide(&turn{e: e, s: s, at: at, now: state.At(at.Time), prog: prog}), nil
	})
	if err != nil {
		return err
	}
	return out
}

// ErrStale is the answer that has the door prepare again.
var ErrStale = errStale

// Observe enters all that a rollout has observed so far.
func (e *Environment) Observe(ctx context.Context) error { return e.observe(ctx, 1<<62) }

// OpenCurrent opens the current version of a secret, for nobody.
func (e *Environment) OpenCurrent(path string) (seal.Secret, error) {
	sec, ok := e.log.State().Secrets.Get(path)
	if !ok {
		return seal.Secret{}, problem.New(problem.ReasonNotFound, "there is no %s", path)
	}
	return e.exported(e.run, path, sec.Find(sec.Current))
}
