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
	"github.com/bailment/bailment/internal/problem"
)

// sets are the smallest sets that reach a target, and the ways of those of several.
func sets(t *testing.T, p *policy.Program, to string, worst Grade) (names []string, ways map[string]Attack) {
	t.Helper()
	a, err := New(p, Names{}).To(target(t, to), Options{Worst: worst})
	if err != nil || !a.Complete {
		t.Fatalf("%+v, %v", a, err)
	}
	ways = map[string]Attack{}
	for _, x := range a.Attacks {
		who := []string{}
		for _, w := range x.Who {
			who = append(who, strings.TrimPrefix(w.Name, "/human/"))
		}
		name := strings.Join(who, "+")
		names, ways[name] = append(names, name), x
		if len(x.Way) == 0 && x.Who[0].Name != to || x.Hops != len(x.Way) {
			t.Errorf("%s: %d hops by %s", name, x.Hops, text(x.Way))
		}
	}
	return names, ways
}

// What operators do together counts as the bundle asks for it, act by act; and one of them alone reaches nothing by it.
func TestActs(t *testing.T) {
	db := slices.Concat(all, []string{"Secret db/x type: opaque"})
	three := map[string]string{"ann": "propose, approve", "bob": "propose, approve", "cem": "propose, approve"}
	four := map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve-secrets", "dan": "approve-secrets"}
	glass := "Grant night actions: [secret.read], identities: [/human/ann], secrets: ['db/*'], purposes: [incident], breakGlass: 1h"
	for _, c := range []struct {
		name string
		b    bundle
		want []string
	}{
		{"two of three change the bundle", bundle{approvals: "1", operators: three}, []string{"ann+bob", "ann+cem", "bob+cem"}},
		{"a bundle takes three, and an export still does", bundle{approvals: "1, acts: [{act: bundle, required: 2}]", operators: three}, []string{"ann+bob+cem"}},
		{
			"an export takes fewer than a bundle", // by persons who approve nothing else
			bundle{approvals: "1, acts: [{act: bundle, required: 3}]", operators: map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve-bundles", "dan": "approve-secrets", "eve": "approve"}},
			[]string{"ann+dan+eve", "ann+bob+cem+eve"},
		},
		{"each duty approves its own act", bundle{approvals: "1", operators: four}, []string{"ann+bob", "ann+cem+dan"}},
		{"an export asks for more", bundle{approvals: "1, acts: [{act: secret.export, required: 3}]", operators: map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve-secrets", "dan": "approve-secrets", "eve": "approve-secrets"}}, []string{"ann+bob", "ann+cem+dan+eve"}},
		{
			"the proposer is denied", bundle{approvals: "1", operators: four, docs: []string{"Grant d effect: deny, actions: [secret.read], identities: [/human/ann], secrets: ['db/*']"}}, []string{"ann+bob"},
		},
		{
			"denied for exports", bundle{approvals: "1", operators: four, docs: []string{"Grant d effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/x], purposes: [export, runtime]"}}, []string{"ann+bob"},
		},
		{
			"denied for something else", bundle{approvals: "1", operators: four, docs: []string{"Grant d effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/x], purposes: [runtime]"}}, []string{"ann+bob", "ann+cem+dan"},
		},
		{
			"one of two proposers is denied",
			bundle{approvals: "1", operators: map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve-secrets", "dan": "approve-secrets", "eve": "propose"}, docs: []string{"Grant d effect: deny, actions: [secret.read], identities: [/human/eve], secrets: ['*']"}},
			[]string{"ann+bob", "bob+eve", "ann+cem+dan"},
		},
		{"too few for an export", bundle{approvals: "1", operators: map[string]string{"ann": "propose", "bob": "approve"}}, []string{"ann+bob"}},
		{"in development, alone", bundle{approvals: "0", operators: map[string]string{"ann": "propose, approve-secrets", "bob": "approve"}}, []string{"ann"}},
		{"in development, without the duty", bundle{approvals: "0", operators: map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve"}}, []string{"ann+bob", "ann+cem"}},
		{"break-glass within its budget takes nobody else", bundle{approvals: "1", operators: four, docs: []string{glass}, environment: told}, []string{"ann"}},
		{
			"break-glass without a budget takes as many as it asks for",
			bundle{approvals: "1", operators: four, docs: []string{glass}, environment: told + ", breakGlass: {openings: 0}"},
			[]string{"ann+bob", "ann+cem", "ann+dan"},
		},
		{
			"more for break-glass", bundle{approvals: "1, acts: [{act: glass.open, required: 2}]", operators: four, docs: []string{glass}, environment: told + ", breakGlass: {openings: 0}"}, []string{"ann+bob", "ann+cem+dan"},
		},
		{
			"an export gives a person's key, and he more", // eve may propose nothing herself: the key of fay, who approves bundles
			bundle{
				approvals: "1, acts: [{act: bundle, required: 2}]", operators: map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve-secrets", "dan": "approve-secrets", "fay": "approve-bundles"},
				docs: []string{"Secret key/fay type: opaque, unlocks: [{identity: /human/fay}]", "Grant d effect: deny, actions: [secret.read], identities: [/human/*], secrets: [db/x]"},
			},
			[]string{"ann+bob+fay", "ann+bob+cem+dan"},
		},
	} {
		c.b.docs = slices.Concat(db, c.b.docs)
		c.b.operators = with(c.b.operators)
		p := c.b.compile(t)
		got, _ := sets(t, p, "db/x", Poisoning)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
		for _, o := range p.Operators() {
			alone := slices.Contains(c.want, o.Name)
			reached := from(t, p, o.Path(), Poisoning)
			if (reached["db/x"] != "") != alone {
				t.Errorf("%s: %s alone reaches %q", c.name, o.Name, reached)
			}
			broken, err := CheckLimits(p, Names{}, []Limit{{Name: "x", From: []identity.Pattern{pattern(t, o.Path())}, To: []Target{target(t, "db/x")}, Worst: Poisoning}})
			if err != nil || (len(broken) > 0) != alone {
				t.Errorf("%s: the limit of %s: %+v, %v", c.name, o.Name, broken, err)
			}
		}
	}
}

// with adds persons whom a bundle must have, and whose duties give nothing.
func with(operators map[string]string) map[string]string {
	out := maps.Clone(operators)
	out["yan"], out["zoe"] = "audit", "approve-containment, audit"
	return out
}

const told = ", notify: [{name: team, webhook: {url: 'https://example.com/hook'}, on: [break-glass]}]"

// A workload that has the keys of enough operators is one thing that falls, whatever the act.
func TestActOfOnePrincipal(t *testing.T) {
	p := bundle{
		approvals: "1", operators: with(map[string]string{"ann": "propose", "bob": "approve-bundles", "cem": "approve-secrets", "dan": "approve-secrets"}),
		docs: slices.Concat(all, []string{
			"Identity app method: workload, path: /workload/app, nodes: [/node/*]", "Secret db/x type: opaque",
			"Secret key/ann type: opaque, unlocks: [{identity: /human/ann}]", "Secret key/others type: opaque, unlocks: [{identity: /human/cem}, {identity: /human/dan}]",
			"Grant g actions: [secret.read], identities: [/workload/app], secrets: ['key/*'], purposes: [runtime]",
		}),
	}.compile(t)
	want := "plain: /workload/app reads key/ann unlocks /human/ann agrees to secret.export; /workload/app reads key/others unlocks /human/cem agrees to secret.export; /workload/app reads key/others unlocks /human/dan agrees to secret.export gives db/x"
	if got := from(t, p, "/workload/app", Poisoning)["db/x"]; got != want {
		t.Errorf("app reaches db/x by %q", got)
	}
	if got := from(t, p, "/workload/app", Poisoning); got[theBundle] != "" {
		t.Errorf("app reaches the bundle: %q", got[theBundle])
	}
	names, ways := sets(t, p, "db/x", Poisoning)
	if !slices.Equal(names[:3], []string{"/node/join-token/*", "/workload/app", "ann+bob"}) || text(ways["ann+cem+dan"].Way) != "/human/ann agrees to secret.export; /human/cem agrees to secret.export; /human/dan agrees to secret.export gives db/x" {
		t.Errorf("%q, %s", names, text(ways["ann+cem+dan"].Way))
	}
	broken, err := CheckLimits(p, Names{}, []Limit{{Name: "x", From: []identity.Pattern{pattern(t, "/workload/app")}, To: []Target{target(t, "db/x")}}})
	if err != nil || len(broken) != 1 || "plain: "+text(broken[0].Way) != want {
		t.Errorf("broken: %+v, %v", broken, err)
	}
	c, err := New(p, Names{}).Cut([]identity.Pattern{pattern(t, "/workload/app")}, target(t, "db/x"), Options{})
	if err != nil || c.Smallest || c.Cost == 0 {
		t.Errorf("cut: %+v, %v", c, err)
	}
	if c, err := New(p, Names{}).Cut([]identity.Pattern{pattern(t, "/human/*")}, target(t, "db/x"), Options{}); err != nil || c.Cost != 0 || !c.Smallest {
		t.Errorf("no person alone, and a cut of %+v, %v", c, err)
	}
}

// Holders of recovery keys together have everything, after a wait in public; less of them, and who counts plain ways only, nothing.
func TestRecoveryKeys(t *testing.T) {
	recovery := func(required, names string) string {
		var keys []string
		for _, name := range strings.Fields(names) {
			person, _, _ := strings.Cut(name, "#")
			keys = append(keys, "{person: "+person+", key: '"+keyOf(t, "recovery "+name)+"'}")
		}
		return ", recovery: {required: " + required + ", delay: 48h, keys: [" + strings.Join(keys, ", ") + "]}"
	}
	p := bundle{
		approvals: "2", operators: map[string]string{"ann": "propose, approve", "bob": "approve", "cem": "approve"}, environment: recovery("2", "ruth sven tom#1 tom#2"),
		docs: slices.Concat(all, []string{"Secret db/x type: opaque, unlocks: [{system: prod}]"}),
	}.compile(t)
	const who, wait = "2 of ruth, sven, tom", "(if nobody stops it within 48h, for which it is public)"
	names, ways := sets(t, p, "system:prod", Conditional)
	if want := []string{who, "ann+bob+cem"}; !slices.Equal(names, want) {
		t.Fatalf("%q", names)
	}
	a := ways[who]
	if want := who + " replaces the operators of the bundle " + wait + " gives itself db/x unlocks prod"; text(a.Way) != want || a.Cost != 2 || a.Grade != Conditional || a.Who[0].Kind != KindRecovery {
		t.Errorf("%+v: %s", a, text(a.Way))
	}
	if names, _ := sets(t, p, "db/x", Plain); !slices.Equal(names, []string{"ann+bob+cem"}) {
		t.Errorf("plain: %q", names)
	}
	m := New(p, Names{})
	r, err := m.From(nil, Options{Worst: Conditional, Recovery: true})
	if err != nil || !slices.Equal(r.From, []string{FromRecovery}) || r.Starts != 1 || !slices.ContainsFunc(r.Reached, func(x Reached) bool { return x.Name == "db/x" && x.Grade == Conditional && x.Hops == 2 }) {
		t.Errorf("%+v, %v", r, err)
	}
	c, err := m.Cut(nil, target(t, "db/x"), Options{Worst: Conditional, Recovery: true})
	if err != nil || c.Cost != 1 || !c.Smallest || len(c.Taken) != 1 || c.Taken[0].Hop != Recovers || c.Taken[0].Rule != "recovery" || c.Taken[0].Source != environmentFile {
		t.Errorf("%+v, %v", c, err)
	}
	w, err := m.WhoCan(policy.ReadSecret, pattern(t, "db/x"), Options{Worst: Poisoning})
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, x := range w.Ways {
		rows = append(rows, x.Who.Kind+" "+x.Who.Name+": "+x.Grade.String()+" "+text(x.Way))
	}
	if want := []string{
		"persons 3 of ann, bob, cem: plain 3 of ann, bob, cem agrees to the bundle gives itself db/x",
		"persons 3 of ann, bob, cem: plain 3 of ann, bob, cem agrees to secret.export gives db/x",
		"recovery keys " + who + ": conditional " + who + " replaces the operators of the bundle " + wait + " gives itself db/x",
	}; !slices.Equal(rows, want) {
		t.Errorf("who can: %q", rows)
	}
	// They can be whom they like; and nobody is without a recovery.
	if names, _ := sets(t, p, "/human/cem", Conditional); !slices.Contains(names, who) {
		t.Errorf("to a person: %q", names)
	}
	none := bundle{approvals: "1", operators: map[string]string{"ann": "propose, approve", "bob": "approve"}, docs: slices.Concat(all, []string{"Secret db/x type: opaque"})}.compile(t)
	if _, err := New(none, Names{}).From(nil, Options{Recovery: true}); !problem.Is(err, problem.ReasonNotFound) {
		t.Errorf("without recovery: %v", err)
	}
}

// Destroying takes others where persons approve one another: then a grant for it gives nothing alone, and nothing at all to who proposes nothing.
func TestWhoCanDestroy(t *testing.T) {
	docs := slices.Concat(all, []string{
		"Secret db/x type: opaque", "Grant g actions: [secret.destroy], identities: [/human/ann, /ci/github/1/*], secrets: ['db/*']",
	})
	for approvals, want := range map[string][]string{
		"0": {"/ci/github/1/*: /ci/github/1/* may db/x", "/human/ann: /human/ann may db/x"},
		"1": {"2 of ann, bob: 2 of ann, bob agrees to secret.destroy by ann may db/x"},
	} {
		p := bundle{approvals: approvals, operators: map[string]string{"ann": "propose, approve", "bob": "propose, approve"}, docs: docs}.compile(t)
		w, err := New(p, Names{}).WhoCan(policy.DestroySecret, pattern(t, "db/x"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		var rows []string
		for _, x := range w.Ways {
			if !strings.Contains(text(x.Way), theBundle) {
				rows = append(rows, x.Who.Name+": "+text(x.Way))
			}
		}
		if !slices.Equal(rows, want) {
			t.Errorf("%s approvals: %q", approvals, rows)
		}
	}
}

// offices draws operators with narrow duties, what acts ask for, persons' keys among the secrets, and who reads or may not read what.
func offices(t *rapid.T) bundle {
	b := bundle{operators: map[string]string{"yan": "audit", "zoe": "approve-containment, audit", "ann": "propose, approve"}, docs: slices.Clone(all)}
	for _, name := range []string{"bob", "cem", "dan", "eve"} {
		b.operators[name] = rapid.SampledFrom([]string{"propose", "approve", "approve-bundles", "approve-secrets", "propose, approve-secrets", "propose, approve-bundles", "revoke"}).Draw(t, name)
	}
	b.approvals = fmt.Sprintf("%d, acts: [{act: bundle, required: %d}, {act: secret.export, required: %d}]", rapid.IntRange(0, 1).Draw(t, "all"), rapid.IntRange(1, 3).Draw(t, "bundle"), rapid.IntRange(2, 3).Draw(t, "export"))
	persons := []string{"ann", "bob", "cem", "dan", "eve"}
	for i := range 2 {
		b.docs = append(b.docs, fmt.Sprintf("Secret key/%d type: opaque, unlocks: [{identity: /human/%s}]", i, rapid.SampledFrom(persons).Draw(t, "key of")))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "grants") {
		b.docs = append(b.docs, fmt.Sprintf("Grant g%d actions: [secret.read], identities: [/human/%s], secrets: [key/%d], purposes: [runtime]", i, rapid.SampledFrom(persons).Draw(t, "who"), i))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "denies") {
		b.docs = append(b.docs, fmt.Sprintf("Grant d%d effect: deny, actions: [secret.read], identities: [/human/%s], secrets: ['%s'], purposes: [%s]", i, rapid.SampledFrom(append(persons, "*")).Draw(t, "whom"),
			rapid.SampledFrom([]string{"db/x", "key/*", "key/0", "*"}).Draw(t, "what"), rapid.SampledFrom([]string{"runtime", "export"}).Draw(t, "for")))
	}
	b.docs = append(b.docs, "Secret db/x type: opaque")
	return b
}

// together is whether some persons together get at a secret: read by read, act by act.
func together(p *policy.Program, persons []string, secret string) bool {
	has, known := map[string]bool{}, map[string]bool{}
	for _, name := range persons {
		has[name] = true
	}
	can := func(o policy.Operator) bool { return has[o.Name] }
	secrets := []string{"db/x", "key/0", "key/1"}
	for n := -1; n != len(has)+len(known); {
		n = len(has) + len(known)
		if policy.Quorum(p, policy.ActBundle, can) {
			return true
		}
		for _, o := range p.Operators() {
			if !has[o.Name] {
				continue
			}
			for _, s := range secrets {
				in := &policy.Input{Action: policy.ReadSecret, Identity: o.Path(), Secret: s, Purpose: "runtime", Assurance: policy.OperatorAssurance}
				if p.Decide(in).Allow {
					known[s] = true
				}
				in.Purpose = "export"
				if p.Decide(in).Reason != problem.ReasonDenied && policy.QuorumBy(p, policy.ActExport, func(x policy.Operator) bool { return x.Name == o.Name }, can) {
					known[s] = true
				}
			}
		}
		for s := range known {
			declared, _ := p.Secret(s)
			for _, u := range declared.Unlocks {
				has[strings.TrimPrefix(u.Identity, identity.PrefixHuman)] = true
			}
		}
	}
	return known[secret]
}

// The smallest sets of persons are those that get there act by act, and no others.
func TestSmallestSetsOfPersons(t *testing.T) {
	asked := 0
	rapid.Check(t, func(t *rapid.T) {
		p, err := offices(t).try(t)
		if err != nil {
			return // some act could never be approved
		}
		asked++
		names := []string{"ann", "bob", "cem", "dan", "eve"}
		for _, secret := range []string{"db/x", "key/1"} {
			var want []string
			reaches := make([]bool, 1<<len(names))
			for set := range reaches {
				var persons []string
				for i, name := range names {
					if set&(1<<i) != 0 {
						persons = append(persons, name)
					}
				}
				reaches[set] = together(p, persons, secret)
				smallest := reaches[set]
				for i := range names {
					smallest = smallest && (set&(1<<i) == 0 || !reaches[set&^(1<<i)])
				}
				if smallest {
					want = append(want, strings.Join(persons, "+"))
				}
			}
			to, _ := ParseTarget(secret)
			a, err := New(p, Names{}).To(to, Options{Worst: Poisoning})
			if err != nil || !a.Complete {
				t.Fatalf("%+v, %v", a, err)
			}
			var got []string
			for _, x := range a.Attacks {
				var who []string
				for _, w := range x.Who {
					who = append(who, strings.TrimPrefix(w.Name, identity.PrefixHuman))
				}
				got = append(got, strings.Join(who, "+"))
				if len(x.Way) == 0 || x.Way[len(x.Way)-1].To.Name != secret {
					t.Fatalf("%s gets at %s by %s", got, secret, text(x.Way))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("%s: %q, and act by act %q", secret, got, want)
			}
			for i, name := range names {
				who, _ := identity.ParseIDPattern(identity.PrefixHuman + name)
				r, err := New(p, Names{}).From([]identity.Pattern{who}, Options{Worst: Poisoning})
				if alone := slices.ContainsFunc(r.Reached, func(x Reached) bool { return x.Kind == KindSecret && x.Name == secret }); err != nil || alone != together(p, names[i:i+1], secret) {
					t.Fatalf("%s alone reaches %s: %v, %v", name, secret, alone, err)
				}
			}
		}
	})
	if asked == 0 {
		t.Error("no bundle of them compiles")
	}
}
