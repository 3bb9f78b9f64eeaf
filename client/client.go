// Package client is the public Go client of Bailment: it finds an environment by its bootstrap string, proves what it
// talks to, and calls it.
//
// Guaranteed: nothing but a question for public facts is sent before the server proved, by TLS 1.3 under the CA that
// the genesis document names, that it is the pinned environment's; there is no way to turn that off. Every error is a
// problem of the one vocabulary: "not authentic" is never mixed up with "unreachable", and "unavailable" is said only
// when nothing was done, else it is "unknown outcome". A call is repeated only when that has its effects once: if it
// changes nothing, or carries an idempotency key. Every call has a deadline, every answer a size limit. Not guaranteed:
// that values handed out are wiped from memory (Go moves and copies), or that a stream is alive (reopen it).
//
// Its place: below it are the wire (api), the auditor (verify) and leaves; agent, command line and programs of others
// are above.
package client

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/problem"
)

// Defaults of Options.
const (
	DefaultCallTimeout = 30 * time.Second
	DefaultMaxResponse = 36 << 20 // 1,000 entries of 32 KiB, the largest page of the ledger
	DefaultAttempts    = 4
	dialTimeout        = 5 * time.Second
	handshakeTimeout   = 10 * time.Second
)

// Credentials gives the certificate and key to show, each time a request is made: connections follow a new one. An
// error fails the request. It must be quick, and safe for concurrent use; a certificate that it returned must not be changed.
type Credentials func() (*tls.Certificate, error)

// Options of a Client. The zero value works, without a session.
type Options struct {
	Credentials Credentials   // nil: calls that need no session
	CallTimeout time.Duration // of one call with its repetitions, unless its context ends sooner; default DefaultCallTimeout
	MaxResponse int           // bytes; default DefaultMaxResponse
	Attempts    int           // how often a harmless call is made at most; 1: once; default DefaultAttempts
	// HTTP2 asks for HTTP/2. HTTP/1.1 costs the server half as much per request; HTTP/2 is for many streams over one
	// connection.
	HTTP2 bool
	// MaxConns is the most connections at a time, 0 for no limit.
	MaxConns int
	// Agent is what the program says of itself when it attests or renews; nil: its version only. It is asked each time, then first.
	Agent func() *v1.AgentStatement
	// Dialer replaces the network's; it is for tests and tunnels.
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (o Options) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	if o.Dialer != nil {
		return o.Dialer
	}
	// A stream may be silent for hours. A peer that vanished is noticed after 25 s.
	d := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	return d.DialContext
}

// Client calls one environment. It is safe for concurrent use.
type Client struct {
	Environment bailmentv1connect.EnvironmentServiceClient
	Attestation bailmentv1connect.AttestationServiceClient
	Secrets     bailmentv1connect.SecretServiceClient
	Revocations bailmentv1connect.RevocationServiceClient
	Changes     bailmentv1connect.ChangeServiceClient
	Questions   bailmentv1connect.ExplainServiceClient
	Access      bailmentv1connect.AccessServiceClient
	BreakGlass  bailmentv1connect.BreakGlassServiceClient
	Ledger      bailmentv1connect.LedgerServiceClient
	Keys        bailmentv1connect.KeyServiceClient
	Watching    bailmentv1connect.WatchServiceClient
	Spiffe      bailmentv1connect.SpiffeServiceClient

	trust     *Trust
	agent     func() *v1.AgentStatement
	transport *transport
}

// Dial makes a client of a pinned environment. It connects when it is used. Close it when done.
func Dial(t *Trust, o Options) (*Client, error) {
	if t == nil || t.CA == nil || t.Environment == "" || t.Address == "" {
		return nil, problem.New(problem.ReasonInternal, "a client needs a Trust from Bootstrap, TrustFromGenesis or LoadTrust")
	}
	if o.CallTimeout <= 0 {
		o.CallTimeout = DefaultCallTimeout
	}
	if o.MaxResponse <= 0 {
		o.MaxResponse = DefaultMaxResponse
	}
	if o.Attempts <= 0 {
		o.Attempts = DefaultAttempts
	}
	if o.Agent == nil {
		o.Agent = func() *v1.AgentStatement { return nil }
	}
	tr := &transport{trust: t, o: o}
	// Redirects are not followed: no server of ours sends one, and they would lead out of what is pinned.
	hc := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	base := "https://" + t.Address
	opts := []connect.ClientOption{
		connect.WithInterceptors(&calls{timeout: o.CallTimeout, attempts: o.Attempts}),
		connect.WithReadMaxBytes(o.MaxResponse),
		// Values do not compress, and compressing them together with other text would leak by its length.
		connect.WithAcceptCompression("gzip", nil, nil),
	}
	return &Client{
		Environment: bailmentv1connect.NewEnvironmentServiceClient(hc, base, opts...),
		Attestation: bailmentv1connect.NewAttestationServiceClient(hc, base, opts...),
		Secrets:     bailmentv1connect.NewSecretServiceClient(hc, base, opts...),
		Revocations: bailmentv1connect.NewRevocationServiceClient(hc, base, opts...),
		Changes:     bailmentv1connect.NewChangeServiceClient(hc, base, opts...),
		Questions:   bailmentv1connect.NewExplainServiceClient(hc, base, opts...),
		Access:      bailmentv1connect.NewAccessServiceClient(hc, base, opts...),
		BreakGlass:  bailmentv1connect.NewBreakGlassServiceClient(hc, base, opts...),
		Ledger:      bailmentv1connect.NewLedgerServiceClient(hc, base, opts...),
		Keys:        bailmentv1connect.NewKeyServiceClient(hc, base, opts...),
		Watching:    bailmentv1connect.NewWatchServiceClient(hc, base, opts...),
		Spiffe:      bailmentv1connect.NewSpiffeServiceClient(hc, base, opts...),
		trust:       t, agent: o.Agent, transport: tr,
	}, nil
}

// Trust is what is pinned.
func (c *Client) Trust() *Trust { return c.trust }

// Close closes idle connections. Calls under way end by themselves.
func (c *Client) Close() { c.transport.close() }

// transport keeps connections of the newest certificate only. The server knows a session by its connection's
// certificate, so a request on an older connection would be one of the old session.
type transport struct {
	trust *Trust
	o     Options

	mu   sync.Mutex
	http *http.Transport
	leaf []byte // of the certificate that http shows; nil: none
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	h, err := t.current()
	if err != nil {
		return nil, err
	}
	return h.RoundTrip(r)
}

func (t *transport) current() (*http.Transport, error) {
	var cert *tls.Certificate
	var leaf []byte
	if t.o.Credentials != nil {
		var err error
		if cert, err = t.o.Credentials(); err != nil {
			return nil, err
		}
		if cert == nil || len(cert.Certificate) == 0 {
			return nil, problem.New(problem.ReasonNoSession, "there is no session")
		}
		leaf = cert.Certificate[0]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.http != nil && slices.Equal(t.leaf, leaf) {
		return t.http, nil
	}
	if t.http != nil {
		t.http.CloseIdleConnections() // those in use close when they become idle
	}
	t.http, t.leaf = t.make(cert), leaf
	return t.http, nil
}

func (t *transport) make(cert *tls.Certificate) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!t.o.HTTP2)
	protocols.SetHTTP2(t.o.HTTP2)
	return &http.Transport{
		DialContext:            t.o.dialer(),
		TLSClientConfig:        t.trust.tlsConfig(cert),
		TLSHandshakeTimeout:    handshakeTimeout,
		Protocols:              protocols,
		MaxIdleConnsPerHost:    64,
		MaxConnsPerHost:        t.o.MaxConns,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		// No Proxy: the client certificate must reach the server, and an environment variable must not decide where
		// secrets go.
	}
}

func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.http != nil {
		t.http.CloseIdleConnections()
		t.http = nil
	}
}
