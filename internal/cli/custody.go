package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server"
	"github.com/bailment/bailment/internal/state"
)

// rootKeyView is the public side of a root key.
type rootKeyView struct {
	Holder          string `json:"holder"`
	DevelopmentOnly bool   `json:"development_only"`
}

// custodyView is which root keys there are to an environment.
type custodyView struct {
	Under  string `json:"under"`
	Beside string `json:"beside,omitempty"`
}

func (a *app) rootCommand() *cobra.Command {
	var kind string
	c := &cobra.Command{
		Use: "root", Short: "Root keys, on the machine that has them", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `Makes and names root keys. It is for the server's machine and its user, and needs no server: "init"
makes an environment's first root key, and this makes the one that its keys are moved to.`,
		Example: "  bailment root create /etc/bailment/next.key\n  bailment root show /etc/bailment/next.key",
	}
	show := func(h state.RootHolder, err error) error {
		if err != nil {
			return err
		}
		return a.show(rootKeyView{h.String(), h.DevelopmentOnly}, func(t *rows) {
			t.add("root holder", h.String())
			if h.DevelopmentOnly {
				t.add("good for", "the development class only")
			}
		})
	}
	create := &cobra.Command{
		Use: "create LOCATION", Short: "Make a new root key", Args: cobra.ExactArgs(1),
		Long:    "Makes a new root key where there is none yet, and prints its public name, KIND:ID, which those who\napprove a move to it compare. Run it as the server's user.",
		Example: "  bailment root create /etc/bailment/next.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(server.MakeRoot(cmd.Context(), kind, args[0]))
		},
	}
	name := &cobra.Command{
		Use: "show LOCATION", Short: "Say which root key it is", Args: cobra.ExactArgs(1),
		Long:    "Prints the public name of the root key at a location, KIND:ID. It tells nothing about the key.",
		Example: "  bailment root show /etc/bailment/next.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(server.ShowRoot(cmd.Context(), kind, args[0]))
		},
	}
	for _, x := range []*cobra.Command{create, name} {
		x.Flags().StringVar(&kind, "root-holder", "file", "kind of root holder; file is for the development class only")
	}
	c.AddCommand(create, name)
	return c
}

func (a *app) keyCustody() *cobra.Command {
	var o proposeOptions
	var propose bool
	var to string
	c := &cobra.Command{
		Use: "custody", Short: "Which root key the keys are under; propose to move them", Args: cobra.NoArgs,
		Long: `Says which root key the environment's keys are under, and which other one the server has beside it
(root_holders.NAME.next in its configuration). With --propose, proposes to move the keys to that
one: a change, which others approve (in production two besides you). With its last approval all
key-encryption keys are under the new root key, and the one before is not needed any more.

Compare the name with what "bailment root show" says on the machine that has the root key, and give
it with --to: the server could show another.`,
		Example: "  bailment key custody\n  bailment key custody --propose --to file:9f2b... --reason \"the disk of the old one is sold\"",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			r, err := c.Keys.ListKeys(ctx, &v1.ListKeysRequest{})
			if err != nil {
				return err
			}
			if len(r.RootHolders) == 0 {
				return problem.New(problem.ReasonUnsupported, "this server doesn't say which root key the keys are under")
			}
			other := ""
			if len(r.RootHolders) > 1 {
				other = r.RootHolders[1]
			}
			if !propose {
				view := custodyView{Under: r.RootHolders[0], Beside: other}
				return a.show(view, func(t *rows) {
					t.add("under", printable(view.Under))
					if view.Beside != "" {
						t.add("beside it", printable(view.Beside))
					}
				})
			}
			if to == "" {
				return problem.New(problem.ReasonInvalid, "it takes the name of the root key to which the keys are to be moved").
					WithFix("give it with --to, as `bailment root show` says it where that root key is")
			}
			if other != to {
				have := "none"
				if other != "" {
					have = printable(other)
				}
				return problem.New(problem.ReasonRootHolder, "the root key %s is not what the server has beside its own: %s", printable(to), have).
					WithFix("name it in `root_holders.%s.next` of the server's configuration, and start the server again", c.trust.Environment)
			}
			return a.proposeTarget(ctx, c, policy.ActMoveCustody, to, o)
		}),
	}
	o.flags(c)
	c.Flags().BoolVar(&propose, "propose", false, "propose to move the keys, for others to approve")
	c.Flags().StringVar(&to, "to", "", "to which root key, as KIND:ID")
	return c
}
