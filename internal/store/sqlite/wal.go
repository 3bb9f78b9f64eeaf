package sqlite

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/store"
)

// walLimit is how many pages the write-ahead log may hold before they are moved into the database:
// 16 MiB. Larger saves writes, because the pages at the right edge of each tree change in every
// batch and are moved once; smaller makes recovery after a crash shorter. Nobody reads beside the
// one connection, so a checkpoint always finishes, and the next commit begins the log anew in the
// same file: it stays at about this size, without growing or shrinking, which is also the cheapest
// to sync. journal_size_limit cuts it down after a batch of uncommon size.
const walLimit = 4096

// walMost is how far copies may make it grow, 1 GiB: then a checkpoint is done all the same, and
// the copy, which will notice, begins again.
const walMost = 64 * walLimit

// walState is what is known about the write-ahead log.
type walState struct {
	pages   int  // upper estimate of the pages in it
	scrub   bool // bytes were erased: empty the log for real, it still has them
	running bool // a checkpoint is on its way
}

// account adds a batch to the estimate and starts a checkpoint if it is time.
func (s *Store) account(b *store.Batch) {
	size, objects := len(b.Hashes)+len(b.Checkpoint), len(b.Seal)+len(b.Rewraps)+len(b.Blobs)+len(b.Keys)
	for i := range b.Entries {
		size += len(b.Entries[i].Body) + 64
	}
	for i := range b.Seal {
		size += len(b.Seal[i].Ciphertext) + len(b.Seal[i].WrappedKey)
	}
	for i := range b.Blobs {
		size += len(b.Blobs[i].Data)
	}
	for i := range b.Keys {
		size += len(b.Keys[i].Data)
	}
	if len(b.Shred)+len(b.Redact)+len(b.Rewraps)+len(b.Keys) > 0 || b.Wipe {
		s.wal.scrub = true
	}
	s.accountBytes(objects, size)
}

// accountBytes is for size bytes in a number of separate rows. An estimate, because SQLite tells
// the size of the log only through a hook that the driver doesn't have. It is made to err upwards:
// each row may touch three pages of its own, each transaction six more.
func (s *Store) accountBytes(objects, size int) {
	s.wal.pages += size/pageSize + size/(4*pageSize) + 3*objects + 6
	if s.wal.running || s.wal.pages < walLimit && !s.wal.scrub {
		return
	}
	// Beside the caller, who has his answer; commits queue behind it, it does not queue behind
	// more than one of them.
	s.wal.running = true
	s.jobs.Go(s.checkpoint)
}

// checkpoint moves the log into the database. A failure makes the handle fatal: what was
// acknowledged is safe in the log, and Open starts over from there.
func (s *Store) checkpoint() {
	s.sem <- struct{}{}
	defer s.release()
	s.wal.running = false
	if s.usable() != nil {
		return
	}
	// A copy under way (OpenReadOnly) puts the checkpoint off, but not for ever.
	if s.wal.pages < walMost {
		if err := unix.Flock(int(s.copying.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return // tried again after the next batch
		}
		defer unix.Flock(int(s.copying.Fd()), unix.LOCK_UN)
	}
	mode := "PASSIVE"
	if s.wal.scrub {
		mode = "TRUNCATE"
	}
	done, err := s.runCheckpoint(mode)
	if err != nil {
		_ = s.fail(store.ErrNotDone, "moving the write-ahead log into the database", err)
		return
	}
	if done {
		s.wal.pages, s.wal.scrub = 0, false
	}
}

// runCheckpoint reports whether the whole log was moved.
func (s *Store) runCheckpoint(mode string) (done bool, err error) {
	var busy, inLog, moved int64
	found, err := s.c.one([]any{&busy, &inLog, &moved}, "PRAGMA wal_checkpoint("+mode+")")
	if err != nil {
		return false, err
	}
	if !found {
		return false, fmt.Errorf("wal_checkpoint(%s) answered nothing", mode)
	}
	return busy == 0 && inLog == moved, nil
}

// settle waits for the checkpoint under way, if any: for tests and measurements.
func (s *Store) settle(ctx context.Context) error {
	s.jobs.Wait()
	if err := s.acquire(ctx); err != nil {
		return err
	}
	s.release()
	return nil
}
