package cms

import (
	"bytes"
	"encoding/asn1"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/bailment/bailment/internal/problem"
)

var (
	certificatesTag = cbasn1.Tag(0).ContextSpecific().Constructed()
	listsTag        = cbasn1.Tag(1).ContextSpecific().Constructed()
)

// read reads a message in DER. It takes what Encode leaves out or writes in one way only.
func read(der []byte) (*Signed, error) {
	if len(der) > MaxMessage {
		return nil, tooLarge()
	}
	in := cryptobyte.String(der)
	var info, explicit, data cryptobyte.String
	var kind asn1.ObjectIdentifier
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() || !info.ReadASN1ObjectIdentifier(&kind) ||
		!info.ReadASN1(&explicit, certificatesTag) || !info.Empty() || !explicit.ReadASN1(&data, cbasn1.SEQUENCE) || !explicit.Empty() {
		return nil, malformed("it is not DER, or something follows it")
	}
	if !kind.Equal(oidSignedData) {
		return nil, malformed("it is not SignedData")
	}
	s := new(Signed)
	signer, err := s.readData(data)
	if err != nil {
		return nil, err
	}
	if err := s.readSigner(signer); err != nil {
		return nil, err
	}
	return s, nil
}

// readData is RFC 5652 §5.1.
func (s *Signed) readData(data cryptobyte.String) (signer cryptobyte.String, err error) {
	var version int64
	var digests, content, explicit, octets, certificates, signers cryptobyte.String
	var kind asn1.ObjectIdentifier
	var some bool
	if !data.ReadASN1Integer(&version) || version < 1 || version > 5 || !data.ReadASN1(&digests, cbasn1.SET) ||
		!data.ReadASN1(&content, cbasn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&kind) {
		return nil, malformed("its SignedData")
	}
	if !kind.Equal(oidData) || !content.ReadASN1(&explicit, certificatesTag) || !content.Empty() ||
		!explicit.ReadASN1(&octets, cbasn1.OCTET_STRING) || !explicit.Empty() {
		return nil, malformed("it has no content of type data inside")
	}
	if len(octets) > MaxContent {
		return nil, problem.New(problem.ReasonTooLarge, "the document inside the signature has more than %d bytes", MaxContent)
	}
	if !data.ReadOptionalASN1(&certificates, &some, certificatesTag) || !data.SkipOptionalASN1(listsTag) ||
		!data.ReadASN1(&signers, cbasn1.SET) || !data.Empty() {
		return nil, malformed("its SignedData")
	}
	for !certificates.Empty() {
		var one cryptobyte.String
		if !certificates.ReadASN1Element(&one, cbasn1.SEQUENCE) {
			return nil, malformed("its certificates")
		}
		if len(s.Certificates) == MaxCertificates {
			return nil, problem.New(problem.ReasonTooLarge, "the signed document brings more than %d certificates", MaxCertificates)
		}
		s.Certificates = append(s.Certificates, bytes.Clone(one))
	}
	if !signers.ReadASN1(&signer, cbasn1.SEQUENCE) || !signers.Empty() {
		return nil, malformed("it must have exactly one signer")
	}
	s.Content = bytes.Clone(octets)
	return signer, nil
}

// readSigner is RFC 5652 §5.3, of signers that are named by issuer and serial number.
func (s *Signed) readSigner(in cryptobyte.String) error {
	var version int64
	var name, issuer, digest, how, signature cryptobyte.String
	var digestOID, howOID asn1.ObjectIdentifier
	s.serial = new(big.Int)
	if !in.ReadASN1Integer(&version) || version != 1 || !in.ReadASN1(&name, cbasn1.SEQUENCE) ||
		!name.ReadASN1Element(&issuer, cbasn1.SEQUENCE) || !name.ReadASN1Integer(s.serial) || !name.Empty() ||
		!in.ReadASN1(&digest, cbasn1.SEQUENCE) || !digest.ReadASN1ObjectIdentifier(&digestOID) {
		return malformed("its signer")
	}
	if in.PeekASN1Tag(certificatesTag) {
		var element cryptobyte.String
		if !in.ReadASN1Element(&element, certificatesTag) {
			return malformed("its signed attributes")
		}
		// What is signed is the set under its own tag (RFC 5652 §5.4).
		s.attributes = bytes.Clone(element)
		s.attributes[0] = byte(cbasn1.SET)
	}
	if !in.ReadASN1(&how, cbasn1.SEQUENCE) || !how.ReadASN1ObjectIdentifier(&howOID) ||
		!in.ReadASN1(&signature, cbasn1.OCTET_STRING) || !in.SkipOptionalASN1(listsTag) || !in.Empty() {
		return malformed("its signer")
	}
	s.issuer, s.signature = bytes.Clone(issuer), bytes.Clone(signature)
	return s.choose(digestOID, howOID)
}

// choose finds the row of the closed list. Azure names the algorithm of the signature where that of the digest belongs (seen in its
// documents since 2018), which means the same digest.
func (s *Signed) choose(digest, how asn1.ObjectIdentifier) error {
	for _, row := range algorithms {
		if !digest.Equal(row.digest) && !digest.Equal(row.rsa) {
			continue
		}
		switch {
		case how.Equal(oidRSA), how.Equal(row.rsa):
			s.row = row
			return nil
		case how.Equal(row.ecdsa):
			s.row, s.byECDSA = row, true
			return nil
		}
	}
	return problem.New(problem.ReasonWeakAlgorithm, "the document is signed with a digest or algorithm that is not accepted: SHA-256, SHA-384 or SHA-512, with RSA or ECDSA, are")
}
