package agent

import (
	"time"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// State is what an agent is doing, seen from outside. Only ready and renewing have a session that can be used.
type State string

// The states.
const (
	Starting    State = "starting"    // no session, and no attempt has ended yet
	Unreachable State = "unreachable" // no session, and the server did not answer, answered that it can't now, or was not authentic
	NotProved   State = "not-proved"  // no session: the server did not accept what this machine proves itself with
	Refused     State = "refused"     // no session: proved, and the answer is no (no rule, a cutoff, the lifetime is over)
	Held        State = "held"        // no session: an operator's hold, or a fork was seen
	Quarantined State = "quarantined" // no session: what this machine itself proved is not what its rule allows
	Outdated    State = "outdated"    // no session: this program is too old, or not one that the bundle lets run
	Broken      State = "broken"      // no session: this machine's own files, its hardware or its platform don't do what they must
	Ready       State = "ready"       // there is a session; a problem beside it is one of renewing it
	Renewing    State = "renewing"    // ready, and a renewal is under way
)

// ExitCode is that of a command that asks how an agent is: 0 if it has a session, else as for a problem of such a kind (problem.Kind).
func (s State) ExitCode() int {
	switch s {
	case Ready, Renewing:
		return 0
	case NotProved, Refused, Held, Quarantined, Outdated:
		return problem.Refused.ExitCode()
	default: // starting, unreachable, broken, and what a later agent calls otherwise
		return problem.Unavailable.ExitCode()
	}
}

// Rates of trying again. What the network mends is looked at soon; what a person must mend, rarely; and what changes
// here or there wakes the agent at once.
const (
	firstUnreachable = 100 * time.Millisecond
	lastUnreachable  = 30 * time.Second
	firstRefused     = 10 * time.Second
	lastRefused      = 5 * time.Minute
	lookForChange    = 2 * time.Second // at the files of the needs, while something is wrong
)

// local marks a failure of this machine itself: its own files, or its half of the attestation method (ownFailure). A full disk or a TPM
// that refuses here is not called a server's.
type local struct{ *problem.Problem }

func (l local) Unwrap() error { return l.Problem }

// classify says what a failed attempt means.
func classify(err error) class {
	if l, ok := err.(local); ok { //nolint:errorlint // it is never wrapped
		return class{Broken, passes(l.Reason)}
	}
	return classOf(problem.As(err))
}

// backoff is how long to wait after so many failures in a row, the last of which was p, of class c.
func backoff(c class, p *problem.Problem, failures int) time.Duration {
	first, last := firstRefused, lastRefused
	if c.soon {
		first, last = firstUnreachable, lastUnreachable
	}
	d := client.Jitter(min(first<<min(failures, 16), last))
	return max(d, min(p.RetryAfter, lastRefused))
}

// enter changes the state. The lock is held.
func (a *Agent) enter(s State) {
	if a.state == s {
		return
	}
	from := a.state
	a.state, a.since = s, time.Now()
	attrs := []any{"from", string(from), "to", string(s)}
	if a.session != nil {
		attrs = append(attrs, "identity", a.session.Identity)
	}
	if a.failure != nil {
		attrs = append(attrs, "reason", string(a.failure.Reason), "problem", a.failure.Message, "fix", a.failure.WayOut())
	}
	switch s {
	case Ready, Renewing, Starting:
		a.log.Info("state", attrs...)
	default:
		a.log.Warn("state", attrs...)
	}
	text := "STATUS=" + string(s)
	if a.failure != nil {
		text += ": " + a.failure.Message
	}
	if a.cfg.Socket != "" {
		a.notify(text)
	}
}

// usable reports whether the session can be used. The lock is held.
func (a *Agent) usable() bool {
	return a.session != nil && a.dead == nil && a.session.Live(time.Now())
}

// fail records a failed attempt and when to try again. The lock is held.
func (a *Agent) fail(err error) {
	c := classify(err)
	p := a.advise(problem.As(err))
	a.failure, a.failedAt, a.failState, a.failSoon = p, time.Now(), c.state, c.soon
	a.next = time.Now().Add(backoff(c, p, a.failures))
	a.failures++
	if a.usable() {
		a.enter(Ready)
		a.log.Warn("renewing the SVID failed; the present one is kept", "reason", string(p.Reason), "problem", p.Message,
			"fix", p.WayOut(), "expires", a.session.Expires, "next", a.next)
		return
	}
	a.enter(c.state)
}

// advise says what leads on after the end of an enrolment, in the terms of this machine: its method may need something new,
// and a person who reads the status has no other hint at where it belongs.
func (a *Agent) advise(p *problem.Problem) *problem.Problem {
	if classOf(p).state == Outdated && a.replaced() {
		return p.WithFix("%s", restart)
	}
	if a.method.Renewal.Kind != attest.RenewByPossession || !endsEnrolment(p) {
		return p
	}
	for _, n := range a.method.Needs {
		if path := a.cfg.Needs[n.Name]; path != "" {
			return p.WithFix("ask an operator for a new %s (%s) and put it into %s, readable by the agent only; the agent tries it at once", n.Name, n.Doc, path)
		}
	}
	return p
}

// restart is the way out where a newer build waits for the process to end.
const restart = "another build of this program is installed already: restart the agent (systemctl restart bailment-agent)"

// replaced reports whether what is installed now is not what runs.
func (a *Agent) replaced() bool { return a.cfg.Replaced != nil && a.cfg.Replaced() }

// kill says that the session is over before its time, by the server's own word. The lock is held.
func (a *Agent) kill(p *problem.Problem) {
	if a.dead != nil && a.dead.Reason == p.Reason {
		return
	}
	p = a.advise(p)
	a.dead = p
	c := classify(p)
	a.failure, a.failedAt, a.failState, a.failSoon = p, time.Now(), c.state, c.soon
	a.failures = 0
	a.next = time.Now()
	if c.state == Held || c.state == Quarantined {
		// Nothing that this machine does lifts a hold.
		a.next = time.Now().Add(client.Jitter(firstRefused))
	}
	a.enter(c.state)
	a.poke()
	a.spiffe.Look()
}

// outlived says that the session has reached its end, by the server's clock, while something keeps it from being renewed. The lock is held.
func (a *Agent) outlived(p *problem.Problem) {
	if a.dead != nil {
		return
	}
	a.dead = p
	a.next = time.Now()
	a.enter(a.failState)
	a.poke()
	a.spiffe.Look()
}

// revive takes kill back: a hold was lifted, or the bundle lets this machine in again. The lock is held.
func (a *Agent) revive() {
	if a.dead == nil {
		return
	}
	a.dead = nil
	if a.usable() {
		a.succeed()
	}
	a.poke()
	a.spiffe.Look()
	a.spiffe.Retry()
}

// succeed records that all is well. The lock is held.
func (a *Agent) succeed() {
	a.failure, a.failures = nil, 0
	// Never in a hurry, whatever times the server gave.
	a.next = later(renewAt(a.session), time.Now().Add(tendAgain))
	if last(a.session) {
		a.log.Warn("this is the enrolment's last session", "identity", a.session.Identity, "expires", a.session.Expires,
			"fix", problem.ReasonLifetimeOver.Fix())
	}
	a.enter(Ready)
}

// renewAt is when to renew: from the half life on, spread a little, so that machines that were started together part.
// The last session of an enrolment is not renewed: it would only get shorter and shorter ones.
func renewAt(s *client.Session) time.Time {
	if last(s) {
		return s.Expires
	}
	spread := s.Expires.Sub(s.RenewAfter) / 8
	if spread <= 0 {
		return s.RenewAfter
	}
	return s.RenewAfter.Add(client.Jitter(spread) - spread/2)
}

// last reports whether a session ends with its enrolment.
func last(s *client.Session) bool {
	return !s.LifetimeEnd.IsZero() && !s.Expires.Before(s.LifetimeEnd.Add(-time.Second))
}

func (a *Agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
