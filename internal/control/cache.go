package control

import (
	"context"
	"reflect"
	"strings"

	"github.com/bailment/bailment/internal/cache"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// claimCache keeps what decisions derive from sessions: the prepared form of their claims, and what the bundle's rules say to
// them, so that a decision on the hot path converts nothing and asks no rule twice.
//
// A row is found by the session's index, and is good only for the very objects that it was made from, which it keeps: state's
// rows are replaced and never changed, so what is the same object says the same. An index alone would not do: a batch that
// fails gives its indexes to others, after its decisions have been made.
type claimCache struct {
	prepared *cache.Cache[uint64, preparedClaims]
	asked    *cache.Cache[uint64, asked]
}

// preparedClaims are claims in the form that decisions take.
type preparedClaims struct {
	from   map[string]any
	claims policy.Claims
	weight int
}

// maxCachedClaims is how many claims are kept, where those of a usual session weigh one and larger ones more.
const (
	maxCachedClaims = 65536
	usualClaims     = 32 // values
)

// valuesOf counts the values in claims, and their texts by length.
func valuesOf(v any) int {
	n := 1
	switch v := v.(type) {
	case string:
		n += len(v) / 64
	case []any:
		for _, x := range v {
			n += valuesOf(x)
		}
	case map[string]any:
		for k, x := range v {
			n += len(k)/64 + valuesOf(x)
		}
	}
	return n
}

func newClaimCache() *claimCache {
	return &claimCache{
		prepared: cache.New[uint64](maxCachedClaims, func(p preparedClaims) int { return p.weight }),
		asked:    cache.New[uint64, asked](maxCachedClaims, nil),
	}
}

// sameMap reports whether both are one object.
func sameMap(a, b map[string]any) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

func (c *claimCache) of(session uint64, claims map[string]any) (policy.Claims, error) {
	if len(claims) == 0 {
		return policy.Claims{}, nil
	}
	if p, ok := c.prepared.Get(session); ok && sameMap(p.from, claims) {
		return p.claims, nil
	}
	p, err := policy.PrepareClaims(claims)
	if err != nil {
		return p, err
	}
	made := preparedClaims{claims, p, 1 + valuesOf(claims)/usualClaims}
	c.prepared.Put(session, made)
	return p, nil
}

// asked is what the rules of a bundle said to a session.
type asked struct {
	bundle  state.Digest
	session *state.Session
	node    *state.Identity // that speaks for it; nil: none
	problem *problem.Problem
}

// stands says whether the rules of the governing bundle give the session's identity to what it has proved, and for a
// workload the identity of the node that speaks for it as well; nil if so. A session that was opened under this very bundle
// was judged then, and costs nothing more. Operators are judged by operatorOf.
func stands(s *state.State, by governor, c *claimCache, x *state.Session) *problem.Problem {
	if x.Generation == s.Generation && by.bundle == s.Bundle {
		return nil
	}
	is := asked{bundle: by.bundle, session: x}
	if x.Node != "" {
		is.node, _ = s.Identities.Get(x.Node)
	} else if !strings.HasPrefix(x.Identity, identity.PrefixNode) && !strings.HasPrefix(x.Identity, identity.PrefixCI) {
		return nil
	}
	key := x.Index << 1 // during a rollout two bundles are asked, and neither's answer displaces the other's
	if by.bundle != s.Bundle {
		key++
	}
	if was, ok := c.asked.Get(key); ok && was.bundle == is.bundle && was.session == is.session && was.node == is.node {
		return was.problem
	}
	is.problem = problem.As(c.ask(by.prog, x, is.node))
	c.asked.Put(key, is)
	return is.problem
}

func (c *claimCache) ask(prog *policy.Program, x *state.Session, node *state.Identity) error {
	claims, err := c.of(x.Index, x.Claims)
	if err != nil {
		return problem.Wrap(err, problem.ReasonCondition, "reading the session's claims")
	}
	if x.Node == "" {
		return nodeStands(prog, x.Identity, x.Method, x.Anchor, claims)
	}
	if node == nil {
		return problem.New(problem.ReasonForeignNode, "nothing is known of %s any more, which spoke for %s", x.Node, x.Identity)
	}
	// The node's newest proof counts, not the one that the workload was attested under.
	proof, err := c.of(node.Session, node.Claims)
	if err != nil {
		return problem.Wrap(err, problem.ReasonCondition, "reading the node's claims")
	}
	if err := nodeStands(prog, node.Path, node.Method, node.Anchor, proof); err != nil {
		return err
	}
	_, err = prog.IdentifyWorkload(x.Node, claims, x.Identity)
	return err
}

func nodeStands(prog *policy.Program, path, method, anchor string, claims policy.Claims) error {
	match, err := prog.IdentifyNode(method, authorityOf(anchor), claims)
	if err == nil && match.Path != path {
		err = problem.New(problem.ReasonNoIdentity, "the bundle in force makes these claims %s, not %s", match.Path, path)
	}
	return err
}

// newValueCache is a cache of ciphertexts by the index of the entry that made them. Never of plaintext.
func newValueCache() *cache.Cache[uint64, store.Sealed] {
	return cache.New[uint64](maxCachedBytes, func(x store.Sealed) int { return len(x.Ciphertext) + len(x.WrappedKey) + 200 })
}

const maxCachedBytes = 32 << 20

// sealed reads a version's ciphertext from the cache or, by its primary key, from the store.
func (e *Environment) sealed(ctx context.Context, v *state.Version) (store.Sealed, error) {
	if x, ok := e.values.Get(v.Sealed); ok {
		return x, nil
	}
	x, err := e.log.Store().Sealed(ctx, v.Sealed)
	if err != nil {
		return x, e.storeProblem(err, "reading a sealed version")
	}
	e.values.Put(v.Sealed, x)
	return x, nil
}
