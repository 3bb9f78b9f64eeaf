package agent

import (
	"context"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// resume takes up the lease of a secret that a process has from a former agent, without another value: the process was just
// proved again, so that what is revoked from now on reaches it. A lease that is over is made anew if the server still hands out
// that very version; if not, the process is told. An error is one that trying again may mend.
func (r *run) resume(ctx context.Context, w localapi.Wanted) (*localapi.Given, error) {
	k := r.key(w)
	s := r.a.runs.slot(k)
	if err := s.lock(ctx); err != nil {
		r.a.runs.leave(k)
		return nil, err
	}
	defer s.unlock()
	out := &localapi.Given{Name: w.Name, Purpose: w.Purpose, Version: w.Version}
	id := w.Lease
	res, err := again(ctx, func() (*v1.RenewLeaseResponse, error) {
		return r.client.Secrets.RenewLease(ctx, &v1.RenewLeaseRequest{Lease: id})
	})
	expires := res.GetExpires().AsTime()
	// Given back or run out meanwhile. A lease that was revoked is refused by another reason, and stays over.
	if problem.Is(err, problem.ReasonNotFound) || problem.Is(err, problem.ReasonExpired) {
		var got *v1.GetResponse
		if got, err = r.fetch(ctx, w, s, false); err == nil {
			clear(got.Value)
			id, expires = got.Lease, got.Expires.AsTime()
			out.Epoch, out.Index = got.Entry.GetEpoch(), got.Entry.GetIndex()
			if got.Version != w.Version {
				if _, held := s.leases[id]; !held {
					r.returnLease(ctx, id, expires)
				}
				err = problem.New(problem.ReasonLifecycle, "version %d of %s is handed out now, and the program has version %d", got.Version, w.Name, w.Version).
					WithFix("start the program again")
			}
		}
	}
	if err == nil {
		out.Lease, out.Expires = id, r.join(w, k, s, id, expires).expires
		return out, nil
	}
	r.a.runs.leave(k)
	switch p := problem.As(err); p.Kind {
	case problem.Refused, problem.NotFound, problem.Conflict:
		r.tellLost(w.Name, w.Lease, p)
		return out, nil
	default:
		return nil, err
	}
}
