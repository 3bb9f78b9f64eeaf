package job_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/run"
)

// A job outlives several sessions, renewed as the method declares, and its leases with them.
func TestRenewal(t *testing.T) {
	t.Parallel()
	const calls = "/bailment.v1.AttestationService/"
	for _, c := range []struct {
		method string
		fixed  bool
		call   string
		server clienttest.Config
		leases int // renewals of them
	}{
		{"x509", false, "Attest", clienttest.Config{SessionTTL: 4 * time.Second, LeaseTTL: 800 * time.Millisecond}, 4},
		{"x509", true, "Attest", clienttest.Config{SessionTTL: 4 * time.Second, LeaseTTL: 800 * time.Millisecond}, 4},
		{"join-token", false, "Renew", clienttest.Config{SessionTTL: 4 * time.Second, LeaseTTL: 800 * time.Millisecond}, 4},
		// What ends with the session is renewed after it, and not lost at its end.
		{"join-token", false, "Renew", clienttest.Config{SessionTTL: 2 * time.Second, JobLeases: true}, 3},
		{"x509", false, "Attest", clienttest.Config{SessionTTL: 2 * time.Second, JobLeases: true}, 3},
	} {
		t.Run(fmt.Sprintf("%s %v %v", c.method, c.fixed, c.server.JobLeases), func(t *testing.T) {
			t.Parallel()
			h := start(t, c.server)
			stop := filepath.Join(t.TempDir(), "stop")
			cmd, out := h.begin(func(s *settings) {
				s.Method, s.Fixed = c.method, c.fixed
				if c.method == "join-token" {
					tok, err := h.server.Token("job-1")
					if err != nil {
						t.Fatal(err)
					}
					s.Token = tok.Reveal()
				}
			}, "echo begun; until test -e "+stop+"; do sleep 0.02; done")
			h.eventually("renewals", func() bool {
				return h.server.Calls(calls+c.call) >= 3 && h.server.Calls("/bailment.v1.SecretService/RenewLease") >= c.leases
			})
			if err := os.WriteFile(stop, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if code := h.wait(cmd); code != 0 || strings.Contains(out.String(), "warn: ") {
				t.Errorf("code %d; %s", code, out)
			}
			if n := h.server.Calls("/bailment.v1.SecretService/RenewLease"); c.server.JobLeases && n > 2*h.server.Calls(calls+c.call) {
				t.Errorf("%d renewals of one lease, %d of its session", n, h.server.Calls(calls+c.call))
			}
			for _, l := range h.server.Leases() {
				if !l.Returned {
					t.Errorf("%+v", l)
				}
			}
		})
	}
}

// A session that can't be renewed is of use until just before it ends: then everything is given back, and the program goes on.
func TestSessionCantBeRenewed(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{SessionTTL: 4 * time.Second})
	var attested atomic.Int32
	h.server.Before(func(procedure string) error {
		if strings.HasSuffix(procedure, "/Attest") && attested.Add(1) > 1 {
			return problem.New(problem.ReasonTokenSpent, "the token was used")
		}
		return nil
	})
	cmd, out := h.begin(nil, "echo begun; "+forever)
	h.eventually("everything to be given back", h.returned)
	if !strings.Contains(out.String(), "can't be renewed (token-spent: the token was used") || !strings.Contains(out.String(), "the program goes on") {
		t.Errorf("%s", out)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := h.wait(cmd); code != 128+15 {
		t.Errorf("code %d; %s", code, out)
	}
}

// A lease that is revoked while the program runs is told.
func TestLeaseLost(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{LeaseTTL: 400 * time.Millisecond, LeaseMax: 900 * time.Millisecond})
	cmd, out := h.begin(nil, "echo begun; "+forever)
	h.eventually("the lease's end", func() bool {
		return strings.Contains(out.String(), "the lease of db/password is over while the program runs")
	})
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	h.wait(cmd)
	h.mustBeReturned()
}

// everywhere is what others of this user can read of processes, and of the job's output.
func everywhere(t *testing.T, pids []int) string {
	t.Helper()
	var b strings.Builder
	for _, pid := range pids {
		for _, name := range []string{"cmdline", "environ", "comm"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err == nil {
				fmt.Fprintf(&b, "%d %s: %s\n", pid, name, text)
			}
		}
	}
	return b.String()
}

// The right to tokens, the token and the values are nowhere but where they belong. It runs before all that run in parallel, whose jobs have the
// same ones.
func TestNothingLeaks(t *testing.T) {
	h := start(t, clienttest.Config{})
	cmd, out := h.begin(nil, "echo pid $$; echo right $TOKEN_RIGHT; echo begun; "+forever)
	watchdog := h.watchdog()
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", watchdog)); err == nil && len(text) > 0 {
		t.Errorf("the watchdog's environment: %q", text)
	}
	var all []int
	found, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range found {
		var pid int
		if _, err := fmt.Sscan(filepath.Base(path), &pid); err == nil {
			all = append(all, pid)
		}
	}
	program := h.pidOf(out, "pid")
	for _, pid := range all {
		text := everywhere(t, []int{pid})
		if strings.Contains(text, theSecret) && pid != program && !childOf(pid, program) {
			t.Errorf("the value is in %s", text)
		}
		// The job itself was started with the right, by whoever has it.
		if strings.Contains(text, theRight) && pid != cmd.Process.Pid {
			t.Errorf("the right to tokens is in %s", text)
		}
		if strings.Contains(text, "token-of-this-test") {
			t.Errorf("the token is in %s", text)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	h.wait(cmd)
	for _, secret := range []string{theSecret, theRight, "token-of-this-test"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%s was printed: %s", secret, out)
		}
	}
	kept, _ := h.command(func(s *settings) { s.KeepOIDC = true }, "sh", "-c", `test "$TOKEN_RIGHT" = `+theRight)
	h.launch(kept)
	if code := h.wait(kept); code != 0 {
		t.Errorf("--keep-oidc: code %d", code)
	}
}

// childOf: the script's own sleep has what the script has.
func childOf(pid, parent int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || strings.Contains(string(text), fmt.Sprintf("PPid:\t%d\n", parent))
}

const masks = "::add-mask::" + theSecret + "\n::add-mask::first line 100%25\n::add-mask::second line\n"

// Values are told to the runner by what it reads as the step's log, and by nothing else: not by a file, not by a pipeline.
func TestMasks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script       string
		stdout, file string // what must be in the step's log, and in the file
		stderr       bool   // the masks go there
	}{
		"the step's own":          {`"$0" echo done; true`, masks + "done\n", "", false},
		"into a file":             {`"$0" echo done > "$1"; true`, "", "done\n", true},
		"a pipeline":              {`"$0" echo done | cat > "$1"; true`, "", "done\n", true},
		"both away":               {`"$0" echo done > "$1" 2> "$1.err"; true`, "", "done\n", false},
		"the runner's, by exec":   {`exec "$0" echo done`, masks + "done\n", "", false},
		"captured":                {`text=$("$0" echo done); test "$text" = done && echo captured`, "captured\n", "", true},
		"exec, and into a file":   {`exec "$0" echo done > "$1"`, "", "done\n", true},
		"exec, and into a filter": {`exec "$0" echo done > >(cat > "$1")`, "", "done\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, clienttest.Config{})
			file := filepath.Join(t.TempDir(), "out")
			cmd, _ := h.command(func(s *settings) {
				s.Masks, s.Secrets = true, append(s.Secrets, run.Secret{Name: "db/other", Env: "OTHER"})
			})
			// As a runner starts a step: a process of that name that reads what the step's shell writes.
			worker := filepath.Join(t.TempDir(), "Runner.Worker")
			if err := os.Link(h.self, worker); err != nil {
				if err := exec.Command("cp", h.self, worker).Run(); err != nil {
					t.Fatal(err)
				}
			}
			shell := exec.Command(worker, "as-runner", "bash", "-c", c.script, h.self, file)
			stdout, stderr := new(output), new(output)
			shell.Env, shell.Stdout, shell.Stderr = cmd.Env, stdout, stderr
			h.launch(shell)
			h.wait(shell)
			if stdout.String() != c.stdout {
				t.Errorf("the log has %q, want %q", stdout, c.stdout)
			}
			if text, _ := os.ReadFile(file); string(text) != c.file {
				t.Errorf("the file has %q, want %q", text, c.file)
			}
			if strings.Contains(stderr.String(), masks) != c.stderr {
				t.Errorf("standard error has %q", stderr)
			}
			if text, err := os.ReadFile(file + ".err"); err == nil && (strings.Contains(string(text), theSecret) || !strings.Contains(string(text), "not masked")) {
				t.Errorf("the other file has %q", text)
			}
			h.mustBeReturned()
		})
	}
}

// Elsewhere than where the platform masks, nothing of a value is printed.
func TestNoMasksElsewhere(t *testing.T) {
	t.Parallel()
	h := start(t, clienttest.Config{})
	cmd, _ := h.command(nil)
	shell := exec.Command("sh", "-c", `"$0" true; true`, h.self)
	out := new(output)
	shell.Env, shell.Stdout, shell.Stderr = cmd.Env, out, out
	h.launch(shell)
	h.wait(shell)
	if strings.Contains(out.String(), "add-mask") || strings.Contains(out.String(), theSecret) {
		t.Errorf("%s", out)
	}
}
