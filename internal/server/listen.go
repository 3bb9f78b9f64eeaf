package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/config"
)

// listener bounds connections before anything is spent on them: how many there are, how many of one
// source, and how fast a source makes new ones. What is too much is reset at once.
//
// A connection is unproved until a request came over it whose certificate is a good one. A quarter of the places
// is kept for those that proved an identity. When the others' are taken, the unproved one that is without a
// request for longest makes room for a new one, and none may be without one for long: so a few sources
// can make strangers hurry, and can't keep anybody out. Neither can one identity, from however many sources: beyond an
// eighth of all places, its connections are like unproved ones.
type listener struct {
	net.Listener
	limits config.Limits
	idle   time.Duration // of an unproved connection
	count  connectionCounts

	mu       sync.Mutex
	all      map[*connection]struct{}
	unproved int
	quiet    list.List // unproved connections without a request, longest first
	busy     list.List // unproved connections with one, longest first
	sources  map[string]*source
	proved   map[string]int // connections of an identity, of those that count as proved
}

// connectionCounts are the listener's metrics.
type connectionCounts interface {
	connected(delta int)
	connectionRefused(limit string)
	connectionBroken(why string)
}

// Why a connection was broken off: connectionBroken's.
const (
	brokenRoom = "room" // made room for a new one
	brokenIdle = "idle"
	brokenStop = "stop" // the server stops
	brokenSize = "size" // sent too much before its first request
)

// maxHandshake is what a client may send for its TLS handshake, in bytes. Package tls keeps a chain of a quarter of a megabyte while it
// comes, which strangers could leave at that; one of ours has some kilobytes.
const maxHandshake = 32 << 10

// busyAtLeast is how long an unproved connection's request is not disturbed by newcomers.
const busyAtLeast = 2 * time.Second

// source is one peer, as long as it has connections or its rate is remembered.
type source struct {
	open int
	rate *rate.Limiter
}

// identityShare: one identity has this part of all places, for connections and for open requests.
const identityShare = 8

// maxSources bounds what is remembered of peers without connections.
const maxSources = 16384

func newListener(l net.Listener, limits config.Limits, idle time.Duration, count connectionCounts) *listener {
	return &listener{
		Listener: l, limits: limits, idle: idle, count: count,
		all: make(map[*connection]struct{}), sources: make(map[string]*source), proved: make(map[string]int),
	}
}

// Accept returns the next connection that is within the limits.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		now := time.Now()
		x := &connection{Conn: c, listener: l, from: sourceOf(c.RemoteAddr()), opened: now, since: now}
		victim, limit := l.admit(x)
		if victim != nil {
			l.count.connectionBroken(brokenRoom)
			_ = victim.Close() // it has nothing under way
		}
		if limit == "" {
			l.count.connected(1)
			return x, nil
		}
		l.count.connectionRefused(limit)
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // reset it: nothing of it should linger here
		}
		_ = c.Close() // it was refused: how it ends doesn't matter
	}
}

// admit counts a connection in, or says which limit it is over. A victim is to be closed for it.
func (l *listener) admit(c *connection) (victim *connection, limit string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sources[c.from]
	if s == nil {
		if len(l.sources) >= maxSources {
			l.forget()
		}
		s = &source{rate: rate.NewLimiter(rate.Limit(l.limits.SourceHandshakes.PerSecond), l.limits.SourceHandshakes.Burst)}
		l.sources[c.from] = s
	}
	switch {
	case s.open >= l.limits.SourceConnections:
		return nil, "source"
	case !s.rate.AllowN(c.opened, 1):
		return nil, "rate"
	}
	if len(l.all) >= l.limits.Connections || l.unproved >= l.limits.Connections-l.limits.Connections/4 {
		if victim = l.longest(c.opened); victim == nil {
			return nil, "total"
		}
		l.remove(victim)
	}
	l.all[c] = struct{}{}
	l.unproved++
	s.open++
	c.place = l.quiet.PushBack(c)
	return victim, ""
}

// longest is the unproved connection that can be spared: the one that is without a request for longest, or
// else the one whose request takes longest, if that is long.
func (l *listener) longest(now time.Time) *connection {
	if e := l.quiet.Front(); e != nil {
		return e.Value.(*connection)
	}
	if e := l.busy.Front(); e != nil {
		if c := e.Value.(*connection); now.Sub(c.since) >= busyAtLeast {
			return c
		}
	}
	return nil
}

// forget drops what is remembered of peers that have no connection.
func (l *listener) forget() {
	for from, s := range l.sources {
		if s.open == 0 {
			delete(l.sources, from)
		}
	}
}

// remove counts a connection out, once. The caller has the lock.
func (l *listener) remove(c *connection) {
	if _, ok := l.all[c]; !ok {
		return
	}
	delete(l.all, c)
	l.unlist(c)
	if c.proved == "" {
		l.unproved--
	} else if l.proved[c.proved]--; l.proved[c.proved] == 0 {
		delete(l.proved, c.proved)
	}
	if s := l.sources[c.from]; s != nil {
		s.open--
	}
	l.count.connected(-1)
}

func (l *listener) unlist(c *connection) {
	if c.place != nil {
		l.quiet.Remove(c.place) // a list leaves alone what is not its own
		l.busy.Remove(c.place)
		c.place = nil
	}
}

// changed is for http.Server's ConnState: it notes whether a request is under way.
func (l *listener) changed(conn net.Conn, state http.ConnState) {
	c := connectionOf(conn)
	if c == nil || (state != http.StateActive && state != http.StateIdle) {
		return
	}
	c.begun.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.place == nil {
		return // proved, or closed
	}
	l.unlist(c)
	c.since = time.Now()
	if state == http.StateIdle {
		c.place = l.quiet.PushBack(c)
	} else {
		c.place = l.busy.PushBack(c)
	}
}

// reap closes the unproved connections that are without a request for too long, until ctx ends.
func (l *listener) reap(ctx context.Context) {
	for {
		timer := time.NewTimer(l.reapOnce(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// reapOnce returns how long nothing can become due.
func (l *listener) reapOnce(now time.Time) time.Duration {
	var due []*connection
	next := l.idle
	l.mu.Lock()
	for e := l.quiet.Front(); e != nil; e = l.quiet.Front() {
		c := e.Value.(*connection)
		if left := l.idle - now.Sub(c.since); left > 0 {
			next = left
			break
		}
		l.remove(c)
		due = append(due, c)
	}
	l.mu.Unlock()
	for _, c := range due {
		l.count.connectionBroken(brokenIdle)
		_ = c.Close() // nobody waits for it
	}
	return next
}

// breakOff closes the connections that it is told to, and returns how many.
func (l *listener) breakOff(which func(c *connection, proved bool) bool) int {
	var broken []*connection
	l.mu.Lock()
	for c := range l.all {
		if which(c, c.proved != "") {
			broken = append(broken, c)
		}
	}
	l.mu.Unlock()
	for _, c := range broken {
		l.count.connectionBroken(brokenStop)
		_ = c.Close() // it is not waited for
	}
	return len(broken)
}

// sourceOf is what counts as one source: an IPv4 address, an IPv6 /64.
func sourceOf(a net.Addr) string {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	ip := t.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}

// connection is counted until it is closed, and remembers what was asked over it.
type connection struct {
	net.Conn
	listener *listener
	from     string
	opened   time.Time
	asked    atomic.Bool

	begun atomic.Bool // the handshake is over, and with HTTP/1.1 the first request's header is there
	early int64       // bytes that came before

	open    atomic.Int32 // requests, until their answers were taken
	working atomic.Int32 // those of them that wait for the server, not for the client

	// Under the listener's lock.
	proved string        // whose it is, as far as it counts as proved
	since  time.Time     // in its present list
	place  *list.Element // in quiet or busy; nil when proved or closed
}

// connectionOf is the listener's connection under TLS, or nil.
func connectionOf(c net.Conn) *connection {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	x, _ := c.(*connection)
	return x
}

// errEarly ends a connection that sent too much too early.
var errEarly = errors.New("too much came before the first request")

// Read bounds what comes before the first request: the handshake, and with HTTP/1.1 the request's header.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.begun.Load() {
		return n, err
	}
	if c.early += int64(n); c.early > maxHandshake+int64(c.listener.limits.HeaderBytes) {
		c.listener.count.connectionBroken(brokenSize)
		return 0, errEarly
	}
	return n, err
}

// Close closes the connection and counts it out, once.
func (c *connection) Close() error {
	c.listener.mu.Lock()
	c.listener.remove(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// Asked notes that a request came.
func (c *connection) Asked() { c.asked.Store(true) }

// Proved notes that the connection's certificate is a good one of an identity, if that one has not its part of all places yet.
func (c *connection) Proved(identity string) {
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.all[c]; ok && c.proved == "" && l.proved[identity] < max(1, l.limits.Connections/identityShare) {
		c.proved = identity
		l.proved[identity]++
		l.unproved--
		l.unlist(c)
	}
}

// Silent is how long the connection has been open, if no request ever came.
func (c *connection) Silent() (time.Duration, bool) { return time.Since(c.opened), !c.asked.Load() }
