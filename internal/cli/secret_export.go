package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/export"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func (a *app) secretExport() *cobra.Command {
	var o proposeOptions
	var propose bool
	var to, out string
	var change uint64
	c := &cobra.Command{
		Use: "export [PATTERN]", Short: "Take the values of many secrets out, sealed to a key, by an approved change", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeArg(0, a.secretNames),
		Long: `Exporting takes a change. With --propose it asks for one: PATTERN is a secret, a subtree (db/*) or
everything (*), and --to the recipient that the file is sealed to, the public key of an age identity
(age1...). Others approve it, and so sign who gets what; in production two besides you.

With --change you fetch the file of one that you proposed and that has its approvals: once, within
24 hours. It has the current versions of all secrets of the pattern, as they are then: at most 1,000
secrets with 4 MiB of values. A secret that is denied to you or held is refused with all others. The
ledger names what left. ` + "`age -d -i key.txt FILE`" + ` opens it; what is in it: docs/reference/exports.md.`,
		Example: "  bailment secret export 'db/*' --to age1... --propose --reason \"to the new site, ticket 981\"\n  bailment secret export --change 97 --out db.age",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			switch {
			case propose && len(args) == 1 && change == 0 && out == "":
				return a.proposeExport(ctx, c, args[0], to, o)
			case !propose && len(args) == 0 && change != 0 && out != "" && to == "":
				return a.fetchExport(ctx, c, change, out)
			case !propose && change == 0:
				return problem.New(problem.ReasonInvalid, "nobody exports alone").WithFix("propose it, for others to approve: --propose PATTERN --to age1...; then fetch it: --change N --out FILE")
			}
			return problem.New(problem.ReasonInvalid, "give either --propose PATTERN --to RECIPIENT, or --change N --out FILE")
		}),
	}
	o.flags(c)
	c.Flags().BoolVar(&propose, "propose", false, "propose it, for others to approve")
	c.Flags().StringVar(&to, "to", "", "the recipient: age1...")
	c.Flags().Uint64Var(&change, "change", 0, "fetch what this approved change exports")
	c.Flags().StringVar(&out, "out", "", "the file to write; it must not exist")
	a.complete(c, "change", a.changeNumbers)
	return c
}

func (a *app) proposeExport(ctx context.Context, c *conn, pattern, to string, o proposeOptions) error {
	if _, err := identity.ParseSecretPattern(pattern); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the pattern of secrets")
	}
	if _, err := export.ParseRecipient(to); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "--to").WithFix("make an identity with age-keygen, and give its public key")
	}
	return a.proposeTarget(ctx, c, policy.ActExport, state.ExportTarget(pattern, to), o)
}

// fetchExport writes the file. It is made before the server is asked: what is fetched once must have a place. It stays once it is whole, also
// if nobody can be told so.
func (a *app) fetchExport(ctx context.Context, c *conn, change uint64, path string) error {
	if was, err := c.Changes.GetChange(ctx, &v1.GetChangeRequest{Change: change}); err != nil {
		return err
	} else if act := was.Change.GetAction(); act != policy.ActExport { // asking for it would carry out what it is
		return problem.New(problem.ReasonInvalid, "change %d is of the act %s, and exports nothing", change, act)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return problem.New(problem.ReasonInvalid, "%s exists", path).WithFix("name another file, or remove it")
	}
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "making the file")
	}
	r, err := c.fetch(ctx, change, f)
	if err != nil {
		_, _ = f.Close(), os.Remove(path) // the first error is the one that tells
		return err
	}
	sum := sha256.Sum256(r.File)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if err := errors.Join(f.Sync(), durable.SyncDir(filepath.Dir(path)), f.Close()); err != nil { // it stays: there is no second one
		return problem.Local(err, "the export of change %d is in %s, and may not survive a crash of this machine", change, path).
			WithFix("copy it somewhere else, and compare it with its digest, %s", digest)
	}
	told := map[string]any{"change": change, "entry": r.Entry.GetIndex(), "values": r.Values, "file": path, "bytes": len(r.File), "digest": digest}
	return a.show(told, func(t *rows) {
		t.line("%d value(s) are in %s, sealed (entry %d)\n%s", r.Values, path, r.Entry.GetIndex(), digest)
	})
}

// fetch has an export carried out, and written to a file that was made for it.
func (c *conn) fetch(ctx context.Context, change uint64, f *os.File) (*v1.CarryOutResponse, error) {
	r, err := c.Changes.CarryOut(ctx, &v1.CarryOutRequest{Change: change})
	if err != nil {
		return nil, c.unfetched(ctx, change, err)
	}
	if len(r.File) == 0 {
		return nil, problem.New(problem.ReasonInvalid, "change %d is %s, and exports nothing", change, r.Change.GetState())
	}
	if _, err := f.Write(r.File); err != nil {
		return nil, problem.Local(err, "the export of change %d left the server (entry %d), and could not be written to %s", change, r.Entry.GetIndex(), f.Name()).
			WithFix("find a place for it, and propose it again: a change is fetched once")
	}
	return r, nil
}

// unfetched says of an export to which no whole answer came whether it left. Who gave up asking wants to know that, too.
func (c *conn) unfetched(ctx context.Context, change uint64, err error) error {
	p := problem.As(err)
	switch p.Kind {
	case problem.UnknownOutcome, problem.Unavailable, problem.Internal:
	default:
		return err // the server refused it
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	switch is, unseen := c.Changes.GetChange(ctx, &v1.GetChangeRequest{Change: change}); {
	case unseen != nil:
		return p.WithFix("it may have left: look with `bailment change show %d`, and if it is done propose it again, since a change is fetched once", change)
	case is.Change.GetState() == string(state.Done):
		return p.WithFix("it left, and did not arrive: propose it again, since a change is fetched once")
	}
	return p.WithFix("it has not left: ask for it again")
}

// exportMeaning says what approving an export means, who can fetch it until when, or what became of it.
func exportMeaning(info *v1.ChangeInfo, now time.Time) string {
	secrets, recipient, ok := state.ParseExportTarget(info.Target)
	if !ok {
		return ""
	}
	due, whole := info.GetDue(), len(info.ApprovedBy) >= int(info.Required)
	switch st := state.ChangeState(info.State); {
	case st == state.Done:
		return info.Proposer + " fetched it, and nobody gets it again"
	case st == state.Expired && due != nil:
		return "nobody fetched it in time: whoever still wants it has it approved again"
	case st == state.Waiting && whole && now.Before(due.AsTime()):
		return dueText(info)
	case st == state.Waiting && whole:
		return fmt.Sprintf("%s can fetch it once, until %s: bailment secret export --change %d --out FILE", info.Proposer, info.Ends.AsTime().Format(time.RFC3339), info.Change)
	case st != state.Proposed && st != state.Waiting:
		return ""
	}
	after := fmt.Sprintf("after the last of %d approvals", info.Required)
	if delay := time.Duration(info.DelaySeconds) * time.Second; delay > 0 {
		after = fmt.Sprintf("after it has waited for %s since the last of %d approvals", delay, info.Required)
	}
	return fmt.Sprintf("it gives the values of %s, as they are when it is fetched, to whoever has the key of %s, for ever.\n%s fetches the file once, within %s %s",
		secrets, recipient, info.Proposer, state.ExportWithin, after)
}
