package reach

import (
	"slices"

	"github.com/bailment/bailment/internal/policy"
)

// Hop is how one step of a way is made.
type Hop string

// The hops.
const (
	Reads    Hop = "reads"
	Writes   Hop = "writes"
	Does     Hop = "may"        // the action that was asked for
	Poisons  Hop = "poisons"    // a written value leads its reader astray
	Speaks   Hop = "speaks for" // a node for a workload
	Unlocks  Hop = "unlocks"
	Deploys  Hop = "deploys"     // and so runs code as a workload
	Admits   Hop = "admits"      // by a join token
	Changes  Hop = "changes"     // the bundle, alone
	Approves Hop = "agrees to"   // a change of the bundle, or an act, with others
	Carries  Hop = "carries out" // an act, alone
	Gives    Hop = "gives"       // an act, to who proposed it
	Recovers Hop = "replaces the operators of"
	Rewrites Hop = "gives itself" // whatever there is, by another bundle
)

// Kinds of things.
const (
	KindNode     = "node"
	KindJob      = "job"
	KindWorkload = "workload"
	KindPerson   = "person"
	KindSecret   = "secret"
	KindWritable = "writable secret"
	KindSystem   = "system"
	KindBundle   = "bundle"
	KindAct      = "act"           // of operators together: secret.export, glass.open
	KindTogether = "persons"       // as many of some operators as an act takes
	KindRecovery = "recovery keys" // as many of their holders as it takes
)

const theBundle = "the bundle"

// Thing is what a way leads over.
type Thing struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Step is one hop of a way, and the line of the bundle that makes it possible.
type Step struct {
	From       Thing      `json:"from"`
	Hop        Hop        `json:"hop"`
	To         Thing      `json:"to"`
	Rule       string     `json:"rule"` // the grant, identity rule, secret or duty
	Conditions []string   `json:"conditions,omitempty"`
	Source     policy.Pos `json:"source"`
}

// search is what is reached from some vertices, along edges or against them.
type search struct {
	g        *graph
	backward bool
	grade    []Grade // unseen: not reached
	hops     []int32
	prev     []int32 // the vertex before; -1 at a start
}

// limits of a search.
type within struct {
	grade Grade // the worst that is looked at
	hops  int32 // 0: any number
}

type reached struct{ v, hops, prev int32 }

// explore finds everything that the starts lead to. It goes by grade, and within a grade by hops: what is best is found first.
func (g *graph) explore(starts []int32, backward bool, w within) *search {
	n := len(g.kinds)
	s := &search{g: g, backward: backward, grade: make([]Grade, n), hops: make([]int32, n), prev: make([]int32, n)}
	for i := range s.grade {
		s.grade[i] = unseen
	}
	edges := &g.out
	if backward {
		edges = &g.in
	}
	var waiting [gradeCount][]reached
	for _, v := range starts {
		waiting[g.grades[v]] = append(waiting[g.grades[v]], reached{v, 0, -1})
	}
	for grade := Plain; grade <= w.grade && grade < gradeCount; grade++ {
		byHops := [][]reached{}
		put := func(r reached) {
			for int(r.hops) >= len(byHops) {
				byHops = append(byHops, nil)
			}
			byHops[r.hops] = append(byHops[r.hops], r)
		}
		for _, r := range waiting[grade] {
			put(r)
		}
		for h := 0; h < len(byHops); h++ {
			for i := 0; i < len(byHops[h]); i++ {
				r := byHops[h][i]
				if s.grade[r.v] != unseen {
					continue
				}
				s.grade[r.v], s.hops[r.v], s.prev[r.v] = grade, r.hops, r.prev
				for _, to := range edges.of(r.v) {
					if s.grade[to] != unseen {
						continue
					}
					next := reached{to, r.hops, r.v}
					if g.kinds[to] == kindLine {
						next.hops++
					}
					switch {
					case w.hops > 0 && next.hops > w.hops:
					case g.grades[to] > grade:
						waiting[g.grades[to]] = append(waiting[g.grades[to]], next)
					default:
						put(next)
					}
				}
			}
			byHops[h] = nil
		}
	}
	return s
}

func (s *search) found(v int32) bool { return s.grade[v] != unseen }

// way is how a vertex was reached, or with a backward search how it leads to the start, in the order in which an attacker goes.
func (s *search) way(v int32) []Step { return s.g.steps(Thing{}, s.vertices(v)) }

func (s *search) vertices(v int32) []int32 {
	var out []int32
	for ; v >= 0; v = s.prev[v] {
		out = append(out, v)
	}
	if !s.backward {
		slices.Reverse(out)
	}
	return out
}

// steps are the hops between the things on a path of vertices, which begins at one, or at who, if that is given.
func (g *graph) steps(who Thing, vertices []int32) []Step {
	var out []Step
	by := int32(-1)
	for _, v := range vertices {
		switch k := g.kinds[v]; {
		case k == kindLine || k == kindPart:
			by = g.refs[v] // of a part, whose conditions are those of the line and its own
		case k <= kindBundle:
			next := g.name(v)
			if by >= 0 {
				l := &g.lines[by]
				out = append(out, Step{From: who, Hop: l.hop, To: next, Rule: l.rule, Conditions: l.conditions, Source: l.source})
			}
			who, by = next, -1
		}
	}
	return out
}

// name is what a vertex is called.
func (g *graph) name(v int32) Thing {
	ref := g.refs[v]
	switch g.kinds[v] {
	case kindIdentity:
		return Thing{kindOfIdentity(g.ids.patterns[ref].String()), g.ids.label(ref, g.live)}
	case kindSystem:
		return Thing{KindSystem, g.systems[ref]}
	case kindBundle:
		return Thing{KindBundle, theBundle}
	case kindAct:
		return Thing{KindAct, g.quorums[ref].name}
	case kindHolders:
		return holdersOf(g.program.Environment().Recovery)
	case kindWritable:
		return Thing{KindWritable, g.secrets.label(ref, nil)}
	}
	return Thing{KindSecret, g.secrets.label(ref, nil)}
}

// AnyOther marks a family inside of which others have names of their own.
const AnyOther = " (any other)"

// label is the name of an atom. A family inside of which others have names of their own is what is left of it.
func (t *tree) label(i int32, live []bool) string {
	name := t.patterns[i].String()
	if t.isExact(i) {
		return name
	}
	for j := i + 1; j < t.end[i]; j++ {
		if live == nil || live[j] {
			return name + AnyOther
		}
	}
	return name
}

// A picture has at most so many columns, and things in one: more can't be looked at.
const (
	PictureColumns = 12
	PictureRows    = 30
)

// Bounds of what is looked at for the single hops between things.
const (
	maxHops     = 2000
	maxHopSteps = 500_000
)

// between lists the hops from each of the things to any of them, up to a bound: for a picture.
func (g *graph) between(things []int32, worst Grade) []Step {
	in := make(map[int32]bool, len(things))
	for _, v := range things {
		in[v] = true
	}
	var out []Step
	looked := 0
	for _, v := range things {
		if g.kinds[v] == kindBundle || g.kinds[v] == kindAct {
			continue // to everything
		}
		from, prev := g.name(v), map[int32]int32{v: -1}
		queue := slices.Clone(g.out.of(v))
		for _, w := range queue {
			prev[w] = v
		}
		for len(queue) > 0 && looked < maxHopSteps && len(out) < maxHops {
			w := queue[0]
			queue = queue[1:]
			looked++
			switch {
			case g.grades[w] > worst || w == v:
			case g.kinds[w] > kindBundle:
				for _, next := range g.out.of(w) {
					if _, seen := prev[next]; !seen {
						prev[next] = w
						queue = append(queue, next)
					}
				}
			case in[w]:
				vertices := []int32{}
				for at := w; at != v; at = prev[at] {
					vertices = append(vertices, at)
				}
				slices.Reverse(vertices)
				out = append(out, g.steps(from, vertices)...)
			}
		}
	}
	return out
}
