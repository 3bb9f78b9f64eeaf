// Package platform is what all methods share whose evidence is one token that a platform signed for what runs on it: a cloud for an
// instance, a cluster for a pod, a CI service for a job. A method is one Platform value: how its tokens are bound, for how long they may
// live, and what their claims are.
//
// Guaranteed: the token is of an authority of the bundle, by its exact issuer, and what package jwt guarantees of it; its audience is of
// this environment and bound in one of the ways that the platform allows (Binding); a token that is not bound to the challenge has a
// Result.Once until it ends, so that no second session key can use it.
//
// Not guaranteed: that a token which is bound to the environment only (ToEnvironment) was brought by the one that it was made for. Whoever
// is first has it, which is why it is worth no more than assurance "token".
//
// Its place: below the methods, above package jwt.
package platform

import (
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Binding is what the audience of a platform's tokens binds them to.
type Binding uint8

// The bindings, the strongest first (DESIGN.md §7).
const (
	// ToChallenge: asked for this challenge by the holder of this session key. It can be neither replayed nor relayed.
	ToChallenge Binding = iota
	// ToKey: asked for by the holder of this session key. Single use by the token's ID.
	ToKey
	// ToEnvironment: the platform fixes the audience before there is a session key. Bound to the key that uses it first.
	ToEnvironment
)

// Audience is what a token so bound must have as its one audience.
func (k Binding) Audience(b attest.Binding) string {
	switch k {
	case ToChallenge:
		return b.FreshAudience()
	case ToKey:
		return b.KeyAudience()
	default:
		return b.EnvironmentAudience()
	}
}

// assurance is the most that a token so bound is worth.
func (k Binding) assurance() identity.Assurance {
	if k == ToEnvironment {
		return identity.Token
	}
	return identity.Platform
}

// maxEvidence is a token and the document around it. Tokens have no character that JSON would escape.
const maxEvidence = jwt.MaxToken + 64

// Platform is a method whose evidence is a token.
type Platform struct {
	Name, Proves, DoesNotProve string
	// Bindings are those that the method takes, the strongest first. Each is tried, so there should be one, or two where the platform is
	// not known.
	Bindings []Binding
	Renewal  attest.Renewal
	// Machine is attest.Method's: the issuer's key signs for all that it serves.
	Machine []string
	// MaxLifetime is the most from "iat" to "exp": what the platform documents, or a bound on what it lets people set.
	MaxLifetime time.Duration
	// Claims makes claims of a token that was proved, and refuses with token-invalid what contradicts itself. It must not add "authority",
	// "issuer" and "subject", which all have.
	Claims func(jwt.Token) (map[string]any, error)
	Needs  []attest.Need
	// NewAttester is attest.Method's.
	NewAttester func(attest.Material) (attest.Attester, error)
}

// evidence is the document that crosses the wire.
type evidence struct {
	Token string `json:"token"`
}

// Params is what the verifiers of this package need: the authorities of the method, by their issuers.
type Params struct {
	issuers map[string]authority.Authority
}

// NewParams refuses authorities of which two have one issuer: whose would its tokens be?
func NewParams(all []authority.Authority) (Params, error) {
	p := Params{issuers: make(map[string]authority.Authority, len(all))}
	for _, a := range all {
		if a.Issuer == "" {
			return Params{}, problem.New(problem.ReasonInvalid, "authority %.80q names no issuer", a.Name)
		}
		if other, ok := p.issuers[a.Issuer]; ok {
			return Params{}, problem.New(problem.ReasonInvalid, "authorities %.80q and %.80q of one method have the same issuer", other.Name, a.Name)
		}
		p.issuers[a.Issuer] = a
	}
	return p, nil
}

// Method is the platform's row of the table of methods.
func (p Platform) Method() attest.Method {
	return attest.Method{
		Name: p.Name, Proves: p.Proves, DoesNotProve: p.DoesNotProve,
		Assurance:   p.Bindings[0].assurance(),
		Given:       p.Bindings[0] == ToEnvironment,
		Shared:      true,
		Machine:     p.Machine,
		Renewal:     p.Renewal,
		Verify:      p.verify,
		MaxEvidence: maxEvidence,
		Params:      func(all []authority.Authority) (any, error) { return NewParams(all) },
		Issuer:      Issuer,
		Needs:       p.Needs,
		NewAttester: p.NewAttester,
	}
}

// Issuer reads whose keys a token needs, and believes nothing of it.
func Issuer(data []byte) (attest.TokenHead, error) {
	token, err := decode(data)
	if err != nil {
		return attest.TokenHead{}, err
	}
	head, _, err := jwt.Head(token)
	return head, err
}

func decode(data []byte) ([]byte, error) {
	var ev evidence
	if err := attest.DecodeUpTo(maxEvidence, data, &ev); err != nil {
		return nil, err
	}
	if ev.Token == "" {
		return nil, problem.New(problem.ReasonInvalid, "the evidence holds no token")
	}
	return []byte(ev.Token), nil
}

func (p Platform) verify(in attest.Input) (attest.Result, error) {
	params, err := attest.BeginUpTo[Params](maxEvidence, in, p.Name)
	if err != nil {
		return attest.Result{}, err
	}
	text, err := decode(in.Evidence)
	if err != nil {
		return attest.Result{}, err
	}
	head, _, err := jwt.Head(text)
	if err != nil {
		return attest.Result{}, err
	}
	a, ok := params.issuers[head.Issuer]
	if !ok {
		return attest.Result{}, problem.New(problem.ReasonIssuer, "the token's issuer is of no %s authority of the bundle", p.Name)
	}
	keys := a.Keys
	if keys == nil {
		keys = in.Keys
	}
	token, bound, err := p.check(text, keys, a, in)
	if err != nil {
		return attest.Result{}, err
	}
	return p.result(token, bound, a)
}

// check verifies the token for each of the bindings. The second is tried only where nothing but the audience was wrong.
func (p Platform) check(text []byte, keys *jose.JSONWebKeySet, a authority.Authority, in attest.Input) (token jwt.Token, bound Binding, err error) {
	for _, bound = range p.Bindings {
		token, err = jwt.Verify(text, keys, jwt.Expect{
			Issuer: a.Issuer, Audience: bound.Audience(in.Binding), Now: in.Now, Skew: jwt.MaxSkew, MaxLifetime: p.MaxLifetime, MaxAge: a.MaxAge,
		})
		if !problem.Is(err, problem.ReasonAudience) {
			break
		}
	}
	return token, bound, err
}

func (p Platform) result(token jwt.Token, bound Binding, a authority.Authority) (attest.Result, error) {
	claims, err := p.Claims(token)
	if err != nil {
		return attest.Result{}, err
	}
	claims["authority"], claims["issuer"], claims["subject"] = a.Name, a.Issuer, token.Subject
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	out := attest.Result{
		Claims: claims, Assurance: bound.assurance(), Anchor: p.Name + ":" + a.Name, Key: token.Key, NotAfter: token.Expires,
	}
	if bound != ToChallenge {
		// Without the method: what the audience binds to has none in it, and a cluster may be the authority of machines and of jobs.
		out.Once, out.OnceUntil = attest.OnceToken+attest.DigestText(token.Unique), token.Expires
	}
	return out, nil
}
