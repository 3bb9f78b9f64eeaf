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

// openHolders opens an environment's root key, and the one that its keys may be moved to, or have been: which of them it is the ledger
// says. Once they were, the one before may be gone: then the other one alone will do.
func openHolders(ctx context.Context, c config.RootHolder, logger *slog.Logger) (held, next keyring.Holder, err error) {
	if c.Next.Location != "" {
		if next, err = openHolder(ctx, c.Next.Kind, c.Next.Location); err != nil {
			return nil, nil, err
		}
	}
	if held, err = openHolder(ctx, c.Kind, c.Location); err == nil {
		return held, next, nil
	}
	if next == nil {
		return nil, nil, err
	}
	logger.Warn("there is only the next root key: write it in the place of the one before once the keys were moved to it", "err", err)
	return next, nil, nil
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
