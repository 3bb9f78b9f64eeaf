package state

// Actor says who did it, and in which proved session.
type Actor struct {
	Identity string `json:"identity"`
	Node     string `json:"node,omitempty"`
	Session  uint64 `json:"session,omitempty"`
}

// Ruling is what it takes to decide again offline: the bundle that governed, the rule that
// decided, and the version of the evaluator.
type Ruling struct {
	Generation uint64 `json:"generation"`
	Bundle     Digest `json:"bundle"`
	Grant      string `json:"grant,omitempty"`
	Evaluator  int    `json:"evaluator"`
	Cohort     string `json:"cohort,omitempty"` // of a rollout; then Bundle is its candidate
}

// IdemKey is the idempotency key of the request, pinned to a keyed digest of it.
type IdemKey struct {
	Key     string `json:"key"`
	Request Digest `json:"request"`
	First   uint64 `json:"first,omitempty"` // set on a redelivery: index of the first effect
}

// Genesis is entry 0. Document is the text whose SHA-256 is the environment's identity and that
// the founders signed; the other fields repeat what the reducer needs of it.
type Genesis struct {
	Document   string      `json:"document"`
	Signatures []Signature `json:"signatures"`
	Name       string      `json:"name"`
	Class      string      `json:"class"`
	Manifest   Digest      `json:"manifest"`
	Keys       []KeyFacts  `json:"keys"`
	// Protocol is which one may be written from the beginning; none: the first.
	Protocol int `json:"protocol,omitempty"`
}

// Signature is an SSHSIG by an operator over a text.
type Signature struct {
	Person string `json:"person"`
	Key    string `json:"key"` // SSH fingerprint
	SSHSIG string `json:"sshsig"`
}

// KeyFacts is the public side of one of the environment's keys.
type KeyFacts struct {
	Name   string `json:"name"`
	Public []byte `json:"public,omitempty"`
	Cert   []byte `json:"cert,omitempty"`
	Cross  []byte `json:"cross,omitempty"`
}

// BundleInForce starts a generation.
type BundleInForce struct {
	Generation uint64 `json:"generation"`
	Manifest   Digest `json:"manifest"`
	Previous   Digest `json:"previous"`
	Change     uint64 `json:"change"`
	How        string `json:"how"`             // ByChange, ByRollout, ByRollback or ByRecovery
	Watch      Millis `json:"watch,omitempty"` // until when the triggers of its rollout may take it back
	Cause      *Cause `json:"cause,omitempty"` // of a rollback
	Recovery   uint64 `json:"recovery,omitempty"`
}

// ChangeProposed opens a change. Text is what the proposer signed, byte for byte.
type ChangeProposed struct {
	Action    string     `json:"action"` // see package control: bundle, hold.lift, …
	Manifest  Digest     `json:"manifest,omitzero"`
	Base      Digest     `json:"base"`
	Target    string     `json:"target,omitempty"`
	Required  int        `json:"required"`
	SelfOK    bool       `json:"self_ok,omitempty"`
	Expires   Millis     `json:"expires"`
	Reason    string     `json:"reason,omitempty"`
	Text      string     `json:"text"`
	Signature Signature  `json:"signature"`
	Bundle    *Signature `json:"manifest_signature,omitempty"` // over the manifest, in namespace bundle@bailment
	Nonce     string     `json:"nonce"`
	Actor     Actor      `json:"actor"`
	Ruling    Ruling     `json:"ruling"`
	Idem      *IdemKey   `json:"idem,omitempty"`
	// Of a text of version 2: by which rollout of the bundle in force it comes into force, none: at once; what manifest it may be rolled
	// back to; and the files that no rollback undoes.
	Version     int      `json:"text_version,omitempty"`
	Rollout     string   `json:"rollout,omitempty"`
	Rollback    Digest   `json:"rollback,omitzero"`
	Containment []string `json:"containment,omitempty"`
	// Delay is for how many seconds it waits after the last approval that it needs, as the base says of such acts.
	Delay int64 `json:"delay_s,omitempty"`
}

// ChangeApproved adds one person's approval: an SSHSIG over Text.
type ChangeApproved struct {
	Change    uint64    `json:"change"`
	Text      string    `json:"text"`
	Nonce     string    `json:"nonce"`
	Signature Signature `json:"signature"`
	Actor     Actor     `json:"actor"`
	Ruling    Ruling    `json:"ruling"`
}

// ChangeRejected ends a change.
type ChangeRejected struct {
	Change uint64 `json:"change"`
	Reason string `json:"reason,omitempty"`
	Actor  Actor  `json:"actor"`
	Ruling Ruling `json:"ruling"`
}

// TokenCreated admits one machine by a join token, of which only the public key is known here.
type TokenCreated struct {
	ID      string   `json:"id"`
	Public  []byte   `json:"public"`
	Name    string   `json:"name"`
	Expires Millis   `json:"expires"`
	Anchor  string   `json:"anchor"` // of its maker: the token is revoked with it
	Actor   Actor    `json:"actor"`
	Ruling  Ruling   `json:"ruling"`
	Idem    *IdemKey `json:"idem,omitempty"`
}

// SessionOpened records a proof and the session it gives. The certificate is signed after it.
type SessionOpened struct {
	Via         string         `json:"via"` // attest | renew | workload | login
	Identity    string         `json:"identity"`
	Method      string         `json:"method"`
	Anchor      string         `json:"anchor"`
	Assurance   string         `json:"assurance"`
	Node        string         `json:"node,omitempty"`
	NodeSession uint64         `json:"node_session,omitempty"`
	Root        uint64         `json:"root,omitempty"` // 0: this entry itself
	From        uint64         `json:"from,omitempty"` // of a renewal: the session whose key asked for it
	Counter     uint64         `json:"counter,omitempty"`
	Lifetime    Millis         `json:"lifetime,omitempty"`
	Key         Digest         `json:"key"`
	Evidence    Digest         `json:"evidence_key,omitzero"` // thumbprint of the key that proved it
	Serial      string         `json:"serial"`
	Expires     Millis         `json:"expires"`
	Claims      map[string]any `json:"claims,omitempty"`
	Token       string         `json:"token,omitempty"` // join token spent by this
	Challenge   string         `json:"challenge,omitempty"`
	ChallengeTo Millis         `json:"challenge_to,omitempty"`
	Redelivery  bool           `json:"redelivery,omitempty"`
	Rule        string         `json:"rule,omitempty"`
	Ruling      Ruling         `json:"ruling"`
}

// SessionClosed gives a session back.
type SessionClosed struct {
	Session uint64 `json:"session"`
	Actor   Actor  `json:"actor"`
}

// SecretWritten adds a version. Destroys lists old versions that made room, Retires the one that
// was current before.
type SecretWritten struct {
	Secret   string       `json:"secret"`
	Version  uint64       `json:"version"`
	State    VersionState `json:"state"`
	Digest   Digest       `json:"digest"`
	Recipe   string       `json:"recipe,omitempty"`
	Retires  uint64       `json:"retires,omitempty"`
	Until    Millis       `json:"until,omitempty"`
	Destroys []uint64     `json:"destroys,omitempty"`
	Actor    Actor        `json:"actor"`
	Ruling   Ruling       `json:"ruling"`
	Idem     *IdemKey     `json:"idem,omitempty"`
}

// SecretMoved is a lifecycle transition of one version.
type SecretMoved struct {
	Secret  string       `json:"secret"`
	Version uint64       `json:"version"`
	From    VersionState `json:"from"`
	To      VersionState `json:"to"`
	Until   Millis       `json:"until,omitempty"`
	Retires uint64       `json:"retires,omitempty"` // on promotion: what was current before
	Reason  string       `json:"reason,omitempty"`
	Change  uint64       `json:"change,omitempty"` // that approved it, if it took one
	Actor   Actor        `json:"actor"`
	Ruling  Ruling       `json:"ruling"`
}

// SecretReleased is the hand-over. It is durable before a byte of the value leaves the server.
type SecretReleased struct {
	Secret    string   `json:"secret"`
	Version   uint64   `json:"version"`
	Digest    Digest   `json:"digest"` // of the ciphertext
	Purpose   string   `json:"purpose"`
	Assurance string   `json:"assurance"`
	Lease     uint64   `json:"lease,omitempty"` // 0: this entry makes the lease
	Expires   Millis   `json:"expires"`
	Max       Millis   `json:"max,omitempty"` // with a new lease: no renewal goes beyond
	Anchor    string   `json:"anchor,omitempty"`
	Root      uint64   `json:"root"`
	Actor     Actor    `json:"actor"`
	Ruling    Ruling   `json:"ruling"`
	Idem      *IdemKey `json:"idem,omitempty"`
}

// LeaseRenewed prolongs a lease, never beyond its maximum.
type LeaseRenewed struct {
	Lease   uint64 `json:"lease"`
	Expires Millis `json:"expires"`
	Actor   Actor  `json:"actor"`
	Ruling  Ruling `json:"ruling"`
}

// LeaseReturned gives a lease back before its time.
type LeaseReturned struct {
	Lease uint64 `json:"lease"`
	Actor Actor  `json:"actor"`
}

// RevocationRecorded is a cutoff, a hold, or both, on a scope. See ParseScope.
type RevocationRecorded struct {
	Scope   string `json:"scope"`
	Cutoff  bool   `json:"cutoff"`
	Hold    bool   `json:"hold"`
	Until   Millis `json:"until,omitempty"` // a provisional hold beyond the blast limit
	Horizon Millis `json:"horizon"`         // when, at the latest, all that it covers is dead everywhere
	Covers  int    `json:"covers"`          // identities in scope that live, or lived until a provisional hold
	Reason  string `json:"reason"`
	Change  uint64 `json:"change,omitempty"`
	Actor   Actor  `json:"actor"`
	Ruling  Ruling `json:"ruling"`
}

// HoldLifted ends a hold.
type HoldLifted struct {
	Scope  string `json:"scope"`
	Hold   uint64 `json:"hold"`
	Change uint64 `json:"change"`
}

// RequestDenied is a refusal of a proved identity, entered whole.
type RequestDenied struct {
	Action  string `json:"action"`
	Target  string `json:"target,omitempty"`
	Purpose string `json:"purpose,omitempty"`
	Reason  string `json:"reason"`
	Actor   Actor  `json:"actor"`
	Ruling  Ruling `json:"ruling"`
	Beside  string `json:"beside,omitempty"`  // during a rollout: "allowed" if the bundle beside the governing one allows it
	Version uint64 `json:"version,omitempty"` // that is current, if it was to be read
	// Undecided: the condition that kept a grant from allowing it could not be told.
	Undecided bool `json:"undecided,omitempty"`
}

// DenialsSummed is what was not entered whole: by identity beyond 60 a minute, or unproved.
type DenialsSummed struct {
	Method   string         `json:"method"` // attestation method, or "session", or "identity"
	Identity string         `json:"identity,omitempty"`
	Reason   string         `json:"reason"`
	Minute   Millis         `json:"minute"`
	Count    uint64         `json:"count"`
	Sources  map[string]int `json:"sources,omitempty"` // /64 or /32 network → count, at most 16
	Others   uint64         `json:"others,omitempty"`
}

// KeyAdded rotates one kind of key: the added one is current from here on.
type KeyAdded struct {
	Key    KeyFacts `json:"key"`
	Actor  Actor    `json:"actor"`
	Ruling Ruling   `json:"ruling"`
}

// KeysRewrapped is progress of a rewrap.
type KeysRewrapped struct {
	To     string `json:"to"`
	Count  int    `json:"count"`
	Done   bool   `json:"done"`
	Actor  Actor  `json:"actor"`
	Ruling Ruling `json:"ruling"`
}

// StateRootSet commits to the reduced state after the entry Index.
type StateRootSet struct {
	Index uint64 `json:"index"`
	Root  Digest `json:"root"`
}

// ProtocolRaised allows newer pairs to be written.
type ProtocolRaised struct {
	Version int `json:"version"`
}

// The kinds of the events, in the order of Types.
func (*ChangeApproved) Kind() Kind     { return Kind{"change.approved", 1} }
func (*ChangeRejected) Kind() Kind     { return Kind{"change.rejected", 1} }
func (*TokenCreated) Kind() Kind       { return Kind{"token.created", 1} }
func (*SessionOpened) Kind() Kind      { return Kind{"session.opened", 1} }
func (*SessionClosed) Kind() Kind      { return Kind{"session.closed", 1} }
func (*LeaseReturned) Kind() Kind      { return Kind{"lease.returned", 1} }
func (*RevocationRecorded) Kind() Kind { return Kind{"revocation.recorded", 1} }
func (*HoldLifted) Kind() Kind         { return Kind{"hold.lifted", 1} }
func (*DenialsSummed) Kind() Kind      { return Kind{"denials.summed", 1} }
func (*KeyAdded) Kind() Kind           { return Kind{"key.added", 1} }
func (*KeysRewrapped) Kind() Kind      { return Kind{"keys.rewrapped", 1} }
func (*StateRootSet) Kind() Kind       { return Kind{"state.root", 1} }
func (*ProtocolRaised) Kind() Kind     { return Kind{"protocol.raised", 1} }

// These have a second version, which is the first with what rollouts add to it. An entry that makes no use of that is of the first, so
// that what can be said in either way is said in one.

// Kind is version 2 where a newer protocol holds from the beginning.
func (e *Genesis) Kind() Kind { return versionOf("environment.genesis", e.Protocol != 0) }

// Kind is version 2 for what a change alone can't do.
func (e *BundleInForce) Kind() Kind {
	return versionOf("bundle.in_force", e.How != ByChange || e.Watch != 0 || e.Cause != nil || e.Recovery != 0)
}

// Kind is version 2 for a text of version 2, and for what waits.
func (e *ChangeProposed) Kind() Kind {
	return versionOf("change.proposed", e.Version != 0 || e.Delay != 0 || e.Rollout != "" || !e.Rollback.IsZero() || len(e.Containment) > 0)
}

// Kind is version 2 in a canary.
func (e *SecretWritten) Kind() Kind { return versionOf("secret.written", e.Ruling.Cohort != "") }

// Kind is version 2 in a canary, and by an approved change.
func (e *SecretMoved) Kind() Kind {
	return versionOf("secret.moved", e.Ruling.Cohort != "" || e.Change != 0)
}

// Kind is version 2 in a canary.
func (e *SecretReleased) Kind() Kind { return versionOf("secret.released", e.Ruling.Cohort != "") }

// Kind is version 2 in a canary.
func (e *LeaseRenewed) Kind() Kind { return versionOf("lease.renewed", e.Ruling.Cohort != "") }

// Kind is version 2 where a rollout has something to say about it.
func (e *RequestDenied) Kind() Kind {
	return versionOf("request.denied", e.Ruling.Cohort != "" || e.Beside != "" || e.Version != 0 || e.Undecided)
}

func versionOf(name string, second bool) Kind {
	if second {
		return Kind{name, 2}
	}
	return Kind{name, 1}
}
