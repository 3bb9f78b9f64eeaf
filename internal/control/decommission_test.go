package control_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// statement is the newest statement that nothing is left.
func (f *fleet) statement() *state.IdentityDecommissioned {
	f.t.Helper()
	var out *state.IdentityDecommissioned
	for _, x := range f.Stored() {
		e, err := state.Decode(x.Body)
		f.must(err)
		if d, ok := e.Event.(*state.IdentityDecommissioned); ok {
			out = d
		}
	}
	return out
}

// An identity ends in an order that nobody can leave: cut off and held, then ended by approval, then never again.
func TestDecommission(t *testing.T) {
	f := newFleet(t, nil, nil)
	ctx := context.Background()
	const path, scope = "/node/join-token/web-1", "node:/node/join-token/web-1"
	f.Put(f.alice, "db/password", "v")
	f.Put(f.alice, "node/seed", "v")
	node := f.Node(f.alice, "web-1")
	api := f.Workload(node, "")
	_, _, err := f.Get(api, "db/password")
	f.must(err)
	f.must(f.works(node))

	f.refused(f.act(control.ActionEnd, path), problem.ReasonLifecycle) // nothing was revoked
	_, err = revoke(f.World, f.alice, "node:/node/join-token/*", true)
	f.must(err)
	f.refused(f.act(control.ActionEnd, path), problem.ReasonLifecycle) // not on it alone: the statement names the cutoff
	_, err = revoke(f.World, f.alice, scope, false)
	f.must(err)
	f.must(f.act(control.ActionLiftHold, f.Hold("node:/node/join-token/*")))
	f.refused(f.act(control.ActionEnd, path), problem.ReasonLifecycle) // a cutoff without a hold
	out, err := f.Env.Revoke(ctx, f.alice.Caller, control.RevokeRequest{Scope: scope, Reason: "sold"})
	f.must(err)
	if !out.Cutoff || !out.Hold {
		t.Fatalf("%+v", out)
	}

	// A token that would give it anew. It was made after the cutoff, and stops the end, when it is proposed and when it is approved.
	spare := f.Token(f.alice, "web-1", time.Hour)
	f.refused(f.act(control.ActionEnd, path), problem.ReasonLifecycle)
	f.must(f.spent(spare.ID()))
	p, err := f.Act(f.alice, "alice", control.ActionEnd, path)
	f.must(err)
	_, err = f.Approve(f.alice, "alice", p.Change)
	f.refused(err, problem.ReasonSeparation)
	late := f.Token(f.alice, "web-1", time.Hour)
	_, err = f.Approve(f.bob, "bob", p.Change)
	f.refused(err, problem.ReasonLifecycle)
	f.must(f.spent(late.ID()))
	f.Token(f.alice, "web-2", time.Hour) // of another, and no matter
	f.alice, f.bob = f.Login("alice"), f.Login("bob")
	p, err = f.Act(f.alice, "alice", control.ActionEnd, path)
	f.must(err)
	_, err = f.Approve(f.bob, "bob", p.Change)
	f.must(err)

	cut, _ := f.Env.State().Cutoffs.Get(scope)
	if s := f.statement(); s.Identity != path || s.Cutoff != cut || s.Sessions+s.Leases+s.Tokens != 0 || !slices.Equal(s.Rotate, []string{"db/password", "node/seed"}) {
		t.Errorf("%+v", s)
	}
	f.refused(f.act(control.ActionEnd, path), problem.ReasonConflict)
	f.must(f.act(control.ActionLiftHold, f.Hold(scope)))
	never := func() {
		t.Helper()
		f.alice, f.bob = f.Login("alice"), f.Login("bob")
		tok, err := jointoken.New(f.Genesis)
		f.must(err)
		_, _, err = f.Env.CreateToken(ctx, f.alice.Caller, control.TokenRequest{ID: tok.ID(), Public: tok.PublicKey(), Name: "web-1", TTL: time.Hour})
		f.refused(err, problem.ReasonDecommissioned)
		if err := f.works(node); err == nil {
			t.Error("a session of it works")
		}
		_, err = tryRenew(t, f.World, node)
		f.refused(err, problem.ReasonSessionUnknown)
		d, err := f.Env.ShowIdentity(ctx, f.alice.Caller, path)
		f.must(err)
		if d.State != "decommissioned" || d.Gone == 0 {
			t.Errorf("%+v", d)
		}
		f.Node(f.alice, "web-3")
	}
	never()
	f.must(f.Env.Snapshot(ctx))
	f.Reopen()
	never()
	f.Advance(100 * 24 * time.Hour)
	never()
}

// spent cuts a token off.
func (f *fleet) spent(id string) error {
	scope := "issuer:join-token:" + id
	_, err := revoke(f.World, f.alice, scope, false)
	return err
}

// What can't be ended says so.
func TestDecommissionRefuses(t *testing.T) {
	f := newFleet(t, nil, nil)
	for target, want := range map[string]problem.Reason{
		"/human/bob": problem.ReasonInvalid, "/server/s1": problem.ReasonInvalid, "node": problem.ReasonInvalid, "/node/../x": problem.ReasonInvalid,
		"/node/tpm/nobody": problem.ReasonNotFound, "": problem.ReasonInvalid,
	} {
		if _, err := f.Act(f.alice, "alice", control.ActionEnd, target); !problem.Is(err, want) {
			t.Errorf("%q: %v", target, err)
		}
	}
}

// A hold that runs out does not last for ever, so it is none to end an identity under.
func TestDecommissionUnderProvisionalHold(t *testing.T) {
	f := newFleet(t, nil, nil)
	f.must(f.bring("environment.yaml", "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: test.example}\nspec:\n  class: development\n  approvals: {required: 1}\n  revocation: {blastLimit: 1}\n"))
	node := f.Node(f.alice, "web-1")
	f.Workload(node, "")
	out, err := f.Env.Revoke(context.Background(), f.alice.Caller, control.RevokeRequest{Scope: "node:/node/join-token/web-1", Reason: "test"})
	f.must(err)
	if out.Provisional.IsZero() {
		t.Fatalf("%+v", out)
	}
	f.refused(f.act(control.ActionEnd, "/node/join-token/web-1"), problem.ReasonLifecycle)
	f.must(f.act(control.ActionConfirmCut, f.Hold("node:/node/join-token/web-1")))
	f.must(f.act(control.ActionEnd, "/node/join-token/web-1"))
}

// Jobs and workloads end as machines do.
func TestDecommissionOthers(t *testing.T) {
	f := newForge(t)
	_, _, a := f.job("a")
	_, _, b := f.job("b")
	node := f.Node(f.alice, "web-1")
	api := f.Workload(node, "")
	for path, actors := range map[string][]controltest.Actor{"/ci/gitlab/7/42": {a, b}, "/workload/api": {api}} {
		_, err := f.Env.Revoke(context.Background(), f.alice.Caller, control.RevokeRequest{Scope: "identity:" + path, Reason: "test"})
		f.must(err)
		f.must(f.act(control.ActionEnd, path))
		f.must(f.act(control.ActionLiftHold, f.Hold("identity:"+path)))
		for _, x := range actors {
			if err := f.works(x); err == nil {
				t.Errorf("%s: a session works", path)
			}
		}
	}
	_, err := f.prove(f.token("c"), f.key())
	f.refused(err, problem.ReasonDecommissioned)
	_, err = f.TryWorkload(node, "")
	f.refused(err, problem.ReasonDecommissioned)
	f.must(f.works(node))
}
