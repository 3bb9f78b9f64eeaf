package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// Names of what a recovery's directory holds. It goes from one signer to the next.
const (
	recoveryText      = "recovery.txt"
	recoveryManifest  = "manifest.txt"   // of the bundle in force
	recoveryOperators = "operators.yaml" // as they are to be
	recoveryAllowed   = "allowed_signers"
)

func (a *app) recoveryCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "recovery", Short: "Replace the operators when they can't do it: the last resort", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `When too few operators are left to change the environment, those who hold recovery keys (recovery
in environment.yaml) replace them. They can do nothing else. A recovery is signed by as many as the
bundle asks for, each where his key is; is public from its beginning; and is carried out by the
server when its delay is over. Until then a quorum of the operators ends it by any change of the
bundle, and any of its signers by taking his signature back. No login is needed.`,
		Example: "  bailment recovery prepare ./env --operators new-operators.yaml --reason \"INC-231\" --out recovery\n  bailment recovery status",
	}
	c.AddCommand(a.recoveryPrepare(), a.recoverySign(), a.recoveryStart(), a.recoveryStatus(), a.recoveryWithdraw())
	return c
}

// recoveryBase is what a recovery starts from: the bundle in force, and the operators to be.
type recoveryBase struct {
	scope     ceremony.Scope
	manifest  *policy.Manifest
	files     policy.Files
	operators []byte
}

// text computes what is to be signed, but its nonce, expiry and reason, and gives the program of the bundle in force. It is pure.
func (b *recoveryBase) text() (ceremony.Recovery, *policy.Program, error) {
	var r ceremony.Recovery
	before, err := accepted(b.files)
	if err != nil {
		return r, nil, err
	}
	by := before.Environment().Recovery
	if !by.Prepared() {
		return r, nil, problem.New(problem.ReasonUnsupported, "the bundle in force prepares no recovery").WithFix("a change of the bundle prepares it: see docs/howto/recover-operators.md")
	}
	m, files, err := policy.Recovered(b.manifest, policy.Digest(b.scope.Genesis), b.files, b.operators)
	if err != nil {
		return r, nil, err
	}
	after, err := policy.CompileRecovered(files)
	if err != nil {
		return r, nil, err
	}
	return ceremony.Recovery{
		Scope: b.scope, Base: b.manifest.Digest().String(), New: m.Digest().String(), Operators: policy.OperatorsDigest(b.operators).String(),
		Required: by.Required, Delay: by.Delay, Before: before.Persons(), After: after.Persons(),
	}, before, nil
}

// pinnedScope is the environment that is pinned here, or named by a bootstrap string, without asking anybody.
func (a *app) pinnedScope(epoch uint64) (ceremony.Scope, error) {
	t, err := a.knownTrust()
	if err != nil {
		return ceremony.Scope{}, err
	}
	if t != nil {
		return ceremony.Scope{Environment: t.Environment, Genesis: t.Genesis, Epoch: epoch}, nil
	}
	b, err := identity.ParseBootstrap(a.flags.bootstrap)
	if err != nil {
		return ceremony.Scope{}, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string").WithFix("give --bootstrap: the text names the environment's genesis")
	}
	return ceremony.Scope{Environment: b.Env, Genesis: b.Genesis, Epoch: epoch}, nil
}

func (a *app) recoveryPrepare() *cobra.Command {
	var operators, reason, out, manifest string
	var expires time.Duration
	c := &cobra.Command{
		Use: "prepare DIR --operators FILE --reason TEXT", Short: "Write what is to be signed to replace the operators", Args: cobra.ExactArgs(1),
		Long: `Computes the bundle that has the operators of FILE and else is the one in force, and writes a
directory for the signers: the text, the new list, and the manifest in force. DIR has the files
of the bundle in force, as they are in git; the server says which that is, without a login, and DIR
is compared with it. With --manifest (kept from an earlier bundle manifest) no server is asked.`,
		Example: "  bailment recovery prepare ./env --operators new-operators.yaml --reason \"INC-231: both laptops are gone\" --out recovery",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(reason) == 0 || len(reason) > 500 {
				return problem.New(problem.ReasonInvalid, "a recovery has a reason of 1 to 500 bytes")
			}
			b, err := a.recoveryInForce(cmd.Context(), args[0], manifest)
			if err != nil {
				return err
			}
			if b.operators, err = a.readLimited(operators, policy.MaxFileBytes); err != nil {
				return err
			}
			r, _, err := b.text()
			if err != nil {
				return err
			}
			r.Nonce, r.Expires, r.Reason = random(16), time.Now().Add(expires).UTC().Truncate(time.Second), reason
			text := r.Text()
			if _, err := ceremony.ParseRecovery(text); err != nil {
				return problem.Wrap(err, problem.ReasonInvalid, "writing the text")
			}
			if err := writeNew(out, map[string][]byte{recoveryText: []byte(text), recoveryManifest: b.manifest.Text(), recoveryOperators: b.operators}); err != nil {
				return err
			}
			return a.show(map[string]any{"dir": out, "text": text, "required": r.Required, "delay": r.Delay.String()}, func(t *rows) {
				t.line("%s", printable(text))
				t.line("%d of those who hold recovery keys sign it, by %s: bailment recovery sign %s --bundle DIR", r.Required, stamp(r.Expires), out)
			})
		},
	}
	c.Flags().StringVar(&operators, "operators", "", "the new operators.yaml (required)")
	c.Flags().StringVar(&reason, "reason", "", "why, for everybody to read (required)")
	c.Flags().StringVar(&out, "out", "recovery", "directory to make for the signers")
	c.Flags().StringVar(&manifest, "manifest", "", "the manifest in force, instead of asking the server")
	c.Flags().DurationVar(&expires, "expires", 7*24*time.Hour, "until when it can begin, at most 336h")
	must(c.MarkFlagRequired("operators"))
	must(c.MarkFlagRequired("reason"))
	return c
}

// recoveryInForce reads the bundle in force from a directory, and makes sure that it is the one in force.
func (a *app) recoveryInForce(ctx context.Context, dir, manifest string) (*recoveryBase, error) {
	files, err := policy.ReadFiles(os.DirFS(dir))
	if err != nil {
		return nil, err
	}
	b := &recoveryBase{files: files}
	if manifest != "" {
		text, err := a.readLimited(manifest, policy.MaxManifest)
		if err != nil {
			return nil, err
		}
		if b.manifest, err = policy.ParseManifest(text); err != nil {
			return nil, err
		}
		if b.scope, err = a.pinnedScope(0); err != nil {
			return nil, err
		}
		return b, b.manifest.Verify(files)
	}
	c, t, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	epoch, err := c.Epoch(ctx)
	if err != nil {
		return nil, err
	}
	r, err := c.Recoveries.GetRecovery(ctx, &v1.GetRecoveryRequest{})
	if err != nil {
		return nil, err
	}
	if r.Recovery != nil {
		return nil, problem.New(problem.ReasonConflict, "recovery %d is under way: there is one at a time", r.Recovery.Recovery).WithFix("see `bailment recovery status`")
	}
	b.scope = ceremony.Scope{Environment: t.Environment, Genesis: t.Genesis, Epoch: epoch}
	h := policy.Header{Environment: t.Environment, Version: r.Version}
	if r.Previous != "" {
		h.Genesis = t.Genesis
		if h.Previous, err = policy.ParseDigest(r.Previous); err != nil {
			return nil, problem.Wrap(err, problem.ReasonNotAuthentic, "what the server says of the bundle in force")
		}
	}
	if b.manifest, err = policy.BuildManifest(files, h); err != nil {
		return nil, err
	}
	if got := b.manifest.Digest().String(); got != r.Bundle {
		return nil, problem.New(problem.ReasonConflict, "%s is not the bundle in force: as version %d it would be %s, and %s is in force", dir, r.Version, got, r.Bundle).
			WithFix("check out the files that came into force last; those of a rolled back change are no more")
	}
	return b, nil
}

func (a *app) recoverySign() *cobra.Command {
	var bundle string
	var yes bool
	c := &cobra.Command{
		Use: "sign DIR --bundle BUNDLE", Short: "Sign a recovery with a recovery key", Args: cobra.ExactArgs(1),
		Long: `Computes the text once more from the files of the bundle in force in BUNDLE and from the list of
operators in DIR, and compares it with the one that is there. It shows the text, asks, signs it
in the namespace recovery@bailment and writes the signature to DIR/PERSON.sig. No server is asked;
only what is pinned here, or given by --bootstrap, says which environment it is.`,
		Example: "  bailment recovery sign recovery --bundle ./env -i ~/.ssh/recovery",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.signRecovery(cmd.Context(), args[0], bundle, yes)
		},
	}
	c.Flags().StringVar(&bundle, "bundle", "", "directory with the files of the bundle in force (required)")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	must(c.MarkFlagRequired("bundle"))
	return c
}

func (a *app) signRecovery(ctx context.Context, dir, bundle string, yes bool) error {
	text, err := a.readLimited(filepath.Join(dir, recoveryText), ceremony.MaxRecovery)
	if err != nil {
		return err
	}
	signed, err := ceremony.ParseRecovery(string(text))
	if err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "reading %s", recoveryText)
	}
	b, err := a.recoveryInForce(ctx, bundle, filepath.Join(dir, recoveryManifest))
	if err != nil {
		return err
	}
	b.scope.Epoch = signed.Epoch // which the server compares, and a text of another is nothing in it
	if b.operators, err = a.readLimited(filepath.Join(dir, recoveryOperators), policy.MaxFileBytes); err != nil {
		return err
	}
	want, before, err := b.text()
	if err != nil {
		return err
	}
	want.Nonce, want.Expires, want.Reason = signed.Nonce, signed.Expires, signed.Reason
	if want.Text() != string(text) {
		return problem.New(problem.ReasonNotAuthentic, "the text is not what these files come to").WithFix("don't sign it: compute it yourself, with `bailment recovery prepare`")
	}
	// What is to be signed is shown even with --quiet: a signature is no note.
	fmt.Fprintf(a.err, "%s\n", printable(string(text)))
	if !yes {
		if err := a.confirm("sign this?"); err != nil {
			return err
		}
	}
	by := before.Environment().Recovery
	keys := make([]ssh.PublicKey, len(by.Keys))
	for i, k := range by.Keys {
		keys[i] = k.Key
	}
	signer, err := a.signer(ctx, keys)
	if err != nil {
		return err
	}
	defer signer.Close()
	fingerprint := sshsig.Fingerprint(signer.PublicKey())
	i := slices.IndexFunc(by.Keys, func(k policy.RecoveryKey) bool { return k.Fingerprint == fingerprint })
	if i < 0 {
		return problem.New(problem.ReasonSignature, "%s is no recovery key of the bundle in force", fingerprint).WithFix("sign with a key that recovery in environment.yaml lists")
	}
	signature, err := a.sign(signer, ceremony.NamespaceRecovery, text)
	if err != nil {
		return err
	}
	name := by.Keys[i].Person + exportSigned
	if err := durable.WriteFile(filepath.Join(dir, name), []byte(signature), 0o644); err != nil {
		return wrong(err, "writing the signature")
	}
	return a.show(map[string]any{"person": by.Keys[i].Person, "key": fingerprint, "file": filepath.Join(dir, name)}, func(t *rows) {
		t.line("signed by %s: %s", by.Keys[i].Person, filepath.Join(dir, name))
	})
}

func (a *app) recoveryStart() *cobra.Command {
	return &cobra.Command{
		Use: "start DIR", Short: "Begin a recovery that enough persons signed", Args: cobra.ExactArgs(1),
		Long: `Sends the text, the new list of operators and the signatures (PERSON.sig) in DIR. Anybody may, and
no login is needed. Of more signatures than it takes the first are sent, by name. The same text
again, while it is under way, gives the same answer.`,
		Example: "  bailment recovery start recovery",
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := a.readRecovery(args[0])
			if err != nil {
				return err
			}
			c, _, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Recoveries.StartRecovery(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) {
				t.line("recovery %d is under way: it replaces the operators at %s", r.Recovery, stamp(r.Until.AsTime()))
			})
		},
	}
}

// readRecovery reads what a directory holds. What counts is for the server to say.
func (a *app) readRecovery(dir string) (*v1.StartRecoveryRequest, error) {
	text, err := a.readLimited(filepath.Join(dir, recoveryText), ceremony.MaxRecovery)
	if err != nil {
		return nil, err
	}
	signed, err := ceremony.ParseRecovery(string(text))
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading %s", recoveryText)
	}
	req := &v1.StartRecoveryRequest{Text: string(text)}
	if req.Operators, err = a.readLimited(filepath.Join(dir, recoveryOperators), policy.MaxFileBytes); err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*"+exportSigned))
	if err != nil {
		return nil, wrong(err, "looking for signatures")
	}
	for _, path := range found[:min(len(found), max(signed.Required, 0))] {
		signature, err := a.readLimited(path, 8<<10)
		if err != nil {
			return nil, err
		}
		req.Signatures = append(req.Signatures, &v1.Signature{Person: strings.TrimSuffix(filepath.Base(path), exportSigned), Sshsig: string(signature)})
	}
	return req, nil
}

func (a *app) recoveryStatus() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "status", Short: "Show the recovery that is under way", Args: cobra.NoArgs,
		Long: `Shows whether a recovery is under way, what was signed, by whom, and when it replaces the
operators. No login is needed. With --out it writes the text, the signatures and the keys that made
them to a new directory, so that plain ssh-keygen verifies them: compare those keys with recovery
in environment.yaml.`,
		Example: "  bailment recovery status\n  bailment recovery status --out under-way",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Recoveries.GetRecovery(cmd.Context(), &v1.GetRecoveryRequest{})
			if err != nil {
				return err
			}
			commands := []string{}
			if out != "" {
				if commands, err = exportRecovery(r.Recovery, out); err != nil {
					return err
				}
			}
			return a.show(r, func(t *rows) {
				if r.Recovery == nil {
					t.line("no recovery is under way")
					return
				}
				t.line("%s", recoveryWarning(r.Recovery.Recovery, r.Recovery.Until.AsTime()))
				for _, x := range r.Recovery.Signatures {
					t.line("signed by %s (%s)", x.Person, x.Key)
				}
				t.line("\n%s", printable(r.Recovery.Text))
				for _, c := range commands {
					t.line("%s", c)
				}
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to make for what was signed")
	return c
}

// recoveryWarning is what every operator is to see.
func recoveryWarning(n uint64, until time.Time) string {
	return fmt.Sprintf("RECOVERY %d IS UNDER WAY: it replaces the operators at %s (bailment recovery status; any approved change of the bundle ends it)", n, stamp(until))
}

// exportRecovery writes what was signed, and gives the commands that verify it.
func exportRecovery(r *v1.RecoveryInfo, dir string) ([]string, error) {
	if r == nil {
		return nil, problem.New(problem.ReasonNotFound, "no recovery is under way")
	}
	files, commands := map[string][]byte{recoveryText: []byte(r.Text)}, []string{}
	var allowed bytes.Buffer
	for _, x := range r.Signatures {
		sig, err := sshsig.ParseSignature([]byte(x.Sshsig))
		if err != nil || policy.ValidPerson(x.Person) != nil || sshsig.Fingerprint(sig.Key) != x.Key { // it becomes the name of a file
			return nil, problem.New(problem.ReasonNotAuthentic, "a signature is by %.80q", x.Person)
		}
		files[x.Person+exportSigned] = []byte(x.Sshsig)
		fmt.Fprintf(&allowed, "%s namespaces=\"%s\" %s", x.Person, ceremony.NamespaceRecovery, ssh.MarshalAuthorizedKey(sig.Key))
		commands = append(commands, strings.Replace(verifyCommand(dir, x.Person, ceremony.NamespaceRecovery, recoveryText), recoveryText+exportSigned, x.Person+exportSigned, 1))
	}
	files[recoveryAllowed] = allowed.Bytes()
	return commands, writeNew(dir, files)
}

func (a *app) recoveryWithdraw() *cobra.Command {
	var reason string
	var yes bool
	c := &cobra.Command{
		Use: "withdraw --reason TEXT", Short: "Take back one's signature of the recovery that is under way", Args: cobra.NoArgs,
		Long: `Ends the recovery that is under way: with one signature less there are too few. It is signed with
the recovery key that signed it. Who didn't sign it can't; a quorum of the operators ends it by any
change.`,
		Example: "  bailment recovery withdraw --reason \"the keys were found\" -i ~/.ssh/recovery",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withdraw(cmd.Context(), reason, yes)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for everybody to read (required)")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	must(c.MarkFlagRequired("reason"))
	return c
}

func (a *app) withdraw(ctx context.Context, reason string, yes bool) error {
	c, t, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	epoch, err := c.Epoch(ctx)
	if err != nil {
		return err
	}
	r, err := c.Recoveries.GetRecovery(ctx, &v1.GetRecoveryRequest{})
	if err != nil {
		return err
	}
	if r.Recovery == nil {
		return problem.New(problem.ReasonNotFound, "no recovery is under way")
	}
	under, err := ceremony.ParseRecovery(r.Recovery.Text)
	if err != nil {
		return problem.Wrap(err, problem.ReasonNotAuthentic, "the text that the server sent")
	}
	signer, err := a.signer(ctx, nil)
	if err != nil {
		return err
	}
	defer signer.Close()
	fingerprint := sshsig.Fingerprint(signer.PublicKey())
	i := slices.IndexFunc(r.Recovery.Signatures, func(x *v1.Signature) bool { return x.Key == fingerprint })
	if i < 0 {
		return problem.New(problem.ReasonSignature, "%s didn't sign recovery %d", fingerprint, r.Recovery.Recovery).WithFix("sign with the key that signed it; a quorum of the operators ends it by any change")
	}
	w := ceremony.Withdrawal{
		Scope:    ceremony.Scope{Environment: t.Environment, Genesis: t.Genesis, Epoch: epoch},
		Recovery: r.Recovery.Recovery, New: under.New, Person: r.Recovery.Signatures[i].Person, Reason: reason,
	}
	text := w.Text()
	fmt.Fprintf(a.err, "%s\n", printable(text))
	if !yes {
		if err := a.confirm("sign this?"); err != nil {
			return err
		}
	}
	signature, err := a.sign(signer, ceremony.NamespaceRecovery, []byte(text))
	if err != nil {
		return err
	}
	done, err := c.Recoveries.WithdrawRecovery(ctx, &v1.WithdrawRecoveryRequest{Text: text, Signature: &v1.Signature{Person: w.Person, Key: fingerprint, Sshsig: signature}})
	if err != nil {
		return err
	}
	return a.show(done, func(t *rows) {
		t.line("recovery %d is withdrawn (entry %d)", w.Recovery, done.Entry.GetIndex())
	})
}
