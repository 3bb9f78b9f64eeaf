// Package flow finds the maximum flow between two nodes of a network, and so a smallest cut between them (Dinic's algorithm).
//
// Guaranteed: the maximum, without recursion, in memory of the network's size; the same cut for the same network. Not guaranteed: that it
// ends in time for any network, so it gives up after some thousand phases, which are as many as a shortest way has lengths.
//
// It is pure and imports nothing of ours.
package flow

// Endless is a capacity that nothing fills.
const Endless = int64(1) << 50

const maxPhases = 10_000

// Network is nodes and edges with capacities.
type Network struct {
	first []int32 // by node: its last edge, or -1
	next  []int32
	to    []int32
	left  []int64
	level []int32
	at    []int32
}

// Edge adds an edge.
func (f *Network) Edge(from, to int32, capacity int64) {
	for _, e := range [2]struct {
		from, to int32
		capacity int64
	}{{from, to, capacity}, {to, from, 0}} {
		f.next = append(f.next, f.first[e.from])
		f.first[e.from] = int32(len(f.to))
		f.to, f.left = append(f.to, e.to), append(f.left, e.capacity)
	}
}

// New makes a network of n nodes, without edges.
func New(n int32) *Network {
	f := &Network{first: make([]int32, n)}
	for i := range f.first {
		f.first[i] = -1
	}
	return f
}

// Run makes the flow a maximum, and reports whether it did: it gives up after 10,000 phases.
func (f *Network) Run(source, sink int32) bool {
	f.level, f.at = make([]int32, len(f.first)), make([]int32, len(f.first))
	for range maxPhases {
		for i := range f.level {
			f.level[i] = -1
		}
		f.level[source] = 0
		queue := []int32{source}
		for i := 0; i < len(queue); i++ {
			for e := f.first[queue[i]]; e >= 0; e = f.next[e] {
				if to := f.to[e]; f.left[e] > 0 && f.level[to] < 0 {
					f.level[to] = f.level[queue[i]] + 1
					queue = append(queue, to)
				}
			}
		}
		if f.level[sink] < 0 {
			return true
		}
		copy(f.at, f.first)
		f.block(source, sink)
	}
	return false
}

// Near reports whether a node is on the source's side of the smallest cut that is nearest to it, after Run.
func (f *Network) Near(node int32) bool { return f.level[node] >= 0 }

// block pushes flow along shortest ways until each of them is full, without recursion: ways are long.
func (f *Network) block(source, sink int32) {
	var way []int32 // edges
	at := source
	for {
		if at == sink {
			least, full := Endless, 0
			for i, e := range way {
				if f.left[e] < least {
					least, full = f.left[e], i
				}
			}
			for _, e := range way {
				f.left[e] -= least
				f.left[e^1] += least
			}
			at = f.to[way[full]^1]
			way = way[:full]
			continue
		}
		e := f.at[at]
		for e >= 0 && (f.left[e] == 0 || f.level[f.to[e]] != f.level[at]+1) {
			e = f.next[e]
		}
		f.at[at] = e
		if e >= 0 {
			way = append(way, e)
			at = f.to[e]
			continue
		}
		if len(way) == 0 {
			return
		}
		f.level[at] = -1
		back := way[len(way)-1]
		way = way[:len(way)-1]
		at = f.to[back^1]
	}
}
