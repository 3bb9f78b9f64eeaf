package state

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// LeaseKey names the one lease of a stored version: (identity, version, purpose). A workload's
// identity is counted on each node by itself, so that cutting off one node takes only its leases. It is half a SHA-256 of them,
// which is shorter than they are: there may be a million.
func LeaseKey(identity, node, secret string, version uint64, purpose string) string {
	b := make([]byte, 0, 256)
	for _, part := range [...]string{identity, node, secret} {
		b = append(append(b, part...), 0)
	}
	b = append(strconv.AppendUint(b, version, 10), 0)
	sum := sha256.Sum256(append(b, purpose...))
	return string(sum[:16])
}

// IdemOwner is whose an idempotency key is: an identity's, and a workload's on each node by itself, as its leases are. No
// node can take or use up the keys of another.
func IdemOwner(identity, node string) string {
	if node == "" {
		return identity
	}
	return identity + "@" + node
}

// IdemName names an owner's idempotency key.
func IdemName(owner, key string) string { return owner + "\x00" + key }

func idemOwner(name string) string {
	owner, _, _ := strings.Cut(name, "\x00")
	return owner
}

// remember enters an idempotency key with the first effect.
func (s *State) remember(a Actor, k *IdemKey, m Meta, what Idempotent) {
	if k == nil || k.First != 0 {
		return
	}
	owner := IdemOwner(a.Identity, a.Node)
	name := IdemName(owner, k.Key)
	what.Request, what.Index, what.Expires, what.Node = k.Request, m.Index, m.Time+idemLifetime, a.Node
	if x, ok := s.Sessions.Get(a.Session); ok {
		what.Anchor, what.Root = x.Anchor, x.Root
	}
	if _, had := s.Idem.Get(name); !had {
		n, _ := s.IdemCount.Get(owner)
		s.IdemCount.set(owner, n+1)
	}
	s.Idem.set(name, &what)
	s.enqueue(what.Expires, qIdem, name)
}

func (e *Genesis) apply(s *State, m Meta) error {
	if err := e.checkGenesis(); err != nil {
		return err
	}
	s.Env = Env{Name: e.Name, Class: e.Class, Genesis: sha256.Sum256([]byte(e.Document)), Created: m.Time}
	if e.Protocol < 0 || e.Protocol == 1 {
		return fmt.Errorf("protocol %d is none of a genesis", e.Protocol)
	}
	if err := known(e.Protocol); err != nil {
		return err
	}
	s.Generation, s.Bundle, s.BundleAt, s.Protocol = 1, e.Manifest, m.Index, max(e.Protocol, 1)
	if s.Protocol >= protocolRollout {
		s.ServesSince = m.Time
	}
	s.Manifests.set(e.Manifest.String(), 1)
	for i := range e.Keys {
		s.addKey(&e.Keys[i], m)
	}
	s.Control = m.Index
	return nil
}

func (e *KeyAdded) apply(s *State, m Meta) error {
	if err := s.checkNext(&e.Key); err != nil {
		return err
	}
	s.addKey(&e.Key, m)
	s.Control = m.Index
	return nil
}

func (e *KeysRewrapped) apply(*State, Meta) error { return nil }

func (e *BundleInForce) apply(s *State, m Meta) error {
	if e.Generation != s.Generation+1 {
		return fmt.Errorf("generation %d does not follow %d", e.Generation, s.Generation)
	}
	if e.Previous != s.Bundle {
		return fmt.Errorf("it replaces another bundle than the one in force")
	}
	if e.How == ByRecovery {
		if err := e.recovers(s, m); err != nil {
			return err
		}
	} else {
		c, ok := s.Changes.Get(e.Change)
		if !ok || e.Recovery != 0 {
			return fmt.Errorf("there is no change %d", e.Change)
		}
		if err := e.comes(s, c, m); err != nil {
			return err
		}
	}
	if e.How != ByRollback { // see Recovery
		s.recoveries.del(recoveryKey)
	}
	s.Changes.All(func(_ uint64, c *Change) bool {
		if c.State == InForce && c.Index != e.Change {
			s.setChange(c, Superseded)
			return false
		}
		return true
	})
	s.Generation, s.Bundle, s.BundleAt = e.Generation, e.Manifest, m.Index
	s.Manifests.set(e.Manifest.String(), e.Generation)
	s.Control = m.Index
	return nil
}

func (s *State) setChange(c *Change, to ChangeState) {
	n := *c
	n.State = to
	s.Changes.set(n.Index, &n)
}

// spend remembers a nonce until what it was for has expired.
func (s *State) spend(nonce string, until Millis) error {
	name := "nonce:" + nonce
	if s.Once.Has(name) {
		return fmt.Errorf("nonce used before")
	}
	s.Once.set(name, until)
	s.enqueue(until, qOnce, name)
	return nil
}

// answer remembers that a challenge was answered until it has expired. There needn't be one.
func (s *State) answer(challenge string, until Millis) error {
	if challenge == "" {
		return nil
	}
	if s.Once.Has(challenge) {
		return fmt.Errorf("challenge used before")
	}
	s.Once.set(challenge, until)
	s.enqueue(until, qOnce, challenge)
	return nil
}

// newestText is the newest version of the text that proposers sign (see package ceremony).
const newestText = 2

func (e *ChangeProposed) apply(s *State, m Meta) error {
	if e.Version < 2 && (e.Version != 0 || e.Rollout != "" || !e.Rollback.IsZero() || len(e.Containment) > 0) {
		return fmt.Errorf("a text of version 1 has no rollout, rollback or containment")
	}
	if e.Version > newestText {
		return fmt.Errorf("there is no text of version %d", e.Version)
	}
	if err := e.checkDelay(); err != nil {
		return err
	}
	if err := s.spend(e.Nonce, e.Expires); err != nil {
		return err
	}
	s.Changes.set(m.Index, &Change{
		Index: m.Index, Action: e.Action, State: Proposed, Manifest: e.Manifest, Base: e.Base,
		Target: e.Target, Proposer: e.Actor.Identity, Anchors: s.vouched(e.Actor, &e.Signature, e.Bundle), Required: e.Required, SelfOK: e.SelfOK,
		Created: m.Time, Expires: e.Expires, Reason: e.Reason, Text: e.Version, Rollout: e.Rollout, Rollback: e.Rollback, Containment: e.Containment,
		Delay: e.Delay,
	})
	s.enqueue(e.Expires+keepChange, qChange, indexKey(m.Index))
	s.remember(e.Actor, e.Idem, m, Idempotent{})
	return nil
}

// comes checks that a bundle may come into force in the way that the entry says, and moves its change.
func (e *BundleInForce) comes(s *State, c *Change, m Meta) error {
	r := s.Staged()
	switch e.How {
	case ByChange:
		if r != nil || !s.Complete(c, m.Time) || c.State != Proposed || c.Manifest != e.Manifest || e.Watch != 0 || e.Cause != nil {
			return fmt.Errorf("change %d does not bring this bundle into force", e.Change)
		}
		s.endRollout()
	case ByRollout:
		if r == nil || r.Change != e.Change || r.Manifest != e.Manifest || r.Step+1 != len(r.Plan.Steps) || !r.over(m.Time) || !s.Complete(c, m.Time) {
			return fmt.Errorf("the rollout of change %d does not bring this bundle into force", e.Change)
		}
		n := *r
		n.Step, n.Since, n.Until = len(n.Plan.Steps), m.Time, e.Watch
		if err := s.setRollout(&n); err != nil {
			return err
		}
	case ByRollback:
		if r != nil || c.State != InForce || c.Manifest != s.Bundle || c.Rollback.IsZero() || c.Rollback != e.Manifest || e.Cause == nil {
			return fmt.Errorf("change %d can't be rolled back to this bundle", e.Change)
		}
		s.endRollout()
		s.setChange(c, RolledBack)
		return nil
	default:
		return fmt.Errorf("a bundle can't come into force by %.40q", e.How)
	}
	s.setChange(c, InForce)
	return nil
}

// vouched lists what vouches for what a person signed and sent, without repetition: the keys of the signatures, and the
// anchor of the session.
func (s *State) vouched(a Actor, signatures ...*Signature) []string {
	var out []string
	add := func(anchor string) {
		if !slices.Contains(out, anchor) {
			out = append(out, anchor)
		}
	}
	for _, x := range signatures {
		if x != nil {
			add("ssh:" + x.Key)
		}
	}
	if x, ok := s.Sessions.Get(a.Session); ok {
		add(x.Anchor)
	}
	return out
}

func (e *ChangeApproved) apply(s *State, m Meta) error {
	c, ok := s.Changes.Get(e.Change)
	if !ok || !s.Approvable(c, m.Time) {
		return fmt.Errorf("change %d is not open", e.Change)
	}
	if !s.MayApprove(c, e.Signature.Person, m.Time) {
		return fmt.Errorf("%s approved change %d before", e.Signature.Person, e.Change)
	}
	if err := s.spend(e.Nonce, c.Expires); err != nil {
		return err
	}
	n := *c
	n.Approvals = make([]Approval, 0, len(c.Approvals)+1)
	for _, a := range c.Approvals {
		if a.Person != e.Signature.Person { // every person counts once: one that no longer counts makes room
			n.Approvals = append(n.Approvals, a)
		}
	}
	n.Approvals = append(n.Approvals, Approval{Person: e.Signature.Person, Index: m.Index, Anchors: s.vouched(e.Actor, &e.Signature)})
	s.wait(&n, m.Time)
	s.Changes.set(n.Index, &n)
	return nil
}

func (e *ChangeRejected) apply(s *State, m Meta) error {
	c, ok := s.Changes.Get(e.Change)
	if !ok || !c.Open() || c.StateAt(m.Time) == Expired {
		return fmt.Errorf("change %d is not open", e.Change)
	}
	s.setChange(c, Rejected)
	return nil
}

func (e *TokenCreated) apply(s *State, m Meta) error {
	if s.Tokens.Has(e.ID) {
		return fmt.Errorf("join token %s exists", e.ID)
	}
	s.Tokens.set(e.ID, &Token{ID: e.ID, Public: e.Public, Name: e.Name, Created: m.Index, By: e.Actor.Identity, Anchor: e.Anchor, Expires: e.Expires})
	s.enqueue(e.Expires+keepToken, qToken, e.ID)
	s.remember(e.Actor, e.Idem, m, Idempotent{})
	return nil
}

func (e *SessionOpened) apply(s *State, m Meta) error {
	if err := s.answer(e.Challenge, e.ChallengeTo); err != nil {
		return err
	}
	if s.Gone.Has(e.Identity) {
		return fmt.Errorf("%s was decommissioned", e.Identity)
	}
	if e.Token != "" {
		t, ok := s.Tokens.Get(e.Token)
		if !ok || (!t.SpentBy.IsZero() && t.SpentBy != e.Key) {
			return fmt.Errorf("join token %s is not this key's", e.Token)
		}
		if t.SpentBy.IsZero() {
			n := *t
			n.SpentBy, n.SpentAt = e.Key, m.Index
			s.Tokens.set(e.Token, &n)
		}
	}
	root := e.Root
	if root == 0 {
		root = m.Index
	}
	x := &Session{
		Index: m.Index, Identity: e.Identity, Via: e.Via, Method: e.Method, Anchor: e.Anchor,
		Assurance: e.Assurance, Node: e.Node, NodeSess: e.NodeSession, Root: root, Key: e.Key,
		Serial: e.Serial, Expires: e.Expires, Counter: e.Counter, Claims: e.Claims, Generation: e.Ruling.Generation,
	}
	if strings.HasPrefix(e.Identity, identity.PrefixCI) {
		x.Lifetime, x.Twin = e.Lifetime, s.inherit(e, m.Index)
	}
	s.Sessions.set(m.Index, x)
	s.enqueue(e.Expires+keepSession, qSession, indexKey(m.Index))

	id := &Identity{Path: e.Identity, First: m.Time}
	if old, ok := s.Identities.Get(e.Identity); ok {
		first := old.First
		*id = *old
		id.First = first
	} else {
		s.enqueue(max(m.Time, e.Lifetime)+keepIdentity, qIdentity, e.Identity)
	}
	if root != id.Root {
		id.Enrolled = m.Time
	}
	id.Method, id.Anchor, id.Root, id.Counter, id.Closed = e.Method, e.Anchor, root, e.Counter, false
	if !e.Redelivery {
		id.Prior = id.Session
	}
	id.Key, id.Lifetime, id.Last, id.Session = e.Key, e.Lifetime, m.Time, m.Index
	id.Assurance, id.Evidence, id.Claims = e.Assurance, e.Evidence, e.Claims
	s.Identities.set(e.Identity, id)

	thumb := string(e.Key[:])
	if _, seen := s.SeenKeys.Get(thumb); !seen {
		s.enqueue(e.Expires+keepKey, qKey, thumb)
	}
	s.SeenKeys.set(thumb, &SeenKey{Identity: e.Identity, Until: e.Expires + keepKey})
	return nil
}

// inherit keeps which key renewed a job's session, and says of which session the new one is another reply; 0: of none.
func (s *State) inherit(e *SessionOpened, index uint64) (twin uint64) {
	if e.From == 0 {
		return e.Root // 0 unless the reply was lost
	}
	from, ok := s.Sessions.Get(e.From)
	if ok {
		from, ok = s.FirstReply(from)
	}
	if !ok {
		return 0
	}
	if from.Heir == e.Key {
		return from.Next
	}
	n := *from
	n.Heir, n.Next = e.Key, index
	s.Sessions.set(n.Index, &n)
	return 0
}

func (e *SessionClosed) apply(s *State, _ Meta) error {
	x, ok := s.Sessions.Get(e.Session)
	if !ok {
		return fmt.Errorf("no session %d", e.Session)
	}
	n := *x
	n.Closed = true
	s.Sessions.set(n.Index, &n)
	if first, ok := s.FirstReply(x); ok && first.Index != x.Index {
		n := *first
		n.Closed = true
		s.Sessions.set(n.Index, &n)
	}
	// Whichever of several replies to one request is given back: all of them are of one holder.
	if id, ok := s.Identities.Get(x.Identity); ok && id.Root == x.Root && id.Counter == x.Counter && id.Key == x.Key {
		over := *id
		over.Closed = true
		s.Identities.set(over.Path, &over)
	}
	return nil
}

func (e *SecretWritten) apply(s *State, m Meta) error {
	sec := &Secret{Path: e.Secret, Created: m.Index}
	if old, ok := s.Secrets.Get(e.Secret); ok {
		*sec = *old
	}
	if e.Version != sec.Last+1 {
		return fmt.Errorf("version %d of %s does not follow %d", e.Version, e.Secret, sec.Last)
	}
	if e.State != Staged && e.State != Current {
		return fmt.Errorf("a version is not written as %s", e.State)
	}
	if e.Retires != 0 && e.State != Current {
		return fmt.Errorf("version %d of %s is retired and nothing takes its place", e.Retires, e.Secret)
	}
	versions := make([]*Version, 0, len(sec.Versions)+1)
	for _, v := range sec.Versions {
		if v.Number == e.Retires {
			moved, err := moveVersion(v, Retiring, e.Until, m.Time)
			if err != nil {
				return err
			}
			v = moved
		}
		if contains(e.Destroys, v.Number) {
			if err := checkDestroy(v, m.Time); err != nil {
				return err
			}
			continue
		}
		versions = append(versions, v)
	}
	versions = append(versions, &Version{
		Number: e.Version, State: e.State, Sealed: m.Index, Digest: e.Digest, Created: m.Time,
		By: e.Actor.Identity, Recipe: e.Recipe,
	})
	if e.State == Current {
		if sec.Current != 0 && e.Retires != sec.Current {
			return fmt.Errorf("%s would have two current versions", e.Secret)
		}
		sec.Current = e.Version
	}
	sec.Last, sec.Versions = e.Version, versions
	s.Secrets.set(e.Secret, sec)
	s.useGlass(&e.Actor, &e.Ruling, e.Secret, m.Time)
	s.remember(e.Actor, e.Idem, m, Idempotent{Secret: e.Secret, Version: e.Version})
	return nil
}

func contains(list []uint64, n uint64) bool {
	for _, x := range list {
		if x == n {
			return true
		}
	}
	return false
}

func checkDestroy(v *Version, now Millis) error {
	if v.State == Destroyed {
		return nil // its value is gone; now its row makes room too
	}
	return CheckMove(v.StateAt(now), Destroyed)
}

func moveVersion(v *Version, to VersionState, until, now Millis) (*Version, error) {
	if err := CheckMove(v.StateAt(now), to); err != nil {
		return nil, err
	}
	n := *v
	n.State, n.Until = to, 0
	if to == Retiring {
		n.Until = until
	}
	return &n, nil
}

func (e *SecretMoved) apply(s *State, m Meta) error {
	old, ok := s.Secrets.Get(e.Secret)
	if !ok {
		return problem.New(problem.ReasonNotFound, "no secret %s", e.Secret)
	}
	if e.Retires != 0 && e.To != Current {
		return fmt.Errorf("version %d of %s is retired and nothing takes its place", e.Retires, e.Secret)
	}
	if e.Change != 0 {
		if e.To != Destroyed {
			return fmt.Errorf("change %d destroys a version, and this makes it %s", e.Change, e.To)
		}
		if err := s.carryOut(e.Change, policy.ActDestroy, HoldTarget(e.Secret, e.Version), m); err != nil {
			return err
		}
	}
	sec := *old
	sec.Versions = append([]*Version(nil), old.Versions...)
	found := false
	for i, v := range sec.Versions {
		switch v.Number {
		case e.Version:
			if v.StateAt(m.Time) != e.From {
				return fmt.Errorf("version %d of %s is %s, not %s", e.Version, e.Secret, v.StateAt(m.Time), e.From)
			}
			n, err := moveVersion(v, e.To, e.Until, m.Time)
			if err != nil {
				return err
			}
			sec.Versions[i], found = n, true
		case e.Retires:
			n, err := moveVersion(v, Retiring, e.Until, m.Time)
			if err != nil {
				return err
			}
			sec.Versions[i] = n
		}
	}
	if !found {
		return fmt.Errorf("no version %d of %s", e.Version, e.Secret)
	}
	switch {
	case e.To == Current:
		if sec.Current != 0 && sec.Current != e.Retires {
			return fmt.Errorf("%s would have two current versions", e.Secret)
		}
		sec.Current = e.Version
	case e.Version == sec.Current:
		sec.Current = 0
	}
	s.Secrets.set(e.Secret, &sec)
	s.useGlass(&e.Actor, &e.Ruling, e.Secret, m.Time)
	return nil
}

func (e *SecretReleased) apply(s *State, m Meta) error {
	if e.Lease == 0 {
		l := &Lease{
			ID: m.Index, Identity: e.Actor.Identity, Node: e.Actor.Node, Anchor: e.Anchor, Session: e.Actor.Session,
			Root: e.Root, Secret: e.Secret, Version: e.Version, Purpose: e.Purpose, Grant: e.Ruling.Grant,
			Created: m.Time, Expires: e.Expires, Max: e.Max,
		}
		l.intern()
		k := LeaseKey(l.Identity, l.Node, l.Secret, l.Version, l.Purpose)
		if before, ok := s.LeaseOf.Get(k); ok {
			s.supersede(before, l)
		}
		s.Leases.set(l.ID, l)
		s.LeaseOf.set(k, l.ID)
		s.enqueue(l.Expires+keepLease, qLease, indexKey(l.ID))
	} else if l, ok := s.Leases.Get(e.Lease); !ok || l.Expires != e.Expires || !l.Live(m.Time) {
		return fmt.Errorf("lease %d is not as the release says", e.Lease)
	}
	s.serve(e.Actor.Identity, e.Secret, e.Ruling.Grant, m.Time)
	s.countRelease(e, m)
	s.countAsked(e.Actor.Identity, e.Actor.Node, m.Time)
	if e.Idem != nil && e.Idem.First == 0 {
		lease := e.Lease
		if lease == 0 {
			lease = m.Index
		}
		s.remember(e.Actor, e.Idem, m, Idempotent{Secret: e.Secret, Version: e.Version, Lease: lease})
	}
	return nil
}

// supersede makes room for a lease of the same name. The older row stays until its own time is over if a revocation may have to
// name it and would not name the newer one: it was made under another enrolment, or lives longer. So there is one row for each
// enrolment within its leases' lifetime, and an enrolment costs a proof; whoever returns leases and takes new ones leaves one.
func (s *State) supersede(before uint64, by *Lease) {
	old, ok := s.Leases.Get(before)
	if !ok || old.Anchor != by.Anchor || old.Root != by.Root || old.Expires > by.Expires {
		return
	}
	s.Leases.del(before)
	// Unless it was renewed, this is its place; else the sweep finds that it is gone.
	s.queue.del(queueKey(old.Expires+keepLease, qLease, indexKey(before)))
}

func (e *LeaseRenewed) apply(s *State, m Meta) error {
	l, ok := s.Leases.Get(e.Lease)
	if !ok || !l.Live(m.Time) {
		return fmt.Errorf("lease %d is not active", e.Lease)
	}
	if e.Expires > l.Max {
		return fmt.Errorf("lease %d can't be renewed beyond its maximum", e.Lease)
	}
	n := *l
	n.Expires = e.Expires
	s.Leases.set(n.ID, &n)
	s.useGlass(&e.Actor, &e.Ruling, n.Secret, m.Time)
	return nil
}

func (e *LeaseReturned) apply(s *State, m Meta) error {
	l, ok := s.Leases.Get(e.Lease)
	if !ok || l.Returned != 0 {
		return fmt.Errorf("no lease %d to return", e.Lease)
	}
	n := *l
	n.Returned = m.Time
	s.Leases.set(n.ID, &n)
	return nil
}

func (e *RevocationRecorded) apply(s *State, m Meta) error {
	if _, err := ParseScope(e.Scope); err != nil {
		return err
	}
	if e.Change != 0 { // before it has effect: it may be about one of its own approvers
		h, ok := s.Holds.Get(e.Scope)
		if !ok || (h.Until != 0 && m.Time >= h.Until) {
			return fmt.Errorf("there is no hold on %s to confirm", e.Scope)
		}
		if err := s.carryOut(e.Change, policy.ActConfirmCut, HoldTarget(e.Scope, h.Index), m); err != nil {
			return err
		}
	}
	if e.Cutoff {
		s.Cutoffs.set(e.Scope, m.Index)
	}
	if e.Hold {
		s.Holds.set(e.Scope, &Hold{Scope: e.Scope, Index: m.Index, By: e.Actor.Identity, Reason: e.Reason, Until: e.Until})
		if e.Until != 0 {
			s.enqueue(e.Until, qHold, e.Scope)
			name := ProvisionalName(e.Actor.Identity, e.Scope)
			s.Once.set(name, m.Time+provisionalMemory)
			s.enqueue(m.Time+provisionalMemory, qOnce, name)
		}
	}
	s.Control = m.Index
	return nil
}

// ProvisionalName is under what Once remembers that a person set a provisional hold, for a day: whoever sets it again when it
// has run out, or under another scope, would stop things for longer than one person may. An empty scope gives the prefix.
func ProvisionalName(person, scope string) string { return provisionalPrefix + person + "\x00" + scope }

const provisionalPrefix = "hold:"

// StoppedSince is since when provisional holds may have kept identities from living on, within the last hour; now if none was set.
// What ended in that time ended by them: who sets a hold, and waits until sessions have run out under it, must not find a scope empty.
func (s *State) StoppedSince(now Millis) Millis {
	since := now
	s.Once.From(provisionalPrefix, func(name string, until Millis) bool {
		if !strings.HasPrefix(name, provisionalPrefix) {
			return false
		}
		if set := until - provisionalMemory; set > now-keepSession {
			since = min(since, set)
		}
		return true
	})
	return since
}

// carryOut ends a change that an entry carries out. Acts may have the same targets: it must be about this one.
func (s *State) carryOut(change uint64, act, target string, m Meta) error {
	c, ok := s.Changes.Get(change)
	if !ok || c.Action != act || c.Target != target || !s.Ripe(c, m.Time) {
		return fmt.Errorf("change %d is not approved, or still waits, or is not about %s of %s", change, act, target)
	}
	s.setChange(c, Done)
	return nil
}

func (e *HoldLifted) apply(s *State, m Meta) error {
	h, ok := s.Holds.Get(e.Scope)
	if !ok || h.Index != e.Hold {
		return fmt.Errorf("there is no such hold on %s", e.Scope)
	}
	if err := s.carryOut(e.Change, policy.ActLiftHold, HoldTarget(e.Scope, e.Hold), m); err != nil {
		return err
	}
	s.Holds.del(e.Scope)
	s.Control = m.Index
	return nil
}

func (e *RequestDenied) apply(s *State, m Meta) error {
	minute := int64(m.Time) / 60_000
	d := &DenialMinute{Minute: minute, Count: 1}
	if old, ok := s.Denials.Get(e.Actor.Identity); !ok {
		s.enqueue(Millis(minute+2)*60_000, qDenial, e.Actor.Identity)
	} else if old.Minute == minute {
		d.Count = old.Count + 1
	}
	s.Denials.set(e.Actor.Identity, d)
	s.countDenied(e, m.Time)
	return nil
}

func (e *DenialsSummed) apply(*State, Meta) error { return nil }

func (e *StateRootSet) apply(s *State, m Meta) error {
	if e.Index >= m.Index {
		return fmt.Errorf("a state root covers what came before it")
	}
	s.Root = StateRoot{Index: e.Index, Root: e.Root}
	return nil
}

func (e *ProtocolRaised) apply(s *State, m Meta) error {
	if e.Version <= s.Protocol {
		return fmt.Errorf("protocol %d is not above %d", e.Version, s.Protocol)
	}
	if err := known(e.Version); err != nil {
		return err
	}
	if s.Protocol < protocolRollout && e.Version >= protocolRollout {
		s.ServesSince = m.Time
	}
	s.Protocol = e.Version
	return nil
}
