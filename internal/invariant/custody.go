package invariant

import (
	"encoding/json"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// rootHolderOf is the root holder that a genesis document names.
func rootHolderOf(document string) string {
	var doc struct {
		RootHolder string `json:"root_holder"`
	}
	if json.Unmarshal([]byte(document), &doc) != nil {
		return "" // that it can't be read is found elsewhere
	}
	return doc.RootHolder
}

// allMoved checks that the keys went from the root holder that they were under to the one that an approved change is about, all of them.
func (c *Checker) allMoved(e *state.CustodyMoved, fail failure) {
	from, to := e.From.Kind+":"+e.From.ID, e.To.Kind+":"+e.To.ID
	if ch := c.complete(e.Change, policy.ActMoveCustody, fail); ch != nil && ch.target != to {
		fail("change %d is not about the root holder %.200q", e.Change, to)
	}
	if from != c.m.rootHolder {
		fail("it moves the keys from %.200q, and they are under %.200q", from, c.m.rootHolder)
	}
	if from == to {
		fail("it moves the keys to where they are")
	}
	if n := c.m.envKeys["kek"]; e.Keys < 0 || uint64(e.Keys) != n {
		fail("it moves %d keys, and there are %d", e.Keys, n)
	}
	if e.Digest.IsZero() {
		fail("it does not say what the keys are wrapped as")
	}
	if e.To.DevelopmentOnly && c.m.class == string(policy.Production) {
		fail("a root holder of kind %.40q is for the development class only", e.To.Kind)
	}
}

// learnCustody takes in which root holder the keys are under.
func (c *Checker) learnCustody(st *step) {
	switch e := st.event.(type) {
	case *state.Genesis:
		c.m.rootHolder = rootHolderOf(e.Document)
	case *state.CustodyMoved:
		c.m.rootHolder = e.To.Kind + ":" + e.To.ID
		c.m.finish(e.Change, "done", st.at)
		for index, ch := range c.m.changes {
			if ch.action == policy.ActMoveCustody && ch.over == "" {
				c.m.finish(index, "superseded", st.at) // it was about where the keys were then
			}
		}
	}
}
