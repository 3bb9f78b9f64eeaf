package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/problem"
)

const (
	attestCall = bailmentv1connect.AttestationServiceAttestProcedure
	renewCall  = bailmentv1connect.AttestationServiceRenewProcedure
	watchCall  = bailmentv1connect.WatchServiceWatchProcedure
	nodePath   = "/node/join-token/web-1"
)

// bench is an agent, a fake environment and a network, in a bubble.
type bench struct {
	t      *testing.T
	server *clienttest.Server
	pipe   *clienttest.Pipe
	cfg    Config
	agent  *Agent
	stop   func()
}

func inBubble(t *testing.T, c clienttest.Config, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := clienttest.New(c)
		if err != nil {
			t.Fatal(err)
		}
		p := clienttest.NewPipe()
		if err := s.Serve(p, clienttest.Leaf{}); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		b := &bench{t: t, server: s, pipe: p, cfg: Config{
			Bootstrap: s.Bootstrap, StateDir: filepath.Join(dir, "state"), Method: jointoken.Name,
			Needs: map[string]string{jointoken.NeedToken: filepath.Join(dir, "token")}, Methods: methods.All(), Dialer: p.Dial, Version: "test",
		}}
		defer func() {
			b.end()
			s.Close()
			synctest.Wait()
		}()
		f(b)
	})
}

func (b *bench) token() {
	b.t.Helper()
	tok, err := b.server.Token("web-1")
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.cfg.Needs[jointoken.NeedToken], []byte(tok.Reveal()+"\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// begin starts the agent as Run does, without what does not belong into a bubble (the socket, the process's memory).
func (b *bench) begin() {
	b.t.Helper()
	a, err := New(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	unlock, err := a.prepare()
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.keep(ctx) }()
	b.agent = a
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("keep: %v", err)
		}
		a.closeClients()
		unlock()
	}
}

func (b *bench) end() {
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

// pass lets time pass, which takes none in a bubble.
func (b *bench) pass(d time.Duration) { <-time.After(d) }

// reach waits until the agent is in the state, at most so long.
func (b *bench) reach(want State, most time.Duration) {
	b.t.Helper()
	begin := time.Now()
	for {
		synctest.Wait()
		s := b.agent.Status()
		if s.State == string(want) {
			return
		}
		if time.Since(begin) > most {
			b.t.Fatalf("after %s: state %s (%+v), want %s", most, s.State, s.Problem, want)
		}
		b.pass(50 * time.Millisecond)
	}
}

func (b *bench) reason(want problem.Reason) {
	b.t.Helper()
	if p := b.agent.Status().Problem; p == nil || p.Reason != string(want) || p.Fix == "" {
		b.t.Fatalf("problem %+v, want %s and a way out", p, want)
	}
}

func TestEnrolsAndRenews(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		first := b.agent.Status()
		if first.Identity != "spiffe://test.example"+nodePath || !first.Watching || first.Problem != nil || first.LifetimeEnd.IsZero() {
			t.Fatalf("%+v", first)
		}
		for _, f := range []string{trustFile, sessionFile, enrolmentFile} {
			if st, err := os.Stat(b.agent.files.path(f)); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", f, st, err)
			}
		}
		b.pass(time.Hour)
		b.reach(Ready, time.Second)
		if n := b.server.Counter(nodePath); n < 10 || n > 13 {
			t.Errorf("%d renewals in an hour of sessions of 10 min, want one each half life", n)
		}
		if n := b.server.Calls(attestCall); n != 1 {
			t.Errorf("%d attestations, want 1", n)
		}
		if n := b.server.Calls(watchCall); n > 20 {
			t.Errorf("%d streams for 12 sessions", n)
		}
		// A restart needs neither the token nor, at once, the server.
		b.end()
		if err := os.Remove(b.cfg.Needs[jointoken.NeedToken]); err != nil {
			t.Fatal(err)
		}
		b.pipe.Down(errors.New("no route"))
		b.begin()
		b.reach(Ready, 0)
		b.pipe.Down(nil)
		b.pass(time.Hour)
		b.reach(Ready, time.Second)
		if n := b.server.Calls(attestCall); n != 1 {
			t.Errorf("%d attestations after the restart, want 1", n)
		}
		if b.server.Held(nodePath) {
			t.Error("the enrolment looked forked")
		}
	})
}

// Strangers who keep the server busy don't keep those from renewing who have a session: they ask over it.
func TestRenewsBesideStrangers(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		b.server.Crowd(true)
		b.pass(time.Hour)
		if s := b.agent.Status(); s.State != string(Ready) || s.Problem != nil {
			t.Errorf("%s, %+v", s.State, s.Problem)
		}
		// Without a session it is a stranger itself, until they are gone.
		b.end()
		b.pass(time.Hour)
		b.begin()
		b.reach(Unreachable, time.Minute)
		b.server.Crowd(false)
		b.reach(Ready, time.Minute)
	})
}

// What the network mends is tried soon; what a person must mend, rarely.
func TestFailedStatesAndTheirRates(t *testing.T) {
	for name, c := range map[string]struct {
		prepare  func(b *bench)
		want     State
		reason   problem.Reason
		min, max int // attempts in ten minutes, counted by count
		count    string
	}{
		"unreachable": {func(b *bench) { b.pipe.Down(errors.New("no route")) }, Unreachable, problem.ReasonUnreachable, 0, 0, attestCall},
		"no token":    {func(b *bench) { _ = os.Remove(b.cfg.Needs[jointoken.NeedToken]) }, Broken, problem.ReasonInvalid, 0, 0, attestCall},
		"open token":  {func(b *bench) { _ = os.Chmod(b.cfg.Needs[jointoken.NeedToken], 0o644) }, Broken, problem.ReasonPermissions, 0, 0, attestCall},
		"token of another": {func(b *bench) {
			o, err := clienttest.New(clienttest.Config{})
			if err != nil {
				b.t.Fatal(err)
			}
			tok, err := o.Token("web-1")
			if err != nil {
				b.t.Fatal(err)
			}
			if err := os.WriteFile(b.cfg.Needs[jointoken.NeedToken], []byte(tok.Reveal()), 0o600); err != nil {
				b.t.Fatal(err)
			}
		}, NotProved, problem.ReasonTokenForeign, 3, 12, bailmentv1connect.AttestationServiceChallengeProcedure},
		"no rule":    {func(b *bench) { fail1(b, problem.ReasonNoIdentity) }, Refused, problem.ReasonNoIdentity, 3, 12, attestCall},
		"held":       {func(b *bench) { b.server.Hold(nodePath, true) }, Held, problem.ReasonHeld, 3, 12, attestCall},
		"overloaded": {func(b *bench) { fail1(b, problem.ReasonOverloaded) }, Unreachable, problem.ReasonOverloaded, 20, 60, attestCall},
		"a defect":   {func(b *bench) { fail1(b, problem.ReasonInternal) }, Unreachable, problem.ReasonInternal, 20, 60, attestCall},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, clienttest.Config{}, func(b *bench) {
				b.token()
				c.prepare(b)
				b.begin()
				b.reach(c.want, time.Second)
				b.reason(c.reason)
				b.pass(10 * time.Minute)
				synctest.Wait()
				if s := b.agent.Status(); s.State != string(c.want) {
					t.Fatalf("state %s, want %s still", s.State, c.want)
				}
				if n := b.server.Calls(c.count); n < c.min || n > c.max {
					t.Errorf("%d attempts in ten minutes, want %d to %d", n, c.min, c.max)
				}
			})
		})
	}
}

func fail1(b *bench, r problem.Reason) {
	b.server.Before(func(procedure string) error {
		if procedure == attestCall {
			return problem.New(r, "planted")
		}
		return nil
	})
}

func TestUnreachableEndsSoon(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.pipe.Down(errors.New("no route"))
		b.begin()
		b.pass(30 * time.Minute)
		b.reach(Unreachable, 0)
		b.pipe.Down(nil)
		b.reach(Ready, lastUnreachable+time.Second)
	})
}

// A person who mends what was wrong is not kept waiting for minutes.
func TestNewTokenWakes(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		_ = os.Remove(b.cfg.Needs[jointoken.NeedToken])
		b.begin()
		b.reach(Broken, time.Second)
		b.pass(time.Hour)
		b.token()
		b.reach(Ready, lookForChange+time.Second)
	})
}

// The reply to the first attestation is lost: the same key asks again.
func TestLostAttestationReply(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		lost := 3
		b.server.Lose(func(p string) bool {
			if p == attestCall && lost > 0 {
				lost--
				return true
			}
			return false
		})
		b.token()
		b.begin()
		b.reach(Unreachable, time.Second)
		b.reason(problem.ReasonUnknownOutcome)
		b.end() // and a restart in between
		b.begin()
		b.reach(Ready, time.Minute)
		if n := b.server.Calls(attestCall); n != 4 {
			t.Errorf("%d attestations, want 4", n)
		}
	})
}

// The reply to a renewal is lost, twice, with a restart in between: the same new key asks again, and nothing looks forked.
func TestLostRenewalReply(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		identity := b.agent.Status().Identity
		lost := 2
		b.server.Lose(func(p string) bool {
			if p == renewCall && lost > 0 {
				lost--
				if lost == 0 {
					b.pipe.Down(errors.New("no route")) // so that the test can look
				}
				return true
			}
			return false
		})
		for b.server.Calls(renewCall) < 2 {
			b.pass(10 * time.Millisecond)
		}
		synctest.Wait()
		s := b.agent.Status()
		if s.State != string(Ready) || s.Problem == nil {
			t.Fatalf("a lost reply took away a valid SVID: %+v", s)
		}
		b.end()
		b.begin()
		b.pipe.Down(nil)
		b.pass(time.Minute)
		b.reach(Ready, time.Minute)
		s = b.agent.Status()
		if s.Identity != identity || s.Problem != nil || b.server.Held(nodePath) || b.server.Counter(nodePath) != 1 {
			t.Fatalf("%+v, held %t, counter %d", s, b.server.Held(nodePath), b.server.Counter(nodePath))
		}
		b.pass(time.Hour)
		if b.server.Held(nodePath) || b.server.Counter(nodePath) < 10 {
			t.Fatalf("later: held %t, counter %d", b.server.Held(nodePath), b.server.Counter(nodePath))
		}
	})
}

// A planted agent that makes a new key for each attempt is caught by the server's rules, so the test above can fail.
func TestForkIsSeen(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		lost := 1
		b.server.Lose(func(p string) bool {
			if p == renewCall && lost > 0 {
				lost--
				b.agent.files.remove(renewKeyFile)
				return true
			}
			return false
		})
		b.reach(Held, 20*time.Minute)
		if !b.server.Held(nodePath) {
			t.Error("a fork was not held")
		}
	})
}

// A copy of the state directory, used later, is the thief; both are held.
func TestCopiedStateIsSeen(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		copied := filepath.Join(t.TempDir(), "state")
		if err := os.CopyFS(copied, os.DirFS(b.cfg.StateDir)); err != nil {
			t.Fatal(err)
		}
		for name, perm := range map[string]os.FileMode{".": 0o700, trustFile: 0o600, sessionFile: 0o600, enrolmentFile: 0o600} {
			if err := os.Chmod(filepath.Join(copied, name), perm); err != nil {
				t.Fatal(err)
			}
		}
		b.pass(20 * time.Minute)
		b.end()
		b.cfg.StateDir = copied
		b.begin()
		b.reach(Held, time.Minute)
		b.reason(problem.ReasonForked)
	})
}

func TestKeepsValidSVIDThroughAnOutage(t *testing.T) {
	inBubble(t, clienttest.Config{SessionTTL: time.Hour}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		expires := b.agent.Status().Expires
		b.server.Before(func(p string) error {
			if p == renewCall {
				return problem.New(problem.ReasonNoIdentity, "planted")
			}
			return nil
		})
		for time.Until(expires) > time.Minute {
			synctest.Wait()
			if s := b.agent.Status(); s.State != string(Ready) && s.State != string(Renewing) {
				t.Fatalf("state %s with a session until %s", s.State, s.Expires)
			}
			b.pass(10 * time.Second)
		}
		b.reason(problem.ReasonNoIdentity)
		b.pass(2 * time.Minute)
		synctest.Wait()
		// The server says that the session expired, and then that it gives no other.
		if s := b.agent.Status().State; s != string(Refused) {
			t.Fatalf("after the session's end: %s, want refused", s)
		}
		b.server.Before(nil)
		b.reach(Ready, lastRefused+time.Second)
	})
}

// An environment that answers again, as its stream of news shows, is asked soon for what failed because it was away: the status never
// says for long that it is told of changes by a server that can't be reached.
func TestRenewsWhenTheServerIsBack(t *testing.T) {
	inBubble(t, clienttest.Config{SessionTTL: 24 * time.Hour}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		refuse := func(r problem.Reason) {
			b.server.Before(func(p string) error {
				if p == renewCall {
					return problem.New(r, "planted")
				}
				return nil
			})
		}
		reconnect := func() {
			b.agent.mu.Lock()
			s := b.agent.session
			b.agent.mu.Unlock()
			b.agent.lost(s, problem.New(problem.ReasonUnreachable, "the stream ended"))
			b.agent.told(s, &v1.WatchEvent{})
		}
		refuse(problem.ReasonUnreachable)
		b.pass(14 * time.Hour) // renewals fail since two hours, and are as rare as they get
		synctest.Wait()
		b.reason(problem.ReasonUnreachable)
		b.server.Before(nil)
		calls := b.server.Calls(renewCall)
		reconnect()
		b.pass(tendAgain)
		synctest.Wait()
		if s := b.agent.Status(); s.Problem != nil || b.server.Calls(renewCall) != calls+1 {
			t.Errorf("%d renewals, and %+v", b.server.Calls(renewCall)-calls, s)
		}
		// A no has nothing to do with the stream.
		refuse(problem.ReasonNoIdentity)
		b.pass(14 * time.Hour)
		synctest.Wait()
		calls = b.server.Calls(renewCall)
		reconnect()
		b.pass(tendAgain)
		synctest.Wait()
		if n := b.server.Calls(renewCall); n != calls {
			t.Errorf("a no was asked about again: %d calls more", n-calls)
		}
	})
}

// Who loses what is pinned, and nothing else, pins it again from the bootstrap string and goes on with the session; the token is spent.
func TestLostPin(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		b.end()
		pinned, kept := b.agent.files.path(trustFile), b.agent.files.path(sessionFile)
		if err := os.Remove(pinned); err != nil {
			t.Fatal(err)
		}
		b.begin()
		b.reach(Ready, time.Second)
		if n := b.server.Calls(attestCall); n != 1 {
			t.Errorf("%d attestations, want the first alone", n)
		}
		b.end()
		// A damaged session is not passed over: whoever mends it has lost nothing.
		if err := errors.Join(os.Remove(pinned), os.WriteFile(kept, []byte("{"), 0o600)); err != nil {
			t.Fatal(err)
		}
		b.begin()
		b.reach(Broken, time.Second)
		b.reason(problem.ReasonInvalid)
	})
}

// A session of another environment is of no use in this one.
func TestPinOfAnotherEnvironment(t *testing.T) {
	var foreign []byte
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		var err error
		if foreign, err = os.ReadFile(b.agent.files.path(sessionFile)); err != nil {
			t.Fatal(err)
		}
	})
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		if err := errors.Join(os.Mkdir(b.cfg.StateDir, 0o700), os.WriteFile(filepath.Join(b.cfg.StateDir, sessionFile), foreign, 0o600)); err != nil {
			t.Fatal(err)
		}
		b.begin()
		b.reach(Ready, time.Second)
		if n := b.server.Calls(attestCall); n != 1 {
			t.Errorf("%d attestations", n)
		}
	})
}

func TestHoldAndLift(t *testing.T) {
	inBubble(t, clienttest.Config{SessionTTL: 24 * time.Hour}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		b.server.Hold(nodePath, true)
		b.reach(Held, time.Second)
		b.reason(problem.ReasonHeld)
		b.pass(time.Hour)
		synctest.Wait()
		b.reach(Held, 0)
		if n := b.server.Calls(renewCall); n > 30 {
			t.Errorf("%d renewals in an hour of a hold", n)
		}
		b.server.Hold(nodePath, false)
		b.reach(Ready, lastUnreachable+time.Second)
	})
}

func TestCutoffNeedsANewToken(t *testing.T) {
	inBubble(t, clienttest.Config{SessionTTL: 24 * time.Hour}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		b.server.CutOff(nodePath)
		b.reach(Refused, time.Second)
		b.reason(problem.ReasonCutoff)
		if fix := b.agent.Status().Problem.Fix; !strings.Contains(fix, "new token") || !strings.Contains(fix, b.cfg.Needs[jointoken.NeedToken]) {
			t.Errorf("what helps is a new token: %q", fix)
		}
		if _, _, err := b.open(password); problem.As(err).WayOut() != b.agent.Status().Problem.Fix {
			t.Errorf("a process is told another way out: %v", problem.As(err).WayOut())
		}
		b.pass(time.Hour)
		if n := b.server.Calls(attestCall); n != 1 {
			t.Errorf("the spent token was tried %d times more", n-1)
		}
		b.token()
		b.reach(Ready, lookForChange+time.Second)
	})
}

func TestLifetimeEnds(t *testing.T) {
	inBubble(t, clienttest.Config{Lifetime: time.Hour}, func(b *bench) {
		b.token()
		b.begin()
		b.pass(2 * time.Hour)
		b.reach(Refused, time.Second)
		b.reason(problem.ReasonLifetimeOver)
		b.token()
		b.reach(Ready, lookForChange+time.Second)
	})
}

// The session could not be written: no further key is made before it was, or a restart would look like a fork.
func TestFullDisk(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		// A directory in the file's place fails the rename, also for root.
		kept := b.agent.files.path(sessionFile)
		if err := os.Remove(kept); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(kept, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		b.pass(time.Hour)
		synctest.Wait()
		if n := b.server.Counter(nodePath); n != 1 {
			t.Errorf("%d renewals without the session being kept, want 1", n)
		}
		if s := b.agent.Status(); s.Problem == nil || s.Problem.Reason != string(problem.ReasonStore) || s.State != string(Broken) {
			t.Errorf("%+v", s)
		}
		if err := os.RemoveAll(kept); err != nil {
			t.Fatal(err)
		}
		b.reach(Ready, lastRefused+time.Second)
		if b.server.Held(nodePath) {
			t.Error("the enrolment looked forked")
		}
	})
}

func TestServerThatIsNotAuthentic(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		other, err := clienttest.New(clienttest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		liar := clienttest.NewPipe()
		if err := other.Serve(liar, clienttest.Leaf{}); err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		b.cfg.Dialer = liar.Dial
		b.begin()
		b.reach(Unreachable, time.Second)
		b.reason(problem.ReasonNotAuthentic)
		b.pass(10 * time.Minute)
		if n := other.Calls(attestCall) + other.Calls(bailmentv1connect.AttestationServiceChallengeProcedure); n != 0 {
			t.Errorf("%d calls to a server that is not authentic", n)
		}
		if n := other.Calls(bailmentv1connect.EnvironmentServiceGetEnvironmentProcedure); n > 12 {
			t.Errorf("%d tries in ten minutes", n)
		}
	})
}

func TestStartRefusals(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		second, err := New(b.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := second.prepare(); !problem.Is(err, problem.ReasonExists) {
			t.Errorf("two agents on one directory: %v", err)
		}
		b.end()
		for name, c := range map[string]struct {
			change func(*Config)
			reason problem.Reason
		}{
			"unknown method":   {func(c *Config) { c.Method = "magic" }, problem.ReasonUnknownMethod},
			"missing need":     {func(c *Config) { c.Needs = nil }, problem.ReasonInvalid},
			"superfluous need": {func(c *Config) { c.Needs = map[string]string{jointoken.NeedToken: "/x", "y": "/y"} }, problem.ReasonInvalid},
			"relative state":   {func(c *Config) { c.StateDir = "state" }, problem.ReasonInvalid},
		} {
			cfg := b.cfg
			c.change(&cfg)
			if _, err := New(cfg); !problem.Is(err, c.reason) {
				t.Errorf("%s: %v", name, err)
			}
		}
		other := b.cfg
		other.Bootstrap = strings.Replace(other.Bootstrap, "/test.example#", "/best.example#", 1)
		a, err := New(other)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.keep(t.Context()); !problem.Is(err, problem.ReasonWrongEnvironment) {
			t.Errorf("another environment's state: %v", err)
		}
		if err := os.WriteFile(b.agent.files.path(sessionFile), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err = New(b.cfg); err != nil {
			t.Fatal(err)
		}
		if err := a.keep(t.Context()); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("a damaged session: %v", err)
		}
		if err := os.Chmod(b.cfg.StateDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := a.prepare(); !problem.Is(err, problem.ReasonPermissions) {
			t.Errorf("an open state directory: %v", err)
		}
	})
}
