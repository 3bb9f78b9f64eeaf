package control

import (
	"context"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/plan"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Actions that need approval: see policy.Acts.
const (
	ActionBundle     = policy.ActBundle
	ActionLiftHold   = policy.ActLiftHold
	ActionConfirmCut = policy.ActConfirmCut
	ActionForget     = policy.ActForget
	ActionEnd        = policy.ActDecommission
	ActionDestroy    = policy.ActDestroy
	ActionDelete     = policy.ActDeleteEnvironment
	ActionMove       = policy.ActMoveCustody
)

// Limits on changes.
const (
	maxChangeLife = 14 * 24 * time.Hour
	minChangeLife = time.Minute
	// Open changes, of bundles and of containment (holds) by themselves: no one person can fill either, and bundles leave
	// room to contain something.
	maxOpen     = 64
	maxOpenEach = 8 // of one proposer
	// Changes of one proposer in a day, whatever became of them: each is kept for a month, and its bundle for good.
	maxDailyEach = 200
)

// ProposeRequest opens a change. Text is what the proposer signed; the server computes it again.
type ProposeRequest struct {
	Text              string
	SSHSIG            string
	Manifest          []byte            // for a bundle
	Files             map[string][]byte // by path; must be exactly the manifest's
	ManifestSignature string            // SSHSIG in namespace bundle@bailment, over the manifest
	Key               string
}

// Proposal is the result of proposing or approving.
type Proposal struct {
	Change     *state.Change
	Index      uint64
	Generation uint64 // set if it brought a bundle into force
	Proof      *ledger.Proof
	// Of an export that was fetched: the sealed file, how many values it has, and the age of the decision on the boot clock.
	File   []byte
	Values int
	Age    time.Duration
}

// proposal is a checked request.
type proposal struct {
	text     ceremony.Change
	manifest *policy.Manifest
	sig      state.Signature
	bundle   *state.Signature
	base     state.Digest
	retry    bool     // its key had its first effect already: nothing was prepared
	rollout  *rollout // of a bundle
	bad      error    // why it is refused: the decision enters that
}

// Propose opens a change. It has no effect until it is approved.
func (e *Environment) Propose(ctx context.Context, c Caller, r ProposeRequest) (*Proposal, error) {
	text, err := ceremony.ParseChange(r.Text)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	idem, err := e.idemKey(r.Key, []byte("propose"), []byte(r.Text), r.Manifest)
	if err != nil {
		return nil, err
	}
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*proposal, error) {
			return e.prepareProposal(ctx, s, c, r, text, idem)
		},
		func(t *turn, p *proposal) (*Proposal, error) { return t.propose(c, r, p, idem) })
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	if out.Change == nil {
		out.Change, _ = e.log.State().Changes.Get(out.Index)
	}
	return out, nil
}

func (e *Environment) prepareProposal(ctx context.Context, s *state.State, c Caller, r ProposeRequest, text ceremony.Change, idem *state.IdemKey) (*proposal, error) {
	// Reading and compiling a bundle is dear: only an operator may have it done.
	p := &proposal{text: text, base: s.Bundle}
	now := state.At(e.cfg.Now())
	x, dead := standing(s, c, now)
	if dead != nil {
		p.bad = dead
		return p, nil
	}
	if first, ok := firstEffect(s, state.IdemOwner(x.Identity, x.Node), idem, now); ok && first.Request == idem.Request {
		p.retry = true // it may be in force by now: whether it still fits is not asked again
		return p, nil
	}
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	if _, bad := dutyOf(prog, x, policy.DutyPropose); bad != nil {
		p.bad = bad
		return p, nil
	}
	fingerprint, err := verifyPerson(prog, text.Person, ceremony.NamespaceChange, r.Text, r.SSHSIG)
	if p.bad = err; err != nil {
		return p, nil
	}
	p.sig = state.Signature{Person: text.Person, Key: fingerprint, SSHSIG: r.SSHSIG}
	if text.Action != ActionBundle {
		return p, nil
	}
	return p, e.prepareBundle(ctx, s, prog, r, p)
}

// prepareBundle reads, checks and compiles the proposed bundle.
func (e *Environment) prepareBundle(ctx context.Context, s *state.State, prog *policy.Program, r ProposeRequest, p *proposal) error {
	m, err := policy.ParseManifest(r.Manifest)
	if err != nil {
		return problem.Wrap(err, problem.ReasonBundleInvalid, "reading the manifest")
	}
	p.manifest = m
	h := m.Header()
	base, before, err := e.bundleFiles(ctx, s.Bundle)
	if err != nil {
		return err
	}
	switch {
	case h.Environment != s.Env.Name, h.Genesis != policy.Digest(s.Env.Genesis):
		return problem.New(problem.ReasonWrongEnvironment, "the manifest is of environment %s, genesis %s", h.Environment, h.Genesis)
	case h.Previous != policy.Digest(s.Bundle):
		return problem.New(problem.ReasonConflict, "the manifest follows %s, but %s is in force", h.Previous, s.Bundle)
	case h.Version != base.Header().Version+1:
		return problem.New(problem.ReasonInvalid, "the manifest has version %d; the next one is %d", h.Version, base.Header().Version+1)
	}
	fingerprint, err := verifyPerson(prog, p.text.Person, ceremony.NamespaceBundle, string(m.Text()), r.ManifestSignature)
	if err != nil {
		return err
	}
	p.bundle = &state.Signature{Person: p.text.Person, Key: fingerprint, SSHSIG: r.ManifestSignature}
	if err := m.Verify(r.Files); err != nil {
		return problem.Wrap(err, problem.ReasonBundleInvalid, "comparing the files with the manifest")
	}
	bundle, err := policy.Load(r.Files)
	if err != nil {
		return problem.Wrap(err, problem.ReasonBundleInvalid, "reading the bundle")
	}
	compiled, err := policy.Compile(bundle)
	if err != nil {
		return problem.Wrap(err, problem.ReasonBundleInvalid, "compiling the bundle")
	}
	env := compiled.Environment()
	if env.Name != s.Env.Name || string(env.Class) != s.Env.Class {
		return problem.New(problem.ReasonBundleInvalid, "name and class of an environment are for ever: %s, %s", s.Env.Name, s.Env.Class)
	}
	if err := compiled.LowersAgents(prog); err != nil {
		return err
	}
	if err := CheckBundle(e.cfg.Methods, compiled); err != nil {
		return err
	}
	if err := plan.Recovery(prog, compiled); err != nil {
		return err
	}
	if err := runTests(ctx, compiled); err != nil {
		return err
	}
	p.rollout, err = e.prepareRollout(before, r.Files, prog, compiled, m, p.text)
	return err
}

// required says how many approvals an act needs, and whether the proposer's own may be one of them.
func required(prog *policy.Program, act string) (int, bool) {
	need := prog.Environment().Needs(act)
	return need.Approvals, need.Self
}

func (t *turn) propose(c Caller, r ProposeRequest, p *proposal, idem *state.IdemKey) (*Proposal, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	op, err := t.duty(x, policy.DutyPropose)
	if err != nil {
		return nil, err
	}
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: "change.propose", target: p.text.Action, session: x}
	}
	first, err := t.idempotent(x, idem)
	if err != nil {
		return nil, err
	}
	if first != nil {
		ch, _ := t.s.Changes.Get(first.Index)
		return &Proposal{Change: ch, Index: first.Index}, nil
	}
	if p.bad != nil {
		return nil, &denied{problem: without(p.bad), action: "change.propose", target: p.text.Action, session: x}
	}
	if p.retry || p.base != t.s.Bundle {
		return nil, errStale
	}
	expires := state.At(p.text.Expires)
	want := p.text
	if p.rollout != nil && p.rollout.rollback != nil {
		want.Rollback = p.rollout.rollback.Digest().String()
	}
	want.Scope, want.Role, want.Person, want.Base, want.Number = t.e.scope(t.s), ceremony.Proposer, op.Name, t.s.Bundle.String(), 0
	if p.manifest != nil {
		want.New = state.Digest(p.manifest.Digest()).String()
	}
	switch {
	case want.Text() != r.Text:
		return nil, refuse(problem.ReasonSignature, "the signed text is not about this: %s", differs(want, p.text))
	case !validNonce(p.text.Nonce), t.s.Once.Has("nonce:" + p.text.Nonce):
		return nil, refuse(problem.ReasonReplayed, "the nonce of the signed text was used before or is malformed")
	case expires < t.now.Add(minChangeLife) || expires > t.now.Add(maxChangeLife): // as moments: a difference of centuries is no time.Duration
		return nil, refuse(problem.ReasonInvalid, "a change is open from %s to %s", minChangeLife, maxChangeLife)
	}
	if err := t.room(x.Identity, p.text.Action); err != nil {
		return nil, &denied{problem: without(err), action: "change.propose", target: p.text.Action, session: x}
	}
	if err := t.signingKeys(op, &p.sig, p.bundle); err != nil {
		return nil, &denied{problem: without(err), action: "change.propose", target: p.text.Action, session: x}
	}
	if err := t.checkAct(p, x); err != nil {
		return nil, &denied{problem: without(err), action: "change.propose", target: p.text.Action, session: x}
	}
	ev := &state.ChangeProposed{
		Action: p.text.Action, Base: t.s.Bundle, Target: p.text.Target, Expires: expires, Reason: p.text.Reason, Text: r.Text,
		Signature: p.sig, Bundle: p.bundle, Nonce: p.text.Nonce, Actor: actorOf(x), Ruling: t.ruling(""), Idem: idem,
	}
	need := t.prog.Environment().Needs(p.text.Action)
	ev.Required, ev.SelfOK, ev.Delay = need.Approvals, need.Self, int64(need.Delay/time.Second)
	if p.text.Version > 1 {
		ev.Version, ev.Rollout, ev.Containment = p.text.Version, p.text.Rollout, p.text.Containment
	}
	if p.rollout != nil && p.rollout.rollback != nil {
		ev.Rollback = state.Digest(p.rollout.rollback.Digest())
	}
	if p.manifest != nil {
		ev.Manifest = state.Digest(p.manifest.Digest())
		t.draft.Blobs = bundleBlobs(p.manifest, r.Files)
		if x := p.rollout.rollback; x != nil {
			// Its files are those of the two bundles, which are stored.
			t.draft.Blobs = append(t.draft.Blobs, store.Blob{Digest: store.Digest(x.Digest()), Data: x.Text()})
		}
	}
	index, err := t.enter(ev)
	return &Proposal{Index: index}, err
}

// differs names the first thing in which a signed text is not what it should be.
func differs(want, got ceremony.Change) string {
	switch {
	case want.Scope != got.Scope:
		return "environment, genesis or epoch"
	case want.Role != got.Role:
		return "role"
	case want.Person != got.Person:
		return "person"
	case want.Base != got.Base:
		return "base"
	case want.New != got.New:
		return "new"
	case want.Action != got.Action || want.Target != got.Target:
		return "action or target"
	case want.Number != got.Number:
		return "change"
	case !want.Expires.Equal(got.Expires):
		return "expires"
	case want.Rollout != got.Rollout || want.Rollback != got.Rollback || !slices.Equal(want.Containment, got.Containment):
		return "rollout, rollback or containment"
	case want.Version != got.Version:
		return "the version of the text"
	}
	return "reason"
}

func validNonce(n string) bool {
	b, err := hex.DecodeString(n)
	return err == nil && len(b) == 16 && strings.ToLower(n) == n
}

// room refuses a proposal when too many of its sort could still be carried out, or came from one person in a day.
func (t *turn) room(proposer, action string) error {
	all, own, daily := 0, 0, 0
	t.s.Changes.All(func(_ uint64, c *state.Change) bool {
		if (c.Action == ActionBundle) != (action == ActionBundle) {
			return true
		}
		if c.Proposer == proposer && c.Created > t.now.Add(-24*time.Hour) {
			daily++
		}
		if c.Open() && c.StateAt(t.now) != state.Expired && c.Base == t.s.Bundle {
			all++
			if c.Proposer == proposer {
				own++
			}
		}
		return true
	})
	switch {
	case own >= maxOpenEach:
		return problem.New(problem.ReasonLimit, "%s has %d such changes open already", proposer, own).WithFix("reject some of them")
	case daily >= maxDailyEach:
		return problem.New(problem.ReasonLimit, "%s proposed %d such changes within the last day", proposer, daily)
	case all >= maxOpen:
		return problem.New(problem.ReasonLimit, "%d such changes are open already", all)
	}
	return nil
}

// signingKeys refuses a signature by a key that is held. The login may have been by another key of the person.
func (t *turn) signingKeys(op policy.Operator, signatures ...*state.Signature) error {
	for _, sig := range signatures {
		if sig == nil {
			continue
		}
		x := state.Subject{Identity: op.Path(), Anchor: sshAnchor(sig.Key), Own: t.at.Index, Root: t.at.Index}
		if _, p := checkRevoked(t.s, x, t.now); p != nil {
			return p
		}
	}
	return nil
}

// ApproveRequest is one person's approval.
type ApproveRequest struct {
	Change uint64
	Text   string
	SSHSIG string
}

// approval is a checked approval.
type approval struct {
	text ceremony.Change
	own  error // that it widens the approver's own reach
	// weighed: whether it does was asked. A change may have come after the preparation: its number can be foreseen.
	weighed bool
	sig     state.Signature
	bad     error  // why it is refused: the decision enters that
	moved   *moved // what it may carry out, if it is about the root key's custody
}

// Approve adds the caller's approval and, when it is the last one needed, carries the change out in the same commit.
func (e *Environment) Approve(ctx context.Context, c Caller, r ApproveRequest) (*Proposal, error) {
	text, err := ceremony.ParseChange(r.Text)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	move := &moving{e: e, change: r.Change}
	defer move.end()
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (approval, error) {
			a := approval{text: text}
			if _, dead := standing(s, c, state.At(e.cfg.Now())); dead != nil {
				a.bad = dead
				return a, nil
			}
			prog, err := e.program(ctx, s.Bundle)
			if err != nil {
				return a, err
			}
			fingerprint, err := verifyPerson(prog, text.Person, ceremony.NamespaceChange, r.Text, r.SSHSIG)
			if a.bad = err; a.bad != nil {
				return a, nil
			}
			a.sig = state.Signature{Person: text.Person, Key: fingerprint, SSHSIG: r.SSHSIG}
			if ch, ok := s.Changes.Get(r.Change); ok && ch.Action == ActionBundle && ch.State == state.Proposed {
				if err := e.candidate(ctx, ch.Manifest); err != nil {
					return a, err
				}
				a.own, err = e.ownReach(ctx, ch, text.Person)
				a.weighed = true
			}
			if err == nil {
				a.moved, err = move.prepare(ctx, s, func(t *turn) error {
					_, err := t.approve(c, r, a)
					return err
				})
			}
			return a, err
		},
		func(t *turn, a approval) (*Proposal, error) { return t.approve(c, r, a) })
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	out.Change, _ = e.log.State().Changes.Get(r.Change)
	return out, nil
}

// approvalOf is what a person signs who approves a change.
func (t *turn) approvalOf(ch *state.Change, person, nonce string) ceremony.Change {
	text := ceremony.Change{
		Scope: t.e.scope(t.s), Action: ch.Action, Base: ch.Base.String(), Target: ch.Target, Role: ceremony.Approver, Person: person,
		Number: ch.Index, Nonce: nonce, Expires: ch.Expires.Time(), Reason: ch.Reason,
		Version: max(ch.Text, 1), Rollout: ch.Rollout, Containment: ch.Containment,
	}
	if !ch.Manifest.IsZero() {
		text.New = ch.Manifest.String()
	}
	if !ch.Rollback.IsZero() {
		text.Rollback = ch.Rollback.String()
	}
	return text
}

func (t *turn) approve(c Caller, r ApproveRequest, a approval) (*Proposal, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	op, err := t.duty(x, policy.DutyToApprove(a.text.Action)) // that the change is about this act is in the text
	if err != nil {
		return nil, err
	}
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: "change.approve", target: a.text.Action, session: x}
	}
	if a.bad != nil {
		return nil, &denied{problem: without(a.bad), action: "change.approve", target: a.text.Action, session: x}
	}
	ch, ok := t.s.Changes.Get(r.Change)
	if !ok {
		return nil, refuse(problem.ReasonNotFound, "there is no change %d", r.Change)
	}
	want := t.approvalOf(ch, op.Name, a.text.Nonce)
	// The text has whole seconds; the proposal's expiry came from such a text.
	switch {
	case !t.s.Approvable(ch, t.now):
		return nil, refuse(problem.ReasonConflict, "change %d is %s", ch.Index, ch.StateAt(t.now))
	case want.Text() != r.Text:
		return nil, refuse(problem.ReasonSignature, "the signed text is not about this change: %s", differs(want, a.text))
	case a.sig.Person != op.Name:
		return nil, refuse(problem.ReasonSeparation, "the approval is signed by %s, not by %s who sends it", a.sig.Person, op.Name)
	case ch.Proposer == op.Path() && !ch.SelfOK:
		return nil, refuse(problem.ReasonSeparation, "%s proposed change %d and can't approve it", op.Name, ch.Index)
	case !t.s.MayApprove(ch, op.Name, t.now):
		return nil, refuse(problem.ReasonSeparation, "%s approved change %d already: every person counts once", op.Name, ch.Index)
	case !validNonce(a.text.Nonce), t.s.Once.Has("nonce:" + a.text.Nonce):
		return nil, refuse(problem.ReasonReplayed, "the nonce of the signed text was used before or is malformed")
	case ch.Base != t.s.Bundle:
		return nil, refuse(problem.ReasonConflict, "change %d was made for bundle %s, which is no longer in force", ch.Index, ch.Base)
	}
	for _, x := range ch.Proposal() {
		if _, p := checkRevoked(t.s, x, t.now); p != nil {
			return nil, refuse(p.Reason, "what %s proposed no longer counts: %s", ch.Proposer, p.Message)
		}
	}
	if ch.Action == ActionBundle && !a.weighed {
		return nil, errStale
	}
	if a.own != nil {
		return nil, &denied{problem: without(a.own), action: "change.approve", target: a.text.Action, session: x}
	}
	if t.prog.Environment().Needs(ch.Action).Hardware && !byHardware(op, a.sig.Key) {
		return nil, refuse(problem.ReasonSeparation, "%s is approved by hardware-backed keys only, and %s is none", ch.Action, a.sig.Key)
	}
	if err := t.signingKeys(op, &a.sig); err != nil {
		return nil, &denied{problem: without(err), action: "change.approve", target: a.text.Action, session: x}
	}
	index, err := t.enter(&state.ChangeApproved{
		Change: ch.Index, Text: r.Text, Nonce: a.text.Nonce, Signature: a.sig, Actor: actorOf(x), Ruling: t.ruling(""),
	})
	if err != nil {
		return nil, err
	}
	out := &Proposal{Index: index}
	// An approval counts as long as neither the person nor a key behind it is revoked, like all that derives from something.
	others := 0
	for _, a := range ch.Approvals {
		if a.Person != op.Name && t.s.Stands(a.Derives(), t.now) {
			others++
		}
	}
	if others+1 < ch.Required {
		return out, nil
	}
	if ch.Waits() {
		return out, nil // from this approval on it waits: see CarryOut
	}
	t.custody = a.moved
	return out, t.carryOut(ch, x, out)
}

// dutyOver is the duty that ending a change takes; the whole one if there is no such change, so that nobody learns of others'.
func dutyOver(ch *state.Change) policy.Duty {
	if ch == nil {
		return policy.DutyApprove
	}
	return policy.DutyToApprove(ch.Action)
}

// carryOut does what a complete change says, in the commit of its last approval.
func (t *turn) carryOut(ch *state.Change, x *state.Session, out *Proposal) error {
	switch ch.Action {
	case ActionBundle:
		if _, ok := t.e.programs.get(ch.Manifest); !ok {
			return errStale
		}
		return t.begin(ch, out)
	case ActionLiftHold:
		h, err := t.holdOf(ch.Target)
		if err != nil {
			return err
		}
		_, err = t.enter(&state.HoldLifted{Scope: h.Scope, Hold: h.Index, Change: ch.Index})
		return err
	case ActionConfirmCut:
		h, err := t.holdOf(ch.Target)
		if err != nil {
			return err
		}
		scope, err := state.ParseScope(h.Scope)
		if err != nil {
			return err
		}
		if err := t.lastQuorum(scope); err != nil {
			return err
		}
		seen := newCovered()
		survey(t.s, scope, t.now, 0, seen)
		_, err = t.enter(&state.RevocationRecorded{
			Scope: h.Scope, Cutoff: true, Hold: true, Horizon: max(seen.horizon, t.now), Covers: len(seen.identities), Reason: ch.Reason,
			Change: ch.Index, Actor: actorOf(x), Ruling: t.ruling(""),
		})
		return err
	case ActionForget:
		if err := t.usedBefore(ch.Target); err != nil {
			return err
		}
		_, err := t.enter(&state.EvidenceForgotten{Use: ch.Target, Change: ch.Index})
		return err
	case ActionEnd:
		return t.decommission(ch)
	case ActionDestroy:
		return t.destroy(ch, x)
	case ActionDelete:
		return t.endEnvironment(ch, x)
	case ActionMove:
		return t.moveCustody(ch, x)
	case ActionGlass:
		return t.openApproved(ch, x)
	}
	return problem.New(problem.ReasonInternal, "there is no action %q", ch.Action)
}

// Reject ends a change. Proposers may take back their own.
func (e *Environment) Reject(ctx context.Context, c Caller, change uint64, reason string) (*Proposal, error) {
	if len(reason) > 500 {
		return nil, problem.New(problem.ReasonTooLarge, "a reason has at most 500 bytes")
	}
	out, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (*Proposal, error) {
		x, err := t.session(c)
		if err != nil {
			return nil, err
		}
		ch, ok := t.s.Changes.Get(change)
		if !ok || ch.Proposer != x.Identity {
			if _, err := t.duty(x, dutyOver(ch)); err != nil { // first: which changes there are is not for everybody
				return nil, err
			}
		}
		if !ok {
			return nil, &denied{problem: problem.New(problem.ReasonNotFound, "there is no change %d", change), action: "change.reject", session: x}
		}
		if st := ch.StateAt(t.now); st != state.Proposed && st != state.Waiting {
			return nil, &denied{problem: problem.New(problem.ReasonConflict, "change %d is %s", change, st), action: "change.reject", session: x}
		}
		index, err := t.enter(&state.ChangeRejected{Change: change, Reason: reason, Actor: actorOf(x), Ruling: t.ruling("")})
		return &Proposal{Index: index}, err
	})
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	out.Change, _ = e.log.State().Changes.Get(change)
	return out, nil
}

// ApprovedBy lists whose approvals of a change there are; of an open one, those that count as of now.
func (e *Environment) ApprovedBy(ch *state.Change) []string {
	s, now := e.log.State(), state.At(e.cfg.Now())
	var out []string
	for _, a := range ch.Approvals {
		if !ch.Open() || s.Stands(a.Derives(), now) {
			out = append(out, a.Person)
		}
	}
	return out
}
