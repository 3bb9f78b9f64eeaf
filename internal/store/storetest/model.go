package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2" //arch:allow math-rand: a model test is repeated from its seed
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/store"
)

// model is what a store must hold, in maps. It makes batches as the ledger does, with real hashes.
type model struct {
	rng     *rand.Rand
	clock   time.Time
	head    store.Head
	entries []store.Entry
	hashes  []tlog.Hash
	blobs   map[store.Digest][]byte
	sealed  map[uint64]store.Sealed
	keys    map[string][]byte
	signed  []byte
	snaps   map[uint64][]byte
}

func newModel(seed uint64) *model {
	return &model{
		rng:    rand.New(rand.NewPCG(seed, 1)),
		clock:  time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC),
		blobs:  map[store.Digest][]byte{},
		sealed: map[uint64]store.Sealed{},
		keys:   map[string][]byte{},
		snaps:  map[uint64][]byte{},
	}
}

// clone is an independent copy; the stored bytes are shared, nobody changes them.
func (m *model) clone() *model {
	c := *m
	c.entries, c.hashes = slices.Clone(m.entries), slices.Clone(m.hashes)
	c.blobs, c.sealed, c.keys, c.snaps = maps.Clone(m.blobs), maps.Clone(m.sealed), maps.Clone(m.keys), maps.Clone(m.snaps)
	return &c
}

func (m *model) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.rng.Uint32())
	}
	return b
}

// batch makes the next batch, of n entries, without applying it.
func (m *model) batch(n int) *store.Batch {
	entries := make([]store.Entry, n)
	for i := range entries {
		body := m.bytes(1 + m.rng.IntN(900))
		if m.rng.IntN(8) == 0 {
			body = body[:min(len(body), store.SaltSize)] // as long as a commitment, with its salt
		}
		entries[i] = store.Entry{Salt: m.bytes(store.SaltSize), Body: body}
	}
	return m.batchOf(entries)
}

func (m *model) batchOf(entries []store.Entry) *store.Batch {
	m.clock = m.clock.Add(time.Duration(1+m.rng.IntN(5000)) * time.Millisecond)
	b := &store.Batch{
		First: uint64(len(m.entries)), Time: m.clock, Entries: entries,
		HashFirst: uint64(len(m.hashes)), Root: store.Digest(m.bytes(32)), Checkpoint: m.bytes(200),
	}
	all := slices.Clone(m.hashes)
	reader := hashReader(&all)
	for i, e := range entries {
		c := e.Commitment
		if len(c) == 0 {
			d := store.Commitment(e.Salt, e.Body)
			c = d[:]
		}
		more, err := tlog.StoredHashes(int64(b.First)+int64(i), c, reader)
		if err != nil {
			panic(err)
		}
		all = append(all, more...)
	}
	for _, h := range all[len(m.hashes):] {
		b.Hashes = append(b.Hashes, h[:]...)
	}
	root, err := tlog.TreeHash(int64(b.First)+int64(len(entries)), reader)
	if err != nil {
		panic(err)
	}
	b.Root = store.Digest(root)
	return b
}

func hashReader(all *[]tlog.Hash) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = (*all)[x]
		}
		return out, nil
	})
}

// seal adds a sealed version for the batch's i-th entry.
func (m *model) seal(b *store.Batch, i int, kek uint32) uint64 {
	id := b.First + uint64(i)
	b.Seal = append(b.Seal, store.Sealed{ID: id, Ciphertext: m.bytes(1 + m.rng.IntN(6000)), WrappedKey: m.bytes(60), KEK: kek})
	return id
}

func (m *model) blob(b *store.Batch, size int) store.Digest {
	data := m.bytes(size)
	b.Blobs = append(b.Blobs, store.Blob{Digest: sha256.Sum256(data), Data: data})
	return b.Blobs[len(b.Blobs)-1].Digest
}

// rich makes a batch with something of everything that the store's state allows.
func (m *model) rich(n int) *store.Batch {
	b := m.batch(n)
	for i := range n {
		if i%3 == 0 && b.First+uint64(i) > 0 {
			m.seal(b, i, uint32(1+m.rng.IntN(3)))
		}
	}
	m.blob(b, 1+m.rng.IntN(20000))
	b.Keys = []store.Key{{Name: fmt.Sprintf("kek/%d", m.rng.IntN(3)), Data: m.bytes(80)}}
	ids := slices.Sorted(maps.Keys(m.sealed))
	if len(ids) > 2 {
		pick := func() uint64 { return ids[m.rng.IntN(len(ids))] }
		b.Rewraps = []store.Rewrap{{ID: pick(), WrappedKey: m.bytes(64), KEK: 9}, {ID: pick(), WrappedKey: m.bytes(60), KEK: 8}}
		b.Shred = []uint64{pick()}
	}
	if b.First > 3 {
		b.Redact = []uint64{m.rng.Uint64N(b.First)}
	}
	return b
}

// apply changes the model as a committed batch changes the store.
func (m *model) apply(b *store.Batch) {
	m.entries = append(m.entries, b.Entries...)
	for h := b.Hashes; len(h) > 0; h = h[32:] {
		m.hashes = append(m.hashes, tlog.Hash(h[:32]))
	}
	m.head = store.Head{Size: uint64(len(m.entries)), Root: b.Root, Time: b.Time, Hashes: uint64(len(m.hashes))}
	for _, v := range b.Seal {
		m.sealed[v.ID] = v
	}
	for _, r := range b.Rewraps {
		if v, ok := m.sealed[r.ID]; ok {
			v.WrappedKey, v.KEK = r.WrappedKey, r.KEK
			m.sealed[r.ID] = v
		}
	}
	for _, id := range b.Shred {
		delete(m.sealed, id)
	}
	for _, o := range b.Blobs {
		m.blobs[o.Digest] = o.Data
	}
	for _, k := range b.Keys {
		m.keys[k.Name] = k.Data
	}
	if b.Wipe {
		clear(m.sealed)
		clear(m.keys)
	}
	for _, i := range b.Redact {
		if e := m.entries[i]; len(e.Commitment) == 0 {
			c := store.Commitment(e.Salt, e.Body)
			m.entries[i] = store.Entry{Commitment: c[:]}
		}
	}
	m.signed = b.Checkpoint
}

func (m *model) applySnapshot(index uint64, data []byte) {
	m.snaps[index] = data
	ids := slices.Sorted(maps.Keys(m.snaps))
	for len(ids) > 2 {
		delete(m.snaps, ids[0])
		ids = ids[1:]
	}
}

// append appends to the store and, if that worked, to the model.
func (m *model) append(t testing.TB, s store.Store, b *store.Batch) {
	t.Helper()
	if err := s.Append(context.Background(), b); err != nil {
		t.Fatalf("Append at %d: %v", b.First, err)
	}
	m.apply(b)
}

func (m *model) putSnapshot(t testing.TB, s store.Store, index uint64, size int) {
	t.Helper()
	data := m.bytes(size)
	if err := s.PutSnapshot(context.Background(), index, data); err != nil {
		t.Fatalf("PutSnapshot(%d): %v", index, err)
	}
	m.applySnapshot(index, data)
}

// check compares all that the store answers with the model.
func (m *model) check(t testing.TB, s store.Store) {
	t.Helper()
	if err := m.compare(s); err != nil {
		t.Fatalf("store of %d entries: %v", m.head.Size, err)
	}
}

func (m *model) compare(s store.Store) error {
	ctx := context.Background()
	head, err := s.Head(ctx)
	if err != nil {
		return err
	}
	if head.Size != m.head.Size || head.Root != m.head.Root || head.Hashes != m.head.Hashes || !head.Time.Equal(m.head.Time) {
		return fmt.Errorf("head is %+v, want %+v", head, m.head)
	}
	if err := m.compareEntries(s, 0, len(m.entries)+1); err != nil {
		return err
	}
	if err := m.compareHashes(s); err != nil {
		return err
	}
	return errors.Join(m.compareObjects(ctx, s), m.compareSealed(ctx, s), m.compareSnapshots(ctx, s))
}

func (m *model) compareEntries(s store.Store, from uint64, limit int) error {
	next := from
	err := s.Entries(context.Background(), from, limit, func(index uint64, e store.Entry) error {
		if index != next {
			return fmt.Errorf("entry %d came, want %d", index, next)
		}
		if index >= uint64(len(m.entries)) {
			return fmt.Errorf("entry %d came, there are %d", index, len(m.entries))
		}
		w := m.entries[index]
		if !bytes.Equal(e.Salt, w.Salt) || !bytes.Equal(e.Body, w.Body) || !bytes.Equal(e.Commitment, w.Commitment) {
			return fmt.Errorf("entry %d is another one (%d, %d, %d bytes; want %d, %d, %d)", index,
				len(e.Salt), len(e.Body), len(e.Commitment), len(w.Salt), len(w.Body), len(w.Commitment))
		}
		next++
		return nil
	})
	if err != nil {
		return fmt.Errorf("Entries: %v", err)
	}
	want := from
	if from < uint64(len(m.entries)) && limit > 0 {
		want = min(from+uint64(limit), uint64(len(m.entries)))
	}
	if next != want {
		return fmt.Errorf("Entries from %d, at most %d, ended before %d, want %d", from, limit, next, want)
	}
	return nil
}

func (m *model) compareHashes(s store.Store) error {
	indexes := make([]uint64, len(m.hashes))
	for i := range indexes {
		indexes[i] = uint64(i)
	}
	m.rng.Shuffle(len(indexes), func(a, b int) { indexes[a], indexes[b] = indexes[b], indexes[a] })
	got, err := s.Hashes(context.Background(), indexes)
	if err != nil || len(got) != len(indexes) {
		return fmt.Errorf("Hashes: %d of %d: %v", len(got), len(indexes), err)
	}
	for i, x := range indexes {
		if got[i] != store.Digest(m.hashes[x]) {
			return fmt.Errorf("hash %d is another one", x)
		}
	}
	return nil
}

func (m *model) compareObjects(ctx context.Context, s store.Store) error {
	for d, want := range m.blobs {
		if got, err := s.Blob(ctx, d); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("blob %x: %d bytes, want %d: %v", d[:4], len(got), len(want), err)
		}
	}
	for name, want := range m.keys {
		if got, err := s.Key(ctx, name); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("key %s is another one: %v", name, err)
		}
	}
	switch got, err := s.Checkpoint(ctx); {
	case m.signed == nil && !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("checkpoint where there is none: %v", err)
	case m.signed != nil && (err != nil || !bytes.Equal(got, m.signed)):
		return fmt.Errorf("checkpoint is another one: %v", err)
	}
	return nil
}

// unusedKEK is a key number that no test uses: everything sealed is not under it.
const unusedKEK = math.MaxUint32

func (m *model) compareSealed(ctx context.Context, s store.Store) error {
	for id, want := range m.sealed {
		got, err := s.Sealed(ctx, id)
		if err != nil || got.ID != id || got.KEK != want.KEK || !bytes.Equal(got.WrappedKey, want.WrappedKey) || !bytes.Equal(got.Ciphertext, want.Ciphertext) {
			return fmt.Errorf("sealed version %d is another one: %v", id, err)
		}
	}
	got, err := s.SealedUnder(ctx, unusedKEK, 0, len(m.sealed)+10)
	if want := slices.Sorted(maps.Keys(m.sealed)); err != nil || !slices.Equal(got, want) {
		return fmt.Errorf("sealed versions are %d, want %d: %v", got, want, err)
	}
	return nil
}

func (m *model) compareSnapshots(ctx context.Context, s store.Store) error {
	max := uint64(math.MaxUint64)
	ids := slices.Sorted(maps.Keys(m.snaps))
	for _, id := range slices.Backward(ids) {
		index, data, err := s.Snapshot(ctx, max)
		if err != nil || index != id || !bytes.Equal(data, m.snaps[id]) {
			return fmt.Errorf("snapshot up to %d is %d of %d bytes, want %d of %d: %v", max, index, len(data), id, len(m.snaps[id]), err)
		}
		if id == 0 {
			return nil
		}
		max = id - 1
	}
	if _, _, err := s.Snapshot(ctx, max); !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("a snapshot too many, up to %d: %v", max, err)
	}
	return nil
}
