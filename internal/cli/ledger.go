package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/audit"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/verify"
)

func (a *app) ledgerCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ledger", Short: "The log of everything that happened", RunE: group, Args: cobra.ArbitraryArgs,
		Long:    "The ledger is append-only and Merkle-hashed. Reading entries needs the duty audit; checkpoints\nand proofs are public. `ledger verify` works on a data directory without any server.",
		Example: "  bailment ledger tail\n  bailment ledger verify --dir /var/lib/bailment/prod --bootstrap \"$BAILMENT_BOOTSTRAP\"",
	}
	c.AddCommand(a.ledgerShow(), a.ledgerTail(), a.ledgerVerify(), a.ledgerProof(), a.ledgerCheckpoint(), a.ledgerExport())
	return c
}

type entryView struct {
	Index      uint64          `json:"index"`
	Entry      json.RawMessage `json:"entry,omitempty"`
	Salt       string          `json:"salt,omitempty"`       // base64
	Commitment string          `json:"commitment,omitempty"` // base64; of a redacted entry
}

func viewEntry(e *v1.LedgerEntry) entryView {
	if len(e.Body) == 0 {
		return entryView{Index: e.Index, Commitment: base64.StdEncoding.EncodeToString(e.Commitment)}
	}
	v := entryView{Index: e.Index, Salt: base64.StdEncoding.EncodeToString(e.Salt), Entry: e.Body}
	if !json.Valid(e.Body) {
		v.Entry, _ = json.Marshal(string(e.Body)) // a text always has a JSON form
	}
	return v
}

func (a *app) ledgerShow() *cobra.Command {
	return &cobra.Command{
		Use: "show INDEX", Short: "Show one entry", Args: cobra.ExactArgs(1),
		Long: "Prints an entry's body. It needs the duty audit.", Example: "  bailment ledger show 42\n  bailment ledger show 42 -o json",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "index")
			if err != nil {
				return err
			}
			r, err := c.Ledger.GetEntries(ctx, &v1.GetEntriesRequest{From: n, Limit: 1})
			if err != nil {
				return err
			}
			if len(r.Entries) == 0 {
				return problem.New(problem.ReasonNotFound, "the ledger has %d entries, so there is no entry %d", r.Size, n).WithFix("the first is entry 0; `bailment ledger tail` shows the newest")
			}
			e := viewEntry(r.Entries[0])
			return a.show(e, func(t *rows) {
				if e.Entry == nil {
					t.line("entry %d was redacted; its commitment is %s", n, e.Commitment)
					return
				}
				var b bytes.Buffer
				if json.Indent(&b, e.Entry, "", "  ") != nil {
					b.Write(e.Entry)
				}
				t.line("%s", b.String())
			})
		}),
	}
}

func (a *app) ledgerTail() *cobra.Command {
	var from uint64
	var follow bool
	var last int64
	c := &cobra.Command{
		Use: "tail", Short: "Show the newest entries, and those to come", Args: cobra.NoArgs,
		Long:    "Prints the newest entries, one a line, and with --follow every new one as it is committed.\nWith -o json a line is a JSON object with the whole entry, with -o yaml an entry is a document.\nIt needs the duty audit.",
		Example: "  bailment ledger tail -n 20 --follow\n  bailment ledger tail --from 0 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("from") {
				from = ^uint64(0)
			}
			if last < 0 {
				return problem.New(problem.ReasonInvalid, "--number %d is less than nothing", last).WithFix("say how many of the newest entries, or where to begin with --from")
			}
			return a.call(func(ctx context.Context, c *conn, _ []string) error { return a.tail(ctx, c, from, last, follow) })(cmd, args)
		},
	}
	c.Flags().Uint64Var(&from, "from", 0, "index of the first entry (default: the newest few)")
	c.Flags().Int64VarP(&last, "number", "n", 10, "how many of the newest")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new entries until stopped")
	return c
}

func (a *app) tail(ctx context.Context, c *conn, from uint64, last int64, follow bool) error {
	// The size is not known before something was asked for.
	first, err := c.Ledger.GetEntries(ctx, &v1.GetEntriesRequest{From: 0, Limit: 1})
	if err != nil {
		return err
	}
	if from == ^uint64(0) {
		from = first.Size - min(first.Size, uint64(last))
	}
	if from, err = c.entries(ctx, from, a.tailLine); err != nil || !follow {
		return err
	}
	stream, err := c.Ledger.Tail(ctx, &v1.TailRequest{From: from})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }() // the context ends it
	for stream.Receive() {
		if err := a.tailLine(stream.Msg()); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil // stopped by the person who follows
	}
	return stream.Err()
}

// entries reads pages from an index on, up to the head, and returns the next index.
func (c *conn) entries(ctx context.Context, from uint64, fn func(*v1.LedgerEntry) error) (uint64, error) {
	for {
		r, err := c.Ledger.GetEntries(ctx, &v1.GetEntriesRequest{From: from, Limit: entriesPage})
		if err != nil {
			return from, err
		}
		for _, e := range r.Entries {
			if e.Index != from {
				return from, problem.New(problem.ReasonNotAuthentic, "the server sent entry %d instead of %d", e.Index, from)
			}
			if err := fn(e); err != nil {
				return from, err
			}
			from++
		}
		if from >= r.Size || len(r.Entries) == 0 {
			return from, nil
		}
	}
}

const entriesPage = 1000

func (a *app) tailLine(e *v1.LedgerEntry) error {
	switch a.flags.output {
	case formatJSON:
		return json.NewEncoder(a.out).Encode(viewEntry(e))
	case formatYAML:
		if _, err := io.WriteString(a.out, "---\n"); err != nil {
			return err
		}
		return a.show(viewEntry(e), nil)
	}
	if len(e.Body) == 0 {
		_, err := fmt.Fprintf(a.out, "%d\tredacted\n", e.Index)
		return err
	}
	d, err := state.Decode(e.Body)
	if err != nil {
		_, err = fmt.Fprintf(a.out, "%d\tunreadable: %s\n", e.Index, oneLine(err.Error()))
		return err
	}
	_, err = fmt.Fprintf(a.out, "%d\t%s\t%s\t%s\n", e.Index, d.Time, d.Event.Kind().Type, oneLine(summary(d.Event)))
	return err
}

// summary is who did it to what, on one line.
func summary(ev state.Event) string {
	raw, err := json.Marshal(ev)
	if err != nil {
		return ""
	}
	var f struct {
		Actor    state.Actor `json:"actor"`
		Identity string      `json:"identity"`
		Secret   string      `json:"secret"`
		Scope    string      `json:"scope"`
		Action   string      `json:"action"`
		Target   string      `json:"target"`
		Reason   string      `json:"reason"`
		Name     string      `json:"name"`
	}
	if json.Unmarshal(raw, &f) != nil {
		return ""
	}
	var b bytes.Buffer
	for _, s := range []string{f.Actor.Identity, f.Identity, f.Secret, f.Scope, f.Action, f.Target, f.Name, f.Reason} {
		if s == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	}
	return b.String()
}

func (a *app) ledgerProof() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "proof INDEX", Short: "Get the receipt of an entry", Args: cobra.ExactArgs(1),
		Long: "Gets the receipt of an entry: the entry, its inclusion proof and the signed checkpoint, in C2SP's\ntlog-proof@v1. It verifies offline for ever, with `bailment receipt verify`.", Example: "  bailment ledger proof 42 --out receipt-42.txt",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "index")
			if err != nil {
				return err
			}
			r, err := c.Ledger.GetReceipt(ctx, &v1.GetReceiptRequest{Index: n})
			if err != nil {
				return err
			}
			return a.write(out, r.Receipt)
		}),
	}
	c.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	return c
}

func (a *app) write(path string, data []byte) error {
	if path == "" {
		_, err := a.out.Write(data)
		return err
	}
	if err := durable.WriteFile(path, data, 0o644); err != nil {
		return wrong(err, "writing %s", path)
	}
	return nil
}

func (a *app) ledgerCheckpoint() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "checkpoint", Short: "Get the newest signed checkpoint, to keep elsewhere", Args: cobra.NoArgs,
		Long: `Gets the newest signed checkpoint and verifies its signature by the keys that are pinned.
Kept in another place, it tells later whether anything up to it was changed or cut off: see
ledger verify --checkpoint. It needs no login.`,
		Example: "  bailment ledger checkpoint --out checkpoint-$(date +%F).txt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			c, t, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Ledger.GetCheckpoint(ctx, &v1.GetCheckpointRequest{})
			if err != nil {
				return err
			}
			if err := openCheckpoint(r.Checkpoint, t.CheckpointKeys); err != nil {
				// A key may have been rotated since it was pinned: the server tells the present ones.
				e, askErr := c.Environment.GetEnvironment(ctx, &v1.GetEnvironmentRequest{})
				if askErr != nil {
					return askErr
				}
				if err := openCheckpoint(r.Checkpoint, e.CheckpointKeys); err != nil {
					return problem.Wrap(err, problem.ReasonNotAuthentic, "the newest checkpoint")
				}
			}
			return a.write(out, []byte(r.Checkpoint))
		},
	}
	c.Flags().StringVar(&out, "out", "", "file to write (default: standard output)")
	return c
}

func (a *app) ledgerExport() *cobra.Command {
	var from uint64
	c := &cobra.Command{
		Use: "export", Short: "Write all entries as lines of JSON", Args: cobra.NoArgs,
		Long: "Writes every entry with its salt as a line of JSON: what is needed to recompute every hash.\nIt needs the duty audit.", Example: "  bailment ledger export > ledger.ndjson",
		RunE: a.call(func(ctx context.Context, c *conn, _ []string) error {
			n, err := c.entries(ctx, from, func(e *v1.LedgerEntry) error { return json.NewEncoder(a.out).Encode(viewEntry(e)) })
			a.note("%d entries", n-min(from, n))
			return err
		}),
	}
	c.Flags().Uint64Var(&from, "from", 0, "index of the first entry")
	return c
}

// verifyFlags are those of `ledger verify`.
type verifyFlags struct {
	dir, misbehaviour string
	vkeys, saved      []string
}

func (a *app) ledgerVerify() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use: "verify", Short: "Recompute the whole ledger and compare", Args: cobra.NoArgs,
		Long: `Recomputes everything that can be computed and compares: every entry's commitment, every
stored hash, the root, the state after every step, state roots and snapshots, the founders' and
operators' signatures, the checkpoint. Then it decides again, by a model of its own and the
bundle in force at each entry: every release, write and session that the rules did not allow is
listed with its entry's index, and the exit code is 5. With --dir it reads a data directory,
running server or not, and needs none; without, it takes the entries from the server. Where a
bundle can't be had, the entries under it are listed as not decided again.

What the directory says of itself proves nothing to somebody who could have rewritten it. Pin
the genesis with --bootstrap, or a checkpoint key with --vkey, from outside of the directory;
without either the result is "consistent, NOT authenticated", and the exit code is 4. Every
batch is stored with its signed checkpoint, so a directory that goes on behind it, or has none,
was tampered with. --checkpoint compares with a checkpoint that was kept elsewhere: it finds
that the directory was taken back in time, and if the ledger signed two histories it prints a
proof of it.`,
		Example: "  bailment ledger verify --dir /var/lib/bailment/prod --bootstrap bailment1:…\n  bailment ledger verify --dir copy --checkpoint kept.txt --vkey bailment/prod/…",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.verifyLedger(cmd.Context(), f) },
	}
	c.Flags().StringVar(&f.dir, "dir", "", "data directory of an environment (default: ask the server)")
	c.Flags().StringArrayVar(&f.vkeys, "vkey", nil, "checkpoint key that is known from elsewhere, NAME+HASH+BASE64; repeatable")
	c.Flags().StringArrayVar(&f.saved, "checkpoint", nil, "file with a signed checkpoint that was kept elsewhere; repeatable")
	c.Flags().StringVar(&f.misbehaviour, "misbehaviour", "", "write the proof of two histories, if there are, to this file too")
	return c
}

type verifyView struct {
	OK            bool         `json:"ok"`
	FullyVouched  bool         `json:"authenticated_whole"`
	*audit.Report              // its fields stand beside ours
	Error         *problemJSON `json:"problem,omitempty"`
}

func (a *app) verifyLedger(ctx context.Context, f verifyFlags) error {
	o := audit.Options{Vkeys: f.vkeys, Progress: a.progress()}
	for _, path := range f.saved {
		b, err := os.ReadFile(path)
		if err != nil {
			return wrong(err, "reading the checkpoint")
		}
		o.Checkpoints = append(o.Checkpoints, b)
	}
	ledger, done, err := a.openLedger(ctx, f.dir, &o)
	if err != nil {
		return err
	}
	defer done()
	report, err := audit.Run(ctx, ledger, o)
	if report.Misbehaviour != "" && f.misbehaviour != "" {
		if err := durable.WriteFile(f.misbehaviour, []byte(report.Misbehaviour), 0o644); err != nil {
			return wrong(err, "writing the proof")
		}
	}
	view := verifyView{OK: err == nil, FullyVouched: report.Complete(), Report: report}
	if err != nil {
		p, exit := asProblem(err), 0
		if exit = p.Kind.ExitCode(); p.Reason == problem.ReasonViolated {
			exit, err = codeViolated, coded{codeViolated, err}
		}
		view.Error = &problemJSON{Error: p.Message, Kind: p.Kind.String(), Reason: string(p.Reason), Try: p.WayOut(), Exit: exit}
	}
	if showErr := a.show(view, func(t *rows) { verifyTable(t, view) }); showErr != nil {
		return showErr
	}
	switch {
	case err != nil:
		return err
	case !view.FullyVouched:
		return codeNotAuthenticated
	}
	return nil
}

// verdict is what a reason says of the ledger. Only some do: what was given wrongly, or could not be read, says nothing
// of it, and must not be kept as a finding against it.
func verdict(r problem.Reason) string {
	switch r {
	case problem.ReasonTampered:
		return "NOT consistent"
	case problem.ReasonNotAuthentic:
		return "NOT authentic: this is not the ledger of what is pinned or kept"
	}
	return "not verified: this says nothing of the ledger"
}

func verifyTable(t *rows, v verifyView) {
	r := v.Report
	if r.Environment != "" { // else it did not get that far
		t.add("environment", r.Environment+" ("+r.Class+")")
		t.add("genesis", r.Genesis)
	}
	t.add("entries", r.Size)
	consistent := v.OK || v.Error.Reason == string(problem.ReasonViolated)
	if consistent {
		t.add("root", r.Root)
		t.add("checked", fmt.Sprintf("%d hashes, %d state roots, %d signatures, %d kept checkpoints", r.Hashes, r.StateRoots, r.Signatures, r.Saved))
		t.add("decided again", fmt.Sprintf("%d of %d entries", r.Decided, r.Size))
	}
	for _, k := range r.Keys {
		t.add("key", k)
	}
	for _, u := range r.Undecided {
		t.add("not decided again", fmt.Sprintf("entries %d to %d: %s", u.From, u.To-1, u.Why))
	}
	for _, n := range r.Notes {
		t.add("note", n)
	}
	for _, x := range r.Violations {
		t.add("VIOLATION", fmt.Sprintf("entry %d: %s: %s", x.Index, x.Invariant, x.Detail))
	}
	if more := r.Violated - uint64(len(r.Violations)); more > 0 {
		t.add("VIOLATION", fmt.Sprintf("and %d more", more))
	}
	switch {
	case !consistent:
		t.line("%s", verdict(problem.Reason(v.Error.Reason)))
	case v.FullyVouched:
		t.line("consistent and authenticated")
	case r.Authenticated > 0:
		t.line("consistent, NOT authenticated from entry %d on: no checkpoint that is vouched for covers it", r.Authenticated)
	default:
		t.line("consistent, NOT authenticated: pin the genesis with --bootstrap or a key with --vkey")
	}
	if consistent && r.Ended > 0 {
		t.line("the environment ended for ever with entry %d: it is the last one, and its values and private keys were removed with it", r.Ended)
	}
	if r.Violated > 0 {
		t.line("NOT what its own rules allow: %d violations", r.Violated)
	}
	if r.Misbehaviour != "" {
		t.line("the ledger's keys signed two histories; this proves it to others:\n\n%s", r.Misbehaviour)
	}
}

// progress tells how far a long verification is, at most twice a second.
func (a *app) progress() func(audit.Progress) {
	if a.flags.quiet {
		return nil
	}
	begun, last := time.Now(), time.Now()
	return func(p audit.Progress) {
		if now := time.Now(); now.Sub(begun) > time.Second && now.Sub(last) > time.Second/2 {
			last = now
			a.note("%s: %d of %d entries", p.Step, p.Done, p.Total)
		}
	}
}

// openLedger finds what is to be verified, and puts what is pinned into the options.
func (a *app) openLedger(ctx context.Context, dir string, o *audit.Options) (audit.Ledger, func(), error) {
	if dir == "" {
		return a.openRemote(ctx, o)
	}
	if a.flags.bootstrap != "" {
		b, err := identity.ParseBootstrap(a.flags.bootstrap)
		if err != nil {
			return audit.Ledger{}, nil, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
		}
		o.Environment, o.Genesis = b.Env, b.Genesis
	}
	st, err := sqlite.OpenReadOnly(ctx, dir)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return audit.Ledger{}, nil, problem.Wrap(err, problem.ReasonInvalid, "opening the data directory").WithFix("name the directory of one environment, as in /var/lib/bailment/ENV")
	case errors.Is(err, store.ErrCorrupt):
		return audit.Ledger{}, nil, problem.Wrap(err, problem.ReasonTampered, "opening the data directory")
	case err != nil:
		return audit.Ledger{}, nil, wrong(err, "opening the data directory")
	}
	closer := func() { _ = st.Close() } // a private copy: nothing of it is to be kept
	ledger, err := audit.OfStore(ctx, st)
	if err != nil {
		closer()
		return ledger, closer, err
	}
	ledger.Stored.Roots = func(ctx context.Context, cursor uint64, limit int) ([]audit.Root, error) {
		roots, err := st.BatchRoots(ctx, cursor, limit)
		out := make([]audit.Root, len(roots))
		for i, r := range roots {
			out[i] = audit.Root(r)
		}
		return out, err
	}
	return ledger, closer, nil
}

// openRemote reads entries from the server, under what is pinned here.
func (a *app) openRemote(ctx context.Context, o *audit.Options) (audit.Ledger, func(), error) {
	c, err := a.connect(ctx)
	if err != nil {
		return audit.Ledger{}, nil, err
	}
	o.Environment, o.Genesis = c.trust.Environment, c.trust.Genesis
	cp, err := c.Ledger.GetCheckpoint(ctx, &v1.GetCheckpointRequest{})
	if err != nil {
		c.Close()
		return audit.Ledger{}, nil, err
	}
	// The checkpoint names the size: what is committed meanwhile is for the next time.
	text, _, _ := bytes.Cut([]byte(cp.Checkpoint), []byte("\n\n"))
	head, err := verify.ParseCheckpoint(string(text) + "\n")
	if err != nil {
		c.Close()
		return audit.Ledger{}, nil, problem.Wrap(err, problem.ReasonNotAuthentic, "the newest checkpoint")
	}
	r := &remote{conn: c, blobs: make(map[store.Digest][]byte)}
	return audit.Ledger{
		Size: uint64(head.Size), Checkpoint: []byte(cp.Checkpoint), Entries: r.entries, Blob: r.blob, BlobsPartial: true, Consistency: r.consistency,
	}, c.Close, nil
}

// remote is a server's ledger.
type remote struct {
	*conn
	blobs map[store.Digest][]byte // of the bundles at hand
}

func (r *remote) entries(ctx context.Context, from uint64, limit int, fn func(uint64, store.Entry) error) error {
	for end := from + uint64(limit); from < end; {
		page, err := r.Ledger.GetEntries(ctx, &v1.GetEntriesRequest{From: from, Limit: int32(min(end-from, entriesPage))})
		if err != nil {
			return err
		}
		if len(page.Entries) == 0 {
			return nil
		}
		for _, e := range page.Entries {
			x := store.Entry{Salt: e.Salt, Body: e.Body}
			if len(e.Body) == 0 {
				x = store.Entry{Commitment: e.Commitment}
			}
			if err := fn(e.Index, x); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// blob fetches whole bundles, because documents have no call of their own.
func (r *remote) blob(ctx context.Context, d store.Digest) ([]byte, error) {
	if b, ok := r.blobs[d]; ok {
		return b, nil
	}
	b, err := r.Changes.GetBundle(ctx, &v1.GetBundleRequest{Digest: policy.Digest(d).String()})
	if err != nil && problem.KindOf(err) == problem.NotFound {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	clear(r.blobs)
	for _, x := range append(b.Files, []byte(b.Manifest)) {
		r.blobs[sha256.Sum256(x)] = x
	}
	if x, ok := r.blobs[d]; ok {
		return x, nil
	}
	return nil, problem.New(problem.ReasonNotAuthentic, "the server sent another bundle than %s", policy.Digest(d))
}

func (r *remote) consistency(ctx context.Context, old, size uint64) (tlog.TreeProof, error) {
	p, err := r.Ledger.GetConsistency(ctx, &v1.GetConsistencyRequest{From: old, To: size})
	if err != nil {
		return nil, err
	}
	out := make(tlog.TreeProof, len(p.Proof))
	for i, h := range p.Proof {
		if len(h) != tlog.HashSize {
			return nil, problem.New(problem.ReasonNotAuthentic, "the server sent a hash of %d bytes", len(h))
		}
		out[i] = tlog.Hash(h)
	}
	return out, nil
}

func openCheckpoint(signed string, vkeys []string) error {
	_, err := verify.OpenCheckpoint([]byte(signed), verifiersOf(vkeys)...)
	return err
}

// readLimited reads a file, or standard input for "-".
func (a *app) readLimited(path string, most int64) ([]byte, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, wrong(err, "opening the file")
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return nil, wrong(err, "reading %s", path)
	}
	if int64(len(b)) > most {
		return nil, problem.New(problem.ReasonTooLarge, "%s has more than %d bytes", path, most)
	}
	return b, nil
}
