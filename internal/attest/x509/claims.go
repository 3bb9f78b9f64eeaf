package x509

import (
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// maxNames bounds each list of names in a certificate.
const maxNames = 64

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// claimsOf says what the certificate says. Every field is always there, so that a rule that reads
// one never fails for want of it:
//
//	authority  the named authority of the bundle
//	subject    {cn, o[], ou[]}
//	issuer     {cn, o[], ou[]}: who signed the leaf, which may be below the authority
//	san        {dns[], uri[]}
//	serial     hexadecimal, lower case; unique per issuer only (RFC 5280 §4.1.2.2)
//	spki       "sha256:…" of the leaf's public key
func claimsOf(leaf *cx509.Certificate, authority string, key [32]byte) (map[string]any, error) {
	subject, err := nameClaims("subject", leaf.Subject)
	if err != nil {
		return nil, err
	}
	issuer, err := nameClaims("issuer", leaf.Issuer)
	if err != nil {
		return nil, err
	}
	uris := make([]string, len(leaf.URIs))
	for i, u := range leaf.URIs {
		uris[i] = u.String()
	}
	if len(leaf.DNSNames) > maxNames || len(uris) > maxNames {
		return nil, problem.New(problem.ReasonTooLarge, "the certificate has more than %d alternative names of one kind", maxNames)
	}
	claims := map[string]any{
		"authority": authority,
		"subject":   subject,
		"issuer":    issuer,
		"san":       map[string]any{"dns": list(leaf.DNSNames), "uri": list(uris)},
		"serial":    leaf.SerialNumber.Text(16),
		"spki":      attest.DigestText(key),
	}
	return claims, attest.CheckClaims(claims)
}

func nameClaims(which string, n pkix.Name) (map[string]any, error) {
	commonNames := 0
	for _, a := range n.Names {
		if a.Type.Equal(oidCommonName) {
			commonNames++
		}
	}
	// crypto/x509 keeps the last, other software the first: a certificate may not be two machines.
	if commonNames > 1 {
		return nil, problem.New(problem.ReasonBadChain, "the certificate's %s has several common names", which)
	}
	if len(n.Organization) > maxNames || len(n.OrganizationalUnit) > maxNames {
		return nil, problem.New(problem.ReasonTooLarge, "the certificate's %s has more than %d names of one kind", which, maxNames)
	}
	return map[string]any{
		"cn": n.CommonName,
		"o":  list(n.Organization),
		"ou": list(n.OrganizationalUnit),
	}, nil
}

// list makes of a list of texts what JSON makes of it.
func list(texts []string) []any {
	out := make([]any, len(texts))
	for i, s := range texts {
		out[i] = s
	}
	return out
}
