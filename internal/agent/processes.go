package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
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

// Bundles are what the environment tells this machine and the workloads that it may speak for. The stream of news says when to ask
// again.
func (i issuer) Bundles(ctx context.Context) (*workloadapi.Bundles, error) {
	if _, err := i.a.ready(ctx); err != nil {
		return nil, err
	}
	told, err := i.a.node.TrustBundles(ctx)
	if err != nil {
		return nil, err
	}
	env := i.a.pinned().Environment
	own, err := bundleOf(env, told.Own)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the environment's trust bundle")
	}
	out := &workloadapi.Bundles{Own: env, All: []workloadapi.Bundle{own}, Federates: make(map[string][]string)}
	for _, name := range slices.Sorted(maps.Keys(told.Federated)) {
		b, err := bundleOf(name, told.Federated[name])
		if err != nil || name == env {
			// Of no use, but no reason to lose the others.
			i.a.log.Warn("a trust bundle can't be used", "trust_domain", name, "problem", err)
			continue
		}
		out.All = append(out.All, b)
	}
	for path, names := range told.Workloads {
		out.Federates[identity.Scheme+env+path] = names
	}
	return out, nil
}

// bundleOf reads a document in the SPIFFE bundle format.
func bundleOf(trustDomain string, document []byte) (workloadapi.Bundle, error) {
	b, err := spiffe.Parse(trustDomain, document)
	if err != nil {
		return workloadapi.Bundle{}, err
	}
	out := workloadapi.Bundle{TrustDomain: trustDomain}
	for _, c := range b.Authorities {
		out.X509 = append(out.X509, c.Raw)
	}
	out.JWKS, err = spiffe.KeySet(b.Tokens)
	return out, err
}

// IssueJWT asks by the workload's own session.
func (i issuer) IssueJWT(ctx context.Context, s *client.Session, audience []string) (workloadapi.Token, error) {
	c, err := client.Dial(i.a.pinned(), client.Options{Credentials: s.Credentials(), Dialer: i.a.cfg.Dialer, MaxConns: 1, Attempts: 1})
	if err != nil {
		return workloadapi.Token{}, err
	}
	defer c.Close()
	t, err := again(ctx, func() (*client.JWT, error) { return c.IssueJWT(ctx, audience, 0) })
	if err != nil {
		return workloadapi.Token{}, err
	}
	if t.Identity != s.Identity {
		return workloadapi.Token{}, problem.New(problem.ReasonNotAuthentic, "the JWT-SVID is of another identity")
	}
	return workloadapi.Token{Text: t.Token, Issued: t.Issued, Expires: t.Expires}, nil
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
		case err != nil:
			// An agent that is not root sees the files of its own user's processes only.
			if err := p.Same(); err != nil {
				return nil, err
			}
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
