package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/verify"
)

// readCheckpoints reads the checkpoints' texts, unverified, so that the tree's roots at their sizes are kept.
func (r *run) readCheckpoints() error {
	if r.l.Checkpoint != nil {
		if err := r.addCheckpoint("the ledger's own checkpoint", r.l.Checkpoint, false); err != nil {
			return err
		}
		r.report.Checkpoint = uint64(r.checkpoints[0].Size)
	}
	for i, signed := range r.o.Checkpoints {
		name := "the checkpoint kept elsewhere"
		if len(r.o.Checkpoints) > 1 {
			name = fmt.Sprintf("checkpoint %d kept elsewhere", i+1)
		}
		if err := r.addCheckpoint(name, signed, true); err != nil {
			return err
		}
	}
	slices.SortStableFunc(r.checkpoints, func(a, b checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	return nil
}

func (r *run) addCheckpoint(name string, signed []byte, saved bool) error {
	text, _, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok || len(signed) > verify.MaxCheckpoint {
		return r.malformed(name, saved, fmt.Errorf("not a signed note"))
	}
	cp, err := verify.ParseCheckpoint(string(text) + "\n")
	if err == nil && cp.Size < 1 {
		err = fmt.Errorf("it covers no entries")
	}
	if err != nil {
		return r.malformed(name, saved, err)
	}
	r.checkpoints = append(r.checkpoints, checkpoint{name: name, signed: signed, saved: saved, Checkpoint: cp})
	r.wantTrees[uint64(cp.Size)] = tlog.Hash{}
	return nil
}

func (r *run) malformed(name string, saved bool, err error) error {
	if saved {
		return problem.Wrap(err, problem.ReasonInvalid, "reading %s", name)
	}
	return problem.Wrap(err, problem.ReasonTampered, "reading %s", name)
}

// key is a checkpoint key of this ledger.
type key struct {
	verifier note.Verifier
	created  uint64 // the entry that added it
	trusted  bool   // by what was pinned
	vouched  bool   // the key before it signed for it
}

// authenticate compares the checkpoints with the tree, and finds out how far what was pinned vouches for it.
func (r *run) authenticate(ctx context.Context) error {
	s := r.state
	origin := fmt.Sprintf("bailment/%s/%x/%d", s.Env.Name, s.Env.Genesis[:8], s.Env.Epoch)
	keys, err := r.keys(origin)
	if err != nil {
		return err
	}
	for _, c := range r.checkpoints {
		if err := r.compare(ctx, c, origin, keys); err != nil {
			return err
		}
	}
	// A store writes a checkpoint with every batch. So what is behind the checkpoint was added by somebody who has no key.
	if size := r.report.Checkpoint; r.l.Stored != nil && size == 0 {
		return tampered("there is no signed checkpoint, which is stored with every batch")
	} else if r.l.Stored != nil && size != r.l.Size {
		return fault(size, "it is not under the signed checkpoint, which is stored with every batch and covers %d entries", size)
	}
	if !r.o.pinned() {
		return nil
	}
	if !r.o.Genesis.IsZero() {
		r.report.Authenticated = 1 // genesis is its own digest
	}
	r.spread(keys)
	if len(r.o.Vkeys) > 0 && r.report.Authenticated <= 1 {
		return problem.New(problem.ReasonNotAuthentic, "no checkpoint here is signed by a key that is pinned")
	}
	if r.report.Checkpoint > r.report.Authenticated {
		r.report.note("the checkpoint is signed by rotated keys that only this ledger vouches for: pin one of them, or bring a checkpoint from between the rotations")
	}
	return nil
}

// keys lists the checkpoint keys: those of the ledger, oldest first, and those that were pinned.
func (r *run) keys(origin string) ([]*key, error) {
	var rows []*state.PublicKey
	r.state.Keys.From(state.KeyCheckpoint+"/", func(name string, k *state.PublicKey) bool {
		if strings.HasPrefix(name, state.KeyCheckpoint+"/") {
			rows = append(rows, k)
			return true
		}
		return false
	})
	slices.SortFunc(rows, func(a, b *state.PublicKey) int { return cmp.Compare(a.Created, b.Created) })
	var keys []*key
	for i, row := range rows {
		if len(row.Public) != ed25519.PublicKeySize {
			return nil, fault(row.Created, "the key %s is not an Ed25519 public key", row.Name)
		}
		vkey, err := note.NewEd25519VerifierKey(origin, ed25519.PublicKey(row.Public))
		if err != nil {
			return nil, fault(row.Created, "the key %s: %v", row.Name, err)
		}
		v, err := verify.ParseVerifier(vkey)
		if err != nil {
			return nil, fault(row.Created, "the key %s: %v", row.Name, err)
		}
		r.report.Keys = append(r.report.Keys, vkey)
		k := &key{verifier: v, created: row.Created}
		if i == 0 {
			// The one key that nothing in the ledger vouches for stands in the document that was pinned and signed.
			if !bytes.Equal(row.Public, r.document.Checkpoint) {
				return nil, fault(row.Created, "the key %s is not that of the genesis document", row.Name)
			}
			k.trusted = !r.o.Genesis.IsZero()
		} else {
			env := r.state.Env
			text := ceremony.CheckpointKey{
				Scope: ceremony.Scope{Environment: env.Name, Genesis: env.Genesis, Epoch: env.Epoch}, Name: row.Name, Public: row.Public,
			}.Text()
			if k.vouched = ed25519.Verify(rows[i-1].Public, []byte(text), row.Cross); !k.vouched {
				return nil, fault(row.Created, "the key %s is not vouched for by %s", row.Name, rows[i-1].Name)
			}
		}
		keys = append(keys, k)
	}
	for _, vkey := range r.o.Vkeys {
		v, err := verify.ParseVerifier(vkey)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the pinned key")
		}
		if v.Name() != origin {
			return nil, problem.New(problem.ReasonNotAuthentic, "the pinned key is of the log %s, this one is %s", v.Name(), origin)
		}
		if i := slices.Index(r.report.Keys, vkey); i >= 0 {
			keys[i].trusted = true
			continue
		}
		return nil, problem.New(problem.ReasonNotAuthentic, "the pinned key is none of this ledger's keys")
	}
	return keys, nil
}

func verifiers(keys []*key) []note.Verifier {
	out := make([]note.Verifier, len(keys))
	for i, k := range keys {
		out[i] = k.verifier
	}
	return out
}

// compare checks one checkpoint's signature and that it is of this tree.
func (r *run) compare(ctx context.Context, c checkpoint, origin string, keys []*key) error {
	if c.Origin != origin {
		return problem.New(problem.ReasonNotAuthentic, "%s is of the log %s, this one is %s", c.name, c.Origin, origin)
	}
	mayHave := keys
	if !c.saved && len(keys) > 2 {
		mayHave = keys[len(keys)-2:] // the newest batch's: each is signed by the two newest keys, and one may have been added by it
	}
	if _, err := verify.OpenCheckpoint(c.signed, verifiers(mayHave)...); err != nil {
		if c.saved {
			return problem.Wrap(err, problem.ReasonNotAuthentic, "%s is not signed by a key of this ledger: one of the two is not what it should be", c.name)
		}
		return problem.Wrap(err, problem.ReasonTampered, "%s is not signed by a key of this ledger", c.name)
	}
	size := uint64(c.Size)
	if size > r.l.Size {
		return fault(r.l.Size, "it is missing: %s covers %d entries, and there are only %d", c.name, size, r.l.Size)
	}
	if r.wantTrees[size] == c.Root {
		if c.saved {
			r.report.Saved++
		}
		return nil
	}
	r.prove(ctx, c, keys)
	return tampered("%s was signed for other entries: the first %d entries are not those that it covers", c.name, size)
}

// prove writes a conflict down as a proof that others can check, if both sides of it are signed.
func (r *run) prove(ctx context.Context, c checkpoint, keys []*key) {
	for _, own := range r.checkpoints {
		if own.saved == c.saved || own.Size < c.Size || r.wantTrees[uint64(own.Size)] != own.Root {
			continue
		}
		m := &verify.Misbehaviour{Older: c.signed, Newer: own.signed, Prefix: r.wantTrees[uint64(c.Size)]}
		if own.Size > c.Size {
			if r.l.Consistency == nil {
				return
			}
			var err error
			if m.Proof, err = r.l.Consistency(ctx, uint64(c.Size), uint64(own.Size)); err != nil {
				r.report.note("no proof of misbehaviour could be made: %v", err)
				return
			}
		}
		if err := m.Verify(verifiers(keys)...); err != nil {
			r.report.note("no proof of misbehaviour could be made: %v", err)
			return
		}
		r.report.Misbehaviour = string(m.Format())
		return
	}
}

// spread lets trust go from what was pinned to what it signed: a trusted key vouches for the key that followed it, and a
// checkpoint by a trusted key for every entry under it, and so for the keys that those entries added.
func (r *run) spread(keys []*key) {
	for again := true; again; {
		again = false
		for i, k := range keys {
			if i > 0 && !k.trusted && k.vouched && keys[i-1].trusted {
				k.trusted, again = true, true
			}
		}
		for _, c := range r.checkpoints {
			signed := slices.ContainsFunc(keys, func(k *key) bool {
				if !k.trusted {
					return false
				}
				_, err := verify.OpenCheckpoint(c.signed, k.verifier)
				return err == nil
			})
			if !signed {
				continue
			}
			r.report.Authenticated = max(r.report.Authenticated, uint64(c.Size))
			for _, k := range keys {
				if !k.trusted && k.created < uint64(c.Size) {
					k.trusted, again = true, true
				}
			}
		}
	}
}
