package custody_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/store"
)

// seen keeps the secrets that go through a root holder, which share their buffers with those of the caller.
type seen struct {
	keyring.Holder
	in, out []seal.Secret
	fails   int // which unwrapping fails; 0: none
}

func (h *seen) Wrap(ctx context.Context, c []byte, key seal.Secret) ([]byte, error) {
	h.in = append(h.in, key)
	return h.Holder.Wrap(ctx, c, key)
}

func (h *seen) Unwrap(ctx context.Context, c, wrapped []byte) (seal.Secret, error) {
	if h.fails > 0 && len(h.out)+1 == h.fails {
		return seal.Secret{}, errors.New("planted")
	}
	s, err := h.Holder.Unwrap(ctx, c, wrapped)
	h.out = append(h.out, s)
	return s, err
}

func wiped(t *testing.T, what string, secrets []seal.Secret) {
	t.Helper()
	if len(secrets) == 0 {
		t.Errorf("%s: there is none", what)
	}
	for _, s := range secrets {
		if s.Len() != 0 {
			t.Errorf("%s is left", what)
		}
	}
}

// What is made, and what is unwrapped only to be looked at, is wiped; so is all of what could be unsealed in part only.
func TestWhatIsLookedAtIsWiped(t *testing.T) {
	ctx := context.Background()
	w := controltest.New(t, controltest.Options{})
	if _, _, err := w.Env.RotateKey(ctx, w.Login("alice").Caller, custody.KEK); err != nil {
		t.Fatal(err)
	}
	h := &seen{Holder: w.Config.Holder}
	v := custody.Vault{Holder: h, Genesis: w.Genesis, Read: w.Env.Ledger().Store().Key}
	if _, _, err := v.Make(ctx, nil, custody.KEK, 3, ceremony.Scope{}, w.Config.Source, time.Now()); err != nil {
		t.Fatal(err)
	}
	wiped(t, "the key that was made", h.in)
	wiped(t, "the key that was made, unwrapped", h.out)

	s, origin := w.Env.State(), w.Env.Ledger().Origin()
	*h = seen{Holder: h.Holder, fails: 2}
	if _, err := v.Unseal(ctx, s, origin); err == nil {
		t.Fatal("the plant is none")
	}
	wiped(t, "a key that was unsealed", h.out)

	*h = seen{Holder: h.Holder}
	keys, err := v.Unseal(ctx, s, origin)
	if err != nil {
		t.Fatal(err)
	}
	*h = seen{Holder: h.Holder}
	rows, err := v.Moved(ctx, keys)
	if err != nil || len(rows) != 2 || custody.DigestOf(rows) == custody.DigestOf(rows[:1]) {
		t.Fatalf("%d rows: %v", len(rows), err)
	}
	wiped(t, "a key that was moved, unwrapped", h.out)
	if h.in[0].Len() == 0 {
		t.Error("the keys in use are wiped")
	}
	keys.Wipe()
	if _, err := v.Moved(ctx, keys); err == nil {
		t.Error("keys that are gone were moved")
	}
}

// twin is a root holder that takes any key, also none.
type twin struct{ keyring.Holder }

func (twin) Wrap(_ context.Context, _ []byte, key seal.Secret) ([]byte, error) {
	return append([]byte{1}, key.Expose()...), nil
}

func (twin) Unwrap(_ context.Context, _, wrapped []byte) (seal.Secret, error) {
	return seal.NewSecret(append([]byte(nil), wrapped[1:]...)), nil
}

// A key that was wiped while it was on its way is not moved, whatever a root holder makes of it.
func TestWipedKeysAreNotMoved(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	v := custody.Vault{Holder: w.Config.Holder, Genesis: w.Genesis, Read: w.Env.Ledger().Store().Key}
	keys, err := v.Unseal(context.Background(), w.Env.State(), w.Env.Ledger().Origin())
	if err != nil {
		t.Fatal(err)
	}
	v.Holder = twin{v.Holder}
	var rows []store.Key
	if rows, err = v.Moved(context.Background(), keys); err != nil || len(rows) != 1 {
		t.Fatal(err)
	}
	keys.Wipe()
	if _, err := v.Moved(context.Background(), keys); !problem.Is(err, problem.ReasonTampered) {
		t.Errorf("got %v", err)
	}
}
