package policy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Action is something that may be done with a secret.
type Action string

// The closed set of actions.
const (
	ReadSecret     Action = "secret.read"
	WriteSecret    Action = "secret.write"
	GenerateSecret Action = "secret.generate"
	ListSecret     Action = "secret.list"
	DestroySecret  Action = "secret.destroy"
	PromoteSecret  Action = "secret.promote"
)

type actionSet uint8

// bit is 0 for what is no action, which no grant contains.
func (a Action) bit() actionSet {
	switch a {
	case ReadSecret:
		return 1
	case WriteSecret:
		return 2
	case GenerateSecret:
		return 4
	case ListSecret:
		return 8
	case DestroySecret:
		return 16
	case PromoteSecret:
		return 32
	}
	return 0
}

// Effect is what a grant does.
type Effect string

// The effects. Deny wins.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// Input is a question: everything that a decision depends on besides the bundle. It must not be
// changed while it is being decided.
type Input struct {
	Action     Action
	Identity   string // path, as /workload/payments-api
	Node       string // path of the node that speaks for the identity; "" for none
	Claims     Claims // of the identity's session
	NodeClaims Claims // of the node's session
	Assurance  identity.Assurance
	Secret     string    // path
	Purpose    string    // for secret.read; other actions have none
	Time       time.Time // seen by conditions in UTC, cut to whole milliseconds
	Opened     []Opened  // the break-glass grants that the identity has opened; those whose time is over count for nothing
}

// Opened says that a break-glass grant was opened by the one who asks.
type Opened struct {
	Grant string
	Until time.Time // from then on it is closed
}

// Decision is the answer.
type Decision struct {
	Allow   bool
	Reason  problem.Reason // why not; "" if allowed
	Grant   string         // the grant that decided, or that came nearest; "" if none did
	TTL     time.Duration  // the longest lease by this grant; 0: the grant doesn't say
	Message string         // why not, for people; "" if allowed
	Glass   bool           // it is allowed by a break-glass grant that is open
	// Undecided: the condition of the grant that refuses, or would have allowed, could not be told.
	Undecided bool
}

// Err is nil for an allowed request, and otherwise the refusal in the vocabulary.
func (d Decision) Err() error {
	if d.Allow {
		return nil
	}
	return problem.New(d.Reason, "%s", d.Message)
}

// grant is a compiled Grant document.
type grant struct {
	name       string
	rank       int // position in Program.grants
	effect     Effect
	actions    actionSet
	identities []identity.Pattern // none covers another
	secrets    []identity.Pattern // none covers another
	purposes   []string           // sorted; empty: any
	assurance  identity.Assurance
	ttl        time.Duration
	when       *condition    // nil: none
	whenText   string        // as it is written
	glass      time.Duration // how long it may be opened; 0: it is no break-glass grant
	source     Pos
	lines      lines
}

// stage is how far a request got with a grant. Further is more informative.
type stage uint8

const (
	stageAction stage = iota
	stageIdentity
	stageSecret
	stagePurpose
	stageAssurance
	stageCondition
	stageGlass // the last: who is told to break the glass gets what is behind it
	stageApplies
)

var stageNames = [...]string{"action", "identity", "secret", "purpose", "assurance", "condition", "break-glass", "applies"}

// evaluate is THE rule evaluator. It returns the stage at which the grant failed, or stageApplies,
// and the error of a condition that could not be told.
func (g *grant) evaluate(in *Input, v *vars) (stage, error) {
	if s := g.concerns(in.Action, in.Identity, in.Secret); s != stagePurpose {
		return s, nil
	}
	if in.Action == ReadSecret && len(g.purposes) > 0 && !slices.Contains(g.purposes, in.Purpose) {
		return stagePurpose, nil
	}
	if !in.Assurance.AtLeast(g.assurance) {
		return stageAssurance, nil
	}
	if g.when != nil {
		ok, err := g.when.holds(v)
		v.seen.grant(g, ok, err)
		switch {
		case err != nil && g.effect == Deny:
			return stageApplies, err // what forbids must not be got round by leaving a claim out
		case err != nil || !ok:
			return stageCondition, err
		}
	}
	if g.glass > 0 && in.leftOf(g.name) <= 0 {
		return stageGlass, nil
	}
	return stageApplies, nil
}

// leftOf is for how long a break-glass grant is still open; 0 or less: it isn't.
func (in *Input) leftOf(grant string) (left time.Duration) {
	for _, o := range in.Opened {
		if o.Grant == grant {
			left = max(left, o.Until.Sub(in.Time))
		}
	}
	return left
}

// longest is the longest lease by the grant, as far as it says: no hand-over by it outlasts its being open. 0: it doesn't say.
func (g *grant) longest(in *Input) time.Duration {
	if g.glass == 0 {
		return g.ttl
	}
	if left := in.leftOf(g.name); g.ttl == 0 || left < g.ttl {
		return left
	}
	return g.ttl
}

// concerns is the part of evaluate that asks only who, what and which secret: the stage at which the grant failed, or stagePurpose, the
// first that is still to be asked.
func (g *grant) concerns(action Action, id, secret string) stage {
	switch {
	case g.actions&action.bit() == 0:
		return stageAction
	case !matchAny(g.identities, id):
		return stageIdentity
	case !matchAny(g.secrets, secret):
		return stageSecret
	}
	return stagePurpose
}

func matchAny(patterns []identity.Pattern, path string) bool {
	for i := range patterns {
		if patterns[i].Match(path) {
			return true
		}
	}
	return false
}

// verdict folds the grants' outcomes. The result does not depend on their order.
type verdict struct {
	deny    *grant // the first by rank that applies
	allow   *grant // the first by rank that applies
	nearest *grant // the allow grant that came furthest, then first by rank
	stage   stage  // of nearest
	err     error  // of nearest, or of deny
}

// needed reports whether the grant's outcome can still change the result.
func (v *verdict) needed(g *grant) bool {
	if v.deny != nil && v.deny.rank < g.rank {
		return false
	}
	return g.effect == Deny || v.allow == nil || g.rank < v.allow.rank || v.allow.glass > 0
}

// better reports whether an allow grant that applies decides rather than another: by the longer lease, then by rank. Among grants that
// are not for emergencies that is their rank alone; of those that are it depends on how long they are still open.
func (g *grant) better(than *grant, in *Input) bool {
	if g.glass == 0 && than.glass == 0 {
		return g.rank < than.rank
	}
	mine, other := g.longest(in), than.longest(in)
	switch {
	case mine == other:
		// The everyday one, of the two: what could be had without breaking the glass was had so.
		if (g.glass == 0) != (than.glass == 0) {
			return g.glass == 0
		}
		return g.rank < than.rank
	case mine == 0 || other == 0:
		return mine == 0
	}
	return mine > other
}

func (v *verdict) add(in *Input, g *grant, s stage, err error) {
	switch {
	case g.effect == Deny:
		if s == stageApplies && (v.deny == nil || g.rank < v.deny.rank) {
			v.deny, v.err = g, err
		}
	case s == stageApplies:
		if v.allow == nil || g.better(v.allow, in) {
			v.allow = g
		}
	case s > stageSecret:
		if v.nearest == nil || s > v.stage || s == v.stage && g.rank < v.nearest.rank {
			v.nearest, v.stage = g, s
			if v.deny == nil {
				v.err = err
			}
		}
	}
}

func (v *verdict) decision(in *Input) Decision {
	switch {
	case v.deny != nil:
		message := "the grant " + v.deny.name + " denies " + describe(in)
		if v.err != nil {
			message += " (its condition can't be told: " + v.err.Error() + ")"
		}
		return Decision{Reason: problem.ReasonDenied, Grant: v.deny.name, Message: message, Undecided: v.err != nil}
	case v.allow != nil:
		return Decision{Allow: true, Grant: v.allow.name, TTL: v.allow.longest(in), Glass: v.allow.glass > 0}
	case v.nearest == nil:
		return Decision{Reason: problem.ReasonNoGrant, Message: "no grant permits " + describe(in)}
	}
	d := Decision{Grant: v.nearest.name}
	switch v.stage {
	case stagePurpose:
		d.Reason = problem.ReasonPurpose
		d.Message = "the grant " + d.Grant + " is not for this purpose: " + describe(in)
	case stageAssurance:
		d.Reason = problem.ReasonAssurance
		d.Message = "the grant " + d.Grant + " asks for assurance " + v.nearest.assurance.String() + ", this session has " + in.Assurance.String() + ": " + describe(in)
	case stageGlass:
		d.Reason = problem.ReasonGlass
		d.Message = "the grant " + d.Grant + " is for emergencies, and is not open: " + describe(in)
	default:
		d.Reason = problem.ReasonCondition
		d.Message = "the condition of the grant " + d.Grant + " is not met: " + describe(in)
		if d.Undecided = v.err != nil; d.Undecided {
			d.Message += " (it can't be told: " + v.err.Error() + ")"
		}
	}
	return d
}

func describe(in *Input) string {
	s := string(in.Action) + " on " + in.Secret + " to " + in.Identity
	if in.Purpose != "" {
		s += " for purpose " + in.Purpose
	}
	return s
}

// Decide answers a question. Every allow grant is limited by every deny grant; among several allow
// grants the one that allows the longest lease is named, then the first by name, so that adding an
// allow grant never takes anything away. A break-glass grant applies while who asks has it open. It does not ask whether the secret is declared or exists.
func (p *Program) Decide(in *Input) Decision { return p.decide(in, nil) }

func (p *Program) decide(in *Input, seen *coverage) Decision {
	result := verdict{}
	v := &vars{in: in, prog: p, seen: seen}
	p.index.candidates(in.Identity, in.Secret, func(rank int32) {
		if g := &p.grants[rank]; result.needed(g) {
			s, err := g.evaluate(in, v)
			result.add(in, g, s, err)
		}
	})
	return result.decision(in)
}

// RuleTrace is what one grant said to a question.
type RuleTrace struct {
	Grant   string   `json:"grant"`
	Effect  Effect   `json:"effect"`
	Source  Pos      `json:"source"`
	Applies bool     `json:"applies"`
	Matched []string `json:"matched,omitempty"` // the parts that fit: action, identity, secret, purpose, assurance, condition, break-glass
	Failed  string   `json:"failed,omitempty"`  // the first part that did not
	Why     string   `json:"why,omitempty"`     // for people
	Named   bool     `json:"-"`                 // its identities include the one that asks
	stage   stage
}

// Explain is Decide with the reasons: it runs the same evaluator over every grant, without the
// index, and says how far each one got. The nearest come first.
func (p *Program) Explain(in *Input) (Decision, []RuleTrace) {
	result := verdict{}
	v := &vars{in: in, prog: p}
	rules := make([]RuleTrace, len(p.grants))
	for i := range p.grants {
		g := &p.grants[i]
		s, err := g.evaluate(in, v)
		result.add(in, g, s, err)
		rules[i] = g.trace(in, s, err)
	}
	slices.SortStableFunc(rules, func(a, b RuleTrace) int { return cmp.Compare(b.stage, a.stage) })
	return result.decision(in), rules
}

func (g *grant) trace(in *Input, s stage, err error) RuleTrace {
	t := RuleTrace{Grant: g.name, Effect: g.effect, Source: g.source, Applies: s == stageApplies, Named: matchAny(g.identities, in.Identity), stage: s}
	for i := stageAction; i < s; i++ {
		if i == stageCondition && g.when == nil || i == stageGlass && g.glass == 0 {
			continue
		}
		t.Matched = append(t.Matched, stageNames[i])
	}
	if s != stageApplies {
		t.Failed = stageNames[s]
	}
	switch s {
	case stageAction:
		t.Why = "it is not about " + string(in.Action)
	case stageIdentity:
		t.Why = in.Identity + " is not among " + joinPatterns(g.identities)
	case stageSecret:
		t.Why = in.Secret + " is not among " + joinPatterns(g.secrets)
	case stagePurpose:
		t.Why = "the purpose " + in.Purpose + " is not among " + strings.Join(g.purposes, ", ")
	case stageAssurance:
		t.Why = "it asks for assurance " + g.assurance.String() + ", the session has " + in.Assurance.String()
	case stageCondition:
		t.Why = "its condition is false"
		if err != nil {
			t.Why = "its condition can't be told: " + err.Error()
		}
	case stageGlass:
		t.Why = "it is for emergencies, and " + in.Identity + " has not opened it"
	case stageApplies:
		if err != nil {
			t.Why = "its condition can't be told, and so it denies: " + err.Error()
		}
	}
	return t
}

func joinPatterns(patterns []identity.Pattern) string {
	return strings.Join(identity.Texts(patterns), ", ")
}
