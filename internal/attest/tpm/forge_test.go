package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
)

// forger is a TPM on paper: keys in software, so that it signs what no TPM would. It also knows every secret. All that stands between
// it and a good result are the verifier's other checks.
type forger struct {
	t      testing.TB
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey
	ek, ak *ecdsa.PrivateKey
	leaf   *x509.Certificate
	ev     evidence
	values map[int][32]byte
	pcrs   []int
	bind   attest.Binding
	auth   authority.Authority
	now    time.Time
	edit   func([]byte) []byte // of what is quoted, before it is signed
	bank   uint16
	reboot uint32 // added to the counters in the quote
}

var then = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func softKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rawKey(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func attributesOf(bits uint32) tpm2.TPMAObject {
	out, err := tpm2.Unmarshal[tpm2.TPMAObject](binary.BigEndian.AppendUint32(nil, bits))
	if err != nil {
		panic(err)
	}
	return *out
}

func point(key *ecdsa.PrivateKey) *tpm2.TPMSECCPoint {
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	return &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: raw[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[33:]}}
}

// publicOf is a signing key's public area with those attributes.
func publicOf(key *ecdsa.PrivateKey, bits uint32) tpm2.TPMTPublic {
	p := attestationTemplates()[0]
	p.ObjectAttributes = attributesOf(bits)
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(key))
	return p
}

const goodAK = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrNoDA | attrRestricted | attrSign

// newForger makes a machine that booted l, and that an authority "paper" vouches for.
func newForger(t testing.TB, l *logBuilder) *forger {
	t.Helper()
	f := &forger{t: t, caKey: softKey(t), ek: softKey(t), ak: softKey(t), bind: binding(), now: then, pcrs: authority.DefaultPCRs(), bank: algSHA256}
	f.ca = f.issue(f.caKey, nil, nil, func(c *x509.Certificate) { c.IsCA, c.Subject.CommonName = true, "Paper Root" })
	f.leaf = f.endorse(nil)
	f.ev.Hello = hello{EK: tpm2.Marshal(f.ekPublic()), Chain: [][]byte{f.leaf.Raw}, AK: tpm2.Marshal(publicOf(f.ak, goodAK)), Resets: 3, Restarts: 1}
	f.auth = authority.Authority{Name: "paper", Certificates: []*x509.Certificate{f.ca}}
	f.values = map[int][32]byte{}
	if l != nil {
		f.ev.Log = l.bytes()
		log, err := parseLog(f.ev.Log)
		if err != nil {
			t.Fatal(err)
		}
		for pcr := range maxPCR + 1 {
			f.values[pcr] = log.replay(pcr)
		}
	}
	return f
}

func (f *forger) ekPublic() tpm2.TPMTPublic {
	p := endorsements()[0].template
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point(f.ek))
	return p
}

// endorse makes a certificate of the endorsement key as manufacturers do: an empty subject, and a critical alternative name.
func (f *forger) endorse(change func(*x509.Certificate)) *x509.Certificate {
	name := pkix.RDNSequence{{
		{Type: oidManufacturer, Value: "id:50415045"}, {Type: oidModel, Value: "paper"}, {Type: oidVersion, Value: "id:00000001"},
	}}
	der, err := asn1.Marshal(name)
	if err != nil {
		f.t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der}})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.issue(f.ek, f.ca, f.caKey, func(c *x509.Certificate) {
		c.KeyUsage = x509.KeyUsageKeyAgreement
		c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{oidEndorsement}
		c.ExtraExtensions = []pkix.Extension{{Id: oidAlternativeName, Critical: true, Value: san}}
		if change != nil {
			change(c)
		}
	})
}

func (f *forger) issue(key *ecdsa.PrivateKey, parent *x509.Certificate, signer *ecdsa.PrivateKey, change func(*x509.Certificate)) *x509.Certificate {
	f.t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: f.now.Add(-time.Hour), NotAfter: f.now.Add(time.Hour), BasicConstraintsValid: true,
	}
	change(c)
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

func sized(out, data []byte) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(data))), data...)
}

func (f *forger) attestHead(kind uint16) []byte {
	be := binary.BigEndian
	out := be.AppendUint32(nil, magicGenerated)
	out = be.AppendUint16(out, kind)
	out = sized(out, []byte("signer"))
	bound := f.bind.Digest()
	out = sized(out, bound[:])
	out = be.AppendUint64(out, 1234)
	out = be.AppendUint32(out, f.ev.Hello.Resets+f.reboot)
	out = be.AppendUint32(out, f.ev.Hello.Restarts)
	out = append(out, 1)
	return be.AppendUint64(out, 42)
}

func (f *forger) sign(message []byte) []byte {
	f.t.Helper()
	sum := sha256.Sum256(message)
	der, err := f.ak.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		f.t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		f.t.Fatal(err)
	}
	out := binary.BigEndian.AppendUint16(nil, algECDSA)
	out = binary.BigEndian.AppendUint16(out, algSHA256)
	return sized(sized(out, rs.R.FillBytes(make([]byte, 32))), rs.S.FillBytes(make([]byte, 32)))
}

// input makes evidence of all that, and what the server has.
func (f *forger) input() attest.Input {
	f.t.Helper()
	be := binary.BigEndian
	out := f.attestHead(typeQuote)
	out = be.AppendUint32(out, 1)
	out = be.AppendUint16(out, f.bank)
	var bits [3]byte
	f.ev.PCRs = nil
	for _, p := range f.pcrs {
		bits[p/8] |= 1 << (p % 8)
		v := f.values[p]
		f.ev.PCRs = append(f.ev.PCRs, v[:]...)
	}
	out = append(append(out, 3), bits[:]...)
	sum := sha256.Sum256(f.ev.PCRs)
	out = sized(out, sum[:])
	if f.edit != nil {
		out = f.edit(out)
	}
	f.ev.Quoted, f.ev.Signature = out, f.sign(out)
	return f.sealed()
}

// sealed is input without a new quote.
func (f *forger) sealed() attest.Input {
	f.t.Helper()
	return attest.Input{
		Binding: f.bind, Evidence: seal(f.t, f.bind, f.ev), Now: f.now, Params: paramsOf(f.t, f.auth), Secret: secretOf,
	}
}

// certify adds a session key and its certification.
func (f *forger) certify(key *ecdsa.PrivateKey, bits uint32, name []byte) {
	f.t.Helper()
	raw := tpm2.Marshal(publicOf(key, bits))
	if name == nil {
		p, _ := parsePublic(raw)
		name = p.name()
	}
	out := sized(f.attestHead(typeCertify), name)
	out = sized(out, []byte("qualified"))
	f.ev.Certified = &certified{Public: raw, Attested: out, Signature: f.sign(out)}
}

func (f *forger) quotes(pcrs ...int) {
	slices.Sort(pcrs)
	f.pcrs, f.auth.PCRs = pcrs, pcrs
}
