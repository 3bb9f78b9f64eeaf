package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/notify"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// RootKeyFile is where the root key of an environment is by default, in the environment's directory.
const RootKeyFile = "root.key"

// site is an environment that is served.
type site struct {
	env     *control.Environment
	source  *seal.Source
	logger  *slog.Logger
	current atomic.Pointer[tls.Certificate]
	rotate  chan struct{}
	notices *notify.Notifier
}

func sortedNames(m map[string]*site) []string { return slices.Sorted(maps.Keys(m)) }

// openSites opens every environment, or none.
func (s *Server) openSites(ctx context.Context) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		notices := s.notifier(name)
		env, err := s.openEnvironment(ctx, name, notices.Entered)
		if err != nil {
			return err
		}
		x := &site{env: env, source: s.source, logger: s.logger.With("environment", name), rotate: make(chan struct{}, 1), notices: notices}
		s.sites[name] = x
		if env.Name() != name {
			return problem.New(problem.ReasonWrongEnvironment, "the directory %s holds the environment %s", filepath.Join(s.cfg.Data, name), env.Name()).
				WithFix("give the directory the environment's name")
		}
		if _, err := x.renew(ctx); err != nil {
			return err
		}
	}
	return nil
}

// names are the environments to serve: those that the configuration lists, or those that are there.
func (s *Server) names() ([]string, error) {
	if len(s.cfg.Environments) > 0 {
		return s.cfg.Environments, nil
	}
	dirs, err := os.ReadDir(s.cfg.Data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, problem.Wrap(err, problem.ReasonPermissions, "reading the data directory").WithFix("run the server as the owner of %s", s.cfg.Data)
	}
	var names []string
	for _, d := range dirs {
		if d.IsDir() && identity.ValidEnv(d.Name()) == nil {
			names = append(names, d.Name())
		}
	}
	if len(names) == 0 {
		return nil, problem.New(problem.ReasonInvalid, "there is no environment in %s", s.cfg.Data).
			WithFix("make one with `bailment init`, or name another directory with `data`")
	}
	return names, nil
}

func (s *Server) openEnvironment(ctx context.Context, name string, entered func(uint64, *state.Entry)) (*control.Environment, error) {
	dir := filepath.Join(s.cfg.Data, name)
	// The store comes first: its errors are about the directory, and the root key's would be about a key
	// that nobody looks for in a directory that isn't there.
	first, err := s.openStore(ctx, dir)
	if err != nil {
		return nil, err
	}
	env, err := s.openOver(ctx, name, dir, entered, func(ctx context.Context) (store.Store, error) {
		if st := first; st != nil {
			first = nil
			return st, nil
		}
		return s.openStore(ctx, dir)
	})
	if err != nil && first != nil {
		err = errors.Join(err, first.Close())
	}
	return env, err
}

// openOver opens an environment over a way to open its store.
func (s *Server) openOver(ctx context.Context, name, dir string, entered func(uint64, *state.Entry), open func(context.Context) (store.Store, error)) (*control.Environment, error) {
	holder := s.cfg.RootHolders[name]
	if holder.Kind == "" {
		holder.Kind = file.Kind
	}
	if holder.Location == "" {
		holder.Location = filepath.Join(dir, RootKeyFile)
	}
	logger := s.logger.With("environment", name)
	roots, err := openHolders(ctx, holder, logger)
	if err != nil {
		if over := control.Ended(ctx, open); over != nil {
			return nil, over // then nobody needs its root key
		}
		return nil, err
	}
	env, err := control.Open(ctx, control.Config{
		OpenStore: open, Holder: roots.held, Next: roots.next, Source: s.source, Methods: methods.All(), Issuers: s.issuers, Logger: logger,
		Limits: ledger.Limits{Queue: s.cfg.Limits.Queue}, Now: s.o.Now, Boot: s.o.Boot, ServerID: s.cfg.ServerID, Silence: s.silence,
		Openings: control.Openings{PerSecond: s.cfg.Limits.IdentitySessions.PerSecond, Burst: s.cfg.Limits.IdentitySessions.Burst},
		Entered:  entered,
		OnViolation: func(invariant, detail string) {
			s.metrics.violated(invariant)
			logger.Error("an invariant was violated", "invariant", invariant, "detail", detail)
		},
	})
	if err != nil {
		return nil, roots.told(err)
	}
	if roots.next != nil && env.RootHolders()[0] == control.RootHolderOf(roots.next).String() {
		logger.Warn("the keys are under the next root key: write it in the place of the one before")
	}
	return env, nil
}

// openStore says in words what is wrong with a directory.
func (s *Server) openStore(ctx context.Context, dir string) (store.Store, error) {
	st, err := s.o.OpenStore(ctx, dir)
	switch {
	case err == nil:
		return st, nil
	case errors.Is(err, store.ErrLocked):
		return nil, problem.Wrap(err, problem.ReasonStore, "opening %s", dir).
			WithFix("another server has this directory open: stop it first, or give this one another data directory")
	case errors.Is(err, store.ErrNotFound):
		return nil, problem.Wrap(err, problem.ReasonNotFound, "opening %s", dir).
			WithFix("make the environment with `bailment init`, or take it out of `environments`")
	case errors.Is(err, store.ErrTooNew):
		return nil, problem.Wrap(err, problem.ReasonUnknownVersion, "opening %s", dir)
	case errors.Is(err, store.ErrCorrupt):
		return nil, problem.Wrap(err, problem.ReasonTampered, "opening %s", dir)
	case errors.Is(err, store.ErrFull):
		return nil, problem.Wrap(err, problem.ReasonStoreFull, "opening %s", dir)
	case errors.Is(err, fs.ErrPermission):
		return nil, problem.Wrap(err, problem.ReasonPermissions, "opening %s", dir)
	}
	return nil, problem.Wrap(err, problem.ReasonStore, "opening %s", dir)
}

// The server's own certificate.
const (
	certificateLife  = 24 * time.Hour
	certificateRetry = 10 * time.Second
)

// renew gets a certificate with a new key, and says when it ends.
func (x *site) renew(ctx context.Context) (time.Time, error) {
	key, err := seal.GenerateECDSA(x.source)
	if err != nil {
		return time.Time{}, err
	}
	chain, expires, err := x.env.ServerCertificate(ctx, key, certificateLife)
	if err != nil {
		return time.Time{}, problem.Wrap(err, problem.As(err).Reason, "getting the server's certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return time.Time{}, problem.Wrap(err, problem.ReasonInternal, "reading the server's certificate")
	}
	x.current.Store(&tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf})
	return expires, nil
}

// renewals renews at half of the certificate's life, and at once when the CA was rotated. While that
// fails, the present certificate stays and it tries again.
func (x *site) renewals(ctx context.Context) {
	wait := certificateLife / 2
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-x.rotate:
			timer.Stop()
		}
		if _, err := x.renew(ctx); err != nil {
			x.logger.Warn("renewing the server's certificate failed", "err", err, "expires", x.current.Load().Leaf.NotAfter)
			wait = certificateRetry
			continue
		}
		wait = certificateLife / 2
	}
}

// certificate is for each handshake.
func (x *site) certificate() (*tls.Certificate, error) { return x.current.Load(), nil }

func (x *site) rotated(kind string) {
	if kind != "ca" {
		return
	}
	select {
	case x.rotate <- struct{}{}:
	default: // one is waiting already
	}
}
