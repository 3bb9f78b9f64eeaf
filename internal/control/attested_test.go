package control_test

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// fleet is a world of machines (MethodFresh) and jobs (MethodJob) whose evidence is believed. At its end its ledger is judged: whatever
// a test did, the checks that run in production must find nothing.
type fleet struct {
	*controltest.World
	t          *testing.T
	alice, bob controltest.Actor
}

// newFleet founds one. change may change the methods.
func newFleet(t *testing.T, change func(attest.Methods), extra policy.Files) *fleet {
	t.Helper()
	ms := controltest.Believe(controltest.MethodFresh, controltest.MethodJob)
	if change != nil {
		change(ms)
	}
	files := maps.Clone(controltest.HistoryOptions.Extra)
	maps.Copy(files, extra)
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1, Methods: ms, Extra: files})
	f := &fleet{World: w, t: t, alice: w.Login("alice"), bob: w.Login("bob")}
	t.Cleanup(func() {
		if t.Failed() || w.Env == nil {
			return
		}
		_, found, err := w.Env.Check(context.Background())
		again, replayErr := w.Env.Replay(context.Background())
		if err != nil || replayErr != nil || len(found)+len(again) > 0 {
			t.Error(err, replayErr, found, again)
		}
	})
	return f
}

func (f *fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) refused(err error, want problem.Reason) { f.t.Helper(); wantReason(f.t, err, want) }

func (f *fleet) key() *ecdsa.PrivateKey { k, _ := controltest.Key(f.t); return k }

// prove attests by evidence that is believed.
func (f *fleet) prove(p controltest.Proof, key *ecdsa.PrivateKey) (*control.Opened, error) {
	return f.TryProve(methodOf(p), p, key)
}

func methodOf(p controltest.Proof) string {
	if p.Authority == "forge" {
		return controltest.MethodJob
	}
	return controltest.MethodFresh
}

// act has alice propose an act and bob approve it.
func (f *fleet) act(action, target string) error {
	f.t.Helper()
	p, err := f.Act(f.alice, "alice", action, target)
	if err != nil {
		return err
	}
	_, err = f.Approve(f.bob, "bob", p.Change)
	return err
}

// bring brings a bundle with another file into force.
func (f *fleet) bring(path, text string) error {
	f.t.Helper()
	files := maps.Clone(f.Files)
	files[path] = []byte(text)
	p, err := f.Propose(f.alice, "alice", files)
	if err != nil {
		return err
	}
	if _, err = f.Approve(f.bob, "bob", p.Change); err == nil {
		f.Files = files
	}
	return err
}

func (f *fleet) entries(kind string) int {
	f.t.Helper()
	n := 0
	for _, x := range f.Stored() {
		e, err := state.Decode(x.Body)
		f.must(err)
		if e.Event.Kind().Type == kind {
			n++
		}
	}
	return n
}

// entry is the type of one entry of the ledger; "": there is none.
func (f *fleet) entry(index uint64) string {
	f.t.Helper()
	all := f.Stored()
	if index >= uint64(len(all)) {
		return ""
	}
	e, err := state.Decode(all[index].Body)
	f.must(err)
	return e.Event.Kind().Type
}

// works says whether a node's session still gets its secret.
func (f *fleet) works(node controltest.Actor) error {
	_, _, err := f.Get(node, "node/seed")
	return err
}

// Evidence that is trusted on first use: the same key gets the same enrolment again until it renews, another is refused for ever, and
// after a restart too.
func TestFirstUse(t *testing.T) {
	f := newFleet(t, func(ms attest.Methods) {
		for i := range ms {
			if ms[i].Name == controltest.MethodFresh { // as a cloud's instance: renewed by possession
				ms[i].Renewal = attest.Renewal{Kind: attest.RenewByPossession, HardLifetime: true}
			}
		}
	}, nil)
	key, other := f.key(), f.key()
	first, err := f.prove(controltest.BoxProof("b1"), key)
	f.must(err)
	again, err := f.prove(controltest.BoxProof("b1"), key) // the reply was lost
	f.must(err)
	x, _ := f.Env.State().Sessions.Get(again.Index)
	if again.Identity != first.Identity || x.Root != first.Index || !again.Lifetime.Equal(first.Lifetime) {
		t.Fatalf("another enrolment: %+v after %+v", again, first)
	}
	if n := f.entries("evidence.used"); n != 1 {
		t.Fatalf("%d uses", n)
	}
	for range 2 {
		_, err = f.prove(controltest.BoxProof("b1"), other)
		f.refused(err, problem.ReasonInstanceSeen)
		if p := problem.As(err); !strings.Contains(p.Message, "tpm:b1") || !strings.Contains(p.Message, fmt.Sprint(first.Index)) {
			t.Errorf("it doesn't say which: %s", p.Message)
		}
		f.must(f.Env.Snapshot(context.Background()))
		f.Reopen()
		f.alice, f.bob = f.Login("alice"), f.Login("bob")
	}
	if _, err = f.prove(controltest.BoxProof("b2"), other); err != nil {
		t.Fatal("another instance is affected:", err)
	}
	// Years later, when nothing else is known of the machine, it still is.
	f.Advance(200 * 24 * time.Hour)
	_, err = f.prove(controltest.BoxProof("b1"), other)
	f.refused(err, problem.ReasonInstanceSeen)
}

// Once a generation later, the first key is an old one: whoever has it shows that there are two.
func TestFirstUseAfterRenewal(t *testing.T) {
	f := newFleet(t, func(ms attest.Methods) {
		for i := range ms {
			if ms[i].Name == controltest.MethodFresh {
				ms[i].Renewal = attest.Renewal{Kind: attest.RenewByPossession, HardLifetime: true}
			}
		}
	}, nil)
	key := f.key()
	o, err := f.prove(controltest.BoxProof("b1"), key)
	f.must(err)
	node := f.Enter(key, o)
	f.must(f.Env.Logout(context.Background(), f.Prove(controltest.MethodFresh, controltest.BoxProof("b2")).Caller))
	renewed(t, f.World, node)
	_, err = f.prove(controltest.BoxProof("b1"), key)
	f.refused(err, problem.ReasonForked)
	if _, held := f.Env.State().Holds.Get("node:/node/tpm/b1"); !held {
		t.Error("a forked enrolment is not held")
	}
}

// What was given back is not given again for the same evidence, and what another enrolment replaced neither.
func TestFirstUseOver(t *testing.T) {
	f := newFleet(t, nil, nil)
	key := f.key()
	o, err := f.prove(controltest.BoxProof("b1"), key)
	f.must(err)
	f.must(f.Env.Logout(context.Background(), f.Enter(key, o).Caller))
	_, err = f.prove(controltest.BoxProof("b1"), key)
	f.refused(err, problem.ReasonSessionExpired)

	second := f.key()
	_, err = f.prove(controltest.BoxProof("b2"), second)
	f.must(err)
	f.Prove(controltest.MethodFresh, controltest.MachineProof("b2", "good"))
	_, err = f.prove(controltest.BoxProof("b2"), second)
	f.refused(err, problem.ReasonTokenSpent)
}

// Evidence with an end is kept until then, and is worth nothing after it, whoever comes.
func TestOnceUntil(t *testing.T) {
	f := newFleet(t, nil, nil)
	until := f.Now().Add(5 * time.Minute).Truncate(time.Millisecond)
	p := controltest.MachineProof("m1", "good")
	p.Once, p.OnceUntil = "token-1", until
	key, other := f.key(), f.key()
	_, err := f.prove(p, key)
	f.must(err)
	_, err = f.prove(p, other)
	f.refused(err, problem.ReasonTokenSpent)
	f.Advance(6 * time.Minute)
	for _, k := range []*ecdsa.PrivateKey{key, other, f.key()} { // before and after the row is swept
		_, err = f.prove(p, k)
		f.refused(err, problem.ReasonEvidenceExpired)
	}
	p.Once, p.OnceUntil = "token-2", f.Now().Add(time.Minute)
	_, err = f.prove(p, other)
	f.must(err)
	if s := f.Env.State(); s.Uses.Has("tpm:token-1") || !s.Uses.Has("tpm:token-2") {
		t.Error("a use is not swept at its end")
	}
}

// A use is forgotten by an approved change, once, and no other use with it.
func TestForget(t *testing.T) {
	f := newFleet(t, nil, nil)
	key, other := f.key(), f.key()
	for _, name := range []string{"b1", "b2"} {
		_, err := f.prove(controltest.BoxProof(name), key1(f, name, key))
		f.must(err)
	}
	_, err := f.Act(f.alice, "alice", control.ActionForget, "tpm:b9")
	f.refused(err, problem.ReasonNotFound)
	p, err := f.Act(f.alice, "alice", control.ActionForget, "tpm:b1")
	f.must(err)
	second, err := f.Act(f.alice, "alice", control.ActionForget, "tpm:b1")
	f.must(err)
	_, err = f.Approve(f.alice, "alice", p.Change)
	f.refused(err, problem.ReasonSeparation)
	_, err = f.prove(controltest.BoxProof("b1"), other)
	f.refused(err, problem.ReasonInstanceSeen)
	_, err = f.Approve(f.bob, "bob", p.Change)
	f.must(err)
	_, err = f.Approve(f.bob, "bob", second.Change) // nothing to forget any more
	f.refused(err, problem.ReasonNotFound)
	_, err = f.prove(controltest.BoxProof("b2"), f.key())
	f.refused(err, problem.ReasonInstanceSeen)
	o, err := f.prove(controltest.BoxProof("b1"), other)
	f.must(err)
	if x, _ := f.Env.State().Sessions.Get(o.Index); x.Root != o.Index {
		t.Error("the rebuilt machine goes on with the old enrolment")
	}
	_, err = f.prove(controltest.BoxProof("b1"), key) // once more means once
	f.refused(err, problem.ReasonInstanceSeen)
}

// key1 is the key for b1, and a new one for others.
func key1(f *fleet, name string, key *ecdsa.PrivateKey) *ecdsa.PrivateKey {
	if name == "b1" {
		return key
	}
	return f.key()
}

// In production no proposer approves his own change, whatever it is about; here neither, since the bundle asks for one approval by others.
func TestForgetNeedsAnother(t *testing.T) {
	f := newFleet(t, nil, nil)
	f.Prove(controltest.MethodFresh, controltest.BoxProof("b1"))
	p, err := f.Act(f.bob, "bob", control.ActionForget, "tpm:b1")
	f.must(err)
	_, err = f.Approve(f.bob, "bob", p.Change)
	f.refused(err, problem.ReasonSeparation)
	if _, err = f.Approve(f.alice, "alice", p.Change); err != nil {
		t.Fatal(err)
	}
}

// A machine that proves to be bad is quarantined at once and with all that it has, and comes back by an approved change.
func TestQuarantine(t *testing.T) {
	f := newFleet(t, nil, nil)
	f.Put(f.alice, "node/seed", "v")
	node := f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
	beside := f.Prove(controltest.MethodFresh, controltest.MachineProof("m2", "good"))
	f.must(f.works(node))
	told := watch(t, f.World, node)
	told.hears("")
	bad := f.Evidence(controltest.MethodFresh, controltest.MachineProof("m1", "bad"), f.key(), nil)
	_, err := f.Env.Attest(context.Background(), bad)
	f.refused(err, problem.ReasonQuarantined)
	if p := problem.As(err); !strings.Contains(p.Message, `claims.boot == "good"`) || f.entry(p.Entry) != "node.quarantined" {
		t.Errorf("it doesn't say why, or where: %+v", p)
	}
	if x := told.hears(problem.ReasonQuarantined); x.Control != problem.As(err).Entry {
		t.Errorf("its agent is told by entry %d (%s), and not by that of the quarantine", x.Control, f.entry(x.Control))
	}
	f.refused(f.works(node), problem.ReasonQuarantined)
	f.must(f.works(beside))
	_, err = f.TryWorkload(node, "")
	f.refused(err, problem.ReasonQuarantined)
	for _, boot := range []string{"good", "bad"} { // it does not talk itself out of it, and is entered once
		_, err = f.prove(controltest.MachineProof("m1", boot), f.key())
		f.refused(err, problem.ReasonQuarantined)
	}
	if n := f.entries("node.quarantined"); n != 1 {
		t.Errorf("%d quarantines", n)
	}
	f.must(f.Env.Snapshot(context.Background()))
	f.Reopen()
	f.alice, f.bob = f.Login("alice"), f.Login("bob")
	f.refused(f.works(node), problem.ReasonQuarantined)
	told = watch(t, f.World, node)
	told.hears(problem.ReasonQuarantined)

	target := f.Hold("node:/node/tpm/m1")
	p, err := f.Act(f.alice, "alice", control.ActionLiftHold, target)
	f.must(err)
	_, err = f.Approve(f.alice, "alice", p.Change)
	f.refused(err, problem.ReasonSeparation)
	f.refused(f.works(node), problem.ReasonQuarantined)
	_, err = f.Approve(f.bob, "bob", p.Change)
	f.must(err)
	told.hears("")
	f.must(f.works(node))                            // its sessions come back: it was a hold, and no cutoff
	_, err = f.Env.Attest(context.Background(), bad) // by who recorded it
	f.refused(err, problem.ReasonReplayed)
	f.must(f.works(node))
	_, err = f.prove(controltest.MachineProof("m1", "bad"), f.key())
	f.refused(err, problem.ReasonQuarantined)
	told.hears(problem.ReasonQuarantined)
	f.refused(f.works(node), problem.ReasonQuarantined)
	f.refused(f.act(control.ActionLiftHold, target), problem.ReasonConflict) // that was another one
	f.must(f.act(control.ActionLiftHold, f.Hold("node:/node/tpm/m1")))
	f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
}

// Nobody has another's machine quarantined: not by another key, not by evidence of another method or machine, and not where the rule refuses.
func TestQuarantineOfOthers(t *testing.T) {
	f := newFleet(t, nil, nil)
	f.Put(f.alice, "node/seed", "v")
	node := f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
	stranger := controltest.MachineProof("m1", "bad")
	stranger.Key = controltest.Digest("another attestation key")
	keyless := controltest.MachineProof("m1", "bad")
	keyless.Key = [32]byte{}
	for what, p := range map[string]controltest.Proof{
		"another key": stranger, "no key": keyless, "a machine that nobody knows": controltest.MachineProof("m9", "bad"),
	} {
		_, err := f.prove(p, f.key())
		if !problem.Is(err, problem.ReasonPosture) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.must(f.works(node))
	f.must(f.bring("identities/proved.yaml", strings.Replace(string(f.Files["identities/proved.yaml"]), "otherwise: quarantine", "otherwise: refuse", 1)))
	_, err := f.prove(controltest.MachineProof("m1", "bad"), f.key())
	f.refused(err, problem.ReasonPosture)
	f.must(f.works(node))
	if n := f.entries("node.quarantined"); n != 0 {
		t.Errorf("%d quarantines", n)
	}
	// What was given back is nobody's enrolment.
	f.must(f.bring("identities/proved.yaml", strings.Replace(string(f.Files["identities/proved.yaml"]), "otherwise: refuse", "otherwise: quarantine", 1)))
	f.must(f.Env.Logout(context.Background(), node.Caller))
	_, err = f.prove(controltest.MachineProof("m1", "bad"), f.key())
	f.refused(err, problem.ReasonPosture)
}

// A machine under another hold is told of that one, and no quarantine is entered over it.
func TestQuarantineUnderHold(t *testing.T) {
	f := newFleet(t, nil, nil)
	f.Prove(controltest.MethodFresh, controltest.MachineProof("m1", "good"))
	_, err := revoke(f.World, f.alice, "node:/node/tpm/*", true)
	f.must(err)
	for _, boot := range []string{"bad", "good"} {
		_, err = f.prove(controltest.MachineProof("m1", boot), f.key())
		if !problem.Is(err, problem.ReasonCutoff) && !problem.Is(err, problem.ReasonHeld) {
			t.Errorf("%s: %v", boot, err)
		}
	}
	if f.entries("node.quarantined") != 0 {
		t.Error("quarantined beside a hold")
	}
}

// Evidence that is bound to nothing may be a copy: whoever shows a copy of a machine's own evidence does not have it quarantined.
func TestQuarantineByACopy(t *testing.T) {
	f := newFleet(t, func(ms attest.Methods) {
		for i := range ms {
			if m := &ms[i]; m.Name == controltest.MethodFresh {
				believed := m.Verify
				m.Unbound, m.Assurance = true, identity.Token
				m.Verify = func(in attest.Input) (attest.Result, error) {
					bound := in.Binding.Digest()
					in.Evidence = []byte(strings.Replace(string(in.Evidence), `"bound":""`, fmt.Sprintf(`"bound":"%x"`, bound), 1))
					return believed(in)
				}
			}
		}
	}, nil)
	f.Put(f.alice, "node/seed", "v")
	proof := func(boot string) controltest.Proof {
		p := controltest.BoxProof("b1")
		p.Claims["boot"] = boot
		p.Key = controltest.Digest("key of the cloud, which signs for all its machines")
		return p
	}
	key := f.key()
	o, err := f.prove(proof("good"), key)
	f.must(err)
	node := f.Enter(key, o)
	_, err = f.prove(proof("bad"), f.key())
	f.refused(err, problem.ReasonInstanceSeen)
	f.must(f.works(node))
	// Nor while its evidence may be used once more.
	f.must(f.act(control.ActionForget, "tpm:b1"))
	_, err = f.prove(proof("bad"), f.key())
	f.refused(err, problem.ReasonPosture)
	f.must(f.works(node))
	// The machine itself: the key that used it.
	_, err = f.prove(proof("good"), key)
	f.must(err)
	_, err = f.prove(proof("bad"), key)
	f.refused(err, problem.ReasonQuarantined)
	f.refused(f.works(node), problem.ReasonQuarantined)
}

// Nor by a token that a platform hands out beforehand, which somebody took before its machine used it: he would say himself how he boots.
func TestQuarantineByAGivenToken(t *testing.T) {
	f := newFleet(t, func(ms attest.Methods) {
		for i := range ms {
			if ms[i].Name == controltest.MethodFresh {
				ms[i].Given = true
			}
		}
	}, nil)
	f.Put(f.alice, "node/seed", "v")
	proof := func(token, boot string) controltest.Proof {
		p := controltest.MachineProof("m1", boot)
		p.Once = token
		return p
	}
	key := f.key()
	o, err := f.prove(proof("first", "good"), key)
	f.must(err)
	node := f.Enter(key, o)
	_, err = f.prove(proof("second", "bad"), f.key())
	f.refused(err, problem.ReasonPosture)
	f.must(f.works(node))
	_, err = f.prove(proof("first", "bad"), key) // the machine itself
	f.refused(err, problem.ReasonQuarantined)
	f.refused(f.works(node), problem.ReasonQuarantined)
}
