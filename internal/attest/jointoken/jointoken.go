// Package jointoken is the attestation method "join-token": a machine proves that it was handed a
// single-use token made by an operator.
//
// Guaranteed: the token itself never crosses the wire and is not in the ledger, which has its ID and
// public key; what crosses is a signature for one challenge and one session key, so neither a
// network that records it nor a server that lies gains a use of the token; and the reasons
// token-foreign, token-unknown, token-expired and bad-proof are told apart. Not guaranteed: that a
// token is used once. That is state: Result.Once names the token, and the caller binds it to the
// first session key when it commits. The same session key may come again (its answer was lost),
// another one is token-spent. What else it doesn't prove stands in README.md.
//
// It is one method of package attest, and imports it and the leaves below.
package jointoken

import (
	"context"
	"crypto/ed25519"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first half of its anchors ("join-token:ID").
const Name = "join-token"

// MaxName is the most bytes that the name given to a token may have: a DNS name's (RFC 1035).
const MaxName = 253

// NeedToken is the one thing that an agent needs for this method.
const NeedToken = "token"

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name:   Name,
		Proves: "that the machine was handed a single-use token which an operator made for this name in this environment",
		DoesNotProve: "which machine it is, what runs on it, or that nobody else had the token before: " +
			"whoever sees the token first can be the machine",
		Assurance: identity.Token,
		Renewal:   attest.Renewal{Kind: attest.RenewByPossession, HardLifetime: true},
		Verify:    Verify,
		Needs: []attest.Need{
			{Name: NeedToken, Doc: "the join token (" + Prefix + "…), as `bailment node token` printed it", Secret: true},
		},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			t, err := Parse(string(m[NeedToken]))
			if err != nil {
				return nil, err
			}
			return NewAttester(t)
		},
	}
}

// Record is what the ledger knows of a token.
type Record struct {
	PublicKey ed25519.PublicKey
	Name      string    // the operator's word for the machine; becomes the claim "name"
	Expires   time.Time // exclusive
	Genesis   [32]byte  // the environment whose ledger has it
}

// Validate says what forbids a record from being entered, or nil.
func (r Record) Validate() error {
	if len(r.PublicKey) != ed25519.PublicKeySize {
		return problem.New(problem.ReasonInvalid, "a join token's public key has %d bytes", ed25519.PublicKeySize)
	}
	if r.Expires.IsZero() {
		return problem.New(problem.ReasonInvalid, "a join token must expire")
	}
	if r.Genesis == [32]byte{} {
		return problem.New(problem.ReasonInvalid, "a join token must be of an environment")
	}
	return ValidName(r.Name)
}

// ValidName says what is wrong with the name given to a token, or nil: 1 to 253 of A-Z a-z 0-9 '.'
// '_' '-', beginning with a letter or digit.
func ValidName(name string) error {
	if name == "" || len(name) > MaxName {
		return problem.New(problem.ReasonInvalid, "a join token's name has 1 to %d characters", MaxName)
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return problem.New(problem.ReasonInvalid, "a join token's name has letters, digits, '.', '_' and '-' only, and begins with a letter or digit")
		}
	}
	return nil
}

// Params is what Verify needs of the environment's state.
type Params struct {
	// Lookup finds a token by its ID, in one snapshot of the state. It is called at most once, with
	// a valid ID, and must not block. A revoked token may be reported as absent.
	Lookup func(id string) (Record, bool)
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Environment string `json:"environment"` // the first 8 bytes of the token's genesis, hex
	Token       string `json:"token"`       // the token's ID
	Signature   []byte `json:"signature"`   // Ed25519 (RFC 8032) over Binding.Message
}

// TokenID reads which token some evidence speaks of, without believing any of it: for rate limits
// and for the summary of refusals.
func TokenID(data []byte) (string, error) {
	ev, err := decode(data)
	return ev.Token, err
}

func decode(data []byte) (evidence, error) {
	var ev evidence
	if err := attest.DecodeEvidence(data, &ev); err != nil {
		return evidence{}, err
	}
	if !ValidID(ev.Token) {
		return evidence{}, problem.New(problem.ReasonInvalid, "the evidence names no token: an ID has %d hexadecimal digits", idTextLen)
	}
	return ev, nil
}

// Verify is the verifier; its Params are of type Params.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.Begin[Params](in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	ev, err := decode(in.Evidence)
	if err != nil {
		return attest.Result{}, err
	}
	// The hint is nobody's proof; it only turns "unknown" into an answer that helps.
	if ev.Environment != hintText([hintSize]byte(in.Binding.Genesis[:hintSize])) {
		return attest.Result{}, problem.New(problem.ReasonTokenForeign, "the join token was made for another environment")
	}
	rec, ok := params.Lookup(ev.Token)
	if !ok {
		return attest.Result{}, problem.New(problem.ReasonTokenUnknown, "this environment has no such join token")
	}
	if err := rec.Validate(); err != nil {
		return attest.Result{}, problem.Wrap(err, problem.ReasonInternal, "join token in the state")
	}
	if rec.Genesis != in.Binding.Genesis {
		return attest.Result{}, problem.New(problem.ReasonTokenForeign, "the join token was made for another environment")
	}
	if len(ev.Signature) != ed25519.SignatureSize || !ed25519.Verify(rec.PublicKey, in.Binding.Message(), ev.Signature) {
		return attest.Result{}, problem.New(problem.ReasonBadProof,
			"the signature is not the join token's for this challenge, environment and session key")
	}
	// After the proof, so that only the token's holder learns whether it has expired.
	if !in.Now.Before(rec.Expires) {
		return attest.Result{}, problem.New(problem.ReasonTokenExpired, "the join token expired at %s", rec.Expires.UTC().Format(time.RFC3339))
	}
	return result(ev, rec)
}

func result(ev evidence, rec Record) (attest.Result, error) {
	claims := map[string]any{"name": rec.Name, "token": ev.Token}
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	key, err := attest.Thumbprint(rec.PublicKey)
	if err != nil {
		return attest.Result{}, err
	}
	return attest.Result{
		Claims:    claims,
		Assurance: identity.Token,
		Anchor:    Anchor(ev.Token),
		Once:      Anchor(ev.Token),
		Key:       key,
		// No NotAfter: the token's expiry ends its use, not the enrolment, which has a hard lifetime.
	}, nil
}

// Anchor is what a revocation names to reach everything that came from one token.
func Anchor(id string) string { return Name + ":" + id }

type attester struct{ token Token }

// NewAttester makes the machine's half. The token must not be wiped while it is in use.
func NewAttester(t Token) (attest.Attester, error) {
	if t.IsZero() {
		return nil, problem.New(problem.ReasonInvalid, "no join token was given")
	}
	return attester{t}, nil
}

// Attest signs the binding. For another environment than the token's it refuses, and nothing leaves
// the machine: a bootstrap string that was exchanged gets not even the token's ID.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	if !a.token.Of(b.Genesis) {
		return nil, problem.New(problem.ReasonTokenForeign, "the join token was made for another environment than the bootstrap string names")
	}
	return attest.EncodeEvidence(evidence{
		Environment: hintText(a.token.get().hint),
		Token:       a.token.ID(),
		Signature:   ed25519.Sign(a.token.key(), b.Message()),
	})
}
