package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// rollout is how a proposed bundle comes into force, and what it may be rolled back to.
type rollout struct {
	rollback *policy.Manifest // nil: everything that it changes is kept by a rollback, so there is none
}

// prepareRollout checks what a proposal says of its rollout, and has the rollback rehearsed: the bundle that it leads to is made, read and
// compiled now, and not in the hour when it is needed.
func (e *Environment) prepareRollout(base, changed policy.Files, was, is *policy.Program, m *policy.Manifest, text ceremony.Change) (*rollout, error) {
	if text.Version == 1 {
		return nil, problem.New(problem.ReasonInvalid, "the signed text is of version 1, which says nothing of rollout and rollback").
			WithFix("propose it with a newer command line")
	}
	out := &rollout{}
	var files policy.Files
	var err error
	if out.rollback, files, err = policy.RollbackOf(m, base, changed, was.Environment(), is.Environment(), text.Containment); err != nil {
		return nil, err
	}
	want := ""
	if out.rollback != nil {
		want = out.rollback.Digest().String()
	}
	if text.Rollback != want {
		return nil, problem.New(problem.ReasonSignature, "the signed text is not about this: rollback")
	}
	if err := stagedAsAsked(was, policy.ChangedFiles(base, changed), text); err != nil {
		return nil, err
	}
	if out.rollback == nil {
		return out, nil
	}
	bundle, err := policy.Load(files)
	if err == nil {
		var compiled *policy.Program
		if compiled, err = policy.CompileAccepted(bundle); err == nil {
			err = CheckBundle(e.cfg.Methods, compiled)
		}
		if err == nil && compiled.Orphans() > was.Orphans() { // after a recovery there may be some that it leaves as they are
			err = problem.New(problem.ReasonBundleInvalid, "it names persons who are no operators any more")
		}
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "rehearsing the rollback of this change, which keeps its operators").
			WithFix("mark the file as containment that names what the change takes away, or take it away in a change of its own")
	}
	return out, nil
}

// stagedAsAsked checks that a change goes by a rollout if the bundle in force has any. Containment does not wait; what is containment in
// part would make the rest not wait either, or itself wait.
func stagedAsAsked(was *policy.Program, changed []string, text ceremony.Change) error {
	switch all := len(changed) == len(text.Containment); {
	case text.Rollout == "" && len(was.Rollouts()) > 0 && !all:
		return problem.New(problem.ReasonInvalid, "the bundle in force has rollouts, and the change goes by none of them").
			WithFix("name one, or mark each changed file as containment if it can't wait")
	case text.Rollout == "":
		return nil
	case len(text.Containment) > 0:
		return problem.New(problem.ReasonInvalid, "containment comes into force at once, and the change goes by the rollout %s", limitText(text.Rollout)).
			WithFix("propose what contains in a change of its own, first")
	}
	if _, ok := was.Rollout(text.Rollout); !ok {
		return problem.New(problem.ReasonNotFound, "the bundle in force has no rollout %s", limitText(text.Rollout))
	}
	return nil
}

// begin takes a complete change to the first step of its rollout, or into force if it has none.
func (t *turn) begin(ch *state.Change, out *Proposal) error {
	staged := t.s.Staged()
	switch {
	case staged != nil && ch.Rollout != "":
		return problem.New(problem.ReasonConflict, "change %d is being rolled out: this one can't begin before it is in force or taken back", staged.Change).
			WithFix("wait, or `bailment change rollback %d`; then approve once more", staged.Change)
	case ch.Rollout == "":
		generation, err := t.supersede()
		if err != nil {
			return err
		}
		out.Generation = generation + 1
		_, err = t.enter(&state.BundleInForce{
			Generation: out.Generation, Manifest: ch.Manifest, Previous: t.s.Bundle, Change: ch.Index, How: state.ByChange,
		})
		return err
	}
	r, ok := t.prog.Rollout(ch.Rollout)
	if !ok {
		return problem.New(problem.ReasonNotFound, "the bundle in force has no rollout %s", ch.Rollout)
	}
	plan := state.PlanOf(r)
	ev := t.moved(ch, plan, 0)
	ev.Plan = &plan
	_, err := t.enter(ev)
	return err
}

// moved is the entry of a step.
func (t *turn) moved(ch *state.Change, plan state.RolloutPlan, step int) *state.RolloutMoved {
	s := plan.Steps[step]
	ev := &state.RolloutMoved{Change: ch.Index, Manifest: ch.Manifest, Step: step, Until: t.now.Add(time.Duration(s.For) * time.Second)}
	if s.Stage == policy.StageCanary {
		ev.Generation = t.s.Generation + 1
	}
	return ev
}

func (t *turn) ended(r *state.Rollout, cause state.Cause) *state.RolloutEnded {
	ev := &state.RolloutEnded{Change: r.Change, Cause: cause}
	if r.Generation != 0 {
		ev.Generation = t.s.Generation + 1
	}
	return ev
}

// supersede ends what is being rolled out, if anything is, for a bundle that comes into force with the next entry. The generation is the one
// before that.
func (t *turn) supersede() (uint64, error) {
	staged := t.s.Staged()
	if staged == nil {
		return t.s.Generation, nil
	}
	ended := t.ended(staged, state.Cause{By: state.BySupersede})
	_, err := t.enter(ended)
	return max(t.s.Generation, ended.Generation), err
}

// generation is the one after the entries that are proposed.
func (t *turn) generation() uint64 {
	out := t.s.Generation
	for _, r := range t.draft.Records {
		switch ev := r.Event.(*state.Entry).Event.(type) {
		case *state.RolloutEnded:
			out = max(out, ev.Generation)
		case *state.BundleInForce:
			out = max(out, ev.Generation)
		}
	}
	return out
}

// advance does what is due for a rollout, if anything is.
func (t *turn) advance() (bool, error) {
	due, figure := t.s.RolloutDue(t.now)
	if due == state.NothingDue {
		return false, nil
	}
	r := t.s.Rollout(t.now)
	ch, _ := t.s.Changes.Get(r.Change)
	switch due {
	case state.RollbackDue:
		return true, t.takeBack(r, ch, state.Cause{By: state.ByTrigger, Figure: figure})
	case state.RevokedDue:
		return true, t.takeBack(r, ch, state.Cause{By: state.ByRevocation})
	}
	if next := r.Step + 1; next < len(r.Plan.Steps) {
		_, err := t.enter(t.moved(ch, r.Plan, next))
		return true, err
	}
	if prog, ok := t.e.programs.get(r.Manifest); !ok {
		return false, errStale
	} else if p := (governor{prog: prog, bundle: r.Manifest}).unusable(); p != nil {
		return false, p
	}
	ev := &state.BundleInForce{
		Generation: t.s.Generation + 1, Manifest: r.Manifest, Previous: t.s.Bundle, Change: r.Change, How: state.ByRollout,
	}
	if r.Plan.Watch > 0 {
		ev.Watch = t.now.Add(time.Duration(r.Plan.Watch) * time.Second)
	}
	_, err := t.enter(ev)
	return true, err
}

// takeBack rolls a change back in one entry: to the bundle in force, which the candidate never was, or, once it is, to what its
// approval pre-authorised.
func (t *turn) takeBack(r *state.Rollout, ch *state.Change, cause state.Cause) error {
	if r != nil && r.Stage() != string(state.InForce) {
		_, err := t.enter(t.ended(r, cause))
		return err
	}
	switch {
	case ch.Rollback.IsZero():
		return problem.New(problem.ReasonConflict, "change %d can't be rolled back: all that it changes is kept by a rollback", ch.Index).
			WithFix("propose what is wanted instead")
	case ch.Manifest != t.s.Bundle:
		return problem.New(problem.ReasonConflict, "change %d is not what is in force", ch.Index)
	}
	if _, ok := t.e.programs.get(ch.Rollback); !ok {
		return errStale
	}
	// What is rolled out over it was made for it, and ends with it.
	generation, err := t.supersede()
	if err != nil {
		return err
	}
	if cause.Ruling != nil {
		r := *cause.Ruling
		r.Generation = generation // which the end of a canary may just have begun
		cause.Ruling = &r
	}
	_, err = t.enter(&state.BundleInForce{
		Generation: generation + 1, Manifest: ch.Rollback, Previous: t.s.Bundle, Change: ch.Index, How: state.ByRollback, Cause: &cause,
	})
	return err
}

// RollbackRequest takes a change back.
type RollbackRequest struct {
	Change uint64
	Reason string
}

// RollBack takes back a change that is being rolled out or is in force, in one commit: as a new generation, to the manifest that the
// change's approval pre-authorised, and to no older one. It takes the duty approve, or to have proposed the change.
func (e *Environment) RollBack(ctx context.Context, c Caller, r RollbackRequest) (*Proposal, error) {
	if r.Reason == "" || len(r.Reason) > 500 {
		return nil, problem.New(problem.ReasonInvalid, "a rollback has a reason of 1 to 500 bytes")
	}
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (takingBack, error) {
			// Who may not is refused at the head; compiling what is pre-authorised is no more than a start does.
			ch, ok := s.Changes.Get(r.Change)
			x, dead := standing(s, c, state.At(e.cfg.Now()))
			if dead != nil || !ok || ch.State != state.InForce || ch.Rollback.IsZero() {
				return takingBack{}, nil
			}
			after, err := e.program(ctx, ch.Rollback)
			if err != nil || ch.SelfOK {
				return takingBack{weighed: true}, err
			}
			before, err := e.program(ctx, ch.Manifest)
			if err != nil {
				return takingBack{}, err
			}
			return takingBack{widensOwn(before, after, x.Identity, "roll this change back"), true}, nil
		},
		func(t *turn, p takingBack) (*Proposal, error) { return t.rollBack(c, r, p) })
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	out.Change, _ = e.log.State().Changes.Get(r.Change)
	return out, nil
}

// takingBack is a checked rollback.
type takingBack struct {
	own     error // that it widens the reach of who asks for it
	weighed bool  // whether it does was asked: the change may have come into force after the preparation
}

func (t *turn) rollBack(c Caller, r RollbackRequest, p takingBack) (*Proposal, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	ch, ok := t.s.Changes.Get(r.Change)
	d := dutyOver(ch)
	if ok && ch.Proposer == x.Identity {
		d = policy.DutyPropose
	}
	if _, err := t.duty(x, d); err != nil { // first: which changes there are is not for everybody
		return nil, err
	}
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: "change.rollback", session: x}
	}
	if !ok {
		return nil, refuse(problem.ReasonNotFound, "there is no change %d", r.Change)
	}
	staged := t.s.Staged()
	if staged == nil || staged.Change != ch.Index {
		staged = nil
		if ch.State != state.InForce {
			return nil, refuse(problem.ReasonConflict, "change %d is %s: what is being rolled out or in force can be rolled back", ch.Index, ch.StateAt(t.now))
		}
	}
	if staged == nil && !ch.Rollback.IsZero() && !p.weighed {
		return nil, errStale
	}
	if p.own != nil && staged == nil {
		return nil, &denied{problem: without(p.own), action: "change.rollback", session: x}
	}
	ruling := t.ruling("")
	actor := actorOf(x)
	err = t.takeBack(staged, ch, state.Cause{By: state.ByPerson, Reason: r.Reason, Actor: &actor, Ruling: &ruling})
	if errors.Is(err, errStale) {
		return nil, err
	}
	if err == nil {
		return &Proposal{Index: t.at.Index, Generation: t.generation()}, nil
	}
	return nil, &denied{problem: without(err), action: "change.rollback", session: x}
}

// rolloutTick is how often a rollout is looked at, beside when something happened to it.
const rolloutTick = time.Second

// rolloutLoop takes rollouts further when a step is over, and back when a trigger says so.
func (e *Environment) rolloutLoop(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.rolloutWake:
		case <-next.C:
		}
		if e.log.State().Rollout(state.At(e.cfg.Now())) == nil {
			continue // the next rollout's first entry wakes it
		}
		if err := e.Advance(ctx); err != nil && ctx.Err() == nil {
			e.logger.Warn("taking the rollout further failed", "err", err)
		}
		next.Reset(rolloutTick)
	}
}

// Advance enters what rollouts have observed in minutes that are over, and does what is due for the present one. It is called in the background.
func (e *Environment) Advance(ctx context.Context) error {
	now := state.At(e.cfg.Now())
	shadow := false
	if r := e.log.State().Staged(); r != nil {
		// What ends with a step is entered before it: its triggers count it.
		shadow = now >= r.Until
	}
	before := int64(now) / 60_000
	if shadow {
		before++
	}
	if err := e.observe(ctx, before); err != nil {
		return err
	}
	if due, _ := e.log.State().RolloutDue(now); due == state.NothingDue {
		return nil
	}
	_, _, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (struct{}, error) {
			r := s.Rollout(state.At(e.cfg.Now()))
			if r == nil {
				return struct{}{}, nil
			}
			ch, ok := s.Changes.Get(r.Change)
			if !ok || ch.Rollback.IsZero() {
				return struct{}{}, nil
			}
			_, err := e.program(ctx, ch.Rollback)
			return struct{}{}, err
		},
		func(t *turn, _ struct{}) (struct{}, error) {
			_, err := t.advance()
			return struct{}{}, err
		})
	return err
}

// observe enters the differences of minutes before one.
func (e *Environment) observe(ctx context.Context, before int64) error {
	sums := e.differences.take(before)
	for i, x := range sums {
		_, _, err := ledger.Commit(ctx, e.log, func(s *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
			t := &turn{e: e, s: s, at: at, now: state.At(at.Time)}
			if r := s.Rollout(t.now); r == nil || r.Change != x.Change {
				return ledger.Draft{}, struct{}{}, nil // it ended meanwhile, and nobody asks for them
			}
			_, err := t.enter(x)
			return t.draft, struct{}{}, err
		})
		if err != nil {
			// A trigger may wait for them. If this one was entered after all, its figures are told twice, and sources still count once.
			e.differences.putBack(sums[i:])
			return err
		}
	}
	return nil
}

// observed are the entries of a minute: as many as its rows take.
func observed(k differenceMinute, sum *differenceSum, rows []state.Difference) []*state.RolloutObserved {
	minute := state.Millis(k.minute * 60_000)
	out := []*state.RolloutObserved{{Change: k.change, Minute: minute, Compared: sum.compared, Others: sum.others}}
	room := differenceBytes
	for _, row := range rows {
		text, err := json.Marshal(row)
		if err != nil || len(text) > differenceBytes {
			out[0].Others += row.Count // not to be had: names, and texts that are limited
			continue
		}
		if room -= len(text) + 1; room < 0 {
			out = append(out, &state.RolloutObserved{Change: k.change, Minute: minute})
			room = differenceBytes - len(text) - 1
		}
		ev := out[len(out)-1]
		ev.Differences = append(ev.Differences, row)
	}
	return out
}

// take removes the sums of minutes before `before`.
func (d *differences) take(before int64) []*state.RolloutObserved {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*state.RolloutObserved
	for k, sum := range d.m {
		if k.minute >= before {
			continue
		}
		rows := make([]state.Difference, 0, len(sum.rows))
		for row, n := range sum.rows {
			row.Count = n
			rows = append(rows, row)
		}
		slices.SortFunc(rows, func(a, b state.Difference) int {
			return cmp.Or(cmp.Compare(a.Identity, b.Identity), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Secret, b.Secret), cmp.Compare(a.Action, b.Action),
				cmp.Compare(a.Purpose, b.Purpose), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Grant, b.Grant))
		})
		out = append(out, observed(k, sum, rows)...)
		delete(d.m, k)
	}
	slices.SortStableFunc(out, func(a, b *state.RolloutObserved) int {
		return cmp.Or(cmp.Compare(a.Minute, b.Minute), cmp.Compare(a.Change, b.Change))
	})
	return out
}

// putBack takes sums back that could not be entered, to what was added since.
func (d *differences) putBack(sums []*state.RolloutObserved) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range sums {
		sum := d.sum(x.Change, int64(x.Minute)/60_000)
		if sum == nil {
			continue
		}
		sum.compared += x.Compared
		sum.others += x.Others
		for _, row := range x.Differences {
			n := row.Count
			row.Count = 0
			sum.add(row, n)
		}
	}
}

// begun reports whether a rollout came, or came to another step, with a published state: then the loop waits for another moment.
func (e *Environment) begun(s *state.State) bool {
	r := s.Rollout(s.Time)
	at := uint64(0)
	if r != nil {
		at = r.Change<<8 | uint64(r.Step) + 1
	}
	return e.rolloutAt.Swap(at) != at
}
