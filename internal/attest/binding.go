package attest

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"

	"github.com/bailment/bailment/internal/problem"
)

// Domain is the first line of every message that evidence signs. A signature made for anything else
// (TLS 1.3 puts 64 spaces first, SSHSIG a magic word, certificates an ASN.1 tag) can't begin with it.
const Domain = "bailment attest v1"

// Limits on a nonce in bytes. Sixteen random ones don't repeat by chance (NIST SP 800-63B §5.2.8
// asks for 64 bits); more than 64 would only be a way to make us sign somebody's text.
const (
	MinNonce = 16
	MaxNonce = 64
)

const maxMethodName = 32

// Binding is what evidence must be bound to. It is a value; Nonce must not be changed while in use.
type Binding struct {
	Method     string   // so that evidence of one method is nothing to another
	Genesis    [32]byte // the environment, so that one environment can't relay to another
	Nonce      []byte   // the challenge, so that nothing recorded can be replayed
	SessionKey [32]byte // SHA-256 of the session key's SPKI, so that nobody else can use the answer
}

// Validate says what is missing, or nil. A binding is never made from a stranger's text without it.
func (b Binding) Validate() error {
	switch {
	case !ValidMethodName(b.Method):
		return problem.New(problem.ReasonInvalid, "attestation binding: bad method name")
	case b.Genesis == [32]byte{}:
		return problem.New(problem.ReasonInvalid, "attestation binding: no genesis")
	case len(b.Nonce) < MinNonce || len(b.Nonce) > MaxNonce:
		return problem.New(problem.ReasonInvalid, "attestation binding: the nonce must have %d to %d bytes", MinNonce, MaxNonce)
	case b.SessionKey == [32]byte{}:
		return problem.New(problem.ReasonInvalid, "attestation binding: no session key")
	}
	return nil
}

// of refuses a binding of another method, which is a defect of the caller.
func (b Binding) of(method string) error {
	if b.Method != method {
		return problem.New(problem.ReasonInternal, "the binding names another method than %s", method)
	}
	return nil
}

// Message is the text that evidence signs: five lines, each ended by a newline, in which every value
// has an alphabet without space and newline. So two different valid bindings never give one text.
//
//	bailment attest v1
//	method join-token
//	genesis <64 hex>
//	nonce <hex>
//	session-key sha256:<64 hex>
func (b Binding) Message() []byte {
	m := make([]byte, 0, 320)
	m = append(m, Domain+"\nmethod "...)
	m = append(m, b.Method...)
	m = append(m, "\ngenesis "...)
	m = hex.AppendEncode(m, b.Genesis[:])
	m = append(m, "\nnonce "...)
	m = hex.AppendEncode(m, b.Nonce)
	m = append(m, "\nsession-key "...)
	m = append(m, DigestText(b.SessionKey)...)
	return append(m, '\n')
}

// Digest is the SHA-256 of Message: for platforms that take a digest to bind to (a TPM's qualifying data, a report's data).
func (b Binding) Digest() [32]byte { return sha256.Sum256(b.Message()) }

// FreshAudience is the audience of a token that was asked for this challenge by the holder of this session key, where a platform lets
// the asker choose any audience at any time: it can be neither replayed nor relayed.
func (b Binding) FreshAudience() string {
	d := b.Digest()
	return audience + hex.EncodeToString(b.Genesis[:]) + ":" + hex.EncodeToString(d[:])
}

// KeyAudience is the audience of a token that is bound to the environment and the session key, not to a challenge: what makes it
// single-use is the token's own ID (DESIGN.md §7).
func (b Binding) KeyAudience() string {
	return audience + hex.EncodeToString(b.Genesis[:]) + ":" + hex.EncodeToString(b.SessionKey[:])
}

// EnvironmentAudience is the audience of a token that is bound to the environment only, where the platform fixes the audience before
// there is a session key.
func (b Binding) EnvironmentAudience() string { return audience + hex.EncodeToString(b.Genesis[:]) }

const audience = "bailment:v1:"

// ValidMethodName reports whether name is [a-z][a-z0-9-]*, at most 32 bytes.
func ValidMethodName(name string) bool {
	if name == "" || len(name) > maxMethodName || name[0] < 'a' || name[0] > 'z' {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// DigestText is the text form of a digest: "sha256:" and 64 hexadecimal digits.
func DigestText(d [32]byte) string { return "sha256:" + hex.EncodeToString(d[:]) }

// Thumbprint is the SHA-256 of a public key's SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
func Thumbprint(pub crypto.PublicKey) ([32]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, problem.Wrap(err, problem.ReasonInvalid, "encode a public key")
	}
	return sha256.Sum256(der), nil
}
