package audit

import (
	"fmt"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// custodyMoved checks that the keys were moved by an approved change about the root holder that they went to, from the one that they
// were under: what the newest move before says, or genesis.
func (r *run) custodyMoved(at state.Millis, ev *state.CustodyMoved) error {
	was := r.state.Custody.Holder
	if r.state.Custody.Moved == 0 {
		was = r.document.RootHolder
	}
	if ev.From.String() != was {
		return fmt.Errorf("it moves the keys from %s, and they are under %s", ev.From, was)
	}
	return r.completed(at, ev.Change, policy.ActMoveCustody, func(c *state.Change) bool { return c.Target == ev.To.String() })
}
