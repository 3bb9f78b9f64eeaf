package run_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal makes a pseudo-terminal (pty(7)).
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ours.Close(); _ = theirs.Close() })
	return ours, theirs
}

// Ctrl-C at a terminal reaches the child once, whether it has the terminal to itself or shares it with a pipeline.
func TestCtrlC(t *testing.T) {
	for name, shared := range map[string]bool{"alone": false, "in a pipeline": true} {
		t.Run(name, func(t *testing.T) {
			h := whole(t)
			ours, theirs := terminal(t)
			cmd, out := h.trapped()
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
			cmd.Stdin = theirs
			if shared {
				// Its output goes into a pipe, as in `bailment run … | less`.
			} else {
				cmd.Stdout, cmd.Stderr = theirs, theirs
				go func() { _, _ = io.Copy(out, ours) }()
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			h.eventually("the child", out.has("ready"))
			for i := 1; i <= 3; i++ {
				if _, err := ours.Write([]byte{3}); err != nil {
					t.Fatal(err)
				}
				h.eventually("Ctrl-C", func() bool { return out.count("got-INT") >= i })
			}
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			err := cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 9 {
				t.Errorf("%v", err)
			}
			if n := out.count("got-INT"); n != 3 {
				t.Errorf("3 times Ctrl-C reached the child %d times", n)
			}
			if !h.returned() {
				t.Errorf("%+v", h.server.Leases())
			}
		})
	}
}

// Ctrl-Z stops run with its child, and continuing run continues the child, with the terminal.
func TestCtrlZ(t *testing.T) {
	h := whole(t)
	ours, theirs := terminal(t)
	out := new(output)
	// A shell with job control, as a person has.
	self := h.helper("sh", "-c", `echo ready; read -r x; echo "read $x"; exit 5`)
	args := append([]string{"-c", `set -m; "$@"; echo "stopped $?"; fg >/dev/null; echo "ended $?"`, "bash"}, self.Args...)
	shell := exec.Command("bash", args...)
	shell.Env = self.Env
	shell.Stdin, shell.Stdout, shell.Stderr = theirs, theirs, theirs
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	go func() { _, _ = io.Copy(out, ours) }()
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child", out.has("ready"))
	if _, err := ours.Write([]byte{26}); err != nil {
		t.Fatal(err)
	}
	h.eventually("the shell to see it stopped", out.has("stopped 1"))
	if _, err := ours.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child to read from the terminal", out.has("read hello"))
	h.eventually("the end", out.has("ended 5"))
	if err := shell.Wait(); err != nil {
		t.Error(err)
	}
}
