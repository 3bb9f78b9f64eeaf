package sqlite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	modernc "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/bailment/bailment/internal/store"
)

// primary is the SQLite result code of err without its extension, or 0.
func primary(err error) int {
	var e *modernc.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// readError classifies what went wrong while reading.
func readError(what string, err error) error {
	switch primary(err) {
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return fmt.Errorf("%w: %s: %w", store.ErrCorrupt, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// full says whether a failed write failed for lack of room. SQLite reports ENOSPC as SQLITE_FULL,
// but EDQUOT (a quota) and EFBIG (the process's file size limit) only as an I/O error, and keeps
// the errno to itself; so the file system is asked again, with the same kind of write.
func (s *Store) full(err error) bool {
	switch primary(err) {
	case lib.SQLITE_FULL:
		return true
	case lib.SQLITE_IOERR:
		return noRoom(s.dir)
	}
	return false
}

// noRoom tries to add to a scratch file at the place where the write-ahead log or the database
// ends, whichever is farther.
func noRoom(dir string) bool {
	path := filepath.Join(dir, probeName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return isNoRoom(err)
	}
	defer os.Remove(path)
	defer f.Close()
	var end int64
	for _, name := range []string{dbName, walName} {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil {
			end = max(end, st.Size())
		}
	}
	_, err = f.WriteAt(make([]byte, 64<<10), end)
	if err == nil {
		err = f.Sync() // where space is allocated late
	}
	return isNoRoom(err)
}

func isNoRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
