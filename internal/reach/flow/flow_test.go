package flow

import (
	"testing"

	"pgregory.net/rapid"
)

// What flows over the edges of the nearest cut is the least capacity of any cut, tried one after the other.
func TestCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int32Range(2, 7).Draw(t, "nodes")
		type edge struct {
			from, to int32
			capacity int64
		}
		edges := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) edge {
			return edge{rapid.Int32Range(0, n-1).Draw(t, "from"), rapid.Int32Range(0, n-1).Draw(t, "to"), rapid.Int64Range(0, 9).Draw(t, "capacity")}
		}), 0, 20).Draw(t, "edges")
		f := New(n)
		for _, e := range edges {
			f.Edge(e.from, e.to, e.capacity)
		}
		if !f.Run(0, n-1) {
			t.Fatal("it gave up")
		}
		cost := func(near func(int32) bool) (sum int64) {
			for _, e := range edges {
				if near(e.from) && !near(e.to) {
					sum += e.capacity
				}
			}
			return sum
		}
		if !f.Near(0) || f.Near(n-1) {
			t.Fatal("it does not part source and sink")
		}
		got := cost(f.Near)
		for set := range 1 << n {
			near := func(v int32) bool { return set&(1<<v) != 0 }
			if near(0) && !near(n-1) && cost(near) < got {
				t.Fatalf("a cut of %d, and another one of %d", got, cost(near))
			}
		}
	})
}
