package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
)

// protocolRollout is the protocol version that the entries of this file belong to.
const protocolRollout = 3

// How a bundle came into force: the values of BundleInForce.How.
const (
	ByChange   = "change"   // with the last approval of its change
	ByRollout  = "rollout"  // after the last step of its rollout
	ByRollback = "rollback" // again, since what replaced it was rolled back
)

// CohortCanary is the cohort of identities that the candidate of a rollout governs. All others have none.
const CohortCanary = "canary"

// BesideAllowed says of a refusal that the bundle beside the governing one allows it.
const BesideAllowed = "allowed"

// RolloutPlan is a rollout as the bundle in force said when the change was approved. Durations are whole seconds.
type RolloutPlan struct {
	Name     string           `json:"name"`
	Steps    []PlannedStep    `json:"steps"`
	Watch    int64            `json:"watch_s,omitempty"`
	Triggers []PlannedTrigger `json:"triggers,omitempty"`
}

// PlannedStep is a step of a plan.
type PlannedStep struct {
	Stage  string   `json:"stage"`
	For    int64    `json:"for_s"`
	Share  int      `json:"share,omitempty"`
	Cohort []string `json:"cohort,omitempty"`
	Asked  int      `json:"asked,omitempty"` // sources that must have asked before it is over
}

// PlannedTrigger is a trigger of a plan.
type PlannedTrigger struct {
	On      string `json:"on"`
	Sources int    `json:"sources"`
	Share   int    `json:"share,omitempty"`
	Served  int64  `json:"served_s"`
}

// PlanOf is a rollout as it is entered.
func PlanOf(r policy.Rollout) RolloutPlan {
	p := RolloutPlan{Name: r.Name, Watch: int64(r.Watch / time.Second)}
	for _, s := range r.Steps {
		step := PlannedStep{Stage: s.Stage, For: int64(s.For / time.Second), Share: s.Share, Asked: s.Asked}
		for _, c := range s.Cohort {
			step.Cohort = append(step.Cohort, c.String())
		}
		p.Steps = append(p.Steps, step)
	}
	for _, t := range r.Triggers {
		p.Triggers = append(p.Triggers, PlannedTrigger{On: t.On, Sources: t.Sources, Share: t.Share, Served: int64(t.Served / time.Second)})
	}
	return p
}

// RolloutMoved takes an approved bundle to the next step of its rollout.
type RolloutMoved struct {
	Change     uint64       `json:"change"`
	Manifest   Digest       `json:"manifest"` // the candidate
	Step       int          `json:"step"`     // from 0
	Plan       *RolloutPlan `json:"plan,omitempty"`
	Generation uint64       `json:"generation,omitempty"` // a canary's: it governs some from here on
	Until      Millis       `json:"until"`
}

// RolloutEnded ends a rollout before its bundle is in force. The bundle in force governs everybody again.
type RolloutEnded struct {
	Change     uint64 `json:"change"`
	Generation uint64 `json:"generation,omitempty"` // if the candidate governed anybody
	Cause      Cause  `json:"cause"`
}

// Cause is why a bundle was rolled back.
type Cause struct {
	By     string  `json:"by"` // one of the constants below
	Reason string  `json:"reason,omitempty"`
	Figure *Figure `json:"figure,omitempty"` // of a trigger
	Actor  *Actor  `json:"actor,omitempty"`  // of a person
	Ruling *Ruling `json:"ruling,omitempty"`
}

// Who rolls back.
const (
	ByTrigger    = "trigger"    // one of the plan's
	ByPerson     = "person"     // an operator
	BySupersede  = "superseded" // another bundle, containment, came into force meanwhile
	ByRevocation = "revocation" // the proposal or an approval no longer counts
)

// Figure is what a trigger saw.
type Figure struct {
	Trigger int      `json:"trigger"` // of the plan, from 0
	On      string   `json:"on"`
	Sources int      `json:"sources"` // machines and repositories that it counted
	Asked   int      `json:"asked"`   // of so many that asked in this step
	Named   []string `json:"named"`   // some of them, at most 16
}

// RolloutObserved sums what the candidate would have decided otherwise within a minute.
type RolloutObserved struct {
	Change      uint64       `json:"change"`
	Minute      Millis       `json:"minute"`
	Compared    uint64       `json:"compared"` // decisions that were compared
	Differences []Difference `json:"differences,omitempty"`
	Others      uint64       `json:"others,omitempty"` // differences beyond those listed
}

// Difference is a decision that the candidate would have made otherwise.
type Difference struct {
	Identity  string `json:"identity"`
	Node      string `json:"node,omitempty"`
	Action    string `json:"action"`
	Secret    string `json:"secret"`
	Purpose   string `json:"purpose,omitempty"`
	Allowed   bool   `json:"allowed"` // by the bundle in force; the candidate says the opposite
	Reason    string `json:"reason"`  // of the one that refuses
	Grant     string `json:"grant,omitempty"`
	Undecided bool   `json:"undecided,omitempty"` // a condition could not be told
	Version   uint64 `json:"version,omitempty"`   // that is current, if it is a read
	Count     uint64 `json:"count"`
}

// Rollout is a change on its way, or in force and still watched.
type Rollout struct {
	Change     uint64      `json:"change"`
	Manifest   Digest      `json:"manifest"` // the candidate
	Base       Digest      `json:"base"`     // what it replaces
	Plan       RolloutPlan `json:"plan"`
	Step       int         `json:"step"`  // len(Plan.Steps): in force
	Began      Millis      `json:"began"` // the rollout
	Since      Millis      `json:"since"` // the step
	Until      Millis      `json:"until"` // the step's end
	Generation uint64      `json:"generation,omitempty"`
	Compared   uint64      `json:"compared,omitempty"` // decisions of shadows
	Differed   uint64      `json:"differed,omitempty"`
	// Some of the differences, the first of each sort, with how often.
	Differences []Difference `json:"differences,omitempty"`
	// Of this step: distinct sources that asked, and those that each trigger counts.
	Asked int   `json:"asked,omitempty"`
	Hits  []int `json:"hits,omitempty"`

	step policy.RolloutStep // the present one, its patterns read
	lot  policy.Digest      // that a share is drawn by
}

// RolloutSource is a machine or repository that asked in the present step.
type RolloutSource struct {
	Hits uint16 `json:"hits,omitempty"` // a bit for each trigger that counts it
}

// maxSources bounds the sources that a step counts. A share of so many is known well enough.
const maxSources = 100_000

// maxDifferences is how many sorts of differences are kept at hand. All that were listed are in the ledger.
const maxDifferences = 32

// Stage is where the rollout is: shadow, canary, or InForce.
func (r *Rollout) Stage() string {
	if r.Step >= len(r.Plan.Steps) {
		return string(InForce)
	}
	return r.Plan.Steps[r.Step].Stage
}

// over reports whether the present step, which is one of the plan, has had its time, and its questions.
func (r *Rollout) over(now Millis) bool {
	return now >= r.Until && r.Asked >= r.Plan.Steps[r.Step].Asked
}

// prepare reads the patterns of the present step.
func (r *Rollout) prepare() error {
	r.step, r.lot = policy.RolloutStep{}, policy.Lot(policy.Digest(r.Manifest), r.Change, int64(r.Began))
	if r.Step < 0 || r.Step > len(r.Plan.Steps) || len(r.Hits) != len(r.Plan.Triggers) {
		return fmt.Errorf("the rollout has no step %d", r.Step)
	}
	if r.Step == len(r.Plan.Steps) {
		return nil
	}
	s := r.Plan.Steps[r.Step]
	r.step.Stage, r.step.Share = s.Stage, s.Share
	for _, text := range s.Cohort {
		p, err := identity.ParseIDPattern(text)
		if err != nil {
			return err
		}
		r.step.Cohort = append(r.step.Cohort, p)
	}
	return nil
}

// rolloutKey is the one row of the table of rollouts.
const rolloutKey = "now"

// Rollout is the change that is being rolled out, or is watched after it came into force; nil: none. What is over by its time is
// none any more.
func (s *State) Rollout(now Millis) *Rollout {
	r, ok := s.rollouts.Get(rolloutKey)
	if !ok || r.Stage() == string(InForce) && now >= r.Until {
		return nil
	}
	return r
}

// Staged is the rollout whose candidate is not in force yet; nil: none.
func (s *State) Staged() *Rollout {
	r, ok := s.rollouts.Get(rolloutKey)
	if !ok || r.Stage() == string(InForce) {
		return nil
	}
	return r
}

// rolledUntil is until when a change is at least on its way, or watched; 0 if it is neither. A rollout may take longer than its change is
// kept otherwise, or nobody may be there to end it, and without the change it could not be ended.
func (s *State) rolledUntil(change uint64, now Millis) Millis {
	r, ok := s.rollouts.Get(rolloutKey)
	switch {
	case !ok || r.Change != change:
		return 0
	case r.Stage() == string(InForce):
		return r.Until
	}
	return now
}

// Governs says which bundle decides what an identity may have, and of which cohort it is. Persons, settings, identity rules at
// attestation and everything else are governed by the bundle in force.
func (s *State) Governs(path string) (Digest, string) {
	if r, ok := s.rollouts.Get(rolloutKey); ok && r.step.Covers(r.lot, path) {
		return r.Manifest, CohortCanary
	}
	return s.Bundle, ""
}

// Beside is the bundle that the governing one is compared with for an identity: in a shadow the candidate, in a canary what is in
// force, and after coming into force what was before. Zero: there is nothing to compare.
func (s *State) Beside(path string, now Millis) Digest {
	r := s.Rollout(now)
	switch {
	case r == nil:
		return Digest{}
	case r.Stage() == policy.StageShadow:
		return r.Manifest
	case r.step.Covers(r.lot, path), r.Stage() == string(InForce):
		return r.Base
	}
	return Digest{}
}

// The kinds of these events.
func (*RolloutMoved) Kind() Kind    { return Kind{"rollout.moved", 1} }
func (*RolloutEnded) Kind() Kind    { return Kind{"rollout.ended", 1} }
func (*RolloutObserved) Kind() Kind { return Kind{"rollout.observed", 1} }

func (s *State) setRollout(r *Rollout) error {
	r.Asked, r.Hits = 0, make([]int, len(r.Plan.Triggers))
	if err := r.prepare(); err != nil {
		return err
	}
	s.sources = newTable[string, *RolloutSource]()
	s.rollouts.set(rolloutKey, r)
	return nil
}

func (s *State) endRollout() {
	s.rollouts.del(rolloutKey)
	s.sources = newTable[string, *RolloutSource]()
}

func (e *RolloutMoved) apply(s *State, m Meta) error {
	if err := s.needs(protocolRollout); err != nil {
		return err
	}
	c, ok := s.Changes.Get(e.Change)
	if !ok || c.Manifest != e.Manifest || c.Base != s.Bundle || !s.Complete(c, m.Time) {
		return fmt.Errorf("change %d does not roll out this bundle", e.Change)
	}
	r := &Rollout{Change: e.Change, Manifest: e.Manifest, Base: s.Bundle, Began: m.Time}
	old := s.Staged()
	switch {
	case e.Step == 0:
		if old != nil || c.StateAt(m.Time) != Proposed || e.Plan == nil || c.Rollout == "" || e.Plan.Name != c.Rollout {
			return fmt.Errorf("change %d can't begin this rollout", e.Change)
		}
		r.Plan = *e.Plan
	case old == nil || old.Change != e.Change || old.Step+1 != e.Step || e.Plan != nil:
		return fmt.Errorf("step %d of change %d does not follow", e.Step, e.Change)
	case !old.over(m.Time):
		return fmt.Errorf("the step before is not over until %s, and until enough have asked", old.Until)
	default:
		*r = *old
	}
	if e.Step >= len(r.Plan.Steps) {
		return fmt.Errorf("the rollout has no step %d", e.Step)
	}
	r.Step, r.Since, r.Until = e.Step, m.Time, e.Until
	to := Shadow
	if r.Stage() == policy.StageCanary {
		if to = Canary; e.Generation != s.Generation+1 {
			return fmt.Errorf("generation %d does not follow %d", e.Generation, s.Generation)
		}
		s.Generation, r.Generation = e.Generation, e.Generation
		if !s.Manifests.Has(e.Manifest.String()) {
			s.Manifests.set(e.Manifest.String(), e.Generation) // it governs some, so whoever checks that must be able to read it
		}
		s.Control = m.Index
	} else if e.Generation != 0 {
		return fmt.Errorf("a shadow governs nobody")
	}
	s.setChange(c, to)
	return s.setRollout(r)
}

func (e *RolloutEnded) apply(s *State, m Meta) error {
	r := s.Staged()
	c, ok := s.Changes.Get(e.Change)
	if r == nil || r.Change != e.Change || !ok {
		return fmt.Errorf("change %d is not being rolled out", e.Change)
	}
	if r.Generation == 0 {
		if e.Generation != 0 {
			return fmt.Errorf("the candidate governed nobody")
		}
	} else {
		if e.Generation != s.Generation+1 {
			return fmt.Errorf("generation %d does not follow %d", e.Generation, s.Generation)
		}
		s.Generation, s.Control = e.Generation, m.Index
	}
	s.setChange(c, RolledBack)
	s.endRollout()
	return nil
}

func (e *RolloutObserved) apply(s *State, m Meta) error {
	r := s.Rollout(m.Time)
	if r == nil || r.Change != e.Change {
		return nil // it ended between the decisions and their sum
	}
	n := *r
	n.Compared += e.Compared
	n.Differed += e.Others
	n.Differences = slices.Clone(r.Differences)
	for _, d := range e.Differences {
		n.Differed += d.Count
		i := slices.IndexFunc(n.Differences, func(x Difference) bool {
			x.Count = d.Count
			return x == d
		})
		switch {
		case i >= 0:
			n.Differences[i].Count += d.Count
		case len(n.Differences) < maxDifferences:
			n.Differences = append(n.Differences, d)
		}
	}
	n.Hits = slices.Clone(r.Hits)
	s.rollouts.set(rolloutKey, &n)
	if n.Stage() != policy.StageShadow {
		return nil // there the refusals themselves are counted
	}
	for _, d := range e.Differences {
		if d.Allowed {
			s.countRefusal(Loss{d.Identity, d.Node, d.Secret, d.Purpose, d.Version, d.Undecided}, m.Time)
		}
	}
	return nil
}

// countAsked counts the source of a request that the candidate decided, or was compared with.
func (s *State) countAsked(path, node string, now Millis) {
	if s.Protocol < protocolRollout {
		return
	}
	r := s.Rollout(now)
	if r == nil || r.Stage() == policy.StageCanary && !r.step.Covers(r.lot, path) {
		return
	}
	s.countSource(r, policy.SourceOf(path, node), 0)
}

func (s *State) countSource(r *Rollout, source string, hits uint16) {
	if source == "" {
		return
	}
	old, known := s.sources.Get(source)
	if !known && s.sources.Len() >= maxSources || known && old.Hits|hits == old.Hits {
		return
	}
	n := *r
	n.Hits = slices.Clone(r.Hits)
	fresh := hits
	if known {
		fresh &^= old.Hits
		hits |= old.Hits
	} else {
		n.Asked++
	}
	for i := range n.Hits {
		if fresh&(1<<i) != 0 {
			n.Hits[i]++
		}
	}
	s.sources.set(source, &RolloutSource{Hits: hits})
	s.rollouts.set(rolloutKey, &n)
}

// countDenied counts the source of a refusal. In a shadow the bundle beside is the candidate: what that one allows is no loss by it.
func (s *State) countDenied(e *RequestDenied, now Millis) {
	if r := s.Rollout(now); e.Beside == BesideAllowed && r != nil && r.Stage() != policy.StageShadow {
		s.countRefusal(Loss{e.Actor.Identity, e.Actor.Node, e.Target, e.Purpose, e.Version, e.Undecided}, now)
		return
	}
	s.countAsked(e.Actor.Identity, e.Actor.Node, now)
}

// Loss is a refusal that the bundle beside would not have made.
type Loss struct {
	Identity, Node, Secret, Purpose string
	Version                         uint64 // that is current, of a read
	Undecided                       bool   // a condition could not be told
}

// countRefusal counts the source of a refusal that the other bundle would not have made, for the triggers that it is one for.
func (s *State) countRefusal(x Loss, now Millis) {
	if r := s.Rollout(now); r != nil {
		s.countSource(r, policy.SourceOf(x.Identity, x.Node), s.hits(r, x))
	}
}

// hits are the triggers that a refusal is one for, as bits: the identity was given that very secret within their time before the rollout,
// and for the first time before the change was proposed; and its machine was let in before that, if a token did it. Who lets machines in
// can make any number of them once he knows the change, and have them served.
func (s *State) hits(r *Rollout, x Loss) uint16 {
	c, ok := s.Changes.Get(r.Change)
	if !ok || !s.admittedBefore(c.Index, x) {
		return 0
	}
	first, last, served := s.servedBefore(r.Began, x)
	if !served || first > c.Created {
		return 0
	}
	var hits uint16
	for i, t := range r.Plan.Triggers {
		if (t.On == policy.TriggerDenied || x.Undecided) && last+Millis(t.Served*1000) >= r.Began {
			hits |= 1 << i
		}
	}
	return hits
}

// byToken is the method of attestation by which a person lets a machine in.
const byToken = "join-token"

// admittedBefore reports whether the machine behind a loss was let in before an entry, or let in itself by what it is.
func (s *State) admittedBefore(index uint64, x Loss) bool {
	node := x.Node
	if node == "" {
		node = x.Identity
	}
	id, ok := s.Identities.Get(node)
	return !ok || id.Method != byToken || id.Root < index
}

// Tells reports whether a refusal is one that a trigger has yet to count of its source. There are as many in a step as there are sources.
func (s *State) Tells(x Loss, now Millis) bool {
	r, source := s.Rollout(now), policy.SourceOf(x.Identity, x.Node)
	if r == nil || source == "" {
		return false
	}
	had := uint16(0)
	if old, known := s.sources.Get(source); known {
		had = old.Hits
	} else if s.sources.Len() >= maxSources {
		return false
	}
	return s.hits(r, x)&^had != 0
}

// Served is when an identity was last given a secret, to the hour.
type Served struct {
	Identity string `json:"identity"`
	Secret   string `json:"secret"`
	Grant    string `json:"grant"`
	First    Millis `json:"first"`
	Last     Millis `json:"last"` // the hour after it: the latest that it can have been
	// Before is Last as it was when the rollout began during which it was given again. What is given for the first time while a change is
	// on its way is no reason to take that back.
	Before Millis `json:"before,omitempty"`
}

const (
	servedStep = 60 * 60 * 1000
	keepServed = 400 * 24 * 60 * 60 * 1000
)

// ServedKey is the name of an identity's use of a secret.
func ServedKey(identity, secret string) string { return identity + "\x00" + secret }

// serve remembers a use. It costs a look in most cases: the hour was remembered with its first use.
func (s *State) serve(identity, secret, grant string, now Millis) {
	if s.Protocol < protocolRollout {
		return // the roots of ledgers that were written before it stay what they are
	}
	k := ServedKey(identity, secret)
	old, known := s.Served.Get(k)
	if known && now <= old.Last && old.Grant == grant {
		return
	}
	n := &Served{Identity: shared(identity), Secret: shared(secret), Grant: shared(grant), First: now, Last: now + servedStep}
	if known {
		n.First = old.First
		if r := s.Rollout(now); r != nil {
			n.Before, _ = old.before(r.Began)
		}
	} else {
		s.enqueue(n.Last+keepServed, qServed, k)
	}
	s.Served.set(k, n)
}

// before is when, at the latest, it was last given before a rollout began, if it was.
func (u *Served) before(began Millis) (Millis, bool) {
	if u.Last-servedStep <= began {
		return u.Last, true
	}
	return u.Before, u.Before != 0
}

// servedBefore is when the identity was given a version of the secret for the first time, and when, at the latest, before a rollout began.
// What was given before uses were remembered may still have its lease.
func (s *State) servedBefore(began Millis, x Loss) (first, last Millis, ok bool) {
	if u, ok := s.Served.Get(ServedKey(x.Identity, x.Secret)); ok {
		if at, ok := u.before(began); ok {
			return u.First, at, true
		}
	}
	id, ok := s.LeaseOf.Get(LeaseKey(x.Identity, x.Node, x.Secret, x.Version, x.Purpose))
	if !ok {
		return 0, 0, false
	}
	l, ok := s.Leases.Get(id)
	if !ok || l.Created > began {
		return 0, 0, false
	}
	return l.Created, l.Created, true
}

// RolloutDue is what is due for a rollout.
type RolloutDue int

// What is due.
const (
	NothingDue  RolloutDue = iota
	NextStepDue            // the next step, or coming into force
	RollbackDue            // a trigger says so
	RevokedDue             // what it rests on was revoked
)

// RolloutDue says what is due at a moment. It is a function of the entries alone, so everybody can check it.
func (s *State) RolloutDue(now Millis) (RolloutDue, *Figure) {
	r := s.Rollout(now)
	if r == nil {
		return NothingDue, nil
	}
	if c, ok := s.Changes.Get(r.Change); ok && r.Stage() == string(InForce) && c.Rollback.IsZero() {
		return NothingDue, nil // all that it changes stays changed: there is nothing to bring back
	}
	for i, t := range r.Plan.Triggers {
		if r.Hits[i] >= t.Sources && r.Hits[i]*100 > t.Share*r.Asked {
			return RollbackDue, s.figure(r, i)
		}
	}
	if r.Stage() == string(InForce) {
		return NothingDue, nil
	}
	if c, ok := s.Changes.Get(r.Change); !ok || !s.Complete(c, now) {
		return RevokedDue, nil
	}
	if r.over(now) {
		return NextStepDue, nil
	}
	return NothingDue, nil
}

func (s *State) figure(r *Rollout, trigger int) *Figure {
	const most = 16
	f := &Figure{Trigger: trigger, On: r.Plan.Triggers[trigger].On, Sources: r.Hits[trigger], Asked: r.Asked, Named: []string{}}
	s.sources.All(func(name string, x *RolloutSource) bool {
		if x.Hits&(1<<trigger) != 0 {
			f.Named = append(f.Named, name)
		}
		return len(f.Named) < most
	})
	return f
}
