package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// Rule is what a finding is about.
type Rule string

// The rules of the separation of duties (docs/design/0022).
const (
	// RuleAlone: nobody brings a bundle into force alone.
	RuleAlone Rule = "alone"
	// RuleReadBack: who writes a secret reads it only by a grant that names both.
	RuleReadBack Rule = "read-back"
	// RuleRecovery: whichever one operator is lost, the others can still change the environment.
	RuleRecovery Rule = "recovery"
	// RuleEverybody: no grant reaches operators by a pattern for everybody.
	RuleEverybody Rule = "everybody"
	// RuleUnexamined: what is too much to look at is not taken to be well.
	RuleUnexamined Rule = "unexamined"
	// RuleAdmit: who may make machines doesn't also write what they read.
	RuleAdmit Rule = "admit"
)

// Breach is a place where duties are not separated: the chain by which one person, or too few, can do what takes several.
type Breach struct {
	Rule    Rule           `json:"rule"`
	Refused bool           `json:"refused"` // else it is advice
	Subject string         `json:"subject"` // whom it is about, and which secret: what stays the same when grants are renamed
	Finding policy.Finding `json:"finding"` // at the end of the chain; its message is the chain in words
}

const maxBreaches = policy.MaxFindings

// Separation finds what breaks the separation of duties. In the class development, which may have one operator, it is advice; so is
// RuleAdmit everywhere, since what a machine may have is for its method and its grants to say.
func Separation(p *policy.Program) []Breach {
	s := &separation{p: p, side: newSide(p, family{}, ""), refuse: p.Environment().Class == policy.Production}
	s.alone()
	s.recovery()
	s.everybody()
	s.readBack()
	s.admit()
	if s.work > maxWork { // whatever was not looked at may break it
		s.add(RuleUnexamined, s.refuse, "bundle", policy.Pos{File: "environment.yaml", Line: 1, Column: 1}, "the grants are too many, or of too many purposes, to be compared with one another: split the environment")
	}
	slices.SortStableFunc(s.out, func(a, b Breach) int {
		x, y := a.Finding, b.Finding
		return cmp.Or(strings.Compare(x.Pos.File, y.Pos.File), cmp.Compare(x.Pos.Line, y.Pos.Line), cmp.Compare(x.Pos.Column, y.Pos.Column), strings.Compare(x.Message, y.Message))
	})
	return s.out[:min(len(s.out), maxBreaches)]
}

// CheckSeparation is nil, or the refusal of a bundle that breaks the separation of duties. Its cause (errors.As) are the findings.
func CheckSeparation(p *policy.Program) error {
	var list policy.Findings
	for _, b := range Separation(p) {
		if b.Refused {
			list = append(list, b.Finding)
		}
	}
	if len(list) == 0 {
		return nil
	}
	first := list[0].String()
	if len(list) > 1 {
		first += " (and more)"
	}
	out := problem.New(problem.ReasonSeparation, "duties are not separated, %d times: %s", len(list), first).WithFix("part what the chain joins: see docs/howto/plan-a-change.md")
	out.Err = list
	return out
}

type separation struct {
	p      *policy.Program
	side   side
	refuse bool
	out    []Breach
	work   int
}

func (s *separation) add(rule Rule, refused bool, subject string, at policy.Pos, format string, args ...any) {
	if len(s.out) < 4*maxBreaches {
		s.out = append(s.out, Breach{rule, refused, subject, policy.Finding{Pos: at, Message: fmt.Sprintf(format, args...)}})
	}
}

// alone: proposer and approver are one.
func (s *separation) alone() {
	if !s.p.Environment().Needs(policy.ActBundle).Self {
		return
	}
	for _, o := range s.p.Operators() {
		if o.Has(policy.DutyPropose) && o.Has(policy.DutyApprove) {
			s.add(RuleAlone, s.refuse, o.Path(), o.Source, "%s proposes a bundle, approves it alone since approvals.required is 0, and so can have every secret: "+
				"proposer, approver and consumer are one person", o.Name)
		}
	}
}

// lost are the operators without whom no change could be approved.
func lost(p *policy.Program) []policy.Operator {
	var out []policy.Operator
	for _, gone := range p.Operators() {
		if !policy.Quorum(p, policy.ActBundle, func(o policy.Operator) bool { return o.Name != gone.Name }) {
			out = append(out, gone)
		}
	}
	return out
}

func (s *separation) recovery() {
	for _, o := range lost(s.p) {
		s.add(RuleRecovery, s.refuse, o.Path(), o.Source, "%s", lossOf(s.p, o))
	}
}

func lossOf(p *policy.Program, gone policy.Operator) string {
	need := p.Environment().Needs(policy.ActBundle)
	who := " others who approve"
	if need.Self {
		who = " who approve"
	}
	if need.Hardware {
		who += " by hardware-backed keys"
	}
	return fmt.Sprintf("if %s is lost, no change can be approved any more: it takes one who proposes and %d%s", gone.Name, need.Approvals, who)
}

// Recovery refuses a change after which fewer than two operators could recover the environment: the loss of some one of them would be
// the end of it. Where that was so before, as with two operators of whom one must approve, it may stay so, and nobody may become
// indispensable who was not. In the class development, which may have one operator, it is only advice (Separation).
func Recovery(before, after *policy.Program) error {
	if after.Environment().Class == policy.Development {
		return nil
	}
	was, is := lost(before), lost(after)
	for _, o := range is {
		_, known := before.Operator(o.Name)
		if len(was) == 0 || known && !slices.ContainsFunc(was, func(x policy.Operator) bool { return x.Name == o.Name }) {
			p := problem.New(problem.ReasonLastQuorum, "%s: %s", o.Source, lossOf(after, o))
			return p.WithFix("keep one more operator with the duties propose and approve, or lower approvals.required")
		}
	}
	return nil
}

// everybody: a grant for /* is one for all operators, now and later.
func (s *separation) everybody() {
	humans, _ := identity.ParseIDPattern(identity.PrefixHuman + "*")
	for i := range s.side.rules {
		r := &s.side.rules[i]
		if r.Effect != policy.Allow {
			continue
		}
		for _, who := range r.Identities {
			if who == humans || !who.Covers(humans) {
				continue
			}
			for _, secret := range r.Secrets {
				for _, a := range r.Actions {
					if s.open(a, rect{humans, secret}) {
						s.add(RuleEverybody, s.refuse, who.String()+" "+secret.String(), r.Source, "the grant %s permits %s on %s to %s, which is every operator too (/human/*): name who it is for, or deny it to /human/*",
							r.Name, a, secret, who)
						break
					}
				}
			}
		}
	}
}

// open reports whether the grants permit an action at a rectangle's own point at all, maybe under a condition.
func (s *separation) open(a policy.Action, at rect) bool {
	return s.work <= maxWork && len(formsOf(a, s.side.governing(a, at, &s.work), &s.work)) > 0
}

// makes are the actions that give a secret its value.
var makes = []policy.Action{policy.WriteSecret}

// readBack: write by one grant and read by another, and no grant that names both. Who generates a value doesn't know it, so generating
// is not writing.
func (s *separation) readBack() {
	var readers []corner
	for i := range s.side.rules {
		r := &s.side.rules[i]
		if r.Effect != policy.Allow || !slices.Contains(r.Actions, policy.ReadSecret) {
			continue
		}
		for _, who := range r.Identities {
			for _, secret := range r.Secrets {
				readers = append(readers, corner{rect: rect{who, secret}, rule: r})
			}
		}
	}
	all := newCorners(readers)
	told := map[[2]*rule]bool{}
	for i := range s.side.rules {
		w := &s.side.rules[i]
		if w.Effect != policy.Allow || len(intersection(makes, w.Actions)) == 0 || slices.Contains(w.Actions, policy.ReadSecret) {
			continue
		}
		for _, who := range w.Identities {
			for _, secret := range w.Secrets {
				all.meeting(rect{who, secret}, &s.work, func(x *corner) bool {
					at, _ := x.meet(rect{who, secret})
					if pair := [2]*rule{w, x.rule}; !told[pair] && !slices.Contains(x.rule.Actions, policy.WriteSecret) && s.both(at) {
						told[pair] = true
						s.add(RuleReadBack, s.refuse, at.who.String()+" "+at.secret.String(), x.rule.Source, "%s may write %s by the grant %s (%s), and read it back by the grant %s: name both actions in one grant if that is wanted",
							at.who, at.secret, w.Name, w.Source, x.rule.Name)
					}
					return len(s.out) < maxBreaches
				})
			}
		}
	}
}

// both reports whether a point's identity may write and read, and no one grant says so.
func (s *separation) both(at rect) bool {
	if !s.open(policy.WriteSecret, at) || !s.open(policy.ReadSecret, at) {
		return false
	}
	return !slices.ContainsFunc(s.side.governing(policy.ReadSecret, at, &s.work), func(r *rule) bool {
		return r.Effect == policy.Allow && slices.Contains(r.Actions, policy.WriteSecret)
	})
}

// admit: a person who writes a secret can make a machine that reads it. One such secret is enough to say so.
func (s *separation) admit() {
	for _, o := range s.p.Operators() {
		if !o.Has(policy.DutyAdmit) {
			continue
		}
		me, _ := identity.ParseIDPattern(o.Path())
		var makers []identity.Pattern
		for i := range s.side.rules {
			r := &s.side.rules[i]
			if r.Effect == policy.Allow && slices.Contains(r.Actions, policy.WriteSecret) && slices.ContainsFunc(r.Identities, func(x identity.Pattern) bool { return x.Covers(me) }) {
				makers = append(makers, r.Secrets...)
			}
		}
		if len(makers) > 0 {
			s.admits(o, controlled(s.p, o.Name), makers)
		}
	}
}

func (s *separation) admits(o policy.Operator, machines, secrets []identity.Pattern) {
	for i := range s.side.rules {
		r := &s.side.rules[i]
		if r.Effect != policy.Allow || !slices.Contains(r.Actions, policy.ReadSecret) {
			continue
		}
		for _, who := range r.Identities {
			for _, machine := range machines {
				at, ok := meet(who, machine)
				if !ok {
					continue
				}
				for _, name := range r.Secrets {
					for _, written := range secrets {
						if secret, ok := meet(name, written); ok && s.open(policy.ReadSecret, rect{at, secret}) {
							s.add(RuleAdmit, false, o.Path(), r.Source, "%s (%s) may write %s, and by the duty admit make a machine that reads it as %s by the grant %s",
								o.Name, o.Source, secret, at, r.Name)
							return
						}
					}
				}
			}
		}
	}
}
