package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// TestBothRounds goes from nothing to claims with each of the five endorsement keys, by certificate and by list.
func TestBothRounds(t *testing.T) {
	s := tpmtest.New(t, 0)
	path := bootTPM(t, s, typical("kernel 1", nil))
	for which, certified := range map[string]bool{
		"": true, "rsa-2048": true, "ecc-p384": true, "ecc-p256": false, "ecc-p256-high": false, "rsa-2048-high": false,
	} {
		a := attesterOf(t, s, attest.Material{NeedEndorsement: []byte(which), NeedEventLog: path})
		said, err := a.Hello(context.Background())
		if err != nil {
			t.Fatalf("%s: %v", which, err)
		}
		from := maker(s, nil)
		if !certified {
			from = authority.Authority{Name: "maker", EndorsementKeys: [][32]byte{ekOf(t, said)}}
		}
		r := goes(t, a, paramsOf(t, from), binding())
		if !bytes.Equal(said, r.hello) {
			t.Errorf("%s: two hellos of one boot differ", which)
		}
		res, err := Verify(r.input())
		if err != nil {
			t.Fatalf("%s: %v", which, err)
		}
		boot := res.Claims["boot"].(map[string]any)
		model := res.Claims["tpm"].(map[string]any)["model"]
		if res.Assurance != identity.Hardware || res.Anchor != "tpm:maker" || attest.DigestText(res.Key) != res.Claims["ak"] || res.NotAfter.IsZero() == certified ||
			attest.DigestText(ekOf(t, said)) != res.Claims["ek"] || (model == "swtpm") != certified || (res.Claims["vouched"] == "certificate") != certified ||
			boot["cmdline"] != "/vmlinuz root=/dev/vda1 ro" || boot["reference"] != "none" || boot["eventlog"] != "replayed" || res.Claims["secure_boot"] != "off" ||
			len(boot["images"].([]any)) != 3 || res.Executables != nil {
			t.Errorf("%s: %+v", which, res)
		}
		if len(r.answer) > 16<<10 {
			t.Errorf("%s: the evidence has %d bytes", which, len(r.answer))
		}
	}
	if n := s.Loaded(); n != 0 {
		t.Fatalf("%d objects or sessions were left in the TPM", n)
	}
}

func ekOf(t testing.TB, said []byte) [32]byte {
	t.Helper()
	var h hello
	if err := attest.DecodeUpTo(maxHello, said, &h); err != nil {
		t.Fatal(err)
	}
	p, _ := parsePublic(h.EK)
	key, err := p.key()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := attest.Thumbprint(key)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestIntermediates: the root is trusted, the issuing CA comes from the machine; and without it, nothing is proved.
func TestIntermediates(t *testing.T) {
	s := tpmtest.New(t, 0)
	p := paramsOf(t, maker(s, func(a *authority.Authority) { a.Certificates = []*x509.Certificate{s.Root} }))
	block := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	for i, leaf := range s.Certificates {
		a := attesterOf(t, s, attest.Material{NeedCertificate: append(block(leaf), block(s.Issuing)...)})
		r := goes(t, a, p, binding())
		if res, err := Verify(r.input()); err != nil || res.Claims["ek"] != attest.DigestText(s.EndorsementKeys()[i]) {
			t.Errorf("%d: %v", i, err)
		}
		said, err := attesterOf(t, s, attest.Material{NeedCertificate: block(leaf)}).Hello(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Offer(offerInput(p, said)); !problem.Is(err, problem.ReasonBadChain) {
			t.Errorf("%d without its issuer: %v", i, err)
		}
	}
	other := tpmtest.New(t, 1)
	if _, err := attesterOf(t, s, attest.Material{NeedCertificate: block(other.Certificates[0])}).Hello(context.Background()); !problem.Is(err, problem.ReasonBadChain) {
		t.Errorf("the certificate of another TPM: %v", err)
	}
}

// TestRSAAttestationKey is for TPMs without elliptic curves for signatures.
func TestRSAAttestationKey(t *testing.T) {
	s := tpmtest.New(t, 0)
	a := attesterOf(t, s, nil)
	// P-521 with SHA-1 is what swtpm can't, so the second template is used.
	missing := a.templates[0]
	missing.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Scheme: ecdsaSHA256(), CurveID: 0x0042})
	a.templates[0] = missing
	r := goes(t, a, paramsOf(t, maker(s, nil)), binding())
	if _, err := Verify(r.input()); err != nil {
		t.Fatal(err)
	}
	ev := r.open(t)
	if p, _ := parsePublic(ev.Hello.AK); p.kind != algRSA {
		t.Fatal("the key is not RSA")
	}
	ev.Signature[len(ev.Signature)-1] ^= 1
	if _, err := Verify(r.edit(t, func(e *evidence) { *e = ev })); !problem.Is(err, problem.ReasonBadQuote) {
		t.Fatal(err)
	}
}

// TestSessionKey: a key in the TPM is certified, loaded again by its blob, signs, and is of no use to another TPM.
func TestSessionKey(t *testing.T) {
	s := tpmtest.New(t, 0)
	a := attesterOf(t, s, nil)
	ctx := context.Background()
	key, blob, err := a.NewKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, key)
	b := binding()
	if b.SessionKey, err = attest.Thumbprint(key.Public()); err != nil {
		t.Fatal(err)
	}
	p := paramsOf(t, maker(s, nil))
	location := func(a *attester) any {
		res, err := Verify(goes(t, a, p, b).input())
		if err != nil {
			t.Fatal(err)
		}
		return res.Claims["key"].(map[string]any)["location"]
	}
	if got := location(a); got != "tpm" {
		t.Errorf("the new key is in %v", got)
	}
	again := attesterOf(t, s, nil)
	if got := location(again); got != "software" {
		t.Errorf("a key that nobody certifies is in %v", got)
	}
	s.Reset()
	loaded, err := again.LoadKey(ctx, blob)
	if err != nil {
		t.Fatal(err)
	}
	if !key.Public().(*ecdsa.PublicKey).Equal(loaded.Public()) || location(again) != "tpm" {
		t.Error("the loaded key is another one")
	}
	signs(t, loaded)
	if _, err := loaded.Sign(rand.Reader, make([]byte, 48), crypto.SHA384); !problem.Is(err, problem.ReasonUnsupported) {
		t.Error(err)
	}
	if _, err := attesterOf(t, tpmtest.New(t, 1), nil).LoadKey(ctx, blob); !problem.Is(err, problem.ReasonUnreachable) {
		t.Errorf("another TPM: %v", err)
	}
	for _, bad := range []string{"", "{}", string(blob) + " ", strings.Replace(string(blob), "srk", "SRK", 1)} {
		if _, err := again.LoadKey(ctx, []byte(bad)); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if n := s.Loaded(); n != 0 {
		t.Errorf("%d objects or sessions were left in the TPM", n)
	}
}

func signs(t testing.TB, key crypto.Signer) {
	t.Helper()
	// A certificate request is what a session begins with.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		t.Fatal(err)
	}
}

// TestConcurrent: many users of one attester don't meet in the TPM, and leave nothing there, also when they give up.
func TestConcurrent(t *testing.T) {
	s := tpmtest.New(t, 0)
	a := attesterOf(t, s, nil)
	key, _, err := a.NewKey(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p := paramsOf(t, maker(s, nil))
	said, err := a.Hello(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	offered, err := Offer(offerInput(p, said))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			sum := sha256.Sum256([]byte{byte(i)})
			if sig, err := key.Sign(nil, sum[:], crypto.SHA256); err != nil || !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), sum[:], sig) {
				t.Errorf("sign: %v", err)
			}
			// Some give up after that many commands.
			ctx := &givesUp{Context: context.Background(), after: i}
			ev, err := a.Answer(ctx, binding(), said, offered)
			if err != nil && !problem.Is(err, problem.ReasonCanceled) {
				t.Errorf("answer: %v", err)
			}
			if err == nil {
				if _, err := Verify((round{params: p, binding: binding(), answer: ev, now: today()}).input()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := s.Loaded(); n != 0 {
		t.Errorf("%d objects or sessions were left in the TPM", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Hello(ctx); !problem.Is(err, problem.ReasonCanceled) {
		t.Error(err)
	}
}

// givesUp is a context that is cancelled after it was asked that often.
type givesUp struct {
	context.Context
	mu    sync.Mutex
	after int
}

func (g *givesUp) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.after--; g.after < 0 {
		return context.Canceled
	}
	return nil
}

// TestResetInBetween: a reset after the hello is noticed by the agent, and by the server if the agent hides it.
func TestResetInBetween(t *testing.T) {
	s := tpmtest.New(t, 0)
	a := attesterOf(t, s, nil)
	p := paramsOf(t, maker(s, nil))
	before := goes(t, a, p, binding())
	s.Reset()
	if _, err := a.Answer(context.Background(), binding(), before.hello, before.offer); !problem.Is(err, problem.ReasonReset) {
		t.Errorf("the agent: %v", err)
	}
	after := goes(t, a, p, binding())
	if _, err := Verify(after.input()); err != nil {
		t.Fatal(err)
	}
	// A quote of this boot under the hello of the last one.
	quote := after.open(t)
	in := before.edit(t, func(ev *evidence) { ev.Quoted, ev.Signature, ev.PCRs = quote.Quoted, quote.Signature, quote.PCRs })
	refused(t, "quote of another boot", in, problem.ReasonReset, "restarted")
	// Suspended to disk and resumed: the PCRs may be kept, but nobody knows what happened meanwhile.
	s.Do(func(tp transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUState}.Execute(tp)
		return err
	})
	s.Stop()
	s.Start()
	if _, err := a.Answer(context.Background(), binding(), after.hello, after.offer); !problem.Is(err, problem.ReasonReset) {
		t.Errorf("resumed: %v", err)
	}
}

// TestOtherTPM: what two TPMs can and can't do for each other.
func TestOtherTPM(t *testing.T) {
	mine, theirs := tpmtest.New(t, 0), tpmtest.New(t, 1)
	a, b := attesterOf(t, mine, nil), attesterOf(t, theirs, nil)
	p := paramsOf(t, maker(mine, nil), authority.Authority{Name: "other", Certificates: []*x509.Certificate{theirs.Issuing}})
	own, other := goes(t, a, p, binding()), goes(t, b, p, binding())
	for _, r := range []round{own, other} {
		if _, err := Verify(r.input()); err != nil {
			t.Fatal(err)
		}
	}
	stolen := other.open(t)
	refused(t, "quote of another TPM", own.edit(t, func(ev *evidence) {
		ev.Quoted, ev.Signature, ev.PCRs = stolen.Quoted, stolen.Signature, stolen.PCRs
	}), problem.ReasonBadQuote, "not signed by the attestation key")

	swapped := own.open(t)
	swapped.Hello.AK = stolen.Hello.AK
	said, err := attest.EncodeEvidence(swapped.Hello)
	if err != nil {
		t.Fatal(err)
	}
	// Its own endorsement key with the other's attestation key: the offer is made, but neither TPM can use it.
	offered, err := Offer(offerInput(p, said))
	if err != nil {
		t.Fatal(err)
	}
	for name, agent := range map[string]*attester{"the one": a, "the other": b} {
		if _, err := agent.Answer(context.Background(), binding(), said, offered); !problem.Is(err, problem.ReasonReset) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Offers for one given to the other: TPM_RC_INTEGRITY.
	if _, err := a.Answer(context.Background(), binding(), own.hello, other.offer); !problem.Is(err, problem.ReasonBadProof) {
		t.Errorf("another TPM's offer: %v", err)
	}
	// The attestation key is swapped after activation: the hello is another, so the secret is another.
	in := own.input()
	swapped.Quoted, swapped.Signature, swapped.PCRs, swapped.Certified = stolen.Quoted, stolen.Signature, stolen.PCRs, stolen.Certified
	old := own.open(t)
	oldSaid, err := attest.EncodeEvidence(old.Hello)
	if err != nil {
		t.Fatal(err)
	}
	if swapped.Proof, err = proofOf(secretOf(oldSaid), binding(), swapped); err != nil {
		t.Fatal(err)
	}
	if in.Evidence, err = attest.EncodeEvidence(swapped); err != nil {
		t.Fatal(err)
	}
	refused(t, "attestation key swapped after activation", in, problem.ReasonBadProof, "secret")
}

// TestForeignKeys: attestation keys that a real TPM makes or takes, but that promise nothing.
func TestForeignKeys(t *testing.T) {
	s := tpmtest.New(t, 0)
	p := paramsOf(t, maker(s, nil))
	try := func(name, says string, change func(*tpm2.TPMTPublic)) {
		a := attesterOf(t, s, nil)
		change(&a.templates[0])
		said, err := a.Hello(context.Background())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Offer(offerInput(p, said)); !problem.Is(err, problem.ReasonKeyAttributes) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	try("unrestricted", "not restricted", func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false })
	try("movable", "not fixedTPM", func(p *tpm2.TPMTPublic) {
		p.ObjectAttributes.FixedTPM, p.ObjectAttributes.FixedParent = false, false
	})
	// A key that somebody made elsewhere and imported: the TPM itself refuses to call it fixed, or its own.
	key := softKey(t)
	template := publicOf(key, attrRestricted|attrSign|attrUserWithAuth)
	a := attesterOf(t, s, nil)
	said, err := a.Hello(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var h hello
	if err := attest.DecodeEvidence(said, &h); err != nil {
		t.Fatal(err)
	}
	s.Do(func(tp transport.TPM) error {
		rsp, err := tpm2.LoadExternal{
			InPrivate: tpm2.New2B(tpm2.TPMTSensitive{
				SensitiveType: tpm2.TPMAlgECC,
				Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: rawKey(t, key)}),
			}),
			InPublic: tpm2.New2B(template), Hierarchy: tpm2.TPMRHNull,
		}.Execute(tp)
		if err != nil {
			// A restricted key may not be loaded from outside at all; then an unrestricted one is what is left.
			template.ObjectAttributes.Restricted = false
			return nil
		}
		_, err = tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}.Execute(tp)
		return err
	})
	h.AK = tpm2.Marshal(template)
	said, err = attest.EncodeEvidence(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Offer(offerInput(p, said)); !problem.Is(err, problem.ReasonKeyAttributes) {
		t.Errorf("imported: %v", err)
	}
}

// TestReplay: evidence is for one challenge, environment and session key, with the old proof and with one made anew.
func TestReplay(t *testing.T) {
	s := tpmtest.New(t, 0)
	a := attesterOf(t, s, nil)
	p := paramsOf(t, maker(s, nil))
	key, _, err := a.NewKey(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	bound := binding()
	if bound.SessionKey, err = attest.Thumbprint(key.Public()); err != nil {
		t.Fatal(err)
	}
	old := goes(t, a, p, bound)
	for name, change := range map[string]func(*attest.Binding){
		"another nonce":       func(b *attest.Binding) { b.Nonce = bytes.Repeat([]byte{8}, 32) },
		"another environment": func(b *attest.Binding) { b.Genesis = array(2) },
		"another session key": func(b *attest.Binding) { b.SessionKey = array(8) },
	} {
		in := old.input()
		change(&in.Binding)
		refused(t, name, in, problem.ReasonBadProof, "challenge")
		in.Evidence = seal(t, in.Binding, old.open(t))
		refused(t, name+", proof made anew", in, problem.ReasonBadQuote, "the quote is for another challenge")
		fresh := goes(t, a, p, in.Binding)
		refused(t, name+", only the certification is old", fresh.edit(t, func(ev *evidence) { ev.Certified = old.open(t).Certified }),
			problem.ReasonBadQuote, "the certification is for another challenge")
	}
}

func refused(t testing.TB, name string, in attest.Input, want problem.Reason, says string) {
	t.Helper()
	res, err := Verify(in)
	if !problem.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: got %v\nwant %s with %q", name, err, want, says)
	}
	if res.Claims != nil || res.Anchor != "" || res.Assurance != 0 {
		t.Errorf("%s: a result beside the refusal", name)
	}
	if err != nil && strings.Contains(err.Error(), "canary") {
		t.Errorf("%s: the refusal quotes the evidence: %v", name, err)
	}
}
