// Package job executes a program inside of a CI job with the secrets that the job was granted: `bailment ci run -- CMD`.
//
// Guaranteed: whatever ends the job, what it was given is given back, leases first and then the session: when the program has ended, well or
// not; when this process gets SIGHUP, SIGINT, SIGQUIT or SIGTERM, which reach the program first, with a grace after which it is killed; when its parent (the
// step's shell) dies; and when this process is killed by SIGKILL, by a second process that watches it and that whoever kills a
// step's processes by group, session, parent or environment does not find. No secret is asked for before that one watches. It is told what is asked for before it is
// asked for, so there is no moment at which a lease is known to nobody. What can't be given back, because the server can't be reached or everything was killed at
// once, is told with the moment at which it is dead anyway: its lease's end, which the server puts no later than the session's. While the program runs, session and leases are renewed; a session
// that can't be is given back, with the leases, before it ends.
//
// A token of the platform goes to the server only (the attester sees to it that its audience is this environment's), and never into an argument, a log, or the program's
// environment, from which the variables that give a right to tokens are taken. Values reach the program as with package run; they are printed nowhere but to
// a platform that takes them out of its logs, by its own protocol, and only where its log is what is written to.
//
// Not guaranteed: that hostile code in the job can't get what the job can get. A step's right to tokens is in the environment of the shell
// that started it too, which other processes of the same user can read, and on many runners the user may become root. That giving a stored value back makes its
// taker forget it: only rotation does. That a program's own children end with it when it ends by itself. Linux only.
//
// Its place: a role, beside agent and run, which it uses for the program; below it are client and the contract of attestation.
package job

import (
	"context"
	"crypto"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// DefaultGrace is how long the program has to end after a signal: GitHub sends SIGTERM 7.5 s after SIGINT and SIGKILL 2.5 s after that, and giving
// back must come before.
const DefaultGrace = 5 * time.Second

// Config of a job's run. All fields without "may be" are compulsory.
type Config struct {
	Bootstrap string // the environment
	Method    string // of attestation
	Attester  attest.Attester
	Renewal   attest.RenewalKind // the method's
	Platform  Platform           // the method's
	Version   string             // of this program
	// Watchdog is the argv of what calls Spawn with the argv of what calls Watch.
	Watchdog []string
	Command  []string
	Env      []string // this process's, as os.Environ gives it
	KeepOIDC bool     // leave the platform's right to tokens in the program's environment
	Secrets  []run.Secret
	Purpose  string // may be empty: runtime
	Wait     time.Duration
	Patience time.Duration // of giving back
	Grace    time.Duration // of the program
	// The program's standard streams; may be nil.
	Stdin, Stdout, Stderr *os.File
	// Note is told what happens, Warn what is not as it should be. They are called from several goroutines, one at a time.
	Note, Warn func(text string)
}

// job is one run.
type job struct {
	Config
	watchdog *watchdog
	trust    *client.Trust
	open     *client.Client // without a session
	calls    *client.Client // with it
	telling  sync.Mutex

	mu      sync.Mutex
	session *client.Session
	holding holding
	leases  []*kept
	next    crypto.Signer // the key of a renewal that has no answer yet

	keeping sync.WaitGroup
	stop    context.CancelFunc // of keeping
}

// Run runs the command and returns its exit code, or one of package run's with an error that says why. It takes over this
// process's signals. When ctx ends, the program is asked to end.
func Run(ctx context.Context, c Config) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	j := &job{Config: c, stop: func() {}}
	j.Note, j.Warn = j.oneAtATime(c.Note), j.oneAtATime(c.Warn)
	WatchParent(ctx, func() {
		j.Warn("what started this is gone: the program is asked to end")
		cancel()
	})
	j.holding.Grace, j.holding.Patience, j.holding.Places = int64(c.Grace), int64(c.Patience), run.Places(c.Secrets)
	j.watchdog = &watchdog{command: c.Watchdog, stderr: c.Stderr, died: j.watchdogDied}
	return run.Direct{
		Command: c.Command, Env: c.childEnv(), Secrets: c.Secrets, Stdin: c.Stdin, Stdout: c.Stdout, Stderr: c.Stderr, Grace: c.Grace,
		Open: j.get, Started: j.started, Close: j.close,
	}.Run(ctx)
}

func (j *job) oneAtATime(tell func(string)) func(string) {
	return func(text string) {
		j.telling.Lock()
		defer j.telling.Unlock()
		tell(text)
	}
}

// childEnv is what the program sees of this process's environment.
func (c *Config) childEnv() []string {
	if c.KeepOIDC {
		return c.Env
	}
	return slices.DeleteFunc(slices.Clone(c.Env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(c.Platform.Hidden, name)
	})
}

func (j *job) watchdogDied(again bool, err error) {
	switch {
	case again:
		j.Warn("the watchdog was killed; there is another")
	case err != nil:
		j.Warn("the watchdog was killed, and there is no other: " + problem.As(err).Message)
	default:
		j.Warn("the watchdog was killed again and again: if this process is killed, nothing is given back, and ends by itself")
	}
}

// get attests and gets the values. What it got until an error is given back by close.
func (j *job) get(ctx context.Context, names []string) ([][]byte, error) {
	if err := j.watchdog.start(); err != nil {
		return nil, err
	}
	if err := j.patiently(ctx, j.attest); err != nil {
		return nil, err
	}
	values := make([][]byte, len(names))
	for i, name := range names {
		err := j.take(ctx, name, &values[i])
		if err != nil {
			for _, v := range values {
				clear(v)
			}
			return nil, err
		}
	}
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	j.stop = stop
	j.keeping.Go(func() { j.keep(keeping) })
	if j.Platform.Masks {
		if err := j.mask(values); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// patiently repeats what failed for a reason that passes, as long as Wait.
func (j *job) patiently(ctx context.Context, do func(context.Context) error) error {
	end := time.Now().Add(j.Wait)
	wait := firstAgain
	for told := false; ; wait = min(2*wait, lastAgain) {
		err := do(ctx)
		if err == nil {
			return nil
		}
		p := problem.As(err)
		left := time.Until(end)
		if p.Kind != problem.Unavailable && p.Kind != problem.UnknownOutcome && p.Kind != problem.Limited || p.Reason == problem.ReasonCanceled || left <= 0 || ctx.Err() != nil {
			return err
		}
		if !told {
			j.Note("waiting: " + p.Message)
			told = true
		}
		if !pause(ctx, min(max(client.Jitter(wait), p.RetryAfter), left)) {
			return err
		}
	}
}

// attest finds the environment, and proves what this job is. The key is made once: when an answer was lost, a token of single use is good for that key only.
func (j *job) attest(ctx context.Context) error {
	if j.trust == nil {
		t, err := client.Bootstrap(ctx, j.Bootstrap, client.Options{})
		if err != nil {
			return err
		}
		open, err := client.Dial(t, client.Options{})
		if err != nil {
			return err
		}
		calls, err := client.Dial(t, client.Options{Credentials: j.credentials})
		if err != nil {
			return err
		}
		j.trust, j.open, j.calls = t, open, calls
	}
	s, err := j.prove(ctx)
	if err != nil {
		return err
	}
	if err := j.install(s); err != nil {
		return err
	}
	j.Note("this job is " + s.Path() + " (" + s.Assurance + ")")
	return nil
}

// prove attests with the next key.
func (j *job) prove(ctx context.Context) (*client.Session, error) {
	key, err := j.nextKey()
	if err != nil {
		return nil, err
	}
	return j.open.Attest(ctx, j.Method, j.Attester, key, j.Version)
}

// nextKey is the key of the session to come, the same until there is one.
func (j *job) nextKey() (crypto.Signer, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.next == nil {
		key, err := client.NewKey()
		if err != nil {
			return nil, err
		}
		j.next = key
	}
	return j.next, nil
}

// take gets one value. The watchdog knows before the server does.
func (j *job) take(ctx context.Context, name string, value *[]byte) error {
	a := ask{Secret: name, Purpose: j.Purpose, Key: newKey()}
	if err := j.note(func(h *holding) { h.Asked = append(h.Asked, a) }); err != nil {
		return err
	}
	var res *v1.GetResponse
	err := j.patiently(ctx, func(ctx context.Context) (err error) {
		res, err = j.calls.Secrets.Get(ctx, &v1.GetRequest{Secret: name, Purpose: j.Purpose, IdempotencyKey: a.Key})
		return err
	})
	if err != nil {
		return err
	}
	*value = res.Value
	l := lease{ID: res.Lease, Secret: name, Expires: res.Expires.AsTime()}
	j.Note(describe(res, l))
	return j.note(func(h *holding) {
		h.Asked = slices.DeleteFunc(h.Asked, func(x ask) bool { return x == a })
		h.Leases = append(h.Leases, l)
		j.leases = append(j.leases, &kept{lease: l, from: time.Now()})
	})
}

// note changes what is held, and tells the watchdog.
func (j *job) note(change func(*holding)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&j.holding)
	return j.watchdog.tell(&j.holding)
}

// install makes a session the one that calls are made with.
func (j *job) install(s *client.Session) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.holding.put(j.trust, s); err != nil {
		return err
	}
	j.session, j.next = s, nil
	if j.Platform.SameToken && j.Renewal == attest.RenewByEvidence {
		if key, ok := s.Certificate.PrivateKey.(crypto.Signer); ok {
			j.next = key
		}
	}
	return j.watchdog.tell(&j.holding)
}

func (j *job) started(pid int) {
	start, _ := startOf(pid)
	// The program runs: a watchdog that can't be told is replaced, and told then.
	_ = j.note(func(h *holding) { h.Child = process{PID: pid, Start: start} })
}

// close gives everything back. The program has ended, or never began.
func (j *job) close() {
	j.stop()
	j.keeping.Wait()
	j.giveBack()
	j.watchdog.end()
	for _, c := range []*client.Client{j.open, j.calls} {
		if c != nil {
			c.Close()
		}
	}
}

// giveBack gives back what is held, once.
func (j *job) giveBack() {
	j.mu.Lock()
	h, held := j.holding, j.holding.held()
	j.mu.Unlock()
	if !held {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.Patience)
	defer cancel()
	r := h.giveBack(ctx, j.calls)
	if r.Whole() {
		j.Note(r.String())
	} else {
		j.Warn(r.String())
	}
	// Told, whole or not: the watchdog would fare no better now, and the one that knows more has spoken.
	_ = j.note(func(h *holding) {
		h.Done = true
		clear(h.Key)
		h.Key = nil
	})
}
