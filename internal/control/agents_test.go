package control_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
)

// releases is a signer of releases.
type releases struct{ ssh.Signer }

func newReleases(t *testing.T) releases {
	t.Helper()
	seed := sha256.Sum256([]byte("bailment test releases"))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return releases{s}
}

// agent is one of a release.
func (r releases) agent(t *testing.T, version string) *release.Statement {
	t.Helper()
	v, err := release.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	s := &release.Statement{Version: version, Platform: "linux/amd64", Digest: sha256.Sum256([]byte(version))}
	m := release.Manifest{
		Version: v, Protocol: 1, Commit: strings.Repeat("ab", 20), Date: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Go: "go1.26.8",
		Files: []release.File{{Digest: s.Digest, Size: 1, Platform: s.Platform, Name: release.Program}},
	}
	if s.Manifest, err = m.Text(); err != nil {
		t.Fatal(err)
	}
	if s.Signature, err = sshsig.Sign(r, release.Namespace, s.Manifest); err != nil {
		t.Fatal(err)
	}
	return s
}

// environment is the world's environment.yaml with lines of its section about agents, where KEY stands for the signer.
func (r releases) environment(w *controltest.World, lines string) string {
	text, _, _ := strings.Cut(string(w.Files["environment.yaml"]), "  agents:")
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(r.PublicKey())))
	return text + "  agents: {" + strings.ReplaceAll(lines, "KEY", "signers: ['"+key+"']") + "}\n"
}

// news is a watcher's stream.
type news struct {
	t    *testing.T
	from chan control.News
	end  chan error
}

func watch(t *testing.T, w *controltest.World, by controltest.Actor) *news {
	t.Helper()
	n := &news{t, make(chan control.News, 100), make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		n.end <- w.Env.Watch(ctx, by.Caller, 0, func(x control.News) error { n.from <- x; return nil })
	}()
	return n
}

// hears waits for the next news that say so ("": the session is well), and gives them; of an end without news, none.
func (n *news) hears(want problem.Reason) control.News {
	n.t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case x := <-n.from:
			if x.Dead == nil && want == "" || x.Dead != nil && x.Dead.Reason == want {
				return x
			}
		case err := <-n.end:
			if want != "" && problem.Is(err, want) {
				n.end <- err // it may be told by the end alone
				return control.News{}
			}
			n.t.Fatalf("the stream ended: %v", err)
		case <-late:
			n.t.Fatalf("never told %q", want)
		}
	}
}

// The floor is raised under a connected agent: it is told, and gets nothing. It is lowered by a named rollback only, and then the agent is
// well again by itself, on the stream that it has.
func TestFloorUnderAgents(t *testing.T) {
	r := newReleases(t)
	w := controltest.New(t, controltest.Options{})
	alice := w.Login("alice")
	w.Put(alice, "node/key", "v")
	bring(t, w, alice, "environment.yaml", r.environment(w, "KEY, require: signed, minimum: 1.4.0"))

	w.Agent = r.agent(t, "1.4.0")
	old := w.Node(alice, "old")
	w.Agent = r.agent(t, "1.5.0")
	current := w.Node(alice, "new")
	w.Agent = nil
	_, err := w.TryJoin(w.Token(alice, "none", time.Hour), old.Key)
	wantReason(t, err, problem.ReasonAgentUnsigned)

	told, well := watch(t, w, old), watch(t, w, current)
	told.hears("")
	well.hears("")
	bring(t, w, alice, "environment.yaml", r.environment(w, "KEY, require: signed, minimum: 1.5.0"))
	told.hears(problem.ReasonAgentOutdated)
	well.hears("")
	_, _, err = w.Get(old, "node/key")
	wantReason(t, err, problem.ReasonAgentOutdated)
	_, err = w.TryWorkload(old, "")
	wantReason(t, err, problem.ReasonAgentOutdated)
	w.Agent = r.agent(t, "1.4.0")
	key, _ := controltest.Key(t)
	_, err = w.Renew(old, key)
	wantReason(t, err, problem.ReasonAgentOutdated)
	if _, _, err := w.Get(current, "node/key"); err != nil {
		t.Fatal(err)
	}

	lowered := r.environment(w, "KEY, require: signed, minimum: 1.4.0")
	files := w.Bundle(controltest.Options{Persons: []string{"alice"}, Extra: policy.Files{"environment.yaml": []byte(lowered)}})
	_, err = w.Propose(alice, "alice", files)
	wantReason(t, err, problem.ReasonFloorLowered)
	bring(t, w, alice, "environment.yaml", r.environment(w, "KEY, require: signed, minimum: 1.4.0, rollback: INC-7"))
	told.hears("")
	if _, _, err := w.Get(old, "node/key"); err != nil {
		t.Fatal("after the rollback:", err)
	}

	// A newer build of the same machine is heard with its renewal, whatever it was enrolled by.
	bring(t, w, alice, "environment.yaml", r.environment(w, "KEY, require: signed, minimum: 1.5.0"))
	told.hears(problem.ReasonAgentOutdated)
	w.Agent = r.agent(t, "1.5.0")
	renewed, err := w.Renew(old, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Get(w.Enter(key, renewed), "node/key"); err != nil {
		t.Fatal(err)
	}
	soundLedger(t, w)
}

// Watch ends with what is for ever, and stays with what is not.
func TestWatchOfHeldAndCutOff(t *testing.T) {
	w := controltest.New(t, controltest.Options{Persons: []string{"alice", "bob"}, Quorum: 1})
	ctx := context.Background()
	alice, bob := w.Login("alice"), w.Login("bob")
	node := w.Node(alice, "web-1")
	told := watch(t, w, node)
	told.hears("")
	scope := "node:/node/join-token/web-1"
	if _, err := w.Env.Revoke(ctx, alice.Caller, control.RevokeRequest{Scope: scope, Reason: "odd", HoldOnly: true}); err != nil {
		t.Fatal(err)
	}
	told.hears(problem.ReasonHeld)
	lift(t, w, alice, bob, scope)
	told.hears("")
	if _, err := w.Env.Revoke(ctx, alice.Caller, control.RevokeRequest{Scope: scope, Reason: "worse"}); err != nil {
		t.Fatal(err)
	}
	told.hears(problem.ReasonCutoff)
	if err := <-told.end; !problem.Is(err, problem.ReasonCutoff) {
		t.Fatal(err)
	}
}

// sturdy is a holder that production takes.
type sturdy struct{ keyring.Holder }

func (s sturdy) Descriptor() keyring.Descriptor {
	d := s.Holder.Descriptor()
	d.DevelopmentOnly = false
	return d
}

// Where it is not a matter of development, a signed agent is the default, and one that says nothing of itself is none.
func TestAgentsInProduction(t *testing.T) {
	r := newReleases(t)
	src, err := seal.NewSource(nil)
	if err != nil {
		t.Fatal(err)
	}
	holder, err := file.Create(t.TempDir()+"/root.key", src)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(r.PublicKey())))
	w := controltest.New(t, controltest.Options{
		Persons: []string{"alice", "bob", "carol"}, Class: "production", Quorum: 1, Holder: sturdy{holder},
		Extra: policy.Files{"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + controltest.EnvName +
			"}\nspec:\n  class: production\n  agents: {signers: ['" + key + "']}\n")},
	})
	alice := w.Login("alice")
	flipped := r.agent(t, "1.4.0")
	flipped.Digest[31] ^= 1
	for name, c := range map[string]struct {
		agent *release.Statement
		want  problem.Reason
	}{
		"an old client that says nothing": {nil, problem.ReasonAgentUnsigned},
		"one that says its version only":  {&release.Statement{Version: "1.4.0"}, problem.ReasonAgentUnsigned},
		"a flipped bit":                   {flipped, problem.ReasonAgentUnknown},
		"a release":                       {r.agent(t, "1.4.0"), ""},
	} {
		w.Agent = c.agent
		session, _ := controltest.Key(t)
		_, err := w.TryJoin(w.Token(alice, "m"+strings.ReplaceAll(name, " ", "-"), time.Hour), session)
		if (err == nil) != (c.want == "") || err != nil && !problem.Is(err, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// An enrolled machine whose program stops saying what it is, by a downgrade to an old client, is refused with its renewal.
	w.Agent = r.agent(t, "1.4.0")
	node := w.Node(alice, "web-1")
	w.Agent = nil
	next, _ := controltest.Key(t)
	if _, err := w.Renew(node, next); !problem.Is(err, problem.ReasonAgentUnsigned) {
		t.Errorf("a renewal that says nothing: %v", err)
	}
	soundLedger(t, w)
}
