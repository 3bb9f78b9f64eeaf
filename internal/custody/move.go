package custody

import (
	"context"

	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// HolderOf is what the ledger says of a root holder.
func HolderOf(h keyring.Holder) state.RootHolder {
	d := h.Descriptor()
	return state.RootHolder{Kind: d.Kind, ID: d.ID, DevelopmentOnly: d.DevelopmentOnly}
}

// Moved wraps every key-encryption key under the vault's holder, for a store in which they are under another one. The other keys
// are under these, and stay as they are.
func (v Vault) Moved(ctx context.Context, k *Keys) ([]store.Key, error) {
	rows := make([]store.Key, 0, len(k.keks))
	for n := uint32(1); int(n) <= len(k.keks); n++ {
		kek, ok := k.keks[n]
		if !ok {
			return nil, problem.New(problem.ReasonTampered, "the key %s is not there", Name(KEK, n))
		}
		row, err := v.wrapKEK(ctx, kek)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// DigestOf is what a move enters of wrapped keys, in order of their numbers: see state.MovedDigest.
func DigestOf(rows []store.Key) state.Digest {
	return state.MovedDigest(func(yield func(string, []byte) bool) {
		for _, r := range rows {
			if !yield(r.Name, r.Data) {
				return
			}
		}
	})
}

// checkMoved checks that what the store has of the key-encryption keys is what was entered when they were moved: otherwise they are from
// a copy of before, or were put there.
func checkMoved(s *state.State, rows []store.Key) error {
	m := s.Custody
	if m.Moved == 0 {
		return nil
	}
	if len(rows) < m.Keys || DigestOf(rows[:m.Keys]) != m.Digest {
		return problem.New(problem.ReasonTampered, "the wrapped key-encryption keys are not those that entry %d put under %s", m.Moved, m.Holder).
			WithFix("the store has keys of another time than its ledger: restore both from one copy")
	}
	return nil
}
