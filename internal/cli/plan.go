package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/plan"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// codeDifferent: with --exit-code, there is a plan, and it is not empty. git and terraform say it so.
const codeDifferent exitCode = 2

// planFlags are those of `bundle plan`.
type planFlags struct {
	against, replay, ledger, widens string
	lines                           int
	exitCode                        bool
}

// planView is a plan for programs.
type planView struct {
	*plan.Plan                 // its fields stand beside ours
	Separation []plan.Breach   `json:"separation"`         // of the new bundle: what is refused, and advice that is new
	Recovery   string          `json:"recovery,omitempty"` // why too few could recover the environment after it
	Widens     []plan.Widening `json:"widens,omitempty"`   // with --widens: for whom was asked
	Replay     *plan.Replayed  `json:"replay,omitempty"`   // with --replay
}

func (a *app) bundlePlan() *cobra.Command {
	f := planFlags{}
	c := &cobra.Command{
		Use: "plan [DIR]", Short: "Say what a bundle would change, as meaning", Args: cobra.MaximumNArgs(1),
		Long: `Compares a bundle with the one in force, or with --against another directory, which needs no
server, and says what would change: who gains and who loses access, which limits move, which
secrets jobs (/ci/…) could read that they could not, and what else changes: rules, settings,
persons, secrets. Names of grants, files, order and comments are no change. A condition is
compared as a text. "!" marks what permits more, or is about who can change the environment.

It also says where the new bundle breaks the separation of duties. --widens IDENTITY says what
the change would give to one person, workload or machine: nobody should approve a change that
widens his own reach.

--replay 7d decides again what was asked in the last 7 days, by the new bundle, and lists what
would be decided otherwise. The entries are the server's (which needs the duty audit), or with
--ledger DIR those of a data directory. They are not verified here: see "ledger verify".

The exit code is 0 whether or not something changes. With --exit-code it is 0 if nothing does,
and 2 if something does; 1 is a bundle with findings, as ever.`,
		Example: "  bailment bundle plan .\n  bailment bundle plan new --against old --exit-code\n  bailment bundle plan . --replay 7d -o json\n  bailment bundle plan . --widens /human/alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.plan(cmd.Context(), dirOf(args), f)
		},
	}
	c.Flags().StringVar(&f.against, "against", "", "directory of the bundle to compare with (default: the one in force)")
	c.Flags().StringVar(&f.replay, "replay", "", "decide again what was asked since so long ago, as 7d or 12h")
	c.Flags().StringVar(&f.ledger, "ledger", "", "data directory to replay from (default: ask the server)")
	c.Flags().StringVar(&f.widens, "widens", "", "say what the change would give to this identity, as /human/alice")
	c.Flags().IntVar(&f.lines, "lines", 50, "how many lines of each part are printed")
	c.Flags().BoolVar(&f.exitCode, "exit-code", false, "exit with 2 if something changes")
	return c
}

func (a *app) plan(ctx context.Context, dir string, f planFlags) error {
	var since time.Time
	if f.replay != "" {
		ago, err := parseAgo("--replay", f.replay)
		if err != nil {
			return err
		}
		since = time.Now().Add(-ago)
	}
	switch {
	case f.ledger != "" && f.replay == "":
		return usageError{fmt.Errorf("--ledger is where --replay reads from: give that too")}
	case f.lines < 1:
		return problem.New(problem.ReasonInvalid, "--lines must be at least 1").WithFix("say how many lines of each part are printed")
	case f.widens != "" && identity.ValidPath(f.widens) != nil:
		return problem.New(problem.ReasonInvalid, "%q is not the path of an identity", f.widens).WithFix("give it like /human/alice")
	}
	_, after, err := readBundle(dir)
	if err != nil {
		return err
	}
	before, err := a.planBase(ctx, f.against)
	if err != nil {
		return err
	}
	if x, y := before.Environment().Name, after.Environment().Name; x != y {
		a.note("these are bundles of two environments, %s and %s", x, y)
	}
	v := viewPlan(before, after)
	if f.widens != "" {
		v.Widens = append([]plan.Widening{}, v.Plan.Widens(f.widens)...)
	}
	if f.replay != "" {
		ledger, done, err := a.openLedger(ctx, f.ledger, &audit.Options{})
		if err != nil {
			return err
		}
		defer done()
		if v.Replay, err = plan.Replay(audit.Decisions(ctx, ledger, since), after); err != nil {
			return err
		}
	}
	if err := a.show(v, func(t *rows) {
		var b strings.Builder
		v.write(&b, f.lines)
		if f.widens != "" {
			writeWidens(&b, f.widens, v.Widens)
		}
		if v.Replay != nil {
			writeReplay(&b, v.Replay, f.lines)
		}
		t.line("%s", strings.TrimSuffix(b.String(), "\n"))
	}); err != nil {
		return err
	}
	if f.exitCode && !v.Empty() {
		return codeDifferent
	}
	return nil
}

// planBase is what is compared with: a directory, or what is in force.
func (a *app) planBase(ctx context.Context, dir string) (*policy.Program, error) {
	var files policy.Files
	if dir == "" {
		c, err := a.connect(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		base, err := c.bundle(ctx, "")
		if err != nil {
			return nil, err
		}
		files = base.files
	} else {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return nil, problem.New(problem.ReasonInvalid, "%s is not a directory", dir).WithFix("name the directory that has environment.yaml")
		}
		var err error
		if files, err = policy.ReadFiles(os.DirFS(dir)); err != nil {
			return nil, err
		}
	}
	return accepted(files)
}

// parseAgo reads a time span, with days.
func parseAgo(flag, s string) (time.Duration, error) {
	const most = 3650 * 24 * time.Hour
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); n > 3650 {
			n = 3651
		}
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d <= 0 || d > most {
		return 0, problem.New(problem.ReasonInvalid, "%s %q is no span of time from now back", flag, s).WithFix("give days or hours, as 7d or 12h, at most 3650d")
	}
	return d, nil
}

// viewPlan compares two bundles, and asks the new one about the separation of duties.
func viewPlan(before, after *policy.Program) *planView {
	v := &planView{Plan: plan.Compare(before, after), Separation: []plan.Breach{}}
	was := plan.Separation(before)
	for _, x := range plan.Separation(after) {
		// Advice that was not taken is not repeated with every change.
		if x.Refused || !slices.ContainsFunc(was, func(o plan.Breach) bool { return o.Rule == x.Rule && o.Subject == x.Subject }) {
			v.Separation = append(v.Separation, x)
		}
	}
	if err := plan.Recovery(before, after); err != nil {
		v.Recovery = asProblem(err).Message
	}
	return v
}

// printPlan writes for whoever decides about a change what it would change, and what it would give to himself. Nothing is written about
// bundles that can't be compared: what is wrong with them is said elsewhere.
func printPlan(w io.Writer, before, after *policy.Program, person string, most int) {
	v := viewPlan(before, after)
	var b strings.Builder
	v.write(&b, most)
	if person != "" {
		writeWidens(&b, identity.PrefixHuman+person, v.Plan.Widens(identity.PrefixHuman+person))
	}
	fmt.Fprint(w, printable(b.String()))
}

// part writes a heading and the first lines of a list. A line may have more lines below it.
func part[T any](b *strings.Builder, heading string, list []T, total, most int, line func(T) string) {
	if total == 0 {
		return
	}
	fmt.Fprintf(b, "%s (%d)\n", heading, total)
	shown := list[:min(len(list), most)]
	for _, x := range shown {
		fmt.Fprintf(b, "  %s\n", line(x))
	}
	if left := total - len(shown); left > 0 {
		fmt.Fprintf(b, "  … and %d more\n", left)
	}
}

func (v *planView) write(b *strings.Builder, most int) {
	p := v.Plan
	if p.Empty() {
		b.WriteString("nothing changes\n")
	}
	of := func(k plan.Kind) []plan.Line {
		return slices.DeleteFunc(slices.Clone(p.Access), func(l plan.Line) bool { return l.Kind != k })
	}
	part(b, "gains", of(plan.Gain), p.Totals.Gains, most, lineText)
	part(b, "limits that move", of(plan.Limit), p.Totals.Limits, most, lineText)
	part(b, "loses", of(plan.Loss), p.Totals.Losses, most, lineText)
	part(b, "within reach of jobs", p.CI, p.Totals.CI, most, reachText)
	part(b, "readable with weaker assurance", p.Assurance, p.Totals.Assurance, most, reachText)
	for _, s := range []struct {
		heading  string
		sections []plan.Section
	}{
		{"settings", []plan.Section{plan.Settings}},
		{"persons", []plan.Section{plan.Persons}},
		{"how bundles come into force", []plan.Section{plan.Rollouts}},
		{"whom it trusts", []plan.Section{plan.Authorities, plan.Federations}},
		{"identities", []plan.Section{plan.Identities}},
		{"secrets", []plan.Section{plan.Secrets}},
	} {
		items := slices.DeleteFunc(slices.Clone(p.Items), func(x plan.Item) bool { return !slices.Contains(s.sections, x.Section) })
		part(b, s.heading, items, len(items), most, itemText)
	}
	if left := p.Totals.Items - len(p.Items); left > 0 {
		fmt.Fprintf(b, "%d more settings, rules and secrets change\n", left)
	}
	if p.Partial {
		b.WriteString("! there is too much to compare: grants that were not looked at are listed as they are written\n")
	}
	part(b, "separation of duties", v.Separation, len(v.Separation), most, breachText)
	if v.Recovery != "" {
		fmt.Fprintf(b, "recovery\n  ! refused: %s\n", v.Recovery)
	}
}

// mark is what a reader must not pass over.
func mark(d plan.Direction) string {
	if d == plan.Narrower {
		return " "
	}
	return "!"
}

func lineText(l plan.Line) string {
	actions := make([]string, len(l.Actions))
	for i, x := range l.Actions {
		actions[i] = string(x)
	}
	text := fmt.Sprintf("%s %s  %s  %s", mark(l.Direction), l.Who, strings.Join(actions, ", "), l.Secret)
	if l.Unexamined {
		text += "  not compared"
	}
	if l.Kind == plan.Limit {
		for _, m := range l.Moves {
			text += "\n      " + moveText(m)
		}
	} else {
		for _, x := range slices.Concat(l.Before, l.After) {
			text += "\n      " + accessText(x)
		}
	}
	if len(l.Except) > 0 {
		except := make([]string, len(l.Except))
		for i, x := range l.Except {
			except[i] = x.Who + " on " + x.Secret
		}
		text += "\n      except " + strings.Join(except, ", ")
		if l.MoreExcept > 0 {
			text += fmt.Sprintf(" and %d more", l.MoreExcept)
		}
	}
	for _, g := range l.Grants {
		how := "-"
		if g.Added {
			how = "+"
		}
		text += fmt.Sprintf("\n      %s %s %s (%s)", how, g.Effect, g.Name, g.Source)
	}
	if l.MoreGrants > 0 {
		text += fmt.Sprintf("\n      and %d more grants", l.MoreGrants)
	}
	return text
}

// accessText says how something is permitted.
func accessText(x plan.Access) string {
	var parts []string
	if len(x.Purposes) > 0 {
		parts = append(parts, "for "+strings.Join(x.Purposes, ", "))
	}
	parts = append(parts, "from assurance "+x.Assurance.String())
	if x.TTL != 0 {
		parts = append(parts, "leases up to "+x.TTL.String())
	}
	if len(x.When) > 0 {
		parts = append(parts, "when "+strings.Join(quoteAll(x.When), " or "))
	}
	if len(x.Unless) > 0 {
		parts = append(parts, "unless "+strings.Join(quoteAll(x.Unless), " or "))
	}
	return strings.Join(parts, "; ")
}

// quoteAll are conditions on one line; the one that is empty always holds.
func quoteAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		if out[i] = "`" + strings.Join(strings.Fields(s), " ") + "`"; s == "" {
			out[i] = "always"
		}
	}
	return out
}

func moveText(m plan.Move) string {
	values := func(list []string) string {
		if len(list) == 0 {
			return "none"
		}
		return strings.Join(quoteAll(list), " or ")
	}
	switch m.Limit {
	case "purposes":
		var parts []string
		for _, p := range m.After {
			parts = append(parts, "+"+p)
		}
		for _, p := range m.Before {
			parts = append(parts, "-"+p)
		}
		return fmt.Sprintf("purposes %s (%s)", strings.Join(parts, " "), m.Direction)
	case "condition":
		return fmt.Sprintf("condition changed (%s)\n        before: %s\n        after:  %s", m.Direction, values(m.Before), values(m.After))
	case "prohibition":
		return fmt.Sprintf("forbidden when (%s)\n        before: %s\n        after:  %s", m.Direction, values(m.Before), values(m.After))
	}
	return fmt.Sprintf("%s %s → %s (%s)", m.Limit, strings.Join(m.Before, ", "), strings.Join(m.After, ", "), m.Direction)
}

func reachText(r plan.Reach) string {
	was := "not before"
	switch {
	case r.Before != nil:
		was = "before: from assurance " + r.Before.String()
	case r.Parts:
		was = "before: parts of it"
	}
	return fmt.Sprintf("! %s  from assurance %s; %s; by %s (%s)", r.Secret, r.After, was, r.By, r.Source)
}

func itemText(x plan.Item) string {
	sign := mark(x.Direction)
	if !x.Sensitive {
		sign = " "
	}
	if x.Section == plan.Settings && len(x.Fields) == 1 && x.How == plan.Changed {
		f := x.Fields[0]
		return fmt.Sprintf("%s %s: %s → %s (%s)", sign, f.Name, setText(f.Before), setText(f.After), f.Direction)
	}
	text := fmt.Sprintf("%s %s %s %s (%s)", sign, x.Section, x.Name, x.How, x.Direction)
	for _, f := range x.Fields {
		switch {
		case x.How == plan.Changed:
			text += fmt.Sprintf("\n      %s: %s → %s (%s)", f.Name, setText(f.Before), setText(f.After), f.Direction)
		case x.Section == plan.Persons || x.Section == plan.Rollouts || x.Section == plan.Identities:
			text += fmt.Sprintf("\n      %s: %s", f.Name, setText(slices.Concat(f.Before, f.After)))
		}
	}
	return text
}

func setText(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	const most = 8
	out := strings.Join(list[:min(len(list), most)], ", ")
	if left := len(list) - most; left > 0 {
		out += fmt.Sprintf(" and %d more", left)
	}
	return strings.Join(strings.Fields(out), " ")
}

func breachText(x plan.Breach) string {
	if x.Refused {
		return "! refused: " + x.Finding.String()
	}
	return "  advice: " + x.Finding.String()
}

func writeWidens(b *strings.Builder, who string, list []plan.Widening) {
	if len(list) == 0 {
		fmt.Fprintf(b, "%s gets nothing by it\n", who)
		return
	}
	part(b, "what "+who+" gets by it", list, len(list), len(list), func(w plan.Widening) string { return "! " + w.What + " (" + string(w.Via) + ")" })
}

func writeReplay(b *strings.Builder, r *plan.Replayed, most int) {
	fmt.Fprintf(b, "replayed: %d decisions, %d allowed and %d denied then; %d of the denied would be allowed, %d of the allowed denied\n",
		r.Decisions, r.Allowed, r.Denied, r.NowAllowed, r.NowDenied)
	part(b, "would be decided otherwise", r.Groups, len(r.Groups), most, groupText)
	if r.Others > 0 {
		fmt.Fprintf(b, "%d more, of other kinds\n", r.Others)
	}
}

func groupText(g plan.Group) string {
	sign, now := " ", "denied"
	if g.Allowed {
		sign, now = "!", "allowed"
	}
	text := fmt.Sprintf("%s %d× now %s: %s  %s  %s", sign, g.Count, now, g.Who, g.Action, g.Secret)
	if g.Purpose != "" {
		text += " for " + g.Purpose
	}
	if g.Then != "" {
		text += "; then by " + g.Then
	}
	if g.Allowed {
		text += "; now by " + g.Now
	} else {
		text += "; " + string(g.Reason) + ": " + g.Why
	}
	entries := make([]string, len(g.Samples))
	for i, s := range g.Samples {
		entries[i] = strconv.FormatUint(s.Index, 10)
	}
	return text + "\n      entries " + strings.Join(entries, ", ")
}
