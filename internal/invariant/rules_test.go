package invariant_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

const minute = state.Millis(60_000)

// lacking brings a bundle into force in which bob does not have a duty.
func (s *scene) lacking(duty string) {
	s.t.Helper()
	text := string(s.r.files["operators.yaml"])
	at := strings.Index(text, "- name: bob")
	if at < 0 {
		s.t.Fatal("there is no bob")
	}
	s.bring("operators.yaml", text[:at]+strings.Replace(text[at:], duty+", ", "", 1))
}

// approved is a legal change about a hold, proposed and approved, and the hold.
func (s *scene) approved() (change, at uint64) {
	held := s.revoke("issuer:x509:corp")
	held.Hold = true
	at = s.add(held)
	change = s.add(s.propose("hold.lift", hold("issuer:x509:corp", at)))
	s.add(s.approve(change))
	return change, at
}

// touched gives every operator a hardware-backed key beside his own (sk-ssh-ed25519, OpenSSH's PROTOCOL.u2f).
func touched(operators []byte) []byte {
	parts := strings.Split(string(operators), "keys: [")
	for i := range parts[1:] {
		blob := ssh.Marshal(struct {
			Type, Key, Application string
		}{ssh.KeyAlgoSKED25519, strings.Repeat(string(rune('a'+i)), 32), "ssh:"})
		parts[i+1] = fmt.Sprintf("keys: [%q, %s", ssh.KeyAlgoSKED25519+" "+base64.StdEncoding.EncodeToString(blob), parts[i+1])
	}
	return []byte(strings.Join(parts, ""))
}

// rulePlants are violations that are found by one rule each, where plants has none for it.
var rulePlants = []planted{
	{invariant.Lifecycle, "a version destroyed by a change about another", func(s *scene) {
		ch := s.add(s.propose("secret.destroy", hold("db/a", 1)))
		s.add(s.approve(ch))
		e := last(s, func(_ uint64, e *state.SecretMoved) bool { return e.To == state.Destroyed })
		e.Version, e.Change = e.Version+1, ch
		s.add(e)
	}, "is not about version"},
	{invariant.Separated, "an approval by a key in a file where hardware is asked for", func(s *scene) {
		s.r.files = maps.Clone(s.r.files)
		s.r.files["operators.yaml"] = touched(s.r.files["operators.yaml"])
		s.bring("environment.yaml", strings.Replace(string(s.r.files["environment.yaml"]), "required: ", "keys: hardware, required: ", 1))
		s.approved()
	}, "is not hardware-backed"},
	{invariant.Attested, "a first lease that derives from something else", func(s *scene) {
		e := s.release()
		e.Root--
		s.add(e)
	}, "it derives from entry"},
	{invariant.Attested, "a first lease that something else vouches for", func(s *scene) {
		e := s.release()
		e.Lease, e.Max, e.Anchor, e.Purpose = 0, e.Expires, "ssh:SHA256:another", "migration"
		s.add(e)
	}, "its lease is vouched for by"},
	{invariant.Attested, "an assurance that there is not", func(s *scene) {
		e := s.attest()
		e.Assurance = "great"
		s.add(e)
	}, "great"},
	{invariant.Attested, "a login by a key that is not listed", func(s *scene) {
		e := s.fresh(last(s, func(_ uint64, e *state.SessionOpened) bool { return e.Via == "login" }))
		e.Anchor = "ssh:SHA256:another"
		s.add(e)
	}, "is not listed for"},
	{invariant.Attested, "a server's session for somebody else", func(s *scene) {
		e := s.fresh(last(s, func(_ uint64, e *state.SessionOpened) bool { return e.Via == "server" }))
		e.Identity = "/workload/api"
		s.add(e)
	}, "is not a server"},
	{invariant.Attested, "a session out of nothing", func(s *scene) {
		e := s.attest()
		e.Via = "magic"
		s.add(e)
	}, "a session can't come about by"},
	{invariant.Attested, "a renewal of what was never enrolled", func(s *scene) {
		e := s.renew()
		e.Identity = "/node/join-token/nobody"
		s.add(e)
	}, "has no enrolment to renew"},
	{invariant.Attested, "a renewal with another anchor", func(s *scene) {
		e := s.renew()
		e.Anchor = "join-token:another"
		s.add(e)
	}, "it does not carry what the enrolment of"},
	{invariant.Attested, "a renewal with another root", func(s *scene) {
		e := s.renew()
		e.Root++
		s.add(e)
	}, "it does not carry what the enrolment of"},
	{invariant.Attested, "a renewal with more assurance", func(s *scene) {
		e := s.renew()
		e.Assurance = "hardware"
		s.add(e)
	}, "it does not carry what the enrolment of"},
	{invariant.Attested, "a renewal after the hard lifetime", func(s *scene) {
		e := s.renew()
		s.addAt(e.Lifetime, e)
	}, "the enrolment of /node/join-token/web-2 ended at"},
	{invariant.Attested, "a redelivered renewal for another key", func(s *scene) {
		e := s.renew()
		e.Redelivery = true
		s.add(e)
	}, "a redelivery is for the same key"},
	{invariant.Attested, "fresh evidence with a root", func(s *scene) {
		e := s.attest()
		e.Token, e.Root = "", 5
		s.add(e)
	}, "fresh evidence derives from nothing older"},
	{invariant.Attested, "a join token that never was", func(s *scene) {
		e := s.attest()
		e.Token = "unknown"
		s.add(e)
	}, "is unknown or expired"},
	{invariant.Attested, "a join token that is over", func(s *scene) {
		tok := s.token("short")
		tok.Expires = s.entries[len(s.entries)-1].Time + 2000
		s.add(tok)
		e := s.attest()
		e.Token, e.Anchor = "short", "join-token:short"
		s.addAt(tok.Expires, e)
	}, "is unknown or expired"},
	{invariant.Attested, "a first use of a token with a root", func(s *scene) {
		e := s.attest()
		e.Root = 5
		s.add(e)
	}, "a first use of a token derives from nothing older"},
	{invariant.Attested, "a token spent again by another key", func(s *scene) {
		first := s.attest()
		at := s.add(first)
		e := s.again(first, at)
		e.Key[1]++
		s.add(e)
	}, "was spent by entry"},
	{invariant.Attested, "a token's retry that prolongs the enrolment", func(s *scene) {
		first := s.attest()
		e := s.again(first, s.add(first))
		e.Lifetime += 1000
		s.add(e)
	}, "it prolongs the enrolment of"},

	{invariant.Permitted, "a ruling by an evaluator that is not known", func(s *scene) {
		e := s.release()
		e.Ruling.Evaluator++
		s.add(e)
	}, "evaluator 2 is not known"},
	{invariant.Permitted, "claims that are nobody", func(s *scene) {
		e := s.attest()
		e.Claims = map[string]any{"name": ""}
		s.add(e)
	}, "these claims are nobody"},
	{invariant.Permitted, "a join token by an operator who may not admit", func(s *scene) {
		s.lacking("admit")
		e := s.token("planted")
		bob := last(s, func(i uint64, _ *state.SessionOpened) bool { return i == s.r.cast.Bob.Opened.Index })
		e.Actor, e.Anchor, e.Ruling = state.Actor{Identity: bob.Identity, Session: s.r.cast.Bob.Opened.Index}, bob.Anchor, s.ruling()
		s.add(e)
	}, "bob does not have the duty admit"},
	{invariant.Permitted, "a key by an operator who has no duty for it", func(s *scene) {
		s.lacking("keys")
		e := s.key()
		e.Actor, e.Ruling = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}, s.ruling()
		s.add(e)
	}, "bob does not have the duty keys"},
	{invariant.Permitted, "a revocation by an operator who may not revoke", func(s *scene) {
		s.lacking("revoke")
		e := s.revoke("issuer:x509:corp")
		e.Actor, e.Ruling = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}, s.ruling()
		s.add(e)
	}, "bob does not have the duty revoke"},
	{invariant.Permitted, "an approval by an operator who may not approve", func(s *scene) {
		s.lacking("approve")
		p := s.propose("hold.lift", hold("everything", 7))
		p.Base, p.Ruling = s.ruling().Bundle, s.ruling()
		e := s.approve(s.add(p))
		e.Ruling = s.ruling()
		s.add(e)
	}, "bob does not have the duty approve"},
	{invariant.Permitted, "a proposal by an operator who may not propose", func(s *scene) {
		s.lacking("propose")
		p := s.propose("hold.lift", hold("everything", 7))
		p.Base, p.Ruling, p.Signature.Person = s.ruling().Bundle, s.ruling(), "bob"
		p.Actor = state.Actor{Identity: "/human/bob", Session: s.r.cast.Bob.Opened.Index}
		s.add(p)
	}, "bob does not have the duty propose"},

	{invariant.Permitted, "a release that can't be decided again", func(s *scene) {
		e := s.release()
		e.Actor.Session = 1 << 40
		s.add(e)
	}, "it can't be decided again"},

	{invariant.Bounded, "a lease renewed beyond its grant", func(s *scene) {
		r := s.release()
		made := last(s, func(i uint64, _ *state.SecretReleased) bool { return i == s.r.cast.Lease })
		s.add(&state.LeaseRenewed{Lease: r.Lease, Expires: made.Max + 1, Actor: r.Actor, Ruling: r.Ruling})
	}, "beyond 1h0m0s"},
	{invariant.Bounded, "a release under a lease that is not there", func(s *scene) {
		e := s.release()
		e.Lease = 1 << 40
		s.add(e)
	}, "there is no lease 1099511627776"},
	{invariant.Bounded, "a release that says another end than its lease has", func(s *scene) {
		e := s.release()
		e.Expires++
		s.add(e)
	}, "ends at"},
	{invariant.Bounded, "a session that is over when it begins", func(s *scene) {
		e := s.attest()
		e.Expires = 1
		s.add(e)
	}, "it is over at"},
	{invariant.Bounded, "a session longer than the bundle says, and not than anything else", func(s *scene) {
		e := s.attest()
		e.Expires = s.entries[len(s.entries)-1].Time + 61*minute
		s.add(e)
	}, "the bundle allows 1h0m0s"},
	{invariant.Bounded, "a join token for more than a week", func(s *scene) {
		e := s.token("planted")
		e.Expires = s.entries[len(s.entries)-1].Time + 8*24*60*minute
		s.add(e)
	}, "join token planted lives until"},
	{invariant.Bounded, "a change that is open for a month", func(s *scene) {
		e := s.propose("hold.lift", hold("everything", 7))
		e.Expires += 30 * 24 * 60 * minute
		s.add(e)
	}, "the change is open until"},

	{invariant.ExactlyOnce, "a join token made twice", func(s *scene) { s.add(s.token(s.r.cast.Token)) }, "exists"},
	{invariant.ExactlyOnce, "a proposal with a nonce of another", func(s *scene) {
		e, again := s.propose("hold.lift", hold("everything", 7)), s.propose("hold.lift", hold("everything", 8))
		s.add(e)
		again.Nonce = e.Nonce
		s.add(again)
	}, "change.proposed: its nonce was used before"},
	{invariant.ExactlyOnce, "a proposal without a nonce", func(s *scene) {
		e := s.propose("hold.lift", hold("everything", 7))
		e.Nonce = ""
		s.add(e)
	}, "change.proposed: its nonce was used before"},
	{invariant.ExactlyOnce, "an approval with the proposal's nonce", func(s *scene) {
		p := s.propose("hold.lift", hold("everything", 7))
		e := s.approve(s.add(p))
		e.Nonce = p.Nonce
		s.add(e)
	}, "change.approved: its nonce was used before"},
	{invariant.ExactlyOnce, "a write that is redelivered", func(s *scene) {
		e := s.write()
		e.Idem = &state.IdemKey{Key: "k"}
		first := s.add(e)
		again := s.write()
		again.Idem = &state.IdemKey{Key: "k", First: first}
		s.add(again)
	}, "only releases are redelivered"},

	{invariant.Lifecycle, "a renewal of a lease that is not there", func(s *scene) {
		r := s.release()
		s.add(&state.LeaseRenewed{Lease: 1 << 40, Expires: r.Expires, Actor: r.Actor, Ruling: r.Ruling})
	}, "has no active lease"},
	{invariant.Lifecycle, "a renewal of a lease that was given back", func(s *scene) {
		r := s.release()
		s.add(&state.LeaseReturned{Lease: r.Lease, Actor: r.Actor})
		s.add(&state.LeaseRenewed{Lease: r.Lease, Expires: r.Expires, Actor: r.Actor, Ruling: r.Ruling})
	}, "has no active lease"},
	{invariant.Lifecycle, "a lease given back by somebody else", func(s *scene) {
		s.add(&state.LeaseReturned{Lease: s.r.cast.Lease, Actor: state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}})
	}, "is of /workload/api"},
	{invariant.Lifecycle, "a session closed in another", func(s *scene) {
		s.add(&state.SessionClosed{Session: s.r.cast.Bob.Opened.Index, Actor: state.Actor{Identity: "/human/alice", Session: s.r.cast.Alice.Opened.Index}})
	}, "is closed in session"},
	{invariant.Lifecycle, "an approval under another bundle than the change was made for", func(s *scene) {
		ch := s.add(s.propose("hold.lift", hold("everything", 7)))
		s.bring("README.md", "Another bundle.\n")
		e := s.approve(ch)
		e.Ruling = s.ruling()
		s.add(e)
	}, "change.approved: change"},
	{invariant.Lifecycle, "a hold lifted under another bundle than the change was made for", func(s *scene) {
		ch, at := s.approved()
		s.bring("README.md", "Another bundle.\n")
		s.add(&state.HoldLifted{Scope: "issuer:x509:corp", Hold: at, Change: ch})
	}, "was made for another bundle than the one in force"},
	{invariant.Lifecycle, "a bundle in force that the change does not name", func(s *scene) {
		b, p := s.inForce()
		p.Manifest[0]++
		b.Change = s.add(p)
		s.add(s.approve(b.Change))
		s.add(b)
	}, "is about another bundle"},
	{invariant.Lifecycle, "a hold lifted by a change that would confirm it", func(s *scene) {
		held := s.revoke("issuer:x509:corp")
		held.Hold = true
		at := s.add(held)
		ch := s.add(s.propose("revocation.confirm", hold("issuer:x509:corp", at)))
		s.add(s.approve(ch))
		s.add(&state.HoldLifted{Scope: "issuer:x509:corp", Hold: at, Change: ch})
	}, "is a revocation.confirm"},
	{invariant.Lifecycle, "a release of a version that never was", func(s *scene) {
		e := s.release()
		e.Version = 99
		s.add(e)
	}, "there is no version 99 of db/c"},
	{invariant.Lifecycle, "a hold lifted twice", func(s *scene) {
		ch, at := s.approved()
		s.add(&state.HoldLifted{Scope: "issuer:x509:corp", Hold: at, Change: ch})
		ch = s.add(s.propose("hold.lift", hold("issuer:x509:corp", at)))
		s.add(s.approve(ch))
		s.add(&state.HoldLifted{Scope: "issuer:x509:corp", Hold: at, Change: ch})
	}, "there is no hold on issuer:x509:corp by entry"},
	{invariant.Lifecycle, "a revocation of nothing", func(s *scene) {
		e := s.revoke("issuer:x509:corp")
		e.Cutoff = false
		s.add(e)
	}, "it neither cuts off nor holds"},
	{invariant.Lifecycle, "a confirmation of a hold that is not there", func(s *scene) {
		e := s.revoke("issuer:x509:corp")
		e.Hold = true
		e.Change = s.add(s.propose("revocation.confirm", hold("issuer:x509:corp", 0)))
		s.add(s.approve(e.Change))
		s.add(e)
	}, "there is no hold on issuer:x509:corp to confirm"},
	{invariant.Lifecycle, "an approval of a change that expired", func(s *scene) {
		p := s.propose("hold.lift", hold("everything", 7))
		p.Expires = s.entries[len(s.entries)-1].Time + 2000
		s.addAt(p.Expires, s.approve(s.add(p)))
	}, "there is no open change"},
	{invariant.Lifecycle, "an approval of nothing", func(s *scene) { s.add(s.approve(3)) }, "there is no open change 3"},
	{invariant.Lifecycle, "a version that begins retired", func(s *scene) {
		e := s.write()
		e.State, e.Retires = state.Retired, 0
		s.add(e)
	}, "a version does not begin as"},
	{invariant.Lifecycle, "a first version that replaces another", func(s *scene) {
		e := s.write()
		e.Secret, e.Version, e.Retires = "db/new", 1, 1
		s.add(e)
	}, "a first version of db/new replaces others"},
	{invariant.Lifecycle, "a write that destroys the current version", func(s *scene) {
		e := s.write()
		e.Destroys = []uint64{e.Retires}
		s.add(e)
	}, "can't be destroyed"},
	{invariant.Lifecycle, "a staged version that retires the current one", func(s *scene) {
		e := s.write()
		e.State = state.Staged
		s.add(e)
	}, "nothing takes its place"},
	{invariant.Lifecycle, "a version retired that is not there any more", func(s *scene) {
		e := s.write()
		e.State, e.Destroys, e.Retires = state.Staged, []uint64{e.Retires}, 0
		s.add(e)
		next := s.write()
		next.Retires = 1
		s.add(next)
	}, "version 1 can't be retired"},
	{invariant.Lifecycle, "a move of a version that is not there", func(s *scene) {
		e := last[*state.SecretMoved](s, nil)
		e.Version = 99
		s.add(e)
	}, "there is no version 99 of"},

	{invariant.Separated, "a genesis that nobody signed", func(s *scene) {
		s.genesis(func(g *state.Genesis) { g.Signatures = nil })
	}, "nobody signed it"},
	{invariant.Separated, "a proposal that another person signed", func(s *scene) {
		e := s.propose("hold.lift", hold("everything", 7))
		e.Signature.Person = "carol"
		s.add(e)
	}, "proposes what carol signed"},
	{invariant.Separated, "a bundle that another person signed", func(s *scene) {
		_, p := s.inForce()
		p.Bundle.Person = "carol"
		s.add(p)
	}, "/human/alice proposes what"},
	{invariant.Separated, "a bundle that its proposer did not sign", func(s *scene) {
		_, p := s.inForce()
		p.Bundle = nil
		s.add(p)
	}, "a bundle is signed by its proposer, and nothing else is"},
	{invariant.Separated, "a change of a production environment that its proposer may approve", func(s *scene) {
		c := s.r.checker()
		g := last[*state.Genesis](s, nil)
		g.Class = "production"
		c.Feed(0, &state.Entry{Time: s.entries[0].Time, Event: g})
		p := s.propose("hold.lift", hold("everything", 7))
		p.SelfOK = true
		s.found = append(s.found, c.Feed(1, &state.Entry{Time: s.entries[len(s.entries)-1].Time, Event: p})...)
	}, "its proposer may approve it"},

	{invariant.Monotonic, "a second genesis", func(s *scene) { s.add(last[*state.Genesis](s, nil)) }, "genesis is the first entry"},
	{invariant.Confined, "a genesis whose document can't be read", func(s *scene) {
		s.genesis(func(g *state.Genesis) { g.Document = "{" })
	}, "its document can't be read"},
	{invariant.Confined, "an identity that is no path", func(s *scene) {
		e := s.workload()
		e.Node = "node"
		s.add(e)
	}, `"node" is not an identity of this environment`},
}
