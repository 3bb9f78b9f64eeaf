// Package agent is the long-running agent of a machine: it proves what the machine is, keeps that proof fresh, and hands
// secrets to processes on it.
//
// Guaranteed: it talks to nobody but the environment that its bootstrap string names. A new key is on the disk before it is
// sent, so that a lost reply is answered again to the same key and never looks like a second holder. A valid SVID is used
// until it ends, whatever happens to a renewal. What it is doing is one of a few states, and "the server can't be reached",
// "we could not prove what we are", "the server says no", "there is a hold", "this program is too old" and "something of this machine is
// broken" are never mixed up: reasons.go has every reason's class, and half.go marks what failed here. Who asks at its socket is
// what the kernel says. Leases last as long as the process that they were taken for, and are given back when it ends, however
// it ends, if the agent lives. No value is logged or written anywhere.
//
// Not guaranteed: that a process does with its secrets, or executes, what its request says: the digest is that of the file
// that it opened, and hostile code of the same user can open another. That leases are given back when the agent dies: they
// expire. That values leave no trace in this process's memory: it is locked where the system allows it, and never dumped.
//
// Its place: a role, beside server; above client. The composition root gives it the table of attestation methods.
//
//arch:allow package-lines: one state machine keeps the machine's proof, and what it hands to processes depends on each of its states
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/hardening"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
)

// Config of an agent.
type Config struct {
	Bootstrap string            // the bootstrap string
	StateDir  string            // the agent's own directory, made as 0700; one agent at a time
	Socket    string            // path of the local API's socket; its directory is made as 0755
	Method    string            // attestation method
	Needs     map[string]string // files that hold what the method needs, by the need's name; read at each attestation
	Values    map[string]string // what the method needs that is no file
	// HardwareKey: session keys are made in the machine's hardware, by the method's attester, and can't leave it.
	HardwareKey bool
	Methods     attest.Methods // the table of methods
	Version     string         // of this program, told to the server
	// Statement reads what this program can say of itself; nil: its version only. It is asked once, while the agent reaches the
	// environment, since it reads the whole executable.
	Statement func() (release.Statement, error)
	// Replaced reports whether the installed program is not the one that runs any more, which then only a restart mends; nil: it can't be
	// told. It is asked while something is wrong, and for the status.
	Replaced func() bool
	Logger   *slog.Logger // nil: none
	Limits   Limits
	// WorkloadAPI is the path of the SPIFFE Workload API's socket; empty: it is not served.
	WorkloadAPI string
	Parents     int            // how many ancestors of a process are claimed, at most workload.MaxParents; 0: none
	Kubelet     kubelet.Config // who knows this machine's pods; without an Address nobody
	// Dialer replaces the network's; it is for tests and tunnels.
	Dialer func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Limits of the local API. Zero means the default.
type Limits struct {
	Connections        int // default 1,024
	ConnectionsPerUser int // default 256
	RunsPerUser        int // at a time; default 128
	Runs               int // default 512
}

func (l *Limits) defaults() {
	for _, d := range []struct {
		to *int
		is int
	}{{&l.Connections, 1024}, {&l.ConnectionsPerUser, 256}, {&l.RunsPerUser, 128}, {&l.Runs, 512}} {
		if *d.to <= 0 {
			*d.to = d.is
		}
	}
}

// Agent is a machine's agent. Run it once.
type Agent struct {
	cfg    Config
	says   func() (release.Statement, error) // cfg.Statement, asked once
	log    *slog.Logger
	method attest.Method
	files  files

	mu        sync.Mutex
	trust     *client.Trust
	open      *client.Client // without a session
	node      *client.Client // with the node's
	session   *client.Session
	unsaved   bool             // session is not on the disk yet
	dead      *problem.Problem // why the session is over before its time
	changed   chan struct{}    // closed when session changes
	state     State
	since     time.Time
	failure   *problem.Problem // the last problem, until it is over
	failedAt  time.Time
	failState State     // that failure leads to, without a session
	failSoon  bool      // it may pass by itself soon
	failures  int       // in a row
	next      time.Time // of the next attempt
	control   uint64
	gen       uint64
	watching  bool
	asked     bool          // somebody asked for an attempt now
	begun     uint64        // attempts
	over      uint64        // attempts that have ended
	attempted chan struct{} // closed when an attempt ends

	wake      chan struct{} // next, dead or session changed
	runs      runs
	measurer  *measurer
	workloads *workload.Inspector
	spiffe    *workloadapi.Server
	pods      *kubelet.Client // nil: none
	stopping  <-chan struct{} // closed when the agent stops; set before anybody can ask
}

// New checks a configuration and makes an agent of it.
func New(cfg Config) (*Agent, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Statement == nil {
		cfg.Statement = func() (release.Statement, error) { return release.Statement{}, nil }
	}
	cfg.Limits.defaults()
	m, err := cfg.Methods.Find(cfg.Method)
	if err != nil {
		return nil, err
	}
	if cfg.HardwareKey && !m.MakesKeys {
		return nil, problem.New(problem.ReasonInvalid, "attestation method %s makes no keys in hardware", m.Name)
	}
	known := make(map[string]bool)
	for _, n := range m.Needs {
		known[n.Name] = true
		if cfg.Needs[n.Name] == "" && !n.Optional && !n.Literal {
			return nil, problem.New(problem.ReasonInvalid, "attestation method %s needs a file for %q: %s", m.Name, n.Name, n.Doc)
		}
	}
	for _, given := range []map[string]string{cfg.Needs, cfg.Values} {
		for name := range given {
			if !known[name] {
				return nil, problem.New(problem.ReasonInvalid, "attestation method %s has no use for %q", m.Name, name)
			}
		}
	}
	if !filepath.IsAbs(cfg.StateDir) {
		return nil, problem.New(problem.ReasonInvalid, "the agent's state directory is an absolute path")
	}
	for setting, socket := range map[string]string{"socket": cfg.Socket, "workload_api": cfg.WorkloadAPI} {
		if socket != "" && !filepath.IsAbs(socket) {
			return nil, problem.New(problem.ReasonInvalid, "the agent's sockets are absolute paths")
		}
		if len(socket) > localapi.MaxSocket {
			return nil, problem.New(problem.ReasonInvalid, "the socket's path %s has %d bytes, and the kernel takes at most %d", socket, len(socket), localapi.MaxSocket).
				WithFix("name a shorter path as `%s` in the agent's configuration", setting)
		}
	}
	if cfg.Socket != "" && cfg.Socket == cfg.WorkloadAPI {
		return nil, problem.New(problem.ReasonInvalid, "the agent's two sockets have one path").WithFix("name another path as `workload_api` in the agent's configuration")
	}
	a := &Agent{
		cfg: cfg, says: sync.OnceValues(cfg.Statement), log: cfg.Logger, method: m, files: files(cfg.StateDir),
		state: Starting, since: time.Now(), changed: make(chan struct{}), attempted: make(chan struct{}),
		wake: make(chan struct{}, 1), measurer: newMeasurer(),
	}
	a.runs.init()
	a.spiffe = workloadapi.New(workloadapi.Config{Source: issuer{a}, Open: a.openProcess, Logger: cfg.Logger})
	if err := a.inspect(); err != nil {
		return nil, err
	}
	return a, nil
}

// inspect prepares for finding out what processes are.
func (a *Agent) inspect() error {
	cfg := workload.Config{Measure: a.measurer.measureProcess, Parents: a.cfg.Parents}
	if a.cfg.Kubelet.Address != "" {
		var err error
		if a.pods, err = kubelet.New(a.cfg.Kubelet); err != nil {
			return err
		}
		cfg.Pods = a.pods
	}
	var err error
	a.workloads, err = workload.New(cfg)
	return err
}

// Run works until ctx ends, then lets go of the runs, and returns nil. The leases of processes that go on are left to the next
// agent, or to their end. An error is one that waiting
// does not mend: the configuration, the state directory, the socket.
func (a *Agent) Run(ctx context.Context) error {
	hardening.Harden(a.log)
	go a.says() // beside the way to the environment, which waits for it before it attests
	unlock, err := a.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	if a.cfg.Socket != "" {
		l, err := a.listenAt(a.cfg.Socket, "socket")
		if err != nil {
			return err
		}
		work.Go(func() {
			if err := a.serve(ctx, l); err != nil {
				cancel(err)
			}
		})
	}
	if a.cfg.WorkloadAPI != "" {
		l, err := a.listenWorkloads()
		if err != nil {
			return err
		}
		work.Go(func() {
			if err := a.spiffe.Serve(ctx, l); err != nil {
				cancel(err)
			}
		})
	}
	if a.cfg.Socket != "" || a.cfg.WorkloadAPI != "" {
		// Ready means that processes can ask. Whether they get what they want is a matter of state: to wait here for
		// a server that is away would have the service manager kill the one who waits for it.
		a.notify(daemon.SdNotifyReady)
	}
	err = a.keep(ctx)
	cancel(err)
	a.notify(daemon.SdNotifyStopping)
	work.Wait()
	a.closeClients()
	_ = a.workloads.Close()
	if err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// prepare makes and locks the state directory, and loads what is kept there.
func (a *Agent) prepare() (unlock func(), err error) {
	if err := durable.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
		return nil, unplaced(err, "state directory", a.cfg.StateDir, "data")
	}
	if st, err := os.Stat(a.cfg.StateDir); err != nil || st.Mode().Perm()&0o077 != 0 {
		return nil, problem.New(problem.ReasonPermissions, "the agent's state directory %s can be used by others", a.cfg.StateDir).
			WithFix("chmod 0700 %s", a.cfg.StateDir)
	}
	// Two agents with one state would renew one enrolment twice, which is what a copied key looks like.
	lock, err := os.OpenFile(a.files.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, unplaced(err, "state directory", a.cfg.StateDir, "data")
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, problem.New(problem.ReasonExists, "another agent uses %s", a.cfg.StateDir).WithFix("stop it, or give this one a directory of its own")
	}
	return func() { lock.Close() }, nil
}

// listenAt makes a socket that all users of the machine may ask at.
func (a *Agent) listenAt(path, setting string) (*localapi.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, unplaced(err, "socket", path, setting)
	}
	l, err := localapi.Listen(path, a.cfg.Limits.Connections, a.cfg.Limits.ConnectionsPerUser)
	if err != nil {
		return nil, unplaced(err, "socket", path, setting)
	}
	l.Full = func(uid uint32) {
		a.log.Warn("there are too many connections, of this user or of all: more are closed until some end", "socket", path, "uid", uid,
			"most_of_a_user", l.MostPerUser, "most", l.Most)
	}
	return l, nil
}

// unplaced says that the agent can't make what it needs where it was told to, and what to do about it.
func unplaced(err error, what, path, setting string) *problem.Problem {
	if errors.Is(err, fs.ErrPermission) {
		return problem.Wrap(err, problem.ReasonPermissions, "the agent's %s %s: user %d may not make it", what, path, os.Geteuid()).
			WithFix("give %s to this user, run the agent as its owner, or name another place as `%s` in the agent's configuration", filepath.Dir(path), setting)
	}
	return problem.Wrap(err, problem.ReasonInvalid, "the agent's %s %s", what, path).
		WithFix("mend what is in the way at that path, or name another place as `%s` in the agent's configuration", setting)
}

func (a *Agent) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		a.log.Warn("telling the service manager failed", "err", err)
	}
}

func (a *Agent) closeClients() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range []*client.Client{a.open, a.node} {
		if c != nil {
			c.Close()
		}
	}
	if a.pods != nil {
		a.pods.Close()
	}
}

// credentials shows the newest session of the node.
func (a *Agent) credentials() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session == nil {
		return nil, client.ErrNoSession
	}
	return &a.session.Certificate, nil
}

// Status is what the agent is doing.
func (a *Agent) Status() localapi.Status {
	replaced := a.replaced()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := localapi.Status{
		State: string(a.state), Since: a.since, Problem: localapi.FailureOf(a.failure), Watching: a.watching,
		Control: a.control, Generation: a.gen, Version: a.cfg.Version, NextTry: a.next, Runs: a.runs.count(),
		Replaced: replaced,
	}
	if a.failure != nil {
		s.ProblemAt = a.failedAt
	}
	if a.trust != nil {
		s.Environment, s.Address = a.trust.Environment, a.trust.Address
	}
	if x := a.session; x != nil {
		s.Identity, s.Assurance, s.Expires, s.RenewAfter, s.LifetimeEnd = x.Identity, x.Assurance, x.Expires, x.RenewAfter, x.LifetimeEnd
	}
	return s
}

// Serving errors that are no failure: the server was told to stop.
func served(err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serving the local API: %w", err)
}
