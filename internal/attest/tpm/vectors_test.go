package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "record testdata/vectors.json anew, from software TPMs")

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us. They were recorded once from a
// software TPM, and need none to be checked.
type vector struct {
	attesttest.Bound
	Authorities []vectorAuthority `json:"authorities"`
	Secret      []byte            `json:"secret"` // of the offer to the evidence's hello
	attesttest.Case
	Assurance   string   `json:"assurance,omitempty"`
	Executables [][]byte `json:"executables,omitempty"`
}

type vectorAuthority struct {
	Name            string            `json:"name"`
	Certificates    string            `json:"certificates,omitempty"` // PEM
	EndorsementKeys [][]byte          `json:"endorsement_keys,omitempty"`
	PCRs            []int             `json:"pcrs,omitempty"`
	References      []vectorReference `json:"references,omitempty"`
}

type vectorReference struct {
	Name    string              `json:"name"`
	Version string              `json:"version"`
	From    time.Time           `json:"from,omitzero"`
	Until   time.Time           `json:"until,omitzero"`
	PCRs    map[string][][]byte `json:"pcrs,omitempty"`
	Events  [][]byte            `json:"events,omitempty"`
	Signers [][]byte            `json:"signers,omitempty"`
}

func (v vectorAuthority) authority(t testing.TB) authority.Authority {
	t.Helper()
	a := authority.Authority{Name: v.Name, Method: Name, PCRs: v.PCRs}
	if v.Certificates != "" {
		var err error
		if a.Certificates, err = authority.Parse([]byte(v.Certificates)); err != nil {
			t.Fatal(err)
		}
	}
	a.EndorsementKeys = digests(v.EndorsementKeys)
	for _, r := range v.References {
		ref := authority.Reference{Name: r.Name, Version: r.Version, From: r.From, Until: r.Until, Events: digests(r.Events), Signers: digests(r.Signers)}
		for pcr, values := range r.PCRs {
			n, err := strconv.Atoi(pcr)
			if err != nil {
				t.Fatal(err)
			}
			if ref.PCRs == nil {
				ref.PCRs = map[int][][32]byte{}
			}
			ref.PCRs[n] = digests(values)
		}
		a.References = append(a.References, ref)
	}
	return a
}

func digests(list [][]byte) [][32]byte {
	var out [][32]byte
	for _, d := range list {
		out = append(out, [32]byte(d))
	}
	return out
}

func slicesOf(list [][32]byte) [][]byte {
	var out [][]byte
	for _, d := range list {
		out = append(out, d[:])
	}
	return out
}

func (v vector) Input(t testing.TB) attest.Input {
	t.Helper()
	var all []authority.Authority
	for _, a := range v.Authorities {
		all = append(all, a.authority(t))
	}
	in := v.InputOf(Name, v.Case, paramsOf(t, all...))
	in.Secret = func([]byte) [32]byte { return [32]byte(v.Secret) }
	return in
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 12) }

func TestVectors(t *testing.T) {
	if *update {
		recordVectors(t)
	}
	for _, v := range readVectors(t) {
		res := attesttest.Check(t, Verify, v.Comment, v)
		if v.Refused != "" {
			continue
		}
		if res.Assurance.String() != v.Assurance || len(res.Executables) != len(v.Executables) {
			t.Errorf("%s: %s, %d executables", v.Comment, res.Assurance, len(res.Executables))
		}
		for _, d := range digests(v.Executables) {
			if !res.Executables[d] {
				t.Errorf("%s: %x was not measured", v.Comment, d)
			}
		}
	}
}

// recorder makes vectors of what a software TPM does.
type recorder struct {
	t  *testing.T
	vs []vector
}

func (rec *recorder) add(comment string, a vectorAuthority, in attest.Input, refused problem.Reason) {
	rec.t.Helper()
	var ev evidence
	if err := attest.DecodeUpTo(MaxEvidence, in.Evidence, &ev); err != nil {
		rec.t.Fatal(err)
	}
	said, err := attest.EncodeUpTo(maxHello, ev.Hello)
	if err != nil {
		rec.t.Fatal(err)
	}
	secret := in.Secret(said)
	v := vector{
		Bound: attesttest.BoundTo(comment, in.Binding), Authorities: []vectorAuthority{a}, Secret: secret[:],
		Case: attesttest.Case{Now: in.Now, Evidence: string(in.Evidence), Refused: refused},
	}
	res := v.Record(rec.t, Verify, v.Input(rec.t))
	if refused == "" {
		v.Assurance = res.Assurance.String()
		for d := range res.Executables {
			v.Executables = append(v.Executables, d[:])
		}
	}
	rec.vs = append(rec.vs, v)
}

// recordVectors writes the file anew. Signatures are randomized, so the stored file is what counts.
func recordVectors(t *testing.T) {
	rec := &recorder{t: t}
	s, other := tpmtest.New(t, 0), tpmtest.New(t, 1)
	certificate := func(s *tpmtest.TPM) vectorAuthority {
		return vectorAuthority{Name: "maker", Certificates: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Issuing.Raw}))}
	}
	l := typical("kernel 1", s.Root.Raw)
	path := bootTPM(t, s, l)
	known := certificate(s)
	ref := reference("1", "kernel 1")
	known.References = []vectorReference{{Name: ref.Name, Version: ref.Version, Events: slicesOf(ref.Events)}}
	a := attesterOf(t, s, attest.Material{NeedEventLog: path})
	key, _, err := a.NewKey(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	b := binding()
	if b.SessionKey, err = attest.Thumbprint(key.Public()); err != nil {
		t.Fatal(err)
	}
	r := goes(t, a, paramsOf(t, known.authority(t)), b)
	r.now = r.now.UTC().Truncate(time.Second)
	rec.add("accepted: ECC P-384 endorsement key, event log, known boot, session key in the TPM", known, r.input(), "")
	updated := known
	newer := reference("2", "kernel 2")
	signer := sha256.Sum256(s.Root.Raw)
	updated.References = []vectorReference{
		{Name: ref.Name, Version: ref.Version, Events: slicesOf(ref.Events), Until: r.now},
		{Name: newer.Name, Version: newer.Version, Events: slicesOf(newer.Events), Signers: [][]byte{signer[:]}},
	}
	rec.add("accepted: the set that fits has ended, but Secure Boot verified the kernel by a signer of the new one", updated, r.input(), "")
	unsigned := updated
	unsigned.References = []vectorReference{{Name: newer.Name, Version: newer.Version, Events: slicesOf(newer.Events)}}
	rec.add("accepted, and bad: the kernel is in no set that is open", unsigned, r.input(), "")

	rsaKey := attesterOf(t, s, attest.Material{NeedEndorsement: []byte("rsa-2048")})
	byRSA := goes(t, rsaKey, paramsOf(t, certificate(s).authority(t)), binding())
	byRSA.now = r.now
	rec.add("accepted: RSA-2048 endorsement key, no event log, session key in software", certificate(s), byRSA.input(), "")
	listed := vectorAuthority{Name: "list", EndorsementKeys: slicesOf(s.EndorsementKeys()), PCRs: []int{4, 7, ima.PCR}}
	rec.add("accepted: IMA's list, endorsement key listed by its digest", listed, recordIMA(t, s, listed.authority(t), r.now), "")
	recordRefusals(rec, r, known, other, certificate(other))

	attesttest.Write(t, rec.vs)
}

// recordIMA has the TPM quote a PCR 10 that three entries were extended into. The test's own program is in no list of a file that is
// kept, so the list is put together here.
func recordIMA(t *testing.T, s *tpmtest.TPM, a authority.Authority, now time.Time) attest.Input {
	t.Helper()
	list := &ima.List{Start: make([]byte, 32)}
	for i, name := range []string{"boot_aggregate", "/usr/bin/bailment", "/usr/bin/later"} {
		data := tpmtest.IMAData(sum(name), name)
		d := sha256.Sum256(data)
		s.Extend(ima.PCR, d)
		list.Digests = append(list.Digests, d[:]...)
		if i == 1 {
			list.Entries = []ima.Entry{{At: 1, Data: data}}
		}
	}
	r := goes(t, attesterOf(t, s, nil), paramsOf(t, a), binding())
	r.now = now
	return r.edit(t, func(ev *evidence) { ev.IMA = list })
}

func recordRefusals(rec *recorder, r round, a vectorAuthority, other *tpmtest.TPM, othersCA vectorAuthority) {
	t := rec.t
	foreign := goes(t, attesterOf(t, other, nil), paramsOf(t, othersCA.authority(t)), r.binding).open(t)
	rec.add("another TPM's certificates", othersCA, r.input(), problem.ReasonBadChain)
	in := r.input()
	in.Binding.Nonce = bytes.Repeat([]byte{8}, 32)
	rec.add("another nonce", a, in, problem.ReasonBadProof)
	in.Evidence = seal(t, in.Binding, r.open(t))
	rec.add("another nonce, proof made anew", a, in, problem.ReasonBadQuote)
	in = r.input()
	in.Secret = func([]byte) [32]byte { return attesttest.Array(3) }
	rec.add("the secret was not found", a, in, problem.ReasonBadProof)
	edit := func(comment string, want problem.Reason, change func(*evidence)) {
		rec.add(comment, a, r.edit(t, change), want)
	}
	edit("quote of another TPM", problem.ReasonBadQuote, func(ev *evidence) { ev.Quoted, ev.Signature = foreign.Quoted, foreign.Signature })
	edit("another value of a PCR", problem.ReasonBadQuote, func(ev *evidence) { ev.PCRs[0] ^= 1 })
	edit("quote of another boot", problem.ReasonReset, func(ev *evidence) { ev.Hello.Resets++ })
	edit("certificate of another endorsement key", problem.ReasonBadChain, func(ev *evidence) { ev.Hello.Chain = foreign.Hello.Chain })
	edit("attestation key is not restricted", problem.ReasonKeyAttributes, func(ev *evidence) { ev.Hello.AK[5] &^= 1 })
	edit("event log truncated", problem.ReasonEventLog, func(ev *evidence) { ev.Log = ev.Log[:len(ev.Log)-1] })
	edit("event log without its last event", problem.ReasonEventLog, func(ev *evidence) {
		l := typical("kernel 1", nil)
		l.events = l.events[:len(l.events)-1]
		ev.Log = l.bytes()
	})
	edit("certification of another key", problem.ReasonBadQuote, func(ev *evidence) {
		p, _ := parsePublic(ev.Certified.Public)
		swapped := bytes.Clone(p.raw)
		ev.Certified.Public = append(swapped[:len(p.head)], foreign.Hello.AK[len(p.head):]...)
	})
}

// FuzzVerify gives the verifier whatever a machine that knows the secret could send.
func FuzzVerify(f *testing.F) {
	vs := readVectors(f)
	in := vs[0].Input(f)
	for _, v := range vs {
		f.Add([]byte(v.Evidence))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := in
		in.Evidence = data
		if res, err := Verify(in); err == nil && !reflect.DeepEqual(res.Claims, vs[0].Claims) && !reflect.DeepEqual(res.Claims["ek"], vs[0].Claims["ek"]) {
			t.Fatalf("%q proves another machine", data)
		}
		var ev evidence
		if attest.DecodeUpTo(MaxEvidence, data, &ev) != nil {
			return
		}
		proof, err := proofOf([32]byte(vs[0].Secret), in.Binding, ev)
		if err != nil {
			return
		}
		ev.Proof = proof
		if in.Evidence, err = attest.EncodeUpTo(MaxEvidence, ev); err != nil {
			return
		}
		res, err := Verify(in)
		switch {
		case err != nil && problem.KindOf(err) == problem.Internal:
			t.Fatalf("a stranger caused an internal error: %v", err)
		case err == nil && (res.Claims["ek"] != vs[0].Claims["ek"] || res.Claims["ak"] != vs[0].Claims["ak"] || !reflect.DeepEqual(res.Claims["pcr"], vs[0].Claims["pcr"])):
			t.Fatalf("%q proves another machine: %v", data, res.Claims)
		case err == nil && attest.CheckClaims(res.Claims) != nil:
			t.Fatal("claims that are none")
		}
	})
}

// FuzzEventLog reads logs, and says of each what it would if all PCRs were quoted as it replays.
func FuzzEventLog(f *testing.F) {
	cert := newForger(f, nil).ca.Raw
	f.Add(typical("kernel 1", cert).bytes())
	f.Add(typical("kernel 1", nil).bytes())
	f.Add(header(algSHA256))
	f.Add((&logBuilder{}).add(0, evNoAction, [32]byte{}, []byte("StartupLocality\x00\x03")).bytes())
	refs := []authority.Reference{reference("1", "kernel 1"), {Name: "signers", Signers: [][32]byte{sha256.Sum256(cert)}}}
	f.Fuzz(func(t *testing.T, data []byte) {
		log, err := parseLog(data)
		if err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Fatal(err)
			}
			return
		}
		values := map[int][32]byte{}
		var pcrs []int
		for p := range maxPCR + 1 {
			pcrs = append(pcrs, p)
			values[p] = log.replay(p)
		}
		x, err := explain(data, values, pcrs)
		if err != nil {
			t.Fatal(err)
		}
		b := x.describe(refs, then)
		claims := claimsOf(machine{}, evidence{}, attestation{}, values, b, nil)
		if err := attest.CheckClaims(claims); err != nil {
			t.Fatal(err)
		}
		if b.reference == bootSigned && b.secureBoot != "on" {
			t.Fatal("signed, but Secure Boot is not on")
		}
	})
}

// FuzzHello gives Offer whatever a stranger could say.
func FuzzHello(f *testing.F) {
	forged := newForger(f, nil)
	p := paramsOf(f, forged.auth)
	said, err := attest.EncodeEvidence(forged.ev.Hello)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(said)
	for _, v := range readVectors(f) {
		var ev evidence
		if err := attest.DecodeUpTo(MaxEvidence, []byte(v.Evidence), &ev); err != nil {
			f.Fatal(err)
		}
		said, err := attest.EncodeEvidence(ev.Hello)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(said)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := offerInput(p, data)
		in.Now = then
		out, err := Offer(in)
		if err != nil && problem.KindOf(err) == problem.Internal {
			t.Fatalf("a stranger caused an internal error: %v", err)
		}
		if err == nil && len(out) > maxOffer {
			t.Fatal(len(out))
		}
	})
}

// FuzzStructures reads TPM structures.
func FuzzStructures(f *testing.F) {
	forged := newForger(f, nil)
	forged.input()
	for _, seed := range [][]byte{forged.ev.Hello.EK, forged.ev.Hello.AK, forged.ev.Quoted, forged.ev.Signature} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parsePublic(data); ok {
			if _, err := p.key(); err != nil && !problem.Is(err, problem.ReasonWeakAlgorithm) {
				t.Fatal(err)
			}
			if len(p.head) > len(data) || len(p.name()) < 34 {
				t.Fatal("bad parts")
			}
		}
		if a, _, ok := parseAttestation(data); ok && a.kind != typeQuote && a.kind != typeCertify {
			t.Fatal(a.kind)
		}
		parseSignature(data)
		splitDER(data)
	})
}

func BenchmarkVerify(b *testing.B) {
	in := readVectors(b)[0].Input(b)
	b.ReportAllocs()
	for b.Loop() {
		if res, err := Verify(in); err != nil || res.Assurance != identity.Measured {
			b.Fatal(err)
		}
	}
}

func BenchmarkOffer(b *testing.B) {
	f := newForger(b, nil)
	said, err := attest.EncodeEvidence(f.ev.Hello)
	if err != nil {
		b.Fatal(err)
	}
	in := offerInput(paramsOf(b, f.auth), said)
	in.Now = then
	for b.Loop() {
		if _, err := Offer(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBothRounds is what one attestation costs with a software TPM, both halves.
func BenchmarkBothRounds(b *testing.B) {
	s := tpmtest.New(b, 0)
	a := attesterOf(b, s, nil)
	p := paramsOf(b, authority.Authority{Name: "maker", Certificates: []*x509.Certificate{s.Issuing}})
	for b.Loop() {
		if _, err := Verify(goes(b, a, p, binding()).input()); err != nil {
			b.Fatal(err)
		}
	}
}
