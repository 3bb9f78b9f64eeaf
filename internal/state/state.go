// Package state is what the ledger's entries amount to: the closed table of entry types, and the
// reducer that applies them one by one.
//
// Guaranteed: applying the same entries gives the same state, byte for byte (Snapshot); nothing
// in here reads a clock, a file or a random source; an entry that would make an illegal
// transition is an error and changes nothing. Not guaranteed: that an entry should have been
// written. That is decided in package control, before; replay never decides anew.
//
// Time is the entry's. What expires is judged by comparing with now; rows that are over are
// swept, a bounded number with each entry, so that the state stays as small as what is alive.
//
//arch:allow package-lines: the table of entry types is closed, and its reducers stand together
package state

import (
	"fmt"
	"time"
	"unique"
)

// State is the reduced ledger of one environment. Fork it to get a copy to write to; a State that
// has been published is only read.
type State struct {
	Env        Env
	Next       uint64 // index of the next entry
	Time       Millis // of the last entry
	Generation uint64 // of the bundle in force
	Bundle     Digest // manifest in force
	BundleAt   uint64 // index of the entry that brought it into force
	Protocol   int    // highest raised protocol version
	Control    uint64 // index of the last entry that connected agents must hear of
	Root       StateRoot

	ServesSince Millis // since when Served is kept; 0: not yet
	Ended       uint64 // index of the last entry that there will ever be; 0: the environment goes on
	Custody     Custody

	Secrets    Table[string, *Secret]     // by path
	Leases     Table[uint64, *Lease]      // by the index of the entry that made it
	LeaseOf    Table[string, uint64]      // leaseKey → lease
	Sessions   Table[uint64, *Session]    // by the index of the entry that opened it
	Identities Table[string, *Identity]   // by path
	Tokens     Table[string, *Token]      // join tokens by ID
	Changes    Table[uint64, *Change]     // by the index of the proposal
	Cutoffs    Table[string, uint64]      // scope → index of the newest cutoff
	Holds      Table[string, *Hold]       // by scope
	Idem       Table[string, *Idempotent] // owner, key
	IdemCount  Table[string, int]         // live keys per owner
	Once       Table[string, Millis]      // spent challenges and the like, until when kept
	SeenKeys   Table[string, *SeenKey]    // session keys' thumbprints and who used them
	Denials    Table[string, *DenialMinute]
	Keys       Table[string, *PublicKey] // ca/N, checkpoint/N, kek/N, jwt/N
	Manifests  Table[string, uint64]     // digests that were in force → generation
	Uses       Table[string, *Use]       // evidence of single or first use, by attest.Result.Once
	Gone       Table[string, uint64]     // decommissioned identities → index of the statement
	queue      Table[string, struct{}]   // what to sweep when, see expire.go

	Federations Table[string, *Federated] // by the relation's name

	rollouts Table[string, *Rollout]       // at most one: see Rollout
	sources  Table[string, *RolloutSource] // of its present step
	Served   Table[string, *Served]        // who was given what, by ServedKey
	Reviewed Table[string, *Reviewed]      // the newest decision about each line of access, by ReviewKey
	Glass    Table[uint64, *Glass]         // openings of break-glass grants, by the index of their entry
	quarter  GlassQuarter                  // of the newest entry that counted; see Quarter

	recoveries Table[string, *Recovery] // at most one: see Recovery
}

// Env is what genesis says for ever.
type Env struct {
	Name    string `json:"name"`
	Class   string `json:"class"`
	Genesis Digest `json:"genesis"`
	Epoch   uint64 `json:"epoch"`
	Created Millis `json:"created"`
}

// StateRoot is the last commitment to the reduced state.
type StateRoot struct {
	Index uint64 `json:"index"` // of the last entry that the snapshot covers
	Root  Digest `json:"root"`
}

// Secret is a named value and its versions.
type Secret struct {
	Path     string     `json:"path"`
	Created  uint64     `json:"created"`
	Current  uint64     `json:"current,omitempty"` // number of the current version; 0: none
	Last     uint64     `json:"last"`              // highest number given
	Versions []*Version `json:"versions"`          // ascending by number
}

// Version is one numbered value of a secret.
type Version struct {
	Number  uint64       `json:"n"`
	State   VersionState `json:"state"`
	Sealed  uint64       `json:"sealed"` // index of the entry that made it, and ID of its sealed row
	Digest  Digest       `json:"digest"` // of the ciphertext
	Created Millis       `json:"created"`
	By      string       `json:"by"`
	Until   Millis       `json:"until,omitempty"` // end of the retiring window
	Recipe  string       `json:"recipe,omitempty"`
}

// Find returns a version by its number, or nil.
func (s *Secret) Find(n uint64) *Version {
	for i := len(s.Versions) - 1; i >= 0; i-- {
		if s.Versions[i].Number == n {
			return s.Versions[i]
		}
	}
	return nil
}

// StateAt is the version's state at a moment: a retiring version whose window is over is retired,
// without an entry, as an expired lease is.
func (v *Version) StateAt(now Millis) VersionState {
	if v.State == Retiring && now >= v.Until {
		return Retired
	}
	return v.State
}

// Lease is a hand-over: one per (identity, version, purpose) of a stored version.
type Lease struct {
	ID       uint64 `json:"id"`
	Identity string `json:"identity"`
	Node     string `json:"node,omitempty"`
	Anchor   string `json:"anchor,omitempty"`
	Session  uint64 `json:"session"` // the session it was made in
	Root     uint64 `json:"root"`    // what it derives from: see Session.Root
	Secret   string `json:"secret"`
	Version  uint64 `json:"version"`
	Purpose  string `json:"purpose"`
	Grant    string `json:"grant"`
	Created  Millis `json:"created"`
	Expires  Millis `json:"expires"`
	Max      Millis `json:"max"` // no renewal goes beyond
	// Returned says when it was given back. The row stays until its time is over: what was handed
	// out as a value is known to its taker all the same, and a revocation must name it.
	Returned Millis `json:"returned,omitempty"`
}

// intern lets leases share their texts: a million of them have a few thousand different ones.
func (l *Lease) intern() {
	for _, text := range []*string{&l.Identity, &l.Node, &l.Anchor, &l.Secret, &l.Purpose, &l.Grant} {
		*text = shared(*text)
	}
}

func shared(text string) string { return unique.Make(text).Value() }

// Live reports whether the lease is active at a moment, revocations aside.
func (l *Lease) Live(now Millis) bool { return l.Returned == 0 && now < l.Expires }

// Session is a short-lived proof of an attested identity, bound to a key.
type Session struct {
	Index     uint64         `json:"index"`
	Identity  string         `json:"identity"`
	Via       string         `json:"via"`
	Method    string         `json:"method"`
	Anchor    string         `json:"anchor"`
	Assurance string         `json:"assurance"`
	Node      string         `json:"node,omitempty"`         // for a workload: the node that speaks for it
	NodeSess  uint64         `json:"node_session,omitempty"` // and its session
	Root      uint64         `json:"root"`                   // index of the oldest thing it derives from
	Key       Digest         `json:"key"`                    // thumbprint of the session key
	Serial    string         `json:"serial"`
	Expires   Millis         `json:"expires"`
	Counter   uint64         `json:"counter,omitempty"`
	Claims    map[string]any `json:"claims,omitempty"` // never changed, only replaced
	Closed    bool           `json:"closed,omitempty"`
	// Generation is that of the bundle whose rules gave the identity. A decision under another asks them again.
	Generation uint64 `json:"generation,omitempty"`
	// Of a job's session only, since many jobs of one repository are one identity at a time: the hard end of the job's enrolment; the first
	// of several replies to the request that opened it (0: itself); and of that first one, the key that renewed any of them, and
	// the session that it got first.
	Lifetime Millis `json:"lifetime,omitempty"`
	Twin     uint64 `json:"twin,omitempty"`
	Heir     Digest `json:"heir,omitzero"`
	Next     uint64 `json:"next,omitempty"`
}

// FirstReply is the first of the replies to the request that opened a job's session: whichever of them arrived, their holder is one, so
// what became of any of them stands there. It is false if that row is over.
func (s *State) FirstReply(x *Session) (*Session, bool) {
	if x.Twin == 0 {
		return x, true
	}
	return s.Sessions.Get(x.Twin)
}

// Identity is what the environment knows of an attested identity.
type Identity struct {
	Path     string `json:"path"`
	Method   string `json:"method"`
	Anchor   string `json:"anchor"`
	Root     uint64 `json:"root"`               // index of the enrolment
	Enrolled Millis `json:"enrolled"`           // its time
	Counter  uint64 `json:"counter,omitempty"`  // renewals by possession so far
	Key      Digest `json:"key"`                // newest session key
	Lifetime Millis `json:"lifetime,omitempty"` // hard end of the enrolment; 0: none
	First    Millis `json:"first"`
	Last     Millis `json:"last"`
	Session  uint64 `json:"session"` // newest
	// What the enrolment proved, so that a renewal by possession is judged by the rules in force.
	Assurance string         `json:"assurance"`
	Evidence  Digest         `json:"evidence_key,omitzero"`
	Claims    map[string]any `json:"claims,omitempty"`
	Prior     uint64         `json:"prior,omitempty"`  // session before the newest: a lost reply is told from a fork by it
	Closed    bool           `json:"closed,omitempty"` // its newest session was given back, and the enrolment with it
}

// Token is a join token: its public key only. The token itself never reaches the server.
type Token struct {
	ID      string `json:"id"`
	Public  []byte `json:"public"` // Ed25519
	Name    string `json:"name"`
	Created uint64 `json:"created"`
	By      string `json:"by"`
	Anchor  string `json:"anchor"` // what vouched for who made it
	Expires Millis `json:"expires"`
	SpentBy Digest `json:"spent_by,omitzero"` // thumbprint of the session key that used it
	SpentAt uint64 `json:"spent_at,omitempty"`
}

// Change is a proposed bundle or sensitive act, and what became of it.
type Change struct {
	Index     uint64      `json:"index"`
	Action    string      `json:"action"`
	State     ChangeState `json:"state"`
	Manifest  Digest      `json:"manifest,omitzero"`
	Base      Digest      `json:"base"`
	Target    string      `json:"target,omitempty"` // for acts that are not a bundle: what is acted on
	Proposer  string      `json:"proposer"`
	Anchors   []string    `json:"anchors,omitempty"` // what vouched for the proposer: see Approval
	Required  int         `json:"required"`          // persons other than the proposer
	SelfOK    bool        `json:"self_ok,omitempty"`
	Approvals []Approval  `json:"approvals,omitempty"`
	Created   Millis      `json:"created"`
	Expires   Millis      `json:"expires"`
	Reason    string      `json:"reason,omitempty"`
	// Of a bundle: by which rollout it comes into force, and what it may be rolled back to.
	Rollout  string `json:"rollout,omitempty"`
	Rollback Digest `json:"rollback,omitzero"`
	// Text is the version of what was signed, which approvals are of too; 0: the first.
	Text        int      `json:"text,omitempty"`
	Containment []string `json:"containment,omitempty"`
	// Of what can't be undone: for how many seconds it waits, and since when it does.
	Delay int64  `json:"delay_s,omitempty"`
	Since Millis `json:"since,omitempty"`
}

// Approval is one person's yes.
type Approval struct {
	Person  string   `json:"person"`
	Index   uint64   `json:"index"`
	Anchors []string `json:"anchors,omitempty"` // what vouched for it: the keys that signed, and the login's
}

// Use is a use of evidence that one key only may make.
type Use struct {
	Key      Digest `json:"key"`     // thumbprint of the session key
	Session  uint64 `json:"session"` // that it opened
	Identity string `json:"identity"`
	Until    Millis `json:"until,omitempty"` // 0: kept for ever
}

// Hold refuses what is asked from now until it is lifted or, if Until is set, runs out.
type Hold struct {
	Scope  string `json:"scope"`
	Index  uint64 `json:"index"`
	By     string `json:"by"`
	Reason string `json:"reason"`
	Until  Millis `json:"until,omitempty"`
	// Quarantine: it was set by what the machine itself proved, not by a person.
	Quarantine bool `json:"quarantine,omitempty"`
}

// Idempotent remembers the first effect of a request with a key.
type Idempotent struct {
	Request Digest `json:"request"` // keyed digest of the request
	Index   uint64 `json:"index"`   // of the first effect
	Expires Millis `json:"expires"`
	Secret  string `json:"secret,omitempty"`
	Version uint64 `json:"version,omitempty"`
	Lease   uint64 `json:"lease,omitempty"`
	// What the first effect derives from: a retry comes in another session, perhaps of another enrolment.
	Node   string `json:"node,omitempty"`
	Anchor string `json:"anchor,omitempty"`
	Root   uint64 `json:"root,omitempty"`
}

// SeenKey says whose a session key is, so that the same key under another name is refused.
type SeenKey struct {
	Identity string `json:"identity"`
	Until    Millis `json:"until"`
}

// DenialMinute counts an identity's denials that were entered whole in one minute.
type DenialMinute struct {
	Minute int64 `json:"minute"`
	Count  int   `json:"count"`
}

// PublicKey is the public half and the lifecycle of one of the environment's keys.
type PublicKey struct {
	Name    string `json:"name"` // ca/1, checkpoint/2, kek/3
	Public  []byte `json:"public,omitempty"`
	Cert    []byte `json:"cert,omitempty"`  // DER, for a CA
	Cross   []byte `json:"cross,omitempty"` // DER: the new CA signed by the one before
	Current bool   `json:"current"`
	Created uint64 `json:"created"`
	// Since is when a key of JWT-SVIDs was added. Withdrawn is the entry from which on others are told no more to trust it.
	Since     Millis `json:"since,omitempty"`
	Withdrawn uint64 `json:"withdrawn,omitempty"`
}

// New is the state before genesis.
func New() *State {
	return &State{
		Secrets: newTable[string, *Secret](), Leases: newTable[uint64, *Lease](),
		LeaseOf: newTable[string, uint64](), Sessions: newTable[uint64, *Session](),
		Identities: newTable[string, *Identity](), Tokens: newTable[string, *Token](),
		Changes: newTable[uint64, *Change](), Cutoffs: newTable[string, uint64](),
		Holds: newTable[string, *Hold](), Idem: newTable[string, *Idempotent](),
		IdemCount: newTable[string, int](), Once: newTable[string, Millis](),
		SeenKeys: newTable[string, *SeenKey](), Denials: newTable[string, *DenialMinute](),
		Keys: newTable[string, *PublicKey](), Manifests: newTable[string, uint64](),
		Uses: newTable[string, *Use](), Gone: newTable[string, uint64](),
		queue: newTable[string, struct{}](), Federations: newTable[string, *Federated](),
		rollouts: newTable[string, *Rollout](), sources: newTable[string, *RolloutSource](), Served: newTable[string, *Served](), Reviewed: newTable[string, *Reviewed](),
		Glass:      newTable[uint64, *Glass](),
		recoveries: newTable[string, *Recovery](),
	}
}

// Rows is the number of rows of the large tables: what a snapshot takes its time for.
func (s *State) Rows() int {
	return s.Secrets.Len() + s.Leases.Len() + s.LeaseOf.Len() + s.Sessions.Len() + s.Identities.Len() + s.Once.Len() + s.Uses.Len() + s.SeenKeys.Len() + s.queue.Len() + s.Served.Len() + s.Reviewed.Len()
}

// Fork is an isolated copy in O(1). The original must not be written by anybody else meanwhile.
func (s *State) Fork() *State {
	f := *s
	f.Secrets, f.Leases, f.LeaseOf = s.Secrets.fork(), s.Leases.fork(), s.LeaseOf.fork()
	f.Sessions, f.Identities, f.Tokens = s.Sessions.fork(), s.Identities.fork(), s.Tokens.fork()
	f.Changes, f.Cutoffs, f.Holds = s.Changes.fork(), s.Cutoffs.fork(), s.Holds.fork()
	f.Idem, f.IdemCount, f.Once = s.Idem.fork(), s.IdemCount.fork(), s.Once.fork()
	f.SeenKeys, f.Denials, f.Keys = s.SeenKeys.fork(), s.Denials.fork(), s.Keys.fork()
	f.Manifests, f.queue = s.Manifests.fork(), s.queue.fork()
	f.Uses, f.Gone = s.Uses.fork(), s.Gone.fork()
	f.Federations = s.Federations.fork()
	f.rollouts, f.sources, f.Served = s.rollouts.fork(), s.sources.fork(), s.Served.fork()
	f.Reviewed, f.Glass = s.Reviewed.fork(), s.Glass.fork()
	f.recoveries = s.recoveries.fork()
	return &f
}

// Apply reduces one entry. The event may be given by a writer who has just encoded it; a reader
// passes nil and has the body decoded. On an error the state may be half changed: the caller
// drops this fork.
func (s *State) Apply(index uint64, body []byte, event any) error {
	if index != s.Next {
		return fmt.Errorf("entry %d applied to a state that expects %d", index, s.Next)
	}
	entry, ok := event.(*Entry)
	if !ok {
		decoded, err := Decode(body)
		if err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		entry = decoded
	}
	if index == 0 != (entry.Event.Kind().Type == "environment.genesis") {
		return fmt.Errorf("entry %d is %s: genesis is entry 0 and nothing else is", index, entry.Event.Kind())
	}
	if s.Ended != 0 {
		return fmt.Errorf("entry %d: the environment ended with entry %d, and nothing follows", index, s.Ended)
	}
	if entry.Time < s.Time {
		return fmt.Errorf("entry %d: its time is before the previous entry's", index)
	}
	s.sweep(entry.Time)
	if err := entry.Event.apply(s, Meta{Index: index, Time: entry.Time}); err != nil {
		return fmt.Errorf("entry %d (%s): %w", index, entry.Event.Kind(), err)
	}
	s.Next, s.Time = index+1, entry.Time
	return nil
}

// Meta is what an entry's place gives its event.
type Meta struct {
	Index uint64
	Time  Millis
}

// Millis is a moment in milliseconds since the Unix epoch, UTC; as JSON an RFC 3339 text. The
// zero value is "none" and must be omitted (omitempty).
type Millis int64

// At converts a time, dropping what is finer than a millisecond.
func At(t time.Time) Millis { return Millis(t.UnixMilli()) }

// Time converts back.
func (m Millis) Time() time.Time { return time.UnixMilli(int64(m)).UTC() }

// Add moves by a duration.
func (m Millis) Add(d time.Duration) Millis { return m + Millis(d/time.Millisecond) }

const millisLayout = "2006-01-02T15:04:05.000Z"

func (m Millis) String() string { return m.Time().Format(millisLayout) }

// MarshalJSON writes RFC 3339 with milliseconds, always UTC.
func (m Millis) MarshalJSON() ([]byte, error) {
	return m.append(make([]byte, 0, len(millisLayout)+2)), nil
}

// UnmarshalJSON reads exactly what MarshalJSON writes.
func (m *Millis) UnmarshalJSON(b []byte) error {
	if len(b) != len(millisLayout)+2 || b[0] != '"' || b[len(b)-1] != '"' {
		return fmt.Errorf("time is not of the form %s", millisLayout)
	}
	t, err := time.Parse(millisLayout, string(b[1:len(b)-1]))
	if err != nil || b[len(b)-6] != '.' { // Parse takes a comma as well
		return fmt.Errorf("time is not of the form %s", millisLayout)
	}
	*m = At(t)
	return nil
}
