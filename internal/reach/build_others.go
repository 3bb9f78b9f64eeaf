package reach

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/policy"
)

// speakers adds the hops from nodes to the workloads that they speak for.
func (b *builder) speakers() {
	g := b.g
	for _, r := range b.rules {
		if r.Method != policy.MethodWorkload {
			continue
		}
		i := g.ids.exact[r.Path]
		if !g.live[i] {
			continue
		}
		for _, n := range r.Nodes {
			if n == everybody {
				n = allNodes
			}
			at, _ := g.ids.at(n)
			v, ok := b.members[at]
			if !ok {
				v = b.vertex(kindInner, 0, Plain)
				b.members[at] = v
			}
			l := line{hop: Speaks, rule: r.Name, from: n.String(), to: r.Path, source: r.Source}
			if strings.Contains(r.When, "node.path") {
				l.conditions = []string{"if " + oneLine(r.When)}
			}
			b.single(v, l, g.thing(kindIdentity, i))
		}
	}
	nodes, _ := g.ids.at(allNodes)
	for i := nodes; i < g.ids.end[nodes]; i++ {
		for a := i; g.live[i] && a >= 0; a = g.ids.parent[a] {
			if v, ok := b.members[a]; ok {
				b.edges.add(g.thing(kindIdentity, i), v)
			}
		}
	}
}

// unlocks adds the hops from values to what they open.
func (b *builder) unlocks() {
	g := b.g
	declared := make([]int32, len(g.secretList))
	for i, s := range g.secretList {
		if len(s.Unlocks) == 0 {
			continue
		}
		v := b.vertex(kindInner, 0, Plain)
		declared[i] = v
		for _, u := range s.Unlocks {
			l := line{hop: Unlocks, rule: s.Pattern.String(), from: s.Pattern.String(), source: u.Source}
			switch {
			case u.System != "":
				l.to = u.System
				b.single(v, l, g.system+g.systemNumber(u.System))
			case u.Identity != "":
				l.to = u.Identity
				if at := g.ids.exact[u.Identity]; g.live[at] {
					b.single(v, l, g.thing(kindIdentity, at))
				}
			default:
				l.hop, l.to = Deploys, u.Deploy.String()
				at, _ := g.ids.at(u.Deploy)
				b.line(v, l, "", Plain, &g.idSpace, []interval{g.ids.interval(at)}, nil, nil)
			}
		}
	}
	for i, d := range g.declared {
		if d >= 0 && declared[d] != 0 {
			b.edges.add(g.thing(kindValue, int32(i)), declared[d])
		}
	}
}

// systemNumber is a system's place, or -1.
func (g *graph) systemNumber(name string) int32 {
	if i, ok := slices.BinarySearch(g.systems, name); ok {
		return int32(i)
	}
	return -1
}

// duties adds what operators can do by a duty alone, and that the bundle changes everything.
func (b *builder) duties() {
	g := b.g
	whole := b.vertex(kindLine, int32(len(g.lines)), Plain)
	g.lines = append(g.lines, line{hop: Rewrites, rule: "environment", from: theBundle, to: "*", source: environmentFile})
	b.edges.add(g.bundle, whole)
	for _, v := range g.idSpace.cover(nil, g.ids.all()) {
		b.edges.add(whole, v)
	}
	for i := range g.layers {
		if s := &g.layers[i]; s.used {
			for _, v := range s.cover(nil, g.secrets.all()) {
				b.edges.add(whole, v)
			}
		}
	}
	tokens := make([]int32, len(b.admitted))
	for i, a := range b.admitted {
		tokens[i] = b.vertex(kindInner, 0, Plain)
		for _, atom := range a.atoms {
			b.edges.add(tokens[i], g.thing(kindIdentity, atom))
		}
	}
	for _, o := range g.program.Operators() {
		if !o.Has(policy.DutyAdmit) {
			continue
		}
		for i, a := range b.admitted {
			l := line{hop: Admits, rule: string(policy.DutyAdmit), from: o.Path(), to: a.rule.Path, source: operatorsFile}
			if a.rule.When != "" {
				l.conditions = []string{"if " + oneLine(a.rule.When)}
			}
			b.single(g.operator(o.Name), l, tokens[i])
		}
	}
}
