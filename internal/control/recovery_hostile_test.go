package control_test

import (
	"bytes"
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
)

// newProduction are custodians of an environment of the class production.
func newProduction(t *testing.T, spec string, more policy.Files) *custodians {
	t.Helper()
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := file.Create(t.TempDir()+"/root.key", src)
	if err != nil {
		t.Fatal(err)
	}
	const releases = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBwiBcxF9wiBbT2I9ADzUUQ/IfPSuTLWzeIsKeWtFrzy"
	extra := policy.Files{"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + controltest.EnvName +
		"}\nspec:\n  class: production\n  agents: {signers: ['" + releases + "']}\n" + spec)}
	maps.Copy(extra, more)
	c := &custodians{board: newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Class: "production", Quorum: 1, Holder: sturdy{holder}, Extra: extra})}
	c.Files["environment.yaml"] = c.Recoverable(c.Files["environment.yaml"], 2, recoveryDelay, "rita", "sam", "tess")
	c.bring("alice", "bob", c.Files)
	c.AddPerson("dora")
	c.AddPerson("erin")
	c.operators = c.Operators("carol", "dora", "erin")
	return c
}

// One person can make a rollback, so none may bring back what a recovery can't be carried out over: here a break-glass grant that only one
// of the new operators could review.
func TestRollbackDoesNotBlockRecovery(t *testing.T) {
	c := newProduction(t, "  notify: [{name: all, on: [break-glass, recovery], webhook: {url: 'https://example.org/hook'}}]\n",
		policy.Files{"grants/glass.yaml": bytes.Replace(controltest.GlassGrant("glass", 30, "alice", "bob"), []byte("[secret.read]"), []byte("[secret.read, secret.write]"), 1)})
	without := maps.Clone(c.Files)
	delete(without, "grants/glass.yaml")
	ch := c.bring("alice", "bob", without)
	c.operators = bytes.ReplaceAll(c.operators, []byte(", audit]"), []byte("]"))
	c.begin()
	_, err := c.Env.RollBack(context.Background(), c.by["carol"].Caller, control.RollbackRequest{Change: ch.Index, Reason: "so that it can't be"})
	c.must(err)
	if _, ok := c.Env.Program().Glass("glass"); !ok {
		t.Fatal("the grant is not back")
	}
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	if !c.isOperator("dora") || c.isOperator("alice") {
		t.Error("it was not carried out")
	}
	c.Reopen()
	c.consistent()
}

// Who is recovered from sees the recovery coming, and whom it names. He can't hold so many of them that nobody could change anything, or
// lift those holds, when it is carried out.
func TestNobodyHoldsThoseWhoRecover(t *testing.T) {
	c := newCustodians(t)
	hold := func(scope string) error {
		_, err := c.Env.Revoke(context.Background(), c.by["alice"].Caller, control.RevokeRequest{Scope: scope, Reason: "mine alone"})
		return err
	}
	c.begin()
	c.must(hold("issuer:ssh:" + sshsig.Fingerprint(c.Persons["dora"].PublicKey())))
	recoveryRefused(t, hold("identity:/human/carol"), problem.ReasonLastQuorum)
	recoveryRefused(t, hold("identity:/human/erin"), problem.ReasonLastQuorum)
	recoveryRefused(t, hold("issuer:ssh:"+sshsig.Fingerprint(c.Persons["erin"].PublicKey())), problem.ReasonLastQuorum)
	c.must(hold("identity:/human/bob")) // who is not among them
	// The same after a start, and over a rollback.
	c.Reopen()
	c.by["alice"] = c.Login("alice")
	recoveryRefused(t, hold("identity:/human/erin"), problem.ReasonLastQuorum)
	c.Advance(recoveryDelay + time.Hour)
	c.carryOut()
	_, now := c.InForce()
	p, err := c.Propose(c.Login("carol"), "carol", c.withFiles(now, "README.md", "after"))
	c.must(err)
	_, err = c.Approve(c.Login("erin"), "erin", p.Change)
	c.must(err)
	c.consistent()
}

// Nor does a recovery begin whose operators are held already: they would be operators, and could do nothing.
func TestRecoveryOfHeldPersons(t *testing.T) {
	c := newCustodians(t)
	for _, scope := range []string{"identity:/human/dora", "issuer:ssh:" + sshsig.Fingerprint(c.Persons["erin"].PublicKey())} {
		_, err := c.Env.Revoke(context.Background(), c.by["alice"].Caller, control.RevokeRequest{Scope: scope, Reason: "whom I expect"})
		c.must(err)
	}
	_, err := c.Recover(c.RecoveryOf(c.operators), c.operators, "rita", "sam")
	recoveryRefused(t, err, problem.ReasonLastQuorum)
	if p := problem.As(err); p == nil || !strings.Contains(p.Fix, "dora, erin") {
		t.Errorf("it doesn't say whom: %v", p)
	}
	c.AddPerson("fred")
	c.operators = c.Operators("carol", "dora", "fred")
	c.begin()
}
