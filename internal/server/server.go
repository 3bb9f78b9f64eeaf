// Package server is the composition root: a configuration goes in, a running server comes out. It is the
// only package that knows which store, which root holders and which attestation methods there are.
//
// Guaranteed: it never makes an environment (Init does, and is another verb); what it can't open it says
// with the way out, and serves nothing then; told to stop, it finishes what is under way within its
// time and closes every environment. Not guaranteed: that a limit fits the machine.
//
// Nothing imports it but the command line.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/canary"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/hardening"
	"github.com/bailment/bailment/internal/issuers"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/rpc"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// Options are what a configuration file has no words for.
type Options struct {
	Logger  *slog.Logger // default: none
	Version string
	// Now is the wall clock of ledger and certificates; nil means time.Now.
	Now func() time.Time
	// Boot is the clock that Now is judged by; nil means the system's.
	Boot func() time.Duration
	// Started is called when the server answers, with its addresses; may be nil.
	Started func(listen, ops string)
	// OpenStore opens the store in an environment's directory; nil means SQLite. It is there for tests of faults.
	OpenStore func(ctx context.Context, dir string) (store.Store, error)
}

// Server is a server that was configured. Open, Serve and Close are called once each, in this order; Run
// does all of it. The other methods may be called concurrently once Open has returned.
type Server struct {
	cfg     config.Server
	o       Options
	logger  *slog.Logger
	metrics *metrics
	source  *seal.Source

	sites    map[string]*site
	api      *rpc.API
	gate     *gate
	main     *http.Server
	ops      *http.Server
	listen   *listener
	opsOn    *listener
	stopping atomic.Bool
	silence  *canary.Watch
	issuers  *issuers.Keys // one cache for all environments: the keys are the issuers' own

	background sync.WaitGroup
	cancel     context.CancelFunc
	closed     sync.Once
}

// New checks a configuration and makes a server of it. It opens nothing.
func New(cfg config.Server, o Options) (*Server, error) {
	cfg.SetDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OpenStore == nil {
		o.OpenStore = func(ctx context.Context, dir string) (store.Store, error) { return sqlite.Open(ctx, dir) }
	}
	if cfg.ServerID == "" {
		cfg.ServerID = hostID()
	}
	silence := canary.New()
	logger := slog.New(silence.Handler(o.Logger.Handler()))
	return &Server{cfg: cfg, o: o, logger: logger, silence: silence, issuers: issuers.New(issuers.Config{Log: logger}), sites: make(map[string]*site), metrics: newMetrics(o.Version)}, nil
}

// hostID is the host's name as one segment of a SPIFFE ID.
func hostID() string {
	name, err := os.Hostname()
	if err != nil {
		return "server"
	}
	name = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
			return c
		}
		return '-'
	}, name)
	if name = strings.Trim(name, ".-"); name == "" || len(name) > 64 {
		return "server"
	}
	return name
}

// Run hardens the process, serves until ctx ends, and stops gracefully. The error is nil after a stop that
// was asked for.
func (s *Server) Run(ctx context.Context) error {
	hardening.Harden(s.logger)
	if err := s.Open(ctx); err != nil {
		return err
	}
	defer tuneMemory()()
	err := s.Serve(ctx)
	return errors.Join(err, s.Close())
}

// Open opens the environments and the listeners. When it fails, nothing stays open.
func (s *Server) Open(ctx context.Context) (err error) {
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	defer func() {
		if err != nil {
			_ = s.Close() // the first error is the one that tells
		}
	}()
	if s.source, err = seal.NewSource(nil); err != nil {
		return err
	}
	if err := s.openSites(ctx); err != nil {
		return err
	}
	s.metrics.watch(s)
	s.api = rpc.New(s.rpcSites(), s.rpcOptions())
	if err := s.bind(ctx); err != nil {
		return err
	}
	s.background.Go(func() { s.listen.reap(background) })
	if s.opsOn != nil {
		s.background.Go(func() { s.opsOn.reap(background) })
	}
	for name, x := range s.sites {
		s.background.Go(func() { x.renewals(background) })
		s.background.Go(func() { x.federate(background) })
		s.background.Go(func() { x.notices.Run(background, told{x.env}, s.toldUntil(name, x.env)) })
	}
	return nil
}

func (s *Server) rpcSites() map[string]rpc.Site {
	out := make(map[string]rpc.Site, len(s.sites))
	for name, x := range s.sites {
		out[name] = rpc.Site{Env: x.env, Certificate: x.certificate, Rotated: x.rotated}
	}
	return out
}

func (s *Server) rpcOptions() rpc.Options {
	l, t := s.cfg.Limits, s.cfg.Timeouts
	return rpc.Options{
		Logger: s.logger, Version: s.o.Version, Meter: s.metrics.meter, Events: s.metrics, Plain: s.plain, Silence: s.silence,
		Limits: rpc.Limits{
			RequestBytes: int64(l.RequestBytes), BundleBytes: int64(l.BundleBytes), RequestMemory: int64(l.RequestMemory),
			SourceRate: rate.Limit(l.SourceRequests.PerSecond), SourceBurst: l.SourceRequests.Burst,
			IdentityRate: rate.Limit(l.IdentityRequests.PerSecond), IdentityBurst: l.IdentityRequests.Burst,
			UnprovedRate: rate.Limit(l.UnprovedAttempts.PerSecond), UnprovedBurst: l.UnprovedAttempts.Burst,
			IdentityStreams: l.IdentityStreams, ReadHeader: s.readHeader(), ReadBundle: t.ReadBundle, Write: t.Write,
		},
	}
}

// readHeader can't be longer than a whole request may take.
func (s *Server) readHeader() time.Duration {
	return min(s.cfg.Timeouts.ReadHeader, s.cfg.Timeouts.Read)
}

// bind makes the listeners. Nothing is answered before Serve.
func (s *Server) bind(ctx context.Context) error {
	on, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "listening on %s", s.cfg.Listen).WithFix("choose another address with `listen`, or stop what uses it")
	}
	t := s.cfg.Timeouts
	s.listen = newListener(on, s.cfg.Limits, t.UnprovedIdle, s.metrics)
	s.gate = newGate(s.api, s.cfg.Limits, t.UnprovedWrite, s.metrics)
	s.main = &http.Server{
		Handler: s.gate, TLSConfig: s.api.TLSConfig(),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return s.gate.connContext(s.api.ConnContext(ctx, c), c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			s.listen.changed(c, state)
			s.api.ConnState(c, state)
		},
		ReadHeaderTimeout: s.readHeader(), ReadTimeout: t.Read, WriteTimeout: t.Write + t.Read, IdleTimeout: t.Idle,
		MaxHeaderBytes: int(s.cfg.Limits.HeaderBytes),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: s.cfg.Limits.ConnectionStreams,
			// net/http has deadlines for streams only, and breaking a stream off is a write, too. No value waits in HTTP/2's
			// buffer for a peer that reads nothing.
			WriteByteTimeout: min(t.Write, rpc.DeliverWithin),
		},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug), // handshakes that strangers break off
	}
	if s.cfg.OpsListen == config.None {
		return nil
	}
	ops, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.OpsListen)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "listening on %s", s.cfg.OpsListen).WithFix("choose another address with `ops_listen`, or turn it off with \"none\"")
	}
	s.opsOn = newListener(ops, opsLimits, t.UnprovedIdle, uncounted{})
	s.ops = &http.Server{
		Handler: s.opsHandler(), ConnState: s.opsOn.changed, ReadHeaderTimeout: s.readHeader(), ReadTimeout: t.Read, WriteTimeout: t.Write, IdleTimeout: t.Idle,
		MaxHeaderBytes: int(s.cfg.Limits.HeaderBytes), ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	return nil
}

// Serve answers until ctx ends, and then finishes what is under way.
func (s *Server) Serve(ctx context.Context) error {
	failed := make(chan error, 2)
	go func() { failed <- s.main.ServeTLS(s.listen, "", "") }()
	if s.ops != nil {
		go func() { failed <- s.ops.Serve(s.opsOn) }()
	}
	s.logger.Info("the server answers", "listen", s.Addr(), "ops", s.OpsAddr(), "environments", s.Environments(), "server", s.cfg.ServerID, "version", s.o.Version)
	tell := s.notifyReady(ctx)
	defer tell()
	if s.o.Started != nil {
		s.o.Started(s.Addr(), s.OpsAddr())
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serving: %w", err)
	}
	return errors.Join(err, s.drain())
}

// Close ends the background work and closes the environments. A second call does nothing.
func (s *Server) Close() (err error) {
	s.closed.Do(func() { err = s.close() })
	return err
}

func (s *Server) close() error {
	s.cancel()
	s.issuers.Close()
	s.background.Wait()
	if s.listen != nil {
		_ = s.listen.Close() // closed already after Serve
	}
	if s.opsOn != nil {
		_ = s.opsOn.Close() // the same
	}
	limit, cancel := context.WithTimeout(context.Background(), s.cfg.Timeouts.Shutdown)
	defer cancel()
	var all []error
	for name, x := range s.sites {
		if err := x.env.Close(limit); err != nil {
			all = append(all, fmt.Errorf("closing %s: %w", name, err))
		}
	}
	return errors.Join(all...)
}

// Addr is the API's address, with the port that it got.
func (s *Server) Addr() string { return s.listen.Addr().String() }

// OpsAddr is the address of metrics and health, or "none".
func (s *Server) OpsAddr() string {
	if s.opsOn == nil {
		return config.None
	}
	return s.opsOn.Addr().String()
}

// Environments are the names of those that are served, sorted.
func (s *Server) Environments() []string { return sortedNames(s.sites) }

// Environment is one that is served, or nil.
func (s *Server) Environment(name string) *control.Environment {
	if x, ok := s.sites[name]; ok {
		return x.env
	}
	return nil
}
