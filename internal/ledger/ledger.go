// Package ledger is the one door of an environment: Commit. It orders proposals, runs their decide
// functions at the linearization point, makes a batch of entries durable together with its Merkle
// hashes, and only then answers. It works over opaque bytes: what an entry means is the business of
// the Machine that reduces it.
//
// Guaranteed: a caller who gets an answer can rely on it after a crash at any later instruction;
// decide functions see every entry before them and none after; memory is never ahead of the store;
// a commit whose outcome is unknown stops everything until the store was opened and verified
// again; who can write the store, and has no checkpoint key, can't change what is read of it, add to its end or cut it
// off so that it is believed: at most a whole former store can be put back. Not guaranteed: that a proposal that was answered with an unknown outcome was not done.
// Retry it with the same idempotency key.
//
// Its place: package control is the only caller of Commit; package store is below it.
package ledger

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
)

// Machine is the reduced state. S is the implementing type itself.
type Machine[S any] interface {
	// Fork is an isolated copy in about O(1). Only the committer forks and writes.
	Fork() S
	// Apply reduces an entry. event is what the decide function gave with it, or nil on replay.
	Apply(index uint64, body []byte, event any) error
}

// At is a proposal's place: where its first entry will stand, and when. Time is in whole
// milliseconds and never runs backwards.
type At struct {
	Index uint64
	Time  time.Time
}

// Record is one entry to append: its bytes, and optionally the same decoded.
type Record struct {
	Body  []byte
	Event any
}

// Draft is what a decide function wants done, all of it or nothing. An empty Records means that
// nothing is written.
type Draft struct {
	Records []Record
	Blobs   []store.Blob
	Seal    []store.Sealed
	Rewraps []store.Rewrap
	Shred   []uint64
	Keys    []store.Key
	Redact  []uint64
	Wipe    bool // see store.Batch: it takes what other drafts of the batch seal, too
}

// Limits of a log. Zero values take the defaults.
type Limits struct {
	Queue      int // proposals waiting; beyond it Commit refuses at once. Default 4,096
	Batch      int // proposals in one batch. Default 512
	BatchBytes int // entry bytes after which a batch is closed. Default 4 MiB
}

// Config is what a log needs. All fields but Time, Published, Committed, Logger, Limits, Rand, Now and Boot are required.
type Config[S Machine[S]] struct {
	// Open opens the store. It is called again after a failed commit.
	Open func(context.Context) (store.Store, error)
	// New is the state before the first entry.
	New func() S
	// Restore reads a state snapshot. An error means: replay from the beginning instead.
	Restore func(snapshot []byte) (S, error)
	// Confirm is about one restored snapshot: what it returns is asked after each entry that is replayed on it, with the
	// state, whether that entry commits to the snapshot. If none does the snapshot is not used: it is a cache, and only the
	// ledger is believed.
	Confirm func(index uint64, snapshot []byte) func(S) bool
	// Origin of the checkpoints (C2SP tlog-checkpoint), given the state after loading.
	Origin func(S) string
	// Time is that of the last entry, given the state after loading: what is under the tree says when the ledger's time was, and
	// not what the store notes beside it. Nil: the store's word is taken.
	Time func(S) time.Time
	// Published is called with each newly published state, from the committer: it must be quick.
	Published func(S)
	// Committed is called with each draft's records once they are durable and before its caller is answered, in the ledger's
	// order, from the committer: it must be quick, and keep nothing but the records' events. A batch whose outcome was
	// unknown may be in the ledger without a call.
	Committed func(first uint64, records []Record)
	Logger    *slog.Logger

	Limits Limits
	Rand   io.Reader        // of salts; default crypto/rand
	Now    func() time.Time // wall clock
	Boot   func() time.Duration
}

// Log is an open ledger. Its methods may be called concurrently.
type Log[S Machine[S]] struct {
	cfg    Config[S]
	origin string
	clock  clock

	queue   chan *proposal[S]
	suspect chan struct{} // holds one: somebody met a store that answers nothing more
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed when the committer has ended
	once    sync.Once

	broken    atomic.Pointer[problem.Problem] // set while the store is being reopened
	published atomic.Pointer[view[S]]
	signers   atomic.Pointer[[]note.Signer]
	stats     Stats

	// The committer's own. Nobody else touches them after Start.
	work    S // as of the last commit
	pending S // as of the batch being written
	tree    *tree
	signed  []byte // checkpoint of tree
	lastErr error
	decided time.Duration // on the boot clock: when the batch's decisions began
}

// view is what readers see: everything in it is committed, and nobody changes it.
type view[S any] struct {
	state      S
	tree       *tree
	checkpoint []byte
	store      store.Store
}

// Stats counts what a log did since it was opened.
type Stats struct {
	Entries  atomic.Uint64
	Batches  atomic.Uint64
	Refused  atomic.Uint64 // by a full queue
	Reloads  atomic.Uint64
	Panics   atomic.Uint64
	BodySize atomic.Uint64 // bytes of entry bodies
}

// State is the newest committed state. It must not be written to.
func (l *Log[S]) State() S { return l.published.Load().state }

// Store is the store as it is open now. After a failed write its methods return store.ErrFatal
// until the log has opened it again; call Store again then. Tell Failed of it.
func (l *Log[S]) Store() store.Store { return l.published.Load().store }

// Failed is told of a store's error by who met it. A write that fails beside commits (a snapshot, the store's own tidying up) leaves
// a handle that answers nothing more; who then only reads would never come as far as a commit, which finds it out by itself.
func (l *Log[S]) Failed(err error) error {
	if errors.Is(err, store.ErrFatal) || errors.Is(err, store.ErrNotDone) || errors.Is(err, store.ErrUnknown) {
		select {
		case l.suspect <- struct{}{}:
		default:
		}
	}
	return err
}

// Size is the number of committed entries.
func (l *Log[S]) Size() uint64 { return l.published.Load().tree.size }

// Origin is the checkpoints' origin line.
func (l *Log[S]) Origin() string { return l.origin }

// Stats are the log's counters.
func (l *Log[S]) Stats() *Stats { return &l.stats }

// QueueLength is the number of proposals that wait.
func (l *Log[S]) QueueLength() int { return len(l.queue) }

// Ready is nil if the log accepts proposals, and otherwise why it does not.
func (l *Log[S]) Ready() error {
	if p := l.broken.Load(); p != nil {
		return p
	}
	select {
	case <-l.stop:
		return problem.New(problem.ReasonStopping, "the ledger is closed")
	default:
	}
	if err := l.clock.check(l.published.Load().tree.time); err != nil {
		return err
	}
	return nil
}

// SetSigners replaces the keys that sign checkpoints, from the next batch on. The first is the
// current one; a rotation keeps the one before beside it.
func (l *Log[S]) SetSigners(signers []note.Signer) { l.signers.Store(&signers) }

// Close stops taking proposals, finishes those that are queued, and closes the store.
func (l *Log[S]) Close() error {
	l.once.Do(func() { close(l.stop) })
	<-l.stopped
	return l.lastErr
}
