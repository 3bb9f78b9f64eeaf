package control_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// staged is a board whose bundle has a rollout, with machines that read a secret.
type staged struct {
	*board
	nodes []controltest.Actor
}

const stagedRollout = `apiVersion: bailment/v1
kind: Rollout
metadata: {name: default}
spec:
  steps:
    - {stage: shadow, for: 10m}
    - {stage: canary, for: 10m, cohort: [/node/join-token/n0, /node/join-token/n1, /node/join-token/n2]}
    - {stage: canary, for: 10m, share: 50}
  watch: 1h
  triggers:
    - {on: denied, sources: 2, share: 10}
`

func nodeGrant(name string, nodes ...int) []byte {
	list := make([]string, len(nodes))
	for i, n := range nodes {
		list[i] = fmt.Sprintf("/node/join-token/n%d", n)
	}
	return fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: %s}\nspec: {actions: [secret.read], identities: [%s], secrets: [db/password], purposes: [runtime]}\n",
		name, strings.Join(list, ", "))
}

func newStaged(t *testing.T, rollout string, nodes int) *staged {
	t.Helper()
	return newStagedOf(t, controltest.Options{}, rollout, nodes)
}

func newStagedOf(t *testing.T, o controltest.Options, rollout string, nodes int) *staged {
	t.Helper()
	o.Persons, o.Quorum = []string{"alice", "bob", "carol"}, 1
	s := &staged{board: newBoardOf(t, o)}
	all := make([]int, nodes)
	for i := range nodes {
		all[i] = i
	}
	s.Files["grants/nodes.yaml"] = nodeGrant("nodes", all...)
	s.Files["rollouts/default.yaml"], s.Files["README.md"] = []byte(rollout), []byte("first")
	_, err := s.Approve(s.by["bob"], "bob", s.propose("alice", "first"))
	s.must(err)
	s.Put(s.by["alice"], "db/password", "v1")
	for i := range nodes {
		n := s.Node(s.by["alice"], fmt.Sprintf("n%d", i))
		s.nodes = append(s.nodes, n)
		_, _, err := s.Get(n, "db/password")
		s.must(err)
	}
	return s
}

// change proposes files and has them approved.
func (s *staged) change(files policy.Files) *state.Change {
	s.T.Helper()
	p, err := s.Propose(s.by["alice"], "alice", files)
	s.must(err)
	_, err = s.Approve(s.by["bob"], "bob", p.Change)
	s.must(err)
	return s.now(p.Change.Index)
}

func (s *staged) now(change uint64) *state.Change {
	s.T.Helper()
	ch, ok := s.Env.State().Changes.Get(change)
	if !ok {
		s.T.Fatalf("there is no change %d", change)
	}
	return ch
}

// pass lets time pass, and persons log in anew.
func (s *staged) pass(d time.Duration) {
	s.T.Helper()
	s.Advance(d)
	s.advance()
	for p := range s.by {
		if _, ok := s.Env.Program().Operator(p); ok {
			s.by[p] = s.Login(p)
		}
	}
}

// lastOf is the newest entry of a type.
func lastOf[E state.Event](w *controltest.World) E {
	w.T.Helper()
	var out E
	for _, x := range w.Stored() {
		entry, err := state.Decode(x.Body)
		if err != nil {
			w.T.Fatal(err)
		}
		if ev, ok := entry.Event.(E); ok {
			out = ev
		}
	}
	return out
}

func (s *staged) advance() {
	s.T.Helper()
	s.must(s.Env.Advance(context.Background()))
}

func (s *staged) reads(node int, want problem.Reason) {
	s.T.Helper()
	_, _, err := s.Get(s.nodes[node], "db/password")
	if want == "" {
		s.must(err)
	} else {
		s.refused(err, want)
	}
}

func (s *staged) is(change uint64, want state.ChangeState, generation uint64) {
	s.T.Helper()
	if ch := s.now(change); ch.State != want || s.Env.State().Generation != generation {
		s.T.Fatalf("change %d is %s in generation %d, want %s in %d", change, ch.State, s.Env.State().Generation, want, generation)
	}
}

func (s *staged) edited(edit func(policy.Files)) policy.Files {
	f := maps.Clone(s.Files)
	edit(f)
	return f
}

// By its steps: nobody feels a shadow, a canary governs its cohort only, and then everybody is governed.
func TestRollout(t *testing.T) {
	s := newStaged(t, stagedRollout, 6)
	base := s.Env.State().Bundle
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 1, 2, 3, 4, 5) }))
	s.is(ch.Index, state.Shadow, 2)
	s.reads(0, "")
	s.reads(1, "")
	s.pass(11 * time.Minute)
	s.is(ch.Index, state.Canary, 3)
	if r := s.Env.State().Staged(); r.Asked != 0 || r.Hits[0] != 0 || r.Compared != 2 || r.Differed != 1 {
		t.Errorf("the canary counts what the shadow did: %+v", r)
	}
	s.reads(0, problem.ReasonNoGrant)
	s.reads(1, "")
	if s.Env.State().Bundle != base {
		t.Error("the candidate is in force")
	}
	s.pass(11 * time.Minute)
	s.is(ch.Index, state.Canary, 4)
	s.pass(11 * time.Minute)
	s.is(ch.Index, state.InForce, 5)
	if s.Env.State().Bundle != ch.Manifest {
		t.Error("the candidate is not in force")
	}
	s.reads(0, problem.ReasonNoGrant) // one machine: an intended loser, or a hostile one, brings nothing back
	s.advance()
	s.is(ch.Index, state.InForce, 5)
	s.consistent()
}

// What a shadow finds is entered, and a canary need not begin to find it.
func TestShadowTrigger(t *testing.T) {
	s := newStaged(t, stagedRollout, 4)
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 3) }))
	for i := range 4 {
		s.reads(i, "")
	}
	s.pass(time.Minute)
	s.is(ch.Index, state.RolledBack, 2)
	ended := lastOf[*state.RolloutEnded](s.World)
	if ended.Cause.By != state.ByTrigger || ended.Cause.Figure.Sources != 3 || ended.Cause.Figure.Asked != 4 || len(ended.Cause.Figure.Named) != 3 {
		t.Errorf("it ended by %+v", ended.Cause)
	}
	observed := lastOf[*state.RolloutObserved](s.World)
	if observed.Compared != 4 || len(observed.Differences) != 3 || !observed.Differences[0].Allowed || observed.Differences[0].Reason != string(problem.ReasonNoGrant) {
		t.Errorf("observed %+v", observed)
	}
	s.reads(0, "")
	s.consistent()
}

// Refusals of several machines that were served before take a canary back, by themselves and at once.
func TestCanaryTrigger(t *testing.T) {
	s := newStaged(t, strings.Replace(stagedRollout, "    - {stage: shadow, for: 10m}\n", "", 1), 6)
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 5) }))
	s.is(ch.Index, state.Canary, 3)
	s.reads(0, problem.ReasonNoGrant)
	s.reads(0, problem.ReasonNoGrant)
	s.advance()
	s.is(ch.Index, state.Canary, 3)
	s.reads(3, "") // not of the cohort
	s.reads(1, problem.ReasonNoGrant)
	s.advance()
	s.is(ch.Index, state.RolledBack, 4)
	s.reads(0, "")
	s.reads(1, "")
	s.consistent()
}

// A machine that floods, with whatever it makes up, counts once, and for what it was never given not at all.
func TestFloodTriggersNothing(t *testing.T) {
	s := newStaged(t, strings.Replace(stagedRollout, "    - {stage: shadow, for: 10m}\n", "", 1), 4)
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 1, 2, 3) }))
	for range 200 {
		_, _, _ = s.Get(s.nodes[0], "db/password")
	}
	for _, n := range s.nodes[1:3] {
		for range 70 {
			_, err := s.Env.Get(context.Background(), n.Caller, control.GetRequest{Secret: "db/other"})
			s.refused(err, problem.ReasonNoGrant)
			_, err = s.Env.Get(context.Background(), n.Caller, control.GetRequest{Secret: "db/password", Purpose: "invented"})
			s.refused(err, problem.ReasonPurpose)
		}
	}
	s.advance()
	s.is(ch.Index, state.Canary, 3)
	if r := s.Env.State().Staged(); r.Hits[0] != 1 {
		t.Errorf("%d machines are counted, and one lost what it had", r.Hits[0])
	}
	s.consistent()
}

// Once in force, the triggers watch on, and what comes back is what was signed: without the operator that the change took away.
func TestWatchRollsBack(t *testing.T) {
	s := newStaged(t, stagedRollout, 4)
	founding := s.Files["operators.yaml"]
	files := s.edited(func(f policy.Files) {
		f["grants/nodes.yaml"] = nodeGrant("nodes", 3)
		f["operators.yaml"] = []byte(strings.Split(string(founding), "    - name: carol")[0])
	})
	ch := s.change(files)
	for range 3 {
		s.pass(11 * time.Minute)
	}
	s.is(ch.Index, state.InForce, 5)
	if _, ok := s.Env.Program().Operator("carol"); ok {
		t.Fatal("carol is still an operator")
	}
	s.reads(0, problem.ReasonNoGrant)
	s.reads(1, problem.ReasonNoGrant)
	s.advance()
	s.is(ch.Index, state.RolledBack, 6)
	if got := s.Env.State().Bundle; got != ch.Rollback {
		t.Fatalf("%s is in force, not %s", got, ch.Rollback)
	}
	if _, ok := s.Env.Program().Operator("carol"); ok {
		t.Error("a rollback brought an operator back")
	}
	s.reads(0, "")
	// The next change follows what is in force now.
	s.Files = files
	next := s.change(s.edited(func(f policy.Files) { f["README.md"] = []byte("again") }))
	s.is(next.Index, state.Shadow, 6)
	s.consistent()
}

// One command of one person, within one commit; never twice, and never to anything older.
func TestRollBackByHand(t *testing.T) {
	s := newStaged(t, stagedRollout, 2)
	ctx := context.Background()
	back := func(person string, change uint64) (*control.Proposal, error) {
		return s.Env.RollBack(ctx, s.by[person].Caller, control.RollbackRequest{Change: change, Reason: "it hurts"})
	}
	first := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 0) }))
	_, err := s.Env.RollBack(ctx, s.nodes[0].Caller, control.RollbackRequest{Change: first.Index, Reason: "x"})
	s.refused(err, problem.ReasonDuty)
	size := s.Env.Ledger().Size()
	p, err := back("carol", first.Index)
	s.must(err)
	if s.Env.Ledger().Size() != size+1 || p.Change.State != state.RolledBack {
		t.Errorf("%d entries, and the change is %s", s.Env.Ledger().Size()-size, p.Change.State)
	}
	s.is(first.Index, state.RolledBack, 2)

	second := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 1) }))
	for range 3 {
		s.pass(11 * time.Minute)
	}
	s.is(second.Index, state.InForce, 5)
	_, err = back("carol", second.Index)
	s.must(err)
	s.is(second.Index, state.RolledBack, 6)
	for _, change := range []uint64{first.Index, second.Index} {
		_, err = back("carol", change)
		s.refused(err, problem.ReasonConflict)
	}
	s.consistent()
}

// Containment doesn't wait, ends what is being rolled out, and no rollback undoes it.
func TestContainment(t *testing.T) {
	s := newStaged(t, stagedRollout, 3)
	slow := s.change(s.edited(func(f policy.Files) { f["README.md"] = []byte("slow") }))
	s.is(slow.Index, state.Shadow, 2)
	deny := []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: leaked}\nspec: {effect: deny, actions: [secret.read], identities: [/node/join-token/n0], secrets: [db/*]}\n")
	contained := s.edited(func(f policy.Files) { f["grants/leaked.yaml"] = deny })

	s.Stage = controltest.Stage{Rollout: "default", Containment: []string{"grants/leaked.yaml"}}
	_, err := s.Propose(s.by["alice"], "alice", contained)
	s.refused(err, problem.ReasonInvalid)
	s.Stage = controltest.Stage{Containment: []string{"grants/leaked.yaml"}}
	_, err = s.Propose(s.by["alice"], "alice", s.edited(func(f policy.Files) { f["grants/leaked.yaml"] = deny; f["README.md"] = []byte("rides along") }))
	s.refused(err, problem.ReasonInvalid)

	ch := s.change(contained)
	s.is(ch.Index, state.InForce, 3)
	if got := s.now(slow.Index).State; got != state.RolledBack {
		t.Errorf("what was being rolled out is %s", got)
	}
	s.reads(0, problem.ReasonDenied)
	_, err = s.Env.RollBack(context.Background(), s.by["carol"].Caller, control.RollbackRequest{Change: ch.Index, Reason: "undo"})
	s.refused(err, problem.ReasonConflict)
	s.reads(0, problem.ReasonDenied)
	s.consistent()
}

// What a rollout rests on can be revoked: then it ends.
func TestRevokedRollout(t *testing.T) {
	s := newStaged(t, stagedRollout, 1)
	ch := s.change(s.edited(func(f policy.Files) { f["README.md"] = []byte("x") }))
	s.revoke("carol", "identity:/human/bob")
	s.advance()
	s.is(ch.Index, state.RolledBack, 2)
	if ended := lastOf[*state.RolloutEnded](s.World); ended.Cause.By != state.ByRevocation {
		t.Errorf("it ended by %+v", ended.Cause)
	}
	s.consistent()
}

// A rollback that could not work is found when the change is proposed.
func TestRollbackIsRehearsed(t *testing.T) {
	s := newStaged(t, stagedRollout, 1)
	s.Files["grants/carol.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: carol}\nspec: {actions: [secret.list], identities: [/human/carol], secrets: [db/*]}\n")
	s.Stage.Containment = []string{"grants/carol.yaml"}
	s.change(s.Files)
	s.Stage = controltest.Stage{}
	_, err := s.Propose(s.by["alice"], "alice", s.edited(func(f policy.Files) {
		delete(f, "grants/carol.yaml")
		f["operators.yaml"] = []byte(strings.Split(string(f["operators.yaml"]), "    - name: carol")[0])
	}))
	s.refused(err, problem.ReasonBundleInvalid)
	if fix := problem.As(err).Fix; !strings.Contains(fix, "containment") {
		t.Errorf("the way out is %q", fix)
	}
}

// One machine that asks for all sorts of things in a shadow hides nothing of what the others lose.
func TestShadowFloodHidesNothing(t *testing.T) {
	s := newStaged(t, stagedRollout, 4)
	s.Files["grants/wide.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: wide}\nspec: {actions: [secret.read], identities: [/node/join-token/n0], secrets: [db/*], purposes: [runtime]}\n")
	s.Stage.Containment = []string{"grants/wide.yaml"}
	s.change(s.Files)
	s.Stage = controltest.Stage{}
	ch := s.change(s.edited(func(f policy.Files) {
		delete(f, "grants/wide.yaml")
		f["grants/nodes.yaml"] = nodeGrant("nodes", 0, 3)
	}))
	for i := range 100 {
		_, err := s.Env.Get(context.Background(), s.nodes[0].Caller, control.GetRequest{Secret: fmt.Sprint("db/", strings.Repeat("long-", 40), i)})
		s.refused(err, problem.ReasonNoVersion)
	}
	s.reads(1, "")
	s.reads(2, "")
	s.pass(time.Minute)
	s.is(ch.Index, state.RolledBack, 3)
	if why := lastOf[*state.RolloutEnded](s.World).Cause; why.By != state.ByTrigger || why.Figure.Sources != 2 || why.Figure.Asked != 3 {
		t.Errorf("it ended by %+v", why)
	}
	s.consistent()
}

// What many lose in one minute is entered, however many entries that takes.
func TestShadowOfManyMachines(t *testing.T) {
	const nodes = 45
	s := newStaged(t, strings.Replace(stagedRollout, "sources: 2", "sources: 44", 1), nodes)
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 0) }))
	for i := range nodes {
		s.reads(i, "")
	}
	s.pass(time.Minute)
	s.is(ch.Index, state.RolledBack, 2)
	s.consistent()
}

// Who is no operator any more is refused by that, and the checks know it: his is no loss that they can't explain.
func TestRemovedOperatorIsRefused(t *testing.T) {
	s := newStaged(t, stagedRollout, 1)
	ch := s.change(s.edited(func(f policy.Files) {
		f["operators.yaml"] = []byte(strings.Split(string(f["operators.yaml"]), "    - name: carol")[0])
	}))
	s.pass(11 * time.Minute)
	s.pass(11 * time.Minute)
	s.pass(6 * time.Minute)
	carol := s.by["carol"]
	s.pass(6 * time.Minute)
	s.is(ch.Index, state.InForce, 5)
	_, err := s.Env.Put(context.Background(), carol.Caller, control.PutRequest{Secret: "db/password", Value: seal.NewSecret([]byte("x"))})
	s.refused(err, problem.ReasonDuty)
	s.consistent()
}

// A candidate that this release can't compile stops nobody but those whom it governs, and not its own rollback.
func TestCandidateOfAnOlderRelease(t *testing.T) {
	s := newStaged(t, strings.Replace(stagedRollout, "    - {stage: shadow, for: 10m}\n", "", 1), 4)
	ch := s.change(s.edited(func(f policy.Files) { f["grants/nodes.yaml"] = nodeGrant("nodes", 0, 1) }))
	s.reads(0, "")
	s.Env.Forget(ch.Manifest)
	s.reads(0, problem.ReasonStore)
	s.reads(3, "")
	if _, err := s.Env.RollBack(context.Background(), s.by["carol"].Caller, control.RollbackRequest{Change: ch.Index, Reason: "a newer release"}); err != nil {
		t.Fatal(err)
	}
	s.reads(0, "")
}
