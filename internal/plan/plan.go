// Package plan says what a new bundle would change, as meaning and not as text: who gains and who loses, which limits move, which secrets
// come within reach of CI, which rules, settings and persons change, and what of the recorded past would be decided otherwise. It also
// finds what breaks the separation of duties.
//
// Guaranteed: bundles that differ only in names of grants and rules, files, order, comments and descriptions have an empty Plan. Where
// grants have no conditions the access part is exact: whatever two bundles decide differently is within a line of the Plan, and each line
// has a request that they decide differently. Where they have some, a condition is a text: two that differ are told as "changed", with
// both, and one that is equal on both sides is not. A plan's work, memory and size are bounded; what was left out is counted.
// Not guaranteed: that somebody holds an identity, or that a secret exists; that different texts of a condition mean different things.
//
// Its place: pure, above policy; the command line shows it, and control asks it who gains by a change that he would approve.
package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// Limits of a Plan. Work beyond them is not done and is said to be missing.
const (
	MaxLines      = 1000       // of each list; all are counted
	maxCells      = 200_000    // pairs of patterns that are looked at
	maxWork       = 50_000_000 // steps of looking for them and at the grants that govern them
	maxExceptions = 8          // of one line
	maxGrants     = 6          // that one line names
)

// Direction is which way something moves, seen from who might misuse it.
type Direction string

// The directions.
const (
	Wider    Direction = "wider"    // it permits more
	Narrower Direction = "narrower" // it permits less
	Other    Direction = "other"    // both, or it can't be told
)

// Kind is what happens to an access.
type Kind string

// The kinds.
const (
	Gain  Kind = "gain"  // there was none
	Loss  Kind = "loss"  // there is none any more
	Limit Kind = "limit" // its limits move
)

// Plan is what a new bundle would change.
type Plan struct {
	Access []Line `json:"access"` // the widest first
	// CI are secrets that jobs (/ci/…) could read, and could not, or only with better assurance.
	CI []Reach `json:"ci"`
	// Assurance are secrets that could be read with weaker assurance than anybody needed before.
	Assurance []Reach `json:"assurance"`
	Items     []Item  `json:"items"` // everything that is not access
	Totals    Totals  `json:"totals"`
	// Partial: the bundles have more crossing patterns than are looked at. The grants that were not looked at are lines of direction
	// other, as they are written.
	Partial bool `json:"partial,omitempty"`
	// ExceptionsPartial: lines may have more exceptions than they name.
	ExceptionsPartial bool `json:"exceptions_partial,omitempty"`

	old, new *policy.Program
	cells    *cells
}

// Totals counts what lists may have been cut short of.
type Totals struct {
	Gains     int `json:"gains"`
	Losses    int `json:"losses"`
	Limits    int `json:"limits"`
	Wider     int `json:"wider"` // of gains and limits
	CI        int `json:"ci"`
	Assurance int `json:"assurance"`
	Items     int `json:"items"`
	Sensitive int `json:"sensitive"` // of the items
}

// Empty reports whether nothing would change.
func (p *Plan) Empty() bool {
	t := p.Totals
	return t.Gains+t.Losses+t.Limits+t.Items == 0 && !p.Partial
}

// Line is one change of who may do what.
type Line struct {
	Kind      Kind            `json:"kind"`
	Direction Direction       `json:"direction"`
	Who       string          `json:"who"`    // a pattern
	Secret    string          `json:"secret"` // a pattern
	Actions   []policy.Action `json:"actions"`
	Before    []Access        `json:"before"` // empty: none
	After     []Access        `json:"after"`
	Moves     []Move          `json:"moves,omitempty"` // of a limit: what exactly
	// Except are narrower patterns within the line for which nothing changes; narrower ones that change otherwise are lines of their own.
	Except     []Pair     `json:"except,omitempty"`
	MoreExcept int        `json:"more_except,omitempty"`
	Grants     []GrantRef `json:"grants"` // that come or go, by which it happens
	MoreGrants int        `json:"more_grants,omitempty"`
	// Unexamined: a grant that comes or goes, as it is written; see Plan.Partial.
	Unexamined bool `json:"unexamined,omitempty"`
}

// Pair is an identity's and a secret's pattern.
type Pair struct {
	Who    string `json:"who"`
	Secret string `json:"secret"`
}

// GrantRef is a grant that one of the bundles has and the other has not.
type GrantRef struct {
	Name   string        `json:"name"`
	Effect policy.Effect `json:"effect"`
	Added  bool          `json:"added"` // else removed
	Source policy.Pos    `json:"source"`
}

// Access is how something is permitted.
type Access struct {
	Purposes  []string           `json:"purposes,omitempty"` // of reads
	Assurance identity.Assurance `json:"assurance"`          // the least by which there is access at all
	TTL       Lease              `json:"ttl"`                // the longest
	When      []string           `json:"when,omitempty"`     // conditions, of which one must hold; none: it takes none
	Unless    []string           `json:"unless,omitempty"`   // conditions of deny grants, of which none may hold
}

// Lease is the length of a lease; 0: the grants don't say.
type Lease time.Duration

// String is the length as Go writes it.
func (l Lease) String() string {
	if l == 0 {
		return "no limit"
	}
	return time.Duration(l).String()
}

// MarshalText is String.
func (l Lease) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Move is a limit that moves.
type Move struct {
	Limit     string    `json:"limit"` // purposes | assurance | ttl | condition | prohibition
	Direction Direction `json:"direction"`
	Before    []string  `json:"before"`
	After     []string  `json:"after"`
}

// Reach is a secret that comes within reach.
type Reach struct {
	Secret string              `json:"secret"` // a pattern
	Before *identity.Assurance `json:"before"` // the least assurance by which all of it could be read; nil: it could not
	After  identity.Assurance  `json:"after"`
	Parts  bool                `json:"parts,omitempty"` // some of it could be read as easily before
	By     string              `json:"by"`              // a grant
	Source policy.Pos          `json:"source"`
}

// Compare says what would change if a bundle came after another.
func Compare(before, after *policy.Program) *Plan {
	p := &Plan{old: before, new: after, Access: []Line{}, CI: []Reach{}, Assurance: []Reach{}, Items: []Item{}}
	p.cells = newCells(before, after)
	p.access()
	p.reach()
	p.records()
	return p
}

// cut keeps the first lines of a list, which is ordered by what matters most.
func cut[T any](list []T) []T { return list[:min(len(list), MaxLines)] }

func (p *Plan) count(l *Line) {
	switch l.Kind {
	case Gain:
		p.Totals.Gains++
	case Loss:
		p.Totals.Losses++
	case Limit:
		p.Totals.Limits++
	}
	if l.Direction != Narrower {
		p.Totals.Wider++
	}
}

var kindOrder = map[Kind]int{Gain: 0, Limit: 1, Loss: 2}

var directionOrder = map[Direction]int{Wider: 0, Other: 1, Narrower: 2}

func byWeight(a, b Line) int {
	return cmp.Or(
		cmp.Compare(kindOrder[a.Kind], kindOrder[b.Kind]), cmp.Compare(directionOrder[a.Direction], directionOrder[b.Direction]),
		cmp.Compare(a.Who, b.Who), cmp.Compare(a.Secret, b.Secret), slices.Compare(a.Actions, b.Actions),
	)
}
