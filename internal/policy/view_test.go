package policy

import (
	"slices"
	"testing"
)

// What is said of the rules is what was written, and every document is there once.
func TestViews(t *testing.T) {
	p := mustCompile(t, with(t,
		"Grant deny effect: deny, actions: [secret.list, secret.read], identities: [/workload/*], secrets: [db/*], when: claims.x == 1",
		"Grant long actions: [secret.read], identities: [/workload/*], secrets: [db/*], purposes: [b, a], ttl: 2h",
		"Identity root method: workload, path: /workload/root, nodes: [/node/join-token/*], session: 5m, when: claims.uid == 0",
	))
	grants := p.Grants()
	at := func(name string) Grant {
		i := slices.IndexFunc(grants, func(g Grant) bool { return g.Name == name })
		if i < 0 {
			t.Fatalf("no grant %s among %v", name, grants)
		}
		return grants[i]
	}
	if g := at("deny"); g.Effect != Deny || g.When != "claims.x == 1" || !slices.Equal(g.Actions, []Action{ReadSecret, ListSecret}) {
		t.Errorf("deny is %+v", g)
	}
	if g := at("long"); g.TTL.Hours() != 2 || !slices.Equal(g.Purposes, []string{"a", "b"}) || g.Identities[0].String() != "/workload/*" {
		t.Errorf("long is %+v", g)
	}
	rules := p.IdentityRules()
	i := slices.IndexFunc(rules, func(r IdentityRule) bool { return r.Name == "root" })
	if i < 0 || rules[i].Path != "/workload/root" || rules[i].When != "claims.uid == 0" || rules[i].Method != MethodWorkload || rules[i].Session.Minutes() != 5 {
		t.Errorf("the rules are %+v", rules)
	}
}
