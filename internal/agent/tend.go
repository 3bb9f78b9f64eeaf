package agent

import (
	"context"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// tendAgain is how long a failed renewal of a run's SVID or lease waits.
const (
	tendAgain = time.Second
	tendMost  = 30 * time.Second
)

// tend keeps a run's SVID and leases alive until ctx ends or the run does, or until its process is not the one any more.
func (r *run) tend(ctx context.Context) {
	for {
		t := time.NewTimer(max(time.Until(r.due()), 0))
		looking := false
		select {
		case <-t.C:
		case <-r.wake:
			looking = true
		case <-r.ended:
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
		if over := r.renewSVID(ctx); over != nil {
			r.forsake(over)
			return
		}
		for _, h := range r.holds {
			r.renewLease(ctx, h, looking)
		}
	}
}

// due is when the next thing is to be renewed.
func (r *run) due() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := later(r.session.RenewAfter, r.retry)
	for _, h := range r.holds {
		if at, ok := h.due(); ok && at.Before(next) {
			next = at
		}
	}
	return next
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// due is when the lease is to be looked at. While another run has the slot's turn, that is soon.
func (h *holding) due() (time.Time, bool) {
	select {
	case h.slot.turn <- struct{}{}:
	default:
		return time.Now().Add(tendAgain), true
	}
	defer h.slot.unlock()
	switch {
	case h.lost:
		return time.Time{}, false
	case h.lease.final:
		return h.lease.expires, true
	}
	half := h.lease.from.Add(h.lease.expires.Sub(h.lease.from) / 2)
	return later(half, h.retry), true
}

// renewSVID renews the SVID when its time has come. It returns what ends the run's part in its leases: that nothing is there any more which
// could be vouched for. Any other failure leaves things as they are.
func (r *run) renewSVID(ctx context.Context) (over *problem.Problem) {
	r.mu.Lock()
	wanted := !time.Now().Before(later(r.session.RenewAfter, r.retry))
	r.mu.Unlock()
	if !wanted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tendTimeout)
	defer cancel()
	err := r.attest(ctx)
	if err == nil {
		return nil
	}
	p := problem.As(err)
	if p.Reason == problem.ReasonProcessChanged || p.Reason == problem.ReasonProcessGone {
		return p
	}
	wait := max(tendAgain, p.RetryAfter)
	if p.Kind != problem.Unavailable && p.Kind != problem.UnknownOutcome {
		wait = max(wait, tendMost)
	}
	r.mu.Lock()
	r.retry = time.Now().Add(client.Jitter(2 * wait))
	r.mu.Unlock()
	r.a.log.Warn("renewing a workload's SVID failed; the present one is kept", "identity", r.session.Identity, "reason", string(p.Reason), "problem", p.Message)
	return nil
}

// forsake ends the run's part in all of its leases before the run ends, because what holds its connection is not the process that they
// were taken for.
func (r *run) forsake(p *problem.Problem) {
	r.a.log.Warn("a run's process is not the one any more; its leases are given back", "run", r.id[:8], "identity", r.session.Identity,
		"reason", string(p.Reason), "problem", p.Message)
	for _, h := range r.holds {
		if !h.lost {
			r.tellLost(h.name, h.lease.id, p)
		}
	}
	// Also while the agent stops: the next one would be told that this process is another.
	ctx, cancel := context.WithTimeout(context.Background(), returnTimeout)
	defer cancel()
	for _, h := range r.holds {
		r.giveBack(ctx, h, false)
	}
}

// renewLease renews a lease from its half life on, or looks whether it still stands.
func (r *run) renewLease(ctx context.Context, h *holding, looking bool) {
	ctx, cancel := context.WithTimeout(ctx, tendTimeout)
	defer cancel()
	if h.slot.lock(ctx) != nil {
		return
	}
	defer h.slot.unlock()
	now := time.Now()
	l := h.lease
	half := l.from.Add(l.expires.Sub(l.from) / 2)
	switch {
	case h.lost:
		return
	case !now.Before(l.expires):
		r.lose(h, problem.New(problem.ReasonExpired, "the lease reached its end at %s", l.expires.UTC().Format(time.RFC3339)))
		return
	case !looking && (l.final || now.Before(later(half, h.retry))):
		return
	}
	res, err := r.client.Secrets.RenewLease(ctx, &v1.RenewLeaseRequest{Lease: l.id})
	if err == nil {
		expires := res.Expires.AsTime()
		l.final = !expires.After(l.expires)
		if !l.final {
			l.from, l.expires = now, expires
		}
		return
	}
	p := problem.As(err)
	switch p.Kind {
	case problem.Refused, problem.NotFound, problem.Conflict:
		r.lose(h, p)
	default:
		h.retry = now.Add(client.Jitter(min(max(tendAgain, p.RetryAfter), tendMost) * 2))
	}
}

// lose tells the process that a lease of its is over. What it got can't be taken out of its memory; the rotation of
// the secret is what ends that.
func (r *run) lose(h *holding, p *problem.Problem) {
	h.lost = true
	r.tellLost(h.name, h.lease.id, p)
}

func (r *run) tellLost(name string, lease uint64, p *problem.Problem) {
	r.a.log.Warn("a lease is over while its process runs", "lease", lease, "identity", r.session.Identity, "reason", string(p.Reason))
	select {
	case r.events <- localapi.Event{Event: localapi.EventLeaseLost, Secret: name, Lease: lease, Why: localapi.FailureOf(p)}:
	default:
	}
}
