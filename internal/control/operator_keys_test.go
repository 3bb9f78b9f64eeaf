package control_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/sshsig"
)

// A bundle lists the keys that signatures are taken by, and no others: who could never sign must not be counted among
// those who can still approve.
func TestListedKeysCanSign(t *testing.T) {
	ec := func(c elliptic.Curve) any {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	// Only the size is looked at, so there need be no prime factors.
	rsaOf := func(bits uint) any {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for name, public := range map[string]any{
		"ed25519": ed, "p256": ec(elliptic.P256()), "p384": ec(elliptic.P384()), "p521": ec(elliptic.P521()),
		"rsa 2048": rsaOf(2048), "rsa 3072": rsaOf(3072), "rsa 8192": rsaOf(8192), "rsa 8200": rsaOf(8200),
	} {
		key, err := ssh.NewPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		files := policy.Files{
			"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: e}\nspec: {class: development, approvals: {required: 0}}\n"),
			"operators.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n    - name: alice\n      keys: [%q]\n      duties: [propose, approve]\n",
				strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))),
		}
		bundle, findings := policy.Load(files)
		if findings == nil {
			_, findings = policy.Compile(bundle)
		}
		signs := sshsig.CheckKey(key)
		if (findings == nil) != (signs == nil) {
			t.Errorf("%s: the bundle says %v, and signatures %v", name, findings, signs)
		}
		if signs == nil {
			accepted++
		}
	}
	if accepted != 5 {
		t.Errorf("%d keys are accepted", accepted)
	}
}
