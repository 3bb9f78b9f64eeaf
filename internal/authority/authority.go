// Package authority is the one rule of what may be a certificate authority in a bundle: its name, its PEM, its certificates and
// their keys. The compiler of bundles and the verifier of x509 evidence both ask it, so that a bundle which comes into force is one
// that the verifier can use.
//
// Guaranteed: what Parse and Add take is unambiguous (each certificate is of one authority) and strong enough to be used. Not
// guaranteed: that a certificate is valid now; there is no clock here, and an expired root simply verifies nothing.
//
// Its place: a leaf, beside identity.
package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits on what an environment may name.
const (
	Max             = 64 // authorities
	MaxCertificates = 64 // of one authority
	maxName         = 63
	maxPEM          = 1 << 20 // bytes, of one authority
)

// Bounds on RSA moduli: below, NIST SP 800-57 part 1 gives less than 112 bits; above, checking a signature costs more than a
// stranger should be able to ask for (crypto/tls has the same bound).
const (
	minRSA = 2048
	MaxRSA = 8192
)

// ValidName says what is wrong with an authority's name, or nil. It becomes part of anchors ("x509:NAME").
func ValidName(name string) error {
	ok := name != "" && len(name) <= maxName
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		inside := i > 0 && i < len(name)-1
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || inside && (c == '-' || c == '.')
	}
	if !ok {
		return fmt.Errorf("the authority's name %.80q must be 1 to %d of a-z, 0-9, '.' and '-', and begin and end with a letter or digit", name, maxName)
	}
	return nil
}

// Parse reads an authority's certificates, which are trust anchors whether self-signed or not: PEM blocks and nothing else, each of
// a CA with a strong key. The result has at least one.
func Parse(text []byte) ([]*x509.Certificate, error) { return ParseFor("x509", text) }

// pinned are the methods whose platform signs with certificates that are no CA's: the certificate itself is what is trusted.
var pinned = []string{"aws"}

// ParseFor is Parse for one attestation method.
func ParseFor(method string, text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("there are more than %d bytes of PEM", maxPEM)
	}
	var out []*x509.Certificate
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		block, after := pem.Decode(rest)
		// pem.Decode skips what it can't read, and would drop a damaged root silently.
		if block == nil || !bytes.HasPrefix(bytes.TrimSpace(rest), []byte("-----BEGIN ")) || bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN ")) != 1 {
			return nil, errors.New("there is something besides PEM blocks")
		}
		rest = after
		if strings.Contains(block.Type, "PRIVATE KEY") {
			return nil, errors.New("there is a PRIVATE KEY: it does not belong here, and must be replaced now that it has been shown")
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return nil, fmt.Errorf("there is a PEM block of type %.40q: only CERTIFICATE is allowed", block.Type)
		}
		if len(out) == MaxCertificates {
			return nil, fmt.Errorf("there are more than %d certificates", MaxCertificates)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("a certificate can't be parsed: %w", err)
		}
		if err := check(certificate, slices.Contains(pinned, method)); err != nil {
			return nil, err
		}
		out = append(out, certificate)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return out, nil
}

func check(c *x509.Certificate, pinned bool) error {
	switch why := Weakness(c.PublicKey); {
	case pinned && why == "" && c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return fmt.Errorf("the key of the certificate of %.80q may not make signatures", c.Subject.String())
	case pinned && why == "":
	case !pinned && (!c.BasicConstraintsValid || !c.IsCA):
		return fmt.Errorf("the certificate of %.80q is not a CA's", c.Subject.String())
	case !pinned && c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("the certificate of %.80q may not sign certificates", c.Subject.String())
	case why != "":
		return fmt.Errorf("the certificate of %.80q has %s", c.Subject.String(), why)
	}
	return nil
}

// Weakness says what forbids a key from being part of any chain, or "". CAs may have P-521 too.
func Weakness(pub crypto.PublicKey) string {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return ""
		}
		return "an ECDSA key on a weak or unknown curve"
	case ed25519.PublicKey:
		return ""
	case *rsa.PublicKey:
		if bits := pub.N.BitLen(); bits < minRSA || bits > MaxRSA {
			return fmt.Sprintf("an RSA key of %d bits (%d to %d are accepted)", bits, minRSA, MaxRSA)
		}
		if pub.E < 65537 {
			return "an RSA key with an exponent below 65537 (FIPS 186-5 §A.1.1)"
		}
		return ""
	}
	return "a key of an algorithm that is not accepted"
}

// Set knows which authority each certificate is of. The zero value is empty. It is used by one goroutine at a time until nothing is
// added any more.
type Set struct {
	of map[[sha256.Size]byte]string // SHA-256 of the DER → name
}

// Add adds an authority's certificates, and refuses one that is there already: what would its authority be?
func (s *Set) Add(name string, certificates []*x509.Certificate) error {
	if s.of == nil {
		s.of = make(map[[sha256.Size]byte]string)
	}
	for _, c := range certificates {
		sum := sha256.Sum256(c.Raw)
		if other, ok := s.of[sum]; ok && other == name {
			return fmt.Errorf("the certificate of %.80q is here twice", c.Subject.String())
		} else if ok {
			return fmt.Errorf("the certificate of %.80q belongs to the authority %q already", c.Subject.String(), other)
		}
		s.of[sum] = name
	}
	return nil
}

// Of is the authority that a certificate was added for.
func (s *Set) Of(c *x509.Certificate) (name string, ok bool) {
	name, ok = s.of[sha256.Sum256(c.Raw)]
	return name, ok
}
