// Package sshsig signs and verifies texts with operators' SSH keys, in OpenSSH's SSHSIG format
// (PROTOCOL.sshsig), so that `ssh-keygen -Y verify` checks what we sign and the other way round.
//
// Guaranteed: Verify accepts a signature only by one of the given keys, over exactly these bytes,
// for exactly this namespace, with an algorithm of the short list below; hardware keys must have
// seen a person's touch. Not guaranteed: who holds a key, when it was used, or that a person read
// what was signed; SSHSIG has no time and no nonce, so the text must carry both.
//
// Keys: ssh-ed25519, ecdsa-sha2-nistp256 and -nistp384, sk-ssh-ed25519, sk-ecdsa-sha2-nistp256,
// and RSA of 3,072 to 8,192 bits with rsa-sha2 signatures. Certificates are refused: operators are
// keys listed in the bundle.
//
// Its place is beside keyring: the command line signs, control verifies. Verifying is pure.
package sshsig

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	hs "github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
)

// The namespaces that keep one kind of signed text from being taken for another.
const (
	NamespaceBundle = "bundle@bailment" // a bundle's manifest
	NamespaceChange = "change@bailment" // an approval's text
	NamespaceLogin  = "login@bailment"  // a login challenge
)

// Limits in bytes and bits.
const (
	MaxSignature = 16 << 10 // an armored signature
	MaxKeyLine   = 8 << 10  // a public key in authorized_keys form
	minRSABits   = 3072
	maxRSABits   = 8192 // verifying gets dear beyond
)

const (
	armorBegin = "-----BEGIN SSH SIGNATURE-----\n"
	armorEnd   = "-----END SSH SIGNATURE-----\n"
	armorWidth = 70 // what ssh-keygen writes
	// maxWidth is what is accepted in a line: PEM writers use 64, ssh-keygen 70, MIME 76.
	maxWidth = 76
)

// Signature is a signature's parts, none of them verified.
type Signature struct {
	Key       ssh.PublicKey // who claims to have signed
	Namespace string
	Hash      string // sha256 or sha512

	sig *hs.Signature
}

// ParseSignature reads an armored signature and checks its form and its algorithms.
// Errors: invalid, too-large, unsupported.
func ParseSignature(armored []byte) (*Signature, error) {
	if len(armored) > MaxSignature {
		return nil, problem.New(problem.ReasonTooLarge, "SSH signature of %d bytes, at most %d are allowed", len(armored), MaxSignature)
	}
	wire, err := unarmor(string(armored))
	if err != nil {
		return nil, err
	}
	sig, err := hs.ParseSignature(wire)
	if err != nil {
		return nil, invalid("%v", err)
	}
	// One signature, one wire form: anything that the parser passed over (a reserved field, a key in a
	// longer spelling) doesn't come back when it is written again.
	if !bytes.Equal(sig.Marshal(), wire) {
		return nil, invalid("it is not in canonical form")
	}
	if err := CheckKey(sig.PublicKey); err != nil {
		return nil, err
	}
	if err := checkFormat(sig); err != nil {
		return nil, err
	}
	return &Signature{Key: sig.PublicKey, Namespace: sig.Namespace, Hash: sig.HashAlgorithm.String(), sig: sig}, nil
}

func invalid(format string, args ...any) error {
	return problem.New(problem.ReasonInvalid, "not an SSH signature: %s", fmt.Sprintf(format, args...)).
		WithFix("make it with `bailment`, or with `ssh-keygen -Y sign`, and pass the whole file")
}

func unarmor(text string) ([]byte, error) {
	body, ok := strings.CutPrefix(text, armorBegin)
	if !ok {
		return nil, invalid("it does not begin with %q", strings.TrimSpace(armorBegin))
	}
	body, ok = strings.CutSuffix(body, armorEnd)
	if !ok {
		body, ok = strings.CutSuffix(body, strings.TrimSuffix(armorEnd, "\n"))
	}
	if !ok || !strings.HasSuffix(body, "\n") {
		return nil, invalid("it does not end with %q", strings.TrimSpace(armorEnd))
	}
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	for i, l := range lines {
		if l == "" || len(l) > maxWidth || strings.TrimRight(l, "\r \t") != l {
			return nil, invalid("line %d is empty, too long, or ends in blanks", i+2)
		}
	}
	wire, err := base64.StdEncoding.Strict().DecodeString(strings.Join(lines, ""))
	if err != nil {
		return nil, invalid("its base64 is wrong")
	}
	return wire, nil
}

func armor(wire []byte) []byte {
	b64 := base64.StdEncoding.EncodeToString(wire)
	var out bytes.Buffer
	out.WriteString(armorBegin)
	for line := range slices.Chunk([]byte(b64), armorWidth) {
		out.Write(line)
		out.WriteByte('\n')
	}
	out.WriteString(armorEnd)
	return out.Bytes()
}

// checkFormat checks that the signature's algorithm is the key's own, and for hardware keys that
// a person touched them (PROTOCOL.u2f: flags, bit 0). Only hardware signatures have a rest.
func checkFormat(sig *hs.Signature) error {
	want := []string{sig.PublicKey.Type()}
	hardware := false
	switch sig.PublicKey.Type() {
	case ssh.KeyAlgoRSA:
		want = []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512}
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		hardware = true
	}
	if !slices.Contains(want, sig.Signature.Format) {
		return problem.New(problem.ReasonUnsupported, "SSH signature of type %.40q by a key of type %s", sig.Signature.Format, sig.PublicKey.Type()).
			WithFix("sign again with a current ssh-keygen or ssh-agent")
	}
	rest := sig.Signature.Rest
	switch {
	case !hardware && len(rest) != 0:
		return invalid("%d bytes after the signature", len(rest))
	case hardware && len(rest) != 5:
		return invalid("flags and counter of the hardware key have %d bytes, want 5", len(rest))
	case hardware && rest[0]&1 == 0:
		return problem.New(problem.ReasonSignature, "the hardware key %s signed without a touch", Fingerprint(sig.PublicKey)).
			WithFix("make the key without the option no-touch-required, and sign again")
	}
	return nil
}

// CheckKey refuses keys that may not sign: reason unsupported.
func CheckKey(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		parsed, err := ssh.ParsePublicKey(key.Marshal()) // an agent's key is not parsed yet
		if err != nil {
			return problem.New(problem.ReasonInvalid, "RSA key can't be read: %v", err)
		}
		if ck, ok := parsed.(ssh.CryptoPublicKey); ok {
			if r, ok := ck.CryptoPublicKey().(*rsa.PublicKey); ok {
				if n := r.N.BitLen(); n < minRSABits || n > maxRSABits {
					return problem.New(problem.ReasonUnsupported, "RSA key of %d bits, want %d to %d", n, minRSABits, maxRSABits).
						WithFix("make a new key: ssh-keygen -t ed25519")
				}
				return nil
			}
		}
	}
	return problem.New(problem.ReasonUnsupported, "SSH key of type %.60q is not accepted", key.Type()).
		WithFix("use ssh-ed25519, ecdsa-sha2-nistp256 or -nistp384, their hardware variants (sk-), or RSA of %d bits or more", minRSABits)
}

// ParseKey reads one public key in the form of a .pub file: type, base64 and a comment. Options,
// several lines and keys that CheckKey refuses are errors.
func ParseKey(line string) (key ssh.PublicKey, comment string, err error) {
	if len(line) > MaxKeyLine {
		return nil, "", problem.New(problem.ReasonTooLarge, "SSH public key of %d bytes, at most %d", len(line), MaxKeyLine)
	}
	line = strings.TrimSuffix(line, "\n")
	kind, _, _ := strings.Cut(line, " ")
	key, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) != 0 || len(rest) != 0 || strings.ContainsAny(line, "\r\n") || key.Type() != kind {
		return nil, "", problem.New(problem.ReasonInvalid, "not one SSH public key without options").
			WithFix("paste the one line of the .pub file, such as ~/.ssh/id_ed25519.pub")
	}
	if err := CheckKey(key); err != nil {
		return nil, "", err
	}
	return key, comment, nil
}

// Fingerprint is the key's SHA-256 fingerprint as ssh-keygen -l shows it.
func Fingerprint(key ssh.PublicKey) string { return ssh.FingerprintSHA256(key) }

// SameKey reports whether two public keys are the same.
func SameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// Verify checks an armored signature over message, for the namespace, by one of the allowed keys,
// and returns the one that signed. Errors: bad-signature, or what ParseSignature gives.
func Verify(armored []byte, allowed []ssh.PublicKey, namespace string, message []byte) (ssh.PublicKey, error) {
	if namespace == "" {
		return nil, problem.New(problem.ReasonInternal, "verify an SSH signature without a namespace")
	}
	s, err := ParseSignature(armored)
	if err != nil {
		return nil, err
	}
	if s.Namespace != namespace {
		return nil, problem.New(problem.ReasonSignature, "the SSH signature is for %.60q, not for %q", s.Namespace, namespace).
			WithFix("sign with `ssh-keygen -Y sign -n %s`, or with the bailment command for this", namespace)
	}
	i := slices.IndexFunc(allowed, func(k ssh.PublicKey) bool { return SameKey(k, s.Key) })
	if i < 0 {
		return nil, problem.New(problem.ReasonSignature, "the SSH signature is by %s, which is not listed here", Fingerprint(s.Key))
	}
	// The key verifies that was in the signature: it is the same, and surely parsed.
	if err := hs.Verify(bytes.NewReader(message), s.sig, s.Key, s.sig.HashAlgorithm, namespace); err != nil {
		return nil, problem.New(problem.ReasonSignature, "the SSH signature by %s does not fit what it should sign", Fingerprint(s.Key)).
			WithFix("sign exactly these bytes: a changed line end is enough")
	}
	return allowed[i], nil
}

// Sign signs message for the namespace and returns the armored signature, after verifying it. It
// waits for a touch where the key wants one.
func Sign(signer ssh.Signer, namespace string, message []byte) ([]byte, error) {
	if s, ok := signer.(*Signer); ok {
		signer = s.Signer // RSA needs the inner one's choice of algorithms
	}
	if err := CheckKey(signer.PublicKey()); err != nil {
		return nil, err
	}
	sig, err := hs.Sign(bytes.NewReader(message), signer, hs.HashSHA512, namespace)
	if err != nil {
		return nil, problem.New(problem.ReasonSignature, "sign with %s: %v", Fingerprint(signer.PublicKey()), err).
			WithFix("if the key is in hardware, plug it in and touch it when it blinks; if the agent is locked, run ssh-add -X")
	}
	out := armor(sig.Marshal())
	if _, err := Verify(out, []ssh.PublicKey{signer.PublicKey()}, namespace, message); err != nil {
		return nil, problem.Wrap(err, problem.ReasonSignature, "the signature just made by %s is not usable", Fingerprint(signer.PublicKey()))
	}
	return out, nil
}
