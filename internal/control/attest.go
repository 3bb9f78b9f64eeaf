package control

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"maps"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// How a session was opened.
const (
	viaAttest   = "attest"
	viaRenew    = "renew"
	viaWorkload = "workload"
	viaLogin    = "login"
	viaServer   = "server"
)

// RenewalMethod is the binding's method of a renewal by possession.
const RenewalMethod = "renewal"

// Challenge is single use and short-lived. It holds its own expiry and a keyed digest, so that the server remembers
// only those that were used, and every replica accepts every other's.
const (
	challengeNonce    = 16
	challengeLength   = challengeNonce + 8 + sha256.Size
	challengeLifetime = 2 * time.Minute
)

// Challenge makes a challenge for Attest, Renew or Login.
func (e *Environment) Challenge() ([]byte, time.Time, error) {
	if p := ended(e.log.State()); p != nil {
		return nil, time.Time{}, p
	}
	b := make([]byte, challengeNonce+8, challengeLength)
	if _, err := e.cfg.Source.Read(b[:challengeNonce]); err != nil {
		return nil, time.Time{}, err
	}
	expires := e.cfg.Now().Add(challengeLifetime).Truncate(time.Millisecond)
	binary.BigEndian.PutUint64(b[challengeNonce:], uint64(expires.UnixMilli()))
	mac := e.keyedDigest("challenge", e.genesis[:], b)
	return append(b, mac[:]...), expires, nil
}

// challenge is a checked challenge.
type challenge struct {
	raw     []byte
	name    string
	expires state.Millis
}

func (e *Environment) checkChallenge(raw []byte) (challenge, error) {
	if p := ended(e.log.State()); p != nil {
		return challenge{}, p
	}
	if len(raw) != challengeLength {
		return challenge{}, problem.New(problem.ReasonChallengeForeign, "this is not a challenge of this environment")
	}
	mac := e.keyedDigest("challenge", e.genesis[:], raw[:challengeNonce+8])
	if !hmac.Equal(mac[:], raw[challengeNonce+8:]) {
		return challenge{}, problem.New(problem.ReasonChallengeForeign, "this is not a challenge of this environment")
	}
	c := challenge{
		raw: raw, name: "c:" + base64.RawURLEncoding.EncodeToString(raw[:challengeNonce]),
		expires: state.Millis(binary.BigEndian.Uint64(raw[challengeNonce : challengeNonce+8])),
	}
	if state.At(e.cfg.Now()) >= c.expires {
		return c, problem.New(problem.ReasonChallengeExpired, "the challenge expired at %s", c.expires)
	}
	return c, nil
}

// spend refuses a challenge that was used, at the head.
func (t *turn) spend(c challenge) error {
	if t.now >= c.expires {
		return problem.New(problem.ReasonChallengeExpired, "the challenge expired at %s", c.expires)
	}
	if t.s.Once.Has(c.name) {
		return problem.New(problem.ReasonReplayed, "the challenge was used before")
	}
	return nil
}

// sessionKey is the key that a session will be bound to.
type sessionKey struct {
	public crypto.PublicKey
	thumb  state.Digest
}

const maxCSR = 4 << 10

// readCSR reads a PKCS#10 request (RFC 2986) for a session key. It does not check its signature, which is dearer.
func readCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSR {
		return nil, problem.New(problem.ReasonTooLarge, "a certificate request has at most %d bytes", maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "the certificate request can't be read")
	}
	switch k := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, problem.New(problem.ReasonInvalid, "a session key is ECDSA P-256 or P-384, or Ed25519")
		}
	case ed25519.PublicKey:
	default:
		return nil, problem.New(problem.ReasonInvalid, "a session key is ECDSA P-256 or P-384, or Ed25519")
	}
	return csr, nil
}

// parseCSR takes the session key of a request whose signature proves possession of it. Names and extensions in it are ignored: what
// stands in the certificate is decided here.
func parseCSR(der []byte) (sessionKey, error) {
	csr, err := readCSR(der)
	if err != nil {
		return sessionKey{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return sessionKey{}, problem.New(problem.ReasonBadProof, "the certificate request is not signed by its own key")
	}
	thumb, err := seal.Thumbprint(csr.PublicKey)
	if err != nil {
		return sessionKey{}, problem.Wrap(err, problem.ReasonInvalid, "the session key")
	}
	return sessionKey{public: csr.PublicKey, thumb: thumb}, nil
}

// freshKey refuses a session key that another identity has used.
func (t *turn) freshKey(k sessionKey, identity string) error {
	if seen, ok := t.s.SeenKeys.Get(string(k.thumb[:])); ok && seen.Identity != identity {
		return problem.New(problem.ReasonKeySeen, "this session key was used by another identity")
	}
	return nil
}

// Opened is a session and its X.509-SVID.
type Opened struct {
	Identity  identity.ID
	Chain     [][]byte // DER: SVID, then up to, without, the genesis CA
	Expires   time.Time
	Renew     time.Time
	Index     uint64
	Assurance string
	Lifetime  time.Time // hard end of the enrolment; zero: none
	Proof     *ledger.Proof
	serial    string
}

// opening is a session about to be entered.
type opening struct {
	event state.SessionOpened
	ttl   time.Duration
	may   error // why it may not be opened now, if no more is wrong with it
}

// open enters the session and says what it will be.
func (t *turn) open(o opening, k sessionKey) (*Opened, error) {
	ev := o.event
	if p := t.openable(&ev); p != nil {
		return nil, p
	}
	if o.may != nil {
		return nil, o.may
	}
	if err := t.freshKey(k, ev.Identity); err != nil {
		return nil, err
	}
	index := t.at.Index + uint64(len(t.draft.Records))
	ev.Key, ev.Serial = k.thumb, custody.Serial(t.s.Env.Epoch, index, t.e.serialTag(t.s.Env.Epoch, index, ev.Identity, k.thumb))
	ev.Expires = t.now.Add(o.ttl)
	if ev.Lifetime != 0 {
		ev.Expires = min(ev.Expires, ev.Lifetime)
	}
	if ev.Expires <= t.now {
		return nil, problem.New(problem.ReasonLifetimeOver, "what proves %s ended at %s", ev.Identity, ev.Expires)
	}
	ev.Ruling = t.ruling("")
	if _, err := t.enter(&ev); err != nil {
		return nil, err
	}
	id, err := identity.New(t.s.Env.Name, ev.Identity)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonNoIdentity, "making the identity")
	}
	out := &Opened{Identity: id, Expires: ev.Expires.Time(), Index: index, Assurance: ev.Assurance, serial: ev.Serial}
	out.Renew = t.now.Add(time.Duration(ev.Expires-t.now) * time.Millisecond / 2).Time()
	if ev.Lifetime != 0 {
		out.Lifetime = ev.Lifetime.Time()
	}
	return out, nil
}

// openable refuses what a hold, or a cutoff of what it derives from, covers.
func (t *turn) openable(ev *state.SessionOpened) error {
	root := ev.Root
	if root == 0 {
		root = t.at.Index
	}
	x := &state.Session{Index: t.at.Index, Identity: ev.Identity, Node: ev.Node, Anchor: ev.Anchor, Root: root}
	if _, p := checkRevoked(t.s, state.SubjectOf(x), t.now); p != nil {
		return p
	}
	return nil
}

// finish signs the certificate, after the entry.
func (e *Environment) finish(o *Opened, k sessionKey, proof *ledger.Proof) (*Opened, error) {
	o.Proof = proof
	leaf, chain, err := e.signing().SignSVID(o.Identity, k.public, o.serial, proof.Time, o.Expires)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "signing the certificate")
	}
	o.Chain = append([][]byte{leaf}, chain...)
	return o, nil
}

// signing are the keys to sign with what was just entered: those of the newest state, if they can be had. So a CA signs nothing
// whose entry comes after that of the next CA, and can be withdrawn when all from before is over.
func (e *Environment) signing() *custody.Keys {
	k, err := e.currentKeys(e.run, e.log.State())
	if err != nil {
		return e.keys.Load() // the loop that loads them says why
	}
	return k
}

// serialTag binds a certificate's serial number to the session, identity and key that it is for.
func (e *Environment) serialTag(epoch, index uint64, path string, key state.Digest) custody.Tag {
	d := e.keyedDigest("serial", bigEndian(epoch), bigEndian(index), []byte(path), key[:])
	return custody.Tag(d[:len(custody.Tag{})])
}

// readSVID reads a certificate that this environment issued, in this epoch, for the very key that it names: a CA's signature
// alone does not do, since the key of a CA may have leaked, and been rotated away for it.
func (e *Environment) readSVID(der []byte) (custody.SVID, error) {
	old, err := e.keys.Load().ReadSVID(der, e.Name())
	if err != nil {
		return old, err
	}
	tag := e.serialTag(old.Epoch, old.Index, old.ID.Path(), old.Key)
	if old.Epoch != e.log.State().Env.Epoch || !hmac.Equal(tag[:], old.Tag[:]) {
		return old, errNotIssued
	}
	return old, nil
}

var errNotIssued = problem.New(problem.ReasonSessionForeign, "the certificate is not one of this environment: its serial number was not given to its key")

// AttestRequest is evidence of a node.
type AttestRequest struct {
	Method    string
	Challenge []byte
	Evidence  []byte
	CSR       []byte
	Agent     *release.Statement // what the agent says of itself; nil: nothing
}

// answered is a node's answer to a challenge, whose cheap parts were checked.
type answered struct {
	method    attest.Method
	challenge challenge
	key       sessionKey
	binding   attest.Binding // of the evidence
}

// answered checks a request before anything is looked up for it: it names a method, answers a challenge of ours, and has a session key.
func (e *Environment) answered(r AttestRequest) (answered, error) {
	method, err := e.cfg.Methods.Find(r.Method)
	if err != nil {
		return answered{}, err
	}
	c, err := e.checkChallenge(r.Challenge)
	if err != nil {
		return answered{}, err
	}
	key, err := parseCSR(r.CSR)
	if err != nil {
		return answered{}, err
	}
	binding := attest.Binding{Method: method.Name, Genesis: e.genesis, Nonce: c.raw, SessionKey: key.thumb}
	return answered{method, c, key, binding}, nil
}

// Attest verifies evidence, turns it into an identity by the bundle's rules, and opens a session.
func (e *Environment) Attest(ctx context.Context, r AttestRequest) (*Opened, error) {
	given, err := e.answered(r)
	if err != nil {
		return nil, err
	}
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (proved, error) {
			p, err := e.verify(ctx, s, given.method, r, attest.Input{Binding: given.binding, Evidence: r.Evidence, Now: e.cfg.Now()})
			if err == nil {
				p.may = e.mayOpen(p.identity, p.size)
			}
			return p, err
		},
		func(t *turn, p proved) (*Opened, error) {
			if err := t.spend(given.challenge); err != nil {
				return nil, err
			}
			if p.bundle != t.s.Bundle {
				return nil, errStale // other authorities may vouch now, or none
			}
			return t.admit(given.method, p, given.challenge, given.key)
		})
	if err != nil {
		return nil, err
	}
	return e.finish(out, given.key, proof)
}

// lifetime is the hard end of an enrolment: as it was told at its beginning, or sooner if the bundle in force says so.
func (t *turn) lifetime(id *state.Identity) state.Millis {
	if id.Lifetime == 0 {
		return 0
	}
	if strings.HasPrefix(id.Path, identity.PrefixCI) {
		return id.Lifetime // a job is over before a bundle is
	}
	return min(id.Lifetime, id.Enrolled.Add(t.prog.Environment().NodeLifetime))
}

// sessionTTL keeps a session within its evidence's own end.
func sessionTTL(ttl time.Duration, end time.Time, now state.Millis) time.Duration {
	if !end.IsZero() {
		ttl = min(ttl, end.Sub(now.Time()))
	}
	return ttl
}

// RenewRequest asks for the next session of an enrolment, by possession of the newest session's key.
type RenewRequest struct {
	Challenge   []byte
	Certificate []byte // DER; may have expired
	Signature   []byte
	CSR         []byte
	Agent       *release.Statement // what the agent says of itself; nil: nothing
}

// Renew renews by possession, for methods that declare it. The serial of the presented certificate is the
// generation: only the newest renews, the one before it may retry with the same new key (its reply was lost), and any
// other shows that two parties hold one enrolment, which puts a hold on the node.
func (e *Environment) Renew(ctx context.Context, r RenewRequest) (*Opened, error) {
	c, err := e.checkChallenge(r.Challenge)
	if err != nil {
		return nil, err
	}
	key, err := parseCSR(r.CSR)
	if err != nil {
		return nil, err
	}
	old, err := e.readSVID(r.Certificate)
	if err != nil {
		return nil, err
	}
	binding := attest.Binding{Method: RenewalMethod, Genesis: e.genesis, Nonce: c.raw, SessionKey: key.thumb}
	if err := checkSignature(old.Cert.PublicKey, binding.Message(), r.Signature); err != nil {
		return nil, err
	}
	type allowance struct {
		may    error
		bundle state.Digest
		agent  map[string]any
	}
	prepare := func(_ context.Context, s *state.State) (allowance, error) {
		out := allowance{may: e.mayOpen(old.ID.Path(), 0), bundle: s.Bundle}
		if prog, ok := e.programs.get(s.Bundle); ok && r.Agent != nil && old.ID.Path() != "" {
			out.agent = prog.AppraiseAgent(*r.Agent, nil)
		}
		return out, nil
	}
	out, proof, err := do(ctx, e, prepare, func(t *turn, a allowance) (*Opened, error) {
		if err := t.spend(c); err != nil {
			return nil, err
		}
		if a.bundle != t.s.Bundle {
			return nil, errStale // other signers may be listed now
		}
		return t.renew(old, c, key, a.agent, a.may)
	})
	if err != nil {
		return nil, err
	}
	return e.finish(out, key, proof)
}

func checkSignature(pub crypto.PublicKey, message, sig []byte) error {
	ok := false
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		h := sha256.Sum256(message)
		ok = ecdsa.VerifyASN1(k, h[:], sig)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, message, sig)
	}
	if !ok {
		return problem.New(problem.ReasonBadProof, "the renewal is not signed by the key of the certificate")
	}
	return nil
}

// renew decides a renewal at the head.
func (t *turn) renew(old custody.SVID, c challenge, key sessionKey, agent map[string]any, may error) (*Opened, error) {
	path := old.ID.Path()
	if strings.HasPrefix(path, identity.PrefixCI) {
		return t.renewJob(old, c, key, may)
	}
	id, ok := t.s.Identities.Get(path)
	if !ok {
		return nil, problem.New(problem.ReasonSessionUnknown, "there is no enrolment of %s any more", path)
	}
	method, err := t.e.cfg.Methods.Find(id.Method)
	if err != nil || method.Renewal.Kind != attest.RenewByPossession {
		return nil, problem.New(problem.ReasonInvalid, "method %s is renewed by fresh evidence", id.Method)
	}
	lifetime := t.lifetime(id)
	if lifetime != 0 && t.now >= lifetime {
		return nil, problem.New(problem.ReasonLifetimeOver, "the enrolment of %s ended at %s", path, lifetime)
	}
	row, kept := t.s.Sessions.Get(old.Index)
	redelivery := false
	switch {
	case old.Index < id.Root:
		return nil, problem.New(problem.ReasonLifetimeOver, "%s was enrolled anew", path)
	case kept && (row.Identity != path || row.Key != old.Key), old.Index == id.Session && id.Key != old.Key:
		return nil, errNotIssued // of a history that is not this one
	case old.Index == id.Session, t.sameReply(id, old.Index):
	case old.Index == id.Prior && id.Key == key.thumb:
		redelivery = true
	default:
		return nil, t.fork(id, old.Index)
	}
	if id.Closed || (kept && row.Closed) {
		return nil, problem.New(problem.ReasonSessionExpired, "the enrolment of %s was given back", path)
	}
	// What the machine is was proved at its enrolment; which program speaks for it is said each time.
	proved := id.Claims
	if agent != nil || proved[policy.ClaimAgent] != nil {
		proved = maps.Clone(proved)
		delete(proved, policy.ClaimAgent)
		if agent != nil {
			proved[policy.ClaimAgent] = agent
		}
	}
	claims, err := policy.PrepareClaims(proved)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "reading the enrolment's claims")
	}
	match, err := t.prog.IdentifyNode(id.Method, authorityOf(id.Anchor), claims)
	if err != nil {
		return nil, err
	}
	if match.Path != path {
		return nil, problem.New(problem.ReasonNoIdentity, "the bundle in force makes these claims %s, not %s", match.Path, path)
	}
	ev := state.SessionOpened{
		Via: viaRenew, Identity: path, Method: id.Method, Anchor: id.Anchor, Assurance: id.Assurance, Root: id.Root, From: old.Index,
		Counter: id.Counter + 1, Lifetime: lifetime, Evidence: id.Evidence, Claims: proved, Rule: match.Rule,
		Challenge: c.name, ChallengeTo: c.expires, Redelivery: redelivery,
	}
	if redelivery {
		ev.Counter = id.Counter
	}
	return t.open(opening{event: ev, ttl: match.Session, may: may}, key)
}

// sameReply reports whether a session is another reply to the request that made the newest one: the same key
// and renewal. Whichever reply arrived, its holder is the one holder.
func (t *turn) sameReply(id *state.Identity, index uint64) bool {
	x, ok := t.s.Sessions.Get(index)
	return ok && x.Identity == id.Path && x.Root == id.Root && x.Counter == id.Counter && x.Key == id.Key
}

// fork cuts off and holds a node of which two holders were seen, unless this enrolment is cut off already. A hold that
// somebody set for another reason makes no difference: it may run out, or be lifted by who has not heard of the fork. Only
// who has a key of the enrolment comes this far, so a stranger can't hold anybody.
func (t *turn) fork(id *state.Identity, index uint64) error {
	p := problem.New(problem.ReasonForked, "%s was asked for with the key of session %d, but %d is the newest", id.Path, index, id.Session)
	scope := state.Scope{Kind: state.ScopeNode, Value: id.Path}
	enrolment := state.SubjectOf(&state.Session{Index: id.Session, Identity: id.Path, Anchor: id.Anchor, Root: id.Root})
	if _, _, dead := t.s.CutoffOver(enrolment); !dead {
		seen := newCovered()
		survey(t.s, scope, t.now, 0, seen)
		_, err := t.enter(&state.RevocationRecorded{
			Scope: scope.String(), Hold: true, Cutoff: true, Reason: "forked enrolment", Covers: len(seen.identities), Horizon: max(seen.horizon, t.now),
			Actor: state.Actor{Identity: id.Path, Session: index}, Ruling: t.ruling(""),
		})
		if err != nil {
			return err
		}
	}
	return recorded{p}
}

// ServerCertificate opens a session for this server itself and returns its certificate, for TLS. Its name is the
// environment's, which is what SNI asks for.
func (e *Environment) ServerCertificate(ctx context.Context, key crypto.Signer, ttl time.Duration) ([][]byte, time.Time, error) {
	thumb, err := seal.Thumbprint(key.Public())
	if err != nil {
		return nil, time.Time{}, problem.Wrap(err, problem.ReasonInternal, "the server's key")
	}
	k := sessionKey{public: key.Public(), thumb: thumb}
	path := identity.PrefixServer + e.cfg.ServerID
	out, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (*Opened, error) {
		ev := state.SessionOpened{
			Via: viaServer, Identity: path, Method: "server", Anchor: "server", Assurance: identity.Key.String(),
		}
		return t.open(opening{event: ev, ttl: ttl}, k)
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	leaf, chain, err := e.signing().SignServer(out.Identity, e.Name(), key.Public(), out.serial, proof.Time, out.Expires)
	if err != nil {
		return nil, time.Time{}, problem.Wrap(err, problem.ReasonInternal, "signing the server's certificate")
	}
	return append([][]byte{leaf}, chain...), out.Expires, nil
}
