package agent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
)

// TestMain lets the test binary be a stranger in namespaces of his own, a workload, or one that changes.
func TestMain(m *testing.M) {
	if dir := os.Getenv("AGENT_TEST_MOUNT"); dir != "" {
		fmt.Println(pretend(dir, os.Getenv("AGENT_TEST_SOCKET")))
		return
	}
	beWorkload(os.Getenv("WORKLOAD_ROLE"))
	if socket := os.Getenv("AGENT_TEST_CHANGELING"); socket != "" {
		changeling(socket)
		return
	}
	os.Exit(m.Run())
}

// pretend mounts something of its own over dir, and runs what is there under a name that stands for another program.
func pretend(dir, socket string) string {
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return "no mount: " + err.Error()
	}
	path := filepath.Join(dir, "payments-db")
	if err := os.WriteFile(path, []byte("the stranger's"), 0o700); err != nil {
		return err.Error()
	}
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	run, err := (&localapi.Client{Socket: socket}).Open(context.Background(), request(path), f)
	if err != nil {
		return err.Error()
	}
	_ = run.Close()
	return "given"
}

// In namespaces of his own any user can have any path. The agent tells none that is not one of its own files.
func TestPathFromAnotherMountNamespace(t *testing.T) {
	s, c, _, _ := whole(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, there := range map[string]bool{"nothing is there": false, "another program is there": true} {
		if there {
			if err := os.WriteFile(filepath.Join(dir, "payments-db"), []byte("the true one"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(self)
		cmd.Env = []string{"AGENT_TEST_MOUNT=" + dir, "AGENT_TEST_SOCKET=" + c.Socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		before := len(s.Claims())
		out, err := cmd.Output()
		if err != nil || strings.HasPrefix(string(out), "no mount") {
			// Then no user of this machine can do it either. TestPathIsConfirmed has the cases that need no namespace.
			t.Logf("this kernel lets nobody have such namespaces, so they prove nothing here: %q, %v", out, err)
			return
		}
		if string(out) != "given\n" || len(s.Claims()) != before+1 {
			t.Fatalf("%s: %q", name, out)
		}
		process := s.Claims()[before]["process"].(map[string]any)
		if process["path"] != nil || process["digest_source"] != "measured" || len(process["sha256"].(string)) != 64 {
			t.Errorf("%s: %v", name, process)
		}
	}
}
