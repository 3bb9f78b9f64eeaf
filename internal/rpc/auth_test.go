package rpc_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/bailment/bailment/api/bailment/v1"
	api "github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/server/servertest"
)

// Only the methods of one list answer without a session; a new one must be put there on purpose.
func TestEveryMethodAsksForASession(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	c := h.Client(nil, true)
	open := map[string]bool{
		api.EnvironmentServiceGetEnvironmentProcedure: true, api.AttestationServiceChallengeProcedure: true, api.AttestationServiceAttestProcedure: true,
		api.AttestationServiceRenewProcedure: true, api.AttestationServiceLoginProcedure: true, api.AttestationServiceAppraiseProcedure: true,
		api.LedgerServiceGetCheckpointProcedure: true, api.LedgerServiceGetConsistencyProcedure: true,
	}
	methods := 0
	for _, file := range []protoreflect.FileDescriptor{pb.File_bailment_v1_bailment_proto, pb.File_bailment_v1_spiffe_proto} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				path := "/" + string(s.FullName()) + "/" + string(m.Name())
				methods++
				if open[path] || m.IsStreamingServer() {
					continue
				}
				code, _, body := post(t, c, h.URL()+path, "application/json", text(`{}`))
				if code != http.StatusUnauthorized {
					t.Errorf("%s without a certificate: %d %s", path, code, body)
				}
			}
		}
	}
	clients := h.Clients(nil)
	w, err := clients.Watch.Watch(t.Context(), &pb.WatchRequest{})
	if err == nil {
		w.Receive()
		err = w.Err()
	}
	want(t, err, connect.CodeUnauthenticated, "no-session")
	if methods < 35 {
		t.Fatalf("looked at %d methods only", methods)
	}
	if got := sums(t, h, "session"); got["no-session"] < 20 {
		t.Fatalf("accounted: %v", got)
	}
}

func TestCertificates(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	other := servertest.Start(t, servertest.Options{Name: "elsewhere"})
	read := func(cert *tls.Certificate) error {
		_, err := h.Clients(cert).Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"})
		return err
	}
	put(t, h.Login("alice"), "app/password", "sesame")
	app := h.App("web-1")
	if err := read(app.Cert); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name   string
		cert   *tls.Certificate
		reason string
	}{
		{"none", nil, "no-session"},
		{"of another environment", other.App("web-1").Cert, "session-foreign"},
		{"made by oneself, in the environment's name", selfMade(t, app.Identity), "session-foreign"},
		{"an operator's, without a grant", h.Login("bob").Cert, "no-grant"},
	} {
		t.Run(x.name, func(t *testing.T) {
			code := connect.CodeUnauthenticated
			if x.reason == "no-grant" {
				code = connect.CodePermissionDenied
			}
			want(t, read(x.cert), code, x.reason)
		})
	}
	if got := sums(t, h, "session"); got["no-session"] != 1 || got["session-foreign"] != 2 {
		t.Fatalf("accounted: %v", got)
	}
	// A public method does not mind a foreign certificate: who is to attest anew has an old one.
	if _, err := h.Clients(other.App("web-2").Cert).Attestation.Challenge(t.Context(), &pb.ChallengeRequest{}); err != nil {
		t.Fatal(err)
	}
}

func selfMade(t *testing.T, id string) *tls.Certificate {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{u}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The certificate alone is nothing: whoever copied it without its key does not come through the handshake.
func TestCertificateWithoutItsKey(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	app := h.App("web-1")
	key, _, err := servertest.Key()
	if err != nil {
		t.Fatal(err)
	}
	c := h.Client(&tls.Certificate{Certificate: app.Cert.Certificate, PrivateKey: key}, false)
	if res, err := c.Post(h.URL()+"/bailment.v1.SecretService/Get", "application/json", text(`{}`)); err == nil {
		res.Body.Close()
		t.Fatalf("the handshake passed: %s", res.Status)
	}
}

// An expired session is refused as such, over the connection that it was good on and over a new one.
func TestExpiredSession(t *testing.T) {
	var ahead atomic.Int64
	began := time.Now()
	h := servertest.Start(t, servertest.Options{
		Now:  func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		Boot: func() time.Duration { return time.Since(began) + time.Duration(ahead.Load()) },
	})
	put(t, h.Login("alice"), "app/password", "sesame")
	app := h.App("web-1")
	if _, err := app.Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"}); err != nil {
		t.Fatal(err)
	}
	ahead.Store(int64(time.Until(app.Response.Expires.AsTime()) + time.Second))
	for _, c := range []*servertest.Clients{app.Clients, h.Clients(app.Cert)} {
		_, err := c.Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"})
		want(t, err, connect.CodeUnauthenticated, "session-expired")
	}
	if got := sums(t, h, "session"); got["session-expired"] != 2 {
		t.Fatalf("accounted: %v", got)
	}
}

// The SNI names the environment. There is no default one, and a request can't name another.
func TestSNI(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	for _, name := range []string{"", "elsewhere", "servertest.example", "SERVERTEST.", "127.0.0.1"} {
		cfg := h.TLS(nil)
		cfg.ServerName = name
		if name == "" || net.ParseIP(name) != nil {
			// A client can't verify without a name, and sends none for an address: only the handshake's end is of interest.
			cfg.ServerName = "127.0.0.1"
		}
		c, err := tls.Dial("tcp", h.Server.Addr(), cfg)
		if err == nil {
			c.Close()
			t.Errorf("SNI %q was answered", name)
		}
	}
	// The Host header is not the SNI.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/bailment.v1.EnvironmentService/GetEnvironment", text(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "elsewhere"
	req.Header.Set("Content-Type", "application/json")
	res, err := h.Client(nil, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var e pb.GetEnvironmentResponse
	if decodeJSON(t, res.Body, &e); e.Name != h.Name {
		t.Fatalf("answered for %q", e.Name)
	}
	old := h.TLS(nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if c, err := tls.Dial("tcp", h.Server.Addr(), old); err == nil {
		c.Close()
		t.Error("TLS 1.2 was answered")
	}
}

// A failed proof is accounted for under its method's name, and a stranger's word does not become one.
func TestFailedProofs(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	c := h.Clients(nil)
	_, csr, err := servertest.Key()
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Attestation.Attest(t.Context(), &pb.AttestRequest{Method: "a stranger's word", Csr: csr})
	want(t, err, connect.CodeInvalidArgument, "unknown-method")
	_, err = c.Attestation.Attest(t.Context(), &pb.AttestRequest{Method: "join-token", Challenge: make([]byte, 56), Csr: csr})
	want(t, err, connect.CodeUnauthenticated, "challenge-foreign")
	_, err = c.Attestation.Renew(t.Context(), &pb.RenewRequest{Challenge: []byte("x")})
	want(t, err, connect.CodeUnauthenticated, "challenge-foreign")
	_, err = h.TryLogin("mallory")
	want(t, err, connect.CodeUnauthenticated, "bad-signature")
	tok := h.Token(h.Login("alice"), "web-1")
	if _, err := h.Join(tok); err != nil {
		t.Fatal(err)
	}
	_, err = h.Join(tok)
	want(t, err, connect.CodeUnauthenticated, "token-spent")
	for method, reason := range map[string]string{
		"unknown": "unknown-method", "join-token": "challenge-foreign", "renewal": "challenge-foreign", "login": "bad-signature",
	} {
		if got := sums(t, h, method); got[reason] != 1 {
			t.Errorf("%s: accounted %v, want %s", method, got, reason)
		}
	}
	if got := sums(t, h, "join-token"); got["token-spent"] != 1 {
		t.Errorf("accounted %v", got)
	}
}
