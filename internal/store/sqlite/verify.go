package sqlite

import (
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/bailment/bailment/internal/store"
)

// Open looks at the newest batches: as many as these, or as have these entries.
const (
	tailBatches = 64
	tailEntries = 2048
)

// verify reads the head and checks that the end of the store hangs together: the newest batches
// follow one another in entries and hashes, every entry of theirs is there, and nothing stands
// behind the last. It costs the same for every size of store.
//
// Rejected: PRAGMA quick_check, which reads the whole file (half a minute for 10 GiB) and proves
// less than the ledger's hashes do, which are checked in the background anyway. What SQLite itself
// notices on the way (a short file, a page that is none) is reported as damage as well.
func verify(c *conn) (store.Head, error) {
	var head store.Head
	var lowest store.Head // where the oldest batch looked at begins
	seen, whole := 0, true
	err := c.query(func(row []driver.Value) error {
		var hash, first, count, ms, length int64
		var root []byte
		if err := scan(row, &hash, &first, &count, &ms, &root, &length); err != nil {
			return corrupt("batch row: %v", err)
		}
		const size = int64(len(store.Digest{}))
		n := length / size
		if hash < 0 || first < 0 || count < 1 || n < count || length%size != 0 || int64(len(root)) != size {
			return corrupt("batch row %d is malformed", hash)
		}
		end := store.Head{Size: uint64(first + count), Hashes: uint64(hash + n)}
		if seen == 0 {
			head = end
			head.Root, head.Time = store.Digest(root), time.UnixMilli(ms).UTC()
		} else if end.Size != lowest.Size || end.Hashes != lowest.Hashes {
			return corrupt("the batch before entry %d ends at entry %d, hash %d", lowest.Size, end.Size, end.Hashes)
		}
		lowest = store.Head{Size: uint64(first), Hashes: uint64(hash)}
		if seen++; head.Size-lowest.Size >= tailEntries {
			whole = false
			return errStop
		}
		return nil
	}, `SELECT hash, first, count, time, root, length(hashes) FROM batches ORDER BY hash DESC LIMIT ?`, int64(tailBatches))
	if err != nil {
		return store.Head{}, err
	}
	if whole && seen < tailBatches && (lowest.Size != 0 || lowest.Hashes != 0) {
		return store.Head{}, corrupt("the first batch begins at entry %d, hash %d", lowest.Size, lowest.Hashes)
	}
	var count, last int64
	if _, err := c.one([]any{&count, &last}, `SELECT count(*), coalesce(max(idx), -1) FROM entries WHERE idx >= ?`, int64(lowest.Size)); err != nil {
		return store.Head{}, err
	}
	if last+1 != int64(head.Size) && !(head.Size == 0 && last == -1) || count != int64(head.Size-lowest.Size) {
		return store.Head{}, corrupt("batches end at entry %d, entries at %d, with %d from %d on", head.Size, last, count, lowest.Size)
	}
	return head, nil
}

// corrupt makes an error that is store.ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w", store.ErrCorrupt, fmt.Errorf(format, args...))
}
