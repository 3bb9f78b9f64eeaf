package state

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// SecretExported says that the current versions of all secrets of a pattern left at once, in one file that is sealed to a recipient, by an
// approved change: to its proposer, once. No lease comes of it.
type SecretExported struct {
	Change    uint64            `json:"change"`
	Secrets   string            `json:"secrets"`   // the pattern
	Recipient string            `json:"recipient"` // of age, X25519: age1…
	Count     int               `json:"count"`     // of versions
	Versions  []ExportedVersion `json:"versions"`  // in the order of their paths: all, or the first, as many as fit (ExportNamed)
	List      Digest            `json:"list"`      // of all of them: ExportList
	File      Digest            `json:"file"`      // SHA-256 of the sealed file
	Bytes     int               `json:"bytes"`     // of the sealed file
	Actor     Actor             `json:"actor"`
	Ruling    Ruling            `json:"ruling"`
}

// ExportedVersion is a version that left. Digest is that of its ciphertext, as when it was written.
type ExportedVersion struct {
	Secret  string `json:"secret"`
	Version uint64 `json:"version"`
	Digest  Digest `json:"digest"`
}

// Kind is secret.exported v1.
func (*SecretExported) Kind() Kind { return Kind{"secret.exported", 1} }

const (
	// MaxExported is how many secrets one export has at most.
	MaxExported = 1000
	// ExportWithin is for how long an export can be fetched, once it is approved and has waited.
	ExportWithin = 24 * time.Hour

	// maxNamed is how many bytes of an entry name versions. With all else in it an entry stays below MaxBody.
	maxNamed = 24 << 10
	// perNamed is what a version takes in an entry beside its path, at the most.
	perNamed = 144
)

// ExportTarget is what a change names that exports secrets: which, and to whom they are sealed.
func ExportTarget(secrets, recipient string) string { return secrets + "@" + recipient }

// ParseExportTarget undoes ExportTarget. Of the recipient it checks the form only.
func ParseExportTarget(target string) (secrets identity.Pattern, recipient string, ok bool) {
	pattern, recipient, _ := strings.Cut(target, "@")
	secrets, err := identity.ParseSecretPattern(pattern)
	return secrets, recipient, err == nil && len(pattern) <= identity.MaxSecretPath+2 && recipientForm(recipient)
}

// recipientForm reports whether a text can be an X25519 recipient of age (https://age-encryption.org/v1): Bech32 in lower case, of 32 bytes.
func recipientForm(s string) bool {
	const prefix, length = "age1", 62
	return len(s) == length && strings.HasPrefix(s, prefix) &&
		!strings.ContainsFunc(s[len(prefix):], func(c rune) bool { return !strings.ContainsRune("qpzry9x8gf2tvdw0s3jn54khce6mua7l", c) })
}

// Exportable lists the current versions of the secrets of a pattern, in the order of their paths; of more than MaxExported only so many and one.
func (s *State) Exportable(secrets identity.Pattern, now Millis) (out []ExportedVersion, versions []*Version) {
	from, subtree := secrets.Prefix()
	if subtree && from != "" {
		from += "/"
	}
	if exact, ok := secrets.Exact(); ok {
		from = exact
	}
	s.Secrets.From(from, func(path string, sec *Secret) bool {
		if !secrets.Match(path) {
			return false // they stand together
		}
		if v := sec.Find(sec.Current); v != nil && v.StateAt(now) == Current {
			out, versions = append(out, ExportedVersion{path, v.Number, v.Digest}), append(versions, v)
		}
		return len(out) <= MaxExported
	})
	return out, versions
}

// ExportList is the digest of a list of versions: SHA-256 over a line for each, with path, number and digest between blanks.
func ExportList(all []ExportedVersion) Digest {
	h := sha256.New()
	for _, v := range all {
		h.Write([]byte(v.Secret + " " + strconv.FormatUint(v.Version, 10) + " " + v.Digest.String() + "\n"))
	}
	return Digest(h.Sum(nil))
}

// ExportNamed is as many of the versions as an entry names.
func ExportNamed(all []ExportedVersion) []ExportedVersion {
	bytes := 0
	for i, v := range all {
		if bytes += len(v.Secret) + perNamed; bytes > maxNamed {
			return all[:i]
		}
	}
	return all
}

func (e *SecretExported) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	target := ExportTarget(e.Secrets, e.Recipient)
	secrets, _, ok := ParseExportTarget(target)
	if c, known := s.Changes.Get(e.Change); !ok || !known || c.Action != policy.ActExport || c.Proposer != e.Actor.Identity {
		return fmt.Errorf("change %d exports nothing to %s", e.Change, e.Actor.Identity)
	}
	all, _ := s.Exportable(secrets, m.Time)
	switch {
	case len(all) == 0 || len(all) > MaxExported || e.Bytes <= 0:
		return fmt.Errorf("it exports %d versions in %d bytes", len(all), e.Bytes)
	case e.Count != len(all) || e.List != ExportList(all) || !slices.Equal(e.Versions, ExportNamed(all)):
		return fmt.Errorf("the current versions of %s are not the %d that it names", e.Secrets, e.Count)
	}
	return s.carryOut(e.Change, policy.ActExport, target, m)
}
