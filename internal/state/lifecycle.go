package state

import (
	"github.com/bailment/bailment/internal/problem"
)

// VersionState is the lifecycle state of a secret's version.
type VersionState string

// The states that an opaque value uses (DESIGN §9). Verified and canary join with rotation.
const (
	Staged      VersionState = "staged"
	Current     VersionState = "current"
	Retiring    VersionState = "retiring"
	Retired     VersionState = "retired"
	Destroyed   VersionState = "destroyed"
	Compromised VersionState = "compromised"
)

// versionMoves is the closed table of legal transitions of a version.
var versionMoves = map[VersionState][]VersionState{
	Staged:      {Current, Retired, Compromised},
	Current:     {Retiring, Retired, Compromised},
	Retiring:    {Current, Retired, Compromised}, // back to current: a rotation that is taken back
	Retired:     {Destroyed, Compromised},
	Compromised: {Retired},
}

// CheckMove says whether a version may go from one state to another.
func CheckMove(from, to VersionState) error {
	for _, t := range versionMoves[from] {
		if t == to {
			return nil
		}
	}
	return problem.New(problem.ReasonLifecycle, "a version that is %s can't become %s", from, to)
}

// ChangeState is the lifecycle state of a change. Shadow and canary join with staged rollouts.
type ChangeState string

// The states of a change so far.
const (
	Proposed   ChangeState = "proposed"
	Approved   ChangeState = "approved"
	InForce    ChangeState = "in force"
	Done       ChangeState = "done" // an act that is not a bundle was carried out
	Superseded ChangeState = "superseded"
	Rejected   ChangeState = "rejected"
	Expired    ChangeState = "expired" // computed, never entered
)

// StateAt is the change's state at a moment: an open one past its expiry is expired.
func (c *Change) StateAt(now Millis) ChangeState {
	if c.State == Proposed && now >= c.Expires {
		return Expired
	}
	return c.State
}

// Complete reports whether the change has the approvals that it needs.
func (c *Change) Complete() bool {
	return len(c.Approvals) >= c.Required
}

// ApprovedBy reports whether the person has approved already.
func (c *Change) ApprovedBy(person string) bool {
	for _, a := range c.Approvals {
		if a.Person == person {
			return true
		}
	}
	return false
}
