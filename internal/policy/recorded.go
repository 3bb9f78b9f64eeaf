package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Recorded is a decision as the ledger keeps it, with everything that it takes to decide again by another bundle.
type Recorded struct {
	Index   uint64 // of the entry
	Time    time.Time
	Input   Input
	Allowed bool
	Grant   string         // that decided then
	Reason  problem.Reason // why not; "" if allowed
	// Proof is what stands behind the session: a node or job, the node of a workload, or a person.
	Proof Proof
}

// Proof is what was proved, and how.
type Proof struct {
	Identity  string // of the node or job, or the person
	Method    string // of the attestation; "" for persons
	Authority string // that vouched; "" for join tokens and persons
	Claims    Claims
	Key       string // persons: fingerprint of the key of the login
}

// Again decides a recorded question by this bundle: the rules must still give the identity that was proved, a person must still be
// listed with the key, and then the grants decide. What only the state knows, as a hold, is not asked.
func (p *Program) Again(r *Recorded) Decision {
	refuse := func(reason problem.Reason, message string) Decision {
		return Decision{Reason: reason, Message: message}
	}
	switch {
	case r.Proof.Method != "":
		m, err := p.IdentifyNode(r.Proof.Method, r.Proof.Authority, r.Proof.Claims)
		if err != nil {
			x := problem.As(err)
			return refuse(x.Reason, x.Message)
		}
		if m.Path != r.Proof.Identity {
			return refuse(problem.ReasonNoIdentity, "the rules give "+m.Path+" where "+r.Proof.Identity+" was proved")
		}
		if r.Input.Node != "" {
			if _, err := p.IdentifyWorkload(r.Input.Node, r.Input.Claims, r.Input.Identity); err != nil {
				x := problem.As(err)
				return refuse(x.Reason, x.Message)
			}
		}
	case r.Proof.Key != "":
		o, listed := p.Operator(personOf(r.Input.Identity))
		if !listed || !o.hasKey(r.Proof.Key) {
			return refuse(problem.ReasonDuty, "no operator "+r.Input.Identity+" is listed with the key of this login")
		}
	}
	return p.Decide(&r.Input)
}

func personOf(path string) string {
	name, _ := strings.CutPrefix(path, identity.PrefixHuman)
	return name
}

func (o Operator) hasKey(fingerprint string) bool {
	return slices.ContainsFunc(o.Keys, func(k OperatorKey) bool { return k.Fingerprint == fingerprint })
}
