package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

const (
	trustName   = "trust.json"
	sessionName = "session.json"
)

func (a *app) envFile(env, name string) (string, error) {
	if a.flags.home == "" {
		return "", problem.New(problem.ReasonInvalid, "there is no home directory to keep sessions in").WithFix("set BAILMENT_HOME, or give --home")
	}
	if err := identity.ValidEnv(env); err != nil {
		return "", problem.Wrap(err, problem.ReasonInvalid, "the environment's name")
	}
	return filepath.Join(a.flags.home, env, name), nil
}

// pinned lists the environments that are pinned here.
func (a *app) pinned() []string {
	var out []string
	found, err := filepath.Glob(filepath.Join(a.flags.home, "*", trustName))
	if a.flags.home == "" || err != nil {
		return nil
	}
	for _, path := range found {
		if env := filepath.Base(filepath.Dir(path)); identity.ValidEnv(env) == nil {
			out = append(out, env)
		}
	}
	return out
}

// environment is the name of the one that is meant.
func (a *app) environment() (string, error) {
	if a.flags.bootstrap != "" {
		b, err := identity.ParseBootstrap(a.flags.bootstrap)
		if err != nil {
			return "", problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string").
				WithFix("copy it as `bailment init` printed it: bailment1:HOST:PORT/ENV#GENESIS")
		}
		if a.flags.env != "" && a.flags.env != b.Env {
			return "", problem.New(problem.ReasonWrongEnvironment, "the bootstrap string is of %s, but %s is asked for", b.Env, a.flags.env).
				WithFix("give one of --env and --bootstrap, or the string of that environment")
		}
		return b.Env, nil
	}
	if a.flags.env != "" {
		return a.flags.env, nil
	}
	switch all := a.pinned(); len(all) {
	case 1:
		return all[0], nil
	case 0:
		return "", problem.New(problem.ReasonInvalid, "no environment is pinned here yet").
			WithFix("give its bootstrap string with --bootstrap or BAILMENT_BOOTSTRAP; `bailment init` printed it")
	default:
		return "", problem.New(problem.ReasonInvalid, "several environments are pinned here: %s", strings.Join(all, ", ")).
			WithFix("say which with --env or BAILMENT_ENV")
	}
}

// knownTrust is what is pinned on this machine, without asking anybody; nil: nothing.
func (a *app) knownTrust() (*client.Trust, error) {
	env, err := a.environment()
	if err != nil {
		return nil, err
	}
	path, err := a.envFile(env, trustName)
	if err != nil {
		return nil, err
	}
	t, err := client.LoadTrust(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a.flags.bootstrap != "" {
		if t, err = t.Matches(a.flags.bootstrap); err != nil {
			return nil, err
		}
	}
	return a.at(t)
}

// at moves what is pinned to the address that is asked for. The address proves nothing, so it may change.
func (a *app) at(t *client.Trust) (*client.Trust, error) {
	if a.flags.addr == "" {
		return t, nil
	}
	host, port, err := net.SplitHostPort(a.flags.addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		return nil, problem.New(problem.ReasonInvalid, "the address %q is not HOST:PORT", a.flags.addr).WithFix("give --addr as host:8400")
	}
	b := identity.Bootstrap{Host: host, Port: uint16(n), Env: t.Environment, Genesis: t.Genesis}
	if err := b.Validate(); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the address")
	}
	return t.Matches(b.String())
}

// moved is a bootstrap string with the address that is asked for.
func (a *app) moved(bootstrap string) (string, error) {
	if a.flags.addr == "" {
		return bootstrap, nil
	}
	b, err := identity.ParseBootstrap(bootstrap)
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	t, err := a.at(&client.Trust{Environment: b.Env, Genesis: b.Genesis})
	if err != nil {
		return "", err
	}
	return t.BootstrapString(), nil
}

// trust is what is pinned of the environment; on first use it is found by the bootstrap string, and kept.
func (a *app) trust(ctx context.Context) (*client.Trust, error) {
	t, err := a.knownTrust()
	if t != nil || err != nil {
		return t, err
	}
	if a.flags.bootstrap == "" {
		return nil, problem.New(problem.ReasonInvalid, "the environment %s is not pinned here", a.flags.env).
			WithFix("give its bootstrap string once, with --bootstrap or BAILMENT_BOOTSTRAP")
	}
	asked, err := a.moved(a.flags.bootstrap)
	if err != nil {
		return nil, err
	}
	if t, err = client.Bootstrap(ctx, asked, client.Options{CallTimeout: a.flags.timeout}); err != nil {
		return nil, err
	}
	path, err := a.envFile(t.Environment, trustName)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, wrong(err, "keeping what is pinned")
	}
	if err := t.Save(path); err != nil {
		return nil, err
	}
	a.note("pinned %s (%s) as genesis %x", t.Environment, t.Class, t.Genesis)
	return t, nil
}

// session is the login that is kept here, if it is still good.
func (a *app) session(t *client.Trust) (*client.Session, error) {
	path, err := a.envFile(t.Environment, sessionName)
	if err != nil {
		return nil, err
	}
	s, err := client.LoadSession(path, t)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, problem.New(problem.ReasonNoSession, "there is no login for %s here", t.Environment).WithFix("log in with `bailment login PERSON`")
	case err != nil:
		return nil, err
	case !s.Live(time.Now()):
		return nil, problem.New(problem.ReasonSessionExpired, "the login as %s expired at %s", s.Path(), stamp(s.Expires)).WithFix("log in again with `bailment login PERSON`")
	}
	return s, nil
}

// conn is a connection with a login.
type conn struct {
	*client.Client
	trust   *client.Trust
	session *client.Session
}

// person is the name of the operator who is logged in.
func (c *conn) person() (string, error) {
	name, ok := strings.CutPrefix(c.session.Path(), identity.PrefixHuman)
	if !ok {
		return "", problem.New(problem.ReasonDuty, "%s is not a person", c.session.Path())
	}
	return name, nil
}

// dial connects without a login.
func (a *app) dial(ctx context.Context) (*client.Client, *client.Trust, error) {
	t, err := a.trust(ctx)
	if err != nil {
		return nil, nil, err
	}
	c, err := client.Dial(t, client.Options{CallTimeout: a.flags.timeout})
	return c, t, err
}

// connect connects with the login. Close it when done.
func (a *app) connect(ctx context.Context) (*conn, error) {
	t, err := a.trust(ctx)
	if err != nil {
		return nil, err
	}
	s, err := a.session(t)
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(t, client.Options{CallTimeout: a.flags.timeout, Credentials: s.Credentials()})
	if err != nil {
		return nil, err
	}
	return &conn{c, t, s}, nil
}

// call makes a command's function of one that needs a connection.
func (a *app) call(fn func(ctx context.Context, c *conn, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		return fn(cmd.Context(), c, args)
	}
}

// signer loads the person's SSH key. allowed are the keys listed for him, if they are known.
func (a *app) signer(ctx context.Context, allowed []ssh.PublicKey) (*sshsig.Signer, error) {
	s, err := sshsig.Load(ctx, a.flags.key, sshsig.Options{
		AgentSocket: a.getenv("SSH_AUTH_SOCK"), Passphrase: a.passphrase, Allowed: allowed,
	})
	if err != nil {
		return nil, coded{problem.Invalid.ExitCode(), err} // whatever it is, no server said it
	}
	return s, nil
}

func (a *app) passphrase(path string) ([]byte, error) {
	return a.hidden("passphrase of " + path + ": ")
}

// hidden asks on the terminal, without echo.
func (a *app) hidden(prompt string) ([]byte, error) {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, problem.New(problem.ReasonInvalid, "nobody can be asked: standard input is not a terminal").
			WithFix("run it on a terminal, use ssh-agent for keys, and a pipe or --file for values")
	}
	fmt.Fprint(a.err, prompt)
	defer fmt.Fprintln(a.err)
	b, err := term.ReadPassword(int(f.Fd()))
	if err != nil {
		return nil, wrong(err, "reading from the terminal")
	}
	return b, nil
}

// sign signs a text as a person would with ssh-keygen -Y sign.
func (a *app) sign(s *sshsig.Signer, namespace string, text []byte) (string, error) {
	if strings.Contains(s.PublicKey().Type(), "sk-") {
		a.note("touch the hardware key %s", sshsig.Fingerprint(s.PublicKey()))
	}
	out, err := sshsig.Sign(s, namespace, text)
	return string(out), err
}

// newKey is a fresh idempotency key: retries of one invocation have their effects once.
func newKey() string { return random(16) }

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // it never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b)
}
