package reach

import (
	"math/bits"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// kind is what a vertex is. Those up to kindBundle are things; the others are on the way between them.
type kind uint8

const (
	kindIdentity kind = iota // ref: position in ids
	kindValue                // a secret's value is known; ref: position in secrets
	kindWritable             // a secret's value can be set; ref: position in secrets
	kindAsked                // the action that was asked for can be done; ref: position in secrets
	kindSystem               // ref: number in systems
	kindAct                  // operators carry an act out together; ref: number in quorums
	kindHolders              // as many holders of recovery keys as it takes
	kindBundle
	kindLine // a line of the bundle; ref: number in lines
	kindPart // of a line, where it is conditional for some only; ref: number in lines
	kindInner
)

// Grade is how much must come together for a way to be open. Less is worse for the defender.
type Grade uint8

// The grades.
const (
	Plain       Grade = iota // nothing else
	Conditional              // conditions must be true that the attacker may not be able to make true
	Poisoning                // a reader must be led astray by a value that was written for it
	gradeCount
	unseen = gradeCount
)

var gradeNames = [...]string{"plain", "conditional", "poisoning"}

// String is the grade's name.
func (g Grade) String() string {
	if int(g) < len(gradeNames) {
		return gradeNames[g]
	}
	return "none"
}

// MarshalText prints the name.
func (g Grade) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// line is a line of the bundle, by which one hop is possible.
type line struct {
	hop        Hop
	rule       string
	from, to   string
	source     policy.Pos
	conditions []string
}

// adjacency are edges, by the vertex at one of their ends.
type adjacency struct{ first, other []int32 }

func (a *adjacency) of(v int32) []int32 { return a.other[a.first[v]:a.first[v+1]] }

// graph is what a question is asked of. It is built for the patterns that the question is about.
type graph struct {
	program      *policy.Program
	ids, secrets *tree
	secretList   []policy.Secret
	declared     []int32              // the declaration that governs a position of secrets, or -1
	there        []bool               // by position of secrets: there can be such a secret
	most         []identity.Assurance // by position of ids: the most that its evidence proves
	live         []bool               // by position of ids: somebody can be it
	kinds        []kind
	grades       []Grade
	refs         []int32
	lines        []line
	systems      []string
	idSpace      space
	layers       [3]space // by kind - kindValue
	system       int32    // the first vertex
	bundle       int32
	holders      int32 // of recovery keys; -1: there are none
	out, in      adjacency
	quorums      []quorum          // of acts that give something; the first is the bundle's
	operators    []policy.Operator // who takes part in any
}

// space is the vertices of a tree's atoms, and above them those of a segment tree, so that an interval of atoms is reached by few edges.
type space struct {
	atoms int32 // vertex of position 0
	inner int32 // vertex of the segment tree's node 1
	size  int32 // leaves of the segment tree, a power of two
	alive []bool
	used  bool
}

func (g *graph) layer(k kind) *space { return &g.layers[k-kindValue] }

func (g *graph) thing(k kind, position int32) int32 {
	if k == kindIdentity {
		return g.idSpace.atoms + position
	}
	return g.layer(k).atoms + position
}

// edges collects edges until they can be put into order.
type edges struct {
	from, to []int32
	over     bool // more was needed than may be
}

func (e *edges) add(from, to int32) {
	if len(e.from) >= maxEdges {
		e.over = true
		return
	}
	e.from, e.to = append(e.from, from), append(e.to, to)
}

func arrange(n int, by, other []int32) adjacency {
	a := adjacency{make([]int32, n+1), make([]int32, len(by))}
	for _, v := range by {
		a.first[v+1]++
	}
	for i := range n {
		a.first[i+1] += a.first[i]
	}
	next := append([]int32(nil), a.first[:n]...)
	for i, v := range by {
		a.other[next[v]] = other[i]
		next[v]++
	}
	return a
}

func tooMuch(what string) error {
	return problem.New(problem.ReasonLimit, "the question takes more than %s", what).WithFix("ask about less: narrower patterns, or fewer names")
}

// vertex makes a vertex.
func (b *builder) vertex(k kind, ref int32, grade Grade) int32 {
	v := int32(len(b.g.kinds))
	b.g.kinds, b.g.refs, b.g.grades = append(b.g.kinds, k), append(b.g.refs, ref), append(b.g.grades, grade)
	return v
}

// space makes the vertices of a tree's atoms and of the segment tree above those that are alive.
func (b *builder) space(k kind, n int, alive []bool) space {
	s := space{size: 1, used: true}
	if n > 1 {
		s.size = int32(1) << bits.Len(uint(n-1))
	}
	s.atoms = int32(len(b.g.kinds))
	for i := range n {
		b.vertex(k, int32(i), Plain)
	}
	s.inner = int32(len(b.g.kinds))
	for range s.size - 1 {
		b.vertex(kindInner, 0, Plain)
	}
	s.alive = make([]bool, 2*s.size)
	copy(s.alive[s.size:], alive)
	for i := s.size - 1; i >= 1; i-- {
		s.alive[i] = s.alive[2*i] || s.alive[2*i+1]
		for _, child := range []int32{2 * i, 2*i + 1} {
			if s.alive[child] {
				b.edges.add(s.vertex(i), s.vertex(child))
			}
		}
	}
	return s
}

// vertex is that of a node of the segment tree.
func (s *space) vertex(node int32) int32 {
	if node >= s.size {
		return s.atoms + node - s.size
	}
	return s.inner + node - 1
}

// cover appends the vertices below which are the atoms of an interval that are alive, and no others.
func (s *space) cover(out []int32, i interval) []int32 {
	for l, r := i.from+s.size, i.to+s.size; l < r; l, r = l/2, r/2 {
		if l&1 == 1 {
			if s.alive[l] {
				out = append(out, s.vertex(l))
			}
			l++
		}
		if r&1 == 1 {
			r--
			if s.alive[r] {
				out = append(out, s.vertex(r))
			}
		}
	}
	return out
}
