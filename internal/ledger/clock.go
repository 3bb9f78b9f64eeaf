package ledger

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// clockAllowance is how far the wall clock may jump against the boot clock, or lie behind the
// head, before the ledger answers "unavailable: clock" (DESIGN §4).
const clockAllowance = 30 * time.Second

// clock is the ledger's time: the wall clock, checked against the boot clock, which nobody sets.
type clock struct {
	wall func() time.Time
	boot func() time.Duration

	mu     sync.Mutex
	offset time.Duration // wall minus boot, when they were last believed
	set    bool
}

// sinceBoot reads CLOCK_BOOTTIME, which counts through suspension.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// now is the time of the next batch, in whole milliseconds, never before last.
func (c *clock) now(last time.Time) (time.Time, error) {
	if err := c.check(last); err != nil {
		return time.Time{}, err
	}
	t := c.wall().UTC().Truncate(time.Millisecond)
	if t.Before(last) {
		t = last
	}
	return t, nil
}

// check says whether the clock can be believed.
func (c *clock) check(last time.Time) error {
	wall, boot := c.wall(), c.boot()
	offset := time.Duration(wall.UnixNano()) - boot
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.set {
		c.offset, c.set = offset, true
	}
	if jump := offset - c.offset; jump > clockAllowance || jump < -clockAllowance {
		return problem.New(problem.ReasonClock, "the wall clock jumped by %s against the boot clock", jump.Round(time.Second)).
			WithRetryAfter(10 * time.Second)
	}
	// Within the allowance the offset follows, so that slewing never adds up to a jump.
	c.offset = offset
	if ahead := last.Sub(wall); ahead > clockAllowance {
		return problem.New(problem.ReasonClock, "the ledger's last entry is %s ahead of the clock", ahead.Round(time.Second)).
			WithRetryAfter(10 * time.Second)
	}
	return nil
}
