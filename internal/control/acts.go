package control

import (
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// checkAct refuses an act that makes no sense at the head.
func (t *turn) checkAct(p *proposal, x *state.Session) error {
	switch p.text.Action {
	case ActionBundle:
		if p.manifest == nil || p.rollout == nil || p.text.Target != "" {
			return problem.New(problem.ReasonInvalid, "a bundle is proposed by its manifest")
		}
		if t.s.Bundle == state.Digest(p.manifest.Digest()) {
			return problem.New(problem.ReasonAlreadyInForce, "this bundle is in force")
		}
		return nil
	case ActionLiftHold, ActionConfirmCut:
		if err := actAlone(p.text); err != nil {
			return err
		}
		_, err := t.holdOf(p.text.Target)
		return err
	case ActionForget, ActionEnd:
		if err := actAlone(p.text); err != nil {
			return err
		}
		if p.text.Action == ActionForget {
			return t.usedBefore(p.text.Target)
		}
		_, err := t.endable(p.text.Target)
		return err
	}
	if p.text.Action == ActionDestroy {
		if err := actAlone(p.text); err != nil {
			return err
		}
		return t.destroyable(x, p.text.Target)
	}
	return problem.New(problem.ReasonInvalid, "there is no action %q", limitText(p.text.Action))
}

// actAlone checks that an act which is not a bundle names none.
func actAlone(text ceremony.Change) error {
	if text.New != "" || text.Rollout != "" || text.Rollback != "" || len(text.Containment) > 0 {
		return problem.New(problem.ReasonInvalid, "%s takes a target and no manifest", text.Action)
	}
	return nil
}

// without is a refusal as it is entered and told: with its way out, without its cause.
func without(err error) *problem.Problem {
	p := *problem.As(err)
	p.Err = nil
	return &p
}

// holdOf is the hold that a change is about: that one, and no other on the same scope.
func (t *turn) holdOf(target string) (*state.Hold, error) {
	scope, index, ok := state.ParseHoldTarget(target)
	if !ok {
		return nil, problem.New(problem.ReasonInvalid, "the target %s is not SCOPE#ENTRY, a hold's scope and the entry that set it", limitText(target))
	}
	h, ok := t.s.Holds.Get(scope)
	switch {
	case !ok || (h.Until != 0 && t.now >= h.Until):
		return nil, problem.New(problem.ReasonNotFound, "there is no hold on %s", limitText(scope))
	case h.Index != index:
		return nil, problem.New(problem.ReasonConflict, "the hold on %s was set by entry %d, not %d", limitText(scope), h.Index, index)
	}
	return h, nil
}
