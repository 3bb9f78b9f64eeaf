package control

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/state"
)

// evaluator is the version of the decision's evaluation, entered with each ruling so that an old
// decision is decided again by the rules of its time.
const evaluator = 1

// Caller is who asks: the session of the connection's certificate, and where it comes from.
type Caller struct {
	Session uint64     // index of the entry that opened it, from the certificate's serial
	Key     [32]byte   // thumbprint of the key that the connection proved
	Source  netip.Addr // of the peer
}

// turn is one decision: the state at the head, its place, and the entries that it proposes.
// Decide functions have nothing else to work with, so they are pure.
type turn struct {
	e     *Environment
	s     *state.State
	at    ledger.At
	now   state.Millis
	prog  *policy.Program
	draft ledger.Draft
	// by is what governs the decision of a permission, once one was asked for; before it, and for all else, it is the bundle in force.
	by governor
	// beside is what the other bundle of a rollout said to it.
	beside beside
	// custody is what a move of the root key's custody was prepared to be.
	custody *moved
	// raised: the draft raises the protocol.
	raised bool
}

// enter adds an entry and returns the index that it will have.
func (t *turn) enter(ev state.Event) (uint64, error) {
	if !t.s.MayWrite(ev) && !t.raised {
		// The first entry of a newer type raises the protocol: with an embedded store this program is the only one that reads it.
		t.raised = true
		if _, err := t.enter(&state.ProtocolRaised{Version: state.Protocol}); err != nil {
			return 0, err
		}
	}
	entry := &state.Entry{Time: t.now, Event: ev}
	body, err := state.Encode(entry)
	if err != nil {
		return 0, err
	}
	index := t.at.Index + uint64(len(t.draft.Records))
	t.draft.Records = append(t.draft.Records, ledger.Record{Body: body, Event: entry})
	return index, nil
}

// ruling says what governed the decision.
func (t *turn) ruling(grant string) state.Ruling {
	r := state.Ruling{Generation: t.s.Generation, Bundle: t.s.Bundle, Grant: grant, Evaluator: evaluator}
	if t.by.prog != nil {
		r.Bundle, r.Cohort = t.by.bundle, t.by.cohort
	}
	return r
}

// inForce is the bundle in force as a governor.
func (t *turn) inForce() governor { return governor{prog: t.prog, bundle: t.s.Bundle} }

// errStale tells the door to prepare again: what was prepared is not what is to be given now.
var errStale = errors.New("stale: prepare again")

// prepareAttempts is how often a request is prepared before it is a conflict (DESIGN §4).
const prepareAttempts = 3

// outcome is what a decision gave: a value, or a refusal that may stand in the ledger itself.
type outcome[R any] struct {
	value R
	err   error
	sum   *denial // a refusal that is only counted
	after uint64  // entries of the draft that stand before its own
	// beside is what is kept of a rollout's comparison, for which change.
	beside beside
	change uint64
	minute int64
}

// do is the way through the one door: prepare outside, decide at the head, and again if what was
// prepared is stale. prepare may fail for reasons that only the decision may name (the secret does
// not exist, say): it then returns what it could, and decide finds out itself.
func do[P, R any](ctx context.Context, e *Environment, prepare func(context.Context, *state.State) (P, error), decide func(*turn, P) (R, error)) (R, *ledger.Proof, error) {
	var zero R
	for range prepareAttempts {
		s := e.log.State()
		if p := ended(s); p != nil {
			return zero, nil, p
		}
		if err := e.load(ctx, s); err != nil {
			return zero, nil, err
		}
		prepared, err := prepare(ctx, s)
		if err != nil {
			return zero, nil, err
		}
		out, proof, err := ledger.Commit(ctx, e.log, func(s *state.State, at ledger.At) (ledger.Draft, outcome[R], error) {
			if p := ended(s); p != nil {
				return ledger.Draft{}, outcome[R]{err: p}, nil // what was asked before it, and comes to the head after it
			}
			prog, ok := e.programs.get(s.Bundle)
			if !ok {
				return ledger.Draft{}, outcome[R]{err: errStale}, nil
			}
			t := &turn{e: e, s: s, at: at, now: state.At(at.Time), prog: prog}
			value, err := decide(t, prepared)
			out := outcome[R]{err: err, beside: t.beside, minute: int64(t.now) / 60_000}
			if r := s.Rollout(t.now); r != nil {
				out.change = r.Change
			}
			var d *denied
			switch {
			case errors.As(err, &d):
				draft := t.deny(d)
				out.err, out.sum, out.after = d.problem, t.sumOf(d), before(draft)
				return draft, out, nil
			case err != nil:
				// Entries that were proposed with the error stand: a fork that holds a node, say.
				draft := keepIf(err, t.draft)
				out.after = before(draft)
				return draft, out, nil
			}
			out.value, out.after = value, before(t.draft)
			return t.draft, out, nil
		})
		if err != nil {
			return zero, nil, err
		}
		if out.sum != nil {
			e.denials.add(*out.sum)
		}
		if errors.Is(out.err, errStale) {
			continue
		}
		if out.beside.compared {
			e.differences.add(out.change, out.minute, out.beside)
		}
		if out.after > 0 {
			own := *proof
			own.Index += out.after
			proof = &own
		}
		if out.err != nil {
			return zero, proof, entered(unwrapRecorded(out.err), proof)
		}
		return out.value, proof, nil
	}
	return zero, nil, problem.New(problem.ReasonStale, "what was prepared was overtaken %d times", prepareAttempts)
}

// before is how many entries of a draft stand before the one that it is about: where that is the first of a newer type, the one that raises
// the protocol. A proof is of the draft's first entry, and would name that one to who asks what became of his request.
func before(d ledger.Draft) uint64 {
	if len(d.Records) < 2 {
		return 0
	}
	if x, ok := d.Records[0].Event.(*state.Entry); ok {
		if _, raised := x.Event.(*state.ProtocolRaised); raised {
			return 1
		}
	}
	return 0
}

// recorded is a refusal that comes with entries of its own.
type recorded struct{ error }

func (r recorded) Unwrap() error { return r.error }

func keepIf(err error, d ledger.Draft) ledger.Draft {
	var r recorded
	if errors.As(err, &r) {
		return d
	}
	return ledger.Draft{}
}

func unwrapRecorded(err error) error {
	var r recorded
	if errors.As(err, &r) {
		return r.error
	}
	return err
}

// entered says in a refusal where it was entered, if it was.
func entered(err error, proof *ledger.Proof) error {
	if proof == nil {
		return err
	}
	return problem.As(err).WithEntry(proof.Index)
}

// nothing is for use cases with nothing to prepare.
func nothing(context.Context, *state.State) (struct{}, error) { return struct{}{}, nil }

// denied is a refusal of a proved identity: it becomes an entry, or is counted.
type denied struct {
	problem *problem.Problem
	action  string
	target  string
	purpose string
	grant   string
	session *state.Session
	// permission: the refusal is a decision about a secret, which a rollout may have brought about.
	permission bool
}

func (d *denied) Error() string { return d.problem.Error() }
func (d *denied) Unwrap() error { return d.problem }

// wholeDenialsPerMinute is how many denials of one identity are entered whole in a minute.
const wholeDenialsPerMinute = 60

func (t *turn) whole(identity string) bool {
	d, ok := t.s.Denials.Get(identity)
	return !ok || d.Minute != int64(t.now)/60_000 || d.Count < wholeDenialsPerMinute
}

// deny makes the entry of a refusal, in place of whatever was proposed before it.
func (t *turn) deny(d *denied) ledger.Draft {
	t.draft = ledger.Draft{}
	if d.session == nil {
		return t.draft
	}
	ev := &state.RequestDenied{
		Action: d.action, Target: limitText(d.target), Purpose: limitText(d.purpose), Reason: string(d.problem.Reason),
		Actor: actorOf(d.session), Ruling: t.ruling(d.grant),
	}
	tells := false
	if x := t.beside.differs; d.permission && t.beside.loses {
		ev.Beside, ev.Version, ev.Undecided = state.BesideAllowed, x.Version, x.Undecided
		// Many machines may have one identity: what one of them floods must not fill the minute for what the others lose.
		tells = t.s.Tells(state.Loss{
			Identity: x.Identity, Node: x.Node, Secret: ev.Target, Purpose: ev.Purpose, Version: x.Version, Undecided: x.Undecided,
		}, t.now)
	}
	if !tells && !t.whole(d.session.Identity) {
		return t.draft
	}
	if _, err := t.enter(ev); err != nil {
		t.draft = ledger.Draft{}
	}
	return t.draft
}

// sumOf counts a refusal that deny did not enter.
func (t *turn) sumOf(d *denied) *denial {
	if d.session == nil || len(t.draft.Records) > 0 {
		return nil
	}
	return &denial{method: "identity", identity: d.session.Identity, reason: d.problem.Reason, minute: int64(t.now) / 60_000}
}

// limitText keeps what a stranger wrote small where it is entered, and UTF-8, also where it is cut: an entry takes nothing else, and a
// refusal that could not be written down would leave no trace.
func limitText(s string) string {
	const most = 300
	end := ""
	if len(s) > most {
		s, end = s[:most], "…"
	}
	return strings.ToValidUTF8(s, "") + end
}

func actorOf(x *state.Session) state.Actor {
	return state.Actor{Identity: x.Identity, Node: x.Node, Session: x.Index}
}

// session judges the caller's session by the head: known, its own key, not expired, not given back,
// not cut off, not held.
func (t *turn) session(c Caller) (*state.Session, error) {
	x, err := liveSession(t.s, c, t.now)
	if err != nil {
		return nil, err
	}
	if _, p := checkRevoked(t.s, state.SubjectOf(x), t.now); p != nil {
		return nil, &denied{problem: p, action: "session", target: x.Identity, session: x}
	}
	return x, nil
}

func liveSession(s *state.State, c Caller, now state.Millis) (*state.Session, error) {
	if p := ended(s); p != nil {
		return nil, p
	}
	if c.Session == 0 {
		return nil, problem.New(problem.ReasonNoSession, "this needs a session, and the connection has no client certificate")
	}
	x, ok := s.Sessions.Get(c.Session)
	switch {
	case !ok, x.Key != state.Digest(c.Key):
		return nil, problem.New(problem.ReasonSessionUnknown, "there is no such session any more")
	case x.Closed:
		return nil, problem.New(problem.ReasonSessionExpired, "this session was given back")
	case now >= x.Expires:
		return nil, problem.New(problem.ReasonSessionExpired, "this session expired at %s", x.Expires)
	}
	return x, nil
}

// checkRevoked says which cutoff or hold covers the subject, if one does. What was ended for ever says so, whatever else covers it.
func checkRevoked(s *state.State, x state.Subject, now state.Millis) (string, *problem.Problem) {
	for _, path := range []string{x.Identity, x.Node} {
		if p := checkGone(s, path); p != nil {
			return "identity:" + path, p
		}
	}
	if scope, index, dead := s.CutoffOver(x); dead {
		return scope, problem.New(problem.ReasonCutoff, "revoked by entry %d (%s)", index, scope)
	}
	if h, held := s.HoldOver(x, now); held {
		return h.Scope, heldBy(h)
	}
	return "", nil
}

// checkGone refuses an identity that was decommissioned.
func checkGone(s *state.State, path string) *problem.Problem {
	if index, gone := s.Gone.Get(path); gone {
		return problem.New(problem.ReasonDecommissioned, "%s was decommissioned by entry %d", path, index)
	}
	return nil
}

func heldBy(h *state.Hold) *problem.Problem {
	if h.Quarantine {
		return problem.New(problem.ReasonQuarantined, "quarantined by entry %d: %s", h.Index, h.Reason)
	}
	return problem.New(problem.ReasonHeld, "held by entry %d (%s)", h.Index, h.Scope)
}

// permit decides whether the session may do the action, by revocations and by the grants of the
// bundle in force. Every release, write and listing comes through here.
func (t *turn) permit(x *state.Session, action policy.Action, secret, purpose string) (policy.Decision, error) {
	by, ok := t.e.governing(t.s, x.Identity)
	if !ok {
		return policy.Decision{}, errStale
	}
	if p := by.unusable(); p != nil {
		return policy.Decision{}, p
	}
	t.by, t.prog = by, by.prog
	d, p := decidePermit(t.s, by, t.e.claims, x, action, secret, purpose, t.now)
	var err error
	if t.beside, err = t.compare(x, action, secret, purpose, d, p); err != nil {
		return d, err
	}
	if p != nil {
		return d, &denied{problem: p, action: string(action), target: secret, purpose: purpose, grant: d.Grant, session: x, permission: true}
	}
	return d, nil
}

// decidePermit is the one decision: the door, Explain and replay use it.
func decidePermit(s *state.State, by governor, claims *claimCache, x *state.Session, action policy.Action, secret, purpose string, now state.Millis) (policy.Decision, *problem.Problem) {
	subject := state.SubjectOf(x)
	subject.Secret = secret
	if h, held := s.HoldOver(subject, now); held {
		return policy.Decision{}, heldBy(h)
	}
	if strings.HasPrefix(x.Identity, identity.PrefixHuman) {
		if _, p := operatorOf(by.prog, x); p != nil {
			return policy.Decision{}, p
		}
	}
	if p := stands(s, by, claims, x); p != nil {
		return policy.Decision{}, p
	}
	in, err := inputOf(s, claims, x, action, secret, purpose, now)
	if err != nil {
		return policy.Decision{}, problem.Wrap(err, problem.ReasonCondition, "reading the session's claims")
	}
	d := by.prog.Decide(in)
	if !d.Allow {
		return d, problem.New(d.Reason, "%s", d.Message)
	}
	return d, nil
}

func inputOf(s *state.State, claims *claimCache, x *state.Session, action policy.Action, secret, purpose string, now state.Millis) (*policy.Input, error) {
	in := &policy.Input{
		Action: action, Identity: x.Identity, Node: x.Node, Secret: secret, Purpose: purpose, Time: now.Time(),
	}
	for _, g := range s.Opened(x.Identity, now) {
		in.Opened = append(in.Opened, policy.Opened{Grant: g.Grant, Until: g.Until.Time()})
	}
	var err error
	if in.Assurance, err = identity.ParseAssurance(x.Assurance); err != nil {
		return nil, err
	}
	if in.Claims, err = claims.of(x.Index, x.Claims); err != nil {
		return nil, err
	}
	if x.Node != "" {
		// The node's newest proof counts, not the one that the workload was attested under.
		if node, ok := s.Identities.Get(x.Node); ok {
			if in.NodeClaims, err = claims.of(node.Session, node.Claims); err != nil {
				return nil, err
			}
		}
	}
	return in, nil
}

// duty checks that the session is an operator's, by a key still listed, with the duty.
func (t *turn) duty(x *state.Session, d policy.Duty) (policy.Operator, error) {
	op, p := dutyOf(t.prog, x, d)
	if p != nil {
		return op, &denied{problem: p, action: "duty." + string(d), session: x}
	}
	return op, nil
}

func dutyOf(prog *policy.Program, x *state.Session, d policy.Duty) (policy.Operator, *problem.Problem) {
	op, p := operatorOf(prog, x)
	if p == nil && !op.Has(d) {
		p = problem.New(problem.ReasonDuty, "%s does not have the duty %s", op.Name, d)
	}
	return op, p
}

// operatorOf is the person of a session, if the bundle in force still lists him with the key of the login.
func operatorOf(prog *policy.Program, x *state.Session) (policy.Operator, *problem.Problem) {
	const prefix = identity.PrefixHuman
	if len(x.Identity) <= len(prefix) || x.Identity[:len(prefix)] != prefix {
		return policy.Operator{}, problem.New(problem.ReasonDuty, "%s is not an operator", x.Identity)
	}
	op, ok := prog.Operator(x.Identity[len(prefix):])
	if !ok {
		return op, problem.New(problem.ReasonDuty, "%s is not an operator of the bundle in force", x.Identity)
	}
	listed := false
	for _, k := range op.Keys {
		listed = listed || sshAnchor(k.Fingerprint) == x.Anchor
	}
	if !listed {
		return op, problem.New(problem.ReasonDuty, "the key of this login is no longer listed for %s", op.Name)
	}
	return op, nil
}

func sshAnchor(fingerprint string) string { return "ssh:" + fingerprint }

// idempotent looks a key up. It returns the first effect if the same request had it, nil if the
// key is new or empty, and a refusal if it was another request's or there are too many.
//
// A cutoff over what had the first effect beats the key, also for who has proved itself anew since.
func (t *turn) idempotent(x *state.Session, k *state.IdemKey) (*state.Idempotent, error) {
	if k == nil {
		return nil, nil
	}
	owner := state.IdemOwner(x.Identity, x.Node)
	if first, ok := firstEffect(t.s, owner, k, t.now); ok {
		if first.Request != k.Request {
			return nil, problem.New(problem.ReasonKeyReused, "idempotency key %q was used for another request", k.Key)
		}
		if scope, index, dead := t.s.CutoffOver(state.SubjectOfEffect(x.Identity, first)); dead {
			p := problem.New(problem.ReasonCutoff, "what this key did first was revoked by entry %d (%s)", index, scope)
			return nil, &denied{problem: p, action: "retry", target: k.Key, session: x}
		}
		return first, nil
	}
	if n, _ := t.s.IdemCount.Get(owner); n >= maxIdempotencyKeys {
		return nil, problem.New(problem.ReasonKeyLimit, "%s has %d live idempotency keys", x.Identity, n).WithRetryAfter(time.Minute)
	}
	return nil, nil
}

// firstEffect is the live row of a key, of whatever request.
func firstEffect(s *state.State, owner string, k *state.IdemKey, now state.Millis) (*state.Idempotent, bool) {
	if k == nil {
		return nil, false
	}
	first, ok := s.Idem.Get(state.IdemName(owner, k.Key))
	return first, ok && now < first.Expires
}

const (
	maxIdempotencyKeys = 1000
	maxIdempotencyKey  = 128
)

// idemKey pins a key to its request. The digest is keyed, because a request may hold a value.
func (e *Environment) idemKey(key string, parts ...[]byte) (*state.IdemKey, error) {
	if key == "" {
		return nil, nil
	}
	if len(key) > maxIdempotencyKey {
		return nil, problem.New(problem.ReasonInvalid, "an idempotency key has at most %d characters", maxIdempotencyKey)
	}
	for _, c := range []byte(key) {
		if c <= ' ' || c > '~' {
			return nil, problem.New(problem.ReasonInvalid, "an idempotency key is printable ASCII without spaces")
		}
	}
	return &state.IdemKey{Key: key, Request: e.keyedDigest("idempotency", parts...)}, nil
}

// keyedDigest is HMAC-SHA-256 over the parts, each with its length before it.
func (e *Environment) keyedDigest(label string, parts ...[]byte) state.Digest {
	h := hmac.New(sha256.New, e.keys.Load().MAC().Expose())
	h.Write([]byte("bailment " + label + " v1\n"))
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	var d state.Digest
	h.Sum(d[:0])
	return d
}
