// Package jwttest is an issuer of tokens for tests, and the table of what an attacker makes of a token (Attacks), by which every method
// whose evidence is a token is tested.
//
// Guaranteed: what Sign makes is what a well-behaved issuer would; everything else is done on purpose. Not guaranteed: anything outside
// of tests, which alone import it.
package jwttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// Issuer signs tokens with one key.
type Issuer struct {
	URL       string
	KeyID     string
	Algorithm jose.SignatureAlgorithm
	Key       crypto.Signer

	t testing.TB
}

// New makes an issuer with a new key for the algorithm: RS, PS, ES256, ES384 or EdDSA. The key's ID is "key-1".
func New(t testing.TB, url string, algorithm jose.SignatureAlgorithm) *Issuer {
	t.Helper()
	return &Issuer{URL: url, KeyID: "key-1", Algorithm: algorithm, Key: NewKey(t, algorithm), t: t}
}

// NewKey makes a key for the algorithm.
func NewKey(t testing.TB, algorithm jose.SignatureAlgorithm) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch algorithm {
	case jose.ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// JWK is the issuer's public key as it publishes it.
func (i *Issuer) JWK() jose.JSONWebKey {
	return jose.JSONWebKey{Key: i.Key.Public(), KeyID: i.KeyID, Use: "sig", Algorithm: string(i.Algorithm)}
}

// Keys is the set of that one key.
func (i *Issuer) Keys() *jose.JSONWebKeySet {
	return &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.JWK()}}
}

// Header is the header of its tokens.
func (i *Issuer) Header() map[string]any {
	return map[string]any{"alg": string(i.Algorithm), "kid": i.KeyID, "typ": "JWT"}
}

// Sign makes a token of claims.
func (i *Issuer) Sign(claims map[string]any) []byte {
	i.t.Helper()
	return i.SignRaw(i.json(i.Header()), i.json(claims))
}

// SignWith makes a token with some header parameters changed; nil takes one away.
func (i *Issuer) SignWith(claims, change map[string]any) []byte {
	i.t.Helper()
	return i.SignRaw(i.json(With(i.Header(), change)), i.json(claims))
}

// SignRaw signs whatever is given as header and payload, by the issuer's own algorithm, without go-jose: it would refuse most of it.
func (i *Issuer) SignRaw(header, payload []byte) []byte {
	i.t.Helper()
	token := i.Raw(header, payload)
	if token == nil {
		i.t.Fatal("the key can't sign")
	}
	return token
}

// Raw is SignRaw for fuzzers, which must not use a test's methods: nil for what can't be signed.
func (i *Issuer) Raw(header, payload []byte) []byte {
	text := Encode(header) + "." + Encode(payload)
	signature, err := sign(i.Key, i.Algorithm, []byte(text))
	if err != nil {
		return nil
	}
	return []byte(text + "." + Encode(signature))
}

func sign(key crypto.Signer, algorithm jose.SignatureAlgorithm, text []byte) ([]byte, error) {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[string(algorithm[2:])]
	var opts crypto.SignerOpts = hash
	digest := text
	if hash != 0 {
		h := hash.New()
		h.Write(text)
		digest = h.Sum(nil)
	}
	if algorithm[:2] == "PS" {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return key.Sign(rand.Reader, digest, opts)
	}
	// RFC 7518 §3.4: r and s, each as long as the curve's order.
	r, s, err := ecdsa.Sign(rand.Reader, k, digest)
	if err != nil {
		return nil, err
	}
	size := (k.Curve.Params().BitSize + 7) / 8
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

// With is members with some changed; nil takes one away.
func With(members, change map[string]any) map[string]any {
	out := maps.Clone(members)
	for name, value := range change {
		if value == nil {
			delete(out, name)
		} else {
			out[name] = value
		}
	}
	return out
}

func (i *Issuer) json(v any) []byte {
	i.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// Encode is base64url without padding.
func Encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// HMAC signs with the issuer's public key as the secret (RFC 8725 §2.1).
func (i *Issuer) HMAC(header, payload []byte) []byte {
	i.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(i.Key.Public())
	if err != nil {
		i.t.Fatal(err)
	}
	text := Encode(header) + "." + Encode(payload)
	mac := hmac.New(sha256.New, der)
	mac.Write([]byte(text))
	return []byte(text + "." + Encode(mac.Sum(nil)))
}
