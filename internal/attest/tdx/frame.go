package tdx

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tdx-guest/abi"
)

// The lengths of a quote's parts (Intel TDX DCAP Quoting Library API, appendix A.3).
const (
	headerSize       = 48
	bodySize         = 584
	beforeSigned     = headerSize + bodySize + 4 // a length of 4 bytes
	signatureAndKey  = 64 + 64
	certificationTag = 2 + 4 // type and length
	enclaveReport    = 384
	enclaveSignature = 64

	typeEnclaveReport = 6 // certification data: the quoting enclave's report, and what certifies it
	typePCKChain      = 5 // … PEM of the PCK's certificates
)

// quoteSize is the length that a quote says of itself.
func quoteSize(raw []byte) (int, bool) {
	if len(raw) < beforeSigned {
		return 0, false
	}
	n := binary.LittleEndian.Uint32(raw[beforeSigned-4:])
	return beforeSigned + int(n&(1<<30-1)), n < 1<<30
}

// checkFrame holds every length in a quote against what is there. The library slices by them, some before it compares, and would panic.
func checkFrame(raw []byte) error {
	n, ok := quoteSize(raw)
	if !ok || n != len(raw) || len(raw) < abi.QuoteMinSize {
		return errors.New("the quote is not as long as it says")
	}
	rest := raw[beforeSigned:]
	if len(rest) < signatureAndKey {
		return errors.New("no room for signature and key")
	}
	rest, err := tagged(rest[signatureAndKey:], typeEnclaveReport)
	if err != nil {
		return err
	}
	const fixed = enclaveReport + enclaveSignature + 2
	if len(rest) < fixed {
		return errors.New("no room for the quoting enclave's report")
	}
	data := int(binary.LittleEndian.Uint16(rest[fixed-2:]))
	if len(rest) < fixed+data {
		return errors.New("no room for the quoting enclave's data")
	}
	_, err = tagged(rest[fixed+data:], typePCKChain)
	return err
}

// tagged takes what stands behind a type and a length, which must be all the rest.
func tagged(b []byte, kind uint16) ([]byte, error) {
	if len(b) < certificationTag {
		return nil, errors.New("no room for certification data")
	}
	if binary.LittleEndian.Uint16(b) != kind {
		return nil, fmt.Errorf("the certification data are not of type %d", kind)
	}
	if uint64(binary.LittleEndian.Uint32(b[2:])) != uint64(len(b)-certificationTag) {
		return nil, errors.New("the certification data are not as long as they say")
	}
	return b[certificationTag:], nil
}
