package control

import (
	"maps"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// usedBefore refuses to forget what was never used.
func (t *turn) usedBefore(use string) error {
	if !t.s.Uses.Has(use) {
		return problem.New(problem.ReasonNotFound, "no evidence was used as %s", limitText(use)).
			WithFix("the refusal instance-seen names it; `bailment node show` does too")
	}
	return nil
}

// ending is an identity that is about to be decommissioned, and what is left of it.
type ending struct {
	scope   state.Scope
	cutoff  uint64
	rotate  []string
	horizon state.Millis // 0: all that it had is over
}

// endable says what is left of an identity that is to be ended for ever. The order is compulsory: first a cutoff and a hold, which stop all
// that it has and all that it might get; then this. So the statement can't be true one moment and false the next.
func (t *turn) endable(path string) (ending, error) {
	var out ending
	if err := identity.ValidPath(path); err != nil {
		return out, problem.Wrap(err, problem.ReasonInvalid, "the identity")
	}
	if strings.HasPrefix(path, identity.PrefixHuman) || strings.HasPrefix(path, identity.PrefixServer) {
		return out, problem.New(problem.ReasonInvalid, "%s is not decommissioned: persons leave by a bundle that does not list them, and servers when they stop", path)
	}
	if index, gone := t.s.Gone.Get(path); gone {
		return out, problem.New(problem.ReasonConflict, "%s was decommissioned by entry %d", path, index)
	}
	id, ok := t.s.Identities.Get(path)
	if !ok {
		return out, problem.New(problem.ReasonNotFound, "nothing is known of %s", path)
	}
	out.scope = state.Scope{Kind: state.ScopeIdentity, Value: path}
	if strings.HasPrefix(path, identity.PrefixNode) {
		out.scope.Kind = state.ScopeNode
	}
	now := state.SubjectOf(&state.Session{Index: t.at.Index, Identity: path, Root: t.at.Index})
	held, ok := t.s.HoldOver(now, t.now)
	cut, _ := t.s.Cutoffs.Get(out.scope.String())
	if !ok || held.Until != 0 || cut <= id.Session {
		return out, problem.New(problem.ReasonLifecycle, "%s must be cut off and held first", path).
			WithFix("bailment revoke %s", out.scope)
	}
	out.cutoff = cut
	return out, t.nothingLeft(&out, path)
}

// nothingLeft looks through all that could be alive.
func (t *turn) nothingLeft(e *ending, path string) error {
	left := ""
	outlasts := func(end state.Millis) {
		if end > t.now {
			e.horizon = max(e.horizon, end)
		}
	}
	t.s.Sessions.All(func(_ uint64, x *state.Session) bool {
		if !e.scope.Covers(state.SubjectOf(x)) {
			return true
		}
		outlasts(x.Expires) // that of its SVID, and no token ends later
		if t.now < x.Expires && !x.Closed && t.s.Stands([]state.Subject{state.SubjectOf(x)}, t.now) {
			left = "a session of " + x.Identity
		}
		return left == ""
	})
	rotate := map[string]bool{}
	t.s.Leases.All(func(_ uint64, l *state.Lease) bool {
		if !e.scope.Covers(state.SubjectOfLease(l)) {
			return true
		}
		outlasts(l.Expires)
		if l.Live(t.now) && t.s.Stands([]state.Subject{state.SubjectOfLease(l)}, t.now) {
			left = "a lease on " + l.Secret
		}
		if len(rotate) < maxRotate {
			rotate[l.Secret] = true
		}
		return left == ""
	})
	t.s.Tokens.All(func(id string, tok *state.Token) bool {
		if tok.SpentBy.IsZero() && t.now < tok.Expires && t.namedBy(tok) == path {
			left = "the join token " + id
		}
		return left == ""
	})
	e.rotate = slices.Sorted(maps.Keys(rotate))
	if left != "" {
		return problem.New(problem.ReasonLifecycle, "something of %s is left: %s", path, left).WithFix("revoke it first, then approve")
	}
	return nil
}

// namedBy is the identity that a join token would give under the bundle in force.
func (t *turn) namedBy(tok *state.Token) string {
	if _, revoked := checkRevoked(t.s, state.SubjectOfToken(tok), t.now); revoked != nil {
		return ""
	}
	claims, err := policy.PrepareClaims(map[string]any{"name": tok.Name, "token": tok.ID})
	if err != nil {
		return ""
	}
	match, _ := t.prog.IdentifyNode(jointoken.Name, "", claims)
	// One that is cut off is dead, as it would be told when it is used. A hold on it is no end: it may be lifted.
	if _, _, dead := t.s.CutoffOver(madeAs(tok, match.Path)); dead {
		return ""
	}
	return match.Path
}

// wouldNameGone refuses a join token that, by the rules in force, could give nothing but an identity that was decommissioned: who makes
// it learns so now, and not the machine later. Attestation judges again.
func (t *turn) wouldNameGone(name, id string) error {
	if p := checkGone(t.s, t.namedBy(&state.Token{Name: name, ID: id, Created: t.at.Index})); p != nil {
		return p
	}
	return nil
}

// decommission carries an approved decommissioning out.
func (t *turn) decommission(ch *state.Change) error {
	e, err := t.endable(ch.Target)
	if err != nil {
		return err
	}
	_, err = t.enter(&state.IdentityDecommissioned{
		Identity: ch.Target, Cutoff: e.cutoff, Rotate: e.rotate, Horizon: e.horizon, Change: ch.Index, Ruling: t.ruling(""),
	})
	return err
}
