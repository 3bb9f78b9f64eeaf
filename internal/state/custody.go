package state

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"regexp"

	"github.com/bailment/bailment/internal/policy"
)

// CustodyMoved says that the environment's key-encryption keys are under another root holder from here on, and no more under the one
// before. The wrapped keys are replaced in the same write; all other keys are under these, and stay as they are.
type CustodyMoved struct {
	From   RootHolder `json:"from"`
	To     RootHolder `json:"to"`
	Keys   int        `json:"keys"`   // how many were wrapped anew: all there are
	Digest Digest     `json:"digest"` // of what they are wrapped as: see MovedDigest
	Change uint64     `json:"change"`
	Reason string     `json:"reason,omitempty"`
	Actor  Actor      `json:"actor"`
	Ruling Ruling     `json:"ruling"`
}

// RootHolder is the public side of what holds a root key.
type RootHolder struct {
	Kind            string `json:"kind"`
	ID              string `json:"id"`
	DevelopmentOnly bool   `json:"development_only,omitempty"`
}

// String is KIND:ID, as genesis and approvals say it.
func (h RootHolder) String() string { return h.Kind + ":" + h.ID }

// rootHolder is what a holder's KIND:ID is: text that a person can compare, with nothing in it that doesn't show.
var rootHolder = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}:[!-~]{1,128}$`)

// ValidRootHolder reports whether a text is the KIND:ID of a root holder.
func ValidRootHolder(text string) bool { return rootHolder.MatchString(text) }

// Custody is which root holder the environment is under, since it was moved there; zero: the one that genesis names.
type Custody struct {
	Moved  uint64 `json:"moved"` // index of the entry
	Holder string `json:"holder"`
	Keys   int    `json:"keys"`   // the key-encryption keys 1 to Keys were moved
	Digest Digest `json:"digest"` // of what they are wrapped as
}

// movedPrefix keeps these digests apart from all others.
const movedPrefix = "bailment/custody/moved/v1\n"

// MovedDigest is the digest of wrapped keys: SHA-256 over a prefix, and of each key in order of their numbers the lengths (four bytes, big
// endian) and bytes of its name and of what it is wrapped as. It is of ciphertext, and tells nothing about the keys.
func MovedDigest(keys iter.Seq2[string, []byte]) Digest {
	h := sha256.New()
	h.Write([]byte(movedPrefix))
	for name, wrapped := range keys {
		for _, part := range [][]byte{[]byte(name), wrapped} {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
			h.Write(part)
		}
	}
	return Digest(h.Sum(nil))
}

// Kind is custody.moved v1.
func (*CustodyMoved) Kind() Kind { return Kind{"custody.moved", 1} }

// KEKs is how many key-encryption keys there are.
func (s *State) KEKs() int {
	newest, ok := s.CurrentKey(KeyKEK) // the newest one: only keys for tokens are published ahead
	if !ok {
		return 0
	}
	_, n, err := ParseKeyName(newest.Name)
	if err != nil {
		return 0
	}
	return int(n)
}

func (e *CustodyMoved) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	from, to := e.From.String(), e.To.String()
	switch {
	case !ValidRootHolder(from), !ValidRootHolder(to):
		return fmt.Errorf("it does not name two root holders")
	case from == to:
		return fmt.Errorf("it moves the keys from %s to the same", from)
	case s.Custody.Moved != 0 && from != s.Custody.Holder:
		return fmt.Errorf("it moves the keys from %s, and they are under %s", from, s.Custody.Holder)
	case e.To.DevelopmentOnly && s.Env.Class == string(policy.Production):
		return fmt.Errorf("%s is for the development class only", to)
	case e.Keys != s.KEKs():
		return fmt.Errorf("it moves %d keys of %d", e.Keys, s.KEKs())
	case e.Digest.IsZero():
		return fmt.Errorf("it has no digest of what was moved")
	}
	if err := s.carryOut(e.Change, policy.ActMoveCustody, to, m); err != nil {
		return err
	}
	s.Custody = Custody{Moved: m.Index, Holder: to, Keys: e.Keys, Digest: e.Digest}
	s.voidMoves()
	return nil
}

// voidMoves ends all other changes about the root key's custody. They were approved about where the keys were then: one that is left, and
// waits, would let one person bring them back to where the others have just taken them from.
func (s *State) voidMoves() {
	var open []*Change
	s.Changes.All(func(_ uint64, c *Change) bool {
		if c.Action == policy.ActMoveCustody && c.Open() {
			open = append(open, c)
		}
		return true
	})
	for _, c := range open {
		s.setChange(c, Superseded)
	}
}
