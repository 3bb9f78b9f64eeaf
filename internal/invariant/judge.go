package invariant

import (
	"fmt"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// How sessions are opened: the values of state.SessionOpened.Via.
const (
	viaAttest   = "attest"
	viaRenew    = "renew"
	viaWorkload = "workload"
	viaLogin    = "login"
	viaServer   = "server"
)

// evaluator is the version of the evaluation that this checker repeats.
const evaluator = 1

// judge decides again what the entry needed: its grant, or the rule that gave its identity.
func (c *Checker) judge(st *step) {
	if st.prog == nil {
		return
	}
	if e, ok := st.event.(*state.SessionOpened); ok {
		m, err := identify(st.prog, e)
		st.match, st.matchErr = &m, err
		return
	}
	if st.action == "" {
		return
	}
	x := c.m.sessions[st.actor.Session]
	if x == nil {
		return // "attested" says so
	}
	in, err := c.input(st, x, st.action, st.secret, st.purpose)
	if err != nil {
		return
	}
	d := st.prog.Decide(in)
	st.decision = &d
}

// input is the question that the entry's actor asked.
func (c *Checker) input(st *step, x *session, action policy.Action, secret, purpose string) (*policy.Input, error) {
	in := &policy.Input{Action: action, Identity: st.actor.Identity, Node: st.actor.Node, Secret: secret, Purpose: purpose, Time: st.at.Time()}
	var err error
	if in.Assurance, err = identity.ParseAssurance(x.assurance); err != nil {
		return nil, err
	}
	if in.Claims, err = x.proved(); err != nil {
		return nil, err
	}
	// Both identities of a workload are in its decision: the node by its newest proof.
	if node := c.m.enrolments[st.actor.Node]; node != nil {
		if in.NodeClaims, err = node.proof.proved(); err != nil {
			return nil, err
		}
	}
	in.Opened = c.m.openedBy(st.actor.Identity, st.at)
	return in, nil
}

// identify derives a session's identity again by the bundle's rules.
func identify(prog *policy.Program, e *state.SessionOpened) (policy.Match, error) {
	if e.Via == viaLogin || e.Via == viaServer {
		return policy.Match{Path: e.Identity, Rule: e.Rule, Session: prog.Environment().Sessions.Operator}, nil
	}
	claims, err := policy.PrepareClaims(e.Claims)
	if err != nil {
		return policy.Match{}, err
	}
	if e.Via == viaWorkload {
		m, err := prog.IdentifyWorkload(e.Node, claims, e.Identity)
		if err != nil {
			m, err = prog.IdentifyWorkload(e.Node, claims, "")
		}
		return m, err
	}
	return identifyNode(prog, e.Anchor, claims)
}

func identifyNode(prog *policy.Program, anchor string, claims policy.Claims) (policy.Match, error) {
	method, authority := anchored(anchor)
	return prog.IdentifyNode(method, authority, claims)
}

// gone says why the rules in force do not give a session's identity any more, or that of the node that speaks for it; nothing
// if they do. A bundle may have come into force since both were proved.
func (c *Checker) gone(prog *policy.Program, x *session) string {
	proof := x
	if x.node != "" {
		n := c.m.enrolments[x.node]
		if n == nil {
			return "nothing is known of " + x.node
		}
		proof = n.proof
	} else if !strings.HasPrefix(x.identity, "/node/") && !strings.HasPrefix(x.identity, "/ci/") {
		return ""
	}
	if of := (askedOf{c.m.generation, proof.index, prog}); x.asked != of {
		x.asked, x.gone = of, ask(prog, x, proof)
	}
	return x.gone
}

func ask(prog *policy.Program, x, proof *session) string {
	claims, err := proof.proved()
	if err != nil {
		return err.Error()
	}
	m, err := identifyNode(prog, proof.anchor, claims)
	if err != nil {
		return err.Error()
	}
	if m.Path != proof.identity {
		return "what " + proof.identity + " proved is " + m.Path
	}
	if x.node == "" {
		return ""
	}
	if claims, err = x.proved(); err != nil {
		return err.Error()
	}
	if _, err = prog.IdentifyWorkload(x.node, claims, x.identity); err != nil {
		return err.Error()
	}
	return ""
}

// operator finds the person that a session's identity and key are, in the bundle in force.
func operator(prog *policy.Program, path, anchor string) (policy.Operator, string) {
	name, human := strings.CutPrefix(path, "/human/")
	if !human {
		return policy.Operator{}, path + " is not a person"
	}
	op, ok := prog.Operator(name)
	if !ok {
		return op, name + " is not an operator of the bundle in force"
	}
	for _, k := range op.Keys {
		if "ssh:"+k.Fingerprint == anchor {
			return op, ""
		}
	}
	return op, "the key " + anchor + " is not listed for " + name
}

// live says what is wrong with acting in a session, or nothing.
func (c *Checker) live(st *step, a *state.Actor) (*session, string) {
	x := c.m.sessions[a.Session]
	switch {
	case x == nil:
		return nil, "there is no such session, or it was over long before"
	case x.identity != a.Identity || x.node != a.Node:
		return x, "the session is of " + x.identity
	case x.closed:
		return x, "the session was given back"
	case st.at >= x.expires:
		return x, "the session expired at " + x.expires.String()
	}
	return x, ""
}

func (c *Checker) attested(st *step, fail failure) {
	c.attestedSPIFFE(st, fail)
	c.attestedOnce(st, fail)
	var x *session
	if st.actor != nil {
		var why string
		if x, why = c.live(st, st.actor); why != "" {
			fail("%s in session %d: %s", st.actor.Identity, st.actor.Session, why)
		}
	}
	switch e := st.event.(type) {
	case *state.SecretReleased:
		if x == nil {
			return
		}
		if e.Assurance != x.assurance {
			fail("it says assurance %q, the session proved %q", e.Assurance, x.assurance)
		}
		if e.Root != x.root {
			fail("it derives from entry %d, the session from %d", e.Root, x.root)
		}
		if e.Lease == 0 && e.Anchor != x.anchor {
			fail("its lease is vouched for by %q, the session by %q", e.Anchor, x.anchor)
		}
	case *state.SessionOpened:
		c.attestedSession(st, e, fail)
	case *state.EvidenceUsed:
		c.attestedUse(st, e, fail)
	case *state.NodeQuarantined:
		c.attestedQuarantine(st, e, fail)
		c.attestedMachine(e, fail)
	case *state.TokenCreated:
		if x != nil && e.Anchor != x.anchor {
			fail("it says that %q vouched for its maker, the session %q", e.Anchor, x.anchor)
		}
	}
	if d := st.decision; d != nil && !d.Allow && d.Reason == "assurance-too-low" {
		fail("%s", d.Message)
	}
}

// attestedSession checks what a session derives from.
func (c *Checker) attestedSession(st *step, e *state.SessionOpened, fail failure) {
	if _, err := identity.ParseAssurance(e.Assurance); err != nil {
		fail("%v", err)
	}
	if o := c.m.keyOwners[e.Key]; o != nil && o.identity != e.Identity {
		fail("its key was used by %s", o.identity)
	}
	enrolled := c.m.enrolments[e.Identity]
	if method, _, _ := strings.Cut(e.Anchor, ":"); (e.Via == viaAttest || e.Via == viaRenew) && method != e.Method {
		fail("it was proved by %s, and vouched for by %q", e.Method, e.Anchor)
	}
	switch e.Via {
	case viaWorkload:
		n := c.m.sessions[e.NodeSession]
		if n == nil || n.identity != e.Node || n.closed || st.at >= n.expires || !strings.HasPrefix(e.Node, "/node/") {
			fail("node %q does not speak in a live session %d of its own", e.Node, e.NodeSession)
			return
		}
		if e.Assurance != n.assurance || e.Anchor != n.anchor || e.Root != n.root {
			fail("it does not carry what its node's session %d carries", e.NodeSession)
		}
	case viaRenew:
		if strings.HasPrefix(e.Identity, "/ci/") {
			c.attestedJob(st, e, fail)
			break
		}
		c.attestedRenewal(st, e, enrolled, fail)
	case viaAttest:
		c.attestedToken(st, e, enrolled, fail)
	case viaLogin:
		if st.prog != nil {
			if _, why := operator(st.prog, e.Identity, e.Anchor); why != "" {
				fail("%s", why)
			}
		}
	case viaServer:
		if !strings.HasPrefix(e.Identity, "/server/") {
			fail("%s is not a server", e.Identity)
		}
	default:
		fail("a session can't come about by %q", e.Via)
	}
}

// attestedRenewal checks that a renewal continues the newest generation of its enrolment.
func (c *Checker) attestedRenewal(st *step, e *state.SessionOpened, enrolled *enrolment, fail failure) {
	if enrolled == nil {
		fail("%s has no enrolment to renew", e.Identity)
		return
	}
	from := c.m.sessions[e.From]
	// Of several replies to one request each may have been the one that arrived.
	twin := from != nil && from.identity == e.Identity && from.root == enrolled.root && from.counter == enrolled.counter && from.key == enrolled.key
	switch {
	case e.Root != enrolled.root || e.Method != enrolled.method || e.Anchor != enrolled.anchor || e.Assurance != enrolled.assurance:
		fail("it does not carry what the enrolment of %s carries", e.Identity)
	case e.Lifetime > enrolled.lifetime || (e.Lifetime == 0) != (enrolled.lifetime == 0):
		fail("it prolongs the enrolment of %s from %s to %s", e.Identity, enrolled.lifetime, e.Lifetime)
	case e.Lifetime != 0 && st.at >= e.Lifetime:
		fail("the enrolment of %s ended at %s", e.Identity, e.Lifetime)
	case e.Redelivery && e.Key != enrolled.key:
		fail("a redelivery is for the same key")
	case e.Redelivery && e.From != enrolled.prior, !e.Redelivery && e.From != enrolled.session && !twin:
		fail("session %d asked for it, and %d is the newest of %s", e.From, enrolled.session, e.Identity)
	case enrolled.closed || (from != nil && from.closed):
		fail("the enrolment of %s was given back", e.Identity)
	}
}

// attestedToken checks the use of a join token: once, and once more for a lost reply as long as nothing came after it.
func (c *Checker) attestedToken(st *step, e *state.SessionOpened, enrolled *enrolment, fail failure) {
	switch t := c.m.tokens[e.Token]; {
	case e.Token == "" && e.Root != 0:
		c.attestedAgain(e, enrolled, fail)
	case e.Token == "":
	case t == nil || st.at >= t.expires:
		fail("join token %q is unknown or expired", e.Token)
	case t.spentAt == 0 && e.Root != 0:
		fail("a first use of a token derives from nothing older")
	case t.spentAt == 0:
	case t.spentBy != e.Key || e.Root != t.spentAt || !e.Redelivery:
		fail("join token %q was spent by entry %d", e.Token, t.spentAt)
	case enrolled == nil || enrolled.root != t.spentAt:
		fail("the enrolment of join token %q was replaced by a newer one", e.Token)
	case enrolled.counter != 0 || enrolled.key != e.Key:
		fail("join token %q gives generation 0, and %s is at %d", e.Token, e.Identity, enrolled.counter)
	case e.Lifetime > enrolled.lifetime:
		fail("it prolongs the enrolment of %s from %s to %s", e.Identity, enrolled.lifetime, e.Lifetime)
	case enrolled.closed:
		fail("the enrolment of %s was given back", e.Identity)
	}
}

func (c *Checker) permitted(st *step, fail failure) {
	c.permittedSPIFFE(st, fail)
	c.permittedGlass(st, fail)
	c.permittedExport(st, fail)
	if r := st.ruling; r != nil {
		if r.Generation != c.m.generation || r.Bundle != st.bundle || r.Cohort != st.cohort {
			fail("it was ruled by generation %d (%s), and generation %d (%s) governs it", r.Generation, r.Bundle, c.m.generation, st.bundle)
		}
		if r.Evaluator != evaluator {
			fail("evaluator %d is not known", r.Evaluator)
		}
	}
	if st.action != "" && st.prog != nil && !st.refused {
		switch d := st.decision; {
		case d == nil:
			fail("it can't be decided again")
		case !d.Allow && d.Reason == "assurance-too-low": // said by "attested"
		case !d.Allow:
			fail("decided again it is refused: %s", d.Message)
		case d.Grant != st.ruling.Grant:
			fail("it names the grant %q, decided again it is %q", st.ruling.Grant, d.Grant)
		}
	}
	if st.action != "" && st.prog != nil && !st.refused {
		if x := c.m.sessions[st.actor.Session]; x != nil {
			if why := c.gone(st.prog, x); why != "" {
				fail("by the bundle in force %s is not who it was: %s", x.identity, why)
			}
		}
	}
	if e, ok := st.event.(*state.SessionOpened); ok && st.match != nil {
		if n := c.m.sessions[e.NodeSession]; e.Via == viaWorkload && n != nil {
			if why := c.gone(st.prog, n); why != "" {
				fail("by the bundle in force %s is not who it was: %s", n.identity, why)
			}
		}
		switch {
		case st.matchErr != nil:
			fail("by the bundle in force these claims are nobody: %v", st.matchErr)
		case st.match.Path != e.Identity || st.match.Rule != e.Rule:
			fail("by the bundle in force these claims are %s (%s), not %s (%s)", st.match.Path, st.match.Rule, e.Identity, e.Rule)
		}
	}
	if st.duty != "" && st.prog != nil {
		anchor := ""
		if x := c.m.sessions[st.actor.Session]; x != nil {
			anchor = x.anchor
		}
		if op, why := operator(st.prog, st.actor.Identity, anchor); why != "" {
			fail("%s", why)
		} else if !op.Has(st.duty) {
			fail("%s does not have the duty %s", op.Name, st.duty)
		}
	}
}

func (c *Checker) recorded(st *step, fail failure) {
	c.recordedGlass(st, fail)
	c.recordedExport(st, fail)
	e, ok := st.event.(*state.SecretReleased)
	if !ok {
		return
	}
	sec := c.m.secrets[e.Secret]
	if sec == nil || sec.versions[e.Version] == nil {
		fail("version %d of %s was never written, or was destroyed", e.Version, e.Secret)
	} else if v := sec.versions[e.Version]; v.digest != e.Digest {
		fail("it names the ciphertext %s, version %d of %s is %s", e.Digest, e.Version, e.Secret, v.digest)
	}
}

func (c *Checker) revoked(st *step, fail failure) {
	if st.actor != nil && !st.giving {
		if x := c.m.sessions[st.actor.Session]; x != nil {
			s := x.subject()
			c.covered(st, s, "its session", fail)
			s.secret = st.secret
			c.held(st, s, "its session", fail)
		}
	}
	switch e := st.event.(type) {
	case *state.SecretReleased:
		c.coveredLease(st, e.Lease, fail)
	case *state.LeaseRenewed:
		c.coveredLease(st, e.Lease, fail)
	case *state.SessionOpened:
		root := e.Root
		if root == 0 {
			root = st.index
		}
		x := &session{identity: e.Identity, node: e.Node, anchor: e.Anchor, index: st.index, root: root}
		c.covered(st, x.subject(), "the session", fail)
		c.held(st, x.subject(), "the session", fail)
		if t := c.m.tokens[e.Token]; t != nil {
			c.covered(st, t.maker(), "the join token", fail)
			c.held(st, t.maker(), "the join token", fail)
			if t.spentAt == 0 {
				c.covered(st, subject{identity: e.Identity, node: e.Identity, anchor: e.Anchor, own: t.created, root: t.created}, "the join token", fail)
			}
		}
	case *state.RevocationRecorded:
		if meansFork(e) && (!e.Cutoff || e.Until != 0) {
			fail("%s has two holders, and is not cut off", e.Actor.Identity)
		}
		c.horizon(st, e, fail)
		if e.Change != 0 {
			c.revokedChange(st, e.Change, fail)
		}
	case *state.ChangeProposed:
		c.revokedSigning(st, e.Actor.Identity, c.m.signing(st.index, &e.Actor, &e.Signature, e.Bundle), fail)
	case *state.ChangeApproved:
		c.revokedSigning(st, e.Actor.Identity, c.m.signing(st.index, &e.Actor, &e.Signature), fail)
		if ch := c.m.changes[e.Change]; ch != nil {
			c.revokedSigning(st, ch.proposer, ch.proposal, fail)
		}
	case *state.GlassReviewed:
		c.revokedSigning(st, e.Actor.Identity, c.m.signing(st.index, &e.Actor, &e.Signature), fail)
	case *state.GlassOpened:
		if e.Change != 0 {
			c.revokedChange(st, e.Change, fail)
		}
	case *state.AccessReviewed:
		c.revokedSigning(st, e.Actor.Identity, c.m.signing(st.index, &e.Actor, &e.Signature), fail)
	case *state.BundleInForce:
		if e.How != state.ByRollback && e.How != state.ByRecovery { // the first undoes what they approved, and was approved with it; the other is nobody's change
			c.revokedChange(st, e.Change, fail)
		}
	case *state.RolloutMoved:
		c.revokedChange(st, e.Change, fail)
	case *state.SecretMoved:
		if e.Change != 0 {
			c.revokedChange(st, e.Change, fail)
		}
	case *state.HoldLifted:
		c.revokedChange(st, e.Change, fail)
	case *state.EvidenceForgotten:
		c.revokedChange(st, e.Change, fail)
	case *state.IdentityDecommissioned:
		c.revokedChange(st, e.Change, fail)
	case *state.EnvironmentEnded:
		c.revokedChange(st, e.Change, fail)
	case *state.CustodyMoved:
		c.revokedChange(st, e.Change, fail)
	case *state.SecretExported:
		c.revokedExport(st, e, fail)
	}
}

// over says why what a person signed does not count any more, or nothing: it derives from him and from each key behind it.
func (c *Checker) over(st *step, person string, s signing) string {
	for _, anchor := range append([]string{""}, s.anchors...) {
		x := subject{identity: person, anchor: anchor, own: s.index, root: s.index}
		for _, k := range c.m.cuts {
			if k.index > s.index && k.scope.kills(x, k.index) {
				return fmt.Sprintf("cut off by entry %d (%s)", k.index, k.text)
			}
		}
		if by, h := c.holder(st, x); by != "" {
			return fmt.Sprintf("held by entry %d (%s)", h.index, by)
		}
	}
	return ""
}

func (c *Checker) revokedSigning(st *step, person string, s signing, fail failure) {
	if why := c.over(st, person, s); why != "" {
		fail("what %s signed in entry %d is %s", person, s.index, why)
	}
}

// counted is how many approvals of a change count.
func (c *Checker) counted(st *step, ch *change) int {
	n := 0
	for person, s := range ch.approvers {
		if c.over(st, "/human/"+person, s) == "" {
			n++
		}
	}
	return n
}

// revokedChange checks that a change is carried out by approvals that count, of a proposal that does.
func (c *Checker) revokedChange(st *step, index uint64, fail failure) {
	ch := c.m.changes[index]
	if ch == nil {
		return // "separated" says so
	}
	c.revokedSigning(st, ch.proposer, ch.proposal, fail)
	if n := c.counted(st, ch); n < ch.required && len(ch.approvers) >= ch.required {
		fail("of %d approvals of change %d only %d count: the others are revoked", len(ch.approvers), index, n)
	}
}

func (c *Checker) coveredLease(st *step, id uint64, fail failure) {
	if l := c.m.leases[id]; id != 0 && l != nil {
		c.covered(st, l.subject(id), "the lease", fail)
	}
}

// covered looks for a cutoff after the subject's birth, from the newest down.
func (c *Checker) covered(_ *step, x subject, what string, fail failure) {
	for i := len(c.m.cuts) - 1; i >= 0 && c.m.cuts[i].index > min(x.own, x.root); i-- {
		if k := c.m.cuts[i]; k.scope.kills(x, k.index) {
			fail("%s of %s is cut off by entry %d (%s)", what, x.identity, k.index, k.text)
			return
		}
	}
}

func (c *Checker) held(st *step, x subject, what string, fail failure) {
	if by, h := c.holder(st, x); by != "" {
		fail("%s of %s is held by entry %d (%s)", what, x.identity, h.index, by)
	}
}

// holder is the oldest hold over the subject, if there is one.
func (c *Checker) holder(st *step, x subject) (string, hold) {
	oldest, by := hold{}, ""
	for text, h := range c.m.holds {
		if (h.until == 0 || st.at < h.until) && h.scope.stops(x) && (by == "" || h.index < oldest.index) {
			oldest, by = h, text
		}
	}
	return by, oldest
}

// horizon checks the promise of an acknowledgement against all that it covers.
func (c *Checker) horizon(st *step, e *state.RevocationRecorded, fail failure) {
	if !e.Cutoff {
		return
	}
	s := readScope(e.Scope)
	latest, id := e.Horizon, uint64(0)
	outlives := func(x subject, expires state.Millis, index uint64) {
		if expires > latest && expires > st.at && s.kills(x, st.index) && !c.dead(x) {
			latest, id = expires, index
		}
	}
	for index, l := range c.m.leases {
		outlives(l.subject(index), l.expires, index)
	}
	for index, x := range c.m.sessions {
		if !x.closed {
			outlives(x.subject(), x.expires, index)
		}
		outlives(x.subject(), x.tokens, index) // giving a session back ends none of its tokens
	}
	if id != 0 {
		fail("something of entry %d lives until %s, after the horizon %s", id, latest, e.Horizon)
	}
}

func (c *Checker) dead(x subject) bool {
	for _, k := range c.m.cuts {
		if k.scope.kills(x, k.index) {
			return true
		}
	}
	return false
}

// The bounds that no bundle sets (DESIGN §4, §10; issue of the first release).
const (
	maxProvisional = 15 * minute
	maxToken       = 7 * day
	maxChange      = 14 * day
	maxWhole       = 60
	maxStops       = 4 // provisional holds of one person in a day, no two of one scope
	maxOpen        = 64
	maxOpenEach    = 8 // open changes of one proposer, of bundles or not
	maxDailyEach   = 200
)

func (c *Checker) bounded(st *step, fail failure) {
	c.boundedSPIFFE(st, fail)
	c.boundedGlass(st, fail)
	switch e := st.event.(type) {
	case *state.SecretReleased:
		c.boundedRelease(st, e, fail)
	case *state.LeaseRenewed:
		l := c.m.leases[e.Lease]
		if l == nil {
			return // "lifecycle" says so
		}
		c.boundedJob(st, e.Lease, l.expires, e.Expires, fail)
		if e.Expires > l.max || e.Expires < l.expires {
			fail("lease %d, which ends between %s and %s, is renewed until %s", e.Lease, l.expires, l.max, e.Expires)
		}
		if most, known := c.longest(st, l.secret); known && e.Expires > l.expires && e.Expires > l.created.Add(most) {
			fail("lease %d of %s is renewed until %s, beyond %s", e.Lease, l.created, e.Expires, most)
		}
	case *state.SessionOpened:
		c.boundedSession(st, e, fail)
	case *state.RevocationRecorded:
		c.boundedRevocation(st, e, fail)
	case *state.TokenCreated:
		if e.Expires <= st.at || e.Expires > st.at+maxToken {
			fail("join token %s lives until %s", e.ID, e.Expires)
		}
	case *state.ChangeProposed:
		c.boundedProposal(st, e, fail)
	case *state.AccessReviewed:
		boundedReview(st, e, fail)
	case *state.RecoveryStarted:
		boundedRecovery(st, e, fail)
	case *state.RequestDenied:
		if d := c.m.denials[e.Actor.Identity]; d != nil && d.minute == int64(st.at/minute) && d.count >= maxWhole && !c.m.tells(st.at, e) {
			fail("more than %d denials of %s in one minute", maxWhole, e.Actor.Identity)
		}
	}
}

// longest is how long a lease may live by the grant that was decided again, the secret and the environment.
func (c *Checker) longest(st *step, path string) (time.Duration, bool) {
	if st.prog == nil || st.decision == nil {
		return 0, false
	}
	most := st.prog.Environment().Leases.Max
	if sec, ok := st.prog.Secret(path); ok && sec.Lease.Max > 0 {
		most = min(most, sec.Lease.Max)
	}
	if st.decision.TTL > 0 {
		most = min(most, st.decision.TTL)
	}
	return most, true
}

func (c *Checker) boundedRelease(st *step, e *state.SecretReleased, fail failure) {
	if e.Expires <= st.at {
		fail("its lease is over at %s already", e.Expires)
	}
	if e.Lease == 0 {
		c.boundedJob(st, st.index, 0, e.Expires, fail)
		if e.Max < e.Expires {
			fail("its lease ends at %s, after its own maximum %s", e.Expires, e.Max)
		}
		if most, known := c.longest(st, e.Secret); known && e.Max > st.at.Add(most) {
			fail("its lease may be renewed until %s, but grant, secret and environment allow %s", e.Max, most)
		}
		return
	}
	l := c.m.leases[e.Lease]
	switch {
	case l == nil:
		fail("there is no lease %d", e.Lease)
	case l.identity != e.Actor.Identity || l.node != e.Actor.Node || l.secret != e.Secret || l.version != e.Version || l.purpose != e.Purpose:
		fail("lease %d is of %s for version %d of %s (%s)", e.Lease, l.identity, l.version, l.secret, l.purpose)
	case l.expires != e.Expires:
		fail("lease %d ends at %s, not %s", e.Lease, l.expires, e.Expires)
	}
}

func (c *Checker) boundedSession(st *step, e *state.SessionOpened, fail failure) {
	if e.Expires <= st.at {
		fail("it is over at %s already", e.Expires)
	}
	if e.Lifetime != 0 && e.Expires > e.Lifetime {
		fail("it ends at %s, after its enrolment's %s", e.Expires, e.Lifetime)
	}
	if n := c.m.sessions[e.NodeSession]; e.Via == viaWorkload && n != nil && e.Expires > n.expires {
		fail("it ends at %s, after its node's session at %s", e.Expires, n.expires)
	}
	if st.match == nil || st.matchErr != nil {
		return
	}
	if e.Via != viaServer && e.Expires > st.at.Add(st.match.Session) {
		fail("it ends at %s; the bundle allows %s", e.Expires, st.match.Session)
	}
	if e.Via == viaAttest || e.Via == viaRenew {
		began := st.at
		if old := c.m.enrolments[e.Identity]; old != nil && e.Root == old.root {
			began = old.began
		}
		most := st.match.Lifetime
		boundedEnrolment(e, fail)
		if isJob(e.Identity) && e.Via == viaRenew {
			return // as long as it was told, whatever the bundle says since
		}
		if e.Lifetime > began.Add(most) {
			fail("its enrolment of %s ends at %s; the bundle allows %s", began, e.Lifetime, most)
		}
	}
}
