package spiffe_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/bailment/bailment/internal/spiffe"
)

const domain = "a.example"

func key(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// authority makes a CA's certificate of a trust domain.
func authority(t testing.TB, k crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a CA"}, NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}}, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func token(t testing.TB, k crypto.Signer) spiffe.TokenKey {
	t.Helper()
	der, err := spiffe.MarshalTokenKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	out, err := spiffe.ParseTokenKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sample(t testing.TB) *spiffe.Bundle {
	return &spiffe.Bundle{
		Authorities: []*x509.Certificate{authority(t, key(t, elliptic.P256()), nil), authority(t, key(t, elliptic.P384()), nil)},
		Tokens:      []spiffe.TokenKey{token(t, key(t, elliptic.P256())), token(t, key(t, elliptic.P256()))},
		Sequence:    1<<40 + 7, Sequenced: true, RefreshHint: 5 * time.Minute,
	}
}

func marshal(t testing.TB, b *spiffe.Bundle) []byte {
	t.Helper()
	doc, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// What is written is read by go-spiffe as what it is, what go-spiffe writes is read here, and the same is written again.
func TestBundleWithOthers(t *testing.T) {
	b := sample(t)
	doc := marshal(t, b)
	theirs, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(domain), doc)
	if err != nil {
		t.Fatal(err)
	}
	if seq, ok := theirs.SequenceNumber(); !ok || seq != b.Sequence {
		t.Fatalf("sequence %d", seq)
	}
	if hint, ok := theirs.RefreshHint(); !ok || hint != b.RefreshHint {
		t.Fatalf("hint %s", hint)
	}
	if len(theirs.X509Authorities()) != 2 || len(theirs.JWTAuthorities()) != 2 || !theirs.HasX509Authority(b.Authorities[1]) || !theirs.HasJWTAuthority(b.Tokens[1].ID) {
		t.Fatal("authorities are missing")
	}
	again, err := theirs.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range [][]byte{doc, again} {
		read, err := spiffe.Parse(domain, d)
		if err != nil {
			t.Fatal(err)
		}
		if !read.Same(b) || !b.Same(read) || read.Sequence != b.Sequence || !read.Sequenced || read.RefreshHint != b.RefreshHint {
			t.Fatalf("read as %+v", read)
		}
	}
	if !bytes.Equal(doc, marshal(t, b)) {
		t.Fatal("the same bundle is written in two ways")
	}
	other := sample(t)
	if b.Same(other) || b.Same(&spiffe.Bundle{Authorities: b.Authorities}) || b.Same(&spiffe.Bundle{Authorities: b.Authorities, Tokens: append(b.Tokens[:1:1], spiffe.TokenKey{ID: b.Tokens[1].ID, Public: b.Tokens[0].Public})}) {
		t.Fatal("others are taken for the same")
	}
}

// edit changes a bundle's document as JSON.
func edit(t testing.TB, doc []byte, change func(d map[string]any, keys []map[string]any)) []byte {
	t.Helper()
	var d map[string]any
	if err := json.Unmarshal(doc, &d); err != nil {
		t.Fatal(err)
	}
	var keys []map[string]any
	for _, k := range d["keys"].([]any) {
		keys = append(keys, k.(map[string]any))
	}
	change(d, keys)
	out, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParseRefuses(t *testing.T) {
	good := marshal(t, sample(t))
	if _, err := spiffe.Parse(domain, good); err != nil {
		t.Fatal(err)
	}
	with := func(change func(d map[string]any, keys []map[string]any)) []byte { return edit(t, good, change) }
	only := func(k crypto.Signer, change func(*x509.Certificate)) []byte {
		return marshal(t, &spiffe.Bundle{Authorities: []*x509.Certificate{authority(t, k, change)}})
	}
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	small.PublicKey.N = new(big.Int).Rsh(small.PublicKey.N, 1024)
	weak, err := jose.JSONWebKey{Key: &small.PublicKey, KeyID: "weak", Use: "jwt-svid"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := jose.JSONWebKey{Key: key(t, elliptic.P256()), KeyID: "private", Use: "jwt-svid"}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string][]byte{
		"nothing":              nil,
		"not JSON":             []byte("keys"),
		"two documents":        append(bytes.Clone(good), good...),
		"a list":               []byte("[]"),
		"no keys":              []byte("{}"),
		"keys that are null":   []byte(`{"keys":null}`),
		"keys of another sort": []byte(`{"keys":{}}`),
		"oversize":             append(bytes.Clone(good), bytes.Repeat([]byte{' '}, spiffe.MaxBundle)...),
		"nested":               []byte(`{"keys":[],"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}`),
		"a key twice":          []byte(`{"keys":[],"keys":[]}`),
		"a member twice":       []byte(strings.Replace(string(good), `"use":"x509-svid"`, `"use":"x509-svid","use":"jwt-svid"`, 1)),
		"not UTF-8":            []byte("{\"keys\":[],\"x\":\"\xff\"}"),
		"a negative sequence":  with(func(d map[string]any, _ []map[string]any) { d["spiffe_sequence"] = -1 }),
		"a text as sequence":   with(func(d map[string]any, _ []map[string]any) { d["spiffe_sequence"] = "7" }),
		"many keys": with(func(d map[string]any, k []map[string]any) {
			d["keys"] = slices.Repeat([]map[string]any{{"use": "x"}}, spiffe.MaxKeys+1)
		}),
		"no certificate":                     with(func(_ map[string]any, k []map[string]any) { delete(k[0], "x5c") }),
		"two certificates":                   with(func(_ map[string]any, k []map[string]any) { k[0]["x5c"] = slices.Repeat(k[0]["x5c"].([]any), 2) }),
		"another key than the certificate's": with(func(_ map[string]any, k []map[string]any) { k[0]["x"], k[0]["y"] = k[2]["x"], k[2]["y"] }),
		"a token key without an ID":          with(func(_ map[string]any, k []map[string]any) { delete(k[2], "kid") }),
		"two of one ID":                      with(func(_ map[string]any, k []map[string]any) { k[2]["kid"] = k[3]["kid"] }),
		"a long ID":                          with(func(_ map[string]any, k []map[string]any) { k[2]["kid"] = strings.Repeat("k", 257) }),
		"a point that is on no curve":        with(func(_ map[string]any, k []map[string]any) { k[2]["y"] = k[2]["x"] }),
		"an authority of another domain":     only(key(t, elliptic.P256()), func(c *x509.Certificate) { c.URIs[0].Host = "b.example" }),
		"one that is no CA":                  only(key(t, elliptic.P256()), func(c *x509.Certificate) { c.IsCA = false }),
		"one that may not sign":              only(key(t, elliptic.P256()), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }),
		"a weak key":                         fmt.Appendf(nil, `{"keys":[%s]}`, weak),
		"an Edwards key":                     only(edwards, nil),
		"P-224":                              only(key(t, elliptic.P521()), func(c *x509.Certificate) { c.URIs[0].Host = "A.example" }),
		"a private key":                      fmt.Appendf(nil, `{"keys":[%s]}`, private),
		"a symmetric key":                    []byte(`{"keys":[{"use":"jwt-svid","kid":"k","kty":"oct","k":"AAAA"}]}`),
	} {
		if _, err := spiffe.Parse(domain, doc); err == nil {
			t.Errorf("%s was taken", name)
		} else if len(err.Error()) > 200 {
			t.Errorf("%s: a long error", name)
		}
	}
	// What the format demands to be ignored is.
	b, err := spiffe.Parse(domain, with(func(d map[string]any, k []map[string]any) {
		d["x-other"] = map[string]any{"a": 1}
		k[1]["use"], k[3]["use"] = "wit-svid", "sig"
		k[0]["alg"] = "ES256"
	}))
	if err != nil || len(b.Authorities) != 1 || len(b.Tokens) != 1 {
		t.Fatalf("%v %+v", err, b)
	}
	if b, err := spiffe.Parse(domain, []byte(`{"keys":[],"spiffe_refresh_hint":18446744073709551615}`)); err != nil || b.RefreshHint <= 0 || b.Sequenced {
		t.Fatalf("%v %+v", err, b)
	}
}

func TestToken(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for want, k := range map[string]crypto.Signer{spiffe.ES256: key(t, elliptic.P256()), spiffe.RS256: rsaKey} {
		t.Run(want, func(t *testing.T) { testToken(t, k, want) })
	}
}

func testToken(t *testing.T, k crypto.Signer, algorithm string) {
	pub := token(t, k)
	if pub.Algorithm != algorithm {
		t.Fatalf("the key is for %s", pub.Algorithm)
	}
	bundle := spiffebundle.New(spiffeid.RequireTrustDomainFromString(domain))
	if err := bundle.AddJWTAuthority(pub.ID, pub.Public); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for range 50 { // short numbers in signatures come now and then
		text, err := spiffe.Sign(k, pub.ID, spiffe.Claims{
			Subject: "spiffe://a.example/workload/api", Audience: []string{"b"}, ID: "0.1", Issued: now, Expires: now.Add(time.Minute),
		})
		if err != nil {
			t.Fatal(err)
		}
		svid, err := jwtsvid.ParseAndValidate(text, bundle, []string{"b"})
		if err != nil || svid.Expiry.After(now.Add(time.Minute)) {
			t.Fatal(svid, err)
		}
		if head, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(algorithm)}); err != nil || head.Headers[0].KeyID != pub.ID {
			t.Fatal("it is signed by something else", err)
		}
		if _, has := svid.Claims["iss"]; has {
			t.Fatal("an issuer that there is none of")
		}
	}
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]crypto.Signer{"P-384": key(t, elliptic.P384()), "RSA of 3072 bits": large, "broken": broken{key(t, elliptic.P256())}} {
		if _, err := spiffe.Sign(s, "k", spiffe.Claims{}); err == nil {
			t.Errorf("%s signed", name)
		}
	}
	for name, k := range map[string]crypto.PublicKey{
		"P-384": key(t, elliptic.P384()).Public(), "RSA of 3072 bits": large.Public(), "a small exponent": &rsa.PublicKey{N: small(t), E: 3},
	} {
		if _, err := spiffe.MarshalTokenKey(k); err == nil {
			t.Errorf("%s is a key of tokens", name)
		}
	}
	der, err := spiffe.MarshalTokenKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, der[1:], append(bytes.Clone(der), 0), bytes.Repeat([]byte{1}, 91)} {
		if _, err := spiffe.ParseTokenKey(bad); err == nil {
			t.Errorf("%x is a key", bad)
		}
	}
}

// small is a modulus of the size of ours.
func small(t *testing.T) *big.Int {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k.N
}

// broken is a signer whose signatures are none.
type broken struct{ crypto.Signer }

func (broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return []byte{0x30, 0}, nil }

func TestNames(t *testing.T) {
	for _, good := range []string{"https://a.example", "https://a.example:8443/x", "https://[::1]:1/y"} {
		if err := spiffe.ValidIssuer(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "http://a.example", "https://", "https://a.example/", "https://u@a.example", "https://a.example?x", "https://a.example#x", "a.example", "https:a.example", "https://a.example/" + strings.Repeat("x", 300), "https://a\x00b"} {
		if err := spiffe.ValidIssuer(bad); err == nil {
			t.Errorf("%q is an issuer", bad)
		}
	}
	if spiffe.ValidEndpoint("https://a.example/b?c=d") != nil || spiffe.ValidEndpoint("ftp://a.example/b") == nil {
		t.Error("endpoints")
	}
	for audience, ok := range map[string]bool{"a": true, "spiffe://a/b": true, "überall": true, "": false, "a b": false, "a\x7f": false, "a\u0085": false, "\xff": false, strings.Repeat("a", 257): false} {
		if (spiffe.ValidAudience(audience) == nil) != ok {
			t.Errorf("audience %q", audience)
		}
	}
}

// What is taken can be written, and is then read as the same.
func FuzzParse(f *testing.F) {
	f.Add(marshal(f, sample(f)))
	f.Add([]byte(`{"keys":[],"spiffe_sequence":1,"spiffe_refresh_hint":60}`))
	f.Add([]byte(`{"keys":[{"use":"jwt-svid","kid":"k","kty":"oct","k":"AAAA"}]}`))
	f.Add([]byte(`{"keys":[{"use":"x509-svid","x5c":["AA=="]}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		b, err := spiffe.Parse(domain, doc)
		if err != nil {
			return
		}
		again, err := b.Marshal()
		if err != nil {
			t.Fatalf("taken, and can't be written: %v", err)
		}
		c, err := spiffe.Parse(domain, again)
		if len(again) > spiffe.MaxBundle {
			return // written longer than it was read
		}
		if err != nil || !b.Same(c) || c.RefreshHint != b.RefreshHint || (b.Sequence != 0 && c.Sequence != b.Sequence) {
			t.Fatalf("written and read again it differs: %v", err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	k := key(b, elliptic.P256())
	now := time.Now()
	for b.Loop() {
		if _, err := spiffe.Sign(k, "k", spiffe.Claims{Subject: "spiffe://a.example/workload/api", Audience: []string{"b"}, ID: "0.1", Issued: now, Expires: now}); err != nil {
			b.Fatal(err)
		}
	}
}

// A key of ours is told with what it signs by, so that no verifier guesses; one of others without, since they may sign by any that fits it.
func TestKeySetNamesAlgorithms(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ours := token(t, k)
	for want, x := range map[string]spiffe.TokenKey{spiffe.RS256: ours, spiffe.ES256: token(t, key(t, elliptic.P256())), "": {ID: ours.ID, Public: ours.Public}} {
		doc, err := spiffe.KeySet([]spiffe.TokenKey{x})
		if err != nil {
			t.Fatal(err)
		}
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(doc, &set); err != nil || len(set.Keys) != 1 || set.Keys[0].Algorithm != want || set.Keys[0].KeyID != x.ID {
			t.Errorf("%v: %s", err, doc)
		}
	}
}
