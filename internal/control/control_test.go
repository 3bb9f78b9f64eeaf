package control_test

import (
	"context"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/verify"
)

func wantReason(t *testing.T, err error, want problem.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("it went through; want %s", want)
	}
	if !problem.Is(err, want) {
		t.Fatalf("got %v; want %s", err, want)
	}
}

// The main way: an operator logs in, a machine joins, a process on it is attested, gets a secret with a receipt that
// verifies offline, and is refused after a revocation.
func TestMainWay(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	_, _, err := w.Get(api, "db/password")
	wantReason(t, err, problem.ReasonNoVersion)
	w.Put(alice, "db/password", "correct horse")
	value, out, err := w.Get(api, "db/password")
	if err != nil {
		t.Fatal(err)
	}
	if value != "correct horse" || out.Version != 1 {
		t.Fatalf("got version %d %q", out.Version, value)
	}
	receipt, err := out.Proof.Receipt()
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.VerifyReceipt(receipt, w.Env.CheckpointKeys()...)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := state.Decode(v.Body)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := entry.Event.(*state.SecretReleased); !ok || r.Actor.Identity != "/workload/api" || r.Actor.Node != "/node/join-token/web-1" {
		t.Fatalf("the receipt is of %+v", entry.Event)
	}
	_, _, err = w.Get(alice, "db/password")
	wantReason(t, err, problem.ReasonNoGrant)

	revoked, err := w.Env.Revoke(context.Background(), alice.Caller, control.RevokeRequest{Scope: "node:/node/join-token/web-1", Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if revoked.Covers != 2 || !revoked.Cutoff || !revoked.Hold || len(revoked.Rotate) != 1 {
		t.Fatalf("revoked %+v", revoked)
	}
	_, _, err = w.Get(api, "db/password")
	wantReason(t, err, problem.ReasonCutoff)
	_, err = w.TryWorkload(node, "api")
	wantReason(t, err, problem.ReasonCutoff)

	before := snapshot(t, w)
	w.Reopen()
	if after := snapshot(t, w); before == after {
		t.Log("state survived a restart")
	}
	_, _, err = w.Get(api, "db/password")
	wantReason(t, err, problem.ReasonCutoff)
}

func snapshot(t *testing.T, w *controltest.World) state.Digest {
	t.Helper()
	var b bytesBuffer
	if err := w.Env.State().Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return state.RootOf(b)
}

type bytesBuffer []byte

func (b *bytesBuffer) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// Leases: one for (identity, node, version, purpose), whatever the number of reads.
func TestOneLease(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/password", "one")
	var lease uint64
	for i := range 50 {
		_, out, err := w.Get(api, "db/password")
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			lease = out.Lease
		} else if out.Lease != lease {
			t.Fatalf("read %d made lease %d beside %d", i, out.Lease, lease)
		}
	}
	if n := w.Env.State().Leases.Len(); n != 1 {
		t.Fatalf("%d leases", n)
	}
	ctx := context.Background()
	r, err := w.Env.RenewLease(ctx, api.Caller, lease)
	if err != nil {
		t.Fatal(err)
	}
	if r.Expires.Sub(w.Now()) > time.Hour {
		t.Fatalf("renewed until %s, beyond the grant", r.Expires)
	}
	if _, err := w.Env.ReturnLease(ctx, api.Caller, lease); err != nil {
		t.Fatal(err)
	}
	_, err = w.Env.RenewLease(ctx, api.Caller, lease)
	wantReason(t, err, problem.ReasonNotFound)
	if l, ok := w.Env.State().Leases.Get(lease); !ok || l.Live(state.At(w.Now())) {
		t.Fatalf("after the return: %+v", l)
	}
	// Its value is known to whoever had it: a revocation names the secret all the same.
	out, err := w.Env.Revoke(ctx, alice.Caller, control.RevokeRequest{Scope: "identity:/workload/api", Reason: "test"})
	if err != nil || len(out.Rotate) != 1 || out.Rotate[0] != "db/password" {
		t.Fatalf("%+v %v", out, err)
	}
}

func TestJoinToken(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	tok := w.Token(alice, "web-1", time.Hour)
	key, _ := controltest.Key(t)
	first, err := w.TryJoin(tok, key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.TryJoin(tok, key) // the reply was lost
	if err != nil {
		t.Fatal(err)
	}
	if again.Identity != first.Identity {
		t.Fatal("another identity")
	}
	other, _ := controltest.Key(t)
	_, err = w.TryJoin(tok, other)
	wantReason(t, err, problem.ReasonTokenSpent)

	// A restart forgets nothing.
	w.Reopen()
	_, err = w.TryJoin(tok, other)
	wantReason(t, err, problem.ReasonTokenSpent)

	late := w.Token(w.Login("alice"), "web-2", time.Minute)
	w.Advance(2 * time.Minute)
	_, err = w.TryJoin(late, other)
	wantReason(t, err, problem.ReasonTokenExpired)
}

func TestSecretVersions(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/a", "v1")
	w.Put(alice, "db/a", "v2")
	value, _, err := w.Get(api, "db/a")
	if err != nil || value != "v2" {
		t.Fatalf("%q %v", value, err)
	}
	old, err := w.Env.Get(ctx, api.Caller, control.GetRequest{Secret: "db/a", Version: 1})
	if err != nil || string(old.Value.Expose()) != "v1" {
		t.Fatalf("the retiring version: %v", err)
	}
	staged, err := w.Env.Generate(ctx, alice.Caller, control.GenerateRequest{Secret: "db/a", Recipe: "hex", Stage: true})
	if err != nil || staged.State != state.Staged {
		t.Fatalf("%+v %v", staged, err)
	}
	_, err = w.Env.Get(ctx, api.Caller, control.GetRequest{Secret: "db/a", Version: 3})
	wantReason(t, err, problem.ReasonLifecycle)
	move := func(v uint64, to state.VersionState) error {
		_, err := w.Env.Move(ctx, alice.Caller, control.MoveRequest{Secret: "db/a", Version: v, To: to})
		return err
	}
	wantReason(t, move(2, state.Destroyed), problem.ReasonLifecycle)
	if err := move(3, state.Current); err != nil {
		t.Fatal(err)
	}
	if err := move(1, state.Compromised); err != nil {
		t.Fatal(err)
	}
	if err := move(1, state.Retired); err != nil {
		t.Fatal(err)
	}
	if err := move(1, state.Destroyed); err != nil {
		t.Fatal(err)
	}
	_, err = w.Env.Get(ctx, api.Caller, control.GetRequest{Secret: "db/a", Version: 1})
	wantReason(t, err, problem.ReasonLifecycle)
	_, err = w.Env.Put(ctx, alice.Caller, control.PutRequest{Secret: "nowhere/x", Value: seal.NewSecret([]byte("x"))})
	wantReason(t, err, problem.ReasonNotDeclared)
}

func TestIdempotency(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	put := func(value string) (*control.Written, error) {
		return w.Env.Put(ctx, alice.Caller, control.PutRequest{Secret: "db/a", Value: seal.NewSecret([]byte(value)), Key: "k1"})
	}
	first, err := put("one")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		again, err := put("one")
		if err != nil || again.Version != 1 || again.Index != first.Index {
			t.Fatalf("%+v %v", again, err)
		}
	}
	_, err = put("two")
	wantReason(t, err, problem.ReasonKeyReused)
	w.Reopen()
	again, err := put("one")
	if err != nil || again.Version != 1 {
		t.Fatalf("after a restart: %+v %v", again, err)
	}
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	get := func() (*control.Released, error) {
		return w.Env.Get(ctx, api.Caller, control.GetRequest{Secret: "db/a", Key: "r1"})
	}
	one, err := get()
	if err != nil {
		t.Fatal(err)
	}
	w.Put(alice, "db/a", "newer")
	two, err := get()
	if err != nil || two.Version != one.Version || two.Lease != one.Lease || two.Proof.Index == one.Proof.Index {
		t.Fatalf("a redelivery is the same effect under its own entry: %+v %+v %v", one, two, err)
	}
	if _, err := w.Env.Revoke(ctx, alice.Caller, control.RevokeRequest{Scope: "identity:/workload/api"}); err != nil {
		t.Fatal(err)
	}
	_, err = get()
	wantReason(t, err, problem.ReasonCutoff)
}

// A workload's idempotency keys are of the node that it runs on, as its leases are.
func TestIdempotencyByNode(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	w.Put(alice, "db/a", "v")
	a, b := w.Workload(w.Node(alice, "web-1"), ""), w.Workload(w.Node(alice, "web-2"), "")
	var leases []uint64
	for _, actor := range []controltest.Actor{a, b, b, a} {
		out, err := w.Env.Get(context.Background(), actor.Caller, control.GetRequest{Secret: "db/a", Key: "start-up"})
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, out.Lease)
	}
	if leases[0] == leases[1] || leases[1] != leases[2] || leases[0] != leases[3] {
		t.Errorf("leases %v", leases)
	}
	_, err := w.Env.Get(context.Background(), b.Caller, control.GetRequest{Secret: "db/a", Purpose: "migration", Key: "start-up"})
	wantReason(t, err, problem.ReasonKeyReused)
}

func TestRenewAndFork(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	key2, _ := controltest.Key(t)
	o2, err := w.Renew(node, key2)
	if err != nil {
		t.Fatal(err)
	}
	// The reply was lost: the same new key asks again with the old certificate.
	o2b, err := w.Renew(node, key2)
	if err != nil {
		t.Fatal(err)
	}
	second := w.Enter(key2, o2)
	_ = second
	newest := w.Enter(key2, o2b)
	key3, _ := controltest.Key(t)
	if _, err := w.Renew(newest, key3); err != nil {
		t.Fatal(err)
	}
	// A clone comes with what was the newest before.
	thief, _ := controltest.Key(t)
	_, err = w.Renew(node, thief)
	wantReason(t, err, problem.ReasonForked)
	_, err = w.TryWorkload(newest, "")
	wantReason(t, err, problem.ReasonCutoff)
	_, held := w.Env.State().Holds.Get("node:/node/join-token/web-1")
	if !held {
		t.Fatal("the forked node is not held")
	}
}

func TestChanges(t *testing.T) {
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 2})
	alice, bob, carol := w.Login("alice"), w.Login("bob"), w.Login("carol")
	files := w.Bundle(controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 2})
	files["grants/more.yaml"] = []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: more}\nspec: {actions: [secret.read], identities: [/human/alice], secrets: [db/x], purposes: [runtime]}\n")
	p, err := w.Propose(alice, "alice", files)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Approve(alice, "alice", p.Change)
	wantReason(t, err, problem.ReasonSeparation)
	if out, err := w.Approve(bob, "bob", p.Change); err != nil || out.Generation != 0 {
		t.Fatalf("%+v %v", out, err)
	}
	_, err = w.Approve(bob, "bob", p.Change)
	wantReason(t, err, problem.ReasonSeparation)
	out, err := w.Approve(carol, "carol", p.Change)
	if err != nil || out.Generation != 2 {
		t.Fatalf("%+v %v", out, err)
	}
	w.Put(bob, "db/x", "for alice")
	if v, _, err := w.Get(alice, "db/x"); err != nil || v != "for alice" {
		t.Fatalf("%q %v", v, err)
	}
	w.Reopen()
	if w.Env.State().Generation != 2 {
		t.Fatal("the generation did not survive")
	}
}

func TestKeyRotation(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	for _, p := range []string{"db/a", "db/b", "db/c"} {
		w.Put(alice, p, "value of "+p)
	}
	vkeys := w.Env.CheckpointKeys()
	for _, kind := range []string{"kek", "ca", "checkpoint"} {
		if _, _, err := w.Env.RotateKey(ctx, alice.Caller, kind); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	var last control.RewrapProgress
	if err := w.Env.Rewrap(ctx, alice.Caller, func(p control.RewrapProgress) error { last = p; return nil }); err != nil {
		t.Fatal(err)
	}
	if !last.Finished || last.Done != 3 {
		t.Fatalf("%+v", last)
	}
	left, err := w.Env.Ledger().Store().SealedUnder(ctx, 2, 0, 10)
	if err != nil || len(left) != 0 {
		t.Fatalf("%v %v", left, err)
	}
	for range 2 {
		v, out, err := w.Get(api, "db/b")
		if err != nil || v != "value of db/b" {
			t.Fatalf("%q %v", v, err)
		}
		receipt, err := out.Proof.Receipt()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify.VerifyReceipt(receipt, vkeys...); err != nil {
			t.Fatalf("who knows only the old checkpoint key: %v", err)
		}
		w.Reopen()
	}
	if n := len(w.Env.CAChain()); n != 2 {
		t.Fatalf("%d certificates from the genesis CA on", n)
	}
}
