package invariant

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/state"
)

func (c *Checker) confined(st *step, fail failure) {
	c.confinedSPIFFE(st, fail)
	for _, path := range paths(st) {
		if err := identity.ValidPath(path); err != nil {
			fail("%q is not an identity of this environment: %v", path, err)
		}
	}
	switch e := st.event.(type) {
	case *state.Genesis:
		if d := state.Digest(sha256.Sum256([]byte(e.Document))); !c.opts.Genesis.IsZero() && d != c.opts.Genesis {
			fail("it is %s, and %s is pinned", d, c.opts.Genesis)
		}
		if err := identity.ValidEnv(e.Name); err != nil {
			fail("%v", err)
		}
		confinedGenesis(e, fail)
	case *state.KeyAdded:
		confinedKey(e.Key, fail)
	case *state.SessionOpened:
		if !serialNames(e.Serial, st.index) {
			fail("the serial number %.40q is not of this epoch and entry", e.Serial)
		}
	case *state.ChangeProposed:
		c.confinedText(e.Text, fail)
	case *state.ChangeApproved:
		c.confinedText(e.Text, fail)
	case *state.AccessReviewed:
		c.confinedText(e.Text, fail)
	case *state.GlassReviewed:
		c.confinedText(e.Text, fail)
	case *state.RecoveryStarted:
		c.confinedText(e.Text, fail)
	case *state.RecoveryWithdrawn:
		c.confinedText(e.Text, fail)
	}
}

// confinedGenesis compares entry 0 with the document that was signed: name, class, bundle, and the first key of each kind. A key
// that is not in the document is nobody's.
func confinedGenesis(e *state.Genesis, fail failure) {
	var doc struct {
		Name, Class, Manifest string
		CA, Checkpoint        []byte
	}
	if err := json.Unmarshal([]byte(e.Document), &doc); err != nil {
		fail("its document can't be read: %v", err)
		return
	}
	if doc.Name != e.Name || doc.Class != e.Class || doc.Manifest != e.Manifest.String() {
		fail("its document is about another environment or bundle than %s", e.Name)
	}
	seen := map[string]bool{}
	for _, k := range e.Keys {
		public, cert := []byte(nil), []byte(nil)
		switch k.Name {
		case "ca/1":
			cert = doc.CA
		case "checkpoint/1":
			public = doc.Checkpoint
		case "kek/1":
		default:
			fail("its document has no key %.80q", k.Name)
		}
		if seen[k.Name] || !bytes.Equal(k.Public, public) || !bytes.Equal(k.Cert, cert) || len(k.Cross) > 0 {
			fail("the key %.80q is not that of its document", k.Name)
		}
		seen[k.Name] = true
	}
	if len(doc.CA) == 0 || len(doc.Checkpoint) != 32 || len(seen) != 3 {
		fail("an environment begins with a CA, a checkpoint key and a key-encryption key")
	}
}

// confinedKey checks that a later key has what its kind has: a certificate, a public key or nothing, and the word of the key before.
func confinedKey(k state.KeyFacts, fail failure) {
	kind, _, _ := keyNumber(k.Name)
	has := [3]int{len(k.Public), min(len(k.Cert), 1), len(k.Cross)}
	switch {
	case kind == "ca" && has == [3]int{0, 1, max(has[2], 1)}:
	case kind == "checkpoint" && has == [3]int{32, 0, 64}:
	case kind == "kek" && has == [3]int{}:
	default:
		fail("%.80q is not a key of this environment", k.Name)
	}
}

// paths are the identities that an entry names.
func paths(st *step) []string {
	var out []string
	add := func(s string) {
		if s != "" {
			out = append(out, s)
		}
	}
	if st.actor != nil {
		out = append(out, st.actor.Identity)
		add(st.actor.Node)
	}
	if e, ok := st.event.(*state.SessionOpened); ok {
		out = append(out, e.Identity)
		add(e.Node)
	}
	return out
}

// confinedText checks that a signed text names this environment. Its second to fourth lines do.
func (c *Checker) confinedText(text string, fail failure) {
	want := []string{"environment " + c.m.name, "genesis " + hex.EncodeToString(c.m.genesis[:]), "epoch 0"}
	if lines := strings.SplitN(text, "\n", 5); len(lines) < 5 || !slices.Equal(lines[1:4], want) {
		fail("what was signed is not about this environment")
	}
}

// serialNames reads a certificate's serial number: a version byte, the epoch in two, the index in eight, and eight
// random ones.
func serialNames(serial string, index uint64) bool {
	b, err := hex.DecodeString(serial)
	if err != nil || len(b) != 19 || b[0] != 1 || b[1] != 0 || b[2] != 0 {
		return false
	}
	var n uint64
	for _, x := range b[3:11] {
		n = n<<8 | uint64(x)
	}
	return n == index
}
