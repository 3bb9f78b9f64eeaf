package control

import (
	"context"
	"sync"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// generations is a bounded cache in two halves: what is used moves to the young half; when that is
// full, it becomes the old one and the old one is dropped. No lists, no clocks, bounded memory.
type generations[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]V
	used, most int
}

func (g *generations[K, V]) get(k K, weight func(V) int) (V, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v, ok := g.young[k]; ok {
		return v, true
	}
	v, ok := g.old[k]
	if ok {
		g.add(k, v, weight(v))
	}
	return v, ok
}

func (g *generations[K, V]) put(k K, v V, weight int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.add(k, v, weight)
}

func (g *generations[K, V]) add(k K, v V, weight int) {
	if g.young == nil || g.used+weight > g.most/2 {
		g.old, g.young, g.used = g.young, make(map[K]V), 0
	}
	g.young[k] = v
	g.used += weight
}

// claimCache keeps the prepared form of sessions' claims, so that a decision converts nothing.
type claimCache struct {
	g generations[uint64, policy.Claims]
}

const maxCachedClaims = 65536

func one(policy.Claims) int { return 1 }

func (c *claimCache) of(session uint64, claims map[string]any) (policy.Claims, error) {
	if len(claims) == 0 {
		return policy.Claims{}, nil
	}
	if p, ok := c.g.get(session, one); ok {
		return p, nil
	}
	p, err := policy.PrepareClaims(claims)
	if err != nil {
		return p, err
	}
	c.g.put(session, p, 1)
	return p, nil
}

// valueCache keeps ciphertexts by the index of the entry that made them. Never plaintext.
type valueCache struct {
	g generations[uint64, store.Sealed]
}

const maxCachedBytes = 32 << 20

func weightOf(x store.Sealed) int { return len(x.Ciphertext) + len(x.WrappedKey) + 200 }

// sealed reads a version's ciphertext from the cache or, by its primary key, from the store.
func (e *Environment) sealed(ctx context.Context, v *state.Version) (store.Sealed, error) {
	if x, ok := e.values.g.get(v.Sealed, weightOf); ok {
		return x, nil
	}
	x, err := e.log.Store().Sealed(ctx, v.Sealed)
	if err != nil {
		return x, e.storeProblem(err, "reading a sealed version")
	}
	e.values.g.put(v.Sealed, x, weightOf(x))
	return x, nil
}
