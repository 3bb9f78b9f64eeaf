package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
)

func (c *compiler) secrets() {
	for _, d := range c.byKind[kindSecret] {
		c.named[d.name.value] = true
	}
	c.each(kindSecret, func(d *document) {
		s := d.spec.(*secretSpec)
		pattern, err := identity.ParseSecretPattern(d.name.value)
		if err != nil {
			c.found.add(d.name.at, "%v", err)
			return
		}
		if d.name.value == "*" {
			c.found.add(d.name.at, "a family needs a prefix, as in db/*: declaring everything would declare nothing")
			return
		}
		limits := c.program.environment.Limits
		out := Secret{
			Pattern: pattern, Description: d.about, Source: d.at,
			Type:     c.oneOf(s.Type, "type", "opaque"),
			MaxBytes: c.count(s.MaxBytes, "maxBytes", limits.ValueBytes, 1, limits.ValueBytes),
			Retain:   c.duration(s.Retain, "retain", 0, 0, maxRetain),
		}
		most := c.program.environment.Leases.Max
		out.Lease.Max = c.duration(s.Lease.Max, "lease.max", 0, minPeriod, most)
		if out.Lease.Max > 0 {
			most = out.Lease.Max
		}
		out.Lease.Default = c.duration(s.Lease.TTL, "lease.ttl", 0, minPeriod, most)
		c.recipe(s, &out)
		c.program.secrets = append(c.program.secrets, out)
	})
	slices.SortFunc(c.program.secrets, func(a, b Secret) int { return strings.Compare(a.Pattern.String(), b.Pattern.String()) })
	for i, s := range c.program.secrets {
		if path, ok := s.Pattern.Exact(); ok {
			c.program.exact[path] = i
		} else if prefix, ok := s.Pattern.Prefix(); ok {
			c.program.families[prefix] = i
		}
	}
}

// leastLengths are the shortest values with 128 bits, by recipe: 22 characters (128 / log2(62) = 21.5),
// or 16 random bytes. What makes values refuses shorter ones too: a bundle that asks for them must
// not come into force and then fail at its use.
var leastLengths = map[string]int{"password": 22, "alphanumeric": 22, "token": 16, "hex": 16, "base64": 16}

// recipe checks how values are made.
func (c *compiler) recipe(s *secretSpec, out *Secret) {
	g := &s.Generate
	if !g.Recipe.set {
		return
	}
	name := c.oneOf(g.Recipe, "recipe", "password", "token", "hex", "base64", "uuid", "alphanumeric")
	if name == "uuid" {
		if g.Length.set {
			c.found.add(g.Length.at, "a uuid has no length to choose")
		}
	}
	length := 0
	if least, ok := leastLengths[name]; ok {
		length = c.count(g.Length, "length", 32, least, 512)
	}
	out.Recipe = Recipe{name, length}
	if size := out.Recipe.Size(); size > out.MaxBytes {
		c.found.add(g.Recipe.at, "a value made by this recipe has %d bytes, and the secret allows %d", size, out.MaxBytes)
	}
}

// Size is the length in bytes of the values that the recipe makes: hex writes a byte as two
// characters, base64 (padded) three bytes as four, a token (base64url without padding) likewise.
func (r Recipe) Size() int {
	switch r.Name {
	case "hex":
		return 2 * r.Length
	case "base64":
		return (r.Length + 2) / 3 * 4
	case "token":
		return (r.Length*8 + 5) / 6
	case "uuid":
		return 36
	}
	return r.Length
}

func (c *compiler) identities() {
	// First what is declared, so that order never matters.
	for _, d := range c.byKind[kindIdentity] {
		s := d.spec.(*identitySpec)
		if s.Method.value == MethodWorkload {
			c.workloads[s.Path.value] = true
		} else if t, err := parseTemplate(s.Path.value); err == nil {
			c.templates = append(c.templates, t)
		}
		if len(c.templates) > maxNodeRules {
			c.found.add(d.at, "there are more than %d identity rules for nodes: use templates", maxNodeRules)
			c.byKind[kindIdentity] = nil
			return
		}
	}
	c.each(kindIdentity, func(d *document) {
		s := d.spec.(*identitySpec)
		r := identityRule{name: d.name.value, source: d.at, authority: s.Authority.value}
		r.method = c.oneOf(s.Method, "method", allMethods...)
		if r.method == "" {
			return
		}
		path, err := parseTemplate(s.Path.value)
		if err != nil {
			c.found.add(s.Path.at, "%v", err)
			return
		}
		r.path = path
		c.federatesWith(s, &r)
		r.lines = lines{when: lineOf(s.When), require: lineOf(s.Require), lists: firstLines(s.Nodes, nil)}
		r.when, r.whenText, r.pathText = c.condition(c.ruleScope, s.When, d.source), s.When.value, s.Path.value
		if r.method == MethodWorkload {
			c.workloadRule(s, &r)
			c.program.workloads = append(c.program.workloads, r)
			return
		}
		c.nodeRule(d, s, &r)
		c.knownClaims(s, &r, d.source)
		c.sharedIssuer(d, s, &r)
		c.prudent(d, s, &r)
		c.program.nodes = append(c.program.nodes, r)
	})
	byName := func(a, b identityRule) int { return strings.Compare(a.name, b.name) }
	slices.SortFunc(c.program.nodes, byName)
	slices.SortFunc(c.program.workloads, byName)
	for i, r := range c.program.workloads {
		path, _ := r.path.expand(Claims{})
		c.program.byWorkload[path] = append(c.program.byWorkload[path], i)
	}
	c.foreignPaths()
}

func (c *compiler) nodeRule(d *document, s *identitySpec, r *identityRule) {
	method, _ := authority.FindMethod(r.method)
	if !strings.HasPrefix(s.Path.value, method.Prefix) {
		c.found.add(s.Path.at, "the path of a %s identity must begin with %s", r.method, method.Prefix)
	}
	if s.Nodes != nil {
		c.found.add(s.At, "\"nodes\" is for workloads: a %s identity is a node itself", r.method)
	}
	if strings.HasPrefix(method.Prefix, identity.PrefixCI) {
		r.session = c.duration(s.Session, "session", defaultJobSession, minPeriod, maxJobSession)
		r.lifetime = c.duration(s.Lifetime, "lifetime", defaultJobLifetime, minPeriod, maxJobLifetime)
		if s.Otherwise.value == otherwiseQuarantine {
			c.found.add(s.Otherwise.at, "a job is not quarantined: it ends by itself, and its next run is judged anew")
		}
	} else {
		r.session = c.duration(s.Session, "session", c.program.environment.Sessions.Node, minPeriod, maxNodeSession)
		r.lifetime = c.program.environment.NodeLifetime
		c.noLifetime(s)
		if len(s.Accepts) > 0 {
			c.found.add(s.Accepts[0].at, "\"accepts\" is for jobs")
		}
	}
	if s.Otherwise.set && !s.Require.set {
		c.found.add(s.Otherwise.at, "\"otherwise\" has no effect without \"require\"")
	}
	r.require, r.required = c.condition(c.ruleScope, s.Require, d.source), strings.Join(strings.Fields(s.Require.value), " ")
	r.otherwise = c.oneOf(s.Otherwise, "otherwise", "refuse", otherwiseQuarantine) == otherwiseQuarantine
	if !method.Authorities() {
		c.noAuthority(s, r)
		return
	}
	if !s.Authority.set {
		c.found.add(s.At, "a %s identity needs the field \"authority\"", r.method)
		return
	}
	if a, ok := c.program.Authority(r.authority); !ok && c.env != nil {
		c.found.add(s.Authority.at, "there is no authority %q in authorities/ or environment.yaml", r.authority)
	} else if ok && a.Method != r.method {
		c.found.add(s.Authority.at, "the authority %q is for the method %s", r.authority, a.Method)
	}
}

const otherwiseQuarantine = "quarantine"

// allMethods are those that identity rules may name.
var allMethods = func() []string {
	out := make([]string, 0, len(authority.Methods)+1)
	for _, m := range authority.Methods {
		out = append(out, m.Name)
	}
	return append(out, MethodWorkload)
}()

func (c *compiler) noLifetime(s *identitySpec) {
	if s.Lifetime.set {
		c.found.add(s.Lifetime.at, "\"lifetime\" is for jobs: that of nodes is nodes.lifetime in environment.yaml")
	}
}

func (c *compiler) noAuthority(s *identitySpec, r *identityRule) {
	r.authority = ""
	if s.Authority.set {
		c.found.add(s.Authority.at, "\"authority\" has no effect for the method %s", s.Method.value)
	}
}

func (c *compiler) workloadRule(s *identitySpec, r *identityRule) {
	if !strings.HasPrefix(s.Path.value, identity.PrefixWorkload) {
		c.found.add(s.Path.at, "the path of a workload must begin with %s", identity.PrefixWorkload)
	}
	if slices.ContainsFunc(r.path, func(t templateSegment) bool { return t.claim != nil }) {
		c.found.add(s.Path.at, "the path of a workload must be literal: what a node's agent tells must not name identities")
	}
	c.noAuthority(s, r)
	c.noLifetime(s)
	if len(s.Accepts) > 0 {
		c.found.add(s.Accepts[0].at, "\"accepts\" is for jobs")
	}
	if s.Require.set || s.Otherwise.set {
		c.found.add(s.At, "\"require\" and \"otherwise\" are for nodes and jobs: put a workload's conditions into \"when\"")
	}
	r.session = c.duration(s.Session, "session", c.program.environment.Sessions.Workload, minPeriod, maxWorkloadSession)
	if s.Nodes == nil {
		c.found.add(s.At, "a workload needs the field \"nodes\": which nodes may speak for it")
		return
	}
	r.nodes = c.patterns(s.Nodes, "nodes", s.At, identity.ParseIDPattern)
	for i, t := range s.Nodes {
		if t.value != "/*" && t.value != "/node/*" && !strings.HasPrefix(t.value, identity.PrefixNode) {
			c.found.add(s.Nodes[i].at, "%q selects no node: nodes are below %s", t.value, identity.PrefixNode)
		}
	}
}

// foreignPaths finds node rules of different authorities that can give the same path: then one
// authority could speak for the other's machines.
func (c *compiler) foreignPaths() {
	for i := range c.program.nodes {
		for j := range i {
			a, b := &c.program.nodes[j], &c.program.nodes[i]
			if (a.method != b.method || a.authority != b.authority) && a.path.overlaps(b.path) {
				c.advise(b.source, "the identity %s can give the same path as %s (%s), which trusts another authority: put the authority's name into the paths", b.name, a.name, a.source)
			}
			if c.found.full() {
				c.found.overflow = true
				return
			}
		}
	}
}

// parseTemplate reads an identity's path with whole segments `{claims.a.b}`.
func parseTemplate(s string) (template, error) {
	if !strings.HasPrefix(s, "/") {
		return nil, fmt.Errorf("the path %q does not begin with '/'", s)
	}
	var out template
	plain := ""
	for segment := range strings.SplitSeq(s[1:], "/") {
		inner, opened := strings.CutPrefix(segment, "{")
		if !opened {
			if strings.ContainsAny(segment, "{}") {
				return nil, fmt.Errorf("the path %q: a claim must be a whole segment, as in /%s{claims.name}", s, "…/")
			}
			out = append(out, templateSegment{literal: segment})
			plain += "/" + segment
			continue
		}
		inner, closed := strings.CutSuffix(inner, "}")
		claim, ok := strings.CutPrefix(inner, varClaims+".")
		if !closed || !ok {
			return nil, fmt.Errorf("the path %q: %q is not {claims.NAME}", s, segment)
		}
		keys := strings.Split(claim, ".")
		for _, k := range keys {
			if !validClaimName(k) {
				return nil, fmt.Errorf("the path %q: %q is not the name of a claim", s, k)
			}
		}
		out = append(out, templateSegment{claim: keys})
		plain += "/x"
	}
	return out, identity.ValidPath(plain)
}

func validClaimName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || i > 0 && '0' <= c && c <= '9') {
			return false
		}
	}
	return s != ""
}

var allActions = func() []string {
	var out []string
	for _, a := range allOf {
		out = append(out, string(a))
	}
	return out
}()

func (c *compiler) grants() {
	c.each(kindGrant, func(d *document) {
		s := d.spec.(*grantSpec)
		g := grant{name: d.name.value, source: d.at, effect: Allow}
		if s.Effect.set {
			g.effect = Effect(c.oneOf(s.Effect, "effect", string(Allow), string(Deny)))
		}
		for _, a := range s.Actions {
			if c.oneOf(a, "action", allActions...) == "" {
				continue
			}
			bit := Action(a.value).bit()
			if g.actions&bit != 0 {
				c.found.add(a.at, "the action %q is here twice", a.value)
			}
			g.actions |= bit
		}
		if len(s.Actions) == 0 {
			c.found.add(s.At, "\"actions\" is empty: it must name at least one")
		}
		g.identities = c.patterns(s.Identities, "identities", s.At, identity.ParseIDPattern)
		g.secrets = c.patterns(s.Secrets, "secrets", s.At, identity.ParseSecretPattern)
		c.grantIdentities(s)
		c.grantSecrets(s)
		c.grantLimits(s, &g)
		c.grantGlass(s, &g)
		g.when, g.whenText = c.condition(c.grantScope, s.When, d.source), s.When.value
		g.lines = lines{
			when: lineOf(s.When), assurance: int32(s.Assurance.at.Line), ttl: int32(s.TTL.at.Line), glass: int32(s.BreakGlass.at.Line),
			lists: firstLines(s.Identities, s.Secrets),
		}
		c.grantToEverybody(s, &g)
		if c.pairs += len(g.identities) * len(g.secrets); c.pairs > maxIndexed {
			c.found.add(d.at, "the grants have more than %d pairs of an identity and a secret: use subtrees", maxIndexed)
			c.found.overflow = true
			c.byKind[kindGrant] = nil
			return
		}
		c.program.grants = append(c.program.grants, g)
	})
	slices.SortFunc(c.program.grants, byRank)
	for i := range c.program.grants {
		c.program.grants[i].rank = i
		c.program.index.add(&c.program.grants[i])
	}
}

// grantIdentities finds names that nobody can have.
func (c *compiler) grantIdentities(s *grantSpec) {
	for _, t := range s.Identities {
		p, err := identity.ParseIDPattern(t.value)
		if err != nil || t.value == "/*" {
			continue
		}
		path, exact := p.Exact()
		root := strings.SplitN(strings.TrimSuffix(t.value, "/*")[1:], "/", 2)[0]
		switch root {
		case "workload":
			if exact && !c.workloads[path] {
				c.found.add(t.at, "no identity rule gives %s", path)
			}
		case "human":
			if exact && c.humansKnown && !c.humans[strings.TrimPrefix(path, identity.PrefixHuman)] {
				c.found.add(t.at, "there is no operator for %s in operators.yaml", path)
			}
		case "node", "ci":
			if exact && !c.nodeCanBe(path) {
				c.found.add(t.at, "no identity rule can give %s", path)
			}
		default:
			c.found.add(t.at, "%q selects nobody: identities are below /node/, /ci/, /workload/ and /human/", t.value)
		}
	}
}

func (c *compiler) nodeCanBe(path string) bool {
	var want template
	for segment := range strings.SplitSeq(path[1:], "/") {
		want = append(want, templateSegment{literal: segment})
	}
	return slices.ContainsFunc(c.templates, want.overlaps)
}

// grantSecrets finds exact names that no declaration covers.
func (c *compiler) grantSecrets(s *grantSpec) {
	for _, t := range s.Secrets {
		p, err := identity.ParseSecretPattern(t.value)
		if err != nil {
			continue
		}
		path, exact := p.Exact()
		if !exact {
			continue
		}
		if _, declared := c.program.Secret(path); !declared && !c.named[path] {
			c.found.add(t.at, "the secret %q is not declared in secrets/", path)
		}
	}
}

// grantLimits reads what narrows a grant, and refuses what would have no effect.
func (c *compiler) grantLimits(s *grantSpec, g *grant) {
	reads := g.actions&ReadSecret.bit() != 0
	if len(s.Purposes) > maxPurposes {
		c.found.add(s.Purposes[maxPurposes].at, "there are more than %d purposes", maxPurposes)
		return
	}
	for _, t := range s.Purposes {
		if err := ValidPurpose(t.value); err != nil {
			c.found.add(t.at, "%v", err)
		}
		if slices.Contains(g.purposes, t.value) {
			c.found.add(t.at, "the purpose %q is here twice", t.value)
		}
		g.purposes = append(g.purposes, t.value)
	}
	slices.Sort(g.purposes)
	switch {
	case len(s.Purposes) > 0 && !reads && g.actions != 0:
		c.found.add(s.Purposes[0].at, "purposes have no effect without the action secret.read")
	case len(s.Purposes) == 0 && reads && g.effect == Allow:
		c.found.add(s.At, "a grant that allows secret.read must name the purposes, as in purposes: [runtime]")
	case s.Purposes != nil && len(s.Purposes) == 0:
		c.found.add(s.At, "\"purposes\" is empty: name some, or remove the field")
	}
	if g.effect == Deny {
		if s.Assurance.set {
			c.found.add(s.Assurance.at, "a deny grant has no assurance: use a condition, as in when: assurance < level.key")
		}
		if s.TTL.set {
			c.found.add(s.TTL.at, "a deny grant has no ttl")
		}
		return
	}
	g.assurance = identity.Token
	if s.Assurance.set {
		a, err := identity.ParseAssurance(s.Assurance.value)
		if err != nil {
			c.found.add(s.Assurance.at, "%v", err)
		}
		g.assurance = a
	}
	if s.TTL.set && !reads && g.actions != 0 {
		c.found.add(s.TTL.at, "ttl has no effect without the action secret.read")
	}
	g.ttl = c.duration(s.TTL, "ttl", 0, minPeriod, c.program.environment.Leases.Max)
}
