package state

import (
	"fmt"

	"github.com/bailment/bailment/internal/policy"
)

// protocolAttested is the protocol version that the entries of this file belong to.
const protocolAttested = 2

// EvidenceUsed says that evidence which may be used by one key only was used, and which session it opened. It stands in the same commit
// as that session.
type EvidenceUsed struct {
	Use      string `json:"use"`
	Key      Digest `json:"key"` // thumbprint of the session key
	Session  uint64 `json:"session"`
	Identity string `json:"identity"`
	Until    Millis `json:"until,omitempty"` // no evidence with this value is good after it; none: kept for ever
}

// EvidenceForgotten lets evidence be used once more, by an approved change: a machine was rebuilt, say.
type EvidenceForgotten struct {
	Use    string `json:"use"`
	Change uint64 `json:"change"`
}

// NodeQuarantined is a hold on one node that its own proof set: the key that the enrolment was proved with proved now what its identity
// rule does not allow. Why says it in words.
type NodeQuarantined struct {
	Identity    string         `json:"identity"`
	Session     uint64         `json:"session"` // the enrolment's newest
	Method      string         `json:"method"`
	Anchor      string         `json:"anchor"`
	Evidence    Digest         `json:"evidence_key"`
	Use         string         `json:"use,omitempty"` // what of the evidence counts once; none: it is bound to its challenge
	Key         Digest         `json:"key,omitzero"`  // thumbprint of the session key that it was shown for
	Claims      map[string]any `json:"claims,omitempty"`
	Rule        string         `json:"rule"`
	Why         string         `json:"why"`
	Challenge   string         `json:"challenge,omitempty"` // that it answered, which is spent by it
	ChallengeTo Millis         `json:"challenge_to,omitempty"`
	Ruling      Ruling         `json:"ruling"`
}

// IdentityDecommissioned ends an identity for ever. It is entered after a cutoff and hold on it, by an approved change, and states what
// was left at that moment: nothing that is alive here, which secrets its holders once had in clear, and until when somebody who asks
// nobody may still believe what it was given.
type IdentityDecommissioned struct {
	Identity string   `json:"identity"`
	Cutoff   uint64   `json:"cutoff"` // the entry that ended what it had
	Leases   int      `json:"leases"` // live ones, revocations counted: 0
	Sessions int      `json:"sessions"`
	Tokens   int      `json:"tokens"`
	Rotate   []string `json:"rotate,omitempty"` // secrets that were handed out as values, within what is kept
	// Horizon is the end of the last of its leases, X.509-SVIDs and JWT-SVIDs, whether revoked or given back. None: all were over.
	Horizon Millis `json:"horizon,omitempty"`
	Change  uint64 `json:"change"`
	Ruling  Ruling `json:"ruling"`
}

// The kinds of these events.
func (*EvidenceUsed) Kind() Kind           { return Kind{"evidence.used", 1} }
func (*EvidenceForgotten) Kind() Kind      { return Kind{"evidence.forgotten", 1} }
func (*NodeQuarantined) Kind() Kind        { return Kind{"node.quarantined", 1} }
func (*IdentityDecommissioned) Kind() Kind { return Kind{"identity.decommissioned", 1} }

func (e *EvidenceUsed) apply(s *State, _ Meta) error {
	if err := s.needs(protocolAttested); err != nil {
		return err
	}
	x, ok := s.Sessions.Get(e.Session)
	if !ok || x.Identity != e.Identity || x.Key != e.Key {
		return fmt.Errorf("session %d is not the one that the evidence opened", e.Session)
	}
	if s.Uses.Has(e.Use) {
		return fmt.Errorf("the evidence %.100q was used before", e.Use)
	}
	s.Uses.set(e.Use, &Use{Key: e.Key, Session: e.Session, Identity: e.Identity, Until: e.Until})
	if e.Until != 0 {
		s.enqueue(e.Until, qUse, e.Use)
	}
	return nil
}

func (e *EvidenceForgotten) apply(s *State, m Meta) error {
	if err := s.needs(protocolAttested); err != nil {
		return err
	}
	if !s.Uses.Has(e.Use) {
		return fmt.Errorf("there is no use of %.100q to forget", e.Use)
	}
	if err := s.carryOut(e.Change, policy.ActForget, e.Use, m); err != nil {
		return err
	}
	s.Uses.del(e.Use)
	return nil
}

func (e *NodeQuarantined) apply(s *State, m Meta) error {
	if err := s.needs(protocolAttested); err != nil {
		return err
	}
	id, ok := s.Identities.Get(e.Identity)
	if !ok || id.Session != e.Session || id.Evidence != e.Evidence {
		return fmt.Errorf("%s has no enrolment that was proved so", e.Identity)
	}
	scope := Scope{Kind: ScopeNode, Value: e.Identity}.String()
	if _, err := ParseScope(scope); err != nil {
		return err
	}
	if err := s.answer(e.Challenge, e.ChallengeTo); err != nil {
		return err
	}
	// A hold that is there already stands: it has another reason, and is lifted by itself.
	if old, ok := s.Holds.Get(scope); !ok || old.Until != 0 {
		s.Holds.set(scope, &Hold{Scope: scope, Index: m.Index, By: e.Identity, Reason: e.Why, Quarantine: true})
	}
	s.Control = m.Index
	return nil
}

func (e *IdentityDecommissioned) apply(s *State, m Meta) error {
	if err := s.needs(protocolAttested); err != nil {
		return err
	}
	if s.Gone.Has(e.Identity) {
		return fmt.Errorf("%s was decommissioned before", e.Identity)
	}
	if e.Leases != 0 || e.Sessions != 0 || e.Tokens != 0 {
		return fmt.Errorf("something of %s is left", e.Identity)
	}
	if err := s.carryOut(e.Change, policy.ActDecommission, e.Identity, m); err != nil {
		return err
	}
	s.Gone.set(e.Identity, m.Index)
	s.Identities.del(e.Identity)
	s.Control = m.Index
	return nil
}
