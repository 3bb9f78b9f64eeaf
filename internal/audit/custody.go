package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// custodyMoved checks that the keys were moved by an approved change about the root holder that they went to, from the one that they
// were under: what the newest move before says, or genesis.
func (r *run) custodyMoved(at state.Millis, ev *state.CustodyMoved) error {
	was := r.state.Custody.Holder
	if r.state.Custody.Moved == 0 {
		was = r.document.RootHolder
	}
	if ev.From.String() != was {
		return fmt.Errorf("it moves the keys from %s, and they are under %s", ev.From, was)
	}
	return r.completed(at, ev.Change, policy.ActMoveCustody, func(c *state.Change) bool { return c.Target == ev.To.String() })
}

// wrapped compares the wrapped keys of a store with what its ledger says of them: that they are those of the newest move, or gone with the
// environment. It takes no root key. What a key of after a move is wrapped as the ledger doesn't say, nor that of an environment whose keys
// were never moved.
func (r *run) wrapped(ctx context.Context) error {
	if r.l.Stored == nil || r.l.Stored.Key == nil {
		return nil
	}
	if r.state.Ended != 0 {
		return r.gone(ctx)
	}
	m := r.state.Custody
	if m.Moved == 0 {
		return nil
	}
	var failed error
	digest := state.MovedDigest(func(yield func(string, []byte) bool) {
		for n := 1; n <= m.Keys; n++ {
			name := state.KeyName(state.KeyKEK, uint32(n))
			data, err := r.l.Stored.Key(ctx, name)
			if failed = err; err != nil || !yield(name, data) {
				return
			}
		}
	})
	switch {
	case failed != nil && !errors.Is(failed, store.ErrNotFound):
		return storeProblem(failed, "reading the wrapped keys")
	case failed != nil, digest != m.Digest:
		return fault(m.Moved, "the wrapped key-encryption keys of the store are not those that it put under %s", m.Holder)
	}
	return nil
}

// gone checks that an environment that has ended has no key any more.
func (r *run) gone(ctx context.Context) error {
	names := []string{"mac/1"}
	r.state.Keys.All(func(name string, _ *state.PublicKey) bool {
		names = append(names, name)
		return true
	})
	for _, name := range names {
		switch _, err := r.l.Stored.Key(ctx, name); {
		case err == nil:
			return fault(r.state.Ended, "the environment ended with it, and the store still has the wrapped key %s", name)
		case !errors.Is(err, store.ErrNotFound):
			return storeProblem(err, "reading the wrapped keys")
		}
	}
	return nil
}
