// Package holdertest is the contract of keyring.Holder, executable. Every kind of holder passes
// Run before it gets its row in the table. It guarantees what it checks, and no more: a holder
// that shows its key to others can still pass. It is imported by tests only.
package holdertest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// T is the part of testing.T that the suite needs, so that its own test can see it fail.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Context() context.Context
}

// Run checks a holder. Make returns a holder with a new root key, and a function that opens the
// same root key again, as after a restart.
func Run(t T, make func() (h keyring.Holder, reopen func() keyring.Holder)) {
	t.Helper()
	h, reopen := make()
	other, _ := make()
	checkDescriptor(t, h, other, reopen())
	checkWrap(t, h, reopen())
	checkBinding(t, h, other)
	checkDamage(t, h)
	checkConcurrent(t, h)
}

var (
	ctxA, _ = seal.KeyContext{Genesis: [32]byte{1}, Name: "kek", Number: 1}.Encode()
	ctxB, _ = seal.KeyContext{Genesis: [32]byte{1}, Name: "kek", Number: 2}.Encode()
)

func checkDescriptor(t T, h, other, again keyring.Holder) {
	d := h.Descriptor()
	if d.Kind == "" || d.ID == "" || len(d.ID) > keyring.MaxID {
		t.Errorf("descriptor %+v is incomplete or too long", d)
	}
	if again.Descriptor() != d {
		t.Errorf("descriptor changes when opened again: %+v, %+v", d, again.Descriptor())
	}
	if other.Descriptor().ID == d.ID {
		t.Errorf("two root keys have the ID %s", d.ID)
	}
}

func checkWrap(t T, h, again keyring.Holder) {
	for _, n := range []int{1, seal.KeySize, seal.MaxKey} {
		key := seal.NewSecret(bytes.Repeat([]byte{0xc5}, n))
		a, err := h.Wrap(t.Context(), ctxA, key)
		if err != nil {
			t.Fatalf("wrap %d bytes: %v", n, err)
		}
		b, err := h.Wrap(t.Context(), ctxA, key)
		if err != nil || bytes.Equal(a, b) {
			t.Errorf("wrapping twice gives the same bytes (%v)", err)
		}
		if n >= 16 && bytes.Contains(a, key.Expose()) {
			t.Errorf("a wrapped key of %d bytes is readable", n)
		}
		if key.Len() != n {
			t.Fatalf("wrap took the caller's key away")
		}
		for _, holder := range []keyring.Holder{h, again} {
			got, err := holder.Unwrap(t.Context(), ctxA, a)
			if err != nil || !got.Equal(key) {
				t.Errorf("unwrap %d bytes: %v", n, err)
			}
			got.Wipe()
		}
	}
	for _, n := range []int{0, seal.MaxKey + 1} {
		if _, err := h.Wrap(t.Context(), ctxA, seal.NewSecret(bytes.Repeat([]byte{1}, n))); err == nil {
			t.Errorf("wrapped a key of %d bytes", n)
		}
	}
}

// refused checks an Unwrap that must fail: by the right reason, without a value or a leak of it.
func refused(t T, what string, key, got seal.Secret, err error) {
	t.Helper()
	if !problem.Is(err, problem.ReasonTampered) {
		t.Errorf("%s: got %v, want reason tampered", what, err)
	}
	if got.Len() != 0 {
		t.Errorf("%s: gave a key together with an error", what)
	}
	if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, string(key.Expose())) {
		t.Errorf("%s: the error holds the key", what)
	}
}

func checkBinding(t T, h, other keyring.Holder) {
	key := seal.NewSecret([]byte("key-of-holdertest-key-of-holdert"))
	wrapped, err := h.Wrap(t.Context(), ctxA, key)
	if err != nil {
		t.Fatalf("wrap: %v", err)
	}
	for name, c := range map[string][]byte{"other": ctxB, "no": nil, "cut": ctxA[:len(ctxA)-1], "longer": append(bytes.Clone(ctxA), 0)} {
		got, err := h.Unwrap(t.Context(), c, wrapped)
		refused(t, "unwrap with "+name+" context", key, got, err)
	}
	got, err := other.Unwrap(t.Context(), ctxA, wrapped)
	refused(t, "unwrap by another holder", key, got, err)
}

func checkDamage(t T, h keyring.Holder) {
	key := seal.NewSecret([]byte("key-of-holdertest-key-of-holdert"))
	wrapped, err := h.Wrap(t.Context(), ctxA, key)
	if err != nil {
		t.Fatalf("wrap: %v", err)
	}
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1 << (i % 8)
		got, err := h.Unwrap(t.Context(), ctxA, bad)
		refused(t, fmt.Sprintf("byte %d changed", i), key, got, err)
	}
	for name, bad := range map[string][]byte{"nothing": nil, "cut": wrapped[:len(wrapped)-1], "longer": append(bytes.Clone(wrapped), 0), "huge": bytes.Repeat([]byte{1}, 1<<20)} {
		got, err := h.Unwrap(t.Context(), ctxA, bad)
		refused(t, name, key, got, err)
	}
}

func checkConcurrent(t T, h keyring.Holder) {
	var wg sync.WaitGroup
	for i := range byte(8) {
		wg.Go(func() {
			key := seal.NewSecret(bytes.Repeat([]byte{i + 1}, seal.KeySize))
			for range 20 {
				wrapped, err := h.Wrap(t.Context(), ctxA, key)
				if err != nil {
					t.Errorf("concurrent wrap: %v", err)
					return
				}
				if got, err := h.Unwrap(t.Context(), ctxA, wrapped); err != nil || !got.Equal(key) {
					t.Errorf("concurrent unwrap: another key, or %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}
