package control

import (
	"context"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// maxAccessLookedAt is how many rows are looked at for one answer about access, whether or not the patterns select them.
const maxAccessLookedAt = 20_000

// AccessFilter selects uses, or decisions, after a place. The zero value selects all from the beginning.
type AccessFilter struct {
	Identities, Secrets identity.Pattern // zero: any
	Page
}

// Uses are a page of who was given what, and when last.
type Uses struct {
	Rows  []*state.Served
	Next  string       // what the next page comes after; empty: there is none
	Since state.Millis // since when uses are remembered; 0: they are not yet
}

// ListUses lists who was given which secret, to the hour. It takes the duty audit.
func (e *Environment) ListUses(c Caller, f AccessFilter) (*Uses, error) {
	if err := e.Inspect(c); err != nil {
		return nil, err
	}
	s := e.log.State()
	out := &Uses{Since: s.UsesSince(state.At(e.cfg.Now()))}
	most := f.size()
	out.Next = page(s.Served, f, func(_ string, u *state.Served) bool {
		if f.selects(u.Identity, u.Secret) {
			out.Rows = append(out.Rows, u)
		}
		return len(out.Rows) < most
	})
	return out, nil
}

// Decision is the newest decision about a line.
type Decision struct {
	policy.Line
	*state.Reviewed
}

// Decisions are a page of them.
type Decisions struct {
	Rows []Decision
	Next string
}

// ListReviewed lists the newest decision about each line that was reviewed. The patterns select lines that say just that, or less. It takes
// the duty audit.
func (e *Environment) ListReviewed(c Caller, f AccessFilter) (*Decisions, error) {
	if err := e.Inspect(c); err != nil {
		return nil, err
	}
	out, most := &Decisions{}, f.size()
	out.Next = page(e.log.State().Reviewed, f, func(k string, r *state.Reviewed) bool {
		grant, who, secret := state.ParseReviewKey(k)
		if f.covers(who, secret) {
			out.Rows = append(out.Rows, Decision{policy.Line{Grant: grant, Identity: who, Secret: secret}, r})
		}
		return len(out.Rows) < most
	})
	return out, nil
}

// page visits rows after a place until it has seen enough, and says where the next page begins.
func page[V any](t state.Table[string, V], f AccessFilter, visit func(string, V) bool) string {
	// The parts of a key have no spaces, and a token is a text that can be shown.
	after := strings.ReplaceAll(f.After, " ", "\x00")
	seen, last, more := 0, "", false
	t.From(after, func(k string, v V) bool {
		if k == after {
			return true
		}
		if last != "" {
			more = true
			return false
		}
		seen++
		if !visit(k, v) || seen >= maxAccessLookedAt {
			last = k
		}
		return true
	})
	if !more {
		return ""
	}
	return strings.ReplaceAll(last, "\x00", " ")
}

func (f AccessFilter) selects(who, secret string) bool {
	none := identity.Pattern{}
	return (f.Identities == none || f.Identities.Match(who)) && (f.Secrets == none || f.Secrets.Match(secret))
}

func (f AccessFilter) covers(who, secret string) bool {
	none := identity.Pattern{}
	if f.Identities != none {
		if p, err := identity.ParseIDPattern(who); err != nil || !f.Identities.Covers(p) {
			return false
		}
	}
	if f.Secrets != none {
		if p, err := identity.ParseSecretPattern(secret); err != nil || !f.Secrets.Covers(p) {
			return false
		}
	}
	return true
}

// ReviewRequest is a review as its reviewer signed it.
type ReviewRequest struct {
	Text   string
	SSHSIG string
	Key    string
}

// signedReview is a request whose signature was checked.
type signedReview struct {
	sig  state.Signature
	idem *state.IdemKey
	bad  error // why it is refused: the decision enters that
}

// prepareReview checks a reviewer's signature.
func (e *Environment) prepareReview(ctx context.Context, s *state.State, c Caller, person string, r ReviewRequest) (signedReview, error) {
	var p signedReview
	if _, dead := standing(s, c, state.At(e.cfg.Now())); dead != nil {
		p.bad = dead
		return p, nil
	}
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return p, err
	}
	fingerprint, err := verifyPerson(prog, person, ceremony.NamespaceChange, r.Text, r.SSHSIG)
	p.bad, p.sig = err, state.Signature{Person: person, Key: fingerprint, SSHSIG: r.SSHSIG}
	return p, nil
}

// reviewer is who reviews; done is the entry of the same request's first effect, if it had one.
func (t *turn) reviewer(c Caller, idem *state.IdemKey) (x *state.Session, op policy.Operator, done uint64, err error) {
	if x, err = t.session(c); err != nil {
		return nil, op, 0, err
	}
	if op, err = t.duty(x, policy.DutyAudit); err != nil {
		return nil, op, 0, err
	}
	first, err := t.idempotent(x, idem)
	if err == nil && first != nil {
		done = first.Index
	}
	return x, op, done, err
}

// freshReview says why a review is none of this moment.
func (t *turn) freshReview(nonce string, signed time.Time) error {
	switch {
	case !validNonce(nonce), t.s.Once.Has("nonce:" + nonce):
		return problem.New(problem.ReasonReplayed, "the nonce of the signed text was used before or is malformed")
	case !state.ReviewTimely(signed, t.now):
		return problem.New(problem.ReasonReplayed, "the review was not signed within the last %s", state.ReviewLife).
			WithFix("sign it again; if that does not help, the clock here or there is wrong")
	}
	return nil
}

// Review enters a person's decisions about lines of the bundle in force. It changes nothing that anybody may do: what takes access away is a
// change of the bundle. It takes the duty audit.
func (e *Environment) Review(ctx context.Context, c Caller, r ReviewRequest) (uint64, error) {
	text, err := ceremony.ParseReview(r.Text)
	if err != nil {
		return 0, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	return e.enterReview(ctx, c, text.Person, "access.review", r,
		func(t *turn, op policy.Operator, p *signedReview) error { return t.checkReview(op, text, p) },
		func(t *turn, x *state.Session, p signedReview) state.Event {
			return &state.AccessReviewed{Text: r.Text, Signature: p.sig, Actor: actorOf(x), Ruling: t.ruling(""), Idem: p.idem}
		})
}

// enterReview enters what a person with the duty audit has signed and check has nothing against.
func (e *Environment) enterReview(ctx context.Context, c Caller, person, action string, r ReviewRequest,
	check func(*turn, policy.Operator, *signedReview) error, event func(*turn, *state.Session, signedReview) state.Event,
) (uint64, error) {
	idem, err := e.idemKey(r.Key, []byte(action), []byte(r.Text))
	if err != nil {
		return 0, err
	}
	index, _, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (signedReview, error) {
			p, err := e.prepareReview(ctx, s, c, person, r)
			p.idem = idem
			return p, err
		},
		func(t *turn, p signedReview) (uint64, error) {
			x, op, done, err := t.reviewer(c, idem)
			if err != nil || done != 0 {
				return done, err
			}
			if p.bad == nil {
				p.bad = check(t, op, &p)
			}
			if p.bad != nil {
				return 0, &denied{problem: without(p.bad), action: action, session: x}
			}
			return t.enter(event(t, x, p))
		})
	return index, err
}

// checkReview says why a signed review is none of this person and moment.
func (t *turn) checkReview(op policy.Operator, text ceremony.Review, p *signedReview) error {
	lines := make([]policy.Line, len(text.Lines))
	var kept []policy.Line
	for i, l := range text.Lines {
		lines[i] = policy.Line{Grant: l.Grant, Identity: l.Identity, Secret: l.Secret}
		if l.Decision == ceremony.Keep {
			kept = append(kept, lines[i])
		}
	}
	switch {
	case text.Scope != t.e.scope(t.s):
		return problem.New(problem.ReasonSignature, "the signed text is not about this: environment, genesis or epoch")
	case text.Person != op.Name:
		return problem.New(problem.ReasonSignature, "the signed text is not about this: person")
	case text.Bundle != t.s.Bundle.String():
		return problem.New(problem.ReasonConflict, "the review is about another bundle than the one in force").
			WithFix("review again what is in force: `bailment access review --worksheet FILE`")
	}
	if err := t.freshReview(text.Nonce, text.Time); err != nil {
		return err
	}
	if !t.s.ReviewRoom(text) {
		return problem.New(problem.ReasonLimit, "%d lines have a decision that is remembered, which is as many as may", t.s.Reviewed.Len())
	}
	if l, missing := t.prog.MissingLine(lines); missing {
		return problem.New(problem.ReasonInvalid, "no grant %s of the bundle in force lets %s have %s", l.Grant, l.Identity, l.Secret)
	}
	// Where somebody approves his own changes there may be nobody else.
	if l, own := policy.OwnLine(kept, op.Path()); own && !t.prog.Environment().Needs(policy.ActBundle).Self {
		return problem.New(problem.ReasonSeparation, "%s can't decide that he keeps what he has himself: %s by the grant %s", op.Name, l.Secret, l.Grant).
			WithFix("leave that line to another operator with the duty audit")
	}
	return t.signingKeys(op, &p.sig)
}
