// Package sqlite keeps one environment's store in one directory, in SQLite: one process, one
// connection, a write-ahead log that is synced at every commit. README.md tells a write's life.
//
// Guaranteed: everything in store.Store; that Create never touches an existing store and Open
// never makes one; that no second handle, in this process or another, opens the directory; that
// a batch costs one sync. Not guaranteed: that what is read is authentic (the ledger's hashes tell);
// that shredded bytes leave a copy-on-write or flash medium; anything on a network file system.
//
// Its place: below the ledger, which calls it through the store.Store interface; only the
// composition root imports it.
package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/store"
)

// The files of a store's directory. SQLite makes walName itself, with dbName's permissions.
const (
	dbName    = "store.db"
	walName   = dbName + "-wal"
	newName   = "store.new" // a store in the making: renamed when it is whole
	lockName  = "LOCK"
	probeName = "probe.tmp" // see noRoom; removed at once
)

// applicationID marks our files in the SQLite header ("BALM"), so that another program's database
// is refused instead of migrated.
const applicationID = 0x42414c4d

// pageSize: with 8 KiB, batches of 64 entries take 15% less CPU but single ones 16% longer.
const pageSize = 4096

// pragmas of every connection. Order matters: exclusive locking before the first read means that
// the index of the write-ahead log lives in this process's memory, and no -shm file exists.
const pragmas = `PRAGMA locking_mode=EXCLUSIVE;
PRAGMA synchronous=` + syncPragma + `;
PRAGMA wal_autocheckpoint=0;
PRAGMA journal_size_limit=67108864;
PRAGMA secure_delete=ON;
PRAGMA temp_store=MEMORY;
PRAGMA cache_size=-4096;
PRAGMA mmap_size=0;
PRAGMA trusted_schema=OFF;
PRAGMA cell_size_check=ON;`

// Store is an open store.
type Store struct {
	dir      string
	lockFile *os.File // nil for a read-only copy
	copying  *os.File // the database, for the flock by which copies hold off checkpoints
	places   [2]place // of database and write-ahead log; see inPlace
	readOnly bool

	// sem is the lock over everything below, a channel so that waiting ends with a context, and
	// because its queue is first come, first served: a checkpoint can't be starved by commits.
	sem    chan struct{}
	c      *conn
	head   store.Head
	closed bool
	broken error // the write that failed; see store.ErrFatal

	inserts [insertSteps]*stmt // see insertEntries
	arena   []byte             // reused for salt||body

	wal       walState
	snapshots chan struct{} // held by one PutSnapshot or Snapshot at a time; taken before sem
	jobs      sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// Create makes an empty store in dir, which is made if missing (0700), and opens it. The error is
// store.ErrExists when a store is there already, and store.ErrLocked when somebody is making one.
// When it fails, or the machine stops, dir holds no store, or a whole empty one.
func Create(ctx context.Context, dir string) (*Store, error) {
	return create(ctx, dir, connectDriver)
}

// Open opens the store in dir and never makes one: without one the error is store.ErrNotFound.
// It finishes what a crash has interrupted, applies missing schema steps, and checks that the schema is ours and the end of
// the sequence (not the whole of it: `ledger verify` does, by hashes). Errors: store.ErrLocked,
// store.ErrTooNew, store.ErrCorrupt, store.ErrFull, and permissions wider than the owner's.
func Open(ctx context.Context, dir string) (*Store, error) {
	return open(ctx, dir, connectDriver)
}

func create(ctx context.Context, dir string, connect connector) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the store's directory: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	lockFile, err := lock(dir)
	if err != nil {
		return nil, err
	}
	if err := build(dir, connect); err != nil {
		unlock(lockFile)
		return nil, err
	}
	return openLocked(dir, lockFile, connect)
}

// build makes the database under another name and renames it when it is whole and synced.
func build(dir string, connect connector) error {
	for _, name := range []string{dbName, walName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%w: %s", store.ErrExists, filepath.Join(dir, name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	path := filepath.Join(dir, newName)
	for _, old := range []string{path, path + "-wal", path + "-shm", path + "-journal"} {
		if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing what an earlier attempt left: %w", err)
		}
	}
	// Made here, because SQLite would apply the umask to 0644.
	if err := durable.CreateExclusive(path, nil, 0o600); err != nil {
		return err
	}
	c, err := newConn(connect, dsn(path))
	if err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	err = c.script(fmt.Sprintf("PRAGMA page_size=%d; PRAGMA application_id=%d;", pageSize, applicationID))
	if err == nil {
		err = configure(c)
	}
	if err == nil {
		err = migrate(c, migrations)
	}
	if err == nil {
		// Everything into the database file, because only that is renamed.
		err = c.script("PRAGMA wal_checkpoint(TRUNCATE)")
	}
	if err := errors.Join(err, c.close()); err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	if st, err := os.Stat(path + "-wal"); err == nil && st.Size() > 0 {
		return errors.New("making the database: its write-ahead log did not go away")
	}
	return durable.Rename(path, filepath.Join(dir, dbName))
}

func open(ctx context.Context, dir string, connect connector) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Before the lock, so that a mistyped directory gets no LOCK file.
	if err := checkFile(filepath.Join(dir, dbName)); err != nil {
		return nil, err
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	lockFile, err := lock(dir)
	if err != nil {
		return nil, err
	}
	return openLocked(dir, lockFile, connect)
}

// openLocked opens the database of a directory that is ours, and releases it on failure.
func openLocked(dir string, lockFile *os.File, connect connector) (*Store, error) {
	s := &Store{dir: dir, lockFile: lockFile}
	if err := s.load(connect); err != nil {
		unlock(lockFile)
		return nil, err
	}
	return s, nil
}

// load connects, recovers, migrates and verifies.
func (s *Store) load(connect connector) (err error) {
	path := filepath.Join(s.dir, dbName)
	s.sem, s.snapshots = make(chan struct{}, 1), make(chan struct{}, 1)
	if s.c, err = newConn(connect, dsn(path)); err != nil {
		return readError("opening "+path, err)
	}
	defer func() {
		if err != nil {
			s.c.close()
			s.copying.Close() // a nil file answers with an error
		}
	}()
	if s.copying, err = os.Open(path); err != nil {
		return err
	}
	if err := s.recover(); err != nil {
		if s.full(err) {
			return fmt.Errorf("%w: opening %s: %w", store.ErrFull, path, err)
		}
		return readError("opening "+path, err)
	}
	if s.head, err = verify(s.c); err != nil {
		return readError("checking "+path, err)
	}
	if s.readOnly {
		return nil
	}
	return s.locate()
}

// recover makes the database whole on disk. SQLite has replayed the write-ahead log by the first
// read; then all of it is copied into the database and synced, before anything is answered. Why:
// when a sync of the log failed, the kernel may keep its pages as clean, readable and never to be
// written again. Read back after a restart they look committed, and what is appended behind them
// would be lost with them at the next power cut. Copying writes every page anew.
func (s *Store) recover() error {
	if err := configure(s.c); err != nil {
		return err
	}
	if s.readOnly { // a private copy needs no syncs
		if err := s.c.script("PRAGMA synchronous=OFF"); err != nil {
			return err
		}
	}
	if err := migrate(s.c, migrations); err != nil {
		return err
	}
	if err := checkSchema(s.c); err != nil {
		return err
	}
	done, err := s.runCheckpoint("TRUNCATE")
	if err == nil && !done {
		err = errors.New("write-ahead log could not be emptied")
	}
	return err
}

// configure sets up a connection and checks that the settings which durability rests on hold.
func configure(c *conn) error {
	if err := c.script(pragmas); err != nil {
		return err
	}
	var id int64
	if _, err := c.one([]any{&id}, "PRAGMA application_id"); err != nil {
		return err
	}
	if id != applicationID {
		return fmt.Errorf("%w: it is not a Bailment store (application id %#x)", store.ErrCorrupt, id)
	}
	for _, p := range []struct{ set, want string }{
		{"PRAGMA journal_mode=WAL", "wal"},
		{"PRAGMA main.locking_mode", "exclusive"},
	} {
		var got string
		if _, err := c.one([]any{&got}, p.set); err != nil {
			return err
		}
		if got != p.want {
			return fmt.Errorf("%s: SQLite answers %q, needed is %q", p.set, got, p.want)
		}
	}
	return nil
}

func dsn(path string) string {
	u := url.URL{Scheme: "file", Path: path}
	// mode=rw: SQLite never makes a file. _defensive, _dqs: no quirks. _error_rc: the error's own text.
	return u.String() + "?mode=rw&_defensive=1&_dqs=0&_error_rc=1"
}

// checkFile refuses a database that others can read or write: it holds wrapped keys.
func checkFile(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: no store in %s", store.ErrNotFound, filepath.Dir(path))
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case st.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is open to others (mode %04o): run chmod 600 on it, and find out who has read it",
			path, st.Mode().Perm())
	}
	return nil
}

// checkDir refuses a directory in which others can replace files.
func checkDir(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o): run chmod 700 on it", dir, st.Mode().Perm())
	}
	return nil
}

// acquire takes the connection, unless ctx ends first or the handle answers nothing any more.
func (s *Store) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case s.sem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.usable(); err != nil {
		s.release()
		return err
	}
	return nil
}

func (s *Store) release() { <-s.sem }

func (s *Store) usable() error {
	switch {
	case s.broken != nil:
		return fmt.Errorf("%w: %w", store.ErrFatal, s.broken)
	case s.closed:
		return fmt.Errorf("%w: it is closed", store.ErrFatal)
	}
	return nil
}

// write runs fn in a transaction and classifies how it ended. After a failure the handle is fatal.
// The caller holds the connection.
func (s *Store) write(fn func() error) error {
	err := s.c.do("BEGIN IMMEDIATE")
	if err == nil {
		if err = fn(); err == nil {
			if err := s.c.do("COMMIT"); err != nil {
				return s.fail(store.ErrUnknown, "committing", err)
			}
			if err := s.inPlace(); err != nil {
				return s.fail(store.ErrUnknown, "after committing", err)
			}
			return nil
		}
	}
	return s.fail(store.ErrNotDone, "writing", err)
}

// fail makes the handle fatal and names the failure. Before COMMIT no commit record was written,
// and recovery ignores every page that has none behind it: that is why such a failure is certain,
// whether or not the rollback (which only gives memory back) works.
func (s *Store) fail(class error, what string, err error) error {
	_ = s.c.do("ROLLBACK")
	err = fmt.Errorf("%s: %w", what, err)
	if s.full(err) {
		err = fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	s.broken = err
	return fmt.Errorf("%w: %w", class, err)
}

// Head implements store.Store. It is kept in memory, set by Open and after each commit.
func (s *Store) Head(ctx context.Context) (store.Head, error) {
	if err := s.acquire(ctx); err != nil {
		return store.Head{}, err
	}
	defer s.release()
	return s.head, nil
}

// Size implements store.Store: the database and its write-ahead log.
func (s *Store) Size(ctx context.Context) (int64, error) {
	if err := s.acquire(ctx); err != nil {
		return 0, err
	}
	defer s.release()
	var sum int64
	for _, name := range []string{dbName, walName} {
		st, err := os.Stat(filepath.Join(s.dir, name))
		switch {
		case err == nil:
			sum += st.Size()
		case name == dbName || !errors.Is(err, fs.ErrNotExist):
			return 0, err
		}
	}
	return sum, nil
}

// Close implements store.Store. It waits for the call under way, moves the write-ahead log into
// the database if the handle is sound, and releases the directory. A second call does nothing.
func (s *Store) Close() error {
	s.sem <- struct{}{}
	if s.closed {
		s.release()
		return nil
	}
	s.closed = true
	err := s.c.close()
	// A database without a name lives as long as it is open: for whoever wants to save it.
	if s.readOnly || !s.removed() {
		s.copying.Close()
	}
	if s.lockFile != nil {
		unlock(s.lockFile)
	}
	s.release()
	s.jobs.Wait()
	if s.readOnly {
		return errors.Join(err, os.RemoveAll(s.dir))
	}
	if s.broken != nil {
		return nil // said already, and a crash is an end too
	}
	return err
}

// blob binds bytes so that the empty slice stays a blob instead of NULL.
func blob(b []byte) driver.Value { return b }
