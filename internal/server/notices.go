package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/durable"
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

func (x told) Next() uint64 { return x.env.State().Next }

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

// noticesFile is beside an environment's data. What is in it is no secret, and nothing depends on it but what is told twice: a copy of the
// data without it is whole.
const noticesFile = "notified"

// toldUntil keeps how far persons were told, for this one environment: of another's ledger an index means nothing.
type toldUntil struct{ path, genesis string }

func (s *Server) toldUntil(name string, env *control.Environment) toldUntil {
	return toldUntil{filepath.Join(s.cfg.Data, name, noticesFile), env.State().Env.Genesis.String()}
}

func (c toldUntil) Load() (uint64, bool) {
	text, err := os.ReadFile(c.path)
	if err != nil || len(text) > 200 {
		return 0, false
	}
	genesis, index, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), " ")
	next, err := strconv.ParseUint(index, 10, 64)
	return next, err == nil && genesis == c.genesis
}

func (c toldUntil) Save(next uint64) error {
	return durable.WriteFile(c.path, fmt.Appendf(nil, "%s %d\n", c.genesis, next), 0o600)
}
