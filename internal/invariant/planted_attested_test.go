package invariant_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

const (
	liveMachine = "/node/tpm/m-2"
	liveBox     = "/node/tpm/box-2"
	liveJob     = "/ci/gitlab/7/42"
)

// opened copies the entry of an index, as a new session by fresh evidence.
func (s *scene) opened(index uint64) *state.SessionOpened {
	e := s.fresh(last(s, func(i uint64, _ *state.SessionOpened) bool { return i == index }))
	e.Root, e.Redelivery = 0, false
	return e
}

// machine is a legal new proof of the live machine, job one of a new job, and box one of the box, whose evidence was used before.
func (s *scene) machine() *state.SessionOpened { return s.opened(s.r.cast.Machine.Opened.Index) }
func (s *scene) job() *state.SessionOpened     { return s.opened(s.r.cast.Job.Opened.Index) }

func (s *scene) box(name string) *state.SessionOpened {
	e := s.opened(s.r.cast.Box.Opened.Index)
	e.Identity, e.Claims["name"] = "/node/tpm/"+name, name
	return e
}

// used is the legal use that goes with a session.
func (s *scene) used(name string, index uint64, x *state.SessionOpened) *state.EvidenceUsed {
	e := &state.EvidenceUsed{Use: x.Method + ":" + name, Key: x.Key, Session: index, Identity: x.Identity}
	if strings.HasPrefix(x.Identity, "/ci/") {
		e.Until = s.next() + 10*minute
	}
	return e
}

// first plants a session and the use of evidence that opened it.
func (s *scene) first(name string, x *state.SessionOpened) uint64 {
	at := s.add(x)
	s.add(s.used(name, at, x))
	return at
}

// renewJob is a legal renewal of a job's session.
func (s *scene) renewJob(from uint64, x *state.SessionOpened) *state.SessionOpened {
	e := *x
	s.fresh(&e)
	e.Via, e.From, e.Root, e.Counter, e.Redelivery, e.Evidence = "renew", from, from, x.Counter+1, false, state.Digest{}
	if x.Root != 0 {
		e.Root = x.Root
	}
	return &e
}

// continued is a legal renewal by possession of what fresh evidence enrolled.
func (s *scene) continued(from uint64, x *state.SessionOpened) *state.SessionOpened {
	e := s.renewJob(from, x)
	e.Evidence = x.Evidence
	return e
}

// quarantine is the legal quarantine of the live machine.
func (s *scene) quarantine() *state.NodeQuarantined {
	e := last[*state.NodeQuarantined](s, nil)
	x := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == s.r.cast.Machine.Opened.Index })
	e.Identity, e.Session, e.Evidence, e.Claims["name"], e.Ruling = liveMachine, s.r.cast.Machine.Opened.Index, x.Evidence, "m-2", s.ruling()
	e.Challenge = fmt.Sprintf("c:planted-%d", len(s.entries))
	return e
}

// act is a change about an act that bob approved.
func (s *scene) act(action, target string) uint64 {
	ch := s.add(s.propose(action, target))
	s.add(s.approve(ch))
	return ch
}

// stop cuts off and holds.
func (s *scene) stop(scope string) uint64 {
	e := s.revoke(scope)
	e.Hold = true
	return s.add(e)
}

// ending is a legal end of the live machine after it was stopped at an index.
func (s *scene) ending(cut uint64) *state.IdentityDecommissioned {
	ch := s.act("identity.decommission", liveMachine)
	return &state.IdentityDecommissioned{Identity: liveMachine, Cutoff: cut, Horizon: s.next() + 1440*minute, Change: ch, Ruling: s.ruling()}
}

// floor brings agents settings into force, or whatever stands in the environment's file below what is there.
func (s *scene) floor(agents string) {
	s.t.Helper()
	s.bring("environment.yaml", string(s.r.files["environment.yaml"])+agents)
}

func TestAttestedPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.add(s.machine())
	first := s.box("box-9")
	at := s.first("box-9", first)
	s.add(s.again(first, at))
	s.add(&state.EvidenceForgotten{Use: "tpm:box-9", Change: s.act("evidence.forget", "tpm:box-9")})
	rebuilt := s.box("box-9")
	s.first("box-9", rebuilt)
	for _, token := range []string{"one", "two"} { // two jobs of one identity
		x := s.job()
		at := s.first(token, x)
		s.add(s.again(x, at))
		next := s.renewJob(at, x)
		s.add(next)
		lost := *next
		key := lost.Key
		s.fresh(&lost)
		lost.Key, lost.Redelivery = key, true
		s.add(&lost)
	}
	q := s.quarantine()
	q.Session = uint64(len(s.r.entries)) // the newest proof
	held := s.add(q)
	s.add(&state.HoldLifted{Scope: "node:" + liveMachine, Hold: held, Change: s.act("hold.lift", hold("node:"+liveMachine, held))})
	s.add(s.machine())
	s.add(s.ending(s.stop("node:" + liveMachine)))
	s.add(s.ownLease())
	for _, v := range s.found {
		t.Error(v)
	}
}

// attestedPlants are violations about evidence, quarantines and ends.
var attestedPlants = []planted{
	{invariant.Attested, "a use of evidence by somebody else's session", func(s *scene) {
		x := s.box("box-9")
		e := s.used("box-9", s.add(x), x)
		e.Identity = liveBox
		s.add(e)
	}, "opened with it"},
	{invariant.Attested, "a use of evidence by another key", func(s *scene) {
		x := s.box("box-9")
		e := s.used("box-9", s.add(x), x)
		e.Key[1]++
		s.add(e)
	}, "opened with it"},
	{invariant.Attested, "a use of evidence by a renewal", func(s *scene) {
		x := s.job()
		next := s.renewJob(s.first("one", x), x)
		s.add(s.used("two", s.add(next), next))
	}, "opened with it"},
	{invariant.Attested, "a use of evidence long after its session", func(s *scene) {
		x := s.box("box-9")
		at := s.add(x)
		s.add(s.machine())
		s.add(s.machine())
		s.add(s.used("box-9", at, x))
	}, "opened just now"},
	{invariant.Attested, "a use of evidence that was over", func(s *scene) {
		x := s.job()
		e := s.used("one", s.add(x), x)
		e.Until = s.next()
		s.add(e)
	}, "the evidence was good until"},
	{invariant.Attested, "a use of another method's evidence", func(s *scene) {
		x := s.box("box-9")
		e := s.used("box-9", s.add(x), x)
		e.Use = "aws:box-9"
		s.add(e)
	}, "it is not named after the method"},
	{invariant.ExactlyOnce, "evidence that is used twice", func(s *scene) {
		s.first("box-9", s.box("box-9"))
		s.first("box-9", s.box("box-9"))
	}, "the evidence was used by session"},
	{invariant.ExactlyOnce, "evidence of the history that is used again", func(s *scene) { s.first("box-2", s.box("box-2")) }, "the evidence was used by session"},

	{invariant.Attested, "an anchor of another method", func(s *scene) {
		x := s.machine()
		x.Anchor = "x509:fleet"
		s.add(x)
	}, "it was proved by tpm, and vouched for by"},
	{invariant.Attested, "a lost reply for which nothing was used", func(s *scene) {
		x := s.machine()
		x.Root, x.Redelivery, x.Key = s.r.cast.Machine.Opened.Index, true, last(s, func(i uint64, _ *state.SessionOpened) bool { return i == s.r.cast.Machine.Opened.Index }).Key
		s.add(x)
	}, "fresh evidence derives from nothing older"},
	{invariant.Attested, "a lost reply for another key", func(s *scene) {
		x := s.box("box-9")
		e := s.again(x, s.first("box-9", x))
		e.Key[1]++
		s.add(e)
	}, "the evidence was used by entry"},
	{invariant.Attested, "a lost reply that does not say so", func(s *scene) {
		x := s.box("box-9")
		e := s.again(x, s.first("box-9", x))
		e.Redelivery = false
		s.add(e)
	}, "the evidence was used by entry"},
	{invariant.Attested, "a lost reply after the evidence was forgotten", func(s *scene) {
		x := s.box("box-9")
		at := s.first("box-9", x)
		s.add(&state.EvidenceForgotten{Use: "tpm:box-9", Change: s.act("evidence.forget", "tpm:box-9")})
		s.add(s.again(x, at))
	}, "fresh evidence derives from nothing older"},
	{invariant.Attested, "a lost reply of an enrolment before", func(s *scene) {
		x := s.box("box-9")
		at := s.first("box-9", x)
		s.first("box-9b", s.box("box-9"))
		s.add(s.again(x, at))
	}, "/node/tpm/box-9 was replaced by a newer one"},
	{invariant.Attested, "a lost reply after a renewal", func(s *scene) {
		x := s.box("box-9")
		at := s.first("box-9", x)
		s.add(s.continued(at, x))
		s.add(s.again(x, at))
	}, "the evidence gives generation 0"},
	{invariant.Attested, "a lost reply that prolongs the enrolment", func(s *scene) {
		x := s.box("box-9")
		x.Lifetime = s.next() + 60*minute
		e := s.again(x, s.first("box-9", x))
		e.Lifetime += 1000
		s.add(e)
	}, "it prolongs the enrolment of /node/tpm/box-9"},
	{invariant.Attested, "a lost reply of what was given back", func(s *scene) {
		x := s.box("box-9")
		at := s.first("box-9", x)
		s.add(&state.SessionClosed{Session: at, Actor: state.Actor{Identity: x.Identity, Session: at}})
		s.add(s.again(x, at))
	}, "the enrolment of /node/tpm/box-9 was given back"},

	{invariant.Attested, "a job's lost reply after its logout", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		s.add(&state.SessionClosed{Session: at, Actor: state.Actor{Identity: x.Identity, Session: at}})
		s.add(s.again(x, at))
	}, "is over, was renewed, or ends sooner"},
	{invariant.Attested, "a job's lost reply after its renewal", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		s.add(s.renewJob(at, x))
		s.add(s.again(x, at))
	}, "is over, was renewed, or ends sooner"},
	{invariant.Attested, "a job's lost reply after the renewal of what came of another reply", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		twin := s.again(x, at)
		s.add(s.renewJob(s.add(twin), twin))
		s.add(s.again(x, at))
	}, "is over, was renewed, or ends sooner"},
	{invariant.Attested, "a job's lost reply that prolongs it", func(s *scene) {
		x := s.job()
		e := s.again(x, s.first("one", x))
		e.Lifetime += 1000
		s.add(e)
	}, "is over, was renewed, or ends sooner"},
	{invariant.Attested, "a renewal of a job that never was", func(s *scene) {
		x := s.job()
		s.add(s.renewJob(7, x))
	}, "has no session 7 to renew"},
	{invariant.Attested, "a job's renewal with more assurance", func(s *scene) {
		x := s.job()
		e := s.renewJob(s.first("one", x), x)
		e.Assurance = "hardware"
		s.add(e)
	}, "it does not carry what session"},
	{invariant.Attested, "a job's renewal that is counted wrong", func(s *scene) {
		x := s.job()
		e := s.renewJob(s.first("one", x), x)
		e.Counter++
		s.add(e)
	}, "it does not carry what session"},
	{invariant.Attested, "a job's renewal that derives from another job", func(s *scene) {
		s.first("one", s.job())
		x := s.job()
		e := s.renewJob(s.first("two", x), x)
		e.Root = uint64(len(s.r.entries))
		s.add(e)
	}, "it does not carry what session"},
	{invariant.Attested, "a job that lives longer with each renewal", func(s *scene) {
		x := s.job()
		e := s.renewJob(s.first("one", x), x)
		e.Lifetime += 1000
		s.add(e)
	}, "it prolongs the job"},
	{invariant.Attested, "a job without an end", func(s *scene) {
		x := s.job()
		e := s.renewJob(s.first("one", x), x)
		e.Lifetime = 0
		s.add(e)
	}, "it prolongs the job"},
	{invariant.Attested, "a renewal of a job that is over", func(s *scene) {
		x := s.job()
		x.Lifetime = s.next() + 20*minute
		at := s.first("one", x)
		s.addAt(x.Lifetime, s.renewJob(at, x))
	}, "it prolongs the job"},
	{invariant.Attested, "a renewal of a job that gave its session back", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		s.add(&state.SessionClosed{Session: at, Actor: state.Actor{Identity: x.Identity, Session: at}})
		s.add(s.renewJob(at, x))
	}, "was given back"},
	{invariant.Attested, "a job that two keys renew", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		s.add(s.renewJob(at, x))
		s.add(s.renewJob(at, x))
	}, "was renewed by another key"},
	{invariant.Attested, "a job of which two keys renew two replies", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		twin := s.again(x, at)
		second := s.add(twin)
		s.add(s.renewJob(second, twin))
		s.add(s.renewJob(at, x))
	}, "was renewed by another key"},
	{invariant.Attested, "a job of which two keys renew two replies to a renewal", func(s *scene) {
		x := s.job()
		first := s.renewJob(s.first("one", x), x)
		at := s.add(first)
		twin := *first
		s.fresh(&twin)
		twin.Key, twin.Redelivery = first.Key, true
		second := s.add(&twin)
		s.add(s.renewJob(at, first))
		s.add(s.renewJob(second, &twin))
	}, "was renewed by another key"},
	{invariant.Attested, "a renewal of a job of which another reply was given back", func(s *scene) {
		x := s.job()
		at := s.first("one", x)
		second := s.add(s.again(x, at))
		s.add(&state.SessionClosed{Session: second, Actor: state.Actor{Identity: x.Identity, Session: second}})
		s.add(s.renewJob(at, x))
	}, "was given back"},

	{invariant.Attested, "a machine quarantined by another key", func(s *scene) { e := s.quarantine(); e.Evidence[0]++; s.add(e) }, "is not enrolled by that key"},
	{invariant.Attested, "a machine quarantined by no key", func(s *scene) { e := s.quarantine(); e.Evidence = state.Digest{}; s.add(e) }, "is not enrolled by that key"},
	{invariant.Attested, "a machine quarantined by a method that it did not use", func(s *scene) { e := s.quarantine(); e.Method = "x509"; s.add(e) }, "is not enrolled by that key"},
	{invariant.Attested, "a machine quarantined that nobody knows", func(s *scene) {
		e := s.quarantine()
		e.Identity, e.Claims["name"] = "/node/tpm/m-9", "m-9"
		s.add(e)
	}, "is not enrolled by that key"},
	{invariant.Attested, "a machine quarantined that is as it should be", func(s *scene) {
		e := s.quarantine()
		e.Claims["boot"] = "good"
		s.add(e)
	}, "nothing that is required of /node/tpm/m-2 is wrong"},
	{invariant.Attested, "a machine quarantined for what another did", func(s *scene) { e := s.quarantine(); e.Claims["name"] = "m-3"; s.add(e) }, "these claims are /node/tpm/m-3"},
	{invariant.Attested, "a machine quarantined by a rule that is not there", func(s *scene) { e := s.quarantine(); e.Rule = "nodes"; s.add(e) }, "these claims are /node/tpm/m-2 (machines)"},
	{invariant.Attested, "a machine quarantined where its rule refuses", func(s *scene) {
		s.bring("identities/proved.yaml", strings.Replace(string(s.r.files["identities/proved.yaml"]), "otherwise: quarantine", "otherwise: refuse", 1))
		s.add(s.quarantine())
	}, "the rule machines refuses, and quarantines nobody"},
	{invariant.Revoked, "a session of a machine in quarantine", func(s *scene) {
		s.add(s.quarantine())
		s.add(s.machine())
	}, "is held by entry"},
	{invariant.Revoked, "a machine of the history that goes on in its quarantine", func(s *scene) {
		x := s.machine()
		x.Identity, x.Claims["name"] = s.r.cast.Quarantined, "m-3"
		s.add(x)
	}, "is held by entry"},

	{invariant.Revoked, "a horizon that forgets a machine's own lease", func(s *scene) {
		e := s.ownLease()
		s.add(e)
		r := s.revoke("node:" + e.Actor.Identity)
		r.Horizon = e.Expires - 1
		s.add(r)
	}, "lives until"},

	{invariant.Lifecycle, "evidence forgotten that was not used", func(s *scene) {
		s.add(&state.EvidenceForgotten{Use: "tpm:nobody", Change: s.act("evidence.forget", "tpm:nobody")})
	}, "the evidence was not used"},
	{invariant.Lifecycle, "other evidence forgotten than was approved", func(s *scene) {
		s.add(&state.EvidenceForgotten{Use: "tpm:box-2", Change: s.act("evidence.forget", "tpm:box-3")})
	}, "is about other evidence"},
	{invariant.Lifecycle, "evidence forgotten by a change that lifts a hold", func(s *scene) {
		s.add(&state.EvidenceForgotten{Use: "tpm:box-2", Change: s.act("hold.lift", "tpm:box-2")})
	}, "is a hold.lift"},
	{invariant.Separated, "evidence forgotten that nobody approved", func(s *scene) {
		s.add(&state.EvidenceForgotten{Use: "tpm:box-2", Change: s.add(s.propose("evidence.forget", "tpm:box-2"))})
	}, "has the approval of 0 persons"},
	{invariant.Revoked, "evidence forgotten after the approver was cut off", func(s *scene) {
		ch := s.act("evidence.forget", "tpm:box-2")
		s.add(s.revoke("identity:/human/bob"))
		s.add(&state.EvidenceForgotten{Use: "tpm:box-2", Change: ch})
	}, ""},

	{invariant.Lifecycle, "an end of another identity than was approved", func(s *scene) {
		cut := s.stop("node:" + liveMachine)
		e := s.ending(cut)
		e.Change = s.act("identity.decommission", liveBox)
		s.add(e)
	}, "is about /node/tpm/box-2"},
	{invariant.Lifecycle, "an end of who ended before", func(s *scene) {
		cut := s.stop("node:" + liveMachine)
		s.add(s.ending(cut))
		s.add(s.ending(cut))
	}, "was decommissioned by entry"},
	{invariant.Lifecycle, "a session of who ended", func(s *scene) {
		at := s.stop("node:" + liveMachine)
		s.add(s.ending(at))
		s.add(&state.HoldLifted{Scope: "node:" + liveMachine, Hold: at, Change: s.act("hold.lift", hold("node:"+liveMachine, at))})
		s.add(s.machine())
	}, "was decommissioned by entry"},
	{invariant.Lifecycle, "a session of who ended in the history", func(s *scene) {
		x := s.machine()
		x.Identity, x.Claims["name"] = s.r.cast.Ended, "box-1"
		s.add(x)
	}, "was decommissioned by entry"},
	{invariant.Lifecycle, "an end without a hold", func(s *scene) { s.add(s.ending(s.add(s.revoke("node:" + liveMachine)))) }, "there is no hold on"},
	{invariant.Lifecycle, "an end under a hold that runs out", func(s *scene) {
		s.limit(0)
		e := s.revoke("node:" + liveMachine)
		e.Hold, e.Until, e.Ruling = true, s.next()+15*minute, s.ruling()
		cut := s.add(e)
		s.found = nil
		s.add(s.ending(cut))
	}, "there is no hold on"},
	{invariant.Lifecycle, "an end without a cutoff", func(s *scene) { s.stop("node:" + liveMachine); s.add(s.ending(7)) }, "entry 7 is no cutoff on"},
	{invariant.Lifecycle, "an end by a cutoff of another", func(s *scene) {
		other := s.stop("node:" + liveBox)
		s.stop("node:" + liveMachine)
		s.add(s.ending(other))
	}, "is no cutoff on"},
	{invariant.Lifecycle, "an end beside a live session", func(s *scene) {
		held := s.revoke("node:" + liveMachine)
		held.Hold, held.Cutoff = true, false
		s.add(s.ending(s.add(held)))
	}, "of /node/tpm/m-2 lives"},
	{invariant.Lifecycle, "an end beside a live lease", func(s *scene) {
		e := s.release()
		held := s.revoke("node:" + e.Actor.Node)
		held.Hold, held.Cutoff = true, false
		end := s.ending(s.add(held))
		end.Identity = e.Actor.Node
		s.add(end)
	}, "lease "},
	{invariant.Lifecycle, "an end that says that something is left", func(s *scene) {
		e := s.ending(s.stop("node:" + liveMachine))
		e.Leases = 1
		s.add(e)
	}, "it says itself that something is left"},
	{invariant.Lifecycle, "an end that is believed less long than its SVID", func(s *scene) {
		x := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == s.r.cast.Machine.Opened.Index })
		e := s.ending(s.stop("node:" + liveMachine))
		e.Horizon = x.Expires - 1
		s.add(e)
	}, "after the horizon"},
	{invariant.Lifecycle, "an end that is believed less long than a lease", func(s *scene) {
		e := s.release()
		for _, entry := range s.entries {
			if x, ok := entry.Event.(*state.SessionOpened); ok && (x.Identity == e.Actor.Node || x.Node == e.Actor.Node) {
				e.Expires = max(e.Expires, x.Expires+1)
			}
		}
		s.add(e)
		end := s.ending(s.stop("node:" + e.Actor.Node))
		end.Identity, end.Horizon = e.Actor.Node, e.Expires-1
		s.add(end)
	}, "after the horizon"},
	{invariant.Separated, "an end that nobody approved", func(s *scene) {
		cut := s.stop("node:" + liveMachine)
		ch := s.add(s.propose("identity.decommission", liveMachine))
		s.add(&state.IdentityDecommissioned{Identity: liveMachine, Cutoff: cut, Change: ch, Ruling: s.ruling()})
	}, "has the approval of 0 persons"},

	{invariant.Monotonic, "an end before its protocol", func(s *scene) {
		c := s.r.checker()
		s.found = append(s.found, c.Feed(0, s.oldGenesis())...)
		e := &state.Entry{Time: s.entries[1].Time, Event: &state.IdentityDecommissioned{Identity: liveMachine, Ruling: s.ruling()}}
		s.found = append(s.found, c.Feed(1, e)...)
	}, "protocol 1 is in force"},
	{invariant.Monotonic, "a floor of agents that is lowered", func(s *scene) {
		s.floor("  agents: {minimum: 1.4.0}\n")
		s.lower("  agents: {minimum: 1.3.9}\n")
	}, "it asks less of agents than"},
	{invariant.Monotonic, "a floor of agents that is dropped", func(s *scene) {
		s.floor("  agents: {minimum: 1.4.0, rollback: outage of June}\n")
		s.lower("  agents: {rollback: outage of June}\n")
	}, "it asks less of agents than"},
}

// lower brings a bundle into force that may be a violation.
func (s *scene) lower(agents string) {
	b, p := s.inForce()
	files := map[string][]byte{}
	for path, data := range s.r.files {
		files[path] = data
	}
	files["environment.yaml"] = []byte(string(files["environment.yaml"]) + agents)
	b.Manifest[0]++
	p.Manifest, p.Base, p.Ruling = b.Manifest, b.Previous, s.ruling()
	s.r.programs[b.Manifest] = compileFiles(s.t, files)
	b.Change = s.add(p)
	e := s.approve(b.Change)
	e.Ruling = s.ruling()
	s.add(e)
	s.add(b)
}

// ownLease is a legal first release to the live node itself.
func (s *scene) ownLease() *state.SecretReleased {
	e := last(s, func(_ uint64, e *state.SecretReleased) bool { return e.Secret == "node/seed" })
	x := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == s.r.cast.Node.Opened.Index })
	e.Actor = state.Actor{Identity: x.Identity, Session: s.r.cast.Node.Opened.Index}
	e.Root, e.Anchor, e.Ruling.Generation, e.Ruling.Bundle = s.r.cast.Node.Opened.Index, x.Anchor, s.ruling().Generation, s.ruling().Bundle
	life := e.Max - last(s, func(_ uint64, e *state.SecretReleased) bool { return e.Secret == "node/seed" }).Expires
	e.Expires = s.next() + 60*minute
	e.Max = e.Expires + life
	return e
}
