package agent

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/problem"
)

// unsteady is a process that becomes something else.
type unsteady struct {
	mu   sync.Mutex
	over problem.Reason // empty: it is what it was
	unit string
}

func (u *unsteady) change() { u.becomes(problem.ReasonProcessChanged) }

func (u *unsteady) becomes(over problem.Reason) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = over
}

func (u *unsteady) ClaimsFor(context.Context, workload.Executable) (map[string]any, error) {
	if err := u.Same(); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return map[string]any{"systemd": map[string]any{"unit": u.unit}}, nil
}

func (u *unsteady) Same() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over != "" {
		return problem.New(u.over, "the process is not what it was")
	}
	return nil
}

// A process that becomes another one while the server is asked gets nothing more, and what was got for it is given back.
func TestProcessChangesWhileItIsServed(t *testing.T) {
	for name, c := range map[string]struct {
		at     string
		leases int
	}{
		"before it has a session": {bailmentv1connect.AttestationServiceAttestWorkloadProcedure, 0},
		"after a secret was got":  {bailmentv1connect.SecretServiceGetProcedure, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, clienttest.Config{}, func(b *bench) {
				b.server.Put("db/password", []byte("v"))
				b.server.Put("other", []byte("w"))
				b.token()
				b.begin()
				b.reach(Ready, time.Second)
				u := &unsteady{}
				b.server.Before(func(p string) error {
					if p == c.at {
						u.change()
					}
					return nil
				})
				x, err := b.agent.begin(someone)
				if err != nil {
					t.Fatal(err)
				}
				x.asker = u
				_, err = x.open(b.t.Context(), localapi.OpenRequest{Secrets: []localapi.Wanted{password, {Name: "other", Purpose: "runtime"}}}, executable{"/bin/app", "", sourceClaimed})
				x.finish()
				if !problem.Is(err, problem.ReasonProcessChanged) {
					t.Errorf("%v", err)
				}
				if len(b.server.Leases()) != c.leases || live(b.server) != 0 {
					t.Errorf("%+v", b.server.Leases())
				}
			})
		})
	}
}

// A renewal is about what the process is then.
func TestRenewalsFindOutAnew(t *testing.T) {
	inBubble(t, clienttest.Config{}, func(b *bench) {
		b.server.Put("db/password", []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		b.pass(time.Hour)
		if n := len(b.server.Claims()); n < 3 {
			t.Fatalf("%d attestations of a workload in an hour", n)
		}
		u := &unsteady{unit: "other.service"}
		b.asks(x, u)
		b.pass(time.Hour)
		all := b.server.Claims()
		if unit := all[len(all)-1]["systemd"].(map[string]any)["unit"]; unit != "other.service" {
			t.Errorf("%v", unit)
		}
		u.change()
		synctest.Wait()
		b.pass(time.Until(x.session.RenewAfter) + time.Second)
		synctest.Wait()
		if n := live(b.server); n != 0 {
			t.Errorf("a process that changed has %d leases", n)
		}
		b.pass(3 * time.Hour)
		if len(b.server.Claims()) != len(all) {
			t.Error("a process that changed is vouched for")
		}
	})
}

// asks has another asker be the run's from now on.
func (b *bench) asks(o *opened, u asker) {
	o.cancel()
	<-o.done
	o.asker = u
	ctx, cancel := context.WithCancel(b.t.Context())
	o.cancel, o.done = cancel, make(chan struct{})
	go func() {
		defer close(o.done)
		o.tend(ctx)
	}()
}

// A process that is not the one any more, or gone, while something else holds its connection: when its renewal finds that out, its leases
// are over at once and given back, but for what another run holds, too. A renewal that failed for other reasons takes nothing away.
func TestProcessChangesWhileItRuns(t *testing.T) {
	other := localapi.Wanted{Name: "other", Purpose: "runtime"}
	for _, over := range []problem.Reason{problem.ReasonProcessChanged, problem.ReasonProcessGone, problem.ReasonUnreachable, problem.ReasonPodUnknown} {
		t.Run(string(over), func(t *testing.T) {
			lost := over == problem.ReasonProcessChanged || over == problem.ReasonProcessGone
			inBubble(t, clienttest.Config{LeaseTTL: 24 * time.Hour}, func(b *bench) {
				b.server.Put(password.Name, []byte("v"))
				b.server.Put(other.Name, []byte("w"))
				b.token()
				b.begin()
				b.reach(Ready, time.Second)
				x, _, err := b.open(password, other)
				if err != nil {
					t.Fatal(err)
				}
				beside, _, err := b.open(other)
				if err != nil {
					t.Fatal(err)
				}
				u := &unsteady{}
				b.asks(x, u)
				u.becomes(over)
				b.pass(time.Until(x.session.RenewAfter) + time.Second)
				synctest.Wait()
				if !lost {
					if n := live(b.server); n != 2 || len(x.events) != 0 {
						t.Errorf("%d leases, %d events", n, len(x.events))
					}
					x.close()
					beside.close()
					return
				}
				for _, want := range []string{password.Name, other.Name} {
					if len(x.events) == 0 {
						t.Fatalf("the process was not told of %s", want)
					}
					if e := <-x.events; e.Event != localapi.EventLeaseLost || e.Secret != want || e.Why.Reason != string(over) {
						t.Errorf("%+v", e)
					}
				}
				if n := live(b.server); n != 1 {
					t.Errorf("%d leases live, want the one of the other run: %+v", n, b.server.Leases())
				}
				b.pass(time.Hour)
				synctest.Wait()
				if n := live(b.server); n != 1 || len(x.events) != 0 || len(beside.events) != 0 {
					t.Errorf("an hour later: %d leases, %d and %d events", n, len(x.events), len(beside.events))
				}
				x.close()
				beside.close()
				if n := live(b.server); n != 0 || b.agent.runs.count() != 0 || len(b.agent.runs.slots) != 0 {
					t.Errorf("%d leases live, the runs left something behind: %+v", n, &b.agent.runs)
				}
			})
		})
	}
}

// A server that is away while an SVID is to be renewed takes nothing from a run.
func TestOutageWhileItRuns(t *testing.T) {
	const attest, renew = bailmentv1connect.AttestationServiceAttestWorkloadProcedure, bailmentv1connect.SecretServiceRenewLeaseProcedure
	inBubble(t, clienttest.Config{LeaseTTL: 24 * time.Hour}, func(b *bench) {
		b.server.Put(password.Name, []byte("v"))
		b.token()
		b.begin()
		b.reach(Ready, time.Second)
		x, _, err := b.open(password)
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		b.server.Before(func(p string) error {
			if p == attest || p == renew {
				return problem.New(problem.ReasonUnreachable, "planted")
			}
			return nil
		})
		first := x.session
		b.pass(3 * time.Hour)
		synctest.Wait()
		if x.session != first || live(b.server) != 1 || len(x.events) != 0 {
			t.Errorf("%d leases, %d events", live(b.server), len(x.events))
		}
		b.server.Before(nil)
		b.pass(2 * tendMost)
		synctest.Wait()
		if x.session == first || live(b.server) != 1 || len(x.events) != 0 {
			t.Errorf("the server is back: %d leases, %d events", live(b.server), len(x.events))
		}
	})
}
