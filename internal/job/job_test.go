package job_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/job"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

const (
	theSecret = "s3cret-value-of-this-test"
	theRight  = "right-to-tokens-of-this-test"
	spawnArg  = "as-spawn"
	watchArg  = "as-watchdog"
)

// fake is an attester whose evidence is a token without a signature: the fake server takes any.
type fake struct{}

func (fake) Attest(_ context.Context, b attest.Binding) ([]byte, error) {
	payload, err := json.Marshal(map[string]any{"aud": b.KeyAudience(), "sub": "token-of-this-test"})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"token": "e30." + base64.RawURLEncoding.EncodeToString(payload) + ".e30"})
}

// TestMain lets the test binary be `bailment ci run`, and its watchdog.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == spawnArg:
		if err := job.Spawn([]string{"/proc/self/exe", watchArg, os.Args[2]}); err != nil {
			os.Exit(1)
		}
	case len(os.Args) > 2 && os.Args[1] == watchArg:
		if err := job.Watch(func(text string) { fmt.Fprintln(os.Stderr, "watchdog: "+text) }); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	case len(os.Args) > 2 && os.Args[1] == "as-runner":
		os.Exit(asRunner(os.Args[2:]))
	case os.Getenv("JOB_TEST") != "":
		os.Exit(asJob())
	default:
		// What a nohup or a shell's & ignores would be ignored in every child too; what is caught is back to the default there.
		for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT} {
			if signal.Ignored(s) {
				signal.Notify(make(chan os.Signal, 1), s)
			}
		}
		os.Exit(m.Run())
	}
}

// unwrapped hides that a stream is a file, so that there is a pipe between.
type unwrapped struct{ io.Writer }

// asRunner runs a step and reads what it writes, as a runner does.
func asRunner(command []string) int {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = unwrapped{os.Stdout}, unwrapped{os.Stderr}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// settings are what a test tells its job.
type settings struct {
	Bootstrap string
	Tag       string // on the watchdog's command line, to find it by
	Method    string
	Token     string // a join token
	Secrets   []run.Secret
	Grace     time.Duration
	Patience  time.Duration
	Wait      time.Duration
	Masks     bool
	Fixed     bool
	KeepOIDC  bool
}

func asJob() int {
	var s settings
	if err := json.Unmarshal([]byte(os.Getenv("JOB_TEST")), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = os.Unsetenv("JOB_TEST") // its children are not jobs
	c := job.Config{
		Bootstrap: s.Bootstrap, Version: "test", Command: os.Args[1:], Env: os.Environ(), Secrets: s.Secrets,
		Method: s.Method, Attester: fake{}, Platform: job.Platform{Title: "the test", SameToken: s.Fixed, Hidden: []string{"TOKEN_RIGHT"}, Masks: s.Masks},
		Renewal: attest.RenewByEvidence, Watchdog: []string{"/proc/self/exe", spawnArg, s.Tag}, KeepOIDC: s.KeepOIDC,
		Wait: s.Wait, Patience: s.Patience, Grace: s.Grace, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Note: func(text string) { fmt.Fprintln(os.Stderr, "note: "+text) }, Warn: func(text string) { fmt.Fprintln(os.Stderr, "warn: "+text) },
	}
	if s.Token != "" {
		a, err := methods.All().NewAttesterFrom(jointoken.Name, attest.Material{jointoken.NeedToken: []byte(s.Token)})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		c.Attester, c.Renewal = a, attest.RenewByPossession
	}
	code, err := job.Run(context.Background(), c)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v (%s)\n", err, problem.As(err).Reason)
	}
	return code
}

// output collects what processes write.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

type house struct {
	*testing.T
	server *clienttest.Server
	self   string
	tag    string
}

func start(t *testing.T, c clienttest.Config) *house {
	t.Helper()
	s, err := clienttest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Put("db/password", []byte(theSecret))
	s.Put("db/other", []byte("first line 100%\nsecond line\n}\n"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t, s, self, fmt.Sprintf("tag-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))}
	t.Cleanup(func() {
		for _, pid := range h.watchdogs() {
			t.Errorf("watchdog %d is left", pid)
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	return h
}

// command makes a job that runs a command.
func (h *house) command(change func(*settings), command ...string) (*exec.Cmd, *output) {
	h.Helper()
	s := settings{
		Bootstrap: h.server.Bootstrap, Tag: h.tag, Method: "x509", Secrets: []run.Secret{{Name: "db/password", Env: "DB_PASSWORD"}},
		Grace: 30 * time.Second, Patience: 10 * time.Second, Wait: 5 * time.Second,
	}
	if change != nil {
		change(&s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		h.Fatal(err)
	}
	cmd := exec.Command(h.self, command...)
	cmd.Env = append(os.Environ(), "JOB_TEST="+string(text), "TOKEN_RIGHT="+theRight)
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// begin starts a job, kills it when the test ends, and waits for what the program says first.
func (h *house) begin(change func(*settings), script string) (*exec.Cmd, *output) {
	h.Helper()
	cmd, out := h.command(change, "sh", "-c", script)
	h.launch(cmd)
	h.eventually("the program", func() bool { return strings.Contains(out.String(), "begun") })
	return cmd, out
}

// launch starts a session of processes, which is gone when the test ends, whatever became of the job.
func (h *house) launch(cmd *exec.Cmd) {
	h.Helper()
	cmd.SysProcAttr, cmd.WaitDelay = &syscall.SysProcAttr{Setsid: true}, waitDelay
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	session := cmd.Process.Pid
	h.Cleanup(func() {
		for _, pid := range members(session) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = cmd.Wait()
	})
}

// waitDelay is how long a test waits for who holds a job's streams after its end: more than a watchdog ever needs here.
const waitDelay = 20 * time.Second

// members are the processes of a session.
func members(session int) []int {
	found, _ := filepath.Glob("/proc/[0-9]*")
	var out []int
	for _, path := range found {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			continue
		}
		if sid, err := unix.Getsid(pid); err == nil && sid == session {
			out = append(out, pid)
		}
	}
	return out
}

func (h *house) eventually(what string, ok func() bool) {
	h.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			h.Fatalf("waited in vain for %s", what)
		}
	}
}

func (h *house) returned() bool {
	for _, l := range h.server.Leases() {
		if !l.Returned {
			return false
		}
	}
	return len(h.server.Leases()) > 0 && h.server.Sessions() == 0
}

func (h *house) mustBeReturned() {
	h.Helper()
	if !h.returned() {
		h.Errorf("leases %+v, %d sessions", h.server.Leases(), h.server.Sessions())
	}
}

// wait waits for the end of a job and everything that holds its streams.
func (h *house) wait(cmd *exec.Cmd) int {
	h.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.Fatal(err) // a WaitDelay too: somebody lives on
	}
	return cmd.ProcessState.ExitCode()
}

// processes are those on whose command line there is a word.
func processes(word string) []int {
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var out []int
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil || !slices.Contains(strings.Split(string(text), "\x00"), word) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

func (h *house) watchdogs() []int {
	var out []int
	for _, pid := range processes(h.tag) {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(text), watchArg) {
			out = append(out, pid)
		}
	}
	return out
}

func (h *house) watchdog() int {
	h.Helper()
	all := h.watchdogs()
	if len(all) != 1 {
		h.Fatalf("the watchdogs are %v", all)
	}
	return all[0]
}

// pidOf is the number that a program wrote after a word.
func (h *house) pidOf(out *output, word string) int {
	h.Helper()
	_, rest, _ := strings.Cut(out.String(), word+" ")
	text, _, _ := strings.Cut(rest, "\n")
	pid, err := strconv.Atoi(text)
	if err != nil {
		h.Fatalf("no number after %s in %q", word, out)
	}
	return pid
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

const forever = `while :; do sleep 0.05; done`

func TestItsEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		command []string
		code    int
		out     string
		taken   bool
	}{
		"value":          {[]string{"sh", "-c", `test "$DB_PASSWORD" = ` + theSecret}, 0, "gave everything back: lease", true},
		"its code":       {[]string{"sh", "-c", "exit 42"}, 42, "gave everything back", true},
		"killed":         {[]string{"sh", "-c", "kill -9 $$"}, 128 + 9, "gave everything back", true},
		"no interpreter": {[]string{"/proc/self/maps"}, 126, "error", false},
		"not found":      {[]string{"no-such-command"}, 127, "not-found", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, clienttest.Config{})
			cmd, out := h.command(nil, c.command...)
			h.launch(cmd)
			if code := h.wait(cmd); code != c.code || !strings.Contains(out.String(), c.out) {
				t.Errorf("code %d, want %d; %s", code, c.code, out)
			}
			if c.taken {
				h.mustBeReturned()
			} else if n := len(h.server.Leases()); n != 0 {
				t.Errorf("%d leases", n)
			}
			if strings.Contains(out.String(), theSecret) {
				t.Errorf("the value was printed: %s", out)
			}
		})
	}
}

// A job without secrets still proves what it is, and one that may not have one gives back those that it got.
func TestRefused(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	mark := filepath.Join(t.TempDir(), "mark")
	cmd, out := h.command(func(s *settings) {
		s.Secrets = append(s.Secrets, run.Secret{Name: "unknown", Env: "X"})
	}, "touch", mark)
	h.launch(cmd)
	if code := h.wait(cmd); code != run.ExitOurs || !strings.Contains(out.String(), "no-grant") {
		t.Errorf("code %d, %s", code, out)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Error("the program was started")
	}
	h.mustBeReturned()
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		signal syscall.Signal
		script string
		grace  time.Duration
		code   int
	}{
		"SIGTERM":            {unix.SIGTERM, "echo begun; " + forever, 0, 128 + 15},
		"SIGINT":             {unix.SIGINT, "echo begun; " + forever, 0, 128 + 2},
		"SIGHUP":             {unix.SIGHUP, "echo begun; " + forever, 0, 128 + 1},
		"cleans up":          {unix.SIGTERM, "trap 'sleep 0.1; exit 3' TERM; echo begun; " + forever, 0, 3},
		"minds none":         {unix.SIGTERM, "trap '' TERM INT; echo begun; " + forever, 300 * time.Millisecond, 128 + 9},
		"minds none, SIGINT": {unix.SIGINT, "trap '' TERM INT; echo begun; " + forever, 300 * time.Millisecond, 128 + 9},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, clienttest.Config{})
			cmd, out := h.begin(func(s *settings) {
				if c.grace != 0 {
					s.Grace = c.grace
				}
			}, c.script)
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			if code := h.wait(cmd); code != c.code {
				t.Errorf("code %d, want %d; %s", code, c.code, out)
			}
			h.mustBeReturned()
		})
	}
}

// A second signal while everything is given back does not stop that.
func TestSignalWhileGivingBack(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, out := h.command(nil, "true")
	var once sync.Once
	begun := make(chan struct{}) // cmd.Process is there
	h.server.Before(func(procedure string) error {
		if strings.HasSuffix(procedure, "/ReturnLease") {
			once.Do(func() {
				<-begun

				_ = cmd.Process.Signal(unix.SIGINT)
				_ = cmd.Process.Signal(unix.SIGTERM)
			})
		}
		return nil
	})
	h.launch(cmd)
	close(begun)
	if code := h.wait(cmd); code != 0 {
		t.Errorf("code %d; %s", code, out)
	}
	h.mustBeReturned()
}

// Killed, its watchdog gives back at once, and sees to it that the program ends.
func TestKilled(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, out := h.begin(func(s *settings) { s.Grace = 200 * time.Millisecond }, "trap '' TERM; echo pid $$; echo begun; "+forever)
	program := h.pidOf(out, "pid")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.wait(cmd)
	h.eventually("the watchdog", h.returned)
	h.eventually("the program's end", func() bool { return !alive(program) })
	h.eventually("the watchdog's end", func() bool { return len(h.watchdogs()) == 0 })
	if !strings.Contains(out.String(), "watchdog: the job's runner was killed; its watchdog gave everything back: lease") {
		t.Errorf("%s", out)
	}
}

// Killed, its files don't stay either: not those of its own directory, nor one that the job named, and not longer than the program lives.
func TestKilledWithFiles(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	named := filepath.Join("/dev/shm", fmt.Sprintf("job-test-%d", os.Getpid()))
	cmd, out := h.begin(func(s *settings) {
		s.Grace = 200 * time.Millisecond
		s.Secrets = []run.Secret{{Name: "db/password", Env: "PRIVATE", AsFile: true}, {Name: "db/other", File: named}}
	}, `trap '' TERM; echo pid $$; echo "file $PRIVATE"; echo begun; `+forever)
	program := h.pidOf(out, "pid")
	_, rest, _ := strings.Cut(out.String(), "file ")
	private, _, _ := strings.Cut(rest, "\n")
	for _, path := range []string{private, named} {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.wait(cmd)
	h.eventually("the watchdog's end", func() bool { return len(h.watchdogs()) == 0 })
	h.eventually("the program's end", func() bool { return !alive(program) })
	for _, path := range []string{private, filepath.Dir(private), named} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// The watchdog is not found by whoever kills a step's processes.
func TestWatchdogIsApart(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, _ := h.begin(nil, "echo begun; "+forever)
	pid := h.watchdog()
	group, err := unix.Getpgid(pid)
	if err != nil {
		t.Fatal(err)
	}
	session, err := unix.Getsid(pid)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := unix.Getsid(cmd.Process.Pid)
	if err != nil || session == mine || group == cmd.Process.Pid {
		t.Errorf("session %d and group %d, and the job has %d (%v)", session, group, mine, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", cmd.Process.Pid)) {
		t.Errorf("%s %v", status, err)
	}
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE} {
		if err := unix.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.wait(cmd)
	h.eventually("the watchdog", h.returned)
}

// The shell of a step is killed, and the job gets no signal.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{"ends": "echo begun; " + forever, "minds no signal": "trap '' TERM; echo begun; " + forever} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, clienttest.Config{})
			cmd, out := h.command(func(s *settings) { s.Grace = 200 * time.Millisecond })
			shell := exec.Command("sh", "-c", `"$0" sh -c "$1"; echo the shell goes on`, h.self, script)
			shell.Env, shell.Stdout, shell.Stderr = cmd.Env, out, out
			h.launch(shell)
			h.eventually("the program", func() bool { return strings.Contains(out.String(), "begun") })
			if err := shell.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			h.wait(shell) // and whoever has its streams
			h.mustBeReturned()
			if !strings.Contains(out.String(), "what started this is gone") || !strings.Contains(out.String(), "gave everything back") || strings.Contains(out.String(), "goes on") {
				t.Errorf("%s", out)
			}
		})
	}
}

// Both killed at once, nobody gives back: the leases die by themselves, soon.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	const ttl = 1500 * time.Millisecond
	h := start(t, clienttest.Config{LeaseTTL: ttl})
	cmd, _ := h.begin(nil, "echo begun; "+forever)
	pids := []int{h.watchdog(), cmd.Process.Pid}
	// The first is stopped, so that it does not begin another watchdog when it sees the second die.
	for _, s := range []struct {
		pid    int
		signal syscall.Signal
	}{{pids[1], unix.SIGSTOP}, {pids[0], unix.SIGKILL}, {pids[1], unix.SIGKILL}} {
		if err := unix.Kill(s.pid, s.signal); err != nil {
			t.Fatal(err)
		}
	}
	killed := time.Now()
	h.wait(cmd)
	for _, l := range h.server.Leases() {
		if l.Returned || l.Expires.After(killed.Add(ttl)) {
			t.Errorf("%+v", l)
		}
	}
	h.eventually("the end of the leases", func() bool {
		for _, l := range h.server.Leases() {
			if time.Now().Before(l.Expires) {
				return false
			}
		}
		return true
	})
}

// A watchdog that is killed is replaced, and the new one knows all.
func TestWatchdogKilled(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, out := h.begin(nil, "echo begun; "+forever)
	first := h.watchdog()
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("another watchdog", func() bool {
		return strings.Contains(out.String(), "there is another")
	})
	if second := h.watchdog(); second == first {
		t.Fatal("it is still there")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.wait(cmd)
	h.eventually("the second watchdog", h.returned)
}

// Killed between a request and its answer, there is a lease that nobody has heard of but the server. The watchdog finds it.
func TestKilledBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, out := h.command(nil, "echo", "begun")
	var once sync.Once
	begun := make(chan struct{}) // cmd.Process is there
	h.server.Lose(func(procedure string) (lost bool) {
		if strings.HasSuffix(procedure, "/Get") {
			once.Do(func() {
				<-begun
				_ = cmd.Process.Kill()
				lost = true
			})
		}
		return lost
	})
	h.launch(cmd)
	close(begun)
	h.wait(cmd)
	h.eventually("the watchdog", h.returned)
	if strings.Contains(out.String(), "begun") {
		t.Errorf("%s", out)
	}
}

// Killed while it gives back, its watchdog does the rest.
func TestKilledWhileGivingBack(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, _ := h.command(func(s *settings) { s.Secrets = append(s.Secrets, run.Secret{Name: "db/other", Env: "OTHER"}) }, "true")
	var once sync.Once
	begun := make(chan struct{}) // cmd.Process is there
	h.server.Lose(func(procedure string) (lost bool) {
		if strings.HasSuffix(procedure, "/ReturnLease") {
			once.Do(func() {
				<-begun
				_ = cmd.Process.Kill()
				lost = true
			})
		}
		return lost
	})
	h.launch(cmd)
	close(begun)
	h.wait(cmd)
	h.eventually("the watchdog", h.returned)
}

// Answers that are lost, and a server that is away for a moment, change nothing.
func TestGivingBackIsRepeated(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"/ReturnLease", "/Logout", "/Get", "/Attest"} {
		for _, lost := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %v", call[1:], lost), func(t *testing.T) {
				t.Parallel()
				h := start(t, clienttest.Config{})
				var mu sync.Mutex
				n := 0
				fails := func(procedure string) bool {
					mu.Lock()
					defer mu.Unlock()
					if strings.HasSuffix(procedure, call) {
						n++
						return n <= 2
					}
					return false
				}
				if lost {
					h.server.Lose(fails)
				} else {
					h.server.Before(func(procedure string) error {
						if fails(procedure) {
							return problem.New(problem.ReasonStopping, "stopping")
						}
						return nil
					})
				}
				cmd, out := h.command(nil, "true")
				h.launch(cmd)
				if code := h.wait(cmd); code != 0 || !strings.Contains(out.String(), "gave everything back") {
					t.Errorf("code %d; %s", code, out)
				}
				if call == "/Attest" && lost {
					// Of sessions whose answers were lost nobody has the certificate: they end by themselves.
					for _, l := range h.server.Leases() {
						if !l.Returned {
							t.Errorf("%+v", l)
						}
					}
					return
				}
				h.mustBeReturned()
			})
		}
	}
}

// What can't be given back is told, with its end. The program's exit code stands.
func TestServerGoneAtTheEnd(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	stop := filepath.Join(t.TempDir(), "stop")
	cmd, out := h.begin(func(s *settings) { s.Patience = 700 * time.Millisecond }, "echo begun; until test -e "+stop+"; do sleep 0.02; done; exit 5")
	h.server.Close()
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := h.wait(cmd); code != 5 {
		t.Errorf("code %d", code)
	}
	l := h.server.Leases()[0]
	want := fmt.Sprintf("NOT given back: lease %d of db/password (unreachable: ", l.ID)
	until := "it is dead by " + l.Expires.UTC().Format(time.RFC3339)
	if !strings.Contains(out.String(), want) || !strings.Contains(out.String(), until) || !strings.Contains(out.String(), "NOT given back: the session of ") {
		t.Errorf("%s\nwant %s and %s", out, want, until)
	}
}

// The server that is gone when the runner is killed comes back while the watchdog still tries.
func TestServerIsBackInTime(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, out := h.begin(nil, "echo begun; "+forever)
	tried := make(chan struct{})
	var once sync.Once
	h.server.Before(func(procedure string) error {
		if strings.HasSuffix(procedure, "/ReturnLease") {
			once.Do(func() { close(tried) })
			return problem.New(problem.ReasonStarting, "starting")
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-tried
	h.server.Before(nil)
	h.wait(cmd)
	h.eventually("the watchdog", h.returned)
	h.eventually("its word", func() bool { return strings.Contains(out.String(), "watchdog gave everything back") })
}
