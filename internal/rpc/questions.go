package rpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// explanations says why.
type explanations struct{ *API }

func (s explanations) Explain(ctx context.Context, r *pb.ExplainRequest) (*pb.ExplainResponse, error) {
	c := callOf(ctx)
	ask := control.ExplainRequest{Identity: r.Identity, Node: r.Node, Action: policy.Action(r.Action), Secret: r.Secret, Purpose: r.Purpose, Change: r.Change, Past: r.At != nil, At: r.GetAt()}
	if r.Claims != nil {
		ask.Claims = r.Claims.AsMap()
	}
	x, err := c.conn.site.Env.Explain(ctx, c.conn.caller, ask)
	if err != nil {
		return nil, err
	}
	out := &pb.ExplainResponse{Allowed: x.Problem == nil, Grant: x.Decision.Grant, Generation: x.Generation, Bundle: x.Bundle.String(), Cohort: x.Cohort, Time: millis(x.Time)}
	if x.Decision.TTL > 0 {
		out.Ttl = durationpb.New(x.Decision.TTL)
	}
	if p := x.Problem; p != nil {
		out.Reason, out.Message, out.Fix = string(p.Reason), p.Message, p.WayOut()
	}
	for _, t := range x.Rules {
		out.Rules = append(out.Rules, &pb.RuleTrace{
			Grant: t.Grant, Effect: string(t.Effect), Where: fmt.Sprintf("%s:%d", t.Source.File, t.Source.Line), Matched: t.Applies, Why: whyOf(t),
		})
	}
	for _, k := range x.Checks {
		out.Checks = append(out.Checks, &pb.Check{Name: k.Name, Passed: k.Passed, Detail: k.Detail})
	}
	return out, nil
}

func whyOf(t policy.RuleTrace) string {
	if t.Why != "" || t.Failed == "" {
		return t.Why
	}
	return "the " + t.Failed + " does not fit"
}

// ledgers shows the ledger.
type ledgers struct{ *API }

func (s ledgers) GetCheckpoint(ctx context.Context, _ *pb.GetCheckpointRequest) (*pb.GetCheckpointResponse, error) {
	return &pb.GetCheckpointResponse{Checkpoint: string(callOf(ctx).conn.site.Env.Ledger().Checkpoint())}, nil
}

// Limits of one answer with entries.
const (
	maxEntries     = 1000
	maxEntryBytes  = 4 << 20
	defaultEntries = 100
)

func (s ledgers) GetEntries(ctx context.Context, r *pb.GetEntriesRequest) (*pb.GetEntriesResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if err := env.Inspect(c.conn.caller); err != nil {
		return nil, err
	}
	limit := int(r.Limit)
	if limit <= 0 {
		limit = defaultEntries
	}
	out := &pb.GetEntriesResponse{}
	_, err := copyEntries(ctx, env, r.From, min(limit, maxEntries), func(x *pb.LedgerEntry) error {
		out.Entries = append(out.Entries, x)
		return nil
	})
	out.Size = env.Ledger().Size()
	return out, err
}

// copyEntries passes on entries from index on, at most limit and about maxEntryBytes of them, and
// returns the index after the last.
func copyEntries(ctx context.Context, env *control.Environment, from uint64, limit int, fn func(*pb.LedgerEntry) error) (uint64, error) {
	size, next := 0, from
	full := fmt.Errorf("enough")
	err := env.Ledger().Entries(ctx, from, limit, func(index uint64, x store.Entry) error {
		if size > maxEntryBytes {
			return full
		}
		size += len(x.Body)
		next = index + 1
		return fn(&pb.LedgerEntry{
			Index: index, Salt: append([]byte(nil), x.Salt...), Body: append([]byte(nil), x.Body...), Commitment: append([]byte(nil), x.Commitment...),
		})
	})
	if err == nil || size > maxEntryBytes {
		return next, nil
	}
	if p := problem.As(err); p.Kind != problem.Internal || ctx.Err() != nil {
		return next, err
	}
	return next, problem.Wrap(err, problem.ReasonStore, "reading entries")
}

func (s ledgers) GetReceipt(ctx context.Context, r *pb.GetReceiptRequest) (*pb.GetReceiptResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if err := env.Inspect(c.conn.caller); err != nil {
		return nil, err
	}
	receipt, err := env.Ledger().Receipt(ctx, r.Index)
	if err != nil {
		return nil, err
	}
	return &pb.GetReceiptResponse{Receipt: receipt}, nil
}

// strangersProofs is how many proofs strangers have made at a time. Each is dozens of reads, and each read takes its turn at the
// store with the commits: the turns of more would be time that everybody waits.
const strangersProofs = 2

func (s ledgers) GetConsistency(ctx context.Context, r *pb.GetConsistencyRequest) (*pb.GetConsistencyResponse, error) {
	conn := callOf(ctx).conn
	if !conn.stands() {
		select {
		case s.proofs <- struct{}{}:
			defer func() { <-s.proofs }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	log := conn.site.Env.Ledger()
	checkpoint := log.Checkpoint()
	want := r.To
	if want == 0 {
		// The newest means that of the checkpoint in the same answer: the ledger may grow meanwhile.
		var err error
		if want, err = sizeOf(checkpoint); err != nil {
			return nil, err
		}
	}
	proof, to, err := log.Consistency(ctx, r.From, want)
	if err != nil {
		return nil, err
	}
	out := &pb.GetConsistencyResponse{To: to, Checkpoint: string(checkpoint)}
	for _, h := range proof {
		out.Proof = append(out.Proof, h[:])
	}
	return out, nil
}

// sizeOf reads the tree size off a checkpoint's second line (C2SP tlog-checkpoint).
func sizeOf(checkpoint []byte) (uint64, error) {
	_, rest, _ := strings.Cut(string(checkpoint), "\n")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		return 0, problem.Wrap(err, problem.ReasonInternal, "reading the checkpoint's size")
	}
	return n, nil
}

// Tail sends entries as they are committed. Who follows is judged again whenever there is news.
func (s ledgers) Tail(ctx context.Context, r *pb.TailRequest, out *connect.ServerStream[pb.LedgerEntry]) error {
	c := callOf(ctx)
	env := c.conn.site.Env
	if err := env.Inspect(c.conn.caller); err != nil {
		return err
	}
	if err := out.Send(nil); err != nil { // the header: that it waits is an answer, too
		return err
	}
	next := r.From
	for {
		for next < env.Ledger().Size() {
			var err error
			if next, err = copyEntries(ctx, env, next, maxEntries, out.Send); err != nil {
				return err
			}
			if err := env.Inspect(c.conn.caller); err != nil {
				return err
			}
		}
		if err := env.WaitForEntries(ctx, c.conn.caller, next); err != nil {
			return err
		}
	}
}

// keys shows, rotates and rewraps keys.
type keys struct{ *API }

func (s keys) ListKeys(ctx context.Context, _ *pb.ListKeysRequest) (*pb.ListKeysResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	all, err := env.ListKeys(ctx, c.conn.caller)
	if err != nil {
		return nil, err
	}
	out := &pb.ListKeysResponse{}
	for _, k := range all {
		info := &pb.KeyInfo{Name: k.Name, Current: k.Current, Entry: entry(env, k.Created), Thumbprint: thumbprintOf(k)}
		if k.Certificate != nil {
			info.NotAfter = stamp(k.Certificate.NotAfter)
		}
		out.Keys = append(out.Keys, info)
	}
	out.RootHolders = env.RootHolders()
	return out, nil
}

func (s keys) RotateKey(ctx context.Context, r *pb.RotateKeyRequest) (*pb.RotateKeyResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	name, proof, err := env.RotateKey(ctx, c.conn.caller, r.Kind)
	if err != nil {
		return nil, err
	}
	if c.conn.site.Rotated != nil {
		c.conn.site.Rotated(r.Kind)
	}
	return &pb.RotateKeyResponse{Name: name, Entry: proved(env, proof)}, nil
}

func (s keys) Rewrap(ctx context.Context, _ *pb.RewrapRequest, out *connect.ServerStream[pb.RewrapProgress]) error {
	c := callOf(ctx)
	return c.conn.site.Env.Rewrap(ctx, c.conn.caller, func(p control.RewrapProgress) error {
		return out.Send(&pb.RewrapProgress{Done: int64(p.Done), Total: int64(p.Total), Finished: p.Finished})
	})
}

// watches tells agents.
type watches struct{ *API }

func (s watches) Watch(ctx context.Context, r *pb.WatchRequest, out *connect.ServerStream[pb.WatchEvent]) error {
	c := callOf(ctx)
	return c.conn.site.Env.Watch(ctx, c.conn.caller, r.Since, func(n control.News) error {
		ev := &pb.WatchEvent{Control: n.Control, Generation: n.Generation, CaChain: n.CAChain, RevokedScopes: n.Scopes}
		if n.Dead != nil {
			ev.SessionDead, ev.Reason = true, string(n.Dead.Reason)
		}
		return out.Send(ev)
	})
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func millis(t state.Millis) *timestamppb.Timestamp {
	if t == 0 {
		return nil
	}
	return timestamppb.New(t.Time())
}

func entry(env *control.Environment, index uint64) *pb.EntryRef {
	return &pb.EntryRef{Epoch: env.State().Env.Epoch, Index: index}
}

// proved is where something was entered; nil if the answer repeats an earlier one without an entry.
func proved(env *control.Environment, p *ledger.Proof) *pb.EntryRef {
	if p == nil {
		return nil
	}
	return entry(env, p.Index)
}

func thumbprintOf(k control.KeyView) string {
	switch {
	case k.Certificate != nil:
		return digestText(k.Certificate.RawSubjectPublicKeyInfo)
	case len(k.Public) > 0:
		return digestText(k.Public)
	}
	return ""
}

func digestText(b []byte) string { return state.Digest(sha256.Sum256(b)).String() }
