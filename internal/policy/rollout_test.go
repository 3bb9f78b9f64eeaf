package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/identity"
)

// A larger share contains a smaller one, persons are in none, and a share is about as large as it says.
func TestCanaryShares(t *testing.T) {
	var candidate Digest
	candidate[0] = 7
	const population = 4000
	for _, share := range []int{1, 10, 50, 99} {
		taken := 0
		for i := range population {
			path := fmt.Sprintf("/workload/w%d", i)
			small := RolloutStep{Stage: StageCanary, Share: share}.Covers(candidate, path)
			if small {
				taken++
			}
			if small && share < 99 && !(RolloutStep{Stage: StageCanary, Share: share + 1}).Covers(candidate, path) {
				t.Fatalf("%s is among %d percent and not among %d", path, share, share+1)
			}
		}
		if want := population * share / 100; taken < want*7/10-5 || taken > want*13/10+20 {
			t.Errorf("%d percent took %d of %d", share, taken, population)
		}
	}
	all := RolloutStep{Stage: StageCanary, Share: 99}
	for _, path := range []string{"/human/alice", "/server/1"} {
		for i := range 64 {
			candidate[1] = byte(i)
			if all.Covers(candidate, path) {
				t.Fatalf("%s is in a canary", path)
			}
		}
	}
	if (RolloutStep{Stage: StageShadow, Share: 99}).Covers(candidate, "/workload/w1") {
		t.Error("a shadow governs")
	}
	pattern, err := identity.ParseIDPattern("/workload/a/*")
	if err != nil {
		t.Fatal(err)
	}
	named := RolloutStep{Stage: StageCanary, Cohort: []identity.Pattern{pattern}}
	if !named.Covers(candidate, "/workload/a/b") || named.Covers(candidate, "/workload/b") {
		t.Error("a cohort takes others than it names")
	}
}

// Whom a share takes is another lot for another change: nobody is always the first.
func TestCanaryLots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a, b Digest
		a[0], b[0] = 1, 2
		path := "/workload/" + rapid.StringMatching(`[a-z]{8}`).Draw(t, "name")
		if first, again := cohortOf(a, path), cohortOf(a, path); first != again || first > 99 {
			t.Fatal("an identity's place is not stable")
		}
	})
	differ := 0
	for i := range 100 {
		path := fmt.Sprintf("/workload/w%d", i)
		if cohortOf(Digest{1}, path) != cohortOf(Digest{2}, path) {
			differ++
		}
	}
	if differ < 80 {
		t.Errorf("two changes have nearly the same lot: %d of 100 differ", differ)
	}
}

func TestSources(t *testing.T) {
	for _, c := range []struct{ path, node, want string }{
		{"/workload/api", "/node/x509/a/1", "/node/x509/a/1"},
		{"/node/x509/a/1", "", "/node/x509/a/1"},
		{"/ci/github/1/2/refs_2Fheads_2Fmain", "", "/ci/github/1/2"},
		{"/ci/github/1/2/a/b/c", "", "/ci/github/1/2"},
		{"/ci/github/1/2", "", "/ci/github/1/2"},
		{"/ci/github/1", "", "/ci/github/1"},
		{"/human/alice", "", ""},
		{"/server/one", "", ""},
	} {
		if got := SourceOf(c.path, c.node); got != c.want {
			t.Errorf("source of %s at %q is %s, want %s", c.path, c.node, got, c.want)
		}
	}
}

// What never comes back is as in the change, and all else as before it.
func TestRollbackFiles(t *testing.T) {
	base := bare(t)
	settings := func(f Files) Environment { return mustCompile(t, f).Environment() }
	change := func(edit func(f Files)) Files {
		f := maps.Clone(base)
		edit(f)
		return f
	}
	replace := func(f Files, path, old, with string) {
		s := strings.Replace(string(f[path]), old, with, 1)
		if s == string(f[path]) {
			t.Fatalf("%s has no %q", path, old)
		}
		f[path] = []byte(s)
	}
	deny := "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: contained}\nspec: {effect: deny, actions: [secret.read], identities: [/workload/payments-api], secrets: [db/password]}\n"
	for _, c := range []struct {
		name    string
		changed Files
		marked  []string
		kept    []string // of the change
		bad     string
	}{
		{name: "grants come back", changed: change(func(f Files) { delete(f, "grants/payments-db.yaml"); f["grants/new.yaml"] = []byte(deny) })},
		{name: "operators don't", changed: change(func(f Files) {
			replace(f, "operators.yaml", ", audit]", "]")
			delete(f, "grants/payments-db.yaml")
		}), kept: []string{"operators.yaml"}},
		{name: "lease times come back", changed: change(func(f Files) { replace(f, "environment.yaml", "max: 24h", "max: 12h") })},
		{name: "the agents' floor doesn't", changed: change(func(f Files) {
			replace(f, "environment.yaml", "  sessions:", "  agents: {minimum: 1.2.0}\n  sessions:")
		}), kept: []string{"environment.yaml"}},
		{name: "the blast limit doesn't", changed: change(func(f Files) {
			replace(f, "environment.yaml", "  sessions:", "  revocation: {blastLimit: 3}\n  sessions:")
		}), kept: []string{"environment.yaml"}},
		{name: "the budget of breaking the glass doesn't", changed: change(func(f Files) {
			replace(f, "environment.yaml", "  sessions:", "  breakGlass: {openings: 1}\n  sessions:")
		}), kept: []string{"environment.yaml"}},
		{
			name: "containment doesn't", changed: change(func(f Files) { f["grants/new.yaml"] = []byte(deny); delete(f, "grants/payments-db.yaml") }),
			marked: []string{"grants/new.yaml"}, kept: []string{"grants/new.yaml"},
		},
		{
			name: "a file taken away as containment stays away", changed: change(func(f Files) { delete(f, "grants/payments-db.yaml") }),
			marked: []string{"grants/payments-db.yaml"}, kept: []string{"grants/payments-db.yaml"},
		},
		{name: "what is not changed can't be marked", changed: change(func(f Files) { delete(f, "grants/payments-db.yaml") }), marked: []string{"grants/alice.yaml"}, bad: "doesn't change it"},
		{
			name: "nothing is marked twice", changed: change(func(f Files) { delete(f, "grants/payments-db.yaml") }),
			marked: []string{"grants/payments-db.yaml", "grants/payments-db.yaml"}, bad: "ascending",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := RollbackFiles(base, c.changed, settings(base), settings(c.changed), c.marked)
			if c.bad != "" {
				if err == nil || !strings.Contains(err.Error(), c.bad) {
					t.Fatalf("error %v, want %q", err, c.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if kept := ChangedFiles(base, got); !slices.Equal(kept, c.kept) {
				t.Errorf("kept %v, want %v", kept, c.kept)
			}
			for _, path := range c.kept {
				if string(got[path]) != string(c.changed[path]) {
					t.Errorf("%s is neither as before nor as in the change", path)
				}
			}
			mustCompile(t, got)
		})
	}
}

// Whom a canary is of follows from nothing that a proposer chooses: the same bundle, proposed or begun another time, draws others.
func TestLotIsNotTheProposers(t *testing.T) {
	m := Digest{1}
	members := func(lot Digest) string {
		out := ""
		for i := range 200 {
			if path := fmt.Sprintf("/workload/w%d", i); (RolloutStep{Stage: StageCanary, Share: 50}).Covers(lot, path) {
				out += path
			}
		}
		return out
	}
	first := members(Lot(m, 7, 1_000))
	if first != members(Lot(m, 7, 1_000)) {
		t.Error("a canary is of others each time it is asked")
	}
	for what, lot := range map[string]Digest{"bundle": Lot(Digest{2}, 7, 1_000), "proposal": Lot(m, 8, 1_000), "moment": Lot(m, 7, 1_001)} {
		if members(lot) == first {
			t.Errorf("another %s draws the same", what)
		}
	}
}
