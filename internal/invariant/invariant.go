// Package invariant checks the twelve invariants of the design over the entries of a ledger, as an
// auditor would who trusts neither the code that decided nor the code that reduces: it keeps a small
// model of its own, written apart from package state's reducers and package control's decisions, and
// judges each entry by the model of what came before. So a defect in either of them is a violation here,
// unless the same defect was made twice.
//
// Guaranteed: the same entries give the same violations; nothing here reads a clock, a file or a
// random source; memory is bounded by what is alive in the ledger and not by its length. Two things are shared on
// purpose: the entries' types, and policy.Program.Decide, since to decide again with the same evaluator is what
// "permitted" means. Not guaranteed: anything about what never became an entry, apart from the counters
// that the caller brings (CheckCounts), and about persons' signatures, which are checked when they are made.
//
// Its place: pure, beside state and policy. Package control runs it in the background, package audit over a whole ledger. A Checker
// is used by one goroutine at a time.
//
//arch:allow package-lines: the rules judge one model together; to split them would export it
package invariant

import (
	"fmt"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// Name is the name of an invariant: the label of bailment_invariant_violations_total.
type Name string

// The invariants (DESIGN §3).
const (
	Attested    Name = "attested"
	Permitted   Name = "permitted"
	Recorded    Name = "recorded"
	Revoked     Name = "revoked"
	Bounded     Name = "bounded"
	ExactlyOnce Name = "exactly-once"
	Lifecycle   Name = "lifecycle"
	Separated   Name = "separated"
	Monotonic   Name = "monotonic"
	Confined    Name = "confined"
	Silent      Name = "silent"
	Replayable  Name = "replayable"
)

// Violation is one thing that must not be.
type Violation struct {
	Invariant Name
	Index     uint64 // of the entry; for a count: of the next entry
	Detail    string // for people; without secret values
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: entry %d: %s", v.Invariant, v.Index, v.Detail)
}

// Invariant is a row of the table: what is checked, and from what.
type Invariant struct {
	Name    Name
	Entries string // what is checked from the entries; empty: nothing
	Beside  string // what is checked from counters or the state in force; empty: nothing
	entry   func(*Checker, *step, failure)
	count   func(*Checker, Counts, failure)
}

// failure reports a violation of the invariant under check.
type failure func(format string, args ...any)

// Table is the closed table of the invariants.
var Table = []Invariant{
	{
		Name: Attested, entry: (*Checker).attested,
		Entries: "whoever acts does so in a session that was opened before, is his own, has not expired and was not given back; a release names that session's assurance, anchor and root; " +
			"a session derives from a live node, the newest generation of an enrolment, or a token that carries at least as much; the assurance is what the grant asks",
	},
	{
		Name: Permitted, entry: (*Checker).permitted,
		Entries: "each release, renewal, write and move is decided again under the bundle in force at its index and gives the same grant; each session's identity is derived again by the same rule, and again, with its node's, for each release under a later bundle; " +
			"each act of an operator is by a listed key with the duty; nothing leaves by an export that is denied to its proposer; each ruling names that bundle",
	},
	{
		Name: Recorded, entry: (*Checker).recorded, count: (*Checker).recordedCount,
		Entries: "a release names the ciphertext that was written, and an export all that left",
		Beside:  "values and tokens handed out are no more than the releases, exported values and tokens entered",
	},
	{
		Name: Revoked, entry: (*Checker).revoked,
		Entries: "no release, renewal, session or other act in scope of an earlier cutoff or hold, no use of a join token whose maker is; a node with two holders is cut off; the acknowledgement's horizon is not before the end of anything it covers; " +
			"a change is carried out by approvals, and of a proposal, whose persons and keys were not revoked since",
	},
	{
		Name: Bounded, entry: (*Checker).bounded,
		Entries: "leases expire, not after their maximum, grant, secret and environment, and those of a job not after its session; what a job's evidence opened ends with the evidence; sessions not after what the bundle says, the enrolment's lifetime and the node's session; enrolments not after what any bundle since has said; what one person revokes for good is within the blast limit; holds beyond it, join tokens, open changes and whole denials have their bounds; a JWT-SVID lives for minutes, within its session; a recovery waits out its delay",
	},
	{
		Name: ExactlyOnce, entry: (*Checker).once,
		Entries: "one first effect for each identity's live idempotency key, and redeliveries that name it, with the same request, version and lease; versions written once; challenges, nonces and join tokens used once",
	},
	{
		Name: Lifecycle, entry: (*Checker).lifecycle,
		Entries: "only legal transitions of versions, changes, holds, sessions and keys; one current version; nothing handed out that is neither current nor retiring; tokens are signed by the key whose turn it is, and no key is withdrawn while what it signed is good, unless it is compromised; the end of the environment is its last entry, and says what it took along; the keys move from the root holder that they are under to the one that was approved, all of them; one recovery at a time, which changes nothing but the operators; an export is what its change says, to its proposer, once, within a day",
	},
	{
		Name: Separated, entry: (*Checker).separated,
		Entries: "approvals by other persons than the proposer (development: if the bundle says so), each person once, as many as the bundle in force asked for when it was proposed; the signer is the actor, of a review too; a hold on persons leaves a quorum; what can't be undone waits for as long as that bundle asked for; a recovery has as many signers as the bundle in force asks for, each by his recovery key",
	},
	{
		Name: Monotonic, entry: (*Checker).monotonic,
		Entries: "indexes without gaps, time that never runs back, generations, versions, key numbers, renewal counters, protocol and state roots that only rise; a manifest follows the one in force, and a key the one that vouches for it",
	},
	{
		Name: Confined, entry: (*Checker).confined,
		Entries: "genesis is the one pinned and says what its document says, with the first key of each kind; later keys are of those kinds; identities are paths of this environment, serial numbers of this epoch and entry, signed texts and bundles of this name and genesis",
	},
	{
		Name: Silent, count: (*Checker).silentCount,
		Beside: "none of the sampled values that were handed out or written turns up in a log, an error, an entry or a metric (package canary)",
	},
	{
		Name:   Replayable,
		Beside: "the reducers over all entries give the state in force, byte for byte, and each state root that was entered: see Replay",
	},
}

// Counts are what the running server counted; see CheckCounts.
type Counts struct {
	Delivered uint64 // values handed out, since the server opened the ledger
	Leaked    uint64 // texts with a secret value in them, in any sink
	Sinks     string // the names of the sinks, for people
}

// Options are what a Checker needs. All are optional.
type Options struct {
	// Program gives the compiled bundle of a manifest; nil if it can't be had, which is a violation of "permitted".
	Program func(manifest state.Digest) *policy.Program
	// Incomplete: where only a part of the documents is at hand, one that can't be had is no violation. What needs it is not decided
	// again, and the caller says so.
	Incomplete bool
	// Genesis is the pinned identity of the environment; zero: whatever entry 0 says.
	Genesis state.Digest
	// CountFrom is the index from which Counts count: the ledger's size when the server opened it.
	CountFrom uint64
}

// Checker judges entries one after the other, from genesis on.
type Checker struct {
	opts Options
	m    *model

	delivered uint64 // release entries from CountFrom on
	excess    uint64 // of deliveries, reported already
	leaked    uint64 // reported already
}

// New makes a Checker that expects entry 0.
func New(opts Options) *Checker {
	return &Checker{opts: opts, m: newModel()}
}

// Next is the index of the entry that is expected next.
func (c *Checker) Next() uint64 { return c.m.next }

// Roots are the state roots that were entered, by the index of the last entry each covers: what Replay
// compares with. At most 64, the newest.
func (c *Checker) Roots() map[uint64]state.Digest {
	out := make(map[uint64]state.Digest, len(c.m.roots))
	for _, r := range c.m.roots {
		out[r.Index] = r.Root
	}
	return out
}

// Rows is the number of rows in the model, for tests and metrics: it follows what is alive.
func (c *Checker) Rows() int { return c.m.rows() }

// step is an entry under check with what all checks ask about it.
type step struct {
	index uint64
	at    state.Millis
	event state.Event
	deed
	prog     *policy.Program // that governs it: the one in force before this entry, or a candidate
	bundle   state.Digest    // its manifest
	cohort   string
	decision *policy.Decision
	match    *policy.Match
	matchErr error
}

// Feed judges the next entry and takes it into the model, whatever was found.
func (c *Checker) Feed(index uint64, e *state.Entry) []Violation {
	c.m.prune(e.Time)
	st := &step{index: index, at: e.Time, event: e.Event}
	st.deed = c.m.deedOf(e.Event)
	st.bundle, st.cohort, st.prog = c.governing(st)
	c.judge(st)
	var out []Violation
	var name Name
	fail := func(format string, args ...any) {
		out = append(out, Violation{name, index, e.Event.Kind().Type + ": " + fmt.Sprintf(format, args...)})
	}
	for i := range Table {
		if name = Table[i].Name; Table[i].entry != nil {
			Table[i].entry(c, st, fail)
		}
	}
	c.m.learn(st)
	c.learnFinal(st)
	c.learnCustody(st)
	out = append(out, c.learnCandidate(index, e.Event)...)
	if d, changed := manifestOf(e.Event); changed {
		c.m.prog = nil
		if c.opts.Program != nil {
			if c.m.prog = c.opts.Program(d); c.m.prog == nil && !c.opts.Incomplete {
				out = append(out, Violation{Permitted, index, fmt.Sprintf("the bundle %s can't be had, so nothing under it can be decided again", d)})
			}
		}
		if c.m.prog != nil && c.m.prog.Environment().Name != c.m.name {
			out = append(out, Violation{Confined, index, fmt.Sprintf("the bundle %s is of environment %s", d, c.m.prog.Environment().Name)})
		}
	}
	switch e := e.Event.(type) {
	case *state.SecretReleased, *state.JWTIssued:
		if index >= c.opts.CountFrom {
			c.delivered++
		}
	case *state.SecretExported:
		if index >= c.opts.CountFrom {
			c.delivered += uint64(e.Count)
		}
	}
	return out
}

// manifestOf is the manifest that an entry brings into force.
func manifestOf(e state.Event) (state.Digest, bool) {
	switch e := e.(type) {
	case *state.Genesis:
		return e.Manifest, true
	case *state.BundleInForce:
		return e.Manifest, true
	}
	return state.Digest{}, false
}

// CheckCounts compares counters with the entries fed so far. The counters must have been read before the size of
// the ledger was, and all entries up to that size have been fed: then a correct server can't be ahead of its
// ledger. A violation is reported once, and again when it grows.
func (c *Checker) CheckCounts(n Counts) []Violation {
	var out []Violation
	for i := range Table {
		if Table[i].count == nil {
			continue
		}
		name := Table[i].Name
		Table[i].count(c, n, func(format string, args ...any) {
			out = append(out, Violation{name, c.m.next, fmt.Sprintf(format, args...)})
		})
	}
	return out
}

func (c *Checker) recordedCount(n Counts, fail failure) {
	if n.Delivered > c.delivered && n.Delivered-c.delivered > c.excess {
		c.excess = n.Delivered - c.delivered
		fail("%d values and tokens were handed out, and %d are entered", n.Delivered, c.delivered)
	}
}

func (c *Checker) silentCount(n Counts, fail failure) {
	if n.Leaked > c.leaked {
		fail("%d texts held a secret value (%s)", n.Leaked-c.leaked, n.Sinks)
		c.leaked = n.Leaked
	}
}
