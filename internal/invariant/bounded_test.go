package invariant_test

import (
	"fmt"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

// The model follows what is alive, whatever the length of the ledger and whatever is wrong in it.
func TestMemoryIsBounded(t *testing.T) {
	r := history(t)
	s := newScene(t, r)
	session, release := s.workload(), s.release()
	begin, now := s.c.Rows(), s.entries[len(s.entries)-1].Time
	index, most := uint64(len(s.entries)), 0
	const days = 6
	for i := range days * 24 * 60 { // a session, a lease and a key a minute
		now += 60_000
		x := *session
		x.Key, x.Expires = state.Digest{1, byte(i), byte(i >> 8), byte(i >> 16)}, now+600_000
		s.c.Feed(index, &state.Entry{Time: now, Event: &x})
		e := *release
		e.Lease, e.Expires, e.Max, e.Actor.Session, e.Idem = 0, now+3_600_000, now+3_600_000, index, &state.IdemKey{Key: fmt.Sprint(i)}
		s.c.Feed(index+1, &state.Entry{Time: now, Event: &e})
		index += 2
		if rows := s.c.Rows(); i > 2*24*60 {
			most = max(most, rows)
		}
	}
	// A day of session keys; an hour and a half of leases, of idempotency keys and sessions; each with its place in the queue.
	if limit := begin + 2*(24*60+30) + 2*3*100; most > limit {
		t.Fatalf("%d rows, more than the %d that are alive", most, limit)
	}
	if c := r.checker(); c.Next() != 0 {
		t.Fatal("a new checker does not begin at genesis")
	}
	if n := len(s.c.Roots()); n != 2 {
		t.Fatalf("%d state roots", n)
	}
	if v := (invariant.Violation{Invariant: invariant.Silent, Index: 3, Detail: "x"}); v.String() != "silent: entry 3: x" {
		t.Fatal(v)
	}
}

// BenchmarkFeed is the price of checking a release, decided again.
func BenchmarkFeed(b *testing.B) {
	w := newBench(b)
	for b.Loop() {
		w.next()
	}
}

type bench struct {
	c     *invariant.Checker
	body  []byte
	index uint64
	b     *testing.B
}

func newBench(b *testing.B) *bench {
	r := historyOf(b)
	c := r.checker()
	for i, e := range r.entries {
		c.Feed(uint64(i), e)
	}
	for i, e := range r.entries {
		made, ok := e.Event.(*state.SecretReleased)
		if !ok || uint64(i) != r.cast.Lease {
			continue
		}
		again := *made
		again.Lease, again.Max, again.Anchor = uint64(i), 0, ""
		body, err := state.Encode(&state.Entry{Time: r.entries[len(r.entries)-1].Time, Event: &again})
		if err != nil {
			b.Fatal(err)
		}
		return &bench{c: c, body: body, index: uint64(len(r.entries)), b: b}
	}
	b.Fatal("no release")
	return nil
}

func (x *bench) next() {
	e, err := state.Decode(x.body)
	if err != nil {
		x.b.Fatal(err)
	}
	if v := x.c.Feed(x.index, e); len(v) > 0 {
		x.b.Fatal(v)
	}
	x.index++
}
