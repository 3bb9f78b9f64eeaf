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
	if len(patterns) == 0 && !o.Recovery || len(patterns) > maxPatterns {
		return nil, problem.New(problem.ReasonInvalid, "a question is about 1 to %d patterns of identities, not %d", maxPatterns, len(patterns))
	}
	g, err := build(m.program, m.names, about{identities: patterns, poisoning: o.Worst >= Poisoning})
	if err != nil {
		return nil, err
	}
	out := &Radius{Reached: []Reached{}, Counts: map[string]int{}}
	starts, err := g.starts(patterns, o.Recovery)
	if err != nil {
		return nil, err
	}
	out.From = namesOf(patterns, o.Recovery)
	out.Starts = len(starts)
	near := g.explore(starts, false, within{o.Worst, 1})
	far := g.explore(starts, false, within{grade: o.Worst})
	agreed, more := map[int32][]Step{}, slices.Clone(starts)
	for _, a := range g.agreements(far, starts, o.Worst) {
		if far.grade[a.vertex] > a.grade {
			g.grades[a.vertex] = a.grade // of entering it: this graph is this question's
			agreed[a.vertex], more = a.way, append(more, a.vertex)
		}
	}
	if len(agreed) > 0 {
		far = g.explore(more, false, within{grade: o.Worst})
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
		r.Hops += len(agreed[far.root(v)])
	}
	slices.SortStableFunc(out.Reached, func(x, y Reached) int {
		return cmp.Or(cmp.Compare(x.Grade, y.Grade), cmp.Compare(x.Hops, y.Hops), strings.Compare(x.Kind, y.Kind), strings.Compare(x.Name, y.Name))
	})
	out.Total = len(out.Reached)
	out.Reached = listed(out.Reached, o, func(r *Reached) []Step {
		r.Way = slices.Concat(agreed[far.root(r.v)], far.way(r.v))
		return r.Way
	})
	things := slices.Clone(starts[:min(len(starts), PictureRows)])
	for i := range min(len(out.Reached), PictureRows*PictureColumns) {
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

// FromRecovery is what a question names that is about holders of recovery keys: see Options.Recovery.
const FromRecovery = "recovery"

func namesOf(patterns []identity.Pattern, recovery bool) []string {
	var out []string
	for _, p := range patterns {
		out = append(out, p.String())
	}
	if recovery {
		out = append(out, FromRecovery)
	}
	return out
}

// starts are the identities that patterns select, each once, and the holders of recovery keys.
func (g *graph) starts(patterns []identity.Pattern, recovery bool) ([]int32, error) {
	var out []int32
	if recovery {
		if g.holders < 0 {
			return nil, problem.New(problem.ReasonNotFound, "no recovery is prepared in this bundle").WithFix("see recovery in environment.yaml")
		}
		out = append(out, g.holders)
	}
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
