package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
)

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "key", Short: "Keys of the environment", RunE: group, Args: cobra.ArbitraryArgs,
		Long: "Lists and rotates the environment's own keys: certificate authority, checkpoint and\nkey-encryption keys. It needs the duty keys.", Example: "  bailment key list\n  bailment key rotate kek && bailment key rewrap",
	}
	c.AddCommand(
		&cobra.Command{
			Use: "list", Short: "List keys", Args: cobra.NoArgs,
			Long: "Lists the public side of every key, with the entry that added it.", Example: "  bailment key list",
			RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
				r, err := c.Keys.ListKeys(ctx, &v1.ListKeysRequest{})
				if err != nil {
					return err
				}
				return a.show(r, func(t *rows) {
					t.add("KEY", "CURRENT", "THUMBPRINT", "NOT AFTER", "ENTRY")
					for _, k := range r.Keys {
						t.add(k.Name, k.Current, k.Thumbprint, k.NotAfter, k.Entry)
					}
				})
			}),
		},
		&cobra.Command{
			Use: "rotate KIND", Short: "Add a key and make it the current one", Args: cobra.ExactArgs(1), ValidArgs: []string{"ca", "checkpoint", "kek", "jwt"},
			Long: "Adds a key of a kind (ca, checkpoint, kek, jwt). The one before stays usable for what it was used\nfor. After rotating kek, `key rewrap` moves the data keys. A new jwt key is published now and signs\nafter the next rotation; the one that was published before signs from here on.", Example: "  bailment key rotate checkpoint",
			RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
				r, err := c.Keys.RotateKey(ctx, &v1.RotateKeyRequest{Kind: args[0]})
				if err != nil {
					return err
				}
				if args[0] == "jwt" {
					return a.show(r, func(t *rows) { t.line("%s is published (entry %d)", r.Name, r.Entry.GetIndex()) })
				}
				return a.show(r, func(t *rows) { t.line("%s is current (entry %d)", r.Name, r.Entry.GetIndex()) })
			}),
		},
		a.keyWithdraw(), a.keyCustody(),
		&cobra.Command{
			Use: "rewrap", Short: "Move data keys under the current key-encryption key", Args: cobra.NoArgs,
			Long: "Wraps every data key anew under the current key-encryption key. No value is decrypted. It can be\nbroken off at any time and run again: what is done stays done.", Example: "  bailment key rewrap",
			RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
				stream, err := c.Keys.Rewrap(ctx, &v1.RewrapRequest{})
				if err != nil {
					return err
				}
				defer func() { _ = stream.Close() }() // the context ends it
				last := &v1.RewrapProgress{}
				for stream.Receive() {
					last = stream.Msg()
					a.note("%d of %d", last.Done, last.Total)
				}
				if err := stream.Err(); err != nil {
					return err
				}
				return a.show(last, func(t *rows) { t.line("%d data keys moved", last.Done) })
			}),
		},
	)
	return c
}

func (a *app) keyWithdraw() *cobra.Command {
	var compromised bool
	var reason string
	c := &cobra.Command{
		Use: "withdraw KEY", Short: "Tell others to trust a key no more", Args: cobra.ExactArgs(1),
		Long: "Takes a former CA or jwt key, and those of its kind before it, out of the trust bundle that\n" +
			"workloads and other trust domains are told. It is refused while something that the key signed\n" +
			"is valid, unless the key is in wrong hands. Rotate the current one first.",
		Example: "  bailment key withdraw ca/1 --reason \"rotated last week\"\n  bailment key rotate ca && bailment key withdraw ca/2 --compromised --reason \"stolen backup\"",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			r, err := c.Spiffe.WithdrawKey(ctx, &v1.WithdrawKeyRequest{Key: args[0], Compromised: compromised, Reason: reason})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { t.line("%s is withdrawn (entry %d)", args[0], r.Entry.GetIndex()) })
		}),
	}
	c.Flags().BoolVar(&compromised, "compromised", false, "although what it signed may still be valid")
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the ledger")
	return c
}
