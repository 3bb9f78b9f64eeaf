package run

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// child is the process that is run.
type child struct {
	exe  *executable
	args []string
	env  []string
	std  [3]*os.File
	// grace is how long the child may go on after a signal that ends programs; 0: as long as it likes.
	grace   time.Duration
	started func(pid int) // may be nil

	pid      int
	own      bool     // it has a process group of its own
	terminal *os.File // that its group was given; nil: none
	shared   bool     // it shares our group, which has the terminal
}

// scriptDescriptor is the child's descriptor of a script: the first after its streams.
const scriptDescriptor = 3

// run starts the child and stays until it is gone.
//
// The thread is this goroutine's until then, because the kernel ties PR_SET_PDEATHSIG to the thread that started the
// child (prctl(2)). When we are killed, the child gets SIGTERM: its lease is given back by the agent then, and what goes on
// working with a secret has no right to it. It is not SIGKILL, because what is run is often a service that must be able
// to finish what it has begun; and it is no guarantee: a child may ignore it, its own children don't get it, and a
// set-user-ID program doesn't either.
func (c *child) run(ctx context.Context, signals chan os.Signal) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signal.Notify(signals, forwarded()...)
	c.chooseGroup()
	if c.terminal != nil {
		defer c.terminal.Close()
	}
	if err := c.start(); err != nil {
		return ExitNotExecutable, err
	}
	if c.started != nil {
		c.started(c.pid)
	}
	states := make(chan unix.WaitStatus)
	goOn := make(chan struct{})
	go wait(c.pid, states, goOn)
	canceled := ctx.Done()
	var over <-chan time.Time
	for {
		select {
		case s := <-signals:
			c.forward(s)
			if over == nil && ends(s) {
				over = c.lastChance()
			}
		case <-canceled:
			canceled = nil
			c.kill(unix.SIGTERM)
			if over == nil {
				over = c.lastChance()
			}
		case <-over:
			c.killAll()
		case st, ok := <-states:
			if !ok {
				return ExitOurs, problem.New(problem.ReasonInternal, "the child was lost")
			}
			switch {
			case st.Stopped():
				c.stopped(st.StopSignal(), signals)
				goOn <- struct{}{}
			case st.Exited():
				c.regain()
				return st.ExitStatus(), nil
			case st.Signaled():
				c.regain()
				return exitSignal + int(st.Signal()), nil
			default:
				goOn <- struct{}{}
			}
		}
	}
}

// forwarded are the signals that are caught to be passed on. What was ignored when we were started (nohup) stays so, here and
// in the child, which inherits it.
func forwarded() []os.Signal {
	var out []os.Signal
	for s := unix.Signal(1); s <= lastSignal; s++ {
		switch s {
		case unix.SIGKILL, unix.SIGSTOP: // can't be caught
		case unix.SIGCHLD, unix.SIGURG: // our child; Go's own, for preemption
		case unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU: // what we did with our own streams
		case 32, 33: // the C library's
		default:
			if !signal.Ignored(s) {
				out = append(out, s)
			}
		}
	}
	// Caught and dropped: left alone, the first two would stop us, and the third would end us.
	return append(out, unix.SIGTTIN, unix.SIGTTOU, unix.SIGPIPE)
}

// lastSignal is Linux' SIGRTMAX.
const lastSignal = 64

// wait reports what becomes of the child, one thing at a time. As the first process of a container it also takes up
// what others left behind, which is the first process's task.
func wait(pid int, states chan<- unix.WaitStatus, goOn <-chan struct{}) {
	whom := pid
	if os.Getpid() == 1 {
		whom = -1
	}
	for {
		var st unix.WaitStatus
		got, err := unix.Wait4(whom, &st, unix.WUNTRACED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			close(states)
			return
		}
		if got != pid {
			continue
		}
		states <- st
		if st.Exited() || st.Signaled() {
			return
		}
		<-goOn
	}
}

// chooseGroup decides how Ctrl-C reaches the child once. The terminal sends it to all of the group in front.
//
//   - We lead a group that is in front and all our streams are the terminal: the child gets a group of its own, and the
//     terminal. Every signal that we get was meant for us, and is passed on.
//   - Our group is in front, but others may be in it (a pipeline, a script): the child stays in it, because to take the
//     terminal from the others would stop them. SIGINT, SIGQUIT and SIGTSTP are not passed on: the terminal sends them to
//     the child as well. One of them sent to us alone, with kill(1), is lost.
//   - There is no terminal, or others have it: the child gets a group of its own, so that a signal to our whole group
//     reaches it once, by us.
func (c *child) chooseGroup() {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		c.own = true
		return
	}
	front, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	group := unix.Getpgrp()
	switch {
	case err != nil || front != group:
		tty.Close()
		c.own = true
	case group == os.Getpid() && isTerminal(c.std[0]) && isTerminal(c.std[1]) && isTerminal(c.std[2]):
		c.own, c.terminal = true, tty
	default:
		tty.Close()
		c.shared = true
	}
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// start executes the file behind the descriptor. The kernel finds it through /proc/self/fd, which leads to the open file
// itself, not to its path. execveat(2) with AT_EMPTY_PATH would be the same without /proc, but Go's way of starting a process
// (vfork, descriptors, signals, the death signal, all before the exec) takes a path only.
//
// A program's descriptor is closed by its execution. A script's interpreter has to open the script by name after that, so it
// gets the descriptor as number 3.
func (c *child) start() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "opening %s", os.DevNull)
	}
	defer null.Close()
	var fds []uintptr
	for _, f := range c.std {
		if f == nil {
			f = null
		}
		fds = append(fds, f.Fd())
	}
	path := fdPath(int(c.exe.file.Fd()))
	if c.exe.script {
		fds = append(fds, c.exe.file.Fd())
		path = fdPath(scriptDescriptor)
	}
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: c.own}
	if c.terminal != nil {
		attr.Foreground, attr.Ctty = true, int(c.terminal.Fd())
	}
	c.pid, err = syscall.ForkExec(path, c.args, &syscall.ProcAttr{Env: c.env, Files: fds, Sys: attr})
	runtime.KeepAlive(c.std)
	runtime.KeepAlive(c.exe)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOENT):
		return notExecutable("%s: the interpreter that it names is missing (or /proc is not mounted)", c.exe.path)
	case errors.Is(err, syscall.ENOEXEC):
		return notExecutable("%s is neither a program for this machine nor a script with #!", c.exe.path)
	case errors.Is(err, syscall.E2BIG):
		return notExecutable("%s: arguments and environment are too large", c.exe.path)
	default:
		return notExecutable("%s can't be executed: %v", c.exe.path, err)
	}
}

// forward passes a signal on.
func (c *child) forward(s os.Signal) {
	sig, ok := s.(syscall.Signal)
	if !ok {
		return
	}
	switch sig {
	case unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU: // what we did with our own streams
		return
	case unix.SIGTSTP, unix.SIGINT, unix.SIGQUIT:
		if c.shared {
			return
		}
	case unix.SIGCONT:
		c.front()
	}
	c.kill(sig)
}

// kill signals the child alone: its own children are its to tell. For Ctrl-C the terminal tells the group.
func (c *child) kill(sig unix.Signal) { _ = unix.Kill(c.pid, sig) }

// lastChance is when the child's grace is over; nil: never.
func (c *child) lastChance() <-chan time.Time {
	if c.grace <= 0 {
		return nil
	}
	return time.After(c.grace)
}

// ends reports whether a signal asks a program to end.
func ends(s os.Signal) bool {
	switch s {
	case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM:
		return true
	}
	return false
}

// killAll ends the child with what it has started, where they have a group of their own.
func (c *child) killAll() {
	if c.own {
		_ = unix.Kill(-c.pid, unix.SIGKILL)
		return
	}
	c.kill(unix.SIGKILL)
}

// stopped follows a child that was stopped: the shell that waits for us must see us stop, and have its terminal.
func (c *child) stopped(sig unix.Signal, signals chan os.Signal) {
	if c.terminal == nil && !c.shared {
		// Stopped in the background, by whoever will also continue it, or for want of the terminal.
		if sig != unix.SIGTTIN && sig != unix.SIGTTOU {
			return
		}
	}
	c.regain()
	// SIGSTOP, because SIGTSTP is caught here. It is for this thread, which run has locked, and so stops it before the call returns, and with
	// it the process: what follows happens after SIGCONT. By kill(2) another thread may take it, some time later, and until then we would
	// go on here, give the terminal to the child, and continue it behind the shell's back.
	_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	for drained := false; !drained; {
		select {
		case s := <-signals: // SIGCONT, and what came while we stood still
			if s != unix.SIGCONT {
				c.forward(s)
			}
		default:
			drained = true
		}
	}
	c.front()
	if c.own {
		_ = unix.Kill(-c.pid, unix.SIGCONT)
		return
	}
	c.kill(unix.SIGCONT)
}

// front gives the terminal to the child's group, if it is ours to give.
func (c *child) front() {
	if c.terminal == nil {
		return
	}
	if now, err := unix.IoctlGetInt(int(c.terminal.Fd()), unix.TIOCGPGRP); err == nil && now == unix.Getpgrp() {
		_ = unix.IoctlSetPointerInt(int(c.terminal.Fd()), unix.TIOCSPGRP, c.pid)
	}
}

// regain takes the terminal back from the child's group. Doing so from the background raises SIGTTOU, which is caught.
func (c *child) regain() {
	if c.terminal == nil {
		return
	}
	if now, err := unix.IoctlGetInt(int(c.terminal.Fd()), unix.TIOCGPGRP); err == nil && now == c.pid {
		signal.Ignore(unix.SIGTTOU) // a caught one would interrupt the call instead of letting it through
		_ = unix.IoctlSetPointerInt(int(c.terminal.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
	}
}
