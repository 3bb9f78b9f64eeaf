package invariant_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/state"
)

// next is when the next planted event is.
func (s *scene) next() state.Millis { return s.entries[len(s.entries)-1].Time + 1000 }

// jwt is a legal token of the live workload.
func (s *scene) jwt() *state.JWTIssued {
	e := last(s, func(_ uint64, e *state.JWTIssued) bool { return e.Actor.Identity == "/workload/api" })
	e.Expires, e.Ruling = s.next()+minute, s.ruling()
	return e
}

// tokenKey is a legal next key of tokens, by alice.
func (s *scene) tokenKey() *state.JWTKeyAdded {
	e := last(s, func(_ uint64, e *state.JWTKeyAdded) bool { return e.Actor != nil })
	e.Key.Name, e.Ruling = "jwt/4", s.ruling()
	return e
}

// withdrawal is a legal withdrawal of a key of tokens that is in wrong hands, by alice.
func (s *scene) withdrawal() *state.KeyWithdrawn {
	e := last[*state.KeyWithdrawn](s, nil)
	e.Key, e.Compromised, e.Ruling = "jwt/1", true, s.ruling()
	return e
}

// refreshed is a legal later bundle of the partner, and when it may come.
func (s *scene) refreshed() (*state.FederationRefreshed, state.Millis) {
	e := last[*state.FederationRefreshed](s, nil)
	e.Document[0]++
	e.Sequence++
	e.Ruling = s.ruling()
	return e, s.next() + 6*minute
}

func TestSPIFFEPlantsStartLegal(t *testing.T) {
	s := newScene(t, history(t))
	s.add(s.jwt())
	s.add(s.tokenKey())
	e := s.jwt()
	e.Key = "jwt/3"
	s.add(e)
	s.add(s.withdrawal())
	s.addAt(func() state.Millis { _, at := s.refreshed(); return at }(), func() state.Event { e, _ := s.refreshed(); return e }())
	s.bring("environment.yaml", string(s.r.files["environment.yaml"])+"  spiffe: {jwt: {algorithm: RS256}}\n")
	rotated := s.rsaKey(2048)
	rotated.Key.Name, rotated.Actor = "jwt/5", nil // nobody asked: the bundle did
	s.addAt(s.next()+6*minute, rotated)
	for _, v := range s.found {
		t.Error(v)
	}
}

// rsaKey is tokenKey with an RSA key.
func (s *scene) rsaKey(bits int) *state.JWTKeyAdded {
	s.t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		s.t.Fatal(err)
	}
	e := s.tokenKey()
	if e.Key.Public, err = x509.MarshalPKIXPublicKey(k.Public()); err != nil {
		s.t.Fatal(err)
	}
	return e
}

// spiffePlants are violations about tokens, published keys and other trust domains.
var spiffePlants = []planted{
	{invariant.Attested, "a token that derives from something else", func(s *scene) { e := s.jwt(); e.Root--; s.add(e) }, "it derives from entry"},
	{invariant.Attested, "a token for nobody", func(s *scene) { e := s.jwt(); e.Audience = []string{""}; s.add(e) }, "it is for nobody"},
	{invariant.Attested, "a token in somebody else's session", func(s *scene) {
		e := s.jwt()
		e.Actor.Session = s.r.cast.Alice.Opened.Index
		s.add(e)
	}, "the session is of"},
	{invariant.Confined, "a token for somebody else", func(s *scene) { e := s.jwt(); e.Subject = "/workload/other"; s.add(e) }, "has a token for"},
	{invariant.Permitted, "a token of a person", func(s *scene) {
		e := s.jwt()
		e.Actor, e.Subject = s.token("x").Actor, s.token("x").Actor.Identity
		s.add(e)
	}, "has no tokens"},
	{invariant.Permitted, "an issuer that the bundle doesn't name", func(s *scene) { e := s.jwt(); e.Issuer = "https://evil.example"; s.add(e) }, "it names the issuer"},
	{invariant.Permitted, "an audience that the bundle doesn't allow", func(s *scene) {
		s.bring("environment.yaml", string(s.r.files["environment.yaml"])+"  spiffe: {jwt: {audiences: [billing]}}\n")
		s.add(s.jwt())
	}, "allows no tokens for the audience"},
	{invariant.Permitted, "a key for another algorithm than the bundle's", func(s *scene) { s.add(s.rsaKey(2048)) }, "it signs by RS256"},
	{invariant.Permitted, "a key by itself, for the algorithm that there is", func(s *scene) {
		s.bring("environment.yaml", string(s.r.files["environment.yaml"])+"  spiffe: {jwt: {algorithm: RS256}}\n")
		s.add(s.rsaKey(2048))
		e := s.rsaKey(2048)
		e.Key.Name, e.Actor = "jwt/5", nil
		s.add(e)
	}, "nobody asked for a key of tokens"},
	{invariant.Permitted, "a key by itself, for another algorithm, before others know the one before it", func(s *scene) {
		s.add(s.tokenKey())
		s.bring("environment.yaml", string(s.r.files["environment.yaml"])+"  spiffe: {jwt: {algorithm: RS256}}\n")
		e := s.rsaKey(2048)
		e.Key.Name, e.Actor = "jwt/5", nil
		s.add(e)
	}, "nobody asked for a key of tokens"},
	{invariant.Confined, "a key of tokens of another size", func(s *scene) { s.add(s.rsaKey(3072)) }, "is not a key of tokens"},
	{invariant.Permitted, "a token of who is not who it was", func(s *scene) {
		s.bring("identities/node.yaml", noNodes)
		s.add(s.jwt())
	}, "is not who it was"},
	{invariant.Revoked, "a token after a cutoff", func(s *scene) {
		s.add(s.revoke("identity:/workload/*"))
		s.add(s.jwt())
	}, ""},
	{invariant.Revoked, "a horizon that forgets the tokens of a session that was given back", func(s *scene) {
		e := s.jwt()
		s.add(e)
		s.add(&state.SessionClosed{Session: e.Actor.Session, Actor: e.Actor})
		r := s.revoke("identity:/workload/api")
		r.Horizon = s.next()
		s.add(r)
	}, "lives until"},
	{invariant.Bounded, "a token that is over", func(s *scene) { e := s.jwt(); e.Expires = s.next(); s.add(e) }, "it lives until"},
	{invariant.Bounded, "a token for an hour", func(s *scene) { e := s.jwt(); e.Expires = s.next() + 60*minute; s.add(e) }, "it lives until"},
	{invariant.Bounded, "a token that outlives its session", func(s *scene) {
		e := s.jwt()
		end := state.At(s.r.cast.API.Opened.Expires)
		e.Expires = end + 1000
		s.addAt(end-1000, e)
	}, "after its session at"},
	{invariant.Bounded, "a token for nine", func(s *scene) {
		e := s.jwt()
		e.Audience = strings.Split("a b c d e f g h i", " ")
		s.add(e)
	}, "it is for 9 audiences"},
	{invariant.Bounded, "a withdrawal without a reason", func(s *scene) { e := s.withdrawal(); e.Reason = ""; s.add(e) }, "it gives no reason"},
	{invariant.Bounded, "a trust domain that changes all the time", func(s *scene) { e, _ := s.refreshed(); s.add(e) }, "changed at"},
	{invariant.Lifecycle, "a token signed by the next key", func(s *scene) { e := s.jwt(); e.Key = "jwt/3"; s.add(e) }, "signs tokens"},
	{invariant.Lifecycle, "a rotation that leaves a token without its key", func(s *scene) {
		s.add(s.jwt()) // by jwt/2
		for _, name := range []string{"jwt/4", "jwt/5", "jwt/6"} {
			e := s.tokenKey()
			e.Key.Name = name
			s.add(e)
		}
	}, "jwt/2 is published no more"},
	{invariant.Lifecycle, "a key that signs is withdrawn", func(s *scene) { e := s.withdrawal(); e.Key = "jwt/2"; s.add(e) }, "is not a former key"},
	{invariant.Lifecycle, "a key-encryption key is withdrawn", func(s *scene) { e := s.withdrawal(); e.Key = "kek/1"; s.add(e) }, "is not a former key"},
	{invariant.Lifecycle, "a key is withdrawn under its tokens", func(s *scene) {
		s.add(s.jwt())
		s.add(s.tokenKey())
		e := s.withdrawal()
		e.Key, e.Compromised = "jwt/2", false
		s.add(e)
	}, "what jwt/2 signed lives until"},
	{invariant.Lifecycle, "a CA is withdrawn under its certificates", func(s *scene) {
		ca := last(s, func(_ uint64, e *state.KeyAdded) bool { return strings.HasPrefix(e.Key.Name, "ca/") })
		ca.Key.Name, ca.Actor, ca.Ruling = "ca/3", s.token("x").Actor, s.ruling()
		s.add(ca)
		e := s.withdrawal()
		e.Key, e.Compromised = "ca/2", false
		s.add(e)
	}, "what ca/2 signed lives until"},
	{invariant.Monotonic, "a key of tokens that leaves one out", func(s *scene) { e := s.tokenKey(); e.Key.Name = "jwt/5"; s.add(e) }, "follows number 3"},
	{invariant.Monotonic, "a key that is withdrawn again", func(s *scene) { s.add(s.withdrawal()); s.add(s.withdrawal()) }, "was withdrawn before"},
	{invariant.Monotonic, "the same bundle again", func(s *scene) {
		e := last[*state.FederationRefreshed](s, nil)
		e.Ruling = s.ruling()
		_, at := s.refreshed()
		s.addAt(at, e)
	}, "is what it was"},
	{invariant.Monotonic, "a bundle that goes back", func(s *scene) {
		e, at := s.refreshed()
		e.Sequence -= 2
		s.addAt(at, e)
	}, "goes back from"},
	{invariant.Monotonic, "a token before its protocol", func(s *scene) {
		c := s.r.checker()
		s.found = append(s.found, c.Feed(0, s.oldGenesis())...)
		s.found = append(s.found, c.Feed(1, &state.Entry{Time: s.entries[1].Time, Event: s.jwt()})...)
	}, "protocol 1 is in force"},
	{invariant.Permitted, "a key of tokens that nobody asked for", func(s *scene) { e := s.tokenKey(); e.Actor = nil; s.add(e) }, "nobody asked for"},
	{invariant.Permitted, "a key of tokens by who has not the duty", func(s *scene) {
		e := s.tokenKey()
		actor := s.release().Actor
		e.Actor = &actor
		s.add(e)
	}, "is not a person"},
	{invariant.Permitted, "a federation that nobody approved", func(s *scene) {
		e, at := s.refreshed()
		e.Pin[0]++
		s.addAt(at, e)
	}, "has no such federation"},
	{invariant.Confined, "a key of tokens with a certificate", func(s *scene) { e := s.tokenKey(); e.Key.Cert = []byte{1}; s.add(e) }, "is not a key of tokens"},
	{invariant.Confined, "a bundle for the environment itself", func(s *scene) {
		e, at := s.refreshed()
		e.TrustDomain = "test.example"
		s.addAt(at, e)
	}, "is not another trust domain"},
}

// oldGenesis is the founding entry as it was before newer protocols could hold from the beginning.
func (s *scene) oldGenesis() *state.Entry {
	g := *s.entries[0].Event.(*state.Genesis)
	g.Protocol = 0
	return &state.Entry{Time: s.entries[0].Time, Event: &g}
}
