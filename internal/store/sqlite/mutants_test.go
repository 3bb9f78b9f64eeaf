package sqlite

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/storetest"
)

// recorder is a testing.TB that remembers a failure instead of reporting it.
type recorder struct {
	testing.TB
	mu   sync.Mutex
	what string
}

func (r *recorder) Helper()             {}
func (r *recorder) Log(...any)          {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Errorf(f string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.what == "" {
		r.what = fmt.Sprintf(f, a...)
	}
}
func (r *recorder) Error(a ...any)            { r.Errorf("%s", fmt.Sprint(a...)) }
func (r *recorder) Fatalf(f string, a ...any) { r.Errorf(f, a...); runtime.Goexit() }
func (r *recorder) Fatal(a ...any)            { r.Error(a...); runtime.Goexit() }
func (r *recorder) FailNow()                  { r.Fatalf("failed") }
func (r *recorder) Fail()                     { r.Errorf("failed") }
func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.what != ""
}

// try runs one case against a broken engine and returns what it found.
func try(t *testing.T, c storetest.Case, wrap func(store.Store) store.Store) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() { // because Fatalf ends the goroutine
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				r.Errorf("panic: %v", p) // a case may trip over what a broken engine answers
			}
		}()
		c.Run(r, wrappedSite{newSite(t).(*site), wrap})
	}()
	<-done
	return r.what
}

// The suite's own proof: each of these engines breaks one sentence of the contract, and each must
// be caught.
func TestSuiteCatchesBrokenEngines(t *testing.T) {
	for name, wrap := range mutants() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, c := range storetest.Cases() {
				if c.Name == "BigBatch" {
					continue // long, and needed for none of these
				}
				if what := try(t, c, wrap); what != "" {
					t.Logf("caught by %s: %s", c.Name, what)
					return
				}
			}
			t.Fatal("the suite passes this broken engine")
		})
	}
}

// mutant overrides some methods of an engine.
type mutant struct {
	store.Store
	appendFn  func(ctx context.Context, b *store.Batch) error
	headFn    func(ctx context.Context) (store.Head, error)
	entryFn   func(index uint64, e store.Entry) (store.Entry, bool)
	putCkptFn func(ctx context.Context, signed []byte) error
	putSnapFn func(ctx context.Context, index uint64, data []byte) error
	snapFn    func(ctx context.Context, max uint64) (uint64, []byte, error)
	sealedFn  func(ctx context.Context, id uint64) (store.Sealed, error)
	hashesFn  func(ctx context.Context, x []uint64) ([]store.Digest, error)
	blobFn    func(ctx context.Context, d store.Digest) ([]byte, error)
	keyFn     func(ctx context.Context, name string) ([]byte, error)
	underFn   func(ctx context.Context, kek uint32, after uint64, limit int) ([]uint64, error)
	closeFn   func() error
}

func (m *mutant) Append(ctx context.Context, b *store.Batch) error {
	if m.appendFn != nil {
		return m.appendFn(ctx, b)
	}
	return m.Store.Append(ctx, b)
}

func (m *mutant) Head(ctx context.Context) (store.Head, error) {
	if m.headFn != nil {
		return m.headFn(ctx)
	}
	return m.Store.Head(ctx)
}

func (m *mutant) Entries(ctx context.Context, from uint64, limit int, fn func(uint64, store.Entry) error) error {
	if m.entryFn == nil {
		return m.Store.Entries(ctx, from, limit, fn)
	}
	return m.Store.Entries(ctx, from, limit, func(i uint64, e store.Entry) error {
		e, ok := m.entryFn(i, e)
		if !ok {
			return nil
		}
		return fn(i, e)
	})
}

func (m *mutant) PutCheckpoint(ctx context.Context, signed []byte) error {
	if m.putCkptFn != nil {
		return m.putCkptFn(ctx, signed)
	}
	return m.Store.PutCheckpoint(ctx, signed)
}

func (m *mutant) PutSnapshot(ctx context.Context, index uint64, data []byte) error {
	if m.putSnapFn != nil {
		return m.putSnapFn(ctx, index, data)
	}
	return m.Store.PutSnapshot(ctx, index, data)
}

func (m *mutant) Snapshot(ctx context.Context, max uint64) (uint64, []byte, error) {
	if m.snapFn != nil {
		return m.snapFn(ctx, max)
	}
	return m.Store.Snapshot(ctx, max)
}

func (m *mutant) Sealed(ctx context.Context, id uint64) (store.Sealed, error) {
	if m.sealedFn != nil {
		return m.sealedFn(ctx, id)
	}
	return m.Store.Sealed(ctx, id)
}

func (m *mutant) Hashes(ctx context.Context, x []uint64) ([]store.Digest, error) {
	if m.hashesFn != nil {
		return m.hashesFn(ctx, x)
	}
	return m.Store.Hashes(ctx, x)
}

func (m *mutant) Blob(ctx context.Context, d store.Digest) ([]byte, error) {
	if m.blobFn != nil {
		return m.blobFn(ctx, d)
	}
	return m.Store.Blob(ctx, d)
}

func (m *mutant) Key(ctx context.Context, name string) ([]byte, error) {
	if m.keyFn != nil {
		return m.keyFn(ctx, name)
	}
	return m.Store.Key(ctx, name)
}

func (m *mutant) SealedUnder(ctx context.Context, kek uint32, after uint64, limit int) ([]uint64, error) {
	if m.underFn != nil {
		return m.underFn(ctx, kek, after, limit)
	}
	return m.Store.SealedUnder(ctx, kek, after, limit)
}

func (m *mutant) Close() error {
	if m.closeFn != nil {
		return m.closeFn()
	}
	return m.Store.Close()
}

// mutants are broken engines. "rewrite" ones change a batch on its way in.
func mutants() map[string]func(store.Store) store.Store {
	rewrite := func(change func(s store.Store, b *store.Batch)) func(store.Store) store.Store {
		return func(s store.Store) store.Store {
			return &mutant{Store: s, appendFn: func(ctx context.Context, b *store.Batch) error {
				c := *b
				change(s, &c)
				return s.Append(ctx, &c)
			}}
		}
	}
	out := map[string]func(store.Store) store.Store{
		"reorders entries": rewrite(func(_ store.Store, b *store.Batch) {
			if n := len(b.Entries); n > 1 {
				b.Entries = append([]store.Entry(nil), b.Entries...)
				b.Entries[0], b.Entries[n-1] = b.Entries[n-1], b.Entries[0]
			}
		}),
		"ignores First": rewrite(func(s store.Store, b *store.Batch) {
			if h, err := s.Head(context.Background()); err == nil && len(b.Seal)+len(b.Redact) == 0 {
				b.First, b.HashFirst = h.Size, h.Hashes
			}
		}),
		"loses time below a second": rewrite(func(_ store.Store, b *store.Batch) {
			if b.Time.Equal(b.Time.Truncate(time.Millisecond)) {
				b.Time = b.Time.Truncate(time.Second)
			}
		}),
		"does not store blobs": rewrite(func(_ store.Store, b *store.Batch) { b.Blobs = nil }),
		"does not store keys":  rewrite(func(_ store.Store, b *store.Batch) { b.Keys = nil }),
		"does not shred":       rewrite(func(_ store.Store, b *store.Batch) { b.Shred = nil }),
		"does not rewrap":      rewrite(func(_ store.Store, b *store.Batch) { b.Rewraps = nil }),
		"does not redact":      rewrite(func(_ store.Store, b *store.Batch) { b.Redact = nil }),
		"drops the batch's checkpoint": rewrite(func(s store.Store, b *store.Batch) {
			if old, err := s.Checkpoint(context.Background()); err == nil && len(b.Checkpoint) > 0 {
				b.Checkpoint = old
			}
		}),
		"drops a sealed version":        rewrite(func(_ store.Store, b *store.Batch) { b.Seal = b.Seal[:max(len(b.Seal)-1, 0)] }),
		"takes malformed batches":       rewrite(func(_ store.Store, b *store.Batch) { b.Time = time.UnixMilli(b.Time.UnixMilli()) }),
		"keeps another root":            rewrite(func(_ store.Store, b *store.Batch) { b.Root[31]++ }),
		"loses bits of the last hashes": rewrite(func(_ store.Store, b *store.Batch) { b.Hashes = append([]byte(nil), b.Hashes...); flipLast(b.Hashes) }),
	}
	for name, wrap := range readMutants() {
		out[name] = wrap
	}
	for name, wrap := range failureMutants() {
		out[name] = wrap
	}
	return out
}

func flipLast(b []byte) {
	if len(b) > 0 {
		b[len(b)-1] ^= 1
	}
}

// readMutants answer wrongly.
func readMutants() map[string]func(store.Store) store.Store {
	return map[string]func(store.Store) store.Store{
		"drops the last entry": func(s store.Store) store.Store {
			return &mutant{Store: s, entryFn: func(i uint64, e store.Entry) (store.Entry, bool) {
				h, _ := s.Head(context.Background())
				return e, i+1 != h.Size
			}}
		},
		"cuts bodies of 16 bytes": func(s store.Store) store.Store {
			return &mutant{Store: s, entryFn: func(_ uint64, e store.Entry) (store.Entry, bool) {
				if len(e.Body) == store.SaltSize { // takes them for a commitment
					e = store.Entry{Commitment: append(e.Salt, e.Body...)}
				}
				return e, true
			}}
		},
		"hashes are one off": func(s store.Store) store.Store {
			return &mutant{Store: s, hashesFn: func(ctx context.Context, x []uint64) ([]store.Digest, error) {
				y := append([]uint64(nil), x...)
				for i := range y {
					y[i] = max(y[i], 1) - 1
				}
				return s.Hashes(ctx, y)
			}}
		},
		"sealed under ignores the cursor": func(s store.Store) store.Store {
			return &mutant{Store: s, underFn: func(ctx context.Context, kek uint32, after uint64, limit int) ([]uint64, error) {
				return s.SealedUnder(ctx, kek, after+1, limit)
			}}
		},
		"snapshot ignores max": func(s store.Store) store.Store {
			return &mutant{Store: s, snapFn: func(ctx context.Context, _ uint64) (uint64, []byte, error) { return s.Snapshot(ctx, 1<<62) }}
		},
		"keeps no snapshot": func(s store.Store) store.Store {
			return &mutant{Store: s, putSnapFn: func(context.Context, uint64, []byte) error { return nil }}
		},
		"answers nothing for not found": func(s store.Store) store.Store {
			return &mutant{Store: s, keyFn: func(ctx context.Context, name string) ([]byte, error) {
				b, err := s.Key(ctx, name)
				if errors.Is(err, store.ErrNotFound) {
					err = nil
				}
				return b, err
			}}
		},
		"blobs of others": func(s store.Store) store.Store {
			var last []byte
			return &mutant{Store: s, blobFn: func(ctx context.Context, d store.Digest) ([]byte, error) {
				b, err := s.Blob(ctx, d)
				if last == nil {
					last = b
				}
				return last, err
			}}
		},
		"rewrap touches the ciphertext": func(s store.Store) store.Store {
			return &mutant{Store: s, sealedFn: func(ctx context.Context, id uint64) (store.Sealed, error) {
				v, err := s.Sealed(ctx, id)
				if v.KEK == 2 && id == 1 {
					v.Ciphertext = v.WrappedKey
				}
				return v, err
			}}
		},
		"keeps the older checkpoint": func(s store.Store) store.Store {
			return &mutant{Store: s, putCkptFn: func(ctx context.Context, b []byte) error {
				if _, err := s.Checkpoint(ctx); err == nil {
					return nil
				}
				return s.PutCheckpoint(ctx, b)
			}}
		},
	}
}

// failureMutants are wrong about durability, failures and endings.
func failureMutants() map[string]func(store.Store) store.Store {
	class := func(from, to error) func(store.Store) store.Store {
		return func(s store.Store) store.Store {
			return &mutant{Store: s, appendFn: func(ctx context.Context, b *store.Batch) error {
				err := s.Append(ctx, b)
				if errors.Is(err, from) {
					return to
				}
				return err
			}}
		}
	}
	return map[string]func(store.Store) store.Store{
		"acknowledges without storing": func(s store.Store) store.Store {
			var head store.Head
			return &mutant{
				Store: s,
				appendFn: func(_ context.Context, b *store.Batch) error {
					if err := b.Check(head); err != nil {
						return err
					}
					head = store.Head{Size: b.First + uint64(len(b.Entries)), Root: b.Root, Time: b.Time, Hashes: b.HashFirst + uint64(len(b.Hashes)/32)}
					return nil
				},
				headFn: func(context.Context) (store.Head, error) { return head, nil },
			}
		},
		"stores at Close only": func(s store.Store) store.Store {
			var late []*store.Batch
			m := &mutant{Store: s}
			flush := func() {
				for _, b := range late {
					_ = s.Append(context.Background(), b)
				}
				late = nil
			}
			m.appendFn = func(ctx context.Context, b *store.Batch) error {
				h, err := s.Head(ctx)
				if err != nil {
					return err
				}
				if err := b.Check(h); err != nil {
					return err
				}
				late = append(late, b)
				return nil
			}
			m.headFn = func(ctx context.Context) (store.Head, error) { flush(); return s.Head(ctx) }
			m.closeFn = func() error { flush(); return s.Close() }
			return m
		},
		"calls an unknown outcome not done":   class(store.ErrUnknown, store.ErrNotDone),
		"calls not done unknown and conflict": class(store.ErrNotDone, errors.Join(store.ErrUnknown, store.ErrNotDone)),
		"reports conflicts as not done":       class(store.ErrConflict, store.ErrNotDone),
		"swallows failures":                   class(store.ErrNotDone, nil),
		"answers after a failure": func(s store.Store) store.Store {
			var head store.Head
			return &mutant{Store: s, headFn: func(ctx context.Context) (store.Head, error) {
				h, err := s.Head(ctx)
				if errors.Is(err, store.ErrFatal) {
					return head, nil
				}
				head = h
				return h, err
			}}
		},
		"interrupts nothing": func(s store.Store) store.Store {
			return &mutant{Store: s, sealedFn: func(_ context.Context, id uint64) (store.Sealed, error) {
				return s.Sealed(context.Background(), id)
			}}
		},
	}
}
