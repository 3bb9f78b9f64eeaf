package tpm

import (
	"context"
	"crypto/x509"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

var _ attest.Measurer = (*attester)(nil)

// Measure reads what an authority would know this machine by (attest.Measurer): the endorsement key that its hello names, and as one set
// of reference values what it has booted. Components stand in for the values of the PCRs that hold programs, where the event log
// explains these: one more program then differs in one digest. Nothing of it is proved: it is this machine's word, for a person who knows
// that it is in order.
func (a *attester) Measure(ctx context.Context, pcrs []int) (authority.Authority, error) {
	if len(pcrs) == 0 {
		pcrs = authority.DefaultPCRs()
	}
	if !validPCRs(pcrs) {
		return authority.Authority{}, problem.New(problem.ReasonInvalid, "PCRs are some of 0 to %d, ascending", maxPCR)
	}
	var ek []byte
	var chain [][]byte
	var read []byte
	err := a.device.do(ctx, func(s *session) error {
		e, certificates, err := a.choose(s)
		if err != nil {
			return err
		}
		key, err := s.endorsementKey(e, isOf(certificates))
		if err != nil {
			return err
		}
		s.drop(key.handle)
		ek, chain = key.public, certificates
		read, err = readPCRs(s, pcrs)
		return err
	})
	if err != nil {
		return authority.Authority{}, err
	}
	out := authority.Authority{Method: Name, PCRs: pcrs}
	p, _ := parsePublic(ek)
	key, err := p.key()
	if err != nil {
		return authority.Authority{}, err
	}
	sum, err := attest.Thumbprint(key)
	if err != nil {
		return authority.Authority{}, err
	}
	out.EndorsementKeys = [][32]byte{sum}
	for _, der := range chain {
		if cert, err := x509.ParseCertificate(der); err == nil {
			out.Certificates = append(out.Certificates, cert)
		}
	}
	values := map[int][32]byte{}
	for i, pcr := range pcrs {
		values[pcr] = [32]byte(read[32*i:])
	}
	set, err := a.reference(values, pcrs)
	out.References = []authority.Reference{set}
	return out, err
}

// reference is the set of reference values that these values fit.
func (a *attester) reference(values map[int][32]byte, pcrs []int) (authority.Reference, error) {
	r := authority.Reference{PCRs: map[int][][32]byte{}}
	raw, err := readFile(a.log, MaxEventLog)
	if err != nil && a.needLog {
		return r, problem.New(problem.ReasonInvalid, "the event log can't be read, or has more than %d bytes", MaxEventLog)
	}
	x, err := explain(raw, values, pcrs)
	if err != nil {
		return r, err
	}
	component := map[int]bool{}
	for _, pcr := range componentPCRs {
		component[pcr] = true
	}
	seen := map[[32]byte]bool{}
	for _, pcr := range pcrs {
		if !component[pcr] || !x.whole[pcr] {
			r.PCRs[pcr] = [][32]byte{values[pcr]}
			continue
		}
		for _, e := range x.events(pcr) {
			if !marker(e.digest) && !seen[e.digest] {
				seen[e.digest] = true
				r.Events = append(r.Events, e.digest)
			}
		}
	}
	return r, nil
}
