package policy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// lines are where the fields of a rule stand in its file, for those who change one; 0: it isn't given.
type lines struct {
	when, require  fieldLine
	assurance, ttl int32
	glass          int32
	lists          [2]int32 // identities and secrets of a grant; nodes of a workload
}

// fieldLine is where a text stands. The lines of a block are below it.
type fieldLine struct {
	line  int32
	block bool
}

func lineOf(t text) fieldLine { return fieldLine{int32(t.at.Line), t.block} }

func firstLines(a, b []text) (out [2]int32) {
	for i, list := range [][]text{a, b} {
		if len(list) > 0 {
			out[i] = int32(list[0].at.Line)
		}
	}
	return out
}

// Mutant is a weaker rule that no test tells from the one that there is.
type Mutant struct {
	Source Pos    `json:"source"`
	Rule   string `json:"rule"`   // "the grant NAME" or "the identity NAME"
	Change string `json:"change"` // how it is weaker
	LetsIn string `json:"letsIn"` // what it would let in
}

// MutationReport is what mutation found. Mutants that change nothing are not counted.
type MutationReport struct {
	Mutants   int      `json:"mutants"`
	Killed    int      `json:"killed"`
	Survivors []Mutant `json:"survivors"` // in the order of the rules; at most maxSurvivors
}

const maxSurvivors = 1000

// Mutate weakens each rule of the bundle in each way, one at a time, and runs the tests that the rule can have to do with. A mutant is
// killed by a test that fails. Before, all tests must pass: else the error is of reason bundle-invalid. The context is looked at between
// mutants.
func (p *Program) Mutate(ctx context.Context) (*MutationReport, error) {
	report, err := p.RunTests(ctx)
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return nil, err
	}
	m := &mutation{ctx: ctx}
	if err := m.run(p); err != nil {
		return nil, err
	}
	return m.report, nil
}

func (m *mutation) run(p *Program) (err error) {
	m.origin, m.p, m.report = p, p.private(), &MutationReport{Survivors: []Mutant{}}
	if m.grants, err = newConditionMutator(grantScope); err == nil {
		m.rules, err = newConditionMutator(identityScope)
	}
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "mutating the bundle")
	}
	m.ask()
	for i := range p.grants {
		m.grant(i)
	}
	for i := range p.nodes {
		m.rule(&m.p.nodes[i])
	}
	for i := range p.workloads {
		m.rule(&m.p.workloads[i])
	}
	if m.stopped {
		return problem.Wrap(m.ctx.Err(), problem.ReasonTooSlow, "mutating the bundle")
	}
	return nil
}

// private is a copy whose rules may be changed one at a time. What they hold is shared.
func (p *Program) private() *Program {
	q := *p
	q.grants, q.nodes, q.workloads = slices.Clone(p.grants), slices.Clone(p.nodes), slices.Clone(p.workloads)
	clone := func(n patternNumbers) patternNumbers {
		return patternNumbers{maps.Clone(n.exact), maps.Clone(n.subtrees), n.count}
	}
	q.index = grantIndex{clone(p.index.identities), clone(p.index.secrets), maps.Clone(p.index.pairs)}
	return &q
}

type mutation struct {
	ctx     context.Context
	stopped bool
	origin  *Program
	p       *Program // a private copy, with one weaker rule at a time
	report  *MutationReport
	grants  *conditionMutator
	rules   *conditionMutator
	asked   []asked
	proofs  []*testCase
	each    func(*Program) // a test's look at every mutant of a grant; nil otherwise
}

// asked is a case of which the grants are asked, and what they are.
type asked struct {
	t  *testCase
	in Input
}

func (m *mutation) ask() {
	for i := range m.origin.tests {
		for j := range m.origin.tests[i].cases {
			t := &m.origin.tests[i].cases[j]
			in := t.in
			if t.proof != nil {
				m.proofs = append(m.proofs, t)
				a := m.origin.answer(t, nil)
				if a.refused != nil {
					continue
				}
				in.Identity = a.match.Path
			}
			if t.decides {
				m.asked = append(m.asked, asked{t, in})
			}
		}
	}
}

// judge counts a mutant, and keeps it if nobody killed it.
func (m *mutation) judge(killed bool, survivor Mutant) {
	m.report.Mutants++
	switch {
	case killed:
		m.report.Killed++
	case len(m.report.Survivors) < maxSurvivors:
		m.report.Survivors = append(m.report.Survivors, survivor)
	}
}

// tryGrant puts a weaker grant into the place of the i-th.
func (m *mutation) tryGrant(i int, weak grant, line int32, change, letsIn string) {
	if m.stopped = m.stopped || m.ctx.Err() != nil; m.stopped {
		return
	}
	g := &m.origin.grants[i]
	m.p.grants[i] = weak
	defer func() { m.p.grants[i] = *g }()
	if m.each != nil {
		m.each(m.p)
	}
	killed := slices.ContainsFunc(m.asked, func(x asked) bool {
		// What neither of the two is about is answered as before.
		if !matchAny(weak.identities, x.in.Identity) && !matchAny(g.identities, x.in.Identity) || !matchAny(weak.secrets, x.in.Secret) && !matchAny(g.secrets, x.in.Secret) {
			return false
		}
		a := answer{d: m.p.decide(&x.in, nil)}
		if a.d.Allow {
			a.most = m.p.longestLease(x.in.Secret, a.d)
		}
		return !x.t.fits(a)
	})
	m.judge(killed, Mutant{at(g.source, line), "the grant " + g.name, change, letsIn})
}

func at(source Pos, line int32) Pos {
	if line > 0 {
		return Pos{File: source.File, Line: int(line)}
	}
	return source
}

func (m *mutation) grant(i int) {
	g := &m.origin.grants[i]
	if g.effect == Deny {
		m.deny(i, g)
		return
	}
	m.condition(g.whenText, true, g.lines.when, m.grants, func(c *condition, line int32, change, letsIn string) {
		weak := *g
		weak.when = c
		m.tryGrant(i, weak, line, change, "requests "+letsIn)
	})
	if g.assurance > identity.Unbound {
		weak := *g
		weak.assurance--
		m.tryGrant(i, weak, g.lines.assurance, "assurance "+weak.assurance.String()+" instead of "+g.assurance.String(), "sessions of assurance "+weak.assurance.String())
	}
	if len(g.purposes) > 0 {
		weak := *g
		weak.purposes = nil
		m.tryGrant(i, weak, 0, "for any purpose", "requests for purposes other than "+strings.Join(g.purposes, ", "))
	}
	m.widen(g.identities, m.gains(g), func(wide []identity.Pattern, from, to identity.Pattern) {
		weak := *g
		weak.identities = wide
		m.p.index.widen(&weak)
		m.tryGrant(i, weak, g.lines.lists[0], to.String()+" instead of "+from.String(), "identities below "+to.String())
	})
	m.widen(g.secrets, m.origin.declaredBeyond, func(wide []identity.Pattern, from, to identity.Pattern) {
		weak := *g
		weak.secrets = wide
		m.p.index.widen(&weak)
		m.tryGrant(i, weak, g.lines.lists[1], to.String()+" instead of "+from.String(), "secrets below "+to.String())
	})
	if g.glass > 0 {
		weak := *g
		weak.glass = 0
		m.tryGrant(i, weak, g.lines.glass, "open at all times", "who has not broken the glass")
	}
	if g.ttl > 0 && m.origin.ttlCounts(g) {
		weak := *g
		weak.ttl, weak.rank = 0, -1 // the longest lease is the first
		m.tryGrant(i, weak, g.lines.ttl, "without its ttl", "leases of more than "+shortDuration(g.ttl))
	}
}

func (m *mutation) deny(i int, g *grant) {
	forbidden := "what it denies: " + joinActions(g.actions) + " on " + joinPatterns(g.secrets) + " to " + joinPatterns(g.identities)
	gone := *g
	gone.actions = 0
	m.tryGrant(i, gone, 0, "without it", forbidden)
	m.condition(g.whenText, false, g.lines.when, m.grants, func(c *condition, line int32, change, letsIn string) {
		if c == nil {
			return // without it, which was tried
		}
		weak := *g
		weak.when = c
		m.tryGrant(i, weak, line, change, "requests "+letsIn)
	})
	for _, a := range g.actions.list() {
		if weak := *g; g.actions != a.bit() {
			weak.actions &^= a.bit()
			m.tryGrant(i, weak, 0, "without "+string(a), string(a)+" on what it is about")
		}
	}
	m.shorten(len(g.identities), func(j int) {
		weak := *g
		weak.identities = slices.Delete(slices.Clone(g.identities), j, j+1)
		m.tryGrant(i, weak, g.lines.lists[0], "without "+g.identities[j].String(), g.identities[j].String())
	})
	m.shorten(len(g.secrets), func(j int) {
		weak := *g
		weak.secrets = slices.Delete(slices.Clone(g.secrets), j, j+1)
		m.tryGrant(i, weak, g.lines.lists[1], "without "+g.secrets[j].String(), "requests for "+g.secrets[j].String())
	})
	m.shorten(len(g.purposes), func(j int) {
		weak := *g
		weak.purposes = slices.Delete(slices.Clone(g.purposes), j, j+1)
		m.tryGrant(i, weak, 0, "without the purpose "+g.purposes[j], "requests for the purpose "+g.purposes[j])
	})
}

// shorten takes each of n away, if that leaves any.
func (m *mutation) shorten(n int, try func(j int)) {
	for j := 0; n > 1 && j < n; j++ {
		try(j)
	}
}

func joinActions(s actionSet) string {
	var names []string
	for _, a := range s.list() {
		names = append(names, string(a))
	}
	return strings.Join(names, ", ")
}

// condition weakens a condition that is there; nil stands for none.
func (m *mutation) condition(text string, aim bool, where fieldLine, by *conditionMutator, try func(c *condition, line int32, change, letsIn string)) {
	if text == "" {
		return
	}
	for _, x := range by.of(text, aim) {
		line := where.line
		if where.block {
			line += int32(x.line)
		}
		part := oneLine(x.part)
		if x.dropped {
			try(nil, line, "without its condition", "for which this is "+fmt.Sprint(!aim)+", or can't be told: "+part)
			continue
		}
		try(x.condition, line, fmt.Sprintf("with `%s` taken for %t", part, x.taken), fmt.Sprintf("for which `%s` is %t", part, !x.taken))
	}
}

// widen puts in the place of each pattern the narrowest subtree around it that lets in anything more.
func (m *mutation) widen(patterns []identity.Pattern, gains func(wide, without []identity.Pattern) bool, try func(wide []identity.Pattern, from, to identity.Pattern)) {
	for i, from := range patterns {
		for to, ok := parent(from); ok; to, ok = parent(to) {
			wide := slices.Clone(patterns)
			if wide[i] = to; gains(wide, patterns) {
				try(wide, from, to)
				break
			}
		}
	}
}

// parent is the subtree that a pattern is in: of /a/b and of /a/b/* it is /a/*.
func parent(p identity.Pattern) (identity.Pattern, bool) {
	path, exact := p.Exact()
	if !exact {
		path, _ = p.Prefix()
	}
	if path == "" {
		return identity.Pattern{}, false
	}
	cut := strings.LastIndexByte(path, '/')
	parse := identity.ParseSecretPattern
	if path[0] == '/' {
		parse = identity.ParseIDPattern
	}
	text := path[:max(cut, 0)] + "/*"
	if cut < 0 {
		text = "*" // of a secret at the top
	}
	out, err := parse(text)
	return out, err == nil && out != p
}

// gains reports whether anybody who may ask is let in by wide and not by the grant, other than those whom another grant keeps out, or lets
// in, in any case.
func (m *mutation) gains(g *grant) func(wide, without []identity.Pattern) bool {
	return func(wide, without []identity.Pattern) bool {
		return m.origin.somebodyIn(wide, without, func(who identity.Pattern) bool { return m.origin.settled(who, g) })
	}
}

// somebodyIn reports whether anybody can have an identity that one list of patterns selects and the other doesn't; kept says who does not
// count.
func (p *Program) somebodyIn(wide, without []identity.Pattern, kept func(identity.Pattern) bool) bool {
	exactly := func(path string) bool {
		if !matchAny(wide, path) || matchAny(without, path) {
			return false
		}
		pattern, err := identity.ParseIDPattern(path)
		return err != nil || !kept(pattern)
	}
	for _, o := range p.operators {
		if exactly(o.Path()) {
			return true
		}
	}
	for path := range p.byWorkload {
		if exactly(path) {
			return true
		}
	}
	for i := range p.nodes {
		t := p.nodes[i].path
		in := func(q identity.Pattern) bool { return t.within(q) }
		if slices.ContainsFunc(wide, t.meets) && !slices.ContainsFunc(without, in) {
			subtree, err := identity.ParseIDPattern(t.fixed())
			if err != nil || !kept(subtree) {
				return true
			}
		}
	}
	return false
}

// fixed is a pattern for all that a template gives: its path, or the subtree of the literal segments that it begins with.
func (t template) fixed() string {
	var b strings.Builder
	for _, s := range t {
		b.WriteByte('/')
		if s.claim != nil {
			b.WriteByte('*')
			break
		}
		b.WriteString(s.literal)
	}
	return b.String()
}

// within reports whether the pattern selects all that the template gives.
func (t template) within(p identity.Pattern) bool {
	own, err := identity.ParseIDPattern(t.fixed())
	return err == nil && p.Covers(own)
}

// meets reports whether the pattern selects anything that the template can give.
func (t template) meets(p identity.Pattern) bool {
	path, exact := p.Exact()
	if !exact {
		path, _ = p.Prefix()
	}
	var segments []string
	if path != "" {
		segments = strings.Split(path[1:], "/")
	}
	if exact {
		return t.overlaps(plain(segments))
	}
	return len(segments) < len(t) && t[:len(segments)].overlaps(plain(segments))
}

// settled reports whether another grant, without a condition, decides before g whatever those whom a pattern selects could ask g for.
func (p *Program) settled(who identity.Pattern, g *grant) bool {
	for i := range p.grants[:g.rank] {
		if d := &p.grants[i]; d.settles(g) && covered([]identity.Pattern{who}, d.identities) {
			return true
		}
	}
	return false
}

// settles reports whether the grant, which is of a lower rank, decides whatever o could decide for somebody whom it is about.
func (g *grant) settles(o *grant) bool {
	if g.when != nil || g.actions&o.actions != o.actions || !covered(o.secrets, g.secrets) {
		return false
	}
	if o.actions&ReadSecret.bit() != 0 && len(g.purposes) > 0 && (len(o.purposes) == 0 || slices.ContainsFunc(o.purposes, func(s string) bool { return !slices.Contains(g.purposes, s) })) {
		return false
	}
	return g.effect == Deny || o.effect == Allow && g.assurance <= o.assurance
}

// covered reports whether each pattern is inside of one of the others.
func covered(inner, outer []identity.Pattern) bool {
	return !slices.ContainsFunc(inner, func(p identity.Pattern) bool {
		return !slices.ContainsFunc(outer, func(q identity.Pattern) bool { return q.Covers(p) })
	})
}

// declaredBeyond reports whether a secret can exist that one list of patterns selects and the other doesn't.
func (p *Program) declaredBeyond(wide, without []identity.Pattern) bool {
	return slices.ContainsFunc(p.secrets, func(s Secret) bool {
		return slices.ContainsFunc(wide, func(w identity.Pattern) bool { return w.Covers(s.Pattern) || s.Pattern.Covers(w) }) &&
			!slices.ContainsFunc(without, func(w identity.Pattern) bool { return w.Covers(s.Pattern) })
	})
}

// ttlCounts reports whether the grant's ttl is the shortest for any secret that it is about.
func (p *Program) ttlCounts(g *grant) bool {
	return slices.ContainsFunc(p.secrets, func(s Secret) bool {
		most := p.environment.Leases.Max
		if s.Lease.Max > 0 {
			most = min(most, s.Lease.Max)
		}
		return g.ttl < most && slices.ContainsFunc(g.secrets, func(q identity.Pattern) bool { return q.Covers(s.Pattern) || s.Pattern.Covers(q) })
	})
}

// tryRule judges a weaker identity rule. r points into the private copy.
func (m *mutation) tryRule(r *identityRule, weak identityRule, line int32, change, letsIn string) {
	if m.stopped = m.stopped || m.ctx.Err() != nil; m.stopped {
		return
	}
	was := *r
	*r = weak
	defer func() { *r = was }()
	killed := slices.ContainsFunc(m.proofs, func(t *testCase) bool {
		return t.proof.method == r.method && (r.method == MethodWorkload || t.proof.authority == r.authority) && !t.fits(m.p.answer(t, nil))
	})
	m.judge(killed, Mutant{at(was.source, line), "the identity " + was.name, change, letsIn})
}

func (m *mutation) rule(r *identityRule) {
	who := "machines"
	switch {
	case r.method == MethodWorkload:
		who = "processes"
	case strings.HasPrefix(r.pathText, identity.PrefixCI):
		who = "jobs"
	}
	m.condition(r.whenText, true, r.lines.when, m.rules, func(c *condition, line int32, change, letsIn string) {
		weak := *r
		weak.when = c
		m.tryRule(r, weak, line, change, who+" "+letsIn)
	})
	m.condition(r.required, true, fieldLine{line: r.lines.require.line}, m.rules, func(c *condition, line int32, change, letsIn string) {
		weak := *r
		weak.require = c
		m.tryRule(r, weak, line, strings.Replace(change, "without its condition", "without what it requires", 1), who+" "+letsIn)
	})
	if r.otherwise {
		weak := *r
		weak.otherwise = false
		m.tryRule(r, weak, r.lines.require.line, "refusing instead of quarantining", who+" that are not as required stay enrolled")
	}
	everybody := func(identity.Pattern) bool { return false }
	m.widen(r.nodes, func(wide, without []identity.Pattern) bool {
		return m.origin.nodeIn(wide, without, everybody)
	}, func(wide []identity.Pattern, from, to identity.Pattern) {
		weak := *r
		weak.nodes = wide
		m.tryRule(r, weak, r.lines.lists[0], "with nodes "+to.String()+" instead of "+from.String(), "processes of nodes below "+to.String())
	})
}

// nodeIn is somebodyIn for nodes only.
func (p *Program) nodeIn(wide, without []identity.Pattern, kept func(identity.Pattern) bool) bool {
	q := Program{}
	for _, r := range p.nodes {
		if strings.HasPrefix(r.pathText, identity.PrefixNode) {
			q.nodes = append(q.nodes, r)
		}
	}
	return q.somebodyIn(wide, without, kept)
}
