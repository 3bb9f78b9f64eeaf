package run

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"os"
	"sync"
	"time"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// Rates of asking again. What a restart mends is looked at soon; what a person must mend, rarely: each refusal is in
// the ledger.
const (
	firstAgain  = 100 * time.Millisecond
	lastAgain   = 15 * time.Second
	firstRefuse = 15 * time.Second
	lastRefuse  = 5 * time.Minute
)

// open asks the agent for the first time. While agent or server are away, as they are for moments when they are
// restarted, it waits.
func (c *Config) open(ctx context.Context, req localapi.OpenRequest, exe *os.File) (*localapi.Run, error) {
	end := time.Now().Add(c.Wait)
	wait := firstAgain
	for told := false; ; wait = min(2*wait, lastAgain) {
		given, err := c.attempt(ctx, req, exe)
		if err == nil {
			return given, nil
		}
		p := problem.As(err)
		left := time.Until(end)
		if !passes(p) || left <= 0 || ctx.Err() != nil {
			return nil, err
		}
		if !told {
			c.tell(localapi.Event{Event: localapi.EventWaiting, Why: localapi.FailureOf(p)})
			told = true
		}
		if !pause(ctx, min(max(jitter(wait), p.RetryAfter), left)) {
			return nil, err
		}
	}
}

// attempt asks once.
func (c *Config) attempt(ctx context.Context, req localapi.OpenRequest, exe *os.File) (*localapi.Run, error) {
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	return c.Agent.Open(ctx, req, exe)
}

// passes reports whether waiting may mend a problem.
func passes(p *problem.Problem) bool {
	switch p.Reason {
	case problem.ReasonCanceled, problem.ReasonEntropy:
		return false
	}
	return p.Kind == problem.Unavailable || p.Kind == problem.UnknownOutcome || p.Reason == problem.ReasonOverloaded || p.Reason == problem.ReasonRateLimited
}

func (c *Config) tell(e localapi.Event) {
	if c.Event != nil {
		c.Event(e)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter is between half of d and d, so that what was cut off together does not come back together.
func jitter(d time.Duration) time.Duration {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil || d < 2 {
		return d
	}
	return d/2 + time.Duration(binary.BigEndian.Uint64(b[:])%uint64(d/2))
}

// link is a run's connection to the agent, which may be another agent from time to time: when one is gone, the program is proved
// to the next, by the same descriptor, and its leases are taken up. The program itself goes on with what it has.
type link struct {
	c      *Config
	exe    *os.File
	req    localapi.OpenRequest // that takes the leases up
	id     string               // whose they are
	cancel context.CancelFunc
	done   chan struct{}

	mu  sync.Mutex
	now *localapi.Run
}

// follow watches over a run until close.
func (c *Config) follow(given *localapi.Run, req localapi.OpenRequest, exe *os.File) *link {
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{c: c, exe: exe, req: req, id: given.Identity, cancel: cancel, done: make(chan struct{}), now: given}
	l.req.Receipts = false
	l.req.Secrets = make([]localapi.Wanted, 0, len(given.Secrets))
	for _, g := range given.Secrets {
		l.req.Secrets = append(l.req.Secrets, localapi.Wanted{Name: g.Name, Purpose: g.Purpose, Lease: g.Lease, Version: g.Version})
	}
	go l.watch(ctx)
	return l
}

func (l *link) watch(ctx context.Context) {
	defer close(l.done)
	for {
		for e := range l.current().Events() {
			if e.Event == localapi.EventLeaseLost {
				l.drop(e.Secret)
			}
			l.c.tell(e)
		}
		// Without a lease, there is nothing that an agent could do for the program.
		if ctx.Err() != nil || len(l.req.Secrets) == 0 {
			return
		}
		l.c.tell(localapi.Event{Event: localapi.EventGone})
		next := l.again(ctx)
		if next == nil {
			return
		}
		l.mu.Lock()
		l.now = next
		l.mu.Unlock()
		if ctx.Err() != nil {
			_ = next.Close()
			return
		}
		l.c.tell(localapi.Event{Event: localapi.EventResumed})
	}
}

// again asks until there is an agent that takes the run up, or it ends: nil.
func (l *link) again(ctx context.Context) *localapi.Run {
	soon, seldom := firstAgain, firstRefuse
	var told problem.Reason
	for ctx.Err() == nil {
		next, err := l.c.attempt(ctx, l.req, l.exe)
		if err == nil && next.Identity != l.id {
			_ = next.Close()
			err = problem.New(problem.ReasonNoIdentity, "the program is %s now, and was %s", next.Identity, l.id)
		}
		if err == nil {
			l.took(next)
			return next
		}
		p := problem.As(err)
		wait := max(jitter(soon), p.RetryAfter)
		if passes(p) {
			soon = min(2*soon, lastAgain)
		} else {
			wait, seldom = jitter(seldom), min(2*seldom, lastRefuse)
			if ctx.Err() == nil && told != p.Reason {
				told = p.Reason
				l.c.tell(localapi.Event{Event: localapi.EventNotResumed, Why: localapi.FailureOf(p)})
			}
		}
		pause(ctx, wait)
	}
	return nil
}

// took notes the leases of the answer: one may have been made anew. A lost one is told by an event.
func (l *link) took(next *localapi.Run) {
	for _, g := range next.Secrets {
		for i := range l.req.Secrets {
			if w := &l.req.Secrets[i]; w.Name == g.Name && g.Lease != 0 {
				w.Lease = g.Lease
			}
		}
	}
}

func (l *link) drop(secret string) {
	for i, w := range l.req.Secrets {
		if w.Name == secret {
			l.req.Secrets = append(l.req.Secrets[:i], l.req.Secrets[i+1:]...)
			return
		}
	}
}

func (l *link) current() *localapi.Run {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// close ends the run: the program is gone. What can't be given back now, the agent gives back when this process ends.
func (l *link) close() {
	l.cancel()
	_ = l.current().Close()
	<-l.done
}
