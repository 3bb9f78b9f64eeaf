package tdx

import (
	"bytes"
	"context"
	cx509 "crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/attesttest"
	"github.com/bailment/bailment/internal/attest/tdx/tdxtest"
	"github.com/bailment/bailment/internal/attest/tsm"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

var now = attesttest.Now()

func binding() attest.Binding { return attesttest.Binding(Name) }

func params(t testing.TB, roots ...*cx509.Certificate) Params {
	t.Helper()
	p, err := NewParams([]authority.Authority{{Name: "intel", Certificates: roots}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func attested(t testing.TB, p *tdxtest.Platform) []byte {
	t.Helper()
	quote, err := p.Quote(reportData(binding()))
	if err != nil {
		t.Fatal(err)
	}
	return encode(t, quote)
}

func encode(t testing.TB, quote []byte) []byte {
	t.Helper()
	out, err := json.Marshal(evidence{quote})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func input(t testing.TB, ev []byte, p *tdxtest.Platform) attest.Input {
	return attest.Input{Binding: binding(), Evidence: ev, Now: now, Params: params(t, p.Root)}
}

func TestVerify(t *testing.T) {
	p := tdxtest.New(t, now, tdxtest.Maker{})
	ev, err := NewAttester(p).Attest(t.Context(), binding())
	if err != nil {
		t.Fatal(err)
	}
	got, err := Verify(input(t, ev, p))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := attest.Thumbprint(p.PCK.Public())
	same := func(b string, n int) string { return strings.Repeat(b, n) }
	want := attest.Result{
		Claims: map[string]any{
			"authority": "intel", "mr_td": same("aa", 48), "rtmr": []any{same("b0", 48), same("b1", 48), same("b2", 48), same("b3", 48)},
			"mr_config": same("00", 48), "mr_owner": same("00", 48), "mr_owner_config": same("00", 48), "mr_seam": same("5e", 48),
			"attributes": "0000001000000000", "xfam": same("00", 8),
			"tcb":        map[string]any{"module": "03" + same("00", 15), "cpu": "000102030405060708090a0b0c0d0e0f", "pce": "11", "enclave": "4"},
			"platform":   map[string]any{"id": same("01", 16), "fmspc": same("03", 6), "pce": "0000"},
			"tcb_status": "not checked", "revocation": "not checked",
		},
		Assurance: identity.Platform, Anchor: "tdx:intel", Key: key, NotAfter: now.Add(24 * time.Hour),
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func TestVerifyAccepts(t *testing.T) {
	for name, change := range map[string]func(*tdxtest.Platform){
		"no data of the enclave": func(p *tdxtest.Platform) { p.Data = nil },
		"a zero at the end":      func(p *tdxtest.Platform) { p.Chain = append(p.Chain, 0) },
		"other attributes":       func(p *tdxtest.Platform) { p.ChangeBody = func(b []byte) { b[48+123] = 0x40 } },
		"a newer enclave":        func(p *tdxtest.Platform) { p.ChangeEnclave = func(b []byte) { b[258] = 9 } },
		"an attribute off mask":  func(p *tdxtest.Platform) { p.ChangeEnclave = func(b []byte) { b[48+9] = 1 } },
	} {
		p := tdxtest.New(t, now, tdxtest.Maker{})
		change(p)
		if _, err := Verify(input(t, attested(t, p), p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, other := tdxtest.New(t, now, tdxtest.Maker{}), tdxtest.New(t, now, tdxtest.Maker{})
	in := input(t, attested(t, p), p)
	var err error
	if in.Params, err = NewParams([]authority.Authority{{Name: "a", Certificates: []*cx509.Certificate{other.Root}}, {Name: "b", Certificates: []*cx509.Certificate{p.Root}}}); err != nil {
		t.Fatal(err)
	}
	if res, err := Verify(in); err != nil || res.Anchor != "tdx:b" {
		t.Errorf("%s, %v", res.Anchor, err)
	}
}

type hostileCase = attesttest.Hostile

// TestHostileEvidence is the table of what a relay, a host and a counterfeit platform would send.
func TestHostileEvidence(t *testing.T) {
	good := tdxtest.New(t, now, tdxtest.Maker{})
	ev := attested(t, good)
	if _, err := Verify(input(t, ev, good)); err != nil {
		t.Fatal(err)
	}
	cases := map[string]hostileCase{}
	hostileFrames(t, cases, good)
	hostileQuotes(t, cases, good, ev)
	hostileChains(t, cases, good)
	attesttest.RefuseAll(t, Verify, func(ev []byte) attest.Input { return input(t, ev, good) }, cases)
}

// Lengths that lie: the library would slice by them.
func hostileFrames(t *testing.T, cases map[string]hostileCase, good *tdxtest.Platform) {
	quote, err := good.Quote(reportData(binding()))
	if err != nil {
		t.Fatal(err)
	}
	frame := func(name string, change func([]byte) []byte) {
		cases[name] = hostileCase{Evidence: encode(t, change(bytes.Clone(quote))), Want: problem.ReasonInvalid, Says: "no TDX quote"}
	}
	le := binary.LittleEndian
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], v); return b }
	}
	frame("no quote", func([]byte) []byte { return nil })
	frame("a header only", func(b []byte) []byte { return b[:48] })
	frame("no signed data", func(b []byte) []byte { le.PutUint32(b[632:], 0); return b[:636] })
	frame("signed data of no length", put32(632, 0))
	frame("signed data of one byte", func(b []byte) []byte { le.PutUint32(b[632:], 1); return b[:637] })
	frame("signed data of a huge length", put32(632, 0xFFFFFFFF))
	frame("certification data of no length", put32(636+128+2, 0))
	frame("certification data of a huge length", put32(636+128+2, 0xFFFFFFFF))
	frame("enclave's data of a huge length", func(b []byte) []byte { le.PutUint16(b[636+128+6+448:], 0xFFFF); return b })
	frame("a chain of a huge length", put32(636+128+6+450+len(good.Data)+2, 0xFFFFFFFF))
	frame("truncated", func(b []byte) []byte { return b[:len(b)-1] })
	frame("something after it", func(b []byte) []byte { return append(b, 0) })
	frame("version 3", func(b []byte) []byte { b[0] = 3; return b })
	frame("version 5", func(b []byte) []byte { b[0] = 5; return b })
	frame("SGX", put32(4, 0))
	frame("another kind of key", func(b []byte) []byte { b[2] = 3; return b })
	frame("platform ID instead of certificates", func(b []byte) []byte { b[636+128+6+450+len(good.Data)] = 3; return b })
	cases["oversized quote"] = hostileCase{Evidence: encode(t, make([]byte, maxQuote+1)), Want: problem.ReasonTooLarge}
	cases["oversized"] = hostileCase{Evidence: make([]byte, attest.MaxEvidence+1), Want: problem.ReasonTooLarge}
}

func hostileQuotes(t *testing.T, cases map[string]hostileCase, good *tdxtest.Platform, ev []byte) {
	for name, change := range attesttest.Rebound() {
		cases[name] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { change(&in.Binding) }, Want: problem.ReasonBadProof, Says: "not made for"}
	}
	cases["truncated evidence"] = hostileCase{Evidence: ev[:len(ev)-1], Want: problem.ReasonInvalid}
	quote := func(name, says string, change func(*tdxtest.Platform)) {
		p := *good
		change(&p)
		cases[name] = hostileCase{Evidence: attested(t, &p), Want: problem.ReasonBadProof, Says: says}
	}
	body := func(name, says string, change func([]byte)) {
		quote(name, says, func(p *tdxtest.Platform) { p.ChangeBody = change })
	}
	enclave := func(name string, change func([]byte)) {
		quote(name, "not Intel's quoting enclave", func(p *tdxtest.Platform) { p.ChangeEnclave = change })
	}
	body("the host may debug", "debug", func(b []byte) { b[48+120] = 1 })
	body("a reserved attribute that makes it untrusted", "debug", func(b []byte) { b[48+120] = 0x10 })
	body("another signer's module", "module", func(b []byte) { b[48+64] = 1 })
	body("a module for debugging", "module", func(b []byte) { b[48+112] = 1 })
	body("zeros after the binding replaced", "not made for", func(b []byte) { b[48+520+32] = 1 })
	body("another vendor's enclave", "not Intel's", func(b []byte) { b[12] ^= 1 })
	enclave("another signer's enclave", func(b []byte) { b[128] ^= 1 })
	enclave("another enclave of Intel's", func(b []byte) { b[256] = 1 })
	enclave("an enclave for debugging", func(b []byte) { b[48] |= 2 })
	enclave("an enclave that can't provision", func(b []byte) { b[48] = 1 })
	enclave("an enclave with other features", func(b []byte) { b[16] = 1 })
	quote("signed by another enclave's key", "not signed by the quoting enclave", func(p *tdxtest.Platform) {
		p.ChangeEnclave = func(b []byte) { b[320] ^= 1 }
	})
	quote("certified by another platform", "not signed by the quoting enclave", func(p *tdxtest.Platform) { p.PCK = tdxtest.New(t, now, tdxtest.Maker{}).PCK })
	raw, err := good.Quote(reportData(binding()))
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int{
		"another measurement after signing": 48 + 136, "another register after signing": 48 + 328, "another signature": 636, "another key": 636 + 64, "another enclave report": 636 + 128 + 6 + 100,
		"another enclave signature": 636 + 128 + 6 + 384, "other data of the enclave": 636 + 128 + 6 + 450,
	} {
		flipped := bytes.Clone(raw)
		flipped[at] ^= 1
		cases[name] = hostileCase{Evidence: encode(t, flipped), Want: problem.ReasonBadProof, Says: "not signed by the quoting enclave"}
	}
}

func hostileChains(t *testing.T, cases map[string]hostileCase, good *tdxtest.Platform) {
	ev := attested(t, good)
	for name, change := range map[string]func(*attest.Input){
		"after the certificates":  func(in *attest.Input) { in.Now = now.Add(25 * time.Hour) },
		"before the certificates": func(in *attest.Input) { in.Now = now.Add(-2 * time.Hour) },
	} {
		cases[name] = hostileCase{Evidence: ev, Change: change, Want: problem.ReasonBadChain, Says: "not valid now"}
	}
	cases["no root in the bundle"] = hostileCase{Evidence: ev, Change: func(in *attest.Input) { in.Params = Params{} }, Want: problem.ReasonBadChain, Says: "bundle names"}
	cases["a counterfeit platform"] = hostileCase{Evidence: attested(t, tdxtest.New(t, now, tdxtest.Maker{})), Want: problem.ReasonBadChain, Says: "bundle names"}
	other := tdxtest.New(t, now, tdxtest.Maker{})
	mixed := *other
	mixed.Chain = append(bytes.Clone(other.Chain[:bytes.LastIndex(other.Chain, []byte("-----BEGIN"))]), good.Chain[bytes.LastIndex(good.Chain, []byte("-----BEGIN")):]...)
	cases["the real root behind a counterfeit chain"] = hostileCase{Evidence: attested(t, &mixed), Want: problem.ReasonBadChain, Says: "don't lead to their root"}

	made := func(name string, want problem.Reason, says string, m tdxtest.Maker) {
		p := tdxtest.New(t, now, m)
		cases[name] = hostileCase{Evidence: attested(t, p), Change: func(in *attest.Input) { in.Params = params(t, p.Root) }, Want: want, Says: says}
	}
	past := func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Minute) }
	future := func(c *cx509.Certificate) { c.NotBefore = now.Add(time.Minute) }
	made("an expired platform", problem.ReasonBadChain, "not valid now", tdxtest.Maker{ChangePCK: past})
	made("an expired issuer", problem.ReasonBadChain, "not valid now", tdxtest.Maker{ChangeIssuer: past})
	made("an expired root", problem.ReasonBadChain, "not valid now", tdxtest.Maker{ChangeRoot: past})
	made("a platform of the future", problem.ReasonBadChain, "not valid now", tdxtest.Maker{ChangePCK: future})
	made("an issuer of the future", problem.ReasonBadChain, "not valid now", tdxtest.Maker{ChangeIssuer: future})
	made("an issuer that is no CA", problem.ReasonBadChain, "don't lead", tdxtest.Maker{ChangeIssuer: func(c *cx509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }})
	made("without Intel's extensions", problem.ReasonBadChain, "lacks", tdxtest.Maker{ChangePCK: func(c *cx509.Certificate) { c.ExtraExtensions = nil }})
	made("another subject", problem.ReasonBadProof, "", tdxtest.Maker{ChangePCK: func(c *cx509.Certificate) { c.Subject.CommonName = "canary" }})

	chain := func(name string, text []byte) {
		p := *good
		p.Chain = text
		cases[name] = hostileCase{Evidence: attested(t, &p), Want: problem.ReasonInvalid, Says: "certificates can't be read"}
	}
	block := good.Chain[:bytes.LastIndex(good.Chain, []byte("-----BEGIN"))]
	chain("no chain", nil)
	chain("a chain without root", block)
	chain("a chain of four", append(bytes.Clone(good.Chain), good.Chain[len(block):]...))
	chain("a chain of nonsense", []byte("canary-5b1e"))
	chain("a key among them", bytes.Replace(good.Chain, []byte("CERTIFICATE"), []byte("PRIVATE KEY"), 2))
	chain("a chain of blocks without certificates", []byte(strings.Repeat("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 3)))
}

// A quote that a real platform signed, with Intel's real certificates. It was not made for us, so all but its binding is checked, and
// with our binding it is refused.
func TestPublishedQuote(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	module := strings.TrimSpace(string(out))
	read := func(parts ...string) []byte {
		data, err := os.ReadFile(filepath.Join(append([]string{module}, parts...)...))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	roots, err := authority.ParseFor(Name, read("verify", "trusted_root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	raw := read("testing", "testdata", "tdx_prod_quote_SPR_E4.dat")
	if n, ok := quoteSize(raw); ok {
		raw = raw[:n]
	}
	quote, err := parseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2023, 7, 1, 0, 0, 0, 0, time.UTC)
	theirs := [tsm.DataSize]byte(quote.GetTdQuoteBody().GetReportData())
	res, err := judge(quote, theirs, params(t, roots...), at)
	if err != nil || res.Anchor != "tdx:intel" || len(res.Claims["mr_td"].(string)) != 96 || len(res.Claims["platform"].(map[string]any)["fmspc"].(string)) != 12 {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := judge(quote, reportData(binding()), params(t, roots...), at); !problem.Is(err, problem.ReasonBadProof) {
		t.Error("with our binding:", err)
	}
	if _, err := judge(quote, theirs, Params{}, at); !problem.Is(err, problem.ReasonBadChain) {
		t.Error("by the library's own root:", err)
	}
	if _, err := judge(quote, theirs, params(t, tdxtest.New(t, at, tdxtest.Maker{}).Root), at); !problem.Is(err, problem.ReasonBadChain) {
		t.Error("by a root of the same name:", err)
	}
	raw[48+136] ^= 1
	if quote, err = parseQuote(raw); err != nil {
		t.Fatal(err)
	}
	if _, err := judge(quote, theirs, params(t, roots...), at); !problem.Is(err, problem.ReasonBadProof) {
		t.Error("another measurement:", err)
	}

	// What we take for Intel's quoting enclave is what Intel publishes.
	var identity struct {
		EnclaveIdentity struct {
			ID, MiscSelect, MiscSelectMask, Attributes, AttributesMask, MrSigner string
			IsvProdID                                                            int
		}
	}
	if err := json.Unmarshal(read("testing", "testdata", "sample_qeIdentity_response"), &identity); err != nil {
		t.Fatal(err)
	}
	e := identity.EnclaveIdentity
	if e.ID != "TD_QE" || !strings.EqualFold(e.MrSigner, enclaveSigner) || e.IsvProdID != enclaveProduct || e.MiscSelect != "00000000" || e.MiscSelectMask != "FFFFFFFF" ||
		!strings.EqualFold(e.Attributes, hex.EncodeToString(enclaveAttributes[:])) || !strings.EqualFold(e.AttributesMask, hex.EncodeToString(enclaveAttributesMask[:])) {
		t.Errorf("%+v", e)
	}
}

func TestParamsRefuse(t *testing.T) {
	p := tdxtest.New(t, now, tdxtest.Maker{})
	issuers, err := authority.ParseFor(Name, p.Chain[bytes.Index(p.Chain[1:], []byte("-----BEGIN"))+1:])
	if err != nil {
		t.Fatal(err)
	}
	for name, all := range map[string][]authority.Authority{
		"an issuer":  {{Name: "a", Certificates: issuers[:1]}},
		"twice":      {{Name: "a", Certificates: []*cx509.Certificate{p.Root}}, {Name: "b", Certificates: []*cx509.Certificate{p.Root}}},
		"a bad name": {{Name: "A", Certificates: []*cx509.Certificate{p.Root}}},
	} {
		if _, err := NewParams(all); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// reporter answers what it holds.
type reporter struct {
	r   tsm.Report
	err error
}

func (r reporter) Report(context.Context, [tsm.DataSize]byte) (tsm.Report, error) { return r.r, r.err }

func TestAttester(t *testing.T) {
	p := tdxtest.New(t, now, tdxtest.Maker{})
	good, err := p.Report(t.Context(), reportData(binding()))
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*tsm.Report)) reporter {
		r := good
		r.Out = bytes.Clone(r.Out)
		change(&r)
		return reporter{r: r}
	}
	for name, c := range map[string]struct {
		r    reporter
		want problem.Reason
	}{
		"no device":           {reporter{err: problem.New(problem.ReasonPermissions, "x")}, problem.ReasonPermissions},
		"an SEV guest":        {with(func(r *tsm.Report) { r.Provider = "sev_guest" }), problem.ReasonUnsupported},
		"nothing":             {with(func(r *tsm.Report) { r.Out = nil }), problem.ReasonUnsupported},
		"a cut quote":         {with(func(r *tsm.Report) { r.Out = r.Out[:1000] }), problem.ReasonUnsupported},
		"a quote and nothing": {with(func(r *tsm.Report) { r.Out = append(r.Out, 1) }), problem.ReasonUnsupported},
	} {
		if ev, err := NewAttester(c.r).Attest(t.Context(), binding()); !problem.Is(err, c.want) || ev != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	ev, err := NewAttester(with(func(r *tsm.Report) { r.Out = append(r.Out, 0, 0, 0) })).Attest(t.Context(), binding())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(input(t, ev, p)); err != nil {
		t.Error("a quote in a longer buffer:", err)
	}
	attesttest.Attester(t, NewAttester(p), Name)
}

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	attesttest.Bound
	Root []byte `json:"root"` // DER, of the authority "intel"
	attesttest.Case
}

func (v vector) Input(t testing.TB) attest.Input {
	root, err := cx509.ParseCertificate(v.Root)
	if err != nil {
		t.Fatal(err)
	}
	return v.InputOf(Name, v.Case, params(t, root))
}

func writeVectors(t *testing.T) {
	b := binding()
	var vs []vector
	p := tdxtest.New(t, now, tdxtest.Maker{})
	add := func(comment string, refused problem.Reason) {
		v := vector{Bound: attesttest.BoundTo(comment, b), Root: p.Root.Raw, Case: attesttest.Case{Now: now, Evidence: string(attested(t, p)), Refused: refused}}
		v.Record(t, Verify, v.Input(t))
		vs = append(vs, v)
	}
	add("accepted", "")
	p.ChangeBody = func(b []byte) { b[48+120] = 1 }
	add("the host may debug", problem.ReasonBadProof)
	p.ChangeBody = func(b []byte) { b[48+520] ^= 1 }
	add("another binding", problem.ReasonBadProof)
	p.ChangeBody, p.ChangeEnclave = nil, func(b []byte) { b[128] ^= 1 }
	add("another enclave", problem.ReasonBadProof)
	p.ChangeEnclave, p.Chain = nil, tdxtest.New(t, now, tdxtest.Maker{}).Chain
	add("another root", problem.ReasonBadChain)
	attesttest.Write(t, vs)
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 5) }

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	want := []problem.Reason{"", problem.ReasonBadProof, problem.ReasonBadProof, problem.ReasonBadProof, problem.ReasonBadChain}
	vs := readVectors(t)
	if got := attesttest.Reasons(vs); !slices.Equal(got, want) {
		t.Errorf("refused: %q", got)
	}
	for _, v := range vs {
		attesttest.Check(t, Verify, v.Comment, v)
	}
}

func FuzzVerify(f *testing.F) {
	vs := readVectors(f)
	attesttest.Fuzz(f, Verify, vs, vs[:1])
}

// FuzzQuote goes past the JSON and the binding, where the parsers are: none of them may panic.
func FuzzQuote(f *testing.F) {
	vs := readVectors(f)
	p := vs[0].Input(f).Params.(Params)
	signed := map[string]bool{}
	for _, v := range vs {
		var ev evidence
		if err := json.Unmarshal([]byte(v.Evidence), &ev); err != nil {
			f.Fatal(err)
		}
		f.Add(ev.Quote)
		signed[string(ev.Quote[:headerSize+bodySize])] = true
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := parseQuote(raw)
		if err != nil {
			return
		}
		if _, err := judge(q, [tsm.DataSize]byte(q.GetTdQuoteBody().GetReportData()), p, now); err == nil && !signed[string(raw[:headerSize+bodySize])] {
			t.Fatal("a quote was accepted that the platform didn't sign")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	p := tdxtest.New(b, now, tdxtest.Maker{})
	in := input(b, attested(b, p), p)
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
