package storetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/store"
)

func testCreateOpen(t testing.TB, site Site) {
	ctx := context.Background()
	if s, err := site.Open(ctx); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Open without a store: %v, %v", s, err)
	}
	s := create(t, site)
	m := newModel(1)
	m.append(t, s, m.batch(3))
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if s, err := site.Create(ctx); !errors.Is(err, store.ErrExists) {
		t.Fatalf("Create over a store: %v, %v", s, err)
	}
	m.check(t, open(t, site))
}

func testEmpty(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	for range 2 {
		newModel(1).check(t, s)
		if head, err := s.Head(ctx); err != nil || head != (store.Head{}) {
			t.Fatalf("head of an empty store: %+v, %v", head, err)
		}
		var errs [5]error
		_, errs[0] = s.Blob(ctx, store.Digest{1})
		_, errs[1] = s.Sealed(ctx, 1)
		_, errs[2] = s.Key(ctx, "k")
		_, errs[3] = s.Hashes(ctx, []uint64{0})
		_, errs[4] = s.Sealed(ctx, 1<<63)
		for i, err := range errs {
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("read %d of what is not there: %v", i, err)
			}
		}
		s = reopen(t, site, s)
	}
}

func testRoundTrip(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(2)
	for _, n := range []int{1, 2, 3, 1, 64, 63, 65, 7, 128, 200} {
		m.append(t, s, m.rich(n))
		m.check(t, s)
	}
	s = reopen(t, site, s)
	m.check(t, s)
	m.append(t, s, m.rich(5))
	m.check(t, s)
	site.Crash(s)
	s = open(t, site)
	m.check(t, s)
	m.append(t, s, m.rich(5))
	m.check(t, reopen(t, site, s))
}

func testTime(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(3)
	for _, at := range []time.Time{
		time.UnixMilli(1).UTC(), time.Date(2026, 12, 31, 23, 59, 59, 999e6, time.UTC),
		time.Date(2262, 5, 1, 0, 0, 0, 1e6, time.UTC), // beyond 64-bit nanoseconds
	} {
		b := m.batch(1)
		b.Time = at
		m.append(t, s, b)
		for range 2 {
			head, err := s.Head(context.Background())
			if err != nil || !head.Time.Equal(at) || head.Time.Location() != time.UTC {
				t.Fatalf("time %v came back as %v, %v", at, head.Time, err)
			}
			s = reopen(t, site, s)
		}
	}
}

func testConflict(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(4)
	ahead := m.batch(1)
	ahead.First = 1
	if err := s.Append(ctx, ahead); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("batch at 1 of an empty store: %v", err)
	}
	again := m.rich(4)
	m.append(t, s, again)
	m.append(t, s, m.rich(4))
	stale := m.clone()
	m.append(t, s, m.rich(3))
	late := stale.rich(3)
	gap := m.rich(2)
	gap.First++
	for i, b := range []*store.Batch{again, late, gap} {
		err := s.Append(ctx, b)
		if !errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotDone) || errors.Is(err, store.ErrUnknown) {
			t.Fatalf("conflicting batch %d: %v", i, err)
		}
		m.check(t, s) // nothing written, handle usable
	}
	m.append(t, s, m.rich(3))
	m.check(t, reopen(t, site, s))
}

func testInvalid(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(5)
	m.append(t, s, m.rich(12))
	for name, spoil := range invalidBatches(m) {
		b := m.rich(3)
		spoil(b)
		if err := s.Append(ctx, b); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.check(t, s)
	if err := s.PutCheckpoint(ctx, nil); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("empty checkpoint: %v", err)
	}
	if err := s.PutSnapshot(ctx, m.head.Size, []byte("x")); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("snapshot beyond the head: %v", err)
	}
	m.append(t, s, m.rich(3))
	m.check(t, reopen(t, site, s))
}

func invalidBatches(m *model) map[string]func(b *store.Batch) {
	return map[string]func(b *store.Batch){
		"no entries":          func(b *store.Batch) { b.Entries = nil },
		"hash gap":            func(b *store.Batch) { b.HashFirst++ },
		"hashes again":        func(b *store.Batch) { b.HashFirst-- },
		"no hashes":           func(b *store.Batch) { b.Hashes = nil },
		"half a hash":         func(b *store.Batch) { b.Hashes = b.Hashes[:len(b.Hashes)-1] },
		"microseconds":        func(b *store.Batch) { b.Time = b.Time.Add(time.Microsecond) },
		"no time":             func(b *store.Batch) { b.Time = time.Time{} },
		"short salt":          func(b *store.Batch) { b.Entries[1].Salt = b.Entries[1].Salt[:15] },
		"no body":             func(b *store.Batch) { b.Entries[1].Body = nil },
		"huge body":           func(b *store.Batch) { b.Entries[1].Body = make([]byte, store.MaxBody+1) },
		"body and commitment": func(b *store.Batch) { b.Entries[0].Commitment = m.bytes(32) },
		"short commitment":    func(b *store.Batch) { b.Entries[0] = store.Entry{Commitment: m.bytes(31)} },
		"false blob":          func(b *store.Batch) { b.Blobs[0].Digest[0]++ },
		"lost blob":           func(b *store.Batch) { b.Blobs[0].Data = nil },
		"foreign sealed":      func(b *store.Batch) { b.Seal[0].ID = b.First - 1 },
		"future sealed":       func(b *store.Batch) { b.Seal[0].ID = b.First + 3 },
		"sealed twice":        func(b *store.Batch) { b.Seal = append(b.Seal, b.Seal[0]) },
		"no ciphertext":       func(b *store.Batch) { b.Seal[0].Ciphertext = nil },
		"no wrapped key":      func(b *store.Batch) { b.Seal[0].WrappedKey = nil },
		"future rewrap":       func(b *store.Batch) { b.Rewraps[0].ID = b.First + 3 },
		"empty rewrap":        func(b *store.Batch) { b.Rewraps[0].WrappedKey = nil },
		"future shred":        func(b *store.Batch) { b.Shred = []uint64{1 << 63} },
		"nameless key":        func(b *store.Batch) { b.Keys[0].Name = "" },
		"empty key":           func(b *store.Batch) { b.Keys[0].Data = nil },
		"redacts itself":      func(b *store.Batch) { b.Redact = []uint64{b.First} },
		"no checkpoint":       func(b *store.Batch) { b.Checkpoint = nil },
		"empty checkpoint":    func(b *store.Batch) { b.Checkpoint = []byte{} },
		"huge checkpoint":     func(b *store.Batch) { b.Checkpoint = make([]byte, store.MaxCheckpoint+1) },
	}
}

func testBlobs(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(6)
	b := m.batch(1)
	m.blob(b, 1)
	m.blob(b, 3<<20)
	m.blob(b, 0)
	b.Blobs = append(b.Blobs, b.Blobs[0], store.Blob{Digest: b.Blobs[2].Digest}) // no bytes at all are the empty document too
	m.append(t, s, b)
	again := m.batch(1)
	again.Blobs = b.Blobs[:3]
	m.append(t, s, again)
	m.check(t, s)
	m.check(t, reopen(t, site, s))
}

func testKeys(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(7)
	for range 3 {
		b := m.batch(1)
		b.Keys = []store.Key{
			{Name: "ca", Data: m.bytes(40)}, {Name: "CA", Data: m.bytes(50)}, // names keep their case
			{Name: "twice", Data: m.bytes(10)}, {Name: "twice", Data: m.bytes(11)}, // the last one counts
		}
		m.append(t, s, b)
		m.check(t, s)
	}
	if _, err := s.Key(context.Background(), "Ca"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("key of another case: %v", err)
	}
	m.check(t, reopen(t, site, s))
}

func testRewrap(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(8)
	b := m.batch(4)
	for i := 1; i < 4; i++ {
		m.seal(b, i, 1)
	}
	m.append(t, s, b)
	b = m.batch(1)
	id := m.seal(b, 0, 1)
	b.Rewraps = []store.Rewrap{
		{ID: 1, WrappedKey: m.bytes(60), KEK: 2},
		{ID: 2, WrappedKey: m.bytes(200), KEK: 2},
		{ID: id, WrappedKey: m.bytes(60), KEK: 3}, // sealed in this very batch: sealing comes first
		{ID: 0, WrappedKey: m.bytes(60), KEK: 2},  // not there: no effect, and no failure of others' work
	}
	m.append(t, s, b)
	m.check(t, s)
	m.check(t, reopen(t, site, s))
}

func testShred(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(9)
	b := m.batch(6)
	for i := 1; i < 6; i++ {
		m.seal(b, i, 1)
	}
	m.append(t, s, b)
	b = m.batch(2)
	id := m.seal(b, 1, 1)
	b.Shred = []uint64{2, 3, 2, id}
	m.append(t, s, b)
	b = m.batch(1)
	b.Shred = []uint64{2, 0} // gone, never there
	b.Rewraps = []store.Rewrap{{ID: 3, WrappedKey: m.bytes(60), KEK: 2}, {ID: 4, WrappedKey: m.bytes(60), KEK: 2}}
	m.append(t, s, b)
	for range 2 {
		m.check(t, s)
		for _, gone := range []uint64{2, 3, id} {
			if v, err := s.Sealed(ctx, gone); !errors.Is(err, store.ErrNotFound) || len(v.Ciphertext) != 0 {
				t.Fatalf("shredded version %d: %d bytes, %v", gone, len(v.Ciphertext), err)
			}
		}
		s = reopen(t, site, s)
	}
}

// A wipe takes all that is secret, also what the same batch brought, and nothing else.
func testWipe(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(12)
	for range 4 {
		m.append(t, s, m.rich(40))
	}
	ids := slices.Sorted(maps.Keys(m.sealed))
	names := slices.Sorted(maps.Keys(m.keys))
	if len(ids) == 0 || len(names) == 0 {
		t.Fatal("there is nothing to wipe")
	}
	b := m.rich(3)
	ids = append(ids, m.seal(b, 1, 1))
	b.Wipe = true
	m.append(t, s, b)
	for range 2 {
		m.check(t, s)
		for _, id := range ids {
			if v, err := s.Sealed(ctx, id); !errors.Is(err, store.ErrNotFound) || len(v.Ciphertext) != 0 {
				t.Fatalf("sealed version %d is there: %v", id, err)
			}
		}
		for _, name := range names {
			if data, err := s.Key(ctx, name); !errors.Is(err, store.ErrNotFound) || len(data) != 0 {
				t.Fatalf("the key %s is there: %v", name, err)
			}
		}
		if left, err := s.SealedUnder(ctx, 0, 0, 10); err != nil || len(left) != 0 {
			t.Fatalf("left are %v: %v", left, err)
		}
		s = reopen(t, site, s)
	}
}

func testRedact(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(10)
	m.append(t, s, m.batch(70))
	b := m.batch(2)
	b.Redact = []uint64{0, 5, 69, 5}
	m.append(t, s, b)
	m.check(t, s)
	b = m.batch(1)
	b.Redact = []uint64{5, 71} // again, and one of the last batch
	m.append(t, s, b)
	for range 2 {
		m.check(t, s) // hashes and root are as before: the proof is intact
		err := s.Entries(context.Background(), 5, 1, func(_ uint64, e store.Entry) error {
			if len(e.Salt) != 0 || len(e.Body) != 0 || len(e.Commitment) != 32 {
				t.Errorf("redacted entry has %d, %d, %d bytes", len(e.Salt), len(e.Body), len(e.Commitment))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		site.Crash(s)
		s = open(t, site)
	}
}

// A ledger that is copied brings its redacted entries along.
func testRedactedEntries(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(11)
	entries := m.batch(20).Entries
	for _, i := range []int{0, 3, 4, 19} {
		entries[i] = store.Entry{Commitment: m.bytes(32)}
	}
	m.append(t, s, m.batchOf(entries))
	m.check(t, s)
	m.check(t, reopen(t, site, s))
}

func testCheckpoint(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(12)
	put := func() {
		m.signed = m.bytes(100 + m.rng.IntN(200))
		if err := s.PutCheckpoint(ctx, m.signed); err != nil {
			t.Fatalf("PutCheckpoint: %v", err)
		}
		m.check(t, s)
	}
	with := func() {
		m.append(t, s, m.batch(2))
		m.check(t, s)
	}
	put() // of the empty tree
	with()
	put()
	put()
	with()
	with()
	s = reopen(t, site, s)
	m.check(t, s)
	put()
	site.Crash(s)
	m.check(t, open(t, site))
}

func testSnapshots(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(13)
	m.append(t, s, m.batch(50))
	for i, size := range []int{0, 10, 1 << 20, 1<<20 + 1, 7 << 19, 100} {
		m.putSnapshot(t, s, uint64(i*7), size)
		m.check(t, s)
	}
	m.putSnapshot(t, s, 35, 3<<20) // the newest again
	m.check(t, s)
	s = reopen(t, site, s)
	m.check(t, s)
	m.append(t, s, m.rich(3))
	m.putSnapshot(t, s, 49, 500)
	m.check(t, s)
	site.Crash(s)
	m.check(t, open(t, site))
}

func testBigBatch(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(14)
	m.append(t, s, m.batch(3))
	entries := make([]store.Entry, 1000)
	for i := range entries {
		body := make([]byte, store.MaxBody)
		copy(body, m.bytes(64))
		body[len(body)-1] = byte(i)
		entries[i] = store.Entry{Salt: m.bytes(store.SaltSize), Body: body}
	}
	m.append(t, s, m.batchOf(entries))
	m.append(t, s, m.batch(3))
	m.check(t, s)
	site.Crash(s)
	s = open(t, site)
	m.check(t, s)
	m.append(t, s, m.batch(1))
	m.check(t, reopen(t, site, s))
}
