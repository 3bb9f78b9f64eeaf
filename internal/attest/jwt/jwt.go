// Package jwt checks the signed tokens (JWS compact serialisation of a JWT: RFC 7515, 7519, with the advice of RFC 8725) that platforms
// give to what runs on them. All methods of attestation whose evidence is a token use it.
//
// Guaranteed by Verify: the token has exactly one reading (strict base64, no duplicate member at any depth, no byte besides); it was
// signed by exactly one of the keys given, with an algorithm of a closed list that fits the type of the key and what the key says it is
// for; nothing in the token chose the key but its ID; and issuer, audience and times are exactly what was expected. It is pure and
// bounded in time and memory whatever the token.
//
// Not guaranteed: that a token was not used before. Token.Unique says by what to remember it. What the claims mean, and which of them a
// platform lets a job choose, is the knowledge of the method.
//
// Its place: below the methods, beside nothing; it imports package attest and leaves.
package jwt

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Limits on a token. GitHub's and Kubernetes' have 1 to 2 KiB.
const (
	MaxToken  = 16 << 10 // bytes
	maxHeader = 1 << 10  // bytes of its JSON
	maxDepth  = 8        // objects and lists within each other
	maxValues = 1024     // values in all objects and lists
	maxText   = 1024     // bytes of iss, kid, jti and sub
)

// MaxSkew is how far an issuer's clock may be ahead of ours. It never prolongs a token: see Expect.
const MaxSkew = time.Minute

// Expect is what a token must say. Issuer, Audience, Now and MaxLifetime are compulsory.
type Expect struct {
	Issuer   string // "iss", byte for byte
	Audience string // "aud", byte for byte: that one string, or a list of just it
	Now      time.Time
	// Skew is by how much "iat" and "nbf" may be after Now: up to MaxSkew. It is not added to "exp": a token that is nearly over is no
	// loss, and so nothing that is derived from it can end before it begins.
	Skew time.Duration
	// MaxLifetime is the most time from "iat" to "exp".
	MaxLifetime time.Duration
	// MaxAge is the most time from "iat" to Now; 0: as long as the token lives.
	MaxAge time.Duration
}

// Token is what was proved by a token.
type Token struct {
	// Claims is the payload: string, bool, nil, json.Number, []any, map[string]any. Pick makes claims of package attest of it.
	Claims  map[string]any
	Subject string // "sub"; empty if there is none
	ID      string // "jti"; empty if there is none
	// Unique is by what to remember that this token was used: a digest of its issuer and "jti", or, where there is none, of what was
	// signed. It is not of the signature, which whoever holds the token can change (ECDSA's s).
	Unique    [32]byte
	Issued    time.Time // "iat"
	Expires   time.Time // "exp", after Expect.Now
	Algorithm string
	Key       [32]byte // SHA-256 of the SPKI of the key that signed it
}

// Head reads what a token says of itself before anything of it is believed. It refuses what Verify would refuse of any key: a token that is
// malformed (token-invalid), too large, or of an algorithm that is not accepted (weak-algorithm).
func Head(token []byte) (head attest.TokenHead, algorithm string, err error) {
	p, err := parse(token)
	if err != nil {
		return attest.TokenHead{}, "", err
	}
	return attest.TokenHead{Issuer: p.issuer, KeyID: p.keyID}, p.algorithm, nil
}

// Unverified reads the claims of a token of which nothing is believed. It is for who holds the token, to say what is wrong with it before
// it is sent anywhere; never for who is shown it.
func Unverified(token []byte) (map[string]any, error) {
	p, err := parse(token)
	return p.claims, err
}

// Verify checks a token against an issuer's keys. It refuses with token-invalid, weak-algorithm, unknown-issuer, wrong-audience,
// not-yet-valid, evidence-expired, issuer-keys-unavailable (keys is nil), or too-large; in that order signature, issuer, audience, times,
// so that a reason other than the first three is told only of what the issuer signed.
func Verify(token []byte, keys *jose.JSONWebKeySet, expect Expect) (Token, error) {
	if err := expect.check(); err != nil {
		return Token{}, err
	}
	p, err := parse(token)
	if err != nil {
		return Token{}, err
	}
	// The keys were chosen for this issuer: of another one's token nothing can be said.
	if p.issuer != expect.Issuer {
		return Token{}, problem.New(problem.ReasonIssuer, "the token is of another issuer than the authority that was chosen for it")
	}
	if keys == nil {
		return Token{}, problem.New(problem.ReasonNoKeys, "there are no keys of the token's issuer to check it with")
	}
	key, err := choose(keys.Keys, p.keyID, p.algorithm)
	if err != nil {
		return Token{}, err
	}
	if err := checkSignature(token, p, key.Key); err != nil {
		return Token{}, err
	}
	thumbprint, err := attest.Thumbprint(key.Key)
	if err != nil {
		return Token{}, err
	}
	out := Token{Claims: p.claims, Algorithm: p.algorithm, Key: thumbprint}
	if err := CheckAudience(p.claims["aud"], expect.Audience); err != nil {
		return Token{}, err
	}
	if out.Issued, out.Expires, err = checkTimes(p.claims, expect); err != nil {
		return Token{}, err
	}
	if out.Subject, err = optional(p.claims, "sub"); err != nil {
		return Token{}, err
	}
	if out.ID, err = optional(p.claims, "jti"); err != nil {
		return Token{}, err
	}
	out.Unique = unique(p, out.ID)
	return out, nil
}

// check refuses an expectation that would not expect: that is a defect of the caller.
func (e Expect) check() error {
	switch {
	case e.Issuer == "", e.Audience == "", e.Now.IsZero(), e.MaxLifetime <= 0:
		return problem.New(problem.ReasonInternal, "verify a token: issuer, audience, time and longest lifetime must be given")
	case e.Skew < 0, e.Skew > MaxSkew, e.MaxAge < 0:
		return problem.New(problem.ReasonInternal, "verify a token: bad skew or age")
	}
	return nil
}

// parsed is a token that is well-formed, and of which nothing is believed.
type parsed struct {
	algorithm, keyID, issuer string
	signed                   []byte // header and payload, as they were signed
	claims                   map[string]any
}

func parse(token []byte) (parsed, error) {
	if len(token) > MaxToken {
		return parsed{}, problem.New(problem.ReasonTooLarge, "the token has more than %d bytes", MaxToken)
	}
	parts := bytes.SplitN(token, []byte{'.'}, 4)
	if len(parts) != 3 {
		return parsed{}, invalid("the token is not three parts with dots between (truncated, or encrypted)")
	}
	out := parsed{signed: token[:len(parts[0])+1+len(parts[1])]}
	header, err := part(parts[0])
	if err != nil {
		return parsed{}, err
	}
	if len(header) > maxHeader {
		return parsed{}, invalid("the token's header has more than %d bytes", maxHeader)
	}
	// Before the signature is looked for: that an unsigned token is one should be told.
	if err := out.readHeader(header); err != nil {
		return parsed{}, err
	}
	payload, err := part(parts[1])
	if err != nil {
		return parsed{}, err
	}
	if _, err := part(parts[2]); err != nil {
		return parsed{}, err
	}
	if out.claims, err = object(payload); err != nil {
		return parsed{}, err
	}
	if out.issuer, err = optional(out.claims, "iss"); err != nil {
		return parsed{}, err
	}
	if out.issuer == "" {
		return parsed{}, invalid("the token names no issuer")
	}
	return out, nil
}

// readHeader refuses every header parameter that could bring a key along (jwk, jku, x5c, x5u: RFC 7515 §4.1.2-6), change what was signed
// (b64, zip, crit) or make the token something else (enc, cty: RFC 7519 §5.2). Others mean nothing to us (§4: they MUST be ignored).
func (p *parsed) readHeader(text []byte) error {
	header, err := object(text)
	if err != nil {
		return err
	}
	for _, name := range []string{"crit", "b64", "jwk", "jku", "x5c", "x5u", "zip", "enc", "cty"} {
		if _, ok := header[name]; ok {
			return invalid("the token's header has the parameter %q, which is not accepted", name)
		}
	}
	if typ, ok := header["typ"]; ok {
		// RFC 8725 §3.11: a token that was typed as something else is that.
		if t, ok := typ.(string); !ok || !strings.EqualFold(t, "JWT") && !strings.EqualFold(t, "JOSE") {
			return invalid("the token's type is not JWT")
		}
	}
	if p.keyID, err = optional(header, "kid"); err != nil {
		return err
	}
	if p.algorithm, err = optional(header, "alg"); err != nil {
		return err
	}
	if _, ok := algorithms[jose.SignatureAlgorithm(p.algorithm)]; !ok {
		return problem.New(problem.ReasonWeakAlgorithm, "the token's algorithm is not one of those that are accepted (RS, PS 256 to 512, ES256, ES384, EdDSA)")
	}
	return nil
}

// part decodes one part. It has one encoding only: Go's decoder would skip line ends, and ignore the bits behind the last byte unless told.
func part(text []byte) ([]byte, error) {
	if len(text) == 0 || bytes.ContainsAny(text, "\r\n") {
		return nil, invalid("a part of the token is empty or not base64url")
	}
	out := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Strict().Decode(out, text)
	if err != nil {
		return nil, invalid("a part of the token is empty or not base64url")
	}
	return out[:n], nil
}

// optional is a member that is a text if it is there: not empty, bounded, printable.
func optional(members map[string]any, name string) (string, error) {
	value, ok := members[name]
	if !ok {
		return "", nil
	}
	text, ok := value.(string)
	if !ok || text == "" || len(text) > maxText || attest.CheckClaimText(text) != nil {
		return "", invalid("the token's %q is not a printable text of 1 to %d bytes", name, maxText)
	}
	return text, nil
}

// CheckAudience is what Verify says of the claim "aud".
func CheckAudience(value any, want string) error {
	switch value := value.(type) {
	case string:
		if value == want {
			return nil
		}
	case []any:
		// Whoever else is addressed could use the token here (RFC 7519 §4.1.3 allows it; we don't).
		if len(value) > 1 {
			return problem.New(problem.ReasonAudience, "the token has several audiences: it must have exactly one, ours")
		}
		if len(value) == 1 && value[0] == want {
			return nil
		}
	case nil:
		return problem.New(problem.ReasonAudience, "the token has no audience")
	}
	return problem.New(problem.ReasonAudience, "the token was made for another audience")
}

func checkTimes(claims map[string]any, expect Expect) (issued, expires time.Time, err error) {
	none := time.Time{}
	if issued, err = numericDate(claims, "iat"); err != nil {
		return none, none, err
	}
	if expires, err = numericDate(claims, "exp"); err != nil {
		return none, none, err
	}
	from := issued
	if _, ok := claims["nbf"]; ok {
		if from, err = numericDate(claims, "nbf"); err != nil {
			return none, none, err
		}
	}
	switch latest := expect.Now.Add(expect.Skew); {
	case !expires.After(issued) || !expires.After(from):
		return none, none, invalid("the token ends before it begins")
	case expires.Sub(issued) > expect.MaxLifetime:
		return none, none, invalid("the token lives longer than the %s that this method accepts", expect.MaxLifetime)
	case issued.After(latest) || from.After(latest):
		return none, none, problem.New(problem.ReasonNotYetValid, "the token is from the future")
	case !expect.Now.Before(expires):
		return none, none, problem.New(problem.ReasonEvidenceExpired, "the token has expired")
	case expect.MaxAge > 0 && expect.Now.Sub(issued) > expect.MaxAge:
		return none, none, problem.New(problem.ReasonEvidenceExpired, "the token is older than %s", expect.MaxAge)
	}
	return issued, expires, nil
}

// numericDate reads a NumericDate (RFC 7519 §2): seconds since 1970, of which a fraction is dropped. Exponents and signs are not
// accepted, nor what is before 2001 or after 2286 (ten digits): that is no time but a mistake, milliseconds most often.
func numericDate(claims map[string]any, name string) (time.Time, error) {
	number, ok := claims[name].(json.Number)
	if !ok {
		return time.Time{}, invalid("the token's %q is missing or no number", name)
	}
	whole, fraction, _ := strings.Cut(string(number), ".")
	if len(whole) != 10 || len(fraction) > 9 || !digits(whole) || !digits(fraction) {
		return time.Time{}, invalid("the token's %q is not a number of seconds since 1970", name)
	}
	var seconds int64
	for _, c := range whole {
		seconds = seconds*10 + int64(c-'0')
	}
	return time.Unix(seconds, 0).UTC(), nil
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// unique hashes texts with their lengths before them, so that no two lists of texts give one input.
func unique(p parsed, id string) [32]byte {
	texts := []string{"bailment token v1 signed", p.issuer, string(p.signed)}
	if id != "" {
		texts = []string{"bailment token v1 jti", p.issuer, id}
	}
	h := sha256.New()
	for _, s := range texts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
		h.Write([]byte(s))
	}
	return [32]byte(h.Sum(nil))
}

func invalid(format string, args ...any) error {
	return problem.New(problem.ReasonTokenInvalid, format, args...)
}
