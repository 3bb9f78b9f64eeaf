package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/identity"
)

// benchFiles is a bundle of n grants over as many workloads and secrets. One in ten is for a
// subtree, one in fifty denies, and each has the condition, if there is one.
func benchFiles(t testing.TB, n int, when string) Files {
	files := bare(t)
	const perFile = 500
	for from := 0; from < n; from += perFile {
		var grants, workloads, secrets strings.Builder
		for i := from; i < min(from+perFile, n); i++ {
			id, secret, effect, purposes := fmt.Sprintf("/workload/team%d/app%d", i%50, i), fmt.Sprintf("team%d/db/password%d", i%50, i), "allow", "purposes: [runtime]"
			if i%10 == 9 {
				id, secret = fmt.Sprintf("/workload/team%d/*", i%50), fmt.Sprintf("team%d/shared%d/*", i%50, i)
			} else {
				fmt.Fprintf(&workloads, "---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: app%d}\nspec: {method: workload, path: %s, nodes: [/node/*]}\n", i, id)
			}
			if i%50 == 49 {
				effect, purposes = "deny", ""
			}
			fmt.Fprintf(&grants, "---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: grant%d}\nspec:\n  effect: %s\n  actions: [secret.read]\n  identities: [%s]\n  secrets: [%s]\n  %s\n", i, effect, id, secret, purposes)
			if when != "" {
				fmt.Fprintf(&grants, "  when: %s\n", when)
			}
		}
		if from == 0 {
			secrets.WriteString("---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: x/*}\nspec: {type: opaque}\n")
			for i := range 50 {
				fmt.Fprintf(&secrets, "---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: team%d/*}\nspec: {type: opaque}\n", i)
			}
			files["secrets/bench.yaml"] = []byte(secrets.String())
		}
		files[fmt.Sprintf("grants/bench%d.yaml", from)] = []byte(grants.String())
		files[fmt.Sprintf("identities/bench%d.yaml", from)] = []byte(workloads.String())
	}
	return files
}

func BenchmarkDecide(b *testing.B) {
	const when = `claims.unix.uid == 1000 && claims.exe.path.startsWith("/usr/") && node.path.startsWith("/node/join-token/")`
	for _, n := range []int{1_000, 10_000} {
		for _, c := range []struct{ name, when string }{{"plain", ""}, {"condition", when}} {
			b.Run(fmt.Sprintf("grants=%d/%s", n, c.name), func(b *testing.B) {
				p := mustCompile(b, benchFiles(b, n, c.when))
				in := benchInput(b)
				if d := p.Decide(in); !d.Allow {
					b.Fatalf("%+v", d)
				}
				b.ReportAllocs()
				for b.Loop() {
					p.Decide(in)
				}
			})
		}
	}
}

// millionFiles is a bundle whose 10,000 grants and rules cover a million identities: rules for nodes and jobs, whose paths are made of
// claims, and 9,000 families of at least a hundred members each beside 1,000 grants for single ones; one in fifty denies.
func millionFiles(t testing.TB, when string) Files {
	const n, perFile = 10_000, 500
	files := bare(t)
	files["authorities/github.yaml"] = []byte("apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: github}\nspec: {method: github, issuer: 'https://token.actions.githubusercontent.com'}\n")
	files["identities/jobs.yaml"] = []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: jobs}\nspec:\n  method: github\n  authority: github\n  path: '/ci/github/{claims.repository_owner_id}/{claims.repository_id}'\n" +
		"  when: claims.repository_owner_id != \"0\"\n  accepts: [every-job, any-branch, pull-requests, no-environment]\n")
	var secrets strings.Builder
	for i := range 50 {
		fmt.Fprintf(&secrets, "---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: team%d/*}\nspec: {type: opaque}\n", i)
	}
	files["secrets/bench.yaml"] = []byte(secrets.String())
	for from := 0; from < n; from += perFile {
		var grants strings.Builder
		for i := from; i < min(from+perFile, n); i++ {
			who, effect, purposes := fmt.Sprintf("/ci/github/%d/*", 1000+i), "allow", "purposes: [deploy]"
			if i%10 == 9 {
				who = fmt.Sprintf("/ci/github/%d/7", 1000+i-9)
			}
			if i%50 == 49 {
				effect, purposes = "deny", ""
			}
			fmt.Fprintf(&grants, "---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: grant%d}\nspec:\n  effect: %s\n  actions: [secret.read]\n  identities: ['%s']\n  secrets: ['team%d/owner%d/*']\n  %s\n", i, effect, who, i%50, i, purposes)
			if when != "" {
				fmt.Fprintf(&grants, "  when: %s\n", when)
			}
		}
		files[fmt.Sprintf("grants/bench%d.yaml", from)] = []byte(grants.String())
	}
	return files
}

// millionInputs are requests of 10,000 random ones of the million identities, each of which is allowed: owner and repository are both
// drawn, from 9,000 and 112.
func millionInputs(t testing.TB) []*Input {
	r := rand.New(rand.NewPCG(1, 2))
	claims := mustClaims(t, map[string]any{"ref": "refs/heads/main", "event_name": "push", "environment": "production"})
	inputs := make([]*Input, 10_000)
	for i := range inputs {
		owner := r.IntN(10_000)
		for owner%10 == 9 {
			owner = r.IntN(10_000)
		}
		inputs[i] = &Input{
			Action: ReadSecret, Identity: fmt.Sprintf("/ci/github/%d/%d", 1000+owner, 100+r.IntN(112)), Claims: claims,
			Assurance: identity.Platform, Secret: fmt.Sprintf("team%d/owner%d/key", owner%50, owner), Purpose: "deploy", Time: time.Unix(1_700_000_000, 0),
		}
	}
	return inputs
}

// Budget: a decision under 5 µs with 10,000 grants and rules for 1,000,000 identities.
func BenchmarkDecideMillion(b *testing.B) {
	for _, c := range []struct{ name, when string }{{"plain", ""}, {"condition", `claims.ref == "refs/heads/main" && claims.event_name != "pull_request" && identity.path.startsWith("/ci/github/")`}} {
		b.Run(c.name, func(b *testing.B) {
			p := mustCompile(b, millionFiles(b, c.when))
			inputs := millionInputs(b)
			for _, in := range inputs {
				if d := p.Decide(in); !d.Allow {
					b.Fatalf("%s: %+v", in.Identity, d)
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				p.Decide(inputs[i%len(inputs)])
			}
		})
	}
}

func BenchmarkDecideRefused(b *testing.B) {
	p := mustCompile(b, benchFiles(b, 1_000, ""))
	in := benchInput(b)
	in.Secret = "team1/db/other"
	b.ReportAllocs()
	for b.Loop() {
		p.Decide(in)
	}
}

func benchInput(t testing.TB) *Input {
	return &Input{
		Action: ReadSecret, Identity: "/workload/team7/app507", Node: "/node/join-token/web-1",
		Claims:    mustClaims(t, map[string]any{"unix": map[string]any{"uid": 1000}, "exe": map[string]any{"path": "/usr/bin/app"}}),
		Assurance: identity.Token, Secret: "team7/db/password507", Purpose: "runtime", Time: time.Unix(1_700_000_000, 0),
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			files := benchFiles(b, n, "claims.unix.uid == 1000")
			for b.Loop() {
				mustCompile(b, files)
			}
		})
	}
}
