package invariant_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

const machines = 2

var (
	secretPaths = []string{"db/a", "db/b"}
	purposes    = []string{"runtime", "migration"}
	scopes      = []string{"identity:/workload/api", "identity:/workload/*", "node:/node/join-token/m0", "node:/node/*", "secret:db/a", "secret:*", "everything"}
)

// TestMain keeps the random histories few by default: each founds an environment. -rapid.checks=N asks for more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// sim is an environment beside a model that fits into maps.
type sim struct {
	t     *rapid.T
	w     *controltest.World
	ctx   context.Context
	alice controltest.Actor
	nodes [machines]controltest.Actor
	api   [machines]controltest.Actor

	// The model.
	nodeLive, apiLive [machines]bool
	values            map[string][]string // by version, from 1
	current           map[string]int
	leases            map[leaseOf]given
	nodeRoot, apiRoot [machines]uint64 // enrolments
	holds             map[string]bool
	keys              map[string]firstGet
	serial            int
}

// given is a lease and the enrolment that it derives from: another enrolment gets its own.
type given struct {
	id, root uint64
}

type leaseOf struct {
	machine int
	path    string
	version int
	purpose string
}

type firstGet struct {
	request string
	lease   leaseOf
	id      uint64
}

func (s *sim) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *sim) refused(err error, what string) {
	s.t.Helper()
	if err == nil {
		s.t.Fatalf("%s went through", what)
	}
	if k := problem.As(err).Kind; k == problem.Internal || k == problem.Unavailable {
		s.t.Fatalf("%s: %v", what, err)
	}
}

func (s *sim) held(scopes ...string) bool {
	return slices.ContainsFunc(scopes, func(x string) bool { return s.holds[x] })
}

func (s *sim) nodeHeld(m int) bool {
	return s.held("everything", "node:/node/*") || (m == 0 && s.held("node:/node/join-token/m0"))
}

func (s *sim) apiHeld(m int) bool {
	return s.nodeHeld(m) || s.held("identity:/workload/api", "identity:/workload/*")
}

func (s *sim) join(m int) {
	tok := s.w.Token(s.alice, fmt.Sprintf("m%d", m), time.Hour)
	key, _ := controltest.Key(s.w.T)
	o, err := s.w.TryJoin(tok, key)
	if s.nodeHeld(m) {
		s.refused(err, "joining under a hold")
		return
	}
	s.check(err)
	s.nodes[m], s.nodeLive[m], s.nodeRoot[m] = s.w.Enter(key, o), true, o.Index
}

func (s *sim) work(m int) {
	a, err := s.w.TryWorkload(s.nodes[m], "/workload/api")
	if !s.nodeLive[m] || s.apiHeld(m) {
		s.refused(err, "a workload on a dead or held node")
		return
	}
	s.check(err)
	s.api[m], s.apiLive[m], s.apiRoot[m] = a, true, s.nodeRoot[m]
}

func (s *sim) put(path string, stage bool) {
	s.serial++
	value := fmt.Sprintf("value %d", s.serial)
	out, err := s.w.Env.Put(s.ctx, s.alice.Caller, control.PutRequest{Secret: path, Value: seal.NewSecret([]byte(value)), Stage: stage})
	if s.held("secret:*") || (path == "db/a" && s.held("secret:db/a")) {
		s.refused(err, "writing under a hold")
		return
	}
	s.check(err)
	s.values[path] = append(s.values[path], value)
	if out.Version != uint64(len(s.values[path])) {
		s.t.Fatalf("version %d of %s", out.Version, path)
	}
	if !stage {
		s.current[path] = len(s.values[path])
	}
}

func (s *sim) get(m int, path, purpose, key string) {
	r := control.GetRequest{Secret: path, Purpose: purpose}
	r.Key = key // on each machine its own
	out, err := s.w.Env.Get(s.ctx, s.api[m].Caller, r)
	request := path + " " + purpose
	mine := fmt.Sprintf("m%d-%s", m, key)
	first, again := s.keys[mine]
	of := leaseOf{m, path, s.current[path], purpose}
	switch {
	case !s.apiLive[m], s.apiHeld(m), s.held("secret:*"), path == "db/a" && s.held("secret:db/a"):
		s.refused(err, "reading when dead or held")
		return
	case again && first.request != request:
		if !problem.Is(err, problem.ReasonKeyReused) {
			s.t.Fatalf("another request under one key: %v", err)
		}
		return
	case again:
		if of = first.lease; s.leases[of] != (given{first.id, s.apiRoot[m]}) {
			s.refused(err, "a retry of a read whose lease is over")
			return
		}
	case s.current[path] == 0:
		if !problem.Is(err, problem.ReasonNoVersion) {
			s.t.Fatalf("reading nothing: %v", err)
		}
		return
	}
	s.check(err)
	if got := string(out.Value.Expose()); got != s.values[path][of.version-1] || int(out.Version) != of.version {
		s.t.Fatalf("got version %d, %q; want version %d, %q", out.Version, got, of.version, s.values[path][of.version-1])
	}
	if had, ok := s.leases[of]; ok && had.root == s.apiRoot[m] && had.id != out.Lease {
		s.t.Fatalf("lease %d beside %d", out.Lease, had.id)
	}
	s.leases[of] = given{out.Lease, s.apiRoot[m]}
	if r.Key != "" && !again {
		s.keys[mine] = firstGet{request, of, out.Lease}
	}
}

func (s *sim) giveBack(m int) {
	for of, l := range s.leases {
		if of.machine != m || !s.apiLive[m] {
			continue
		}
		_, err := s.w.Env.ReturnLease(s.ctx, s.api[m].Caller, l.id)
		s.check(err)
		delete(s.leases, of)
		return
	}
}

func (s *sim) renewLease(m int) {
	for of, l := range s.leases {
		if of.machine != m {
			continue
		}
		_, err := s.w.Env.RenewLease(s.ctx, s.api[m].Caller, l.id)
		if !s.apiLive[m] || s.apiHeld(m) || s.held("secret:*") || (of.path == "db/a" && s.held("secret:db/a")) {
			s.refused(err, "renewing when dead or held")
			return
		}
		s.check(err)
		return
	}
}

func (s *sim) revoke(scope string, hold bool) {
	out, err := s.w.Env.Revoke(s.ctx, s.alice.Caller, control.RevokeRequest{Scope: scope, Hold: &hold, Reason: "random"})
	s.check(err)
	if !out.Cutoff {
		s.t.Fatal("few identities, and no cutoff")
	}
	if hold {
		s.holds[scope] = true
	}
	for m := range machines {
		node := scope == "everything" || scope == "node:/node/*" || (m == 0 && scope == "node:/node/join-token/m0")
		if node {
			s.nodeLive[m] = false
		}
		if node || scope == "identity:/workload/api" || scope == "identity:/workload/*" {
			s.apiLive[m] = false
			s.forget(func(of leaseOf) bool { return of.machine == m })
		}
	}
	switch scope {
	case "secret:db/a":
		s.forget(func(of leaseOf) bool { return of.path == "db/a" })
	case "secret:*":
		s.forget(func(leaseOf) bool { return true })
	case "everything":
		s.alice = s.w.Login("alice")
	}
}

func (s *sim) forget(which func(leaseOf) bool) {
	for of := range s.leases {
		if which(of) {
			delete(s.leases, of)
		}
	}
}

func (s *sim) lift(scope string) {
	if !s.holds[scope] {
		return
	}
	text := s.w.Change("alice", control.ActionLiftHold, s.w.Hold(scope), nil).Text()
	p, err := s.w.Env.Propose(s.ctx, s.alice.Caller, control.ProposeRequest{Text: text, SSHSIG: s.w.Sign("alice", ceremony.NamespaceChange, text)})
	s.check(err)
	_, err = s.w.Approve(s.alice, "alice", p.Change)
	s.check(err)
	delete(s.holds, scope)
}

func (s *sim) restart() {
	before := digest(s.t, s.w.Env.State())
	s.w.Reopen()
	if after := digest(s.t, s.w.Env.State()); after != before {
		s.t.Fatal("the state did not survive a restart")
	}
}

// wait lets everything that is short-lived end.
func (s *sim) wait() {
	s.w.Advance(26 * time.Hour)
	s.alice = s.w.Login("alice")
	s.nodeLive, s.apiLive = [machines]bool{}, [machines]bool{}
	clear(s.leases)
	clear(s.keys)
}

func digest(t interface{ Fatal(...any) }, st *state.State) state.Digest {
	var b bytesOf
	if err := st.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return state.RootOf(b)
}

type bytesOf []byte

func (b *bytesOf) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

func (s *sim) step() {
	m := rapid.IntRange(0, machines-1).Draw(s.t, "machine")
	path := rapid.SampledFrom(secretPaths).Draw(s.t, "secret")
	// Reads are most of it.
	switch rapid.SampledFrom([]string{"get", "get", "get", "get", "get", "put", "stage", "join", "work", "work", "return", "renew", "revoke", "lift", "restart", "wait"}).Draw(s.t, "do") {
	case "get":
		key := rapid.SampledFrom([]string{"", "", "k1", "k2"}).Draw(s.t, "key")
		s.get(m, path, rapid.SampledFrom(purposes).Draw(s.t, "purpose"), key)
	case "put":
		s.put(path, false)
	case "stage":
		s.put(path, true)
	case "join":
		s.join(m)
	case "work":
		s.work(m)
	case "return":
		s.giveBack(m)
	case "renew":
		s.renewLease(m)
	case "revoke":
		s.revoke(rapid.SampledFrom(scopes).Draw(s.t, "scope"), rapid.Bool().Draw(s.t, "hold"))
	case "lift":
		s.lift(rapid.SampledFrom(scopes).Draw(s.t, "scope"))
	case "restart":
		s.restart()
	case "wait":
		s.wait()
	}
}

// Random operations on a real environment do what a model of a few maps does; its entries violate nothing, and replayed
// they give the state in force. Entries cut off, swapped or repeated are noticed.
func TestRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := controltest.New(t, controltest.Options{})
		defer func() {
			if w.Env != nil {
				w.Close()
			}
		}()
		s := &sim{
			t: rt, w: w, ctx: context.Background(), alice: w.Login("alice"), values: map[string][]string{}, current: map[string]int{},
			leases: map[leaseOf]given{}, holds: map[string]bool{}, keys: map[string]firstGet{},
		}
		for m := range machines {
			s.join(m)
			s.work(m)
		}
		s.put("db/a", false)
		for range rapid.IntRange(10, 60).Draw(rt, "steps") {
			s.step()
		}
		live := 0
		w.Env.State().LeaseOf.All(func(_ string, id uint64) bool { // those of older enrolments stay, and nobody reads under them
			l, _ := w.Env.State().Leases.Get(id)
			if _, _, dead := w.Env.State().CutoffOver(state.SubjectOfLease(l)); !dead && l.Live(state.At(w.Now())) {
				live++
			}
			return true
		})
		if live != len(s.leases) {
			rt.Fatalf("%d live leases, the model has %d", live, len(s.leases))
		}
		r := record(t, w)
		c := r.checker()
		for i, e := range r.entries {
			for _, v := range c.Feed(uint64(i), e) {
				rt.Error(v)
			}
		}
		for _, v := range invariant.Replay(r.all(), r.state) {
			rt.Error(v)
		}
		s.damaged(r)
	})
}

// damaged plays the entries with some cut off, swapped or repeated.
func (s *sim) damaged(r *real) {
	order := make([]int, len(r.entries))
	for i := range order {
		order[i] = i
	}
	i := rapid.IntRange(1, len(order)-2).Draw(s.t, "where")
	how := rapid.SampledFrom([]string{"cut", "leave out", "swap", "repeat"}).Draw(s.t, "damage")
	switch how {
	case "cut":
		order = order[:i]
	case "leave out":
		order = slices.Delete(order, i, i+1)
	case "swap":
		order[i], order[i+1] = order[i+1], order[i]
	case "repeat":
		order = slices.Insert(order, i, order[i])
	}
	c := r.checker()
	found := 0
	for _, n := range order {
		found += len(c.Feed(uint64(n), r.entries[n]))
	}
	replayed := len(invariant.Replay(func(yield func(uint64, []byte) bool) {
		for _, n := range order {
			if !yield(uint64(n), r.bodies[n]) {
				return
			}
		}
	}, r.state))
	if (found == 0 && how != "cut") || replayed == 0 {
		s.t.Fatalf("%s at %d: %d violations, %d by replay", how, i, found, replayed)
	}
}
