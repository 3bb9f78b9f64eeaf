package invariant_test

import (
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

const quarantiningTokens = `apiVersion: bailment/v1
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
	s.bring("identities/node.yaml", quarantiningTokens)
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

// oncePlants are machines that are held by what is no proof of theirs, and evidence that counts once and is not counted.
var oncePlants = []planted{
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
	{invariant.ExactlyOnce, "a quarantine by an answer to a challenge that opened a session", func(s *scene) {
		e, x := s.quarantineByToken(), s.attest()
		s.add(x)
		e.Challenge, e.ChallengeTo = x.Challenge, x.ChallengeTo
		s.add(e)
	}, "the challenge that its proof answers was used before"},
	{invariant.ExactlyOnce, "a session by the challenge of a quarantine", func(s *scene) {
		e, x := s.quarantineByToken(), s.attest()
		e.Challenge, e.ChallengeTo = x.Challenge, x.ChallengeTo
		s.add(e)
		s.add(x)
	}, "its challenge was used before"},
	{invariant.Attested, "a machine quarantined by another of its cloud", func(s *scene) { s.quarantineInCloud("gcp", "8") }, "not of the one that is enrolled"},
	{invariant.Attested, "a VM quarantined by a quote that names none", func(s *scene) { s.quarantineInCloud("tdx", "7") }, "not of the one that is enrolled"},
	{invariant.Attested, "an instance's session without a use of its document", func(s *scene) {
		s.add(s.instance())
		s.add(s.release())
	}, "and its use is not entered"},
	{invariant.Attested, "a use of another session's evidence", func(s *scene) {
		s.add(s.instance())
		s.add(&state.EvidenceUsed{Use: "aws:i-2", Session: s.r.cast.Node.Opened.Index, Identity: "/node/join-token/web-2"})
	}, "it is not the use of session"},
	{invariant.Attested, "a session by a join token that is not named", func(s *scene) {
		e := s.attest()
		e.Token = ""
		s.add(e)
	}, "it names no join token"},
}

// instance is a first session of an EC2 instance. The bundle has no rule for it, which is not what it is about.
func (s *scene) instance() *state.SessionOpened {
	s.t.Helper()
	e := s.attest()
	e.Token, e.Method, e.Anchor, e.Identity = "", "aws", "aws:corp", "/node/aws/corp/i-1"
	return e
}

// quarantineInCloud enrols instance 7 of a cloud, and quarantines it by the evidence of some instance. The bundle has no rule for it.
func (s *scene) quarantineInCloud(method, instance string) {
	s.t.Helper()
	e := s.machine()
	e.Method, e.Anchor, e.Identity = method, method+":corp", "/node/"+method+"/corp"
	e.Claims = map[string]any{"project_number": "1", "instance_id": "7"}
	q := s.quarantine()
	q.Identity, q.Method, q.Anchor, q.Evidence, q.Session = e.Identity, method, e.Anchor, e.Evidence, s.add(e)
	q.Challenge, q.Claims = "c:planted-cloud", map[string]any{"project_number": "1", "instance_id": instance}
	s.add(q)
}

func TestQuarantineInCloudStartsLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.quarantineInCloud("gcp", "7")
	for _, v := range s.found {
		if strings.Contains(v.Detail, "not of the one that is enrolled") {
			t.Error(v)
		}
	}
}

// The use of evidence follows the session that it opened, and the protocol may be raised between.
func TestUseFollowsItsSession(t *testing.T) {
	for _, raised := range []bool{false, true} {
		s := newScene(t, history(t))
		e := s.instance()
		at := s.add(e)
		if raised {
			s.add(&state.ProtocolRaised{Version: state.Protocol})
		}
		s.add(&state.EvidenceUsed{Use: "aws:i-1", Key: e.Key, Session: at, Identity: e.Identity})
		s.add(s.release())
		for _, v := range s.found {
			if v.Invariant == invariant.Attested {
				t.Error(raised, v)
			}
		}
	}
}
