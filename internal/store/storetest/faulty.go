package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/bailment/bailment/internal/store"
)

// Op is a writing method of a store.
type Op int

const (
	OpAppend Op = iota
	OpPutCheckpoint
	OpPutSnapshot
)

func (o Op) String() string {
	return [...]string{"Append", "PutCheckpoint", "PutSnapshot"}[o]
}

// Fault is one planned failure. The three kinds, as errors of the contract:
//
//	Fault{Op: OpAppend, Call: 3}                             not done, ErrNotDone
//	Fault{Op: OpAppend, Call: 3, Unknown: true}              not done, ErrUnknown
//	Fault{Op: OpAppend, Call: 3, Done: true}                 done, ErrUnknown (the lost reply)
type Fault struct {
	Op      Op
	Call    int  // which call of Op, from 1
	Done    bool // the write is done, and reported as failed
	Unknown bool // the error is ErrUnknown though nothing was done
	Full    bool // the error is ErrFull as well
}

// ErrPlanned is in every error that Faulty makes up.
var ErrPlanned = errors.New("planned fault")

// Faulty is a store whose writes fail as planned. After a failure its methods answer ErrFatal, as
// the contract says, until somebody opens the underlying store again (Close closes it). Safe for
// concurrent use.
type Faulty struct {
	inner  store.Store
	mu     sync.Mutex
	calls  map[Op]int
	faults []Fault
	broken error
}

var _ store.Store = (*Faulty)(nil)

// NewFaulty wraps s.
func NewFaulty(s store.Store, faults ...Fault) *Faulty {
	return &Faulty{inner: s, calls: make(map[Op]int), faults: faults}
}

// Plan adds a fault, counted from now on: Call 1 is the next call of its Op.
func (f *Faulty) Plan(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fault.Call += f.calls[fault.Op]
	f.faults = append(f.faults, fault)
}

// Failed says whether a fault has happened.
func (f *Faulty) Failed() bool { return f.alive() != nil }

func (f *Faulty) alive() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return fmt.Errorf("%w: %w", store.ErrFatal, f.broken)
	}
	return nil
}

// write counts a call, and does or fails it. A refusal of the store itself (a conflict) is passed
// on, and the fault with it is used up.
func (f *Faulty) write(op Op, do func() error) error {
	if err := f.alive(); err != nil {
		return err
	}
	f.mu.Lock()
	f.calls[op]++
	var hit *Fault
	for i := range f.faults {
		if f.faults[i].Op == op && f.faults[i].Call == f.calls[op] {
			hit = &f.faults[i]
		}
	}
	f.mu.Unlock()
	if hit == nil {
		return do()
	}
	if hit.Done {
		if err := do(); err != nil {
			return err
		}
	}
	class := store.ErrNotDone
	if hit.Done || hit.Unknown {
		class = store.ErrUnknown
	}
	err := fmt.Errorf("%w: %s, call %d", ErrPlanned, op, hit.Call)
	if hit.Full {
		err = fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = err
	return fmt.Errorf("%w: %w", class, err)
}

// Append implements store.Store.
func (f *Faulty) Append(ctx context.Context, b *store.Batch) error {
	return f.write(OpAppend, func() error { return f.inner.Append(ctx, b) })
}

// PutCheckpoint implements store.Store.
func (f *Faulty) PutCheckpoint(ctx context.Context, signed []byte) error {
	return f.write(OpPutCheckpoint, func() error { return f.inner.PutCheckpoint(ctx, signed) })
}

// PutSnapshot implements store.Store.
func (f *Faulty) PutSnapshot(ctx context.Context, index uint64, data []byte) error {
	return f.write(OpPutSnapshot, func() error { return f.inner.PutSnapshot(ctx, index, data) })
}

// Head implements store.Store.
func (f *Faulty) Head(ctx context.Context) (store.Head, error) {
	if err := f.alive(); err != nil {
		return store.Head{}, err
	}
	return f.inner.Head(ctx)
}

// Entries implements store.Store.
func (f *Faulty) Entries(ctx context.Context, from uint64, limit int, fn func(index uint64, e store.Entry) error) error {
	if err := f.alive(); err != nil {
		return err
	}
	return f.inner.Entries(ctx, from, limit, fn)
}

// Hashes implements store.Store.
func (f *Faulty) Hashes(ctx context.Context, indexes []uint64) ([]store.Digest, error) {
	if err := f.alive(); err != nil {
		return nil, err
	}
	return f.inner.Hashes(ctx, indexes)
}

// Blob implements store.Store.
func (f *Faulty) Blob(ctx context.Context, d store.Digest) ([]byte, error) {
	if err := f.alive(); err != nil {
		return nil, err
	}
	return f.inner.Blob(ctx, d)
}

// Sealed implements store.Store.
func (f *Faulty) Sealed(ctx context.Context, id uint64) (store.Sealed, error) {
	if err := f.alive(); err != nil {
		return store.Sealed{}, err
	}
	return f.inner.Sealed(ctx, id)
}

// Key implements store.Store.
func (f *Faulty) Key(ctx context.Context, name string) ([]byte, error) {
	if err := f.alive(); err != nil {
		return nil, err
	}
	return f.inner.Key(ctx, name)
}

// SealedUnder implements store.Store.
func (f *Faulty) SealedUnder(ctx context.Context, notKEK uint32, after uint64, limit int) ([]uint64, error) {
	if err := f.alive(); err != nil {
		return nil, err
	}
	return f.inner.SealedUnder(ctx, notKEK, after, limit)
}

// Checkpoint implements store.Store.
func (f *Faulty) Checkpoint(ctx context.Context) ([]byte, error) {
	if err := f.alive(); err != nil {
		return nil, err
	}
	return f.inner.Checkpoint(ctx)
}

// Snapshot implements store.Store.
func (f *Faulty) Snapshot(ctx context.Context, max uint64) (uint64, []byte, error) {
	if err := f.alive(); err != nil {
		return 0, nil, err
	}
	return f.inner.Snapshot(ctx, max)
}

// Size implements store.Store.
func (f *Faulty) Size(ctx context.Context) (int64, error) {
	if err := f.alive(); err != nil {
		return 0, err
	}
	return f.inner.Size(ctx)
}

// Close closes the underlying store.
func (f *Faulty) Close() error { return f.inner.Close() }
