package invariant

import (
	"crypto/sha256"
	"strings"
	"unique"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

const (
	second = state.Millis(1000)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

// How long rows stay after their end. Longer than anything may refer to them.
const (
	afterSession   = hour
	afterLease     = 20 * minute
	afterEnrolment = 40 * day
	afterKey       = day
	idemLife       = hour
	keepRoots      = 64
)

// model is what this package makes of the entries. It has nothing of package state but the entries' types.
type model struct {
	next       uint64
	time       state.Millis
	name       string
	class      string
	genesis    state.Digest
	generation uint64
	bundle     state.Digest
	protocol   int
	prog       *policy.Program

	sessions   map[uint64]*session
	enrolments map[string]*enrolment
	leases     map[uint64]*lease
	secrets    map[string]*secret
	tokens     map[string]*token
	uses       map[string]*used
	gone       map[string]uint64 // decommissioned identities
	unused     uint64            // the session before, if the use of its evidence must follow; 0: none
	changes    map[uint64]*change
	cuts       []cut // ascending by index, the newest of each scope
	holds      map[string]hold
	idem       map[string]*firstEffect // see idemOwner, NUL, key
	idemCount  map[string]int
	spent      map[string]state.Millis // challenges and nonces
	keyOwners  map[state.Digest]*keyOwner
	envKeys    map[string]uint64                  // kind → highest number
	vouching   map[string]state.KeyFacts          // kind → the newest key
	proposed   map[string][]state.Millis          // person and sort of change → when, within the last day
	stopped    map[string]map[string]state.Millis // person → scope of a provisional hold that he set → until when that counts
	denials    map[string]*denials
	roots      []state.StateRootSet
	inForce    uint64          // the change that brought the bundle into force
	way        *onItsWay       // the rollout; nil: none
	recovery   *recovering     // that is under way; nil: none
	served     map[string]*use // who was given what (identity, NUL, secret)
	// superseding is the entry that must bring another bundle into force, since it ended a rollout; 0: none must.
	superseding uint64
	due         dueQueue
	glasses     []*glass // openings that are open or to be reviewed, in their order
	quarter     quarter

	ended      uint64 // the entry that is the last one; 0: there may be more
	rootHolder string // KIND:ID of what the keys are under

	tokensOut tokenState
}

type session struct {
	identity, node, anchor, assurance string
	method, via                       string
	index, root, counter              uint64
	key                               state.Digest
	gen                               *generation // of a job
	expires, lifetime                 state.Millis
	tokens                            state.Millis // when the last token issued in it is over
	closed                            bool
	raw                               map[string]any
	claims                            policy.Claims
	prepared                          bool
	asked                             askedOf
	gone                              string // what the rules said when they were asked
}

// generation is all the sessions that a job got by one request, since replies may get lost. They have one holder.
type generation struct {
	heir   state.Digest // the key that renewed one of them
	next   *generation  // what that key got
	closed bool         // one of them was given back
}

// askedOf is what an answer of the rules holds for: a generation, a bundle of it, and the newest proof of the node.
type askedOf struct {
	generation, proof uint64
	by                *policy.Program
}

// enrolment is the newest proof of a node.
type enrolment struct {
	root, counter, session, prior uint64
	method, anchor                string
	assurance                     string
	began, lifetime, last         state.Millis
	key, evidence                 state.Digest
	closed                        bool     // its newest session was given back
	proof                         *session // the newest; its row may be over before that of a process on the node
}

type lease struct {
	identity, node, anchor, secret, purpose string
	version, root                           uint64
	created, expires, max                   state.Millis
}

// shared is the one copy of a text that many leases have.
func shared(text string) string { return unique.Make(text).Value() }

type secret struct {
	last, current uint64
	versions      map[uint64]*version
}

type version struct {
	state  state.VersionState
	until  state.Millis
	digest state.Digest
}

// at is the version's state at a moment: the retiring window ends by itself.
func (v *version) at(now state.Millis) state.VersionState {
	if v.state == state.Retiring && v.until <= now {
		return state.Retired
	}
	return v.state
}

type token struct {
	created, spentAt uint64
	expires          state.Millis
	spentBy          state.Digest
	by, anchor       string // who made it, and what vouched for him
}

// maker is the subject of who made the token: it is revoked with him.
func (t *token) maker() subject {
	return subject{identity: t.by, anchor: t.anchor, own: t.created, root: t.created}
}

type change struct {
	action, target, proposer string
	manifest, base, rollback state.Digest
	rollout                  string
	required                 int
	selfOK                   bool
	created, expires         state.Millis
	proposal                 signing
	approvers                map[string]signing // by person
	over                     string             // what became of it; empty: open
	delay, since             state.Millis       // for how long it waits, and since when; 0: it doesn't yet
}

// signing is what a person signed and sent: in which entry, and what vouches for it.
type signing struct {
	index   uint64
	anchors []string
}

func (m *model) signing(index uint64, a *state.Actor, by ...*state.Signature) signing {
	s := signing{index: index}
	if x := m.sessions[a.Session]; x != nil {
		s.anchors = append(s.anchors, x.anchor)
	}
	for _, sig := range by {
		if sig != nil {
			s.anchors = append(s.anchors, "ssh:"+sig.Key)
		}
	}
	return s
}

type cut struct {
	text  string
	scope scope
	index uint64
}

type hold struct {
	scope scope
	index uint64
	until state.Millis // 0: until lifted
}

type firstEffect struct {
	request state.Digest
	index   uint64
	expires state.Millis
	kind    string
	secret  string
	version uint64
	lease   uint64
}

type keyOwner struct {
	identity string
	until    state.Millis
}

type denials struct {
	minute int64
	count  int
}

func newModel() *model {
	return &model{
		sessions: map[uint64]*session{}, enrolments: map[string]*enrolment{}, leases: map[uint64]*lease{},
		secrets: map[string]*secret{}, tokens: map[string]*token{}, uses: map[string]*used{}, gone: map[string]uint64{}, changes: map[uint64]*change{},
		served: map[string]*use{}, holds: map[string]hold{}, idem: map[string]*firstEffect{}, idemCount: map[string]int{},
		spent: map[string]state.Millis{}, keyOwners: map[state.Digest]*keyOwner{}, envKeys: map[string]uint64{},
		denials: map[string]*denials{}, vouching: map[string]state.KeyFacts{}, stopped: map[string]map[string]state.Millis{}, proposed: map[string][]state.Millis{}, tokensOut: newTokenState(),
	}
}

func (m *model) rows() int {
	return len(m.sessions) + len(m.enrolments) + len(m.leases) + len(m.secrets) + len(m.tokens) + len(m.uses) + len(m.gone) + len(m.changes) + len(m.cuts) +
		len(m.holds) + len(m.idem) + len(m.spent) + len(m.keyOwners) + len(m.envKeys) + len(m.denials) + len(m.vouching) + len(m.stopped) + len(m.served) + len(m.roots) + len(m.due) + len(m.glasses)
}

// learn takes an entry into the model.
func (m *model) learn(st *step) {
	m.next, m.time = st.index+1, max(m.time, st.at)
	m.learnOnce(st)
	switch e := st.event.(type) {
	case *state.Genesis:
		m.name, m.class, m.genesis = e.Name, e.Class, sha256.Sum256([]byte(e.Document))
		m.generation, m.bundle, m.protocol = 1, e.Manifest, max(e.Protocol, 1)
		for i := range e.Keys {
			m.learnKey(&e.Keys[i])
		}
	case *state.BundleInForce:
		m.learnBundle(st, e)
	case *state.ChangeProposed:
		m.changes[st.index] = &change{
			action: e.Action, target: e.Target, proposer: e.Actor.Identity, manifest: e.Manifest, base: e.Base, required: e.Required,
			selfOK: e.SelfOK, created: st.at, expires: e.Expires, rollback: e.Rollback, rollout: e.Rollout, approvers: map[string]signing{},
			proposal: m.signing(st.index, &e.Actor, &e.Signature, e.Bundle), delay: state.Millis(e.Delay) * second,
		}
		m.proposed[proposerOf(e)] = append(m.ofDay(e, st.at), st.at)
		m.spend("n:"+e.Nonce, e.Expires)
		m.later(e.Expires, 'c', st.index, "")
	case *state.ChangeApproved:
		if ch := m.changes[e.Change]; ch != nil {
			ch.approvers[e.Signature.Person] = m.signing(st.index, &e.Actor, &e.Signature)
			m.spend("n:"+e.Nonce, ch.expires)
		}
	case *state.AccessReviewed:
		m.learnReview(e)
	case *state.ChangeRejected:
		m.finish(e.Change, "rejected", st.at)
	case *state.TokenCreated:
		m.learnToken(st, e)
	case *state.SessionOpened:
		m.learnSession(st, e)
	case *state.SessionClosed:
		if x := m.sessions[e.Session]; x != nil {
			x.closed = true
			if x.gen != nil {
				x.gen.closed = true
			}
			if n := m.enrolments[x.identity]; n != nil && n.root == x.root && n.counter == x.counter && n.key == x.key {
				n.closed = true
			}
		}
	case *state.RevocationRecorded:
		m.learnRevocation(st, e)
	case *state.HoldLifted:
		delete(m.holds, e.Scope)
		m.finish(e.Change, "done", st.at)
	case *state.RequestDenied:
		m.learnDenial(st, e)
	case *state.KeyAdded:
		m.learnKey(&e.Key)
	case *state.StateRootSet:
		m.roots = append(m.roots, *e)
		if len(m.roots) > keepRoots {
			m.roots = append(m.roots[:0], m.roots[1:]...)
		}
	case *state.ProtocolRaised:
		m.protocol = max(m.protocol, e.Version)
	case *state.NodeQuarantined:
		if e.Challenge != "" {
			m.spend(e.Challenge, e.ChallengeTo)
		}
		m.learnAttested(st)
	default:
		if !m.learnAttested(st) {
			m.learnSecret(st)
		}
	}
	m.learnRollout(st)
	m.learnRecovery(st)
	m.learnSPIFFE(st)
	m.learnGlass(st)
	m.learnIdem(st)
}

func (m *model) learnToken(st *step, e *state.TokenCreated) {
	t := &token{created: st.index, expires: e.Expires, by: e.Actor.Identity}
	if x := m.sessions[e.Actor.Session]; x != nil {
		t.anchor = x.anchor
	}
	m.tokens[e.ID] = t
	m.later(e.Expires, 't', 0, e.ID)
}

func (m *model) learnBundle(st *step, e *state.BundleInForce) {
	if e.How == state.ByRollback {
		m.finish(e.Change, overBack, st.at)
	} else {
		m.finish(m.inForce, "superseded", st.at)
		m.finish(e.Change, overInto, st.at)
	}
	m.generation, m.bundle, m.inForce = e.Generation, e.Manifest, e.Change
	m.rolledInto(e)
}

func (m *model) learnSession(st *step, e *state.SessionOpened) {
	root := e.Root
	if root == 0 {
		root = st.index
	}
	x := &session{
		identity: e.Identity, node: e.Node, anchor: e.Anchor, assurance: e.Assurance, method: e.Method, index: st.index, root: root,
		counter: e.Counter, key: e.Key, expires: e.Expires, raw: e.Claims, via: e.Via, lifetime: e.Lifetime,
	}
	if strings.HasPrefix(e.Identity, "/ci/") {
		x.gen = m.generationOf(e)
	}
	m.sessions[st.index] = x
	m.later(e.Expires+afterSession, 's', st.index, "")
	if e.Challenge != "" {
		m.spend(e.Challenge, e.ChallengeTo)
	}
	if t := m.tokens[e.Token]; t != nil && t.spentAt == 0 {
		t.spentBy, t.spentAt = e.Key, st.index
	}
	if e.Via == viaAttest || e.Via == viaRenew {
		n := &enrolment{
			root: root, counter: e.Counter, session: st.index, method: e.Method, anchor: e.Anchor, assurance: e.Assurance,
			began: st.at, lifetime: e.Lifetime, last: st.at, key: e.Key, evidence: e.Evidence, proof: x,
		}
		if old := m.enrolments[e.Identity]; old == nil {
			m.later(max(st.at, e.Lifetime)+afterEnrolment, 'e', 0, e.Identity)
		} else {
			if old.root == root {
				n.began = old.began
			}
			if n.prior = old.session; e.Redelivery {
				n.prior = old.prior
			}
		}
		m.enrolments[e.Identity] = n
	}
	if o := m.keyOwners[e.Key]; o != nil {
		o.until = max(o.until, e.Expires+afterKey)
		return
	}
	m.keyOwners[e.Key] = &keyOwner{e.Identity, e.Expires + afterKey}
	m.later(e.Expires+afterKey, 'k', 0, string(e.Key[:]))
}

// generationOf is which generation of a job a session is of.
func (m *model) generationOf(e *state.SessionOpened) *generation {
	if from := m.sessions[e.From]; e.Via == viaRenew && from != nil && from.gen != nil {
		if from.gen.next == nil || from.gen.heir != e.Key {
			from.gen.heir, from.gen.next = e.Key, &generation{}
		}
		return from.gen.next
	}
	if first := m.sessions[e.Root]; e.Via == viaAttest && first != nil && first.gen != nil {
		return first.gen
	}
	return &generation{}
}

func (m *model) learnRevocation(st *step, e *state.RevocationRecorded) {
	if e.Cutoff {
		kept := m.cuts[:0]
		for _, c := range m.cuts {
			if c.text != e.Scope {
				kept = append(kept, c)
			}
		}
		m.cuts = append(kept, cut{e.Scope, readScope(e.Scope), st.index})
	}
	if e.Hold {
		m.holds[e.Scope] = hold{readScope(e.Scope), st.index, e.Until}
		if e.Until != 0 {
			m.later(e.Until, 'h', 0, e.Scope)
			who := e.Actor.Identity
			if m.stopped[who] == nil {
				m.stopped[who] = map[string]state.Millis{}
			}
			m.stopped[who][e.Scope] = st.at + day
			m.later(st.at+day, 'p', 0, who+"\x00"+e.Scope)
		}
	}
	if e.Change != 0 {
		m.finish(e.Change, "done", st.at)
	}
}

func (m *model) learnDenial(st *step, e *state.RequestDenied) {
	now := int64(st.at / minute)
	d := m.denials[e.Actor.Identity]
	if d == nil {
		d = &denials{minute: now}
		m.denials[e.Actor.Identity] = d
		m.later(state.Millis(now+1)*minute, 'd', 0, e.Actor.Identity)
	}
	if d.minute != now {
		d.minute, d.count = now, 0
	}
	d.count++
}

func (m *model) learnKey(k *state.KeyFacts) {
	if kind, n, ok := keyNumber(k.Name); ok {
		m.envKeys[kind], m.vouching[kind] = max(m.envKeys[kind], n), *k
	}
}

// keyNumber reads KIND/NUMBER. There is one way to write each.
func keyNumber(name string) (kind string, n uint64, ok bool) {
	for _, kind := range []string{"ca", "checkpoint", "kek", "jwt"} {
		digits, of := strings.CutPrefix(name, kind+"/")
		if !of || digits == "" || len(digits) > 10 || digits[0] == '0' {
			continue
		}
		for _, c := range []byte(digits) {
			if c < '0' || c > '9' {
				return "", 0, false
			}
			n = 10*n + uint64(c-'0')
		}
		return kind, n, n < 1<<32
	}
	return "", 0, false
}

// learnSecret takes in what happens to versions and leases.
func (m *model) learnSecret(st *step) {
	switch e := st.event.(type) {
	case *state.SecretWritten:
		sec := m.secrets[e.Secret]
		if sec == nil {
			sec = &secret{versions: map[uint64]*version{}}
			m.secrets[e.Secret] = sec
		}
		if old := sec.versions[e.Retires]; old != nil {
			old.state, old.until = state.Retiring, e.Until
		}
		for _, n := range e.Destroys {
			delete(sec.versions, n)
		}
		sec.versions[e.Version] = &version{state: e.State, digest: e.Digest}
		sec.last = max(sec.last, e.Version)
		if e.State == state.Current {
			sec.current = e.Version
		}
	case *state.SecretMoved:
		sec := m.secrets[e.Secret]
		if sec == nil || sec.versions[e.Version] == nil {
			return
		}
		if old := sec.versions[e.Retires]; old != nil && e.Retires != e.Version {
			old.state, old.until = state.Retiring, e.Until
		}
		v := sec.versions[e.Version]
		v.state, v.until = e.To, e.Until
		if e.To == state.Current {
			sec.current = e.Version
		} else if sec.current == e.Version {
			sec.current = 0
		}
	case *state.SecretReleased:
		if e.Lease != 0 {
			return
		}
		m.leases[st.index] = &lease{
			identity: shared(e.Actor.Identity), node: shared(e.Actor.Node), anchor: shared(e.Anchor), secret: shared(e.Secret), purpose: shared(e.Purpose), version: e.Version,
			root: e.Root, created: st.at, expires: e.Expires, max: e.Max,
		}
		m.later(e.Expires+afterLease, 'l', st.index, "")
	case *state.LeaseRenewed:
		if l := m.leases[e.Lease]; l != nil {
			l.expires = max(l.expires, e.Expires)
		}
	case *state.LeaseReturned:
		delete(m.leases, e.Lease)
	}
}

func (m *model) learnIdem(st *step) {
	k := st.idem
	if k == nil || k.First != 0 {
		return
	}
	owner := idemOwner(st.actor)
	name := owner + "\x00" + k.Key
	f := &firstEffect{request: k.Request, index: st.index, expires: st.at + idemLife, kind: st.event.Kind().Type}
	switch e := st.event.(type) {
	case *state.SecretReleased:
		f.secret, f.version, f.lease = e.Secret, e.Version, e.Lease
		if f.lease == 0 {
			f.lease = st.index
		}
	case *state.SecretWritten:
		f.secret, f.version = e.Secret, e.Version
	}
	if m.idem[name] == nil {
		m.idemCount[owner]++
	}
	m.idem[name] = f
	m.later(f.expires, 'i', 0, name)
}

// idemOwner is whose an idempotency key is: of one identity, and there where it speaks.
func idemOwner(a *state.Actor) string { return a.Identity + " on " + a.Node }

func (m *model) finish(index uint64, how string, _ state.Millis) {
	ch := m.changes[index]
	if ch == nil {
		return
	}
	ch.over = how
	if how != overInto {
		m.later(ch.expires, 'c', index, "")
	}
}

func (m *model) spend(name string, until state.Millis) {
	m.spent[name] = until
	m.later(until, 'o', 0, name)
}

// proved is the session's claims in the form that decisions take, made once.
func (x *session) proved() (policy.Claims, error) {
	if !x.prepared {
		var err error
		if x.claims, err = policy.PrepareClaims(x.raw); err != nil {
			return policy.Claims{}, err
		}
		x.prepared, x.raw = true, nil
	}
	return x.claims, nil
}

// subject of the session's own credential. A node's renewal is as old as its enrolment.
func (x *session) subject() subject {
	s := subject{identity: x.identity, node: x.node, anchor: x.anchor, own: x.index, root: x.root}
	if s.node == "" && strings.HasPrefix(x.identity, "/node/") {
		s.node, s.own = x.identity, x.root
	}
	if strings.HasPrefix(x.identity, "/ci/") {
		s.own = x.root
	}
	return s
}

// subject of the lease. A node speaks for itself.
func (l *lease) subject(id uint64) subject {
	s := subject{identity: l.identity, node: l.node, anchor: l.anchor, secret: l.secret, own: id, root: l.root}
	if s.node == "" && strings.HasPrefix(l.identity, "/node/") {
		s.node = l.identity
	}
	return s
}
