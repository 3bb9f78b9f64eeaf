package policy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// Test is a Test document of the bundle.
type Test struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Source      Pos    `json:"source"`
	Cases       []Case `json:"cases"`
}

// Case is one question of a test, with its answer.
type Case struct {
	Name   string `json:"name"`
	Source Pos    `json:"source"`
	Asks   string `json:"asks"`   // the question, for people
	Expect string `json:"expect"` // allow, deny, refuse, quarantine or an identity's path
}

// Tests lists the bundle's tests by name, each with its cases in the order of the file: those about identities first.
func (p *Program) Tests() []Test {
	out := make([]Test, len(p.tests))
	for i := range p.tests {
		d := &p.tests[i]
		out[i] = Test{Name: d.name, Description: d.about, Source: d.source, Cases: make([]Case, len(d.cases))}
		for j := range d.cases {
			t := &d.cases[j]
			out[i].Cases[j] = Case{t.name, t.source, t.question(), t.expect}
		}
	}
	return out
}

func (t *testCase) question() string {
	switch {
	case t.decides && t.proof != nil:
		in := t.in
		in.Identity = "who shows a proof of " + t.proof.method
		return describe(&in)
	case t.decides:
		return describe(&t.in)
	case t.proof.asks != "":
		return "who shows a proof of " + t.proof.method + " and asks to be " + t.proof.asks
	}
	return "who shows a proof of " + t.proof.method
}

// CaseResult is how one case went.
type CaseResult struct {
	Test   string   `json:"test"`
	Case   string   `json:"case"`
	Source Pos      `json:"source"`
	Pass   bool     `json:"pass"`
	Want   string   `json:"want,omitempty"` // what was expected, of a case that failed
	Got    string   `json:"got,omitempty"`  // what came instead
	Why    []string `json:"why,omitempty"`  // what each rule that has to do with it said; of the first failures only
}

// TestReport is how a bundle's tests went.
type TestReport struct {
	Passed  int          `json:"passed"`
	Failed  int          `json:"failed"`
	Results []CaseResult `json:"results"`

	seen *coverage
}

// Err is nil if no case failed, and otherwise a problem of reason bundle-invalid that names the first.
func (r *TestReport) Err() error {
	for _, x := range r.Results {
		if !x.Pass {
			return problem.New(problem.ReasonBundleInvalid, "%d of the bundle's %d test cases failed: %s: %s: expected %s, got %s", r.Failed, len(r.Results), x.Source, x.Case, x.Want, x.Got).
				WithFix("run `bailment bundle test`")
		}
	}
	return nil
}

// maxExplained is how many failures are explained by rule: an explanation asks every grant.
const maxExplained = 20

// RunTests runs the bundle's tests: what a request is answered with here is what Decide, IdentifyNode and IdentifyWorkload answer. The
// results are in the order of Tests. The error is the context's, which is looked at between cases.
func (p *Program) RunTests(ctx context.Context) (*TestReport, error) {
	r := &TestReport{Results: []CaseResult{}, seen: newCoverage(p)}
	for i := range p.tests {
		d := &p.tests[i]
		for j := range d.cases {
			if err := ctx.Err(); err != nil {
				return nil, problem.Wrap(err, problem.ReasonTooSlow, "running the bundle's tests")
			}
			t := &d.cases[j]
			a := p.answer(t, r.seen)
			out := CaseResult{Test: d.name, Case: t.name, Source: t.source, Pass: t.fits(a)}
			if out.Pass {
				r.Passed++
			} else {
				r.Failed++
				out.Want, out.Got = t.wanted(), a.told(t)
				if r.Failed <= maxExplained {
					out.Why = p.why(t, a)
				}
			}
			r.Results = append(r.Results, out)
		}
	}
	return r, nil
}

// answer is what came of a case.
type answer struct {
	match   Match
	refused error // of the identity
	d       Decision
	most    time.Duration // of a lease
}

// answer asks what the case asks. It is the only way from a test to the rules, for mutants too.
func (p *Program) answer(t *testCase, seen *coverage) answer {
	var a answer
	in := &t.in
	if x := t.proof; x != nil {
		if x.method == MethodWorkload {
			a.match, a.refused = p.identifyWorkload(x.node, x.claims, x.asks, seen)
		} else {
			a.match, a.refused = p.identifyNode(x.method, x.authority, x.claims, seen)
		}
		if a.refused == nil {
			seen.gave(p, a.match)
		}
		if !t.decides {
			return a
		}
		if a.refused != nil {
			reason := problem.As(a.refused).Reason
			a.d = Decision{Reason: reason, Message: a.refused.Error()}
			return a
		}
		asked := t.in
		asked.Identity = a.match.Path
		in = &asked
	}
	a.d = p.decide(in, seen)
	seen.decided(p, in, a.d)
	if a.d.Allow {
		a.most = p.longestLease(in.Secret, a.d)
	}
	return a
}

// longestLease is the least of what grant, secret and environment say.
func (p *Program) longestLease(path string, d Decision) time.Duration {
	most := p.environment.Leases.Max
	if s, ok := p.Secret(path); ok && s.Lease.Max > 0 {
		most = min(most, s.Lease.Max)
	}
	if d.TTL > 0 {
		most = min(most, d.TTL)
	}
	return most
}

// fits reports whether the answer is the expected one.
func (t *testCase) fits(a answer) bool {
	if !t.decides {
		switch t.expect {
		case "refuse", "quarantine":
			return a.refused != nil && a.match.Quarantine == (t.expect == "quarantine") && (t.reason == "" || problem.Is(a.refused, t.reason))
		}
		return a.refused == nil && a.match.Path == t.expect && (t.rule == "" || t.rule == a.match.Rule) && (!t.limited || t.limit == a.match.Session)
	}
	return a.d.Allow == (t.expect == string(Allow)) && (t.by == "" || t.by == a.d.Grant) && (t.reason == "" || t.reason == a.d.Reason) &&
		(!t.limited || t.limit == a.most)
}

// wanted says what was expected, and told what came, in the same words.
func (t *testCase) wanted() string {
	s := t.expect
	if t.rule != "" {
		s += " by " + t.rule
	}
	if t.by != "" {
		s += " by " + t.by
	}
	if t.reason != "" {
		s += " (" + string(t.reason) + ")"
	}
	if t.limited {
		s += " for " + shortDuration(t.limit)
	}
	return s
}

func (a answer) told(t *testCase) string {
	by := func(s string) string {
		if s == "" {
			return ""
		}
		return " by " + s
	}
	switch {
	case !t.decides && a.match.Quarantine:
		return "quarantine (" + string(problem.As(a.refused).Reason) + ")"
	case !t.decides && a.refused != nil:
		return "refuse (" + string(problem.As(a.refused).Reason) + ")"
	case !t.decides:
		s := a.match.Path + by(a.match.Rule)
		if t.limited {
			s += " for " + shortDuration(a.match.Session)
		}
		return s
	case a.d.Allow:
		s := "allow" + by(a.d.Grant)
		if t.limited {
			s += " for " + shortDuration(a.most)
		}
		return s
	}
	return "deny" + by(a.d.Grant) + " (" + string(a.d.Reason) + ")"
}

// why explains an answer: the message, and what was said by the rules that came near.
func (p *Program) why(t *testCase, a answer) []string {
	const most = 10
	if !t.decides || a.refused != nil {
		if a.refused != nil {
			return []string{oneLine(problem.As(a.refused).Message)}
		}
		return []string{"the rule " + a.match.Rule + " gives " + a.match.Path}
	}
	in := t.in
	if t.proof != nil {
		in.Identity = a.match.Path
	}
	d, rules := p.Explain(&in)
	var out []string
	if t.proof != nil {
		out = append(out, "the proof makes "+a.match.Path+", by the rule "+a.match.Rule)
	}
	if d.Message != "" {
		out = append(out, oneLine(d.Message))
	}
	for _, r := range rules {
		if !r.Named || r.stage < stageSecret {
			continue
		}
		if len(out) == most {
			return append(out, "…")
		}
		said := r.Why
		if r.Applies {
			said = strings.TrimSuffix("it applies: "+r.Why, ": ")
		}
		out = append(out, oneLine(fmt.Sprintf("%s: %s %s: %s", r.Source, r.Effect, r.Grant, said)))
	}
	return out
}
