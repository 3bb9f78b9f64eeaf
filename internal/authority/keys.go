package authority

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/go-jose/go-jose/v4"
)

// Limits of a JSON Web Key Set.
const (
	MaxKeySet = 512 << 10 // bytes
	MaxKeys   = 64
)

// ParseKeys reads a JSON Web Key Set (RFC 7517), as an issuer publishes it or a bundle pins it: public keys that are strong enough, each
// with an ID of its own. Keys that can't sign tokens (use is not "sig", or an algorithm that is not known) are left out, as issuers
// publish them beside; a private or symmetric key is an error.
func ParseKeys(text []byte) (*jose.JSONWebKeySet, error) {
	if len(text) > MaxKeySet {
		return nil, fmt.Errorf("the key set has more than %d bytes", MaxKeySet)
	}
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&raw); err != nil {
		return nil, errors.New("it is not a JSON Web Key Set")
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the key set")
	}
	if len(raw.Keys) > MaxKeys {
		return nil, fmt.Errorf("the key set has more than %d keys", MaxKeys)
	}
	out := &jose.JSONWebKeySet{}
	ids := map[string]bool{}
	for i, text := range raw.Keys {
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(text); err != nil {
			continue // of a type that is not known here: it signs nothing that is accepted
		}
		if !key.IsPublic() {
			return nil, fmt.Errorf("key %d is not a public key: it does not belong here, and must be replaced now that it has been shown", i+1)
		}
		if key.Use != "" && key.Use != "sig" || Weakness(key.Key) != "" {
			continue
		}
		if ids[key.KeyID] {
			return nil, fmt.Errorf("two keys have the ID of key %d", i+1)
		}
		ids[key.KeyID] = true
		out.Keys = append(out.Keys, key)
	}
	if len(out.Keys) == 0 {
		return nil, errors.New("there is no key that can sign tokens")
	}
	return out, nil
}
