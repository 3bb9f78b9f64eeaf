package sqlite

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"math"

	"github.com/bailment/bailment/internal/store"
)

// partSize is the size of a snapshot's parts: about 3 ms of holding up commits each.
const partSize = 1 << 20

// maxParts is the number of parts of a snapshot beyond which it can only be damage: 1 TiB.
const maxParts = 1 << 20

// sweepParts is how many parts of replaced snapshots are deleted in one transaction.
const sweepParts = 4

// PutSnapshot implements store.Store. Parts are committed one by one and commits pass between
// them; the snapshot exists from its last transaction on, and what an interrupted call has left is
// removed by the next. The snapshots kept are the two with the highest indexes.
func (s *Store) PutSnapshot(ctx context.Context, index uint64, data []byte) error {
	if err := s.holdSnapshots(ctx); err != nil {
		return err
	}
	defer func() { <-s.snapshots }()
	if err := s.sweep(ctx); err != nil {
		return err
	}
	var first int64
	err := s.step(ctx, 0, func() error {
		if index >= s.head.Size {
			return fmt.Errorf("%w: a snapshot at entry %d of %d", store.ErrInvalid, index, s.head.Size)
		}
		_, err := s.c.one([]any{&first}, `SELECT coalesce(max(id), 0) + 1 FROM snapshot_parts`)
		return err
	}, nil)
	if err != nil {
		return err
	}
	parts := int64(0)
	for rest := data; len(rest) > 0; parts++ {
		part := rest[:min(len(rest), partSize)]
		rest = rest[len(part):]
		err := s.step(ctx, len(part), nil, func() error {
			return s.c.do(`INSERT INTO snapshot_parts (id, data) VALUES (?, ?)`, first+parts, part)
		})
		if err != nil {
			return err
		}
	}
	err = s.step(ctx, 0, nil, func() error {
		err := s.c.do(`INSERT OR REPLACE INTO snapshots (idx, first_part, parts, size) VALUES (?, ?, ?, ?)`,
			int64(index), first, parts, int64(len(data)))
		if err != nil {
			return err
		}
		return s.c.do(`DELETE FROM snapshots WHERE idx NOT IN (SELECT idx FROM snapshots ORDER BY idx DESC LIMIT 2)`)
	})
	if err != nil {
		return err
	}
	// It is done. Whether the replaced one's parts go now or at the next call is another matter; if
	// this fails for good, the handle says so from its next call on.
	_ = s.sweep(ctx)
	return nil
}

// step holds the connection for one read and one transaction, either of which may be nil.
func (s *Store) step(ctx context.Context, size int, read, write func() error) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	if s.readOnly {
		return store.ErrReadOnly
	}
	if read != nil {
		if err := read(); err != nil {
			return readError("reading snapshots", err)
		}
	}
	if write != nil {
		if err := s.write(write); err != nil {
			return err
		}
		s.accountBytes(1, size)
	}
	return nil
}

// sweep deletes the parts that belong to no snapshot.
func (s *Store) sweep(ctx context.Context) error {
	for {
		var ids []int64
		err := s.step(ctx, 0, func() error {
			return s.c.query(func(row []driver.Value) error {
				var id int64
				if err := scan(row, &id); err != nil {
					return err
				}
				ids = append(ids, id)
				return nil
			}, `SELECT id FROM snapshot_parts p WHERE NOT EXISTS (SELECT 1 FROM snapshots s
				WHERE p.id >= s.first_part AND p.id < s.first_part + s.parts) ORDER BY id LIMIT ?`, int64(sweepParts))
		}, nil)
		if err != nil || len(ids) == 0 {
			return err
		}
		err = s.step(ctx, len(ids)*partSize, nil, func() error {
			for _, id := range ids {
				if err := s.c.do(`DELETE FROM snapshot_parts WHERE id = ?`, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// Snapshot implements store.Store. The two kept are stable while it reads, because it keeps
// PutSnapshot out.
func (s *Store) Snapshot(ctx context.Context, max uint64) (uint64, []byte, error) {
	if err := s.holdSnapshots(ctx); err != nil {
		return 0, nil, err
	}
	defer func() { <-s.snapshots }()
	var idx, first, parts, size int64
	err := s.get(ctx, "snapshot", []any{&idx, &first, &parts, &size},
		`SELECT idx, first_part, parts, size FROM snapshots WHERE idx BETWEEN 0 AND ? ORDER BY idx DESC LIMIT 1`, int64(min(max, math.MaxInt64)))
	if err != nil {
		return 0, nil, err
	}
	// What the row says may be anything, so it gets room for what there is.
	var have int64
	err = s.get(ctx, "parts of a snapshot", []any{&have}, `SELECT coalesce(sum(length(data)), 0) FROM snapshot_parts WHERE id >= ?`, first)
	if err != nil {
		return 0, nil, err
	}
	if size < 0 || size > have || parts < 0 || parts > maxParts || first < 0 || first > math.MaxInt64-maxParts {
		return 0, nil, corrupt("snapshot %d has %d bytes in %d parts", idx, size, parts)
	}
	var out bytes.Buffer
	out.Grow(int(size))
	for id := first; id < first+parts; id++ {
		var part []byte
		if err := s.get(ctx, "part of a snapshot", []any{&part}, `SELECT data FROM snapshot_parts WHERE id = ?`, id); err != nil {
			return 0, nil, err
		}
		out.Write(part)
	}
	if int64(out.Len()) != size {
		return 0, nil, corrupt("snapshot %d has %d bytes of %d", idx, out.Len(), size)
	}
	return uint64(idx), out.Bytes(), nil
}

// holdSnapshots takes the snapshots' own lock.
func (s *Store) holdSnapshots(ctx context.Context) error {
	select {
	case s.snapshots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
