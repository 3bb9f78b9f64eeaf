package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/identity"
)

// Breaking the glass: a grant that gives nothing until a person opens it, with a reason and an incident, for some minutes. The openings of
// a quarter are budgeted; each is told at once and reviewed by somebody else afterwards. What this package decides is only whether an
// opened grant applies: see Input.Opened. Who has opened what is in the state.

// BreakGlass are the environment's settings about breaking the glass.
type BreakGlass struct {
	// Openings is how often in a quarter of a year a break-glass grant may be opened without approvals, all grants and persons together.
	Openings int
	// Alarm is the share of releases in a quarter, in percent, from which on releases by break-glass grants raise the alarm.
	Alarm int
}

const (
	minGlass           = time.Minute
	maxGlass           = 8 * time.Hour
	defaultOpenings    = 4
	maxOpenings        = 1000
	defaultGlassAlarm  = 1
	maxGlassAlarm      = 100
	reviewersOfGlass   = 2 // persons with the duty audit, so that whoever opens there is another one
	glassNobodyIsTold  = "nobody is told when this grant is opened: name a receiver of break-glass in the environment's notify"
	glassNobodyReviews = "whoever opens this grant, somebody else must review it: that takes two persons with the duty audit"
)

// glass reads the settings.
func (c *compiler) glass(s *environmentSpec) {
	e := &c.program.environment
	e.BreakGlass = BreakGlass{
		Openings: c.count(s.BreakGlass.Openings, "breakGlass.openings", defaultOpenings, 0, maxOpenings),
		Alarm:    c.count(s.BreakGlass.Alarm, "breakGlass.alarm", defaultGlassAlarm, 1, maxGlassAlarm),
	}
}

// grantGlass reads what makes a grant one for emergencies.
func (c *compiler) grantGlass(s *grantSpec, g *grant) {
	if !s.BreakGlass.set {
		return
	}
	if g.effect == Deny {
		c.found.add(s.BreakGlass.at, "a deny grant is not opened: breakGlass is for grants that allow")
		return
	}
	for _, t := range s.Identities {
		if !strings.HasPrefix(t.value, identity.PrefixHuman) {
			c.found.add(t.at, "glass is broken by persons, below %s", identity.PrefixHuman)
		}
	}
	g.glass = c.duration(s.BreakGlass, "breakGlass", 0, minGlass, maxGlass)
	if g.ttl >= g.glass && g.glass > 0 {
		c.found.add(s.TTL.at, "no lease by this grant outlasts its being open: a ttl must be less than breakGlass, or left out")
	}
}

// glassHeld refuses break-glass grants in production that nobody would hear of, or nobody could review.
func (c *compiler) glassHeld() {
	if c.program.environment.Class != Production {
		return
	}
	told := slices.ContainsFunc(c.program.environment.Notify, func(n Notify) bool { return n.Wants(TopicGlass) })
	reviewers := 0
	for _, o := range c.program.operators {
		if o.Has(DutyAudit) {
			reviewers++
		}
	}
	for i := range c.program.grants {
		g := &c.program.grants[i]
		if g.glass == 0 {
			continue
		}
		if !told {
			c.found.add(g.source, glassNobodyIsTold)
		}
		if reviewers < reviewersOfGlass && c.humansKnown {
			// Only imprudent: what nobody reviews keeps the next one closed. A recovery must not fail by a grant that one person's rollback
			// brought back since it was signed.
			c.advise(g.source, glassNobodyReviews)
		}
	}
}

// Glass finds a break-glass grant by name.
func (p *Program) Glass(name string) (Grant, bool) {
	for i := range p.grants {
		if g := &p.grants[i]; g.name == name && g.glass > 0 {
			return g.view(), true
		}
	}
	return Grant{}, false
}

// holds is what else must hold, for people.
func (g *grant) holds() string {
	switch opened := "break-glass for " + shortDuration(g.glass); {
	case g.glass == 0:
		return g.whenText
	case g.whenText == "":
		return opened
	default:
		return opened + " && (" + g.whenText + ")"
	}
}
