package policy

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

// releaser is a signer of releases, made from a word.
func releaser(t testing.TB, word string) ssh.Signer {
	t.Helper()
	seed := sha256.Sum256([]byte("bailment test releases " + word))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// agentsOf is the example with another class and lines below `agents:`, where KEY stands for the signer "mine".
func agentsOf(t testing.TB, class Class, lines string) *Program {
	t.Helper()
	files := exampleFiles(t)
	text := strings.Replace(string(files["environment.yaml"]), "class: development", "class: "+string(class), 1)
	if class == Production {
		text = strings.Replace(text, "required: 0", "required: 1", 1)
		second := releaser(t, "bob").PublicKey()
		files["operators.yaml"] = fmt.Appendf(files["operators.yaml"], "    - name: bob\n      keys: ['%s']\n      duties: [propose, approve, revoke]\n",
			strings.TrimSpace(string(ssh.MarshalAuthorizedKey(second))))
	}
	if lines != "" {
		key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(releaser(t, "mine").PublicKey())))
		text += "  agents: {" + strings.ReplaceAll(lines, "KEY", "signers: ['"+key+"']") + "}\n"
	}
	files["environment.yaml"] = []byte(text)
	b, err := Load(files)
	if err != nil {
		t.Fatal(err)
	}
	p, err := CompileAccepted(b) // one where no agent can run may be in force
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// statementOf is an agent of a release.
func statementOf(t testing.TB, by ssh.Signer, version string) release.Statement {
	t.Helper()
	v, err := release.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	s := release.Statement{Version: version, Platform: "linux/amd64", Digest: sha256.Sum256([]byte(version))}
	m := release.Manifest{
		Version: v, Protocol: 1, Commit: strings.Repeat("ab", 20), Date: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Go: "go1.26.8",
		Files: []release.File{{Digest: s.Digest, Size: 1, Platform: s.Platform, Name: release.Program}},
	}
	if s.Manifest, err = m.Text(); err != nil {
		t.Fatal(err)
	}
	if s.Signature, err = sshsig.Sign(by, release.Namespace, s.Manifest); err != nil {
		t.Fatal(err)
	}
	return s
}

// What each environment says to each agent, from the agent's word to the identity.
func TestAgentsThatMayRun(t *testing.T) {
	mine := releaser(t, "mine")
	good := statementOf(t, mine, "1.4.0")
	flipped := good
	flipped.Digest[0] ^= 1
	bare := release.Statement{Version: "1.4.0", Platform: good.Platform, Digest: good.Digest}
	dirty := release.Statement{Version: "ee0356d-dirty", Digest: good.Digest}
	stranger := statementOf(t, releaser(t, "stranger"), "9.0.0")
	for name, c := range map[string]struct {
		class    Class
		agents   string
		says     *release.Statement
		measured bool
		want     problem.Reason
	}{
		"development, an old client":     {Development, "", nil, false, ""},
		"development, built by hand":     {Development, "", &dirty, false, ""},
		"development, a flipped bit":     {Development, "KEY", &flipped, false, ""},
		"production, an old client":      {Production, "KEY", nil, false, problem.ReasonAgentUnsigned},
		"production, built by hand":      {Production, "KEY", &dirty, false, problem.ReasonAgentUnsigned},
		"production, nobody may sign":    {Production, "", &good, false, problem.ReasonAgentUnsigned},
		"production, signed":             {Production, "KEY", &good, false, ""},
		"without its manifest":           {Development, "KEY, require: signed", &bare, false, problem.ReasonAgentUnsigned},
		"a stranger's release":           {Development, "KEY, require: signed", &stranger, false, problem.ReasonAgentUnsigned},
		"a flipped bit":                  {Development, "KEY, require: signed", &flipped, false, problem.ReasonAgentUnknown},
		"signed":                         {Development, "KEY, require: signed, minimum: 1.4.0", &good, false, ""},
		"below":                          {Development, "KEY, require: signed, minimum: 1.4.1", &good, false, problem.ReasonAgentOutdated},
		"a minimum alone, built by hand": {Development, "minimum: 0.0.1", &dirty, false, problem.ReasonAgentOutdated},
		"a minimum alone, by its word":   {Development, "minimum: 1.4.0", &bare, false, ""},
		"a minimum alone, an old client": {Development, "minimum: 0.0.1", nil, false, problem.ReasonAgentOutdated},
		"not measured":                   {Development, "KEY, require: measured", &good, false, problem.ReasonAgentClaimed},
		"measured":                       {Development, "KEY, require: measured", &good, true, ""},
		"measured, a flipped bit":        {Development, "KEY, require: measured", &flipped, true, problem.ReasonAgentUnknown},
		"unsigned before not measured":   {Development, "KEY, require: measured", &bare, false, problem.ReasonAgentUnsigned},
		"outdated before not measured":   {Development, "KEY, require: measured, minimum: 2.0.0", &good, false, problem.ReasonAgentOutdated},
	} {
		p := agentsOf(t, c.class, c.agents)
		claims := map[string]any{"name": "web-1"}
		if c.says != nil {
			measured := map[[32]byte]bool{}
			if c.measured {
				measured[c.says.Digest] = true
			}
			claims[ClaimAgent] = p.AppraiseAgent(*c.says, measured)
		}
		m, err := p.IdentifyNode(authority.JoinToken, "", mustClaims(t, claims))
		if (err == nil) != (c.want == "") || err != nil && !problem.Is(err, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if m.Path != "/node/join-token/web-1" || m.Quarantine {
			t.Errorf("%s: %+v: whom it is about must be known, and nobody is quarantined for his agent", name, m)
		}
		if err != nil && problem.As(err).WayOut() == "" {
			t.Errorf("%s: no way out", name)
		}
	}
}

// A signer that the next bundle does not list any more vouches for nobody, also where the claims were made while he was listed.
func TestSignerTakenAway(t *testing.T) {
	before := agentsOf(t, Development, "KEY, require: signed")
	other := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(releaser(t, "other").PublicKey())))
	after := agentsOf(t, Development, "signers: ['"+other+"'], require: signed")
	claims := mustClaims(t, map[string]any{"name": "web-1", ClaimAgent: before.AppraiseAgent(statementOf(t, releaser(t, "mine"), "1.4.0"), nil)})
	if _, err := before.IdentifyNode(authority.JoinToken, "", claims); err != nil {
		t.Fatal(err)
	}
	if _, err := after.IdentifyNode(authority.JoinToken, "", claims); !problem.Is(err, problem.ReasonAgentUnsigned) {
		t.Fatal(err)
	}
}

// What is asked of agents goes down by a rollback only, each of which has a name of its own.
func TestLowersAgents(t *testing.T) {
	for name, c := range map[string]struct {
		before, after string
		lowered       bool
	}{
		"nothing to nothing":        {"", "", false},
		"raised":                    {"KEY, minimum: 1.4.0", "KEY, minimum: 1.5.0", false},
		"the same":                  {"KEY, minimum: 1.4.0", "KEY, minimum: 1.4.0", false},
		"lowered":                   {"KEY, minimum: 1.5.0", "KEY, minimum: 1.4.0", true},
		"to a candidate":            {"KEY, minimum: 1.5.0", "KEY, minimum: 1.5.0-rc.1", true},
		"dropped":                   {"KEY, minimum: 1.5.0", "KEY", true},
		"the whole section dropped": {"KEY, minimum: 1.5.0", "", true},
		"named":                     {"KEY, minimum: 1.5.0", "KEY, minimum: 1.4.0, rollback: INC-7", false},
		"named as the last":         {"KEY, minimum: 1.5.0, rollback: INC-7", "KEY, minimum: 1.4.0, rollback: INC-7", true},
		"named anew":                {"KEY, minimum: 1.5.0, rollback: INC-7", "KEY, minimum: 1.4.0, rollback: INC-8", false},
		"required less":             {"KEY, require: measured", "KEY, require: signed", true},
		"required no more":          {"KEY, require: signed", "KEY", true},
		"required less, named":      {"KEY, require: signed", "KEY, rollback: INC-7", false},
		"required more":             {"KEY, require: signed", "KEY, require: measured", false},
		"less of one, more of two":  {"KEY, require: signed, minimum: 1.5.0", "KEY, require: measured, minimum: 1.4.0", true},
		"more of one, less of two":  {"KEY, require: measured, minimum: 1.4.0", "KEY, require: signed, minimum: 1.5.0", true},
	} {
		err := agentsOf(t, Development, c.after).LowersAgents(agentsOf(t, Development, c.before))
		if c.lowered != problem.Is(err, problem.ReasonFloorLowered) || !c.lowered && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
