package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func (a *app) nodeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "node", Short: "Machines", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `Admits machines, shows them, and takes them out: for a while (quarantine, release), or for ever
(decommission).`,
		Example: "  bailment node token web-1\n  bailment node list\n  bailment node show /node/join-token/web-1",
	}
	var ttl time.Duration
	token := &cobra.Command{
		Use: "token NAME", Short: "Make a single-use join token for one machine", Args: cobra.ExactArgs(1),
		Long: `Makes a join token and prints it, with the bootstrap string, for the machine's agent. The
token is made on this machine: the server gets its ID and public key only. It can be used by
one session key; the machine that was promised it must be the one that gets it.`,
		Example: "  bailment node token web-1 --ttl 1h\n  bailment node token web-1 -o json | jq -r .token > token && chmod 600 token",
		RunE:    a.call(func(ctx context.Context, c *conn, args []string) error { return a.nodeToken(ctx, c, args[0], ttl) }),
	}
	token.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it can be used")
	var below string
	list := &cobra.Command{
		Use: "list", Short: "List machines", Args: cobra.NoArgs,
		Long: `Lists the machines that were attested, with their state and their agents: the version, whether a
signer of the bundle vouches for that very binary (signed), and whether the platform measured it.
It is what each showed with its newest session.

With --agents-below only those whose agent has a lesser version, or none that can be compared:
those that a minimum of that version would refuse.`,
		Example: "  bailment node list -o json\n  bailment node list --agents-below 1.5.0",
		RunE:    a.call(func(ctx context.Context, c *conn, _ []string) error { return a.listNodes(ctx, c, below) }),
	}
	list.Flags().StringVar(&below, "agents-below", "", "only machines whose agent a minimum of this version would refuse")
	c.AddCommand(
		token, list, a.showIdentityCommand("show NODE", "bailment node show /node/join-token/web-1", a.nodeNames), a.quarantineCommand(),
		a.proposeAct(act{
			use: "release NODE", action: "hold.lift", short: "Propose to release a machine from quarantine or a hold",
			long: `Proposes a change that lifts the hold on a machine: the one that stands now, and no later one.
It takes effect when enough operators have approved it. A machine that still proves what its
rule does not allow is quarantined again with its next renewal: mend it, or the rule, first.`,
			example: "  bailment node release /node/tpm/web-1 --reason \"kernel 6.1.0-29 was missing in the reference values\"",
			target:  nodeHold, complete: a.nodeNames,
		}),
		a.decommissionCommand(),
		a.proposeAct(act{
			use: "allow-again NODE|EVIDENCE", action: "evidence.forget", short: "Propose that a machine may attest once more as if for the first time",
			long: `Platforms that can't bind their evidence to a challenge are trusted on first use: the first key
that presents an instance's evidence is the instance. One that was rebuilt has another key, and is
refused (instance-seen). This proposes a change that forgets the first use, for that instance
alone. EVIDENCE is the name that the refusal gives.`,
			example: "  bailment node allow-again aws:123456789012/eu-central-1/i-0abc123 --reason \"rebuilt by ticket 812\"",
			target:  firstUse, complete: a.nodeNames,
		}),
	)
	return c
}

// nodeNames completes machines.
func (a *app) nodeNames(ctx context.Context) []string {
	return slices.DeleteFunc(a.identityNames(ctx), func(n string) bool { return !strings.Contains(n, identity.PrefixNode) })
}

func (c *conn) show(ctx context.Context, name string) (*v1.GetIdentityResponse, error) {
	path, err := c.identity(name)
	if err != nil {
		return nil, err
	}
	return c.Attestation.GetIdentity(ctx, &v1.GetIdentityRequest{Identity: path})
}

func (a *app) showIdentityCommand(use, example string, complete words) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: "Show all that is known of one", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, complete),
		Long: `Shows how it proved itself and what it proved (its claims), its enrolment and newest session by
their entries, and, if it is held or quarantined, why. With the duty audit, revoke or admit, or
about yourself.`,
		Example: "  " + example + "\n  " + example + " -o json | jq .claims",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			r, err := c.show(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { identityTable(t, r) })
		}),
	}
}

func identityTable(t *rows, r *v1.GetIdentityResponse) {
	i := r.Info
	t.add("identity", i.GetIdentity())
	t.add("state", i.GetState())
	if r.Decommissioned != 0 {
		t.add("statement", fmt.Sprintf("entry %d: nothing of it is left", r.Decommissioned))
		return
	}
	if r.Hold != 0 {
		t.add("since", fmt.Sprintf("entry %d (%s)", r.Hold, r.HoldScope))
		t.fold("why", r.Why)
	}
	t.add("method", i.Method)
	t.add("assurance", i.Assurance)
	t.add("vouched for by", i.Anchor)
	t.add("enrolled", fmt.Sprintf("%s (entry %d)", cell(r.Enrolled), r.Enrolment))
	t.add("enrolment until", i.LifetimeEnd)
	t.add("last seen", i.LastSeen)
	t.add("session until", fmt.Sprintf("%s (entry %d)", cell(i.SessionExpires), r.Session))
	if r.Once != "" {
		t.add("first use of", r.Once)
	}
	for _, w := range r.Workloads {
		t.add("speaks for", w)
	}
	t.line("")
	t.add("CLAIM", "VALUE")
	claimRows(t, "", r.Claims.AsMap())
}

// claimRows lists claims by their paths, as conditions name them.
func claimRows(t *rows, prefix string, claims map[string]any) {
	for _, name := range sortedKeys(claims) {
		switch v := claims[name].(type) {
		case map[string]any:
			claimRows(t, prefix+name+".", v)
		case []any:
			for _, x := range v {
				t.add(prefix+name, x)
			}
		default:
			t.add(prefix+name, v)
		}
	}
}

func sortedKeys(m map[string]any) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (a *app) quarantineCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "quarantine NODE", Short: "Refuse a machine all, until its release is approved", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.nodeNames),
		Long: `Holds a machine and whatever it speaks for: from the acknowledgement on it gets nothing, and
connected agents are told at once. What it has is not cut off: with its release it goes on. To take
away what it has as well, use revoke node:NODE.`,
		Example: "  bailment node quarantine /node/tpm/web-1 --reason \"odd traffic, ticket 812\"",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return problem.New(problem.ReasonInvalid, "the reason is empty").WithFix("say with --reason why: it is what the others find in the ledger")
			}
			scope, err := c.nodeScope(args[0])
			if err != nil {
				return err
			}
			if err := a.checkScope(ctx, c, scope, false, true); err != nil {
				return err
			}
			r, err := c.Revocations.Revoke(ctx, &v1.RevokeRequest{Scope: scope, Reason: reason, HoldOnly: true})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { revokedTable(t, scope, r) })
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the ledger (required)")
	must(c.MarkFlagRequired("reason"))
	return c
}

// nodeScope is the scope of one machine.
func (c *conn) nodeScope(name string) (string, error) {
	path, err := c.identity(name)
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(path, identity.PrefixNode) {
		return "", problem.New(problem.ReasonInvalid, "%s is not a machine", path).WithFix("machines are below %s; for others use `bailment revoke identity:%s`", identity.PrefixNode, path)
	}
	return state.Scope{Kind: state.ScopeNode, Value: path}.String(), nil
}

func nodeHold(ctx context.Context, c *conn, name, _ string) (string, error) {
	scope, err := c.nodeScope(name)
	if err != nil {
		return "", err
	}
	return c.hold(ctx, scope)
}

// firstUse is the name of evidence, which is a word with a colon, or that of a machine's enrolment.
func firstUse(ctx context.Context, c *conn, name, _ string) (string, error) {
	if !strings.HasPrefix(name, "/") && !strings.HasPrefix(name, identity.Scheme) {
		return name, nil
	}
	r, err := c.show(ctx, name)
	if err != nil {
		return "", err
	}
	if r.Once == "" {
		return "", problem.New(problem.ReasonNotFound, "the enrolment of %s was not by evidence that counts once", name).
			WithFix("it may simply attest again; or give the name that the refusal instance-seen tells")
	}
	return r.Once, nil
}

func (a *app) decommissionCommand() *cobra.Command {
	c := a.proposeAct(act{
		use: "decommission NODE", action: "identity.decommission", short: "End a machine's identity for ever, with a statement that nothing is left",
		long: `In this order: cuts the machine off and holds it, at once, in your name; then proposes a change
that, approved by enough operators, looks through the ledger for anything of it that is alive
(sessions, leases, processes that it speaks for, join tokens that would name it) and enters the
statement that there is nothing. From then on no machine can ever have that identity. The
statement's entry has a receipt (ledger proof) for whoever wants to see it. Values that were
handed out die only when they are rotated: the statement names them.`,
		example: "  bailment node decommission /node/tpm/web-1 --reason \"sold, ticket 812\"",
		target:  a.cutOff, complete: a.nodeNames,
	})
	return c
}

// cutOff is the first step of decommissioning.
func (a *app) cutOff(ctx context.Context, c *conn, name, reason string) (string, error) {
	path, err := c.identity(name)
	if err != nil {
		return "", err
	}
	scope := state.Scope{Kind: state.ScopeIdentity, Value: path}.String()
	if strings.HasPrefix(path, identity.PrefixNode) {
		if scope, err = c.nodeScope(name); err != nil {
			return "", err
		}
	}
	if r, err := c.show(ctx, path); err == nil && r.Decommissioned != 0 {
		return "", problem.New(problem.ReasonDecommissioned, "%s was decommissioned by entry %d", path, r.Decommissioned).
			WithFix("nothing is left to do; `bailment ledger proof %d` gives the statement's receipt", r.Decommissioned)
	}
	if reason == "" {
		reason = "decommissioned"
	}
	if err := a.checkScope(ctx, c, scope, false, true); err != nil {
		return "", err
	}
	r, err := c.Revocations.Revoke(ctx, &v1.RevokeRequest{Scope: scope, Reason: reason, Hold: v1.RevokeRequest_HOLD_YES})
	if err != nil {
		return "", err
	}
	a.note("%s is cut off and held by entry %d; dead everywhere by %s", path, r.Entry.GetIndex(), cell(r.Horizon))
	for _, s := range r.Rotate {
		a.note("rotate %s: its value was handed out", s)
	}
	return path, nil
}
