package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// JWTRequest asks for a token for the caller itself.
type JWTRequest struct {
	Audience []string
	TTL      time.Duration // 0, or more than the bundle allows: as long as it allows
}

// JWT is a JWT-SVID. The token is a secret: who has it is, to its audience, the identity.
type JWT struct {
	Token    string
	Identity identity.ID
	Issued   time.Time
	Expires  time.Time
	Index    uint64        // of the entry
	Age      time.Duration // how long ago it was decided
}

// issuance is what was decided about a token, and where it is entered.
type issuance struct {
	*state.JWTIssued
	index uint64
}

func (r *JWTRequest) check() error {
	if len(r.Audience) == 0 || len(r.Audience) > spiffe.MaxAudiences {
		return problem.New(problem.ReasonInvalid, "a token is for 1 to %d audiences", spiffe.MaxAudiences)
	}
	for i, a := range r.Audience {
		if err := spiffe.ValidAudience(a); err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "an audience")
		}
		if slices.Contains(r.Audience[:i], a) {
			return problem.New(problem.ReasonInvalid, "an audience is there twice")
		}
	}
	if r.TTL < 0 || (r.TTL > 0 && r.TTL < time.Second) {
		return problem.New(problem.ReasonInvalid, "a token lives for a second at least")
	}
	return nil
}

// IssueJWT issues a JWT-SVID to a workload, a CI job or a machine, for itself. The decision and its entry are durable before
// the token is signed. Reasons of refusal beside those of sessions: audience-not-allowed, no-identity.
func (e *Environment) IssueJWT(ctx context.Context, c Caller, r JWTRequest) (*JWT, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if _, ok := e.log.State().CurrentKey(custody.JWT); !ok {
		// None was needed so far. Who has no session makes none either.
		if err := e.Stands(c); err != nil {
			return nil, err
		}
		if err := e.tendTokens(ctx, true); err != nil {
			return nil, err
		}
	}
	issued, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*custody.Keys, error) { return e.currentKeys(ctx, s) },
		func(t *turn, k *custody.Keys) (issuance, error) { return t.issue(c, r, k) })
	if err != nil {
		return nil, err
	}
	out := new(JWT)
	if out.Identity, err = identity.New(e.Name(), issued.Subject); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "making the identity")
	}
	out.Index, out.Issued, out.Expires = issued.index, proof.Time.Truncate(time.Second), issued.Expires.Time()
	out.Token, err = e.keys.Load().SignToken(issued.Key, spiffe.Claims{
		Subject: out.Identity.String(), Audience: issued.Audience, Issuer: issued.Issuer, Issued: out.Issued, Expires: out.Expires,
		ID: fmt.Sprintf("%d.%d", e.log.State().Env.Epoch, issued.index),
	})
	if err != nil {
		return nil, err
	}
	if out.Age = proof.Age(); out.Age > deliveryDeadline {
		return nil, problem.New(problem.ReasonDeliveryTooLate, "entry %d is %s old", issued.index, out.Age.Round(time.Millisecond))
	}
	e.checks.delivered.Add(1)
	e.cfg.Silence.Seed([]byte(out.Token))
	return out, nil
}

// issue decides a token at the head.
func (t *turn) issue(c Caller, r JWTRequest, k *custody.Keys) (issuance, error) {
	x, err := t.session(c)
	if err != nil {
		return issuance{}, err
	}
	refuse := func(p *problem.Problem) error {
		return &denied{problem: p, action: "jwt.issue", target: strings.Join(r.Audience, " "), session: x}
	}
	if strings.HasPrefix(x.Identity, identity.PrefixHuman) || strings.HasPrefix(x.Identity, identity.PrefixServer) {
		return issuance{}, refuse(problem.New(problem.ReasonNoIdentity, "%s is a person or a server, and those have no JWT-SVIDs", x.Identity).
			WithFix("ask as the workload, CI job or machine that needs the token"))
	}
	if p := stands(t.s, t.inForce(), t.e.claims, x); p != nil {
		return issuance{}, refuse(p)
	}
	settings := t.prog.Environment().SPIFFE
	for _, a := range r.Audience {
		if !settings.Audience(a) {
			return issuance{}, refuse(problem.New(problem.ReasonNoAudience, "the bundle in force allows no tokens for one of the audiences"))
		}
	}
	key, ok := t.s.CurrentKey(custody.JWT)
	if !ok || !k.HasToken(key.Name) {
		return issuance{}, errStale // it was rotated meanwhile
	}
	ttl := settings.TokenTTL
	if r.TTL > 0 {
		ttl = min(ttl, r.TTL)
	}
	// A token ends in whole seconds, and no later than the session: so the horizon of a revocation covers it.
	end := state.At(min(t.now.Add(ttl), x.Expires).Time().Truncate(time.Second))
	if end <= t.now {
		return issuance{}, refuse(problem.New(problem.ReasonSessionExpired, "the session is over in less than a second"))
	}
	ev := &state.JWTIssued{
		Subject: x.Identity, Audience: r.Audience, Issuer: settings.Issuer, Key: key.Name, Expires: end, Root: x.Root, Actor: actorOf(x), Ruling: t.ruling(""),
	}
	index, err := t.enter(ev)
	return issuance{ev, index}, err
}

// errNoKeyDue says that no key of tokens is to be made: somebody else did.
var errNoKeyDue = errors.New("no key is due")

// tendTokens makes the keys of tokens that are due: the first two, if there are none and they are wanted; the next one, if the
// newest has been published for as long as the bundle says, or is for another algorithm than the bundle's and others have heard of it.
func (e *Environment) tendTokens(ctx context.Context, wanted bool) error {
	due := func(s *state.State, prog *policy.Program, now state.Millis) int {
		newest, ok := s.NewestKey(custody.JWT)
		switch settings := prog.Environment().SPIFFE; {
		case !ok && (wanted || settings.Issuer != ""):
			return 2
		case ok && !signsBy(newest.Public, settings.Algorithm): // the newest signs from then on, so others must have heard of it
			if now >= newest.Since.Add(settings.RefreshHint) {
				return 1
			}
		case ok && now >= newest.Since.Add(settings.Rotate):
			return 1
		}
		return 0
	}
	if prog, err := e.inForce(e.log.State()); err != nil {
		return err
	} else if due(e.log.State(), prog, state.At(e.cfg.Now())) == 0 {
		return nil
	}
	_, err := e.addTokens(ctx, func(t *turn) (int, *state.Actor, error) {
		n := due(t.s, t.prog, t.now)
		if n == 0 {
			return 0, nil, errNoKeyDue
		}
		return n, nil, nil
	})
	if errors.Is(err, errNoKeyDue) {
		return nil
	}
	return err
}

// signsBy reports whether a key of tokens is for an algorithm.
func signsBy(public []byte, algorithm string) bool {
	k, err := spiffe.ParseTokenKey(public)
	return err == nil && k.Algorithm == algorithm
}

// rotateTokens is a rotation by an operator: at once, however long the next key has been published.
func (e *Environment) rotateTokens(ctx context.Context, c Caller) (*ledger.Proof, error) {
	return e.addTokens(ctx, func(t *turn) (int, *state.Actor, error) {
		x, err := t.session(c)
		if err != nil {
			return 0, nil, err
		}
		if _, err := t.duty(x, policy.DutyKeys); err != nil {
			return 0, nil, err
		}
		actor := actorOf(x)
		if _, ok := t.s.NewestKey(custody.JWT); !ok {
			return 2, &actor, nil
		}
		return 1, &actor, nil
	})
}

// maxTokensAdded is how many keys of tokens the first decision about them adds: one that signs, and one that is published ahead.
const maxTokensAdded = 2

// addTokens adds as many keys of tokens as decide says.
func (e *Environment) addTokens(ctx context.Context, decide func(*turn) (int, *state.Actor, error)) (*ledger.Proof, error) {
	type made struct {
		by    *custody.Keys
		facts []state.KeyFacts
		rows  []store.Key
	}
	_, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (made, error) {
			m := made{}
			var err error
			if m.by, err = e.currentKeys(ctx, s); err != nil {
				return m, err
			}
			prog, err := e.inForce(s)
			if err != nil {
				return m, err
			}
			algorithm := prog.Environment().SPIFFE.Algorithm
			newest, n := newestNumber(s), 1 // no more than will be entered: an RSA key takes long to make
			if newest == 0 {
				n = maxTokensAdded
			}
			for i := range n {
				facts, row, err := e.vault(e.log.State()).MakeToken(m.by, newest+1+uint32(i), algorithm, e.cfg.Source)
				if err != nil {
					return m, err
				}
				m.facts, m.rows = append(m.facts, facts), append(m.rows, row)
			}
			return m, nil
		},
		func(t *turn, m made) (struct{}, error) {
			n, actor, err := decide(t)
			if err != nil {
				return struct{}{}, err
			}
			if n > len(m.facts) || m.by.Behind(t.s) || !signsBy(m.facts[0].Public, t.prog.Environment().SPIFFE.Algorithm) {
				return struct{}{}, errStale // the key that wraps it is not the current one, its number is taken, or the bundle asks for another
			}
			if err := t.leavesNone(); err != nil {
				return struct{}{}, err
			}
			for i := range n {
				if _, err := t.enter(&state.JWTKeyAdded{Key: m.facts[i], Actor: actor, Ruling: t.ruling("")}); err != nil {
					return struct{}{}, err
				}
				t.draft.Keys = append(t.draft.Keys, m.rows[i])
			}
			return struct{}{}, nil
		})
	if err != nil {
		return nil, err
	}
	_, err = e.currentKeys(ctx, e.log.State())
	return proof, err
}

func newestNumber(s *state.State) uint32 {
	k, ok := s.NewestKey(custody.JWT)
	if !ok {
		return 0
	}
	_, n, _ := state.ParseKeyName(k.Name) // the state holds no other names
	return n
}

// tokenGrace is how long after its end a token may be accepted by a verifier whose clock is behind.
const tokenGrace = time.Minute

// ends is when the last token that a key may have signed is over, or zero if the key signs still, or will.
func ends(s *state.State, number uint32) state.Millis {
	// It stopped signing when the one after the next was added.
	k, ok := s.Keys.Get(custody.Name(custody.JWT, number+2))
	if !ok {
		return 0
	}
	return k.Since.Add(spiffe.MaxTokenLife + tokenGrace)
}

// leavesNone refuses a rotation that would drop a key out of what is published while tokens of it are valid: who rotates so often
// has a reason to withdraw that key.
func (t *turn) leavesNone() error {
	newest := newestNumber(t.s)
	if newest < state.TokensTold {
		return nil
	}
	n := newest + 1 - state.TokensTold
	if k, ok := t.s.Keys.Get(custody.Name(custody.JWT, n)); ok && k.Withdrawn == 0 && t.now < ends(t.s, n) {
		return problem.New(problem.ReasonLifecycle, "tokens of %s may be valid until %s", k.Name, ends(t.s, n)).
			WithFix("wait until then, or withdraw that key as compromised")
	}
	return nil
}

// tendEvery is how often the keys of tokens are looked at.
const tendEvery = time.Minute

// tokensLoop rotates the keys of tokens when they are due.
func (e *Environment) tokensLoop(ctx context.Context) {
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		if e.log.State().Ended != 0 {
			return
		}
		if err := e.tendTokens(ctx, false); err != nil && ctx.Err() == nil {
			e.logger.Warn("rotating the key of tokens failed", "err", err)
		}
		next.Reset(tendEvery)
	}
}

// WithdrawRequest takes a key out of what others are told to trust.
type WithdrawRequest struct {
	Key string // ca/N or jwt/N; those before it go with it
	// Compromised withdraws it although what it signed may still be valid: that is refused from then on by whoever has heard
	// of it.
	Compromised bool
	Reason      string
}

const maxReason = 300

// WithdrawKey takes a CA or a key of tokens, and those of its kind before it, out of the trust bundle. The current key can't be
// withdrawn: rotate first.
func (e *Environment) WithdrawKey(ctx context.Context, c Caller, r WithdrawRequest) (*ledger.Proof, error) {
	kind, number, err := state.ParseKeyName(r.Key)
	if err != nil || (kind != custody.CA && kind != custody.JWT) {
		return nil, problem.New(problem.ReasonInvalid, "a key to withdraw is named ca/N or jwt/N")
	}
	if r.Reason == "" || len(r.Reason) > maxReason {
		return nil, problem.New(problem.ReasonInvalid, "a withdrawal has a reason of 1 to %d bytes", maxReason)
	}
	_, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (struct{}, error) {
		x, err := t.session(c)
		if err != nil {
			return struct{}{}, err
		}
		if _, err := t.duty(x, policy.DutyKeys); err != nil {
			return struct{}{}, err
		}
		if err := t.withdrawable(kind, number, r.Compromised); err != nil {
			return struct{}{}, err
		}
		_, err = t.enter(&state.KeyWithdrawn{Key: r.Key, Compromised: r.Compromised, Reason: limitText(r.Reason), Actor: actorOf(x), Ruling: t.ruling("")})
		return struct{}{}, err
	})
	return proof, err
}

func (t *turn) withdrawable(kind string, number uint32, compromised bool) error {
	name := custody.Name(kind, number)
	k, ok := t.s.Keys.Get(name)
	if !ok {
		return problem.New(problem.ReasonNotFound, "there is no key %s", name).WithFix("see `bailment key list`")
	}
	if k.Withdrawn != 0 {
		return problem.New(problem.ReasonLifecycle, "%s was withdrawn by entry %d", name, k.Withdrawn).WithFix("nothing to do")
	}
	current, ok := t.s.CurrentKey(kind)
	if !ok {
		return problem.New(problem.ReasonNotFound, "there is no current key of the kind %s", kind)
	}
	if _, now, _ := state.ParseKeyName(current.Name); number >= now {
		return problem.New(problem.ReasonLifecycle, "%s is not one before the current %s", name, current.Name).
			WithFix("rotate first: `bailment key rotate %s`", kind)
	}
	if compromised {
		return nil
	}
	if until := t.signedUntil(kind, number); until > t.now {
		return problem.New(problem.ReasonLifecycle, "what %s signed may be valid until %s", name, until).
			WithFix("wait until then; if the key is in wrong hands, withdraw it as compromised")
	}
	return nil
}

// signedUntil is when what a former key signed is over.
func (t *turn) signedUntil(kind string, number uint32) state.Millis {
	if kind == custody.JWT {
		return ends(t.s, number)
	}
	next, ok := t.s.Keys.Get(custody.Name(custody.CA, number+1))
	if !ok {
		return 0
	}
	until := state.Millis(0)
	// A session that was given back has a certificate all the same.
	t.s.Sessions.All(func(index uint64, x *state.Session) bool {
		if index < next.Created {
			until = max(until, x.Expires)
		}
		return index < next.Created
	})
	return until
}
