package controltest

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// Proof is what evidence of a method that Believe made proves: whatever it says.
type Proof struct {
	Claims      map[string]any
	Authority   string // that vouches
	Assurance   identity.Assurance
	Once        string // without the method's name
	OnceUntil   time.Time
	Key         [32]byte // that signed the evidence
	Executables [][32]byte
	NotAfter    time.Time
}

// believed is the evidence of a proof. Bound is the binding's digest, for methods that are not unbound.
type believed struct {
	Claims      map[string]any `json:"claims"`
	Authority   string         `json:"authority"`
	Assurance   string         `json:"assurance"`
	Once        string         `json:"once"`
	OnceUntil   time.Time      `json:"once_until"`
	Key         string         `json:"key"`
	Executables []string       `json:"executables"`
	NotAfter    time.Time      `json:"not_after"`
	Bound       string         `json:"bound"`
}

// Believe are the methods of the product, of which the named ones believe their evidence (see Proof). What they declare, and how
// they read their authorities, is as it was.
func Believe(names ...string) attest.Methods {
	all := methods.All()
	for i := range all {
		if m := &all[i]; slices.Contains(names, m.Name) {
			m.Verify, m.Issuer, m.Offer = believe(*m), nil, nil
		}
	}
	return all
}

func believe(m attest.Method) attest.Verifier {
	return func(in attest.Input) (attest.Result, error) {
		if _, err := attest.Begin[any](in, m.Name); err != nil {
			return attest.Result{}, err
		}
		var ev believed
		if err := attest.DecodeEvidence(in.Evidence, &ev); err != nil {
			return attest.Result{}, err
		}
		if digest := in.Binding.Digest(); !m.Unbound && ev.Bound != hex.EncodeToString(digest[:]) {
			return attest.Result{}, problem.New(problem.ReasonBadProof, "the evidence is bound to something else")
		}
		grade, err := identity.ParseAssurance(ev.Assurance)
		if err != nil {
			return attest.Result{}, err
		}
		out := attest.Result{
			Claims: ev.Claims, Assurance: grade, Anchor: m.Name + ":" + ev.Authority, OnceUntil: ev.OnceUntil, NotAfter: ev.NotAfter,
		}
		if ev.Once != "" {
			out.Once = m.Name + ":" + ev.Once
		}
		out.Key = digestOf(ev.Key)
		for _, x := range ev.Executables {
			if out.Executables == nil {
				out.Executables = map[[32]byte]bool{}
			}
			out.Executables[digestOf(x)] = true
		}
		return out, attest.CheckClaims(out.Claims)
	}
}

func digestOf(text string) (d [32]byte) {
	b, _ := hex.DecodeString(text) // what isn't hex is no digest
	copy(d[:], b)
	return d
}

// Evidence is a request to attest by a method that believes, for a session key and a new challenge.
func (w *World) Evidence(method string, p Proof, key *ecdsa.PrivateKey, agent *release.Statement) control.AttestRequest {
	w.T.Helper()
	challenge, _, err := w.Env.Challenge()
	w.check(err)
	return w.EvidenceFor(challenge, method, p, key, agent)
}

// EvidenceFor is Evidence for a challenge that was made before.
func (w *World) EvidenceFor(challenge []byte, method string, p Proof, key *ecdsa.PrivateKey, agent *release.Statement) control.AttestRequest {
	w.T.Helper()
	thumb, err := seal.Thumbprint(key.Public())
	w.check(err)
	m, err := w.Config.Methods.Find(method)
	w.check(err)
	bound := attest.Binding{Method: method, Genesis: w.Genesis, Nonce: challenge, SessionKey: thumb}.Digest()
	ev := believed{
		Claims: p.Claims, Authority: p.Authority, Assurance: p.Assurance.String(), Once: p.Once, OnceUntil: p.OnceUntil.UTC(),
		Key: hex.EncodeToString(p.Key[:]), Executables: []string{}, NotAfter: p.NotAfter.UTC(),
	}
	if p.Assurance == 0 {
		ev.Assurance = m.Assurance.String()
	}
	if !m.Unbound {
		ev.Bound = hex.EncodeToString(bound[:])
	}
	for _, x := range p.Executables {
		ev.Executables = append(ev.Executables, hex.EncodeToString(x[:]))
	}
	data, err := attest.EncodeEvidence(ev)
	w.check(err)
	return control.AttestRequest{Method: method, Challenge: challenge, Evidence: data, CSR: CSR(w.T, key), Agent: agent}
}

// TryProve attests with a given session key by a method that believes.
func (w *World) TryProve(method string, p Proof, key *ecdsa.PrivateKey) (*control.Opened, error) {
	w.T.Helper()
	return w.Env.Attest(context.Background(), w.Evidence(method, p, key, nil))
}

// Prove attests by a method that believes, and fails the test if that is refused.
func (w *World) Prove(method string, p Proof) Actor {
	w.T.Helper()
	key, _ := Key(w.T)
	o, err := w.TryProve(method, p, key)
	w.check(err)
	return w.Enter(key, o)
}

// Act proposes an act that is not a bundle.
func (w *World) Act(by Actor, person, action, target string) (*control.Proposal, error) {
	w.T.Helper()
	text := w.Change(person, action, target, nil).Text()
	return w.Env.Propose(context.Background(), by.Caller, control.ProposeRequest{Text: text, SSHSIG: w.Sign(person, ceremony.NamespaceChange, text)})
}

// Digest is a digest for tests that is as good as any other.
func Digest(text string) state.Digest { return sha256.Sum256([]byte(text)) }
