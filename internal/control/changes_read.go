package control

import (
	"context"
	"sort"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// ChangeView is a change with its state as of now.
type ChangeView struct {
	*state.Change
	Now state.ChangeState
}

// ChangeFilter says which changes are listed.
type ChangeFilter struct {
	Open bool // that can still be approved, or carried out
	Mine bool // that the caller could approve now
}

// ListChanges lists changes for operators, newest first.
func (e *Environment) ListChanges(_ context.Context, c Caller, f ChangeFilter) ([]ChangeView, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	op, p := operatorOf(prog, x)
	if p != nil {
		return nil, e.unanswered(x, c, now, p)
	}
	var out []ChangeView
	s.Changes.All(func(_ uint64, ch *state.Change) bool {
		v := ChangeView{ch, ch.StateAt(now)}
		// What was made for another bundle can't be approved any more, and is not asked for.
		open := (v.Now == state.Proposed || v.Now == state.Waiting) && ch.Base == s.Bundle
		mine := s.Approvable(ch, now) && op.Has(policy.DutyToApprove(ch.Action)) && (ch.Proposer != op.Path() || ch.SelfOK) && s.MayApprove(ch, op.Name, now)
		if (!f.Open && !f.Mine || open) && (!f.Mine || mine) {
			out = append(out, v)
		}
		return true
	})
	sort.Slice(out, func(i, j int) bool { return out[i].Index > out[j].Index })
	return out, nil
}

func (e *Environment) anyOperator(s *state.State, c Caller, now state.Millis) error {
	x, err := e.judge(s, c, now)
	if err != nil {
		return err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return err
	}
	if _, p := operatorOf(prog, x); p != nil {
		return e.unanswered(x, c, now, p)
	}
	return nil
}

// ChangeDetail is all that an approver's own command line needs.
type ChangeDetail struct {
	ChangeView
	Proposal  *state.ChangeProposed
	Approvals []ApprovalView
	Manifest  *policy.Manifest // nil for other acts
	Files     policy.Files
}

// ApprovalView is an approval as it was entered.
type ApprovalView struct {
	Index     uint64
	Text      string
	Signature state.Signature
	Counts    bool // nothing behind it was revoked since
}

// GetChange reads a change, its proposal as entered, and the proposed bundle's files.
func (e *Environment) GetChange(ctx context.Context, c Caller, change uint64) (*ChangeDetail, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	if err := e.anyOperator(s, c, now); err != nil {
		return nil, err
	}
	ch, ok := s.Changes.Get(change)
	if !ok {
		return nil, problem.New(problem.ReasonNotFound, "there is no change %d", change)
	}
	d := &ChangeDetail{ChangeView: ChangeView{ch, ch.StateAt(now)}}
	var err error
	if d.Proposal, err = readEvent[*state.ChangeProposed](ctx, e, change); err != nil {
		return nil, e.storeProblem(err, "reading the proposal")
	}
	for _, a := range ch.Approvals {
		ev, err := readEvent[*state.ChangeApproved](ctx, e, a.Index)
		if err != nil {
			return nil, e.storeProblem(err, "reading an approval")
		}
		d.Approvals = append(d.Approvals, ApprovalView{a.Index, ev.Text, ev.Signature, s.Stands(a.Derives(), now)})
	}
	if ch.Action == ActionBundle {
		d.Manifest, d.Files, err = e.bundleFiles(ctx, ch.Manifest)
	}
	return d, err
}

// Bundle reads a manifest that is or was in force, and its files. A zero digest means the one in force.
func (e *Environment) Bundle(ctx context.Context, c Caller, digest state.Digest) (*policy.Manifest, policy.Files, uint64, error) {
	s := e.log.State()
	if err := e.anyOperator(s, c, state.At(e.cfg.Now())); err != nil {
		return nil, nil, 0, err
	}
	if digest.IsZero() {
		digest = s.Bundle
	}
	generation, ok := s.Manifests.Get(digest.String())
	if !ok {
		return nil, nil, 0, problem.New(problem.ReasonNotFound, "bundle %s was never in force", digest)
	}
	m, files, err := e.bundleFiles(ctx, digest)
	return m, files, generation, err
}
