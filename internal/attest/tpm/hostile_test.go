package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// hostileCase is a lie of a machine that knows the offer's secret, and has its attestation key in software: change is made before the
// quote is signed, late after it and before the proof, input last of all.
type hostileCase struct {
	want   problem.Reason
	says   string
	change func(*forger)
	late   func(*forger)
	input  func(*attest.Input)
}

// TestHostileEvidence is the table of what liars would send; each lie alone stands between them and a good result.
func TestHostileEvidence(t *testing.T) {
	if _, err := Verify(newForger(t, typical("kernel 1", nil)).input()); err != nil {
		t.Fatal(err)
	}
	cases := map[string]hostileCase{}
	hostileForm(cases)
	hostileEndorsement(cases)
	hostileAttestationKey(cases)
	hostileQuote(cases)
	hostileLog(cases)
	hostileSessionKey(cases)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newForger(t, typical("kernel 1", nil))
			if c.change != nil {
				c.change(f)
			}
			in := f.input()
			if c.late != nil {
				c.late(f)
				in = f.sealed()
			}
			if c.input != nil {
				c.input(&in)
			}
			refused(t, name, in, c.want, c.says)
		})
	}
	t.Logf("%d hostile evidences", len(cases))
}

func hostileForm(cases map[string]hostileCase) {
	add := func(name string, want problem.Reason, says string, input func(*attest.Input)) {
		cases["form: "+name] = hostileCase{want: want, says: says, input: input}
	}
	replace := func(old, new string) func(*attest.Input) {
		return func(in *attest.Input) { in.Evidence = bytes.Replace(in.Evidence, []byte(old), []byte(new), 1) }
	}
	add("empty", problem.ReasonInvalid, "", func(in *attest.Input) { in.Evidence = nil })
	add("null", problem.ReasonInvalid, "", func(in *attest.Input) { in.Evidence = []byte("null") })
	add("truncated", problem.ReasonInvalid, "", func(in *attest.Input) { in.Evidence = in.Evidence[:len(in.Evidence)-2] })
	add("trailing", problem.ReasonInvalid, "", func(in *attest.Input) { in.Evidence = append(in.Evidence, "{}"...) })
	add("unknown field", problem.ReasonInvalid, "", replace(`{"hello"`, `{"canary":1,"hello"`))
	add("duplicate field", problem.ReasonInvalid, "", replace(`{"hello"`, `{"log":"","hello"`))
	add("other letter case", problem.ReasonInvalid, "", replace(`"quoted"`, `"Quoted"`))
	add("white space", problem.ReasonInvalid, "", replace(`,"quoted"`, `, "quoted"`))
	add("oversized", problem.ReasonTooLarge, "bytes", func(in *attest.Input) { in.Evidence = make([]byte, MaxEvidence+1) })
	add("no proof", problem.ReasonInvalid, "", func(in *attest.Input) {
		in.Evidence = slices.Concat(in.Evidence[:bytes.Index(in.Evidence, []byte(`,"proof"`))], []byte(`,"proof":""}`))
	})
	add("activation secret wrong", problem.ReasonBadProof, "secret of the offer", func(in *attest.Input) {
		in.Secret = func([]byte) [32]byte { return array(3) }
	})
	add("changed on the way", problem.ReasonBadProof, "secret of the offer", replace(`"resets":3`, `"resets":4`))
	add("no secrets", problem.ReasonInternal, "", func(in *attest.Input) { in.Secret = nil })
	add("other params", problem.ReasonInternal, "", func(in *attest.Input) { in.Params = "x" })
	add("empty params", problem.ReasonInternal, "", func(in *attest.Input) { in.Params = Params{} })
	add("other method", problem.ReasonInternal, "", func(in *attest.Input) { in.Binding.Method = "x509" })
	cases["form: hello too large"] = hostileCase{want: problem.ReasonTooLarge, says: "bytes", change: func(f *forger) {
		f.ev.Hello.Chain = [][]byte{make([]byte, maxHello)}
	}}
}

func hostileEndorsement(cases map[string]hostileCase) {
	add := func(name, says string, want problem.Reason, change func(*forger)) {
		cases["ek: "+name] = hostileCase{want: want, says: says, change: change}
	}
	chain := func(name, says string, change func(*forger)) { add(name, says, problem.ReasonBadChain, change) }
	leaf := func(name, says string, change func(*x509.Certificate)) {
		chain(name, says, func(f *forger) { f.ev.Hello.Chain = [][]byte{f.endorse(change).Raw} })
	}
	chain("certificate of another TPM", "another endorsement key", func(f *forger) { f.ev.Hello.Chain = newForger(f.t, nil).ev.Hello.Chain })
	chain("another authority's", "does not lead to an authority", func(f *forger) {
		other := newForger(f.t, nil)
		f.ca, f.caKey = other.ca, other.caKey
		f.ev.Hello.Chain = [][]byte{f.endorse(nil).Raw}
	})
	chain("a CA of the same name", "does not lead to an authority", func(f *forger) {
		f.caKey = softKey(f.t)
		f.ca = f.issue(f.caKey, nil, nil, func(c *x509.Certificate) { c.IsCA, c.Subject.CommonName = true, "Paper Root" })
		f.ev.Hello.Chain = [][]byte{f.endorse(nil).Raw}
	})
	chain("self-signed", "self-signed", func(f *forger) {
		f.ca, f.caKey = nil, f.ek
		f.ev.Hello.Chain = [][]byte{f.issue(f.ek, nil, nil, func(c *x509.Certificate) { c.Subject.CommonName = "canary" }).Raw}
	})
	chain("no certificate, not listed", "no authority of the bundle lists it", func(f *forger) { f.ev.Hello.Chain = [][]byte{} })
	chain("another key listed", "no authority of the bundle lists it", func(f *forger) {
		f.ev.Hello.Chain = [][]byte{}
		f.auth.Certificates, f.auth.EndorsementKeys = nil, [][32]byte{array(7)}
	})
	chain("CA expired", "authority's own", func(f *forger) {
		f.ca = f.issue(f.caKey, nil, nil, func(c *x509.Certificate) { c.IsCA, c.NotAfter = true, f.now.Add(-time.Second) })
		f.auth.Certificates = []*x509.Certificate{f.ca}
		f.ev.Hello.Chain = [][]byte{f.endorse(nil).Raw}
	})
	chain("issuer expired", "certificate 2 of the chain expired", func(f *forger) {
		key := softKey(f.t)
		inter := f.issue(key, f.ca, f.caKey, func(c *x509.Certificate) {
			c.IsCA, c.Subject.CommonName, c.NotAfter = true, "canary", f.now.Add(-time.Second)
		})
		f.ca, f.caKey = inter, key
		f.ev.Hello.Chain = [][]byte{f.endorse(nil).Raw, inter.Raw}
	})
	leaf("expired", "certificate 1 of the chain expired", func(c *x509.Certificate) { c.NotAfter = then.Add(-time.Second) })
	leaf("not valid yet", "not valid before", func(c *x509.Certificate) { c.NotBefore = then.Add(time.Second) })
	leaf("a CA's", "a CA's", func(c *x509.Certificate) { c.IsCA = true })
	leaf("another use", "extended key usage", func(c *x509.Certificate) {
		c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	leaf("key only signs", "key usage", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	leaf("another critical extension", "critical extension", func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
	})
	leaf("alternative name damaged", "can't be", func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{0x30, 3, 0xa4, 1, 0} })
	leaf("two models", "one short text each", func(c *x509.Certificate) { c.ExtraExtensions[0].Value = namesTwice() })
	add("null chain", "null", problem.ReasonInvalid, func(f *forger) { f.ev.Hello.Chain = nil })
	chain("not a certificate", "can't be parsed", func(f *forger) { f.ev.Hello.Chain = [][]byte{{0x30, 0}} })
	chain("the same twice", "twice", func(f *forger) { f.ev.Hello.Chain = [][]byte{f.leaf.Raw, f.leaf.Raw} })
	chain("issuer is no CA", "not a CA's", func(f *forger) { f.ev.Hello.Chain = [][]byte{f.leaf.Raw, f.endorse(nil).Raw} })
	add("nine certificates", "more than 8", problem.ReasonTooLarge, func(f *forger) { f.ev.Hello.Chain = make([][]byte, 9) })
	add("huge certificate", "bytes", problem.ReasonTooLarge, func(f *forger) { f.ev.Hello.Chain = [][]byte{make([]byte, maxCertificate+1)} })
	add("not a public area", "", problem.ReasonInvalid, func(f *forger) { f.ev.Hello.EK = []byte("canary") })
	add("trailing byte", "", problem.ReasonInvalid, func(f *forger) { f.ev.Hello.EK = append(f.ev.Hello.EK, 0) })
	add("not from a template", "default templates", problem.ReasonKeyAttributes, func(f *forger) { f.ev.Hello.EK[7] ^= attrFixedTPM })
	add("point off the curve", "P-384", problem.ReasonWeakAlgorithm, func(f *forger) { f.ev.Hello.EK[len(f.ev.Hello.EK)-1] ^= 1 })
	add("weak RSA", "2048 bits", problem.ReasonWeakAlgorithm, func(f *forger) {
		p := endorsements()[3].template
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 128)})
		f.ev.Hello.EK = tpm2.Marshal(p)
	})
}

func namesTwice() []byte {
	name := pkix.RDNSequence{{{Type: oidModel, Value: "canary 1"}}, {{Type: oidModel, Value: "canary 2"}}}
	der, err := asn1.Marshal(name)
	if err != nil {
		panic(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der}})
	if err != nil {
		panic(err)
	}
	return san
}

func hostileAttestationKey(cases map[string]hostileCase) {
	add := func(name, says string, want problem.Reason, change func(*tpm2.TPMTPublic)) {
		cases["ak: "+name] = hostileCase{want: want, says: says, change: func(f *forger) {
			p := publicOf(f.ak, goodAK)
			change(&p)
			f.ev.Hello.AK = tpm2.Marshal(p)
		}}
	}
	bits := func(name, says string, bits uint32) {
		add(name, says, problem.ReasonKeyAttributes, func(p *tpm2.TPMTPublic) { p.ObjectAttributes = attributesOf(bits) })
	}
	bits("not restricted", "not restricted", goodAK&^attrRestricted)
	bits("not fixedTPM", "not fixedTPM", goodAK&^attrFixedTPM)
	bits("not fixedParent", "not fixedParent", goodAK&^attrFixedParent)
	bits("imported", "not fixedTPM", goodAK&^(attrFixedTPM|attrFixedParent|attrSensitiveDataOrigin))
	bits("made outside", "no sensitiveDataOrigin", goodAK&^attrSensitiveDataOrigin)
	bits("can decrypt", "decrypt", goodAK|attrDecrypt)
	bits("can't sign", "can't sign", goodAK&^attrSign)
	bits("encryptedDuplication", "encryptedDuplication", goodAK|attrEncryptedDup)
	bits("unknown attribute", "not known", goodAK|1<<31)
	ecc := func(scheme tpm2.TPMTECCScheme, curve tpm2.TPMECCCurve) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Scheme: scheme, CurveID: curve})
		}
	}
	sha1 := tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA1})}
	add("signs with SHA-1", "scheme", problem.ReasonWeakAlgorithm, ecc(sha1, tpm2.TPMECCNistP256))
	add("no scheme", "scheme", problem.ReasonWeakAlgorithm, ecc(tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}, tpm2.TPMECCNistP256))
	add("on P-224", "P-384", problem.ReasonWeakAlgorithm, ecc(ecdsaSHA256(), tpm2.TPMECCNistP224))
	add("on P-521", "P-384", problem.ReasonWeakAlgorithm, ecc(ecdsaSHA256(), tpm2.TPMECCNistP521))
	add("name by SHA-1", "scheme", problem.ReasonWeakAlgorithm, func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 })
	add("RSA of 1024 bits", "2048 bits", problem.ReasonWeakAlgorithm, func(p *tpm2.TPMTPublic) {
		*p = attestationTemplates()[1]
		parms, err := p.Parameters.RSADetail()
		if err != nil {
			panic(err)
		}
		parms.KeyBits = 1024
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 128)})
	})
	cases["ak: damaged"] = hostileCase{want: problem.ReasonInvalid, change: func(f *forger) { f.ev.Hello.AK = f.ev.Hello.AK[1:] }}
	cases["ak: another's"] = hostileCase{want: problem.ReasonBadQuote, says: "not signed by the attestation key", change: func(f *forger) {
		f.ev.Hello.AK = tpm2.Marshal(publicOf(softKey(f.t), goodAK))
	}}
}

func hostileQuote(cases map[string]hostileCase) {
	add := func(name, says string, want problem.Reason, change func(*forger)) {
		cases["quote: "+name] = hostileCase{want: want, says: says, change: change}
	}
	edit := func(name, says string, want problem.Reason, edit func([]byte) []byte) {
		add(name, says, want, func(f *forger) { f.edit = edit })
	}
	late := func(name, says string, want problem.Reason, late func(*forger)) {
		cases["quote: "+name] = hostileCase{want: want, says: says, late: late}
	}
	edit("wrong magic", "magic", problem.ReasonBadQuote, func(b []byte) []byte { b[0] ^= 1; return b })
	edit("another type", "another type", problem.ReasonBadQuote, func(b []byte) []byte { b[5] = 0x1a; return b })
	edit("a certification", "another type", problem.ReasonBadQuote, func(b []byte) []byte { b[5] = 0x17; return b })
	edit("trailing byte", "damaged", problem.ReasonBadQuote, func(b []byte) []byte { return append(b, 0) })
	edit("truncated", "damaged", problem.ReasonBadQuote, func(b []byte) []byte { return b[:len(b)-1] })
	edit("too many banks", "damaged", problem.ReasonBadQuote, func(b []byte) []byte {
		b[len(b)-44] = 0xff
		return b
	})
	edit("two banks", "one bank", problem.ReasonBadQuote, func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[len(b)-44:], 2)
		return slices.Concat(b[:len(b)-34], []byte{0, algSHA1, 3, 0, 0, 0}, b[len(b)-34:])
	})
	edit("empty", "magic", problem.ReasonBadQuote, func([]byte) []byte { return nil })
	edit("too long", "bytes", problem.ReasonTooLarge, func([]byte) []byte { return make([]byte, maxAttest+1) })
	add("SHA-1 bank", "SHA-1", problem.ReasonWeakAlgorithm, func(f *forger) { f.bank = algSHA1 })
	add("SHA-384 bank", "another bank", problem.ReasonBadQuote, func(f *forger) { f.bank = algSHA384 })
	add("fewer PCRs", "other PCRs", problem.ReasonBadQuote, func(f *forger) { f.pcrs = f.pcrs[1:] })
	add("more PCRs", "other PCRs", problem.ReasonBadQuote, func(f *forger) { f.pcrs = append(f.pcrs, 16) })
	add("after a reset", "restarted", problem.ReasonReset, func(f *forger) { f.reboot = 1 })
	add("for another nonce", "another challenge", problem.ReasonBadQuote, func(f *forger) {
		f.edit = func(b []byte) []byte { b[20] ^= 1; return b }
	})
	late("wrong PCR value", "not the quoted ones", problem.ReasonBadQuote, func(f *forger) { f.ev.PCRs[3] ^= 1 })
	late("a value missing", "values of PCRs", problem.ReasonBadQuote, func(f *forger) { f.ev.PCRs = f.ev.PCRs[32:] })
	late("no values", "values of PCRs", problem.ReasonBadQuote, func(f *forger) { f.ev.PCRs = []byte{} })
	late("signature flipped", "not signed", problem.ReasonBadQuote, func(f *forger) { f.ev.Signature[10] ^= 1 })
	late("signature empty", "not signed", problem.ReasonBadQuote, func(f *forger) { f.ev.Signature = []byte{} })
	late("signature over SHA-1", "SHA-1", problem.ReasonWeakAlgorithm, func(f *forger) { f.ev.Signature[3] = algSHA1 })
	late("signature of another scheme", "not signed", problem.ReasonBadQuote, func(f *forger) { f.ev.Signature[1] = algRSASSA })
	late("zero r and s", "not signed", problem.ReasonBadQuote, func(f *forger) {
		f.ev.Signature = []byte{0, algECDSA, 0, algSHA256, 0, 1, 0, 0, 1, 0}
	})
	late("huge signature", "bytes", problem.ReasonTooLarge, func(f *forger) { f.ev.Signature = make([]byte, maxSigned+1) })
	late("quoted flipped", "not signed", problem.ReasonBadQuote, func(f *forger) { f.ev.Quoted[50] ^= 1 })
}

func hostileLog(cases map[string]hostileCase) {
	mismatch := func(name, says string, change func(*forger)) {
		cases["log: "+name] = hostileCase{want: problem.ReasonEventLog, says: says, change: change}
	}
	rewritten := func(name, says string, rewrite func([]event) []event) {
		mismatch(name, says, func(f *forger) {
			l := typical("kernel 1", nil)
			l.events = rewrite(l.events)
			f.ev.Log = l.bytes()
		})
	}
	kernel := sha256.Sum256([]byte("kernel 1"))
	find := func(all []event) int { return slices.IndexFunc(all, func(e event) bool { return e.digest == kernel }) }
	rewritten("an event flipped", "PCR 4", func(all []event) []event { all[find(all)].digest[0] ^= 1; return all })
	rewritten("an event omitted", "PCR 4", func(all []event) []event { return slices.Delete(all, find(all), find(all)+1) })
	rewritten("an event hidden as not extended", "PCR 4", func(all []event) []event { all[find(all)].kind = evNoAction; return all })
	rewritten("an event in another PCR", "PCR", func(all []event) []event { all[find(all)].pcr = 6; return all })
	rewritten("an event twice", "PCR 4", func(all []event) []event { return append(all, all[find(all)]) })
	rewritten("events exchanged", "PCR 4", func(all []event) []event {
		i := find(all)
		for j := range all {
			if all[j].pcr == 4 && j != i {
				all[i], all[j] = all[j], all[i]
				break
			}
		}
		return all
	})
	rewritten("no events", "PCR 0", func([]event) []event { return nil })
	rewritten("another locality", "PCR 0", func(all []event) []event {
		return append([]event{{kind: evNoAction, data: []byte("StartupLocality\x00\x03")}}, all...)
	})
	rewritten("locality twice", "locality", func(all []event) []event {
		e := event{kind: evNoAction, data: []byte("StartupLocality\x00\x00")}
		return append([]event{e, e}, all...)
	})
	rewritten("locality late", "locality", func(all []event) []event {
		return append(all, event{kind: evNoAction, data: []byte("StartupLocality\x00\x00")})
	})
	rewritten("a PCR that isn't one", "no such PCR", func(all []event) []event { return append(all, event{pcr: 24}) })
	mismatch("truncated", "truncated", func(f *forger) { f.ev.Log = f.ev.Log[:len(f.ev.Log)-1] })
	mismatch("header truncated", "truncated", func(f *forger) { f.ev.Log = f.ev.Log[:40] })
	mismatch("trailing", "truncated", func(f *forger) { f.ev.Log = append(f.ev.Log, 0) })
	mismatch("no banks", "no banks", func(f *forger) { f.ev.Log = header() })
	mismatch("one bank twice", "twice", func(f *forger) { f.ev.Log = header(algSHA256, algSHA256) })
	mismatch("huge event", "truncated", func(f *forger) {
		f.ev.Log = append(header(algSHA256), bytes.Repeat([]byte{0xff}, 4)...)
		f.ev.Log = append(f.ev.Log, evNoAction, 0, 0, 0, 1, 0, 0, 0, algSHA256, 0)
		f.ev.Log = append(append(f.ev.Log, make([]byte, 32)...), 0xff, 0xff, 0xff, 0xff)
	})
	mismatch("event without SHA-256", "one SHA-256 digest", func(f *forger) {
		f.ev.Log = append(header(algSHA1, algSHA256), 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, algSHA1, 0)
		f.ev.Log = append(f.ev.Log, make([]byte, 24)...)
	})
	mismatch("unknown bank", "unknown bank", func(f *forger) {
		f.ev.Log = append(header(algSHA256), 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0x99, 0)
	})
	cases["log: old format"] = hostileCase{want: problem.ReasonWeakAlgorithm, says: "SHA-1", change: func(f *forger) { f.ev.Log = make([]byte, 64) }}
	cases["log: SHA-1 only"] = hostileCase{want: problem.ReasonWeakAlgorithm, says: "SHA-256", change: func(f *forger) { f.ev.Log = header(algSHA1) }}
	cases["log: oversized"] = hostileCase{want: problem.ReasonTooLarge, says: "bytes", change: func(f *forger) { f.ev.Log = make([]byte, MaxEventLog+1) }}
	cases["log: too many events"] = hostileCase{want: problem.ReasonTooLarge, says: "events", change: func(f *forger) {
		one := append([]byte{0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, algSHA256, 0}, make([]byte, 36)...)
		f.ev.Log = append(header(algSHA256), bytes.Repeat(one, maxEvents+1)...)
	}}
	hostileIMA(cases)
}

func hostileIMA(cases map[string]hostileCase) {
	add := func(name, says string, want problem.Reason, change func(*ima.List)) {
		cases["ima: "+name] = hostileCase{want: want, says: says, change: func(f *forger) {
			f.quotes(append(authority.DefaultPCRs(), ima.PCR)...)
			f.ev.IMA, f.values[ima.PCR] = someIMA()
			change(f.ev.IMA)
		}}
	}
	bad := func(name, says string, change func(*ima.List)) { add(name, says, problem.ReasonEventLog, change) }
	bad("entry omitted", "does not replay", func(l *ima.List) { l.Digests = l.Digests[32:] })
	bad("entry flipped", "does not replay", func(l *ima.List) { l.Digests[40] ^= 1 })
	bad("another start", "does not replay", func(l *ima.List) { l.Start[0] ^= 1 })
	bad("half a digest", "whole digests", func(l *ima.List) { l.Digests = l.Digests[1:] })
	bad("nothing", "whole digests", func(l *ima.List) { l.Digests = []byte{} })
	bad("file flipped", "not what was measured", func(l *ima.List) { l.Entries[0].Data[12] ^= 1 })
	bad("entry at another place", "not what was measured", func(l *ima.List) { l.Entries[0].At++ })
	bad("entry at no place", "no place", func(l *ima.List) { l.Entries[0].At = 99 })
	bad("entry at a huge place", "no place", func(l *ima.List) { l.Entries[0].At = 1<<32 - 1 })
	bad("entry twice", "out of order", func(l *ima.List) { l.Entries = append(l.Entries, l.Entries[0]) })
	bad("entry of another form", "without a SHA-256 digest", func(l *ima.List) { l.Entries = []ima.Entry{{At: 2, Data: []byte("canary")}} })
	add("too long", "16384", problem.ReasonTooLarge, func(l *ima.List) { l.Digests = make([]byte, 32*(ima.Max+1)) })
	add("too many in full", "in full", problem.ReasonTooLarge, func(l *ima.List) { l.Entries = make([]ima.Entry, ima.MaxRevealed+1) })
	cases["ima: PCR 10 is not quoted"] = hostileCase{want: problem.ReasonInvalid, says: "PCR 10", change: func(f *forger) { f.ev.IMA, _ = someIMA() }}
}

func hostileSessionKey(cases map[string]hostileCase) {
	const good = goodAK &^ attrRestricted
	add := func(name, says string, want problem.Reason, change func(*forger, *ecdsa.PrivateKey)) {
		cases["session key: "+name] = hostileCase{want: want, says: says, change: func(f *forger) {
			key := softKey(f.t)
			f.bind.SessionKey = thumbprint(f.t, key)
			change(f, key)
		}}
	}
	bits := func(name, says string, bits uint32) {
		add(name, says, problem.ReasonKeyAttributes, func(f *forger, key *ecdsa.PrivateKey) { f.certify(key, bits, nil) })
	}
	bits("not fixedTPM", "not fixedTPM", good&^attrFixedTPM)
	bits("not fixedParent", "not fixedParent", good&^attrFixedParent)
	bits("made outside", "no sensitiveDataOrigin", good&^attrSensitiveDataOrigin)
	bits("restricted", "restricted", good|attrRestricted)
	add("certify of another key", "another key than the one that is shown", problem.ReasonBadQuote, func(f *forger, key *ecdsa.PrivateKey) {
		f.certify(key, good, bytes.Repeat([]byte{1}, 34))
	})
	add("not the session key", "not the session key", problem.ReasonBadQuote, func(f *forger, _ *ecdsa.PrivateKey) { f.certify(softKey(f.t), good, nil) })
	add("signed by another", "not signed", problem.ReasonBadQuote, func(f *forger, key *ecdsa.PrivateKey) {
		real := f.ak
		f.ak = softKey(f.t)
		f.certify(key, good, nil)
		f.ak = real
	})
	add("for another challenge", "another challenge", problem.ReasonBadQuote, func(f *forger, key *ecdsa.PrivateKey) {
		real := f.bind
		f.bind.Nonce = bytes.Repeat([]byte{8}, 32)
		f.certify(key, good, nil)
		f.bind = real
	})
	add("of another boot", "restarted", problem.ReasonReset, func(f *forger, key *ecdsa.PrivateKey) {
		f.reboot = 1
		f.certify(key, good, nil)
		f.reboot = 0
	})
	add("a quote in its place", "another type", problem.ReasonBadQuote, func(f *forger, key *ecdsa.PrivateKey) {
		f.input()
		f.certify(key, good, nil)
		f.ev.Certified.Attested, f.ev.Certified.Signature = f.ev.Quoted, f.ev.Signature
	})
	add("damaged", "", problem.ReasonInvalid, func(f *forger, key *ecdsa.PrivateKey) {
		f.certify(key, good, nil)
		f.ev.Certified.Public = f.ev.Certified.Public[:20]
	})
}

func thumbprint(t testing.TB, key *ecdsa.PrivateKey) [32]byte {
	t.Helper()
	sum, err := attest.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestAcceptedForms is the other side of the table: what must not be refused.
func TestAcceptedForms(t *testing.T) {
	for name, change := range map[string]func(*forger){
		"as it is": func(*forger) {},
		"no log":   func(f *forger) { f.ev.Log = nil },
		"no use named": func(f *forger) {
			f.ev.Hello.Chain = [][]byte{f.endorse(func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }).Raw}
		},
		"no key usage": func(f *forger) {
			f.ev.Hello.Chain = [][]byte{f.endorse(func(c *x509.Certificate) { c.KeyUsage = 0 }).Raw}
		},
		"no name of the TPM": func(f *forger) {
			f.ev.Hello.Chain = [][]byte{f.endorse(func(c *x509.Certificate) { c.ExtraExtensions = nil }).Raw}
		},
		"root sent too": func(f *forger) { f.ev.Hello.Chain = [][]byte{f.leaf.Raw, f.ca.Raw} },
		"ends this second": func(f *forger) {
			f.ev.Hello.Chain = [][]byte{f.endorse(func(c *x509.Certificate) { c.NotAfter = then }).Raw}
		},
		"listed, certificate expired": func(f *forger) {
			f.ev.Hello.Chain = [][]byte{f.endorse(func(c *x509.Certificate) { c.NotAfter = then.Add(-time.Second) }).Raw}
			f.auth.EndorsementKeys = [][32]byte{thumbprint(f.t, f.ek)}
		},
		"listed, certificate unreadable": func(f *forger) {
			f.ev.Hello.Chain = [][]byte{{0x30, 0}}
			f.auth.EndorsementKeys = [][32]byte{thumbprint(f.t, f.ek)}
		},
		"PCR that the system extends": func(f *forger) {
			f.quotes(4, 7, 11, 15)
			f.values[11], f.values[15] = array(1), array(2)
		},
		"session key of the TPM": func(f *forger) {
			key := softKey(f.t)
			f.bind.SessionKey = thumbprint(f.t, key)
			f.certify(key, goodAK&^attrRestricted, nil)
		},
	} {
		f := newForger(t, typical("kernel 1", nil))
		change(f)
		if _, err := Verify(f.input()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRSAKeys: the schemes of RSA attestation keys, which swtpm shows for one of them only.
func TestRSAKeys(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("message")
	for _, hash := range []uint16{algSHA256, algSHA384} {
		h, sum := digest(hash, message)
		pss, err := rsa.SignPSS(rand.Reader, key, h, sum, nil)
		if err != nil {
			t.Fatal(err)
		}
		pkcs1, err := rsa.SignPKCS1v15(nil, key, h, sum)
		if err != nil {
			t.Fatal(err)
		}
		for scheme, raw := range map[uint16][]byte{algRSAPSS: pss, algRSASSA: pkcs1} {
			p := public{kind: algRSA, scheme: scheme, schemeHash: hash}
			sig := binary.BigEndian.AppendUint16(nil, scheme)
			sig = sized(binary.BigEndian.AppendUint16(sig, hash), raw)
			if err := checkSigned(p, key.Public(), message, sig, "quote"); err != nil {
				t.Error(err)
			}
			p.schemeHash ^= algSHA256 ^ algSHA384
			if err := checkSigned(p, key.Public(), message, sig, "quote"); !problem.Is(err, problem.ReasonBadQuote) {
				t.Errorf("another hash than the key's: %v", err)
			}
			p.schemeHash = hash
			p.scheme ^= algRSASSA ^ algRSAPSS
			if err := checkSigned(p, key.Public(), message, sig, "quote"); !problem.Is(err, problem.ReasonBadQuote) {
				t.Error(err)
			}
		}
	}
	if _, err := (public{kind: algECC, curve: curveP384, x: make([]byte, 49), y: make([]byte, 48)}).key(); !problem.Is(err, problem.ReasonWeakAlgorithm) {
		t.Error(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p384.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (public{kind: algECC, curve: curveP384, x: raw[1:49], y: raw[49:]}).key(); err != nil || !p384.PublicKey.Equal(got) {
		t.Error(err)
	}
}

// TestOfferRefuses: a stranger asks for offers, so what can't lead anywhere gets none.
func TestOfferRefuses(t *testing.T) {
	f := newForger(t, nil)
	p := paramsOf(t, f.auth)
	said, err := attest.EncodeEvidence(f.ev.Hello)
	if err != nil {
		t.Fatal(err)
	}
	good := offerInput(p, said)
	good.Now = then
	if _, err := Offer(good); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		want   problem.Reason
		change func(*attest.OfferInput)
	}{
		"nothing":       {problem.ReasonInvalid, func(in *attest.OfferInput) { in.Hello = nil }},
		"trailing":      {problem.ReasonInvalid, func(in *attest.OfferInput) { in.Hello = append(bytes.Clone(said), ' ') }},
		"too large":     {problem.ReasonTooLarge, func(in *attest.OfferInput) { in.Hello = make([]byte, maxHello+1) }},
		"unknown CA":    {problem.ReasonBadChain, func(in *attest.OfferInput) { in.Params = paramsOf(t, newForger(t, nil).auth) }},
		"too late":      {problem.ReasonBadChain, func(in *attest.OfferInput) { in.Now = then.Add(2 * time.Hour) }},
		"no params":     {problem.ReasonInternal, func(in *attest.OfferInput) { in.Params = nil }},
		"no time":       {problem.ReasonInternal, func(in *attest.OfferInput) { in.Now = time.Time{} }},
		"no randomness": {problem.ReasonInternal, func(in *attest.OfferInput) { in.Random = nil }},
	} {
		in := good
		c.change(&in)
		if _, err := Offer(in); !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Randomness that fails makes no offer, at least where the library uses what it is given.
	rsaForger := newForger(t, nil)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := endorsements()[3].template
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	rsaForger.ev.Hello.EK, rsaForger.ev.Hello.Chain = tpm2.Marshal(template), [][]byte{}
	sum, err := attest.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	rsaForger.auth.EndorsementKeys = [][32]byte{sum}
	in := good
	in.Params = paramsOf(t, rsaForger.auth)
	if in.Hello, err = attest.EncodeEvidence(rsaForger.ev.Hello); err != nil {
		t.Fatal(err)
	}
	if _, err := Offer(in); err != nil {
		t.Error(err)
	}
	in.Random = strings.NewReader("x")
	if _, err := Offer(in); !problem.Is(err, problem.ReasonEntropy) {
		t.Errorf("no randomness: %v", err)
	}
}
