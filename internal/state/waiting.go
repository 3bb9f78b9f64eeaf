package state

import (
	"fmt"
	"time"

	"github.com/bailment/bailment/internal/policy"
)

// Waiting is the state of a change that has its approvals and is not carried out with the last of them: when its delay is over, or, an
// export, when its proposer fetches it.
const Waiting ChangeState = "waiting"

// carriedOutWithin is for how long a change that waited can be carried out. After it, whoever still wants it has it approved again.
const carriedOutWithin = Millis(7 * 24 * time.Hour / time.Millisecond)

// Waits reports whether the change is not carried out with its last approval.
func (c *Change) Waits() bool { return c.Delay > 0 || c.Action == policy.ActExport }

// Open reports whether nothing has become of the change yet, its time aside.
func (c *Change) Open() bool { return c.State == Proposed || c.State == Waiting }

// Due is from when on a change that waits can be carried out; 0: it doesn't wait.
func (c *Change) Due() Millis {
	if c.State != Waiting {
		return 0
	}
	return c.Since + Millis(c.Delay*1000)
}

// Ends is when an open change is over if nothing becomes of it.
func (c *Change) Ends() Millis {
	if due := c.Due(); due != 0 {
		if c.Action == policy.ActExport {
			return due.Add(ExportWithin)
		}
		return due + carriedOutWithin
	}
	return c.Expires
}

// Approvable reports whether a change takes approvals: one that waits does if some of its own were revoked since, and then waits anew.
func (s *State) Approvable(c *Change, now Millis) bool {
	return now < c.Expires && (c.State == Proposed || c.State == Waiting && c.StateAt(now) == Waiting && !s.Complete(c, now))
}

// Ripe reports whether a change can be carried out: it is complete, and has waited if it must.
func (s *State) Ripe(c *Change, now Millis) bool {
	switch c.StateAt(now) {
	case Proposed:
		return !c.Waits() && s.Complete(c, now)
	case Waiting:
		return now >= c.Due() && c.Base == s.Bundle && s.Complete(c, now)
	}
	return false
}

// wait has a change that has just become complete wait, if it must.
func (s *State) wait(c *Change, now Millis) {
	if c.Waits() && s.Complete(c, now) {
		c.State, c.Since = Waiting, now
	}
}

// maxDelaySeconds is that of bundles.
const maxDelaySeconds = 30 * 24 * 60 * 60

func (e *ChangeProposed) checkDelay() error {
	if e.Delay < 0 || e.Delay > maxDelaySeconds || e.Delay > 0 && !e.Manifest.IsZero() {
		return fmt.Errorf("a change does not wait for %d seconds", e.Delay)
	}
	return nil
}
