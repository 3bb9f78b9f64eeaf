package plan

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

var (
	randomWho = []string{
		"/*", "/workload/*", "/workload/payments-api", "/workload/payments-db", "/workload/team/*", "/human/*", "/human/alice", "/node/*", "/node/join-token/*",
	}
	randomSecrets  = []string{"*", "db/*", "db/password", "db/deep/*", "db/deep/er/*", "app/*"}
	randomPurposes = []string{"runtime", "migration", "build"}
	askedWho       = []string{"/workload/payments-api", "/workload/payments-db", "/workload/x", "/workload/team/x", "/human/alice", "/human/x", "/node/join-token/x", "/node/tpm/x", "/ci/x/y"}
	askedSecrets   = []string{"x", "db/password", "db/x", "db/deep/x", "db/deep/er/x", "app/x"}
)

func some(r *rand.Rand, from []string, most int) []string {
	n := 1 + r.IntN(most)
	var out []string
	for range n {
		if x := from[r.IntN(len(from))]; !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

func quoted(list []string) string { return `["` + strings.Join(list, `", "`) + `"]` }

// randomGrant may have a condition.
func randomGrant(r *rand.Rand, name string, conditions bool) string {
	actions := some(r, []string{"secret.read", "secret.write", "secret.list"}, 2)
	spec := fmt.Sprintf("actions: %s, identities: %s, secrets: %s", quoted(actions), quoted(some(r, randomWho, 2)), quoted(some(r, randomSecrets, 2)))
	deny, reads := r.IntN(4) == 0, slices.Contains(actions, "secret.read")
	switch {
	case deny:
		spec += ", effect: deny"
		if reads && r.IntN(2) == 0 {
			spec += ", purposes: " + quoted(some(r, randomPurposes, 2))
		}
	case reads:
		spec += ", purposes: " + quoted(some(r, randomPurposes, 3))
		if r.IntN(2) == 0 {
			spec += fmt.Sprintf(", ttl: %dh", 1+r.IntN(3))
		}
	}
	if !deny && r.IntN(2) == 0 {
		spec += ", assurance: " + []string{"unbound", "key", "hardware"}[r.IntN(3)]
	}
	if conditions && r.IntN(3) == 0 {
		spec += ", when: '" + []string{"time.getHours() < 9", `request.secret.startsWith("db/")`, "assurance >= level.key", `identity.path != "/workload/x"`, `secret.name == "db/deep/*"`, `secret.type == ""`}[r.IntN(6)] + "'"
	}
	return grantYAML(name, spec)
}

func randomPair(t *testing.T, r *rand.Rand, conditions bool) (before, after *policy.Program) {
	var old, young strings.Builder
	for i := range 1 + r.IntN(6) {
		g := randomGrant(r, fmt.Sprintf("g%d", i), conditions)
		switch r.IntN(4) {
		case 0:
			old.WriteString(g)
		case 1:
			young.WriteString(g)
		default:
			old.WriteString(g)
			young.WriteString(g)
		}
	}
	pad := grantYAML("pad", "actions: [secret.list], identities: [/human/alice], secrets: [pad/*]")
	declares := func() string { // what conditions ask about; pad, so that there is something in the file
		out := "---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: pad}\nspec: {type: opaque}\n"
		for _, name := range []string{"db/deep/*", "db/deep/er/*"} {
			if conditions && r.IntN(2) == 0 {
				out += "---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: " + name + "}\nspec: {type: opaque}\n"
			}
		}
		return out
	}
	return edited(t, "grants/r.yaml", "", old.String()+pad, "secrets/r.yaml", "", declares()), edited(t, "grants/r.yaml", "", young.String()+pad, "secrets/r.yaml", "", declares())
}

func questions(visit func(in *policy.Input)) {
	for _, who := range askedWho {
		for _, secret := range askedSecrets {
			for _, a := range []policy.Action{policy.ReadSecret, policy.WriteSecret, policy.ListSecret} {
				purposes := randomPurposes
				if a != policy.ReadSecret {
					purposes = []string{""}
				}
				for _, p := range purposes {
					for _, level := range []identity.Assurance{identity.Unbound, identity.Token, identity.Key, identity.Hardware} {
						for _, hour := range []int{8, 10} {
							visit(&policy.Input{Action: a, Identity: who, Secret: secret, Purpose: p, Assurance: level, Time: time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC)})
						}
					}
				}
			}
		}
	}
}

// holds reports whether a line is about a question.
func (l *Line) holds(t *testing.T, in *policy.Input) bool {
	who, err := identity.ParseIDPattern(l.Who)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := identity.ParseSecretPattern(l.Secret)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(l.Actions, in.Action) && who.Match(in.Identity) && secret.Match(in.Secret)
}

func differ(a, b *policy.Program, in *policy.Input) bool {
	x, y := a.Decide(in), b.Decide(in)
	return x.Allow != y.Allow || x.TTL != y.TTL
}

// Whatever two bundles decide differently is within a line, and without conditions every line has a request that they decide differently,
// in the direction that it says.
func TestCompareAgreesWithDecide(t *testing.T) {
	const rounds = 200
	lines := 0
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		conditions := seed%2 == 1
		a, b := randomPair(t, r, conditions)
		if p := Compare(a, a); !p.Empty() {
			t.Fatalf("seed %d: a bundle differs from itself: %q", seed, summary(p))
		}
		p := Compare(a, b)
		lines += len(p.Access)
		questions(func(in *policy.Input) {
			if differ(a, b, in) && !slices.ContainsFunc(p.Access, func(l Line) bool { return l.holds(t, in) }) {
				t.Fatalf("seed %d: %+v differs, and no line says so: %q", seed, in, summary(p))
			}
			if widened := !a.Decide(in).Allow && b.Decide(in).Allow; widened && len(p.Widens(in.Identity)) == 0 {
				t.Fatalf("seed %d: %+v is widened, and Widens doesn't say so", seed, in)
			}
		})
		for i := range p.Access {
			if l := &p.Access[i]; !conditions && !l.shown(a, b) {
				t.Fatalf("seed %d: nothing shows %s %s %s %s %v", seed, l.Kind, l.Direction, l.Who, l.Secret, l.Actions)
			}
		}
		if !conditions {
			for _, who := range askedWho {
				if w := p.Widens(who); len(w) > 0 && !anyWider(a, b, who) {
					t.Fatalf("seed %d: nothing shows that %s is widened: %+v", seed, who, w)
				}
			}
		}
	}
	if lines < rounds {
		t.Errorf("only %d lines in %d rounds", lines, rounds)
	}
}

// shown looks for a request at the line's own point.
func (l *Line) shown(a, b *policy.Program) bool {
	fresh := func(s string) string { return strings.Replace(s, "*", "zz/zz", 1) }
	wider, narrower := false, false
	for _, action := range l.Actions {
		for _, p := range append(slices.Clone(randomPurposes), "") {
			for _, level := range identity.Assurances() {
				in := &policy.Input{Action: action, Identity: fresh(l.Who), Secret: fresh(l.Secret), Purpose: p, Assurance: level}
				w, n := moved(a.Decide(in), b.Decide(in))
				wider, narrower = wider || w, narrower || n
			}
		}
	}
	switch l.Direction {
	case Wider:
		return wider && !narrower
	case Narrower:
		return narrower && !wider
	}
	return wider && narrower
}

func moved(x, y policy.Decision) (wider, narrower bool) {
	long := func(d policy.Decision) time.Duration {
		switch {
		case !d.Allow:
			return none
		case d.TTL == 0:
			return endless
		}
		return d.TTL
	}
	return long(y) > long(x), long(y) < long(x)
}

func anyWider(a, b *policy.Program, who string) bool {
	out := false
	secrets := append([]string{"pad/x", "db/deep/er/er/x", "db/deep/y", "zz"}, askedSecrets...)
	for _, s := range secrets {
		for _, action := range policy.AllActions() {
			for _, p := range append(slices.Clone(randomPurposes), "") {
				for _, level := range identity.Assurances() {
					in := &policy.Input{Action: action, Identity: who, Secret: s, Purpose: p, Assurance: level}
					w, _ := moved(a.Decide(in), b.Decide(in))
					out = out || w
				}
			}
		}
	}
	// Alice also controls machines and the workloads on them.
	return out || who == "/human/alice"
}
