package workload

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
)

// How a process is held, as the claim process.held_by says; from the strongest.
const (
	// HeldByPeerPidfd: the kernel gave the process itself, as it noted it when the connection was made.
	HeldByPeerPidfd = "peerpidfd"
	// HeldByPidfd: opened by its number. A process that got the number between the connection and Open would be taken for
	// the one that connected, if it has the same user; from then on, none.
	HeldByPidfd = "pidfd"
	// HeldByStartTime: the same, on a kernel without pidfds: its directory in /proc, and the time when it was started.
	HeldByStartTime = "start-time"
)

// Process is one process, held until Close. It is safe for concurrent use.
type Process struct {
	in    *Inspector
	peer  localapi.Peer
	held  string
	pidfd *os.File // nil: the kernel has none
	dir   *os.File // /proc/PID; nil: it has no number here, or /proc hides it
	birth stat     // when it was opened

	// Files of dir that are read again and again: opening them is the larger part of reading them.
	stat, cgroup *os.File // cgroup is nil on a kernel without cgroups

	mu         sync.Mutex
	toldCgroup []byte     // as it was told last; nil: not yet
	toldExe    *fileState // the same
}

// Open holds the process that made a connection: who called connect(2), or socketpair(2). Call it as soon as the connection is there.
//
// The error's reason is process-gone if that process has ended, which the connection may outlive; process-changed if
// another has its number; not-proved if the kernel does not say. A process of a PID namespace that is not visible here is no
// error: only what the socket tells of it is claimed. Close must be called.
func (i *Inspector) Open(conn *net.UnixConn) (*Process, error) {
	peer, err := localapi.PeerOf(conn)
	if err != nil {
		return nil, unreadable("the credentials", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, unreadable("the credentials", err)
	}
	pidfd := -1
	var kernel error
	if err := raw.Control(func(fd uintptr) { pidfd, kernel = i.peerPidfd(int(fd)) }); err != nil {
		return nil, unreadable("the credentials", err)
	}
	switch {
	case kernel == nil:
		return i.hold(peer, pidfd, HeldByPeerPidfd)
	case errors.Is(kernel, unix.ESRCH), errors.Is(kernel, unix.EINVAL):
		// Before Linux 6.16 there is no pidfd of a process that was reaped.
		return nil, gone(kernel)
	case !errors.Is(kernel, unix.ENOPROTOOPT) && !errors.Is(kernel, unix.ENOSYS) && !errors.Is(kernel, unix.EPERM):
		return nil, unreadable("the credentials", kernel)
	}
	if peer.PID <= 0 {
		return i.hold(peer, -1, "")
	}
	pidfd, kernel = i.pidfdOpen(int(peer.PID))
	switch {
	case kernel == nil:
		return i.hold(peer, pidfd, HeldByPidfd)
	case errors.Is(kernel, unix.ESRCH):
		return nil, gone(kernel)
	case !errors.Is(kernel, unix.ENOSYS) && !errors.Is(kernel, unix.EPERM):
		return nil, unreadable("the credentials", kernel)
	}
	return i.hold(peer, -1, HeldByStartTime)
}

// hold opens /proc/PID and makes sure that it is of the process behind the pidfd, which it takes over; -1 is none.
func (i *Inspector) hold(peer localapi.Peer, pidfd int, how string) (*Process, error) {
	p := &Process{in: i, peer: peer, held: how}
	if pidfd >= 0 {
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	err := p.openDir()
	if err == nil {
		err = p.alive()
	}
	if err == nil && p.dir != nil {
		err = p.begin()
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) openDir() error {
	if p.peer.PID <= 0 || p.in.proc == nil {
		return nil
	}
	err := with(p.in.proc, func(proc int) error {
		fd, err := openAt(proc, strconv.Itoa(int(p.peer.PID)), unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			p.dir = os.NewFile(uintptr(fd), "process")
		}
		return err
	})
	switch {
	case err == nil:
		return nil
	case !ended(err) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM):
		return unreadable("/proc", err)
	case p.pidfd == nil:
		return gone(err) // or hidden (hidepid of proc(5)), and then nothing here could tell it from the next one with its number
	}
	return nil
}

// alive asks the pidfd. While it says yes, nobody else has the process's number: so what was opened by number before that
// answer is of this process.
func (p *Process) alive() error {
	if p.pidfd == nil {
		return nil
	}
	return with(p.pidfd, func(fd int) error {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			switch _, err := unix.Poll(fds, 0); {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return unreadable("the pidfd", err)
			case fds[0].Revents != 0:
				return gone(nil)
			}
			return nil
		}
	})
}

// begin notes what must stay the same.
func (p *Process) begin() error {
	return with(p.dir, func(dir int) error {
		fd, err := openAt(dir, "stat", unix.O_RDONLY)
		if err != nil {
			return p.failed("stat", err)
		}
		p.stat = os.NewFile(uintptr(fd), "stat")
		if p.birth, err = restat(fd); err != nil {
			return p.failed("stat", err)
		}
		fd, err = openAt(dir, "cgroup", unix.O_RDONLY)
		switch {
		case err == nil:
			p.cgroup = os.NewFile(uintptr(fd), "cgroup")
		case !errors.Is(err, unix.ENOENT): // whether it is missing because the process is gone, alive and Same find out
			return p.failed("the cgroup", err)
		}
		if p.birth.over() {
			return gone(nil)
		}
		if p.held == HeldByPeerPidfd {
			return nil
		}
		// It was found by its number, which could be another's since the connection was made: of the same user then, or it is noticed.
		// A process that changed its user meanwhile looks the same, and has to ask again.
		uid, err := effectiveUID(dir)
		if err != nil {
			return p.failed("status", err)
		}
		if uid != p.peer.UID {
			return changed("is of another user than the one who connected")
		}
		return nil
	})
}

func (p *Process) failed(what string, err error) error {
	if ended(err) {
		return gone(err)
	}
	return unreadable(what, err)
}

// Peer is what the socket says of the process.
func (p *Process) Peer() localapi.Peer { return p.peer }

// HeldBy is how the process is held; empty: not at all, because the kernel has no pidfds, and the process no number here.
func (p *Process) HeldBy() string { return p.held }

// Same says whether the process is still the one that the claims are about: it lives, executes the program that it did when it
// was opened, from the same unchanged file if that was told, and is in the same cgroups. Ask it right before something is handed
// over. Nil is yes; the reasons of errors are those of Open. What can change after the answer is what the process itself
// does, and it has what was handed over then.
func (p *Process) Same() error {
	if err := p.alive(); err != nil {
		return err
	}
	if p.dir == nil {
		return nil
	}
	p.mu.Lock()
	cgroup, exe := p.toldCgroup, p.toldExe
	p.mu.Unlock()
	if err := p.compare(cgroup, exe); err != nil {
		return err
	}
	// What was read is true of a process that lives still.
	return p.alive()
}

func (p *Process) compare(cgroup []byte, exe *fileState) error {
	var now stat
	err := with(p.stat, func(fd int) (err error) {
		now, err = restat(fd)
		return err
	})
	switch {
	case err != nil:
		return p.failed("stat", err)
	case now.over():
		return gone(nil)
	case now.start != p.birth.start:
		return changed("is another one, with the same number")
	case now.image != p.birth.image:
		return changed("executed another program after it connected")
	}
	if exe != nil {
		var found fileState
		err := with(p.dir, func(dir int) (err error) {
			found, err = stateOf(dir, "exe", 0)
			return err
		})
		if err != nil {
			return p.failed("the executable", err)
		}
		if found != *exe {
			return changed("has another executable than the one that was measured, or its file was changed or replaced")
		}
	}
	if cgroup != nil {
		text, err := p.readCgroup()
		if err != nil {
			return err
		}
		if !bytes.Equal(text, cgroup) {
			return changed("was moved to another cgroup")
		}
	}
	return nil
}

// Close lets the process go. What is under way ends first, or fails.
func (p *Process) Close() error {
	var err error
	for _, f := range []*os.File{p.pidfd, p.dir, p.stat, p.cgroup} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
