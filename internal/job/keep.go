package job

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Rates of renewing what can't be renewed at once.
const (
	keepAgain   = time.Second
	keepSeldom  = 15 * time.Second
	keepTimeout = 30 * time.Second
	// lastPart of the time that there was for renewing a session is for giving everything back, where it can't be renewed; a minute at most.
	lastPart = 10
	mostLast = time.Minute
)

// kept is a lease and what is known of its renewal.
type kept struct {
	lease
	from  time.Time // when it was made or renewed
	final bool      // it is at its maximum
	lost  bool
	retry time.Time
}

// due is when to renew it, or, where nothing prolongs it, when to say that it is over. A job's leases end with its session at the latest, so
// one that does is renewed after the session was.
func (k *kept) due(session time.Time) time.Time {
	half := k.from.Add(k.Expires.Sub(k.from) / 2)
	if k.final || k.within(session) {
		half = k.Expires
	}
	if k.retry.After(half) {
		return k.retry
	}
	return half
}

// within reports whether the end of the session that ends then is the lease's end.
func (k *kept) within(session time.Time) bool {
	return !k.Expires.Add(time.Millisecond).Before(session)
}

func newKey() string {
	b := make([]byte, 16)
	rand.Read(b) // it never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b)
}

func describe(res *v1.GetResponse, l lease) string {
	return fmt.Sprintf("%s version %d, lease %d until %s", l.Secret, res.Version, l.ID, l.Expires.UTC().Format(time.RFC3339))
}

func (j *job) credentials() (*tls.Certificate, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.session == nil {
		return nil, client.ErrNoSession
	}
	return &j.session.Certificate, nil
}

// keep renews session and leases until ctx ends, or nothing can be kept any more.
func (j *job) keep(ctx context.Context) {
	var retry time.Time
	told := false
	for {
		renew := j.session.RenewAfter
		if retry.After(renew) {
			renew = retry
		}
		last := lastMoment(j.session)
		next := min(time.Until(renew), time.Until(last))
		for _, k := range j.leases {
			if !k.lost {
				next = min(next, time.Until(k.due(j.session.Expires)))
			}
		}
		if !pause(ctx, max(next, 0)) {
			return
		}
		if !time.Now().Before(last) {
			j.Warn("the session can't be renewed and ends: everything is given back now; the program goes on with the values that it has")
			j.giveBack()
			return
		}
		if !time.Now().Before(renew) {
			err := j.renew(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				p := problem.As(err)
				if !told {
					told = true
					j.Warn(fmt.Sprintf("the session can't be renewed (%s: %s); it is good until %s", p.Reason, p.Message, j.session.Expires.UTC().Format(time.RFC3339)))
				}
				retry = time.Now().Add(client.Jitter(again(p)))
			} else {
				told, retry = false, time.Time{}
			}
		}
		for _, k := range j.leases {
			if !k.lost && !time.Now().Before(k.due(j.session.Expires)) {
				j.renewLease(ctx, k)
			}
		}
	}
}

// again is how long to wait after a failure.
func again(p *problem.Problem) time.Duration {
	wait := keepAgain
	switch p.Kind {
	case problem.Unavailable, problem.UnknownOutcome, problem.Limited:
	default:
		wait = keepSeldom
	}
	return 2 * max(wait, p.RetryAfter)
}

// lastMoment is when a session that was not renewed must be used to give back.
func lastMoment(s *client.Session) time.Time {
	return s.Expires.Add(-min(s.Expires.Sub(s.RenewAfter)/lastPart, mostLast))
}

// renew gets the next session, by the way that the method declares.
func (j *job) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	var next *client.Session
	var err error
	if j.Renewal == attest.RenewByPossession {
		key, kerr := j.nextKey()
		if kerr != nil {
			return kerr
		}
		next, err = j.open.Renew(ctx, j.session, key, j.Version)
	} else {
		next, err = j.prove(ctx)
	}
	if err != nil {
		return err
	}
	if next.Identity != j.session.Identity {
		// The leases are of the one that was: the new session is of no use.
		j.logout(ctx, next)
		return problem.New(problem.ReasonNoIdentity, "this job would be %s now, and was %s", next.Path(), j.session.Path())
	}
	return j.install(next)
}

// logout ends a session that is not wanted. It ends by itself if that fails.
func (j *job) logout(ctx context.Context, s *client.Session) {
	c, err := client.Dial(j.trust, client.Options{Credentials: s.Credentials(), Attempts: 1})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Attestation.Logout(ctx, &v1.LogoutRequest{})
}

// renewLease prolongs a lease.
func (j *job) renewLease(ctx context.Context, k *kept) {
	now := time.Now()
	if !now.Before(k.Expires) {
		j.lose(k, problem.New(problem.ReasonExpired, "it has reached its end"))
		return
	}
	if k.final || k.within(j.session.Expires) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	res, err := j.calls.Secrets.RenewLease(ctx, &v1.RenewLeaseRequest{Lease: k.ID})
	if err != nil {
		p := problem.As(err)
		switch p.Kind {
		case problem.Refused, problem.NotFound, problem.Conflict:
			j.lose(k, p)
		default:
			k.retry = now.Add(client.Jitter(again(p)))
		}
		return
	}
	expires := res.Expires.AsTime()
	k.final = !expires.After(k.Expires)
	if k.final {
		return
	}
	k.from = now
	_ = j.note(func(h *holding) {
		k.Expires = expires
		for i := range h.Leases {
			if h.Leases[i].ID == k.ID {
				h.Leases[i].Expires = expires
			}
		}
	})
}

// lose says that a lease is over. It stays among what is given back, where it counts as given back.
func (j *job) lose(k *kept, p *problem.Problem) {
	k.lost = true
	j.Warn(fmt.Sprintf("the lease of %s is over while the program runs: %s", k.Secret, p.Message))
}

// pause reports whether all of d passed.
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
