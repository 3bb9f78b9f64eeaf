package ledger

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/store"
)

// A proposal is claimed once: by the committer, or by its caller who gave up before.
const (
	waiting int32 = iota
	claimed
	abandoned
)

type proposal[S any] struct {
	decide func(S, At) (Draft, error)
	state  atomic.Int32
	done   chan struct{}

	// Set by the committer before done is closed.
	err   error
	proof *Proof

	draft Draft
	first uint64
}

// Commit runs decide at the linearization point and, if it returns records, makes them durable
// before it returns. The result is what decide returned in the run that was committed.
//
// decide must be pure: it may use the state, its place, and what was prepared before. It must not
// keep the state. Its error is returned as it is, and nothing is written. A panic fails this
// proposal only.
//
// The proof is nil if nothing was written. Errors of the ledger itself are problems: overloaded,
// clock, store, unknown-outcome, stopping, canceled. A context that ends while the batch is being
// written gives unknown-outcome.
func Commit[S Machine[S], R any](ctx context.Context, l *Log[S], decide func(S, At) (Draft, R, error)) (R, *Proof, error) {
	var zero R
	result := new(R)
	p := &proposal[S]{done: make(chan struct{})}
	p.decide = func(s S, at At) (Draft, error) {
		d, r, err := decide(s, at)
		*result = r
		return d, err
	}
	if err := l.enqueue(p); err != nil {
		return zero, nil, err
	}
	if err := l.await(ctx, p); err != nil {
		return zero, nil, err
	}
	return *result, p.proof, nil
}

const graceForAnswer = time.Second

// await waits for the committer's answer, and for its end: a proposal may reach the queue just after the last one was
// taken from it.
func (l *Log[S]) await(ctx context.Context, p *proposal[S]) error {
	select {
	case <-p.done:
	case <-l.stopped:
		if p.state.CompareAndSwap(waiting, abandoned) {
			return problem.New(problem.ReasonStopping, "the ledger is closed")
		}
		<-p.done // what was claimed is answered before the committer ends
	case <-ctx.Done():
		if p.state.CompareAndSwap(waiting, abandoned) {
			return problem.Wrap(context.Cause(ctx), problem.ReasonCanceled, "waiting for the ledger")
		}
		// The committer has it. Its answer is a matter of one sync, so it is worth a moment: the
		// caller learns what happened instead of "unknown".
		select {
		case <-p.done:
		case <-time.After(graceForAnswer):
			return problem.Wrap(context.Cause(ctx), problem.ReasonUnknownOutcome, "waiting for the ledger")
		}
	}
	return p.err
}

func (l *Log[S]) enqueue(p *proposal[S]) error {
	if broken := l.broken.Load(); broken != nil {
		return broken
	}
	select {
	case <-l.stop:
		return problem.New(problem.ReasonStopping, "the ledger is closed")
	default:
	}
	select {
	case l.queue <- p:
		return nil
	default:
		l.stats.Refused.Add(1)
		return problem.New(problem.ReasonOverloaded, "%d requests are waiting already", cap(l.queue)).
			WithRetryAfter(time.Second)
	}
}

// run is the committer. While one batch is made durable the next one gathers in the queue, so
// batches are as large as the load asks for, and there is no timer on the way.
func (l *Log[S]) run() {
	defer close(l.stopped)
	for {
		select {
		case p := <-l.queue:
			l.letArrive()
			l.commitBatch(l.gather(p))
		case <-l.suspect:
			l.examine()
		case <-l.stop:
			l.drain()
			return
		}
	}
}

// examine opens the store again if it answers nothing more.
func (l *Log[S]) examine() {
	if _, err := l.published.Load().store.Head(context.Background()); errors.Is(err, store.ErrFatal) {
		l.reload(err, l.tree)
	}
}

// letArrive lets the requests that are ready to run come as far as the queue. A batch costs a
// signature, a transaction and a sync whatever its size, so on a busy machine it pays to let what is
// runnable run first; on an idle one this returns at once. It never waits for what isn't there.
func (l *Log[S]) letArrive() {
	for n := -1; n < len(l.queue) && len(l.queue) < l.cfg.Limits.Batch; {
		n = len(l.queue)
		runtime.Gosched()
	}
}

// gather takes what else waits, without waiting itself.
func (l *Log[S]) gather(first *proposal[S]) []*proposal[S] {
	batch := make([]*proposal[S], 0, min(len(l.queue)+1, l.cfg.Limits.Batch))
	for p := first; ; {
		if p.state.CompareAndSwap(waiting, claimed) {
			batch = append(batch, p)
		}
		if len(batch) == l.cfg.Limits.Batch {
			return batch
		}
		select {
		case p = <-l.queue:
		default:
			return batch
		}
	}
}

// drain finishes what was queued before Close, and closes the store.
func (l *Log[S]) drain() {
	for {
		select {
		case p := <-l.queue:
			l.commitBatch(l.gather(p))
			continue
		default:
		}
		break
	}
	l.lastErr = l.published.Load().store.Close()
}

// commitBatch is the critical section, told in order: take the time, decide each proposal against
// what the ones before it did, sign the tree that results, write everything in one transaction,
// publish, answer.
func (l *Log[S]) commitBatch(batch []*proposal[S]) {
	if len(batch) == 0 {
		return
	}
	if broken := l.broken.Load(); broken != nil {
		answerAll(batch, broken)
		return
	}
	l.decided = l.clock.boot()
	now, err := l.clock.now(l.tree.time)
	if err != nil {
		answerAll(batch, err)
		return
	}
	accepted, rest, out, err := l.decideAll(batch, now)
	if err != nil {
		answerAll(accepted, err)
	} else if len(out.Entries) > 0 {
		l.writeBatch(accepted, out)
	} else {
		answerAll(accepted, nil)
	}
	if len(rest) > 0 {
		l.commitBatch(rest) // each round takes at least one proposal
	}
}

// decideAll runs the decide functions in order on a fork of the state. What failed by itself is
// answered at once; the others are returned with the store batch that they make together, which the
// store has no reason to refuse. rest is what did not fit into the batch any more.
func (l *Log[S]) decideAll(batch []*proposal[S], now time.Time) (accepted, rest []*proposal[S], out *store.Batch, err error) {
	fork := l.work.Fork()
	out = &store.Batch{First: l.tree.size, Time: now, Entries: make([]store.Entry, 0, len(batch))}
	accepted = make([]*proposal[S], 0, len(batch))
	bytes := 0
	for i, p := range batch {
		if bytes > l.cfg.Limits.BatchBytes {
			rest = batch[i:]
			break
		}
		next := out.First + uint64(len(out.Entries))
		draft, err := l.decideOne(p, fork, At{Index: next, Time: now})
		if err == nil {
			err = checkEffects(draft, out.First, next)
		}
		if err != nil {
			p.answer(err)
			continue
		}
		if len(out.Entries)+len(draft.Records) > store.MaxEntries {
			rest = batch[i:]
			break
		}
		if err := applyAll(fork, next, draft.Records); err != nil {
			// The fork is spoilt by what was half applied. Throw it away and decide again without this
			// proposal: its decide function proposed an entry that its own reducer refuses.
			l.stats.Panics.Add(1)
			l.cfg.Logger.Error("an entry was proposed that can't be applied", "index", next, "err", err)
			p.answer(problem.Wrap(err, problem.ReasonInternal, "applying the proposed entry"))
			again := append(append([]*proposal[S](nil), accepted...), batch[i+1:]...)
			return l.decideAll(again, now)
		}
		p.draft, p.first = draft, next
		accepted = append(accepted, p)
		for _, r := range draft.Records {
			out.Entries = append(out.Entries, store.Entry{Body: r.Body})
			bytes += len(r.Body)
		}
		out.Blobs = append(out.Blobs, draft.Blobs...)
		out.Seal = append(out.Seal, draft.Seal...)
		out.Rewraps = append(out.Rewraps, draft.Rewraps...)
		out.Shred = append(out.Shred, draft.Shred...)
		out.Keys = append(out.Keys, draft.Keys...)
		out.Redact = append(out.Redact, draft.Redact...)
		out.Wipe = out.Wipe || draft.Wipe
	}
	if len(out.Entries) > 0 {
		if err := l.salt(out.Entries); err != nil {
			return accepted, rest, out, problem.Wrap(err, problem.ReasonEntropy, "salting entries")
		}
		l.pending = fork
	}
	return accepted, rest, out, nil
}

func (l *Log[S]) decideOne(p *proposal[S], s S, at At) (d Draft, err error) {
	defer func() {
		if r := recover(); r != nil {
			l.stats.Panics.Add(1)
			l.cfg.Logger.Error("a decide function panicked", "index", at.Index, "panic", fmt.Sprintf("%T", r), "stack", string(debug.Stack()))
			d, err = Draft{}, problem.New(problem.ReasonInternal, "deciding failed")
		}
	}()
	d, err = p.decide(s, at)
	if err != nil {
		return Draft{}, err
	}
	if len(d.Records) > store.MaxEntries {
		return Draft{}, problem.New(problem.ReasonTooLarge, "%d entries were proposed at once, of at most %d", len(d.Records), store.MaxEntries)
	}
	for _, r := range d.Records {
		if len(r.Body) == 0 || len(r.Body) > maxBody {
			return Draft{}, problem.New(problem.ReasonTooLarge, "an entry of %d bytes is outside 1 to %d", len(r.Body), maxBody)
		}
	}
	if len(d.Records) == 0 && len(d.Blobs)+len(d.Seal)+len(d.Rewraps)+len(d.Shred)+len(d.Keys)+len(d.Redact) > 0 || len(d.Records) == 0 && d.Wipe {
		return Draft{}, problem.New(problem.ReasonInternal, "an effect without an entry was proposed")
	}
	return d, nil
}

// checkEffects refuses by itself a draft that the store would refuse, and the whole batch with it. batch is the batch's
// first index, next the draft's.
func checkEffects(d Draft, batch, next uint64) error {
	alone := store.Batch{First: next, Blobs: d.Blobs, Seal: d.Seal, Rewraps: d.Rewraps, Shred: d.Shred, Keys: d.Keys}
	err := alone.CheckObjects(next + uint64(len(d.Records)))
	for _, i := range d.Redact {
		if i >= batch {
			err = errors.Join(err, fmt.Errorf("%w: redaction of %d, which is not in the store yet", store.ErrInvalid, i))
		}
	}
	if err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "checking the proposed effects")
	}
	return nil
}

// maxBody is the largest entry body in bytes (DESIGN §4).
const maxBody = 32 << 10

func applyAll[S Machine[S]](s S, first uint64, records []Record) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %T", r)
		}
	}()
	for i, r := range records {
		if err := s.Apply(first+uint64(i), r.Body, r.Event); err != nil {
			return err
		}
	}
	return nil
}

// writeBatch signs the batch's tree, makes both durable together, and answers. So the stored checkpoint always covers
// the head, and nobody who has no key can add to the end. The signature is in the transaction and nowhere else
// before the store says that it is on disk; nothing is published or answered before either.
func (l *Log[S]) writeBatch(accepted []*proposal[S], out *store.Batch) {
	grown := l.tree.extend(out)
	signed, err := l.sign(grown)
	if err != nil {
		l.cfg.Logger.Error("signing a checkpoint failed, so the batch is refused", "size", grown.size, "err", err)
		answerAll(accepted, problem.Wrap(err, problem.ReasonStore, "signing the checkpoint: nothing was written").
			WithFix("the server's checkpoint key can't sign: see the server's log"))
		return
	}
	out.Checkpoint = signed
	if earlyAck {
		l.publish(grown, signed)
		l.answerCommitted(accepted, grown)
	}
	if err := l.published.Load().store.Append(context.Background(), out); err != nil {
		invalid := errors.Is(err, store.ErrInvalid)
		if !invalid {
			l.broken.Store(closedFor(err)) // first: who was answered and comes back at once must not take the failed store for a good one
		}
		if !earlyAck {
			answerAll(accepted, l.commitProblem(err))
		}
		if invalid {
			l.cfg.Logger.Error("a batch was made that breaks the store's contract", "first", out.First, "err", err)
			return // nothing was touched, and the handle stays usable
		}
		l.reload(err, grown)
		return
	}
	l.stats.Batches.Add(1)
	l.stats.Entries.Add(uint64(len(out.Entries)))
	for i := range out.Entries {
		l.stats.BodySize.Add(uint64(len(out.Entries[i].Body)))
	}
	if !earlyAck {
		l.publish(grown, signed)
		l.answerCommitted(accepted, grown)
	}
}

// commitProblem is the caller's view of a failed write.
func (l *Log[S]) commitProblem(err error) *problem.Problem {
	reason := problem.ReasonStore
	switch {
	case errors.Is(err, store.ErrUnknown):
		reason = problem.ReasonUnknownOutcome
	case errors.Is(err, store.ErrFull):
		reason = problem.ReasonStoreFull
	case errors.Is(err, store.ErrInvalid):
		return problem.Wrap(err, problem.ReasonInternal, "writing to the store")
	}
	return problem.Wrap(err, reason, "writing to the store").WithRetryAfter(time.Second)
}

// publish makes the batch and its checkpoint visible to readers.
func (l *Log[S]) publish(grown *tree, signed []byte) {
	l.work, l.tree, l.signed = l.pending, grown, signed
	l.show(l.published.Load().store)
}

// show publishes a fork of the committer's state, which from then on is only read.
func (l *Log[S]) show(st store.Store) {
	shown := l.work.Fork()
	l.published.Store(&view[S]{state: shown, tree: l.tree, checkpoint: l.signed, store: st})
	if l.cfg.Published != nil {
		l.cfg.Published(shown)
	}
}

func (l *Log[S]) answerCommitted(accepted []*proposal[S], grown *tree) {
	for _, p := range accepted {
		if len(p.draft.Records) > 0 {
			if l.cfg.Committed != nil {
				l.cfg.Committed(p.first, p.draft.Records)
			}
			p.proof = &Proof{Index: p.first, Size: grown.size, Time: grown.time, Checkpoint: l.signed, tree: grown, decided: l.decided, boot: l.clock.boot}
		}
		p.answer(nil)
	}
}

func (p *proposal[S]) answer(err error) {
	p.err = err
	close(p.done)
}

func answerAll[S any](batch []*proposal[S], err error) {
	for _, p := range batch {
		p.answer(err)
	}
}
