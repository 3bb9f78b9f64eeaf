package ledger

import (
	"context"
	"fmt"
	"io"
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
	err := v.store.Entries(ctx, index, 1, func(_ uint64, e store.Entry) error {
		entry = store.Entry{Salt: append([]byte(nil), e.Salt...), Body: append([]byte(nil), e.Body...), Commitment: append([]byte(nil), e.Commitment...)}
		return nil
	})
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonStore, "reading entry %d", index)
	}
	if len(entry.Commitment) > 0 {
		return nil, problem.New(problem.ReasonNotFound, "entry %d was redacted", index)
	}
	hashes, err := tlog.ProveRecord(int64(v.tree.size), int64(index), hashReader{ctx, v.store})
	if err != nil {
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
	if err != nil {
		return nil, 0, problem.Wrap(err, problem.ReasonStore, "proving consistency from %d to %d", old, size)
	}
	return proof, size, nil
}

// Entries calls fn with the committed entries from index on, at most limit.
func (l *Log[S]) Entries(ctx context.Context, from uint64, limit int, fn func(index uint64, e store.Entry) error) error {
	v := l.published.Load()
	if from >= v.tree.size {
		return nil
	}
	limit = min(limit, int(v.tree.size-from))
	return v.store.Entries(ctx, from, limit, fn)
}

// SaveSnapshot stores a reduced state, for the next start. The caller commits its root first.
func (l *Log[S]) SaveSnapshot(ctx context.Context, index uint64, data []byte) error {
	if err := l.published.Load().store.PutSnapshot(ctx, index, data); err != nil {
		return problem.Wrap(err, problem.ReasonStore, "storing a snapshot")
	}
	return nil
}

// VerifySlice reads at most limit entries from index on, compares each with its stored leaf hash, and
// calls fn with it. It returns how many there were.
func VerifySlice(ctx context.Context, st store.Store, from uint64, limit int, fn func(index uint64, e store.Entry) error) (int, error) {
	indexes := make([]int64, limit)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(from)+int64(i))
	}
	want, err := hashReader{ctx, st}.ReadHashes(indexes)
	if err != nil {
		return 0, err
	}
	n := 0
	err = st.Entries(ctx, from, limit, func(index uint64, e store.Entry) error {
		if index != from+uint64(n) || n >= len(want) {
			return problem.New(problem.ReasonTampered, "entry %d is missing", from+uint64(n))
		}
		if err := checkLeaf(index, e, want[n]); err != nil {
			return err
		}
		n++
		return fn(index, e)
	})
	return n, err
}

// OriginOf is the checkpoints' origin line of an environment's epoch.
func OriginOf(name string, genesis [32]byte, epoch uint64) string {
	return fmt.Sprintf("bailment/%s/%x/%d", strings.ToLower(name), genesis[:8], epoch)
}
