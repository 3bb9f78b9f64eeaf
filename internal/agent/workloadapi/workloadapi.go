// Package workloadapi serves SPIFFE's Workload API, and Envoy's Secret Discovery Service v3, to the processes of an
// agent's machine over a Unix socket of its own (SPIFFE Workload API, SPIFFE Workload Endpoint).
//
// Guaranteed: who asks is what the kernel says about the process that connected, looked at again before everything that
// is delivered. Processes about which the same claims are made share one identity, one SVID and one key; nothing is
// shared between others. A valid SVID is used until its end, whatever happens to a renewal; it is dropped at once when
// the environment says no (refused, held, cut off), and then every stream that has it ends with PermissionDenied.
// Unavailable is never said for a no, nor the other way round. Calls of the Workload API without the security header
// are refused before they are read. Connections, calls, identities and what a user can make the server do are bounded,
// for each user of the machine too. Keys are in memory only, and never logged.
//
// Not guaranteed: that a process keeps its key to itself, or that an SVID which was delivered stops working at peers
// that don't hear of revocations: it is short-lived. Of several identities that would fit, none is chosen: a process
// gets one SVID or none. CRLs, WIT-SVIDs and incremental xDS are not served.
//
// Its place: below agent, which says how processes are recognised (Config.Open) and gets what is issued (Source).
package workloadapi

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// Caller is the process at the other end of a connection. Its methods are called by many goroutines; Close last, once.
type Caller interface {
	// Claims says what the process is, in the terms of the bundle's rules. What tells apart processes that are to share
	// an identity, as the process's ID does, must not be in it: processes of the same claims get the same key.
	// Its error is a Problem: Refused or Invalid if the process can't be recognised, Unavailable or Limited if that may pass.
	Claims(ctx context.Context) (map[string]any, error)
	// Same reports, as nil, that the process is still there and still what Claims said. It is called before each delivery.
	Same() error
	Close() error
}

// Source is where what is handed out comes from: the agent, with the environment behind it. Its errors are Problems.
type Source interface {
	// Attest gets an X.509-SVID with a new key for a process with these claims.
	Attest(ctx context.Context, claims map[string]any) (*client.Session, error)
	// Bundles gets the trust bundles as they are now.
	Bundles(ctx context.Context) (*Bundles, error)
	// IssueJWT gets a JWT-SVID for the identity of a session, which Attest returned.
	IssueJWT(ctx context.Context, s *client.Session, audience []string) (Token, error)
}

// Token is a JWT-SVID.
type Token struct {
	Text    string // JWS compact serialization
	Issued  time.Time
	Expires time.Time
}

// Bundles are the trust bundles that the workloads of this machine may know. They must not be changed once they were given
// away.
type Bundles struct {
	Own string   // name of this environment's trust domain
	All []Bundle // Own's first
	// Federates names the other trust domains that an identity is told of, by its SPIFFE ID. Who has no identity is told of Own only.
	Federates map[string][]string
	// RefreshAfter is when to get them again, untold; 0: never.
	RefreshAfter time.Duration
}

// Bundle is what proves the identities of one trust domain.
type Bundle struct {
	TrustDomain string   // its name, without scheme
	X509        [][]byte // authorities, DER
	JWKS        []byte   // authorities of JWT-SVIDs as a JWK Set (RFC 7517), with nothing else in it; empty: none
}

// Limits of a server. Zero means the default.
type Limits struct {
	Calls             int // under way at a time, streams too; default 4,096
	CallsPerUser      int // default 1,024
	Identities        int // kept at a time; default 512
	IdentitiesPerUser int // default 128
	Attestations      int // under way at a time; default 8
}

func (l *Limits) defaults() {
	for _, d := range []struct {
		to *int
		is int
	}{{&l.Calls, 4096}, {&l.CallsPerUser, 1024}, {&l.Identities, 512}, {&l.IdentitiesPerUser, 128}, {&l.Attestations, 8}} {
		if *d.to <= 0 {
			*d.to = d.is
		}
	}
}

// Config of a Server.
type Config struct {
	Source Source
	// Open begins to watch the process at the other end of a new connection. It must be quick.
	Open   func(*localapi.Conn) (Caller, error)
	Limits Limits
	Logger *slog.Logger // nil: none
}

// Bounds of one call.
const (
	// maxMessage has room for a JWT-SVID to validate, and for the node that Envoy describes in its first request with
	// every extension that it was built with.
	maxMessage = 128 << 10
	maxHeader  = 8 << 10
	// callsOfConnection is what clients take for granted (RFC 9113 §6.5.2). A client that has more waits.
	callsOfConnection = 100
	bufferSize        = 4 << 10
	handshakeTimeout  = 5 * time.Second
	idleTimeout       = 10 * time.Minute // a connection without a call
	stopTimeout       = 3 * time.Second
	// firstAnswer is how long a call waits for an agent that is not ready yet, or a server that is slow.
	firstAnswer = 20 * time.Second
)

// Server answers at one socket. Serve it once.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	cfg        Config
	log        *slog.Logger
	calls      calls
	identities identities
	bundles    bundles
	grpc       *grpc.Server
	stopping   chan struct{}
}

// New makes a server.
func New(cfg Config) *Server {
	cfg.Limits.defaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Logger, stopping: make(chan struct{})}
	s.calls = calls{most: cfg.Limits.Calls, mostPerUser: cfg.Limits.CallsPerUser, users: make(map[uint32]int)}
	s.identities.init(s)
	s.bundles.init(s)
	s.grpc = grpc.NewServer(
		grpc.Creds(credentialsOf{open: cfg.Open}),
		grpc.InTapHandle(s.admit),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(callsOfConnection),
		grpc.ReadBufferSize(bufferSize), grpc.WriteBufferSize(bufferSize),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.streaming),
	)
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	s.grpc.RegisterService(secretDiscovery(), secrets{s})
	return s
}

// Serve answers at the listener, one of localapi, until ctx ends. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { s.bundles.keep(ctx) })
	s.identities.begin(ctx)
	work.Go(func() {
		<-ctx.Done()
		close(s.stopping) // streams say so, and end
		// A client that does not read what it is sent is not waited for.
		cut := time.AfterFunc(stopTimeout, s.grpc.Stop)
		defer cut.Stop()
		s.grpc.GracefulStop()
	})
	err := s.grpc.Serve(l)
	cancel()
	work.Wait()
	s.identities.end()
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "serving the Workload API")
	}
	return nil
}

// Look has everything that was issued looked at again now: something was revoked or allowed, or the policy changed. What is
// still granted is renewed and pushed, the rest ends.
func (s *Server) Look() { s.identities.look() }

// Retry has what failed tried again now: the environment can be reached again.
func (s *Server) Retry() {
	s.identities.retry()
	if _, _, err := s.bundles.peek(); err != nil {
		s.bundles.poke()
	}
}

// RefreshBundles has the trust bundles got again now. If they changed, they are pushed.
func (s *Server) RefreshBundles() { s.bundles.poke() }

// Identities is how many are kept.
func (s *Server) Identities() int { return s.identities.count() }
