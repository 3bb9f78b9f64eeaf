package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/verify"
)

// Defaults of Limits.
const (
	defaultQueue      = 4096
	defaultBatch      = 512
	defaultBatchBytes = 4 << 20
)

func (c *Config[S]) setDefaults() {
	if c.Limits.Queue == 0 {
		c.Limits.Queue = defaultQueue
	}
	if c.Limits.Batch == 0 {
		c.Limits.Batch = defaultBatch
	}
	if c.Limits.BatchBytes == 0 {
		c.Limits.BatchBytes = defaultBatchBytes
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Boot == nil {
		c.Boot = sinceBoot
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Create writes the first entries, and their checkpoint, into an empty store. It is the only way that a
// ledger begins: Load never creates, so that a wrong path can't fork history. Of cfg it needs New and Origin.
func Create[S Machine[S]](ctx context.Context, st store.Store, first Draft, signers []note.Signer, cfg Config[S]) error {
	cfg.setDefaults()
	head, err := st.Head(ctx)
	if err != nil {
		return problem.Wrap(err, problem.ReasonStore, "reading the head of the new store")
	}
	if head.Size != 0 {
		return problem.New(problem.ReasonExists, "the store has %d entries already", head.Size)
	}
	l := &Log[S]{cfg: cfg, tree: &tree{root: emptyRoot}}
	s := cfg.New()
	if err := applyAll(s, 0, first.Records); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "applying the first entries")
	}
	l.origin = cfg.Origin(s)
	l.SetSigners(signers)
	b := &store.Batch{
		Time: cfg.Now().UTC().Truncate(time.Millisecond), Blobs: first.Blobs, Seal: first.Seal,
		Keys: first.Keys,
	}
	for _, r := range first.Records {
		b.Entries = append(b.Entries, store.Entry{Body: r.Body})
	}
	if err := l.salt(b.Entries); err != nil {
		return problem.Wrap(err, problem.ReasonEntropy, "salting entries")
	}
	if b.Checkpoint, err = l.sign(l.tree.extend(b)); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "signing the first checkpoint")
	}
	if err := st.Append(ctx, b); err != nil {
		return l.commitProblem(err)
	}
	return nil
}

// salt gives each entry SaltSize fresh random bytes.
func (l *Log[S]) salt(entries []store.Entry) error {
	all := make([]byte, store.SaltSize*len(entries))
	if _, err := readFull(l.cfg.Rand, all); err != nil {
		return err
	}
	for i := range entries {
		entries[i].Salt = all[i*store.SaltSize : (i+1)*store.SaltSize : (i+1)*store.SaltSize]
	}
	return nil
}

// Load opens an existing ledger and reduces it: from the newest snapshot that its own entries
// commit to, or from the beginning. The stored hashes of what it reads are checked against the
// entries and the head. The log takes no proposals until Start.
func Load[S Machine[S]](ctx context.Context, cfg Config[S]) (*Log[S], error) {
	cfg.setDefaults()
	l := &Log[S]{
		cfg: cfg, queue: make(chan *proposal[S], cfg.Limits.Queue), suspect: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
		clock: clock{wall: cfg.Now, boot: cfg.Boot},
	}
	st, err := cfg.Open(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.load(ctx, st); err != nil {
		_ = st.Close() // the first error is the one that tells
		return nil, err
	}
	l.origin = cfg.Origin(l.work)
	l.show(st)
	return l, nil
}

// Start checks that the stored checkpoint covers the head, no less and no more, and is signed by one of the verifiers. Then it
// signs the head with the present keys, and begins to take proposals. Until it returns nothing of what was loaded is authentic.
func (l *Log[S]) Start(signers []note.Signer, verifiers []note.Verifier) error {
	ctx := context.Background()
	st := l.published.Load().store
	stored, err := storedCheckpoint(ctx, st)
	if err == nil {
		err = l.checkStored(stored, verifiers)
	}
	if err != nil {
		return err
	}
	l.SetSigners(signers)
	signed, err := l.sign(l.tree)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "signing the first checkpoint")
	}
	l.signed = signed
	l.show(st)
	go l.run()
	return nil
}

// storedCheckpoint reads the checkpoint that every batch comes with.
func storedCheckpoint(ctx context.Context, st store.Store) ([]byte, error) {
	stored, err := st.Checkpoint(ctx)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, problem.Wrap(err, problem.ReasonTampered, "the signed checkpoint is missing, which is stored with every batch")
	case err != nil:
		return nil, problem.Wrap(err, problem.ReasonStore, "reading the stored checkpoint")
	}
	return stored, nil
}

// checkStored compares the stored checkpoint with the head. Both are written by every batch together, so a head beyond
// what was signed is a tail that somebody without a key has added, and one before it was cut back.
func (l *Log[S]) checkStored(stored []byte, verifiers []note.Verifier) error {
	cp, err := verify.OpenCheckpoint(stored, verifiers...)
	if err != nil {
		return problem.Wrap(err, problem.ReasonTampered, "checking the stored checkpoint")
	}
	if cp.Origin != l.origin {
		return problem.New(problem.ReasonTampered, "the stored checkpoint is of another log: %q", cp.Origin)
	}
	if uint64(cp.Size) != l.tree.size {
		return problem.New(problem.ReasonTampered, "the stored checkpoint covers %d entries, but the store has %d", cp.Size, l.tree.size)
	}
	if cp.Root != l.tree.root {
		return problem.New(problem.ReasonTampered, "the stored checkpoint of %d entries has another root than the stored tree", cp.Size)
	}
	return nil
}

func (l *Log[S]) load(ctx context.Context, st store.Store) error {
	if err := l.reduce(ctx, st); err != nil {
		return err
	}
	if l.cfg.Time != nil {
		l.tree.time = l.cfg.Time(l.work)
	}
	return nil
}

// reduce reads the tree and the state.
func (l *Log[S]) reduce(ctx context.Context, st store.Store) error {
	head, err := st.Head(ctx)
	if err != nil {
		return problem.Wrap(err, problem.ReasonStore, "reading the head")
	}
	if head.Size == 0 {
		return problem.New(problem.ReasonNotFound, "the store has no genesis").WithFix("make the environment with `bailment init`")
	}
	if l.tree, err = loadTree(ctx, st, head); err != nil {
		return err
	}
	for most := head.Size; most > 0; {
		index, snapshot, err := st.Snapshot(ctx, most-1)
		if errors.Is(err, store.ErrNotFound) {
			break
		}
		if err == nil && index >= most {
			err, index = problem.New(problem.ReasonTampered, "the store gave a snapshot of entry %d, asked for one before %d", index, most), 0
		}
		if err == nil {
			if err = l.loadFrom(ctx, st, index, snapshot); err == nil {
				return nil
			}
		}
		l.cfg.Logger.Warn("a state snapshot is not used", "index", index, "err", err)
		most = index // the older one, if this one could be read at all
	}
	l.work = l.cfg.New()
	return l.replay(ctx, st, 0, nil)
}

func (l *Log[S]) loadFrom(ctx context.Context, st store.Store, index uint64, snapshot []byte) error {
	s, err := l.cfg.Restore(snapshot)
	if err != nil {
		return err
	}
	l.work = s
	confirmed, commits := false, l.cfg.Confirm(index, snapshot)
	err = l.replay(ctx, st, index+1, func() { confirmed = confirmed || commits(l.work) })
	if err == nil && !confirmed {
		err = problem.New(problem.ReasonTampered, "no entry commits to the snapshot of entry %d", index)
	}
	return err
}

// loadTree reads the edge and checks it against the head's root.
func loadTree(ctx context.Context, st store.Store, head store.Head) (*tree, error) {
	t := &tree{size: head.Size, time: head.Time, firstIndex: head.Size, firstHash: tlog.StoredHashCount(int64(head.Size))}
	indexes := edgeIndexes(head.Size)
	hashes, err := hashReader{ctx, st}.ReadHashes(indexes)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonTampered, "reading the tree's edge")
	}
	t.edge = make(map[int64]tlog.Hash, len(indexes))
	for i, x := range indexes {
		t.edge[x] = hashes[i]
	}
	t.root = edgeRoot(indexes, t.edge)
	if t.root != tlog.Hash(head.Root) {
		return nil, problem.New(problem.ReasonTampered, "the stored hashes do not give the head's root at %d entries", head.Size)
	}
	return t, nil
}

// replaySlice is how many entries are read at a time.
const replaySlice = 1024

// replay applies the entries from index on. applied, unless nil, is called after each. Each is compared with its stored leaf hash,
// which says which one was changed; and all of them with the tree's root, because the leaf hashes lie beside the entries and
// only the root is under the signed checkpoint.
func (l *Log[S]) replay(ctx context.Context, st store.Store, from uint64, applied func()) error {
	read, err := readFrom(ctx, st, from)
	if err != nil {
		return fmt.Errorf("replaying the ledger: %w", err)
	}
	for read.size < l.tree.size {
		limit := min(replaySlice, int(l.tree.size-read.size))
		err := read.slice(ctx, st, limit, func(index uint64, e store.Entry) error {
			if e.Commitment != nil {
				return problem.New(problem.ReasonTampered, "entry %d is redacted and no snapshot covers it", index)
			}
			if err := l.work.Apply(index, bytes.Clone(e.Body), nil); err != nil {
				return err
			}
			if applied != nil {
				applied()
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("replaying the ledger: %w", err)
		}
	}
	if from < l.tree.size && read.root() != l.tree.root {
		return problem.New(problem.ReasonTampered, "the entries from %d on are not those of the signed tree", from).
			WithFix("`bailment ledger verify --dir` names the entry")
	}
	return nil
}

// checkLeaf compares an entry with the hash that the tree has of it.
func checkLeaf(index uint64, e store.Entry, want tlog.Hash) error {
	leaf := e.Commitment
	if leaf == nil {
		if len(e.Salt) != store.SaltSize {
			return problem.New(problem.ReasonTampered, "entry %d has no salt", index)
		}
		c := verify.LeafCommitment([store.SaltSize]byte(e.Salt), e.Body)
		leaf = c[:]
	}
	if tlog.RecordHash(leaf) != want {
		return problem.New(problem.ReasonTampered, "entry %d is not what its hash says", index)
	}
	return nil
}

// reload runs after a failed write, on the committer: the handle is fatal, what is on disk is unknown, so memory
// is not believed any more. It opens the store again until that works, and verifies that the disk has what was
// acknowledged before, and beyond it nothing but the tree that was being written. Meanwhile Commit refuses.
func (l *Log[S]) reload(cause error, attempted *tree) {
	l.stats.Reloads.Add(1)
	l.broken.Store(closedFor(cause))
	l.cfg.Logger.Error("the store failed and is opened again", "err", cause)
	before := l.published.Load()
	if err := before.store.Close(); err != nil {
		l.cfg.Logger.Warn("closing the failed store", "err", err)
	}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		l.refuseQueued()
		if err := l.reopen(before, attempted); err == nil {
			l.broken.Store(nil)
			l.cfg.Logger.Info("the store is open again", "size", l.tree.size)
			return
		} else {
			l.cfg.Logger.Error("opening the store again failed", "err", err, "retry_in", wait)
			if problem.Is(err, problem.ReasonTampered) {
				l.broken.Store(problem.As(err))
			} else {
				l.broken.Store(closedFor(err))
			}
		}
		select {
		case <-time.After(wait):
		case <-l.stop:
			return
		}
	}
}

// closedFor is the answer to whoever comes while the store is being opened again. Nothing of theirs was begun, so it is never
// "unknown outcome", whatever the failed batch was told.
func closedFor(cause error) *problem.Problem {
	reason := problem.ReasonStore
	if errors.Is(cause, store.ErrFull) {
		reason = problem.ReasonStoreFull
	}
	return problem.Wrap(cause, reason, "the store failed and is being opened again").WithRetryAfter(time.Second)
}

func (l *Log[S]) refuseQueued() {
	for {
		select {
		case p := <-l.queue:
			if p.state.CompareAndSwap(waiting, claimed) {
				p.answer(l.broken.Load())
			}
		default:
			return
		}
	}
}

func (l *Log[S]) reopen(before *view[S], attempted *tree) error {
	ctx, cancel := context.WithCancel(context.Background()) // however long a replay takes
	defer cancel()
	go func() {
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	st, err := l.cfg.Open(ctx)
	if err != nil {
		return err
	}
	if err := l.reopened(ctx, st, before.tree, attempted); err != nil {
		_ = st.Close() // the first error is the one that tells
		return err
	}
	return nil
}

func (l *Log[S]) reopened(ctx context.Context, st store.Store, before, attempted *tree) error {
	if err := l.probe(ctx, st); err != nil {
		return err
	}
	if err := l.load(ctx, st); err != nil {
		return err
	}
	switch {
	case l.tree.same(before), l.tree.same(attempted):
	case l.tree.size < before.size:
		return problem.New(problem.ReasonTampered, "the store lost acknowledged entries: it has %d of %d", l.tree.size, before.size)
	default:
		return problem.New(problem.ReasonTampered, "the store's %d entries are not those that were acknowledged or written", l.tree.size)
	}
	signed, err := l.sign(l.tree)
	if err != nil {
		return err
	}
	l.signed = signed
	l.show(st)
	return nil
}

// probe writes the stored checkpoint again: a disk that is still full or broken is found here, and not
// by the next caller.
func (l *Log[S]) probe(ctx context.Context, st store.Store) error {
	stored, err := storedCheckpoint(ctx, st)
	if err != nil {
		return err
	}
	return st.PutCheckpoint(ctx, stored)
}
