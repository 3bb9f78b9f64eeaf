package state

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

var (
	rolloutBase      = Digest{1}
	rolloutCandidate = Digest{2}
)

// rolloutPlan is a shadow, a canary of two nodes, and one of half of all.
func rolloutPlan() *RolloutPlan {
	return &RolloutPlan{
		Name: "default", Watch: 600,
		Steps: []PlannedStep{
			{Stage: policy.StageShadow, For: 60},
			{Stage: policy.StageCanary, For: 60, Cohort: []string{"/node/x/n0", "/node/x/n1", "/workload/w/*"}},
			{Stage: policy.StageCanary, For: 60, Share: 50},
		},
		Triggers: []PlannedTrigger{
			{On: policy.TriggerDenied, Sources: 2, Share: 50, Served: 3600 * 24},
			{On: policy.TriggerUndecided, Sources: 1, Served: 3600},
		},
	}
}

// rolling is a feeder of a newer protocol.
func rolling(t testing.TB) *feeder {
	f := newFeeder(t, 21)
	f.must(&ProtocolRaised{Version: protocolRollout})
	return f
}

// approved is a change of the bundle that has its approval.
func (f *feeder) approved(edit func(*ChangeProposed)) uint64 {
	f.t.Helper()
	e := &ChangeProposed{
		Action: "bundle", Manifest: rolloutCandidate, Base: f.s.Bundle, Rollback: Digest{3}, Rollout: "default", Version: 2, Required: 1,
		Nonce: fmt.Sprint("n", f.s.Next), Expires: f.now + 3_600_000, Actor: Actor{Identity: "/human/alice"},
	}
	edit(e)
	ch := f.must(e)
	f.must(&ChangeApproved{Change: ch, Nonce: fmt.Sprint("m", f.s.Next), Signature: Signature{Person: "bob"}, Actor: Actor{Identity: "/human/bob"}})
	return ch
}

func plain(*ChangeProposed) {}

// moved is the next step of a change, when it is due.
func (f *feeder) moved(ch uint64, step int) *RolloutMoved {
	plan := rolloutPlan()
	e := &RolloutMoved{Change: ch, Manifest: rolloutCandidate, Step: step}
	if step == 0 {
		e.Plan = plan
	} else {
		f.now = max(f.now, f.s.Staged().Until)
		e.Generation = f.s.Generation + 1
	}
	e.Until = f.now + Millis(plan.Steps[step].For)*1000
	return e
}

// into is a rollout at a step.
func (f *feeder) into(step int) uint64 {
	f.t.Helper()
	ch := f.approved(plain)
	for i := range step + 1 {
		f.must(f.moved(ch, i))
	}
	return ch
}

// reads releases db/a to a node.
func (f *feeder) reads(node string) {
	f.t.Helper()
	f.must(&SecretReleased{Secret: "db/a", Version: 1, Actor: Actor{Identity: node}, Expires: f.now + 60_000, Max: f.now + 60_000})
}

// loses is a refusal of db/a that the bundle before would not have made.
func (f *feeder) loses(node string) {
	f.t.Helper()
	f.must(&RequestDenied{Action: "secret.read", Target: "db/a", Version: 1, Actor: Actor{Identity: node}, Beside: BesideAllowed})
}

func (f *feeder) hits(asked int, want ...int) {
	f.t.Helper()
	if r := f.s.Rollout(f.now); r.Asked != asked || !slices.Equal(r.Hits, want) {
		f.t.Errorf("%d asked, the triggers count %v, want %d and %v", r.Asked, r.Hits, asked, want)
	}
}

// Whatever a rollout does not allow at its step is refused, and leaves it where it was.
func TestRolloutReducersRefuse(t *testing.T) {
	type at struct {
		step int // -1: approved only; 3: in force
		what string
		ev   func(f *feeder, ch uint64) Event
	}
	moved := func(step int, edit func(f *feeder, e *RolloutMoved)) func(*feeder, uint64) Event {
		return func(f *feeder, ch uint64) Event {
			e := f.moved(ch, step)
			edit(f, e)
			return e
		}
	}
	inForce := func(edit func(f *feeder, e *BundleInForce)) func(*feeder, uint64) Event {
		return func(f *feeder, ch uint64) Event {
			e := &BundleInForce{Generation: f.s.Generation + 1, Manifest: rolloutCandidate, Previous: f.s.Bundle, Change: ch, How: ByRollout}
			if r := f.s.Staged(); r != nil {
				f.now = max(f.now, r.Until)
			}
			edit(f, e)
			return e
		}
	}
	back := func(edit func(e *BundleInForce)) func(*feeder, uint64) Event {
		return inForce(func(_ *feeder, e *BundleInForce) {
			e.How, e.Manifest, e.Cause = ByRollback, Digest{3}, &Cause{By: ByPerson}
			edit(e)
		})
	}
	ended := func(edit func(f *feeder, e *RolloutEnded)) func(*feeder, uint64) Event {
		return func(f *feeder, ch uint64) Event {
			e := &RolloutEnded{Change: ch, Cause: Cause{By: ByPerson}}
			if r := f.s.Staged(); r != nil && r.Generation != 0 {
				e.Generation = f.s.Generation + 1
			}
			edit(f, e)
			return e
		}
	}
	cases := []at{
		{-1, "another bundle", moved(0, func(_ *feeder, e *RolloutMoved) { e.Manifest = Digest{9} })},
		{-1, "no change", moved(0, func(_ *feeder, e *RolloutMoved) { e.Change = 1 << 40 })},
		{-1, "no plan", moved(0, func(_ *feeder, e *RolloutMoved) { e.Plan = nil })},
		{-1, "a plan of another name", moved(0, func(_ *feeder, e *RolloutMoved) { e.Plan.Name = "quick" })},
		{-1, "a plan without steps", moved(0, func(_ *feeder, e *RolloutMoved) { e.Plan.Steps = nil })},
		{-1, "a plan with a cohort that is none", moved(0, func(_ *feeder, e *RolloutMoved) {
			e.Plan.Steps[0], e.Generation = PlannedStep{Stage: policy.StageCanary, Cohort: []string{"x"}}, 2
		})},
		{-1, "a shadow that begins a generation", moved(0, func(f *feeder, e *RolloutMoved) { e.Generation = f.s.Generation + 1 })},
		{-1, "a step before the first", moved(0, func(_ *feeder, e *RolloutMoved) { e.Step = -1 })},
		{-1, "a later step first", moved(0, func(_ *feeder, e *RolloutMoved) { e.Step = 1 })},
		{-1, "an expired change", moved(0, func(f *feeder, _ *RolloutMoved) { f.now += 3_600_000 })},
		{-1, "an end of nothing", ended(func(*feeder, *RolloutEnded) {})},
		{-1, "in force without its steps", inForce(func(*feeder, *BundleInForce) {})},
		{0, "the same again", func(f *feeder, ch uint64) Event { e := f.moved(ch, 0); return e }},
		{0, "a step too early", moved(1, func(f *feeder, _ *RolloutMoved) { f.now-- })},
		{0, "a step left out", func(f *feeder, ch uint64) Event { e := f.moved(ch, 2); return e }},
		{0, "another plan on the way", moved(1, func(_ *feeder, e *RolloutMoved) { e.Plan = rolloutPlan() })},
		{0, "a canary without a generation", moved(1, func(_ *feeder, e *RolloutMoved) { e.Generation = 0 })},
		{0, "a canary with a later generation", moved(1, func(_ *feeder, e *RolloutMoved) { e.Generation++ })},
		{0, "an end with a generation", ended(func(f *feeder, e *RolloutEnded) { e.Generation = f.s.Generation + 1 })},
		{0, "an end of another", ended(func(_ *feeder, e *RolloutEnded) { e.Change-- })},
		{0, "in force from the shadow", inForce(func(*feeder, *BundleInForce) {})},
		{0, "in force by its change", inForce(func(_ *feeder, e *BundleInForce) { e.How = ByChange })},
		{0, "a rollback of what is not in force", back(func(*BundleInForce) {})},
		{0, "another change meanwhile", func(f *feeder, _ uint64) Event {
			other := f.approved(func(e *ChangeProposed) { e.Manifest, e.Rollout = Digest{7}, "" })
			return &BundleInForce{Generation: f.s.Generation + 1, Manifest: Digest{7}, Previous: f.s.Bundle, Change: other, How: ByChange}
		}},
		{0, "another rollout meanwhile", func(f *feeder, _ uint64) Event { return f.moved(f.approved(plain), 0) }},
		{1, "an end without a generation", ended(func(_ *feeder, e *RolloutEnded) { e.Generation = 0 })},
		{2, "in force too early", inForce(func(f *feeder, _ *BundleInForce) { f.now-- })},
		{2, "in force with another bundle", inForce(func(_ *feeder, e *BundleInForce) { e.Manifest = Digest{9} })},
		{2, "in force for another change", inForce(func(f *feeder, e *BundleInForce) { e.Change = f.approved(plain) })},
		{2, "a step after the last", func(f *feeder, ch uint64) Event { e := f.moved(ch, 2); e.Step = 3; return e }},
		{3, "an end after the end", ended(func(*feeder, *RolloutEnded) {})},
		{3, "a rollback to another bundle", back(func(e *BundleInForce) { e.Manifest = Digest{9} })},
		{3, "a rollback without a cause", back(func(e *BundleInForce) { e.Cause = nil })},
		{3, "a rollback of another change", func(f *feeder, ch uint64) Event {
			e := back(func(*BundleInForce) {})(f, ch).(*BundleInForce)
			e.Change = f.approved(plain)
			return e
		}},
		{3, "in force in a way that there is not", back(func(e *BundleInForce) { e.How = "magic" })},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			f := rolling(t)
			var ch uint64
			if c.step < 3 {
				if ch = f.approved(plain); c.step >= 0 {
					for i := range c.step + 1 {
						f.must(f.moved(ch, i))
					}
				}
			} else {
				ch = f.inForce()
			}
			ev := c.ev(f, ch)
			if err := f.apply(ev); err == nil {
				t.Error("it was applied")
			}
			if _, ok := f.s.Changes.Get(ch); !ok {
				t.Error("the change is gone")
			}
		})
	}
	old := newFeeder(t, 1)
	if err := old.apply(old.moved(old.approved(plain), 0)); err == nil || !strings.Contains(err.Error(), "protocol") {
		t.Errorf("a rollout before its protocol: %v", err)
	}
	for what, edit := range map[string]func(*ChangeProposed){
		"a rollout in a text of version 1":        func(e *ChangeProposed) { e.Version = 0 },
		"a text that says it is of version 1":     func(e *ChangeProposed) { e.Version, e.Rollout, e.Rollback = 1, "", Digest{} },
		"a text of a version that there is not":   func(e *ChangeProposed) { e.Version = 3 },
		"a text of a version less than the first": func(e *ChangeProposed) { e.Version = -1 },
	} {
		e := &ChangeProposed{Version: 2, Rollout: "default", Rollback: Digest{3}, Expires: old.now + 1000, Nonce: "x"}
		edit(e)
		if err := old.apply(e); err == nil {
			t.Errorf("%s was applied", what)
		}
	}
}

// inForce is a rollout that is over, and watched.
func (f *feeder) inForce() uint64 {
	f.t.Helper()
	ch := f.into(2)
	f.now = f.s.Staged().Until
	f.must(&BundleInForce{
		Generation: f.s.Generation + 1, Manifest: rolloutCandidate, Previous: f.s.Bundle, Change: ch, How: ByRollout, Watch: f.now + 600_000,
	})
	return ch
}

// A rollout's life: who governs whom at each step, what is compared, and what becomes of its change.
func TestRolloutGoverns(t *testing.T) {
	f := rolling(t)
	f.s.Bundle = rolloutBase
	ch := f.approved(plain)
	is := func(want ChangeState, generation uint64) {
		t.Helper()
		if c, _ := f.s.Changes.Get(ch); c.State != want || f.s.Generation != generation {
			t.Errorf("it is %s in generation %d, want %s in %d", c.State, f.s.Generation, want, generation)
		}
	}
	governs := func(path string, bundle Digest, beside Digest) {
		t.Helper()
		cohort := ""
		if bundle == rolloutCandidate && f.s.Bundle != rolloutCandidate {
			cohort = CohortCanary
		}
		if got, in := f.s.Governs(path); got != bundle || in != cohort {
			t.Errorf("%s is governed by %s (%q), want %s (%q)", path, got, in, bundle, cohort)
		}
		if got := f.s.Beside(path, f.now); got != beside {
			t.Errorf("%s is compared with %s, want %s", path, got, beside)
		}
	}
	governs("/node/x/n0", rolloutBase, Digest{})
	f.must(f.moved(ch, 0))
	is(Shadow, 1)
	governs("/node/x/n0", rolloutBase, rolloutCandidate)
	governs("/human/alice", rolloutBase, rolloutCandidate)
	f.must(f.moved(ch, 1))
	is(Canary, 2)
	governs("/node/x/n0", rolloutCandidate, rolloutBase)
	governs("/workload/w/deep/er", rolloutCandidate, rolloutBase)
	governs("/node/x/n2", rolloutBase, Digest{})
	governs("/human/alice", rolloutBase, Digest{})
	f.must(f.moved(ch, 2))
	is(Canary, 3)
	in := 0
	for i := range 1000 {
		if got, _ := f.s.Governs(fmt.Sprint("/node/x/m", i)); got == rolloutCandidate {
			in++
		}
	}
	if in < 400 || in > 600 {
		t.Errorf("half of a thousand are %d", in)
	}
	governs("/human/alice", rolloutBase, Digest{})
	f.now = f.s.Staged().Until
	f.must(&BundleInForce{Generation: 4, Manifest: rolloutCandidate, Previous: rolloutBase, Change: ch, How: ByRollout, Watch: f.now + 600_000})
	is(InForce, 4)
	governs("/node/x/n2", rolloutCandidate, rolloutBase)
	governs("/human/alice", rolloutCandidate, rolloutBase)
	f.now += 600_000 // nobody watches any more
	governs("/node/x/n2", rolloutCandidate, Digest{})
	f.must(&BundleInForce{Generation: 5, Manifest: Digest{3}, Previous: rolloutCandidate, Change: ch, How: ByRollback, Cause: &Cause{By: ByPerson}})
	is(RolledBack, 5)
	governs("/node/x/n2", Digest{3}, Digest{})
	if f.s.rollouts.Len() != 0 || f.s.sources.Len() != 0 {
		t.Error("something is left of the rollout")
	}
}

// A source counts once, if what it is refused now was its own before, by each trigger that it is one for, and only in the step in which it is
// refused.
func TestTriggersCount(t *testing.T) {
	f := rolling(t)
	for _, n := range []string{"/node/x/n0", "/node/x/n1", "/node/x/n2"} {
		f.reads(n)
	}
	f.now += 2 * servedStep
	ch := f.into(1)
	due := func(want RolloutDue, trigger int) {
		t.Helper()
		got, figure := f.s.RolloutDue(f.now)
		if got != want || want == RollbackDue && figure.Trigger != trigger {
			t.Errorf("due is %d (%+v), want %d", got, figure, want)
		}
	}
	due(NothingDue, 0)
	f.loses("/node/x/n0")
	f.loses("/node/x/n0")
	f.hits(1, 1, 0)
	// What was never its own: another secret, and somebody else's. It asked, and that is all.
	f.must(&RequestDenied{Action: "secret.read", Target: "db/b", Actor: Actor{Identity: "/node/x/n1"}, Beside: BesideAllowed})
	f.hits(2, 1, 0)
	f.must(&RequestDenied{Action: "secret.read", Target: "db/a", Actor: Actor{Identity: "/workload/w/a", Node: "/node/x/n9"}, Beside: BesideAllowed})
	f.hits(3, 1, 0)
	// A refusal that the bundle before makes too, and one of somebody whom the candidate does not govern.
	f.must(&RequestDenied{Action: "secret.read", Target: "db/a", Actor: Actor{Identity: "/node/x/n1"}})
	f.must(&RequestDenied{Action: "secret.read", Target: "db/a", Actor: Actor{Identity: "/node/x/n2"}})
	f.reads("/node/x/n2")
	f.hits(3, 1, 0)
	f.loses("/node/x/n1")
	f.hits(3, 2, 0)
	due(RollbackDue, 0)
	for i := range 4 { // 2 of 4 are not more than half
		f.must(&SecretReleased{Secret: "db/a", Version: 1, Actor: Actor{Identity: fmt.Sprint("/workload/w/", i), Node: "/node/x/n8"}, Expires: f.now + 60_000, Max: f.now + 60_000})
	}
	f.hits(4, 2, 0)
	due(NothingDue, 0)
	// What can't be told is both. The hour after the use is the latest that it can have been.
	undecided := &RequestDenied{Action: "secret.read", Target: "db/a", Actor: Actor{Identity: "/node/x/n0"}, Beside: BesideAllowed, Undecided: true}
	f.must(undecided)
	f.hits(4, 2, 1)
	due(RollbackDue, 1)
	if _, figure := f.s.RolloutDue(f.now); !reflect.DeepEqual(figure, &Figure{Trigger: 1, On: policy.TriggerUndecided, Sources: 1, Asked: 4, Named: []string{"/node/x/n0"}}) {
		t.Errorf("the trigger saw %+v", figure)
	}
	f.must(f.moved(ch, 2)) // the reducer does not stand in its way: the checks of the entries do
	f.hits(0, 0, 0)
	due(NothingDue, 0)
	f.now = f.s.Staged().Until
	due(NextStepDue, 0)
}

// A trigger looks back only so far.
func TestTriggersLookBack(t *testing.T) {
	f := rolling(t)
	f.reads("/node/x/n0")
	f.now += servedStep + 3600_000 + 1 // longer before the rollout than the second trigger looks
	f.into(1)
	f.must(&RequestDenied{Action: "secret.read", Target: "db/a", Actor: Actor{Identity: "/node/x/n0"}, Beside: BesideAllowed, Undecided: true})
	f.hits(1, 1, 0)
}

// What is given for the first time while a change is on its way, or again after a long time, is no reason to take the change back: else who
// holds rights that a change takes away, and never used them, could use them now to keep them.
func TestGivenDuringTheRolloutDoesNotCount(t *testing.T) {
	f := rolling(t)
	f.reads("/node/x/n1")
	f.now += 30 * 24 * servedStep
	f.reads("/workload/w/b")
	f.now += 2 * servedStep
	ch := f.into(0)
	f.now += 1000
	for range 3 {
		f.reads("/node/x/n0")    // for the first time
		f.reads("/node/x/n1")    // after a month
		f.reads("/workload/w/b") // as ever
		f.now += 2 * servedStep
	}
	f.must(f.moved(ch, 1))
	f.loses("/node/x/n0")
	f.loses("/node/x/n1")
	f.hits(2, 0, 0)
	f.loses("/workload/w/b")
	f.hits(3, 1, 0)
	// To the next rollout all that is of before.
	f.must(&RolloutEnded{Change: ch, Generation: f.s.Generation + 1, Cause: Cause{By: ByPerson}})
	f.into(1)
	f.loses("/node/x/n0")
	f.hits(1, 1, 0)
}

// From before uses were remembered, a lease of that very version says that it was given.
func TestTriggersRememberLeases(t *testing.T) {
	f := newFeeder(t, 21)
	f.must(&SecretReleased{Secret: "db/a", Version: 1, Purpose: "runtime", Actor: Actor{Identity: "/node/x/n0"}, Expires: f.now + 3_600_000, Max: f.now + 3_600_000})
	if f.s.Served.Len() != 0 {
		t.Fatal("uses are remembered before their protocol")
	}
	f.must(&ProtocolRaised{Version: protocolRollout})
	f.into(1)
	refusal := func(version uint64, purpose string) {
		f.must(&RequestDenied{Action: "secret.read", Target: "db/a", Version: version, Purpose: purpose, Actor: Actor{Identity: "/node/x/n0"}, Beside: BesideAllowed})
	}
	refusal(2, "runtime")
	refusal(1, "migration")
	f.hits(1, 0, 0)
	refusal(1, "runtime")
	f.hits(1, 1, 0)
}

// A shadow's differences count where they are summed, and only there.
func TestObservedCounts(t *testing.T) {
	f := rolling(t)
	for i := range 3 {
		f.reads(fmt.Sprint("/node/x/n", i))
	}
	f.now += 1000
	ch := f.into(0)
	observed := &RolloutObserved{Change: ch, Compared: 9, Others: 2, Differences: []Difference{
		{Identity: "/node/x/n0", Secret: "db/a", Allowed: true, Count: 4},
		{Identity: "/node/x/n1", Secret: "db/a", Allowed: false, Count: 1}, // the candidate allows more
		{Identity: "/node/x/n2", Secret: "db/b", Allowed: true, Count: 1},  // never its own
	}}
	f.must(observed)
	f.must(observed)
	r := f.s.Staged()
	if r.Compared != 18 || r.Differed != 16 || len(r.Differences) != 3 || r.Differences[0].Count != 8 {
		t.Errorf("%+v", r)
	}
	f.hits(2, 1, 0)
	many := &RolloutObserved{Change: ch}
	for i := range 2 * maxDifferences {
		many.Differences = append(many.Differences, Difference{Identity: fmt.Sprint("/node/y/n", i), Secret: "db/a", Count: 1})
	}
	f.must(many)
	if r := f.s.Staged(); len(r.Differences) != maxDifferences || r.Differed != 16+2*maxDifferences {
		t.Errorf("%d sorts are kept of %d", len(r.Differences), r.Differed)
	}
	f.must(f.moved(ch, 1))
	f.must(observed) // of the step before: there the refusals themselves count
	f.hits(0, 0, 0)
	f.must(&RolloutEnded{Change: ch, Generation: f.s.Generation + 1, Cause: Cause{By: ByTrigger}})
	before := snapshotOf(t, f.s)
	f.must(observed) // it ended between the decisions and their sum
	if after := snapshotOf(t, f.s); !bytes.Equal(before[bytes.IndexByte(before, '\n'):], after[bytes.IndexByte(after, '\n'):]) {
		t.Error("a rollout that is over counts")
	}
}

// The sources of a step are bounded: whoever comes later counts for nothing.
func TestSourcesAreBounded(t *testing.T) {
	f := rolling(t)
	f.reads("/node/x/n0")
	f.now += 1000
	f.into(1)
	f.s.sources = newTable[string, *RolloutSource]()
	for i := range maxSources {
		f.s.sources.set(fmt.Sprint("/node/z/", i), &RolloutSource{})
	}
	f.loses("/node/x/n0")
	f.hits(0, 0, 0)
}

// What a rollout rests on ends it, and a hold does while it lasts.
func TestRolloutRestsOnItsChange(t *testing.T) {
	for what, ev := range map[string]*RevocationRecorded{
		"a cutoff of the approver": {Scope: "identity:/human/bob", Cutoff: true},
		"a hold on the proposer":   {Scope: "identity:/human/alice", Hold: true},
	} {
		f := rolling(t)
		ch := f.into(0)
		f.must(ev)
		if due, _ := f.s.RolloutDue(f.now); due != RevokedDue {
			t.Errorf("%s: due is %d", what, due)
		}
		if err := f.apply(f.moved(ch, 1)); err == nil {
			t.Errorf("%s: it goes on", what)
		}
		f.must(&RolloutEnded{Change: ch, Cause: Cause{By: ByRevocation}})
	}
}

// A change is kept as long as it is on its way, however long that takes and whoever was away meanwhile: without it the rollout could neither
// go on nor be ended.
func TestRolloutOutlivesItsChange(t *testing.T) {
	const month = Millis(30 * 24 * 60 * 60 * 1000)
	for _, step := range []int{0, 1, 2} {
		f := rolling(t)
		ch := f.into(step)
		f.now += 3 * month
		f.must(&DenialsSummed{}) // whatever comes first
		if !f.s.Changes.Has(ch) {
			t.Fatalf("step %d: the change is gone", step)
		}
		if due, _ := f.s.RolloutDue(f.now); due != NextStepDue {
			t.Errorf("step %d: due is %d", step, due)
		}
		generation := uint64(0)
		if step > 0 {
			generation = f.s.Generation + 1
		}
		f.must(&RolloutEnded{Change: ch, Generation: generation, Cause: Cause{By: ByPerson}})
		for range 5 {
			f.now += month
			f.must(&DenialsSummed{})
		}
		if f.s.Changes.Has(ch) {
			t.Errorf("step %d: the change stays for ever", step)
		}
	}
	f := rolling(t)
	ch := f.inForce()
	r, _ := f.s.rollouts.Get(rolloutKey)
	n := *r
	n.Until = f.now + 3*month
	f.s.rollouts.set(rolloutKey, &n)
	f.now += 2 * month
	f.must(&DenialsSummed{})
	if !f.s.Changes.Has(ch) {
		t.Error("a change is gone whose triggers watch")
	}
}

// A state in the middle of a rollout comes back from its snapshot and goes on identically, cohorts and counts with it.
func TestSnapshotInARollout(t *testing.T) {
	for step := range 4 {
		f := rolling(t)
		for i := range 4 {
			f.reads(fmt.Sprint("/node/x/n", i))
		}
		f.now += 1000
		ch := uint64(0)
		if step < 3 {
			ch = f.into(step)
		} else {
			ch = f.inForce()
		}
		f.loses("/node/x/n0")
		f.must(&RolloutObserved{Change: ch, Compared: 3, Differences: []Difference{{Identity: "/node/x/n1", Secret: "db/a", Allowed: true, Count: 1}}})
		before := snapshotOf(t, f.s)
		restored, err := Restore(before)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshotOf(t, restored), before) {
			t.Fatalf("step %d: the snapshot of a restored state is another one", step)
		}
		for i := range 200 {
			for _, path := range []string{fmt.Sprint("/node/x/n", i), fmt.Sprint("/workload/w/", i), fmt.Sprint("/ci/gitlab/a/", i)} {
				b, cohort := f.s.Governs(path)
				if b2, c2 := restored.Governs(path); b2 != b || c2 != cohort || restored.Beside(path, f.now) != f.s.Beside(path, f.now) {
					t.Fatalf("step %d: %s is governed by %s %q, and was by %s %q", step, path, b2, c2, b, cohort)
				}
			}
		}
		from := len(f.log)
		f.loses("/node/x/n1")
		f.loses("/node/x/n0")
		f.reads("/node/x/n2")
		switch step {
		case 0, 1:
			f.must(f.moved(ch, step+1))
		case 2:
			f.now = f.s.Staged().Until
			f.must(&BundleInForce{Generation: f.s.Generation + 1, Manifest: rolloutCandidate, Previous: f.s.Bundle, Change: ch, How: ByRollout})
		case 3:
			f.must(&BundleInForce{Generation: f.s.Generation + 1, Manifest: Digest{3}, Previous: f.s.Bundle, Change: ch, How: ByRollback, Cause: &Cause{By: ByTrigger}})
		}
		for i, body := range f.log[from:] {
			if err := restored.Apply(uint64(from+i), body, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(snapshotOf(t, restored), snapshotOf(t, f.s)) {
			t.Errorf("step %d: it went on differently", step)
		}
	}
}

func TestRestoreRefusesRollouts(t *testing.T) {
	f := rolling(t)
	f.into(1)
	good := snapshotOf(t, f.s)
	for what, edit := range map[string][2]string{
		"a step that there is not":       {`"step":1`, `"step":4`},
		"a step before the first":        {`"step":1`, `"step":-1`},
		"a cohort that is none":          {`/node/x/n0`, `node/x/n0`},
		"counts for fewer triggers":      {`"hits":[0,0]`, `"hits":[0]`},
		"a rollout that is none":         {`"v":{"change":`, `"v":null,"w":{"change":`},
		"a rollout with another key":     {`"base":`, `"bases":`},
		"a plan with something unknown":  {`"name":"default"`, `"name":"default","x":1`},
		"a plan of another form of time": {`"for_s":60`, `"for_s":"60"`},
	} {
		bad := bytes.Replace(good, []byte(edit[0]), []byte(edit[1]), 1)
		if bytes.Equal(bad, good) {
			t.Errorf("%s: the case changes nothing", what)
		}
		if _, err := Restore(bad); err == nil {
			t.Errorf("%s was restored", what)
		}
	}
}

// An entry is of the second version exactly if it says what the first can't: whatever can be said in either way is said in one.
func TestVersions(t *testing.T) {
	canary := Ruling{Cohort: CohortCanary}
	pairs := []struct{ first, second Event }{
		{&Genesis{}, &Genesis{Protocol: Protocol}},
		{&BundleInForce{How: ByChange}, &BundleInForce{How: ByRollout}},
		{&BundleInForce{How: ByChange}, &BundleInForce{How: ByRollback, Cause: &Cause{By: ByPerson}}},
		{&BundleInForce{How: ByChange}, &BundleInForce{How: ByChange, Watch: 1}},
		{&BundleInForce{How: ByChange}, &BundleInForce{How: ByChange, Cause: &Cause{}}},
		{&ChangeProposed{}, &ChangeProposed{Version: 2}},
		{&ChangeProposed{}, &ChangeProposed{Rollout: "default"}},
		{&ChangeProposed{}, &ChangeProposed{Rollback: Digest{1}}},
		{&ChangeProposed{}, &ChangeProposed{Containment: []string{"a"}}},
		{&SecretWritten{}, &SecretWritten{Ruling: canary}},
		{&SecretMoved{}, &SecretMoved{Ruling: canary}},
		{&SecretReleased{}, &SecretReleased{Ruling: canary}},
		{&LeaseRenewed{}, &LeaseRenewed{Ruling: canary}},
		{&RequestDenied{}, &RequestDenied{Ruling: canary}},
		{&RequestDenied{}, &RequestDenied{Beside: BesideAllowed}},
		{&RequestDenied{}, &RequestDenied{Version: 1}},
		{&RequestDenied{}, &RequestDenied{Undecided: true}},
	}
	seen := map[Kind]bool{}
	for _, p := range pairs {
		for i, ev := range []Event{p.first, p.second} {
			kind := ev.Kind()
			seen[kind] = true
			if kind.Version != i+1 {
				t.Errorf("%+v is a %s", ev, kind)
			}
			body, err := Encode(&Entry{Time: 1, Event: ev})
			if err != nil {
				t.Fatal(err)
			}
			back, err := Decode(body)
			if err != nil || !reflect.DeepEqual(back.Event, ev) {
				t.Errorf("%s came back as %+v: %v", body, back, err)
			}
			other := bytes.Replace(body, fmt.Appendf(nil, `"v":%d`, i+1), fmt.Appendf(nil, `"v":%d`, 2-i), 1)
			if _, err := Decode(other); !problem.Is(err, problem.ReasonTampered) {
				t.Errorf("%s was read: %v", other, err)
			}
		}
	}
	for _, typ := range Types {
		if typ.Kind.Version > 1 && !seen[typ.Kind] {
			t.Errorf("nothing shows what makes a %s", typ.Kind)
		}
		if typ.Kind.Version > 2 {
			t.Errorf("%s is of a version that this test does not know", typ.Kind)
		}
	}
	f := rolling(t)
	if typ := new(RolloutMoved); !f.s.MayWrite(typ) || newFeeder(t, 1).s.MayWrite(typ) {
		t.Error("a rollout may be entered by another protocol than its own")
	}
}

func TestPlanOf(t *testing.T) {
	got := PlanOf(policy.Rollout{
		Name: "default", Watch: time.Hour, Steps: []policy.RolloutStep{{Stage: policy.StageShadow, For: time.Minute}, {Stage: policy.StageCanary, For: time.Hour, Share: 5}},
		Triggers: []policy.RolloutTrigger{{On: policy.TriggerDenied, Sources: 3, Share: 1, Served: 24 * time.Hour}},
	})
	want := RolloutPlan{
		Name: "default", Watch: 3600, Steps: []PlannedStep{{Stage: "shadow", For: 60}, {Stage: "canary", For: 3600, Share: 5}},
		Triggers: []PlannedTrigger{{On: "denied", Sources: 3, Share: 1, Served: 86400}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// What a newer program has reduced, or raised, is not gone on with.
func TestNewerProtocolIsRefused(t *testing.T) {
	f := rolling(t)
	text := snapshotOf(t, f.s)
	newer := bytes.Replace(text, fmt.Appendf(nil, `"protocol":%d`, Protocol), fmt.Appendf(nil, `"protocol":%d`, Protocol+1), 1)
	if bytes.Equal(newer, text) {
		t.Fatal("the snapshot says no protocol")
	}
	if _, err := Restore(newer); !problem.Is(err, problem.ReasonUnknownVersion) {
		t.Errorf("a snapshot of a newer protocol: %v", err)
	}
	for _, version := range []int{Protocol + 1, Protocol, Protocol - 1} { // newer, and not above
		if err := f.s.Fork().Apply(f.s.Next, nil, &Entry{Time: f.now, Event: &ProtocolRaised{Version: version}}); err == nil || problem.Is(err, problem.ReasonUnknownVersion) != (version > Protocol) {
			t.Errorf("protocol %d after %d: %v", version, Protocol, err)
		}
	}
}

// The same bundle, rolled out another time, has another canary.
func TestCanaryIsDrawnWhenItBegins(t *testing.T) {
	canary := func(later Millis) (out []string) {
		f := rolling(t)
		f.now += later
		f.into(2)
		for i := range 100 {
			if path := fmt.Sprint("/workload/x/", i); f.governed(path) {
				out = append(out, path)
			}
		}
		return out
	}
	first := canary(0)
	if len(first) < 20 || len(first) > 80 || !slices.Equal(first, canary(0)) || slices.Equal(first, canary(1)) {
		t.Errorf("half of a hundred are %d", len(first))
	}
}

func (f *feeder) governed(path string) bool {
	_, cohort := f.s.Governs(path)
	return cohort == CohortCanary
}
