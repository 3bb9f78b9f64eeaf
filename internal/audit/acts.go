package audit

import (
	"fmt"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// act is what an entry says of who did it, by which bundle, and which duty that takes.
type act struct {
	actor  *state.Actor  // nil: the environment does it by itself, or because of an approved change
	ruling *state.Ruling // nil: nothing was decided
	duty   policy.Duty   // of a person; empty: a grant, or nothing, is needed
}

// actOf has a case for each type that has an actor or a ruling; a test compares it with the types.
func (r *run) actOf(ev state.Event) act {
	switch ev := ev.(type) {
	case *state.ChangeProposed:
		return act{&ev.Actor, &ev.Ruling, policy.DutyPropose}
	case *state.ChangeApproved:
		return act{&ev.Actor, &ev.Ruling, r.dutyOver(ev.Change)}
	case *state.ChangeRejected:
		if c, ok := r.state.Changes.Get(ev.Change); ok && c.Proposer == ev.Actor.Identity {
			return act{&ev.Actor, &ev.Ruling, ""} // taking back one's own
		}
		return act{&ev.Actor, &ev.Ruling, r.dutyOver(ev.Change)}
	case *state.TokenCreated:
		return act{&ev.Actor, &ev.Ruling, policy.DutyAdmit}
	case *state.SessionOpened:
		return act{nil, &ev.Ruling, ""}
	case *state.SessionClosed:
		return act{&ev.Actor, nil, ""}
	case *state.SecretWritten:
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.SecretMoved:
		if ev.Change != 0 {
			return act{&ev.Actor, &ev.Ruling, r.carrier(ev.Change, ev.Actor)} // by its last approver, or when it has waited
		}
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.SecretReleased:
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.LeaseRenewed:
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.LeaseReturned:
		return act{&ev.Actor, nil, ""}
	case *state.RevocationRecorded:
		if ev.Change != 0 {
			return act{&ev.Actor, &ev.Ruling, r.dutyOver(ev.Change)} // carried out by its last approver
		}
		return act{&ev.Actor, &ev.Ruling, policy.DutyRevoke}
	case *state.RequestDenied:
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.NodeQuarantined:
		return act{nil, &ev.Ruling, ""}
	case *state.IdentityDecommissioned:
		return act{nil, &ev.Ruling, ""}
	case *state.KeyAdded, *state.KeysRewrapped, *state.JWTKeyAdded, *state.KeyWithdrawn:
		return actOfKeys(ev)
	case *state.JWTIssued:
		return act{&ev.Actor, &ev.Ruling, ""}
	case *state.FederationRefreshed:
		return act{nil, &ev.Ruling, ""}
	case *state.AccessReviewed:
		return act{&ev.Actor, &ev.Ruling, policy.DutyAudit}
	case *state.GlassOpened, *state.GlassClosed, *state.GlassReviewed:
		return r.actOfGlass(ev)
	case *state.RecoveryStarted:
		return act{nil, &ev.Ruling, ""}
	case *state.RecoveryWithdrawn:
		return act{nil, &ev.Ruling, ""}
	case *state.RolloutEnded:
		return r.rolledBack(&ev.Cause, ev.Change)
	case *state.BundleInForce:
		if ev.Cause != nil {
			return r.rolledBack(ev.Cause, ev.Change)
		}
	}
	return r.ended(ev)
}

func actOfKeys(ev state.Event) act {
	switch ev := ev.(type) {
	case *state.KeyAdded:
		return act{&ev.Actor, &ev.Ruling, policy.DutyKeys}
	case *state.KeysRewrapped:
		return act{&ev.Actor, &ev.Ruling, policy.DutyKeys}
	case *state.JWTKeyAdded:
		if ev.Actor == nil {
			return act{nil, &ev.Ruling, ""} // due by the bundle
		}
		return act{ev.Actor, &ev.Ruling, policy.DutyKeys}
	case *state.KeyWithdrawn:
		return act{&ev.Actor, &ev.Ruling, policy.DutyKeys}
	}
	return act{}
}

// ended is who ended the environment, moved its keys, or fetched an export.
func (r *run) ended(ev state.Event) act {
	switch e := ev.(type) {
	case *state.EnvironmentEnded:
		return act{&e.Actor, &e.Ruling, r.carrier(e.Change, e.Actor)}
	case *state.CustodyMoved:
		return act{&e.Actor, &e.Ruling, r.carrier(e.Change, e.Actor)}
	case *state.SecretExported:
		return act{&e.Actor, &e.Ruling, policy.DutyPropose}
	}
	return act{}
}

// dutyOver is the duty that approving a change takes.
func (r *run) dutyOver(change uint64) policy.Duty {
	if c, ok := r.state.Changes.Get(change); ok {
		return policy.DutyToApprove(c.Action)
	}
	return policy.DutyApprove
}

// carrier is the duty of who carries a change out: what approving it takes, and of who proposed one that waited, that of proposing.
func (r *run) carrier(change uint64, a state.Actor) policy.Duty {
	if c, ok := r.state.Changes.Get(change); ok && c.Delay > 0 && c.Proposer == a.Identity {
		return policy.DutyPropose
	}
	return r.dutyOver(change)
}

// rolledBack is a person's rollback, of what he proposed or may approve.
func (r *run) rolledBack(why *state.Cause, change uint64) act {
	if why.Actor == nil || why.Ruling == nil {
		return act{}
	}
	if c, ok := r.state.Changes.Get(change); ok && c.Proposer == why.Actor.Identity {
		return act{why.Actor, why.Ruling, policy.DutyPropose}
	}
	return act{why.Actor, why.Ruling, r.dutyOver(change)}
}

// governed checks that a ruling is by what governed: the bundle in force, or in a canary the candidate for what an identity may have.
func (r *run) governed(a act, ev state.Event) error {
	bundle, cohort := r.state.Bundle, ""
	if a.actor != nil && permission(ev, a.ruling) {
		bundle, cohort = r.state.Governs(a.actor.Identity)
	}
	if a.ruling.Generation != r.state.Generation || a.ruling.Bundle != bundle || a.ruling.Cohort != cohort {
		return fmt.Errorf("it was decided by generation %d, %s, but %d, %s governed it", a.ruling.Generation, a.ruling.Bundle, r.state.Generation, bundle)
	}
	return nil
}

// permission reports whether an entry is about what an identity may have. A refusal may be, or of something else.
func permission(ev state.Event, ruling *state.Ruling) bool {
	switch ev := ev.(type) {
	case *state.SecretMoved:
		return ev.Change == 0
	case *state.SecretWritten, *state.SecretReleased, *state.LeaseRenewed:
		return true
	case *state.RequestDenied:
		return ruling.Cohort != ""
	}
	return false
}

// acted checks who acted: in a live session of his own, under the bundle in force, with the duty that it takes.
func (r *run) acted(index uint64, at state.Millis, ev state.Event) error {
	a := r.actOf(ev)
	if a.ruling != nil {
		if err := r.governed(a, ev); err != nil {
			return err
		}
	}
	if a.actor == nil {
		return nil
	}
	if e, ok := ev.(*state.RevocationRecorded); ok && r.forked(index, e) {
		return nil
	}
	if a.duty != "" {
		if err := r.duty(a.actor.Identity, a.duty); err != nil {
			return err
		}
	}
	return r.inSession(*a.actor, at)
}

// inSession checks that an actor's session is his, and was live.
func (r *run) inSession(a state.Actor, at state.Millis) error {
	x, ok := r.state.Sessions.Get(a.Session)
	switch {
	case !ok:
		return fmt.Errorf("%.200q acts in session %d, which never was or was over long before", a.Identity, a.Session)
	case x.Identity != a.Identity || x.Node != a.Node:
		return fmt.Errorf("%.200q acts in session %d, which is of %s", a.Identity, a.Session, x.Identity)
	case x.Closed:
		return fmt.Errorf("%s acts in session %d, which was given back", a.Identity, a.Session)
	case at >= x.Expires:
		return fmt.Errorf("%s acts in session %d, which ended at %s", a.Identity, a.Session, x.Expires)
	}
	return nil
}

// duty checks that an identity is a person who had the duty.
func (r *run) duty(path string, d policy.Duty) error {
	name, human := strings.CutPrefix(path, identity.PrefixHuman)
	if !human {
		return fmt.Errorf("%.200q is not a person, and it takes the duty %s", path, d)
	}
	prog, err := r.bundles.program(r.state.Bundle)
	if err != nil || prog == nil {
		return err
	}
	if op, ok := prog.Operator(name); !ok || !op.Has(d) {
		return fmt.Errorf("%s was not an operator with the duty %s", name, d)
	}
	return nil
}

// forked recognises the one act for which nobody has the duty: a node is cut off and held, in its own name, because a certificate
// of its enrolment was shown that is neither its newest nor another enrolment's. That session may be over long ago.
func (r *run) forked(index uint64, ev *state.RevocationRecorded) bool {
	a := ev.Actor
	if !strings.HasPrefix(a.Identity, identity.PrefixNode) || a.Node != "" || ev.Scope != "node:"+a.Identity ||
		!ev.Hold || !ev.Cutoff || ev.Until != 0 || ev.Change != 0 {
		return false
	}
	id, enrolled := r.state.Identities.Get(a.Identity)
	if !enrolled || a.Session < id.Root || a.Session == id.Session || a.Session >= index {
		return false
	}
	x, kept := r.state.Sessions.Get(a.Session)
	return !kept || x.Identity == a.Identity
}
