package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func (a *app) environmentCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "environment", Short: "The environment as a whole", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "An environment is made by `bailment init`. This ends one.", Example: "  bailment environment delete --propose --reason \"moved to eu-prod, ticket 977\"",
	}
	c.AddCommand(a.environmentDelete())
	return c
}

func (a *app) environmentDelete() *cobra.Command {
	var o proposeOptions
	var propose bool
	var name string
	c := &cobra.Command{
		Use: "delete", Short: "Propose to end the environment for ever", Args: cobra.NoArgs,
		Long: `Proposes to end the environment: with its last entry every session, lease, hold and change is
over, and all values and all private keys are removed from its store. Nothing brings it back. The
ledger stays, and is verified offline for ever.

It is a change: others approve it (in production two besides you), it waits (in production for a
day, in which anybody who may approve can reject it), and is then carried out by "change
carry-out". You are asked to type the environment's name; --name gives it where there is no
terminal.`,
		Example: "  bailment environment delete --propose --reason \"moved to eu-prod, ticket 977\"",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			if !propose {
				return problem.New(problem.ReasonInvalid, "nobody ends an environment alone").WithFix("propose it, for others to approve: --propose")
			}
			target := state.EndTarget(c.trust.Environment, state.Digest(c.trust.Genesis))
			if err := a.confirmEnd(target, name); err != nil {
				return err
			}
			return a.proposeTarget(ctx, c, policy.ActDeleteEnvironment, target, o)
		}),
	}
	o.flags(c)
	c.Flags().BoolVar(&propose, "propose", false, "propose it, for others to approve (required)")
	c.Flags().StringVar(&name, "name", "", "the environment's name, instead of being asked for it")
	return c
}

// confirmEnd says what it means to end an environment, and has its name typed.
func (a *app) confirmEnd(target, typed string) error {
	name, _, _ := strings.Cut(target, "#")
	fmt.Fprintf(a.err, "This ends the environment %s for ever: all of its values and private keys are removed, and nothing is answered any more.\n"+
		"Backups of its store keep what they have: destroy its root key too, if that must be gone.\n", printable(target))
	if typed == "" {
		f, ok := a.in.(*os.File)
		if !ok || !term.IsTerminal(int(f.Fd())) {
			return problem.New(problem.ReasonInvalid, "this asks for the environment's name, and standard input is not a terminal").
				WithFix("read what is shown, then run it again with --name")
		}
		fmt.Fprint(a.err, "type the environment's name: ")
		line, err := bufio.NewReader(f).ReadString('\n')
		if err != nil {
			return problem.New(problem.ReasonCanceled, "not confirmed: nothing was done")
		}
		typed = strings.TrimSpace(line)
	}
	if typed != name {
		return problem.New(problem.ReasonCanceled, "that is not the environment's name: nothing was done")
	}
	return nil
}
