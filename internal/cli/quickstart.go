package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/quickstart"
)

func (a *app) quickstartCommand() *cobra.Command {
	o := quickstart.Options{}
	c := &cobra.Command{
		Use: "quickstart", Short: "See the whole thing work on this machine, in seconds", Args: cobra.NoArgs,
		Long: `Makes a development environment in a directory, starts a server and an agent on loopback, and
shows the whole way through the public commands: genesis, login, attestation of this machine and
of two processes, a generated password that one of them checks and the other logs in with, the
receipt verified offline, a revocation, the refusal after it, and an audit of the ledger.

It touches only its directory, which it made itself. It is safe to run twice: what an earlier run
left there is stopped and removed.`,
		Example: "  bailment quickstart\n  bailment quickstart --keep --dir /tmp/try",
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return problem.Wrap(err, problem.ReasonInternal, "finding this program")
			}
			o.Exe, o.Out = exe, cmd.OutOrStdout()
			return quickstart.Run(cmd.Context(), o)
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", quickstart.DefaultDir, "directory to make it in")
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave server and agent running, to try things by hand")
	return c
}

// demoCommands are the two processes of the quickstart: they get their password from `bailment run`.
func (a *app) demoCommands() []*cobra.Command {
	return []*cobra.Command{
		{
			Use: "quickstart-database ADDRESS-FILE", Short: "The quickstart's database", Hidden: true,
			Long:    "Serves HTTP with basic authentication by the password in $DB_PASSWORD.",
			Example: "  bailment run --secret db/password=DB_PASSWORD -- bailment quickstart-database address",
			Args:    cobra.ExactArgs(1),
			RunE:    func(cmd *cobra.Command, args []string) error { return quickstart.Database(cmd.Context(), args[0]) },
		},
		{
			Use: "quickstart-service DATABASE", Short: "The quickstart's service", Hidden: true,
			Long:    "Logs in to the quickstart's database, with a guessed password and with the one in $DB_PASSWORD.",
			Example: "  bailment run --secret db/password=DB_PASSWORD -- bailment quickstart-service 127.0.0.1:8080",
			Args:    cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := quickstart.Service(cmd.Context(), args[0], cmd.OutOrStdout()); err != nil {
					return fmt.Errorf("the quickstart's service: %w", err)
				}
				return nil
			},
		},
	}
}
