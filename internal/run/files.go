package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// files are the files that values were put into, on storage that never reaches a disk but by way of swap.
type files struct {
	dir  string     // the private directory; empty: not made yet
	lock *os.File   // dir, locked as long as this process lives
	open []*os.File // kept open to be wiped through, whatever happens to their names
	made []string
}

// storages are where a private directory may be made, in order of preference.
func storages() []string {
	var out []string
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		out = append(out, d)
	}
	return append(out, fmt.Sprintf("/run/user/%d", os.Geteuid()), "/dev/shm", "/run")
}

// inMemory reports whether a directory is on tmpfs or ramfs (statfs(2)).
func inMemory(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
}

// private makes a file in a directory of this run's own, 0700, and returns its path.
func (f *files) private(s Secret, value []byte) (string, error) {
	if err := f.makeDir(storages()); err != nil {
		return "", err
	}
	path := filepath.Join(f.dir, s.Env)
	return path, f.make(path, value, false)
}

// at makes a file that must not exist, readable by its owner only, on memory-backed storage.
func (f *files) at(path string, value []byte) error {
	dir := filepath.Dir(path)
	if !inMemory(dir) {
		return problem.New(problem.ReasonInvalid, "%s is not on memory-backed storage: the value could stay on a disk", dir).
			WithFix("name a file below /dev/shm, /run/user/UID or another tmpfs")
	}
	// Of the user's own directories first: who reads this one may take whatever is in it for a secret.
	if err := f.makeDir(append(storages(), dir)); err != nil {
		return err
	}
	return f.make(path, value, true)
}

// make makes a file. One outside of the private directory is noted there before it holds anything.
func (f *files) make(path string, value []byte, note bool) error {
	// O_EXCL and O_NOFOLLOW: in a directory of all users, somebody may have put something there for us.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return problem.New(problem.ReasonExists, "%s exists already", path).WithFix("remove it, if nobody uses it, or name another file")
	}
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "making the file for a secret")
	}
	f.open, f.made = append(f.open, file), append(f.made, path)
	if note {
		if err := f.note(file, path); err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "noting the file for a secret")
		}
	}
	if _, err := file.Write(value); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "writing the file for a secret")
	}
	return nil
}

// remove overwrites and removes what was made. It goes through the open files, so that a file that the child renamed
// is wiped as well; a name that is another file's by now is left alone.
func (f *files) remove() {
	for i, file := range f.open {
		if st, err := file.Stat(); err == nil {
			wipeFile(file, st.Size())
			if now, err := os.Lstat(f.made[i]); err == nil && os.SameFile(st, now) {
				_ = os.Remove(f.made[i])
			}
		}
		file.Close()
	}
	f.open, f.made = nil, nil
	if f.dir != "" {
		_ = os.RemoveAll(f.dir) // ours alone, with whatever the child put there
		f.lock.Close()
		f.dir, f.lock = "", nil
	}
}

func wipeFile(file *os.File, size int64) {
	zero := make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(zero)) {
		_, _ = file.WriteAt(zero[:min(int64(len(zero)), size-at)], at)
	}
	_ = file.Truncate(0)
}
