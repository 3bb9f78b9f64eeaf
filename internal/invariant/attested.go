package invariant

import (
	"strings"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// used is a use of evidence that one key only may make.
type used struct {
	key      state.Digest
	session  uint64
	identity string
	until    state.Millis
}

// countsOnce reports whether a session was opened by evidence that one session key only may use, for the first time.
func countsOnce(e *state.SessionOpened) bool {
	m, _ := authority.FindMethod(e.Method)
	return e.Via == viaAttest && e.Root == 0 && m.Once
}

// attestedOnce checks that no session stands without the use of the evidence that opened it: of a join token it says itself which, and
// of other evidence the entry behind it does, where only the protocol may be raised between.
func (c *Checker) attestedOnce(st *step, fail failure) {
	e, ok := st.event.(*state.SessionOpened)
	if ok && countsOnce(e) && e.Method == authority.JoinToken && e.Token == "" {
		fail("it names no join token")
	}
	if c.m.unused == 0 {
		return
	}
	switch e := st.event.(type) {
	case *state.ProtocolRaised:
	case *state.EvidenceUsed:
		if e.Session != c.m.unused {
			fail("it is not the use of session %d before it", c.m.unused)
		}
	default:
		fail("session %d was opened by evidence that counts once, and its use is not entered", c.m.unused)
	}
}

// learnOnce notes a session whose use must follow.
func (m *model) learnOnce(st *step) {
	switch e := st.event.(type) {
	case *state.ProtocolRaised:
	case *state.SessionOpened:
		m.unused = 0
		if countsOnce(e) && e.Method != authority.JoinToken {
			m.unused = st.index
		}
	default:
		m.unused = 0
	}
}

// attestedUse checks that a use of evidence is that of the session before it.
func (c *Checker) attestedUse(st *step, e *state.EvidenceUsed, fail failure) {
	x := c.m.sessions[e.Session]
	switch {
	case x == nil || x.identity != e.Identity || x.key != e.Key || x.via != viaAttest:
		fail("session %d is not one that %s opened with it", e.Session, e.Identity)
	case x.root != e.Session || e.Session+1 != st.index && e.Session+2 != st.index:
		fail("session %d is not the one that it opened just now", e.Session)
	}
	c.attestedEnd(x, e, fail)
	if e.Until != 0 && e.Until <= st.at {
		fail("the evidence was good until %s", e.Until)
	}
	if !strings.HasPrefix(e.Use, c.methodOf(e.Session)+":") && !strings.HasPrefix(e.Use, "token:") {
		fail("it is not named after the method of session %d, nor as a token", e.Session)
	}
}

func (c *Checker) methodOf(session uint64) string {
	if x := c.m.sessions[session]; x != nil {
		return x.method
	}
	return ""
}

// attestedAgain checks a session that evidence gives to the same key once more: the reply was lost.
func (c *Checker) attestedAgain(e *state.SessionOpened, enrolled *enrolment, fail failure) {
	var first *used
	for _, u := range c.m.uses {
		if u.session == e.Root && u.identity == e.Identity {
			first = u
			break
		}
	}
	job := strings.HasPrefix(e.Identity, "/ci/")
	x := c.m.sessions[e.Root]
	switch {
	case first == nil:
		fail("fresh evidence derives from nothing older")
	case first.key != e.Key || !e.Redelivery:
		fail("the evidence was used by entry %d", first.session)
	case job && (x == nil || x.gen == nil || x.gen.closed || !x.gen.heir.IsZero() || e.Lifetime > x.lifetime):
		fail("session %d, which the evidence opened, is over, was renewed, or ends sooner", e.Root)
	case job:
	case enrolled == nil || enrolled.root != e.Root:
		fail("the enrolment of %s was replaced by a newer one", e.Identity)
	case enrolled.counter != 0 || enrolled.key != e.Key:
		fail("the evidence gives generation 0, and %s is at %d", e.Identity, enrolled.counter)
	case e.Lifetime > enrolled.lifetime:
		fail("it prolongs the enrolment of %s from %s to %s", e.Identity, enrolled.lifetime, e.Lifetime)
	case enrolled.closed:
		fail("the enrolment of %s was given back", e.Identity)
	}
}

// attestedQuarantine checks that a machine is quarantined by its own proof only, and for what its rule says.
func (c *Checker) attestedQuarantine(st *step, e *state.NodeQuarantined, fail failure) {
	n := c.m.enrolments[e.Identity]
	if n == nil || n.session != e.Session || n.evidence != e.Evidence || n.method != e.Method || e.Evidence.IsZero() || n.closed {
		fail("%s is not enrolled by that key", e.Identity)
		return
	}
	if u := c.m.uses[e.Use]; u != nil && u.key != e.Key {
		fail("the proof was used by session %d, with another key", u.session)
	}
	if t := c.m.tokens[strings.TrimPrefix(e.Use, "join-token:")]; t != nil && t.spentAt != 0 && t.spentBy != e.Key {
		fail("the proof is a join token that entry %d spent, with another key", t.spentAt)
	}
	if st.prog == nil {
		return
	}
	claims, err := policy.PrepareClaims(e.Claims)
	if err != nil {
		fail("%v", err)
		return
	}
	m, err := identifyNode(st.prog, e.Anchor, claims)
	switch {
	case !problem.Is(err, problem.ReasonPosture):
		fail("by the bundle in force nothing that is required of %s is wrong", e.Identity)
	case m.Path != e.Identity || m.Rule != e.Rule:
		fail("by the bundle in force these claims are %s (%s)", m.Path, m.Rule)
	case !m.Quarantine:
		fail("the rule %s refuses, and quarantines nobody", m.Rule)
	}
}

// ended checks a statement that nothing of an identity is left.
func (c *Checker) ended(st *step, e *state.IdentityDecommissioned, fail failure) {
	if ch := c.complete(e.Change, "identity.decommission", fail); ch != nil && ch.target != e.Identity {
		fail("change %d is about %s", e.Change, ch.target)
	}
	if c.m.gone[e.Identity] != 0 {
		fail("%s was decommissioned by entry %d", e.Identity, c.m.gone[e.Identity])
	}
	x := subject{identity: e.Identity, own: st.index, root: st.index}
	if strings.HasPrefix(e.Identity, "/node/") {
		x.node = e.Identity
	}
	if by, h := c.holder(st, x); by == "" || h.until != 0 {
		fail("there is no hold on %s", e.Identity)
	}
	cut := false
	for _, k := range c.m.cuts {
		cut = cut || k.index == e.Cutoff && (k.text == "node:"+e.Identity || k.text == "identity:"+e.Identity)
	}
	if !cut {
		fail("entry %d is no cutoff on %s", e.Cutoff, e.Identity)
	}
	outlasts := func(index uint64, end state.Millis) {
		if end > st.at && end > e.Horizon {
			fail("something of entry %d is believed until %s, after the horizon %s", index, end, e.Horizon)
		}
	}
	for index, s := range c.m.sessions {
		if s.identity != e.Identity && s.node != e.Identity {
			continue
		}
		outlasts(index, s.expires) // no token of it ends later (bounded)
		if !s.closed && st.at < s.expires && !c.dead(s.subject()) {
			fail("session %d of %s lives", index, s.identity)
		}
	}
	for index, l := range c.m.leases {
		if l.identity != e.Identity && l.node != e.Identity {
			continue
		}
		outlasts(index, l.expires)
		if st.at < l.expires && !c.dead(l.subject(index)) {
			fail("lease %d of %s lives", index, l.identity)
		}
	}
	if e.Leases != 0 || e.Sessions != 0 || e.Tokens != 0 {
		fail("it says itself that something is left")
	}
}

// goneFor says which decommissioned identity a session would be of, or "".
func (c *Checker) goneFor(identity, node string) string {
	for _, path := range []string{identity, node} {
		if c.m.gone[path] != 0 {
			return path
		}
	}
	return ""
}

// learnAttested takes the entries of attestation into the model.
func (m *model) learnAttested(st *step) bool {
	switch e := st.event.(type) {
	case *state.EvidenceUsed:
		m.uses[e.Use] = &used{e.Key, e.Session, e.Identity, e.Until}
		if e.Until != 0 {
			m.later(e.Until, 'u', 0, e.Use)
		}
	case *state.EvidenceForgotten:
		delete(m.uses, e.Use)
		m.finish(e.Change, "done", st.at)
	case *state.NodeQuarantined:
		scope := "node:" + e.Identity
		if old, ok := m.holds[scope]; !ok || old.until != 0 {
			m.holds[scope] = hold{scope: readScope(scope), index: st.index}
		}
	case *state.IdentityDecommissioned:
		m.gone[e.Identity] = st.index
		delete(m.enrolments, e.Identity)
		m.finish(e.Change, "done", st.at)
	default:
		return false
	}
	return true
}
