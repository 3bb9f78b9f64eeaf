package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/problem"
)

// Rates of getting the bundles.
const (
	bundlesTimeout = 30 * time.Second
	soonestRefresh = 10 * time.Second
	untold         = 365 * 24 * time.Hour
	firstRetry     = 200 * time.Millisecond
	lastRetry      = 30 * time.Second
)

// bundles keeps the newest trust bundles. Those that were got once stay until there are newer ones.
type bundles struct {
	s    *Server
	wake chan struct{}

	mu      sync.Mutex
	now     *shownBundles
	err     error
	logged  problem.Reason // of the last failure that the log has
	changed chan struct{}
}

// shownBundles are bundles, and the digest of what they say.
type shownBundles struct {
	*Bundles
	digest [sha256.Size]byte
}

// of is what an identity is told of them; empty: nobody's.
func (b *shownBundles) of(id string) *shownBundles {
	told := &Bundles{Own: b.Own, All: b.All[:1:1]}
	federates := b.Federates[id]
	for _, x := range b.All[1:] {
		if slices.Contains(federates, x.TrustDomain) {
			told.All = append(told.All, x)
		}
	}
	return &shownBundles{told, digestOf(told)}
}

// find is a trust domain's.
func (b *shownBundles) find(trustDomain string) (Bundle, bool) {
	i := slices.IndexFunc(b.All, func(x Bundle) bool { return x.TrustDomain == trustDomain })
	if i < 0 {
		return Bundle{}, false
	}
	return b.All[i], true
}

func (b *bundles) init(s *Server) {
	b.s, b.wake, b.changed = s, make(chan struct{}, 1), make(chan struct{})
}

func (b *bundles) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// keep gets them when it is time, until ctx ends.
func (b *bundles) keep(ctx context.Context) {
	for failures := 0; ; {
		wait, err := b.refresh(ctx)
		if err == nil {
			failures = 0
		} else {
			wait = retryAfter(err, failures)
			failures++
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-b.wake:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// retryAfter is how long to wait after so many failures in a row. A no stays one until there are news, which wake the loop.
func retryAfter(err error, failures int) time.Duration {
	first, last := firstRetry, lastRetry
	if problem.KindOf(err) == problem.Refused {
		first, last = firstRefused, lastRefused
	}
	return client.Jitter(min(first<<min(failures, 16), last))
}

// refresh gets them once, and says when to do so again.
func (b *bundles) refresh(parent context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(parent, bundlesTimeout)
	defer cancel()
	got, err := b.s.cfg.Source.Bundles(ctx)
	if err == nil && (len(got.All) == 0 || got.All[0].TrustDomain != got.Own) {
		err = problem.New(problem.ReasonInternal, "the environment's own trust bundle is missing")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		if p := problem.As(err); parent.Err() == nil && p.Reason != b.logged {
			// Once for each reason: the same one again is no news.
			b.logged = p.Reason
			b.s.log.Warn("getting the trust bundles failed; the present ones are kept", "reason", string(p.Reason), "problem", p.Message)
		}
		b.err = err
		if b.now == nil {
			b.announce()
		}
		return 0, err
	}
	b.err, b.logged = nil, ""
	if d := digestOf(got); b.now == nil || b.now.digest != d {
		b.now = &shownBundles{got, d}
		b.announce()
	}
	if got.RefreshAfter <= 0 {
		return untold, nil
	}
	return max(got.RefreshAfter, soonestRefresh), nil
}

// announce wakes who waits. The lock is held.
func (b *bundles) announce() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// digestOf is over everything that clients are shown, each part with its length.
func digestOf(b *Bundles) [sha256.Size]byte {
	h := sha256.New()
	part := func(text []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(text))))
		h.Write(text)
	}
	part([]byte(b.Own))
	for _, x := range b.All {
		part([]byte(x.TrustDomain))
		part(x.JWKS)
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(x.X509))))
		for _, der := range x.X509 {
			part(der)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(b.Federates)) {
		part([]byte(id))
		for _, td := range b.Federates[id] {
			part([]byte(td))
		}
		h.Write([]byte{0xff}) // no part's length begins so
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// peek is the newest, or nil and why there are none, and what is closed at the next change.
func (b *bundles) peek() (*shownBundles, <-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now, b.changed, b.err
}

// await is the newest, as soon as there are any.
func (b *bundles) await(ctx context.Context) (*shownBundles, error) {
	for {
		now, changed, err := b.peek()
		switch {
		case now != nil:
			return now, nil
		case err != nil:
			return nil, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, tooLate(ctx)
		case <-b.s.stopping:
			return nil, stopping()
		}
	}
}

// tooLate is the problem of a call whose time is over: the caller's, or ours.
func tooLate(ctx context.Context) error {
	if context.Cause(ctx) == errSlow { //nolint:errorlint // it is never wrapped
		return problem.New(problem.ReasonUnreachable, "there is no answer of the environment yet")
	}
	return problem.Wrap(ctx.Err(), problem.ReasonCanceled, "the caller did not wait")
}

func stopping() error { return problem.New(problem.ReasonStopping, "the agent is stopping") }
