package policy

import (
	"cmp"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Methods that the rules treat in a way of their own. All that there are: authority.Methods.
const (
	MethodX509     = "x509"
	MethodWorkload = "workload"
)

// Match is an identity that a rule of the bundle gives.
type Match struct {
	Path     string        // of the identity
	Rule     string        // name of the Identity document
	Session  time.Duration // lifetime of the session, the environment's default filled in
	Lifetime time.Duration // hard lifetime of the enrolment
	// Quarantine: beside an error of reason posture, whether the rule asks for the machine's quarantine.
	Quarantine bool
}

// identityRule is a compiled Identity document.
type identityRule struct {
	name      string
	method    string
	path      template
	authority string
	pathText  string // as it is written, with {claims.…}
	when      *condition
	whenText  string
	require   *condition
	required  string // its text
	otherwise bool   // quarantine
	open      bool   // only its path tells apart whom its issuer serves
	nodes     []identity.Pattern
	session   time.Duration
	lifetime  time.Duration
	federates []string // names of federations, sorted
	source    Pos
	lines     lines
}

// template is an identity's path whose segments may be taken from claims.
type template []templateSegment

type templateSegment struct {
	literal string
	claim   []string // the claim's path; nil for a literal
}

// expand builds the path. Claims are escaped, so one claim is one segment whatever it says.
func (t template) expand(c Claims) (string, error) {
	var b strings.Builder
	for _, s := range t {
		b.WriteByte('/')
		if s.claim == nil {
			b.WriteString(s.literal)
			continue
		}
		value, err := c.text(s.claim)
		if err != nil {
			return "", err
		}
		b.WriteString(identity.Escape(value))
	}
	path := b.String()
	return path, identity.ValidPath(path)
}

// overlaps reports whether both templates can give the same path.
func (t template) overlaps(u template) bool {
	if len(t) != len(u) {
		return false
	}
	for i := range t {
		if t[i].claim == nil && u[i].claim == nil && t[i].literal != u[i].literal {
			return false
		}
	}
	return true
}

// IdentifyNode turns the claims that the attestation of a node or job proved into its identity. authority is
// the name of the authority that vouched; "" for join-token. The error is of reason
// no-identity or ambiguous-identity: two rules that give the same path are not ambiguous, and the
// one with the shorter session counts. It is of reason posture if the rules fit but what one of them requires is not true: then the
// Match is filled in beside it, and it is Quarantine if any of them asks for that. So it is for the reasons agent-unsigned, agent-unknown,
// agent-outdated and agent-not-measured, by the claim "agent" of nodes.
func (p *Program) IdentifyNode(method, authority string, claims Claims) (Match, error) {
	return p.identifyNode(method, authority, claims, nil)
}

func (p *Program) identifyNode(method, authority string, claims Claims, seen *coverage) (Match, error) {
	var best Match
	why, unmet, quarantine := "", "", false
	for i := range p.nodes {
		r := &p.nodes[i]
		if r.method != method || r.authority != authority {
			continue
		}
		path, fits, reason := r.apply(claims, "", seen)
		if !fits {
			why += "; " + reason
			continue
		}
		m := Match{Path: path, Rule: r.name, Session: r.session, Lifetime: r.lifetime}
		if u := r.unmet(claims, seen); u != "" {
			unmet += "; " + u
			quarantine = quarantine || r.otherwise
		}
		if best.Path != "" && best.Path != path {
			return Match{}, problem.New(problem.ReasonAmbiguous, "the rules %s and %s give these %s claims different identities: %s and %s", best.Rule, r.name, method, best.Path, path)
		}
		best = preferred(best, m)
	}
	if best.Path == "" {
		return Match{}, problem.New(problem.ReasonNoIdentity, "no identity rule for method %s fits these claims%s", method, clip(why))
	}
	if strings.HasPrefix(best.Path, identity.PrefixNode) {
		if err := p.agentStands(claims); err != nil {
			return best, err
		}
	}
	if unmet != "" {
		best.Quarantine = quarantine
		return best, problem.New(problem.ReasonPosture, "%s is not as its identity rule requires%s", best.Path, clip(unmet))
	}
	return best, nil
}

// unmet says what the rule requires that is not true, or "".
func (r *identityRule) unmet(claims Claims, seen *coverage) string {
	if r.require == nil {
		return ""
	}
	ok, err := r.require.holds(&vars{from: &claims})
	seen.required(r, ok, err)
	switch {
	case err != nil:
		return r.name + ": " + r.required + " can't be told: " + err.Error()
	case !ok:
		return r.name + ": " + r.required + " is false"
	}
	return ""
}

// IdentifyWorkload turns the claims about a process, told by a node's agent, into its identity.
// want is the path that the caller asks for, or "" for whichever fits. Besides the reasons of
// IdentifyNode there is foreign-node: a rule fits, but this node may not speak for that workload.
func (p *Program) IdentifyWorkload(node string, claims Claims, want string) (Match, error) {
	return p.identifyWorkload(node, claims, want, nil)
}

func (p *Program) identifyWorkload(node string, claims Claims, want string, seen *coverage) (Match, error) {
	var best Match
	foreign, why := "", ""
	consider := func(r *identityRule) error {
		path, fits, reason := r.apply(claims, node, seen)
		switch {
		case !fits:
			why += "; " + reason
		case !matchAny(r.nodes, node):
			if foreign == "" || path < foreign {
				foreign = path
			}
		case best.Path != "" && best.Path != path:
			return problem.New(problem.ReasonAmbiguous, "the rules %s and %s both fit this process: it could be %s or %s", best.Rule, r.name, best.Path, path)
		default:
			best = preferred(best, Match{Path: path, Rule: r.name, Session: r.session})
		}
		return nil
	}
	if want != "" {
		for _, i := range p.byWorkload[want] {
			if err := consider(&p.workloads[i]); err != nil {
				return Match{}, err
			}
		}
	} else {
		for i := range p.workloads {
			if err := consider(&p.workloads[i]); err != nil {
				return Match{}, err
			}
		}
	}
	switch {
	case best.Path != "":
		return best, nil
	case foreign != "":
		return Match{}, problem.New(problem.ReasonForeignNode, "%s may not speak for %s", node, foreign)
	case want != "":
		return Match{}, problem.New(problem.ReasonNoIdentity, "no identity rule for %s fits this process%s", want, clip(why))
	}
	return Match{}, problem.New(problem.ReasonNoIdentity, "no workload identity rule fits this process%s", clip(why))
}

// apply tries a rule: the path it gives, or why it doesn't fit.
func (r *identityRule) apply(claims Claims, node string, seen *coverage) (path string, fits bool, why string) {
	if r.when != nil {
		ok, err := r.when.holds(&vars{from: &claims, node: node})
		seen.rule(r, ok, err)
		if err != nil {
			return "", false, r.name + ": its condition can't be told: " + err.Error()
		}
		if !ok {
			return "", false, r.name + ": its condition is false"
		}
	}
	path, err := r.path.expand(claims)
	if err != nil {
		return "", false, r.name + ": " + err.Error()
	}
	return path, true, ""
}

func preferred(a, b Match) Match {
	if a.Path == "" || cmp.Or(cmp.Compare(b.Session, a.Session), cmp.Compare(b.Rule, a.Rule)) < 0 {
		return b
	}
	return a
}

// clip bounds a list of reasons, which grows with the rules.
func clip(why string) string {
	why = strings.Replace(why, "; ", ": ", 1)
	if len(why) > maxMessage {
		return strings.ToValidUTF8(why[:maxMessage], "") + " …"
	}
	return why
}
