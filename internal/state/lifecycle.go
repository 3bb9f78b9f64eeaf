package state

import (
	"strconv"
	"strings"

	"github.com/bailment/bailment/internal/identity"
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
	legal := make([]string, 0, len(versionMoves[from]))
	for _, t := range versionMoves[from] {
		if t == to {
			return nil
		}
		legal = append(legal, string(t))
	}
	if len(legal) == 0 {
		return problem.New(problem.ReasonLifecycle, "a version that is %s stays so", from)
	}
	return problem.New(problem.ReasonLifecycle, "a version that is %s can't become %s, but only %s", from, to, strings.Join(legal, " or "))
}

// ChangeState is the lifecycle state of a change.
type ChangeState string

// The states of a change.
const (
	Proposed   ChangeState = "proposed"
	Approved   ChangeState = "approved"
	Shadow     ChangeState = "shadow"
	Canary     ChangeState = "canary"
	InForce    ChangeState = "in force"
	Done       ChangeState = "done" // an act that is not a bundle was carried out
	Superseded ChangeState = "superseded"
	Rejected   ChangeState = "rejected"
	RolledBack ChangeState = "rolled back"
	Expired    ChangeState = "expired" // computed, never entered
)

// StateAt is the change's state at a moment: an open one past its expiry is expired, and so is one that nobody carried out when it was due.
func (c *Change) StateAt(now Millis) ChangeState {
	if c.Open() && now >= c.Ends() {
		return Expired
	}
	return c.State
}

// signed is what a proposal or an approval derives from: the person and each key behind it, as of its entry. A
// revocation of any of them takes it along (DESIGN §7).
func signed(person string, anchors []string, index uint64) []Subject {
	out := []Subject{{Identity: person, Own: index, Root: index}}
	for _, a := range anchors {
		out = append(out, Subject{Identity: person, Anchor: a, Own: index, Root: index})
	}
	return out
}

// Proposal is what the proposal derives from.
func (c *Change) Proposal() []Subject { return signed(c.Proposer, c.Anchors, c.Index) }

// Derives is what the approval derives from.
func (a Approval) Derives() []Subject {
	return signed(identity.PrefixHuman+a.Person, a.Anchors, a.Index)
}

// Stands reports whether neither a cutoff nor a hold covers any of the subjects.
func (s *State) Stands(subjects []Subject, now Millis) bool {
	for _, x := range subjects {
		if _, _, dead := s.CutoffOver(x); dead {
			return false
		}
		if _, held := s.HoldOver(x, now); held {
			return false
		}
	}
	return true
}

// Counts reports how many of the change's approvals count at a moment: not those of who, or by what, was revoked since.
func (s *State) Counts(c *Change, now Millis) int {
	n := 0
	for _, a := range c.Approvals {
		if s.Stands(a.Derives(), now) {
			n++
		}
	}
	return n
}

// Complete reports whether the change can be carried out: its proposal stands, and as many approvals as it needs.
func (s *State) Complete(c *Change, now Millis) bool {
	return s.Counts(c, now) >= c.Required && s.Stands(c.Proposal(), now)
}

// MayApprove reports whether an approval of the person would be of use: there is none that counts, or there are enough
// that count and nobody has carried the change out. That happens when a hold over an approver ends.
func (s *State) MayApprove(c *Change, person string, now Millis) bool {
	for _, a := range c.Approvals {
		if a.Person == person && s.Stands(a.Derives(), now) {
			return s.Counts(c, now) >= c.Required
		}
	}
	return true
}

// HoldTarget is the target of a change that is about one hold: its scope and the entry that set it. An approval of it is none
// for another hold on the same scope.
func HoldTarget(scope string, hold uint64) string {
	return scope + "#" + strconv.FormatUint(hold, 10)
}

// ParseHoldTarget undoes HoldTarget.
func ParseHoldTarget(target string) (scope string, hold uint64, ok bool) {
	i := strings.LastIndexByte(target, '#')
	if i < 0 {
		return "", 0, false
	}
	hold, err := strconv.ParseUint(target[i+1:], 10, 64)
	if err != nil || HoldTarget(target[:i], hold) != target {
		return "", 0, false
	}
	return target[:i], hold, true
}
