package control

import (
	"context"
	"errors"
	"net/netip"
	"sort"
	"sync"
	"time"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// denial is one refusal that is counted instead of entered whole.
type denial struct {
	method   string
	identity string
	reason   problem.Reason
	minute   int64
	source   netip.Addr
}

type denialKey struct {
	method, identity string
	reason           problem.Reason
	minute           int64
}

type denialCount struct {
	count   uint64
	sources map[string]int
	others  uint64
}

// Bounds of what strangers can make the server remember in a minute.
const (
	maxSources    = 16
	maxDenialKeys = 4096
)

// denialSums counts refusals until they are entered, a sum for each method, reason and minute.
type denialSums struct {
	mu    sync.Mutex
	m     map[denialKey]*denialCount
	total uint64
}

func (d *denialSums) add(x denial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	c := d.row(denialKey{x.method, x.identity, x.reason, x.minute})
	c.count++
	if x.source.IsValid() {
		c.from(sourceNetwork(x.source), 1)
	}
}

// row is where a refusal is counted. When there are many rows, that is by reason and minute only; and when there are many of
// those, because no sum could be entered for long, by minute.
func (d *denialSums) row(k denialKey) *denialCount {
	if d.m == nil {
		d.m = make(map[denialKey]*denialCount)
	}
	if d.m[k] == nil && len(d.m) >= maxDenialKeys {
		k = denialKey{method: "other", reason: k.reason, minute: k.minute}
		if d.m[k] == nil && len(d.m) >= 2*maxDenialKeys {
			k.reason = problem.ReasonLimit
		}
	}
	c := d.m[k]
	if c == nil {
		c = &denialCount{}
		d.m[k] = c
	}
	return c
}

// from counts refusals of a source.
func (c *denialCount) from(net string, n int) {
	if _, known := c.sources[net]; !known && len(c.sources) >= maxSources {
		c.others += uint64(n)
		return
	}
	if c.sources == nil {
		c.sources = make(map[string]int)
	}
	c.sources[net] += n
}

// sourceNetwork is what counts as one source: an IPv6 /64, an IPv4 address.
func sourceNetwork(a netip.Addr) string {
	a = a.Unmap()
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return p.String()
}

// take removes the sums of minutes before `before`.
func (d *denialSums) take(before int64) []*state.DenialsSummed {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*state.DenialsSummed
	for k, c := range d.m {
		if k.minute >= before {
			continue
		}
		out = append(out, &state.DenialsSummed{
			Method: k.method, Identity: k.identity, Reason: string(k.reason), Minute: state.Millis(k.minute * 60_000),
			Count: c.count, Sources: c.sources, Others: c.others,
		})
		delete(d.m, k)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.Minute != b.Minute {
			return a.Minute < b.Minute
		}
		if a.Method != b.Method {
			return a.Method < b.Method
		}
		if a.Identity != b.Identity {
			return a.Identity < b.Identity
		}
		return a.Reason < b.Reason
	})
	return out
}

// Unproved counts a refusal that came before any proof: of a session, a token, a chain. Reasons that
// are not refusals (the store is down, say) are not counted.
func (e *Environment) Unproved(method string, err error, source netip.Addr) {
	p := problem.As(err)
	switch p.Kind {
	case problem.NotProved, problem.Refused, problem.Limited, problem.Invalid:
		e.denials.add(denial{method: method, reason: p.Reason, minute: e.cfg.Now().UnixMilli() / 60_000, source: source})
	}
}

// flushLoop enters the sums of each minute when it is over.
func (e *Environment) flushLoop(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := e.flush(ctx, e.cfg.Now().UnixMilli()/60_000); err != nil && !errors.Is(err, context.Canceled) {
				e.logger.Warn("entering the sums of denials failed", "err", err)
			}
		}
	}
}

// FlushDenials enters all sums now, those of the present minute too.
func (e *Environment) FlushDenials(ctx context.Context) error {
	return e.flush(ctx, 1<<62)
}

// flushSlice is how many sums go into one commit.
const flushSlice = 64

func (e *Environment) flush(ctx context.Context, before int64) error {
	sums := e.denials.take(before)
	if e.log.State().Ended != 0 {
		return nil // nothing follows its last entry, and what is refused now is refused to everybody
	}
	for len(sums) > 0 {
		n := min(len(sums), flushSlice)
		_, _, err := ledger.Commit(ctx, e.log, func(s *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
			t := &turn{e: e, s: s, at: at, now: state.At(at.Time)}
			if s.Ended != 0 {
				return ledger.Draft{}, struct{}{}, nil
			}
			for _, x := range sums[:n] {
				if _, err := t.enter(x); err != nil {
					return ledger.Draft{}, struct{}{}, err
				}
			}
			return t.draft, struct{}{}, nil
		})
		if err != nil {
			e.denials.putBack(sums)
			return err
		}
		sums = sums[n:]
	}
	return nil
}

// putBack keeps sums whose entry failed, for the next time, within the same bounds.
func (d *denialSums) putBack(sums []*state.DenialsSummed) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range sums {
		c := d.row(denialKey{x.Method, x.Identity, problem.Reason(x.Reason), int64(x.Minute) / 60_000})
		c.count += x.Count
		c.others += x.Others
		for net, n := range x.Sources {
			c.from(net, n)
		}
	}
}

// Denials is how many refusals were counted since the start, for metrics.
func (e *Environment) Denials() uint64 {
	e.denials.mu.Lock()
	defer e.denials.mu.Unlock()
	return e.denials.total
}
