package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/problem"
)

// listenWorkloads makes the Workload API's socket.
func (a *Agent) listenWorkloads() (*localapi.Listener, error) {
	return a.listenAt(a.cfg.WorkloadAPI, "workload_api")
}

// issuer is the Workload API's source: this agent, with the environment behind it.
type issuer struct{ a *Agent }

// Attest gets a session for a process, with a new key that leaves this process only to who has these claims.
func (i issuer) Attest(ctx context.Context, claims map[string]any) (*client.Session, error) {
	if _, err := i.a.ready(ctx); err != nil {
		return nil, err
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	return again(ctx, func() (*client.Session, error) { return i.a.node.AttestWorkload(ctx, claims, "", key) })
}

// Bundles are what is pinned: every SVID's chain leads up to the genesis CA, however often the CA was rotated.
func (i issuer) Bundles(context.Context) (*workloadapi.Bundles, error) {
	t := i.a.pinned()
	if t == nil {
		return nil, problem.New(problem.ReasonStarting, "the agent has not reached its environment yet")
	}
	return &workloadapi.Bundles{
		Own: t.Environment, All: []workloadapi.Bundle{{TrustDomain: t.Environment, X509: [][]byte{t.CA.Raw}}},
	}, nil
}

// IssueJWT has nobody to ask yet.
func (i issuer) IssueJWT(context.Context, *client.Session, []string) (workloadapi.Token, error) {
	return workloadapi.Token{}, problem.New(problem.ReasonUnsupported, "this environment issues no JWT-SVIDs")
}

// process is who is at the other end of the Workload API's socket.
type process struct {
	a     *Agent
	peer  localapi.Peer
	pidfd int // -1: it has no ID here
	exe   *unix.Stat_t
}

// openProcess begins to watch the process that made a connection. Between its connecting and this, its ID could have become
// another process's.
func (a *Agent) openProcess(c *localapi.Conn) (workloadapi.Caller, error) {
	p := &process{a: a, peer: c.Peer, pidfd: -1}
	if p.peer.PID > 0 {
		fd, err := unix.PidfdOpen(int(p.peer.PID), 0)
		if err != nil {
			return nil, fmt.Errorf("the process that connected: %w", err)
		}
		p.pidfd = fd
	}
	return p, nil
}

// Claims are those of a run, of the file that the process executes, without its ID.
func (p *process) Claims(ctx context.Context) (map[string]any, error) {
	e := executable{source: sourceClaimed}
	if p.peer.PID > 0 {
		f, err := os.Open(p.exePath())
		switch {
		case errors.Is(err, os.ErrPermission): // an agent that is not root sees the files of its own user's processes only
		case err != nil:
			return nil, gone()
		default:
			defer f.Close()
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil {
				return nil, gone()
			}
			if e, err = p.a.measurer.measure(ctx, p.peer.UID, f, localapi.Exe{}); err != nil {
				return nil, err
			}
			p.exe = &st
		}
	}
	out := claims(p.peer, e)
	delete(out["process"].(map[string]any), "pid")
	return out, p.Same()
}

func (p *process) exePath() string { return fmt.Sprintf("/proc/%d/exe", p.peer.PID) }

// Same refuses when the process has ended, or executes another file.
func (p *process) Same() error {
	if p.pidfd < 0 {
		return nil
	}
	if p.exe != nil {
		var st unix.Stat_t
		if unix.Stat(p.exePath(), &st) != nil || st.Dev != p.exe.Dev || st.Ino != p.exe.Ino {
			return gone()
		}
	}
	// After the file: while the process lives, its ID is nobody else's. A zombie lives on as one, but has no executable.
	if err := unix.PidfdSendSignal(p.pidfd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
		return gone()
	}
	return nil
}

// Close stops watching.
func (p *process) Close() error {
	if p.pidfd < 0 {
		return nil
	}
	return unix.Close(p.pidfd)
}

func gone() error {
	return problem.New(problem.ReasonNoIdentity, "the process that connected is gone, or executes another file now").
		WithFix("connect again")
}
