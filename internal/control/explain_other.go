package control

import (
	"context"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// maxPast is how far a past moment may be from the first entry: all before it is read and reduced again.
const maxPast = 2_000_000

// explainOther explains by a bundle that does not govern yet, or a state that is over. Who may ask about others may ask about a change; who
// has the duty audit, and so may read the ledger, about the past. In both nobody is in his own session: an identity has its newest.
func (e *Environment) explainOther(ctx context.Context, c Caller, caller *state.Session, r ExplainRequest) (*Explanation, error) {
	q := question{ExplainRequest: r, all: true}
	if err := q.valid(); err != nil {
		return nil, err
	}
	switch {
	case r.Change != 0 && r.Past:
		return nil, problem.New(problem.ReasonInvalid, "the question is about a change and about the past").WithFix("ask about one of them")
	case r.Past:
		if err := e.Inspect(c); err != nil {
			return nil, err
		}
		return e.explainPast(ctx, q)
	}
	if err := e.mayInspect(caller, c); err != nil {
		return nil, err
	}
	s := e.log.State()
	ch, ok := s.Changes.Get(r.Change)
	switch {
	case !ok:
		return nil, problem.New(problem.ReasonNotFound, "there is no change %d", r.Change).WithFix("see `bailment change list`")
	case ch.Manifest.IsZero():
		return nil, problem.New(problem.ReasonInvalid, "change %d proposes no bundle", r.Change).WithFix("see `bailment change show %d`", r.Change)
	}
	prog, err := e.accepted(ctx, ch.Manifest)
	if err != nil {
		return nil, err
	}
	return explain(s, governor{prog: prog, bundle: ch.Manifest}, q, state.At(e.cfg.Now()))
}

// explainPast reduces the ledger up to the entry, by the reducers that every start runs, and asks that state at that moment. One does so at a
// time: it takes as much memory as the state did.
func (e *Environment) explainPast(ctx context.Context, q question) (*Explanation, error) {
	switch size := e.log.Size(); {
	case q.At >= size:
		return nil, problem.New(problem.ReasonNotFound, "the ledger has %d entries, so there is no entry %d", size, q.At).WithFix("`bailment ledger tail` shows the newest")
	case q.At >= maxPast:
		return nil, problem.New(problem.ReasonTooLarge, "entry %d is beyond the first %d, which is how many are reduced again for a question", q.At, maxPast).
			WithFix("ask the bundle of that moment alone: `bailment can --at %d`", q.At)
	}
	select {
	case e.past <- struct{}{}:
		defer func() { <-e.past }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s := state.New()
	err := e.readSlices(ctx, 0, q.At+1, hurry, func(index uint64, body []byte) error { return s.Apply(index, body, nil) })
	if err != nil {
		return nil, err
	}
	bundle, cohort := s.Governs(q.Identity)
	prog, err := e.accepted(ctx, bundle)
	if err != nil {
		return nil, err
	}
	return explain(s, governor{prog, bundle, cohort}, q, s.Time)
}

// accepted is a program that may be none of those that decisions need: it is not kept.
func (e *Environment) accepted(ctx context.Context, bundle state.Digest) (*policy.Program, error) {
	if p, ok := e.programs.get(bundle); ok && p != nil {
		return p, nil
	}
	return e.compile(ctx, bundle)
}
