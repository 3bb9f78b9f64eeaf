package cli

import (
	"bytes"
	"encoding/json"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/verify"
)

func (a *app) receiptCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "receipt", Short: "Proofs of single entries", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "A receipt proves that an entry is in the ledger. It is complete in itself.", Example: "  bailment receipt verify receipt.txt",
	}
	var vkeys []string
	check := &cobra.Command{
		Use: "verify FILE", Short: "Verify a receipt, without a server", Args: cobra.ExactArgs(1),
		Long: `Verifies a receipt offline and prints the entry that it proves. The keys are those given with
--vkey, or those that are pinned here for the environment. Without any key it is only checked
that the hashes fit together: "consistent, NOT authenticated", exit code 4.`,
		Example: "  bailment receipt verify receipt.txt\n  bailment receipt verify receipt.txt --vkey bailment/prod/…",
		RunE:    func(_ *cobra.Command, args []string) error { return a.verifyReceipt(args[0], vkeys) },
	}
	check.Flags().StringArrayVar(&vkeys, "vkey", nil, "checkpoint key that is known from elsewhere, NAME+HASH+BASE64; repeatable")
	c.AddCommand(check)
	return c
}

func verifiersOf(vkeys []string) []note.Verifier {
	var out []note.Verifier
	for _, k := range vkeys {
		// What is no key verifies nothing; those that were given by hand are checked before.
		if v, err := verify.ParseVerifier(k); err == nil {
			out = append(out, v)
		}
	}
	return out
}

type receiptView struct {
	Authenticated bool            `json:"authenticated"`
	Origin        string          `json:"origin"`
	Index         int64           `json:"index"`
	Size          int64           `json:"size"` // of the tree that was signed
	Type          string          `json:"type"`
	Time          string          `json:"time"`
	Entry         json.RawMessage `json:"entry"`
}

func (a *app) verifyReceipt(path string, vkeys []string) error {
	text, err := a.readLimited(path, verify.MaxReceipt)
	if err != nil {
		return err
	}
	for _, k := range vkeys {
		if _, err := verify.ParseVerifier(k); err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "reading --vkey")
		}
	}
	r, err := verify.ParseReceipt(text)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "reading the receipt %s", path)
	}
	if len(vkeys) == 0 {
		vkeys = a.pinnedKeys()
	}
	head, err := headOf(r.Checkpoint)
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "reading the receipt's checkpoint")
	}
	view := receiptView{Origin: head.Origin, Index: r.Index, Size: head.Size, Entry: r.Body}
	if len(vkeys) > 0 {
		if _, err := r.Verify(verifiersOf(vkeys)...); err != nil {
			return problem.Wrap(err, problem.ReasonNotAuthentic, "the receipt does not verify").
				WithFix("compare with a key or bootstrap string kept elsewhere; after a key was rotated, pin again with --bootstrap")
		}
		view.Authenticated = true
	} else if err := tlog.CheckRecord(r.Proof, head.Size, head.Root, r.Index, verify.LeafHash(verify.LeafCommitment(r.Salt, r.Body))); err != nil {
		return problem.Wrap(err, problem.ReasonNotAuthentic, "the receipt's hashes don't fit together")
	}
	entry, err := state.Decode(r.Body)
	if err != nil {
		return problem.Wrap(err, problem.ReasonUnknownVersion, "reading the entry")
	}
	view.Type, view.Time = entry.Event.Kind().Type, entry.Time.String()
	if err := a.show(view, func(t *rows) { receiptTable(t, view) }); err != nil {
		return err
	}
	if !view.Authenticated {
		return codeNotAuthenticated
	}
	return nil
}

func receiptTable(t *rows, v receiptView) {
	if v.Authenticated {
		t.line("verified: entry %d of %s, under a tree of %d entries", v.Index, v.Origin, v.Size)
	} else {
		t.line("consistent, NOT authenticated: entry %d of what calls itself %s; give a key with --vkey", v.Index, v.Origin)
	}
	t.line("%s at %s", v.Type, v.Time)
	var b bytes.Buffer
	if json.Indent(&b, v.Entry, "", "  ") == nil {
		t.line("%s", b.String())
	}
}

// pinnedKeys are the keys pinned here for the environment that is meant; none if that can't be told.
func (a *app) pinnedKeys() []string {
	t, err := a.knownTrust()
	if err != nil || t == nil {
		return nil
	}
	return t.CheckpointKeys
}

// headOf reads a signed checkpoint's text, without any belief in it.
func headOf(signed []byte) (verify.Checkpoint, error) {
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	return verify.ParseCheckpoint(string(text) + "\n")
}
