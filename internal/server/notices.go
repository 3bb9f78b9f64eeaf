package server

import (
	"context"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/notify"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// notifier tells of an environment's entries, once it runs.
func (s *Server) notifier(environment string) *notify.Notifier {
	n := s.cfg.Notify
	return notify.New(notify.Config{
		Mail: n.Mail, From: n.From, Allow: n.Networks(), Timeout: n.Timeout, Logger: s.logger.With("environment", environment),
		Counted: func(target, outcome string) { s.metrics.notices.WithLabelValues(environment, target, outcome).Inc() },
	})
}

// told is an environment as package notify asks about it.
type told struct{ env *control.Environment }

func (x told) About() notify.About {
	s := x.env.State()
	return notify.About{Environment: s.Env.Name, Genesis: s.Env.Genesis.String(), Change: s.Changes.Get}
}

func (x told) Targets() []policy.Notify {
	prog := x.env.Program()
	if prog == nil {
		return nil // it was read, and is kept while it is in force
	}
	return prog.Environment().Notify
}

func (x told) Entries(ctx context.Context, from, to uint64, fn func(uint64, *state.Entry)) error {
	return x.env.Ledger().Entries(ctx, from, int(to-from), func(index uint64, e store.Entry) error {
		entry, err := state.Decode(e.Body)
		if err != nil {
			return err
		}
		fn(index, entry)
		return nil
	})
}
