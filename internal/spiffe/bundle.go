// Package spiffe reads and writes the documents by which the world outside knows an environment: trust bundles in the
// SPIFFE bundle format, the key set and the discovery document of OpenID Connect, and JWT-SVIDs in their compact form.
//
// Guaranteed: what Parse accepts is within its limits, holds certificate authorities and signature keys of accepted
// kinds and sizes only, and none of its authorities says that it is another trust domain's; Marshal gives the same
// bytes for the same bundle. Nothing here reads a clock, a file or the network. Not guaranteed: that a document is who
// it is said to be of. A bundle doesn't name its trust domain, so whoever fetched it must know (package federation).
//
// Its place: a leaf. Package policy reads pinned bundles with it, custody and control write tokens and documents,
// federation reads what it fetched.
package spiffe

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a bundle document. Many trust domains have two or three authorities of some hundred bytes each.
const (
	MaxBundle = 128 << 10 // bytes
	MaxKeys   = 64
	maxKeyID  = 256
	maxDepth  = 8
)

// The uses of keys in a bundle (SPIFFE_Trust_Domain_and_Bundle §4.2.2).
const (
	useX509 = "x509-svid"
	useJWT  = "jwt-svid"
)

// Bounds of RSA keys, in bits. Smaller ones are broken, larger ones cost who verifies.
const (
	minRSA = 2048
	maxRSA = 8192
)

// TokenKey is a key that verifies JWT-SVIDs.
type TokenKey struct {
	ID        string // the header `kid` of tokens
	Public    crypto.PublicKey
	Algorithm string // of a key of ours, what it signs by; empty: whatever fits the key
}

// Bundle is the content of a trust bundle document. It says nothing of whose it is.
type Bundle struct {
	Authorities []*x509.Certificate
	Tokens      []TokenKey
	Sequence    uint64 // meaningful with Sequenced only
	Sequenced   bool
	RefreshHint time.Duration // whole seconds; 0: none is given
}

// document is the JWK Set of SPIFFE_Trust_Domain_and_Bundle §4.1.
type document struct {
	Keys        *[]jsontext.Value `json:"keys"`
	Sequence    *uint64           `json:"spiffe_sequence"`
	RefreshHint *uint64           `json:"spiffe_refresh_hint"`
}

// maxHint keeps a hint within what a duration holds, and is longer than anybody honours.
const maxHint = 10 * 365 * 24 * 60 * 60

// Parse reads a bundle document that is of trustDomain. Unknown parameters and uses are ignored, as the format demands;
// everything else is strict, and one bad key refuses the document: half a bundle would be a surprise later. The error's
// text quotes nothing of the document.
func Parse(trustDomain string, data []byte) (*Bundle, error) {
	if len(data) > MaxBundle {
		return nil, fmt.Errorf("the bundle has more than %d bytes", MaxBundle)
	}
	if err := shallow(data); err != nil {
		return nil, err
	}
	var d document
	if err := jsonv2.Unmarshal(data, &d); err != nil {
		return nil, errors.New("the bundle is not a JSON object of the SPIFFE bundle format")
	}
	if d.Keys == nil {
		return nil, errors.New("the bundle has no parameter keys")
	}
	if len(*d.Keys) > MaxKeys {
		return nil, fmt.Errorf("the bundle has more than %d keys", MaxKeys)
	}
	b := &Bundle{}
	if d.Sequence != nil {
		b.Sequence, b.Sequenced = *d.Sequence, true
	}
	if d.RefreshHint != nil {
		b.RefreshHint = time.Duration(min(*d.RefreshHint, maxHint)) * time.Second
	}
	for i, raw := range *d.Keys {
		if err := b.add(trustDomain, raw); err != nil {
			return nil, fmt.Errorf("key %d of the bundle: %w", i, err)
		}
	}
	return b, nil
}

// shallow refuses nesting before a decoder recurses into it, and what isn't JSON at all.
func shallow(data []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(data))
	for {
		if d.StackDepth() > maxDepth {
			return fmt.Errorf("the bundle is nested deeper than %d", maxDepth)
		}
		if _, err := d.ReadToken(); err != nil {
			if d.StackDepth() == 0 && d.InputOffset() > 0 && len(bytes.TrimSpace(data[d.InputOffset():])) == 0 {
				return nil
			}
			return errors.New("the bundle is not JSON")
		}
	}
}

// add takes one key of the set.
func (b *Bundle) add(trustDomain string, raw jsontext.Value) error {
	var head struct {
		Use string `json:"use"`
	}
	if err := jsonv2.Unmarshal(raw, &head); err != nil {
		return errors.New("it is not a JSON Web Key")
	}
	if head.Use != useX509 && head.Use != useJWT {
		return nil // of a use to come
	}
	var k jose.JSONWebKey
	if err := k.UnmarshalJSON(raw); err != nil || !k.Valid() || !k.IsPublic() {
		return errors.New("it is not a valid public JSON Web Key")
	}
	if err := acceptable(k.Key); err != nil {
		return err
	}
	if head.Use == useX509 {
		return b.addAuthority(trustDomain, &k)
	}
	if k.KeyID == "" || len(k.KeyID) > maxKeyID {
		return fmt.Errorf("a key for tokens has an ID of 1 to %d bytes", maxKeyID)
	}
	for _, t := range b.Tokens {
		if t.ID == k.KeyID {
			return errors.New("two keys for tokens have one ID")
		}
	}
	b.Tokens = append(b.Tokens, TokenKey{ID: k.KeyID, Public: k.Key})
	return nil
}

func (b *Bundle) addAuthority(trustDomain string, k *jose.JSONWebKey) error {
	if len(k.Certificates) != 1 {
		return errors.New("an X.509 authority has exactly one certificate")
	}
	c := k.Certificates[0]
	if err := acceptable(c.PublicKey); err != nil {
		return err
	}
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("its certificate is not a CA's")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("its certificate may not sign certificates")
	}
	// X509-SVID §3.2: an authority that names a trust domain names its own.
	for _, u := range c.URIs {
		if u.Scheme == "spiffe" && u.Host != trustDomain {
			return errors.New("its certificate is an authority of another trust domain")
		}
	}
	for _, have := range b.Authorities {
		if have.Equal(c) {
			return nil
		}
	}
	b.Authorities = append(b.Authorities, c)
	return nil
}

// acceptable is the crypto policy for keys of others: those that JWT-SVID §2.1 and crypto/x509 know, of a sound size.
func acceptable(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= minRSA && n <= maxRSA {
			return nil
		}
	}
	return fmt.Errorf("its key is none of ECDSA P-256, P-384, P-521 and RSA of %d to %d bits", minRSA, maxRSA)
}

// Marshal writes the bundle document.
func (b *Bundle) Marshal() ([]byte, error) {
	keys := make([]jose.JSONWebKey, 0, len(b.Authorities)+len(b.Tokens))
	for _, c := range b.Authorities {
		keys = append(keys, jose.JSONWebKey{Key: c.PublicKey, Certificates: []*x509.Certificate{c}, Use: useX509})
	}
	for _, t := range b.Tokens {
		keys = append(keys, jose.JSONWebKey{Key: t.Public, KeyID: t.ID, Use: useJWT})
	}
	out := struct {
		Keys        []jose.JSONWebKey `json:"keys"`
		Sequence    uint64            `json:"spiffe_sequence,omitempty"`
		RefreshHint int64             `json:"spiffe_refresh_hint,omitempty"`
	}{Keys: keys, RefreshHint: int64(b.RefreshHint / time.Second)}
	if b.Sequenced {
		out.Sequence = b.Sequence
	}
	return encode(out)
}

// KeySet writes the keys for tokens as an ordinary JWK Set (RFC 7517 §5), for verifiers that know OpenID Connect and
// not SPIFFE.
func KeySet(tokens []TokenKey) ([]byte, error) {
	keys := make([]jose.JSONWebKey, 0, len(tokens))
	for _, t := range tokens {
		keys = append(keys, jose.JSONWebKey{Key: t.Public, KeyID: t.ID, Use: "sig", Algorithm: t.Algorithm})
	}
	return encode(struct {
		Keys []jose.JSONWebKey `json:"keys"`
	}{keys})
}

// Discovery writes the discovery document of an issuer whose tokens are signed by these algorithms (OpenID Connect Discovery 1.0
// §3). There is no authorization endpoint: nobody logs in here, and the clouds that federate don't ask for one.
func Discovery(issuer string, algorithms []string) ([]byte, error) {
	return encode(struct {
		Issuer        string   `json:"issuer"`
		KeySet        string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
		Claims        []string `json:"claims_supported"`
	}{
		issuer, issuer + KeysPath,
		[]string{"id_token"},
		[]string{"public"},
		slices.Compact(slices.Sorted(slices.Values(algorithms))),
		[]string{"iss", "sub", "aud", "exp", "iat", "jti"},
	})
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("writing a document of keys: %w", err)
	}
	return append(b, '\n'), nil
}

// The paths below an environment's address, or below its issuer's URL.
const (
	BundlePath    = "/spiffe/bundle"
	DiscoveryPath = "/.well-known/openid-configuration"
	KeysPath      = "/keys"
)

// maxURL bounds an issuer's or endpoint's URL, in bytes.
const maxURL = 256

// ValidIssuer checks the URL of an issuer: https, a host, no user, query or fragment, no slash at the end, so that what is
// compared as text has one form (OpenID Connect Discovery 1.0 §3).
func ValidIssuer(s string) error {
	u, err := plainURL(s)
	switch {
	case err != nil:
		return err
	case u.RawQuery != "" || u.ForceQuery:
		return errors.New("the issuer has no query")
	case len(s) > 0 && s[len(s)-1] == '/':
		return errors.New("the issuer doesn't end in a slash")
	}
	return nil
}

// ValidEndpoint checks the URL of a bundle endpoint (SPIFFE_Federation §5.2: https, without user information).
func ValidEndpoint(s string) error {
	_, err := plainURL(s)
	return err
}

func plainURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case len(s) > maxURL:
		return nil, fmt.Errorf("a URL here has at most %d bytes", maxURL)
	case err != nil, u.Opaque != "":
		return nil, errors.New("it is not a URL")
	case u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("it must be https://HOST…")
	case u.User != nil:
		return nil, errors.New("it must name no user")
	case u.Fragment != "" || u.RawFragment != "":
		return nil, errors.New("it has no fragment")
	}
	return u, nil
}

// Same reports whether two bundles tell to trust the same keys, whatever their order, sequence number and hint.
func (b *Bundle) Same(other *Bundle) bool {
	if len(b.Authorities) != len(other.Authorities) || len(b.Tokens) != len(other.Tokens) {
		return false
	}
	// Each has every authority and key ID at most once.
	for _, c := range b.Authorities {
		if !slices.ContainsFunc(other.Authorities, c.Equal) {
			return false
		}
	}
	for _, t := range b.Tokens {
		if !slices.ContainsFunc(other.Tokens, func(o TokenKey) bool { return o.ID == t.ID && sameKey(o.Public, t.Public) }) {
			return false
		}
	}
	return true
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
