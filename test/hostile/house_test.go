package hostile

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/rpc"
	"github.com/bailment/bailment/internal/server/servertest"
)

// house is an environment that is served over loopback, with verifiers that count.
type house struct {
	*controltest.World
	api    *rpc.API
	client *servertest.Clients
	url    string
	work   map[string]*work
}

// work is how often a method's dear functions ran.
type work struct {
	verified, offered atomic.Int64
	gate              chan struct{} // verifications wait until it is closed; nil: they don't
}

type options struct {
	files   policy.Files // beside controltest's
	limits  func(*rpc.Limits)
	issuers control.Issuers
	world   controltest.Options
}

// generous are limits that nobody in these tests reaches.
func generous() rpc.Limits {
	return rpc.Limits{
		RequestBytes: 1 << 20, BundleBytes: 1 << 20, RequestMemory: 64 << 20,
		SourceRate: 1e6, IdentityRate: 1e6, UnprovedRate: 1e6, SourceBurst: 1e6, IdentityBurst: 1e6, UnprovedBurst: 1e6,
		IdentityStreams: 4, ReadHeader: 5 * time.Second, ReadBundle: 5 * time.Second, Write: 5 * time.Second,
	}
}

func newHouse(t *testing.T, o options) *house {
	t.Helper()
	o.world.Extra = maps.Clone(o.files)
	h := &house{World: controltest.New(t, o.world), work: map[string]*work{}}
	table := methods.All()
	for i := range table {
		table[i] = h.counted(table[i])
	}
	h.Config.Methods, h.Config.Issuers = table, o.issuers
	h.Reopen()
	limits := generous()
	if o.limits != nil {
		o.limits(&limits)
	}
	h.serve(limits)
	return h
}

func (h *house) counted(m attest.Method) attest.Method {
	w := &work{}
	h.work[m.Name] = w
	verify, offer := m.Verify, m.Offer
	m.Verify = func(in attest.Input) (attest.Result, error) {
		w.verified.Add(1)
		if w.gate != nil {
			<-w.gate
		}
		return verify(in)
	}
	if offer != nil {
		m.Offer = func(in attest.OfferInput) ([]byte, error) {
			w.offered.Add(1)
			return offer(in)
		}
	}
	return m
}

// serve answers for the environment as it is open now.
func (h *house) serve(limits rpc.Limits) {
	h.T.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	h.must(err)
	chain, _, err := h.Env.ServerCertificate(context.Background(), key, time.Hour)
	h.must(err)
	cert := &tls.Certificate{Certificate: chain, PrivateKey: key}
	h.api = rpc.New(map[string]rpc.Site{controltest.EnvName: {
		Env: h.Env, Certificate: func() (*tls.Certificate, error) { return cert, nil },
	}}, rpc.Options{Limits: limits, Version: "test"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	server := &http.Server{
		Handler: h.api, TLSConfig: h.api.TLSConfig(), ConnContext: h.api.ConnContext, ConnState: h.api.ConnState, ReadHeaderTimeout: limits.ReadHeader,
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	h.T.Cleanup(func() {
		h.api.Stop()
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			h.T.Error(err)
		}
	})
	h.url = "https://" + l.Addr().String()
	h.client = h.clients()
}

// clients are a stranger's.
func (h *house) clients() *servertest.Clients {
	roots := x509.NewCertPool()
	roots.AddCert(h.Env.Certificates()[0])
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: controltest.EnvName, Time: h.Now}, ForceAttemptHTTP2: true,
	}
	h.T.Cleanup(transport.CloseIdleConnections)
	return servertest.NewClients(&http.Client{Transport: transport}, h.url)
}

func (h *house) must(err error) {
	if err != nil {
		h.T.Helper()
		h.T.Fatal(err)
	}
}

// try is one attempt: a session key, and a challenge for it.
type try struct {
	key       *ecdsa.PrivateKey
	csr       []byte
	challenge []byte
	binding   attest.Binding
}

// begin takes a challenge for a new session key.
func (h *house) begin(method string) try {
	h.T.Helper()
	key, csr := controltest.Key(h.T)
	return h.again(method, try{key: key, csr: csr})
}

// again takes another challenge for the same session key.
func (h *house) again(method string, x try) try {
	h.T.Helper()
	c, err := h.client.Attestation.Challenge(h.T.Context(), &pb.ChallengeRequest{})
	h.must(err)
	thumb, err := attest.Thumbprint(x.key.Public())
	h.must(err)
	x.challenge = c.Challenge
	x.binding = attest.Binding{Method: method, Genesis: h.Genesis, Nonce: c.Challenge, SessionKey: thumb}
	return x
}

// send attests over the wire.
func (h *house) send(method string, x try, evidence []byte) (*pb.SessionResponse, error) {
	return h.client.Attestation.Attest(h.T.Context(), &pb.AttestRequest{Method: method, Challenge: x.challenge, Evidence: evidence, Csr: x.csr})
}
