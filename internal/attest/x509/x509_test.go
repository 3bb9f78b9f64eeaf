package x509

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	cx509 "crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

func TestVerify(t *testing.T) {
	p := newPKI(t)
	got, err := Verify(p.input(attested(t, p.web, p.inter)))
	if err != nil {
		t.Fatal(err)
	}
	spki := sha256.Sum256(p.web.cert.RawSubjectPublicKeyInfo)
	want := attest.Result{
		Claims: map[string]any{
			"authority": "corp",
			"subject":   map[string]any{"cn": "web-1", "o": []any{"Corp"}, "ou": []any{"eu", "web"}},
			"issuer":    map[string]any{"cn": "Corp Issuing", "o": []any{}, "ou": []any{}},
			"san":       map[string]any{"dns": []any{"web-1.corp.example"}, "uri": []any{"spiffe://corp.example/web-1"}},
			"serial":    "2a",
			"spki":      attest.DigestText(spki),
		},
		Assurance: identity.Key,
		Anchor:    "x509:corp",
		Key:       spki,
		NotAfter:  now.Add(24 * time.Hour),
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	data, _ := json.Marshal(got.Claims)
	var back map[string]any
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(back, got.Claims) {
		t.Fatalf("claims don't survive JSON: %s", data)
	}
}

func TestVerifyAccepts(t *testing.T) {
	p := newPKI(t)
	for name, chain := range map[string][]node{
		"P-256":                   {p.web, p.inter},
		"root sent too":           {p.web, p.inter, p.root},
		"issuers in other order":  {p.web, p.root, p.inter},
		"P-384":                   {leaf(t, fixed(elliptic.P384(), "a"), &p.inter, nil), p.inter},
		"Ed25519":                 {leaf(t, fixed(nil, "a"), &p.inter, nil), p.inter},
		"RSA 2048":                {leaf(t, rsaKey(), &p.inter, nil), p.inter},
		"directly under the root": {leaf(t, fixed(nil, "a"), &p.root, nil)},
		"no key usages at all": {leaf(t, fixed(nil, "a"), &p.root, func(c *cx509.Certificate) {
			c.KeyUsage, c.ExtKeyUsage = 0, nil
		})},
		"any extended usage": {leaf(t, fixed(nil, "a"), &p.root, func(c *cx509.Certificate) {
			c.ExtKeyUsage = []cx509.ExtKeyUsage{cx509.ExtKeyUsageAny}
		})},
		"ends this second": {leaf(t, fixed(nil, "a"), &p.root, func(c *cx509.Certificate) { c.NotAfter = now })},
	} {
		if _, err := Verify(p.input(attested(t, chain...))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNotAfterIsTheChainsEarliest(t *testing.T) {
	root := ca(t, "Root", fixed(nil, "root"), nil, nil)
	inter := ca(t, "Inter", fixed(nil, "inter"), &root, func(c *cx509.Certificate) { c.NotAfter = now.Add(time.Minute) })
	web := leaf(t, fixed(nil, "web"), &inter, nil)
	p := pki{params: Params{authorities(t, map[string][]byte{"corp": pemOf(root)})}}
	got, err := Verify(p.input(attested(t, web, inter)))
	if err != nil || !got.NotAfter.Equal(now.Add(time.Minute)) {
		t.Fatalf("%v, %v", got.NotAfter, err)
	}
	// A pinned issuing CA is an anchor of its own, and its own name counts.
	p.params = Params{authorities(t, map[string][]byte{"corp": pemOf(root), "branch": pemOf(inter)})}
	got, err = Verify(p.input(attested(t, web, inter)))
	if err != nil || got.Anchor != "x509:branch" {
		t.Fatalf("%v, %v", got.Anchor, err)
	}
}

// TestHostileEvidence is the table of what a thief, a relay and a foreign CA would send.
func TestHostileEvidence(t *testing.T) {
	p := newPKI(t)
	good := string(attested(t, p.web, p.inter))
	if _, err := Verify(p.input([]byte(good))); err != nil {
		t.Fatal(err)
	}
	for name, c := range hostile(t, p, good) {
		t.Run(name, func(t *testing.T) {
			in := p.input(c.evidence)
			if c.change != nil {
				c.change(&in)
			}
			res, err := Verify(in)
			if !problem.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v\nwant %s with %q", err, c.want, c.says)
			}
			if !reflect.DeepEqual(res, attest.Result{}) {
				t.Fatalf("a result beside the refusal: %+v", res)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Fatalf("the refusal quotes the evidence: %v", err)
			}
		})
	}
}

type hostileCase struct {
	evidence []byte
	change   func(*attest.Input)
	want     problem.Reason
	says     string
}

func hostile(t *testing.T, p pki, good string) map[string]hostileCase {
	cases := map[string]hostileCase{}
	hostileForm(t, p, good, cases)
	hostileBinding(t, p, cases)
	hostileChain(t, p, cases)
	hostileLeaf(t, p, cases)
	return cases
}

func hostileForm(t *testing.T, p pki, good string, cases map[string]hostileCase) {
	invalid := func(name, ev string) {
		cases[name] = hostileCase{evidence: []byte(ev), want: problem.ReasonInvalid}
	}
	invalid("empty", "")
	invalid("null", "null")
	invalid("truncated", good[:len(good)-2])
	invalid("trailing", good+"{}")
	invalid("duplicate field", strings.Replace(good, `{"chain"`, `{"chain":[],"chain"`, 1))
	invalid("unknown field", strings.Replace(good, `{"chain"`, `{"alg":"none","chain"`, 1))
	invalid("other letter case", strings.Replace(good, `"chain"`, `"Chain"`, 1))
	invalid("white space", strings.Replace(good, `:[`, `: [`, 1))
	invalid("no certificate", `{"chain":[],"signature":""}`)
	invalid("null chain", `{"chain":null,"signature":""}`)
	cases["oversized"] = hostileCase{evidence: make([]byte, attest.MaxEvidence+1), want: problem.ReasonTooLarge}
	cases["nine certificates"] = hostileCase{
		evidence: evidenceBy(t, p.web.key, binding(), p.web, p.inter, p.inter, p.inter, p.inter, p.inter, p.inter, p.inter, p.inter),
		want:     problem.ReasonTooLarge, says: "more than 8",
	}
	cases["not a certificate"] = hostileCase{evidence: []byte(`{"chain":["AAAA"],"signature":""}`), want: problem.ReasonBadChain, says: "can't be parsed"}
	big := leaf(t, fixed(nil, "big"), &p.root, func(c *cx509.Certificate) { c.DNSNames = []string{strings.Repeat("a", maxCertificate)} })
	cases["huge certificate"] = hostileCase{evidence: evidenceBy(t, big.key, binding(), big), want: problem.ReasonTooLarge, says: "bytes"}
	cases["wrong params"] = hostileCase{evidence: []byte(good), change: func(in *attest.Input) { in.Params = "x" }, want: problem.ReasonInternal}
	cases["no authorities object"] = hostileCase{evidence: []byte(good), change: func(in *attest.Input) { in.Params = Params{} }, want: problem.ReasonInternal}
}

func hostileBinding(t *testing.T, p pki, cases map[string]hostileCase) {
	bound := func(name string, change func(*attest.Binding)) {
		b := binding()
		change(&b)
		cases[name] = hostileCase{evidence: evidenceBy(t, p.web.key, b, p.web, p.inter), want: problem.ReasonBadProof}
	}
	bound("replay with another nonce", func(b *attest.Binding) { b.Nonce = bytes.Repeat([]byte{8}, 32) })
	bound("another environment", func(b *attest.Binding) { b.Genesis = array(2) })
	bound("another session key", func(b *attest.Binding) { b.SessionKey = array(8) })
	bound("another method", func(b *attest.Binding) { b.Method = "join-token" })

	signed := func(name string, signature []byte, chain ...node) {
		cases[name] = hostileCase{evidence: evidenceWith(t, signature, chain...), want: problem.ReasonBadProof}
	}
	message := binding().Message()
	hash := func(key crypto.Signer, digest []byte, opts crypto.SignerOpts) []byte {
		out, err := key.Sign(rand.Reader, digest, opts)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	sum := sha256.Sum256(message)
	signed("no signature", nil, p.web, p.inter)
	signed("huge signature", make([]byte, 4096), p.web, p.inter)
	signed("swapped key", hash(fixed(elliptic.P256(), "thief"), sum[:], crypto.SHA256), p.web, p.inter)
	signed("signed by the issuer", hash(p.inter.key, make([]byte, 48), crypto.SHA384), p.web, p.inter)
	signed("zero r and s", []byte{0x30, 6, 2, 1, 0, 2, 1, 0}, p.web, p.inter)
	signed("trailing byte in the signature", append(hash(p.web.key, sum[:], crypto.SHA256), 0), p.web, p.inter)
	p384 := leaf(t, fixed(elliptic.P384(), "a"), &p.inter, nil)
	signed("wrong hash: P-384 with SHA-256", hash(p384.key, sum[:], crypto.SHA256), p384, p.inter)
	byRSA := leaf(t, rsaKey(), &p.inter, nil)
	pkcs1, err := rsa.SignPKCS1v15(rand.Reader, rsaKey(), crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signed("wrong algorithm: RSA PKCS #1 v1.5", pkcs1, byRSA, p.inter)
	signed("wrong salt length", hash(byRSA.key, sum[:], &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}), byRSA, p.inter)
	byEd := leaf(t, fixed(nil, "a"), &p.inter, nil)
	ph := hash(byEd.key, sha512sum(message), &ed25519.Options{Hash: crypto.SHA512})
	signed("wrong algorithm: Ed25519ph", ph, byEd, p.inter)
	signed("Ed25519 signature cut", ph[:63], byEd, p.inter)
}

func hostileChain(t *testing.T, p pki, cases map[string]hostileCase) {
	bad := func(name, says string, chain ...node) {
		cases[name] = hostileCase{evidence: evidenceBy(t, chain[0].key, binding(), chain...), want: problem.ReasonBadChain, says: says}
	}
	const unknown = "does not lead to an authority"
	foreign := ca(t, "Other Root", fixed(nil, "other"), nil, nil)
	bad("foreign authority", unknown, leaf(t, fixed(nil, "x"), &foreign, nil), foreign)
	forged := ca(t, "Corp Root", fixed(nil, "forger"), nil, nil)
	bad("forged: a root of the same name", unknown, leaf(t, fixed(nil, "x"), &forged, nil), forged)
	bad("intermediate missing", unknown, p.web)
	bad("intermediate twice", "twice", p.web, p.inter, p.inter)
	bad("leaf twice", "twice", p.web, p.web, p.inter)
	bad("signed by another machine", "not a CA's", leaf(t, fixed(nil, "x"), &p.web, nil), p.web, p.inter)

	// A machine that gives itself a CA's name, to pass for the issuer of its own certificates.
	fake := leaf(t, fixed(nil, "fake"), &p.inter, func(c *cx509.Certificate) { c.KeyUsage |= cx509.KeyUsageCertSign })
	bad("signed by a leaf with certSign", "not a CA's", leaf(t, fixed(nil, "x"), &fake, nil), fake, p.inter)

	narrow := ca(t, "Narrow", fixed(nil, "narrow"), &p.root, func(c *cx509.Certificate) { c.MaxPathLenZero = true })
	below := ca(t, "Below", fixed(nil, "below"), &narrow, nil)
	bad("path length exceeded", "longer", leaf(t, fixed(nil, "x"), &below, nil), below, narrow)
	named := ca(t, "Named", fixed(nil, "named"), &p.root, func(c *cx509.Certificate) { c.PermittedDNSDomains = []string{"canary.example"} })
	bad("name constraint", "may not issue", leaf(t, fixed(nil, "x"), &named, nil), named)
	late := ca(t, "Late", fixed(nil, "late"), &p.root, func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	bad("intermediate expired", "expired", leaf(t, fixed(nil, "x"), &late, nil), late)
	weak := ca(t, "Weak", weakRSAKey(), &p.root, nil)
	bad("weak intermediate", "1024 bits", leaf(t, fixed(nil, "x"), &weak, nil), weak)

	cases["after the root's end"] = hostileCase{
		evidence: evidenceBy(t, p.web.key, binding(), p.web, p.inter), want: problem.ReasonBadChain, says: "expired",
		change: func(in *attest.Input) { in.Now = now.Add(25 * time.Hour) },
	}
	short := ca(t, "Short Root", fixed(nil, "short"), nil, func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	cases["root expired"] = hostileCase{
		evidence: evidenceBy(t, fixed(nil, "x"), binding(), leaf(t, fixed(nil, "x"), &short, nil)), want: problem.ReasonBadChain, says: "authority's own",
		change: func(in *attest.Input) {
			in.Params = Params{authorities(t, map[string][]byte{"short": pemOf(short)})}
		},
	}
	cases["no authority named"] = hostileCase{
		evidence: evidenceBy(t, p.web.key, binding(), p.web, p.inter), want: problem.ReasonBadChain, says: unknown,
		change: func(in *attest.Input) { in.Params = Params{authorities(t, nil)} },
	}
}

func hostileLeaf(t *testing.T, p pki, cases map[string]hostileCase) {
	add := func(name, says string, want problem.Reason, key crypto.Signer, change func(*cx509.Certificate)) {
		n := leaf(t, key, &p.root, change)
		cases[name] = hostileCase{evidence: evidenceBy(t, key, binding(), n), want: want, says: says}
	}
	bad := func(name, says string, change func(*cx509.Certificate)) {
		add(name, says, problem.ReasonBadChain, fixed(nil, "x"), change)
	}
	bad("expired", "expired", func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	bad("not valid yet", "not valid before", func(c *cx509.Certificate) { c.NotBefore = now.Add(time.Second) })
	bad("server's certificate", "client authentication", func(c *cx509.Certificate) {
		c.ExtKeyUsage = []cx509.ExtKeyUsage{cx509.ExtKeyUsageServerAuth}
	})
	bad("key may only encrypt", "may not make signatures", func(c *cx509.Certificate) { c.KeyUsage = cx509.KeyUsageKeyEncipherment })
	bad("CA as leaf", "a CA's", func(c *cx509.Certificate) { c.IsCA = true })
	bad("two common names", "several common names", func(c *cx509.Certificate) {
		c.Subject.ExtraNames = append(c.Subject.ExtraNames, c.Subject.ToRDNSequence()[0][0], pkixCN("web-1"), pkixCN("canary"))
	})
	bad("critical extension", "critical extension", func(c *cx509.Certificate) { c.ExtraExtensions = criticalExtension() })
	add("control character in the name", "unprintable", problem.ReasonInvalid, fixed(nil, "x"), func(c *cx509.Certificate) { c.Subject.CommonName = "a\x1b[2Jb" })
	add("NUL in the name", "unprintable", problem.ReasonInvalid, fixed(nil, "x"), func(c *cx509.Certificate) { c.Subject.CommonName = "web-1\x00.evil" })
	add("too many names", "more than 64", problem.ReasonTooLarge, fixed(nil, "x"), func(c *cx509.Certificate) { c.DNSNames = strings.Split(strings.Repeat("a.b,", 65)+"c", ",") })
	add("too much text", "8192", problem.ReasonTooLarge, fixed(nil, "x"), func(c *cx509.Certificate) {
		c.Subject.OrganizationalUnit = strings.Split(strings.Repeat(strings.Repeat("u", 190)+",", 50)+"c", ",")
	})
	weak := leaf(t, weakRSAKey(), &p.root, nil)
	cases["weak key"] = hostileCase{evidence: evidenceBy(t, weakRSAKey(), binding(), weak), want: problem.ReasonBadChain, says: "1024 bits"}
	for name, curve := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cases["leaf on "+name] = hostileCase{evidence: evidenceWith(t, []byte{1}, leaf(t, key, &p.root, nil)), want: problem.ReasonBadChain, says: "curve"}
	}
	self := leaf(t, fixed(nil, "self"), nil, nil)
	cases["self-signed"] = hostileCase{evidence: evidenceBy(t, self.key, binding(), self), want: problem.ReasonBadChain, says: "self-signed"}
	cases["the root itself"] = hostileCase{evidence: evidenceBy(t, p.root.key, binding(), p.root), want: problem.ReasonBadChain, says: "a CA's"}
}

func TestAuthoritiesRefuse(t *testing.T) {
	p := newPKI(t)
	weak := ca(t, "Weak", weakRSAKey(), nil, nil)
	noSign := ca(t, "NoSign", fixed(nil, "n"), nil, func(c *cx509.Certificate) { c.KeyUsage = cx509.KeyUsageCRLSign })
	root := string(pemOf(p.root))
	many := map[string][]byte{}
	for i := range authority.Max + 1 {
		many[strings.Repeat("a", i%60+1)+strings.Repeat("b", i/60)] = nil
	}
	for name, named := range map[string]map[string][]byte{
		"one root under two names": {"a": []byte(root), "b": []byte(root)},
		"one root twice":           {"a": []byte(root + root)},
		"a leaf":                   {"a": pemOf(p.web)},
		"a weak root":              {"a": pemOf(weak)},
		"may not sign":             {"a": pemOf(noSign)},
		"empty":                    {"a": nil},
		"text":                     {"a": []byte("hello")},
		"a key":                    {"a": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})},
		"damaged block at the end": {"a": []byte(root + root[:100])},
		"damaged block first":      {"a": []byte(root[:100] + "\n" + root)},
		"not DER":                  {"a": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})},
		"empty name":               {"": []byte(root)},
		"name with slash":          {"a/b": []byte(root)},
		"name with colon":          {"a:b": []byte(root)},
		"upper-case name":          {"Corp": []byte(root)},
		"name ends with dash":      {"a-": []byte(root)},
		"long name":                {strings.Repeat("a", 64): []byte(root)},
		"a comment":                {"a": []byte("# a comment\n" + root)},
		"too many":                 many,
	} {
		if _, err := NewAuthorities(named); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewAuthorities(map[string][]byte{"corp": []byte("\n" + root + "\n"), "4.corp-2": pemOf(p.inter)}); err != nil {
		t.Error(err)
	}
}

func TestAttesterRefuses(t *testing.T) {
	p := newPKI(t)
	der := func(n node) [][]byte { return [][]byte{n.cert.Raw} }
	for name, make := range map[string]func() (attest.Attester, error){
		"another key": func() (attest.Attester, error) { return NewAttester(der(p.web), fixed(nil, "x")) },
		"a CA":        func() (attest.Attester, error) { return NewAttester(der(p.root), p.root.key) },
		"no chain":    func() (attest.Attester, error) { return NewAttester(nil, p.web.key) },
		"no PEM":      func() (attest.Attester, error) { return NewAttesterPEM(nil, nil) },
		"no key":      func() (attest.Attester, error) { return NewAttesterPEM(pemOf(p.web), nil) },
		"cert as key": func() (attest.Attester, error) { return NewAttesterPEM(pemOf(p.web), pemOf(p.web)) },
		"damaged key": func() (attest.Attester, error) { return NewAttesterPEM(pemOf(p.web), keyPEM("PRIVATE KEY", []byte{1})) },
		"weak RSA key": func() (attest.Attester, error) {
			return NewAttester(der(leaf(t, weakRSAKey(), &p.root, nil)), weakRSAKey())
		},
	} {
		if _, err := make(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	a, err := NewAttester(der(p.web), p.web.key)
	if err != nil {
		t.Fatal(err)
	}
	wrong := binding()
	wrong.Method = "join-token"
	if _, err := a.Attest(context.Background(), wrong); !problem.Is(err, problem.ReasonInternal) {
		t.Errorf("another method: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Attest(ctx, binding()); !problem.Is(err, problem.ReasonCanceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func keyPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestAttesterReadsEveryKeyFormat(t *testing.T) {
	p := newPKI(t)
	pkcs8 := func(k crypto.Signer) []byte {
		der, err := cx509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return keyPEM("PRIVATE KEY", der)
	}
	sec1, err := cx509.MarshalECPrivateKey(p.web.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	byRSA, byEd := leaf(t, rsaKey(), &p.inter, nil), leaf(t, fixed(nil, "a"), &p.inter, nil)
	for name, c := range map[string]struct {
		leaf node
		key  []byte
	}{
		"PKCS #8 EC":      {p.web, pkcs8(p.web.key)},
		"PKCS #8 Ed25519": {byEd, pkcs8(byEd.key)},
		"PKCS #8 RSA":     {byRSA, pkcs8(byRSA.key)},
		"SEC 1":           {p.web, keyPEM("EC PRIVATE KEY", sec1)},
		"openssl ecparam": {p.web, append(keyPEM("EC PARAMETERS", []byte{6, 0}), keyPEM("EC PRIVATE KEY", sec1)...)},
		"PKCS #1":         {byRSA, keyPEM("RSA PRIVATE KEY", cx509.MarshalPKCS1PrivateKey(rsaKey()))},
	} {
		a, err := NewAttesterPEM(pemOf(c.leaf, p.inter), c.key)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ev, err := a.Attest(context.Background(), binding())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := Verify(p.input(ev)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	Comment     string            `json:"comment"`
	Genesis     []byte            `json:"genesis"`
	Nonce       []byte            `json:"nonce"`
	SessionKey  []byte            `json:"session_key"`
	Authorities map[string]string `json:"authorities"`
	Now         time.Time         `json:"now"`
	Evidence    string            `json:"evidence"`
	Claims      map[string]any    `json:"claims,omitempty"`
	Refused     problem.Reason    `json:"refused,omitempty"`
}

// writeVectors makes the file anew. ECDSA and PSS signatures are randomized, so the stored file is
// what counts, and it is never compared with a new one.
func writeVectors(t *testing.T, path string) {
	p := newPKI(t)
	b := binding()
	var vs []vector
	add := func(comment string, refused problem.Reason, ev []byte) {
		v := vector{
			Comment: comment, Genesis: b.Genesis[:], Nonce: b.Nonce, SessionKey: b.SessionKey[:],
			Authorities: map[string]string{"corp": string(pemOf(p.root))}, Now: now, Evidence: string(ev), Refused: refused,
		}
		if refused == "" {
			res, err := Verify(p.input(ev))
			if err != nil {
				t.Fatal(err)
			}
			v.Claims = res.Claims
		}
		vs = append(vs, v)
	}
	add("accepted: ECDSA P-256 with SHA-256", "", attested(t, p.web, p.inter))
	add("accepted: ECDSA P-384 with SHA-384", "", attested(t, leaf(t, fixed(elliptic.P384(), "a"), &p.inter, nil), p.inter))
	add("accepted: Ed25519", "", attested(t, leaf(t, fixed(nil, "a"), &p.inter, nil), p.inter))
	add("accepted: RSA 2048 PSS with SHA-256", "", attested(t, leaf(t, rsaKey(), &p.inter, nil), p.inter))
	other := b
	other.Nonce = b.Nonce[:16]
	add("another nonce", problem.ReasonBadProof, evidenceBy(t, p.web.key, other, p.web, p.inter))
	add("no issuer", problem.ReasonBadChain, evidenceBy(t, p.web.key, b, p.web))
	late := leaf(t, fixed(nil, "a"), &p.inter, func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	add("expired", problem.ReasonBadChain, evidenceBy(t, late.key, b, late, p.inter))
	data, err := json.MarshalIndent(vs, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readVectors(t testing.TB) []vector {
	data, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(data, &vs); err != nil || len(vs) < 7 {
		t.Fatal(len(vs), err)
	}
	return vs
}

func (v vector) input(t testing.TB) attest.Input {
	named := map[string][]byte{}
	for name, text := range v.Authorities {
		named[name] = []byte(text)
	}
	return attest.Input{
		Binding:  attest.Binding{Method: Name, Genesis: [32]byte(v.Genesis), Nonce: v.Nonce, SessionKey: [32]byte(v.SessionKey)},
		Evidence: []byte(v.Evidence), Now: v.Now, Params: Params{authorities(t, named)},
	}
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t, filepath.Join("testdata", "vectors.json"))
	}
	for _, v := range readVectors(t) {
		res, err := Verify(v.input(t))
		if v.Refused != "" && !problem.Is(err, v.Refused) || v.Refused == "" && err != nil {
			t.Errorf("%s: %v", v.Comment, err)
		}
		if !reflect.DeepEqual(res.Claims, v.Claims) {
			t.Errorf("%s: claims %v", v.Comment, res.Claims)
		}
	}
}

func FuzzVerify(f *testing.F) {
	vs := readVectors(f)
	in := vs[0].input(f)
	claims := map[string]bool{}
	for _, v := range vs {
		f.Add([]byte(v.Evidence))
		if v.Refused == "" {
			text, _ := json.Marshal(v.Claims)
			claims[string(text)] = true
		}
	}
	f.Add([]byte(`{"chain":["MAA="],"signature":"MAA="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		in := in
		in.Evidence = data
		res, err := Verify(in)
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Fatalf("a stranger caused an internal error: %v", err)
			}
			return
		}
		// Certificates can be added and left out, and an ECDSA signature has two forms; but what is
		// proved can only be what one of the vectors proves.
		if text, _ := json.Marshal(res.Claims); !claims[string(text)] {
			t.Fatalf("%q proves %s", data, text)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	p := newPKI(b)
	in := p.input(attested(b, p.web, p.inter))
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
