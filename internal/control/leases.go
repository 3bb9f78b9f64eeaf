package control

import (
	"context"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// LeaseChange is the result of renewing or returning a lease.
type LeaseChange struct {
	Index   uint64
	Expires time.Time
	Proof   *ledger.Proof
}

// ownLease finds a live lease of the session's identity.
func (t *turn) ownLease(x *state.Session, id uint64, action string) (*state.Lease, error) {
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: action, target: strconv.FormatUint(id, 10), session: x}
	}
	l, ok := t.s.Leases.Get(id)
	if !ok || l.Identity != x.Identity || l.Node != x.Node || l.Returned != 0 {
		return nil, refuse(problem.ReasonNotFound, "%s has no lease %d", x.Identity, id)
	}
	if scope, dead := leaseRevoked(t.s, l); dead {
		return nil, refuse(problem.ReasonCutoff, "lease %d was revoked (%s)", id, scope)
	}
	if t.now >= l.Expires {
		return nil, refuse(problem.ReasonExpired, "lease %d expired at %s", id, l.Expires)
	}
	return l, nil
}

// RenewLease prolongs a lease by its lifetime, never beyond its maximum, and that of a job never beyond the session that asks. It is
// decided like a read.
func (e *Environment) RenewLease(ctx context.Context, c Caller, id uint64) (*LeaseChange, error) {
	out, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (*LeaseChange, error) {
		x, err := t.session(c)
		if err != nil {
			return nil, err
		}
		l, err := t.ownLease(x, id, "lease.renew")
		if err != nil {
			return nil, err
		}
		grant, err := t.permit(x, policy.ReadSecret, l.Secret, l.Purpose)
		if err != nil {
			return nil, err
		}
		if sec, ok := t.s.Secrets.Get(l.Secret); ok {
			if v := sec.Find(l.Version); v == nil || (v.StateAt(t.now) != state.Current && v.StateAt(t.now) != state.Retiring) {
				return nil, &denied{problem: problem.New(problem.ReasonLifecycle, "version %d of %s is no longer handed out", l.Version, l.Secret), action: "lease.renew", target: l.Secret, session: x}
			}
		}
		ttl, most := t.leaseTimes(l.Secret, grant)
		expires := leaseEnd(x, min(t.now.Add(ttl), l.Max, l.Created.Add(most)))
		if expires <= l.Expires {
			expires = l.Expires // at its maximum, or at the job's session's end: renewing changes nothing, and says so by the time
		}
		index, err := t.enter(&state.LeaseRenewed{Lease: id, Expires: expires, Actor: actorOf(x), Ruling: t.ruling(grant.Grant)})
		return &LeaseChange{Index: index, Expires: expires.Time()}, err
	})
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	return out, nil
}

// ReturnLease gives a lease back.
func (e *Environment) ReturnLease(ctx context.Context, c Caller, id uint64) (*LeaseChange, error) {
	out, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (*LeaseChange, error) {
		x, err := liveSession(t.s, c, t.now) // also a held or cut-off identity may give back
		if err != nil {
			return nil, err
		}
		l, ok := t.s.Leases.Get(id)
		if !ok || l.Identity != x.Identity || l.Node != x.Node || l.Returned != 0 {
			return nil, &denied{problem: problem.New(problem.ReasonNotFound, "%s has no lease %d", x.Identity, id), action: "lease.return", target: strconv.FormatUint(id, 10), session: x}
		}
		index, err := t.enter(&state.LeaseReturned{Lease: id, Actor: actorOf(x)})
		return &LeaseChange{Index: index, Expires: t.now.Time()}, err
	})
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	return out, nil
}

// LeaseView is a lease with its state as of now.
type LeaseView struct {
	*state.Lease
	State string // active | expired | returned | revoked
}

// ListLeases lists the caller's own leases or, for who has the duty audit or revoke, anybody's.
func (e *Environment) ListLeases(_ context.Context, c Caller, of string, page Page) ([]LeaseView, string, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, "", err
	}
	if of == "" {
		of = x.Identity
	}
	if of != x.Identity {
		if err := e.mayInspect(x, c); err != nil {
			return nil, "", err
		}
	}
	var after uint64
	if page.After != "" {
		if after, err = strconv.ParseUint(page.After, 10, 64); err != nil {
			return nil, "", problem.New(problem.ReasonInvalid, "the page token is not one of ours")
		}
	}
	var out []LeaseView
	next, scanned := "", 0
	last := after
	s.Leases.From(after, func(id uint64, l *state.Lease) bool {
		if id == after && after != 0 {
			return true
		}
		if len(out) == page.size() || scanned == 10*listScan {
			next = strconv.FormatUint(last, 10)
			return false
		}
		scanned++
		last = id
		if of == "*" || l.Identity == of {
			out = append(out, LeaseView{l, leaseState(s, l, now)})
		}
		return true
	})
	return out, next, nil
}

func leaseState(s *state.State, l *state.Lease, now state.Millis) string {
	if _, dead := leaseRevoked(s, l); dead {
		return "revoked"
	}
	if l.Returned != 0 {
		return "returned"
	}
	if now >= l.Expires {
		return "expired"
	}
	return "active"
}

// mayInspect lets operators who audit or revoke see what is not their own. A refusal is counted.
func (e *Environment) mayInspect(x *state.Session, c Caller) error {
	prog, err := e.inForce(e.log.State())
	if err != nil {
		return err
	}
	if p := mayInspect(prog, x); p != nil {
		return e.unanswered(x, c, state.At(e.cfg.Now()), p)
	}
	return nil
}

func mayInspect(prog *policy.Program, x *state.Session) *problem.Problem {
	if _, p := dutyOf(prog, x, policy.DutyAudit); p == nil {
		return nil
	}
	_, p := dutyOf(prog, x, policy.DutyRevoke)
	return p
}

func bigEndian(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
