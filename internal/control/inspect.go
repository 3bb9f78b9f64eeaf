package control

import (
	"context"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// Inspect says whether the caller may read the ledger's entries: an operator with the duty audit. A
// refusal is counted.
func (e *Environment) Inspect(c Caller) error {
	_, err := e.inspector(c)
	return err
}

func (e *Environment) inspector(c Caller) (*state.Session, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, err
	}
	prog, err := e.inForce(s)
	if err != nil {
		return nil, err
	}
	if _, p := dutyOf(prog, x, policy.DutyAudit); p != nil {
		return nil, e.unanswered(x, c, now, p)
	}
	return x, nil
}

// WaitForEntries returns when the ledger has more than `size` entries, or with the reason why the
// caller may not wait for them any longer.
func (e *Environment) WaitForEntries(ctx context.Context, c Caller, size uint64) error {
	x, err := e.inspector(c)
	if err != nil {
		return err
	}
	until, cancel := context.WithDeadline(ctx, x.Expires.Time())
	defer cancel()
	err = e.arrivals.wait(until, size)
	if err != nil && ctx.Err() == nil && until.Err() != nil {
		return e.Inspect(c) // says that the session expired
	}
	return err
}

// Probe goes through the door and does nothing there: nil says that the committer takes proposals and
// answers them.
func (e *Environment) Probe(ctx context.Context) error {
	_, _, err := ledger.Commit(ctx, e.log, func(*state.State, ledger.At) (ledger.Draft, struct{}, error) {
		return ledger.Draft{}, struct{}{}, nil
	})
	return err
}
