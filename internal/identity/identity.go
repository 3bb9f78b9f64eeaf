// Package identity names things: environments, identities (SPIFFE IDs), secret paths, the patterns
// that select them, the grades of assurance, and the bootstrap string that a machine starts from.
//
// Guaranteed: every value made by a parser of this package prints back to exactly the text it was
// parsed from, so a name has one spelling and may be compared, indexed and signed as text; escaping
// a claim into a path segment is injective, so two different claims never become one identity; and
// a pattern matches whole segments only. Not guaranteed: that anybody who uses a name has proved it.
//
// It is a leaf and imports only the standard library. Its errors are plain: the callers, who know
// where the text came from, put them into the vocabulary of package problem. All types are
// immutable values and safe for concurrent use.
package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// Limits on names. MaxID is SPIFFE-ID §2.3; the others are ours, so that names fit into entries,
// certificates and file names whatever they were built from.
const (
	MaxEnv        = 63
	MaxPath       = 512  // bytes of an identity's path
	MaxID         = 2048 // bytes of a whole SPIFFE ID
	MaxSegments   = 16   // of an identity's path, and of a secret's
	MaxSecretPath = 255  // bytes
)

// Scheme is the prefix of every SPIFFE ID.
const Scheme = "spiffe://"

// The first segments in use, as path prefixes.
const (
	PrefixNode     = "/node/"
	PrefixWorkload = "/workload/"
	PrefixCI       = "/ci/"
	PrefixHuman    = "/human/"
	PrefixServer   = "/server/"
)

// ValidEnv says what is wrong with the name of an environment, or nil. It is a sequence of DNS
// labels in lower case, at most MaxEnv bytes, because it is the SPIFFE trust domain and the TLS
// server name too. An IP address is refused: TLS clients send no server name for one.
func ValidEnv(name string) error {
	if name == "" {
		return errors.New("the environment's name is empty")
	}
	if len(name) > MaxEnv {
		return fmt.Errorf("the environment's name is longer than %d bytes", MaxEnv)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return fmt.Errorf("environment %q has an empty label", name)
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("environment %q: a label begins or ends with '-'", name)
		}
		for i := range len(label) {
			if c := label[i]; !isLower(c) && !isDigit(c) && c != '-' {
				return fmt.Errorf("environment %q: only a-z, 0-9, '-' and '.' are allowed", name)
			}
		}
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Errorf("environment %q is an IP address; a name is needed", name)
	}
	return nil
}

// ID is a SPIFFE ID: an environment and a path in it. It is comparable; the zero ID is "none".
type ID struct{ env, path string }

// New makes the ID of a path ("/workload/payments-api") in an environment.
func New(env, path string) (ID, error) {
	if err := ValidEnv(env); err != nil {
		return ID{}, err
	}
	if err := ValidPath(path); err != nil {
		return ID{}, err
	}
	if len(Scheme)+len(env)+len(path) > MaxID {
		return ID{}, fmt.Errorf("the identity is longer than %d bytes", MaxID)
	}
	return ID{env, path}, nil
}

// Parse reads "spiffe://ENV/PATH", in exactly the form that String prints.
func Parse(s string) (ID, error) {
	if len(s) > MaxID {
		return ID{}, fmt.Errorf("the identity is longer than %d bytes", MaxID)
	}
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		return ID{}, fmt.Errorf("identity %q does not begin with %s", s, Scheme)
	}
	i := strings.IndexByte(rest, '/')
	if i < 0 {
		return ID{}, fmt.Errorf("identity %q has no path", s)
	}
	return New(rest[:i], rest[i:])
}

// Env is the environment, which is the SPIFFE trust domain.
func (id ID) Env() string { return id.env }

// Path is the path with its leading slash: the name of the identity inside its environment.
func (id ID) Path() string { return id.path }

// IsZero reports whether id is "none".
func (id ID) IsZero() bool { return id == ID{} }

// String is the SPIFFE ID, or "" for none.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return Scheme + id.env + id.path
}

// URL is the SPIFFE ID as it stands in a certificate's URI SAN; nil for none.
func (id ID) URL() *url.URL {
	if id.IsZero() {
		return nil
	}
	return &url.URL{Scheme: "spiffe", Host: id.env, Path: id.path}
}

// Segments are the path's segments as they are written, still escaped; nil for none.
func (id ID) Segments() []string {
	if id.path == "" {
		return nil
	}
	return strings.Split(id.path[1:], "/")
}

// MarshalText prints the ID for JSON and the like; none is the empty text.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is Parse; the empty text is none.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := Parse(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ValidPath says what is wrong with an identity's path, or nil: a leading slash, one to MaxSegments
// segments of [A-Za-z0-9.-] and canonical `_HH` escapes, none of them empty, "." or "..".
func ValidPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("the identity's path is longer than %d bytes", MaxPath)
	}
	if path == "" || path[0] != '/' {
		return fmt.Errorf("identity %q does not begin with '/'", path)
	}
	n := 0
	for segment := range strings.SplitSeq(path[1:], "/") {
		if n++; n > MaxSegments {
			return fmt.Errorf("identity %q has more than %d segments", path, MaxSegments)
		}
		if err := validSegment(segment); err != nil {
			return fmt.Errorf("identity %q: %w", path, err)
		}
	}
	return nil
}

func validSegment(s string) error {
	switch s {
	case "":
		return errors.New("a segment is empty")
	case ".", "..":
		return fmt.Errorf("the segment %q is not allowed", s)
	}
	_, err := Unescape(s)
	return err
}

const upperHex = "0123456789ABCDEF"

// Escape writes any text as one path segment: bytes outside [A-Za-z0-9.-] become `_HH`, and so do
// the dots of "." and "..", which have a meaning in paths. It is injective. The empty text stays
// empty, which is not a valid segment.
func Escape(s string) string {
	dots := s == "." || s == ".."
	n := 0
	for i := range len(s) {
		if !isPlain(s[i]) || dots {
			n++
		}
	}
	if n == 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2*n)
	for i := range len(s) {
		if c := s[i]; isPlain(c) && !dots {
			b.WriteByte(c)
		} else {
			b.WriteByte('_')
			b.WriteByte(upperHex[c>>4])
			b.WriteByte(upperHex[c&15])
		}
	}
	return b.String()
}

// Unescape undoes Escape, and fails for a text that Escape never makes.
func Unescape(s string) (string, error) {
	for i := range len(s) {
		if c := s[i]; !isPlain(c) && c != '_' {
			return "", fmt.Errorf("the segment %q has %q: only A-Z, a-z, 0-9, '.', '-' and _HH escapes are allowed", s, c)
		}
	}
	if strings.IndexByte(s, '_') < 0 {
		if s == "." || s == ".." {
			return "", fmt.Errorf("the segment %q is not escaped", s)
		}
		return s, nil
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			out = append(out, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", badEscape(s)
		}
		hi, lo := strings.IndexByte(upperHex, s[i+1]), strings.IndexByte(upperHex, s[i+2])
		if hi < 0 || lo < 0 {
			return "", badEscape(s)
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	// One spelling only: "_41" is not another way to write "A".
	if Escape(string(out)) != s {
		return "", badEscape(s)
	}
	return string(out), nil
}

func badEscape(s string) error {
	return fmt.Errorf("the segment %q: '_' must begin an escape _HH of a byte outside A-Z, a-z, 0-9, '.', '-' (a '_' itself is _5F)", s)
}

// SecretPath is the name of a secret inside its environment, such as "db/password".
type SecretPath string

// ParseSecretPath checks a secret's path: one to MaxSegments segments [A-Za-z0-9][A-Za-z0-9._-]*
// joined by '/', at most MaxSecretPath bytes, no leading slash.
func ParseSecretPath(s string) (SecretPath, error) {
	if s == "" {
		return "", errors.New("the secret's path is empty")
	}
	if len(s) > MaxSecretPath {
		return "", fmt.Errorf("the secret's path is longer than %d bytes", MaxSecretPath)
	}
	if s[0] == '/' {
		return "", fmt.Errorf("secret path %q begins with '/'", s)
	}
	n := 0
	for segment := range strings.SplitSeq(s, "/") {
		if n++; n > MaxSegments {
			return "", fmt.Errorf("secret path %q has more than %d segments", s, MaxSegments)
		}
		if segment == "" {
			return "", fmt.Errorf("secret path %q has an empty segment", s)
		}
		for i := range len(segment) {
			c := segment[i]
			if isAlnum(c) || i > 0 && (c == '.' || c == '_' || c == '-') {
				continue
			}
			return "", fmt.Errorf("secret path %q: a segment is [A-Za-z0-9][A-Za-z0-9._-]*", s)
		}
	}
	return SecretPath(s), nil
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isAlnum(c byte) bool { return isLower(c) || isDigit(c) || 'A' <= c && c <= 'Z' }
func isPlain(c byte) bool { return isAlnum(c) || c == '.' || c == '-' }
