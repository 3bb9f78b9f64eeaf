package methods_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/sshhost"
	"github.com/bailment/bailment/internal/authority"
)

func hostKey(t *testing.T) fixture {
	issue := func() (ed25519.PrivateKey, ssh.Signer) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return key, signer
	}
	_, ca := issue()
	key, host := issue()
	cert := &ssh.Certificate{
		Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"web-1"},
		ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix()),
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	params, err := sshhost.NewParams([]authority.Authority{{Name: "corp", SSHKeys: []ssh.PublicKey{ca.PublicKey()}}})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{
		attest.Material{sshhost.NeedKey: pem.EncodeToMemory(block), sshhost.NeedCertificate: ssh.MarshalAuthorizedKey(cert)},
		params,
	}
}
