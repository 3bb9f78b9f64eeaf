package control

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// ActionGlass opens a break-glass grant for its proposer: see policy.Acts.
const ActionGlass = policy.ActGlass

// GlassRequest asks to open a break-glass grant for the caller.
type GlassRequest struct {
	Grant    string
	Incident string
	Reason   string
	Minutes  int // 0: as long as the grant may be open
	Key      string
}

// Opening is a break-glass grant that was opened.
type Opening struct {
	*state.Glass
	Proof *ledger.Proof
}

// maxGlassReason is the longest reason in bytes. It is as in changes.
const maxGlassReason = 500

// OpenGlass opens a break-glass grant of the bundle in force for the person who asks: at once, within the quarter's budget, and if every
// earlier opening was reviewed. Otherwise it takes a change, which others approve.
func (e *Environment) OpenGlass(ctx context.Context, c Caller, r GlassRequest) (*Opening, error) {
	if err := validOpening(r.Incident, r.Reason); err != nil {
		return nil, err
	}
	idem, err := e.idemKey(r.Key, []byte("glass"), []byte(r.Grant), []byte(r.Incident), []byte(r.Reason), binary.BigEndian.AppendUint32(nil, uint32(r.Minutes)))
	if err != nil {
		return nil, err
	}
	index, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (uint64, error) { return t.openGlass(c, r, idem) })
	if err != nil {
		return nil, err
	}
	g, ok := e.log.State().Glass.Get(index)
	if !ok {
		return nil, problem.New(problem.ReasonNotFound, "opening %d is not remembered any more", index)
	}
	return &Opening{g, proof}, nil
}

func validOpening(incident, reason string) error {
	if err := state.ValidIncident(incident); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the incident")
	}
	if reason == "" || len(reason) > maxGlassReason {
		return problem.New(problem.ReasonInvalid, "breaking the glass takes a reason, of at most %d bytes", maxGlassReason)
	}
	return nil
}

func (t *turn) openGlass(c Caller, r GlassRequest, idem *state.IdemKey) (uint64, error) {
	x, err := t.session(c)
	if err != nil {
		return 0, err
	}
	first, err := t.idempotent(x, idem)
	if err != nil {
		return 0, err
	}
	if first != nil {
		return first.Index, nil
	}
	g, minutes, err := t.glassFor(x, r.Grant, r.Minutes)
	if err == nil {
		err = t.glassFree()
	}
	if err != nil {
		return 0, &denied{problem: without(err), action: ActionGlass, target: r.Grant, session: x}
	}
	return t.enter(&state.GlassOpened{
		Grant: g.Name, Identity: x.Identity, Incident: r.Incident, Reason: r.Reason, Until: t.now.Add(minutes), Actor: actorOf(x), Ruling: t.ruling(""), Idem: idem,
	})
}

// glassFor is the break-glass grant of the bundle in force, and for how long it is opened for a session, if it is there for him. What would
// give nothing is not opened, since it would use up the budget.
func (t *turn) glassFor(x *state.Session, name string, minutes int) (policy.Grant, time.Duration, error) {
	if _, p := operatorOf(t.prog, x); p != nil {
		return policy.Grant{}, 0, p
	}
	g, err := t.glassOf(x.Identity, name)
	if err != nil {
		return g, 0, err
	}
	have, err := identity.ParseAssurance(x.Assurance)
	if err != nil {
		return g, 0, problem.Wrap(err, problem.ReasonInternal, "reading the session's assurance")
	}
	if !have.AtLeast(g.Assurance) {
		return g, 0, problem.New(problem.ReasonAssurance, "the grant %s asks for assurance %s, this session has %s", g.Name, g.Assurance, have)
	}
	most := int(g.Glass / time.Minute)
	if minutes == 0 {
		minutes = most
	}
	if minutes < 1 || minutes > most {
		return g, 0, problem.New(problem.ReasonInvalid, "the grant %s is opened for 1 to %d minutes", g.Name, most)
	}
	return g, time.Duration(minutes) * time.Minute, nil
}

func (t *turn) glassOf(path, name string) (policy.Grant, error) {
	g, ok := t.prog.Glass(name)
	if !ok {
		return g, problem.New(problem.ReasonNotFound, "the bundle in force has no break-glass grant %s", limitText(name)).
			WithFix("`bailment break-glass list --grants` shows those that there are")
	}
	if !slices.ContainsFunc(g.Identities, func(p identity.Pattern) bool { return p.Match(path) }) {
		return g, problem.New(problem.ReasonNoGrant, "the grant %s is not for %s", g.Name, path)
	}
	return g, nil
}

// glassFree says why an opening takes approvals now.
func (t *turn) glassFree() error {
	if g := t.s.Unreviewed(); g != nil {
		return problem.New(problem.ReasonGlassReview, "opening %d, by %s for %s, is not reviewed", g.Index, g.Identity, g.Incident)
	}
	budget, q := t.prog.Environment().BreakGlass.Openings, t.s.Quarter(t.now)
	if q.Openings >= budget {
		return problem.New(problem.ReasonGlassBudget, "%d of %d openings of %s are used", q.Openings, budget, q.Name)
	}
	return nil
}

// glassProposable says why a change can't be about opening a break-glass grant for its proposer.
func (t *turn) glassProposable(x *state.Session, p *proposal) error {
	name, incident, minutes, ok := state.ParseGlassTarget(p.text.Target)
	if !ok {
		return problem.New(problem.ReasonInvalid, "the target %s is not GRANT@INCIDENT#MINUTES", limitText(p.text.Target))
	}
	if err := validOpening(incident, p.text.Reason); err != nil {
		return err
	}
	if minutes == 0 || minutes > uint64(state.MaxGlassOpen/time.Minute) {
		return problem.New(problem.ReasonInvalid, "nothing is opened for %d minutes", minutes)
	}
	_, _, err := t.glassFor(x, name, int(minutes))
	return err
}

// openApproved carries an approved change out. The minutes begin now.
func (t *turn) openApproved(ch *state.Change, x *state.Session) error {
	name, incident, minutes, _ := state.ParseGlassTarget(ch.Target)
	g, err := t.glassOf(ch.Proposer, name)
	if err != nil {
		return err
	}
	_, err = t.enter(&state.GlassOpened{
		Grant: g.Name, Identity: ch.Proposer, Incident: incident, Reason: ch.Reason, Until: t.now.Add(time.Duration(minutes) * time.Minute), Change: ch.Index,
		Actor: actorOf(x), Ruling: t.ruling(""),
	})
	return err
}

// alarmGlass enters that a release by a grant that the person has open, which the draft has, reaches the alarming share of its quarter. It
// asks what the state counts, not the decision: a bundle may have made the grant an everyday one since it was opened.
func (t *turn) alarmGlass(x *state.Session, grant string) error {
	if !slices.ContainsFunc(t.s.Opened(x.Identity, t.now), func(g *state.Glass) bool { return g.Grant == grant }) {
		return nil
	}
	a, reached := t.s.Alarming(t.now, t.e.alarmAt(t.s))
	if !reached {
		return nil
	}
	_, err := t.enter(&a)
	return err
}

// alarmAt is the share of the bundle in force, whatever governs who asks.
func (e *Environment) alarmAt(s *state.State) int {
	if prog, ok := e.programs.get(s.Bundle); ok {
		return prog.Environment().BreakGlass.Alarm
	}
	return 1
}

// CloseGlass ends an opening before its time: one's own, or with the duty revoke anybody's.
func (e *Environment) CloseGlass(ctx context.Context, c Caller, opening uint64) (*Opening, error) {
	_, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (uint64, error) {
		x, err := t.session(c)
		if err != nil {
			return 0, err
		}
		g, ok := t.s.Glass.Get(opening)
		if !ok || g.Identity != x.Identity {
			if _, err := t.duty(x, policy.DutyRevoke); err != nil {
				return 0, err
			}
		}
		switch {
		case !ok:
			err = problem.New(problem.ReasonNotFound, "there is no opening %d", opening)
		case t.now >= g.Until:
			err = problem.New(problem.ReasonConflict, "opening %d was over at %s", opening, g.Until)
		}
		if err != nil {
			return 0, &denied{problem: without(err), action: "glass.close", session: x}
		}
		return t.enter(&state.GlassClosed{Opening: opening, Actor: actorOf(x), Ruling: t.ruling("")})
	})
	if err != nil {
		return nil, err
	}
	g, _ := e.log.State().Glass.Get(opening)
	return &Opening{g, proof}, nil
}

// ReviewGlass enters what another operator found of an opening that is over. It takes the duty audit.
func (e *Environment) ReviewGlass(ctx context.Context, c Caller, opening uint64, r ReviewRequest) (uint64, error) {
	text, err := ceremony.ParseGlassReview(r.Text)
	if err != nil {
		return 0, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	return e.enterReview(ctx, c, text.Person, "glass.review", r,
		func(t *turn, op policy.Operator, p *signedReview) error {
			return t.checkGlassReview(op, opening, text, p)
		},
		func(t *turn, x *state.Session, p signedReview) state.Event {
			return &state.GlassReviewed{Opening: opening, Text: r.Text, Signature: p.sig, Actor: actorOf(x), Ruling: t.ruling(""), Idem: p.idem}
		})
}

// checkGlassReview says why a signed review is none of this opening, person and moment.
func (t *turn) checkGlassReview(op policy.Operator, opening uint64, text ceremony.GlassReview, p *signedReview) error {
	g, ok := t.s.Glass.Get(opening)
	switch {
	case !ok:
		return problem.New(problem.ReasonNotFound, "there is no opening %d", opening)
	case g.Identity == op.Path():
		return problem.New(problem.ReasonSeparation, "%s opened it, and somebody else reviews it", op.Name)
	case t.now < g.Until:
		return problem.New(problem.ReasonConflict, "opening %d is open until %s", opening, g.Until).WithFix("wait, or close it: `bailment break-glass close`")
	case g.Reviewed != 0:
		return problem.New(problem.ReasonConflict, "opening %d was reviewed by %s, in entry %d", opening, g.Reviewer, g.Reviewed)
	}
	want := g.ReviewOf()
	want.Scope, want.Person = t.e.scope(t.s), op.Name
	want.Verdict, want.Time, want.Nonce, want.Findings = text.Verdict, text.Time, text.Nonce, text.Findings
	if want.Text() != text.Text() {
		return problem.New(problem.ReasonSignature, "the signed text is not about this opening, or not as it was")
	}
	if err := t.freshReview(text.Nonce, text.Time); err != nil {
		return err
	}
	return t.signingKeys(op, &p.sig)
}

// Glasses are the openings that are remembered, newest first, and the figures of the quarter.
type Glasses struct {
	Openings []*state.Glass
	Grants   []policy.Grant // the break-glass grants of the bundle in force
	Quarter  state.GlassQuarter
	Settings policy.BreakGlass
	Now      state.Millis
}

// ListGlass lists openings, for any operator: breaking the glass is no secret.
func (e *Environment) ListGlass(c Caller) (*Glasses, error) {
	s, now := e.log.State(), state.At(e.cfg.Now())
	if err := e.anyOperator(s, c, now); err != nil {
		return nil, err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	out := &Glasses{Quarter: s.Quarter(max(now, s.Time)), Settings: prog.Environment().BreakGlass, Now: now}
	s.Glass.All(func(_ uint64, g *state.Glass) bool {
		out.Openings = append(out.Openings, g)
		return true
	})
	slices.Reverse(out.Openings)
	for _, g := range prog.Grants() {
		if g.Glass > 0 {
			out.Grants = append(out.Grants, g)
		}
	}
	return out, nil
}

// Quarter are the figures of breaking the glass as of now, for metrics.
func (e *Environment) Quarter() (q state.GlassQuarter, open, unreviewed int) {
	s, now := e.log.State(), state.At(e.cfg.Now())
	s.Glass.All(func(_ uint64, g *state.Glass) bool {
		if now < g.Until {
			open++
		}
		if g.Reviewed == 0 {
			unreviewed++
		}
		return true
	})
	return s.Quarter(max(now, s.Time)), open, unreviewed
}
