package state

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
)

// recoveryOf is a recovery of the bundle in force by two, after three days.
func (f *feeder) recoveryOf() ceremony.Recovery {
	return ceremony.Recovery{
		Scope: ceremony.Scope{Environment: "e"}, Base: f.s.Bundle.String(), New: Digest{7}.String(), Operators: Digest{8}.String(), Required: 2,
		Delay: 72 * time.Hour, Nonce: fmt.Sprintf("%032x", f.s.Next), Expires: f.now.Time().Add(time.Hour).Truncate(time.Second), Reason: "lost",
		Before: []string{"alice propose SHA256:a"}, After: []string{"dora propose SHA256:d"},
	}
}

func started(f *feeder, r ceremony.Recovery) *RecoveryStarted {
	return &RecoveryStarted{Text: r.Text(), Signatures: []Signature{{Person: "rita"}, {Person: "sam"}}, Until: f.now.Add(r.Delay)}
}

func (f *feeder) recovers() *RecoveryStarted { return started(f, f.recoveryOf()) }

func (f *feeder) carriedOut(recovery uint64) *BundleInForce {
	return &BundleInForce{Generation: f.s.Generation + 1, Manifest: Digest{7}, Previous: f.s.Bundle, How: ByRecovery, Recovery: recovery}
}

func TestRecoveryOfState(t *testing.T) {
	f := newFeeder(t, 1)
	if f.apply(f.recovers()) == nil {
		t.Error("a recovery began before its protocol was raised")
	}
	f = rolling(t)
	if f.s.RecoveryDue(f.now + 1e12) {
		t.Error("there is none, and it is due")
	}
	at := f.must(f.recovers())
	r := f.s.Recovery()
	if r == nil || r.Index != at || r.Manifest != (Digest{7}) || r.Operators != (Digest{8}) || r.Base != f.s.Bundle || !r.SignedBy("sam") || r.SignedBy("tess") || r.Reason != "lost" {
		t.Fatalf("%+v", r)
	}
	if again, err := Restore(snapshotOf(t, f.s)); err != nil || !bytes.Equal(snapshotOf(t, again), snapshotOf(t, f.s)) || again.Recovery() == nil {
		t.Errorf("a snapshot lost it: %v", err)
	}
	for what, e := range map[string]Event{
		"another one":               f.recovers(),
		"too early":                 f.carriedOut(at),
		"withdrawn by another":      &RecoveryWithdrawn{Recovery: at, Signature: Signature{Person: "tess"}},
		"another one is withdrawn":  &RecoveryWithdrawn{Recovery: at + 1, Signature: Signature{Person: "sam"}},
		"a change with a recovery":  &BundleInForce{Generation: 2, Manifest: Digest{7}, Previous: f.s.Bundle, How: ByChange, Recovery: at},
		"a recovery without number": f.carriedOut(0),
	} {
		if f.apply(e) == nil {
			t.Errorf("%s was taken", what)
		}
	}
	f.now = r.Until - 1
	if f.s.RecoveryDue(f.now) || f.apply(f.carriedOut(at)) == nil {
		t.Error("it was carried out a moment early")
	}
	f.now = r.Until
	for what, edit := range map[string]func(*BundleInForce){
		"another bundle":  func(e *BundleInForce) { e.Manifest = Digest{9} },
		"with a watch":    func(e *BundleInForce) { e.Watch = f.now + 1 },
		"with a cause":    func(e *BundleInForce) { e.Cause = &Cause{} },
		"of a change":     func(e *BundleInForce) { e.Change = 1 },
		"no generation":   func(e *BundleInForce) { e.Generation++ },
		"another before":  func(e *BundleInForce) { e.Previous = Digest{9} },
		"another recover": func(e *BundleInForce) { e.Recovery++ },
	} {
		e := f.carriedOut(at)
		edit(e)
		if f.apply(e) == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if !f.s.RecoveryDue(f.now) {
		t.Error("it is not due")
	}
	f.must(f.carriedOut(at))
	if f.s.Recovery() != nil || f.s.Bundle != (Digest{7}) || f.apply(f.carriedOut(at)) == nil {
		t.Error("it is still there")
	}
}

func TestRecoveryRefusedByState(t *testing.T) {
	f := rolling(t)
	first := f.recoveryOf()
	at := f.must(started(f, first))
	f.must(&RecoveryWithdrawn{Recovery: at, Signature: Signature{Person: "rita"}})
	for what, edit := range map[string]func(*ceremony.Recovery, *RecoveryStarted){
		"a nonce again":       func(r *ceremony.Recovery, _ *RecoveryStarted) { r.Nonce = first.Nonce },
		"another base":        func(r *ceremony.Recovery, _ *RecoveryStarted) { r.Base = Digest{9}.String() },
		"no digest":           func(r *ceremony.Recovery, _ *RecoveryStarted) { r.New = "x" },
		"an expired text":     func(r *ceremony.Recovery, _ *RecoveryStarted) { r.Expires = f.now.Time().Truncate(time.Second) },
		"a shorter wait":      func(_ *ceremony.Recovery, e *RecoveryStarted) { e.Until -= 1000 },
		"no delay":            func(r *ceremony.Recovery, e *RecoveryStarted) { r.Delay, e.Until = 0, f.now },
		"too few signatures":  func(_ *ceremony.Recovery, e *RecoveryStarted) { e.Signatures = e.Signatures[:1] },
		"one person twice":    func(_ *ceremony.Recovery, e *RecoveryStarted) { e.Signatures[1].Person = "rita" },
		"in another order":    func(_ *ceremony.Recovery, e *RecoveryStarted) { e.Signatures[0].Person = "tess" },
		"nobody's":            func(r *ceremony.Recovery, e *RecoveryStarted) { r.Required, e.Signatures = 0, nil },
		"a text that is none": func(r *ceremony.Recovery, _ *RecoveryStarted) { r.After = nil },
	} {
		r := f.recoveryOf()
		e := started(f, r)
		edit(&r, e)
		e.Text = r.Text()
		if f.apply(e) == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

// An approved change ends it, and what one person can do does not.
func TestRecoveryAndChanges(t *testing.T) {
	f := rolling(t)
	ch := f.approved(func(e *ChangeProposed) { e.Rollout = "" })
	f.must(&BundleInForce{Generation: f.s.Generation + 1, Manifest: rolloutCandidate, Previous: f.s.Bundle, Change: ch, How: ByChange})
	at := f.must(f.recovers())
	f.must(&BundleInForce{Generation: f.s.Generation + 1, Manifest: Digest{3}, Previous: f.s.Bundle, Change: ch, How: ByRollback, Cause: &Cause{By: ByPerson}})
	if f.s.Recovery() == nil {
		t.Fatal("a rollback ended it")
	}
	// What was signed is of a bundle that is not in force: what follows from this one is for others to compare.
	f.now = f.s.Recovery().Until
	e := f.carriedOut(at)
	e.Manifest = Digest{5}
	fork := *f
	fork.s = f.s.Fork()
	fork.must(e)

	ch = f.approved(func(e *ChangeProposed) { e.Rollout, e.Base = "", f.s.Bundle })
	f.must(&BundleInForce{Generation: f.s.Generation + 1, Manifest: rolloutCandidate, Previous: f.s.Bundle, Change: ch, How: ByChange})
	if f.s.Recovery() != nil {
		t.Error("an approved change did not end it")
	}
}
