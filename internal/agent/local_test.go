package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/problem"
)

const canary = "canary-5f3c\n\x01\xff-value"

// logs is where the agent's log goes.
type logs struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

func (l *logs) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.String()
}

// whole starts a fake server and a real agent at a real socket.
func whole(t *testing.T) (*clienttest.Server, *localapi.Client, func(), *logs) {
	t.Helper()
	s, err := clienttest.New(clienttest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Put("db/password", []byte(canary))
	tok, err := s.Token("web-1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(tok.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	log := new(logs)
	a, err := agent.New(agent.Config{
		Bootstrap: s.Bootstrap, StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "run", "agent.sock"), Method: jointoken.Name,
		Needs: map[string]string{jointoken.NeedToken: token}, Methods: methods.All(), Logger: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	c := &localapi.Client{Socket: filepath.Join(dir, "run", "agent.sock")}
	eventually(t, "the agent to be ready", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && st.State == string(agent.Ready)
	})
	return s, c, stop, log
}

// eventually waits for what another goroutine or process does, at most 10 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func returned(s *clienttest.Server) bool {
	for _, l := range s.Leases() {
		if !l.Returned {
			return false
		}
	}
	return len(s.Leases()) > 0
}

func request(exe string) localapi.OpenRequest {
	return localapi.OpenRequest{Exe: localapi.Exe{Path: exe}, Secrets: []localapi.Wanted{{Name: "db/password"}}, Receipts: true}
}

func executable(t *testing.T) (*os.File, string, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app")
	content := bytes.Repeat([]byte("x"), 1<<20)
	if err := os.WriteFile(path, content, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, path, fmt.Sprintf("%x", sha256.Sum256(content))
}

func TestOpenAndClose(t *testing.T) {
	s, c, _, log := whole(t)
	f, path, digest := executable(t)
	req := request("/somewhere/else")
	req.Exe.SHA256 = digest
	run, err := c.Open(t.Context(), req, f)
	if err != nil {
		t.Fatal(err)
	}
	g := run.Secrets[0]
	if string(g.Value) != canary || g.Purpose != "runtime" || g.Version != 1 || string(g.Receipt) != "receipt of db/password" || run.Node != "spiffe://test.example/node/join-token/web-1" {
		t.Fatalf("%+v", g)
	}
	claims := s.Claims()[0]
	unix, process := claims["unix"].(map[string]any), claims["process"].(map[string]any)
	if unix["uid"] != float64(os.Getuid()) || unix["gid"] != float64(os.Getgid()) || process["pid"] != float64(os.Getpid()) {
		t.Errorf("%v", claims)
	}
	if process["sha256"] != digest || process["digest_source"] != "measured" || process["path"] != path {
		t.Errorf("%v, want digest %s of %s", process, digest, path)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.Runs != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
	if !returned(s) {
		t.Errorf("after Close: %+v", s.Leases())
	}
	for _, form := range []string{canary, "canary-5f3c", hex.EncodeToString([]byte(canary)), "Y2FuYXJ5LTVmM2"} {
		if strings.Contains(log.text(), form) {
			t.Errorf("a value is in the log: %s", form)
		}
	}
}

func TestMeasuring(t *testing.T) {
	s, c, _, _ := whole(t)
	f, path, _ := executable(t)
	req := request(path)
	req.Exe.SHA256 = strings.Repeat("00", 32)
	if _, err := c.Open(t.Context(), req, f); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("another digest than the descriptor's: %v", err)
	}
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	if _, err := c.Open(t.Context(), request(path), pipe); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("a pipe as the executable: %v", err)
	}
	run, err := c.Open(t.Context(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	all := s.Claims()
	process := all[len(all)-1]["process"].(map[string]any)
	if process["digest_source"] != "claimed" || process["claimed_sha256"] != req.Exe.SHA256 || process["claimed_path"] != path || process["sha256"] != nil || process["path"] != nil {
		t.Errorf("%v", process)
	}
}

func TestRefusalReachesTheAsker(t *testing.T) {
	s, c, _, _ := whole(t)
	s.Refuse(func(map[string]any, string) error { return problem.New(problem.ReasonForeignNode, "not your workload") })
	_, err := c.Open(t.Context(), request("/bin/x"), nil)
	if p := problem.As(err); p.Reason != problem.ReasonForeignNode || p.Kind != problem.Refused || p.WayOut() == "" || !strings.Contains(p.Message, "not your workload") {
		t.Errorf("%+v", p)
	}
	_, err = (&localapi.Client{Socket: c.Socket + "x"}).Open(t.Context(), request("/bin/x"), nil)
	if !problem.Is(err, problem.ReasonNoAgent) {
		t.Errorf("no agent: %v", err)
	}
}

// A process that dies of whatever gives its leases back: its connection ends. What it sends beside its request changes nothing of that.
func TestDeathOfTheProcess(t *testing.T) {
	for name, more := range map[string][2]string{"": {}, "a byte with the request": {"x", ""}, "a byte later": {"", "x"}, "a request with it": {"GET /status HTTP/1.1\r\nHost: agent\r\n\r\n", "x"}} {
		t.Run(name, func(t *testing.T) {
			s, c, _, _ := whole(t)
			conn, err := net.Dial("unix", c.Socket)
			if err != nil {
				t.Fatal(err)
			}
			body := `{"exe":{"path":"/bin/x"},"secrets":[{"name":"db/password"}]}`
			_, err = fmt.Fprintf(conn, "POST /v1/run/open HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s%s", len(body), body, more[0])
			if err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 4096)
			n, err := conn.Read(answer)
			if err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 200") {
				t.Fatalf("%q, %v", answer[:n], err)
			}
			if more[1] == "" && returned(s) {
				t.Fatal("given back too early")
			}
			_, _ = io.WriteString(conn, more[1])
			_ = conn.Close()
			eventually(t, "the lease to be given back", func() bool { return returned(s) })
		})
	}
}

// An agent that stops says so, and leaves the leases of programs that go on: given back, they would say that nobody has the value.
func TestAgentStops(t *testing.T) {
	s, c, stop, _ := whole(t)
	ended, err := c.Open(t.Context(), localapi.OpenRequest{Exe: localapi.Exe{Path: "/bin/y"}, Workload: "/workload/other", Secrets: request("").Secrets}, nil)
	if err != nil {
		t.Fatal(err)
	}
	run, err := c.Open(t.Context(), request("/bin/x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ended.Close(); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, l := range s.Leases() {
		if l.Returned != (l.Identity == "/workload/other") {
			t.Errorf("%+v", l)
		}
	}
	var last localapi.Event
	for e := range run.Events() {
		last = e
	}
	if last.Event != localapi.EventStopping {
		t.Errorf("%+v", last)
	}
	_ = run.Close()
}

// Where an agent can't make its socket or its directory, it says where, why, and what to do about it.
func TestPlacesThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ state, socket, named, setting string }{
		"the socket is a file":            {filepath.Join(dir, "1"), file, file, "`socket`"},
		"the socket is in a file":         {filepath.Join(dir, "2"), filepath.Join(file, "s"), filepath.Join(file, "s"), "`socket`"},
		"the socket's path is long":       {filepath.Join(dir, "3"), filepath.Join(dir, strings.Repeat("s", 107)), strings.Repeat("s", 107), "`socket`"},
		"the state directory is a file":   {file, filepath.Join(dir, "s"), file, "`data`"},
		"the state directory can't be":    {"/proc/agent", filepath.Join(dir, "s"), "/proc/agent", "`data`"},
		"the socket's directory can't be": {filepath.Join(dir, "4"), "/proc/agent/s", "/proc/agent/s", "`socket`"},
	} {
		a, err := agent.New(agent.Config{
			Bootstrap: "bailment1:x", StateDir: c.state, Socket: c.socket, Method: jointoken.Name, Needs: map[string]string{jointoken.NeedToken: file}, Methods: methods.All(),
		})
		if err == nil {
			err = a.Run(t.Context())
		}
		p := problem.As(err)
		if p.Kind != problem.Invalid || !strings.Contains(p.Message, c.named) || !strings.Contains(p.WayOut(), c.setting) {
			t.Errorf("%s: %v; try: %s", name, err, p.WayOut())
		}
	}
}

// Strangers on the machine can ask, and no more.
func TestBadRequests(t *testing.T) {
	s, c, _, _ := whole(t)
	raw := func(text string) string {
		conn, err := net.Dial("unix", c.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			return ""
		}
		_ = conn.(*net.UnixConn).CloseWrite()
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	post := func(path, kind, body string) string {
		return raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, kind, len(body), body))
	}
	const js = "application/json"
	for name, c := range map[string]struct{ answer, want string }{
		"no JSON type":   {post(localapi.PathOpen, "text/plain", "{}"), "400 "},
		"empty object":   {post(localapi.PathOpen, js, "{}"), "400 "},
		"unknown field":  {post(localapi.PathOpen, js, `{"exe":{"path":"/x"},"uid":0}`), "400 "},
		"too large":      {post(localapi.PathOpen, js, strings.Repeat(" ", localapi.MaxRequest+1)), "400 "},
		"unknown run":    {post(localapi.PathClose, js, `{"run":"00112233445566778899aabbccddeeff"}`), "404 "},
		"no run":         {post(localapi.PathClose, js, `{"run":"../x"}`), "400 "},
		"other path":     {raw("GET /v1/secrets HTTP/1.0\r\n\r\n"), "404 "},
		"other method":   {raw("GET /v1/run/open HTTP/1.0\r\n\r\n"), "405 "},
		"huge header":    {raw("GET /status HTTP/1.0\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"), "431 "},
		"cut short":      {raw("POST /v1/run/open HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"), "400 "},
		"not HTTP":       {raw("\x16\x03\x01hello\r\n\r\n"), "400 "},
		"status is open": {raw("GET /status HTTP/1.0\r\n\r\n"), "200 "},
	} {
		line, _, _ := strings.Cut(c.answer, "\r\n")
		// A refusal before everything was read may cut the connection first.
		if !strings.Contains(line, c.want) && !(name == "huge header" && line == "") {
			t.Errorf("%s: %q, want %s", name, line, c.want)
		}
	}
	if len(s.Claims()) != 0 {
		t.Error("a bad request reached the server")
	}
	if st, err := os.Stat(c.Socket); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", st, err)
	}
}
