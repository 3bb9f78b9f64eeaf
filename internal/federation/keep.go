package federation

import (
	"context"
	"crypto/rand"
	"log/slog"
	"math/big"
	"time"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
)

// Relation is a federation that was approved, with what is known of it.
type Relation struct {
	Name string
	// Pin changes when whom to believe changes.
	Pin [32]byte
	Endpoint
}

// Source knows the relations, and takes what was fetched.
type Source interface {
	// Relations are those that were approved, with the newest known bundles.
	Relations(ctx context.Context) ([]Relation, error)
	// Refreshed takes a document that was fetched for a relation, and reports whether it said something new.
	Refreshed(ctx context.Context, name string, pin [32]byte, doc []byte) (bool, error)
}

// Options of Keep.
type Options struct {
	Source Source
	Logger *slog.Logger
	// Fetch gets a bundle; nil means the function of that name. It is there for tests.
	Fetch func(context.Context, Endpoint) ([]byte, *spiffe.Bundle, error)
}

// When bundles are fetched. The other side's hint counts within bounds: it must neither make this server ask all the time, nor keep it
// from hearing of a withdrawn key for days.
const (
	MinRefresh     = time.Minute
	MaxRefresh     = 24 * time.Hour
	DefaultRefresh = 5 * time.Minute // SPIFFE_Federation §4.1
	firstRetry     = 5 * time.Second
	maxRetry       = 5 * time.Minute
	lookEvery      = 5 * time.Second // how soon a relation that was approved is noticed
	atATime        = 4
)

// schedule is when a relation is fetched next.
type schedule struct {
	pin      [32]byte
	url      string
	next     time.Time
	busy     bool
	failures int
}

// outcome is how a fetch ended.
type outcome struct {
	name string
	pin  [32]byte
	hint time.Duration
	took bool
	err  error
}

// Keep fetches the bundles of all relations when they are due, until ctx ends. It returns when no fetch is under way.
func Keep(ctx context.Context, o Options) {
	if o.Fetch == nil {
		o.Fetch = Fetch
	}
	k := &keeper{o: o, due: make(map[string]*schedule), ended: make(chan outcome, atATime)}
	defer k.drain()
	for {
		relations, err := o.Source.Relations(ctx)
		if err != nil && ctx.Err() == nil {
			o.Logger.Warn("the federations can't be listed", "err", err)
		}
		if err == nil {
			k.begin(ctx, relations, time.Now())
		}
		timer := time.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case x := <-k.ended:
			k.end(x, time.Now())
		case <-timer.C:
		}
		timer.Stop()
	}
}

// keeper is the state of Keep; one goroutine has it.
type keeper struct {
	o     Options
	due   map[string]*schedule
	busy  int
	ended chan outcome
}

// begin starts what is due, as far as there is room.
func (k *keeper) begin(ctx context.Context, relations []Relation, now time.Time) {
	there := make(map[string]bool, len(relations))
	for _, r := range relations {
		there[r.Name] = true
		s := k.due[r.Name]
		if s == nil || s.pin != r.Pin || s.url != r.URL {
			busy := s != nil && s.busy
			s = &schedule{pin: r.Pin, url: r.URL, next: now, busy: busy}
			k.due[r.Name] = s
		}
		if s.busy || s.next.After(now) || k.busy >= atATime {
			continue
		}
		s.busy = true
		k.busy++
		go func() { k.ended <- k.fetch(ctx, r) }()
	}
	for name, s := range k.due {
		if !there[name] && !s.busy {
			delete(k.due, name)
		}
	}
}

func (k *keeper) fetch(ctx context.Context, r Relation) outcome {
	x := outcome{name: r.Name, pin: r.Pin}
	doc, b, err := k.o.Fetch(ctx, r.Endpoint)
	if err != nil {
		x.err = err
		return x
	}
	x.hint = b.RefreshHint
	x.took, x.err = k.o.Source.Refreshed(ctx, r.Name, r.Pin, doc)
	return x
}

func (k *keeper) end(x outcome, now time.Time) {
	k.busy--
	s := k.due[x.name]
	if s == nil {
		return
	}
	s.busy = false
	if s.pin != x.pin {
		return // of a relation that was approved anew: that is due
	}
	if x.err == nil {
		s.failures, s.next = 0, now.Add(interval(x.hint))
		if x.took {
			k.o.Logger.Info("the trust bundle of another trust domain changed", "federation", x.name)
		}
		return
	}
	s.failures++
	wait := min(firstRetry<<min(s.failures-1, 10), maxRetry)
	if p := problem.As(x.err); p.RetryAfter > wait {
		wait = min(p.RetryAfter, MaxRefresh)
	}
	s.next = now.Add(jitter(wait))
	k.o.Logger.Warn("fetching the trust bundle of another trust domain failed; the last good one stays", "federation", x.name, "failures", s.failures, "err", x.err)
}

// interval is how long to wait for the next fetch, by the other side's hint.
func interval(hint time.Duration) time.Duration {
	if hint <= 0 {
		hint = DefaultRefresh
	}
	return jitter(min(max(hint, MinRefresh), MaxRefresh))
}

// jitter takes up to a tenth off, so that servers that began together don't ask together.
func jitter(d time.Duration) time.Duration {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(d/10)+1))
	if err != nil {
		return d
	}
	return d - time.Duration(n.Int64())
}

// drain waits for the fetches that are under way: their context has ended.
func (k *keeper) drain() {
	for ; k.busy > 0; k.busy-- {
		<-k.ended
	}
}
