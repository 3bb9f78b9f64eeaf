package plan

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// delta is what happens to an action at a rectangle's own point.
type delta struct {
	action        policy.Action
	before, after forms
}

func (d *delta) same(o *delta) bool {
	return d.action == o.action && d.before.equal(o.before) && d.after.equal(o.after)
}

// cell is a rectangle that was looked at.
type cell struct {
	rect
	deltas []delta // of the actions for which something changes; none: nothing does
}

// look compares both bundles at a rectangle's own point.
func (c *cells) look(at rect, actions []policy.Action) *cell {
	out := &cell{rect: at}
	for _, a := range actions {
		before, after := formsOf(a, c.old.governing(a, at, &c.work), &c.work), formsOf(a, c.new.governing(a, at, &c.work), &c.work)
		if !before.equal(after) {
			out.deltas = append(out.deltas, delta{a, before, after})
		}
	}
	return out
}

// survey is everything that was looked at.
type survey struct {
	cells      map[rect]*cell
	list       []*cell // in a fixed order
	unexamined []*corner
	partial    bool // something that might be an exception was not looked at
}

func (c *cells) survey() *survey {
	s := &survey{cells: map[rect]*cell{}}
	actions := map[rect][]policy.Action{}
	var order []rect
	want := func(at rect, of []policy.Action) {
		known, seen := actions[at]
		if !seen {
			order = append(order, at)
		}
		if !seen || slices.ContainsFunc(of, func(a policy.Action) bool { return !slices.Contains(known, a) }) {
			actions[at] = union(known, of)
		}
	}
	// What must be looked at for the plan to be whole.
	for i := range c.changed {
		x := &c.changed[i]
		if c.work > maxWork || len(order) > maxCells {
			s.unexamined = append(s.unexamined, x)
			continue
		}
		want(x.rect, x.rule.Actions)
		if x.rule.Effect == policy.Deny {
			c.meets(x, func(o *corner) bool { return o.rule.Effect == policy.Allow }, want, &order)
			if c.work > maxWork || len(order) > maxCells {
				s.unexamined = append(s.unexamined, x)
			}
		}
	}
	// What makes it precise.
	for i := range c.changed {
		if x := &c.changed[i]; c.work < maxWork/2 && len(order) < maxCells/2 {
			c.meets(x, func(o *corner) bool { return x.rule.Effect == policy.Allow || o.rule.Effect == policy.Deny }, want, &order)
		} else {
			s.partial = true
		}
	}
	c.work = 0
	for _, at := range order {
		if c.work > maxWork {
			s.unlooked(c.changed)
			break
		}
		x := c.look(at, actions[at])
		if c.work > maxWork { // in the midst of it
			s.unlooked(c.changed)
			break
		}
		s.cells[at] = x
		s.list = append(s.list, x)
	}
	return s
}

// unlooked gives up on the changed grants that not all was asked about.
func (s *survey) unlooked(changed []corner) {
	s.unexamined, s.partial = nil, true
	for i := range changed {
		if x := &changed[i]; x.rule.Effect == policy.Deny || s.cells[x.rect] == nil {
			s.unexamined = append(s.unexamined, x)
		}
	}
}

func (c *cells) meets(x *corner, of func(*corner) bool, want func(rect, []policy.Action), order *[]rect) {
	c.all.meeting(x.rect, &c.work, func(o *corner) bool {
		if !of(o) {
			return true
		}
		if slices.ContainsFunc(x.rule.Actions, func(a policy.Action) bool { return slices.Contains(o.rule.Actions, a) }) {
			at, _ := x.meet(o.rect)
			want(at, x.rule.Actions)
		}
		return len(*order) <= maxCells
	})
}

// union and intersection keep the order of the constants.
func union(a, b []policy.Action) []policy.Action {
	if len(a) == 0 {
		return b
	}
	return slices.DeleteFunc(policy.AllActions(), func(x policy.Action) bool { return !slices.Contains(a, x) && !slices.Contains(b, x) })
}

func intersection(a, b []policy.Action) []policy.Action {
	var out []policy.Action
	for _, x := range a {
		if slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}

// access fills in the lines.
func (p *Plan) access() {
	s := p.cells.survey()
	p.Partial, p.ExceptionsPartial = len(s.unexamined) > 0, s.partial
	nest := newNest(s.list)
	by := p.cells.references()
	for _, x := range s.list {
		around := nest.around(x)
		var fresh []delta
		for i := range x.deltas {
			d := &x.deltas[i]
			if !slices.ContainsFunc(around, func(o *cell) bool { return o.has(d) }) {
				fresh = append(fresh, *d)
			}
		}
		for len(fresh) > 0 {
			l := lineOf(x.rect, fresh[0])
			rest := fresh[:0:0]
			for _, d := range fresh[1:] {
				if alike := lineOf(x.rect, d); alike.Kind == l.Kind && sameAccess(&l, &alike) {
					l.Actions = append(l.Actions, d.action)
				} else {
					rest = append(rest, d)
				}
			}
			fresh = rest
			by.fill(&l, x.rect)
			p.count(&l)
			p.keep(l)
		}
	}
	p.unexamined(s.unexamined)
	slices.SortFunc(p.Access, byWeight)
	p.Access = cut(p.Access)
	nest.exceptions(p.Access)
}

// keep drops the lines that weigh least, when there are far too many.
func (p *Plan) keep(l Line) {
	if p.Access = append(p.Access, l); len(p.Access) >= 4*MaxLines {
		slices.SortFunc(p.Access, byWeight)
		p.Access = cut(p.Access)
	}
}

func (c *cell) has(d *delta) bool {
	return slices.ContainsFunc(c.deltas, func(o delta) bool { return o.same(d) })
}

func lineOf(at rect, d delta) Line {
	l := Line{Who: at.who.String(), Secret: at.secret.String(), Actions: []policy.Action{d.action}, Before: d.before.accesses(), After: d.after.accesses()}
	switch {
	case len(d.before) == 0:
		l.Kind, l.Direction = Gain, Wider
	case len(d.after) == 0:
		l.Kind, l.Direction = Loss, Narrower
	default:
		l.Kind, l.Direction = Limit, direction(d.before.covers(d.after), d.after.covers(d.before))
		l.Moves = movesOf(d.before, d.after)
	}
	return l
}

// direction by whether the old covers the new, and the new the old.
func direction(oldCovers, newCovers bool) Direction {
	switch {
	case oldCovers && !newCovers:
		return Narrower
	case newCovers && !oldCovers:
		return Wider
	}
	return Other
}

func sameAccess(a, b *Line) bool {
	same := func(x, y Access) bool {
		return slices.Equal(x.Purposes, y.Purposes) && x.Assurance == y.Assurance && x.TTL == y.TTL && slices.Equal(x.When, y.When) && slices.Equal(x.Unless, y.Unless)
	}
	return slices.EqualFunc(a.Before, b.Before, same) && slices.EqualFunc(a.After, b.After, same)
}

// movesOf says what of the limits moves, over all purposes.
func movesOf(before, after forms) []Move {
	var out []Move
	add := func(m Move) {
		if !slices.ContainsFunc(out, func(o Move) bool {
			return o.Limit == m.Limit && slices.Equal(o.Before, m.Before) && slices.Equal(o.After, m.After)
		}) {
			out = append(out, m)
		}
	}
	var gone, come []string
	for p := range before {
		if after[p] == nil {
			gone = append(gone, p)
		}
	}
	for p := range after {
		if before[p] == nil {
			come = append(come, p)
		}
	}
	slices.Sort(gone)
	slices.Sort(come)
	if len(gone)+len(come) > 0 {
		add(Move{"purposes", direction(len(come) == 0, len(gone) == 0), gone, come})
	}
	for p := range after {
		a, b := before[p], after[p]
		if a == nil || a.equal(b) {
			continue
		}
		if x, y := a.least(), b.least(); x != y {
			add(Move{"assurance", direction(y > x, y < x), []string{x.String()}, []string{y.String()}})
		}
		if x, y := a.longest(), b.longest(); x != y {
			longer := y == 0 || x != 0 && y > x
			add(Move{"ttl", direction(!longer, longer), []string{x.String()}, []string{y.String()}})
		}
		if x, y := a.conditions(), b.conditions(); !slices.Equal(x, y) {
			added, removed := slices.Contains(x, "") || len(x) == 0, slices.Contains(y, "") || len(y) == 0
			add(Move{"condition", direction(added && !removed || subset(y, x) && !removed, removed && !added || subset(x, y) && !added), x, y})
		}
		if !slices.Equal(a.deny, b.deny) {
			add(Move{"prohibition", direction(subset(a.deny, b.deny), subset(b.deny, a.deny)), a.deny, b.deny})
		}
	}
	if len(out) == 0 {
		// The extremes are the same, and something between them is not: which lease at which assurance, under which condition.
		out = append(out, Move{Limit: "ttl by assurance", Direction: direction(before.covers(after), after.covers(before))})
	}
	slices.SortFunc(out, func(a, b Move) int { return strings.Compare(a.Limit, b.Limit) })
	return out
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(x string) bool { return !slices.Contains(b, x) })
}

// unexamined are lines about grants as they are written.
func (p *Plan) unexamined(list []*corner) {
	for _, x := range list {
		l := Line{
			Kind: Limit, Direction: Other, Who: x.who.String(), Secret: x.secret.String(), Actions: x.rule.Actions, Before: []Access{}, After: []Access{},
			Grants: []GrantRef{x.reference()}, Unexamined: true,
		}
		p.count(&l)
		p.keep(l)
	}
}

func (c *corner) reference() GrantRef {
	return GrantRef{c.rule.Name, c.rule.Effect, c.after, c.rule.Source}
}

// references finds the changed grants that govern a rectangle's own point.
type references struct{ all *corners }

func (c *cells) references() *references { return &references{newCorners(c.changed)} }

func (r *references) fill(l *Line, at rect) {
	work := 0
	seen := map[*rule]bool{}
	r.all.meeting(at, &work, func(x *corner) bool {
		if x.covers(at) && !seen[x.rule] && len(intersection(x.rule.Actions, l.Actions)) > 0 {
			seen[x.rule] = true
			if len(l.Grants) < maxGrants {
				l.Grants = append(l.Grants, x.reference())
			} else {
				l.MoreGrants++
			}
		}
		return true
	})
	slices.SortFunc(l.Grants, func(a, b GrantRef) int { return strings.Compare(a.Name, b.Name) })
}

// nest finds cells by what is around them.
type nest struct {
	cells map[rect]*cell
	whos  map[identity.Pattern]bool
	names map[identity.Pattern]bool
	list  []*cell
}

func newNest(list []*cell) *nest {
	n := &nest{map[rect]*cell{}, map[identity.Pattern]bool{}, map[identity.Pattern]bool{}, list}
	for _, x := range list {
		n.cells[x.rect], n.whos[x.who], n.names[x.secret] = x, true, true
	}
	return n
}

// around are the cells that hold a cell, without itself.
func (n *nest) around(x *cell) []*cell {
	var out []*cell
	names := ancestors(x.secret, n.names)
	for _, who := range ancestors(x.who, n.whos) {
		for _, name := range names {
			if o := n.cells[rect{who, name}]; o != nil && o != x {
				out = append(out, o)
			}
		}
	}
	return out
}

// exceptions finds for each line the widest cells within it for which nothing changes.
func (n *nest) exceptions(lines []Line) {
	at := map[Pair][]int{}
	for i, l := range lines {
		key := Pair{l.Who, l.Secret}
		at[key] = append(at[key], i)
	}
	for _, x := range n.list {
		around := n.around(x)
		for _, o := range around {
			for _, i := range at[Pair{o.who.String(), o.secret.String()}] {
				l := &lines[i]
				if l.Unexamined || !x.unchanged(l.Actions) || slices.ContainsFunc(around, func(m *cell) bool { return m != o && o.covers(m.rect) && m.unchanged(l.Actions) }) {
					continue
				}
				if len(l.Except) < maxExceptions {
					l.Except = append(l.Except, Pair{x.who.String(), x.secret.String()})
				} else {
					l.MoreExcept++
				}
			}
		}
	}
}

func (c *cell) unchanged(actions []policy.Action) bool {
	return !slices.ContainsFunc(c.deltas, func(d delta) bool { return slices.Contains(actions, d.action) })
}

// ancestors are the known patterns that hold a pattern, itself among them.
func ancestors(p identity.Pattern, known map[identity.Pattern]bool) []identity.Pattern {
	var out []identity.Pattern
	if known[p] {
		out = append(out, p)
	}
	for _, a := range p.Around() {
		if known[a] {
			out = append(out, a)
		}
	}
	return out
}
