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

// boundedProposal checks how long a change is open, and how many there are of its sort: open, open of one person, and of one person
// in a day.
func (c *Checker) boundedProposal(st *step, e *state.ChangeProposed, fail failure) {
	if e.Expires <= st.at || e.Expires > st.at+maxChange {
		fail("the change is open until %s", e.Expires)
	}
	all, own := 0, 0
	for _, ch := range c.m.changes {
		if (ch.action == "bundle") == (e.Action == "bundle") && ch.over == "" && st.at < ch.expires && ch.base == c.m.bundle {
			all++
			if ch.proposer == e.Actor.Identity {
				own++
			}
		}
	}
	if all >= maxOpen || own >= maxOpenEach {
		fail("%d such changes are open, %d of them by %s", all, own, e.Actor.Identity)
	}
	if n := len(c.m.ofDay(e, st.at)); n >= maxDailyEach {
		fail("%s proposed %d such changes within a day", e.Actor.Identity, n)
	}
}

// proposerOf is whose a proposal is, and of which sort.
func proposerOf(e *state.ChangeProposed) string {
	if e.Action == "bundle" {
		return e.Actor.Identity + " bundle"
	}
	return e.Actor.Identity
}

// ofDay is when the proposals of that person and sort within the last day were made.
func (m *model) ofDay(e *state.ChangeProposed, now state.Millis) []state.Millis {
	made := m.proposed[proposerOf(e)]
	for len(made) > 0 && made[0] <= now-day {
		made = made[1:]
	}
	return made
}
