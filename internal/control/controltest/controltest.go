// Package controltest founds and opens a real environment for tests: the example bundle or one
// given, a real SQLite store in a temporary directory, a file root holder, and operators with
// Ed25519 SSH keys. It stands in for the edges: it plays agents and command lines with real keys,
// signatures and certificates, and no network.
//
// It guarantees nothing beyond tests and is not linked into the product.
package controltest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// World is an environment and the persons and machines around it.
type World struct {
	T       testing.TB
	Dir     string
	Env     *control.Environment
	Config  control.Config
	Genesis state.Digest
	Persons map[string]ssh.Signer
	Files   policy.Files
	Agent   *release.Statement // what the agents of TryJoin and Renew say of themselves; nil: nothing
	Stage   Stage              // of what Propose proposes
	RootKey string             // the file of the root key that Spare made last
	offset  atomic.Int64
}

// Options change what New makes. Zero values are fine.
type Options struct {
	// Files is the founding bundle; Operators is what its operators.yaml must list. Empty: Bundle(Persons…).
	Persons []string // default alice
	Class   string   // default development
	Quorum  int
	Extra   policy.Files // added to or replacing the files of the default bundle
	// Wrap wraps the store each time it is opened.
	Wrap func(store.Store) store.Store
	// SnapshotEvery is passed on.
	SnapshotEvery uint64
	Openings      control.Openings // passed on
	Holder        keyring.Holder   // default: a file holder
	Methods       attest.Methods   // default: those of the product
	First         bool             // founded under the first protocol
}

// EnvName is the name of the environment that New makes.
const EnvName = "test.example"

// New founds and opens an environment, which is closed when the test ends.
func New(t testing.TB, o Options) *World {
	t.Helper()
	w := &World{T: t, Dir: t.TempDir(), Persons: make(map[string]ssh.Signer)}
	if len(o.Persons) == 0 {
		o.Persons = []string{"alice"}
	}
	for _, p := range o.Persons {
		w.AddPerson(p)
	}
	w.Files = w.Bundle(o)
	src, err := seal.NewSource(nil)
	w.check(err)
	holder := o.Holder
	if holder == nil {
		holder, err = file.Create(filepath.Join(w.Dir, "root.key"), src)
		w.check(err)
	}
	if o.Methods == nil {
		o.Methods = methods.All()
	}
	ctx := context.Background()
	data := filepath.Join(w.Dir, "data")
	st, err := sqlite.Create(ctx, data)
	w.check(err)
	w.Genesis, err = control.Found(ctx, control.Founding{
		Files: w.Files, Holder: holder, Source: src, Store: st, Methods: o.Methods, Now: w.Now, First: o.First,
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			return o.Persons[0], w.Sign(o.Persons[0], namespace, text), nil
		},
	})
	w.check(err)
	w.check(st.Close())
	w.Config = control.Config{
		OpenStore: func(ctx context.Context) (store.Store, error) {
			st, err := sqlite.Open(ctx, data)
			if err != nil || o.Wrap == nil {
				return st, err
			}
			return o.Wrap(st), nil
		},
		Holder: holder, Source: src, Methods: o.Methods, Now: w.Now, ServerID: "s1", SnapshotEvery: o.SnapshotEvery, Openings: o.Openings,
	}
	w.Open()
	t.Cleanup(func() {
		if w.Env != nil {
			w.Close()
		}
	})
	return w
}

// Now is the world's clock: the real one, moved by Advance.
func (w *World) Now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

// Advance moves the clock. Ledgers refuse jumps, so the environment is opened again.
func (w *World) Advance(d time.Duration) {
	w.T.Helper()
	w.Close()
	w.offset.Add(int64(d))
	w.Open()
}

// Open opens the environment.
func (w *World) Open() {
	w.T.Helper()
	env, err := control.Open(context.Background(), w.Config)
	w.check(err)
	w.Env = env
}

// Close closes it.
func (w *World) Close() {
	w.T.Helper()
	w.check(w.Env.Close(context.Background()))
	w.Env = nil
}

// Reopen closes and opens it.
func (w *World) Reopen() {
	w.T.Helper()
	w.Close()
	w.Open()
}

// Spare makes a root key beside the one that there is, opens the environment with both, and gives the target of a change that moves the
// keys to it.
func (w *World) Spare() string {
	w.T.Helper()
	w.RootKey = filepath.Join(w.T.TempDir(), "root.key")
	h, err := file.Create(w.RootKey, w.Config.Source)
	w.check(err)
	w.Config.Next = h
	w.Reopen()
	return control.RootHolderOf(h).String()
}

func (w *World) check(err error) {
	w.T.Helper()
	if err != nil {
		w.T.Fatal(err)
	}
}

// AddPerson makes a person with an SSH key.
func (w *World) AddPerson(name string) ssh.Signer {
	w.T.Helper()
	key, err := seal.GenerateEd25519(mustSource(w.T))
	w.check(err)
	s, err := ssh.NewSignerFromKey(key)
	w.check(err)
	w.Persons[name] = s
	return s
}

func mustSource(t testing.TB) *seal.Source {
	t.Helper()
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// Sign signs as a person.
func (w *World) Sign(person, namespace, text string) string {
	w.T.Helper()
	sig, err := sshsig.Sign(w.Persons[person], namespace, []byte(text))
	w.check(err)
	return string(sig)
}

// Bundle is the default bundle: nodes by join token, workloads api and other, alice provisions, api reads db/*.
func (w *World) Bundle(o Options) policy.Files {
	if o.Class == "" {
		o.Class = "development"
	}
	f := policy.Files{
		"environment.yaml":     fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: %s\n  approvals: {required: %d}\n  revocation: {blastLimit: 50}\n", EnvName, o.Class, o.Quorum),
		"operators.yaml":       w.Operators(o.Persons...),
		"identities/node.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec:\n  method: join-token\n  path: /node/join-token/{claims.name}\n"),
		"identities/work.yaml": []byte(`apiVersion: bailment/v1
kind: Identity
metadata: {name: api}
spec:
  method: workload
  path: /workload/api
  nodes: [/node/join-token/*]
---
apiVersion: bailment/v1
kind: Identity
metadata: {name: other}
spec:
  method: workload
  path: /workload/other
  nodes: [/node/join-token/special]
`),
		"grants/all.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: provision}
spec:
  actions: [secret.write, secret.generate, secret.list, secret.destroy, secret.promote]
  identities: [/human/*]
  secrets: ["*"]
---
apiVersion: bailment/v1
kind: Grant
metadata: {name: api-reads}
spec:
  actions: [secret.read]
  identities: [/workload/api]
  secrets: [db/*]
  purposes: [runtime, migration]
  ttl: 1h
---
apiVersion: bailment/v1
kind: Grant
metadata: {name: nodes-read}
spec:
  actions: [secret.read]
  identities: [/node/*]
  secrets: [node/*]
  purposes: [runtime]
`),
		"secrets/all.yaml": []byte(`apiVersion: bailment/v1
kind: Secret
metadata: {name: db/*}
spec:
  type: opaque
  retain: 1h
---
apiVersion: bailment/v1
kind: Secret
metadata: {name: node/*}
spec:
  type: opaque
`),
	}
	for path, data := range o.Extra {
		f[path] = data
	}
	return f
}

// Operators is an operators.yaml of persons with every duty.
func (w *World) Operators(persons ...string) []byte {
	out := []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n")
	for _, p := range persons {
		key := ssh.MarshalAuthorizedKey(w.Persons[p].PublicKey())
		out = fmt.Appendf(out, "    - name: %s\n      keys: [%q]\n      duties: [propose, approve, revoke, admit, keys, audit]\n", p, string(key[:len(key)-1]))
	}
	return out
}

// Key makes a session key and its certificate request.
func Key(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, CSR(t, key)
}

// CSR is a certificate request of a key.
func CSR(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// Actor is somebody with a session.
type Actor struct {
	Key    *ecdsa.PrivateKey
	Opened *control.Opened
	Caller control.Caller
}

// Enter turns an opened session into a caller, as a connection with its certificate would.
func (w *World) Enter(key *ecdsa.PrivateKey, o *control.Opened) Actor {
	w.T.Helper()
	cert, err := x509.ParseCertificate(o.Chain[0])
	w.check(err)
	c, id, err := w.Env.Peer(cert)
	w.check(err)
	if id != o.Identity {
		w.T.Fatalf("the certificate says %s, the session %s", id, o.Identity)
	}
	return Actor{Key: key, Opened: o, Caller: c}
}

// Login logs a person in.
func (w *World) Login(person string) Actor {
	w.T.Helper()
	key, csr := Key(w.T)
	challenge, _, err := w.Env.Challenge()
	w.check(err)
	thumb, err := seal.Thumbprint(key.Public())
	w.check(err)
	text := ceremony.Login{Scope: w.Scope(), Person: person, SessionKey: thumb, Challenge: challenge}.Text()
	o, err := w.Env.Login(context.Background(), control.LoginRequest{
		Challenge: challenge, Person: person, SSHSIG: w.Sign(person, ceremony.NamespaceLogin, text), CSR: csr,
	})
	w.check(err)
	return w.Enter(key, o)
}

// Scope is what signed texts name.
func (w *World) Scope() ceremony.Scope {
	return ceremony.Scope{Environment: EnvName, Genesis: w.Genesis}
}

// Token makes a join token as an operator.
func (w *World) Token(by Actor, name string, ttl time.Duration) jointoken.Token {
	w.T.Helper()
	tok, err := jointoken.New(w.Genesis)
	w.check(err)
	_, _, err = w.Env.CreateToken(context.Background(), by.Caller, control.TokenRequest{ID: tok.ID(), Public: tok.PublicKey(), Name: name, TTL: ttl})
	w.check(err)
	return tok
}

// Join attests a machine with a token.
func (w *World) Join(tok jointoken.Token) Actor {
	w.T.Helper()
	key, _ := Key(w.T)
	o, err := w.TryJoin(tok, key)
	w.check(err)
	return w.Enter(key, o)
}

// TryJoin attests a machine with a token and a given session key.
func (w *World) TryJoin(tok jointoken.Token, key *ecdsa.PrivateKey) (*control.Opened, error) {
	w.T.Helper()
	challenge, _, err := w.Env.Challenge()
	w.check(err)
	thumb, err := seal.Thumbprint(key.Public())
	w.check(err)
	a, err := jointoken.NewAttester(tok)
	w.check(err)
	evidence, err := a.Attest(context.Background(), attest.Binding{Method: jointoken.Name, Genesis: w.Genesis, Nonce: challenge, SessionKey: thumb})
	w.check(err)
	return w.Env.Attest(context.Background(), control.AttestRequest{Method: jointoken.Name, Challenge: challenge, Evidence: evidence, CSR: CSR(w.T, key), Agent: w.Agent})
}

// Node makes a token and joins with it.
func (w *World) Node(by Actor, name string) Actor {
	w.T.Helper()
	return w.Join(w.Token(by, name, time.Hour))
}

// TryWorkload attests a process on a node.
func (w *World) TryWorkload(node Actor, want string) (Actor, error) {
	w.T.Helper()
	key, csr := Key(w.T)
	o, err := w.Env.AttestWorkload(context.Background(), node.Caller, control.WorkloadRequest{
		Claims: map[string]any{"unix": map[string]any{"uid": 1000}}, Want: want, CSR: csr,
	})
	if err != nil {
		return Actor{}, err
	}
	return w.Enter(key, o), nil
}

// Workload attests a process on a node and fails the test if that is refused.
func (w *World) Workload(node Actor, want string) Actor {
	w.T.Helper()
	a, err := w.TryWorkload(node, want)
	w.check(err)
	return a
}

// Put writes a secret.
func (w *World) Put(by Actor, path, value string) *control.Written {
	w.T.Helper()
	out, err := w.Env.Put(context.Background(), by.Caller, control.PutRequest{Secret: path, Value: seal.NewSecret([]byte(value))})
	w.check(err)
	return out
}

// Get reads a secret.
func (w *World) Get(by Actor, path string) (string, *control.Released, error) {
	out, err := w.Env.Get(context.Background(), by.Caller, control.GetRequest{Secret: path})
	if err != nil {
		return "", nil, err
	}
	return string(out.Value.Expose()), out, nil
}

// Change is a signed proposal's text.
func (w *World) Change(person, action, target string, manifest *policy.Manifest) ceremony.Change {
	c := ceremony.Change{
		Scope: w.Scope(), Action: action, Base: w.Env.State().Bundle.String(), Target: target, Role: ceremony.Proposer, Person: person,
		Nonce: Nonce(), Expires: w.Now().Add(time.Hour).Truncate(time.Second), Reason: "test",
	}
	if manifest != nil {
		c.New = state.Digest(manifest.Digest()).String()
	}
	return c
}

// Hold is the target of a change that is about the hold in force on a scope.
func (w *World) Hold(scope string) string {
	w.T.Helper()
	h, ok := w.Env.State().Holds.Get(scope)
	if !ok {
		w.T.Fatalf("there is no hold on %s", scope)
	}
	return state.HoldTarget(scope, h.Index)
}

// Nonce is a fresh nonce of a signed text.
func Nonce() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}

// Stage makes Propose name a rollout, and what it marks as containment. Empty: as the bundle in force has it by default.
type Stage struct {
	Rollout     string
	Containment []string
}

// stage fills in how a bundle comes into force and what it may be rolled back to.
func (w *World) stage(base *policy.Manifest, by Actor, files policy.Files, m *policy.Manifest, c *ceremony.Change) {
	w.T.Helper()
	_, before, _, err := w.Env.Bundle(context.Background(), by.Caller, state.Digest(base.Digest()))
	w.check(err)
	c.Containment = w.Stage.Containment
	if c.Rollout = w.Stage.Rollout; c.Rollout == "" && len(c.Containment) == 0 {
		if _, ok := w.Env.Program().Rollout(policy.DefaultRollout); ok {
			c.Rollout = policy.DefaultRollout
		}
	}
	if digest, err := policy.RollbackDigest(m, before, files, c.Containment); err == nil { // else it is for the server to find
		c.Rollback = digest
	}
}

// NextBundle is the manifest of files as the next bundle, and what its proposer signs.
func (w *World) NextBundle(by Actor, person string, files policy.Files) (*policy.Manifest, ceremony.Change) {
	w.T.Helper()
	base, _, _, err := w.Env.Bundle(context.Background(), by.Caller, state.Digest{})
	w.check(err)
	m, err := policy.BuildManifest(files, policy.Header{
		Environment: EnvName, Genesis: policy.Digest(w.Genesis), Version: base.Header().Version + 1, Previous: base.Digest(),
	})
	w.check(err)
	c := w.Change(person, control.ActionBundle, "", m)
	w.stage(base, by, files, m, &c)
	return m, c
}

// Propose proposes files as the next bundle.
func (w *World) Propose(by Actor, person string, files policy.Files) (*control.Proposal, error) {
	w.T.Helper()
	m, c := w.NextBundle(by, person, files)
	return w.Env.Propose(context.Background(), by.Caller, control.ProposeRequest{
		Text: c.Text(), SSHSIG: w.Sign(person, ceremony.NamespaceChange, c.Text()), Manifest: m.Text(), Files: files,
		ManifestSignature: w.Sign(person, ceremony.NamespaceBundle, string(m.Text())),
	})
}

// Approval is what a person signs who approves a change.
func (w *World) Approval(person string, ch *state.Change) ceremony.Change {
	c := ceremony.Change{
		Scope: w.Scope(), Action: ch.Action, Base: ch.Base.String(), Target: ch.Target, Role: ceremony.Approver, Person: person,
		Number: ch.Index, Nonce: Nonce(), Expires: ch.Expires.Time(), Reason: ch.Reason,
		Version: max(ch.Text, 1), Rollout: ch.Rollout, Containment: ch.Containment,
	}
	if !ch.Manifest.IsZero() {
		c.New = ch.Manifest.String()
	}
	if !ch.Rollback.IsZero() {
		c.Rollback = ch.Rollback.String()
	}
	return c
}

// Approve approves a change.
func (w *World) Approve(by Actor, person string, ch *state.Change) (*control.Proposal, error) {
	w.T.Helper()
	text := w.Approval(person, ch).Text()
	return w.Env.Approve(context.Background(), by.Caller, control.ApproveRequest{
		Change: ch.Index, Text: text, SSHSIG: w.Sign(person, ceremony.NamespaceChange, text),
	})
}

// Renew renews a node's session with a new session key.
func (w *World) Renew(node Actor, key *ecdsa.PrivateKey) (*control.Opened, error) {
	w.T.Helper()
	challenge, _, err := w.Env.Challenge()
	w.check(err)
	thumb, err := seal.Thumbprint(key.Public())
	w.check(err)
	binding := attest.Binding{Method: control.RenewalMethod, Genesis: w.Genesis, Nonce: challenge, SessionKey: thumb}
	digest := sha256.Sum256(binding.Message())
	sig, err := ecdsa.SignASN1(rand.Reader, node.Key, digest[:])
	w.check(err)
	return w.Env.Renew(context.Background(), control.RenewRequest{
		Challenge: challenge, Certificate: node.Opened.Chain[0], Signature: sig, CSR: CSR(w.T, key), Agent: w.Agent,
	})
}
