package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
)

// decideView is what came of a review.
type decideView struct {
	Entries []uint64 `json:"entries"`
	Keep    int      `json:"keep"`
	Narrow  int      `json:"narrow"`
	Remove  int      `json:"remove"`
	Left    int      `json:"left"` // lines of the bundle in force that this review does not decide about
	// What follows for the bundle: whole grants to take out, and what is left to do by hand.
	Removes []string `json:"removes"`
	ByHand  []byHand `json:"by_hand"`
	Out     string   `json:"out,omitempty"`
}

// byHand is a line for a person to change in the bundle.
type byHand struct {
	Decision string `json:"decision"`
	Grant    string `json:"grant"`
	Where    string `json:"where"`
	Identity string `json:"identity"`
	Secret   string `json:"secret"`
}

func (a *app) accessDecide() *cobra.Command {
	var out string
	var yes bool
	c := &cobra.Command{
		Use: "decide FILE", Short: "Sign and enter what a worksheet decides, and prepare the change", Args: cobra.ExactArgs(1),
		Long: `Reads a worksheet of "access review" in which each line has its decision, checks that it is about
the bundle in force, shows what is to be signed, signs it with your SSH key, and has it entered.
A review of many lines is signed in parts, each an entry.

It takes nothing away. With --out, a new directory gets the bundle without the grants of which
every line is decided "remove"; what is to be narrowed, or removed from a grant that keeps other
lines, is listed for you to edit there. Proposing it is your own signed act: bundle propose.`,
		Example: "  bailment access decide review.txt --out env-reviewed\n  bailment bundle plan env-reviewed\n  bailment bundle propose env-reviewed --reason 'access review, entry 812'",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			return a.decide(ctx, c, args[0], out, yes)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "write the bundle without the removed grants into this new directory")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}

// maxWorksheet is the most bytes of a worksheet.
const maxWorksheet = 16 << 20

func (a *app) decide(ctx context.Context, c *conn, file, out string, yes bool) error {
	text, err := a.readLimited(file, maxWorksheet)
	if err != nil {
		return err
	}
	b, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	prog, err := accepted(b.files)
	if err != nil {
		return err
	}
	r := ceremony.Review{Bundle: b.manifest.Digest().String()}
	if r.Scope, err = c.reviewScope(ctx); err != nil {
		return err
	}
	if r.Person, err = c.person(); err != nil {
		return err
	}
	lines, err := readWorksheet(string(text), r.Scope, r.Bundle)
	if err != nil {
		return err
	}
	v, err := consequences(prog, lines)
	if err != nil {
		return err
	}
	if err := ownLines(prog, r.Person, lines); err != nil {
		return err
	}
	reviewed, err := policy.WithoutGrants(b.files, v.Removes)
	if err != nil {
		return wrong(err, "taking the grants out of the bundle")
	}
	if out != "" {
		if err := newDir(out); err != nil {
			return err
		}
	}
	if err := a.signReview(ctx, c, b, r, lines, v, yes); err != nil {
		return err
	}
	if out != "" {
		if err := writeBundle(out, reviewed); err != nil {
			return err
		}
		v.Out = out
	}
	return a.show(v, v.table)
}

// readWorksheet reads the decided lines, in their order. It says which are not.
func readWorksheet(text string, scope ceremony.Scope, bundle string) ([]ceremony.ReviewLine, error) {
	fix := "have a new one written: `bailment access review --worksheet FILE`"
	head := strings.SplitN(strings.ReplaceAll(text, "\r\n", "\n"), "\n", 6)
	if len(head) < 6 || head[0] != worksheetTitle {
		return nil, problem.New(problem.ReasonInvalid, "this is no worksheet of an access review").WithFix("%s", fix)
	}
	want := strings.Split(worksheetHead(scope, bundle), "\n")
	if !slices.Equal(head[1:4], want[:3]) {
		return nil, problem.New(problem.ReasonWrongEnvironment, "the worksheet is about another environment").WithFix("%s", fix)
	}
	if head[4] != want[3] {
		return nil, problem.New(problem.ReasonConflict, "the worksheet is about another bundle than the one in force").WithFix("%s", fix)
	}
	var out []ceremony.ReviewLine
	open, first := 0, 0
	for i, line := range strings.Split(head[5], "\n") {
		f := strings.Fields(line)
		at := i + 6
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#"):
			continue
		case f[0] == "?":
			if open++; open == 1 {
				first = at
			}
			continue
		}
		l, err := ceremony.ParseReviewLine(strings.Join(f, " "))
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonInvalid, "line %d of the worksheet", at)
		}
		out = append(out, l)
	}
	switch {
	case open > 0:
		return nil, problem.New(problem.ReasonInvalid, "%d %s of the worksheet without a decision, the first is line %d", open, plural(open, "line"), first).
			WithFix("put keep, narrow or remove in place of each \"?\", or take the line out")
	case len(out) == 0:
		return nil, problem.New(problem.ReasonInvalid, "the worksheet decides about nothing").WithFix("%s", fix)
	}
	slices.SortFunc(out, ceremony.ReviewLine.Compare)
	for i := range out[1:] {
		if out[i].Compare(out[i+1]) == 0 {
			return nil, problem.New(problem.ReasonInvalid, "the worksheet decides twice about %s %s %s", out[i].Grant, out[i].Identity, out[i].Secret)
		}
	}
	return out, nil
}

// consequences says what the decisions mean for the bundle.
func consequences(prog *policy.Program, lines []ceremony.ReviewLine) (*decideView, error) {
	v := &decideView{Entries: []uint64{}, Removes: []string{}, ByHand: []byHand{}}
	about := make([]policy.Line, len(lines))
	removed := map[string]int{}
	for i, l := range lines {
		about[i] = policy.Line{Grant: l.Grant, Identity: l.Identity, Secret: l.Secret}
		switch l.Decision {
		case ceremony.Keep:
			v.Keep++
		case ceremony.Narrow:
			v.Narrow++
		case ceremony.Remove:
			v.Remove++
			removed[l.Grant]++
		}
	}
	if l, missing := prog.MissingLine(about); missing {
		return nil, problem.New(problem.ReasonInvalid, "no grant %s of the bundle in force lets %s have %s", l.Grant, l.Identity, l.Secret)
	}
	where := map[string]string{}
	for _, g := range prog.Grants() {
		where[g.Name] = g.Source.String()
		if g.Effect == policy.Allow {
			v.Left += len(g.Identities) * len(g.Secrets)
		}
		if n := removed[g.Name]; n > 0 && n == len(g.Identities)*len(g.Secrets) {
			v.Removes = append(v.Removes, g.Name)
		}
	}
	v.Left -= len(lines) // each is one of them, and none is there twice
	slices.Sort(v.Removes)
	for _, l := range lines {
		if l.Decision != ceremony.Keep && !slices.Contains(v.Removes, l.Grant) {
			v.ByHand = append(v.ByHand, byHand{string(l.Decision), l.Grant, where[l.Grant], l.Identity, l.Secret})
		}
	}
	return v, nil
}

// ownLines refuses what the server would, before anything is signed or entered.
func ownLines(prog *policy.Program, person string, lines []ceremony.ReviewLine) error {
	if prog.Environment().Needs(policy.ActBundle).Self {
		return nil
	}
	for _, l := range lines {
		if l.Decision == ceremony.Keep && l.Identity == identity.PrefixHuman+person {
			return problem.New(problem.ReasonSeparation, "%s can't decide that he keeps what he has himself: %s by the grant %s", person, l.Secret, l.Grant).
				WithFix("take that line out of the worksheet, and leave it to another operator with the duty audit")
		}
	}
	return nil
}

// signReview shows, signs and enters a review, in as many parts as it takes.
func (a *app) signReview(ctx context.Context, c *conn, b *held, r ceremony.Review, lines []ceremony.ReviewLine, v *decideView, yes bool) error {
	parts := partsOf(r, lines)
	texts := make([]string, len(parts))
	for i, part := range parts {
		r.Lines, r.Nonce, r.Time = part, random(16), time.Now().UTC().Truncate(time.Second)
		texts[i] = r.Text()
		// What is to be signed is shown even with --quiet: a signature is no note.
		fmt.Fprintf(a.err, "%s\n", printable(texts[i]))
	}
	signatures, err := a.signShown(ctx, b.files, r.Person, yes, texts...)
	if err != nil {
		return err
	}
	for i, text := range texts {
		x, err := c.Access.Review(ctx, &v1.ReviewRequest{Text: text, IdempotencyKey: newKey(), Signature: signatures[i]})
		if err != nil {
			if len(v.Entries) > 0 {
				a.note("parts of it are entered: %v", v.Entries)
			}
			return err
		}
		v.Entries = append(v.Entries, x.Entry.GetIndex())
	}
	return nil
}

// signShown signs texts that the person has seen, as who the bundle lists him, in namespace change@bailment. It asks first, unless yes.
func (a *app) signShown(ctx context.Context, files policy.Files, person string, yes bool, texts ...string) ([]*v1.Signature, error) {
	if !yes {
		if err := a.confirm("sign this?"); err != nil {
			return nil, err
		}
	}
	keys, err := operatorKeys(files, person)
	if err != nil {
		return nil, err
	}
	signer, err := a.signer(ctx, keys)
	if err != nil {
		return nil, err
	}
	defer signer.Close()
	out := make([]*v1.Signature, len(texts))
	for i, text := range texts {
		signature, err := a.sign(signer, ceremony.NamespaceChange, []byte(text))
		if err != nil {
			return nil, err
		}
		out[i] = &v1.Signature{Person: person, Key: sshsig.Fingerprint(signer.PublicKey()), Sshsig: signature}
	}
	return out, nil
}

// partsOf divides lines so that each part's text fits into an entry.
func partsOf(r ceremony.Review, lines []ceremony.ReviewLine) [][]ceremony.ReviewLine {
	const headroom = 1 << 10 // for what stands above the lines, apart from names
	most := ceremony.MaxReview - headroom - len(r.Environment) - len(r.Person)
	var out [][]ceremony.ReviewLine
	size := most
	for _, l := range lines {
		n := len(l.Text()) + 1
		if size+n > most {
			out, size = append(out, nil), 0
		}
		out[len(out)-1] = append(out[len(out)-1], l)
		size += n
	}
	return out
}

func (v *decideView) table(t *rows) {
	for _, e := range v.Entries {
		t.line("entered as entry %d", e)
	}
	t.line("keep %d, narrow %d, remove %d", v.Keep, v.Narrow, v.Remove)
	if v.Left > 0 {
		t.line("%d other %s of the bundle not decided about here", v.Left, plural(v.Left, "line"))
	}
	if len(v.Removes)+len(v.ByHand) == 0 {
		t.line("the bundle stays as it is")
		return
	}
	for _, name := range v.Removes {
		t.line("take out the grant %s", name)
	}
	for _, x := range v.ByHand {
		t.line("by hand: %s %s in %s (%s): %s", x.Decision, x.Identity, x.Grant, x.Where, x.Secret)
	}
	if v.Out == "" {
		t.line("--out DIR writes the bundle without what is taken out whole")
		return
	}
	t.line("%s is the bundle without what is taken out whole: edit the rest there, then", v.Out)
	t.line("  bailment bundle test %s", v.Out)
	t.line("  bailment bundle plan %s", v.Out)
	t.line("  bailment bundle propose %s --reason 'access review, entry %d'", v.Out, v.Entries[0])
}

func (a *app) accessExport() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "export ENTRY --dir DIR", Short: "Write a signed review, so that plain ssh-keygen verifies it", Args: cobra.ExactArgs(1),
		Long:    "Writes the text of a review as it was signed, the signature, and the keys of the bundle that it\nis about, and says the command that verifies it.",
		Example: "  bailment access export 812 --dir review-812",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			e, n, err := c.entryOf(ctx, args[0])
			if err != nil {
				return err
			}
			ev, ok := e.(*state.AccessReviewed)
			if !ok {
				return problem.New(problem.ReasonNotFound, "entry %d is no access review", n).WithFix("`bailment access review` names the entries of the newest")
			}
			return a.exportReview(ctx, c, ev, dir)
		}),
	}
	c.Flags().StringVar(&dir, "dir", "", "directory to make (required)")
	must(c.MarkFlagRequired("dir"))
	return c
}

const exportReviewText = "review.txt"

// entryOf reads the event of an entry; nil if it is not there, or redacted.
func (c *conn) entryOf(ctx context.Context, arg string) (state.Event, uint64, error) {
	n, err := number(arg, "entry")
	if err != nil {
		return nil, 0, err
	}
	r, err := c.Ledger.GetEntries(ctx, &v1.GetEntriesRequest{From: n, Limit: 1})
	if err != nil || len(r.Entries) != 1 || r.Entries[0].Index != n || len(r.Entries[0].Body) == 0 {
		return nil, n, err
	}
	e, err := state.Decode(r.Entries[0].Body)
	if err != nil {
		return nil, n, err
	}
	return e.Event, n, nil
}

func (a *app) exportReview(ctx context.Context, c *conn, ev *state.AccessReviewed, dir string) error {
	text, err := ceremony.ParseReview(ev.Text)
	if err != nil {
		return problem.Wrap(err, problem.ReasonNotAuthentic, "reading the review that the server sent")
	}
	if policy.ValidPerson(text.Person) != nil || ev.Signature.Person != text.Person { // it becomes a part of a command
		return problem.New(problem.ReasonNotAuthentic, "the review is signed by %.80q", text.Person)
	}
	return a.exportSigned(ctx, c, ev.Text, ev.Signature, text.Bundle, dir)
}

// exportSigned writes what a person signed in namespace change@bailment, with the keys of a bundle.
func (a *app) exportSigned(ctx context.Context, c *conn, text string, signature state.Signature, bundle, dir string) error {
	b, err := c.bundle(ctx, bundle)
	if err != nil {
		return err
	}
	prog, err := accepted(b.files)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		exportAllowed: allowedSigners(prog), exportReviewText: []byte(text), exportReviewText + exportSigned: []byte(signature.SSHSIG),
	}
	if err := writeNew(dir, files); err != nil {
		return err
	}
	command := verifyCommand(dir, signature.Person, ceremony.NamespaceChange, exportReviewText)
	names := slices.Sorted(maps.Keys(files))
	return a.show(object{{"dir", dir}, {"files", names}, {"verify", command}}, func(t *rows) {
		t.line("%d files in %s; verify with", len(names), dir)
		t.line("%s", command)
	})
}
