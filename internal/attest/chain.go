package attest

import (
	"bytes"
	"crypto/x509"
	"time"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// MaxChain is the most certificates that a chain in evidence may have, the leaf among them.
const MaxChain = 8

// ParseChain reads a chain of DER certificates of which each has at most the given number of bytes: the leaf first, then CAs' in any
// order. It is too-large, or bad-chain where a certificate stands there twice, can't be parsed, has a weak key, or behind the leaf is
// not a CA's. Whom the chain leads to remains to be seen, and whether none at all is a chain. The text instead is said behind "can't be
// parsed": what else the method takes, or nothing.
func ParseChain(ders [][]byte, most int, instead string) ([]*x509.Certificate, error) {
	if len(ders) > MaxChain {
		return nil, problem.New(problem.ReasonTooLarge, "the chain has more than %d certificates", MaxChain)
	}
	certs := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if len(der) > most {
			return nil, problem.New(problem.ReasonTooLarge, "certificate %d has more than %d bytes", i+1, most)
		}
		for j := range i {
			// Repeats cost work in the search for a chain and mean nothing.
			if bytes.Equal(ders[j], der) {
				return nil, problem.New(problem.ReasonBadChain, "certificate %d stands in the chain twice", i+1)
			}
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			// The cause's own words may quote the certificate, so they stay inside.
			p := problem.New(problem.ReasonBadChain, "certificate %d of the chain can't be parsed%s", i+1, instead)
			p.Err = err
			return nil, p
		}
		if why := authority.Weakness(cert.PublicKey); why != "" {
			return nil, problem.New(problem.ReasonBadChain, "certificate %d of the chain has %s", i+1, why)
		}
		if i > 0 && (!cert.BasicConstraintsValid || !cert.IsCA) {
			return nil, problem.New(problem.ReasonBadChain, "certificate %d of the chain is not a CA's", i+1)
		}
		certs[i] = cert
	}
	return certs, nil
}

// CheckValidity refuses a chain of which a certificate is not valid now, and says which: crypto/x509 would not.
func CheckValidity(certs []*x509.Certificate, now time.Time) error {
	for i, c := range certs {
		switch {
		case now.After(c.NotAfter):
			return problem.New(problem.ReasonBadChain, "certificate %d of the chain expired at %s", i+1, c.NotAfter.UTC().Format(time.RFC3339))
		case now.Before(c.NotBefore):
			return problem.New(problem.ReasonBadChain, "certificate %d of the chain is not valid before %s", i+1, c.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// LeadTo leads the first certificate, by way of the others, to one of the roots, for the usage and at the time. The error is that of
// crypto/x509: its words quote names of the certificates, so the caller says it in its own.
func LeadTo(roots *x509.CertPool, certs []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([][]*x509.Certificate, error) {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	return certs[0].Verify(opts)
}

// ChainEnd is when the first of a chain's certificates ends, and with it the chain.
func ChainEnd(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// SelfSigned reports whether a certificate vouches for itself.
func SelfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}
