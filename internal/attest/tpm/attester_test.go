package tpm

import (
	"bytes"
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// TestAttesterRefuses: what can't work is said before anything is attested, and nothing of the material is shown.
func TestAttesterRefuses(t *testing.T) {
	s := tpmtest.New(t, 0)
	dir := t.TempDir()
	plain := filepath.Join(dir, "canary-file")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificates[0].Raw})
	for name, m := range map[string]attest.Material{
		"no device":               {NeedDevice: []byte(filepath.Join(dir, "canary"))},
		"a file as device":        {NeedDevice: []byte(plain)},
		"a directory as device":   {NeedDevice: []byte(dir)},
		"no log":                  {NeedEventLog: []byte(filepath.Join(dir, "canary"))},
		"a directory as log":      {NeedEventLog: []byte(dir)},
		"no list":                 {NeedIMA: []byte(filepath.Join(dir, "canary"))},
		"unknown endorsement key": {NeedEndorsement: []byte("canary")},
		"certificate is text":     {NeedCertificate: []byte("canary")},
		"certificate is a key":    {NeedCertificate: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("canary")})},
		"certificate is none":     {NeedCertificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("canary")})},
		"certificate damaged":     {NeedCertificate: block[:len(block)/2]},
		"second one damaged":      {NeedCertificate: append(bytes.Clone(block), block[:len(block)/2]...)},
		"nine certificates":       {NeedCertificate: bytes.Repeat(block, 9)},
	} {
		if m[NeedDevice] == nil {
			m[NeedDevice] = []byte(s.Socket)
		}
		if _, err := NewAttester(m); !problem.Is(err, problem.ReasonInvalid) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
	a := attesterOf(t, s, attest.Material{NeedDevice: []byte(" " + s.Socket + "\n")})
	if _, err := a.Attest(context.Background(), binding()); !problem.Is(err, problem.ReasonInternal) {
		t.Error(err)
	}
	s.Stop()
	if _, err := a.Hello(context.Background()); !problem.Is(err, problem.ReasonUnreachable) || strings.Contains(err.Error(), s.Socket) {
		t.Errorf("a TPM that went away: %v", err)
	}
}

// TestAnswerRefuses: an agent believes no offer more than it must.
func TestAnswerRefuses(t *testing.T) {
	s := tpmtest.New(t, 0)
	log := bootTPM(t, s, typical("kernel 1", nil))
	a := attesterOf(t, s, attest.Material{NeedEventLog: log})
	good := goes(t, a, paramsOf(t, maker(s, nil)), binding())
	var o offer
	if err := attest.DecodeEvidence(good.offer, &o); err != nil {
		t.Fatal(err)
	}
	answer := func(b attest.Binding, said, offered []byte) error {
		_, err := a.Answer(context.Background(), b, said, offered)
		return err
	}
	for name, c := range map[string]struct {
		want   problem.Reason
		change func(*offer)
	}{
		"no PCRs":              {problem.ReasonInvalid, func(o *offer) { o.PCRs = nil }},
		"PCR 24":               {problem.ReasonInvalid, func(o *offer) { o.PCRs = []int{24} }},
		"PCR -1":               {problem.ReasonInvalid, func(o *offer) { o.PCRs = []int{-1} }},
		"PCRs twice":           {problem.ReasonInvalid, func(o *offer) { o.PCRs = []int{1, 1} }},
		"credential flipped":   {problem.ReasonBadProof, func(o *offer) { o.Credential[10] ^= 1 }},
		"secret flipped":       {problem.ReasonBadProof, func(o *offer) { o.Secret[10] ^= 1 }},
		"credential truncated": {problem.ReasonBadProof, func(o *offer) { o.Credential = o.Credential[:10] }},
	} {
		changed := offer{PCRs: o.PCRs, Credential: bytes.Clone(o.Credential), Secret: bytes.Clone(o.Secret)}
		c.change(&changed)
		raw, err := attest.EncodeEvidence(changed)
		if err != nil {
			t.Fatal(err)
		}
		if err := answer(binding(), good.hello, raw); !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wrong := binding()
	wrong.Method = "x509"
	for name, err := range map[string]error{
		"no offer":       answer(binding(), good.hello, nil),
		"huge offer":     answer(binding(), good.hello, make([]byte, maxOffer+1)),
		"no hello":       answer(binding(), nil, good.offer),
		"not a hello":    answer(binding(), []byte(`{"ek":"","chain":[],"ak":"","resets":0,"restarts":0}`), good.offer),
		"no binding":     answer(attest.Binding{}, good.hello, good.offer),
		"another method": answer(wrong, good.hello, good.offer),
	} {
		if err == nil {
			t.Errorf("%s: answered", name)
		}
	}
	if n := s.Loaded(); n != 0 {
		t.Errorf("%d objects or sessions were left in the TPM", n)
	}
	// A log that was asked for and is gone, or has grown too large, isn't left out silently.
	if err := os.WriteFile(string(log), make([]byte, MaxEventLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := answer(binding(), good.hello, good.offer); !problem.Is(err, problem.ReasonInvalid) {
		t.Error(err)
	}
	if err := os.Remove(string(log)); err != nil {
		t.Fatal(err)
	}
	if err := answer(binding(), good.hello, good.offer); !problem.Is(err, problem.ReasonInvalid) {
		t.Error(err)
	}
}

// TestExtendedPCR is what a machine's owner sees: a PCR is extended, and the same machine that was known is no more, in words.
func TestExtendedPCR(t *testing.T) {
	s := tpmtest.New(t, 0)
	log := bootTPM(t, s, typical("kernel 1", nil))
	p := paramsOf(t, maker(s, func(a *authority.Authority) {
		a.PCRs = []int{4, 7, 8, 9, 16}
		r := reference("1", "kernel 1")
		r.PCRs = map[int][][32]byte{16: {{}}}
		a.References = []authority.Reference{r}
	}))
	a := attesterOf(t, s, attest.Material{NeedEventLog: log})
	boot := func() (any, string) {
		res, err := Verify(goes(t, a, p, binding()).input())
		if err != nil {
			t.Fatal(err)
		}
		b := res.Claims["boot"].(map[string]any)
		text := ""
		for _, f := range b["findings"].([]any) {
			text += f.(string)
		}
		return b["reference"], text
	}
	if got, text := boot(); got != "known" {
		t.Fatal(got, text)
	}
	s.Extend(16, sum("tampered"))
	if got, text := boot(); got != "bad" || !strings.Contains(text, "PCR 16 (free) has another value than in reference web 1") {
		t.Error(got, text)
	}
	// Of a PCR that only the boot extends, the log has everything; what is not in it is refused outright.
	s.Extend(4, sum("tampered"))
	refused(t, "PCR 4 extended", goes(t, a, p, binding()).input(), problem.ReasonEventLog, "PCR 4")
}
