package control

import (
	"context"
	"errors"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// ended is the refusal of everything once the environment has ended; nil: it goes on.
func ended(s *state.State) *problem.Problem {
	if s.Ended == 0 {
		return nil
	}
	return problem.New(problem.ReasonEnvironmentEnded, "the environment %s ended for ever with entry %d", s.Env.Name, s.Ended)
}

// Ended says why a store's environment can't be opened, if that is because it has ended; nil otherwise. It takes no root key, which whoever
// ends an environment does well to destroy.
func Ended(ctx context.Context, open func(context.Context) (store.Store, error)) error {
	log, err := ledger.Load(ctx, ledger.Config[*state.State]{
		Open: open, New: state.New, Restore: state.Restore, Confirm: confirmSnapshot, Origin: originOf,
	})
	if err != nil {
		return nil // whatever it is, it is told by who opens it
	}
	if p := ended(log.State()); p != nil {
		return errors.Join(p, log.Store().Close())
	}
	_ = log.Store().Close() // somebody else's error is told
	return nil
}

// deletable refuses to end another environment than this, or one with too few persons to approve it.
func (t *turn) deletable(target string) error {
	if want := state.EndTarget(t.s.Env.Name, t.s.Env.Genesis); target != want {
		return problem.New(problem.ReasonWrongEnvironment, "the target %s is not %s, this environment's name and genesis", limitText(target), want)
	}
	return t.attainable(ActionDelete, "ending this environment")
}

// endEnvironment enters the last entry. What was secret goes with it, in the same write: a store has either both or neither.
func (t *turn) endEnvironment(ch *state.Change, x *state.Session) error {
	if err := t.deletable(ch.Target); err != nil {
		return err
	}
	values, keys := t.s.Left()
	_, err := t.enter(&state.EnvironmentEnded{
		Environment: t.s.Env.Name, Genesis: t.s.Env.Genesis, Change: ch.Index, Reason: limitText(ch.Reason), Values: values, Keys: keys,
		Actor: actorOf(x), Ruling: t.ruling(""),
	})
	t.draft.Wipe = true
	return err
}
