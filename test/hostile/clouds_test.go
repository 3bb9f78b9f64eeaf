package hostile

import (
	"bytes"
	cx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/aws"
	"github.com/bailment/bailment/internal/attest/azure"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/problem"
)

// instance is a document as AWS writes it, of an instance that was started so long ago.
func instance(id string, age time.Duration) string {
	return fmt.Sprintf(`{"accountId":"123456789012","architecture":"x86_64","availabilityZone":"eu-west-1a","imageId":"ami-5fb8c835",`+
		`"instanceId":"%s","instanceType":"t2.micro","pendingTime":"%s","privateIp":"10.0.0.1","region":"eu-west-1"}`,
		id, time.Now().Add(-age).UTC().Format(time.RFC3339))
}

// amazon are the instances of AWS. other is a root that is trusted, for another method.
func amazon(t testing.TB, other cmstest.Signer) kit {
	const mine, theirs = "i-1234567890abcdef0", "i-1234567890abcdef1"
	region := cmstest.Issue(t, "Amazon Web Services LLC", 11, cmstest.Key(0), nil, nil)
	evidence := func(der []byte) []byte { return encode(t, map[string][]byte{"signed": der}) }
	by := func(document string, s cmstest.Signer) []byte {
		return evidence(cmstest.Encoded(t, cmstest.Message(t, []byte(document), cmstest.SHA256, true, s)))
	}
	k := kit{
		method: aws.Name, authority: "for-aws.eu-west-1", spec: specPEM(region.Certificate), key: problem.ReasonInstanceSeen, // unbound: neither challenge nor environment are in it
		good: func(*house, attest.Binding) []byte { return by(instance(mine, time.Minute), region) },
	}
	add := func(name string, want problem.Reason, ev []byte) {
		k.attacks = append(k.attacks, attack{name, want, func(*house, attest.Binding) []byte { return ev }})
	}
	fresh := instance(theirs, time.Minute)
	add("the instance again, after a restart", problem.ReasonInstanceSeen, by(instance(mine, time.Second), region))
	add("too old", problem.ReasonEvidenceExpired, by(instance(theirs, time.Hour), region))
	add("from the future", problem.ReasonNotYetValid, by(instance(theirs, -5*time.Minute), region))
	add("self-signed", problem.ReasonBadChain, by(fresh, cmstest.Issue(t, "Amazon Web Services LLC", 99, cmstest.Key(2), nil, nil)))
	add("a certificate of the same name and number", problem.ReasonBadProof, by(fresh, cmstest.Issue(t, "Amazon Web Services LLC", 11, cmstest.Key(2), nil, nil)))
	add("an authority that is trusted for another method", problem.ReasonBadChain, by(fresh, other))
	add("another region's document", problem.ReasonInvalid, by(strings.Replace(fresh, `"region":"eu-west-1"`, `"region":"us-east-1"`, 1), region))
	add("another account, changed after signing", problem.ReasonBadProof,
		evidence(bytes.Replace(cmstest.Encoded(t, cmstest.Message(t, []byte(fresh), cmstest.SHA256, true, region)), []byte("123456789012"), []byte("123456789013"), 1)))
	add("downgraded to SHA-1", problem.ReasonWeakAlgorithm, evidence(cmstest.Message(t, []byte(fresh), cmstest.SHA1, true, region)))
	add("two signers", problem.ReasonInvalid, evidence(cmstest.Message(t, []byte(fresh), cmstest.SHA256, true, region, other)))
	add("with certificates", problem.ReasonInvalid, evidence(cmstest.Encoded(t, cmstest.Message(t, []byte(fresh), cmstest.SHA256, true, region), region.Certificate)))
	add("no instance", problem.ReasonInvalid, by(strings.Replace(fresh, "instanceId", "instance", 1), region))
	add("an oversized message", problem.ReasonTooLarge, evidence(make([]byte, cms.MaxMessage+1)))
	return k
}

const (
	tenant       = "11111111-2222-3333-4444-555555555555"
	subscription = "8d10da13-8125-4ba9-a717-bf7490507b3d"
	machineID    = "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
)

// cloud is an Azure: a root of the web, an issuing CA, a metadata service's certificate, and a tenant.
type cloud struct {
	t                     testing.TB
	root, issuing, signer cmstest.Signer
	tenant                *jwttest.Issuer
}

func newCloud(t testing.TB) *cloud {
	c := &cloud{t: t, root: cmstest.Issue(t, "Web Root", 1, cmstest.Key(0), nil, cmstest.CA)}
	c.issuing = cmstest.Issue(t, "Azure Issuing CA 01", 2, cmstest.Key(1), &c.root, cmstest.CA)
	c.signer = cmstest.Issue(t, "metadata.azure.com", 3, cmstest.Key(2), &c.issuing, metadataServer)
	c.tenant = jwttest.New(t, "https://sts.windows.net/"+tenant+"/", jose.RS256)
	return c
}

func metadataServer(c *cx509.Certificate) {
	c.DNSNames, c.KeyUsage, c.BasicConstraintsValid = []string{"metadata.azure.com"}, cx509.KeyUsageDigitalSignature, true
	c.ExtKeyUsage = []cx509.ExtKeyUsage{cx509.ExtKeyUsageServerAuth}
}

// document is one as Azure writes it, made so long ago and good for so long.
func (c *cloud) document(b attest.Binding, age, life time.Duration) string {
	const form = "01/02/06 15:04:05 -0000"
	d := b.Digest()
	made := time.Now().UTC().Add(-age)
	return fmt.Sprintf(`{"nonce":"%s","subscriptionId":"%s","vmId":"%s","timeStamp":{"createdOn":"%s","expiresOn":"%s"}}`,
		hex.EncodeToString(d[:16]), subscription, machineID, made.Format(form), made.Add(life).Format(form))
}

func (c *cloud) token(b attest.Binding, change map[string]any) string {
	now := time.Now()
	return string(c.tenant.Sign(jwttest.With(map[string]any{
		"iss": c.tenant.URL, "aud": azure.Resource(tenant, b.Genesis), "iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(),
		"exp": now.Add(time.Hour).Unix(), "tid": tenant, "oid": machineID, "sub": machineID, "appid": subscription,
		"xms_mirid": "/subscriptions/" + subscription + "/resourcegroups/web/providers/Microsoft.Compute/virtualMachines/web-1",
	}, change)))
}

func (c *cloud) evidence(message []byte, token string) []byte {
	return fmt.Appendf(nil, `{"document":%s,"token":%s}`, encode(c.t, message), encode(c.t, token))
}

func (c *cloud) by(document string, s cmstest.Signer, chain ...cmstest.Signer) []byte {
	certs := []*cx509.Certificate{s.Certificate}
	for _, x := range chain {
		certs = append(certs, x.Certificate)
	}
	return cmstest.Encoded(c.t, cmstest.Message(c.t, []byte(document), cmstest.SHA256, false, s), certs...)
}

func (c *cloud) good(b attest.Binding) []byte {
	return c.by(c.document(b, time.Minute, time.Hour), c.signer, c.issuing)
}

// microsoft are the machines of Azure. other is a root that is trusted, for another method.
func microsoft(t testing.TB, c *cloud, other cmstest.Signer) kit {
	k := kit{
		method: azure.Name, spec: specPEM(c.root.Certificate), beside: specIssuer(t, c.tenant),
		challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
		good: func(_ *house, b attest.Binding) []byte { return c.evidence(c.good(b), c.token(b, nil)) },
	}
	document := func(name string, want problem.Reason, make func(attest.Binding) []byte) {
		k.attacks = append(k.attacks, attack{name, want, func(_ *house, b attest.Binding) []byte { return c.evidence(make(b), c.token(b, nil)) }})
	}
	aged := func(name string, want problem.Reason, age, life time.Duration) {
		document(name, want, func(b attest.Binding) []byte { return c.by(c.document(b, age, life), c.signer, c.issuing) })
	}
	aged("too old", problem.ReasonEvidenceExpired, 10*time.Minute, time.Hour)
	aged("over", problem.ReasonEvidenceExpired, 2*time.Minute, time.Minute)
	aged("from the future", problem.ReasonNotYetValid, -5*time.Minute, time.Hour)
	signer := func(name string, s cmstest.Signer, chain ...cmstest.Signer) {
		document(name, problem.ReasonBadChain, func(b attest.Binding) []byte { return c.by(c.document(b, time.Minute, time.Hour), s, chain...) })
	}
	issued := func(number int64, by *cmstest.Signer, change func(*cx509.Certificate)) cmstest.Signer {
		return cmstest.Issue(t, "metadata.azure.com", number, cmstest.Key(2), by, change)
	}
	rogue := cmstest.Issue(t, "Web Root", 1, cmstest.Key(3), nil, cmstest.CA)
	signer("self-signed", issued(21, nil, metadataServer))
	signer("a root of the same name", issued(22, &rogue, metadataServer), rogue)
	signer("an authority that is trusted for another method", issued(23, &other, metadataServer), other)
	signer("a server of another name", issued(24, &c.issuing, func(x *cx509.Certificate) { metadataServer(x); x.DNSNames = []string{"www.example"} }), c.issuing)
	signer("an expired certificate", issued(25, &c.issuing, func(x *cx509.Certificate) { metadataServer(x); overdue(x) }), c.issuing)
	document("swapped key", problem.ReasonBadProof, func(b attest.Binding) []byte {
		return c.by(c.document(b, time.Minute, time.Hour), cmstest.Signer{Certificate: c.signer.Certificate, Key: cmstest.Key(3)}, c.issuing)
	})
	document("another machine, changed after signing", problem.ReasonBadProof, func(b attest.Binding) []byte {
		return bytes.Replace(c.good(b), []byte(machineID), []byte("12aab8a4"+machineID[8:]), 1)
	})
	document("downgraded to SHA-1", problem.ReasonWeakAlgorithm, func(b attest.Binding) []byte {
		return cmstest.Message(t, []byte(c.document(b, time.Minute, time.Hour)), cmstest.SHA1, false, c.signer)
	})
	token := func(name string, want problem.Reason, make func(attest.Binding) string) {
		k.attacks = append(k.attacks, attack{"token: " + name, want, func(_ *house, b attest.Binding) []byte { return c.evidence(c.good(b), make(b)) }})
	}
	changed := func(name string, want problem.Reason, change map[string]any) {
		token(name, want, func(b attest.Binding) string { return c.token(b, change) })
	}
	now := time.Now()
	changed("another audience", problem.ReasonAudience, map[string]any{"aud": "https://management.azure.com/"})
	changed("another issuer", problem.ReasonIssuer, map[string]any{"iss": "https://sts.windows.net/" + subscription + "/"})
	changed("expired", problem.ReasonEvidenceExpired, map[string]any{"exp": now.Add(-time.Second).Unix()})
	changed("from the future", problem.ReasonNotYetValid, map[string]any{"iat": now.Add(5 * time.Minute).Unix(), "nbf": now.Add(5 * time.Minute).Unix()})
	changed("a person's", problem.ReasonTokenInvalid, map[string]any{"xms_mirid": nil, "scp": "user_impersonation"})
	token("none", problem.ReasonTokenInvalid, func(attest.Binding) string { return "" })
	token("of a thief's key", problem.ReasonTokenInvalid, func(b attest.Binding) string {
		thief := *c.tenant
		thief.Key = jwttest.NewKey(t, jose.RS256)
		return string((&cloud{tenant: &thief}).token(b, nil))
	})
	token("not signed", problem.ReasonWeakAlgorithm, func(b attest.Binding) string {
		parts := strings.Split(c.token(b, nil), ".")
		header, _ := json.Marshal(map[string]any{"alg": "none", "kid": c.tenant.KeyID})
		return jwttest.Encode(header) + "." + parts[1] + "."
	})
	token("for another environment", problem.ReasonAudience, func(b attest.Binding) string {
		b.Genesis[0] ^= 1
		return c.token(b, nil)
	})
	return k
}
