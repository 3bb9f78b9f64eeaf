package control

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// RevokeRequest takes back what was issued up to here (cutoff), and by default refuses what is asked
// from now on (hold).
type RevokeRequest struct {
	Scope    string
	Reason   string
	Hold     *bool // nil: yes for identities, nodes, issuers and everything; no for secrets
	HoldOnly bool
}

// Revoked is the acknowledgement.
type Revoked struct {
	Index       uint64
	Horizon     time.Time // when, at the latest, all that it covers is dead everywhere
	Covers      int       // identities in scope that live, or lived until a provisional hold of the last hour
	Cutoff      bool
	Hold        bool
	Provisional time.Time // set beyond the blast limit: the hold runs out then, unless a quorum confirms it
	Rotate      []string  // secrets handed out as values, which die only when they are rotated
	Proof       *ledger.Proof
}

// provisionalHold is how long a hold beyond the blast limit stands by itself (DESIGN §10).
const provisionalHold = 15 * time.Minute

// covered is what a scope covers, as of a number of entries.
type covered struct {
	now        state.Millis // when it was looked through
	next       uint64
	identities map[string]bool
	horizon    state.Millis // end of the last live session or lease that was seen
	bound      state.Millis // no renewal of a lease that was seen goes beyond
	rotate     map[string]bool
}

// maxRotate is how many secrets the acknowledgement names.
const maxRotate = 1000

func newCovered() *covered {
	return &covered{identities: make(map[string]bool), rotate: make(map[string]bool)}
}

// survey looks through live sessions and leases from an index on.
func survey(s *state.State, scope state.Scope, now state.Millis, from uint64, c *covered) {
	since := s.StoppedSince(now)
	s.Sessions.From(from, func(_ uint64, x *state.Session) bool {
		if x.Expires > since && scope.Kind != state.ScopeSecret && scope.Covers(state.SubjectOf(x)) {
			c.identities[x.Identity] = true
			c.horizon = max(c.horizon, x.Expires)
		}
		return true
	})
	s.Leases.From(from, func(_ uint64, l *state.Lease) bool {
		if l.Expires <= since || !scope.Covers(state.SubjectOfLease(l)) {
			return true
		}
		if l.Returned == 0 {
			c.identities[l.Identity] = true
		}
		if l.Returned == 0 && l.Expires > now {
			c.horizon, c.bound = max(c.horizon, l.Expires), max(c.bound, l.Max)
		}
		if l.Expires > now && len(c.rotate) < maxRotate {
			c.rotate[l.Secret] = true
		}
		return true
	})
	c.now, c.next = now, s.Next
}

// coverage is what a revocation covers at the head.
type coverage struct {
	identities int
	horizon    state.Millis
	rotate     []string // sorted
}

// surveyed adds what came since the survey, which it leaves as it was: the same turn may be decided twice, at different heads.
func (t *turn) surveyed(scope state.Scope, seen *covered) coverage {
	since := newCovered()
	survey(t.s, scope, t.now, seen.next, since)
	out := coverage{identities: len(seen.identities), horizon: max(seen.horizon, since.horizon, t.now)}
	if seen.next != t.s.Next { // a lease that was seen may have been renewed since
		out.horizon = max(out.horizon, seen.bound, since.bound)
	}
	for id := range since.identities {
		if !seen.identities[id] {
			out.identities++
		}
	}
	for path := range seen.rotate {
		out.rotate = append(out.rotate, path)
	}
	for path := range since.rotate {
		if !seen.rotate[path] && len(out.rotate) < maxRotate {
			out.rotate = append(out.rotate, path)
		}
	}
	slices.Sort(out.rotate)
	return out
}

// Revoke sets a cutoff, a hold, or both, in one commit whatever the number of credentials. What lives is looked
// through before; at the head only what came since is.
func (e *Environment) Revoke(ctx context.Context, c Caller, r RevokeRequest) (*Revoked, error) {
	scope, err := state.ParseScope(r.Scope)
	if err != nil {
		return nil, err
	}
	if len(r.Reason) > 500 {
		return nil, problem.New(problem.ReasonTooLarge, "a reason has at most 500 bytes")
	}
	hold := scope.Kind != state.ScopeSecret
	if r.Hold != nil {
		hold = *r.Hold
	}
	if r.HoldOnly {
		hold = true
	}
	out, proof, err := do(ctx, e,
		func(_ context.Context, s *state.State) (*covered, error) {
			seen := newCovered()
			survey(s, scope, state.At(e.cfg.Now()), 0, seen)
			return seen, nil
		},
		func(t *turn, seen *covered) (*Revoked, error) { return t.revoke(c, r, scope, hold, seen) })
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	return out, nil
}

func (t *turn) revoke(c Caller, r RevokeRequest, scope state.Scope, hold bool, seen *covered) (*Revoked, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	if _, err := t.duty(x, policy.DutyRevoke); err != nil {
		return nil, err
	}
	live := t.surveyed(scope, seen)
	out := &Revoked{Covers: live.identities, Cutoff: !r.HoldOnly, Hold: hold, Horizon: live.horizon.Time()}
	ev := &state.RevocationRecorded{
		Scope: scope.String(), Cutoff: out.Cutoff, Hold: hold, Horizon: live.horizon, Covers: out.Covers,
		Reason: r.Reason, Actor: actorOf(x), Ruling: t.ruling(""),
	}
	if limit := t.prog.Environment().BlastLimit; out.Covers > limit {
		// Beyond the limit one person may only stop things for a while.
		ev.Cutoff, ev.Hold, ev.Until = false, true, t.now.Add(provisionalHold)
		out.Cutoff, out.Hold, out.Provisional = false, true, ev.Until.Time()
	}
	if ev.Hold {
		if err := t.lastQuorum(scope); errors.Is(err, errStale) {
			return nil, err
		} else if err != nil {
			return nil, &denied{problem: problem.As(err), action: "revoke", target: scope.String(), session: x}
		}
	}
	if old, ok := t.s.Holds.Get(ev.Scope); ok && ev.Until != 0 && (old.Until == 0 || t.now < old.Until) {
		// One person can't prolong a provisional hold by repeating it.
		return nil, problem.New(problem.ReasonExists, "there is a hold on %s already", ev.Scope).
			WithFix("propose to make it a cutoff: `bailment revocation confirm %s`", ev.Scope)
	}
	if ev.Until != 0 {
		if p := t.provisional(x.Identity, ev.Scope); p != nil {
			return nil, &denied{problem: p, action: "revoke", target: ev.Scope, session: x}
		}
	}
	if out.Cutoff {
		out.Rotate = live.rotate
	}
	out.Index, err = t.enter(ev)
	return out, err
}

// maxProvisional is how many provisional holds one person may set in a day: an hour, at most, in which he stops things alone.
const maxProvisional = 4

// provisional refuses a hold beyond the blast limit by who set it before, or set many: whether they ran out or were lifted, one
// person doesn't stop things for longer by setting them again.
func (t *turn) provisional(person, scope string) *problem.Problem {
	if _, self := required(t.prog, ActionConfirmCut); self {
		return nil // he is the quorum that could confirm it
	}
	var p *problem.Problem
	prefix, n := state.ProvisionalName(person, ""), 0
	t.s.Once.From(prefix, func(name string, until state.Millis) bool {
		set, own := strings.CutPrefix(name, prefix)
		if !own {
			return false
		}
		if until <= t.now {
			return true
		}
		if n++; set == scope {
			p = problem.New(problem.ReasonBlastLimit, "%s set a hold beyond the blast limit on %s within the last day", person, scope)
		}
		return true
	})
	if p == nil && n >= maxProvisional {
		p = problem.New(problem.ReasonBlastLimit, "%s set %d holds beyond the blast limit within the last day", person, n)
	}
	if p != nil {
		p = p.WithFix("have another operator revoke, and a quorum confirm it with the action %s", ActionConfirmCut)
	}
	return p
}

// lastQuorum refuses a hold after which too few persons could approve anything, now or when the recovery that is under way has made others
// operators: it may be from who sets the hold that they recover, and he sees whom it names.
func (t *turn) lastQuorum(scope state.Scope) error {
	if scope.Kind == state.ScopeEverything || scope.Kind == state.ScopeSecret || scope.Kind == state.ScopeNode {
		return nil // these holds do not cover persons
	}
	if server := (state.Subject{Identity: identity.PrefixServer + t.e.cfg.ServerID, Anchor: viaServer, Own: t.at.Index, Root: t.at.Index}); scope.Covers(server) {
		return problem.New(problem.ReasonLastQuorum, "this would keep the server itself from serving, and nobody could lift it")
	}
	if p := t.quorumAfter(scope, t.prog, t.now); p != nil {
		return p
	}
	if r := t.s.Recovery(); r != nil {
		after, ok := t.e.programs.get(r.Manifest)
		if !ok {
			return errStale
		}
		if after == nil {
			return nil // this release can't compile it, nor carry it out
		}
		if p := t.quorumAfter(scope, after, max(t.now, r.Until)); p != nil {
			return p
		}
	}
	return nil
}

// quorumAfter is quorum among a bundle's operators under the holds of a moment, and one more.
func (t *turn) quorumAfter(scope state.Scope, prog *policy.Program, at state.Millis) *problem.Problem {
	return quorum(prog, func(op policy.Operator) bool { return t.canLogin(op, at, scope.Covers) })
}

// canLogin reports whether any key of the person is free of the holds of a moment, and of one more.
func (t *turn) canLogin(op policy.Operator, at state.Millis, more func(state.Subject) bool) bool {
	for _, k := range op.Keys {
		x := state.Subject{Identity: op.Path(), Anchor: sshAnchor(k.Fingerprint), Own: t.at.Index, Root: t.at.Index}
		if _, held := t.s.HoldOver(x, at); !held && !more(x) {
			return true
		}
	}
	return false
}

// RevocationView is what stands on a scope.
type RevocationView struct {
	Scope  string
	Cutoff uint64 // index; 0: none
	Hold   *state.Hold
	// Who set the hold, or else the cutoff, and why. Of cutoffs only, ListRevocations says it of the newest, and Watch of none.
	By, Reason string
}

// maxExplained is how many cutoffs of one list are looked up for who set them and why, the newest first.
const maxExplained = 1000

// ListRevocations lists cutoffs and holds, for operators.
func (e *Environment) ListRevocations(ctx context.Context, c Caller) ([]RevocationView, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, err
	}
	if err := e.mayInspect(x, c); err != nil {
		return nil, err
	}
	all := revocations(s, now, func(state.Scope) bool { return true })
	return all, e.explainCutoffs(ctx, all)
}

// explainCutoffs looks up who set the newest cutoffs and why. The state keeps of a cutoff only its place, for every decision asks it;
// the rest is in the ledger.
func (e *Environment) explainCutoffs(ctx context.Context, all []RevocationView) error {
	var bare []*RevocationView
	for i := range all {
		if all[i].Hold == nil {
			bare = append(bare, &all[i])
		}
	}
	slices.SortFunc(bare, func(a, b *RevocationView) int { return cmp.Compare(b.Cutoff, a.Cutoff) })
	for _, v := range bare[:min(len(bare), maxExplained)] {
		ev, err := readEvent[*state.RevocationRecorded](ctx, e, v.Cutoff)
		if err != nil {
			return e.storeProblem(err, "reading who cut off "+v.Scope)
		}
		v.By, v.Reason = ev.Actor.Identity, ev.Reason
	}
	return nil
}

func revocations(s *state.State, now state.Millis, want func(state.Scope) bool) []RevocationView {
	by := make(map[string]*RevocationView)
	get := func(scope string) *RevocationView {
		parsed, err := state.ParseScope(scope)
		if err != nil || !want(parsed) {
			return nil
		}
		if by[scope] == nil {
			by[scope] = &RevocationView{Scope: scope}
		}
		return by[scope]
	}
	s.Cutoffs.All(func(scope string, index uint64) bool {
		if v := get(scope); v != nil {
			v.Cutoff = index
		}
		return true
	})
	s.Holds.All(func(scope string, h *state.Hold) bool {
		if v := get(scope); v != nil && (h.Until == 0 || now < h.Until) {
			v.Hold, v.By, v.Reason = h, h.By, h.Reason
		}
		return true
	})
	out := make([]RevocationView, 0, len(by))
	for _, v := range by {
		if v.Cutoff != 0 || v.Hold != nil {
			out = append(out, *v)
		}
	}
	slices.SortFunc(out, func(a, b RevocationView) int { return cmp.Compare(a.Scope, b.Scope) })
	return out
}

// concerns reports whether a revocation's scope may cover a node or a workload that it speaks for.
func concerns(scope state.Scope, node *state.Session) bool {
	return scope.Kind == state.ScopeSecret || scope.Covers(state.SubjectOf(node)) ||
		(scope.Kind == state.ScopeIdentity && strings.HasPrefix(scope.Value, identity.PrefixWorkload))
}
