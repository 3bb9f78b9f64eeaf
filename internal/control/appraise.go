package control

import (
	"context"
	"strings"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// Appraisal is what an attestation would give.
type Appraisal struct {
	Method    string
	Assurance string
	Anchor    string
	Claims    map[string]any
	Identity  identity.ID // zero: the rules give none
	Rule      string
	Problem   *problem.Problem // why no session would be opened; nil: one would
	Once      string
	Used      bool
}

// Appraise says what Attest would say to the same request, by the same functions, and enters nothing. The challenge is not spent, and what is
// told is about the asker's own evidence, which has been verified: who proves nothing is told no more than Attest tells.
func (e *Environment) Appraise(ctx context.Context, r AttestRequest) (*Appraisal, error) {
	given, err := e.answered(r)
	if err != nil {
		return nil, err
	}
	s := e.log.State()
	prog, err := e.program(ctx, s.Bundle)
	if err != nil {
		return nil, err
	}
	p, err := e.verify(ctx, s, given.method, r, attest.Input{Binding: given.binding, Evidence: r.Evidence, Now: e.cfg.Now()})
	if err != nil {
		return nil, err
	}
	out := &Appraisal{Method: given.method.Name, Assurance: p.Assurance.String(), Anchor: p.Anchor, Claims: p.Claims, Once: p.Once}
	if id, ok := strings.CutPrefix(p.Once, jointoken.Name+":"); ok {
		tok, _ := s.Tokens.Get(id)
		out.Used = tok != nil && !tok.SpentBy.IsZero()
	} else if p.Once != "" {
		out.Used = s.Uses.Has(p.Once)
	}
	match, _ := prog.IdentifyNode(given.method.Name, authorityOf(p.Anchor), p.claims) // why it fails is said by the decision below
	if match.Path != "" {
		if out.Identity, err = identity.New(s.Env.Name, match.Path); err != nil {
			return nil, problem.Wrap(err, problem.ReasonNoIdentity, "making the identity")
		}
		out.Rule = match.Rule
	}
	// The decision itself, on a turn whose draft nobody commits.
	t := &turn{e: e, s: s, now: state.At(e.cfg.Now()), prog: prog}
	t.at.Index = s.Next
	if err = t.spend(given.challenge); err == nil {
		_, err = t.admit(given.method, p, given.challenge, given.key)
	}
	out.Problem = problem.As(unwrapRecorded(err))
	return out, nil
}

// IdentityDetail is all that is known of one identity.
type IdentityDetail struct {
	IdentityView
	Hold      *state.Hold // nil: none
	Once      string
	Gone      uint64 // entry that decommissioned it
	Workloads []string
}

// maxDetail bounds the lists of one identity.
const maxDetail = 100

// ShowIdentity shows one identity, to who audits, revokes or admits, and to itself.
func (e *Environment) ShowIdentity(_ context.Context, c Caller, path string) (*IdentityDetail, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, err
	}
	if x.Identity != path {
		if err := e.mayInspect(x, c); err != nil {
			return nil, err
		}
	}
	if index, gone := s.Gone.Get(path); gone {
		return &IdentityDetail{IdentityView: IdentityView{Identity: &state.Identity{Path: path}, State: "decommissioned"}, Gone: index}, nil
	}
	id, ok := s.Identities.Get(path)
	if !ok {
		return nil, problem.New(problem.ReasonNotFound, "nothing is known of that identity")
	}
	out := &IdentityDetail{IdentityView: viewIdentity(s, id, now)}
	newest, _ := newestSession(s, id)
	if h, held := s.HoldOver(state.SubjectOf(newest), now); held {
		out.Hold = h
	}
	s.Uses.All(func(name string, u *state.Use) bool {
		if u.Identity == path && u.Session == id.Root {
			out.Once = name
		}
		return out.Once == ""
	})
	seen := map[string]bool{}
	s.Sessions.From(id.Root, func(_ uint64, w *state.Session) bool {
		if w.Node == path && now < w.Expires && !w.Closed && !seen[w.Identity] {
			seen[w.Identity] = true
			out.Workloads = append(out.Workloads, w.Identity)
		}
		return len(out.Workloads) < maxDetail
	})
	return out, nil
}
