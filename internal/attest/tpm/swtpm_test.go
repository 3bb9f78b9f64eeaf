package tpm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
)

func array(b byte) [32]byte { return attesttest.Array(b) }

func binding() attest.Binding { return attesttest.Binding(Name) }

// secretOf is a server's rule for the offer's secret.
func secretOf(said []byte) [32]byte { return sha256.Sum256(append([]byte("test secret "), said...)) }

// today is the real time, as swtpm's certificates begin when they are made; an hour later, for their time zone.
func today() time.Time { return time.Now().Add(time.Hour) }

// bootTPM extends a TPM as the log says, and gives the log's file.
func bootTPM(t testing.TB, s *tpmtest.TPM, l *logBuilder) []byte {
	t.Helper()
	for _, e := range l.events {
		if e.kind != evNoAction {
			s.Extend(e.pcr, e.digest)
		}
	}
	path := filepath.Join(t.TempDir(), "eventlog")
	if err := os.WriteFile(path, l.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return []byte(path)
}

func attesterOf(t testing.TB, s *tpmtest.TPM, extra attest.Material) *attester {
	t.Helper()
	m := attest.Material{NeedDevice: []byte(s.Socket)}
	for k, v := range extra {
		m[k] = v
	}
	a, err := NewAttester(m)
	if err != nil {
		t.Fatal(err)
	}
	return a.(*attester)
}

func maker(s *tpmtest.TPM, change func(*authority.Authority)) authority.Authority {
	a := authority.Authority{Name: "maker", Method: Name, Certificates: []*x509.Certificate{s.Issuing}}
	if change != nil {
		change(&a)
	}
	return a
}

func paramsOf(t testing.TB, all ...authority.Authority) Params {
	t.Helper()
	p, err := NewParams(all)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func offerInput(p Params, said []byte) attest.OfferInput {
	return attest.OfferInput{Hello: said, Secret: secretOf(said), Random: rand.Reader, Now: today(), Params: p}
}

// round is both rounds as a server and an agent go through them, with everything in reach of a test that cheats.
type round struct {
	params               Params
	binding              attest.Binding
	hello, offer, answer []byte
	now                  time.Time
}

// goes takes an attester through both rounds.
func goes(t testing.TB, a *attester, p Params, b attest.Binding) round {
	t.Helper()
	r := round{params: p, binding: b, now: today()}
	ctx := context.Background()
	var err error
	if r.hello, err = a.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	if r.offer, err = Offer(offerInput(p, r.hello)); err != nil {
		t.Fatal(err)
	}
	if r.answer, err = a.Answer(ctx, b, r.hello, r.offer); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r round) input() attest.Input {
	return attest.Input{Binding: r.binding, Evidence: r.answer, Now: r.now, Params: r.params, Secret: secretOf}
}

// edit changes evidence and makes the proof anew, as a machine that lies would: it knows the secret.
func (r round) edit(t testing.TB, change func(*evidence)) attest.Input {
	t.Helper()
	ev := r.open(t)
	change(&ev)
	in := r.input()
	in.Evidence = seal(t, r.binding, ev)
	return in
}

func (r round) open(t testing.TB) evidence {
	t.Helper()
	var ev evidence
	if err := attest.DecodeUpTo(MaxEvidence, r.answer, &ev); err != nil {
		t.Fatal(err)
	}
	return ev
}

func seal(t testing.TB, b attest.Binding, ev evidence) []byte {
	t.Helper()
	said, err := attest.EncodeUpTo(MaxEvidence, ev.Hello)
	if err != nil {
		t.Fatal(err)
	}
	if ev.Proof, err = proofOf(secretOf(said), b, ev); err != nil {
		t.Fatal(err)
	}
	out, err := attest.EncodeUpTo(2*MaxEvidence, ev)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
