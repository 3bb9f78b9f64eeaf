package control_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
	"github.com/bailment/bailment/internal/state"
)

// spiffeEnvironment is environment.yaml with a spiffe section.
func spiffeEnvironment(section string) []byte {
	return fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 0}\n  spiffe: %s\n", controltest.EnvName, section)
}

// trustOf is the environment's trust bundle, as go-spiffe reads it.
func trustOf(t *testing.T, w *controltest.World) *spiffebundle.Bundle {
	t.Helper()
	doc, err := w.Env.TrustBundle()
	if err != nil {
		t.Fatal(err)
	}
	b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(controltest.EnvName), doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func issue(t *testing.T, w *controltest.World, by controltest.Actor, audience ...string) *control.JWT {
	t.Helper()
	out, err := w.Env.IssueJWT(t.Context(), by.Caller, control.JWTRequest{Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A token is what go-spiffe takes for one, says what its entry says, and is not in the ledger.
func TestJWTSVID(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": spiffeEnvironment("{jwt: {issuer: \"https://oidc.example/test\", ttl: 2m}}")}})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	for _, by := range []controltest.Actor{api, node} {
		out := issue(t, w, by, "reports")
		svid, err := jwtsvid.ParseAndValidate(out.Token, trustOf(t, w), []string{"reports"})
		if err != nil {
			t.Fatal(err)
		}
		if svid.ID.String() != by.Opened.Identity.String() || !slices.Equal(svid.Audience, []string{"reports"}) || !svid.Expiry.Equal(out.Expires) {
			t.Fatalf("%+v is not what %+v says", svid, out)
		}
		if life := out.Expires.Sub(out.Issued); life <= time.Minute || life > 2*time.Minute+time.Second {
			t.Fatalf("it lives %s", life)
		}
		if svid.Claims["iss"] != "https://oidc.example/test" || svid.Claims["jti"] != fmt.Sprintf("0.%d", out.Index) {
			t.Fatalf("claims %v of entry %d", svid.Claims, out.Index)
		}
		if _, err := jwtsvid.ParseAndValidate(out.Token, trustOf(t, w), []string{"billing"}); err == nil {
			t.Fatal("it is good for another audience")
		}
		foreign := spiffebundle.New(spiffeid.RequireTrustDomainFromString("other.example"))
		if _, err := jwtsvid.ParseAndValidate(out.Token, foreign, []string{"reports"}); err == nil {
			t.Fatal("it is good for another trust domain's bundle")
		}
		// JWT-SVID §2: no other headers.
		tok, err := jwt.ParseSigned(out.Token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil || len(tok.Headers) != 1 || tok.Headers[0].KeyID == "" || len(tok.Headers[0].ExtraHeaders) > 1 || tok.Headers[0].ExtraHeaders[jose.HeaderType] != "JWT" {
			t.Fatalf("headers %+v, %v", tok.Headers, err)
		}
		for i, e := range w.Stored() {
			if bytes.Contains(e.Body, []byte(out.Token)) || bytes.Contains(e.Body, []byte(out.Token[strings.LastIndexByte(out.Token, '.')+1:])) {
				t.Fatalf("entry %d holds the token", i)
			}
		}
		ev := entryAt[*state.JWTIssued](t, w, out.Index)
		if ev.Subject != by.Opened.Identity.Path() || ev.Key != "jwt/1" || ev.Actor.Session != by.Opened.Index || ev.Issuer != "https://oidc.example/test" {
			t.Fatalf("entered as %+v", ev)
		}
	}
	// The keys as OpenID Connect has them verify it as well.
	doc, err := w.Env.TokenKeys()
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(doc, &set); err != nil {
		t.Fatal(err)
	}
	tok, err := jwt.ParseSigned(issue(t, w, api, "sts.example").Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := tok.Claims(set, &claims); err != nil {
		t.Fatal(err)
	}
	if err := claims.Validate(jwt.Expected{Issuer: "https://oidc.example/test", AnyAudience: jwt.Audience{"sts.example"}, Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
}

func entryAt[E state.Event](t *testing.T, w *controltest.World, index uint64) E {
	t.Helper()
	e, err := state.Decode(w.Stored()[index].Body)
	if err != nil {
		t.Fatal(err)
	}
	ev, ok := e.Event.(E)
	if !ok {
		t.Fatalf("entry %d is a %s", index, e.Event.Kind())
	}
	return ev
}

func TestJWTRefusals(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": spiffeEnvironment("{jwt: {audiences: [reports, \"spiffe://partner.example/*\"]}}")}})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	api := w.Workload(node, "")
	many := make([]string, spiffe.MaxAudiences+1)
	for i := range many {
		many[i] = fmt.Sprintf("spiffe://partner.example/%d", i)
	}
	for name, x := range map[string]struct {
		by       control.Caller
		audience []string
		ttl      time.Duration
		want     problem.Reason
	}{
		"no session":             {control.Caller{}, []string{"reports"}, 0, problem.ReasonNoSession},
		"a person":               {alice.Caller, []string{"reports"}, 0, problem.ReasonNoIdentity},
		"an audience":            {api.Caller, []string{"billing"}, 0, problem.ReasonNoAudience},
		"one of two":             {api.Caller, []string{"reports", "billing"}, 0, problem.ReasonNoAudience},
		"the family itself":      {api.Caller, []string{"spiffe://partner.example/"}, 0, problem.ReasonNoAudience},
		"nobody":                 {api.Caller, nil, 0, problem.ReasonInvalid},
		"empty":                  {api.Caller, []string{""}, 0, problem.ReasonInvalid},
		"twice":                  {api.Caller, []string{"reports", "reports"}, 0, problem.ReasonInvalid},
		"many":                   {api.Caller, many, 0, problem.ReasonInvalid},
		"long":                   {api.Caller, []string{strings.Repeat("a", spiffe.MaxAudience+1)}, 0, problem.ReasonInvalid},
		"not text":               {api.Caller, []string{"\xff"}, 0, problem.ReasonInvalid},
		"a line":                 {api.Caller, []string{"a\nb"}, 0, problem.ReasonInvalid},
		"a life before now":      {api.Caller, []string{"reports"}, -time.Second, problem.ReasonInvalid},
		"a life of milliseconds": {api.Caller, []string{"reports"}, time.Millisecond, problem.ReasonInvalid},
	} {
		_, err := w.Env.IssueJWT(t.Context(), x.by, control.JWTRequest{Audience: x.audience, TTL: x.ttl})
		if !problem.Is(err, x.want) {
			t.Errorf("%s: %v, want %s", name, err, x.want)
		}
	}
	// More than is allowed is as much as is allowed, and less is less.
	long, err := w.Env.IssueJWT(t.Context(), api.Caller, control.JWTRequest{Audience: []string{"spiffe://partner.example/db"}, TTL: time.Hour})
	if err != nil || long.Expires.Sub(long.Issued) > spiffe.MaxTokenLife {
		t.Fatalf("%v %+v", err, long)
	}
	short, err := w.Env.IssueJWT(t.Context(), api.Caller, control.JWTRequest{Audience: []string{"reports"}, TTL: 10 * time.Second})
	if err != nil || short.Expires.Sub(short.Issued) > 10*time.Second {
		t.Fatalf("%v %+v", err, short)
	}
	// Who is cut off gets none, and the horizon covers what he has.
	out, err := w.Env.Revoke(t.Context(), alice.Caller, control.RevokeRequest{Scope: "identity:/workload/api", Reason: "test"})
	if err != nil || out.Horizon.Before(long.Expires) {
		t.Fatalf("%v: horizon %s, and a token lives until %s", err, out.Horizon, long.Expires)
	}
	_, err = w.Env.IssueJWT(t.Context(), api.Caller, control.JWTRequest{Audience: []string{"reports"}})
	wantReason(t, err, problem.ReasonCutoff)
}

// Keys are published before they sign, and verify until the last token is over, through two rotations in a row.
func TestTokenKeyRotation(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	verify := func(what string, b *spiffebundle.Bundle, tokens ...*control.JWT) {
		t.Helper()
		for i, x := range tokens {
			if _, err := jwtsvid.ParseAndValidate(x.Token, b, []string{"a"}); err != nil {
				t.Fatalf("%s: token %d: %v", what, i, err)
			}
		}
	}
	first := issue(t, w, api, "a")
	before := trustOf(t, w)
	if n := len(before.JWTAuthorities()); n != 2 {
		t.Fatalf("%d keys are published, not the first and the next", n)
	}
	tokens := []*control.JWT{first}
	for range 2 {
		old := trustOf(t, w)
		if _, _, err := w.Env.RotateKey(t.Context(), alice.Caller, "jwt"); err != nil {
			t.Fatal(err)
		}
		next := issue(t, w, api, "a")
		verify("with the bundle from before the rotation", old, next)
		tokens = append(tokens, next)
		verify("with the bundle from after it", trustOf(t, w), tokens...)
	}
	if older, newer := seqOf(before), seqOf(trustOf(t, w)); newer <= older {
		t.Fatalf("the sequence went from %d to %d", older, newer)
	}
	// A third one would leave the first token without its key.
	_, _, err := w.Env.RotateKey(t.Context(), alice.Caller, "jwt")
	wantReason(t, err, problem.ReasonLifecycle)
	w.Reopen()
	verify("after a restart", trustOf(t, w), append(tokens, issue(t, w, api, "a"))...)

	// Withdrawing a key whose tokens are valid takes saying that it is in wrong hands.
	withdraw := func(key string, compromised bool) error {
		_, err := w.Env.WithdrawKey(t.Context(), alice.Caller, control.WithdrawRequest{Key: key, Compromised: compromised, Reason: "test"})
		return err
	}
	wantReason(t, withdraw("jwt/2", false), problem.ReasonLifecycle)
	wantReason(t, withdraw("jwt/3", true), problem.ReasonLifecycle) // it signs
	wantReason(t, withdraw("jwt/9", true), problem.ReasonNotFound)
	wantReason(t, withdraw("kek/1", true), problem.ReasonInvalid)
	_, err = w.Env.WithdrawKey(t.Context(), api.Caller, control.WithdrawRequest{Key: "jwt/1", Reason: "test"})
	wantReason(t, err, problem.ReasonDuty)
	if err := withdraw("jwt/2", true); err != nil {
		t.Fatal(err)
	}
	wantReason(t, withdraw("jwt/1", true), problem.ReasonLifecycle) // it went with it
	b := trustOf(t, w)
	for i, x := range tokens {
		if _, err := jwtsvid.ParseAndValidate(x.Token, b, []string{"a"}); (err == nil) != (i == 2) {
			t.Fatalf("token %d after the withdrawal: %v", i, err)
		}
	}
	if _, _, err := w.Env.RotateKey(t.Context(), alice.Caller, "jwt"); err != nil { // now it may be
		t.Fatal(err)
	}
}

func seqOf(b *spiffebundle.Bundle) uint64 {
	n, _ := b.SequenceNumber()
	return n
}

// The environment rotates by itself when its bundle says so, and makes no keys before anybody needs them.
func TestTokenKeysAreTended(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": spiffeEnvironment("{jwt: {rotate: 24h}}")}})
	if n := len(trustOf(t, w).JWTAuthorities()); n != 0 {
		t.Fatalf("%d keys that nobody needs", n)
	}
	alice := w.Login("alice")
	issue(t, w, w.Workload(w.Node(alice, "web-1"), ""), "a")
	w.Advance(25 * time.Hour)
	if err := w.Env.TendTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys := w.Env.State().Told(state.KeyJWT)
	if len(keys) != 3 || !keys[1].Current || keys[0].Current || keys[2].Current {
		t.Fatalf("%d keys after the time", len(keys))
	}
	if err := w.Env.TendTokens(t.Context()); err != nil || len(w.Env.State().Told(state.KeyJWT)) != 3 {
		t.Fatalf("again: %v", err)
	}
	alice = w.Login("alice")
	api := w.Workload(w.Node(alice, "web-2"), "")
	if ev := entryAt[*state.JWTIssued](t, w, issue(t, w, api, "a").Index); ev.Key != "jwt/2" {
		t.Fatalf("%s signs", ev.Key)
	}
	views, err := w.Env.ListKeys(t.Context(), alice.Caller)
	if err != nil || !slices.ContainsFunc(views, func(v control.KeyView) bool { return v.Name == "jwt/2" && v.Current }) {
		t.Fatalf("%v: the list has no jwt/2 that signs", err)
	}
	// With an issuer the keys are there before the first token.
	w = controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": spiffeEnvironment("{jwt: {issuer: \"https://oidc.example\"}}")}})
	if err := w.Env.TendTokens(t.Context()); err != nil || len(trustOf(t, w).JWTAuthorities()) != 2 {
		t.Fatalf("%v: no keys for verifiers", err)
	}
}

// Another algorithm in the bundle has a key for it published at once, and tokens signed by it after the next rotation; whoever has the keys
// of before takes those of before meanwhile.
func TestTokenAlgorithm(t *testing.T) {
	section := func(algorithm string) []byte {
		return spiffeEnvironment(fmt.Sprintf("{jwt: {issuer: \"https://oidc.example\", algorithm: %s}}", algorithm))
	}
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": section("ES256")}})
	alice := w.Login("alice")
	api := w.Workload(w.Node(alice, "web-1"), "")
	// verified is what a new token is signed by, by keys that somebody has. The world's clock is ahead of the one that go-spiffe asks.
	verified := func(by *spiffebundle.Bundle) string {
		t.Helper()
		x, err := jwt.ParseSigned(issue(t, w, api, "a").Token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
		if err != nil {
			t.Fatal(err)
		}
		key, ok := by.FindJWTAuthority(x.Headers[0].KeyID)
		if !ok {
			t.Fatal("the key is not told")
		}
		if err := x.Claims(key, &jwt.Claims{}); err != nil {
			t.Fatal(err)
		}
		return x.Headers[0].Algorithm
	}
	algorithm := func() string { t.Helper(); return verified(trustOf(t, w)) }
	told := func(want string) {
		t.Helper()
		doc, err := w.Env.Discovery()
		if err != nil || !strings.Contains(string(doc), `"id_token_signing_alg_values_supported":[`+want+`]`) {
			t.Errorf("%v: %s", err, doc)
		}
	}
	if got := algorithm(); got != "ES256" {
		t.Fatalf("signed by %s", got)
	}
	told(`"ES256"`)
	files := maps.Clone(w.Files)
	files["environment.yaml"] = section("RS256")
	p, err := w.Propose(alice, "alice", files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Approve(alice, "alice", p.Change); err != nil {
		t.Fatal(err)
	}
	if err := w.Env.TendTokens(t.Context()); err != nil || len(w.Env.State().Told(state.KeyJWT)) != 2 {
		t.Fatalf("%v: the key that would sign next is not told to others yet", err)
	}
	w.Advance(6 * time.Minute)
	for range 2 { // the second time there is nothing to do
		if err := w.Env.TendTokens(t.Context()); err != nil || len(w.Env.State().Told(state.KeyJWT)) != 3 {
			t.Fatal(err)
		}
	}
	if got := algorithm(); got != "ES256" {
		t.Fatalf("signed by %s, which nobody has heard of", got)
	}
	told(`"ES256","RS256"`)
	old := trustOf(t, w)
	if _, _, err := w.Env.RotateKey(t.Context(), alice.Caller, "jwt"); err != nil {
		t.Fatal(err)
	}
	if got := algorithm(); got != "RS256" {
		t.Fatalf("signed by %s after the rotation", got)
	}
	verified(old)
	if found := violations(t, w); len(found) > 0 {
		t.Error(found)
	}
	w.Reopen()
	api = w.Workload(w.Node(w.Login("alice"), "web-2"), "")
	if got := algorithm(); got != "RS256" {
		t.Fatalf("signed by %s after a restart", got)
	}
}

// Through a rotation of the CA each side takes the other's SVID, whether it has heard of the new bundle, renewed, both or
// neither; and a CA is taken out when nothing of it is left, or when it leaked.
func TestCARotationFailsNoHandshake(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	type peer struct {
		chain  []*x509.Certificate
		bundle *spiffebundle.Bundle
	}
	take := func() peer {
		t.Helper()
		p := peer{bundle: trustOf(t, w)}
		for _, der := range w.Workload(node, "").Opened.Chain {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			p.chain = append(p.chain, c)
		}
		return p
	}
	peers := []peer{take()}
	for range 3 {
		if _, _, err := w.Env.RotateKey(t.Context(), alice.Caller, "ca"); err != nil {
			t.Fatal(err)
		}
		peers = append(peers, take())
	}
	all := func(want func(mine, theirs int) bool) {
		t.Helper()
		for i, mine := range peers {
			for j, theirs := range peers {
				id, _, err := x509svid.Verify(theirs.chain, mine.bundle)
				if (err == nil) != want(i, j) || (err == nil && id.Path() != "/workload/api") {
					t.Errorf("who knows of %d rotations, and is shown an SVID of %d: %v %v", i, j, id, err)
				}
			}
		}
	}
	all(func(int, int) bool { return true })

	_, err := w.Env.WithdrawKey(t.Context(), alice.Caller, control.WithdrawRequest{Key: "ca/2", Reason: "old"})
	wantReason(t, err, problem.ReasonLifecycle)
	if _, err = w.Env.WithdrawKey(t.Context(), alice.Caller, control.WithdrawRequest{Key: "ca/2", Compromised: true, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	// Who has heard of it trusts the third and fourth CA only; nobody fails who renewed after the rotation.
	peers = append(peers, take())
	all(func(mine, theirs int) bool { return mine < 4 || theirs >= 2 })
	if got := peers[4].bundle.X509Authorities(); len(got) != 2 {
		t.Fatalf("%d authorities are left", len(got))
	}
	// After a day what the third has signed is over.
	w.Advance(26 * time.Hour)
	alice = w.Login("alice")
	if _, err = w.Env.WithdrawKey(t.Context(), alice.Caller, control.WithdrawRequest{Key: "ca/3", Reason: "old"}); err != nil {
		t.Fatal(err)
	}
	if got := trustOf(t, w).X509Authorities(); len(got) != 1 {
		t.Fatalf("%d authorities are left", len(got))
	}
	if v := violations(t, w); len(v) > 0 {
		t.Fatal(v)
	}
}

// violations judges everything that was entered, and replays it.
func violations(t *testing.T, w *controltest.World) []invariant.Violation {
	t.Helper()
	programs := w.Programs()
	c := invariant.New(invariant.Options{Genesis: w.Genesis, Program: func(d state.Digest) *policy.Program { return programs[d] }})
	r := invariant.NewReplayer(nil)
	var out []invariant.Violation
	for i, x := range w.Stored() {
		e, err := state.Decode(x.Body)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c.Feed(uint64(i), e)...)
		out = append(out, r.Feed(uint64(i), x.Body)...)
	}
	return append(out, r.Compare(w.Env.State())...)
}

func TestFederatedBundles(t *testing.T) {
	partner := controltest.NewForeign(t, controltest.Partner)
	indent := func(doc []byte) string { return strings.ReplaceAll(string(doc), "\n", "\n    ") }
	relation := func(pinned []byte) []byte {
		return []byte("apiVersion: bailment/v1\nkind: Federation\nmetadata: {name: partner}\nspec:\n  trustDomain: partner.example\n  endpoint: {url: \"https://partner.example:8443/spiffe/bundle\", profile: https_spiffe, id: \"spiffe://partner.example/server/s1\"}\n  bundle: |\n    " + indent(pinned) + "\n")
	}
	files := policy.Files{
		"federation/partner.yaml": relation(partner.Bundle(t, 3)),
		"identities/fed.yaml":     []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: fed}\nspec: {method: workload, path: /workload/fed, nodes: [/node/join-token/*], when: 'claims.unix.uid == 1000', federatesWith: [partner]}\n"),
	}
	w := controltest.New(t, controltest.Options{Extra: files})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	fed, api := w.Workload(node, "/workload/fed"), w.Workload(node, "/workload/api")
	documents := func(by controltest.Actor) ([]control.Relation, *control.TrustBundles) {
		t.Helper()
		b, err := w.Env.TrustBundles(t.Context(), by.Caller)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := spiffe.Parse(controltest.EnvName, b.Own); err != nil {
			t.Fatal(err)
		}
		return b.Federated, b
	}
	if got, _ := documents(fed); len(got) != 1 || !bytes.Equal(bytes.TrimSpace(got[0].Document), bytes.TrimSpace(partner.Bundle(t, 3))) {
		t.Fatalf("the workload gets %+v", got)
	}
	if got, _ := documents(api); len(got) != 0 {
		t.Fatalf("who federates with nobody gets %+v", got)
	}
	if got, all := documents(node); len(got) != 1 || len(all.Workloads) != 2 || all.Workloads[1].Path != "/workload/fed" || !slices.Equal(all.Workloads[1].FederatesWith, []string{"partner"}) {
		t.Fatalf("the node gets %+v", all)
	}
	if got, _ := documents(alice); len(got) != 0 {
		t.Fatalf("a person gets %+v", got)
	}
	pin := func() state.Digest {
		t.Helper()
		all, err := w.Env.Relations(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0].Pin
	}
	refresh := func(doc []byte) (bool, error) { return w.Env.Refreshed(t.Context(), "partner", pin(), doc) }
	other := controltest.NewForeign(t, "other.example")
	renewed := controltest.NewForeign(t, controltest.Partner)
	control0 := w.Env.State().Control
	for name, x := range map[string]struct {
		doc  []byte
		want problem.Reason // empty: nothing new
	}{
		"the same":                        {partner.Bundle(t, 3), ""},
		"the same, later":                 {partner.Bundle(t, 9), ""},
		"an older one":                    {renewed.Bundle(t, 2), problem.ReasonForeignBundle},
		"another under the same sequence": {renewed.Bundle(t, 3), problem.ReasonForeignBundle},
		"one that lost its sequence":      {renewed.Bundle(t, 0), problem.ReasonForeignBundle},
		"of another trust domain":         {other.Bundle(t, 9), problem.ReasonForeignBundle},
		"without authorities":             {[]byte(`{"keys":[],"spiffe_sequence":9}`), problem.ReasonForeignBundle},
		"not a bundle":                    {[]byte(`{}`), problem.ReasonForeignBundle},
		"oversize":                        {bytes.Repeat([]byte{' '}, spiffe.MaxBundle+1), problem.ReasonForeignBundle},
	} {
		took, err := refresh(x.doc)
		if took || (x.want == "" && err != nil) || (x.want != "" && !problem.Is(err, x.want)) {
			t.Errorf("%s: %v %v, want %q", name, took, err, x.want)
		}
	}
	if _, err := w.Env.Refreshed(t.Context(), "partner", state.Digest{1}, renewed.Bundle(t, 9)); !problem.Is(err, problem.ReasonConflict) {
		t.Errorf("for another relation: %v", err)
	}
	if w.Env.State().Control != control0 {
		t.Fatal("agents were told of nothing")
	}
	if took, err := refresh(renewed.Bundle(t, 9)); err != nil || !took {
		t.Fatal(took, err)
	}
	if w.Env.State().Control == control0 {
		t.Fatal("agents are not told")
	}
	_, err := refresh(partner.Bundle(t, 10))
	wantReason(t, err, problem.ReasonRateLimited)
	w.Reopen()
	if got, _ := documents(fed); len(got) != 1 || !bytes.Equal(got[0].Document, renewed.Bundle(t, 9)) || got[0].Index == 0 {
		t.Fatal("what was fetched is not kept")
	}
	// A relation that was approved anew begins anew.
	next := policy.Files{}
	for path, data := range w.Files {
		next[path] = data
	}
	next["federation/partner.yaml"] = relation(partner.Bundle(t, 1))
	p, err := w.Propose(alice, "alice", next)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Approve(alice, "alice", p.Change); err != nil {
		t.Fatal(err)
	}
	fed = w.Workload(node, "/workload/fed")
	if got, _ := documents(fed); len(got) != 1 || got[0].Index != 0 {
		t.Fatalf("what was fetched under another approval counts: %+v", got)
	}
	if v := violations(t, w); len(v) > 0 {
		t.Fatal(v)
	}
}
