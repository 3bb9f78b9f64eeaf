package invariant_test

import (
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

const quarantining = `apiVersion: bailment/v1
kind: Identity
metadata: {name: nodes}
spec:
  method: join-token
  path: /node/join-token/{claims.name}
  require: claims.name == "never"
  otherwise: quarantine
`

// quarantineByToken is a legal quarantine of the live node, by the key of its newest session.
func (s *scene) quarantineByToken() *state.NodeQuarantined {
	s.t.Helper()
	const path = "/node/join-token/web-2"
	index := uint64(0)
	x := last(s, func(i uint64, e *state.SessionOpened) bool {
		if e.Identity == path && index == 0 {
			index = i
		}
		return e.Identity == path
	})
	s.bring("identities/node.yaml", quarantining)
	return &state.NodeQuarantined{
		Identity: path, Session: index, Method: x.Method, Anchor: x.Anchor, Evidence: x.Evidence, Use: x.Anchor, Key: x.Key, Claims: x.Claims,
		Rule: "nodes", Why: "planted", Ruling: s.ruling(),
	}
}

func TestQuarantinePlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.add(s.quarantineByToken())
	for _, v := range s.found {
		t.Error(v)
	}
}

// quarantinePlants are machines that are held by what is no proof of theirs.
var quarantinePlants = []planted{
	{invariant.Attested, "a quarantine by a join token that another key spent", func(s *scene) {
		e := s.quarantineByToken()
		e.Key[0]++
		s.add(e)
	}, "the proof is a join token that entry"},
	{invariant.Attested, "a quarantine by evidence that another key used", func(s *scene) {
		first := s.attest()
		at := s.add(first)
		s.add(&state.EvidenceUsed{Use: "join-token:instance", Key: first.Key, Session: at, Identity: first.Identity})
		e := s.quarantineByToken()
		e.Use = "join-token:instance"
		s.add(e)
	}, "the proof was used by session"},
}
