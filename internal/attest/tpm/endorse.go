package tpm

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// Limits on a chain, as for the method x509.
const (
	maxChain       = attest.MaxChain
	maxCertificate = 16 << 10 // bytes of DER
	maxName        = 64       // bytes of one attribute of the TPM's name
)

// Object identifiers of the TCG EK Credential Profile and RFC 5280.
var (
	oidAlternativeName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidEndorsement     = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidManufacturer    = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel           = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion         = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// trust is the bundle's authorities of this method.
type trust struct {
	all    []authority.Authority // ordered by name
	pool   *x509.CertPool
	set    authority.Set
	listed map[[32]byte]int // SPKI's digest → index in all
}

func newTrust(all []authority.Authority) (*trust, error) {
	if len(all) > authority.Max {
		return nil, problem.New(problem.ReasonTooLarge, "more than %d tpm authorities", authority.Max)
	}
	t := &trust{all: slices.Clone(all), pool: x509.NewCertPool(), listed: map[[32]byte]int{}}
	slices.SortFunc(t.all, func(a, b authority.Authority) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	for i, a := range t.all {
		refuse := func(why any) error {
			return problem.New(problem.ReasonInvalid, "tpm authority %.80q: %v", a.Name, why)
		}
		if err := authority.ValidName(a.Name); err != nil {
			return nil, refuse(err)
		}
		if len(a.Certificates) == 0 && len(a.EndorsementKeys) == 0 {
			return nil, refuse("it has neither certificates nor endorsement keys")
		}
		if !validPCRs(pcrsOf(a)) {
			return nil, refuse("its PCRs are not some of 0 to 23, ascending")
		}
		if err := t.set.Add(a.Name, a.Certificates); err != nil {
			return nil, refuse(err)
		}
		for _, c := range a.Certificates {
			t.pool.AddCert(c)
		}
		for _, key := range a.EndorsementKeys {
			if other, ok := t.listed[key]; ok {
				return nil, refuse("it lists an endorsement key that " + t.all[other].Name + " lists already")
			}
			t.listed[key] = i
		}
	}
	return t, nil
}

// machine is what a hello is of, once it is trusted.
type machine struct {
	ek, ak      public
	akKey       crypto.PublicKey
	ekSum       [32]byte // SHA-256 of the endorsement key's SPKI: the machine's stable name
	akSum       [32]byte
	authority   authority.Authority
	certificate bool      // by certificate; else by its digest
	notAfter    time.Time // of the chain; zero: no end
	model       tpmModel
}

// tpmModel is what the certificate says of the TPM, in the manufacturer's words.
type tpmModel struct{ manufacturer, model, version string }

// machine appraises a hello, cheap checks first.
func (p Params) machine(h hello, now time.Time) (machine, error) {
	var m machine
	var err error
	var ekKey crypto.PublicKey
	if m.ek, ekKey, err = checkEndorsement(h.EK, p.heads); err != nil {
		return machine{}, err
	}
	if m.ak, m.akKey, err = checkAttestationKey(h.AK); err != nil {
		return machine{}, err
	}
	if m.ekSum, err = attest.Thumbprint(ekKey); err != nil {
		return machine{}, err
	}
	if m.akSum, err = attest.Thumbprint(m.akKey); err != nil {
		return machine{}, err
	}
	if h.Chain == nil {
		return machine{}, problem.New(problem.ReasonInvalid, "the chain is null; an empty one has its own form")
	}
	if i, ok := p.trust.listed[m.ekSum]; ok {
		// Listed by somebody who looked. The certificate isn't asked, so that a key whose certificate nobody can read can be listed;
		// nothing that it says is claimed.
		m.authority = p.trust.all[i]
		return m, nil
	}
	certs, err := attest.ParseChain(h.Chain, maxCertificate, "; the endorsement key can be listed by its digest instead")
	if err != nil {
		return machine{}, err
	}
	if len(certs) == 0 {
		return machine{}, problem.New(problem.ReasonBadChain, "the endorsement key has no certificate, and no authority of the bundle lists it")
	}
	if pub, ok := ekKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(certs[0].PublicKey) {
		return machine{}, problem.New(problem.ReasonBadChain, "the certificate is of another endorsement key")
	}
	m.certificate = true
	return m, p.trust.verify(&m, certs, now)
}

// verify leads the certificate to an authority, at that time, under RFC 5280 and the TCG's profile.
func (t *trust) verify(m *machine, certs []*x509.Certificate, now time.Time) error {
	leaf := certs[0]
	if err := checkLeaf(leaf); err != nil {
		return err
	}
	if err := attest.CheckValidity(certs, now); err != nil {
		return err
	}
	model, err := readModel(leaf)
	if err != nil {
		return err
	}
	m.model = model
	// The TCG has the alternative name critical where the subject is empty (RFC 5280 §4.2.1.6), and in it only a directory name, which
	// crypto/x509 doesn't read. readModel has just read it, so it is handled; no other critical extension is.
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidAlternativeName.Equal)
	// The TCG's usage isn't known to crypto/x509: checkLeaf has looked for it.
	chains, err := attest.LeadTo(t.pool, certs, x509.ExtKeyUsageAny, now)
	if err != nil {
		p := problem.New(problem.ReasonBadChain, "%s", chainMessage(err))
		p.Err = err
		return p
	}
	return t.settle(m, chains)
}

// settle takes the first authority, by name, that a chain ends at, and the latest end among its chains.
func (t *trust) settle(m *machine, chains [][]*x509.Certificate) error {
	best := -1
	for _, chain := range chains {
		name, ok := t.set.Of(chain[len(chain)-1])
		i := slices.IndexFunc(t.all, func(a authority.Authority) bool { return a.Name == name })
		if !ok || i < 0 || best >= 0 && i > best {
			continue
		}
		end := attest.ChainEnd(chain)
		if i != best || end.After(m.notAfter) {
			best, m.notAfter = i, end
		}
	}
	if best < 0 {
		// Every root of the pool has a name, so this can't be; fail closed all the same.
		return problem.New(problem.ReasonInternal, "a chain ends at a root without a name")
	}
	m.authority = t.all[best]
	return nil
}

// checkLeaf holds the first certificate to the TCG's profile, as far as manufacturers follow it: the usage may be absent, but no other
// may stand in its place.
func checkLeaf(leaf *x509.Certificate) error {
	usages := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage)
	switch {
	case leaf.IsCA:
		return problem.New(problem.ReasonBadChain, "the first certificate is a CA's, not an endorsement key's")
	case attest.SelfSigned(leaf):
		return problem.New(problem.ReasonBadChain, "the endorsement key's certificate is self-signed")
	case usages > 0 && !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEndorsement.Equal):
		return problem.New(problem.ReasonBadChain, "the certificate is not one of an endorsement key (extended key usage)")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0:
		return problem.New(problem.ReasonBadChain, "the certificate's key may not take secrets (key usage)")
	}
	return nil
}

// chainMessage says what crypto/x509 found, without the names that its own messages quote.
func chainMessage(err error) string {
	switch err := err.(type) {
	case x509.UnknownAuthorityError:
		return "the endorsement key's certificate does not lead to an authority named in the bundle"
	case x509.UnhandledCriticalExtension:
		return "a certificate of the chain has a critical extension that is not understood"
	case x509.CertificateInvalidError:
		switch err.Reason {
		case x509.Expired:
			return "the authority's own certificate is not valid now"
		case x509.TooManyIntermediates:
			return "the chain is longer than one of its CAs allows"
		}
	}
	return "the chain is not valid"
}

// readModel reads the alternative name (TCG EK Credential Profile): general names, of which directory names may hold the
// manufacturer, model and version.
func readModel(leaf *x509.Certificate) (tpmModel, error) {
	var out tpmModel
	bad := problem.New(problem.ReasonBadChain, "the certificate's alternative name can't be read")
	for _, ext := range leaf.Extensions {
		if !ext.Id.Equal(oidAlternativeName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) > 0 || len(names) > maxChain {
			return tpmModel{}, bad
		}
		for _, n := range names {
			if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
				continue // other kinds of name say nothing that is claimed
			}
			var rdns pkix.RDNSequence
			if rest, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil || len(rest) > 0 {
				return tpmModel{}, bad
			}
			for _, rdn := range rdns {
				for _, a := range rdn {
					if err := out.set(a); err != nil {
						return tpmModel{}, err
					}
				}
			}
		}
	}
	return out, nil
}

func (t *tpmModel) set(a pkix.AttributeTypeAndValue) error {
	field := map[string]*string{
		oidManufacturer.String(): &t.manufacturer, oidModel.String(): &t.model, oidVersion.String(): &t.version,
	}[a.Type.String()]
	if field == nil {
		return nil
	}
	text, ok := a.Value.(string)
	if !ok || len(text) > maxName || *field != "" {
		return problem.New(problem.ReasonBadChain, "the certificate's name of the TPM is not one short text each")
	}
	*field = text
	return attest.CheckClaimText(text)
}
