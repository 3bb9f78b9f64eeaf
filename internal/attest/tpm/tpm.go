// Package tpm is the attestation method "tpm": a machine proves which TPM 2.0 it has, and what was measured into it, with nothing
// provisioned beforehand. It goes in two rounds (attest.Greeter): the machine says its endorsement and attestation keys; the server hides
// a secret for the TPM that has both; the evidence is made with that secret, and holds a quote by the attestation key.
//
// Guaranteed: the endorsement key leads to an authority of the bundle (by certificate, or by its digest), and the attestation key is in
// the same TPM, was made there, can't leave it, and signs only what the TPM itself made (its attributes, checked by name, and credential
// activation); the quote is over this challenge, environment and session key, over exactly the PCRs of the authority in the SHA-256
// bank, and from the same boot as the hello; what is claimed of the boot follows from digests that replay to the quoted PCRs. A
// session key that is said to be in the TPM was certified by the same attestation key for the same challenge.
//
// Not guaranteed: that the machine is in the same room as its TPM (a relay that owns a machine can ask its TPM), that a discrete TPM's
// bus was not tampered with, and what software did after it was measured. README.md says more.
//
// wire.go, keys.go, endorse.go, verify.go, eventlog.go and boot.go are the server's half, and pure; attester.go, device.go and
// sessionkey.go are the machine's. It is one method of package attest, and imports it and the leaves below.
package tpm

import (
	"crypto/hmac"
	"crypto/sha256"
	"slices"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/ima"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first half of its anchors ("tpm:AUTHORITY").
const Name = "tpm"

// Limits on what a stranger sends.
const (
	MaxEvidence = attest.LargestEvidence
	MaxEventLog = 512 << 10 // bytes; real ones have 15 to 120 KiB
	maxHello    = 48 << 10
	maxOffer    = 4 << 10
	maxPublic   = 1 << 10
	maxAttest   = 1 << 10
	maxSigned   = 1 << 10
	maxBanks    = 4
	maxPCR      = 23
)

// What an agent may be given for this method. Everything has a default.
const (
	NeedDevice      = "device"
	NeedEventLog    = "eventlog"
	NeedIMA         = "ima"
	NeedCertificate = "ek-certificate"
	NeedEndorsement = "endorsement-key"
)

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name: Name,
		Proves: "which TPM 2.0 the machine has, by a manufacturer's certificate or a listed key, and what was measured into it since it was " +
			"started, for this challenge",
		DoesNotProve: "that measured software behaves well, that a machine is where its TPM is, or that a discrete TPM's bus was not tampered with",
		Assurance:    identity.Measured,
		Renewal:      attest.Renewal{Kind: attest.RenewByEvidence},
		MakesKeys:    true,
		Verify:       Verify,
		MaxEvidence:  MaxEvidence,
		Params: func(all []authority.Authority) (any, error) {
			return NewParams(all)
		},
		Offer: Offer,
		Needs: []attest.Need{
			{Name: NeedDevice, Doc: "the TPM's device, or the socket of a software TPM (default " + defaultDevice + ")", Optional: true, Literal: true},
			{Name: NeedEventLog, Doc: "the firmware's event log (default: the kernel's, of that device)", Optional: true, Literal: true},
			{Name: NeedIMA, Doc: "IMA's measurement list (default: the kernel's)", Optional: true, Literal: true},
			{Name: NeedCertificate, Doc: "PEM of the endorsement key's certificate and then of its issuers, where the TPM does not hold them", Optional: true},
			{
				Name: NeedEndorsement, Doc: "which endorsement key: ecc-p256, ecc-p256-high, ecc-p384, rsa-2048 or rsa-2048-high (default: the first that has a certificate)",
				Optional: true, Literal: true,
			},
		},
		NewAttester: NewAttester,
	}
}

// Params is what Offer and Verify need of the environment: the authorities of the bundle in force. It is immutable.
type Params struct {
	trust *trust
	heads [][]byte // of the templates of endorsement keys
}

// NewParams makes the params once per bundle.
func NewParams(all []authority.Authority) (Params, error) {
	t, err := newTrust(all)
	if err != nil {
		return Params{}, err
	}
	p := Params{trust: t}
	for _, e := range endorsements() {
		p.heads = append(p.heads, e.head())
	}
	return p, nil
}

// hello is what the machine says first. Its field order is its encoding.
type hello struct {
	EK       []byte   `json:"ek"`    // TPMT_PUBLIC
	Chain    [][]byte `json:"chain"` // DER: the endorsement key's certificate, then issuers in any order; may be empty
	AK       []byte   `json:"ak"`    // TPMT_PUBLIC
	Resets   uint32   `json:"resets"`
	Restarts uint32   `json:"restarts"` // TPMS_CLOCK_INFO: which boot, and which resumption of it, says this
}

// offer is what the server answers.
type offer struct {
	PCRs       []int  `json:"pcrs"`       // to be quoted, of the SHA-256 bank
	Credential []byte `json:"credential"` // TPMS_ID_OBJECT
	Secret     []byte `json:"secret"`     // TPM2B_ENCRYPTED_SECRET's content
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Hello     hello      `json:"hello"`
	Quoted    []byte     `json:"quoted"`              // TPMS_ATTEST
	Signature []byte     `json:"signature"`           // TPMT_SIGNATURE over it
	PCRs      []byte     `json:"pcrs"`                // 32 bytes each, in the order of the offer
	Certified *certified `json:"certified,omitempty"` // the session key, where it is the TPM's
	Log       []byte     `json:"log,omitempty"`       // the firmware's event log
	IMA       *ima.List  `json:"ima,omitempty"`
	Proof     []byte     `json:"proof,omitempty"`
}

// certified is a TPM2_Certify of the session key.
type certified struct {
	Public    []byte `json:"public"`    // TPMT_PUBLIC
	Attested  []byte `json:"attested"`  // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE over it
}

// proofOf is what shows that the machine found the offer's secret, without showing the secret: an HMAC with it over the binding and
// the rest of the evidence. So nobody on the way can change any of the evidence, which signs its own parts only: an event's label, for
// example, is in no digest of the log.
func proofOf(secret [32]byte, b attest.Binding, ev evidence) ([]byte, error) {
	ev.Proof = nil
	body, err := attest.EncodeUpTo(MaxEvidence, ev)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret[:])
	mac.Write(b.Message())
	sum := sha256.Sum256(body)
	mac.Write(sum[:])
	return mac.Sum(nil), nil
}

// Offer answers a hello: it hides in.Secret for the TPM that the hello is from, and says which PCRs it wants. A hello that Verify would
// refuse whatever followed is refused here.
func Offer(in attest.OfferInput) ([]byte, error) {
	params, ok := in.Params.(Params)
	if !ok || params.trust == nil || in.Random == nil || in.Now.IsZero() {
		return nil, problem.New(problem.ReasonInternal, "offer of tpm: params, random source or time are missing")
	}
	var h hello
	if err := attest.DecodeUpTo(maxHello, in.Hello, &h); err != nil {
		return nil, err
	}
	m, err := params.machine(h, in.Now)
	if err != nil {
		return nil, err
	}
	credential, secret, err := sealTo(m.ek, m.ak.name(), in)
	if err != nil {
		return nil, err
	}
	return attest.EncodeUpTo(maxOffer, offer{PCRs: pcrsOf(m.authority), Credential: credential, Secret: secret})
}

// pcrsOf are the PCRs that an authority wants quoted, ascending.
func pcrsOf(a authority.Authority) []int {
	if len(a.PCRs) == 0 {
		return authority.DefaultPCRs()
	}
	return a.PCRs
}

// validPCRs: ascending, each once, of those that a PC has.
func validPCRs(pcrs []int) bool {
	return len(pcrs) > 0 && slices.IsSorted(pcrs) && pcrs[0] >= 0 && pcrs[len(pcrs)-1] <= maxPCR &&
		len(slices.Compact(slices.Clone(pcrs))) == len(pcrs)
}

// Anchor is what a revocation names to reach everything that came from one authority.
func Anchor(authority string) string { return Name + ":" + authority }
