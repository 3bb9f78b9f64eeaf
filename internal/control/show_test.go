package control_test

import (
	"context"
	"testing"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
)

// A workload is held by the hold on its machine, and showing it says so: its state and the why of it are never two opinions.
func TestShowSaysWhyAWorkloadIsHeld(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	workload := w.Workload(node, "").Opened.Identity.Path()
	const why = "odd traffic"
	if _, err := w.Env.Revoke(context.Background(), alice.Caller, control.RevokeRequest{Scope: "node:/node/join-token/web-1", HoldOnly: true, Reason: why}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/node/join-token/web-1", workload} {
		x, err := w.Env.ShowIdentity(context.Background(), alice.Caller, path)
		if err != nil {
			t.Fatal(err)
		}
		if x.State != "held" || x.Hold == nil || x.Hold.Reason != why {
			t.Errorf("%s: %s, by %+v", path, x.State, x.Hold)
		}
	}
}
