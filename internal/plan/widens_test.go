package plan

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/policy"
)

// aliceOnly is the example without the duty admit, by which alice could make machines.
var aliceOnly = []string{"operators.yaml", "admit, ", ""}

func ways(list []Widening) string {
	var out []string
	for _, w := range list {
		out = append(out, fmt.Sprintf("%s %s %s %v", w.Via, w.Who, w.Secret, w.Actions))
	}
	return strings.Join(out, "\n")
}

func TestWidens(t *testing.T) {
	const read = "actions: [secret.read], purposes: [runtime], "
	for _, c := range []struct {
		name          string
		before, after []string
		who, want     string
	}{
		{name: "nothing", who: "/human/alice"},
		{
			name: "by name", after: []string{"grants/new.yaml", "", grantYAML("x", "actions: [secret.promote], identities: [/human/alice], secrets: [db/*]")},
			who: "/human/alice", want: "grant /human/alice db/* [secret.promote]",
		},
		{
			name: "by a pattern", after: []string{"grants/new.yaml", "", grantYAML("x", "actions: [secret.promote], identities: [/human/*], secrets: [db/*]")},
			who: "/human/alice", want: "grant /human/alice db/* [secret.promote]",
		},
		{
			name: "what was had", after: []string{"grants/new.yaml", "", grantYAML("x", "actions: [secret.write], identities: [/human/*], secrets: [db/*]")},
			who: "/human/alice",
		},
		{
			name: "what is forbidden", after: []string{"grants/new.yaml", "", grantYAML("x", read+"identities: [/human/*], secrets: [db/*]")}, who: "/human/alice",
		},
		{
			name:   "a prohibition that goes",
			before: []string{"grants/new.yaml", "", grantYAML("x", "actions: [secret.write], identities: [/*], secrets: [db/*], effect: deny")},
			who:    "/human/alice", want: "grant /human/alice db/* [secret.write]",
		},
		{
			name:   "a declaration that a condition asks for",
			before: []string{"grants/new.yaml", "", grantYAML("x", "actions: [secret.promote], identities: [/human/alice], secrets: [db/*], when: 'secret.name == \"db/deep/*\"'")},
			after: []string{
				"grants/new.yaml", "", grantYAML("x", "actions: [secret.promote], identities: [/human/alice], secrets: [db/*], when: 'secret.name == \"db/deep/*\"'"),
				"secrets/new.yaml", "", "apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: db/deep/*}\nspec: {type: opaque}\n",
			},
			who: "/human/alice", want: "grant /human/alice db/* [secret.promote]",
		},
		{
			name: "another", after: []string{"grants/new.yaml", "", grantYAML("x", read+"identities: [/workload/payments-api], secrets: [app/*]")}, who: "/human/alice",
		},
		{
			name: "a workload", after: []string{"grants/new.yaml", "", grantYAML("x", read+"identities: [/workload/payments-api], secrets: [app/*]")},
			who: "/workload/payments-api", want: "grant /workload/payments-api app/* [secret.read]",
		},
		{
			name: "a duty", before: []string{"operators.yaml", "keys, audit", "audit"}, who: "/human/alice", want: "duty /human/alice  []",
		},
		{
			name: "a key", after: []string{"operators.yaml", "      duties", "        - " + bobKey + "\n      duties"}, who: "/human/alice", want: "key /human/alice  []",
		},
		{
			name: "becoming an operator", after: []string{"operators.yaml", "operators:\n", "operators:\n    - name: bob\n      keys: [" + bobKey + "]\n      duties: [audit]\n"},
			who: "/human/bob", want: "duty /human/bob  []\nkey /human/bob  []",
		},
		{
			name: "becoming one who admits", after: []string{"operators.yaml", "revoke, ", "revoke, admit, "},
			who: "/human/alice", want: "duty /human/alice  []\ncontrol /workload/payments-api db/password [secret.read]\ncontrol /workload/payments-db db/password [secret.read]",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, after := append(slices.Clone(aliceOnly), c.before...), append(slices.Clone(aliceOnly), c.after...)
			if got := ways(Compare(edited(t, before...), edited(t, after...)).Widens(c.who)); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

// Whatever a workload gets that alice's machines speak for, she gets.
func TestWidensByControl(t *testing.T) {
	grant := []string{"grants/new.yaml", "", grantYAML("x", "actions: [secret.read], purposes: [runtime], identities: [/workload/payments-api], secrets: [app/*]")}
	if got := ways(Compare(edited(t), edited(t, grant...)).Widens("/human/alice")); got != "control /workload/payments-api app/* [secret.read]" {
		t.Error(got)
	}
	// Other machines than hers.
	elsewhere := []string{"identities/payments-api.yaml", "nodes: [/node/join-token/*]", "nodes: [/node/tpm/*]"}
	if got := ways(Compare(edited(t, elsewhere...), edited(t, append(elsewhere, grant...)...)).Widens("/human/alice")); got != "" {
		t.Error(got)
	}
	if got := ways(Compare(edited(t, elsewhere...), edited(t)).Widens("/human/alice")); got != "control /workload/payments-api db/password [secret.read]" {
		t.Error(got)
	}
}

// What stood between her and a machine is asked for as well.
func TestWidensByCondition(t *testing.T) {
	rule := func(when string) []string {
		return []string{
			"identities/more.yaml", "", "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: more}\nspec: {method: join-token, path: '/node/join-token/more/{claims.name}'" + when + "}\n" +
				"---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: w}\nspec: {method: workload, path: /workload/w, nodes: [/node/join-token/more/*]}\n",
			"grants/new.yaml", "", grantYAML("x", "actions: [secret.read], purposes: [runtime], identities: [/workload/w], secrets: [app/*]"),
		}
	}
	const one, two = `, when: 'claims.name == "web-1"'`, `, when: 'claims.name != "web-1"'`
	for _, c := range []struct {
		before, after string
		want          bool
	}{{one, "", true}, {one, two, true}, {one, one, false}, {"", one, false}} {
		got := ways(Compare(edited(t, rule(c.before)...), edited(t, rule(c.after)...)).Widens("/human/alice"))
		if strings.Contains(got, "control /workload/w app/* [secret.read]") != c.want {
			t.Errorf("from %q to %q: %s", c.before, c.after, got)
		}
	}
}

// Every setting of an environment is compared: who adds one to policy.Environment adds its row.
func TestSettingsAreAll(t *testing.T) {
	var names func(prefix string, x reflect.Type) []string
	names = func(prefix string, x reflect.Type) []string {
		var out []string
		for i := range x.NumField() {
			f := x.Field(i)
			if f.Type.Kind() == reflect.Struct && f.Type.NumField() > 0 && f.Type.Name() != "Version" {
				out = append(out, names(prefix+f.Name+".", f.Type)...)
			} else {
				out = append(out, prefix+f.Name)
			}
		}
		return out
	}
	e := policy.Environment{}
	got := names("", reflect.TypeOf(e))
	got = slices.DeleteFunc(got, func(s string) bool { return s == "Description" || s == "Source" }) // which mean nothing
	if rows := settings(&e); len(rows) != len(got) {
		t.Errorf("%d settings are compared, of %d: %q", len(rows), len(got), got)
	}
}

// Every kind of document is compared, or means nothing to a plan: who adds one says which.
func TestKindsAreAll(t *testing.T) {
	compared := []string{"Authority", "Environment", "Federation", "Grant", "Identity", "Operators", "Rollout", "Secret"}
	// A Test gives nobody anything, and takes nothing: it says of the rules what they must do, and is run at each proposal.
	meaningless := []string{"Test"}
	for kind := range policy.Schemas() {
		if !slices.Contains(compared, kind) && !slices.Contains(meaningless, kind) {
			t.Errorf("documents of kind %s are not compared", kind)
		}
	}
}
