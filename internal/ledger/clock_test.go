package ledger

import (
	"testing"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// A clock is looked at after each step: so much time passes, and the wall clock is set by so much besides.
func TestClockAgainstBoot(t *testing.T) {
	type step struct {
		passes, set time.Duration
		refused     bool
	}
	const hour = time.Hour
	slow := func(each time.Duration, ppm int64, n int) []step {
		out := make([]step, n)
		for i := range out {
			out[i] = step{each, each * time.Duration(ppm) / 1e6, false}
		}
		return out
	}
	for name, steps := range map[string][]step{
		"nothing happens":                {{time.Second, 0, false}, {hour, 0, false}},
		"suspended for a week":           {{7 * 24 * hour, 0, false}, {time.Second, 0, false}},
		"drift, a year of it":            slow(hour, 400, 365*24),
		"drift, seen once in ten days":   slow(10*24*hour, -400, 36),
		"set ahead within the allowance": {{time.Second, 29 * time.Second, false}},
		"set back within the allowance":  {{time.Second, -29 * time.Second, false}},
		"set ahead beyond it":            {{time.Second, 31 * time.Second, true}, {time.Second, 0, true}},
		"set back beyond it":             {{time.Second, -31 * time.Second, true}},
		"a jump, put right":              {{time.Second, hour, true}, {time.Second, -hour, false}},
		"a jump, put right after a week": {{time.Second, 24 * hour, true}, {7 * 24 * hour, 0, true}, {time.Second, -24 * hour, false}, {time.Second, 0, false}},
		"steps that add up":              {{time.Second, 29 * time.Second, false}, {time.Second, 29 * time.Second, true}},
		"small steps that add up":        {{time.Second, 10 * time.Second, false}, {time.Second, 10 * time.Second, false}, {time.Second, 10 * time.Second, false}, {time.Second, 10 * time.Second, true}},
		"steps back that add up":         {{time.Second, -20 * time.Second, false}, {time.Second, -20 * time.Second, true}},
		"to and fro":                     {{time.Second, 29 * time.Second, false}, {time.Second, -58 * time.Second, false}, {time.Second, 58 * time.Second, false}},
		"a step a day":                   {{24 * hour, 20 * time.Second, false}, {24 * hour, 20 * time.Second, false}, {24 * hour, 20 * time.Second, false}},
		"many looks don't speed it up": append(append([]step{{time.Second, 29 * time.Second, false}}, slow(time.Microsecond, 0, 10_000)...),
			step{0, 2 * time.Second, true}),
	} {
		t.Run(name, func(t *testing.T) {
			boot := 5 * time.Hour
			wall := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
			c := clock{wall: func() time.Time { return wall }, boot: func() time.Duration { return boot }}
			if err := c.check(time.Time{}); err != nil {
				t.Fatal(err)
			}
			for i, s := range steps {
				boot += s.passes
				wall = wall.Add(s.passes + s.set)
				err := c.check(time.Time{})
				if refused := problem.Is(err, problem.ReasonClock); refused != s.refused || !refused && err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
		})
	}
}

// However the wall clock is set, the time that is believed stays within the allowance and the slew.
func TestClockIsBounded(t *testing.T) {
	boot := time.Duration(0)
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	ahead := time.Duration(0)
	c := clock{wall: func() time.Time { return begin.Add(boot + ahead) }, boot: func() time.Duration { return boot }}
	last := begin
	for range 50_000 {
		boot += 20 * time.Second
		// The greediest clock there is: a second more, until it is refused.
		at, err := c.now(last)
		for ; err == nil && ahead < boot; at, err = c.now(last) {
			last = at
			ahead += time.Second
		}
		ahead -= time.Second
	}
	if most := clockAllowance + boot/slewDivisor + time.Second; ahead > most || last.Sub(begin) > boot+most {
		t.Fatalf("%s ahead after %s, want at most %s", ahead, boot, most)
	}
	if least := boot / slewDivisor; ahead < least {
		t.Fatalf("drift is not followed: %s after %s, want at least %s", ahead, boot, least)
	}
}
