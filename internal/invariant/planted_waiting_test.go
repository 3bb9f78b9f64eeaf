package invariant_test

import (
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

const aDay = state.Millis(24 * 60 * 60 * 1000)

// alices is what alice does now. Her login, and bob's, are an hour or so long: what waits is judged by what she does in a new one.
func (s *scene) alices() state.Actor {
	return state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
}

// destroyed is the entry that a change about version 2 of db/w leads to, which is retired first; by alice, in a session of that time.
func (s *scene) destroyed(ch uint64, at state.Millis, person string) *state.SecretMoved {
	e := last(s, func(_ uint64, e *state.SessionOpened) bool { return e.Identity == "/human/"+person })
	e = s.fresh(e)
	e.Expires = at + 60_000
	opened := s.addAt(at-1000, e)
	return &state.SecretMoved{
		Secret: "db/w", Version: 2, From: state.Retired, To: state.Destroyed, Change: ch,
		Actor: state.Actor{Identity: "/human/" + person, Session: opened}, Ruling: s.ruling(),
	}
}

// waits is a change that has its approval, and when it had it.
func (s *scene) waits() (uint64, state.Millis) {
	moved := last(s, func(_ uint64, e *state.SecretMoved) bool { return e.To == state.Retired && e.Secret == "db/w" })
	moved.Version, moved.From, moved.Actor, moved.Ruling = 2, state.Current, s.alices(), s.ruling()
	moved.Ruling.Grant = last(s, func(_ uint64, e *state.SecretWritten) bool { return e.Secret == "db/w" }).Ruling.Grant
	s.add(moved)
	ch := s.add(s.propose(policy.ActDestroy, "db/w#2"))
	s.add(s.approve(ch))
	s.legal()
	return ch, s.now()
}

func TestWaitingPlantsStartLegal(t *testing.T) {
	for _, person := range []string{"alice", "bob"} { // who proposed it, and who may approve it
		s := newScene(t, history(t))
		ch, since := s.waits()
		s.addAt(since+aDay, s.destroyed(ch, since+aDay, person))
		for _, v := range s.found {
			t.Error(v)
		}
	}
}

// waitingPlants are changes that are carried out at another time than when they may be, or wait for another.
var waitingPlants = []planted{
	{invariant.Separated, "what can't be undone, done at once", func(s *scene) {
		ch, since := s.waits()
		s.addAt(since+aDay-1, s.destroyed(ch, since+aDay-1, "alice"))
	}, "waits until"},
	{invariant.Separated, "what waits, carried out without approvals", func(s *scene) {
		s.waits()
		ch := s.add(s.propose(policy.ActDestroy, "db/w#2"))
		at := s.now() + 60_000
		s.addAt(at, s.destroyed(ch, at, "alice"))
	}, "has not begun to wait"},
	{invariant.Lifecycle, "what nobody carried out in time", func(s *scene) {
		ch, since := s.waits()
		at := since + 8*aDay
		s.addAt(at, s.destroyed(ch, at, "alice"))
	}, "there is no open change"},
	{invariant.Lifecycle, "what waited for the bundle before", func(s *scene) {
		ch, since := s.waits()
		s.bring("README.md", "another")
		s.addAt(since+aDay, s.destroyed(ch, since+aDay, "alice"))
	}, "was made for another bundle than the one in force"},
	{invariant.Lifecycle, "what was taken back while it waited", func(s *scene) {
		ch, since := s.waits()
		s.add(&state.ChangeRejected{Change: ch, Actor: s.alices(), Ruling: s.ruling()})
		s.addAt(since+aDay, s.destroyed(ch, since+aDay, "alice"))
	}, "there is no open change"},
	{invariant.Separated, "a wait that begins anew", func(s *scene) {
		ch, since := s.waits()
		e := s.approve(ch)
		held := s.revoke("identity:/human/bob")
		s.add(held)
		e.Actor = s.alices() // whoever it is: bob's no longer counts
		e.Signature.Person = "carol"
		s.addAt(since+60_000, e)
		s.addAt(since+aDay, s.destroyed(ch, since+aDay, "alice"))
	}, "waits until"},
	{invariant.Lifecycle, "an approval of what has all it needs", func(s *scene) {
		ch, _ := s.waits()
		s.add(s.approve(ch))
	}, "has its approvals, and waits"},
	{invariant.Lifecycle, "an approval that comes too late", func(s *scene) {
		ch, _ := s.waits()
		s.add(s.revoke("identity:/human/bob"))
		at := s.now() + 3_700_000
		e := s.approve(ch)
		s.addAt(at, e)
	}, "could be approved until"},
	{invariant.Separated, "a shorter wait than the bundle asks for", func(s *scene) {
		e := s.propose(policy.ActDestroy, "db/w#2")
		e.Delay = 60
		s.add(e)
	}, "the bundle in force asks for 24h0m0s"},
	{invariant.Separated, "a wait without end", func(s *scene) {
		e := s.propose(policy.ActDestroy, "db/w#2")
		e.Delay = 1 << 40
		s.add(e)
	}, "a change does not wait for"},
	{invariant.Permitted, "carried out by who neither proposed it nor may approve it", func(s *scene) {
		ch, since := s.waits()
		at := since + aDay
		e := s.destroyed(ch, at, "bob")
		e.Actor = last(s, func(_ uint64, x *state.SecretReleased) bool { return x.Actor.Node != "" }).Actor
		s.addAt(at, e)
	}, "is not a person"},
}
