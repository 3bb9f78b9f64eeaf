package hostile

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/sevsnp"
	"github.com/bailment/bailment/internal/attest/sevsnp/snptest"
	"github.com/bailment/bailment/internal/attest/tdx"
	"github.com/bailment/bailment/internal/attest/tdx/tdxtest"
	"github.com/bailment/bailment/internal/attest/tpm"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/problem"
)

const cryptoSHA256 = crypto.SHA256

func sum256(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// amd are the confidential machines of AMD.
func amd(t testing.TB) kit {
	chip := snptest.New(t, time.Now(), snptest.Maker{})
	by := func(c *snptest.Chip, b attest.Binding) []byte {
		a, err := sevsnp.NewAttester(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		return attested(t, a, b)
	}
	k := kit{
		method: sevsnp.Name, spec: specPEM(chip.Roots...), challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
		good: func(_ *house, b attest.Binding) []byte { return by(chip, b) },
	}
	of := func(name string, want problem.Reason, c *snptest.Chip) {
		k.attacks = append(k.attacks, attack{name, want, func(_ *house, b attest.Binding) []byte { return by(c, b) }})
	}
	of("roots of the same names", problem.ReasonBadChain, snptest.New(t, time.Now(), snptest.Maker{Rogue: true}))
	of("another line's chip", problem.ReasonBadChain, snptest.New(t, time.Now(), snptest.Maker{Line: "Genoa"}))
	of("an expired certificate", problem.ReasonBadChain, snptest.New(t, time.Now(), snptest.Maker{Change: overdue}))
	of("a certificate from the future", problem.ReasonBadChain, snptest.New(t, time.Now(), snptest.Maker{Change: early}))
	changed := func(name string, want problem.Reason, change func([]byte)) {
		c := *chip
		c.Change = change
		of(name, want, &c)
	}
	changed("a machine that its host may debug", problem.ReasonBadProof, func(r []byte) { r[0x0A] |= 1 << 3 })
	changed("asked for by the host", problem.ReasonBadProof, func(r []byte) { binary.LittleEndian.PutUint32(r[0x30:], 0xFFFFFFFF) })
	changed("another chip's ID", problem.ReasonBadChain, func(r []byte) { r[0x1A0] ^= 1 })
	edit := func(name string, want problem.Reason, change func(map[string]json.RawMessage)) {
		k.attacks = append(k.attacks, attack{name, want, func(_ *house, b attest.Binding) []byte { return edited(t, by(chip, b), change) }})
	}
	edit("another measurement, changed after signing", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["report"] = flipped(t, f["report"], 0x90) })
	edit("the root as the chip's certificate", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["certificate"] = encode(t, chip.Roots[1].Raw) })
	edit("swapped key", problem.ReasonBadProof, func(f map[string]json.RawMessage) {
		f["certificate"] = encode(t, snptest.New(t, time.Now(), snptest.Maker{}).Certificate.Raw)
	})
	edit("a report cut off", problem.ReasonInvalid, func(f map[string]json.RawMessage) { f["report"] = encode(t, make([]byte, 100)) })
	return k
}

// intel are the confidential machines of Intel.
func intel(t testing.TB) kit {
	mine := tdxtest.New(t, time.Now(), tdxtest.Maker{})
	by := func(p *tdxtest.Platform, b attest.Binding) []byte { return attested(t, tdx.NewAttester(p), b) }
	// The bundle names these roots too, so that nothing is wrong with their machines but the time.
	old := tdxtest.New(t, time.Now(), tdxtest.Maker{ChangePCK: overdue})
	young := tdxtest.New(t, time.Now(), tdxtest.Maker{ChangeIssuer: early})
	k := kit{
		method: tdx.Name, spec: specPEM(mine.Root, old.Root, young.Root), challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
		good: func(_ *house, b attest.Binding) []byte { return by(mine, b) },
	}
	of := func(name string, want problem.Reason, p *tdxtest.Platform) {
		k.attacks = append(k.attacks, attack{name, want, func(_ *house, b attest.Binding) []byte { return by(p, b) }})
	}
	foreign := tdxtest.New(t, time.Now(), tdxtest.Maker{})
	of("a root of the same name", problem.ReasonBadChain, foreign)
	of("an expired certificate", problem.ReasonBadChain, old)
	of("an issuer's certificate from the future", problem.ReasonBadChain, young)
	changed := func(name string, want problem.Reason, change func(*tdxtest.Platform)) {
		p := *mine
		change(&p)
		of(name, want, &p)
	}
	changed("another platform's chain, with our root behind it", problem.ReasonBadChain, func(p *tdxtest.Platform) {
		p.Chain = append(bytes.Clone(foreign.Chain[:bytes.LastIndex(foreign.Chain, []byte("-----BEGIN"))]), mine.Chain[bytes.LastIndex(mine.Chain, []byte("-----BEGIN")):]...)
		p.PCK = foreign.PCK
	})
	changed("a machine that its host may debug", problem.ReasonBadProof, func(p *tdxtest.Platform) { p.ChangeBody = func(b []byte) { b[48+120] |= 1 } })
	changed("another enclave", problem.ReasonBadProof, func(p *tdxtest.Platform) { p.ChangeEnclave = func(b []byte) { b[128] ^= 1 } })
	changed("swapped key of the platform", problem.ReasonBadProof, func(p *tdxtest.Platform) { p.PCK = foreign.PCK })
	edit := func(name string, want problem.Reason, change func(map[string]json.RawMessage)) {
		k.attacks = append(k.attacks, attack{name, want, func(_ *house, b attest.Binding) []byte { return edited(t, by(mine, b), change) }})
	}
	edit("another measurement, changed after signing", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["quote"] = flipped(t, f["quote"], 48+136) })
	edit("downgraded to version 3", problem.ReasonInvalid, func(f map[string]json.RawMessage) {
		var q []byte
		if err := json.Unmarshal(f["quote"], &q); err != nil {
			t.Fatal(err)
		}
		q[0] = 3
		f["quote"] = encode(t, q)
	})
	edit("a quote cut off", problem.ReasonInvalid, func(f map[string]json.RawMessage) { f["quote"] = encode(t, make([]byte, 700)) })
	return k
}

// chips are the machines with a TPM. There are two, and the bundle lists the first one's endorsement keys.
func chips(t testing.TB) kit {
	mine, foreign := tpmtest.New(t, 0), tpmtest.New(t, 1)
	spec := "  endorsementKeys:\n"
	for _, d := range mine.EndorsementKeys() {
		spec += fmt.Sprintf("    - %q\n", attest.DigestText(d))
	}
	greeter := func(s *tpmtest.TPM) attest.Greeter {
		m := tpm.Method()
		a, err := m.NewAttester(attest.Material{tpm.NeedDevice: []byte(s.Socket)})
		if err != nil {
			t.Fatal(err)
		}
		g, ok := a.(attest.Greeter)
		if !ok {
			t.Fatal("it does not greet")
		}
		return g
	}
	first, second := greeter(mine), greeter(foreign)
	hello := func(g attest.Greeter) []byte {
		out, err := g.Hello(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	good := func(h *house, b attest.Binding) []byte {
		t.Helper()
		said := hello(first)
		offer, err := h.Env.Offer(context.Background(), tpm.Name, b.Nonce, said)
		if err != nil {
			t.Fatal(err)
		}
		out, err := first.Answer(context.Background(), b, said, offer)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	k := kit{
		method: tpm.Name, spec: spec, good: good,
		challenge: problem.ReasonBadProof, key: problem.ReasonBadProof, environment: problem.ReasonBadProof,
	}
	edit := func(name string, want problem.Reason, change func(map[string]json.RawMessage)) {
		k.attacks = append(k.attacks, attack{name, want, func(h *house, b attest.Binding) []byte { return edited(t, good(h, b), change) }})
	}
	edit("another quote", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["quoted"] = flipped(t, f["quoted"], -40) })
	edit("another signature", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["signature"] = flipped(t, f["signature"], -1) })
	edit("other registers", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["pcrs"] = flipped(t, f["pcrs"], 0) })
	edit("another proof", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["proof"] = flipped(t, f["proof"], 0) })
	edit("an endorsement key of another TPM", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["hello"] = mixed(t, f["hello"], hello(second), "ek") })
	edit("an attestation key of another TPM", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["hello"] = mixed(t, f["hello"], hello(second), "ak") })
	edit("the other TPM altogether", problem.ReasonBadProof, func(f map[string]json.RawMessage) { f["hello"] = hello(second) })
	edit("a reset that did not happen", problem.ReasonBadProof, func(f map[string]json.RawMessage) {
		f["hello"] = edited(t, f["hello"], func(h map[string]json.RawMessage) { h["resets"] = json.RawMessage("4242") })
	})
	return k
}

// mixed is a hello with one field of another.
func mixed(t testing.TB, one, other []byte, field string) []byte {
	t.Helper()
	theirs, _ := members(t, other)
	return edited(t, one, func(f map[string]json.RawMessage) { f[field] = theirs[field] })
}
