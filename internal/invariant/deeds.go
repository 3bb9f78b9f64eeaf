package invariant

import (
	"strings"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// deed is what an entry has in common with others: who did it, by what ruling, and what it asks to be allowed.
type deed struct {
	actor   *state.Actor
	ruling  *state.Ruling
	idem    *state.IdemKey
	action  policy.Action // of a grant; empty: none is needed
	secret  string
	purpose string
	duty    policy.Duty // of an operator; empty: none is needed
	giving  bool        // gives back: also the cut off and held may
	refused bool        // is the record of a refusal
}

func (m *model) deedOf(e state.Event) deed {
	switch e := e.(type) {
	case *state.ChangeProposed:
		return deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem, duty: policy.DutyPropose}
	case *state.ChangeApproved:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: m.dutyOver(e.Change)}
	case *state.ChangeRejected:
		d := deed{actor: &e.Actor, ruling: &e.Ruling, duty: m.dutyOver(e.Change)}
		if ch := m.changes[e.Change]; ch != nil && ch.proposer == e.Actor.Identity {
			d.duty = "" // taking back one's own needs no duty
		}
		return d
	case *state.TokenCreated:
		return deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem, duty: policy.DutyAdmit}
	case *state.SessionOpened:
		return deed{ruling: &e.Ruling}
	case *state.SessionClosed:
		return deed{actor: &e.Actor, giving: true}
	case *state.SecretWritten:
		d := deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem, action: policy.WriteSecret, secret: e.Secret}
		if e.Recipe != "" {
			d.action = policy.GenerateSecret
		}
		return d
	case *state.SecretMoved:
		if e.Change != 0 {
			return deed{actor: &e.Actor, ruling: &e.Ruling, duty: m.carrier(e.Change, &e.Actor)} // by its last approver, or when it has waited
		}
		d := deed{actor: &e.Actor, ruling: &e.Ruling, action: policy.PromoteSecret, secret: e.Secret}
		if e.To == state.Destroyed {
			d.action = policy.DestroySecret
		}
		return d
	case *state.SecretReleased:
		return deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem, action: policy.ReadSecret, secret: e.Secret, purpose: e.Purpose}
	case *state.LeaseRenewed:
		d := deed{actor: &e.Actor, ruling: &e.Ruling, action: policy.ReadSecret}
		if l := m.leases[e.Lease]; l != nil {
			d.secret, d.purpose = l.secret, l.purpose
		}
		return d
	case *state.LeaseReturned:
		return deed{actor: &e.Actor, giving: true}
	case *state.RevocationRecorded:
		return m.deedOfRevocation(e)
	case *state.NodeQuarantined:
		return deed{ruling: &e.Ruling}
	case *state.IdentityDecommissioned:
		return deed{ruling: &e.Ruling}
	case *state.RequestDenied:
		return deed{actor: &e.Actor, ruling: &e.Ruling, giving: true, refused: true}
	case *state.KeyAdded, *state.KeysRewrapped, *state.JWTKeyAdded, *state.KeyWithdrawn:
		return deedOfKeys(e)
	case *state.JWTIssued:
		return deed{actor: &e.Actor, ruling: &e.Ruling}
	case *state.FederationRefreshed:
		return deed{ruling: &e.Ruling}
	case *state.AccessReviewed:
		return deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem, duty: policy.DutyAudit}
	case *state.GlassOpened, *state.GlassClosed, *state.GlassReviewed:
		return m.deedOfGlass(e)
	case *state.RecoveryStarted, *state.RecoveryWithdrawn:
		return deedOfRecovery(e)
	case *state.RolloutEnded:
		return m.deedOfCause(&e.Cause, e.Change)
	case *state.BundleInForce:
		if e.Cause != nil {
			return m.deedOfCause(e.Cause, e.Change)
		}
	}
	return m.deedOfEnd(e)
}

// deedOfKeys is about the environment's own keys.
func deedOfKeys(e state.Event) deed {
	switch e := e.(type) {
	case *state.KeyAdded:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: policy.DutyKeys}
	case *state.KeysRewrapped:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: policy.DutyKeys}
	case *state.JWTKeyAdded:
		if e.Actor == nil { // the environment itself, by its bundle
			return deed{ruling: &e.Ruling}
		}
		return deed{actor: e.Actor, ruling: &e.Ruling, duty: policy.DutyKeys}
	case *state.KeyWithdrawn:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: policy.DutyKeys}
	}
	return deed{}
}

// dutyOver is the duty that approving a change takes.
func (m *model) dutyOver(change uint64) policy.Duty {
	if ch := m.changes[change]; ch != nil {
		return policy.DutyToApprove(ch.action)
	}
	return policy.DutyApprove
}

// deedOfRevocation is a person's, or the environment's where an enrolment forked.
func (m *model) deedOfRevocation(e *state.RevocationRecorded) deed {
	if m.fork(e) {
		return deed{ruling: &e.Ruling}
	}
	d := deed{actor: &e.Actor, ruling: &e.Ruling, duty: policy.DutyRevoke}
	if e.Change != 0 {
		d.duty = m.dutyOver(e.Change) // carried out by its last approver
	}
	return d
}

// deedOfCause is a person's rollback.
func (m *model) deedOfCause(why *state.Cause, change uint64) deed {
	if why.By != state.ByPerson || why.Actor == nil || why.Ruling == nil {
		return deed{}
	}
	d := deed{actor: why.Actor, ruling: why.Ruling, duty: m.dutyOver(change)}
	if ch := m.changes[change]; ch != nil && ch.proposer == why.Actor.Identity {
		d.duty = policy.DutyPropose
	}
	return d
}

// fork recognises the one revocation that nobody asks for: a node whose enrolment has two holders is cut off and held in
// its own name, because of a certificate of that enrolment that is not its newest.
func (m *model) fork(e *state.RevocationRecorded) bool {
	enrolled := m.enrolments[e.Actor.Identity]
	if !meansFork(e) || !e.Cutoff || e.Until != 0 || enrolled == nil {
		return false
	}
	shown := e.Actor.Session
	if x := m.sessions[shown]; x != nil && x.identity != e.Actor.Identity {
		return false
	}
	return shown >= enrolled.root && shown < m.next && shown != enrolled.session
}

// meansFork is looser: a node that is held in its own name, whether or not the entry is as it must be.
func meansFork(e *state.RevocationRecorded) bool {
	return strings.HasPrefix(e.Actor.Identity, "/node/") && e.Actor.Node == "" && e.Scope == "node:"+e.Actor.Identity && e.Hold && e.Change == 0
}
