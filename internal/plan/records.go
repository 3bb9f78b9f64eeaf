package plan

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/release"
)

// Section is what an item is of.
type Section string

// The sections.
const (
	Settings    Section = "setting"
	Persons     Section = "operator"
	Identities  Section = "identity"
	Secrets     Section = "secret"
	Authorities Section = "authority"
	Federations Section = "federation"
	Rollouts    Section = "rollout"
)

var sections = []Section{Settings, Persons, Rollouts, Authorities, Federations, Identities, Secrets}

// How an item changes.
const (
	Added   = "added"
	Removed = "removed"
	Changed = "changed"
)

// Item is something other than an access that appears, disappears or changes.
type Item struct {
	Section   Section   `json:"section"`
	Name      string    `json:"name"`
	How       string    `json:"how"` // added | removed | changed
	Direction Direction `json:"direction"`
	// Sensitive: it is about who can change, enter or be trusted, and not only about convenience.
	Sensitive bool    `json:"sensitive"`
	Fields    []Field `json:"fields,omitempty"` // of what changes; of what appears all that is set
}

// Field is one part of it. Values are sets: what appears or disappears of them is what changes.
type Field struct {
	Name      string    `json:"name"`
	Before    []string  `json:"before"`
	After     []string  `json:"after"`
	Direction Direction `json:"direction"`
}

// sense is which way a field's values go.
type sense uint8

const (
	neither   sense = iota
	moreWider       // a larger number, or more members, permits more
	lessWider       // a smaller number, or fewer members, permits more
)

// value is one field of a record. A number counts where it is one.
type value struct {
	name  string
	sense sense
	quiet bool // not sensitive
	set   []string

	number   *int64
	version  *release.Version
	patterns []identity.Pattern // what set names, where they cover one another
}

func (v *value) equal(o *value) bool { return slices.Equal(v.set, o.set) }

// moves is the direction from v to o.
func (v *value) moves(o *value) Direction {
	var less, more bool // o is at most v; v is at most o
	switch {
	case v.number != nil && o.number != nil:
		less, more = *o.number <= *v.number, *v.number <= *o.number
	case v.version != nil && o.version != nil:
		c := v.version.Compare(*o.version)
		less, more = c >= 0, c <= 0
	case len(v.patterns) > 0 && len(o.patterns) > 0:
		less, more = covered(o.patterns, v.patterns), covered(v.patterns, o.patterns)
	default:
		less, more = subset(o.set, v.set), subset(v.set, o.set)
	}
	switch v.sense {
	case moreWider:
		return direction(less, more)
	case lessWider:
		return direction(more, less)
	}
	return Other
}

// covered reports whether every pattern is within one of the others.
func covered(patterns, by []identity.Pattern) bool {
	return !slices.ContainsFunc(patterns, func(p identity.Pattern) bool {
		return !slices.ContainsFunc(by, func(q identity.Pattern) bool { return q.Covers(p) })
	})
}

// record is a thing with fields. Two of the same key are compared, and all of a record's meaning is in its fields.
type record struct {
	section Section
	key     string // what it is known by in both bundles
	name    string // for people
	fields  []value
	appears Direction // what it is when it comes; the other way when it goes
}

func (r *record) equal(o *record) bool {
	return slices.EqualFunc(r.fields, o.fields, func(a, b value) bool { return a.name == b.name && a.equal(&b) })
}

// records fills in the items.
func (p *Plan) records() {
	for _, list := range [][2][]record{
		{settingsOf(p.old), settingsOf(p.new)},
		{personsOf(p.old), personsOf(p.new)},
		{authoritiesOf(p.old), authoritiesOf(p.new)},
		{federationsOf(p.old), federationsOf(p.new)},
		{rolloutsOf(p.old), rolloutsOf(p.new)},
		paired(rulesOf(p.old), rulesOf(p.new)),
		{secretsOf(p.old, p.new), secretsOf(p.new, p.old)},
	} {
		p.Items = append(p.Items, compareRecords(list[0], list[1])...)
	}
	slices.SortStableFunc(p.Items, func(a, b Item) int {
		return cmp.Or(
			cmp.Compare(slices.Index(sections, a.Section), slices.Index(sections, b.Section)), cmp.Compare(rank(a), rank(b)),
			strings.Compare(a.Name, b.Name),
		)
	})
	p.Totals.Items = len(p.Items)
	for _, x := range p.Items {
		if x.Sensitive {
			p.Totals.Sensitive++
		}
	}
	p.Items = cutItems(p.Items)
}

func rank(x Item) int {
	if !x.Sensitive {
		return 3
	}
	return directionOrder[x.Direction]
}

// cutItems keeps some of each section, so that many secrets don't hide a setting.
func cutItems(list []Item) []Item {
	count := map[Section]int{}
	return slices.DeleteFunc(list, func(x Item) bool { count[x.Section]++; return count[x.Section] > MaxLines/len(sections) })
}

func compareRecords(before, after []record) []Item {
	var out []Item
	old := make(map[string]*record, len(before))
	for i := range before {
		old[before[i].key] = &before[i]
	}
	for i := range after {
		b := &after[i]
		a := old[b.key]
		delete(old, b.key)
		switch {
		case a == nil:
			out = append(out, whole(b, Added))
		case !a.equal(b):
			out = append(out, difference(a, b))
		}
	}
	for i := range before {
		if old[before[i].key] == &before[i] {
			out = append(out, whole(&before[i], Removed))
		}
	}
	return out
}

func whole(r *record, how string) Item {
	x := Item{Section: r.section, Name: r.name, How: how, Direction: r.appears}
	if how == Removed {
		x.Direction = opposite(r.appears)
	}
	for _, f := range r.fields {
		x.Sensitive = x.Sensitive || !f.quiet
		if len(f.set) == 0 {
			continue
		}
		y := Field{Name: f.name, Before: []string{}, After: f.set, Direction: x.Direction}
		if how == Removed {
			y.Before, y.After = y.After, y.Before
		}
		x.Fields = append(x.Fields, y)
	}
	return x
}

func opposite(d Direction) Direction {
	switch d {
	case Wider:
		return Narrower
	case Narrower:
		return Wider
	}
	return Other
}

func difference(a, b *record) Item {
	x := Item{Section: b.section, Name: b.name, How: Changed}
	for i := range b.fields {
		f, g := &a.fields[i], &b.fields[i]
		if f.equal(g) {
			continue
		}
		x.Sensitive = x.Sensitive || !g.quiet
		x.Fields = append(x.Fields, Field{g.name, nonNil(f.set), nonNil(g.set), f.moves(g)})
	}
	x.Direction = x.Fields[0].Direction
	for _, f := range x.Fields[1:] {
		if f.Direction != x.Direction {
			x.Direction = Other
		}
	}
	return x
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// paired gives the identity rules that differ the keys by which they are compared: equal ones are the same whatever they are called; of
// the others those of one name, then those for one method and path.
func paired(before, after []record) [2][]record {
	equal := map[string][]int{}
	for i := range before {
		k := before[i].content()
		equal[k] = append(equal[k], i)
	}
	gone := make([]bool, len(before))
	var rest []record
	for _, r := range after {
		k := r.content()
		if at := equal[k]; len(at) > 0 {
			gone[at[0]], equal[k] = true, at[1:]
			continue
		}
		rest = append(rest, r)
	}
	var left []record
	for i, r := range before {
		if !gone[i] {
			left = append(left, r)
		}
	}
	match := func(of func(*record) string) {
		at := map[string][]int{}
		for i := range left {
			if left[i].key == "" {
				at[of(&left[i])] = append(at[of(&left[i])], i)
			}
		}
		for i := range rest {
			k := of(&rest[i])
			if found := at[k]; rest[i].key == "" && len(found) > 0 {
				rest[i].key = "=" + rest[i].name
				left[found[0]].key, at[k] = rest[i].key, found[1:]
			}
		}
	}
	match(func(r *record) string { return r.name })
	match(func(r *record) string {
		return strings.Join(r.fields[0].set, "") + " " + strings.Join(r.fields[1].set, "")
	})
	for i := range left {
		if left[i].key == "" {
			left[i].key = "-" + left[i].name
		}
	}
	for i := range rest {
		if rest[i].key == "" {
			rest[i].key = "+" + rest[i].name
		}
	}
	return [2][]record{left, rest}
}

func (r *record) content() string {
	var b strings.Builder
	for _, f := range r.fields {
		b.WriteString(f.name)
		for _, s := range f.set {
			b.WriteString("\x00" + s)
		}
		b.WriteByte(1)
	}
	return b.String()
}

func rulesOf(p *policy.Program) []record {
	var out []record
	for _, r := range p.IdentityRules() {
		set := func(s string) []string {
			if s == "" {
				return nil
			}
			return []string{s}
		}
		otherwise := "refuse"
		if r.Quarantine {
			otherwise = "quarantine"
		}
		out = append(out, record{
			section: Identities, name: r.Name, appears: Wider,
			fields: []value{
				{name: "method", set: set(r.Method)},
				{name: "path", set: set(r.Path)},
				{name: "authority", set: set(r.Authority)},
				{name: "when", set: set(oneWriting(r.When)), sense: lessWider},
				{name: "require", set: set(oneWriting(r.Require)), sense: lessWider},
				{name: "otherwise", set: set(otherwise)},
				{name: "nodes", set: names(r.Nodes), sense: moreWider, patterns: r.Nodes},
				period("session", r.Session, moreWider),
				period("lifetime", r.Lifetime, moreWider),
				{name: "federatesWith", set: r.Federates, sense: moreWider},
			},
		})
	}
	return out
}
