package rpc

import (
	"context"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// secrets writes, releases and lists secrets and leases.
type secrets struct{ *API }

func (s secrets) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	c := callOf(ctx)
	value := seal.NewSecret(r.Value)
	defer value.Wipe()
	r.Value = nil
	return written(c)(c.conn.site.Env.Put(ctx, c.conn.caller, control.PutRequest{Secret: r.Secret, Value: value, Stage: r.Stage, Key: r.IdempotencyKey}))
}

func (s secrets) Generate(ctx context.Context, r *pb.GenerateRequest) (*pb.PutResponse, error) {
	c := callOf(ctx)
	return written(c)(c.conn.site.Env.Generate(ctx, c.conn.caller, control.GenerateRequest{
		Secret: r.Secret, Recipe: r.Recipe, Length: int(r.Length), Stage: r.Stage, Key: r.IdempotencyKey,
	}))
}

func written(c *call) func(*control.Written, error) (*pb.PutResponse, error) {
	return func(w *control.Written, err error) (*pb.PutResponse, error) {
		if err != nil {
			return nil, err
		}
		return &pb.PutResponse{Secret: w.Secret, Version: w.Version, State: string(w.State), Entry: entry(c.conn.site.Env, w.Index)}, nil
	}
}

// Get is the hot path. The value is not copied here: the message refers to control's buffer, which is
// wiped when the answer was sent.
func (s secrets) Get(ctx context.Context, r *pb.GetRequest) (*pb.GetResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	out, err := env.Get(ctx, c.conn.caller, control.GetRequest{Secret: r.Secret, Purpose: r.Purpose, Version: r.Version, Key: r.IdempotencyKey})
	if err != nil {
		return nil, err
	}
	c.released, c.wipe = time.Now().Add(-out.Age), out.Value.Wipe
	res := &pb.GetResponse{
		Value: out.Value.Expose(), Secret: out.Secret, Version: out.Version, Lease: out.Lease, Expires: stamp(out.Expires), Entry: proved(env, out.Proof),
	}
	if r.Receipt {
		if res.Receipt, err = out.Proof.Receipt(); err != nil {
			return nil, problem.Wrap(err, problem.ReasonInternal, "making the receipt")
		}
	}
	return res, nil
}

func (s secrets) List(ctx context.Context, r *pb.ListSecretsRequest) (*pb.ListSecretsResponse, error) {
	c := callOf(ctx)
	all, next, err := c.conn.site.Env.ListSecrets(ctx, c.conn.caller, r.Prefix, control.Page{After: r.PageToken, Size: int(r.PageSize)})
	if err != nil {
		return nil, err
	}
	now := state.At(time.Now())
	out := &pb.ListSecretsResponse{NextPageToken: next}
	for _, x := range all {
		info := &pb.SecretInfo{Secret: x.Path, Current: x.Current}
		for _, v := range x.Versions {
			info.Versions = append(info.Versions, &pb.VersionInfo{
				Version: v.Number, State: string(v.StateAt(now)), Created: millis(v.Created), By: v.By, Until: millis(v.Until),
			})
		}
		out.Secrets = append(out.Secrets, info)
	}
	return out, nil
}

// moves are the states that a request may name.
var moves = map[string]state.VersionState{
	"current": state.Current, "retiring": state.Retiring, "retired": state.Retired, "compromised": state.Compromised, "destroyed": state.Destroyed,
}

func (s secrets) Move(ctx context.Context, r *pb.MoveRequest) (*pb.MoveResponse, error) {
	c := callOf(ctx)
	to, ok := moves[r.To]
	if !ok {
		return nil, problem.New(problem.ReasonInvalid, "a version is moved to current, retiring, retired, compromised or destroyed")
	}
	m, err := c.conn.site.Env.Move(ctx, c.conn.caller, control.MoveRequest{Secret: r.Secret, Version: r.Version, To: to, Reason: r.Reason})
	if err != nil {
		return nil, err
	}
	out := &pb.MoveResponse{Entry: entry(c.conn.site.Env, m.Index)}
	if to == state.Destroyed {
		out.Note = "the value is gone here; a backup made before may still open it until that backup expires"
	}
	return out, nil
}

func (s secrets) ListLeases(ctx context.Context, r *pb.ListLeasesRequest) (*pb.ListLeasesResponse, error) {
	c := callOf(ctx)
	all, next, err := c.conn.site.Env.ListLeases(ctx, c.conn.caller, r.Identity, control.Page{After: r.PageToken, Size: int(r.PageSize)})
	if err != nil {
		return nil, err
	}
	out := &pb.ListLeasesResponse{NextPageToken: next}
	for _, x := range all {
		out.Leases = append(out.Leases, &pb.LeaseInfo{
			Lease: x.ID, Identity: x.Identity, Node: x.Node, Secret: x.Secret, Version: x.Version, Purpose: x.Purpose, Grant: x.Grant,
			Created: millis(x.Created), Expires: millis(x.Expires), Max: millis(x.Max), State: x.State,
		})
	}
	return out, nil
}

func (s secrets) RenewLease(ctx context.Context, r *pb.RenewLeaseRequest) (*pb.RenewLeaseResponse, error) {
	c := callOf(ctx)
	x, err := c.conn.site.Env.RenewLease(ctx, c.conn.caller, r.Lease)
	if err != nil {
		return nil, err
	}
	return &pb.RenewLeaseResponse{Expires: stamp(x.Expires), Entry: entry(c.conn.site.Env, x.Index)}, nil
}

func (s secrets) ReturnLease(ctx context.Context, r *pb.ReturnLeaseRequest) (*pb.ReturnLeaseResponse, error) {
	c := callOf(ctx)
	x, err := c.conn.site.Env.ReturnLease(ctx, c.conn.caller, r.Lease)
	if err != nil {
		return nil, err
	}
	return &pb.ReturnLeaseResponse{Entry: entry(c.conn.site.Env, x.Index)}, nil
}

// revocations takes back.
type revocations struct{ *API }

func (s revocations) Revoke(ctx context.Context, r *pb.RevokeRequest) (*pb.RevokeResponse, error) {
	c := callOf(ctx)
	ask := control.RevokeRequest{Scope: r.Scope, Reason: r.Reason, HoldOnly: r.HoldOnly}
	yes, no := true, false
	switch r.Hold {
	case pb.RevokeRequest_HOLD_DEFAULT:
	case pb.RevokeRequest_HOLD_YES:
		ask.Hold = &yes
	case pb.RevokeRequest_HOLD_NO:
		ask.Hold = &no
	default:
		return nil, problem.New(problem.ReasonInvalid, "hold is default, yes or no")
	}
	x, err := c.conn.site.Env.Revoke(ctx, c.conn.caller, ask)
	if err != nil {
		return nil, err
	}
	return &pb.RevokeResponse{
		Entry: entry(c.conn.site.Env, x.Index), Horizon: stamp(x.Horizon), Covers: int64(x.Covers), Cutoff: x.Cutoff, Hold: x.Hold,
		ProvisionalUntil: stamp(x.Provisional), Rotate: x.Rotate,
	}, nil
}

func (s revocations) ListRevocations(ctx context.Context, _ *pb.ListRevocationsRequest) (*pb.ListRevocationsResponse, error) {
	c := callOf(ctx)
	all, err := c.conn.site.Env.ListRevocations(ctx, c.conn.caller)
	if err != nil {
		return nil, err
	}
	out := &pb.ListRevocationsResponse{}
	for _, x := range all {
		info := &pb.RevocationInfo{Scope: x.Scope, Cutoff: x.Cutoff, By: x.By, Reason: x.Reason}
		if h := x.Hold; h != nil {
			info.Hold, info.Until = h.Index, millis(h.Until)
		}
		out.Revocations = append(out.Revocations, info)
	}
	return out, nil
}
