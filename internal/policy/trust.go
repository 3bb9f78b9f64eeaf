package policy

import (
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/spelling"
)

// Rules about tokens go wrong in ways that no test of their author shows: they fit nothing, since a claim is called otherwise, or they fit
// everybody, since the issuer serves the whole world. What can be seen of that without a token is looked for here.

// reach is whom a rule lets in of those whom an issuer serves.
type reach int

const (
	everybody reach = iota
	byName          // who has a name now
	byID            // who has an ID, for good
)

// tenants is what tells an issuer's customers apart.
type tenants struct {
	authority.Shared
	nested bool // the service's claims are below "claims" (method oidc)
	own    bool // nobody knows what they mean: whichever is compared tells apart
}

// claimOf reads `claims.a.b` or `claims["a"]`. It is nil for any other expression.
func claimOf(e celast.Expr) []string {
	switch e.Kind() {
	case celast.SelectKind:
		s := e.AsSelect()
		if isClaims(s.Operand()) {
			return []string{s.FieldName()}
		}
		if outer := claimOf(s.Operand()); outer != nil {
			return append(outer, s.FieldName())
		}
	case celast.CallKind:
		c := e.AsCall()
		if c.FunctionName() != operators.Index || len(c.Args()) != 2 {
			return nil
		}
		key, ok := literal(c.Args()[1])
		if !ok {
			return nil
		}
		if isClaims(c.Args()[0]) {
			return []string{key}
		}
		if outer := claimOf(c.Args()[0]); outer != nil {
			return append(outer, key)
		}
	}
	return nil
}

func isClaims(e celast.Expr) bool { return e.Kind() == celast.IdentKind && e.AsIdent() == varClaims }

func literal(e celast.Expr) (string, bool) {
	if e.Kind() != celast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

// class is what a claim tells.
func (t tenants) class(claim []string) reach {
	if t.nested && len(claim) == 2 && claim[0] == varClaims {
		claim = claim[1:]
	}
	switch {
	case t.own && len(claim) > 1 && claim[0] == varClaims:
		return byID
	case len(claim) != 1:
	case slices.Contains(t.IDs, claim[0]):
		return byID
	case slices.Contains(t.Names, claim[0]):
		return byName
	}
	return everybody
}

// compared is whom a comparison of a claim with something fixed lets in.
func (t tenants) compared(claim, with celast.Expr) reach {
	name := claimOf(claim)
	if name == nil || mentions(with, func([]string) bool { return true }) {
		return everybody
	}
	class := t.class(name)
	if class == byName && name[len(name)-1] == "subject" && eachText(with, hasID) {
		return byID // in one of the forms of subjects that are made of IDs
	}
	return class
}

// hasID tells a subject of IDs from one of names: repo:OWNER@ID/REPO@ID:…, project_id:ID:…, or a UUID. What people name themselves (a ref, an
// environment, a project) may have the signs of IDs in it.
func hasID(subject string) bool {
	if repositories := strings.Split(subject, "repo:")[1:]; len(repositories) > 0 { // several in a regular expression
		return !slices.ContainsFunc(repositories, func(s string) bool { s, _, _ = strings.Cut(s, ":"); return !strings.Contains(s, "@") })
	}
	parts := strings.Split(subject, ":")
	return slices.ContainsFunc(parts[:len(parts)-1], func(s string) bool { return strings.HasSuffix(s, "_id") && !strings.Contains(s, "/") }) ||
		len(subject) == 36 && strings.Count(subject, "-") == 4
}

// eachText reports whether an expression is a text, or a list of texts, which all are so.
func eachText(e celast.Expr, is func(string) bool) bool {
	if text, ok := literal(e); ok {
		return is(text)
	}
	if e.Kind() != celast.ListKind || e.AsList().Size() == 0 {
		return false
	}
	for _, x := range e.AsList().Elements() {
		if text, ok := literal(x); !ok || !is(text) {
			return false
		}
	}
	return true
}

// narrows is whom a condition lets in at most. What it can't tell lets in everybody: most such conditions can be written so that it can.
func (t tenants) narrows(e celast.Expr) reach {
	if e.Kind() == celast.ComprehensionKind {
		return t.each(e)
	}
	if e.Kind() != celast.CallKind {
		return everybody
	}
	call := e.AsCall()
	args := call.Args()
	switch call.FunctionName() {
	case operators.LogicalAnd:
		return max(t.narrows(args[0]), t.narrows(args[1]))
	case operators.LogicalOr:
		return min(t.narrows(args[0]), t.narrows(args[1]))
	case operators.Conditional:
		return min(max(t.narrows(args[0]), t.narrows(args[1])), t.narrows(args[2]))
	case operators.Equals:
		return max(t.compared(args[0], args[1]), t.compared(args[1], args[0]))
	case operators.In:
		if t.own {
			return max(t.compared(args[0], args[1]), t.compared(args[1], args[0]))
		}
		return t.compared(args[0], args[1])
	case "startsWith", "matches":
		if !call.IsMemberFunction() || len(args) != 1 {
			return everybody
		}
		text, ok := literal(args[0])
		switch {
		case !ok:
		case call.FunctionName() == "startsWith":
			return t.begins(call.Target(), []beginning{{text: text}})
		case !fitStrangers(text):
			return t.begins(call.Target(), beginnings(text))
		}
	}
	return everybody // a negation, or what anybody can have in a name of his own
}

// mentions reports whether an expression reads a claim that fits.
func mentions(e celast.Expr, fits func(claim []string) bool) bool {
	found := false
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if claim := claimOf(x); claim != nil && fits(claim) {
			found = true
		}
	}))
	return found
}

// parsed is the tree of a condition that compiles; nil for one that is not there, or has findings of its own.
func (s *scope) parsed(t text) *celast.AST {
	if c, ok := s.cache[t.value]; !t.set || !ok || c.condition == nil {
		return nil
	}
	tree, problems := s.env.Parse(t.value)
	if problems.Err() != nil {
		return nil
	}
	return tree.NativeRep()
}

// knownClaims finds claims that the method does not give, and comparisons with what a claim never is: a rule with one fits nothing, for ever,
// or leaves out nobody.
func (c *compiler) knownClaims(s *identitySpec, r *identityRule, source []string) {
	method, _ := authority.FindMethod(r.method)
	known := method.Claims()
	if known == nil {
		return
	}
	known = append(known, ClaimAgent)
	unknown := func(at Pos, name string) {
		if !slices.Contains(known, name) {
			c.advise(at, "the method %s gives no claim %q%s", r.method, name, spelling.DidYouMean(name, slices.Values(known)))
		}
	}
	for _, segment := range r.path {
		if segment.claim != nil {
			unknown(s.Path.at, segment.claim[0])
		}
	}
	for _, t := range []text{s.When, s.Require} {
		tree := c.ruleScope.parsed(t)
		if tree == nil {
			continue
		}
		position := func(e celast.Expr) Pos {
			at := tree.SourceInfo().GetStartLocation(e.ID())
			return t.position(at.Line(), at.Column()+1, source)
		}
		celast.PostOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
			if claim := claimOf(e); len(claim) == 1 {
				unknown(position(e), claim[0])
			}
			claim, values := comparison(e)
			shape, ok := method.Shape(claim)
			for _, v := range values {
				if text, isText := literal(v); ok && (!isText || !shape.Fits(text)) {
					c.advise(position(v), "the method %s never gives the claim %q this value, but a text: %s", method.Name, claim, shape.Is)
				}
			}
		}))
	}
}

// comparison reads a claim's ==, != and in with what is written down.
func comparison(e celast.Expr) (claim string, values []celast.Expr) {
	if e.Kind() != celast.CallKind || len(e.AsCall().Args()) != 2 {
		return "", nil
	}
	args := slices.Clone(e.AsCall().Args())
	switch e.AsCall().FunctionName() {
	case operators.Equals, operators.NotEquals:
		if claimOf(args[0]) == nil {
			slices.Reverse(args)
		}
		values = args[1:]
	case operators.In:
		if args[1].Kind() == celast.ListKind {
			values = args[1].AsList().Elements()
		}
	}
	name := claimOf(args[0])
	if len(name) != 1 {
		return "", nil
	}
	return name[0], slices.DeleteFunc(slices.Clone(values), func(v celast.Expr) bool { return v.Kind() != celast.LiteralKind })
}

// sharedIssuer finds rules that let in whomever their issuer serves, or who takes over a name.
func (c *compiler) sharedIssuer(d *document, s *identitySpec, r *identityRule) {
	t, issuer, ok := c.tenantsOf(r)
	if !ok {
		return
	}
	inside := everybody
	for _, tree := range []*celast.AST{c.ruleScope.parsed(s.When), c.ruleScope.parsed(s.Require)} {
		if tree != nil {
			inside = max(inside, t.narrows(tree.Expr()))
		}
	}
	best := inside
	for _, segment := range r.path {
		best = max(best, t.class(segment.claim))
	}
	advice := "put an ID into the path, or compare one in \"when\": " + strings.Join(t.IDs, ", ")
	switch {
	case best == byID:
		r.open = inside != byID
	case best == byName:
		c.advise(d.at, "the identity %s tells by a name whose jobs it is for, and whoever takes the name over at %s is let in: %s", r.name, issuer, advice)
	default:
		c.advise(d.at, "the identity %s is for everybody whom %s serves: %s", r.name, issuer, advice)
	}
}

// tenantsOf finds what tells the customers of a rule's issuer apart, if it has many.
func (c *compiler) tenantsOf(r *identityRule) (tenants, string, bool) {
	a, ok := c.program.Authority(r.authority)
	if !ok || a.Issuer == "" {
		return tenants{}, "", false
	}
	s, ok := authority.SharedIssuer(a.Issuer)
	return tenants{Shared: s, nested: r.method == "oidc"}, a.Issuer, ok
}

// grantToEverybody finds a grant to a whole subtree, in which an open rule puts whomever its issuer serves: the rule's path tells them
// apart, and the grant doesn't.
func (c *compiler) grantToEverybody(s *grantSpec, g *grant) {
	if g.effect != Allow {
		return
	}
	tree := c.grantScope.parsed(s.When)
	for _, pattern := range s.Identities {
		if c.found.full() {
			return
		}
		root, subtree := strings.CutSuffix(pattern.value, "/*")
		if !subtree {
			continue
		}
		given := strings.Split(strings.TrimPrefix(root, "/"), "/")
		for i := range c.program.nodes {
			r := &c.program.nodes[i]
			if !r.open || !r.below(root, given) {
				continue
			}
			t, issuer, _ := c.tenantsOf(r)
			named := root != "" && slices.ContainsFunc(r.path[:len(given)], func(x templateSegment) bool { return t.class(x.claim) == byID })
			if named || tree != nil && t.narrows(tree.Expr()) == byID {
				continue
			}
			c.advise(pattern.at, "%q takes in everybody whom %s serves, by the identity %s: name the ID as well, which its path has", pattern.value, issuer, r.name)
			break
		}
	}
}

// below reports whether a rule can give an identity below a root.
func (r *identityRule) below(root string, given []string) bool {
	return root == "" || len(given) < len(r.path) && r.path[:len(given)].overlaps(plain(given))
}

func plain(segments []string) template {
	out := make(template, len(segments))
	for i, s := range segments {
		out[i].literal = s
	}
	return out
}
