package agent

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/problem"
)

// unsteady is a process that becomes something else.
type unsteady struct {
	mu      sync.Mutex
	changed bool
	unit    string
}

func (u *unsteady) change() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.changed = true
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
	if u.changed {
		return problem.New(problem.ReasonProcessChanged, "the process changed")
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
		x.cancel()
		<-x.done
		x.asker = u
		ctx, cancel := context.WithCancel(b.t.Context())
		x.cancel, x.done = cancel, make(chan struct{})
		go func() {
			defer close(x.done)
			x.tend(ctx)
		}()
		b.pass(time.Hour)
		all := b.server.Claims()
		if unit := all[len(all)-1]["systemd"].(map[string]any)["unit"]; unit != "other.service" {
			t.Errorf("%v", unit)
		}
		u.change()
		b.pass(3 * time.Hour)
		if len(b.server.Claims()) != len(all) {
			t.Error("a process that changed is vouched for")
		}
	})
}
