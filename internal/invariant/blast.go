package invariant

import (
	"strings"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// boundedRevocation checks what one person stops by himself: beyond the bundle's limit only for a quarter of an hour, four times a
// day, and each scope once.
func (c *Checker) boundedRevocation(st *step, e *state.RevocationRecorded, fail failure) {
	if e.Until != 0 && (e.Until <= st.at || e.Until > st.at+maxProvisional) {
		fail("a provisional hold stands until %s", e.Until)
	}
	if st.prog == nil {
		return
	}
	env := st.prog.Environment()
	if e.Until != 0 && (env.Approvals > 0 || env.Class != policy.Development) {
		set := c.m.stopped[e.Actor.Identity]
		if _, again := set[e.Scope]; again || len(set) >= maxStops {
			fail("%s sets a provisional hold again, the last %d within a day", e.Actor.Identity, len(set))
		}
	}
	if e.Until != 0 || e.Change != 0 || !strings.HasPrefix(e.Actor.Identity, "/human/") {
		return
	}
	if n := c.stops(st, readScope(e.Scope)); n > env.BlastLimit {
		fail("%s alone revokes %s for good: %d identities, and the bundle allows %d", e.Actor.Identity, e.Scope, n, env.BlastLimit)
	}
}

// stops counts the identities in scope that live, or that a provisional hold of the last hour may have kept from living on.
func (c *Checker) stops(st *step, s scope) int {
	since := st.at
	for _, scopes := range c.m.stopped {
		for _, until := range scopes {
			if set := until - day; set > st.at-afterSession {
				since = min(since, set)
			}
		}
	}
	hit := map[string]bool{}
	for _, x := range c.m.sessions {
		if x.expires > since && s.kind != "secret" && s.covers(x.subject()) {
			hit[x.identity] = true
		}
	}
	for index, l := range c.m.leases {
		if l.expires > st.at && s.covers(l.subject(index)) {
			hit[l.identity] = true
		}
	}
	return len(hit)
}
