// Package store is the storage contract of one environment: what a batch is, what a driver must
// guarantee, and how it fails. It holds types and error values only; the drivers below it
// (store/sqlite) are independent of one another, and store/storetest is this contract, executable.
//
// Guaranteed by every driver: a batch is all or nothing and durable when Append returns nil;
// batches form one unbroken sequence; what was read was once committed and is unchanged.
// Not guaranteed: that the sequence is authentic. That is the ledger's part, by its hashes.
//
// A driver sees sealed bytes only: ciphertext, wrapped keys, entries. Never a secret value.
package store

import (
	"context"
	"errors"
	"time"
)

// Errors of the contract. Drivers wrap them; callers use errors.Is.
var (
	// ErrConflict: the batch does not continue the stored head. Nothing was written.
	ErrConflict = errors.New("batch does not continue the head")
	// ErrNotFound: there is no such entry, blob, value or key; from Open: no store.
	ErrNotFound = errors.New("not found in the store")
	// ErrNotDone: the write failed and certainly left nothing behind. The store is fatal all the
	// same (ErrFatal) until it is opened again, because its own view of the disk may be wrong.
	ErrNotDone = errors.New("write failed, nothing was done")
	// ErrUnknown: the write failed and may have been done. Only opening again tells.
	ErrUnknown = errors.New("write failed, outcome unknown")
	// ErrFatal: an earlier write failed; this handle answers nothing more. Open again.
	ErrFatal = errors.New("store failed earlier and must be opened again")
	// ErrFull: no room (ENOSPC, EDQUOT). Comes together with ErrNotDone or ErrUnknown.
	ErrFull = errors.New("no space left for the store")
	// ErrLocked: another process has this directory open.
	ErrLocked = errors.New("store is in use by another process")
	// ErrExists: Create found something there already.
	ErrExists = errors.New("store exists already")
	// ErrTooNew: the schema says that this version can't read it (min_reader).
	ErrTooNew = errors.New("store was written by a newer version")
	// ErrCorrupt: the driver's own consistency checks failed.
	ErrCorrupt = errors.New("store is damaged")
)

// SaltSize is the length of an entry's salt in bytes.
const SaltSize = 16

// Entry is one ledger entry as stored. Salt and Body are empty, and Commitment set, when the
// body was redacted or passed its retention; otherwise Commitment is empty and computed from them.
type Entry struct {
	Salt       []byte // SaltSize random bytes
	Body       []byte // at most 32 KiB of JSON
	Commitment []byte // 32 bytes, only for a redacted entry
}

// Digest is a SHA-256 digest.
type Digest [32]byte

// Sealed is one sealed secret version. ID is the ledger index of the entry that made it.
type Sealed struct {
	ID         uint64
	Ciphertext []byte // never changes; its digest is in the ledger
	WrappedKey []byte // the data key under a key-encryption key; changes when rewrapped
	KEK        uint32 // number of the key-encryption key
}

// Rewrap replaces the wrapped key of a sealed version, and nothing else of it.
type Rewrap struct {
	ID         uint64
	WrappedKey []byte
	KEK        uint32
}

// Blob is a document named by its digest; it may be empty. Putting one that exists is not an error.
type Blob struct {
	Digest Digest
	Data   []byte
}

// Batch is the unit of commit.
type Batch struct {
	First      uint64    // index of the first entry: must equal the head's Size
	Time       time.Time // of the batch, whole milliseconds, UTC
	Entries    []Entry   // at least one
	HashFirst  uint64    // storage index of the first of Hashes (tlog.StoredHashIndex)
	Hashes     []byte    // the new stored hashes, 32 bytes each, concatenated
	Root       Digest    // of the tree with First+len(Entries) leaves
	Checkpoint []byte    // signed checkpoint of that tree: so the stored one always covers the head, no less and no more

	Blobs   []Blob
	Seal    []Sealed
	Rewraps []Rewrap // after Seal; of a version that isn't there (any more): no effect
	Shred   []uint64 // sealed versions whose ciphertext and wrapped key are removed; after Rewraps; repeated: no effect
	Keys    []Key    // wrapped key material to put; same name replaces
	Redact  []uint64 // earlier entries whose salt and body are replaced by their commitment; repeated: no effect
	Wipe    bool     // after all of these: every sealed version and all wrapped key material is removed
}

// Key is wrapped key material of the environment (key-encryption keys, CA and checkpoint keys).
type Key struct {
	Name string
	Data []byte
}

// Head is the end of the stored sequence. The zero Head is that of a store without entries.
type Head struct {
	Size   uint64
	Root   Digest
	Time   time.Time
	Hashes uint64 // number of stored hashes
}

// Store is one environment's storage. All methods may be called concurrently; a driver may
// serialise them. Contexts bound waiting, not a commit under way: once Append has begun to write
// it runs to its end, so that a cancelled caller never turns a known outcome into an unknown one.
//
//arch:allow iface-methods: one contract over one transaction; drivers are whole, and callers take what they need
type Store interface {
	// Head reads the stored head.
	Head(ctx context.Context) (Head, error)
	// Append commits b durably, or returns ErrConflict or ErrInvalid (Batch.Check; nothing written,
	// the handle stays usable), or ErrNotDone or ErrUnknown, after which every method returns
	// ErrFatal. A nil error means done, even when the handle turned fatal while tidying up.
	Append(ctx context.Context, b *Batch) error
	// Entries calls fn for each entry from index `from` on, in order, at most limit of them. The
	// slices are valid during the call only; fn may use the store. It ends at the head as it was
	// when the call began, at the latest. It does not hold up commits for long: long scans
	// are read in slices.
	Entries(ctx context.Context, from uint64, limit int, fn func(index uint64, e Entry) error) error
	// Hashes reads stored hashes by storage index, in the order asked for.
	Hashes(ctx context.Context, indexes []uint64) ([]Digest, error)
	// Blob, Sealed and Key read one object by its name: ErrNotFound where there is none.
	Blob(ctx context.Context, d Digest) ([]byte, error)
	Sealed(ctx context.Context, id uint64) (Sealed, error)
	Key(ctx context.Context, name string) ([]byte, error)
	// SealedUnder lists IDs greater than after, ascending, at most limit, of the versions
	// that are NOT wrapped under the given key-encryption key: the work list of a rewrap.
	SealedUnder(ctx context.Context, notKEK uint32, after uint64, limit int) ([]uint64, error)
	// Checkpoint is the stored signed checkpoint, or ErrNotFound: before the first batch.
	Checkpoint(ctx context.Context) ([]byte, error)
	// PutCheckpoint replaces the stored checkpoint outside a batch, by one of the same head. The ledger
	// finds out with it whether it can write. It and PutSnapshot fail as Append does.
	PutCheckpoint(ctx context.Context, signed []byte) error
	// PutSnapshot stores a reduced state under the index of the last entry it covers, replacing
	// all but the previous one. Indexes only rise. Snapshot reads the newest with index at most max.
	PutSnapshot(ctx context.Context, index uint64, data []byte) error
	Snapshot(ctx context.Context, max uint64) (index uint64, data []byte, err error)
	// Size is the number of bytes on disk.
	Size(ctx context.Context) (int64, error)
	// Close releases the directory; afterwards every method returns ErrFatal. It does not fail for lack of a clean end: a crash is one too.
	Close() error
}
