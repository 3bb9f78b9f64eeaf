package reach

import (
	"fmt"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// LimitResult is how a limit of the bundle's tests is kept.
type LimitResult struct {
	policy.ReachLimit
	Broken *Broken `json:"broken,omitempty"` // nil: it holds
}

// Why says in one line what breaks the limit; "" if it holds.
func (r *LimitResult) Why() string {
	switch b := r.Broken; {
	case b == nil:
		return ""
	case b.Empty != "":
		return b.Empty + ": the limit is about nothing, and would hold whatever the rules say"
	default:
		others := ""
		if b.Total > 1 {
			others = fmt.Sprintf(" (and %d more)", b.Total-1)
		}
		return fmt.Sprintf("%s%s gets there, by a way that is %s: %s", b.Who.Name, others, b.Grade, Sentence(b.Way))
	}
}

// Limits says of each limit of the bundle's tests whether it holds, in the order of Program.Limits. It is one question: the error is of
// reason limit if the bundle is too large for it.
func (m *Model) Limits() ([]LimitResult, error) {
	list := m.program.Limits()
	out := make([]LimitResult, len(list))
	limits := make([]Limit, len(list))
	for i, l := range list {
		out[i].ReachLimit = l
		var err error
		if limits[i], err = limitOf(l); err != nil {
			return nil, err
		}
	}
	if len(list) == 0 {
		return out, nil
	}
	broken, err := CheckLimits(m.program, m.names, limits)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if len(broken) > 0 && broken[0].Limit == out[i].Name { // which is unique, and in the same order
			out[i].Broken, broken = &broken[0], broken[1:]
		}
	}
	return out, nil
}

// KeepsLimits is nil if every limit of the bundle's tests holds, and otherwise a problem of reason bundle-invalid, whose cause (errors.As)
// are policy.Findings: each broken limit at its place, with the way that breaks it.
func (m *Model) KeepsLimits() error {
	results, err := m.Limits()
	if err != nil {
		return err
	}
	list := Findings(results)
	if len(list) == 0 {
		return nil
	}
	p := problem.New(problem.ReasonBundleInvalid, "%d of the bundle's %d limits %s broken: %s", len(list), len(results), map[bool]string{true: "is", false: "are"}[len(list) == 1], list[0]).
		WithFix("run `bailment bundle test`")
	p.Err = list
	return p
}

// Findings are the broken ones of results, each at its place.
func Findings(results []LimitResult) policy.Findings {
	var list policy.Findings
	for i := range results {
		if why := results[i].Why(); why != "" {
			list = append(list, policy.Finding{Pos: results[i].Source, Message: fmt.Sprintf("the limit %q is broken: %s", results[i].Name, why)})
		}
	}
	return list
}

func limitOf(l policy.ReachLimit) (Limit, error) {
	out := Limit{Name: l.Name, Direct: l.Direct}
	for _, s := range l.From {
		p, err := identity.ParseIDPattern(s)
		if err != nil {
			return out, problem.Wrap(err, problem.ReasonInvalid, "the limit %s", l.Name)
		}
		out.From = append(out.From, p)
	}
	for _, s := range l.To {
		t, err := ParseTarget(s)
		if err != nil {
			return out, err
		}
		out.To = append(out.To, t)
	}
	for _, g := range []Grade{Plain, Conditional, Poisoning} {
		if g.String() == l.Ways {
			out.Worst = g
			return out, nil
		}
	}
	return out, problem.New(problem.ReasonInvalid, "the limit %s: there are no ways %q", l.Name, l.Ways)
}

// Sentence is a way in words: each hop, whither, and by which line.
func Sentence(steps []Step) string {
	var b strings.Builder
	for i, s := range steps {
		switch {
		case i > 0 && s.From != steps[i-1].To:
			fmt.Fprintf(&b, "; and %s ", s.From.Name)
		case i > 0:
			b.WriteString(" → ")
		}
		fmt.Fprintf(&b, "%s %s", s.Hop, s.To.Name)
		switch s.Hop {
		case Reads, Writes, Does, Poisons:
			fmt.Fprintf(&b, " [%s]", s.Rule)
		}
		if len(s.Conditions) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(s.Conditions, "; "))
		}
	}
	return b.String()
}
