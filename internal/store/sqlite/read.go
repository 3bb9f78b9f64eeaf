package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"fmt"
	"math"
	"sort"

	"github.com/bailment/bailment/internal/store"
)

// A slice of a long read ends at whichever comes first, and lets a commit pass.
const (
	sliceRows  = 512
	sliceBytes = 1 << 20
)

// Entries implements store.Store. It ends at the head as it was when the call began.
func (s *Store) Entries(ctx context.Context, from uint64, limit int, fn func(index uint64, e store.Entry) error) error {
	end := uint64(math.MaxUint64)
	for limit > 0 && from < end {
		rows, size, err := s.entrySlice(ctx, from, min(limit, sliceRows))
		if err != nil {
			return err
		}
		end = min(end, size)
		if len(rows) == 0 && from < end {
			return corrupt("entry %d is missing", from)
		}
		for _, e := range rows {
			if from >= end {
				return nil
			}
			if err := fn(from, e); err != nil {
				return err
			}
			from++
			limit--
		}
	}
	return nil
}

// entrySlice reads some entries from index on, and the head's size.
func (s *Store) entrySlice(ctx context.Context, from uint64, limit int) ([]store.Entry, uint64, error) {
	if err := s.acquire(ctx); err != nil {
		return nil, 0, err
	}
	defer s.release()
	if from >= s.head.Size {
		return nil, s.head.Size, nil
	}
	var rows []store.Entry
	bytes := 0
	err := s.c.query(func(row []driver.Value) error {
		var idx int64
		var data, commitment []byte
		if err := scan(row, &idx, &data, &commitment); err != nil {
			return corrupt("entry %d: %v", from+uint64(len(rows)), err)
		}
		if uint64(idx) != from+uint64(len(rows)) {
			return corrupt("entry %d is missing", from+uint64(len(rows)))
		}
		switch {
		case len(data) > store.SaltSize && commitment == nil:
			rows = append(rows, store.Entry{Salt: data[:store.SaltSize:store.SaltSize], Body: data[store.SaltSize:]})
		case data == nil && len(commitment) == len(store.Digest{}):
			rows = append(rows, store.Entry{Commitment: commitment})
		default:
			return corrupt("entry %d is malformed", idx)
		}
		if bytes += len(data); bytes >= sliceBytes {
			return errStop
		}
		return nil
	}, `SELECT idx, data, commitment FROM entries WHERE idx >= ? ORDER BY idx LIMIT ?`, int64(from), int64(limit))
	if err != nil {
		return nil, 0, readError("reading entries", err)
	}
	return rows, s.head.Size, nil
}

// Hashes implements store.Store: store.ErrNotFound when an index lies beyond the stored ones.
func (s *Store) Hashes(ctx context.Context, indexes []uint64) ([]store.Digest, error) {
	out := make([]store.Digest, len(indexes))
	// The hashes of a batch are one row: asked for in order, each row is read once.
	order := make([]int, len(indexes))
	for i := range order {
		order[i] = i
	}
	sort.Slice(order, func(a, b int) bool { return indexes[order[a]] < indexes[order[b]] })
	for len(order) > 0 {
		n := min(len(order), sliceRows)
		if err := s.hashSlice(ctx, indexes, order[:n], out); err != nil {
			return nil, err
		}
		order = order[n:]
	}
	return out, nil
}

func (s *Store) hashSlice(ctx context.Context, indexes []uint64, order []int, out []store.Digest) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	const size = uint64(len(store.Digest{}))
	var first, end uint64 // of the row at hand
	var hashes []byte
	for _, at := range order {
		want := indexes[at]
		if want >= s.head.Hashes {
			return fmt.Errorf("%w: hash %d of %d", store.ErrNotFound, want, s.head.Hashes)
		}
		if want >= end {
			var hash int64
			if _, err := s.c.one([]any{&hash, &hashes}, `SELECT hash, hashes FROM batches WHERE hash <= ? ORDER BY hash DESC LIMIT 1`, int64(want)); err != nil {
				return readError("reading hashes", err)
			}
			first, end = uint64(hash), uint64(hash)+uint64(len(hashes))/size
			if want < first || want >= end {
				return corrupt("hash %d is missing", want)
			}
		}
		copy(out[at][:], hashes[(want-first)*size:])
	}
	return nil
}

// get reads one row by its key.
func (s *Store) get(ctx context.Context, what string, dest []any, text string, key driver.Value) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	found, err := s.c.one(dest, text, key)
	if err != nil {
		return readError("reading "+what, err)
	}
	if !found {
		return fmt.Errorf("%w: no such %s", store.ErrNotFound, what)
	}
	return nil
}

// Blob implements store.Store. The data is checked against its name.
func (s *Store) Blob(ctx context.Context, d store.Digest) ([]byte, error) {
	var data []byte
	if err := s.get(ctx, "blob", []any{&data}, `SELECT data FROM blobs WHERE digest = ?`, d[:]); err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != d {
		return nil, corrupt("blob %x is not what its digest says", d[:8])
	}
	return data, nil
}

// Sealed implements store.Store: one read by primary key.
func (s *Store) Sealed(ctx context.Context, id uint64) (store.Sealed, error) {
	v := store.Sealed{ID: id}
	var kek int64
	key := int64(-1) // no row has it
	if id <= math.MaxInt64 {
		key = int64(id)
	}
	err := s.get(ctx, "sealed version", []any{&kek, &v.WrappedKey, &v.Ciphertext}, `SELECT kek, wrapped, ciphertext FROM sealed WHERE id = ?`, key)
	if err != nil {
		return store.Sealed{}, err
	}
	if kek < 0 || kek > math.MaxUint32 {
		return store.Sealed{}, corrupt("sealed version %d has key number %d", id, kek)
	}
	v.KEK = uint32(kek)
	return v, nil
}

// Key implements store.Store.
func (s *Store) Key(ctx context.Context, name string) ([]byte, error) {
	var data []byte
	if err := s.get(ctx, "key", []any{&data}, `SELECT data FROM keys WHERE name = ?`, name); err != nil {
		return nil, err
	}
	return data, nil
}

// Checkpoint implements store.Store.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) {
	var signed []byte
	if err := s.get(ctx, "checkpoint", []any{&signed}, `SELECT signed FROM checkpoint WHERE one = ?`, int64(1)); err != nil {
		return nil, err
	}
	return signed, nil
}

// SealedUnder implements store.Store. There is no index on kek, which every secret write would
// pay for; a rewrap is rare, and reads the table in slices.
func (s *Store) SealedUnder(ctx context.Context, notKEK uint32, after uint64, limit int) ([]uint64, error) {
	var out []uint64
	for limit > len(out) && after < math.MaxInt64 {
		last, err := s.sealedSlice(ctx, after, func(id uint64, kek int64) {
			if kek != int64(notKEK) && len(out) < limit {
				out = append(out, id)
			}
		})
		if err != nil {
			return nil, err
		}
		if last == after {
			break
		}
		after = last
	}
	return out, nil
}

// sealedSlice calls fn for some versions after an ID, and returns the last of them.
func (s *Store) sealedSlice(ctx context.Context, after uint64, fn func(id uint64, kek int64)) (uint64, error) {
	if err := s.acquire(ctx); err != nil {
		return 0, err
	}
	defer s.release()
	err := s.c.query(func(row []driver.Value) error {
		var id, kek int64
		if err := scan(row, &id, &kek); err != nil {
			return corrupt("sealed version after %d: %v", after, err)
		}
		after = uint64(id)
		fn(after, kek)
		return nil
	}, `SELECT id, kek FROM sealed WHERE id > ? ORDER BY id LIMIT ?`, int64(after), int64(sliceRows))
	if err != nil {
		return 0, readError("listing sealed versions", err)
	}
	return after, nil
}

// A BatchRoot is the root that was stored with one batch: of the tree with Size leaves.
type BatchRoot struct {
	Cursor uint64 // where the next call goes on
	Size   uint64
	Root   store.Digest
}

// BatchRoots reads the roots that were stored with the batches, in order, from a cursor on (0: from the
// first), at most limit of them. Only the newest is the head's; an auditor compares them all.
func (s *Store) BatchRoots(ctx context.Context, cursor uint64, limit int) ([]BatchRoot, error) {
	if err := s.acquire(ctx); err != nil {
		return nil, err
	}
	defer s.release()
	var out []BatchRoot
	err := s.c.query(func(row []driver.Value) error {
		var hash, end int64
		var root []byte
		if err := scan(row, &hash, &end, &root); err != nil {
			return corrupt("batch row: %v", err)
		}
		if len(root) != len(store.Digest{}) || end < 0 {
			return corrupt("batch row %d is malformed", hash)
		}
		out = append(out, BatchRoot{Cursor: uint64(hash) + 1, Size: uint64(end), Root: store.Digest(root)})
		return nil
	}, `SELECT hash, first + count, root FROM batches WHERE hash >= ? ORDER BY hash LIMIT ?`, int64(cursor), int64(limit))
	return out, err
}
