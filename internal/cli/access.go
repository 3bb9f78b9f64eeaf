package cli

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
)

func (a *app) leaseCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "lease", Short: "Hand-overs that are under way", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "A lease is a hand-over: who has which version, for which purpose, until when.", Example: "  bailment lease list",
	}
	c.AddCommand(
		&cobra.Command{
			Use: "list [IDENTITY]", Short: "List leases", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeArg(0, a.identityNames),
			Long: "Lists your own leases, or with the duty audit or revoke those of another identity.", Example: "  bailment lease list /workload/payments-api",
			RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
				all, who := &v1.ListLeasesResponse{}, ""
				if len(args) > 0 {
					var err error
					if who, err = c.identity(args[0]); err != nil {
						return err
					}
				}
				for page := ""; ; {
					r, err := c.Secrets.ListLeases(ctx, &v1.ListLeasesRequest{Identity: who, PageToken: page})
					if err != nil {
						return err
					}
					all.Leases = append(all.Leases, r.Leases...)
					if page = r.NextPageToken; page == "" {
						break
					}
				}
				if len(all.Leases) == 0 && who != "" {
					a.noteUnknown(ctx, c, who)
				}
				return a.show(all, func(t *rows) {
					t.add("LEASE", "IDENTITY", "SECRET", "VERSION", "PURPOSE", "STATE", "EXPIRES")
					for _, l := range all.Leases {
						t.add(l.Lease, l.Identity, l.Secret, l.Version, l.Purpose, l.State, l.Expires)
					}
				})
			}),
		},
		&cobra.Command{
			Use: "renew LEASE", Short: "Prolong a lease", Args: cobra.ExactArgs(1),
			Long: "Prolongs one of your leases, never beyond the maximum that it was given with.", Example: "  bailment lease renew 812",
			RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
				n, err := number(args[0], "lease")
				if err != nil {
					return err
				}
				r, err := c.Secrets.RenewLease(ctx, &v1.RenewLeaseRequest{Lease: n})
				if err != nil {
					return err
				}
				return a.show(r, func(t *rows) { t.line("lease %d until %s (entry %d)", n, cell(r.Expires), r.Entry.GetIndex()) })
			}),
		},
		&cobra.Command{
			Use: "return LEASE", Short: "Give a lease back", Args: cobra.ExactArgs(1),
			Long: "Gives one of your leases back before it expires. Who took the value still knows it.", Example: "  bailment lease return 812",
			RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
				n, err := number(args[0], "lease")
				if err != nil {
					return err
				}
				r, err := c.Secrets.ReturnLease(ctx, &v1.ReturnLeaseRequest{Lease: n})
				if err != nil {
					return err
				}
				return a.show(r, func(t *rows) { t.line("lease %d returned (entry %d)", n, r.Entry.GetIndex()) })
			}),
		},
	)
	return c
}

type tokenView struct {
	Bootstrap string    `json:"bootstrap"`
	Token     string    `json:"token"`
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Expires   time.Time `json:"expires"`
	Entry     uint64    `json:"entry"`
}

func (a *app) nodeToken(ctx context.Context, c *conn, name string, ttl time.Duration) error {
	if err := jointoken.ValidName(name); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the machine's name")
	}
	tok, err := jointoken.New(c.trust.Genesis)
	if err != nil {
		return err
	}
	defer tok.Wipe()
	r, err := c.Attestation.CreateJoinToken(ctx, &v1.CreateJoinTokenRequest{
		Id: tok.ID(), PublicKey: tok.PublicKey(), Name: name, Ttl: durationpb.New(ttl), IdempotencyKey: newKey(),
	})
	if err != nil {
		return err
	}
	v := tokenView{c.trust.BootstrapString(), tok.Reveal(), tok.ID(), name, r.Expires.AsTime(), r.Entry.GetIndex()}
	a.note("whoever has the token can become %s, once, until %s (entry %d)", name, stamp(v.Expires), v.Entry)
	return a.show(v, func(t *rows) {
		t.add("bootstrap", v.Bootstrap)
		t.add("token", v.Token)
	})
}

func (c *conn) identities(ctx context.Context, prefix string) (*v1.ListIdentitiesResponse, error) {
	all := &v1.ListIdentitiesResponse{}
	for page := ""; ; {
		r, err := c.Attestation.ListIdentities(ctx, &v1.ListIdentitiesRequest{Prefix: prefix, PageToken: page})
		if err != nil {
			return nil, err
		}
		all.Identities = append(all.Identities, r.Identities...)
		if page = r.NextPageToken; page == "" {
			return all, nil
		}
	}
}

func (a *app) listIdentities(ctx context.Context, c *conn, prefix string) error {
	all, err := c.identities(ctx, prefix)
	if err != nil {
		return err
	}
	return a.show(all, func(t *rows) {
		t.add("IDENTITY", "METHOD", "ASSURANCE", "STATE", "LAST SEEN", "SESSION UNTIL")
		for _, i := range all.Identities {
			t.add(i.Identity, i.Method, i.Assurance, i.State, i.LastSeen, i.SessionExpires)
		}
	})
}

// listNodes lists machines, with their agents: all, or those whose agent is not of a version below another.
func (a *app) listNodes(ctx context.Context, c *conn, below string) error {
	all, err := c.identities(ctx, "/node/")
	if err != nil {
		return err
	}
	if below != "" {
		least, err := release.ParseVersion(below)
		if err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "--agents-below").WithFix("give a version such as 1.4.0")
		}
		all.Identities = slices.DeleteFunc(all.Identities, func(i *v1.IdentityInfo) bool {
			version, err := release.ParseVersion(i.GetAgent().GetVersion())
			return err == nil && version.Compare(least) >= 0
		})
	}
	return a.show(all, func(t *rows) {
		t.add("MACHINE", "METHOD", "ASSURANCE", "STATE", "AGENT", "LAST SEEN", "SESSION UNTIL")
		for _, i := range all.Identities {
			t.add(i.Identity, i.Method, i.Assurance, i.State, agentCell(i.Agent), i.LastSeen, i.SessionExpires)
		}
	})
}

// noteAgents says how many machines another bundle would refuse for their agents, which the one in force lets run. It helps who proposes
// or approves it, and is nothing to rely on: who may not list machines is told nothing, and a machine may come back with another agent.
func (a *app) noteAgents(ctx context.Context, c *conn, base policy.Files, next *policy.Program) {
	now, err := accepted(base)
	if err != nil {
		return
	}
	all, err := c.identities(ctx, "/node/")
	if err != nil {
		return
	}
	refused, active := make(map[problem.Reason]int), 0
	for _, i := range all.Identities {
		if i.State != "active" {
			continue
		}
		active++
		x := i.GetAgent()
		claim := map[string]any{"version": x.GetVersion(), "state": x.GetState(), "evidence": x.GetEvidence(), "signer": x.GetSigner()}
		if err := next.AgentStands(claim); err != nil && now.AgentStands(claim) == nil {
			refused[problem.As(err).Reason]++
		}
	}
	for _, r := range slices.Sorted(maps.Keys(refused)) {
		a.note("refuses %d of %d active %s for their agents (%s): `bailment node list` shows them", refused[r], active, plural(active, "machine"), r)
	}
}

// agentCell is an agent in a few words: its version, and what vouches for that.
func agentCell(x *v1.AgentInfo) string {
	if x == nil {
		return "unknown"
	}
	out := x.Version
	if out == "" {
		out = "?"
	}
	if out += " " + x.State; x.Evidence == policy.AgentMeasured {
		out += ", " + x.Evidence
	}
	return out
}

func (a *app) identityCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "identity", Short: "Attested identities", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "Machines, workloads and persons that have proved what they are.", Example: "  bailment identity list /workload/",
	}
	c.AddCommand(&cobra.Command{
		Use: "list [PREFIX]", Short: "List identities", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeArg(0, a.identityNames),
		Long: "Lists the identities below a prefix, with how they proved themselves and their state.", Example: "  bailment identity list\n  bailment identity list /workload/",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			prefix, err := c.prefix(strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.listIdentities(ctx, c, prefix)
		}),
	}, a.showIdentityCommand("show IDENTITY", "bailment identity show /workload/payments-api", a.identityNames))
	return c
}

// actions are what a grant can be about.
var actions = []string{"secret.read", "secret.write", "secret.generate", "secret.list", "secret.destroy", "secret.promote"}

func (a *app) explainCommand() *cobra.Command {
	var who, purpose, node, claims string
	var change uint64
	var at int64
	c := &cobra.Command{
		Use: "explain ACTION SECRET", Short: "Say why a request is allowed or refused", Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return actions, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeArg(1, a.secretNames)(cmd, args, prefix)
		},
		Long: `Asks the server to decide a request as it would now, by the same function, and says what
each check and each rule said. Nothing is handed out and nothing is written. About others ask
with the duty audit or revoke.

--change asks what would be decided if the bundle of a change governed, with the sessions, holds
and versions that there are now. --at asks what was decided when an entry of the ledger had been
made, by the state and at the time of then, which the server reduces again (with the duty audit).

It exits with 0 if the request is allowed and with 2 if it is refused.`,
		Example: "  bailment explain secret.read db/password --for /workload/payments-api\n  bailment explain secret.write db/password\n  bailment explain secret.read db/password --for /workload/payments-api --at 812",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			if !slices.Contains(actions, args[0]) {
				return problem.New(problem.ReasonInvalid, "there is no action %q", args[0]).WithFix("ask about one of %s", strings.Join(actions, ", "))
			}
			for _, name := range []*string{&who, &node} {
				var err error
				if *name == "" {
					continue
				} else if *name, err = c.identity(*name); err != nil {
					return err
				}
			}
			req := &v1.ExplainRequest{Identity: who, Action: args[0], Secret: args[1], Purpose: purpose, Node: node, Change: change}
			if at >= 0 {
				index := uint64(at)
				req.At = &index
			}
			if claims != "" {
				s, err := readClaims(claims)
				if err != nil {
					return err
				}
				req.Claims = s
			}
			r, err := c.Questions.Explain(ctx, req)
			if err != nil {
				return err
			}
			if at >= 0 {
				r.Fix = "" // it is over
			}
			if err := a.show(r, func(t *rows) {
				if change > 0 || at >= 0 {
					t.line("by the bundle %s, at %s", r.Bundle, cell(r.Time))
				}
				explainTable(t, r)
			}); err != nil || r.Allowed {
				return err
			}
			return exitCode(problem.Refused.ExitCode())
		}),
	}
	c.Flags().StringVar(&who, "for", "", "identity to ask about (default: yourself)")
	c.Flags().StringVar(&purpose, "purpose", "", "purpose of a read (default runtime)")
	c.Flags().StringVar(&node, "node", "", "node that speaks for a workload (default: of its newest session)")
	c.Flags().StringVar(&claims, "claims", "", "JSON file with claims, instead of those of the newest session")
	c.Flags().Uint64Var(&change, "change", 0, "decide by the bundle that a change proposes")
	c.Flags().Int64Var(&at, "at", -1, "decide as it was at this index of the ledger (needs the duty audit)")
	a.complete(c, "for", a.identityNames)
	return c
}

func readClaims(path string) (*structpb.Struct, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, wrong(err, "reading the claims")
	}
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(text); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the claims in %s", path).WithFix("write one JSON object, as in {\"unix\": {\"uid\": 1000}}")
	}
	return s, nil
}

func explainTable(t *rows, r *v1.ExplainResponse) {
	if r.Allowed {
		t.line("allowed by %s, generation %d", r.Grant, r.Generation)
	} else {
		t.line("refused (%s): %s", r.Reason, r.Message)
		if r.Fix != "" {
			t.line("try: %s", r.Fix)
		}
	}
	t.line("")
	t.add("CHECK", "PASSED", "DETAIL")
	for _, c := range r.Checks {
		t.add(c.Name, c.Passed, c.Detail)
	}
	if len(r.Rules) == 0 {
		return
	}
	t.line("")
	t.add("GRANT", "EFFECT", "APPLIES", "WHERE", "WHY")
	for _, x := range r.Rules {
		t.fold(x.Grant, x.Effect, x.Matched, x.Where, x.Why)
	}
}

func (a *app) revokeCommand() *cobra.Command {
	var reason string
	var hold, noHold, holdOnly, preemptive, yes bool
	c := &cobra.Command{
		Use: "revoke SCOPE", Short: "Take back what was handed out, at once", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.scopes),
		Long: `Cuts off everything in a scope that was issued up to now and, for identities, nodes, issuers
and everything, holds what is asked from now on until an approved change lifts the hold. It is
acknowledged in one commit, whatever the number of credentials. The answer says the horizon:
when, at the latest, everything that it covers is dead everywhere. Values that were handed out
die only when they are rotated; the answer names them.

Scopes: everything, identity:/PATH, node:/node/PATH, issuer:NAME, secret:PATH. A subtree ends
in /*. Everything, and a subtree, is asked about first, or takes --yes.

A scope that nothing known is in (no identity that was attested, nothing in the bundle, no
secret) is most often misspelt. The nearest names are told, and you are asked; without a
terminal nothing is revoked, and the exit code is 6. With --preemptive nothing is looked up. A
join token that nobody has used yet is not known.`,
		Example: "  bailment revoke identity:/workload/payments-api --reason \"incident 7\"\n  bailment revoke 'node:/node/join-token/*' --reason \"image leaked\" --yes",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return problem.New(problem.ReasonInvalid, "the reason is empty").WithFix("say with --reason why: it is what the others find in the ledger")
			}
			name, err := c.scope(args[0])
			if err != nil {
				return err
			}
			req := &v1.RevokeRequest{Scope: name, Reason: reason, HoldOnly: holdOnly}
			switch {
			case hold && noHold, holdOnly && noHold:
				return problem.New(problem.ReasonInvalid, "--no-hold contradicts --hold and --hold-only").WithFix("leave one out")
			case hold:
				req.Hold = v1.RevokeRequest_HOLD_YES
			case noHold:
				req.Hold = v1.RevokeRequest_HOLD_NO
			}
			if err := a.checkScope(ctx, c, name, preemptive, yes); err != nil {
				return err
			}
			r, err := c.Revocations.Revoke(ctx, req)
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { revokedTable(t, name, r) })
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the ledger (required)")
	c.Flags().BoolVar(&hold, "hold", false, "also refuse what is asked from now on")
	c.Flags().BoolVar(&noHold, "no-hold", false, "cut off only: new attestations and logins are welcome")
	c.Flags().BoolVar(&holdOnly, "hold-only", false, "refuse from now on, and leave what was issued")
	c.Flags().BoolVar(&preemptive, "preemptive", false, "revoke what nobody knows yet, such as a join token that was not used")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask about everything, or a subtree")
	must(c.MarkFlagRequired("reason"))
	return c
}

func revokedTable(t *rows, scope string, r *v1.RevokeResponse) {
	what := map[bool]map[bool]string{true: {true: "cut off and held", false: "cut off"}, false: {true: "held", false: "unchanged"}}[r.Cutoff][r.Hold]
	t.line("%s: %s, %d live identities (entry %d)", scope, what, r.Covers, r.Entry.GetIndex())
	t.line("dead everywhere by %s", cell(r.Horizon))
	if r.ProvisionalUntil != nil {
		t.line("beyond the blast limit: provisional until %s; have it confirmed with `bailment revocation confirm %s`", cell(r.ProvisionalUntil), scope)
	}
	for _, s := range r.Rotate {
		t.line("rotate %s: its value was handed out", s)
	}
}

func (a *app) revocationCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "revocation", Short: "Cutoffs and holds in force", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "Lists what is cut off or held, and proposes to lift a hold or to confirm a provisional one.", Example: "  bailment revocation list",
	}
	list := &cobra.Command{
		Use: "list", Short: "List cutoffs and holds", Args: cobra.NoArgs,
		Long: "Lists every scope with a cutoff or a hold, each by its entry, by whom and why: of the\nhold, if there is one, and else of the cutoff. Of more than 1,000 cutoffs the older ones are listed\nby their entries alone: see ledger show.", Example: "  bailment revocation list",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			r, err := c.Revocations.ListRevocations(ctx, &v1.ListRevocationsRequest{})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) {
				t.add("SCOPE", "CUTOFF", "HOLD", "BY", "UNTIL", "REASON")
				for _, x := range r.Revocations {
					t.add(x.Scope, zeroAsNone(x.Cutoff), zeroAsNone(x.Hold), x.By, x.Until, brief(x.Reason))
				}
			})
		}),
	}
	c.AddCommand(list,
		a.proposeAct(act{
			use: "lift SCOPE", action: "hold.lift", short: "Propose to lift a hold",
			long:    "Proposes a change that lifts the hold on a scope: the one that stands now, which the signed text\nnames by its entry (SCOPE#ENTRY), and no later one. It takes effect when enough operators have\napproved it. What was cut off stays dead.",
			example: "  bailment revocation lift identity:/workload/payments-api --reason \"incident 7 is over\"", target: theHold, complete: a.heldScopes,
		}),
		a.proposeAct(act{
			use: "confirm SCOPE", action: "revocation.confirm", short: "Propose to confirm a provisional hold",
			long:    "Proposes a change that makes a hold beyond the blast limit, which ends by itself, a cutoff and\na hold without end, before it has ended. The signed text names the hold by its entry.",
			example: "  bailment revocation confirm identity:/workload/payments-api --reason \"incident 7 is over\"", target: theHold, complete: a.heldScopes,
		}),
	)
	return c
}

func theHold(ctx context.Context, c *conn, scope, _ string) (string, error) {
	return c.hold(ctx, scope)
}

func zeroAsNone(n uint64) any {
	if n == 0 {
		return ""
	}
	return n
}
