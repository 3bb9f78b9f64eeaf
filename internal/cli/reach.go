package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/reach"
	"github.com/bailment/bailment/internal/reach/picture"
	"github.com/bailment/bailment/internal/state"
)

// ofBundle says which bundle a question is about: a directory, without any server, or one that the server has.
type ofBundle struct {
	dir    string
	change uint64
	at     int64
	known  bool
}

func (o *ofBundle) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.dir, "bundle", "", "ask a bundle's directory, without a server (default: the bundle in force)")
	f.Uint64Var(&o.change, "change", 0, "ask the bundle that a change proposes")
	f.Int64Var(&o.at, "at", -1, "ask the bundle that was in force at this index of the ledger (needs the duty audit)")
	f.BoolVar(&o.known, "known", false, "tell apart the identities that the environment knows, not only those that the bundle names")
}

// asked is a bundle to ask: what it says, and which names are known beside it.
type asked struct {
	program *policy.Program
	names   reach.Names
}

// askBundle makes a command's function of one that needs a bundle.
func (a *app) askBundle(o *ofBundle, fn func(x asked, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		given := 0
		for _, name := range []string{"bundle", "change", "at"} {
			if cmd.Flags().Changed(name) {
				given++
			}
		}
		if given > 1 || o.dir != "" && o.known {
			return problem.New(problem.ReasonInvalid, "the flags name several bundles").WithFix("give one of --bundle, --change and --at, and --known not with --bundle")
		}
		if o.dir != "" {
			_, prog, err := readBundle(o.dir)
			if err != nil {
				return err
			}
			return fn(asked{program: prog}, args)
		}
		return a.call(func(ctx context.Context, c *conn, args []string) error {
			files, canary, err := o.fetch(ctx, c)
			if err != nil {
				return err
			}
			if canary != 0 {
				a.note("the bundle of change %d governs a canary, which this one says nothing of: ask it as well, with --change %d", canary, canary)
			}
			x := asked{}
			if x.program, err = accepted(files); err != nil {
				return err
			}
			if o.known {
				all, err := c.identities(ctx, "")
				if err != nil {
					return err
				}
				for _, i := range all.Identities {
					x.names.Identities = append(x.names.Identities, i.Identity)
				}
			}
			return fn(x, args)
		})(cmd, args)
	}
}

// fetch fetches the bundle, and says which change's bundle governs some identities in its place; 0: none.
func (o *ofBundle) fetch(ctx context.Context, c *conn) (files policy.Files, canary uint64, err error) {
	digest := ""
	switch {
	case o.change > 0:
		v, err := c.reviewChange(ctx, o.change)
		if err != nil {
			return nil, 0, err
		}
		if v.manifest == nil {
			return nil, 0, problem.New(problem.ReasonInvalid, "change %d proposes no bundle", o.change).WithFix("see `bailment change show %d`", o.change)
		}
		return v.files, 0, nil
	case o.at >= 0:
		if digest, canary, err = c.inForceAt(ctx, uint64(o.at)); err != nil {
			return nil, 0, err
		}
	default:
		if canary, err = c.canary(ctx); err != nil {
			return nil, 0, err
		}
	}
	b, err := c.bundle(ctx, digest)
	if err != nil {
		return nil, 0, err
	}
	return b.files, canary, nil
}

// canary is the change whose bundle governs some identities; 0: there is none.
func (c *conn) canary(ctx context.Context) (uint64, error) {
	r, err := c.Changes.ListChanges(ctx, &v1.ListChangesRequest{})
	if err != nil {
		return 0, err
	}
	for _, ch := range r.Changes {
		if ch.GetProgress().GetStage() == policy.StageCanary {
			return ch.Change, nil
		}
	}
	return 0, nil
}

// inForceAt finds the digest of the bundle that was in force when an entry was made, and the change whose bundle governed a canary then, if
// there was one. It reads the ledger backward from there.
func (c *conn) inForceAt(ctx context.Context, index uint64) (digest string, canary uint64, err error) {
	moved := false // the newest step of a rollout is known
	for to := index + 1; to > 0; {
		from := to - min(to, entriesPage)
		entries, err := c.entriesBetween(ctx, from, to)
		if err != nil {
			return "", 0, err
		}
		for _, e := range slices.Backward(entries) {
			if len(e.Body) == 0 {
				continue // redacted: no entry of these types is
			}
			d, err := state.Decode(e.Body)
			if err != nil {
				return "", 0, err
			}
			switch ev := d.Event.(type) {
			case *state.RolloutMoved:
				if !moved && ev.Generation != 0 {
					canary = ev.Change
				}
				moved = true
			case *state.RolloutEnded:
				moved = true
			case *state.BundleInForce:
				return ev.Manifest.String(), canary, nil
			case *state.Genesis:
				return ev.Manifest.String(), canary, nil
			}
		}
		to = from
	}
	return "", 0, problem.New(problem.ReasonNotAuthentic, "the ledger that the server shows has no genesis")
}

// entriesBetween fetches entries. An answer may be cut short where they are large.
func (c *conn) entriesBetween(ctx context.Context, from, to uint64) ([]*v1.LedgerEntry, error) {
	var out []*v1.LedgerEntry
	for from < to {
		r, err := c.Ledger.GetEntries(ctx, &v1.GetEntriesRequest{From: from, Limit: int32(to - from)})
		if err != nil {
			return nil, err
		}
		if to > r.Size {
			return nil, problem.New(problem.ReasonNotFound, "the ledger has %d entries, so there is no entry %d", r.Size, to-1).WithFix("`bailment ledger tail` shows the newest")
		}
		if n := uint64(len(r.Entries)); n == 0 || n > to-from || r.Entries[0].Index != from {
			return nil, problem.New(problem.ReasonNotAuthentic, "the server sent %d entries, and not those from %d to %d", n, from, to-1)
		}
		out = append(out, r.Entries...)
		from += uint64(len(r.Entries))
	}
	return out, nil
}

// actionOf takes an action, or its second word.
func actionOf(s string) (policy.Action, error) {
	for _, name := range actions {
		if s == name || "secret."+s == name {
			return policy.Action(name), nil
		}
	}
	return "", problem.New(problem.ReasonInvalid, "there is no action %q", s).WithFix("ask about one of %s", strings.Join(actions, ", "))
}

// howFar are the flags of all questions about ways.
type howFar struct {
	worst string
	most  int
}

func (o *howFar) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.worst, "ways", "poisoning", "the worst ways that count: plain, conditional or poisoning")
	c.Flags().IntVar(&o.most, "limit", 1000, "how many answers a list has at most")
}

func (o *howFar) options() (reach.Options, error) {
	for _, g := range []reach.Grade{reach.Plain, reach.Conditional, reach.Poisoning} {
		if o.worst == g.String() {
			return reach.Options{Worst: g, Most: o.most}, nil
		}
	}
	return reach.Options{}, problem.New(problem.ReasonInvalid, "there are no ways %q", o.worst).WithFix("use --ways plain, --ways conditional or --ways poisoning")
}

const waysLong = `A way is plain; or conditional, if a condition of a grant decides; or it takes poisoning: that
a reader is led astray by a value that was written for it. --ways leaves the worse out.`

func (a *app) whoCanCommand() *cobra.Command {
	var of ofBundle
	var far howFar
	c := &cobra.Command{
		Use: "who-can ACTION SECRET-PATTERN", Short: "List who can do something with a secret, and by which ways", Args: cobra.ExactArgs(2),
		ValidArgsFunction: a.completeArg(0, func(context.Context) []string { return actions }),
		Long: `Lists the lines of a bundle by which somebody gets to do an action (secret.read, or read) with
any of the secrets: the grants for it, and whatever leads to those who have them: nodes that
speak for a workload, secrets that unlock it, operators; and, as one line each, operators who can
do it together only (by another bundle, secret.export, glass.open), and holders of recovery keys.
PATTERN is a path, a subtree (db/*) or everything (*).

` + waysLong,
		Example: "  bailment who-can read 'db/payments/*'\n  bailment who-can secret.write db/password --bundle ./env\n  bailment who-can read 'db/*' --at 812 -o json",
		RunE: a.askBundle(&of, func(x asked, args []string) error {
			action, err := actionOf(args[0])
			if err != nil {
				return err
			}
			p, err := identity.ParseSecretPattern(args[1])
			if err != nil {
				return problem.Wrap(err, problem.ReasonInvalid, "the secrets").WithFix("name a path (db/password), a subtree (db/*) or everything (*)")
			}
			o, err := far.options()
			if err != nil {
				return err
			}
			r, err := reach.New(x.program, x.names).WhoCan(action, p, o)
			if err != nil {
				return err
			}
			if r.Undeclared {
				a.note("this bundle declares no secret that is %s: these are for a value that an earlier one left", p)
			}
			return a.show(r, func(t *rows) {
				t.add("WHO", "KNOWN", "WAY", "BY")
				for _, w := range r.Ways {
					t.fold(w.Who.Name, w.Members, grade(w.Grade, w.Direct), way(w.Way[:1])+after(w.Way))
				}
				cutOff(t, len(r.Ways), r.Total)
			})
		}),
	}
	of.flags(c)
	far.flags(c)
	return c
}

// grade is how good a way is, in a column.
func grade(g reach.Grade, direct bool) string {
	if direct {
		return "direct, " + g.String()
	}
	return g.String()
}

// after is the rest of a way behind its first hop.
func after(steps []reach.Step) string {
	if len(steps) < 2 {
		return ""
	}
	return " → " + way(steps[1:])
}

// way is a way in words: each hop, whither, and by which line.
func way(steps []reach.Step) string { return reach.Sentence(steps) }

func cutOff(t *rows, shown, total int) {
	if shown < total {
		t.line("%d more: --limit", total-shown)
	}
}

type canView struct {
	Allowed  bool               `json:"allowed"`
	Reason   string             `json:"reason,omitempty"`
	Message  string             `json:"message,omitempty"`
	Grant    string             `json:"grant,omitempty"`
	TTL      string             `json:"ttl,omitempty"`
	Input    canInput           `json:"input"`
	Possible bool               `json:"possible"` // a rule or operator of the bundle can be this identity
	Rules    []policy.RuleTrace `json:"rules"`
}

type canInput struct {
	Identity  string    `json:"identity"`
	Node      string    `json:"node,omitempty"`
	Action    string    `json:"action"`
	Secret    string    `json:"secret"`
	Purpose   string    `json:"purpose,omitempty"`
	Assurance string    `json:"assurance"`
	Time      time.Time `json:"time"`
}

func (a *app) canCommand() *cobra.Command {
	var of ofBundle
	var purpose, node, claims, nodeClaims, assurance, at string
	c := &cobra.Command{
		Use: "can IDENTITY ACTION SECRET", Short: "Decide a request by a bundle alone", Args: cobra.ExactArgs(3),
		Long: `Decides a request by a bundle, as the server's own function does, and says what each rule said.
What is not given is taken to be favourable or empty: the assurance is the most that the
identity's evidence can prove, there are no claims. Sessions, holds and cutoffs are not looked
at: ` + "`bailment explain`" + ` asks the server, which knows them.

It exits with 0 if the request is allowed and with 2 if it is refused.`,
		Example: "  bailment can /workload/payments-api read db/password\n  bailment can /ci/github/4100/71 read ci/token --purpose deploy --claims claims.json --bundle ./env",
		RunE: a.askBundle(&of, func(x asked, args []string) error {
			in, possible, err := question(x, args, purpose, node, assurance, at)
			if err != nil {
				return err
			}
			for path, to := range map[string]*policy.Claims{claims: &in.Claims, nodeClaims: &in.NodeClaims} {
				if path == "" {
					continue
				}
				s, err := readClaims(path)
				if err != nil {
					return err
				}
				if *to, err = policy.PrepareClaims(s.AsMap()); err != nil {
					return problem.Wrap(err, problem.ReasonInvalid, "the claims in %s", path)
				}
			}
			d, rules := x.program.Explain(&in)
			v := canView{
				Allowed: d.Allow, Reason: string(d.Reason), Message: d.Message, Grant: d.Grant, Possible: possible, Rules: rules,
				Input: canInput{in.Identity, in.Node, string(in.Action), in.Secret, in.Purpose, in.Assurance.String(), in.Time},
			}
			if d.TTL > 0 {
				v.TTL = d.TTL.String()
			}
			if err := a.show(v, func(t *rows) { canTable(t, v) }); err != nil || d.Allow {
				return err
			}
			return exitCode(problem.Refused.ExitCode())
		}),
	}
	of.flags(c)
	f := c.Flags()
	f.StringVar(&purpose, "purpose", "", "purpose of a read (default runtime)")
	f.StringVar(&node, "node", "", "node that speaks for a workload")
	f.StringVar(&claims, "claims", "", "JSON file with the session's claims")
	f.StringVar(&nodeClaims, "node-claims", "", "JSON file with the claims of the node's session")
	f.StringVar(&assurance, "assurance", "", "of the session (default: the most that the identity's evidence can prove)")
	f.StringVar(&at, "time", "", "when, in RFC 3339 (default: now)")
	return c
}

// question is what is to be decided, without claims.
func question(x asked, args []string, purpose, node, assurance, at string) (in policy.Input, possible bool, err error) {
	in = policy.Input{Identity: args[0], Node: node, Secret: args[2], Purpose: purpose, Time: time.Now()}
	if in.Action, err = actionOf(args[1]); err != nil {
		return in, false, err
	}
	if in.Purpose == "" && in.Action == policy.ReadSecret {
		in.Purpose = "runtime"
	}
	if err := identity.ValidPath(in.Identity); err != nil {
		return in, false, problem.Wrap(err, problem.ReasonInvalid, "the identity").WithFix("give a path such as /workload/payments-api")
	}
	if _, err := identity.ParseSecretPath(in.Secret); err != nil {
		return in, false, problem.Wrap(err, problem.ReasonInvalid, "the secret")
	}
	if in.Assurance, possible, err = reach.New(x.program, x.names).Proves(in.Identity); err != nil {
		return in, false, err
	}
	if assurance != "" {
		if in.Assurance, err = identity.ParseAssurance(assurance); err != nil {
			return in, false, problem.Wrap(err, problem.ReasonInvalid, "--assurance")
		}
	}
	if at != "" {
		if in.Time, err = time.Parse(time.RFC3339, at); err != nil {
			return in, false, problem.New(problem.ReasonInvalid, "--time is not RFC 3339").WithFix("give a time such as 2026-11-22T15:04:05Z")
		}
	}
	return in, possible, nil
}

func canTable(t *rows, v canView) {
	if v.Allowed {
		t.line("allowed by %s, at assurance %s", v.Grant, v.Input.Assurance)
	} else {
		t.line("refused (%s): %s", v.Reason, v.Message)
	}
	if !v.Possible {
		t.line("nobody can be %s by this bundle", v.Input.Identity)
	}
	t.line("")
	t.add("GRANT", "EFFECT", "APPLIES", "WHERE", "WHY")
	for _, x := range v.Rules {
		if x.Named || x.Applies {
			t.fold(x.Grant, x.Effect, x.Applies, x.Source, x.Why)
		}
	}
}

type blastView struct {
	From *reach.Radius  `json:"from,omitempty"`
	To   *reach.Attacks `json:"to,omitempty"`
	Cut  *reach.Cut     `json:"cut,omitempty"`
}

type blastOptions struct {
	of    ofBundle
	far   howFar
	from  []string
	to    string
	costs []string
	svg   string
}

func (a *app) blastRadiusCommand() *cobra.Command {
	var o blastOptions
	c := &cobra.Command{
		Use: "blast-radius", Short: "Say how far a compromise reaches, and what would stop it", Args: cobra.NoArgs,
		Long: `With --from it lists everything that is reached by compromising one of those whom the patterns
select: an identity, a runner's jobs (/ci/github/4100/*), an operator (/human/alice), a node. With
--to it lists the smallest sets of principals whose compromise reaches a target, the cheapest
first: secrets (db/prod/*), identities (/workload/shop/*) or a system (system:prod-db) that some
secret unlocks. With both, it also says the minimum cut: the cheapest lines of the bundle and
identities between that, taken away, leave no way. With --to alone the cut is against all jobs.

Operators who must agree are a set, act by act: as many as the bundle asks for to bring another one
into force, to export secrets, or to open a break-glass grant that has no budget. None of them
reaches anything alone by that. Holders of recovery keys (--from recovery: as many as it takes)
replace the operators after a public delay: such a way is conditional, since it can be stopped.

` + waysLong + `
What a secret opens is what its declaration's "unlocks" says.`,
		Example: "  bailment blast-radius --from /ci/github/4100/71 --bundle ./env\n  bailment blast-radius --to 'db/prod/*' --svg prod.svg\n  bailment blast-radius --from '/node/*' --to system:prod-db --change 97 -o json\n  bailment blast-radius --from recovery --to 'db/*' --bundle ./env",
		RunE:    a.askBundle(&o.of, func(x asked, _ []string) error { return a.blastRadius(x, &o) }),
	}
	o.of.flags(c)
	o.far.flags(c)
	f := c.Flags()
	f.StringSliceVar(&o.from, "from", nil, "identities of whom one is compromised: paths, or subtrees; or recovery; may be given several times")
	f.StringVar(&o.to, "to", "", "what is to be reached: secrets, identities, or system:NAME")
	f.StringSliceVar(&o.costs, "cost", nil, "what it costs to compromise one: KIND=NUMBER with node, job, workload or person (default 1 each)")
	f.StringVar(&o.svg, "svg", "", "also write a picture to this file")
	return c
}

func (a *app) blastRadius(x asked, o *blastOptions) error {
	if len(o.from) == 0 && o.to == "" {
		return problem.New(problem.ReasonInvalid, "neither --from nor --to is given").WithFix("say who is compromised, or what is to be reached")
	}
	opts, err := o.far.options()
	if err != nil {
		return err
	}
	if opts.Costs, err = costsOf(o.costs); err != nil {
		return err
	}
	var from []identity.Pattern
	for _, s := range o.from {
		if s == reach.FromRecovery {
			opts.Recovery = true
			continue
		}
		p, err := identity.ParseIDPattern(s)
		if err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "--from").WithFix("name a path (/human/alice) or a subtree (/ci/*), or recovery")
		}
		from = append(from, p)
	}
	m := reach.New(x.program, x.names)
	v, title := blastView{}, ""
	var ways [][]reach.Step
	var hops []reach.Step
	if o.to != "" {
		target, err := reach.ParseTarget(o.to)
		if err != nil {
			return err
		}
		if v.To, err = m.To(target, opts); err != nil {
			return err
		}
		title = "What reaches " + o.to
		for _, x := range v.To.Attacks {
			ways = append(ways, x.Way)
		}
		hops = v.To.Hops
		if v.Cut, err = cutOf(m, x.program, from, target, opts); err != nil {
			return err
		}
	}
	if len(o.from) > 0 {
		if v.From, err = m.From(from, opts); err != nil {
			return err
		}
		ways, hops, title = nil, v.From.Hops, "What "+strings.Join(o.from, ", ")+" reaches"
		for _, x := range v.From.Reached {
			ways = append(ways, x.Way)
		}
	}
	if o.svg != "" {
		if err := a.write(o.svg, picture.Draw(title, ways, hops, v.Cut)); err != nil {
			return err
		}
		a.note("%s is the picture", o.svg)
	}
	return a.show(v, func(t *rows) { blastTable(t, v) })
}

// cutOf is the cut against those who were named, else against all jobs, if there are any.
func cutOf(m *reach.Model, prog *policy.Program, from []identity.Pattern, target reach.Target, o reach.Options) (*reach.Cut, error) {
	if len(from) == 0 && !o.Recovery {
		jobs, err := identity.ParseIDPattern(identity.PrefixCI + "*")
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonInternal, "naming all jobs")
		}
		if !slices.ContainsFunc(prog.IdentityRules(), func(r policy.IdentityRule) bool { _, some := r.Within(jobs); return some }) {
			return nil, nil
		}
		c, err := m.Cut([]identity.Pattern{jobs}, target, o)
		if problem.Is(err, problem.ReasonInvalid) { // the jobs are the target
			return nil, nil
		}
		return c, err
	}
	return m.Cut(from, target, o)
}

func costsOf(list []string) (reach.Costs, error) {
	var c reach.Costs
	by := map[string]*int{reach.KindNode: &c.Node, reach.KindJob: &c.Job, reach.KindWorkload: &c.Workload, reach.KindPerson: &c.Person}
	for _, s := range list {
		kind, text, _ := strings.Cut(s, "=")
		n, err := json.Number(text).Int64()
		to, ok := by[kind]
		if err != nil || !ok || n < 1 || n > 1_000_000 {
			return c, problem.New(problem.ReasonInvalid, "--cost %q is not KIND=NUMBER", s).WithFix("give node, job, workload or person, and 1 to 1000000, as in --cost person=10")
		}
		*to = int(n)
	}
	return c, nil
}

func blastTable(t *rows, v blastView) {
	if r := v.From; r != nil {
		t.line("from one of %s (%d):", strings.Join(r.From, ", "), r.Starts)
		t.add("REACHED", "KIND", "WAY", "BY")
		for _, x := range r.Reached {
			t.fold(x.Name, x.Kind, grade(x.Grade, x.Direct), x.Way[0].From.Name+" "+way(x.Way))
		}
		cutOff(t, len(r.Reached), r.Total)
	}
	if r := v.To; r != nil {
		if v.From != nil {
			t.line("")
		}
		t.line("to %s, the cheapest first:", r.Target)
		t.add("COMPROMISE", "COST", "WAY", "BY")
		for _, x := range r.Attacks {
			var who []string
			for _, w := range x.Who {
				who = append(who, w.Name)
			}
			text := "it is the target"
			if len(x.Way) > 0 {
				text = way(x.Way)
				if x.Way[0].From != x.Who[0] || len(x.Who) > 1 {
					text = x.Way[0].From.Name + " " + text
				}
			}
			t.fold(strings.Join(who, " and "), x.Cost, x.Grade, text)
		}
		cutOff(t, len(r.Attacks), r.Total)
		if !r.Complete {
			t.line("there may be more sets of several")
		}
	}
	if v.Cut != nil {
		cutTable(t, v.Cut)
	}
}

func cutTable(t *rows, c *reach.Cut) {
	t.line("")
	who := strings.Join(c.From, ", ")
	if len(c.Taken) == 0 {
		t.line("no way from %s to %s", who, c.Target)
		return
	}
	smallest := "the minimum cut"
	if !c.Smallest {
		smallest = "a cut, maybe not the smallest,"
	}
	t.line("%s that keeps %s from %s costs %d:", smallest, who, c.Target, c.Cost)
	t.add("TAKE AWAY", "WHERE")
	for _, x := range c.Taken {
		if x.Identity != nil {
			t.add("the identity "+x.Identity.Name, "")
			continue
		}
		t.add(fmt.Sprintf("%s %s %s [%s]", x.From, x.Hop, x.To, x.Rule), x.Source)
	}
}
