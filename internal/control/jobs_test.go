package control_test

import (
	"context"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// works is a world with a CI service, and a secret for its jobs.
func works(t *testing.T, method string) (*controltest.World, *controltest.Service) {
	t.Helper()
	s := controltest.NewService(t, method)
	w := controltest.New(t, controltest.Options{Extra: s.Files(t)})
	w.Put(w.Login("alice"), "ci/key", "value")
	t.Cleanup(func() { lawful(t, w) })
	return w, s
}

// lawful has the checker of the invariants judge all that was entered.
func lawful(t *testing.T, w *controltest.World) {
	t.Helper()
	if w.Env == nil {
		return
	}
	programs := w.Programs()
	c := invariant.New(invariant.Options{Genesis: w.Genesis, Program: func(d state.Digest) *policy.Program { return programs[d] }})
	for i, x := range w.Stored() {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range c.Feed(uint64(i), e) {
			t.Error(v)
		}
	}
}

func refusedFor(t *testing.T, what string, err error, want problem.Reason) {
	t.Helper()
	if !problem.Is(err, want) {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// Two jobs of one repository are one identity, and each goes its own way: they renew in any order, have leases of their own, and the end of
// one is not that of the other.
func TestJobsOfOneIdentity(t *testing.T) {
	w, s := works(t, "gitlab")
	jobs := [2]controltest.Actor{w.Job(s, time.Hour), w.Job(s, time.Hour)}
	if jobs[0].Opened.Identity != jobs[1].Opened.Identity {
		t.Fatal(jobs[0].Opened.Identity, jobs[1].Opened.Identity)
	}
	var leases [2]uint64
	for i := range jobs {
		_, r, err := w.Get(jobs[i], "ci/key")
		if err != nil {
			t.Fatal(err)
		}
		leases[i] = r.Lease
	}
	if leases[0] == leases[1] {
		t.Error("one lease for two jobs")
	}
	first := jobs[0]
	for _, i := range []int{1, 0, 0, 1, 0, 1, 1} {
		jobs[i] = w.Renewed(jobs[i])
		if _, err := w.Env.RenewLease(context.Background(), jobs[i].Caller, leases[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Env.Logout(context.Background(), jobs[0].Caller); err != nil {
		t.Fatal(err)
	}
	key, _ := controltest.Key(t)
	_, err := w.Renew(jobs[0], key)
	refusedFor(t, "a job that gave its session back", err, problem.ReasonSessionExpired)
	jobs[1] = w.Renewed(jobs[1])
	if _, _, err := w.Get(jobs[1], "ci/key"); err != nil {
		t.Error(err)
	}
	// A copy of an old session is noticed, and stops nobody else.
	_, err = w.Renew(first, key)
	refusedFor(t, "a session that was renewed by another key", err, problem.ReasonForked)
	w.Renewed(jobs[1])
}

// Where nobody looks at the token again, the enrolment ends with it; where each renewal brings a new one, with what the rule says.
func TestJobEndsWithItsToken(t *testing.T) {
	w, s := works(t, "gitlab")
	job := w.Job(s, 15*time.Minute)
	if left := job.Opened.Lifetime.Sub(w.Now()); left > 15*time.Minute || left < 14*time.Minute {
		t.Errorf("the enrolment has %s left, the token 15 minutes", left)
	}
	w.Advance(9 * time.Minute)
	job = w.Renewed(job)
	if !job.Opened.Expires.Equal(job.Opened.Lifetime) {
		t.Errorf("the session ends at %s, the token at %s", job.Opened.Expires, job.Opened.Lifetime)
	}
	w.Advance(7 * time.Minute)
	key, _ := controltest.Key(t)
	_, err := w.Renew(job, key)
	refusedFor(t, "after the token", err, problem.ReasonLifetimeOver)

	w, s = works(t, "github")
	job = w.Job(s, 5*time.Minute)
	if left := job.Opened.Lifetime.Sub(w.Now()); left < 5*time.Hour {
		t.Errorf("the enrolment has %s left", left)
	}
	if left := job.Opened.Expires.Sub(w.Now()); left > 5*time.Minute {
		t.Errorf("the session has %s left, the token 5 minutes", left)
	}
	_, err = w.Renew(job, key)
	refusedFor(t, "without a token", err, problem.ReasonInvalid)
}

// A job's leases end with its session, and follow the next ones: so of a job that is killed nothing is left when its session is over.
func TestLeasesOfJobs(t *testing.T) {
	for _, method := range []string{"gitlab", "github"} {
		t.Run(method, func(t *testing.T) {
			w, s := works(t, method)
			next := func(a controltest.Actor) controltest.Actor {
				if method == "github" {
					return w.Job(s, 5*time.Minute)
				}
				return w.Renewed(a)
			}
			job := w.Job(s, 30*time.Minute)
			_, r, err := w.Get(job, "ci/key")
			if err != nil {
				t.Fatal(err)
			}
			if !r.Expires.Equal(job.Opened.Expires) {
				t.Errorf("the lease ends at %s, the session at %s", r.Expires, job.Opened.Expires)
			}
			renew := func() time.Time {
				t.Helper()
				l, err := w.Env.RenewLease(context.Background(), job.Caller, r.Lease)
				if err != nil {
					t.Fatal(err)
				}
				return l.Expires
			}
			if at := renew(); !at.Equal(r.Expires) {
				t.Errorf("without a new session the lease lives until %s, not %s", at, r.Expires)
			}
			w.Advance(6 * time.Minute)
			job = next(job)
			want := job.Opened.Expires
			if want.Before(r.Expires) {
				want = r.Expires // what was given is not taken back
			}
			if at := renew(); !at.Equal(want) {
				t.Errorf("the lease ends at %s, the newest session at %s", at, job.Opened.Expires)
			}
			w.Advance(11 * time.Minute)
			alice := w.Login("alice")
			all, _, err := w.Env.ListLeases(context.Background(), alice.Caller, job.Opened.Identity.Path(), control.Page{})
			if err != nil || len(all) != 1 || all[0].State != "expired" {
				t.Errorf("%+v, %v", all, err)
			}
		})
	}
}
