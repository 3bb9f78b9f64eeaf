package invariant_test

import (
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// movedTo is an approved change about another root key, and the entry that it leads to.
func (s *scene) movedTo(holder string) *state.CustodyMoved {
	s.t.Helper()
	kind, id, _ := strings.Cut(holder, ":")
	st := s.state()
	from, was, _ := strings.Cut(st.Custody.Holder, ":")
	ch := s.add(s.propose(policy.ActMoveCustody, holder))
	s.add(s.approve(ch))
	s.legal()
	return &state.CustodyMoved{
		From: state.RootHolder{Kind: from, ID: was}, To: state.RootHolder{Kind: kind, ID: id}, Keys: st.KEKs(), Digest: state.Digest{1},
		Change: ch, Actor: s.approve(ch).Actor, Ruling: s.ruling(),
	}
}

const elsewhere = "file:0123456789abcdef"

func TestCustodyPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	e := s.movedTo(elsewhere)
	s.add(e)
	for _, v := range s.found {
		t.Error(v)
	}
}

// custodyPlants are moves of the root key's custody that are none.
var custodyPlants = []planted{
	{invariant.Lifecycle, "a move from where the keys are not", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.From.ID += "0"
		s.add(e)
	}, "and they are under"},
	{invariant.Lifecycle, "a move from where the keys were before", func(s *scene) {
		e := s.movedTo(elsewhere)
		s.add(e)
		again := s.movedTo("file:other")
		again.From = e.From
		s.add(again)
	}, "and they are under"},
	{invariant.Lifecycle, "a move to where the keys are", func(s *scene) {
		e := s.movedTo(s.state().Custody.Holder)
		s.add(e)
	}, "to where they are"},
	{invariant.Lifecycle, "a move to elsewhere than was approved", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.To.ID += "0"
		s.add(e)
	}, "is not about the root holder"},
	{invariant.Lifecycle, "a move by a change about something else", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.Change = s.add(s.propose(policy.ActForget, elsewhere))
		s.add(s.approve(e.Change))
		s.add(e)
	}, "is a evidence.forget"},
	{invariant.Lifecycle, "a move twice", func(s *scene) {
		e := s.movedTo(elsewhere)
		s.add(e)
		s.add(e)
	}, "and they are under"},
	{invariant.Lifecycle, "a move by a change that was carried out", func(s *scene) {
		from := s.state().Custody.Holder
		e := s.movedTo(elsewhere)
		s.add(e)
		back := s.movedTo(from)
		back.From = e.To
		s.add(back)
		s.legal()
		s.add(e)
	}, "is done"},
	{invariant.Lifecycle, "a move by a change of before the last one", func(s *scene) {
		from := s.state().Custody.Holder
		e := s.movedTo(elsewhere)
		other := *e
		other.Change = s.add(s.propose(policy.ActMoveCustody, elsewhere))
		s.add(s.approve(other.Change))
		s.add(e)
		back := s.movedTo(from)
		back.From = e.To
		s.add(back)
		s.legal()
		s.add(&other)
	}, "is superseded"},
	{invariant.Lifecycle, "an approval of a change of before the last move", func(s *scene) {
		e := s.movedTo(elsewhere)
		ch := s.add(s.propose(policy.ActMoveCustody, "file:other"))
		s.add(e)
		s.legal()
		s.add(s.approve(ch))
	}, "is superseded"},
	{invariant.Lifecycle, "a move for the bundle before", func(s *scene) {
		e := s.movedTo(elsewhere)
		s.bring("README.md", "another")
		e.Ruling = s.ruling()
		s.add(e)
	}, "was made for another bundle than the one in force"},
	{invariant.Lifecycle, "a key that is left behind", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.Keys--
		s.add(e)
	}, "keys, and there are"},
	{invariant.Lifecycle, "a move that does not say to what", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.Digest = state.Digest{}
		s.add(e)
	}, "what the keys are wrapped as"},
	{invariant.Lifecycle, "a move to a root key for development, in production", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.To.DevelopmentOnly = true
		g := *s.entries[0].Event.(*state.Genesis)
		g.Class = "production"
		s.c = s.r.checker() // from the beginning, with that
		s.c.Feed(0, &state.Entry{Time: s.entries[0].Time, Event: &g})
		for i, x := range s.entries[1:] {
			s.c.Feed(uint64(i+1), x)
		}
		s.add(e)
	}, "is for the development class only"},
	{invariant.Separated, "a move that nobody approved", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.Change = s.add(s.propose(policy.ActMoveCustody, elsewhere))
		s.add(e)
	}, "has the approval of 0 persons"},
	{invariant.Separated, "a move that does not wait", func(s *scene) {
		e := s.movedTo(elsewhere)
		s.bring("environment.yaml", "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: "+s.state().Env.Name+"}\nspec: {class: development, approvals: {required: 1, acts: [{act: custody.move, delay: 1h}]}}\n")
		e.Change = s.add(s.propose(policy.ActMoveCustody, elsewhere))
		s.add(s.approve(e.Change))
		e.Ruling = s.ruling()
		s.add(e)
	}, "waits until"},
	{invariant.Revoked, "a move by an approval that was revoked", func(s *scene) {
		e := s.movedTo(elsewhere)
		s.add(s.revoke("identity:/human/bob"))
		e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
		s.add(e)
	}, "the others are revoked"},
	{invariant.Permitted, "a move by a machine", func(s *scene) {
		e := s.movedTo(elsewhere)
		e.Actor = s.release().Actor
		s.add(e)
	}, "is not a person"},
}
