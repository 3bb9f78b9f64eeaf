// Package audit verifies a whole ledger without a server: from a data directory, or from entries that a server
// sent. It recomputes what is stored and believes nothing that it can compute.
//
// Guaranteed, if Run returns no error: every entry is the one that its commitment, its leaf and every stored hash
// above it say; every entry is of a known type, in its strict form, and a legal step from the state before it; every
// state root and stored snapshot is the state that the entries amount to; the genesis document was signed by a
// founder, and each change by persons listed in the bundle that governed, over a text about just this change, in the
// number that it asks for; whoever acted did so in a live session of his own; every entry was decided again by package
// invariant, and gives no violation; in a data directory the key-encryption keys are wrapped as the newest move of the root key's custody says,
// and no key is left of an environment that has ended; the stored checkpoint, and those kept elsewhere, are signed by keys of this ledger and
// are of this tree, and in a data directory, running server or not, the stored one covers the last entry. Report.Authenticated
// says how many of the entries are vouched for by what the caller pinned, and Report.Undecided what could not be decided
// again, since its bundle can't be had.
// Not guaranteed: that what the entries say happened in the world; that the log shows everybody the same entries
// (compare checkpoints with others for that).
//
// Memory is bounded by the state, not by the ledger. It reads the entries twice. Its place: above the pure packages
// state, policy, ceremony, sshsig and invariant and the leaf verify; the command line and tests use it.
package audit

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/verify"
)

// Ledger is what is audited. Entries and Size are required.
type Ledger struct {
	Size uint64
	// Entries calls fn for at most limit entries from an index on, in order. The slices are valid during the call.
	Entries func(ctx context.Context, from uint64, limit int, fn func(index uint64, e store.Entry) error) error
	// Checkpoint is the newest signed checkpoint that comes with the entries; nil: none, which in a data directory is a fault.
	Checkpoint []byte
	// Blob reads a document by its digest, or is store.ErrNotFound. Nil: none can be had, and what needs a bundle is
	// left out, with a note in the report.
	Blob func(ctx context.Context, d store.Digest) ([]byte, error)
	// BlobsPartial: some documents may be missing without that being a fault.
	BlobsPartial bool
	// Stored is what a data directory has besides the entries; nil for entries from a server.
	Stored *Stored
	// Consistency proves that the tree of old entries is a prefix of that of size; nil: can't be had. It is only
	// asked for after a conflict, to write it down in a form that others can check.
	Consistency func(ctx context.Context, old, size uint64) (tlog.TreeProof, error)
}

// Stored is what a store keeps that can be computed again.
type Stored struct {
	Head     store.Head
	Hashes   func(ctx context.Context, indexes []uint64) ([]store.Digest, error)
	Snapshot func(ctx context.Context, most uint64) (index uint64, data []byte, err error)
	// Key reads a wrapped key by its name, or is store.ErrNotFound; nil: they are not compared.
	Key func(ctx context.Context, name string) ([]byte, error)
	// Roots reads the roots that were stored with earlier heads, in order, from a cursor on; nil if none are kept.
	Roots func(ctx context.Context, cursor uint64, limit int) ([]Root, error)
}

// Root is a tree's root as it was stored beside the head of its time.
type Root struct {
	Cursor uint64 // where the next call goes on
	Size   uint64
	Root   store.Digest
}

// OfStore is the ledger in a store, as of its present head.
func OfStore(ctx context.Context, st store.Store) (Ledger, error) {
	head, err := st.Head(ctx)
	if err != nil {
		return Ledger{}, storeProblem(err, "reading the head")
	}
	l := Ledger{
		Size: head.Size, Entries: st.Entries, Blob: st.Blob,
		Stored: &Stored{Head: head, Hashes: st.Hashes, Snapshot: st.Snapshot, Key: st.Key},
	}
	switch l.Checkpoint, err = st.Checkpoint(ctx); {
	case errors.Is(err, store.ErrNotFound):
		l.Checkpoint = nil
	case err != nil:
		return Ledger{}, storeProblem(err, "reading the checkpoint")
	}
	l.Consistency = func(ctx context.Context, old, size uint64) (tlog.TreeProof, error) {
		return tlog.ProveTree(int64(size), int64(old), hashReader{ctx, st.Hashes})
	}
	return l, nil
}

type hashReader struct {
	ctx    context.Context
	hashes func(ctx context.Context, indexes []uint64) ([]store.Digest, error)
}

func (r hashReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	ask := make([]uint64, len(indexes))
	for i, x := range indexes {
		ask[i] = uint64(x)
	}
	got, err := r.hashes(r.ctx, ask)
	if err != nil {
		return nil, err
	}
	out := make([]tlog.Hash, len(got))
	for i, h := range got {
		out[i] = tlog.Hash(h)
	}
	return out, nil
}

// Options are what the caller knows from elsewhere.
type Options struct {
	Environment string       // from a bootstrap string; "": not pinned
	Genesis     state.Digest // from a bootstrap string; zero: not pinned
	Vkeys       []string     // checkpoint keys, in the form NAME+HASH+BASE64
	Checkpoints [][]byte     // signed checkpoints of this ledger that were kept elsewhere
	// Progress is called now and then; nil: never.
	Progress func(Progress)
}

func (o *Options) pinned() bool { return !o.Genesis.IsZero() || len(o.Vkeys) > 0 }

// Progress is how far an audit has come.
type Progress struct {
	Step  string // hashes | entries
	Done  uint64
	Total uint64
}

// Report is what was found. After an error it has what was known until then.
type Report struct {
	Environment   string       `json:"environment"`
	Class         string       `json:"class"`
	Genesis       state.Digest `json:"genesis"`
	Size          uint64       `json:"size"`
	Root          state.Digest `json:"root"`
	Generation    uint64       `json:"generation"`
	Bundle        state.Digest `json:"bundle"`
	Hashes        uint64       `json:"hashes"`      // compared with the recomputed ones
	StateRoots    int          `json:"state_roots"` // compared, with stored snapshots
	Signatures    int          `json:"signatures"`  // of founders and operators, verified
	Keys          []string     `json:"keys"`        // verifier keys of checkpoints, oldest first
	Checkpoint    uint64       `json:"checkpoint"`  // entries under the newest checkpoint; 0: there is none
	Saved         int          `json:"saved"`       // checkpoints kept elsewhere that agree
	Authenticated uint64       `json:"authenticated"`
	Decided       uint64       `json:"decided"`              // entries that were decided again, by the bundle in force
	Ended         uint64       `json:"ended,omitempty"`      // the entry with which the environment ended for ever, and the last; 0: it goes on
	Violated      uint64       `json:"violated"`             // times that an entry is not what the rules in force allowed
	Violations    []Violation  `json:"violations,omitempty"` // the first of them
	Undecided     []Undecided  `json:"not_decided_again,omitempty"`
	Notes         []string     `json:"notes,omitempty"`
	// Misbehaviour is a proof for others (package verify) that the ledger's keys signed two histories.
	Misbehaviour string `json:"misbehaviour,omitempty"`
}

// Complete reports whether every entry is vouched for by what was pinned.
func (r *Report) Complete() bool { return r.Size > 0 && r.Authenticated == r.Size }

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Fault is the cause (errors.As) of an error that is about one entry: the first bad one, or the first one missing.
type Fault struct{ Index uint64 }

func (f *Fault) Error() string { return fmt.Sprintf("entry %d", f.Index) }

// fault is a problem of reason tampered about an entry.
func fault(index uint64, format string, args ...any) error {
	p := problem.New(problem.ReasonTampered, "entry %d: %s", index, fmt.Sprintf(format, args...))
	p.Err = &Fault{index}
	return p
}

// illegible is a fault in an entry that can't be taken in: it is damage, or of a format that is newer than this program, which says nothing
// of damage and takes another program.
func illegible(index uint64, what string, err error) error {
	if !problem.Is(err, problem.ReasonUnknownVersion) {
		return fault(index, "%s%s", what, text(err))
	}
	p := problem.New(problem.ReasonUnknownVersion, "entry %d: %s", index, text(err)).WithFix("%s", problem.As(err).Fix)
	p.Err = &Fault{index}
	return p
}

func tampered(format string, args ...any) error {
	return problem.New(problem.ReasonTampered, format, args...)
}

// storeProblem says whether a read failed, or what was read is damaged.
func storeProblem(err error, doing string) error {
	if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		return problem.Wrap(err, problem.ReasonTampered, "%s", doing)
	}
	var p *problem.Problem
	if errors.As(err, &p) {
		return err
	}
	return problem.Wrap(err, problem.ReasonStore, "%s", doing)
}

// run is one audit.
type run struct {
	l      Ledger
	o      Options
	report *Report

	checkpoints []checkpoint
	wantTrees   map[uint64]tlog.Hash   // sizes at which the root is wanted, and then the root
	claims      map[uint64][]rootClaim // by the last entry that a state root covers
	document    ceremony.Genesis
	state       *state.State
	bundles     bundles
	checker     *invariant.Checker
	overtaken   bool // the last entry ended a rollout for another bundle, which comes into force in the next one
}

// Run verifies the ledger. The error is about the first thing found wrong: of reason tampered, with a Fault as its
// cause where one entry is to blame; of reason not-authentic where it is sound, but not what was pinned; of reason
// violated, with Violated as its cause, where all that is right, and entries are not what the rules allowed. The
// report is never nil.
func Run(ctx context.Context, l Ledger, o Options) (*Report, error) {
	r := &run{
		l: l, o: o, report: &Report{Size: l.Size}, wantTrees: make(map[uint64]tlog.Hash),
		claims: make(map[uint64][]rootClaim), state: state.New(),
	}
	r.bundles = bundles{ctx: ctx, blob: l.Blob, partial: l.BlobsPartial, report: r.report}
	r.checker = r.newChecker()
	return r.report, r.all(ctx)
}

func (r *run) all(ctx context.Context) error {
	if r.l.Size == 0 {
		return tampered("there are no entries: not even genesis")
	}
	if err := r.readCheckpoints(); err != nil {
		return err
	}
	if err := r.readSnapshots(ctx); err != nil {
		return err
	}
	if err := r.hashes(ctx); err != nil {
		return err
	}
	if err := r.replay(ctx); err != nil {
		return err
	}
	if err := r.wrapped(ctx); err != nil {
		return err
	}
	if err := r.authenticate(ctx); err != nil {
		return err
	}
	return r.verdict()
}

func (r *run) progress(step string, done uint64) {
	if r.o.Progress != nil {
		r.o.Progress(Progress{Step: step, Done: done, Total: r.l.Size})
	}
}

// checkpoint is one to compare the tree with.
type checkpoint struct {
	name   string
	signed []byte
	saved  bool
	verify.Checkpoint
}
