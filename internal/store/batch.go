package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/bailment/bailment/verify"
)

// ErrInvalid: the batch breaks a rule of this contract whatever the store holds. It is a defect of
// the caller. Nothing was written, and the handle stays usable.
var ErrInvalid = errors.New("batch breaks the store's contract")

// ErrReadOnly: the handle is for reading (a copy of a store, made for an auditor).
var ErrReadOnly = errors.New("store is open for reading only")

// Limits of one batch's parts in bytes, so that no driver meets a size it can't keep. They are
// generous: what a caller may ask for is limited at the edges.
const (
	MaxEntries    = 4096
	MaxBody       = 32 << 10
	MaxBlob       = 64 << 20
	MaxCiphertext = 8 << 20
	MaxWrapped    = 64 << 10
	MaxKeyName    = 255
	MaxKeyData    = 1 << 20
	MaxCheckpoint = 64 << 10
)

// maxIndex keeps every index inside a signed 64-bit integer, which is what databases have.
const maxIndex = 1 << 62

// Commitment is the salted commitment to an entry's body, which is the data of its Merkle leaf. It
// stands here because a driver computes it when it redacts, from what it has stored: a commitment
// handed in could be wrong, and after the body is gone nobody could tell. The salt has SaltSize bytes.
func Commitment(salt, body []byte) Digest {
	return Digest(verify.LeafCommitment([SaltSize]byte(salt), body))
}

// Check says whether b may follow head: nil, ErrConflict when it continues another head, or
// ErrInvalid. Every driver calls it first, so that all refuse the same batches. It does not look
// at what the bytes mean: hashes and root are the ledger's.
func (b *Batch) Check(head Head) error {
	if b.First != head.Size {
		return fmt.Errorf("%w: it begins at %d, the head is at %d", ErrConflict, b.First, head.Size)
	}
	n := uint64(len(b.Entries))
	switch {
	case n == 0 || n > MaxEntries:
		return fmt.Errorf("%w: %d entries, allowed are 1 to %d", ErrInvalid, n, MaxEntries)
	case b.First > maxIndex || b.HashFirst > maxIndex:
		return fmt.Errorf("%w: index out of range", ErrInvalid)
	case b.HashFirst != head.Hashes:
		return fmt.Errorf("%w: hashes begin at %d, the store has %d", ErrInvalid, b.HashFirst, head.Hashes)
	case len(b.Hashes)%len(Digest{}) != 0 || uint64(len(b.Hashes)/len(Digest{})) < n:
		return fmt.Errorf("%w: %d bytes of hashes for %d entries", ErrInvalid, len(b.Hashes), n)
	case b.Time.IsZero() || !b.Time.Equal(b.Time.Truncate(time.Millisecond)):
		return fmt.Errorf("%w: the time is not whole milliseconds", ErrInvalid)
	case !sized(b.Checkpoint, MaxCheckpoint):
		return fmt.Errorf("%w: a checkpoint of %d bytes", ErrInvalid, len(b.Checkpoint))
	}
	for i, e := range b.Entries {
		whole := len(e.Salt) == SaltSize && len(e.Body) > 0 && len(e.Body) <= MaxBody && len(e.Commitment) == 0
		redacted := len(e.Salt) == 0 && len(e.Body) == 0 && len(e.Commitment) == len(Digest{})
		if !whole && !redacted {
			return fmt.Errorf("%w: entry %d is neither whole nor redacted", ErrInvalid, b.First+uint64(i))
		}
	}
	return b.CheckObjects(b.First + n)
}

// CheckObjects is the part of Check about what is not an entry: nil, or ErrInvalid. end is the index after the batch's
// last entry. Who makes one batch of the wishes of several asks it about each, so that none spoils the others'.
func (b *Batch) CheckObjects(end uint64) error {
	for _, o := range b.Blobs {
		if len(o.Data) > MaxBlob {
			return fmt.Errorf("%w: a blob of %d bytes", ErrInvalid, len(o.Data))
		}
		if sha256.Sum256(o.Data) != o.Digest {
			return fmt.Errorf("%w: a blob is not what its digest says", ErrInvalid)
		}
	}
	seen := make(map[uint64]struct{}, len(b.Seal))
	for _, s := range b.Seal {
		if _, twice := seen[s.ID]; twice || s.ID == 0 || s.ID < b.First || s.ID >= end {
			return fmt.Errorf("%w: sealed version %d is not of an entry of this batch, or of the genesis, or there twice", ErrInvalid, s.ID)
		}
		seen[s.ID] = struct{}{}
		if !sized(s.Ciphertext, MaxCiphertext) || !sized(s.WrappedKey, MaxWrapped) {
			return fmt.Errorf("%w: sealed version %d has an empty or oversized part", ErrInvalid, s.ID)
		}
	}
	for _, r := range b.Rewraps {
		if r.ID >= end || !sized(r.WrappedKey, MaxWrapped) {
			return fmt.Errorf("%w: rewrap of %d", ErrInvalid, r.ID)
		}
	}
	for _, id := range b.Shred {
		if id >= end {
			return fmt.Errorf("%w: shred of %d, which is yet to come", ErrInvalid, id)
		}
	}
	for _, k := range b.Keys {
		if len(k.Name) == 0 || len(k.Name) > MaxKeyName || !sized(k.Data, MaxKeyData) {
			return fmt.Errorf("%w: key with an empty or oversized part", ErrInvalid)
		}
	}
	for _, i := range b.Redact {
		if i >= b.First {
			return fmt.Errorf("%w: redaction of %d, which is not an earlier entry", ErrInvalid, i)
		}
	}
	return nil
}

func sized(b []byte, most int) bool { return len(b) > 0 && len(b) <= most }
