package invariant_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

// fragile reviews the opening that the history leaves, and brings a budget of three into force, two of which are used. The grant is alice's.
func (s *scene) fragile() *state.GlassOpened {
	s.t.Helper()
	s.add(s.reviewOfGlass())
	s.glassBudget(3, 5)
	return s.breakGlass()
}

func (s *scene) glassBudget(openings, alarm int) {
	s.t.Helper()
	text, _, _ := strings.Cut(string(s.r.files["environment.yaml"]), "  breakGlass:")
	s.bring("environment.yaml", text+fmt.Sprintf("  breakGlass: {openings: %d, alarm: %d}\n", openings, alarm))
}

// breakGlass is a legal opening by alice, if there is room for it.
func (s *scene) breakGlass() *state.GlassOpened {
	e := last(s, func(_ uint64, e *state.GlassOpened) bool { return e.Change == 0 })
	e.Actor, e.Ruling, e.Idem = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}, s.ruling(), nil
	e.Until = s.now() + 1000 + 10*minute
	return e
}

// glassRead is a legal release by what alice has open.
func (s *scene) glassRead() *state.SecretReleased {
	e := last(s, func(_ uint64, e *state.SecretReleased) bool { return e.Ruling.Grant == "glass" && e.Lease == 0 })
	x := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == s.r.cast.Alice.Opened.Index })
	e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
	e.Ruling, e.Anchor, e.Root, e.Lease, e.Idem = s.ruling(), x.Anchor, s.r.cast.Alice.Opened.Index, 0, nil
	e.Ruling.Grant = "glass"
	e.Expires, e.Max = s.now()+1000+minute, s.now()+1000+minute
	return e
}

// reviewOfGlass is a legal review by bob of the newest opening.
func (s *scene) reviewOfGlass() *state.GlassReviewed {
	s.t.Helper()
	e := last(s, func(_ uint64, e *state.GlassReviewed) bool { return e.Signature.Person == "bob" })
	e.Actor, e.Ruling, e.Idem = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}, s.ruling(), nil
	var opening uint64
	var opened *state.GlassOpened
	until, uses := state.Millis(0), 0
	for i, x := range s.entries {
		switch x := x.Event.(type) {
		case *state.GlassOpened:
			opening, opened, until, uses = uint64(i), x, x.Until, 0
		case *state.GlassClosed:
			until = s.entries[i].Time
		case *state.SecretReleased:
			if x.Ruling.Grant == "glass" {
				uses++
			}
		}
	}
	e.Opening = opening
	const form = "2006-01-02T15:04:05.000Z"
	lines := strings.Split(e.Text, "\n")
	for i, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		switch name {
		case "opening":
			lines[i] = fmt.Sprintf("opening %d", opening)
		case "incident":
			lines[i] = "incident " + opened.Incident
		case "opened":
			lines[i] = "opened " + s.entries[opening].Time.Time().Format(form)
		case "closed":
			lines[i] = "closed " + until.Time().Format(form)
		case "uses":
			lines[i] = fmt.Sprintf("uses %d", uses)
		case "time":
			lines[i] = "time " + s.now().Time().Format("2006-01-02T15:04:05Z")
		case "nonce":
			lines[i] = fmt.Sprintf("nonce %032x", len(s.entries))
		case "secret":
			if uses == 0 {
				lines[i] = "> nothing was read"
			}
		}
	}
	e.Text = strings.Join(lines, "\n")
	return e
}

func edited(e *state.GlassReviewed, from, to string) *state.GlassReviewed {
	e.Text = strings.Replace(e.Text, from, to, 1)
	return e
}

func TestGlassPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	open := s.add(s.fragile())
	s.add(s.glassRead())
	s.add(&state.GlassClosed{Opening: open, Actor: state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}, Ruling: s.ruling()})
	s.add(s.reviewOfGlass())
	s.glassBudget(3, 5)
	e := s.breakGlass()
	e.Change = s.act("glass.open", "glass@"+e.Incident+"#10")
	e.Actor = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
	e.Until = s.now() + 1000 + 10*minute
	s.add(e)
	s.add(s.glassRead())
	s.legal()
}

var glassPlants = []planted{
	{invariant.Separated, "an opening while an earlier one is not reviewed", func(s *scene) {
		s.glassBudget(3, 5)
		s.add(s.breakGlass())
	}, "is not reviewed, and nobody approved this one"},
	{invariant.Bounded, "an opening beyond the budget", func(s *scene) {
		s.fragile()
		s.glassBudget(2, 5)
		s.add(s.breakGlass())
	}, "2 of 2 openings of the quarter are used"},
	{invariant.Bounded, "an opening for longer than the bundle allows", func(s *scene) {
		e := s.fragile()
		e.Until = s.now() + 1000 + 31*minute
		s.add(e)
	}, "and the bundle allows 30m"},
	{invariant.Bounded, "an opening without end", func(s *scene) {
		e := s.fragile()
		e.Until = s.now() + 1000 + 9*60*minute
		s.add(e)
	}, "it is open until"},
	{invariant.Separated, "an opening for somebody else", func(s *scene) {
		e := s.fragile()
		e.Actor = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
		s.add(e)
	}, "opens it for"},
	{invariant.Permitted, "an opening for who has no part in the grant", func(s *scene) {
		e := s.fragile()
		e.Identity, e.Actor = "/human/bob", state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
		s.add(e)
	}, "is not for /human/bob"},
	{invariant.Permitted, "an opening of an everyday grant", func(s *scene) {
		e := s.fragile()
		e.Grant = "provision"
		s.add(e)
	}, "has no break-glass grant"},
	{invariant.Permitted, "an opening by a key that is not listed", func(s *scene) {
		e := s.fragile()
		e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Bob.Opened.Index}
		s.add(e)
	}, "is not listed for alice"},
	{invariant.Lifecycle, "an opening by a change about another one", func(s *scene) {
		e := s.fragile()
		e.Change = s.act("glass.open", "glass@OTHER-1#10")
		e.Until = s.now() + 1000 + 10*minute
		s.add(e)
	}, "is not about opening glass for"},
	{invariant.Lifecycle, "an opening by a change for fewer minutes", func(s *scene) {
		e := s.fragile()
		e.Change = s.act("glass.open", "glass@"+e.Incident+"#9")
		e.Until = s.now() + 1000 + 10*minute
		s.add(e)
	}, "is not about opening glass for"},
	{invariant.Separated, "an opening by a change that nobody approved", func(s *scene) {
		e := s.fragile()
		e.Change = s.add(s.propose("glass.open", "glass@"+e.Incident+"#10"))
		e.Until = s.now() + 1000 + 10*minute
		s.add(e)
	}, "has the approval of 0 persons"},
	{invariant.Revoked, "an opening by an approval of who was cut off", func(s *scene) {
		e := s.fragile()
		e.Change = s.act("glass.open", "glass@"+e.Incident+"#10")
		s.add(s.revoke("identity:/human/bob"))
		e.Until = s.now() + 1000 + 10*minute
		s.add(e)
	}, "the others are revoked"},
	{invariant.Permitted, "a release by a break-glass grant that is not open", func(s *scene) {
		s.fragile()
		s.add(s.glassRead())
	}, "is for emergencies, and is not open"},
	{invariant.Permitted, "a release after it was closed", func(s *scene) {
		open := s.add(s.fragile())
		s.add(&state.GlassClosed{Opening: open, Actor: state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}, Ruling: s.ruling()})
		s.legal()
		s.add(s.glassRead())
	}, "is for emergencies, and is not open"},
	{invariant.Bounded, "a lease that outlasts the opening", func(s *scene) {
		s.add(s.fragile())
		e := s.glassRead()
		e.Expires, e.Max = s.now()+11*minute, s.now()+11*minute
		s.add(e)
	}, "grant, secret and environment allow"},
	{invariant.Lifecycle, "a close of what is not open", func(s *scene) {
		s.add(&state.GlassClosed{Opening: 1, Actor: state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}, Ruling: s.ruling()})
	}, "opening 1 is not open"},
	{invariant.Permitted, "a close of another's by who may not", func(s *scene) {
		open := s.add(s.fragile())
		s.lacking("revoke")
		s.legal()
		s.add(&state.GlassClosed{Opening: open, Actor: state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}, Ruling: s.ruling()})
	}, "does not have the duty revoke, and it is not his"},
	{invariant.Lifecycle, "a review of what is open", func(s *scene) {
		s.add(s.fragile())
		s.add(s.reviewOfGlass())
	}, "is not to be reviewed"},
	{invariant.Separated, "a review that another person signed", func(s *scene) {
		e := s.reviewOfGlass()
		e.Signature.Person = "carol"
		s.add(e)
	}, "reviews what carol signed"},
	{invariant.Separated, "a review by who opened it", func(s *scene) {
		e := edited(s.reviewOfGlass(), "person bob", "person alice")
		e.Signature.Person, e.Actor = "alice", state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
		s.add(e)
	}, "reviews what he opened himself"},
	{invariant.Recorded, "a review that says less than what was used", func(s *scene) {
		s.add(edited(s.reviewOfGlass(), "uses 1", "uses 0"))
	}, "what was signed does not say what came of opening"},
	{invariant.Recorded, "a review that can't be read", func(s *scene) {
		s.add(edited(s.reviewOfGlass(), "bailment break-glass review v1", "bailment break-glass review v2"))
	}, "what was signed does not say what came of opening"},
	{invariant.Recorded, "a review that says a thing twice", func(s *scene) {
		s.add(edited(s.reviewOfGlass(), "uses 1", "uses 1\nuses 1"))
	}, "what was signed does not say what came of opening"},
	{invariant.ExactlyOnce, "a review with a nonce that was used", func(s *scene) {
		e := s.reviewOfGlass()
		s.add(e)
		s.add(e)
	}, "its nonce was used before"},
	{invariant.Bounded, "a review that was signed long before", func(s *scene) {
		e := s.reviewOfGlass()
		at := s.now().Time().Format("2006-01-02T15:04:05Z")
		s.add(edited(e, "time "+at, "time "+(s.now()-120*minute).Time().Format("2006-01-02T15:04:05Z")))
	}, "the review was signed at"},
	{invariant.Confined, "a review of another environment", func(s *scene) {
		s.add(edited(s.reviewOfGlass(), "environment ", "environment x"))
	}, "what was signed is not about this environment"},
	{invariant.Permitted, "a review by who has not the duty", func(s *scene) {
		s.bring("operators.yaml", strings.ReplaceAll(string(s.r.files["operators.yaml"]), ", audit", ""))
		s.add(s.reviewOfGlass())
	}, "does not have the duty audit"},
	{invariant.Revoked, "a review by a key that was revoked", func(s *scene) {
		e := s.reviewOfGlass()
		held := s.revoke("issuer:ssh:" + e.Signature.Key)
		held.Hold = true
		s.add(held)
		s.add(e)
	}, "issuer:ssh:"},
	{invariant.Recorded, "an alarm that nothing was the reason of", func(s *scene) {
		s.add(&state.GlassAlarmed{Quarter: "2026-Q4", Glass: 10, Releases: 20, Percent: 5})
	}, "it raises the alarm by 10 of 20 releases"},
	{invariant.Recorded, "an alarm that was not raised", func(s *scene) {
		s.atAlarm(func(*state.GlassAlarmed) state.Event { return &state.DenialsSummed{} })
	}, "and no alarm was raised"},
	{invariant.Recorded, "an alarm at another share", func(s *scene) {
		s.atAlarm(func(e *state.GlassAlarmed) state.Event { e.Percent = 9; return e })
	}, "it raises the alarm at 9 percent"},
	{invariant.Recorded, "an alarm by other figures", func(s *scene) {
		s.atAlarm(func(e *state.GlassAlarmed) state.Event { e.Releases++; return e })
	}, "it raises the alarm by"},
}

// atAlarm judges the history up to the alarm that is in it, and another entry in its place.
func (s *scene) atAlarm(edit func(*state.GlassAlarmed) state.Event) {
	s.t.Helper()
	c := s.r.checker()
	for i, x := range s.entries {
		alarm, ok := x.Event.(*state.GlassAlarmed)
		if !ok {
			c.Feed(uint64(i), x)
			continue
		}
		other := *alarm
		s.found = append(s.found, c.Feed(uint64(i), &state.Entry{Time: x.Time, Event: edit(&other)})...)
		return
	}
	s.t.Fatal("the history has no alarm")
}
