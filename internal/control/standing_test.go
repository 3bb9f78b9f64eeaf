package control_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/store"
)

// gate holds one append, and fails the one after it.
type gate struct {
	armed, fail      atomic.Bool
	entered, release chan struct{}
}

type gatedStore struct {
	store.Store
	g *gate
}

func (x gatedStore) Append(ctx context.Context, b *store.Batch) error {
	if x.g.armed.CompareAndSwap(true, false) {
		close(x.g.entered)
		<-x.g.release
		return x.Store.Append(ctx, b)
	}
	if x.g.fail.CompareAndSwap(true, false) {
		return fmt.Errorf("%w: %w", store.ErrNotDone, store.ErrFull)
	}
	return x.Store.Append(ctx, b)
}

// What a decision remembers of a session that was never committed does not serve the one that takes its index.
func TestClaimsOfFailedBatch(t *testing.T) {
	g := &gate{entered: make(chan struct{}), release: make(chan struct{})}
	w := controltest.New(t, controltest.Options{Wrap: func(s store.Store) store.Store { return gatedStore{s, g} }, Extra: policy.Files{
		"grants/more.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: only-n1}
spec:
  actions: [secret.read]
  identities: [/node/*]
  secrets: [db/*]
  purposes: [runtime]
  when: claims.name == "n1"
`),
	}})
	ctx := context.Background()
	alice := w.Login("alice")
	w.Put(alice, "db/a", "secret of n1")
	n1 := w.Node(alice, "n1")
	api := w.Workload(n1, "")
	token := w.Token(alice, "evil", time.Hour)

	// In one batch: a renewal of n1, and a decision that asks for the claims of n1's newest session.
	g.armed.Store(true)
	done := make(chan error, 3)
	go func() {
		_, err := w.Env.Put(ctx, alice.Caller, control.PutRequest{Secret: "db/b", Value: seal.NewSecret([]byte("x"))})
		done <- err
	}()
	<-g.entered
	queued := func(n int, act func() error) {
		go func() { done <- act() }()
		for w.Env.Ledger().QueueLength() < n {
			time.Sleep(time.Millisecond) //arch:allow sleep: the queue has no signal to wait for
		}
	}
	key, _ := controltest.Key(t)
	queued(1, func() error { _, err := w.Renew(n1, key); return err })
	queued(2, func() error {
		_, err := w.Env.Get(ctx, api.Caller, control.GetRequest{Secret: "db/a"})
		return err
	})
	g.fail.Store(true)
	close(g.release)
	failed := 0
	for range 3 {
		if err := <-done; err != nil {
			failed++
		}
	}
	if failed != 2 {
		t.Fatalf("%d of the batch's requests failed, not both", failed)
	}
	for w.Env.Ledger().Ready() != nil {
		time.Sleep(time.Millisecond) //arch:allow sleep: reloading has no signal to wait for
	}

	// Another machine's session takes the index that n1's renewal would have had.
	_, _, err := w.Get(w.Join(token), "db/a")
	wantReason(t, err, problem.ReasonCondition)
	soundLedger(t, w)
}

const elsewhere = `apiVersion: bailment/v1
kind: Identity
metadata: {name: api}
spec: {method: workload, path: /workload/api, nodes: [/node/join-token/special]}
`

// Who speaks for whom is asked of the bundle in force in each decision, not only when a session is opened.
func TestRulesRemovedUnderSession(t *testing.T) {
	for name, c := range map[string]struct {
		path, text string
		node, work problem.Reason
	}{
		"the node may no longer speak for it": {"identities/work.yaml", elsewhere, "", problem.ReasonForeignNode},
		"the workload is nobody":              {"identities/work.yaml", strings.Replace(elsewhere, "special]", "*], when: claims.unix.uid == 0", 1), "", problem.ReasonNoIdentity},
		"the node is nobody": {
			"identities/node.yaml", "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec:\n  method: join-token\n  path: /node/join-token/{claims.name}\n  when: claims.name != \"web-1\"\n",
			problem.ReasonNoIdentity, problem.ReasonNoIdentity,
		},
		"the node is another": {
			"identities/node.yaml", "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec:\n  method: join-token\n  path: /node/join-token/new/{claims.name}\n",
			problem.ReasonNoIdentity, problem.ReasonNoIdentity,
		},
		"nothing that concerns them": {"README.md", "hello", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{})
			alice := w.Login("alice")
			w.Put(alice, "db/a", "v")
			w.Put(alice, "node/key", "v")
			node := w.Node(alice, "web-1")
			api := w.Workload(node, "")
			if _, _, err := w.Get(api, "db/a"); err != nil {
				t.Fatal(err)
			}
			before := w.Files
			bring(t, w, alice, c.path, c.text)
			judge := func(actor controltest.Actor, secret string, want problem.Reason) {
				t.Helper()
				for range 2 { // decided, and remembered
					if _, _, err := w.Get(actor, secret); (err == nil) != (want == "") || (err != nil && !problem.Is(err, want)) {
						t.Errorf("%s reads %s: %v, want %q", actor.Opened.Identity, secret, err, want)
					}
				}
				x, err := w.Env.Explain(context.Background(), alice.Caller, control.ExplainRequest{Identity: actor.Opened.Identity.Path(), Action: policy.ReadSecret, Secret: secret})
				if err != nil {
					t.Fatal(err)
				}
				if (x.Problem == nil) != (want == "") || (x.Problem != nil && x.Problem.Reason != want) {
					t.Errorf("explained: %v, want %q", x.Problem, want)
				}
			}
			judge(node, "node/key", c.node)
			judge(api, "db/a", c.work)
			if c.node != "" {
				_, err := w.TryWorkload(node, "")
				wantReason(t, err, c.node)
			}
			soundLedger(t, w)
			// And back again.
			if old, had := before[c.path]; had {
				bring(t, w, alice, c.path, string(old))
				judge(node, "node/key", "")
				judge(api, "db/a", "")
				soundLedger(t, w)
			}
		})
	}
}
