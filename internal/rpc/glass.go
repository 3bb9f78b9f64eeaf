package rpc

import (
	"context"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
)

// glasses is breaking the glass.
type glasses struct{ *API }

func (s glasses) OpenGlass(ctx context.Context, r *pb.OpenGlassRequest) (*pb.OpenGlassResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	o, err := env.OpenGlass(ctx, c.conn.caller, control.GlassRequest{
		Grant: r.Grant, Incident: r.Incident, Reason: r.Reason, Minutes: int(r.Minutes), Key: r.IdempotencyKey,
	})
	return &pb.OpenGlassResponse{Opening: opening(env, o)}, err
}

func (s glasses) CloseGlass(ctx context.Context, r *pb.CloseGlassRequest) (*pb.CloseGlassResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	o, err := env.CloseGlass(ctx, c.conn.caller, r.Opening)
	return &pb.CloseGlassResponse{Opening: opening(env, o)}, err
}

func (s glasses) ListGlass(ctx context.Context, _ *pb.ListGlassRequest) (*pb.ListGlassResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	all, err := env.ListGlass(c.conn.caller)
	if err != nil {
		return nil, err
	}
	q := all.Quarter
	out := &pb.ListGlassResponse{
		Quarter: q.Name, QuarterEnds: millis(q.Ends), Used: int32(q.Openings), Budget: int32(all.Settings.Openings),
		Releases: int32(q.Releases), ReleasesByGlass: int32(q.Glass), AlarmPercent: int32(all.Settings.Alarm), Alarmed: q.Alarmed,
	}
	for _, g := range all.Openings {
		out.Openings = append(out.Openings, opening(env, &control.Opening{Glass: g}))
	}
	for _, g := range all.Grants {
		x := &pb.BreakGlassGrant{Name: g.Name, Identities: identity.Texts(g.Identities), Secrets: identity.Texts(g.Secrets), Purposes: g.Purposes, Minutes: int32(g.Glass / time.Minute)}
		for _, a := range g.Actions {
			x.Actions = append(x.Actions, string(a))
		}
		out.Grants = append(out.Grants, x)
	}
	return out, nil
}

func (s glasses) ReviewGlass(ctx context.Context, r *pb.ReviewGlassRequest) (*pb.ReviewGlassResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	index, err := env.ReviewGlass(ctx, c.conn.caller, r.Opening, control.ReviewRequest{Text: r.Text, SSHSIG: r.GetSignature().GetSshsig(), Key: r.IdempotencyKey})
	return &pb.ReviewGlassResponse{Entry: entry(env, index)}, err
}

func opening(env *control.Environment, g *control.Opening) *pb.Opening {
	if g == nil {
		return nil
	}
	return &pb.Opening{
		Entry: entry(env, g.Index), Grant: g.Grant, Identity: g.Identity, Incident: g.Incident, Reason: g.Reason, Opened: millis(g.Opened), Until: millis(g.Until),
		Change: g.Change, ClosedBy: g.ClosedBy, Uses: int32(g.Uses), Secrets: g.Secrets, Beyond: int32(g.Beyond),
		Reviewed: g.Reviewed, Reviewer: g.Reviewer, Verdict: g.Verdict,
	}
}
