package run_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// What a killed run left in files is wiped by the next run of the user; what another live run has is left alone.
func TestFilesOfAKilledRun(t *testing.T) {
	h := whole(t)
	memory, err := os.MkdirTemp("/dev/shm", "run-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(memory) })
	t.Setenv("XDG_RUNTIME_DIR", memory) // where no other test's run looks
	start := func(name string) (kill func(), private, named string) {
		t.Helper()
		named = filepath.Join(memory, name)
		cmd, out := h.trapped()
		cmd.Env = append(cmd.Env, "RUN_TEST_FILE="+named)
		cmd.Args[len(cmd.Args)-1] = `echo "in $DB_PASSWORD_FILE"; ln "$DB_PASSWORD_FILE" "` + named + `.link"; ` + trap
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		h.eventually("the child", out.has("ready"))
		_, rest, _ := strings.Cut(out.text(), "in ")
		private, _, _ = strings.Cut(rest, "\n")
		kill = func() {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			h.eventually("the child's end", out.has("got-TERM"))
			_ = cmd.Wait()
		}
		return kill, private, named
	}
	holds := func(path, value string) bool {
		got, err := os.ReadFile(path)
		return err == nil && string(got) == value
	}
	killLive, livePrivate, liveNamed := start("live")
	kill, private, named := start("dead")
	killMoved, _, moved := start("moved")
	kill()
	killMoved()
	if !holds(private, "s3cret value") || !holds(named, "a\x00b") {
		t.Fatal("a killed run leaves its files, which this test is about")
	}
	// Somebody else has that name by now.
	if err := os.Rename(moved, moved+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(moved, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, err := h.run(nil, "true"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	for _, path := range []string{private, filepath.Dir(private), named} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there after another run", path)
		}
	}
	if !holds(named+".link", "") {
		t.Error("the file was removed, and not wiped")
	}
	if !holds(moved, "another's") {
		t.Error("a file that the run had not made was touched")
	}
	if !holds(livePrivate, "s3cret value") || !holds(liveNamed, "a\x00b") {
		t.Error("a live run's files were touched")
	}
	killLive()
	// A service that names its file is started again: what it left is no obstacle.
	code, out, err := h.run(func(c *run.Config) { c.Secrets = []run.Secret{{Name: "db/password", File: liveNamed}} }, "cat", liveNamed)
	if code != 0 || out != "s3cret value" || err != nil {
		t.Errorf("the same file again: %d, %q, %v", code, out, err)
	}
}

// The agent is killed, and stopped, while a program runs: the program goes on, is told, and is known to the next agent.
func TestAgentIsRestarted(t *testing.T) {
	h := empty(t)
	agent := h.agent()
	cmd, out := h.trapped()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child", out.has("ready"))
	for i, s := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		if err := agent.Signal(s); err != nil {
			t.Fatal(err)
		}
		h.eventually("run to notice", func() bool { return out.count("event:gone\n") == i+1 })
		if _, err := agent.Wait(); err != nil {
			t.Fatal(err)
		}
		if l := h.server.Leases(); len(l) != 1 || l[0].Returned {
			t.Errorf("after signal %d: %+v", s, l)
		}
		agent = h.agent()
		h.eventually("the run to be resumed", func() bool { return out.count("event:resumed\n") == i+1 })
	}
	if out.count("event:stopping\n") != 1 || out.count("event:lease-lost") != 0 || len(h.server.Leases()) != 1 {
		t.Errorf("%q, %+v", out.text(), h.server.Leases())
	}
	all := h.server.Claims()
	for _, c := range all {
		if p := c["process"].(map[string]any); p["digest_source"] != "measured" || p["sha256"] != all[0]["process"].(map[string]any)["sha256"] {
			t.Errorf("proved as another program: %v", p)
		}
	}
	if len(all) != 3 {
		t.Errorf("proved %d times", len(all))
	}
	// A revocation reaches it.
	h.server.Hold("/workload/app", true)
	h.eventually("the revocation", out.has("event:lease-lost\n"))
	h.server.Hold("/workload/app", false)
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// orphan is a program that runs, and whose agent was killed.
func orphan(t *testing.T) (*house, *exec.Cmd, *output) {
	t.Helper()
	h := empty(t)
	agent := h.agent()
	cmd, out := h.trapped()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the child", out.has("ready"))
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = agent.Wait()
	return h, cmd, out
}

// A lease that was taken up is given back at the end.
func TestResumedLeaseIsGivenBack(t *testing.T) {
	h, cmd, out := orphan(t)
	h.agent()
	h.eventually("the run to be resumed", out.has("event:resumed\n"))
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	h.eventually("the lease", h.returned)
}

// A program ends when it ends, whether there is an agent or not.
func TestProgramEndsWithoutAnAgent(t *testing.T) {
	h, cmd, out := orphan(t)
	h.eventually("run to notice", out.has("event:gone\n"))
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("%v, %q", cmd.ProcessState, out.text())
	}
}

func TestWaitsForTheAgent(t *testing.T) {
	h := empty(t)
	waiting := make(chan localapi.Event, 10)
	var code int
	var text string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		code, text, err = h.run(func(c *run.Config) {
			c.Wait, c.Event = time.Minute, func(e localapi.Event) { waiting <- e }
		}, "echo", "started")
	}()
	if e := <-waiting; e.Event != localapi.EventWaiting || e.Why.Reason != string(problem.ReasonNoAgent) || !strings.Contains(e.Why.Message, h.socket) {
		t.Errorf("%+v", e)
	}
	h.agent()
	<-done
	if code != 0 || text != "started\n" || err != nil {
		t.Errorf("%d, %q, %v", code, text, err)
	}
	if len(waiting) != 0 {
		t.Errorf("told again: %+v", <-waiting)
	}
	// A refusal is not waited for, nor is anything for ever.
	h.server.Refuse(func(map[string]any, string) error { return problem.New(problem.ReasonForeignNode, "no") })
	if _, _, err := h.run(func(c *run.Config) { c.Wait = time.Hour }, "true"); !problem.Is(err, problem.ReasonForeignNode) {
		t.Errorf("%v", err)
	}
	_, _, err = h.run(func(c *run.Config) { c.Wait, c.Agent = 20*time.Millisecond, &localapi.Client{Socket: "/no/agent"} }, "true")
	if !problem.Is(err, problem.ReasonNoAgent) {
		t.Errorf("%v", err)
	}
}
