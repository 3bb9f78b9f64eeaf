package control_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
)

// send approves by a text and a signature that somebody made.
func (b *board) send(person string, change uint64, text, sshsig string) error {
	_, err := b.Env.Approve(context.Background(), b.by[person].Caller, control.ApproveRequest{Change: change, Text: text, SSHSIG: sshsig})
	return err
}

// What must not bring a bundle into force, each with its reason. A job that floods refusals is in rollout_test.go, and a server that shows
// another plan than it has signed in package cli.
func TestAttemptsOnChanges(t *testing.T) {
	b := newBoard(t, 2, "alice", "bob", "carol", "dave")
	b.AddPerson("second") // another key of bob's
	second := bytes.TrimSpace(ssh.MarshalAuthorizedKey(b.Persons["second"].PublicKey()))
	b.Files["operators.yaml"] = bytes.Replace(b.Files["operators.yaml"], []byte("- name: bob\n      keys: ["), fmt.Appendf(nil, "- name: bob\n      keys: [%q, ", second), 1)
	approve := func(ch *state.Change, persons ...string) {
		t.Helper()
		for _, p := range persons {
			_, err := b.Approve(b.by[p], p, ch)
			b.must(err)
		}
	}
	approve(b.propose("alice", "bob's second key"), "carol", "dave")
	ch := b.propose("alice", "x")

	t.Run("one's own change", func(*testing.T) {
		_, err := b.Approve(b.by["alice"], "alice", ch)
		b.refused(err, problem.ReasonSeparation)
	})
	t.Run("one person with two keys", func(*testing.T) {
		approve(ch, "bob")
		text := b.Approval("bob", ch).Text()
		b.refused(b.send("bob", ch.Index, text, b.Sign("second", ceremony.NamespaceChange, text)), problem.ReasonSeparation)
	})
	t.Run("a stale approval after an edit", func(*testing.T) {
		edited := b.propose("alice", "x, edited")
		text := b.Approval("carol", ch).Text()
		b.refused(b.send("carol", edited.Index, text, b.Sign("carol", ceremony.NamespaceChange, text)), problem.ReasonSignature)
	})
	t.Run("an approval of another environment", func(*testing.T) {
		foreign := b.Approval("carol", ch)
		foreign.Genesis[0]++
		b.refused(b.send("carol", ch.Index, foreign.Text(), b.Sign("carol", ceremony.NamespaceChange, foreign.Text())), problem.ReasonSignature)
		foreign = b.Approval("carol", ch)
		foreign.Epoch++
		b.refused(b.send("carol", ch.Index, foreign.Text(), b.Sign("carol", ceremony.NamespaceChange, foreign.Text())), problem.ReasonSignature)
	})
	t.Run("another way back than was proposed", func(*testing.T) {
		other := b.Approval("carol", ch)
		other.Rollback = other.Base
		b.refused(b.send("carol", ch.Index, other.Text(), b.Sign("carol", ceremony.NamespaceChange, other.Text())), problem.ReasonSignature)
	})
	t.Run("a forged namespace", func(*testing.T) {
		text := b.Approval("carol", ch).Text()
		for _, namespace := range []string{ceremony.NamespaceBundle, ceremony.NamespaceLogin, "file"} {
			b.refused(b.send("carol", ch.Index, text, b.Sign("carol", namespace, text)), problem.ReasonSignature)
		}
	})
	t.Run("somebody else's signature", func(*testing.T) {
		text := b.Approval("carol", ch).Text()
		b.refused(b.send("carol", ch.Index, text, b.Sign("dave", ceremony.NamespaceChange, text)), problem.ReasonSignature)
	})
	t.Run("a proposal's text as an approval", func(*testing.T) {
		text := b.Approval("carol", ch)
		text.Role, text.Number = ceremony.Proposer, 0
		b.refused(b.send("carol", ch.Index, text.Text(), b.Sign("carol", ceremony.NamespaceChange, text.Text())), problem.ReasonSignature)
	})
	t.Run("version n-1", func(*testing.T) {
		base, _, _, err := b.Env.Bundle(context.Background(), b.by["alice"].Caller, state.Digest{})
		b.must(err)
		for version, want := range map[uint64]problem.Reason{base.Header().Version: problem.ReasonInvalid, base.Header().Version + 2: problem.ReasonInvalid} {
			m, err := policy.BuildManifest(b.with("README.md", "old"), policy.Header{
				Environment: controltest.EnvName, Genesis: policy.Digest(b.Genesis), Version: version, Previous: base.Digest(),
			})
			b.must(err)
			text := b.Change("alice", control.ActionBundle, "", m).Text()
			_, err = b.Env.Propose(context.Background(), b.by["alice"].Caller, control.ProposeRequest{
				Text: text, SSHSIG: b.Sign("alice", ceremony.NamespaceChange, text), Manifest: m.Text(), Files: b.with("README.md", "old"),
				ManifestSignature: b.Sign("alice", ceremony.NamespaceBundle, string(m.Text())),
			})
			b.refused(err, want)
		}
	})
	t.Run("too few operators", func(*testing.T) {
		operators := string(b.Files["operators.yaml"])
		_, err := b.Propose(b.by["alice"], "alice", b.with("operators.yaml", operators[:strings.Index(operators, "    - name: carol")]))
		b.refused(err, problem.ReasonBundleInvalid)
	})
	t.Run("one's own access", func(*testing.T) {
		own, err := b.Propose(b.by["alice"], "alice", b.with("grants/own.yaml",
			"apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: own}\nspec: {actions: [secret.read], identities: [/human/carol], secrets: [db/x], purposes: [runtime]}\n"))
		b.must(err)
		_, err = b.Approve(b.by["carol"], "carol", own.Change)
		b.refused(err, problem.ReasonSeparation)
	})
	t.Run("an expired approval", func(t *testing.T) {
		b.Advance(2 * time.Hour)
		b.by["carol"] = b.Login("carol")
		_, err := b.Approve(b.by["carol"], "carol", ch)
		b.refused(err, problem.ReasonConflict)
		if !strings.Contains(err.Error(), "expired") {
			t.Errorf("the reason is %v", err)
		}
	})
	b.inForce(2)
}

// What was proposed for a bundle that is no longer in force is not approved any more, whatever it is about: its approvers, its duties and how
// many it takes were that bundle's.
func TestApprovalAfterTheBaseChanged(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	yes := true
	_, err := b.Env.Revoke(context.Background(), b.by["alice"].Caller, control.RevokeRequest{Scope: "secret:db/x", Hold: &yes, Reason: "x"})
	b.must(err)
	late := map[string]*state.Change{"bundle": b.propose("alice", "slow")}
	p, err := b.act("alice", control.ActionLiftHold, b.Hold("secret:db/x"))
	b.must(err)
	late["act"] = p.Change
	texts := map[string]string{}
	for name, ch := range late {
		texts[name] = b.Approval("bob", ch).Text() // signed before, sent after
	}
	_, err = b.Approve(b.by["carol"], "carol", b.propose("alice", "fast"))
	b.must(err)
	b.inForce(2)
	for name, ch := range late {
		err := b.send("bob", ch.Index, texts[name], b.Sign("bob", ceremony.NamespaceChange, texts[name]))
		b.refused(err, problem.ReasonConflict)
		if !strings.Contains(err.Error(), "no longer in force") {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.inForce(2)
	if _, held := b.Env.State().Holds.Get("secret:db/x"); !held {
		t.Error("the hold was lifted")
	}
}

// What a proposer signed is about this proposal, by him who sends it, in this environment, and once; so is a bundle's manifest.
func TestAttemptsToPropose(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	ctx := context.Background()
	send := func(by, signer string, c ceremony.Change, m *policy.Manifest, files policy.Files) error {
		r := control.ProposeRequest{Text: c.Text(), SSHSIG: b.Sign(signer, ceremony.NamespaceChange, c.Text())}
		if m != nil {
			r.Manifest, r.Files, r.ManifestSignature = m.Text(), files, b.Sign(signer, ceremony.NamespaceBundle, string(m.Text()))
		}
		_, err := b.Env.Propose(ctx, b.by[by].Caller, r)
		return err
	}
	files := b.with("README.md", "x")
	bundle := func(edit func(*ceremony.Change)) error {
		m, c := b.NextBundle(b.by["alice"], "alice", files)
		edit(&c)
		return send("alice", "alice", c, m, files)
	}
	for name, edit := range map[string]func(*ceremony.Change){
		"another environment":        func(c *ceremony.Change) { c.Environment = "other.example" },
		"another genesis":            func(c *ceremony.Change) { c.Genesis[0]++ },
		"another epoch":              func(c *ceremony.Change) { c.Epoch++ },
		"another base":               func(c *ceremony.Change) { c.Base = c.New },
		"another bundle":             func(c *ceremony.Change) { c.New = c.Base },
		"an approval":                func(c *ceremony.Change) { c.Role, c.Number = ceremony.Approver, 7 },
		"another way back":           func(c *ceremony.Change) { c.Rollback = c.Base },
		"a bundle that acts, too":    func(c *ceremony.Change) { c.Target = "everything#1" },
		"containment that is not":    func(c *ceremony.Change) { c.Containment = []string{"operators.yaml"} },
		"a person who did not sign":  func(c *ceremony.Change) { c.Person = "bob" },
		"a rollout that there isn't": func(c *ceremony.Change) { c.Rollout = "default" },
	} {
		if err := bundle(edit); err == nil || problem.As(err).Kind == problem.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Run("files that are not the manifest's", func(*testing.T) {
		m, c := b.NextBundle(b.by["alice"], "alice", files)
		for _, other := range []policy.Files{b.with("README.md", "y"), b.with("more.md", "z"), b.Files} {
			b.refused(send("alice", "alice", c, m, other), problem.ReasonBundleInvalid)
		}
	})
	t.Run("a manifest that another signed", func(*testing.T) {
		m, c := b.NextBundle(b.by["alice"], "alice", files)
		_, err := b.Env.Propose(ctx, b.by["alice"].Caller, control.ProposeRequest{
			Text: c.Text(), SSHSIG: b.Sign("alice", ceremony.NamespaceChange, c.Text()), Manifest: m.Text(), Files: files,
			ManifestSignature: b.Sign("bob", ceremony.NamespaceBundle, string(m.Text())),
		})
		b.refused(err, problem.ReasonSignature)
	})
	t.Run("sent by another", func(*testing.T) {
		m, c := b.NextBundle(b.by["alice"], "alice", files)
		b.refused(send("bob", "alice", c, m, files), problem.ReasonSignature)
	})
	t.Run("a nonce twice", func(*testing.T) {
		m, c := b.NextBundle(b.by["alice"], "alice", files)
		b.must(send("alice", "alice", c, m, files))
		b.refused(send("alice", "alice", c, m, files), problem.ReasonReplayed)
		c.Reason = "again"
		b.refused(send("alice", "alice", c, m, files), problem.ReasonReplayed)
		one, two := b.propose("alice", "one"), b.propose("alice", "two")
		first, second := b.Approval("bob", one), b.Approval("carol", two)
		second.Nonce = first.Nonce
		b.must(b.send("bob", one.Index, first.Text(), b.Sign("bob", ceremony.NamespaceChange, first.Text())))
		b.refused(b.send("carol", two.Index, second.Text(), b.Sign("carol", ceremony.NamespaceChange, second.Text())), problem.ReasonReplayed)
	})
	for name, c := range map[string]struct {
		edit func(*policy.Header)
		want problem.Reason
	}{
		"a manifest that follows another":     {func(h *policy.Header) { h.Previous[0]++ }, problem.ReasonConflict},
		"a manifest of another genesis":       {func(h *policy.Header) { h.Genesis[0]++ }, problem.ReasonWrongEnvironment},
		"a manifest of another name":          {func(h *policy.Header) { h.Environment = "other.example" }, problem.ReasonWrongEnvironment},
		"a manifest of a version that was":    {func(h *policy.Header) { h.Version-- }, problem.ReasonInvalid},
		"a manifest of a version that is not": {func(h *policy.Header) { h.Version++ }, problem.ReasonInvalid},
	} {
		t.Run(name, func(*testing.T) {
			m, _ := b.NextBundle(b.by["alice"], "alice", files)
			h := m.Header()
			c.edit(&h)
			m, err := policy.BuildManifest(files, h)
			b.must(err)
			b.refused(send("alice", "alice", b.Change("alice", control.ActionBundle, "", m), m, files), c.want)
		})
	}
}

// Name and class are for ever: no bundle says another one.
func TestNameAndClassAreForEver(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	for _, x := range [][2]string{
		{"metadata: {name: " + controltest.EnvName + "}", "metadata: {name: other.example}"},
		{"class: development", "class: production\n  agents: {signers: ['" + testSigner + "']}"},
	} {
		was := string(b.Files["environment.yaml"])
		is := strings.Replace(was, x[0], x[1], 1)
		if is == was {
			t.Fatalf("nothing to replace: %s", was)
		}
		_, err := b.Propose(b.by["alice"], "alice", b.with("environment.yaml", is))
		if !problem.Is(err, problem.ReasonBundleInvalid) || !strings.Contains(err.Error(), "for ever") {
			t.Errorf("%s: %v", x[1], err)
		}
	}
}

// In production a change that leaves one person without whom nothing can be approved is refused, by whatever it does
// so: a person less, a duty less, or an approval more.
func TestChangeKeepsWhoRecovers(t *testing.T) {
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := file.Create(t.TempDir()+"/root.key", src)
	if err != nil {
		t.Fatal(err)
	}
	settings := func(required int) string {
		return fmt.Sprintf("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: production\n  approvals: {required: %d}\n  agents: {signers: ['%s']}\n",
			controltest.EnvName, required, testSigner)
	}
	b := newBoardOf(t, controltest.Options{
		Persons: []string{"alice", "bob", "carol"}, Class: "production", Quorum: 1, Holder: sturdy{holder},
		Extra: policy.Files{"environment.yaml": []byte(settings(1))},
	})
	all := "propose, approve, admit, revoke, keys, audit"
	for name, files := range map[string]policy.Files{
		"a person less":    b.with("operators.yaml", strings.Split(string(b.Files["operators.yaml"]), "    - name: carol")[0]),
		"a duty less":      b.with("operators.yaml", string(b.operators(map[string]string{"alice": all, "bob": all, "carol": "audit"}))),
		"an approval more": b.with("environment.yaml", settings(2)),
	} {
		if _, err := b.Propose(b.by["alice"], "alice", files); !problem.Is(err, problem.ReasonSeparation) || !strings.Contains(err.Error(), "is lost, no change can be approved") {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.propose("alice", "what leaves them as they are")
}

// A key that is held signs nothing, for whoever logged in by another of his: no approval, no proposal, and no manifest.
func TestHeldKeySignsNothing(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.AddPerson("second")
	second := bytes.TrimSpace(ssh.MarshalAuthorizedKey(b.Persons["second"].PublicKey()))
	b.Files["operators.yaml"] = bytes.Replace(b.Files["operators.yaml"], []byte("- name: bob\n      keys: ["), fmt.Appendf(nil, "- name: bob\n      keys: [%q, ", second), 1)
	_, err := b.Approve(b.by["carol"], "carol", b.propose("alice", "bob's second key"))
	b.must(err)
	ch := b.propose("alice", "x")
	b.revoke("carol", b.key("second"))
	text := b.Approval("bob", ch).Text()
	b.refused(b.send("bob", ch.Index, text, b.Sign("second", ceremony.NamespaceChange, text)), problem.ReasonHeld)
	for _, keys := range [][2]string{{"second", "bob"}, {"bob", "second"}} {
		files := b.with("README.md", "by bob")
		m, c := b.NextBundle(b.by["bob"], "bob", files)
		_, err := b.Env.Propose(context.Background(), b.by["bob"].Caller, control.ProposeRequest{
			Text: c.Text(), SSHSIG: b.Sign(keys[0], ceremony.NamespaceChange, c.Text()), Manifest: m.Text(), Files: files,
			ManifestSignature: b.Sign(keys[1], ceremony.NamespaceBundle, string(m.Text())),
		})
		if !problem.Is(err, problem.ReasonHeld) {
			t.Errorf("text by %s, manifest by %s: %v", keys[0], keys[1], err)
		}
	}
	b.must(b.send("bob", ch.Index, text, b.Sign("bob", ceremony.NamespaceChange, text)))
}

// testSigner is a signer of agents.
const testSigner = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"

// What is no bundle names a target and nothing else: no manifest, and no way into force or back.
func TestActsAreAlone(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	b.Put(b.by["alice"], "db/x", "one")
	b.Put(b.by["alice"], "db/x", "two")
	_, err := b.Env.Move(context.Background(), b.by["alice"].Caller, control.MoveRequest{Secret: "db/x", Version: 1, To: state.Retired})
	b.must(err)
	b.revoke("alice", "identity:/workload/api")
	digest := b.Env.State().Bundle.String()
	for action, target := range map[string]string{
		control.ActionDestroy: "db/x#1", control.ActionDelete: state.EndTarget(controltest.EnvName, b.Genesis), control.ActionLiftHold: b.Hold("identity:/workload/api"),
	} {
		for what, edit := range map[string]func(*ceremony.Change){
			"a manifest":  func(c *ceremony.Change) { c.New = digest },
			"a rollout":   func(c *ceremony.Change) { c.Rollout = "default" },
			"a rollback":  func(c *ceremony.Change) { c.Rollback = digest },
			"containment": func(c *ceremony.Change) { c.Containment = []string{"README.md"} },
		} {
			c := b.Change("alice", action, target, nil)
			edit(&c)
			_, err := b.Env.Propose(context.Background(), b.by["alice"].Caller, control.ProposeRequest{Text: c.Text(), SSHSIG: b.Sign("alice", ceremony.NamespaceChange, c.Text())})
			if !problem.Is(err, problem.ReasonInvalid) {
				t.Errorf("%s with %s: %v", action, what, err)
			}
		}
		_, err := b.act("alice", action, target)
		b.must(err)
	}
}

// To propose that a version is destroyed takes a grant to destroy it.
func TestDestroyTakesAGrant(t *testing.T) {
	b := newBoardOf(t, controltest.Options{Persons: []string{"alice", "bob", "carol"}, Quorum: 1, Extra: policy.Files{"grants/deny.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: not-carol}
spec: {effect: deny, actions: [secret.destroy], identities: [/human/carol], secrets: [db/*]}
`)}})
	b.Put(b.by["alice"], "db/x", "one")
	b.Put(b.by["alice"], "db/x", "two")
	_, err := b.Env.Move(context.Background(), b.by["alice"].Caller, control.MoveRequest{Secret: "db/x", Version: 1, To: state.Retired})
	b.must(err)
	_, err = b.act("carol", control.ActionDestroy, "db/x#1")
	b.refused(err, problem.ReasonDenied)
	_, err = b.act("alice", control.ActionDestroy, "db/x#1")
	b.must(err)
}

// Nobody makes a hold a cutoff after which no bundle could be approved any more: here since who approves that approves containment only now.
func TestConfirmKeepsAQuorum(t *testing.T) {
	b := newBoard(t, 1, "alice", "bob", "carol")
	all := "propose, approve, admit, revoke, keys, audit"
	_, err := b.Env.Revoke(context.Background(), b.by["alice"].Caller, control.RevokeRequest{Scope: "identity:/human/bob", Reason: "test", HoldOnly: true})
	b.must(err)
	p, err := b.Propose(b.by["alice"], "alice", b.with("operators.yaml", string(b.operators(map[string]string{"alice": all, "bob": all, "carol": "approve-containment"}))))
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.must(err)
	p, err = b.act("alice", control.ActionConfirmCut, b.Hold("identity:/human/bob"))
	b.must(err)
	_, err = b.Approve(b.by["carol"], "carol", p.Change)
	b.refused(err, problem.ReasonLastQuorum)
	b.consistent()
}
