// Package cms reads and checks the one shape of CMS SignedData (RFC 5652, the PKCS #7 of old) in which clouds sign what they say of a
// machine: a content of type data inside, one signer, named by issuer and serial number.
//
// Guaranteed: what Parse takes is the only encoding of what it means, but for the order and number of the certificates beside it, which
// are nobody until a caller has chained them; exactly one signer; a digest of a closed list, none of it broken; signed attributes, where
// there are any, name the content's type and digest exactly once, so that a signature over attributes can't be shown as one over content
// nor the other way round (RFC 5652 §5.4). Verify takes the certificate that must have signed from its caller, never from the message.
// Everything is bounded, and Parse does not recurse.
//
// Not guaranteed: anything about that certificate, not even that it is valid now. The signing time that a signer may state is ignored:
// it is the signer's word, and the callers' documents carry their own times.
//
// The general libraries for this format take much more than it: several signers, BER, digests that are broken, structures whose parse
// errors are dropped, and whatever certificate the message brings. Here the machine rewrites BER to the one form (Rewrite), so that the
// server reads DER only.
//
// Its place: below the methods of attestation that need it; it imports leaves only.
package cms

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"hash"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/bailment/bailment/internal/problem"
)

// Limits on a message. AWS's has 1 to 2 KiB, Azure's 3 to 4 with its chain.
const (
	MaxMessage      = 32 << 10 // bytes
	MaxContent      = 16 << 10 // bytes
	MaxCertificates = 8
)

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// algorithm is one row of the closed list: RFC 5754 §2, §3.
type algorithm struct {
	hash   func() hash.Hash
	digest asn1.ObjectIdentifier
	rsa    asn1.ObjectIdentifier // PKCS #1 v1.5 with this digest
	ecdsa  asn1.ObjectIdentifier
	asRSA  x509.SignatureAlgorithm
	asEC   x509.SignatureAlgorithm
}

var algorithms = []algorithm{
	{
		sha256.New,
		asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1},
		asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11},
		asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2},
		x509.SHA256WithRSA, x509.ECDSAWithSHA256,
	},
	{
		sha512.New384,
		asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2},
		asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 12},
		asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3},
		x509.SHA384WithRSA, x509.ECDSAWithSHA384,
	},
	{
		sha512.New,
		asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3},
		asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 13},
		asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4},
		x509.SHA512WithRSA, x509.ECDSAWithSHA512,
	},
}

// Signed is a message that was read, and not checked: nothing in it is believed before Verify.
type Signed struct {
	Content      []byte
	Certificates [][]byte // DER; not parsed, not believed

	issuer     []byte // DER of the signer's Name
	serial     *big.Int
	row        algorithm
	byECDSA    bool
	attributes []byte // DER of the SET OF Attribute, or nil
	signature  []byte
}

// Parse reads a message in its one encoding, that of Encode. It refuses with invalid, too-large, or, where the digest or signature is not
// of the closed list, weak-algorithm.
func Parse(der []byte) (*Signed, error) {
	s, err := read(der)
	if err != nil {
		return nil, err
	}
	again, err := s.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(der, again) {
		return nil, malformed("it is not in its one encoding (an unsigned attribute, a revocation list, other parameters)")
	}
	return s, nil
}

// IsSigner reports whether the message names that certificate as its signer's. Names are not proofs: Verify is.
func (s *Signed) IsSigner(c *x509.Certificate) bool {
	return c.SerialNumber != nil && s.serial.Cmp(c.SerialNumber) == 0 && bytes.Equal(s.issuer, c.RawIssuer)
}

// Verify checks that the certificate's key signed the content. It refuses with bad-proof.
func (s *Signed) Verify(c *x509.Certificate) error {
	signed := s.Content
	if s.attributes != nil {
		if err := s.checkAttributes(); err != nil {
			return err
		}
		signed = s.attributes
	} else if len(signed) > 0 && signed[0] == byte(cbasn1.SET) {
		return problem.New(problem.ReasonBadProof, "what was signed may be the attributes of another message")
	}
	how := s.row.asRSA
	if s.byECDSA {
		how = s.row.asEC
	}
	// crypto/x509 checks that the key is of the algorithm's kind; the digest's name is part of what an RSA signature signs.
	if err := c.CheckSignature(how, signed, s.signature); err != nil {
		p := problem.New(problem.ReasonBadProof, "the document is not signed by the key of that certificate")
		p.Err = err
		return p
	}
	return nil
}

// checkAttributes wants each attribute once, and the two that tie them to the content (RFC 5652 §11.1, §11.2).
func (s *Signed) checkAttributes() error {
	bad := problem.New(problem.ReasonBadProof, "the signed attributes are not those of this document")
	outer := cryptobyte.String(s.attributes)
	var set cryptobyte.String
	if !outer.ReadASN1(&set, cbasn1.SET) || !outer.Empty() {
		return bad
	}
	h := s.row.hash()
	h.Write(s.Content)
	sum := h.Sum(nil)
	seen := make(map[string]bool)
	for !set.Empty() {
		var attribute, values cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !set.ReadASN1(&attribute, cbasn1.SEQUENCE) || !attribute.ReadASN1ObjectIdentifier(&oid) ||
			!attribute.ReadASN1(&values, cbasn1.SET) || !attribute.Empty() || seen[oid.String()] {
			return bad
		}
		seen[oid.String()] = true
		switch {
		case oid.Equal(oidContentType):
			var kind asn1.ObjectIdentifier
			if !values.ReadASN1ObjectIdentifier(&kind) || !values.Empty() || !kind.Equal(oidData) {
				return bad
			}
		case oid.Equal(oidMessageDigest):
			var digest cryptobyte.String
			if !values.ReadASN1(&digest, cbasn1.OCTET_STRING) || !values.Empty() || !bytes.Equal(digest, sum) {
				return bad
			}
		}
	}
	if !seen[oidContentType.String()] || !seen[oidMessageDigest.String()] {
		return bad
	}
	return nil
}

// Encode writes the message in its one encoding: version 1, the signer's digest with parameters NULL, the certificates in their order, no
// revocation lists, no unsigned attributes.
func (s *Signed) Encode() ([]byte, error) {
	if len(s.Certificates) > MaxCertificates {
		return nil, problem.New(problem.ReasonTooLarge, "the signed document brings more than %d certificates", MaxCertificates)
	}
	var b cryptobyte.Builder
	null := func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.NULL, func(*cryptobyte.Builder) {}) }
	digest := func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(s.row.digest); null(b) })
	}
	explicit := cbasn1.Tag(0).ContextSpecific().Constructed()
	signer := func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(s.issuer); b.AddASN1BigInt(s.serial) })
		digest(b)
		if s.attributes != nil {
			set := cryptobyte.String(s.attributes)
			var inner cryptobyte.String
			if !set.ReadASN1(&inner, cbasn1.SET) {
				b.SetError(malformed("its attributes"))
				return
			}
			b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddBytes(inner) })
		}
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			if s.byECDSA { // RFC 5754 §3.3: without parameters
				b.AddASN1ObjectIdentifier(s.row.ecdsa)
				return
			}
			b.AddASN1ObjectIdentifier(oidRSA)
			null(b)
		})
		b.AddASN1OctetString(s.signature)
	}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(explicit, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, digest)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidData)
					b.AddASN1(explicit, func(b *cryptobyte.Builder) { b.AddASN1OctetString(s.Content) })
				})
				if len(s.Certificates) > 0 {
					b.AddASN1(explicit, func(b *cryptobyte.Builder) {
						for _, c := range s.Certificates {
							b.AddBytes(c)
						}
					})
				}
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, signer) })
			})
		})
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "encode a signed document")
	}
	if len(out) > MaxMessage {
		return nil, tooLarge()
	}
	return out, nil
}

func tooLarge() error {
	return problem.New(problem.ReasonTooLarge, "the signed document has more than %d bytes", MaxMessage)
}

func malformed(what string) error {
	return problem.New(problem.ReasonInvalid, "the signed document can't be read: %s", what)
}
