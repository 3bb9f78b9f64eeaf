package reach

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// The small world of the property tests: every name there is.
var (
	someIdentities = []string{
		"/human/alice", "/human/bob", "/node/join-token/n1", "/node/join-token/n2", "/workload/a/1", "/workload/a/2", "/workload/b", "/ci/github/1/1", "/ci/github/1/2", "/ci/github/2/1",
		"/node/join-token/another", "/ci/github/1/another", // as whatever has no name here
	}
	somePatterns = append([]string{"/*", "/human/*", "/node/*", "/node/join-token/*", "/workload/*", "/workload/a/*"}, someIdentities...)
	someSecrets  = []string{"x/1", "x/2", "y/1", "y/z/1", "top", "x/another", "y/another", "y/z/another"}
	ofSecrets    = append([]string{"*", "x/*", "y/*", "y/z/*"}, someSecrets...)
	actions      = []string{"secret.read", "secret.write", "secret.generate"}
)

// some is a list of one or two.
func some(t *rapid.T, what string, of []string) string {
	n := rapid.SliceOfNDistinct(rapid.SampledFrom(of), 1, 2, rapid.ID).Draw(t, what)
	return "'" + strings.Join(n, "', '") + "'"
}

// world draws a bundle without conditions.
func world(t *rapid.T) bundle {
	b := bundle{operators: map[string]string{"alice": "propose, approve", "bob": rapid.SampledFrom([]string{"revoke", "admit", "approve"}).Draw(t, "bob")}, docs: slices.Clone(all)}
	for i, w := range []string{"/workload/a/1", "/workload/a/2", "/workload/b"} {
		b.docs = append(b.docs, fmt.Sprintf("Identity w%d method: workload, path: %s, nodes: [%s]", i, w, some(t, "nodes", []string{"/node/*", "/node/join-token/n1", "/node/join-token/n2"})))
	}
	for i, s := range []string{"x/*", "y/*", "top", "y/1"} {
		unlocks := ""
		if rapid.Bool().Draw(t, "unlocks") {
			unlocks = ", unlocks: [" + rapid.SampledFrom([]string{
				"{system: prod}", "{identity: /workload/b}", "{deploy: '/workload/a/*'}", "{identity: /ci/github/1/1}", "{identity: /node/join-token/n2}", "{identity: /human/bob}",
			}).Draw(t, "what") + "]"
		}
		if i < 3 || rapid.Bool().Draw(t, "inner") {
			b.docs = append(b.docs, "Secret "+s+" type: opaque"+unlocks)
		}
	}
	for i := range rapid.IntRange(1, 6).Draw(t, "grants") {
		narrow := []string{"/human/alice", "/human/bob", "/node/join-token/*", "/node/join-token/n1", "/workload/*", "/workload/a/*", "/workload/b", "/ci/github/1/*", "/ci/github/1/2"}
		b.docs = append(b.docs, fmt.Sprintf("Grant g%d actions: [%s, secret.read], identities: [%s], secrets: [%s], purposes: [%s], assurance: %s", i,
			rapid.SampledFrom(actions[1:]).Draw(t, "action"), some(t, "who", narrow), some(t, "what", ofSecrets), some(t, "purposes", []string{"runtime", "migration"}),
			rapid.SampledFrom([]string{"token", "key", "platform"}).Draw(t, "assurance")))
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "denies") {
		purposes := ""
		action := rapid.SampledFrom(actions).Draw(t, "action")
		if action == "secret.read" && rapid.Bool().Draw(t, "some purposes") {
			purposes = ", purposes: [" + some(t, "purposes", []string{"runtime", "migration"}) + "]"
		}
		b.docs = append(b.docs, fmt.Sprintf("Grant d%d effect: deny, actions: [%s], identities: [%s], secrets: [%s]%s", i, action, some(t, "whom", somePatterns), some(t, "what", ofSecrets), purposes))
	}
	return b
}

// asked is whether Decide allows an action for any purpose, at what the identity can prove.
func asked(p *policy.Program, a policy.Action, who, secret string) bool {
	most := identity.Platform
	if strings.HasPrefix(who, "/human/") {
		most = identity.Key
	} else if !strings.HasPrefix(who, "/ci/") {
		most = identity.Token
	}
	return slices.ContainsFunc([]string{"runtime", "migration"}, func(purpose string) bool {
		if a != policy.ReadSecret {
			purpose = ""
		}
		return p.Decide(&policy.Input{Action: a, Identity: who, Secret: secret, Purpose: purpose, Assurance: most}).Allow
	})
}

// naive is everything that one identity reaches, found pair by pair with Decide.
func naive(p *policy.Program, start string, poisoning bool) map[string]bool {
	got := map[string]bool{}
	var visit func(thing string)
	visit = func(thing string) {
		if got[thing] {
			return
		}
		got[thing] = true
		if name, ok := strings.CutPrefix(thing, "write "); ok {
			for _, who := range someIdentities {
				// On the reader's side assurance is not looked at.
				for _, purpose := range []string{"runtime", "migration"} {
					if poisoning && p.Decide(&policy.Input{Action: policy.ReadSecret, Identity: who, Secret: name, Purpose: purpose, Assurance: identity.Measured}).Allow {
						visit(who)
					}
				}
			}
			return
		}
		if !strings.HasPrefix(thing, "/") {
			s, _ := p.Secret(thing)
			for _, u := range s.Unlocks {
				for _, who := range someIdentities {
					if who == u.Identity || u.Deploy.Match(who) {
						visit(who)
					}
				}
				if u.System != "" {
					got["system prod"] = true
				}
			}
			return
		}
		for _, s := range someSecrets {
			if asked(p, policy.ReadSecret, thing, s) {
				visit(s)
			}
			if asked(p, policy.WriteSecret, thing, s) {
				visit("write " + s)
			}
		}
		for _, r := range p.IdentityRules() {
			for _, n := range r.Nodes {
				if n.Match(thing) {
					visit(r.Path)
				}
			}
		}
		o, _ := p.Operator(strings.TrimPrefix(thing, "/human/"))
		if o.Has(policy.DutyAdmit) {
			visit("/node/join-token/n1")
			visit("/node/join-token/n2")
			visit("/node/join-token/another")
		}
		if o.Has(policy.DutyPropose) {
			for _, who := range someIdentities {
				visit(who)
			}
			for _, s := range someSecrets {
				visit(s)
				visit("write " + s)
			}
		}
	}
	visit(start)
	delete(got, start)
	return got
}

// The graph reaches what is reached pair by pair by the one evaluator: forward, backward, and as a limit.
func TestAgreesWithDecide(t *testing.T) {
	names := Names{Identities: someIdentities, Secrets: someSecrets}
	rapid.Check(t, func(t *rapid.T) {
		p := world(t).compile(t)
		worst := rapid.SampledFrom([]Grade{Plain, Poisoning}).Draw(t, "worst")
		start := rapid.SampledFrom(someIdentities).Draw(t, "start")
		want := naive(p, start, worst == Poisoning)
		who, _ := identity.ParseIDPattern(start)
		r, err := New(p, names).From([]identity.Pattern{who}, Options{Worst: worst})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, x := range r.Reached {
			name := x.Name
			switch x.Kind {
			case KindWritable:
				name = "write " + name
			case KindSystem:
				name = "system " + name
			case KindBundle:
				continue
			}
			if strings.Contains(name, "*") { // what has no name here
				continue
			}
			if x.Way[0].From.Name != start || x.Way[len(x.Way)-1].To != x.Thing || len(x.Way) != x.Hops || x.Direct && x.Hops > 1 && x.Grade == Plain {
				t.Fatalf("%s by %s in %d hops", name, text(x.Way), x.Hops)
			}
			for i, s := range x.Way[1:] {
				if s.From != x.Way[i].To {
					t.Fatalf("a gap in %s", text(x.Way))
				}
			}
			got[name] = true
		}
		if !maps.Equal(got, want) {
			t.Fatalf("%s reaches %v, and pair by pair %v", start, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
		secret := rapid.SampledFrom(someSecrets).Draw(t, "target")
		to, err := ParseTarget(secret)
		if err != nil {
			t.Fatal(err)
		}
		a, err := New(p, names).To(to, Options{Worst: worst})
		if _, declared := p.Secret(secret); err != nil {
			t.Fatalf("%v, %v", declared, err)
		}
		attacked := slices.ContainsFunc(a.Attacks, func(a Attack) bool { return len(a.Who) == 1 && a.Who[0].Name == start })
		broken, err := CheckLimits(p, names, []Limit{{Name: "limit", From: []identity.Pattern{who}, To: []Target{to}, Worst: worst}})
		if err != nil || attacked != want[secret] || (len(broken) > 0) != want[secret] {
			t.Fatalf("%s reaches %s: %v, backward %v, broken %v (%v)", start, secret, want[secret], attacked, broken, err)
		}
	})
}

// A cut leaves no way, and no set of fewer lines and identities does, tried one after the other.
func TestCutIsSmallest(t *testing.T) {
	names := Names{Identities: someIdentities, Secrets: someSecrets}
	rapid.Check(t, func(t *rapid.T) {
		p := world(t).compile(t)
		start := rapid.SampledFrom([]string{"/ci/github/1/*", "/ci/github/2/1", "/node/*", "/workload/a/*"}).Draw(t, "start")
		goal := rapid.SampledFrom([]string{"x/*", "top", "y/z/1", "/human/bob", "/workload/b"}).Draw(t, "goal")
		who, _ := identity.ParseIDPattern(start)
		to, err := ParseTarget(goal)
		if err != nil {
			t.Fatal(err)
		}
		cut, err := New(p, names).Cut([]identity.Pattern{who}, to, Options{Worst: Poisoning, Costs: Costs{Workload: 2}})
		if err != nil {
			t.Fatal(err)
		}
		if !cut.Smallest {
			t.Fatal("one operator is a quorum here, and it was called another one")
		}
		g, err := build(p, names, to.about(about{identities: []identity.Pattern{who}, poisoning: true}))
		if err != nil {
			t.Fatal(err)
		}
		starts, _ := g.starts([]identity.Pattern{who}, false)
		targets, _ := g.vertices(to)
		var between []int32
		far, back := g.explore(starts, false, within{grade: Poisoning}), g.explore(targets, true, within{grade: Poisoning})
		for v := range g.kinds {
			v := int32(v)
			fixed := slices.Contains(starts, v) || slices.Contains(targets, v)
			if far.found(v) && back.found(v) && g.capacity(v, fixed, Costs{Workload: 2}) < endless {
				between = append(between, v)
			}
		}
		cost := func(v int32) int { return int(g.capacity(v, false, Costs{Workload: 2}) / unit) }
		open := func(without ...int32) bool {
			was := map[int32]Grade{}
			for _, v := range without {
				was[v], g.grades[v] = g.grades[v], unseen
			}
			defer func() {
				for v, grade := range was {
					g.grades[v] = grade
				}
			}()
			// A vertex of no grade is never entered.
			far := g.walk(starts)
			return slices.ContainsFunc(targets, func(v int32) bool { return far[v] })
		}
		var taken []int32
		for _, v := range between {
			for _, x := range cut.Taken {
				if x.Identity != nil && g.kinds[v] == kindIdentity && g.name(v) == *x.Identity || x.Identity == nil && g.kinds[v] == kindLine && sameLine(g, v, x) {
					taken = append(taken, v)
					break
				}
			}
		}
		if open(taken...) {
			t.Fatalf("after %+v there is a way from %s to %s", cut.Taken, start, goal)
		}
		if (cut.Cost > 0) != open() {
			t.Fatalf("a cut of cost %d, and open is %v", cut.Cost, open())
		}
		for i, v := range between {
			if cost(v) < cut.Cost && !open(v) {
				t.Fatalf("one of cost %d is enough: %+v, not %+v", cost(v), g.name(v), cut.Taken)
			}
			for _, w := range between[:i] {
				if cost(v)+cost(w) < cut.Cost && !open(v, w) {
					t.Fatalf("two are enough, not %+v", cut.Taken)
				}
			}
		}
	})
}

func sameLine(g *graph, v int32, x Taken) bool {
	l := &g.lines[g.refs[v]]
	return l.hop == x.Hop && l.rule == x.Rule && l.from == x.From && l.to == x.To
}

// walk is reachability and nothing else.
func (g *graph) walk(starts []int32) map[int32]bool {
	out := map[int32]bool{}
	queue := slices.Clone(starts)
	for len(queue) > 0 {
		v := queue[0]
		queue = queue[1:]
		if out[v] || g.grades[v] == unseen {
			continue
		}
		out[v] = true
		queue = append(queue, g.out.of(v)...)
	}
	return out
}
