package control_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// Nobody can hold the last persons by whom the hold could be lifted, in any class.
func TestLastQuorum(t *testing.T) {
	for _, c := range []struct {
		persons []string
		quorum  int
		hold    []string // of which the last is refused
	}{
		{[]string{"alice"}, 0, []string{"alice"}},
		{[]string{"alice", "bob"}, 0, []string{"bob", "alice"}},
		{[]string{"alice", "bob"}, 1, []string{"bob"}},
		{[]string{"alice", "bob", "carol"}, 1, []string{"carol", "bob"}},
		{[]string{"alice", "bob", "carol"}, 2, []string{"carol"}},
		{[]string{"alice", "bob", "carol", "dave"}, 2, []string{"dave", "*"}},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.quorum, len(c.persons)), func(t *testing.T) {
			b := newBoard(t, c.quorum, c.persons...)
			for i, who := range c.hold {
				_, err := revoke(b.World, b.by["alice"], "identity:/human/"+who, true)
				if i < len(c.hold)-1 {
					b.must(err)
				} else {
					b.refused(err, problem.ReasonLastQuorum)
				}
			}
			b.inForce(1)
		})
	}
}

// The only one who may propose is as needed as those who approve.
func TestLastProposer(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	line := func(p string) string {
		return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(b.Persons[p].PublicKey())), "\n")
	}
	const operators = "apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n" +
		"    - name: alice\n      keys: [%q]\n      duties: [propose, revoke]\n    - name: bob\n      keys: [%q]\n      duties: [approve, revoke]\n" +
		"    - name: carol\n      keys: [%q]\n      duties: [approve]\n"
	p, err := b.Propose(b.by["alice"], "alice", b.with("operators.yaml", fmt.Sprintf(operators, line("alice"), line("bob"), line("carol"))))
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.must(err)
	_, err = revoke(b.World, b.by["bob"], "identity:/human/alice", true)
	b.refused(err, problem.ReasonLastQuorum)
	b.revoke("bob", "identity:/human/carol")
	_, err = revoke(b.World, b.by["alice"], b.key("bob"), true)
	b.refused(err, problem.ReasonLastQuorum)
	b.inForce(2)
}

// A revocation names what was handed out under an older enrolment, also when a newer one has been given the same.
func TestRevocationOfOlderEnrolment(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	w.Put(alice, "node/key", "v")
	token := w.Token(alice, "web-1", time.Hour)
	old := w.Join(token)
	_, out, err := w.Get(old, "node/key")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Get(w.Node(alice, "web-1"), "node/key"); err != nil {
		t.Fatal(err)
	}
	r, err := revoke(w, alice, "issuer:"+jointoken.Anchor(token.ID()), true)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rotate) != 1 || r.Covers != 1 || r.Horizon.Before(out.Expires) {
		t.Errorf("a lease until %s is forgotten: %+v", out.Expires, r)
	}
	if _, found, err := w.Env.Check(context.Background()); err != nil || len(found) > 0 {
		t.Error(found, err)
	}
}

// Whoever returns a lease and takes a new one leaves one row, and one row to sweep.
func TestReturnedLeasesMakeRoom(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	w.Put(alice, "node/key", "v")
	n := w.Node(alice, "web-1")
	for range 20 {
		_, out, err := w.Get(n, "node/key")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Env.ReturnLease(context.Background(), n.Caller, out.Lease); err != nil {
			t.Fatal(err)
		}
	}
	if s := w.Env.State(); s.Leases.Len() != 1 || s.LeaseOf.Len() != 1 {
		t.Errorf("%d leases, %d names", s.Leases.Len(), s.LeaseOf.Len())
	}
	r, err := revoke(w, alice, "secret:node/key", false)
	if err != nil || len(r.Rotate) != 1 {
		t.Errorf("%+v %v", r, err)
	}
}

// A retry is judged by what its first effect derives from, whoever brings it: the node, the issuer, the enrolment.
func TestRetryAfterCutoffOfItsOrigin(t *testing.T) {
	ctx := context.Background()
	t.Run("an operator's key", func(t *testing.T) {
		b := newBoard(t, 1, "alice", "bob", "carol")
		put := control.PutRequest{Secret: "db/a", Value: seal.NewSecret([]byte("x")), Key: "k"}
		tok, err := jointoken.New(b.Genesis)
		b.must(err)
		admit := control.TokenRequest{ID: tok.ID(), Public: tok.PublicKey(), Name: "web-1", TTL: time.Hour, Key: "t"}
		change := func() error {
			_, err := b.Env.Put(ctx, b.by["alice"].Caller, put)
			if err != nil {
				return err
			}
			_, _, err = b.Env.CreateToken(ctx, b.by["alice"].Caller, admit)
			return err
		}
		b.must(change())
		b.must(change())
		_, err = revoke(b.World, b.by["bob"], b.key("alice"), false)
		b.must(err)
		b.by["alice"] = b.Login("alice")
		_, err = b.Env.Put(ctx, b.by["alice"].Caller, put)
		b.refused(err, problem.ReasonCutoff)
		_, _, err = b.Env.CreateToken(ctx, b.by["alice"].Caller, admit)
		b.refused(err, problem.ReasonCutoff)
	})
	for _, scope := range []string{"the token", "node:/node/join-token/web-1"} {
		t.Run(scope, func(t *testing.T) {
			b := newBoard(t, 1, "alice", "bob")
			b.Put(b.by["alice"], "db/a", "v")
			token := b.Token(b.by["alice"], "web-1", time.Hour)
			read := control.GetRequest{Secret: "db/a", Key: "k"}
			_, err := b.Env.Get(ctx, b.Workload(b.Join(token), "").Caller, read)
			b.must(err)
			if scope == "the token" {
				scope = "issuer:" + jointoken.Anchor(token.ID())
			}
			_, err = revoke(b.World, b.by["bob"], scope, false)
			b.must(err)
			_, err = b.Env.Get(ctx, b.Workload(b.Node(b.by["alice"], "web-1"), "").Caller, read)
			b.refused(err, problem.ReasonCutoff)
		})
	}
}

// A hold beyond the blast limit is one person's for fifteen minutes, and not for as long as he likes.
func TestProvisionalHoldsAreFew(t *testing.T) {
	limited := policy.Files{"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1}\n  revocation: {blastLimit: 1}\n", controltest.EnvName)}
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Extra: limited})
	b := &board{w, map[string]controltest.Actor{}}
	login := func() {
		for _, p := range []string{"alice", "bob", "carol"} {
			b.by[p] = b.Login(p)
		}
		b.Node(b.by["alice"], "n1")
		b.Node(b.by["alice"], "n2")
	}
	login()
	if r := b.revoke("alice", "node:/node/*"); r.Provisional.IsZero() {
		t.Fatalf("%+v", r)
	}
	b.lift("node:/node/*", "bob", "carol")
	_, err := revoke(w, b.by["alice"], "node:/node/*", true) // others lifted it
	b.refused(err, problem.ReasonBlastLimit)
	b.revoke("alice", "identity:/node/*")
	w.Advance(16 * time.Minute)
	login()
	_, err = revoke(w, b.by["alice"], "identity:/node/*", true) // it ran out
	b.refused(err, problem.ReasonBlastLimit)
	b.revoke("alice", "node:/node/join-token/*")
	b.revoke("alice", "identity:/node/join-token/*")
	_, err = revoke(w, b.by["alice"], "everything", true)
	b.refused(err, problem.ReasonBlastLimit)
	b.revoke("bob", "everything") // another person's is another one's word
	w.Advance(25 * time.Hour)
	login()
	if r := b.revoke("alice", "node:/node/*"); r.Provisional.IsZero() {
		t.Fatalf("%+v", r)
	}
	b.inForce(1)
}

// What ends under a provisional hold still counts: who sets one and waits does not find the scope empty, and free to be held for good.
func TestProvisionalHoldEmptiesNoScope(t *testing.T) {
	limited := policy.Files{"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1}\n  revocation: {blastLimit: 1}\n", controltest.EnvName)}
	for _, scope := range []string{"identity:/workload/*", "identity:/workload/api"} {
		t.Run(scope, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Extra: limited})
			b := &board{w, map[string]controltest.Actor{"alice": w.Login("alice")}}
			b.Workload(b.Node(b.by["alice"], "web-1"), "")
			b.Workload(b.Node(b.by["alice"], "special"), "/workload/other")
			if r := b.revoke("alice", "identity:/workload/*"); r.Provisional.IsZero() {
				t.Fatalf("%+v", r)
			}
			w.Advance(11 * time.Minute) // the hold stands, and the sessions are over
			b.by["alice"], b.by["bob"] = b.Login("alice"), b.Login("bob")
			_, err := revoke(w, b.by["bob"], scope, true)
			if scope == "identity:/workload/api" { // within the limit, as ever
				b.must(err)
			} else {
				b.refused(err, problem.ReasonExists)
				w.Advance(5 * time.Minute) // and now it has run out
				b.by["alice"] = b.Login("alice")
				_, err = revoke(w, b.by["alice"], scope, true)
				b.refused(err, problem.ReasonBlastLimit)
				b.by["bob"] = b.Login("bob")
				if r := b.revoke("bob", "node:/node/*"); r.Provisional.IsZero() {
					t.Errorf("%+v", r)
				}
			}
			b.inForce(1)
		})
	}
}

// What a decision covers does not depend on how often it was decided.
func TestSurveyIsPure(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	before := b.Env.State()
	api := b.Workload(b.Node(b.by["alice"], "web-1"), "")
	b.Put(b.by["alice"], "db/a", "v")
	_, out, err := b.Get(api, "db/a")
	b.must(err)
	scope, err := state.ParseScope("everything")
	b.must(err)
	first, second := control.DecideTwice(before, b.Env.State(), scope, state.At(b.Now()))
	if fmt.Sprint(first) != fmt.Sprint(second) {
		t.Errorf("first %v, again %v", first, second)
	}
	if first.Identities != 4 || len(first.Rotate) != 1 || first.Horizon.Time().Before(out.Expires) {
		t.Errorf("%+v", first)
	}
}

// Who cut off and why is told with the list, also when there is no hold (any more).
func TestCutoffsSayWhoAndWhy(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	for scope, hold := range map[string]bool{"identity:/workload/api": false, "secret:db/a": true} {
		_, err := b.Env.Revoke(context.Background(), b.by["bob"].Caller, control.RevokeRequest{Scope: scope, Hold: &hold, Reason: "about " + scope})
		b.must(err)
	}
	list := func() map[string]control.RevocationView {
		all, err := b.Env.ListRevocations(context.Background(), b.by["alice"].Caller)
		b.must(err)
		out := map[string]control.RevocationView{}
		for _, v := range all {
			out[v.Scope] = v
		}
		return out
	}
	check := func() {
		t.Helper()
		for scope, v := range list() {
			if v.Cutoff == 0 || v.By != "/human/bob" || v.Reason != "about "+scope {
				t.Errorf("%+v", v)
			}
		}
	}
	check()
	if all := list(); len(all) != 2 || all["secret:db/a"].Hold == nil || all["identity:/workload/api"].Hold != nil {
		t.Fatalf("%+v", all)
	}
	b.lift("secret:db/a", "alice", "bob")
	b.Reopen()
	if all := list(); len(all) != 2 || all["secret:db/a"].Hold != nil {
		t.Fatalf("%+v", all)
	}
	check()
}

// A machine's own leases go with it, as those of what it speaks for do: the acknowledgement names what it read, and says until when that
// lives, and who proves itself anew gets a lease of its own.
func TestRevokeNodesOwnLeases(t *testing.T) {
	for _, scope := range []string{"node:/node/join-token/web-1", "node:/node/*", "identity:/node/join-token/web-1"} {
		w := controltest.New(t, controltest.Options{})
		alice := w.Login("alice")
		node := w.Node(alice, "web-1")
		w.Put(alice, "node/seed", "v")
		_, before, err := w.Get(node, "node/seed")
		if err != nil {
			t.Fatal(err)
		}
		out, err := revoke(w, alice, scope, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Rotate) != 1 || out.Rotate[0] != "node/seed" || out.Horizon.Before(before.Expires) {
			t.Errorf("%s: %+v, and a lease until %s", scope, out, before.Expires)
		}
		_, after, err := w.Get(w.Node(alice, "web-1"), "node/seed")
		if err != nil {
			t.Fatal(err)
		}
		if after.Lease == before.Lease {
			t.Errorf("%s: a release under a lease that was cut off", scope)
		}
	}
}
