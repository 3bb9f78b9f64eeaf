package job

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// Spawn starts the watchdog, whose argv it is given, and returns: so that the watchdog is nobody's child when who called this has ended. Its streams
// and its socket are passed on.
func Spawn(command []string) error {
	socket := os.NewFile(watchdogFD, "watchdog")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env, cmd.Dir, cmd.Stderr = []string{}, "/", os.Stderr
	cmd.ExtraFiles = []*os.File{socket}
	if err := cmd.Start(); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "starting the watchdog")
	}
	return cmd.Process.Release()
}

// Watch is the watchdog: it waits for the end of the process at the other end of its socket. If that gave everything back, it does nothing.
// Else it gives everything back, sees to it that the program which the dead process ran ends within its grace, wipes the files that values were
// put into, and says on note what it did. It minds no signal but SIGKILL: its life is bounded by the other's, and by the patience that it was told.
func Watch(note func(string)) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGTSTP, unix.SIGUSR1, unix.SIGUSR2)
	// It has the session's key.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "keeping this process from being dumped")
	}
	conn := os.NewFile(watchdogFD, "watchdog")
	if conn == nil {
		return problem.New(problem.ReasonInvalid, "this is started by `bailment ci run`, and by nobody else")
	}
	if _, err := conn.Write([]byte{readyByte}); err != nil {
		return problem.New(problem.ReasonInvalid, "this is started by `bailment ci run`, and by nobody else")
	}
	h := listen(conn)
	if h == nil || h.Done {
		return nil
	}
	var child sync.WaitGroup
	child.Go(func() {
		h.Child.finish(time.Duration(h.Grace))
		run.Sweep(h.Places) // not before the program's end: it may read its files until then
	})
	defer child.Wait()
	defer clear(h.Key)
	if !h.held() {
		return nil
	}
	c, err := h.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(h.Patience))
	defer cancel()
	note("the job's runner was killed; its watchdog " + h.giveBack(ctx, c).String())
	return nil
}

// startOf reads when a process began (proc(5)).
func startOf(pid int) (uint64, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is a name in parentheses that may hold anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const start = 22 - 3 // counted from the third
	if len(fields) <= start {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[start]), 10, 64)
	return n, err == nil
}

// is reports whether the process that has the number now is still the one that was meant.
func (p process) is() bool {
	start, ok := startOf(p.PID)
	return ok && start == p.Start
}

// finish waits for a process's end, and kills it with its group when its grace is over. The kernel sent it SIGTERM when its parent died.
func (p process) finish(grace time.Duration) {
	if p.PID <= 1 {
		return
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil || !p.is() {
		return // gone; or a kernel before 5.3, where SIGTERM was all
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) // if its parent's death was told to a thread's child only
	if waitFor(fd, grace) {
		return
	}
	// It has a group of its own where no terminal is shared, as in a job.
	if group, err := unix.Getpgid(p.PID); err == nil && group == p.PID && p.is() {
		_ = syscall.Kill(-p.PID, unix.SIGKILL)
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// waitFor reports whether the process of a pidfd ended within d.
func waitFor(fd int, d time.Duration) bool {
	end := time.Now().Add(d)
	for {
		left := time.Until(end)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(left, 0)/time.Millisecond))
		if err == unix.EINTR { //nolint:errorlint // system calls give numbers
			continue
		}
		return n > 0
	}
}

// WatchParent calls gone when the parent of this process ends: what killed it was meant for this job too. A parent outside of this
// process's namespace can't be watched; it is the first process of a container then, and nothing outlives its end.
func WatchParent(ctx context.Context, gone func()) {
	parent := os.Getppid()
	if parent <= 0 {
		return
	}
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil || os.Getppid() != parent {
		if os.Getppid() != parent {
			gone()
		}
		return
	}
	go func() {
		defer unix.Close(fd)
		for ctx.Err() == nil {
			if waitFor(fd, parentEvery) {
				if ctx.Err() == nil {
					gone()
				}
				return
			}
		}
	}()
}

// parentEvery is how long the end of ctx may be overlooked.
const parentEvery = time.Second
