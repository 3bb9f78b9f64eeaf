package site

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
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
	edit(files)
	m, err := policy.BuildManifest(files, policy.Header{Environment: s.Name, Genesis: policy.Digest(s.Genesis), Version: base.Header().Version + 1, Previous: base.Digest()})
	if err != nil {
		return nil, err
	}
	epoch, err := admin.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	text := ceremony.Change{
		Scope:  ceremony.Scope{Environment: s.Name, Genesis: s.Genesis, Epoch: epoch},
		Action: "bundle", Base: base.Digest().String(), New: m.Digest().String(), Role: ceremony.Proposer, Person: "alice",
		Nonce: nonce(), Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Reason: "a test",
	}
	sign := func(namespace, text string) *bailmentv1.Signature {
		var sig string
		if err == nil {
			sig, err = s.Signer("alice")(namespace, []byte(text))
		}
		return &bailmentv1.Signature{Sshsig: sig}
	}
	ask := &bailmentv1.ProposeRequest{
		Action: "bundle", Manifest: string(m.Text()), Text: text.Text(), Expires: timestamppb.New(text.Expires), Reason: text.Reason,
		Signature: sign(ceremony.NamespaceChange, text.Text()), ManifestSignature: sign(ceremony.NamespaceBundle, string(m.Text())),
	}
	for _, f := range files {
		ask.Files = append(ask.Files, f)
	}
	if err != nil {
		return nil, err
	}
	p, err := admin.Changes.Propose(ctx, ask)
	if err != nil {
		return nil, err
	}
	text.Role, text.Number, text.Nonce = ceremony.Approver, p.Change, nonce()
	return &bailmentv1.ApproveRequest{Change: p.Change, Text: text.Text(), Signature: sign(ceremony.NamespaceChange, text.Text())}, err
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
