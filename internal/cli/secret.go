package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

func (a *app) secretCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "secret", Short: "Secrets and their versions", RunE: group, Args: cobra.ArbitraryArgs,
		Long:    "Puts, generates, reads and retires values. A secret is declared in the bundle before it can\nhave a value. A value is never an argument: it comes from standard input, a file or a prompt.",
		Example: "  bailment secret put db/password < value\n  bailment secret get db/password",
	}
	c.AddCommand(a.secretPut(), a.secretGenerate(), a.secretGet(), a.secretList(), a.secretHistory(), a.secretExport())
	c.AddCommand(
		a.secretMove("promote", "current", "Make a staged version the current one",
			"Makes a staged version the current one. The one that was current before stays readable for\nthe time that the secret's declaration says, then it is retired."),
		a.secretMove("retire", "retired", "End a version's use", "Retires a version: nobody can read it any more. It can still be destroyed."),
		a.secretMove("destroy", "destroyed", "Remove a version's ciphertext and key for good",
			"Destroys a version: its ciphertext and its data key are removed. This can't be undone. The\nanswer says when the last backup that could still open it expires, if that is known. Where\npersons approve each other's changes it takes their approval: --propose asks for it."),
		a.secretMove("compromise", "compromised", "Mark a version as known to an adversary",
			"Marks a version as compromised: it is not handed out any more, and the ledger says why. Put\nor generate a new version; whoever holds the old value has it until the target refuses it."),
	)
	return c
}

// maxValue is what no environment allows more of (limits.valueBytes).
const maxValue = 64 << 10

func (a *app) secretPut() *cobra.Command {
	var file string
	var stage bool
	c := &cobra.Command{
		Use: "put SECRET [-]", Short: "Give a secret a new version", ValidArgsFunction: a.completeArg(0, a.secretNames),
		Long: `Makes a new version of a secret, and makes it the current one, unless --stage is given.
The value is read from standard input, from --file, or asked for on the terminal without
echo. It is stored exactly as it was read: mind the newline that echo adds.

The value is never an argument, because arguments stand in the shell's history and in the
process list of every user of the machine.`,
		Example: "  printf %s \"$value\" | bailment secret put db/password\n  bailment secret put tls/key --file key.pem\n  bailment secret put db/password        # asks",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return errors.New("name the secret")
			case len(args) > 2 || len(args) == 2 && args[1] != "-":
				return problem.New(problem.ReasonInvalid, "a value is never an argument: arguments are seen by every process of the machine").
					WithFix("pipe the value into `bailment secret put %s`, use --file, or let it ask; change the value if it was a real one", args[0])
			}
			return nil
		},
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			value, err := a.readValue(args[0], file, len(args) == 2)
			if err != nil {
				return err
			}
			defer clear(value)
			r, err := c.Secrets.Put(ctx, &v1.PutRequest{Secret: args[0], Value: value, Stage: stage, IdempotencyKey: newKey()})
			if err != nil {
				return err
			}
			return a.showWritten(r)
		}),
	}
	c.Flags().StringVar(&file, "file", "", "read the value from this file")
	c.Flags().BoolVar(&stage, "stage", false, "stage the version: it is handed out only after it is promoted")
	return c
}

func (a *app) showWritten(r *v1.PutResponse) error {
	return a.show(r, func(t *rows) {
		t.line("%s version %d is %s (entry %d)", r.Secret, r.Version, r.State, r.Entry.GetIndex())
	})
}

// readValue reads a value from where it may come from.
func (a *app) readValue(secret, file string, stdin bool) ([]byte, error) {
	in := a.in
	if file != "" {
		if stdin {
			return nil, problem.New(problem.ReasonInvalid, "give one of - and --file").WithFix("leave one out")
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, wrong(err, "reading the value")
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	} else if f, ok := in.(*os.File); ok && !stdin && term.IsTerminal(int(f.Fd())) {
		value, err := a.hidden("value of " + secret + ": ")
		if err != nil {
			return nil, err
		}
		again, err := a.hidden("once more: ")
		defer clear(again)
		switch {
		case err != nil:
		case string(again) != string(value):
			err = problem.New(problem.ReasonInvalid, "the two values differ").WithFix("try again")
		case len(value) == 0:
			err = problem.New(problem.ReasonInvalid, "the value is empty").WithFix("type one, pipe it in, or use --file")
		}
		if err != nil {
			clear(value)
			return nil, err
		}
		return value, nil
	}
	value, err := io.ReadAll(io.LimitReader(in, maxValue+1))
	switch {
	case err != nil:
		return nil, wrong(err, "reading the value")
	case len(value) > maxValue:
		clear(value)
		return nil, problem.New(problem.ReasonTooLarge, "the value has more than %d bytes", maxValue).
			WithFix("put less: what is larger belongs elsewhere, sealed with a key that is kept here")
	case len(value) == 0:
		return nil, problem.New(problem.ReasonInvalid, "the value is empty").WithFix("pipe the value in, or use --file")
	}
	return value, nil
}

func (a *app) secretGenerate() *cobra.Command {
	var recipe string
	var length int32
	var stage bool
	c := &cobra.Command{
		Use: "generate SECRET", Short: "Let the server make a new version", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.secretNames),
		Long:    "Makes a new version from the server's random source, by the recipe that the bundle declares\nfor the secret, or by --recipe. The value does not leave the server.",
		Example: "  bailment secret generate db/password\n  bailment secret generate api/token --recipe token --length 32",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			r, err := c.Secrets.Generate(ctx, &v1.GenerateRequest{Secret: args[0], Recipe: recipe, Length: length, Stage: stage, IdempotencyKey: newKey()})
			if err != nil {
				return err
			}
			return a.showWritten(r)
		}),
	}
	c.Flags().StringVar(&recipe, "recipe", "", "password, token, hex, base64, uuid or alphanumeric (default: the bundle's)")
	c.Flags().Int32Var(&length, "length", 0, "characters or random bytes, as the recipe counts (default: the bundle's)")
	c.Flags().BoolVar(&stage, "stage", false, "stage the version: it is handed out only after it is promoted")
	return c
}

type valueView struct {
	Secret  string    `json:"secret"`
	Version uint64    `json:"version"`
	Value   string    `json:"value"` // base64
	Lease   uint64    `json:"lease"`
	Expires time.Time `json:"expires"`
	Entry   uint64    `json:"entry"`
}

func (a *app) secretGet() *cobra.Command {
	var purpose, receipt string
	var number uint64
	c := &cobra.Command{
		Use: "get SECRET", Short: "Take a secret's value under a lease", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.secretNames),
		Long: `Takes a value. The hand-over is durable in the ledger before the value leaves the server,
and is a lease: for one purpose, for a limited time.

The value is written to standard output as it is; on a terminal a newline follows it. With
-o json it is base64. --receipt keeps the proof of the hand-over, for bailment receipt verify.`,
		Example: "  bailment secret get db/password --receipt receipt.txt\n  bailment secret get db/password --purpose migration",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			r, err := c.Secrets.Get(ctx, &v1.GetRequest{Secret: args[0], Purpose: purpose, Version: number, Receipt: receipt != "", IdempotencyKey: newKey()})
			if err != nil {
				return err
			}
			defer clear(r.Value)
			if receipt != "" {
				if len(r.Receipt) == 0 {
					return problem.New(problem.ReasonInternal, "the server sent no receipt")
				}
				if err := durable.WriteFile(receipt, r.Receipt, 0o644); err != nil {
					return wrong(err, "keeping the receipt")
				}
				a.note("receipt of entry %d in %s", r.Entry.GetIndex(), receipt)
			}
			return a.showValue(r)
		}),
	}
	c.Flags().StringVar(&purpose, "purpose", "", "what it is for (default runtime)")
	c.Flags().Uint64Var(&number, "version", 0, "number of the version (default: the current one)")
	c.Flags().StringVar(&receipt, "receipt", "", "write the receipt of the hand-over to this file")
	return c
}

func (a *app) showValue(r *v1.GetResponse) error {
	if a.flags.output != formatTable {
		return a.show(valueView{
			r.Secret, r.Version, base64.StdEncoding.EncodeToString(r.Value), r.Lease, r.Expires.AsTime(), r.Entry.GetIndex(),
		}, nil)
	}
	if _, err := a.out.Write(r.Value); err != nil {
		return wrong(err, "writing the value")
	}
	if f, ok := a.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if _, err := a.out.Write([]byte("\n")); err != nil {
			return wrong(err, "writing the value")
		}
	}
	a.note("%s version %d, lease %d until %s (entry %d)", r.Secret, r.Version, r.Lease, cell(r.Expires), r.Entry.GetIndex())
	return nil
}

// secrets lists all pages.
func (c *conn) secrets(ctx context.Context, prefix string) (*v1.ListSecretsResponse, error) {
	all := &v1.ListSecretsResponse{}
	for page := ""; ; {
		r, err := c.Secrets.List(ctx, &v1.ListSecretsRequest{Prefix: prefix, PageToken: page})
		if err != nil {
			return nil, err
		}
		all.Secrets = append(all.Secrets, r.Secrets...)
		if page = r.NextPageToken; page == "" {
			return all, nil
		}
	}
}

func (a *app) secretList() *cobra.Command {
	return &cobra.Command{
		Use: "list [PREFIX]", Short: "List secrets", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeArg(0, a.secretNames),
		Long: "Lists the secrets that have a version and that you may list, with the number of the current\nversion. Values are never listed.", Example: "  bailment secret list\n  bailment secret list db/ -o json",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			all, err := c.secrets(ctx, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.show(all, func(t *rows) {
				t.add("SECRET", "CURRENT", "VERSIONS")
				for _, s := range all.Secrets {
					current := strconv.FormatUint(s.Current, 10)
					if s.Current == 0 {
						current = ""
					}
					t.add(s.Secret, current, len(s.Versions))
				}
			})
		}),
	}
}

func (a *app) secretHistory() *cobra.Command {
	return &cobra.Command{
		Use: "history SECRET", Short: "List a secret's versions", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.secretNames),
		Long: "Lists the versions of a secret with their lifecycle states, who made them, and until when a\nretiring one can still be read.", Example: "  bailment secret history db/password",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			all, err := c.secrets(ctx, args[0])
			if err != nil {
				return err
			}
			for _, s := range all.Secrets {
				if s.Secret != args[0] {
					continue
				}
				return a.show(s, func(t *rows) {
					t.add("VERSION", "STATE", "CREATED", "BY", "UNTIL")
					for _, v := range s.Versions {
						t.add(v.Version, v.State, v.Created, v.By, v.Until)
					}
				})
			}
			return problem.New(problem.ReasonNotFound, "there is no version of %s that you may list", args[0]).WithFix("see `bailment secret list`")
		}),
	}
}

// secretMove is a lifecycle transition.
func (a *app) secretMove(verb, to, short, long string) *cobra.Command {
	var o proposeOptions
	var yes, propose bool
	c := &cobra.Command{
		Use: verb + " SECRET VERSION", Short: short, Long: long, Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeArg(0, a.secretNames),
		Example: "  bailment secret " + verb + " db/password 3 --reason \"ticket 42\"",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[1], "version")
			if err != nil {
				return err
			}
			if propose {
				return a.proposeDestroying(ctx, c, args[0], n, o)
			}
			if to == "destroyed" && !yes {
				if err := a.confirm("destroy version %d of %s for good?", n, args[0]); err != nil {
					return err
				}
			}
			r, err := c.Secrets.Move(ctx, &v1.MoveRequest{Secret: args[0], Version: n, To: to, Reason: o.reason})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) {
				t.line("%s version %d is %s (entry %d)", args[0], n, to, r.Entry.GetIndex())
				if r.Note != "" {
					t.line("%s", r.Note)
				}
			})
		}),
	}
	if to != "destroyed" {
		c.Flags().StringVar(&o.reason, "reason", "", "why, for the ledger")
		return c
	}
	o.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	c.Flags().BoolVar(&propose, "propose", false, "propose it, for others to approve")
	return c
}

// proposeDestroying opens a change about one version.
func (a *app) proposeDestroying(ctx context.Context, c *conn, secret string, version uint64, o proposeOptions) error {
	return a.proposeTarget(ctx, c, policy.ActDestroy, state.HoldTarget(secret, version), o)
}

func number(text, what string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, problem.New(problem.ReasonInvalid, "the %s %q is not a number", what, text).WithFix("give the number that the list shows")
	}
	return n, nil
}
