package policy

import (
	"slices"
	"strings"
	"testing"
)

// adviceOf is what is said of a bundle, without the places' columns.
func adviceOf(t testing.TB, files Files) []string {
	t.Helper()
	p := mustCompile(t, files)
	var out []string
	for _, f := range p.Advice(runTests(t, files)) {
		out = append(out, f.String())
	}
	return out
}

func TestExamplesNeedNoAdvice(t *testing.T) {
	for _, name := range []string{"payments", "ci"} {
		if got := adviceOf(t, exampleNamed(t, name)); len(got) > 0 {
			t.Errorf("%s: %s", name, strings.Join(got, "\n"))
		}
	}
	if got := adviceOf(t, bare(t)); len(got) > 0 {
		t.Errorf("of a bundle without tests: %v", got)
	}
}

// Each kind of a grant without effect is found, and what is near it is not.
func TestAdviceAboutGrants(t *testing.T) {
	const rest = "actions: [secret.read], identities: [/workload/*], secrets: [db/*], purposes: [a]"
	for _, c := range []struct {
		name      string
		documents []string
		want      string // "" for nothing
	}{
		{"nobody", []string{"Grant g actions: [secret.list], identities: [/ci/*, /human/*], secrets: [db/*]"}, "grants/with0.yaml:4: the grant g is for nobody by /ci/*: no identity rule gives such a path"},
		{"nobody by a subtree", []string{"Grant g actions: [secret.list], identities: [/node/join-token/a/b/*], secrets: [db/*]"}, "grants/with0.yaml:4: the grant g is for nobody by /node/join-token/a/b/*: no identity rule gives such a path"},
		{"nothing", []string{"Grant g actions: [secret.list], identities: [/human/*], secrets: [db/*, web/*]"}, "grants/with0.yaml:4: the grant g is about nothing by web/*: no such secret is declared"},
		{"denied in advance", []string{"Grant g effect: deny, actions: [secret.list], identities: [/ci/*, /human/*], secrets: [db/*, web/*]"}, ""},
		{"denied in vain", []string{"Grant g effect: deny, actions: [secret.list], identities: [/ci/*], secrets: [db/*]"}, "grants/with0.yaml:4: the grant g is for nobody by /ci/*: no identity rule gives such a path"},
		{"shadowed by a denial", []string{"Grant g " + rest, "Grant d effect: deny, actions: [secret.read, secret.list], identities: [/*], secrets: ['*']"}, "grants/with0.yaml:1:1: the grant g has no effect: the grant d (grants/with1.yaml:1:1) denies all of it"},
		{"a denial with a condition", []string{"Grant g " + rest, "Grant d effect: deny, actions: [secret.read, secret.list], identities: [/*], secrets: ['*'], when: claims.a == 1"}, ""},
		{"a denial of its condition", []string{"Grant g " + rest + ", when: claims.a == 1", "Grant d effect: deny, actions: [secret.read], identities: [/*], secrets: ['*'], when: claims.a == 1"}, "grants/with0.yaml:1:1: the grant g has no effect: the grant d (grants/with1.yaml:1:1) denies all of it"},
		{"a denial of some", []string{"Grant g " + rest, "Grant d effect: deny, actions: [secret.read, secret.list], identities: [/workload/payments-api], secrets: ['*']"}, ""},
		{"a denial of a purpose", []string{"Grant g " + rest, "Grant d effect: deny, actions: [secret.read], identities: [/*], secrets: ['*'], purposes: [b]"}, ""},
		{"permitted twice", []string{"Grant g " + rest, "Grant f actions: [secret.read], identities: [/workload/*], secrets: ['*'], purposes: [b, a]"}, "grants/with0.yaml:1:1: the grant g has no effect: the grant f (grants/with1.yaml:1:1) permits all of it, for as long or longer"},
		{"permitted longer", []string{"Grant g " + rest, "Grant f ttl: 1h, " + rest}, "grants/with1.yaml:1:1: the grant f has no effect: the grant g (grants/with0.yaml:1:1) permits all of it, for as long or longer"},
		{"for other purposes", []string{"Grant g " + rest, "Grant f actions: [secret.read], identities: [/workload/*], secrets: ['*'], purposes: [b]"}, ""},
		{"for less assurance", []string{"Grant g " + rest, "Grant f assurance: key, " + rest + ", ttl: 1h"}, "grants/with1.yaml:1:1: the grant f has no effect: the grant g (grants/with0.yaml:1:1) permits all of it, for as long or longer"},
		{"for more assurance", []string{"Grant g " + rest + ", ttl: 1h", "Grant f assurance: key, " + rest}, ""},
	} {
		got := slices.DeleteFunc(adviceOf(t, withoutTests(with(t, c.documents...))), func(s string) bool { return !strings.HasPrefix(s, "grants/with") })
		if c.want == "" && len(got) > 0 || c.want != "" && !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

// What no test made use of is named, part by part.
func TestAdviceAboutCoverage(t *testing.T) {
	files := withTests(with(t,
		"Secret web/a type: opaque",
		"Grant g actions: [secret.read, secret.list], identities: [/workload/payments-db, /human/*], secrets: [db/*, web/*], purposes: [a, b], when: claims.a == 1",
	), "  cases:\n    - {name: one, identity: /workload/payments-db, claims: {a: 1}, secret: web/a, purpose: b, expect: allow}\n")
	want := []string{"grants/with1.yaml:1:1: the tests have no case of the grant g for: secret.list, /human/*, db/*, purpose a, its condition false"}
	if got := adviceOf(t, files); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	files = withTests(with(t, "Identity i method: join-token, path: '/node/join-token/{claims.name}/x', when: claims.name == 'a', require: claims.token == 'b'"),
		"  tokens: [{name: t, method: join-token, claims: {name: b}}]\n  identities:\n    - {name: one, token: t, expect: /node/join-token/b}\n")
	want = []string{"identities/with0.yaml:1:1: the tests have no case of the identity i for: /node/join-token/{claims.name}/x, its condition true, what it requires true, what it requires false"}
	if got := adviceOf(t, files); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// Advice about 10,000 grants with half as many tests.
func BenchmarkAdvice(b *testing.B) {
	files := benchTests(b, 10_000, 5_000)
	p := mustCompile(b, files)
	r := runTests(b, files)
	for b.Loop() {
		if len(p.Advice(r)) == 0 {
			b.Fatal("there is no advice")
		}
	}
}
