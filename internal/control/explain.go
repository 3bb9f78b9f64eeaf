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
	Node     string // for a workload; empty: the newest session's
	Action   policy.Action
	Secret   string
	Purpose  string
	Claims   map[string]any // instead of the newest session's
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
}

// Explain decides as the door would, by the same functions, and writes nothing. Everybody may ask about himself; about
// others, who has the duty audit or revoke.
func (e *Environment) Explain(ctx context.Context, c Caller, r ExplainRequest) (*Explanation, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	caller, err := e.judge(s, c, now)
	if err != nil {
		return nil, err
	}
	if r.Identity == "" {
		r.Identity = caller.Identity
	}
	r.Identity = strings.TrimPrefix(r.Identity, identity.Scheme+s.Env.Name)
	if r.Identity != caller.Identity {
		if err := e.mayInspect(caller, c); err != nil {
			return nil, err
		}
	}
	if err := identity.ValidPath(r.Identity); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the identity")
	}
	if r.Purpose == "" && r.Action == policy.ReadSecret {
		r.Purpose = DefaultPurpose
	}
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	return explain(s, prog, r, now)
}

// explain is pure: state, program, request and time in, explanation out.
func explain(s *state.State, prog *policy.Program, r ExplainRequest, now state.Millis) (*Explanation, error) {
	out := &Explanation{Generation: s.Generation}
	check := func(name string, p *problem.Problem, detail string) {
		if p != nil {
			detail = p.Message
			if out.Problem == nil {
				out.Problem = p
			}
		}
		out.Checks = append(out.Checks, Check{Name: name, Passed: p == nil, Detail: detail})
	}
	x, p := explainSession(s, r, now)
	check("session", p, fmt.Sprintf("session %d by %s, assurance %s", x.Index, x.Method, x.Assurance))
	_, p = checkRevoked(s, state.SubjectOf(x), now)
	check("revocation", p, "no cutoff or hold covers the identity")

	claims := &claimCache{}
	check("identity", stands(s, prog, claims, x), "by the bundle in force it is who it says")
	in, err := inputOf(s, claims, x, r.Action, r.Secret, r.Purpose, now)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "reading the claims")
	}
	out.Decision, out.Rules = prog.Explain(in)
	_, p = decidePermit(s, prog, claims, x, r.Action, r.Secret, r.Purpose, now)
	check("grants", p, "permitted by "+out.Decision.Grant)
	if r.Action == policy.ReadSecret {
		p = nil
		detail := ""
		if sec, ok := s.Secrets.Get(r.Secret); !ok || sec.Current == 0 {
			p = problem.New(problem.ReasonNoVersion, "%s has no current version", r.Secret)
		} else {
			detail = fmt.Sprintf("version %d is current", sec.Current)
		}
		check("version", p, detail)
	}
	if out.Problem != nil {
		out.Problem = wayOut(s, out.Problem, state.SubjectOf(x), r.Secret, now)
	}
	return out, nil
}

// wayOut replaces ways out that lead back to where the reader is, or on to the next refusal.
func wayOut(s *state.State, p *problem.Problem, x state.Subject, secret string, now state.Millis) *problem.Problem {
	x.Secret = secret
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

// explainSession is the newest session of an identity, or a stand-in where there is none.
func explainSession(s *state.State, r ExplainRequest, now state.Millis) (*state.Session, *problem.Problem) {
	x := &state.Session{
		Identity: r.Identity, Node: r.Node, Claims: r.Claims, Method: "none", Assurance: identity.Unbound.String(), Index: s.Next, Root: s.Next,
		Generation: s.Generation, // without a proof there is nothing to ask the rules about
	}
	var p *problem.Problem
	id, known := s.Identities.Get(r.Identity)
	if !known {
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
