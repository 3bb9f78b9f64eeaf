package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/store"
)

// copyTries bounds how often a copy is begun anew because the store was reset meanwhile.
const copyTries = 10

// walHeader is the length of the write-ahead log's header: format, page size, sequence number and
// the two salts (https://www.sqlite.org/fileformat2.html#walformat, section 4.1).
const walHeader = 32

// OpenReadOnly opens a private copy of the store in dir, for auditors and backups. Its writing
// methods fail with store.ErrReadOnly; Close removes the copy. It works whether or not a server has
// the directory open, needs room for a copy in the temporary directory (TMPDIR), and changes
// nothing in dir: no file, no lock file, no time stamp but the access time.
//
// The copy is the store at one commit, between the call and its return. Why, while a server writes:
//   - A commit only appends to the write-ahead log (WAL). The database file changes only by a
//     checkpoint, which writes there what the WAL has, and the WAL begins anew (with new salts in
//     its header) only when a finished checkpoint is followed by the next commit.
//   - So while the salts stay the same, the database plus the WAL copied AFTER it has each page:
//     one that a checkpoint changed under the copy was in the WAL before, thus is in its copy, and
//     the WAL's version wins. Pages of the copied WAL count up to its last whole transaction,
//     which the checksum chain from the header on tells, so a torn end costs nothing.
//   - If the header is another one after the copy, or another one was copied, it begins again.
//     Without a WAL, the database file must be the same one, of the same size and time.
//
// A busy server resets its WAL many times while gigabytes are copied. Therefore the copy holds a
// shared flock(2) on the database file, and the engine puts off checkpoints while anybody does,
// up to a bound. That makes it fast; the comparison above makes it right.
func OpenReadOnly(ctx context.Context, dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "bailment-read-*")
	if err != nil {
		return nil, err
	}
	s := &Store{dir: tmp, readOnly: true}
	if err = (&copier{dir: dir, tmp: tmp}).run(ctx); err == nil {
		err = s.load(connectDriver)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading the store in %s: %w", dir, err), os.RemoveAll(tmp))
	}
	return s, nil
}

// copier makes one copy. A test sets at, to act on the store between the steps.
type copier struct {
	dir, tmp string
	at       func(step string)
}

func (c *copier) reached(step string) {
	if c.at != nil {
		c.at(step)
	}
}

// run copies until a copy is consistent.
func (c *copier) run(ctx context.Context) error {
	for try := range copyTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		ok, err := c.try(ctx)
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try+1) * 10 * time.Millisecond):
		}
	}
	return fmt.Errorf("the store was reset during each of %d copies: try again when it is less busy", copyTries)
}

// try copies once and says whether the copy is consistent.
func (c *copier) try(ctx context.Context) (bool, error) {
	dbPath, walPath := filepath.Join(c.dir, dbName), filepath.Join(c.dir, walName)
	db, err := os.Open(dbPath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("%w: no store in %s", store.ErrNotFound, c.dir)
	}
	if err != nil {
		return false, err
	}
	defer db.Close() // releases the flock
	if err := flockWait(ctx, db, unix.LOCK_SH); err != nil {
		return false, err
	}
	before, err := db.Stat()
	if err != nil {
		return false, err
	}
	if !before.Mode().IsRegular() {
		return false, fmt.Errorf("%s is not a regular file", dbPath)
	}
	header, err := readHeader(walPath)
	if err != nil {
		return false, err
	}
	if header == nil && time.Since(before.ModTime()).Abs() < 50*time.Millisecond {
		return false, nil // a change in the same tick of the file system's clock would not show
	}
	c.reached("header read")
	if _, err := copyFile(filepath.Join(c.tmp, dbName), db, before.Size()); err != nil {
		return false, err
	}
	c.reached("database copied")
	copied, err := copyWAL(filepath.Join(c.tmp, walName), walPath)
	if err != nil {
		return false, err
	}
	c.reached("log copied")
	again, err := readHeader(walPath)
	if err != nil {
		return false, err
	}
	after, err := os.Stat(dbPath)
	if err != nil || !os.SameFile(before, after) || !bytes.Equal(header, again) || !bytes.Equal(header, copied) {
		return false, nil // replaced, reset or gone meanwhile
	}
	return header != nil || after.Size() == before.Size() && after.ModTime().Equal(before.ModTime()), nil
}

// readHeader reads the WAL's header: nil when there is no WAL, or one without a header yet.
func readHeader(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := make([]byte, walHeader)
	switch _, err := io.ReadFull(f, h); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return h, nil
}

// copyWAL copies the WAL, if there is one, and returns the header that was copied.
func copyWAL(to, from string) ([]byte, error) {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier try
		return nil, err
	}
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Up to its present end: a busy writer can't make the copy endless.
	if _, err := copyFile(to, f, st.Size()); err != nil {
		return nil, err
	}
	return readHeader(to)
}

// copyFile copies the first size bytes of f, or all if it became shorter.
func copyFile(to string, f *os.File, size int64) (int64, error) {
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, io.LimitReader(f, size))
	return n, errors.Join(err, out.Close())
}

// flockWait takes an advisory lock, waiting for a checkpoint under way, until ctx ends.
func flockWait(ctx context.Context, f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
