package workload

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/attest"
)

// fileState tells one state of a file from another, as far as the kernel does.
type fileState struct {
	major, minor uint32
	ino, size    uint64
	mtime, ctime unix.StatxTimestamp
}

// stateOf looks at a file as fstatat(2) does, and asks for what the kernel has at hand (AT_STATX_DONT_SYNC): a file system that a
// user serves could else let the question hang, in a place where nobody waits for him.
func stateOf(dir int, name string, flags int) (fileState, error) {
	var st unix.Statx_t
	const mask = unix.STATX_INO | unix.STATX_SIZE | unix.STATX_MTIME | unix.STATX_CTIME
	for {
		err := unix.Statx(dir, name, flags|unix.AT_STATX_DONT_SYNC, mask, &st)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fileState{}, err
		}
		return fileState{st.Dev_major, st.Dev_minor, st.Ino, st.Size, st.Mtime, st.Ctime}, nil
	}
}

// measure measures the file that the process executes, through /proc/PID/exe: that link leads to the file itself, in whatever
// mount namespace it is, under whatever name, deleted too. The state is that of the file when it was opened; nil if nothing was measured.
//
// The kernel lets an agent look that has the process's user, or CAP_SYS_PTRACE in its user namespace (ptrace(2),
// PTRACE_MODE_READ_FSCREDS), and if not, that is no refusal of the process: its executable is not known.
func (p *Process) measure(ctx context.Context) (Executable, *fileState, error) {
	if p.dir == nil {
		return Executable{Source: SourceUnavailable}, nil, nil
	}
	var state fileState
	e, err := p.in.cfg.Measure(ctx, p.peer.UID, func(flags int) (*os.File, error) {
		var f *os.File
		err := with(p.dir, func(dir int) error {
			fd, err := openAt(dir, "exe", flags|unix.O_NONBLOCK|unix.O_NOCTTY)
			if err != nil {
				return err
			}
			f = os.NewFile(uintptr(fd), "executable")
			state, err = stateOf(fd, "", unix.AT_EMPTY_PATH)
			return err
		})
		if err != nil && f != nil {
			f.Close()
		}
		return f, err
	})
	switch {
	case errors.Is(err, fs.ErrPermission):
		return Executable{Source: SourceUnavailable}, nil, nil
	case ended(err):
		return Executable{}, nil, gone(err)
	case err != nil:
		return Executable{}, nil, err
	case e.Source != SourceMeasured:
		return e, nil, nil
	}
	return e, &state, nil
}

// Confirmed is the path of an open file, if it is that file's path for this agent too, else empty.
//
// The kernel's word alone (readlink of /proc/self/fd/N) is a path in the mount namespace that the descriptor is from, and every
// user who may make namespaces can mount what he likes where he likes in his own. So the path is opened here, and counts if it
// leads to the same file (device and inode), and is that file's name here without a symbolic link on the way. The number
// of the mount is not compared: an agent with a mount namespace of its own, as its systemd unit gives it, has other numbers
// for the same mounts, and one file is one file by whichever it was opened.
func Confirmed(fd int, st *unix.Stat_t) string {
	path, err := os.Readlink(fdPath(fd))
	if err != nil || st.Nlink == 0 || !filepath.IsAbs(path) || attest.CheckClaimText(path) != nil {
		return ""
	}
	here, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(here)
	var found unix.Stat_t
	if unix.Fstat(here, &found) != nil || found.Dev != st.Dev || found.Ino != st.Ino {
		return ""
	}
	if name, err := os.Readlink(fdPath(here)); err != nil || name != path {
		return ""
	}
	return path
}
