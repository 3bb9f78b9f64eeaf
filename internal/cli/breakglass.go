package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func (a *app) breakGlassCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "break-glass", Short: "Open grants for emergencies, and review what was opened", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `A grant with breakGlass gives nothing until a person opens it, with an incident and a reason, for
some minutes. The openings of a quarter of a year are budgeted, all persons together. Whoever the
bundle names in notify is told at once. When an opening is over, another operator writes a review
and signs it. Beyond the budget, and while an opening is not reviewed, the next one takes the
approvals of others.`,
		Example: "  bailment break-glass list",
	}
	c.AddCommand(a.glassOpen(), a.glassList(), a.glassShow(), a.glassClose(), a.glassReview(), a.glassExport())
	return c
}

func (a *app) glassOpen() *cobra.Command {
	var incident string
	var o proposeOptions
	var period time.Duration
	var propose bool
	c := &cobra.Command{
		Use: "open GRANT --incident ID --reason TEXT", Short: "Open a break-glass grant for yourself", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.glassGrants),
		Long: `Opens a grant that is there for you, at once. Others are told of it. What you read by it has leases
that end with it.

With --propose it is a change, for others to approve: the way beyond the budget, and while an
earlier opening is not reviewed. The minutes begin with the last approval.`,
		Example: "  bailment break-glass open db-emergency --incident INC-42 --reason 'payments are down' --for 20m\n" +
			"  bailment break-glass open db-emergency --incident INC-42 --reason 'payments are down' --propose",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			if period%time.Minute != 0 || period < 0 {
				return problem.New(problem.ReasonInvalid, "--for takes whole minutes, as 20m")
			}
			if err := state.ValidIncident(incident); err != nil {
				return problem.Wrap(err, problem.ReasonInvalid, "--incident")
			}
			minutes := int(period / time.Minute)
			if propose {
				return a.proposeGlass(ctx, c, args[0], incident, minutes, o)
			}
			r, err := c.BreakGlass.OpenGlass(ctx, &v1.OpenGlassRequest{Grant: args[0], Incident: incident, Reason: o.reason, Minutes: int32(minutes), IdempotencyKey: newKey()})
			if err != nil {
				return err
			}
			x := r.Opening
			return a.show(x, func(t *rows) {
				t.line("%s is open until %s (entry %d)", x.Grant, cell(x.Until), x.Entry.GetIndex())
				t.line("when you are done: bailment break-glass close %d", x.Entry.GetIndex())
				t.line("then another operator: bailment break-glass review %d", x.Entry.GetIndex())
			})
		}),
	}
	c.Flags().StringVar(&incident, "incident", "", "the incident's name, as INC-42 (required)")
	c.Flags().DurationVar(&period, "for", 0, "how long, in whole minutes (default: as long as the grant may be)")
	c.Flags().BoolVar(&propose, "propose", false, "propose it, for others to approve")
	o.flags(c)
	must(c.MarkFlagRequired("incident"))
	must(c.MarkFlagRequired("reason"))
	return c
}

func (a *app) proposeGlass(ctx context.Context, c *conn, grant, incident string, minutes int, o proposeOptions) error {
	base, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	if minutes == 0 {
		prog, err := accepted(base.files)
		if err != nil {
			return err
		}
		g, ok := prog.Glass(grant)
		if !ok {
			return problem.New(problem.ReasonNotFound, "the bundle in force has no break-glass grant %s", grant).WithFix("see `bailment break-glass list --grants`")
		}
		minutes = int(g.Glass / time.Minute)
	}
	text := ceremony.Change{Action: policy.ActGlass, Target: state.GlassTarget(grant, incident, uint64(minutes))}
	return a.propose(ctx, c, base, text, &v1.ProposeRequest{Action: text.Action, Target: text.Target}, o, nil)
}

func (a *app) glassGrants(ctx context.Context) []string {
	return a.live(ctx, func(c *conn) []string {
		r, err := c.BreakGlass.ListGlass(ctx, &v1.ListGlassRequest{})
		if err != nil {
			return nil
		}
		var out []string
		for _, g := range r.Grants {
			out = append(out, g.Name)
		}
		return out
	})
}

func (a *app) glassOpenings(ctx context.Context) []string {
	return a.live(ctx, func(c *conn) []string {
		r, err := c.BreakGlass.ListGlass(ctx, &v1.ListGlassRequest{})
		if err != nil {
			return nil
		}
		var out []string
		for _, x := range r.Openings {
			out = append(out, fmt.Sprint(x.Entry.GetIndex()))
		}
		return out
	})
}

func (a *app) glassList() *cobra.Command {
	var grants bool
	c := &cobra.Command{
		Use: "list", Short: "List openings, the budget, and the share of all releases", Args: cobra.NoArgs,
		Long:    "Lists the openings of the last 400 days and all that are not reviewed, newest first, and the figures\nof this quarter of a year (UTC).",
		Example: "  bailment break-glass list\n  bailment break-glass list --grants",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			r, err := c.BreakGlass.ListGlass(ctx, &v1.ListGlassRequest{})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) {
				if grants {
					t.add("GRANT", "FOR", "ACTIONS", "SECRETS", "MINUTES")
					for _, g := range r.Grants {
						t.add(g.Name, strings.Join(g.Identities, " "), strings.Join(g.Actions, " "), strings.Join(g.Secrets, " "), g.Minutes)
					}
					return
				}
				t.add("ENTRY", "GRANT", "BY", "INCIDENT", "OPENED", "UNTIL", "USES", "REVIEW")
				for _, x := range r.Openings {
					t.add(x.Entry.GetIndex(), x.Grant, x.Identity, x.Incident, x.Opened, x.Until, x.Uses, reviewCell(x))
				}
				t.line("%s: %d of %d openings; %d of %d releases by break-glass grants (alarm at %d %%)%s", r.Quarter, r.Used, r.Budget,
					r.ReleasesByGlass, r.Releases, r.AlarmPercent, map[bool]string{true: ": ALARM"}[r.Alarmed])
			})
		}),
	}
	c.Flags().BoolVar(&grants, "grants", false, "the break-glass grants of the bundle in force instead")
	return c
}

func reviewCell(x *v1.Opening) string {
	switch {
	case x.Reviewed != 0:
		return x.Verdict + " (" + x.Reviewer + ")"
	case x.Until.AsTime().After(time.Now()):
		return "open"
	}
	return "TO BE REVIEWED"
}

// opening finds one by the argument.
func (c *conn) opening(ctx context.Context, arg string) (*v1.Opening, error) {
	n, err := number(arg, "opening")
	if err != nil {
		return nil, err
	}
	r, err := c.BreakGlass.ListGlass(ctx, &v1.ListGlassRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range r.Openings {
		if x.Entry.GetIndex() == n {
			return x, nil
		}
	}
	return nil, problem.New(problem.ReasonNotFound, "there is no opening %d", n).WithFix("see `bailment break-glass list`")
}

func (a *app) glassShow() *cobra.Command {
	return &cobra.Command{
		Use: "show OPENING", Short: "Show an opening and what it was used for", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.glassOpenings),
		Long:    "Shows who opened what, for what incident, with what reason, what it was used for, and the review.",
		Example: "  bailment break-glass show 812",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			x, err := c.opening(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(x, func(t *rows) { openingTable(t, x) })
		}),
	}
}

func openingTable(t *rows, x *v1.Opening) {
	t.line("opening %d: %s by %s, for %s", x.Entry.GetIndex(), x.Grant, x.Identity, x.Incident)
	t.line("reason: %s", x.Reason)
	t.line("open from %s to %s", cell(x.Opened), cell(x.Until))
	if x.ClosedBy != "" {
		t.line("closed by %s before its time", x.ClosedBy)
	}
	if x.Change != 0 {
		t.line("approved as change %d", x.Change)
	} else {
		t.line("within the budget")
	}
	t.line("used %d times, for %d secrets", x.Uses, len(x.Secrets))
	for _, s := range x.Secrets {
		t.line("  %s", s)
	}
	if x.Beyond > 0 {
		t.line("  and %d times for others", x.Beyond)
	}
	t.line("review: %s", reviewCell(x))
}

func (a *app) glassClose() *cobra.Command {
	return &cobra.Command{
		Use: "close OPENING", Short: "End an opening before its time", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.glassOpenings),
		Long:    "Ends your own opening, or with the duty revoke anybody's. What was read by it was read: rotate\nwhat must not be known any more.",
		Example: "  bailment break-glass close 812",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "opening")
			if err != nil {
				return err
			}
			r, err := c.BreakGlass.CloseGlass(ctx, &v1.CloseGlassRequest{Opening: n})
			if err != nil {
				return err
			}
			return a.show(r.Opening, func(t *rows) { t.line("opening %d is closed; it is to be reviewed by another operator", n) })
		}),
	}
}

func (a *app) glassReview() *cobra.Command {
	var verdict, file string
	var yes bool
	c := &cobra.Command{
		Use: "review OPENING --verdict VERDICT --findings FILE", Short: "Sign and enter what you found of somebody else's opening", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.glassOpenings),
		Long: `Shows an opening that is over, and has what you write of it entered, signed by your SSH key: what
was opened, by whom and for what, how often it was used and for which secrets, your verdict and
your findings. The verdict changes nothing by itself. It takes the duty audit.

The server's own checks, and "ledger verify" on any copy of the ledger, compare the uses that you
sign with the entries.`,
		Example: "  bailment break-glass review 812 --verdict justified --findings findings.txt\n  echo 'Only db/a was read; it was rotated an hour later.' | bailment break-glass review 812 --verdict justified --findings -",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			x, err := c.opening(ctx, args[0])
			if err != nil {
				return err
			}
			text, err := a.readLimited(file, ceremony.MaxFindings)
			if err != nil {
				return err
			}
			r := ceremony.GlassReview{
				Opening: x.Entry.GetIndex(), Grant: x.Grant, Opener: x.Identity, Incident: x.Incident, Opened: x.Opened.AsTime(), Closed: x.Until.AsTime(),
				Uses: int(x.Uses), Secrets: x.Secrets, Beyond: int(x.Beyond), Verdict: ceremony.Verdict(verdict),
				Time: time.Now().UTC().Truncate(time.Second), Nonce: random(16), Findings: strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n")),
			}
			if err := ceremony.ValidFindings(r.Findings); err != nil {
				return problem.Wrap(err, problem.ReasonInvalid, "--findings")
			}
			if r.Verdict != ceremony.Justified && r.Verdict != ceremony.NotJustified {
				return problem.New(problem.ReasonInvalid, "--verdict is %s or %s", ceremony.Justified, ceremony.NotJustified)
			}
			return a.reviewGlass(ctx, c, r, yes)
		}),
	}
	c.Flags().StringVar(&verdict, "verdict", "", "justified or not-justified (required)")
	c.Flags().StringVar(&file, "findings", "", "file with what you found, in words; - for the standard input (required)")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	must(c.MarkFlagRequired("verdict"))
	must(c.MarkFlagRequired("findings"))
	must(c.RegisterFlagCompletionFunc("verdict", cobra.FixedCompletions([]string{string(ceremony.Justified), string(ceremony.NotJustified)}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

func (a *app) reviewGlass(ctx context.Context, c *conn, r ceremony.GlassReview, yes bool) error {
	b, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	if r.Scope, err = c.reviewScope(ctx); err != nil {
		return err
	}
	if r.Person, err = c.person(); err != nil {
		return err
	}
	text := r.Text()
	if _, err := ceremony.ParseGlassReview(text); err != nil { // what the server says of it is no opening's
		return problem.Wrap(err, problem.ReasonNotAuthentic, "reading the opening that the server sent")
	}
	fmt.Fprintf(a.err, "%s\n", printable(text)) // even with --quiet: a signature is no note
	signatures, err := a.signShown(ctx, b.files, r.Person, yes, text)
	if err != nil {
		return err
	}
	x, err := c.BreakGlass.ReviewGlass(ctx, &v1.ReviewGlassRequest{Opening: r.Opening, Text: text, IdempotencyKey: newKey(), Signature: signatures[0]})
	if err != nil {
		return err
	}
	return a.show(x, func(t *rows) {
		t.line("opening %d is reviewed: %s (entry %d)", r.Opening, r.Verdict, x.Entry.GetIndex())
	})
}

func (a *app) glassExport() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "export ENTRY --dir DIR", Short: "Write a signed review, so that plain ssh-keygen verifies it", Args: cobra.ExactArgs(1),
		Long:    "Writes the text of a review of an opening as it was signed, the signature, and the keys of the\nbundle that was in force, and says the command that verifies it.",
		Example: "  bailment break-glass export 815 --dir review-815",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			e, n, err := c.entryOf(ctx, args[0])
			if err != nil {
				return err
			}
			ev, ok := e.(*state.GlassReviewed)
			if !ok {
				return problem.New(problem.ReasonNotFound, "entry %d is no review of an opening", n).WithFix("`bailment break-glass list -o json` names them")
			}
			text, err := ceremony.ParseGlassReview(ev.Text)
			if err != nil || policy.ValidPerson(text.Person) != nil || ev.Signature.Person != text.Person { // it becomes a part of a command
				return problem.New(problem.ReasonNotAuthentic, "the server sent a review that is none")
			}
			return a.exportSigned(ctx, c, ev.Text, ev.Signature, ev.Ruling.Bundle.String(), dir)
		}),
	}
	c.Flags().StringVar(&dir, "dir", "", "directory to make (required)")
	must(c.MarkFlagRequired("dir"))
	return c
}
