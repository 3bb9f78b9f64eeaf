package controltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/spiffe"
	"github.com/bailment/bailment/internal/state"
)

// Partner is another trust domain with which the history's environment federates.
const (
	Partner       = "partner.example"
	partnerBundle = `apiVersion: bailment/v1
kind: Federation
metadata: {name: partner}
spec:
  trustDomain: partner.example
  endpoint: {url: "https://partner.example/bundle", profile: https_web}
`
)

// Foreign is another trust domain, played by a test.
type Foreign struct {
	Name   string
	CA     *x509.Certificate
	Key    *ecdsa.PrivateKey
	Token  *ecdsa.PrivateKey // signs JWT-SVIDs
	tokens []spiffe.TokenKey
}

// NewForeign makes a trust domain with a CA and a key of tokens.
func NewForeign(t testing.TB, name string) *Foreign {
	t.Helper()
	f := &Foreign{Name: name}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	var err error
	f.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	f.Token, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(err)
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "CA of " + name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: name}}, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, f.Key.Public(), f.Key)
	must(err)
	f.CA, err = x509.ParseCertificate(der)
	must(err)
	pkix, err := spiffe.MarshalTokenKey(f.Token.Public())
	must(err)
	token, err := spiffe.ParseTokenKey(pkix)
	must(err)
	f.tokens = []spiffe.TokenKey{token}
	return f
}

// Bundle is its trust bundle of a sequence number; 0: without one.
func (f *Foreign) Bundle(t testing.TB, sequence uint64) []byte {
	t.Helper()
	b := &spiffe.Bundle{Authorities: []*x509.Certificate{f.CA}, Tokens: f.tokens, Sequence: sequence, Sequenced: sequence != 0, RefreshHint: time.Minute}
	doc, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// spiffe issues tokens, rotates their keys, takes the first CA out of the trust bundle, and hears of another trust domain.
func (h *history) spiffe(c Cast) {
	w := h.w
	for _, by := range []Actor{c.API, c.Node} {
		_, err := w.Env.IssueJWT(h.ctx, by.Caller, control.JWTRequest{Audience: []string{"spiffe://partner.example/db"}})
		h.check(err)
	}
	_, _, err := w.Env.RotateKey(h.ctx, c.Alice.Caller, state.KeyJWT)
	h.check(err)
	_, err = w.Env.IssueJWT(h.ctx, c.API.Caller, control.JWTRequest{Audience: []string{"reports", "billing"}, TTL: time.Minute})
	h.check(err)
	_, err = w.Env.WithdrawKey(h.ctx, c.Alice.Caller, control.WithdrawRequest{Key: "ca/1", Reason: "rotated a day ago"})
	h.check(err)
	all, err := w.Env.Relations(h.ctx)
	h.check(err)
	for _, r := range all {
		_, err = w.Env.Refreshed(h.ctx, r.Name, r.Pin, NewForeign(w.T, r.TrustDomain).Bundle(w.T, 7))
		h.check(err)
	}
}
