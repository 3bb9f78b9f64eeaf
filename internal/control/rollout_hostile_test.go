package control_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

const workloadRollout = `apiVersion: bailment/v1
kind: Rollout
metadata: {name: default}
spec:
  steps:
    - {stage: canary, for: 10m, cohort: [/workload/api]}
  triggers:
    - {on: denied, sources: 2}
`

// workloads are processes of one identity on several machines, which were served.
func (s *staged) workloads(nodes ...controltest.Actor) []controltest.Actor {
	s.T.Helper()
	out := make([]controltest.Actor, len(nodes))
	for i, n := range nodes {
		out[i] = s.Workload(n, "/workload/api")
		_, _, err := s.Get(out[i], "db/password")
		s.must(err)
	}
	return out
}

// tightened takes from workloads what they read.
func (s *staged) tightened() policy.Files {
	return s.edited(func(f policy.Files) {
		f["grants/all.yaml"] = []byte(strings.Replace(string(f["grants/all.yaml"]), "secrets: [db/*]", "secrets: [db/none]", 1))
	})
}

// One machine that floods in an identity that it shares with others keeps nothing of what they lose from being entered: the bound of an
// identity's whole denials is not for what a trigger has yet to count.
func TestFloodInASharedIdentityHidesNothing(t *testing.T) {
	s := newStaged(t, workloadRollout, 3)
	api := s.workloads(s.nodes...)
	ch := s.change(s.tightened())
	s.is(ch.Index, state.Canary, 3)
	for i := range 100 {
		_, err := s.Env.Get(context.Background(), api[0].Caller, control.GetRequest{Secret: fmt.Sprint("db/", i)})
		s.refused(err, problem.ReasonNoGrant)
	}
	size := s.Env.Ledger().Size()
	for range 20 { // whole once, and then summed
		_, _, err := s.Get(api[1], "db/password")
		s.refused(err, problem.ReasonNoGrant)
	}
	if grown := s.Env.Ledger().Size() - size; grown != 1 {
		t.Errorf("20 refusals in a minute that is full are %d entries", grown)
	}
	_, _, err := s.Get(api[2], "db/password")
	s.refused(err, problem.ReasonNoGrant)
	s.advance()
	s.is(ch.Index, state.RolledBack, 4)
	if why := lastOf[*state.RolloutEnded](s.World).Cause; why.Figure == nil || why.Figure.Sources != 2 {
		t.Errorf("it ended by %+v", why)
	}
	s.consistent()
}

// Who admits machines makes no sources of a trigger with those that he admits once the change is known: neither new ones, nor new holders
// of old names, though what they speak for was served all along.
func TestMachinesAdmittedMeanwhileTriggerNothing(t *testing.T) {
	for name, admit := range map[string]func(*staged) []controltest.Actor{
		"new": func(s *staged) []controltest.Actor {
			return []controltest.Actor{s.Node(s.by["carol"], "bad0"), s.Node(s.by["carol"], "bad1")}
		},
		"old names": func(s *staged) []controltest.Actor {
			return []controltest.Actor{s.Node(s.by["carol"], "n0"), s.Node(s.by["carol"], "n1")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStaged(t, workloadRollout, 3)
			honest := s.workloads(s.nodes...)[2]
			p, err := s.Propose(s.by["alice"], "alice", s.tightened())
			s.must(err)
			bad := s.workloads(admit(s)...)
			_, err = s.Approve(s.by["bob"], "bob", p.Change)
			s.must(err)
			for _, a := range append(bad, honest) {
				_, _, err := s.Get(a, "db/password")
				s.refused(err, problem.ReasonNoGrant)
			}
			s.advance()
			s.is(p.Change.Index, state.Canary, 3)
			if r := s.Env.State().Staged(); r.Hits[0] != 1 || r.Asked != 3 {
				t.Errorf("%d of %d sources are counted, and one was there before the change", r.Hits[0], r.Asked)
			}
			s.consistent()
		})
	}
}

// What was served for the first time after a change was proposed is no reason to take it back: who makes repositories, or names, could
// have any number of them served meanwhile.
func TestServedSinceTheProposalTriggersNothing(t *testing.T) {
	s := newStaged(t, workloadRollout, 3)
	api := []controltest.Actor{s.Workload(s.nodes[0], "/workload/api"), s.Workload(s.nodes[1], "/workload/api")}
	p, err := s.Propose(s.by["alice"], "alice", s.tightened())
	s.must(err)
	s.Advance(time.Second)
	for _, a := range api {
		_, _, err = s.Get(a, "db/password")
		s.must(err)
	}
	_, err = s.Approve(s.by["bob"], "bob", p.Change)
	s.must(err)
	for _, a := range api {
		_, _, err = s.Get(a, "db/password")
		s.refused(err, problem.ReasonNoGrant)
	}
	s.advance()
	s.is(p.Change.Index, state.Canary, 3)
	s.consistent()
}

// What a shadow found is not lost with an attempt to enter it that failed.
func TestShadowOutlivesAFailedCommit(t *testing.T) {
	for range 20 {
		if failsToObserve(t) {
			return
		}
	}
	t.Fatal("the server's own loop was quicker 20 times")
}

// failsToObserve is false if the server's own loop had entered already what was to fail.
func failsToObserve(t *testing.T) bool {
	t.Helper()
	s := newStaged(t, stagedRollout, 4)
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 3) }))
	for i := range 4 {
		s.reads(i, "")
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	failed := s.Env.Observe(gone) != nil
	s.reads(0, "")
	s.must(s.Env.Observe(context.Background()))
	s.advance()
	s.is(ch.Index, state.RolledBack, 2)
	if o := lastOf[*state.RolloutObserved](s.World); failed && o.Compared != 5 {
		return false // the loop came between the reads
	} else if failed && (len(o.Differences) != 3 || o.Differences[0].Count != 2) {
		t.Errorf("observed %+v", o)
	}
	s.consistent()
	return failed
}

// In the shadow of a change that gives something back, who is still refused it loses nothing by the change: it is no reason to take the
// change back, and the checks find nothing wrong with it.
func TestShadowOfAWidening(t *testing.T) {
	s := newStaged(t, stagedRollout, 4)
	s.Files["grants/nodes.yaml"] = nodeGrant("nodes", 3)
	s.Stage.Containment = []string{"grants/nodes.yaml"}
	s.change(s.Files)
	s.Stage = controltest.Stage{}
	for i := range 3 {
		s.reads(i, problem.ReasonNoGrant)
	}
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 0, 1, 2, 3) }))
	for i := range 3 {
		s.reads(i, problem.ReasonNoGrant)
	}
	s.advance()
	s.is(ch.Index, state.Shadow, 3)
	s.consistent()
	s.pass(time.Minute)
	if r := s.Env.State().Staged(); r == nil || r.Hits[0] != 0 || r.Differed != 3 {
		t.Errorf("the rollout is %+v", r)
	}
	s.consistent()
}

// What is in force can be taken back while the next change is being rolled out over it: in one commit, which ends that one.
func TestRollBackUnderAnotherRollout(t *testing.T) {
	for name, wait := range map[string]time.Duration{"in its shadow": 0, "in its canary": 11 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			s := newStaged(t, stagedRollout, 3)
			files := s.edited(func(f policy.Files) { f["README.md"] = []byte("it hurts") })
			hurts := s.change(files)
			for range 3 {
				s.pass(11 * time.Minute)
			}
			s.is(hurts.Index, state.InForce, 5)
			s.Files = files
			next := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 0, 1) }))
			if wait > 0 {
				s.pass(wait)
			}
			size, generation := s.Env.Ledger().Size(), s.Env.State().Generation
			p, err := s.Env.RollBack(context.Background(), s.by["carol"].Caller, control.RollbackRequest{Change: hurts.Index, Reason: "it hurts"})
			s.must(err)
			if got := s.Env.State(); got.Bundle != hurts.Rollback || got.Staged() != nil || p.Generation != got.Generation || got.Generation <= generation {
				t.Errorf("%s is in force in generation %d, was told %d, and %+v is on its way", got.Bundle, got.Generation, p.Generation, got.Staged())
			}
			if grown := s.Env.Ledger().Size() - size; grown != 2 {
				t.Errorf("it took %d entries", grown)
			}
			if hurts, next := s.now(hurts.Index).State, s.now(next.Index).State; hurts != state.RolledBack || next != state.RolledBack {
				t.Errorf("the changes are %s and %s", hurts, next)
			}
			s.consistent()
		})
	}
}

// Time in which nobody asks proves nothing: a step that wants questions waits for them, however long nobody could ask, the server being away.
func TestStepWaitsForQuestions(t *testing.T) {
	s := newStaged(t, strings.Replace(strings.Replace(stagedRollout, "for: 10m", "for: 10m, asked: 2", 2), "share: 50}", "share: 50, asked: 1}", 1), 3)
	ch := s.change(s.edited(func(f policy.Files) { f["README.md"] = []byte("x") }))
	s.pass(48 * time.Hour) // nobody asked in the shadow
	s.is(ch.Index, state.Shadow, 2)
	for i := range 3 {
		s.nodes[i] = s.Node(s.by["alice"], fmt.Sprintf("n%d", i))
	}
	s.reads(0, "")
	s.reads(0, "")
	s.advance()
	s.is(ch.Index, state.Shadow, 2)
	s.reads(1, "")
	s.advance()
	s.is(ch.Index, state.Canary, 3)
	s.pass(11 * time.Minute)
	s.reads(0, "")
	s.reads(2, "")
	s.advance()
	s.is(ch.Index, state.Canary, 4)
	if r := s.Env.State().Staged(); r.Asked != 0 {
		t.Errorf("%d asked in a step that has just begun", r.Asked)
	}
	s.consistent()
}

// One change is rolled out at a time: the last approval of a second one is refused as long as the first is on its way, and counts after it.
func TestOneRolloutAtATime(t *testing.T) {
	s := newStaged(t, stagedRollout, 1)
	one, two := s.propose("alice", "one"), s.propose("alice", "two")
	_, err := s.Approve(s.by["bob"], "bob", one)
	s.must(err)
	s.is(one.Index, state.Shadow, 2)
	_, err = s.Approve(s.by["bob"], "bob", two)
	s.refused(err, problem.ReasonConflict)
	if p := problem.As(err); !strings.Contains(p.Message, fmt.Sprintf("change %d is being rolled out", one.Index)) {
		t.Errorf("it doesn't say which: %v", err)
	}
	s.is(two.Index, state.Proposed, 2)
	_, err = s.Env.RollBack(context.Background(), s.by["carol"].Caller, control.RollbackRequest{Change: one.Index, Reason: "the other one first"})
	s.must(err)
	_, err = s.Approve(s.by["bob"], "bob", two)
	s.must(err)
	s.is(two.Index, state.Shadow, 2)
	s.consistent()
}

// A text of version 1 says nothing of rollout and rollback, also where there is no rollback to say anything of.
func TestTextOfVersionOne(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.AddPerson("dora")
	for name, files := range map[string]policy.Files{
		"with a rollback": b.with("README.md", "x"),
		"without one":     b.with("operators.yaml", string(b.Operators("alice", "bob", "carol", "dora"))),
	} {
		m, c := b.NextBundle(b.by["alice"], "alice", files)
		if (c.Rollback == "") != (name == "without one") {
			t.Fatalf("%s: it can be rolled back to %q", name, c.Rollback)
		}
		c.Version, c.Rollback = 1, ""
		_, err := b.Env.Propose(context.Background(), b.by["alice"].Caller, control.ProposeRequest{
			Text: c.Text(), SSHSIG: b.Sign("alice", ceremony.NamespaceChange, c.Text()), Manifest: m.Text(), Files: files,
			ManifestSignature: b.Sign("alice", ceremony.NamespaceBundle, string(m.Text())),
		})
		if !problem.Is(err, problem.ReasonInvalid) || !strings.Contains(err.Error(), "version 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
