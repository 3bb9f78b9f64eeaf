package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// replay reduces every entry anew, checks what it says of persons, bundles and keys, and decides it again.
func (r *run) replay(ctx context.Context) error {
	for r.state.Next < r.l.Size {
		from := r.state.Next
		limit := int(min(slice, r.l.Size-from))
		err := r.l.Entries(ctx, from, limit, func(index uint64, e store.Entry) error {
			if index != r.state.Next {
				return fault(r.state.Next, "it is missing")
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			return r.step(index, e)
		})
		if err != nil {
			return storeProblem(err, fmt.Sprintf("replaying entries from %d on", from))
		}
		if r.state.Next != from+uint64(limit) {
			return fault(r.state.Next, "it is missing")
		}
		r.progress("entries", r.state.Next)
	}
	if r.overtaken {
		return fault(r.state.Next-1, "a rollout was ended for another bundle, and none comes into force")
	}
	r.report.Generation, r.report.Bundle = r.state.Generation, r.state.Bundle
	return nil
}

// step checks and applies one entry.
func (r *run) step(index uint64, e store.Entry) error {
	if len(e.Commitment) > 0 {
		return fault(index, "it was redacted, so what follows can't be replayed")
	}
	entry, err := state.Decode(e.Body)
	if err != nil {
		return illegible(index, "", err)
	}
	if err := r.judge(index, entry.Time, entry.Event); err != nil {
		return blame(index, err)
	}
	if err := r.state.Apply(index, e.Body, entry); err != nil {
		return illegible(index, "it is not a legal step: ", err)
	}
	if err := r.settled(entry.Event); err != nil {
		return blame(index, err)
	}
	r.decide(index, entry)
	return r.checkClaims(index)
}

// blame says which entry an error is about, unless it already does.
func blame(index uint64, err error) error {
	var f *Fault
	if errors.As(err, &f) || problem.Is(err, problem.ReasonNotAuthentic) || problem.KindOf(err) == problem.Unavailable {
		return err
	}
	return illegible(index, "", err)
}

// text is an error without the prefix that the vocabulary gives it.
func text(err error) string {
	var p *problem.Problem
	if errors.As(err, &p) {
		return strings.Replace(err.Error(), p.Error(), p.Message, 1)
	}
	return err.Error()
}

// checkClaims compares the state after an entry with the roots that are claimed for it.
func (r *run) checkClaims(index uint64) error {
	claims := r.claims[index]
	if len(claims) == 0 {
		return nil
	}
	delete(r.claims, index)
	h := sha256.New()
	if err := r.state.Snapshot(h); err != nil {
		return problem.Wrap(err, problem.ReasonInternal, "writing the state after entry %d", index)
	}
	root := state.Digest(h.Sum(nil))
	for _, c := range claims {
		switch {
		case c.root == root:
			r.report.StateRoots++
		case c.snap:
			return fault(index, "the stored snapshot of the state after it is not what the entries amount to")
		default:
			return fault(c.at, "its state root is not that of the entries up to %d", index)
		}
	}
	return nil
}
