package plan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/policy"
)

// manyGrants is a bundle of n grants over as many workloads and secrets; one in ten is for a subtree, one in fifty denies.
func manyGrants(t testing.TB, n int, purpose, more string) *policy.Program {
	files := editedFiles(t, exampleFiles(t))
	var workloads, secrets strings.Builder
	for i := range 50 {
		fmt.Fprintf(&secrets, "---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: team%d/*}\nspec: {type: opaque}\n", i)
	}
	for from := 0; from < n; from += 500 {
		var grants strings.Builder
		workloads.Reset()
		for i := from; i < min(from+500, n); i++ {
			id, secret, effect, purposes := fmt.Sprintf("/workload/team%d/app%d", i%50, i), fmt.Sprintf("team%d/db/password%d", i%50, i), "allow", "purposes: ["+purpose+"]"
			if i%10 == 9 {
				id, secret = fmt.Sprintf("/workload/team%d/*", i%50), fmt.Sprintf("team%d/shared%d/*", i%50, i)
			} else {
				fmt.Fprintf(&workloads, "---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: app%d}\nspec: {method: workload, path: %s, nodes: [/node/*]}\n", i, id)
			}
			if i%50 == 49 {
				effect, purposes = "deny", ""
			}
			grants.WriteString(strings.ReplaceAll(grantYAML(fmt.Sprintf("g%d", i), fmt.Sprintf("effect: %s, actions: [secret.read], identities: [%s], secrets: [%s], %s", effect, id, secret, purposes)), ", }", "}"))
		}
		files[fmt.Sprintf("grants/m%d.yaml", from)] = []byte(grants.String())
		files[fmt.Sprintf("identities/m%d.yaml", from)] = []byte(workloads.String())
	}
	files["secrets/m.yaml"] = []byte(secrets.String())
	if more != "" {
		files["grants/more.yaml"] = []byte(more)
	}
	return compiled(t, files)
}

func BenchmarkCompare(b *testing.B) {
	before := manyGrants(b, 10_000, "runtime", "")
	for name, after := range map[string]*policy.Program{
		"one":  manyGrants(b, 10_000, "runtime", grantYAML("more", "actions: [secret.read], identities: [/workload/team1/*], secrets: [team1/*], purposes: [runtime]")),
		"deny": manyGrants(b, 10_000, "runtime", grantYAML("more", `actions: [secret.read], identities: [/*], secrets: ["*"], effect: deny`)),
		"all":  manyGrants(b, 10_000, "other", ""),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				Compare(before, after)
			}
		})
	}
}

// Ten thousand grants of which all change are compared whole, and as many lines are kept as may be. BenchmarkCompare says how long it takes.
func TestManyChanges(t *testing.T) {
	before, after := manyGrants(t, 10_000, "runtime", ""), manyGrants(t, 10_000, "other", "")
	p := Compare(before, after)
	if len(p.Access) != MaxLines || p.Totals.Limits != 9_800 || p.Partial {
		t.Errorf("%d lines, %+v", len(p.Access), p.Totals)
	}
}

// With more crossings than are looked at the plan says so, and lists the grant as it is written.
func TestTooMuchToCompare(t *testing.T) {
	var b strings.Builder
	list := func(format string, from int) string {
		out := make([]string, 64)
		for i := range out {
			out[i] = fmt.Sprintf(format, from+i)
		}
		return quoted(out)
	}
	for g := range 60 {
		b.WriteString(grantYAML(fmt.Sprintf("g%d", g), "actions: [secret.read], purposes: [runtime], identities: "+list("/workload/w%d/*", 64*g)+", secrets: "+list("s%d/*", 64*g)))
	}
	before := edited(t, "grants/many.yaml", "", b.String())
	after := edited(t, "grants/many.yaml", "", b.String(), "grants/deny.yaml", "", grantYAML("stop", `actions: [secret.read], effect: deny, identities: [/*], secrets: ["*"]`))
	p := Compare(before, after)
	i := -1
	for j, l := range p.Access {
		if l.Unexamined {
			i = j
		}
	}
	if !p.Partial || i < 0 || p.Access[i].Grants[0].Name != "stop" || p.Access[i].Direction != Other || p.Empty() || p.Totals.Losses < maxCells/2 || len(p.Access) > MaxLines {
		t.Errorf("partial %v, line %d, %+v", p.Partial, i, p.Totals)
	}
}
