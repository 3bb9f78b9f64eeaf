package agent

import (
	"context"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
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
type process struct{ *workload.Process }

// openProcess begins to watch the process that made a connection.
func (a *Agent) openProcess(c *localapi.Conn) (workloadapi.Caller, error) {
	p, err := a.workloads.Open(c.UnixConn)
	if err != nil {
		return nil, err
	}
	return process{p}, nil
}

// Claims are those of a run, without the process's ID: processes that are told apart by that alone share an SVID.
func (p process) Claims(ctx context.Context) (map[string]any, error) {
	out, err := p.Process.Claims(ctx)
	if err != nil {
		return nil, err
	}
	if of, ok := out["process"].(map[string]any); ok {
		delete(of, "pid")
	}
	return out, nil
}
