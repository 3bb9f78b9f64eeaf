package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	cx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/methods"
	attestx509 "github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/custody"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// soundLedger fails the test if the running checks find anything.
func soundLedger(t *testing.T, w *controltest.World) {
	t.Helper()
	_, found, err := w.Env.Check(context.Background())
	if err != nil || len(found) > 0 {
		t.Errorf("the checks found %v, %v", found, err)
	}
}

// bring brings files into force, as alice, who may approve her own change.
func bring(t *testing.T, w *controltest.World, alice controltest.Actor, path, text string) {
	t.Helper()
	files := maps.Clone(w.Files)
	if text == "" {
		delete(files, path)
	} else {
		files[path] = []byte(text)
	}
	p, err := w.Propose(alice, "alice", files)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = w.Approve(alice, "alice", p.Change); err != nil || p.Generation == 0 {
		t.Fatalf("%+v %v", p, err)
	}
	w.Files = files
}

// lift lifts a hold: alice proposes and bob approves.
func lift(t *testing.T, w *controltest.World, alice, bob controltest.Actor, scope string) {
	t.Helper()
	hold, ok := w.Env.State().Holds.Get(scope)
	if !ok {
		t.Fatalf("there is no hold on %s", scope)
	}
	text := w.Change("alice", control.ActionLiftHold, state.HoldTarget(scope, hold.Index), nil).Text()
	p, err := w.Env.Propose(context.Background(), alice.Caller, control.ProposeRequest{Text: text, SSHSIG: w.Sign("alice", ceremony.NamespaceChange, text)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = w.Approve(bob, "bob", p.Change); err != nil {
		t.Fatal(err)
	}
}

func tryRenew(t *testing.T, w *controltest.World, node controltest.Actor) (controltest.Actor, error) {
	t.Helper()
	key, _ := controltest.Key(t)
	o, err := w.Renew(node, key)
	if err != nil {
		return controltest.Actor{}, err
	}
	return w.Enter(key, o), nil
}

func renewed(t *testing.T, w *controltest.World, node controltest.Actor) controltest.Actor {
	t.Helper()
	next, err := tryRenew(t, w, node)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// A join token is as good as who made it: revoking or holding the operator or his key reaches the tokens that he has made,
// used or not.
func TestTokenOfRevokedOperator(t *testing.T) {
	for name, c := range map[string]struct {
		scope string
		hold  bool
		want  problem.Reason
	}{
		"person cut off":     {"identity:/human/mallory", false, problem.ReasonCutoff},
		"person held":        {"identity:/human/mallory", true, problem.ReasonCutoff},
		"key cut off":        {"issuer:ssh:", false, problem.ReasonCutoff},
		"everybody's cutoff": {"identity:/human/*", false, problem.ReasonCutoff},
	} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{Persons: []string{"mallory", "alice", "bob"}})
			alice, mallory := w.Login("alice"), w.Login("mallory")
			unused, used := w.Token(mallory, "web-1", 7*24*time.Hour), w.Token(mallory, "web-2", time.Hour)
			key, _ := controltest.Key(t)
			if _, err := w.TryJoin(used, key); err != nil {
				t.Fatal(err)
			}
			if c.scope == "issuer:ssh:" {
				c.scope += ssh.FingerprintSHA256(w.Persons["mallory"].PublicKey())
			}
			if _, err := revoke(w, alice, c.scope, c.hold); err != nil {
				t.Fatal(err)
			}
			fresh, _ := controltest.Key(t)
			_, err := w.TryJoin(unused, fresh)
			wantReason(t, err, c.want)
			_, err = w.TryJoin(used, key)
			wantReason(t, err, c.want)
			soundLedger(t, w)
		})
	}
}

// A hold alone keeps tokens from being used, and lifting it gives them back. Tokens made after a cutoff are good.
func TestTokenOfHeldOperator(t *testing.T) {
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob", "mallory"}, Quorum: 1})
	alice, bob, mallory := w.Login("alice"), w.Login("bob"), w.Login("mallory")
	token := w.Token(mallory, "web-1", time.Hour)
	const scope = "identity:/human/mallory"
	if _, err := w.Env.Revoke(context.Background(), alice.Caller, control.RevokeRequest{Scope: scope, HoldOnly: true, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	key, _ := controltest.Key(t)
	_, err := w.TryJoin(token, key)
	wantReason(t, err, problem.ReasonHeld)
	lift(t, w, alice, bob, scope)
	w.Join(token)
	if _, err := revoke(w, alice, scope, false); err != nil {
		t.Fatal(err)
	}
	w.Join(w.Token(w.Login("mallory"), "web-2", time.Hour))
	soundLedger(t, w)
}

// The key that used a token gets the same enrolment again until it has renewed. After that it is an old generation.
func TestSpentTokenAfterRenewal(t *testing.T) {
	for _, renewals := range []int{1, 3} {
		t.Run(fmt.Sprint(renewals), func(t *testing.T) {
			w := controltest.New(t, controltest.Options{})
			alice := w.Login("alice")
			token := w.Token(alice, "web-1", time.Hour)
			first, _ := controltest.Key(t)
			if _, err := w.TryJoin(token, first); err != nil {
				t.Fatal(err)
			}
			o, err := w.TryJoin(token, first) // the reply was lost
			if err != nil {
				t.Fatal(err)
			}
			node := w.Enter(first, o)
			for range renewals {
				node = renewed(t, w, node)
			}
			_, err = w.TryJoin(token, first)
			wantReason(t, err, problem.ReasonForked)
			_, err = tryRenew(t, w, node)
			if err == nil || w.Env.State().Holds.Len() != 1 {
				t.Errorf("two holders were seen, and the newest renews: %v", err)
			}
			soundLedger(t, w)
		})
	}
}

// Certificates are renewed for the key of the session that they name. Who has a CA's key can't make up another.
func TestRenewByForgedCertificate(t *testing.T) {
	w := controltest.New(t, controltest.Options{})
	ctx := context.Background()
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	older := node
	node = renewed(t, w, renewed(t, w, node))
	leaked, err := custody.Vault{Holder: w.Config.Holder, Genesis: w.Genesis, Read: w.Env.Ledger().Store().Key}.Unseal(ctx, w.Env.State(), w.Env.Ledger().Origin())
	if err != nil {
		t.Fatal(err)
	}
	forge := func(index uint64, tag [8]byte) controltest.Actor {
		key, _ := controltest.Key(t)
		leaf, _, err := leaked.SignSVID(node.Opened.Identity, key.Public(), custody.Serial(0, index, tag), time.Now(), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return controltest.Actor{Key: key, Opened: &control.Opened{Chain: [][]byte{leaf}, Identity: node.Opened.Identity}}
	}
	real, err := cx509.ParseCertificate(node.Opened.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	serial := real.SerialNumber.Bytes()
	refuseAll := func(when string) {
		for what, forged := range map[string]controltest.Actor{
			"the newest":                   forge(node.Opened.Index, [8]byte{1}),
			"the newest, its own serial":   forge(node.Opened.Index, [8]byte(serial[len(serial)-8:])),
			"an older one, to have a hold": forge(older.Opened.Index, [8]byte{1}),
		} {
			if _, err := tryRenew(t, w, forged); !problem.Is(err, problem.ReasonSessionForeign) {
				t.Errorf("%s, %s: %v", when, what, err)
			}
			if n := w.Env.State().Holds.Len(); n != 0 {
				t.Fatalf("%s, %s: %d holds", when, what, n)
			}
		}
	}
	refuseAll("with the current CA")
	if _, _, err := w.Env.RotateKey(ctx, alice.Caller, "ca"); err != nil {
		t.Fatal(err)
	}
	refuseAll("with the CA before")
	w.Advance(48 * time.Hour) // the sessions' rows are swept
	w.Login("alice")
	refuseAll("long after")
	node = renewed(t, w, node) // the machine itself was away, and comes back
	_, err = tryRenew(t, w, older)
	wantReason(t, err, problem.ReasonForked) // and a real old generation is still told
	soundLedger(t, w)
}

// authority is a certificate authority of a test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *cx509.Certificate
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, _ := controltest.Key(t)
	template := &cx509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: cx509.KeyUsageCertSign,
	}
	der, err := cx509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := cx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{key, cert}
}

// machine is a machine's own certificate, as an attester.
func (a authority) machine(t *testing.T, name string, life time.Duration) attest.Attester {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &cx509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: cx509.KeyUsageDigitalSignature, ExtKeyUsage: []cx509.ExtKeyUsage{cx509.ExtKeyUsageClientAuth}, DNSNames: []string{name},
	}
	der, err := cx509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := attestx509.NewAttester([][]byte{der}, key)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// environmentWith is an environment.yaml with these authorities by name.
func environmentWith(authorities map[string]authority) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  authorities:\n", controltest.EnvName)
	for name, a := range authorities {
		text := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})))
		fmt.Fprintf(&b, "    - name: %s\n      pem: |\n        %s\n", name, strings.ReplaceAll(text, "\n", "\n        "))
	}
	return b.String()
}

// environment has this authority, as corp.
func (a authority) environment() string {
	return environmentWith(map[string]authority{"corp": a})
}

// corpWorld has machines by certificates of corp, and a workload on them.
func corpWorld(t *testing.T, corp authority) *controltest.World {
	return controltest.New(t, controltest.Options{Extra: policy.Files{
		"environment.yaml": []byte(corp.environment()),
		"identities/x.yaml": []byte(`apiVersion: bailment/v1
kind: Identity
metadata: {name: corp-nodes}
spec: {method: x509, authority: corp, path: /node/x509/corp/all}
---
apiVersion: bailment/v1
kind: Identity
metadata: {name: corp-work}
spec: {method: workload, path: /workload/corp, nodes: [/node/x509/*], session: 1h}
`),
	}})
}

func joinByCertificate(t *testing.T, w *controltest.World, a attest.Attester) (controltest.Actor, error) {
	t.Helper()
	key, csr := controltest.Key(t)
	challenge, _, err := w.Env.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	thumb, err := seal.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := a.Attest(context.Background(), attest.Binding{Method: attestx509.Name, Genesis: w.Genesis, Nonce: challenge, SessionKey: thumb})
	if err != nil {
		t.Fatal(err)
	}
	o, err := w.Env.Attest(context.Background(), control.AttestRequest{Method: attestx509.Name, Challenge: challenge, Evidence: evidence, CSR: csr})
	if err != nil {
		return controltest.Actor{}, err
	}
	return w.Enter(key, o), nil
}

// Evidence that was verified by one bundle's authorities is not admitted under another's.
func TestAttestAcrossBundles(t *testing.T) {
	old, young := newAuthority(t, "old"), newAuthority(t, "young")
	w := corpWorld(t, old)
	var once atomic.Bool
	verified, goOn := make(chan struct{}), make(chan struct{})
	all := methods.All()
	for i := range all {
		if inner := all[i].Verify; all[i].Name == attestx509.Name {
			all[i].Verify = func(in attest.Input) (attest.Result, error) {
				r, err := inner(in)
				if once.CompareAndSwap(false, true) {
					close(verified)
					<-goOn
				}
				return r, err
			}
		}
	}
	w.Close()
	w.Config.Methods = all
	w.Open()
	alice := w.Login("alice")
	out := make(chan error)
	machine := old.machine(t, "m1", time.Hour)
	go func() { _, err := joinByCertificate(t, w, machine); out <- err }()
	<-verified
	bring(t, w, alice, "environment.yaml", young.environment())
	close(goOn)
	if err := <-out; err == nil {
		t.Fatal("admitted by an authority that is no longer in the bundle")
	}
	if _, err := joinByCertificate(t, w, young.machine(t, "m1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	soundLedger(t, w)
}

// A process's session ends no later than the session of the node that speaks for it, and so not after the node's proof.
func TestWorkloadEndsWithNode(t *testing.T) {
	corp := newAuthority(t, "corp")
	w := corpWorld(t, corp)
	node, err := joinByCertificate(t, w, corp.machine(t, "m1", 20*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	work := w.Workload(node, "/workload/corp")
	if work.Opened.Expires.After(node.Opened.Expires) {
		t.Errorf("the node's session ends at %s, its process's at %s", node.Opened.Expires, work.Opened.Expires)
	}
	soundLedger(t, w)
}

// A fork is cut off whatever hold there is already: a hold that somebody set for another reason may be lifted by who has not
// heard of the fork.
func TestForkUnderHold(t *testing.T) {
	for name, scope := range map[string]string{"a lasting hold": "node:/node/join-token/web-1", "a provisional hold": "node:/node/*"} {
		t.Run(name, func(t *testing.T) {
			w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1, Extra: policy.Files{"environment.yaml": fmt.Appendf(nil,
				"apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1}\n  revocation: {blastLimit: 1}\n", controltest.EnvName)}})
			alice, bob := w.Login("alice"), w.Login("bob")
			node := w.Node(alice, "web-1")
			if strings.HasSuffix(scope, "*") {
				w.Node(alice, "web-2") // beyond the blast limit
				scope = "node:/node/*"
			}
			thief := renewed(t, w, node)
			if _, err := w.Env.Revoke(context.Background(), alice.Caller, control.RevokeRequest{Scope: scope, HoldOnly: true, Reason: "looks odd"}); err != nil {
				t.Fatal(err)
			}
			_, err := tryRenew(t, w, node)
			wantReason(t, err, problem.ReasonForked)
			size := w.Env.Ledger().Size()
			_, err = tryRenew(t, w, node)
			wantReason(t, err, problem.ReasonForked)
			if w.Env.Ledger().Size() != size {
				t.Error("the same fork was entered twice")
			}
			lift(t, w, alice, bob, scope)
			if scope != "node:/node/join-token/web-1" {
				lift(t, w, alice, bob, "node:/node/join-token/web-1")
			}
			_, err = tryRenew(t, w, thief)
			wantReason(t, err, problem.ReasonCutoff)
			soundLedger(t, w)
		})
	}
}

// An enrolment that was given back is over: neither its newest certificate nor its token starts it again.
func TestRenewAfterLogout(t *testing.T) {
	for _, later := range []time.Duration{0, 26 * time.Hour} {
		t.Run(later.String(), func(t *testing.T) {
			w := controltest.New(t, controltest.Options{})
			alice := w.Login("alice")
			token := w.Token(alice, "web-1", 48*time.Hour)
			key, _ := controltest.Key(t)
			o, err := w.TryJoin(token, key)
			if err != nil {
				t.Fatal(err)
			}
			node := w.Enter(key, o)
			if err := w.Env.Logout(context.Background(), node.Caller); err != nil {
				t.Fatal(err)
			}
			if later > 0 {
				w.Advance(later) // the session's row is swept
				w.Login("alice")
			}
			_, err = tryRenew(t, w, node)
			wantReason(t, err, problem.ReasonSessionExpired)
			_, err = w.TryJoin(token, key)
			wantReason(t, err, problem.ReasonSessionExpired)
			w.Join(w.Token(w.Login("alice"), "web-1", time.Hour))
			soundLedger(t, w)
		})
	}
}

// A hard lifetime that the bundle shortens reaches the machines that are there; one that it lengthens does not.
func TestLifetimeShortened(t *testing.T) {
	environment := func(lifetime string) string {
		return fmt.Sprintf("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  nodes: {lifetime: %s}\n", controltest.EnvName, lifetime)
	}
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"environment.yaml": []byte(environment("100h"))}})
	alice := w.Login("alice")
	node := w.Node(alice, "web-1")
	was := node.Opened.Lifetime
	bring(t, w, alice, "environment.yaml", environment("2h"))
	node = renewed(t, w, node)
	if got := node.Opened.Lifetime; !got.Before(was.Add(-97 * time.Hour)) {
		t.Errorf("it ends at %s, as before the change (%s)", got, was)
	}
	short := node.Opened.Lifetime
	bring(t, w, alice, "environment.yaml", environment("1000h"))
	node = renewed(t, w, node)
	if got := node.Opened.Lifetime; !got.Equal(short) {
		t.Errorf("it ends at %s, and %s was said before", got, short)
	}
	soundLedger(t, w)
	w.Advance(150 * time.Minute)
	_, err := tryRenew(t, w, node)
	wantReason(t, err, problem.ReasonLifetimeOver)
}

// One machine does not fill the state with sessions, its processes' neither, and a thief who uses up what it may open is noticed
// all the same when the owner comes.
func TestSessionsOfOneIdentityAreFew(t *testing.T) {
	w := controltest.New(t, controltest.Options{Openings: control.Openings{PerSecond: 0.001, Burst: 20}})
	alice := w.Login("alice")
	web, other := w.Node(alice, "web-1"), w.Node(alice, "web-2")
	flood := func(node controltest.Actor, claims map[string]any) (n int) {
		for ; n < 100; n++ {
			_, csr := controltest.Key(t)
			_, err := w.Env.AttestWorkload(context.Background(), node.Caller, control.WorkloadRequest{Claims: claims, Want: "api", CSR: csr})
			if err != nil {
				wantReason(t, err, problem.ReasonRateLimited)
				break
			}
		}
		return n
	}
	if n := flood(web, map[string]any{"unix": map[string]any{"uid": 1000}}); n != 19 {
		t.Errorf("%d sessions of its processes", n)
	}
	if n := flood(other, map[string]any{"text": strings.Repeat("x", 8000)}); n != 2 {
		t.Errorf("%d sessions with large claims", n)
	}
	key, _ := controltest.Key(t)
	_, err := w.Renew(web, key)
	wantReason(t, err, problem.ReasonRateLimited)
	if n := w.Env.State().Sessions.Len(); n > 30 {
		t.Errorf("%d sessions", n)
	}
	// Others are not concerned, and neither are those who failed to prove anything.
	third := w.Node(alice, "web-3")
	stolen := third
	if _, err := w.Renew(third, key); err != nil {
		t.Fatal(err)
	}
	flood(third, nil)
	late, _ := controltest.Key(t)
	_, err = w.Renew(stolen, late)
	wantReason(t, err, problem.ReasonForked)
}

// Who has only what was taken from its owner (a token that is spent, a session that was cut off, a key that is held) opens
// nothing, and so uses up nothing of what the owner may open.
func TestOpeningsAreTheOwners(t *testing.T) {
	w := controltest.New(t, controltest.Options{Openings: control.Openings{PerSecond: 0.001, Burst: 6}, Persons: []string{"alice", "bob"}})
	alice := w.Login("alice")
	token := w.Token(alice, "web-1", time.Hour)
	owner := w.Join(token)
	hammer := func(want problem.Reason, try func() error) {
		t.Helper()
		for range 20 {
			wantReason(t, try(), want)
		}
	}
	hammer(problem.ReasonTokenSpent, func() error {
		key, _ := controltest.Key(t)
		_, err := w.TryJoin(token, key)
		return err
	})
	key, _ := controltest.Key(t)
	opened, err := w.Renew(owner, key)
	if err != nil {
		t.Fatalf("the owner of a token that was stolen: %v", err)
	}
	stolen := w.Enter(key, opened)
	if _, err := w.Env.Revoke(context.Background(), alice.Caller, control.RevokeRequest{Scope: "node:" + opened.Identity.Path(), Hold: new(bool)}); err != nil {
		t.Fatal(err)
	}
	hammer(problem.ReasonCutoff, func() error {
		key, _ := controltest.Key(t)
		_, err := w.Renew(stolen, key)
		return err
	})
	hammer(problem.ReasonCutoff, func() error {
		_, err := w.TryWorkload(stolen, "api")
		return err
	})
	if _, err := w.TryJoin(w.Token(alice, "web-1", time.Hour), key); err != nil {
		t.Fatalf("the owner, enrolled anew: %v", err)
	}
}
