// Package cache keeps what was used lately, in bounded memory. It is a pure leaf: no clock, no goroutine, nothing
// that expires. What is dropped, and when, depends on use alone; nobody may rely on anything being kept.
package cache

import "sync"

// Cache is in two halves: what is used moves to the young half; when that is full, it becomes the old one, and the old
// one is dropped. So whoever wants a row forgotten must fill a half with others first, and a row in use stays. The zero
// value keeps no more than the newest row. It is safe for use by many goroutines.
type Cache[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]V
	used, most int
	weigh      func(V) int
}

// New returns a cache for values of the weight `most` together. weigh says a value's, which must not change while it
// is kept; nil: each weighs one.
func New[K comparable, V any](most int, weigh func(V) int) *Cache[K, V] {
	return &Cache[K, V]{most: most, weigh: weigh}
}

// Get returns what is kept, and counts as a use of it.
func (c *Cache[K, V]) Get(k K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.get(k)
}

// GetOr is Get, or Put of what fresh makes, in one: two callers with one key get the same value. fresh must not use the
// cache.
func (c *Cache[K, V]) GetOr(k K, fresh func() V) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.get(k)
	if !ok {
		v = fresh()
		c.put(k, v)
	}
	return v
}

// Put keeps a value in the place of the key's former one.
func (c *Cache[K, V]) Put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.put(k, v)
}

// Len is how many rows are kept, those that were replaced included.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.young) + len(c.old)
}

func (c *Cache[K, V]) get(k K) (V, bool) {
	if v, ok := c.young[k]; ok {
		return v, true
	}
	v, ok := c.old[k]
	if ok {
		c.put(k, v)
	}
	return v, ok
}

func (c *Cache[K, V]) put(k K, v V) {
	weight := 1
	if c.weigh != nil {
		weight = c.weigh(v)
	}
	if c.young == nil || c.used+weight > c.most/2 {
		c.old, c.young, c.used = c.young, make(map[K]V), 0
	}
	c.young[k] = v
	c.used += weight
}
