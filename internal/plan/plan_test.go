package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/policy/policytest"
)

// exampleFiles is the example without its tests, which a plan doesn't look at and which name the grants that tests here take away.
func exampleFiles(t testing.TB) policy.Files {
	t.Helper()
	files := policytest.Example(t, "payments")
	maps.DeleteFunc(files, func(path string, _ []byte) bool { return strings.HasPrefix(path, "tests/") })
	return files
}

func compiled(t testing.TB, files policy.Files) *policy.Program {
	t.Helper()
	return policytest.Compile(t, files)
}

// edited is the example with replacements: FILE, OLD, NEW; an empty OLD writes the whole file.
func edited(t testing.TB, edits ...string) *policy.Program {
	t.Helper()
	return compiled(t, editedFiles(t, exampleFiles(t), edits...))
}

func editedFiles(t testing.TB, from policy.Files, edits ...string) policy.Files {
	t.Helper()
	files := maps.Clone(from)
	for i := 0; i < len(edits); i += 3 {
		name, old, text := edits[i], edits[i+1], edits[i+2]
		if old == "" {
			files[name] = []byte(text)
			continue
		}
		if !strings.Contains(string(files[name]), old) {
			t.Fatalf("%s does not say %s", name, old)
		}
		files[name] = []byte(strings.Replace(string(files[name]), old, text, 1))
	}
	return files
}

func grantYAML(name, spec string) string {
	return "---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: " + name + "}\nspec: {" + spec + "}\n"
}

// summary is a plan on few lines, for tests.
func summary(p *Plan) []string {
	var out []string
	for _, l := range p.Access {
		s := fmt.Sprintf("%s %s %s %s %v", l.Kind, l.Direction, l.Who, l.Secret, l.Actions)
		for _, m := range l.Moves {
			s += fmt.Sprintf(" %s:%s %v>%v", m.Limit, m.Direction, m.Before, m.After)
		}
		for _, x := range l.Except {
			s += fmt.Sprintf(" except %s %s", x.Who, x.Secret)
		}
		out = append(out, s)
	}
	for _, r := range p.CI {
		out = append(out, fmt.Sprintf("ci %s %s parts=%v", r.Secret, r.After, r.Parts))
	}
	for _, r := range p.Assurance {
		out = append(out, fmt.Sprintf("assurance %s %s>%s", r.Secret, r.Before, r.After))
	}
	for _, x := range p.Items {
		s := fmt.Sprintf("%s %s %s %s sensitive=%v", x.Section, x.Name, x.How, x.Direction, x.Sensitive)
		if x.How == Changed {
			for _, f := range x.Fields {
				s += fmt.Sprintf(" %s:%s %v>%v", f.Name, f.Direction, f.Before, f.After)
			}
		}
		out = append(out, s)
	}
	return out
}

func expect(t *testing.T, p *Plan, want ...string) {
	t.Helper()
	if got := summary(p); !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCompare(t *testing.T) {
	const gate = `  when: assurance < level.key`
	base := edited(t)
	for _, c := range []struct {
		name  string
		edits []string
		want  []string
	}{
		{name: "nothing"},
		{
			"a purpose",
			[]string{"grants/payments-api.yaml", "purposes: [runtime]", "purposes: [runtime, migration]"},
			[]string{"limit wider /workload/payments-api db/password [secret.read] purposes:wider []>[migration]"},
		},
		{
			"a ttl",
			[]string{"grants/payments-api.yaml", "ttl: 1h # take it again after an hour", "ttl: 2h"},
			[]string{"limit wider /workload/payments-api db/password [secret.read] ttl:wider [1h0m0s]>[2h0m0s]"},
		},
		{
			"weaker",
			[]string{"grants/payments-api.yaml", "assurance: token # the least that a join token proves", "assurance: unbound"},
			[]string{
				"limit wider /workload/payments-api db/password [secret.read] assurance:wider [token]>[unbound]",
				"assurance db/password token>unbound",
			},
		},
		{
			"stronger",
			[]string{"grants/payments-api.yaml", "assurance: token # the least that a join token proves", "assurance: hardware"},
			[]string{"limit narrower /workload/payments-api db/password [secret.read] assurance:narrower [token]>[hardware]"},
		},
		{
			"a condition",
			[]string{"grants/payments-api.yaml", "ttl: 1h # take", "ttl: 1h\n  when: time.getHours() < 9 # take"},
			[]string{"limit narrower /workload/payments-api db/password [secret.read] condition:narrower []>[time.getHours() < 9]"},
		},
		{
			"a prohibition",
			[]string{"grants/new.yaml", "", grantYAML("stop", "effect: deny, actions: [secret.read, secret.write], identities: [/*], secrets: [db/*]")},
			[]string{
				"loss narrower /human/alice db/* [secret.write]",
				"loss narrower /workload/payments-api db/password [secret.read]",
				"loss narrower /workload/payments-db db/password [secret.read]",
			},
		},
		{
			"a prohibition with a condition goes",
			[]string{"grants/no-human-reads.yaml", gate, "  when: assurance < level.hardware"},
			nil, // no grant permits these machines anything
		},
		{
			"a wide gain that was partly there",
			[]string{"grants/new.yaml", "", grantYAML("all", "actions: [secret.read], identities: [/workload/*], secrets: [db/*], purposes: [runtime], ttl: 1h")},
			[]string{"gain wider /workload/* db/* [secret.read] except /workload/payments-api db/password except /workload/payments-db db/password"},
		},
		{
			"forbidden anyhow", []string{"grants/new.yaml", "", grantYAML("mine", "actions: [secret.read], identities: [/human/alice], secrets: [db/*], purposes: [runtime]")}, nil,
		},
		{
			"a setting",
			[]string{"environment.yaml", "required: 0", "required: 1", "operators.yaml", "duties: [propose, approve, revoke, admit, keys, audit]", "duties: [propose, revoke]\n    - name: bob\n      keys: [" + bobKey + "]\n      duties: [approve]"},
			[]string{
				"setting approvals.required changed narrower sensitive=true approvals.required:narrower [0]>[1]",
				"operator bob added wider sensitive=true",
				"operator alice changed narrower sensitive=true duties:narrower [admit approve audit keys propose revoke]>[propose revoke]",
			},
		},
		{
			"a workload's nodes",
			[]string{"identities/payments-api.yaml", "nodes: [/node/join-token/*]", "nodes: [/node/*]"},
			[]string{"identity payments-api changed wider sensitive=true nodes:wider [/node/join-token/*]>[/node/*]"},
		},
		{
			"an identity's path",
			[]string{"identities/node.yaml", "path: /node/join-token/{claims.name}", "path: /node/join-token/x/{claims.name}"},
			[]string{"identity node-by-token changed other sensitive=true path:other [/node/join-token/{claims.name}]>[/node/join-token/x/{claims.name}]"},
		},
		{
			"an identity's name and condition",
			[]string{"identities/node.yaml", "name: node-by-token", "name: n", "identities/node.yaml", "  path: /node", "  when: claims.name != \"x\"\n  path: /node"},
			[]string{"identity n changed narrower sensitive=true when:narrower []>[claims.name != \"x\"]"},
		},
		{
			"a rollout",
			[]string{"rollouts/default.yaml", "", "apiVersion: bailment/v1\nkind: Rollout\nmetadata: {name: default}\nspec:\n  steps: [{stage: shadow, for: 1h}]\n"},
			[]string{"rollout default added other sensitive=true"},
		},
		{
			"a secret of a family",
			[]string{"secrets/new.yaml", "", "apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: db/*}\nspec: {type: opaque}\n"},
			[]string{"secret db/* added wider sensitive=true"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			after := edited(t, c.edits...)
			p := Compare(base, after)
			expect(t, p, c.want...)
			if p.Empty() != (len(c.want) == 0) {
				t.Errorf("empty: %v", p.Empty())
			}
		})
	}
}

const bobKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUdtdCmsMkEnwiWTNVZb7jmPc6kmFFXZ6q8WyoOTFGA bob"

// Other names, other files, another order and other white space mean the same.
func TestTextIsNoMeaning(t *testing.T) {
	files := exampleFiles(t)
	before := compiled(t, editedFiles(t, files, "grants/payments-api.yaml", "ttl: 1h # take", "ttl: 1h\n  when: claims.a == \"x  y\" && time.getHours() < 9 # take"))
	after := editedFiles(
		t, files, "grants/payments-api.yaml", "ttl: 1h # take", "ttl: 1h\n  when: >-\n    claims.a == \"x  y\"\n    &&   time.getHours() < 9\n  #",
		"grants/payments-api.yaml", "name: payments-api-reads-db", "name: renamed", "identities/payments-db.yaml", "name: payments-db", "name: database",
		"environment.yaml", "description: A", "description: Not a",
	)
	after["grants/all.yaml"] = slices.Concat(after["grants/payments-db.yaml"], []byte("\n---\n"), after["grants/payments-api.yaml"], []byte("\n---\n"), after["grants/alice.yaml"])
	for _, gone := range []string{"payments-db", "payments-api", "alice"} {
		delete(after, "grants/"+gone+".yaml")
	}
	if p := Compare(before, compiled(t, after)); !p.Empty() {
		t.Errorf("%q", summary(p))
	}
	// Within a text white space counts.
	p := Compare(before, compiled(t, editedFiles(t, after, "grants/all.yaml", `"x  y"`, `"x y"`)))
	expect(t, p, `limit other /workload/payments-api db/password [secret.read] condition:other [claims.a == "x  y" && time.getHours() < 9]>[claims.a == "x y" && time.getHours() < 9]`)
}

// One grant in two, and two in one, mean the same.
func TestSplitGrant(t *testing.T) {
	one := edited(t, "grants/new.yaml", "", grantYAML("a", "actions: [secret.read, secret.list], identities: [/workload/payments-api, /workload/payments-db], secrets: [db/*, app/*], purposes: [runtime]"))
	two := edited(t, "grants/new.yaml", "",
		grantYAML("b", "actions: [secret.read], identities: [/workload/payments-db, /workload/payments-api], secrets: [app/*], purposes: [runtime]")+
			grantYAML("c", "actions: [secret.list], identities: [/workload/payments-api, /workload/payments-db], secrets: [db/*, app/*]")+
			grantYAML("d", "actions: [secret.read], identities: [/workload/payments-api], secrets: [db/*], purposes: [runtime]")+
			grantYAML("e", "actions: [secret.read], identities: [/workload/payments-db], secrets: [db/*], purposes: [runtime]"))
	if p := Compare(one, two); !p.Empty() {
		t.Errorf("%q", summary(p))
	}
}

const jobsYAML = `apiVersion: bailment/v1
kind: Authority
metadata: {name: gh}
spec: {method: github, issuer: https://token.actions.githubusercontent.com}
---
`

const jobYAML = `apiVersion: bailment/v1
kind: Identity
metadata: {name: deploy}
spec:
  method: github
  authority: gh
  path: /ci/github/{claims.repository_owner_id}/{claims.repository_id}/{claims.environment}
  when: claims.repository_owner_id == "1" && claims.repository_id == "2" && claims.environment == "prod"
`

func TestReachOfJobs(t *testing.T) {
	withJobs := []string{"authorities/gh.yaml", "", strings.TrimSuffix(jobsYAML, "---\n"), "identities/ci.yaml", "", jobYAML, "secrets/app.yaml", "", "apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: app/*}\nspec: {type: opaque}\n"}
	base := edited(t, withJobs...)
	add := func(spec ...string) *policy.Program {
		text := ""
		for i, s := range spec {
			text += grantYAML(fmt.Sprintf("g%d", i), s)
		}
		return edited(t, append(slices.Clone(withJobs), "grants/new.yaml", "", text)...)
	}
	read := "actions: [secret.read], purposes: [build], "
	narrow := add(read + "identities: [/ci/github/1/2/*], secrets: [app/deploy/*], assurance: key")
	expect(t, Compare(base, narrow), "gain wider /ci/github/1/2/* app/deploy/* [secret.read]", "ci app/deploy/* key parts=false")
	wide := add(read + "identities: [/ci/*], secrets: [app/*], assurance: key")
	expect(t, Compare(narrow, wide), "gain wider /ci/* app/* [secret.read] except /ci/github/1/2/* app/deploy/*", "ci app/* key parts=true")
	weak := add(read+"identities: [/ci/*], secrets: [app/*]", "effect: deny, actions: [secret.read], identities: [/ci/gitlab/*], secrets: [app/*]")
	expect(
		t, Compare(wide, weak), "limit wider /ci/* app/* [secret.read] assurance:wider [key]>[token]",
		"loss narrower /ci/gitlab/* app/* [secret.read]", "ci app/* token parts=false", "assurance app/* key>token",
	)
	// What is within a wider pattern is not told twice.
	expect(
		t, Compare(base, add(read+"identities: [/ci/*], secrets: [app/*]", read+"identities: [/ci/github/*], secrets: [app/x/*]")),
		"gain wider /ci/* app/* [secret.read]", "ci app/* token parts=false",
	)
	// A pattern that no job's rule can give is nobody; a rule that comes reaches what was granted before.
	expect(t, Compare(base, add(read+"identities: [/ci/gitlab/*], secrets: [app/*]")), "gain wider /ci/gitlab/* app/* [secret.read]")
	without := withJobs[:3]
	without = append(slices.Clone(without), withJobs[6:]...)
	without = append(without, "grants/new.yaml", "", grantYAML("g0", read+"identities: [/ci/github/*], secrets: [app/*], assurance: key"))
	with := append(slices.Clone(without), "identities/ci.yaml", "", jobYAML)
	expect(t, Compare(edited(t, without...), edited(t, with...)), "ci app/* key parts=false", "identity deploy added wider sensitive=true")
}
