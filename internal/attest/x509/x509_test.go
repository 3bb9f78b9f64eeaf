package x509

import (
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
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
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
	attesttest.RefuseAll(t, Verify, func(ev []byte) attest.Input { return p.input(ev) }, hostile(t, p, good))
}

type hostileCase = attesttest.Hostile

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
		cases[name] = hostileCase{Evidence: []byte(ev), Want: problem.ReasonInvalid}
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
	cases["oversized"] = hostileCase{Evidence: make([]byte, attest.MaxEvidence+1), Want: problem.ReasonTooLarge}
	cases["nine certificates"] = hostileCase{
		Evidence: evidenceBy(t, p.web.key, binding(), p.web, p.inter, p.inter, p.inter, p.inter, p.inter, p.inter, p.inter, p.inter),
		Want:     problem.ReasonTooLarge, Says: "more than 8",
	}
	cases["not a certificate"] = hostileCase{Evidence: []byte(`{"chain":["AAAA"],"signature":""}`), Want: problem.ReasonBadChain, Says: "can't be parsed"}
	big := leaf(t, fixed(nil, "big"), &p.root, func(c *cx509.Certificate) { c.DNSNames = []string{strings.Repeat("a", maxCertificate)} })
	cases["huge certificate"] = hostileCase{Evidence: evidenceBy(t, big.key, binding(), big), Want: problem.ReasonTooLarge, Says: "bytes"}
	cases["wrong params"] = hostileCase{Evidence: []byte(good), Change: func(in *attest.Input) { in.Params = "x" }, Want: problem.ReasonInternal}
	cases["no authorities object"] = hostileCase{Evidence: []byte(good), Change: func(in *attest.Input) { in.Params = Params{} }, Want: problem.ReasonInternal}
}

func hostileBinding(t *testing.T, p pki, cases map[string]hostileCase) {
	bound := func(name string, change func(*attest.Binding)) {
		b := binding()
		change(&b)
		cases[name] = hostileCase{Evidence: evidenceBy(t, p.web.key, b, p.web, p.inter), Want: problem.ReasonBadProof}
	}
	for name, change := range attesttest.Rebound() {
		bound(name, change)
	}
	bound("another method", func(b *attest.Binding) { b.Method = "join-token" })

	signed := func(name string, signature []byte, chain ...node) {
		cases[name] = hostileCase{Evidence: evidenceWith(t, signature, chain...), Want: problem.ReasonBadProof}
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
		cases[name] = hostileCase{Evidence: evidenceBy(t, chain[0].key, binding(), chain...), Want: problem.ReasonBadChain, Says: says}
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
		Evidence: evidenceBy(t, p.web.key, binding(), p.web, p.inter), Want: problem.ReasonBadChain, Says: "expired",
		Change: func(in *attest.Input) { in.Now = now.Add(25 * time.Hour) },
	}
	short := ca(t, "Short Root", fixed(nil, "short"), nil, func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Minute) })
	cases["root expired"] = hostileCase{
		Evidence: evidenceBy(t, fixed(nil, "x"), binding(), leaf(t, fixed(nil, "x"), &short, nil)), Want: problem.ReasonBadChain, Says: "authority's own",
		Change: func(in *attest.Input) {
			in.Params = Params{authorities(t, map[string][]byte{"short": pemOf(short)})}
		},
	}
	cases["no authority named"] = hostileCase{
		Evidence: evidenceBy(t, p.web.key, binding(), p.web, p.inter), Want: problem.ReasonBadChain, Says: unknown,
		Change: func(in *attest.Input) { in.Params = Params{authorities(t, nil)} },
	}
}

func hostileLeaf(t *testing.T, p pki, cases map[string]hostileCase) {
	add := func(name, says string, want problem.Reason, key crypto.Signer, change func(*cx509.Certificate)) {
		n := leaf(t, key, &p.root, change)
		cases[name] = hostileCase{Evidence: evidenceBy(t, key, binding(), n), Want: want, Says: says}
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
	cases["weak key"] = hostileCase{Evidence: evidenceBy(t, weakRSAKey(), binding(), weak), Want: problem.ReasonBadChain, Says: "1024 bits"}
	for name, curve := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cases["leaf on "+name] = hostileCase{Evidence: evidenceWith(t, []byte{1}, leaf(t, key, &p.root, nil)), Want: problem.ReasonBadChain, Says: "curve"}
	}
	self := leaf(t, fixed(nil, "self"), nil, nil)
	cases["self-signed"] = hostileCase{Evidence: evidenceBy(t, self.key, binding(), self), Want: problem.ReasonBadChain, Says: "self-signed"}
	cases["the root itself"] = hostileCase{Evidence: evidenceBy(t, p.root.key, binding(), p.root), Want: problem.ReasonBadChain, Says: "a CA's"}
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
	attesttest.Attester(t, a, Name)
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
	attesttest.Bound
	Authorities map[string]string `json:"authorities"`
	attesttest.Case
}

// writeVectors makes the file anew. ECDSA and PSS signatures are randomized, so the stored file is
// what counts, and it is never compared with a new one.
func writeVectors(t *testing.T) {
	p := newPKI(t)
	b := binding()
	var vs []vector
	add := func(comment string, refused problem.Reason, ev []byte) {
		v := vector{
			Bound:       attesttest.BoundTo(comment, b),
			Authorities: map[string]string{"corp": string(pemOf(p.root))}, Case: attesttest.Case{Now: now, Evidence: string(ev), Refused: refused},
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
	attesttest.Write(t, vs)
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 7) }

func (v vector) Input(t testing.TB) attest.Input {
	named := map[string][]byte{}
	for name, text := range v.Authorities {
		named[name] = []byte(text)
	}
	return v.InputOf(Name, v.Case, Params{authorities(t, named)})
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
	f.Add([]byte(`{"chain":["MAA="],"signature":"MAA="}`))
	vs := readVectors(f)
	attesttest.Fuzz(f, Verify, vs, vs)
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
