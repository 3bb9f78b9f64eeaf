package e2e

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
)

// measuring is serving, for a reader whose changes nobody else approves, at a machine with a TPM.
func measuring(t *testing.T, name string) reader {
	t.Helper()
	bundle := example(t, name)
	bundle["environment.yaml"] = bytes.Replace(bundle["environment.yaml"], []byte("required: 1"), []byte("required: 0"), 1)
	r, _ := servedWith(t, name, bundle)
	s := tpmtest.New(t, 0)
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.dir, path), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("acme-ek-root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Issuing.Raw}))
	write("agent.yaml", fmt.Appendf(nil, "data: %[1]s/agent\nsocket: %[1]s/agent.sock\nattest:\n  method: tpm\n  key: tpm\n  values: {device: %[2]s}\n", r.dir, s.Socket))
	r.env = append(r.env, "BAILMENT_AGENT="+filepath.Join(r.dir, "agent.sock"), "TPM2TOOLS_TCTI=swtpm:path="+s.Socket)
	r.replace = strings.NewReplacer("/etc/bailment/", r.dir+"/")
	return r
}

// demoTPM runs the demo with a binary, and gives what it printed. Whatever happens, nothing of it goes on running.
func demoTPM(t *testing.T, bin string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../../scripts/demo-tpm", bin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of it: nothing, if it is as it should be
	return string(out), err
}

// A machine with nothing but its TPM enrols and gets a secret; a PCR is extended, the next proof is refused and the machine quarantined;
// the ledger says why in words; and it comes back by reference values and a release that were approved.
func TestDemoTPM(t *testing.T) {
	t.Parallel()
	out, err := demoTPM(t, program(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rest := out
	for _, want := range []string{
		"The agent starts", "state              ready", "assurance          measured", "web: I have a password of 32 characters",
		"Somebody tampers", "agent renew\n     error: PCR 8 (boot loader's commands and kernel command line) has another value than in reference web 6.1.0-28",
		"reason: quarantined (refused)", "state              quarantined", "run --wait 0s", "reason: quarantined (refused)",
		"node show", "state            quarantined", "why              PCR 8", "ledger show", `"type": "node.quarantined"`, `"why": "PCR 8`,
		"6.1.0-29", "generation 2 is in force", "node release", "is done, approved by 1 of 1", "agent renew\n     state              ready",
		"web: I have a password of 32 characters", "consistent and authenticated", "All of it was as promised.",
	} {
		var ok bool
		if _, rest, ok = strings.Cut(rest, want); !ok {
			t.Fatalf("it does not say %q, or not in its place:\n%s", want, out)
		}
	}
}

// A demo that is not as promised says so: of every command that must be refused or succeed, one that does otherwise is noticed.
func TestDemoTPMNotices(t *testing.T) {
	t.Parallel()
	bin := program(t)
	for name, lie := range map[string]string{
		"a renewal that is not refused": `case "$1 $2" in "agent renew") exit 0;; esac`,
		"a machine that is not shown":   `case "$1 $2" in "node show") exit 0;; esac`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wrapper := filepath.Join(t.TempDir(), "bailment")
			if err := os.WriteFile(wrapper, []byte("#!/bin/sh\n"+lie+"\nexec "+bin+" \"$@\"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			out, err := demoTPM(t, wrapper)
			if err == nil || !strings.Contains(out, "The demo failed.") {
				t.Errorf("%v\n%s", err, out)
			}
			if left, err := filepath.Glob("/tmp/bailment-tpm.*"); err == nil && slices.ContainsFunc(left, func(dir string) bool { return strings.Contains(out, dir) }) {
				t.Errorf("%v is left behind", left)
			}
		})
	}
}
