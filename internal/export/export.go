// Package export makes the file in which secrets leave an environment by an approved change: JSON lines, sealed to an X25519 recipient of age.
//
// Guaranteed: the plain text exists in memory only, piece by piece, and each piece is overwritten when it is sealed; the same values give the
// same plain text, and never the same file. Not guaranteed: who holds the recipient's identity, and what becomes of the file. The format is
// docs/reference/exports.md.
//
// Its place: pure, beside seal. Package control decides what is exported, and enters it. It reads no clock and no file; randomness is age's own.
package export

import (
	"bytes"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"filippo.io/age"
)

// Format is the version of the plain text, the first field of its first line. Fields may be added to it; none changes its meaning.
const Format = "bailment.export/1"

// Header is the first line. Blanks follow it, so that it is as long as what age seals at once: age's buffer grows by copying what it has, and
// leaves the copies where they are. So it has grown when the first value comes to it.
type Header struct {
	Format      string `json:"format"`
	Environment string `json:"environment"`
	Genesis     string `json:"genesis"`
	Change      uint64 `json:"change"`
	Secrets     string `json:"secrets"` // the pattern
	Count       int    `json:"count"`   // of the lines that follow
}

// Item is a version. As a line it has its value in base64 (RFC 4648 §4), so that any bytes go through.
type Item struct {
	Secret  string
	Version uint64
	Digest  string // of the ciphertext, as the ledger has it
	Value   []byte // stays the caller's
}

// ParseRecipient reads an X25519 recipient of age, as age1…: the only kind there is here. Points that no identity has are refused, to which
// age could not seal, or nobody open what it sealed. An error says nothing of the text.
func ParseRecipient(text string) (age.Recipient, error) {
	r, err := age.ParseX25519Recipient(text)
	if err != nil || r.String() != text || !usable(pointOf(text)) {
		return nil, fmt.Errorf("the recipient is not an X25519 recipient of age, as age1… in lower case")
	}
	return r, nil
}

// pointOf is the point of a recipient that age has read: five bits in each letter (BIP 173), after "age1" and without the checksum.
func pointOf(text string) []byte {
	out, bits, n := make([]byte, 0, 32), 0, 0
	for _, c := range text[len("age1") : len(text)-6] {
		bits, n = (bits<<5|strings.IndexRune("qpzry9x8gf2tvdw0s3jn54khce6mua7l", c))&0xfff, n+5
		if n >= 8 {
			n -= 8
			out = append(out, byte(bits>>n))
		}
	}
	return out
}

// usable reports whether an identity can have a point as its public key: it is not of small order, and is spelled as the number that it is
// (RFC 7748 §5: others are taken for it, but they are what age derives the file's key from).
func usable(point []byte) bool {
	public, err := ecdh.X25519().NewPublicKey(point)
	if err != nil {
		return false
	}
	field := append(append([]byte{0xed}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f) // 2^255-19, its lowest byte first
	for i := len(field) - 1; ; i-- {
		if i < 0 || point[i] > field[i] {
			return false
		} else if point[i] < field[i] {
			break
		}
	}
	scalar, err := ecdh.X25519().NewPrivateKey(field) // each is a multiple of 8, so that what they make of a point of small order is 0
	if err != nil {
		return false
	}
	_, err = scalar.ECDH(public)
	return err == nil
}

// Seal makes the file (https://age-encryption.org/v1).
func Seal(to age.Recipient, h Header, items []Item) ([]byte, error) {
	h.Format, h.Count = Format, len(items)
	longest, all := 0, piece+1024
	for i := range items {
		n := lineLen(&items[i])
		longest, all = max(longest, n), all+n
	}
	var out bytes.Buffer
	out.Grow(all + all/1024) // 16 bytes for each 64 KiB, and what age puts first
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, fmt.Errorf("sealing to the recipient: %w", err)
	}
	first, err := firstLine(h)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(first); err != nil {
		return nil, err
	}
	line := make([]byte, 0, longest)
	defer func() { clear(line[:cap(line)]) }()
	for i := range items {
		if line, err = appendLine(line[:0], &items[i]); err != nil {
			return nil, err
		}
		if _, err := w.Write(line); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// piece is how much age seals at once (https://age-encryption.org/v1, "Payload").
const piece = 64 << 10

func firstLine(h Header) ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	line := bytes.Repeat([]byte{' '}, max(piece, len(text)+1))
	copy(line, text)
	line[len(line)-1] = '\n'
	return line, nil
}

const framing = 128 // of a line, without its texts

// lineLen is how long a line is at most, so that none is ever moved in memory, where a copy would stay.
func lineLen(x *Item) int {
	return framing + 6*len(x.Secret) + len(x.Digest) + base64.StdEncoding.EncodedLen(len(x.Value))
}

func appendLine(b []byte, x *Item) ([]byte, error) {
	name, err := json.Marshal(x.Secret)
	if err != nil {
		return b, err
	}
	b = fmt.Appendf(b, `{"secret":%s,"version":%d,"digest":%q,"value":"`, name, x.Version, x.Digest)
	b = base64.StdEncoding.AppendEncode(b, x.Value)
	return append(b, "\"}\n"...), nil
}
