package controltest

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// What History brings into force to roll out by, and takes away again.
const (
	rolledRollout = `apiVersion: bailment/v1
kind: Rollout
metadata: {name: default}
spec:
  steps:
    - {stage: shadow, for: 10m}
    - {stage: canary, for: 10m, cohort: [/node/join-token/rolled-0, /node/join-token/rolled-1, /node/join-token/rolled-2]}
  watch: 1h
  triggers:
    - {on: denied, sources: 2, share: 10}
`
	rolledSecret = `apiVersion: bailment/v1
kind: Secret
metadata: {name: rolled/*}
spec: {type: opaque, retain: 1h}
`
	rolledDeny = `apiVersion: bailment/v1
kind: Grant
metadata: {name: rolled-leak}
spec: {effect: deny, actions: [secret.read], identities: [/node/join-token/rolled-3], secrets: [rolled/*]}
`
)

// rolledGrant lets some nodes do all with a secret.
func rolledGrant(ttl string, nodes ...int) []byte {
	list := ""
	for _, n := range nodes {
		list += fmt.Sprintf("/node/join-token/rolled-%d, ", n)
	}
	return fmt.Appendf(nil, `apiVersion: bailment/v1
kind: Grant
metadata: {name: rolled}
spec:
  actions: [secret.read, secret.write, secret.generate, secret.promote]
  identities: [%s]
  secrets: [rolled/*]
  purposes: [runtime]
  ttl: %s
`, list[:len(list)-2], ttl)
}

// rollouts are changes that come into force by stages: one that a trigger takes back, one that comes into force and is taken back by a
// person, and one that containment overtakes.
func (h *history) rollouts() {
	w := h.w
	h.pass(0)
	before := maps.Clone(w.Files)
	files := maps.Clone(w.Files)
	files["rollouts/default.yaml"], files["secrets/rolled.yaml"] = []byte(rolledRollout), []byte(rolledSecret)
	files["grants/rolled.yaml"] = rolledGrant("1h", 0, 1, 2, 3)
	h.roll(files)
	w.Put(h.alice, "rolled/a", "one")
	var nodes [4]Actor
	for i := range nodes {
		nodes[i] = w.Node(h.alice, fmt.Sprintf("rolled-%d", i))
		_, _, err := w.Get(nodes[i], "rolled/a")
		h.check(err)
	}

	h.tightened(files, nodes[:])
	h.takenBack(files)
	h.overtaken(before, files)
}

// tightened is a change that takes from two nodes what they use: its shadow says so, and in its canary they bring the earlier bundle back.
func (h *history) tightened(files policy.Files, nodes []Actor) {
	w := h.w
	next := maps.Clone(files)
	next["grants/rolled.yaml"] = rolledGrant("30m", 0, 3)
	ch := h.roll(next)
	for _, n := range nodes[:2] { // the second one alone is no reason to take it back
		_, _, err := w.Get(n, "rolled/a")
		h.check(err)
	}
	h.pass(11 * time.Minute)
	h.is(ch, state.Canary)

	_, r, err := w.Get(nodes[0], "rolled/a")
	h.check(err)
	_, err = w.Env.RenewLease(h.ctx, nodes[0].Caller, r.Lease)
	h.check(err)
	w.Put(nodes[0], "rolled/a", "two")
	_, err = w.Env.Generate(h.ctx, nodes[0].Caller, control.GenerateRequest{Secret: "rolled/a", Recipe: "hex", Stage: true})
	h.check(err)
	_, err = w.Env.Move(h.ctx, nodes[0].Caller, control.MoveRequest{Secret: "rolled/a", Version: 3, To: state.Current, Reason: "history"})
	h.check(err)
	_, _, err = w.Get(nodes[3], "rolled/a") // not of the cohort
	h.check(err)
	for _, n := range nodes[1:3] {
		_, _, err = w.Get(n, "rolled/a")
		h.refused(err, problem.ReasonNoGrant)
	}
	h.check(w.Env.Advance(h.ctx))
	h.is(ch, state.RolledBack)
	_, _, err = w.Get(nodes[1], "rolled/a")
	h.check(err)
}

// takenBack is a change that comes into force, and that a person takes back.
func (h *history) takenBack(files policy.Files) {
	w := h.w
	next := maps.Clone(files)
	next["README.md"] = []byte("What a rollout brings into force.\n")
	ch := h.roll(next)
	for range 2 {
		h.pass(11 * time.Minute)
	}
	h.is(ch, state.InForce)
	_, err := w.Env.RollBack(h.ctx, h.bob.Caller, control.RollbackRequest{Change: ch, Reason: "it was not what was meant"})
	h.check(err)
	h.is(ch, state.RolledBack)
}

// overtaken is a change that ends in its shadow because containment does not wait. What came for the rollouts goes with it: what follows in
// the history has the bundle of before.
func (h *history) overtaken(before, files policy.Files) {
	w := h.w
	next := maps.Clone(files)
	next["README.md"] = []byte("What never came into force.\n")
	slow := h.roll(next)
	next = maps.Clone(files)
	next["grants/leak.yaml"] = []byte(rolledDeny)
	w.Stage = Stage{Containment: []string{"grants/leak.yaml"}}
	fast := h.roll(next)
	h.is(slow, state.RolledBack)
	h.is(fast, state.InForce)
	w.Stage = Stage{Containment: policy.ChangedFiles(next, before)}
	h.roll(before)
	w.Stage = Stage{}
}

// roll proposes a bundle as alice, and has bob approve it.
func (h *history) roll(files policy.Files) uint64 {
	h.w.T.Helper()
	p, err := h.w.Propose(h.alice, "alice", files)
	h.check(err)
	_, err = h.w.Approve(h.bob, "bob", p.Change)
	h.check(err)
	return p.Change.Index
}

// pass lets time pass, does what is due for a rollout, and has the persons log in anew.
func (h *history) pass(d time.Duration) {
	h.w.T.Helper()
	if d > 0 {
		h.w.Advance(d)
		h.check(h.w.Env.Advance(context.Background()))
	}
	h.alice, h.bob = h.w.Login("alice"), h.w.Login("bob")
}

func (h *history) is(change uint64, want state.ChangeState) {
	h.w.T.Helper()
	if ch, ok := h.w.Env.State().Changes.Get(change); !ok || ch.State != want {
		h.w.T.Fatalf("change %d is %v, want %s", change, ch, want)
	}
}
