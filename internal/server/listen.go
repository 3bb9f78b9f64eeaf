package server

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/config"
)

// listener bounds connections before anything is spent on them: how many there are, how many of one
// source, and how fast a source makes new ones. What is too much is reset at once.
type listener struct {
	net.Listener
	limits config.Limits
	count  connectionCounts

	mu      sync.Mutex
	total   int
	sources map[string]*source
}

// connectionCounts are the listener's metrics.
type connectionCounts interface {
	connected(delta int)
	connectionRefused(reason string)
}

// source is one peer, as long as it has connections or its rate is remembered.
type source struct {
	open int
	rate *rate.Limiter
}

// maxSources bounds what is remembered of peers without connections.
const maxSources = 16384

func newListener(l net.Listener, limits config.Limits, count connectionCounts) *listener {
	return &listener{Listener: l, limits: limits, count: count, sources: make(map[string]*source)}
}

// Accept returns the next connection that is within the limits.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := sourceOf(c.RemoteAddr())
		if reason := l.admit(from); reason != "" {
			l.count.connectionRefused(reason)
			if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0) // reset it: nothing of it should linger here
			}
			_ = c.Close() // it was refused: how it ends doesn't matter
			continue
		}
		l.count.connected(1)
		return &connection{Conn: c, listener: l, from: from, opened: time.Now()}, nil
	}
}

// admit counts a connection in, or says why not.
func (l *listener) admit(from string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sources[from]
	if s == nil {
		if len(l.sources) >= maxSources {
			l.forget()
		}
		s = &source{rate: rate.NewLimiter(rate.Limit(l.limits.SourceHandshakes.PerSecond), l.limits.SourceHandshakes.Burst)}
		l.sources[from] = s
	}
	switch {
	case l.total >= l.limits.Connections:
		return "total"
	case s.open >= l.limits.SourceConnections:
		return "source"
	case !s.rate.Allow():
		return "rate"
	}
	l.total++
	s.open++
	return ""
}

// forget drops what is remembered of peers that have no connection.
func (l *listener) forget() {
	for from, s := range l.sources {
		if s.open == 0 {
			delete(l.sources, from)
		}
	}
}

func (l *listener) release(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if s := l.sources[from]; s != nil {
		s.open--
	}
	l.count.connected(-1)
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

// connection is counted until it is closed, and remembers whether anything was asked over it.
type connection struct {
	net.Conn
	listener *listener
	from     string
	opened   time.Time
	asked    atomic.Bool
	once     sync.Once
}

// Close closes the connection and counts it out, once.
func (c *connection) Close() error {
	c.once.Do(func() { c.listener.release(c.from) })
	return c.Conn.Close()
}

// Asked notes that a request came.
func (c *connection) Asked() { c.asked.Store(true) }

// Silent is how long the connection has been open, if no request ever came.
func (c *connection) Silent() (time.Duration, bool) { return time.Since(c.opened), !c.asked.Load() }
