package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// testDocument is a compiled Test document.
type testDocument struct {
	name, about string
	source      Pos
	cases       []testCase
}

// testCase is a compiled case of either kind. It asks for an identity if decides is false, and for a decision else.
type testCase struct {
	name    string
	source  Pos
	decides bool

	proof *testProof // nil: in.Identity is given
	in    Input      // of a decision; without a proof it is whole

	expect  string // "allow", "deny", "refuse", "quarantine", or the path of an identity
	rule    string // of an identity
	by      string // of a decision
	reason  problem.Reason
	limit   time.Duration // of the lease, or of the session
	limited bool
}

// testProof is what somebody shows.
type testProof struct {
	method, authority string
	node, asks        string // of a workload
	claims            Claims
}

// testToken is a compiled token.
type testToken struct {
	proof     testProof
	value     map[string]any
	assurance identity.Assurance
	whole     bool
}

// testCompiler compiles the kind Test.
type testCompiler struct {
	*compiler
	tokens map[string]*testToken
	grants map[string]bool
	rules  map[string]bool
	cases  int

	limitNames map[string]bool
	values     int
	tries      int // of identity rules
}

func (c *compiler) tests() {
	if len(c.byKind[kindTest]) == 0 {
		return
	}
	t := &testCompiler{compiler: c, tokens: map[string]*testToken{}, grants: map[string]bool{}, rules: map[string]bool{}, limitNames: map[string]bool{}}
	for _, d := range c.byKind[kindGrant] {
		t.grants[d.name.value] = true
	}
	for _, d := range c.byKind[kindIdentity] {
		t.rules[d.name.value] = true
	}
	c.each(kindTest, func(d *document) {
		for i := range d.spec.(*testSpec).Tokens {
			t.token(&d.spec.(*testSpec).Tokens[i])
		}
	})
	c.each(kindTest, t.document)
	slices.SortStableFunc(c.program.limits, func(a, b ReachLimit) int { return strings.Compare(a.Test, b.Test) })
	slices.SortFunc(c.program.tests, func(a, b testDocument) int { return strings.Compare(a.name, b.name) })
}

func (c *testCompiler) document(d *document) {
	s := d.spec.(*testSpec)
	out := testDocument{name: d.name.value, about: d.about, source: d.at}
	if len(s.Identities)+len(s.Cases)+len(s.Tokens)+len(s.Limits) == 0 {
		c.found.add(s.At, "the test has neither tokens nor cases nor limits")
	}
	c.limits(d, s.Limits)
	before := c.cases
	if c.cases += len(s.Identities) + len(s.Cases); c.cases > MaxTests {
		if before <= MaxTests {
			c.found.add(d.at, "the bundle has more than %d cases in its tests", MaxTests)
		}
		return
	}
	names := map[string]bool{}
	unique := func(t text) {
		switch {
		case !validCaseName(t.value):
			c.found.add(t.at, "the name of a case must be 1 to 200 bytes on one line")
		case names[t.value]:
			c.found.add(t.at, "the name %q is taken by another case of this test", t.value)
		}
		names[t.value] = true
	}
	for i := range s.Identities {
		if c.found.full() {
			return
		}
		unique(s.Identities[i].Name)
		if x, ok := c.identityCase(&s.Identities[i]); ok {
			out.cases = append(out.cases, x)
		}
	}
	for i := range s.Cases {
		if c.found.full() {
			return
		}
		unique(s.Cases[i].Name)
		if x, ok := c.decisionCase(&s.Cases[i]); ok {
			out.cases = append(out.cases, x)
		}
	}
	c.program.tests = append(c.program.tests, out)
}

func validCaseName(s string) bool {
	return s != "" && len(s) <= 200 && !strings.ContainsFunc(s, func(r rune) bool { return !printable(r) })
}

func (c *testCompiler) token(s *tokenSpec) {
	if first := c.tokens[s.Name.value]; first != nil {
		c.found.add(s.Name.at, "the name %q is taken by another token", s.Name.value)
		return
	}
	t := &testToken{value: s.Claims.value}
	c.tokens[s.Name.value] = t
	before := len(c.found.list)
	if len(c.tokens) > maxTestTokens {
		if len(c.tokens) == maxTestTokens+1 {
			c.found.add(s.At, "the bundle has more than %d tokens in its tests", maxTestTokens)
		}
		return
	}
	t.proof = testProof{method: c.oneOf(s.Method, "method", allMethods...), authority: s.Authority.value, node: s.Node.value}
	t.assurance = defaultAssurance(t.proof.method, "")
	c.assurance(s.Assurance, &t.assurance)
	switch method, known := authority.FindMethod(t.proof.method); {
	case t.proof.method == "":
	case !known || !method.Authorities():
		if s.Authority.set {
			c.found.add(s.Authority.at, "\"authority\" has no effect for the method %s", t.proof.method)
		}
	case !s.Authority.set:
		c.found.add(s.At, "a token of the method %s needs the field \"authority\"", t.proof.method)
	default:
		if a, ok := c.program.Authority(t.proof.authority); !ok && c.env != nil {
			c.found.add(s.Authority.at, "there is no authority %q in authorities/ or environment.yaml", t.proof.authority)
		} else if ok && a.Method != t.proof.method {
			c.found.add(s.Authority.at, "the authority %q is for the method %s", t.proof.authority, a.Method)
		}
	}
	if s.Node.set {
		c.node(s.Node, t.proof.method)
	}
	c.knownValues(s.Claims, t.proof.method)
	at := s.Claims.at
	if !s.Claims.set {
		at = s.At
	}
	t.proof.claims, t.whole = c.prepared(at, t.value)
	t.whole = t.whole && len(c.found.list) == before
}

// prepared makes claims of values, and counts them.
func (c *testCompiler) prepared(at Pos, value map[string]any) (Claims, bool) {
	before := c.values
	if c.values += countValues(value); c.values > maxTestValues {
		if before <= maxTestValues {
			c.found.add(at, "the claims in the bundle's tests have more than %d values: share tokens between cases", maxTestValues)
		}
		return Claims{}, false
	}
	claims, err := PrepareClaims(value)
	if err != nil {
		c.found.add(at, "%v", err)
		return Claims{}, false
	}
	return claims, true
}

// knownValues finds claims that no verifier of the method ever says: a test with them shows nothing.
func (c *testCompiler) knownValues(claims claimTree, name string) {
	method, _ := authority.FindMethod(name)
	known := method.Claims()
	if known == nil {
		return
	}
	for _, k := range sortedKeys(claims.value) {
		if !slices.Contains(known, k) && k != ClaimAgent {
			c.advise(claims.at, "the method %s gives no claim %q", name, k)
			continue
		}
		shape, ok := method.Shape(k)
		if text, isText := claims.value[k].(string); ok && (!isText || !shape.Fits(text)) {
			c.advise(claims.at, "the method %s never gives the claim %q this value, but a text: %s", name, k, shape.Is)
		}
	}
}

func sortedKeys(m map[string]any) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (c *testCompiler) assurance(t text, into *identity.Assurance) {
	if !t.set {
		return
	}
	a, err := identity.ParseAssurance(t.value)
	if err != nil {
		c.found.add(t.at, "%v", err)
		return
	}
	*into = a
}

// node checks the path of a node that speaks for a workload.
func (c *testCompiler) node(t text, method string) {
	switch err := identity.ValidPath(t.value); {
	case method != "" && method != MethodWorkload:
		c.found.add(t.at, "\"node\" has no effect for the method %s: its identity is a node or job itself", method)
	case err != nil:
		c.found.add(t.at, "%v", err)
	case !strings.HasPrefix(t.value, identity.PrefixNode) || !c.nodeCanBe(t.value):
		c.found.add(t.at, "no identity rule can give the node %s", t.value)
	}
}

// shown makes the proof of a case from its token.
func (c *testCompiler) shown(at Pos, token text, over claimTree, without []text, node text) (*testProof, *testToken, bool) {
	t := c.tokens[token.value]
	if t == nil {
		c.found.add(token.at, "there is no token %q in tests/", token.value)
		return nil, nil, false
	}
	proof := t.proof
	if node.set {
		c.node(node, proof.method)
		proof.node = node.value
	}
	if proof.method == MethodWorkload && proof.node == "" {
		c.found.add(at, "a workload needs the field \"node\", here or in its token: whose agent tells its claims")
		return nil, nil, false
	}
	if c.tries += c.triesOf(proof); c.tries > maxTestRules {
		c.found.add(at, "the tests try more than %d identity rules: say in \"asks\" which workload is meant", maxTestRules)
		c.found.overflow = true
		return nil, nil, false
	}
	if !over.set && len(without) == 0 {
		return &proof, t, t.whole
	}
	c.knownValues(over, proof.method)
	value, ok := c.laid(t.value, over, without)
	if !ok || !t.whole {
		return nil, nil, false
	}
	proof.claims, ok = c.prepared(at, value)
	return &proof, t, ok
}

func (c *testCompiler) laid(base map[string]any, over claimTree, without []text) (map[string]any, bool) {
	value := base
	for _, w := range without {
		next, err := laid(value, nil, [][]string{strings.Split(w.value, ".")})
		if err != nil {
			c.found.add(w.at, "the token has no claim %q to leave out", w.value)
			return nil, false
		}
		value = next
	}
	value, err := laid(value, over.value, nil)
	return value, err == nil
}

// triesOf is how many rules are tried for a proof.
func (c *testCompiler) triesOf(p testProof) int {
	if p.method != MethodWorkload {
		return len(c.program.nodes)
	}
	return len(c.program.workloads)
}

// refusals of identities and decisions, which tests may name.
var (
	identityReasons = []string{
		string(problem.ReasonNoIdentity), string(problem.ReasonAmbiguous), string(problem.ReasonForeignNode), string(problem.ReasonPosture),
		string(problem.ReasonAgentUnsigned), string(problem.ReasonAgentUnknown), string(problem.ReasonAgentOutdated), string(problem.ReasonAgentClaimed),
	}
	decisionReasons = []string{
		string(problem.ReasonNoGrant), string(problem.ReasonDenied), string(problem.ReasonPurpose), string(problem.ReasonAssurance), string(problem.ReasonCondition), string(problem.ReasonGlass),
	}
)

func (c *testCompiler) identityCase(s *identityCaseSpec) (testCase, bool) {
	before := len(c.found.list)
	out := testCase{name: s.Name.value, source: s.At, expect: s.Expect.value, rule: s.Rule.value, limit: s.Session.value, limited: s.Session.set}
	refused := s.Expect.value == "refuse" || s.Expect.value == "quarantine"
	switch {
	case !strings.HasPrefix(s.Expect.value, "/"):
		c.oneOf(s.Expect, "expect", "refuse", "quarantine", "/…")
	case !c.given(s.Expect.value):
		c.found.add(s.Expect.at, "no identity rule can give %s", s.Expect.value)
	}
	if s.Rule.set && !c.rules[s.Rule.value] {
		c.found.add(s.Rule.at, "there is no identity rule %q", s.Rule.value)
	}
	c.unlike(s.Rule.set && refused, s.Rule.at, "rule", "a refusal")
	c.unlike(s.Session.set && refused, s.Session.at, "session", "a refusal")
	c.unlike(s.Reason.set && !refused, s.Reason.at, "reason", "an identity that is given")
	out.reason = problem.Reason(c.oneOf(s.Reason, "reason", identityReasons...))
	proof, _, ok := c.shown(s.At, s.Token, s.Claims, s.Without, s.Node)
	if !ok {
		return out, false
	}
	if s.Asks.set {
		if proof.method != MethodWorkload {
			c.found.add(s.Asks.at, "\"asks\" has no effect for the method %s", proof.method)
		} else if !c.workloads[s.Asks.value] {
			c.found.add(s.Asks.at, "no identity rule gives %s", s.Asks.value)
		}
		proof.asks = s.Asks.value
	}
	out.proof = proof
	return out, len(c.found.list) == before
}

// unlike finds a field that says nothing beside what is expected.
func (c *testCompiler) unlike(wrong bool, at Pos, field, beside string) {
	if wrong {
		c.found.add(at, "%q has no effect for %s", field, beside)
	}
}

// given reports whether rules, or the operators, can make somebody of this path.
func (c *testCompiler) given(path string) bool {
	switch {
	case identity.ValidPath(path) != nil:
		return false
	case strings.HasPrefix(path, identity.PrefixHuman):
		return !c.humansKnown || c.humans[strings.TrimPrefix(path, identity.PrefixHuman)]
	case strings.HasPrefix(path, identity.PrefixWorkload):
		return c.workloads[path]
	}
	return c.nodeCanBe(path)
}

func (c *testCompiler) decisionCase(s *caseSpec) (testCase, bool) {
	before := len(c.found.list)
	out := testCase{
		name: s.Name.value, source: s.At, decides: true, expect: c.oneOf(s.Expect, "expect", string(Allow), string(Deny)),
		by: s.By.value, limit: s.TTL.value, limited: s.TTL.set,
	}
	out.in = Input{Action: ReadSecret, Secret: s.Secret.value, Time: defaultTestTime, Purpose: s.Purpose.value}
	if s.Action.set {
		out.in.Action = Action(c.oneOf(s.Action, "action", allActions...))
	}
	switch {
	case out.in.Action == "":
	case out.in.Action != ReadSecret && s.Purpose.set:
		c.found.add(s.Purpose.at, "purpose has no effect for the action %s", out.in.Action)
	case out.in.Action == ReadSecret && !s.Purpose.set:
		out.in.Purpose = "runtime"
	case s.Purpose.set:
		if err := ValidPurpose(s.Purpose.value); err != nil {
			c.found.add(s.Purpose.at, "%v", err)
		}
	}
	if s.Time.set {
		out.in.Time = c.moment(s.Time, "time")
	}
	c.opened(s, &out)
	c.testedSecret(s.Secret)
	c.expected(s, &out)
	if !c.who(s, &out) {
		return out, false
	}
	return out, len(c.found.list) == before
}

// opened reads which glass was broken: just now, and for as long as may be.
func (c *testCompiler) opened(s *caseSpec, out *testCase) {
	for i, t := range s.Opened {
		g, ok := c.program.Glass(t.value)
		switch {
		case !ok:
			c.found.add(t.at, "there is no break-glass grant %q", t.value)
		case !strings.HasPrefix(s.Identity.value, identity.PrefixHuman):
			c.found.add(t.at, "glass is broken by persons, below %s", identity.PrefixHuman)
		case slices.ContainsFunc(s.Opened[:i], func(o text) bool { return o.value == t.value }):
			c.found.add(t.at, "%q is here twice", t.value)
		default:
			out.in.Opened = append(out.in.Opened, Opened{Grant: t.value, Until: out.in.Time.Add(g.Glass)})
		}
	}
}

func (c *testCompiler) testedSecret(t text) {
	if _, err := identity.ParseSecretPath(t.value); err != nil {
		c.found.add(t.at, "%v", err)
	} else if _, declared := c.program.Secret(t.value); !declared && !c.named[t.value] {
		c.found.add(t.at, "the secret %q is not declared in secrets/", t.value)
	}
}

func (c *testCompiler) expected(s *caseSpec, out *testCase) {
	if s.By.set && !c.grants[s.By.value] {
		c.found.add(s.By.at, "there is no grant %q", s.By.value)
	}
	reasons := decisionReasons
	if s.Token.set {
		reasons = slices.Concat(decisionReasons, identityReasons)
	}
	out.reason = problem.Reason(c.oneOf(s.Reason, "reason", reasons...))
	c.unlike(s.Reason.set && out.expect == string(Allow), s.Reason.at, "reason", "what is allowed")
	c.unlike(s.TTL.set && out.expect == string(Deny), s.TTL.at, "ttl", "what is denied")
	c.unlike(s.TTL.set && out.in.Action != ReadSecret, s.TTL.at, "ttl", "the action "+string(out.in.Action))
}

// who reads who asks.
func (c *testCompiler) who(s *caseSpec, out *testCase) bool {
	ok := true
	if s.NodeClaims.set {
		out.in.NodeClaims, ok = c.prepared(s.NodeClaims.at, s.NodeClaims.value)
	}
	switch {
	case s.Token.set == s.Identity.set:
		c.found.add(s.At, "a case needs one of \"identity\" and \"token\", and not both")
		return false
	case s.Token.set:
		proof, t, whole := c.shown(s.At, s.Token, s.Claims, s.Without, s.Node)
		if !whole {
			return false
		}
		out.proof, out.in.Claims, out.in.Node, out.in.Assurance = proof, proof.claims, proof.node, t.assurance
		c.assurance(s.Assurance, &out.in.Assurance)
		return ok
	}
	if len(s.Without) > 0 {
		c.found.add(s.Without[0].at, "\"without\" has no effect without a token")
	}
	out.in.Identity, out.in.Node, out.in.Assurance = s.Identity.value, s.Node.value, defaultAssurance("", s.Identity.value)
	if !c.given(s.Identity.value) {
		c.found.add(s.Identity.at, "nobody can be %s: no identity rule gives it, and no operator has this name", s.Identity.value)
	}
	c.assurance(s.Assurance, &out.in.Assurance)
	if s.Node.set {
		if !strings.HasPrefix(s.Identity.value, identity.PrefixWorkload) {
			c.found.add(s.Node.at, "\"node\" has no effect for %s, for whom no node speaks", s.Identity.value)
		} else {
			c.node(s.Node, "")
		}
	}
	if s.Claims.set {
		var whole bool
		out.in.Claims, whole = c.prepared(s.Claims.at, s.Claims.value)
		ok = ok && whole
	}
	return ok
}
