package reach

import (
	"errors"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// Names are identities and secrets that an environment knows beside its bundle: members of families, which then are told apart.
type Names struct{ Identities, Secrets []string }

// Costs are what it takes to compromise a principal, in any unit. 0 stands for 1.
type Costs struct{ Node, Job, Workload, Person int }

func (c Costs) of(kind string) int {
	return max(1, map[string]int{KindNode: c.Node, KindJob: c.Job, KindWorkload: c.Workload, KindPerson: c.Person}[kind])
}

// Options are how a question is answered.
type Options struct {
	// Worst is the worst grade of ways that count. The zero value is Plain: ask for Poisoning to see all.
	Worst Grade
	// Most is how many answers a list has at most; 0: 1000.
	Most  int
	Costs Costs
	// Recovery has From and Cut begin also where as many holders of recovery keys as it takes are compromised together.
	Recovery bool
}

func (o Options) most() int {
	if o.Most <= 0 {
		return defaultMost
	}
	return min(o.Most, maxMost)
}

// Target is what somebody wants to get at. One of the three is set.
type Target struct {
	Secrets    identity.Pattern // any value of these
	Identities identity.Pattern // to pass for any of these
	System     string
}

const systemPrefix = "system:"

// ParseTarget reads a target: a pattern of secrets, a pattern of identities, which begins with '/', or system:NAME.
func ParseTarget(s string) (Target, error) {
	var t Target
	var err error
	name, system := strings.CutPrefix(s, systemPrefix)
	switch {
	case system:
		if t.System = name; name == "" {
			err = errors.New("the name of a system is empty")
		}
	case strings.HasPrefix(s, "/"):
		t.Identities, err = identity.ParseIDPattern(s)
	default:
		t.Secrets, err = identity.ParseSecretPattern(s)
	}
	if err != nil {
		return t, problem.Wrap(err, problem.ReasonInvalid, "the target").WithFix("name secrets (db/prod/*), identities (/workload/*), or a system (system:NAME)")
	}
	return t, nil
}

// String is the text that the target was parsed from.
func (t Target) String() string {
	if t.System != "" {
		return systemPrefix + t.System
	}
	return t.Identities.String() + t.Secrets.String()
}

// about adds the target's patterns to what a graph is built for.
func (t Target) about(a about) about {
	if s := t.Secrets.String(); s != "" {
		a.secrets = append(a.secrets, t.Secrets)
	}
	if s := t.Identities.String(); s != "" {
		a.identities = append(a.identities, t.Identities)
	}
	return a
}

// vertices are those of a target that there can be.
func (g *graph) vertices(t Target) ([]int32, error) {
	switch {
	case t.System != "":
		if i := g.systemNumber(t.System); i >= 0 {
			return []int32{g.system + i}, nil
		}
		return nil, problem.New(problem.ReasonNotFound, "no secret unlocks a system %.80q", t.System).WithFix("systems have the names that secrets' unlocks give them")
	case t.Identities.String() != "":
		return g.identities(t.Identities)
	}
	return g.secretsOf(kindValue, t.Secrets)
}

// identities are the vertices of those whom a pattern selects.
func (g *graph) identities(p identity.Pattern) ([]int32, error) {
	at, _ := g.ids.at(p)
	var out []int32
	for i := at; i < g.ids.end[at]; i++ {
		if g.live[i] {
			out = append(out, g.thing(kindIdentity, i))
		}
	}
	if len(out) == 0 {
		return nil, problem.New(problem.ReasonNotFound, "nobody can be %s by this bundle", p).WithFix("identities come from identities/ and operators.yaml")
	}
	return out, nil
}

func (g *graph) secretsOf(k kind, p identity.Pattern) ([]int32, error) {
	at, _ := g.secrets.at(p)
	var out []int32
	for i := at; i < g.secrets.end[at]; i++ {
		if g.layer(k).alive[g.layer(k).size+i] {
			out = append(out, g.thing(k, i))
		}
	}
	if len(out) == 0 {
		return nil, notDeclared(p)
	}
	return out, nil
}

func notDeclared(p identity.Pattern) error {
	return problem.New(problem.ReasonNotFound, "no secret that is %s is declared in this bundle, and no grant is about any", p).WithFix("secrets are declared in secrets/")
}

// declares reports whether the bundle declares any secret of a pattern.
func (g *graph) declares(p identity.Pattern) bool {
	at, _ := g.secrets.at(p)
	return slices.ContainsFunc(g.declared[at:g.secrets.end[at]], func(d int32) bool { return d >= 0 })
}

func kindOfIdentity(path string) string {
	switch {
	case strings.HasPrefix(path, identity.PrefixNode):
		return KindNode
	case strings.HasPrefix(path, identity.PrefixCI):
		return KindJob
	case strings.HasPrefix(path, identity.PrefixHuman):
		return KindPerson
	}
	return KindWorkload
}

// Model answers questions about a program. It is safe for concurrent use: each question builds the graph that it needs.
type Model struct {
	program *policy.Program
	names   Names
}

// New makes a model of a program and of names that are known beside it.
func New(p *policy.Program, names Names) *Model { return &Model{p, names} }

// Proves is the most that the evidence of an identity can prove, and whether anybody can be it.
func (m *Model) Proves(path string) (identity.Assurance, bool, error) {
	p, err := identity.ParseIDPattern(path)
	if err != nil {
		return 0, false, problem.Wrap(err, problem.ReasonInvalid, "the identity")
	}
	g, err := build(m.program, m.names, about{identities: []identity.Pattern{p}})
	if err != nil {
		return 0, false, err
	}
	at, _ := g.ids.at(p)
	return g.most[at], g.live[at], nil
}
