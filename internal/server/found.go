package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/keyring/holders"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// InitOptions are what a founding needs. Data, Files and Sign are required.
type InitOptions struct {
	Data   string       // the data directory
	Files  policy.Files // the founding bundle
	Holder config.RootHolder
	Now    func() time.Time
	// Sign has a founder sign the genesis document, and says who.
	Sign func(ctx context.Context, namespace, text string) (person, armored string, err error)
}

// Founded says what came to be.
type Founded struct {
	Name    string
	Class   string
	Genesis [32]byte
	Dir     string // the environment's directory
	RootKey string // location of the root key
}

const stagingPrefix = ".init-"

// Init founds an environment: DATA/ENV with its root key and its store, holding genesis. It is all there
// when Init returns, or nothing is: it is made in a directory of its own beside, which gets its name last.
// What an interrupted Init left behind, the next one removes. Reason exists if the environment is there
// already.
func Init(ctx context.Context, o InitOptions) (*Founded, error) {
	bundle, err := policy.Load(o.Files)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "reading the founding bundle")
	}
	prog, err := policy.Compile(bundle)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonBundleInvalid, "compiling the founding bundle")
	}
	env := prog.Environment()
	out := &Founded{Name: env.Name, Class: string(env.Class), Dir: filepath.Join(o.Data, env.Name)}
	if err := durable.MkdirAll(o.Data, 0o700); err != nil {
		return nil, problem.Local(err, "making the data directory").
			WithFix("name a directory that you may write to with --data, or run this as the user who will run the server")
	}
	unlock, err := lockData(o.Data)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := sweepStaging(o.Data); err != nil {
		return nil, err
	}
	if err := vacant(out.Dir); err != nil {
		return nil, err
	}
	staging := filepath.Join(o.Data, stagingPrefix+env.Name)
	if err := o.found(ctx, staging, out); err != nil {
		_ = os.RemoveAll(staging) // the next Init sweeps what stays
		return nil, err
	}
	if err := durable.Rename(staging, out.Dir); err != nil {
		return nil, problem.Local(err, "naming %s", out.Dir)
	}
	return out, nil
}

// lockData keeps a second Init in the same data directory out.
func lockData(data string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(data, ".init.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, problem.Local(err, "locking the data directory")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(problem.Wrap(err, problem.ReasonConflict, "locking the data directory").
			WithFix("another `bailment init` is at work there: wait for it"), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// sweepStaging removes what interrupted foundings left. Nobody else is founding: the lock is held. And nothing
// in there was ever in use, since it never got its name.
func sweepStaging(data string) error {
	dirs, err := os.ReadDir(data)
	if err != nil {
		return problem.Local(err, "reading the data directory")
	}
	for _, d := range dirs {
		if d.IsDir() && strings.HasPrefix(d.Name(), stagingPrefix) {
			if err := os.RemoveAll(filepath.Join(data, d.Name())); err != nil {
				return problem.Local(err, "removing what an interrupted init left")
			}
		}
	}
	return nil
}

// vacant refuses a directory that holds something.
func vacant(dir string) error {
	there, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(there) == 0:
		return nil
	case err != nil:
		return problem.Local(err, "looking at %s", dir)
	}
	return problem.New(problem.ReasonExists, "%s is not empty: an environment is founded once", dir).
		WithFix("start it with `bailment server`, or found another environment under another name")
}

// found makes everything in the staging directory.
func (o InitOptions) found(ctx context.Context, staging string, out *Founded) error {
	if err := durable.MkdirAll(staging, 0o700); err != nil {
		return problem.Local(err, "making %s", staging)
	}
	src, err := seal.NewSource(nil)
	if err != nil {
		return err
	}
	if o.Holder.Kind == "" {
		o.Holder.Kind = file.Kind
	}
	kind, err := holders.Lookup(o.Holder.Kind)
	if err != nil {
		return err
	}
	if kind.DevelopmentOnly && out.Class == string(policy.Production) {
		return problem.New(problem.ReasonDevelopmentOnly, "a root key of kind %s is for the development class only", kind.Name)
	}
	out.RootKey = o.Holder.Location
	location := out.RootKey
	if location == "" {
		out.RootKey, location = filepath.Join(out.Dir, RootKeyFile), filepath.Join(staging, RootKeyFile)
	}
	holder, err := kind.Create(ctx, location, src)
	if err != nil {
		return err
	}
	st, err := sqlite.Create(ctx, staging)
	if err != nil {
		return problem.Local(err, "making the store")
	}
	now := o.Now
	if now == nil {
		now = time.Now
	}
	genesis, err := control.Found(ctx, control.Founding{Files: o.Files, Holder: holder, Source: src, Store: st, Methods: methods.All(), Now: now, Sign: o.Sign})
	out.Genesis = genesis
	if err = errors.Join(err, st.Close()); err != nil {
		return fmt.Errorf("founding %s: %w", out.Name, err)
	}
	return nil
}
