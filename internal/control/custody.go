package control

import (
	"context"
	"errors"

	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// rootHolder is the root holder that the environment's keys are under: the one that the newest move names, or genesis.
func (e *Environment) rootHolder(s *state.State) string {
	if s.Custody.Moved != 0 {
		return s.Custody.Holder
	}
	return e.founded
}

// holder is the configured root holder that the keys are under in a state; see checkHolder.
func (e *Environment) holder(s *state.State) keyring.Holder {
	if next := e.cfg.Next; next != nil && custody.HolderOf(next).String() == e.rootHolder(s) {
		return next
	}
	return e.cfg.Holder
}

// spare is the configured root holder that the keys are not under; nil: there is none. After a move it is the one before.
func (e *Environment) spare(s *state.State) keyring.Holder {
	now := e.rootHolder(s)
	for _, h := range []keyring.Holder{e.cfg.Next, e.cfg.Holder} {
		if e.cfg.Next != nil && custody.HolderOf(h).String() != now {
			return h
		}
	}
	return nil
}

// checkHolder tells a wrong root key from damaged data, before anything is unwrapped.
func (e *Environment) checkHolder(s *state.State) error {
	want, have := e.rootHolder(s), custody.HolderOf(e.holder(s))
	if have.String() != want {
		if m := s.Custody.Moved; m != 0 {
			return problem.New(problem.ReasonRootHolder, "the keys of %s were moved to the root holder %s with entry %d, and this server has %s", s.Env.Name, want, m, have).
				WithFix("name that root key in `root_holders.%s` of the server's configuration; the one before opens nothing any more", s.Env.Name)
		}
		return problem.New(problem.ReasonRootHolder, "the keys of %s are under the root holder %s, and this server has %s", s.Env.Name, want, have).
			WithFix("name the root key that the environment was founded with in `root_holders.%s` of the server's configuration", s.Env.Name)
	}
	if s.Env.Class == string(policy.Production) && have.DevelopmentOnly {
		return problem.New(problem.ReasonDevelopmentOnly, "a root key of kind %s can't open a production environment", have.Kind)
	}
	return nil
}

// RootHolderOf is the public side of a root holder.
func RootHolderOf(h keyring.Holder) state.RootHolder { return custody.HolderOf(h) }

// RootHolders are, as KIND:ID, the root holder that the keys are under, and the other one that the server has, to which they can be
// moved, if there is one.
func (e *Environment) RootHolders() []string {
	s := e.log.State()
	out := []string{e.rootHolder(s)}
	if h := e.spare(s); h != nil {
		out = append(out, custody.HolderOf(h).String())
	}
	return out
}

// movable refuses to move the keys to another root holder than the one that this server has beside its own, which is what those who
// approve have seen; and where too few could approve it.
func (t *turn) movable(target string) error {
	if !state.ValidRootHolder(target) {
		return problem.New(problem.ReasonInvalid, "the target %s is not KIND:ID of a root holder", limitText(target))
	}
	if now := t.e.rootHolder(t.s); target == now {
		return problem.New(problem.ReasonConflict, "the keys are under the root holder %s", now)
	}
	spare := t.e.spare(t.s)
	switch {
	case spare == nil && t.e.cfg.Next != nil:
		return problem.New(problem.ReasonRootHolder, "what this server has beside its own root key is the same root key").
			WithFix("name another one in `root_holders.%s.next` of the server's configuration, and start the server again", t.s.Env.Name)
	case spare == nil:
		return problem.New(problem.ReasonRootHolder, "this server has no other root key to which the keys could be moved").
			WithFix("name it in `root_holders.%s.next` of the server's configuration, and start the server again", t.s.Env.Name)
	}
	other := custody.HolderOf(spare)
	switch need := t.prog.Environment().Needs(ActionMove); {
	case target != other.String():
		return problem.New(problem.ReasonRootHolder, "the root holder %s is not the one that this server has beside its own, %s", limitText(target), other).
			WithFix("name the right one in `root_holders.%s.next` of the server's configuration, or propose the one that is there", t.s.Env.Name)
	case other.DevelopmentOnly && t.s.Env.Class == string(policy.Production):
		return problem.New(problem.ReasonDevelopmentOnly, "a root key of kind %s is for the development class only", other.Kind)
	case !policy.Quorum(t.prog, ActionMove, func(policy.Operator) bool { return true }):
		return problem.New(problem.ReasonQuorum, "moving the keys of this environment takes %d persons with the duty %s besides the proposer, and there are not as many", need.Approvals, policy.DutyToApprove(ActionMove)).
			WithFix("bring a bundle into force that lists them")
	}
	return nil
}

// moved are the wrapped keys of a move that may be carried out.
type moved struct {
	by       *custody.Keys
	under    uint64 // the entry that put the keys where they are
	from, to state.RootHolder
	rows     []store.Key
	bad      error // why there are none: told when they are needed
}

// moving prepares a move within one request, and keeps rotations out until that is over.
type moving struct {
	e      *Environment
	change uint64
	inside bool // of moveMu
}

// prepare wraps the key-encryption keys under the root holder that the change is about, if they are all that a decision lacks: for whoever
// can't have them moved, nothing is asked of a root holder, and nobody waits.
func (m *moving) prepare(ctx context.Context, s *state.State, decide func(*turn) error) (*moved, error) {
	if !m.wanted(s, decide) {
		return nil, nil
	}
	if !m.inside {
		if err := m.e.moveMu.enter(ctx); err != nil {
			return nil, err
		}
		m.inside = true
		if s = m.e.log.State(); !m.wanted(s, decide) {
			return nil, nil // it was carried out meanwhile, say
		}
	}
	return m.e.wrapAll(ctx, s)
}

// wanted decides without the keys, and enters nothing.
func (m *moving) wanted(s *state.State, decide func(*turn) error) bool {
	e := m.e
	ch, ok := s.Changes.Get(m.change)
	prog, compiled := e.programs.get(s.Bundle)
	if !ok || ch.Action != ActionMove || !compiled {
		return false
	}
	now := e.cfg.Now()
	return errors.Is(decide(&turn{e: e, s: s, at: ledger.At{Index: s.Next, Time: now}, now: state.At(now), prog: prog}), errStale)
}

func (m *moving) end() {
	if m.inside {
		m.e.moveMu.leave()
	}
}

// wrapAll wraps the key-encryption keys under the other root holder.
func (e *Environment) wrapAll(ctx context.Context, s *state.State) (*moved, error) {
	to := e.spare(s)
	if to == nil {
		return nil, nil // movable says so
	}
	ctx, cancel := context.WithTimeout(ctx, holderTimeout)
	defer cancel()
	k, err := e.currentKeys(ctx, s)
	if err != nil {
		return nil, err
	}
	m := &moved{by: k, under: s.Custody.Moved, from: custody.HolderOf(e.holder(s)), to: custody.HolderOf(to)}
	m.rows, m.bad = e.vaultOf(to).Moved(ctx, k)
	return m, nil
}

// moveCustody enters that the keys are under another root holder. What they are wrapped as is replaced in the same write: whatever
// happens, a store has the ledger and the keys of one and the same holder.
func (t *turn) moveCustody(ch *state.Change, x *state.Session) error {
	if err := t.movable(ch.Target); err != nil {
		return err
	}
	m := t.custody
	switch {
	case m == nil:
		return errStale
	case m.bad != nil:
		return m.bad
	case m.by.Behind(t.s) || m.under != t.s.Custody.Moved || m.to.String() != ch.Target || len(m.rows) != t.s.KEKs():
		return errStale
	}
	_, err := t.enter(&state.CustodyMoved{
		From: m.from, To: m.to, Keys: len(m.rows), Digest: custody.DigestOf(m.rows), Change: ch.Index, Reason: limitText(ch.Reason),
		Actor: actorOf(x), Ruling: t.ruling(""),
	})
	t.draft.Keys = append(t.draft.Keys, m.rows...)
	return err
}
