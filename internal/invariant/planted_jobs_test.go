package invariant_test

import (
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

// work is a history in which two jobs of one identity each get a lease and renew their sessions, and one of them its lease.
func work(t *testing.T, method string) *real {
	t.Helper()
	s := controltest.NewService(t, method)
	w := controltest.New(t, controltest.Options{Extra: s.Files(t)})
	w.Put(w.Login("alice"), "ci/key", "value")
	other, job := w.Job(s, time.Hour), w.Job(s, time.Hour)
	_, r, err := w.Get(job, "ci/key")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Get(other, "ci/key"); err != nil {
		t.Fatal(err)
	}
	w.Advance(time.Minute)
	if method == "gitlab" {
		w.Renewed(other)
		job = w.Renewed(job)
	} else {
		job = w.Job(s, time.Hour)
	}
	if _, err := w.Env.RenewLease(t.Context(), job.Caller, r.Lease); err != nil {
		t.Fatal(err)
	}
	return record(t, w)
}

// jobRenewal is a legal renewal of the newest session of the job that renewed its lease.
func (s *scene) jobRenewal() *state.SessionOpened {
	from := last[*state.LeaseRenewed](s, nil).Actor.Session
	e := s.fresh(last(s, func(i uint64, _ *state.SessionOpened) bool { return i == from }))
	e.Via, e.From, e.Root, e.Counter, e.Evidence = "renew", from, rootOf(e, from), e.Counter+1, state.Digest{}
	return e
}

func rootOf(x *state.SessionOpened, index uint64) uint64 {
	if x.Root == 0 {
		return index
	}
	return x.Root
}

// jobRelease is a legal first release to that job.
func (s *scene) jobRelease() *state.SecretReleased {
	e := last(s, func(_ uint64, e *state.SecretReleased) bool { return strings.HasPrefix(e.Actor.Identity, "/ci/") })
	by := last[*state.LeaseRenewed](s, nil)
	x := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == by.Actor.Session })
	e.Actor, e.Lease, e.Expires, e.Max, e.Root = by.Actor, 0, x.Expires, x.Expires+minute, rootOf(x, by.Actor.Session)
	return e
}

// leaseRenewal is a legal renewal of its lease, in the session that is last.
func (s *scene) leaseRenewal() *state.LeaseRenewed {
	e := last[*state.LeaseRenewed](s, nil)
	x := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == e.Actor.Session })
	e.Expires = x.Expires
	return e
}

// attested is the newest attestation of a job with its use, to be entered again as another one.
func (s *scene) attested() (*state.SessionOpened, *state.EvidenceUsed) {
	x := s.fresh(last(s, func(_ uint64, e *state.SessionOpened) bool {
		return e.Via == "attest" && strings.HasPrefix(e.Identity, "/ci/")
	}))
	u := last[*state.EvidenceUsed](s, nil)
	u.Use, u.Key = x.Method+":another", x.Key
	return x, u
}

var jobPlants = []struct {
	planted
	method string
}{
	{planted{invariant.Attested, "a renewal of a session that never was", func(s *scene) {
		e := s.jobRenewal()
		e.From = 1 << 40
		s.add(e)
	}, "has no session"}, "gitlab"},
	{planted{invariant.Attested, "a renewal with more assurance", func(s *scene) {
		e := s.jobRenewal()
		e.Assurance = "platform"
		s.add(e)
	}, "it does not carry what session"}, "gitlab"},
	{planted{invariant.Attested, "a renewal that prolongs the job", func(s *scene) {
		e := s.jobRenewal()
		e.Lifetime += 1000
		s.add(e)
	}, "it prolongs the job from"}, "gitlab"},
	{planted{invariant.Attested, "a renewal without evidence where there is some", func(s *scene) { s.add(s.jobRenewal()) }, "is renewed by fresh evidence"}, "github"},
	{planted{invariant.Attested, "a renewal of what was given back", func(s *scene) {
		e := s.jobRenewal()
		s.add(&state.SessionClosed{Session: e.From, Actor: last[*state.LeaseRenewed](s, nil).Actor})
		s.add(e)
	}, "was given back"}, "gitlab"},
	{planted{invariant.Attested, "a renewal by a second key", func(s *scene) {
		first := s.jobRenewal()
		s.add(first)
		e := *first
		s.fresh(&e)
		s.add(&e)
	}, "was renewed by another key"}, "gitlab"},
	{planted{invariant.Attested, "a session that outlives its token", func(s *scene) {
		x, u := s.attested()
		u.Session = s.add(x)
		u.Until = x.Expires - 1000
		s.add(u)
	}, "after the evidence at"}, "github"},
	{planted{invariant.Attested, "an enrolment that outlives its token", func(s *scene) {
		x, u := s.attested()
		u.Session = s.add(x)
		u.Until = x.Lifetime - 1000
		s.add(u)
	}, "may be renewed until"}, "gitlab"},
	{planted{invariant.Bounded, "an enrolment without end", func(s *scene) {
		x, _ := s.attested()
		x.Lifetime = 0
		s.add(x)
	}, "a job's enrolment has an end"}, "github"},
	{planted{invariant.Bounded, "a lease that outlives the job's session", func(s *scene) {
		e := s.jobRelease()
		e.Expires++
		s.add(e)
	}, "of a job ends at"}, "gitlab"},
	{planted{invariant.Bounded, "a lease renewed beyond the job's session", func(s *scene) {
		e := s.leaseRenewal()
		e.Expires++
		s.add(e)
	}, "of a job ends at"}, "github"},
	{planted{invariant.Bounded, "a lease renewed by a session that ends before", func(s *scene) {
		e := s.leaseRenewal()
		older := last(s, func(_ uint64, x *state.SecretReleased) bool { return x.Actor.Identity == e.Actor.Identity })
		e.Actor = older.Actor
		e.Expires++
		s.add(e)
	}, "of a job ends at"}, "github"},
}

func TestJobPlants(t *testing.T) {
	histories := map[string]*real{"github": work(t, "github"), "gitlab": work(t, "gitlab")}
	for method, r := range histories {
		t.Run("legal/"+method, func(t *testing.T) {
			s := newScene(t, r)
			s.add(s.leaseRenewal())
			s.add(s.jobRelease())
			x, u := s.attested()
			u.Session = s.add(x)
			s.add(u)
			if method == "gitlab" {
				s.add(s.jobRenewal())
			}
			for _, v := range s.found {
				t.Error(v)
			}
		})
	}
	said := map[string]bool{}
	for _, p := range jobPlants {
		t.Run(string(p.invariant)+"/"+p.what, func(t *testing.T) {
			mine := *histories[p.method]
			s := newScene(t, &mine)
			p.plant(s)
			found := false
			for _, v := range s.found {
				found = found || v.Invariant == p.invariant && strings.Contains(v.Detail, p.says)
				said[v.Detail] = true
			}
			if !found {
				t.Errorf("not found (%q); only %v", p.says, s.found)
			}
		})
	}
	unsaid(t, said, "jobs.go")
}
