package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

func (a *app) loginCommand() *cobra.Command {
	return &cobra.Command{
		Use: "login PERSON", Short: "Log in as an operator by signing a challenge with an SSH key", Args: cobra.ExactArgs(1),
		Long: `Logs an operator in: the server's challenge is put into a text that names environment,
genesis, epoch, person and session key, and the text is signed with one of the person's SSH
keys, from a file, ssh-agent or hardware. There is no password. The session is kept in the
home directory, readable by its owner only, and is short.

On first use the environment is found by its bootstrap string, and pinned.`,
		Example: "  bailment login alice --ssh-key ~/.ssh/id_ed25519 --bootstrap bailment1:…\n  bailment login alice -i SHA256:…",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.login(cmd.Context(), args[0]) },
	}
}

type sessionView struct {
	Environment string    `json:"environment"`
	Identity    string    `json:"identity"`
	Assurance   string    `json:"assurance"`
	Expires     time.Time `json:"expires"`
	Entry       uint64    `json:"entry"`
}

func (a *app) login(ctx context.Context, person string) error {
	if err := policy.ValidPerson(person); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the person's name")
	}
	c, t, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	signer, err := a.signer(ctx, nil)
	if err != nil {
		return err
	}
	defer signer.Close()
	s, err := c.Login(ctx, person, func(namespace string, text []byte) (string, error) {
		a.note("signing a login to %s as %s with %s (%s)", t.Environment, person, sshsig.Fingerprint(signer.PublicKey()), signer.Source)
		return a.sign(signer, namespace, text)
	})
	if err != nil {
		return err
	}
	path, err := a.envFile(t.Environment, sessionName)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return wrong(err, "keeping the session")
	}
	if err := s.Save(path); err != nil {
		return err
	}
	if err := a.refresh(ctx, c, t); err != nil {
		a.note("what is pinned was not brought up to date: %s", asProblem(err).Message)
	}
	return a.show(sessionView{t.Environment, s.Path(), s.Assurance, s.Expires.UTC(), s.Index}, func(r *rows) {
		r.line("logged in to %s as %s until %s (entry %d)", t.Environment, s.Path(), stamp(s.Expires), s.Index)
	})
}

// refresh keeps the checkpoint keys that were added since the environment was pinned, so that receipts under them
// verify offline. The genesis that they are told under is the pinned one.
func (a *app) refresh(ctx context.Context, c *client.Client, t *client.Trust) error {
	e, err := c.Environment.GetEnvironment(ctx, &v1.GetEnvironmentRequest{})
	if err != nil || slices.Equal(e.CheckpointKeys, t.CheckpointKeys) {
		return err
	}
	fresh, err := client.Bootstrap(ctx, t.BootstrapString(), client.Options{CallTimeout: a.flags.timeout})
	if err != nil {
		return err
	}
	path, err := a.envFile(t.Environment, trustName)
	if err != nil {
		return err
	}
	return fresh.Save(path)
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End the login and forget it", Args: cobra.NoArgs,
		Long: "Gives the session back to the server, and removes it here. It is removed here even if\nthe server can't be reached; there it ends by itself when it expires.", Example: "  bailment logout",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.logout(cmd.Context()) },
	}
}

func (a *app) logout(ctx context.Context) error {
	t, err := a.knownTrust()
	if err != nil || t == nil {
		return err
	}
	path, err := a.envFile(t.Environment, sessionName)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		a.note("there was no login for %s", t.Environment)
		return nil
	}
	told := a.tellLogout(ctx, t)
	if err := os.Remove(path); err != nil {
		return wrong(err, "removing the session")
	}
	if told != nil && problem.KindOf(told) != problem.NotProved {
		a.note("the login to %s is removed here; the server was not told, and there it ends by itself when it expires", t.Environment)
		return told
	}
	a.note("logged out of %s", t.Environment)
	return nil
}

func (a *app) tellLogout(ctx context.Context, t *client.Trust) error {
	s, err := a.session(t)
	if err != nil {
		return err
	}
	c, err := client.Dial(t, client.Options{CallTimeout: a.flags.timeout, Credentials: s.Credentials()})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Attestation.Logout(ctx, &v1.LogoutRequest{})
	return err
}

type statusView struct {
	Environment   string        `json:"environment"`
	Class         string        `json:"class"`
	Bootstrap     string        `json:"bootstrap"`
	Generation    uint64        `json:"generation"`
	Bundle        string        `json:"bundle"`
	ServerVersion string        `json:"server_version"`
	Methods       []string      `json:"attestation_methods"`
	Login         *sessionView  `json:"login"`
	Recovery      *recoveryView `json:"recovery"` // that is under way
}

type recoveryView struct {
	Recovery uint64    `json:"recovery"`
	Until    time.Time `json:"until"`
	Reason   string    `json:"reason"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say what is pinned, what is in force, and who is logged in", Args: cobra.NoArgs,
		Long:    "Asks the server for the environment's public facts and prints them beside what is pinned\nhere and the present login. It needs no login.",
		Example: "  bailment status\n  bailment status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, t, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			e, err := c.Environment.GetEnvironment(cmd.Context(), &v1.GetEnvironmentRequest{})
			if err != nil {
				return err
			}
			v := statusView{t.Environment, t.Class, t.BootstrapString(), e.Generation, e.Bundle, e.ServerVersion, e.AttestationMethods, nil, nil}
			if r, err := c.Recoveries.GetRecovery(cmd.Context(), &v1.GetRecoveryRequest{}); err != nil {
				return err
			} else if x := r.Recovery; x != nil {
				v.Recovery = &recoveryView{x.Recovery, x.Until.AsTime(), x.Reason}
			}
			who := "nobody"
			if s, err := a.session(t); err == nil {
				v.Login = &sessionView{t.Environment, s.Path(), s.Assurance, s.Expires.UTC(), s.Index}
				who = s.Path() + " until " + stamp(s.Expires)
			} else {
				who += " (" + asProblem(err).Message + ")"
			}
			return a.show(v, func(r *rows) {
				r.add("environment", v.Environment)
				r.add("class", v.Class)
				r.add("bootstrap", v.Bootstrap)
				r.add("generation", v.Generation)
				r.add("bundle", v.Bundle)
				r.add("server", v.ServerVersion)
				r.add("logged in", who)
				if v.Recovery != nil {
					r.add("recovery", recoveryWarning(v.Recovery.Recovery, v.Recovery.Until))
				}
			})
		},
	}
}
