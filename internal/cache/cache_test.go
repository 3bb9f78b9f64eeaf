package cache_test

import (
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/cache"
)

// Whatever is done: what is returned was put last, and what is kept weighs no more than the bound, but for one row that
// alone weighs more than a half.
func TestBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(0, 40).Draw(t, "most")
		c := cache.New[int](most, func(v int) int { return v % 10 })
		put := map[int]int{}
		for range 200 {
			k, v := rapid.IntRange(0, 30).Draw(t, "key"), rapid.IntRange(0, 999).Draw(t, "value")
			switch rapid.IntRange(0, 2).Draw(t, "act") {
			case 0:
				c.Put(k, v)
				put[k] = v
			case 1:
				was, had := put[k]
				got := c.GetOr(k, func() int { return v })
				if got != v && (!had || got != was) {
					t.Fatalf("%d: got %d, which is neither %d nor %d", k, got, was, v)
				}
				put[k] = got
			default:
				if got, ok := c.Get(k); ok && got != put[k] {
					t.Fatalf("%d: got %d, put %d", k, got, put[k])
				}
			}
		}
		if _, ok := c.Get(-1); ok {
			t.Fatal("what was never put")
		}
	})
}

// A row in use stays while a multiple of the bound passes by; one that is not goes.
func TestUsedStays(t *testing.T) {
	const most = 100
	c := cache.New[int, int](most, nil)
	c.Put(-1, 1)
	c.Put(-2, 2)
	for i := range 10 * most {
		c.Put(i, i)
		if i%10 == 0 {
			if v, ok := c.Get(-1); !ok || v != 1 {
				t.Fatalf("gone after %d others", i)
			}
		}
		if n := c.Len(); n > most {
			t.Fatalf("%d rows", n)
		}
	}
	if _, ok := c.Get(-2); ok {
		t.Error("a row that nobody used is still there")
	}
}

func TestZeroValue(t *testing.T) {
	var c cache.Cache[string, int]
	c.Put("a", 1)
	c.Put("b", 2)
	if v, ok := c.Get("b"); !ok || v != 2 {
		t.Error("it does not keep the newest")
	}
	if n := c.Len(); n > 2 {
		t.Errorf("%d rows", n)
	}
}

// Many callers with one key share what one of them makes.
func TestGetOrOnce(t *testing.T) {
	c := cache.New[int, *int](100, nil)
	got := make([]*int, 64)
	var all sync.WaitGroup
	for i := range got {
		all.Go(func() { got[i] = c.GetOr(7, func() *int { return new(int) }) })
	}
	all.Wait()
	for _, p := range got {
		if p != got[0] {
			t.Fatal("two were made")
		}
	}
}
