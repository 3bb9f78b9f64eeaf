package ledger_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/internal/store/storetest"
	"github.com/bailment/bailment/verify"
)

// tally is the smallest machine: it counts entries and remembers the last value under each name.
type tally struct {
	n    uint64
	last map[string]int
}

type note1 struct {
	Name  string
	Value int
}

func (s *tally) Fork() *tally {
	f := &tally{n: s.n, last: make(map[string]int, len(s.last))}
	for k, v := range s.last {
		f.last[k] = v
	}
	return f
}

func (s *tally) Apply(index uint64, body []byte, event any) error {
	if index != s.n {
		return fmt.Errorf("entry %d, expected %d", index, s.n)
	}
	x, ok := event.(*note1)
	if !ok {
		x = new(note1)
		if err := json.Unmarshal(body, x); err != nil {
			return err
		}
	}
	switch x.Name {
	case "bad":
		return errors.New("an entry that can't be applied")
	case "panic":
		panic("in apply")
	}
	s.n++
	s.last[x.Name] = x.Value
	return nil
}

type rig struct {
	t      *testing.T
	dir    string
	log    *ledger.Log[*tally]
	skey   string
	vkey   string
	faulty *storetest.Faulty // the newest handle
	mu     sync.Mutex
	now    atomic.Int64 // offset
	boot   atomic.Int64
	limits ledger.Limits
	next   []storetest.Fault // planned for the next handle
}

const origin = "bailment/test/0000/0"

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: filepath.Join(t.TempDir(), "data")}
	var err error
	r.skey, r.vkey, err = note.GenerateKey(rand.Reader, origin)
	must(t, err)
	st, err := sqlite.Create(t.Context(), r.dir)
	must(t, err)
	must(t, ledger.Create(t.Context(), st, ledger.Draft{Records: []ledger.Record{record("genesis", 0)}}, []note.Signer{signerOf(t, r.skey)}, r.config()))
	must(t, st.Close())
	return r
}

func signerOf(t testing.TB, skey string) note.Signer {
	t.Helper()
	signer, err := note.NewSigner(skey)
	must(t, err)
	return signer
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func record(name string, value int) ledger.Record {
	x := &note1{name, value}
	b, _ := json.Marshal(x)
	return ledger.Record{Body: b, Event: x}
}

func (r *rig) config() ledger.Config[*tally] {
	return ledger.Config[*tally]{
		Open: func(ctx context.Context) (store.Store, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			st, err := sqlite.Open(ctx, r.dir)
			if err != nil {
				return nil, err
			}
			r.faulty = storetest.NewFaulty(st, r.next...)
			r.next = nil
			return r.faulty, nil
		},
		New:     func() *tally { return &tally{last: make(map[string]int)} },
		Restore: restore, Confirm: func(uint64, []byte) func(*tally) bool { return func(*tally) bool { return true } },
		Origin: func(*tally) string { return origin },
		Now:    func() time.Time { return time.Now().Add(time.Duration(r.now.Load())) },
		Boot:   func() time.Duration { return time.Duration(time.Now().UnixNano() + r.boot.Load()) },
		Limits: r.limits,
	}
}

func restore(b []byte) (*tally, error) {
	s := &tally{last: make(map[string]int)}
	var x struct {
		N    uint64
		Last map[string]int
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, err
	}
	s.n, s.last = x.N, x.Last
	return s, nil
}

func (r *rig) start() *ledger.Log[*tally] {
	r.t.Helper()
	must(r.t, r.tryStart())
	return r.log
}

func (r *rig) tryStart() error { return r.tryStartSigning(signerOf(r.t, r.skey)) }

func (r *rig) tryStartSigning(signer note.Signer) error {
	log, err := ledger.Load(r.t.Context(), r.config())
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(r.vkey)
	must(r.t, err)
	if err := log.Start([]note.Signer{signer}, []note.Verifier{verifier}); err != nil {
		must(r.t, log.Store().Close())
		return err
	}
	r.log = log
	r.t.Cleanup(func() { _ = log.Close() })
	return nil
}

func (r *rig) plan(f storetest.Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faulty.Plan(f)
}

// add commits one entry and returns the value that the name had before.
func add(l *ledger.Log[*tally], name string, value int) (int, *ledger.Proof, error) {
	return ledger.Commit(context.Background(), l, func(s *tally, _ ledger.At) (ledger.Draft, int, error) {
		return ledger.Draft{Records: []ledger.Record{record(name, value)}}, s.last[name], nil
	})
}

func TestCommitIsLinear(t *testing.T) {
	r := newRig(t)
	l := r.start()
	const clients, each = 16, 50
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				// Each increments what it sees: lost updates would show in the sum.
				_, proof, err := ledger.Commit(t.Context(), l, func(s *tally, _ ledger.At) (ledger.Draft, struct{}, error) {
					return ledger.Draft{Records: []ledger.Record{record("sum", s.last["sum"]+1)}}, struct{}{}, nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				receipt, err := proof.Receipt()
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := verify.VerifyReceipt(receipt, r.vkey); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := l.State().last["sum"]; got != clients*each {
		t.Fatalf("sum %d, want %d", got, clients*each)
	}
	if b := l.Stats().Batches.Load(); b >= clients*each {
		t.Logf("no batching happened: %d batches", b)
	}
	must(t, l.Close())
	r.start()
	if got := r.log.State().last["sum"]; got != clients*each {
		t.Fatalf("after a restart: %d", got)
	}
}

// A proposal that fails takes nobody with it, however it fails.
func TestFailuresAreAlone(t *testing.T) {
	r := newRig(t)
	l := r.start()
	type result struct {
		name string
		err  error
	}
	decide := func(name string) func(*tally, ledger.At) (ledger.Draft, struct{}, error) {
		return func(_ *tally, at ledger.At) (ledger.Draft, struct{}, error) {
			d := ledger.Draft{Records: []ledger.Record{record(name, 1)}}
			switch name {
			case "error":
				return d, struct{}{}, problem.New(problem.ReasonConflict, "no")
			case "decide-panic":
				panic("in decide")
			case "huge":
				d.Records[0].Body = make([]byte, 40<<10)
			case "effect":
				return ledger.Draft{Shred: []uint64{1}}, struct{}{}, nil
			case "false-blob":
				d.Blobs = []store.Blob{{Data: []byte("x")}}
			case "foreign-seal":
				d.Seal = []store.Sealed{{ID: 1 << 40, Ciphertext: []byte("x"), WrappedKey: []byte("x")}}
			case "nameless-key":
				d.Keys = []store.Key{{Data: []byte("x")}}
			case "redacts-itself":
				d.Redact = []uint64{at.Index}
			case "flood":
				d.Records = slices.Repeat(d.Records, store.MaxEntries+1)
			case "good":
				d.Blobs = []store.Blob{{Digest: store.Digest(sha256.Sum256(nil))}} // an empty document
			}
			return d, struct{}{}, nil
		}
	}
	want := map[string]problem.Reason{
		"error": problem.ReasonConflict, "decide-panic": problem.ReasonInternal, "bad": problem.ReasonInternal, "panic": problem.ReasonInternal,
		"huge": problem.ReasonTooLarge, "effect": problem.ReasonInternal, "false-blob": problem.ReasonInternal,
		"foreign-seal": problem.ReasonInternal, "nameless-key": problem.ReasonInternal, "redacts-itself": problem.ReasonInternal,
		"flood": problem.ReasonTooLarge, "good": "",
	}
	results := make(chan result, 1000)
	var wg sync.WaitGroup
	for range 20 {
		for name := range want {
			wg.Go(func() {
				_, _, err := ledger.Commit(t.Context(), l, decide(name))
				results <- result{name, err}
			})
		}
	}
	wg.Wait()
	close(results)
	good := 0
	for x := range results {
		if want[x.name] == "" {
			must(t, x.err)
			good++
		} else if !problem.Is(x.err, want[x.name]) {
			t.Fatalf("%s: %v", x.name, x.err)
		}
	}
	if got := l.State().n; got != uint64(good+1) {
		t.Fatalf("%d entries for %d good proposals", got, good)
	}
	if n := l.Stats().Reloads.Load(); n != 0 {
		t.Fatalf("the store was opened again %d times", n)
	}
}

// Drafts that are together more than the store takes at once go into several batches.
func TestManyEntries(t *testing.T) {
	r := newRig(t)
	l := r.start()
	const clients, each = 12, 1000
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			_, _, err := ledger.Commit(t.Context(), l, func(*tally, ledger.At) (ledger.Draft, struct{}, error) {
				return ledger.Draft{Records: slices.Repeat([]ledger.Record{record("x", 1)}, each)}, struct{}{}, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := l.State().n; got != clients*each+1 || l.Stats().Reloads.Load() != 0 {
		t.Fatalf("%d entries, %d reloads", got, l.Stats().Reloads.Load())
	}
}

// The fault pairs: a write fails once without and once with effect. Whatever the caller was told
// holds after the log has reopened the store by itself, also if the disk still can't be written then.
func TestFaultPairs(t *testing.T) {
	for _, probe := range []*storetest.Fault{nil, {Op: storetest.OpPutCheckpoint, Call: 1, Full: true}, {Op: storetest.OpPutCheckpoint, Call: 1, Done: true}} {
		for _, f := range []storetest.Fault{{Done: false}, {Done: false, Full: true}, {Done: true, Unknown: true}, {Done: false, Unknown: true}} {
			t.Run(fmt.Sprintf("probe=%v done=%v unknown=%v full=%v", probe, f.Done, f.Unknown, f.Full), func(t *testing.T) {
				r := newRig(t)
				l := r.start()
				if _, _, err := add(l, "a", 1); err != nil {
					t.Fatal(err)
				}
				before := l.Checkpoint()
				f.Op, f.Call = storetest.OpAppend, 1
				if probe != nil {
					r.mu.Lock()
					r.next = []storetest.Fault{*probe}
					r.mu.Unlock()
				}
				r.plan(f)
				_, _, err := add(l, "a", 2)
				switch {
				case err == nil:
					t.Fatal("a failed write was acknowledged")
				case f.Unknown && !problem.Is(err, problem.ReasonUnknownOutcome):
					t.Fatalf("got %v", err)
				case f.Full && !problem.Is(err, problem.ReasonStoreFull):
					t.Fatalf("got %v", err)
				case !f.Unknown && !f.Full && !problem.Is(err, problem.ReasonStore):
					t.Fatalf("got %v", err)
				}
				seen := eventually(t, func() (int, error) {
					_, _, err := add(l, "b", 1)
					return l.State().last["a"], err
				})
				want := 1
				if f.Done {
					want = 2
				}
				if seen != want {
					t.Fatalf("a is %d after the reload, want %d", seen, want)
				}
				if bytes.Equal(before, l.Checkpoint()) {
					t.Fatal("the checkpoint stands still")
				}
				must(t, l.Close())
				r.start()
				if got := r.log.State().last["a"]; got != want {
					t.Fatalf("a is %d after a restart, want %d", got, want)
				}
				checkTree(t, r.log)
			})
		}
	}
}

// eventually retries what is unavailable, as a client would, until it works.
func eventually[T any](t *testing.T, try func() (T, error)) T {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		v, err := try()
		if err == nil {
			return v
		}
		if k := problem.KindOf(err); k != problem.Unavailable && k != problem.UnknownOutcome {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("still failing: %v", err)
		}
		wait := time.NewTimer(5 * time.Millisecond)
		<-wait.C
	}
}

// checkTree compares every leaf and the whole tree with the entries, and a proof between two sizes.
func checkTree(t *testing.T, l *ledger.Log[*tally]) {
	t.Helper()
	n, err := l.VerifySlice(t.Context(), 0, int(l.Size()), func(uint64, store.Entry) error { return nil })
	must(t, err)
	if uint64(n) != l.Size() {
		t.Fatalf("%d of %d entries", n, l.Size())
	}
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(ix []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(ix))
		for i, x := range ix {
			out[i] = hashes[x]
		}
		return out, nil
	})
	roots := make([]tlog.Hash, l.Size()+1)
	must(t, l.Entries(t.Context(), 0, int(l.Size()), func(i uint64, e store.Entry) error {
		leaf := verify.LeafCommitment([16]byte(e.Salt), e.Body)
		h, err := tlog.StoredHashes(int64(i), leaf[:], reader)
		must(t, err)
		hashes = append(hashes, h...)
		roots[i+1], err = tlog.TreeHash(int64(i)+1, reader)
		return err
	}))
	cp, err := verify.ParseCheckpoint(string(bytes.SplitAfterN(l.Checkpoint(), []byte("\n\n"), 2)[0][:bytes.Index(l.Checkpoint(), []byte("\n\n"))+1]))
	must(t, err)
	if cp.Root != roots[cp.Size] {
		t.Fatal("the checkpoint's root is not the tree's")
	}
	for old := uint64(1); old <= l.Size(); old++ {
		proof, size, err := l.Consistency(t.Context(), old, 0)
		must(t, err)
		must(t, tlog.CheckTree(proof, int64(size), roots[size], int64(old), roots[old]))
		receipt, err := l.Receipt(t.Context(), old-1)
		must(t, err)
		if _, err := verify.ParseReceipt(receipt); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullQueueRefusesAtOnce(t *testing.T) {
	r := newRig(t)
	r.limits.Queue = 4
	l := r.start()
	block, in := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := ledger.Commit(t.Context(), l, func(*tally, ledger.At) (ledger.Draft, int, error) {
			close(in)
			<-block
			return ledger.Draft{}, 0, nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-in
	refused := 0
	var mu sync.Mutex
	begun := make(chan struct{}, 20)
	for range 20 {
		wg.Go(func() {
			begun <- struct{}{}
			_, _, err := add(l, "x", 1)
			mu.Lock()
			defer mu.Unlock()
			if problem.Is(err, problem.ReasonOverloaded) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	for range 20 {
		<-begun
	}
	for l.QueueLength() < 4 {
		<-time.After(time.Millisecond)
	}
	// A caller who gives up while waiting leaves the queue without an effect.
	close(block)
	wg.Wait()
	if refused == 0 || uint64(21-refused) != l.State().n {
		t.Fatalf("%d refused, %d entries", refused, l.State().n)
	}
}

func TestGivingUp(t *testing.T) {
	r := newRig(t)
	l := r.start()
	block, in := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, _, err := ledger.Commit(context.Background(), l, func(*tally, ledger.At) (ledger.Draft, int, error) {
			close(in)
			<-block
			return ledger.Draft{}, 0, nil
		})
		done <- err
	}()
	<-in
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, _, err := ledger.Commit(ctx, l, func(*tally, ledger.At) (ledger.Draft, int, error) {
			return ledger.Draft{Records: []ledger.Record{record("ghost", 1)}}, 0, nil
		})
		gone <- err
	}()
	for l.QueueLength() == 0 {
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-gone; !problem.Is(err, problem.ReasonCanceled) {
		t.Fatalf("got %v", err)
	}
	close(block)
	must(t, <-done)
	if _, _, err := add(l, "after", 1); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.State().last["ghost"]; ok {
		t.Fatal("an abandoned proposal had an effect")
	}
}

// A proposal that reaches the queue when the committer has ended is answered, though its caller would wait for ever.
func TestCommitAfterTheEnd(t *testing.T) {
	r := newRig(t)
	l := r.start()
	must(t, l.Close())
	done := make(chan error, 1)
	go func() {
		done <- ledger.CommitLate(context.Background(), l, func(*tally, ledger.At) (ledger.Draft, error) {
			t.Error("it was decided")
			return ledger.Draft{}, nil
		})
	}()
	select {
	case err := <-done:
		if !problem.Is(err, problem.ReasonStopping) {
			t.Fatalf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it hangs")
	}
}

func TestClock(t *testing.T) {
	r := newRig(t)
	l := r.start()
	first, _, err := ledger.Commit(t.Context(), l, func(_ *tally, at ledger.At) (ledger.Draft, time.Time, error) {
		return ledger.Draft{Records: []ledger.Record{record("t", 1)}}, at.Time, nil
	})
	must(t, err)
	at := func() (time.Time, error) {
		when, _, err := ledger.Commit(t.Context(), l, func(_ *tally, at ledger.At) (ledger.Draft, time.Time, error) {
			return ledger.Draft{Records: []ledger.Record{record("t", 1)}}, at.Time, nil
		})
		return when, err
	}
	r.now.Store(int64(-20 * time.Second)) // within the allowance: time stands still
	back, err := at()
	must(t, err)
	if back.Before(first) {
		t.Fatalf("time ran backwards: %s after %s", back, first)
	}
	r.now.Store(int64(time.Hour))
	if _, err := at(); !problem.Is(err, problem.ReasonClock) {
		t.Fatalf("a jump forward: %v", err)
	}
	if err := l.Ready(); !problem.Is(err, problem.ReasonClock) {
		t.Fatalf("ready: %v", err)
	}
	r.now.Store(0)
	if _, err := at(); err != nil {
		t.Fatalf("when it is over: %v", err)
	}
	// Suspended for an hour: wall and boot clock agree, so that is no jump.
	r.now.Store(int64(time.Hour))
	r.boot.Store(int64(time.Hour))
	if _, err := at(); err != nil {
		t.Fatalf("after a suspension: %v", err)
	}
	must(t, l.Close())
	r.now.Store(0)
	r.boot.Store(0)
	must(t, r.tryStart())
	if _, _, err := add(r.log, "t", 1); !problem.Is(err, problem.ReasonClock) {
		t.Fatalf("the head is an hour ahead: %v", err)
	}
}

// How old a decision is does not depend on a wall clock that is put back, nor on what the ledger makes of it.
func TestAge(t *testing.T) {
	r := newRig(t)
	l := r.start()
	_, _, err := add(l, "t", 1)
	must(t, err)
	r.now.Store(int64(-20 * time.Second))
	_, proof, err := add(l, "t", 1)
	must(t, err)
	r.boot.Store(int64(7 * time.Second))
	r.now.Store(int64(-13 * time.Second))
	if age := proof.Age(); age < 7*time.Second || age > 17*time.Second {
		t.Errorf("seven seconds later it is %s old", age)
	}
}

func TestSnapshot(t *testing.T) {
	r := newRig(t)
	l := r.start()
	for i := range 100 {
		if _, _, err := add(l, fmt.Sprintf("k%d", i%7), i); err != nil {
			t.Fatal(err)
		}
	}
	s := l.State()
	b, err := json.Marshal(map[string]any{"N": s.n, "Last": s.last})
	must(t, err)
	must(t, l.SaveSnapshot(t.Context(), s.n-1, b))
	if _, _, err := add(l, "tail", 5); err != nil {
		t.Fatal(err)
	}
	must(t, l.Close())
	l = r.start()
	if got := l.State(); got.n != 102 || got.last["tail"] != 5 || got.last["k1"] != 99 {
		t.Fatalf("%+v", got)
	}
	// A snapshot that lies is only a cache: here it can't be read at all.
	must(t, l.SaveSnapshot(t.Context(), l.State().n-1, []byte("not JSON")))
	must(t, l.Close())
	if got := r.start().State(); got.n != 102 || got.last["tail"] != 5 {
		t.Fatalf("%+v", got)
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, clients := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			r := newRigB(b)
			body := record("x", 1)
			body.Body = append(bytes.Repeat([]byte(" "), 500), body.Body...)
			b.ReportAllocs()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ResetTimer()
			for range clients {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if _, _, err := ledger.Commit(context.Background(), r, func(*tally, ledger.At) (ledger.Draft, struct{}, error) {
							return ledger.Draft{Records: []ledger.Record{body}}, struct{}{}, nil
						}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(r.Stats().Entries.Load())/float64(max(1, r.Stats().Batches.Load())), "entries/batch")
		})
	}
}

func newRigB(b *testing.B) *ledger.Log[*tally] {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "data")
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	must(b, err)
	signers := []note.Signer{signerOf(b, skey)}
	verifier, err := note.NewVerifier(vkey)
	must(b, err)
	r := &rig{dir: dir}
	cfg := r.config()
	cfg.Open = func(ctx context.Context) (store.Store, error) { return sqlite.Open(ctx, dir) }
	st, err := sqlite.Create(context.Background(), dir)
	must(b, err)
	must(b, ledger.Create(context.Background(), st, ledger.Draft{Records: []ledger.Record{record("genesis", 0)}}, signers, cfg))
	must(b, st.Close())
	log, err := ledger.Load(context.Background(), cfg)
	must(b, err)
	must(b, log.Start(signers, []note.Verifier{verifier}))
	b.Cleanup(func() { _ = log.Close() })
	return log
}
