// Package servertest runs a founded environment in the test's own process, over loopback with real TLS,
// and plays its operators, machines and workloads through the generated clients.
//
// Guaranteed: what it sets up is what `bailment init` and `bailment server` set up, by the same functions;
// everything is closed when the test ends. Not guaranteed: hardening of the process, which is the test's.
//
// It is for tests of this module only.
package servertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	api "github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/server"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/store"
)

// Name is the environment's name unless Options say otherwise.
const Name = "servertest"

// Options of a house. The zero value is a development environment named Name with the Bundle of this package.
type Options struct {
	Name      string                                   // of the environment
	Data      string                                   // the data directory; default: a new one
	Files     func(name string, p People) policy.Files // the founding bundle; default: Bundle
	Configure func(*config.Server)
	Logger    *slog.Logger
	Now       func() time.Time
	Boot      func() time.Duration // beside Now, if that runs ahead
	OpenStore func(ctx context.Context, dir string) (store.Store, error)
}

// People are the operators' keys, by name: alice and bob are in the default bundle, mallory is not.
type People map[string]ssh.Signer

// Line is a person's public key as operators.yaml has it.
func (p People) Line(name string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(p[name].PublicKey())))
}

// House is a running server with one environment.
type House struct {
	Name    string
	Data    string
	Genesis [32]byte
	People  People
	Server  *server.Server

	tb     testing.TB
	o      Options
	cancel context.CancelFunc
	ended  chan error
	roots  *x509.CertPool
}

// Start founds an environment, unless Options.Data holds it already, and serves it until the test ends.
func Start(tb testing.TB, o Options) *House {
	tb.Helper()
	h := &House{Name: o.Name, Data: o.Data, People: make(People), tb: tb, o: o}
	if h.Name == "" {
		h.Name = Name
	}
	if h.Data == "" {
		h.Data = filepath.Join(tb.TempDir(), "data")
	}
	for _, name := range []string{"alice", "bob", "mallory"} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		h.must(err)
		h.People[name], err = ssh.NewSignerFromKey(key)
		h.must(err)
	}
	files := o.Files
	if files == nil {
		files = Bundle
	}
	founded, err := server.Init(tb.Context(), server.InitOptions{
		Data: h.Data, Files: files(h.Name, h.People), Now: o.Now,
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			return "alice", h.Sign("alice", namespace, text), nil
		},
	})
	h.must(err)
	h.Genesis = founded.Genesis
	h.Begin()
	tb.Cleanup(func() { h.must(h.Stop()) })
	return h
}

func (h *House) must(err error) {
	if err != nil {
		h.tb.Helper()
		h.tb.Fatal(err)
	}
}

// Config is the configuration that the server gets.
func (h *House) Config() config.Server {
	cfg := config.Server{Data: h.Data, Listen: "127.0.0.1:0", OpsListen: "127.0.0.1:0", ServerID: "test"}
	cfg.SetDefaults()
	if h.o.Configure != nil {
		h.o.Configure(&cfg)
	}
	return cfg
}

// Begin starts the server, after Stop.
func (h *House) Begin() {
	h.tb.Helper()
	s, err := server.New(h.Config(), server.Options{Logger: h.o.Logger, Version: "test", Now: h.o.Now, Boot: h.o.Boot, OpenStore: h.o.OpenStore})
	h.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	h.must(s.Open(ctx))
	h.Server, h.cancel, h.ended = s, cancel, make(chan error, 1)
	h.roots = x509.NewCertPool()
	h.roots.AddCert(s.Environment(h.Name).Certificates()[0])
	go func() {
		err := s.Serve(ctx)
		if closed := s.Close(); err == nil {
			err = closed
		}
		h.ended <- err
	}()
}

// Stop stops the server gracefully and waits for its end. Stopping a stopped one does nothing.
func (h *House) Stop() error {
	if h.cancel == nil {
		return nil
	}
	h.cancel()
	h.cancel = nil
	return <-h.ended
}

// Env is the environment, from inside.
func (h *House) Env() *control.Environment { return h.Server.Environment(h.Name) }

// URL is the base URL of the API. The client's TLS must name the environment: see Client.
func (h *House) URL() string { return "https://" + h.Server.Addr() }

// OpsURL is the base URL of metrics and health.
func (h *House) OpsURL() string { return "http://" + h.Server.OpsAddr() }

// Bootstrap is the environment's bootstrap string.
func (h *House) Bootstrap() string {
	host, port, err := net.SplitHostPort(h.Server.Addr())
	h.must(err)
	n, err := net.LookupPort("tcp", port)
	h.must(err)
	return identity.Bootstrap{Host: host, Port: uint16(n), Env: h.Name, Genesis: h.Genesis}.String()
}

// TLS is a client's side: it trusts the genesis CA only, and shows the certificate, if there is one.
func (h *House) TLS(cert *tls.Certificate) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: h.roots, ServerName: h.Name}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	return cfg
}

// Client is an HTTP client. With http2 it speaks HTTP/2, otherwise HTTP/1.1.
func (h *House) Client(cert *tls.Certificate, http2 bool) *http.Client {
	t := &http.Transport{TLSClientConfig: h.TLS(cert), ForceAttemptHTTP2: http2, MaxIdleConnsPerHost: 64}
	h.tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// Clients are the generated clients of one caller.
type Clients struct {
	Environment api.EnvironmentServiceClient
	Attestation api.AttestationServiceClient
	Secret      api.SecretServiceClient
	Revocation  api.RevocationServiceClient
	Change      api.ChangeServiceClient
	Explain     api.ExplainServiceClient
	Ledger      api.LedgerServiceClient
	Key         api.KeyServiceClient
	Watch       api.WatchServiceClient
	Spiffe      api.SpiffeServiceClient
	Recovery    api.RecoveryServiceClient
}

// Clients makes the generated clients over a certificate, or over none.
func (h *House) Clients(cert *tls.Certificate, opts ...connect.ClientOption) *Clients {
	return NewClients(h.Client(cert, true), h.URL(), opts...)
}

// NewClients makes the generated clients over an HTTP client.
func NewClients(c *http.Client, url string, opts ...connect.ClientOption) *Clients {
	return &Clients{
		Environment: api.NewEnvironmentServiceClient(c, url, opts...), Attestation: api.NewAttestationServiceClient(c, url, opts...),
		Secret: api.NewSecretServiceClient(c, url, opts...), Revocation: api.NewRevocationServiceClient(c, url, opts...),
		Change: api.NewChangeServiceClient(c, url, opts...), Explain: api.NewExplainServiceClient(c, url, opts...),
		Ledger: api.NewLedgerServiceClient(c, url, opts...), Key: api.NewKeyServiceClient(c, url, opts...), Watch: api.NewWatchServiceClient(c, url, opts...),
		Spiffe: api.NewSpiffeServiceClient(c, url, opts...), Recovery: api.NewRecoveryServiceClient(c, url, opts...),
	}
}

// Sign signs as a person of the house.
func (h *House) Sign(person, namespace, text string) string {
	sig, err := sshsig.Sign(h.People[person], namespace, []byte(text))
	h.must(err)
	return string(sig)
}

// Key is a fresh session key and its PKCS#10 request.
func Key() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// Session is a proved identity: its certificate, and its clients.
type Session struct {
	*Clients
	Identity string
	Cert     *tls.Certificate
	Response *pb.SessionResponse
}

func (h *House) session(key *ecdsa.PrivateKey, r *pb.SessionResponse) *Session {
	cert := &tls.Certificate{Certificate: r.Chain, PrivateKey: key}
	return &Session{Clients: h.Clients(cert), Identity: r.Identity, Cert: cert, Response: r}
}

// Login opens a person's session.
func (h *House) Login(person string) *Session {
	h.tb.Helper()
	s, err := h.TryLogin(person)
	h.must(err)
	return s
}

// TryLogin is Login that may fail.
func (h *House) TryLogin(person string) (*Session, error) {
	ctx := h.tb.Context()
	c := h.Clients(nil)
	ch, err := c.Attestation.Challenge(ctx, &pb.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	key, csr, err := Key()
	h.must(err)
	thumb, err := seal.Thumbprint(key.Public())
	h.must(err)
	text := ceremony.Login{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis, Epoch: h.Env().State().Env.Epoch}, Person: person, SessionKey: thumb, Challenge: ch.Challenge,
	}.Text()
	r, err := c.Attestation.Login(ctx, &pb.LoginRequest{Challenge: ch.Challenge, Person: person, Sshsig: h.Sign(person, ceremony.NamespaceLogin, text), Csr: csr})
	if err != nil {
		return nil, err
	}
	return h.session(key, r), nil
}

// Token makes a join token as a person who may.
func (h *House) Token(by *Session, name string) jointoken.Token {
	h.tb.Helper()
	tok, err := jointoken.New(h.Genesis)
	h.must(err)
	_, err = by.Attestation.CreateJoinToken(h.tb.Context(), &pb.CreateJoinTokenRequest{Id: tok.ID(), PublicKey: tok.PublicKey(), Name: name, Ttl: durationpb.New(time.Hour)})
	h.must(err)
	return tok
}

// Join has a machine join with a token.
func (h *House) Join(tok jointoken.Token) (*Session, error) {
	ctx := h.tb.Context()
	c := h.Clients(nil)
	ch, err := c.Attestation.Challenge(ctx, &pb.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	key, csr, err := Key()
	h.must(err)
	thumb, err := seal.Thumbprint(key.Public())
	h.must(err)
	a, err := jointoken.NewAttester(tok)
	h.must(err)
	evidence, err := a.Attest(ctx, attest.Binding{Method: jointoken.Name, Genesis: h.Genesis, Nonce: ch.Challenge, SessionKey: thumb})
	h.must(err)
	r, err := c.Attestation.Attest(ctx, &pb.AttestRequest{Method: jointoken.Name, Challenge: ch.Challenge, Evidence: evidence, Csr: csr})
	if err != nil {
		return nil, err
	}
	return h.session(key, r), nil
}

// Node is a machine of that name, joined by alice's token.
func (h *House) Node(name string) *Session {
	h.tb.Helper()
	s, err := h.Join(h.Token(h.Login("alice"), name))
	h.must(err)
	return s
}

// Workload is a process on a node, with the claims that its agent makes.
func (h *House) Workload(node *Session, want string, claims map[string]any) (*Session, error) {
	key, csr, err := Key()
	h.must(err)
	cl, err := structpb.NewStruct(claims)
	h.must(err)
	r, err := node.Attestation.AttestWorkload(h.tb.Context(), &pb.AttestWorkloadRequest{Claims: cl, Workload: want, Csr: csr})
	if err != nil {
		return nil, err
	}
	return h.session(key, r), nil
}

// App is the default bundle's workload, on a fresh node of that name.
func (h *House) App(node string) *Session {
	h.tb.Helper()
	s, err := h.Workload(h.Node(node), "", map[string]any{"unix": map[string]any{"uid": float64(1000)}})
	h.must(err)
	return s
}

// ProblemOf is the detail of an error that came over the wire, or nil.
func ProblemOf(err error) *pb.Problem {
	var ce *connect.Error
	if e, ok := err.(*connect.Error); ok { //nolint:errorlint // generated clients return it bare
		ce = e
	}
	if ce == nil {
		return nil
	}
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		if p, ok := v.(*pb.Problem); ok {
			return p
		}
	}
	return nil
}

// Reason is the reason of an error that came over the wire, or its text.
func Reason(err error) string {
	if p := ProblemOf(err); p != nil {
		return p.Reason
	}
	return fmt.Sprint(err)
}
