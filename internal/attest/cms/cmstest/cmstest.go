// Package cmstest makes signed documents for tests, with another implementation than the one that is tested: clouds' certificates, their
// messages, and what an attacker makes of them.
//
// Guaranteed: what Message makes is what a well-behaved cloud would. Not guaranteed: anything outside of tests, which alone import it.
package cmstest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/bailment/bailment/internal/attest/cms"
)

// The digests that a message may have.
var (
	SHA1   = pkcs7.OIDDigestAlgorithmSHA1
	SHA256 = pkcs7.OIDDigestAlgorithmSHA256
)

// Signer is a certificate with its key.
type Signer struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Key gives an RSA key of 2048 bits, always the same one for the same number: finding primes is slow.
func Key(number int) *rsa.PrivateKey {
	mu.Lock()
	defer mu.Unlock()
	for len(keys) <= number {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys = append(keys, key)
	}
	return keys[number]
}

var (
	mu   sync.Mutex
	keys []*rsa.PrivateKey
)

// Issue makes a certificate for key, signed by parent or, without one, by itself. Its validity is what the other implementation, which
// knows no time but its own, can't find fault with, until change says otherwise.
func Issue(t testing.TB, name string, serial int64, key crypto.Signer, parent *Signer, change func(*x509.Certificate)) Signer {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	if change != nil {
		change(c)
	}
	by := Signer{c, key}
	if parent != nil {
		by = *parent
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.Certificate, key.Public(), by.Key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{made, key}
}

// CA makes a certificate of Issue a CA's.
func CA(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
}

// Message is a document that was signed, with signed attributes as AWS does it, or without as Azure does, as the cloud would send it. The
// signers' certificates are in it.
func Message(t testing.TB, document []byte, digest asn1.ObjectIdentifier, attributes bool, signers ...Signer) []byte {
	t.Helper()
	sd, err := pkcs7.NewSignedData(document)
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(digest)
	for _, s := range signers {
		if attributes {
			err = sd.AddSigner(s.Certificate, s.Key, pkcs7.SignerInfoConfig{})
		} else {
			err = sd.SignWithoutAttr(s.Certificate, s.Key, pkcs7.SignerInfoConfig{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Encoded is what a machine makes of a message: the one encoding, with these certificates in it.
func Encoded(t testing.TB, message []byte, certificates ...*x509.Certificate) []byte {
	t.Helper()
	s, err := cms.Rewrite(message)
	if err != nil {
		t.Fatal(err)
	}
	s.Certificates = nil
	for _, c := range certificates {
		s.Certificates = append(s.Certificates, c.Raw)
	}
	der, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return der
}
