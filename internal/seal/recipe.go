package seal

import (
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/bailment/bailment/internal/problem"
)

// Recipe is a named way to generate a value.
type Recipe struct {
	Name    string
	Unit    string // what a length counts: "characters" or "random bytes"
	Default int    // the length when 0 is asked for
	Min     int    // the shortest that holds 128 bits (uuid: 122, which its standard fixes)
	Max     int
	Doc     string // one sentence for the reference

	make func(n int, src *Source) ([]byte, error)
}

const (
	alnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	// symbols need no quoting in a POSIX shell's word, a YAML or JSON string or an INI file, and no
	// escaping in a URL's user information except "@" and ":", which are left out for that reason.
	symbols  = "-._~+=,"
	printing = alnum + symbols
)

// recipes is the closed table.
//
// The shortest lengths: 128 / log2(62) = 21.5 characters for alphanumeric; password has 69
// characters, the first one alphanumeric, and loses less than a bit to its rule of four classes.
var recipes = []Recipe{
	{"password", "characters", 32, 22, 1024, "letters, digits and -._~+=, with at least one each of upper case, lower case, digit and symbol; starts with a letter or digit", makePassword},
	{"alphanumeric", "characters", 32, 22, 1024, "letters and digits", makeAlphanumeric},
	{"hex", "random bytes", 32, 16, 1024, "random bytes in lower case hexadecimal", makeHex},
	{"base64", "random bytes", 32, 16, 1024, "random bytes in padded base64 (RFC 4648 §4)", makeBase64},
	{"token", "random bytes", 32, 16, 1024, "random bytes in base64url without padding (RFC 4648 §5)", makeToken},
	{"uuid", "characters", 36, 36, 36, "a random UUID (RFC 9562 version 4, 122 random bits)", makeUUID},
}

// Recipes lists the recipes, for help and reference.
func Recipes() []Recipe { return append([]Recipe(nil), recipes...) }

// Generate makes a value by the recipe of that name. Length is in the recipe's unit; 0 is its
// default. Every value that the recipe can make is equally likely.
// Errors: invalid for an unknown recipe or a length outside its limits; entropy.
func Generate(recipe string, length int, src *Source) (Secret, error) {
	for _, r := range recipes {
		if r.Name != recipe {
			continue
		}
		if length == 0 {
			length = r.Default
		}
		if length < r.Min || length > r.Max {
			return Secret{}, problem.New(problem.ReasonInvalid, "recipe %s: length %d, want %d to %d %s", r.Name, length, r.Min, r.Max, r.Unit)
		}
		b, err := r.make(length, src)
		if err != nil {
			return Secret{}, err
		}
		if err := src.refuseSeen(b); err != nil {
			return Secret{}, err
		}
		return NewSecret(b), nil
	}
	names := make([]string, len(recipes))
	for i, r := range recipes {
		names[i] = r.Name
	}
	return Secret{}, problem.New(problem.ReasonInvalid, "there is no recipe %.40q", recipe).
		WithFix("use one of: %s", strings.Join(names, ", "))
}

// pool draws unbiased choices from a Source, reading it in blocks.
type pool struct {
	src *Source
	buf [64]byte
	n   int // unused bytes at the end of buf
}

// pick returns a uniformly random byte of set, which has 1 to 256 bytes: bytes of the incomplete
// last multiple of len(set) are thrown away, for a remainder would favour the first ones.
func (p *pool) pick(set string) (byte, error) {
	limit := 256 - 256%len(set)
	for {
		if p.n == 0 {
			if _, err := p.src.Read(p.buf[:]); err != nil {
				return 0, err
			}
			p.n = len(p.buf)
		}
		b := int(p.buf[len(p.buf)-p.n])
		p.n--
		if b < limit {
			return set[b%len(set)], nil
		}
	}
}

func (p *pool) fill(out []byte, set string) error {
	for i := range out {
		b, err := p.pick(set)
		if err != nil {
			return err
		}
		out[i] = b
	}
	return nil
}

// makePassword draws whole passwords until one has all four classes, so that the accepted ones
// stay equally likely. With 22 characters six of seven are accepted.
func makePassword(n int, src *Source) ([]byte, error) {
	p := pool{src: src}
	defer clear(p.buf[:])
	out := make([]byte, n)
	for {
		if err := p.fill(out[:1], alnum); err != nil {
			return nil, err
		}
		if err := p.fill(out[1:], printing); err != nil {
			return nil, err
		}
		if hasClasses(out) {
			return out, nil
		}
	}
}

func hasClasses(b []byte) bool {
	var upper, lower, digit, symbol bool
	for _, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			upper = true
		case 'a' <= c && c <= 'z':
			lower = true
		case '0' <= c && c <= '9':
			digit = true
		default:
			symbol = true
		}
	}
	return upper && lower && digit && symbol
}

func makeAlphanumeric(n int, src *Source) ([]byte, error) {
	p := pool{src: src}
	defer clear(p.buf[:])
	out := make([]byte, n)
	return out, p.fill(out, alnum)
}

func randomBytes(n int, src *Source) ([]byte, error) {
	b := make([]byte, n)
	_, err := src.Read(b)
	return b, err
}

func makeHex(n int, src *Source) ([]byte, error) {
	b, err := randomBytes(n, src)
	defer clear(b)
	return hex.AppendEncode(make([]byte, 0, 2*n), b), err
}

func makeBase64(n int, src *Source) ([]byte, error) {
	b, err := randomBytes(n, src)
	defer clear(b)
	return base64.StdEncoding.AppendEncode(make([]byte, 0, 2*n), b), err
}

func makeToken(n int, src *Source) ([]byte, error) {
	b, err := randomBytes(n, src)
	defer clear(b)
	return base64.RawURLEncoding.AppendEncode(make([]byte, 0, 2*n), b), err
}

func makeUUID(_ int, src *Source) ([]byte, error) {
	b, err := randomBytes(16, src)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.AppendEncode(make([]byte, 0, 32), b)
	defer clear(h)
	out := make([]byte, 0, 36)
	for i, c := range h {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			out = append(out, '-')
		}
		out = append(out, c)
	}
	return out, nil
}
