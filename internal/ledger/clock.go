package ledger

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// clockAllowance is how far the wall clock may stand off from where the boot clock expects it, or lie
// behind the head, before the ledger answers "unavailable: clock" (DESIGN §4).
const clockAllowance = 30 * time.Second

// slewDivisor: what the boot clock expects follows the wall clock by 1/2,000 of the time that passes, which is 500 ppm, as
// fast as the kernel slews a clock (adjtimex(2)). So drift is followed, a step within the allowance is taken and forgotten
// in time, and steps that come faster than that add up until they are refused: whoever sets the clock gains
// the allowance once, and 500 ppm.
const slewDivisor = 2000

// clock is the ledger's time: the wall clock, checked against the boot clock, which nobody sets. It is anchored
// at the first look.
type clock struct {
	wall func() time.Time
	boot func() time.Duration

	mu       sync.Mutex
	offset   time.Duration // wall minus boot, as it is expected
	followed time.Duration // the boot clock when offset last followed
	set      bool
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
		c.offset, c.followed, c.set = offset, boot, true
	}
	off := offset - c.offset
	slew := max(0, boot-c.followed) / slewDivisor
	follow := min(max(off, -slew), slew)
	if rest := off - follow; rest > clockAllowance || rest < -clockAllowance {
		// The expectation stays, so that a clock that is put right fits again, however long it was wrong.
		return problem.New(problem.ReasonClock, "the wall clock is off by %s against the boot clock", off.Round(time.Second)).
			WithRetryAfter(10 * time.Second)
	}
	if slew > 0 { // less than a nanosecond is saved up
		c.offset += follow
		c.followed = boot
	}
	if ahead := last.Sub(wall); ahead > clockAllowance {
		return problem.New(problem.ReasonClock, "the ledger's last entry is %s ahead of the clock", ahead.Round(time.Second)).
			WithRetryAfter(10 * time.Second)
	}
	return nil
}
