package x509

import (
	"bytes"
	"crypto/sha256"
	cx509 "crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/bailment/bailment/internal/problem"
)

// Limits on what an environment may name.
const (
	MaxAuthorities    = 256
	maxRootsPerName   = 64
	maxAuthorityName  = 63
	maxAuthorityBytes = 1 << 20 // PEM of one authority
)

// Authorities is the set of named authorities of a bundle: each a name and the CA certificates that
// count as it, which are trust anchors whether self-signed or not. It is immutable and safe for
// concurrent use; make it once per bundle.
type Authorities struct {
	pool  *cx509.CertPool
	names map[[32]byte]string // SHA-256 of a root's DER → the authority's name
}

// NewAuthorities makes the set from name → PEM. It refuses what would be ambiguous or useless: a
// certificate under two names (what is its authority?), one that is no CA, weak keys, anything in
// the PEM that is not a certificate. Expired roots are accepted, and simply verify nothing.
func NewAuthorities(named map[string][]byte) (*Authorities, error) {
	if len(named) > MaxAuthorities {
		return nil, problem.New(problem.ReasonTooLarge, "more than %d x509 authorities", MaxAuthorities)
	}
	a := &Authorities{pool: cx509.NewCertPool(), names: make(map[[32]byte]string)}
	// In order of names, so that the same bundle always gives the same error.
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if err := a.add(name, named[name]); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *Authorities) add(name string, text []byte) error {
	if !ValidAuthorityName(name) {
		return problem.New(problem.ReasonInvalid, "x509 authority %q: a name has 1 to %d of a-z, 0-9, '.' and '-', and begins and ends with a letter or digit", name, maxAuthorityName)
	}
	if len(text) > maxAuthorityBytes {
		return problem.New(problem.ReasonTooLarge, "x509 authority %s: more than %d bytes of PEM", name, maxAuthorityBytes)
	}
	ders, err := certificatesOf(text, maxRootsPerName)
	if err != nil {
		return problem.New(problem.ReasonInvalid, "x509 authority %s: %v", name, err)
	}
	for i, der := range ders {
		cert, err := cx509.ParseCertificate(der)
		if err != nil {
			return problem.New(problem.ReasonInvalid, "x509 authority %s: certificate %d: %v", name, i+1, err)
		}
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return problem.New(problem.ReasonInvalid, "x509 authority %s: certificate %d is not a CA's", name, i+1)
		}
		if cert.KeyUsage != 0 && cert.KeyUsage&cx509.KeyUsageCertSign == 0 {
			return problem.New(problem.ReasonInvalid, "x509 authority %s: certificate %d may not sign certificates (key usage)", name, i+1)
		}
		if why := weakness(cert.PublicKey); why != "" {
			return problem.New(problem.ReasonInvalid, "x509 authority %s: certificate %d has %s", name, i+1, why)
		}
		sum := sha256.Sum256(der)
		if other, ok := a.names[sum]; ok {
			return problem.New(problem.ReasonInvalid, "x509 authority %s: certificate %d stands under %s already", name, i+1, other)
		}
		a.names[sum] = name
		a.pool.AddCert(cert)
	}
	return nil
}

// authorityOf names the authority that the verified chains end at. Where cross-signed chains end at
// several it is the first in byte order: the choice must not depend on the order of a map, and a
// leaf could choose among them anyway by what it sends.
func (a *Authorities) authorityOf(chains [][]*cx509.Certificate) string {
	name := ""
	for _, chain := range chains {
		sum := sha256.Sum256(chain[len(chain)-1].Raw)
		if n, ok := a.names[sum]; ok && (name == "" || n < name) {
			name = n
		}
	}
	return name
}

// ValidAuthorityName reports whether name may name an authority: it becomes part of identities and
// of anchors ("x509:NAME").
func ValidAuthorityName(name string) bool {
	if name == "" || len(name) > maxAuthorityName {
		return false
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' && c != '.' || i == 0 || i == len(name)-1) {
			return false
		}
	}
	return true
}

// certificatesOf reads PEM that holds certificates and, outside of the blocks, comments only.
func certificatesOf(text []byte, most int) ([][]byte, error) {
	begun := bytes.Count(text, []byte("-----BEGIN"))
	var ders [][]byte
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("a PEM block is not a CERTIFICATE")
		}
		if len(ders) == most {
			return nil, fmt.Errorf("more than %d certificates", most)
		}
		ders = append(ders, block.Bytes)
	}
	// pem.Decode skips a damaged block as if it were a comment, which would drop a root silently.
	if begun != len(ders) {
		return nil, errors.New("a PEM block is damaged")
	}
	if len(ders) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return ders, nil
}
