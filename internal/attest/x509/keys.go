package x509

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"

	"github.com/bailment/bailment/internal/problem"
)

// digestFor gives the one hash, and so the one algorithm, that a leaf's key signs with. The evidence
// doesn't choose: an algorithm field would be a field to attack.
//
//	ECDSA P-256   SHA-256, ASN.1 signature
//	ECDSA P-384   SHA-384, ASN.1 signature
//	Ed25519       the message itself (RFC 8032)
//	RSA           PSS, SHA-256, MGF1 with SHA-256, salt of 32 bytes (RFC 8017)
func digestFor(pub crypto.PublicKey, message []byte) (crypto.SignerOpts, []byte, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256():
			d := sha256.Sum256(message)
			return crypto.SHA256, d[:], nil
		case elliptic.P384():
			d := sha512.Sum384(message)
			return crypto.SHA384, d[:], nil
		}
		return nil, nil, problem.New(problem.ReasonBadChain, "the certificate's key is on another curve than P-256 and P-384")
	case ed25519.PublicKey:
		return crypto.Hash(0), message, nil
	case *rsa.PublicKey:
		d := sha256.Sum256(message)
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}, d[:], nil
	}
	return nil, nil, problem.New(problem.ReasonBadChain, "the certificate's key is of an algorithm that is not accepted")
}

// checkSignature refuses with bad-proof what the key didn't sign in exactly the way of digestFor.
func checkSignature(pub crypto.PublicKey, message, signature []byte) error {
	opts, digest, err := digestFor(pub, message)
	if err != nil {
		return err
	}
	ok := false
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest, signature)
	case ed25519.PublicKey:
		ok = len(signature) == ed25519.SignatureSize && ed25519.Verify(pub, digest, signature)
	case *rsa.PublicKey:
		pss := opts.(*rsa.PSSOptions)
		ok = rsa.VerifyPSS(pub, pss.Hash, digest, signature, pss) == nil
	}
	if !ok {
		return problem.New(problem.ReasonBadProof,
			"the signature is not the certificate's key's for this challenge, environment and session key")
	}
	return nil
}

func sign(signer crypto.Signer, message []byte) ([]byte, error) {
	opts, digest, err := digestFor(signer.Public(), message)
	if err != nil {
		return nil, err
	}
	return signer.Sign(rand.Reader, digest, opts)
}
