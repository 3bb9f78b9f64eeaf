package run

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// A run's directory is locked (flock(2)) as long as its process lives, whatever that dies of. So the next run of the same user
// can tell what was left behind, and wipes it. A file that somebody else named stands in the directory as a symbolic link
// whose name says which file it was made as, so that what is there under its path by then is not mistaken for it.
const (
	dirPrefix  = "bailment-"
	notePrefix = "at-"
	tries      = 8
)

// makeDir makes the run's directory, if there is none yet, in the first place that takes it.
func (f *files) makeDir(candidates []string) error {
	if f.dir != "" {
		return nil
	}
	for _, parent := range candidates {
		if !inMemory(parent) {
			continue
		}
		for range tries {
			var name [16]byte
			if _, err := rand.Read(name[:]); err != nil {
				return problem.Wrap(err, problem.ReasonEntropy, "naming a directory")
			}
			dir := filepath.Join(parent, dirPrefix+hex.EncodeToString(name[:]))
			if os.Mkdir(dir, 0o700) != nil {
				break
			}
			// Before the lock is ours, another run may have taken the directory for one that was left.
			if lock := lockDir(dir); lock != nil {
				f.dir, f.lock = dir, lock
				return nil
			}
			_ = os.Remove(dir)
		}
	}
	return problem.New(problem.ReasonUnsupported, "there is no memory-backed storage that this user may write to").
		WithFix("mount a tmpfs and name a file on it, give XDG_RUNTIME_DIR, or use --secret for the environment")
}

// lockDir opens and locks a directory of this user; nil: somebody lives in it, or it is not one.
func lockDir(dir string) *os.File {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	file := os.NewFile(uintptr(fd), dir)
	var st, now unix.Stat_t
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil || unix.Fstat(fd, &st) != nil || unix.Lstat(dir, &now) != nil ||
		st.Dev != now.Dev || st.Ino != now.Ino || int(st.Uid) != os.Geteuid() {
		file.Close()
		return nil
	}
	return file
}

// note remembers a file outside of the directory.
func (f *files) note(file *os.File, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return err
	}
	return os.Symlink(path, filepath.Join(f.dir, fmt.Sprintf("%s%x-%x", notePrefix, st.Dev, st.Ino)))
}

// Sweep wipes and removes what this user's killed runs left in those directories, for who sees to a killed run. The next run of the same
// user does so too.
func Sweep(places []string) { sweep(places) }

// sweep wipes and removes what this user's killed runs left in those directories.
func sweep(parents []string) {
	for _, parent := range parents {
		if !inMemory(parent) {
			continue
		}
		d, err := os.Open(parent)
		if err != nil {
			continue
		}
		for {
			// In pieces: in a directory of all users, anybody may have put anything.
			names, err := d.Readdirnames(256)
			for _, name := range names {
				if id, ours := strings.CutPrefix(name, dirPrefix); ours && len(id) == 32 {
					sweepDir(filepath.Join(parent, name))
				}
			}
			if err != nil || len(names) == 0 {
				break
			}
		}
		d.Close()
	}
}

func sweepDir(dir string) {
	// Looked at before it is opened, so that nobody's directory is locked but our own.
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Mode().Perm() != 0o700 {
		return
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		return
	}
	lock := lockDir(dir)
	if lock == nil {
		return
	}
	defer lock.Close()
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // what can't be wiped is still removed
		case e.Type().IsRegular():
			wipePath(path, nil)
		case e.Type() == fs.ModeSymlink && filepath.Dir(path) == dir:
			wipeNoted(path)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// wipeNoted wipes and removes the file that a link in the directory names, if it still is that file.
func wipeNoted(link string) {
	at, ok := strings.CutPrefix(filepath.Base(link), notePrefix)
	devText, inoText, both := strings.Cut(at, "-")
	dev, err1 := strconv.ParseUint(devText, 16, 64)
	ino, err2 := strconv.ParseUint(inoText, 16, 64)
	path, err3 := os.Readlink(link)
	if !ok || !both || err1 != nil || err2 != nil || err3 != nil || !filepath.IsAbs(path) {
		return
	}
	wipePath(path, func(st *unix.Stat_t) bool { return st.Dev == dev && st.Ino == ino })
}

// wipePath overwrites a regular file of this user; one that is asked about is removed as well.
func wipePath(path string, is func(*unix.Stat_t) bool) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	var st, now unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || is != nil && !is(&st) {
		return
	}
	wipeFile(file, st.Size)
	if is != nil && unix.Lstat(path, &now) == nil && now.Dev == st.Dev && now.Ino == st.Ino {
		_ = os.Remove(path)
	}
}
