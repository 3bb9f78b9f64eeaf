package rpc

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
)

// connection is what is known of a TLS connection. It is found out at the first request, once, since
// a handshake is dear and reading a certificate is not free either.
type connection struct {
	source netip.Addr
	track  tracked // nil if the listener doesn't track
	once   sync.Once

	site       *site
	caller     control.Caller
	identity   string           // path; empty without a good certificate
	key        string           // environment and identity, for limits
	refused    *problem.Problem // why there is no caller
	bySource   *rate.Limiter
	byIdentity *rate.Limiter
	fallen     atomic.Bool // the session behind the certificate did not stand when it was last looked at
}

// tracked is a listener's connection that remembers whether anything was asked over it.
type tracked interface {
	Asked()
	// Silent is how long the connection has been open, if nothing was ever asked over it.
	Silent() (time.Duration, bool)
}

func trackedOf(c net.Conn) tracked {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	t, _ := c.(tracked)
	return t
}

type connectionKey struct{}

// ConnContext is for http.Server: it gives each connection a place for what is known of it.
func (a *API) ConnContext(ctx context.Context, c net.Conn) context.Context {
	conn := &connection{source: addrOf(c.RemoteAddr()), track: trackedOf(c)}
	return context.WithValue(ctx, connectionKey{}, conn)
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// connectionOf is the request's connection, or nil if it has no environment.
func (a *API) connectionOf(r *http.Request) *connection {
	conn, _ := r.Context().Value(connectionKey{}).(*connection)
	if conn == nil || r.TLS == nil {
		return nil
	}
	conn.once.Do(func() { a.meet(conn, r.TLS) })
	if conn.site == nil {
		return nil
	}
	return conn
}

// meet reads the connection's environment and certificate. TLS has proved the key.
func (a *API) meet(conn *connection, state *tls.ConnectionState) {
	if conn.track != nil {
		conn.track.Asked()
	}
	conn.site = a.sites[state.ServerName]
	if conn.site == nil {
		return
	}
	from := sourceKey(conn.source)
	conn.caller.Source = conn.source
	defer func() {
		if conn.refused == nil && !conn.fallen.Load() {
			from += " proved" // strangers behind the same address have a limit of their own
		}
		conn.bySource = a.sources.of(from)
	}()
	if len(state.PeerCertificates) == 0 {
		conn.refused = problem.New(problem.ReasonNoSession, "this needs a session, and the connection has no client certificate")
		return
	}
	caller, id, err := conn.site.Env.Peer(state.PeerCertificates[0])
	if err != nil {
		conn.refused = problem.As(err)
		return
	}
	caller.Source = conn.source
	conn.caller, conn.identity = caller, id.Path()
	conn.key = conn.site.name + conn.identity
	conn.byIdentity = a.identities.of(conn.key)
	if p, ok := conn.track.(prover); ok && conn.stands() {
		p.Proved(conn.key)
	}
}

// stands looks whether the session behind the certificate stands now. Whoever has the key of one that does not is a stranger to
// all limits: what he spends is not the identity's, which somebody else may have proved anew.
func (c *connection) stands() bool {
	fallen := c.refused != nil || c.site.Env.Stands(c.caller) != nil
	c.fallen.Store(fallen)
	return !fallen
}

// siteTLS is the TLS side of one environment.
//
// There are no session tickets. A resumed connection would bring back who once proved a key, from a ticket whose keys Go shares
// between the configurations that one listener chooses from, so between environments. Callers keep their connections, and a
// handshake costs a millisecond.
func (a *API) siteTLS(s *site) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.Certificate()
		},
		// Any certificate is taken, and judged when something is asked with it: so a foreign or
		// expired one gets a reason and a way out instead of a TLS alert.
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
	}
}

// TLSConfig is for the listener: the SNI picks the environment, and there is no default one.
func (a *API) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true, // as siteTLS says
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			s, ok := a.sites[hello.ServerName]
			if !ok {
				a.o.Events.HandshakeRefused("unknown-environment")
				return nil, problem.New(problem.ReasonWrongEnvironment, "no environment of that name is served here")
			}
			return s.tls, nil
		},
	}
}

// ConnState is for http.Server: a connection that was closed after its time while its handshake or its first request was
// still coming was a slow one, and is accounted for. One over which nothing came was only not used.
func (a *API) ConnState(c net.Conn, state http.ConnState) {
	track := trackedOf(c)
	if track == nil {
		return
	}
	age, silent := track.Silent()
	switch {
	case state == http.StateClosed:
		_, began := a.beginning.LoadAndDelete(c)
		if silent && age >= a.o.Limits.ReadHeader {
			a.closedSilently(c, began)
		}
	case silent && state == http.StateActive: // net/http: there is a byte of a request
		a.beginning.Store(c, nil)
	case silent && state == http.StateIdle: // HTTP/2, whose preface is no request
		a.beginning.Delete(c)
	}
}

func (a *API) closedSilently(c net.Conn, began bool) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return
	}
	state := t.ConnectionState()
	if state.HandshakeComplete && !began {
		return
	}
	a.o.Events.HandshakeRefused("too-slow")
	if s, ok := a.sites[state.ServerName]; ok {
		s.Env.Unproved(accountRequest, problem.New(problem.ReasonTooSlow, "no whole request came in %s", a.o.Limits.ReadHeader), addrOf(c.RemoteAddr()))
	}
}
