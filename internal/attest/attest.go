// Package attest is the contract of attestation, in the terms of RFC 9334 (RATS): an attester makes
// evidence, a verifier appraises it, and the result is claims and a grade of assurance.
//
// Guaranteed by every method that doesn't declare itself unbound (Method.Unbound): its evidence is bound
// to one method, one environment, one challenge and one session key (Binding), so it can neither be
// replayed nor relayed. By every method: its evidence has exactly one
// encoding (DecodeEvidence); its claims are bounded, printable, and survive a JSON round trip
// unchanged, so that what the ledger keeps is what the decision saw; and its verifier is a pure
// function of its Input: no clock, no I/O, no randomness, nothing kept.
//
// Not guaranteed: that a challenge was issued by this server, is fresh, or was not answered before,
// and that a value in Result.Once was not used before. That is state, and the caller checks it where
// it decides. What each method doesn't prove stands in its README.
//
// Both halves of one method live in one folder below this one; methods.All is the table of them.
// This package imports leaves only.
package attest

import (
	"context"
	"crypto"
	"io"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Verifier appraises evidence. It must be pure, safe for concurrent use, and bounded in time and
// memory whatever the evidence. A refusal is a *problem.Problem that tells the cause apart: invalid
// or too-large for what is not evidence at all, and a NotProved reason for what proves nothing. Its
// message may be shown to the stranger who sent the evidence and holds no text taken from it.
type Verifier func(Input) (Result, error)

// Attester makes evidence. Attest must not change what it holds: it is called again with the same
// binding when the answer was lost, and with another one when the challenge ran out.
type Attester interface {
	Attest(ctx context.Context, b Binding) (evidence []byte, err error)
}

// Greeter is an Attester whose method goes in two rounds: what it says first (Hello) is answered by an offer that only it can use, and
// the evidence shows that it did. Hello is the same until something about the machine changes.
type Greeter interface {
	Hello(ctx context.Context) ([]byte, error)
	// Answer makes evidence as Attest does, from the server's offer to that hello.
	Answer(ctx context.Context, b Binding, hello, offer []byte) (evidence []byte, err error)
}

// KeyMaker is an Attester that can make session keys which can't leave the machine's hardware.
type KeyMaker interface {
	// NewKey makes a key. blob is what LoadKey makes the same key of again, on this machine only; it is not secret.
	NewKey(ctx context.Context) (key crypto.Signer, blob []byte, err error)
	LoadKey(ctx context.Context, blob []byte) (crypto.Signer, error)
}

// Measurer is an Attester that can say without a server what an authority of the bundle would know the machine by, as it is now.
type Measurer interface {
	// Measure gives the machine's endorsement key and one reference set: the values of these PCRs (none: the default ones), or the
	// components that the event log explains them by.
	Measure(ctx context.Context, pcrs []int) (authority.Authority, error)
}

// Input is all that a verifier may look at.
type Input struct {
	Binding  Binding   // what the evidence must be bound to, from the caller's own challenge
	Evidence []byte    // from the stranger
	Now      time.Time // the store's time (DESIGN.md §4)
	Params   any       // the method's own Params type; another type is a defect of the caller
	// Secret is what was hidden in the offer to that hello for this challenge. It is set for methods that have an Offer.
	Secret func(hello []byte) [32]byte
	// Keys are the published keys of the issuer that Method.Issuer named, where the authority does not pin them; nil: none were found.
	Keys *jose.JSONWebKeySet
}

// OfferInput is what an offer is made from.
type OfferInput struct {
	Hello  []byte
	Secret [32]byte  // to be hidden, so that only the one who said this hello finds it
	Random io.Reader // for the hiding
	Now    time.Time
	Params any
}

// TokenHead is what a token says of itself before anything of it is believed: whose keys are needed to check it.
type TokenHead struct{ Issuer, KeyID string }

// OnceToken begins the Result.Once of tokens.
const OnceToken = "token:"

// Result is what evidence proved.
type Result struct {
	// Claims are JSON values only: string, []any, map[string]any (CheckClaims).
	Claims map[string]any
	// Assurance is how much the claims are worth. It is the method's grade, or less.
	Assurance identity.Assurance
	// Anchor is what was trusted, as a revocation by issuer names it: "join-token:ID",
	// "x509:AUTHORITY". Everything derived carries it.
	Anchor string
	// Once is a value that must be used by one session key only, whichever method it is shown by: "METHOD:…", or OnceToken and a
	// digest, for a token whose issuer may be the authority of several methods; empty: none. The caller keeps the pair (Once, session key) when it commits, answers the same session
	// key again with the first effect, and refuses another key (token-spent, or instance-seen where it is kept for ever).
	Once string
	// OnceUntil is how long that must be kept: no evidence with this value is good after it. Zero: for ever, which is
	// trust on first use (of a join token: the ledger knows better).
	OnceUntil time.Time
	// Key is the SHA-256 of the SPKI of the key that signed the evidence. It is not the session key.
	Key [32]byte
	// Executables are the SHA-256 digests of programs that the platform measured as run (TPM with IMA); nil: it measures none.
	Executables map[[32]byte]bool
	// Findings say in words what of the machine is not as the authority's reference values have it, worst first: the verifier's own texts,
	// for who reads why a rule did not accept it. They are no claims; what rules may ask of stands in Claims.
	Findings []string
	// NotAfter is when the evidence itself ends, and so the last moment at which anything derived
	// from it may; zero: it has no end of its own.
	NotAfter time.Time
}

// RenewalKind is how an identity that was attested stays so.
type RenewalKind string

// The kinds of renewal.
const (
	// RenewByEvidence: as at first, with new evidence for a new challenge.
	RenewByEvidence RenewalKind = "fresh-evidence"
	// RenewByPossession: with the enrolled session key and a generation counter that rises by one
	// each time, so that two holders of a copied key are noticed when they fork it.
	RenewByPossession RenewalKind = "possession-with-counter"
)

// Renewal is what a method declares about the time after the first attestation.
type Renewal struct {
	Kind RenewalKind
	// HardLifetime: the enrolment ends after the lifetime set for it, however often it was renewed.
	// Compulsory where renewal never looks at the evidence again.
	HardLifetime bool
}

// Need is one thing that an attester must be given by the agent's configuration.
type Need struct {
	Name     string // as the configuration names it
	Doc      string
	Secret   bool // the file that holds it must be readable by its owner only
	Optional bool
	// Literal: the configuration gives the value itself (a device, an address), not the name of a file.
	Literal bool
}

// Material is what the needs were filled with, by Need.Name: the content of files, not their names.
type Material map[string][]byte

// Method is one row of the table: all that server and agent know about a method.
type Method struct {
	Name         string // [a-z][a-z0-9-]*, at most 32 bytes
	Proves       string // one sentence for the reference
	DoesNotProve string // one sentence for the reference; its README says more
	Assurance    identity.Assurance
	// Unbound: the platform gives the same evidence whoever asks for it, bound to neither challenge, environment nor session key: whoever
	// has a copy can present it once to each environment. So its result must be used once (Result.Once, for ever), and its assurance is at
	// most that of a single-use token.
	Unbound bool
	// Shared: the key that signs the evidence (Result.Key) is not the machine's own but its platform's, which signs for others too. Machine
	// are then the claims that together name one machine, for good; none: nothing in the evidence does.
	Shared  bool
	Machine []string
	// Given: the platform hands evidence out beforehand, the same until it replaces it, and it is good for the session key that used it first
	// (Result.Once). So the agent keeps its session key as long as the material stays the same, and makes another with the next one.
	Given   bool
	Renewal Renewal
	// MakesKeys: its attester is a KeyMaker.
	MakesKeys bool
	Verify    Verifier
	// MaxEvidence is the most bytes of evidence; 0: MaxEvidence of this package.
	MaxEvidence int
	// Params makes what Verify takes, once per bundle, from the bundle's authorities of this method, ordered by name. nil for
	// join-token, whose params are the ledger's own tokens.
	Params func([]authority.Authority) (any, error)
	// Issuer reads the head of a token, for methods whose issuers publish their keys; nil: none. It believes nothing.
	Issuer func(evidence []byte) (TokenHead, error)
	// Offer answers a hello, for methods that go in two rounds; nil: this one goes in one. It has checked what is cheap to check, since
	// a stranger asks for it.
	Offer func(OfferInput) ([]byte, error)
	Needs []Need
	// NewAttester makes the attester from all of the Needs. Its errors never show the material.
	NewAttester func(Material) (Attester, error)
}

// SameMachine reports whether two claims of this method, which the same key vouches for, are of one machine.
func (m Method) SameMachine(a, b map[string]any) bool {
	if !m.Shared {
		return true
	}
	for _, name := range m.Machine {
		x, _ := a[name].(string)
		if y, _ := b[name].(string); x == "" || x != y {
			return false
		}
	}
	return len(m.Machine) > 0
}

// Methods is a closed table of methods, passed as a value.
type Methods []Method

// Find gives the method of that name, or unknown-method.
func (ms Methods) Find(name string) (Method, error) {
	for _, m := range ms {
		if m.Name == name {
			return m, nil
		}
	}
	return Method{}, problem.New(problem.ReasonUnknownMethod, "no such attestation method here")
}

// NewAttesterFrom makes the attester of the named method, after checking that the material is what
// the method needs: nothing missing, and nothing that it would ignore.
func (ms Methods) NewAttesterFrom(name string, material Material) (Attester, error) {
	m, err := ms.Find(name)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(m.Needs))
	for _, n := range m.Needs {
		known[n.Name] = true
		if len(material[n.Name]) == 0 && !n.Optional {
			return nil, problem.New(problem.ReasonInvalid, "attestation method %s needs %q: %s", name, n.Name, n.Doc)
		}
	}
	for given := range material {
		if !known[given] {
			return nil, problem.New(problem.ReasonInvalid, "attestation method %s has no use for %q", name, given)
		}
	}
	return m.NewAttester(material)
}
