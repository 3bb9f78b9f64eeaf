package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

const bootstrapTimeout = 15 * time.Second

// Bootstrap finds the environment that a bootstrap string names, and proves that it is that one, knowing nothing
// but the string:
//
//  1. It connects trusting nobody. The handshake must fail, and the failure holds the chain that was shown, whose
//     last certificate is the genesis CA, if the server is what it should be. Nothing was sent.
//  2. It connects again, trusting that CA alone, and asks for the genesis document, a question without secrets.
//  3. The document's SHA-256 must be the string's digest, its name the string's, and the CA in it the one used.
//
// Whoever is in between can make it fail, and can't make it believe. Errors: invalid (the string), unreachable,
// not-authentic, wrong-environment. Of o, only Dialer and CallTimeout are used. It is not retried.
func Bootstrap(ctx context.Context, bootstrap string, o Options) (*Trust, error) {
	b, err := identity.ParseBootstrap(bootstrap)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	ca, err := presentedRoot(ctx, b, o)
	if err != nil {
		return nil, err
	}
	// Provisional: it authenticates nothing yet but that both connections see the same CA.
	provisional := &Trust{Environment: b.Env, Address: b.Addr(), Genesis: b.Genesis, CA: ca}
	c, err := Dial(provisional, Options{Dialer: o.Dialer, CallTimeout: o.CallTimeout, Attempts: 1})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.Environment.GetEnvironment(ctx, &v1.GetEnvironmentRequest{})
	if err != nil {
		return nil, err
	}
	if genesisDigest(r.GenesisDocument) != b.Genesis {
		return nil, problem.New(problem.ReasonNotAuthentic, "the server at %s is of another genesis than the bootstrap string names", b.Addr())
	}
	t, err := trustOf(b, r.GenesisDocument)
	if err != nil {
		return nil, err
	}
	if r.Name != b.Env {
		return nil, problem.New(problem.ReasonWrongEnvironment, "the server calls itself %q, the bootstrap string is of %q", r.Name, b.Env)
	}
	if !bytes.Equal(t.CA.Raw, ca.Raw) {
		return nil, problem.New(problem.ReasonNotAuthentic, "the server at %s shows a CA that is not the one of its genesis document", b.Addr())
	}
	return t.withKeys(r.CheckpointKeys)
}

// presentedRoot makes a handshake that must fail, to see the chain.
func presentedRoot(ctx context.Context, b identity.Bootstrap, o Options) (*x509.Certificate, error) {
	raw, err := o.dialer()(ctx, "tcp", b.Addr())
	if err != nil {
		return nil, transportProblem(ctx, err, "connecting to "+b.Addr())
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: b.Env,
		RootCAs:    x509.NewCertPool(),
	})
	err = conn.HandshakeContext(ctx)
	var unverified *tls.CertificateVerificationError
	switch {
	case err == nil:
		return nil, problem.New(problem.ReasonInternal, "a certificate was accepted although nobody is trusted")
	case !errors.As(err, &unverified) || len(unverified.UnverifiedCertificates) == 0:
		return nil, transportProblem(ctx, err, "connecting to "+b.Addr())
	}
	chain := unverified.UnverifiedCertificates
	ca := chain[len(chain)-1]
	return ca, checkRoot(ca)
}
