package policy

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

func mutate(t testing.TB, files Files) *MutationReport {
	t.Helper()
	r, err := mustCompile(t, files).Mutate(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// No weaker rule of the examples goes unnoticed by their tests.
func TestMutateExamples(t *testing.T) {
	for name, least := range map[string]int{"payments": 12, "ci": 30} {
		r := mutate(t, exampleNamed(t, name))
		for _, m := range r.Survivors {
			t.Errorf("%s: %s: %s %s: lets in %s", name, m.Source, m.Rule, m.Change, m.LetsIn)
		}
		if r.Mutants < least || r.Killed != r.Mutants {
			t.Errorf("%s: %d of %d mutants killed", name, r.Killed, r.Mutants)
		}
	}
}

// Each kind of weakness is found when no test tells it, with its place; and killed by the test that does.
func TestMutants(t *testing.T) {
	const base = "actions: [secret.read], identities: [/workload/payments-api], secrets: [other/a], purposes: [p], assurance: token, "
	const other = "Secret other/a type: opaque"
	const api, nobody = "identity: /workload/payments-api, secret: other/a, purpose: p, ", "expect: deny"
	for _, c := range []struct {
		name      string
		documents []string
		mutant    string // as FILE:LINE RULE: CHANGE: LETS IN
		kill      string // cases (or identities:, after which they follow) that kill it
	}{
		{
			"condition",
			[]string{other, "Grant g " + base + "when: claims.uid == 1"},
			"grants/with1.yaml:4 the grant g: without its condition: requests for which this is false, or can't be told: claims.uid == 1", api + nobody,
		},
		{
			"conjunct",
			[]string{other, "Grant g " + base + "when: claims.uid == 1 && claims.gid == 2"},
			"grants/with1.yaml:4 the grant g: with `claims.gid == 2` taken for true: requests for which `claims.gid == 2` is false", api + "claims: {uid: 1, gid: 3}, " + nobody,
		},
		{
			"negation",
			[]string{other, "Grant g " + base + "when: claims.uid == 1 && !(claims.gid == 2 || claims.gid == 3)"},
			"grants/with1.yaml:4 the grant g: with `claims.gid == 3` taken for false: requests for which `claims.gid == 3` is true", api + "claims: {uid: 1, gid: 3}, " + nobody,
		},
		{
			"choice",
			[]string{other, "Grant g " + base + "when: 'claims.uid == 1 ? claims.gid == 2 : claims.gid == 3'"},
			"grants/with1.yaml:4 the grant g: with `claims.uid == 1` taken for true: requests for which `claims.uid == 1` is false", api + "claims: {uid: 2, gid: 2}, " + nobody,
		},
		{
			"macro",
			[]string{other, "Grant g " + base + "when: 'claims.groups.exists(g, g == \"a\") && claims.uid > 0'"},
			"grants/with1.yaml:4 the grant g: with `claims.groups.exists(g, g == \"a\")` taken for true: requests for which `claims.groups.exists(g, g == \"a\")` is false", api + "claims: {uid: 1, groups: [b]}, " + nobody,
		},
		{
			"guard of something else",
			[]string{other, "Grant g " + base + "when: 'has(claims.a) && claims.b == 1'"},
			"grants/with1.yaml:4 the grant g: with `has(claims.a)` taken for true: requests for which `has(claims.a)` is false", api + "claims: {b: 1}, " + nobody,
		},
		{
			"assurance",
			[]string{other, "Grant g actions: [secret.read], identities: [/workload/payments-api], secrets: [other/a], purposes: [p], assurance: key"},
			"grants/with1.yaml:4 the grant g: assurance token instead of key: sessions of assurance token", api + nobody,
		},
		{
			"purposes",
			[]string{other, "Grant g " + base},
			"grants/with1.yaml:1 the grant g: for any purpose: requests for purposes other than p", "identity: /workload/payments-api, secret: other/a, " + nobody,
		},
		{
			"identities",
			[]string{other, "Grant g " + base},
			"grants/with1.yaml:4 the grant g: /workload/* instead of /workload/payments-api: identities below /workload/*", "identity: /workload/payments-db, secret: other/a, purpose: p, " + nobody,
		},
		{
			"secrets",
			[]string{other, "Secret other/b type: opaque", "Grant g " + base},
			"grants/with2.yaml:4 the grant g: other/* instead of other/a: secrets below other/*", "identity: /workload/payments-api, secret: other/b, purpose: p, " + nobody,
		},
		{
			"secrets far above",
			[]string{"Secret deep/er/a type: opaque", "Secret more type: opaque", "Grant g actions: [secret.list], identities: [/workload/payments-api], secrets: [deep/er/a]"},
			"grants/with2.yaml:4 the grant g: * instead of deep/er/a: secrets below *", "identity: /workload/payments-api, action: secret.list, secret: more, " + nobody,
		},
		{
			"secrets above",
			[]string{other, "Secret more type: opaque", "Grant g actions: [secret.list], identities: [/workload/payments-api], secrets: [more]"},
			"grants/with2.yaml:4 the grant g: * instead of more: secrets below *", "identity: /workload/payments-api, action: secret.list, secret: other/a, " + nobody,
		},
		{
			"ttl",
			[]string{other, "Grant g " + base + "ttl: 5m"},
			"grants/with1.yaml:4 the grant g: without its ttl: leases of more than 5m", api + "expect: allow, ttl: 5m",
		},
		{
			"deny",
			[]string{other, "Grant g " + base, "Grant d effect: deny, actions: [secret.read], identities: [/workload/*], secrets: [other/*]"},
			"grants/with2.yaml:1 the grant d: without it: what it denies: secret.read on other/* to /workload/*", api + nobody,
		},
		{
			"deny's condition",
			[]string{other, "Grant g " + base, "Grant d effect: deny, actions: [secret.read], identities: [/workload/*], secrets: [other/*], when: claims.a == 1 || claims.b == 1"},
			"grants/with2.yaml:4 the grant d: with `claims.b == 1` taken for false: requests for which `claims.b == 1` is true", api + "claims: {a: 2, b: 1}, by: d, " + nobody,
		},
		{
			"deny's lists",
			[]string{other, "Grant d effect: deny, actions: [secret.read, secret.list], identities: [/workload/payments-api, /human/*], secrets: [other/a, db/*], purposes: [p, q]"},
			"grants/with1.yaml:1 the grant d: without the purpose q: requests for the purpose q", "identity: /workload/payments-api, secret: other/a, purpose: q, by: d, " + nobody,
		},
		{
			"identity's condition",
			[]string{"Identity i method: join-token, path: '/node/join-token/{claims.name}/x', when: 'claims.name == \"a\" && claims.token == \"b\"'"},
			"identities/with0.yaml:4 the identity i: with `claims.token == \"b\"` taken for true: machines for which `claims.token == \"b\"` is false", "identities: token: t, claims: {token: c}, expect: /node/join-token/a",
		},
		{
			"identity's require",
			[]string{"Identity i method: join-token, path: '/node/join-token/{claims.name}', require: 'claims.token == \"b\"', otherwise: quarantine"},
			"identities/with0.yaml:4 the identity i: without what it requires: machines for which this is false, or can't be told: claims.token == \"b\"", "identities: token: t, claims: {token: c}, expect: quarantine",
		},
		{
			"quarantine",
			[]string{"Identity i method: join-token, path: '/node/join-token/{claims.name}', require: 'claims.token == \"b\"', otherwise: quarantine"},
			"identities/with0.yaml:4 the identity i: refusing instead of quarantining: machines that are not as required stay enrolled", "identities: token: t, claims: {token: c}, expect: quarantine",
		},
		{
			"nodes",
			[]string{"Identity i method: workload, path: /workload/i, nodes: [/node/join-token/a], when: claims.i == true"},
			"identities/with0.yaml:4 the identity i: with nodes /node/join-token/* instead of /node/join-token/a: processes of nodes below /node/join-token/*", "identities: token: w, asks: /workload/i, expect: refuse, reason: foreign-node",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := withoutTests(with(t, c.documents...))
			tokens := "  tokens: [{name: t, method: join-token, claims: {name: a, token: b}}, {name: w, method: workload, node: /node/join-token/b, claims: {i: true}}]\n"
			found := func(spec string) bool {
				return slices.ContainsFunc(mutate(t, withTests(files, tokens+spec)).Survivors, func(m Mutant) bool {
					m.Source.Column = 0
					return m.Source.String()+" "+m.Rule+": "+m.Change+": "+m.LetsIn == c.mutant
				})
			}
			if !found("") {
				t.Errorf("not found among %v", mutate(t, withTests(files, tokens)).Survivors)
			}
			kind, line, ok := strings.Cut(c.kill, ": token")
			if !ok || kind != "identities" {
				kind, line = "cases", c.kill
			} else {
				line = "token" + line
			}
			if found("  " + kind + ":\n    - {name: kills, " + line + "}\n") {
				t.Error("it is not killed")
			}
		})
	}
}

// What changes nothing is no mutant.
func TestEquivalentMutants(t *testing.T) {
	count := func(documents ...string) int { return mutate(t, withoutTests(with(t, documents...))).Mutants }
	const other = "Secret other/a type: opaque"
	none := count(other)
	for _, c := range []struct {
		name      string
		documents []string
		more      int
	}{
		{"one operator, one secret", []string{"Grant g actions: [secret.list], identities: [/human/alice], secrets: [other/a], assurance: unbound"}, 2}, // for everybody, and on everything,
		{"all there are", []string{"Grant g actions: [secret.list], identities: [/workload/*, /node/*, /human/*, /ci/*], secrets: ['*'], assurance: unbound"}, 0},
		{"guards", []string{"Grant g actions: [secret.list], identities: [/*], secrets: ['*'], assurance: unbound, when: 'has(claims.a) && has(claims.a.b) && claims.a.b == 1'"}, 2},
		{"guards of a choice", []string{"Grant g actions: [secret.list], identities: [/*], secrets: ['*'], assurance: unbound, when: 'has(claims.a) && (claims.a == 1 || claims.a == 2)'"}, 2},
		{"guards of a denial", []string{"Grant g effect: deny, actions: [secret.list], identities: [/*], secrets: ['*'], when: '!has(claims.a) || claims.a == 1'"}, 2}, // without it, and without the latter
		{"twice the same", []string{"Grant g actions: [secret.list], identities: [/*], secrets: ['*'], assurance: unbound, when: 'claims.a == 1 || claims.b == 1'"}, 1},
		{"a lease that is as long", []string{"Grant g actions: [secret.read], identities: [/*], secrets: ['*'], purposes: [p], assurance: unbound, ttl: 24h"}, 1},                                                                                                  // purposes
		{"denied anyway", []string{"Grant g actions: [secret.read], identities: [/human/alice, /workload/*, /ci/*], secrets: ['*'], purposes: [p], assurance: unbound", "Grant d effect: deny, actions: [secret.read], identities: [/node/*], secrets: ['*']"}, 1}, // purposes, its own denial, and no more that payments-db's secret is for everybody
	} {
		if got := count(append([]string{other}, c.documents...)...) - none; got != c.more {
			t.Errorf("%s: %d mutants, want %d", c.name, got, c.more)
		}
	}
}

// Mutation says nothing of a bundle whose tests fail, and leaves the program as it is.
func TestMutateKeepsProgram(t *testing.T) {
	p := mustCompile(t, exampleFiles(t))
	before := p.Grants()
	if _, err := p.Mutate(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r, err := p.RunTests(context.Background()); err != nil || r.Err() != nil || len(before) != len(p.Grants()) {
		t.Errorf("after it: %v, %v", err, r.Err())
	}
	failing := mustCompile(t, withTests(exampleFiles(t), "  cases: [{name: planted, identity: /human/alice, secret: db/password, expect: allow}]\n"))
	if _, err := failing.Mutate(context.Background()); !problem.Is(err, problem.ReasonBundleInvalid) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Mutate(ctx); !problem.Is(err, problem.ReasonTooSlow) {
		t.Errorf("%v", err)
	}
}

func BenchmarkMutate(b *testing.B) {
	p := mustCompile(b, benchTests(b, 2_000, 2_000))
	for b.Loop() {
		r, err := p.Mutate(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(r.Mutants), "mutants")
	}
}
