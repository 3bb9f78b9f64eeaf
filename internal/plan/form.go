package plan

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// maxForm is how many times a grant about all purposes may be folded into the form of one.
const maxForm = 4_000_000

// anyPurpose stands for purposes that no grant names.
const anyPurpose = "*"

// none is a ttl below all others: no access.
const none = time.Duration(-1)

// endless is a ttl above all others: the grant doesn't say.
const endless = time.Duration(1<<63 - 1)

// levels are the longest leases by the session's assurance.
type levels [identity.Measured + 1]time.Duration

var closed = func() (l levels) {
	for i := range l {
		l[i] = none
	}
	return l
}()

// form is what the grants about one action say together of one purpose, so that equal forms decide alike: by condition ("" for none) the
// longest lease at each assurance, without what another condition's or no condition's gives anyhow; and the conditions that forbid.
type form struct {
	open map[string]levels // never empty
	deny []string          // sorted
}

func (f *form) equal(g *form) bool {
	if f == nil || g == nil {
		return f == g
	}
	return maps.Equal(f.open, g.open) && slices.Equal(f.deny, g.deny)
}

// covers reports whether f permits whatever g does, as far as texts of conditions can tell.
func (f *form) covers(g *form) bool {
	if f == nil || g == nil {
		return g == nil
	}
	for _, d := range f.deny {
		if !slices.Contains(g.deny, d) {
			return false
		}
	}
	plain, ok := f.open[""]
	if !ok {
		plain = closed
	}
	for when, l := range g.open {
		own, ok := f.open[when]
		if !ok {
			own = closed
		}
		for i := range l {
			if max(own[i], plain[i]) < l[i] {
				return false
			}
		}
	}
	return true
}

// forms are by purpose. A purpose without access has none.
type forms map[string]*form

func (f forms) equal(g forms) bool {
	return maps.EqualFunc(f, g, func(a, b *form) bool { return a.equal(b) })
}

func (f forms) covers(g forms) bool {
	for purpose, x := range g {
		if !f[purpose].covers(x) {
			return false
		}
	}
	return true
}

func (f forms) add(purpose string, g *rule) {
	x := f[purpose]
	if x == nil {
		x = &form{open: map[string]levels{}}
		f[purpose] = x
	}
	if g.Effect == policy.Deny {
		x.deny = append(x.deny, g.when)
		return
	}
	l, ok := x.open[g.when]
	if !ok {
		l = closed
	}
	for i := int(g.Assurance); i < len(l); i++ {
		l[i] = max(l[i], g.ttl())
	}
	x.open[g.when] = l
}

// formsOf folds the grants that govern an action. Where they name so many purposes that it would take long, nothing is left of the work that
// may be spent, and the forms say nothing.
func formsOf(action policy.Action, rules []*rule, work *int) forms {
	out := forms{}
	purposes := map[string]bool{anyPurpose: true}
	if action == policy.ReadSecret {
		for _, r := range rules {
			for _, p := range r.Purposes {
				purposes[p] = true
			}
		}
	}
	others := 0 // each is about all purposes
	for _, r := range rules {
		if action != policy.ReadSecret || len(r.Purposes) == 0 {
			others++
		}
	}
	if *work += len(purposes) * (others + min(len(purposes), len(rules))); *work > maxWork || len(purposes)*others > maxForm {
		*work = maxWork + 1
		return out
	}
	for _, r := range rules {
		switch {
		case action == policy.ReadSecret && len(r.Purposes) > 0:
			for _, p := range r.Purposes {
				out.add(p, r)
			}
		default:
			for p := range purposes {
				out.add(p, r)
			}
		}
	}
	for p, x := range out {
		if !x.settle() {
			delete(out, p)
		}
	}
	return out
}

// settle brings a form into its one shape, and reports whether there is any access.
func (f *form) settle() bool {
	slices.Sort(f.deny)
	f.deny = slices.Compact(f.deny)
	if len(f.deny) > 0 && f.deny[0] == "" {
		return false
	}
	if plain, ok := f.open[""]; ok {
		for when, l := range f.open {
			if when == "" {
				continue
			}
			more := false
			for i := range l {
				more = more || l[i] > plain[i]
			}
			if !more {
				delete(f.open, when)
				continue
			}
			for i := range l {
				l[i] = max(l[i], plain[i])
			}
			f.open[when] = l
		}
	}
	return len(f.open) > 0
}

// least is the least assurance by which there is access.
func (f *form) least() identity.Assurance {
	best := identity.Measured
	for _, l := range f.open {
		for i := range l {
			if l[i] != none {
				best = min(best, identity.Assurance(i))
			}
		}
	}
	return best
}

// longest is the longest lease; 0: the grants don't say.
func (f *form) longest() Lease {
	best := none
	for _, l := range f.open {
		best = max(best, l[len(l)-1])
	}
	if best == endless {
		return 0
	}
	return Lease(best)
}

func (f *form) conditions() []string {
	out := slices.Sorted(maps.Keys(f.open))
	if len(out) == 1 && out[0] == "" {
		return nil
	}
	return out
}

// accesses are for people: purposes of equal form stand together.
func (f forms) accesses() []Access {
	out := []Access{}
	var seen []*form
	for _, p := range slices.Sorted(maps.Keys(f)) {
		x := f[p]
		i := slices.IndexFunc(seen, x.equal)
		if i < 0 {
			i = len(seen)
			seen = append(seen, x)
			out = append(out, Access{Assurance: x.least(), TTL: x.longest(), When: x.conditions(), Unless: x.deny})
		}
		if p != anyPurpose {
			out[i].Purposes = append(out[i].Purposes, p)
		}
	}
	return out
}

// rule is a grant with what comparing needs.
type rule struct {
	policy.Grant
	when string // in one writing
	key  string // all of its meaning
}

func (r *rule) ttl() time.Duration {
	if r.TTL == 0 {
		return endless
	}
	return r.TTL
}

// oneWriting takes the freedom of white space out of a condition. What it can't tell apart from a text it leaves.
func oneWriting(s string) string {
	s = strings.TrimSpace(s)
	if strings.Contains(s, "//") || strings.Contains(s, `\`) || strings.Contains(s, `"""`) || strings.Contains(s, "'''") {
		return s
	}
	var b strings.Builder
	quote, gap := byte(0), false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			gap = true
			continue
		case c == '"' || c == '\'':
			quote = c
		}
		if gap && b.Len() > 0 {
			b.WriteByte(' ')
			gap = false
		}
		b.WriteByte(c)
	}
	return b.String()
}
