package control

import (
	"context"
	"errors"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// CarryOut does what a change says that had its approvals and has waited since, as what can't be undone does. No one person brings it
// about, and none has to be trusted to: whoever proposed it, or may approve such acts, asks for it. The server doesn't do it by itself,
// since what can't be undone is better not done than done while nobody looks.
func (e *Environment) CarryOut(ctx context.Context, c Caller, change uint64) (*Proposal, error) {
	if ch, ok := e.log.State().Changes.Get(change); ok && ch.Action == ActionMove {
		e.keyMu.Lock() // no key comes while all of them are wrapped
		defer e.keyMu.Unlock()
	}
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*moved, error) {
			if _, dead := standing(s, c, state.At(e.cfg.Now())); dead != nil {
				return nil, nil // nothing is asked of a root holder for nobody
			}
			return e.prepareMove(ctx, s, change)
		},
		func(t *turn, m *moved) (*Proposal, error) {
			t.custody = m
			return t.ripe(c, change)
		})
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	out.Change, _ = e.log.State().Changes.Get(change)
	return out, nil
}

func (t *turn) ripe(c Caller, change uint64) (*Proposal, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	ch, ok := t.s.Changes.Get(change)
	d := dutyOver(ch)
	if ok && ch.Proposer == x.Identity {
		d = policy.DutyPropose
	}
	if _, err := t.duty(x, d); err != nil { // first: which changes there are is not for everybody
		return nil, err
	}
	refuse := func(p *problem.Problem) error {
		return &denied{problem: without(p), action: "change.carry-out", session: x}
	}
	if !ok {
		return nil, refuse(problem.New(problem.ReasonNotFound, "there is no change %d", change))
	}
	if p := t.unripe(ch); p != nil {
		return nil, refuse(p)
	}
	out := &Proposal{Index: t.at.Index + uint64(len(t.draft.Records))}
	switch err := t.carryOut(ch, x, out); {
	case errors.Is(err, errStale), err == nil, t.custody != nil && t.custody.bad != nil: // a root holder's failure is nobody's denial
		return out, err
	default:
		return nil, refuse(problem.As(err))
	}
}

// unripe says why a change can't be carried out now.
func (t *turn) unripe(ch *state.Change) *problem.Problem {
	switch st := ch.StateAt(t.now); {
	case st != state.Waiting:
		return problem.New(problem.ReasonConflict, "change %d is %s: what waits can be carried out", ch.Index, st)
	case ch.Base != t.s.Bundle:
		return problem.New(problem.ReasonConflict, "change %d was made for bundle %s, which is no longer in force", ch.Index, ch.Base).
			WithFix("propose it again")
	case t.now < ch.Due():
		return problem.New(problem.ReasonWaiting, "change %d waits until %s", ch.Index, ch.Due())
	}
	for _, x := range ch.Proposal() {
		if _, p := checkRevoked(t.s, x, t.now); p != nil {
			return problem.New(p.Reason, "what %s proposed no longer counts: %s", ch.Proposer, p.Message)
		}
	}
	if n := t.s.Counts(ch, t.now); n < ch.Required {
		return problem.New(problem.ReasonQuorum, "of the approvals of change %d only %d count, and it takes %d", ch.Index, n, ch.Required)
	}
	return nil
}
