package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/bailment/bailment/internal/problem"
)

// FormatValue1 is the Context.Format of secret values: AES-256-GCM with a random nonce in front,
// under a data key of its own, wrapped likewise.
const FormatValue1 = "bailment/value/v1"

// Context is what a sealed value is bound to. Opening with any field changed fails.
type Context struct {
	Format  string   // what the value's bytes are and how they were sealed, FormatValue1; required
	Genesis [32]byte // the environment; required, never all zero
	Path    string   // the secret's name; required
	Version uint64   // the secret's version
	Purpose string   // what the sealed copy is for; may be empty
}

// The associated data is a label, which says what is encrypted, followed by the fields, each as a
// 32-bit big-endian length and its bytes (numbers as 8 bytes), in the order shown below. With
// every length in front, no two different inputs have one encoding.
//
//	value:        label, format, genesis, path, version, purpose
//	data key:     label, KEK number, format, genesis, path, version, purpose
//	wrapped key:  label, KEK number, context (see KEK.Wrap)
const (
	labelValue   = "bailment/aad/value/v1"
	labelDataKey = "bailment/aad/data-key/v1"
	labelWrap    = "bailment/aad/wrap/v1"
)

func appendField(b []byte, field string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
	return append(b, field...)
}

func appendNumber(b []byte, n uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, 8)
	return binary.BigEndian.AppendUint64(b, n)
}

func (c *Context) append(b []byte) []byte {
	b = appendField(b, c.Format)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Genesis)))
	b = append(b, c.Genesis[:]...)
	b = appendField(b, c.Path)
	b = appendNumber(b, c.Version)
	return appendField(b, c.Purpose)
}

func (c *Context) check() error {
	switch {
	case c.Format == "" || len(c.Format) > MaxFormat:
		return problem.New(problem.ReasonInternal, "sealing context: format of %d bytes, want 1 to %d", len(c.Format), MaxFormat)
	case c.Genesis == [32]byte{}:
		return problem.New(problem.ReasonInternal, "sealing context: no genesis")
	case c.Path == "" || len(c.Path) > MaxPath:
		return problem.New(problem.ReasonInvalid, "sealing context: path of %d bytes, want 1 to %d", len(c.Path), MaxPath)
	case len(c.Purpose) > MaxPurpose:
		return problem.New(problem.ReasonInvalid, "sealing context: purpose of %d bytes, at most %d", len(c.Purpose), MaxPurpose)
	}
	return nil
}

// KEK is a key-encryption key: it wraps data keys and other keys, never values. It is immutable
// and safe for concurrent use.
type KEK struct {
	number uint32
	key    Secret
	aead   func() cipher.AEAD // a func for the reason given at Secret.open
}

// NewKEK makes a KEK of 32 secret bytes. Number names it, is part of what is authenticated, and is
// not 0. The KEK shares key's buffer: wiping one ends the other's key bytes, but the cipher in
// memory goes on working.
func NewKEK(number uint32, key Secret) (*KEK, error) {
	if number == 0 {
		return nil, problem.New(problem.ReasonInternal, "key-encryption key without a number")
	}
	if key.Len() != KeySize {
		return nil, problem.New(problem.ReasonInternal, "key-encryption key %d has %d bytes, want %d", number, key.Len(), KeySize)
	}
	a, err := newAEAD(key.Expose())
	if err != nil {
		return nil, err
	}
	return &KEK{number: number, key: key, aead: func() cipher.AEAD { return a }}, nil
}

// GenerateKEK makes a fresh KEK with the given number.
func GenerateKEK(number uint32, src *Source) (*KEK, error) {
	key, err := src.Key(KeySize)
	if err != nil {
		return nil, err
	}
	return NewKEK(number, key)
}

// Number is the KEK's name within its environment.
func (k *KEK) Number() uint32 { return k.number }

// Key is the KEK's secret, to be wrapped by a root holder.
func (k *KEK) Key() Secret { return k.key }

// Format shows the number only.
func (k *KEK) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "[kek %d]", k.number) }

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, problem.New(problem.ReasonInternal, "cipher: %v", err)
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, problem.New(problem.ReasonInternal, "cipher: %v", err)
	}
	return a, nil
}

// Sealed is one sealed secret version.
type Sealed struct {
	Ciphertext []byte   // never changes once sealed
	WrappedKey []byte   // the data key under the KEK; changes when rewrapped
	KEK        uint32   // the KEK's number
	Digest     [32]byte // SHA-256 of Ciphertext: what the ledger enters
}

// scratch keeps what sealing needs besides its result, so that the hot path doesn't allocate it.
type scratch struct {
	aad []byte
	key [KeySize + 16]byte // the data key; its tag while it is being opened
}

var scratches = sync.Pool{New: func() any { return &scratch{aad: make([]byte, 0, 512)} }}

func getScratch() *scratch { return scratches.Get().(*scratch) }

func (s *scratch) put() {
	clear(s.key[:])
	s.aad = s.aad[:0]
	scratches.Put(s)
}

func (s *scratch) valueAAD(c *Context) []byte {
	s.aad = c.append(appendField(s.aad[:0], labelValue))
	return s.aad
}

func (s *scratch) dataKeyAAD(number uint32, c *Context) []byte {
	s.aad = c.append(appendNumber(appendField(s.aad[:0], labelDataKey), uint64(number)))
	return s.aad
}

// SealValue encrypts value under a fresh data key, and that key under kek, both bound to ctx.
// The value has 1 to MaxValue bytes and stays the caller's. Errors: too-large, invalid, entropy.
func SealValue(kek *KEK, ctx Context, value Secret, src *Source) (Sealed, error) {
	if err := ctx.check(); err != nil {
		return Sealed{}, err
	}
	switch n := value.Len(); {
	case n == 0:
		return Sealed{}, problem.New(problem.ReasonInvalid, "the secret value is empty")
	case n > MaxValue:
		return Sealed{}, problem.New(problem.ReasonTooLarge, "the secret value has %d bytes, at most %d are allowed", n, MaxValue)
	}
	s := getScratch()
	defer s.put()
	key := s.key[:KeySize]
	if err := src.fill(key); err != nil {
		return Sealed{}, err
	}
	a, err := newAEAD(key)
	if err != nil {
		return Sealed{}, err
	}
	out := Sealed{KEK: kek.number}
	out.Ciphertext = a.Seal(make([]byte, 0, value.Len()+Overhead), nil, value.Expose(), s.valueAAD(&ctx))
	out.WrappedKey = kek.aead().Seal(make([]byte, 0, KeySize+Overhead), nil, key, s.dataKeyAAD(kek.number, &ctx))
	out.Digest = sha256.Sum256(out.Ciphertext)
	return out, nil
}

// OpenValue decrypts what SealValue made. The digest in sealed is checked: take it from the
// ledger, not from where the ciphertext was. A ciphertext, wrapped key, digest or context that
// isn't the sealed one is tampered; a KEK of another number is internal.
func OpenValue(kek *KEK, ctx Context, sealed Sealed) (Secret, error) {
	if err := ctx.check(); err != nil {
		return Secret{}, err
	}
	if n := len(sealed.Ciphertext); n <= Overhead || n > MaxValue+Overhead {
		return Secret{}, problem.New(problem.ReasonTampered, "sealed %s version %d has an impossible size of %d bytes", ctx.Path, ctx.Version, n)
	}
	if sha256.Sum256(sealed.Ciphertext) != sealed.Digest {
		return Secret{}, problem.New(problem.ReasonTampered, "sealed %s version %d does not have the digest in the ledger", ctx.Path, ctx.Version)
	}
	s := getScratch()
	defer s.put()
	key, err := s.openDataKey(kek, &ctx, sealed.KEK, sealed.WrappedKey)
	if err != nil {
		return Secret{}, err
	}
	a, err := newAEAD(key)
	if err != nil {
		return Secret{}, err
	}
	value, err := a.Open(make([]byte, 0, len(sealed.Ciphertext)-Overhead), nil, sealed.Ciphertext, s.valueAAD(&ctx))
	if err != nil {
		return Secret{}, problem.New(problem.ReasonTampered, "sealed %s version %d does not open with its data key", ctx.Path, ctx.Version)
	}
	return NewSecret(value), nil
}

// openDataKey returns the data key in s, which put wipes.
func (s *scratch) openDataKey(kek *KEK, ctx *Context, number uint32, wrapped []byte) ([]byte, error) {
	if number != kek.number {
		return nil, problem.New(problem.ReasonInternal, "sealed %s version %d is under key-encryption key %d, not %d", ctx.Path, ctx.Version, number, kek.number)
	}
	if len(wrapped) != KeySize+Overhead {
		return nil, problem.New(problem.ReasonTampered, "data key of %s version %d has an impossible size of %d bytes", ctx.Path, ctx.Version, len(wrapped))
	}
	key, err := kek.aead().Open(s.key[:0], nil, wrapped, s.dataKeyAAD(kek.number, ctx))
	if err != nil {
		return nil, problem.New(problem.ReasonTampered, "data key of %s version %d does not open with key-encryption key %d", ctx.Path, ctx.Version, kek.number)
	}
	return key, nil
}

// Rewrap moves a data key from one KEK to another and returns the new wrapped key, which belongs
// with to.Number(). The ciphertext, and so its digest, stays as it is.
func Rewrap(from, to *KEK, ctx Context, wrapped []byte) ([]byte, error) {
	if err := ctx.check(); err != nil {
		return nil, err
	}
	s := getScratch()
	defer s.put()
	key, err := s.openDataKey(from, &ctx, from.number, wrapped)
	if err != nil {
		return nil, err
	}
	return to.aead().Seal(make([]byte, 0, KeySize+Overhead), nil, key, s.dataKeyAAD(to.number, &ctx)), nil
}
