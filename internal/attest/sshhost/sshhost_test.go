package sshhost

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

var now = attesttest.Now()

func binding() attest.Binding { return attesttest.Binding(Name) }

func signerOf(t testing.TB, key any) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fixed keys are for tests only: everything made with them is public.
func fixed(t testing.TB, label string) ssh.Signer {
	t.Helper()
	return signerOf(t, attesttest.Key(label))
}

func onCurve(t testing.TB, c elliptic.Curve) ssh.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signerOf(t, key)
}

// Finding primes is slow, so they are found once.
var (
	rsaKey     = sync.OnceValue(func() *rsa.PrivateKey { return attesttest.RSA(3072) })
	weakRSAKey = sync.OnceValue(func() *rsa.PrivateKey { return attesttest.RSA(2048) })
)

// certify makes a host certificate of key by ca.
func certify(t testing.TB, key ssh.PublicKey, ca ssh.Signer, change func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	c := &ssh.Certificate{
		Nonce: bytes.Repeat([]byte{1}, 32), Key: key, Serial: 42, CertType: ssh.HostCert, KeyId: "web-1 of 2026",
		ValidPrincipals: []string{"web-1.corp.example", "web-1"},
		ValidAfter:      uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(24 * time.Hour).Unix()),
	}
	if change != nil {
		change(c)
	}
	if c.Signature == nil {
		if err := c.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func params(t testing.TB, all ...authority.Authority) Params {
	t.Helper()
	p, err := NewParams(all)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func corp(t testing.TB) authority.Authority {
	return authority.Authority{
		Name: "corp", Method: Name, SSHKeys: []ssh.PublicKey{fixed(t, "ca").PublicKey()},
		Hosts: []authority.Host{{Name: "db-1.corp.example", Key: fixed(t, "db").PublicKey()}},
	}
}

func input(t testing.TB, ev []byte) attest.Input {
	return attest.Input{Binding: binding(), Evidence: ev, Now: now, Params: params(t, corp(t))}
}

// evidenceOf makes evidence with no check at all, as an adversary would.
func evidenceOf(t testing.TB, key ssh.Signer, cert *ssh.Certificate, namespace string, message []byte) []byte {
	t.Helper()
	armored, err := sshsig.Sign(key, namespace, message)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(armored)
	ev := evidence{Signature: block.Bytes}
	if cert != nil {
		ev.Certificate = cert.Marshal()
	}
	return encode(t, ev)
}

func encode(t testing.TB, ev evidence) []byte {
	t.Helper()
	out, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func good(t testing.TB, key ssh.Signer, cert *ssh.Certificate) []byte {
	return evidenceOf(t, key, cert, Namespace, binding().Message())
}

func TestVerifyCertificate(t *testing.T) {
	web, ca := fixed(t, "web"), fixed(t, "ca")
	got, err := Verify(input(t, good(t, web, certify(t, web.PublicKey(), ca, nil))))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := attest.Thumbprint(web.PublicKey().(ssh.CryptoPublicKey).CryptoPublicKey())
	want := attest.Result{
		Claims: map[string]any{
			"authority": "corp", "proof": "certificate", "principals": []any{"web-1.corp.example", "web-1"},
			"fingerprint": sshsig.Fingerprint(web.PublicKey()), "key_id": "web-1 of 2026", "serial": "42", "ca": sshsig.Fingerprint(ca.PublicKey()),
		},
		Assurance: identity.Key, Anchor: "sshhost:corp", Key: key, NotAfter: now.Add(24 * time.Hour),
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func TestVerifyListed(t *testing.T) {
	db := fixed(t, "db")
	got, err := Verify(input(t, good(t, db, nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"authority": "corp", "proof": "listed", "principals": []any{"db-1.corp.example"},
		"fingerprint": sshsig.Fingerprint(db.PublicKey()), "key_id": "", "serial": "", "ca": "",
	}
	if !reflect.DeepEqual(got.Claims, want) || got.Anchor != "sshhost:corp" || !got.NotAfter.IsZero() || got.Once != "" {
		t.Fatalf("%+v", got)
	}
}

func TestVerifyAccepts(t *testing.T) {
	ca := fixed(t, "ca")
	for name, key := range map[string]ssh.Signer{
		"Ed25519": fixed(t, "web"), "P-256": onCurve(t, elliptic.P256()), "P-384": onCurve(t, elliptic.P384()), "RSA 3072": signerOf(t, rsaKey()),
	} {
		if _, err := Verify(input(t, good(t, key, certify(t, key.PublicKey(), ca, nil)))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	web := fixed(t, "web")
	for name, ca := range map[string]ssh.Signer{"P-256": onCurve(t, elliptic.P256()), "P-384": onCurve(t, elliptic.P384()), "RSA 3072": signerOf(t, rsaKey())} {
		in := input(t, good(t, web, certify(t, web.PublicKey(), ca, nil)))
		in.Params = params(t, authority.Authority{Name: "by", SSHKeys: []ssh.PublicKey{ca.PublicKey()}})
		if res, err := Verify(in); err != nil || res.Anchor != "sshhost:by" {
			t.Errorf("certified by %s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		change func(*ssh.Certificate)
		ends   bool
	}{
		"without end":    {func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, false},
		"for ages":       {func(c *ssh.Certificate) { c.ValidBefore = 1 << 50 }, false},
		"always":         {func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, ssh.CertTimeInfinity }, false},
		"begins now":     {func(c *ssh.Certificate) { c.ValidAfter = uint64(now.Unix()) }, true},
		"last second":    {func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Unix()) + 1 }, true},
		"with extension": {func(c *ssh.Certificate) { c.Extensions = map[string]string{"note@corp.example": ""} }, true},
		"no key ID":      {func(c *ssh.Certificate) { c.KeyId = "" }, true},
		"an address":     {func(c *ssh.Certificate) { c.ValidPrincipals = []string{"[2001:db8::1]:2222"} }, true},
	} {
		res, err := Verify(input(t, good(t, web, certify(t, web.PublicKey(), ca, c.change))))
		if err != nil || res.NotAfter.IsZero() == c.ends {
			t.Errorf("%s: %v, %v", name, res.NotAfter, err)
		}
	}
}

// TestKeygen: what ssh-keygen writes is what we read.
func TestKeygen(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("ssh-keygen", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen %q: %v\n%s", args, err, out)
		}
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	run("-q", "-t", "ed25519", "-N", "", "-f", "ca")
	ca, _, err := sshsig.ParseKey(string(read("ca.pub")))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ed25519"}, {"ecdsa", "-b", "256"}, {"ecdsa", "-b", "384"}, {"rsa", "-b", "3072"}} {
		name := strings.Join(args, "")
		run(append([]string{"-q", "-N", "", "-f", name, "-t"}, args...)...)
		run("-q", "-s", "ca", "-I", "host", "-h", "-n", "a.example,b.example", "-V", "20261101:20261201", "-z", "7", name+".pub")
		a, err := NewAttester(read(name), read(name+"-cert.pub"))
		if err != nil {
			t.Fatal(err)
		}
		ev, err := a.Attest(t.Context(), binding())
		if err != nil {
			t.Fatal(err)
		}
		in := input(t, ev)
		in.Params = params(t, authority.Authority{Name: "keygen", SSHKeys: []ssh.PublicKey{ca}})
		res, err := Verify(in)
		if err != nil || res.Claims["serial"] != "7" || res.NotAfter.Month() != time.December && res.NotAfter.Month() != time.November {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
}

type hostileCase = attesttest.Hostile

// TestHostileEvidence is the table of what a thief, a relay and a foreign CA would send.
func TestHostileEvidence(t *testing.T) {
	web, ca := fixed(t, "web"), fixed(t, "ca")
	ev := good(t, web, certify(t, web.PublicKey(), ca, nil))
	if _, err := Verify(input(t, ev)); err != nil {
		t.Fatal(err)
	}
	cases := map[string]hostileCase{}
	hostileBindings(t, cases, ev)
	hostileSignatures(t, cases, web, ca)
	hostileCertificates(t, cases, web, ca)
	attesttest.RefuseAll(t, Verify, func(ev []byte) attest.Input { return input(t, ev) }, cases)
}

func hostileBindings(t *testing.T, cases map[string]hostileCase, ev []byte) {
	rebound := attesttest.Rebound()
	rebound["a shorter challenge"] = func(b *attest.Binding) { b.Nonce = b.Nonce[:16] }
	for name, change := range rebound {
		cases[name] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { change(&in.Binding) }, Want: problem.ReasonBadProof, Says: "not the host key's for this challenge"}
	}
	cases["truncated"] = hostileCase{Evidence: ev[:len(ev)-1], Want: problem.ReasonInvalid}
	cases["something after it"] = hostileCase{Evidence: append(bytes.Clone(ev), '\n'), Want: problem.ReasonInvalid}
	cases["oversized"] = hostileCase{Evidence: make([]byte, attest.MaxEvidence+1), Want: problem.ReasonTooLarge}
	cases["unknown field"] = hostileCase{Evidence: bytes.Replace(ev, []byte("{"), []byte(`{"canary":"",`), 1), Want: problem.ReasonInvalid}
	cases["empty certificate"] = hostileCase{Evidence: bytes.Replace(good(t, fixed(t, "db"), nil), []byte("{"), []byte(`{"certificate":"",`), 1), Want: problem.ReasonInvalid}
	cases["null certificate"] = hostileCase{Evidence: bytes.Replace(good(t, fixed(t, "db"), nil), []byte("{"), []byte(`{"certificate":null,`), 1), Want: problem.ReasonInvalid}
	cases["another time of the store: before"] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { in.Now = now.Add(-2 * time.Hour) }, Want: problem.ReasonBadChain, Says: "not yet valid"}
	cases["another time of the store: after"] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { in.Now = now.Add(25 * time.Hour) }, Want: problem.ReasonBadChain, Says: "expired"}
	cases["before 1970"] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { in.Now = time.Unix(-1, 0) }, Want: problem.ReasonBadChain, Says: "not yet valid"}
	cases["the bundle without the authority"] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { in.Params = Params{} }, Want: problem.ReasonBadChain, Says: "no authority"}
}

func hostileSignatures(t *testing.T, cases map[string]hostileCase, web, ca ssh.Signer) {
	cert := certify(t, web.PublicKey(), ca, nil)
	message := binding().Message()
	cases["signed for a login"] = hostileCase{Evidence: evidenceOf(t, web, cert, sshsig.NamespaceLogin, message), Want: problem.ReasonBadProof, Says: "namespace"}
	cases["signed for a file"] = hostileCase{Evidence: evidenceOf(t, web, cert, "file", message), Want: problem.ReasonBadProof}
	raw, err := web.Sign(rand.Reader, message)
	if err != nil {
		t.Fatal(err)
	}
	// What sshd signs is no SSHSIG: put into one, it must not pass.
	sig, _ := pem.Decode(mustSign(t, web, message))
	kex := bytes.Replace(sig.Bytes, sig.Bytes[len(sig.Bytes)-64:], raw.Blob, 1)
	cases["a signature without the namespace's frame"] = hostileCase{Evidence: encode(t, evidence{cert.Marshal(), kex}), Want: problem.ReasonBadProof}
	cases["no signature"] = hostileCase{Evidence: encode(t, evidence{cert.Marshal(), []byte{}}), Want: problem.ReasonInvalid}
	cases["not an SSHSIG"] = hostileCase{Evidence: encode(t, evidence{cert.Marshal(), []byte("canary-5b1e")}), Want: problem.ReasonInvalid}
	cases["armored"] = hostileCase{Evidence: encode(t, evidence{cert.Marshal(), mustSign(t, web, message)}), Want: problem.ReasonInvalid}
	cases["something after the signature"] = hostileCase{Evidence: encode(t, evidence{cert.Marshal(), append(bytes.Clone(sig.Bytes), 0)}), Want: problem.ReasonInvalid}
	cases["large signature"] = hostileCase{Evidence: encode(t, evidence{nil, make([]byte, maxSignature+1)}), Want: problem.ReasonTooLarge}
	cases["signed by another key with this certificate"] = hostileCase{Evidence: good(t, fixed(t, "thief"), cert), Want: problem.ReasonBadProof, Says: "another key"}
	cases["signed by the authority's key"] = hostileCase{Evidence: good(t, ca, nil), Want: problem.ReasonBadChain, Says: "lists"}
	cases["an unlisted key"] = hostileCase{Evidence: good(t, web, nil), Want: problem.ReasonBadChain, Says: "lists"}
	cases["weak RSA key"] = hostileCase{Evidence: encode(t, evidence{nil, unchecked(t, signerOf(t, weakRSAKey()), ssh.KeyAlgoRSASHA512, message)}), Want: problem.ReasonWeakAlgorithm}
	cases["RSA with SHA-1"] = hostileCase{Evidence: encode(t, evidence{nil, unchecked(t, signerOf(t, rsaKey()), ssh.KeyAlgoRSA, message)}), Want: problem.ReasonInvalid, Says: "no SSH signature"}
	p521 := onCurve(t, elliptic.P521())
	cases["P-521"] = hostileCase{Evidence: encode(t, evidence{nil, unchecked(t, p521, ssh.KeyAlgoECDSA521, message)}), Want: problem.ReasonWeakAlgorithm}
	for name, flags := range map[string]byte{"hardware key with touch": 1, "hardware key without touch": 0} {
		cases[name] = hostileCase{Evidence: encode(t, evidence{nil, hardware(flags)}), Want: problem.ReasonWeakAlgorithm, Says: "touch"}
	}
}

func mustSign(t *testing.T, key ssh.Signer, message []byte) []byte {
	t.Helper()
	out, err := sshsig.Sign(key, Namespace, message)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// blob is PROTOCOL.sshsig's outer structure.
type blob struct {
	Magic     [6]byte
	Version   uint32
	PublicKey string
	Namespace string
	Reserved  string
	Hash      string
	Signature string
}

func blobOf(key []byte, signature *ssh.Signature) []byte {
	return ssh.Marshal(blob{[6]byte([]byte("SSHSIG")), 1, string(key), Namespace, "", "sha512", string(ssh.Marshal(signature))})
}

// unchecked is an SSHSIG as sshsig refuses to make it.
func unchecked(t *testing.T, key ssh.Signer, algorithm string, _ []byte) []byte {
	t.Helper()
	sig, err := key.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, []byte("x"), algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return blobOf(key.PublicKey().Marshal(), sig)
}

// hardware is an SSHSIG by a FIDO key. It need not verify: it is refused before.
func hardware(flags byte) []byte {
	key := ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(make([]byte, 32)), "ssh:"})
	return blobOf(key, &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: make([]byte, 64), Rest: []byte{flags, 0, 0, 0, 1}})
}

func hostileCertificates(t *testing.T, cases map[string]hostileCase, web, ca ssh.Signer) {
	with := func(change func(*ssh.Certificate)) []byte {
		return good(t, web, certify(t, web.PublicKey(), ca, change))
	}
	chain := func(says string, ev []byte) hostileCase {
		return hostileCase{Evidence: ev, Want: problem.ReasonBadChain, Says: says}
	}
	cases["another authority"] = chain("no authority", good(t, web, certify(t, web.PublicKey(), fixed(t, "foreign"), nil)))
	cases["certified by itself"] = chain("no authority", good(t, web, certify(t, web.PublicKey(), web, nil)))
	cases["certified by a listed host"] = chain("no authority", good(t, web, certify(t, web.PublicKey(), fixed(t, "db"), nil)))
	cases["a user's certificate"] = chain("not a host's", with(func(c *ssh.Certificate) { c.CertType = ssh.UserCert }))
	cases["another certificate type"] = chain("not a host's", with(func(c *ssh.Certificate) { c.CertType = 3 }))
	cases["expired"] = chain("expired", with(func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Unix()) }))
	cases["not yet valid"] = chain("not yet valid", with(func(c *ssh.Certificate) { c.ValidAfter = uint64(now.Unix()) + 1 }))
	cases["begins in the far future"] = chain("not yet valid", with(func(c *ssh.Certificate) { c.ValidAfter = 1 << 63 }))
	cases["ends before it begins"] = chain("expired", with(func(c *ssh.Certificate) { c.ValidBefore = 0 }))
	cases["a critical option"] = chain("critical", with(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "10.0.0.0/8"} }))
	cases["for all hosts"] = chain("no named host", with(func(c *ssh.Certificate) { c.ValidPrincipals = nil }))
	cases["for a pattern"] = chain("pattern", with(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"web-1", "*.corp.example"} }))
	cases["for a list in one name"] = chain("pattern", with(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a,b"} }))
	cases["for an empty name"] = chain("no host's name", with(func(c *ssh.Certificate) { c.ValidPrincipals = []string{""} }))
	cases["for a name with a line"] = chain("no host's name", with(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"a\nb"} }))
	cases["for a name beyond ASCII"] = chain("no host's name", with(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"wеb-1"} }))
	cases["many names"] = hostileCase{Evidence: with(func(c *ssh.Certificate) {
		c.ValidPrincipals = strings.Split(strings.Repeat("a ", maxPrincipals)+"a", " ")
	}), Want: problem.ReasonTooLarge}
	cases["key ID with a control character"] = hostileCase{Evidence: with(func(c *ssh.Certificate) { c.KeyId = "web\x1b[2J" }), Want: problem.ReasonInvalid, Says: "unprintable"}
	cases["key ID that isn't UTF-8"] = hostileCase{Evidence: with(func(c *ssh.Certificate) { c.KeyId = "\xff" }), Want: problem.ReasonInvalid}
	cases["long key ID"] = hostileCase{Evidence: with(func(c *ssh.Certificate) { c.KeyId = strings.Repeat("a", 3000) }), Want: problem.ReasonTooLarge}

	changed := func(change func(*ssh.Certificate)) []byte {
		c := certify(t, web.PublicKey(), ca, nil)
		change(c)
		return good(t, web, c)
	}
	cases["other names after signing"] = chain("does not fit", changed(func(c *ssh.Certificate) { c.ValidPrincipals = []string{"db-1.corp.example"} }))
	cases["longer life after signing"] = chain("does not fit", changed(func(c *ssh.Certificate) { c.ValidBefore++ }))
	cases["the authority's name only"] = chain("does not fit", changed(func(c *ssh.Certificate) {
		if err := c.SignCert(rand.Reader, fixed(t, "foreign")); err != nil {
			t.Fatal(err)
		}
		c.SignatureKey = ca.PublicKey()
	}))
	cases["the key replaced after signing"] = hostileCase{Evidence: func() []byte {
		c := certify(t, web.PublicKey(), ca, nil)
		c.Key = fixed(t, "thief").PublicKey()
		return good(t, fixed(t, "thief"), c)
	}(), Want: problem.ReasonBadChain, Says: "does not fit"}

	cases["a certificate that is none"] = hostileCase{Evidence: replaceCertificate(t, web, []byte("canary-5b1e")), Want: problem.ReasonInvalid}
	cases["a plain key as certificate"] = hostileCase{Evidence: replaceCertificate(t, web, web.PublicKey().Marshal()), Want: problem.ReasonInvalid}
	cases["a large certificate"] = hostileCase{Evidence: replaceCertificate(t, web, make([]byte, maxCertificate+1)), Want: problem.ReasonTooLarge}
	cut := certify(t, web.PublicKey(), ca, nil).Marshal()
	cases["a truncated certificate"] = hostileCase{Evidence: replaceCertificate(t, web, cut[:len(cut)-1]), Want: problem.ReasonInvalid}
	cases["something after the certificate"] = hostileCase{Evidence: replaceCertificate(t, web, append(cut, 0)), Want: problem.ReasonInvalid}

	sha1 := certify(t, web.PublicKey(), ca, func(c *ssh.Certificate) {
		rsaCA := signerOf(t, rsaKey())
		c.SignatureKey, c.Nonce = rsaCA.PublicKey(), bytes.Repeat([]byte{1}, 32)
		unsigned := *c
		unsigned.Signature = &ssh.Signature{}
		body := unsigned.Marshal()
		sig, err := rsaCA.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, body[:len(body)-4-len(ssh.Marshal(unsigned.Signature))], ssh.KeyAlgoRSA)
		if err != nil {
			t.Fatal(err)
		}
		c.Signature = sig
	})
	byRSA := func(in *attest.Input) {
		in.Params = params(t, authority.Authority{Name: "rsa", SSHKeys: []ssh.PublicKey{signerOf(t, rsaKey()).PublicKey()}})
	}
	cases["certified with SHA-1"] = hostileCase{Evidence: good(t, web, sha1), Change: byRSA, Want: problem.ReasonWeakAlgorithm, Says: "algorithm"}
}

func replaceCertificate(t *testing.T, key ssh.Signer, certificate []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(mustSign(t, key, binding().Message()))
	return encode(t, evidence{certificate, block.Bytes})
}

func TestParamsRefuse(t *testing.T) {
	ca, db := fixed(t, "ca").PublicKey(), fixed(t, "db").PublicKey()
	weak := signerOf(t, weakRSAKey()).PublicKey()
	hosts := func(h ...authority.Host) []authority.Host { return h }
	for name, all := range map[string][]authority.Authority{
		"one key of two authorities": {{Name: "a", SSHKeys: []ssh.PublicKey{ca}}, {Name: "b", SSHKeys: []ssh.PublicKey{ca}}},
		"one key of two hosts":       {{Name: "a", Hosts: hosts(authority.Host{Name: "x", Key: db}, authority.Host{Name: "y", Key: db})}},
		"one host in two":            {{Name: "a", Hosts: hosts(authority.Host{Name: "x", Key: db})}, {Name: "b", Hosts: hosts(authority.Host{Name: "x", Key: db})}},
		"authority and host":         {{Name: "a", SSHKeys: []ssh.PublicKey{ca}, Hosts: hosts(authority.Host{Name: "x", Key: ca})}},
		"a weak authority":           {{Name: "a", SSHKeys: []ssh.PublicKey{weak}}},
		"a weak host":                {{Name: "a", Hosts: hosts(authority.Host{Name: "x", Key: weak})}},
		"a pattern":                  {{Name: "a", Hosts: hosts(authority.Host{Name: "*", Key: db})}},
		"no name":                    {{Name: "a", Hosts: hosts(authority.Host{Key: db})}},
		"a bad authority's name":     {{Name: "A", SSHKeys: []ssh.PublicKey{ca}}},
	} {
		if _, err := NewParams(all); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func privatePEM(t testing.TB, key any, passphrase string) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func TestAttesterRefuses(t *testing.T) {
	private := attesttest.Key("web")
	web, ca := signerOf(t, private), fixed(t, "ca")
	key := privatePEM(t, private, "")
	line := func(k ssh.PublicKey) []byte { return ssh.MarshalAuthorizedKey(k) }
	cert := line(certify(t, web.PublicKey(), ca, nil))
	for name, c := range map[string]struct{ key, certificate []byte }{
		"no key":               {nil, cert},
		"public key as key":    {line(web.PublicKey()), cert},
		"encrypted key":        {privatePEM(t, private, "correct horse"), cert},
		"weak key":             {privatePEM(t, weakRSAKey(), ""), nil},
		"not a certificate":    {key, line(web.PublicKey())},
		"nonsense":             {key, []byte("canary-5b1e")},
		"a user's":             {key, line(certify(t, web.PublicKey(), ca, func(c *ssh.Certificate) { c.CertType = ssh.UserCert }))},
		"another key's":        {key, line(certify(t, fixed(t, "db").PublicKey(), ca, nil))},
		"two certificates":     {key, append(bytes.Clone(cert), cert...)},
		"options before it":    {key, append([]byte("restrict "), cert...)},
		"damaged, with canary": {key, append(cert[:len(cert)/2:len(cert)/2], "canary-5b1e"...)},
	} {
		if _, err := NewAttester(c.key, c.certificate); err == nil || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "horse") {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, err := NewAttester(key, cert)
	if err != nil {
		t.Fatal(err)
	}
	attesttest.Attester(t, a, Name)
	// Ed25519 signatures are deterministic: the same binding gives the same evidence.
	one, err := a.Attest(t.Context(), binding())
	if err != nil {
		t.Fatal(err)
	}
	if two, err := a.Attest(t.Context(), binding()); err != nil || !bytes.Equal(one, two) {
		t.Error("attesting again gives something else", err)
	}
}

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	attesttest.Bound
	SSHKeys []string          `json:"ssh_keys"` // of the authority "corp"
	Hosts   map[string]string `json:"hosts"`    // of the authority "corp": name → key
	attesttest.Case
}

// writeVectors makes the file anew. ECDSA signatures are randomized, so the stored file is what counts.
func writeVectors(t *testing.T) {
	web, ca, db := fixed(t, "web"), fixed(t, "ca"), fixed(t, "db")
	b := binding()
	var vs []vector
	add := func(comment string, refused problem.Reason, ev []byte) {
		v := vector{
			Bound: attesttest.BoundTo(comment, b), Case: attesttest.Case{Now: now, Evidence: string(ev), Refused: refused},
			SSHKeys: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca.PublicKey())))},
			Hosts:   map[string]string{"db-1.corp.example": strings.TrimSpace(string(ssh.MarshalAuthorizedKey(db.PublicKey())))},
		}
		if refused == "" {
			res, err := Verify(input(t, ev))
			if err != nil {
				t.Fatal(err)
			}
			v.Claims = res.Claims
		}
		vs = append(vs, v)
	}
	add("accepted: an Ed25519 key with a certificate", "", good(t, web, certify(t, web.PublicKey(), ca, nil)))
	p256 := onCurve(t, elliptic.P256())
	add("accepted: a P-256 key with a certificate", "", good(t, p256, certify(t, p256.PublicKey(), ca, nil)))
	add("accepted: a listed key", "", good(t, db, nil))
	other := b
	other.Nonce = b.Nonce[:16]
	add("another nonce", problem.ReasonBadProof, evidenceOf(t, db, nil, Namespace, other.Message()))
	add("another namespace", problem.ReasonBadProof, evidenceOf(t, db, nil, "file", b.Message()))
	add("an unlisted key", problem.ReasonBadChain, good(t, web, nil))
	add("expired", problem.ReasonBadChain, good(t, web, certify(t, web.PublicKey(), ca, func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Unix()) })))
	add("a user's certificate", problem.ReasonBadChain, good(t, web, certify(t, web.PublicKey(), ca, func(c *ssh.Certificate) { c.CertType = ssh.UserCert })))
	attesttest.Write(t, vs)
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 8) }

func (v vector) Input(t testing.TB) attest.Input {
	a := authority.Authority{Name: "corp"}
	parse := func(line string) ssh.PublicKey {
		key, _, err := sshsig.ParseKey(line)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	for _, line := range v.SSHKeys {
		a.SSHKeys = append(a.SSHKeys, parse(line))
	}
	for name, line := range v.Hosts {
		a.Hosts = append(a.Hosts, authority.Host{Name: name, Key: parse(line)})
	}
	return v.InputOf(Name, v.Case, params(t, a))
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	for _, v := range readVectors(t) {
		attesttest.Check(t, Verify, v.Comment, v)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"signature":"MAA="}`))
	vs := readVectors(f)
	attesttest.Fuzz(f, Verify, vs, vs)
}

func BenchmarkVerify(b *testing.B) {
	web := fixed(b, "web")
	in := input(b, good(b, web, certify(b, web.PublicKey(), fixed(b, "ca"), nil)))
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
