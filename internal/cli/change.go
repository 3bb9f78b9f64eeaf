package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
)

func (a *app) changeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "change", Short: "What is proposed, and approving it", RunE: group, Args: cobra.ArbitraryArgs,
		Long:    "A change is a proposed bundle or sensitive act. It collects approvals, one a person, and takes\neffect with the last one needed. What can't be undone may have to wait first.",
		Example: "  bailment change list --open\n  bailment change approve 97",
	}
	c.AddCommand(a.changeList(), a.changeShow(), a.changeApprove(), a.changeReject(), a.changeCarryOut(), a.changeRollback(), a.changeExport())
	return c
}

func (a *app) changeList() *cobra.Command {
	var open, mine bool
	c := &cobra.Command{
		Use: "list", Short: "List changes", Args: cobra.NoArgs,
		Long:    "Lists changes, newest first, with their state and who has approved them. --mine leaves those that\nwait for you: open, not your own, and not approved by you yet.",
		Example: "  bailment change list --open\n  bailment change list --mine",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			r, err := c.Changes.ListChanges(ctx, &v1.ListChangesRequest{OpenOnly: open, Mine: mine})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) {
				if r.Recovery != 0 {
					t.line("%s", recoveryWarning(r.Recovery, r.RecoveryUntil.AsTime()))
				}
				t.add("CHANGE", "ACTION", "STATE", "BY", "APPROVED", "EXPIRES", "REASON")
				for _, x := range r.Changes {
					was, ends := x.State, x.Expires
					if x.Due != nil {
						was, ends = was+" until "+x.Due.AsTime().Format(time.RFC3339), x.Ends
					}
					t.add(x.Change, x.Action, was, x.Proposer, fmt.Sprintf("%d/%d", len(x.ApprovedBy), x.Required), ends, brief(x.Reason))
				}
			})
		}),
	}
	c.Flags().BoolVar(&open, "open", false, "only those that can still be approved, or carried out")
	c.Flags().BoolVar(&mine, "mine", false, "only those that wait for your approval")
	return c
}

// review is a change as this side understands it, each part checked against what it is called by.
type review struct {
	text     ceremony.Change // of an approval by person; Nonce is not set
	proposal *v1.GetChangeResponse
	manifest *policy.Manifest // nil for other acts than a bundle
	files    policy.Files
	base     *held
	diff     []changedFile // between base and files, of which each was checked against its signed manifest
}

// reviewChange fetches a change and computes what approving it would mean. Nothing of it is taken from the server's
// word that can be computed: the digests are those of the bytes that came, the scope is the pinned one.
func (c *conn) reviewChange(ctx context.Context, n uint64) (*review, error) {
	r, err := c.Changes.GetChange(ctx, &v1.GetChangeRequest{Change: n})
	if err != nil {
		return nil, err
	}
	if r.Change == nil || r.Change.Change != n {
		return nil, problem.New(problem.ReasonNotAuthentic, "the server sent another change than %d", n)
	}
	base, err := c.bundle(ctx, r.Change.Base)
	if err != nil {
		return nil, err
	}
	epoch, err := c.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	person, err := c.person()
	if err != nil {
		return nil, err
	}
	v := &review{proposal: r, base: base}
	return v, v.compute(c.trust, epoch, person)
}

// compute fills in what follows from the fetched parts, and refuses what does not fit together. It is pure.
func (v *review) compute(t *client.Trust, epoch uint64, person string) error {
	info := v.proposal.Change
	bad := func(format string, args ...any) error {
		return problem.New(problem.ReasonNotAuthentic, "change %d: %s", info.Change, fmt.Sprintf(format, args...)).
			WithFix("don't approve it: what the server shows does not fit together")
	}
	if _, known := policy.FindAct(info.Action); !known {
		return problem.New(problem.ReasonUnknownVersion, "change %d is about %.80q, which this release does not know: it can't say what it would do", info.Change, info.Action)
	}
	v.text = ceremony.Change{
		Scope:  ceremony.Scope{Environment: t.Environment, Genesis: t.Genesis, Epoch: epoch},
		Action: info.Action, Base: v.base.manifest.Digest().String(), Target: info.Target, Role: ceremony.Approver,
		Person: person, Number: info.Change, Expires: info.Expires.AsTime(), Reason: info.Reason,
	}
	if info.Action == "bundle" {
		var err error
		if v.manifest, v.files, err = assemble(v.proposal.Manifest, v.proposal.Files); err != nil {
			return err
		}
		h := v.manifest.Header()
		switch {
		case info.Manifest != v.manifest.Digest().String():
			return bad("it names manifest %s, and %s was sent", info.Manifest, v.manifest.Digest())
		case h.Environment != t.Environment || h.Genesis != policy.Digest(t.Genesis):
			return bad("its manifest is of another environment")
		case h.Previous != v.base.manifest.Digest():
			return bad("its manifest follows another bundle than its base")
		}
		v.text.New, v.diff = v.manifest.Digest().String(), differences(v.base.files, v.files)
	}
	return v.checkProposal(bad)
}

// computeRollout fills in how a bundle comes into force: the rollout and what is containment are the proposer's choice, which he signed,
// and what it may be rolled back to follows from the files.
func (v *review) computeRollout(signed ceremony.Change, bad func(string, ...any) error) error {
	v.text.Version = signed.Version
	if v.manifest == nil {
		return nil
	}
	if _, err := compile(v.files); err != nil {
		return err
	}
	if _, err := accepted(v.base.files); err != nil {
		return problem.Wrap(err, problem.ReasonUnknownVersion, "the bundle that change %d follows, which another release accepted", v.proposal.Change.Change)
	}
	if signed.Version == 1 {
		return nil
	}
	v.text.Rollout, v.text.Containment = signed.Rollout, signed.Containment
	var err error
	if v.text.Rollback, err = policy.RollbackDigest(v.manifest, v.base.files, v.files, signed.Containment); err != nil {
		return bad("what it can be rolled back to can't be computed: %v", err)
	}
	return nil
}

// checkProposal verifies that what the proposer signed is this, by a key that the base lists for him.
func (v *review) checkProposal(bad func(string, ...any) error) error {
	signed, err := ceremony.ParseChange(v.proposal.ProposalText)
	if problem.Is(err, problem.ReasonUnknownVersion) {
		return problem.Wrap(err, problem.ReasonUnknownVersion, "what the proposer of change %d signed", v.proposal.Change.Change)
	}
	if err != nil {
		return bad("its signed text can't be read")
	}
	if err := v.computeRollout(signed, bad); err != nil {
		return err
	}
	want := v.text
	want.Role, want.Number, want.Nonce, want.Person = ceremony.Proposer, 0, signed.Nonce, signed.Person
	if want.Text() != v.proposal.ProposalText || "/human/"+signed.Person != v.proposal.Change.Proposer {
		return bad("what its proposer signed is something else")
	}
	keys, err := operatorKeys(v.base.files, signed.Person)
	if err != nil {
		return err
	}
	if _, err := sshsig.Verify([]byte(v.proposal.ProposalSignature.GetSshsig()), keys, ceremony.NamespaceChange, []byte(v.proposal.ProposalText)); err != nil {
		return bad("its proposer's signature does not verify: %v", err)
	}
	return nil
}

// writePlan says what the change means, computed here from the files that came, and what it would give to who decides about it.
func (v *review) writePlan(w io.Writer, person string) {
	if v.manifest == nil {
		return
	}
	before, err := accepted(v.base.files)
	if err != nil {
		return // what came into force once, and what is proposed, were compiled before
	}
	after, err := accepted(v.files)
	if err != nil {
		return
	}
	printPlan(w, before, after, person, proposedLines)
}

// textLeftOut tells who decides that he has not seen everything.
func (v *review) textLeftOut(left int) string {
	return fmt.Sprintf("%d more %s: bailment change export %d --files DIR writes both sides", left, plural(left, "line"), v.proposal.Change.Change)
}

type reviewView struct {
	Change       any        `json:"change"`
	Text         string     `json:"proposal_text"`
	Files        []fileView `json:"files"`
	ApprovalText string     `json:"approval_text"`
}

func (a *app) changeShow() *cobra.Command {
	return &cobra.Command{
		Use: "show CHANGE", Short: "Show what a change would do", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.changeNumbers),
		Long: `Fetches a change, checks its digests and its proposer's signature here, and shows what was
signed, what the change means (who gains, who loses, which limits move), where its rollout is, and,
in the unified format, how the files differ from the bundle that it follows. With
-o json each of these files comes with its content on both sides.`,
		Example: "  bailment change show 97 | less\n  bailment change show 97 -o json | jq -r '.files[].after.text'",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "change")
			if err != nil {
				return err
			}
			v, err := c.reviewChange(ctx, n)
			if err != nil {
				return err
			}
			info := v.proposal.Change
			view := reviewView{objectOf(info.ProtoReflect()), v.proposal.ProposalText, viewFiles(v.diff), v.text.Text()}
			return a.show(view, func(t *rows) {
				by := ""
				if len(info.ApprovedBy) > 0 {
					by = ": " + strings.Join(info.ApprovedBy, ", ")
				}
				t.line("change %d is %s, approved by %d of %d%s", n, info.State, len(info.ApprovedBy), info.Required, by)
				if info.Progress != nil {
					showProgress(t, info.Progress)
				}
				if text := v.waits(time.Now()); text != "" {
					t.line("%s", text)
				}
				t.line("\n%s", v.proposal.ProposalText)
				var meaning strings.Builder
				v.writePlan(&meaning, v.text.Person)
				t.line("%s", meaning.String())
				text, left := unified(v.diff)
				t.line("%s", text)
				if left > 0 {
					t.line("%s", v.textLeftOut(left))
				}
			})
		}),
	}
}

func (a *app) changeApprove() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "approve CHANGE", Short: "Approve a change with an SSH signature", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.changeNumbers),
		Long: `Fetches the change and its files, computes the manifest's digest and the text to sign here,
from what is pinned and from the bytes that came. It shows the text, what the change means, what it
would give to you, and how the files differ from the bundle that it follows; asks, and signs the
text in the namespace change@bailment. Whatever else the server shows, only this is what is
approved.`,
		Example: "  bailment change approve 97\n  bailment change approve 97 --yes -i SHA256:…",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "change")
			if err != nil {
				return err
			}
			return a.approve(ctx, c, n, yes)
		}),
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}

func (a *app) approve(ctx context.Context, c *conn, n uint64, yes bool) error {
	v, err := c.reviewChange(ctx, n)
	if err != nil {
		return err
	}
	// What can't be approved any more is not put before a person to sign. The server would refuse it, too.
	info := v.proposal.Change
	if was := info.State; was != string(state.Proposed) && (was != string(state.Waiting) || len(info.ApprovedBy) >= int(info.Required)) {
		return problem.New(problem.ReasonConflict, "change %d is %s", n, was).WithFix("see `bailment change show %d`; those that can still be approved: `bailment change list --open`", n)
	}
	now, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	if now.manifest.Digest() != v.base.manifest.Digest() {
		return problem.New(problem.ReasonConflict, "change %d was made for bundle %s, which is no longer in force", n, v.base.manifest.Digest()).
			WithFix("have it proposed again, from the bundle in force; `bailment change reject %d` ends this one", n)
	}
	v.text.Nonce = random(16)
	text := v.text.Text()
	// What is to be signed is shown even with --quiet: a signature is no note.
	fmt.Fprintf(a.err, "%s\n", printable(text))
	if text := v.waits(time.Now()); text != "" {
		fmt.Fprintf(a.err, "%s\n", text)
	}
	if v.manifest != nil {
		fmt.Fprintf(a.err, "files that differ from generation %d:\n", v.base.generation)
		text, left := unified(v.diff)
		fmt.Fprintln(a.err, text)
		if left > 0 {
			fmt.Fprintln(a.err, v.textLeftOut(left))
		}
		v.writePlan(a.err, v.text.Person)
		if next, err := compile(v.files); err == nil {
			a.noteAgents(ctx, c, v.base.files, next)
		}
	}
	signatures, err := a.signShown(ctx, v.base.files, v.text.Person, yes, text)
	if err != nil {
		return err
	}
	r, err := c.Changes.Approve(ctx, &v1.ApproveRequest{Change: n, Text: text, Signature: signatures[0]})
	if err != nil {
		return err
	}
	return a.show(r, func(t *rows) {
		t.line("change %d is %s, approved by %d of %d (entry %d)", n, r.Change.GetState(), len(r.Change.GetApprovedBy()), r.Change.GetRequired(), r.Entry.GetIndex())
		switch {
		case r.Generation > 0:
			t.line("generation %d is in force", r.Generation)
		case r.Change.GetProgress() != nil:
			showProgress(t, r.Change.Progress)
		case r.Change.GetDue() != nil:
			t.line("%s", dueText(r.Change))
		}
	})
}

// showProgress says where a rollout is, and what it saw.
func showProgress(t *rows, p *v1.RolloutInfo) {
	whom := "everybody"
	switch {
	case p.Share > 0:
		whom = fmt.Sprintf("%d %% of the identities", p.Share)
	case len(p.Cohort) > 0:
		whom = strings.Join(p.Cohort, ", ")
	case p.Stage == policy.StageShadow:
		whom = "nobody, and is compared for everybody"
	}
	t.line("%s, step %d of %d, until %s: it governs %s", p.Stage, p.Step, p.Steps, p.Until.AsTime().Format(time.RFC3339), whom)
	t.line("%d machines and repositories asked; %d decisions were compared, %d differ", p.Asked, p.Compared, p.Differed)
	for _, x := range p.Triggers {
		t.line("trigger: %d %s; at %d, and over %d %%, it is taken back", x.Counted, x.On, x.Sources, x.Share)
	}
	for _, d := range p.Differences {
		now, then := "refused", "allowed"
		if d.Allowed {
			now, then = then, now
		}
		t.line("  %d times: %s %s on %s: %s, by the other bundle %s (%s)", d.Count, d.Identity, d.Action, d.Secret, now, then, d.Reason)
	}
}

func (a *app) changeRollback() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "rollback CHANGE", Short: "Take back a change that is rolled out or in force", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.changeNumbers),
		Long: `Takes a change back in one commit. One that is still being rolled out ends there. One that is in
force gives way to the manifest that its approval pre-authorised: the bundle before it, with the
operators, the agents' floor, the approvals and what was marked as containment as in the change.
Nothing older comes back. It takes the duty approve, or to have proposed the change.`,
		Example: "  bailment change rollback 97 --reason \"INC-231: the workers can't read their key\"",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "change")
			if err != nil {
				return err
			}
			r, err := c.Changes.RollBack(ctx, &v1.RollBackRequest{Change: n, Reason: reason})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { t.line("change %d is %s (entry %d)", n, r.Change.GetState(), r.Entry.GetIndex()) })
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the ledger (required)")
	must(c.MarkFlagRequired("reason"))
	return c
}

func (a *app) changeReject() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "reject CHANGE", Short: "End a change without effect", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.changeNumbers),
		Long: "Ends a change. Whoever may approve may reject, and proposers may take back their own.", Example: "  bailment change reject 97 --reason \"too broad\"",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "change")
			if err != nil {
				return err
			}
			r, err := c.Changes.Reject(ctx, &v1.RejectRequest{Change: n, Reason: reason})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { t.line("change %d is rejected (entry %d)", n, r.Entry.GetIndex()) })
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the ledger")
	return c
}

// completionWait bounds what a Tab may cost.
const completionWait = 2 * time.Second
