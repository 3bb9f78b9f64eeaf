package control

import (
	"context"
	"errors"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// carried is what was made ready for a change before it is decided on, if its act needs that: keys wrapped again, or a sealed file.
type carried struct {
	move   *moved
	export *exporting
}

func (c *carried) wipe() {
	if c != nil && c.export != nil {
		c.export.wipe()
	}
}

// CarryOut does what a change says that had its approvals and has waited since, as what can't be undone does. No one person brings it
// about, and none has to be trusted to: whoever proposed it, or may approve such acts, asks for it. The server doesn't do it by itself,
// since what can't be undone is better not done than done while nobody looks. An export only its proposer asks for, and gets the file: it is
// sealed first, then decided and entered, and only then does it leave this function; a second time there is nothing to be had.
func (e *Environment) CarryOut(ctx context.Context, c Caller, change uint64) (*Proposal, error) {
	var held *carried
	defer func() { held.wipe() }()
	move := &moving{e: e, change: change}
	defer move.end()
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*carried, error) {
			held.wipe() // of an attempt that came to nothing
			held = &carried{}
			if _, dead := standing(s, c, state.At(e.cfg.Now())); dead != nil {
				return held, nil // nothing is asked of a root holder, and nothing opened, for nobody
			}
			var err error
			held.move, err = move.prepare(ctx, s, func(t *turn) error {
				_, err := t.ripe(c, change, nil)
				return err
			})
			if err == nil {
				err = e.prepareExport(ctx, s, c, change, held)
			}
			return held, err
		},
		func(t *turn, p *carried) (*Proposal, error) {
			t.custody = p.move
			return t.ripe(c, change, p.export)
		})
	if err != nil {
		return nil, err
	}
	if out.Proof = proof; out.File != nil {
		if err := e.deliver(out, held.export); err != nil {
			return nil, err
		}
	}
	out.Change, _ = e.log.State().Changes.Get(change)
	return out, nil
}

func (t *turn) ripe(c Caller, change uint64, p *exporting) (*Proposal, error) {
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
	if ch.Action == ActionExport && ch.Proposer != x.Identity {
		return nil, refuse(problem.New(problem.ReasonSeparation, "change %d exports to %s, who proposed it and fetches it", ch.Index, ch.Proposer))
	}
	if p := t.unripe(ch); p != nil {
		return nil, refuse(p)
	}
	out := &Proposal{Index: t.at.Index + uint64(len(t.draft.Records))}
	if ch.Action == ActionExport {
		err = t.export(ch, x, p, out)
	} else {
		err = t.carryOut(ch, x, out)
	}
	switch {
	case errors.Is(err, errStale), err == nil, t.custody != nil && t.custody.bad != nil: // a root holder's failure is nobody's denial
		return out, err
	default:
		return nil, refuse(problem.As(err))
	}
}

// unripe says why a change can't be carried out now.
func (t *turn) unripe(ch *state.Change) *problem.Problem {
	switch st := ch.StateAt(t.now); {
	case st == state.Done && ch.Action == ActionExport:
		return problem.New(problem.ReasonConflict, "the export of change %d was fetched, and is not given twice", ch.Index).WithFix("propose it again")
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
