package ledger

import (
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/verify"
)

// tree is the Merkle tree (RFC 6962, by sumdb/tlog's numbering of stored hashes) as of one batch: its edge,
// which is all that extending needs, and the hashes and salted bodies that the batch added, which
// is all that proving the batch's own entries needs. It is immutable once made.
type tree struct {
	size  uint64
	root  tlog.Hash
	time  time.Time
	edge  map[int64]tlog.Hash // stored-hash index → hash of each maximal complete subtree
	prior *tree               // edge of the tree before, for proofs of this batch's entries; its own prior is dropped

	firstIndex uint64 // of the batch's first entry
	entries    []store.Entry
	firstHash  int64
	hashes     []tlog.Hash
}

// ReadHashes implements tlog.HashReader for the hashes that extending and proving this batch ask for.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		h, ok := t.lookup(x)
		if !ok {
			return nil, fmt.Errorf("stored hash %d is not at the tree's edge", x)
		}
		out[i] = h
	}
	return out, nil
}

func (t *tree) lookup(x int64) (tlog.Hash, bool) {
	if n := x - t.firstHash; n >= 0 && n < int64(len(t.hashes)) {
		return t.hashes[n], true
	}
	if t.prior != nil {
		if h, ok := t.prior.edge[x]; ok {
			return h, true
		}
	}
	h, ok := t.edge[x]
	return h, ok
}

// extend computes the hashes of the batch's entries, writes them into the batch, and returns the
// tree after it. Hashing costs about half a microsecond an entry.
func (t *tree) extend(b *store.Batch) *tree {
	prior := &tree{size: t.size, root: t.root, edge: t.edge}
	n := &tree{
		size: t.size + uint64(len(b.Entries)), time: b.Time, prior: prior, firstIndex: t.size, entries: b.Entries,
		firstHash: tlog.StoredHashCount(int64(t.size)), hashes: make([]tlog.Hash, 0, 2*len(b.Entries)+8),
	}
	for i := range b.Entries {
		leaf := verify.LeafCommitment([store.SaltSize]byte(b.Entries[i].Salt), b.Entries[i].Body)
		h, err := tlog.StoredHashesForRecordHash(int64(t.size)+int64(i), tlog.RecordHash(leaf[:]), n)
		if err != nil {
			panic("ledger: the tree's edge is incomplete: " + err.Error()) // a defect of extend itself
		}
		n.hashes = append(n.hashes, h...)
	}
	n.setEdge()
	b.HashFirst = uint64(n.firstHash)
	b.Hashes = make([]byte, 0, len(n.hashes)*tlog.HashSize)
	for i := range n.hashes {
		b.Hashes = append(b.Hashes, n.hashes[i][:]...)
	}
	b.Root = store.Digest(n.root)
	return n
}

// same says whether both are of the same entries.
func (t *tree) same(o *tree) bool { return t.size == o.size && t.root == o.root }

// edgeIndexes lists the stored-hash indexes of the maximal complete subtrees of a tree of the
// given size, from left to right.
func edgeIndexes(size uint64) []int64 {
	out := make([]int64, 0, bits.OnesCount64(size))
	for rest, done := size, uint64(0); rest != 0; {
		level := bits.Len64(rest) - 1
		out = append(out, tlog.StoredHashIndex(level, int64(done>>level)))
		done += 1 << level
		rest -= 1 << level
	}
	return out
}

func (t *tree) setEdge() {
	indexes := edgeIndexes(t.size)
	t.edge = make(map[int64]tlog.Hash, len(indexes))
	for i, x := range indexes {
		h, ok := t.lookup(x)
		if !ok {
			panic("ledger: the tree's new edge is incomplete")
		}
		indexes[i] = x
		t.edge[x] = h
	}
	t.root = edgeRoot(indexes, t.edge)
}

// edgeRoot is the tree hash: the complete subtrees folded from the right (RFC 6962 §2.1).
func edgeRoot(indexes []int64, edge map[int64]tlog.Hash) tlog.Hash {
	if len(indexes) == 0 {
		return emptyRoot
	}
	h := edge[indexes[len(indexes)-1]]
	for i := len(indexes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(edge[indexes[i]], h)
	}
	return h
}

// emptyRoot is SHA-256 of nothing (RFC 6962 §2.1).
var emptyRoot = tlog.Hash{
	0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
	0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
}

// salted returns the batch's entry with the given index.
func (t *tree) salted(index uint64) store.Entry { return t.entries[index-t.firstIndex] }

// Proof shows where a committed draft's first entry stands. It is cheap to hold; the receipt is
// computed when it is asked for, by the asker.
type Proof struct {
	Index      uint64
	Size       uint64 // of the tree in Checkpoint
	Time       time.Time
	Checkpoint []byte // signed note; of this batch
	tree       *tree

	decided time.Duration // on the boot clock
	boot    func() time.Duration
}

// Age is how long ago the draft was decided, on the boot clock: the ledger's own time stands still while a wall clock that was
// put back catches up, and would make what is late look early.
func (p *Proof) Age() time.Duration { return p.boot() - p.decided }

// Receipt is the first entry's receipt as a C2SP tlog-proof@v1.
func (p *Proof) Receipt() ([]byte, error) { return p.ReceiptOf(p.Index) }

// ReceiptOf is the receipt of another entry of the same draft.
func (p *Proof) ReceiptOf(index uint64) ([]byte, error) {
	if index < p.tree.firstIndex || index >= p.tree.size {
		return nil, fmt.Errorf("entry %d is not of this batch", index)
	}
	hashes, err := tlog.ProveRecord(int64(p.tree.size), int64(index), p.tree)
	if err != nil {
		return nil, fmt.Errorf("proving entry %d: %w", index, err)
	}
	return formatReceipt(index, p.tree.salted(index), hashes, p.Checkpoint)
}
