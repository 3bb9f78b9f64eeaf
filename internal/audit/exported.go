package audit

import (
	"fmt"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// exported checks that an export is what its change says, to who proposed it, within its day, and stopped by nothing since. Which versions it
// names the reducer checks, and what was denied is decided again by package invariant.
func (r *run) exported(at state.Millis, ev *state.SecretExported) error {
	if err := r.completed(at, ev.Change, policy.ActExport, func(c *state.Change) bool {
		return c.Target == ev.Secrets+"@"+ev.Recipient && c.Proposer == ev.Actor.Identity
	}); err != nil {
		return err
	}
	secrets, _, _ := state.ParseExportTarget(ev.Secrets + "@" + ev.Recipient)
	all, _ := r.state.Exportable(secrets, at)
	for _, v := range all {
		x := state.Subject{Identity: ev.Actor.Identity, Secret: v.Secret, Own: ev.Change, Root: ev.Change}
		if !r.state.Stands([]state.Subject{x}, at) {
			return fmt.Errorf("%s was cut off or held since change %d was proposed", v.Secret, ev.Change)
		}
	}
	return nil
}
