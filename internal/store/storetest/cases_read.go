package storetest

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/bailment/bailment/internal/store"
)

func testEntriesPaging(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(20)
	for _, n := range []int{700, 1, 600, 200} {
		m.append(t, s, m.batch(n))
	}
	size := m.head.Size
	for _, c := range []struct {
		from  uint64
		limit int
	}{
		{0, 0},
		{0, -1},
		{0, 1},
		{0, math.MaxInt},
		{1, 511},
		{1, 512},
		{1, 513},
		{699, 3},
		{size - 1, 1},
		{size - 1, 5},
		{size, 5},
		{size + 1, 5},
		{math.MaxInt64, 5},
		{1 << 63, 5},
		{math.MaxUint64, 5},
	} {
		// Compare's own end computation must not overflow.
		if err := m.compareEntries(s, c.from, min(c.limit, 1<<20)); err != nil {
			t.Errorf("from %d, at most %d: %v", c.from, c.limit, err)
		}
	}
	stop := errors.New("enough")
	calls := 0
	err := s.Entries(ctx, 3, 100, func(uint64, store.Entry) error {
		if calls++; calls == 4 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 4 {
		t.Errorf("stopped by its callback: %v after %d calls", err, calls)
	}
	m.check(t, s)
}

// A callback that reads or writes the same store must not deadlock, and a scan ends where the head
// was when it began.
func testEntriesReentrant(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(21)
	m.append(t, s, m.batch(3))
	seen := 0
	err := s.Entries(ctx, 0, 100, func(index uint64, e store.Entry) error {
		seen++
		if _, err := s.Head(ctx); err != nil {
			return err
		}
		b := m.batch(2)
		if err := s.Append(ctx, b); err != nil {
			return err
		}
		m.apply(b)
		return nil
	})
	if err != nil || seen != 3 {
		t.Fatalf("%d entries, %v", seen, err)
	}
	m.check(t, s)
}

func testHashes(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(22)
	for _, n := range []int{1, 2, 700, 30, 1} {
		m.append(t, s, m.batch(n))
	}
	if got, err := s.Hashes(ctx, nil); err != nil || len(got) != 0 {
		t.Errorf("no hashes: %v, %v", got, err)
	}
	ask := []uint64{m.head.Hashes - 1, 0, 700, 700, 1, 2, m.head.Hashes - 1}
	got, err := s.Hashes(ctx, ask)
	if err != nil || len(got) != len(ask) {
		t.Fatalf("%d hashes, %v", len(got), err)
	}
	for i, x := range ask {
		if got[i] != store.Digest(m.hashes[x]) {
			t.Errorf("hash %d is another one", x)
		}
	}
	for _, bad := range []uint64{m.head.Hashes, m.head.Hashes + 1, 1 << 63, math.MaxUint64} {
		if _, err := s.Hashes(ctx, []uint64{0, bad}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("hash %d: %v", bad, err)
		}
	}
	m.check(t, s)
}

func testSealedUnder(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(23)
	var ids []uint64
	for range 3 {
		b := m.batch(600)
		for i := 1; i < 600; i++ {
			kek := uint32(1)
			if i%10 == 0 {
				kek = 2
			}
			b.Seal = append(b.Seal, store.Sealed{ID: b.First + uint64(i), Ciphertext: []byte{1}, WrappedKey: []byte{2}, KEK: kek})
			if kek == 2 {
				ids = append(ids, b.First+uint64(i))
			}
		}
		m.append(t, s, b)
	}
	for _, limit := range []int{1, 7, 59, 1000} {
		var got []uint64
		for after := uint64(0); ; after = got[len(got)-1] {
			page, err := s.SealedUnder(ctx, 1, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > limit {
				t.Fatalf("%d at a limit of %d", len(page), limit)
			}
			if len(page) == 0 {
				break
			}
			got = append(got, page...)
		}
		if !slices.Equal(got, ids) {
			t.Fatalf("in pages of %d: %d versions, want %d", limit, len(got), len(ids))
		}
	}
	for _, after := range []uint64{ids[len(ids)-1], math.MaxInt64, math.MaxUint64} {
		if got, err := s.SealedUnder(ctx, 1, after, 5); err != nil || len(got) != 0 {
			t.Errorf("after %d: %v, %v", after, got, err)
		}
	}
	if got, err := s.SealedUnder(ctx, 1, 0, 0); err != nil || len(got) != 0 {
		t.Errorf("none asked for: %v, %v", got, err)
	}
	m.check(t, s)
}

// calls is every method with a context, on a store with at least one entry.
func calls(s store.Store, b *store.Batch) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Head":   func(ctx context.Context) error { _, err := s.Head(ctx); return err },
		"Append": func(ctx context.Context) error { return s.Append(ctx, b) },
		"Entries": func(ctx context.Context) error {
			return s.Entries(ctx, 0, 1, func(uint64, store.Entry) error { return nil })
		},
		"Hashes":        func(ctx context.Context) error { _, err := s.Hashes(ctx, []uint64{0}); return err },
		"Blob":          func(ctx context.Context) error { _, err := s.Blob(ctx, store.Digest{}); return err },
		"Sealed":        func(ctx context.Context) error { _, err := s.Sealed(ctx, 1); return err },
		"Key":           func(ctx context.Context) error { _, err := s.Key(ctx, "k"); return err },
		"SealedUnder":   func(ctx context.Context) error { _, err := s.SealedUnder(ctx, 1, 0, 1); return err },
		"Checkpoint":    func(ctx context.Context) error { _, err := s.Checkpoint(ctx); return err },
		"PutCheckpoint": func(ctx context.Context) error { return s.PutCheckpoint(ctx, []byte("x")) },
		"PutSnapshot":   func(ctx context.Context) error { return s.PutSnapshot(ctx, 0, []byte("x")) },
		"Snapshot":      func(ctx context.Context) error { _, _, err := s.Snapshot(ctx, 9); return err },
		"Size":          func(ctx context.Context) error { _, err := s.Size(ctx); return err },
	}
}

func testContexts(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(24)
	m.append(t, s, m.rich(3))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for name, call := range calls(s, m.rich(2)) {
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: %v", name, err)
		}
	}
	m.check(t, s)
	// A scan notices between its slices, however long its callback takes.
	m.append(t, s, m.batch(2000))
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	seen := 0
	err := s.Entries(ctx, 0, 5000, func(uint64, store.Entry) error {
		seen++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || seen == 2003 {
		t.Errorf("scan with an ended context: %d entries, %v", seen, err)
	}
	m.append(t, s, m.rich(2))
	m.check(t, s)
}

func testClosed(t testing.TB, site Site) {
	s := create(t, site)
	m := newModel(25)
	m.append(t, s, m.rich(3))
	next := m.rich(2)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	for name, call := range calls(s, next) {
		if err := call(context.Background()); !errors.Is(err, store.ErrFatal) {
			t.Errorf("%s of a closed store: %v", name, err)
		}
	}
	m.check(t, open(t, site))
}

func testSize(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(26)
	before, err := s.Size(ctx)
	if err != nil || before <= 0 {
		t.Fatalf("size %d, %v", before, err)
	}
	b := m.batch(1)
	m.blob(b, 8<<20)
	m.append(t, s, b)
	after, err := s.Size(ctx)
	if err != nil || after < before+8<<20 {
		t.Fatalf("8 MiB later: %d bytes, before %d, %v", after, before, err)
	}
}

// Of appends that race for one place exactly one gets it, and the others are told.
func testRace(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(27)
	for range 20 {
		var wg sync.WaitGroup
		batches, errs := make([]*store.Batch, 6), make([]error, 6)
		for i := range batches {
			batches[i] = m.rich(1 + i)
		}
		for i, b := range batches {
			wg.Go(func() { errs[i] = s.Append(ctx, b) })
		}
		wg.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won < 0:
				won = i
			case !errors.Is(err, store.ErrConflict):
				t.Fatalf("racing append %d: %v (%d won)", i, err, won)
			}
		}
		if won < 0 {
			t.Fatalf("nobody won: %v", errs)
		}
		m.apply(batches[won])
	}
	m.check(t, s)
	m.check(t, reopen(t, site, s))
}

// Readers beside a writer see whole batches only, and what they saw stays.
func testReaders(t testing.TB, site Site) {
	ctx := context.Background()
	s := create(t, site)
	m := newModel(28)
	var batches []*store.Batch
	ends := map[uint64]*store.Batch{}
	for range 60 {
		b := m.rich(1 + m.rng.IntN(40))
		b.Redact = nil // entries stay as they are, so that readers can compare
		m.apply(b)
		batches = append(batches, b)
		ends[m.head.Size] = b
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for running := true; running; {
				select {
				case <-done:
					running = false
				default:
				}
				head, err := s.Head(ctx)
				if err != nil {
					t.Errorf("Head: %v", err)
					return
				}
				b := ends[head.Size]
				if head.Size == 0 {
					continue
				}
				if b == nil || head.Root != b.Root || !head.Time.Equal(b.Time) {
					t.Errorf("head %d is no batch's end", head.Size)
					return
				}
				if err := (&model{entries: m.entries[:head.Size]}).compareEntries(s, b.First, len(b.Entries)); err != nil {
					t.Errorf("beside a writer: %v", err)
					return
				}
				got, err := s.Hashes(ctx, []uint64{head.Hashes - 1, 0})
				if err != nil || got[0] != store.Digest(m.hashes[head.Hashes-1]) || got[1] != store.Digest(m.hashes[0]) {
					t.Errorf("hashes beside a writer: %v", err)
					return
				}
			}
		})
	}
	for _, b := range batches {
		if err := s.Append(ctx, b); err != nil {
			t.Errorf("Append: %v", err)
			break
		}
	}
	close(done)
	wg.Wait()
	m.check(t, s)
}
