package agent

import (
	"context"
	"maps"
	"slices"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
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
type process struct{ *workload.Process }

// openProcess begins to watch the process that made a connection.
func (a *Agent) openProcess(c *localapi.Conn) (workloadapi.Caller, error) {
	p, err := a.workloads.Open(c.UnixConn)
	if err != nil {
		return nil, err
	}
	return process{p}, nil
}

// Claims are those of a run, without IDs of processes, its own and its ancestors': processes that are told apart by those alone
// share an SVID.
func (p process) Claims(ctx context.Context) (map[string]any, error) {
	out, err := p.Process.Claims(ctx)
	if err != nil {
		return nil, err
	}
	of, _ := out["process"].(map[string]any)
	delete(of, "pid")
	parents, _ := of["parents"].([]any)
	for _, p := range parents {
		if parent, ok := p.(map[string]any); ok {
			delete(parent, "pid")
		}
	}
	return out, nil
}
