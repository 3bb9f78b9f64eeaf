package x509

import (
	"bytes"
	cx509 "crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// Authorities is the set of named authorities of a bundle: each a name and the CA certificates that
// count as it, which are trust anchors whether self-signed or not. It is immutable and safe for
// concurrent use; make it once per bundle.
type Authorities struct {
	pool *cx509.CertPool
	set  authority.Set
}

// NewAuthorities makes the set from name → PEM, by the rule of package authority, which the compiler of
// bundles asks too. Expired roots are accepted, and simply verify nothing.
func NewAuthorities(named map[string][]byte) (*Authorities, error) {
	if len(named) > authority.Max {
		return nil, problem.New(problem.ReasonTooLarge, "more than %d x509 authorities", authority.Max)
	}
	a := &Authorities{pool: cx509.NewCertPool()}
	// In order of names, so that the same bundle always gives the same error.
	for _, name := range slices.Sorted(maps.Keys(named)) {
		if err := a.add(name, named[name]); err != nil {
			return nil, problem.New(problem.ReasonInvalid, "x509 authority %.80q: %v", name, err)
		}
	}
	return a, nil
}

// AuthoritiesOf makes the set from authorities that were parsed already.
func AuthoritiesOf(all []authority.Authority) (*Authorities, error) {
	if len(all) > authority.Max {
		return nil, problem.New(problem.ReasonTooLarge, "more than %d x509 authorities", authority.Max)
	}
	a := &Authorities{pool: cx509.NewCertPool()}
	for _, one := range all {
		if err := a.addParsed(one.Name, one.Certificates); err != nil {
			return nil, problem.New(problem.ReasonInvalid, "x509 authority %.80q: %v", one.Name, err)
		}
	}
	return a, nil
}

func (a *Authorities) add(name string, text []byte) error {
	certificates, err := authority.Parse(text)
	if err != nil {
		return err
	}
	return a.addParsed(name, certificates)
}

func (a *Authorities) addParsed(name string, certificates []*cx509.Certificate) error {
	if err := authority.ValidName(name); err != nil {
		return err
	}
	if err := a.set.Add(name, certificates); err != nil {
		return err
	}
	for _, c := range certificates {
		a.pool.AddCert(c)
	}
	return nil
}

// authorityOf names the authority that the verified chains end at. Where cross-signed chains end at
// several it is the first in byte order: the choice must not depend on the order of a map, and a
// leaf could choose among them anyway by what it sends.
func (a *Authorities) authorityOf(chains [][]*cx509.Certificate) string {
	name := ""
	for _, chain := range chains {
		if n, ok := a.set.Of(chain[len(chain)-1]); ok && (name == "" || n < name) {
			name = n
		}
	}
	return name
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
	// pem.Decode skips a damaged block as if it were a comment, which would drop a certificate silently.
	if begun != len(ders) {
		return nil, errors.New("a PEM block is damaged")
	}
	if len(ders) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return ders, nil
}
