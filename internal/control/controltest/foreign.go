package controltest

import (
	"context"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// ForceForeign enters that a bundle was proposed, approved and is in force, as a release that is not there yet does: nothing reads it.
func (w *World) ForceForeign(files policy.Files) {
	w.T.Helper()
	base := w.Env.State().Bundle
	m, err := policy.BuildManifest(files, policy.Header{Environment: EnvName, Genesis: policy.Digest(w.Genesis), Version: 2, Previous: policy.Digest(base)})
	w.check(err)
	blobs := []store.Blob{{Digest: store.Digest(m.Digest()), Data: m.Text()}}
	for _, f := range m.Files() {
		blobs = append(blobs, store.Blob{Digest: store.Digest(f.Digest), Data: files[f.Path]})
	}
	_, _, err = ledger.Commit(context.Background(), w.Env.Ledger(), func(s *state.State, at ledger.At) (ledger.Draft, struct{}, error) {
		d, now := ledger.Draft{Blobs: blobs}, state.At(at.Time)
		for _, ev := range []state.Event{
			&state.ChangeProposed{
				Action: policy.ActBundle, Manifest: state.Digest(m.Digest()), Base: base, Required: 1, Nonce: "n", Expires: now + 60_000, Actor: state.Actor{Identity: "/human/alice"},
			},
			&state.ChangeApproved{Change: at.Index, Nonce: "m", Signature: state.Signature{Person: "bob"}, Actor: state.Actor{Identity: "/human/bob"}},
			&state.BundleInForce{Generation: s.Generation + 1, Manifest: state.Digest(m.Digest()), Previous: base, Change: at.Index, How: state.ByChange},
		} {
			e := &state.Entry{Time: now, Event: ev}
			body, err := state.Encode(e)
			if err != nil {
				return d, struct{}{}, err
			}
			d.Records = append(d.Records, ledger.Record{Body: body, Event: e})
		}
		return d, struct{}{}, nil
	})
	w.check(err)
}
