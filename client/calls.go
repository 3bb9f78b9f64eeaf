package client

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"math/big"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/problem"
)

// safe are the calls that change nothing: asking twice is asking once. Each is named, so that a new
// call is not repeated until somebody thought about it.
var safe = map[string]bool{
	bailmentv1connect.EnvironmentServiceGetEnvironmentProcedure: true,
	bailmentv1connect.AttestationServiceChallengeProcedure:      true,
	bailmentv1connect.AttestationServiceListIdentitiesProcedure: true,
	bailmentv1connect.SecretServiceListProcedure:                true,
	bailmentv1connect.SecretServiceListLeasesProcedure:          true,
	bailmentv1connect.RevocationServiceListRevocationsProcedure: true,
	bailmentv1connect.ChangeServiceListChangesProcedure:         true,
	bailmentv1connect.ChangeServiceGetChangeProcedure:           true,
	bailmentv1connect.ChangeServiceGetBundleProcedure:           true,
	bailmentv1connect.ExplainServiceExplainProcedure:            true,
	bailmentv1connect.AccessServiceListUsesProcedure:            true,
	bailmentv1connect.AccessServiceListReviewedProcedure:        true,
	bailmentv1connect.BreakGlassServiceListGlassProcedure:        true,
	bailmentv1connect.LedgerServiceGetCheckpointProcedure:       true,
	bailmentv1connect.LedgerServiceGetEntriesProcedure:          true,
	bailmentv1connect.LedgerServiceGetReceiptProcedure:          true,
	bailmentv1connect.LedgerServiceGetConsistencyProcedure:      true,
	bailmentv1connect.LedgerServiceTailProcedure:                true,
	bailmentv1connect.KeyServiceListKeysProcedure:               true,
	bailmentv1connect.WatchServiceWatchProcedure:                true,
	bailmentv1connect.SpiffeServiceGetTrustBundlesProcedure:     true,
}

// keyed are the requests that carry an idempotency key: with one, a repetition has its effects once.
type keyed interface{ GetIdempotencyKey() string }

// Bounds of repetition.
const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 2 * time.Second
	maxWait      = 10 * time.Second // the longest Retry-After that is waited for inside of a call
)

// calls is the interceptor of every call: deadline, repetition where it is harmless, one vocabulary of errors.
type calls struct {
	timeout  time.Duration
	attempts int
}

func (k *calls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		procedure := req.Spec().Procedure
		ctx, cancel := context.WithTimeout(ctx, k.timeout)
		defer cancel()
		repeatable := safe[procedure]
		if r, ok := req.Any().(keyed); ok && r.GetIdempotencyKey() != "" {
			repeatable = true
		}
		for attempt := 1; ; attempt++ {
			var sent atomic.Bool
			traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
			res, err := next(traced, req)
			if err == nil {
				return res, nil
			}
			err = problemOf(ctx, err, call{procedure: procedure, safe: safe[procedure], sent: sent.Load()})
			wait, again := retryAfter(problem.As(err), attempt)
			if !again || !repeatable || attempt >= k.attempts || !sleep(ctx, wait) {
				return nil, err
			}
		}
	}
}

// retryAfter says whether a problem may be gone later, and when to look. Only what says that it will pass is tried
// again: a server that is not authentic won't become so.
func retryAfter(p *problem.Problem, attempt int) (time.Duration, bool) {
	switch p.Kind {
	case problem.Unavailable, problem.Limited, problem.UnknownOutcome:
	default:
		return 0, false
	}
	switch p.Reason {
	case problem.ReasonCanceled, problem.ReasonKeyLimit, problem.ReasonLimit, problem.ReasonStoreFull, problem.ReasonEntropy:
		return 0, false
	}
	if p.RetryAfter > maxWait {
		return 0, false
	}
	backoff := min(firstBackoff<<min(attempt-1, 10), maxBackoff)
	return p.RetryAfter + Jitter(backoff), true
}

// sleep reports whether the whole of d passed. It does not begin what the deadline can't see the end of.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Jitter is a random duration from d/2 to d, so that clients that failed together don't come back together.
func Jitter(d time.Duration) time.Duration {
	if d < 2 {
		return d
	}
	n, err := rand.Int(rand.Reader, big.NewInt(int64(d/2)+1))
	if err != nil {
		return d
	}
	return d/2 + time.Duration(n.Int64())
}

// WrapStreamingClient maps the errors of streams. They have no deadline: they end with their context, their
// session, or their connection, which TCP's keep-alive watches.
func (k *calls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &stream{StreamingClientConn: next(ctx, spec), ctx: ctx, call: call{procedure: spec.Procedure, safe: safe[spec.Procedure], sent: true, stream: true}}
	}
}

func (k *calls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type stream struct {
	connect.StreamingClientConn
	ctx  context.Context
	call call
}

func (s *stream) Receive(m any) error {
	err := s.StreamingClientConn.Receive(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return problemOf(s.ctx, err, s.call)
}

func (s *stream) Send(m any) error {
	err := s.StreamingClientConn.Send(m)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return problemOf(s.ctx, err, s.call)
}
