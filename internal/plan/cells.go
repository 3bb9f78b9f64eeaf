package plan

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// A grant governs rectangles: each of its identity patterns with each of its secret patterns. Two patterns are disjoint, or one is within
// the other; so the grants that govern a request are those whose rectangles hold it, and a point of a rectangle that no narrower one
// holds stands for all such points. That point is written as the pattern itself (policy.Program.Governing).
//
// Where two bundles decide differently, some grant governs that only one of them has. Let it be an allow grant: then they differ at its
// rectangle's own point too, or at where it meets a prohibition that only one of them has. Let it be a deny grant: then they differ where
// it meets an allow grant of either bundle. So these points are enough, and their number follows the change and not the bundle. Where a
// changed grant meets others is looked at as well, so that a line can say what it is not true of.

// rect is a rectangle.
type rect struct{ who, secret identity.Pattern }

// corner is a rectangle of a grant.
type corner struct {
	rect
	rule    *rule
	after   bool // of the new bundle
	changed bool
}

// side is one of the bundles.
type side struct {
	prog  *policy.Program
	rules []rule
}

// newSide reads the grants. What the conditions say that ask for a secret's declaration is no longer the same where declarations are others;
// those get a mark, which stands behind them as a comment.
func newSide(p *policy.Program, declared family, mark string) side {
	grants := p.Grants()
	s := side{p, make([]rule, len(grants))}
	for i, g := range grants {
		r := &s.rules[i]
		r.Grant, r.when = g, oneWriting(g.When)
		if len(declared.places) > 0 && asksDeclaration.MatchString(g.When) && slices.ContainsFunc(g.Secrets, declared.meets) {
			r.when += " " + mark
		}
		r.key = fmt.Sprint(g.Effect, g.Actions, names(g.Identities), names(g.Secrets), g.Purposes, g.Assurance, int64(g.TTL)) + r.when
	}
	return s
}

// asksDeclaration finds the attributes secret.name and secret.type in a condition.
var asksDeclaration = regexp.MustCompile(`\bsecret(\s|//[^\n]*\n)*\.(\s|//[^\n]*\n)*(name|type)\b`)

// redeclared are the patterns of secrets that one of the bundles declares, and the other not, or of another type.
func redeclared(before, after *policy.Program) family {
	types := map[identity.Pattern]string{}
	for _, s := range before.Secrets() {
		types[s.Pattern] = s.Type
	}
	var list []identity.Pattern
	for _, s := range after.Secrets() {
		if was, ok := types[s.Pattern]; !ok || was != s.Type {
			list = append(list, s.Pattern)
		}
		delete(types, s.Pattern)
	}
	list = slices.AppendSeq(list, maps.Keys(types))
	slices.SortFunc(list, func(a, b identity.Pattern) int { return strings.Compare(a.String(), b.String()) })
	return newFamily(len(list), func(i int) identity.Pattern { return list[i] })
}

// governing are the grants of an action that govern a rectangle's own point.
func (s *side) governing(action policy.Action, at rect, work *int) []*rule {
	var out []*rule
	s.prog.Governing(action, at.who, at.secret, func(place int) { out = append(out, &s.rules[place]) })
	*work += 1 + len(out)
	return out
}

// names are the patterns' texts, sorted.
func names(patterns []identity.Pattern) []string {
	out := make([]string, len(patterns))
	for i, p := range patterns {
		out[i] = p.String()
	}
	slices.Sort(out)
	return out
}

// cells is what is looked at.
type cells struct {
	old, new side
	changed  []corner
	all      *corners
	work     int
}

func newCells(before, after *policy.Program) *cells {
	declared := redeclared(before, after)
	c := &cells{old: newSide(before, declared, "// of secrets as they were declared"), new: newSide(after, declared, "// of secrets as they are declared now")}
	balance := map[string]int{}
	for i := range c.old.rules {
		balance[c.old.rules[i].key]++
	}
	for i := range c.new.rules {
		balance[c.new.rules[i].key]--
	}
	var all []corner
	take := func(s *side, after bool) {
		for i := range s.rules {
			r := &s.rules[i]
			changed := after && balance[r.key] < 0 || !after && balance[r.key] > 0
			if after && !changed {
				continue // the old bundle has it too
			}
			for _, who := range r.Identities {
				for _, secret := range r.Secrets {
					x := corner{rect{who, secret}, r, after, changed}
					all = append(all, x)
					if changed {
						c.changed = append(c.changed, x)
					}
				}
			}
		}
	}
	take(&c.old, false)
	take(&c.new, true)
	// Prohibitions first: only they must be compared with others.
	slices.SortStableFunc(c.changed, func(a, b corner) int {
		return strings.Compare(string(b.rule.Effect), string(a.rule.Effect))
	})
	c.all = newCorners(all)
	return c
}

// meet is the narrower of two patterns of which one is within the other.
func meet(a, b identity.Pattern) (identity.Pattern, bool) {
	switch {
	case a.Covers(b):
		return b, true
	case b.Covers(a):
		return a, true
	}
	return identity.Pattern{}, false
}

func (r rect) meet(o rect) (rect, bool) {
	who, ok := meet(r.who, o.who)
	if !ok {
		return rect{}, false
	}
	secret, ok := meet(r.secret, o.secret)
	return rect{who, secret}, ok
}

func (r rect) covers(o rect) bool { return r.who.Covers(o.who) && r.secret.Covers(o.secret) }

// corners finds the rectangles that meet one, by who or by secret, whichever is shorter.
type corners struct {
	list        []corner
	who, secret family
}

func newCorners(list []corner) *corners {
	return &corners{
		list,
		newFamily(len(list), func(i int) identity.Pattern { return list[i].who }),
		newFamily(len(list), func(i int) identity.Pattern { return list[i].secret }),
	}
}

// meeting calls visit with every rectangle that meets r, until it answers false or there is no work left to spend.
func (c *corners) meeting(r rect, work *int, visit func(*corner) bool) {
	spans := c.who.crossing(r.who)
	if other := c.secret.crossing(r.secret); size(other) < size(spans) {
		spans = other
	}
	for _, span := range spans {
		for _, i := range span {
			if *work++; *work > maxWork {
				return
			}
			if _, ok := r.meet(c.list[i].rect); ok && !visit(&c.list[i]) {
				return
			}
		}
	}
}

func size(spans [][]int32) int {
	n := 0
	for _, s := range spans {
		n += len(s)
	}
	return n
}

// family are the places of a list, ordered so that what is below a pattern stands together.
type family struct {
	places []int32
	keys   []string // of the places
}

// base is a pattern's path as a key: segments end with a byte that no path has, so what is below a path begins with its key.
func base(p identity.Pattern) string {
	path, exact := p.Exact()
	if !exact {
		path, _ = p.Prefix()
	}
	if path = strings.TrimPrefix(path, "/"); path == "" {
		return ""
	}
	return strings.ReplaceAll(path, "/", "\x00") + "\x00"
}

func sortKey(p identity.Pattern) string {
	if _, exact := p.Exact(); exact {
		return base(p)
	}
	return base(p) + below
}

const below = "\x01" // ends the key of a subtree

func newFamily(n int, of func(int) identity.Pattern) family {
	f := family{make([]int32, n), make([]string, n)}
	keys := make([]string, n)
	for i := range n {
		keys[i], f.places[i] = sortKey(of(i)), int32(i)
	}
	slices.SortStableFunc(f.places, func(a, b int32) int { return strings.Compare(keys[a], keys[b]) })
	for to, from := range f.places {
		f.keys[to] = keys[from]
	}
	return f
}

// meets reports whether a pattern meets any of the list.
func (f family) meets(p identity.Pattern) bool { return size(f.crossing(p)) > 0 }

// crossing are the parts of the list that hold every pattern which meets p, and few others: those within it, and those around it.
func (f family) crossing(p identity.Pattern) [][]int32 {
	var out [][]int32
	take := func(key string, prefix bool) {
		from := sort.SearchStrings(f.keys, key)
		to := from + sort.Search(len(f.keys)-from, func(i int) bool {
			k := f.keys[from+i]
			return prefix && !strings.HasPrefix(k, key) || !prefix && k != key
		})
		if from < to {
			out = append(out, f.places[from:to])
		}
	}
	key := base(p)
	_, exact := p.Exact()
	take(key, !exact)
	for around := key; around != ""; {
		around = around[:strings.LastIndexByte(around[:len(around)-1], 0)+1]
		take(around+below, false)
	}
	return out
}
