package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// Names of what `change export` writes.
const (
	exportText     = "change.txt"
	exportManifest = "manifest.txt"
	exportAllowed  = "allowed_signers"
	exportSigned   = ".sig"
	exportApproval = "approval-" // and the person
)

func (a *app) changeExport() *cobra.Command {
	var dir, files, from string
	c := &cobra.Command{
		Use: "export CHANGE", Short: "Write a change's files, and its signed texts for ssh-keygen", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.changeNumbers),
		Long: `With --files it writes the bundle that a change follows and the one that it proposes, every
file checked against what was signed, to the directories before and after in a new one, for
diff -r and whatever else reads files.

With --dir it writes what was signed by the proposer and by each who approved, the signatures, and
an allowed_signers file made from the bundle that governed, so that plain ssh-keygen verifies them;
the commands are printed. With --ledger all of it comes from a data directory, and no server is
asked: that the entries are what was entered, ledger verify says.`,
		Example: "  bailment change export 97 --files change-97 && diff -r change-97/before change-97/after\n  bailment change export 97 --dir change-97\n" +
			"  bailment change export 97 --dir change-97 --ledger /var/lib/bailment/prod",
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir == "" && files == "" {
				return usageError{errors.New("give --files, --dir, or both")}
			}
			if from != "" {
				n, err := number(args[0], "change")
				if err != nil {
					return err
				}
				return a.exportOffline(cmd.Context(), n, from, dir, files)
			}
			return a.call(func(ctx context.Context, c *conn, args []string) error {
				n, err := number(args[0], "change")
				if err != nil {
					return err
				}
				return a.exportChange(ctx, c, n, dir, files)
			})(cmd, args)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "directory to make for the signed texts")
	c.Flags().StringVar(&files, "files", "", "directory to make for the files, before and after")
	c.Flags().StringVar(&from, "ledger", "", "data directory to read instead of asking the server")
	return c
}

type exportView struct {
	Dir      string   `json:"dir"`
	Files    []string `json:"files"`    // in dir
	Commands []string `json:"commands"` // that verify them
	Before   string   `json:"before"`   // directory of the bundle that the change follows
	After    string   `json:"after"`    // directory of the bundle that it proposes
}

func (a *app) exportChange(ctx context.Context, c *conn, n uint64, dir, files string) error {
	v, err := c.reviewChange(ctx, n)
	if err != nil {
		return err
	}
	return a.writeExport(v, v.signed(), dir, files)
}

// writeExport writes a change's files, and what was signed.
func (a *app) writeExport(v *review, s signedChange, dir, files string) error {
	var err error
	view := exportView{Files: []string{}, Commands: []string{}}
	if files != "" {
		if view.Before, view.After, err = v.writeSides(files); err != nil {
			return err
		}
		a.note("%d files in %s, %d in %s", len(v.base.files), view.Before, len(v.files), view.After)
	}
	if dir != "" {
		texts, commands, err := s.texts(v, dir)
		if err != nil {
			return err
		}
		if err := writeNew(dir, texts); err != nil {
			return err
		}
		view.Dir, view.Files, view.Commands = dir, slices.Sorted(maps.Keys(texts)), commands
	}
	return a.show(view, func(t *rows) {
		for _, c := range view.Commands {
			t.line("%s", c)
		}
	})
}

// writeSides writes the files of both bundles.
func (v *review) writeSides(dir string) (before, after string, err error) {
	if v.manifest == nil {
		return "", "", problem.New(problem.ReasonInvalid, "change %d is %s: it has no files", v.text.Number, v.text.Action).WithFix("see `bailment change show %d`", v.text.Number)
	}
	if err := newDir(dir); err != nil {
		return "", "", err
	}
	before, after = filepath.Join(dir, "before"), filepath.Join(dir, "after")
	if err := writeBundle(before, v.base.files); err != nil {
		return "", "", err
	}
	return before, after, writeBundle(after, v.files)
}

// signedText is a text that a person signed.
type signedText struct{ person, text, signature string }

// signedChange is all that was signed for a change.
type signedChange struct {
	proposal, manifest signedText // manifest has no text where it is no bundle
	approvals          []signedText
}

// signed is what the server sent of it.
func (v *review) signed() signedChange {
	person := strings.TrimPrefix(v.proposal.Change.Proposer, "/human/")
	s := signedChange{proposal: signedText{person, v.proposal.ProposalText, v.proposal.ProposalSignature.GetSshsig()}}
	if v.manifest != nil {
		s.manifest = signedText{person, string(v.manifest.Text()), v.proposal.ManifestSignature.GetSshsig()}
	}
	for _, x := range v.proposal.Approvals {
		s.approvals = append(s.approvals, signedText{x.Signature.GetPerson(), x.Text, x.Signature.GetSshsig()})
	}
	return s
}

// texts are what was signed, by the names of files, and the commands that verify them in dir.
func (s signedChange) texts(v *review, dir string) (map[string][]byte, []string, error) {
	if err := s.about(v); err != nil {
		return nil, nil, err
	}
	prog, err := accepted(v.base.files)
	if err != nil {
		return nil, nil, err
	}
	files, commands := map[string][]byte{exportAllowed: allowedSigners(prog)}, []string{}
	add := func(name, namespace string, x signedText) {
		files[name], files[name+exportSigned] = []byte(x.text), []byte(x.signature)
		commands = append(commands, verifyCommand(dir, x.person, namespace, name))
	}
	add(exportText, ceremony.NamespaceChange, s.proposal)
	if s.manifest.text != "" {
		add(exportManifest, ceremony.NamespaceBundle, s.manifest)
	}
	for _, x := range s.approvals {
		add(exportApproval+x.person+".txt", ceremony.NamespaceChange, x)
	}
	return files, commands, nil
}

// about checks that the texts are about this change, each in its role and of its person. Their signatures are for ssh-keygen to verify, which
// knows nothing of that: an approval of something else would be good.
func (s signedChange) about(v *review) error {
	for _, x := range append([]signedText{s.proposal, s.manifest}, s.approvals...) {
		if x.text != "" && policy.ValidPerson(x.person) != nil { // it becomes the name of a file, and a word of a command
			return problem.New(problem.ReasonNotAuthentic, "something of the change is signed by %.80q", x.person)
		}
	}
	p, err := ceremony.ParseChange(s.proposal.text)
	if err != nil {
		return problem.Wrap(err, problem.ReasonNotAuthentic, "reading the proposal's text")
	}
	manifest := ""
	if v.manifest != nil {
		manifest = v.manifest.Digest().String()
	}
	if p.Role != ceremony.Proposer || p.Person != s.proposal.person || p.Action != v.text.Action || p.Base != v.base.manifest.Digest().String() || p.New != manifest {
		return problem.New(problem.ReasonNotAuthentic, "what %s signed as the proposal is not about change %d", s.proposal.person, v.text.Number)
	}
	for _, x := range s.approvals {
		want := p
		want.Role, want.Person, want.Number = ceremony.Approver, x.person, v.text.Number
		c, err := ceremony.ParseChange(x.text)
		if want.Nonce = c.Nonce; err != nil || want.Text() != x.text {
			return problem.New(problem.ReasonNotAuthentic, "what %s signed as an approval is not one of change %d", x.person, v.text.Number)
		}
	}
	return nil
}

// verifyCommand is a command for a POSIX shell.
func verifyCommand(dir, person, namespace, file string) string {
	path := func(name string) string {
		return "'" + strings.ReplaceAll(filepath.Join(dir, name), "'", `'\''`) + "'"
	}
	return fmt.Sprintf("ssh-keygen -Y verify -f %s -I %s -n %s -s %s < %s", path(exportAllowed), person, namespace, path(file+exportSigned), path(file))
}

// exportOffline reads a change from a data directory.
func (a *app) exportOffline(ctx context.Context, n uint64, from, dir, files string) error {
	l, done, err := a.openLedger(ctx, from, &audit.Options{})
	if err != nil {
		return err
	}
	defer done()
	v := &review{proposal: &v1.GetChangeResponse{Change: &v1.ChangeInfo{Change: n}}}
	v.text.Number = n
	s, err := v.read(ctx, l, n)
	if err != nil {
		return err
	}
	return a.writeExport(v, s, dir, files)
}

// read fills the review from the entries about a change.
func (v *review) read(ctx context.Context, l audit.Ledger, n uint64) (signedChange, error) {
	var s signedChange
	var proposed *state.ChangeProposed
	err := l.Entries(ctx, n, int(min(l.Size, 1<<31)), func(index uint64, x store.Entry) error {
		entry, err := state.Decode(x.Body)
		if err != nil {
			return err
		}
		switch ev := entry.Event.(type) {
		case *state.ChangeProposed:
			if index == n {
				proposed = ev
				s.proposal = signedText{ev.Signature.Person, ev.Text, ev.Signature.SSHSIG}
			}
		case *state.ChangeApproved:
			if ev.Change == n {
				// Somebody whose approval no longer counted may have given another: the newest is the one.
				s.approvals = slices.DeleteFunc(s.approvals, func(y signedText) bool { return y.person == ev.Signature.Person })
				s.approvals = append(s.approvals, signedText{ev.Signature.Person, ev.Text, ev.Signature.SSHSIG})
			}
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	if proposed == nil {
		return s, problem.New(problem.ReasonNotFound, "entry %d is no proposal", n).WithFix("`bailment ledger show` lists the entries")
	}
	v.text.Action = proposed.Action
	if v.base, err = readHeld(ctx, l, proposed.Base); err != nil {
		return s, err
	}
	if proposed.Bundle == nil {
		return s, nil
	}
	next, err := readHeld(ctx, l, proposed.Manifest)
	if err != nil {
		return s, err
	}
	v.manifest, v.files = next.manifest, next.files
	s.manifest = signedText{proposed.Bundle.Person, string(next.manifest.Text()), proposed.Bundle.SSHSIG}
	return s, nil
}

// readHeld reads a bundle from a ledger's documents, each checked against its digest.
func readHeld(ctx context.Context, l audit.Ledger, digest state.Digest) (*held, error) {
	if l.Blob == nil {
		return nil, problem.New(problem.ReasonNotFound, "there are no documents beside these entries").WithFix("name a data directory")
	}
	get := func(d policy.Digest) ([]byte, error) { return l.Blob(ctx, store.Digest(d)) }
	text, err := get(policy.Digest(digest))
	if err != nil {
		return nil, wrong(err, "reading the manifest %s", digest)
	}
	m, err := policy.ParseManifest(text)
	if err != nil {
		return nil, err
	}
	if m.Digest() != policy.Digest(digest) {
		return nil, problem.New(problem.ReasonTampered, "the manifest is not the one of digest %s", digest)
	}
	files, err := m.Fetch(get)
	return &held{manifest: m, files: files}, err
}
