package rpc

import (
	"context"
	"crypto/sha256"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// changes is the environment as code, and what needs approval.
type changes struct{ *API }

func (s changes) Propose(ctx context.Context, r *pb.ProposeRequest) (*pb.ProposeResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if err := agrees(r); err != nil {
		return nil, err
	}
	ask := control.ProposeRequest{Text: r.Text, SSHSIG: r.GetSignature().GetSshsig(), Key: r.IdempotencyKey}
	if r.Manifest != "" {
		files, err := filesOf(r.Manifest, r.Files)
		if err != nil {
			return nil, err
		}
		ask.Manifest, ask.Files, ask.ManifestSignature = []byte(r.Manifest), files, r.GetManifestSignature().GetSshsig()
	}
	p, err := env.Propose(ctx, c.conn.caller, ask)
	if err != nil {
		return nil, err
	}
	out := &pb.ProposeResponse{Change: p.Index, Entry: entry(env, p.Index), Generation: p.Generation}
	if p.Change != nil {
		out.Change, out.Required, out.State = p.Change.Index, int32(p.Change.Required), string(p.Change.StateAt(state.At(time.Now())))
	}
	return out, nil
}

// agrees refuses a request whose fields say something else than the text that was signed. Only the text
// counts; a difference is a mistake that should not wait for an approver to find it.
func agrees(r *pb.ProposeRequest) error {
	text, err := ceremony.ParseChange(r.Text)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "reading the signed text")
	}
	differs := func(field string) error {
		return problem.New(problem.ReasonInvalid, "the field %s says something else than the signed text", field)
	}
	switch {
	case r.Action != "" && r.Action != text.Action:
		return differs("action")
	case r.Target != "" && r.Target != text.Target:
		return differs("target")
	case r.Reason != "" && r.Reason != text.Reason:
		return differs("reason")
	case r.Expires != nil && !r.Expires.AsTime().Equal(text.Expires):
		return differs("expires")
	case r.Manifest == "" && len(r.Files) > 0:
		return problem.New(problem.ReasonInvalid, "there are files and no manifest that names them")
	}
	return nil
}

// filesOf gives each file of a manifest its content, by digest. Files that it does not name are refused.
func filesOf(text string, contents [][]byte) (policy.Files, error) {
	m, err := policy.ParseManifest([]byte(text))
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "reading the manifest")
	}
	by := make(map[policy.Digest][]byte, len(contents))
	for _, b := range contents {
		by[sha256.Sum256(b)] = b
	}
	files := make(policy.Files, len(m.Files()))
	used := make(map[policy.Digest]bool, len(by))
	for _, f := range m.Files() {
		b, ok := by[f.Digest]
		if !ok {
			return nil, problem.New(problem.ReasonBundleInvalid, "the content of %s was not sent, or is not what the manifest says", f.Path)
		}
		files[f.Path], used[f.Digest] = b, true
	}
	if len(used) < len(by) {
		return nil, problem.New(problem.ReasonBundleInvalid, "%d files were sent that the manifest does not name", len(by)-len(used))
	}
	return files, nil
}

func (s changes) ListChanges(ctx context.Context, r *pb.ListChangesRequest) (*pb.ListChangesResponse, error) {
	c := callOf(ctx)
	all, err := c.conn.site.Env.ListChanges(ctx, c.conn.caller, control.ChangeFilter{Open: r.OpenOnly, Mine: r.Mine})
	if err != nil {
		return nil, err
	}
	out := &pb.ListChangesResponse{}
	if r := c.conn.site.Env.State().Recovery(); r != nil {
		out.Recovery, out.RecoveryUntil = r.Index, millis(r.Until)
	}
	for _, x := range all {
		out.Changes = append(out.Changes, changeInfo(c.conn.site.Env, x.Change))
	}
	return out, nil
}

func (s changes) GetChange(ctx context.Context, r *pb.GetChangeRequest) (*pb.GetChangeResponse, error) {
	c := callOf(ctx)
	x, err := c.conn.site.Env.GetChange(ctx, c.conn.caller, r.Change)
	if err != nil {
		return nil, err
	}
	out := &pb.GetChangeResponse{Change: changeInfo(c.conn.site.Env, x.Change)}
	if p := x.Proposal; p != nil {
		out.ProposalText = p.Text
		out.ProposalSignature, out.ManifestSignature = signature(&p.Signature), signature(p.Bundle)
	}
	for _, a := range x.Approvals {
		out.Approvals = append(out.Approvals, &pb.ApprovalInfo{Entry: a.Index, Text: a.Text, Signature: signature(&a.Signature), Counts: a.Counts})
	}
	if x.Manifest != nil {
		out.Manifest, out.Files = string(x.Manifest.Text()), contentsOf(x.Manifest, x.Files)
	}
	return out, nil
}

// contentsOf lists files' contents in the manifest's order, each content once.
func contentsOf(m *policy.Manifest, files policy.Files) [][]byte {
	var out [][]byte
	seen := make(map[policy.Digest]bool)
	for _, f := range m.Files() {
		if !seen[f.Digest] {
			seen[f.Digest] = true
			out = append(out, files[f.Path])
		}
	}
	return out
}

func (s changes) Approve(ctx context.Context, r *pb.ApproveRequest) (*pb.ApproveResponse, error) {
	c := callOf(ctx)
	p, err := c.conn.site.Env.Approve(ctx, c.conn.caller, control.ApproveRequest{Change: r.Change, Text: r.Text, SSHSIG: r.GetSignature().GetSshsig()})
	if err != nil {
		return nil, err
	}
	return &pb.ApproveResponse{Change: changeInfo(c.conn.site.Env, p.Change), Entry: entry(c.conn.site.Env, p.Index), Generation: p.Generation}, nil
}

func (s changes) Reject(ctx context.Context, r *pb.RejectRequest) (*pb.RejectResponse, error) {
	c := callOf(ctx)
	p, err := c.conn.site.Env.Reject(ctx, c.conn.caller, r.Change, r.Reason)
	if err != nil {
		return nil, err
	}
	return &pb.RejectResponse{Entry: entry(c.conn.site.Env, p.Index)}, nil
}

func signature(x *state.Signature) *pb.Signature {
	if x == nil {
		return nil
	}
	return &pb.Signature{Person: x.Person, Key: x.Key, Sshsig: x.SSHSIG}
}

func (s changes) RollBack(ctx context.Context, r *pb.RollBackRequest) (*pb.RollBackResponse, error) {
	c := callOf(ctx)
	p, err := c.conn.site.Env.RollBack(ctx, c.conn.caller, control.RollbackRequest{Change: r.Change, Reason: r.Reason})
	if err != nil {
		return nil, err
	}
	return &pb.RollBackResponse{Change: changeInfo(c.conn.site.Env, p.Change), Entry: entry(c.conn.site.Env, p.Index), Generation: p.Generation}, nil
}

func (s changes) CarryOut(ctx context.Context, r *pb.CarryOutRequest) (*pb.CarryOutResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	p, err := env.CarryOut(ctx, c.conn.caller, r.Change)
	if err != nil {
		return nil, err
	}
	if p.File != nil {
		c.released = time.Now().Add(-p.Age)
	}
	return &pb.CarryOutResponse{Change: changeInfo(env, p.Change), Entry: entry(env, p.Index), File: p.File, Values: int32(p.Values)}, nil
}

func (s changes) GetBundle(ctx context.Context, r *pb.GetBundleRequest) (*pb.GetBundleResponse, error) {
	c := callOf(ctx)
	var digest state.Digest
	if r.Digest != "" {
		d, err := policy.ParseDigest(r.Digest)
		if err != nil {
			return nil, problem.New(problem.ReasonInvalid, "the digest is not of the form sha256:HEX")
		}
		digest = state.Digest(d)
	}
	m, files, generation, err := c.conn.site.Env.Bundle(ctx, c.conn.caller, digest)
	if err != nil {
		return nil, err
	}
	return &pb.GetBundleResponse{Manifest: string(m.Text()), Files: contentsOf(m, files), Generation: generation}, nil
}

func changeInfo(env *control.Environment, x *state.Change) *pb.ChangeInfo {
	if x == nil {
		return nil
	}
	out := &pb.ChangeInfo{
		Change: x.Index, Action: x.Action, State: string(x.StateAt(state.At(time.Now()))), Base: x.Base.String(), Target: x.Target,
		Proposer: x.Proposer, Required: int32(x.Required), Created: millis(x.Created), Expires: millis(x.Expires), Reason: x.Reason,
	}
	if !x.Manifest.IsZero() {
		out.Manifest = x.Manifest.String()
	}
	if !x.Rollback.IsZero() {
		out.Rollback = x.Rollback.String()
	}
	out.Rollout, out.Containment, out.TextVersion = x.Rollout, x.Containment, int32(max(x.Text, 1))
	out.ApprovedBy = env.ApprovedBy(x)
	out.DelaySeconds, out.Ends = x.Delay, millis(x.Ends())
	if due := x.Due(); due != 0 {
		out.Due = millis(due)
	}
	if r := env.State().Rollout(state.At(time.Now())); r != nil && r.Change == x.Index {
		out.Progress = progress(r)
	}
	return out
}

// progress is where a rollout is.
func progress(r *state.Rollout) *pb.RolloutInfo {
	out := &pb.RolloutInfo{
		Stage: r.Stage(), Step: int32(r.Step + 1), Steps: int32(len(r.Plan.Steps)), Until: millis(r.Until), Compared: r.Compared, Differed: r.Differed,
		Asked: int32(r.Asked),
	}
	if r.Step < len(r.Plan.Steps) {
		out.Share, out.Cohort = int32(r.Plan.Steps[r.Step].Share), r.Plan.Steps[r.Step].Cohort
	} else {
		out.Step = out.Steps
	}
	for i, t := range r.Plan.Triggers {
		out.Triggers = append(out.Triggers, &pb.TriggerInfo{On: t.On, Counted: int32(r.Hits[i]), Sources: int32(t.Sources), Share: int32(t.Share)})
	}
	for _, d := range r.Differences {
		out.Differences = append(out.Differences, &pb.DifferenceInfo{
			Identity: d.Identity, Node: d.Node, Action: d.Action, Secret: d.Secret, Purpose: d.Purpose, Allowed: d.Allowed, Reason: d.Reason,
			Grant: d.Grant, Count: d.Count,
		})
	}
	return out
}
