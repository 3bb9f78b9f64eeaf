// Package clienttest is a fake of a Bailment server for the tests of those who call one: a real CA, real TLS, the real
// wire, and a small model of an environment behind it.
//
// Guaranteed: what it accepts and refuses follows the server's rules for challenges, join tokens, renewal by possession
// with its generation counter, workloads, leases, holds and cutoffs, with the same reasons; and a reply can be lost after
// its effect, a call failed before it, and time and network may be those of a synctest bubble. Not guaranteed: anything
// durable, policy (every workload of a node is accepted unless Refuse says otherwise), or the ledger's proofs.
//
// It is imported by tests only.
package clienttest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Config of a fake. The zero value works.
type Config struct {
	Name       string        // default "test.example"
	SessionTTL time.Duration // default 10 min
	LeaseTTL   time.Duration // default 1 h
	LeaseMax   time.Duration // default 24 h
	JobLeases  bool          // leases end with the session in which they were made or renewed, as those of CI jobs do
	Lifetime   time.Duration // of an enrolment; default 30 days
}

// leaseEnd is when a lease ends that a session makes or renews now.
func (s *Server) leaseEnd(x *session, now time.Time) time.Time {
	end := now.Add(s.LeaseTTL)
	if s.JobLeases && x.expires.Before(end) {
		end = x.expires
	}
	return end
}

// Server is a running fake. Its methods may be called concurrently.
type Server struct {
	Config
	Genesis   [32]byte
	Document  string
	CA        *x509.Certificate
	CAKey     crypto.Signer
	VKey      string
	Bootstrap string // valid when it listens
	signer    note.Signer

	mu      sync.Mutex
	state   model
	before  func(procedure string) error
	lose    func(procedure string) bool
	calls   map[string]int
	crowd   bool
	wake    chan struct{}
	servers []*http.Server
	conns   sync.WaitGroup
}

// New makes an environment.
func New(c Config) (*Server, error) {
	if c.Name == "" {
		c.Name = "test.example"
	}
	if c.SessionTTL == 0 {
		c.SessionTTL = 10 * time.Minute
	}
	if c.LeaseTTL == 0 {
		c.LeaseTTL = time.Hour
	}
	if c.LeaseMax == 0 {
		c.LeaseMax = 24 * time.Hour
	}
	if c.Lifetime == 0 {
		c.Lifetime = 30 * 24 * time.Hour
	}
	s := &Server{Config: c, calls: make(map[string]int), wake: make(chan struct{})}
	s.state.init()
	var err error
	if s.CA, s.CAKey, err = NewCA(c.Name); err != nil {
		return nil, err
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	g := ceremony.Genesis{
		Format: ceremony.GenesisFormat, Name: c.Name, Class: "development", Created: time.Now().UTC(), CA: s.CA.Raw,
		Checkpoint: pub, LeafHash: ceremony.LeafHashV1, EntryFormat: ceremony.EntryFormatV1, Nonce: hex.EncodeToString(nonce),
	}
	if s.Document, err = g.Text(); err != nil {
		return nil, err
	}
	s.Genesis = sha256.Sum256([]byte(s.Document))
	origin := fmt.Sprintf("bailment/%s/%x/0", c.Name, s.Genesis[:8])
	if s.VKey, err = note.NewEd25519VerifierKey(origin, pub); err != nil {
		return nil, err
	}
	s.signer, err = newSigner(origin, s.VKey, priv)
	return s, err
}

// NewCA makes a self-signed CA.
func NewCA(name string) (*x509.Certificate, crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bailment " + name + " CA 1"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		URIs: []*url.URL{{Scheme: "spiffe", Host: name}}, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

// Leaf says how a server's own certificate deviates from a good one.
type Leaf struct {
	DNS      string // default: the environment's name
	Path     string // default: /server/1
	NotAfter time.Time
	CA       *x509.Certificate // default: the environment's
	CAKey    crypto.Signer
	Root     *x509.Certificate // shown as the chain's end; default CA
	NoRoot   bool
}

// TLS makes the configuration of a listener.
func (s *Server) TLS(l Leaf) (*tls.Config, error) {
	if l.DNS == "" {
		l.DNS = s.Name
	}
	if l.Path == "" {
		l.Path = "/server/1"
	}
	if l.CA == nil {
		l.CA, l.CAKey = s.CA, s.CAKey
	}
	if l.Root == nil {
		l.Root = l.CA
	}
	if l.NotAfter.IsZero() {
		l.NotAfter = time.Now().Add(365 * 24 * time.Hour)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: l.NotAfter, DNSNames: []string{l.DNS},
		URIs:     []*url.URL{{Scheme: "spiffe", Host: s.Name, Path: l.Path}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, l.CA, key.Public(), l.CAKey)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{der, l.Root.Raw}
	if l.NoRoot {
		chain = chain[:1]
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.RequestClientCert,
		Certificates:           []tls.Certificate{{Certificate: chain, PrivateKey: key}},
		SessionTicketsDisabled: true,
	}, nil
}

// Serve answers on a listener until Close.
func (s *Server) Serve(l net.Listener, leaf Leaf) error {
	config, err := s.TLS(leaf)
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	h := &http.Server{
		Handler: s.handler(), TLSConfig: config, Protocols: protocols, ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	s.mu.Lock()
	s.servers = append(s.servers, h)
	if s.Bootstrap == "" {
		s.Bootstrap = "bailment1:" + l.Addr().String() + "/" + s.Name + "#" + hex.EncodeToString(s.Genesis[:])
	}
	s.mu.Unlock()
	s.conns.Go(func() { _ = h.ServeTLS(l, "", "") })
	return nil
}

// Start listens on loopback.
func (s *Server) Start() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	return s.Serve(l, Leaf{})
}

// Close ends all.
func (s *Server) Close() {
	s.mu.Lock()
	servers := s.servers
	s.servers = nil
	s.mu.Unlock()
	for _, h := range servers {
		_ = h.Close()
	}
	s.conns.Wait()
}

// Before has f called before every call has any effect; its error is the answer. A *problem.Problem is sent as such.
func (s *Server) Before(f func(procedure string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// Lose has f say, after a call had its effect, whether its answer is lost: the connection is cut.
func (s *Server) Lose(f func(procedure string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose = f
}

// Crowd has every call without a session refused, as by a server that strangers keep busy.
func (s *Server) Crowd(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crowd = on
}

// Calls is how often a procedure was called ("/bailment.v1.SecretService/Get").
func (s *Server) Calls(procedure string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[procedure]
}

type peerKey struct{}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	opts := connect.WithInterceptors(faults{s})
	mux.Handle(bailmentv1connect.NewEnvironmentServiceHandler(environment{s: s}, opts))
	mux.Handle(bailmentv1connect.NewAttestationServiceHandler(attestation{s: s}, opts))
	mux.Handle(bailmentv1connect.NewSecretServiceHandler(secrets{s: s}, opts))
	mux.Handle(bailmentv1connect.NewSpiffeServiceHandler(spiffes{s: s}, opts))
	mux.Handle(bailmentv1connect.NewWatchServiceHandler(watching{s: s}, opts))
	mux.Handle(bailmentv1connect.NewLedgerServiceHandler(bailmentv1connect.UnimplementedLedgerServiceHandler{}, opts))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			r = r.WithContext(context.WithValue(r.Context(), peerKey{}, r.TLS.PeerCertificates[0]))
		}
		if strings.HasSuffix(r.URL.Path, "/Watch") || strings.HasSuffix(r.URL.Path, "/Tail") {
			mux.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, r)
		s.mu.Lock()
		lose := s.lose
		s.mu.Unlock()
		if lose != nil && lose(r.URL.Path) {
			panic(http.ErrAbortHandler)
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// faults counts calls, fails those that are to fail, and sends problems as the server does.
type faults struct{ s *Server }

func (f faults) enter(ctx context.Context, procedure string) error {
	f.s.mu.Lock()
	f.s.calls[procedure]++
	before, crowd := f.s.before, f.s.crowd
	f.s.mu.Unlock()
	if crowd && ctx.Value(peerKey{}) == nil {
		return problem.New(problem.ReasonOverloaded, "there are too many requests at a time").WithRetryAfter(time.Second)
	}
	if before == nil {
		return nil
	}
	return before(procedure)
}

func (f faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if err := f.enter(ctx, r.Spec().Procedure); err != nil {
			return nil, Wire(err)
		}
		res, err := next(ctx, r)
		return res, Wire(err)
	}
}

func (f faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (f faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := f.enter(ctx, conn.Spec().Procedure); err != nil {
			return Wire(err)
		}
		return Wire(next(ctx, conn))
	}
}

// Wire makes a Connect error with the Problem as its detail (DESIGN §16).
func Wire(err error) error {
	var p *problem.Problem
	if err == nil || !errors.As(err, &p) {
		return err
	}
	codes := map[problem.Kind]connect.Code{
		problem.Internal: connect.CodeInternal, problem.Invalid: connect.CodeInvalidArgument, problem.NotProved: connect.CodeUnauthenticated,
		problem.Refused: connect.CodePermissionDenied, problem.NotFound: connect.CodeNotFound, problem.Conflict: connect.CodeAborted,
		problem.Limited: connect.CodeResourceExhausted, problem.Unavailable: connect.CodeUnavailable, problem.UnknownOutcome: connect.CodeDeadlineExceeded,
	}
	out := connect.NewError(codes[p.Kind], errors.New(p.Message))
	d, derr := connect.NewErrorDetail(&v1.Problem{
		Kind: p.Kind.String(), Reason: string(p.Reason), Message: p.Message, Fix: p.WayOut(), RetryAfter: durationpb.New(p.RetryAfter),
	})
	if derr != nil {
		return derr
	}
	out.AddDetail(d)
	return out
}

func (s *Server) id(path string) identity.ID {
	id, err := identity.New(s.Name, path)
	if err != nil {
		panic(err) // the fake's own paths
	}
	return id
}
