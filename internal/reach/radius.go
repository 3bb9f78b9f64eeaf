package reach

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Reached is something that an attacker gets at.
type Reached struct {
	Thing
	Direct bool   `json:"direct"` // in one hop
	Grade  Grade  `json:"grade"`
	Hops   int    `json:"hops"` // of the way
	Way    []Step `json:"way"`
	v      int32
}

// Radius is the answer of From.
type Radius struct {
	From    []string       `json:"from"`
	Starts  int            `json:"starts"` // identities and families that From selects
	Reached []Reached      `json:"reached"`
	Total   int            `json:"total"` // of which Reached are the first
	Counts  map[string]int `json:"counts"`
	Hops    []Step         `json:"hops"` // the single hops between Reached and the starts, as far as they make a picture
}

// From says what is reached by compromising one of those whom the patterns select.
func (m *Model) From(patterns []identity.Pattern, o Options) (*Radius, error) {
	if len(patterns) == 0 || len(patterns) > maxPatterns {
		return nil, problem.New(problem.ReasonInvalid, "a question is about 1 to %d patterns of identities, not %d", maxPatterns, len(patterns))
	}
	g, err := build(m.program, m.names, about{identities: patterns, poisoning: o.Worst >= Poisoning})
	if err != nil {
		return nil, err
	}
	out := &Radius{Reached: []Reached{}, Counts: map[string]int{}}
	starts, err := g.starts(patterns)
	if err != nil {
		return nil, err
	}
	for _, p := range patterns {
		out.From = append(out.From, p.String())
	}
	out.Starts = len(starts)
	near := g.explore(starts, false, within{o.Worst, 1})
	far := g.explore(starts, false, within{grade: o.Worst})
	agreed := g.agreement(far, starts, o.Worst)
	if agreed != nil && far.grade[g.bundle] > agreed.grade {
		g.grades[g.bundle] = agreed.grade // of entering it: this graph is this question's
		far = g.explore(append(slices.Clone(starts), g.bundle), false, within{grade: o.Worst})
	} else {
		agreed = nil
	}
	begun := map[int32]bool{}
	for _, v := range starts {
		begun[v] = true
	}
	for v, k := range g.kinds {
		v := int32(v)
		if k > kindBundle || !far.found(v) || begun[v] {
			continue
		}
		out.Reached = append(out.Reached, Reached{Thing: g.name(v), Direct: near.found(v), Grade: far.grade[v], Hops: int(far.hops[v]), v: v})
		r := &out.Reached[len(out.Reached)-1]
		out.Counts[r.Kind]++
		if agreed != nil && far.root(v) == g.bundle {
			r.Hops += len(agreed.way)
		}
	}
	slices.SortStableFunc(out.Reached, func(x, y Reached) int {
		return cmp.Or(cmp.Compare(x.Grade, y.Grade), cmp.Compare(x.Hops, y.Hops), strings.Compare(x.Kind, y.Kind), strings.Compare(x.Name, y.Name))
	})
	out.Total = len(out.Reached)
	out.Reached = listed(out.Reached, o, func(r *Reached) []Step {
		r.Way = far.way(r.v)
		if agreed != nil && far.root(r.v) == g.bundle {
			r.Way = slices.Concat(agreed.way, r.Way)
		}
		return r.Way
	})
	things := slices.Clone(starts[:min(len(starts), pictureRows)])
	for i := range min(len(out.Reached), pictureRows*pictureColumns) {
		things = append(things, out.Reached[i].v)
	}
	out.Hops = g.between(things, o.Worst)
	return out, nil
}

// listed cuts a list off, and fills in the ways of what is left.
func listed[T any](list []T, o Options, fill func(*T) []Step) []T {
	list = list[:min(len(list), o.most())]
	steps := 0
	for i := range list {
		if steps += len(fill(&list[i])); steps > maxSteps {
			return list[:i+1]
		}
	}
	return list
}

// starts are the identities that patterns select, each once.
func (g *graph) starts(patterns []identity.Pattern) ([]int32, error) {
	var out []int32
	for _, p := range patterns {
		some, err := g.identities(p)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// root is where the way to a vertex begins.
func (s *search) root(v int32) int32 {
	for s.prev[v] >= 0 {
		v = s.prev[v]
	}
	return v
}

// agreement is how one principal alone gets at a quorum of operators.
type agreement struct {
	grade Grade
	way   []Step // to each of them, and to the bundle
}

// agreement finds the best way in which one of the starts alone gets at a quorum that takes several. far is what all of them reach.
// Operators who can do it alone have edges for that, and are no part of it.
func (g *graph) agreement(far *search, starts []int32, worst Grade) *agreement {
	several := func(has func(name string) bool) bool {
		return g.quorum.met(func(name string) bool { return has(name) && !g.quorum.single[name] })
	}
	for grade := Plain; grade <= worst && grade < gradeCount; grade++ {
		if !several(func(name string) bool { return far.grade[g.operator(name)] <= grade }) {
			continue
		}
		cover := g.coverage(grade)
		for _, v := range starts {
			names := cover.of(v)
			if len(names) < g.quorum.approvals || !several(func(name string) bool { return slices.Contains(names, name) }) {
				continue
			}
			names = slices.DeleteFunc(names, func(name string) bool { return g.quorum.single[name] })
			one := g.explore([]int32{v}, false, within{grade: grade})
			out := &agreement{grade: grade}
			for _, name := range g.quorum.smallest(names) {
				to := g.operator(name)
				out.way = append(out.way, one.way(to)...)
				out.way = append(out.way, g.agrees(name))
			}
			return out
		}
	}
	return nil
}

func (g *graph) operator(name string) int32 {
	return g.thing(kindIdentity, g.ids.exact[identity.PrefixHuman+name])
}

func (g *graph) agrees(name string) Step {
	return Step{From: Thing{KindPerson, identity.PrefixHuman + name}, Hop: Approves, To: Thing{KindBundle, theBundle}, Rule: "propose, approve", Source: operatorsFile}
}
