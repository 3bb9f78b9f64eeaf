package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
)

// binary is the digest of a release's program.
func binary(version string) [32]byte { return controltest.Digest("bailment " + version) }

// released is what an agent of a release says of itself, signed by a person of the world.
func (f *fleet) released(signer, version string) *release.Statement {
	f.t.Helper()
	v, err := release.ParseVersion(version)
	f.must(err)
	m := &release.Manifest{
		Version: v, Protocol: 1, Commit: strings.Repeat("0123456789", 4), Date: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Go: "go1.26.8",
		Files: []release.File{{Digest: binary(version), Size: 30_000_000, Platform: "linux/amd64", Name: "bailment"}},
	}
	text, err := m.Text()
	f.must(err)
	sig, err := sshsig.Sign(f.Persons[signer], release.Namespace, text)
	f.must(err)
	return &release.Statement{Version: version, Platform: "linux/amd64", Digest: binary(version), Manifest: text, Signature: sig}
}

// asks is the environment's file with what it asks of agents; signers are persons of the world.
func (f *fleet) asks(agents string, signers ...string) string {
	f.t.Helper()
	var keys []string
	for _, s := range signers {
		keys = append(keys, fmt.Sprintf("%q", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(f.Persons[s].PublicKey())))))
	}
	return fmt.Sprintf("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 1}\n  agents: {signers: [%s]%s}\n",
		controltest.EnvName, strings.Join(keys, ", "), agents)
}

// newAgents is a fleet in which carol signs releases, with version 1.4.0 asked for and nodes that may read.
func newAgents(t *testing.T) *fleet {
	t.Helper()
	f := newFleet(t, nil, nil)
	f.AddPerson("carol")
	f.AddPerson("mallory")
	f.Put(f.alice, "node/seed", "v")
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.4.0", "carol")))
	return f
}

// attest is a machine that comes with an agent.
func (f *fleet) attest(p controltest.Proof, agent *release.Statement) (controltest.Actor, error) {
	f.t.Helper()
	key := f.key()
	o, err := f.Env.Attest(context.Background(), f.Evidence(methodOf(p), p, key, agent))
	if err != nil {
		return controltest.Actor{}, err
	}
	return f.Enter(key, o), nil
}

// Each agent that may not run is told why, by its own reason, and no job is asked for one.
func TestAgentsAreAskedFor(t *testing.T) {
	f := newAgents(t)
	flipped := *f.released("carol", "1.4.0")
	flipped.Digest[0] ^= 1
	forged := *f.released("carol", "1.4.0")
	forged.Manifest = []byte(strings.Replace(string(forged.Manifest), "0123456789", "1123456789", 1))
	claims := *f.released("carol", "1.3.9") // the manifest says which version it is, and not the agent
	claims.Version = "1.9.0"
	elsewhere := *f.released("carol", "1.4.0")
	elsewhere.Platform = "linux/arm64"
	for what, c := range map[string]struct {
		agent *release.Statement
		want  problem.Reason
	}{
		"one that says nothing":       {nil, problem.ReasonAgentUnsigned},
		"one that says nothing much":  {&release.Statement{}, problem.ReasonAgentUnsigned},
		"one by a stranger":           {f.released("mallory", "1.4.0"), problem.ReasonAgentUnsigned},
		"one by an operator":          {f.released("alice", "1.4.0"), problem.ReasonAgentUnsigned},
		"one with a changed manifest": {&forged, problem.ReasonAgentUnsigned},
		"one with a flipped bit":      {&flipped, problem.ReasonAgentUnknown},
		"one of another platform":     {&elsewhere, problem.ReasonAgentUnknown},
		"an old one":                  {f.released("carol", "1.3.9"), problem.ReasonAgentOutdated},
		"a candidate":                 {f.released("carol", "1.4.0-rc.1"), problem.ReasonAgentOutdated},
		"an old one that lies":        {&claims, problem.ReasonAgentUnknown},
		"a good one":                  {f.released("carol", "1.4.0"), ""},
		"a newer one":                 {f.released("carol", "2.0.0"), ""},
	} {
		node, err := f.attest(controltest.MachineProof("m1", "good"), c.agent)
		if reasonOf(err) != c.want {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			if err := f.works(node); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if f.entries("node.quarantined") != 0 || f.Env.State().Holds.Len() != 0 {
		t.Error("an old agent is no broken machine")
	}
	if _, err := f.attest(controltest.JobProof("j", f.Now().Add(time.Minute)), nil); err != nil {
		t.Errorf("a job has no agent: %v", err)
	}
}

// Measured is what the platform says, not the agent.
func TestAgentsMeasured(t *testing.T) {
	f := newAgents(t)
	good := f.released("carol", "1.4.0")
	before, err := f.attest(controltest.MachineProof("m1", "good"), good)
	f.must(err)
	f.must(f.bring("environment.yaml", f.asks(", require: measured, minimum: 1.4.0", "carol")))
	f.refused(f.works(before), problem.ReasonAgentClaimed)
	measured := func(digests ...[32]byte) error {
		p := controltest.MachineProof("m1", "good")
		p.Executables = digests
		node, err := f.attest(p, good)
		if err == nil {
			err = f.works(node)
		}
		return err
	}
	f.refused(measured(), problem.ReasonAgentClaimed)
	f.refused(measured(binary("1.3.9")), problem.ReasonAgentClaimed)
	f.must(measured(binary("1.3.9"), binary("1.4.0")))
	nothing := *good
	nothing.Digest = [32]byte{}
	p := controltest.MachineProof("m1", "good")
	p.Executables = [][32]byte{{}}
	_, err = f.attest(p, &nothing)
	f.refused(err, problem.ReasonAgentUnknown)
}

// A raised floor reaches what runs at once, and what runs above it goes on; a removed signer takes his releases along.
func TestAgentsFloor(t *testing.T) {
	f := newAgents(t)
	old, err := f.attest(controltest.MachineProof("old", "good"), f.released("carol", "1.4.0"))
	f.must(err)
	fresh, err := f.attest(controltest.MachineProof("new", "good"), f.released("carol", "1.5.0"))
	f.must(err)
	f.must(f.works(old))
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.5.0", "carol")))
	f.refused(f.works(old), problem.ReasonAgentOutdated)
	f.must(f.works(fresh))
	f.Reopen()
	f.alice, f.bob = f.Login("alice"), f.Login("bob")
	f.refused(f.works(old), problem.ReasonAgentOutdated)
	_, err = f.TryWorkload(old, "")
	f.refused(err, problem.ReasonAgentOutdated)
	_, err = f.Env.IssueJWT(context.Background(), old.Caller, control.JWTRequest{Audience: []string{"x"}})
	f.refused(err, problem.ReasonAgentOutdated)

	// Lower only by a rollback that is named, named anew, and approved.
	for what, agents := range map[string]string{
		"without a name": ", require: signed, minimum: 1.4.0", "dropped": ", require: signed", "asking less": ", require: any, minimum: 1.5.0",
	} {
		if err := f.bring("environment.yaml", f.asks(agents, "carol")); !problem.Is(err, problem.ReasonFloorLowered) {
			t.Errorf("%s: %v", what, err)
		}
	}
	files := policy.Files{}
	for path, data := range f.Files {
		files[path] = data
	}
	files["environment.yaml"] = []byte(f.asks(", require: signed, minimum: 1.4.0, rollback: INC-7", "carol"))
	p, err := f.Propose(f.alice, "alice", files)
	f.must(err)
	_, err = f.Approve(f.alice, "alice", p.Change)
	f.refused(err, problem.ReasonSeparation)
	f.refused(f.works(old), problem.ReasonAgentOutdated)
	_, err = f.Approve(f.bob, "bob", p.Change)
	f.must(err)
	f.Files = files
	f.must(f.works(old))
	// The same name does not do for the next one, and a raise needs none.
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.5.0, rollback: INC-7", "carol")))
	f.refused(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.3.0, rollback: INC-7", "carol")), problem.ReasonFloorLowered)
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.3.0, rollback: INC-8", "carol")))

	f.must(f.works(fresh))
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.3.0, rollback: INC-8", "mallory")))
	f.refused(f.works(fresh), problem.ReasonAgentUnsigned)
	f.refused(f.works(old), problem.ReasonAgentUnsigned)
}

// A renewal by possession says anew which agent it is of, and what the machine proved stays as it was.
func TestAgentsRenew(t *testing.T) {
	f := newFleet(t, func(ms attest.Methods) {
		for i := range ms {
			if ms[i].Name == controltest.MethodFresh {
				ms[i].Renewal = attest.Renewal{Kind: attest.RenewByPossession, HardLifetime: true}
			}
		}
	}, nil)
	f.AddPerson("carol")
	f.Put(f.alice, "node/seed", "v")
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.4.0", "carol")))
	node, err := f.attest(controltest.MachineProof("m1", "good"), f.released("carol", "1.4.0"))
	f.must(err)
	f.must(f.bring("environment.yaml", f.asks(", require: signed, minimum: 1.5.0", "carol")))
	for what, c := range map[string]struct {
		agent *release.Statement
		want  problem.Reason
	}{
		"nothing": {nil, problem.ReasonAgentUnsigned}, "the old one": {f.released("carol", "1.4.0"), problem.ReasonAgentOutdated},
	} {
		if _, err := f.renewAs(node, c.agent); !problem.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.refused(f.works(node), problem.ReasonAgentOutdated)
	node, err = f.renewAs(node, f.released("carol", "1.5.0")) // updated in place
	f.must(err)
	f.must(f.works(node))
	id, _ := f.Env.State().Identities.Get("/node/tpm/m1")
	agent, _ := id.Claims[policy.ClaimAgent].(map[string]any)
	if id.Claims["boot"] != "good" || agent["version"] != "1.5.0" || agent["state"] != policy.AgentSigned || agent["evidence"] != policy.AgentClaimed {
		t.Errorf("%v", id.Claims)
	}
}

// renewAs is World.Renew with a new key and an agent.
func (f *fleet) renewAs(node controltest.Actor, agent *release.Statement) (controltest.Actor, error) {
	f.t.Helper()
	key := f.key()
	challenge, _, err := f.Env.Challenge()
	f.must(err)
	thumb, err := seal.Thumbprint(key.Public())
	f.must(err)
	digest := sha256.Sum256(attest.Binding{Method: control.RenewalMethod, Genesis: f.Genesis, Nonce: challenge, SessionKey: thumb}.Message())
	sig, err := ecdsa.SignASN1(rand.Reader, node.Key, digest[:])
	f.must(err)
	o, err := f.Env.Renew(context.Background(), control.RenewRequest{
		Challenge: challenge, Certificate: node.Opened.Chain[0], Signature: sig, CSR: controltest.CSR(f.t, key), Agent: agent,
	})
	if err != nil {
		return controltest.Actor{}, err
	}
	return f.Enter(key, o), nil
}
