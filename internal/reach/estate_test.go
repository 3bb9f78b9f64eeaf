package reach

import (
	"slices"
	"testing"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/policy/policytest"
)

func example(t *testing.T) *policy.Program {
	t.Helper()
	return policytest.Compile(t, policytest.Example(t, "estate"))
}

// The example's minimum cut is known: its README says which two lines, and why no one is enough.
func TestExampleCut(t *testing.T) {
	p := example(t)
	jobs, prod := []identity.Pattern{pattern(t, "/ci/*")}, target(t, "db/prod/*")
	for _, to := range []string{"db/prod/*", "system:prod-db"} {
		c, err := New(p, Names{}).Cut(jobs, target(t, to), Options{Worst: Poisoning})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range c.Taken {
			got = append(got, x.Rule+": "+x.From+" "+string(x.Hop)+" "+x.To)
		}
		want := []string{"ci/registry-token: ci/registry-token deploys /workload/shop/*", "deployer-migrates: /workload/deployer reads db/prod/*"}
		if to == "system:prod-db" {
			want = []string{"db/prod/*: db/prod/* unlocks prod-db"} // all of it is behind one line
		}
		if !slices.Equal(got, want) || !c.Smallest || c.Cost != len(want) {
			t.Errorf("%s: %q at %d, not %q", to, got, c.Cost, want)
		}
	}
	a, err := New(p, Names{}).To(prod, Options{Worst: Poisoning, Costs: Costs{Workload: 5, Node: 5, Person: 5}})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Attacks) == 0 || a.Attacks[0].Cost != 1 || a.Attacks[0].Who[0].Kind != KindJob || a.Attacks[0].Hops != 3 {
		t.Errorf("the cheapest is %+v", a.Attacks[0])
	}
	for _, x := range a.Attacks {
		if len(x.Who) > 1 && (len(x.Who) != 2 || x.Who[0].Name != "/human/alice" || x.Who[1].Name != "/human/bob") {
			t.Errorf("together: %+v", x.Who)
		}
	}
	broken, err := CheckLimits(p, Names{}, []Limit{{Name: "jobs", From: jobs, To: []Target{prod}}, {Name: "backups", From: jobs, To: []Target{target(t, "system:backups")}, Worst: Poisoning}})
	if err != nil || len(broken) != 1 || broken[0].Total != 2 || broken[0].Grade != Plain {
		t.Errorf("broken: %+v, %v", broken, err)
	}
}
