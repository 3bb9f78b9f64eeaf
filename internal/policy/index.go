package policy

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
)

// grantIndex finds the grants whose patterns fit a request without looking at the others. A
// request's identity has few patterns that could match it (itself, each of its ancestors as a
// subtree, everything), and so has its secret; grants are kept under pairs of the two. The cost of
// a lookup depends on the depth of the two paths and on the grants found, not on the number of
// grants or identities. It is a filter only: the evaluator matches again.
type grantIndex struct {
	identities patternNumbers
	secrets    patternNumbers
	pairs      map[pair][]int32 // ranks, ascending
}

type pair struct{ identity, secret int32 }

// patternNumbers gives small numbers to patterns, by their form.
type patternNumbers struct {
	exact    map[string]int32
	subtrees map[string]int32 // by prefix; "" is everything
	count    int32
}

func newGrantIndex() grantIndex {
	numbers := func() patternNumbers {
		return patternNumbers{exact: map[string]int32{}, subtrees: map[string]int32{}}
	}
	return grantIndex{numbers(), numbers(), map[pair][]int32{}}
}

func (n *patternNumbers) number(p identity.Pattern) int32 {
	table, key := n.exact, ""
	if path, ok := p.Exact(); ok {
		key = path
	} else {
		key, _ = p.Prefix()
		table = n.subtrees
	}
	i, ok := table[key]
	if !ok {
		i = n.count
		n.count++
		table[key] = i
	}
	return i
}

// find appends to buf the numbers of the patterns that match path.
func (n *patternNumbers) find(path string, buf []int32) []int32 {
	if i, ok := n.exact[path]; ok {
		buf = append(buf, i)
	}
	if i, ok := n.subtrees[""]; ok {
		buf = append(buf, i)
	}
	for cut, depth := 1, 0; cut < len(path) && depth <= identity.MaxSegments; depth++ {
		next := strings.IndexByte(path[cut:], '/')
		if next < 0 {
			break
		}
		cut += next
		if i, ok := n.subtrees[path[:cut]]; ok {
			buf = append(buf, i)
		}
		cut++
	}
	return buf
}

// add files a grant. Its patterns don't cover one another, so no request finds it twice.
func (x *grantIndex) add(g *grant) {
	for _, i := range g.identities {
		for _, s := range g.secrets {
			key := pair{x.identities.number(i), x.secrets.number(s)}
			x.pairs[key] = append(x.pairs[key], int32(g.rank))
		}
	}
}

// widen files a grant again, under the patterns that it has now. It stays under those that it had: what it is filed under too much is
// asked in vain. The lists of another index are not changed that this one was copied from.
func (x *grantIndex) widen(g *grant) {
	for _, i := range g.identities {
		for _, s := range g.secrets {
			key := pair{x.identities.number(i), x.secrets.number(s)}
			if list := x.pairs[key]; !slices.Contains(list, int32(g.rank)) {
				x.pairs[key] = append(slices.Clip(list), int32(g.rank))
			}
		}
	}
}

// candidates calls visit with the rank of every grant that has a pattern for the identity and a
// pattern for the secret.
func (x *grantIndex) candidates(id, secret string, visit func(rank int32)) {
	var idBuf, secretBuf [identity.MaxSegments + 2]int32
	ids := x.identities.find(id, idBuf[:0])
	if len(ids) == 0 {
		return
	}
	secrets := x.secrets.find(secret, secretBuf[:0])
	for _, i := range ids {
		for _, s := range secrets {
			for _, rank := range x.pairs[pair{i, s}] {
				visit(rank)
			}
		}
	}
}

// reduce removes patterns that another one covers, keeping the order.
func reduce(patterns []identity.Pattern) []identity.Pattern {
	var out []identity.Pattern
	for i, p := range patterns {
		covered := false
		for j, q := range patterns {
			if i != j && q.Covers(p) && (q != p || j < i) {
				covered = true
				break
			}
		}
		if !covered {
			out = append(out, p)
		}
	}
	return out
}
