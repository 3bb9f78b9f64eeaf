package state

import (
	"fmt"
	"slices"

	"github.com/bailment/bailment/internal/ceremony"
)

// ByRecovery is how a bundle comes into force whose operators were replaced by a recovery: see BundleInForce.How.
const ByRecovery = "recovery"

// RecoveryStarted begins a recovery: it is public from here on, and carried out when its delay is over. Text is what all signers signed, byte
// for byte: see ceremony.Recovery.
type RecoveryStarted struct {
	Text       string      `json:"text"`
	Signatures []Signature `json:"signatures"` // as many as it takes, in ascending order of the persons
	Until      Millis      `json:"until"`      // the end of its delay
	Ruling     Ruling      `json:"ruling"`
}

// RecoveryWithdrawn ends a recovery before it was carried out: one of its signers took his signature back, and too few are left. Text is what
// he signed: see ceremony.Withdrawal.
type RecoveryWithdrawn struct {
	Recovery  uint64    `json:"recovery"`
	Text      string    `json:"text"`
	Signature Signature `json:"signature"`
	Ruling    Ruling    `json:"ruling"`
}

// The kinds of these events.
func (*RecoveryStarted) Kind() Kind   { return Kind{"recovery.started", 1} }
func (*RecoveryWithdrawn) Kind() Kind { return Kind{"recovery.withdrawn", 1} }

// Recovery is one that waits out its delay, or to be carried out. It ends with its bundle, with that of an approved change, or when a signer
// takes his signature back. A rollback doesn't end it: one person can make one. What it was made for is then not in force any more, but what
// that change's approval allows in its place, and the operators of that are replaced.
type Recovery struct {
	Index      uint64      `json:"index"`
	Text       string      `json:"text"`
	Signatures []Signature `json:"signatures"`
	Base       Digest      `json:"base"`     // in force when it began
	Manifest   Digest      `json:"manifest"` // that follows it
	Operators  Digest      `json:"operators"`
	Reason     string      `json:"reason"`
	Began      Millis      `json:"began"`
	Until      Millis      `json:"until"`
}

// SignedBy reports whether a person signed it.
func (r *Recovery) SignedBy(person string) bool {
	return slices.ContainsFunc(r.Signatures, func(x Signature) bool { return x.Person == person })
}

// recoveryKey is the one row of the table of recoveries.
const recoveryKey = "now"

// Recovery is the recovery that is under way; nil: none.
func (s *State) Recovery() *Recovery {
	r, _ := s.recoveries.Get(recoveryKey)
	return r
}

// RecoveryDue reports whether a recovery is to be carried out at a moment.
func (s *State) RecoveryDue(now Millis) bool {
	r := s.Recovery()
	return r != nil && now >= r.Until
}

func (e *RecoveryStarted) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	r, err := ceremony.ParseRecovery(e.Text)
	if err != nil {
		return err
	}
	row := &Recovery{Index: m.Index, Text: e.Text, Signatures: e.Signatures, Reason: r.Reason, Began: m.Time, Until: e.Until}
	for _, x := range []struct {
		to   *Digest
		text string
	}{{&row.Base, r.Base}, {&row.Manifest, r.New}, {&row.Operators, r.Operators}} {
		if *x.to, err = ParseDigest(x.text); err != nil {
			return err
		}
	}
	switch {
	case s.Recovery() != nil:
		return fmt.Errorf("there is a recovery already")
	case row.Base != s.Bundle:
		return fmt.Errorf("it replaces another bundle than the one in force")
	case r.Delay <= 0 || e.Until != m.Time.Add(r.Delay):
		return fmt.Errorf("its delay is not over at %s", e.Until)
	case len(e.Signatures) != r.Required || r.Required < 1:
		return fmt.Errorf("it has the signatures of %d persons, and takes %d", len(e.Signatures), r.Required)
	case m.Time >= At(r.Expires):
		return fmt.Errorf("it expired")
	}
	for i := 1; i < len(e.Signatures); i++ {
		if e.Signatures[i-1].Person >= e.Signatures[i].Person {
			return fmt.Errorf("its signatures are not in their order, or of one person twice")
		}
	}
	if err := s.spend(r.Nonce, At(r.Expires)); err != nil {
		return err
	}
	s.recoveries.set(recoveryKey, row)
	return nil
}

func (e *RecoveryWithdrawn) apply(s *State, _ Meta) error {
	r := s.Recovery()
	if r == nil || r.Index != e.Recovery {
		return fmt.Errorf("there is no recovery %d", e.Recovery)
	}
	if !r.SignedBy(e.Signature.Person) {
		return fmt.Errorf("%s didn't sign recovery %d", e.Signature.Person, e.Recovery)
	}
	s.recoveries.del(recoveryKey)
	return nil
}

// recovers checks that a bundle may come into force by the recovery that is under way. That it differs from the one in force in its operators
// only is for who has both to check.
func (e *BundleInForce) recovers(s *State, m Meta) error {
	r := s.Recovery()
	switch {
	case r == nil || r.Index != e.Recovery || e.Change != 0:
		return fmt.Errorf("there is no recovery %d", e.Recovery)
	case s.Staged() != nil || e.Watch != 0 || e.Cause != nil:
		return fmt.Errorf("recovery %d does not bring this bundle into force", e.Recovery)
	case m.Time < r.Until:
		return fmt.Errorf("recovery %d waits until %s", e.Recovery, r.Until)
	case s.Bundle == r.Base && e.Manifest != r.Manifest:
		return fmt.Errorf("recovery %d was signed for another bundle", e.Recovery)
	}
	s.endRollout()
	return nil
}
