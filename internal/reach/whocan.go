package reach

import (
	"cmp"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// Access is one line of a bundle by which somebody gets to do what was asked about.
type Access struct {
	Who     Thing  `json:"who"`     // an identity, or the pattern that the line names
	Members int    `json:"members"` // how many identities and families that is, without those whom deny grants or assurance leave out; of persons together, how many it takes
	Direct  bool   `json:"direct"`  // in one hop
	Grade   Grade  `json:"grade"`
	Hops    int    `json:"hops"`
	Way     []Step `json:"way"`
	v       int32
}

// Accesses is the answer of WhoCan.
type Accesses struct {
	Action  policy.Action `json:"action"`
	Secrets string        `json:"secrets"`
	Ways    []Access      `json:"ways"`  // the direct ones first, then by grade, hops and name
	Total   int           `json:"total"` // of which Ways are the first
	// Undeclared: the bundle declares none of the secrets. A value can be there from an earlier one.
	Undeclared bool `json:"undeclared,omitempty"`
}

// WhoCan lists the lines by which somebody gets to do an action with any of the secrets: the grants for it, and whatever leads to those
// who have them, or to their values.
func (m *Model) WhoCan(action policy.Action, secrets identity.Pattern, o Options) (*Accesses, error) {
	a := about{secrets: []identity.Pattern{secrets}, poisoning: o.Worst >= Poisoning}
	k := kindValue
	switch action {
	case policy.ReadSecret:
	case policy.WriteSecret:
		k = kindWritable
	default:
		a.asked, k = action, kindAsked
	}
	g, err := build(m.program, m.names, a)
	if err != nil {
		return nil, err
	}
	targets, err := g.secretsOf(k, secrets)
	if err != nil {
		return nil, err
	}
	back := g.explore(targets, true, within{grade: o.Worst})
	ways := g.accesses(back)
	undeclared := !g.declares(secrets)
	if undeclared && len(ways) == 0 {
		return nil, notDeclared(secrets)
	}
	ways = append(ways, g.jointly(back)...)
	for i := range ways {
		ways[i].Direct = ways[i].Hops == 1 // nothing is nearer than a grant, and the lines of other things don't end there
	}
	slices.SortStableFunc(ways, func(x, y Access) int {
		direct := func(a Access) int {
			if a.Direct {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(direct(x), direct(y)), cmp.Compare(x.Grade, y.Grade), cmp.Compare(x.Hops, y.Hops), strings.Compare(x.Who.Name, y.Who.Name), cmp.Compare(g.refs[x.v], g.refs[y.v]))
	})
	out := &Accesses{Action: action, Secrets: secrets.String(), Ways: []Access{}, Total: len(ways), Undeclared: undeclared}
	out.Ways = append(out.Ways, listed(ways, o, func(a *Access) []Step {
		if k := g.kinds[a.v]; k == kindLine || k == kindHolders {
			a.Way = g.steps(a.Who, back.vertices(a.v))
			return a.Way
		}
		a.Way = append([]Step{agrees(a.Who, g.name(a.v))}, back.way(a.v)...)
		return a.Way
	})...)
	return out, nil
}

// accesses are the lines that begin with an identity and that a backward search has found.
func (g *graph) accesses(back *search) []Access {
	type key struct {
		hop            Hop
		rule, from, to string
	}
	at := map[key]int{}
	var out []Access
	members := map[int32]int{}
	for v := range g.kinds {
		v := int32(v)
		if g.kinds[v] != kindLine || !back.found(v) {
			continue
		}
		l := &g.lines[g.refs[v]]
		switch l.hop {
		case Poisons, Unlocks, Deploys, Rewrites, Gives, Recovers:
			continue
		}
		n := 0
		for _, from := range g.in.of(v) {
			n += g.behind(members, from)
		}
		if n == 0 {
			continue
		}
		who := Thing{kindOfIdentity(l.from), l.from}
		a := Access{Who: who, Members: n, Grade: back.grade[v], Hops: int(back.hops[v]), v: v}
		k := key{l.hop, l.rule, l.from, l.to}
		i, ok := at[k]
		switch {
		case !ok:
			at[k] = len(out)
			out = append(out, a)
		case a.Grade > out[i].Grade || a.Grade == out[i].Grade && a.Hops >= out[i].Hops:
			out[i].Members += n
			continue
		default:
			a.Members += out[i].Members
			out[i] = a
		}
	}
	return out
}

// jointly are the acts that a backward search has found and that somebody has a part in who can't do them alone, and the recovery.
func (g *graph) jointly(back *search) []Access {
	var out []Access
	for _, q := range g.quorums {
		if back.found(q.vertex) && !q.alone() {
			out = append(out, Access{Who: q.together(), Members: q.approvals + 1, Grade: back.grade[q.vertex], Hops: int(back.hops[q.vertex]) + 1, v: q.vertex})
		}
	}
	if h := g.holders; h >= 0 && back.found(h) {
		out = append(out, Access{Who: g.name(h), Members: g.program.Environment().Recovery.Required, Grade: back.grade[h], Hops: int(back.hops[h]), v: h})
	}
	return out
}

// behind counts the identities whose edges lead to a vertex over nothing else.
func (g *graph) behind(known map[int32]int, v int32) int {
	switch g.kinds[v] {
	case kindIdentity:
		return 1
	case kindInner:
	default:
		return 0
	}
	if n, ok := known[v]; ok {
		return n
	}
	known[v] = 0
	n := 0
	for _, from := range g.in.of(v) {
		n += g.behind(known, from)
	}
	known[v] = n
	return n
}
