// Package quickstart shows the whole of Bailment on this machine: an environment comes to life, this
// machine and processes on it prove what they are, a reviewed policy says yes, a real secret reaches
// a real process, the receipt verifies offline, and a revocation stops the next hand-over.
//
// Guaranteed: everything happens through the public commands of the same binary, so what it shows is
// what a user gets; it touches one directory, which it made itself, and loopback addresses; what it
// started it stops, unless told to keep it. Not guaranteed: that the environment is good for anything
// but learning: it is of the development class, with its root key in a file.
//
// Its place: below the command line, beside the roles; it knows them only as processes.
package quickstart

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/examples"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// DefaultDir is where the command makes it.
const DefaultDir = "./bailment-quickstart"

// Options of a quickstart. Dir, Exe and Out are required.
type Options struct {
	Dir  string    // made if it is not there; must be empty or an earlier quickstart's
	Exe  string    // this program
	Keep bool      // leave server and agent running
	Out  io.Writer // what is told
}

// The directory's files.
const (
	marker     = "this-is-a-bailment-quickstart"
	envName    = "payments-dev"
	secretName = "db/password"
	startup    = 20 * time.Second
)

// maxSocket is how long a Unix socket's path may be for the kernel (unix(7)).
const maxSocket = len(syscall.RawSockaddrUnix{}.Path) - 1

// show is one run.
type show struct {
	o     Options
	out   *told
	dir   string
	lock  *os.File // the marker, held while this run is at work
	step  int
	addr  string
	procs []*process
}

// process is one that this run started.
type process struct {
	*exec.Cmd
	ended chan struct{} // closed when it has ended
}

// told is what the person is told. It keeps the first failure, so that a step need not look.
type told struct {
	w   io.Writer
	err error
}

func (t *told) say(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

// Run shows it all. It is safe to run twice: what an earlier run left in the directory is stopped and removed first.
func Run(ctx context.Context, o Options) (err error) {
	// Whoever listens may go away (a pipe's reader, a terminal): that ends the run, and must not leave its processes behind.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // caught: a write fails instead
	defer signal.Reset(syscall.SIGPIPE)
	if !signal.Ignored(syscall.SIGHUP) {
		var stop func()
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stop()
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the directory")
	}
	s := &show{o: o, out: &told{w: o.Out}, dir: dir}
	if err := s.prepare(); err != nil {
		return err
	}
	defer func() {
		if err != nil || !o.Keep {
			err = errors.Join(err, s.stop())
		}
		_ = s.lock.Close() // which unlocks; nothing was written to it since
		if err != nil && ctx.Err() != nil {
			// Whatever the step says that was broken off, it is not what went wrong.
			err = problem.New(problem.ReasonCanceled, "stopped in step %d", s.step).WithFix("run it again: it removes what this run has left in %s", dir)
		}
	}()
	for _, step := range []func(context.Context) error{
		s.found, s.serve, s.login, s.join, s.makeSecret, s.handOver, s.verify, s.revoke, s.audit,
	} {
		if err := step(ctx); err != nil {
			return err
		}
		if s.out.err != nil {
			return s.out.err
		}
	}
	s.goodbye()
	return s.out.err
}

func (s *show) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

// say begins a step in plain words.
func (s *show) say(format string, args ...any) {
	s.step++
	s.out.say("\n%d. %s\n", s.step, fmt.Sprintf(format, args...))
}

// note adds what came of it.
func (s *show) note(format string, args ...any) {
	s.out.say("   %s\n", fmt.Sprintf(format, args...))
}

// prepare makes the directory, after clearing away an earlier run.
func (s *show) prepare() error {
	// The longer one of the two that the agent makes there.
	if socket := s.path("spiffe.sock"); len(socket) > maxSocket {
		return problem.New(problem.ReasonInvalid, "the agent's socket would be %s, and the kernel takes at most %d bytes for its path", socket, maxSocket).
			WithFix("choose a shorter directory with --dir")
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Local(err, "reading %s", s.dir)
	}
	if _, err := os.Stat(s.path(marker)); err != nil && len(entries) > 0 {
		return problem.New(problem.ReasonExists, "%s is not empty and not an earlier quickstart", s.dir).WithFix("choose another directory with --dir")
	}
	if err := durable.MkdirAll(s.dir, 0o700); err != nil {
		return problem.Local(err, "making %s", s.dir).WithFix("choose a directory that you may write to, with --dir")
	}
	if s.lock, err = s.occupy(); err != nil {
		return err
	}
	if err := s.clear(); err != nil {
		return errors.Join(err, s.lock.Close())
	}
	return nil
}

// occupy keeps another quickstart out of the directory while this one is at work. The lock is on the marker, which
// stays where it is when the rest of an earlier run is cleared away.
func (s *show) occupy() (*os.File, error) {
	f, err := os.OpenFile(s.path(marker), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, problem.Local(err, "marking %s", s.dir).WithFix("choose a directory that you may write to, with --dir")
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		err = problem.New(problem.ReasonConflict, "another quickstart is at work in %s", s.dir).WithFix("wait for it, or choose another directory with --dir")
	case err != nil:
		err = problem.Local(err, "locking %s", s.dir)
	default:
		if _, err = f.WriteAt([]byte("Made by bailment quickstart, which may remove this directory.\n"), 0); err == nil {
			return f, nil
		}
		err = problem.Local(err, "marking %s", s.dir)
	}
	return nil, errors.Join(err, f.Close())
}

// clear stops and removes what an earlier run left.
func (s *show) clear() error {
	if err := s.stopEarlier(); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return problem.Local(err, "reading %s", s.dir)
	}
	for _, e := range entries {
		if e.Name() == marker {
			continue
		}
		if err := os.RemoveAll(s.path(e.Name())); err != nil {
			return problem.Local(err, "removing the earlier quickstart")
		}
	}
	return nil
}

func (s *show) write(name string, data []byte) error {
	path := s.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return problem.Local(err, "making %s", filepath.Dir(path))
	}
	if err := durable.WriteFile(path, data, 0o600); err != nil {
		return problem.Local(err, "writing %s", path)
	}
	return nil
}

// pids are the processes of a kept quickstart, by role.
var pids = []string{"server", "agent", "database"}

// stopEarlier ends what a kept run left running, if it is still ours.
func (s *show) stopEarlier() error {
	for _, role := range pids {
		text, err := os.ReadFile(s.path(role + ".pid"))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			continue
		}
		if !s.ours(pid) {
			continue // gone, or somebody else's by now
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			continue
		}
		for deadline := time.Now().Add(startup); s.ours(pid); {
			if time.Now().After(deadline) {
				return problem.New(problem.ReasonConflict, "the earlier quickstart's %s (process %d) does not stop", role, pid)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	return nil
}

// ours reports whether a process is one of this directory's. A zombie has no arguments any more and is gone.
func (s *show) ours(pid int) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(args, []byte(s.dir))
}

// stop ends what this run started, the last first.
func (s *show) stop() error {
	var failed error
	for i := len(s.procs) - 1; i >= 0; i-- {
		p := s.procs[i]
		if err := p.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			failed = errors.Join(failed, err)
			continue
		}
		<-p.ended
	}
	return failed
}

// command runs one public command and returns its standard output, as JSON. What it says went wrong is what went wrong.
func (s *show) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.o.Exe, append(args, "-o", "json")...)
	cmd.Env = s.environ()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Dir = s.dir
	if err := cmd.Run(); err != nil {
		return out.Bytes(), failure(err, args, errOut.Bytes())
	}
	return out.Bytes(), nil
}

// failure is what a command said as it failed: its last line, in the form of -o json.
func failure(err error, args []string, text []byte) error {
	what := "bailment " + strings.Join(args, " ")
	var said struct {
		Error  string         `json:"error"`
		Reason problem.Reason `json:"reason"`
		Try    string         `json:"try"`
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if json.Unmarshal(lines[len(lines)-1], &said) != nil || said.Error == "" {
		return problem.Wrap(err, problem.ReasonInternal, "%s: %s", what, tail(text))
	}
	p := problem.New(said.Reason, "%s: %s", what, said.Error).WithFix("%s", said.Try)
	p.Err = err // an *exec.ExitError, for those who want its code
	return p
}

// environ points the commands at this environment, and is what the reader would set by hand.
func (s *show) environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "BAILMENT_") {
			env = append(env, kv)
		}
	}
	return append(env, "BAILMENT_HOME="+s.path("home"), "BAILMENT_AGENT="+s.path("agent.sock"), "BAILMENT_SSH_KEY="+s.path("alice"), "BAILMENT_ADDR="+s.addr,
		"BAILMENT_BOOTSTRAP="+s.bootstrap(), "BAILMENT_ENV="+envName)
}

func (s *show) bootstrap() string {
	b, err := os.ReadFile(s.path("bootstrap"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// start runs a role in the background, with its log in a file, until ready says so.
func (s *show) start(ctx context.Context, role string, ready func() bool, args ...string) error {
	log, err := os.OpenFile(s.path(role+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return problem.Local(err, "making the log of the %s", role)
	}
	defer log.Close()
	cmd := exec.Command(s.o.Exe, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.environ(), s.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: s.o.Keep} // a kept one outlives the terminal
	if err := cmd.Start(); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "starting the %s", role)
	}
	p := &process{cmd, make(chan struct{})}
	s.procs = append(s.procs, p)
	go func() {
		_ = cmd.Wait() // however it ended: it is asked about where it matters
		close(p.ended)
	}()
	if err := s.write(role+".pid", []byte(strconv.Itoa(cmd.Process.Pid)+"\n")); err != nil {
		return err
	}
	for deadline := time.Now().Add(startup); !ready(); {
		if err := ctx.Err(); err != nil {
			return problem.Wrap(err, problem.ReasonCanceled, "starting the %s", role)
		}
		select {
		case <-p.ended:
			return s.unready(role, "has ended before it was ready")
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return s.unready(role, "does not get ready")
		}
	}
	return nil
}

// unready is a process that did not come up, with what it said last.
func (s *show) unready(role, how string) error {
	path := s.path(role + ".log")
	text, _ := os.ReadFile(path) // what can't be read is not said
	return problem.New(problem.ReasonUnreachable, "the %s %s; its log ends: %s", role, how, strings.TrimSpace(tail(text))).WithFix("see %s, and run it again", path)
}

func tail(b []byte) string { return string(b[max(0, len(b)-2000):]) }

func exists(path string) func() bool {
	return func() bool {
		_, err := os.Stat(path)
		return err == nil
	}
}

// decode reads a command's JSON.
func decode[T any](b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		return v, problem.Wrap(err, problem.ReasonInternal, "reading a command's output")
	}
	return v, nil
}

// operatorKey makes alice's SSH key, as ssh-keygen would, and puts it into the bundle.
func (s *show) operatorKey() (string, error) {
	src, err := seal.NewSource(nil)
	if err != nil {
		return "", err
	}
	key, err := seal.GenerateEd25519(src)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(key, "alice@quickstart")
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInternal, "writing the SSH key")
	}
	if err := s.write("alice", pem.EncodeToMemory(block)); err != nil {
		return "", err
	}
	pub, err := ssh.NewPublicKey(key.Public().(ed25519.PublicKey))
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInternal, "writing the SSH key")
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))
	return line, s.write("alice.pub", []byte(line+" alice@quickstart\n"))
}

// bundle copies examples/payments, with this alice's key in place of the example's.
func (s *show) bundle(key string) error {
	const root = "payments"
	return fs.WalkDir(examples.FS, root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(examples.FS, path)
		if err != nil {
			return err
		}
		if path == root+"/operators.yaml" {
			lines := strings.SplitAfter(string(data), "\n")
			for i, line := range lines {
				if at := strings.Index(line, "ssh-ed25519 "); at >= 0 {
					lines[i] = line[:at] + key + " alice@quickstart\n"
				}
			}
			data = []byte(strings.Join(lines, ""))
		}
		return s.write(filepath.Join("bundle", strings.TrimPrefix(path, root+"/")), data)
	})
}
