package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// pushedWithin is how soon a connected agent is to know what was decided.
const pushedWithin = time.Second

// fleet is an environment with a signer of releases, and machines with agents of them.
type fleet struct {
	*sitetest.Site
	dir     string
	signers string // the bundle's line
	signer  ssh.Signer
}

// installed is a build of this program in a directory of its own, as a release has it.
func (f *fleet) installed(version string) string {
	f.T.Helper()
	dir := filepath.Join(f.dir, "release-"+version)
	binary := filepath.Join(dir, release.Program)
	// As scripts/release builds, so that the build cache has most of it.
	env := []string{"GOENV=off", "GOWORK=off", "GOFLAGS=-mod=readonly", "CGO_ENABLED=0", "GOAMD64=v1", "GOARM64=v8.0", "GOFIPS140=off"}
	mustRun(f.T, ".", env, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags",
		"-s -w -buildid= -X github.com/bailment/bailment/internal/cli.version="+version, "-o", binary, "../../cmd/bailment")
	program, err := os.ReadFile(binary)
	f.Check(err)
	text, sig := sign(f.T, f.signer, version, program)
	f.Check(os.WriteFile(filepath.Join(dir, release.ManifestName), text, 0o644))
	f.Check(os.WriteFile(filepath.Join(dir, release.SignatureName), sig, 0o644))
	return dir
}

// sign makes a release's manifest of one program, and its signature.
func sign(t testing.TB, signer ssh.Signer, version string, program []byte) (manifest, signature []byte) {
	t.Helper()
	v, err := release.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	m := release.Manifest{
		Version: v, Protocol: 1, Commit: strings.Repeat("0", 40), Date: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Go: "go1.26.8",
		Files: []release.File{{Digest: sha256.Sum256(program), Size: int64(len(program)), Platform: here, Name: release.Program}},
	}
	if manifest, err = m.Text(); err != nil {
		t.Fatal(err)
	}
	if signature, err = sshsig.Sign(signer, release.Namespace, manifest); err != nil {
		t.Fatal(err)
	}
	return manifest, signature
}

// install puts files of a release onto a machine, as an upgrade does: a running program keeps the file that it has.
func (f *fleet) install(from, to string, files ...string) {
	f.T.Helper()
	f.Check(os.MkdirAll(to, 0o755))
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(from, name))
		f.Check(err)
		at := filepath.Join(to, name)
		f.Check(os.WriteFile(at+".new", data, 0o755))
		f.Check(os.Rename(at+".new", at))
	}
}

var wholeRelease = []string{release.Program, release.ManifestName, release.SignatureName}

// host is a machine with an agent.
type host struct {
	f    *fleet
	name string
	home string
	cmd  *exec.Cmd
	logs *site.Log
}

// host admits a machine, which has no agent yet.
func (f *fleet) host(name string) *host {
	f.T.Helper()
	h := &host{f: f, name: name, home: filepath.Join(f.dir, name), logs: &site.Log{}}
	f.Check(os.MkdirAll(h.home, 0o755))
	boot, err := f.Bootstrap()
	f.Check(err)
	tok := f.Token(f.Dial(f.Login()), name)
	f.Check(os.WriteFile(filepath.Join(h.home, "token"), []byte(tok.Reveal()), 0o600))
	f.Check(os.WriteFile(filepath.Join(h.home, "agent.yaml"), fmt.Appendf(nil, "bootstrap: %q\ndata: %s/agent\nsocket: %s\nattest:\n  files:\n    token: %s/token\n",
		boot, h.home, h.socket(), h.home), 0o600))
	return h
}

func (h *host) socket() string { return filepath.Join(h.home, "agent.sock") }
func (h *host) binary() string { return filepath.Join(h.home, release.Program) }

func (h *host) start() {
	h.f.T.Helper()
	h.cmd = exec.Command(h.binary(), "agent", "--config", filepath.Join(h.home, "agent.yaml"))
	h.cmd.Stdout, h.cmd.Stderr = h.logs, h.logs
	h.f.Check(h.cmd.Start())
	h.f.T.Cleanup(h.stop)
}

func (h *host) stop() {
	if h.cmd != nil {
		_ = h.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		_ = h.cmd.Wait()
		h.cmd = nil
	}
}

// status is what the agent says; zero: it doesn't answer yet.
func (h *host) status() localapi.Status {
	s, err := (&localapi.Client{Socket: h.socket()}).Status(h.f.T.Context())
	if err != nil {
		return localapi.Status{}
	}
	return *s
}

// reaches waits for a state with its reason ("": none), and says how long that took.
func (h *host) reaches(want agent.State, reason problem.Reason, most time.Duration) time.Duration {
	h.f.T.Helper()
	began := time.Now()
	for {
		s := h.status()
		got := problem.Reason("")
		if s.Problem != nil {
			got = problem.Reason(s.Problem.Reason)
		}
		if s.State == string(want) && got == reason {
			return time.Since(began)
		}
		if time.Since(began) > most {
			h.f.T.Fatalf("%s: after %s state %s, %+v; want %s, %q\n%s", h.name, most, s.State, s.Problem, want, reason, h.logs)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// run is a command on the machine.
func (h *host) run(args ...string) command {
	h.f.T.Helper()
	return h.f.as("", []string{"BAILMENT_AGENT=" + h.socket()}, args...)
}

// as runs the command line as a person ("": nobody).
func (f *fleet) as(person string, env []string, args ...string) command {
	f.T.Helper()
	boot, err := f.Bootstrap()
	f.Check(err)
	home := filepath.Join(f.dir, "home-"+person)
	cmd := exec.CommandContext(f.T.Context(), f.Bin, args...)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+home, "BAILMENT_HOME="+home, "BAILMENT_SSH_KEY="+filepath.Join(f.dir, person),
		"BAILMENT_BOOTSTRAP="+boot, "GORACE=atexit_sleep_ms=0")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		f.T.Fatal(err)
	}
	return command{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func (f *fleet) must(person string, args ...string) string {
	f.T.Helper()
	c := f.as(person, nil, args...)
	if c.exit != 0 {
		f.T.Fatalf("%s %q: exit code %d\n%s%s", person, args, c.exit, c.stdout, c.stderr)
	}
	return c.stdout + c.stderr
}

// environment is environment.yaml with lines about agents.
func (f *fleet) environment(lines string) []byte {
	return []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: fleet.example}\nspec:\n  class: development\n  approvals: {required: 1}\n" +
		"  agents:\n    signers: ['" + f.signers + "']\n" + lines)
}

var changeNumber = regexp.MustCompile(`change (\d+)`)

// propose has alice propose other lines about agents.
func (f *fleet) propose(lines string) command {
	f.T.Helper()
	dir := filepath.Join(f.T.TempDir(), "env")
	f.must("alice", "bundle", "export", "--dir", dir)
	f.Check(os.WriteFile(filepath.Join(dir, "environment.yaml"), f.environment(lines), 0o600))
	return f.as("alice", nil, "bundle", "propose", dir, "--reason", "agents")
}

// bring has bob approve them as well, and gives what both were told.
func (f *fleet) bring(lines string) (proposer, approver string) {
	f.T.Helper()
	p := f.propose(lines)
	number := changeNumber.FindStringSubmatch(p.stdout + p.stderr)
	if p.exit != 0 || number == nil {
		f.T.Fatalf("proposing %q: %+v", lines, p)
	}
	return p.stderr, f.must("bob", "change", "approve", number[1], "--yes")
}

// newFleet founds one with lines about agents, and other files.
func newFleet(t *testing.T, lines string, extra policy.Files) *fleet {
	t.Helper()
	dir := t.TempDir()
	key := filepath.Join(dir, "releases")
	public := releaseKey(t, key)
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{dir: dir, signers: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))}
	if f.signer, err = ssh.ParsePrivateKey(text); err != nil {
		t.Fatal(err)
	}
	files := policy.Files{"environment.yaml": f.environment(lines)}
	maps.Copy(files, extra)
	f.Site = newSite(t, site.Options{Name: "fleet.example", People: []string{"bob"}, Extra: files})
	f.Start()
	f.Connect()
	for _, person := range []string{"alice", "bob"} {
		f.Check(f.KeyFile(person, filepath.Join(dir, person)))
		f.must(person, "login", person)
	}
	return f
}

const usesSecret = `test "$X" && echo given`

// Agents of releases get in, and no others; what the bundle asks of them reaches those that are connected, at once and in both directions,
// without a restart; and what they get is what they are.
func TestAgentsAreReleases(t *testing.T) {
	f := newFleet(t, "    require: signed\n    minimum: 1.4.0\n", nil)
	older, newer := f.installed("1.4.0"), f.installed("1.5.0")
	f.must("alice", "secret", "generate", "app/x")

	old, current, unsigned, flipped := f.host("old"), f.host("current"), f.host("unsigned"), f.host("flipped")
	f.install(older, old.home, wholeRelease...)
	f.install(newer, current.home, wholeRelease...)
	f.install(newer, unsigned.home, release.Program)
	f.install(newer, flipped.home, wholeRelease...)
	program, err := os.ReadFile(flipped.binary())
	f.Check(err)
	program[len(program)-1] ^= 1 // of the file's table of sections, which no run needs
	overwrite(t, flipped.binary(), program, 0o755)
	for _, h := range []*host{old, current, unsigned, flipped} {
		h.start()
	}
	const begin = 20 * time.Second
	old.reaches(agent.Ready, "", begin)
	current.reaches(agent.Ready, "", begin)
	unsigned.reaches(agent.Outdated, problem.ReasonAgentUnsigned, begin)
	flipped.reaches(agent.Outdated, problem.ReasonAgentUnknown, begin)
	for h, exit := range map[*host]int{old: 0, current: 0, unsigned: 2, flipped: 2} {
		c := h.run("agent", "status")
		if c.exit != exit || (exit != 0) != strings.Contains(c.stdout, "\ntry: ") {
			t.Errorf("%s: status ends with %d, want %d\n%s", h.name, c.exit, exit, c.stdout)
		}
	}
	given := func(h *host, want string) {
		t.Helper()
		c := h.run("run", "--wait", "0s", "--secret", "app/x=X", "--", "sh", "-c", usesSecret)
		if want == "" && (c.exit != 0 || c.stdout != "given\n") || want != "" && (c.exit != 125 || !strings.Contains(c.stderr, "reason: "+want)) {
			t.Errorf("%s: a program that asks: %+v, want %q", h.name, c, want)
		}
	}
	given(old, "")
	given(current, "")
	given(flipped, string(problem.ReasonAgentUnknown))

	mended(t, f, unsigned, newer)
	floor(t, f, old, current, given)

	// Nothing but the agent itself says what it is, where a machine has no TPM.
	f.bring("    require: measured\n    minimum: 1.4.0\n    rollback: INC-7\n")
	for _, h := range []*host{old, current} {
		h.reaches(agent.Outdated, problem.ReasonAgentClaimed, pushedWithin)
		given(h, string(problem.ReasonAgentClaimed))
	}
	if c := f.propose("    require: signed\n    minimum: 1.4.0\n"); c.exit != 2 || !strings.Contains(c.stderr, "reason: floor-lowered") {
		t.Errorf("asking for less: %+v", c)
	}
	healthy(t, f.Site.Site)
}

// mended: what was refused for its build is let in by another, with the token that it had: a refusal uses nothing up.
func mended(t *testing.T, f *fleet, h *host, from string) {
	t.Helper()
	if h.status().Replaced {
		t.Error("nothing was installed yet")
	}
	f.install(from, h.home, wholeRelease...)
	for began := time.Now(); ; <-time.After(20 * time.Millisecond) {
		if s := h.status(); s.Replaced && strings.Contains(s.Problem.Fix, "restart the agent") {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("the status does not say that a restart helps: %+v", h.status().Problem)
		}
	}
	h.stop()
	h.start()
	h.reaches(agent.Ready, "", 20*time.Second)
	h.stop()
}

// floor raises the minimum above the old agent, and rolls that back.
func floor(t *testing.T, f *fleet, old, current *host, given func(*host, string)) {
	t.Helper()
	list := f.must("alice", "node", "list")
	for _, want := range []string{"1.4.0 signed", "1.5.0 signed"} {
		if !strings.Contains(list, want) {
			t.Errorf("node list does not say %q:\n%s", want, list)
		}
	}
	below := f.must("alice", "node", "list", "--agents-below", "1.5.0")
	if !strings.Contains(below, "/node/join-token/old") || strings.Contains(below, "/node/join-token/current") {
		t.Errorf("below 1.5.0:\n%s", below)
	}
	pid := old.cmd.Process.Pid

	proposer, approver := f.bring("    require: signed\n    minimum: 1.5.0\n")
	took := old.reaches(agent.Outdated, problem.ReasonAgentOutdated, pushedWithin)
	t.Logf("the old agent knew %s after the approving command had ended", took)
	for _, told := range []string{proposer, approver} {
		if !strings.Contains(told, "refuses 1 of 3 active machines for their agents (agent-outdated)") {
			t.Errorf("it is not said before whom it refuses:\n%s", told)
		}
	}
	given(old, string(problem.ReasonAgentOutdated))
	given(current, "")
	c := old.run("agent", "status")
	for _, want := range []string{"outdated", "the agent is version 1.4.0, and the minimum is 1.5.0", "try: upgrade the agent"} {
		if c.exit != 2 || !strings.Contains(c.stdout, want) {
			t.Errorf("the old agent's status ends with %d and does not say %q:\n%s", c.exit, want, c.stdout)
		}
	}

	for _, lines := range []string{"    require: signed\n    minimum: 1.4.0\n", "    require: signed\n", "    require: any\n    minimum: 1.5.0\n"} {
		if c := f.propose(lines); c.exit != 2 || !strings.Contains(c.stderr, "reason: floor-lowered") || !strings.Contains(c.stderr, "agents.rollback") {
			t.Errorf("lowering without a rollback to %q: %+v", lines, c)
		}
	}
	if s := old.status(); s.State != string(agent.Outdated) {
		t.Errorf("the old agent is %s before a rollback was approved", s.State)
	}
	f.bring("    require: signed\n    minimum: 1.4.0\n    rollback: INC-7\n")
	took = old.reaches(agent.Ready, "", pushedWithin)
	t.Logf("the old agent was well %s after the approving command had ended", took)
	given(old, "")
	if old.cmd.Process.Pid != pid || syscall.Kill(pid, 0) != nil {
		t.Error("the old agent was restarted")
	}
}
