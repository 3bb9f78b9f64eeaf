package ledger

import "context"

// CommitLate is a Commit that found the log open, and whose proposal reaches the queue only now.
func CommitLate[S Machine[S]](ctx context.Context, l *Log[S], decide func(S, At) (Draft, error)) error {
	p := &proposal[S]{decide: decide, done: make(chan struct{})}
	l.queue <- p
	return l.await(ctx, p)
}
