package plan

import (
	"fmt"
	"slices"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// widensGlass says that a person whom a break-glass grant names can open more of them without anybody's approval. The grants themselves are
// within his reach already.
func (p *Plan) widensGlass(path string) []Widening {
	was, is := p.old.Environment().BreakGlass.Openings, p.new.Environment().BreakGlass.Openings
	his := func(g policy.Grant) bool {
		return g.Glass > 0 && slices.ContainsFunc(g.Identities, func(x identity.Pattern) bool { return x.Match(path) })
	}
	if is <= was || !slices.ContainsFunc(p.new.Grants(), his) {
		return nil
	}
	return []Widening{{Via: ByGrant, Who: path, What: fmt.Sprintf("%s can open break-glass grants without approvals %d times in a quarter, and not %d", path, is, was)}}
}
