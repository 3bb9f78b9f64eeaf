package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// attack is what somebody tries, and how it must end.
type attack struct {
	name   string
	do     func(context.Context) error
	reason problem.Reason
	// account is where the ledger says so: the method of a sum, or the action of a denial. Empty: what a
	// proved identity only wrote wrongly is no denial.
	account string
}

// hostile is a server with everything that the attacks need.
type hostile struct {
	*sitetest.Site
	other *site.Site

	alice, bob, victim, web, special, api, cut *client.Session
	admin                                      *client.Client

	expiredToken   jointoken.Token
	expiredSession *client.Session
	unknownSession *client.Session
	oldChallenge   []byte

	foreignSession   *client.Session
	foreignChallenge []byte
	foreignToken     jointoken.Token
}

// Timeouts are short so that slow clients are cut off while the test waits, and one source has few failed
// proofs, so that a flood of them is limited soon.
const hostileConfig = "timeouts: {read_header: 1s, read: 2s}\nlimits: {unproved_attempts: 20/s 100}\n"

func newHostile(t *testing.T) *hostile {
	t.Helper()
	// Sessions of operators last 12 h, tokens a minute here; what is over for long is forgotten, and is unknown.
	began := time.Now()
	ago := func(d time.Duration) func() time.Time {
		return func() time.Time { return began.Add(-d).Add(time.Since(began)) }
	}
	h := &hostile{Site: newSite(t, site.Options{Name: "hostile.example", People: []string{"bob"}, Config: hostileConfig, Now: ago(13 * time.Hour), Extra: policy.Files{
		"identities/more.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: other}\nspec: {method: workload, path: /workload/other, nodes: [/node/join-token/special]}\n"),
	}})}
	inside(t, h.Site.Site, ago(12*time.Hour+5*time.Minute), func(ctx context.Context, env *control.Environment) {
		h.expiredSession = h.loginInside(ctx, h.Site.Site, env)
		h.expiredToken = h.tokenInside(ctx, h.Site.Site, env, h.expiredSession)
		var err error
		h.oldChallenge, _, err = env.Challenge()
		h.Check(err)
	})
	// A copy of the ledger goes another way: its sessions are not this one's.
	fork := *h.Site.Site
	fork.Data = filepath.Join(t.TempDir(), "fork")
	copyTree(t, h.Data, fork.Data)
	inside(t, &fork, time.Now, func(ctx context.Context, env *control.Environment) {
		for range 50 {
			h.unknownSession = h.loginInside(ctx, &fork, env)
		}
	})
	other := newSite(t, site.Options{Name: h.Name}) // another environment of the same name
	h.other = other.Site
	inside(t, h.other, time.Now, func(ctx context.Context, env *control.Environment) {
		h.foreignSession = h.loginInside(ctx, h.other, env)
		h.foreignToken = h.tokenInside(ctx, h.other, env, h.foreignSession)
		var err error
		h.foreignChallenge, _, err = env.Challenge()
		h.Check(err)
	})
	h.Start()
	h.Connect()
	h.alice, h.bob = h.Login(), h.LoginAs("bob")
	h.admin = h.Dial(h.alice)
	_, err := h.admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "app/s0", Value: []byte(sitetest.Random())})
	h.Check(err)
	h.web, h.special = h.Node(h.admin, "web"), h.Node(h.admin, "special")
	for _, x := range []**client.Session{&h.victim, &h.api} {
		*x, err = h.Site.Site.Workload(t.Context(), h.web, "api")
		h.Check(err)
	}
	h.cut = h.Node(h.admin, "cut")
	_, err = h.admin.Revocations.Revoke(t.Context(), &bailmentv1.RevokeRequest{Scope: "node:/node/join-token/cut", Reason: "test"})
	h.Check(err)
	return h
}

// loginInside opens alice's session in this process.
func (h *hostile) loginInside(ctx context.Context, s *site.Site, env *control.Environment) *client.Session {
	key, err := client.NewKey()
	h.Check(err)
	csr, thumb := csrOf(h.T, key)
	challenge, _, err := env.Challenge()
	h.Check(err)
	text := ceremony.Login{Scope: ceremony.Scope{Environment: s.Name, Genesis: s.Genesis}, Person: "alice", SessionKey: thumb, Challenge: challenge}.Text()
	sig, err := s.Signer("alice")(ceremony.NamespaceLogin, []byte(text))
	h.Check(err)
	o, err := env.Login(ctx, control.LoginRequest{Challenge: challenge, Person: "alice", SSHSIG: sig, CSR: csr})
	h.Check(err)
	leaf, err := x509.ParseCertificate(o.Chain[0])
	h.Check(err)
	return &client.Session{Identity: o.Identity.String(), Certificate: tls.Certificate{Certificate: o.Chain, PrivateKey: key, Leaf: leaf}, Index: o.Index}
}

func (h *hostile) tokenInside(ctx context.Context, s *site.Site, env *control.Environment, by *client.Session) jointoken.Token {
	tok, err := jointoken.New(s.Genesis)
	h.Check(err)
	caller, _, err := env.Peer(by.Certificate.Leaf)
	h.Check(err)
	_, _, err = env.CreateToken(ctx, caller, control.TokenRequest{ID: tok.ID(), Public: tok.PublicKey(), Name: "late", TTL: time.Minute})
	h.Check(err)
	return tok
}

func csrOf(t testing.TB, key any) ([]byte, [32]byte) {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	thumb, err := seal.Thumbprint(parsed.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return csr, thumb
}

// proof is a whole attestation by a token, to be sent as it is or after it was changed.
func (h *hostile) proof(ctx context.Context, tok jointoken.Token, genesis state.Digest) (*bailmentv1.AttestRequest, error) {
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	csr, thumb := csrOf(h.T, key)
	challenge, err := h.admin.Attestation.Challenge(ctx, &bailmentv1.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	a, err := jointoken.NewAttester(tok)
	if err != nil {
		return nil, err
	}
	evidence, err := a.Attest(ctx, attest.Binding{Method: jointoken.Name, Genesis: genesis, Nonce: challenge.Challenge, SessionKey: thumb})
	return &bailmentv1.AttestRequest{Method: jointoken.Name, Challenge: challenge.Challenge, Evidence: evidence, Csr: csr}, err
}

// attest sends a proof by a token, changed.
func (h *hostile) attest(tok jointoken.Token, genesis state.Digest, change func(*bailmentv1.AttestRequest)) func(context.Context) error {
	c := h.Dial(nil)
	return func(ctx context.Context) error {
		r, err := h.proof(ctx, tok, genesis)
		if err != nil {
			return err
		}
		if change != nil {
			change(r)
		}
		_, err = c.Attestation.Attest(ctx, r)
		return err
	}
}

// login sends alice's login, whose text was made for a scope and signed by a person.
func (h *hostile) login(scope ceremony.Scope, signer string, change func(*bailmentv1.LoginRequest)) func(context.Context) error {
	c := h.Dial(nil)
	return func(ctx context.Context) error {
		r, err := h.signedLogin(ctx, c, scope, signer)
		if err != nil {
			return err
		}
		if change != nil {
			change(r)
		}
		_, err = c.Attestation.Login(ctx, r)
		return err
	}
}

func (h *hostile) signedLogin(ctx context.Context, c *client.Client, scope ceremony.Scope, signer string) (*bailmentv1.LoginRequest, error) {
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	csr, thumb := csrOf(h.T, key)
	challenge, err := c.Attestation.Challenge(ctx, &bailmentv1.ChallengeRequest{})
	if err != nil {
		return nil, err
	}
	text := ceremony.Login{Scope: scope, Person: "alice", SessionKey: thumb, Challenge: challenge.Challenge}.Text()
	sig, err := h.Signer(signer)(ceremony.NamespaceLogin, []byte(text))
	return &bailmentv1.LoginRequest{Challenge: challenge.Challenge, Person: "alice", Sshsig: sig, Csr: csr}, err
}

// as asks for a secret with a session.
func (h *hostile) as(x *client.Session, r *bailmentv1.GetRequest) func(context.Context) error {
	c := h.Dial(x)
	return func(ctx context.Context) error {
		_, err := c.Secrets.Get(ctx, r)
		return err
	}
}

// forged is a certificate of a CA of the attacker's own, with everything in it that can be copied.
func (h *hostile) forged() *client.Session {
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	h.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	h.Check(err)
	good := h.api.Certificate.Leaf
	id, err := url.Parse(h.api.Identity)
	h.Check(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: good.SerialNumber, Subject: good.Subject, NotBefore: good.NotBefore, NotAfter: good.NotAfter, URIs: []*url.URL{id},
		KeyUsage: good.KeyUsage, ExtKeyUsage: good.ExtKeyUsage, BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: good.Issuer.CommonName}, SubjectKeyId: good.AuthorityKeyId}, key.Public(), ca)
	h.Check(err)
	return &client.Session{Identity: h.api.Identity, Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
}

func (h *hostile) scope() ceremony.Scope {
	return ceremony.Scope{Environment: h.Name, Genesis: h.Genesis}
}

// TestHostile tries what strangers and insiders would, against the real server. Each is refused with its
// own reason, each is accounted for in the ledger, and none slows down who reads meanwhile.
func TestHostile(t *testing.T) {
	h := newHostile(t)
	stop := h.readOn(4)
	attacks := slices.Concat(h.strangers(), h.insiders(), h.oversized())
	for _, x := range attacks {
		t.Run(x.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := x.do(ctx); err == nil {
				t.Fatal("it was not refused")
			} else if !problem.Is(err, x.reason) {
				t.Fatalf("refused with %v, want reason %s", err, x.reason)
			}
		})
	}
	h.wire(t)
	t.Run("a flood of bad logins is limited, and nothing else of that source", h.flood)
	stop()
	if !t.Failed() {
		healthy(t, h.Site.Site)
	}
	// Stopping enters the sums of the present minute.
	h.Stop()
	h.Start()
	found, want := accounts(t, h.Dial(h.Login())), map[string]uint64{}
	for _, x := range append(attacks, h.wireAccounts()...) {
		account := x.account + " " + string(x.reason)
		if want[account]++; x.account != "" && found[account] < want[account] {
			t.Errorf("%s: the ledger has %d refusals %q, which is fewer than there were", x.name, found[account], account)
		}
	}
	t.Logf("accounted for: %v", found)
	boot, err := h.Bootstrap()
	h.Check(err)
	h.Stop()
	if out := cli(t, h.Site.Site, t.TempDir(), "", "ledger", "verify", "--dir", h.Dir(), "--bootstrap", boot); out.exit != 0 {
		t.Errorf("ledger verify: %+v", out)
	}
}

// accounts is how often the ledger says that something was refused, by account and reason.
func accounts(t *testing.T, c *client.Client) map[string]uint64 {
	t.Helper()
	found := map[string]uint64{}
	all, _ := entries(t, c)
	for _, e := range all {
		switch x := e.Event.(type) {
		case *state.DenialsSummed:
			found[x.Method+" "+x.Reason] += x.Count
		case *state.RequestDenied:
			found[x.Action+" "+x.Reason]++
		}
	}
	return found
}

// strangers have no session, or none that counts.
func (h *hostile) strangers() []attack {
	spent := h.Token(h.admin, "spent")
	_, err := h.Join(h.T.Context(), spent)
	h.Check(err)
	again := h.Token(h.admin, "again")
	fresh := h.Token(h.admin, "fresh")
	unknown, err := jointoken.New(h.Genesis)
	h.Check(err)
	get := &bailmentv1.GetRequest{Secret: "app/s0"}
	const token, session, login = jointoken.Name, "session", "login"
	none := func(*bailmentv1.AttestRequest) {}
	return []attack{
		{"a join token that another key has used", h.attest(spent, h.Genesis, none), problem.ReasonTokenSpent, token},
		{"an expired join token", h.attest(h.expiredToken, h.Genesis, none), problem.ReasonTokenExpired, token},
		{"a join token of another environment", h.attest(h.foreignToken, h.other.Genesis, none), problem.ReasonTokenForeign, token},
		{"a join token that nobody made", h.attest(unknown, h.Genesis, none), problem.ReasonTokenUnknown, token},
		{"a proof for another session key", h.attest(fresh, h.Genesis, func(r *bailmentv1.AttestRequest) {
			key, err := client.NewKey()
			h.Check(err)
			r.Csr, _ = csrOf(h.T, key)
		}), problem.ReasonBadProof, token},
		{"a replayed proof", h.replay(again), problem.ReasonReplayed, token},
		{"a challenge of another environment", h.attest(fresh, h.Genesis, func(r *bailmentv1.AttestRequest) { r.Challenge = h.foreignChallenge }), problem.ReasonChallengeForeign, token},
		{"an old challenge", h.attest(fresh, h.Genesis, func(r *bailmentv1.AttestRequest) { r.Challenge = h.oldChallenge }), problem.ReasonChallengeExpired, token},
		{"a method that there isn't", h.attest(fresh, h.Genesis, func(r *bailmentv1.AttestRequest) { r.Method = "nonsense" }), problem.ReasonUnknownMethod, "unknown"},
		{"evidence of nothing", h.attest(fresh, h.Genesis, func(r *bailmentv1.AttestRequest) { r.Evidence = []byte("{}") }), problem.ReasonInvalid, token},
		{"no certificate", h.as(nil, get), problem.ReasonNoSession, session},
		{"a forged certificate", h.as(h.forged(), get), problem.ReasonSessionForeign, session},
		{"a certificate of another environment", h.as(h.foreignSession, get), problem.ReasonSessionForeign, session},
		{"an expired session", h.as(h.expiredSession, get), problem.ReasonSessionExpired, session},
		{"a session of a copy of the ledger", h.as(h.unknownSession, get), problem.ReasonSessionUnknown, session},
		{"a login signed by another person", h.login(h.scope(), "bob", nil), problem.ReasonSignature, login},
		{"a login text of another environment", h.login(ceremony.Scope{Environment: h.Name, Genesis: h.other.Genesis}, "alice", nil), problem.ReasonSignature, login},
		{"a login text of another epoch", h.login(ceremony.Scope{Environment: h.Name, Genesis: h.Genesis, Epoch: 1}, "alice", nil), problem.ReasonSignature, login},
		{"a login as nobody", h.login(h.scope(), "alice", func(r *bailmentv1.LoginRequest) { r.Person = "mallory" }), problem.ReasonSignature, login},
		{"a login with a name that is none", h.login(h.scope(), "alice", func(r *bailmentv1.LoginRequest) { r.Person = "../alice\x00" }), problem.ReasonInvalid, login},
		{"a replayed login", h.replayLogin(), problem.ReasonReplayed, login},
		{"a renewal with a forged certificate", h.renewal(h.forged()), problem.ReasonSessionForeign, "renewal"},
	}
}

// replay sends the same proof twice: it is good once.
func (h *hostile) replay(tok jointoken.Token) func(context.Context) error {
	c := h.Dial(nil)
	return func(ctx context.Context) error {
		r, err := h.proof(ctx, tok, h.Genesis)
		if err != nil {
			return err
		}
		if _, err := c.Attestation.Attest(ctx, r); err != nil {
			return err
		}
		_, err = c.Attestation.Attest(ctx, r)
		return err
	}
}

func (h *hostile) replayLogin() func(context.Context) error {
	c := h.Dial(nil)
	return func(ctx context.Context) error {
		r, err := h.signedLogin(ctx, c, h.scope(), "alice")
		if err != nil {
			return err
		}
		if _, err := c.Attestation.Login(ctx, r); err != nil {
			return err
		}
		_, err = c.Attestation.Login(ctx, r)
		return err
	}
}

func (h *hostile) renewal(x *client.Session) func(context.Context) error {
	c := h.Dial(nil)
	return func(ctx context.Context) error {
		key, err := client.NewKey()
		if err != nil {
			return err
		}
		_, err = c.Renew(ctx, x, key, "test")
		return err
	}
}

// insiders have a session and want more than it gives.
func (h *hostile) insiders() []attack {
	release, err := h.Dial(h.victim).Secrets.Get(h.T.Context(), &bailmentv1.GetRequest{Secret: "app/s0"})
	h.Check(err)
	web, alice := h.Dial(h.web), h.Dial(h.alice)
	elsewhere, err := h.Site.Site.Workload(h.T.Context(), h.special, "api")
	h.Check(err)
	thief := h.Dial(elsewhere)
	workload := func(want string) func(context.Context) error {
		return func(ctx context.Context) error {
			key, err := client.NewKey()
			if err != nil {
				return err
			}
			_, err = web.AttestWorkload(ctx, map[string]any{}, want, key)
			return err
		}
	}
	all := []attack{
		{"a workload that this node may not speak for", workload("other"), problem.ReasonForeignNode, "workload.attest"},
		{"a workload claimed by a workload", func(ctx context.Context) error {
			key, err := client.NewKey()
			h.Check(err)
			_, err = thief.AttestWorkload(ctx, map[string]any{}, "api", key)
			return err
		}, problem.ReasonForeignNode, "workload.attest"},
		{"a workload that there isn't", workload("nonsense"), problem.ReasonNoIdentity, "workload.attest"},
		{"a node that was cut off", h.as(h.cut, &bailmentv1.GetRequest{Secret: "app/s0"}), problem.ReasonCutoff, "session"},
		{"a secret without a grant", h.as(h.api, &bailmentv1.GetRequest{Secret: "elsewhere/s0"}), problem.ReasonNoGrant, "secret.read"},
		{"an operator who reads", h.as(h.alice, &bailmentv1.GetRequest{Secret: "app/s0"}), problem.ReasonNoGrant, "secret.read"},
		{"a purpose without a grant", h.as(h.api, &bailmentv1.GetRequest{Secret: "app/s0", Purpose: "backup"}), problem.ReasonPurpose, "secret.read"},
		{"somebody else's lease, renewed", func(ctx context.Context) error {
			_, err := thief.Secrets.RenewLease(ctx, &bailmentv1.RenewLeaseRequest{Lease: release.Lease})
			return err
		}, problem.ReasonNotFound, "lease.renew"},
		{"somebody else's lease, given back", func(ctx context.Context) error {
			_, err := thief.Secrets.ReturnLease(ctx, &bailmentv1.ReturnLeaseRequest{Lease: release.Lease})
			return err
		}, problem.ReasonNotFound, "lease.return"},
		{"the ledger, without the duty", func(ctx context.Context) error {
			_, err := thief.Ledger.GetEntries(ctx, &bailmentv1.GetEntriesRequest{Limit: 1})
			return err
		}, problem.ReasonDuty, "identity"},
		{"a revocation, without the duty", func(ctx context.Context) error {
			_, err := thief.Revocations.Revoke(ctx, &bailmentv1.RevokeRequest{Scope: "everything", Reason: "x"})
			return err
		}, problem.ReasonDuty, "duty.revoke"},
		{"an idempotency key for another request", func(ctx context.Context) error {
			if _, err := alice.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: "app/s1", Value: []byte("one"), IdempotencyKey: "k"}); err != nil {
				return err
			}
			_, err := alice.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: "app/s1", Value: []byte("two"), IdempotencyKey: "k"})
			return err
		}, problem.ReasonKeyReused, ""},
		{"an approval signed by another person", h.approval("bob", "alice"), problem.ReasonSignature, "change.approve"},
		{"a proposal signed by another person", h.proposal("alice", "bob"), problem.ReasonSignature, "change.propose"},
		{"a proposal without the duty", func(ctx context.Context) error {
			_, err := thief.Changes.Propose(ctx, h.proposed("alice", "alice"))
			return err
		}, problem.ReasonDuty, "duty.propose"},
		{"an approval in another person's name", h.approval("alice", "alice"), problem.ReasonSignature, "change.approve"},
	}
	for _, name := range []string{"app/\x00", "app/s0\x00", "../app/s0", "app/../app/s0", "/app/s0", "app//s0", "app/s0\n", "app/\u202es0", "app/s0/", ".", strings.Repeat("a", 256), "app/%2e%2e/s0", ""} {
		all = append(all,
			attack{"put to a name such as " + url.PathEscape(name), func(ctx context.Context) error {
				_, err := alice.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: name, Value: []byte("x")})
				return err
			}, problem.ReasonInvalid, ""},
			attack{"get of a name such as " + url.PathEscape(name), h.as(h.api, &bailmentv1.GetRequest{Secret: name}), problem.ReasonInvalid, ""})
	}
	for _, purpose := range []string{"run\x00time", "run time", "runtime\n", "../runtime", "RUNTIME", strings.Repeat("p", 64)} {
		all = append(all, attack{"a purpose such as " + url.PathEscape(purpose), h.as(h.api, &bailmentv1.GetRequest{Secret: "app/s0", Purpose: purpose}), problem.ReasonInvalid, ""})
	}
	return all
}

// proposed is a proposal to lift a hold, in the name of one person, that another has signed.
func (h *hostile) proposed(person, signer string) *bailmentv1.ProposeRequest {
	env, err := h.admin.Environment.GetEnvironment(h.T.Context(), &bailmentv1.GetEnvironmentRequest{})
	h.Check(err)
	holds, err := h.admin.Revocations.ListRevocations(h.T.Context(), &bailmentv1.ListRevocationsRequest{})
	h.Check(err)
	target := ""
	for _, x := range holds.Revocations {
		if x.Scope == "node:/node/join-token/cut" {
			target = state.HoldTarget(x.Scope, x.Hold)
		}
	}
	c := ceremony.Change{
		Scope: h.scope(), Action: control.ActionLiftHold, Base: env.Bundle, Target: target, Role: ceremony.Proposer, Person: person,
		Nonce: sitetest.Random(), Expires: time.Now().Add(time.Hour).Truncate(time.Second), Reason: "test",
	}
	sig, err := h.Signer(signer)(ceremony.NamespaceChange, []byte(c.Text()))
	h.Check(err)
	return &bailmentv1.ProposeRequest{Action: c.Action, Target: c.Target, Reason: c.Reason, Text: c.Text(), Signature: &bailmentv1.Signature{Person: person, Sshsig: sig}}
}

func (h *hostile) proposal(person, signer string) func(context.Context) error {
	r := h.proposed(person, signer)
	return func(ctx context.Context) error {
		_, err := h.admin.Changes.Propose(ctx, r)
		return err
	}
}

// approval sends, over bob's session, an approval in the name of one person that another has signed.
func (h *hostile) approval(person, signer string) func(context.Context) error {
	r := h.proposed("alice", "alice")
	out, err := h.admin.Changes.Propose(h.T.Context(), r)
	h.Check(err)
	c, err := ceremony.ParseChange(r.Text)
	h.Check(err)
	c.Role, c.Person, c.Number, c.Nonce = ceremony.Approver, person, out.Change, sitetest.Random()
	sig, err := h.Signer(signer)(ceremony.NamespaceChange, []byte(c.Text()))
	h.Check(err)
	bob := h.Dial(h.bob)
	return func(ctx context.Context) error {
		_, err := bob.Changes.Approve(ctx, &bailmentv1.ApproveRequest{Change: out.Change, Text: c.Text(), Signature: &bailmentv1.Signature{Person: person, Sshsig: sig}})
		return err
	}
}

// oversized are requests of 10 MB.
func (h *hostile) oversized() []attack {
	const size = 10 << 20
	alice, api, nobody := h.Dial(h.alice), h.Dial(h.api), h.Dial(nil)
	return []attack{
		{"a Put of 10 MB", func(ctx context.Context) error {
			_, err := alice.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: "app/s0", Value: make([]byte, size)})
			return err
		}, problem.ReasonTooLarge, "request"},
		{"a Get of 10 MB", func(ctx context.Context) error {
			_, err := api.Secrets.Get(ctx, &bailmentv1.GetRequest{Secret: strings.Repeat("a", size)})
			return err
		}, problem.ReasonTooLarge, "request"},
		{"an Attest of 10 MB", func(ctx context.Context) error {
			_, err := nobody.Attestation.Attest(ctx, &bailmentv1.AttestRequest{Method: jointoken.Name, Evidence: make([]byte, size)})
			return err
		}, problem.ReasonTooLarge, "request"},
		{"a value over its own limit", func(ctx context.Context) error {
			_, err := alice.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: "app/s0", Value: make([]byte, 512<<10)})
			return err
		}, problem.ReasonTooLarge, ""},
	}
}

// readOn reads a secret without pause until it is told to stop. No read may fail or be slow.
func (h *hostile) readOn(readers int) (stop func()) {
	ctx, cancel := context.WithCancel(h.T.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	var failed error
	for range readers {
		c := h.Dial(h.victim)
		wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				_, err := c.Secrets.Get(ctx, &bailmentv1.GetRequest{Secret: "app/s0"})
				mu.Lock()
				if err != nil && ctx.Err() == nil {
					failed = err
				} else if err == nil {
					took = append(took, time.Since(began))
				}
				mu.Unlock()
			}
		})
	}
	return func() {
		h.T.Helper()
		cancel()
		wg.Wait()
		if failed != nil {
			h.T.Errorf("a read failed during the attacks: %v", failed)
		}
		if len(took) < 500 {
			h.T.Fatalf("only %d reads went on: that tests nothing", len(took))
		}
		slices.Sort(took)
		p99 := took[len(took)*99/100]
		h.T.Logf("%d reads meanwhile, p99 %s, slowest %s", len(took), p99, took[len(took)-1])
		if p99 > time.Second {
			h.T.Errorf("the reads' p99 was %s", p99)
		}
	}
}
