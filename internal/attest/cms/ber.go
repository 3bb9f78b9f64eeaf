package cms

import (
	"math"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxDepth bounds the nesting of BER. A name in a certificate is 12 deep.
const maxDepth = 24

// Rewrite reads a message as platforms send it, in BER (AWS's has indefinite lengths), and gives it as Signed, whose Encode is what Parse
// takes. It is the machine's half: nothing that is signed changes, and what is not signed is dropped.
func Rewrite(ber []byte) (*Signed, error) {
	if len(ber) > MaxMessage {
		return nil, tooLarge()
	}
	der, rest, err := toDER(ber, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, malformed("something follows it")
	}
	return read(der)
}

const (
	octetString    = byte(cbasn1.OCTET_STRING)
	constructed    = 0x20
	manyOctets     = octetString | constructed
	longTag        = 0x1f
	indefinite     = 0x80
	maxLengthBytes = 4
)

// toDER rewrites the first element of ber with definite, shortest lengths, and octet strings in one piece. It does not sort sets: what is
// in them may be signed as it is.
func toDER(ber []byte, depth int) (der, rest []byte, err error) {
	tag, length, body, err := header(ber)
	if err != nil {
		return nil, nil, err
	}
	if depth > maxDepth {
		return nil, nil, malformed("it is nested too deep")
	}
	if tag&constructed == 0 {
		if length < 0 {
			return nil, nil, malformed("a length without end where nothing ends it")
		}
		return element(tag, body[:length]), body[length:], nil
	}
	inside, rest := body, []byte(nil)
	if length >= 0 {
		inside, rest = body[:length], body[length:]
	}
	var content []byte
	for {
		if length >= 0 && len(inside) == 0 {
			break
		}
		if length < 0 && len(inside) >= 2 && inside[0] == 0 && inside[1] == 0 {
			rest = inside[2:]
			break
		}
		var one []byte
		if one, inside, err = toDER(inside, depth+1); err != nil {
			return nil, nil, err
		}
		if tag == manyOctets {
			if one, err = octetsOf(one); err != nil {
				return nil, nil, err
			}
		}
		content = append(content, one...)
	}
	if tag == manyOctets {
		tag = octetString
	}
	return element(tag, content), rest, nil
}

func octetsOf(der []byte) ([]byte, error) {
	in := cryptobyte.String(der)
	var out cryptobyte.String
	if !in.ReadASN1(&out, cbasn1.OCTET_STRING) {
		return nil, malformed("an octet string holds something else")
	}
	return out, nil
}

// header reads tag and length (-1: indefinite); body holds at least length bytes.
func header(ber []byte) (tag byte, length int, body []byte, err error) {
	if len(ber) < 2 {
		return 0, 0, nil, malformed("it ends too early")
	}
	tag, first, body := ber[0], ber[1], ber[2:]
	switch {
	case tag&longTag == longTag:
		return 0, 0, nil, malformed("a tag that this format doesn't have")
	case first == indefinite:
		return tag, -1, body, nil
	case first < indefinite:
		length = int(first)
	default:
		n := int(first &^ indefinite)
		if n > maxLengthBytes || n > len(body) {
			return 0, 0, nil, malformed("a length that is too long")
		}
		var sum uint64
		for _, b := range body[:n] {
			sum = sum<<8 | uint64(b)
		}
		if sum > math.MaxInt32 {
			return 0, 0, nil, malformed("a length that is too long")
		}
		length, body = int(sum), body[n:]
	}
	if length > len(body) {
		return 0, 0, nil, malformed("it ends too early")
	}
	return tag, length, body, nil
}

func element(tag byte, content []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.Tag(tag), func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return b.BytesOrPanic() // it fails for tags of several bytes and for contents beyond 4 GiB only, which header refused
}
