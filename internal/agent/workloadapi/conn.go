package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net"
	"runtime/debug"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// credentialsOf are gRPC's "transport credentials" of a Unix socket: nothing is encrypted, and who the peer is has been
// noted by the kernel.
type credentialsOf struct {
	open func(*localapi.Conn) (Caller, error)
}

func (c credentialsOf) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	l, ok := raw.(*localapi.Conn)
	if !ok {
		return nil, nil, errors.New("not a connection of the local socket")
	}
	caller, err := c.open(l)
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	x := &conn{Conn: l, caller: caller, turn: make(chan struct{}, 1)}
	return x, x, nil
}

func (c credentialsOf) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a server's")
}

func (c credentialsOf) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}
func (c credentialsOf) Clone() credentials.TransportCredentials { return c }
func (c credentialsOf) OverrideServerName(string) error         { return nil }

// conn is a connection and the process at its other end. The process is recognised at the connection's first call.
type conn struct {
	*localapi.Conn
	caller Caller

	turn   chan struct{} // of asking for claims
	claims map[string]any
	digest [sha256.Size]byte

	mu     sync.Mutex
	users  int // of caller, now
	closed bool
}

// AuthType makes it a credentials.AuthInfo.
func (c *conn) AuthType() string { return "unix" }

// Close closes the connection, and lets go of the process when nobody is looking at it any more.
func (c *conn) Close() error {
	c.mu.Lock()
	last := !c.closed && c.users == 0
	c.closed = true
	c.mu.Unlock()
	if last {
		_ = c.caller.Close()
	}
	return c.Conn.Close()
}

// use keeps the caller open while it is looked at.
func (c *conn) use() (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, problem.New(problem.ReasonCanceled, "the connection is closed")
	}
	c.users++
	return func() {
		c.mu.Lock()
		c.users--
		last := c.closed && c.users == 0
		c.mu.Unlock()
		if last {
			_ = c.caller.Close()
		}
	}, nil
}

// recognise says what the process is. It is found out once for a connection: from then on, same is what is asked.
func (c *conn) recognise(ctx context.Context) (map[string]any, [sha256.Size]byte, error) {
	done, err := c.use()
	if err != nil {
		return nil, c.digest, err
	}
	defer done()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, [sha256.Size]byte{}, problem.Wrap(ctx.Err(), problem.ReasonCanceled, "waiting for the process to be recognised")
	}
	if c.claims == nil {
		claims, err := c.caller.Claims(ctx)
		if err != nil {
			return nil, c.digest, err
		}
		// Package json writes the keys of maps in order, so that equal claims are equal texts.
		text, err := json.Marshal(claims)
		if err != nil {
			return nil, c.digest, problem.Wrap(err, problem.ReasonInternal, "encoding the claims")
		}
		c.claims, c.digest = claims, sha256.Sum256(text)
	}
	return c.claims, c.digest, nil
}

// same refuses a process that is gone, or is not what it was.
func (c *conn) same() error {
	done, err := c.use()
	if err != nil {
		return err
	}
	defer done()
	return c.caller.Same()
}

// connOf is the connection of a call.
func connOf(ctx context.Context) (*conn, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if c, ok := p.AuthInfo.(*conn); ok {
			return c, nil
		}
	}
	return nil, problem.New(problem.ReasonInternal, "the call came by no connection of the local socket")
}

// The security header (SPIFFE Workload Endpoint §6.3), against clients of other services that are made to send requests
// to where their sender could not. Envoy does not send it, and its service does not ask for it.
const (
	securityHeader = "workload.spiffe.io"
	workloadAPI    = "/SpiffeWorkloadAPI/"
)

// admit is asked before a call's message is read.
func (s *Server) admit(ctx context.Context, info *tap.Info) (context.Context, error) {
	if strings.HasPrefix(info.FullMethodName, workloadAPI) {
		if v := info.Header.Get(securityHeader); len(v) != 1 || v[0] != "true" {
			return ctx, status.Error(codes.InvalidArgument, "the security header "+securityHeader+": true is missing")
		}
	}
	c, err := connOf(ctx)
	if err != nil {
		return ctx, statusOf(err)
	}
	if !s.calls.enter(c.Peer.UID) {
		return ctx, status.Error(codes.ResourceExhausted, "there are too many calls at a time, of this user or of all")
	}
	// gRPC ends the context of every call that it let in, however that one ends.
	context.AfterFunc(ctx, func() { s.calls.leave(c.Peer.UID) })
	return ctx, nil
}

// unary and streaming keep a defect in one call from ending the agent.
func (s *Server) unary(ctx context.Context, r any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (out any, err error) {
	defer s.recovered(info.FullMethod, &err)
	return handler(ctx, r)
}

func (s *Server) streaming(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer s.recovered(info.FullMethod, &err)
	return handler(srv, stream)
}

func (s *Server) recovered(method string, err *error) {
	if p := recover(); p != nil {
		// What it says may hold anything; where it happened does not.
		s.log.Error("a call failed by a defect", "method", method, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, string(problem.ReasonInternal)+": "+problem.ReasonInternal.Fix())
	}
}

// calls counts those under way.
type calls struct {
	most, mostPerUser int

	mu    sync.Mutex
	total int
	users map[uint32]int
}

func (c *calls) enter(uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= c.most || c.users[uid] >= c.mostPerUser {
		return false
	}
	c.total++
	c.users[uid]++
	return true
}

func (c *calls) leave(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.users[uid]--; c.users[uid] == 0 {
		delete(c.users, uid)
	}
}

// statusOf is a problem as gRPC has it, by the codes of the SPIFFE Workload API: PermissionDenied is a no, Unavailable
// says that the answer is not known yet. A watcher of a common client stops for ever at InvalidArgument, so that is kept
// for what the caller alone can mend.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	p := problem.As(err)
	code := codes.Internal
	switch {
	case p.Reason == problem.ReasonCanceled:
		code = codes.Canceled
	case p.Kind == problem.Refused, p.Kind == problem.NotFound, p.Kind == problem.Invalid:
		// Invalid: this agent can't tell what the process is, as when its executable is no file that can be measured.
		code = codes.PermissionDenied
	case p.Kind == problem.Limited:
		code = codes.ResourceExhausted
	case p.Kind == problem.NotProved, p.Kind == problem.Unavailable, p.Kind == problem.UnknownOutcome, p.Kind == problem.Conflict:
		// Not proved is this machine, or the server to it: not the process.
		code = codes.Unavailable
	}
	return status.Errorf(code, "%s: %s; try: %s", p.Reason, p.Message, p.WayOut())
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
