package reach

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
)

// tree are patterns that are nested or disjoint, as patterns are, in an order in which everything inside of one follows it. A position
// stands for the pattern, and also for its atom: all paths that it selects and no pattern inside of it does. What a pattern selects is
// the interval [position, end).
type tree struct {
	patterns []identity.Pattern
	end      []int32
	parent   []int32 // -1 for the first, which selects everything
	exact    map[string]int32
	subtrees map[string]int32 // by prefix
}

// interval is positions from..to-1.
type interval struct{ from, to int32 }

func orderKey(p identity.Pattern) string {
	if path, ok := p.Exact(); ok {
		return strings.ReplaceAll(path, "/", "\x00")
	}
	if p.String() == "*" {
		return ""
	}
	prefix, _ := p.Prefix()
	return strings.ReplaceAll(prefix, "/", "\x00") + "\x00"
}

// newTree takes patterns in any order, also more than once, of which one selects everything.
func newTree(patterns []identity.Pattern) *tree {
	type keyed struct {
		key string
		p   identity.Pattern
	}
	all := make([]keyed, len(patterns))
	for i, p := range patterns {
		all[i] = keyed{orderKey(p), p}
	}
	slices.SortFunc(all, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	all = slices.CompactFunc(all, func(a, b keyed) bool { return a.p == b.p })
	t := &tree{exact: map[string]int32{}, subtrees: map[string]int32{}, end: make([]int32, len(all)), parent: make([]int32, len(all))}
	var open []int32
	for i, k := range all {
		for len(open) > 0 && !t.patterns[open[len(open)-1]].Covers(k.p) {
			t.end[open[len(open)-1]] = int32(i)
			open = open[:len(open)-1]
		}
		t.patterns = append(t.patterns, k.p)
		t.parent[i] = -1
		if len(open) > 0 {
			t.parent[i] = open[len(open)-1]
		}
		if path, ok := k.p.Exact(); ok {
			t.exact[path] = int32(i)
			t.end[i] = int32(i) + 1
			continue
		}
		prefix, _ := k.p.Prefix()
		t.subtrees[prefix] = int32(i)
		open = append(open, int32(i))
	}
	for _, i := range open {
		t.end[i] = int32(len(all))
	}
	return t
}

func (t *tree) len() int { return len(t.patterns) }

func (t *tree) interval(i int32) interval { return interval{i, t.end[i]} }

func (t *tree) all() interval { return interval{0, int32(len(t.patterns))} }

// at is the position of a pattern, if it is one of the tree's.
func (t *tree) at(p identity.Pattern) (int32, bool) {
	if path, ok := p.Exact(); ok {
		i, ok := t.exact[path]
		return i, ok
	}
	prefix, ok := p.Prefix()
	if !ok {
		return 0, false
	}
	i, ok := t.subtrees[prefix]
	return i, ok
}

// around is the position of the narrowest pattern that covers p.
func (t *tree) around(p identity.Pattern) int32 {
	if i, ok := t.at(p); ok {
		return i
	}
	path, exact := p.Exact()
	if !exact {
		path, _ = p.Prefix()
	}
	for cut := len(path) - 1; cut > 0; cut-- {
		if path[cut] != '/' {
			continue
		}
		if i, ok := t.subtrees[path[:cut]]; ok {
			return i
		}
	}
	return t.subtrees[""]
}

func (t *tree) isExact(i int32) bool { _, ok := t.patterns[i].Exact(); return ok }

// minus takes intervals away. Both lists may be in any order; the result is in order and disjoint.
func minus(from interval, away []interval) []interval {
	away = slices.Clone(away)
	slices.SortFunc(away, func(a, b interval) int { return cmp.Compare(a.from, b.from) })
	var out []interval
	for _, a := range away {
		if a.to <= from.from {
			continue
		}
		if a.from >= from.to {
			break
		}
		if a.from > from.from {
			out = append(out, interval{from.from, a.from})
		}
		from.from = max(from.from, a.to)
	}
	if from.from < from.to {
		out = append(out, from)
	}
	return out
}

// joined is the union, in order and disjoint.
func joined(all []interval) []interval {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b interval) int { return cmp.Compare(a.from, b.from) })
	var out []interval
	for _, a := range all {
		if n := len(out); n > 0 && a.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, a.to)
			continue
		}
		out = append(out, a)
	}
	return out
}

// without is all of a that is not in b.
func without(a, b []interval) []interval {
	var out []interval
	for _, x := range a {
		out = append(out, minus(x, b)...)
	}
	return out
}
