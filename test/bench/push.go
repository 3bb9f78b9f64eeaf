package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
)

const pushes = 10

// startAgent runs a machine's agent as a process of its own.
func (b *bench) startAgent(ctx context.Context, name string) (*site.Agent, error) {
	a, err := b.newAgent(ctx, name)
	if err != nil {
		return nil, err
	}
	return a, a.Start()
}

// newAgent is one that is not started, with a join token.
func (b *bench) newAgent(ctx context.Context, name string) (*site.Agent, error) {
	tok, err := b.s.Token(ctx, b.admin, name)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bailment-agent")
	if err != nil {
		return nil, err
	}
	return b.s.NewAgent(dir, tok)
}

func stopAgent(a *site.Agent) {
	a.Kill()
	_ = os.RemoveAll(a.Home)
}

// svids is a process with an open stream of X.509-SVIDs at an agent.
type svids struct {
	came chan struct{} // an SVID
	lost chan error    // the stream ended
	stop context.CancelFunc
}

func (s *svids) OnX509ContextUpdate(*spiffe.X509Context) { s.came <- struct{}{} }

func (s *svids) OnX509ContextWatchError(err error) {
	select {
	case s.lost <- err:
	default:
	}
}

// open opens the stream and waits for the first SVID.
func open(ctx context.Context, a *site.Agent) (*svids, error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &svids{make(chan struct{}, 64), make(chan error, 1), cancel}
	go func() { _ = spiffe.WatchX509Context(ctx, s, spiffe.WithAddr("unix://"+a.SPIFFE)) }()
	select {
	case <-s.came:
		return s, nil
	case <-time.After(20 * time.Second):
		cancel()
		return nil, fmt.Errorf("no SVID came: %s", a.Logs)
	}
}

func spread(what string, took []time.Duration) {
	slices.Sort(took)
	fmt.Printf("%s (%d times): median %s, longest %s\n", what, len(took), short(took[len(took)/2]), short(took[len(took)-1]))
}

// agents measures what an agent takes: time until a process has its first SVID, and memory when nothing happens any more.
func (b *bench) agents(ctx context.Context) error {
	var took []time.Duration
	for i := range pushes {
		a, err := b.newAgent(ctx, fmt.Sprintf("first-%d", i))
		if err != nil {
			return err
		}
		began := time.Now()
		if err := a.Start(); err != nil {
			return err
		}
		s, err := waitFor(ctx, a)
		if err == nil {
			took = append(took, time.Since(began))
			s.stop()
		}
		if i == pushes-1 && err == nil {
			<-time.After(5 * time.Second)
			m := memoryOf(a.Cmd.Process.Pid)
			fmt.Printf("agent, idle after its first SVID: resident %.1f MiB, of which %.1f MiB are its own and %.1f MiB code and constants; at most %.1f MiB\n", m["VmRSS"], m["RssAnon"], m["RssFile"], m["VmHWM"])
		}
		stopAgent(a)
		if err != nil {
			return err
		}
	}
	spread("agent started (join token) → first X.509-SVID at a process", took)
	return nil
}

// waitFor opens a stream as soon as there is a socket. The common client would wait a second after its first failure.
func waitFor(ctx context.Context, a *site.Agent) (*svids, error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-time.After(time.Millisecond) {
		if st, err := a.Status(ctx); err == nil && st.State == "ready" {
			return open(ctx, a)
		}
	}
	return nil, fmt.Errorf("the agent does not get ready: %s", a.Logs)
}

// memoryOf is a process's memory in MiB, by the names of proc_pid_status(5).
func memoryOf(pid int) map[string]float64 {
	out := map[string]float64{}
	f, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		return out
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		var kib float64
		if n, _ := fmt.Sscanf(strings.TrimSpace(value), "%f kB", &kib); n == 1 {
			out[name] = kib / 1024
		}
	}
	return out
}

// pushed measures what reaches a connected agent, and the processes at it, by itself.
func (b *bench) pushed(ctx context.Context) error {
	a, err := b.startAgent(ctx, "pushed")
	if err != nil {
		return err
	}
	defer stopAgent(a)
	if err := a.Connected(ctx); err != nil {
		return err
	}
	for _, m := range []struct {
		what string
		run  func(context.Context, *site.Agent, int) (time.Duration, error)
	}{
		{"bundle changed → new X.509-SVID at a process with an open stream", b.renewedSVID},
		{"workload revoked → its open stream refused", b.revokedStream},
		{"machine quarantined → its agent says so", b.quarantinedAgent},
	} {
		var took []time.Duration
		for i := range pushes {
			d, err := m.run(ctx, a, i)
			if err != nil {
				return fmt.Errorf("%s: %w", m.what, err)
			}
			took = append(took, d)
		}
		spread(m.what, took)
	}
	return nil
}

func (b *bench) renewedSVID(ctx context.Context, a *site.Agent, i int) (time.Duration, error) {
	s, err := open(ctx, a)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	approval, err := b.s.Propose(ctx, b.admin, func(files policy.Files) {
		files["identities/all.yaml"] = fmt.Appendf(slices.Clone(files["identities/all.yaml"]), "# %d\n", i)
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := b.admin.Changes.Approve(ctx, approval); err != nil {
		return 0, err
	}
	select {
	case <-s.came:
		return time.Since(began), nil
	case err := <-s.lost:
		return 0, err
	case <-time.After(20 * time.Second):
		return 0, fmt.Errorf("nothing came: %s", a.Logs)
	}
}

func (b *bench) revokedStream(ctx context.Context, a *site.Agent, _ int) (time.Duration, error) {
	s, err := open(ctx, a)
	if err != nil {
		return 0, err
	}
	defer s.stop()
	const scope = "identity:/workload/api"
	began := time.Now()
	out, err := b.admin.Revocations.Revoke(ctx, &bailmentv1.RevokeRequest{Scope: scope, Reason: "bench", Hold: bailmentv1.RevokeRequest_HOLD_YES})
	if err != nil {
		return 0, err
	}
	select {
	case <-s.lost:
	case <-time.After(20 * time.Second):
		return 0, fmt.Errorf("the stream goes on: %s", a.Logs)
	}
	return time.Since(began), b.s.Lift(ctx, b.admin, scope, out.Entry.Index)
}

func (b *bench) quarantinedAgent(ctx context.Context, a *site.Agent, _ int) (time.Duration, error) {
	const scope = "node:/node/join-token/pushed"
	began := time.Now()
	out, err := b.admin.Revocations.Revoke(ctx, &bailmentv1.RevokeRequest{Scope: scope, Reason: "bench", HoldOnly: true})
	if err != nil {
		return 0, err
	}
	if _, err := a.Until(ctx, func(s *localapi.Status) bool { return s.State == "held" }); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := b.s.Lift(ctx, b.admin, scope, out.Entry.Index); err != nil {
		return 0, err
	}
	return took, a.Connected(ctx)
}
