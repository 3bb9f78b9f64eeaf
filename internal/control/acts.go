package control

import (
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
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
	if p.text.Action == ActionDelete {
		if err := actAlone(p.text); err != nil {
			return err
		}
		return t.deletable(p.text.Target)
	}
	if p.text.Action == ActionMove {
		if err := actAlone(p.text); err != nil {
			return err
		}
		return t.movable(p.text.Target)
	}
	if p.text.Action == ActionDestroy {
		if err := actAlone(p.text); err != nil {
			return err
		}
		return t.destroyable(x, p.text.Target)
	}
	if p.text.Action == ActionGlass {
		if err := actAlone(p.text); err != nil {
			return err
		}
		return t.glassProposable(x, p)
	}
	if p.text.Action == ActionExport {
		if err := actAlone(p.text); err != nil {
			return err
		}
		return t.exportProposable(x, p)
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

// destroyable says why a change can't be about destroying a version, as PATH#VERSION. Who proposes it must be permitted to.
func (t *turn) destroyable(x *state.Session, target string) error {
	path, number, ok := state.ParseHoldTarget(target)
	if !ok {
		return problem.New(problem.ReasonInvalid, "the target %s is not SECRET#VERSION", limitText(target))
	}
	if _, err := t.permit(x, policy.DestroySecret, path, ""); err != nil {
		return err
	}
	_, _, err := t.destructible(path, number)
	return err
}

// destructible is the version, and the state that it is in.
func (t *turn) destructible(path string, number uint64) (*state.Version, state.VersionState, error) {
	sec, ok := t.s.Secrets.Get(path)
	if !ok {
		return nil, "", problem.New(problem.ReasonNotFound, "there is no secret %s", path)
	}
	v := sec.Find(number)
	if v == nil {
		return nil, "", problem.New(problem.ReasonNotFound, "%s has no version %d", path, number)
	}
	from := v.StateAt(t.now)
	return v, from, state.CheckMove(from, state.Destroyed)
}

// destroy carries out an approved change.
func (t *turn) destroy(ch *state.Change, x *state.Session) error {
	path, number, _ := state.ParseHoldTarget(ch.Target)
	v, from, err := t.destructible(path, number)
	if err != nil {
		return err
	}
	t.draft.Shred = append(t.draft.Shred, v.Sealed)
	_, err = t.enter(&state.SecretMoved{
		Secret: path, Version: number, From: from, To: state.Destroyed, Reason: limitText(ch.Reason), Change: ch.Index, Actor: actorOf(x), Ruling: t.ruling(""),
	})
	return err
}
