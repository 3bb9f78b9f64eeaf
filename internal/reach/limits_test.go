package reach

import (
	"errors"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/policy/policytest"
	"github.com/bailment/bailment/internal/problem"
)

// withLimits is an example with a test that has these limits.
func withLimits(t *testing.T, example, limits string) *policy.Program {
	t.Helper()
	files := policytest.Example(t, example)
	if limits != "" {
		files["tests/planted.yaml"] = []byte("apiVersion: bailment/v1\nkind: Test\nmetadata: {name: planted}\nspec:\n  limits:\n" + limits)
	}
	return policytest.Compile(t, files)
}

func TestExamplesKeepTheirLimits(t *testing.T) {
	for _, name := range []string{"estate", "ci", "payments"} {
		p := withLimits(t, name, "")
		if err := New(p, Names{}).KeepsLimits(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name != "payments" && len(p.Limits()) == 0 {
			t.Errorf("%s has no limits", name)
		}
	}
}

// Each planted limit that does not hold is found at its place, with the way that breaks it; and so is one that is about nobody or nothing.
func TestBrokenLimits(t *testing.T) {
	for _, c := range []struct{ name, limit, why string }{
		{"holds", "from: [/ci/*], to: [db/prod/*], direct: true", ""},
		{"by a way", "from: [/ci/*], to: [db/prod/*]", "/ci/github/4100/72 (and 2 more) gets there, by a way that is plain: "},
		{"of one", "from: [/ci/github/4100/73], to: ['system:prod-db'], ways: plain", "/ci/github/4100/73 gets there, by a way that is plain: reads ci/registry-token [website-pushes] → deploys /workload/shop/"},
		{"of the second target", "from: [/ci/github/4100/72], to: [backup/key, 'system:cluster']", "→ unlocks cluster"},
		{"conditional holds", "from: [/ci/github/4100/71], to: [ci/registry-token], ways: plain", ""},
		{"conditional", "from: [/ci/github/4100/71], to: [ci/registry-token], ways: conditional", `reads ci/registry-token [shop-pushes] (if claims.ref == "refs/heads/main")`},
		{"poisoning by default", "from: [/human/alice], to: [/workload/backup]", "by a way that is poisoning: "},
		{"one alone", "from: [/human/*], to: [db/prod/*], ways: conditional", "/human/carol gets there, by a way that is plain: "},
		{"nobody", "from: [/ci/gitlab/*], to: [db/prod/*]", "nobody can be /ci/gitlab/* by this bundle: the limit is about nothing"},
		{"somebody and nobody", "from: [/ci/github/*, /ci/gitlab/*], to: [backup/key]", "nobody can be /ci/gitlab/* by this bundle: the limit is about nothing"},
		{"no secret", "from: [/ci/*], to: [backup/key, nothing/*]", "no secret that is nothing/* is declared in this bundle: the limit is about nothing"},
		{"nothing but itself", "from: [/workload/*], to: [/workload/*]", "whoever the limit is from is among those whom it keeps him from: the limit is about nothing"},
		{"no system", "from: [/ci/*], to: ['system:nothing']", "no secret unlocks a system \"nothing\": the limit is about nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// One that holds beside it, on either side, so that results must be told apart.
			m := New(withLimits(t, "estate", "    - {name: first, from: [/ci/*], to: [backup/key]}\n    - {name: planted, "+c.limit+"}\n    - {name: last, from: [/ci/*], to: [backup/key]}\n"), Names{})
			results, err := m.Limits()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range results {
				why := r.Why()
				if r.Name != "planted" && why != "" || r.Name == "planted" && (why == "") != (c.why == "") || r.Name == "planted" && !strings.Contains(why, c.why) {
					t.Errorf("%s: %q", r.Name, why)
				}
			}
			err = m.KeepsLimits()
			if c.why == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var list policy.Findings
			if !problem.Is(err, problem.ReasonBundleInvalid) || !errors.As(err, &list) || len(list) != 1 {
				t.Fatalf("%v", err)
			}
			if list[0].Pos != (policy.Pos{File: "tests/planted.yaml", Line: 7, Column: 8}) || !strings.Contains(err.Error(), "tests/planted.yaml:7:8: the limit \"planted\" is broken: ") {
				t.Errorf("%v; %v", list[0].Pos, err)
			}
		})
	}
}

// What policy takes for a target, ParseTarget reads, and the other way round.
func TestTargetsOfLimits(t *testing.T) {
	for _, s := range []string{"db/prod/*", "*", "db", "/ci/*", "/*", "/human/alice", "system:a", "system:prod-db", "system:", "system:A b", "/", "", "db//x", "/nowhere/x", "db/*/x", "a b"} {
		_, err := ParseTarget(s)
		files := withLimitsFiles("    - {name: x, from: [/human/*], to: ['" + s + "']}\n")
		b, loadErr := policy.Load(files)
		if loadErr != nil {
			t.Fatal(loadErr)
		}
		_, compileErr := policy.Compile(b)
		var list policy.Findings
		errors.As(compileErr, &list)
		refused := false
		for _, f := range list {
			refused = refused || f.Pos.File == "tests/x.yaml"
		}
		if strings.HasPrefix(s, "system:") && refused {
			continue // stricter: a system that no secret can declare
		}
		if refused != (err != nil) {
			t.Errorf("%q: ParseTarget says %v, a bundle %v", s, err, list)
		}
	}
}

func withLimitsFiles(limits string) policy.Files {
	return policy.Files{"tests/x.yaml": []byte("apiVersion: bailment/v1\nkind: Test\nmetadata: {name: x}\nspec:\n  limits:\n" + limits)}
}
