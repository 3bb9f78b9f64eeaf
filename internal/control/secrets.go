package control

import (
	"context"
	"encoding/binary"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// DefaultPurpose is what a read is for when nobody says.
const DefaultPurpose = "runtime"

// GetRequest asks for a release.
type GetRequest struct {
	Secret  string
	Purpose string
	Version uint64 // 0: the current one
	Key     string // idempotency key, optional
}

// Released is a hand-over. The value belongs to the caller, who wipes it after sending.
type Released struct {
	Value   seal.Secret
	Secret  string
	Version uint64
	Lease   uint64
	Expires time.Time
	Age     time.Duration // of the decision when Get returned, on the boot clock
	Proof   *ledger.Proof
}

// deliveryDeadline is how old a release's entry may be when its delivery begins (invariant "revoked").
const deliveryDeadline = 5 * time.Second

// preparedValue is a version that was opened before the decision.
type preparedValue struct {
	number uint64
	sealed uint64
	value  seal.Secret
}

// Get releases a version of a secret under a lease. The value is decrypted first, then the release is decided
// and entered, and only then does the value leave this function.
func (e *Environment) Get(ctx context.Context, c Caller, r GetRequest) (*Released, error) {
	if _, err := identity.ParseSecretPath(r.Secret); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the secret's name")
	}
	if r.Purpose == "" {
		r.Purpose = DefaultPurpose
	}
	if err := policy.ValidPurpose(r.Purpose); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the purpose")
	}
	var version [8]byte
	binary.BigEndian.PutUint64(version[:], r.Version)
	idem, err := e.idemKey(r.Key, []byte("get"), []byte(r.Secret), []byte(r.Purpose), version[:])
	if err != nil {
		return nil, err
	}
	var held []seal.Secret
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (*preparedValue, error) {
			p, err := e.prepareValue(ctx, s, c, r, idem)
			if p != nil {
				held = append(held, p.value)
			}
			return p, err
		},
		func(t *turn, p *preparedValue) (*Released, error) { return t.release(c, r, idem, p) })
	for _, v := range held {
		if out == nil || !sameBuffer(v, out.Value) {
			v.Wipe()
		}
	}
	if err != nil {
		return nil, err
	}
	out.Age = proof.Age()
	if late := out.Age; late > deliveryDeadline {
		out.Value.Wipe()
		return nil, problem.New(problem.ReasonDeliveryTooLate, "entry %d is %s old", proof.Index, late.Round(time.Millisecond))
	}
	out.Proof = proof
	e.checks.delivered.Add(1)
	e.cfg.Silence.Seed(out.Value.Expose())
	return out, nil
}

func sameBuffer(a, b seal.Secret) bool {
	x, y := a.Expose(), b.Expose()
	return len(x) == len(y) && len(x) > 0 && &x[0] == &y[0]
}

// wanted picks the version that a request means, by a state: the current one, the named one, or for
// a redelivery the one that was released first.
func wanted(s *state.State, x *state.Session, r GetRequest, idem *state.IdemKey, now state.Millis) *state.Version {
	sec, ok := s.Secrets.Get(r.Secret)
	if !ok {
		return nil
	}
	n := r.Version
	if first, ok := firstEffect(s, state.IdemOwner(x.Identity, x.Node), idem, now); ok && first.Request == idem.Request {
		n = first.Version
	}
	if n == 0 {
		n = sec.Current
	}
	return sec.Find(n)
}

// prepareValue fetches and opens the version that is likely to be released. Who may not have it costs
// no read of the store: a miss of the cache is worth a decision first.
func (e *Environment) prepareValue(ctx context.Context, s *state.State, c Caller, r GetRequest, idem *state.IdemKey) (*preparedValue, error) {
	now := state.At(e.cfg.Now())
	x, err := liveSession(s, c, now)
	if err != nil {
		return nil, nil //nolint:nilerr // the decision finds it out itself, at the head
	}
	v := wanted(s, x, r, idem, now)
	if v == nil {
		return nil, nil
	}
	row, cached := e.values.Get(v.Sealed)
	if !cached {
		by, ok := e.governing(s, x.Identity)
		if !ok || by.prog == nil {
			return nil, nil
		}
		if _, p := decidePermit(s, by, e.claims, x, policy.ReadSecret, r.Secret, r.Purpose, now); p != nil {
			return nil, nil
		}
		if row, err = e.sealed(ctx, v); problem.Is(err, problem.ReasonNotFound) {
			return nil, nil // destroyed meanwhile
		} else if err != nil {
			return nil, err
		}
	}
	value, err := e.open(r.Secret, v, row)
	if err != nil {
		return nil, err
	}
	return &preparedValue{number: v.Number, sealed: v.Sealed, value: value}, nil
}

func (e *Environment) open(path string, v *state.Version, row store.Sealed) (seal.Secret, error) {
	kek, ok := e.keys.Load().KEKNumbered(row.KEK)
	if !ok {
		return seal.Secret{}, problem.New(problem.ReasonTampered, "version %d of %s is under a key that this environment does not have", v.Number, path)
	}
	return seal.OpenValue(kek, e.valueContext(path, v.Number),
		seal.Sealed{Ciphertext: row.Ciphertext, WrappedKey: row.WrappedKey, KEK: row.KEK, Digest: v.Digest})
}

func (e *Environment) valueContext(path string, version uint64) seal.Context {
	return seal.Context{Format: seal.FormatValue1, Genesis: e.genesis, Path: path, Version: version, Purpose: "value"}
}

// release decides a read at the head.
func (t *turn) release(c Caller, r GetRequest, idem *state.IdemKey, p *preparedValue) (*Released, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	grant, err := t.permit(x, policy.ReadSecret, r.Secret, r.Purpose)
	if err != nil {
		return nil, err
	}
	first, err := t.idempotent(x, idem)
	if err != nil {
		return nil, err
	}
	v := wanted(t.s, x, r, idem, t.now)
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: string(policy.ReadSecret), target: r.Secret, purpose: r.Purpose, grant: grant.Grant, session: x}
	}
	switch {
	case v == nil && r.Version == 0:
		return nil, refuse(problem.ReasonNoVersion, "%s has no current version", r.Secret)
	case v == nil:
		return nil, refuse(problem.ReasonNotFound, "%s has no version %d", r.Secret, r.Version)
	}
	if st := v.StateAt(t.now); st != state.Current && st != state.Retiring {
		return nil, refuse(problem.ReasonLifecycle, "version %d of %s is %s", v.Number, r.Secret, st)
	}
	if p == nil || p.sealed != v.Sealed {
		return nil, errStale
	}
	lease, err := t.lease(x, v, r, grant, first, refuse)
	if err != nil {
		return nil, err
	}
	ev := &state.SecretReleased{
		Secret: r.Secret, Version: v.Number, Digest: v.Digest, Purpose: r.Purpose, Assurance: x.Assurance,
		Lease: lease.ID, Expires: lease.Expires, Root: x.Root, Actor: actorOf(x), Ruling: t.ruling(grant.Grant),
	}
	if lease.ID == 0 {
		ev.Max, ev.Anchor = lease.Max, x.Anchor
	}
	if idem != nil {
		k := *idem
		if first != nil {
			k.First = first.Index
		}
		ev.Idem = &k
	}
	index, err := t.enter(ev)
	if err != nil {
		return nil, err
	}
	if err := t.alarmGlass(x, grant.Grant); err != nil {
		return nil, err
	}
	id := lease.ID
	if id == 0 {
		id = index
	}
	return &Released{Value: p.value, Secret: r.Secret, Version: v.Number, Lease: id, Expires: lease.Expires.Time()}, nil
}

// lease finds the live lease of (identity, version, purpose), or says what a new one would be (ID 0).
func (t *turn) lease(x *state.Session, v *state.Version, r GetRequest, grant policy.Decision, first *state.Idempotent, refuse func(problem.Reason, string, ...any) error) (*state.Lease, error) {
	if id, ok := t.s.LeaseOf.Get(state.LeaseKey(x.Identity, x.Node, r.Secret, v.Number, r.Purpose)); ok {
		l, _ := t.s.Leases.Get(id)
		_, dead := leaseRevoked(t.s, l)
		sameEffect := first == nil || first.Lease == id // a retry is not served under a lease that it did not make
		if sameEffect && !dead && l.Live(t.now) && l.Anchor == x.Anchor && l.Root == x.Root {
			return l, nil
		}
	}
	if first != nil {
		// The key's first effect was a lease that is over. A retry never makes a second one.
		reason := problem.ReasonExpired
		made := state.SubjectOfEffect(x.Identity, first)
		made.Secret, made.Own = r.Secret, first.Lease
		if _, _, dead := t.s.CutoffOver(made); dead {
			reason = problem.ReasonCutoff
		}
		return nil, refuse(reason, "the lease that this idempotency key made is over")
	}
	ttl, most := t.leaseTimes(r.Secret, grant)
	l := &state.Lease{Expires: leaseEnd(x, t.now.Add(ttl)), Max: t.now.Add(most)}
	return l, nil
}

// leaseEnd keeps a job's lease within its session. A job that is killed as a whole gives nothing back, and nobody else hears of its end:
// its session, which only it can renew, is what tells.
func leaseEnd(x *state.Session, end state.Millis) state.Millis {
	if strings.HasPrefix(x.Identity, identity.PrefixCI) {
		return min(end, x.Expires)
	}
	return end
}

// leaseTimes gives the lifetime of a new lease and its maximum: the least of what grant, secret and environment say.
func (t *turn) leaseTimes(path string, grant policy.Decision) (ttl, most time.Duration) {
	env := t.prog.Environment()
	ttl, most = env.Leases.Default, env.Leases.Max
	if sec, ok := t.prog.Secret(path); ok {
		if sec.Lease.Default > 0 {
			ttl = sec.Lease.Default
		}
		if sec.Lease.Max > 0 {
			most = min(most, sec.Lease.Max)
		}
	}
	if grant.TTL > 0 {
		most = min(most, grant.TTL)
	}
	return min(ttl, most), most
}

func leaseRevoked(s *state.State, l *state.Lease) (string, bool) {
	scope, _, dead := s.CutoffOver(state.SubjectOfLease(l))
	return scope, dead
}

// Written is the result of a put or generate.
type Written struct {
	Secret  string
	Version uint64
	State   state.VersionState
	Index   uint64
	Proof   *ledger.Proof
}

// PutRequest writes a new version.
type PutRequest struct {
	Secret string
	Value  seal.Secret // stays the caller's
	Stage  bool
	Key    string
}

// Put writes a value as a new version, which becomes the current one unless it is staged.
func (e *Environment) Put(ctx context.Context, c Caller, r PutRequest) (*Written, error) {
	if r.Value.Len() == 0 || r.Value.Len() > seal.MaxValue {
		return nil, problem.New(problem.ReasonTooLarge, "a value has 1 to %d bytes", seal.MaxValue)
	}
	idem, err := e.idemKey(r.Key, []byte("put"), []byte(r.Secret), r.Value.Expose(), stageByte(r.Stage))
	if err != nil {
		return nil, err
	}
	return e.write(ctx, c, writing{secret: r.Secret, stage: r.Stage, action: policy.WriteSecret, idem: idem, value: r.Value})
}

func stageByte(stage bool) []byte {
	if stage {
		return []byte{1}
	}
	return []byte{0}
}

// GenerateRequest has the server make a value.
type GenerateRequest struct {
	Secret string
	Recipe string // empty: the bundle's
	Length int    // 0: the bundle's or the recipe's own
	Stage  bool
	Key    string
}

// Generate makes a value by a named recipe and writes it as a new version. The value does not leave.
func (e *Environment) Generate(ctx context.Context, c Caller, r GenerateRequest) (*Written, error) {
	if r.Length < 0 || r.Length > seal.MaxValue {
		return nil, problem.New(problem.ReasonInvalid, "a length of %d is out of range", r.Length)
	}
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(r.Length))
	idem, err := e.idemKey(r.Key, []byte("generate"), []byte(r.Secret), []byte(r.Recipe), length[:], stageByte(r.Stage))
	if err != nil {
		return nil, err
	}
	recipe := policy.Recipe{Name: r.Recipe, Length: r.Length}
	if recipe.Name == "" {
		prog, err := e.inForce(e.log.State())
		if err != nil {
			return nil, err
		}
		if sec, ok := prog.Secret(r.Secret); ok && sec.Recipe.Name != "" {
			recipe.Name = sec.Recipe.Name
			if r.Length == 0 {
				recipe.Length = sec.Recipe.Length
			}
		}
	}
	if recipe.Name == "" {
		recipe.Name = "password"
	}
	value, err := seal.Generate(recipe.Name, recipe.Length, e.cfg.Source)
	if err != nil {
		return nil, err
	}
	defer value.Wipe()
	return e.write(ctx, c, writing{secret: r.Secret, stage: r.Stage, action: policy.GenerateSecret, recipe: recipe.Name, idem: idem, value: value})
}

type writing struct {
	secret string
	stage  bool
	action policy.Action
	recipe string
	idem   *state.IdemKey
	value  seal.Secret
}

// preparedSeal is a value sealed as the versions from first on: which of them it will be is known at the head only.
type preparedSeal struct {
	keys   *custody.Keys
	first  uint64
	sealed []seal.Sealed
}

// as is the value sealed as a version, if it was.
func (p preparedSeal) as(version uint64) (seal.Sealed, bool) {
	if version < p.first || version-p.first >= uint64(len(p.sealed)) {
		return seal.Sealed{}, false
	}
	return p.sealed[version-p.first], true
}

// ahead is as how many versions a value is sealed at each attempt, of at most maxAhead bytes together. One will do unless others
// write the same secret at the same time; then several of them are written in one batch, each with the number that it finds.
var ahead = [prepareAttempts]int{1, 8, 64}

const maxAhead = 512 << 10

func (e *Environment) write(ctx context.Context, c Caller, w writing) (*Written, error) {
	if _, err := identity.ParseSecretPath(w.secret); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the secret's name")
	}
	attempt := 0
	out, proof, err := do(ctx, e,
		func(ctx context.Context, s *state.State) (preparedSeal, error) {
			n := max(min(ahead[attempt], maxAhead/w.value.Len()), 1)
			attempt++
			return e.prepareSeal(ctx, s, w, n)
		},
		func(t *turn, p preparedSeal) (*Written, error) { return t.write(c, w, p) })
	if err != nil {
		return nil, err
	}
	e.cfg.Silence.Seed(w.value.Expose()) // only what was really written: a stranger could seed what every log has
	out.Proof = proof
	return out, nil
}

func (e *Environment) prepareSeal(ctx context.Context, s *state.State, w writing, n int) (preparedSeal, error) {
	p := preparedSeal{first: 1, sealed: make([]seal.Sealed, 0, n)}
	if sec, ok := s.Secrets.Get(w.secret); ok {
		p.first = sec.Last + 1
	}
	var err error
	if p.keys, err = e.currentKeys(ctx, s); err != nil {
		return p, err
	}
	for version := p.first; len(p.sealed) < n; version++ {
		x, err := seal.SealValue(p.keys.KEK(), e.valueContext(w.secret, version), w.value, e.cfg.Source)
		if err != nil {
			return p, err
		}
		p.sealed = append(p.sealed, x)
	}
	return p, nil
}

// write decides a write at the head.
func (t *turn) write(c Caller, w writing, p preparedSeal) (*Written, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	grant, err := t.permit(x, w.action, w.secret, "")
	if err != nil {
		return nil, err
	}
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: string(w.action), target: w.secret, grant: grant.Grant, session: x}
	}
	first, err := t.idempotent(x, w.idem)
	if err != nil {
		return nil, err
	}
	if first != nil {
		st := state.Destroyed
		if sec, ok := t.s.Secrets.Get(w.secret); ok {
			if v := sec.Find(first.Version); v != nil {
				st = v.StateAt(t.now)
			}
		}
		return &Written{Secret: w.secret, Version: first.Version, State: st, Index: first.Index}, nil
	}
	declared, ok := t.prog.Secret(w.secret)
	if !ok {
		return nil, refuse(problem.ReasonNotDeclared, "%s is not declared in the bundle in force", w.secret)
	}
	if w.value.Len() > declared.MaxBytes {
		return nil, problem.New(problem.ReasonTooLarge, "a value of %d bytes is over the limit of %d for %s", w.value.Len(), declared.MaxBytes, w.secret)
	}
	limits := t.prog.Environment().Limits
	sec, exists := t.s.Secrets.Get(w.secret)
	if !exists && t.s.Secrets.Len() >= limits.Secrets {
		return nil, refuse(problem.ReasonLimit, "there are %d secrets already", t.s.Secrets.Len())
	}
	ev := &state.SecretWritten{
		Secret: w.secret, Version: 1, State: state.Current, Recipe: w.recipe,
		Actor: actorOf(x), Ruling: t.ruling(grant.Grant), Idem: w.idem,
	}
	if w.stage {
		ev.State = state.Staged
	}
	if exists {
		ev.Version = sec.Last + 1
		if !w.stage && sec.Current != 0 {
			ev.Retires, ev.Until = sec.Current, t.now.Add(declared.Retain)
		}
		ev.Destroys = makeRoom(sec, ev.Retires, limits.VersionsPerSecret, t.now)
		if len(sec.Versions)-len(ev.Destroys) >= limits.VersionsPerSecret && len(ev.Destroys) < maxDestroys {
			return nil, refuse(problem.ReasonLimit, "%s has %d versions and none of them is retired", w.secret, len(sec.Versions))
		}
	}
	sealed, ok := p.as(ev.Version)
	if !ok || p.keys.Behind(t.s) {
		return nil, errStale
	}
	ev.Digest = sealed.Digest
	index, err := t.enter(ev)
	if err != nil {
		return nil, err
	}
	t.draft.Seal = append(t.draft.Seal, store.Sealed{ID: index, Ciphertext: sealed.Ciphertext, WrappedKey: sealed.WrappedKey, KEK: sealed.KEK})
	for _, n := range ev.Destroys {
		t.draft.Shred = append(t.draft.Shred, sec.Find(n).Sealed)
	}
	return &Written{Secret: w.secret, Version: ev.Version, State: ev.State, Index: index}, nil
}

// maxDestroys is how many versions one write destroys: their numbers fit into an entry. When a bundle has lowered the limit by more,
// each write takes so many away until it is kept.
const maxDestroys = 500

// makeRoom picks the oldest retired versions that must go for one more to fit.
func makeRoom(sec *state.Secret, retires uint64, most int, now state.Millis) []uint64 {
	var out []uint64
	for _, v := range sec.Versions {
		if len(sec.Versions)-len(out) < most || len(out) == maxDestroys {
			break
		}
		if st := v.StateAt(now); v.Number != retires && (st == state.Retired || st == state.Destroyed) {
			out = append(out, v.Number)
		}
	}
	return out
}

// MoveRequest changes a version's lifecycle state.
type MoveRequest struct {
	Secret  string
	Version uint64
	To      state.VersionState
	Reason  string
}

// Moved says what a move did.
type Moved struct {
	Index uint64
	From  state.VersionState
	Proof *ledger.Proof
}

// Move promotes, retires, marks as compromised, or destroys a version.
func (e *Environment) Move(ctx context.Context, c Caller, r MoveRequest) (*Moved, error) {
	if len(r.Reason) > 500 {
		return nil, problem.New(problem.ReasonTooLarge, "a reason has at most 500 bytes")
	}
	out, proof, err := do(ctx, e, nothing, func(t *turn, _ struct{}) (*Moved, error) { return t.move(c, r) })
	if err != nil {
		return nil, err
	}
	out.Proof = proof
	return out, nil
}

func (t *turn) move(c Caller, r MoveRequest) (*Moved, error) {
	x, err := t.session(c)
	if err != nil {
		return nil, err
	}
	action := policy.PromoteSecret
	if r.To == state.Destroyed {
		action = policy.DestroySecret
	}
	grant, err := t.permit(x, action, r.Secret, "")
	if err != nil {
		return nil, err
	}
	refuse := func(reason problem.Reason, format string, args ...any) error {
		return &denied{problem: problem.New(reason, format, args...), action: string(action), target: r.Secret, grant: grant.Grant, session: x}
	}
	sec, ok := t.s.Secrets.Get(r.Secret)
	if !ok {
		return nil, refuse(problem.ReasonNotFound, "there is no secret %s", r.Secret)
	}
	v := sec.Find(r.Version)
	if v == nil {
		return nil, refuse(problem.ReasonNotFound, "%s has no version %d", r.Secret, r.Version)
	}
	from := v.StateAt(t.now)
	if err := state.CheckMove(from, r.To); err != nil {
		return nil, refuse(problem.ReasonLifecycle, "%s", problem.As(err).Message)
	}
	if r.To == state.Destroyed && t.prog.Environment().Takes(ActionDestroy) {
		// A grant permits one person to ask for it; what can't be undone takes others as well.
		need, _ := required(t.prog, ActionDestroy)
		p := problem.New(problem.ReasonQuorum, "destroying a version takes %d approval(s)", need).
			WithFix("propose it: `bailment secret destroy --propose %s %d`", r.Secret, r.Version)
		return nil, &denied{problem: p, action: string(action), target: r.Secret, grant: grant.Grant, session: x}
	}
	ev := &state.SecretMoved{
		Secret: r.Secret, Version: r.Version, From: from, To: r.To, Reason: r.Reason, Actor: actorOf(x), Ruling: t.ruling(grant.Grant),
	}
	declared, _ := t.prog.Secret(r.Secret)
	switch r.To {
	case state.Retiring:
		ev.Until = t.now.Add(declared.Retain)
	case state.Current:
		if sec.Current != 0 {
			until := t.now.Add(declared.Retain)
			ev.Retires, ev.Until = sec.Current, until
		}
	case state.Destroyed:
		t.draft.Shred = append(t.draft.Shred, v.Sealed)
	}
	index, err := t.enter(ev)
	if err != nil {
		return nil, err
	}
	return &Moved{Index: index, From: from}, nil
}

// Page is a slice of a listing.
type Page struct {
	After string // the last key seen; empty: from the beginning
	Size  int    // 1 to 1,000; 0: 100
}

func (p Page) size() int {
	switch {
	case p.Size <= 0:
		return 100
	case p.Size > 1000:
		return 1000
	}
	return p.Size
}

// listScan bounds the work of one page, whoever may see how little of it.
const listScan = 10_000

// ListSecrets lists the secrets below a prefix that the caller may list, without values. It is not a release and makes no entry.
func (e *Environment) ListSecrets(_ context.Context, c Caller, prefix string, page Page) ([]*state.Secret, string, error) {
	s := e.log.State()
	now := state.At(e.cfg.Now())
	x, err := e.judge(s, c, now)
	if err != nil {
		return nil, "", err
	}
	by, err := e.governingNow(e.run, s, x.Identity)
	if err != nil {
		return nil, "", err
	}
	var out []*state.Secret
	next, scanned, last := "", 0, ""
	from := max(prefix, page.After)
	s.Secrets.From(from, func(path string, sec *state.Secret) bool {
		if !strings.HasPrefix(path, prefix) {
			return false
		}
		if path == page.After {
			return true
		}
		if len(out) == page.size() || scanned == listScan {
			next = last
			return false
		}
		scanned++
		last = path
		if _, p := decidePermit(s, by, e.claims, x, policy.ListSecret, path, "", now); p == nil {
			out = append(out, sec)
		}
		return true
	})
	return out, next, nil
}

// judge checks a session for a read of the state, as a turn would. There is no entry of a read, so a refusal is counted.
func (e *Environment) judge(s *state.State, c Caller, now state.Millis) (*state.Session, error) {
	x, p := standing(s, c, now)
	if p != nil {
		return nil, e.unanswered(x, c, now, p)
	}
	return x, nil
}

// unanswered counts a question that an identity was refused, and returns why. Without a session there is nobody to count it for.
func (e *Environment) unanswered(x *state.Session, c Caller, now state.Millis, p *problem.Problem) error {
	if x != nil {
		e.denials.add(denial{method: "identity", identity: x.Identity, reason: p.Reason, minute: int64(now) / 60_000, source: c.Source})
	}
	return p
}

// standing is the caller's session, and why it does not stand, if it doesn't. There is no session with a caller that has not proved one.
func standing(s *state.State, c Caller, now state.Millis) (*state.Session, *problem.Problem) {
	x, err := liveSession(s, c, now)
	if err != nil {
		return nil, problem.As(err)
	}
	_, p := checkRevoked(s, state.SubjectOf(x), now)
	return x, p
}
