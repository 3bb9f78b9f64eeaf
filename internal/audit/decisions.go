package audit

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Decisions are what the grants were asked and answered since a time, as the entries have it, for policy.Again: reads, writes, moves and
// renewals, and refusals that were entered whole (those beyond 60 a minute of one identity are only summed). It reads all entries, since
// what was proved stands in earlier ones. Nothing is verified here: that is Run's.
func Decisions(ctx context.Context, l Ledger, since time.Time) iter.Seq2[policy.Recorded, error] {
	return func(yield func(policy.Recorded, error) bool) {
		checker, stopped := invariant.New(invariant.Options{Incomplete: true}), false
		each := func(index uint64, e store.Entry) error {
			if stopped {
				return nil
			}
			if len(e.Commitment) > 0 {
				return fault(index, "it was redacted, so what follows can't be decided again")
			}
			entry, err := state.Decode(e.Body)
			if err != nil {
				return fault(index, "%s", text(err))
			}
			if !entry.Time.Time().Before(since) {
				if asked, ok := checker.Asked(index, entry); ok && !yield(asked, nil) {
					stopped = true
					return nil
				}
			}
			checker.Feed(index, entry)
			return nil
		}
		for next := uint64(0); next < l.Size && !stopped; {
			limit := int(min(slice, l.Size-next))
			err := ctx.Err()
			if err == nil {
				err = l.Entries(ctx, next, limit, each)
			}
			if err == nil && !stopped && checker.Next() == next {
				err = fault(next, "it is missing")
			}
			if err != nil {
				yield(policy.Recorded{}, storeProblem(err, fmt.Sprintf("reading entries from %d on", next)))
				return
			}
			next = checker.Next()
		}
	}
}
