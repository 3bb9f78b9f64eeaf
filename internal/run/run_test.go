package run_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// TestMain lets the test binary be `bailment run` itself, for tests that kill it or give it a terminal.
func TestMain(m *testing.M) {
	if dir := os.Getenv("RUN_TEST_AGENT"); dir != "" {
		asAgent(dir, os.Getenv("RUN_TEST_BOOTSTRAP"))
		return
	}
	socket := os.Getenv("RUN_TEST_SOCKET")
	if socket == "" {
		// What a nohup or a shell's & ignores would be ignored in every child too; what is caught is back to the default there.
		for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT} {
			if signal.Ignored(s) {
				signal.Notify(make(chan os.Signal, 1), s)
			}
		}
		os.Exit(m.Run())
	}
	secrets := []run.Secret{{Name: "db/password", Env: "DB_PASSWORD"}}
	if named := os.Getenv("RUN_TEST_FILE"); named != "" {
		secrets = append(secrets, run.Secret{Name: "db/password", Env: "DB_PASSWORD_FILE", AsFile: true}, run.Secret{Name: "binary", File: named})
	}
	code, err := run.Run(context.Background(), run.Config{
		Agent: &localapi.Client{Socket: socket}, Command: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Secrets: secrets, Event: func(e localapi.Event) { fmt.Fprintln(os.Stderr, "event:"+e.Event) },
		Opened: func(localapi.Opened) {
			if os.Getenv("RUN_TEST_STOP") != "" {
				came := make(chan os.Signal, 1)
				signal.Notify(came, unix.SIGTERM)
				_ = unix.Kill(os.Getpid(), unix.SIGTERM)
				<-came
				signal.Stop(came) // which waits until everybody has it
			}
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// asAgent is an agent in a process of its own, until SIGTERM.
func asAgent(dir, bootstrap string) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	a, err := agent.New(agentConfig(dir, bootstrap))
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func agentConfig(dir, bootstrap string) agent.Config {
	return agent.Config{
		Bootstrap: bootstrap, StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "agent.sock"), Method: jointoken.Name,
		Needs: map[string]string{jointoken.NeedToken: filepath.Join(dir, "token")}, Methods: methods.All(),
	}
}

type house struct {
	*testing.T
	server *clienttest.Server
	dir    string
	socket string
}

// empty starts a fake server, and prepares for an agent.
func empty(t *testing.T) *house {
	t.Helper()
	s, err := clienttest.New(clienttest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Put("db/password", []byte("s3cret value"))
	s.Put("binary", []byte("a\x00b"))
	tok, err := s.Token("web-1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(tok.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	return &house{t, s, dir, filepath.Join(dir, "agent.sock")}
}

// whole starts a fake server and a real agent.
func whole(t *testing.T) *house {
	t.Helper()
	h := empty(t)
	a, err := agent.New(agentConfig(h.dir, h.server.Bootstrap))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	h.ready()
	return h
}

func (h *house) ready() {
	h.Helper()
	h.eventually("the agent to be ready", func() bool {
		st, err := (&localapi.Client{Socket: h.socket}).Status(h.Context())
		return err == nil && st.State == string(agent.Ready)
	})
}

// agent starts an agent that can be killed.
func (h *house) agent() *os.Process {
	h.Helper()
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "RUN_TEST_AGENT="+h.dir, "RUN_TEST_BOOTSTRAP="+h.server.Bootstrap)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	h.ready()
	return cmd.Process
}

func (h *house) eventually(what string, ok func() bool) {
	h.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
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
	return len(h.server.Leases()) > 0
}

// run runs a command and returns its code, output and error.
func (h *house) run(change func(*run.Config), command ...string) (int, string, error) {
	h.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	var out bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(&out, r) })
	c := run.Config{
		Agent: &localapi.Client{Socket: h.socket}, Command: command, Env: os.Environ(), Stdout: w, Stderr: w,
		Secrets: []run.Secret{{Name: "db/password", Env: "DB_PASSWORD"}},
	}
	if change != nil {
		change(&c)
	}
	code, err := run.Run(h.Context(), c)
	_ = w.Close()
	reading.Wait()
	_ = r.Close()
	return code, out.String(), err
}

func script(t *testing.T, name, text string, perm os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	h := whole(t)
	junk := strings.Repeat("junk\n", 100)
	for name, c := range map[string]struct {
		command []string
		code    int
		out     string
		reason  problem.Reason
	}{
		"value":              {[]string{"sh", "-c", `printf %s "$DB_PASSWORD"`}, 0, "s3cret value", ""},
		"arguments":          {[]string{"sh", "-c", `printf '%s|' "$0" "$@"`, "zero", "a b", ""}, 0, "zero|a b||", ""},
		"its code":           {[]string{"sh", "-c", "exit 42"}, 42, "", ""},
		"killed":             {[]string{"sh", "-c", "kill -9 $$"}, 128 + 9, "", ""},
		"terminated":         {[]string{"sh", "-c", "kill -TERM $$"}, 128 + 15, "", ""},
		"not found":          {[]string{"no-such-command-here"}, 127, "", problem.ReasonNotFound},
		"no such path":       {[]string{"/no/such/file"}, 127, "", problem.ReasonNotFound},
		"not executable":     {[]string{script(t, "x", "#!/bin/sh\n", 0o600)}, 126, "", problem.ReasonInvalid},
		"a directory":        {[]string{"/usr"}, 126, "", problem.ReasonInvalid},
		"no program":         {[]string{script(t, "x", junk, 0o700)}, 126, "", problem.ReasonInvalid},
		"script":             {[]string{script(t, "x", "#!/bin/sh\necho \"$1 $DB_PASSWORD\"\nexit 7\n", 0o700), "arg"}, 7, "arg s3cret value\n", ""},
		"script with option": {[]string{script(t, "x", "#!/bin/sh -e\nfalse\n", 0o700)}, 1, "", ""},
		"no interpreter":     {[]string{script(t, "x", "#!/no/such/sh\n", 0o700)}, 126, "", problem.ReasonInvalid},
		"empty":              {[]string{""}, 125, "", problem.ReasonInvalid},
		"nothing":            {nil, 125, "", problem.ReasonInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, err := h.run(nil, c.command...)
			if code != c.code || out != c.out || (c.reason == "") != (err == nil) || c.reason != "" && !problem.Is(err, c.reason) {
				t.Errorf("code %d, output %q, %v; want %d, %q, %q", code, out, err, c.code, c.out, c.reason)
			}
			if err != nil && problem.As(err).WayOut() == "" {
				t.Error("no way out")
			}
		})
	}
	if !h.returned() {
		t.Errorf("%+v", h.server.Leases())
	}
}

// A program gets its three streams and nothing of ours.
func TestDescriptorsOfTheChild(t *testing.T) {
	h := whole(t)
	plain, err := exec.Command("/bin/ls", "/proc/self/fd").Output() // what this process was itself given, and ls's own
	if err != nil {
		t.Fatal(err)
	}
	_, out, err := h.run(nil, "/bin/ls", "/proc/self/fd")
	if err != nil || out != string(plain) {
		t.Errorf("%q, without us %q, %v", out, plain, err)
	}
	env := os.Environ()
	_, out, err = h.run(func(c *run.Config) { c.Env = append(env, "DB_PASSWORD=old", "KEPT=1") }, "sh", "-c", `env | grep -c '^DB_PASSWORD='; echo $KEPT`)
	if err != nil || out != "1\n1\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// swapping stands between run and agent, and replaces the executable's path after it was measured.
type swapping struct {
	*localapi.Client
	path, by string
}

func (s swapping) Open(ctx context.Context, r localapi.OpenRequest, exe *os.File) (*localapi.Run, error) {
	out, err := s.Client.Open(ctx, r, exe)
	if err == nil {
		err = os.Rename(s.by, s.path)
	}
	return out, err
}

func TestExecutesWhatWasMeasured(t *testing.T) {
	h := whole(t)
	copied := func(from string) string {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		return script(t, "app", string(text), 0o700)
	}
	for name, pair := range map[string][2]string{
		"program": {copied("/bin/echo"), copied("/bin/false")},
		"script":  {script(t, "app", "#!/bin/sh\necho \"$1\"\n", 0o700), script(t, "app", "#!/bin/sh\nexit 1\n", 0o700)},
	} {
		code, out, err := h.run(func(c *run.Config) {
			c.Agent = swapping{&localapi.Client{Socket: h.socket}, pair[0], pair[1]}
		}, pair[0], "the measured one")
		if code != 0 || out != "the measured one\n" || err != nil {
			t.Errorf("%s: code %d, %q, %v", name, code, out, err)
		}
		all := h.server.Claims()
		if p := all[len(all)-1]["process"].(map[string]any); p["digest_source"] != "measured" || p["path"] != pair[0] {
			t.Errorf("%s: %v", name, p)
		}
	}
}

func TestRefusalStartsNothing(t *testing.T) {
	h := whole(t)
	mark := filepath.Join(t.TempDir(), "mark")
	h.server.Refuse(func(map[string]any, string) error { return problem.New(problem.ReasonForeignNode, "no") })
	code, _, err := h.run(nil, "touch", mark)
	if code != run.ExitOurs || !problem.Is(err, problem.ReasonForeignNode) {
		t.Errorf("%d, %v", code, err)
	}
	h.server.Refuse(nil)
	code, _, err = h.run(func(c *run.Config) { c.Secrets = append(c.Secrets, run.Secret{Name: "unknown", Env: "X"}) }, "touch", mark)
	if code != run.ExitOurs || !problem.Is(err, problem.ReasonNoGrant) {
		t.Errorf("%d, %v", code, err)
	}
	code, _, err = h.run(func(c *run.Config) { c.Agent = &localapi.Client{Socket: "/no/agent"} }, "touch", mark)
	if code != run.ExitOurs || !problem.Is(err, problem.ReasonNoAgent) {
		t.Errorf("%d, %v", code, err)
	}
	code, _, err = h.run(func(c *run.Config) { c.Secrets = []run.Secret{{Name: "binary", Env: "X"}} }, "touch", mark)
	if code != run.ExitOurs || !problem.Is(err, problem.ReasonInvalid) || !strings.Contains(problem.As(err).WayOut(), "--secret-file") {
		t.Errorf("a zero byte: %d, %v", code, err)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Error("the command was started")
	}
	if !h.returned() {
		t.Errorf("%+v", h.server.Leases())
	}
}

func TestFiles(t *testing.T) {
	h := whole(t)
	memory, err := os.MkdirTemp("/dev/shm", "run-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	named := filepath.Join(memory, "named")
	kept := filepath.Join(memory, "kept")
	secrets := func(c *run.Config) {
		c.Secrets = nil
		for _, arg := range []string{"db/password=DB_PASSWORD", "binary=" + named, "db/password=" + memory} {
			s, err := run.ParseSecretFile(arg)
			if err != nil {
				t.Fatal(err)
			}
			c.Secrets = append(c.Secrets, s)
		}
	}
	// The child keeps a hard link: the value in it is wiped too.
	code, out, err := h.run(secrets, "sh", "-c", `cat "$DB_PASSWORD_FILE"; echo; stat -c %a "$DB_PASSWORD_FILE" "$(dirname "$DB_PASSWORD_FILE")"; wc -c <"$1"; cat "$2/password"; ln "$1" "$2/kept"; echo; echo "$DB_PASSWORD_FILE"`, "sh", named, memory)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || err != nil || len(lines) != 6 || strings.Join(lines[:5], "|") != "s3cret value|600|700|3|s3cret value" {
		t.Fatalf("%d, %q, %v", code, out, err)
	}
	for _, path := range []string{lines[5], filepath.Dir(lines[5]), named, filepath.Join(memory, "password")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
	if b, err := os.ReadFile(kept); err != nil || len(b) != 0 {
		t.Errorf("the linked file holds %q, %v", b, err)
	}
	// Not on memory-backed storage, where something is already, and through a symbolic link.
	disk := func() string {
		for _, d := range []string{t.TempDir(), "/var/tmp", "/"} {
			var st unix.Statfs_t
			if unix.Statfs(d, &st) == nil && st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
				return d
			}
		}
		t.Fatal("there is no directory on a disk")
		return ""
	}()
	link := filepath.Join(memory, "link")
	if err := os.Symlink(kept+"2", link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]problem.Reason{filepath.Join(disk, "run-test-secret"): problem.ReasonInvalid, kept: problem.ReasonExists, link: problem.ReasonExists} {
		code, _, err := h.run(func(c *run.Config) { c.Secrets = []run.Secret{{Name: "db/password", File: path}} }, "true")
		if code != run.ExitOurs || !problem.Is(err, want) {
			t.Errorf("%s: %d, %v, want %s", path, code, err, want)
		}
	}
	if _, err := os.Lstat(kept + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a symbolic link was followed")
	}
	if !h.returned() {
		t.Errorf("%+v", h.server.Leases())
	}
}

func TestArguments(t *testing.T) {
	if s, err := run.ParseSecret("db/password=DB_PASSWORD"); err != nil || s != (run.Secret{Name: "db/password", Env: "DB_PASSWORD"}) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := run.ParseSecretFile("db/password=/x/y/"); err != nil || s.File != "/x/y/password" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := run.ParseSecretFile("a=B_FILE"); err != nil || s.Env != "B_FILE" || !s.AsFile {
		t.Errorf("%+v, %v", s, err)
	}
	for _, arg := range []string{"", "a", "=A", "a=", "a=1A", "a=A-B", "a=A B", "a=Ä", "a=LD_PRELOAD", "a=PATH", "a=" + strings.Repeat("A", 256)} {
		if _, err := run.ParseSecret(arg); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("--secret %q: %v", arg, err)
		}
	}
	h := &house{T: t, socket: "/no/agent"}
	for name, secrets := range map[string][]run.Secret{
		"one name twice": {{Name: "a", Env: "A"}, {Name: "b", Env: "A"}},
		"one file twice": {{Name: "a", File: "/dev/shm/a"}, {Name: "b", File: "/dev/shm/a"}},
		"no place":       {{Name: "a"}},
		"two places":     {{Name: "a", Env: "A", File: "/x"}},
		"bad name":       {{Name: "a", Env: "A=B"}},
	} {
		if code, _, err := h.run(func(c *run.Config) { c.Secrets = secrets }, "true"); code != run.ExitOurs || !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %d, %v", name, code, err)
		}
	}
}

// helper starts this binary as `bailment run`.
func (h *house) helper(command ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	cmd := exec.Command(self, command...)
	cmd.Env = append(os.Environ(), "RUN_TEST_SOCKET="+h.socket)
	return cmd
}

// output collects what a process writes, and waits for text in it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) has(text string) func() bool {
	return func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return strings.Contains(o.b.String(), text)
	}
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) count(text string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Count(o.b.String(), text)
}

// trap is a child that says which signals it gets, and ends by SIGTERM.
const trap = `for s in HUP INT QUIT USR1 USR2 WINCH ALRM; do trap "echo got-$s" $s; done
trap 'echo got-TERM; exit 9' TERM
echo ready
while :; do read -r x <"$FIFO" || :; done`

func (h *house) trapped() (*exec.Cmd, *output) {
	fifo := filepath.Join(h.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		h.Fatal(err)
	}
	hold, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0) // so that the child's read waits, and a signal interrupts it
	if err != nil {
		h.Fatal(err)
	}
	// A signal between two of the shell's steps is seen at the next one: the read must end now and then.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = hold.WriteString("\n") // a reader that is away has enough of them in the pipe
			case <-stop:
				return
			}
		}
	}()
	h.Cleanup(func() {
		close(stop)
		<-stopped
		_ = hold.Close()
	})
	cmd := h.helper("sh", "-c", trap)
	cmd.Env = append(cmd.Env, "FIFO="+fifo)
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

func TestSignals(t *testing.T) {
	h := whole(t)
	cmd, out := h.trapped()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal, and a group of its own
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child", out.has("ready"))
	for name, s := range map[string]syscall.Signal{"HUP": unix.SIGHUP, "INT": unix.SIGINT, "QUIT": unix.SIGQUIT, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2, "WINCH": unix.SIGWINCH, "ALRM": unix.SIGALRM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		h.eventually("SIG"+name, out.has("got-"+name+"\n"))
	}
	// To the whole group, as a supervisor does: once.
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 || out.count("got-TERM") != 1 || out.count("got-INT") != 1 {
		t.Errorf("%v, %q", err, out.b.String())
	}
	if !h.returned() {
		t.Errorf("%+v", h.server.Leases())
	}
}

// When run itself is killed, the child is told to end, and the agent gives the leases back.
func TestRunIsKilled(t *testing.T) {
	h := whole(t)
	cmd, out := h.trapped()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child", out.has("ready"))
	if h.returned() {
		t.Fatal("given back too early")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child's end", out.has("got-TERM"))
	h.eventually("the lease", h.returned)
	_ = cmd.Wait()
}

// A run that is told to end between getting its secrets and starting its program leaves nothing behind.
func TestToldToEndEarly(t *testing.T) {
	h := whole(t)
	memory, err := os.MkdirTemp("/dev/shm", "run-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	t.Setenv("XDG_RUNTIME_DIR", memory)
	cmd := h.helper("sleep", "60")
	cmd.Env = append(cmd.Env, "RUN_TEST_STOP=1", "RUN_TEST_FILE="+filepath.Join(memory, "named"))
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 128+int(unix.SIGTERM) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(memory); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	h.eventually("the leases", h.returned)
}

// What was ignored when run was started stays ignored in the child: nohup works.
func TestIgnoredStaysIgnored(t *testing.T) {
	h := whole(t)
	self := h.helper("sh", "-c", `kill -HUP $$; echo alive`)
	cmd := exec.Command("sh", append([]string{"-c", `trap "" HUP; exec "$@"`, "sh"}, self.Args...)...)
	cmd.Env = self.Env
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "alive\n" {
		t.Errorf("%q, %v", out, err)
	}
}
