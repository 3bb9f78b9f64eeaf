package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// ExplainRequest asks what would be decided, and why.
type ExplainRequest struct {
	Identity string // empty: the caller
	Node     string // for a workload; empty: the caller's own, or of another's newest session
	Action   policy.Action
	Secret   string
	Purpose  string
	Claims   map[string]any // instead of the newest session's
	Change   uint64         // by the bundle that this change proposes, as all else is now; 0: by what governs
	Past     bool           // as it was when the entry At was made
	At       uint64
}

// Check is one step of the decision outside of the grants.
type Check struct {
	Name   string
	Passed bool
	Detail string
}

// Explanation is the decision with all its reasons.
type Explanation struct {
	Decision   policy.Decision
	Problem    *problem.Problem // nil if allowed
	Checks     []Check
	Rules      []policy.RuleTrace
	Generation uint64
	Cohort     string // of a rollout, if its candidate governs the identity; else ""
	Bundle     state.Digest
	Time       state.Millis // that it is decided for
}

// Explain decides as the door would, by the same functions, and writes nothing. Everybody may ask about himself, which is the session
// that he asks in; about others, who has the duty audit or revoke. Who has neither is told of the rules that name him and of no other,
// and of a secret only what a read would have told him: a bundle is not for everybody to read, and neither is what there is.
func (e *Environment) Explain(ctx context.Context, c Caller, r ExplainRequest) (*Explanation, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	caller, err := e.judge(s, c, now)
	if err != nil {
		return nil, err
	}
	r.Identity = strings.TrimPrefix(r.Identity, identity.Scheme+s.Env.Name)
	r.Node = strings.TrimPrefix(r.Node, identity.Scheme+s.Env.Name)
	if r.Identity == "" {
		r.Identity = caller.Identity
	}
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	if r.Change != 0 || r.Past {
		return e.explainOther(ctx, c, caller, r)
	}
	by, err := e.governingNow(ctx, s, r.Identity)
	if err != nil {
		return nil, err
	}
	q := question{ExplainRequest: r, all: mayInspect(prog, caller) == nil}
	if r.Identity == caller.Identity && (r.Node == "" || r.Node == caller.Node) {
		q.self = caller
	} else if err := e.mayInspect(caller, c); err != nil {
		return nil, err
	}
	if err := q.valid(); err != nil {
		return nil, err
	}
	return explain(s, by, q, now)
}

// question is what is to be explained, and to whom.
type question struct {
	ExplainRequest
	self *state.Session // the caller's own session, if it is about himself
	all  bool           // the caller may see everybody's
}

// valid refuses what the use case would refuse before it decides, and asks for a purpose where the use case does.
func (q *question) valid() error {
	if err := identity.ValidPath(q.Identity); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the identity")
	}
	if _, err := identity.ParseSecretPath(q.Secret); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the secret's name")
	}
	if q.Action != policy.ReadSecret {
		q.Purpose = ""
		return nil
	}
	if q.Purpose == "" {
		q.Purpose = DefaultPurpose
	}
	if err := policy.ValidPurpose(q.Purpose); err != nil {
		return problem.Wrap(err, problem.ReasonInvalid, "the purpose")
	}
	return nil
}

// explain is pure: state, program, question and time in, explanation out.
func explain(s *state.State, by governor, q question, now state.Millis) (*Explanation, error) {
	out := &Explanation{Generation: s.Generation, Cohort: by.cohort, Bundle: by.bundle, Time: now}
	check := func(name string, p *problem.Problem, detail string) {
		if p != nil {
			detail = p.Message
			if out.Problem == nil {
				out.Problem = p
			}
		}
		out.Checks = append(out.Checks, Check{Name: name, Passed: p == nil, Detail: detail})
	}
	x, p := explainSession(s, q, now)
	check("session", p, fmt.Sprintf("session %d by %s, assurance %s", x.Index, x.Method, x.Assurance))
	_, p = checkRevoked(s, state.SubjectOf(x), now)
	check("revocation", p, "no cutoff or hold covers the identity")

	claims := newClaimCache()
	check("identity", stands(s, by, claims, x), "by the governing bundle it is who it says")
	in, err := inputOf(s, claims, x, q.Action, q.Secret, q.Purpose, now)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the claims")
	}
	var rules []policy.RuleTrace
	out.Decision, rules = by.prog.Explain(in)
	for _, t := range rules {
		if q.all || t.Named {
			out.Rules = append(out.Rules, t)
		}
	}
	_, p = decidePermit(s, by, claims, x, q.Action, q.Secret, q.Purpose, now)
	check("grants", p, "permitted by "+out.Decision.Grant)
	if q.all || p == nil && q.Claims == nil { // claims that were not proved open nothing
		explainSecret(s, by.prog, q, check)
	}
	if out.Problem != nil {
		subject := state.SubjectOf(x)
		if q.all || out.Problem.Reason == problem.ReasonHeld {
			subject.Secret = q.Secret
		}
		out.Problem = wayOut(s, out.Problem, subject, now)
	}
	return out, nil
}

// wayOut replaces ways out that lead back to where the reader is, or on to the next refusal.
func wayOut(s *state.State, p *problem.Problem, x state.Subject, now state.Millis) *problem.Problem {
	h, held := s.HoldOver(x, now)
	lift := func() string {
		return fmt.Sprintf("propose to lift it, when it is time: `bailment revocation lift %s`", h.Scope)
	}
	switch {
	case p.Reason == problem.ReasonHeld && held:
		return p.WithFix("%s", lift())
	case p.Reason == problem.ReasonCutoff && held:
		return p.WithFix("entry %d holds %s as well, so a new session is refused too; %s", h.Index, h.Scope, lift())
	case p.Reason == problem.ReasonCutoff:
		return p.WithFix("this is about the session up to now, and nothing is held: attest or log in again (`bailment run` does), and ask again")
	case p.Reason == problem.ReasonNoGrant:
		return p.WithFix("add a grant to the bundle; the rules say what keeps each of the others from applying")
	case p.Reason == problem.ReasonDenied:
		return p.WithFix("a deny grant wins over all others: narrow the one that applies, if this is meant to be allowed")
	}
	return p
}

// explainSecret is what the use case asks once the action is permitted.
func explainSecret(s *state.State, prog *policy.Program, q question, check func(string, *problem.Problem, string)) {
	switch q.Action {
	case policy.ReadSecret:
		if sec, ok := s.Secrets.Get(q.Secret); !ok || sec.Current == 0 {
			check("version", problem.New(problem.ReasonNoVersion, "%s has no current version", q.Secret), "")
		} else {
			check("version", nil, fmt.Sprintf("version %d is current", sec.Current))
		}
	case policy.WriteSecret, policy.GenerateSecret:
		if declared, ok := prog.Secret(q.Secret); !ok {
			check("declaration", problem.New(problem.ReasonNotDeclared, "%s is not declared in the bundle in force", q.Secret), "")
		} else {
			check("declaration", nil, "declared as "+declared.Pattern.String())
		}
	}
}

// explainSession is the caller's own session, the newest one of another identity, or a stand-in where there is none.
func explainSession(s *state.State, r question, now state.Millis) (*state.Session, *problem.Problem) {
	x := &state.Session{
		Identity: r.Identity, Node: r.Node, Claims: r.Claims, Method: "none", Assurance: identity.Unbound.String(), Index: s.Next, Root: s.Next,
		Generation: s.Generation, // without a proof there is nothing to ask the rules about
	}
	var p *problem.Problem
	id, known := s.Identities.Get(r.Identity)
	if r.self != nil {
		own := *r.self
		x, known = &own, true
	} else if !known {
		p = problem.New(problem.ReasonNoSession, "%s has not been attested", r.Identity)
	} else if live, ok := s.Sessions.Get(id.Session); ok {
		copied := *live
		x = &copied
		if now >= x.Expires || x.Closed {
			p = problem.New(problem.ReasonSessionExpired, "the newest session of %s is over", r.Identity)
		}
	} else {
		p = problem.New(problem.ReasonSessionExpired, "the newest session of %s is over", r.Identity)
		x.Method, x.Assurance, x.Anchor, x.Claims, x.Generation = id.Method, id.Assurance, id.Anchor, id.Claims, 0
	}
	if r.Node != "" && r.Node != x.Node {
		x.Node = r.Node
		if node, ok := s.Identities.Get(r.Node); ok {
			x.Anchor, x.Root, x.Assurance = node.Anchor, node.Root, node.Assurance
		}
		x.Generation = 0 // the rules have not been asked about it
	}
	if r.Claims != nil {
		x.Claims, x.Index = r.Claims, s.Next
		if known {
			x.Generation = 0
		}
	}
	return x, p
}
