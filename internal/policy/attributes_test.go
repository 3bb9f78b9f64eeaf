package policy

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/identity"
)

const conditionsPage = "../../docs/reference/conditions.md"

// The page is what the code says. With -update it is written.
func TestConditionsReference(t *testing.T) {
	want := ConditionsReference()
	if *update {
		if err := os.WriteFile(conditionsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(conditionsPage)
	if err != nil || string(got) != want {
		t.Errorf("%s is not what the code says: go test ./internal/policy -run ConditionsReference -args -update (%v)", conditionsPage, err)
	}
}

// Every function of the library is in the table, and no other.
func TestFunctionsAreAll(t *testing.T) {
	s, err := grantScope()
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for name := range s.env.Functions() {
		there[name] = true
	}
	for _, m := range s.env.Macros() {
		there[m.Function()] = true
	}
	delete(there, "@not_strictly_false") // what all() and exists() are made of, which can't be written
	delete(there, "__not_strictly_false__")
	told := map[string]bool{}
	for _, f := range functions() {
		for _, name := range f.names {
			told[name] = true
			if strings.Trim(name, "_@!?:<>=&|+-*/%[]") == name && name != "in" && !strings.Contains(f.form, name+"(") {
				t.Errorf("%s is not in its form %s", name, f.form)
			}
		}
	}
	if a, b := slices.Sorted(maps.Keys(there)), slices.Sorted(maps.Keys(told)); !slices.Equal(a, b) {
		t.Errorf("there are %v, and told are %v", a, b)
	}
}

// Each example compiles, uses what it is an example of, and is true of the page's request.
func TestConditionExamples(t *testing.T) {
	p := mustCompile(t, exampleFiles(t))
	s, err := grantScope()
	if err != nil {
		t.Fatal(err)
	}
	in := &Input{
		Action: ReadSecret, Identity: "/workload/payments-api", Node: "/node/join-token/web-1", Secret: "db/password", Purpose: "runtime",
		Assurance: identity.Token, Time: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC),
		Claims: mustClaims(t, map[string]any{
			"unix": map[string]any{"uid": 1000, "gid": 1000}, "groups": []string{"wheel", "adm"}, "process": map[string]any{"path": "/usr/local/bin/payments-api"},
		}),
		NodeClaims: mustClaims(t, map[string]any{"name": "web-1"}),
	}
	check := func(example string) {
		t.Helper()
		c, issues := s.compile(example)
		if c == nil {
			t.Errorf("%s: %v", example, issues)
			return
		}
		if ok, err := c.holds(&vars{in: in, prog: p}); !ok || err != nil {
			t.Errorf("%s: %v, %v", example, ok, err)
		}
	}
	rules, err := identityScope()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attributes() {
		if !strings.Contains(a.example, a.name) {
			t.Errorf("the example of %s is of something else", a.name)
		}
		check(a.example)
		if c, _ := rules.compile(a.example); (c != nil) != a.rules {
			t.Errorf("%s: in identity rules: %v", a.name, c != nil)
		}
	}
	for _, f := range functions() {
		for _, name := range f.names {
			if word := strings.Trim(name, "_@?"); strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" && !strings.Contains(f.example, word) && word != "exists_one" {
				t.Errorf("the example of %s is of something else", name)
			}
		}
		check(f.example)
	}
}

// Of a secret that nothing declares there is neither name nor type; of a family there is its pattern.
func TestSecretAttributes(t *testing.T) {
	for secret, want := range map[string]bool{"web/a/b": true, "db/password": false, "none": false} {
		p := mustCompile(t, with(t, "Secret web/* type: opaque", `Grant g actions: [secret.list], identities: [/workload/*], secrets: ["*"], when: 'secret.name == "web/*" && secret.type == "opaque"'`))
		if d := p.Decide(&Input{Action: ListSecret, Identity: "/workload/x", Secret: secret, Assurance: identity.Key}); d.Allow != want {
			t.Errorf("%s: %+v", secret, d)
		}
	}
}
