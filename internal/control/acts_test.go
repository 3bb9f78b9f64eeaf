package control_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// operators lists persons with duties of their own.
func (b *board) operators(duties map[string]string) []byte {
	out := []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n")
	for _, p := range []string{"alice", "bob", "carol"} {
		key := bytes.TrimSpace(ssh.MarshalAuthorizedKey(b.Persons[p].PublicKey()))
		out = fmt.Appendf(out, "    - name: %s\n      keys: [%q]\n      duties: [%s]\n", p, key, duties[p])
	}
	return out
}

// A version is destroyed by who may, and with the approvals that it takes; a grant alone isn't enough where persons approve one another.
func TestDestroyTakesApproval(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	ctx := context.Background()
	alice, bob := b.by["alice"], b.by["bob"]
	for _, v := range []string{"one", "two", "three"} {
		b.Put(alice, "db/x", v)
	}
	for _, n := range []uint64{1, 2} {
		_, err := b.Env.Move(ctx, alice.Caller, control.MoveRequest{Secret: "db/x", Version: n, To: state.Retired})
		b.must(err)
	}
	_, err := b.Env.Move(ctx, alice.Caller, control.MoveRequest{Secret: "db/x", Version: 1, To: state.Destroyed})
	b.refused(err, problem.ReasonQuorum)
	for target, want := range map[string]problem.Reason{
		"db/x": problem.ReasonInvalid, "db/x#9": problem.ReasonNotFound, "db/y#1": problem.ReasonNotFound, "db/x#3": problem.ReasonLifecycle,
	} {
		_, err = b.act("alice", control.ActionDestroy, target)
		b.refused(err, want)
	}
	p, err := b.act("alice", control.ActionDestroy, "db/x#1")
	b.must(err)
	_, err = b.Approve(alice, "alice", p.Change)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Approve(bob, "bob", p.Change)
	b.must(err)
	sec, _ := b.Env.State().Secrets.Get("db/x")
	if st := sec.Find(1).State; st != state.Destroyed {
		t.Fatalf("version 1 is %s", st)
	}
	if st := sec.Find(2).StateAt(state.At(b.Now())); st == state.Destroyed {
		t.Fatal("version 2 is destroyed too")
	}
	if ch, _ := b.Env.State().Changes.Get(p.Index); ch.State != state.Done {
		t.Errorf("the change is %s", ch.State)
	}
	again, err := b.act("alice", control.ActionDestroy, "db/x#1")
	if err == nil {
		_, err = b.Approve(bob, "bob", again.Change)
	}
	b.refused(err, problem.ReasonLifecycle)
	b.inForce(1)
}

// Duties say who may approve what.
func TestDutiesByAct(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.Files["operators.yaml"] = b.operators(map[string]string{
		"alice": "propose, approve, revoke", "bob": "propose, approve-bundles", "carol": "propose, approve-containment, approve-secrets",
	})
	_, err := b.Approve(b.by["bob"], "bob", b.propose("alice", "duties"))
	b.must(err)

	ch := b.propose("alice", "x")
	_, err = b.Approve(b.by["carol"], "carol", ch)
	b.refused(err, problem.ReasonDuty)
	_, err = b.Env.Reject(context.Background(), b.by["carol"].Caller, ch.Index, "no")
	b.refused(err, problem.ReasonDuty)
	for person, want := range map[string]int{"alice": 0, "bob": 1, "carol": 0} {
		mine, err := b.Env.ListChanges(context.Background(), b.by[person].Caller, control.ChangeFilter{Mine: true})
		if err != nil || len(mine) != want {
			t.Errorf("%d changes wait for %s: %v", len(mine), person, err)
		}
	}
	_, err = b.Approve(b.by["bob"], "bob", ch)
	b.must(err)

	const scope = "identity:/workload/api"
	b.revoke("alice", scope)
	p, err := b.act("alice", control.ActionLiftHold, b.Hold(scope))
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.refused(err, problem.ReasonDuty)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	b.inForce(3)
}

// Where hardware-backed keys are asked for, a signature by a file's key is none.
func TestHardwareKeys(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol", "dave")
	files := b.with("environment.yaml", strings.Replace(string(b.Files["environment.yaml"]), "approvals: {required: 1}",
		"approvals: {required: 1, acts: [{act: hold.lift, keys: hardware}]}", 1))
	_, err := b.Propose(b.by["alice"], "alice", files)
	b.refused(err, problem.ReasonBundleInvalid) // nobody has such a key
	operators := string(files["operators.yaml"])
	for _, person := range []string{"bob", "carol"} {
		token := newSecurityKey(t)
		b.Persons[person+"'s token"] = token
		operators = strings.Replace(operators, "- name: "+person+"\n      keys: [",
			fmt.Sprintf("- name: %s\n      keys: [%q, ", person, bytes.TrimSpace(ssh.MarshalAuthorizedKey(token.PublicKey()))), 1)
	}
	files["operators.yaml"] = []byte(operators)
	p, err := b.Propose(b.by["alice"], "alice", files)
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.refused(err, problem.ReasonSeparation) // it gives him a key
	_, err = b.Approve(b.by["dave"], "dave", p.Change)
	b.must(err)

	const scope = "identity:/workload/api"
	b.revoke("alice", scope)
	lift, err := b.act("alice", control.ActionLiftHold, b.Hold(scope))
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", lift.Change)
	b.refused(err, problem.ReasonSeparation)
	text := b.Approval("carol", lift.Change).Text()
	_, err = b.Env.Approve(context.Background(), b.by["carol"].Caller, control.ApproveRequest{
		Change: lift.Index, Text: text, SSHSIG: b.Sign("carol's token", ceremony.NamespaceChange, text),
	})
	b.must(err)
	if b.Env.State().Holds.Has(scope) {
		t.Error("the hold stands")
	}
	b.inForce(2)
}

// securityKey signs as a FIDO token does that was touched (OpenSSH's PROTOCOL.u2f).
type securityKey struct {
	public ssh.PublicKey
	key    ed25519.PrivateKey
}

const application = "ssh:"

func newSecurityKey(t *testing.T) *securityKey {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type   string
		Public []byte
		App    string
	}{ssh.KeyAlgoSKED25519, public, application}))
	if err != nil {
		t.Fatal(err)
	}
	return &securityKey{parsed, key}
}

func (k *securityKey) PublicKey() ssh.PublicKey { return k.public }

func (k *securityKey) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	rest := []byte{1, 0, 0, 0, 9} // touched; counter
	app, message := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	signed := slices.Concat(app[:], rest, message[:])
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.key, signed), Rest: rest}, nil
}

// Nobody decides about his own reach: not by approving, and not by rolling back what took it away.
func TestOwnReach(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	grant := func(name string) policy.Files {
		return b.with("grants/own.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: own}\nspec: {actions: [secret.read], identities: [/human/"+name+"], secrets: [db/x], purposes: [runtime]}\n")
	}
	p, err := b.Propose(b.by["alice"], "alice", grant("bob"))
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", p.Change)
	b.refused(err, problem.ReasonSeparation)
	if !strings.Contains(err.Error(), "/human/bob gains secret.read on db/x") {
		t.Errorf("the reason is %v", err)
	}
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	gone, err := b.Propose(b.by["alice"], "alice", b.Files)
	b.must(err)
	_, err = b.Approve(b.by["bob"], "bob", gone.Change) // he loses by it
	b.must(err)
	back := control.RollbackRequest{Change: gone.Index, Reason: "I want it"}
	_, err = b.Env.RollBack(context.Background(), b.by["bob"].Caller, back)
	b.refused(err, problem.ReasonSeparation)
	_, err = b.Env.RollBack(context.Background(), b.by["carol"].Caller, back)
	b.must(err)
	b.inForce(4)
}

// A bundle whose own tests fail is not proposed.
func TestBundleTestsAtPropose(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	test := "apiVersion: bailment/v1\nkind: Test\nmetadata: {name: t}\nspec:\n  cases:\n    - {name: api, identity: /workload/api, node: /node/join-token/n, assurance: token, secret: db/x, expect: %s}\n"
	_, err := b.Propose(b.by["alice"], "alice", b.with("tests/t.yaml", fmt.Sprintf(test, "deny")))
	b.refused(err, problem.ReasonBundleInvalid)
	if !strings.Contains(err.Error(), "tests/t.yaml") {
		t.Errorf("the reason is %v", err)
	}
	_, err = b.Propose(b.by["alice"], "alice", b.with("tests/t.yaml", fmt.Sprintf(test, "allow")))
	b.must(err)
}

// Neither is one whose limits on reach are broken.
func TestBundleLimitsAtPropose(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob")
	limit := "apiVersion: bailment/v1\nkind: Test\nmetadata: {name: t}\nspec:\n  limits:\n    - {name: api stays out of it, from: [/workload/api], to: [%s]}\n"
	_, err := b.Propose(b.by["alice"], "alice", b.with("tests/t.yaml", fmt.Sprintf(limit, "db/*")))
	b.refused(err, problem.ReasonBundleInvalid)
	_, err = b.Propose(b.by["alice"], "alice", b.with("tests/t.yaml", fmt.Sprintf(limit, "node/*")))
	b.must(err)
}

// The number of a change can be foreseen: who approves before it is there, or rolls back before it is in force, is weighed all the same.
func TestOwnReachIsWeighedAtTheHead(t *testing.T) {
	b := newBoard(t, 2, "alice", "bob", "carol", "dave")
	own := b.with("grants/own.yaml", "apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: own}\nspec: {actions: [secret.read], identities: [/human/bob], secrets: [db/x], purposes: [runtime]}\n")
	p, err := b.Propose(b.by["alice"], "alice", own)
	b.must(err)
	text := b.Approval("bob", p.Change).Text()
	r := control.ApproveRequest{Change: p.Index, Text: text, SSHSIG: b.Sign("bob", ceremony.NamespaceChange, text)}
	if err := b.Env.ApproveUnweighed(b.by["bob"].Caller, "bob", r); !errors.Is(err, control.ErrStale) {
		t.Errorf("it was decided without asking what he gains: %v", err)
	}
	for _, person := range []string{"carol", "dave"} {
		_, err = b.Approve(b.by[person], person, p.Change)
		b.must(err)
	}
	gone, err := b.Propose(b.by["alice"], "alice", b.Files)
	b.must(err)
	for _, person := range []string{"carol", "dave"} {
		_, err = b.Approve(b.by[person], person, gone.Change)
		b.must(err)
	}
	if err := b.Env.RollBackUnweighed(b.by["bob"].Caller, control.RollbackRequest{Change: gone.Index, Reason: "x"}); !errors.Is(err, control.ErrStale) {
		t.Errorf("it was rolled back without asking what he gains: %v", err)
	}
	b.inForce(3)
}
