package seal

import (
	"crypto/subtle"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// redacted is what every printer shows instead of a secret.
const redacted = "[secret]"

var errMarshal = errors.New("a secret value can't be encoded: Expose it where that is meant")

// Secret holds secret bytes. Expose is the only way to them: fmt, slog and templates show
// "[secret]", and JSON, text, binary, gob and XML encoding fail.
//
// Copies of the value share one buffer, so that Wipe reaches them all; Clone makes a buffer of its
// own. The zero value is an empty secret. Secrets can't be compared with ==; use Equal.
// Reading from several goroutines is safe, Wipe at the same time as anything else is not.
type Secret struct {
	// A func, because printers that go by reflection, and so past the methods below, follow
	// pointers but never a func's captured variables. It also makes == a compile error.
	open func() *buffer
}

type buffer struct{ b []byte }

// NewSecret takes over b: the caller must not use it any more.
func NewSecret(b []byte) Secret {
	if len(b) == 0 {
		return Secret{}
	}
	buf := &buffer{b}
	return Secret{func() *buffer { return buf }}
}

// Expose returns the secret bytes themselves, not a copy: they must not be changed, and are
// zeroes after Wipe. Nil for an empty or wiped secret. Search for this name to find every place
// where a secret can get out.
func (s Secret) Expose() []byte {
	if s.open == nil {
		return nil
	}
	return s.open().b
}

// Len is the number of bytes; 0 after Wipe.
func (s Secret) Len() int { return len(s.Expose()) }

// Equal compares in time that depends on the lengths only.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare(s.Expose(), t.Expose()) == 1
}

// Clone returns a secret with the same bytes in a buffer of its own.
func (s Secret) Clone() Secret {
	return NewSecret(append([]byte(nil), s.Expose()...))
}

// Wipe overwrites the buffer with zeroes, for all copies of s, and leaves them empty.
// It can't reach copies that others made of Expose's bytes.
func (s Secret) Wipe() {
	if s.open == nil {
		return
	}
	buf := s.open()
	clear(buf.b[:cap(buf.b)])
	buf.b = nil
}

// Format writes "[secret]" for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// String returns "[secret]".
func (s Secret) String() string { return redacted }

// GoString returns "[secret]".
func (s Secret) GoString() string { return redacted }

// LogValue returns "[secret]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON fails, as do the other encodings: a struct with a secret in it can't be encoded.
func (s Secret) MarshalJSON() ([]byte, error) { return nil, errMarshal }

// MarshalText fails.
func (s Secret) MarshalText() ([]byte, error) { return nil, errMarshal }

// MarshalBinary fails.
func (s Secret) MarshalBinary() ([]byte, error) { return nil, errMarshal }

// GobEncode fails.
func (s Secret) GobEncode() ([]byte, error) { return nil, errMarshal }

// MarshalXML fails.
func (s Secret) MarshalXML(*xml.Encoder, xml.StartElement) error { return errMarshal }

// MarshalXMLAttr fails.
func (s Secret) MarshalXMLAttr(xml.Name) (xml.Attr, error) { return xml.Attr{}, errMarshal }
