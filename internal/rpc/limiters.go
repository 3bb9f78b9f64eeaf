package rpc

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// limiters keeps rate limiters by key in bounded memory: what is used moves to the young half; when
// that is full it becomes the old one, and the old one is dropped. Who wants to be forgotten must
// fill a half with other keys first, and gains one burst by it.
type limiters struct {
	mu         sync.Mutex
	limit      rate.Limit
	burst      int
	young, old map[string]*rate.Limiter
}

// halfLimiters is how many keys each half has: about 10 MB when both are full.
const halfLimiters = 32768

func (l *limiters) set(limit rate.Limit, burst int) { l.limit, l.burst = limit, burst }

func (l *limiters) of(key string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x, ok := l.young[key]; ok {
		return x
	}
	x, ok := l.old[key]
	if !ok {
		x = rate.NewLimiter(l.limit, l.burst)
	}
	if l.young == nil || len(l.young) >= halfLimiters {
		l.old, l.young = l.young, make(map[string]*rate.Limiter)
	}
	l.young[key] = x
	return x
}

// sourceKey is what counts as one source: an IPv4 address, an IPv6 /64.
func sourceKey(a netip.Addr) string {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// streams counts open streams by identity.
type streams struct {
	mu   sync.Mutex
	most int
	m    map[string]int
}

func (s *streams) begin(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[key] >= s.most {
		return false
	}
	if s.m == nil {
		s.m = make(map[string]int)
	}
	s.m[key]++
	return true
}

func (s *streams) end(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[key]--; s.m[key] == 0 {
		delete(s.m, key)
	}
}
