package sshsig

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	hs "github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
)

// ssh-keygen and ssh-agent are what these tests are about: without them they fail.
func openssh(t testing.TB, dir, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK=", "DISPLAY=", "SSH_ASKPASS=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func must(t testing.TB, out string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// keygen makes a key pair with ssh-keygen and returns the private key's path and the public key.
func keygen(t testing.TB, args ...string) (string, ssh.PublicKey) {
	t.Helper()
	dir := t.TempDir()
	out, err := openssh(t, dir, "", append([]string{"ssh-keygen", "-q", "-f", "key", "-C", "test@example"}, args...)...)
	must(t, out, err)
	path := filepath.Join(dir, "key")
	line, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	return path, key
}

// keygenVerify is `ssh-keygen -Y verify` with one allowed signer.
func keygenVerify(t testing.TB, key ssh.PublicKey, namespace, message string, armored []byte) error {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"allowed": "alice " + string(ssh.MarshalAuthorizedKey(key)), "sig": string(armored)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := openssh(t, dir, message, "ssh-keygen", "-Y", "verify", "-f", "allowed", "-I", "alice", "-n", namespace, "-s", "sig")
	if err != nil {
		return fmt.Errorf("%v: %s", err, out)
	}
	return nil
}

func wantReason(t *testing.T, err error, r problem.Reason) {
	t.Helper()
	if !problem.Is(err, r) {
		t.Errorf("got %v, want reason %s", err, r)
	}
	if err != nil && problem.As(err).WayOut() == "" {
		t.Errorf("%v has no way out", err)
	}
}

const message = "bailment change v1\nenvironment: prod\n\x00\xff\r\n"

func TestInteroperation(t *testing.T) {
	_, foreign := keygen(t, "-t", "ed25519", "-N", "")
	for _, c := range [][]string{
		{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "384"}, {"-t", "rsa", "-b", "3072"},
	} {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			path, key := keygen(t, append(c, "-N", "")...)
			// Ours, checked by ssh-keygen.
			signer, err := Load(t.Context(), path, Options{Allowed: []ssh.PublicKey{foreign, key}})
			if err != nil {
				t.Fatal(err)
			}
			defer signer.Close()
			ours, err := Sign(signer, NamespaceChange, []byte(message))
			if err != nil {
				t.Fatal(err)
			}
			if err := keygenVerify(t, key, NamespaceChange, message, ours); err != nil {
				t.Error("ssh-keygen refuses ours:", err)
			}
			if keygenVerify(t, key, NamespaceLogin, message, ours) == nil {
				t.Error("ssh-keygen accepts another namespace")
			}
			// ssh-keygen's, with both hashes, checked by us.
			for _, hash := range []string{"sha512", "sha256"} {
				file := filepath.Join(t.TempDir(), "text")
				if err := os.WriteFile(file, []byte(message), 0o600); err != nil {
					t.Fatal(err)
				}
				out, err := openssh(t, filepath.Dir(file), "", "ssh-keygen", "-Y", "sign", "-O", "hashalg="+hash, "-n", NamespaceChange, "-f", path, file)
				must(t, out, err)
				theirs, err := os.ReadFile(file + ".sig")
				if err != nil {
					t.Fatal(err)
				}
				checkVerify(t, theirs, key, foreign)
				if s, _ := ParseSignature(theirs); s.Hash != hash || s.Namespace != NamespaceChange || !SameKey(s.Key, key) {
					t.Errorf("parsed %+v", s)
				}
			}
			checkVerify(t, ours, key, foreign)
		})
	}
}

// checkVerify: a good signature over message is accepted, and each change around it refused.
func checkVerify(t *testing.T, armored []byte, key, foreign ssh.PublicKey) {
	t.Helper()
	got, err := Verify(armored, []ssh.PublicKey{foreign, key}, NamespaceChange, []byte(message))
	if err != nil || !SameKey(got, key) {
		t.Fatalf("%v %v", got, err)
	}
	for name, c := range map[string]struct {
		allowed   []ssh.PublicKey
		namespace string
		message   string
	}{
		"another namespace": {[]ssh.PublicKey{key}, NamespaceLogin, message},
		"longer namespace":  {[]ssh.PublicKey{key}, NamespaceChange + "x", message},
		"another message":   {[]ssh.PublicKey{key}, NamespaceChange, message + "\n"},
		"no message":        {[]ssh.PublicKey{key}, NamespaceChange, ""},
		"foreign key":       {[]ssh.PublicKey{foreign}, NamespaceChange, message},
		"no keys":           {nil, NamespaceChange, message},
	} {
		if k, err := Verify(armored, c.allowed, c.namespace, []byte(c.message)); !problem.Is(err, problem.ReasonSignature) || k != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Verify(armored, []ssh.PublicKey{key}, "", []byte(message)); err == nil {
		t.Error("an empty namespace is accepted")
	}
}

func ed25519Signer(t testing.TB) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// No bit of the signature's wire form can be changed, and nothing appended to any part of it.
func TestVerifyEveryBit(t *testing.T) {
	signer := ed25519Signer(t)
	armored, err := Sign(signer, NamespaceBundle, []byte(message))
	if err != nil {
		t.Fatal(err)
	}
	wire, err := unarmor(string(armored))
	if err != nil {
		t.Fatal(err)
	}
	allowed := []ssh.PublicKey{signer.PublicKey()}
	for i := range wire {
		for bit := range 8 {
			bad := bytes.Clone(wire)
			bad[i] ^= 1 << bit
			if _, err := Verify(armor(bad), allowed, NamespaceBundle, []byte(message)); err == nil {
				t.Errorf("bit %d of byte %d can be changed", bit, i)
			}
		}
	}
	if _, err := Verify(armor(append(bytes.Clone(wire), 0)), allowed, NamespaceBundle, []byte(message)); err == nil {
		t.Error("a byte can be appended")
	}
}

func TestArmor(t *testing.T) {
	signer := ed25519Signer(t)
	good, err := Sign(signer, NamespaceBundle, []byte(message))
	if err != nil {
		t.Fatal(err)
	}
	text := string(good)
	body := strings.TrimSuffix(strings.TrimPrefix(text, armorBegin), armorEnd)
	for name, bad := range map[string]string{
		"empty":             "",
		"no armor":          body,
		"text in front":     "x\n" + text,
		"blank in front":    "\n" + text,
		"text behind":       text + "x\n",
		"twice":             text + text,
		"another type":      strings.ReplaceAll(text, "SSH SIGNATURE", "SSH SIGNATURES"),
		"no end":            armorBegin + body,
		"no body":           armorBegin + armorEnd,
		"a header":          armorBegin + "Comment: x\n\n" + body + armorEnd,
		"an empty line":     armorBegin + "\n" + body + armorEnd,
		"carriage returns":  strings.ReplaceAll(text, "\n", "\r\n"),
		"trailing blank":    strings.Replace(text, "\n", " \n", 2),
		"one long line":     armorBegin + strings.ReplaceAll(body, "\n", "") + "\n" + armorEnd,
		"not base64":        armorBegin + "!!!!\n" + armorEnd,
		"cut":               armorBegin + body[:40] + "\n" + armorEnd,
		"a certificate":     "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"end within a line": armorBegin + strings.TrimSuffix(body, "\n") + armorEnd,
	} {
		_, err := ParseSignature([]byte(bad))
		if !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = ParseSignature(append(good, bytes.Repeat([]byte("A"), MaxSignature)...))
	wantReason(t, err, problem.ReasonTooLarge)
	// Other writers' widths, and an editor that ate the last newline, are fine.
	var wide strings.Builder
	flat := strings.ReplaceAll(body, "\n", "")
	for len(flat) > 64 {
		wide.WriteString(flat[:64] + "\n")
		flat = flat[64:]
	}
	for name, text := range map[string]string{"64": armorBegin + wide.String() + flat + "\n" + armorEnd, "no last newline": strings.TrimSuffix(text, "\n")} {
		if _, err := Verify([]byte(text), []ssh.PublicKey{signer.PublicKey()}, NamespaceBundle, []byte(message)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type blob struct {
	Magic     [6]byte
	Version   uint32
	Key       string
	Namespace string
	Reserved  string
	Hash      string
	Signature string
}

// Wire forms that a lax parser would take.
func TestParseSignatureFaults(t *testing.T) {
	signer := ed25519Signer(t)
	good, err := hs.Sign(strings.NewReader(message), signer, hs.HashSHA512, NamespaceBundle)
	if err != nil {
		t.Fatal(err)
	}
	base := func() blob {
		return blob{[6]byte([]byte("SSHSIG")), 1, string(good.PublicKey.Marshal()), NamespaceBundle, "", "sha512", string(ssh.Marshal(good.Signature))}
	}
	if _, err := ParseSignature(armor(ssh.Marshal(base()))); err != nil {
		t.Fatal(err)
	}
	rsaKey, _ := rsa.GenerateKey(rand.Reader, minRSABits)
	rsaSigner, _ := ssh.NewSignerFromKey(rsaKey)
	rsaPub := string(rsaSigner.PublicKey().Marshal())
	sigOf := func(format string, b, rest []byte) string {
		return string(ssh.Marshal(&ssh.Signature{Format: format, Blob: b, Rest: rest}))
	}
	for name, change := range map[string]func(*blob){
		"magic":             func(b *blob) { b.Magic[5] = 'X' },
		"version 0":         func(b *blob) { b.Version = 0 },
		"version 2":         func(b *blob) { b.Version = 2 },
		"reserved":          func(b *blob) { b.Reserved = "x" },
		"sha1":              func(b *blob) { b.Hash = "sha1" },
		"no hash":           func(b *blob) { b.Hash = "" },
		"no key":            func(b *blob) { b.Key = "" },
		"key and more":      func(b *blob) { b.Key += "x" },
		"signature type":    func(b *blob) { b.Signature = sigOf("ssh-rsa", good.Signature.Blob, nil) },
		"bytes behind":      func(b *blob) { b.Signature = sigOf(good.Signature.Format, good.Signature.Blob, []byte{1}) },
		"rsa with sha1":     func(b *blob) { b.Key = rsaPub; b.Signature = sigOf("ssh-rsa", make([]byte, 384), nil) },
		"rsa as ed25519":    func(b *blob) { b.Key = rsaPub },
		"signature cut":     func(b *blob) { b.Signature = b.Signature[:10] },
		"signature missing": func(b *blob) { b.Signature = "" },
	} {
		b := base()
		change(&b)
		if _, err := Verify(armor(ssh.Marshal(b)), []ssh.PublicKey{signer.PublicKey(), rsaSigner.PublicKey()}, NamespaceBundle, []byte(message)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckKey(t *testing.T) {
	public := func(k any) ssh.PublicKey {
		p, err := ssh.NewPublicKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	rsaOf := func(bits int) ssh.PublicKey { // a modulus of that size is enough for the check
		n := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
		return public(&rsa.PublicKey{N: n, E: 65537})
	}
	ec := func(c elliptic.Curve) ssh.PublicKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return public(&k.PublicKey)
	}
	cert := func() ssh.PublicKey {
		ca := ed25519Signer(t)
		c := &ssh.Certificate{Key: ed25519Signer(t).PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
		if err := c.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, c := range map[string]struct {
		key ssh.PublicKey
		ok  bool
	}{
		"ed25519": {ed25519Signer(t).PublicKey(), true}, "p256": {ec(elliptic.P256()), true}, "p384": {ec(elliptic.P384()), true},
		"p521": {ec(elliptic.P521()), false}, "rsa 3072": {rsaOf(3072), true}, "rsa 8192": {rsaOf(8192), true},
		"rsa 3071": {rsaOf(3071), false}, "rsa 2048": {rsaOf(2048), false}, "certificate": {cert(), false},
		"sk ed25519": {newSKEd25519(t).PublicKey(), true}, "sk ecdsa": {newSKECDSA(t).PublicKey(), true},
	} {
		err := CheckKey(c.key)
		if c.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok {
			wantReason(t, err, problem.ReasonUnsupported)
		}
	}
}

func TestParseKey(t *testing.T) {
	_, key := keygen(t, "-t", "ed25519", "-N", "")
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	for _, good := range []string{line, line + "\n", line + " alice@laptop"} {
		if k, _, err := ParseKey(good); err != nil || !SameKey(k, key) {
			t.Errorf("%q: %v", good, err)
		}
	}
	if _, comment, _ := ParseKey(line + " alice@laptop"); comment != "alice@laptop" {
		t.Errorf("comment %q", comment)
	}
	for name, bad := range map[string]string{
		"empty": "", "options": `command="x" ` + line, "two": line + "\n" + line, "comment line first": "# x\n" + line,
		"cut": line[:40], "type differs": strings.Replace(line, "ssh-ed25519", "ssh-rsa", 1), "long": line + strings.Repeat("x", MaxKeyLine),
		"leading blank": " " + line, "carriage return": line + "\r\n", "base64 only": strings.Fields(line)[1],
	} {
		if _, _, err := ParseKey(bad); err == nil {
			t.Errorf("%s: accepted %q", name, bad)
		}
	}
}

// A hardware key, emulated in software. PROTOCOL.u2f: the device signs
//
//	SHA-256(application) || flags (1 byte) || counter (4 bytes) || SHA-256(message)
//
// and the SSH signature is: string type, string signature, byte flags, uint32 counter. The message
// is here SSHSIG's signed data. ECDSA signatures are the mpints r and s.
type skSigner struct {
	key   ssh.PublicKey
	sign  func(data []byte) []byte
	flags byte
}

const skApplication = "ssh:"

func (s *skSigner) PublicKey() ssh.PublicKey { return s.key }

func (s *skSigner) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, digest := sha256.Sum256([]byte(skApplication)), sha256.Sum256(data)
	rest := []byte{s.flags, 0, 0, 0, 9}
	signed := append(append(app[:], rest...), digest[:]...)
	return &ssh.Signature{Format: s.key.Type(), Blob: s.sign(signed), Rest: rest}, nil
}

func parsePublic(t testing.TB, wire any) ssh.PublicKey {
	t.Helper()
	k, err := ssh.ParsePublicKey(ssh.Marshal(wire))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newSKEd25519(t testing.TB) *skSigner {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := parsePublic(t, struct {
		Type string
		Key  []byte
		App  string
	}{ssh.KeyAlgoSKED25519, pub, skApplication})
	return &skSigner{key, func(data []byte) []byte { return ed25519.Sign(priv, data) }, 1}
}

func newSKECDSA(t testing.TB) *skSigner {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := priv.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	key := parsePublic(t, struct {
		Type, Curve string
		Point       []byte
		App         string
	}{ssh.KeyAlgoSKECDSA256, "nistp256", point, skApplication})
	return &skSigner{key, func(data []byte) []byte {
		digest := sha256.Sum256(data)
		r, s, err := ecdsa.Sign(rand.Reader, priv, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return ssh.Marshal(struct{ R, S *big.Int }{r, s})
	}, 1}
}

func TestHardwareKeys(t *testing.T) {
	_, foreign := keygen(t, "-t", "ed25519", "-N", "")
	for name, s := range map[string]*skSigner{"sk-ed25519": newSKEd25519(t), "sk-ecdsa": newSKECDSA(t)} {
		t.Run(name, func(t *testing.T) {
			for _, flags := range []byte{0x01, 0x05} { // touched; touched and PIN
				s.flags = flags
				sig, err := Sign(s, NamespaceChange, []byte(message))
				if err != nil {
					t.Fatal(err)
				}
				checkVerify(t, sig, s.key, foreign)
				// The emulation is right if OpenSSH agrees.
				if err := keygenVerify(t, s.key, NamespaceChange, message, sig); err != nil {
					t.Errorf("ssh-keygen refuses: %v", err)
				}
			}
			for _, flags := range []byte{0x00, 0x04} {
				s.flags = flags
				untouched, err := hs.Sign(strings.NewReader(message), s, hs.HashSHA512, NamespaceChange)
				if err != nil {
					t.Fatal(err)
				}
				_, err = Verify(armor(untouched.Marshal()), []ssh.PublicKey{s.key}, NamespaceChange, []byte(message))
				wantReason(t, err, problem.ReasonSignature)
				// Claiming the touch afterwards breaks the signature.
				untouched.Signature.Rest[0] |= 1
				_, err = Verify(armor(untouched.Marshal()), []ssh.PublicKey{s.key}, NamespaceChange, []byte(message))
				wantReason(t, err, problem.ReasonSignature)
				_, err = Sign(s, NamespaceChange, []byte(message))
				wantReason(t, err, problem.ReasonSignature)
			}
		})
	}
}

// liar signs with another key than it shows, as a broken agent may.
type liar struct{ ssh.Signer }

func (l liar) PublicKey() ssh.PublicKey { return l.Signer.PublicKey() }
func (l liar) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	return l.Signer.Sign(r, append([]byte("x"), data...))
}

func TestSignChecksItself(t *testing.T) {
	_, err := Sign(liar{ed25519Signer(t)}, NamespaceBundle, []byte(message))
	wantReason(t, err, problem.ReasonSignature)
	if _, err := Sign(ed25519Signer(t), "", []byte(message)); err == nil {
		t.Error("signed for no namespace")
	}
	weak, _ := rsa.GenerateKey(rand.Reader, 2048)
	s, _ := ssh.NewSignerFromKey(weak)
	_, err = Sign(s, NamespaceBundle, []byte(message))
	wantReason(t, err, problem.ReasonUnsupported)
}

func FuzzParseSignature(f *testing.F) {
	for _, s := range []ssh.Signer{ed25519Signer(f), newSKEd25519(f), newSKECDSA(f)} {
		sig, err := Sign(s, NamespaceLogin, []byte("m"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sig)
	}
	f.Add([]byte(armorBegin + "U1NIU0lH\n" + armorEnd))
	f.Fuzz(func(t *testing.T, armored []byte) {
		s, err := ParseSignature(armored)
		if err != nil {
			problem.As(err).WayOut()
			return
		}
		if err := CheckKey(s.Key); err != nil {
			t.Fatalf("parsed with a key that is refused: %v", err)
		}
		again, err := ParseSignature(armor(s.sig.Marshal()))
		if err != nil || again.Namespace != s.Namespace || !SameKey(again.Key, s.Key) {
			t.Fatalf("does not come back: %v", err)
		}
		b, _ := unarmor(string(armored))
		if !bytes.Equal(b, s.sig.Marshal()) {
			t.Fatalf("not canonical: %s", base64.StdEncoding.EncodeToString(b))
		}
	})
}

func BenchmarkVerifyEd25519(b *testing.B) {
	s := ed25519Signer(b)
	sig, err := Sign(s, NamespaceLogin, []byte(message))
	if err != nil {
		b.Fatal(err)
	}
	allowed := []ssh.PublicKey{s.PublicKey()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(sig, allowed, NamespaceLogin, []byte(message)); err != nil {
			b.Fatal(err)
		}
	}
}
