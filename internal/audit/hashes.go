package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/verify"
)

// slice is how many entries are read at a time.
const slice = 1024

// merkle is the edge of a growing tree (RFC 6962 §2.1): the root of the complete subtree of 2^level leaves for each
// bit of the size. It is all that is kept of the tree.
type merkle struct {
	size uint64
	edge [64]tlog.Hash
}

// add appends a leaf and calls emit with each hash that is stored with it, in sumdb/tlog's order: the leaf, then the
// roots of the subtrees that it completes, from below.
func (m *merkle) add(leaf tlog.Hash, emit func(level int, h tlog.Hash)) {
	h := leaf
	emit(0, h)
	level := 0
	for ; m.size>>level&1 == 1; level++ {
		h = tlog.NodeHash(m.edge[level], h)
		emit(level+1, h)
	}
	m.edge[level] = h
	m.size++
}

// root is the tree's hash. There is at least one leaf.
func (m *merkle) root() tlog.Hash {
	level := bits.TrailingZeros64(m.size)
	h := m.edge[level]
	for level++; level < 64 && m.size>>level != 0; level++ {
		if m.size>>level&1 == 1 {
			h = tlog.NodeHash(m.edge[level], h)
		}
	}
	return h
}

// hashes rebuilds the tree from the entries, compares every stored hash, and remembers the roots that are wanted.
func (r *run) hashes(ctx context.Context) error {
	var m merkle
	want, ok := r.wantTrees, false
	roots := rootReader{r: r}
	for m.size < r.l.Size {
		from := m.size
		limit := int(min(slice, r.l.Size-from))
		stored, err := r.storedHashes(ctx, from, limit)
		if err != nil {
			return err
		}
		if err := roots.fetch(ctx, from+uint64(limit)); err != nil {
			return err
		}
		err = r.l.Entries(ctx, from, limit, func(index uint64, e store.Entry) error {
			if index != m.size {
				return fault(m.size, "it is missing")
			}
			leaf, err := leafOf(e)
			if err != nil {
				return fault(index, "%v", err)
			}
			if err := r.addLeaf(&m, leaf, &stored); err != nil {
				return err
			}
			if _, ok = want[m.size]; ok {
				want[m.size] = m.root()
			}
			if err := roots.compare(index, &m); err != nil {
				return err
			}
			return r.collectClaim(index, e)
		})
		if err != nil {
			return storeProblem(err, fmt.Sprintf("reading entries from %d on", from))
		}
		if m.size != from+uint64(limit) {
			return fault(m.size, "it is missing")
		}
		r.progress("hashes", m.size)
	}
	r.report.Root = state.Digest(m.root())
	return r.checkHead(m.root())
}

// rootReader goes along with the growing tree and compares the roots that were stored with earlier heads.
type rootReader struct {
	r       *run
	cursor  uint64
	pending []Root
	done    bool
}

// fetch reads on until the roots of all trees up to a size are at hand.
func (x *rootReader) fetch(ctx context.Context, upto uint64) error {
	if x.r.l.Stored == nil || x.r.l.Stored.Roots == nil {
		return nil
	}
	for !x.done && (len(x.pending) == 0 || x.pending[len(x.pending)-1].Size < upto) {
		more, err := x.r.l.Stored.Roots(ctx, x.cursor, slice)
		if err != nil {
			return storeProblem(err, "reading the roots stored with earlier batches")
		}
		if x.done = len(more) == 0; !x.done {
			x.pending, x.cursor = append(x.pending, more...), more[len(more)-1].Cursor
		}
	}
	return nil
}

// compare checks the root stored at the tree's size, if there is one.
func (x *rootReader) compare(index uint64, m *merkle) error {
	if len(x.pending) == 0 || x.pending[0].Size > m.size {
		return nil
	}
	if x.pending[0].Size != m.size || tlog.Hash(x.pending[0].Root) != m.root() {
		return fault(index, "the root stored with its batch is not the tree's")
	}
	x.pending = x.pending[1:]
	return nil
}

// storedHashes reads the hashes that were stored with some entries.
func (r *run) storedHashes(ctx context.Context, from uint64, limit int) ([]store.Digest, error) {
	if r.l.Stored == nil {
		return nil, nil
	}
	first, end := tlog.StoredHashCount(int64(from)), tlog.StoredHashCount(int64(from)+int64(limit))
	ask := make([]uint64, 0, end-first)
	for i := first; i < end; i++ {
		ask = append(ask, uint64(i))
	}
	got, err := r.l.Stored.Hashes(ctx, ask)
	if err != nil {
		return nil, storeProblem(err, fmt.Sprintf("reading the hashes of entries from %d on", from))
	}
	if len(got) != len(ask) {
		return nil, tampered("the store gave %d of %d hashes of entries from %d on", len(got), len(ask), from)
	}
	return got, nil
}

func leafOf(e store.Entry) (tlog.Hash, error) {
	switch {
	case len(e.Commitment) == len(store.Digest{}) && len(e.Salt) == 0 && len(e.Body) == 0:
		return tlog.RecordHash(e.Commitment), nil
	case len(e.Commitment) == 0 && len(e.Salt) == store.SaltSize && len(e.Body) > 0 && len(e.Body) <= store.MaxBody:
		return verify.LeafHash(verify.LeafCommitment([store.SaltSize]byte(e.Salt), e.Body)), nil
	}
	return tlog.Hash{}, errors.New("it is neither whole nor redacted")
}

// addLeaf extends the tree and compares what was stored with the entry. stored is advanced.
func (r *run) addLeaf(m *merkle, leaf tlog.Hash, stored *[]store.Digest) error {
	index := m.size
	var err error
	m.add(leaf, func(level int, h tlog.Hash) {
		if r.l.Stored == nil {
			return
		}
		got := (*stored)[0]
		*stored = (*stored)[1:]
		switch {
		case err != nil:
		case tlog.Hash(got) == h:
			r.report.Hashes++
		case level == 0:
			err = fault(index, "its body or salt is not what its stored hash says")
		default:
			err = fault(index, "the stored hash of the %d entries that end with it is not theirs", uint64(1)<<level)
		}
	})
	return err
}

// checkHead compares the recomputed tree with the stored head.
func (r *run) checkHead(root tlog.Hash) error {
	if r.l.Stored == nil {
		return nil
	}
	head := r.l.Stored.Head
	if n := uint64(tlog.StoredHashCount(int64(r.l.Size))); head.Size != r.l.Size || head.Hashes != n {
		return tampered("the head says %d entries and %d hashes; there are %d and %d", head.Size, head.Hashes, r.l.Size, n)
	}
	if tlog.Hash(head.Root) != root {
		return tampered("the stored root of %d entries is not theirs", r.l.Size)
	}
	return nil
}

// rootClaim is a state root that an entry, or a stored snapshot, claims.
type rootClaim struct {
	root state.Digest
	at   uint64 // the entry that claims it
	snap bool   // a stored snapshot instead
}

const stateRootPrefix = `{"type":"state.root","v":1,`

// collectClaim remembers what a state-root entry says, because the state it is about comes before it.
func (r *run) collectClaim(index uint64, e store.Entry) error {
	if !bytes.HasPrefix(e.Body, []byte(stateRootPrefix)) {
		return nil
	}
	entry, err := state.Decode(e.Body)
	if err != nil {
		return fault(index, "%v", err)
	}
	if ev, ok := entry.Event.(*state.StateRootSet); ok {
		if ev.Index >= index {
			return fault(index, "its state root is of entry %d, which does not come before it", ev.Index)
		}
		r.claims[ev.Index] = append(r.claims[ev.Index], rootClaim{root: ev.Root, at: index})
	}
	return nil
}

// readSnapshots takes the roots of the stored snapshots; at most two are kept.
func (r *run) readSnapshots(ctx context.Context) error {
	if r.l.Stored == nil {
		return nil
	}
	most := r.l.Size - 1
	for range 2 {
		index, data, err := r.l.Stored.Snapshot(ctx, most)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return storeProblem(err, "reading a stored snapshot")
		}
		root, err := state.PackedRoot(data)
		if err != nil {
			root = state.Digest{} // which no state has
		}
		r.claims[index] = append(r.claims[index], rootClaim{root: root, snap: true})
		if index == 0 {
			return nil
		}
		most = index - 1
	}
	return nil
}
