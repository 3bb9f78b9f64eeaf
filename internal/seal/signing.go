package seal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"

	"github.com/bailment/bailment/internal/problem"
)

// GenerateECDSA makes a P-256 key.
//
// The scalar is drawn here, by rejection (FIPS 186-5 A.2.2), because ecdsa.GenerateKey ignores the
// reader it is given since Go 1.26 and would bypass the Source's tests.
func GenerateECDSA(src *Source) (*ecdsa.PrivateKey, error) {
	raw := make([]byte, 32)
	defer clear(raw)
	for range 8 { // a draw is refused with a chance of 2^-32
		if err := src.fill(raw); err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw); err == nil {
			return key, nil
		}
	}
	return nil, src.fail("the random source gave no number in the range of P-256")
}

// rsaBits is the size of RSA keys: what signs lives for months, and every verifier has to take it.
const rsaBits = 2048

// GenerateRSA makes an RSA key of 2,048 bits, for signatures that somebody else's software asks for. It takes some hundred milliseconds.
//
// The primes are crypto/rsa's own, from the system's generator: since Go 1.26 it takes no other, and primes of ours would be worse than
// the Source's tests are good. The Source is asked first, so that one which found that generator stuck or rewound makes none.
func GenerateRSA(src *Source) (*rsa.PrivateKey, error) {
	probe, err := src.Key(32)
	if err != nil {
		return nil, err
	}
	probe.Wipe()
	key, err := rsa.GenerateKey(rand.Reader, rsaBits)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "making an RSA key")
	}
	return key, nil
}

// GenerateEd25519 makes an Ed25519 key.
func GenerateEd25519(src *Source) (ed25519.PrivateKey, error) {
	seed := make([]byte, ed25519.SeedSize)
	defer clear(seed)
	if err := src.fill(seed); err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// MarshalPrivateKey encodes a P-256, Ed25519 or 2,048-bit RSA private key as PKCS#8.
func MarshalPrivateKey(key crypto.Signer) (Secret, error) {
	if err := checkPublic(key.Public()); err != nil {
		return Secret{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Secret{}, problem.New(problem.ReasonInternal, "encode a private key of type %T", key)
	}
	return NewSecret(der), nil
}

// ParsePrivateKey is MarshalPrivateKey's inverse. It accepts exactly what that makes: another kind
// of key, another curve, or bytes behind the key are refused.
func ParsePrivateKey(s Secret) (crypto.Signer, error) {
	if s.Len() > MaxKey {
		return nil, problem.New(problem.ReasonTooLarge, "private key of %d bytes, at most %d", s.Len(), MaxKey)
	}
	k, err := x509.ParsePKCS8PrivateKey(s.Expose())
	if err != nil { // the text may quote the key's structure: not passed on
		return nil, problem.New(problem.ReasonInvalid, "not a PKCS#8 private key")
	}
	key, ok := k.(crypto.Signer)
	if !ok {
		return nil, problem.New(problem.ReasonUnsupported, "private key of type %T can't sign", k)
	}
	again, err := MarshalPrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer again.Wipe()
	if !again.Equal(s) {
		return nil, problem.New(problem.ReasonInvalid, "private key is not in canonical PKCS#8")
	}
	return key, nil
}

func checkPublic(pub crypto.PublicKey) error {
	switch p := pub.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P256() {
			return nil
		}
		return problem.New(problem.ReasonUnsupported, "ECDSA key on %s: only P-256 is used", p.Curve.Params().Name)
	case *rsa.PublicKey:
		if p.N.BitLen() == rsaBits {
			return nil
		}
		return problem.New(problem.ReasonUnsupported, "RSA key of %d bits: only %d are used", p.N.BitLen(), rsaBits)
	}
	return problem.New(problem.ReasonUnsupported, "key of type %T: only ECDSA P-256, Ed25519 and RSA are used", pub)
}

// Thumbprint is the SHA-256 digest of the key's DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
func Thumbprint(pub crypto.PublicKey) ([32]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, problem.New(problem.ReasonUnsupported, "public key of type %T: %v", pub, err)
	}
	return sha256.Sum256(der), nil
}

// SameKey reports whether two public keys are the same.
func SameKey(a, b crypto.PublicKey) bool {
	da, err1 := x509.MarshalPKIXPublicKey(a)
	db, err2 := x509.MarshalPKIXPublicKey(b)
	return err1 == nil && err2 == nil && bytes.Equal(da, db)
}

// Derive makes n bytes from key by HKDF with SHA-256 (RFC 5869), for the use that info names.
// The key has at least 16 bytes, n at most 8,160 bytes; salt may be nil.
func Derive(key Secret, salt []byte, info string, n int) (Secret, error) {
	if key.Len() < 16 {
		return Secret{}, problem.New(problem.ReasonInternal, "derive from a key of %d bytes, want 16 or more", key.Len())
	}
	b, err := hkdf.Key(sha256.New, key.Expose(), salt, info, n)
	if err != nil {
		return Secret{}, problem.New(problem.ReasonInternal, "derive %d bytes: %v", n, err)
	}
	return NewSecret(b), nil
}
