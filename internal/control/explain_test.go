package control_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func explained(t *testing.T, w *controltest.World, who controltest.Actor, r control.ExplainRequest) *control.Explanation {
	t.Helper()
	x, err := w.Env.Explain(context.Background(), who.Caller, r)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// What is explained to somebody about himself is what the door would say to him: in his own session, which need not be the newest
// of his identity, and of what the door would not take at all.
func TestExplainIsTheDoor(t *testing.T) {
	const pinned = `apiVersion: bailment/v1
kind: Grant
metadata: {name: pinned}
spec:
  actions: [secret.read]
  identities: [/workload/api]
  secrets: [node/*]
  purposes: [runtime]
  when: node.path == "/node/join-token/web-1"
`
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"grants/pinned.yaml": []byte(pinned)}})
	alice := w.Login("alice")
	w.Put(alice, "db/a", "v")
	w.Put(alice, "node/key", "v")
	first, second := w.Node(alice, "web-1"), w.Node(alice, "web-2")
	for _, actor := range []controltest.Actor{w.Workload(first, ""), w.Workload(second, ""), first, second, alice} {
		for _, secret := range []string{"db/a", "node/key", "db/none", "other/x"} {
			_, _, err := w.Get(actor, secret)
			x := explained(t, w, actor, control.ExplainRequest{Action: policy.ReadSecret, Secret: secret})
			if (err == nil) != (x.Problem == nil) || err != nil && problem.As(err).Reason != x.Problem.Reason {
				t.Errorf("%s reads %s: %v, explained as %v", actor.Opened.Identity, secret, err, x.Problem)
			}
		}
	}
	for _, secret := range []string{"db/b", "other/x"} {
		_, err := w.Env.Generate(context.Background(), alice.Caller, control.GenerateRequest{Secret: secret})
		x := explained(t, w, alice, control.ExplainRequest{Action: policy.GenerateSecret, Secret: secret, Purpose: "nothing"})
		if (err == nil) != (x.Problem == nil) || err != nil && problem.As(err).Reason != x.Problem.Reason {
			t.Errorf("%s: %v, explained as %v", secret, err, x.Problem)
		}
	}
	for _, r := range []control.ExplainRequest{
		{Action: policy.ReadSecret, Secret: "db//a"},
		{Action: policy.ReadSecret, Secret: "db/../a"},
		{Action: policy.ReadSecret, Secret: "db/a", Purpose: "Run"},
		{Action: policy.WriteSecret, Secret: "db/"},
	} {
		_, err := w.Env.Explain(context.Background(), alice.Caller, r)
		wantReason(t, err, problem.ReasonInvalid)
	}
}

// Explaining tells a machine of itself only: not which secrets there are, what other nodes are, or the rules of others.
func TestExplainTellsNoMore(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	w.Put(alice, "node/key", "v")
	api := w.Workload(w.Node(alice, "web-1"), "")
	other := w.Node(alice, "web-2")
	there := explained(t, w, api, control.ExplainRequest{Action: policy.ReadSecret, Secret: "node/key"})
	absent := explained(t, w, api, control.ExplainRequest{Action: policy.ReadSecret, Secret: "node/not"})
	if a, b := fmt.Sprint(there.Checks), strings.ReplaceAll(fmt.Sprint(absent.Checks), "node/not", "node/key"); a != b {
		t.Errorf("what is there: %s\nwhat is not: %s", a, b)
	}
	for _, r := range there.Rules {
		if r.Grant != "api-reads" {
			t.Errorf("it is told of %s: %s", r.Grant, r.Why)
		}
	}
	if x := explained(t, w, alice, control.ExplainRequest{Identity: "/workload/api", Action: policy.ReadSecret, Secret: "node/key"}); len(x.Rules) != 3 || len(x.Checks) != 5 {
		t.Errorf("who audits sees %+v", x)
	}
	for _, r := range []control.ExplainRequest{
		{Action: policy.ReadSecret, Secret: "db/a", Node: other.Opened.Identity.Path()},
		{Action: policy.ReadSecret, Secret: "db/a", Identity: other.Opened.Identity.Path()},
	} {
		_, err := w.Env.Explain(context.Background(), api.Caller, r)
		wantReason(t, err, problem.ReasonDuty)
	}
	x := explained(t, w, api, control.ExplainRequest{Action: policy.ReadSecret, Secret: "db/none", Claims: map[string]any{"unix": map[string]any{"uid": 0}}})
	if slices.ContainsFunc(x.Checks, func(c control.Check) bool { return c.Name == "version" }) {
		t.Errorf("claims that nobody proved show %+v", x.Checks)
	}
	for _, change := range []uint64{1, 1 << 40} {
		_, err := w.Env.Reject(context.Background(), api.Caller, change, "")
		wantReason(t, err, problem.ReasonDuty)
	}
}

// A login by a key that is no longer listed reads no bundle and no changes.
func TestUnlistedKeyReadsNothing(t *testing.T) {
	b := newBoard(t, 0, "alice", "bob")
	b.AddPerson("new")
	files := maps.Clone(b.Files)
	old := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(b.Persons["bob"].PublicKey())), "\n")
	replacement := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(b.Persons["new"].PublicKey())), "\n")
	files["operators.yaml"] = []byte(strings.Replace(string(files["operators.yaml"]), old, replacement, 1))
	p, err := b.Propose(b.by["alice"], "alice", files)
	b.must(err)
	_, err = b.Approve(b.by["alice"], "alice", p.Change)
	b.must(err)
	ctx, bob := context.Background(), b.by["bob"].Caller
	_, err = b.Env.ListChanges(ctx, bob, control.ChangeFilter{})
	b.refused(err, problem.ReasonDuty)
	_, err = b.Env.GetChange(ctx, bob, p.Change.Index)
	b.refused(err, problem.ReasonDuty)
	_, _, _, err = b.Env.Bundle(ctx, bob, state.Digest{})
	b.refused(err, problem.ReasonDuty)
	b.inForce(2)
}
