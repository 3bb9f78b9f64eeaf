package control_test

import (
	"context"
	"crypto/ecdsa"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/seal"
)

// quarantining are nodes whose rule requires something that whoever attests says himself.
const quarantining = `apiVersion: bailment/v1
kind: Identity
metadata: {name: nodes}
spec:
  method: join-token
  path: /node/join-token/{claims.name}
  require: claims.agent.platform == "linux/amd64"
  otherwise: quarantine
`

// joinAs attests by a join token, with a session key and an agent's statement of one's own.
func joinAs(t *testing.T, w *controltest.World, tok jointoken.Token, key *ecdsa.PrivateKey, platform string) (*control.Opened, error) {
	t.Helper()
	challenge, _, err := w.Env.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	thumb, err := seal.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	a, err := jointoken.NewAttester(tok)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := a.Attest(context.Background(), attest.Binding{Method: jointoken.Name, Genesis: w.Genesis, Nonce: challenge, SessionKey: thumb})
	if err != nil {
		t.Fatal(err)
	}
	return w.Env.Attest(context.Background(), control.AttestRequest{
		Method: jointoken.Name, Challenge: challenge, Evidence: evidence, CSR: controltest.CSR(t, key), Agent: &release.Statement{Platform: platform},
	})
}

// Evidence that counts once and was used by another key proves nothing: who found a spent token in a log has nobody quarantined by it,
// whatever he says of his agent. The key that used it is still the machine's.
func TestSpentEvidenceQuarantinesNobody(t *testing.T) {
	w := controltest.New(t, controltest.Options{Extra: policy.Files{"identities/node.yaml": []byte(quarantining)}})
	alice := w.Login("alice")
	tok := w.Token(alice, "web-1", time.Hour)
	key, _ := controltest.Key(t)
	if _, err := joinAs(t, w, tok, key, "linux/amd64"); err != nil {
		t.Fatal(err)
	}
	thief, _ := controltest.Key(t)
	if _, err := joinAs(t, w, tok, thief, "plan9/mips"); !problem.Is(err, problem.ReasonTokenSpent) {
		t.Errorf("a spent token, with another key: %v", err)
	}
	node, err := identity.New(w.Env.Name(), "/node/join-token/web-1")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := w.Env.ShowIdentity(context.Background(), alice.Caller, node.Path()); err != nil || x.Hold != nil {
		t.Errorf("the machine is held: %+v, %v", x.Hold, err)
	}
	if _, err := joinAs(t, w, tok, key, "plan9/mips"); !problem.Is(err, problem.ReasonQuarantined) {
		t.Errorf("the machine itself, and worse than its rule requires: %v", err)
	}
}

// Where a platform signs for many machines, the key that signs is no machine's: somebody else's machine, to which the rule gives the same
// path, has nobody quarantined. What tells is the platform's own name of the machine; without one nobody is quarantined at all.
func TestSharedKeyQuarantinesNobodyElse(t *testing.T) {
	for _, machine := range [][]string{{"instance"}, nil} {
		f := newFleet(t, func(ms attest.Methods) {
			for i := range ms {
				if ms[i].Name == controltest.MethodFresh {
					ms[i].Shared, ms[i].Machine = true, machine
				}
			}
		}, nil)
		f.Put(f.alice, "node/seed", "v")
		proof := func(boot, instance string) controltest.Proof {
			p := controltest.MachineProof("m1", boot)
			p.Key = controltest.Digest("key of the cloud, which signs for all its machines")
			if instance != "" {
				p.Claims["instance"] = instance
			}
			return p
		}
		node := f.Prove(controltest.MethodFresh, proof("good", "1"))
		for _, other := range []string{"2", ""} {
			_, err := f.prove(proof("bad", other), f.key())
			f.refused(err, problem.ReasonPosture)
			f.must(f.works(node))
		}
		_, err := f.prove(proof("bad", "1"), f.key())
		if machine == nil {
			f.refused(err, problem.ReasonPosture)
			f.must(f.works(node))
			continue
		}
		f.refused(err, problem.ReasonQuarantined)
		f.refused(f.works(node), problem.ReasonQuarantined)
	}
}
