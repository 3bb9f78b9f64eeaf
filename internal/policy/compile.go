package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spelling"
)

// compiler turns the documents of a bundle into a Program, and collects everything that is wrong.
type compiler struct {
	found    collector
	accepted bool // rules are not asked again that only ask for prudence
	program  *Program
	env      *environmentSpec

	byKind map[string][]*document
	// What grants may refer to. They hold what was declared, even where the declaration has
	// findings of its own, so that one mistake is not reported many times.
	workloads map[string]bool
	humans    map[string]bool
	// Without a readable operators.yaml nothing can be said about persons.
	humansKnown bool
	named       map[string]bool // secrets
	templates   []template      // of nodes and jobs
	rootSets    map[string]*authority.Set
	pairs       int
	grantScope  *scope
	ruleScope   *scope
	tried       int // bytes of conditions, times the examples of branches that they were tried on
}

// Compile checks everything that a bundle says, and makes the program that decides by it. The
// error is a problem of reason bundle-invalid, whose cause (errors.As) are the Findings.
func Compile(b *Bundle) (*Program, error) { return compile(b, false) }

// CompileAccepted compiles a bundle that came into force once, maybe by an older release: what would only be imprudent (advise) is no
// finding. Else a release that looks closer could not open an environment, or audit its past, until what it objects to was changed, which
// takes opening it. The program is the one that Compile makes.
func CompileAccepted(b *Bundle) (*Program, error) { return compile(b, true) }

func compile(b *Bundle, accepted bool) (*Program, error) {
	c := &compiler{
		accepted:  accepted,
		found:     collector{list: slices.Clone(b.found), overflow: b.partial},
		byKind:    map[string][]*document{},
		workloads: map[string]bool{},
		humans:    map[string]bool{},
		named:     map[string]bool{},
		program: &Program{
			byKey: map[string]int{}, exact: map[string]int{}, families: map[string]int{},
			byWorkload: map[string][]int{}, index: newGrantIndex(),
		},
	}
	var err error
	if c.grantScope, err = grantScope(); err == nil {
		c.ruleScope, err = identityScope()
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "compiling the bundle")
	}
	if b.partial {
		// What was not read would look as if it was not declared.
		return nil, invalid(c.found.findings())
	}
	for _, d := range b.docs {
		c.byKind[d.kind] = append(c.byKind[d.kind], d)
	}
	for _, kind := range []string{kindAuthority, kindIdentity, kindGrant, kindSecret, kindFederation, kindRollout, kindTest} {
		c.uniqueNames(c.byKind[kind])
	}
	c.environment()
	c.authorityDocuments()
	c.operators()
	c.secrets()
	c.federations()
	c.identities()
	c.unlocks()
	c.grants()
	c.glassHeld()
	c.rollouts()
	c.tests()
	if list := c.found.findings(); len(list) > 0 {
		return nil, invalid(list)
	}
	c.program.sources = sourcesOf(b.files)
	return c.program, nil
}

// advise finds what has a meaning that can be carried out, and that nobody can have wanted.
func (c *compiler) advise(at Pos, format string, args ...any) {
	if !c.accepted {
		c.found.add(at, format, args...)
	}
}

// nobody finds what names a person who is no operator. A bundle that came into force by a recovery may: it is for nobody then, and else
// stays as it was.
func (c *compiler) nobody(at Pos, format string, args ...any) {
	if !c.accepted {
		c.found.add(at, format, args...)
		return
	}
	c.program.orphans++
}

// each calls fn for every document of a kind that was read whole. It stops when no more findings
// would be kept, so that a bundle full of mistakes costs no more than one with a hundred.
func (c *compiler) each(kind string, fn func(d *document)) {
	for _, d := range c.byKind[kind] {
		if c.found.full() {
			c.found.overflow = true
			return
		}
		if d.whole {
			fn(d)
		}
	}
}

func (c *compiler) uniqueNames(docs []*document) {
	first := map[string]Pos{}
	for _, d := range docs {
		if !d.name.set {
			continue
		}
		if at, twice := first[d.name.value]; twice {
			c.found.add(d.name.at, "the name %q is taken by another %s: %s", d.name.value, d.kind, at)
			d.whole = false
			continue
		}
		first[d.name.value] = d.name.at
		if d.kind != kindSecret && !validName(d.name.value) {
			c.found.add(d.name.at, "the name %q must be 1 to 63 of a-z, 0-9, '-' and '.', and begin with a letter or digit", d.name.value)
			d.whole = false
		}
	}
}

func validName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || i > 0 && (c == '-' || c == '.')) {
			return false
		}
	}
	return true
}

// ValidPurpose says what is wrong with a purpose, or nil: [a-z][a-z0-9-]{0,62}.
func ValidPurpose(s string) error { return validWord("purpose", s) }

// ValidPerson says what is wrong with a person's name, or nil: [a-z][a-z0-9-]{0,62}.
func ValidPerson(s string) error { return validWord("name", s) }

func validWord(what, s string) error {
	ok := s != "" && len(s) <= 63 && 'a' <= s[0] && s[0] <= 'z'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
	}
	if !ok {
		return fmt.Errorf("the %s %.80q must be 1 to 63 of a-z, 0-9 and '-', and begin with a letter", what, s)
	}
	return nil
}

// oneOf checks a closed set, and returns the value or "".
func (c *compiler) oneOf(t text, what string, set ...string) string {
	if !t.set || slices.Contains(set, t.value) {
		return t.value
	}
	c.found.add(t.at, "%s %q is none of %s%s", what, t.value, joinWords(set), spelling.DidYouMean(t.value, slices.Values(set)))
	return ""
}

func joinWords(words []string) string {
	out := ""
	for i, w := range words {
		if i > 0 {
			out += ", "
		}
		out += w
	}
	return out
}

// duration applies a default and checks the range.
func (c *compiler) duration(p period, what string, preset, least, most time.Duration) time.Duration {
	if !p.set {
		return preset
	}
	if p.value < least || p.value > most {
		c.found.add(p.at, "%s must be from %s to %s", what, shortDuration(least), shortDuration(most))
		return preset
	}
	if p.value%time.Second != 0 {
		c.found.add(p.at, "%s must be whole seconds", what)
	}
	return p.value
}

func shortDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	if d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	if d%time.Minute == 0 {
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

func (c *compiler) count(n number, what string, preset, least, most int) int {
	if !n.set {
		return preset
	}
	if n.value < int64(least) || n.value > int64(most) {
		c.found.add(n.at, "%s must be from %d to %d", what, least, most)
		return preset
	}
	return int(n.value)
}

// condition compiles a CEL text at its place.
func (c *compiler) condition(s *scope, t text, source []string) *condition {
	if !t.set {
		return nil
	}
	out, issues := s.compile(t.value)
	for _, i := range issues {
		at := t.at
		if i.line > 0 {
			at = t.position(i.line, i.column, source)
		}
		c.found.add(at, "%s", i.message)
	}
	return out
}

// patterns parses a list, and leaves out what another pattern of it covers.
func (c *compiler) patterns(list []text, field string, at Pos, parse func(string) (identity.Pattern, error)) []identity.Pattern {
	if len(list) == 0 {
		c.found.add(at, "%q is empty: it must name at least one", field)
	}
	if len(list) > maxPatterns {
		c.found.add(list[maxPatterns].at, "%q has more than %d patterns", field, maxPatterns)
		return nil
	}
	var out []identity.Pattern
	for _, t := range list {
		p, err := parse(t.value)
		if err != nil {
			c.found.add(t.at, "%v", err)
			continue
		}
		if slices.Contains(out, p) {
			c.found.add(t.at, "%q is here twice", t.value)
			continue
		}
		out = append(out, p)
	}
	return reduce(out)
}

func byRank(a, b grant) int {
	effect := func(g grant) int {
		if g.effect == Deny {
			return 0
		}
		return 1
	}
	// No limit of its own is the longest.
	ttl := func(g grant) time.Duration {
		if g.ttl == 0 {
			return 1<<63 - 1
		}
		return g.ttl
	}
	return cmp.Or(cmp.Compare(effect(a), effect(b)), cmp.Compare(ttl(b), ttl(a)), cmp.Compare(a.name, b.name))
}
