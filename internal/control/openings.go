package control

import (
	"cmp"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
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

// mayOpen refuses a session to an identity that has opened too many. It is asked before the door, since it is no decision: it does not
// depend on the state, and a restart forgets it. Only what was entered counts (opened): a proof alone may be a spent token's, or a
// session's that was cut off, and its thief must not use up what its owner may open. What is on its way is not counted yet, but
// what goes beyond the bound is waited for. What shows that two hold one enrolment is heard all the same: a thief must not keep
// the owner from being noticed by using up what they share.
func (e *Environment) mayOpen(identity string, claims int) error {
	if identity == "" {
		return nil
	}
	l := e.opener(identity)
	n := float64(min(1+claims/openingBytes, l.Burst()))
	have := l.TokensAt(e.cfg.Now())
	if have >= n {
		return nil
	}
	wait := time.Duration((n - have) / float64(l.Limit()) * float64(time.Second))
	return problem.New(problem.ReasonRateLimited, "%s opens too many sessions", identity).WithRetryAfter(wait)
}

// opened counts a session that was entered.
func (e *Environment) opened(ev *state.SessionOpened, body []byte) {
	if ev.Via == viaServer {
		return
	}
	l := e.opener(cmp.Or(ev.Node, ev.Identity))
	l.ReserveN(e.cfg.Now(), min(max(1, len(body)/openingBytes), l.Burst()))
}

func (e *Environment) opener(identity string) *rate.Limiter {
	return e.openers.GetOr(identity, func() *rate.Limiter {
		o := e.cfg.Openings
		if o.PerSecond == 0 {
			o.PerSecond = openingsPerSecond
		}
		if o.Burst == 0 {
			o.Burst = openingsBurst
		}
		return rate.NewLimiter(rate.Limit(o.PerSecond), o.Burst)
	})
}
