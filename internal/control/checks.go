package control

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// When and how much the background checks work. They never stop service: under load they lag, and catch up later.
const (
	checkEvery  = time.Second
	replayEvery = time.Hour
	checkSlice  = 128  // entries between two rests: some milliseconds
	restIdle    = 4    // rests are so many times as long as the work: a fifth of one core
	restBusy    = 19   // a twentieth, while entries arrive
	loudest     = 100  // violations of one invariant that are logged whole; all are counted
	keepRecent  = 8192 // entries kept for the checks, some MB; beyond it they are read back
	wakeRecent  = 1024 // entries after which the checks don't wait for their second
)

// checks are the running checks of the invariants (DESIGN §3): every entry is judged by package invariant, which knows nothing of
// this one. After a start all are read back from the store and proved to be those of the tree; what is entered from then on is
// judged as it was committed, because to read it back costs ten times what judging it costs. The hourly replay reads everything
// back.
type checks struct {
	recent    recent
	delivered atomic.Uint64 // values handed out since the start
	next      atomic.Uint64 // index of the first entry that was not checked yet
	replayed  atomic.Uint64 // entries of the last state that was compared with a replay
	found     atomic.Uint64 // violations since the start

	mu       sync.Mutex // one pass at a time
	checker  *invariant.Checker
	programs map[state.Digest]*policy.Program // of the entry about to be fed
	damaged  uint64                           // 1 + index of the damaged entry that was reported

	reportMu sync.Mutex
	by       map[invariant.Name]uint64
}

// CheckStatus says how far the background checks have come.
type CheckStatus struct {
	Checked    uint64 // entries
	Size       uint64 // of the ledger
	Replayed   uint64 // entries of the last state that was compared with a replay of everything; 0: not yet
	Violations uint64
}

// CheckStatus is how far the background checks have come.
func (e *Environment) CheckStatus() CheckStatus {
	return CheckStatus{Checked: e.checks.next.Load(), Size: e.log.Size(), Replayed: e.checks.replayed.Load(), Violations: e.checks.found.Load()}
}

func (e *Environment) startChecks() {
	c := &e.checks
	c.programs, c.by = make(map[state.Digest]*policy.Program), make(map[invariant.Name]uint64)
	c.checker = invariant.New(invariant.Options{
		Program: func(d state.Digest) *policy.Program { return c.programs[d] }, Genesis: e.genesis, CountFrom: e.log.Size(),
	})
	e.background.Go(func() { e.repeat(checkEvery, c.recent.wake, "checking the invariants", e.checkGently) })
	e.background.Go(func() { e.repeat(replayEvery, nil, "replaying the ledger", e.replayGently) })
}

// recent keeps the newest entries until the checks took them. The committer adds; one pass takes.
type recent struct {
	wake chan struct{} // holds one

	mu      sync.Mutex
	first   uint64 // index of entries[0], or of the next one
	entries []*state.Entry
}

// add takes a draft's records. What has no decoded event, or is too much, is left to be read back.
func (r *recent) add(first uint64, records []ledger.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if first != r.first+uint64(len(r.entries)) || len(r.entries)+len(records) > keepRecent {
		r.first, r.entries = first, nil
	}
	for i, x := range records {
		entry, ok := x.Event.(*state.Entry)
		if !ok {
			r.first, r.entries = first+uint64(i)+1, nil
			continue
		}
		r.entries = append(r.entries, entry)
	}
	if len(r.entries) >= wakeRecent {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// take gives the entries from the index on, and forgets them; none if that one is not here.
func (r *recent) take(from uint64) []*state.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from < r.first || from >= r.first+uint64(len(r.entries)) {
		return nil
	}
	out := r.entries[from-r.first:]
	r.first, r.entries = r.first+uint64(len(r.entries)), nil
	return out
}

// before is the index up to which entries must be read back.
func (r *recent) before() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.first
}

// repeat runs a job again and again, and when it is woken, until the environment is closed. An error is of the store or the context, and passes.
func (e *Environment) repeat(every time.Duration, wake <-chan struct{}, what string, job func(context.Context) error) {
	t := time.NewTimer(every)
	defer t.Stop()
	for {
		select {
		case <-e.run.Done():
			return
		case <-t.C:
		case <-wake:
		}
		if err := job(e.run); err != nil && e.run.Err() == nil {
			e.logger.Warn(what+" was interrupted", "err", err)
		}
		t.Reset(every)
	}
}

func (e *Environment) checkGently(ctx context.Context) error {
	_, err := e.check(ctx, e.rest)
	return err
}

func (e *Environment) replayGently(ctx context.Context) error {
	if e.log.State().Next == e.checks.replayed.Load() {
		return nil
	}
	_, err := e.replay(ctx, e.rest)
	return err
}

// rest yields after a slice, the longer the busier the ledger is.
func (e *Environment) rest(ctx context.Context, worked time.Duration, arrived uint64) {
	times := restIdle
	if arrived > 0 {
		times = restBusy
	}
	t := time.NewTimer(time.Duration(times) * worked)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func hurry(context.Context, time.Duration, uint64) {}

type resting func(ctx context.Context, worked time.Duration, arrived uint64)

// Check judges at once all entries that were not judged yet, and says what it found and how many entries have been judged. What it
// finds is reported like what the background finds.
func (e *Environment) Check(ctx context.Context) (next uint64, found []invariant.Violation, err error) {
	found, err = e.check(ctx, hurry)
	return e.checks.next.Load(), found, err
}

// Replay reduces the whole ledger at once and compares with the state in force and the entered state roots.
func (e *Environment) Replay(ctx context.Context) ([]invariant.Violation, error) {
	return e.replay(ctx, hurry)
}

func (e *Environment) check(ctx context.Context, rest resting) (found []invariant.Violation, err error) {
	c := &e.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	report := func(more ...invariant.Violation) {
		found = append(found, more...)
		e.report(more)
	}
	judge := func(index uint64, entry *state.Entry) error {
		if err := e.provide(ctx, entry.Event); err != nil {
			return err
		}
		report(c.checker.Feed(index, entry)...)
		c.next.Store(index + 1)
		return nil
	}
	// The counters first, then the size: so whatever was counted has its entry below the size.
	counts := invariant.Counts{Delivered: c.delivered.Load()}
	for sink, n := range e.cfg.Silence.Found() {
		counts.Leaked += n
		counts.Sinks += " " + string(sink)
	}
	for size := e.log.Size(); err == nil && c.checker.Next() < size; {
		from := c.checker.Next()
		entries := c.recent.take(from)
		for i := 0; i < len(entries) && err == nil; i++ {
			err = judge(from+uint64(i), entries[i])
		}
		if len(entries) > 0 {
			continue
		}
		to := size
		if kept := c.recent.before(); kept > from {
			to = min(to, kept)
		}
		err = e.readSlices(ctx, from, to, rest, func(index uint64, body []byte) error {
			entry, err := state.Decode(body)
			if err != nil {
				return problem.Wrap(err, problem.ReasonTampered, "entry %d", index)
			}
			return judge(index, entry)
		})
	}
	switch {
	case problem.Is(err, problem.ReasonTampered):
		// What comes after a damaged entry can't be judged, since it rests on it.
		if at := c.checker.Next() + 1; c.damaged != at {
			c.damaged = at
			report(invariant.Violation{Invariant: invariant.Replayable, Index: at - 1, Detail: problem.As(err).Error()})
		}
		return found, nil
	case err != nil:
		return found, err
	}
	report(c.checker.CheckCounts(counts)...)
	return found, nil
}

// provide compiles the bundle that an entry brings into force, before the checker asks for it: a store that fails just
// now is no violation. The cache of programs in use is left alone.
func (e *Environment) provide(ctx context.Context, ev state.Event) error {
	var manifest state.Digest
	switch ev := ev.(type) {
	case *state.Genesis:
		manifest = ev.Manifest
	case *state.BundleInForce:
		manifest = ev.Manifest
	case *state.RolloutMoved:
		if ev.Step != 0 {
			return nil
		}
		manifest = ev.Manifest
	default:
		return nil
	}
	clear(e.checks.programs)
	prog, ok := e.programs.get(manifest)
	if !ok {
		var err error
		if prog, err = e.compile(ctx, manifest); err != nil {
			if problem.Is(err, problem.ReasonStore) || ctx.Err() != nil {
				return err
			}
			return nil // the checker says that it can't be had
		}
	}
	e.checks.programs[manifest] = prog
	return nil
}

// readSlices reads entries back in slices, proves that they are those of the tree in force, and rests after each slice.
func (e *Environment) readSlices(ctx context.Context, from, to uint64, rest resting, fn func(index uint64, body []byte) error) error {
	for from < to {
		begin, size := time.Now(), e.log.Size()
		n, err := e.log.VerifySlice(ctx, from, int(min(checkSlice, to-from)), func(index uint64, x store.Entry) error {
			if len(x.Commitment) > 0 {
				return problem.New(problem.ReasonUnsupported, "entry %d is redacted, and what rests on it can't be judged", index)
			}
			return fn(index, x.Body)
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return problem.New(problem.ReasonTampered, "entry %d is missing", from)
		}
		from += uint64(n)
		rest(ctx, time.Since(begin), e.log.Size()-size)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (e *Environment) replay(ctx context.Context, rest resting) (found []invariant.Violation, err error) {
	if _, err := e.check(ctx, rest); err != nil { // finds the state roots
		return nil, err
	}
	e.checks.mu.Lock()
	roots := e.checks.checker.Roots()
	e.checks.mu.Unlock()
	inForce := e.log.State()
	r := invariant.NewReplayer(roots)
	err = e.readSlices(ctx, 0, inForce.Next, rest, func(index uint64, body []byte) error {
		found = append(found, r.Feed(index, body)...)
		return nil
	})
	if err != nil && !problem.Is(err, problem.ReasonTampered) {
		return found, err
	}
	if err != nil {
		found = append(found, invariant.Violation{Invariant: invariant.Replayable, Index: r.Next(), Detail: problem.As(err).Error()})
	} else {
		found = append(found, r.Compare(inForce)...)
	}
	e.report(found)
	if len(found) == 0 {
		e.checks.replayed.Store(inForce.Next)
	}
	return found, nil
}

// report counts, logs and passes on.
func (e *Environment) report(found []invariant.Violation) {
	c := &e.checks
	for _, v := range found {
		c.found.Add(1)
		c.reportMu.Lock()
		c.by[v.Invariant]++
		n := c.by[v.Invariant]
		c.reportMu.Unlock()
		if n <= loudest {
			e.logger.Error("an invariant is violated", "invariant", string(v.Invariant), "entry", v.Index, "detail", v.Detail, "nth", n)
		}
		if e.cfg.OnViolation != nil {
			e.cfg.OnViolation(string(v.Invariant), v.Detail)
		}
	}
}
