package x509

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
)

// A little PKI with fixed keys. They are for tests only: everything made with them is public.

var now = attesttest.Now()

// node is one certificate with its key.
type node struct {
	cert *cx509.Certificate
	key  crypto.Signer
}

func fixed(curve elliptic.Curve, label string) crypto.Signer {
	key25519 := attesttest.Key(label)
	if curve == nil {
		return key25519
	}
	raw := make([]byte, (curve.Params().BitSize+7)/8)
	copy(raw[len(raw)-31:], key25519.Seed()[:31]) // below the order of every curve
	key, err := ecdsa.ParseRawPrivateKey(curve, raw)
	if err != nil {
		panic(err)
	}
	return key
}

// rsaKey makes the RSA keys once; finding primes is slow.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return attesttest.RSA(2048) })

var weakRSAKey = sync.OnceValue(func() *rsa.PrivateKey { return attesttest.RSA(1024) })

func template(cn string, serial int64) *cx509.Certificate {
	return &cx509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		BasicConstraintsValid: true,
	}
}

// issue signs tmpl for key by parent; without a parent it signs itself.
func issue(t testing.TB, tmpl *cx509.Certificate, key crypto.Signer, parent *node) node {
	t.Helper()
	signer := node{tmpl, key}
	if parent != nil {
		signer = *parent
	}
	der, err := cx509.CreateCertificate(rand.Reader, tmpl, signer.cert, key.Public(), signer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := cx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return node{cert, key}
}

func ca(t testing.TB, cn string, key crypto.Signer, parent *node, change func(*cx509.Certificate)) node {
	tmpl := template(cn, 1)
	tmpl.IsCA, tmpl.KeyUsage = true, cx509.KeyUsageCertSign|cx509.KeyUsageCRLSign
	if change != nil {
		change(tmpl)
	}
	return issue(t, tmpl, key, parent)
}

func leaf(t testing.TB, key crypto.Signer, parent *node, change func(*cx509.Certificate)) node {
	tmpl := template("web-1", 0x2a)
	tmpl.Subject.Organization = []string{"Corp"}
	tmpl.Subject.OrganizationalUnit = []string{"web", "eu"}
	tmpl.KeyUsage = cx509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []cx509.ExtKeyUsage{cx509.ExtKeyUsageClientAuth}
	tmpl.DNSNames = []string{"web-1.corp.example"}
	tmpl.URIs = []*url.URL{{Scheme: "spiffe", Host: "corp.example", Path: "/web-1"}}
	if change != nil {
		change(tmpl)
	}
	return issue(t, tmpl, key, parent)
}

func pemOf(nodes ...node) []byte {
	var out []byte
	for _, n := range nodes {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.cert.Raw})...)
	}
	return out
}

func authorities(t testing.TB, named map[string][]byte) *Authorities {
	t.Helper()
	a, err := NewAuthorities(named)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func binding() attest.Binding { return attesttest.Binding(Name) }

// evidenceBy makes evidence with no check at all, as an adversary would.
func evidenceBy(t testing.TB, key crypto.Signer, b attest.Binding, chain ...node) []byte {
	t.Helper()
	signature, err := sign(key, b.Message())
	if err != nil {
		t.Fatal(err)
	}
	return evidenceWith(t, signature, chain...)
}

func evidenceWith(t testing.TB, signature []byte, chain ...node) []byte {
	t.Helper()
	ev := evidence{Chain: [][]byte{}, Signature: signature}
	for _, n := range chain {
		ev.Chain = append(ev.Chain, n.cert.Raw)
	}
	out, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func attested(t testing.TB, chain ...node) []byte {
	t.Helper()
	var ders [][]byte
	for _, n := range chain {
		ders = append(ders, n.cert.Raw)
	}
	a, err := NewAttester(ders, chain[0].key)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := a.Attest(context.Background(), binding())
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// pki is what most tests start from: a root, an intermediate and one machine.
type pki struct {
	root, inter, web node
	params           Params
}

func newPKI(t testing.TB) pki {
	var p pki
	p.root = ca(t, "Corp Root", fixed(elliptic.P256(), "root"), nil, nil)
	p.inter = ca(t, "Corp Issuing", fixed(elliptic.P384(), "issuing"), &p.root, nil)
	p.web = leaf(t, fixed(elliptic.P256(), "web"), &p.inter, nil)
	p.params = Params{authorities(t, map[string][]byte{"corp": pemOf(p.root)})}
	return p
}

func (p pki) input(evidence []byte) attest.Input {
	return attest.Input{Binding: binding(), Evidence: evidence, Now: now, Params: p.params}
}

func sha512sum(b []byte) []byte {
	sum := sha512.Sum512(b)
	return sum[:]
}

func pkixCN(cn string) pkix.AttributeTypeAndValue {
	return pkix.AttributeTypeAndValue{Type: oidCommonName, Value: cn}
}

func criticalExtension() []pkix.Extension {
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}}
}
