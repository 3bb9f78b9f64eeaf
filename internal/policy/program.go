package policy

import (
	"maps"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
)

// Class is what kind of environment a bundle is for.
type Class string

// The classes.
const (
	Development Class = "development"
	Production  Class = "production"
)

// Environment are the environment's settings, with defaults filled in.
type Environment struct {
	Name         string
	Description  string
	Class        Class
	Approvals    int  // distinct persons other than the proposer, for every act: see Needs
	Hardware     bool // approvals count by hardware-backed keys only, in every act
	acts         []actNeed
	Sessions     Sessions
	Leases       LeaseTimes
	BlastLimit   int // identities one operator may cut off at once without a quorum
	Limits       Limits
	NodeLifetime time.Duration // hard lifetime of an enrolment
	Agents       Agents
	SPIFFE       SPIFFE
	BreakGlass   BreakGlass
	Notify       []Notify // who is told of what, in the bundle's order; shared: don't change it
}

// Sessions are the lifetimes of sessions by the kind of identity.
type Sessions struct{ Node, Workload, Operator time.Duration }

// LeaseTimes are the lifetimes of leases. In an Environment both are set; in a Secret 0 means that
// the environment's apply.
type LeaseTimes struct{ Default, Max time.Duration }

// Limits are upper bounds of what may be stored.
type Limits struct{ Secrets, VersionsPerSecret, ValueBytes int }

// Duty is something that an operator may do with the environment itself.
type Duty string

// The closed set of duties.
const (
	DutyPropose Duty = "propose" // propose changes
	DutyApprove Duty = "approve" // approve what somebody else proposed, whatever it is
	DutyRevoke  Duty = "revoke"  // cut off and hold
	DutyAdmit   Duty = "admit"   // create join tokens
	DutyKeys    Duty = "keys"    // rotate the environment's keys
	DutyAudit   Duty = "audit"   // read the ledger

	// Parts of the duty approve: see Acts.
	DutyApproveBundles     Duty = "approve-bundles"
	DutyApproveContainment Duty = "approve-containment"
	DutyApproveSecrets     Duty = "approve-secrets"
)

// Operator is a person.
type Operator struct {
	Name   string // the identity is /human/NAME
	Keys   []OperatorKey
	Duties []Duty // in the order of the constants
	Source Pos
}

// Path is the operator's identity.
func (o Operator) Path() string { return identity.PrefixHuman + o.Name }

// Has reports whether the operator has the duty, or one that contains it.
func (o Operator) Has(d Duty) bool {
	switch d {
	case DutyApproveBundles, DutyApproveContainment, DutyApproveSecrets:
		return slices.Contains(o.Duties, d) || slices.Contains(o.Duties, DutyApprove)
	}
	return slices.Contains(o.Duties, d)
}

// OperatorKey is an SSH public key of a person.
type OperatorKey struct {
	Key         ssh.PublicKey
	Fingerprint string // as ssh-keygen -l prints it: SHA256:…
	Comment     string
}

// Secret is a declaration: of one secret, or of a family of them.
type Secret struct {
	Pattern     identity.Pattern // a path, or a family PREFIX/*
	Description string
	Type        string // "opaque"
	Recipe      Recipe // how to generate a value; its zero value: not declared
	MaxBytes    int    // size of a value, never 0
	Retain      time.Duration
	Lease       LeaseTimes
	Unlocks     []Unlock // what a value opens, as it is declared
	Source      Pos
}

// Recipe says how the server makes a value.
type Recipe struct {
	Name   string // password, token, hex, base64, uuid or alphanumeric; "" for none
	Length int    // characters (password, alphanumeric) or random bytes (token, hex, base64); 0 for uuid
}

// Program is a compiled bundle. It is immutable and safe for concurrent use.
type Program struct {
	environment Environment
	authorities []authority.Authority // ordered by name
	operators   []Operator
	byKey       map[string]int // marshalled public key → operator
	secrets     []Secret       // ordered by pattern
	exact       map[string]int
	families    map[string]int // by prefix
	nodes       []identityRule
	workloads   []identityRule
	byWorkload  map[string][]int
	federations []Federation // by name
	rollouts    []Rollout    // by name
	grants      []grant      // by rank
	index       grantIndex
	tests       []testDocument // by name
	limits      []ReachLimit   // by test
	advice      Findings       // about rules for jobs
}

// Environment are the environment's settings.
func (p *Program) Environment() Environment { return p.environment }

// Authorities lists what attestation trusts for a method, by name; for the empty method all. What they hold is shared: don't
// change it.
func (p *Program) Authorities(method string) []authority.Authority {
	var out []authority.Authority
	for _, a := range p.authorities {
		if method == "" || a.Method == method {
			out = append(out, a)
		}
	}
	return out
}

// Authority finds an authority by the name that identity rules use.
func (p *Program) Authority(name string) (authority.Authority, bool) {
	for _, a := range p.authorities {
		if a.Name == name {
			return a, true
		}
	}
	return authority.Authority{}, false
}

// Operators lists the persons by name.
func (p *Program) Operators() []Operator { return slices.Clone(p.operators) }

// Operator finds a person by name.
func (p *Program) Operator(name string) (Operator, bool) {
	for _, o := range p.operators {
		if o.Name == name {
			return o, true
		}
	}
	return Operator{}, false
}

// OperatorByKey finds the one person who has the key.
func (p *Program) OperatorByKey(key ssh.PublicKey) (Operator, bool) {
	if key == nil {
		return Operator{}, false
	}
	i, ok := p.byKey[string(key.Marshal())]
	if !ok {
		return Operator{}, false
	}
	return p.operators[i], true
}

// Workloads lists the identities that the bundle's rules give to processes, ordered.
func (p *Program) Workloads() []string { return slices.Sorted(maps.Keys(p.byWorkload)) }

// Secrets lists the declarations, ordered by pattern.
func (p *Program) Secrets() []Secret { return slices.Clone(p.secrets) }

// Secret finds the declaration that governs a path: the exact one, else the family with the
// longest prefix.
func (p *Program) Secret(path string) (Secret, bool) {
	if i, ok := p.exact[path]; ok {
		return p.secrets[i], true
	}
	for cut := len(path) - 1; cut > 0; cut-- {
		if path[cut] != '/' {
			continue
		}
		if i, ok := p.families[path[:cut]]; ok {
			return p.secrets[i], true
		}
	}
	return Secret{}, false
}
