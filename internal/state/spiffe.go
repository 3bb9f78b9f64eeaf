package state

import (
	"fmt"
	"slices"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/spiffe"
)

// protocolSPIFFE is the protocol version that the entries of this file belong to.
const protocolSPIFFE = 2

// needs refuses an entry before the protocol that knows it was raised: an older server would stop at it.
func (s *State) needs(protocol int) error {
	if s.Protocol < protocol {
		return fmt.Errorf("protocol %d was not raised", protocol)
	}
	return nil
}

// JWTKeyAdded adds a key of JWT-SVIDs. It is published from here on, and signs when the next one was added: see
// State.CurrentKey. Without an actor the environment did it, because there was none, or the newest was due.
type JWTKeyAdded struct {
	Key    KeyFacts `json:"key"`
	Actor  *Actor   `json:"actor,omitempty"`
	Ruling Ruling   `json:"ruling"`
}

// KeyWithdrawn takes a CA or a key of JWT-SVIDs, and those of its kind before it, out of what others are told to trust.
type KeyWithdrawn struct {
	Key         string `json:"key"`
	Compromised bool   `json:"compromised,omitempty"` // withdrawn although what it signed may still be valid
	Reason      string `json:"reason"`
	Actor       Actor  `json:"actor"`
	Ruling      Ruling `json:"ruling"`
}

// JWTIssued says that a JWT-SVID was issued. The token is signed after it, is not in it, and names it: its jti is
// EPOCH.INDEX.
type JWTIssued struct {
	Subject  string   `json:"subject"` // path of the identity
	Audience []string `json:"audience"`
	Issuer   string   `json:"issuer,omitempty"`
	Key      string   `json:"key"` // jwt/N
	Expires  Millis   `json:"expires"`
	Root     uint64   `json:"root"` // what the session derives from
	Actor    Actor    `json:"actor"`
	Ruling   Ruling   `json:"ruling"`
}

// FederationRefreshed says that another trust domain's bundle was fetched, and differs from the one before. The
// document is a blob. It holds for the relation as it was approved (Pin).
type FederationRefreshed struct {
	Name        string `json:"name"`
	TrustDomain string `json:"trust_domain"`
	Pin         Digest `json:"pin"` // of the relation's parameters and pinned bundle
	Document    Digest `json:"document"`
	Sequence    uint64 `json:"sequence,omitempty"`
	Sequenced   bool   `json:"sequenced,omitempty"` // the document has a sequence number
	Ruling      Ruling `json:"ruling"`
}

// The kinds of the events.
func (*JWTKeyAdded) Kind() Kind         { return Kind{"jwt.key_added", 1} }
func (*KeyWithdrawn) Kind() Kind        { return Kind{"key.withdrawn", 1} }
func (*JWTIssued) Kind() Kind           { return Kind{"jwt.issued", 1} }
func (*FederationRefreshed) Kind() Kind { return Kind{"federation.refreshed", 1} }

// Federated is the newest bundle of another trust domain, by the relation's name.
type Federated struct {
	Name        string `json:"name"`
	TrustDomain string `json:"trust_domain"`
	Pin         Digest `json:"pin"`
	Document    Digest `json:"document"`
	Sequence    uint64 `json:"sequence,omitempty"`
	Sequenced   bool   `json:"sequenced,omitempty"`
	Index       uint64 `json:"index"` // of the entry
	Fetched     Millis `json:"fetched"`
}

func (e *JWTKeyAdded) apply(s *State, m Meta) error {
	if err := s.needs(protocolSPIFFE); err != nil {
		return err
	}
	kind, number, err := checkKey(e.Key.Name, e.Key.Public, e.Key.Cert, e.Key.Cross)
	switch {
	case err != nil:
		return err
	case kind != KeyJWT:
		return fmt.Errorf("%s is not a key of tokens", e.Key.Name)
	case number != s.keyCount(KeyJWT)+1:
		return fmt.Errorf("key %s does not follow number %d", e.Key.Name, s.keyCount(KeyJWT))
	}
	s.Keys.set(e.Key.Name, &PublicKey{Name: e.Key.Name, Public: e.Key.Public, Created: m.Index, Since: m.Time, Current: number == 1})
	// The one that signs is the one before the newest, which was published for as long as there was none after it.
	if number > 2 {
		s.setCurrent(KeyName(KeyJWT, number-2), false)
		s.setCurrent(KeyName(KeyJWT, number-1), true)
	}
	s.Control = m.Index
	return nil
}

func (s *State) setCurrent(name string, current bool) {
	if k, ok := s.Keys.Get(name); ok {
		n := *k
		n.Current = current
		s.Keys.set(name, &n)
	}
}

// keyCount is how many keys of a kind there are, which is the number of the newest.
func (s *State) keyCount(kind string) uint32 {
	n := uint32(0)
	for s.Keys.Has(KeyName(kind, n+1)) {
		n++
	}
	return n
}

// NewestKey is the key of a kind that was added last.
func (s *State) NewestKey(kind string) (*PublicKey, bool) {
	return s.Keys.Get(KeyName(kind, s.keyCount(kind)))
}

func (e *KeyWithdrawn) apply(s *State, m Meta) error {
	if err := s.needs(protocolSPIFFE); err != nil {
		return err
	}
	kind, number, err := ParseKeyName(e.Key)
	if err != nil {
		return err
	}
	if kind != KeyCA && kind != KeyJWT {
		return fmt.Errorf("keys of the kind %s are not told to others", kind)
	}
	k, ok := s.Keys.Get(e.Key)
	if !ok || k.Withdrawn != 0 {
		return fmt.Errorf("there is no key %s to withdraw", e.Key)
	}
	current, ok := s.CurrentKey(kind)
	if !ok {
		return fmt.Errorf("there is no current key of the kind %s", kind)
	}
	if _, now, _ := ParseKeyName(current.Name); number >= now {
		return fmt.Errorf("key %s is not one before the current %s", e.Key, current.Name)
	}
	// What a CA signed stays good as long as one that vouches for it is trusted, so those before it go with it.
	for ; number > 0; number-- {
		k, ok := s.Keys.Get(KeyName(kind, number))
		if !ok || k.Withdrawn != 0 {
			break
		}
		n := *k
		n.Withdrawn = m.Index
		s.Keys.set(n.Name, &n)
	}
	s.Control = m.Index
	return nil
}

func (e *JWTIssued) apply(s *State, m Meta) error {
	if err := s.needs(protocolSPIFFE); err != nil {
		return err
	}
	k, ok := s.CurrentKey(KeyJWT)
	switch {
	case !ok || k.Name != e.Key:
		return fmt.Errorf("%.80q is not the key that signs tokens", e.Key)
	case len(e.Audience) == 0 || len(e.Audience) > spiffe.MaxAudiences:
		return fmt.Errorf("a token for %d audiences", len(e.Audience))
	case e.Expires <= m.Time:
		return fmt.Errorf("a token that is over")
	}
	return nil
}

func (e *FederationRefreshed) apply(s *State, m Meta) error {
	if err := s.needs(protocolSPIFFE); err != nil {
		return err
	}
	if err := identity.ValidEnv(e.TrustDomain); err != nil || e.TrustDomain == s.Env.Name || e.Name == "" {
		return fmt.Errorf("it is not about another trust domain")
	}
	if old, ok := s.Federations.Get(e.Name); ok && old.Pin == e.Pin && old.TrustDomain == e.TrustDomain {
		if old.Document == e.Document {
			return fmt.Errorf("the bundle of %s is the one that was there", e.Name)
		}
		if old.Sequenced && (!e.Sequenced || e.Sequence <= old.Sequence) {
			return fmt.Errorf("the bundle of %s goes back from sequence number %d", e.Name, old.Sequence)
		}
	}
	s.Federations.set(e.Name, &Federated{
		Name: e.Name, TrustDomain: e.TrustDomain, Pin: e.Pin, Document: e.Document, Sequence: e.Sequence, Sequenced: e.Sequenced,
		Index: m.Index, Fetched: m.Time,
	})
	s.Control = m.Index
	return nil
}

// TokensTold is how many keys of JWT-SVIDs are published at most: the next one, the one that signs, and two before it. So two
// rotations in a row leave no token without its key.
const TokensTold = 4

// Told lists the keys of a kind that others are told to trust, the oldest first.
func (s *State) Told(kind string) []*PublicKey {
	var out []*PublicKey
	for n := s.keyCount(kind); n > 0 && (kind != KeyJWT || len(out) < TokensTold); n-- {
		k, ok := s.Keys.Get(KeyName(kind, n))
		if !ok || k.Withdrawn != 0 {
			break // those before are withdrawn as well
		}
		out = append(out, k)
	}
	slices.Reverse(out)
	return out
}

// KeysChanged is the index of the newest entry that changed what others are told to trust.
func (s *State) KeysChanged() uint64 {
	newest := uint64(0)
	s.Keys.All(func(_ string, k *PublicKey) bool {
		if kind, _, err := ParseKeyName(k.Name); err == nil && (kind == KeyCA || kind == KeyJWT) {
			newest = max(newest, k.Created, k.Withdrawn)
		}
		return true
	})
	return newest
}
