package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// endorsement is one of the default templates of endorsement keys (TCG EK Credential Profile for TPM Family 2.0, annex B). A key
// outside of them is not accepted: its attributes are what a manufacturer's certificate silently speaks of.
type endorsement struct {
	name     string // as the need "endorsement-key" names it
	nv       uint32 // of the certificate
	handle   uint32 // where platforms keep the key, if they do (a hint: what is there is compared)
	policy   bool   // to be used under PolicySecret(endorsement); else by its empty password
	template tpm2.TPMTPublic
}

// Authorization policies of the same profile: PolicyA, PolicySecret(TPM_RH_ENDORSEMENT); and PolicyB, PolicyA or PolicyAuthorizeNV, whose
// keys may be used by password also.
const (
	policyA256 = "\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"
	policyB256 = "\xca\x3d\x0a\x99\xa2\xb9\x39\x06\xf7\xa3\x34\x24\x14\xef\xcf\xb3\xa3\x85\xd4\x4c\xd1\xfd\x45\x90\x89\xd1\x9b\x50\x71\xc0\xb7\xa0"
	policyB384 = "\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a\x07\x41\x48\xbb\x35\xd3\xb4\xe4\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca" +
		"\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12"
)

// endorsements are the templates in the order in which an agent looks for a certificate. The order is fixed, since the key that is
// found is the machine's identity; the cheap ones come first.
func endorsements() []endorsement {
	low := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, AdminWithPolicy: true, Restricted: true, Decrypt: true}
	high := low
	high.UserWithAuth = true
	aes := func(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
		return tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		}
	}
	// The low range asks for a key from a template with zeros as long as the key, the high range for one from an empty one.
	ecc := func(curve tpm2.TPMECCCurve, hash tpm2.TPMIAlgHash, bits tpm2.TPMKeyBits, attributes tpm2.TPMAObject, policy string, zeros int) tpm2.TPMTPublic {
		return tpm2.TPMTPublic{
			Type: tpm2.TPMAlgECC, NameAlg: hash, ObjectAttributes: attributes, AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte(policy)},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes(bits), CurveID: curve}),
			Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: make([]byte, zeros)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, zeros)},
			}),
		}
	}
	rsa2048 := func(attributes tpm2.TPMAObject, policy string, zeros int) tpm2.TPMTPublic {
		return tpm2.TPMTPublic{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes, AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte(policy)},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aes(128), KeyBits: 2048}),
			Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, zeros)}),
		}
	}
	return []endorsement{
		{"ecc-p256", 0x01c0000a, 0x81010002, true, ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128, low, policyA256, 32)},
		{"ecc-p256-high", 0x01c00014, 0x81010014, false, ecc(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128, high, policyB256, 0)},
		{"ecc-p384", 0x01c00016, 0x81010016, false, ecc(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 256, high, policyB384, 0)},
		{"rsa-2048", 0x01c00002, 0x81010001, true, rsa2048(low, policyA256, 256)},
		{"rsa-2048-high", 0x01c00012, 0x81010012, false, rsa2048(high, policyB256, 0)},
	}
}

// head is what the template fixes of a key's public area.
func (e endorsement) head() []byte {
	p, _ := parsePublic(tpm2.Marshal(e.template))
	return p.head
}

// checkEndorsement refuses an endorsement key that is not from a default template.
func checkEndorsement(raw []byte, heads [][]byte) (public, crypto.PublicKey, error) {
	p, ok := parsePublic(raw)
	if !ok {
		return public{}, nil, problem.New(problem.ReasonInvalid, "the endorsement key is not the public area of an RSA or ECC key")
	}
	for _, head := range heads {
		if bytes.Equal(p.head, head) {
			key, err := p.key()
			return p, key, err
		}
	}
	return public{}, nil, problem.New(problem.ReasonKeyAttributes, "the endorsement key is not from one of the TCG's default templates")
}

// checkAttestationKey refuses an attestation key that could sign something else than what its TPM itself made, or that is or was
// anywhere else than in it (TPM 2.0 Library Part 2 §8.3.2).
func checkAttestationKey(raw []byte) (public, crypto.PublicKey, error) {
	p, ok := parsePublic(raw)
	if !ok {
		return public{}, nil, problem.New(problem.ReasonInvalid, "the attestation key is not the public area of an RSA or ECC key")
	}
	if err := checkOrigin(p, "attestation"); err != nil {
		return public{}, nil, err
	}
	if p.attributes&attrRestricted == 0 {
		return public{}, nil, problem.New(problem.ReasonKeyAttributes, "the attestation key is not restricted: it could sign a quote that no TPM made")
	}
	key, err := checkSigning(p, "attestation")
	return p, key, err
}

// checkSessionKey refuses a session key that is not the TPM's own.
func checkSessionKey(raw []byte) (public, crypto.PublicKey, error) {
	p, ok := parsePublic(raw)
	if !ok {
		return public{}, nil, problem.New(problem.ReasonInvalid, "the certified key is not the public area of an RSA or ECC key")
	}
	if err := checkOrigin(p, "session"); err != nil {
		return public{}, nil, err
	}
	if p.attributes&attrRestricted != 0 {
		return public{}, nil, problem.New(problem.ReasonKeyAttributes, "the session key is a restricted key, which can't make sessions")
	}
	key, err := checkSigning(p, "session")
	return p, key, err
}

func checkOrigin(p public, which string) error {
	const known = attrFixedTPM | attrSTClear | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrAdminWithPolicy | attrNoDA |
		attrEncryptedDup | attrRestricted | attrDecrypt | attrSign
	refuse := func(why string) error {
		return problem.New(problem.ReasonKeyAttributes, "the %s key %s", which, why)
	}
	switch a := p.attributes; {
	case a&attrFixedTPM == 0:
		return refuse("is not fixedTPM: it could be moved to another TPM, or was brought into this one")
	case a&attrFixedParent == 0:
		return refuse("is not fixedParent: it could be moved under another parent")
	case a&attrSensitiveDataOrigin == 0:
		return refuse("has no sensitiveDataOrigin: it was made outside of the TPM")
	case a&attrEncryptedDup != 0:
		return refuse("has encryptedDuplication")
	case a&attrSign == 0:
		return refuse("can't sign")
	case a&attrDecrypt != 0:
		return refuse("can decrypt too")
	case a&^known != 0:
		return refuse("has attributes that are not known here")
	}
	return nil
}

// checkSigning holds a key that signs to the algorithms of this method: ECDSA on P-256 and P-384, RSASSA and RSAPSS from 2048 bits,
// with SHA-256 or SHA-384.
func checkSigning(p public, which string) (crypto.PublicKey, error) {
	hash := func(alg uint16) bool { return alg == algSHA256 || alg == algSHA384 }
	scheme := p.kind == algECC && p.scheme == algECDSA || p.kind == algRSA && (p.scheme == algRSASSA || p.scheme == algRSAPSS)
	if !scheme || !hash(p.schemeHash) || !hash(p.nameAlg) || p.symmetric != algNull {
		return nil, problem.New(problem.ReasonWeakAlgorithm, "the %s key signs by another scheme than ECDSA, RSASSA or RSAPSS with SHA-256 or SHA-384", which)
	}
	return p.key()
}

// key is the public key itself, checked to be strong, and on its curve.
func (p public) key() (crypto.PublicKey, error) {
	weak := func() error {
		return problem.New(problem.ReasonWeakAlgorithm, "a key of the TPM is not RSA of 2048 bits or more, ECC P-256 or P-384")
	}
	if p.kind == algRSA {
		exponent := p.exponent
		if exponent == 0 {
			exponent = 65537 // Part 2 §12.2.3.5
		}
		pub := &rsa.PublicKey{N: new(big.Int).SetBytes(p.n), E: int(exponent)}
		if pub.N.BitLen() != int(p.bits) || exponent > 1<<31-1 || exponent%2 == 0 || authority.Weakness(pub) != "" {
			return nil, weak()
		}
		return pub, nil
	}
	curve := elliptic.P256()
	switch p.curve {
	case curveP256:
	case curveP384:
		curve = elliptic.P384()
	default:
		return nil, weak()
	}
	size := curve.Params().BitSize / 8
	if len(p.x) > size || len(p.y) > size {
		return nil, weak()
	}
	point := make([]byte, 1+2*size)
	point[0] = 4
	copy(point[1+size-len(p.x):], p.x) // some TPMs leave leading zeros out
	copy(point[1+2*size-len(p.y):], p.y)
	pub, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, weak()
	}
	return pub, nil
}

// checkSigned refuses with bad-quote what the key of p did not sign by its own scheme.
func checkSigned(p public, key crypto.PublicKey, message, sig []byte, what string) error {
	s, ok := parseSignature(sig)
	if ok && s.hash == algSHA1 {
		return problem.New(problem.ReasonWeakAlgorithm, "the signature of the %s is over SHA-1", what)
	}
	if ok && s.alg == p.scheme && s.hash == p.schemeHash && verifies(s, key, message) {
		return nil
	}
	return problem.New(problem.ReasonBadQuote, "the %s is not signed by the attestation key", what)
}

func verifies(s signature, key crypto.PublicKey, message []byte) bool {
	hash, digest := digest(s.hash, message)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if len(s.r) > 48 || len(s.s) > 48 {
			return false
		}
		return ecdsa.Verify(key, digest, new(big.Int).SetBytes(s.r), new(big.Int).SetBytes(s.s))
	case *rsa.PublicKey:
		if s.alg == algRSASSA {
			return rsa.VerifyPKCS1v15(key, hash, digest, s.rsa) == nil
		}
		// A TPM salts with as much as fits, or with the hash's length in FIPS mode.
		return rsa.VerifyPSS(key, hash, digest, s.rsa, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}) == nil
	}
	return false
}

func digest(alg uint16, message []byte) (crypto.Hash, []byte) {
	if alg == algSHA384 {
		sum := sha512.Sum384(message)
		return crypto.SHA384, sum[:]
	}
	sum := sha256.Sum256(message)
	return crypto.SHA256, sum[:]
}

// sealTo hides a secret so that only the TPM that has both the endorsement key and, in the same TPM, an object of that name can find
// it (TPM 2.0 Library Part 1, "Credential Protection").
//
// go-tpm takes all of the randomness from random for RSA keys, as far as crypto/rsa lets itself be given any; for ECC keys, crypto/ecdh
// draws its own from the system whatever it is given.
func sealTo(ek public, name []byte, in attest.OfferInput) (credential, secret []byte, err error) {
	// parsePublic and checkEndorsement accepted these bytes: go-tpm's own reader sees one of five templates only.
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek.raw)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonInternal, "read an endorsement key")
	}
	key, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonInternal, "import an endorsement key")
	}
	credential, secret, err = tpm2.CreateCredential(in.Random, key, name, in.Secret[:])
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonEntropy, "hide a secret for a TPM")
	}
	return credential, secret, nil
}
