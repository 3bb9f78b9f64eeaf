package hostile

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	cx509 "crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/sshhost"
	"github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// joinTokens are the machines with a token of the ledger.
func joinTokens(t testing.TB) kit {
	var mu sync.Mutex
	var mine *jointoken.Token
	by := func(h *house, name string) jointoken.Token { return h.Token(h.Login("alice"), name, time.Hour) }
	own := func(h *house) jointoken.Token {
		mu.Lock()
		defer mu.Unlock()
		if mine == nil {
			tok := by(h, "web-1")
			mine = &tok
		}
		return *mine
	}
	sign := func(tok jointoken.Token, b attest.Binding) []byte {
		a, err := jointoken.NewAttester(tok)
		if err != nil {
			t.Fatal(err)
		}
		return attested(t, a, b)
	}
	foreign := func(genesis [32]byte) jointoken.Token {
		tok, err := jointoken.New(genesis)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	k := kit{
		method: jointoken.Name, challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
		good: func(h *house, b attest.Binding) []byte {
			g := b
			g.Genesis = h.Genesis
			ev := sign(own(h), g)
			if b.Genesis == h.Genesis {
				return ev
			}
			// The attester of another environment's token would not sign; a thief of the token does.
			other := foreign(b.Genesis)
			theirs, mine := sign(other, b), ev
			return edited(t, mine, func(f map[string]json.RawMessage) {
				their, _ := members(t, theirs)
				f["signature"] = their["signature"]
			})
		},
	}
	k.attacks = []attack{
		{"a token that was never made", problem.ReasonTokenUnknown, func(h *house, b attest.Binding) []byte { return sign(foreign(h.Genesis), b) }},
		{"another environment's token", problem.ReasonTokenForeign, func(_ *house, b attest.Binding) []byte {
			b.Genesis[0] ^= 1
			return sign(foreign(b.Genesis), b)
		}},
		{"another token's signature", problem.ReasonBadProof, func(h *house, b attest.Binding) []byte {
			their, _ := members(t, sign(by(h, "web-2"), b))
			return edited(t, sign(own(h), b), func(f map[string]json.RawMessage) { f["signature"] = their["signature"] })
		}},
		{"a spent token, with a new key", problem.ReasonTokenSpent, func(h *house, b attest.Binding) []byte { return sign(own(h), b) }},
		{"a bit of the signature", problem.ReasonBadProof, func(h *house, b attest.Binding) []byte {
			return edited(t, sign(own(h), b), func(f map[string]json.RawMessage) { f["signature"] = flipped(t, f["signature"], 5) })
		}},
		{"half a signature", problem.ReasonBadProof, func(h *house, b attest.Binding) []byte {
			return edited(t, sign(own(h), b), func(f map[string]json.RawMessage) { f["signature"] = encode(t, make([]byte, 32)) })
		}},
		{"an ID that is none", problem.ReasonInvalid, func(h *house, b attest.Binding) []byte {
			return edited(t, sign(own(h), b), func(f map[string]json.RawMessage) { f["token"] = encode(t, strings.Repeat("z", 32)) })
		}},
	}
	return k
}

// certificates are the machines with an X.509 certificate. others are roots that are trusted, for other methods.
func certificates(t testing.TB, others map[string]issued) kit {
	root := issue(t, "Corp Root", ecKey(t, elliptic.P256()), nil, ca)
	web := issue(t, "web-1", ecKey(t, elliptic.P256()), &root, nil)
	by := func(b attest.Binding, key issued, chain ...issued) []byte {
		var der [][]byte
		for _, c := range chain {
			der = append(der, c.cert.Raw)
		}
		a, err := x509.NewAttester([][]byte{web.cert.Raw}, web.key)
		if err != nil {
			t.Fatal(err)
		}
		return edited(t, attested(t, a, b), func(f map[string]json.RawMessage) {
			f["chain"] = encode(t, der)
			if key.key != web.key {
				f["signature"] = encode(t, signed(t, key, b.Message()))
			}
		})
	}
	k := kit{
		method: x509.Name, spec: specPEM(root.cert), challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
		good: func(_ *house, b attest.Binding) []byte { return by(b, web, web) },
	}
	chain := func(name string, key issued, rest ...issued) {
		k.attacks = append(k.attacks, attack{name, problem.ReasonBadChain, func(_ *house, b attest.Binding) []byte {
			return by(b, key, append([]issued{key}, rest...)...)
		}})
	}
	leaf := func(name string, change func(*cx509.Certificate)) {
		chain(name, issue(t, "web-1", ecKey(t, elliptic.P256()), &root, change))
	}
	rogue := issue(t, "Corp Root", ecKey(t, elliptic.P256()), nil, ca)
	chain("self-signed", issue(t, "web-1", ecKey(t, elliptic.P256()), nil, nil))
	chain("an authority of the same name", issue(t, "web-1", ecKey(t, elliptic.P256()), &rogue, nil), rogue)
	chain("issued by a machine", issue(t, "web-2", ecKey(t, elliptic.P256()), &web, nil), web)
	chain("a CA's own certificate", root)
	leaf("expired", overdue)
	leaf("from the future", early)
	leaf("a key for encryption", func(c *cx509.Certificate) { c.KeyUsage = cx509.KeyUsageKeyEncipherment })
	chain("a downgraded curve", issue(t, "web-1", ecKey(t, elliptic.P224()), &root, nil))
	for method, other := range others {
		chain("an authority that is trusted for "+method, issue(t, "web-1", ecKey(t, elliptic.P256()), &other, nil))
	}
	thief := issue(t, "thief", ecKey(t, elliptic.P256()), nil, nil)
	k.attacks = append(k.attacks,
		attack{"another machine's certificate", problem.ReasonBadProof, func(_ *house, b attest.Binding) []byte { return by(b, thief, web) }},
		attack{"no certificate", problem.ReasonInvalid, func(_ *house, b attest.Binding) []byte { return by(b, web) }},
		attack{"nine certificates", problem.ReasonTooLarge, func(_ *house, b attest.Binding) []byte {
			return by(b, web, web, web, web, web, web, web, web, web, web)
		}},
	)
	return k
}

// signed is what the attester of x509 makes for keys of its kind.
func signed(t testing.TB, by issued, message []byte) []byte {
	t.Helper()
	// Its own attester signs for a certificate that it would take.
	if key, ok := by.key.(*ecdsa.PrivateKey); ok && key.Curve != elliptic.P256() {
		return []byte{0x30, 0}
	}
	sum := sum256(message)
	out, err := by.key.Sign(rand.Reader, sum, cryptoSHA256)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hosts are the machines with an SSH host key.
func hosts(t testing.TB) kit {
	signer := func(key any) ssh.Signer {
		s, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	fresh := func() ssh.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return signer(key)
	}
	corp, host, thief := fresh(), fresh(), fresh()
	certify := func(key, by ssh.Signer, change func(*ssh.Certificate)) []byte {
		c := &ssh.Certificate{
			Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"web-1"}, KeyId: "web-1",
			ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		}
		if change != nil {
			change(c)
		}
		if err := c.SignCert(rand.Reader, by); err != nil {
			t.Fatal(err)
		}
		return c.Marshal()
	}
	type evidence struct {
		Certificate []byte `json:"certificate,omitempty"`
		Signature   []byte `json:"signature"`
	}
	in := func(namespace string, b attest.Binding, key ssh.Signer, certificate []byte) []byte {
		armored, err := sshsig.Sign(key, namespace, b.Message())
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(armored)
		return encode(t, evidence{certificate, block.Bytes})
	}
	web := certify(host, corp, nil)
	k := kit{
		method: sshhost.Name, spec: "  sshKeys: [\"" + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(corp.PublicKey()))) + "\"]\n",
		challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
		good: func(_ *house, b attest.Binding) []byte { return in(sshhost.Namespace, b, host, web) },
	}
	add := func(name string, want problem.Reason, key ssh.Signer, certificate []byte) {
		k.attacks = append(k.attacks, attack{name, want, func(_ *house, b attest.Binding) []byte { return in(sshhost.Namespace, b, key, certificate) }})
	}
	chain := func(name string, by ssh.Signer, change func(*ssh.Certificate)) {
		add(name, problem.ReasonBadChain, host, certify(host, by, change))
	}
	chain("another authority", thief, nil)
	chain("certified by itself", host, nil)
	chain("a person's certificate", corp, func(c *ssh.Certificate) { c.CertType = ssh.UserCert })
	chain("expired", corp, func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Unix()) })
	chain("from the future", corp, func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Unix() + 60) })
	chain("for all hosts", corp, func(c *ssh.Certificate) { c.ValidPrincipals = nil })
	chain("for a pattern", corp, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"*"} })
	add("swapped key", problem.ReasonBadProof, thief, web)
	add("no certificate, not listed", problem.ReasonBadChain, host, nil)
	add("the authority's own key", problem.ReasonBadChain, corp, nil)
	add("a certificate cut off", problem.ReasonInvalid, host, web[:len(web)-1])
	k.attacks = append(k.attacks,
		attack{"a signature for a login", problem.ReasonBadProof, func(_ *house, b attest.Binding) []byte { return in(sshsig.NamespaceLogin, b, host, web) }},
		attack{"downgraded RSA key", problem.ReasonWeakAlgorithm, func(_ *house, b attest.Binding) []byte {
			weak := signer(weakRSA())
			sig, err := weak.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, b.Message(), ssh.KeyAlgoRSASHA512)
			if err != nil {
				t.Fatal(err)
			}
			return encode(t, evidence{nil, ssh.Marshal(struct {
				Magic                                           [6]byte
				Version                                         uint32
				PublicKey, Namespace, Reserved, Hash, Signature string
			}{[6]byte([]byte("SSHSIG")), 1, string(weak.PublicKey().Marshal()), sshhost.Namespace, "", "sha512", string(ssh.Marshal(sig))})})
		}},
	)
	return k
}

// weakRSA is found once: finding primes is slow.
var weakRSA = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})
