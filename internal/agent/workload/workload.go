// Package workload finds out what the process at the other end of a Unix socket is, from the kernel of this machine, and whether
// it still is.
//
// Guaranteed: the process is held from Open to Close, so that everything is read of one process: /proc/PID is opened once, all
// reads go through that descriptor, which never leads to another process that got the number later, and a pidfd says whether it lives.
// How it is held is a claim (process.held_by), because the ways differ in strength. The executable is read through the process
// (/proc/PID/exe) and not by its name. Claims are of one moment: the process is compared before and after they are collected,
// and once more by Same, which callers ask right before they hand anything over. What the kernel's cgroup file says is
// believed only where the agent sees the host's hierarchy, and a container only where root's managers of cgroups put it;
// what a user or a container can make up has names of its own (claimed_…). Everything is bounded, and what isn't understood is left
// out: a rule that asks for it does not fit.
//
// Not guaranteed: what the process does with what it gets. A process may hand its socket, its descriptors and its memory to
// others of its user; one that executed another program before Open looks like that program from the beginning; scripts,
// libraries and code that is loaded later are not measured; and root, in every form, can be everybody. Cgroups are as true as
// those who may move processes: root, and below a delegated cgroup whom it was delegated to.
//
// Its place: below agent, which gives it the measurer and shares it between the local API and the SPIFFE Workload API. It
// relies on localapi for what the socket says, and on kubelet for pods.
package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/problem"
)

// Where an executable's digest is from, as the claim process.digest_source says.
const (
	SourceMeasured    = "measured"    // by the agent: of the process's own executable, or of a descriptor that it sent
	SourceClaimed     = "claimed"     // by the process itself
	SourceUnavailable = "unavailable" // the agent may not read it, or it is larger than what is measured
)

// Executable is what is known of a program's file.
type Executable struct {
	Path   string // empty: not known
	SHA256 string // 64 hexadecimal digits; empty: not known
	Source string // one of the sources
}

// Measure hashes the file that open opens, on behalf of a user, and closes it. It takes turns, so that one user's files delay nobody
// else: reading a file can hang, and so can opening it. With O_PATH as flags open asks the file system nothing, and what comes is
// good for looking at, and for finding what was measured before; with 0 it is opened for reading, in that user's turn. An error
// of open is returned as it is. It is called by many at once.
type Measure func(ctx context.Context, uid uint32, open func(flags int) (*os.File, error)) (Executable, error)

// Pods knows the pods of this machine. Find waits, as long as ctx lets it, for a container that is not listed yet.
type Pods interface {
	Find(ctx context.Context, podUID, containerID string) (kubelet.Pod, error)
}

// MaxParents is the longest chain of ancestors.
const MaxParents = 8

// Config of an Inspector.
type Config struct {
	Measure Measure
	Pods    Pods // nil: pods are not asked for
	Parents int  // how many ancestors are told, at most MaxParents; 0: none
}

// Inspector opens the processes behind connections. It keeps nothing but /proc open, and is safe for concurrent use.
type Inspector struct {
	cfg  Config
	proc *os.File // nil: there is no /proc of this process's PID namespace, so nothing is read there
	host bool     // this process sees cgroups as the host does

	// What the kernel may not have.
	peerPidfd func(socket int) (int, error)
	pidfdOpen func(pid int) (int, error)
}

// New looks at what this machine offers.
func New(cfg Config) (*Inspector, error) {
	if cfg.Measure == nil || cfg.Parents < 0 || cfg.Parents > MaxParents {
		return nil, problem.New(problem.ReasonInternal, "inspecting processes: the configuration is not complete")
	}
	i := &Inspector{cfg: cfg, peerPidfd: peerPidfd, pidfdOpen: func(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }}
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return i, nil //nolint:nilerr // without /proc there is less to say, and no reason to say nothing
	}
	i.proc = os.NewFile(uintptr(fd), "/proc")
	var fstype unix.Statfs_t
	if unix.Fstatfs(fd, &fstype) != nil || fstype.Type != unix.PROC_SUPER_MAGIC || readlinkAt(fd, "self") != strconv.Itoa(os.Getpid()) {
		// The /proc of another PID namespace (the host's, bound into a container) has other processes under the numbers that
		// the socket tells.
		i.proc.Close()
		i.proc = nil
		return i, nil
	}
	i.host = hostCgroups(fd)
	return i, nil
}

// Close lets go of /proc. Processes that are open stay usable.
func (i *Inspector) Close() error {
	if i.proc == nil {
		return nil
	}
	return i.proc.Close()
}

// peerPidfd asks for the pidfd of the process that made the connection (SO_PEERPIDFD, Linux 6.5): the kernel noted the
// process itself when it was made, so there is no number that could have been given to another one.
func peerPidfd(socket int) (int, error) {
	return unix.GetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
}

// initialCgroupNS is the inode of the initial cgroup namespace (PROC_CGROUP_INIT_INO of linux/proc_ns.h, 0xEFFFFFFB).
const initialCgroupNS = "cgroup:[4026531835]"

// hostCgroups reports whether the paths in /proc/PID/cgroup are the host's. In another cgroup namespace they are relative to a
// root that somebody chose (cgroup_namespaces(7)): the same path would mean another unit, another container.
func hostCgroups(proc int) bool {
	var st unix.Stat_t
	if errors.Is(unix.Fstatat(proc, "self/ns/cgroup", &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT) {
		return true // a kernel without cgroup namespaces (before 4.6)
	}
	return readlinkAt(proc, "self/ns/cgroup") == initialCgroupNS
}

// gone says that there is no process any more.
func gone(err error) error {
	p := problem.New(problem.ReasonProcessGone, "the process that asks has ended")
	p.Err = err
	return p
}

func changed(format string, args ...any) error {
	return problem.New(problem.ReasonProcessChanged, "the process that asks "+format, args...)
}

// ended reports whether a read of /proc failed because its process is over.
func ended(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) }

// unreadable is what is left: the kernel refuses to tell, for a reason that is not one of ours.
func unreadable(what string, err error) error {
	return problem.Wrap(err, problem.ReasonNotProved, "reading %s of the process that asks", what).
		WithFix("ask again; if it stays so, the agent's log says what this machine forbids")
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
