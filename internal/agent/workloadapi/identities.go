package workloadapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/cache"
	"github.com/bailment/bailment/internal/problem"
)

// Rates of attesting.
const (
	attestTimeout = 30 * time.Second
	firstRefused  = time.Second // news of a change make a refusal be asked again at once
	lastRefused   = 5 * time.Minute
	longestRetry  = time.Minute     // that a server asks for
	keepRefused   = 5 * time.Minute // after somebody asked
	// A user gets so many new identities at once, and then so many a second: every one is a session that the environment
	// remembers, and of which this machine may only open so many.
	newAtOnce    = 128
	newPerSecond = 5
)

// errSlow ends the first wait of a call.
var errSlow = errors.New("no answer yet")

// svid is an X.509-SVID as it is handed out. It is immutable.
type svid struct {
	session *client.Session
	chain   []byte // DER, one after the other
	key     []byte // PKCS#8, DER
	from    time.Time
}

func svidOf(s *client.Session) (*svid, error) {
	key, err := x509.MarshalPKCS8PrivateKey(s.Certificate.PrivateKey)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "encoding the SVID's key")
	}
	v := &svid{session: s, key: key, from: time.Now()}
	for _, der := range s.Certificate.Certificate {
		v.chain = append(v.chain, der...)
	}
	return v, nil
}

// identities are what processes are, by the digest of the claims about them.
type identities struct {
	s     *Server
	slots chan struct{} // of attestations under way
	ctx   context.Context
	work  sync.WaitGroup

	mu      sync.Mutex
	all     map[[sha256.Size]byte]*entry
	users   map[uint32]int
	budgets map[uint32]*rate.Limiter
}

func (x *identities) init(s *Server) {
	x.s, x.slots = s, make(chan struct{}, s.cfg.Limits.Attestations)
	x.all, x.users, x.budgets = make(map[[sha256.Size]byte]*entry), make(map[uint32]int), make(map[uint32]*rate.Limiter)
	x.ctx = context.Background()
}

// begin says how long they are kept: before it nobody asks.
func (x *identities) begin(ctx context.Context) { x.ctx = ctx }

// end waits until nothing is under way.
func (x *identities) end() { x.work.Wait() }

func (x *identities) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.all)
}

func (x *identities) look() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.all {
		e.look()
	}
}

func (x *identities) retry() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.all {
		e.retry()
	}
}

// entry is one identity, or the refusal of one, for all processes of the same claims. Its goroutine is the only one that
// attests; calls wait for what it says.
type entry struct {
	x      *identities
	digest [sha256.Size]byte
	uid    uint32
	claims map[string]any
	wake   chan struct{}
	tokens *cache.Cache[string, Token] // by audience
	minted chan struct{}               // turn of getting one

	mu       sync.Mutex
	svid     *svid
	err      error  // of the last attempt
	no       bool   // err is the environment's no, so there is no svid
	news     uint64 // how often something was said to have changed
	seen     uint64 // of them, how many the last word of the environment took into account
	failures int    // in a row
	next     time.Time
	calls    int // under way that have it
	asked    bool
	used     time.Time
	renewAt  time.Time
	changed  chan struct{}
	shown    *shown // what the present svid and bundles look like
	view     view
}

// enter finds the entry of a caller, or makes room for one. leave must be called.
func (x *identities) enter(uid uint32, digest [sha256.Size]byte, claims map[string]any) (e *entry, leave func(), err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, ok := x.all[digest]
	if !ok {
		if err := x.room(uid); err != nil {
			return nil, nil, err
		}
		e = &entry{
			x: x, digest: digest, uid: uid, claims: claims, wake: make(chan struct{}, 1), changed: make(chan struct{}),
			tokens: cache.New[string, Token](tokensKept, nil), minted: make(chan struct{}, 1),
		}
		x.all[digest] = e
		x.users[uid]++
		x.work.Go(e.tend)
	}
	// Under the lock of all, so that the entry can't be removed between.
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls++
	e.used = time.Now()
	return e, func() {
		e.mu.Lock()
		e.calls--
		e.used = time.Now()
		e.mu.Unlock()
		e.poke()
	}, nil
}

// room makes room for one more identity of a user, or refuses. The lock is held.
func (x *identities) room(uid uint32) error {
	b, ok := x.budgets[uid]
	if !ok {
		x.forgetBudgets()
		b = rate.NewLimiter(newPerSecond, newAtOnce)
		x.budgets[uid] = b
	}
	if !b.Allow() {
		return problem.New(problem.ReasonRateLimited, "user %d has processes of too many kinds", uid).WithRetryAfter(time.Second)
	}
	limits := x.s.cfg.Limits
	if x.users[uid] >= limits.IdentitiesPerUser && !x.evict(func(e *entry) bool { return e.uid == uid }) {
		return problem.New(problem.ReasonLimit, "user %d has %d identities in use", uid, x.users[uid])
	}
	if len(x.all) >= limits.Identities && !x.evict(func(*entry) bool { return true }) {
		return problem.New(problem.ReasonLimit, "this machine has %d identities in use", len(x.all))
	}
	return nil
}

// forgetBudgets drops those that are whole again, once there are many. The lock is held.
func (x *identities) forgetBudgets() {
	if len(x.budgets) < 256 {
		return
	}
	for uid, b := range x.budgets {
		if b.Tokens() >= newAtOnce {
			delete(x.budgets, uid)
		}
	}
}

// evict drops the identity that was not used for longest, of those that no call has. The lock is held.
func (x *identities) evict(may func(*entry) bool) bool {
	var oldest *entry
	var since time.Time
	for _, e := range x.all {
		if !may(e) {
			continue
		}
		e.mu.Lock()
		calls, used := e.calls, e.used
		e.mu.Unlock()
		if calls == 0 && (oldest == nil || used.Before(since)) {
			oldest, since = e, used
		}
	}
	if oldest == nil {
		return false
	}
	x.forget(oldest)
	oldest.poke() // its goroutine sees that it is gone
	return true
}

// forget removes an entry. The lock is held.
func (x *identities) forget(e *entry) {
	if x.all[e.digest] != e {
		return
	}
	delete(x.all, e.digest)
	if x.users[e.uid]--; x.users[e.uid] == 0 {
		delete(x.users, e.uid)
	}
}

func (e *entry) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *entry) look() {
	e.mu.Lock()
	e.news++
	e.next, e.failures = time.Time{}, 0
	e.mu.Unlock()
	e.poke()
}

// retry has an attempt that failed made again now. A no stays one until there are news.
func (e *entry) retry() {
	e.mu.Lock()
	failed := e.err != nil && !e.no
	if failed {
		e.next, e.failures = time.Time{}, 0
	}
	e.mu.Unlock()
	if failed {
		e.poke()
	}
}

// stale reports whether the svid may have been revoked. The lock is held.
func (e *entry) stale() bool { return e.seen != e.news }

// usable reports whether the svid can be handed out. The lock is held.
func (e *entry) usable(now time.Time) bool {
	return e.svid != nil && e.svid.session.Live(now)
}

// get is the svid that the process has now. One that may have been revoked is looked at first. If there is none yet, get waits.
// changed is closed when there is something else to say.
func (e *entry) get(ctx context.Context) (v *svid, changed <-chan struct{}, err error) {
	for {
		e.mu.Lock()
		now := time.Now()
		waiting := now.Before(e.next) // the last attempt failed, and there is none under way
		switch {
		case e.no && waiting:
			err = e.err
		case e.usable(now) && (!e.stale() || waiting):
			v = e.svid
		case waiting:
			err = e.err
		}
		e.used = now
		if v == nil && err == nil {
			e.asked = true
		}
		changed = e.changed
		e.mu.Unlock()
		if v != nil || err != nil {
			return v, changed, err
		}
		e.poke()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, tooLate(ctx)
		case <-e.x.s.stopping:
			return nil, nil, stopping()
		}
	}
}

// due says how long the entry's goroutine has nothing to do: 0 is to attest, less than 0 is to end.
func (e *entry) due() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	inUse := e.calls > 0 || e.asked
	usable := e.usable(now)
	renew := !usable || e.stale() || !now.Before(e.renewAt)
	switch {
	case renew && inUse:
		return max(e.next.Sub(now), 0)
	case renew && usable && !e.stale() && now.Sub(e.used) < e.renewAt.Sub(e.svid.from)*3/4:
		// Somebody fetched it again since it is new.
		return max(e.next.Sub(now), 0)
	case usable && renew:
		// Nobody wants it, so it is not renewed. It may still be asked for when the server is away.
		return e.svid.session.Expires.Sub(now)
	case usable:
		return e.renewAt.Sub(now)
	case e.no && now.Sub(e.used) < keepRefused:
		// Kept, so that who asks again and again does not cost more and more.
		return keepRefused - now.Sub(e.used)
	}
	return -1
}

// tend keeps the entry until nobody wants it.
func (e *entry) tend() {
	ctx := e.x.ctx
	for ctx.Err() == nil {
		e.x.mu.Lock()
		wait := e.due()
		if wait < 0 {
			e.x.forget(e)
		}
		gone := e.x.all[e.digest] != e
		e.x.mu.Unlock()
		if gone {
			return
		}
		if wait == 0 {
			e.attempt(ctx)
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-e.wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// attempt attests once.
func (e *entry) attempt(parent context.Context) {
	select {
	case e.x.slots <- struct{}{}:
		defer func() { <-e.x.slots }()
	case <-parent.Done():
		return
	}
	ctx, cancel := context.WithTimeout(parent, attestTimeout)
	defer cancel()
	e.mu.Lock()
	news := e.news // those that come from here on are for the next attempt
	e.mu.Unlock()
	s, err := e.x.s.cfg.Source.Attest(ctx, e.claims)
	var v *svid
	if err == nil {
		v, err = svidOf(s)
	}
	if parent.Err() != nil {
		return
	}
	if err != nil {
		e.failed(err, news)
		return
	}
	e.succeeded(v, news)
}

func (e *entry) succeeded(v *svid, news uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if e.svid != nil && e.svid.session.Identity != v.session.Identity {
		e.tokens = cache.New[string, Token](tokensKept, nil)
	}
	e.svid, e.err, e.no, e.failures, e.asked, e.seen = v, nil, false, 0, false, news
	// Never in a hurry, whatever times the server gave.
	e.next = time.Time{}
	half := v.session.RenewAfter.Sub(now)
	e.renewAt = now.Add(max(half-half/8+client.Jitter(half/8), time.Second))
	e.announce()
}

func (e *entry) failed(err error, news uint64) {
	p := problem.As(err)
	e.mu.Lock()
	defer e.mu.Unlock()
	first, last := firstRetry, lastRetry
	log := e.x.s.log.Warn
	switch {
	case p.Kind == problem.Refused:
		first, last = firstRefused, lastRefused
		log("a process has no identity", "uid", e.uid, "had", e.identity(), "reason", string(p.Reason), "problem", p.Message)
		e.svid, e.no, e.shown, e.seen = nil, true, nil, news
		e.tokens = cache.New[string, Token](tokensKept, nil)
	case e.usable(time.Now()):
		log("renewing a workload's SVID failed; the present one is kept", "identity", e.identity(), "expires", e.svid.session.Expires,
			"reason", string(p.Reason), "problem", p.Message)
	default:
		log("getting a workload's SVID failed", "uid", e.uid, "reason", string(p.Reason), "problem", p.Message)
	}
	e.err, e.asked = p, false
	if e.news != news {
		e.announce() // and again, at once
		return
	}
	e.next = time.Now().Add(max(client.Jitter(min(first<<min(e.failures, 16), last)), min(p.RetryAfter, longestRetry)))
	e.failures++
	e.announce()
}

// identity is what the entry has, for the log. The lock is held.
func (e *entry) identity() string {
	if e.svid == nil {
		return ""
	}
	return e.svid.session.Identity
}

// announce wakes who waits. The lock is held.
func (e *entry) announce() {
	close(e.changed)
	e.changed = make(chan struct{})
}
