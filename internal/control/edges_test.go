package control_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func revoke(w *controltest.World, by controltest.Actor, scope string, hold bool) (*control.Revoked, error) {
	return w.Env.Revoke(context.Background(), by.Caller, control.RevokeRequest{Scope: scope, Hold: &hold, Reason: "test"})
}

// "Revoked" beats a retry, also when the reader has got a new lease meanwhile.
func TestRetryAfterCutoffAndNewLease(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/a", "one")
	keyed := control.GetRequest{Secret: "db/a", Key: "k1"}
	if _, err := w.Env.Get(ctx, api.Caller, keyed); err != nil {
		t.Fatal(err)
	}
	if _, err := revoke(w, alice, "secret:db/a", false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Get(api, "db/a"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Env.Get(ctx, api.Caller, keyed)
	wantReason(t, err, problem.ReasonCutoff)
}

// A key that has expired means the current version again, also before anything swept it.
func TestExpiredKeyMeansCurrent(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"identities/work.yaml": []byte(`apiVersion: bailment/v1
kind: Identity
metadata: {name: api}
spec: {method: workload, path: /workload/api, nodes: [/node/join-token/*], session: 1h}
`), "secrets/all.yaml": []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: db/*}\nspec: {type: opaque, retain: 24h}\n")}})
	ctx := context.Background()
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	w.Put(alice, "db/a", "one")
	keyed := control.GetRequest{Secret: "db/a", Key: "k1"}
	if _, err := w.Env.Get(ctx, api.Caller, keyed); err != nil {
		t.Fatal(err)
	}
	w.Advance(50 * time.Minute)
	alice = w.Login("alice")
	w.Put(alice, "db/a", "two")
	api = w.Workload(renewed(t, w, node), "")
	w.Advance(11 * time.Minute)
	out, err := w.Env.Get(ctx, api.Caller, keyed)
	if err != nil || out.Version != 2 {
		t.Fatalf("%+v %v", out, err)
	}
}

// Nobody holds the last quorum, not by way of the blast limit either.
func TestBlastLimitKeepsQuorum(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": fmt.Appendf(nil,
		"apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  revocation: {blastLimit: 1}\n", controltest.EnvName)}})
	alice := w.Login("alice")
	w.Workload(w.Node(alice, "web-1"), "")
	_, err := revoke(w, alice, "identity:/*", false)
	wantReason(t, err, problem.ReasonLastQuorum)
	w.Login("alice")
}

// Under a hold on everything a server still starts: otherwise nobody could lift it.
func TestServerUnderHoldOnEverything(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	if _, err := revoke(w, alice, "everything", true); err != nil {
		t.Fatal(err)
	}
	w.Reopen()
	key, _ := controltest.Key(t)
	if _, _, err := w.Env.ServerCertificate(context.Background(), key, time.Hour); err != nil {
		t.Fatal(err)
	}
	w.Login("alice")
}

// A retry with an old token does not take a machine's newer enrolment back, nor prolong its own.
func TestOldTokenAfterNewEnrolment(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	old := w.Token(alice, "web-1", time.Hour)
	key, _ := controltest.Key(t)
	if _, err := w.TryJoin(old, key); err != nil {
		t.Fatal(err)
	}
	newer := w.Node(alice, "web-1")
	_, err := w.TryJoin(old, key)
	wantReason(t, err, problem.ReasonTokenSpent)
	next, _ := controltest.Key(t)
	if _, err := w.Renew(newer, next); err != nil {
		t.Fatal(err)
	}
}

// Both replies to a retried renewal are as good as each other: whichever arrived renews.
func TestLateReplyIsNoFork(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	key2, _ := controltest.Key(t)
	early, err := w.Renew(node, key2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Renew(node, key2); err != nil {
		t.Fatal(err)
	}
	key3, _ := controltest.Key(t)
	third, err := w.Renew(w.Enter(key2, early), key3)
	if err != nil {
		t.Fatal(err)
	}
	key4, _ := controltest.Key(t)
	_, err = w.Renew(w.Enter(key2, early), key4) // but only once
	if err == nil || !problem.Is(err, problem.ReasonForked) {
		t.Fatal(err)
	}
	_ = third
}

// Destroyed versions make room for new ones.
func TestDestroyedVersionsMakeRoom(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": fmt.Appendf(nil,
		"apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  limits: {versionsPerSecret: 3}\n", controltest.EnvName)}})
	ctx := context.Background()
	alice := w.Login("alice")
	for n := uint64(1); n <= 8; n++ {
		if out := w.Put(alice, "db/a", fmt.Sprint("value ", n)); out.Version != n {
			t.Fatalf("version %d", out.Version)
		}
		if n == 1 {
			continue
		}
		for _, to := range []state.VersionState{state.Retired, state.Destroyed} {
			if _, err := w.Env.Move(ctx, alice.Caller, control.MoveRequest{Secret: "db/a", Version: n - 1, To: to}); err != nil {
				t.Fatal(err)
			}
		}
	}
	sec, _ := w.Env.State().Secrets.Get("db/a")
	if len(sec.Versions) > 3 {
		t.Fatalf("%d versions are kept", len(sec.Versions))
	}
	w.Reopen()
}

// The horizon of a fork's cutoff covers the leases that the node and its workloads hold.
func TestForkHorizon(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{
		"identities/node.yaml": []byte(
			"apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec:\n  method: join-token\n  path: /node/join-token/{claims.name}\n  session: 10m\n"),
		"environment.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  sessions: {node: 10m, workload: 10m, operator: 10m}\n", controltest.EnvName),
	}})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	w.Put(alice, "db/a", "one")
	api := w.Workload(node, "")
	_, lease, err := w.Get(api, "db/a")
	if err != nil {
		t.Fatal(err)
	}
	first, _ := controltest.Key(t)
	if _, err := w.Renew(node, first); err != nil {
		t.Fatal(err)
	}
	clone, _ := controltest.Key(t)
	_, err = w.Renew(node, clone)
	wantReason(t, err, problem.ReasonForked)
	var ev *state.RevocationRecorded
	for _, x := range w.Stored() {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := e.Event.(*state.RevocationRecorded); ok {
			ev = r
		}
	}
	if ev == nil || ev.Horizon.Time().Before(lease.Expires) || ev.Covers != 2 {
		t.Fatalf("%+v; the lease lives until %s", ev, lease.Expires)
	}
}

// No session begins after its own end: a lifetime that is over is said.
func TestSessionBeyondLifetime(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": fmt.Appendf(nil,
		"apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  nodes: {lifetime: 1h}\n", controltest.EnvName)}})
	tok := w.Token(w.Login("alice"), "web-1", 5*time.Hour)
	key, _ := controltest.Key(t)
	if _, err := w.TryJoin(tok, key); err != nil {
		t.Fatal(err)
	}
	w.Advance(2 * time.Hour)
	_, err := w.TryJoin(tok, key)
	wantReason(t, err, problem.ReasonLifetimeOver)
}

// A bundle may have an empty file. What the store thinks of it is nobody else's matter.
func TestEmptyFile(t *testing.T) {
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1})
	alice, bob := w.Login("alice"), w.Login("bob")
	files := policy.Files{}
	for path, data := range w.Files {
		files[path] = data
	}
	files["README.md"] = nil
	p, err := w.Propose(alice, "alice", files)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = w.Approve(bob, "bob", p.Change); err != nil || p.Generation != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	if n := w.Env.Ledger().Stats().Reloads.Load(); n != 0 {
		t.Fatalf("the store was opened again %d times", n)
	}
	w.Reopen()
	w.Put(w.Login("alice"), "db/a", "v")
}

// A refusal is entered, whatever text it is about: one that is cut within a character too.
func TestDenialOfAnyText(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	node := w.Node(w.Login("alice"), "web-1")
	for n := 280; n < 300; n++ {
		before := w.Env.Ledger().Size()
		if _, err := w.TryWorkload(node, "/workload/"+strings.Repeat("a", n)+strings.Repeat("€", 10)); err == nil {
			t.Fatal("it was attested")
		}
		if w.Env.Ledger().Size() != before+1 {
			t.Errorf("the refusal of a name with %d letters before it gets long was not entered", n)
		}
	}
}
