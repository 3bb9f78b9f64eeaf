package invariant

import (
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// allEnded checks the end of an environment: of this one, and that it says truly what it took along.
func (c *Checker) allEnded(e *state.EnvironmentEnded, fail failure) {
	ch := c.complete(e.Change, policy.ActDeleteEnvironment, fail)
	if e.Environment != c.m.name || e.Genesis != c.m.genesis {
		fail("it ends another environment than %s", c.m.name)
	}
	if want := c.m.name + "#" + c.m.genesis.String(); ch != nil && ch.target != want {
		fail("change %d is not about the end of %s", e.Change, want)
	}
	values := 0
	for _, sec := range c.m.secrets {
		for _, v := range sec.versions {
			if v.state != state.Destroyed {
				values++
			}
		}
	}
	if e.Values != values {
		fail("it says that %d values are gone, and there were %d", e.Values, values)
	}
	said := map[string]uint64{}
	for _, k := range e.Keys {
		said[k.Kind] = uint64(k.Last)
	}
	for kind, last := range c.m.envKeys {
		if said[kind] != last {
			fail("it says that %d keys of the kind %s are gone, and there were %d", said[kind], kind, last)
		}
	}
	if said["mac"] != 1 || len(said) != len(c.m.envKeys)+1 || len(e.Keys) != len(said) {
		fail("it names %d kinds of keys", len(e.Keys))
	}
}

// deedOfEnd is who ended the environment, moved its keys, or fetched an export.
func (m *model) deedOfEnd(ev state.Event) deed {
	switch e := ev.(type) {
	case *state.EnvironmentEnded:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: m.carrier(e.Change, &e.Actor)}
	case *state.CustodyMoved:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: m.carrier(e.Change, &e.Actor)}
	case *state.SecretExported:
		return deed{actor: &e.Actor, ruling: &e.Ruling, duty: policy.DutyPropose}
	}
	return deed{}
}

// lifecycleEnd is about the end of the environment, after which there is no entry, and about where its keys are.
func (c *Checker) lifecycleEnd(st *step, fail failure) {
	if c.m.ended != 0 {
		fail("the environment ended with entry %d, and nothing follows that", c.m.ended)
	}
	switch e := st.event.(type) {
	case *state.EnvironmentEnded:
		c.allEnded(e, fail)
	case *state.CustodyMoved:
		c.allMoved(e, fail)
	}
}
