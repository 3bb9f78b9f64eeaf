package control_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bailment/bailment/internal/control/controltest"
)

// The extensions that our certificates may have (RFC 5280 §4.2.1): nothing else surprises a verifier.
var (
	oidSubjectKeyID   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasic          = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// leafFaults are what is wrong with an X.509-SVID by X509-SVID §2 to §4.
func leafFaults(c *x509.Certificate) []string {
	var out []string
	bad := func(wrong bool, what string) {
		if wrong {
			out = append(out, what)
		}
	}
	bad(len(c.URIs) != 1, "§2: not exactly one URI SAN")
	if len(c.URIs) > 0 {
		id, err := spiffeid.FromURI(c.URIs[0])
		bad(err != nil, "§2: not a SPIFFE ID")
		bad(err == nil && (id.Path() == "" || id.TrustDomain().Name() != controltest.EnvName), "§3.1: a leaf's ID has a path in its trust domain")
	}
	bad(!c.BasicConstraintsValid || c.IsCA, "§4.1: a leaf is not a CA")
	bad(c.KeyUsage&x509.KeyUsageDigitalSignature == 0, "§4.3: a leaf has digitalSignature")
	bad(c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0, "§4.3: a leaf signs neither certificates nor CRLs")
	bad(!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth), "§4.4: both serverAuth and clientAuth")
	bad(len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) != 2, "§4.4: nothing but serverAuth and clientAuth")
	bad(len(c.EmailAddresses)+len(c.IPAddresses) > 0, "other names")
	critical(c, bad)
	bad(c.Subject.String() == "" && !isCritical(c, oidSubjectAltName), "RFC 5280 §4.2.1.6: without a subject the SAN is critical")
	known(c, bad, oidKeyUsage, oidExtKeyUsage, oidBasic, oidAuthorityKeyID, oidSubjectAltName)
	return out
}

// signerFaults are what is wrong with a CA's certificate by X509-SVID §3.2 and §4.
func signerFaults(c *x509.Certificate) []string {
	var out []string
	bad := func(wrong bool, what string) {
		if wrong {
			out = append(out, what)
		}
	}
	bad(len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://"+controltest.EnvName, "§3.2: a CA's ID is its trust domain, without a path")
	bad(!c.BasicConstraintsValid || !c.IsCA, "§4.1: a CA has the flag")
	bad(c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign, "§4.3: a CA has keyCertSign, and cRLSign at most")
	bad(len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) != 0, "§4.4: usages are for leaves")
	bad(len(c.DNSNames)+len(c.EmailAddresses)+len(c.IPAddresses) > 0, "other names")
	bad(len(c.SubjectKeyId) == 0, "RFC 5280 §4.2.1.2: a CA has a key ID")
	critical(c, bad)
	known(c, bad, oidKeyUsage, oidBasic, oidSubjectKeyID, oidAuthorityKeyID, oidSubjectAltName)
	return out
}

func critical(c *x509.Certificate, bad func(bool, string)) {
	bad(!isCritical(c, oidKeyUsage), "§4.3: key usage is critical")
	bad(!isCritical(c, oidBasic), "RFC 5280 §4.2.1.9: basic constraints are critical")
	bad(c.Version != 3 || c.SerialNumber.Sign() <= 0 || len(c.SerialNumber.Bytes()) > 20, "RFC 5280 §4.1.2: version or serial number")
}

func isCritical(c *x509.Certificate, id asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(id) && e.Critical })
}

func known(c *x509.Certificate, bad func(bool, string), ids ...asn1.ObjectIdentifier) {
	for _, e := range c.Extensions {
		bad(!slices.ContainsFunc(ids, e.Id.Equal), fmt.Sprintf("an extension %s", e.Id))
	}
}

// Every kind of certificate that is signed conforms, before and after a rotation of the CA.
func TestX509SVIDsConform(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	for round := range 2 {
		node := w.Node(alice, fmt.Sprintf("web-%d", round))
		key, _ := controltest.Key(t)
		server, _, err := w.Env.ServerCertificate(t.Context(), key, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for name, chain := range map[string][][]byte{
			"person": w.Login("alice").Opened.Chain, "node": node.Opened.Chain, "workload": w.Workload(node, "").Opened.Chain, "server": server,
		} {
			for i, der := range chain {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				faults := signerFaults(c)
				if i == 0 {
					faults = leafFaults(c)
				}
				if len(faults) > 0 {
					t.Errorf("round %d, %s, certificate %d: %q", round, name, i, faults)
				}
			}
		}
		for _, c := range trustOf(t, w).X509Authorities() {
			if faults := signerFaults(c); len(faults) > 0 {
				t.Errorf("an authority: %q", faults)
			}
		}
		if _, _, err := w.Env.RotateKey(t.Context(), alice.Caller, "ca"); err != nil {
			t.Fatal(err)
		}
	}
}

// The checks above find each fault that they are about.
func TestConformanceFindsFaults(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(change func(*x509.Certificate), ca bool) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
			URIs:     []*url.URL{{Scheme: "spiffe", Host: controltest.EnvName, Path: "/workload/api"}},
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		if ca {
			c.URIs[0].Path, c.KeyUsage, c.ExtKeyUsage, c.IsCA = "", x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil, true
			c.Subject.CommonName = "a CA"
		}
		change(c)
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if f := leafFaults(make(func(*x509.Certificate) {}, false)); len(f) > 0 {
		t.Fatalf("a sound leaf: %q", f)
	}
	if f := signerFaults(make(func(*x509.Certificate) {}, true)); len(f) > 0 {
		t.Fatalf("a sound CA: %q", f)
	}
	for i, change := range []func(*x509.Certificate){
		func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{"a"} },
		func(c *x509.Certificate) { c.URIs[0].Path = "" },
		func(c *x509.Certificate) { c.URIs[0].Scheme = "https" },
		func(c *x509.Certificate) { c.IsCA = true },
		func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement },
		func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign },
		func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] },
		func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) },
		func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} },
		func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
		},
		func(c *x509.Certificate) { c.BasicConstraintsValid = false },
	} {
		if len(leafFaults(make(change, false))) == 0 {
			t.Errorf("fault %d of a leaf was not found", i)
		}
	}
	for i, change := range []func(*x509.Certificate){
		func(c *x509.Certificate) { c.URIs[0].Path = "/workload/api" },
		func(c *x509.Certificate) { c.URIs = nil },
		func(c *x509.Certificate) { c.IsCA = false },
		func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature },
		func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		func(c *x509.Certificate) { c.DNSNames = []string{"a"} },
	} {
		if len(signerFaults(make(change, true))) == 0 {
			t.Errorf("fault %d of a CA was not found", i)
		}
	}
}
