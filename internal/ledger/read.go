package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/verify"
)

// hashReader reads stored hashes from the store, as sumdb/tlog asks for them.
type hashReader struct {
	ctx context.Context
	st  store.Store
}

func (r hashReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	ask := make([]uint64, len(indexes))
	for i, x := range indexes {
		ask[i] = uint64(x)
	}
	got, err := r.st.Hashes(r.ctx, ask)
	if err != nil {
		return nil, err
	}
	out := make([]tlog.Hash, len(got))
	for i, h := range got {
		out[i] = tlog.Hash(h)
	}
	return out, nil
}

func readFull(r io.Reader, b []byte) (int, error) { return io.ReadFull(r, b) }

// sign makes the signed checkpoint of a tree (C2SP tlog-checkpoint).
func (l *Log[S]) sign(t *tree) ([]byte, error) {
	signers := l.signers.Load()
	if signers == nil || len(*signers) == 0 {
		return nil, fmt.Errorf("there is no checkpoint key")
	}
	text := verify.Checkpoint{Origin: l.origin, Size: int64(t.size), Root: t.root}.Text()
	return note.Sign(&note.Note{Text: text}, *signers...)
}

// Checkpoint is the newest signed checkpoint. It is nil before Start.
func (l *Log[S]) Checkpoint() []byte { return l.published.Load().checkpoint }

// Receipt is the receipt of any committed entry, under the newest checkpoint.
func (l *Log[S]) Receipt(ctx context.Context, index uint64) ([]byte, error) {
	v := l.published.Load()
	if index >= v.tree.size {
		return nil, problem.New(problem.ReasonNotFound, "the ledger has %d entries, so there is no entry %d", v.tree.size, index)
	}
	var entry store.Entry
	if _, err := l.verifyIn(ctx, v, index, 1, func(_ uint64, e store.Entry) error {
		entry = e
		return nil
	}); problem.Is(err, problem.ReasonTampered) {
		return nil, err
	} else if l.Failed(err) != nil {
		return nil, problem.Wrap(err, problem.ReasonStore, "reading entry %d", index)
	}
	if len(entry.Commitment) > 0 {
		return nil, problem.New(problem.ReasonNotFound, "entry %d was redacted", index)
	}
	hashes, err := tlog.ProveRecord(int64(v.tree.size), int64(index), hashReader{ctx, v.store})
	if l.Failed(err) != nil {
		return nil, problem.Wrap(err, problem.ReasonStore, "proving entry %d", index)
	}
	return formatReceipt(index, entry, hashes, v.checkpoint)
}

func formatReceipt(index uint64, e store.Entry, proof tlog.RecordProof, checkpoint []byte) ([]byte, error) {
	return verify.FormatReceipt(verify.Receipt{
		Index: int64(index), Salt: [store.SaltSize]byte(e.Salt), Body: e.Body, Proof: proof, Checkpoint: checkpoint,
	})
}

// Consistency proves that the tree of `old` entries is a prefix of that of `size` entries
// (RFC 6962 §2.1.2). Size 0 stands for the newest checkpoint's.
func (l *Log[S]) Consistency(ctx context.Context, old, size uint64) (tlog.TreeProof, uint64, error) {
	v := l.published.Load()
	if size == 0 {
		size = v.tree.size
	}
	if old == 0 || old > size || size > v.tree.size {
		return nil, 0, problem.New(problem.ReasonInvalid, "a consistency proof goes from at least 1 to at most %d entries", v.tree.size)
	}
	proof, err := tlog.ProveTree(int64(size), int64(old), hashReader{ctx, v.store})
	if l.Failed(err) != nil {
		return nil, 0, problem.Wrap(err, problem.ReasonStore, "proving consistency from %d to %d", old, size)
	}
	return proof, size, nil
}

// entriesSlice is how many entries are proved at a time.
const entriesSlice = 128

// Entries calls fn with at most limit committed entries from index on, each proved to be of the tree: see VerifySlice.
func (l *Log[S]) Entries(ctx context.Context, from uint64, limit int, fn func(index uint64, e store.Entry) error) error {
	for limit > 0 {
		n, err := l.VerifySlice(ctx, from, min(limit, entriesSlice), fn)
		if err != nil || n == 0 {
			return err
		}
		from, limit = from+uint64(n), limit-n
	}
	return nil
}

// SaveSnapshot stores a reduced state, for the next start. The caller commits its root first.
func (l *Log[S]) SaveSnapshot(ctx context.Context, index uint64, data []byte) error {
	if err := l.Failed(l.published.Load().store.PutSnapshot(ctx, index, data)); err != nil {
		return problem.Wrap(err, problem.ReasonStore, "storing a snapshot")
	}
	return nil
}

// VerifySlice reads at most limit entries from index on, proves that they are those of the newest tree, and then
// calls fn with each. It returns how many there were.
func (l *Log[S]) VerifySlice(ctx context.Context, from uint64, limit int, fn func(index uint64, e store.Entry) error) (int, error) {
	n, err := l.verifyIn(ctx, l.published.Load(), from, limit, fn)
	return n, l.Failed(err)
}

func (l *Log[S]) verifyIn(ctx context.Context, v *view[S], from uint64, limit int, fn func(index uint64, e store.Entry) error) (int, error) {
	if from >= v.tree.size {
		return 0, nil
	}
	limit = int(min(uint64(limit), v.tree.size-from))
	read, err := readFrom(ctx, v.store, from)
	if err != nil {
		return 0, err
	}
	entries := make([]store.Entry, 0, limit)
	err = read.slice(ctx, v.store, limit, func(_ uint64, e store.Entry) error {
		entries = append(entries, store.Entry{Salt: bytes.Clone(e.Salt), Body: bytes.Clone(e.Body), Commitment: bytes.Clone(e.Commitment)})
		return nil
	})
	if err != nil {
		return 0, err
	}
	// Everything that was read may be forged, the hashes too. Only the published root is not.
	proof, err := tlog.ProveTree(int64(v.tree.size), int64(read.size), hashReader{ctx, v.store})
	if err != nil {
		return 0, hashProblem(err, "proving entries from %d on", from)
	}
	if err := tlog.CheckTree(proof, int64(v.tree.size), v.tree.root, int64(read.size), read.root()); err != nil {
		return 0, problem.Wrap(err, problem.ReasonTampered, "the %d entries from %d on are not those of the signed tree", limit, from)
	}
	for i, e := range entries {
		if err := fn(from+uint64(i), e); err != nil {
			return i, err
		}
	}
	return len(entries), nil
}

// reader goes through the entries and grows the edge of their tree, so that in the end its root can be compared with one that is
// known: then the entries are right, and the stored hashes that it began with too.
type reader struct {
	size uint64
	edge [64]tlog.Hash // by level: the root of the complete subtree of 2^level leaves, for each bit of size
}

// readFrom begins at an index, with what is stored of the entries before it.
func readFrom(ctx context.Context, st store.Store, from uint64) (*reader, error) {
	r := &reader{size: from}
	indexes := edgeIndexes(from)
	hashes, err := hashReader{ctx, st}.ReadHashes(indexes)
	if err != nil {
		return nil, hashProblem(err, "reading the tree's edge at %d entries", from)
	}
	for i, x := range indexes {
		level, _ := tlog.SplitStoredHashIndex(x)
		r.edge[level] = hashes[i]
	}
	return r, nil
}

// slice reads exactly limit entries, compares each with its stored leaf hash, and calls fn with it.
func (r *reader) slice(ctx context.Context, st store.Store, limit int, fn func(index uint64, e store.Entry) error) error {
	from := r.size
	indexes := make([]int64, limit)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(from)+int64(i))
	}
	want, err := hashReader{ctx, st}.ReadHashes(indexes)
	if err != nil {
		return hashProblem(err, "reading the hashes of entries from %d on", from)
	}
	err = st.Entries(ctx, from, limit, func(index uint64, e store.Entry) error {
		if index != r.size || index-from >= uint64(len(want)) {
			return problem.New(problem.ReasonTampered, "entry %d is missing", r.size)
		}
		if err := checkLeaf(index, e, want[index-from]); err != nil {
			return err
		}
		r.add(want[index-from])
		return fn(index, e)
	})
	switch {
	case errors.Is(err, store.ErrCorrupt):
		return problem.Wrap(err, problem.ReasonTampered, "reading entries from %d on", from)
	case err == nil && r.size != from+uint64(limit):
		err = problem.New(problem.ReasonTampered, "entry %d is missing", r.size)
	}
	return err
}

func (r *reader) add(leaf tlog.Hash) {
	level := 0
	for ; r.size>>level&1 == 1; level++ {
		leaf = tlog.NodeHash(r.edge[level], leaf)
	}
	r.edge[level] = leaf
	r.size++
}

// root is the hash of the tree of all entries so far (RFC 6962 §2.1). There is at least one.
func (r *reader) root() tlog.Hash {
	level := bits.TrailingZeros64(r.size)
	h := r.edge[level]
	for level++; r.size>>level != 0; level++ {
		if r.size>>level&1 == 1 {
			h = tlog.NodeHash(r.edge[level], h)
		}
	}
	return h
}

// hashProblem tells hashes that are missing or damaged from a store that can't be read.
func hashProblem(err error, doing string, args ...any) error {
	if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		return problem.Wrap(err, problem.ReasonTampered, doing, args...)
	}
	return problem.Wrap(err, problem.ReasonStore, doing, args...)
}

// OriginOf is the checkpoints' origin line of an environment's epoch.
func OriginOf(name string, genesis [32]byte, epoch uint64) string {
	return fmt.Sprintf("bailment/%s/%x/%d", strings.ToLower(name), genesis[:8], epoch)
}
