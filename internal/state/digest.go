package state

import (
	"encoding/hex"
	"fmt"
)

// Digest is a SHA-256 digest, in JSON and text as `sha256:` and 64 lower-case hex digits.
type Digest [32]byte

const digestPrefix = "sha256:"

// IsZero reports the absence of a digest.
func (d Digest) IsZero() bool { return d == Digest{} }

func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// MarshalText is for JSON.
func (d Digest) MarshalText() ([]byte, error) {
	b := make([]byte, 0, len(digestPrefix)+64)
	b = append(b, digestPrefix...)
	return hex.AppendEncode(b, d[:]), nil
}

// UnmarshalText reads exactly what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error {
	p, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = p
	return nil
}

// ParseDigest reads the text form.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != len(digestPrefix)+64 || s[:len(digestPrefix)] != digestPrefix {
		return d, fmt.Errorf("digest is not of the form sha256:HEX")
	}
	for _, c := range s[len(digestPrefix):] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return d, fmt.Errorf("digest is not of the form sha256:HEX (lower case)")
		}
	}
	if _, err := hex.Decode(d[:], []byte(s[len(digestPrefix):])); err != nil {
		return d, fmt.Errorf("digest is not of the form sha256:HEX")
	}
	return d, nil
}
