package invariant_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/policy/policytest"
	"github.com/bailment/bailment/internal/state"
)

// scene is a real history and what is planted after it.
type scene struct {
	t       *testing.T
	r       *real
	entries []*state.Entry
	c       *invariant.Checker
	found   []invariant.Violation
}

// add plants an event a second after the last entry and judges it.
func (s *scene) add(ev state.Event) uint64 {
	return s.addAt(s.entries[len(s.entries)-1].Time+1000, ev)
}

func (s *scene) addAt(at state.Millis, ev state.Event) uint64 {
	index := uint64(len(s.entries))
	e := &state.Entry{Time: at, Event: ev}
	s.entries = append(s.entries, e)
	s.found = append(s.found, s.c.Feed(index, e)...)
	return index
}

// last copies the newest event of a type that fits.
func last[E state.Event](s *scene, fits func(index uint64, e E) bool) E {
	s.t.Helper()
	for i, x := range slices.Backward(s.entries) {
		if e, ok := x.Event.(E); ok && (fits == nil || fits(uint64(i), e)) {
			body, err := state.Encode(x)
			if err != nil {
				s.t.Fatal(err)
			}
			again, err := state.Decode(body)
			if err != nil {
				s.t.Fatal(err)
			}
			return again.Event.(E)
		}
	}
	s.t.Fatalf("the history has no such %T", *new(E))
	return *new(E)
}

// release is a legal release by the live workload under its lease of db/c.
func (s *scene) release() *state.SecretReleased {
	made := last(s, func(i uint64, _ *state.SecretReleased) bool { return i == s.r.cast.Lease })
	made.Lease, made.Max, made.Anchor, made.Idem = s.r.cast.Lease, 0, "", nil
	return made
}

// write is a legal write of the next version of db/c by alice.
func (s *scene) write() *state.SecretWritten {
	w := last(s, func(_ uint64, e *state.SecretWritten) bool { return e.Secret == "db/a" && e.State == state.Current })
	before := last(s, func(_ uint64, e *state.SecretWritten) bool { return e.Secret == "db/c" })
	w.Secret, w.Version, w.Retires, w.Destroys, w.Digest[0] = "db/c", before.Version+1, before.Version, nil, w.Digest[0]+1
	return w
}

// workload is a legal new session of the workload on the live node.
func (s *scene) workload() *state.SessionOpened {
	e := last(s, func(_ uint64, e *state.SessionOpened) bool { return e.Via == "workload" })
	return s.fresh(e)
}

// attest is a legal first use of the spare join token.
func (s *scene) attest() *state.SessionOpened {
	e := last(s, func(_ uint64, e *state.SessionOpened) bool {
		return e.Via == "attest" && e.Method == "join-token" && !e.Redelivery
	})
	e = s.fresh(e)
	e.Token, e.Identity, e.Claims = s.r.cast.Token, "/node/join-token/spare", map[string]any{"name": "spare"}
	e.Anchor = "join-token:" + s.r.cast.Token
	return e
}

// renew is a legal renewal of the live node.
func (s *scene) renew() *state.SessionOpened {
	e := last(s, func(_ uint64, e *state.SessionOpened) bool { return e.Via == "attest" && e.Method == "join-token" })
	e = s.fresh(e)
	e.Via, e.Token, e.Root, e.From, e.Counter = "renew", "", s.r.cast.Node.Opened.Index, s.r.cast.Node.Opened.Index, 1
	return e
}

// again is a legal retry, by the same key, of the attestation that a join token was used for at an index.
func (s *scene) again(first *state.SessionOpened, at uint64) *state.SessionOpened {
	e := *first
	s.fresh(&e)
	e.Key, e.Root, e.Redelivery = first.Key, at, true
	return &e
}

// bring brings a bundle into force that differs from the one before in one file.
func (s *scene) bring(path, text string) {
	s.t.Helper()
	b, p := s.inForce()
	files := maps.Clone(s.r.files)
	files[path] = []byte(text)
	s.r.programs[b.Manifest] = compileFiles(s.t, files)
	b.Change = s.add(p)
	s.add(s.approve(b.Change))
	s.add(b)
	if len(s.found) > 0 {
		s.t.Fatalf("the change itself is a violation: %v", s.found)
	}
}

// limit brings a blast limit into force.
func (s *scene) limit(n int) {
	s.t.Helper()
	s.bring("environment.yaml", strings.Replace(string(s.r.files["environment.yaml"]), "blastLimit: 50", fmt.Sprint("blastLimit: ", n), 1))
}

// ruling is that of the bundle in force.
func (s *scene) ruling() state.Ruling {
	r, b := s.write().Ruling, last[*state.BundleInForce](s, nil)
	r.Generation, r.Bundle = b.Generation, b.Manifest
	for _, x := range s.entries { // a canary begins one, and so does its end
		switch e := x.Event.(type) {
		case *state.RolloutMoved:
			r.Generation = max(r.Generation, e.Generation)
		case *state.RolloutEnded:
			r.Generation = max(r.Generation, e.Generation)
		}
	}
	return r
}

// fresh gives a session what each new one has of its own.
func (s *scene) fresh(e *state.SessionOpened) *state.SessionOpened {
	next := uint64(len(s.entries))
	e.Key = state.Digest{0: 0xff, 1: byte(next >> 8), 2: byte(next)}
	e.Serial = fmt.Sprintf("010000%016x0011223344556677", next)
	if e.Challenge != "" {
		e.Challenge = fmt.Sprintf("c:planted-%d", next)
	}
	return e
}

// propose is a legal proposal by alice to lift a hold, and approve bob's approval of it.
func (s *scene) propose(action, target string) *state.ChangeProposed {
	e := last(s, func(_ uint64, e *state.ChangeProposed) bool { return e.Action != "bundle" })
	e.Action, e.Target, e.Nonce = action, target, fmt.Sprintf("nonce-%d", len(s.entries))
	e.Expires = s.entries[len(s.entries)-1].Time + 3_600_000
	e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
	e.Ruling = s.ruling()
	e.Base, e.Delay = e.Ruling.Bundle, 0
	if prog := s.r.programs[e.Base]; prog != nil {
		e.Delay = int64(prog.Environment().Needs(action).Delay.Seconds())
	}
	return e
}

// hold is the target of a change about the hold of an entry.
func hold(scope string, index uint64) string { return fmt.Sprintf("%s#%d", scope, index) }

func (s *scene) approve(change uint64) *state.ChangeApproved {
	e := last[*state.ChangeApproved](s, nil)
	e.Change, e.Nonce = change, fmt.Sprintf("nonce-%d", len(s.entries))
	e.Actor = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
	e.Ruling = s.ruling()
	return e
}

// revoke is a legal revocation by alice.
func (s *scene) revoke(scope string) *state.RevocationRecorded {
	return &state.RevocationRecorded{
		Scope: scope, Cutoff: true, Horizon: s.entries[len(s.entries)-1].Time + 1e9, Reason: "planted",
		Actor: state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}, Ruling: s.write().Ruling,
	}
}

// token is a legal join token by alice.
func (s *scene) token(id string) *state.TokenCreated {
	e := last[*state.TokenCreated](s, nil)
	e.ID = id
	return e
}

// key is a legal rotation of the checkpoint key by alice.
func (s *scene) key() *state.KeyAdded {
	k := last(s, func(_ uint64, e *state.KeyAdded) bool { return strings.HasPrefix(e.Key.Name, "kek/") })
	k.Key.Name, k.Actor, k.Ruling = "kek/3", s.token("x").Actor, s.release().Ruling
	return k
}

// genesis judges another entry 0.
func (s *scene) genesis(change func(*state.Genesis)) {
	g := last[*state.Genesis](s, nil)
	change(g)
	s.found = append(s.found, s.r.checker().Feed(0, &state.Entry{Time: s.entries[0].Time, Event: g})...)
}

// inForce is a bundle that bob approved; the manifest is one of the past.
func (s *scene) inForce() (*state.BundleInForce, *state.ChangeProposed) {
	now := last[*state.BundleInForce](s, nil)
	p := s.propose("bundle", "")
	p.Manifest = now.Previous
	signed := p.Signature
	p.Bundle = &signed
	return &state.BundleInForce{Generation: now.Generation + 1, Manifest: now.Previous, Previous: now.Manifest, How: "change"}, p
}

// The legal forms that the plants start from are legal.
func TestPlantsStartLegal(t *testing.T) {
	r := history(t)
	s := newScene(t, r)
	s.add(s.release())
	s.add(s.write())
	s.add(s.workload())
	s.add(s.renew())
	first := s.attest()
	s.add(s.again(first, s.add(first)))
	s.add(s.token("planted"))
	s.add(s.key())
	held := s.revoke("issuer:x509:corp")
	held.Hold = true
	at := s.add(held)
	ch := s.add(s.propose("hold.lift", hold("issuer:x509:corp", at)))
	s.add(s.approve(ch))
	s.add(&state.HoldLifted{Scope: "issuer:x509:corp", Hold: at, Change: ch})
	b, p := s.inForce()
	b.Change = s.add(p)
	s.add(s.approve(b.Change))
	s.add(b)
	for _, v := range s.found {
		t.Error(v)
	}
}

func newScene(t *testing.T, r *real) *scene {
	t.Helper()
	s := &scene{t: t, r: r, c: r.checker()}
	for i, e := range r.entries {
		s.entries = append(s.entries, e)
		if v := s.c.Feed(uint64(i), e); len(v) > 0 {
			t.Fatalf("the history is not clean: %v", v)
		}
	}
	return s
}

// planted is a violation, as a defect would enter it.
type planted struct {
	invariant invariant.Name
	what      string
	plant     func(*scene)
	says      string // by which rule it must be found; empty: by any of the invariant
}

// plants are violations. Every invariant has at least two, and every rule one: see rulePlants.
var plants = []planted{
	{invariant.Attested, "a release in a session that never was", func(s *scene) {
		e := s.release()
		e.Actor.Session = 1 << 40
		s.add(e)
	}, ""},
	{invariant.Attested, "a release in somebody else's session", func(s *scene) {
		e := s.release()
		e.Actor.Session = s.r.cast.Alice.Opened.Index
		s.add(e)
	}, ""},
	{invariant.Attested, "a release after the session expired", func(s *scene) {
		s.addAt(s.entries[len(s.entries)-1].Time+11*60_000, s.release())
	}, ""},
	{invariant.Attested, "a release after the session was given back", func(s *scene) {
		e := s.release()
		s.add(&state.SessionClosed{Session: e.Actor.Session, Actor: e.Actor})
		s.add(e)
	}, ""},
	{invariant.Attested, "a release that claims more assurance than was proved", func(s *scene) {
		e := s.release()
		e.Assurance = "hardware"
		s.add(e)
	}, ""},
	{invariant.Attested, "assurance below what the grant asks", func(s *scene) {
		s.r.programs[s.release().Ruling.Bundle] = compile(s.t, strings.Replace(strictGrant, "ASSURANCE", "hardware", 1))
		c := s.r.checker()
		for i, e := range s.r.entries {
			s.found = append(s.found, c.Feed(uint64(i), e)...)
		}
		s.found = slices.DeleteFunc(s.found, func(v invariant.Violation) bool { return !strings.Contains(v.Detail, "assurance hardware") })
	}, ""},
	{invariant.Attested, "a workload whose node's session is another's", func(s *scene) {
		e := s.workload()
		e.NodeSession = s.r.cast.Bob.Opened.Index
		s.add(e)
	}, ""},
	{invariant.Attested, "a workload with more assurance than its node", func(s *scene) {
		e := s.workload()
		e.Assurance = "measured"
		s.add(e)
	}, ""},
	{invariant.Attested, "a renewal that prolongs the hard lifetime", func(s *scene) {
		e := s.renew()
		e.Lifetime += 1000
		s.add(e)
	}, ""},
	{invariant.Attested, "a session key of another identity", func(s *scene) {
		e := s.attest()
		e.Key = last(s, func(_ uint64, x *state.SessionOpened) bool { return x.Via == "login" }).Key
		s.add(e)
	}, ""},
	{invariant.Attested, "an old token's retry that takes back a newer enrolment", func(s *scene) {
		first := s.attest()
		s.add(first)
		s.add(s.token("newer"))
		newer := s.attest()
		newer.Token, newer.Anchor = "newer", "join-token:newer"
		newer.Key[1]++
		s.add(newer)
		s.add(s.again(first, uint64(len(s.r.entries))))
	}, ""},
	{invariant.Attested, "a spent token that gives the first generation again", func(s *scene) {
		first := s.attest()
		at := s.add(first)
		next := *first
		s.fresh(&next)
		next.Via, next.Token, next.Root, next.From, next.Counter = "renew", "", at, at, 1
		s.add(&next)
		if len(s.found) > 0 {
			s.t.Fatalf("a renewal of the new machine: %v", s.found)
		}
		s.add(s.again(first, at))
	}, ""},
	{invariant.Attested, "a spent token of an enrolment that was given back", func(s *scene) {
		first := s.attest()
		at := s.add(first)
		s.add(&state.SessionClosed{Session: at, Actor: state.Actor{Identity: first.Identity, Session: at}})
		s.add(s.again(first, at))
	}, ""},
	{invariant.Attested, "a renewal from an older generation", func(s *scene) {
		next := s.renew()
		s.add(next)
		e := s.renew()
		e.Counter = 2 // as if the first one had not been
		s.add(e)
	}, ""},
	{invariant.Attested, "a renewal from a session that was given back", func(s *scene) {
		e := s.renew()
		s.add(&state.SessionClosed{Session: e.From, Actor: state.Actor{Identity: e.Identity, Session: e.From}})
		s.add(s.fresh(e))
	}, ""},
	{invariant.Attested, "a join token that names another key than its maker's", func(s *scene) {
		e := s.token("planted")
		e.Anchor = "ssh:SHA256:another"
		s.add(e)
	}, ""},

	{invariant.Permitted, "a release that no grant permits", func(s *scene) {
		e := s.release()
		e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
		e.Lease, e.Max, e.Anchor = 0, e.Expires, last(s, func(_ uint64, x *state.SessionOpened) bool { return x.Via == "login" }).Anchor
		s.add(e)
	}, ""},
	{invariant.Permitted, "a release that names another grant", func(s *scene) {
		e := s.release()
		e.Ruling.Grant = "provision"
		s.add(e)
	}, ""},
	{invariant.Permitted, "a release for a purpose that the grant does not name", func(s *scene) {
		e := s.release()
		e.Lease, e.Max, e.Anchor, e.Purpose = 0, e.Expires, s.workload().Anchor, "debugging"
		s.add(e)
	}, ""},
	{invariant.Permitted, "a ruling by an earlier bundle", func(s *scene) {
		e := s.release()
		e.Ruling.Generation--
		s.add(e)
	}, ""},
	{invariant.Permitted, "a write by a workload", func(s *scene) {
		e := s.write()
		e.Actor = s.release().Actor
		s.add(e)
	}, ""},
	{invariant.Permitted, "a join token by who may not admit", func(s *scene) {
		e := s.token("planted")
		e.Actor = s.release().Actor
		s.add(e)
	}, ""},
	{invariant.Permitted, "a key by who has no duty", func(s *scene) {
		k := s.key()
		k.Actor = s.release().Actor
		s.add(k)
	}, ""},
	{invariant.Permitted, "a rewrap by who has no duty", func(s *scene) {
		r := s.release()
		s.add(&state.KeysRewrapped{To: "kek/2", Actor: r.Actor, Ruling: r.Ruling})
	}, ""},
	{invariant.Permitted, "a revocation by a node, like that of a fork, in its newest session", func(s *scene) {
		e := s.revoke("node:/node/join-token/web-2")
		e.Hold, e.Actor = true, state.Actor{Identity: "/node/join-token/web-2", Session: s.r.cast.Node.Opened.Index}
		s.add(e)
	}, ""},
	{invariant.Permitted, "a revocation by a node, like that of a fork, that is no hold", func(s *scene) {
		e := s.revoke("node:/node/join-token/web-2")
		e.Actor = state.Actor{Identity: "/node/join-token/web-2", Session: s.r.cast.Node.Opened.Index + 1}
		s.add(e)
	}, ""},
	{invariant.Permitted, "an identity that the rules do not give", func(s *scene) {
		e := s.workload()
		e.Identity = "/workload/other"
		s.add(e)
	}, ""},
	{invariant.Permitted, "a release to a workload for which its node may speak no longer", func(s *scene) {
		e := s.release()
		s.bring("identities/work.yaml", strings.ReplaceAll(string(s.r.files["identities/work.yaml"]), "join-token/*", "join-token/another"))
		e.Ruling = s.ruling()
		e.Ruling.Grant = s.release().Ruling.Grant
		s.add(e)
	}, ""},
	{invariant.Permitted, "a release to a workload on a node that is nobody now", func(s *scene) {
		e := s.release()
		s.bring("identities/node.yaml", noNodes)
		e.Ruling = s.ruling()
		e.Ruling.Grant = s.release().Ruling.Grant
		s.add(e)
	}, ""},
	{invariant.Permitted, "a process attested by a node that is nobody now", func(s *scene) {
		e := s.workload()
		s.bring("identities/node.yaml", noNodes)
		e = s.fresh(e)
		e.Ruling = s.ruling()
		e.Ruling.Grant = ""
		s.add(e)
	}, ""},
	{invariant.Permitted, "a bundle that is not there", func(s *scene) {
		b, p := s.inForce()
		p.Manifest[0]++
		b.Manifest[0]++
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(b)
	}, ""},

	{invariant.Recorded, "a release of another ciphertext", func(s *scene) {
		e := s.release()
		e.Digest[5]++
		s.add(e)
	}, ""},
	{invariant.Recorded, "a release of a version that was never written", func(s *scene) {
		e := s.release()
		e.Version = 99
		s.add(e)
	}, ""},
	{invariant.Recorded, "more handed out than entered", func(s *scene) {
		n := uint64(0)
		for _, e := range s.r.entries {
			switch e := e.Event.(type) {
			case *state.SecretReleased, *state.JWTIssued:
				n++
			case *state.SecretExported:
				n += uint64(e.Count)
			}
		}
		if v := s.c.CheckCounts(invariant.Counts{Delivered: n}); len(v) > 0 {
			s.t.Errorf("as many as entered: %v", v)
		}
		s.found = append(s.found, s.c.CheckCounts(invariant.Counts{Delivered: n + 1})...)
	}, ""},

	{invariant.Revoked, "a release after its identity was cut off", func(s *scene) {
		s.add(s.revoke("identity:/workload/*"))
		s.add(s.release())
	}, ""},
	{invariant.Revoked, "a release after its node was cut off", func(s *scene) {
		s.add(s.revoke("node:" + s.release().Actor.Node))
		s.add(s.release())
	}, ""},
	{invariant.Revoked, "a release after what vouched for it was cut off", func(s *scene) {
		s.add(s.revoke("issuer:" + s.workload().Anchor))
		s.add(s.release())
	}, ""},
	{invariant.Revoked, "a release after everything was cut off", func(s *scene) {
		s.add(s.revoke("everything"))
		s.add(s.release())
	}, ""},
	{invariant.Revoked, "the use of a lease after its secret was cut off", func(s *scene) {
		s.add(s.revoke("secret:db/*"))
		s.add(s.release())
	}, ""},
	{invariant.Revoked, "a release of a held secret", func(s *scene) {
		e := s.revoke("secret:*")
		e.Cutoff, e.Hold = false, true
		s.add(e)
		s.add(s.release())
	}, ""},
	{invariant.Revoked, "a lease renewed under a hold", func(s *scene) {
		e := s.revoke("everything")
		e.Cutoff, e.Hold = false, true
		s.add(e)
		r := s.release()
		s.add(&state.LeaseRenewed{Lease: r.Lease, Expires: r.Expires, Actor: r.Actor, Ruling: r.Ruling})
	}, ""},
	{invariant.Revoked, "a renewal of an enrolment that was cut off", func(s *scene) {
		s.add(s.revoke("identity:/node/*"))
		s.add(s.renew())
	}, ""},
	{invariant.Revoked, "a join token made before its issuer was cut off", func(s *scene) {
		s.add(s.revoke("issuer:join-token:" + s.r.cast.Token))
		s.add(s.attest())
	}, ""},
	{invariant.Revoked, "a join token whose maker was cut off", func(s *scene) {
		s.add(s.token("planted"))
		e := s.revoke("identity:/human/alice")
		e.Actor = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
		s.add(e)
		a := s.attest()
		a.Token, a.Anchor = "planted", "join-token:planted"
		s.add(a)
	}, ""},
	{invariant.Revoked, "a join token whose maker's key is held", func(s *scene) {
		e := s.revoke("issuer:" + last[*state.TokenCreated](s, nil).Anchor)
		e.Cutoff, e.Hold = false, true
		e.Actor = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
		s.add(e)
		s.add(s.attest())
	}, ""},
	{invariant.Revoked, "a retry of a token whose maker was cut off", func(s *scene) {
		first := s.attest()
		at := s.add(first)
		s.add(s.revoke("identity:/human/alice"))
		s.add(s.again(first, at))
	}, ""},
	{invariant.Revoked, "a fork that is only held", func(s *scene) {
		e := last(s, func(_ uint64, e *state.RevocationRecorded) bool { return e.Reason == "forked enrolment" })
		node := s.r.cast.Node.Opened.Identity.Path()
		e.Scope, e.Actor = "node:"+node, state.Actor{Identity: node, Session: s.r.cast.Node.Opened.Index}
		e.Cutoff, e.Ruling = false, s.write().Ruling
		e.Ruling.Grant = ""
		s.add(e)
	}, ""},
	{invariant.Revoked, "a horizon before the end of a lease", func(s *scene) {
		e := s.revoke("secret:db/c")
		e.Horizon = s.release().Expires - 1
		s.add(e)
	}, ""},

	{invariant.Revoked, "a horizon that forgets a lease for a newer one of the same name", func(s *scene) {
		r := s.release()
		r.Lease, r.Anchor, r.Expires = 0, s.workload().Anchor, s.entries[len(s.entries)-1].Time+60_000
		r.Max = r.Expires
		s.add(r)
		e := s.revoke("secret:db/c")
		e.Horizon = r.Expires
		s.add(e)
	}, ""},
	{invariant.Revoked, "a bundle in force by the approval of a person who was cut off", func(s *scene) {
		b, p := s.inForce()
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(s.revoke("identity:/human/bob"))
		s.add(b)
	}, ""},
	{invariant.Revoked, "a bundle in force by an approval whose key is held", func(s *scene) {
		b, p := s.inForce()
		b.Change = s.add(p)
		a := s.approve(b.Change)
		s.add(a)
		e := s.revoke("issuer:ssh:" + a.Signature.Key)
		e.Cutoff, e.Hold = false, true
		s.add(e)
		s.add(b)
	}, ""},
	{invariant.Revoked, "a bundle in force by the proposal of a person who was cut off", func(s *scene) {
		b, p := s.inForce()
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(s.revoke("identity:/human/alice"))
		s.add(b)
	}, ""},
	{invariant.Revoked, "an approval signed by a held key of the person", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything#1"))
		e := s.revoke("issuer:ssh:SHA256:spare")
		e.Cutoff, e.Hold = false, true
		s.add(e)
		a := s.approve(ch)
		a.Signature.Key = "SHA256:spare"
		s.add(a)
	}, ""},
	{invariant.Revoked, "an approval of what a person proposed who was cut off", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything#1"))
		s.add(s.revoke("identity:/human/alice"))
		s.add(s.approve(ch))
	}, ""},

	{invariant.Bounded, "a lease beyond the grant", func(s *scene) {
		e := s.release()
		e.Purpose, e.Lease, e.Anchor = "migration", 0, s.workload().Anchor
		e.Max = s.entries[len(s.entries)-1].Time + 2*3_600_000
		s.add(e)
	}, ""},
	{invariant.Bounded, "a lease that ends after its own maximum", func(s *scene) {
		e := s.release()
		e.Purpose, e.Lease, e.Anchor, e.Max = "migration", 0, s.workload().Anchor, e.Expires-1
		s.add(e)
	}, ""},
	{invariant.Bounded, "a lease that is over when it begins", func(s *scene) {
		e := s.release()
		e.Purpose, e.Lease, e.Anchor, e.Expires, e.Max = "migration", 0, s.workload().Anchor, 1, 1
		s.add(e)
	}, ""},
	{invariant.Bounded, "a lease renewed beyond its maximum", func(s *scene) {
		r := s.release()
		made := last(s, func(i uint64, _ *state.SecretReleased) bool { return i == r.Lease })
		s.add(&state.LeaseRenewed{Lease: r.Lease, Expires: made.Max + 1, Actor: r.Actor, Ruling: r.Ruling})
	}, "which ends between"},
	{invariant.Bounded, "a lease of another secret", func(s *scene) {
		e := s.release()
		e.Secret, e.Version = "db/b", 1
		s.add(e)
	}, ""},
	{invariant.Bounded, "a session longer than the bundle says", func(s *scene) {
		e := s.workload()
		e.Expires += 3_600_000
		s.add(e)
	}, "the bundle allows 10m0s"},
	{invariant.Bounded, "a session beyond its enrolment", func(s *scene) {
		e := s.renew()
		e.Expires = e.Lifetime + 1
		s.add(e)
	}, "after its enrolment's"},
	{invariant.Bounded, "a process's session beyond its node's", func(s *scene) {
		e := s.workload()
		node := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == e.NodeSession })
		at := node.Expires - 60_000
		e.Expires = node.Expires + 1
		s.addAt(at, e)
	}, ""},
	{invariant.Bounded, "an enrolment that ends after a bundle shortened it", func(s *scene) {
		e := s.renew()
		s.bring("environment.yaml", strings.Replace(string(s.r.files["environment.yaml"]), "spec:\n", "spec:\n  nodes: {lifetime: 24h}\n", 1))
		e = s.fresh(e)
		e.Ruling = s.ruling()
		e.Ruling.Grant = ""
		s.add(e)
	}, ""},
	{invariant.Bounded, "a provisional hold for a day", func(s *scene) {
		e := s.revoke("everything")
		e.Cutoff, e.Hold, e.Until = false, true, s.entries[len(s.entries)-1].Time+86_400_000
		s.add(e)
	}, ""},
	{invariant.Bounded, "a provisional hold that its setter sets again", func(s *scene) {
		for range 2 {
			e := s.revoke("identity:/workload/api")
			e.Cutoff, e.Hold, e.Until = false, true, s.entries[len(s.entries)-1].Time+60_000
			s.add(e)
			s.addAt(e.Until+1, s.revoke("secret:db/c"))
		}
	}, ""},
	{invariant.Bounded, "one person's revocation beyond the limit", func(s *scene) {
		s.limit(1)
		s.add(s.revoke("everything"))
	}, "alone revokes everything for good"},
	{invariant.Bounded, "one person's revocation of what his provisional hold has ended", func(s *scene) {
		s.limit(1)
		now := s.entries[len(s.entries)-1].Time
		for _, e := range []*state.SessionOpened{s.attest(), s.renew()} {
			e.Expires, e.Key[3] = now+3_600_000, byte(len(s.entries))
			s.add(e)
		}
		e := s.revoke("node:/node/*")
		e.Cutoff, e.Hold, e.Until = false, true, now+15*60_000
		s.addAt(now+1000, e)
		s.addAt(now+3_600_001, s.revoke("identity:/node/*"))
	}, "alone revokes identity:/node/* for good"},
	{invariant.Bounded, "many provisional holds of one person", func(s *scene) {
		for i := range 5 {
			e := s.revoke(fmt.Sprintf("identity:/workload/w%d", i))
			e.Cutoff, e.Hold, e.Until = false, true, s.entries[len(s.entries)-1].Time+60_000
			s.add(e)
		}
	}, ""},
	{invariant.Bounded, "too many open changes of one proposer", func(s *scene) {
		for range 9 {
			s.add(s.propose("hold.lift", "everything#1"))
		}
	}, ""},
	{invariant.Bounded, "too many changes of one proposer in a day", func(s *scene) {
		for range 201 {
			e := s.propose("hold.lift", "everything#1")
			index := s.add(e)
			if len(s.found) > 0 {
				return
			}
			s.add(&state.ChangeRejected{Change: index, Actor: e.Actor, Ruling: s.ruling()})
			s.found = nil // of the rejection; what is looked for comes with a proposal
		}
	}, "such changes within a day"},
	{invariant.Bounded, "too many whole denials", func(s *scene) {
		r := s.release()
		at := (s.entries[len(s.entries)-1].Time/60_000 + 1) * 60_000
		for range 61 {
			s.addAt(at, &state.RequestDenied{Action: "secret.read", Reason: "no-grant", Actor: r.Actor, Ruling: r.Ruling})
		}
	}, ""},

	{invariant.ExactlyOnce, "a second first effect of a key", func(s *scene) {
		e := s.write()
		e.Idem = &state.IdemKey{Key: "k"}
		s.add(e)
		e = s.write()
		e.Idem = &state.IdemKey{Key: "k"}
		s.add(e)
	}, ""},
	{invariant.ExactlyOnce, "a redelivery of nothing", func(s *scene) {
		e := s.release()
		e.Idem = &state.IdemKey{Key: "k", First: 3}
		s.add(e)
	}, ""},
	{invariant.ExactlyOnce, "a redelivery of another request", func(s *scene) {
		e := s.release()
		e.Idem = &state.IdemKey{Key: "k"}
		at := s.add(e)
		e = s.release()
		e.Idem = &state.IdemKey{Key: "k", First: at, Request: state.Digest{1}}
		s.add(e)
	}, ""},
	{invariant.ExactlyOnce, "a redelivery under another lease", func(s *scene) {
		e := s.release()
		e.Idem = &state.IdemKey{Key: "k"}
		at := s.add(e)
		e = s.release()
		e.Lease, e.Max, e.Anchor, e.Idem = 0, e.Expires, s.workload().Anchor, &state.IdemKey{Key: "k", First: at}
		s.add(e)
	}, ""},
	{invariant.ExactlyOnce, "too many live keys", func(s *scene) {
		for i := range 1001 {
			e := s.release()
			e.Idem = &state.IdemKey{Key: fmt.Sprint("k", i)}
			s.addAt(s.entries[len(s.entries)-1].Time, e)
		}
	}, ""},
	{invariant.ExactlyOnce, "a version written twice", func(s *scene) {
		e := s.write()
		s.add(e)
		s.add(e)
	}, ""},
	{invariant.ExactlyOnce, "a challenge used twice", func(s *scene) {
		a, b := s.attest(), s.renew()
		b.Challenge = a.Challenge
		s.add(a)
		b.Serial = fmt.Sprintf("010000%016x0011223344556677", len(s.entries))
		s.add(b)
	}, ""},
	{invariant.ExactlyOnce, "a join token used by a second key", func(s *scene) {
		s.add(s.attest())
		e := s.attest()
		e.Key[3]++
		s.add(e)
	}, ""},

	{invariant.Lifecycle, "an illegal transition", func(s *scene) {
		s.add(&state.SecretMoved{Secret: "db/c", Version: 1, From: state.Current, To: state.Destroyed, Actor: s.write().Actor, Ruling: s.write().Ruling})
	}, ""},
	{invariant.Lifecycle, "a transition from a state that it is not in", func(s *scene) {
		s.add(&state.SecretMoved{Secret: "db/c", Version: 1, From: state.Staged, To: state.Retired, Actor: s.write().Actor, Ruling: s.write().Ruling})
	}, ""},
	{invariant.Lifecycle, "two current versions", func(s *scene) {
		e := s.write()
		e.Retires = 0
		s.add(e)
	}, "and version 0 is retired for the new one"},
	{invariant.Lifecycle, "a release of a retired version", func(s *scene) {
		s.add(&state.SecretMoved{Secret: "db/c", Version: 1, From: state.Current, To: state.Retired, Actor: s.write().Actor, Ruling: s.write().Ruling})
		s.add(s.release())
	}, ""},
	{invariant.Lifecycle, "a release after the retiring window", func(s *scene) {
		e := s.write()
		e.Until = s.entries[len(s.entries)-1].Time + 1000
		s.add(e)
		s.add(s.release())
	}, ""},
	{invariant.Lifecycle, "a change approved after it was rejected", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything"))
		p := s.propose("", "")
		s.add(&state.ChangeRejected{Change: ch, Actor: p.Actor, Ruling: p.Ruling})
		s.add(s.approve(ch))
	}, ""},
	{invariant.Lifecycle, "a bundle in force by a change about something else", func(s *scene) {
		b, _ := s.inForce()
		b.Change = s.add(s.propose("hold.lift", "everything"))
		s.add(s.approve(b.Change))
		s.add(b)
	}, ""},
	{invariant.Lifecycle, "a hold lifted that is not there", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything"))
		s.add(s.approve(ch))
		s.add(&state.HoldLifted{Scope: "everything", Hold: 7, Change: ch})
	}, ""},

	{invariant.Lifecycle, "a hold lifted by a change about the hold before it", func(s *scene) {
		e := s.revoke("issuer:x509:corp")
		e.Hold = true
		first := s.add(e)
		ch := s.add(s.propose("hold.lift", hold("issuer:x509:corp", first)))
		e = s.revoke("issuer:x509:corp")
		e.Hold = true
		second := s.add(e)
		s.add(s.approve(ch))
		s.add(&state.HoldLifted{Scope: "issuer:x509:corp", Hold: second, Change: ch})
	}, ""},
	{invariant.Lifecycle, "a revocation confirmed by a change about the hold before it", func(s *scene) {
		e := s.revoke("issuer:x509:corp")
		e.Hold = true
		ch := s.add(s.propose("revocation.confirm", hold("issuer:x509:corp", s.add(e))))
		e = s.revoke("issuer:x509:corp")
		e.Hold = true
		s.add(e)
		s.add(s.approve(ch))
		e = s.revoke("issuer:x509:corp")
		e.Hold, e.Change = true, ch
		s.add(e)
	}, ""},

	{invariant.Separated, "a hold that leaves nobody who could lift it", func(s *scene) {
		for _, person := range []string{"bob", "carol"} {
			e := s.revoke("identity:/human/" + person)
			e.Cutoff, e.Hold = false, true
			s.add(e)
		}
	}, ""},
	{invariant.Separated, "a change approved by its proposer", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything"))
		e := s.approve(ch)
		e.Actor = state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}
		e.Signature.Person = "alice"
		s.add(e)
	}, ""},
	{invariant.Separated, "an approval that another person signed", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything"))
		e := s.approve(ch)
		e.Signature.Person = "carol"
		s.add(e)
	}, ""},
	{invariant.Separated, "a person who counts twice", func(s *scene) {
		p := s.propose("hold.lift", "everything#1")
		p.Required = 2
		ch := s.add(p)
		s.add(s.approve(ch))
		s.add(s.approve(ch))
	}, ""},
	{invariant.Separated, "a bundle in force without approvals", func(s *scene) {
		b, p := s.inForce()
		b.Change = s.add(p)
		s.add(b)
	}, "has the approval of 0 persons"},
	{invariant.Separated, "a bundle in force without a change", func(s *scene) {
		b, _ := s.inForce()
		s.add(b)
	}, ""},
	{invariant.Separated, "a change that needs nobody", func(s *scene) {
		p := s.propose("hold.lift", "everything")
		p.Required = 0
		s.add(p)
	}, "it needs no approval"},
	{invariant.Separated, "a change that its proposer may approve, where the bundle says others", func(s *scene) {
		p := s.propose("hold.lift", "everything")
		p.SelfOK = true
		s.add(p)
	}, ""},

	{invariant.Monotonic, "time that runs back", func(s *scene) {
		s.addAt(s.entries[len(s.entries)-1].Time-1, s.release())
	}, ""},
	{invariant.Monotonic, "a gap", func(s *scene) {
		s.entries = append(s.entries, s.entries[len(s.entries)-1])
		s.add(s.release())
	}, ""},
	{invariant.Monotonic, "a generation that goes back", func(s *scene) {
		b, p := s.inForce()
		b.Generation = 1
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(b)
	}, ""},
	{invariant.Monotonic, "a bundle that replaces another one", func(s *scene) {
		b, p := s.inForce()
		b.Previous[0]++
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(b)
	}, ""},
	{invariant.Monotonic, "a protocol that goes back", func(s *scene) { s.add(&state.ProtocolRaised{Version: 2}) }, ""},
	{invariant.Monotonic, "a state root of the future", func(s *scene) { s.add(&state.StateRootSet{Index: 1 << 40}) }, ""},
	{invariant.Monotonic, "a version number left out", func(s *scene) {
		e := s.write()
		e.Version++
		s.add(e)
	}, ""},
	{invariant.Monotonic, "a renewal counter that stands still", func(s *scene) {
		e := s.renew()
		e.Counter = 0
		s.add(e)
	}, ""},
	{invariant.Monotonic, "a key number that comes back", func(s *scene) {
		k := last[*state.KeyAdded](s, nil)
		k.Actor = s.write().Actor
		k.Key.Name = "ca/1"
		s.add(k)
	}, ""},

	{invariant.Monotonic, "a key number left out", func(s *scene) {
		k := s.key()
		k.Key.Name = strings.Replace(k.Key.Name, "/3", "/4", 1)
		s.add(k)
	}, ""},
	{invariant.Monotonic, "a key number in another form", func(s *scene) {
		k := s.key()
		k.Key.Name = strings.Replace(k.Key.Name, "/3", "/03", 1)
		s.add(k)
	}, ""},

	{invariant.Confined, "a key of no kind", func(s *scene) {
		k := s.key()
		k.Key.Name = "root/1"
		s.add(k)
	}, ""},
	{invariant.Confined, "a checkpoint key that no other vouches for", func(s *scene) {
		k := last(s, func(_ uint64, e *state.KeyAdded) bool { return strings.HasPrefix(e.Key.Name, "checkpoint/") })
		k.Key.Name, k.Key.Cross, k.Actor, k.Ruling = "checkpoint/3", nil, s.token("x").Actor, s.release().Ruling
		s.add(k)
	}, ""},
	{invariant.Confined, "a key more in genesis", func(s *scene) {
		s.genesis(func(g *state.Genesis) {
			g.Keys = append(g.Keys, state.KeyFacts{Name: "checkpoint/0", Public: make([]byte, 32)})
		})
	}, "its document has no key"},
	{invariant.Confined, "a key less in genesis", func(s *scene) { s.genesis(func(g *state.Genesis) { g.Keys = g.Keys[:2] }) }, ""},
	{invariant.Confined, "another key in genesis", func(s *scene) { s.genesis(func(g *state.Genesis) { g.Keys[1].Public[0]++ }) }, ""},
	{invariant.Confined, "a key in genesis that another vouches for", func(s *scene) {
		s.genesis(func(g *state.Genesis) { g.Keys[1].Cross = make([]byte, 64) })
	}, ""},
	{invariant.Confined, "another class than the document's", func(s *scene) { s.genesis(func(g *state.Genesis) { g.Class = "production" }) }, ""},
	{invariant.Monotonic, "a checkpoint key that the one before did not sign for", func(s *scene) {
		k := last(s, func(_ uint64, e *state.KeyAdded) bool { return strings.HasPrefix(e.Key.Name, "checkpoint/") })
		k.Actor, k.Ruling = s.write().Actor, s.write().Ruling
		_, n, _ := strings.Cut(k.Key.Name, "/")
		k.Key.Name = fmt.Sprintf("checkpoint/%d", int(n[0]-'0')+1)
		s.add(k)
	}, ""},

	{invariant.Confined, "an identity of another environment", func(s *scene) {
		e := s.workload()
		e.Identity = "spiffe://other.example/workload/api"
		s.add(e)
	}, ""},
	{invariant.Confined, "a serial number of another entry", func(s *scene) {
		e := s.workload()
		e.Serial = fmt.Sprintf("010000%016x0011223344556677", 3)
		s.add(e)
	}, ""},
	{invariant.Confined, "a serial number of another epoch", func(s *scene) {
		e := s.workload()
		e.Serial = fmt.Sprintf("010001%016x0011223344556677", len(s.entries))
		s.add(e)
	}, ""},
	{invariant.Confined, "an approval of another environment's change", func(s *scene) {
		ch := s.add(s.propose("hold.lift", "everything"))
		e := s.approve(ch)
		e.Text = strings.Replace(e.Text, "environment test.example", "environment other.example", 1)
		s.add(e)
	}, ""},
	{invariant.Confined, "another genesis than the one pinned", func(s *scene) {
		o := s.r.options()
		o.Genesis[0]++
		s.found = append(s.found, invariant.New(o).Feed(0, s.entries[0])...)
	}, ""},
	{invariant.Confined, "a bundle of another environment", func(s *scene) {
		b, p := s.inForce()
		s.r.programs[b.Manifest] = compile(s.t, strings.Replace(strictGrant, "ASSURANCE", "token", 1))
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(b)
	}, ""},

	{invariant.Silent, "a canary in a log", func(s *scene) { s.found = append(s.found, s.c.CheckCounts(invariant.Counts{Leaked: 1})...) }, ""},
	{invariant.Silent, "one more canary", func(s *scene) {
		s.c.CheckCounts(invariant.Counts{Leaked: 1})
		if v := s.c.CheckCounts(invariant.Counts{Leaked: 1}); len(v) > 0 {
			s.t.Errorf("reported again: %v", v)
		}
		s.found = append(s.found, s.c.CheckCounts(invariant.Counts{Leaked: 2})...)
	}, ""},

	{invariant.Replayable, "an entry that can't be applied", func(s *scene) {
		bodies := append(slices.Clone(s.r.bodies), s.r.bodies[0])
		s.found = append(s.found, invariant.Replay(pairs(bodies), s.r.state)...)
	}, ""},
	{invariant.Replayable, "a state in force that the entries do not give", func(s *scene) {
		wrong := s.r.state.Fork()
		wrong.Generation++
		s.found = append(s.found, invariant.Replay(pairs(s.r.bodies), wrong)...)
	}, ""},
	{invariant.Replayable, "a state in force with one row less", func(s *scene) {
		var text bytes.Buffer
		if err := s.r.state.Snapshot(&text); err != nil {
			s.t.Fatal(err)
		}
		lines := strings.SplitAfter(text.String(), "\n")
		n := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, `{"table":"tokens",`) })
		lines[n] = fmt.Sprintf("{\"table\":\"tokens\",\"rows\":%d}\n", s.r.state.Tokens.Len()-1)
		wrong, err := state.Restore([]byte(strings.Join(slices.Delete(lines, n+1, n+2), "")))
		if err != nil {
			s.t.Fatal(err)
		}
		s.found = append(s.found, invariant.Replay(pairs(s.r.bodies), wrong)...)
	}, `{"table":"tokens"`},
	{invariant.Replayable, "a state root that is none", func(s *scene) {
		bodies := slices.Clone(s.r.bodies)
		body, err := state.Encode(&state.Entry{Time: s.entries[len(s.entries)-1].Time, Event: &state.StateRootSet{Index: 3}})
		if err != nil {
			s.t.Fatal(err)
		}
		bodies = append(bodies, body)
		inForce := state.New()
		for i, b := range bodies {
			if err := inForce.Apply(uint64(i), b, nil); err != nil {
				s.t.Fatal(err)
			}
		}
		s.found = append(s.found, invariant.Replay(pairs(bodies), inForce)...)
	}, ""},
}

func pairs(bodies [][]byte) func(func(uint64, []byte) bool) { return (&real{bodies: bodies}).all() }

// noNodes is a rule that none of the history's machines fits.
const noNodes = `apiVersion: bailment/v1
kind: Identity
metadata: {name: nodes}
spec: {method: join-token, path: "/node/join-token/{claims.name}", when: claims.name == "nobody"}
`

// strictGrant is a bundle of another environment.
const strictGrant = `apiVersion: bailment/v1
kind: Environment
metadata: {name: other.example}
spec: {class: development}
---
apiVersion: bailment/v1
kind: Operators
metadata: {name: operators}
spec:
  operators:
    - name: alice
      keys: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJh0mKDH1xsPgqU7BKxlf0ifd0mGVXU6PoYzBOnzvXGz"]
      duties: [propose, approve, revoke, admit, keys, audit]
---
apiVersion: bailment/v1
kind: Grant
metadata: {name: api-reads}
spec:
  actions: [secret.read]
  identities: [/workload/api]
  secrets: [db/*]
  purposes: [runtime]
  assurance: ASSURANCE
---
apiVersion: bailment/v1
kind: Identity
metadata: {name: api}
spec: {method: workload, path: /workload/api, nodes: [/node/*]}
---
apiVersion: bailment/v1
kind: Identity
metadata: {name: nodes}
spec: {method: join-token, path: "/node/join-token/{claims.name}"}
---
apiVersion: bailment/v1
kind: Secret
metadata: {name: db/*}
spec: {type: opaque}
`

func compile(t *testing.T, text string) *policy.Program {
	t.Helper()
	files := policy.Files{}
	for _, doc := range strings.Split(text, "---\n") {
		kind, _, _ := strings.Cut(strings.SplitN(doc, "kind: ", 2)[1], "\n")
		path := map[string]string{"Environment": "environment.yaml", "Operators": "operators.yaml"}[kind]
		if path == "" {
			path = fmt.Sprintf("%ss/x%d.yaml", strings.ToLower(kind), len(files))
			path = strings.Replace(path, "identitys", "identities", 1)
		}
		files[path] = []byte(doc)
	}
	return compileFiles(t, files)
}

func compileFiles(t *testing.T, files policy.Files) *policy.Program {
	t.Helper()
	return policytest.Compile(t, files)
}

func TestPlants(t *testing.T) {
	r := history(t)
	count := map[invariant.Name]int{}
	said := map[string]bool{}
	for _, p := range slices.Concat(plants, rulePlants, spiffePlants, attestedPlants, oncePlants, reviewPlants, glassPlants, rolloutPlants, recoveryPlants, waitingPlants, endPlants, custodyPlants, exportPlants) {
		count[p.invariant]++
		t.Run(string(p.invariant)+"/"+p.what, func(t *testing.T) {
			mine := *r
			mine.programs = make(map[state.Digest]*policy.Program, len(r.programs))
			for d, prog := range r.programs {
				mine.programs[d] = prog
			}
			s := newScene(t, &mine)
			p.plant(s)
			found := false
			for _, v := range s.found {
				found = found || v.Invariant == p.invariant && strings.Contains(v.Detail, p.says)
				said[v.Detail] = true
			}
			if !found {
				t.Errorf("not found (%q); only %v", p.says, s.found)
			}
		})
	}
	for _, row := range invariant.Table {
		if count[row.Name] < 2 {
			t.Errorf("%s has only %d planted violations", row.Name, count[row.Name])
		}
		if row.Entries == "" && row.Beside == "" {
			t.Errorf("%s says nothing about what is checked", row.Name)
		}
	}
	if len(invariant.Table) != 12 {
		t.Errorf("the design has twelve invariants, the table %d", len(invariant.Table))
	}
	unsaid(t, said, "attested.go", "confined.go", "custody.go", "ended.go", "exported.go", "glass.go", "history.go", "invariant.go", "judge.go", "recovery.go", "replay.go", "review.go", "rollout.go", "spiffe.go", "waiting.go")
}

// unsaid fails for each rule of some files that found nothing of what was planted.
func unsaid(t *testing.T, said map[string]bool, names ...string) {
	t.Helper()
	for _, rule := range rules(t, names...) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(said)), rule.says.MatchString) {
			t.Errorf("%s: nothing was planted that this rule finds: %s", rule.at, rule.says)
		}
	}
}

// rule is a place in the package that reports a violation.
type rule struct {
	at   string
	says *regexp.Regexp
}

// rules finds the places by their texts. One that only passes on what another function says has none of its own.
func rules(t *testing.T, names ...string) []rule {
	t.Helper()
	files := token.NewFileSet()
	var out []rule
	for _, name := range names {
		f, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			fn, ok := call.Fun.(*ast.Ident)
			text, isText := call.Args[0].(*ast.BasicLit)
			if !ok || fn.Name != "fail" || !isText {
				return true
			}
			format, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Trim(format, "%sv") == "" {
				return true
			}
			says := regexp.MustCompile(`%(\\\.[0-9]+)?[a-z]`).ReplaceAllString(regexp.QuoteMeta(format), `.*`)
			out = append(out, rule{files.Position(call.Pos()).String(), regexp.MustCompile("(?s)(^|: )" + says + "$")})
			return true
		})
	}
	return out
}
