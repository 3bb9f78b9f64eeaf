package invariant

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// What became of a change while it is rolled out, beside "in force".
const (
	overShadow = "shadow"
	overCanary = "canary"
	overInto   = "in force"
	overBack   = "rolled back"
)

// onItsWay is a change that is rolled out, or watched after it came into force.
type onItsWay struct {
	change         uint64
	manifest, base state.Digest
	plan           state.RolloutPlan
	step           int // len(plan.Steps): in force
	began, until   state.Millis
	canary         bool // it has governed somebody
	prog, before   *policy.Program
	now            policy.RolloutStep
	asked          map[string]bool
	hits           []map[string]bool // for each trigger, the sources that it counts
}

// governs reports whether the candidate decides about an identity.
func (r *onItsWay) governs(path string) bool {
	return r != nil && r.now.Covers(policy.Lot(policy.Digest(r.manifest), r.change, int64(r.began)), path)
}

func (r *onItsWay) inForce() bool { return r.step == len(r.plan.Steps) }

func (r *onItsWay) enter(step int, until state.Millis) {
	r.step, r.until = step, until
	r.asked, r.hits, r.now = map[string]bool{}, make([]map[string]bool, len(r.plan.Triggers)), policy.RolloutStep{}
	for i := range r.hits {
		r.hits[i] = map[string]bool{}
	}
	if r.inForce() {
		return
	}
	s := r.plan.Steps[step]
	r.now.Stage, r.now.Share = s.Stage, s.Share
	for _, text := range s.Cohort {
		if p, err := identity.ParseIDPattern(text); err == nil { // the plan is compared with the bundle's
			r.now.Cohort = append(r.now.Cohort, p)
		}
	}
	r.canary = r.canary || s.Stage == policy.StageCanary
}

// staged is the rollout whose candidate is not in force yet.
func (m *model) staged() *onItsWay {
	if m.way == nil || m.way.inForce() {
		return nil
	}
	return m.way
}

// watched is the rollout whose triggers count.
func (m *model) watched(now state.Millis) *onItsWay {
	if m.way == nil || m.way.inForce() && now >= m.way.until {
		return nil
	}
	return m.way
}

// governing is the bundle that must have decided what an entry says: the candidate's in a canary for what an identity may have, and
// the one in force for everything else. A refusal may be of either sort.
func (c *Checker) governing(st *step) (state.Digest, string, *policy.Program) {
	refusal, denied := st.event.(*state.RequestDenied)
	if st.actor != nil && (st.action != "" || denied && refusal.Ruling.Cohort != "") && c.m.staged().governs(st.actor.Identity) {
		return c.m.way.manifest, state.CohortCanary, c.m.way.prog
	}
	return c.m.bundle, "", c.m.prog
}

// rolls checks the entries of rollouts: their place in the life of a change.
func (c *Checker) rolls(st *step, fail failure) {
	if in, ok := st.event.(*state.BundleInForce); st.index > 0 && st.index == c.m.superseding && (!ok || in.How == state.ByRollout) {
		fail("a rollout was ended for another bundle, and none comes into force")
	}
	switch e := st.event.(type) {
	case *state.RolloutMoved:
		c.rollsOn(st, e, fail)
	case *state.RolloutEnded:
		r := c.m.staged()
		if r == nil || r.change != e.Change {
			fail("change %d is not being rolled out", e.Change)
			return
		}
		c.because(st, &e.Cause, e.Change, fail)
	case *state.RolloutObserved:
		if r := c.m.watched(st.at); r == nil || r.change != e.Change {
			fail("change %d is not being rolled out", e.Change)
		}
	case *state.BundleInForce:
		c.rollsIn(st, e, fail)
	case *state.RequestDenied:
		c.besides(st, e, fail)
	}
}

func (c *Checker) rollsOn(st *step, e *state.RolloutMoved, fail failure) {
	r, plan := c.m.staged(), e.Plan
	if e.Step == 0 {
		ch := c.complete(e.Change, "bundle", fail)
		switch {
		case ch == nil:
			return
		case r != nil:
			fail("change %d is being rolled out already", r.change)
		case ch.manifest != e.Manifest:
			fail("change %d is about another bundle", e.Change)
		case plan == nil:
			fail("it begins without a plan")
			return
		}
		if st.prog != nil {
			if want, ok := st.prog.Rollout(ch.rollout); !ok || !reflect.DeepEqual(state.PlanOf(want), *plan) {
				fail("the bundle in force has no such rollout %q", ch.rollout)
			}
		}
	} else {
		switch {
		case r == nil || r.change != e.Change || r.manifest != e.Manifest || r.step+1 != e.Step || plan != nil:
			fail("step %d of change %d does not follow", e.Step, e.Change)
			return
		case st.at < r.until:
			fail("the step before it is not over until %s", r.until)
		case len(r.asked) < r.plan.Steps[r.step].Asked:
			fail("%d asked in the step before it, which takes %d", len(r.asked), r.plan.Steps[r.step].Asked)
		}
		plan = &r.plan
	}
	if e.Step >= len(plan.Steps) {
		fail("the rollout has no step %d", e.Step)
		return
	}
	if want := st.at + state.Millis(plan.Steps[e.Step].For)*second; e.Until != want {
		fail("the step is over at %s, not %s", want, e.Until)
	}
}

func (c *Checker) rollsIn(st *step, e *state.BundleInForce, fail failure) {
	r := c.m.staged()
	ch := c.m.changes[e.Change]
	switch e.How {
	case state.ByChange:
		if r != nil {
			fail("change %d is being rolled out", r.change)
		}
		if ch != nil && ch.rollout != "" {
			fail("change %d goes by the rollout %s", e.Change, ch.rollout)
		}
		if done := c.complete(e.Change, "bundle", fail); done != nil && done.manifest != e.Manifest {
			fail("change %d is about another bundle", e.Change)
		}
	case state.ByRollout:
		switch {
		case r == nil || r.change != e.Change || r.manifest != e.Manifest:
			fail("change %d is not being rolled out", e.Change)
			return
		case r.step+1 != len(r.plan.Steps) || st.at < r.until:
			fail("the rollout of change %d is not over", e.Change)
		case len(r.asked) < r.plan.Steps[r.step].Asked:
			fail("%d asked in its last step, which takes %d", len(r.asked), r.plan.Steps[r.step].Asked)
		}
		want := state.Millis(0)
		if r.plan.Watch > 0 {
			want = st.at + state.Millis(r.plan.Watch)*second
		}
		if e.Watch != want {
			fail("its triggers watch until %s, not %s", want, e.Watch)
		}
	case state.ByRollback:
		switch {
		case ch == nil || ch.over != overInto || c.m.inForce != e.Change:
			fail("change %d is not in force", e.Change)
		case ch.rollback != e.Manifest || ch.rollback.IsZero():
			fail("the approval of change %d pre-authorised %s, not %s", e.Change, ch.rollback, e.Manifest)
		case r != nil:
			fail("change %d is being rolled out", r.change)
		}
		if e.Cause == nil {
			fail("it is rolled back without a cause")
			return
		}
		if e.Cause.By == state.BySupersede || e.Cause.By == state.ByRevocation {
			fail("what is in force is not rolled back by %s", e.Cause.By)
		}
		c.because(st, e.Cause, e.Change, fail)
	case state.ByRecovery:
		c.recoversInto(st, e, fail)
	default:
		fail("a bundle can't come into force by %q", e.How)
	}
}

// because checks the cause of a rollback by the entries before it.
func (c *Checker) because(st *step, why *state.Cause, change uint64, fail failure) {
	switch why.By {
	case state.ByTrigger:
		r, f := c.m.watched(st.at), why.Figure
		if r == nil || r.change != change || f == nil || f.Trigger < 0 || f.Trigger >= len(r.plan.Triggers) {
			fail("no trigger watches change %d", change)
			return
		}
		t, n, asked := r.plan.Triggers[f.Trigger], len(r.hits[f.Trigger]), len(r.asked)
		switch {
		case f.Sources != n || f.Asked != asked || f.On != t.On:
			fail("the trigger saw %d of %d sources, the entries before it have %d of %d", f.Sources, f.Asked, n, asked)
		case n < t.Sources || n*100 <= t.Share*asked:
			fail("%d of %d sources are not what the trigger asks for", n, asked)
		}
		for _, name := range f.Named {
			if !r.hits[f.Trigger][name] {
				fail("%s is named, and nothing that it had was refused", name)
			}
		}
	case state.ByPerson:
		if why.Actor == nil || why.Ruling == nil {
			fail("nobody rolled it back")
		}
	case state.BySupersede: // that another one follows is checked then
	case state.ByRevocation:
		found := false
		c.revokedChange(st, change, func(string, ...any) { found = true })
		if !found {
			fail("the proposal of change %d and its approvals stand", change)
		}
	default:
		fail("nothing is rolled back by %q", why.By)
	}
}

// besides decides a refusal again, where it can count for a trigger: by the bundle that made it, and by the one beside it. A server must
// neither make up what the other one says nor leave it out, since a trigger that is not told of refusals never fires.
func (c *Checker) besides(st *step, e *state.RequestDenied, fail failure) {
	r := c.m.watched(st.at)
	compared := r != nil && r.now.Stage != policy.StageShadow && (r.inForce() || r.governs(e.Actor.Identity))
	switch {
	case e.Beside == "" && (e.Version != 0 || e.Undecided):
		fail("it says of what the bundle beside allows, and not that it does")
	case e.Beside == "" && (!compared || policy.SourceOf(e.Actor.Identity, e.Actor.Node) == ""):
		return
	case e.Beside != "" && (e.Beside != state.BesideAllowed || !compared):
		fail("no other bundle is beside the one that refused it")
		return
	}
	if r.prog == nil || r.before == nil {
		return // said where they came in
	}
	d, why := c.again(st, r.prog, policy.Action(e.Action), e.Target, e.Purpose)
	other, otherwise := c.again(st, r.before, policy.Action(e.Action), e.Target, e.Purpose)
	refused, allowed := why != "" || !d.Allow, otherwise == "" && other.Allow
	if e.Beside == "" {
		// What is held is refused by both, whatever they say.
		if refused && allowed && !c.heldBack(st, e) {
			fail("the bundle beside the one that refused it allows it, and it does not say so")
		}
		return
	}
	if otherwise == "" {
		otherwise = other.Message
	}
	switch {
	case !refused:
		fail("decided again, allowed is true where it must be false")
	case !allowed:
		fail("decided again, allowed is false where it must be true: %s", otherwise)
	case e.Undecided != d.Undecided:
		fail("it says that a condition could not be told: %t, and decided again it is %t", e.Undecided, d.Undecided)
	case e.Version != c.m.currentOf(e):
		fail("the version that is current is %d, not %d", c.m.currentOf(e), e.Version)
	}
}

// heldBack reports whether a hold is over a refused actor, or over what he asked for.
func (c *Checker) heldBack(st *step, e *state.RequestDenied) bool {
	x := c.m.sessions[e.Actor.Session]
	if x == nil {
		return true
	}
	of := x.subject()
	of.secret = e.Target
	by, _ := c.holder(st, of)
	return by != ""
}

// currentOf is the version that a refused read would have been of.
func (m *model) currentOf(e *state.RequestDenied) uint64 {
	if sec := m.secrets[e.Target]; sec != nil && policy.Action(e.Action) == policy.ReadSecret {
		return sec.current
	}
	return 0
}

// again decides an action of the entry's actor by a program. The text says why the identity is not who it was under it.
func (c *Checker) again(st *step, prog *policy.Program, action policy.Action, secret, purpose string) (policy.Decision, string) {
	x := c.m.sessions[st.actor.Session]
	if x == nil {
		return policy.Decision{}, "there is no such session"
	}
	proof := x
	if x.node != "" {
		n := c.m.enrolments[x.node]
		if n == nil {
			return policy.Decision{}, "nothing is known of " + x.node
		}
		proof = n.proof
	}
	if why := stands(prog, x, proof); why != "" {
		return policy.Decision{}, why
	}
	in, err := c.input(st, x, action, secret, purpose)
	if err != nil {
		return policy.Decision{}, err.Error()
	}
	return prog.Decide(in), ""
}

// stands says why a session's identity is not who it was by a program; empty: it is.
func stands(prog *policy.Program, x *session, proof *session) string {
	name, person := strings.CutPrefix(x.identity, "/human/")
	switch {
	case person:
		op, ok := prog.Operator(name)
		if !ok || !slices.ContainsFunc(op.Keys, func(k policy.OperatorKey) bool { return "ssh:"+k.Fingerprint == x.anchor }) {
			return name + " is not an operator with the key of the login"
		}
		return ""
	case x.node == "" && !strings.HasPrefix(x.identity, "/node/") && !strings.HasPrefix(x.identity, "/ci/"):
		return ""
	}
	return ask(prog, x, proof)
}

// learnRollout takes an entry of a rollout into the model.
func (m *model) learnRollout(st *step) {
	switch e := st.event.(type) {
	case *state.RolloutMoved:
		r := m.staged()
		if r == nil || e.Step == 0 {
			r = &onItsWay{change: e.Change, manifest: e.Manifest, base: m.bundle, began: st.at, before: m.prog}
			if e.Plan != nil {
				r.plan = *e.Plan
			}
		}
		if e.Step < 0 || e.Step >= len(r.plan.Steps) {
			return
		}
		r.enter(e.Step, e.Until)
		m.way = r
		over := overShadow
		if r.now.Stage == policy.StageCanary {
			over = overCanary
			m.generation = max(m.generation, e.Generation)
		}
		if ch := m.changes[e.Change]; ch != nil {
			ch.over = over
		}
	case *state.RolloutEnded:
		m.generation = max(m.generation, e.Generation)
		m.finish(e.Change, overBack, st.at)
		m.way = nil
		if e.Cause.By == state.BySupersede {
			m.superseding = st.index + 1
		}
	case *state.RolloutObserved:
		if r := m.watched(st.at); r != nil && r.now.Stage == policy.StageShadow {
			for _, d := range e.Differences {
				if d.Allowed {
					m.refused(r, loss{d.Identity, d.Node, d.Secret, d.Purpose, d.Version, d.Undecided})
				}
			}
		}
	case *state.SecretReleased:
		if m.protocol >= 3 {
			m.serve(e.Actor.Identity, e.Secret, e.Ruling.Grant, st.at)
		}
		m.ask(st.at, e.Actor.Identity, e.Actor.Node)
	case *state.RequestDenied:
		if r := m.watched(st.at); r != nil && r.now.Stage != policy.StageShadow && e.Beside == state.BesideAllowed {
			m.refused(r, lossOf(e))
		} else {
			m.ask(st.at, e.Actor.Identity, e.Actor.Node)
		}
	}
}

// ask counts who asked in the present step.
func (m *model) ask(now state.Millis, path, node string) {
	r := m.watched(now)
	if r == nil || r.now.Stage == policy.StageCanary && !r.governs(path) {
		return
	}
	r.count(policy.SourceOf(path, node))
}

const maxSources = 100_000

func (r *onItsWay) count(source string) bool {
	if source == "" {
		return false
	}
	if !r.asked[source] && len(r.asked) >= maxSources {
		return false
	}
	r.asked[source] = true
	return true
}

// loss is what somebody was refused that the other bundle allows.
type loss struct {
	identity, node, secret, purpose string
	version                         uint64
	undecided                       bool
}

func lossOf(e *state.RequestDenied) loss {
	return loss{e.Actor.Identity, e.Actor.Node, e.Target, e.Purpose, e.Version, e.Undecided}
}

// refused counts a refusal of what was served before the rollout.
func (m *model) refused(r *onItsWay, x loss) {
	source := policy.SourceOf(x.identity, x.node)
	if !r.count(source) {
		return
	}
	for i := range r.plan.Triggers {
		if m.isFor(r, i, x) {
			r.hits[i][source] = true
		}
	}
}

// isFor reports whether a trigger counts a refusal.
func (m *model) isFor(r *onItsWay, trigger int, x loss) bool {
	t, ch := r.plan.Triggers[trigger], m.changes[r.change]
	node := x.node
	if node == "" {
		node = x.identity
	}
	if by := m.enrolments[node]; ch == nil || by != nil && by.method == "join-token" && by.root > r.change {
		return false // let in since the change was proposed, by a person who may have known it
	}
	first, last, ok := m.servedBefore(r.began, x)
	return ok && first <= ch.created && last+state.Millis(t.Served)*second >= r.began && (t.On == policy.TriggerDenied || x.undecided)
}

// tells reports whether a refusal is the first that some trigger counts of its source: those are entered however many there were.
func (m *model) tells(now state.Millis, e *state.RequestDenied) bool {
	r, source := m.watched(now), policy.SourceOf(e.Actor.Identity, e.Actor.Node)
	if r == nil || source == "" || e.Beside != state.BesideAllowed || !r.asked[source] && len(r.asked) >= maxSources {
		return false
	}
	for i := range r.plan.Triggers {
		if !r.hits[i][source] && m.isFor(r, i, lossOf(e)) {
			return true
		}
	}
	return false
}

// use is when somebody was last given something, at the latest, and when before the rollout that there was then.
type use struct {
	first, last, before state.Millis
	grant               string
}

// afterUse is for how long a use is remembered: longer than any trigger looks back, and any rollout lasts.
const afterUse = 400 * 24 * hour

// serve remembers a use, to the hour.
func (m *model) serve(path, secret, grant string, now state.Millis) {
	k := path + "\x00" + secret
	old := m.served[k]
	if old != nil && now <= old.last && old.grant == grant {
		return
	}
	u := &use{first: now, last: now + hour, grant: grant}
	if old == nil {
		m.later(u.last+afterUse, 'v', 0, k)
	} else {
		u.first = old.first
		if r := m.watched(now); r != nil {
			u.before = old.until(r.began)
		}
	}
	m.served[k] = u
}

// dropUse forgets a use that is over, or says until when it is remembered.
func (m *model) dropUse(k string, now state.Millis) (state.Millis, bool) {
	if until := m.served[k].last + afterUse; until > now {
		return until, true
	}
	delete(m.served, k)
	return 0, false
}

// until is when the last use before a moment was, at the latest; 0: there was none.
func (u *use) until(began state.Millis) state.Millis {
	if u.last-hour <= began {
		return u.last
	}
	return u.before
}

func (m *model) servedBefore(began state.Millis, x loss) (first, last state.Millis, ok bool) {
	if u := m.served[x.identity+"\x00"+x.secret]; u != nil {
		if at := u.until(began); at != 0 {
			return u.first, at, true
		}
	}
	// From before uses were remembered: the lease of that very version.
	newest, created := uint64(0), state.Millis(0)
	for id, l := range m.leases {
		if id >= newest && l.identity == x.identity && l.node == x.node && l.secret == x.secret && l.version == x.version && l.purpose == x.purpose {
			newest, created = id, l.created
		}
	}
	return created, created, newest != 0 && created <= began
}

// rolledInto is what coming into force means for a rollout.
func (m *model) rolledInto(e *state.BundleInForce) {
	if e.How != state.ByRollout || m.way == nil {
		m.way = nil
		return
	}
	m.way.enter(len(m.way.plan.Steps), e.Watch)
}

// learnCandidate gets the program of a candidate.
func (c *Checker) learnCandidate(index uint64, e state.Event) []Violation {
	moved, ok := e.(*state.RolloutMoved)
	if !ok || moved.Step != 0 || c.m.way == nil || c.opts.Program == nil {
		return nil
	}
	if c.m.way.prog = c.opts.Program(moved.Manifest); c.m.way.prog == nil && !c.opts.Incomplete {
		return []Violation{{Permitted, index, fmt.Sprintf("the bundle %s can't be had, so nothing under it can be decided again", moved.Manifest)}}
	}
	return nil
}
