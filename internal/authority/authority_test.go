package authority_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/authority"
)

func root(t *testing.T, change func(*x509.Certificate)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, key, change)
}

func signed(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) string {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestValidName(t *testing.T) {
	for _, name := range []string{"a", "corp", "4", "corp-2", "corp.example", strings.Repeat("a", 63)} {
		if err := authority.ValidName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "-", "a-", "-a", ".a", "a.", "A", "a_b", "a b", "a/b", "a:b", "ä", "a\n", strings.Repeat("a", 64)} {
		if authority.ValidName(name) == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestParse(t *testing.T) {
	a, b := root(t, nil), root(t, nil)
	got, err := authority.Parse([]byte("\n" + a + "\n\n" + b))
	if err != nil || len(got) != 2 {
		t.Fatalf("%d, %v", len(got), err)
	}
	var set authority.Set
	if err := set.Add("corp", got); err != nil {
		t.Fatal(err)
	}
	if name, ok := set.Of(got[1]); !ok || name != "corp" {
		t.Errorf("it is of %q", name)
	}
	for _, name := range []string{"corp", "other"} {
		if set.Add(name, got[1:]) == nil {
			t.Errorf("added again for %s", name)
		}
	}
	for what, text := range map[string]string{
		"nothing": "", "text": "hello", "a comment": "# corp\n" + a, "text between": a + "and\n" + b, "text behind": a + "x",
		"a damaged block first": a[:100] + "\n" + b, "a damaged block between": a + a[:100] + "\n" + b, "a damaged block behind": a + b[:100],
		"a header": strings.Replace(a, "-----\n", "-----\nProc-Type: 4\n\n", 1), "no DER": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"another type": strings.ReplaceAll(a, "CERTIFICATE", "X509 CRL"), "too many": strings.Repeat(a, authority.MaxCertificates+1),
		"too large": strings.Repeat("\n", 1<<20) + a,
		"no CA":     root(t, func(c *x509.Certificate) { c.IsCA = false }), "no constraints": root(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = false, false }),
		"may not sign": root(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }),
	} {
		if _, err := authority.Parse([]byte(text)); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if _, err := authority.Parse([]byte(a + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")); err == nil || !strings.Contains(err.Error(), "PRIVATE KEY") {
		t.Errorf("a private key: %v", err)
	}
}

// TestParsePinned holds certificates that sign evidence themselves to what matters for that, and no more.
func TestParsePinned(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	leaf := root(t, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	for what, text := range map[string]string{
		"a leaf":                   leaf,
		"no constraints, no usage": root(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid, c.KeyUsage = false, false, 0 }),
		"a CA that signs evidence": root(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }),
		"two":                      leaf + root(t, func(c *x509.Certificate) { c.KeyUsage = 0 }),
	} {
		if _, err := authority.ParseFor("aws", []byte(text)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := authority.ParseFor("x509", []byte(leaf)); err == nil || !strings.Contains(err.Error(), "not a CA's") {
		t.Errorf("a leaf for x509: %v", err)
	}
	for what, c := range map[string]struct{ text, says string }{
		"RSA 1024":        {signed(t, weak, nil), "an RSA key of 1024 bits (2048 to 8192 are accepted)"},
		"may not sign":    {root(t, nil), "may not make signatures"},
		"a damaged block": {leaf[:100] + "\n", "besides PEM blocks"},
		"nothing":         {"", "no certificate"},
	} {
		if _, err := authority.ParseFor("aws", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWeakness(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if authority.Weakness(key.Public()) == "" || authority.Weakness("no key") == "" {
		t.Error("a weak key is accepted")
	}
	if _, err := authority.Parse([]byte(signed(t, key, nil))); err == nil || !strings.Contains(err.Error(), "weak") {
		t.Error(err)
	}
}
