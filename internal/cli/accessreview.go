package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

func (a *app) accessCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "access", Short: "Review who has what, and decide who keeps it", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `Who has what by the bundle in force, and when it was used last. A review is a decision for each
line of it, signed and entered. It takes nothing away by itself: what it would, is proposed as a
change, and approved like any other. All of it takes the duty audit.`,
		Example: "  bailment access review --unused 90d\n  bailment access review --worksheet review.txt\n  bailment access decide review.txt --out env-reviewed",
	}
	c.AddCommand(a.accessReview(), a.accessDecide(), a.accessExport())
	return c
}

// maxAccessLines is how many lines a review lists at most: each names a grant, whom and what.
const maxAccessLines = 100_000

// accessLine is who has what by which grant.
type accessLine struct {
	Grant    string   `json:"grant"`
	Identity string   `json:"identity"` // a path, or a family of them
	Secret   string   `json:"secret"`
	Actions  []string `json:"actions"`
	Purposes []string `json:"purposes,omitempty"`
	When     string   `json:"when,omitempty"`
	// LastUsed is when at the latest; none: never within what is remembered, or that sort of use is not remembered.
	LastUsed   *time.Time    `json:"last_used,omitempty"`
	Remembered bool          `json:"remembered"` // reads are; other uses are not
	Unused     string        `json:"unused"`     // yes, no, or unknown: the memory is too short, or has no such uses
	Identities int           `json:"identities"` // how many used it
	Secrets    int           `json:"secrets"`    // how many were used by it
	Reviewed   *accessReview `json:"reviewed,omitempty"`
}

// accessReview is the newest decision about a line.
type accessReview struct {
	Decision string    `json:"decision"`
	By       string    `json:"by"`
	Time     time.Time `json:"time"`
	Entry    uint64    `json:"entry"`
}

// accessView is what `access review` lists.
type accessView struct {
	Environment  string       `json:"environment"`
	Bundle       string       `json:"bundle"`
	Generation   uint64       `json:"generation"`
	Remembered   *time.Time   `json:"remembered,omitempty"` // since when uses are; none: they are not yet
	UnusedFor    string       `json:"unused_for"`
	Lines        []accessLine `json:"lines"`
	UnusedGrants []string     `json:"unused_grants"` // of those listed whole: nobody used any of their lines for so long
}

// used is what a line says of its last use in a signed text: a whole hour within which, or after which within two, it was.
func (l *accessLine) used() string {
	switch {
	case !l.Remembered:
		return ceremony.UseUnknown
	case l.LastUsed == nil:
		return ceremony.NeverUsed
	}
	return l.LastUsed.Add(-time.Hour).UTC().Truncate(time.Hour).Format(time.RFC3339)
}

type accessOptions struct {
	unused, secrets, identities, worksheet string
	only                                   bool
}

func (a *app) accessReview() *cobra.Command {
	var o accessOptions
	c := &cobra.Command{
		Use: "review", Short: "List who has what, when it was used last, and who decided about it", Args: cobra.NoArgs,
		Long: `Lists a line for each grant of the bundle in force, whom it names and what: an identity or a
family (/workload/*), a secret or a family (db/*). The bundle is fetched and read here, and the
last uses are the server's: reads, to the hour, for 400 days, and not before the server began to
remember them, which it says. A use counts for the grant that decided it last. Writing and other
uses are not remembered; lines without reads show "-".

UNUSED is "yes" if nobody used the line for --unused, and "unknown" if that can't be told: it is
not remembered for so long, or somebody was given the same by another grant meanwhile, also one
that was renamed, and may have been given it by this one before.
--secrets and --identities list the lines that have to do with a pattern.

--worksheet writes the lines into a new text file, in which you put keep, narrow or remove in
place of each "?". Then: bailment access decide FILE.`,
		Example: "  bailment access review\n  bailment access review --unused 90d --only-unused -o json\n  bailment access review --secrets 'db/*' --worksheet review.txt",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			v, err := c.reviewAccess(ctx, o)
			if err != nil {
				return err
			}
			if o.worksheet != "" {
				text, err := c.worksheet(ctx, v)
				if err != nil {
					return err
				}
				if err := durable.CreateExclusive(o.worksheet, []byte(text), 0o644); err != nil {
					return wrong(err, "writing the worksheet")
				}
				a.note("%d %s in %s: put keep, narrow or remove in place of each \"?\", then `bailment access decide %s`", len(v.Lines), plural(len(v.Lines), "line"), o.worksheet, o.worksheet)
				return nil
			}
			return a.show(v, v.table)
		}),
	}
	f := c.Flags()
	f.StringVar(&o.unused, "unused", "90d", "how long ago the last use must be for a line to count as unused")
	f.BoolVar(&o.only, "only-unused", false, "list only the lines that are unused")
	f.StringVar(&o.secrets, "secrets", "", "only lines that have to do with these secrets: a path, a subtree (db/*) or everything (*)")
	f.StringVar(&o.identities, "identities", "", "only lines that have to do with these identities: a path, a subtree (/ci/*) or everything (/*)")
	f.StringVar(&o.worksheet, "worksheet", "", "write the lines into this new file, to be decided")
	return c
}

func (v *accessView) table(t *rows) {
	if v.Remembered == nil {
		t.line("no use was remembered yet")
	} else {
		t.line("uses are remembered since %s", stamp(*v.Remembered))
	}
	t.line("")
	t.add("GRANT", "IDENTITY", "SECRET", "MAY", "LAST USED", "UNUSED", "REVIEWED")
	for i := range v.Lines {
		l := &v.Lines[i]
		reviewed := ""
		if r := l.Reviewed; r != nil {
			reviewed = fmt.Sprintf("%s, by %s at %s", r.Decision, r.By, stamp(r.Time))
		}
		t.add(l.Grant, l.Identity, l.Secret, l.may(), l.used(), l.Unused, reviewed)
	}
	if len(v.UnusedGrants) > 0 {
		t.line("")
		t.line("nobody used these grants for %s: %s", v.UnusedFor, strings.Join(v.UnusedGrants, ", "))
	}
}

func (l *accessLine) may() string {
	short := make([]string, len(l.Actions))
	for i, x := range l.Actions {
		short[i] = strings.TrimPrefix(x, "secret.")
	}
	return strings.Join(short, ",")
}

// reviewAccess computes the lines from the bundle in force and what is remembered of its use.
func (c *conn) reviewAccess(ctx context.Context, o accessOptions) (*accessView, error) {
	unused, err := parseAgo("--unused", o.unused)
	if err != nil {
		return nil, err
	}
	var who, what identity.Pattern
	if o.identities != "" {
		if who, err = identity.ParseIDPattern(o.identities); err != nil {
			return nil, problem.Wrap(err, problem.ReasonInvalid, "--identities").WithFix("name a path (/workload/api), a subtree (/ci/*) or everything (/*)")
		}
	}
	if o.secrets != "" {
		if what, err = identity.ParseSecretPattern(o.secrets); err != nil {
			return nil, problem.Wrap(err, problem.ReasonInvalid, "--secrets").WithFix("name a path (db/password), a subtree (db/*) or everything (*)")
		}
	}
	b, err := c.bundle(ctx, "")
	if err != nil {
		return nil, err
	}
	prog, err := accepted(b.files)
	if err != nil {
		return nil, err
	}
	v := &accessView{
		Environment: c.trust.Environment, Bundle: b.manifest.Digest().String(), Generation: b.generation, UnusedFor: o.unused,
		Lines: []accessLine{}, UnusedGrants: []string{},
	}
	m := newAccessModel()
	for _, g := range prog.Grants() {
		m.add(g, who, what)
		if m.n > maxAccessLines {
			return nil, problem.New(problem.ReasonTooLarge, "there are over %d lines", maxAccessLines).WithFix("review a part: --secrets, --identities")
		}
	}
	if err := m.fill(ctx, c, v); err != nil {
		return nil, err
	}
	m.judge(v, unused, time.Now(), o.only)
	return v, nil
}

// accepted compiles what a server has taken in, also if this release would ask for more.
func accepted(files policy.Files) (*policy.Program, error) {
	b, err := policy.Load(files)
	if err != nil {
		return nil, err
	}
	return policy.CompileAccepted(b)
}

// accessModel are the lines by their grants.
type accessModel struct {
	lines  map[string][]*patterned
	at     map[accessKey]*patterned
	parts  map[string]bool // grants of which not all lines are here
	ranks  map[string]int  // of grants, in the order in which they decide
	grants []*policy.Grant
	of     map[[2]identity.Pattern][]*patterned
	n      int
}

func newAccessModel() *accessModel {
	return &accessModel{
		lines: map[string][]*patterned{}, at: map[accessKey]*patterned{}, parts: map[string]bool{}, ranks: map[string]int{}, of: map[[2]identity.Pattern][]*patterned{},
	}
}

// accessKey is what a line is about.
type accessKey struct {
	grant     string
	who, what identity.Pattern
}

// patterned is a line with its patterns, and who used it.
type patterned struct {
	accessLine
	grant       *policy.Grant
	users, used map[string]bool
	other       time.Time // when something was last used that the line is about, by a grant that this one may have taken turns with
}

func touches(filter, p identity.Pattern) bool {
	return filter == identity.Pattern{} || filter.Covers(p) || p.Covers(filter)
}

// add adds the lines of a grant that have to do with what is asked about.
func (m *accessModel) add(g policy.Grant, who, what identity.Pattern) {
	if g.Effect != policy.Allow {
		return
	}
	m.ranks[g.Name] = len(m.ranks)
	m.grants = append(m.grants, &g)
	actions := make([]string, len(g.Actions))
	for i, x := range g.Actions {
		actions[i] = string(x)
	}
	for _, i := range g.Identities {
		for _, s := range g.Secrets {
			if !touches(who, i) || !touches(what, s) {
				m.parts[g.Name] = true
				continue
			}
			if m.n++; m.n > maxAccessLines {
				return
			}
			l := &patterned{
				accessLine: accessLine{
					Grant: g.Name, Identity: i.String(), Secret: s.String(), Actions: actions, Purposes: g.Purposes, When: g.When,
					Remembered: slices.Contains(g.Actions, policy.ReadSecret),
				},
				grant: &g, users: map[string]bool{}, used: map[string]bool{},
			}
			m.lines[g.Name], m.at[accessKey{g.Name, i, s}] = append(m.lines[g.Name], l), l
			m.of[[2]identity.Pattern{i, s}] = append(m.of[[2]identity.Pattern{i, s}], l)
		}
	}
}

// fill asks for the uses and the decisions, page by page.
func (m *accessModel) fill(ctx context.Context, c *conn, v *accessView) error {
	const page = 1000
	for token := ""; ; {
		r, err := c.Access.ListUses(ctx, &v1.ListUsesRequest{PageSize: page, PageToken: token})
		if err != nil {
			return err
		}
		for _, u := range r.Uses {
			m.use(u)
		}
		if r.Remembered != nil {
			since := r.Remembered.AsTime()
			v.Remembered = &since
		}
		if token = r.NextPageToken; token == "" {
			break
		}
	}
	for token := ""; ; {
		r, err := c.Access.ListReviewed(ctx, &v1.ListReviewedRequest{PageSize: page, PageToken: token})
		if err != nil {
			return err
		}
		for _, d := range r.Lines {
			who, err1 := identity.ParseIDPattern(d.Identity)
			what, err2 := identity.ParseSecretPattern(d.Secret)
			if l := m.at[accessKey{d.Grant, who, what}]; l != nil && err1 == nil && err2 == nil {
				l.Reviewed = &accessReview{d.Decision, d.By, d.Time.AsTime(), d.Entry.GetIndex()}
			}
		}
		if token = r.NextPageToken; token == "" {
			return nil
		}
	}
}

// use counts a use for the lines of its grant that it is by. It looks up the patterns that select it, since a grant may have many lines. Of
// who was given what, the grant that decided last is remembered: others may have decided before it.
func (m *accessModel) use(u *v1.Use) {
	who, err1 := identity.ParseIDPattern(u.Identity)
	what, err2 := identity.ParseSecretPattern(u.Secret)
	if err1 != nil || err2 != nil {
		return
	}
	last, secrets := u.Last.AsTime(), append(what.Around(), what)
	for _, i := range append(who.Around(), who) {
		for _, s := range secrets {
			for _, l := range m.of[[2]identity.Pattern{i, s}] {
				switch {
				case l.Grant != u.Grant:
					if !m.decidesBefore(u.Grant, l.grant) && last.After(l.other) {
						l.other = last
					}
					continue
				case l.LastUsed == nil || last.After(*l.LastUsed):
					l.LastUsed = &last
				}
				l.users[u.Identity], l.used[u.Secret] = true, true
			}
		}
	}
}

// decidesBefore reports whether a grant decides whatever reads another one could decide for those whom it is about: it is first, and asks for
// no more. One that the bundle does not have may have been any of them, by another name.
func (m *accessModel) decidesBefore(name string, o *policy.Grant) bool {
	rank, ok := m.ranks[name]
	if !ok || rank > m.ranks[o.Name] {
		return false
	}
	g := m.grants[rank]
	return g.When == "" && g.Assurance <= o.Assurance && !slices.ContainsFunc(o.Purposes, func(p string) bool { return !slices.Contains(g.Purposes, p) })
}

// judge says what is unused, and lists the lines in their order.
func (m *accessModel) judge(v *accessView, unused time.Duration, now time.Time, only bool) {
	for name, lines := range m.lines {
		idle := !m.parts[name]
		for _, l := range lines {
			l.Identities, l.Secrets = len(l.users), len(l.used)
			switch {
			case !l.Remembered || v.Remembered == nil:
				l.Unused = "unknown"
			case l.LastUsed != nil && now.Sub(*l.LastUsed) < unused:
				l.Unused = "no"
			case now.Sub(*v.Remembered) < unused, now.Sub(l.other) < unused:
				l.Unused = "unknown"
			default:
				l.Unused = "yes"
			}
			idle = idle && l.Unused == "yes"
			if !only || l.Unused == "yes" {
				v.Lines = append(v.Lines, l.accessLine)
			}
		}
		if idle {
			v.UnusedGrants = append(v.UnusedGrants, name)
		}
	}
	slices.Sort(v.UnusedGrants)
	slices.SortFunc(v.Lines, func(x, y accessLine) int {
		return ceremony.ReviewLine{Grant: x.Grant, Identity: x.Identity, Secret: x.Secret}.Compare(ceremony.ReviewLine{Grant: y.Grant, Identity: y.Identity, Secret: y.Secret})
	})
}

const (
	worksheetTitle = "bailment access review worksheet v1"
	worksheetHelp  = `# Put keep, narrow or remove in place of each "?". Lines that you take out are not decided about.
# A line: the decision, the grant, whom it names, what, and the last use: at most two hours after that time;
# "never" as long as uses are remembered; "-" where they are not (only reads are).
`
)

// worksheet is the text in which a reviewer decides. The same lines, last uses and bundle give the same text.
func (c *conn) worksheet(ctx context.Context, v *accessView) (string, error) {
	scope, err := c.reviewScope(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(worksheetTitle + "\n" + worksheetHead(scope, v.Bundle) + worksheetHelp)
	if v.Remembered != nil {
		fmt.Fprintf(&b, "# Uses are remembered since %s.\n", stamp(*v.Remembered))
	} else {
		b.WriteString("# No use was remembered yet.\n")
	}
	grant := ""
	for i := range v.Lines {
		l := &v.Lines[i]
		if l.Grant != grant {
			grant = l.Grant
			fmt.Fprintf(&b, "\n# %s may %s%s\n", grant, l.may(), oneLine(l.limits()))
		}
		fmt.Fprintf(&b, "? %s %s %s %s\n", l.Grant, l.Identity, l.Secret, l.used())
	}
	return b.String(), nil
}

func (l *accessLine) limits() string {
	out := ""
	if len(l.Purposes) > 0 {
		out += ", for " + strings.Join(l.Purposes, ", ")
	}
	if l.When != "" {
		out += ", when " + strings.Join(strings.Fields(l.When), " ")
	}
	return out
}

// worksheetHead names what a worksheet is about.
func worksheetHead(s ceremony.Scope, bundle string) string {
	return fmt.Sprintf("environment %s\ngenesis %s\nepoch %d\nbundle %s\n", s.Environment, hex.EncodeToString(s.Genesis[:]), s.Epoch, bundle)
}

func (c *conn) reviewScope(ctx context.Context) (ceremony.Scope, error) {
	epoch, err := c.Epoch(ctx)
	return ceremony.Scope{Environment: c.trust.Environment, Genesis: c.trust.Genesis, Epoch: epoch}, err
}
