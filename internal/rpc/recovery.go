package rpc

import (
	"context"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/state"
)

// recoveries replace operators. Attempts are limited as other proofs are before a session.
type recoveries struct{ attestations }

func (s recoveries) GetRecovery(ctx context.Context, _ *pb.GetRecoveryRequest) (*pb.GetRecoveryResponse, error) {
	v, err := callOf(ctx).conn.site.Env.ShowRecovery(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.GetRecoveryResponse{Bundle: v.Bundle.String(), Version: v.Header.Version, Recovery: recoveryInfo(v.Recovery)}
	if !v.Header.Previous.IsZero() {
		out.Previous = v.Header.Previous.String()
	}
	return out, nil
}

func recoveryInfo(r *state.Recovery) *pb.RecoveryInfo {
	if r == nil {
		return nil
	}
	out := &pb.RecoveryInfo{Recovery: r.Index, Text: r.Text, Began: millis(r.Began), Until: millis(r.Until), Reason: r.Reason}
	for i := range r.Signatures {
		out.Signatures = append(out.Signatures, signature(&r.Signatures[i]))
	}
	return out
}

func (s recoveries) StartRecovery(ctx context.Context, r *pb.StartRecoveryRequest) (*pb.StartRecoveryResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if err := s.attempt(c, len(r.Text)+len(r.Operators))(env.RecoveryAttempt(), nil); err != nil {
		return nil, err
	}
	ask := control.RecoveryRequest{Text: r.Text, Operators: r.Operators}
	for _, x := range r.Signatures {
		ask.Signatures = append(ask.Signatures, state.Signature{Person: x.GetPerson(), SSHSIG: x.GetSshsig()})
	}
	out, err := env.Recover(ctx, ask)
	if err != nil {
		return nil, err
	}
	return &pb.StartRecoveryResponse{Recovery: out.Index, Until: stamp(out.Until), Entry: entry(env, out.Index)}, nil
}

func (s recoveries) WithdrawRecovery(ctx context.Context, r *pb.WithdrawRecoveryRequest) (*pb.WithdrawRecoveryResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if err := s.attempt(c, 0)(env.RecoveryAttempt(), nil); err != nil {
		return nil, err
	}
	index, err := env.WithdrawRecovery(ctx, r.Text, state.Signature{SSHSIG: r.GetSignature().GetSshsig()})
	if err != nil {
		return nil, err
	}
	return &pb.WithdrawRecoveryResponse{Entry: entry(env, index)}, nil
}
