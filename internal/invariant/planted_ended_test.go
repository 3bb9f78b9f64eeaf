package invariant_test

import (
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// over is an approved change about the environment's end, and the entry that it leads to.
func (s *scene) over() *state.EnvironmentEnded {
	s.t.Helper()
	genesis := s.entries[0].Event.(*state.Genesis)
	st := s.state()
	target := state.EndTarget(genesis.Name, st.Env.Genesis)
	ch := s.add(s.propose(policy.ActDeleteEnvironment, target))
	s.add(s.approve(ch))
	s.legal()
	values, keys := st.Left()
	return &state.EnvironmentEnded{
		Environment: genesis.Name, Genesis: st.Env.Genesis, Change: ch, Values: values, Keys: keys, Actor: s.approve(ch).Actor, Ruling: s.ruling(),
	}
}

// state is what the reducers make of the real entries.
func (s *scene) state() *state.State {
	s.t.Helper()
	st := state.New()
	for i, e := range s.r.entries {
		if err := st.Apply(uint64(i), nil, e); err != nil {
			s.t.Fatal(err)
		}
	}
	return st
}

func TestEndPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.add(s.over())
	for _, v := range s.found {
		t.Error(v)
	}
}

// endPlants are ends of an environment that are none, and what comes after one.
var endPlants = []planted{
	{invariant.Lifecycle, "a release after the end", func(s *scene) {
		s.add(s.over())
		s.add(s.release())
	}, "the environment ended with entry"},
	{invariant.Lifecycle, "another end", func(s *scene) {
		e := s.over()
		s.add(e)
		s.add(e)
	}, "the environment ended with entry"},
	{invariant.Lifecycle, "a state root after the end", func(s *scene) {
		at := s.add(s.over())
		s.add(&state.StateRootSet{Index: at})
	}, "the environment ended with entry"},
	{invariant.Lifecycle, "the end of another environment", func(s *scene) {
		e := s.over()
		e.Genesis[0]++
		s.add(e)
	}, "it ends another environment"},
	{invariant.Lifecycle, "the end by a change about another one", func(s *scene) {
		e := s.over()
		e.Change = s.add(s.propose(policy.ActDeleteEnvironment, "other.example#"+e.Genesis.String()))
		s.add(s.approve(e.Change))
		s.add(e)
	}, "is not about the end of"},
	{invariant.Lifecycle, "the end by a change about something else", func(s *scene) {
		e := s.over()
		e.Change = s.add(s.propose(policy.ActForget, state.EndTarget(e.Environment, e.Genesis)))
		s.add(s.approve(e.Change))
		s.add(e)
	}, "is a evidence.forget"},
	{invariant.Lifecycle, "a value that is kept", func(s *scene) {
		e := s.over()
		e.Values--
		s.add(e)
	}, "values are gone, and there were"},
	{invariant.Lifecycle, "a key that is kept", func(s *scene) {
		e := s.over()
		e.Keys[0].Last--
		s.add(e)
	}, "are gone, and there were"},
	{invariant.Lifecycle, "a kind of keys that is kept", func(s *scene) {
		e := s.over()
		e.Keys = e.Keys[:len(e.Keys)-1]
		s.add(e)
	}, "kinds of keys"},
	{invariant.Separated, "an end that nobody approved", func(s *scene) {
		e := s.over()
		e.Change = s.add(s.propose(policy.ActDeleteEnvironment, state.EndTarget(e.Environment, e.Genesis)))
		s.add(e)
	}, "has the approval of 0 persons"},
	{invariant.Separated, "an end that does not wait", func(s *scene) {
		e := s.over()
		s.bring("environment.yaml", "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: "+e.Environment+"}\nspec: {class: development, approvals: {required: 1, acts: [{act: environment.delete, delay: 1h}]}}\n")
		e.Change = s.add(s.propose(policy.ActDeleteEnvironment, state.EndTarget(e.Environment, e.Genesis)))
		s.add(s.approve(e.Change))
		e.Ruling = s.ruling()
		s.add(e)
	}, "waits until"},
	{invariant.Revoked, "an end by an approval that was revoked", func(s *scene) {
		e := s.over()
		s.add(s.revoke("identity:/human/bob"))
		e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
		s.add(e)
	}, "the others are revoked"},
	{invariant.Permitted, "an end by a machine", func(s *scene) {
		e := s.over()
		e.Actor = s.release().Actor
		s.add(e)
	}, "is not a person"},
}
