package faults

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store/sqlite"
)

const envName = "faults.example"

// binaries are built once for each set of tags.
var (
	binariesMu sync.Mutex
	binaries   = map[string]string{}
	binDir     string
)

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "bailment-faults"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

// build makes the real binary, with a planted defect if tags say so.
func build(t testing.TB, tags string) string {
	t.Helper()
	binariesMu.Lock()
	defer binariesMu.Unlock()
	if bin, ok := binaries[tags]; ok {
		return bin
	}
	bin := filepath.Join(binDir, "bailment-"+tags)
	cmd := exec.Command("go", "build", "-tags", tags, "-o", bin, "github.com/bailment/bailment/cmd/bailment")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building with tags %q: %v\n%s", tags, err, out)
	}
	binaries[tags] = bin
	return bin
}

// site is a founded data directory, and a server process on it from time to time.
type site struct {
	t      testing.TB
	bin    string
	data   string
	config string
	ops    string
	addr   string
	alice  ssh.Signer
	gen    state.Digest
	cmd    *exec.Cmd
	logs   *logBuffer
	exited chan error
	trust  *client.Trust
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > 1<<20 {
		l.b.Reset()
	}
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newSite founds an environment. dir may be on a special file system; empty: a temporary directory.
func newSite(t testing.TB, tags, dir string) *site {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	s := &site{t: t, bin: build(t, tags), data: filepath.Join(dir, "data"), config: filepath.Join(t.TempDir(), "server.yaml")}
	s.addr, s.ops = freePort(t), freePort(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	s.check(err)
	s.alice, err = ssh.NewSignerFromKey(key)
	s.check(err)
	src, err := seal.NewSource(nil)
	s.check(err)
	env := filepath.Join(s.data, envName)
	s.check(os.MkdirAll(env, 0o700))
	holder, err := file.Create(filepath.Join(env, "root.key"), src)
	s.check(err)
	st, err := sqlite.Create(t.Context(), env)
	s.check(err)
	s.gen, err = control.Found(t.Context(), control.Founding{
		Files: s.bundle(), Holder: holder, Source: src, Store: st, Now: time.Now,
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			sig, err := sshsig.Sign(s.alice, namespace, []byte(text))
			return "alice", string(sig), err
		},
	})
	s.check(err)
	s.check(st.Close())
	s.check(os.WriteFile(s.config, fmt.Appendf(nil, "data: %s\nlisten: %s\nops_listen: %s\nserver_id: s1\n", s.data, s.addr, s.ops), 0o600))
	t.Cleanup(s.kill)
	return s
}

func (s *site) bundle() policy.Files {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.alice.PublicKey())))
	return policy.Files{
		"environment.yaml":    []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + envName + "}\nspec:\n  class: development\n  sessions: {operator: 12h, workload: 1h}\n  limits: {versionsPerSecret: 10000}\n"),
		"operators.yaml":      []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n    - {name: alice, keys: ['" + key + "'], duties: [propose, approve, revoke, admit, keys, audit]}\n"),
		"identities/all.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec: {method: join-token, path: '/node/join-token/{claims.name}'}\n---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: api}\nspec: {method: workload, path: /workload/api, nodes: ['/node/join-token/*']}\n"),
		"grants/all.yaml":     []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: write}\nspec: {actions: [secret.write, secret.list], identities: [/human/alice], secrets: ['*']}\n---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: read}\nspec: {actions: [secret.read], identities: [/workload/api], secrets: ['app/*'], purposes: [runtime]}\n"),
		"secrets/all.yaml":    []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: app/*}\nspec: {type: opaque}\n"),
	}
}

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the server, below a wrapper such as strace if there is one, and waits until it is ready.
func (s *site) start(wrap ...string) {
	s.t.Helper()
	if err := s.tryStart(wrap...); err != nil {
		s.t.Fatalf("%v\n%s", err, s.logs)
	}
}

func (s *site) tryStart(wrap ...string) error {
	args := append(append([]string(nil), wrap...), s.bin, "server", "--config", s.config)
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.logs = &logBuffer{}
	s.cmd.Stderr, s.cmd.Stdout = s.logs, s.logs
	if err := s.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	cmd := s.cmd
	go func() { exited <- cmd.Wait() }()
	s.exited = exited
	deadline := time.After(30 * time.Second)
	for {
		if ok, _ := s.ready(); ok {
			return nil
		}
		select {
		case err := <-exited:
			s.exited <- err
			return fmt.Errorf("the server ended: %w", err)
		case <-deadline:
			return errors.New("the server does not get ready")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *site) ready() (bool, string) {
	resp, err := http.Get("http://" + s.ops + "/readyz")
	if err != nil {
		return false, ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode == http.StatusOK, string(b)
}

// kill ends the whole process group at once, as a power cut of the process would.
func (s *site) kill() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.exited
	s.cmd = nil
}

// stop asks the server to end and waits.
func (s *site) stop() {
	s.t.Helper()
	s.check(syscall.Kill(s.serverPID(), syscall.SIGTERM))
	select {
	case <-s.exited:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("the server does not stop\n%s", s.logs)
	}
	s.cmd = nil
}

// serverPID is the server's own process, below a wrapper if there is one.
func (s *site) serverPID() int {
	if s.cmd.Path == s.bin {
		return s.cmd.Process.Pid
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.cmd.Process.Pid, s.cmd.Process.Pid))
	if err == nil {
		var pid int
		if n, _ := fmt.Sscan(string(b), &pid); n == 1 {
			return pid
		}
	}
	return s.cmd.Process.Pid
}

// connect trusts the environment by its bootstrap string.
func (s *site) connect() {
	s.t.Helper()
	host, port, err := net.SplitHostPort(s.addr)
	s.check(err)
	var p uint16
	_, err = fmt.Sscan(port, &p)
	s.check(err)
	boot := identity.Bootstrap{Host: host, Port: p, Env: envName, Genesis: s.gen}
	s.trust, err = client.Bootstrap(s.t.Context(), boot.String(), client.Options{})
	s.check(err)
}

// once makes every call a single attempt: a test wants to see what the server answered.
func (s *site) dial(session *client.Session) *client.Client {
	s.t.Helper()
	o := client.Options{Attempts: 1, CallTimeout: 20 * time.Second}
	if session != nil {
		o.Credentials = session.Credentials()
	}
	c, err := client.Dial(s.trust, o)
	s.check(err)
	s.t.Cleanup(c.Close)
	return c
}

func (s *site) login() *client.Session {
	s.t.Helper()
	session, err := s.dial(nil).Login(s.t.Context(), "alice", func(namespace string, text []byte) (string, error) {
		sig, err := sshsig.Sign(s.alice, namespace, text)
		return string(sig), err
	})
	s.check(err)
	return session
}

// workload joins a node and attests a process on it.
func (s *site) workload(admin *client.Client, name string) *client.Session {
	s.t.Helper()
	ctx := s.t.Context()
	tok, err := jointoken.New(s.gen)
	s.check(err)
	_, err = admin.Attestation.CreateJoinToken(ctx, &bailmentv1.CreateJoinTokenRequest{Id: tok.ID(), PublicKey: tok.PublicKey(), Name: name})
	s.check(err)
	a, err := jointoken.NewAttester(tok)
	s.check(err)
	key, err := client.NewKey()
	s.check(err)
	node, err := s.dial(nil).Attest(ctx, jointoken.Name, a, key, "test")
	s.check(err)
	key, err = client.NewKey()
	s.check(err)
	session, err := s.dial(node).AttestWorkload(ctx, map[string]any{}, "api", key)
	s.check(err)
	return session
}

func random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}
