// Package ceremony holds the texts that persons sign: logins, changes and approvals, and the genesis document. The signer's
// own command line computes them from what it knows, the server computes them again from what it
// knows, and both must come to the same bytes.
//
// Guaranteed: two different meanings never give one text; a text of one environment, epoch, role or
// action is nothing in another. It is pure and imports the standard library and identity only.
package ceremony

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// SSHSIG namespaces (DESIGN §16).
const (
	NamespaceBundle = "bundle@bailment"
	NamespaceChange = "change@bailment"
	NamespaceLogin  = "login@bailment"
)

// Scope is what every text names first.
type Scope struct {
	Environment string
	Genesis     [32]byte
	Epoch       uint64
}

func (s Scope) lines(b *strings.Builder, title string) {
	b.WriteString(title + "\n")
	b.WriteString("environment " + s.Environment + "\n")
	b.WriteString("genesis " + hex.EncodeToString(s.Genesis[:]) + "\n")
	b.WriteString("epoch " + strconv.FormatUint(s.Epoch, 10) + "\n")
}

// Login is what an operator signs to log in, in namespace login@bailment.
type Login struct {
	Scope
	Person     string
	SessionKey [32]byte // thumbprint of the session key that the login is bound to
	Challenge  []byte
}

// Text is the text to sign.
func (l Login) Text() string {
	var b strings.Builder
	l.lines(&b, "bailment login v1")
	b.WriteString("person " + l.Person + "\n")
	b.WriteString("session-key sha256:" + hex.EncodeToString(l.SessionKey[:]) + "\n")
	b.WriteString("challenge " + hex.EncodeToString(l.Challenge) + "\n")
	return b.String()
}

// Role of a person in a change.
type Role string

// The roles.
const (
	Proposer Role = "propose"
	Approver Role = "approve"
)

// Change is what proposers and approvers sign, in namespace change@bailment.
type Change struct {
	Scope
	// Version of the text. Those of version 1 have no Rollout, Rollback and Containment. 0 is the newest, 2.
	Version     int
	Action      string
	Base        string   // digest of the manifest in force
	New         string   // digest of the proposed manifest; empty for other acts
	Target      string   // what else is acted on: a hold, as SCOPE#ENTRY; empty for a bundle
	Rollout     string   // by which rollout of the bundle in force a new one comes into force; empty: at once
	Rollback    string   // digest of the manifest that the change may be rolled back to; empty: to none
	Containment []string // files of the bundle that no rollback undoes, in ascending order
	Role        Role
	Person      string
	Number      uint64 // of the change; 0 for a proposal, which has none yet
	Nonce       string // 32 hex digits
	Expires     time.Time
	Reason      string
}

// changeTitle is the first line of a version of the text. Who has a version from elsewhere may ask for one that there is not: its text is
// none that ParseChange reads.
func changeTitle(version int) string { return "bailment change v" + strconv.Itoa(version) }

// newestChange is the version of the texts that are signed now.
const newestChange = 2

// Text is the text to sign.
func (c Change) Text() string {
	var b strings.Builder
	version := c.Version
	if version == 0 {
		version = newestChange
	}
	c.lines(&b, changeTitle(version))
	line := func(name, value string) {
		if value == "" {
			value = "-"
		}
		b.WriteString(name + " " + value + "\n")
	}
	line("action", c.Action)
	line("base", c.Base)
	line("new", c.New)
	line("target", c.Target)
	if version > 1 {
		line("rollout", c.Rollout)
		line("rollback", c.Rollback)
		files := make([]string, len(c.Containment))
		for i, path := range c.Containment {
			files[i] = strconv.QuoteToASCII(path)
		}
		line("containment", strings.Join(files, " "))
	}
	line("role", string(c.Role))
	line("person", c.Person)
	number := ""
	if c.Number != 0 {
		number = strconv.FormatUint(c.Number, 10)
	}
	line("change", number)
	line("nonce", c.Nonce)
	line("expires", c.Expires.UTC().Format(time.RFC3339))
	reason := ""
	if c.Reason != "" {
		reason = strconv.QuoteToASCII(c.Reason)
	}
	line("reason", reason)
	return b.String()
}

// maxText is the most bytes a signed text may have.
const maxText = 8 << 10

// ParseChange reads a text back. It accepts exactly what Text writes, in each version.
func ParseChange(text string) (Change, error) {
	var c Change
	bad := fmt.Errorf("not a change text of this version")
	if len(text) > maxText || !strings.HasSuffix(text, "\n") {
		return c, bad
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	switch lines[0] {
	case changeTitle(1):
		c.Version = 1
	case changeTitle(newestChange):
		c.Version = newestChange
	default:
		if n, err := strconv.Atoi(strings.TrimPrefix(lines[0], "bailment change v")); err == nil && n > newestChange && lines[0] == changeTitle(n) {
			return c, problem.New(problem.ReasonUnknownVersion, "the text is of version v%d, and this release knows those up to v%d", n, newestChange)
		}
		return c, bad
	}
	names := []string{"environment", "genesis", "epoch", "action", "base", "new", "target", "rollout", "rollback", "containment", "role", "person", "change", "nonce", "expires", "reason"}
	if c.Version == 1 {
		names = slices.Delete(names, 7, 10)
	}
	if len(lines) != len(names)+1 {
		return c, bad
	}
	v := make(map[string]string, len(names))
	for i, name := range names {
		got, value, ok := strings.Cut(lines[i+1], " ")
		if !ok || got != name || value == "" {
			return c, bad
		}
		if value == "-" {
			value = ""
		}
		v[name] = value
	}
	if err := c.read(v); err != nil || c.Text() != text {
		return c, bad
	}
	return c, nil
}

func (c *Change) read(v map[string]string) error {
	g, err := hex.DecodeString(v["genesis"])
	if err != nil || len(g) != len(c.Genesis) {
		return fmt.Errorf("the genesis is not 64 hexadecimal digits")
	}
	copy(c.Genesis[:], g)
	c.Environment, c.Action, c.Base, c.New, c.Target = v["environment"], v["action"], v["base"], v["new"], v["target"]
	c.Rollout, c.Rollback = v["rollout"], v["rollback"]
	c.Role, c.Person, c.Nonce = Role(v["role"]), v["person"], v["nonce"]
	if c.Epoch, err = strconv.ParseUint(v["epoch"], 10, 64); err != nil {
		return err
	}
	if v["change"] != "" {
		if c.Number, err = strconv.ParseUint(v["change"], 10, 64); err != nil {
			return err
		}
	}
	if c.Expires, err = time.Parse(time.RFC3339, v["expires"]); err != nil {
		return err
	}
	if v["reason"] != "" {
		if c.Reason, err = strconv.Unquote(v["reason"]); err != nil {
			return err
		}
	}
	for rest := v["containment"]; rest != ""; {
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return err
		}
		path, err := strconv.Unquote(quoted)
		if err != nil {
			return err
		}
		c.Containment = append(c.Containment, path)
		rest = strings.TrimPrefix(rest[len(quoted):], " ")
	}
	return nil
}

// Genesis is the founding document. Its SHA-256 over the exact text is what the environment is.
type Genesis struct {
	Format      string    `json:"format"` // bailment genesis v1
	Name        string    `json:"name"`
	Class       string    `json:"class"`
	Created     time.Time `json:"created"`
	Manifest    string    `json:"manifest"` // digest of the founding bundle's manifest
	Operators   []Founder `json:"operators"`
	Quorum      int       `json:"quorum"`       // approvals that a change needs besides its proposer
	CA          []byte    `json:"ca"`           // DER of the genesis CA's certificate
	Checkpoint  []byte    `json:"checkpoint"`   // Ed25519 public key of the genesis checkpoint key
	RootHolder  string    `json:"root_holder"`  // descriptor of the root holder
	LeafHash    string    `json:"leaf_hash"`    // how entries are committed to
	EntryFormat string    `json:"entry_format"` // encoding of entries
	Nonce       string    `json:"nonce"`        // random, so that no two environments are the same
}

// Founder is an operator as genesis lists him.
type Founder struct {
	Name string   `json:"name"`
	Keys []string `json:"keys"` // SSH fingerprints
}

// Formats that genesis fixes.
const (
	GenesisFormat = "bailment genesis v1"
	LeafHashV1    = "sha256(\"bailment/leaf/v1\\n\" || salt || body)"
	EntryFormatV1 = "json v1"
)

// Text is the document as it is hashed and signed: indented JSON and a newline.
func (g Genesis) Text() (string, error) {
	b, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return "", fmt.Errorf("writing the genesis document: %w", err)
	}
	return string(b) + "\n", nil
}

// maxGenesis is the most bytes a genesis document may have: it is part of entry 0.
const maxGenesis = 24 << 10

// ParseGenesis reads a document and checks it against the digest that it must have.
func ParseGenesis(text string, want [32]byte) (Genesis, error) {
	var g Genesis
	if len(text) > maxGenesis {
		return g, fmt.Errorf("genesis document is over %d bytes", maxGenesis)
	}
	if sha256.Sum256([]byte(text)) != want {
		return g, fmt.Errorf("genesis document is not the one that was pinned")
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&g); err != nil {
		return g, fmt.Errorf("reading the genesis document: %w", err)
	}
	if g.Format != GenesisFormat {
		return g, fmt.Errorf("genesis document has format %q, which this version does not know", g.Format)
	}
	return g, nil
}

// CheckpointKey is what a checkpoint key signs for the one that follows it, so that whoever trusts genesis can follow the
// rotations without trusting the ledger's own word for them.
type CheckpointKey struct {
	Scope
	Name   string // checkpoint/N
	Public []byte // Ed25519
}

// Text is the text to sign.
func (k CheckpointKey) Text() string {
	var b strings.Builder
	k.lines(&b, "bailment checkpoint key v1")
	b.WriteString("name " + k.Name + "\n")
	b.WriteString("public " + hex.EncodeToString(k.Public) + "\n")
	return b.String()
}

// head reads a text's title and its first lines, by their names, and returns the lines after them.
func head(text, title string, names []string) (v map[string]string, rest []string, ok bool) {
	if !strings.HasSuffix(text, "\n") {
		return nil, nil, false
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != title || len(lines) <= len(names) {
		return nil, nil, false
	}
	v = make(map[string]string, len(names))
	for i, name := range names {
		got, value, cut := strings.Cut(lines[i+1], " ")
		if !cut || got != name || value == "" {
			return nil, nil, false
		}
		v[name] = value
	}
	return v, slices.Clone(lines[len(names)+1:]), true
}

// readScope reads what every text names first.
func readScope(v map[string]string) (Scope, error) {
	s := Scope{Environment: v["environment"]}
	g, err := hex.DecodeString(v["genesis"])
	if err != nil || len(g) != len(s.Genesis) {
		return s, fmt.Errorf("the genesis is not 64 hexadecimal digits")
	}
	copy(s.Genesis[:], g)
	s.Epoch, err = strconv.ParseUint(v["epoch"], 10, 64)
	return s, err
}
