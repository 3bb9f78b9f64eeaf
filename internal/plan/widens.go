package plan

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// Via is how a change widens what an identity can have.
type Via string

// The ways.
const (
	ByGrant   Via = "grant"   // grants permit it more, by its name or by a pattern that holds it
	ByDuty    Via = "duty"    // it gets a duty, or becomes an operator
	ByKey     Via = "key"     // it gets another key, of an operator or to recover by
	ByControl Via = "control" // something that it can make or speak for gets more, or it can make or speak for more
)

// Widening is one way in which a change widens what an identity can have.
type Widening struct {
	Via     Via             `json:"via"`
	Who     string          `json:"who"` // the identity itself, or what it controls
	Secret  string          `json:"secret,omitempty"`
	Actions []policy.Action `json:"actions,omitempty"`
	What    string          `json:"what"` // for people
}

// maxWidenings is how many ways are told.
const maxWidenings = 50

// Widens is Plan.Widens for those who need nothing else of the plan.
func Widens(before, after *policy.Program, path string) []Widening {
	p := &Plan{old: before, new: after, cells: newCells(before, after)}
	return p.Widens(path)
}

// Widens says how the change widens what an identity can have, as /human/alice; nothing if it does not. Limits that move in a way that
// can't be told (a condition that became another) count as wider. For a person it also asks what he may do as an operator, and what
// he controls by the rules: who has the duty admit makes nodes by join tokens, and such a node speaks for the workloads whose rules name
// it. What he controls at the machines themselves no bundle says.
//
// With more than a plan looks at, whatever changed grant is about the identity counts. It is safe for concurrent use.
func (p *Plan) Widens(path string) []Widening {
	var out []Widening
	who, err := identity.ParseIDPattern(path)
	if _, exact := who.Exact(); err != nil || !exact {
		return nil
	}
	out = append(out, p.widensAccess(ByGrant, who, true)...)
	if name, person := strings.CutPrefix(path, identity.PrefixHuman); person {
		out = append(out, p.widensPerson(name)...)
		out = append(out, p.widensRecovery(name)...)
		out = append(out, p.widensGlass(path)...)
		out = append(out, p.widensControl(name)...)
	}
	return out[:min(len(out), maxWidenings)]
}

// widensAccess asks both bundles at each point where the changed grants about who can make a difference. What it controls newly (known is
// false) had nothing before.
func (p *Plan) widensAccess(via Via, who identity.Pattern, known bool) []Widening {
	own := *p.cells
	c := &own
	c.work = 0
	var out []Widening
	seen := map[rect]bool{}
	look := func(at rect) {
		if seen[at] || len(out) >= maxWidenings {
			return
		}
		seen[at] = true
		for _, a := range policy.AllActions() {
			before, after := forms{}, formsOf(a, c.new.governing(a, at, &c.work), &c.work)
			if known {
				before = formsOf(a, c.old.governing(a, at, &c.work), &c.work)
			}
			if c.work > maxWork {
				out = append(out, Widening{Via: via, Who: at.who.String(), Secret: at.secret.String(), Actions: []policy.Action{a}, What: "there is too much to compare"})
				return
			}
			if before.covers(after) {
				continue
			}
			l := lineOf(at, delta{a, before, after})
			out = append(out, Widening{Via: via, Who: l.Who, Secret: l.Secret, Actions: l.Actions, What: l.sentence()})
		}
	}
	everything, _ := identity.ParseSecretPattern("*")
	if !known {
		for i := range c.new.rules {
			r := &c.new.rules[i]
			for _, x := range r.Identities {
				if at, ok := meet(x, who); ok && r.Effect == policy.Allow {
					for _, s := range r.Secrets {
						look(rect{at, s})
					}
				}
			}
		}
		return out
	}
	for i := range c.changed {
		x := &c.changed[i]
		at, ok := x.meet(rect{who, everything})
		if !ok {
			continue
		}
		if c.work > maxWork {
			out = append(out, Widening{Via: via, Who: who.String(), Secret: x.secret.String(), Actions: x.rule.Actions, What: "the grant " + x.rule.Name + " comes or goes, and there is too much to compare"})
			break
		}
		look(at)
		if x.rule.Effect == policy.Deny {
			c.all.meeting(at, &c.work, func(o *corner) bool {
				if o.rule.Effect == policy.Allow {
					both, _ := at.meet(o.rect)
					look(both)
				}
				return len(out) < maxWidenings
			})
		}
	}
	return out
}

func (p *Plan) widensPerson(name string) []Widening {
	o, is := p.new.Operator(name)
	if !is {
		return nil
	}
	was, _ := p.old.Operator(name)
	var out []Widening
	for _, d := range o.Duties {
		if !was.Has(d) {
			out = append(out, Widening{Via: ByDuty, Who: o.Path(), What: fmt.Sprintf("%s gets the duty %s", name, d)})
		}
	}
	old := fingerprints(was.Keys)
	for _, k := range o.Keys {
		if !slices.Contains(old, k.Fingerprint) {
			out = append(out, Widening{Via: ByKey, Who: o.Path(), What: fmt.Sprintf("%s gets the key %s", name, k.Fingerprint)})
		}
	}
	if a, b := p.old.Environment().Needs(policy.ActBundle), p.new.Environment().Needs(policy.ActBundle); b.Self && !a.Self && o.Has(policy.DutyPropose) && o.Has(policy.DutyApprove) {
		out = append(out, Widening{Via: ByDuty, Who: o.Path(), What: name + " could approve what he proposes himself"})
	}
	return out
}

// controlled are the patterns of nodes that a person can make, and the workloads that these speak for.
func controlled(p *policy.Program, name string) []identity.Pattern {
	o, is := p.Operator(name)
	if !is || !o.Has(policy.DutyAdmit) {
		return nil
	}
	rules := p.IdentityRules()
	var nodes, out []identity.Pattern
	for _, r := range rules {
		if r.Method == authority.JoinToken {
			if x := pathPattern(r.Path); !slices.Contains(nodes, x) {
				nodes = append(nodes, x)
			}
		}
	}
	out = slices.Clone(nodes)
	for _, r := range rules {
		if r.Method != policy.MethodWorkload {
			continue
		}
		speaks := slices.ContainsFunc(r.Nodes, func(x identity.Pattern) bool {
			return slices.ContainsFunc(nodes, func(n identity.Pattern) bool { _, ok := meet(x, n); return ok })
		})
		if x := pathPattern(r.Path); speaks && !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

func (p *Plan) widensControl(name string) []Widening {
	had := map[identity.Pattern]bool{}
	for _, x := range controlled(p.old, name) {
		had[x] = true
	}
	var out []Widening
	loose := p.loosened()
	for _, x := range controlled(p.new, name) {
		known := had[x] || slices.ContainsFunc(x.Around(), func(a identity.Pattern) bool { return had[a] })
		for _, w := range p.widensAccess(ByControl, x, known && !loose(x)) {
			w.What = fmt.Sprintf("%s can be %s by a join token: %s", name, w.Who, w.What)
			out = append(out, w)
		}
		if len(out) >= maxWidenings {
			break
		}
	}
	return out
}

// asksNode finds the attribute node.path in a condition.
var asksNode = regexp.MustCompile(`\bnode(\s|//[^\n]*\n)*\.(\s|//[^\n]*\n)*path\b`)

// loosened reports for a pattern that a person controls whether a condition became another one that stood between: of join tokens, of which
// all else hangs, or of a workload that asks for its node.
func (p *Plan) loosened() func(identity.Pattern) bool {
	type key struct{ path, when string }
	before, asked := map[key]bool{}, map[string]bool{}
	for _, r := range p.old.IdentityRules() {
		before[key{r.Path, oneWriting(r.When)}] = true
		asked[r.Path] = asked[r.Path] || asksNode.MatchString(r.When)
	}
	tokens, workloads := false, map[identity.Pattern]bool{}
	for _, r := range p.new.IdentityRules() {
		switch {
		case before[key{r.Path, oneWriting(r.When)}], before[key{r.Path, ""}]:
		case r.Method == authority.JoinToken:
			tokens = true
		case r.Method == policy.MethodWorkload && asked[r.Path]:
			workloads[pathPattern(r.Path)] = true
		}
	}
	return func(x identity.Pattern) bool { return tokens || workloads[x] }
}

// sentence says a line in words.
func (l *Line) sentence() string {
	actions := make([]string, len(l.Actions))
	for i, a := range l.Actions {
		actions[i] = string(a)
	}
	what := strings.Join(actions, ", ") + " on " + l.Secret
	switch {
	case l.Unexamined:
		return l.Who + ": " + what + " is not compared"
	case l.Kind == Gain:
		return l.Who + " gains " + what
	case l.Kind == Loss:
		return l.Who + " loses " + what
	}
	return l.Who + ": the limits of " + what + " move"
}
