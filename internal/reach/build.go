package reach

import (
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// about is what a graph is built for, beside the bundle's own patterns.
type about struct {
	identities, secrets []identity.Pattern
	asked               policy.Action // a third action; "" for none
	poisoning           bool
	anyOperator         bool // each one of a quorum counts as if he were it
}

// builder makes a graph.
type builder struct {
	g      *graph
	about  about
	names  Names
	edges  edges
	grants []policy.Grant
	rules  []policy.IdentityRule

	byIdentity map[int32][]right // allow grants, by the position of their identity pattern
	bySecret   map[int32][]right // those for reading, by the position of their secret pattern
	idDenies   denials
	secDenies  denials // those of reading
	groups     map[group][]level
	members    map[int32]int32 // by position of a node pattern: the vertex behind all nodes that it selects
	admitted   []admission
	byAct      map[string][]right // allow grants that give nothing without an act
	work       int                // comparisons
}

// right is one pair of patterns of an allow grant.
type right struct {
	grant            int32
	identity, secret int32
	layer            kind // what it leads to
}

// group is those that a pattern selects and the same deny grants concern.
type group struct{ pattern, class int32 }

// level is the vertex of a group's members whose evidence proves at least so much.
type level struct {
	assurance identity.Assurance
	vertex    int32
}

// denials are deny grants by one side's patterns.
type denials struct {
	at    map[int32][]denial
	class []int32            // of a position: the deepest pattern around it with a denial, or -1
	chain map[int32][]denial // of a class: those of all patterns around it
}

type denial struct {
	grant *policy.Grant
	other interval // on the other side
}

// admission is a rule whose identities come with join tokens.
type admission struct {
	rule  policy.IdentityRule
	atoms []int32
}

var (
	everybody  = must(identity.ParseIDPattern("/*"))
	allNodes   = must(identity.ParseIDPattern(identity.PrefixNode + "*"))
	everything = must(identity.ParseSecretPattern("*"))
)

func must(p identity.Pattern, err error) identity.Pattern {
	if err != nil {
		panic("reach: " + err.Error()) // constants
	}
	return p
}

// build makes the graph of a program.
func build(p *policy.Program, names Names, a about) (*graph, error) {
	b, err := newBuilder(p, names, a)
	if err != nil {
		return nil, err
	}
	b.all()
	if b.edges.over {
		return nil, tooMuch("12000000 edges, 1000000 lines or 200000000 comparisons")
	}
	n := len(b.g.kinds)
	b.g.out, b.g.in = arrange(n, b.edges.from, b.edges.to), arrange(n, b.edges.to, b.edges.from)
	return b.g, nil
}

func newBuilder(p *policy.Program, names Names, a about) (*builder, error) {
	if len(names.Identities)+len(names.Secrets) > maxNames {
		return nil, tooMuch("the names of 200000 identities and secrets")
	}
	b := &builder{
		g: &graph{program: p, secretList: p.Secrets()}, about: a, names: names, grants: p.Grants(), rules: p.IdentityRules(),
		byIdentity: map[int32][]right{}, byAct: map[string][]right{}, bySecret: map[int32][]right{}, groups: map[group][]level{}, members: map[int32]int32{},
	}
	if err := b.trees(names); err != nil {
		return nil, err
	}
	return b, nil
}

// all adds what the program says, as far as it may be.
func (b *builder) all() {
	b.declarations()
	b.people()
	b.spaces()
	b.rights()
	b.speakers()
	b.permissions()
	b.unlocks()
	b.duties()
	b.acts()
}

// trees gathers the patterns.
func (b *builder) trees(names Names) error {
	ids := append([]identity.Pattern{everybody, allNodes}, b.about.identities...)
	secrets := append([]identity.Pattern{everything}, b.about.secrets...)
	for i := range b.grants {
		ids, secrets = append(ids, b.grants[i].Identities...), append(secrets, b.grants[i].Secrets...)
	}
	for _, r := range b.rules {
		ids = append(ids, r.Nodes...)
		if family, ok := r.Within(everybody); ok {
			ids = append(ids, family)
		}
	}
	for _, o := range b.g.program.Operators() {
		ids = append(ids, must(identity.ParseIDPattern(o.Path())))
	}
	for _, s := range b.g.secretList {
		secrets = append(secrets, s.Pattern)
		for _, u := range s.Unlocks {
			switch {
			case u.Identity != "":
				ids = append(ids, must(identity.ParseIDPattern(u.Identity)))
			case u.System == "":
				ids = append(ids, u.Deploy)
			}
		}
	}
	for _, name := range names.Identities {
		p, err := identity.ParseIDPattern(name)
		if err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "the name of an identity")
		}
		ids = append(ids, p)
	}
	for _, name := range names.Secrets {
		p, err := identity.ParseSecretPattern(name)
		if err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "the name of a secret")
		}
		secrets = append(secrets, p)
	}
	b.g.ids, b.g.secrets = newTree(ids), newTree(secrets)
	return nil
}

// declarations finds which secrets there can be: those that are declared. What is not declared may be there from an earlier bundle, and is
// read, listed, promoted and destroyed by whoever has a grant for it; so it counts where the question is about it by name.
func (b *builder) declarations() {
	t := b.g.secrets
	b.g.declared = make([]int32, t.len())
	b.g.there = make([]bool, t.len())
	granted, meant := make([]bool, t.len()), make([]bool, t.len())
	for _, g := range b.grants {
		for _, p := range g.Secrets {
			if at, ok := t.at(p); ok && g.Effect == policy.Allow {
				granted[at] = true
			}
		}
	}
	for _, p := range b.about.secrets {
		if at, ok := t.at(p); ok {
			meant[at] = true
		}
	}
	for _, name := range b.names.Secrets {
		if at, ok := t.exact[name]; ok {
			meant[at] = true
		}
	}
	for i := range b.g.declared {
		b.g.declared[i] = -1
		if t.parent[i] >= 0 {
			b.g.declared[i] = b.g.declared[t.parent[i]]
		}
		if at, ok := slices.BinarySearchFunc(b.g.secretList, t.patterns[i].String(), func(s policy.Secret, name string) int { return strings.Compare(s.Pattern.String(), name) }); ok {
			b.g.declared[i] = int32(at)
		}
		if up := t.parent[i]; up >= 0 {
			granted[i], meant[i] = granted[i] || granted[up], meant[i] || meant[up]
		}
		b.g.there[i] = b.g.declared[i] >= 0 || granted[i] && meant[i]
	}
}

// people finds who there can be, and what each one's evidence proves at most.
func (b *builder) people() {
	g, t := b.g, b.g.ids
	g.live, g.most = make([]bool, t.len()), make([]identity.Assurance, t.len())
	be := func(i int32, most identity.Assurance) {
		g.live[i], g.most[i] = true, max(g.most[i], most)
	}
	for _, r := range b.rules {
		if r.Method == policy.MethodWorkload {
			continue
		}
		family, ok := r.Within(everybody)
		if !ok {
			continue
		}
		around, _ := t.at(family)
		var atoms []int32
		for i := around; i < t.end[around]; i++ {
			if narrow, ok := r.Within(t.patterns[i]); ok && t.around(narrow) == i {
				be(i, policy.MostAssurance(r.Method))
				atoms = append(atoms, i)
			}
		}
		if r.Method == joinToken {
			b.admitted = append(b.admitted, admission{r, atoms})
		}
	}
	// A workload proves what its node does.
	nodes, _ := t.at(allNodes)
	best := map[int32]identity.Assurance{}
	for i := nodes; i < t.end[nodes]; i++ {
		for a := i; g.live[i] && a >= 0; a = t.parent[a] {
			best[a] = max(best[a], g.most[i])
		}
	}
	for _, r := range b.rules {
		if r.Method != policy.MethodWorkload {
			continue
		}
		i, _ := t.exact[r.Path]
		for _, n := range r.Nodes {
			at, _ := t.at(n)
			if most, some := best[at]; some {
				be(i, most)
			}
		}
	}
	for _, o := range g.program.Operators() {
		be(t.exact[o.Path()], policy.OperatorAssurance)
	}
}

const joinToken = "join-token"

func (b *builder) spaces() {
	g := b.g
	g.idSpace = b.space(kindIdentity, g.ids.len(), g.live)
	declared := make([]bool, g.secrets.len())
	for i, d := range g.declared {
		declared[i] = d >= 0
	}
	*g.layer(kindValue) = b.space(kindValue, g.secrets.len(), g.there)
	*g.layer(kindWritable) = b.space(kindWritable, g.secrets.len(), declared) // the server makes no version of another
	switch b.about.asked {
	case "":
	case policy.GenerateSecret:
		*g.layer(kindAsked) = b.space(kindAsked, g.secrets.len(), declared)
	default:
		*g.layer(kindAsked) = b.space(kindAsked, g.secrets.len(), g.there)
	}
	number := map[string]int32{}
	for _, s := range g.secretList {
		for _, u := range s.Unlocks {
			if _, ok := number[u.System]; u.System != "" && !ok {
				number[u.System] = 0
				g.systems = append(g.systems, u.System)
			}
		}
	}
	slices.Sort(g.systems)
	g.system = int32(len(g.kinds))
	for i := range g.systems {
		b.vertex(kindSystem, int32(i), Plain)
	}
	g.bundle = b.vertex(kindBundle, 0, Plain)
}

// leadsTo is what an action gives, if this graph is about it.
func (b *builder) leadsTo(a policy.Action) (kind, bool) {
	switch a {
	case policy.ReadSecret:
		return kindValue, true
	case policy.WriteSecret:
		return kindWritable, true
	}
	return kindAsked, a == b.about.asked
}

// rights sorts the grants by the patterns of both sides.
func (b *builder) rights() {
	ids, secrets := b.g.ids, b.g.secrets
	b.idDenies, b.secDenies = denials{at: map[int32][]denial{}}, denials{at: map[int32][]denial{}}
	for i := range b.grants {
		g := &b.grants[i]
		for _, ip := range g.Identities {
			at, _ := ids.at(ip)
			for _, sp := range g.Secrets {
				s, _ := secrets.at(sp)
				if g.Effect == policy.Deny {
					b.idDenies.at[at] = append(b.idDenies.at[at], denial{g, secrets.interval(s)})
					if slices.Contains(g.Actions, policy.ReadSecret) {
						b.secDenies.at[s] = append(b.secDenies.at[s], denial{g, ids.interval(at)})
					}
					continue
				}
				for _, a := range g.Actions {
					if k, ok := b.leadsTo(a); ok {
						r := right{int32(i), at, s, k}
						if act := takes(b.g.program.Environment(), g, a); act != "" {
							b.byAct[act] = append(b.byAct[act], r)
						} else {
							b.byIdentity[at] = append(b.byIdentity[at], r)
						}
						if k == kindValue && b.about.poisoning {
							b.bySecret[s] = append(b.bySecret[s], r)
						}
					}
				}
			}
		}
	}
	b.idDenies.classify(ids)
	b.secDenies.classify(secrets)
}

func (d *denials) classify(t *tree) {
	d.class, d.chain = make([]int32, t.len()), map[int32][]denial{-1: nil}
	for i := range d.class {
		class := int32(-1)
		if t.parent[i] >= 0 {
			class = d.class[t.parent[i]]
		}
		if own := d.at[int32(i)]; len(own) > 0 {
			d.chain[int32(i)] = slices.Concat(d.chain[class], own)
			class = int32(i)
		}
		d.class[i] = class
	}
}

// actionOf is what a right permits.
func (b *builder) actionOf(r right) policy.Action {
	switch r.layer {
	case kindValue:
		return policy.ReadSecret
	case kindWritable:
		return policy.WriteSecret
	}
	return b.about.asked
}

// left is what deny grants leave of a right for those whom all of them concern: without condition, and where one decides; and which.
func (b *builder) left(r right, of interval, denied []denial) (open, maybe []interval, unless []string) {
	g, action := &b.grants[r.grant], b.actionOf(r)
	if b.work += 1 + len(denied)*max(1, len(g.Purposes)); b.work > maxWork || len(b.g.lines) > maxLines {
		b.edges.over = true
		return nil, nil, nil
	}
	var relevant []denial
	byPurpose := false
	for _, d := range denied {
		if d.other.to <= of.from || d.other.from >= of.to || !slices.Contains(d.grant.Actions, action) {
			continue
		}
		relevant = append(relevant, d)
		byPurpose = byPurpose || action == policy.ReadSecret && len(d.grant.Purposes) > 0
	}
	if len(relevant) == 0 {
		return []interval{of}, nil, nil
	}
	purposes := []string{""}
	if byPurpose {
		purposes = g.Purposes
	}
	var rest []interval
	for _, purpose := range purposes {
		var away, doubtful []interval
		away, doubtful, unless = denies(relevant, purpose, unless)
		here := minus(of, away)
		rest = append(rest, here...)
		open = append(open, without(here, doubtful)...)
	}
	open = joined(open)
	return open, without(joined(rest), open), unless
}

// denies is what deny grants about an action take away for a purpose ("" where there is none), and what they may; with their conditions.
func denies(relevant []denial, purpose string, unless []string) (away, doubtful []interval, _ []string) {
	for _, d := range relevant {
		switch {
		case len(d.grant.Purposes) > 0 && purpose != "" && !slices.Contains(d.grant.Purposes, purpose):
		case d.grant.When == "":
			away = append(away, d.other)
		default:
			doubtful = append(doubtful, d.other)
			if text := "unless " + d.grant.Name + " denies it: " + oneLine(d.grant.When); !slices.Contains(unless, text) {
				unless = append(unless, text)
			}
		}
	}
	return away, doubtful, unless
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// permissions adds the hops by grants. The lines of a pattern are added once for each group of those whom it selects.
func (b *builder) permissions() {
	g := b.g
	for i, ok := range g.live {
		for a := int32(i); ok && a >= 0 && !b.edges.over; a = g.ids.parent[a] {
			if len(b.byIdentity[a]) > 0 {
				b.join(g.thing(kindIdentity, int32(i)), group{a, b.idDenies.class[i]}, g.most[i])
			}
		}
	}
	if !b.about.poisoning {
		return
	}
	readers := map[group]int32{}
	for i, d := range g.declared {
		for a := int32(i); d >= 0 && a >= 0 && !b.edges.over; a = g.secrets.parent[a] {
			if len(b.bySecret[a]) > 0 {
				b.poison(readers, g.thing(kindWritable, int32(i)), group{a, b.secDenies.class[i]})
			}
		}
	}
}

// join puts an identity into a group, which is made if it is the first.
func (b *builder) join(from int32, at group, most identity.Assurance) {
	levels, ok := b.groups[at]
	if !ok {
		levels = b.groupLines(at)
		b.groups[at] = levels
	}
	for _, l := range slices.Backward(levels) {
		if most.AtLeast(l.assurance) {
			b.edges.add(from, l.vertex)
			return
		}
	}
}

func (b *builder) groupLines(at group) []level {
	var levels []level
	for a := identity.Unbound; a <= identity.Measured; a++ {
		if !slices.ContainsFunc(b.byIdentity[at.pattern], func(r right) bool { return b.grants[r.grant].Assurance == a }) {
			continue
		}
		v := b.vertex(kindInner, 0, Plain)
		if n := len(levels); n > 0 {
			b.edges.add(v, levels[n-1].vertex)
		}
		levels = append(levels, level{a, v})
	}
	for _, r := range b.byIdentity[at.pattern] {
		g := &b.grants[r.grant]
		i := slices.IndexFunc(levels, func(l level) bool { return l.assurance == g.Assurance })
		b.right(levels[i].vertex, r, b.g.ids.patterns[r.identity].String(), b.idDenies.chain[at.class])
		if b.edges.over {
			break
		}
	}
	return levels
}

// right adds the line of a right, from a vertex of somebody whom these deny grants concern.
func (b *builder) right(from int32, r right, who string, denied []denial) {
	g := &b.grants[r.grant]
	hop := map[kind]Hop{kindValue: Reads, kindWritable: Writes, kindAsked: Does}[r.layer]
	open, maybe, unless := b.left(r, b.g.secrets.interval(r.secret), denied)
	l := line{hop: hop, rule: g.Name, from: who, to: b.g.secrets.patterns[r.secret].String(), source: g.Source}
	b.line(from, l, g.When, Plain, b.g.layer(r.layer), open, maybe, unless)
}

// poison lets whoever can write a secret at its readers.
func (b *builder) poison(made map[group]int32, from int32, at group) {
	v, ok := made[at]
	if !ok {
		v = b.vertex(kindInner, 0, Plain)
		made[at] = v
		for _, r := range b.bySecret[at.pattern] {
			g := &b.grants[r.grant]
			open, maybe, unless := b.left(r, b.g.ids.interval(r.identity), b.secDenies.chain[at.class])
			l := line{hop: Poisons, rule: g.Name, from: b.g.secrets.patterns[r.secret].String(), to: b.g.ids.patterns[r.identity].String(), source: g.Source}
			b.line(v, l, g.When, Poisoning, &b.g.idSpace, open, maybe, unless)
			if b.edges.over {
				break
			}
		}
	}
	b.edges.add(from, v)
}

// line adds a line from a vertex to what is open by it and to what may be, as far as there is anything.
func (b *builder) line(from int32, l line, when string, grade Grade, s *space, open, maybe []interval, unless []string) {
	var sure, unsure []int32
	for _, i := range open {
		sure = s.cover(sure, i)
	}
	for _, i := range maybe {
		unsure = s.cover(unsure, i)
	}
	if len(sure)+len(unsure) == 0 {
		return
	}
	if when != "" {
		l.conditions, grade = []string{"if " + oneLine(when)}, max(grade, Conditional)
	}
	number := int32(len(b.g.lines))
	b.g.lines = append(b.g.lines, l)
	v := b.vertex(kindLine, number, grade)
	b.edges.add(from, v)
	for _, to := range sure {
		b.edges.add(v, to)
	}
	if len(unsure) == 0 {
		return
	}
	l.conditions = slices.Concat(l.conditions, unless)
	b.g.lines = append(b.g.lines, l)
	part := b.vertex(kindPart, number+1, max(grade, Conditional))
	b.edges.add(v, part)
	for _, to := range unsure {
		b.edges.add(part, to)
	}
}

// single adds a line to one vertex.
func (b *builder) single(from int32, l line, to int32) {
	grade := Plain
	if len(l.conditions) > 0 {
		grade = Conditional
	}
	v := b.vertex(kindLine, int32(len(b.g.lines)), grade)
	b.g.lines = append(b.g.lines, l)
	b.edges.add(from, v)
	b.edges.add(v, to)
}
