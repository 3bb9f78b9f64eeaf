package reach

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

var alice = map[string]string{"alice": "propose, approve, admit", "bob": "revoke", "carol": "audit"}

func from(t *testing.T, p *policy.Program, who string, worst Grade) map[string]string {
	t.Helper()
	r, err := New(p, Names{}).From([]identity.Pattern{pattern(t, who)}, Options{Worst: worst})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, x := range r.Reached {
		name := x.Name
		if x.Kind == KindWritable {
			name = "write " + name
		}
		out[name] = x.Grade.String() + ": " + text(x.Way)
	}
	if len(out) != r.Total {
		t.Errorf("%d things, %d names", r.Total, len(out))
	}
	return out
}

// What each hop is, what makes it conditional, and what shuts it.
func TestHops(t *testing.T) {
	base := func(more ...string) bundle {
		return bundle{operators: alice, docs: slices.Concat(all, []string{
			"Identity app method: workload, path: /workload/app, nodes: [/node/*]",
			"Identity other method: workload, path: /workload/other, nodes: [/node/join-token/n1]",
			"Secret db/* type: opaque", "Secret db/x type: opaque",
		}, more)}
	}
	for name, c := range map[string]struct {
		docs []string
		who  string
		want map[string]string
	}{
		"read": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/app], secrets: [db/x], purposes: [runtime]"},
			"/workload/app",
			map[string]string{"db/x": "plain: /workload/app reads db/x"},
		},
		"condition": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/app], secrets: [db/x], purposes: [runtime], when: claims.a == 1"},
			"/workload/app",
			map[string]string{"db/x": "conditional: /workload/app reads db/x (if claims.a == 1)"},
		},
		"denied": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/*], secrets: [db/*], purposes: [runtime]", "Grant d effect: deny, actions: [secret.read], identities: [/workload/app], secrets: [db/x]"},
			"/workload/app",
			map[string]string{"db/* (any other)": "plain: /workload/app reads db/* (any other)"},
		},
		"denied for one purpose": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/app], secrets: [db/x], purposes: [runtime, migration]", "Grant d effect: deny, actions: [secret.read], identities: [/*], secrets: ['*'], purposes: [runtime]"},
			"/workload/app",
			map[string]string{"db/x": "plain: /workload/app reads db/x"},
		},
		"denied for all": {
			[]string{
				"Grant g actions: [secret.read], identities: [/workload/app], secrets: [db/x], purposes: [runtime, migration]", "Grant d effect: deny, actions: [secret.read], identities: [/*], secrets: ['*'], purposes: [runtime]",
				"Grant e effect: deny, actions: [secret.read], identities: [/workload/*], secrets: [db/*], purposes: [migration]",
			}, "/workload/app", map[string]string{},
		},
		"maybe denied": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/app], secrets: [db/*], purposes: [runtime]", "Grant d effect: deny, actions: [secret.read], identities: [/*], secrets: [db/x], when: assurance < level.key"},
			"/workload/app",
			map[string]string{"db/* (any other)": "plain: /workload/app reads db/* (any other)", "db/x": "conditional: /workload/app reads db/x (unless d denies it: assurance < level.key)"},
		},
		"assurance": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/app, /human/bob, '/ci/github/1/2'], secrets: [db/x], purposes: [runtime], assurance: key"},
			"/workload/app",
			map[string]string{}, // its nodes join with tokens
		},
		"assurance of a person": {
			[]string{"Grant g actions: [secret.read], identities: [/workload/app, /human/bob], secrets: [db/x], purposes: [runtime], assurance: key"},
			"/human/bob",
			map[string]string{"db/x": "plain: /human/bob reads db/x"},
		},
		"assurance of a job": {
			[]string{"Grant g actions: [secret.read], identities: [/ci/github/1/*], secrets: [db/x], purposes: [runtime], assurance: platform"},
			"/ci/github/1/2",
			map[string]string{"db/x": "plain: /ci/github/1/2 reads db/x"},
		},
		"beyond its assurance": {
			[]string{"Grant g actions: [secret.read], identities: [/ci/github/1/*], secrets: [db/x], purposes: [runtime], assurance: hardware"}, "/ci/github/1/*", map[string]string{},
		},
		"node": {
			nil, "/node/join-token/*",
			map[string]string{"/workload/app": "plain: /node/join-token/* (any other) speaks for /workload/app", "/workload/other": "plain: /node/join-token/n1 speaks for /workload/other"},
		},
		"another node": {nil, "/node/join-token/n2", map[string]string{"/workload/app": "plain: /node/join-token/n2 speaks for /workload/app"}},
		"unlocks": {
			[]string{
				"Grant g actions: [secret.read], identities: [/workload/app], secrets: [t/1], purposes: [runtime]",
				"Secret t/* type: opaque, unlocks: [{system: prod}, {deploy: /workload/*}, {identity: /human/bob}]",
			},
			"/workload/app",
			map[string]string{
				"t/1": "plain: /workload/app reads t/1", "prod": "plain: /workload/app reads t/1 unlocks prod", "/human/bob": "plain: /workload/app reads t/1 unlocks /human/bob",
				"/workload/other": "plain: /workload/app reads t/1 deploys /workload/other",
			},
		},
		"poisoning": {
			[]string{
				"Grant w actions: [secret.write, secret.generate], identities: [/human/bob], secrets: [db/*]",
				"Grant g actions: [secret.read], identities: [/workload/*], secrets: ['*'], purposes: [runtime]", "Grant d effect: deny, actions: [secret.read], identities: [/workload/other], secrets: ['*']",
			},
			"/human/bob",
			map[string]string{
				"write db/* (any other)": "plain: /human/bob writes db/* (any other)", "write db/x": "plain: /human/bob writes db/x", "/workload/app": "poisoning: /human/bob writes db/* (any other) poisons /workload/app",
				"db/* (any other)": "poisoning: /human/bob writes db/* (any other) poisons /workload/app reads db/* (any other)", "db/x": "poisoning: /human/bob writes db/* (any other) poisons /workload/app reads db/x",
			},
		},
		"generating": {
			[]string{"Grant w actions: [secret.generate], identities: [/human/bob], secrets: [db/*]", "Grant g actions: [secret.read], identities: [/workload/*], secrets: ['*'], purposes: [runtime]"},
			"/human/bob",
			map[string]string{},
		},
		"nobody's duty": {nil, "/human/carol", map[string]string{}},
	} {
		got := from(t, base(c.docs...).compile(t), c.who, Poisoning)
		for thing, way := range c.want {
			if got[thing] != way {
				t.Errorf("%s: %s is %q, not %q", name, thing, got[thing], way)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %d things, not %d: %q", name, len(got), len(c.want), got)
		}
	}
}

// Operators: what the duties give alone, and what takes several.
func TestOperators(t *testing.T) {
	docs := slices.Concat(all, []string{
		"Identity app method: workload, path: /workload/app, nodes: [/node/*]", "Secret db/x type: opaque", "Secret key/alice type: opaque, unlocks: [{identity: /human/alice}]",
		"Secret key/bob type: opaque, unlocks: [{identity: /human/bob}]", "Grant g actions: [secret.read], identities: [/workload/app], secrets: [key/*], purposes: [runtime]",
	})
	alone := bundle{operators: alice, docs: docs}.compile(t)
	got := from(t, alone, "/human/alice", Plain)
	if got[theBundle] != "plain: /human/alice changes the bundle" || got["db/x"] != "plain: /human/alice changes the bundle gives itself db/x" {
		t.Errorf("alice alone reaches %q", got)
	}
	if got := from(t, alone, "/human/bob", Plain); len(got) != 0 {
		t.Errorf("bob reaches %q", got)
	}

	four := map[string]string{"alice": "propose, approve", "bob": "propose, approve", "carol": "approve", "dave": "admit"}
	p := bundle{approvals: "1", operators: four, docs: docs}.compile(t)
	if got := from(t, p, "/human/alice", Plain); len(got) != 0 {
		t.Errorf("one of several reaches %q", got)
	}
	// Each alone: that all of them together could is no answer.
	if got := from(t, p, "/human/*", Plain); got["db/x"] != "plain: /human/dave admits /node/join-token/* speaks for /workload/app reads key/alice unlocks /human/alice; /human/alice agrees to the bundle; /human/dave admits /node/join-token/* speaks for /workload/app reads key/bob unlocks /human/bob; /human/bob agrees to the bundle; the bundle gives itself db/x" && got["db/x"] == "" {
		t.Errorf("persons reach %q", got["db/x"])
	}
	got = from(t, p, "/workload/app", Plain)
	if got["db/x"] != "plain: /workload/app reads key/alice unlocks /human/alice agrees to the bundle; /workload/app reads key/bob unlocks /human/bob agrees to the bundle gives itself db/x" {
		t.Errorf("app reaches db/x by %q", got["db/x"])
	}

	a, err := New(p, Names{}).To(target(t, "db/x"), Options{Worst: Poisoning, Costs: Costs{Workload: 3}})
	if err != nil || !a.Complete {
		t.Fatal(err)
	}
	var sets []string
	for _, x := range a.Attacks {
		who := []string{}
		for _, w := range x.Who {
			who = append(who, w.Name)
		}
		sets = append(sets, strings.Join(who, "+"))
		if x.Way[len(x.Way)-1].To.Name != "db/x" || x.Cost == 0 {
			t.Errorf("%s: cost %d, %s", sets[len(sets)-1], x.Cost, text(x.Way))
		}
	}
	want := []string{
		"/human/dave", "/node/join-token/*", "/human/alice+/human/bob", "/human/alice+/human/carol", "/human/bob+/human/carol", "/workload/app",
	}
	if !slices.Equal(sets, want) {
		t.Errorf("the sets are %q, not %q", sets, want)
	}

	limits := []Limit{
		{Name: "one person", From: []identity.Pattern{pattern(t, "/human/alice"), pattern(t, "/human/bob"), pattern(t, "/human/carol")}, To: []Target{target(t, "db/x")}, Worst: Poisoning},
		{Name: "workloads", From: []identity.Pattern{pattern(t, "/workload/*")}, To: []Target{target(t, "db/x")}},
		{Name: "direct", From: []identity.Pattern{pattern(t, "/workload/*")}, To: []Target{target(t, "db/x"), target(t, "/human/*")}, Direct: true},
		{Name: "nobody", From: []identity.Pattern{pattern(t, "/ci/gitlab/*")}, To: []Target{target(t, "db/x")}},
		{Name: "nothing", From: []identity.Pattern{pattern(t, "/*")}, To: []Target{target(t, "system:prod")}},
	}
	broken, err := CheckLimits(p, Names{}, limits)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range broken {
		names = append(names, b.Limit+":"+b.Who.Name+b.Empty)
	}
	if want := []string{
		"workloads:/workload/app", "nobody:nobody can be /ci/gitlab/* by this bundle", "nothing:no secret unlocks a system \"prod\"",
	}; !slices.Equal(names, want) {
		t.Errorf("broken are %q, not %q", names, want)
	}
}

func TestWhoCan(t *testing.T) {
	p := bundle{operators: alice, docs: slices.Concat(all, []string{
		"Identity app method: workload, path: /workload/app, nodes: [/node/join-token/*]", "Identity web method: workload, path: /workload/web, nodes: [/node/join-token/n1]",
		"Secret db/* type: opaque", "Secret t/1 type: opaque, unlocks: [{identity: /workload/app}]",
		"Grant reads actions: [secret.read, secret.destroy], identities: [/workload/*], secrets: [db/*], purposes: [runtime]", "Grant d effect: deny, actions: [secret.read], identities: [/workload/web], secrets: ['*']",
		"Grant token actions: [secret.read], identities: [/ci/github/1/*], secrets: [t/*], purposes: [deploy], when: claims.ref == 'refs/heads/main'",
	})}.compile(t)
	ask := func(action policy.Action, secrets string) string {
		a, err := New(p, Names{}).WhoCan(action, pattern(t, secrets), Options{Worst: Poisoning})
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, w := range a.Ways {
			direct := "by a way"
			if w.Direct {
				direct = "direct"
			}
			out += direct + " " + w.Grade.String() + " " + string(rune('0'+w.Members)) + ": " + text(w.Way) + "\n"
		}
		return out
	}
	want := `direct plain 1: /workload/* reads db/pay/*
by a way plain 1: /human/alice changes the bundle gives itself db/pay/*
by a way plain 2: /node/join-token/* speaks for /workload/app reads db/pay/*
by a way plain 1: /human/alice admits /node/join-token/* (any other) speaks for /workload/app reads db/pay/*
by a way conditional 1: /ci/github/1/* reads t/1 (if claims.ref == 'refs/heads/main') unlocks /workload/app reads db/pay/*
`
	if got := ask(policy.ReadSecret, "db/pay/*"); got != want {
		t.Errorf("who can read:\n%swant:\n%s", got, want)
	}
	want = `direct plain 2: /workload/* may db/pay/*
by a way plain 1: /human/alice changes the bundle gives itself db/pay/*
by a way plain 2: /node/join-token/* speaks for /workload/app may db/pay/*
by a way plain 1: /node/join-token/n1 speaks for /workload/web may db/pay/*
by a way plain 1: /human/alice admits /node/join-token/* (any other) speaks for /workload/app may db/pay/*
by a way conditional 1: /ci/github/1/* reads t/1 (if claims.ref == 'refs/heads/main') unlocks /workload/app may db/pay/*
`
	if got := ask(policy.DestroySecret, "db/pay/*"); got != want {
		t.Errorf("who can destroy:\n%swant:\n%s", got, want)
	}
	if _, err := New(p, Names{}).WhoCan(policy.ReadSecret, pattern(t, "none/*"), Options{}); !problem.Is(err, problem.ReasonNotFound) {
		t.Errorf("about nothing: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	p := bundle{operators: alice, docs: all}.compile(t)
	m := New(p, Names{})
	for name, c := range map[string]struct {
		err    error
		reason problem.Reason
	}{
		"nobody":    {second(m.From(nil, Options{})), problem.ReasonInvalid},
		"unknown":   {second(m.From([]identity.Pattern{pattern(t, "/workload/x")}, Options{})), problem.ReasonNotFound},
		"no secret": {second(m.To(target(t, "x"), Options{})), problem.ReasonNotFound},
		"no system": {second(m.To(target(t, "system:x"), Options{})), problem.ReasonNotFound},
		"itself":    {second(m.Cut([]identity.Pattern{pattern(t, "/human/bob")}, target(t, "/human/*"), Options{})), problem.ReasonInvalid},
		"from none": {second(m.Cut(nil, target(t, "/human/*"), Options{})), problem.ReasonInvalid},
		"bad name":  {second(New(p, Names{Identities: []string{"x"}}).From([]identity.Pattern{everybody}, Options{})), problem.ReasonInvalid},
		"bad too":   {second(New(p, Names{Secrets: []string{"/"}}).From([]identity.Pattern{everybody}, Options{})), problem.ReasonInvalid},
		"names":     {second(New(p, Names{Secrets: make([]string, maxNames+1)}).From([]identity.Pattern{everybody}, Options{})), problem.ReasonLimit},
		"no limit":  {second(CheckLimits(p, Names{}, []Limit{{Name: "x"}})), problem.ReasonInvalid},
	} {
		if !problem.Is(c.err, c.reason) {
			t.Errorf("%s: %v, not %s", name, c.err, c.reason)
		}
	}
	for _, s := range []string{"", "/", "a//b", "db*", "/workload*", "system:"} {
		if x, err := ParseTarget(s); err == nil {
			t.Errorf("%q is a target: %q", s, x)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A chain as long as a bundle is no reason for an answer of its square.
func TestLongWays(t *testing.T) {
	const n = 1500
	b := bundle{operators: alice, docs: slices.Clone(all)}
	for i := range n {
		b.docs = append(b.docs, fmt.Sprintf("Identity w%d method: workload, path: /workload/w%d, nodes: [/node/*]", i, i), fmt.Sprintf("Secret s/%d type: opaque, unlocks: [{deploy: /workload/w%d}]", i, (i+1)%n),
			fmt.Sprintf("Grant g%d actions: [secret.read], identities: [/workload/w%d], secrets: [s/%d], purposes: [runtime]", i, i, i))
	}
	m := New(b.compile(t), Names{})
	r, err := m.From([]identity.Pattern{pattern(t, "/workload/w0")}, Options{Most: maxMost})
	if err != nil || r.Total != 2*n-1 || len(r.Reached) >= r.Total || len(r.Reached) < 500 {
		t.Fatalf("%d of %d: %v", len(r.Reached), r.Total, err)
	}
	a, err := m.To(target(t, "s/0"), Options{Most: maxMost})
	if err != nil || a.Total < n || len(a.Attacks) > a.Total {
		t.Fatalf("%d of %d: %v", len(a.Attacks), a.Total, err)
	}
	c, err := m.Cut([]identity.Pattern{pattern(t, "/workload/w1")}, target(t, "s/0"), Options{})
	if err != nil || c.Cost != 1 {
		t.Fatalf("%+v: %v", c, err)
	}
}

// A bundle whose every grant is parted by every deny grant is refused before it costs much: the work is counted, as time is the machine's.
func TestHostile(t *testing.T) {
	const n = 3000
	b := bundle{operators: alice, docs: slices.Concat(all, []string{"Secret s/* type: opaque"})}
	for i := range n {
		b.docs = append(b.docs, fmt.Sprintf("Identity w%d method: workload, path: /workload/w%d, nodes: [/node/*]", i, i),
			fmt.Sprintf("Grant g%d actions: [secret.read], identities: [/workload/*], secrets: [s/%d], purposes: [runtime]", i, i),
			fmt.Sprintf("Grant d%d effect: deny, actions: [secret.read], identities: [/workload/w%d], secrets: [s/none/*]", i, i))
	}
	p, who := b.compile(t), pattern(t, "/workload/*")
	if _, err := New(p, Names{}).From([]identity.Pattern{who}, Options{Worst: Poisoning}); !problem.Is(err, problem.ReasonLimit) {
		t.Fatalf("%v", err)
	}
	made, err := newBuilder(p, Names{}, about{identities: []identity.Pattern{who}, poisoning: true})
	if err != nil {
		t.Fatal(err)
	}
	made.all()
	// Nothing goes on beyond the limit but the line that met it, and what is added once for each rule.
	if most := maxWork + n*n; !made.edges.over || made.work > most {
		t.Errorf("%d comparisons, where %d are the limit", made.work, maxWork)
	}
	if lines, edges := len(made.g.lines), len(made.edges.from); lines > maxLines+10*n || edges > maxEdges {
		t.Errorf("%d lines and %d edges, where %d and %d are the limits", lines, edges, maxLines, maxEdges)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"db/prod/*", "*", "/workload/*", "/*", "system:prod", "system:", "", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if x, err := ParseTarget(s); err == nil && x.String() != s {
			t.Errorf("%q is %q", s, x)
		}
	})
}

// What no bundle declares any more is still read by whoever has a grant for it, and so it is found where the question names it; nobody writes it.
func TestUndeclared(t *testing.T) {
	docs := append(slices.Clone(all), "Secret db/new type: opaque",
		"Grant g actions: [secret.read, secret.write, secret.promote, secret.generate], identities: [/ci/github/1/*], secrets: ['db/*'], purposes: [p]")
	p := bundle{operators: map[string]string{"alice": "propose", "bob": "approve"}, approvals: "0", docs: docs}.compile(t)
	o := Options{Worst: Poisoning}
	for action, want := range map[policy.Action]bool{policy.ReadSecret: true, policy.PromoteSecret: true, policy.WriteSecret: false, policy.GenerateSecret: false} {
		r, err := New(p, Names{}).WhoCan(action, pattern(t, "db/old"), o)
		if got := err == nil && slices.ContainsFunc(r.Ways, func(a Access) bool { return a.Who.Name == "/ci/github/1/*" }); got != want || err != nil && !problem.Is(err, problem.ReasonNotFound) {
			t.Errorf("%s: %v, %v", action, got, err)
		}
	}
	if _, err := New(p, Names{}).WhoCan(policy.ReadSecret, pattern(t, "other/none"), o); !problem.Is(err, problem.ReasonNotFound) {
		t.Errorf("nothing: %v", err)
	}
	a, err := New(p, Names{}).To(target(t, "db/old"), o)
	if err != nil || len(a.Attacks) == 0 {
		t.Errorf("to: %+v, %v", a, err)
	}
	from := []identity.Pattern{pattern(t, "/ci/github/1/7")}
	for names, want := range map[string]bool{"": false, "db/old": true} {
		r, err := New(p, Names{Secrets: strings.Fields(names)}).From(from, o)
		if got := err == nil && slices.ContainsFunc(r.Reached, func(x Reached) bool { return x.Kind == KindSecret && x.Name == "db/old" }); got != want {
			t.Errorf("from, knowing %q: %v, %v", names, got, err)
		}
	}
}
