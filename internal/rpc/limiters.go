package rpc

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/internal/cache"
)

// limiters keeps rate limiters by key in bounded memory. Who wants to be forgotten must fill half of it with other keys
// first, and gains one burst by it.
type limiters struct {
	limit rate.Limit
	burst int
	byKey *cache.Cache[string, *rate.Limiter]
}

// maxLimiters is how many keys are kept: about 10 MB.
const maxLimiters = 65536

func newLimiters(limit rate.Limit, burst int) limiters {
	return limiters{limit, burst, cache.New[string, *rate.Limiter](maxLimiters, nil)}
}

func (l *limiters) of(key string) *rate.Limiter {
	return l.byKey.GetOr(key, func() *rate.Limiter { return rate.NewLimiter(l.limit, l.burst) })
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
