package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "completion SHELL", Short: "Print a completion script for a shell", Args: cobra.ExactArgs(1),
		ValidArgs: []string{"bash", "fish", "powershell", "zsh"},
		Long: `Prints a script that completes commands, flags and, from the environment that is logged in
to, names of secrets, identities, scopes and changes. In bash it takes the package
bash-completion.`,
		Example: "  source <(bailment completion bash)\n  bailment completion zsh > \"${fpath[1]}/_bailment\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			case "zsh":
				return root.GenZshCompletion(a.out)
			}
			return problem.New(problem.ReasonInvalid, "there is no completion for %q", args[0]).WithFix("use bash, fish, powershell or zsh")
		},
	}
}

// words gives the words that may stand in a place. It fails silently: a completion has nobody to tell.
type words func(context.Context) []string

func filter(all []string, prefix string) []string {
	var out []string
	for _, w := range all {
		if strings.HasPrefix(w, prefix) {
			out = append(out, w)
		}
	}
	return out
}

// complete completes a flag.
func (a *app) complete(c *cobra.Command, flag string, w words) {
	must(c.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.ask(cmd, w, prefix), cobra.ShellCompDirectiveNoFileComp
	}))
}

// completeArg completes one argument, by its place.
func (a *app) completeArg(place int, w words) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) != place {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd, w, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) ask(cmd *cobra.Command, w words, prefix string) []string {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionWait)
	defer cancel()
	// Completion runs without the hook that fills the flags.
	if err := a.finishFlags(); err != nil {
		return nil
	}
	a.flags.timeout = min(a.flags.timeout, completionWait)
	return filter(w(ctx), prefix)
}

// live asks the environment that is logged in to.
func (a *app) live(ctx context.Context, fn func(*conn) []string) []string {
	c, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	defer c.Close()
	return fn(c)
}

func (a *app) secretNames(ctx context.Context) []string {
	return a.live(ctx, func(c *conn) []string {
		r, err := c.Secrets.List(ctx, &v1.ListSecretsRequest{})
		if err != nil {
			return nil
		}
		var out []string
		for _, s := range r.Secrets {
			out = append(out, s.Secret)
		}
		return out
	})
}

func (a *app) identityNames(ctx context.Context) []string {
	return a.live(ctx, func(c *conn) []string {
		r, err := c.Attestation.ListIdentities(ctx, &v1.ListIdentitiesRequest{})
		if err != nil {
			return nil
		}
		var out []string
		for _, i := range r.Identities {
			out = append(out, i.Identity)
		}
		return out
	})
}

func (a *app) scopes(ctx context.Context) []string {
	out := []string{"everything"}
	for _, i := range a.identityNames(ctx) {
		out = append(out, "identity:"+i)
		if strings.HasPrefix(i, "/node/") {
			out = append(out, "node:"+i)
		}
	}
	for _, s := range a.secretNames(ctx) {
		out = append(out, "secret:"+s)
	}
	return out
}

// heldScopes are those that a hold stands on.
func (a *app) heldScopes(ctx context.Context) []string {
	return a.live(ctx, func(c *conn) []string {
		r, err := c.Revocations.ListRevocations(ctx, &v1.ListRevocationsRequest{})
		if err != nil {
			return nil
		}
		var out []string
		for _, x := range r.Revocations {
			if x.Hold != 0 {
				out = append(out, x.Scope)
			}
		}
		return out
	})
}

func (a *app) changeNumbers(ctx context.Context) []string {
	return a.live(ctx, func(c *conn) []string {
		r, err := c.Changes.ListChanges(ctx, &v1.ListChangesRequest{OpenOnly: true})
		if err != nil {
			return nil
		}
		var out []string
		for _, x := range r.Changes {
			out = append(out, strconv.FormatUint(x.Change, 10)+"\t"+printable(x.Action+" by "+x.Proposer))
		}
		return out
	})
}
