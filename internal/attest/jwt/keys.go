package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// algorithms is the closed list of what is accepted, and for each what its key must be. "none" and everything symmetric are not in it:
// a public key would be the secret of an HMAC (RFC 8725 §2.1). ES512 is not in it since nobody needs it.
var algorithms = map[jose.SignatureAlgorithm]func(key any) bool{
	jose.RS256: isRSA, jose.RS384: isRSA, jose.RS512: isRSA,
	jose.PS256: isRSA, jose.PS384: isRSA, jose.PS512: isRSA,
	jose.ES256: func(key any) bool { return onCurve(key, elliptic.P256()) },
	jose.ES384: func(key any) bool { return onCurve(key, elliptic.P384()) },
	jose.EdDSA: func(key any) bool { k, ok := key.(ed25519.PublicKey); return ok && len(k) == ed25519.PublicKeySize },
}

func isRSA(key any) bool { k, ok := key.(*rsa.PublicKey); return ok && k != nil && k.N != nil }

func onCurve(key any, curve elliptic.Curve) bool {
	k, ok := key.(*ecdsa.PublicKey)
	return ok && k != nil && k.Curve == curve
}

// fits reports whether a key is of the algorithm's type and says nothing against being used for it (RFC 7517 §4.2, §4.4).
func fits(k jose.JSONWebKey, algorithm string) bool {
	return algorithms[jose.SignatureAlgorithm(algorithm)](k.Key) && (k.Use == "" || k.Use == "sig") && (k.Algorithm == "" || k.Algorithm == algorithm)
}

// choose gives the one key that can have signed a token. With a key ID that is the key of that ID, of which there must be one only;
// without, there must be only one key that fits: trying several would let a token choose among them.
func choose(keys []jose.JSONWebKey, id, algorithm string) (jose.JSONWebKey, error) {
	var found []jose.JSONWebKey
	for _, k := range keys {
		if id != "" && k.KeyID == id || id == "" && fits(k, algorithm) {
			found = append(found, k)
		}
	}
	switch {
	case len(found) == 0 && id == "":
		return jose.JSONWebKey{}, invalid("the token names no key, and the issuer has none for its algorithm")
	case len(found) == 0:
		return jose.JSONWebKey{}, invalid("the token names a key that its issuer has not published")
	case len(found) > 1 && id == "":
		return jose.JSONWebKey{}, invalid("the token names no key, and the issuer has several for its algorithm")
	case len(found) > 1:
		return jose.JSONWebKey{}, invalid("the issuer has several keys of the ID that the token names")
	case !fits(found[0], algorithm):
		return jose.JSONWebKey{}, invalid("the key that the token names is not for the token's algorithm")
	}
	if why := authority.Weakness(found[0].Key); why != "" {
		return jose.JSONWebKey{}, problem.New(problem.ReasonWeakAlgorithm, "the issuer's key is %s", why)
	}
	return found[0], nil
}

// checkSignature lets go-jose check it with this key and this algorithm only. What was parsed here is the same that was signed: the parts
// have one encoding, and go-jose verifies over it as it was sent.
func checkSignature(token []byte, p parsed, key any) error {
	jws, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(p.algorithm)})
	if err != nil {
		return refused(err)
	}
	if _, err := jws.Verify(key); err != nil {
		return refused(err)
	}
	return nil
}

// refused keeps go-jose's message inside: it may quote the token.
func refused(cause error) error {
	p := problem.New(problem.ReasonTokenInvalid, "the token's signature is not by the issuer's key")
	p.Err = cause
	return p
}
