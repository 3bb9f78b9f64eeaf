package rpc

import (
	"net/netip"
	"sync"
	"time"

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

// tallies keeps tallies by key, in memory bounded as that of limiters.
type tallies struct {
	limit rate.Limit
	burst int
	byKey *cache.Cache[string, *tally]
}

func newTallies(limit rate.Limit, burst int) tallies {
	return tallies{limit, burst, cache.New[string, *tally](maxLimiters, nil)}
}

func (l *tallies) of(key string) *tally {
	return l.byKey.GetOr(key, func() *tally { return &tally{failed: rate.NewLimiter(l.limit, l.burst)} })
}

// tally limits what only counts if it fails, which is known when it is over. What is under way counts meanwhile: otherwise many at
// once would all find room for one.
type tally struct {
	mu     sync.Mutex
	failed *rate.Limiter
	going  int // what is under way counts as
}

// begin takes room for an attempt that counts n times, or says how long it would have to wait for it.
func (t *tally) begin(n int) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if lack := float64(n+t.going) - t.failed.Tokens(); lack > 0 {
		return time.Duration(lack / float64(t.failed.Limit()) * float64(time.Second)), false
	}
	t.going += n
	return 0, true
}

// end says what became of it.
func (t *tally) end(n int, failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.going -= n
	if failed {
		t.failed.AllowN(time.Now(), n)
	}
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
