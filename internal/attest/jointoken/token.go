package jointoken

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/bailment/bailment/internal/problem"
)

// Prefix begins the text of every token; it is there for people and for secret scanners.
const Prefix = "bjt1_"

const (
	hintSize  = 8  // of the genesis: enough to tell environments apart by mistake, not against malice
	idSize    = 16 // random, so that IDs neither repeat nor are guessed
	seedSize  = ed25519.SeedSize
	sumSize   = 4
	bodySize  = hintSize + idSize + seedSize
	textSize  = len(Prefix) + (bodySize+sumSize)/3*4 // 60 bytes: no padding
	idTextLen = 2 * idSize
)

// Token is a join token: whoever has it can become one machine, once. It prints as "[join token
// ID]" in every format, and marshals to an error, so only Reveal lets it out. The zero Token is
// none. It is safe for concurrent use, except with Wipe.
type Token struct {
	// A func, not a pointer: fmt looks into unexported fields without asking their Format method, and
	// for a wrong verb follows one pointer; of a func it can only show the address.
	get func() *material
}

type material struct {
	hint [hintSize]byte
	id   [idSize]byte
	seed [seedSize]byte
}

// New makes a token of the environment with that genesis, from crypto/rand.
func New(genesis [32]byte) (Token, error) {
	m := new(material)
	copy(m.hint[:], genesis[:])
	for _, b := range [][]byte{m.id[:], m.seed[:]} {
		if _, err := rand.Read(b); err != nil {
			return Token{}, problem.Wrap(err, problem.ReasonEntropy, "make a join token")
		}
	}
	return tokenOf(m), nil
}

func tokenOf(m *material) Token { return Token{func() *material { return m }} }

// Parse reads the text that Reveal gives; white space round it is ignored, since tokens are kept in
// files. The error says what is wrong without showing any of it.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	enc, ok := strings.CutPrefix(text, Prefix)
	if !ok {
		return Token{}, problem.New(problem.ReasonInvalid, "this is no join token: it does not begin with %s", Prefix)
	}
	if len(text) != textSize {
		return Token{}, problem.New(problem.ReasonInvalid, "the join token has %d characters instead of %d: it was cut or something was added", len(text), textSize)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(enc)
	defer clear(raw)
	if err != nil || len(raw) != bodySize+sumSize { // the decoder passes over line breaks
		return Token{}, problem.New(problem.ReasonInvalid, "the join token holds a character that no join token has")
	}
	sum := checksum(raw[:bodySize])
	if string(sum[:]) != string(raw[bodySize:]) {
		return Token{}, problem.New(problem.ReasonInvalid, "the join token was mistyped: its checksum does not fit")
	}
	m := new(material)
	n := copy(m.hint[:], raw)
	n += copy(m.id[:], raw[n:])
	copy(m.seed[:], raw[n:bodySize])
	return tokenOf(m), nil
}

// checksum tells typos from wrong tokens. It is a truncated hash, not a CRC, so that it also says
// nothing about the seed that the seed's holder doesn't know.
func checksum(body []byte) [sumSize]byte {
	h := sha256.New()
	_, _ = io.WriteString(h, "bailment join token checksum v1\n")
	_, _ = h.Write(body)
	return [sumSize]byte(h.Sum(nil))
}

// Reveal is the token's secret text, for the one who will carry it to the machine. Whoever sees it
// can use it: it must not be logged, passed as an argument or sent to the server.
func (t Token) Reveal() string {
	if t.get == nil {
		return ""
	}
	raw := make([]byte, 0, bodySize+sumSize)
	raw = append(raw, t.get().hint[:]...)
	raw = append(raw, t.get().id[:]...)
	raw = append(raw, t.get().seed[:]...)
	sum := checksum(raw)
	raw = append(raw, sum[:]...)
	defer clear(raw)
	return Prefix + base64.RawURLEncoding.EncodeToString(raw)
}

// IsZero reports whether t is no token.
func (t Token) IsZero() bool { return t.get == nil }

// ID is the token's public name, 32 hexadecimal digits; empty for the zero Token.
func (t Token) ID() string {
	if t.get == nil {
		return ""
	}
	return hex.EncodeToString(t.get().id[:])
}

// PublicKey is what the ledger keeps of the token, beside its ID; nil for the zero Token.
func (t Token) PublicKey() ed25519.PublicKey {
	if t.get == nil {
		return nil
	}
	return t.key().Public().(ed25519.PublicKey)
}

// Of reports whether the token says that it is of the environment with that genesis.
func (t Token) Of(genesis [32]byte) bool {
	return t.get != nil && t.get().hint == [hintSize]byte(genesis[:hintSize])
}

// Wipe overwrites the seed, in this Token and all its copies, as far as Go lets one: copies that
// Reveal or a signature made are out of reach. No other use of the token may run at the same time.
func (t Token) Wipe() {
	if t.get != nil {
		clear(t.get().seed[:])
	}
}

func (t Token) key() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(t.get().seed[:]) }

func (t Token) String() string {
	if t.get == nil {
		return "[no join token]"
	}
	return "[join token " + t.ID() + "]"
}

// Format prints what String prints, for every verb and flag.
func (t Token) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, t.String()) }

// MarshalText fails, so that a token that got into a configuration or an entry is found in a test
// and not in a log.
func (t Token) MarshalText() ([]byte, error) {
	return nil, problem.New(problem.ReasonInternal, "a join token can't be marshalled")
}

// ValidID reports whether id is the text form of a token's ID.
func ValidID(id string) bool {
	if len(id) != idTextLen {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// hintText is a genesis' first bytes, as evidence shows them.
func hintText(h [hintSize]byte) string {
	return fmt.Sprintf("%016x", binary.BigEndian.Uint64(h[:]))
}
