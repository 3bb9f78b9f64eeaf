package site

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// Propose proposes a change of the bundle as alice, and returns her approval of it, which brings it into force where hers is enough.
func (s *Site) Propose(ctx context.Context, admin *client.Client, edit func(policy.Files)) (*bailmentv1.ApproveRequest, error) {
	now, err := admin.Changes.GetBundle(ctx, &bailmentv1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	base, err := policy.ParseManifest([]byte(now.Manifest))
	if err != nil {
		return nil, err
	}
	files, by := make(policy.Files), make(map[policy.Digest][]byte)
	for _, f := range now.Files {
		by[sha256.Sum256(f)] = f
	}
	for _, f := range base.Files() {
		files[f.Path] = by[f.Digest]
	}
	before := maps.Clone(files)
	edit(files)
	m, err := policy.BuildManifest(files, policy.Header{Environment: s.Name, Genesis: policy.Digest(s.Genesis), Version: base.Header().Version + 1, Previous: base.Digest()})
	if err != nil {
		return nil, err
	}
	ask := &bailmentv1.ProposeRequest{Manifest: string(m.Text())}
	for _, f := range files {
		ask.Files = append(ask.Files, f)
	}
	sig, err := s.Signer("alice")(ceremony.NamespaceBundle, m.Text())
	if err != nil {
		return nil, err
	}
	ask.ManifestSignature = &bailmentv1.Signature{Sshsig: sig}
	text := ceremony.Change{Action: "bundle", Base: base.Digest().String(), New: m.Digest().String()}
	if text.Rollback, err = policy.RollbackDigest(m, before, files, nil); err != nil {
		return nil, err
	}
	return s.propose(ctx, admin, text, ask)
}

// propose completes and signs a proposal, sends it, and signs the approval of it.
func (s *Site) propose(ctx context.Context, admin *client.Client, text ceremony.Change, ask *bailmentv1.ProposeRequest) (*bailmentv1.ApproveRequest, error) {
	epoch, err := admin.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	text.Scope = ceremony.Scope{Environment: s.Name, Genesis: s.Genesis, Epoch: epoch}
	text.Role, text.Person, text.Nonce, text.Reason = ceremony.Proposer, "alice", nonce(), "a test"
	text.Expires = time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	sig, err := s.Signer("alice")(ceremony.NamespaceChange, []byte(text.Text()))
	if err != nil {
		return nil, err
	}
	ask.Action, ask.Target, ask.Text, ask.Expires, ask.Reason = text.Action, text.Target, text.Text(), timestamppb.New(text.Expires), text.Reason
	ask.Signature = &bailmentv1.Signature{Sshsig: sig}
	p, err := admin.Changes.Propose(ctx, ask)
	if err != nil {
		return nil, err
	}
	text.Role, text.Number, text.Nonce = ceremony.Approver, p.Change, nonce()
	if sig, err = s.Signer("alice")(ceremony.NamespaceChange, []byte(text.Text())); err != nil {
		return nil, err
	}
	return &bailmentv1.ApproveRequest{Change: p.Change, Text: text.Text(), Signature: &bailmentv1.Signature{Sshsig: sig}}, nil
}

// Lift lifts the hold that an entry put on a scope, where alice's approval is enough.
func (s *Site) Lift(ctx context.Context, admin *client.Client, scope string, entry uint64) error {
	now, err := admin.Changes.GetBundle(ctx, &bailmentv1.GetBundleRequest{})
	if err != nil {
		return err
	}
	base, err := policy.ParseManifest([]byte(now.Manifest))
	if err != nil {
		return err
	}
	approval, err := s.propose(ctx, admin, ceremony.Change{Action: "hold.lift", Base: base.Digest().String(), Target: state.HoldTarget(scope, entry)}, &bailmentv1.ProposeRequest{})
	if err != nil {
		return err
	}
	_, err = admin.Changes.Approve(ctx, approval)
	return err
}

// Change brings a change of the bundle into force.
func (s *Site) Change(ctx context.Context, admin *client.Client, edit func(policy.Files)) error {
	approval, err := s.Propose(ctx, admin, edit)
	if err != nil {
		return err
	}
	out, err := admin.Changes.Approve(ctx, approval)
	if err != nil {
		return err
	}
	if out.Generation == 0 {
		return fmt.Errorf("the change is %s, not in force", out.Change.State)
	}
	return nil
}

func nonce() string {
	var n [16]byte
	_, _ = rand.Read(n[:]) // never fails (Go 1.24)
	return hex.EncodeToString(n[:])
}
