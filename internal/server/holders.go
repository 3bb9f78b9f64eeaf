package server

import (
	"context"
	"log/slog"

	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/keyring/holders"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// roots are the root keys of an environment that could be opened.
type roots struct {
	held, next keyring.Holder
	lacks      error // why another one could not
}

// openHolders opens an environment's root key, and the one that its keys may be moved to, or have been. Which of them is needed the ledger
// says, and the other may be gone: so one will do.
func openHolders(ctx context.Context, c config.RootHolder, logger *slog.Logger) (roots, error) {
	held, err := openHolder(ctx, c.Kind, c.Location)
	if c.Next.Location == "" {
		return roots{held: held}, err
	}
	next, lacks := openHolder(ctx, c.Next.Kind, c.Next.Location)
	switch {
	case err != nil && lacks != nil:
		p := problem.As(err)
		return roots{}, problem.Wrap(err, p.Reason, "neither root key can be opened; the next one: %s; the present one", problem.As(lacks).Message).WithFix("%s", p.WayOut())
	case err != nil:
		logger.Warn("there is only the next root key: write it in the place of the one before once the keys were moved to it", "err", err)
		return roots{held: next, lacks: err}, nil
	case lacks != nil:
		logger.Warn("the next root key can't be opened: no keys can be moved to it", "err", lacks)
		return roots{held: held, lacks: lacks}, nil
	}
	return roots{held: held, next: next}, nil
}

// told adds why a root key is missing to that the other one is not what is needed: that is what there is to mend.
func (r roots) told(err error) error {
	if r.lacks == nil || !problem.Is(err, problem.ReasonRootHolder) {
		return err
	}
	p := problem.As(r.lacks)
	return problem.New(p.Reason, "%s; and with the other root key alone: %s", p.Message, problem.As(err).Message).WithFix("%s", p.WayOut())
}

func openHolder(ctx context.Context, kind, location string) (keyring.Holder, error) {
	k, err := findHolder(kind)
	if err != nil {
		return nil, err
	}
	return k.Open(ctx, location)
}

func findHolder(kind string) (holders.Kind, error) {
	if kind == "" {
		kind = file.Kind
	}
	return holders.Lookup(kind)
}

// MakeRoot makes a new root key at a location, durable when it returns, to which an environment's keys can be moved. Reason exists if there
// is something.
func MakeRoot(ctx context.Context, kind, location string) (state.RootHolder, error) {
	k, err := findHolder(kind)
	if err != nil {
		return state.RootHolder{}, err
	}
	if location == "" {
		return state.RootHolder{}, problem.New(problem.ReasonInvalid, "a root key needs a location: %s", k.Location)
	}
	src, err := seal.NewSource(nil)
	if err != nil {
		return state.RootHolder{}, err
	}
	h, err := k.Create(ctx, location, src)
	if err != nil {
		return state.RootHolder{}, err
	}
	return control.RootHolderOf(h), nil
}

// ShowRoot says which root key there is at a location.
func ShowRoot(ctx context.Context, kind, location string) (state.RootHolder, error) {
	h, err := openHolder(ctx, kind, location)
	if err != nil {
		return state.RootHolder{}, err
	}
	return control.RootHolderOf(h), nil
}
