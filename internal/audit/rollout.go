package audit

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// broughtIntoForce checks what is behind a bundle in force: an approved change, its rollout, or the rollback that its approval
// pre-authorised.
func (r *run) broughtIntoForce(at state.Millis, ev *state.BundleInForce) error {
	c, ok := r.state.Changes.Get(ev.Change)
	if !ok {
		return fmt.Errorf("change %d is not an approved bundle about this", ev.Change)
	}
	switch ev.How {
	case state.ByChange:
		if c.Rollout != "" {
			return fmt.Errorf("change %d goes by the rollout %s, and was brought into force at once", c.Index, c.Rollout)
		}
		return r.completed(at, ev.Change, "bundle", func(c *state.Change) bool { return c.Manifest == ev.Manifest })
	case state.ByRollout: // the reducer has checked that its last step is over, and that its approvals count
		staged := r.state.Staged()
		if staged == nil {
			return errors.New("nothing is being rolled out")
		}
		want := state.Millis(0)
		if staged.Plan.Watch > 0 {
			want = at + state.Millis(staged.Plan.Watch)*1000
		}
		if ev.Watch != want {
			return fmt.Errorf("its triggers watch until %s, not %s", want, ev.Watch)
		}
		return nil
	}
	return r.takenBack(at, ev.Cause, ev.Change)
}

// rolled checks a step: by the plan that the bundle in force has for it.
func (r *run) rolled(at state.Millis, ev *state.RolloutMoved) error {
	plan := ev.Plan
	if ev.Step == 0 {
		err := r.completed(at, ev.Change, "bundle", func(c *state.Change) bool { return c.Manifest == ev.Manifest && c.Rollout != "" })
		if err != nil {
			return err
		}
		c, _ := r.state.Changes.Get(ev.Change)
		prog, err := r.bundles.program(r.state.Bundle)
		if err != nil {
			return err
		}
		if prog != nil {
			if want, ok := prog.Rollout(c.Rollout); !ok || plan == nil || !reflect.DeepEqual(state.PlanOf(want), *plan) {
				return fmt.Errorf("the bundle in force has no such rollout %q", c.Rollout)
			}
		}
	} else if staged := r.state.Staged(); staged != nil {
		plan = &staged.Plan
	}
	if plan == nil || ev.Step < 0 || ev.Step >= len(plan.Steps) {
		return fmt.Errorf("the rollout has no step %d", ev.Step)
	}
	if want := at + state.Millis(plan.Steps[ev.Step].For)*1000; ev.Until != want {
		return fmt.Errorf("the step is over at %s, not %s", want, ev.Until)
	}
	return nil
}

// overtaking checks that what ended a rollout for another bundle is followed by it. Both are of one commit.
func (r *run) overtaking(ev state.Event) error {
	in, ok := ev.(*state.BundleInForce)
	if r.overtaken && (!ok || in.How == state.ByRollout) {
		return errors.New("a rollout was ended for another bundle, and none comes into force")
	}
	ended, ok := ev.(*state.RolloutEnded)
	r.overtaken = ok && ended.Cause.By == state.BySupersede
	return nil
}

// takenBack checks the cause of a rollback: what a trigger saw follows from the entries before it. Who did it, if a person did, is
// checked with all that persons do.
func (r *run) takenBack(at state.Millis, why *state.Cause, change uint64) error {
	if why == nil {
		return errors.New("it is rolled back without a cause")
	}
	due, figure := r.state.RolloutDue(at)
	watched := r.state.Rollout(at)
	switch why.By {
	case state.ByTrigger:
		if due != state.RollbackDue || watched.Change != change || !reflect.DeepEqual(figure, why.Figure) {
			return errors.New("no trigger asks for this rollback")
		}
	case state.ByRevocation:
		if due != state.RevokedDue || watched.Change != change {
			return errors.New("what the change rests on was not revoked")
		}
	case state.ByPerson:
		if why.Actor == nil || why.Ruling == nil {
			return errors.New("nobody rolled it back")
		}
	case state.BySupersede: // the other one comes with the next entry
		if r.state.Staged() == nil {
			return errors.New("what is in force is not rolled back for another bundle")
		}
	default:
		return fmt.Errorf("nothing is rolled back by %.40q", why.By)
	}
	return nil
}

// rehearsed computes what a proposed change can be rolled back to, as its proposer and approvers did who signed its digest.
func (r *run) rehearsed(ev *state.ChangeProposed, was *policy.Program, m *policy.Manifest) error {
	if ev.Version < 2 {
		return nil
	}
	base, err := r.bundles.manifest(ev.Base)
	if err != nil || base == nil || was == nil {
		return err
	}
	before, err := base.Fetch(r.bundles.get)
	if err != nil {
		return documentProblem(err, "bundle "+ev.Base.String())
	}
	changed, err := m.Fetch(r.bundles.get)
	if errors.Is(err, store.ErrNotFound) && r.bundles.partial {
		r.bundles.miss(ev.Manifest) // it was never in force
		return nil
	}
	if err != nil {
		return documentProblem(err, "bundle "+ev.Manifest.String())
	}
	b, err := policy.Load(changed)
	if err != nil {
		return fmt.Errorf("bundle %s: %w", ev.Manifest, err)
	}
	is, err := policy.CompileAccepted(b)
	if err != nil {
		return fmt.Errorf("bundle %s: %w", ev.Manifest, err)
	}
	rollback, _, err := policy.RollbackOf(m, before, changed, was.Environment(), is.Environment(), ev.Containment)
	if err != nil {
		return err
	}
	var want state.Digest
	if rollback != nil {
		want = state.Digest(rollback.Digest())
	}
	if want != ev.Rollback {
		return fmt.Errorf("it pre-authorises a rollback to %s, and what it says comes to %s", ev.Rollback, want)
	}
	return nil
}
