package sevsnp

import (
	"bytes"
	"context"
	cx509 "crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
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
	"github.com/bailment/bailment/internal/attest/sevsnp/snptest"
	"github.com/bailment/bailment/internal/attest/tsm"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

var now = attesttest.Now()

func binding() attest.Binding { return attesttest.Binding(Name) }

func params(t testing.TB, roots []*cx509.Certificate) Params {
	t.Helper()
	p, err := NewParams([]authority.Authority{{Name: "amd", Certificates: roots}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func attested(t testing.TB, c Reporter) []byte {
	t.Helper()
	a, err := NewAttester(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := a.Attest(t.Context(), binding())
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func input(t testing.TB, ev []byte, c *snptest.Chip) attest.Input {
	return attest.Input{Binding: binding(), Evidence: ev, Now: now, Params: params(t, c.Roots)}
}

func encode(t testing.TB, report, certificate []byte) []byte {
	t.Helper()
	out, err := json.Marshal(evidence{report, certificate})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVerify(t *testing.T) {
	c := snptest.New(t, now, snptest.Maker{})
	got, err := Verify(input(t, attested(t, c), c))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := attest.Thumbprint(c.Certificate.PublicKey)
	zeros := func(n int) string { return strings.Repeat("00", n) }
	tcb := map[string]any{"bootloader": "3", "tee": "0", "snp": "8", "microcode": "115"}
	want := attest.Result{
		Claims: map[string]any{
			"authority": "amd", "product": "Milan", "signer": "VCEK", "provider": "", "chip": hex.EncodeToString(snptest.HWID()),
			"measurement": strings.Repeat("aa", 48), "family": zeros(16), "image": zeros(16), "host_data": zeros(32), "id_key": zeros(48), "author_key": zeros(48), "report": zeros(32),
			"vmpl": "0", "guest_svn": "7", "policy": map[string]any{"abi": "0.31", "smt": "true", "migration": "false", "single_socket": "false"},
			"tcb": map[string]any{"reported": tcb, "committed": tcb, "launch": tcb}, "revocation": "not checked",
		},
		Assurance: identity.Platform, Anchor: "sev-snp:amd", Key: key, NotAfter: now.Add(24 * time.Hour),
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func TestVerifyAccepts(t *testing.T) {
	v3 := func(model byte) func([]byte) {
		return func(r []byte) {
			binary.LittleEndian.PutUint32(r, 3)
			r[0x188], r[0x189], r[0x18A] = 0x19, model, 1
		}
	}
	for name, c := range map[string]struct {
		maker  snptest.Maker
		change func([]byte)
	}{
		"Genoa":         {snptest.Maker{Line: "Genoa"}, nil},
		"VLEK":          {snptest.Maker{VLEK: true}, nil},
		"version 3":     {snptest.Maker{}, v3(0x01)},
		"Genoa, 3":      {snptest.Maker{Line: "Genoa"}, v3(0x11)},
		"masked chip":   {snptest.Maker{}, func(r []byte) { clear(r[0x1A0:0x1E0]) }},
		"VMPL 3":        {snptest.Maker{}, func(r []byte) { r[0x30] = 3 }},
		"with ID block": {snptest.Maker{}, func(r []byte) { r[0x10], r[0x20], r[0xE0] = 1, 2, 3 }},
	} {
		chip := snptest.New(t, now, c.maker)
		chip.Change = c.change
		res, err := Verify(input(t, attested(t, chip), chip))
		if err != nil || c.maker.VLEK != (res.Claims["provider"] == "cloud.example") || c.maker.VLEK != (res.Claims["chip"] == "") {
			t.Errorf("%s: %v, %v", name, res.Claims, err)
		}
	}
}

// TestHostileEvidence is the table of what a relay, a host and a counterfeit chip would send.
func TestHostileEvidence(t *testing.T) {
	good := snptest.New(t, now, snptest.Maker{})
	ev := attested(t, good)
	if _, err := Verify(input(t, ev, good)); err != nil {
		t.Fatal(err)
	}
	cases := map[string]attesttest.Hostile{}
	bad := func(name string, want problem.Reason, says string, evidence []byte) {
		cases[name] = attesttest.Hostile{Evidence: evidence, Want: want, Says: says}
	}
	at := func(name string, want problem.Reason, says string, change func(*attest.Input)) {
		cases[name] = attesttest.Hostile{Evidence: ev, Change: change, Want: want, Says: says}
	}
	for name, change := range attesttest.Rebound() {
		at(name, problem.ReasonBadProof, "not made for", func(in *attest.Input) { change(&in.Binding) })
	}
	at("after the certificate", problem.ReasonBadChain, "not valid now", func(in *attest.Input) { in.Now = now.Add(25 * time.Hour) })
	at("before the certificate", problem.ReasonBadChain, "not valid now", func(in *attest.Input) { in.Now = now.Add(-2 * time.Hour) })
	at("no root in the bundle", problem.ReasonBadChain, "roots", func(in *attest.Input) { in.Params = Params{} })
	at("another line's root", problem.ReasonBadChain, "roots", func(in *attest.Input) { in.Params = params(t, snptest.New(t, now, snptest.Maker{Line: "Genoa"}).Roots) })
	at("another root of the same names", problem.ReasonBadChain, "roots", func(in *attest.Input) { in.Params = params(t, snptest.New(t, now, snptest.Maker{Rogue: true}).Roots) })

	var doc evidence
	if err := json.Unmarshal(ev, &doc); err != nil {
		t.Fatal(err)
	}
	report, der := doc.Report, doc.Certificate
	bad("truncated", problem.ReasonInvalid, "", ev[:len(ev)-1])
	bad("oversized", problem.ReasonTooLarge, "", make([]byte, attest.MaxEvidence+1))
	bad("no report", problem.ReasonInvalid, "", encode(t, nil, der))
	bad("short report", problem.ReasonInvalid, "no SEV-SNP report", encode(t, report[:len(report)-1], der))
	bad("long report", problem.ReasonInvalid, "no SEV-SNP report", encode(t, append(bytes.Clone(report), 0), der))
	bad("no certificate", problem.ReasonInvalid, "", encode(t, report, nil))
	bad("certificate of nonsense", problem.ReasonInvalid, "", encode(t, report, []byte("canary-5b1e")))
	bad("large certificate", problem.ReasonTooLarge, "", encode(t, report, make([]byte, maxCertificate+1)))
	bad("something after the certificate", problem.ReasonInvalid, "", encode(t, report, append(bytes.Clone(der), 0)))
	bad("the root as certificate", problem.ReasonBadProof, "signature", encode(t, report, good.Roots[1].Raw))
	bad("another chip's certificate", problem.ReasonBadProof, "signature", encode(t, report, snptest.New(t, now, snptest.Maker{}).Certificate.Raw))
	flipped := bytes.Clone(report)
	flipped[0x90] ^= 1
	bad("another measurement after signing", problem.ReasonBadProof, "signature", encode(t, flipped, der))

	changed := func(name string, want problem.Reason, says string, change func([]byte)) {
		c := *good
		c.Change = change
		r, err := c.Report(t.Context(), reportData(binding()))
		if err != nil {
			t.Fatal(err)
		}
		bad(name, want, says, encode(t, r.Out, der))
	}
	changed("the host may debug", problem.ReasonBadProof, "debug", func(r []byte) { r[0x0A] |= 1 << 3 })
	changed("asked for by the host", problem.ReasonBadProof, "not asked for by the VM", func(r []byte) { binary.LittleEndian.PutUint32(r[0x30:], 0xFFFFFFFF) })
	changed("VMPL 4", problem.ReasonBadProof, "not asked for by the VM", func(r []byte) { r[0x30] = 4 })
	changed("another chip's ID", problem.ReasonBadChain, "another chip", func(r []byte) { r[0x1A0] ^= 1 })
	changed("firmware levels that are too good", problem.ReasonBadChain, "firmware levels", func(r []byte) { r[0x186]++ })
	changed("signed by nobody", problem.ReasonBadProof, "no key", func(r []byte) { r[0x48] = 7 << 2 })
	changed("says that a provider signed", problem.ReasonBadChain, "", func(r []byte) { r[0x48] = 1 << 2 })
	changed("zeros after the binding replaced", problem.ReasonBadProof, "not made for", func(r []byte) { r[0x50+32] = 1 })
	changed("a policy without its bit", problem.ReasonInvalid, "", func(r []byte) { r[0x0A] &^= 1 << 1 })
	changed("version 1", problem.ReasonInvalid, "", func(r []byte) { r[0] = 1 })
	changed("version 99", problem.ReasonInvalid, "", func(r []byte) { r[0] = 99 })
	changed("reserved bytes", problem.ReasonInvalid, "", func(r []byte) { r[0x210] = 1 })
	changed("another algorithm", problem.ReasonBadProof, "", func(r []byte) { r[0x34] = 2 })
	changed("a CPU of another line", problem.ReasonBadChain, "", func(r []byte) { r[0], r[0x188], r[0x189], r[0x18A] = 3, 0x19, 0x11, 1 })

	made := func(name string, want problem.Reason, says string, m snptest.Maker) {
		c := snptest.New(t, now, m)
		cases[name] = attesttest.Hostile{Evidence: attested(t, c), Change: func(in *attest.Input) { in.Params = params(t, good.Roots) }, Want: want, Says: says}
	}
	made("a counterfeit chip", problem.ReasonBadChain, "roots", snptest.Maker{Rogue: true})
	made("an expired certificate", problem.ReasonBadChain, "valid", snptest.Maker{Change: func(c *cx509.Certificate) { c.NotAfter = now.Add(-time.Minute) }})
	made("another subject", problem.ReasonBadChain, "", snptest.Maker{Change: func(c *cx509.Certificate) { c.Subject.CommonName = "canary" }})
	made("without AMD's extensions", problem.ReasonBadChain, "", snptest.Maker{Change: func(c *cx509.Certificate) { c.ExtraExtensions = nil }})
	made("for lower firmware levels", problem.ReasonBadChain, "firmware levels", snptest.Maker{Change: func(c *cx509.Certificate) {
		c.ExtraExtensions = snptest.Extensions(t, "Milan", false, snptest.TCB-1<<48, snptest.HWID())
	}})
	made("a provider's key where only chips' are trusted", problem.ReasonBadChain, "roots", snptest.Maker{VLEK: true})

	attesttest.RefuseAll(t, Verify, func(ev []byte) attest.Input { return input(t, ev, good) }, cases)
}

// published is where the verification library's own samples are: part of its module, which the build needs anyway.
func published(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-sev-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "verify", "testdata")
}

// A report that a real Milan signed, with AMD's real certificates. It was not made for us, so all but its binding is checked, and
// with our binding it is refused.
func TestPublishedReport(t *testing.T) {
	dir := published(t)
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	roots, err := authority.ParseFor(Name, read("milan.testcer"))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)
	report, err := parseReport(read("attestation.bin"))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := parseCertificate(read("vcek.testcer"))
	if err != nil {
		t.Fatal(err)
	}
	theirs := [tsm.DataSize]byte{1, 2, 3, 4, 5}
	genuine := func(roots []*cx509.Certificate) error {
		_, err := params(t, roots).verify(report, certificate, at)
		return err
	}
	v, err := params(t, roots).verify(report, certificate, at)
	if err != nil || v.line != "Milan" || len(v.chip) != 64 || v.authority != "amd" || v.notAfter.Year() != 2029 {
		t.Errorf("%+v, %v", v, err)
	}
	if claims := claimsOf(report, v); attest.CheckClaims(claims) != nil || claims["signer"] != "VCEK" || claims["vmpl"] != "0" {
		t.Errorf("%+v", claims)
	}
	// It is of a VM that its host could debug.
	if _, err := judge(report, certificate, theirs, params(t, roots), at); !problem.Is(err, problem.ReasonBadProof) || !strings.Contains(err.Error(), "debug") {
		t.Error("a report of a VM that may be debugged:", err)
	}
	if _, err := judge(report, certificate, reportData(binding()), params(t, roots), at); !problem.Is(err, problem.ReasonBadProof) || !strings.Contains(err.Error(), "not made for") {
		t.Error("with our binding:", err)
	}
	providers, err := authority.ParseFor(Name, read("milanvlek.testcer"))
	if err != nil {
		t.Fatal(err)
	}
	for name, roots := range map[string][]*cx509.Certificate{
		"the library's own roots": nil, "roots of the same names": snptest.New(t, at, snptest.Maker{}).Roots, "the providers' chain": providers,
	} {
		if err := genuine(roots); !problem.Is(err, problem.ReasonBadChain) {
			t.Errorf("by %s: %v", name, err)
		}
	}
	// Both chains of a product line are one authority, with one root.
	if err := genuine(append(roots[:1:1], providers...)); err != nil {
		t.Error("by both:", err)
	}
	flipped := bytes.Clone(read("attestation.bin"))
	flipped[0x90] ^= 1
	if report, err = parseReport(flipped); err != nil {
		t.Fatal(err)
	}
	if err := genuine(roots); !problem.Is(err, problem.ReasonBadProof) {
		t.Error("another measurement:", err)
	}
}

func TestParamsRefuse(t *testing.T) {
	milan, vlek, genoa := snptest.New(t, now, snptest.Maker{}).Roots, snptest.New(t, now, snptest.Maker{VLEK: true}).Roots, snptest.New(t, now, snptest.Maker{Line: "Genoa"}).Roots
	rogue := snptest.New(t, now, snptest.Maker{Rogue: true}).Roots
	for name, c := range map[string][]*cx509.Certificate{
		"no root":            milan[:1],
		"the root only":      milan[1:],
		"another's root":     {milan[0], rogue[1]},
		"two roots":          {milan[0], milan[1], rogue[1]},
		"another line's":     {milan[0], genoa[1]},
		"of a line unknown":  snptest.New(t, now, snptest.Maker{Line: "Turin"}).Roots,
		"a chip's":           {milan[0], milan[1], snptest.New(t, now, snptest.Maker{}).Certificate},
		"one of two is half": {milan[0], milan[1], genoa[0]},
	} {
		if _, err := NewParams([]authority.Authority{{Name: "amd", Certificates: c}}); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewParams([]authority.Authority{{Name: "A"}}); err == nil {
		t.Error("a bad name")
	}
	both := []*cx509.Certificate{milan[0], milan[1], vlek[0], genoa[0], genoa[1]}
	if p, err := NewParams([]authority.Authority{{Name: "amd", Certificates: both}}); err != nil || len(p.roots) != 2 {
		t.Errorf("%d lines, %v", len(p.roots), err)
	}
}

// reporter answers what it holds.
type reporter struct {
	r   tsm.Report
	err error
}

func (r reporter) Report(context.Context, [tsm.DataSize]byte) (tsm.Report, error) { return r.r, r.err }

func TestAttester(t *testing.T) {
	c := snptest.New(t, now, snptest.Maker{})
	good, err := c.Report(t.Context(), reportData(binding()))
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*tsm.Report)) reporter {
		r := good
		change(&r)
		return reporter{r: r}
	}
	for name, x := range map[string]struct {
		r    reporter
		want problem.Reason
	}{
		"no device":             {reporter{err: problem.New(problem.ReasonUnsupported, "x")}, problem.ReasonUnsupported},
		"a TDX guest":           {with(func(r *tsm.Report) { r.Provider = "tdx_guest" }), problem.ReasonUnsupported},
		"a short report":        {with(func(r *tsm.Report) { r.Out = r.Out[:100] }), problem.ReasonUnsupported},
		"no certificates":       {with(func(r *tsm.Report) { r.Aux = nil }), problem.ReasonNotFound},
		"an empty table":        {with(func(r *tsm.Report) { r.Aux = make([]byte, 24) }), problem.ReasonNotFound},
		"a cut table":           {with(func(r *tsm.Report) { r.Aux = r.Aux[:30] }), problem.ReasonNotFound},
		"a place outside":       {with(func(r *tsm.Report) { r.Aux = bytes.Clone(r.Aux); r.Aux[18] = 0xFF }), problem.ReasonNotFound},
		"a place that wraps":    {with(func(r *tsm.Report) { r.Aux = bytes.Clone(r.Aux); copy(r.Aux[20:24], "\xff\xff\xff\xff") }), problem.ReasonNotFound},
		"another's certificate": {with(func(r *tsm.Report) { r.Aux = bytes.Clone(r.Aux); r.Aux[0]++ }), problem.ReasonNotFound},
	} {
		a, err := NewAttester(x.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ev, err := a.Attest(t.Context(), binding()); !problem.Is(err, x.want) || ev != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The certificate from a file stands for the one that the host doesn't give.
	for _, file := range [][]byte{c.Certificate.Raw, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate.Raw})} {
		a, err := NewAttester(with(func(r *tsm.Report) { r.Aux = nil }), file)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := a.Attest(t.Context(), binding())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(input(t, ev, c)); err != nil {
			t.Error(err)
		}
	}
	if _, err := NewAttester(c, []byte("canary-5b1e")); err == nil || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
	a, _ := NewAttester(c, nil)
	attesttest.Attester(t, a, Name)
}

// vector is one line of testdata/vectors.json: what another implementation needs to agree with us.
type vector struct {
	attesttest.Bound
	Roots [][]byte `json:"roots"` // DER, of the authority "amd"
	attesttest.Case
}

func (v vector) Input(t testing.TB) attest.Input {
	var roots []*cx509.Certificate
	for _, der := range v.Roots {
		c, err := cx509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, c)
	}
	return v.InputOf(Name, v.Case, params(t, roots))
}

func writeVectors(t *testing.T) {
	b := binding()
	var vs []vector
	add := func(comment string, refused problem.Reason, c *snptest.Chip) {
		v := vector{Bound: attesttest.BoundTo(comment, b), Case: attesttest.Case{Now: now, Evidence: string(attested(t, c)), Refused: refused}}
		for _, r := range c.Roots {
			v.Roots = append(v.Roots, r.Raw)
		}
		v.Record(t, Verify, v.Input(t))
		vs = append(vs, v)
	}
	c := snptest.New(t, now, snptest.Maker{})
	add("accepted: a chip's key", "", c)
	add("accepted: a provider's key", "", snptest.New(t, now, snptest.Maker{VLEK: true}))
	c.Change = func(r []byte) { r[0x0A] |= 1 << 3 }
	add("the host may debug", problem.ReasonBadProof, c)
	c.Change = func(r []byte) { r[0x186]++ }
	add("other firmware levels", problem.ReasonBadChain, c)
	c.Change = func(r []byte) { r[0x50] ^= 1 }
	add("another binding", problem.ReasonBadProof, c)
	attesttest.Write(t, vs)
}

func readVectors(t testing.TB) []vector { return attesttest.Read[vector](t, 5) }

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	want := []problem.Reason{"", "", problem.ReasonBadProof, problem.ReasonBadChain, problem.ReasonBadProof}
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

// FuzzReport goes past the JSON and the binding, where the parsers are.
func FuzzReport(f *testing.F) {
	vs := readVectors(f)
	p := vs[0].Input(f).Params.(Params)
	for _, v := range vs {
		var ev evidence
		if err := json.Unmarshal([]byte(v.Evidence), &ev); err != nil {
			f.Fatal(err)
		}
		f.Add(ev.Report, ev.Certificate)
	}
	var first evidence
	if err := json.Unmarshal([]byte(vs[0].Evidence), &first); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, report, certificate []byte) {
		r, err := parseReport(report)
		if err != nil {
			return
		}
		c, err := parseCertificate(certificate)
		if err != nil {
			return
		}
		if _, err := judge(r, c, [tsm.DataSize]byte(r.GetReportData()), p, now); err == nil && !bytes.Equal(report[:0x2A0], first.Report[:0x2A0]) {
			known := false
			for _, v := range vs {
				var ev evidence
				_ = json.Unmarshal([]byte(v.Evidence), &ev)
				known = known || bytes.Equal(ev.Report[:0x2A0], report[:0x2A0])
			}
			if !known {
				t.Fatal("a report was accepted that the chip didn't sign")
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c := snptest.New(b, now, snptest.Maker{})
	in := input(b, attested(b, c), c)
	for b.Loop() {
		if _, err := Verify(in); err != nil {
			b.Fatal(err)
		}
	}
}
