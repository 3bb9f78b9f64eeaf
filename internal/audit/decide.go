package audit

import (
	"fmt"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// maxViolations is how many violations a report lists. All are counted.
const maxViolations = 100

// Violation is an entry that is what it says, and says what must not be: by an invariant of package invariant, which decides again
// by a model of its own.
type Violation struct {
	Invariant string `json:"invariant"`
	Index     uint64 `json:"entry"`
	Detail    string `json:"detail"`
}

// Undecided is a span of entries whose grants, duties and identities were not decided again. Everything else was judged.
type Undecided struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"` // without
	Why  string `json:"why"`
}

// Violated is the cause (errors.As) of the error about a ledger of which every entry is what it says, but not all are what the rules
// in force allowed. The report lists them.
type Violated struct{ Count uint64 }

func (v *Violated) Error() string { return fmt.Sprintf("%d violations", v.Count) }

// newChecker makes the checker that decides again.
func (r *run) newChecker() *invariant.Checker {
	return invariant.New(invariant.Options{
		Program: func(d state.Digest) *policy.Program {
			prog, err := r.bundles.program(d)
			if err != nil {
				return nil // the run has ended with that error before
			}
			return prog
		},
		Incomplete: r.l.Blob == nil || r.l.BlobsPartial, Genesis: r.o.Genesis,
	})
}

// decide has an entry judged again. It was applied, and the bundle that it brought into force was compiled.
func (r *run) decide(index uint64, e *state.Entry) {
	for _, v := range r.checker.Feed(index, e) {
		r.report.Violated++
		if len(r.report.Violations) < maxViolations {
			r.report.Violations = append(r.report.Violations, Violation{string(v.Invariant), v.Index, v.Detail})
		}
	}
	if r.bundles.prog != nil {
		r.report.Decided++
		return
	}
	d := r.state.Bundle
	if why := fmt.Sprintf("the bundle %s can't be had here", d); !r.extends(index, why) {
		r.report.Undecided = append(r.report.Undecided, Undecided{From: index, To: index + 1, Why: why})
	}
}

// extends lengthens the last span, if it ends before this entry and is for the same reason.
func (r *run) extends(index uint64, why string) bool {
	n := len(r.report.Undecided)
	if n == 0 || r.report.Undecided[n-1].Why != why || r.report.Undecided[n-1].To != index {
		return false
	}
	r.report.Undecided[n-1].To++
	return true
}

// verdict is the error about what was decided again, if something must not be.
func (r *run) verdict() error {
	if r.report.Violated == 0 {
		return nil
	}
	first := r.report.Violations[0]
	p := problem.New(problem.ReasonViolated, "every entry is what it says, but %d times what the rules in force did not allow; the first is entry %d (%s)",
		r.report.Violated, first.Index, first.Invariant)
	p.Err = &Violated{r.report.Violated}
	return p
}
