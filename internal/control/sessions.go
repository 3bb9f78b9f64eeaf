package control

import (
	"context"
	"crypto/ed25519"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
)

// LoginRequest is an operator's SSHSIG over the login text.
type LoginRequest struct {
	Challenge []byte
	Person    string
	SSHSIG    string
	CSR       []byte
}

// Login opens an operator's session.
func (e *Environment) Login(ctx context.Context, r LoginRequest) (*Opened, error) {
	if err := policy.ValidPerson(r.Person); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the person's name")
	}
	c, err := e.checkChallenge(r.Challenge)
	if err != nil {
		return nil, err
	}
	key, err := parseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	s := e.log.State()
	text := ceremony.Login{Scope: e.scope(s), Person: r.Person, SessionKey: key.thumb, Challenge: c.raw}.Text()
	out, proof, err := do(ctx, e,
		func(_ context.Context, s *state.State) (string, error) {
			prog, _ := e.programs.get(s.Bundle)
			fingerprint, err := verifyPerson(prog, r.Person, ceremony.NamespaceLogin, text, r.SSHSIG)
			if err != nil {
				return "", err
			}
			return fingerprint, e.mayOpen(identity.PrefixHuman+r.Person, 0)
		},
		func(t *turn, fingerprint string) (*Opened, error) {
			if err := t.spend(c); err != nil {
				return nil, err
			}
			// Listed in the bundle at the head too, and not only in the one it was verified under.
			op, ok := t.prog.Operator(r.Person)
			if !ok || !hasKey(op, fingerprint) {
				return nil, errStale
			}
			ev := state.SessionOpened{
				Via: viaLogin, Identity: op.Path(), Method: "ssh", Anchor: sshAnchor(fingerprint), Assurance: identity.Key.String(),
				Claims: map[string]any{"person": r.Person, "key": fingerprint}, Challenge: c.name, ChallengeTo: c.expires,
			}
			return t.open(opening{event: ev, ttl: t.prog.Environment().Sessions.Operator}, key)
		})
	if err != nil {
		return nil, err
	}
	return e.finish(out, key, proof)
}

func hasKey(op policy.Operator, fingerprint string) bool {
	for _, k := range op.Keys {
		if k.Fingerprint == fingerprint {
			return true
		}
	}
	return false
}

// verifyPerson checks an SSHSIG by one of the person's listed keys and returns that key's fingerprint.
func verifyPerson(prog *policy.Program, person, namespace, text, armored string) (string, error) {
	if prog == nil {
		return "", problem.New(problem.ReasonStarting, "the bundle is being compiled")
	}
	op, ok := prog.Operator(person)
	if !ok {
		return "", problem.New(problem.ReasonSignature, "%s is not an operator of the bundle in force", person)
	}
	keys := make([]ssh.PublicKey, 0, len(op.Keys))
	for _, k := range op.Keys {
		keys = append(keys, k.Key)
	}
	key, err := sshsig.Verify([]byte(armored), keys, namespace, []byte(text))
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonSignature, "checking the signature of %s", person)
	}
	return sshsig.Fingerprint(key), nil
}

func (e *Environment) scope(s *state.State) ceremony.Scope {
	return ceremony.Scope{Environment: s.Env.Name, Genesis: s.Env.Genesis, Epoch: s.Env.Epoch}
}

// WorkloadRequest is what a node's agent found out about a process.
type WorkloadRequest struct {
	Claims map[string]any
	Want   string
	CSR    []byte
}

// AttestWorkload gives a process on the caller's node a workload's session.
func (e *Environment) AttestWorkload(ctx context.Context, c Caller, r WorkloadRequest) (*Opened, error) {
	key, err := parseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	claims, size, err := canonicalClaims(r.Claims)
	if err != nil {
		return nil, err
	}
	prepared, err := policy.PrepareClaims(claims)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the workload's claims")
	}
	r.Want = workloadPath(r.Want, e.Name())
	may := func(_ context.Context, s *state.State) (struct{}, error) {
		node, err := liveSession(s, c, state.At(e.cfg.Now()))
		if err != nil {
			return struct{}{}, nil //nolint:nilerr // the decision finds it out itself, at the head
		}
		return struct{}{}, e.mayOpen(node.Identity, size)
	}
	out, proof, err := do(ctx, e, may, func(t *turn, _ struct{}) (*Opened, error) {
		node, err := t.session(c)
		if err != nil {
			return nil, err
		}
		refuse := func(p *problem.Problem) error {
			return &denied{problem: p, action: "workload.attest", target: r.Want, session: node}
		}
		if !strings.HasPrefix(node.Identity, identity.PrefixNode) {
			return nil, refuse(problem.New(problem.ReasonForeignNode, "%s is not a node", node.Identity))
		}
		if p := stands(t.s, t.inForce(), t.e.claims, node); p != nil {
			return nil, refuse(p)
		}
		match, err := t.prog.IdentifyWorkload(node.Identity, prepared, r.Want)
		if err != nil {
			return nil, refuse(problem.As(err))
		}
		ev := state.SessionOpened{
			Via: viaWorkload, Identity: match.Path, Method: policy.MethodWorkload, Anchor: node.Anchor, Assurance: node.Assurance,
			Node: node.Identity, NodeSession: node.Index, Root: node.Root, Claims: claims, Rule: match.Rule,
		}
		// It ends no later than what it derives from: the node's session, its proof, and its enrolment.
		end := node.Expires
		if id, ok := t.s.Identities.Get(node.Identity); ok && id.Lifetime != 0 {
			end = min(end, t.lifetime(id))
		}
		out, err := t.open(opening{event: ev, ttl: min(match.Session, end.Time().Sub(t.now.Time()))}, key)
		if p := problem.As(err); p != nil {
			return nil, refuse(p)
		}
		return out, nil
	})
	if err != nil {
		return nil, err
	}
	return e.finish(out, key, proof)
}

// workloadPath takes a workload's name, path or SPIFFE ID and gives its path; nothing stays nothing.
func workloadPath(want, env string) string {
	want = strings.TrimPrefix(want, identity.Scheme+env)
	if want == "" || strings.HasPrefix(want, "/") {
		return want
	}
	return identity.PrefixWorkload + want
}

// Logout ends the caller's session.
func (e *Environment) Logout(ctx context.Context, c Caller) error {
	_, _, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (struct{}, error) {
		x, err := liveSession(t.s, c, t.now)
		if err != nil {
			return struct{}{}, err
		}
		_, err = t.enter(&state.SessionClosed{Session: x.Index, Actor: actorOf(x)})
		return struct{}{}, err
	})
	return err
}

// TokenRequest enters a join token, by its public key.
type TokenRequest struct {
	ID     string
	Public []byte
	Name   string
	TTL    time.Duration
	Key    string
}

// Limits on join tokens.
const (
	minTokenTTL = time.Minute
	maxTokenTTL = 7 * 24 * time.Hour
)

// CreateToken admits one machine. The token itself stays with the operator who made it.
func (e *Environment) CreateToken(ctx context.Context, c Caller, r TokenRequest) (time.Time, *ledger.Proof, error) {
	if r.TTL == 0 {
		r.TTL = time.Hour
	}
	if r.TTL < minTokenTTL || r.TTL > maxTokenTTL {
		return time.Time{}, nil, problem.New(problem.ReasonInvalid, "a join token lives from %s to %s", minTokenTTL, maxTokenTTL)
	}
	if !jointoken.ValidID(r.ID) || len(r.Public) != ed25519.PublicKeySize {
		return time.Time{}, nil, problem.New(problem.ReasonInvalid, "the token's ID or public key is malformed")
	}
	if err := jointoken.ValidName(r.Name); err != nil {
		return time.Time{}, nil, problem.Wrap(err, problem.ReasonInvalid, "the token's name")
	}
	idem, err := e.idemKey(r.Key, []byte("token"), []byte(r.ID), r.Public, []byte(r.Name), bigEndian(uint64(r.TTL)))
	if err != nil {
		return time.Time{}, nil, err
	}
	return do(ctx, e, nothing, func(t *turn, _ struct{}) (time.Time, error) {
		x, err := t.session(c)
		if err != nil {
			return time.Time{}, err
		}
		if _, err := t.duty(x, policy.DutyAdmit); err != nil {
			return time.Time{}, err
		}
		first, err := t.idempotent(x, idem)
		if err != nil {
			return time.Time{}, err
		}
		if tok, ok := t.s.Tokens.Get(r.ID); ok {
			if first != nil && tok.Created == first.Index {
				return tok.Expires.Time(), nil
			}
			return time.Time{}, problem.New(problem.ReasonExists, "there is a join token %s already", r.ID)
		}
		if err := t.wouldNameGone(r.Name, r.ID); err != nil {
			return time.Time{}, err
		}
		expires := t.now.Add(r.TTL)
		_, err = t.enter(&state.TokenCreated{
			ID: r.ID, Public: r.Public, Name: r.Name, Expires: expires, Anchor: x.Anchor, Actor: actorOf(x), Ruling: t.ruling(""), Idem: idem,
		})
		return expires.Time(), err
	})
}

// IdentityView is an identity with its state as of now.
type IdentityView struct {
	*state.Identity
	State   string // active | expired | held | cut off
	Expires time.Time
}

// ListIdentities lists an identity and those below it (whole segments; an empty path is above all), for who audits, revokes or
// admits. Others may ask for exactly themselves.
func (e *Environment) ListIdentities(_ context.Context, c Caller, prefix string, page Page) ([]IdentityView, string, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, "", err
	}
	below := prefix != x.Identity // a person has nothing below, and a machine sees itself and not what is called like it
	if below {
		if err := e.mayInspect(x, c); err != nil {
			return nil, "", err
		}
	}
	var out []IdentityView
	root := strings.TrimSuffix(prefix, "/")
	// In order of paths the siblings web-1.a and web-1-a come before what is below web-1, so the two are looked up apart.
	if id, ok := s.Identities.Get(root); ok && page.After < root {
		out = append(out, viewIdentity(s, id, now))
	}
	next, last := "", root
	if !below {
		return out, next, nil
	}
	s.Identities.From(max(root+"/", page.After), func(path string, id *state.Identity) bool {
		if !strings.HasPrefix(path, root+"/") {
			return false
		}
		if path == page.After {
			return true
		}
		if len(out) == page.size() {
			next = last
			return false
		}
		last = path
		out = append(out, viewIdentity(s, id, now))
		return true
	})
	return out, next, nil
}

// newestSession is what is known of an identity's newest session, and whether it is still kept. What covers its machine covers it.
func newestSession(s *state.State, id *state.Identity) (*state.Session, bool) {
	if x, ok := s.Sessions.Get(id.Session); ok {
		return x, true
	}
	return &state.Session{Index: id.Session, Identity: id.Path, Anchor: id.Anchor, Root: id.Root}, false
}

func viewIdentity(s *state.State, id *state.Identity, now state.Millis) IdentityView {
	v := IdentityView{Identity: id, State: "expired"}
	x, ok := newestSession(s, id)
	if ok {
		v.Expires = x.Expires.Time()
	}
	_, p := checkRevoked(s, state.SubjectOf(x), now)
	switch {
	case p != nil && p.Reason == problem.ReasonHeld:
		v.State = "held"
	case p != nil && p.Reason == problem.ReasonQuarantined:
		v.State = "quarantined"
	case p != nil:
		v.State = "cut off"
	case ok && now < x.Expires && !x.Closed:
		v.State = "active"
	}
	return v
}
