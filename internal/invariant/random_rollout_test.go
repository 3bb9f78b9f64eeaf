package invariant_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

const rolledBy = `apiVersion: bailment/v1
kind: Rollout
metadata: {name: default}
spec:
  steps:
    - {stage: shadow, for: 5m}
    - {stage: canary, for: 5m, cohort: [/workload/api, /node/join-token/r0, /node/join-token/r1]}
    - {stage: canary, for: 5m, share: 50}
  watch: 20m
  triggers:
    - {on: denied, sources: 2, share: 20}
    - {on: undecided, sources: 2}
`

// fleet is an environment whose bundles change all the time, beside what must hold of it whatever happens.
type fleet struct {
	t       *rapid.T
	w       *controltest.World
	ctx     context.Context
	by      map[string]controltest.Actor
	nodes   []controltest.Actor
	api     []controltest.Actor
	changes []uint64
	serial  int

	generation uint64
	did        map[string]int
}

// unharmed fails if a refusal is none of what was asked for, but of the server.
func (f *fleet) unharmed(what string, err error) bool {
	f.t.Helper()
	if err == nil {
		f.did[what]++
		return true
	}
	switch p := problem.As(err); p.Kind {
	case problem.Internal, problem.Unavailable:
		f.t.Fatalf("%s: %v", what, err)
	}
	return false
}

func (f *fleet) login() {
	for p := range f.w.Persons {
		if _, ok := f.w.Env.Program().Operator(p); ok {
			if _, held := f.w.Env.State().Holds.Get("identity:/human/" + p); !held {
				f.by[p] = f.w.Login(p)
			}
		}
	}
}

func (f *fleet) person(what string) (string, controltest.Actor) {
	name := rapid.SampledFrom([]string{"alice", "bob", "carol"}).Draw(f.t, what)
	return name, f.by[name]
}

func (f *fleet) join() {
	name, admin := f.person("admits")
	i := rapid.IntRange(0, 5).Draw(f.t, "machine")
	if held, gone := f.off(name); held || gone {
		return
	}
	tok := f.w.Token(admin, fmt.Sprintf("r%d", i), time.Hour)
	key, _ := controltest.Key(f.w.T)
	o, err := f.w.TryJoin(tok, key)
	if !f.unharmed("join", err) {
		return
	}
	n := f.w.Enter(key, o)
	for len(f.nodes) <= i {
		f.nodes, f.api = append(f.nodes, controltest.Actor{}), append(f.api, controltest.Actor{})
	}
	f.nodes[i] = n
	if a, err := f.w.TryWorkload(n, "/workload/api"); f.unharmed("work", err) {
		f.api[i] = a
	}
}

func (f *fleet) read() {
	asks := f.nodes
	if rapid.Bool().Draw(f.t, "workload") {
		asks = f.api
	}
	if len(asks) == 0 {
		return
	}
	a := asks[rapid.IntRange(0, len(asks)-1).Draw(f.t, "who")]
	path := rapid.SampledFrom([]string{"db/a", "db/a", "db/b", "db/none"}).Draw(f.t, "secret")
	for range rapid.SampledFrom([]int{1, 1, 1, 1, 1, 1, 1, 62}).Draw(f.t, "times") {
		_, _, err := f.w.Get(a, path)
		f.unharmed("read", err)
	}
}

// edit is a bundle that differs from the one in force.
func (f *fleet) edit() (policy.Files, controltest.Stage) {
	_, files, _, err := f.w.Env.Bundle(f.ctx, f.by["alice"].Caller, state.Digest{})
	if !f.unharmed("bundle", err) {
		return nil, controltest.Stage{}
	}
	files = maps.Clone(files)
	f.serial++
	stage := controltest.Stage{}
	switch rapid.SampledFrom([]string{"nodes", "workloads", "nodes", "text", "claims", "operators", "deny", "undeny"}).Draw(f.t, "edit") {
	case "text":
		files["README.md"] = fmt.Append(nil, f.serial)
	case "nodes":
		files["grants/fleet.yaml"] = fleetGrant(rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 1, 4, rapid.ID[int]).Draw(f.t, "nodes"), "")
	case "claims": // a condition that can't be told
		files["grants/fleet.yaml"] = fleetGrant([]int{0, 1, 2, 3}, "claims.nowhere == 'x'")
	case "workloads":
		text := string(files["grants/all.yaml"])
		if strings.Contains(text, "secrets: [db/*]") {
			text = strings.Replace(text, "secrets: [db/*]", "secrets: [db/b]", 1)
		} else {
			text = strings.Replace(text, "secrets: [db/b]", "secrets: [db/*]", 1)
		}
		files["grants/all.yaml"] = []byte(text)
	case "operators":
		persons := []string{"alice", "bob", "carol"}
		if rapid.Bool().Draw(f.t, "without carol") {
			persons = persons[:2]
		}
		files["operators.yaml"] = f.w.Operators(persons...)
	case "deny":
		files["grants/leak.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: leak}\nspec: {effect: deny, actions: [secret.read], identities: [/node/join-token/r%d], secrets: [db/*]}\n", f.serial%6)
		stage.Containment = []string{"grants/leak.yaml"}
	case "undeny":
		if files["grants/leak.yaml"] == nil {
			return nil, stage
		}
		delete(files, "grants/leak.yaml")
	}
	return files, stage
}

func fleetGrant(nodes []int, condition string) []byte {
	list := make([]string, len(nodes))
	for i, n := range nodes {
		list[i] = fmt.Sprintf("/node/join-token/r%d", n)
	}
	text := fmt.Sprintf("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: fleet}\nspec:\n  actions: [secret.read]\n  identities: [%s]\n  secrets: [db/*]\n  purposes: [runtime]\n", strings.Join(list, ", "))
	if condition != "" {
		text += "  condition: \"" + condition + "\"\n"
	}
	return []byte(text)
}

func (f *fleet) propose() {
	files, stage := f.edit()
	if files == nil {
		return
	}
	name, who := f.person("proposes")
	f.w.Stage = stage
	defer func() { f.w.Stage = controltest.Stage{} }()
	if held, gone := f.off(name); held || gone {
		return
	}
	p, err := f.w.Propose(who, name, files)
	if f.unharmed("propose", err) {
		f.changes = append(f.changes, p.Change.Index)
		if other := map[string]string{"alice": "bob", "bob": "carol", "carol": "alice"}[name]; rapid.Bool().Draw(f.t, "at once") {
			f.approves(other, p.Change.Index)
		}
	}
}

// off says whether a person is held, or no operator.
func (f *fleet) off(name string) (held, gone bool) {
	_, held = f.w.Env.State().Holds.Get("identity:/human/" + name)
	_, ok := f.w.Env.Program().Operator(name)
	return held, !ok
}

func (f *fleet) approves(name string, change uint64) {
	ch, ok := f.w.Env.State().Changes.Get(change)
	if !ok {
		return
	}
	_, err := f.w.Approve(f.by[name], name, ch)
	f.unharmed("approve", err)
}

func (f *fleet) some() (uint64, bool) {
	if len(f.changes) == 0 {
		return 0, false
	}
	newest := f.changes[max(0, len(f.changes)-4):]
	return rapid.SampledFrom(newest).Draw(f.t, "change"), true
}

func (f *fleet) rollBack() {
	change, ok := f.some()
	if !ok {
		return
	}
	f.w.Env.State().Changes.All(func(_ uint64, ch *state.Change) bool { // mostly what can be
		if st := ch.State; st == state.InForce && ch.Action == control.ActionBundle || st == state.Canary && rapid.Bool().Draw(f.t, "canary") {
			change = ch.Index
		}
		return true
	})
	was, _ := f.w.Env.State().Changes.Get(change)
	operators := f.operators()
	_, who := f.person("rolls back")
	_, err := f.w.Env.RollBack(f.ctx, who.Caller, control.RollbackRequest{Change: change, Reason: "random"})
	if !f.unharmed("rollback", err) {
		return
	}
	now, _ := f.w.Env.State().Changes.Get(change)
	if now.State != state.RolledBack || was.State == state.RolledBack {
		f.t.Fatalf("rolled back: change %d was %s and is %s", change, was.State, now.State)
	}
	if was.State == state.InForce && f.w.Env.State().Bundle != was.Rollback {
		f.t.Fatalf("change %d went back to %s, not to %s", change, f.w.Env.State().Bundle, was.Rollback)
	}
	if f.operators() != operators {
		f.t.Fatalf("a rollback made the operators %s out of %s", f.operators(), operators)
	}
}

func (f *fleet) operators() string {
	out := ""
	for _, p := range []string{"alice", "bob", "carol"} {
		if _, ok := f.w.Env.Program().Operator(p); ok {
			out += p + " "
		}
	}
	return out
}

func (f *fleet) hold() {
	_, who := f.person("holds")
	scope := rapid.SampledFrom([]string{"identity:/human/bob", "identity:/human/carol", "secret:db/b", "identity:/workload/api", "node:/node/join-token/r1"}).Draw(f.t, "scope")
	hold := rapid.Bool().Draw(f.t, "hold")
	_, err := f.w.Env.Revoke(f.ctx, who.Caller, control.RevokeRequest{Scope: scope, Hold: &hold, Reason: "random"})
	f.unharmed("revoke", err)
	f.login()
}

func (f *fleet) lift() {
	var held []string
	f.w.Env.State().Holds.All(func(scope string, _ *state.Hold) bool {
		held = append(held, scope)
		return true
	})
	for _, pair := range [][2]string{{"alice", "bob"}, {"alice", "carol"}} {
		if h, g := f.off(pair[1]); h || g || len(held) == 0 {
			continue
		}
		p, err := f.w.Act(f.by[pair[0]], pair[0], control.ActionLiftHold, f.w.Hold(held[0]))
		if f.unharmed("lift", err) {
			f.approves(pair[1], p.Change.Index)
			f.login()
			return
		}
	}
}

func (f *fleet) wait(d time.Duration) {
	f.w.Advance(d)
	f.due()
	f.login()
}

// due does what is due, to its end.
func (f *fleet) due() {
	for range 8 {
		if err := f.w.Env.Advance(f.ctx); err != nil {
			f.t.Fatalf("going on: %v", err)
		}
	}
}

func (f *fleet) step() {
	switch rapid.SampledFrom([]string{"wait", "all", "wait", "all", "propose", "read", "all", "read", "propose", "wait", "all", "join", "read", "approve", "wait", "rollback", "all", "long", "hold", "lift", "lift", "restart", "due"}).Draw(f.t, "do") {
	case "read":
		f.read()
	case "all":
		for _, a := range append(slices.Clone(f.nodes), f.api...) {
			_, _, err := f.w.Get(a, "db/a")
			f.unharmed("read", err)
		}
	case "join":
		f.join()
	case "propose":
		f.propose()
	case "approve":
		if change, ok := f.some(); ok {
			name, _ := f.person("approves")
			f.approves(name, change)
		}
	case "rollback":
		f.rollBack()
	case "wait":
		f.wait(time.Duration(rapid.IntRange(1, 6).Draw(f.t, "minutes")) * time.Minute)
	case "long":
		f.wait(40 * time.Minute)
	case "hold":
		f.hold()
	case "lift":
		f.lift()
	case "restart":
		f.w.Reopen()
		if found, err := f.w.Env.Replay(f.ctx); err != nil || len(found) > 0 {
			f.t.Fatalf("after a restart: %v %v", found, err)
		}
	case "due":
		f.due()
	}
	f.holds()
}

// holds is what must be true after each step.
func (f *fleet) holds() {
	_, found, err := f.w.Env.Check(f.ctx)
	for _, v := range found {
		f.t.Errorf("%v", v)
	}
	if err != nil || len(found) > 0 {
		f.t.Fatalf("%v", err)
	}
	s := f.w.Env.State()
	if s.Generation < f.generation {
		f.t.Fatalf("generation %d after %d", s.Generation, f.generation)
	}
	f.generation = s.Generation
	staged, inForce := 0, 0
	s.Changes.All(func(_ uint64, ch *state.Change) bool {
		switch ch.State {
		case state.Shadow, state.Canary:
			staged++
			if r := s.Staged(); r == nil || r.Change != ch.Index || r.Base != s.Bundle {
				f.t.Errorf("change %d is %s, and %+v is on its way", ch.Index, ch.State, r)
			}
		case state.InForce:
			if ch.Manifest == s.Bundle {
				inForce++
			}
		}
		return true
	})
	if staged > 1 || inForce > 1 || staged == 0 && s.Staged() != nil {
		f.t.Errorf("%d changes are on their way, %d in force", staged, inForce)
	}
}

// Bundles that come and go by rollouts, triggers, rollbacks and containment, with machines that read all the while, violate nothing at any
// step, and replayed they give the state in force.
func TestRandomRollouts(t *testing.T) {
	did := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 1})
		defer func() {
			if w.Env != nil {
				w.Close()
			}
		}()
		f := &fleet{t: rt, w: w, ctx: context.Background(), by: map[string]controltest.Actor{}, did: did}
		f.login()
		files := maps.Clone(w.Files)
		files["rollouts/default.yaml"], files["grants/fleet.yaml"] = []byte(rolledBy), fleetGrant([]int{0, 1, 2, 3}, "")
		p, err := w.Propose(f.by["alice"], "alice", files)
		f.unharmed("propose", err)
		f.approves("bob", p.Change.Index)
		w.Put(f.by["alice"], "db/a", "one")
		w.Put(f.by["alice"], "db/b", "one")
		for range 4 {
			f.join()
		}
		for range 4 {
			f.read()
		}
		for range rapid.IntRange(10, 40).Draw(rt, "steps") {
			f.step()
		}
		f.due() // nothing is to happen while the entries are read
		for _, x := range w.Stored() {
			if e, err := state.Decode(x.Body); err == nil {
				f.counts(e.Event)
			}
		}
		r := record(t, w)
		c := r.checker()
		for i, e := range r.entries {
			for _, v := range c.Feed(uint64(i), e) {
				rt.Error(v)
			}
		}
		for _, v := range invariant.Replay(r.all(), r.state) {
			rt.Error(v)
		}
	})
	for _, what := range []string{"in force by change", "a shadow", "a canary"} {
		if did[what] == 0 {
			t.Errorf("none of the histories has %s: %v", what, did)
		}
	}
	t.Log(did) // with -rapid.checks=200 there is each of them
}

func (f *fleet) counts(e state.Event) {
	switch e := e.(type) {
	case *state.BundleInForce:
		f.did["in force by "+e.How]++
		if e.Cause != nil {
			f.did["taken back by "+e.Cause.By]++
		}
	case *state.RolloutMoved:
		if e.Generation == 0 {
			f.did["a shadow"]++
		} else {
			f.did["a canary"]++
		}
	case *state.RolloutEnded:
		f.did["ended by "+e.Cause.By]++
	case *state.RequestDenied:
		if e.Beside != "" {
			f.did["a loss"]++
		}
	}
}
