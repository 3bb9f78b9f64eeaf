package azure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var now = attesttest.Now()

const (
	tenant       = "11111111-2222-3333-4444-555555555555"
	subscription = "8d10da13-8125-4ba9-a717-bf7490507b3d"
	vm           = "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
	object       = "aaaaaaaa-1111-4111-8111-aaaaaaaaaaaa"
	client       = "bbbbbbbb-1111-4111-8111-bbbbbbbbbbbb"
	tenantURL    = "https://sts.windows.net/" + tenant + "/"
	machineID    = "/subscriptions/" + subscription + "/resourcegroups/Web/providers/Microsoft.Compute/virtualMachines/web-1"
	userIdentity = "/subscriptions/" + subscription + "/resourcegroups/ids/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app"
)

func binding() attest.Binding { return attesttest.Binding(Name) }

// cloud is an Azure: a root and an issuing CA of the web, a metadata service's certificate, and a tenant.
type cloud struct {
	root, issuing, signer cmstest.Signer
	tenant                *jwttest.Issuer
}

func newCloud(t testing.TB) cloud {
	var c cloud
	c.root = cmstest.Issue(t, "Web Root", 1, cmstest.Key(0), nil, cmstest.CA)
	c.issuing = cmstest.Issue(t, "Azure Issuing CA 01", 2, cmstest.Key(1), &c.root, cmstest.CA)
	c.signer = cmstest.Issue(t, "metadata.azure.com", 3, cmstest.Key(2), &c.issuing, server("eastus.metadata.azure.com"))
	c.tenant = jwttest.New(t, tenantURL, jose.RS256)
	return c
}

// server makes a certificate one of a web server of these names.
func server(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.DNSNames, c.KeyUsage, c.ExtKeyUsage = names, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		c.BasicConstraintsValid = true
	}
}

func (c cloud) documents() authority.Authority {
	return authority.Authority{Name: "azure-public", Method: Name, Certificates: []*x509.Certificate{c.root.Certificate}}
}

func (c cloud) tokens() authority.Authority {
	return authority.Authority{Name: "corp-tenant", Method: Name, Issuer: tenantURL, Keys: c.tenant.Keys()}
}

func params(t testing.TB, all ...authority.Authority) Params {
	t.Helper()
	a, err := AuthoritiesOf(all)
	if err != nil {
		t.Fatal(err)
	}
	return Params{a}
}

// attested is a document as Azure writes it, with replacements.
func attested(b attest.Binding, replace ...string) []byte {
	text := fmt.Sprintf(`{"licenseType":"","nonce":"%s","plan":{"name":"","product":"","publisher":""},"sku":"22_04-lts",`+
		`"subscriptionId":"%s","timeStamp":{"createdOn":"11/22/26 11:59:00 -0000","expiresOn":"11/22/26 17:59:00 -0000"},"vmId":"%s"}`,
		nonceOf(b), subscription, vm)
	return []byte(strings.NewReplacer(replace...).Replace(text))
}

func (c cloud) signed(t testing.TB, document []byte) []byte {
	t.Helper()
	return cmstest.Encoded(t, cmstest.Message(t, document, cmstest.SHA256, false, c.signer), c.signer.Certificate, c.issuing.Certificate)
}

func tokenClaims(b attest.Binding) map[string]any {
	return map[string]any{
		"aud": Resource(tenant, b.Genesis), "iss": tenantURL, "iat": now.Add(-10 * time.Minute).Unix(), "nbf": now.Add(-10 * time.Minute).Unix(),
		"exp": now.Add(23 * time.Hour).Unix(), "tid": tenant, "oid": object, "sub": object, "appid": client, "idtyp": "app", "ver": "1.0",
		"uti": "abcdefgh", "xms_mirid": machineID,
	}
}

func (c cloud) token(t testing.TB, change map[string]any) string {
	t.Helper()
	return string(c.tenant.SignWith(jwttest.With(tokenClaims(binding()), change), map[string]any{"x5t": "abc"}))
}

func evidenceOf(t testing.TB, document []byte, token string) []byte {
	t.Helper()
	ev, err := attest.EncodeEvidence(evidence{Document: document, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func input(ev []byte, p Params) attest.Input {
	return attest.Input{Binding: binding(), Evidence: ev, Now: now, Params: p}
}

func TestVerify(t *testing.T) {
	c := newCloud(t)
	noToken := map[string]any{
		"authority": "", "tenant_id": "", "object_id": "", "client_id": "", "identity": "", "resource_group": "", "resource_type": "", "resource_name": "",
	}
	want := attest.Result{
		Claims: map[string]any{
			"authority": "azure-public", "vm_id": vm, "subscription_id": subscription, "sku": "22_04-lts", "license_type": "",
			"plan": map[string]any{"name": "", "product": "", "publisher": ""}, "token": noToken,
		},
		Assurance: identity.Platform, Anchor: "azure:azure-public", Key: sha256.Sum256(c.signer.Certificate.RawSubjectPublicKeyInfo),
	}
	got, err := Verify(input(evidenceOf(t, c.signed(t, attested(binding())), ""), params(t, c.documents())))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v, %v\nwant %+v", got, err, want)
	}
	want.NotAfter = now.Add(23 * time.Hour)
	want.Claims["token"] = map[string]any{
		"authority": "corp-tenant", "tenant_id": tenant, "object_id": object, "client_id": client, "identity": strings.ToLower(machineID),
		"resource_group": "web", "resource_type": "microsoft.compute/virtualmachines", "resource_name": "web-1",
	}
	in := input(evidenceOf(t, c.signed(t, attested(binding())), c.token(t, nil)), params(t, c.documents(), c.tokens()))
	got, err = Verify(in)
	got.NotAfter = got.NotAfter.UTC()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v, %v\nwant %+v", got, err, want)
	}
	// The issuer's keys may be published instead of pinned.
	head, err := issuerOf(in.Evidence)
	if err != nil || head != (attest.TokenHead{Issuer: tenantURL, KeyID: "key-1"}) {
		t.Fatalf("%+v, %v", head, err)
	}
	published := c.tokens()
	published.Keys = nil
	in.Params = params(t, c.documents(), published)
	if _, err := Verify(in); !problem.Is(err, problem.ReasonNoKeys) {
		t.Errorf("without keys: %v", err)
	}
	in.Keys = c.tenant.Keys()
	if _, err := Verify(in); err != nil {
		t.Error(err)
	}
}

func TestVerifyAccepts(t *testing.T) {
	c := newCloud(t)
	both := params(t, c.documents(), c.tokens())
	pinned := c.documents()
	pinned.Certificates = []*x509.Certificate{c.issuing.Certificate}
	good := attested(binding())
	token := c.token(t, nil)
	wide := cmstest.Issue(t, "x", 4, cmstest.Key(2), &c.issuing, server("x.example", "metadata.azure.us"))
	user := c.token(t, map[string]any{"xms_mirid": userIdentity, "xms_az_rid": machineID})
	for name, x := range map[string]struct {
		ev []byte
		p  Params
	}{
		"an issuing CA that is pinned":   {evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, good, cmstest.SHA256, false, c.signer), c.signer.Certificate), ""), params(t, pinned)},
		"with attributes":                {evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, good, cmstest.SHA256, true, c.signer), c.signer.Certificate, c.issuing.Certificate), token), both},
		"the root sent too":              {evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, good, cmstest.SHA256, false, c.signer), c.signer.Certificate, c.root.Certificate, c.issuing.Certificate), token), both},
		"the government's cloud":         {evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, good, cmstest.SHA256, false, wide), wide.Certificate, c.issuing.Certificate), token), both},
		"an identity assigned by a user": {evidenceOf(t, c.signed(t, good), user), both},
		"a scale set":                    {evidenceOf(t, c.signed(t, good), c.token(t, map[string]any{"xms_mirid": strings.Replace(machineID, "virtualMachines/web-1", "virtualMachineScaleSets/web/virtualMachines/3", 1)})), both},
		"capital letters in IDs":         {evidenceOf(t, c.signed(t, attested(binding(), subscription, strings.ToUpper(subscription), vm, strings.ToUpper(vm))), token), both},
		"as old as may be":               {evidenceOf(t, c.signed(t, attested(binding(), "11:59:00", "11:55:00")), token), both},
		"a clock a minute ahead":         {evidenceOf(t, c.signed(t, attested(binding(), "11:59:00", "12:01:00")), token), both},
		"over in a second":               {evidenceOf(t, c.signed(t, attested(binding(), "17:59:00", "12:00:01")), token), both},
		"a member that is new to us":     {evidenceOf(t, c.signed(t, attested(binding(), `"vmId"`, `"future":{"a":[1]},"vmId"`)), token), both},
	} {
		if _, err := Verify(input(x.ev, x.p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type hostileCase = attesttest.Hostile

func TestHostileEvidence(t *testing.T) {
	c := newCloud(t)
	p := params(t, c.documents(), c.tokens())
	cases := map[string]hostileCase{}
	hostileForm(t, c, cases)
	hostileDocument(t, c, cases)
	hostileSigner(t, c, cases)
	hostileToken(t, c, cases)
	attesttest.RefuseAll(t, Verify, func(ev []byte) attest.Input { return input(ev, p) }, cases)
}

func hostileForm(t *testing.T, c cloud, cases map[string]hostileCase) {
	token := c.token(t, nil)
	good := string(evidenceOf(t, c.signed(t, attested(binding())), token))
	form := func(name, ev string) { cases[name] = hostileCase{Evidence: []byte(ev), Want: problem.ReasonInvalid} }
	form("empty", "")
	form("truncated", good[:len(good)-2])
	form("trailing", good+" ")
	form("duplicate field", strings.Replace(good, `{"document"`, `{"document":"","document"`, 1))
	form("unknown field", strings.Replace(good, `{"document"`, `{"vmId":"","document"`, 1))
	form("other order", `{"token":"","document":""}`)
	form("no message", `{"document":"","token":""}`)
	cases["oversized"] = hostileCase{Evidence: make([]byte, attest.MaxEvidence+1), Want: problem.ReasonTooLarge}
	cases["oversized token"] = hostileCase{Evidence: evidenceOf(t, []byte{1}, strings.Repeat("a", maxToken+1)), Want: problem.ReasonTooLarge, Says: "token"}
	cases["wrong params"] = hostileCase{Evidence: []byte(good), Change: func(in *attest.Input) { in.Params = 1 }, Want: problem.ReasonInternal}
	cases["no authorities"] = hostileCase{Evidence: []byte(good), Change: func(in *attest.Input) { in.Params = Params{} }, Want: problem.ReasonInternal}
	cases["bundle without authorities"] = hostileCase{
		Evidence: evidenceOf(t, c.signed(t, attested(binding())), ""), Change: func(in *attest.Input) { in.Params = params(t) }, Want: problem.ReasonBadChain, Says: "does not lead",
	}
}

func hostileDocument(t *testing.T, c cloud, cases map[string]hostileCase) {
	token := c.token(t, nil)
	signed := func(name string, document []byte, want problem.Reason) {
		cases[name] = hostileCase{Evidence: evidenceOf(t, c.signed(t, document), token), Want: want}
	}
	bound := func(name string, change func(*attest.Binding)) {
		b := binding()
		change(&b)
		signed(name, attested(b), problem.ReasonBadProof)
	}
	for name, change := range attesttest.Rebound() {
		bound(name, change)
	}
	bound("another method", func(b *attest.Binding) { b.Method = "aws" })
	nonce := nonceOf(binding())
	signed("no nonce", attested(binding(), nonce, ""), problem.ReasonBadProof)
	signed("Azure's own nonce", attested(binding(), nonce, "20261122-115900"), problem.ReasonBadProof)
	signed("nonce in capitals", attested(binding(), nonce, strings.ToUpper(nonce)), problem.ReasonBadProof)
	signed("nonce that is longer", attested(binding(), nonce, nonce+"0"), problem.ReasonBadProof)
	signed("nonce cut to ten characters", attested(binding(), nonce, nonce[:10]), problem.ReasonBadProof)
	signed("too old", attested(binding(), "11:59:00", "11:54:59"), problem.ReasonEvidenceExpired)
	signed("over", attested(binding(), "17:59:00", "12:00:00"), problem.ReasonEvidenceExpired)
	signed("future", attested(binding(), "11:59:00", "12:01:01"), problem.ReasonNotYetValid)
	wrong := func(name string, replace ...string) {
		signed(name, attested(binding(), replace...), problem.ReasonInvalid)
	}
	wrong("over before it was made", "17:59:00", "11:58:00")
	wrong("a zone of time", "-0000", "+0100")
	wrong("no time", "createdOn", "created")
	wrong("a year of four digits", "11/22/26", "11/22/2026")
	wrong("no machine", vm, "")
	wrong("a machine that is none", vm, "canary")
	wrong("no subscription (a classic machine)", subscription, "")
	wrong("duplicate member", `"vmId"`, `"nonce":"","vmId"`)
	wrong("duplicate member inside", `"createdOn"`, `"createdOn":"","createdOn"`)
	wrong("other letter case of a member", `"vmId"`, `"vmID"`)
	wrong("not UTF-8", "22_04-lts", "\xff")
	signed("control characters in a claim", attested(binding(), "22_04-lts", `a\u202eb`), problem.ReasonInvalid)
	signed("no document", []byte("canary"), problem.ReasonInvalid)
	signed("trailing data", append(attested(binding()), "{}"...), problem.ReasonInvalid)
	signed("document truncated", attested(binding())[:50], problem.ReasonInvalid)
	signed("a claim that is huge", attested(binding(), "22_04-lts", strings.Repeat("a", 3000)), problem.ReasonTooLarge)
}

func hostileSigner(t *testing.T, c cloud, cases map[string]hostileCase) {
	token, good := c.token(t, nil), attested(binding())
	by := func(name string, s cmstest.Signer, want problem.Reason, says string, chain ...*x509.Certificate) {
		der := cmstest.Encoded(t, cmstest.Message(t, good, cmstest.SHA256, false, s), chain...)
		cases[name] = hostileCase{Evidence: evidenceOf(t, der, token), Want: want, Says: says}
	}
	issued := func(serial int64, change func(*x509.Certificate)) cmstest.Signer {
		return cmstest.Issue(t, "metadata.azure.com", serial, cmstest.Key(2), &c.issuing, change)
	}
	chainOf := func(s cmstest.Signer) []*x509.Certificate {
		return []*x509.Certificate{s.Certificate, c.issuing.Certificate}
	}
	bad := func(name, says string, s cmstest.Signer, chain ...*x509.Certificate) {
		if chain == nil {
			chain = chainOf(s)
		}
		by(name, s, problem.ReasonBadChain, says, chain...)
	}
	const otherName = "not for metadata.azure.com"
	for i, name := range []string{"www.example", "metadata.azure.com.example", "xmetadata.azure.com", "*.azure.com", "azure.com", "metadata.azure.com."} {
		bad("for the name "+name, otherName, issued(int64(100+i), server(name)))
	}
	bad("the right name as a common name only", otherName, issued(20, server()))
	bad("self-signed", "does not lead", cmstest.Issue(t, "metadata.azure.com", 21, cmstest.Key(2), nil, server("metadata.azure.com")))
	foreign := cmstest.Issue(t, "Web Root", 1, cmstest.Key(3), nil, cmstest.CA)
	forged := cmstest.Issue(t, "metadata.azure.com", 22, cmstest.Key(2), &foreign, server("metadata.azure.com"))
	bad("a root of the same name", "does not lead", forged, forged.Certificate, foreign.Certificate)
	bad("no issuing CA", "does not lead", c.signer, c.signer.Certificate)
	bad("issued by a server's certificate", "does not lead", cmstest.Issue(t, "metadata.azure.com", 23, cmstest.Key(3), &c.signer, server("metadata.azure.com")))
	bad("a chain with a server's certificate", "not a CA's", c.signer, c.signer.Certificate, issued(24, server("metadata.azure.com")).Certificate)
	bad("a certificate twice", "twice", c.signer, c.signer.Certificate, c.issuing.Certificate, c.issuing.Certificate)
	bad("the issuer first", "not a CA's", c.signer, c.issuing.Certificate, c.signer.Certificate)
	bad("another certificate first", "not the signer's", c.signer, issued(31, server("metadata.azure.com")).Certificate, c.issuing.Certificate)
	cases["no certificate"] = hostileCase{
		Evidence: evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, good, cmstest.SHA256, false, c.signer)), token), Want: problem.ReasonBadChain, Says: "brings no certificate",
	}
	bad("a CA as the signer", "is a CA's", c.issuing, c.issuing.Certificate)
	bad("not for signatures", "key usage", issued(25, func(x *x509.Certificate) { server("metadata.azure.com")(x); x.KeyUsage = x509.KeyUsageKeyEncipherment }))
	bad("not a server's", "extended key usage", issued(26, func(x *x509.Certificate) {
		server("metadata.azure.com")(x)
		x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	}))
	bad("expired", "not valid now", issued(27, func(x *x509.Certificate) { server("metadata.azure.com")(x); x.NotAfter = now.Add(-time.Second) }))
	bad("not yet valid", "not valid now", issued(28, func(x *x509.Certificate) { server("metadata.azure.com")(x); x.NotBefore = now.Add(time.Second) }))
	old := cmstest.Issue(t, "Old CA", 29, cmstest.Key(3), &c.root, func(x *x509.Certificate) { cmstest.CA(x); x.NotAfter = now.Add(-time.Second) })
	byOld := cmstest.Issue(t, "metadata.azure.com", 30, cmstest.Key(2), &old, server("metadata.azure.com"))
	bad("an issuing CA that expired", "a CA's certificate of the chain is not valid now", byOld, byOld.Certificate, old.Certificate)
	thief := cmstest.Signer{Certificate: c.signer.Certificate, Key: cmstest.Key(3)}
	by("signed by another key", thief, problem.ReasonBadProof, "not signed by the key", chainOf(c.signer)...)
	der := c.signed(t, good)
	cases["swapped document"] = hostileCase{Evidence: evidenceOf(t, bytes.Replace(der, []byte(vm), []byte("02aab8a4-74ef-476e-8182-f6d2ba4166a7"), 1), token), Want: problem.ReasonBadProof}
	cases["SHA-1"] = hostileCase{Evidence: evidenceOf(t, cmstest.Message(t, good, cmstest.SHA1, false, c.signer), token), Want: problem.ReasonWeakAlgorithm}
	cases["extra signer"] = hostileCase{Evidence: evidenceOf(t, cmstest.Message(t, good, cmstest.SHA256, false, c.signer, c.issuing), token), Want: problem.ReasonInvalid, Says: "exactly one signer"}
	cases["message trailing"] = hostileCase{Evidence: evidenceOf(t, append(bytes.Clone(der), 0), token), Want: problem.ReasonInvalid}
}

func hostileToken(t *testing.T, c cloud, cases map[string]hostileCase) {
	document := c.signed(t, attested(binding()))
	token := func(name, token string, want problem.Reason, says string) {
		cases["token: "+name] = hostileCase{Evidence: evidenceOf(t, document, token), Want: want, Says: says}
	}
	changed := func(name string, want problem.Reason, says string, change map[string]any) {
		token(name, c.token(t, change), want, says)
	}
	token("none", "", problem.ReasonTokenInvalid, "there is no token")
	token("malformed", "canary", problem.ReasonTokenInvalid, "")
	changed("another environment's", problem.ReasonAudience, "", map[string]any{"aud": Resource(tenant, attesttest.Array(2))})
	changed("for Azure's own interface", problem.ReasonAudience, "", map[string]any{"aud": "https://management.azure.com/"})
	changed("for two audiences", problem.ReasonAudience, "", map[string]any{"aud": []string{Resource(tenant, attesttest.Array(1)), "https://management.azure.com/"}})
	other := strings.Replace(tenantURL, tenant, strings.Replace(tenant, "1", "6", 1), 1)
	changed("another tenant's", problem.ReasonIssuer, "", map[string]any{"iss": other})
	changed("of version 2", problem.ReasonIssuer, "", map[string]any{"iss": "https://login.microsoftonline.com/" + tenant + "/v2.0"})
	changed("another tenant inside", problem.ReasonTokenInvalid, "another tenant", map[string]any{"tid": subscription})
	changed("expired", problem.ReasonEvidenceExpired, "", map[string]any{"exp": now.Unix()})
	changed("future", problem.ReasonNotYetValid, "", map[string]any{"nbf": now.Add(2 * time.Minute).Unix(), "iat": now.Add(2 * time.Minute).Unix()})
	changed("good for a month", problem.ReasonTokenInvalid, "", map[string]any{"exp": now.Add(30 * 24 * time.Hour).Unix()})
	changed("a person's", problem.ReasonTokenInvalid, "not one of a managed identity", map[string]any{"xms_mirid": nil, "scp": "user_impersonation"})
	changed("an application's with a secret", problem.ReasonTokenInvalid, "not one of a managed identity", map[string]any{"xms_mirid": nil})
	changed("a managed identity that is none", problem.ReasonTokenInvalid, "not one of a managed identity", map[string]any{"xms_mirid": "canary"})
	changed("of a function app", problem.ReasonTokenInvalid, "does not name the virtual machine", map[string]any{"xms_mirid": strings.Replace(machineID, "Microsoft.Compute/virtualMachines", "Microsoft.Web/sites", 1)})
	changed("of a shared identity, for no machine", problem.ReasonTokenInvalid, "does not name the virtual machine", map[string]any{"xms_mirid": userIdentity})
	changed("of a shared identity, for something else", problem.ReasonTokenInvalid, "does not name the virtual machine", map[string]any{
		"xms_mirid": userIdentity, "xms_az_rid": strings.Replace(machineID, "Microsoft.Compute/virtualMachines", "Microsoft.Web/sites", 1),
	})
	changed("a resource with more behind it", problem.ReasonTokenInvalid, "", map[string]any{"xms_mirid": machineID + "/extensions/canary"})
	changed("of another subscription's machine", problem.ReasonBadProof, "different subscriptions", map[string]any{"xms_mirid": strings.Replace(machineID, subscription, vm, 1)})
	changed("without an object", problem.ReasonTokenInvalid, "", map[string]any{"oid": nil})
	changed("with a list as an object", problem.ReasonTokenInvalid, "", map[string]any{"oid": []string{object}})
	token("of a thief's key", string(jwttest.New(t, tenantURL, jose.RS256).Sign(tokenClaims(binding()))), problem.ReasonTokenInvalid, "")
	header, _ := json.Marshal(map[string]any{"alg": "none", "kid": "key-1"})
	payload, _ := json.Marshal(tokenClaims(binding()))
	token("not signed", jwttest.Encode(header)+"."+jwttest.Encode(payload)+".", problem.ReasonWeakAlgorithm, "")
	token("with an algorithm that is none", jwttest.Encode(header)+"."+jwttest.Encode(payload)+".AAAA", problem.ReasonWeakAlgorithm, "")
	header, _ = json.Marshal(map[string]any{"alg": "HS256", "kid": "key-1"})
	token("signed with the public key as a secret", string(c.tenant.HMAC(header, payload)), problem.ReasonWeakAlgorithm, "")
	good := c.token(t, nil)
	cases["token: none was asked for"] = hostileCase{
		Evidence: evidenceOf(t, document, good), Change: func(in *attest.Input) { in.Params = params(t, c.documents()) }, Want: problem.ReasonIssuer, Says: "names an issuer",
	}
}

func TestAuthoritiesOfRefuses(t *testing.T) {
	c := newCloud(t)
	with := func(a authority.Authority, change func(*authority.Authority)) authority.Authority {
		change(&a)
		return a
	}
	for name, all := range map[string][]authority.Authority{
		"tokens only":         {c.tokens()},
		"a certificate twice": {c.documents(), with(c.documents(), func(a *authority.Authority) { a.Name = "b" })},
		"an issuer twice":     {c.documents(), c.tokens(), with(c.tokens(), func(a *authority.Authority) { a.Name = "b" })},
		"maxAge of tokens":    {c.documents(), with(c.tokens(), func(a *authority.Authority) { a.MaxAge = time.Hour })},
		"tokens of version 2": {c.documents(), with(c.tokens(), func(a *authority.Authority) { a.Issuer = "https://login.microsoftonline.com/" + tenant + "/v2.0" })},
		"every tenant":        {c.documents(), with(c.tokens(), func(a *authority.Authority) { a.Issuer = "https://sts.windows.net/common/" })},
		"a tenant in capitals": {c.documents(), with(c.tokens(), func(a *authority.Authority) {
			a.Issuer = "https://sts.windows.net/AAAAAAAA-1111-4111-8111-aaaaaaaaaaaa/"
		})},
		"without its last mark": {c.documents(), with(c.tokens(), func(a *authority.Authority) { a.Issuer = strings.TrimSuffix(tenantURL, "/") })},
	} {
		if _, err := AuthoritiesOf(all); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := AuthoritiesOf(nil); err != nil {
		t.Errorf("a bundle without azure: %v", err)
	}
	// The age is the authority's.
	long := with(c.documents(), func(a *authority.Authority) { a.MaxAge = time.Hour })
	if _, err := Verify(input(evidenceOf(t, c.signed(t, attested(binding(), "11:59:00", "11:00:00")), ""), params(t, long))); err != nil {
		t.Error(err)
	}
}

// service is a metadata service that signs what is asked.
func (c cloud) service(t testing.TB, change func(w http.ResponseWriter, r *http.Request) bool) *httptest.Server {
	mux := http.NewServeMux()
	begin := func(w http.ResponseWriter, r *http.Request, version string) bool {
		if change != nil && change(w, r) {
			return false
		}
		if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("api-version") != version {
			w.WriteHeader(http.StatusBadRequest)
			return false
		}
		return true
	}
	mux.HandleFunc("GET "+documentPath, func(w http.ResponseWriter, r *http.Request) {
		if begin(w, r, documentVersion) {
			document := attested(binding(), nonceOf(binding()), r.URL.Query().Get("nonce"))
			message := cmstest.Message(t, document, cmstest.SHA256, false, c.signer)
			fmt.Fprintf(w, `{"encoding":"pkcs7","signature":"%s"}`, base64.StdEncoding.EncodeToString(message))
		}
	})
	mux.HandleFunc("GET "+tokenPath, func(w http.ResponseWriter, r *http.Request) {
		if begin(w, r, tokenVersion) {
			token := c.token(t, map[string]any{"aud": r.URL.Query().Get("resource"), "appid": r.URL.Query().Get("client_id")})
			fmt.Fprintf(w, `{"access_token":"%s","token_type":"Bearer"}`, token)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func certificatePEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func TestAttester(t *testing.T) {
	c := newCloud(t)
	a, err := NewAttester(c.service(t, nil).URL, tenant, client, certificatePEM(c.issuing.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	ev, err := a.Attest(context.Background(), binding())
	if err != nil {
		t.Fatal(err)
	}
	res, err := Verify(input(ev, params(t, c.documents(), c.tokens())))
	if err != nil || res.Claims["vm_id"] != vm {
		t.Fatalf("%+v, %v", res, err)
	}
	attesttest.Attester(t, a, Name)
	// Without a tenant there is no token, and without a chain what Azure sends.
	if a, err = NewAttester(c.service(t, nil).URL, "", "", nil); err != nil {
		t.Fatal(err)
	}
	if ev, err = a.Attest(context.Background(), binding()); err != nil {
		t.Fatal(err)
	}
	pinned := c.documents()
	pinned.Certificates = []*x509.Certificate{c.issuing.Certificate}
	if _, err := Verify(input(ev, params(t, pinned))); err != nil {
		t.Error(err)
	}
	if head, err := issuerOf(ev); err != nil || head != (attest.TokenHead{}) {
		t.Errorf("%+v, %v", head, err)
	}
}

func TestAttesterRefuses(t *testing.T) {
	c := newCloud(t)
	answer := func(path string, code int, text string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == path {
				w.WriteHeader(code)
				_, _ = w.Write([]byte(text))
			}
			return r.URL.Path == path
		}
	}
	cached := cmstest.Message(t, attested(binding(), nonceOf(binding()), "0"), cmstest.SHA256, false, c.signer)
	for name, x := range map[string]struct {
		change func(http.ResponseWriter, *http.Request) bool
		want   problem.Reason
	}{
		"no document":              {answer(documentPath, 404, "canary"), problem.ReasonInvalid},
		"not ready":                {answer(documentPath, 410, "canary"), problem.ReasonUnreachable},
		"no JSON":                  {answer(documentPath, 200, "canary"), problem.ReasonInvalid},
		"another encoding":         {answer(documentPath, 200, `{"encoding":"canary","signature":"AAAA"}`), problem.ReasonInvalid},
		"no base64":                {answer(documentPath, 200, `{"encoding":"pkcs7","signature":"canary!"}`), problem.ReasonInvalid},
		"no message":               {answer(documentPath, 200, `{"encoding":"pkcs7","signature":"AAAA"}`), problem.ReasonInvalid},
		"from a cache":             {answer(documentPath, 200, `{"encoding":"pkcs7","signature":"`+base64.StdEncoding.EncodeToString(cached)+`"}`), problem.ReasonUnreachable},
		"no managed identity":      {answer(tokenPath, 400, `canary`), problem.ReasonInvalid},
		"no token":                 {answer(tokenPath, 200, `{}`), problem.ReasonInvalid},
		"a token that is not JSON": {answer(tokenPath, 200, `canary`), problem.ReasonInvalid},
		"tokens are not there yet": {answer(tokenPath, 503, ``), problem.ReasonUnreachable},
	} {
		a, err := NewAttester(c.service(t, x.change).URL, tenant, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Attest(context.Background(), binding()); !problem.Is(err, x.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
	issuing := string(certificatePEM(c.issuing.Certificate))
	many := strings.Repeat(issuing, 8)
	for name, x := range map[string][4]string{
		"a name":            {"http://metadata.example", "", "", ""},
		"a tenant's name":   {"", "corp.example", "", ""},
		"client only":       {"", "", client, ""},
		"a client's name":   {"", tenant, "app", ""},
		"a damaged chain":   {"", "", "", issuing[:100] + "\n"},
		"text in the chain": {"", "", "", "hello\n" + issuing},
		"a key":             {"", "", "", strings.ReplaceAll(issuing, "CERTIFICATE", "PRIVATE KEY")},
		"a long chain":      {"", "", "", many},
		"a chain of junk":   {"", "", "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
	} {
		if _, err := NewAttester(x[0], x[1], x[2], []byte(x[3])); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
