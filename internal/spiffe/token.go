package spiffe

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"
	"unicode/utf8"
)

// What JWT-SVIDs of ours are signed by (RFC 7518 §3.3, §3.4): ES256, by a P-256 key, or RS256, by an RSA key of rsaBits, for verifiers that
// know nothing else.
const (
	ES256 = "ES256"
	RS256 = "RS256"
)

// rsaBits is the one size of RSA keys of ours.
const rsaBits = 2048

// Limits of a token. One audience is the normal case: who gets a token with two can use it at the other (JWT-SVID §6.2).
const (
	MaxAudiences = 8
	MaxAudience  = 256 // bytes of one
	MaxTokenLife = 5 * time.Minute
	MinTokenLife = 30 * time.Second
)

// ValidAudience checks one audience: printable, not empty, no spaces at its ends, no longer than MaxAudience.
func ValidAudience(s string) error {
	if s == "" || len(s) > MaxAudience {
		return fmt.Errorf("an audience has 1 to %d bytes", MaxAudience)
	}
	if !utf8.ValidString(s) {
		return errors.New("an audience is UTF-8 text")
	}
	for _, c := range s {
		if c <= ' ' || c == 0x7f || (c >= 0x80 && c < 0xa0) {
			return errors.New("an audience has no spaces or control characters")
		}
	}
	return nil
}

// KeyID is the name by which verifiers find a key: the first half of the SHA-256 of its DER form, so that no other
// key has it, of whatever number, epoch or environment.
func KeyID(pkix []byte) string {
	sum := sha256.Sum256(pkix)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// ParseTokenKey reads a key for tokens of ours: DER of a public key (SubjectPublicKeyInfo), ECDSA P-256 or RSA of rsaBits with the exponent
// 65537, in exactly the form in which it is written.
func ParseTokenKey(pkix []byte) (TokenKey, error) {
	pub, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		return TokenKey{}, errors.New("not a public key")
	}
	algorithm, err := algorithmOf(pub)
	if err != nil {
		return TokenKey{}, err
	}
	if again, err := x509.MarshalPKIXPublicKey(pub); err != nil || !bytes.Equal(again, pkix) {
		return TokenKey{}, errors.New("not in its one form")
	}
	return TokenKey{KeyID(pkix), pub, algorithm}, nil
}

// algorithmOf is what a key of ours signs by.
func algorithmOf(pub crypto.PublicKey) (string, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return ES256, nil
		}
	case *rsa.PublicKey:
		if k.N.BitLen() == rsaBits && k.E == 65537 {
			return RS256, nil
		}
	}
	return "", fmt.Errorf("neither an ECDSA P-256 key nor an RSA key of %d bits", rsaBits)
}

// MarshalTokenKey writes what ParseTokenKey reads.
func MarshalTokenKey(pub crypto.PublicKey) ([]byte, error) {
	pkix, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding a public key: %w", err)
	}
	_, err = ParseTokenKey(pkix)
	return pkix, err
}

// Claims are those of a JWT-SVID (JWT-SVID §3). All but Issuer are required.
type Claims struct {
	Subject  string // SPIFFE ID
	Audience []string
	Issuer   string
	ID       string // unique in the environment
	Issued   time.Time
	Expires  time.Time
}

// Sign makes the compact form (RFC 7515 §7.1). The header has alg, kid and typ, and by JWT-SVID §2 must have nothing else.
// Times are whole seconds: the end is rounded down, so that no token outlives what was decided.
func Sign(key crypto.Signer, keyID string, c Claims) (string, error) {
	algorithm, err := algorithmOf(key.Public())
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	header, err := json.Marshal(struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
		Type      string `json:"typ"`
	}{algorithm, keyID, "JWT"})
	if err != nil {
		return "", fmt.Errorf("writing a token's header: %w", err)
	}
	claims, err := json.Marshal(struct {
		Issuer   string   `json:"iss,omitempty"`
		Subject  string   `json:"sub"`
		Audience []string `json:"aud"`
		Expires  int64    `json:"exp"`
		Issued   int64    `json:"iat"`
		ID       string   `json:"jti"`
	}{c.Issuer, c.Subject, c.Audience, c.Expires.Unix(), c.Issued.Unix(), c.ID})
	if err != nil {
		return "", fmt.Errorf("writing a token's claims: %w", err)
	}
	b64 := base64.RawURLEncoding
	text := b64.AppendEncode(nil, header)
	text = append(text, '.')
	text = b64.AppendEncode(text, claims)
	digest := sha256.Sum256(text)
	raw, err := key.Sign(rand.Reader, digest[:], crypto.SHA256) // of an RSA key: PKCS #1 v1.5, which is RS256's
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	if algorithm == ES256 {
		if raw, err = rawSignature(raw); err != nil {
			return "", err
		}
	}
	text = append(text, '.')
	return string(b64.AppendEncode(text, raw)), nil
}

// rawSignature turns an ASN.1 signature into the two numbers of 32 bytes that RFC 7518 §3.4 wants.
func rawSignature(der []byte) ([]byte, error) {
	var s struct{ R, S *big.Int }
	const size = 32
	rest, err := asn1.Unmarshal(der, &s)
	if err != nil || len(rest) > 0 || s.R.Sign() <= 0 || s.S.Sign() <= 0 || s.R.BitLen() > 8*size || s.S.BitLen() > 8*size {
		return nil, errors.New("the key's signature is not one of ECDSA P-256")
	}
	out := make([]byte, 2*size)
	s.R.FillBytes(out[:size])
	s.S.FillBytes(out[size:])
	return out, nil
}
