// Package run executes a program with the secrets that it was granted, and nothing else of ours: `bailment run -- CMD`.
//
// Guaranteed: the executable is opened once; that descriptor is sent to the agent, which measures it, and is what the
// kernel executes, so that a path that is swapped in between changes nothing. The child starts only when it was given all
// that was asked for. Values reach it in its environment, or in files on memory-backed storage that are overwritten and
// removed at the end; if this process is killed, at the next run of the same user. When the agent is gone, the child goes on and
// is proved to the next one, so that its leases are renewed and a revocation is told. Signals reach the child once. The exit code is the child's, or one of 125, 126, 127, 128+n. However
// the child ends, its leases are given back; if this process is killed, the agent sees to it, and the child gets SIGTERM.
//
// Not guaranteed: that values in files are gone when this process was killed by SIGKILL and the same user (with the same
// XDG_RUNTIME_DIR, or the same directory of a file that was named) runs nothing any more: they stay in memory, readable by that user
// and root, until the machine is restarted. What a child does with its environment, which its own children inherit and which the same user and root
// can read in /proc. That a file whose content is changed in place between measuring and executing is noticed, which only
// who may write to it can do. That a grandchild ends with the child. A script's interpreter is not measured, and it is told
// the script's name as /proc/self/fd/3: nothing else names the very file that was measured.
//
// Its place: a role, beside agent; it knows of it only the local API.
package run

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

// Exit codes besides the child's own (DESIGN §16).
const (
	ExitOurs          = 125 // something of ours went wrong: the agent, the request, a refusal
	ExitNotExecutable = 126 // the command was found, and can't be executed
	ExitNotFound      = 127 // the command was not found
	exitSignal        = 128 // + the signal that ended the child
)

// Agent gives secrets. It is localapi.Client's.
type Agent interface {
	Open(ctx context.Context, r localapi.OpenRequest, exe *os.File) (*localapi.Run, error)
}

// Config of a run.
type Config struct {
	Agent    Agent
	Command  []string // name or path, and arguments
	Env      []string // the child's environment to begin with, as os.Environ gives it
	Secrets  []Secret
	Purpose  string // empty: runtime
	Workload string // path of the wanted identity; empty: the only one that fits
	Receipts bool
	Wait     time.Duration // how long agent or server may be away before the program is started; 0: not at all
	Timeout  time.Duration // of asking once; 0: the agent's own
	// The child's standard streams; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Opened is told what was given, without values, before the child starts. May be nil.
	Opened func(localapi.Opened)
	// Event is told what happens to the leases and the agent, while the child runs from another goroutine. May be nil.
	Event func(localapi.Event)
}

// Secret says which secret goes where: into the environment (Env), into a file (File), or into a private file whose
// path is put into the environment (Env and AsFile).
type Secret struct {
	Name   string
	Env    string // name of the environment variable
	AsFile bool   // Env gets the path of a private file, not the value
	File   string // absolute path of a file to make, on memory-backed storage
}

// ParseSecret reads the argument of --secret: SECRET=NAME.
func ParseSecret(arg string) (Secret, error) {
	name, env, ok := strings.Cut(arg, "=")
	if !ok || name == "" {
		return Secret{}, problem.New(problem.ReasonInvalid, "--secret %q is not SECRET=NAME", arg).
			WithFix("write it like db/password=DB_PASSWORD")
	}
	if err := validEnv(env); err != nil {
		return Secret{}, err
	}
	return Secret{Name: name, Env: env}, nil
}

// ParseSecretFile reads the argument of --secret-file: SECRET=TARGET. The target is an absolute path of a file; of a
// directory, if it ends in '/' or is one, for a file named like the secret's last segment; or a NAME, for a private file
// whose path is put into the environment as NAME_FILE (or NAME, if it ends in _FILE already).
func ParseSecretFile(arg string) (Secret, error) {
	name, target, ok := strings.Cut(arg, "=")
	if !ok || name == "" || target == "" {
		return Secret{}, problem.New(problem.ReasonInvalid, "--secret-file %q is not SECRET=TARGET", arg).
			WithFix("write it like db/password=/run/app/password, or db/password=DB_PASSWORD")
	}
	if !strings.HasPrefix(target, "/") {
		if !strings.HasSuffix(target, "_FILE") {
			target += "_FILE"
		}
		if err := validEnv(target); err != nil {
			return Secret{}, err
		}
		return Secret{Name: name, Env: target, AsFile: true}, nil
	}
	st, err := os.Stat(target)
	if strings.HasSuffix(target, "/") || err == nil && st.IsDir() {
		target = filepath.Join(target, name[strings.LastIndexByte(name, '/')+1:])
	}
	return Secret{Name: name, File: filepath.Clean(target)}, nil
}

// dangerous variables change what is executed, before the child's first instruction.
var dangerous = []string{"LD_", "GLIBC_TUNABLES", "GCONV_PATH", "PATH", "IFS", "BASH_ENV", "ENV", "PYTHONSTARTUP"}

// validEnv says what is wrong with a name for an environment variable (POSIX.1-2017 §8.1), or nil.
func validEnv(name string) error {
	ok := name != "" && len(name) <= 255 && (name[0] < '0' || name[0] > '9')
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c == '_' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
	}
	if !ok {
		return problem.New(problem.ReasonInvalid, "%q can't be the name of an environment variable", name).
			WithFix("use letters, digits and '_', not a digit first, like DB_PASSWORD")
	}
	for _, d := range dangerous {
		if name == d || strings.HasSuffix(d, "_") && strings.HasPrefix(name, d) {
			return problem.New(problem.ReasonInvalid, "the environment variable %s decides what is executed: a secret does not belong there", name).
				WithFix("name another variable, or hand it over in a file, with --secret-file")
		}
	}
	return nil
}

// check refuses what contradicts itself, before anything is asked for.
func (c *Config) check() error {
	if len(c.Command) == 0 || c.Command[0] == "" {
		return problem.New(problem.ReasonInvalid, "there is no command to run").WithFix("put it after --")
	}
	envs, names, paths := map[string]string{}, map[string]bool{}, map[string]bool{}
	for _, s := range c.Secrets {
		if (s.Env == "") == (s.File == "") {
			return problem.New(problem.ReasonInvalid, "%s has no place to go to, or two", s.Name)
		}
		if s.Env != "" {
			if err := validEnv(s.Env); err != nil {
				return err
			}
			if other, ok := envs[s.Env]; ok {
				return problem.New(problem.ReasonInvalid, "%s and %s would both be in %s", other, s.Name, s.Env).WithFix("give each a name of its own")
			}
			envs[s.Env] = s.Name
		}
		if s.File != "" {
			if !filepath.IsAbs(s.File) || paths[s.File] {
				return problem.New(problem.ReasonInvalid, "the file %s is not an absolute path, or is wanted twice", s.File)
			}
			paths[s.File] = true
		}
		names[s.Name] = true
	}
	if len(names) > localapi.MaxSecrets {
		return problem.New(problem.ReasonInvalid, "one run has at most %d secrets", localapi.MaxSecrets)
	}
	return nil
}

// Run runs the command and returns its exit code, or one of ours with an error that says why. It must be called from one
// place at a time: it takes over this process's signals and, for its time, the terminal.
func Run(ctx context.Context, c Config) (code int, err error) {
	exe, code, err := c.prepare()
	if err != nil {
		return code, err
	}
	defer exe.file.Close()
	// From here on, a signal that would end us must leave nothing behind.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, ending()...)
	defer signal.Stop(signals)
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	told := interrupted(signals, asking.Done(), cancel)
	child, end, err := c.ask(asking, exe)
	cancel()
	if s := <-told; s != 0 {
		if err == nil {
			end()
		}
		return exitSignal + int(s), nil
	}
	if err != nil {
		return ExitOurs, err
	}
	defer end()
	code, err = child.run(ctx, signals)
	return code, err
}

// prepare checks the configuration, makes this process one that may hold values, and finds the program. With an error comes the exit
// code. The caller closes the program's file.
func (c *Config) prepare() (exe *executable, code int, err error) {
	if err := c.check(); err != nil {
		return nil, ExitOurs, err
	}
	// Values will be in this process's memory: it must not be dumped, nor read by others of the same user. The
	// child's own setting begins anew when it is executed (prctl(2), PR_SET_DUMPABLE).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, ExitOurs, problem.Wrap(err, problem.ReasonInternal, "keeping this process from being dumped")
	}
	exe, err = find(c.Command[0], c.Env)
	if err != nil {
		return nil, exitOf(err), err
	}
	return exe, 0, nil
}

// ending are the signals that end a program that does not mind them. What was ignored when we were started stays so.
func ending() []os.Signal {
	var out []os.Signal
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		if !signal.Ignored(s) {
			out = append(out, s)
		}
	}
	return out
}

// interrupted calls stop at the first signal before done, and then tells which it was; 0: none. What comes after done is left
// for the child.
func interrupted(signals <-chan os.Signal, done <-chan struct{}, stop func()) <-chan syscall.Signal {
	out := make(chan syscall.Signal, 1)
	go func() {
		defer close(out)
		tell := func(s os.Signal) {
			if n, ok := s.(syscall.Signal); ok {
				out <- n
				stop()
			}
		}
		select {
		case s := <-signals:
			tell(s)
		case <-done:
			// One that came before has not lost to it: a child that gets the terminal's signals from the terminal would never get it.
			select {
			case s := <-signals:
				tell(s)
			default:
			}
		}
	}()
	return out
}

// ask opens the run at the agent, and puts the values where they belong.
func (c *Config) ask(ctx context.Context, exe *executable) (*child, func(), error) {
	req := localapi.OpenRequest{Exe: localapi.Exe{Path: exe.path, SHA256: exe.digest}, Workload: c.Workload, Receipts: c.Receipts}
	index := make(map[string]int)
	for _, s := range c.Secrets {
		if _, ok := index[s.Name]; !ok {
			index[s.Name] = len(req.Secrets)
			req.Secrets = append(req.Secrets, localapi.Wanted{Name: s.Name, Purpose: c.Purpose})
		}
	}
	sweep(c.places())
	given, err := c.open(ctx, req, exe.file)
	if err != nil {
		return nil, nil, err
	}
	files := new(files)
	end := func() {
		files.remove()
		_ = given.Close()
	}
	if len(given.Secrets) != len(req.Secrets) {
		end()
		return nil, nil, problem.New(problem.ReasonInternal, "the agent gave %d secrets instead of %d", len(given.Secrets), len(req.Secrets))
	}
	env, err := c.place(given, index, files)
	if err != nil {
		end()
		return nil, nil, err
	}
	if c.Opened != nil {
		o := given.Opened
		o.Secrets = append([]localapi.Given(nil), o.Secrets...)
		for i := range o.Secrets {
			o.Secrets[i].Value = nil
		}
		c.Opened(o)
	}
	l := c.follow(given, req, exe.file)
	return &child{exe: exe, args: c.Command, env: env, std: [3]*os.File{c.Stdin, c.Stdout, c.Stderr}}, func() {
		files.remove()
		l.close()
	}, nil
}

// places are the directories where files of killed runs may have stayed.
func (c *Config) places() []string { return Places(c.Secrets) }

// Places are the directories where a run with these secrets puts files, as this process sees them: for Sweep.
func Places(secrets []Secret) []string {
	places := storages()
	for _, s := range secrets {
		if s.File != "" {
			places = append(places, filepath.Dir(s.File))
		}
	}
	return places
}

// place makes the child's environment, and the files.
func (c *Config) place(given *localapi.Run, index map[string]int, files *files) ([]string, error) {
	set := make(map[string]string)
	for _, s := range c.Secrets {
		value := given.Secrets[index[s.Name]].Value
		switch {
		case s.AsFile:
			path, err := files.private(s, value)
			if err != nil {
				return nil, err
			}
			set[s.Env] = path
		case s.File != "":
			if err := files.at(s.File, value); err != nil {
				return nil, err
			}
		default:
			if strings.IndexByte(string(value), 0) >= 0 {
				return nil, problem.New(problem.ReasonInvalid, "the value of %s holds a zero byte, which no environment variable can", s.Name).
					WithFix("use --secret-file %s=%s", s.Name, s.Env)
			}
			set[s.Env] = string(value)
		}
	}
	if _, ours := set[spiffeSocket]; !ours && given.SPIFFE != "" && !has(c.Env, spiffeSocket) && isSocket(given.SPIFFE) {
		set[spiffeSocket] = "unix://" + given.SPIFFE
	}
	env := make([]string, 0, len(c.Env)+len(set))
	for _, kv := range c.Env {
		name, _, _ := strings.Cut(kv, "=")
		if _, ours := set[name]; !ours {
			env = append(env, kv)
		}
	}
	for name, value := range set {
		env = append(env, name+"="+value)
	}
	for i := range given.Secrets {
		clear(given.Secrets[i].Value)
	}
	return env, nil
}

// spiffeSocket is where programs look for the SPIFFE Workload API (SPIFFE_Workload_Endpoint §4).
const spiffeSocket = "SPIFFE_ENDPOINT_SOCKET"

// has says whether an environment sets a variable, to whatever: what somebody set stays.
func has(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// isSocket says whether a path that the agent names is a socket from here as well: in a container it may be nothing.
func isSocket(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == fs.ModeSocket
}

// executable is the file that is going to be executed, open.
type executable struct {
	file   *os.File
	path   string // absolute, as it was found
	digest string
	script bool
}

// notFound and notExecutable carry the exit code that goes with them.
type coded struct {
	*problem.Problem
	code int
}

func (c coded) Unwrap() error { return c.Problem }

func exitOf(err error) int {
	var c coded
	if errors.As(err, &c) {
		return c.code
	}
	return ExitOurs
}

func notFound(format string, args ...any) error {
	return coded{problem.New(problem.ReasonNotFound, format, args...).WithFix("check the command's name, and PATH"), ExitNotFound}
}

func notExecutable(format string, args ...any) error {
	return coded{problem.New(problem.ReasonInvalid, format, args...).WithFix("check the file's permissions, and that it is a program or a script with #!"), ExitNotExecutable}
}

// find finds a command as a shell does, and opens it. Relative directories in PATH are passed over: whoever controls
// the working directory would choose what is executed.
func find(name string, env []string) (*executable, error) {
	if strings.Contains(name, "/") {
		path, err := filepath.Abs(name)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonInternal, "finding the working directory")
		}
		return open(path)
	}
	search := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	var worse error
	for _, dir := range filepath.SplitList(search) {
		if !filepath.IsAbs(dir) {
			continue
		}
		e, err := open(filepath.Join(dir, name))
		if err == nil {
			return e, nil
		}
		if exitOf(err) == ExitNotExecutable && worse == nil {
			worse = err
		}
	}
	if worse != nil {
		return nil, worse
	}
	return nil, notFound("there is no command %q in PATH", name)
}

// open opens a file for execution, and hashes it through the same descriptor.
func open(path string) (*executable, error) {
	// Non-blocking, so that a pipe without a writer does not stop us; it means nothing for a regular file.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
		return nil, notFound("there is no file %s", path)
	case err != nil && !seen(path):
		return nil, notFound("%s can't be looked up: %v", path, err) // a directory on the way is closed to this user
	case err != nil:
		// Also one that may be executed but not read: what can't be measured is not run.
		return nil, notExecutable("%s can't be read, and so not measured: %v", path, err)
	}
	// Away from the numbers that the child's descriptors get while it is being started.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstDescriptor)
	unix.Close(fd)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "keeping %s open", path)
	}
	f := os.NewFile(uintptr(high), path)
	e := &executable{file: f, path: path}
	if err := e.inspect(); err != nil {
		f.Close()
		return nil, err
	}
	return e, nil
}

func seen(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// firstDescriptor is above what a start of a child touches (0 to 3, and a few above the highest of its streams), and
// below the lowest usual limit of 1,024.
const firstDescriptor = 200

func (e *executable) inspect() error {
	st, err := e.file.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return notExecutable("%s is not a regular file", e.path)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, fdPath(int(e.file.Fd())), unix.X_OK, unix.AT_EACCESS); err != nil {
		return notExecutable("%s may not be executed", e.path)
	}
	var magic [2]byte
	n, _ := e.file.ReadAt(magic[:], 0)
	e.script = n == 2 && string(magic[:]) == "#!"
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(e.file, 0, st.Size())); err != nil {
		return notExecutable("%s can't be read: %v", e.path, err)
	}
	e.digest = hex.EncodeToString(h.Sum(nil))
	return nil
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
