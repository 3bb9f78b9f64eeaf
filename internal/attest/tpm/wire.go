package tpm

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
)

// The server's half reads three structures of the TPM 2.0 Library (Part 2: Structures): TPMT_PUBLIC (§12.2.4), TPMS_ATTEST (§10.12.12)
// and TPMT_SIGNATURE (§11.3.4), of exactly the types and algorithms that it accepts. It has its own reader because the bytes are a
// stranger's: a general one by reflection accepts far more than is needed here, and is not made for hostile input.

// Numbers of TPM_ALG_ID, TPM_ECC_CURVE, TPM_ST and TPMA_OBJECT (Part 2 §6.3, §6.4, §6.9, §8.3.2).
const (
	algRSA    = 0x0001
	algSHA1   = 0x0004
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algNull   = 0x0010
	algRSASSA = 0x0014
	algRSAPSS = 0x0016
	algECDSA  = 0x0018
	algECC    = 0x0023

	curveP256 = 0x0003
	curveP384 = 0x0004

	magicGenerated = 0xff544347
	typeCertify    = 0x8017
	typeQuote      = 0x8018

	attrFixedTPM            = 1 << 1
	attrSTClear             = 1 << 2
	attrFixedParent         = 1 << 4
	attrSensitiveDataOrigin = 1 << 5
	attrUserWithAuth        = 1 << 6
	attrAdminWithPolicy     = 1 << 7
	attrNoDA                = 1 << 10
	attrEncryptedDup        = 1 << 11
	attrRestricted          = 1 << 16
	attrDecrypt             = 1 << 17
	attrSign                = 1 << 18
)

// reader reads fields, and remembers that it ran out. TPMs are big-endian; logs of firmware and kernels little-endian (see little).
type reader struct {
	rest   []byte
	little bool
	bad    bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.rest) {
		r.bad = true
		return nil
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out
}

// number reads n bytes, of which there are at most 8; 0 if they aren't there.
func (r *reader) number(n int) uint64 {
	var out [8]byte
	if b := r.take(n); r.little {
		copy(out[:], b)
		return binary.LittleEndian.Uint64(out[:])
	} else if b != nil {
		copy(out[8-n:], b)
	}
	return binary.BigEndian.Uint64(out[:])
}

func (r *reader) u8() uint8   { return uint8(r.number(1)) }
func (r *reader) u16() uint16 { return uint16(r.number(2)) }
func (r *reader) u32() uint32 { return uint32(r.number(4)) }
func (r *reader) u64() uint64 { return r.number(8) }

// sized reads a TPM2B.
func (r *reader) sized() []byte { return r.take(int(r.u16())) }

// done reports whether everything was there and nothing is left.
func (r *reader) done() bool { return !r.bad && len(r.rest) == 0 }

// public is a TPMT_PUBLIC of an RSA or ECC key.
type public struct {
	raw        []byte
	head       []byte // all but the key itself: what a template fixes
	kind       uint16
	nameAlg    uint16
	attributes uint32
	symmetric  uint16 // algNull for keys that sign
	scheme     uint16
	schemeHash uint16
	bits       uint16 // RSA
	exponent   uint32 // RSA; 0 is 65537
	curve      uint16 // ECC
	kdf        uint16 // ECC
	n, x, y    []byte
}

// parsePublic reads a TPMT_PUBLIC, and nothing after it. What the numbers mean is checked by who uses it.
func parsePublic(raw []byte) (public, bool) {
	if len(raw) > maxPublic {
		return public{}, false
	}
	r := reader{rest: raw}
	p := public{raw: raw, kind: r.u16(), nameAlg: r.u16(), attributes: r.u32()}
	r.sized() // authPolicy
	if p.symmetric = r.u16(); p.symmetric != algNull {
		r.take(4) // key bits and mode
	}
	if p.scheme = r.u16(); p.scheme != algNull {
		p.schemeHash = r.u16()
	}
	switch p.kind {
	case algRSA:
		p.bits, p.exponent = r.u16(), r.u32()
		p.head = raw[:len(raw)-len(r.rest)]
		p.n = r.sized()
	case algECC:
		p.curve = r.u16()
		if p.kdf = r.u16(); p.kdf != algNull {
			r.take(2)
		}
		p.head = raw[:len(raw)-len(r.rest)]
		p.x, p.y = r.sized(), r.sized()
	default:
		return public{}, false
	}
	return p, r.done()
}

// name is the object's Name (Part 1, "Names"): what the TPM itself calls it, made anew from its public area.
func (p public) name() []byte {
	out := binary.BigEndian.AppendUint16(nil, p.nameAlg)
	if p.nameAlg == algSHA384 {
		sum := sha512.Sum384(p.raw)
		return append(out, sum[:]...)
	}
	sum := sha256.Sum256(p.raw)
	return append(out, sum[:]...)
}

// attestation is a TPMS_ATTEST of a quote or a certification.
type attestation struct {
	kind       uint16
	extra      []byte
	clock      uint64 // milliseconds
	resets     uint32
	restarts   uint32
	selections []selection // quote
	pcrDigest  []byte      // quote
	name       []byte      // certification
}

type selection struct {
	alg  uint16
	pcrs []int
}

// parseAttestation reads a TPMS_ATTEST, and nothing after it. The magic number, which a TPM puts before nothing that it didn't make
// itself, is told apart because a restricted key's promise rests on it.
func parseAttestation(raw []byte) (a attestation, magic, whole bool) {
	r := reader{rest: raw}
	magic = r.u32() == magicGenerated
	a.kind = r.u16()
	r.sized() // qualified name of the signer
	a.extra = r.sized()
	a.clock, a.resets, a.restarts = r.u64(), r.u32(), r.u32()
	r.u8()  // safe
	r.u64() // firmware version
	switch a.kind {
	case typeQuote:
		count := r.u32()
		if count > maxBanks {
			return attestation{}, magic, false
		}
		for range count {
			s := selection{alg: r.u16()}
			for i, b := range r.take(int(r.u8())) {
				for bit := range 8 {
					if b&(1<<bit) != 0 {
						s.pcrs = append(s.pcrs, i*8+bit)
					}
				}
			}
			a.selections = append(a.selections, s)
		}
		a.pcrDigest = r.sized()
	case typeCertify:
		a.name = r.sized()
		r.sized() // qualified name
	default:
		return attestation{}, magic, false
	}
	return a, magic, r.done()
}

// signature is a TPMT_SIGNATURE.
type signature struct {
	alg, hash uint16
	rsa       []byte
	r, s      []byte
}

func parseSignature(raw []byte) (signature, bool) {
	r := reader{rest: raw}
	s := signature{alg: r.u16(), hash: r.u16()}
	switch s.alg {
	case algRSASSA, algRSAPSS:
		s.rsa = r.sized()
	case algECDSA:
		s.r, s.s = r.sized(), r.sized()
	default:
		return signature{}, false
	}
	return s, r.done()
}
