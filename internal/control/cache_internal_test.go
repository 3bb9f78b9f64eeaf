package control

import "testing"

// Sessions with large claims take the room of many, so that the cache's memory is bounded whatever they say.
func TestClaimCacheWeighsClaims(t *testing.T) {
	c := newClaimCache()
	list := make([]any, 1000)
	for i := range list {
		list[i] = "x"
	}
	for i := range uint64(2 * maxCachedClaims / usualClaims) {
		if _, err := c.of(i, map[string]any{"list": list}); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.prepared.Len(); n > maxCachedClaims/usualClaims+2 {
		t.Errorf("%d sets of a thousand claims are kept", n)
	}
}
