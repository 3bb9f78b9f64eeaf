package plan

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// past is what a bundle answered, as it would be recorded.
func past(p *policy.Program, inputs ...policy.Input) iter.Seq2[policy.Recorded, error] {
	return func(yield func(policy.Recorded, error) bool) {
		for i, in := range inputs {
			d := p.Decide(&in)
			r := policy.Recorded{Index: uint64(100 + i), Time: time.Unix(int64(1_700_000_000+i), 0), Input: in, Allowed: d.Allow, Grant: d.Grant, Reason: d.Reason}
			if !yield(r, nil) {
				return
			}
		}
	}
}

func TestReplay(t *testing.T) {
	base := edited(t)
	ask := func(who, purpose string) policy.Input {
		return policy.Input{Action: policy.ReadSecret, Identity: who, Secret: "db/password", Purpose: purpose, Assurance: identity.Token}
	}
	var inputs []policy.Input
	for i := range 20 {
		inputs = append(inputs, ask("/workload/payments-api", "runtime"), ask("/workload/payments-api", "migration"), ask(fmt.Sprintf("/node/join-token/n%d", i), "runtime"))
	}
	r, err := Replay(past(base, inputs...), base)
	if err != nil || r.Decisions != 60 || r.Allowed != 20 || r.Denied != 40 || r.NowAllowed+r.NowDenied != 0 || len(r.Groups) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	after := edited(
		t, "grants/payments-api.yaml", "purposes: [runtime]", "purposes: [migration]", "grants/no-human-reads.yaml", "name: weak-nodes-never-read\nspec:\n  effect: deny", "name: weak\nspec:\n  effect: deny\n  purposes: [x]",
		"grants/new.yaml", "", grantYAML("nodes", "actions: [secret.read], purposes: [runtime], identities: [/node/*], secrets: [db/*]"),
	)
	if r, err = Replay(past(base, inputs...), after); err != nil || r.NowAllowed != 40 || r.NowDenied != 20 || len(r.Groups) != 3 || r.First.After(r.Last) {
		t.Fatalf("%+v, %v", r, err)
	}
	var got []string
	for _, g := range r.Groups {
		got = append(got, fmt.Sprintf("%v %s %d %d %s %s>%s %s samples=%d", g.Allowed, g.Who, g.Identity, g.Count, g.Purpose, g.Then, g.Now, g.Reason, len(g.Samples)))
	}
	want := `true /node/join-token/* 20 20 runtime weak-nodes-never-read>nodes  samples=5
true /workload/payments-api 1 20 migration payments-api-reads-db>payments-api-reads-db  samples=5
false /workload/payments-api 1 20 runtime payments-api-reads-db>payments-api-reads-db purpose samples=5`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got:\n%s\nwant:\n%s", s, want)
	}
	broken := errors.New("broken")
	if _, err := Replay(func(yield func(policy.Recorded, error) bool) { yield(policy.Recorded{}, broken) }, base); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// What stands behind a session is asked of the rules again.
func TestReplayAsksTheRules(t *testing.T) {
	base := edited(t)
	claims, err := policy.PrepareClaims(map[string]any{"name": "web-1"})
	if err != nil {
		t.Fatal(err)
	}
	work := policy.Recorded{
		Allowed: true, Grant: "payments-api-reads-db",
		Input: policy.Input{Action: policy.ReadSecret, Identity: "/workload/payments-api", Node: "/node/join-token/web-1", Secret: "db/password", Purpose: "runtime", Assurance: identity.Token},
		Proof: policy.Proof{Identity: "/node/join-token/web-1", Method: "join-token", Claims: claims},
	}
	alice, _ := base.Operator("alice")
	person := policy.Recorded{
		Allowed: true, Grant: "alice-provisions", Input: policy.Input{Action: policy.WriteSecret, Identity: "/human/alice", Secret: "db/password", Assurance: identity.Key},
		Proof: policy.Proof{Identity: "/human/alice", Key: alice.Keys[0].Fingerprint},
	}
	for _, c := range []struct {
		name  string
		r     policy.Recorded
		edits []string
		want  string
	}{
		{"as before", work, nil, ""},
		{"other nodes", work, []string{"identities/payments-api.yaml", "/node/join-token/*", "/node/tpm/*"}, "foreign-node"},
		{"the node has another path", work, []string{"identities/node.yaml", "/node/join-token/{claims.name}", "/node/join-token/x/{claims.name}"}, "no-identity"},
		{"as before", person, nil, ""},
		{"another key", person, []string{"operators.yaml", "AAAAC3NzaC1lZDI1NTE5AAAAIBwiBcxF9wiBbT2I9ADzUUQ/IfPSuTLWzeIsKeWtFrzy", strings.Fields(bobKey)[1]}, "duty"},
	} {
		if d := edited(t, c.edits...).Again(&c.r); string(d.Reason) != c.want || d.Allow != (c.want == "") {
			t.Errorf("%s: %+v, want %q", c.name, d, c.want)
		}
		one := func(yield func(policy.Recorded, error) bool) { yield(c.r, nil) }
		if r, err := Replay(one, edited(t, c.edits...)); err != nil || (r.NowDenied == 1) != (c.want != "") {
			t.Errorf("%s: replayed as %+v, %v", c.name, r, err)
		}
	}
}

// Replaying a bundle's own decisions finds nothing, and another's are the differences of Decide.
func TestReplayAgreesWithDecide(t *testing.T) {
	for seed := range 30 {
		a, b := randomPair(t, rand.New(rand.NewPCG(uint64(seed), 3)), true)
		var inputs []policy.Input
		want := uint64(0)
		questions(func(in *policy.Input) {
			inputs = append(inputs, *in)
			if a.Decide(in).Allow != b.Decide(in).Allow {
				want++
			}
		})
		if r, err := Replay(past(a, inputs...), a); err != nil || r.NowAllowed+r.NowDenied != 0 {
			t.Fatalf("seed %d: %+v, %v", seed, r, err)
		}
		r, err := Replay(past(a, inputs...), b)
		if err != nil || r.NowAllowed+r.NowDenied != want {
			t.Fatalf("seed %d: %d and %d, want %d, %v", seed, r.NowAllowed, r.NowDenied, want, err)
		}
		sum := r.Others
		for _, g := range r.Groups {
			sum += g.Count
		}
		if sum != want {
			t.Errorf("seed %d: the groups have %d of %d", seed, sum, want)
		}
	}
}
