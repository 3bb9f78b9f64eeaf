package state

import (
	"bytes"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/bailment/bailment/internal/problem"
)

// Kind names an entry type and its version. A published pair never changes its meaning.
type Kind struct {
	Type    string
	Version int
}

func (k Kind) String() string { return k.Type + " v" + strconv.Itoa(k.Version) }

// Event is what an entry says happened. The set is closed: see Types.
type Event interface {
	Kind() Kind
	apply(s *State, m Meta) error
}

// Type is a row of the table of entry types.
type Type struct {
	Kind Kind
	New  func() Event
	Doc  string
	// Protocol is which protocol version must have been raised before such an entry may be written; 0: the first, that of genesis.
	Protocol int
}

// Protocol is the newest protocol version that this program writes and reads.
const Protocol = 3

// known refuses a protocol that is newer than this program: what its entries mean is not known here, not even of those whose types are.
func known(protocol int) error {
	if protocol > Protocol {
		return problem.New(problem.ReasonUnknownVersion, "the environment is of protocol %d, and this program knows those up to %d", protocol, Protocol).
			WithFix("%s", upgrade)
	}
	return nil
}

// upgrade is the way out where a newer program was here before.
const upgrade = "a newer release was here: use that one or a newer one; nothing goes back to an older format"

// MayWrite reports whether the table allows the event's type under the protocol that was raised.
func (s *State) MayWrite(ev Event) bool {
	for _, t := range Types {
		if t.Kind == ev.Kind() {
			return t.Protocol <= s.Protocol
		}
	}
	return false
}

// Types is the closed table of entry types and versions. testdata/replay keeps at least one entry
// of each for ever; a new pair is a new row here, a struct with its reducer, and an example there.
var Types = []Type{
	{Kind{"environment.genesis", 1}, func() Event { return new(Genesis) }, "the environment came to be; entry 0", 0},
	{Kind{"bundle.in_force", 1}, func() Event { return new(BundleInForce) }, "a bundle came into force as a new generation", 0},
	{Kind{"change.proposed", 1}, func() Event { return new(ChangeProposed) }, "an operator proposed a bundle or a sensitive act", 0},
	{Kind{"change.approved", 1}, func() Event { return new(ChangeApproved) }, "an operator approved a change", 0},
	{Kind{"change.rejected", 1}, func() Event { return new(ChangeRejected) }, "an operator rejected a change, which ends it", 0},
	{Kind{"token.created", 1}, func() Event { return new(TokenCreated) }, "an operator made a join token", 0},
	{Kind{"session.opened", 1}, func() Event { return new(SessionOpened) }, "an identity was proved, or renewed, and got a session", 0},
	{Kind{"session.closed", 1}, func() Event { return new(SessionClosed) }, "a session was given back", 0},
	{Kind{"secret.written", 1}, func() Event { return new(SecretWritten) }, "a secret got a new version", 0},
	{Kind{"secret.moved", 1}, func() Event { return new(SecretMoved) }, "a version changed its lifecycle state", 0},
	{Kind{"secret.released", 1}, func() Event { return new(SecretReleased) }, "a version was released to an identity under a lease", 0},
	{Kind{"lease.renewed", 1}, func() Event { return new(LeaseRenewed) }, "a lease was prolonged", 0},
	{Kind{"lease.returned", 1}, func() Event { return new(LeaseReturned) }, "a lease was given back", 0},
	{Kind{"revocation.recorded", 1}, func() Event { return new(RevocationRecorded) }, "a cutoff or hold was set on a scope", 0},
	{Kind{"hold.lifted", 1}, func() Event { return new(HoldLifted) }, "a hold was lifted by an approved change", 0},
	{Kind{"request.denied", 1}, func() Event { return new(RequestDenied) }, "a proved identity was refused", 0},
	{Kind{"denials.summed", 1}, func() Event { return new(DenialsSummed) }, "denials of one minute that were not entered one by one", 0},
	{Kind{"key.added", 1}, func() Event { return new(KeyAdded) }, "a key of the environment was added and became the current one of its kind", 0},
	{Kind{"keys.rewrapped", 1}, func() Event { return new(KeysRewrapped) }, "data keys were wrapped anew under the current key-encryption key", 0},
	{Kind{"state.root", 1}, func() Event { return new(StateRootSet) }, "the reduced state up to an index was committed to", 0},
	{Kind{"protocol.raised", 1}, func() Event { return new(ProtocolRaised) }, "newer entry types may be written from here on", 0},
	{Kind{"evidence.used", 1}, func() Event { return new(EvidenceUsed) }, "evidence of single use, or of first use, was used by a key", 2},
	{Kind{"evidence.forgotten", 1}, func() Event { return new(EvidenceForgotten) }, "an approved change lets evidence be used once more", 2},
	{Kind{"node.quarantined", 1}, func() Event { return new(NodeQuarantined) }, "a machine proved to be what its rule does not allow, and is held", 2},
	{Kind{"identity.decommissioned", 1}, func() Event { return new(IdentityDecommissioned) }, "an identity ended for ever, and nothing of it is left", 2},
	{Kind{"jwt.key_added", 1}, func() Event { return new(JWTKeyAdded) }, "a key of JWT-SVIDs was added and published; the one before it signs from here on", 2},
	{Kind{"key.withdrawn", 1}, func() Event { return new(KeyWithdrawn) }, "others were told to trust a key, and those before it, no more", 2},
	{Kind{"jwt.issued", 1}, func() Event { return new(JWTIssued) }, "a JWT-SVID was issued", 2},
	{Kind{"federation.refreshed", 1}, func() Event { return new(FederationRefreshed) }, "the trust bundle of another trust domain was fetched anew", 2},
	{Kind{"rollout.moved", 1}, func() Event { return new(RolloutMoved) }, "an approved bundle went to the next step of its rollout", 3},
	{Kind{"rollout.ended", 1}, func() Event { return new(RolloutEnded) }, "a rollout was taken back before its bundle was in force", 3},
	{Kind{"rollout.observed", 1}, func() Event { return new(RolloutObserved) }, "what the candidate of a rollout would have decided otherwise, summed", 3},
	{Kind{"environment.genesis", 2}, func() Event { return new(Genesis) }, "the same, with the protocol that holds from the beginning", 3},
	{Kind{"bundle.in_force", 2}, func() Event { return new(BundleInForce) }, "the same: after a rollout, or again, by a rollback; or with other operators, by a recovery", 3},
	{Kind{"change.proposed", 2}, func() Event { return new(ChangeProposed) }, "the same, with how it comes into force and what it may be rolled back to", 3},
	{Kind{"secret.written", 2}, func() Event { return new(SecretWritten) }, "the same, decided by the candidate of a rollout", 3},
	{Kind{"secret.moved", 2}, func() Event { return new(SecretMoved) }, "the same, decided by the candidate of a rollout, or by an approved change", 3},
	{Kind{"secret.released", 2}, func() Event { return new(SecretReleased) }, "the same, decided by the candidate of a rollout", 3},
	{Kind{"lease.renewed", 2}, func() Event { return new(LeaseRenewed) }, "the same, decided by the candidate of a rollout", 3},
	{Kind{"access.reviewed", 1}, func() Event { return new(AccessReviewed) }, "an operator decided, line by line, who should keep what", 3},
	{Kind{"glass.opened", 1}, func() Event { return new(GlassOpened) }, "a person opened a break-glass grant, for an incident and some minutes", 3},
	{Kind{"glass.closed", 1}, func() Event { return new(GlassClosed) }, "an opening was ended before its time", 3},
	{Kind{"glass.reviewed", 1}, func() Event { return new(GlassReviewed) }, "another operator wrote and signed what he found of an opening", 3},
	{Kind{"glass.alarmed", 1}, func() Event { return new(GlassAlarmed) }, "releases by break-glass grants reached an alarming share of a quarter's", 3},
	{Kind{"recovery.started", 1}, func() Event { return new(RecoveryStarted) }, "the holders of recovery keys begin to replace the operators", 3},
	{Kind{"recovery.withdrawn", 1}, func() Event { return new(RecoveryWithdrawn) }, "one of a recovery's signers took his signature back, which ends it", 3},
	{Kind{"environment.ended", 1}, func() Event { return new(EnvironmentEnded) }, "the environment ended for ever: the last entry", 3},
	{Kind{"custody.moved", 1}, func() Event { return new(CustodyMoved) }, "the environment's keys are under another root key", 3},
	{Kind{"secret.exported", 1}, func() Event { return new(SecretExported) }, "the current versions of a pattern's secrets left, sealed to a recipient, by an approved change", 3},
	{Kind{"request.denied", 2}, func() Event { return new(RequestDenied) }, "the same, during a rollout: with what the bundle beside it says", 3},
}

var typeIndex = func() map[Kind]func() Event {
	m := make(map[Kind]func() Event, len(Types))
	for _, t := range Types {
		m[t.Kind] = t.New
	}
	return m
}()

// Entry is an event with its time.
type Entry struct {
	Time  Millis
	Event Event
}

// MaxBody is the largest body of an entry, in bytes. Larger documents are blobs.
const MaxBody = 32 << 10

type envelope struct {
	Type string         `json:"type"`
	V    int            `json:"v"`
	Time Millis         `json:"time"`
	Body jsontext.Value `json:"body"`
}

// Decode reads an entry's body strictly: an unknown type, version or field is an error, because a
// server that skips what it does not understand would enforce something else than was decided.
func Decode(b []byte) (*Entry, error) {
	if len(b) > MaxBody {
		return nil, problem.New(problem.ReasonTooLarge, "an entry of %d bytes is over the limit of %d", len(b), MaxBody)
	}
	var env envelope
	if err := strict(b, &env); err != nil {
		return nil, problem.Wrap(err, problem.ReasonTampered, "reading an entry")
	}
	k := Kind{env.Type, env.V}
	mk, ok := typeIndex[k]
	if !ok {
		return nil, problem.New(problem.ReasonUnknownVersion, "entry type %q is not known to this version", k.String()).WithFix("%s", upgrade)
	}
	ev := mk()
	if err := strict(env.Body, ev); err != nil {
		return nil, problem.Wrap(err, problem.ReasonTampered, "reading a %s entry", k)
	}
	e := &Entry{Time: env.Time, Event: ev}
	// One entry, one form: a key that is there twice, in another case, or null would otherwise be read by
	// one program so and by another so.
	if again, err := Encode(e); err != nil || !bytes.Equal(again, b) {
		return nil, problem.New(problem.ReasonTampered, "a %s entry is not in its canonical form", k)
	}
	return e, nil
}

// strict reads one JSON document: no unknown, repeated or differently cased key, nothing after it, and UTF-8 only (RFC 7493).
func strict(b []byte, v any) error {
	return json.Unmarshal(b, v, json.RejectUnknownMembers(true))
}
