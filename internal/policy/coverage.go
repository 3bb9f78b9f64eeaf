package policy

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/problem"
)

// outcomes are what a condition was seen to give, as bits.
type outcomes uint8

const (
	wasTrue outcomes = 1 << iota
	wasFalse
	wasError
)

func outcome(ok bool, err error) outcomes {
	switch {
	case err != nil:
		return wasError
	case ok:
		return wasTrue
	}
	return wasFalse
}

// coverage is what of a program tests made use of. Its methods do nothing on nil, so that a decision that nobody watches pays nothing.
type coverage struct {
	grants map[*grant]*grantUse
	rules  map[*identityRule]*ruleUse
}

// grantUse is how a grant was seen to decide: which of its parts, each by its position, and how often its condition gave what.
type grantUse struct {
	decided    int
	actions    actionSet
	identities uint64 // maxPatterns is 64
	secrets    uint64
	purposes   uint64
	condition  outcomes
}

// ruleUse is how an identity rule was seen.
type ruleUse struct {
	gave          int
	when, require outcomes
}

func newCoverage(p *Program) *coverage {
	return &coverage{make(map[*grant]*grantUse, len(p.grants)), map[*identityRule]*ruleUse{}}
}

func (c *coverage) of(g *grant) *grantUse {
	u := c.grants[g]
	if u == nil {
		u = &grantUse{}
		c.grants[g] = u
	}
	return u
}

func (c *coverage) ofRule(r *identityRule) *ruleUse {
	u := c.rules[r]
	if u == nil {
		u = &ruleUse{}
		c.rules[r] = u
	}
	return u
}

// grant notes what a grant's condition gave.
func (c *coverage) grant(g *grant, ok bool, err error) {
	if c != nil {
		c.of(g).condition |= outcome(ok, err)
	}
}

// rule notes what the condition of an identity rule gave, and required that of what it requires.
func (c *coverage) rule(r *identityRule, ok bool, err error) {
	if c != nil {
		c.ofRule(r).when |= outcome(ok, err)
	}
}

func (c *coverage) required(r *identityRule, ok bool, err error) {
	if c != nil {
		c.ofRule(r).require |= outcome(ok, err)
	}
}

// gave notes which rule gave an identity.
func (c *coverage) gave(p *Program, m Match) {
	if c == nil {
		return
	}
	for _, list := range [][]identityRule{p.nodes, p.workloads} {
		if i, ok := slices.BinarySearchFunc(list, m.Rule, func(r identityRule, name string) int { return strings.Compare(r.name, name) }); ok {
			c.ofRule(&list[i]).gave++
		}
	}
}

// decided notes which grant decided, and by which of its parts.
func (c *coverage) decided(p *Program, in *Input, d Decision) {
	if c == nil || d.Grant == "" || !d.Allow && d.Reason != problem.ReasonDenied {
		return
	}
	g := p.grantNamed(in, d.Grant)
	if g == nil {
		return
	}
	u := c.of(g)
	u.decided++
	u.actions |= in.Action.bit()
	for i := range g.identities {
		if g.identities[i].Match(in.Identity) {
			u.identities |= 1 << i
		}
	}
	for i := range g.secrets {
		if g.secrets[i].Match(in.Secret) {
			u.secrets |= 1 << i
		}
	}
	if i := slices.Index(g.purposes, in.Purpose); i >= 0 && in.Action == ReadSecret {
		u.purposes |= 1 << i
	}
}

// grantNamed finds a grant among those that a request could meet.
func (p *Program) grantNamed(in *Input, name string) *grant {
	var out *grant
	p.index.candidates(in.Identity, in.Secret, func(rank int32) {
		if g := &p.grants[rank]; g.name == name {
			out = g
		}
	})
	return out
}
