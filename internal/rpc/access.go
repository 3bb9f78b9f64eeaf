package rpc

import (
	"context"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// accesses is who used what, and what was decided about it.
type accesses struct{ *API }

func accessFilter(identities, secrets string, page control.Page) (control.AccessFilter, error) {
	f := control.AccessFilter{Page: page}
	var err error
	if identities != "" {
		if f.Identities, err = identity.ParseIDPattern(identities); err != nil {
			return f, problem.Wrap(err, problem.ReasonInvalid, "the identities")
		}
	}
	if secrets != "" {
		if f.Secrets, err = identity.ParseSecretPattern(secrets); err != nil {
			return f, problem.Wrap(err, problem.ReasonInvalid, "the secrets")
		}
	}
	return f, nil
}

func (s accesses) ListUses(ctx context.Context, r *pb.ListUsesRequest) (*pb.ListUsesResponse, error) {
	c := callOf(ctx)
	f, err := accessFilter(r.Identities, r.Secrets, control.Page{After: r.PageToken, Size: int(r.PageSize)})
	if err != nil {
		return nil, err
	}
	x, err := c.conn.site.Env.ListUses(c.conn.caller, f)
	if err != nil {
		return nil, err
	}
	out := &pb.ListUsesResponse{NextPageToken: x.Next, Remembered: millis(x.Since)}
	for _, u := range x.Rows {
		out.Uses = append(out.Uses, &pb.Use{Identity: u.Identity, Secret: u.Secret, Grant: u.Grant, First: millis(u.First), Last: millis(u.Last)})
	}
	return out, nil
}

func (s accesses) ListReviewed(ctx context.Context, r *pb.ListReviewedRequest) (*pb.ListReviewedResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	f, err := accessFilter(r.Identities, r.Secrets, control.Page{After: r.PageToken, Size: int(r.PageSize)})
	if err != nil {
		return nil, err
	}
	x, err := env.ListReviewed(c.conn.caller, f)
	if err != nil {
		return nil, err
	}
	out := &pb.ListReviewedResponse{NextPageToken: x.Next}
	for _, d := range x.Rows {
		out.Lines = append(out.Lines, &pb.ReviewedLine{
			Grant: d.Grant, Identity: d.Identity, Secret: d.Secret, Decision: d.Reviewed.Decision, By: d.By, Time: millis(d.Time), Entry: entry(env, d.Index),
		})
	}
	return out, nil
}

func (s accesses) Review(ctx context.Context, r *pb.ReviewRequest) (*pb.ReviewResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	index, err := env.Review(ctx, c.conn.caller, control.ReviewRequest{Text: r.Text, SSHSIG: r.GetSignature().GetSshsig(), Key: r.IdempotencyKey})
	if err != nil {
		return nil, err
	}
	return &pb.ReviewResponse{Entry: entry(env, index)}, nil
}
