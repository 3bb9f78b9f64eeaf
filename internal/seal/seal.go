// Package seal is the cryptography that keeps secret values: a Go type for secret bytes, envelope
// encryption of secret versions, wrapping of environment keys, key generation from a random source
// that is watched, and the recipes for generated values.
//
// Guaranteed: what was sealed opens only with the same key and the same context, bit for bit, and
// a failure says so instead of giving bytes; every key is fresh, comes through one Source, and is
// refused if the Source looks stuck or gave that key before; a Secret doesn't appear in text,
// logs or encodings by accident. Only the standard library's cryptography is used, and all of it
// works under GODEBUG=fips140=only.
//
// Not guaranteed: that a wiped secret leaves no trace in memory. Go's ciphers keep expanded keys,
// and the runtime may have copied stacks; package hardening keeps those pages from disk. Nor is a
// path, a size or a version hidden: ciphertext is as long as its value plus a constant.
//
// It is pure: no file, network or clock. Its place is below keyring, ledger and control.
package seal

// Limits on what is sealed, in bytes.
const (
	MaxValue   = 64 << 10 // one secret value
	MaxKey     = 8 << 10  // one wrapped key, marshalled
	MaxPath    = 512      // Context.Path
	MaxPurpose = 255      // Context.Purpose
	MaxFormat  = 64       // Context.Format
	MaxName    = 128      // KeyContext.Name
	MaxContext = 2 << 10  // the context given to KEK.Wrap
)

// KeySize is the length of a symmetric key in bytes: AES-256.
const KeySize = 32

// Overhead is what sealing adds to a value's length: a 12 byte nonce in front, a 16 byte tag behind.
const Overhead = 12 + 16

// MaxSeals is how many messages one KEK may seal: random 96-bit nonces must stay unlikely to
// collide (NIST SP 800-38D §8.3). At 4,000 writes a second it lasts twelve days of nothing but
// writes; a rotation starts a new count. Data keys seal exactly one message.
const MaxSeals = 1 << 32
