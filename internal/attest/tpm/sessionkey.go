package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"io"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

const (
	maxBlob = 4 << 10
	// A signature has no context of its own (crypto.Signer); a TPM that takes longer is not going to answer.
	signTimeout = 30 * time.Second
)

// keyBlob is what a session key is made of again: the public area, and the private one as the TPM wrapped it for its storage root key.
// It is of use to that TPM only. Its field order is its encoding.
type keyBlob struct {
	Parent  string `json:"parent"`  // "srk-p256": the owner hierarchy's default ECC key
	Public  []byte `json:"public"`  // TPMT_PUBLIC
	Private []byte `json:"private"` // TPM2B_PRIVATE's content
}

const parentSRK = "srk-p256"

// sessionTemplate is an ECDSA P-256 key that is the TPM's own, signs anything, and needs no password.
func sessionTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Scheme: ecdsaSHA256(), CurveID: tpm2.TPMECCNistP256}),
	}
}

// storageRoot is the default ECC storage root key: the one that the platform keeps, or the same made anew.
func (s *session) storageRoot() (object, error) {
	template, _ := parsePublic(tpm2.Marshal(tpm2.ECCSRKTemplate))
	if key, ok := s.persistent(handleSRK); ok {
		if p, whole := parsePublic(key.public); whole && bytes.Equal(p.head, template.head) {
			// The same template always makes the same key, so which of the two is the parent makes no difference.
			return key, nil
		}
	}
	key, err := s.primary(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate)
	if err != nil {
		return object{}, s.failed(err, "make the storage root key")
	}
	return key, nil
}

// NewKey makes a session key in the TPM (attest.KeyMaker).
func (a *attester) NewKey(ctx context.Context) (crypto.Signer, []byte, error) {
	var blob keyBlob
	err := a.device.do(ctx, func(s *session) error {
		parent, err := s.storageRoot()
		if err != nil {
			return err
		}
		rsp, err := tpm2.Create{ParentHandle: parent.use(), InPublic: tpm2.New2B(sessionTemplate())}.Execute(s)
		if err != nil {
			return s.failed(err, "make a session key")
		}
		blob = keyBlob{Parent: parentSRK, Public: rsp.OutPublic.Bytes(), Private: rsp.OutPrivate.Buffer}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	key, err := a.adopt(blob)
	if err != nil {
		return nil, nil, err
	}
	text, err := attest.EncodeUpTo(maxBlob, blob)
	return key, text, err
}

// LoadKey makes the key of a blob again, and has the TPM load it once, so that the blob of another machine is refused now and not at the
// first signature.
func (a *attester) LoadKey(ctx context.Context, text []byte) (crypto.Signer, error) {
	var blob keyBlob
	if err := attest.DecodeUpTo(maxBlob, text, &blob); err != nil || blob.Parent != parentSRK {
		return nil, problem.New(problem.ReasonInvalid, "this is not a session key of a TPM")
	}
	if err := a.device.do(ctx, func(s *session) error {
		_, err := s.load(blob)
		return err
	}); err != nil {
		return nil, err
	}
	return a.adopt(blob)
}

// load loads a session key, and leaves nothing but it loaded.
func (s *session) load(blob keyBlob) (object, error) {
	parent, err := s.storageRoot()
	if err != nil {
		return object{}, err
	}
	rsp, err := tpm2.Load{
		ParentHandle: parent.use(), InPrivate: tpm2.TPM2BPrivate{Buffer: blob.Private},
		InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](blob.Public),
	}.Execute(s)
	if err != nil {
		return object{}, s.failed(err, "load the session key, which must be of this TPM")
	}
	s.loaded = append(s.loaded, rsp.ObjectHandle)
	s.drop(parent.handle)
	return object{rsp.ObjectHandle, rsp.Name, blob.Public, tpm2.PasswordAuth(nil)}, nil
}

// adopt remembers a key, so that Answer can have it certified.
func (a *attester) adopt(blob keyBlob) (crypto.Signer, error) {
	p, key, err := checkSessionKey(blob.Public)
	if err != nil {
		return nil, err
	}
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || p.curve != curveP256 || p.schemeHash != algSHA256 {
		return nil, problem.New(problem.ReasonInvalid, "this is not an ECDSA P-256 key")
	}
	sum, err := attest.Thumbprint(pub)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[sum] = blob
	return &signer{a.device, blob, pub}, nil
}

// certify has the attestation key certify the session key of the binding, if that is one of this TPM; nil if not.
func (a *attester) certify(s *session, ak object, b attest.Binding) (*certified, error) {
	a.mu.Lock()
	blob, ok := a.keys[b.SessionKey]
	a.mu.Unlock()
	if !ok {
		return nil, nil
	}
	key, err := s.load(blob)
	if err != nil {
		return nil, err
	}
	bound := b.Digest()
	rsp, err := tpm2.Certify{
		ObjectHandle: key.use(), SignHandle: ak.use(), QualifyingData: tpm2.TPM2BData{Buffer: bound[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(s)
	if err != nil {
		return nil, s.failed(err, "certify the session key")
	}
	return &certified{Public: blob.Public, Attested: rsp.CertifyInfo.Bytes(), Signature: tpm2.Marshal(rsp.Signature)}, nil
}

// signer is a session key in the TPM. It is safe for concurrent use. Each signature loads the key and flushes it again: a TPM has no room
// to keep things for a process that may be killed.
type signer struct {
	device *device
	blob   keyBlob
	pub    *ecdsa.PublicKey
}

// Public is the *ecdsa.PublicKey.
func (k *signer) Public() crypto.PublicKey { return k.pub }

// Sign signs a SHA-256 digest, and gives an ASN.1 signature. The TPM has its own randomness.
func (k *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, problem.New(problem.ReasonUnsupported, "a session key in the TPM signs SHA-256 digests only")
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	var out []byte
	err := k.device.do(ctx, func(s *session) error {
		key, err := s.load(k.blob)
		if err != nil {
			return err
		}
		rsp, err := tpm2.Sign{
			KeyHandle: key.use(), Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			// The digest wasn't made by the TPM: the ticket is the empty one (Part 2 §10.7.6).
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(s)
		if err != nil {
			return s.failed(err, "sign with the session key")
		}
		sig, ok := parseSignature(tpm2.Marshal(rsp.Signature))
		if !ok || sig.alg != algECDSA {
			return problem.New(problem.ReasonUnreachable, "the TPM gave no ECDSA signature")
		}
		out, err = asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.r), new(big.Int).SetBytes(sig.s)})
		return err
	})
	return out, err
}
