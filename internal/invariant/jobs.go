package invariant

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/state"
)

// possession are the methods of jobs whose sessions are renewed by the session's key. All others bring evidence anew each time.
var possession = []string{"gitlab", "oidc"}

func isJob(identity string) bool { return strings.HasPrefix(identity, "/ci/") }

// attestedJob checks a renewal by possession of a job's session.
func (c *Checker) attestedJob(st *step, e *state.SessionOpened, fail failure) {
	x := c.m.sessions[e.From]
	switch {
	case x == nil || x.gen == nil || x.identity != e.Identity:
		fail("%s has no session %d to renew", e.Identity, e.From)
	case e.Root != x.root || e.Method != x.method || e.Anchor != x.anchor || e.Assurance != x.assurance || e.Counter != x.counter+1:
		fail("it does not carry what session %d carries", e.From)
	case e.Lifetime == 0 || e.Lifetime > x.lifetime || st.at >= e.Lifetime:
		fail("it prolongs the job from %s to %s", x.lifetime, e.Lifetime)
	case !slices.Contains(possession, e.Method):
		fail("a job of method %s is renewed by fresh evidence", e.Method)
	case x.gen.closed:
		fail("session %d was given back", e.From)
	case !x.gen.heir.IsZero() && (x.gen.heir != e.Key || !e.Redelivery):
		fail("session %d was renewed by another key", e.From)
	}
}

// attestedEnd checks that what a job's evidence opened ends with it. Where nobody looks at evidence again, neither does the enrolment
// outlive it.
func (c *Checker) attestedEnd(x *session, e *state.EvidenceUsed, fail failure) {
	if x == nil || !isJob(x.identity) || e.Until == 0 {
		return
	}
	if x.expires > e.Until {
		fail("session %d ends at %s, after the evidence at %s", e.Session, x.expires, e.Until)
	}
	if slices.Contains(possession, x.method) && x.lifetime > e.Until {
		fail("what session %d began may be renewed until %s, and the evidence ends at %s", e.Session, x.lifetime, e.Until)
	}
}

// boundedJob checks that a job's lease, which ended at one time and now ends at another, ends with the session in which it was made or
// renewed.
func (c *Checker) boundedJob(st *step, lease uint64, before, expires state.Millis, fail failure) {
	x := c.m.sessions[st.actor.Session]
	if x != nil && isJob(x.identity) && expires > before && expires > x.expires {
		fail("lease %d of a job ends at %s, after its session %d at %s", lease, expires, x.index, x.expires)
	}
}

func boundedEnrolment(e *state.SessionOpened, fail failure) {
	if isJob(e.Identity) && e.Lifetime == 0 {
		fail("a job's enrolment has an end")
	}
}
