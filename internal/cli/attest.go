package cli

import (
	"context"
	"sync"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/agent/workload/kubelet"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/release/own"
)

func (a *app) attestCommand() *cobra.Command {
	var file string
	var dry bool
	c := &cobra.Command{
		Use: "attest --dry-run", Short: "Ask what the server would say to this machine's proof, and why", Args: cobra.NoArgs,
		Long: `Makes this machine's evidence as its agent would, has the server appraise it, and shows what
came of it: the claims, as conditions of the bundle name them, the assurance, the identity that
the bundle's rules give, and, if no session would be opened, why not. Nothing is opened, entered
or used up. It reads the agent's configuration, and can be run beside the agent.

It exits with 0 if a session would be opened and with 2 if not.`,
		Example: "  bailment attest --dry-run --config /etc/bailment/agent.yaml\n  bailment attest --dry-run -o json | jq .claims",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !dry {
				return problem.New(problem.ReasonInvalid, "without --dry-run nothing is attested here").
					WithFix("the agent attests this machine: `bailment agent`; to see what would come of it, give --dry-run")
			}
			x, err := a.newAgent(file)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			r, err := x.Appraise(ctx)
			if err != nil {
				return err
			}
			if err := a.show(r, func(t *rows) { appraisalTable(t, r) }); err != nil || r.Reason == "" {
				return err
			}
			return exitCode(problem.Refused.ExitCode())
		},
	}
	c.Flags().StringVar(&file, "config", "", "the agent's configuration file (default: every setting's default)")
	c.Flags().BoolVar(&dry, "dry-run", false, "ask only (required)")
	return c
}

// newAgent makes the agent that a configuration file describes.
func (a *app) newAgent(file string) (*agent.Agent, error) {
	cfg, err := config.LoadAgent(file, methods.All())
	if err != nil {
		return nil, err
	}
	logger, err := a.logger(cfg.Log)
	if err != nil {
		return nil, err
	}
	if cfg.Bootstrap == "" {
		cfg.Bootstrap = a.flags.bootstrap
	}
	if _, err := identity.ParseBootstrap(cfg.Bootstrap); err != nil {
		return nil, badBootstrap(cfg.Bootstrap, err)
	}
	settings := agentSettings(cfg)
	settings.Logger = logger
	return agent.New(settings)
}

// agentSettings are what an agent is told of its configuration file, and of this program.
func agentSettings(cfg *config.Agent) agent.Config {
	statement := sync.OnceValues(func() (release.Statement, error) { return own.Own(thisVersion()) })
	return agent.Config{
		Statement: statement, Replaced: func() bool {
			s, err := statement()
			return err == nil && own.Replaced(s)()
		}, Bootstrap: cfg.Bootstrap, StateDir: cfg.Data, Socket: cfg.Socket, Method: cfg.Attest.Method, Needs: cfg.Attest.Files,
		Values: cfg.Attest.Values, HardwareKey: cfg.Attest.Key != config.KeySoftware, WorkloadAPI: cfg.WorkloadSocket(), Methods: methods.All(), Version: thisVersion(),
		Parents: cfg.Workloads.Parents, Kubelet: kubelet.Config{Address: cfg.Kubelet.Address, Token: cfg.Kubelet.Token, CA: cfg.Kubelet.CA, Node: cfg.Kubelet.NodeName},
	}
}

func appraisalTable(t *rows, r *v1.AppraiseResponse) {
	if r.Reason == "" {
		t.line("a session would be opened")
	} else {
		t.line("no session would be opened (%s): %s", r.Reason, r.Message)
		t.line("try: %s", r.Fix)
		if x := problem.Reason(r.Reason); x == problem.ReasonTokenSpent || x == problem.ReasonInstanceSeen {
			// The agent's own key is not used for a question, so its own use looks like another's.
			t.line("if this machine's agent is enrolled (`bailment agent status`), its own key used it: it renews by that key, and all is well")
		}
	}
	t.line("")
	t.add("identity", r.Identity)
	t.add("rule", r.Rule)
	t.add("method", r.Method)
	t.add("assurance", r.Assurance)
	t.add("vouched for by", r.Anchor)
	if r.Once != "" {
		t.add("counts once as", r.Once)
		t.add("used before", r.Used)
	}
	t.line("")
	t.add("CLAIM", "VALUE")
	claimRows(t, "", r.Claims.AsMap())
}
