package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/policy"
)

// authorities DIR: files as authorities publish them, and a web server that does so at $ROOTS, whose own root is in DIR/web.pem.
func authorities(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	write := func(name string, text []byte) { ts.Check(os.WriteFile(filepath.Join(dir, name), text, 0o644)) }
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	ts.Check(err)
	issue := func(name string, ca bool, ends time.Duration) *x509.Certificate {
		c, err := selfSigned(key.Public(), key, name, ca, time.Now().Add(ends))
		ts.Check(err)
		return c
	}
	text := func(certs ...*x509.Certificate) []byte { return certificatesPEM(certs) }
	const year = 365 * 24 * time.Hour
	root := issue("Acme EK Root", true, 10*year)
	write("acme_root.cer", root.Raw)
	write("commented.pem", append([]byte("# Acme's roots\n\nsubject=Acme\n"), text(root, issue("Acme EK Root 2", true, 30*24*time.Hour))...))
	write("expired.pem", text(issue("Old Root", true, -time.Hour)))
	write("leaf.pem", text(issue("Leaf", false, year)))
	write("eu-west-1.pem", text(issue("Amazon", false, 100*year)))
	write("us-east-1.pem", text(issue("Amazon", false, 100*year)))
	weak, err := selfSigned(small.Public(), small, "Amazon", false, time.Now().Add(year))
	ts.Check(err)
	write("eu-west-2.pem", text(weak))
	write("damaged.pem", text(root)[:200])
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	write("private.pem", append(text(root), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...))
	write("junk.txt", []byte("hello\n"))
	write("large.pem", make([]byte, maxRoots+1))
	public, err := ssh.NewPublicKey(key.Public())
	ts.Check(err)
	write("known_hosts", append([]byte("# hosts\n@cert-authority *.corp.example "), ssh.MarshalAuthorizedKey(public)...))
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig", Certificates: []*x509.Certificate{root}}, {Key: small.Public(), KeyID: "weak", Use: "sig"},
	}})
	ts.Check(err)
	write("jwks.json", jwks)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/acme_root.cer":
			_, _ = w.Write(root.Raw)
		case "/moved":
			http.Redirect(w, r, "/acme_root.cer", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a handshake that fails is meant to
	server.StartTLS()
	ts.Defer(server.Close)
	write("web.pem", text(server.Certificate()))
	ts.Setenv("ROOTS", server.URL)
}

// metadataService DIR: an AWS of one region and the metadata services of two of its instances, just started: the region's certificate in
// DIR/eu-west-1.pem, the services at $METADATA and $METADATA2.
func metadataService(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	ts.Check(err)
	c, err := selfSigned(key.Public(), key, "Amazon Web Services LLC", false, time.Now().Add(time.Hour))
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "eu-west-1.pem"), certificatesPEM([]*x509.Certificate{c}), 0o644))
	for variable, instance := range map[string]string{"METADATA": "i-1234567890abcdef0", "METADATA2": "i-0fedcba9876543210"} {
		signed, err := pkcs7.NewSignedData(fmt.Appendf(nil, `{"accountId":"123456789012","architecture":"x86_64","availabilityZone":"eu-west-1a","imageId":"ami-5fb8c835",`+
			`"instanceId":%q,"instanceType":"t2.micro","pendingTime":%q,"privateIp":"10.0.0.1","region":"eu-west-1"}`, instance, time.Now().UTC().Format(time.RFC3339)))
		ts.Check(err)
		signed.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
		ts.Check(signed.AddSigner(c, key, pkcs7.SignerInfoConfig{}))
		message, err := signed.Finish()
		ts.Check(err)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				_, _ = w.Write([]byte("token"))
				return
			}
			_, _ = w.Write([]byte(base64.StdEncoding.EncodeToString(message)))
		}))
		ts.Defer(server.Close)
		ts.Setenv(variable, server.URL)
	}
}

func selfSigned(public, key any, name string, ca bool, ends time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: ends.Add(-200 * 365 * 24 * time.Hour), NotAfter: ends, IsCA: ca, BasicConstraintsValid: ca,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// TestDocument holds what is written to what bundles read: every field comes back as it was.
func TestDocument(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := selfSigned(key.Public(), key, "root", true, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	imported := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	keys := &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: `k"1`, Algorithm: "ES256", Use: "sig"}}}
	base, err := os.ReadFile("../../examples/payments/environment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []authority.Authority{
		{Name: "eu-west-1", Method: "aws", Source: `a: "b" #c 'd' \e`, Certificates: []*x509.Certificate{c}, MaxAge: 90 * time.Minute},
		{Name: "acme", Method: "tpm", EndorsementKeys: [][32]byte{{1}, {2}}, PCRs: authority.DefaultPCRs()},
		{Name: "github", Method: "github", Issuer: "https://token.actions.githubusercontent.com", Keys: keys},
		{Name: "gitlab", Method: "gitlab", Issuer: "https://gitlab.example", KeysURL: "https://gitlab.example/keys", Certificates: []*x509.Certificate{c}},
		{Name: "hosts", Method: "sshhost", SSHKeys: []ssh.PublicKey{public}},
	} {
		want.Imported = imported
		text, err := document(want, "it's: a # \"description\"")
		if err != nil {
			t.Fatal(err)
		}
		files := policy.Files{"environment.yaml": base, "authorities/" + want.Name + ".yaml": text}
		operators, err := os.ReadFile("../../examples/payments/operators.yaml")
		if err != nil {
			t.Fatal(err)
		}
		files["operators.yaml"] = operators
		prog, err := compile(files)
		if err != nil {
			t.Errorf("%s: %v\n%s", want.Name, err, text)
			continue
		}
		got, ok := prog.Authority(want.Name)
		again, err := document(got, "it's: a # \"description\"")
		if !ok || err != nil || !bytes.Equal(text, again) {
			t.Errorf("%s comes back as\n%s\nfrom\n%s", want.Name, again, text)
		}
	}
}

func TestNameOf(t *testing.T) {
	for arg, want := range map[string]string{
		"eu-west-1.pem": "eu-west-1", "a/b/Acme_Root.CER": "acme-root", "https://pki.example/x/EK_Root.crt?y=1": "ek-root", "root": "root",
	} {
		if got := nameOf(arg); got != want {
			t.Errorf("%s: %s", arg, got)
		}
	}
}

func FuzzAddRoots(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(`{"keys":[]}`))
	f.Add([]byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL0mRyxQFXLb4Y9rJd7yUxVp2W6g8l0C4mRyxQFXLb4Y x\n"))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, text []byte) {
		var a authority.Authority
		certificates, err := addRoots(&a, text)
		if err == nil && len(certificates) == 0 && a.Keys == nil && len(a.SSHKeys) == 0 {
			t.Errorf("%q is taken, and nothing is in it", text)
		}
		if bytes.Contains(certificates, []byte("PRIVATE KEY")) {
			t.Errorf("a private key is kept")
		}
	})
}
