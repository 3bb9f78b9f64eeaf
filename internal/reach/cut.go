package reach

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
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
	if len(from) == 0 || len(from) > maxPatterns {
		return nil, problem.New(problem.ReasonInvalid, "a cut is between 1 to %d patterns of identities and a target, not %d", maxPatterns, len(from))
	}
	a := t.about(about{identities: slices.Clone(from), poisoning: o.Worst >= Poisoning})
	out := &Cut{Target: t.String(), Taken: []Taken{}, Smallest: true}
	for _, p := range from {
		out.From = append(out.From, p.String())
	}
	for {
		g, err := build(m.program, m.names, a)
		if err != nil {
			return nil, err
		}
		targets, err := g.vertices(t)
		if err != nil {
			return nil, err
		}
		starts, err := g.starts(from)
		if err != nil {
			return nil, err
		}
		starts = outside(starts, targets)
		if len(starts) == 0 {
			return nil, problem.New(problem.ReasonInvalid, "all of %s is in the target", strings.Join(out.From, ", ")).WithFix("ask from somebody else")
		}
		far := g.explore(starts, false, within{grade: o.Worst})
		if !a.anyOperator && g.agreement(far, starts, o.Worst) != nil {
			a.anyOperator, out.Smallest = true, false
			continue
		}
		return out, g.cut(out, far, starts, targets, o)
	}
}

// unit is the capacity of what costs 1. What costs as much as a line and is none has one more, so lines are preferred.
const (
	unit    = int64(1) << 24
	endless = int64(1) << 50
)

// flow is a network whose vertices have capacities: vertex i of it is an edge from 2i to 2i+1.
type flow struct {
	first []int32 // by node: its last edge, or -1
	next  []int32
	to    []int32
	left  []int64
	level []int32
	at    []int32
}

func (f *flow) edge(from, to int32, capacity int64) {
	for _, e := range [2]struct {
		from, to int32
		capacity int64
	}{{from, to, capacity}, {to, from, 0}} {
		f.next = append(f.next, f.first[e.from])
		f.first[e.from] = int32(len(f.to))
		f.to, f.left = append(f.to, e.to), append(f.left, e.capacity)
	}
}

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
	f := &flow{first: make([]int32, 2*n+2)}
	for i := range f.first {
		f.first[i] = -1
	}
	for i, v := range between {
		f.edge(int32(2*i), int32(2*i+1), g.capacity(v, fixed[v], o.Costs))
		for _, w := range g.out.of(v) {
			if number[w] >= 0 {
				f.edge(int32(2*i+1), 2*number[w], endless)
			}
		}
	}
	for _, v := range starts {
		if number[v] >= 0 {
			f.edge(source, 2*number[v], endless)
		}
	}
	for _, v := range targets {
		if number[v] >= 0 {
			f.edge(2*number[v]+1, sink, endless)
		}
	}
	if err := f.run(source, sink); err != nil {
		return err
	}
	for i, v := range between {
		if f.level[2*i] < 0 || f.level[2*i+1] >= 0 {
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
	case g.kinds[v] == kindLine && g.lines[g.refs[v]].hop != Rewrites:
		return unit
	case g.kinds[v] == kindIdentity:
		return int64(min(c.of(kindOfIdentity(g.ids.patterns[g.refs[v]].String())), 1<<20))*unit + 1
	}
	return endless
}

// run makes the flow a maximum (Dinic). Afterwards level is at least 0 on the source's side of the cut that is nearest to it.
func (f *flow) run(source, sink int32) error {
	f.level, f.at = make([]int32, len(f.first)), make([]int32, len(f.first))
	for range maxPhases {
		for i := range f.level {
			f.level[i] = -1
		}
		f.level[source] = 0
		queue := []int32{source}
		for i := 0; i < len(queue); i++ {
			for e := f.first[queue[i]]; e >= 0; e = f.next[e] {
				if to := f.to[e]; f.left[e] > 0 && f.level[to] < 0 {
					f.level[to] = f.level[queue[i]] + 1
					queue = append(queue, to)
				}
			}
		}
		if f.level[sink] < 0 {
			return nil
		}
		copy(f.at, f.first)
		f.block(source, sink)
	}
	return tooMuch("10000 phases of a maximum flow")
}

// block pushes flow along shortest ways until each of them is full, without recursion: ways are long.
func (f *flow) block(source, sink int32) {
	var way []int32 // edges
	at := source
	for {
		if at == sink {
			least, full := endless, 0
			for i, e := range way {
				if f.left[e] < least {
					least, full = f.left[e], i
				}
			}
			for _, e := range way {
				f.left[e] -= least
				f.left[e^1] += least
			}
			at = f.to[way[full]^1]
			way = way[:full]
			continue
		}
		e := f.at[at]
		for e >= 0 && (f.left[e] == 0 || f.level[f.to[e]] != f.level[at]+1) {
			e = f.next[e]
		}
		f.at[at] = e
		if e >= 0 {
			way = append(way, e)
			at = f.to[e]
			continue
		}
		if len(way) == 0 {
			return
		}
		f.level[at] = -1
		back := way[len(way)-1]
		way = way[:len(way)-1]
		at = f.to[back^1]
	}
}
