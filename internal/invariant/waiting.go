package invariant

import (
	"time"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// afterDue is for how long a change can be carried out that has waited; longest is the longest wait.
const (
	afterDue = 7 * day
	longest  = 30 * day
)

// end is when an open change is over if nothing becomes of it.
func (ch *change) end() state.Millis {
	if ch.since != 0 {
		return ch.since + ch.delay + ch.within()
	}
	return ch.expires
}

// within is for how long a change can be carried out once it is due.
func (ch *change) within() state.Millis {
	if ch.action == policy.ActExport {
		return afterExport
	}
	return afterDue
}

// held reports whether a change is not carried out with its last approval.
func (ch *change) held() bool { return ch.delay > 0 || ch.action == policy.ActExport }

// approvable checks that an approval comes in time, and not to a change that has all it needs and waits.
func (c *Checker) approvable(st *step, ch *change, index uint64, fail failure) {
	if st.at >= ch.expires {
		fail("change %d could be approved until %s", index, ch.expires)
	}
	if ch.since != 0 && c.whole(st, ch) {
		fail("change %d has its approvals, and waits", index)
	}
}

// whole reports whether a change has its approvals, and neither they nor its proposal were revoked.
func (c *Checker) whole(st *step, ch *change) bool {
	return c.counted(st, ch) >= ch.required && c.over(st, ch.proposer, ch.proposal) == ""
}

// learnFinal takes in that a change begins to wait, with the approval that made it whole, and that the environment ended.
func (c *Checker) learnFinal(st *step) {
	switch e := st.event.(type) {
	case *state.ChangeApproved:
		if ch := c.m.changes[e.Change]; ch != nil && ch.held() && ch.over == "" && c.whole(st, ch) {
			ch.since = st.at
		}
	case *state.EnvironmentEnded:
		c.m.ended = st.index
		c.m.finish(e.Change, "done", st.at)
	case *state.SecretExported:
		c.m.finish(e.Change, "done", st.at)
	}
}

// waited checks that a change is not carried out before its delay is over.
func (c *Checker) waited(st *step, index uint64, fail failure) {
	ch := c.m.changes[index]
	switch {
	case ch == nil || !ch.held():
	case ch.since == 0:
		fail("change %d has not begun to wait, and waits for %d seconds", index, ch.delay/second)
	case st.at < ch.since+ch.delay:
		fail("change %d waits until %s", index, ch.since+ch.delay)
	} // one that was over is forgotten at once
}

// waits checks that a change waits for as long as the bundle in force asks for.
func (c *Checker) waits(st *step, e *state.ChangeProposed, fail failure) {
	if e.Delay < 0 || state.Millis(e.Delay)*second > longest || e.Delay > 0 && !e.Manifest.IsZero() {
		fail("a change does not wait for %d seconds", e.Delay)
	}
	if st.prog == nil {
		return
	}
	if need := st.prog.Environment().Needs(e.Action); time.Duration(e.Delay)*time.Second != need.Delay {
		fail("it waits for %d seconds, and the bundle in force asks for %s", e.Delay, need.Delay)
	}
}

// carrier is the duty of who carries a change out: what approving it takes, and of who proposed one that waited, that of proposing.
func (m *model) carrier(change uint64, a *state.Actor) policy.Duty {
	if ch := m.changes[change]; ch != nil && ch.delay > 0 && ch.proposer == a.Identity {
		return policy.DutyPropose
	}
	return m.dutyOver(change)
}
