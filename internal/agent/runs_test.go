package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/problem"
)

var someone = localapi.Peer{UID: 1000, GID: 1000, PID: 42, Groups: []uint32{1000, 27}}

// steady is a process that stays what it is, as far as anybody can tell.
type steady struct{}

func (steady) ClaimsFor(context.Context, workload.Executable) (map[string]any, error) {
	return map[string]any{"unix": map[string]any{"uid": int64(someone.UID)}}, nil
}
func (steady) Same() error { return nil }

// opened is a run whose handler is played by the test.
type opened struct {
	*run
	wanted []localapi.Wanted
	cancel context.CancelFunc
	done   chan struct{}
}

func (b *bench) open(wanted ...localapi.Wanted) (*opened, *localapi.Opened, error) {
	b.t.Helper()
	x, err := b.agent.begin(someone)
	if err != nil {
		b.t.Fatal(err)
	}
	x.asker = steady{}
	o, err := x.open(b.t.Context(), localapi.OpenRequest{Secrets: wanted}, executable{"/bin/app", "", sourceClaimed})
	if err != nil {
		x.finish()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(b.t.Context())
	r := &opened{run: x, wanted: wanted, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		x.tend(ctx)
	}()
	return r, o, nil
}

func (o *opened) close() {
	o.cancel()
	<-o.done
	o.finish()
}

func live(s *clienttest.Server) (n int) {
	for _, l := range s.Leases() {
		if !l.Returned && time.Now().Before(l.Expires) {
			n++
		}
	}
	return n
}

var password = localapi.Wanted{Name: "db/password", Purpose: "runtime"}

func TestLeasesAndSVIDsLastAsLongAsTheRun(t *testing.T) {
	inBubble(t, clienttest.Config{LeaseTTL: 20 * time.Minute}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		x, o, err := b.open(password)
		if err != nil || o.Identity != "spiffe://test.example/workload/app" || string(o.Secrets[0].Value) != "v" {
			t.Fatalf("%+v, %v", o, err)
		}
		b.pass(3 * time.Hour)
		synctest.Wait()
		if n := live(b.server); n != 1 || len(b.server.Leases()) != 1 {
			t.Errorf("%d of %d leases live after 3 h", n, len(b.server.Leases()))
		}
		x.close()
		if n := live(b.server); n != 0 {
			t.Errorf("%d leases live after the run", n)
		}
		if n := b.agent.runs.count(); n != 0 || len(b.agent.runs.slots) != 0 || len(b.agent.runs.users) != 0 {
			t.Errorf("the run left something behind: %+v", &b.agent.runs)
		}
	})
}

// The server has one lease for an identity, version and purpose: it is given back when the last of its runs ends.
func TestSharedLease(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		first, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		second, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		first.close()
		if live(b.server) != 1 {
			t.Error("the first run's end took the second one's lease")
		}
		second.close()
		if live(b.server) != 0 || len(b.server.Leases()) != 1 {
			t.Errorf("%+v", b.server.Leases())
		}
	})
}

// All or nothing: what was given before a refusal is given back.
func TestPartialGrant(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		_, _, err := b.open(password, localapi.Wanted{Name: "other", Purpose: "runtime"})
		if !problem.Is(err, problem.ReasonNoGrant) {
			t.Fatalf("%v", err)
		}
		if len(b.server.Leases()) != 1 || live(b.server) != 0 {
			t.Errorf("%+v", b.server.Leases())
		}
	})
}

func TestLostGetReply(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		lost := 2
		b.server.Lose(func(p string) bool {
			if p == bailmentv1connect.SecretServiceGetProcedure || p == bailmentv1connect.SecretServiceReturnLeaseProcedure {
				lost--
				return lost >= 0
			}
			return false
		})
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		lost = 1
		x.close()
		if len(b.server.Leases()) != 1 || live(b.server) != 0 {
			t.Errorf("%+v", b.server.Leases())
		}
	})
}

// What is revoked while a process has it is told to the process at once.
func TestRevokedWhileRunning(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		b.server.Hold("/workload/app", true)
		synctest.Wait()
		select {
		case e := <-x.events:
			if e.Event != localapi.EventLeaseLost || e.Secret != "db/password" || e.Why.Reason != string(problem.ReasonHeld) {
				t.Errorf("%+v", e)
			}
		default:
			t.Error("the process was not told")
		}
		if s := b.agent.Status().State; s != string(Ready) {
			t.Errorf("a workload's hold made the node %s", s)
		}
		x.close()
	})
}

func TestLeaseReachesItsMaximum(t *testing.T) {
	inBubble(t, clienttest.Config{LeaseTTL: 10 * time.Minute, LeaseMax: time.Hour}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		b.pass(59 * time.Minute)
		if len(x.events) != 0 {
			t.Fatal("lost before its end")
		}
		b.pass(2 * time.Minute)
		synctest.Wait()
		if e := <-x.events; e.Why.Reason != string(problem.ReasonExpired) {
			t.Errorf("%+v", e)
		}
		if n := b.server.Calls(bailmentv1connect.SecretServiceRenewLeaseProcedure); n > 14 {
			t.Errorf("%d renewals in an hour of leases of 10 min", n)
		}
		x.close()
	})
}

// Runs that wait for the agent's first session get it; those that can't be helped are told why.
func TestRunsBeforeReady(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.begin() // no token
		b.reach(Broken, time.Second)
		if _, _, err := b.open(password); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%v", err)
		}
		time.AfterFunc(time.Second, b.token)
		b.pass(2500 * time.Millisecond)
		b.reach(Ready, 5*time.Second)
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		x.close()
		b.server.Hold(nodePath, true)
		b.reach(Held, time.Second)
		if _, _, err := b.open(password); !problem.Is(err, problem.ReasonHeld) {
			t.Errorf("%v", err)
		}
	})
}

func TestRunLimits(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.cfg.Limits = Limits{Runs: 3, RunsPerUser: 2}
		b.begin()
		var all []*run
		for range 2 {
			x, err := b.agent.begin(someone)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, x)
		}
		if _, err := b.agent.begin(someone); !problem.Is(err, problem.ReasonLimit) {
			t.Errorf("a third run of one user: %v", err)
		}
		x, err := b.agent.begin(localapi.Peer{UID: 7})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
		if _, err := b.agent.begin(localapi.Peer{UID: 8}); !problem.Is(err, problem.ReasonLimit) {
			t.Errorf("a fourth run: %v", err)
		}
		if _, err := b.agent.find(x.id, someone); !problem.Is(err, problem.ReasonNotFound) {
			t.Errorf("another user's run: %v", err)
		}
		for _, x := range all {
			x.finish()
		}
		if b.agent.runs.count() != 0 {
			t.Error("runs are left")
		}
	})
}

// Who asks may be gone before he is answered. What the server gave him is given back, also if its answer never came.
func TestAskerIsGoneBeforeTheAnswer(t *testing.T) {
	for name, lost := range map[string]bool{"the answer comes": false, "the answer is lost": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, clienttest.Config{}, func(b *bench) {
				b.server.Put("db/password", []byte("v"))
				b.token()
				b.begin()
				b.reach(Ready, time.Second)
				x, err := b.agent.begin(someone)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(b.t.Context())
				defer cancel()
				b.server.Lose(func(p string) bool {
					if p != bailmentv1connect.SecretServiceGetProcedure {
						return false
					}
					cancel()
					return lost
				})
				x.asker = steady{}
				_, err = x.open(ctx, localapi.OpenRequest{Secrets: []localapi.Wanted{password}}, executable{"/bin/app", "", sourceClaimed})
				if err == nil {
					t.Fatal("given to nobody")
				}
				x.finish()
				if len(b.server.Leases()) != 1 || live(b.server) != 0 {
					t.Errorf("%+v", b.server.Leases())
				}
				if n := b.agent.runs.count(); n != 0 || len(b.agent.runs.slots) != 0 {
					t.Errorf("the run left something behind: %+v", &b.agent.runs)
				}
			})
		})
	}
}

// What one run is looking for is not taken from another.
func TestLookingForALeaseSparesOthers(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.server.Put("other", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		other := localapi.Wanted{Name: "other", Purpose: "runtime"}
		x, _, err := b.open(password, other)
		if err != nil {
			t.Fatal(err)
		}
		b.server.Lose(func(p string) bool { return p == bailmentv1connect.SecretServiceGetProcedure })
		if _, _, err := b.open(password); err == nil {
			t.Fatal("given without an answer")
		}
		if live(b.server) != 2 {
			t.Errorf("%+v", b.server.Leases())
		}
		x.close()
		if live(b.server) != 0 {
			t.Errorf("%+v", b.server.Leases())
		}
	})
}

// die ends the agent without any of its last acts, and begins another.
func (o *opened) die(b *bench) {
	o.cancel()
	<-o.done
	o.client.Close()
	b.end()
	b.begin()
	b.reach(Ready, time.Second)
}

func TestResume(t *testing.T) {
	const get, renew = bailmentv1connect.SecretServiceGetProcedure, bailmentv1connect.SecretServiceRenewLeaseProcedure
	for name, c := range map[string]struct {
		meanwhile func(b *bench)
		remade    bool           // another lease, for the same version
		lost      problem.Reason // the process is told that there is none
		gets      int
	}{
		"nothing happened":  {meanwhile: func(*bench) {}},
		"it was given back": {meanwhile: func(b *bench) { b.shortRun() }, remade: true, gets: 2},
		"it ran out":        {meanwhile: func(b *bench) { b.pass(2 * time.Hour) }, remade: true, gets: 1},
		"there is another version": {meanwhile: func(b *bench) {
			b.shortRun()
			b.server.Put("db/password", []byte("w"))
		}, lost: problem.ReasonLifecycle, gets: 2},
		"it was revoked": {meanwhile: func(b *bench) {
			b.server.Before(func(p string) error {
				if p == renew {
					return problem.New(problem.ReasonCutoff, "revoked")
				}
				return nil
			})
		}, lost: problem.ReasonCutoff},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, clienttest.Config{}, func(b *bench) {
				b.server.Put("db/password", []byte("v"))
				b.token()
				b.begin()
				b.reach(Ready, time.Second)
				first, o, err := b.open(password)
				if err != nil {
					t.Fatal(err)
				}
				first.die(b)
				before := b.server.Calls(get)
				c.meanwhile(b)
				b.reach(Ready, time.Minute)
				again := password
				again.Lease, again.Version = o.Secrets[0].Lease, o.Secrets[0].Version
				x, o, err := b.open(again)
				if err != nil {
					t.Fatal(err)
				}
				g := o.Secrets[0]
				if len(g.Value) != 0 || b.server.Calls(get)-before != c.gets {
					t.Errorf("value %q, %d reads", g.Value, b.server.Calls(get)-before)
				}
				switch {
				case c.lost != "":
					if e := <-x.events; e.Event != localapi.EventLeaseLost || e.Why.Reason != string(c.lost) || g.Lease != 0 {
						t.Errorf("%+v, %+v", e, g)
					}
				case len(x.events) != 0 || (g.Lease != again.Lease) != c.remade || live(b.server) != 1:
					t.Errorf("%+v, of %+v", g, b.server.Leases())
				}
				x.close()
				if n := live(b.server); n != 0 && c.lost != problem.ReasonCutoff {
					t.Errorf("%d leases live after the run", n)
				}
				if len(b.agent.runs.slots) != 0 {
					t.Errorf("%+v", &b.agent.runs)
				}
			})
		})
	}
}

// shortRun is another process of the same identity, which ends.
func (b *bench) shortRun() {
	b.t.Helper()
	x, _, err := b.open(password)
	if err != nil {
		b.t.Fatal(err)
	}
	x.close()
}
