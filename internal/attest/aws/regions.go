package aws

import (
	cx509 "crypto/x509"
	"regexp"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// Regions is the set of AWS's certificates that a bundle pins, each for one region. It is immutable and safe for concurrent use.
//
// All of AWS's certificates have the same name, and nothing in one says of which region it is. So the authority's name says it: it is the
// region ("eu-west-1"), or ends in a dot and the region ("aws.eu-west-1").
type Regions struct{ signers []*signer }

// signer is a pinned certificate. It is AWS's own and self-signed, so there is no chain: it signs, or it doesn't.
type signer struct {
	authority, region string
	certificate       *cx509.Certificate
	key               [32]byte
	maxAge            time.Duration
}

// region is an AWS region: "eu-west-1", "us-gov-east-1", "eusc-de-east-1".
var region = regexp.MustCompile(`^[a-z]{2,5}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$`)

// RegionsOf makes the set from a bundle's authorities.
func RegionsOf(all []authority.Authority) (*Regions, error) {
	r := &Regions{}
	var set authority.Set
	for _, a := range all {
		of := a.Name[strings.LastIndexByte(a.Name, '.')+1:]
		if !region.MatchString(of) {
			return nil, problem.New(problem.ReasonInvalid, "aws authority %.80q: its name must be a region, or end in a dot and a region", a.Name)
		}
		if err := set.Add(a.Name, a.Certificates); err != nil {
			return nil, problem.New(problem.ReasonInvalid, "aws authority %.80q: %v", a.Name, err)
		}
		maxAge := a.MaxAge
		if maxAge == 0 {
			maxAge = DefaultMaxAge
		}
		for _, c := range a.Certificates {
			key, err := attest.Thumbprint(c.PublicKey)
			if err != nil {
				return nil, err
			}
			if why := authority.Weakness(c.PublicKey); why != "" {
				return nil, problem.New(problem.ReasonInvalid, "aws authority %.80q: a certificate has %s", a.Name, why)
			}
			r.signers = append(r.signers, &signer{a.Name, of, c, key, maxAge})
		}
	}
	return r, nil
}

// signerOf finds the pinned certificate that the message names, which must be valid now and must have signed it. Where several have the
// same name and serial number, the one that signed counts.
func (r *Regions) signerOf(s *cms.Signed, now time.Time) (*signer, error) {
	var last error = problem.New(problem.ReasonBadChain, "the document is signed by no certificate that the bundle pins")
	for _, one := range r.signers {
		if !s.IsSigner(one.certificate) {
			continue
		}
		if err := s.Verify(one.certificate); err != nil {
			last = err
			continue
		}
		switch c := one.certificate; {
		case now.After(c.NotAfter):
			return nil, problem.New(problem.ReasonBadChain, "the certificate that the bundle pins for this region expired at %s", c.NotAfter.UTC().Format(time.RFC3339)).
				WithFix("import AWS's present certificate of the region (`bailment roots import`)")
		case now.Before(c.NotBefore):
			return nil, problem.New(problem.ReasonBadChain, "the certificate that the bundle pins for this region is not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
		}
		return one, nil
	}
	return nil, last
}
