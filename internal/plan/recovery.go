package plan

import (
	"fmt"
	"slices"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// widensRecovery says which recovery keys a person gets: with enough of them he names the operators.
func (p *Plan) widensRecovery(name string) []Widening {
	was := p.old.Environment().Recovery.Of(name)
	var out []Widening
	for _, k := range p.new.Environment().Recovery.Of(name) {
		if !slices.ContainsFunc(was, func(o policy.OperatorKey) bool { return o.Fingerprint == k.Fingerprint }) {
			out = append(out, Widening{Via: ByKey, Who: identity.PrefixHuman + name, What: fmt.Sprintf("%s gets the recovery key %s", name, k.Fingerprint)})
		}
	}
	return out
}
