package control

import (
	"context"
	"strings"

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

// review is a checked request.
type review struct {
	text ceremony.Review
	sig  state.Signature
	bad  error // why it is refused: the decision enters that
}

// Review enters a person's decisions about lines of the bundle in force. It changes nothing that anybody may do: what takes access away is a
// change of the bundle. It takes the duty audit.
func (e *Environment) Review(ctx context.Context, c Caller, r ReviewRequest) (uint64, error) {
	text, err := ceremony.ParseReview(r.Text)
	if err != nil {
		return 0, problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	idem, err := e.idemKey(r.Key, []byte("review"), []byte(r.Text))
	if err != nil {
		return 0, err
	}
	index, _, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (review, error) {
			p := review{text: text}
			if _, dead := standing(s, c, state.At(e.cfg.Now())); dead != nil {
				p.bad = dead
				return p, nil
			}
			prog, err := e.program(ctx, s.Bundle)
			if err != nil {
				return p, err
			}
			fingerprint, err := verifyPerson(prog, text.Person, ceremony.NamespaceChange, r.Text, r.SSHSIG)
			p.bad, p.sig = err, state.Signature{Person: text.Person, Key: fingerprint, SSHSIG: r.SSHSIG}
			return p, nil
		},
		func(t *turn, p review) (uint64, error) { return t.review(c, r, p, idem) })
	return index, err
}

func (t *turn) review(c Caller, r ReviewRequest, p review, idem *state.IdemKey) (uint64, error) {
	x, err := t.session(c)
	if err != nil {
		return 0, err
	}
	op, err := t.duty(x, policy.DutyAudit)
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
	if p.bad == nil {
		p.bad = t.checkReview(op, &p)
	}
	if p.bad != nil {
		return 0, &denied{problem: without(p.bad), action: "access.review", session: x}
	}
	return t.enter(&state.AccessReviewed{Text: r.Text, Signature: p.sig, Actor: actorOf(x), Ruling: t.ruling(""), Idem: idem})
}

// checkReview says why a signed review is none of this person and moment.
func (t *turn) checkReview(op policy.Operator, p *review) error {
	lines := make([]policy.Line, len(p.text.Lines))
	for i, l := range p.text.Lines {
		lines[i] = policy.Line{Grant: l.Grant, Identity: l.Identity, Secret: l.Secret}
	}
	switch {
	case p.text.Scope != t.e.scope(t.s):
		return problem.New(problem.ReasonSignature, "the signed text is not about this: environment, genesis or epoch")
	case p.text.Person != op.Name:
		return problem.New(problem.ReasonSignature, "the signed text is not about this: person")
	case p.text.Bundle != t.s.Bundle.String():
		return problem.New(problem.ReasonConflict, "the review is about another bundle than the one in force").
			WithFix("review again what is in force: `bailment access review --worksheet FILE`")
	case !validNonce(p.text.Nonce), t.s.Once.Has("nonce:" + p.text.Nonce):
		return problem.New(problem.ReasonReplayed, "the nonce of the signed text was used before or is malformed")
	case !state.ReviewTimely(p.text.Time, t.now):
		return problem.New(problem.ReasonReplayed, "the review was not signed within the last %s", state.ReviewLife).
			WithFix("sign it again; if that does not help, the clock here or there is wrong")
	case !t.s.ReviewRoom(p.text):
		return problem.New(problem.ReasonLimit, "%d lines have a decision that is remembered, which is as many as may", t.s.Reviewed.Len())
	}
	if l, missing := t.prog.MissingLine(lines); missing {
		return problem.New(problem.ReasonInvalid, "no grant %s of the bundle in force lets %s have %s", l.Grant, l.Identity, l.Secret)
	}
	return t.signingKeys(op, &p.sig)
}
