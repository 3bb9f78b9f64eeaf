package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Bundles that take turns, as in a canary, are read and compiled once, and no ledger makes more of them be kept than a few.
func TestBundlesTakeTurns(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	blobs, reads := map[store.Digest][]byte{}, 0
	var all []state.Digest
	for i := range 2 * keptPrograms {
		w.Files["README.md"] = fmt.Append(nil, i)
		m, err := policy.BuildManifest(w.Files, policy.Header{Environment: controltest.EnvName, Genesis: policy.Digest(w.Genesis), Version: uint64(i) + 2, Previous: policy.Digest{1}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, state.Digest(m.Digest()))
		for _, data := range w.Files {
			blobs[sha256.Sum256(data)] = data
		}
		blobs[sha256.Sum256(m.Text())] = m.Text()
	}
	b := &bundles{ctx: context.Background(), report: new(Report), blob: func(_ context.Context, d store.Digest) ([]byte, error) {
		reads++
		return blobs[d], nil
	}}
	program := func(d state.Digest) *policy.Program {
		t.Helper()
		p, err := b.program(d)
		if err != nil || p == nil {
			t.Fatal(p, err)
		}
		return p
	}
	first, second := program(all[0]), program(all[1])
	once := reads
	for range 100 {
		if program(all[0]) != first || program(all[1]) != second {
			t.Fatal("a bundle is compiled again")
		}
	}
	if reads != once {
		t.Errorf("%d documents are read for what was read", reads-once)
	}
	for _, d := range all {
		program(d)
		if len(b.kept) > keptPrograms {
			t.Fatalf("%d bundles are kept", len(b.kept))
		}
	}
}

// A bundle that a newer release accepted is no tampering: it is said at which entry, and which file, line and field this one doesn't know.
func TestNewerBundle(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	w.Files["environment.yaml"] = []byte(strings.Replace(string(w.Files["environment.yaml"]), "\nspec:\n", "\nspec:\n  quantum: {safe: true}\n", 1))
	m, err := policy.BuildManifest(w.Files, policy.Header{Environment: controltest.EnvName, Genesis: policy.Digest(w.Genesis), Version: 2, Previous: policy.Digest{1}})
	if err != nil {
		t.Fatal(err)
	}
	blobs := map[store.Digest][]byte{sha256.Sum256(m.Text()): m.Text()}
	for _, data := range w.Files {
		blobs[sha256.Sum256(data)] = data
	}
	get := func(_ context.Context, d store.Digest) ([]byte, error) { return blobs[d], nil }
	r := &run{state: state.New(), bundles: bundles{ctx: context.Background(), report: new(Report), blob: get}}
	r.state.Bundle = state.Digest(m.Digest())
	err = blame(7, r.settled(new(state.BundleInForce)))
	var f *Fault
	if !problem.Is(err, problem.ReasonUnknownVersion) || !errors.As(err, &f) || f.Index != 7 || !strings.Contains(problem.As(err).WayOut(), "newer") {
		t.Fatalf("got %v", err)
	}
	for _, says := range []string{"entry 7", r.state.Bundle.String(), "environment.yaml:", `unknown field "quantum"`} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("it does not say %q: %v", says, err)
		}
	}
}
