package audit_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
)

// What the grants were asked is rebuilt from the entries, so that the bundle that governed answers the same again.
func TestDecisions(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	w.Put(alice, "db/password", "correct horse")
	if _, _, err := w.Get(api, "db/password"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Get(node, "db/password"); err == nil {
		t.Fatal("the node may not")
	}
	w.Advance(time.Hour / 2)
	since := w.Now()
	w.Advance(time.Second)
	api = w.Workload(node, "")
	if _, _, err := w.Get(api, "db/password"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Get(api, "node/seed"); err == nil {
		t.Fatal("it may not")
	}
	stored := w.Stored()
	var prog *policy.Program
	for _, p := range w.Programs() {
		prog = p
	}
	l := audit.Ledger{Size: uint64(len(stored)), Entries: func(_ context.Context, from uint64, limit int, fn func(uint64, store.Entry) error) error {
		for i := from; i < min(from+uint64(limit), uint64(len(stored))); i++ {
			if err := fn(i, stored[i]); err != nil {
				return err
			}
		}
		return nil
	}}
	collect := func(since time.Time) (out []policy.Recorded) {
		for r, err := range audit.Decisions(ctx, l, since) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return out
	}
	all := collect(time.Time{})
	var got []string
	for _, r := range all {
		d := prog.Again(&r)
		if d.Allow != r.Allowed || d.Grant != r.Grant || d.Reason != r.Reason {
			t.Errorf("entry %d: %+v, and it says %v %s %s", r.Index, d, r.Allowed, r.Grant, r.Reason)
		}
		got = append(got, string(r.Input.Action)+" "+r.Input.Identity+" "+string(r.Reason))
	}
	want := []string{
		"secret.write /human/alice ", "secret.read /workload/api ", "secret.read /node/join-token/web-1 no-grant",
		"secret.read /workload/api ", "secret.read /workload/api no-grant",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if late := collect(since); len(late) != 2 || late[0].Index != all[3].Index || late[0].Proof.Identity != node.Opened.Identity.Path() {
		t.Errorf("since then: %+v", late)
	}
	for range audit.Decisions(ctx, l, time.Time{}) {
		break // and no more is asked of whoever stops
	}

	// What can't be read ends it, with the entry's number.
	stored[len(stored)-1] = store.Entry{Commitment: []byte("gone")}
	failed := 0
	for _, err := range audit.Decisions(ctx, l, time.Time{}) {
		if problem.Is(err, problem.ReasonTampered) {
			failed++
		}
	}
	l.Size++
	stored = stored[:len(stored)-1]
	for _, err := range audit.Decisions(ctx, l, time.Time{}) {
		if problem.Is(err, problem.ReasonTampered) {
			failed++
		}
	}
	if failed != 2 {
		t.Errorf("%d of 2 failures", failed)
	}
}
