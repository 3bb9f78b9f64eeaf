package control_test

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
)

// reasonOf is the reason of a refusal, or "".
func reasonOf(err error) problem.Reason {
	if err == nil {
		return ""
	}
	return problem.As(err).Reason
}

// What Appraise says is what Attest then says, whatever was done before; and saying it enters nothing and spends nothing.
func TestAppraiseSaysWhatAttestSays(t *testing.T) {
	f := newForge(t)
	keys := map[string]*ecdsa.PrivateKey{} // by whose they are
	keyFor := func(who string) *ecdsa.PrivateKey {
		if keys[who] == nil {
			keys[who] = f.key()
		}
		return keys[who]
	}
	soon := f.Now().Add(20 * time.Minute).Truncate(time.Millisecond)
	seen := map[problem.Reason]int{}
	ctx := context.Background()
	check := func(rt *rapid.T) {
		name := rapid.SampledFrom([]string{"m1", "m2"}).Draw(rt, "name")
		var p controltest.Proof
		switch rapid.SampledFrom([]string{"machine", "box", "job", "nobody"}).Draw(rt, "what") {
		case "machine":
			p = controltest.MachineProof(name, rapid.SampledFrom([]string{"good", "good", "bad"}).Draw(rt, "boot"))
		case "box":
			p = controltest.BoxProof("b" + name)
			p.Claims["boot"] = rapid.SampledFrom([]string{"good", "good", "bad"}).Draw(rt, "boot")
		case "job":
			p = controltest.JobProof(name, soon)
			if rapid.IntRange(0, 5).Draw(rt, "old") == 0 {
				p = controltest.JobProof("old", f.Now().Add(-time.Second).Truncate(time.Millisecond))
			}
		default:
			p = controltest.MachineProof(name, "good")
			p.Claims = map[string]any{"boot": "good"}
		}
		if rapid.IntRange(0, 5).Draw(rt, "stranger") == 0 {
			p.Key = controltest.Digest("a stranger's")
		}
		key := keyFor(fmt.Sprint(p.Claims["name"], p.Claims["project"], rapid.IntRange(0, 2).Draw(rt, "key")))
		if rapid.IntRange(0, 9).Draw(rt, "seen") == 0 {
			key = keyFor("of whoever comes first")
		}
		r := f.Evidence(methodOf(p), p, key, nil)
		size, root := f.Env.Ledger().Size(), snapshot(t, f.World)
		said, err := f.Env.Appraise(ctx, r)
		again, errAgain := f.Env.Appraise(ctx, r)
		if f.Env.Ledger().Size() != size || snapshot(t, f.World) != root {
			rt.Fatal("it entered something")
		}
		if reasonOf(err) != reasonOf(errAgain) || (err == nil && fmt.Sprint(said.Problem, said.Used) != fmt.Sprint(again.Problem, again.Used)) {
			rt.Fatalf("it says this and that: %+v %v, %+v %v", said, err, again, errAgain)
		}
		o, done := f.Env.Attest(ctx, r)
		want := reasonOf(err)
		if err == nil && said.Problem != nil {
			want = said.Problem.Reason
		}
		if got := reasonOf(done); got != want {
			rt.Fatalf("it said %q (%+v), and Attest %q: %v", want, said, got, done)
		}
		seen[want]++
		if done == nil {
			if o.Identity != said.Identity || o.Assurance != said.Assurance {
				rt.Fatalf("it said %+v, and it is %+v", said, o)
			}
			if late, err := f.Env.Appraise(ctx, r); err != nil || late.Problem == nil || late.Problem.Reason != problem.ReasonReplayed {
				rt.Fatalf("of a spent challenge: %+v %v", late, err)
			}
			switch rapid.IntRange(0, 9).Draw(rt, "then") {
			case 0:
				_ = f.Env.Logout(ctx, f.Enter(key, o).Caller)
			case 1:
				_, _ = tryRenew(t, f.World, f.Enter(key, o))
			}
		}
		// What is held is let go again, so that all cases come.
		for _, scope := range []string{"node:/node/tpm/m1", "node:/node/tpm/m2", "node:/node/tpm/bm1", "node:/node/tpm/bm2"} {
			if _, held := f.Env.State().Holds.Get(scope); held && rapid.Bool().Draw(rt, "lift") {
				f.must(f.act(control.ActionLiftHold, f.Hold(scope)))
			}
		}
		if f.Env.State().Uses.Has("tpm:bm1") && rapid.IntRange(0, 9).Draw(rt, "forget") == 0 {
			f.must(f.act(control.ActionForget, "tpm:bm1"))
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		for range 6 {
			check(rt)
		}
	})
	for _, want := range []problem.Reason{
		"", problem.ReasonQuarantined, problem.ReasonPosture, problem.ReasonInstanceSeen, problem.ReasonTokenSpent, problem.ReasonNoIdentity, problem.ReasonKeySeen,
		problem.ReasonEvidenceExpired,
	} {
		if seen[want] == 0 {
			t.Errorf("%q never came: %v", want, seen)
		}
	}
}

// An appraisal says what was proved, of what use it is, and whether it was used.
func TestAppraisal(t *testing.T) {
	f := newFleet(t, nil, nil)
	ctx := context.Background()
	r := f.Evidence(controltest.MethodFresh, controltest.BoxProof("b1"), f.key(), nil)
	a, err := f.Env.Appraise(ctx, r)
	f.must(err)
	if a.Identity.Path() != "/node/tpm/b1" || a.Rule != "machines" || a.Once != "tpm:b1" || a.Used || a.Problem != nil || a.Anchor != "tpm:fleet" || a.Claims["name"] != "b1" {
		t.Errorf("%+v", a)
	}
	_, err = f.Env.Attest(ctx, r)
	f.must(err)
	a, err = f.Env.Appraise(ctx, f.Evidence(controltest.MethodFresh, controltest.BoxProof("b1"), f.key(), nil))
	f.must(err)
	if !a.Used || a.Problem == nil || a.Problem.Reason != problem.ReasonInstanceSeen || a.Identity.Path() != "/node/tpm/b1" {
		t.Errorf("%+v", a)
	}
	// Who proves nothing is told what Attest tells.
	bad := f.Evidence(controltest.MethodFresh, controltest.BoxProof("b1"), f.key(), nil)
	bad.CSR = controltest.CSR(t, f.key())
	_, err = f.Env.Appraise(ctx, bad)
	f.refused(err, problem.ReasonBadProof)
	_, err = f.Env.Attest(ctx, bad)
	f.refused(err, problem.ReasonBadProof)
	bad.Challenge[0]++
	_, err = f.Env.Appraise(ctx, bad)
	f.refused(err, problem.ReasonChallengeForeign)
	bad.Method = "magic"
	_, err = f.Env.Appraise(ctx, bad)
	f.refused(err, problem.ReasonUnknownMethod)
}
