package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
)

// Bounds of a bundle's limits.
const (
	MaxReachLimits = 100 // in all tests: each is a question about the whole bundle
	systemTarget   = "system:"
)

type limitSpec struct {
	At     Pos
	Name   text   `yaml:"name" need:"true" doc:"What shall not be, unique among the limits of the bundle."`
	From   []text `yaml:"from" need:"true" doc:"Who is compromised, one at a time: paths or subtrees of identities, as /ci/*."`
	To     []text `yaml:"to" need:"true" doc:"What nobody of them may reach: secrets (db/prod/*), identities (/workload/*), or systems that secrets unlock (system:NAME)."`
	Ways   text   `yaml:"ways" enum:"plain,conditional,poisoning" default:"poisoning" doc:"The worst ways that count: plain, those on which a condition decides too, or also those by which a reader is led astray by a value that was written for it."`
	Direct truth  `yaml:"direct" doc:"true: only what is reached in one hop counts, as by a grant."`
}

// ReachLimit is what a test says that shall not be: that whoever compromises a single one of From reaches any of To. It is text that was
// checked; package reach finds whether it holds.
type ReachLimit struct {
	Test   string   `json:"test"`
	Name   string   `json:"name"` // unique in the bundle
	From   []string `json:"from"` // patterns of identities
	To     []string `json:"to"`   // patterns of secrets or identities, or system:NAME
	Ways   string   `json:"ways"` // plain | conditional | poisoning: the worst that count
	Direct bool     `json:"direct"`
	Source Pos      `json:"source"`
}

// Limits lists what the bundle's tests say that shall not be reached, by test and in the order of the file. What the slices hold is shared:
// don't change it.
func (p *Program) Limits() []ReachLimit { return slices.Clone(p.limits) }

// limits reads a document's limits.
func (c *testCompiler) limits(d *document, list []limitSpec) {
	for i := range list {
		s := &list[i]
		if len(c.limitNames) == MaxReachLimits {
			c.found.add(s.At, "the bundle has more than %d limits in its tests", MaxReachLimits)
			return
		}
		switch {
		case !validCaseName(s.Name.value):
			c.found.add(s.Name.at, "the name of a limit must be 1 to 200 bytes on one line")
		case c.limitNames[s.Name.value]:
			c.found.add(s.Name.at, "the name %q is taken by another limit", s.Name.value)
		}
		c.limitNames[s.Name.value] = true
		out := ReachLimit{Test: d.name.value, Name: s.Name.value, Ways: "poisoning", Direct: s.Direct.value, Source: s.At}
		if s.Ways.set {
			out.Ways = c.oneOf(s.Ways, "ways", "plain", "conditional", "poisoning")
		}
		out.From = c.limitSide(s.From, "from", s.At, func(v string) error { _, err := identity.ParseIDPattern(v); return err })
		out.To = c.limitSide(s.To, "to", s.At, validTarget)
		c.program.limits = append(c.program.limits, out)
	}
}

func (c *testCompiler) limitSide(list []text, field string, at Pos, check func(string) error) []string {
	if len(list) == 0 {
		c.found.add(at, "%q is empty: it must name at least one", field)
	}
	if len(list) > maxPatterns {
		c.found.add(list[maxPatterns].at, "%q has more than %d entries", field, maxPatterns)
		return nil
	}
	var out []string
	for _, t := range list {
		if err := check(t.value); err != nil {
			c.found.add(t.at, "%v", err)
			continue
		}
		if slices.Contains(out, t.value) {
			c.found.add(t.at, "%q is here twice", t.value)
			continue
		}
		out = append(out, t.value)
	}
	return out
}

// validTarget says what is wrong with a target, as reach.ParseTarget reads it.
func validTarget(s string) error {
	name, system := strings.CutPrefix(s, systemTarget)
	var err error
	switch {
	case system:
		if !validName(name) {
			err = fmt.Errorf("the system %.80q must be 1 to 63 of a-z, 0-9, '-' and '.', and begin with a letter or digit", name)
		}
	case strings.HasPrefix(s, "/"):
		_, err = identity.ParseIDPattern(s)
	default:
		_, err = identity.ParseSecretPattern(s)
	}
	return err
}
