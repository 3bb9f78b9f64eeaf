package tpm

import (
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"slices"
	"strconv"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Verify is the verifier; its Params are of type Params. The proof is checked first: it is the cheapest, and who didn't find the
// offer's secret gets no further.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.BeginUpTo[Params](MaxEvidence, in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	if params.trust == nil || in.Secret == nil {
		return attest.Result{}, problem.New(problem.ReasonInternal, "verifier of tpm got no authorities, or no secrets")
	}
	var ev evidence
	if err := attest.DecodeUpTo(MaxEvidence, in.Evidence, &ev); err != nil {
		return attest.Result{}, err
	}
	if err := checkProof(in, ev); err != nil {
		return attest.Result{}, err
	}
	m, err := params.machine(ev.Hello, in.Now)
	if err != nil {
		return attest.Result{}, err
	}
	values, clock, err := checkQuote(in.Binding, ev, m)
	if err != nil {
		return attest.Result{}, err
	}
	if err := checkCertified(in.Binding, ev, m); err != nil {
		return attest.Result{}, err
	}
	x, err := explain(ev.Log, values, pcrsOf(m.authority))
	if err != nil {
		return attest.Result{}, err
	}
	var files map[[32]byte]bool
	if ev.IMA != nil {
		quoted, ok := values[ima.PCR]
		if !ok {
			return attest.Result{}, problem.New(problem.ReasonInvalid, "there is a measurement list of IMA, but PCR 10 is not quoted")
		}
		if files, err = ev.IMA.Verify(quoted); err != nil {
			return attest.Result{}, err
		}
	}
	b := x.describe(m.authority.References, in.Now)
	claims := claimsOf(m, ev, clock, values, b, files)
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	res := attest.Result{
		Claims: claims, Assurance: identity.Hardware, Anchor: Anchor(m.authority.Name), Key: m.akSum, Executables: files, NotAfter: m.notAfter,
	}
	// "signed" stays below: who signed a program is known then, but not which program it is, and old ones with known holes are signed too.
	if b.reference == bootKnown {
		res.Assurance = identity.Measured
	} else {
		res.Findings = b.findings
	}
	return res, nil
}

// checkProof refuses who did not find the secret that was hidden for this hello.
func checkProof(in attest.Input, ev evidence) error {
	said, err := attest.EncodeUpTo(maxHello, ev.Hello)
	if err != nil {
		return err
	}
	want, err := proofOf(in.Secret(said), in.Binding, ev)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, ev.Proof) {
		return problem.New(problem.ReasonBadProof,
			"the evidence is not by who found the secret of the offer to this hello, for this challenge, environment and session key")
	}
	return nil
}

// checkQuote gives the PCRs' values, which the attestation key quoted for this binding in the boot of the hello.
func checkQuote(b attest.Binding, ev evidence, m machine) (map[int][32]byte, attestation, error) {
	a, err := checkAttested(b, m, ev.Hello, ev.Quoted, ev.Signature, typeQuote, "quote")
	if err != nil {
		return nil, attestation{}, err
	}
	refuse := func(reason problem.Reason, format string, args ...any) (map[int][32]byte, attestation, error) {
		return nil, attestation{}, problem.New(reason, format, args...)
	}
	want := pcrsOf(m.authority)
	if len(a.selections) != 1 {
		return refuse(problem.ReasonBadQuote, "the quote is not over one bank of PCRs")
	}
	switch s := a.selections[0]; {
	case s.alg == algSHA1:
		return refuse(problem.ReasonWeakAlgorithm, "the quote is over the SHA-1 bank of PCRs")
	case s.alg != algSHA256:
		return refuse(problem.ReasonBadQuote, "the quote is over another bank of PCRs than SHA-256")
	case !slices.Equal(s.pcrs, want):
		return refuse(problem.ReasonBadQuote, "the quote is over other PCRs than the authority wants")
	}
	if len(ev.PCRs) != 32*len(want) {
		return refuse(problem.ReasonBadQuote, "there are not %d values of PCRs", len(want))
	}
	if _, sum := digest(m.ak.schemeHash, ev.PCRs); !bytes.Equal(sum, a.pcrDigest) {
		return refuse(problem.ReasonBadQuote, "the values of the PCRs are not the quoted ones")
	}
	values := make(map[int][32]byte, len(want))
	for i, pcr := range want {
		values[pcr] = [32]byte(ev.PCRs[32*i:])
	}
	return values, a, nil
}

// checkAttested is what quote and certification have in common.
func checkAttested(b attest.Binding, m machine, h hello, attested, sig []byte, kind uint16, what string) (attestation, error) {
	if len(attested) > maxAttest || len(sig) > maxSigned {
		return attestation{}, problem.New(problem.ReasonTooLarge, "the %s or its signature has more than %d bytes", what, maxAttest)
	}
	if err := checkSigned(m.ak, m.akKey, attested, sig, what); err != nil {
		return attestation{}, err
	}
	a, magic, whole := parseAttestation(attested)
	want := b.Digest()
	switch {
	case !magic:
		return attestation{}, problem.New(problem.ReasonBadQuote, "the %s was not made by a TPM (another magic number)", what)
	case !whole || a.kind != kind:
		return attestation{}, problem.New(problem.ReasonBadQuote, "the %s is an attestation of another type, or damaged", what)
	case !bytes.Equal(a.extra, want[:]):
		return attestation{}, problem.New(problem.ReasonBadQuote, "the %s is for another challenge, environment or session key", what)
	case a.resets != h.Resets || a.restarts != h.Restarts:
		return attestation{}, problem.New(problem.ReasonReset, "the machine was restarted or resumed between its hello and the %s", what)
	}
	return a, nil
}

// checkCertified refuses a certification that is not of this session key. There needn't be one.
func checkCertified(b attest.Binding, ev evidence, m machine) error {
	c := ev.Certified
	if c == nil {
		return nil
	}
	p, key, err := checkSessionKey(c.Public)
	if err != nil {
		return err
	}
	a, err := checkAttested(b, m, ev.Hello, c.Attested, c.Signature, typeCertify, "certification")
	if err != nil {
		return err
	}
	if !bytes.Equal(a.name, p.name()) {
		return problem.New(problem.ReasonBadQuote, "the certification is of another key than the one that is shown")
	}
	sum, err := attest.Thumbprint(key)
	if err != nil {
		return err
	}
	if sum != b.SessionKey {
		return problem.New(problem.ReasonBadQuote, "the certified key is not the session key")
	}
	return nil
}

// claimsOf says what was proved. Every field is always there, so that a rule that reads one never fails for want of it:
//
//	authority    the named authority of the bundle
//	ek, ak       "sha256:…" of the SPKI of the endorsement key, which is the machine's stable name, and of the attestation key
//	vouched      "certificate" or "listed"
//	tpm          {manufacturer, model, version}, of the certificate; "" where it says nothing
//	key          {location}: of the session key, "tpm" or "software"
//	clock        {resets, restarts}: of the TPM, decimal
//	secure_boot  "on", "off", "unknown"
//	boot         {reference, name, version, findings[], eventlog, cmdline, loader, kernel, images[]}
//	pcr          number → 64 hexadecimal digits
//	ima          {list, executables[]}
func claimsOf(m machine, ev evidence, clock attestation, values map[int][32]byte, b boot, files map[[32]byte]bool) map[string]any {
	vouched, location, list := "listed", "software", "none"
	if m.certificate {
		vouched = "certificate"
	}
	if ev.Certified != nil {
		location = "tpm"
	}
	pcrs := make(map[string]any, len(values))
	for pcr, v := range values {
		pcrs[strconv.Itoa(pcr)] = hex.EncodeToString(v[:])
	}
	executables := make([]string, 0, len(files))
	for f := range files {
		executables = append(executables, attest.DigestText(f))
	}
	slices.Sort(executables)
	if ev.IMA != nil {
		list = "replayed"
	}
	loader, kernel := "", ""
	if len(b.images) > 0 {
		loader, kernel = b.images[0], b.images[len(b.images)-1]
	}
	return map[string]any{
		"authority":   m.authority.Name,
		"ek":          attest.DigestText(m.ekSum),
		"ak":          attest.DigestText(m.akSum),
		"vouched":     vouched,
		"tpm":         map[string]any{"manufacturer": m.model.manufacturer, "model": m.model.model, "version": m.model.version},
		"key":         map[string]any{"location": location},
		"clock":       map[string]any{"resets": decimal(clock.resets), "restarts": decimal(clock.restarts)},
		"secure_boot": b.secureBoot,
		"boot": map[string]any{
			"reference": b.reference, "name": b.name, "version": b.version, "findings": texts(b.findings), "eventlog": b.eventLog,
			"cmdline": b.cmdline, "loader": loader, "kernel": kernel, "images": texts(b.images),
		},
		"pcr": pcrs,
		"ima": map[string]any{"list": list, "executables": texts(executables)},
	}
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// texts makes of a list of texts what JSON makes of it.
func texts(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}
