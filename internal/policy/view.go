package policy

import (
	"slices"
	"time"

	"github.com/bailment/bailment/internal/identity"
)

// Grant is a Grant document as it was compiled, for those who ask about the rules themselves: who can, what would change, how far
// does it reach. What it permits in a given case only Decide says.
type Grant struct {
	Name       string
	Effect     Effect
	Actions    []Action           // in the order of the constants
	Identities []identity.Pattern // none covers another
	Secrets    []identity.Pattern // none covers another
	Purposes   []string           // sorted; empty: any
	Assurance  identity.Assurance // the least; of a deny grant nothing
	TTL        time.Duration      // the longest lease by it; 0: it doesn't say
	// When is what else must hold, for people: the condition as it is written, and of a break-glass grant that it is open; "" for nothing.
	When   string
	Glass  time.Duration // how long it may be opened; 0: it is no break-glass grant
	Source Pos
}

// Grants lists the grants: those with the longest leases first, then by name. What the slices hold is shared: don't change it.
func (p *Program) Grants() []Grant {
	out := make([]Grant, len(p.grants))
	for i := range p.grants {
		out[i] = p.grants[i].view()
	}
	return out
}

func (g *grant) view() Grant {
	return Grant{
		Name: g.name, Effect: g.effect, Actions: g.actions.list(), Identities: g.identities, Secrets: g.secrets, Purposes: g.purposes,
		Assurance: g.assurance, TTL: g.ttl, When: g.holds(), Glass: g.glass, Source: g.source,
	}
}

// Governing calls visit with the place in Grants of every grant about an action that governs all of a pair of patterns: what it says of
// purpose, assurance and condition is still to be asked. No other grant governs a path of these patterns that no grant names more
// narrowly.
func (p *Program) Governing(action Action, who, secret identity.Pattern, visit func(place int)) {
	// A pattern, read as a path, is below its own prefix and nothing else, since no path has a segment "*".
	id, name := who.String(), secret.String()
	p.index.candidates(id, name, func(rank int32) {
		if p.grants[rank].concerns(action, id, name) == stagePurpose {
			visit(int(rank))
		}
	})
}

// AllActions lists the actions in the order of the constants.
func AllActions() []Action { return slices.Clone(allOf[:]) }

// allOf lists the actions in the order of the constants.
var allOf = [...]Action{ReadSecret, WriteSecret, GenerateSecret, ListSecret, DestroySecret, PromoteSecret}

func (s actionSet) list() []Action {
	var out []Action
	for _, a := range allOf {
		if s&a.bit() != 0 {
			out = append(out, a)
		}
	}
	return out
}

// IdentityRule is an Identity document as it was compiled.
type IdentityRule struct {
	Name       string
	Method     string // MethodWorkload for workloads
	Authority  string // "" for join-token and workload
	Path       string // as it is written: /workload/NAME, or with {claims.a.b} as whole segments
	When       string // the conditions as they are written; "" for none
	Require    string
	Quarantine bool               // what happens if Require is not true: quarantine, not only refusal
	Nodes      []identity.Pattern // of a workload: who may speak for it
	Federates  []string           // of a workload: names of federations, sorted
	Session    time.Duration
	Lifetime   time.Duration // 0 for workloads
	Source     Pos
	path       template
}

// IdentityRules lists the identity rules: those of nodes and jobs by name, then those of workloads by name.
func (p *Program) IdentityRules() []IdentityRule {
	var out []IdentityRule
	for _, r := range slices.Concat(p.nodes, p.workloads) {
		out = append(out, IdentityRule{
			Name: r.name, Method: r.method, Authority: r.authority, Path: r.pathText, When: r.whenText, Require: r.required, Quarantine: r.otherwise,
			Nodes: r.nodes, Federates: r.federates, Session: r.session, Lifetime: r.lifetime, Source: r.source, path: r.path,
		})
	}
	return out
}
