package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
)

// Kinds of the environment's keys whose public side is in the ledger. There are no others.
const (
	KeyCA         = "ca"         // signs certificates
	KeyCheckpoint = "checkpoint" // signs checkpoints
	KeyKEK        = "kek"        // wraps data keys; nothing of it is public
	KeyJWT        = "jwt"        // signs JWT-SVIDs
)

// KeyName is the name of a key: KIND/NUMBER.
func KeyName(kind string, number uint32) string {
	return kind + "/" + strconv.FormatUint(uint64(number), 10)
}

// ParseKeyName undoes KeyName, and takes nothing else: the kind is letters a-z, the number from 1 on, in decimal without
// leading zeros. So no two names are the same key.
func ParseKeyName(name string) (kind string, number uint32, err error) {
	kind, digits, _ := strings.Cut(name, "/")
	n, err := strconv.ParseUint(digits, 10, 32)
	letters := strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz") == "" && kind != ""
	if err != nil || n == 0 || !letters || KeyName(kind, uint32(n)) != name {
		return "", 0, problem.New(problem.ReasonTampered, "key %.80q is not KIND/NUMBER", name)
	}
	return kind, uint32(n), nil
}

// checkKey checks that a key has a name that may be, and as much of a public side as its kind has. The first of a kind stands in
// genesis, where founders vouch for it; each later one is vouched for by the key before it.
func checkKey(name string, public, cert, cross []byte) (kind string, number uint32, err error) {
	kind, number, err = ParseKeyName(name)
	if err != nil {
		return "", 0, err
	}
	whole := false
	switch kind {
	case KeyCA:
		whole = len(public) == 0 && len(cert) > 0 && (len(cross) > 0) == (number > 1)
	case KeyCheckpoint:
		vouched := len(cross) == 0
		if number > 1 {
			vouched = len(cross) == ed25519.SignatureSize
		}
		whole = len(public) == ed25519.PublicKeySize && len(cert) == 0 && vouched
	case KeyKEK:
		whole = len(public) == 0 && len(cert) == 0 && len(cross) == 0
	case KeyJWT: // its private half under our own key-encryption key is what tells it from a stranger's
		_, err := spiffe.ParseTokenKey(public)
		whole = err == nil && len(cert) == 0 && len(cross) == 0
	default:
		return "", 0, fmt.Errorf("there are no keys of the kind %.80q", kind)
	}
	if !whole {
		return "", 0, fmt.Errorf("the key %s does not have what a key of its kind and number has", name)
	}
	return kind, number, nil
}

// checkGenesis compares what entry 0 repeats with the document, which is what was hashed and signed. An environment begins with
// exactly one key of each kind.
func (e *Genesis) checkGenesis() error {
	doc, err := ceremony.ParseGenesis(e.Document, sha256.Sum256([]byte(e.Document)))
	if err != nil {
		return err
	}
	if doc.Name != e.Name || doc.Class != e.Class || doc.Manifest != e.Manifest.String() {
		return fmt.Errorf("its fields are not those of its document")
	}
	first := []KeyFacts{
		{Name: KeyName(KeyCA, 1), Cert: doc.CA}, {Name: KeyName(KeyCheckpoint, 1), Public: doc.Checkpoint}, {Name: KeyName(KeyKEK, 1)},
	}
	if len(e.Keys) != len(first) {
		return fmt.Errorf("it has %d keys, and an environment begins with %d", len(e.Keys), len(first))
	}
	for i, want := range first {
		k := e.Keys[i]
		if k.Name != want.Name || !bytes.Equal(k.Public, want.Public) || !bytes.Equal(k.Cert, want.Cert) || len(k.Cross) != 0 {
			return fmt.Errorf("its key %.80q is not the document's %s", k.Name, want.Name)
		}
		if _, _, err := checkKey(k.Name, k.Public, k.Cert, k.Cross); err != nil {
			return err
		}
	}
	return nil
}

// checkNext checks that a key is the next one of its kind.
func (s *State) checkNext(k *KeyFacts) error {
	kind, number, err := checkKey(k.Name, k.Public, k.Cert, k.Cross)
	if err != nil {
		return err
	}
	if kind == KeyJWT {
		return fmt.Errorf("key %s comes by another entry", k.Name)
	}
	before, ok := s.CurrentKey(kind)
	if !ok {
		return fmt.Errorf("there is no key before %s", k.Name)
	}
	_, last, err := ParseKeyName(before.Name)
	if err != nil {
		return err
	}
	if number != last+1 {
		return fmt.Errorf("key %s does not follow %s", k.Name, before.Name)
	}
	return nil
}

// addKey enters a key that was checked. The one before it is no longer current.
func (s *State) addKey(k *KeyFacts, m Meta) {
	kind, _, _ := strings.Cut(k.Name, "/")
	if before, ok := s.CurrentKey(kind); ok {
		retired := *before
		retired.Current = false
		s.Keys.set(retired.Name, &retired)
	}
	s.Keys.set(k.Name, &PublicKey{Name: k.Name, Public: k.Public, Cert: k.Cert, Cross: k.Cross, Current: true, Created: m.Index})
}

// CurrentKey is the current key of a kind. Of jwt, of which the newest is published ahead of its use, it is the one before that.
func (s *State) CurrentKey(kind string) (*PublicKey, bool) {
	var found *PublicKey
	s.Keys.From(kind+"/", func(name string, k *PublicKey) bool {
		if !strings.HasPrefix(name, kind+"/") {
			return false
		}
		if k.Current {
			found = k
		}
		return found == nil
	})
	return found, found != nil
}

// checkKeys refuses keys that no entries give: after genesis each kind has numbers from 1 on, of which the last is current.
func (s *State) checkKeys() error {
	count, highest, current := map[string]uint32{}, map[string]uint32{}, map[string]uint32{}
	var err error
	s.Keys.All(func(name string, k *PublicKey) bool {
		var kind string
		var number uint32
		if kind, number, err = checkKey(name, k.Public, k.Cert, k.Cross); err != nil {
			return false
		}
		if k.Name != name {
			err = fmt.Errorf("the key %s stands under the name %s", k.Name, name)
			return false
		}
		count[kind]++
		highest[kind] = max(highest[kind], number)
		if k.Current && current[kind] != 0 {
			err = fmt.Errorf("there are two current keys of the kind %s", kind)
		} else if k.Current {
			current[kind] = number
		}
		return err == nil
	})
	if err != nil || s.Next == 0 {
		return err
	}
	for _, kind := range []string{KeyCA, KeyCheckpoint, KeyKEK} {
		if n := count[kind]; n == 0 || highest[kind] != n || current[kind] != n {
			return fmt.Errorf("the keys of the kind %s are not a sequence", kind)
		}
	}
	if n := count[KeyJWT]; highest[KeyJWT] != n || (n > 0 && current[KeyJWT] != max(n-1, 1)) {
		return fmt.Errorf("the keys of the kind %s are not a sequence", KeyJWT)
	}
	return nil
}
