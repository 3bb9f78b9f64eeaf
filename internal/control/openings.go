package control

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/problem"
)

// Openings is how fast one identity may open sessions: its own, and those of the processes that it speaks for. Each stays in the
// state for an hour after its end, and its key for a day: without a bound, one machine that was let in could fill the memory of all.
type Openings struct {
	PerSecond float64 // 0: 5
	Burst     int     // 0: 1,000
}

const (
	openingsPerSecond = 5
	openingsBurst     = 1000
	openingBytes      = 1 << 10 // claims of so many bytes count as one session more
	maxOpeners        = 65536   // identities whose openings are remembered: about 10 MB
)

// mayOpen refuses a session to an identity that opens too many. It is asked after the proof, so that nobody uses up what is
// another's, and before the door, since it is no decision: it does not depend on the state, and a restart forgets it. What shows that
// two hold one enrolment is heard all the same: a thief must not keep the owner from being noticed by using up what they share.
func (e *Environment) mayOpen(identity string, claims int) error {
	if identity == "" {
		return nil
	}
	l, ok := e.openers.get(identity, one)
	if !ok {
		o := e.cfg.Openings
		if o.PerSecond == 0 {
			o.PerSecond = openingsPerSecond
		}
		if o.Burst == 0 {
			o.Burst = openingsBurst
		}
		l = rate.NewLimiter(rate.Limit(o.PerSecond), o.Burst)
		e.openers.put(identity, l, 1)
	}
	n := min(1+claims/openingBytes, l.Burst())
	if l.AllowN(e.cfg.Now(), n) {
		return nil
	}
	wait := time.Duration(float64(n) / float64(l.Limit()) * float64(time.Second))
	return problem.New(problem.ReasonRateLimited, "%s opens too many sessions", identity).WithRetryAfter(wait)
}
