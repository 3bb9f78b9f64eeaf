package reach

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/reach/flow"
)

// Taken is something that a cut takes away: a line of the bundle, or an identity between.
type Taken struct {
	Identity *Thing     `json:"identity,omitempty"` // an identity that must not fall; else a line:
	Hop      Hop        `json:"hop,omitempty"`
	Rule     string     `json:"rule,omitempty"`
	From     string     `json:"from,omitempty"` // the line's patterns
	To       string     `json:"to,omitempty"`
	Source   policy.Pos `json:"source,omitzero"`
	Cost     int        `json:"cost"`
}

// Cut is the answer of Model.Cut.
type Cut struct {
	From   []string `json:"from"`
	Target string   `json:"target"`
	Taken  []Taken  `json:"taken"` // empty: there is no way
	Cost   int      `json:"cost"`
	// Smallest: no cheaper cut exists. False where somebody of From gets at a quorum of operators alone: then each of its operators was
	// treated as if he were it, so that a cheaper one may exist.
	Smallest bool `json:"smallest"`
}

// Cut finds the cheapest lines and identities that, taken away, leave no way from any of From to the target. A line costs 1, an
// identity what Options.Costs say; between equals lines are preferred, and what is nearest to From. Members of From that are in the
// target themselves are left out.
func (m *Model) Cut(from []identity.Pattern, t Target, o Options) (*Cut, error) {
	if len(from) == 0 && !o.Recovery || len(from) > maxPatterns {
		return nil, problem.New(problem.ReasonInvalid, "a cut is between 1 to %d patterns of identities and a target, not %d", maxPatterns, len(from))
	}
	a := t.about(about{identities: slices.Clone(from), poisoning: o.Worst >= Poisoning})
	out := &Cut{Target: t.String(), Taken: []Taken{}, Smallest: true}
	out.From = namesOf(from, o.Recovery)
	for {
		g, err := build(m.program, m.names, a)
		if err != nil {
			return nil, err
		}
		targets, err := g.vertices(t)
		if err != nil {
			return nil, err
		}
		starts, err := g.starts(from, o.Recovery)
		if err != nil {
			return nil, err
		}
		starts = outside(starts, targets)
		if len(starts) == 0 {
			return nil, problem.New(problem.ReasonInvalid, "all of %s is in the target", strings.Join(out.From, ", ")).WithFix("ask from somebody else")
		}
		far := g.explore(starts, false, within{grade: o.Worst})
		if !a.anyOperator && len(g.agreements(far, starts, o.Worst)) > 0 {
			a.anyOperator, out.Smallest = true, false
			continue
		}
		return out, g.cut(out, far, starts, targets, o)
	}
}

// unit is the capacity of what costs 1. What costs as much as a line and is none has one more, so lines are preferred.
const (
	unit    = int64(1) << 24
	endless = flow.Endless
)

// cut builds the network of what lies between, and reads the cut off a maximum flow.
func (g *graph) cut(out *Cut, far *search, starts, targets []int32, o Options) error {
	back := g.explore(targets, true, within{grade: o.Worst})
	number := make([]int32, len(g.kinds))
	var between []int32
	for v := range g.kinds {
		number[v] = -1
		if far.found(int32(v)) && back.found(int32(v)) {
			number[v] = int32(len(between))
			between = append(between, int32(v))
		}
	}
	fixed := map[int32]bool{}
	for _, v := range starts {
		fixed[v] = true
	}
	for _, v := range targets {
		fixed[v] = true
	}
	n := int32(len(between))
	source, sink := 2*n, 2*n+1
	f := flow.New(2*n + 2) // vertex i of what is between is an edge from 2i to 2i+1
	for i, v := range between {
		f.Edge(int32(2*i), int32(2*i+1), g.capacity(v, fixed[v], o.Costs))
		for _, w := range g.out.of(v) {
			if number[w] >= 0 {
				f.Edge(int32(2*i+1), 2*number[w], endless)
			}
		}
	}
	for _, v := range starts {
		if number[v] >= 0 {
			f.Edge(source, 2*number[v], endless)
		}
	}
	for _, v := range targets {
		if number[v] >= 0 {
			f.Edge(2*number[v]+1, sink, endless)
		}
	}
	if !f.Run(source, sink) {
		return tooMuch("10000 phases of a maximum flow")
	}
	for i, v := range between {
		if !f.Near(int32(2*i)) || f.Near(int32(2*i+1)) {
			continue
		}
		t := Taken{Cost: 1}
		if g.kinds[v] == kindIdentity {
			who := g.name(v)
			t.Identity, t.Cost = &who, o.Costs.of(who.Kind)
		} else {
			l := &g.lines[g.refs[v]]
			t.Hop, t.Rule, t.From, t.To, t.Source = l.hop, l.rule, l.from, l.to, l.source
		}
		out.Cost += t.Cost
		out.Taken = append(out.Taken, t)
	}
	slices.SortFunc(out.Taken, func(x, y Taken) int {
		name := func(t Taken) string {
			if t.Identity != nil {
				return t.Identity.Name
			}
			return ""
		}
		return cmp.Or(strings.Compare(string(x.Hop), string(y.Hop)), strings.Compare(x.Rule, y.Rule), strings.Compare(x.From, y.From), strings.Compare(x.To, y.To), strings.Compare(name(x), name(y)))
	})
	return nil
}

// capacity is what taking a vertex away costs.
func (g *graph) capacity(v int32, fixed bool, c Costs) int64 {
	switch {
	case fixed:
		return endless
	case g.kinds[v] == kindLine && g.lines[g.refs[v]].hop != Rewrites && g.lines[g.refs[v]].hop != Gives:
		return unit
	case g.kinds[v] == kindIdentity:
		return int64(min(c.of(kindOfIdentity(g.ids.patterns[g.refs[v]].String())), 1<<20))*unit + 1
	}
	return endless
}
