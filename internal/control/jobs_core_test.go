package control_test

import (
	"context"
	"crypto/ecdsa"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// jobReads lets jobs read what nodes do, so that a session of one can be seen to work.
const jobReads = `apiVersion: bailment/v1
kind: Grant
metadata: {name: jobs-read}
spec:
  actions: [secret.read]
  identities: [/ci/*]
  secrets: [node/*]
  purposes: [runtime]
`

func newForge(t *testing.T) *fleet {
	t.Helper()
	f := newFleet(t, nil, policy.Files{"grants/jobs.yaml": []byte(jobReads)})
	f.Put(f.alice, "node/seed", "v")
	return f
}

// token is the evidence of a job, good for longer than any enrolment here.
func (f *fleet) token(name string) controltest.Proof {
	p := controltest.JobProof(name, f.Now().Add(24*time.Hour).Truncate(time.Millisecond))
	p.NotAfter = time.Time{}
	return p
}

// job is a new job of the one repository.
func (f *fleet) job(name string) (controltest.Proof, *ecdsa.PrivateKey, controltest.Actor) {
	f.t.Helper()
	p, key := f.token(name), f.key()
	o, err := f.prove(p, key)
	f.must(err)
	return p, key, f.Enter(key, o)
}

// Jobs of one repository that run at the same time are one identity, and know nothing of each other.
func TestParallelJobs(t *testing.T) {
	f := newForge(t)
	proofA, keyA, a := f.job("a")
	proofB, keyB, b := f.job("b")
	if a.Opened.Identity != b.Opened.Identity {
		t.Fatal("two identities")
	}
	again := func(p controltest.Proof, key *ecdsa.PrivateKey) controltest.Actor {
		t.Helper()
		o, err := f.prove(p, key)
		f.must(err)
		return f.Enter(key, o)
	}
	// Each repeats and renews, in turns, a few generations long.
	a, b = again(proofA, keyA), again(proofB, keyB)
	for range 3 {
		a = renewed(t, f.World, a)
		b = renewed(t, f.World, b)
		f.must(f.works(a))
		f.must(f.works(b))
	}
	xa, _ := f.Env.State().Sessions.Get(a.Opened.Index)
	xb, _ := f.Env.State().Sessions.Get(b.Opened.Index)
	if xa.Counter != 3 || xb.Counter != 3 || xa.Root == xb.Root {
		t.Errorf("%+v\n%+v", xa, xb)
	}
	// One ends: the other goes on.
	f.must(f.Env.Logout(context.Background(), a.Caller))
	_, err := tryRenew(t, f.World, a)
	f.refused(err, problem.ReasonSessionExpired)
	f.refused(f.works(a), problem.ReasonSessionExpired)
	f.must(f.works(b))
	b = renewed(t, f.World, b)
	// A third begins after that.
	_, _, c := f.job("c")
	f.must(f.works(c))
	f.must(f.works(b))
	if f.Env.State().Holds.Len() != 0 {
		t.Error("somebody is held")
	}
}

// A token is one key's; that key gets the same job again until it has renewed or given back.
func TestJobEvidence(t *testing.T) {
	f := newForge(t)
	p, key, a := f.job("a")
	_, err := f.prove(p, f.key())
	f.refused(err, problem.ReasonTokenSpent)
	again, err := f.prove(p, key)
	f.must(err)
	if x, _ := f.Env.State().Sessions.Get(again.Index); x.Root != a.Opened.Index || !again.Lifetime.Equal(a.Opened.Lifetime) {
		t.Errorf("another job: %+v", x)
	}
	renewed(t, f.World, f.Enter(key, again)) // whichever reply arrived
	_, err = f.prove(p, key)
	f.refused(err, problem.ReasonTokenSpent)

	p, key, b := f.job("b")
	o, err := f.prove(p, key)
	f.must(err)
	f.must(f.Env.Logout(context.Background(), f.Enter(key, o).Caller))
	_, err = f.prove(p, key)
	f.refused(err, problem.ReasonSessionExpired)
	_, err = tryRenew(t, f.World, b) // the other reply to the same request: given back with it
	f.refused(err, problem.ReasonSessionExpired)

	p, key = controltest.JobProof("c", f.Now().Add(10*time.Minute).Truncate(time.Millisecond)), f.key()
	_, err = f.prove(p, key)
	f.must(err)
	f.Advance(9 * time.Minute)
	if _, err = f.prove(p, key); err != nil {
		t.Errorf("within its ten minutes: %v", err)
	}
	f.Advance(2 * time.Minute)
	_, err = f.prove(p, key)
	f.refused(err, problem.ReasonEvidenceExpired)
}

// A session is renewed by one key: a second one shows that two have the first. Nobody is held for it, since that would stop the others.
func TestForkedJob(t *testing.T) {
	f := newForge(t)
	_, _, other := f.job("other")
	for what, fork := range map[string]func(proof controltest.Proof, key *ecdsa.PrivateKey, a controltest.Actor) (heir, thief controltest.Actor){
		"of one session": func(_ controltest.Proof, _ *ecdsa.PrivateKey, a controltest.Actor) (heir, thief controltest.Actor) {
			return renewed(t, f.World, a), a
		},
		"of two replies to its evidence": func(p controltest.Proof, key *ecdsa.PrivateKey, a controltest.Actor) (heir, thief controltest.Actor) {
			o, err := f.prove(p, key)
			f.must(err)
			return renewed(t, f.World, f.Enter(key, o)), a
		},
		"of two replies the other way round": func(p controltest.Proof, key *ecdsa.PrivateKey, a controltest.Actor) (heir, thief controltest.Actor) {
			o, err := f.prove(p, key)
			f.must(err)
			return renewed(t, f.World, a), f.Enter(key, o)
		},
		"of two replies to a renewal": func(_ controltest.Proof, _ *ecdsa.PrivateKey, a controltest.Actor) (heir, thief controltest.Actor) {
			key := f.key()
			one, err := f.Renew(a, key)
			f.must(err)
			two, err := f.Renew(a, key)
			f.must(err)
			return renewed(t, f.World, f.Enter(key, two)), f.Enter(key, one)
		},
	} {
		p, key, a := f.job(what)
		heir, thief := fork(p, key, a)
		_, err := tryRenew(t, f.World, thief)
		if !problem.Is(err, problem.ReasonForked) {
			t.Errorf("%s: %v", what, err)
		}
		if err := f.works(heir); err != nil {
			t.Errorf("%s: the heir: %v", what, err)
		}
		if _, err := tryRenew(t, f.World, heir); err != nil {
			t.Errorf("%s: the heir: %v", what, err)
		}
		f.Reopen()
		f.alice, f.bob = f.Login("alice"), f.Login("bob")
	}
	f.must(f.works(other))
	if f.Env.State().Holds.Len() != 0 {
		t.Error("somebody is held")
	}
}

// A job ends at its lifetime, however often it was renewed and whatever a later bundle allows.
func TestJobLifetime(t *testing.T) {
	f := newForge(t)
	_, _, a := f.job("a")
	end := a.Opened.Lifetime
	if d := end.Sub(f.Now()); d <= 0 || d > 2*time.Hour {
		t.Fatalf("a lifetime of %s", d)
	}
	longer := string(f.Files["identities/proved.yaml"])
	f.must(f.bring("identities/proved.yaml", longer[:len(longer)-len("lifetime: 2h}\n")]+"lifetime: 4h}\n"))
	for f.Now().Before(end) {
		next, err := tryRenew(t, f.World, a)
		f.must(err)
		a = next
		if a.Opened.Lifetime != end || a.Opened.Expires.After(end) {
			t.Fatalf("until %s, of a job until %s", a.Opened.Expires, end)
		}
		f.Advance(a.Opened.Expires.Sub(f.Now()))
	}
	_, err := tryRenew(t, f.World, a)
	f.refused(err, problem.ReasonLifetimeOver)
	// Long after it, nothing is known of it any more.
	f.Advance(3 * time.Hour)
	for range 40 { // each entry sweeps a few rows
		f.Login("alice")
	}
	_, err = tryRenew(t, f.World, a)
	f.refused(err, problem.ReasonSessionUnknown)
}

// A renewal by possession is for methods that declare it, and by the rules in force.
func TestJobRenewalByTheRules(t *testing.T) {
	f := newForge(t)
	machine := f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
	_, err := tryRenew(t, f.World, machine)
	f.refused(err, problem.ReasonInvalid)
	_, _, a := f.job("a")
	rules := string(f.Files["identities/proved.yaml"])
	f.must(f.bring("identities/proved.yaml", rules[:len(rules)-len("lifetime: 2h}\n")]+"when: claims.project_id == \"43\"}\n"))
	_, err = tryRenew(t, f.World, a)
	f.refused(err, problem.ReasonNoIdentity)
	f.refused(f.works(a), problem.ReasonNoIdentity)
	f.must(f.bring("identities/proved.yaml", rules))
	f.must(f.works(renewed(t, f.World, a)))
	// A key that another identity used opens nothing.
	_, err = f.Renew(a, machine.Key)
	f.refused(err, problem.ReasonForked)
	p := f.token("b")
	_, err = f.prove(p, machine.Key)
	f.refused(err, problem.ReasonKeySeen)
	if f.Env.State().Uses.Has(state.Digest{}.String()) || f.Env.State().Uses.Has("gitlab:b") {
		t.Error("a refused attestation used its evidence")
	}
	_, err = f.prove(p, f.key())
	f.must(err)
}
