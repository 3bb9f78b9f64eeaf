package plan

import (
	"maps"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/policy"
)

// Whatever a bundle says that compiles, it can be compared, with itself nothing changes, and nobody loses what he gains the other way round.
func FuzzCompare(f *testing.F) {
	for _, s := range []string{
		grantYAML("x", "actions: [secret.list], identities: [/*], secrets: ['*']"),
		grantYAML("x", "actions: [secret.read], identities: [/workload/*, /human/alice], secrets: [db/*, app/x], purposes: [runtime, build], ttl: 1h, assurance: key") +
			grantYAML("y", "effect: deny, actions: [secret.read, secret.write], identities: [/human/*], secrets: [db/password], when: 'secret.name == \"db/password\"'"),
		"apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: db/*}\nspec: {type: opaque, unlocks: [{identity: /human/alice}]}\n",
		"apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: i}\nspec: {method: workload, path: /workload/i, nodes: [/node/*], when: 'node.path != \"/node/x\"'}\n",
	} {
		f.Add(s)
	}
	base := exampleFiles(f)
	before := compiled(f, base)
	f.Fuzz(func(t *testing.T, text string) {
		files := maps.Clone(base)
		place := "grants/fuzz.yaml"
		for kind, dir := range map[string]string{"kind: Secret": "secrets", "kind: Identity": "identities"} {
			if strings.Contains(text, kind) {
				place = dir + "/fuzz.yaml"
			}
		}
		files[place] = []byte(text)
		b, err := policy.Load(files)
		if err != nil {
			return
		}
		after, err := policy.Compile(b)
		if err != nil {
			return
		}
		there, back := Compare(before, after), Compare(after, before)
		if there.Totals.Gains != back.Totals.Losses || there.Totals.Losses != back.Totals.Gains || there.Empty() != back.Empty() {
			t.Errorf("%+v, and back %+v", there.Totals, back.Totals)
		}
		if p := Compare(after, after); !p.Empty() {
			t.Errorf("it differs from itself: %q", summary(p))
		}
		for _, who := range []string{"/human/alice", "/workload/payments-api", "/node/join-token/x"} {
			there.Widens(who)
		}
		Separation(after)
	})
}
