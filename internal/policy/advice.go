package policy

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
)

// MaxAdvice is how much advice is given about one bundle.
const MaxAdvice = 1000

// Advice says what of a bundle that compiles is hardly as its author meant it: a rule for jobs that lets in more than it accepts by name; a
// grant that can never match, or that another one makes superfluous; and, of a bundle with tests, what of a rule none of them made use of. It never keeps a bundle from coming into force. report
// is what RunTests gave; nil leaves out what tests would say.
func (p *Program) Advice(report *TestReport) Findings {
	found := collector{most: MaxAdvice, list: slices.Clone(p.advice[:min(len(p.advice), MaxAdvice)])}
	p.adviseRecovery(&found)
	for i := range p.grants {
		p.idle(&p.grants[i], &found)
	}
	if report != nil && len(report.Results) > 0 {
		for _, c := range report.Coverage() {
			if len(c.Missing) > 0 {
				found.add(c.Source, "the tests have no case of %s for: %s", c.Rule, strings.Join(c.Missing, ", "))
			}
		}
	}
	return found.findings()
}

// idle finds a grant that has no effect, or in part.
func (p *Program) idle(g *grant, found *collector) {
	nobody := func(identity.Pattern) bool { return false }
	var ids, secrets []string
	for _, who := range g.identities {
		// That somebody has a path by itself was asked when it was compiled.
		if _, exact := who.Exact(); !exact && !p.somebodyIn([]identity.Pattern{who}, nil, nobody) {
			ids = append(ids, who.String())
		}
	}
	for _, what := range g.secrets {
		if !p.declaredBeyond([]identity.Pattern{what}, nil) {
			secrets = append(secrets, what.String())
		}
	}
	// To forbid something before it exists is prudent.
	never := len(ids) == len(g.identities) || len(secrets) == len(g.secrets)
	if len(ids) > 0 && (g.effect == Allow || never) {
		found.add(at(g.source, g.lines.lists[0]), "the grant %s is for nobody by %s: no identity rule gives such a path", g.name, strings.Join(ids, ", "))
	}
	if len(secrets) > 0 && (g.effect == Allow || never) {
		found.add(at(g.source, g.lines.lists[1]), "the grant %s is about nothing by %s: no such secret is declared", g.name, strings.Join(secrets, ", "))
	}
	if never {
		return
	}
	if d := p.shadow(g); d != nil {
		what := "permits all of it, for as long or longer"
		if d.effect == Deny {
			what = "denies all of it"
		}
		found.add(g.source, "the grant %s has no effect: the grant %s (%s) %s", g.name, d.name, d.source, what)
	}
}

// shadow finds a grant that decides before g whatever g could decide.
func (p *Program) shadow(g *grant) *grant {
	var out *grant
	// Who covers g is found for whatever is in it.
	p.index.candidates(inside(g.identities[0]), inside(g.secrets[0]), func(rank int32) {
		d := &p.grants[rank]
		if d.rank >= g.rank || out != nil && out.rank < d.rank {
			return
		}
		same := *d
		if d.whenText == g.whenText {
			same.when = nil
		}
		if same.settles(g) && covered(g.identities, d.identities) {
			out = d
		}
	})
	return out
}

// inside is a path that the pattern selects.
func inside(p identity.Pattern) string {
	if path, ok := p.Exact(); ok {
		return path
	}
	path, _ := p.Prefix()
	if path == "" && p.String() == "*" {
		return "x"
	}
	return path + "/x"
}
