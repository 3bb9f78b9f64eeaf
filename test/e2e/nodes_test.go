package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// yard is an environment with two operators, of whom alice proposes and bob approves, each at a command line of their own.
type yard struct {
	*sitetest.Site
	homes map[string]string
}

func newYard(t *testing.T) *yard {
	t.Helper()
	const name = "fleet.example"
	s := newSite(t, site.Options{Name: name, People: []string{"bob"}, Extra: policy.Files{
		"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + name + "}\nspec:\n  class: development\n  approvals: {required: 1}\n"),
	}})
	s.Start()
	s.Connect()
	f := &yard{s, map[string]string{}}
	for _, who := range []string{"alice", "bob"} {
		f.homes[who] = t.TempDir()
		key := filepath.Join(f.homes[who], "key")
		s.Check(s.KeyFile(who, key))
		f.run(who, 0, "login", who, "-i", key)
	}
	return f
}

// run runs the command line as a person.
func (f *yard) run(who string, exit int, args ...string) command {
	f.T.Helper()
	if args[0] == "node" || args[0] == "change" {
		args = append(args, "-i", filepath.Join(f.homes[who], "key"))
	}
	out := cli(f.T, f.Site.Site, f.homes[who], "", args...)
	if out.exit != exit {
		f.T.Fatalf("%s: %q ended with %d, want %d\n%s%s", who, args, out.exit, exit, out.stdout, out.stderr)
	}
	return out
}

// says runs a command of alice's, and looks for words in what it says.
func (f *yard) says(exit int, words []string, args ...string) string {
	f.T.Helper()
	out := f.run("alice", exit, args...)
	for _, w := range words {
		if !strings.Contains(out.stdout+out.stderr, w) {
			f.T.Errorf("%q does not say %q:\n%s%s", args, w, out.stdout, out.stderr)
		}
	}
	return out.stdout
}

// ask is a command's output as a program reads it.
func (f *yard) ask(exit int, args ...string) map[string]any {
	f.T.Helper()
	out := f.run("alice", exit, append(args, "-o", "json")...)
	var m map[string]any
	if err := json.Unmarshal([]byte(out.stdout), &m); err != nil {
		f.T.Fatalf("%q: %v\n%s", args, err, out.stdout)
	}
	return m
}

// approved proposes something as alice, which bob approves.
func (f *yard) approved(args ...string) {
	f.T.Helper()
	change := fmt.Sprint(f.ask(0, args...)["change"])
	if _, err := strconv.Atoi(change); err != nil {
		f.T.Fatalf("%q gives no change: %v", args, err)
	}
	f.run("bob", 0, "change", "approve", change, "--yes")
}

const web1 = "/node/join-token/web-1"

// Machines are shown, quarantined, released and ended for ever, by the commands that operators use, while their agents are connected.
func TestNodes(t *testing.T) {
	f := newYard(t)
	admin := f.Dial(f.Login())
	a := f.Agent(admin, "web-1")
	f.shown()
	f.run("alice", 0, "secret", "generate", "app/password")
	f.quarantined(a)
	f.appraised(admin)
	f.decommissioned(a)
	healthy(t, f.Site.Site)
}

// shown: lists and single identities, for persons and for programs.
func (f *yard) shown() {
	f.T.Helper()
	f.says(0, []string{web1, "join-token", "active"}, "node", "list")
	f.says(0, []string{web1, "/human/alice"}, "identity", "list")
	if out := f.says(0, []string{"/human/bob"}, "identity", "list", "/human/"); strings.Contains(out, web1) {
		f.T.Errorf("of another prefix:\n%s", out)
	}
	f.says(0, []string{"agent.state", "unsigned", "name            web-1"}, "node", "show", web1)
	one := f.ask(0, "node", "show", web1)
	info, _ := one["info"].(map[string]any)
	claims, _ := one["claims"].(map[string]any)
	if info["identity"] != web1 || info["state"] != "active" || claims["name"] != "web-1" {
		f.T.Errorf("%v", one)
	}
	if bob := f.ask(0, "identity", "show", "/human/bob"); bob["claims"].(map[string]any)["person"] != "bob" {
		f.T.Errorf("%v", bob)
	}
	if all := f.ask(0, "node", "list")["identities"].([]any); len(all) != 1 {
		f.T.Errorf("%v", all)
	}
	f.says(2, []string{"not-found"}, "node", "show", "/node/join-token/web-2")
	f.says(1, []string{"bailment identity list"}, "node", "show", "web-1")
	f.says(0, []string{web1}, "__complete", "node", "quarantine", "")
}

// quarantined: the agent, its runs and whoever asks next are told at once; the release, once approved, needs nobody at the machine.
func (f *yard) quarantined(a *site.Agent) {
	f.T.Helper()
	run := f.inside(a, "run", "--secret", "app/password=V", "--", "sh", "-c", "echo started; read -r _")
	stdin, err := run.StdinPipe()
	f.Check(err)
	lines := &site.Log{}
	run.Stdout, run.Stderr = lines, lines
	f.Check(run.Start())
	ended := make(chan error, 1)
	go func() { ended <- run.Wait() }()
	f.T.Cleanup(func() { _ = stdin.Close(); <-ended })
	f.eventually("the program", func() bool { return strings.Contains(lines.String(), "started") })

	f.says(1, []string{"--reason"}, "node", "quarantine", web1, "--reason", " ")
	f.says(0, []string{"held"}, "node", "quarantine", web1, "--reason", "odd traffic")
	began := time.Now()
	s, err := a.Until(f.T.Context(), func(s *localapi.Status) bool { return s.State == "held" })
	f.Check(err)
	if took := time.Since(began); took > pushedWithin {
		f.T.Errorf("the agent knew of the quarantine %s after the command had ended, want %s at most", took, pushedWithin)
	}
	if s.Problem == nil || s.Problem.Reason != "held" || !strings.Contains(s.Problem.Fix, "node release") {
		f.T.Errorf("%+v", s.Problem)
	}
	f.eventually("the run to be told", func() bool { return strings.Contains(lines.String(), "held") })
	f.says(0, []string{"held", "odd traffic"}, "node", "show", web1)
	if out, code := f.at(a, "run", "--secret", "app/password=V", "--", "true"); code != 125 || !strings.Contains(out, "reason: held") {
		f.T.Errorf("%d: %s", code, out)
	}
	if out, code := f.at(a, "agent", "status"); code != 2 || !strings.Contains(out, "problem (held)") {
		f.T.Errorf("%d: %s", code, out)
	}

	f.approved("node", "release", web1, "--reason", "it was a backup")
	began = time.Now()
	f.Check(a.Connected(f.T.Context()))
	if took := time.Since(began); took > pushedWithin {
		f.T.Errorf("the agent knew of the release %s after the command had ended, want %s at most", took, pushedWithin)
	}
	if out, code := f.at(a, "run", "--secret", "app/password=V", "--", "true"); code != 0 {
		f.T.Errorf("after the release: %d: %s", code, out)
	}
	f.says(2, []string{"there is no hold", "bailment revocation list"}, "node", "release", web1, "--reason", "once more")
}

// inside prepares a command of the agent's machine.
func (f *yard) inside(a *site.Agent, args ...string) *exec.Cmd {
	f.T.Helper()
	boot, err := f.Bootstrap()
	f.Check(err)
	cmd := exec.CommandContext(f.T.Context(), f.Bin, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.Home, "BAILMENT_BOOTSTRAP=" + boot, "BAILMENT_AGENT=" + a.Socket}
	return cmd
}

// at runs a command on the agent's machine.
func (f *yard) at(a *site.Agent, args ...string) (string, int) {
	f.T.Helper()
	cmd := f.inside(a, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		f.T.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (f *yard) eventually(what string, ok func() bool) {
	f.T.Helper()
	end := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-end:
			f.T.Fatalf("waited in vain for %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// appraised: what the server would say to a machine, with nothing used up by asking.
func (f *yard) appraised(admin *client.Client) {
	f.T.Helper()
	a, err := f.NewAgent(f.T.TempDir(), f.Token(admin, "web-2"))
	f.Check(err)
	ask := []string{"attest", "--dry-run", "--config", a.Config}
	for range 2 {
		out, code := f.at(a, ask...)
		for _, want := range []string{"a session would be opened", "/node/join-token/web-2", "agent.state", "used before     no"} {
			if code != 0 || !strings.Contains(out, want) {
				f.T.Errorf("%d, without %q: %s", code, want, out)
			}
		}
	}
	var got struct {
		Identity, Reason, Fix string
		Claims                map[string]any
	}
	out, _ := f.at(a, append(ask, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Identity != "spiffe://"+f.Name+"/node/join-token/web-2" || got.Claims["name"] != "web-2" || got.Reason != "" {
		f.T.Errorf("%v: %s", err, out)
	}
	f.Check(a.Start())
	f.T.Cleanup(a.Kill)
	f.Check(a.Connected(f.T.Context()))
	out, code := f.at(a, append(ask, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 2 || got.Reason != "token-spent" || got.Fix == "" || got.Claims["name"] != "web-2" {
		f.T.Errorf("%d, %v: %s", code, err, out)
	}
	if out, _ := f.at(a, ask...); !strings.Contains(out, "(token-spent)") || !strings.Contains(out, "it renews by that key, and all is well") {
		f.T.Errorf("a healthy machine is alarmed by its own use: %s", out)
	}
	if out, code := f.at(a, "attest"); code != 1 || !strings.Contains(out, "--dry-run") {
		f.T.Errorf("%d: %s", code, out)
	}
	f.says(2, []string{"not by evidence that counts once"}, "node", "allow-again", web1, "--reason", "rebuilt")
	f.says(2, []string{"the refusal instance-seen names it"}, "node", "allow-again", "aws:1/eu-central-1/i-1", "--reason", "rebuilt")
}

// decommissioned: cut off first, ended by an approval, stated with a receipt, and refused ever after by that name.
func (f *yard) decommissioned(a *site.Agent) {
	f.T.Helper()
	f.says(0, []string{web1 + " is cut off and held", "rotate app/password", "1 approval needed"}, "node", "decommission", web1, "--reason", "sold")
	_, err := a.Until(f.T.Context(), func(s *localapi.Status) bool { return s.State == "refused" })
	f.Check(err)
	change := f.ask(0, "change", "list")["changes"].([]any)[0].(map[string]any)
	if change["action"] != "identity.decommission" || change["target"] != web1 {
		f.T.Fatalf("%v", change)
	}
	f.run("bob", 0, "change", "approve", fmt.Sprint(change["change"]), "--yes")
	f.says(0, []string{"decommissioned", "nothing of it is left"}, "node", "show", web1)
	entry := fmt.Sprint(f.ask(0, "node", "show", web1)["decommissioned"])
	f.says(0, []string{"identity.decommissioned", web1, "app/password"}, "ledger", "show", entry)
	receipt := filepath.Join(f.T.TempDir(), "statement.txt")
	f.run("alice", 0, "ledger", "proof", entry, "--out", receipt)
	f.says(0, []string{entry}, "receipt", "verify", receipt)
	boot, err := f.Bootstrap()
	f.Check(err)
	f.says(0, []string{"consistent and authenticated"}, "ledger", "verify", "--dir", f.Dir(), "--bootstrap", boot)

	f.says(2, []string{"reason: decommissioned"}, "node", "token", "web-1")
	f.says(2, []string{"was decommissioned by entry " + entry}, "node", "decommission", web1, "--reason", "twice")
	if out, code := f.at(a, "attest", "--dry-run", "--config", a.Config); code != 2 || !strings.Contains(out, "(decommissioned)") {
		f.T.Errorf("%d: %s", code, out)
	}
	a.Kill()
	f.Check(a.Start())
	s, err := a.Until(f.T.Context(), func(s *localapi.Status) bool {
		return s.State == "refused" && s.Problem != nil && s.Problem.Reason == "decommissioned"
	})
	f.Check(err)
	if !strings.Contains(s.Problem.Fix, "another name") {
		f.T.Errorf("%+v", s.Problem)
	}
}
