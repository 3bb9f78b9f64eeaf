package agent

import (
	"context"
	"crypto"
	"io"
	"slices"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// The machine's half of a method has a TPM, a platform or a file to ask. What fails there is nothing that a server said, and is told apart
// from it here, where it is still known who was asked.

// half is an attester whose failures are this machine's own.
type half struct{ attest.Attester }

// Attest makes evidence.
func (h half) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	evidence, err := h.Attester.Attest(ctx, b)
	return evidence, ownFailure(err)
}

// greetingHalf is a half that goes in two rounds.
type greetingHalf struct {
	half
	greeter attest.Greeter
}

// Hello is what it says first.
func (h greetingHalf) Hello(ctx context.Context) ([]byte, error) {
	hello, err := h.greeter.Hello(ctx)
	return hello, ownFailure(err)
}

// Answer makes evidence from the server's offer.
func (h greetingHalf) Answer(ctx context.Context, b attest.Binding, hello, offer []byte) ([]byte, error) {
	evidence, err := h.greeter.Answer(ctx, b, hello, offer)
	return evidence, ownFailure(err)
}

// own gives an attester for a client to ask, which goes in as many rounds as x does.
func own(x attest.Attester) attest.Attester {
	if g, ok := x.(attest.Greeter); ok {
		return greetingHalf{half{x}, g}
	}
	return half{x}
}

// ownKeys are keys of this machine's hardware, whose failures are its own.
type ownKeys struct{ attest.KeyMaker }

// NewKey makes a key.
func (k ownKeys) NewKey(ctx context.Context) (crypto.Signer, []byte, error) {
	key, blob, err := k.KeyMaker.NewKey(ctx)
	if err != nil {
		return nil, nil, ownFailure(err)
	}
	return ownKey{key}, blob, nil
}

// LoadKey makes a key again.
func (k ownKeys) LoadKey(ctx context.Context, blob []byte) (crypto.Signer, error) {
	key, err := k.KeyMaker.LoadKey(ctx, blob)
	if err != nil {
		return nil, ownFailure(err)
	}
	return ownKey{key}, nil
}

// ownKey asks the hardware each time that it signs.
type ownKey struct{ crypto.Signer }

// Sign signs a digest.
func (k ownKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.Signer.Sign(random, digest, opts)
	return signature, ownFailure(err)
}

// withoutEvidence are the reasons of class not-proved by which the machine's half says that it has nothing to show.
var withoutEvidence = []problem.Reason{problem.ReasonNotProved, problem.ReasonReset}

// ownFailure marks what failed on this machine. That it has something to show which is not good for here (a token of another
// environment, a certificate of other hardware) stays what was not proved, whoever of the two finds it out.
func ownFailure(err error) error {
	if err == nil {
		return nil
	}
	p := problem.As(err)
	if classOf(p).state == NotProved && !slices.Contains(withoutEvidence, p.Reason) {
		return err
	}
	if p.Fix == "" { // the reason's own is about servers and requests
		p = p.WithFix("look at this machine: its hardware, or the platform that it runs on, does not do what the attestation method asks of it")
	}
	return local{p}
}
