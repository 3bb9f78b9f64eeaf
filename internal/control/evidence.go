package control

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"sync"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Issuers finds the keys that an issuer of tokens publishes. It may fetch them: it is asked before the decision, never in it.
type Issuers interface {
	// Find gives the authority's present keys, newer ones if keyID is not among those it has. It bounds how often a stranger's keyID
	// has it ask the issuer.
	Find(ctx context.Context, a authority.Authority, keyID string) (*jose.JSONWebKeySet, error)
}

// proved is evidence that was verified under a bundle.
type proved struct {
	attest.Result
	claims   policy.Claims
	size     int // of the claims, in bytes of JSON
	bundle   state.Digest
	identity string // by that bundle; empty: the decision says why there is none
	may      error  // why it may open no session now
}

// verify appraises evidence under the bundle of a state. It does not look at what the state knows of its use.
func (e *Environment) verify(ctx context.Context, s *state.State, method attest.Method, r AttestRequest, in attest.Input) (proved, error) {
	prog, ok := e.programs.get(s.Bundle)
	if !ok {
		return proved{}, problem.New(problem.ReasonStarting, "the bundle is being compiled")
	}
	var err error
	if in.Params, err = e.params(s, prog, method); err != nil {
		return proved{}, err
	}
	if in.Keys, err = e.issuerKeys(ctx, prog, method, in.Evidence); err != nil {
		return proved{}, err
	}
	if method.Offer != nil {
		nonce := in.Binding.Nonce
		in.Secret = func(hello []byte) [32]byte { return e.hidden(method.Name, nonce, hello) }
	}
	result, err := method.Verify(in)
	if err != nil {
		return proved{}, err
	}
	if _, taken := result.Claims[policy.ClaimAgent]; taken {
		return proved{}, problem.New(problem.ReasonInternal, "method %s speaks of the agent", method.Name)
	}
	if !method.Assurance.AtLeast(result.Assurance) {
		return proved{}, problem.New(problem.ReasonInternal, "method %s gave more assurance than it has", method.Name)
	}
	if row, _ := authority.FindMethod(method.Name); row.Once && result.Once == "" {
		return proved{}, problem.New(problem.ReasonInternal, "method %s does not say what of its evidence counts once", method.Name)
	}
	p := proved{Result: result, bundle: s.Bundle}
	if r.Agent != nil {
		if p.Claims == nil {
			p.Claims = map[string]any{}
		}
		p.Claims[policy.ClaimAgent] = prog.AppraiseAgent(*r.Agent, result.Executables)
	}
	if p.Claims, p.size, err = canonicalClaims(p.Claims); err != nil {
		return proved{}, err
	}
	if p.claims, err = policy.PrepareClaims(p.Claims); err != nil {
		return proved{}, problem.Wrap(err, problem.ReasonInvalid, "the evidence's claims")
	}
	match, _ := prog.IdentifyNode(method.Name, authorityOf(p.Anchor), p.claims)
	p.identity = match.Path
	return p, nil
}

// authorityOf is the name by which identity rules know what vouched. A join token is no authority: its anchor is the token.
func authorityOf(anchor string) string {
	method, name, _ := strings.Cut(anchor, ":")
	if method == jointoken.Name {
		return ""
	}
	return name
}

// canonicalClaims brings claims into the form that they have after being read back from the ledger, so
// that a decision now and its replay see the same values, and says how many bytes they have in it.
func canonicalClaims(in map[string]any) (out map[string]any, size int, err error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, 0, problem.Wrap(err, problem.ReasonInvalid, "claims")
	}
	if len(b) > attest.MaxClaims {
		return nil, 0, problem.New(problem.ReasonTooLarge, "claims of %d bytes are over the limit of %d", len(b), attest.MaxClaims)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, 0, problem.Wrap(err, problem.ReasonInvalid, "claims")
	}
	return out, len(b), nil
}

// hidden is what an offer hides for one hello under one challenge. It is derived, so the server remembers nothing of an offer.
func (e *Environment) hidden(method string, challenge, hello []byte) [32]byte {
	sum := sha256.Sum256(hello)
	return e.keyedDigest("offer", e.genesis[:], []byte(method), challenge, sum[:])
}

// Offer answers a hello under a challenge that was made for it. Nothing is entered and nothing is remembered.
func (e *Environment) Offer(ctx context.Context, name string, challenge, hello []byte) ([]byte, error) {
	method, err := e.cfg.Methods.Find(name)
	if err != nil {
		return nil, err
	}
	if method.Offer == nil {
		return nil, problem.New(problem.ReasonInvalid, "method %s goes in one round: it takes no hello", method.Name)
	}
	c, err := e.checkChallenge(challenge)
	if err != nil {
		return nil, err
	}
	s := e.log.State()
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	params, err := e.params(s, prog, method)
	if err != nil {
		return nil, err
	}
	return method.Offer(attest.OfferInput{
		Hello: hello, Secret: e.hidden(method.Name, c.raw, hello), Random: e.cfg.Source, Now: e.cfg.Now(), Params: params,
	})
}

// issuerKeys finds the published keys that a token needs, if its authority does not pin them.
func (e *Environment) issuerKeys(ctx context.Context, prog *policy.Program, method attest.Method, evidence []byte) (*jose.JSONWebKeySet, error) {
	if method.Issuer == nil || len(evidence) > max(method.MaxEvidence, attest.MaxEvidence) {
		return nil, nil
	}
	head, err := method.Issuer(evidence)
	if err != nil {
		return nil, err
	}
	for _, a := range prog.Authorities(method.Name) {
		if a.Issuer == "" || a.Issuer != head.Issuer || a.Keys != nil {
			continue
		}
		if e.cfg.Issuers == nil {
			return nil, problem.New(problem.ReasonNoKeys, "this server asks no issuer for its keys")
		}
		return e.cfg.Issuers.Find(ctx, a, head.KeyID)
	}
	return nil, nil // pinned, or of nobody that the bundle names: the verifier says which
}

// methodParams are what the methods made of one bundle's authorities. They are made once, since they parse and pool certificates.
type methodParams struct {
	mu     sync.Mutex
	bundle state.Digest
	made   map[string]any
}

// params gives a method what it needs of the environment.
func (e *Environment) params(s *state.State, prog *policy.Program, method attest.Method) (any, error) {
	if method.Name == jointoken.Name {
		return jointoken.Params{Lookup: func(id string) (jointoken.Record, bool) {
			tok, ok := s.Tokens.Get(id)
			if !ok {
				return jointoken.Record{}, false
			}
			return jointoken.Record{PublicKey: tok.Public, Name: tok.Name, Expires: tok.Expires.Time(), Genesis: e.genesis}, true
		}}, nil
	}
	m := &e.methodParams
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bundle != s.Bundle || m.made == nil {
		m.bundle, m.made = s.Bundle, make(map[string]any)
	}
	if p, ok := m.made[method.Name]; ok {
		return p, nil
	}
	p, err := method.Params(prog.Authorities(method.Name))
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "reading the bundle's authorities for %s", method.Name)
	}
	m.made[method.Name] = p
	return p, nil
}

// checkAuthorities refuses a bundle that the verifiers could not use.
func checkAuthorities(methods attest.Methods, prog *policy.Program) error {
	for _, m := range methods {
		if m.Params == nil {
			continue
		}
		if _, err := m.Params(prog.Authorities(m.Name)); err != nil {
			return problem.Wrap(err, problem.ReasonBundleInvalid, "giving the bundle's authorities to the verifier of %s", m.Name)
		}
	}
	for _, a := range prog.Authorities("") {
		if _, err := methods.Find(a.Method); err != nil {
			return problem.Wrap(err, problem.ReasonBundleInvalid, "the authority %s", a.Name)
		}
	}
	return nil
}
