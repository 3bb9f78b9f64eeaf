package control_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// alarms collects what the runner reports.
type alarms struct {
	mu   sync.Mutex
	by   map[string]int
	wake chan struct{}
}

func newAlarms() *alarms { return &alarms{by: map[string]int{}, wake: make(chan struct{}, 100)} }

func (a *alarms) ring(invariant, _ string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.by[invariant]++
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *alarms) count(invariant string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.by[invariant]
}

// watched is a world whose violations ring.
func watched(t *testing.T, o controltest.Options) (*controltest.World, *alarms, *syncBuffer) {
	t.Helper()
	w := controltest.New(t, o)
	a, log := newAlarms(), &syncBuffer{}
	w.Config.OnViolation = a.ring
	w.Config.Logger = slog.New(slog.NewTextHandler(log, nil))
	w.Reopen()
	return w, a, log
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestChecksOfRealHistory(t *testing.T) {
	w, a, _ := watched(t, controltest.HistoryOptions)
	controltest.History(w)
	ctx := context.Background()
	next, found, err := w.Env.Check(ctx)
	if err != nil || len(found) > 0 || next != w.Env.Ledger().Size() {
		t.Fatalf("%d of %d entries, %v, %v", next, w.Env.Ledger().Size(), found, err)
	}
	if found, err = w.Env.Replay(ctx); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	s := w.Env.CheckStatus()
	if s.Checked != s.Size || s.Replayed != s.Size || s.Violations != 0 || len(a.by) != 0 {
		t.Fatalf("%+v %v", s, a.by)
	}
}

// A defect that gets past the decision is found by the running check, and service goes on.
func TestChecksFindPlanted(t *testing.T) {
	w, a, log := watched(t, controltest.Options{})
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/a", "one")
	if _, _, err := w.Get(api, "db/a"); err != nil {
		t.Fatal(err)
	}
	s := w.Env.State()
	sec, _ := s.Secrets.Get("db/a")
	wrong := &state.SecretReleased{
		Secret: "db/a", Version: 1, Digest: sec.Versions[0].Digest, Purpose: "runtime", Assurance: "key", Root: alice.Opened.Index,
		Expires: state.At(w.Now().Add(time.Minute)), Max: state.At(w.Now().Add(time.Minute)),
		Actor: state.Actor{Identity: "/human/alice", Session: alice.Opened.Index}, Ruling: state.Ruling{Generation: 1, Bundle: s.Bundle, Grant: "provision", Evaluator: 1},
	}
	if err := w.Commit(wrong); err != nil {
		t.Fatal(err)
	}
	select { // nobody asked: the background found it
	case <-a.wake:
	case <-time.After(20 * time.Second):
		t.Fatal("the runner did not ring")
	}
	if _, _, err := w.Env.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
	if a.count("permitted") != 1 || a.count("attested") != 1 {
		t.Fatalf("rang %v", a.by)
	}
	if !strings.Contains(log.String(), "an invariant is violated") {
		t.Fatal("it is not in the log")
	}
	if _, _, err := w.Get(api, "db/a"); err != nil {
		t.Fatalf("service stopped: %v", err)
	}
	if n := w.Env.CheckStatus().Violations; n != 2 {
		t.Fatalf("%d violations counted", n)
	}
}

// A value that was handed out without its entry is found by the counters.
func TestChecksCountDeliveries(t *testing.T) {
	w, a, _ := watched(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	w.Put(alice, "db/a", "one")
	for range 5 {
		if _, _, err := w.Get(api, "db/a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, found, err := w.Env.Check(ctx); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	w.Env.DeliverUnrecorded()
	if _, found, err := w.Env.Check(ctx); err != nil || len(found) != 1 || a.count("recorded") != 1 {
		t.Fatal(found, err)
	}
	w.Reopen() // counts begin anew with what is entered from there on
	if _, _, err := w.Get(api, "db/a"); err != nil {
		t.Fatal(err)
	}
	if _, found, err := w.Env.Check(ctx); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
}

// A stored byte that changed under the running server is found when it is read back.
func TestChecksFindDamage(t *testing.T) {
	var tamper tampering
	o := controltest.Options{Wrap: func(s store.Store) store.Store { return &tampered{s, &tamper} }}
	w, a, _ := watched(t, o)
	ctx := context.Background()
	w.Put(w.Login("alice"), "db/a", "one")
	if found, err := w.Env.Replay(ctx); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	tamper.set(2)
	found, err := w.Env.Replay(ctx)
	if err != nil || len(found) != 1 || a.count("replayable") != 1 {
		t.Fatal(found, err)
	}
	tamper.set(0)
	if found, err := w.Env.Replay(ctx); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
}

type tampering struct {
	mu    sync.Mutex
	index uint64
}

func (x *tampering) set(i uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.index = i
}

func (x *tampering) is(i uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.index != 0 && x.index == i
}

type tampered struct {
	store.Store
	what *tampering
}

func (s *tampered) Entries(ctx context.Context, from uint64, limit int, fn func(uint64, store.Entry) error) error {
	return s.Store.Entries(ctx, from, limit, func(i uint64, e store.Entry) error {
		if s.what.is(i) {
			e.Body = bytes.Replace(e.Body, []byte(`"time"`), []byte(`"tine"`), 1)
		}
		return fn(i, e)
	})
}

// Start and stop do not leave the runners behind, and a closed environment reports nothing.
func TestChecksEnd(t *testing.T) {
	w, a, log := watched(t, controltest.Options{})
	for range 3 {
		w.Reopen()
	}
	if len(a.by) > 0 || strings.Contains(log.String(), "invariant") {
		t.Fatal(a.by, log.String())
	}
}
