package reach

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// Attack is a smallest set of principals: all of them compromised reach the target, and none is superfluous.
type Attack struct {
	Who   []Thing `json:"who"`
	Cost  int     `json:"cost"`
	Grade Grade   `json:"grade"`
	Hops  int     `json:"hops"`
	Way   []Step  `json:"way"`
	v     []int32
}

// Attacks is the answer of To: the cheapest first.
type Attacks struct {
	Target   string   `json:"target"`
	Attacks  []Attack `json:"attacks"`
	Total    int      `json:"total"`    // of which Attacks are the first
	Complete bool     `json:"complete"` // false: there may be more sets of several principals
	Hops     []Step   `json:"hops"`     // the single hops between what is on the ways, as far as they make a picture
}

// To lists the smallest sets of principals whose compromise reaches a target: the cheapest first, then by grade, hops and name. Whoever
// is in the target is among them, as he has it.
func (m *Model) To(t Target, o Options) (*Attacks, error) {
	g, err := build(m.program, m.names, t.about(about{poisoning: o.Worst >= Poisoning}))
	if err != nil {
		return nil, err
	}
	targets, err := g.vertices(t)
	if err != nil {
		return nil, err
	}
	back := g.explore(targets, true, within{grade: o.Worst})
	out := &Attacks{Target: t.String(), Attacks: []Attack{}, Complete: true}
	alone := make([]bool, g.ids.len())
	for i, live := range g.live {
		if v := g.thing(kindIdentity, int32(i)); live && back.found(v) {
			who := g.name(v)
			alone[i] = true
			out.Attacks = append(out.Attacks, Attack{Who: []Thing{who}, Cost: o.Costs.of(who.Kind), Grade: back.grade[v], Hops: int(back.hops[v]), v: []int32{v}})
		}
	}
	order := func(x, y Attack) int {
		return cmp.Or(cmp.Compare(x.Cost, y.Cost), cmp.Compare(len(x.Who), len(y.Who)), cmp.Compare(x.Grade, y.Grade), cmp.Compare(x.Hops, y.Hops),
			slices.CompareFunc(x.Who, y.Who, func(a, b Thing) int { return strings.Compare(a.Name, b.Name) }))
	}
	if slices.ContainsFunc(g.quorums, func(q quorum) bool { return !q.alone() }) {
		out.Attacks = append(out.Attacks, g.together(back, alone, o, &out.Complete)...)
	}
	if v := g.holders; v >= 0 && back.found(v) {
		cost := g.program.Environment().Recovery.Required * o.Costs.of(KindPerson)
		out.Attacks = append(out.Attacks, Attack{Who: []Thing{g.name(v)}, Cost: cost, Grade: back.grade[v], Hops: int(back.hops[v]), v: []int32{v}})
	}
	slices.SortFunc(out.Attacks, order)
	out.Total = len(out.Attacks)
	var things []int32
	for _, a := range out.Attacks {
		for v := a.v[0]; len(a.v) == 1 && v >= 0 && back.found(v) && len(things) < PictureRows*PictureColumns; v = back.prev[v] {
			if g.kinds[v] <= kindBundle && !slices.Contains(things, v) {
				things = append(things, v)
			}
		}
	}
	out.Hops = g.between(things, o.Worst)
	var several *meeting // made when it is needed
	out.Attacks = listed(out.Attacks, o, func(a *Attack) []Step {
		if len(a.v) == 1 && back.found(a.v[0]) {
			a.Way = back.way(a.v[0])
			return a.Way
		}
		if several == nil {
			several = g.meeting(o.Worst)
		}
		return several.fill(a, back)
	})
	return out, nil
}

// together are the sets that get at a quorum: with several members, or with one that is not among those who reach the target without.
func (g *graph) together(back *search, alone []bool, o Options, complete *bool) []Attack {
	if !slices.ContainsFunc(g.quorums, func(q quorum) bool { return back.found(q.vertex) }) {
		return nil
	}
	cover := g.coverage(o.Worst)
	type principal struct {
		v    int32
		who  Thing
		gets []string
	}
	var members []principal
	for i, live := range g.live {
		v := g.thing(kindIdentity, int32(i))
		if !live || alone[i] {
			continue
		}
		if gets := cover.of(v); len(gets) > 0 {
			members = append(members, principal{v, g.name(v), gets})
		}
	}
	slices.SortStableFunc(members, func(a, b principal) int { return cmp.Compare(o.Costs.of(a.who.Kind), o.Costs.of(b.who.Kind)) })
	met := func(set []int, but int) bool {
		return cover.reaches(back, func(name string) bool {
			for _, i := range set {
				if i != but && slices.Contains(members[i].gets, name) {
					return true
				}
			}
			return false
		})
	}
	var out []Attack
	steps := 0
	var set []int
	var choose func(from, left int)
	choose = func(from, left int) {
		if left == 0 {
			if !met(set, -1) || slices.ContainsFunc(set, func(i int) bool { return met(set, i) }) {
				return
			}
			a := Attack{Grade: o.Worst}
			for _, i := range set {
				a.Who = append(a.Who, members[i].who)
				a.Cost += o.Costs.of(members[i].who.Kind)
			}
			slices.SortFunc(a.Who, func(x, y Thing) int { return strings.Compare(x.Name, y.Name) })
			for _, i := range set {
				a.v = append(a.v, members[i].v)
			}
			out = append(out, a)
			return
		}
		for i := from; i <= len(members)-left; i++ {
			if steps += 1 + len(g.operators); steps > maxQuorum {
				*complete = false
				return
			}
			set = append(set, i)
			choose(i+1, left-1)
			set = set[:len(set)-1]
		}
	}
	for size := 1; size <= min(g.largest(cover), len(members)) && *complete; size++ {
		choose(0, size)
	}
	return out
}

// largest is how many principals a smallest set has at most.
func (g *graph) largest(cover *coverage) int {
	one, all := 0, 0
	for _, q := range g.quorums {
		one, all = max(one, q.approvals+1), all+q.approvals+1
	}
	if cover.chained() {
		return all
	}
	return one
}

// fill gives a set of principals their way.
func (m *meeting) fill(a *Attack, back *search) []Step {
	opened := m.open(back.found, a.v...)
	if last := len(opened) - 1; last >= 0 && back.found(opened[last].quorum.vertex) {
		v := opened[last].quorum.vertex
		way, grade := m.way(opened, last)
		a.Grade = max(back.grade[v], grade)
		a.Way = append(way, back.way(v)...)
	}
	a.Hops = len(a.Way)
	return a.Way
}

// Limit is what shall not be: that compromising a single one of From reaches any of To.
type Limit struct {
	Name   string
	From   []identity.Pattern
	To     []Target
	Worst  Grade // ways up to this grade count: Poisoning for all
	Direct bool  // only what is reached in one hop counts
}

// Broken is a limit that does not hold.
type Broken struct {
	Limit string `json:"limit"`
	// Who reaches it, by which way, and how many do; or what makes that the limit is about nothing.
	Who   Thing  `json:"who,omitzero"`
	Total int    `json:"total"`
	Grade Grade  `json:"grade"`
	Way   []Step `json:"way"`
	Empty string `json:"empty,omitempty"`
}

// CheckLimits says which limits don't hold, in their order. One whose names nobody has, or no secret, is broken too: it would hold for
// ever, whatever was meant.
func CheckLimits(p *policy.Program, names Names, limits []Limit) ([]Broken, error) {
	var a about
	for _, l := range limits {
		if len(l.From) == 0 || len(l.To) == 0 || len(l.From) > maxPatterns || len(l.To) > maxPatterns {
			return nil, problem.New(problem.ReasonInvalid, "the limit %s needs 1 to %d patterns on each side", l.Name, maxPatterns)
		}
		a.poisoning = a.poisoning || l.Worst >= Poisoning
		a.identities = append(a.identities, l.From...)
		for _, t := range l.To {
			a = t.about(a)
		}
	}
	g, err := build(p, names, a)
	if err != nil {
		return nil, err
	}
	var out []Broken
	for _, l := range limits {
		if b := g.check(l); b != nil {
			out = append(out, *b)
		}
	}
	return out, nil
}

// outside are those of the starts that are no targets.
func outside(starts, targets []int32) []int32 {
	in := make(map[int32]bool, len(targets))
	for _, v := range targets {
		in[v] = true
	}
	return slices.DeleteFunc(slices.Clone(starts), func(v int32) bool { return in[v] })
}

func (g *graph) check(l Limit) *Broken {
	b := &Broken{Limit: l.Name}
	var targets []int32
	for _, t := range l.To {
		some, err := g.vertices(t)
		if err != nil {
			b.Empty = problem.As(err).Message
			return b
		}
		if t.Secrets != (identity.Pattern{}) && !g.declares(t.Secrets) {
			b.Empty = fmt.Sprintf("no secret that is %s is declared in this bundle", t.Secrets)
			return b
		}
		targets = append(targets, some...)
	}
	starts, err := g.starts(l.From, false)
	if err != nil {
		b.Empty = problem.As(err).Message
		return b
	}
	if len(outside(starts, targets)) == 0 {
		b.Empty = "whoever the limit is from is among those whom it keeps him from"
		return b
	}
	w := within{grade: l.Worst}
	if l.Direct {
		w.hops = 1
	}
	back := g.explore(targets, true, w)
	best := int32(-1)
	for _, v := range starts {
		if !back.found(v) || back.hops[v] == 0 {
			continue
		}
		b.Total++
		if best < 0 || cmp.Or(cmp.Compare(back.grade[v], back.grade[best]), cmp.Compare(back.hops[v], back.hops[best])) < 0 {
			best = v
		}
	}
	if best >= 0 {
		b.Who, b.Grade, b.Way = g.name(best), back.grade[best], back.way(best)
		return b
	}
	if l.Direct {
		return nil
	}
	for _, agreed := range g.agreements(g.explore(starts, false, w), starts, l.Worst) {
		if !back.found(agreed.vertex) {
			continue
		}
		grade, way := max(agreed.grade, back.grade[agreed.vertex]), append(agreed.way, back.way(agreed.vertex)...)
		if b.Total == 0 || cmp.Or(cmp.Compare(grade, b.Grade), cmp.Compare(len(way), len(b.Way))) < 0 {
			b.Total, b.Grade, b.Way = 1, grade, way
			b.Who = way[0].From
		}
	}
	if b.Total == 0 {
		return nil
	}
	return b
}
