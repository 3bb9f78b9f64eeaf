// Package attesttest is what the tests of all attestation methods share: the binding and the time that they start from, tables of
// hostile evidence, and what every attester must refuse.
//
// Guaranteed: a refusal passes only by its exact reason, with no result beside it, and if its message doesn't quote the evidence: what a
// stranger could have written holds Canary. Not guaranteed: that a table is complete. Only tests import it.
package attesttest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// Canary stands in strangers' texts, and in no refusal.
const Canary = "canary"

// Now is the time of the tests, and of the vectors.
func Now() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

// Array is 32 times the byte.
func Array(b byte) [32]byte { return [32]byte(bytes.Repeat([]byte{b}, 32)) }

// Binding is the one to which good evidence of the method is bound.
func Binding(method string) attest.Binding {
	return attest.Binding{Method: method, Genesis: Array(1), Nonce: bytes.Repeat([]byte{7}, 32), SessionKey: Array(9)}
}

// Key is a key that is the same in each run. It is for tests only: everything made with it is public.
func Key(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("bailment test key " + label))
	return ed25519.NewKeyFromSeed(seed[:])
}

// RSA makes an RSA key. Finding primes is slow: keep it.
func RSA(bits int) *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

// Hostile is evidence that must be refused.
type Hostile struct {
	Evidence []byte
	Change   func(*attest.Input) // what else is not as it should be; nil: nothing
	Want     problem.Reason
	Says     string // what the message holds
}

// RefuseAll has verify refuse each by its reason, in the input that the method makes of evidence.
func RefuseAll(t *testing.T, verify attest.Verifier, input func(evidence []byte) attest.Input, all map[string]Hostile) {
	t.Helper()
	for name, h := range all {
		t.Run(name, func(t *testing.T) {
			in := input(h.Evidence)
			if h.Change != nil {
				h.Change(&in)
			}
			Refuse(t, verify, in, h.Want, h.Says)
		})
	}
}

// Refuse has verify refuse one input.
func Refuse(t *testing.T, verify attest.Verifier, in attest.Input, want problem.Reason, says string) {
	t.Helper()
	res, err := verify(in)
	if !problem.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v\nwant %s with %q", err, want, says)
	}
	if strings.Contains(err.Error(), Canary) {
		t.Fatalf("the refusal quotes the evidence: %v", err)
	}
	if !reflect.DeepEqual(res, attest.Result{}) {
		t.Fatalf("a result beside the refusal: %+v", res)
	}
}

// Rebound are the changes of a binding that make evidence another's: that of another challenge, environment and session key.
func Rebound() map[string]func(*attest.Binding) {
	return map[string]func(*attest.Binding){
		"replayed for another challenge": func(b *attest.Binding) { b.Nonce = bytes.Repeat([]byte{8}, 32) },
		"another environment":            func(b *attest.Binding) { b.Genesis = Array(2) },
		"another session key":            func(b *attest.Binding) { b.SessionKey = Array(8) },
	}
}

// Attester has the method's attester refuse what no attester may begin with: another method's binding, an incomplete one, and a context
// that has ended.
func Attester(t *testing.T, a attest.Attester, method string) {
	t.Helper()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wrong := Binding("another-method")
	incomplete := Binding(method)
	incomplete.Nonce = nil
	for name, c := range map[string]struct {
		ctx  context.Context
		b    attest.Binding
		want problem.Reason
	}{
		"another method":        {t.Context(), wrong, problem.ReasonInternal},
		"an incomplete binding": {t.Context(), incomplete, problem.ReasonInvalid},
		"no binding":            {t.Context(), attest.Binding{}, problem.ReasonInvalid},
		"cancelled":             {ended, Binding(method), problem.ReasonCanceled},
	} {
		if ev, err := a.Attest(c.ctx, c.b); !problem.Is(err, c.want) || ev != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
