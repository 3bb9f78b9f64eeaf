package controltest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Recoverable is environment.yaml with a recovery by persons, who get keys if they have none.
func (w *World) Recoverable(environment []byte, required int, delay time.Duration, persons ...string) []byte {
	w.T.Helper()
	out := fmt.Appendf(bytes.Clone(environment), "  recovery:\n    required: %d\n    delay: %s\n    keys:\n", required, delay)
	for _, p := range persons {
		if w.Persons[p] == nil {
			w.AddPerson(p)
		}
		out = fmt.Appendf(out, "      - {person: %s, key: %q}\n", p, bytes.TrimSpace(ssh.MarshalAuthorizedKey(w.Persons[p].PublicKey())))
	}
	return out
}

// InForce are the manifest and the files in force, as they are stored.
func (w *World) InForce() (*policy.Manifest, policy.Files) {
	w.T.Helper()
	blob := func(d policy.Digest) ([]byte, error) {
		return w.Env.Ledger().Store().Blob(context.Background(), store.Digest(d))
	}
	text, err := blob(policy.Digest(w.Env.State().Bundle))
	w.check(err)
	m, err := policy.ParseManifest(text)
	w.check(err)
	files, err := m.Fetch(blob)
	w.check(err)
	return m, files
}

// RecoveryOf is what the holders of recovery keys sign to have these operators.
func (w *World) RecoveryOf(operators []byte) ceremony.Recovery {
	w.T.Helper()
	base, files := w.InForce()
	m, after, err := policy.Recovered(base, policy.Digest(w.Genesis), files, operators)
	w.check(err)
	before, err := policy.CompileRecovered(files)
	w.check(err)
	compiled, err := policy.CompileRecovered(after)
	w.check(err)
	by := before.Environment().Recovery
	return ceremony.Recovery{
		Scope: w.Scope(), Base: base.Digest().String(), New: m.Digest().String(), Operators: policy.OperatorsDigest(operators).String(),
		Required: by.Required, Delay: by.Delay, Nonce: Nonce(), Expires: w.Now().Add(time.Hour).UTC().Truncate(time.Second), Reason: "test",
		Before: before.Persons(), After: compiled.Persons(),
	}
}

// Recover begins a recovery that persons signed.
func (w *World) Recover(r ceremony.Recovery, operators []byte, persons ...string) (*control.Recovering, error) {
	w.T.Helper()
	ask := control.RecoveryRequest{Text: r.Text(), Operators: operators}
	for _, p := range persons {
		ask.Signatures = append(ask.Signatures, state.Signature{Person: p, SSHSIG: w.Sign(p, ceremony.NamespaceRecovery, ask.Text)})
	}
	return w.Env.Recover(context.Background(), ask)
}

// WithdrawalOf is what a person signs to end the recovery that is under way.
func (w *World) WithdrawalOf(person string) ceremony.Withdrawal {
	w.T.Helper()
	r := w.Env.State().Recovery()
	if r == nil {
		w.T.Fatal("there is no recovery")
	}
	return ceremony.Withdrawal{Scope: w.Scope(), Recovery: r.Index, New: r.Manifest.String(), Person: person, Reason: "test"}
}

// Withdraw ends the recovery that is under way, signed by a person.
func (w *World) Withdraw(x ceremony.Withdrawal, person string) (uint64, error) {
	w.T.Helper()
	text := x.Text()
	return w.Env.WithdrawRecovery(context.Background(), text, state.Signature{SSHSIG: w.Sign(person, ceremony.NamespaceRecovery, text)})
}

// recoveries are three: one that is withdrawn, one that an approved change ends, and one that is carried out. What came for them goes with
// the next change.
func (h *history) recoveries() {
	w := h.w
	h.pass(0)
	files := maps.Clone(w.Files)
	files["environment.yaml"] = w.Recoverable(files["environment.yaml"], 2, time.Hour, "rita", "sam", "tess")
	h.roll(files)
	w.AddPerson("dora")
	operators := w.Operators("alice", "bob", "dora")
	begin := func(persons ...string) {
		_, err := w.Recover(w.RecoveryOf(operators), operators, persons...)
		h.check(err)
	}
	begin("sam", "rita")
	_, err := w.Withdraw(w.WithdrawalOf("sam"), "sam")
	h.check(err)
	begin("rita", "tess")
	files["README.md"] = []byte("It ends what is under way.\n")
	h.roll(files)
	begin("tess", "sam")
	w.Advance(2 * time.Hour)
	_, err = w.Env.CarryOutRecovery(h.ctx)
	h.check(err)
	if _, ok := w.Env.Program().Operator("dora"); !ok || w.Env.State().Recovery() != nil {
		w.T.Fatal("the recovery was not carried out")
	}
	h.pass(0)
	h.roll(w.Files)
}
