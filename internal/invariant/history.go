package invariant

import (
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/state"
)

// maxIdem is how many live idempotency keys an identity may have, a workload on each node.
const maxIdem = 1000

func (c *Checker) once(st *step, fail failure) {
	if st.idem != nil {
		c.onceKey(st, fail)
	}
	switch e := st.event.(type) {
	case *state.SessionOpened:
		if _, used := c.m.spent[e.Challenge]; used && e.Challenge != "" {
			fail("its challenge was used before")
		}
		if t := c.m.tokens[e.Token]; t != nil && t.spentAt != 0 && t.spentBy != e.Key {
			fail("join token %q was used by another key", e.Token)
		}
	case *state.NodeQuarantined:
		if _, used := c.m.spent[e.Challenge]; used && e.Challenge != "" {
			fail("the challenge that its proof answers was used before")
		}
	case *state.EvidenceUsed:
		if u := c.m.uses[e.Use]; u != nil {
			fail("the evidence was used by session %d before", u.session)
		}
	case *state.TokenCreated:
		if c.m.tokens[e.ID] != nil {
			fail("join token %q exists", e.ID)
		}
	case *state.ChangeProposed:
		if _, used := c.m.spent["n:"+e.Nonce]; used || e.Nonce == "" {
			fail("its nonce was used before")
		}
	case *state.ChangeApproved:
		if _, used := c.m.spent["n:"+e.Nonce]; used || e.Nonce == "" {
			fail("its nonce was used before")
		}
	case *state.AccessReviewed:
		if r, ok := readReview(e.Text); !ok || c.m.spent["n:"+r.nonce] != 0 {
			fail("its nonce was used before")
		}
	case *state.GlassReviewed:
		if r, ok := readGlass(e.Text); !ok || c.m.spent["n:"+r.nonce] != 0 {
			fail("its nonce was used before")
		}
	case *state.RecoveryStarted:
		if r, ok := readRecovery(e.Text); !ok || c.m.spent["n:"+r.nonce] != 0 {
			fail("its nonce was used before")
		}
	case *state.SecretWritten:
		if sec := c.m.secrets[e.Secret]; sec != nil && e.Version <= sec.last {
			fail("version %d of %s was written before", e.Version, e.Secret)
		}
	}
}

func (c *Checker) onceKey(st *step, fail failure) {
	k := st.idem
	first := c.m.idem[idemOwner(st.actor)+"\x00"+k.Key]
	if first != nil && st.at >= first.expires {
		first = nil
	}
	switch {
	case first == nil && k.First != 0:
		fail("a redelivery of idempotency key %q, which has no first effect", k.Key)
	case first == nil && c.m.idemCount[idemOwner(st.actor)] >= maxIdem:
		fail("%s has %d live idempotency keys", st.actor.Identity, maxIdem)
	case first == nil:
	case k.First == 0:
		fail("a second effect of idempotency key %q, whose first is entry %d", k.Key, first.index)
	case k.First != first.index || k.Request != first.request || first.kind != st.event.Kind().Type:
		fail("a redelivery of another request than idempotency key %q had in entry %d", k.Key, first.index)
	default:
		e, ok := st.event.(*state.SecretReleased)
		if !ok {
			fail("only releases are redelivered")
		} else if e.Secret != first.secret || e.Version != first.version || e.Lease != first.lease {
			fail("a redelivery of idempotency key %q gives something else than entry %d did", k.Key, first.index)
		}
	}
}

// moves is this package's own table of a version's legal transitions (DESIGN §9).
var moves = []struct{ from, to state.VersionState }{
	{state.Staged, state.Current},
	{state.Staged, state.Retired},
	{state.Staged, state.Compromised},
	{state.Current, state.Retiring},
	{state.Current, state.Retired},
	{state.Current, state.Compromised},
	{state.Retiring, state.Current},
	{state.Retiring, state.Retired},
	{state.Retiring, state.Compromised},
	{state.Retired, state.Destroyed},
	{state.Retired, state.Compromised},
	{state.Compromised, state.Retired},
}

func legal(from, to state.VersionState) bool {
	for _, m := range moves {
		if m.from == from && m.to == to {
			return true
		}
	}
	return false
}

func (c *Checker) lifecycle(st *step, fail failure) {
	c.lifecycleSPIFFE(st, fail)
	c.lifecycleGlass(st, fail)
	c.rolls(st, fail)
	c.recoveries(st, fail)
	c.lifecycleEnd(st, fail)
	c.exported(st, fail)
	switch e := st.event.(type) {
	case *state.SecretWritten:
		c.lifecycleWrite(st, e, fail)
	case *state.SecretMoved:
		c.lifecycleMove(st, e, fail)
	case *state.SecretReleased:
		c.givable(st, e.Secret, e.Version, fail)
	case *state.LeaseRenewed:
		l := c.m.leases[e.Lease]
		if l == nil || st.at >= l.expires || l.identity != st.actor.Identity || l.node != st.actor.Node {
			fail("%s has no active lease %d", st.actor.Identity, e.Lease)
			return
		}
		c.givable(st, l.secret, l.version, fail)
	case *state.LeaseReturned:
		if l := c.m.leases[e.Lease]; l != nil && (l.identity != st.actor.Identity || l.node != st.actor.Node) {
			fail("lease %d is of %s", e.Lease, l.identity)
		}
	case *state.SessionClosed:
		if e.Session != e.Actor.Session {
			fail("session %d is closed in session %d", e.Session, e.Actor.Session)
		}
	case *state.ChangeApproved:
		if ch := c.open(e.Change, fail); ch != nil {
			if ch.base != c.m.bundle {
				fail("change %d was made for another bundle than the one in force", e.Change)
			}
			c.approvable(st, ch, e.Change, fail)
		}
	case *state.ChangeRejected:
		c.open(e.Change, fail)
	case *state.AccessReviewed:
		if r, ok := readReview(e.Text); !ok || r.bundle != c.m.bundle.String() {
			fail("it is about another bundle than the one in force")
		}
	case *state.EvidenceForgotten:
		if ch := c.complete(e.Change, "evidence.forget", fail); ch != nil && ch.target != e.Use {
			fail("change %d is about other evidence", e.Change)
		}
		if c.m.uses[e.Use] == nil {
			fail("the evidence was not used")
		}
	case *state.IdentityDecommissioned:
		c.ended(st, e, fail)
	case *state.SessionOpened:
		if path := c.goneFor(e.Identity, e.Node); path != "" {
			fail("%s was decommissioned by entry %d", path, c.m.gone[path])
		}
	case *state.HoldLifted:
		if ch := c.complete(e.Change, "hold.lift", fail); ch != nil && ch.target != target(e.Scope, e.Hold) {
			fail("change %d is about another hold", e.Change)
		}
		if h, ok := c.m.holds[e.Scope]; !ok || h.index != e.Hold {
			fail("there is no hold on %s by entry %d", e.Scope, e.Hold)
		}
	case *state.RevocationRecorded:
		if !e.Cutoff && !e.Hold {
			fail("it neither cuts off nor holds")
		}
		if e.Change == 0 {
			return
		}
		h, ok := c.m.holds[e.Scope]
		if !ok || (h.until != 0 && st.at >= h.until) {
			fail("there is no hold on %s to confirm", e.Scope)
		}
		if ch := c.complete(e.Change, "revocation.confirm", fail); ch != nil && ch.target != target(e.Scope, h.index) {
			fail("change %d is about another hold", e.Change)
		}
	}
}

// target is what a change about a hold names: which one it is, and not just where.
func target(scope string, hold uint64) string { return fmt.Sprintf("%s#%d", scope, hold) }

// givable checks that a version is in a state in which it is handed out.
func (c *Checker) givable(st *step, path string, n uint64, fail failure) {
	sec := c.m.secrets[path]
	if sec == nil || sec.versions[n] == nil {
		fail("there is no version %d of %s", n, path)
		return
	}
	if s := sec.versions[n].at(st.at); s != state.Current && s != state.Retiring {
		fail("version %d of %s is %s", n, path, s)
	}
}

func (c *Checker) lifecycleWrite(st *step, e *state.SecretWritten, fail failure) {
	if e.State != state.Staged && e.State != state.Current {
		fail("a version does not begin as %s", e.State)
	}
	sec := c.m.secrets[e.Secret]
	if sec == nil {
		if e.Retires != 0 || len(e.Destroys) > 0 {
			fail("a first version of %s replaces others", e.Secret)
		}
		return
	}
	c.lifecycleRetire(st, sec, e.State == state.Current, e.Retires, fail)
	for _, n := range e.Destroys {
		v := sec.versions[n]
		if v == nil || (v.state != state.Destroyed && !legal(v.at(st.at), state.Destroyed)) {
			fail("version %d of %s can't be destroyed", n, e.Secret)
		}
	}
}

// lifecycleRetire checks that a new current version retires the one before, and nothing else does.
func (c *Checker) lifecycleRetire(st *step, sec *secret, promotes bool, retires uint64, fail failure) {
	switch {
	case promotes && sec.current != retires:
		fail("version %d is current, and version %d is retired for the new one", sec.current, retires)
	case !promotes && retires != 0:
		fail("version %d is retired, and nothing takes its place", retires)
	case retires != 0 && (sec.versions[retires] == nil || !legal(sec.versions[retires].at(st.at), state.Retiring)):
		fail("version %d can't be retired", retires)
	}
}

func (c *Checker) lifecycleMove(st *step, e *state.SecretMoved, fail failure) {
	sec := c.m.secrets[e.Secret]
	if sec == nil || sec.versions[e.Version] == nil {
		fail("there is no version %d of %s", e.Version, e.Secret)
		return
	}
	from := sec.versions[e.Version].at(st.at)
	if from != e.From {
		fail("version %d of %s is %s, not %s", e.Version, e.Secret, from, e.From)
	}
	if !legal(from, e.To) {
		fail("a version that is %s can't become %s", from, e.To)
	}
	c.lifecycleRetire(st, sec, e.To == state.Current, e.Retires, fail)
	if e.Change == 0 {
		return
	}
	if ch := c.complete(e.Change, policy.ActDestroy, fail); ch != nil && (ch.target != target(e.Secret, e.Version) || e.To != state.Destroyed) {
		fail("change %d is not about version %d of %s", e.Change, e.Version, e.Secret)
	}
}

// open checks that a change is open.
func (c *Checker) open(index uint64, fail failure) *change {
	ch := c.m.changes[index]
	switch {
	case ch == nil:
		fail("there is no open change %d", index)
	case ch.over != "":
		fail("change %d is %s", index, ch.over)
	} // one that expired is forgotten at once
	return ch
}

// complete checks that a change is open, about the action, and made for the bundle in force.
func (c *Checker) complete(index uint64, action string, fail failure) *change {
	ch := c.open(index, fail)
	if ch == nil {
		return nil
	}
	if ch.action != action {
		fail("change %d is a %s", index, ch.action)
	}
	if ch.base != c.m.bundle {
		fail("change %d was made for another bundle than the one in force", index)
	}
	return ch
}

func (c *Checker) separated(st *step, fail failure) {
	c.separatedGlass(st, fail)
	c.separatedFinal(st, fail)
	switch e := st.event.(type) {
	case *state.Genesis:
		if len(e.Signatures) == 0 {
			fail("nobody signed it")
		}
	case *state.ChangeProposed:
		if "/human/"+e.Signature.Person != e.Actor.Identity || (e.Bundle != nil && e.Bundle.Person != e.Signature.Person) {
			fail("%s proposes what %s signed", e.Actor.Identity, e.Signature.Person)
		}
		if (e.Action == "bundle") != (e.Bundle != nil) {
			fail("a bundle is signed by its proposer, and nothing else is")
		}
		c.separatedQuorum(st, e, fail)
		c.waits(st, e, fail)
	case *state.AccessReviewed:
		if r, _ := readReview(e.Text); "/human/"+e.Signature.Person != e.Actor.Identity || r.person != e.Signature.Person {
			fail("%s decides what %s signed", e.Actor.Identity, e.Signature.Person)
		}
	case *state.ChangeApproved:
		ch := c.m.changes[e.Change]
		if "/human/"+e.Signature.Person != e.Actor.Identity {
			fail("%s approves what %s signed", e.Actor.Identity, e.Signature.Person)
		}
		if ch == nil {
			return
		}
		if ch.proposer == e.Actor.Identity && (!ch.selfOK || c.m.class != string(policy.Development)) {
			fail("%s approves his own change %d", e.Actor.Identity, e.Change)
		}
		if st.prog != nil && st.prog.Environment().Needs(ch.action).Hardware {
			op, _ := st.prog.Operator(e.Signature.Person)
			if !slices.ContainsFunc(op.Keys, func(k policy.OperatorKey) bool { return k.Fingerprint == e.Signature.Key && k.Hardware() }) {
				fail("%s approves change %d by the key %s, which is not hardware-backed", e.Signature.Person, e.Change, e.Signature.Key)
			}
		}
		before, again := ch.approvers[e.Signature.Person]
		if again && c.over(st, e.Actor.Identity, before) == "" && c.counted(st, ch) < ch.required {
			fail("%s approves change %d again", e.Signature.Person, e.Change)
		}
	case *state.BundleInForce:
		if e.How != state.ByRecovery {
			c.enough(e.Change, fail)
		}
	case *state.RecoveryStarted:
		recoverySigned(st, e.Signatures, fail)
	case *state.RecoveryWithdrawn:
		c.separatedRecovery(st, e, fail)
	case *state.RolloutMoved:
		c.enough(e.Change, fail)
	case *state.SecretMoved:
		if e.Change != 0 {
			c.enough(e.Change, fail)
			c.waited(st, e.Change, fail)
		} else if e.To == state.Destroyed && c.m.protocol >= 3 && st.prog != nil && st.prog.Environment().Takes(policy.ActDestroy) {
			fail("version %d of %s is destroyed without the approvals that it takes", e.Version, e.Secret)
		}
	case *state.HoldLifted:
		c.enough(e.Change, fail)
	case *state.EvidenceForgotten:
		c.enough(e.Change, fail)
	case *state.RevocationRecorded:
		if e.Change != 0 {
			c.enough(e.Change, fail)
		}
		if e.Hold {
			c.lastQuorum(st, e, fail)
		}
	}
}

// separatedFinal checks that what can't be undone had its approvals, and waited; a destroyed version is with the other moves.
func (c *Checker) separatedFinal(st *step, fail failure) {
	var change uint64
	switch e := st.event.(type) {
	case *state.IdentityDecommissioned:
		change = e.Change
	case *state.EnvironmentEnded:
		change = e.Change
	case *state.CustodyMoved:
		change = e.Change
	case *state.SecretExported:
		change = e.Change
	default:
		return
	}
	c.enough(change, fail)
	c.waited(st, change, fail)
}

// lastQuorum checks that a hold on persons leaves some by whom it could be lifted again: one who proposes, and as many others who
// approve as the bundle asks for. While a recovery is under way, the same of those whom it makes operators, when it is carried out.
func (c *Checker) lastQuorum(st *step, e *state.RevocationRecorded, fail failure) {
	if st.prog == nil {
		return
	}
	c.quorumLeft(st, e, st.prog, fail)
	if r := c.m.recovery; r != nil && c.opts.Program != nil {
		d, err := state.ParseDigest(r.manifest)
		if after := c.opts.Program(d); err == nil && after != nil {
			then := *st
			then.at = max(st.at, r.until)
			c.quorumLeft(&then, e, after, fail)
		}
	}
}

func (c *Checker) quorumLeft(st *step, e *state.RevocationRecorded, prog *policy.Program, fail failure) {
	stops, touched := readScope(e.Scope), false
	free := func(op policy.Operator) bool {
		for _, k := range op.Keys {
			x := subject{identity: "/human/" + op.Name, anchor: "ssh:" + k.Fingerprint, own: st.index, root: st.index}
			if stops.stops(x) {
				touched = true
			} else if by, _ := c.holder(st, x); by == "" {
				return true
			}
		}
		return false
	}
	var can []policy.Operator
	for _, op := range prog.Operators() {
		if free(op) {
			can = append(can, op)
		}
	}
	if !touched || e.Until != 0 && e.Until <= st.at {
		return
	}
	left := func(op policy.Operator) bool {
		return slices.ContainsFunc(can, func(o policy.Operator) bool { return o.Name == op.Name })
	}
	if policy.Quorum(prog, policy.ActBundle, left) && policy.Quorum(prog, policy.ActLiftHold, left) {
		return
	}
	fail("it holds %s, and the %d operators who are left can change nothing", e.Scope, len(can))
}

// separatedQuorum checks that a change asks for what the bundle in force asks for.
func (c *Checker) separatedQuorum(st *step, e *state.ChangeProposed, fail failure) {
	if e.Required < 1 {
		fail("it needs no approval")
	}
	if e.SelfOK && c.m.class != string(policy.Development) {
		fail("its proposer may approve it")
	}
	if st.prog == nil {
		return
	}
	if need := st.prog.Environment().Needs(e.Action); e.Required < need.Approvals || e.SelfOK && !need.Self {
		fail("it needs %d approvals (by the proposer: %t), the bundle in force asks for %d by others", e.Required, e.SelfOK, need.Approvals)
	}
}

// enough checks that a change has its approvals, counted by persons.
func (c *Checker) enough(index uint64, fail failure) {
	ch := c.m.changes[index]
	if ch == nil {
		fail("nobody approved change %d", index)
		return
	}
	others := 0
	for person := range ch.approvers {
		if ch.selfOK || "/human/"+person != ch.proposer {
			others++
		}
	}
	if others < ch.required || others == 0 {
		fail("change %d has the approval of %d persons, and needs %d", index, others, ch.required)
	}
}

// nextGeneration checks that who governs changes with a generation, and a generation with who governs.
func (c *Checker) nextGeneration(g uint64, changes bool, fail failure) {
	switch {
	case changes && g != c.m.generation+1:
		fail("generation %d follows %d", g, c.m.generation)
	case !changes && g != 0:
		fail("it begins generation %d, and nobody is governed by anything else", g)
	}
}

func (c *Checker) monotonic(st *step, fail failure) {
	c.monotonicSPIFFE(st, fail)
	if st.index != c.m.next {
		fail("entry %d follows entry %d", st.index, int64(c.m.next)-1)
	}
	if st.at < c.m.time {
		fail("its time %s is before %s", st.at, c.m.time)
	}
	if _, genesis := st.event.(*state.Genesis); genesis != (c.m.next == 0) {
		fail("genesis is the first entry, and nothing else is")
	}
	switch e := st.event.(type) {
	case *state.BundleInForce:
		if e.Generation != c.m.generation+1 {
			fail("generation %d follows %d", e.Generation, c.m.generation)
		}
		if e.Previous != c.m.bundle || e.Manifest == c.m.bundle {
			fail("it replaces %s by %s, and %s is in force", e.Previous, e.Manifest, c.m.bundle)
		}
		c.monotonicAgents(st, e, fail)
	case *state.RolloutMoved:
		canary := e.Plan == nil && c.m.staged() != nil && e.Step < len(c.m.way.plan.Steps) && c.m.way.plan.Steps[e.Step].Stage == policy.StageCanary ||
			e.Plan != nil && len(e.Plan.Steps) > 0 && e.Plan.Steps[0].Stage == policy.StageCanary
		c.nextGeneration(e.Generation, canary, fail)
	case *state.RolloutEnded:
		r := c.m.staged()
		c.nextGeneration(e.Generation, r != nil && r.canary, fail)
	case *state.SecretWritten:
		last := uint64(0)
		if sec := c.m.secrets[e.Secret]; sec != nil {
			last = sec.last
		}
		if e.Version != last+1 {
			fail("version %d of %s follows %d", e.Version, e.Secret, last)
		}
	case *state.SessionOpened:
		c.monotonicCounter(e, fail)
	case *state.KeyAdded:
		kind, n, ok := keyNumber(e.Key.Name)
		if !ok || n != c.m.envKeys[kind]+1 {
			fail("key %.80q follows number %d", e.Key.Name, c.m.envKeys[kind])
		}
		if err := c.vouched(kind, &e.Key); err != nil {
			fail("key %s is not vouched for by the one before it: %v", e.Key.Name, err)
		}
	case *state.StateRootSet:
		if e.Index >= st.index || (len(c.m.roots) > 0 && e.Index <= c.m.roots[len(c.m.roots)-1].Index) {
			fail("a state root up to entry %d", e.Index)
		}
	case *state.ProtocolRaised:
		if e.Version <= c.m.protocol {
			fail("protocol %d follows %d", e.Version, c.m.protocol)
		}
	}
}

// vouched checks that the newest CA and the newest checkpoint key signed for the one that follows: who trusts one comes to the next.
func (c *Checker) vouched(kind string, k *state.KeyFacts) error {
	before := c.m.vouching[kind]
	switch kind {
	case "ca":
		parent, err := x509.ParseCertificate(before.Cert)
		if err != nil {
			return err
		}
		cross, err := x509.ParseCertificate(k.Cross)
		if err != nil {
			return err
		}
		return cross.CheckSignatureFrom(parent)
	case "checkpoint":
		text := fmt.Sprintf("bailment checkpoint key v1\nenvironment %s\ngenesis %x\nepoch 0\nname %s\npublic %x\n", c.m.name, c.m.genesis[:], k.Name, k.Public)
		if len(before.Public) != ed25519.PublicKeySize || !ed25519.Verify(before.Public, []byte(text), k.Cross) {
			return errors.New("its signature is not there")
		}
	}
	return nil
}

// monotonicAgents checks that what is asked of agents is lowered by a rollback only that is named anew.
func (c *Checker) monotonicAgents(st *step, e *state.BundleInForce, fail failure) {
	if st.prog == nil || c.opts.Program == nil {
		return
	}
	next := c.opts.Program(e.Manifest)
	if next == nil {
		return // "permitted" says so
	}
	was, is := st.prog.Environment().Agents, next.Environment().Agents
	rank := map[release.Level]int{release.LevelAny: 0, release.LevelSigned: 1, release.LevelMeasured: 2}
	lower := is.Minimum.Compare(was.Minimum) < 0 || rank[is.Require] < rank[was.Require]
	if lower && (is.Rollback == "" || is.Rollback == was.Rollback) {
		fail("it asks less of agents than %s did, and names no rollback", c.m.bundle)
	}
}

// monotonicCounter checks the generation counter of renewals.
func (c *Checker) monotonicCounter(e *state.SessionOpened, fail failure) {
	enrolled := c.m.enrolments[e.Identity]
	want := uint64(0)
	switch {
	case strings.HasPrefix(e.Identity, "/ci/") && e.Via == viaRenew:
		return // many jobs are one identity: attestedJob compares with the session
	case strings.HasPrefix(e.Identity, "/ci/"):
	case e.Via != viaRenew && e.Via != viaAttest:
	case enrolled == nil:
	case e.Redelivery:
		want = enrolled.counter
	case e.Via == viaRenew:
		want = enrolled.counter + 1
	}
	if e.Counter != want {
		fail("renewal counter %d of %s, not %d", e.Counter, e.Identity, want)
	}
}
