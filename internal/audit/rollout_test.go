package audit_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// rolled is a real history with rollouts.
func rolled(t *testing.T) (*memory, state.Digest) {
	t.Helper()
	w := controltest.New(t, controltest.HistoryOptions)
	controltest.History(w)
	w.Close()
	return load(t, w.Dir+"/data"), w.Genesis
}

// A ledger with rollouts is sound, all of it is decided again, and what takes turns in a canary is compiled once.
func TestRolloutsAreSound(t *testing.T) {
	m, genesis := rolled(t)
	reads := map[store.Digest]int{}
	l := m.ledger()
	blob := l.Blob
	l.Blob = func(ctx context.Context, d store.Digest) ([]byte, error) {
		reads[d]++
		return blob(ctx, d)
	}
	r, err := audit.Run(context.Background(), l, audit.Options{Genesis: genesis})
	if err != nil || !r.Complete() || r.Decided != r.Size || r.Violated != 0 || len(r.Undecided)+len(r.Violations) != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	for _, x := range m.entries {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		moved, ok := e.Event.(*state.RolloutMoved)
		if !ok {
			continue
		}
		// Where it is proposed, where its rollback is rehearsed, and to decide by it.
		if n := reads[store.Digest(moved.Manifest)]; n > 3 {
			t.Errorf("the manifest of a candidate was read %d times", n)
		}
	}
}

// Each step of a rollout follows from the entries before it, or is found.
func TestRolloutFaults(t *testing.T) {
	whole, _ := rolled(t)
	canary := func(e *state.RolloutMoved) bool { return e.Step == 1 }
	released := func(e *state.SecretReleased) bool { return e.Ruling.Cohort != "" }
	trigger := func(e *state.RolloutEnded) bool { return e.Cause.By == state.ByTrigger }
	overtaken := func(e *state.RolloutEnded) bool { return e.Cause.By == state.BySupersede }
	back := func(e *state.BundleInForce) bool { return e.How == state.ByRollback }
	into := func(e *state.BundleInForce) bool { return e.How == state.ByRollout }
	proposed := func(e *state.ChangeProposed) bool { return e.Rollout != "" }
	for name, c := range map[string]struct {
		at   int
		edit func(state.Event)
		says string
	}{
		"no cohort in a canary": {index(t, whole, released), func(e state.Event) { e.(*state.SecretReleased).Ruling.Cohort = "" }, "governed it"},
		"ruled by the bundle in force in a canary": {index(t, whole, released), func(e state.Event) {
			r := &e.(*state.SecretReleased).Ruling
			in := index(t, whole, canary)
			for _, x := range slices.Backward(whole.entries[:in]) {
				d, err := state.Decode(x.Body)
				if b, ok := d.Event.(*state.BundleInForce); err == nil && ok {
					r.Bundle, r.Cohort = b.Manifest, ""
					return
				}
			}
		}, "governed it"},
		"written in a canary by the bundle in force": {index(t, whole, func(e *state.SecretWritten) bool { return e.Ruling.Cohort != "" }), func(e state.Event) {
			e.(*state.SecretWritten).Ruling.Cohort = ""
		}, "governed it"},
		"renewed in a canary by the bundle in force": {index(t, whole, func(e *state.LeaseRenewed) bool { return e.Ruling.Cohort != "" }), func(e state.Event) {
			e.(*state.LeaseRenewed).Ruling.Cohort = ""
		}, "governed it"},
		"a refusal of another cohort": {index(t, whole, func(e *state.RequestDenied) bool { return e.Ruling.Cohort != "" }), func(e state.Event) {
			e.(*state.RequestDenied).Ruling.Cohort = "others"
		}, "governed it"},
		"a cohort where there is no canary": {index(t, whole, func(e *state.SecretReleased) bool { return e.Ruling.Cohort == "" }), func(e state.Event) {
			e.(*state.SecretReleased).Ruling.Cohort = state.CohortCanary
		}, "governed it"},
		"a step that is over early": {index(t, whole, canary), func(e state.Event) { e.(*state.RolloutMoved).Until-- }, "the step is over at"},
		"a plan that is not the bundle's": {index(t, whole, func(e *state.RolloutMoved) bool { return e.Step == 0 }), func(e state.Event) {
			e.(*state.RolloutMoved).Plan.Triggers[0].Sources++
		}, "no such rollout"},
		"a plan with a shorter step": {index(t, whole, func(e *state.RolloutMoved) bool { return e.Step == 0 }), func(e state.Event) {
			e.(*state.RolloutMoved).Plan.Steps[1].For = 1
		}, "no such rollout"},
		"no plan":          {index(t, whole, func(e *state.RolloutMoved) bool { return e.Step == 0 }), func(e state.Event) { e.(*state.RolloutMoved).Plan = nil }, "no such rollout"},
		"a step left out":  {index(t, whole, canary), func(e state.Event) { e.(*state.RolloutMoved).Step = 2 }, "has no step"},
		"a step backwards": {index(t, whole, canary), func(e state.Event) { e.(*state.RolloutMoved).Step = -1 }, "has no step"},
		"another generation of a canary": {index(t, whole, canary), func(e state.Event) {
			e.(*state.RolloutMoved).Generation++
		}, "legal step"},
		"a trigger's figure that does not follow": {index(t, whole, trigger), func(e state.Event) { e.(*state.RolloutEnded).Cause.Figure.Sources++ }, "no trigger asks"},
		"a trigger that names another": {index(t, whole, trigger), func(e state.Event) {
			e.(*state.RolloutEnded).Cause.Figure.Named[0] = "/node/join-token/rolled-3"
		}, "no trigger asks"},
		"a trigger without a figure": {index(t, whole, trigger), func(e state.Event) { e.(*state.RolloutEnded).Cause.Figure = nil }, "no trigger asks"},
		"a rollout ended by nobody":  {index(t, whole, trigger), func(e state.Event) { e.(*state.RolloutEnded).Cause = state.Cause{By: state.ByPerson} }, "nobody rolled it back"},
		"ended by no revocation":     {index(t, whole, trigger), func(e state.Event) { e.(*state.RolloutEnded).Cause = state.Cause{By: state.ByRevocation} }, "not revoked"},
		"ended by magic":             {index(t, whole, trigger), func(e state.Event) { e.(*state.RolloutEnded).Cause = state.Cause{By: "magic"} }, "nothing is rolled back by"},
		"overtaken by nothing":       {index(t, whole, trigger) + 1, nil, "none comes into force"},
		"ended by a trigger for a bundle": {index(t, whole, overtaken), func(e state.Event) {
			e.(*state.RolloutEnded).Cause = state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: policy.TriggerDenied}}
		}, "no trigger asks"},
		"a rollback to another manifest": {index(t, whole, back), func(e state.Event) { e.(*state.BundleInForce).Manifest = e.(*state.BundleInForce).Previous }, "legal step"},
		"a rollback without a cause":     {index(t, whole, back), func(e state.Event) { e.(*state.BundleInForce).Cause = nil }, "without a cause"},
		"a rollback for another bundle": {index(t, whole, back), func(e state.Event) {
			e.(*state.BundleInForce).Cause = &state.Cause{By: state.BySupersede}
		}, "not rolled back for another"},
		"a rollback by no trigger": {index(t, whole, back), func(e state.Event) {
			e.(*state.BundleInForce).Cause = &state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: policy.TriggerDenied, Named: []string{}}}
		}, "no trigger asks"},
		"a rollback by who has no duty": {index(t, whole, back), func(e state.Event) {
			e.(*state.BundleInForce).Cause.Actor.Identity = "/human/mallory"
		}, "duty approve"},
		"a rollback by another generation": {index(t, whole, back), func(e state.Event) { e.(*state.BundleInForce).Cause.Ruling.Generation-- }, "governed it"},
		"in force, and watched for longer": {index(t, whole, into), func(e state.Event) { e.(*state.BundleInForce).Watch++ }, "triggers watch until"},
		"in force without its rollout":     {index(t, whole, into), func(e state.Event) { b := e.(*state.BundleInForce); b.How, b.Watch = state.ByChange, 0 }, "goes by the rollout"},
		"in force by a rollout that was not": {index(t, whole, func(e *state.BundleInForce) bool { return e.How == state.ByChange }), func(e state.Event) {
			e.(*state.BundleInForce).How = state.ByRollout
		}, "nothing is being rolled out"},
		"another rollback than the signed":     {index(t, whole, proposed), func(e state.Event) { e.(*state.ChangeProposed).Rollback[0]++ }, "signed text is not about this"},
		"another rollout than the signed":      {index(t, whole, proposed), func(e state.Event) { e.(*state.ChangeProposed).Rollout = "quick" }, "signed text is not about this"},
		"containment that nobody signed":       {index(t, whole, proposed), func(e state.Event) { e.(*state.ChangeProposed).Containment = []string{"README.md"} }, "signed text is not about this"},
		"a text of a version that there isn't": {index(t, whole, proposed), func(e state.Event) { e.(*state.ChangeProposed).Version = 3 }, "signed text is not about this"},
	} {
		t.Run(name, func(t *testing.T) {
			m := whole.clone()
			m.checkpoint, m.snapshots = nil, nil
			at := c.at
			if c.edit != nil {
				m.change(t, at, func(e *state.Entry) { c.edit(e.Event) })
			} else {
				m.change(t, at-1, func(e *state.Entry) { e.Event.(*state.RolloutEnded).Cause = state.Cause{By: state.BySupersede} })
			}
			_, err := run(m, audit.Options{})
			var f *audit.Fault
			if !problem.Is(err, problem.ReasonTampered) || !errors.As(err, &f) || f.Index != uint64(at) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want entry %d: %s", err, at, c.says)
			}
		})
	}
}

// A step too early: its time is changed, and what comes after it stays where it is.
func TestStepTooEarly(t *testing.T) {
	whole, _ := rolled(t)
	at := index(t, whole, func(e *state.RolloutMoved) bool { return e.Step == 1 })
	m := whole.clone()
	m.checkpoint, m.snapshots, m.entries = nil, nil, m.entries[:at+1:at+1]
	before, err := state.Decode(m.entries[at-1].Body)
	if err != nil {
		t.Fatal(err)
	}
	m.change(t, at, func(e *state.Entry) {
		moved := e.Event.(*state.RolloutMoved)
		moved.Until += before.Time - e.Time
		e.Time = before.Time
	})
	_, err = run(m, audit.Options{})
	var f *audit.Fault
	if !errors.As(err, &f) || f.Index != uint64(at) || !strings.Contains(err.Error(), "not over until") {
		t.Errorf("got %v", err)
	}
}

// A ledger that is cut between the end of a rollout and the bundle that it was ended for.
func TestOvertakenByNothing(t *testing.T) {
	whole, _ := rolled(t)
	at := index(t, whole, func(e *state.RolloutEnded) bool { return e.Cause.By == state.BySupersede })
	m := whole.clone()
	m.checkpoint, m.snapshots, m.entries = nil, nil, m.entries[:at+1:at+1]
	m.rehash(t)
	_, err := run(m, audit.Options{})
	var f *audit.Fault
	if !errors.As(err, &f) || f.Index != uint64(at) || !strings.Contains(err.Error(), "none comes into force") {
		t.Errorf("got %v", err)
	}
}
