package control

import (
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// admit decides the attestation of a node or job at the head.
func (t *turn) admit(method attest.Method, p proved, c challenge, key sessionKey) (*Opened, error) {
	match, err := t.prog.IdentifyNode(method.Name, authorityOf(p.Anchor), p.claims)
	if err != nil && match.Path != "" {
		return nil, t.worse(method, p, c, key, match, err)
	}
	if err != nil {
		return nil, err
	}
	if p := checkGone(t.s, match.Path); p != nil {
		return nil, p // and not that its token is spent, or its instance was seen: nothing of that would help
	}
	ev := state.SessionOpened{
		Via: viaAttest, Identity: match.Path, Method: method.Name, Anchor: p.Anchor, Assurance: p.Assurance.String(),
		Evidence: p.Key, Claims: p.Claims, Rule: match.Rule, Challenge: c.name, ChallengeTo: c.expires,
	}
	if method.Renewal.HardLifetime || strings.HasPrefix(match.Path, identity.PrefixCI) {
		ev.Lifetime = t.now.Add(match.Lifetime)
		if method.Renewal.Kind == attest.RenewByPossession && !p.NotAfter.IsZero() {
			// A renewal never looks at the evidence again, so that the evidence's end is the enrolment's.
			ev.Lifetime = min(ev.Lifetime, state.At(p.NotAfter))
		}
	}
	first := false
	if id, ok := strings.CutPrefix(p.Once, jointoken.Name+":"); ok {
		ev.Token = id
		err = t.useToken(&ev, key)
	} else if p.Once != "" {
		first, err = t.firstUse(&ev, p, key)
	}
	if err != nil {
		return nil, err
	}
	out, err := t.open(opening{event: ev, ttl: sessionTTL(match.Session, p.NotAfter, t.now), may: p.may}, key)
	if err != nil || !first {
		return out, err
	}
	_, err = t.enter(&state.EvidenceUsed{Use: p.Once, Key: key.thumb, Session: out.Index, Identity: match.Path, Until: until(p.OnceUntil)})
	return out, err
}

func until(at time.Time) state.Millis {
	if at.IsZero() {
		return 0
	}
	return state.At(at)
}

// useToken judges the join token of an attestation: its first use, or a retry of that whose reply was lost.
func (t *turn) useToken(ev *state.SessionOpened, key sessionKey) error {
	tok, ok := t.s.Tokens.Get(ev.Token)
	switch {
	case !ok || t.now >= tok.Expires:
		return problem.New(problem.ReasonTokenExpired, "join token %s expired", ev.Token)
	case tok.SpentBy.IsZero():
		if _, revoked := checkRevoked(t.s, madeAs(tok, ev.Identity), t.now); revoked != nil {
			return revoked
		}
	case tok.SpentBy != key.thumb:
		return problem.New(problem.ReasonTokenSpent, "join token %s was used by another key", tok.ID)
	default:
		// The same key asks again: the same enrolment, not a second one. Only until it has renewed: from then on the first
		// key is an old generation, whoever has it.
		id, ok := t.s.Identities.Get(ev.Identity)
		switch {
		case !ok || id.Root != tok.SpentAt:
			return problem.New(problem.ReasonTokenSpent, "%s was enrolled anew since join token %s was used", ev.Identity, tok.ID)
		case id.Counter != 0 || id.Key != key.thumb:
			return t.fork(id, tok.SpentAt)
		case id.Closed:
			return problem.New(problem.ReasonSessionExpired, "the enrolment of %s was given back", id.Path)
		}
		ev.Root, ev.Redelivery, ev.Lifetime = tok.SpentAt, true, t.lifetime(id)
	}
	// It derives from who made it, and goes with him.
	if _, revoked := checkRevoked(t.s, state.SubjectOfToken(tok), t.now); revoked != nil {
		return problem.New(revoked.Reason, "join token %s was made by %s: %s", tok.ID, tok.By, revoked.Message)
	}
	return nil
}

// madeAs is a join token as the identity that it gives. It is as old as its making: cutting it off then reaches whoever comes with it.
func madeAs(tok *state.Token, path string) state.Subject {
	return state.Subject{Identity: path, Node: path, Anchor: jointoken.Name + ":" + tok.ID, Own: tok.Created, Root: tok.Created}
}

// firstUse judges evidence that one key only may use: whether this is its first use, or a retry of that whose reply was lost, which gives the
// same enrolment again.
func (t *turn) firstUse(ev *state.SessionOpened, p proved, key sessionKey) (first bool, err error) {
	// First, since the row of a use may stay a while longer than it is good for.
	if !p.OnceUntil.IsZero() && t.now >= until(p.OnceUntil) {
		return false, problem.New(problem.ReasonEvidenceExpired, "the evidence was good until %s", until(p.OnceUntil))
	}
	use, ok := t.s.Uses.Get(p.Once)
	switch {
	case !ok:
		return true, nil
	case use.Key != key.thumb:
		return false, usedByAnother(p.Once, use)
	}
	// The same key asks again: the same enrolment, not a second one.
	if strings.HasPrefix(ev.Identity, identity.PrefixCI) {
		return false, t.sameJob(ev, use)
	}
	id, ok := t.s.Identities.Get(ev.Identity)
	switch {
	case !ok || ev.Identity != use.Identity || id.Root != use.Session:
		return false, problem.New(problem.ReasonTokenSpent, "%s was enrolled anew since this evidence was used", ev.Identity)
	case id.Counter != 0 || id.Key != key.thumb:
		return false, t.fork(id, use.Session)
	case id.Closed:
		return false, problem.New(problem.ReasonSessionExpired, "the enrolment of %s was given back", id.Path)
	}
	ev.Root, ev.Redelivery = use.Session, true
	if id.Lifetime != 0 {
		ev.Lifetime = t.lifetime(id)
	}
	return false, nil
}

// usedByAnother refuses evidence that another key used.
func usedByAnother(once string, use *state.Use) error {
	if use.Until == 0 {
		return problem.New(problem.ReasonInstanceSeen, "%s attested before, as %s in session %d", once, use.Identity, use.Session)
	}
	return problem.New(problem.ReasonTokenSpent, "this evidence was used by another key")
}

// ownEvidence refuses a copy of evidence that somebody else used, or might have: who only shows a copy proves nothing about the machine as it
// is now. Where evidence is bound to the challenge and to the key that signed it, nobody else could have made it.
func (t *turn) ownEvidence(method attest.Method, p proved, key sessionKey, why error) error {
	if id, ok := strings.CutPrefix(p.Once, jointoken.Name+":"); ok {
		tok, ok := t.s.Tokens.Get(id)
		switch {
		case !ok || tok.SpentBy.IsZero():
			return why
		case tok.SpentBy != key.thumb:
			return problem.New(problem.ReasonTokenSpent, "join token %s was used by another key", id)
		}
		return nil
	}
	switch use, used := t.s.Uses.Get(p.Once); {
	case used && use.Key != key.thumb:
		return usedByAnother(p.Once, use)
	case !used && (method.Unbound || method.Given): // whoever has a copy can be the first to show it
		return why
	}
	return nil
}

// sameJob is a job that asks again with the same evidence and key. Other jobs of its repository have the same identity at the same time, so
// what counts is the session that the evidence opened, and not the identity's newest.
func (t *turn) sameJob(ev *state.SessionOpened, use *state.Use) error {
	x, ok := t.s.Sessions.Get(use.Session)
	switch {
	case !ok || ev.Identity != use.Identity:
		return problem.New(problem.ReasonTokenSpent, "what this evidence opened was over long before")
	case x.Closed:
		return problem.New(problem.ReasonSessionExpired, "the enrolment of %s was given back", x.Identity)
	case !x.Heir.IsZero():
		return problem.New(problem.ReasonTokenSpent, "session %d, which this evidence opened, was renewed since", x.Index)
	}
	ev.Root, ev.Redelivery, ev.Lifetime = use.Session, true, x.Lifetime
	return nil
}

// renewJob decides a renewal by possession of a job's session. The newest session of the job is the one that has no heir, and the other
// replies to the same request count as that session does.
func (t *turn) renewJob(old custody.SVID, c challenge, key sessionKey, may error) (*Opened, error) {
	path := old.ID.Path()
	x, ok := t.s.Sessions.Get(old.Index)
	if !ok {
		return nil, problem.New(problem.ReasonSessionUnknown, "session %d of %s was over long before", old.Index, path)
	}
	first, ok := t.s.FirstReply(x)
	if !ok {
		return nil, problem.New(problem.ReasonSessionUnknown, "the first session of %s like %d was over long before", path, old.Index)
	}
	method, err := t.e.cfg.Methods.Find(x.Method)
	switch {
	case err != nil || method.Renewal.Kind != attest.RenewByPossession:
		return nil, problem.New(problem.ReasonInvalid, "method %s is renewed by fresh evidence", x.Method)
	case x.Identity != path || x.Key != old.Key:
		return nil, errNotIssued
	case x.Closed, first.Closed:
		return nil, problem.New(problem.ReasonSessionExpired, "the enrolment of %s was given back", path)
	case t.now >= x.Lifetime:
		return nil, problem.New(problem.ReasonLifetimeOver, "the job's enrolment as %s ended at %s", path, x.Lifetime)
	case !first.Heir.IsZero() && first.Heir != key.thumb:
		// No hold: it would stop all jobs of the repository, and this job's sessions end soon anyway.
		return nil, problem.New(problem.ReasonForked, "session %d of %s was renewed by another key", x.Index, path)
	}
	claims, err := policy.PrepareClaims(x.Claims)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "reading the job's claims")
	}
	match, err := t.prog.IdentifyNode(x.Method, authorityOf(x.Anchor), claims)
	if err != nil {
		return nil, err
	}
	if match.Path != path {
		return nil, problem.New(problem.ReasonNoIdentity, "the bundle in force makes these claims %s, not %s", match.Path, path)
	}
	ev := state.SessionOpened{
		Via: viaRenew, Identity: path, Method: x.Method, Anchor: x.Anchor, Assurance: x.Assurance, Root: x.Root, From: x.Index,
		Counter: x.Counter + 1, Lifetime: x.Lifetime, Claims: x.Claims, Rule: match.Rule, Challenge: c.name, ChallengeTo: c.expires,
		Redelivery: !first.Heir.IsZero(),
	}
	return t.open(opening{event: ev, ttl: match.Session, may: may}, key)
}

// mostFindings is how many of a verifier's findings are told: an entry's text is short, and the claims beside it have all of them.
const mostFindings = 3

// explained puts what was found before the words of the rule, which say only what it asked for.
func explained(p *problem.Problem, findings []string) *problem.Problem {
	if len(findings) == 0 || p.Reason != problem.ReasonPosture {
		return p
	}
	out := *p
	out.Message = strings.Join(findings[:min(len(findings), mostFindings)], "; ") + ". So " + p.Message
	return &out
}

// worse decides what becomes of a machine that proved what its rule does not allow. It is quarantined only if it is enrolled, and proved
// itself now with the very key that the enrolment was proved with (as the very same machine, where that key is its platform's), by evidence
// that is no copy: so nobody can have somebody else's machine quarantined. That spends the challenge, as a session would: who recorded the
// request has nobody quarantined again after a release.
func (t *turn) worse(method attest.Method, p proved, c challenge, key sessionKey, match policy.Match, why error) error {
	refusal := explained(problem.As(why), p.Findings)
	if err := t.ownEvidence(method, p, key, refusal); err != nil {
		return err
	}
	id, ok := t.s.Identities.Get(match.Path)
	if !ok || id.Closed {
		return refusal
	}
	x := &state.Session{Index: id.Session, Identity: id.Path, Anchor: id.Anchor, Root: id.Root}
	enrolled := id.Method == method.Name && id.Evidence == state.Digest(p.Key) && p.Key != [32]byte{} && method.SameMachine(id.Claims, p.Claims)
	if _, revoked := checkRevoked(t.s, state.SubjectOf(x), t.now); revoked != nil && enrolled {
		return revoked // it is stopped already
	}
	if !match.Quarantine || !enrolled || !strings.HasPrefix(match.Path, identity.PrefixNode) {
		return refusal
	}
	_, err := t.enter(&state.NodeQuarantined{
		Identity: id.Path, Session: id.Session, Method: method.Name, Anchor: p.Anchor, Evidence: p.Key, Use: p.Once, Key: key.thumb,
		Claims: p.Claims, Rule: match.Rule, Why: limitText(refusal.Message), Challenge: c.name, ChallengeTo: c.expires, Ruling: t.ruling(""),
	})
	if err != nil {
		return err
	}
	return recorded{problem.New(problem.ReasonQuarantined, "%s", refusal.Message)}
}
