package policy

import (
	"cmp"
	"fmt"
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
	program *Program
	grants  map[*grant]*grantUse
	rules   map[*identityRule]*ruleUse
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
	return &coverage{p, make(map[*grant]*grantUse, len(p.grants)), map[*identityRule]*ruleUse{}}
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

// RuleCoverage is what of one rule the tests made use of. Its parts are, of a grant: each action, identity, secret and purpose that it names,
// once it decided about them; its condition, once it held; and again, once it didn't. Of an identity rule: its path, and its conditions.
type RuleCoverage struct {
	Rule    string   `json:"rule"` // "the grant NAME" or "the identity NAME"
	Source  Pos      `json:"source"`
	Parts   int      `json:"parts"`
	Covered int      `json:"covered"`
	Missing []string `json:"missing,omitempty"`
}

// Coverage is what of a bundle its tests made use of: grants first, each kind by place.
func (r *TestReport) Coverage() []RuleCoverage {
	var out []RuleCoverage
	p := r.seen.program
	for i := range p.grants {
		out = append(out, r.seen.ofGrant(&p.grants[i]))
	}
	slices.SortFunc(out, byPlace)
	grants := len(out)
	for _, list := range [][]identityRule{p.nodes, p.workloads} {
		for i := range list {
			out = append(out, r.seen.ofIdentity(&list[i]))
		}
	}
	slices.SortFunc(out[grants:], byPlace)
	return out
}

func byPlace(a, b RuleCoverage) int {
	return cmp.Or(cmp.Compare(a.Source.File, b.Source.File), cmp.Compare(a.Source.Line, b.Source.Line))
}

func (c *RuleCoverage) part(covered bool, format string, args ...any) {
	c.Parts++
	if covered {
		c.Covered++
		return
	}
	c.Missing = append(c.Missing, oneLine(fmt.Sprintf(format, args...)))
}

func (c *RuleCoverage) condition(text string, seen outcomes, what string) {
	if text != "" {
		c.part(seen&wasTrue != 0, "%s true", what)
		c.part(seen&(wasFalse|wasError) != 0, "%s false", what)
	}
}

func (c *coverage) ofGrant(g *grant) RuleCoverage {
	u := c.of(g)
	out := RuleCoverage{Rule: "the grant " + g.name, Source: g.source}
	for _, a := range g.actions.list() {
		out.part(u.actions&a.bit() != 0, "%s", a)
	}
	for i, p := range g.identities {
		out.part(u.identities&(1<<i) != 0, "%s", p)
	}
	for i, p := range g.secrets {
		out.part(u.secrets&(1<<i) != 0, "%s", p)
	}
	for i, p := range g.purposes {
		out.part(u.purposes&(1<<i) != 0, "purpose %s", p)
	}
	out.condition(g.whenText, u.condition, "its condition")
	return out
}

func (c *coverage) ofIdentity(r *identityRule) RuleCoverage {
	u := c.ofRule(r)
	out := RuleCoverage{Rule: "the identity " + r.name, Source: r.source}
	out.part(u.gave > 0, "%s", r.pathText)
	out.condition(r.whenText, u.when, "its condition")
	out.condition(r.required, u.require, "what it requires")
	return out
}
