package invariant_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

const plantedRollout = `apiVersion: bailment/v1
kind: Rollout
metadata: {name: default}
spec:
  steps:
    - {stage: shadow, for: 10s}
    - {stage: canary, for: 10s, cohort: [/workload/api]}
    - {stage: canary, for: 10s, share: 99}
  watch: 1h
  triggers:
    - {on: denied, sources: 2}
`

var (
	candidate = state.Digest{0xca}
	goesBack  = state.Digest{0xcb}
)

// staged is an approved change of the bundle that goes by a rollout. Its candidate takes from the workload what it reads.
func (s *scene) staged() (uint64, *state.RolloutMoved) { return s.stagedBy(plantedRollout) }

func (s *scene) stagedBy(rollout string) (uint64, *state.RolloutMoved) {
	s.t.Helper()
	s.bring("rollouts/default.yaml", rollout)
	files := maps.Clone(s.r.files)
	files["rollouts/default.yaml"] = []byte(rollout)
	s.r.programs[goesBack] = compileFiles(s.t, files)
	plan, _ := s.r.programs[goesBack].Rollout("default")
	tight := strings.Replace(string(files["grants/all.yaml"]), "secrets: [db/*]", "secrets: [db/a]", 1)
	if tight == string(files["grants/all.yaml"]) {
		s.t.Fatal("the candidate takes nothing away")
	}
	files["grants/all.yaml"] = []byte(tight)
	s.r.programs[candidate] = compileFiles(s.t, files)
	p := s.propose("bundle", "")
	signed := p.Signature
	p.Manifest, p.Bundle, p.Rollout, p.Rollback, p.Version = candidate, &signed, "default", goesBack, 2
	ch := s.add(p)
	s.add(s.approve(ch))
	s.legal()
	planned := state.PlanOf(plan)
	return ch, &state.RolloutMoved{Change: ch, Manifest: candidate, Plan: &planned, Until: s.now() + 1000 + 10_000}
}

// now is the time of the last entry; add is a second later.
func (s *scene) now() state.Millis { return s.entries[len(s.entries)-1].Time }

// legal fails if something was found before the plant.
func (s *scene) legal() {
	s.t.Helper()
	if len(s.found) > 0 {
		s.t.Fatalf("what the plant starts from is a violation: %v", s.found)
	}
}

// step is the legal next step, and when.
func (s *scene) step(ch uint64, step int) (*state.RolloutMoved, state.Millis) {
	at := last[*state.RolloutMoved](s, nil).Until
	return &state.RolloutMoved{Change: ch, Manifest: candidate, Step: step, Generation: s.ruling().Generation + 1, Until: at + 10_000}, at
}

// rollsTo is a rollout at a step; 3 is in force.
func (s *scene) rollsTo(step int) uint64 {
	s.t.Helper()
	ch, first := s.staged()
	s.add(first)
	for i := 1; i <= min(step, 2); i++ {
		e, at := s.step(ch, i)
		s.addAt(at, e)
	}
	if step == 3 {
		e, at := s.into(ch)
		s.addAt(at, e)
	}
	s.legal()
	return ch
}

// into is its coming into force, and when.
func (s *scene) into(ch uint64) (*state.BundleInForce, state.Millis) {
	at, r := last[*state.RolloutMoved](s, nil).Until, s.ruling()
	return &state.BundleInForce{
		Generation: r.Generation + 1, Manifest: candidate, Previous: r.Bundle, Change: ch, How: state.ByRollout, Watch: at + 3_600_000,
	}, at
}

// person is a rollback by bob.
func (s *scene) person() state.Cause {
	r := s.ruling()
	return state.Cause{By: state.ByPerson, Reason: "planted", Ruling: &r, Actor: &state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}}
}

// ended is the end of the rollout by bob.
func (s *scene) ended(ch uint64) *state.RolloutEnded {
	e := &state.RolloutEnded{Change: ch, Cause: s.person()}
	if last[*state.RolloutMoved](s, nil).Step > 0 {
		e.Generation = s.ruling().Generation + 1
	}
	return e
}

// back is the rollback by bob of what is in force.
func (s *scene) back(ch uint64) *state.BundleInForce {
	r, why := s.ruling(), s.person()
	return &state.BundleInForce{Generation: r.Generation + 1, Manifest: goesBack, Previous: r.Bundle, Change: ch, How: state.ByRollback, Cause: &why}
}

// lost is a refusal of the workload by the candidate, which the bundle before would not have made.
func (s *scene) lost() *state.RequestDenied {
	r := s.ruling()
	if r.Bundle != candidate {
		r.Bundle, r.Cohort = candidate, state.CohortCanary
	}
	r.Grant = ""
	return &state.RequestDenied{
		Action: string(policy.ReadSecret), Target: "db/c", Purpose: "runtime", Reason: "no-grant", Actor: s.release().Actor, Ruling: r, Beside: state.BesideAllowed, Version: 1,
	}
}

// fills is a minute with all the refusals that are entered whole.
func (s *scene) fills() {
	at := s.now() - s.now()%60_000 + 60_000 // the canary is ten seconds
	for range 60 {
		e := s.lost()
		e.Target, e.Beside, e.Version = "node/seed", "", 0
		s.addAt(at, e)
	}
	s.legal()
}

// inCanary is a release by the candidate.
func (s *scene) inCanary() *state.SecretReleased {
	e := s.release()
	e.Ruling.Generation, e.Ruling.Bundle, e.Ruling.Cohort = s.ruling().Generation, candidate, state.CohortCanary
	return e
}

// The legal forms that the plants start from are legal.
func TestRolloutPlantsStartLegal(t *testing.T) {
	r := history(t)
	for what, do := range map[string]func(*scene){
		"ended in the shadow":   func(s *scene) { s.add(s.ended(s.rollsTo(0))) },
		"ended in the canary":   func(s *scene) { s.add(s.ended(s.rollsTo(1))) },
		"refused in the canary": func(s *scene) { s.rollsTo(1); s.add(s.lost()) },
		"taken back in force":   func(s *scene) { s.add(s.back(s.rollsTo(3))) },
		"refused in force":      func(s *scene) { s.rollsTo(3); s.add(s.lost()) },
		"taken back under another rollout": func(s *scene) {
			ch := s.rollsTo(3)
			plan := last(s, func(_ uint64, e *state.RolloutMoved) bool { return e.Plan != nil }).Plan
			next := s.another(func(p *state.ChangeProposed) { p.Rollout, p.Version = "default", 2 })
			s.add(&state.RolloutMoved{Change: next, Manifest: goesBack, Plan: plan, Until: s.now() + 11_000})
			s.add(&state.RolloutEnded{Change: next, Cause: state.Cause{By: state.BySupersede}})
			s.add(s.back(ch))
		},
		"refused by both": func(s *scene) {
			s.rollsTo(1)
			e := s.lost()
			e.Target, e.Beside, e.Version = "node/seed", "", 0
			s.add(e)
		},
		"refused in a full minute, and not counted yet": func(s *scene) {
			s.rollsTo(1)
			s.fills()
			s.addAt(s.now(), s.lost())
		},
		"held in the canary": func(s *scene) {
			s.rollsTo(1)
			hold := s.revoke("secret:db/c")
			hold.Ruling, hold.Cutoff, hold.Hold = s.ruling(), false, true
			hold.Until = s.now() + 60_000
			s.add(hold)
			e := s.lost()
			e.Reason, e.Beside, e.Version = "held", "", 0
			s.add(e)
		},
		"observed": func(s *scene) { s.add(&state.RolloutObserved{Change: s.rollsTo(0)}) },
		"revoked": func(s *scene) {
			ch := s.rollsTo(0)
			cut := s.revoke("identity:/human/bob")
			cut.Ruling = s.ruling()
			s.add(cut)
			s.add(&state.RolloutEnded{Change: ch, Cause: state.Cause{By: state.ByRevocation}})
		},
	} {
		mine := *r
		mine.programs = maps.Clone(r.programs)
		s := newScene(t, &mine)
		do(s)
		if len(s.found) > 0 {
			t.Errorf("%s: %v", what, s.found)
		}
	}
}

// begins plants an edited first step.
func begins(edit func(s *scene, e *state.RolloutMoved)) func(*scene) {
	return func(s *scene) {
		_, e := s.staged()
		edit(s, e)
		s.add(e)
	}
}

// goesOn plants an edited second step, at its time or another.
func goesOn(edit func(s *scene, e *state.RolloutMoved, at *state.Millis)) func(*scene) {
	return func(s *scene) {
		e, at := s.step(s.rollsTo(0), 1)
		edit(s, e, &at)
		s.addAt(at, e)
	}
}

// comesInto plants an edited coming into force.
func comesInto(edit func(s *scene, e *state.BundleInForce, at *state.Millis)) func(*scene) {
	return func(s *scene) {
		e, at := s.into(s.rollsTo(2))
		edit(s, e, &at)
		s.addAt(at, e)
	}
}

// endsBy plants the end of a shadow for a cause.
func endsBy(why func(s *scene) state.Cause) func(*scene) {
	return func(s *scene) {
		e := s.ended(s.rollsTo(0))
		e.Cause = why(s)
		s.add(e)
	}
}

// goesBackBy plants an edited rollback of what is in force.
func goesBackBy(edit func(s *scene, e *state.BundleInForce)) func(*scene) {
	return func(s *scene) {
		e := s.back(s.rollsTo(3))
		edit(s, e)
		s.add(e)
	}
}

// another is a change that is approved and goes by no rollout.
func (s *scene) another(edit func(*state.ChangeProposed)) uint64 {
	p := s.propose("bundle", "")
	signed := p.Signature
	p.Manifest, p.Bundle = goesBack, &signed
	edit(p)
	ch := s.add(p)
	s.add(s.approve(ch))
	return ch
}

var rolloutPlants = []planted{
	{invariant.Lifecycle, "a rollout of another bundle", begins(func(_ *scene, e *state.RolloutMoved) { e.Manifest = goesBack }), "is about another bundle"},
	{invariant.Lifecycle, "a rollout without a plan", begins(func(_ *scene, e *state.RolloutMoved) { e.Plan = nil }), "begins without a plan"},
	{invariant.Lifecycle, "a plan with a shorter step", begins(func(_ *scene, e *state.RolloutMoved) { e.Plan.Steps[1].For = 1 }), "has no such rollout"},
	{invariant.Lifecycle, "a plan without a trigger", begins(func(_ *scene, e *state.RolloutMoved) { e.Plan.Triggers = nil }), "has no such rollout"},
	{invariant.Lifecycle, "a plan without steps", begins(func(_ *scene, e *state.RolloutMoved) { e.Plan.Steps = nil }), "has no step 0"},
	{invariant.Lifecycle, "a step that ends early", begins(func(_ *scene, e *state.RolloutMoved) { e.Until-- }), "the step is over at"},
	{invariant.Lifecycle, "a rollout that nobody proposed", begins(func(_ *scene, e *state.RolloutMoved) { e.Change = 1 << 40 }), "there is no open change"},
	{invariant.Lifecycle, "a rollout of what goes at once", begins(func(s *scene, e *state.RolloutMoved) {
		e.Change = s.another(func(*state.ChangeProposed) {})
		e.Manifest, e.Until = goesBack, s.now()+11_000
	}), "has no such rollout"},
	{invariant.Lifecycle, "a rollout beside a rollout", func(s *scene) {
		_, e := s.staged()
		again := *e
		s.add(e)
		again.Change, again.Until = s.another(func(p *state.ChangeProposed) { p.Manifest, p.Rollout, p.Rollback = candidate, "default", goesBack }), s.now()+11_000
		s.add(&again)
	}, "is being rolled out already"},
	{invariant.Separated, "a rollout without approvals", func(s *scene) {
		_, e := s.staged()
		p := s.propose("bundle", "")
		signed := p.Signature
		p.Manifest, p.Bundle, p.Rollout, p.Rollback, p.Version = candidate, &signed, "default", goesBack, 2
		e.Change = s.add(p)
		e.Until = s.now() + 11_000
		s.add(e)
	}, "has the approval of 0 persons"},
	{invariant.Revoked, "a rollout of what a revoked person approved", func(s *scene) {
		_, e := s.staged()
		cut := s.revoke("identity:/human/bob")
		cut.Ruling = s.ruling()
		s.add(cut)
		e.Until = s.now() + 11_000
		s.add(e)
	}, ""},
	{invariant.Monotonic, "a shadow that begins a generation", begins(func(s *scene, e *state.RolloutMoved) { e.Generation = s.ruling().Generation + 1 }), "it begins generation"},
	{invariant.Monotonic, "a canary without a generation", goesOn(func(_ *scene, e *state.RolloutMoved, _ *state.Millis) { e.Generation = 0 }), "generation 0 follows"},
	{invariant.Lifecycle, "a step too early", goesOn(func(_ *scene, _ *state.RolloutMoved, at *state.Millis) { *at-- }), "is not over until"},
	{invariant.Lifecycle, "a step on that nobody asked in", func(s *scene) {
		ch, first := s.stagedBy(strings.Replace(plantedRollout, "shadow, for: 10s", "shadow, for: 10s, asked: 1", 1))
		s.add(first)
		e, at := s.step(ch, 1)
		s.addAt(at, e)
	}, "0 asked in the step before it"},
	{invariant.Lifecycle, "in force, and nobody asked", func(s *scene) {
		ch, first := s.stagedBy(strings.Replace(plantedRollout, "for: 10s, share: 99", "for: 10s, share: 99, asked: 1", 1))
		s.add(first)
		for i := range 2 {
			e, at := s.step(ch, i+1)
			s.addAt(at, e)
		}
		s.legal()
		e, at := s.into(ch)
		s.addAt(at, e)
	}, "0 asked in its last step"},
	{invariant.Lifecycle, "a step left out", goesOn(func(_ *scene, e *state.RolloutMoved, _ *state.Millis) { e.Step = 2 }), "does not follow"},
	{invariant.Lifecycle, "another plan on the way", goesOn(func(s *scene, e *state.RolloutMoved, _ *state.Millis) {
		e.Plan = last(s, func(_ uint64, e *state.RolloutMoved) bool { return e.Plan != nil }).Plan
	}), "does not follow"},
	{invariant.Lifecycle, "a step after the last", func(s *scene) {
		e, at := s.step(s.rollsTo(2), 3)
		s.addAt(at, e)
	}, "has no step 3"},
	{invariant.Lifecycle, "an end of nothing", func(s *scene) {
		ch := s.rollsTo(0)
		s.add(s.ended(ch))
		s.add(s.ended(ch))
	}, "is not being rolled out"},
	{invariant.Lifecycle, "an observation of nothing", func(s *scene) { s.add(&state.RolloutObserved{Change: 7}) }, "is not being rolled out"},
	{invariant.Monotonic, "an end of a canary without a generation", func(s *scene) {
		e := s.ended(s.rollsTo(1))
		e.Generation = 0
		s.add(e)
	}, "generation 0 follows"},
	{invariant.Lifecycle, "an end for another bundle that does not come", func(s *scene) {
		endsBy(func(*scene) state.Cause { return state.Cause{By: state.BySupersede} })(s)
		s.add(s.workload())
	}, "and none comes into force"},
	{invariant.Lifecycle, "an end for a bundle whose own rollout it is", func(s *scene) {
		ch := s.rollsTo(2)
		at := last[*state.RolloutMoved](s, nil).Until
		s.addAt(at, &state.RolloutEnded{Change: ch, Cause: state.Cause{By: state.BySupersede}, Generation: s.ruling().Generation + 1})
		e, _ := s.into(ch)
		s.addAt(at, e)
	}, "and none comes into force"},
	{invariant.Lifecycle, "an end by nobody", endsBy(func(*scene) state.Cause { return state.Cause{By: state.ByPerson} }), "nobody rolled it back"},
	{invariant.Lifecycle, "an end by magic", endsBy(func(*scene) state.Cause { return state.Cause{By: "magic"} }), "nothing is rolled back by"},
	{invariant.Lifecycle, "an end by a revocation that was not", endsBy(func(*scene) state.Cause { return state.Cause{By: state.ByRevocation} }), "approvals stand"},
	{invariant.Lifecycle, "an end by no trigger", endsBy(func(*scene) state.Cause { return state.Cause{By: state.ByTrigger} }), "no trigger watches"},
	{invariant.Lifecycle, "an end by a trigger that there is not", endsBy(func(*scene) state.Cause {
		return state.Cause{By: state.ByTrigger, Figure: &state.Figure{Trigger: 1, On: policy.TriggerDenied}}
	}), "no trigger watches"},
	{invariant.Lifecycle, "an end by a trigger that saw nothing", endsBy(func(*scene) state.Cause {
		return state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: policy.TriggerDenied}}
	}), "are not what the trigger asks for"},
	{invariant.Lifecycle, "an end by a trigger that saw too much", endsBy(func(*scene) state.Cause {
		return state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: policy.TriggerDenied, Sources: 2, Asked: 2}}
	}), "the trigger saw 2 of 2"},
	{invariant.Lifecycle, "a trigger that names who lost nothing", endsBy(func(*scene) state.Cause {
		return state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: policy.TriggerDenied, Named: []string{"/node/join-token/web-2"}}}
	}), "nothing that it had was refused"},
	{invariant.Permitted, "an end by who may not", endsBy(func(s *scene) state.Cause {
		why := s.person()
		why.Actor = &state.Actor{Identity: "/workload/api", Node: s.release().Actor.Node, Session: s.release().Actor.Session}
		return why
	}), "is not a person"},
	{invariant.Lifecycle, "in force by its change, past its rollout", func(s *scene) {
		ch, _ := s.staged()
		e := s.back(ch)
		e.How, e.Manifest, e.Cause = state.ByChange, candidate, nil
		s.add(e)
	}, "goes by the rollout default"},
	{invariant.Lifecycle, "in force by another change, during a rollout", func(s *scene) {
		s.rollsTo(0)
		e := s.back(s.another(func(*state.ChangeProposed) {}))
		e.How, e.Cause = state.ByChange, nil
		s.add(e)
	}, "is being rolled out"},
	{invariant.Lifecycle, "in force too early", comesInto(func(_ *scene, _ *state.BundleInForce, at *state.Millis) { *at-- }), "is not over"},
	{invariant.Lifecycle, "in force from the shadow", func(s *scene) {
		e, at := s.into(s.rollsTo(0))
		s.addAt(at, e)
	}, "is not over"},
	{invariant.Lifecycle, "in force with another bundle", comesInto(func(_ *scene, e *state.BundleInForce, _ *state.Millis) { e.Manifest = goesBack }), "is not being rolled out"},
	{invariant.Lifecycle, "in force, and watched for longer", comesInto(func(_ *scene, e *state.BundleInForce, _ *state.Millis) { e.Watch++ }), "its triggers watch until"},
	{invariant.Lifecycle, "in force in a way that there is not", comesInto(func(_ *scene, e *state.BundleInForce, _ *state.Millis) { e.How = "magic" }), "can't come into force by"},
	{invariant.Lifecycle, "a rollback to another bundle", goesBackBy(func(s *scene, e *state.BundleInForce) {
		e.Manifest = last(s, func(_ uint64, e *state.BundleInForce) bool { return e.Manifest != candidate }).Previous
	}), "pre-authorised"},
	{invariant.Lifecycle, "a rollback of a rollback", func(s *scene) {
		ch := s.rollsTo(3)
		s.add(s.back(ch))
		s.add(s.back(ch))
	}, "is not in force"},
	{invariant.Lifecycle, "a rollback without a cause", goesBackBy(func(_ *scene, e *state.BundleInForce) { e.Cause = nil }), "without a cause"},
	{invariant.Lifecycle, "a rollback for another bundle", goesBackBy(func(_ *scene, e *state.BundleInForce) { e.Cause = &state.Cause{By: state.BySupersede} }), "is not rolled back by superseded"},
	{invariant.Lifecycle, "a rollback by a trigger after its watch", func(s *scene) {
		e := s.back(s.rollsTo(3))
		e.Cause = &state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: policy.TriggerDenied}}
		s.addAt(s.now()+3_600_000, e)
	}, "no trigger watches"},
	{invariant.Lifecycle, "a rollback of what is in force, during a rollout", func(s *scene) {
		ch := s.rollsTo(3)
		plan := last(s, func(_ uint64, e *state.RolloutMoved) bool { return e.Plan != nil }).Plan
		next := s.another(func(p *state.ChangeProposed) { p.Rollout, p.Version = "default", 2 })
		s.add(&state.RolloutMoved{Change: next, Manifest: goesBack, Plan: plan, Until: s.now() + 11_000})
		s.legal()
		s.add(s.back(ch))
	}, "is being rolled out"},
	{invariant.Lifecycle, "a rollback to nothing", func(s *scene) {
		s.bring("README.md", "what is kept whole")
		e := s.back(last[*state.BundleInForce](s, nil).Change)
		e.Manifest = state.Digest{}
		s.add(e)
	}, "pre-authorised"},
	{invariant.Permitted, "a release in a canary by the bundle in force", func(s *scene) {
		s.rollsTo(1)
		e := s.release()
		e.Ruling = s.ruling()
		s.add(e)
	}, "governs it"},
	{invariant.Permitted, "a release in a canary of no cohort", func(s *scene) {
		s.rollsTo(1)
		e := s.inCanary()
		e.Ruling.Cohort = ""
		s.add(e)
	}, "governs it"},
	{invariant.Permitted, "a release that the candidate does not allow", func(s *scene) {
		s.rollsTo(1)
		s.add(s.inCanary())
	}, ""},
	{invariant.Permitted, "a release by the candidate in its shadow", func(s *scene) {
		s.rollsTo(0)
		s.add(s.inCanary())
	}, "governs it"},
	{invariant.Lifecycle, "a loss in a canary that is not told", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Beside, e.Version = "", 0
		s.add(e)
	}, "it does not say so"},
	{invariant.Lifecycle, "a loss after coming into force that is not told", func(s *scene) {
		s.rollsTo(3)
		e := s.lost()
		e.Beside, e.Version = "", 0
		s.add(e)
	}, "it does not say so"},
	{invariant.Lifecycle, "a loss of another version", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Version++
		s.add(e)
	}, "the version that is current is"},
	{invariant.Lifecycle, "a loss that was undecided, and was not", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Undecided = true
		s.add(e)
	}, "a condition could not be told"},
	{invariant.Bounded, "a loss in a full minute that was counted", func(s *scene) {
		s.rollsTo(1)
		s.fills()
		s.addAt(s.now(), s.lost())
		s.legal()
		s.addAt(s.now(), s.lost())
	}, "more than 60 denials"},
	{invariant.Lifecycle, "half a loss", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Beside = ""
		s.add(e)
	}, "and not that it does"},
	{invariant.Lifecycle, "a loss that the candidate allows", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Target = "db/a"
		s.add(e)
	}, "allowed is true where it must be false"},
	{invariant.Lifecycle, "a loss that the bundle before refuses as well", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Target = "node/seed"
		s.add(e)
	}, "allowed is false where it must be true"},
	{invariant.Lifecycle, "a loss in a shadow", func(s *scene) {
		s.rollsTo(0)
		e := s.lost()
		e.Ruling = s.ruling()
		s.add(e)
	}, "no other bundle is beside"},
	{invariant.Lifecycle, "a loss of who is not in the canary", func(s *scene) {
		s.rollsTo(1)
		e := s.lost()
		e.Ruling = s.ruling()
		e.Actor = state.Actor{Identity: "/node/join-token/web-2", Session: s.r.cast.Node.Opened.Index}
		s.add(e)
	}, "no other bundle is beside"},
	{invariant.Lifecycle, "a loss after the watch", func(s *scene) {
		s.rollsTo(3)
		s.addAt(s.now()+3_600_000, s.lost())
	}, "no other bundle is beside"},
	{invariant.Permitted, "a candidate that is not there", begins(func(s *scene, _ *state.RolloutMoved) { delete(s.r.programs, candidate) }), "can't be had"},
}
