package control_test

import (
	"bytes"
	"context"
	"maps"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
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
