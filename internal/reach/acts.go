package reach

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

var (
	operatorsFile   = policy.Pos{File: "operators.yaml"}
	environmentFile = policy.Pos{File: "environment.yaml"}
)

// quorum is what an act takes that gives something: one who proposes it, and as many others who approve it as the bundle asks for.
type quorum struct {
	program   *policy.Program
	act       string
	name      string            // of what they get
	vertex    int32             // of what they get: the bundle, or the act
	by        map[string]bool   // who of those with the duty may propose it; nil: all
	operators []policy.Operator // who may propose or approve it
	approvals int
	single    map[string]bool // who is enough alone
}

// met reports whether those who are in hand can have the act carried out, by the rule that changes are carried out by.
func (q *quorum) met(has func(name string) bool) bool {
	return policy.QuorumBy(q.program, q.act, q.mayPropose, func(o policy.Operator) bool { return has(o.Name) })
}

func (q *quorum) mayPropose(o policy.Operator) bool {
	return q.by == nil || q.by[o.Name]
}

// alone reports whether everybody in it is a quorum by himself.
func (q *quorum) alone() bool { return len(q.single) == len(q.operators) }

// smallest takes members away as long as the rest suffices.
func (q *quorum) smallest(names []string) []string {
	names = slices.Clone(names)
	for i := 0; i < len(names); {
		rest := slices.Delete(slices.Clone(names), i, i+1)
		if q.met(func(name string) bool { return slices.Contains(rest, name) }) {
			names = rest
			continue
		}
		i++
	}
	return names
}

// takes is the act without which a grant permits nothing: a break-glass grant that nobody may open alone, and what takes others as well.
func takes(e policy.Environment, g *policy.Grant, a policy.Action) string {
	switch {
	case a == policy.DestroySecret && e.Takes(policy.ActDestroy):
		return policy.ActDestroy
	case g.Glass > 0 && e.BreakGlass.Openings == 0 && e.Takes(policy.ActGlass):
		return policy.ActGlass
	}
	return ""
}

// acts adds what operators can do together, each act with what it gives, and what holders of recovery keys can. Who is enough alone has an
// edge. Others are looked for by each question, as no edge can say that it takes several.
func (b *builder) acts() {
	g := b.g
	b.quorum(policy.ActBundle, theBundle, nil, g.bundle)
	classes, names, by := b.proposers()
	for _, class := range classes {
		vertex, name := b.vertex(kindAct, int32(len(g.quorums)), Plain), policy.ActExport
		if len(classes) > 1 {
			name += " by " + someOf(names[class])
		}
		if b.quorum(policy.ActExport, name, by[class], vertex) {
			open, maybe, unless := b.exported(b.idDenies.chain[class])
			b.line(vertex, line{hop: Gives, rule: policy.ActExport, from: name, to: "*", source: environmentFile}, "", Plain, g.layer(kindValue), open, maybe, unless)
		}
	}
	for _, act := range []string{policy.ActGlass, policy.ActDestroy} {
		b.forProposer(act, b.byAct[act])
	}
	for _, o := range g.program.Operators() {
		if slices.ContainsFunc(g.quorums, func(q quorum) bool {
			return slices.ContainsFunc(q.operators, func(x policy.Operator) bool { return x.Name == o.Name })
		}) {
			g.operators = append(g.operators, o)
		}
	}
	for i := range g.quorums {
		q := &g.quorums[i]
		for _, o := range q.operators {
			switch {
			case b.about.anyOperator || q.single[o.Name] && i == 0:
			case q.single[o.Name] && !g.quorums[0].single[o.Name]: // who is a quorum of the bundle has it by that, and by the same duty
			default:
				continue
			}
			l := line{hop: Carries, rule: string(policy.DutyPropose), from: o.Path(), to: q.name, source: operatorsFile}
			if i == 0 {
				l.hop = Changes
			}
			b.single(g.operator(o.Name), l, q.vertex)
		}
	}
	g.holders = -1
	if r := g.program.Environment().Recovery; r.Prepared() {
		g.holders = b.vertex(kindHolders, 0, Plain)
		b.single(g.holders, line{
			hop: Recovers, rule: "recovery", from: holdersOf(r).Name, to: theBundle, source: environmentFile,
			conditions: []string{fmt.Sprintf("if nobody stops it within %s, for which it is public", period(r.Delay))},
		}, g.bundle)
	}
}

// quorum adds an act, if there are persons for it.
func (b *builder) quorum(act, name string, by map[string]bool, vertex int32) bool {
	p := b.g.program
	q := quorum{program: p, act: act, name: name, vertex: vertex, by: by, approvals: p.Environment().Needs(act).Approvals, single: map[string]bool{}}
	if !q.met(func(string) bool { return true }) {
		return false
	}
	for _, o := range p.Operators() {
		if o.Has(policy.DutyPropose) && q.mayPropose(o) || o.Has(policy.DutyToApprove(act)) {
			q.operators = append(q.operators, o)
		}
	}
	for _, o := range q.operators {
		if q.met(func(name string) bool { return name == o.Name }) {
			q.single[o.Name] = true
		}
	}
	b.g.quorums = append(b.g.quorums, q)
	return true
}

// proposers are those who may propose, by the deny grants that concern them, in the order of the first of each.
func (b *builder) proposers() (classes []int32, names map[int32][]string, by map[int32]map[string]bool) {
	names, by = map[int32][]string{}, map[int32]map[string]bool{}
	for _, o := range b.g.program.Operators() {
		if !o.Has(policy.DutyPropose) {
			continue
		}
		class := b.idDenies.class[b.g.ids.exact[o.Path()]]
		if by[class] == nil {
			classes, by[class] = append(classes, class), map[string]bool{}
		}
		names[class] = append(names[class], o.Name)
		by[class][o.Name] = true
	}
	return classes, names, by
}

// exported is what deny grants leave of all secrets for an export.
func (b *builder) exported(denied []denial) (open, maybe []interval, unless []string) {
	denied = slices.DeleteFunc(slices.Clone(denied), func(d denial) bool { return !slices.Contains(d.grant.Actions, policy.ReadSecret) })
	away, doubtful, unless := denies(denied, purposeExport, nil)
	rest := minus(b.g.secrets.all(), away)
	open = without(rest, joined(doubtful))
	return open, without(rest, open), unless
}

// purposeExport is what an export's reads are for.
const purposeExport = "export"

// forProposer adds an act that gives its proposer what he has a grant for: one act for each operator who has any.
func (b *builder) forProposer(act string, rights []right) {
	g := b.g
	for _, o := range g.program.Operators() {
		at := g.ids.exact[o.Path()]
		vertex := int32(-1)
		for _, r := range rights {
			if i := g.ids.interval(r.identity); at < i.from || at >= i.to || !policy.OperatorAssurance.AtLeast(b.grants[r.grant].Assurance) {
				continue
			}
			if vertex < 0 {
				vertex = b.vertex(kindAct, int32(len(g.quorums)), Plain)
				if !b.quorum(act, act+" by "+o.Name, map[string]bool{o.Name: true}, vertex) {
					break
				}
			}
			b.right(vertex, r, g.ids.patterns[r.identity].String(), b.idDenies.chain[b.idDenies.class[at]])
		}
	}
}

func period(d time.Duration) string {
	if d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return d.String()
}

// someOf are names, cut short.
func someOf(names []string) string {
	const most = 6
	if n := len(names); n > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), n-most)
	}
	return strings.Join(names, ", ")
}

// holdersOf are as many holders of recovery keys as it takes.
func holdersOf(r policy.Recovery) Thing {
	var names []string
	for _, k := range r.Keys {
		if !slices.Contains(names, k.Person) {
			names = append(names, k.Person)
		}
	}
	return Thing{KindRecovery, fmt.Sprintf("%d of %s", r.Required, someOf(names))}
}

// together are as many of a quorum's operators as it takes.
func (q *quorum) together() Thing {
	var names []string
	for _, o := range q.operators {
		names = append(names, o.Name)
	}
	return Thing{KindTogether, fmt.Sprintf("%d of %s", q.approvals+1, someOf(names))}
}

func (g *graph) operator(name string) int32 {
	return g.thing(kindIdentity, g.ids.exact[identity.PrefixHuman+name])
}

// agrees is a person's part in an act.
func agrees(who, act Thing) Step {
	return Step{From: who, Hop: Approves, To: act, Rule: "propose, approve", Source: operatorsFile}
}

// coverage is which operators each vertex alone gets at.
type coverage struct {
	g    *graph
	bits [][]uint64 // by 64 operators, by vertex
}

// coverage goes backward from all operators at once, 64 at a time. It does not go over the bundle: who has that needs no operator for anything.
func (g *graph) coverage(worst Grade) *coverage {
	c := &coverage{g: g}
	for from := 0; from < len(g.operators); from += 64 {
		bits := make([]uint64, len(g.kinds))
		var queue []int32
		for i, o := range g.operators[from:min(from+64, len(g.operators))] {
			v := g.operator(o.Name)
			bits[v] |= 1 << i
			queue = append(queue, v)
		}
		for len(queue) > 0 {
			v := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			for _, w := range g.in.of(v) {
				if w != g.bundle && g.grades[w] <= worst && bits[w]|bits[v] != bits[w] {
					bits[w] |= bits[v]
					queue = append(queue, w)
				}
			}
		}
		c.bits = append(c.bits, bits)
	}
	return c
}

// of lists the operators that a vertex gets at.
func (c *coverage) of(v int32) []string {
	var out []string
	for i, o := range c.g.operators {
		if c.bits[i/64][v]&(1<<(i%64)) != 0 {
			out = append(out, o.Name)
		}
	}
	return out
}

// chained reports whether what an act gives has operators: then who gets at one act may get at another by it.
func (c *coverage) chained() bool {
	return slices.ContainsFunc(c.g.quorums[1:], func(q quorum) bool { return len(c.of(q.vertex)) > 0 })
}

// reaches reports whether those who get at some operators get at a target, which back has searched for backward, by acts: what one gives
// may have further operators.
func (c *coverage) reaches(back *search, has func(name string) bool) bool {
	done := make([]bool, len(c.g.quorums))
	var more []string
	for again := true; again; {
		again = false
		for i := range c.g.quorums {
			q := &c.g.quorums[i]
			if done[i] || !q.met(func(name string) bool { return has(name) || slices.Contains(more, name) }) {
				continue
			}
			if back.found(q.vertex) {
				return true
			}
			done[i] = true
			for _, name := range c.of(q.vertex) {
				if !has(name) && !slices.Contains(more, name) {
					more, again = append(more, name), true
				}
			}
		}
	}
	return false
}

// opening is how somebody gets at an act that takes several operators.
type opening struct {
	quorum *quorum
	by     []member
}

// member is an operator of an opening, and from where he was got at.
type member struct {
	name string
	from int32
}

// meeting finds the ways of who gets at several operators: to them, and to what they can do together.
type meeting struct {
	g     *graph
	worst Grade
	cover *coverage
	to    map[int32]*search // backward from operators, a few of them
}

const maxMeetings = 64

func (g *graph) meeting(worst Grade) *meeting {
	return &meeting{g: g, worst: worst, cover: g.coverage(worst), to: map[int32]*search{}}
}

func (m *meeting) toward(operator int32) *search {
	s, ok := m.to[operator]
	if !ok {
		if len(m.to) >= maxMeetings {
			clear(m.to)
		}
		s = m.g.explore([]int32{operator}, true, within{grade: m.worst})
		m.to[operator] = s
	}
	return s
}

// open lists the acts that all of some vertices together get at, one after the other, up to one that is enough: the bundle, which gives
// everything, or what enough says. Operators who can do one alone have edges for that, and are no part of it.
func (m *meeting) open(enough func(act int32) bool, from ...int32) []opening {
	first := map[string]int32{}
	var names []string
	add := func(v int32) {
		for _, name := range m.cover.of(v) {
			if _, had := first[name]; !had {
				first[name] = v
				names = append(names, name)
			}
		}
	}
	for _, v := range from {
		add(v)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	done := make([]bool, len(m.g.quorums))
	var out []opening
	for again := true; again; {
		again = false
		for i := range m.g.quorums {
			q := &m.g.quorums[i]
			if done[i] || len(names) < q.approvals {
				continue
			}
			mine := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return q.single[name] })
			if !q.met(func(name string) bool { return slices.Contains(mine, name) }) {
				continue
			}
			done[i], again = true, true
			o := opening{quorum: q}
			for _, name := range q.smallest(mine) {
				o.by = append(o.by, member{name, first[name]})
			}
			if out = append(out, o); q.vertex == m.g.bundle || enough(q.vertex) {
				return out
			}
			add(q.vertex)
		}
	}
	return out
}

// way is how one of the openings comes about, over those that it takes.
func (m *meeting) way(opened []opening, i int) (way []Step, grade Grade) {
	told := make([]bool, len(opened))
	var tell func(i int)
	tell = func(i int) {
		told[i] = true
		for _, x := range opened[i].by {
			if j := slices.IndexFunc(opened, func(o opening) bool { return o.quorum.vertex == x.from }); j >= 0 && !told[j] {
				tell(j)
			}
			v := m.g.operator(x.name)
			if x.from != v {
				to := m.toward(v)
				grade = max(grade, to.grade[x.from])
				way = append(way, to.way(x.from)...)
			}
			way = append(way, agrees(m.g.name(v), m.g.name(opened[i].quorum.vertex)))
		}
	}
	tell(i)
	return way, grade
}

// agreement is how one principal alone gets at an act that takes several operators.
type agreement struct {
	vertex int32 // of the act
	grade  Grade
	way    []Step // to each of them, and to the act
}

// agreements finds the acts that one of the starts alone gets at though they take several operators, each by the best way. far is what all
// of them reach.
func (g *graph) agreements(far *search, starts []int32, worst Grade) []agreement {
	var out []agreement
	for grade := Plain; grade <= worst && grade < gradeCount; grade++ {
		// What all of them together don't begin with, none of them does.
		if !slices.ContainsFunc(g.quorums, func(q quorum) bool {
			return q.met(func(name string) bool { return !q.single[name] && far.grade[g.operator(name)] <= grade })
		}) {
			continue
		}
		m := g.meeting(grade)
		for _, v := range starts {
			opened := m.open(func(int32) bool { return false }, v)
			for i, o := range opened {
				if slices.ContainsFunc(out, func(a agreement) bool { return a.vertex == o.quorum.vertex }) {
					continue
				}
				way, _ := m.way(opened, i)
				out = append(out, agreement{o.quorum.vertex, grade, way})
			}
		}
		if len(out) > 0 && slices.ContainsFunc(out, func(a agreement) bool { return a.vertex == g.bundle }) {
			return out // everything
		}
	}
	return out
}
