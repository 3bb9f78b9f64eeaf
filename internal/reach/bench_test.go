package reach

import (
	"fmt"
	"slices"
	"testing"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// estate is n workloads, n secrets and n grants: one in ten is for a team, one in fifty denies, every workload has a token that deploys
// the next one, and all of them read what their team shares.
func estate(t fataler, n int) *policy.Program {
	b := bundle{operators: map[string]string{"alice": "propose, approve"}, docs: slices.Clone(all)}
	for i := range 50 {
		b.docs = append(b.docs, fmt.Sprintf("Secret team%d/* type: opaque", i))
	}
	for i := range n {
		app, team, effect := fmt.Sprintf("/workload/team%d/app%d", i%50, i), fmt.Sprintf("team%d", i%50), "effect: allow, purposes: [runtime]"
		b.docs = append(b.docs,
			fmt.Sprintf("Identity app%d method: workload, path: %s, nodes: [/node/join-token/node%d]", i, app, i%1000),
			fmt.Sprintf("Secret %s/token%d type: opaque, unlocks: [{deploy: /workload/team%d/app%d}]", team, i, (i+1)%n%50, (i+1)%n),
		)
		what := fmt.Sprintf("%s/token%d", team, i)
		if i%10 == 9 {
			app, what = fmt.Sprintf("/workload/team%d/*", i%50), fmt.Sprintf("%s/shared%d/*", team, i)
		}
		if i%50 == 49 {
			effect = "effect: deny"
		}
		b.docs = append(b.docs, fmt.Sprintf("Grant g%d actions: [secret.read], identities: [%s], secrets: ['%s'], %s", i, app, what, effect))
	}
	b.docs = append(b.docs, "Grant all actions: [secret.read], identities: [/workload/*], secrets: ['team1/*', 'team2/*', 'team3/*'], purposes: [runtime]",
		"Grant job actions: [secret.read, secret.write], identities: [/ci/github/1/*], secrets: ['*'], purposes: [deploy]")
	return b.compile(t)
}

// Budget: each question over 10,000 identities, secrets and grants under 5 s and 1 GiB.
func BenchmarkQuestions(b *testing.B) {
	const n = 10_000
	p := estate(b, n)
	var names Names
	for i := range 1000 {
		names.Identities = append(names.Identities, fmt.Sprintf("/node/join-token/node%d", i))
	}
	m := New(p, names)
	pat := func(s string) identity.Pattern { return must(identity.ParseIDPattern(s)) }
	to := Target{Secrets: must(identity.ParseSecretPattern(fmt.Sprintf("team%d/token%d", (n-2)%50, n-2)))}
	for _, c := range []struct {
		name string
		ask  func(o Options) error
	}{
		{"from", func(o Options) error { return second(m.From([]identity.Pattern{pat("/workload/team0/app0")}, o)) }},
		{"from-all", func(o Options) error { return second(m.From([]identity.Pattern{everybody}, o)) }},
		{"to", func(o Options) error { return second(m.To(to, o)) }},
		{"who-can", func(o Options) error { return second(m.WhoCan(policy.ReadSecret, everything, o)) }},
		{"cut", func(o Options) error { return second(m.Cut([]identity.Pattern{pat("/ci/*"), pat("/node/*")}, to, o)) }},
		{"cut-wide", func(o Options) error {
			return second(m.Cut([]identity.Pattern{pat("/ci/*"), pat("/node/*")}, Target{Secrets: must(identity.ParseSecretPattern("team7/*"))}, o))
		}},
		{"limit", func(o Options) error {
			return second(CheckLimits(p, names, []Limit{{Name: "jobs", From: []identity.Pattern{pat("/ci/*")}, To: []Target{to}, Worst: o.Worst}}))
		}},
	} {
		for _, worst := range []Grade{Plain, Poisoning} {
			b.Run(c.name+"/"+worst.String(), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := c.ask(Options{Worst: worst, Most: n}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// Budget: the same 5 s where 200 operators are a quorum by fours, and 2,000 jobs get at two of them each.
func BenchmarkManyOperators(b *testing.B) {
	operators, docs := map[string]string{}, slices.Clone(all)
	for i := range 200 {
		operators[fmt.Sprintf("op%d", i)] = "propose, approve"
	}
	for i := range 2000 {
		docs = append(docs, fmt.Sprintf("Secret s%d type: opaque, unlocks: [{identity: /human/op%d}, {identity: /human/op%d}]", i, i%200, (i*7+1)%200),
			fmt.Sprintf("Grant g%d actions: [secret.read], identities: [/ci/github/%d/*], secrets: [s%d], purposes: [p]", i, i, i))
	}
	p := bundle{approvals: "3", operators: operators, docs: docs}.compile(b)
	to := Target{Secrets: must(identity.ParseSecretPattern("s7"))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(p, Names{}).To(to, Options{Worst: Poisoning}); err != nil {
			b.Fatal(err)
		}
	}
}
