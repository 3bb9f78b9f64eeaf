package identity

import (
	"fmt"
	"strings"
)

// Assurance grades how much an attestation proves (RFC 9334 leaves the scale to the verifier's
// owner; this one is ours). The zero value is the weakest.
type Assurance uint8

// The grades, in ascending order.
const (
	Unbound  Assurance = iota // a bearer token, bound to no key
	Token                     // a single-use token, then possession of the key it admitted
	Key                       // possession of a key that somebody else vouches for
	Platform                  // the platform underneath vouches (a cloud, a CI provider, a kernel)
	Hardware                  // a key that provably can't leave its hardware
	Measured                  // hardware, and what was booted or run is among known good values
)

var assuranceNames = [...]string{"unbound", "token", "key", "platform", "hardware", "measured"}

// ParseAssurance reads a grade's name.
func ParseAssurance(s string) (Assurance, error) {
	for i, name := range assuranceNames {
		if s == name {
			return Assurance(i), nil
		}
	}
	return 0, fmt.Errorf("assurance %q is none of %s", s, strings.Join(assuranceNames[:], ", "))
}

// AtLeast reports whether a is as good as want, or better.
func (a Assurance) AtLeast(want Assurance) bool { return a >= want }

// String is the grade's name.
func (a Assurance) String() string {
	if int(a) < len(assuranceNames) {
		return assuranceNames[a]
	}
	return fmt.Sprintf("assurance(%d)", uint8(a))
}

// MarshalText prints the name, and fails for a value outside the scale.
func (a Assurance) MarshalText() ([]byte, error) {
	if int(a) >= len(assuranceNames) {
		return nil, fmt.Errorf("no such assurance: %d", uint8(a))
	}
	return []byte(a.String()), nil
}

// UnmarshalText is ParseAssurance.
func (a *Assurance) UnmarshalText(b []byte) error {
	parsed, err := ParseAssurance(string(b))
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}

// Assurances lists the grades in ascending order.
func Assurances() []Assurance {
	out := make([]Assurance, len(assuranceNames))
	for i := range out {
		out[i] = Assurance(i)
	}
	return out
}
