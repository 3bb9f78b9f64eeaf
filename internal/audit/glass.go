package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
)

func (r *run) actOfGlass(ev state.Event) act {
	switch ev := ev.(type) {
	case *state.GlassOpened:
		if ev.Change != 0 {
			return act{&ev.Actor, &ev.Ruling, r.dutyOver(ev.Change)} // carried out by its last approver
		}
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.GlassClosed:
		if g, ok := r.state.Glass.Get(ev.Opening); ok && g.Identity == ev.Actor.Identity {
			return act{&ev.Actor, &ev.Ruling, ""} // closing one's own
		}
		return act{&ev.Actor, &ev.Ruling, policy.DutyRevoke}
	case *state.GlassReviewed:
		return act{&ev.Actor, &ev.Ruling, policy.DutyAudit}
	}
	return act{}
}

// glassOpened checks that the bundle in force has the grant, for this person and so long, and that the budget had room or others approved.
// That an earlier opening was reviewed the reducer checks.
func (r *run) glassOpened(at state.Millis, ev *state.GlassOpened) error {
	if ev.Change != 0 {
		minutes := uint64((ev.Until - at) / state.Millis(time.Minute/time.Millisecond))
		if err := r.completed(at, ev.Change, policy.ActGlass, func(c *state.Change) bool {
			return c.Target == state.GlassTarget(ev.Grant, ev.Incident, minutes) && c.Proposer == ev.Identity
		}); err != nil {
			return err
		}
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	g, ok := prog.Glass(ev.Grant)
	switch {
	case !ok:
		return fmt.Errorf("the bundle in force has no break-glass grant %.80q", ev.Grant)
	case !slices.ContainsFunc(g.Identities, func(p identity.Pattern) bool { return p.Match(ev.Identity) }):
		return fmt.Errorf("the grant %s is not for %s", ev.Grant, ev.Identity)
	case ev.Change != 0:
		return nil
	case ev.Until > at.Add(g.Glass):
		return fmt.Errorf("it is open until %s, and the bundle allows %s", ev.Until, g.Glass)
	}
	if _, ok := prog.Operator(strings.TrimPrefix(ev.Identity, identity.PrefixHuman)); !ok {
		return fmt.Errorf("%s was not an operator", ev.Identity)
	}
	if q, budget := r.state.Quarter(at), prog.Environment().BreakGlass.Openings; q.Openings >= budget {
		return fmt.Errorf("%d of %d openings of %s were used, and nobody approved this one", q.Openings, budget, q.Name)
	}
	return nil
}

// glassReviewed checks who signed a review of an opening. That its text says what came of the opening the reducer checks.
func (r *run) glassReviewed(ev *state.GlassReviewed) error {
	person, _ := strings.CutPrefix(ev.Actor.Identity, identity.PrefixHuman) // that it is one was checked
	text, err := ceremony.ParseGlassReview(ev.Text)
	if err != nil {
		return err
	}
	if text.Scope != r.scope() || text.Person != person || ev.Signature.Person != person {
		return errNotTheirs
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	return r.signed(prog, policy.DutyAudit, ev.Signature, sshsig.NamespaceChange, []byte(ev.Text))
}

// glassAlarmed checks the share that is called alarming. The figures the reducer checks.
func (r *run) glassAlarmed(ev *state.GlassAlarmed) error {
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	if most := prog.Environment().BreakGlass.Alarm; ev.Percent != most {
		return fmt.Errorf("the alarm is raised at %d percent, and the bundle in force says %d", ev.Percent, most)
	}
	return nil
}
