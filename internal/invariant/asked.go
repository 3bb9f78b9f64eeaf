package invariant

import (
	"strings"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Asked is what an entry, which is to be fed next, says that the grants were asked and answered; false for entries that are about
// something else, and for refusals that no grant decided, as by a hold. A lease's renewal is asked like the read that made it.
func (c *Checker) Asked(index uint64, e *state.Entry) (policy.Recorded, bool) {
	d, out := c.m.deedOf(e.Event), policy.Recorded{Index: index, Time: e.Time.Time(), Allowed: true}
	if refused, ok := e.Event.(*state.RequestDenied); ok {
		out.Allowed, out.Reason = false, problem.Reason(refused.Reason)
		if !decidedByGrants(out.Reason) || strings.HasSuffix(refused.Target, "…") {
			return out, false // what was cut off can't be asked again
		}
		d.action, d.secret, d.purpose = policy.Action(refused.Action), refused.Target, refused.Purpose
		if !known(d.action) {
			return out, false
		}
	}
	if d.action == "" || d.actor == nil {
		return out, false
	}
	x := c.m.sessions[d.actor.Session]
	if x == nil {
		return out, false
	}
	in, err := c.input(&step{deed: d, at: e.Time}, x, d.action, d.secret, d.purpose)
	if err != nil {
		return out, false
	}
	out.Input = *in
	if d.ruling != nil {
		out.Grant = d.ruling.Grant
	}
	if fingerprint, person := strings.CutPrefix(x.anchor, "ssh:"); person {
		out.Proof = policy.Proof{Identity: x.identity, Key: fingerprint}
		return out, true
	}
	proof := x
	if x.node != "" {
		n := c.m.enrolments[x.node]
		if n == nil {
			return out, false
		}
		proof = n.proof
	}
	method, authority := anchored(proof.anchor)
	claims, err := proof.proved()
	out.Proof = policy.Proof{Identity: proof.identity, Method: method, Authority: authority, Claims: claims}
	return out, err == nil
}

func known(a policy.Action) bool {
	for _, x := range policy.AllActions() {
		if a == x {
			return true
		}
	}
	return false
}

// decidedByGrants reports whether a refusal is the answer of policy.Decide.
func decidedByGrants(r problem.Reason) bool {
	switch r {
	case problem.ReasonNoGrant, problem.ReasonDenied, problem.ReasonPurpose, problem.ReasonAssurance, problem.ReasonCondition, problem.ReasonGlass:
		return true
	}
	return false
}

// anchored reads from an anchor by what something was proved: "METHOD:AUTHORITY", or "join-token:ID", which is no authority.
func anchored(anchor string) (method, authority string) {
	method, authority, _ = strings.Cut(anchor, ":")
	if method == "join-token" {
		authority = ""
	}
	return method, authority
}
