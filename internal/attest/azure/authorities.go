package azure

import (
	cx509 "crypto/x509"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// Authorities are those of a bundle. One with an issuer is a tenant whose tokens are taken (its certificates, if any, are of the HTTPS of
// the issuer's keys, and nothing to this package). One without has the CAs that vouch for the signers of attested documents. It is
// immutable and safe for concurrent use.
type Authorities struct {
	pool    *cx509.CertPool
	set     authority.Set
	maxAge  map[string]time.Duration // by authority
	issuers map[string]*issuer       // by the exact "iss"
}

type issuer struct {
	authority, issuer, tenant string
	keys                      *jose.JSONWebKeySet
}

// tenantIssuer is the issuer of version 1 tokens: https://sts.windows.net/TENANT/ (https://sts.chinacloudapi.cn/TENANT/). Those of version
// 2 have the application's client ID as their audience, which names no environment, so they are not taken.
var tenantIssuer = regexp.MustCompile(`^https://[a-z0-9.-]+(?::[0-9]{1,5})?/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})/$`)

// AuthoritiesOf makes the set from a bundle's authorities.
func AuthoritiesOf(all []authority.Authority) (*Authorities, error) {
	a := &Authorities{pool: cx509.NewCertPool(), maxAge: make(map[string]time.Duration), issuers: make(map[string]*issuer)}
	documents := 0
	for _, one := range all {
		if one.Issuer != "" {
			if err := a.addIssuer(one); err != nil {
				return nil, err
			}
			continue
		}
		documents++
		if err := a.set.Add(one.Name, one.Certificates); err != nil {
			return nil, problem.New(problem.ReasonInvalid, "azure authority %.80q: %v", one.Name, err)
		}
		for _, c := range one.Certificates {
			a.pool.AddCert(c)
		}
		if a.maxAge[one.Name] = one.MaxAge; one.MaxAge == 0 {
			a.maxAge[one.Name] = DefaultMaxAge
		}
	}
	if len(all) > 0 && documents == 0 {
		return nil, problem.New(problem.ReasonInvalid, "azure: no authority without an issuer has certificates (pem) of those who sign attested documents: a token alone is not taken")
	}
	return a, nil
}

func (a *Authorities) addIssuer(one authority.Authority) error {
	m := tenantIssuer.FindStringSubmatch(one.Issuer)
	if m == nil {
		return problem.New(problem.ReasonInvalid, "azure authority %.80q: the issuer must be https://sts.windows.net/TENANT/ with the tenant's ID in lower case (tokens of version 1)", one.Name)
	}
	if other := a.issuers[one.Issuer]; other != nil {
		return problem.New(problem.ReasonInvalid, "azure authority %.80q has the same issuer as %.80q", one.Name, other.authority)
	}
	if one.MaxAge != 0 {
		return problem.New(problem.ReasonInvalid, "azure authority %.80q: maxAge is of documents, and has no effect beside an issuer", one.Name)
	}
	a.issuers[one.Issuer] = &issuer{one.Name, one.Issuer, m[1], one.Keys}
	return nil
}

// signer is who signed a document.
type signer struct {
	authority string
	key       [32]byte
	maxAge    time.Duration
}

// clouds are the domains of the certificates that sign attested documents: of the public cloud, of the US government's, and China's. A
// signer has one of the names, or one below it (Azure's documentation allows any subdomain).
var clouds = []string{"metadata.azure.com", "metadata.azure.us", "metadata.azure.cn"}

// signerOf checks who signed: the signature first, which is cheap, and then the chain.
func (a *Authorities) signerOf(s *cms.Signed, now time.Time) (*signer, error) {
	certs, err := parseChain(s.Certificates)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if !s.IsSigner(leaf) {
		return nil, problem.New(problem.ReasonBadChain, "the first certificate is not the signer's")
	}
	if err := checkLeaf(leaf); err != nil {
		return nil, err
	}
	if err := s.Verify(leaf); err != nil {
		return nil, err
	}
	// They are certificates of servers on the public web's hierarchy, whatever they sign.
	chains, err := attest.LeadTo(a.pool, certs, cx509.ExtKeyUsageServerAuth, now)
	if err != nil {
		p := problem.New(problem.ReasonBadChain, "%s", chainMessage(err, leaf, now))
		p.Err = err
		return nil, p
	}
	name := ""
	for _, chain := range chains {
		if n, ok := a.set.Of(chain[len(chain)-1]); ok && (name == "" || n < name) {
			name = n
		}
	}
	key, err := attest.Thumbprint(leaf.PublicKey)
	if err != nil || name == "" {
		return nil, problem.New(problem.ReasonInternal, "a chain ends at a root without a name")
	}
	return &signer{name, key, a.maxAge[name]}, nil
}

func parseChain(ders [][]byte) ([]*cx509.Certificate, error) {
	if len(ders) == 0 {
		return nil, problem.New(problem.ReasonBadChain, "the document brings no certificate of its signer")
	}
	return attest.ParseChain(ders, cms.MaxMessage, "")
}

// checkLeaf wants an end-entity certificate with one of the clouds' names: the authorities of the public web issue certificates to
// everybody, so the name is what makes this one Azure's. Its common name, which nobody has to check, doesn't count.
func checkLeaf(c *cx509.Certificate) error {
	switch {
	case c.IsCA:
		return problem.New(problem.ReasonBadChain, "the signer's certificate is a CA's")
	case c.KeyUsage != 0 && c.KeyUsage&cx509.KeyUsageDigitalSignature == 0:
		return problem.New(problem.ReasonBadChain, "the signer's key may not make signatures (key usage)")
	case !slices.ContainsFunc(c.DNSNames, ofCloud):
		return problem.New(problem.ReasonBadChain, "the signer's certificate is not for metadata.azure.com, nor for the same of a national cloud")
	}
	return nil
}

func ofCloud(name string) bool {
	name = strings.ToLower(name)
	for _, cloud := range clouds {
		if name == cloud || strings.HasSuffix(name, "."+cloud) {
			return true
		}
	}
	return false
}

// chainMessage says what crypto/x509 found, without the names that its own messages quote.
func chainMessage(err error, leaf *cx509.Certificate, now time.Time) string {
	switch err := err.(type) {
	case cx509.UnknownAuthorityError:
		return "the signer's certificate does not lead to an authority of the bundle for azure (an issuing CA may be missing: the agent's chain, or the authority's pem)"
	case cx509.UnhandledCriticalExtension:
		return "a certificate of the chain has a critical extension that is not understood"
	case cx509.CertificateInvalidError:
		switch err.Reason {
		case cx509.Expired:
			if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
				return "the signer's certificate is not valid now"
			}
			return "a CA's certificate of the chain is not valid now"
		case cx509.IncompatibleUsage:
			return "the signer's certificate is not one of a server (extended key usage)"
		case cx509.NotAuthorizedToSign:
			return "a certificate of the chain was issued by one that is not a CA"
		}
	}
	return "the chain is not valid"
}
