package control_test

import (
	"context"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// What was decided is explained as it was, whatever came since; and what would be decided by a proposal, before it is approved.
func TestExplainOther(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	ctx, alice := context.Background(), b.by["alice"]
	b.Put(alice, "db/a", "v")
	api := b.Workload(b.Node(alice, "web-1"), "")
	who := api.Opened.Identity.Path()
	_, _, err := b.Get(api, "db/a")
	b.must(err)
	served := b.Env.Ledger().Size() - 1
	then := b.Env.State().Time
	files := b.with("grants/never.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: never}\nspec: {effect: deny, actions: [secret.read], identities: [/workload/*], secrets: [db/*]}\n")
	p, err := b.Propose(alice, "alice", files)
	b.must(err)
	ask := func(r control.ExplainRequest) *control.Explanation {
		t.Helper()
		r.Identity, r.Action, r.Secret = who, policy.ReadSecret, "db/a"
		return explained(t, b.World, alice, r)
	}
	change := control.ExplainRequest{Change: p.Change.Index}
	if x := ask(control.ExplainRequest{}); x.Problem != nil || x.Bundle != b.Env.State().Bundle {
		t.Errorf("now: %+v", x)
	}
	if x := ask(change); x.Problem == nil || x.Problem.Reason != problem.ReasonDenied || x.Decision.Grant != "never" || x.Bundle != p.Change.Manifest {
		t.Errorf("proposed: %+v", x)
	}
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.must(err)
	_, _, err = b.Get(api, "db/a")
	b.refused(err, problem.ReasonDenied)
	if x := ask(control.ExplainRequest{}); x.Problem == nil || x.Problem.Reason != problem.ReasonDenied {
		t.Errorf("in force: %+v", x)
	}
	b.Advance(48 * time.Hour) // sessions are over, and were not
	api, alice = b.Workload(b.Node(b.Login("alice"), "web-1"), ""), b.Login("alice")
	past := ask(control.ExplainRequest{Past: true, At: served})
	if past.Problem != nil || past.Generation != 1 || past.Time != then || past.Bundle == p.Change.Manifest {
		t.Errorf("past: %+v", past)
	}
	if x := ask(control.ExplainRequest{Past: true, At: 0}); x.Problem == nil || x.Problem.Reason != problem.ReasonNoSession {
		t.Errorf("at the beginning: %+v", x)
	}
	for _, c := range []struct {
		by     control.Caller
		r      control.ExplainRequest
		reason problem.Reason
	}{
		{alice.Caller, control.ExplainRequest{Past: true, At: 1 << 20}, problem.ReasonNotFound},
		{alice.Caller, control.ExplainRequest{Change: 1 << 20}, problem.ReasonNotFound},
		{alice.Caller, control.ExplainRequest{Change: p.Change.Index, Past: true}, problem.ReasonInvalid},
		{api.Caller, control.ExplainRequest{Change: p.Change.Index}, problem.ReasonDuty},
		{api.Caller, control.ExplainRequest{Past: true, At: served}, problem.ReasonDuty},
	} {
		c.r.Action, c.r.Secret = policy.ReadSecret, "db/a"
		_, err := b.Env.Explain(ctx, c.by, c.r)
		b.refused(err, c.reason)
	}
}
