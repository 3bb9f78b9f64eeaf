package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/reach"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

func (a *app) bundleCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "bundle", Short: "The environment as code", RunE: group, Args: cobra.ArbitraryArgs,
		Long:    "A bundle is a directory of YAML that says everything about an environment: its settings,\noperators, identities, grants and secrets. It comes into force by an approved change.",
		Example: "  bailment bundle check .\n  bailment bundle test . --mutate\n  bailment bundle propose . --reason \"let the worker read its key\"",
	}
	c.AddCommand(a.bundleCheck(), a.bundleTest(), a.bundlePlan(), a.bundleShow(), a.bundlePropose(), a.bundleExport(), a.bundleSchema(), a.bundleReference(), a.bundleManifest())
	return c
}

// readBundle reads and compiles a directory.
func readBundle(dir string) (policy.Files, *policy.Program, error) {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, nil, problem.New(problem.ReasonInvalid, "%s is not a directory", dir).WithFix("name the directory that has environment.yaml")
	}
	files, err := policy.ReadFiles(os.DirFS(dir))
	if err != nil {
		return nil, nil, err
	}
	prog, err := compile(files)
	return files, prog, err
}

func compile(files policy.Files) (*policy.Program, error) {
	b, err := policy.Load(files)
	if err != nil {
		return nil, err
	}
	prog, err := policy.Compile(b)
	if err != nil {
		return nil, err
	}
	return prog, control.CheckBundle(methods.All(), prog) // what a server would refuse when it is proposed
}

type checkView struct {
	OK       bool            `json:"ok"`
	Findings policy.Findings `json:"findings"`
	Advice   policy.Findings `json:"advice"`
	Files    int             `json:"files"`
}

func (a *app) bundleCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check [DIR]", Short: "Check a bundle, without a server", Args: cobra.MaximumNArgs(1),
		Long: `Reads and compiles a bundle as the server would, and prints what is wrong with it, one finding
a line, as FILE:LINE:COLUMN: MESSAGE, with files named from DIR on. It exits with 1 if there is
anything. An unknown field, a name that leads nowhere and a rule that can never have an effect
are findings. What the documents say of each other is looked at once each of them can be read,
and the tests are run, whose failures and broken limits are findings too.

What the server would accept all the same is advice, and keeps the exit code at 0: a grant that
can never match, or that another one makes superfluous, and what of a rule no test makes use of,
if there are tests.`,
		Example: "  bailment bundle check\n  bailment bundle check ./env -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			files, prog, err := readBundle(dirOf(args))
			v := checkView{OK: err == nil, Findings: policy.Findings{}, Advice: policy.Findings{}, Files: len(files)}
			if err != nil && !errors.As(err, &v.Findings) {
				return err
			}
			if err == nil {
				if err := v.tested(cmd.Context(), prog); err != nil {
					return err
				}
			}
			if err := a.show(v, func(t *rows) {
				for _, f := range v.Findings {
					t.line("%s", f)
				}
				for _, f := range v.Advice {
					t.line("%s: advice: %s", f.Pos, f.Message)
				}
			}); err != nil {
				return err
			}
			if !v.OK {
				return problem.New(problem.ReasonBundleInvalid, "%d %s", len(v.Findings), plural(len(v.Findings), "finding")).WithFix("mend what is listed, and check again; `bailment bundle schema KIND` has every field of a kind")
			}
			a.note("ok: %d files", v.Files)
			return nil
		},
	}
}

// tested adds what a bundle that compiles shows when its tests are run.
func (v *checkView) tested(ctx context.Context, prog *policy.Program) error {
	r, err := prog.RunTests(ctx)
	if err != nil {
		return err
	}
	for _, x := range r.Results {
		if !x.Pass && len(v.Findings) < policy.MaxFindings {
			v.Findings = append(v.Findings, policy.Finding{Pos: x.Source, Message: fmt.Sprintf("the case %q fails: expected %s, got %s", x.Case, x.Want, x.Got)})
		}
	}
	limits, err := reach.New(prog, reach.Names{}).Limits()
	if err != nil {
		return err
	}
	broken := reach.Findings(limits)
	v.Findings = append(v.Findings, broken[:min(len(broken), policy.MaxFindings-len(v.Findings))]...)
	if v.OK = r.Failed+len(broken) == 0; v.OK {
		v.Advice = append(v.Advice, prog.Advice(r)...)
	}
	return nil
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

func dirOf(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return "."
}

// held is a bundle that the server has, every byte of it checked against its digest.
type held struct {
	manifest   *policy.Manifest
	files      policy.Files
	generation uint64
	signature  *v1.Signature
}

// assemble puts a manifest and contents together, and verifies that they belong together.
func assemble(manifest string, contents [][]byte) (*policy.Manifest, policy.Files, error) {
	m, err := policy.ParseManifest([]byte(manifest))
	if problem.Is(err, problem.ReasonUnknownVersion) {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the manifest that the server sent")
	}
	by := make(map[policy.Digest][]byte, len(contents))
	for _, b := range contents {
		by[sha256.Sum256(b)] = b
	}
	files, err := m.Fetch(func(d policy.Digest) ([]byte, error) {
		if b, ok := by[d]; ok {
			return b, nil
		}
		return nil, store.ErrNotFound
	})
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the files that the server sent are not the manifest's")
	}
	return m, files, nil
}

// bundle fetches the bundle of a digest, or the one in force. An empty digest can't be checked: what is in force is
// what the server says, until somebody signs a text with its digest.
func (c *conn) bundle(ctx context.Context, digest string) (*held, error) {
	r, err := c.Changes.GetBundle(ctx, &v1.GetBundleRequest{Digest: digest})
	if err != nil {
		return nil, err
	}
	m, files, err := assemble(r.Manifest, r.Files)
	if err != nil {
		return nil, err
	}
	if digest != "" && m.Digest().String() != digest {
		return nil, problem.New(problem.ReasonNotAuthentic, "the server sent bundle %s instead of %s", m.Digest(), digest)
	}
	return &held{m, files, r.Generation, r.ManifestSignature}, nil
}

type bundleView struct {
	Digest     string   `json:"digest"`
	Version    uint64   `json:"version"`
	Previous   string   `json:"previous"`
	Generation uint64   `json:"generation"`
	Files      []string `json:"files"`
}

func (a *app) bundleShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [DIGEST]", Short: "Show the bundle in force, or an earlier one", Args: cobra.MaximumNArgs(1),
		Long: "Prints the digest, version and files of the bundle in force, or of one that was.", Example: "  bailment bundle show\n  bailment bundle show sha256:… -o json",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			digest := ""
			if len(args) > 0 {
				digest = args[0]
			}
			b, err := c.bundle(ctx, digest)
			if err != nil {
				return err
			}
			h := b.manifest.Header()
			v := bundleView{b.manifest.Digest().String(), h.Version, "", b.generation, b.files.Paths()}
			if !h.Previous.IsZero() {
				v.Previous = h.Previous.String()
			}
			return a.show(v, func(t *rows) {
				t.add("digest", v.Digest)
				t.add("generation", v.Generation)
				t.add("version", v.Version)
				t.add("previous", v.Previous)
				for _, f := range v.Files {
					t.add("file", f)
				}
			})
		}),
	}
}

func (a *app) bundleExport() *cobra.Command {
	var dir, digest string
	c := &cobra.Command{
		Use: "export --dir DIR", Short: "Write the bundle in force to a directory", Args: cobra.NoArgs,
		Long:    "Writes the files of the bundle in force, or of one that was, to a new directory. Every file\nis checked against the manifest. Those of a proposal: bailment change export --files.",
		Example: "  bailment bundle export --dir ./env",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			b, err := c.bundle(ctx, digest)
			if p := (*problem.Problem)(nil); errors.As(err, &p) && p.Reason == problem.ReasonNotFound {
				return p.WithFix("see `bailment bundle show`; the files of a proposal are written by `bailment change export CHANGE --files DIR`")
			}
			if err != nil {
				return err
			}
			if err := newDir(dir); err != nil {
				return err
			}
			if err := writeBundle(dir, b.files); err != nil {
				return err
			}
			a.note("%d files of %s in %s", len(b.files), b.manifest.Digest(), dir)
			return nil
		}),
	}
	c.Flags().StringVar(&dir, "dir", "", "directory to make (required)")
	c.Flags().StringVar(&digest, "digest", "", "digest of an earlier bundle (default: the one in force)")
	must(c.MarkFlagRequired("dir"))
	return c
}

// writeBundle writes a bundle's files into a directory, which it makes.
func writeBundle(dir string, files policy.Files) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return wrong(err, "writing the bundle")
	}
	for _, path := range files.Paths() {
		to := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return wrong(err, "writing the bundle")
		}
		if err := os.WriteFile(to, files[path], 0o644); err != nil {
			return wrong(err, "writing the bundle")
		}
	}
	return nil
}

// must is for what can only fail by a mistake in this file.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// newDir makes a directory, or takes one that is empty.
func newDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return wrong(err, "making the directory")
	}
	found, err := os.ReadDir(dir)
	if err != nil {
		return wrong(err, "reading the directory")
	}
	if len(found) > 0 {
		return problem.New(problem.ReasonExists, "%s is not empty", dir).WithFix("name a new directory")
	}
	return nil
}

func (a *app) bundleSchema() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "schema [KIND]", Short: "Print JSON Schemas for editors", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeArg(0, func(context.Context) []string { return slices.Sorted(maps.Keys(policy.Schemas())) }),
		Long:              "Prints the JSON Schema of one kind of document, or writes those of all kinds to --dir, as\nKIND.json. Without either it lists the kinds.",
		Example:           "  bailment bundle schema Grant\n  bailment bundle schema --dir .schemas",
		RunE: func(_ *cobra.Command, args []string) error {
			all := policy.Schemas()
			kinds := slices.Sorted(maps.Keys(all))
			switch {
			case dir != "":
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return wrong(err, "making the directory")
				}
				for _, k := range kinds {
					if err := os.WriteFile(filepath.Join(dir, k+".json"), all[k], 0o644); err != nil {
						return wrong(err, "writing the schemas")
					}
				}
				return nil
			case len(args) == 0:
				return a.show(kinds, func(t *rows) {
					for _, k := range kinds {
						t.line("%s", k)
					}
				})
			}
			text, ok := all[args[0]]
			if !ok {
				return problem.New(problem.ReasonInvalid, "there is no kind %q", args[0]).WithFix("`bailment bundle schema` lists them")
			}
			_, err := a.out.Write(text)
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "write all schemas to this directory")
	return c
}

func (a *app) bundleReference() *cobra.Command {
	return &cobra.Command{
		Use: "reference", Short: "Print the reference of every kind and field", Args: cobra.NoArgs,
		Long:    "Prints every kind of document with its fields, their defaults and meaning, as Markdown.",
		Example: "  bailment bundle reference",
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.out, policy.Reference())
			return err
		},
	}
}

func (a *app) bundleManifest() *cobra.Command {
	return &cobra.Command{
		Use: "manifest [DIR]", Short: "Print the manifest that would be signed", Args: cobra.MaximumNArgs(1),
		Long: "Prints the manifest of a bundle's directory as the next version of the one in force: the text\nthat `bundle propose` signs in the namespace bundle@bailment.", Example: "  bailment bundle manifest . | sha256sum",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			files, _, err := readBundle(dirOf(args))
			if err != nil {
				return err
			}
			base, err := c.bundle(ctx, "")
			if err != nil {
				return err
			}
			m, err := c.next(base, files)
			if err != nil {
				return err
			}
			_, err = a.out.Write(m.Text())
			return err
		}),
	}
}

// next is the manifest of files as the version after base.
func (c *conn) next(base *held, files policy.Files) (*policy.Manifest, error) {
	return policy.BuildManifest(files, policy.Header{
		Environment: c.trust.Environment, Genesis: c.trust.Genesis, Version: base.manifest.Header().Version + 1, Previous: base.manifest.Digest(),
	})
}

func (a *app) noteDifferences(diff []changedFile) {
	for _, d := range diff {
		a.note("  %-8s %s", d.how, printable(d.path))
	}
}

// proposeOptions are the flags of everything that proposes a change.
type proposeOptions struct {
	reason  string
	expires time.Duration
}

func (o *proposeOptions) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.reason, "reason", "", "why, for those who approve and for the ledger")
	c.Flags().DurationVar(&o.expires, "expires", 72*time.Hour, "how long it can be approved: 1m to 336h")
}

// intoForce is how a bundle comes into force.
type intoForce struct {
	rollout     string
	containment []string
}

// fill completes the text: which rollout, which files are containment, and what it may be rolled back to.
func (h intoForce) fill(text *ceremony.Change, m *policy.Manifest, base *held, files policy.Files) error {
	was, err := accepted(base.files)
	if err != nil {
		return err
	}
	text.Containment = slices.Clone(h.containment)
	if slices.Equal(h.containment, []string{"all"}) {
		text.Containment = policy.ChangedFiles(base.files, files)
	}
	slices.Sort(text.Containment)
	if text.Rollout = h.rollout; text.Rollout == "" && len(text.Containment) == 0 {
		if all := was.Rollouts(); len(all) > 0 {
			if _, ok := was.Rollout(policy.DefaultRollout); !ok {
				return problem.New(problem.ReasonInvalid, "the bundle in force has %d rollouts, and none is called %s", len(all), policy.DefaultRollout).WithFix("name one with --rollout")
			}
			text.Rollout = policy.DefaultRollout
		}
	}
	text.Rollback, err = policy.RollbackDigest(m, base.files, files, text.Containment)
	return err
}

func (a *app) bundlePropose() *cobra.Command {
	var o proposeOptions
	var how intoForce
	c := &cobra.Command{
		Use: "propose [DIR]", Short: "Propose a directory as the next bundle", Args: cobra.MaximumNArgs(1),
		Long: `Checks the bundle, compares it with the one in force, prints what it would change (as "bundle
plan" does), and proposes it. Two texts are signed with your SSH key: the manifest, in the
namespace bundle@bailment, and a readable text that names action, base, new manifest, rollout,
what it may be rolled back to, nonce and expiry, in the namespace change@bailment. The proposal
has no effect until it is approved.

Once approved it goes by a rollout of the bundle in force: --rollout names it, and without one it is
"default" if there is one. Where there are none it is in force at once. What contains an incident
can't wait for that: --containment marks files (or all that differ) which are in force at once, and
which no rollback undoes.`,
		Example: "  bailment bundle propose . --reason \"let the worker read its key\" -i ~/.ssh/id_ed25519\n" +
			"  bailment bundle propose . --containment grants/leaked.yaml --reason INC-231",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			return a.proposeBundle(ctx, c, dirOf(args), how, o)
		}),
	}
	c.Flags().StringVar(&how.rollout, "rollout", "", "the rollout by which it comes into force (default \"default\", if there is one)")
	c.Flags().StringSliceVar(&how.containment, "containment", nil, "a file that differs and is containment, or `all`; may be repeated")
	o.flags(c)
	return c
}

// proposedLines is how many lines of each part of its plan a proposer is shown. All of it: `bundle plan`.
const proposedLines = 20

func (a *app) proposeBundle(ctx context.Context, c *conn, dir string, how intoForce, o proposeOptions) error {
	files, prog, err := readBundle(dir)
	if err != nil {
		return err
	}
	base, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	diff := differences(base.files, files)
	if len(diff) == 0 {
		return problem.New(problem.ReasonAlreadyInForce, "%s is what is in force, byte for byte", dir)
	}
	a.note("against generation %d, %s:", base.generation, base.manifest.Digest())
	a.noteDifferences(diff)
	if before, err := accepted(base.files); err == nil && !a.flags.quiet {
		printPlan(a.err, before, prog, "", proposedLines)
	}
	a.noteAgents(ctx, c, base.files, prog)
	m, err := c.next(base, files)
	if err != nil {
		return err
	}
	req := &v1.ProposeRequest{Action: "bundle", Manifest: string(m.Text())}
	for _, f := range m.Files() {
		req.Files = append(req.Files, files[f.Path])
	}
	text := ceremony.Change{Action: "bundle", New: m.Digest().String()}
	if err := how.fill(&text, m, base, files); err != nil {
		return err
	}
	return a.propose(ctx, c, base, text, req, o, func(s *sshsig.Signer) error {
		signature, err := a.sign(s, ceremony.NamespaceBundle, m.Text())
		req.ManifestSignature = &v1.Signature{Key: sshsig.Fingerprint(s.PublicKey()), Sshsig: signature}
		return err
	})
}

// act is a command that proposes something else than a bundle: what, and about what.
type act struct {
	use, short, long, example string
	action                    string
	target                    func(ctx context.Context, c *conn, arg string, reason string) (string, error)
	complete                  words
}

// proposeAct makes the command.
func (a *app) proposeAct(x act) *cobra.Command {
	var o proposeOptions
	c := &cobra.Command{
		Use: x.use, Short: x.short, Long: x.long, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, x.complete), Example: x.example,
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			target, err := x.target(ctx, c, args[0], o.reason)
			if err != nil {
				return err
			}
			return a.proposeTarget(ctx, c, x.action, target, o)
		}),
	}
	o.flags(c)
	return c
}

// hold is the target of a change about the hold on a scope: which hold it is stands in what is signed. SCOPE#ENTRY is one already.
func (c *conn) hold(ctx context.Context, scope string) (string, error) {
	scope, err := c.scope(scope)
	if err != nil {
		return "", err
	}
	if _, _, ok := state.ParseHoldTarget(scope); ok {
		return scope, nil
	}
	r, err := c.Revocations.ListRevocations(ctx, &v1.ListRevocationsRequest{})
	if err != nil {
		return "", err
	}
	for _, x := range r.Revocations {
		if x.Scope == scope && x.Hold != 0 {
			return state.HoldTarget(scope, x.Hold), nil
		}
	}
	return "", problem.New(problem.ReasonNotFound, "there is no hold on %s", scope).WithFix("see `bailment revocation list`")
}

// operatorKeys are the keys that the bundle lists for a person.
func operatorKeys(files policy.Files, person string) ([]ssh.PublicKey, error) {
	prog, err := accepted(files)
	if err != nil {
		return nil, err
	}
	op, ok := prog.Operator(person)
	if !ok {
		return nil, problem.New(problem.ReasonDuty, "%s is not an operator of the bundle in force", person)
	}
	keys := make([]ssh.PublicKey, 0, len(op.Keys))
	for _, k := range op.Keys {
		keys = append(keys, k.Key)
	}
	return keys, nil
}

// proposeTarget proposes an act that is about nothing but its target.
func (a *app) proposeTarget(ctx context.Context, c *conn, action, target string, o proposeOptions) error {
	base, err := c.bundle(ctx, "")
	if err != nil {
		return err
	}
	return a.propose(ctx, c, base, ceremony.Change{Action: action, Target: target}, &v1.ProposeRequest{Action: action, Target: target}, o, nil)
}

// propose completes the text, signs it, and sends the proposal.
func (a *app) propose(ctx context.Context, c *conn, base *held, text ceremony.Change, req *v1.ProposeRequest, o proposeOptions, more func(*sshsig.Signer) error) error {
	var err error
	if text.Person, err = c.person(); err != nil {
		return err
	}
	keys, err := operatorKeys(base.files, text.Person)
	if err != nil {
		return err
	}
	epoch, err := c.Epoch(ctx)
	if err != nil {
		return err
	}
	text.Scope = ceremony.Scope{Environment: c.trust.Environment, Genesis: c.trust.Genesis, Epoch: epoch}
	text.Base, text.Role, text.Nonce, text.Reason = base.manifest.Digest().String(), ceremony.Proposer, random(16), o.reason
	text.Expires = time.Now().Add(o.expires).UTC().Truncate(time.Second)
	signer, err := a.signer(ctx, keys)
	if err != nil {
		return err
	}
	defer signer.Close()
	a.note("signing with %s:\n%s", sshsig.Fingerprint(signer.PublicKey()), text.Text())
	signature, err := a.sign(signer, ceremony.NamespaceChange, []byte(text.Text()))
	if err != nil {
		return err
	}
	if more != nil {
		if err := more(signer); err != nil {
			return err
		}
	}
	if req.ManifestSignature != nil {
		req.ManifestSignature.Person = text.Person
	}
	req.Reason, req.Expires, req.Text, req.IdempotencyKey = o.reason, timestamppb.New(text.Expires), text.Text(), newKey()
	req.Signature = &v1.Signature{Person: text.Person, Key: sshsig.Fingerprint(signer.PublicKey()), Sshsig: signature}
	r, err := c.Changes.Propose(ctx, req)
	if err != nil {
		return err
	}
	return a.show(r, func(t *rows) {
		t.line("change %d is %s", r.Change, r.State)
		if r.Generation > 0 {
			t.line("generation %d is in force", r.Generation)
		} else {
			t.line("%d %s needed: `bailment change approve %d`", r.Required, plural(int(r.Required), "approval"), r.Change)
		}
	})
}

// writeNew writes files into a new directory, durably, since they are evidence.
func writeNew(dir string, files map[string][]byte) error {
	if err := newDir(dir); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := durable.WriteFile(filepath.Join(dir, name), files[name], 0o644); err != nil {
			return wrong(err, "writing %s", name)
		}
	}
	return nil
}

// allowedSigners is what ssh-keygen -Y verify wants to know: a person's keys and what they may sign.
func allowedSigners(prog *policy.Program) []byte {
	var b bytes.Buffer
	for _, op := range prog.Operators() {
		for _, k := range op.Keys {
			fmt.Fprintf(&b, "%s namespaces=\"%s,%s\" %s", op.Name, ceremony.NamespaceChange, ceremony.NamespaceBundle, ssh.MarshalAuthorizedKey(k.Key))
		}
	}
	return b.Bytes()
}
