package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/problem"
)

// quoteTries is how often a quote is made again because a PCR was extended between the quote and the reading of the values.
const quoteTries = 5

// attester is the machine's half. It is safe for concurrent use.
type attester struct {
	device *device
	log    string // path; "": none
	ima    string // path; "": none
	// needLog: the paths were given by the configuration, so what can't be read is an error.
	needLog, needIMA bool
	chain            [][]byte // of the configuration
	endorsement      string   // of the configuration; "": the first with a certificate
	templates        []tpm2.TPMTPublic

	mu   sync.Mutex
	keys map[[32]byte]keyBlob // session keys of this TPM, by thumbprint
}

var (
	_ attest.Greeter  = (*attester)(nil)
	_ attest.KeyMaker = (*attester)(nil)
)

// NewAttester makes the machine's half; what it gives is an attest.Greeter and an attest.KeyMaker too. It doesn't speak to the TPM yet, so
// that an agent can start before it.
func NewAttester(m attest.Material) (attest.Attester, error) {
	literal := func(need, otherwise string) string {
		if text := strings.TrimSpace(string(m[need])); text != "" {
			return text
		}
		return otherwise
	}
	d, err := newDevice(literal(NeedDevice, defaultDevice))
	if err != nil {
		return nil, err
	}
	a := &attester{device: d, endorsement: literal(NeedEndorsement, ""), templates: attestationTemplates(), keys: map[[32]byte]keyBlob{}}
	if a.endorsement != "" && !slices.ContainsFunc(endorsements(), func(e endorsement) bool { return e.name == a.endorsement }) {
		return nil, problem.New(problem.ReasonInvalid, "%s is none of the known endorsement keys", NeedEndorsement)
	}
	a.log, a.ima = literal(NeedEventLog, ""), literal(NeedIMA, "")
	a.needLog, a.needIMA = a.log != "", a.ima != ""
	for need, path := range map[string]string{NeedEventLog: a.log, NeedIMA: a.ima} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return nil, problem.New(problem.ReasonInvalid, "what %s names is not a file that can be read", need)
		}
	}
	if a.log == "" {
		a.log = d.firmwareLog()
	}
	if a.ima == "" && !d.socket {
		a.ima = defaultIMA // a software TPM is not the one that the kernel extends
	}
	if text := m[NeedCertificate]; len(text) > 0 {
		if a.chain, err = chainOf(text); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// chainOf reads PEM that holds certificates and, outside of the blocks, comments only. It shows nothing of the file in its errors.
func chainOf(text []byte) ([][]byte, error) {
	begun := bytes.Count(text, []byte("-----BEGIN"))
	var out [][]byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(out) == maxChain {
			return nil, problem.New(problem.ReasonInvalid, "%s holds something besides up to %d certificates", NeedCertificate, maxChain)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, problem.New(problem.ReasonInvalid, "%s holds a certificate that can't be parsed", NeedCertificate)
		}
		out = append(out, block.Bytes)
	}
	// pem.Decode skips a damaged block as if it were a comment.
	if len(out) == 0 || begun != len(out) {
		return nil, problem.New(problem.ReasonInvalid, "%s holds no certificate, or a damaged one", NeedCertificate)
	}
	return out, nil
}

// Attest says that this method goes in two rounds.
func (a *attester) Attest(context.Context, attest.Binding) ([]byte, error) {
	return nil, problem.New(problem.ReasonInternal, "the method %s goes in two rounds: say hello, then answer the offer", Name)
}

// Hello says which endorsement key and attestation key the TPM has, and which boot this is.
func (a *attester) Hello(ctx context.Context) ([]byte, error) {
	var h hello
	err := a.device.do(ctx, func(s *session) error {
		e, chain, err := a.choose(s)
		if err != nil {
			return err
		}
		ek, err := s.endorsementKey(e, isOf(chain))
		if err != nil {
			return err
		}
		s.drop(ek.handle)
		ak, err := s.attestationKey(a.templates)
		if err != nil {
			return err
		}
		h = hello{EK: ek.public, Chain: chain, AK: ak.public}
		h.Resets, h.Restarts, err = s.clock()
		return err
	})
	if err != nil {
		return nil, err
	}
	return attest.EncodeUpTo(maxHello, h)
}

// choose finds the endorsement key to use: the one that is asked for, the one of the certificate that was given, or the first whose
// certificate is in the TPM; without any, P-256's.
func (a *attester) choose(s *session) (endorsement, [][]byte, error) {
	all := endorsements()
	if a.endorsement != "" {
		all = slices.DeleteFunc(all, func(e endorsement) bool { return e.name != a.endorsement })
	}
	if len(a.chain) > 0 {
		for _, e := range all {
			if !e.couldBe(a.chain[0]) {
				continue
			}
			if key, err := s.endorsementKey(e, isOf(a.chain)); err == nil {
				s.drop(key.handle)
				return e, a.chain, nil
			}
		}
		return endorsement{}, nil, problem.New(problem.ReasonBadChain, "%s is not of an endorsement key of this TPM", NeedCertificate)
	}
	for _, e := range all {
		if certs := splitDER(s.readNV(tpm2.TPMHandle(e.nv))); len(certs) > 0 {
			chain := certs[:1]
			for _, issuer := range s.issuers() {
				if len(chain) < maxChain && !slices.ContainsFunc(chain, func(c []byte) bool { return bytes.Equal(c, issuer) }) {
					chain = append(chain, issuer)
				}
			}
			return e, chain, nil
		}
	}
	return all[0], [][]byte{}, nil
}

// couldBe reports whether a certificate is of a key of the template's algorithm: making the wrong key to see that it is wrong takes a
// discrete TPM up to a minute.
func (e endorsement) couldBe(der []byte) bool {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	switch pub := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return e.template.Type == tpm2.TPMAlgRSA
	case *ecdsa.PublicKey:
		parms, err := e.template.Parameters.ECCDetail()
		return e.template.Type == tpm2.TPMAlgECC && err == nil && (parms.CurveID == tpm2.TPMECCNistP384) == (pub.Curve == elliptic.P384())
	}
	return false
}

// isOf reports whether a TPMT_PUBLIC is the key of the chain's first certificate; any is, of no chain.
func isOf(chain [][]byte) func([]byte) bool {
	return func(raw []byte) bool {
		if len(chain) == 0 {
			return true
		}
		cert, err := x509.ParseCertificate(chain[0])
		if err != nil {
			// The server will say so; here nothing is known against it.
			return true
		}
		p, ok := parsePublic(raw)
		if !ok {
			return false
		}
		key, err := p.key()
		pub, ok := key.(interface{ Equal(crypto.PublicKey) bool })
		return err == nil && ok && pub.Equal(cert.PublicKey)
	}
}

// Answer makes evidence from the server's offer. It answers machine-reset when the hello is of another boot: then say hello again.
func (a *attester) Answer(ctx context.Context, b attest.Binding, said, offered []byte) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	ev := evidence{}
	if err := attest.DecodeUpTo(maxHello, said, &ev.Hello); err != nil {
		return nil, err
	}
	var o offer
	if len(offered) > maxOffer {
		return nil, problem.New(problem.ReasonTooLarge, "the server's offer has more than %d bytes", maxOffer)
	}
	if err := attest.DecodeUpTo(maxOffer, offered, &o); err != nil {
		return nil, err
	}
	if !validPCRs(o.PCRs) {
		return nil, problem.New(problem.ReasonInvalid, "the server's offer names PCRs that no TPM has")
	}
	var secret [32]byte
	err := a.device.do(ctx, func(s *session) error {
		ak, err := a.activate(s, ev.Hello, o, &secret)
		if err != nil {
			return err
		}
		if err := quote(s, ak, b, o.PCRs, &ev); err != nil {
			return err
		}
		ev.Certified, err = a.certify(s, ak, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := a.attach(ctx, o.PCRs, &ev); err != nil {
		return nil, err
	}
	if ev.Proof, err = proofOf(secret, b, ev); err != nil {
		return nil, err
	}
	return attest.EncodeUpTo(MaxEvidence, ev)
}

// activate finds the offer's secret, and gives the attestation key.
func (a *attester) activate(s *session, h hello, o offer, secret *[32]byte) (object, error) {
	resets, restarts, err := s.clock()
	if err != nil {
		return object{}, err
	}
	other := problem.New(problem.ReasonReset, "the machine was restarted, resumed, or got another TPM since it said hello")
	if resets != h.Resets || restarts != h.Restarts {
		return object{}, other
	}
	ekPublic, ok := parsePublic(h.EK)
	all := endorsements()
	i := slices.IndexFunc(all, func(e endorsement) bool { return ok && bytes.Equal(e.head(), ekPublic.head) })
	if i < 0 {
		return object{}, problem.New(problem.ReasonInvalid, "the hello is not of this machine")
	}
	ek, err := s.endorsementKey(all[i], func(raw []byte) bool { return bytes.Equal(raw, h.EK) })
	if err != nil {
		if problem.Is(err, problem.ReasonBadChain) {
			return object{}, other
		}
		return object{}, err
	}
	ak, err := s.attestationKey(a.templates)
	if err != nil {
		return object{}, err
	}
	if !bytes.Equal(ak.public, h.AK) {
		return object{}, other
	}
	rsp, err := tpm2.ActivateCredential{
		ActivateHandle: ak.use(), KeyHandle: ek.use(),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: o.Credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: o.Secret},
	}.Execute(s)
	if err != nil {
		// The TPM answers TPM_RC_INTEGRITY or _VALUE to an offer that is not for its two keys.
		var rc tpm2.TPMRC
		if errors.As(err, &rc) && s.ctx.Err() == nil {
			return object{}, problem.Wrap(err, problem.ReasonBadProof, "the server's offer is not for this TPM and its attestation key")
		}
		return object{}, s.failed(err, "activate the offer")
	}
	if len(rsp.CertInfo.Buffer) != len(secret) {
		return object{}, problem.New(problem.ReasonInvalid, "the server's offer hides something else than a secret")
	}
	copy(secret[:], rsp.CertInfo.Buffer)
	s.drop(ek.handle)
	return ak, nil
}

// quote has the TPM sign the PCRs' values for the binding.
func quote(s *session, ak object, b attest.Binding, pcrs []int, ev *evidence) error {
	p, _ := parsePublic(ak.public)
	bound := b.Digest()
	for range quoteTries {
		rsp, err := tpm2.Quote{
			SignHandle: ak.use(), QualifyingData: tpm2.TPM2BData{Buffer: bound[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect: selectPCRs(pcrs),
		}.Execute(s)
		if err != nil {
			return s.failed(err, "quote the PCRs")
		}
		ev.Quoted, ev.Signature = rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature)
		if ev.PCRs, err = readPCRs(s, pcrs); err != nil {
			return err
		}
		a, _, whole := parseAttestation(ev.Quoted)
		if _, sum := digest(p.schemeHash, ev.PCRs); whole && bytes.Equal(sum, a.pcrDigest) {
			return nil
		}
	}
	return problem.New(problem.ReasonUnreachable, "the PCRs change all the time, so that no quote fits their values: try again")
}

func selectPCRs(pcrs []int) tpm2.TPMLPCRSelection {
	var bits [3]byte
	for _, p := range pcrs {
		bits[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits[:]}}}
}

// readPCRs reads values of the SHA-256 bank. A TPM gives eight or so at a time, and says which.
func readPCRs(s *session, pcrs []int) ([]byte, error) {
	var out []byte
	for rest := pcrs; len(rest) > 0; {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selectPCRs(rest)}.Execute(s)
		if err != nil {
			return nil, s.failed(err, "read the PCRs")
		}
		n := len(rsp.PCRValues.Digests)
		if n == 0 || n > len(rest) {
			return nil, problem.New(problem.ReasonUnsupported, "the TPM has no SHA-256 bank with these PCRs: enable it in the firmware's settings")
		}
		for _, d := range rsp.PCRValues.Digests {
			if len(d.Buffer) != sha256.Size {
				return nil, problem.New(problem.ReasonUnsupported, "the TPM has no SHA-256 bank: enable it in the firmware's settings")
			}
			out = append(out, d.Buffer...)
		}
		rest = rest[n:]
	}
	return out, nil
}

// attach adds the logs that explain the PCRs. It does so after the quote: a log that is read later has all that was quoted.
func (a *attester) attach(ctx context.Context, pcrs []int, ev *evidence) error {
	log, err := readFile(a.log, MaxEventLog)
	switch {
	case err == nil:
		ev.Log = log
	case a.needLog:
		return problem.New(problem.ReasonInvalid, "the event log can't be read, or has more than %d bytes", MaxEventLog)
	}
	i := slices.Index(pcrs, ima.PCR)
	if i < 0 || a.ima == "" {
		return nil
	}
	list, err := a.measurements(ctx, [32]byte(ev.PCRs[32*i:]))
	if err != nil && (a.needIMA || ctx.Err() != nil) {
		return err
	}
	if err == nil {
		ev.IMA = list
	}
	return nil
}

func readFile(path string, most int64) ([]byte, error) {
	if path == "" {
		return nil, os.ErrNotExist
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	// Files of securityfs have no size until they are read.
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = io.ErrShortBuffer
	}
	return data, err
}

// measurements is IMA's list in short, with the entry of this program.
func (a *attester) measurements(ctx context.Context, quoted [32]byte) (*ima.List, error) {
	unreadable := problem.New(problem.ReasonInvalid, "IMA's measurement list, or this program's own file, can't be read")
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, unreadable
	}
	defer func() { _ = self.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, self); err != nil {
		return nil, unreadable
	}
	list, err := os.Open(a.ima)
	if err != nil {
		return nil, unreadable
	}
	defer func() { _ = list.Close() }()
	return ima.Shorten(ctx, list, quoted, [32]byte(sum.Sum(nil)))
}
