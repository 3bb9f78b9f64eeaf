package plan

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// maxTemplates is how many identity rules of jobs are told apart when reach is computed. With more, what their paths have in common counts.
const maxTemplates = 64

// reached is by what a secret can be read most easily.
type reached struct {
	least identity.Assurance
	rule  *rule
}

type reachMap map[identity.Pattern]reached

func (m reachMap) add(secret identity.Pattern, r reached) {
	if was, ok := m[secret]; !ok || r.least < was.least {
		m[secret] = r
	}
}

// reach finds what comes within reach of jobs, and what can be read with weaker assurance. A grant's own point is enough to ask at: a
// prohibition holds it only if it holds all that the grant is about.
func (p *Plan) reach() {
	p.cells.work = 0
	oldJobs, oldAll := p.cells.old.reaches(&p.cells.work)
	newJobs, newAll := p.cells.new.reaches(&p.cells.work)
	p.Partial = p.Partial || p.cells.work > maxWork
	p.CI = nearer(oldJobs, newJobs)
	p.Assurance = slices.DeleteFunc(nearer(oldAll, newAll), func(r Reach) bool { return r.Before == nil })
	p.Totals.CI, p.Totals.Assurance = len(p.CI), len(p.Assurance)
	p.CI, p.Assurance = cut(p.CI), cut(p.Assurance)
}

// pathPattern is what the identities of a rule have in common.
func pathPattern(path string) identity.Pattern {
	if fixed, _, open := strings.Cut(path, "/{"); open {
		path = fixed + "/*"
	}
	p, err := identity.ParseIDPattern(path)
	if err != nil {
		p, _ = identity.ParseIDPattern("/*") // a rule that begins with a claim, which no compiled bundle has
	}
	return p
}

// jobs are patterns that hold every identity of a job which the rules can give.
func jobs(p *policy.Program) []identity.Pattern {
	var out, wide []identity.Pattern
	for _, r := range p.IdentityRules() {
		if !strings.HasPrefix(r.Path, identity.PrefixCI) {
			continue
		}
		if x := pathPattern(r.Path); !slices.Contains(out, x) {
			out = append(out, x)
		}
		if x := pathPattern(identity.PrefixCI + r.Method + "/{}"); !slices.Contains(wide, x) {
			wide = append(wide, x)
		}
	}
	if len(out) > maxTemplates {
		return wide
	}
	return out
}

// reaches is what can be read, by jobs and by anybody.
func (s *side) reaches(work *int) (byJobs, byAll reachMap) {
	byJobs, byAll = reachMap{}, reachMap{}
	ci := jobs(s.prog)
	known := map[rect]*reached{}
	ask := func(at rect, r *rule) *reached {
		if x, ok := known[at]; ok {
			return x
		}
		var x *reached
		for _, f := range formsOf(policy.ReadSecret, s.governing(policy.ReadSecret, at, work), work) {
			if x == nil || f.least() < x.least {
				x = &reached{f.least(), r}
			}
		}
		known[at] = x
		return x
	}
	for i := range s.rules {
		r := &s.rules[i]
		if r.Effect != policy.Allow || !slices.Contains(r.Actions, policy.ReadSecret) {
			continue
		}
		for _, who := range r.Identities {
			for _, secret := range r.Secrets {
				if *work > maxWork {
					return byJobs, byAll
				}
				if x := ask(rect{who, secret}, r); x != nil {
					byAll.add(secret, *x)
				}
				for _, job := range ci {
					at, ok := meet(who, job)
					if !ok {
						continue
					}
					if x := ask(rect{at, secret}, r); x != nil {
						byJobs.add(secret, *x)
					}
				}
			}
		}
	}
	return byJobs, byAll
}

// nearer lists what is within reach now and was not, or only by better assurance.
func nearer(before, after reachMap) []Reach {
	within := map[identity.Pattern]identity.Assurance{} // a part of the pattern was within reach
	for s, r := range before {
		for _, around := range s.Around() {
			if was, ok := within[around]; !ok || r.least < was {
				within[around] = r.least
			}
		}
	}
	out := []Reach{}
	for s, r := range after {
		was := before.least(s)
		if was != nil && *was <= r.least {
			continue
		}
		if around := after.leastAround(s); around != nil && *around <= r.least {
			continue // told of a wider pattern, or not new
		}
		part, parts := within[s]
		out = append(out, Reach{s.String(), was, r.least, parts && part <= r.least, r.rule.Name, r.rule.Source})
	}
	slices.SortFunc(out, func(a, b Reach) int {
		return cmp.Or(cmp.Compare(a.After, b.After), strings.Compare(a.Secret, b.Secret))
	})
	return out
}

// least is the least assurance by which all of a pattern is within reach; nil: by none.
func (m reachMap) least(s identity.Pattern) *identity.Assurance {
	best := m.leastAround(s)
	if r, ok := m[s]; ok && (best == nil || r.least < *best) {
		return &r.least
	}
	return best
}

func (m reachMap) leastAround(s identity.Pattern) *identity.Assurance {
	var best *identity.Assurance
	for _, around := range s.Around() {
		if r, ok := m[around]; ok && (best == nil || r.least < *best) {
			best = &r.least
		}
	}
	return best
}
