// Package attest is the contract of attestation, in the terms of RFC 9334 (RATS): an attester makes
// evidence, a verifier appraises it, and the result is claims and a grade of assurance.
//
// Guaranteed by every method: its evidence is bound to one method, one environment, one challenge
// and one session key (Binding), so it can neither be replayed nor relayed; it has exactly one
// encoding (DecodeEvidence); its claims are bounded, printable, and survive a JSON round trip
// unchanged, so that what the ledger keeps is what the decision saw; and its verifier is a pure
// function of its Input: no clock, no I/O, no randomness, nothing kept.
//
// Not guaranteed: that a challenge was issued by this server, is fresh, or was not answered before,
// and that a value in Result.Once was not used before. That is state, and the caller checks it where
// it decides. What each method doesn't prove stands in its README.
//
// Both halves of one method live in one folder below this one; methods.All is the table of them.
// This package imports the leaves identity and problem only.
package attest

import (
	"context"
	"time"

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

// Input is all that a verifier may look at.
type Input struct {
	Binding  Binding   // what the evidence must be bound to, from the caller's own challenge
	Evidence []byte    // from the stranger
	Now      time.Time // the store's time (DESIGN.md §4)
	Params   any       // the method's own Params type; another type is a defect of the caller
}

// Result is what evidence proved.
type Result struct {
	// Claims are JSON values only: string, []any, map[string]any (CheckClaims).
	Claims map[string]any
	// Assurance is how much the claims are worth. It is the method's grade, or less.
	Assurance identity.Assurance
	// Anchor is what was trusted, as a revocation by issuer names it: "join-token:ID",
	// "x509:AUTHORITY". Everything derived carries it.
	Anchor string
	// Once is a value, unique across methods, that must be used by one session key only; empty:
	// none. The caller keeps the pair (Once, session key) when it commits, answers the same session
	// key again with the first effect, and refuses another key as token-spent.
	Once string
	// Key is the SHA-256 of the SPKI of the key that signed the evidence. It is not the session key.
	Key [32]byte
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
}

// Material is what the needs were filled with, by Need.Name: the content of files, not their names.
type Material map[string][]byte

// Method is one row of the table: all that server and agent know about a method.
type Method struct {
	Name         string // [a-z][a-z0-9-]*, at most 32 bytes
	Proves       string // one sentence for the reference
	DoesNotProve string // one sentence for the reference; its README says more
	Assurance    identity.Assurance
	Renewal      Renewal
	Verify       Verifier
	Needs        []Need
	// NewAttester makes the attester from all of the Needs. Its errors never show the material.
	NewAttester func(Material) (Attester, error)
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
