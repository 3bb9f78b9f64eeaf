package state

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// feeder writes a legal history without keys and signatures: the reducers check neither.
type feeder struct {
	t   testing.TB
	s   *State
	now Millis
	rnd *rand.Rand
	// log keeps what was applied, if it is not nil.
	log [][]byte
	// direct applies events as the committer does, without forks: an entry must not be refused then.
	direct bool
}

func newFeeder(t testing.TB, seed uint64) *feeder {
	f := &feeder{t: t, s: New(), now: 1_700_000_000_000, rnd: rand.New(rand.NewPCG(seed, 1)), log: [][]byte{}}
	f.must(genesisOf(t, nil))
	return f
}

func (f *feeder) apply(ev Event) error {
	if f.direct {
		return f.s.Apply(f.s.Next, nil, &Entry{Time: f.now, Event: ev})
	}
	body, err := Encode(&Entry{Time: f.now, Event: ev})
	if err != nil {
		f.t.Fatal(err)
	}
	// The body and not the event, as a replay does. A refused entry spoils only the fork.
	fork := f.s.Fork()
	if err := fork.Apply(f.s.Next, body, nil); err != nil {
		return err
	}
	f.s = fork
	if f.log != nil {
		f.log = append(f.log, body)
	}
	return nil
}

func (f *feeder) must(ev Event) uint64 {
	f.t.Helper()
	index := f.s.Next
	if err := f.apply(ev); err != nil {
		f.t.Fatal(err)
	}
	return index
}

func snapshotOf(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (f *feeder) pick(n int) int { return f.rnd.IntN(n) }

func (f *feeder) session(identity, node string) *SessionOpened {
	e := &SessionOpened{
		Via: "attest", Identity: identity, Node: node, Method: "join-token", Anchor: "join-token:x", Assurance: "token", Serial: "01",
		Expires: f.now.Add(10 * time.Minute), Challenge: fmt.Sprint("c:", f.s.Next), ChallengeTo: f.now.Add(2 * time.Minute),
	}
	f.rnd.Uint64()
	for i := range e.Key {
		e.Key[i] = byte(f.rnd.Uint32())
	}
	return e
}

func (f *feeder) release(identity, purpose string) *SecretReleased {
	e := &SecretReleased{
		Secret: "db/a", Version: 1, Purpose: purpose, Actor: Actor{Identity: identity, Session: 1},
		Expires: f.now.Add(30 * time.Minute), Max: f.now.Add(time.Hour),
	}
	if id, ok := f.s.LeaseOf.Get(LeaseKey(identity, "", "db/a", 1, purpose)); ok {
		if l, _ := f.s.Leases.Get(id); l.Live(f.now) {
			e.Lease, e.Max, e.Expires = id, 0, l.Expires
		}
	}
	return e
}

// step applies something at random; what is refused is refused the same everywhere.
func (f *feeder) step() {
	f.now += Millis(f.pick(120_000))
	who := fmt.Sprint("/workload/w", f.pick(4))
	path := fmt.Sprint("db/", f.pick(3))
	switch f.pick(12) {
	case 0:
		_ = f.apply(f.session(who, ""))
	case 1:
		e := &SecretWritten{Secret: path, Version: 1, State: Current, Actor: Actor{Identity: "/human/alice"}, Until: f.now.Add(5 * time.Minute)}
		if sec, ok := f.s.Secrets.Get(path); ok {
			e.Version, e.Retires = sec.Last+1, sec.Current
		}
		if f.pick(3) == 0 {
			e.Idem = &IdemKey{Key: fmt.Sprint("k", f.pick(50))}
		}
		_ = f.apply(e)
	case 2, 3, 4:
		e := f.release(who, fmt.Sprint("p", f.pick(2)))
		if f.pick(2) == 0 {
			e.Idem = &IdemKey{Key: fmt.Sprint("k", f.pick(50))}
		}
		_ = f.apply(e)
	case 5:
		f.s.Leases.All(func(id uint64, l *Lease) bool {
			_ = f.apply(&LeaseRenewed{Lease: id, Expires: min(l.Max, f.now.Add(30*time.Minute))})
			return false
		})
	case 6:
		f.s.Leases.All(func(id uint64, _ *Lease) bool { _ = f.apply(&LeaseReturned{Lease: id}); return false })
	case 7:
		e := &RevocationRecorded{Scope: "identity:" + who, Cutoff: true, Hold: f.pick(2) == 0}
		if f.pick(2) == 0 {
			e.Until = f.now.Add(15 * time.Minute)
		}
		_ = f.apply(e)
	case 8:
		_ = f.apply(&RequestDenied{Actor: Actor{Identity: who}, Reason: "no-grant"})
	case 9:
		_ = f.apply(&TokenCreated{ID: fmt.Sprint("t", f.s.Next), Expires: f.now.Add(time.Hour), Actor: Actor{Identity: "/human/alice"}})
	case 10:
		_ = f.apply(&ChangeProposed{Nonce: fmt.Sprint("n", f.s.Next), Expires: f.now.Add(time.Hour), Required: 1, Actor: Actor{Identity: "/human/alice"}})
		f.s.Changes.All(func(i uint64, c *Change) bool {
			if c.StateAt(f.now) != Proposed {
				return true
			}
			_ = f.apply(&ChangeApproved{Change: i, Nonce: fmt.Sprint("m", f.s.Next), Signature: Signature{Person: "bob"}})
			return false
		})
	case 11:
		sec, ok := f.s.Secrets.Get(path)
		if !ok {
			return
		}
		v := sec.Versions[f.pick(len(sec.Versions))]
		all := []VersionState{Staged, Current, Retiring, Retired, Destroyed, Compromised}
		e := &SecretMoved{Secret: path, Version: v.Number, From: v.StateAt(f.now), To: all[f.pick(len(all))], Until: f.now.Add(time.Minute)}
		if e.To == Current {
			e.Retires = sec.Current
		}
		_ = f.apply(e)
	}
}

// consistent checks what holds between the tables whatever happened.
func consistent(t testing.TB, s *State) {
	t.Helper()
	s.LeaseOf.All(func(k string, id uint64) bool {
		l, ok := s.Leases.Get(id)
		if !ok || LeaseKey(l.Identity, l.Node, l.Secret, l.Version, l.Purpose) != k {
			t.Errorf("lease_of names lease %d, which is %+v", id, l)
		}
		return true
	})
	if s.LeaseOf.Len() != s.Leases.Len() {
		t.Errorf("%d leases, %d of them found by their names", s.Leases.Len(), s.LeaseOf.Len())
	}
	owners := map[string]int{}
	s.Idem.All(func(k string, _ *Idempotent) bool {
		owners[idemOwner(k)]++
		return true
	})
	if len(owners) != s.IdemCount.Len() {
		t.Errorf("%d owners of keys, %d counted", len(owners), s.IdemCount.Len())
	}
	for o, n := range owners {
		if got, _ := s.IdemCount.Get(o); got != n {
			t.Errorf("%s has %d keys, %d are counted", o, n, got)
		}
	}
	s.Secrets.All(func(path string, sec *Secret) bool {
		current := 0
		for i, v := range sec.Versions {
			if v.State == Current {
				current++
				if sec.Current != v.Number {
					t.Errorf("%s: version %d is current, the secret says %d", path, v.Number, sec.Current)
				}
			}
			if i > 0 && v.Number <= sec.Versions[i-1].Number {
				t.Errorf("%s: version %d after %d", path, v.Number, sec.Versions[i-1].Number)
			}
		}
		if current > 1 || (current == 0 && sec.Current != 0) {
			t.Errorf("%s has %d current versions and says %d", path, current, sec.Current)
		}
		return true
	})
	// Every row that ends has its place in the queue, or it would stay for ever.
	queued := map[string]bool{}
	s.queue.All(func(k string, _ struct{}) bool {
		queued[k[8:]] = true
		return true
	})
	need := func(kind queueKind, key string) {
		if !queued[string(kind)+key] {
			t.Errorf("a row of kind %c is not in the queue", kind)
		}
	}
	s.Leases.All(func(id uint64, _ *Lease) bool { need(qLease, indexKey(id)); return true })
	s.Sessions.All(func(id uint64, _ *Session) bool { need(qSession, indexKey(id)); return true })
	s.Idem.All(func(k string, _ *Idempotent) bool { need(qIdem, k); return true })
	s.Once.All(func(k string, _ Millis) bool { need(qOnce, k); return true })
	s.SeenKeys.All(func(k string, _ *SeenKey) bool { need(qKey, k); return true })
	s.Denials.All(func(k string, _ *DenialMinute) bool { need(qDenial, k); return true })
	s.Tokens.All(func(k string, _ *Token) bool { need(qToken, k); return true })
	s.Identities.All(func(k string, _ *Identity) bool { need(qIdentity, k); return true })
	s.Changes.All(func(k uint64, _ *Change) bool { need(qChange, indexKey(k)); return true })
	s.Served.All(func(k string, _ *Served) bool { need(qServed, k); return true })
	s.Reviewed.All(func(k string, _ *Reviewed) bool { need(qReviewed, k); return true })
	s.Holds.All(func(k string, h *Hold) bool {
		if h.Until != 0 {
			need(qHold, k)
		}
		return true
	})
}

// A restored snapshot is the state: it goes on identically, and so does a replay.
func TestSnapshotGoesOn(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFeeder(t, rapid.Uint64().Draw(rt, "seed"))
		for range rapid.IntRange(0, 150).Draw(rt, "before") {
			f.step()
		}
		before := snapshotOf(t, f.s)
		restored, err := Restore(before)
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(snapshotOf(t, restored), before) {
			rt.Fatal("the snapshot of a restored state is another one")
		}
		from := len(f.log)
		for range rapid.IntRange(0, 150).Draw(rt, "after") {
			f.step()
		}
		for i, body := range f.log[from:] {
			if err := restored.Apply(uint64(from+i), body, nil); err != nil {
				rt.Fatal(err)
			}
		}
		replayed := New()
		for i, body := range f.log {
			if err := replayed.Apply(uint64(i), body, nil); err != nil {
				rt.Fatal(err)
			}
		}
		want := RootOf(snapshotOf(t, f.s))
		if RootOf(snapshotOf(t, restored)) != want || RootOf(snapshotOf(t, replayed)) != want {
			rt.Fatal("the same entries give different states")
		}
		consistent(t, f.s)
	})
}

// What is alive decides the size, not how much happened.
func TestMemoryFollowsTheLiving(t *testing.T) {
	f := newFeeder(t, 1)
	f.log, f.direct = nil, true
	f.must(&SecretWritten{Secret: "db/a", Version: 1, State: Current})
	rows := func() int {
		n := 0
		for _, line := range bytes.Split(snapshotOf(t, f.s), []byte{'\n'}) {
			if bytes.HasPrefix(line, []byte(`{"k":`)) || bytes.HasPrefix(line, []byte(`{"i":`)) {
				n++
			}
		}
		return n
	}
	half, seen := 0, 0
	const entries = 100_000
	for i := range entries {
		f.now += 250 // four in a second; a run of 100,000 is seven hours
		who := fmt.Sprint("/workload/w", i%100)
		switch i % 10 {
		case 0:
			f.must(f.session(who, ""))
		case 1:
			e := f.release(who, "runtime")
			e.Idem = &IdemKey{Key: fmt.Sprint("k", i)}
			f.must(e)
		case 2:
			f.must(&RequestDenied{Actor: Actor{Identity: who}, Reason: "no-grant"})
		default:
			f.must(f.release(who, "runtime"))
		}
		if i == entries/2 {
			half, seen = rows(), f.s.SeenKeys.Len()
		}
	}
	end := rows()
	if n := f.s.Leases.Len(); n > 100 {
		t.Errorf("%d leases of 100 identities", n)
	}
	// Seen keys are kept for a day, which the run does not fill: they alone still grow.
	// Each has a row and a place in the queue.
	keys := f.s.SeenKeys.Len()
	if grew := end - half - 2*(keys-seen); grew > half/20 {
		t.Errorf("%d rows after half, %d at the end, of which %d are new keys seen", half, end, keys-seen)
	}
	if n := f.s.Idem.Len(); n < 1000 || n > 1600 { // an hour of them
		t.Errorf("%d idempotency keys", n)
	}
	if n := f.s.Sessions.Len(); n > 2000 { // 10 minutes and an hour
		t.Errorf("%d sessions", n)
	}
	consistent(t, f.s)
	// All of it goes, in a bounded number of entries.
	f.now += 40 * 24 * 60 * 60 * 1000
	for range end/sweepPerEntry + 10 {
		f.must(&DenialsSummed{})
	}
	if n := rows(); n > 20 {
		t.Errorf("%d rows are left of what is long over", n)
	}
}

// Renewals move the end; the row goes when the last one is over, and not before.
func TestSweepFollowsRenewals(t *testing.T) {
	f := newFeeder(t, 1)
	f.must(&SecretWritten{Secret: "db/a", Version: 1, State: Current})
	r := f.release("/workload/w", "runtime")
	r.Max = f.now.Add(10 * time.Hour)
	id := f.must(r)
	for range 10 {
		f.now = f.now.Add(20 * time.Minute)
		f.must(&LeaseRenewed{Lease: id, Expires: f.now.Add(30 * time.Minute)})
	}
	f.now = f.now.Add(30*time.Minute) + keepLease - 1
	f.must(&DenialsSummed{})
	if !f.s.Leases.Has(id) {
		t.Fatal("the lease went too early")
	}
	f.now += 2
	f.must(&DenialsSummed{})
	if f.s.Leases.Has(id) || f.s.LeaseOf.Len() != 0 {
		t.Fatal("the lease stays")
	}
	// A provisional hold that became one without end stays; one that was prolonged goes later.
	f.must(&RevocationRecorded{Scope: "everything", Hold: true, Until: f.now + 1000})
	f.must(&RevocationRecorded{Scope: "everything", Hold: true})
	f.must(&RevocationRecorded{Scope: "secret:*", Hold: true, Until: f.now + 1000})
	f.must(&RevocationRecorded{Scope: "secret:*", Hold: true, Until: f.now + 2000})
	f.now += 1500
	f.must(&DenialsSummed{})
	if !f.s.Holds.Has("everything") || !f.s.Holds.Has("secret:*") {
		t.Fatal("a hold went too early")
	}
	f.now += 1000
	f.must(&DenialsSummed{})
	if !f.s.Holds.Has("everything") || f.s.Holds.Has("secret:*") {
		t.Fatal("the wrong hold went")
	}
	consistent(t, f.s)
}

// A key that expired may be used again before anything swept it, and is counted once.
func TestIdempotencyKeyAgain(t *testing.T) {
	f := newFeeder(t, 1)
	write := func(version uint64) {
		f.must(&SecretWritten{Secret: "db/a", Version: version, State: Staged, Actor: Actor{Identity: "/human/alice"}, Idem: &IdemKey{Key: "k"}})
	}
	write(1)
	f.now += idemLifetime
	for i := range 100 { // a backlog, so that the key is not swept at once
		f.s.enqueue(Millis(i), qOnce, "gone")
	}
	write(2)
	if n, _ := f.s.IdemCount.Get("/human/alice"); n != 1 {
		t.Fatalf("%d keys are counted", n)
	}
	for range 20 {
		f.must(&DenialsSummed{})
	}
	if x, ok := f.s.Idem.Get(IdemName("/human/alice", "k")); !ok || x.Version != 2 {
		t.Fatalf("the second effect was forgotten: %+v", x)
	}
	f.now += idemLifetime
	f.must(&DenialsSummed{})
	if f.s.Idem.Len() != 0 || f.s.IdemCount.Len() != 0 {
		t.Fatal("the key stays")
	}
}

// Readers of a published fork see it unchanged while the committer goes on. Run with -race.
func TestForksAreIsolated(t *testing.T) {
	f := newFeeder(t, 7)
	f.log = nil
	for range 300 {
		f.step()
	}
	var readers sync.WaitGroup
	for range 40 {
		shown := f.s.Fork() // by the writer, as the ledger does
		want := RootOf(snapshotOf(t, shown))
		for range 2 {
			readers.Go(func() {
				for range 3 {
					var b bytes.Buffer
					if err := shown.Snapshot(&b); err != nil || RootOf(b.Bytes()) != want {
						t.Error("a published state changed", err)
					}
					shown.CutoffOver(Subject{Identity: "/workload/w1", Own: 1, Root: 1})
					shown.HoldOver(Subject{Identity: "/workload/w1"}, f0)
				}
			})
		}
		for range 30 {
			f.step()
		}
		// An abandoned fork leaves no trace.
		spoilt := f.s.Fork()
		_ = spoilt.Apply(spoilt.Next, []byte(`{}`), nil)
		spoilt.Holds.set("everything", &Hold{})
		if f.s.Holds.Has("everything") {
			t.Fatal("a fork wrote through")
		}
	}
	readers.Wait()
}

const f0 = Millis(1_700_000_000_000)

func TestApplyRefuses(t *testing.T) {
	f := newFeeder(t, 1)
	f.must(&SecretWritten{Secret: "db/a", Version: 1, State: Current})
	f.must(&SecretWritten{Secret: "db/a", Version: 2, State: Staged})
	lease := f.must(f.release("/workload/w", "runtime"))
	open := f.must(&ChangeProposed{Action: "bundle", Manifest: Digest{2}, Nonce: "n", Expires: f.now + 1000, Required: 1})
	f.must(&RevocationRecorded{Scope: "everything", Hold: true})
	for what, ev := range map[string]Event{
		"a second genesis":               &Genesis{},
		"a generation left out":          &BundleInForce{Generation: 3, Previous: Digest{1}},
		"another bundle replaced":        &BundleInForce{Generation: 2, Previous: Digest{9}},
		"a change without approvals":     &BundleInForce{Generation: 2, Previous: Digest{1}, Manifest: Digest{2}, Change: open},
		"a nonce again":                  &ChangeProposed{Nonce: "n", Expires: f.now + 1000},
		"no such change":                 &ChangeApproved{Change: 99, Nonce: "x"},
		"an approval's nonce again":      &ChangeApproved{Change: open, Nonce: "n"},
		"rejecting no change":            &ChangeRejected{Change: 99},
		"no such token":                  &SessionOpened{Identity: "/node/x", Token: "t"},
		"no such session":                &SessionClosed{Session: 99},
		"a version again":                &SecretWritten{Secret: "db/a", Version: 2, State: Staged},
		"a version left out":             &SecretWritten{Secret: "db/a", Version: 4, State: Staged},
		"a version that begins retired":  &SecretWritten{Secret: "db/a", Version: 3, State: Retired},
		"two current versions":           &SecretWritten{Secret: "db/a", Version: 3, State: Current},
		"nothing takes its place":        &SecretWritten{Secret: "db/a", Version: 3, State: Staged, Retires: 1},
		"destroying the current one":     &SecretWritten{Secret: "db/a", Version: 3, State: Staged, Destroys: []uint64{1}},
		"an illegal move":                &SecretMoved{Secret: "db/a", Version: 1, From: Current, To: Destroyed},
		"a move from elsewhere":          &SecretMoved{Secret: "db/a", Version: 1, From: Staged, To: Retired},
		"a move that leaves two current": &SecretMoved{Secret: "db/a", Version: 2, From: Staged, To: Current},
		"a move that retires another":    &SecretMoved{Secret: "db/a", Version: 2, From: Staged, To: Retired, Retires: 1},
		"moving no version":              &SecretMoved{Secret: "db/a", Version: 9, From: Staged, To: Retired},
		"moving no secret":               &SecretMoved{Secret: "db/x", Version: 1, From: Staged, To: Retired},
		"a lease that is not":            &SecretReleased{Secret: "db/a", Version: 1, Lease: 99},
		"a lease with another end":       &SecretReleased{Secret: "db/a", Version: 1, Lease: lease, Expires: f.now + 5},
		"renewing beyond the maximum":    &LeaseRenewed{Lease: lease, Expires: f.now.Add(2 * time.Hour)},
		"renewing no lease":              &LeaseRenewed{Lease: 99},
		"returning no lease":             &LeaseReturned{Lease: 99},
		"a scope that is none":           &RevocationRecorded{Scope: "nobody", Cutoff: true},
		"lifting no hold":                &HoldLifted{Scope: "everything", Hold: 99},
		"a key again":                    &KeyAdded{Key: KeyFacts{Name: "ca/1"}},
		"a root of the future":           &StateRootSet{Index: 99},
		"a protocol again":               &ProtocolRaised{Version: 1},
	} {
		before := snapshotOf(t, f.s)
		if err := f.apply(ev); err == nil {
			t.Errorf("%s was applied", what)
		}
		if !bytes.Equal(before, snapshotOf(t, f.s)) {
			t.Errorf("%s changed the state", what)
		}
	}
	body, err := Encode(&Entry{Time: f.now - 1, Event: &DenialsSummed{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.s.Fork().Apply(f.s.Next, body, nil); err == nil || !strings.Contains(err.Error(), "time") {
		t.Errorf("time ran back: %v", err)
	}
	if err := f.s.Fork().Apply(f.s.Next+1, body, nil); err == nil {
		t.Error("an entry was left out")
	}
}

// A bundle that comes into force supersedes the one before, and rules for ever after.
func TestBundlesSupersede(t *testing.T) {
	f := newFeeder(t, 1)
	var changes []uint64
	for g := uint64(2); g < 6; g++ {
		ch := f.must(&ChangeProposed{Action: "bundle", Manifest: Digest{byte(g)}, Nonce: fmt.Sprint("n", g), Expires: f.now + 1000, Required: 1})
		f.must(&ChangeApproved{Change: ch, Nonce: fmt.Sprint("m", g), Signature: Signature{Person: "bob"}})
		f.must(&BundleInForce{Generation: g, Previous: Digest{byte(g - 1)}, Manifest: Digest{byte(g)}, Change: ch, How: ByChange})
		changes = append(changes, ch)
		for i, c := range changes {
			want := Superseded
			if i == len(changes)-1 {
				want = InForce
			}
			if got, _ := f.s.Changes.Get(c); got.State != want {
				t.Fatalf("at generation %d change %d is %s", g, c, got.State)
			}
		}
	}
	if f.s.Generation != 5 || f.s.Manifests.Len() != 5 || f.s.Control != f.s.Next-1 {
		t.Fatalf("%+v", f.s)
	}
	// A change that is done does nothing again.
	if err := f.apply(&BundleInForce{Generation: 6, Previous: Digest{5}, Manifest: Digest{4}, Change: changes[2], How: ByChange}); err == nil {
		t.Fatal("a superseded change came back")
	}
}

// What a row says of an enrolment: since when, whether it was given back, and by which bundle's rules its sessions are.
func TestEnrolment(t *testing.T) {
	f := newFeeder(t, 1)
	const path = "/node/join-token/a"
	open := func(root, counter uint64, key byte, redelivery bool) uint64 {
		f.now += 1000
		e := f.session(path, "")
		e.Root, e.Counter, e.Key, e.Redelivery, e.Ruling.Generation = root, counter, Digest{key}, redelivery, 7
		return f.must(e)
	}
	check := func(what string, enrolled Millis, prior uint64, closed bool) {
		t.Helper()
		id, _ := f.s.Identities.Get(path)
		if id.Enrolled != enrolled || id.Prior != prior || id.Closed != closed {
			t.Errorf("%s: enrolled %s, prior %d, closed %t", what, id.Enrolled, id.Prior, id.Closed)
		}
	}
	first := open(0, 0, 1, false)
	began := f.now
	check("joined", began, 0, false)
	if x, _ := f.s.Sessions.Get(first); x.Generation != 7 {
		t.Errorf("by generation %d", x.Generation)
	}
	second := open(first, 1, 2, false)
	twin := open(first, 1, 2, true)
	check("renewed, and again", began, first, false)
	f.must(&SessionClosed{Session: first})
	check("an older one given back", began, first, false)
	f.must(&SessionClosed{Session: second})
	check("a twin of the newest given back", began, first, true)
	open(0, 0, 3, false)
	check("joined anew", f.now, twin, false)
}
