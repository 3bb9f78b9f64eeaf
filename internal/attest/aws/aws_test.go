package aws

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/attest/cms/cmstest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

var now = attesttest.Now()

func binding() attest.Binding { return attesttest.Binding(Name) }

// cloud is an AWS of two regions: certificates of the same name without any extension, as the real ones are.
type cloud struct{ west, east cmstest.Signer }

func newCloud(t testing.TB) cloud {
	return cloud{cmstest.Issue(t, "Amazon Web Services LLC", 11, cmstest.Key(0), nil, nil), cmstest.Issue(t, "Amazon Web Services LLC", 12, cmstest.Key(1), nil, nil)}
}

func (c cloud) regions(t testing.TB) Params {
	t.Helper()
	r, err := RegionsOf([]authority.Authority{
		{Name: "eu-west-1", Method: Name, Certificates: []*x509.Certificate{c.west.Certificate}},
		{Name: "aws.us-east-1", Method: Name, Certificates: []*x509.Certificate{c.east.Certificate}, MaxAge: time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	return Params{r}
}

// instanceDocument is one as AWS writes it, with replacements.
func instanceDocument(replace ...string) []byte {
	return []byte(strings.NewReplacer(replace...).Replace(`{
  "accountId" : "123456789012",
  "architecture" : "x86_64",
  "availabilityZone" : "eu-west-1a",
  "billingProducts" : null,
  "devpayProductCodes" : null,
  "marketplaceProductCodes" : [ "1abc2defghijklm3nopqrs4tu" ],
  "imageId" : "ami-5fb8c835",
  "instanceId" : "i-1234567890abcdef0",
  "instanceType" : "t2.micro",
  "kernelId" : null,
  "pendingTime" : "2026-11-22T11:55:00Z",
  "privateIp" : "10.158.112.84",
  "ramdiskId" : null,
  "region" : "eu-west-1",
  "version" : "2017-09-30"
}`))
}

func evidenceOf(t testing.TB, der []byte) []byte {
	t.Helper()
	ev, err := attest.EncodeEvidence(evidence{Signed: der})
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func shown(t testing.TB, document []byte, by cmstest.Signer) []byte {
	t.Helper()
	return evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, document, cmstest.SHA256, true, by)))
}

func input(ev []byte, p Params) attest.Input {
	return attest.Input{Binding: binding(), Evidence: ev, Now: now, Params: p}
}

func TestVerify(t *testing.T) {
	c := newCloud(t)
	got, err := Verify(input(shown(t, instanceDocument(), c.west), c.regions(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := attest.Result{
		Claims: map[string]any{
			"authority": "eu-west-1", "account_id": "123456789012", "region": "eu-west-1", "availability_zone": "eu-west-1a",
			"instance_id": "i-1234567890abcdef0", "instance_type": "t2.micro", "image_id": "ami-5fb8c835", "private_ip": "10.158.112.84",
			"architecture": "x86_64", "pending_time": "2026-11-22T11:55:00Z",
		},
		Assurance: identity.Token,
		Anchor:    "aws:eu-west-1",
		Once:      "aws:123456789012/eu-west-1/i-1234567890abcdef0",
		Key:       sha256.Sum256(c.west.Certificate.RawSubjectPublicKeyInfo),
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func TestVerifyAccepts(t *testing.T) {
	c := newCloud(t)
	p := c.regions(t)
	for name, ev := range map[string][]byte{
		"without attributes":         evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, false, c.west))),
		"started this second":        shown(t, instanceDocument("11:55:00", "12:00:00"), c.west),
		"a clock a minute ahead":     shown(t, instanceDocument("11:55:00", "12:01:00"), c.west),
		"as old as may be":           shown(t, instanceDocument("11:55:00", "11:50:00"), c.west),
		"the other region, older":    shown(t, instanceDocument("11:55:00", "11:00:00", "eu-west-1", "us-east-1"), c.east),
		"a member that is new to us": shown(t, instanceDocument(`"version"`, `"future": {"a": [1]}, "version"`), c.west),
		"IPv6 only":                  shown(t, instanceDocument(`"10.158.112.84"`, "null"), c.west),
		"an IPv6 address":            shown(t, instanceDocument("10.158.112.84", "2001:db8::1"), c.west),
		"a local zone":               shown(t, instanceDocument(`"eu-west-1a"`, `"eu-west-1-lon-1a"`), c.west),
		"an underscore":              shown(t, instanceDocument("x86_64", "arm64_mac", "t2.micro", "u-6tb1.112xlarge"), c.west),
	} {
		if _, err := Verify(input(ev, p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnbound says in code what the README says: the same evidence is good for any challenge, environment and key, and always has the same
// single use, which is what tells the second holder apart.
func TestUnbound(t *testing.T) {
	c := newCloud(t)
	in := input(shown(t, instanceDocument(), c.west), c.regions(t))
	first, err := Verify(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Binding.Genesis, in.Binding.Nonce, in.Binding.SessionKey = attesttest.Array(2), bytes.Repeat([]byte{8}, 32), attesttest.Array(8)
	second, err := Verify(in)
	if err != nil || !reflect.DeepEqual(first, second) || first.Once == "" || !first.OnceUntil.IsZero() {
		t.Fatalf("%+v, %v", second, err)
	}
	// Another document of the same instance, after a restart, is the same instance.
	in.Evidence = shown(t, instanceDocument("11:55:00", "11:59:00", "10.158.112.84", "10.0.0.1"), c.west)
	if third, err := Verify(in); err != nil || third.Once != first.Once {
		t.Fatalf("%+v, %v", third, err)
	}
}

type hostileCase = attesttest.Hostile

func TestHostileEvidence(t *testing.T) {
	c := newCloud(t)
	p := c.regions(t)
	cases := map[string]hostileCase{}
	hostileForm(t, c, cases)
	hostileSignature(t, c, cases)
	hostileDocument(t, c, cases)
	attesttest.RefuseAll(t, Verify, func(ev []byte) attest.Input { return input(ev, p) }, cases)
}

func hostileForm(t *testing.T, c cloud, cases map[string]hostileCase) {
	good := string(shown(t, instanceDocument(), c.west))
	form := func(name, ev string) { cases[name] = hostileCase{Evidence: []byte(ev), Want: problem.ReasonInvalid} }
	form("empty", "")
	form("truncated", good[:len(good)-2])
	form("trailing", good+" ")
	form("duplicate field", strings.Replace(good, `{"signed"`, `{"signed":"","signed"`, 1))
	form("unknown field", strings.Replace(good, `{"signed"`, `{"document":"","signed"`, 1))
	form("other letter case", strings.Replace(good, `"signed"`, `"Signed"`, 1))
	form("no message", `{"signed":""}`)
	form("null", `{"signed":null}`)
	cases["oversized"] = hostileCase{Evidence: make([]byte, attest.MaxEvidence+1), Want: problem.ReasonTooLarge}
	cases["oversized message"] = hostileCase{Evidence: evidenceOf(t, make([]byte, cms.MaxMessage+1)), Want: problem.ReasonTooLarge}
	cases["oversized document"] = hostileCase{
		Evidence: evidenceOf(t, cmstest.Message(t, append(instanceDocument(), bytes.Repeat([]byte(" "), cms.MaxContent)...), cmstest.SHA256, true, c.west)),
		Want:     problem.ReasonTooLarge, Says: "document inside",
	}
	der := cmstest.Encoded(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, true, c.west))
	cases["message truncated"] = hostileCase{Evidence: evidenceOf(t, der[:len(der)-1]), Want: problem.ReasonInvalid}
	cases["message trailing"] = hostileCase{Evidence: evidenceOf(t, append(bytes.Clone(der), 0)), Want: problem.ReasonInvalid}
	cases["as the cloud sent it, with certificates"] = hostileCase{
		Evidence: evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, true, c.west), c.west.Certificate)),
		Want:     problem.ReasonInvalid, Says: "brings certificates",
	}
	cases["extra signer"] = hostileCase{
		Evidence: evidenceOf(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, true, c.west, c.east)),
		Want:     problem.ReasonInvalid, Says: "exactly one signer",
	}
	goodEvidence := []byte(good)
	cases["wrong params"] = hostileCase{Evidence: goodEvidence, Change: func(in *attest.Input) { in.Params = 1 }, Want: problem.ReasonInternal}
	cases["no regions"] = hostileCase{Evidence: goodEvidence, Change: func(in *attest.Input) { in.Params = Params{} }, Want: problem.ReasonInternal}
	cases["another method"] = hostileCase{Evidence: goodEvidence, Change: func(in *attest.Input) { in.Binding.Method = "azure" }, Want: problem.ReasonInternal}
}

func hostileSignature(t *testing.T, c cloud, cases map[string]hostileCase) {
	signed := func(name string, by cmstest.Signer, want problem.Reason, says string) {
		cases[name] = hostileCase{Evidence: shown(t, instanceDocument(), by), Want: want, Says: says}
	}
	thief := cmstest.Key(2)
	signed("a self-signed signer of AWS's name", cmstest.Issue(t, "Amazon Web Services LLC", 99, thief, nil, nil), problem.ReasonBadChain, "no certificate that the bundle pins")
	signed("a signer of AWS's name and number", cmstest.Issue(t, "Amazon Web Services LLC", 11, thief, nil, nil), problem.ReasonBadProof, "")
	signed("a certificate that AWS's issued", cmstest.Issue(t, "x", 5, thief, &c.west, nil), problem.ReasonBadChain, "no certificate that the bundle pins")
	signed("the other region's certificate", c.east, problem.ReasonBadChain, "another region")
	cases["another region's document"] = hostileCase{
		Evidence: shown(t, instanceDocument("eu-west-1", "us-east-1"), c.west), Want: problem.ReasonBadChain, Says: "another region",
	}
	cases["SHA-1"] = hostileCase{
		Evidence: evidenceOf(t, cmstest.Message(t, instanceDocument(), cmstest.SHA1, true, c.west)), Want: problem.ReasonWeakAlgorithm,
	}
	der := cmstest.Encoded(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, true, c.west))
	change := func(name, old, with string) {
		cases[name] = hostileCase{Evidence: evidenceOf(t, bytes.Replace(der, []byte(old), []byte(with), 1)), Want: problem.ReasonBadProof}
	}
	change("another account", "123456789012", "123456789013")
	change("another instance", "i-1234567890abcdef0", "i-1234567890abcdef1")
	change("made younger", "11:55:00", "11:59:00")
	cases["swapped document"] = hostileCase{Evidence: evidenceOf(t, swapped(t, der, instanceDocument("t2.micro", "t2.small"))), Want: problem.ReasonBadProof}
	sha256WithRSA, md5WithRSA := string([]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}), string([]byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4})
	cases["downgraded to MD5"] = hostileCase{Evidence: evidenceOf(t, bytes.Replace(der, []byte(sha256WithRSA), []byte(md5WithRSA), 1)), Want: problem.ReasonWeakAlgorithm}
	expired := cmstest.Issue(t, "Amazon Web Services LLC", 13, cmstest.Key(0), nil, func(x *x509.Certificate) { x.NotAfter = now.Add(-time.Second) })
	early := cmstest.Issue(t, "Amazon Web Services LLC", 14, cmstest.Key(0), nil, func(x *x509.Certificate) { x.NotBefore = now.Add(time.Second) })
	for says, s := range map[string]cmstest.Signer{"expired at": expired, "not valid before": early} {
		r, err := RegionsOf([]authority.Authority{{Name: "eu-west-1", Certificates: []*x509.Certificate{s.Certificate}}})
		if err != nil {
			t.Fatal(err)
		}
		// The other implementation compares its own clock with these certificates, so it signs in another's name.
		ev := evidenceOf(t, renamed(t, s))
		cases["pinned certificate "+says] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { in.Params = Params{r} }, Want: problem.ReasonBadChain, Says: says}
	}
}

// swapped puts another document, and what would follow of it, where the signed one was.
func swapped(t *testing.T, der, document []byte) []byte {
	t.Helper()
	s, err := cms.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	s.Content = document
	out, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// renamed is a document signed by a key, in the name of a certificate that has it.
func renamed(t *testing.T, s cmstest.Signer) []byte {
	t.Helper()
	serial := s.Certificate.SerialNumber.Int64()
	same := cmstest.Issue(t, "Amazon Web Services LLC", serial, s.Key, nil, nil)
	return cmstest.Encoded(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, true, same))
}

func hostileDocument(t *testing.T, c cloud, cases map[string]hostileCase) {
	signed := func(name string, document []byte, want problem.Reason) {
		cases[name] = hostileCase{Evidence: shown(t, document, c.west), Want: want}
	}
	wrong := func(name string, replace ...string) {
		signed(name, instanceDocument(replace...), problem.ReasonInvalid)
	}
	signed("too old", instanceDocument("11:55:00", "11:49:59"), problem.ReasonEvidenceExpired)
	signed("future", instanceDocument("11:55:00", "12:01:01"), problem.ReasonNotYetValid)
	signed("no document", []byte("canary"), problem.ReasonInvalid)
	signed("null", []byte("null"), problem.ReasonInvalid)
	signed("list", []byte("[]"), problem.ReasonInvalid)
	signed("trailing data", append(instanceDocument(), "{}"...), problem.ReasonInvalid)
	signed("document truncated", instanceDocument()[:100], problem.ReasonInvalid)
	signed("not UTF-8", instanceDocument("t2.micro", "t2.\xff"), problem.ReasonInvalid)
	wrong("duplicate member", `"version"`, `"instanceId" : "i-0000000000000000f", "version"`)
	wrong("duplicate member that is not read", `"version"`, `"kernelId" : null, "version"`)
	wrong("other letter case of a member", `"accountId"`, `"AccountID"`)
	wrong("account of eleven digits", "123456789012", "12345678901")
	wrong("account with a slash", "123456789012", "12345678901/")
	wrong("account as a number", `"123456789012"`, "123456789012")
	wrong("no instance", `"instanceId"`, `"instance"`)
	wrong("instance with a slash", "i-1234567890abcdef0", "i-12345678/canary")
	wrong("instance in capitals", "i-1234567890abcdef0", "i-1234567890ABCDEF0")
	wrong("no region", `"region" : "eu-west-1"`, `"region" : null`)
	wrong("region that is none", `"region" : "eu-west-1"`, `"region" : "eu/west"`)
	wrong("zone of another region", "eu-west-1a", "eu-west-2a")
	wrong("image that is none", "ami-5fb8c835", "canary")
	wrong("type with a control character", "t2.micro", `t2\u0000`)
	wrong("no architecture", `"architecture" : "x86_64"`, `"architecture" : ""`)
	wrong("address that is none", "10.158.112.84", "canary")
	wrong("address with a zone", "10.158.112.84", "fe80::1%canary")
	wrong("time that is none", "2026-11-22T11:55:00Z", "canary")
	wrong("no time", `"pendingTime"`, `"launchTime"`)
}

func TestRegionsOfRefuses(t *testing.T) {
	c := newCloud(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := cmstest.Issue(t, "Amazon Web Services LLC", 3, small, nil, nil)
	of := func(name string, s ...cmstest.Signer) authority.Authority {
		a := authority.Authority{Name: name}
		for _, one := range s {
			a.Certificates = append(a.Certificates, one.Certificate)
		}
		return a
	}
	for name, all := range map[string][]authority.Authority{
		"no region in the name":     {of("aws", c.west)},
		"a region that is not last": {of("eu-west-1.aws", c.west)},
		"a region behind a dash":    {of("aws-eu-west", c.west)},
		"for two regions":           {of("eu-west-1", c.west), of("eu-west-2", c.west)},
		"twice":                     {of("eu-west-1", c.west, c.west)},
		"RSA 1024":                  {of("eu-west-1", weak)},
	} {
		if _, err := RegionsOf(all); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := RegionsOf([]authority.Authority{of("eu-west-1", weak)}); err == nil || !strings.Contains(err.Error(), "an RSA key of 1024 bits") {
		t.Errorf("RSA 1024: %v", err)
	}
	// Old and new certificate of a region, side by side.
	r, err := RegionsOf([]authority.Authority{of("us-gov-east-1", c.west, c.east)})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []cmstest.Signer{c.west, c.east} {
		if _, err := Verify(input(shown(t, instanceDocument("eu-west-1", "us-gov-east-1"), s), Params{r})); err != nil {
			t.Error(err)
		}
	}
}

// TestPublishedCertificates holds AWS's own certificates, where they are, to the rule of authorities: all of RSA-2048 are taken, all of
// RSA-1024 refused for just that.
func TestPublishedCertificates(t *testing.T) {
	corpus := os.Getenv("BAILMENT_CORPUS")
	if corpus == "" {
		corpus = filepath.Join("..", "..", "..", "..", "shared", "corpus")
	}
	strong, _ := filepath.Glob(filepath.Join(corpus, "attestation", "aws-ca", "awsrsa2048", "*.pem"))
	weak, _ := filepath.Glob(filepath.Join(corpus, "attestation", "aws-ca", "awsrsa1024", "*.pem"))
	if len(strong) == 0 {
		t.Logf("NOT CHECKED: AWS's published certificates are not at %s (BAILMENT_CORPUS)", corpus)
	}
	var all []authority.Authority
	for _, path := range strong {
		certificates, err := authority.ParseFor(Name, read(t, path))
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(path), err)
			continue
		}
		all = append(all, authority.Authority{Name: strings.TrimSuffix(filepath.Base(path), ".pem"), Method: Name, Certificates: certificates})
	}
	regions, err := RegionsOf(all)
	if err != nil || len(regions.signers) < len(strong) {
		t.Errorf("%v", err)
	}
	for _, path := range weak {
		if _, err := authority.ParseFor(Name, read(t, path)); err == nil || !strings.Contains(err.Error(), "has an RSA key of 1024 bits (2048 to 8192 are accepted)") {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// service is a metadata service of version 2.
func service(t testing.TB, body string) *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+tokenPath, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerTTL) == "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte("AQAEtoken=="))
	})
	mux.HandleFunc("GET "+documentPath, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerToken) != "AQAEtoken==" {
			w.WriteHeader(http.StatusUnauthorized) // version 1 is off
			return
		}
		_, _ = w.Write([]byte(body))
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func lines(message []byte) string {
	text := base64.StdEncoding.EncodeToString(message)
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + "\n")
		text = text[64:]
	}
	return b.String() + text
}

func TestAttester(t *testing.T) {
	c := newCloud(t)
	s := service(t, lines(cmstest.Message(t, instanceDocument(), cmstest.SHA256, true, c.west)))
	a, err := NewAttester(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := a.Attest(context.Background(), binding())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(ev, []byte(base64.StdEncoding.EncodeToString(c.west.Certificate.Raw[:30]))) {
		t.Error("the certificate that came along is sent")
	}
	if res, err := Verify(input(ev, c.regions(t))); err != nil || res.Claims["instance_id"] != "i-1234567890abcdef0" {
		t.Fatalf("%+v, %v", res, err)
	}
	attesttest.Attester(t, a, Name)
}

func TestAttesterRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    problem.Reason
	}{
		"version 1 only": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			_, _ = w.Write([]byte("AAAA"))
		}, problem.ReasonInvalid},
		"an empty token":         {func(http.ResponseWriter, *http.Request) {}, problem.ReasonInvalid},
		"a token with a newline": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("a\nX-Other: b")) }, problem.ReasonInvalid},
		"a long token":           {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("a"), maxToken+1)) }, problem.ReasonInvalid},
		"no base64": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("canary!"))
		}, problem.ReasonInvalid},
		"no message": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("AAAA"))
		}, problem.ReasonInvalid},
		"not ready": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, problem.ReasonUnreachable},
	} {
		s := httptest.NewServer(c.handler)
		a, err := NewAttester(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Attest(context.Background(), binding()); !problem.Is(err, c.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
	if _, err := NewAttester("http://metadata.example"); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("a name: %v", err)
	}
}

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	Comment     string            `json:"comment"`
	Authorities map[string]string `json:"authorities"`
	attesttest.Case
	Once string `json:"once,omitempty"`
}

func (v vector) Input(t testing.TB) attest.Input {
	t.Helper()
	var all []authority.Authority
	for name, text := range v.Authorities {
		certificates, err := authority.ParseFor(Name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, authority.Authority{Name: name, Certificates: certificates})
	}
	r, err := RegionsOf(all)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Input{Binding: binding(), Evidence: []byte(v.Evidence), Now: v.Now, Params: Params{r}}
}

func writeVectors(t *testing.T) {
	c := newCloud(t)
	var vs []vector
	add := func(comment string, refused problem.Reason, ev []byte) {
		v := vector{Comment: comment, Case: attesttest.Case{Now: now, Evidence: string(ev), Refused: refused}, Authorities: map[string]string{
			"eu-west-1": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.west.Certificate.Raw})),
		}}
		v.Once = v.Record(t, Verify, v.Input(t)).Once
		vs = append(vs, v)
	}
	add("accepted: signed attributes", "", shown(t, instanceDocument(), c.west))
	add("accepted: no signed attributes", "", evidenceOf(t, cmstest.Encoded(t, cmstest.Message(t, instanceDocument(), cmstest.SHA256, false, c.west))))
	add("started too long ago", problem.ReasonEvidenceExpired, shown(t, instanceDocument("11:55:00", "11:00:00"), c.west))
	add("another region's certificate", problem.ReasonBadChain, shown(t, instanceDocument(), c.east))
	add("another region's document", problem.ReasonBadChain, shown(t, instanceDocument("eu-west-1", "us-east-1"), c.west))
	add("SHA-1", problem.ReasonWeakAlgorithm, evidenceOf(t, cmstest.Message(t, instanceDocument(), cmstest.SHA1, true, c.west)))
	attesttest.Write(t, vs)
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 6) }

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	for _, v := range readVectors(t) {
		if res := attesttest.Check(t, Verify, v.Comment, v); res.Once != v.Once {
			t.Errorf("%s: once %q", v.Comment, res.Once)
		}
	}
}

func FuzzVerify(f *testing.F) {
	vs := readVectors(f)
	attesttest.Fuzz(f, Verify, vs, vs[:1])
}

func FuzzDocument(f *testing.F) {
	f.Add(instanceDocument())
	f.Add(instanceDocument(`"version"`, `"instanceId":"", "version"`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := parseDocument(data)
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Fatal(err)
			}
			return
		}
		res, err := result(d, &signer{authority: "eu-west-1"})
		if err != nil || strings.Count(res.Once, "/") != 2 {
			t.Fatalf("%q, %v", res.Once, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c := newCloud(b)
	in := input(shown(b, instanceDocument(), c.west), c.regions(b))
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
