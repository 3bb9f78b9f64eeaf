package workloadapi_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/problem"
)

// environment is a source with a CA of its own, whose answers a test decides.
type environment struct {
	name  string
	ca    *x509.Certificate
	caKey any

	mu       sync.Mutex
	ttl      time.Duration
	refuse   error                              // of Attest
	path     func(claims map[string]any) string // of the identity
	roots    [][]byte
	foreign  []workloadapi.Bundle // /workload/app federates with all
	jwtKey   jose.SigningKey
	jwks     []byte
	noToken  error
	noBundle error
	attested atomic.Int64
	minted   atomic.Int64
}

func newEnvironment(t testing.TB, name string) *environment {
	t.Helper()
	ca, key, err := clienttest.NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	e := &environment{name: name, ca: ca, caKey: key, ttl: time.Hour, roots: [][]byte{ca.Raw}}
	e.path = func(map[string]any) string { return "/workload/app" }
	e.rotateJWT(t, "k1")
	return e
}

func (e *environment) rotateJWT(t testing.TB, kid string) {
	t.Helper()
	k, err := client.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: k.Public(), KeyID: kid}}})
	if err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.jwtKey, e.jwks = jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k, KeyID: kid}}, set
}

func (e *environment) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *environment) Attest(_ context.Context, claims map[string]any) (*client.Session, error) {
	e.attested.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refuse != nil {
		return nil, e.refuse
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	id := &url.URL{Scheme: "spiffe", Host: e.name, Path: e.path(claims)}
	now := time.Now()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(e.ttl), URIs: []*url.URL{id},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, e.ca, key.Public(), e.caKey)
	if err != nil {
		return nil, err
	}
	return &client.Session{
		Identity: id.String(), Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		Expires: now.Add(e.ttl), RenewAfter: now.Add(e.ttl / 2),
	}, nil
}

func (e *environment) Bundles(context.Context) (*workloadapi.Bundles, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.noBundle != nil {
		return nil, e.noBundle
	}
	all := append([]workloadapi.Bundle{{TrustDomain: e.name, X509: e.roots, JWKS: e.jwks}}, e.foreign...)
	told := map[string][]string{}
	for _, f := range e.foreign {
		told["spiffe://"+e.name+"/workload/app"] = append(told["spiffe://"+e.name+"/workload/app"], f.TrustDomain)
	}
	return &workloadapi.Bundles{Own: e.name, All: all, Federates: told}, nil
}

func (e *environment) IssueJWT(_ context.Context, s *client.Session, audience []string) (workloadapi.Token, error) {
	e.minted.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.noToken != nil {
		return workloadapi.Token{}, e.noToken
	}
	signer, err := jose.NewSigner(e.jwtKey, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return workloadapi.Token{}, err
	}
	now := time.Now()
	text, err := jwt.Signed(signer).Claims(jwt.Claims{
		Subject: s.Identity, Audience: audience, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(e.ttl)),
	}).Serialize()
	return workloadapi.Token{Text: text, Issued: now, Expires: now.Add(e.ttl)}, err
}

// process is a caller whose claims a test decides.
type process struct {
	house *house
	conn  *localapi.Conn
}

func (p *process) Claims(context.Context) (map[string]any, error) {
	p.house.mu.Lock()
	defer p.house.mu.Unlock()
	p.house.recognised++
	if p.house.panics {
		panic("a defect")
	}
	return p.house.claims, p.house.unknown
}

func (p *process) Same() error {
	p.house.mu.Lock()
	defer p.house.mu.Unlock()
	return p.house.other
}

func (p *process) Close() error {
	p.house.mu.Lock()
	defer p.house.mu.Unlock()
	p.house.open--
	return nil
}

// house is a server at a socket.
type house struct {
	*environment
	*workloadapi.Server
	socket string
	stop   func()

	mu         sync.Mutex
	claims     map[string]any
	unknown    error // of Claims
	other      error // of Same
	recognised int
	panics     bool
	open       int
}

func newHouse(t testing.TB, change func(*workloadapi.Config)) *house {
	t.Helper()
	h := &house{environment: newEnvironment(t, "test.example"), claims: map[string]any{"unix": map[string]any{"uid": int64(7)}}}
	h.socket = filepath.Join(t.TempDir(), "spiffe.sock")
	cfg := workloadapi.Config{Source: h.environment, Logger: slog.New(slog.DiscardHandler), Open: func(c *localapi.Conn) (workloadapi.Caller, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.open++
		return &process{h, c}, nil
	}}
	if change != nil {
		change(&cfg)
	}
	h.Server = workloadapi.New(cfg)
	l, err := localapi.Listen(h.socket, 1024, 1024)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(ctx, l) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.open != 0 {
			t.Errorf("%d processes are still watched", h.open)
		}
	})
	t.Cleanup(h.stop)
	return h
}

func (h *house) with(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

func (h *house) addr() string { return "unix://" + h.socket }

// client is the common client.
func (h *house) client(t testing.TB) *spiffe.Client {
	t.Helper()
	c, err := spiffe.New(t.Context(), spiffe.WithAddr(h.addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// dial is a connection of gRPC's own client.
func (h *house) dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(h.addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// secured has the security header.
func secured(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// eventually waits for what another goroutine does, at most 10 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// updates are what a watcher of X.509 contexts was told.
type updates struct {
	mu       sync.Mutex
	contexts []*spiffe.X509Context
	errs     []error
}

func (u *updates) OnX509ContextUpdate(c *spiffe.X509Context) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.contexts = append(u.contexts, c)
}

func (u *updates) OnX509ContextWatchError(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		u.errs = append(u.errs, err)
	}
}

func (u *updates) count() (contexts, errs int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.contexts), len(u.errs)
}

func (u *updates) last() *spiffe.X509Context {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.contexts[len(u.contexts)-1]
}

// watch follows X.509 contexts until the test ends.
func watch(t testing.TB, c *spiffe.Client) *updates {
	t.Helper()
	u := new(updates)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.WatchX509Context(ctx, u)
	}()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the first update", func() bool { n, _ := u.count(); return n == 1 })
	return u
}

func refused() error { return problem.New(problem.ReasonNoIdentity, "no rule fits") }
func away() error    { return problem.New(problem.ReasonUnreachable, "the server is away") }
func held() error    { return problem.New(problem.ReasonHeld, "there is a hold") }
func notProved() error {
	return problem.New(problem.ReasonSessionExpired, "the machine's session is over")
}

func describe(err error) string { return fmt.Sprintf("%v", err) }

func plain() credentials.TransportCredentials { return insecure.NewCredentials() }
