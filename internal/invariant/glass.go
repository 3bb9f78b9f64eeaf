package invariant

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// Breaking the glass, by a model of its own: what is open, what was used, what is to be reviewed, and the figures of the quarter.

// glass is an opening that is open or to be reviewed.
type glass struct {
	index                     uint64
	grant, identity, incident string
	opened, until             state.Millis
	uses, beyond              int
	secrets                   []string // ascending
	reviewed                  bool
}

// quarter are the figures of a quarter of a year.
type quarter struct {
	year, number              int
	openings, releases, glass int
	alarmed                   bool
	due                       uint64 // the entry that must raise the alarm; 0: none
}

const (
	maxGlassOpen    = 8 * hour
	maxGlassSecrets = 50
	leastAlarm      = 10 // releases by break-glass grants
)

func quarterOf(now state.Millis) (year, number int) {
	t := now.Time()
	return t.Year(), (int(t.Month()) + 2) / 3
}

// quarterAt are the figures at a moment.
func (m *model) quarterAt(now state.Millis) quarter {
	if y, n := quarterOf(now); m.quarter.year != y || m.quarter.number != n {
		return quarter{year: y, number: n}
	}
	return m.quarter
}

// openedBy is what a person has open, as a decision sees it.
func (m *model) openedBy(path string, now state.Millis) (out []policy.Opened) {
	for _, g := range m.glasses {
		if g.identity == path && now < g.until {
			out = append(out, policy.Opened{Grant: g.grant, Until: g.until.Time()})
		}
	}
	return out
}

func (m *model) glassNumbered(index uint64) *glass {
	for _, g := range m.glasses {
		if g.index == index {
			return g
		}
	}
	return nil
}

// learnGlass takes an entry into the model.
func (m *model) learnGlass(st *step) {
	if m.protocol < 3 {
		return
	}
	q := m.quarterAt(st.at)
	q.due = 0
	switch e := st.event.(type) {
	case *state.GlassOpened:
		q.openings++
		m.glasses = append(m.glasses, &glass{index: st.index, grant: e.Grant, identity: e.Identity, incident: e.Incident, opened: st.at, until: e.Until})
		if e.Change != 0 {
			m.finish(e.Change, "done", st.at)
		}
	case *state.GlassClosed:
		if g := m.glassNumbered(e.Opening); g != nil {
			g.until = min(g.until, st.at)
		}
	case *state.GlassReviewed:
		m.glasses = slices.DeleteFunc(m.glasses, func(g *glass) bool { return g.index == e.Opening && g.until <= st.at })
		if r, ok := readGlass(e.Text); ok {
			m.spend("n:"+r.nonce, r.signed+reviewLife)
		}
	case *state.GlassAlarmed:
		q.alarmed = true
	case *state.SecretReleased:
		q.releases++
		if m.useGlass(st) {
			q.glass++
			if most := m.alarm(); !q.alarmed && most > 0 && q.glass >= leastAlarm && q.glass*100 >= most*q.releases {
				q.due = st.index + 1
			}
		}
	case *state.SecretWritten, *state.SecretMoved, *state.LeaseRenewed:
		m.useGlass(st)
	}
	m.quarter = q
}

// alarm is the alarming share of the bundle in force; 0: it isn't known.
func (m *model) alarm() int {
	if m.prog == nil {
		return 0
	}
	return m.prog.Environment().BreakGlass.Alarm
}

// useGlass counts what was decided by a grant that the actor had open, with the newest such opening.
func (m *model) useGlass(st *step) bool {
	for _, g := range slices.Backward(m.glasses) {
		if st.actor == nil || st.ruling == nil || g.identity != st.actor.Identity || g.grant != st.ruling.Grant || st.at >= g.until {
			continue
		}
		g.uses++
		switch at, known := slices.BinarySearch(g.secrets, st.secret); {
		case known:
		case len(g.secrets) < maxGlassSecrets:
			g.secrets = slices.Insert(g.secrets, at, st.secret)
		default:
			g.beyond++
		}
		return true
	}
	return false
}

func (m *model) deedOfGlass(e state.Event) deed {
	switch e := e.(type) {
	case *state.GlassOpened:
		if e.Change != 0 {
			return deed{actor: &e.Actor, ruling: &e.Ruling, duty: m.dutyOver(e.Change)} // carried out by its last approver
		}
		return deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem}
	case *state.GlassClosed:
		return deed{actor: &e.Actor, ruling: &e.Ruling}
	case *state.GlassReviewed:
		return deed{actor: &e.Actor, ruling: &e.Ruling, idem: e.Idem, duty: policy.DutyAudit}
	}
	return deed{}
}

// lifecycleGlass checks that what is closed was open, and that what is reviewed was over.
func (c *Checker) lifecycleGlass(st *step, fail failure) {
	switch e := st.event.(type) {
	case *state.GlassOpened:
		if e.Change == 0 {
			return
		}
		minutes := uint64(e.Until-st.at) / uint64(minute)
		if ch := c.complete(e.Change, policy.ActGlass, fail); ch != nil && (ch.target != target(e.Grant+"@"+e.Incident, minutes) || ch.proposer != e.Identity) {
			fail("change %d is not about opening %s for %s", e.Change, e.Grant, e.Identity)
		}
	case *state.GlassClosed:
		if g := c.m.glassNumbered(e.Opening); g == nil || st.at >= g.until {
			fail("opening %d is not open", e.Opening)
		}
	case *state.GlassReviewed:
		if g := c.m.glassNumbered(e.Opening); g == nil || st.at < g.until {
			fail("opening %d is not to be reviewed", e.Opening)
		}
	}
}

// separatedGlass checks the gate: others approve what is beyond it, and another reviews.
func (c *Checker) separatedGlass(st *step, fail failure) {
	switch e := st.event.(type) {
	case *state.GlassOpened:
		if e.Change != 0 {
			c.enough(e.Change, fail)
			return
		}
		if len(c.m.glasses) > 0 {
			fail("opening %d is not reviewed, and nobody approved this one", c.m.glasses[0].index)
		}
		if e.Identity != e.Actor.Identity {
			fail("%s opens it for %s", e.Actor.Identity, e.Identity)
		}
	case *state.GlassReviewed:
		r, _ := readGlass(e.Text)
		if "/human/"+e.Signature.Person != e.Actor.Identity || r.person != e.Signature.Person {
			fail("%s reviews what %s signed", e.Actor.Identity, e.Signature.Person)
		}
		if g := c.m.glassNumbered(e.Opening); g != nil && g.identity == e.Actor.Identity {
			fail("%s reviews what he opened himself", e.Actor.Identity)
		}
	}
}

// permittedGlass checks that the bundle in force has the grant, for this person.
func (c *Checker) permittedGlass(st *step, fail failure) {
	if st.prog == nil {
		return
	}
	switch e := st.event.(type) {
	case *state.GlassOpened:
		g, ok := st.prog.Glass(e.Grant)
		if !ok {
			fail("the bundle in force has no break-glass grant %q", e.Grant)
			return
		}
		if !slices.ContainsFunc(g.Identities, func(p identity.Pattern) bool { return p.Match(e.Identity) }) {
			fail("the grant %s is not for %s", e.Grant, e.Identity)
		}
		if e.Change == 0 {
			c.isOperator(st, fail)
		}
	case *state.GlassClosed:
		if g := c.m.glassNumbered(e.Opening); g != nil && g.identity == e.Actor.Identity {
			return
		}
		if op, why := operator(st.prog, e.Actor.Identity, c.anchorOf(st)); why != "" || !op.Has(policy.DutyRevoke) {
			fail("%s does not have the duty revoke, and it is not his", e.Actor.Identity)
		}
	}
}

func (c *Checker) anchorOf(st *step) string {
	if x := c.m.sessions[st.actor.Session]; x != nil {
		return x.anchor
	}
	return ""
}

func (c *Checker) isOperator(st *step, fail failure) {
	if _, why := operator(st.prog, st.actor.Identity, c.anchorOf(st)); why != "" {
		fail("%s", why)
	}
}

// boundedGlass checks for how long it is opened, how often, and when a review was signed.
func (c *Checker) boundedGlass(st *step, fail failure) {
	switch e := st.event.(type) {
	case *state.GlassOpened:
		if e.Until <= st.at || e.Until > st.at+maxGlassOpen || (e.Until-st.at)%minute != 0 {
			fail("it is open until %s", e.Until)
		}
		if st.prog == nil {
			return
		}
		if g, ok := st.prog.Glass(e.Grant); ok && e.Change == 0 && e.Until > st.at.Add(g.Glass) {
			fail("it is open until %s, and the bundle allows %s", e.Until, g.Glass)
		}
		if q, budget := c.m.quarterAt(st.at), st.prog.Environment().BreakGlass.Openings; e.Change == 0 && q.openings >= budget {
			fail("%d of %d openings of the quarter are used, and nobody approved this one", q.openings, budget)
		}
	case *state.GlassReviewed:
		if r, _ := readGlass(e.Text); r.signed > st.at+reviewAhead || st.at >= r.signed+reviewLife {
			fail("the review was signed at %s", r.signed)
		}
	}
}

// recordedGlass checks that a review says what came of the opening, and that the alarm is raised when it is due, by the true figures.
func (c *Checker) recordedGlass(st *step, fail failure) {
	q := c.m.quarterAt(st.at)
	e, alarm := st.event.(*state.GlassAlarmed)
	switch {
	case alarm && (c.m.quarter.due != st.index && c.m.prog != nil || e.Quarter != fmt.Sprintf("%d-Q%d", q.year, q.number) || e.Glass != q.glass || e.Releases != q.releases || q.alarmed):
		fail("it raises the alarm by %d of %d releases of %s, and there were %d of %d", e.Glass, e.Releases, e.Quarter, q.glass, q.releases)
	case alarm && c.m.prog != nil && e.Percent != c.m.alarm():
		fail("it raises the alarm at %d percent, and the bundle in force says %d", e.Percent, c.m.alarm())
	case !alarm && c.m.quarter.due == st.index && st.index != 0:
		fail("entry %d reached the alarming share of releases by break-glass grants, and no alarm was raised", st.index-1)
	}
	v, ok := st.event.(*state.GlassReviewed)
	if !ok {
		return
	}
	g := c.m.glassNumbered(v.Opening)
	if g == nil {
		return // "lifecycle" says so
	}
	r, ok := readGlass(v.Text)
	if !ok || r.opening != g.index || r.grant != g.grant || r.opener != g.identity || r.incident != g.incident ||
		r.opened != stamp(g.opened) || r.closed != stamp(g.until) || r.uses != g.uses || r.beyond != g.beyond || !slices.Equal(r.secrets, g.secrets) {
		fail("what was signed does not say what came of opening %d: %d uses of %d secrets and more", g.index, g.uses, len(g.secrets))
	}
}

func stamp(t state.Millis) string { return t.Time().Format("2006-01-02T15:04:05.000Z") }

// glassRead is a signed review of an opening.
type glassRead struct {
	opening                         uint64
	grant, opener, incident, person string
	opened, closed, nonce           string
	uses, beyond                    int
	secrets                         []string
	signed                          state.Millis
}

// readGlass reads a signed review, apart from package ceremony.
func readGlass(text string) (r glassRead, ok bool) {
	lines := strings.Split(text, "\n")
	if lines[0] != "bailment break-glass review v1" {
		return r, false
	}
	v := map[string]string{}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, " ")
		switch _, again := v[name]; {
		case name == ">":
			continue
		case name == "secret":
			r.secrets = append(r.secrets, value)
		case again:
			return r, false
		default:
			v[name] = value
		}
	}
	r.grant, r.opener, r.incident, r.person, r.opened, r.closed, r.nonce = v["grant"], v["opener"], v["incident"], v["person"], v["opened"], v["closed"], v["nonce"]
	opening, err := strconv.ParseUint(v["opening"], 10, 64)
	uses, err1 := strconv.Atoi(v["uses"])
	beyond, err2 := strconv.Atoi(v["beyond"])
	t, err3 := time.Parse(time.RFC3339, v["time"])
	r.opening, r.uses, r.beyond, r.signed = opening, uses, beyond, state.At(t)
	return r, err == nil && err1 == nil && err2 == nil && err3 == nil && r.nonce != ""
}
