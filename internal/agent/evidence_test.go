package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	cx509 "crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/k8s"
	attestx509 "github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/problem"
)

// certificate gives the machine a certificate of somebody's CA.
func (b *bench) certificate() {
	b.t.Helper()
	ca, caKey, err := clienttest.NewCA("corp")
	if err != nil {
		b.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	leaf := &cx509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now(), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"web-1"},
		KeyUsage: cx509.KeyUsageDigitalSignature, ExtKeyUsage: []cx509.ExtKeyUsage{cx509.ExtKeyUsageClientAuth},
	}
	der, err := cx509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		b.t.Fatal(err)
	}
	pkcs8, err := cx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.t.Fatal(err)
	}
	dir := b.t.TempDir()
	b.cfg.Method = attestx509.Name
	b.cfg.Needs = map[string]string{attestx509.NeedCertificate: filepath.Join(dir, "cert.pem"), attestx509.NeedKey: filepath.Join(dir, "key.pem")}
	for need, block := range map[string]*pem.Block{
		attestx509.NeedCertificate: {Type: "CERTIFICATE", Bytes: der}, attestx509.NeedKey: {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(b.cfg.Needs[need], pem.EncodeToMemory(block), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
}

// A method that is renewed by evidence is attested anew each time, and comes back from a cutoff by itself.
func TestRenewalByEvidence(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.certificate()
		b.begin()
		b.reach(Ready, time.Second)
		b.pass(time.Hour)
		synctest.Wait()
		if n := b.server.Calls(attestCall); n < 10 || n > 14 || b.server.Calls(renewCall) != 0 {
			t.Errorf("%d attestations, %d renewals in an hour", n, b.server.Calls(renewCall))
		}
		before := b.server.Calls(attestCall)
		b.server.CutOff("/node/x509/corp/web-1")
		b.pass(time.Second)
		b.reach(Ready, time.Second)
		if n := b.server.Calls(attestCall) - before; n != 1 {
			t.Errorf("%d attestations after a cutoff, want 1", n)
		}
		// An outage longer than the session, and a restart in it: there is no session to renew, and none is needed.
		b.pipe.Down(errors.New("no route"))
		b.pass(20 * time.Minute)
		b.reach(Unreachable, time.Second)
		b.end()
		b.begin()
		b.reach(Unreachable, time.Second)
		b.reason(problem.ReasonUnreachable)
		b.pipe.Down(nil)
		b.reach(Ready, lastUnreachable+time.Second)
	})
}

// A projected token is good for the session key that used it first, and the kubelet replaces it late in its life: until then the machine
// comes again with that key, and with the next token with a new one.
func TestGivenTokenKeepsItsKey(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		name := filepath.Join(b.t.TempDir(), "token")
		b.cfg.Method, b.cfg.Needs = k8s.Name, map[string]string{k8s.NeedToken: name}
		issuer := jwttest.New(b.t, "https://cluster.example", jose.ES256)
		project := func(id string) {
			b.t.Helper()
			token := issuer.Sign(map[string]any{
				"iss": issuer.URL, "aud": attest.Binding{Genesis: b.server.Genesis}.EnvironmentAudience(), "jti": id,
				"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
			})
			if err := os.WriteFile(name, token, 0o600); err != nil {
				b.t.Fatal(err)
			}
		}
		key := func() string {
			b.t.Helper()
			synctest.Wait()
			b.reach(Ready, time.Second)
			s, err := client.LoadSession(filepath.Join(b.cfg.StateDir, sessionFile), b.agent.pinned())
			if err != nil {
				b.t.Fatal(err)
			}
			sum, err := attest.Thumbprint(s.Certificate.PrivateKey.(*ecdsa.PrivateKey).Public())
			if err != nil {
				b.t.Fatal(err)
			}
			return string(sum[:])
		}
		project("1")
		b.begin()
		b.reach(Ready, time.Second)
		first := key()
		b.pass(48 * time.Minute)
		if n := b.server.Calls(attestCall); key() != first || n < 8 || n > 12 {
			t.Errorf("with one token there were two keys, or not %d but few renewals", n)
		}
		b.end()
		b.begin() // what is kept outlives the process
		b.pass(10 * time.Minute)
		if key() != first {
			t.Error("after a restart there is another key for the same token")
		}
		project("2")
		b.pass(10 * time.Minute)
		if key() == first {
			t.Error("a new token was used with the key of the one before")
		}
	})
}
