// Package x509 is the attestation method "x509": a machine proves that it holds the key of a
// certificate which chains to an authority named in the bundle.
//
// Guaranteed: the chain was valid at Input.Now under RFC 5280 as crypto/x509 implements it (name
// constraints included; SHA-1 and MD5 signatures are not accepted), for client authentication; every
// key in it is strong enough (keys.go); the leaf is an end-entity certificate; and its key signed
// this challenge for this environment and session key with the one algorithm that its type allows.
// Not guaranteed: that the certificate was not revoked by its authority (no CRL or OCSP is asked:
// a verifier does no I/O), and that the key never left the machine. README.md says more.
//
// Names in the certificate become claims and are compared with nothing here: identity rules do that.
// It is one method of package attest, and imports it and the leaves below.
package x509

import (
	"context"
	"crypto"
	cx509 "crypto/x509"
	"encoding/pem"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first half of its anchors ("x509:AUTHORITY").
const Name = "x509"

// Limits on evidence.
const (
	MaxChain       = attest.MaxChain
	maxCertificate = 16 << 10 // bytes of DER
	maxSignature   = authority.MaxRSA / 8
)

// What an agent needs for this method.
const (
	NeedCertificate = "certificate"
	NeedKey         = "key"
)

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name:   Name,
		Proves: "possession of the private key of a certificate that chains to an authority named in the bundle and is valid now",
		DoesNotProve: "that the authority has not revoked the certificate, that the key never left the machine, " +
			"or what runs on it",
		Assurance: identity.Key,
		Renewal:   attest.Renewal{Kind: attest.RenewByEvidence},
		Verify:    Verify,
		Params: func(all []authority.Authority) (any, error) {
			set, err := AuthoritiesOf(all)
			return Params{Authorities: set}, err
		},
		Needs: []attest.Need{
			{Name: NeedCertificate, Doc: "PEM of the machine's certificate and then of its issuers, up to 8 in all"},
			{Name: NeedKey, Doc: "PEM of the certificate's private key (PKCS #8, SEC 1 or PKCS #1, not encrypted)", Secret: true},
		},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			return NewAttesterPEM(m[NeedCertificate], m[NeedKey])
		},
	}
}

// Params is what Verify needs of the environment: the authorities of the bundle in force.
type Params struct {
	Authorities *Authorities
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Chain     [][]byte `json:"chain"`     // DER, the leaf first; the others in any order
	Signature []byte   `json:"signature"` // by the leaf's key over Binding.Message
}

// Verify is the verifier; its Params are of type Params.
//
// KeyUsages is client authentication: a certificate without extended key usages may do it, one that
// names usages must name it (or "any"), so that a web server's certificate from the same authority
// is not a machine's. No host name is checked.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.Begin[Params](in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	if params.Authorities == nil {
		return attest.Result{}, problem.New(problem.ReasonInternal, "verifier of x509 got no authorities")
	}
	var ev evidence
	if err := attest.DecodeEvidence(in.Evidence, &ev); err != nil {
		return attest.Result{}, err
	}
	certs, err := parseChain(ev.Chain)
	if err != nil {
		return attest.Result{}, err
	}
	// The signature first: it is the cheaper check, and a stranger without any key gets no further.
	leaf := certs[0]
	if err := checkLeaf(leaf); err != nil {
		return attest.Result{}, err
	}
	if len(ev.Signature) > maxSignature {
		return attest.Result{}, problem.New(problem.ReasonBadProof, "the signature has more than %d bytes", maxSignature)
	}
	if err := checkSignature(leaf.PublicKey, in.Binding.Message(), ev.Signature); err != nil {
		return attest.Result{}, err
	}
	chains, err := verifyChain(certs, params.Authorities, in.Now)
	if err != nil {
		return attest.Result{}, err
	}
	return result(leaf, params.Authorities, chains)
}

func parseChain(ders [][]byte) ([]*cx509.Certificate, error) {
	if len(ders) == 0 {
		return nil, problem.New(problem.ReasonInvalid, "the evidence holds no certificate")
	}
	return attest.ParseChain(ders, maxCertificate, "")
}

// checkLeaf refuses a first certificate that is none of a machine.
func checkLeaf(leaf *cx509.Certificate) error {
	switch {
	case leaf.IsCA:
		return problem.New(problem.ReasonBadChain, "the first certificate is a CA's, not a machine's")
	case attest.SelfSigned(leaf):
		return problem.New(problem.ReasonBadChain, "the first certificate is self-signed")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&cx509.KeyUsageDigitalSignature == 0:
		return problem.New(problem.ReasonBadChain, "the certificate's key may not make signatures (key usage)")
	}
	return nil
}

func verifyChain(certs []*cx509.Certificate, authorities *Authorities, now time.Time) ([][]*cx509.Certificate, error) {
	if err := attest.CheckValidity(certs, now); err != nil {
		return nil, err
	}
	chains, err := attest.LeadTo(authorities.pool, certs, cx509.ExtKeyUsageClientAuth, now)
	if err != nil {
		p := problem.New(problem.ReasonBadChain, "%s", chainMessage(err))
		p.Err = err
		return nil, p
	}
	return chains, nil
}

// chainMessage says what crypto/x509 found, without the names that its own messages quote.
func chainMessage(err error) string {
	switch err := err.(type) {
	case cx509.UnknownAuthorityError:
		return "the certificate does not lead to an authority named in the bundle"
	case cx509.UnhandledCriticalExtension:
		return "a certificate of the chain has a critical extension that is not understood"
	case cx509.CertificateInvalidError:
		switch err.Reason {
		case cx509.Expired:
			return "the authority's own certificate is not valid now"
		case cx509.IncompatibleUsage:
			return "the certificate is not for client authentication (extended key usage)"
		case cx509.NotAuthorizedToSign:
			return "a certificate of the chain was issued by one that is not a CA"
		case cx509.TooManyIntermediates:
			return "the chain is longer than one of its CAs allows"
		case cx509.CANotAuthorizedForThisName, cx509.CANotAuthorizedForExtKeyUsage, cx509.UnconstrainedName:
			return "a CA of the chain may not issue a certificate for this name or use"
		}
	}
	return "the chain is not valid"
}

func result(leaf *cx509.Certificate, authorities *Authorities, chains [][]*cx509.Certificate) (attest.Result, error) {
	authority := authorities.authorityOf(chains)
	if authority == "" {
		// Every root of the pool has a name, so this can't be; fail closed all the same.
		return attest.Result{}, problem.New(problem.ReasonInternal, "a chain ends at a root without a name")
	}
	key, err := attest.Thumbprint(leaf.PublicKey)
	if err != nil {
		return attest.Result{}, err
	}
	claims, err := claimsOf(leaf, authority, key)
	if err != nil {
		return attest.Result{}, err
	}
	return attest.Result{
		Claims:    claims,
		Assurance: identity.Key,
		Anchor:    Anchor(authority),
		Key:       key,
		NotAfter:  end(authority, authorities, chains),
	}, nil
}

// end is when the chain that lives longest, among those to the authority, stops being valid.
func end(authority string, authorities *Authorities, chains [][]*cx509.Certificate) time.Time {
	var best time.Time
	for _, chain := range chains {
		if authorities.authorityOf([][]*cx509.Certificate{chain}) != authority {
			continue
		}
		if first := attest.ChainEnd(chain); first.After(best) {
			best = first
		}
	}
	return best
}

// Anchor is what a revocation names to reach everything that came from one authority.
func Anchor(authority string) string { return Name + ":" + authority }

type attester struct {
	chain  [][]byte
	signer crypto.Signer
}

// NewAttester makes the machine's half from a chain of DER certificates, the leaf first, and the
// leaf's key, which may live in hardware. It refuses what Verify would refuse of any challenge,
// except for what needs the authorities and the time.
func NewAttester(chain [][]byte, signer crypto.Signer) (attest.Attester, error) {
	certs, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	if err := checkLeaf(certs[0]); err != nil {
		return nil, err
	}
	if _, _, err := digestFor(certs[0].PublicKey, nil); err != nil {
		return nil, err
	}
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(certs[0].PublicKey) {
		return nil, problem.New(problem.ReasonInvalid, "the private key is not the one of the first certificate")
	}
	return attester{chain, signer}, nil
}

// NewAttesterPEM is NewAttester on PEM: certificates, and one unencrypted private key.
func NewAttesterPEM(certificates, key []byte) (attest.Attester, error) {
	chain, err := certificatesOf(certificates, MaxChain)
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "the certificate's file: %v", err)
	}
	signer, err := signerOf(key)
	if err != nil {
		return nil, err
	}
	return NewAttester(chain, signer)
}

// signerOf shows nothing of the file in its errors.
func signerOf(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block != nil && block.Type == "EC PARAMETERS" {
		// openssl ecparam writes this block before the key; the key names its curve itself.
		_, rest := pem.Decode(text)
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, problem.New(problem.ReasonInvalid, "the private key's file holds no PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = cx509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = cx509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = cx509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, problem.New(problem.ReasonInvalid, "the private key's file holds a block that is not an unencrypted private key")
	}
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "the private key can't be parsed")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, problem.New(problem.ReasonInvalid, "the private key can't sign")
	}
	return signer, nil
}

// Attest signs the binding with the certificate's key.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	signature, err := sign(a.signer, b.Message())
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "sign with the certificate's key")
	}
	return attest.EncodeEvidence(evidence{Chain: a.chain, Signature: signature})
}
