package rpc

import (
	"context"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
)

// spiffes issues tokens, and tells whom to trust.
type spiffes struct{ *API }

func (s spiffes) IssueJWT(ctx context.Context, r *pb.IssueJWTRequest) (*pb.IssueJWTResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if r.Ttl != nil && r.Ttl.CheckValid() != nil {
		return nil, problem.New(problem.ReasonInvalid, "the lifetime is not a duration")
	}
	out, err := env.IssueJWT(ctx, c.conn.caller, control.JWTRequest{Audience: r.Audience, TTL: r.Ttl.AsDuration()})
	if err != nil {
		return nil, err
	}
	c.released = time.Now().Add(-out.Age)
	return &pb.IssueJWTResponse{
		Token: out.Token, Identity: out.Identity.String(), Issued: stamp(out.Issued), Expires: stamp(out.Expires), Entry: entry(env, out.Index),
	}, nil
}

func (s spiffes) GetTrustBundles(ctx context.Context, _ *pb.GetTrustBundlesRequest) (*pb.GetTrustBundlesResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	all, err := env.TrustBundles(ctx, c.conn.caller)
	if err != nil {
		return nil, err
	}
	out := &pb.GetTrustBundlesResponse{Control: all.Control, Own: all.Own}
	for _, f := range all.Federated {
		x := &pb.ForeignBundle{Federation: f.Name, TrustDomain: f.TrustDomain, Bundle: f.Document, Fetched: stamp(f.Fetched)}
		if f.Index != 0 {
			x.Entry = entry(env, f.Index)
		}
		out.Federated = append(out.Federated, x)
	}
	for _, w := range all.Workloads {
		out.Workloads = append(out.Workloads, &pb.WorkloadFederation{Workload: w.Path, Federations: w.FederatesWith})
	}
	return out, nil
}

func (s spiffes) WithdrawKey(ctx context.Context, r *pb.WithdrawKeyRequest) (*pb.WithdrawKeyResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	proof, err := env.WithdrawKey(ctx, c.conn.caller, control.WithdrawRequest{Key: r.Key, Compromised: r.Compromised, Reason: r.Reason})
	if err != nil {
		return nil, err
	}
	return &pb.WithdrawKeyResponse{Entry: proved(env, proof)}, nil
}
