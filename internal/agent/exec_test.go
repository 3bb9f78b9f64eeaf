package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/problem"
)

// changeling asks for a secret, executes another program before the answer, and shows what came over the connection all the same.
func changeling(socket string) {
	if socket == "asked" {
		// The descriptor is the connection's, which outlived the execve.
		fmt.Println("executed")
		_, _ = io.Copy(os.Stdout, os.NewFile(3, "connection"))
		return
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	const body = `{"exe":{"path":"/bin/x"},"secrets":[{"name":"db/password"}]}`
	fmt.Fprintf(c, "POST /v1/run/open HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	f, err := c.(*net.UnixConn).File()
	if err != nil || unix.Dup3(int(f.Fd()), 3, 0) != nil && f.Fd() != 3 {
		fmt.Println("no descriptor", err)
		return
	}
	_, _ = unix.FcntlInt(3, unix.F_SETFD, 0)
	_ = unix.SetNonblock(3, false)
	fmt.Println("asked")
	// The server says when.
	_, _ = os.Stdin.Read(make([]byte, 1))
	self, err := os.Executable()
	if err == nil {
		err = syscall.Exec(self, []string{self}, []string{"AGENT_TEST_CHANGELING=asked"})
	}
	fmt.Println(err)
}

// A process that executes another program while the server is asked for its secret gets none, over a real socket.
func TestExecWhileItIsServed(t *testing.T) {
	s, c, _, log := whole(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{"AGENT_TEST_CHANGELING=" + c.Socket}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	line := func(want string) {
		t.Helper()
		if got, err := out.ReadString('\n'); err != nil || got != want+"\n" {
			t.Errorf("%q, %v, want %s", got, err, want)
		}
	}
	executed := make(chan struct{})
	s.Before(func(procedure string) error {
		// The last moment before the secret is got: what is decided then was decided for another program.
		if strings.HasSuffix(procedure, "/Get") {
			_, _ = io.WriteString(in, "x")
			<-executed
		}
		return nil
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	watchdog := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	line("asked")
	line("executed")
	close(executed)
	answer, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(answer), "403 Forbidden") || !strings.Contains(string(answer), string(problem.ReasonProcessChanged)) {
		t.Errorf("%s", answer)
	}
	eventually(t, "the lease to be given back", func() bool { return returned(s) })
	if !strings.Contains(log.text(), string(problem.ReasonProcessChanged)) {
		t.Error("the log says nothing")
	}
	if len(s.Leases()) != 1 {
		t.Errorf("%+v", s.Leases())
	}
}

// What a run claims about the process that asks: found out by the kernel, of the test itself.
func TestRunsClaimTheirPlace(t *testing.T) {
	s, c, _, _ := whole(t)
	f, path, _ := executable(t)
	run, err := c.Open(t.Context(), request(path), f)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	claims := s.Claims()[0]
	process := claims["process"].(map[string]any)
	if process["held_by"] == nil || process["digest_source"] != "measured" {
		t.Errorf("%v", process)
	}
	text, err := os.ReadFile(filepath.Join("/proc/self", "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 0 && claims["cgroup"] == nil {
		t.Errorf("%v, in %s", claims, text)
	}
}
