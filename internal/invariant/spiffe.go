package invariant

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/state"
)

// What tokens and the documents of trust are bounded by, whatever a bundle says.
const (
	maxTokenLife   = 5 * minute
	maxAudiences   = 8
	tokensTold     = 4 // keys of tokens that are published
	minFederation  = 5 * minute
	spiffeProtocol = 2
	maxWithdrawal  = 300
)

// tokenState is what the model knows of tokens, published keys and other trust domains.
type tokenState struct {
	since     map[uint64]state.Millis // when each of the last keys of tokens was added, by number
	algorithm string                  // of the newest
	latest    map[uint64]state.Millis // when the last token of a key is over
	withdrawn map[string]uint64       // kind → highest number
	added     []uint64                // indexes of the entries that added CAs, from the second on
	foreign   map[string]foreign      // by the relation's name
}

// foreign is the newest bundle of another trust domain.
type foreign struct {
	pin, document state.Digest
	sequence      uint64
	sequenced     bool
	at            state.Millis
}

func newTokenState() tokenState {
	return tokenState{
		since: map[uint64]state.Millis{}, latest: map[uint64]state.Millis{}, withdrawn: map[string]uint64{}, foreign: map[string]foreign{},
	}
}

// signingKey is the number of the key that signs tokens: the one before the newest, which is published ahead; the only one if there
// is one.
func (m *model) signingKey() uint64 {
	n := m.envKeys["jwt"]
	if n > 1 {
		return n - 1
	}
	return n
}

func (m *model) learnSPIFFE(st *step) {
	t := &m.tokensOut
	switch e := st.event.(type) {
	case *state.KeyAdded:
		if kind, _, ok := keyNumber(e.Key.Name); ok && kind == "ca" {
			t.added = append(t.added, st.index)
		}
	case *state.JWTKeyAdded:
		m.learnKey(&e.Key)
		if _, n, ok := keyNumber(e.Key.Name); ok {
			t.since[n], t.algorithm = st.at, algorithmOf(&e.Key)
			if n > tokensTold {
				delete(t.since, n-tokensTold)
				delete(t.latest, n-tokensTold)
			}
		}
	case *state.KeyWithdrawn:
		if kind, n, ok := keyNumber(e.Key); ok {
			t.withdrawn[kind] = max(t.withdrawn[kind], n)
		}
	case *state.JWTIssued:
		if _, n, ok := keyNumber(e.Key); ok {
			t.latest[n] = max(t.latest[n], e.Expires)
		}
		if x := m.sessions[e.Actor.Session]; x != nil {
			x.tokens = max(x.tokens, e.Expires)
		}
	case *state.FederationRefreshed:
		t.foreign[e.Name] = foreign{e.Pin, e.Document, e.Sequence, e.Sequenced, st.at}
	}
}

// monotonicSPIFFE: numbers only rise, and what an older server doesn't know is not entered before the protocol was raised.
func (c *Checker) monotonicSPIFFE(st *step, fail failure) {
	t := &c.m.tokensOut
	switch e := st.event.(type) {
	case *state.JWTKeyAdded:
		if kind, n, ok := keyNumber(e.Key.Name); !ok || kind != "jwt" || n != c.m.envKeys["jwt"]+1 {
			fail("key %.80q follows number %d", e.Key.Name, c.m.envKeys["jwt"])
		}
	case *state.KeyWithdrawn:
		if kind, n, ok := keyNumber(e.Key); ok && n <= t.withdrawn[kind] {
			fail("%s was withdrawn before", e.Key)
		}
	case *state.JWTIssued, *state.EvidenceUsed, *state.EvidenceForgotten, *state.NodeQuarantined, *state.IdentityDecommissioned:
	case *state.FederationRefreshed:
		old, known := t.foreign[e.Name]
		switch {
		case !known || old.pin != e.Pin:
		case old.document == e.Document:
			fail("the bundle of %s is what it was", e.TrustDomain)
		case old.sequenced && (!e.Sequenced || e.Sequence <= old.sequence):
			fail("the bundle of %s goes back from %d", e.TrustDomain, old.sequence)
		}
	default:
		return
	}
	if c.m.protocol < spiffeProtocol {
		fail("protocol %d is in force, and it takes %d", c.m.protocol, spiffeProtocol)
	}
}

// permittedSPIFFE asks the bundle in force: its audiences, its issuer, its relations, and what its rotation says.
func (c *Checker) permittedSPIFFE(st *step, fail failure) {
	if st.prog == nil {
		return
	}
	settings := st.prog.Environment().SPIFFE
	switch e := st.event.(type) {
	case *state.JWTIssued:
		for _, a := range e.Audience {
			if !settings.Audience(a) {
				fail("the bundle in force allows no tokens for the audience %q", a)
			}
		}
		if e.Issuer != settings.Issuer {
			fail("it names the issuer %q, and the bundle in force %q", e.Issuer, settings.Issuer)
		}
		if strings.HasPrefix(e.Actor.Identity, "/human/") || strings.HasPrefix(e.Actor.Identity, "/server/") {
			fail("%s has no tokens", e.Actor.Identity)
		}
		if x := c.m.sessions[e.Actor.Session]; x != nil {
			if why := c.gone(st.prog, x); why != "" {
				fail("by the bundle in force %s is not who it was: %s", x.identity, why)
			}
		}
	case *state.JWTKeyAdded:
		n := c.m.envKeys["jwt"]
		wait := settings.Rotate
		if c.m.tokensOut.algorithm != settings.Algorithm {
			wait = settings.RefreshHint
		}
		if since, known := c.m.tokensOut.since[n]; e.Actor == nil && n > 1 && known && st.at < since.Add(wait) {
			fail("nobody asked for a key of tokens, and the newest is of %s", since)
		}
		if have := algorithmOf(&e.Key); have != "" && have != settings.Algorithm {
			fail("it signs by %s, and the bundle in force asks for %s", have, settings.Algorithm)
		}
	case *state.FederationRefreshed:
		f, ok := st.prog.Federation(e.Name)
		if !ok || f.TrustDomain != e.TrustDomain || state.Digest(f.Pin()) != e.Pin {
			fail("the bundle in force has no such federation %.80q", e.Name)
		}
	}
}

func (c *Checker) boundedSPIFFE(st *step, fail failure) {
	switch e := st.event.(type) {
	case *state.JWTIssued:
		most := maxTokenLife
		if st.prog != nil {
			most = min(most, state.Millis(st.prog.Environment().SPIFFE.TokenTTL.Milliseconds()))
		}
		if e.Expires <= st.at || e.Expires > st.at+most {
			fail("it lives until %s", e.Expires)
		}
		if x := c.m.sessions[e.Actor.Session]; x != nil && e.Expires > x.expires {
			fail("it ends at %s, after its session at %s", e.Expires, x.expires)
		}
		if len(e.Audience) == 0 || len(e.Audience) > maxAudiences {
			fail("it is for %d audiences", len(e.Audience))
		}
	case *state.FederationRefreshed:
		if old, known := c.m.tokensOut.foreign[e.Name]; known && old.pin == e.Pin && st.at < old.at+minFederation {
			fail("the bundle of %s changed at %s already", e.TrustDomain, old.at)
		}
	case *state.KeyWithdrawn:
		if e.Reason == "" || len(e.Reason) > maxWithdrawal+8 {
			fail("it gives no reason, or a long one")
		}
	}
}

func (c *Checker) lifecycleSPIFFE(st *step, fail failure) {
	t := &c.m.tokensOut
	switch e := st.event.(type) {
	case *state.JWTIssued:
		if signs := fmt.Sprintf("jwt/%d", c.m.signingKey()); e.Key != signs {
			fail("%.80q signs it, and %s signs tokens", e.Key, signs)
		}
	case *state.JWTKeyAdded:
		n := c.m.envKeys["jwt"] + 1
		if n > tokensTold && t.latest[n-tokensTold] > st.at && n-tokensTold > t.withdrawn["jwt"] {
			fail("jwt/%d is published no more, and a token of it lives until %s", n-tokensTold, t.latest[n-tokensTold])
		}
	case *state.KeyWithdrawn:
		kind, n, ok := keyNumber(e.Key)
		current := c.m.envKeys["ca"]
		if kind == "jwt" {
			current = c.m.signingKey()
		}
		if !ok || (kind != "ca" && kind != "jwt") || n >= current {
			fail("%.80q is not a former key that others trust", e.Key)
			return
		}
		if until := c.signedUntil(kind, n); !e.Compromised && until > st.at {
			fail("what %s signed lives until %s", e.Key, until)
		}
	}
}

// signedUntil is when the last thing is over that a former key, or one before it, signed.
func (c *Checker) signedUntil(kind string, n uint64) state.Millis {
	until := state.Millis(0)
	if kind == "jwt" {
		for number, latest := range c.m.tokensOut.latest {
			if number <= n {
				until = max(until, latest)
			}
		}
		return until
	}
	if added := c.m.tokensOut.added; n >= 1 && n <= uint64(len(added)) {
		for index, x := range c.m.sessions {
			if index < added[n-1] {
				until = max(until, x.expires)
			}
		}
	}
	return until
}

func (c *Checker) confinedSPIFFE(st *step, fail failure) {
	switch e := st.event.(type) {
	case *state.JWTIssued:
		if e.Subject != e.Actor.Identity {
			fail("%s has a token for %.200q", e.Actor.Identity, e.Subject)
		}
	case *state.JWTKeyAdded:
		if kind, _, named := keyNumber(e.Key.Name); algorithmOf(&e.Key) == "" || !named || kind != "jwt" || len(e.Key.Cert)+len(e.Key.Cross) > 0 {
			fail("%.80q is not a key of tokens", e.Key.Name)
		}
	case *state.FederationRefreshed:
		if err := identity.ValidEnv(e.TrustDomain); err != nil || e.TrustDomain == c.m.name {
			fail("%.80q is not another trust domain", e.TrustDomain)
		}
	}
}

// attestedSPIFFE checks what a token derives from.
func (c *Checker) attestedSPIFFE(st *step, fail failure) {
	e, ok := st.event.(*state.JWTIssued)
	if !ok {
		return
	}
	if x := c.m.sessions[e.Actor.Session]; x != nil && e.Root != x.root {
		fail("it derives from entry %d, the session from %d", e.Root, x.root)
	}
	if slices.Contains(e.Audience, "") {
		fail("it is for nobody")
	}
}

// algorithmOf is what a key of tokens signs by, or "" if tokens are not signed by such keys.
func algorithmOf(k *state.KeyFacts) string {
	pub, err := x509.ParsePKIXPublicKey(k.Public)
	if err != nil {
		return ""
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return "ES256"
		}
	case *rsa.PublicKey:
		if k.N.BitLen() == 2048 {
			return "RS256"
		}
	}
	return ""
}
