package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/store"
)

// lock takes the directory for this handle: flock(2) on its LOCK file, which the kernel releases
// when the process ends, however it ends, and which also keeps out a second handle in the same
// process. The file holds the process ID for people; only the lock itself decides. The file is
// never removed: a lock on a removed file would exclude nobody.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is held by %s", store.ErrLocked, path, holder(f))
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if err := f.Truncate(0); err == nil {
		// Who holds it is a help, not a promise: a full disk must not keep the store from opening.
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if pid, e := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && e == nil && pid > 0 {
		return "process " + strconv.Itoa(pid)
	}
	return "another process"
}

func unlock(f *os.File) {
	_ = f.Truncate(0)
	f.Close() // releases the lock
}
