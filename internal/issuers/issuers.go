// Package issuers fetches the public keys of OIDC issuers that a bundle names, and keeps them for a while.
//
// Guaranteed: nobody but the bundle says whom to ask. A URL is the authority's own (Issuer, KeysURL) or stands in the discovery document
// that the authority's issuer served over TLS, whose "issuer" is equal byte for byte; nothing of a token becomes part of a request. So there
// is no filter of addresses here: loopback and private networks are reached if somebody approved them. Certificates are checked against the
// authority's own or the system's roots; redirects are not followed, proxies of the environment are not used, everything has a limit in
// bytes and time. Per issuer there is one fetch at a time, for whomever waits, and a stranger who makes up key IDs starts at most one in 30
// seconds. Keys that the issuer withdrew are forgotten with the next fetch, at the latest an hour later; while the issuer can't be
// reached, the last good ones are served for up to 24 hours.
//
// Not guaranteed: that the issuer is honest, or that a key was not withdrawn within the time that answers are kept. Pin keys in the bundle
// where this is too much trust: then nobody is asked.
//
// Its place: a mechanism; it imports leaves only. The server has one Keys, and control asks it before it decides: no fetch is made inside
// of a commit.
package issuers

import (
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// How long what is kept, and how often who is asked.
const (
	fetchTime   = 5 * time.Second // discovery and keys together
	shortest    = time.Minute     // what is fetched is good for at least this,
	longest     = time.Hour       // and at most this, whatever the issuer says (Cache-Control: max-age);
	usual       = 10 * time.Minute
	lastGood    = 24 * time.Hour // how long keys are served that could not be fetched again
	unknownWait = 30 * time.Second
	failedWait  = 5 * time.Second
	maxIssuers  = 256
)

// Config is what Keys may be told.
type Config struct {
	// Dial reaches issuers; nil: the dialer of package net.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log is told of issuers that can't be reached; nil: nobody.
	Log *slog.Logger
}

// Keys knows the keys of issuers. It is safe for concurrent use.
type Keys struct {
	cfg Config

	mu      sync.Mutex
	issuers map[name]*issuer
	uses    uint64
	closed  bool

	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// New makes Keys without any. Close ends it.
func New(cfg Config) *Keys {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: fetchTime}).DialContext
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Keys{cfg: cfg, issuers: make(map[name]*issuer), ctx: ctx, cancel: cancel}
}

// Close ends what is under way, and waits for it. Find refuses from then on.
func (k *Keys) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.all.Wait()
}

// name is by what an issuer is known: all that decides whom is asked and whom is believed. So the same issuer under other roots, in
// another environment or bundle, is another one.
type name struct {
	issuer, keysURL string
	roots           [32]byte
}

// issuer is what is known of one. It is guarded by Keys.mu.
type issuer struct {
	keys    *jose.JSONWebKeySet // the last good ones; nil: none yet. Never changed in place.
	fetched time.Time           // when keys were
	good    time.Time           // until when they are kept unasked
	asked   time.Time           // when the last fetch began
	failure error               // of the last fetch; nil: it succeeded
	flight  chan struct{}       // closed when the fetch that is under way has ended; nil: none is
	used    uint64
}

// Find gives the keys of an authority's issuer, by which a token with that key ID ("": it names none) can be checked. Where the ID is
// unknown and the issuer was not asked lately, it is asked again; that its keys lack the ID after that is not an error here. The set is
// shared and must not be changed. It waits for at most 5 seconds or until ctx ends, and refuses with issuer-keys-unavailable.
func (k *Keys) Find(ctx context.Context, a authority.Authority, keyID string) (*jose.JSONWebKeySet, error) {
	if a.Keys != nil {
		return a.Keys, nil
	}
	n := name{a.Issuer, a.KeysURL, rootsOf(a)}
	for waited := false; ; waited = true {
		set, flight, err := k.look(n, a, keyID, waited)
		if flight == nil {
			return set, err
		}
		select {
		case <-flight:
		case <-ctx.Done():
			return nil, problem.Wrap(ctx.Err(), problem.ReasonNoKeys, "waiting for the keys of authority %s", a.Name).WithRetryAfter(failedWait)
		}
	}
}

// look answers from what is kept, or gives a flight to wait for. Who has waited gets an answer, so that nobody waits twice.
func (k *Keys) look(n name, a authority.Authority, keyID string, waited bool) (*jose.JSONWebKeySet, chan struct{}, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, nil, problem.New(problem.ReasonStopping, "the keys of authority %s are not fetched any more", a.Name)
	}
	i := k.of(n)
	now := time.Now()
	switch {
	case waited:
	case i.fits(now, keyID):
		return i.keys, nil, nil
	case i.flight != nil:
		return nil, i.flight, nil
	case now.Sub(i.asked) >= i.wait(now):
		k.start(i, a)
		return nil, i.flight, nil
	}
	if i.keys != nil && now.Sub(i.fetched) < lastGood {
		return i.keys, nil, nil
	}
	p := problem.New(problem.ReasonNoKeys, "the keys of authority %s could not be fetched from its issuer", a.Name).WithRetryAfter(failedWait)
	p.Err = i.failure
	return nil, nil, p
}

// of gives what is known of an issuer, and forgets the one that was not asked for longest when there are too many. There are as many as
// bundles name, and those of bundles that are no longer in force.
func (k *Keys) of(n name) *issuer {
	k.uses++
	i := k.issuers[n]
	if i == nil {
		if len(k.issuers) >= maxIssuers {
			k.forget()
		}
		i = new(issuer)
		k.issuers[n] = i
	}
	i.used = k.uses
	return i
}

func (k *Keys) forget() {
	var oldest name
	first := uint64(0)
	for n, i := range k.issuers {
		if first == 0 || i.used < first {
			oldest, first = n, i.used
		}
	}
	delete(k.issuers, oldest)
}

// fits reports whether what is kept answers the question without asking the issuer.
func (i *issuer) fits(now time.Time, keyID string) bool {
	if i.keys == nil || !now.Before(i.good) {
		return false
	}
	return keyID == "" || len(i.keys.Key(keyID)) > 0
}

// wait is how long after the beginning of the last fetch the next one may begin. For what a stranger can bring about (an unknown ID) it is
// longest; what is over or failed is tried sooner.
func (i *issuer) wait(now time.Time) time.Duration {
	switch {
	case i.asked.IsZero():
		return 0
	case i.failure != nil && i.keys == nil:
		return failedWait
	case i.failure != nil:
		return unknownWait
	case !now.Before(i.good):
		return 0
	}
	return unknownWait
}

// start begins a fetch, which is nobody's: who asked may go away. The lock is held.
func (k *Keys) start(i *issuer, a authority.Authority) {
	flight := make(chan struct{})
	i.flight, i.asked = flight, time.Now()
	k.all.Go(func() {
		ctx, cancel := context.WithTimeout(k.ctx, fetchTime)
		defer cancel()
		set, age, err := fetch(ctx, k.cfg.Dial, a)
		if err != nil {
			k.cfg.Log.Warn("an issuer's keys could not be fetched", "authority", a.Name, "error", err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if i.failure = err; err == nil {
			now := time.Now()
			i.keys, i.fetched, i.good = set, now, now.Add(age)
		}
		i.flight = nil
		close(flight)
	})
}

// rootsOf is a digest of the roots that are believed; zero: the system's.
func rootsOf(a authority.Authority) [32]byte {
	if len(a.Certificates) == 0 {
		return [32]byte{}
	}
	h := sha256.New()
	for _, c := range a.Certificates {
		sum := sha256.Sum256(c.Raw)
		h.Write(sum[:])
	}
	return [32]byte(h.Sum(nil))
}
