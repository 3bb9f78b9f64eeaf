package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// try is a quickstart under way.
type try struct {
	*exec.Cmd
	out, err string // files with what it has said
}

// begin starts a quickstart in a directory, whatever that is called.
func begin(t *testing.T, bin, dir string, args ...string) *try {
	t.Helper()
	home := t.TempDir()
	x := &try{exec.Command(bin, append([]string{"quickstart", "--dir", dir}, args...)...), filepath.Join(home, "out"), filepath.Join(home, "err")}
	x.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"} // without HOME, too
	x.Dir = home
	for path, to := range map[string]func(*os.File){x.out: func(f *os.File) { x.Stdout = f }, x.err: func(f *os.File) { x.Stderr = f }} {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		to(f)
	}
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = x.Process.Kill() // has ended by itself: just as well
		for _, pid := range running(t, dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return x
}

// end waits, and returns the exit code and all that was said.
func (x *try) end(t *testing.T) (code int, out, errOut string) {
	t.Helper()
	err := x.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var said [2]string
	for i, path := range []string{x.out, x.err} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		said[i] = string(text)
	}
	return x.ProcessState.ExitCode(), said[0], said[1]
}

// says waits until a file has a text.
func says(t *testing.T, path, want string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		if text, err := os.ReadFile(path); err == nil && bytes.Contains(text, []byte(want)) {
			return
		}
	}
	t.Fatalf("%s never says %q", path, want)
}

// What --keep says to type can be typed, whatever the directory is called, and nothing is touched beside it.
func TestQuickstartInAnyDirectory(t *testing.T) {
	bin, parent := program(t), t.TempDir()
	dir := filepath.Join(parent, "it's a # try: $HOME")
	code, out, errOut := begin(t, bin, dir, "--keep").end(t)
	if code != 0 || errOut != "" {
		t.Fatalf("exit code %d\n%s%s", code, out, errOut)
	}
	beside, err := os.ReadDir(parent)
	if err != nil || len(beside) != 1 {
		t.Errorf("there are %v (%v) beside it", beside, err)
	}
	var typed strings.Builder
	for line := range strings.Lines(out) {
		if command := strings.TrimSpace(line); strings.HasPrefix(command, "export ") {
			typed.WriteString(command + "\n")
		}
	}
	_, again, ok := strings.Cut(out, "\nA second ")
	if again, _, _ = strings.Cut(again, " stops and removes this one."); !ok || !strings.HasPrefix(again, "bailment quickstart --dir ") {
		t.Fatalf("it ends otherwise:\n%s", out)
	}
	for _, script := range []string{typed.String() + "bailment secret list && bailment agent status", again} {
		cmd := exec.CommandContext(t.Context(), "bash", "-euc", script)
		cmd.Env = []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH"), "HOME=" + parent, "GORACE=atexit_sleep_ms=0"}
		cmd.Dir = parent
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s\n%v\n%s", script, err, said)
		}
	}
	if left := running(t, dir); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
}

// Who breaks it off is told so, and not that there is a defect; nothing goes on running, and the next run goes through.
func TestQuickstartBrokenOff(t *testing.T) {
	bin, dir := program(t), filepath.Join(t.TempDir(), "try")
	for _, step := range []string{"\n1. ", "\n3. ", "\n6. "} {
		x := begin(t, bin, dir)
		says(t, x.out, step)
		if err := x.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		code, out, errOut := x.end(t)
		if code != 3 || !strings.Contains(errOut, "error: stopped in step ") || !strings.Contains(errOut, "reason: canceled") || strings.Contains(errOut, "defect") {
			t.Errorf("broken off after %q: exit code %d\n%s%s", step, code, out, errOut)
		}
		if left := running(t, dir); len(left) > 0 {
			t.Errorf("broken off after %q: still running: %v", step, left)
		}
	}
	if code, out, errOut := begin(t, bin, dir).end(t); code != 0 {
		t.Fatalf("the next one: exit code %d\n%s%s", code, out, errOut)
	}
}

// Whoever listens may go away. Nothing goes on running then, either.
func TestQuickstartWithoutAListener(t *testing.T) {
	bin, dir := program(t), filepath.Join(t.TempDir(), "try")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	x := exec.CommandContext(t.Context(), bin, "quickstart", "--dir", dir)
	var errOut bytes.Buffer
	x.Stdout, x.Stderr = write, &errOut
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	for lines := bufio.NewScanner(read); lines.Scan() && !strings.HasPrefix(lines.Text(), "4. "); {
	}
	read.Close()
	if err := x.Wait(); err == nil || !strings.Contains(errOut.String(), "writing to standard output") {
		t.Errorf("%v\n%s", err, &errOut)
	}
	if left := running(t, dir); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
	y := begin(t, bin, dir)
	says(t, y.out, "\n5. ")
	if err := y.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	code, out, said := y.end(t)
	if left := running(t, dir); code != 3 || len(left) > 0 {
		t.Errorf("exit code %d, still running: %v\n%s%s", code, left, out, said)
	}
}

// Of two in one directory the second is refused, and spoils nothing.
func TestQuickstartTwiceAtOnce(t *testing.T) {
	bin, dir := program(t), filepath.Join(t.TempDir(), "try")
	first := begin(t, bin, dir)
	says(t, first.out, "\n1. ")
	code, out, errOut := begin(t, bin, dir).end(t)
	if code != 2 || out != "" || !strings.Contains(errOut, "another quickstart is at work in "+dir) || !strings.Contains(errOut, "try: wait for it") {
		t.Errorf("the second: exit code %d\n%s%s", code, out, errOut)
	}
	if code, out, errOut := first.end(t); code != 0 {
		t.Errorf("the first: exit code %d\n%s%s", code, out, errOut)
	}
}

// What can't work here is this machine's matter, and said at once.
func TestQuickstartRefused(t *testing.T) {
	bin, tmp := program(t), t.TempDir()
	file := filepath.Join(tmp, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		"/proc/none": "try: choose a directory that you may write to",
		file:         "not a directory",
		tmp:          "not an earlier quickstart",
		filepath.Join(tmp, strings.Repeat("x", 99)): "try: choose a shorter directory",
	} {
		code, out, errOut := begin(t, bin, dir).end(t)
		if code != 1 && dir != tmp || out != "" || !strings.Contains(errOut, want) || strings.Contains(errOut, "server") {
			t.Errorf("%s: exit code %d\n%s%s", dir, code, out, errOut)
		}
	}
	full := exec.CommandContext(t.Context(), bin, "quickstart", "--dir", filepath.Join(tmp, "full"))
	to, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	var errOut bytes.Buffer
	full.Stdout, full.Stderr = to, &errOut
	if err := full.Run(); err == nil || !strings.Contains(errOut.String(), "writing to standard output") {
		t.Errorf("into a full disk: %v\n%s", err, &errOut)
	}
}
