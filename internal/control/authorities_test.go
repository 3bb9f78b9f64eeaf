package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	attestx509 "github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// corp is a certificate authority of machines.
type corp struct {
	key  *ecdsa.PrivateKey
	cert *cx509.Certificate
}

func newCorp(t *testing.T, name string) corp {
	t.Helper()
	c := corp{}
	c.key, _ = controltest.Key(t)
	c.cert = c.sign(t, name, c.key, func(x *cx509.Certificate) { x.IsCA, x.KeyUsage = true, cx509.KeyUsageCertSign })
	return c
}

func (c corp) sign(t *testing.T, name string, key *ecdsa.PrivateKey, change func(*cx509.Certificate)) *cx509.Certificate {
	t.Helper()
	x := &cx509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(x)
	parent := c.cert
	if parent == nil {
		parent = x
	}
	der, err := cx509.CreateCertificate(rand.Reader, x, parent, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := cx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// machine attests with a certificate of the authority.
func (c corp) machine(t *testing.T, w *controltest.World) error {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.sign(t, "m1", key, func(x *cx509.Certificate) {
		x.KeyUsage, x.ExtKeyUsage, x.DNSNames = cx509.KeyUsageDigitalSignature, []cx509.ExtKeyUsage{cx509.ExtKeyUsageClientAuth}, []string{"m1"}
	})
	a, err := attestx509.NewAttester([][]byte{leaf.Raw}, key)
	if err != nil {
		t.Fatal(err)
	}
	session, csr := controltest.Key(t)
	challenge, _, err := w.Env.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	thumb, err := seal.Thumbprint(session.Public())
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := a.Attest(context.Background(), attest.Binding{Method: attestx509.Name, Genesis: w.Genesis, Nonce: challenge, SessionKey: thumb})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Env.Attest(context.Background(), control.AttestRequest{Method: attestx509.Name, Challenge: challenge, Evidence: evidence, CSR: csr})
	return err
}

func environmentWith(authorities map[string]corp) []byte {
	b := fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  authorities:\n", controltest.EnvName)
	for name, c := range authorities {
		text := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})))
		b = fmt.Appendf(b, "    - name: %s\n      pem: |\n        %s\n", name, strings.ReplaceAll(text, "\n", "\n        "))
	}
	return b
}

// A bundle of which the verifier can't use one authority can't use any: it is refused when it is proposed, and the machines of the
// others attest as before.
func TestAuthoritiesAreAsTheVerifierTakesThem(t *testing.T) {
	c, d := newCorp(t, "c"), newCorp(t, "d")
	w := controltest.New(t, controltest.Options{Extra: policy.Files{
		"environment.yaml": environmentWith(map[string]corp{"corp": c}),
		"identities/x.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: machines}\n" +
			"spec: {method: x509, authority: corp, path: /node/x509/corp/all}\n"),
	}})
	alice := w.Login("alice")
	for name, more := range map[string]map[string]corp{
		"a name that ends in a dash": {"corp": c, "other-": d}, "a certificate of two": {"corp": c, "other": c},
	} {
		files := maps.Clone(w.Files)
		files["environment.yaml"] = environmentWith(more)
		_, err := w.Propose(alice, "alice", files)
		if !problem.Is(err, problem.ReasonBundleInvalid) || !strings.Contains(err.Error(), "environment.yaml:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	files := maps.Clone(w.Files)
	files["environment.yaml"] = environmentWith(map[string]corp{"corp": c, "4.other": d})
	p, err := w.Propose(alice, "alice", files)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = w.Approve(alice, "alice", p.Change); err != nil || p.Generation != 2 {
		t.Fatal(p, err)
	}
	if err := c.machine(t, w); err != nil {
		t.Error(err)
	}
	if err := d.machine(t, w); err == nil {
		t.Error("a machine of an authority that no rule names attested")
	}
}
