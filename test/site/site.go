// Package site runs the real binary for tests and benchmarks: it founds an environment in a data
// directory, starts the server process on it, and plays its operator and machines through package client.
//
// Guaranteed: what is founded is what `bailment init` founds, by the same function; Start returns when the
// server is ready; Kill and Stop return when its process is gone. Not guaranteed: that a Site may be used
// by several goroutines, except Dial, Login, Node and Workload between Connect and the next Start.
//
// It is for the tests of this module only; nothing of the product imports it.
package site

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/sshsig"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store/sqlite"
)

// Options of a site. Bin and Dir are required.
type Options struct {
	Name   string       // of the environment; default "site.example"
	Bin    string       // the binary to run
	Dir    string       // everything is below it; it must exist
	People []string     // operators beside alice
	Extra  policy.Files // added to or replacing files of the default bundle
	Config string       // more lines of the server's configuration
	// Now is the founding's clock; nil means time.Now.
	Now func() time.Time
}

// Site is a founded data directory, and a server process on it from time to time.
type Site struct {
	Name    string
	Bin     string
	Data    string // the server's data directory
	Config  string // the server's configuration file
	Addr    string
	Ops     string
	People  map[string]ssh.Signer
	Genesis state.Digest
	Trust   *client.Trust // after Connect
	Cmd     *exec.Cmd     // nil while no server runs
	Logs    *Log          // of the newest server

	keys   map[string]ed25519.PrivateKey // of People
	exited chan error
}

// Log collects what a process writes, its newest part if that is much. It is safe for concurrent use.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const keepLog = 8 << 20

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() > keepLog {
		l.b.Reset()
	}
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// New founds an environment with alice and others as its operators. It starts nothing.
func New(ctx context.Context, o Options) (*Site, error) {
	if o.Name == "" {
		o.Name = "site.example"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Site{Name: o.Name, Bin: o.Bin, Data: filepath.Join(o.Dir, "data"), Config: filepath.Join(o.Dir, "server.yaml"), Logs: &Log{}, People: make(map[string]ssh.Signer), keys: make(map[string]ed25519.PrivateKey)}
	var err error
	if s.Addr, err = FreeAddr(); err != nil {
		return nil, err
	}
	if s.Ops, err = FreeAddr(); err != nil {
		return nil, err
	}
	for _, name := range append([]string{"alice"}, o.People...) {
		if _, s.keys[name], err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
		if s.People[name], err = ssh.NewSignerFromKey(s.keys[name]); err != nil {
			return nil, err
		}
	}
	if err := s.found(ctx, o); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("data: %s\nlisten: %s\nops_listen: %s\nserver_id: s1\n%s", s.Data, s.Addr, s.Ops, o.Config)
	return s, os.WriteFile(s.Config, []byte(text), 0o600)
}

// KeyFile writes a person's key as ssh-keygen does, for the command line.
func (s *Site) KeyFile(person, path string) error {
	block, err := ssh.MarshalPrivateKey(s.keys[person], person)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	return os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(s.People[person].PublicKey()), 0o600)
}

// Dir is the environment's own directory.
func (s *Site) Dir() string { return filepath.Join(s.Data, s.Name) }

func (s *Site) found(ctx context.Context, o Options) (err error) {
	if err := os.MkdirAll(s.Dir(), 0o700); err != nil {
		return err
	}
	src, err := seal.NewSource(nil)
	if err != nil {
		return err
	}
	holder, err := file.Create(filepath.Join(s.Dir(), "root.key"), src)
	if err != nil {
		return err
	}
	st, err := sqlite.Create(ctx, s.Dir())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	files := s.bundle()
	for path, data := range o.Extra {
		files[path] = data
	}
	s.Genesis, err = control.Found(ctx, control.Founding{
		Files: files, Holder: holder, Source: src, Store: st, Methods: methods.All(), Now: o.Now,
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			sig, err := s.Signer("alice")(namespace, []byte(text))
			return "alice", sig, err
		},
	})
	return err
}

// bundle: nodes by join token, a workload api on any of them, which reads app/*; alice writes.
func (s *Site) bundle() policy.Files {
	return policy.Files{
		"environment.yaml":    []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + s.Name + "}\nspec:\n  class: development\n  sessions: {operator: 12h, workload: 1h}\n  limits: {versionsPerSecret: 10000}\n"),
		"operators.yaml":      operators(s.People),
		"identities/all.yaml": []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: nodes}\nspec: {method: join-token, path: '/node/join-token/{claims.name}'}\n---\napiVersion: bailment/v1\nkind: Identity\nmetadata: {name: api}\nspec: {method: workload, path: /workload/api, nodes: ['/node/join-token/*']}\n"),
		"grants/all.yaml":     []byte("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: write}\nspec: {actions: [secret.write, secret.generate, secret.list], identities: [/human/alice], secrets: ['*']}\n---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: read}\nspec: {actions: [secret.read], identities: [/workload/api], secrets: ['app/*'], purposes: [runtime]}\n"),
		"secrets/all.yaml":    []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: app/*}\nspec: {type: opaque}\n"),
	}
}

// operators is an operators.yaml of persons with every duty, in the order of their names.
func operators(persons map[string]ssh.Signer) []byte {
	out := []byte("apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: operators}\nspec:\n  operators:\n")
	for _, name := range slices.Sorted(maps.Keys(persons)) {
		key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(persons[name].PublicKey())))
		out = fmt.Appendf(out, "    - {name: %s, keys: ['%s'], duties: [propose, approve, revoke, admit, keys, audit]}\n", name, key)
	}
	return out
}

// FreeAddr is a loopback address that nobody listens on just now.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

const startWithin = 60 * time.Second

// Start runs the server, below a wrapper such as strace if there is one, and waits until it is ready.
func (s *Site) Start(wrap ...string) error {
	if err := s.Launch(wrap...); err != nil {
		return err
	}
	deadline := time.After(startWithin)
	for {
		if ok, _ := s.Ready(); ok {
			return nil
		}
		select {
		case err := <-s.exited:
			s.exited <- err
			return fmt.Errorf("the server ended: %w\n%s", err, s.Logs)
		case <-deadline:
			return fmt.Errorf("the server does not get ready\n%s", s.Logs)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Launch runs the server and does not wait.
func (s *Site) Launch(wrap ...string) error {
	args := append(append([]string(nil), wrap...), s.Bin, "server", "--config", s.Config)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: len(wrap) > 0} // wrapper and server are killed together
	logs := &Log{}
	cmd.Stderr, cmd.Stdout = logs, logs
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	s.Cmd, s.Logs, s.exited = cmd, logs, exited
	return nil
}

// Ready is what /readyz says.
func (s *Site) Ready() (bool, string) {
	resp, err := http.Get("http://" + s.Ops + "/readyz")
	if err != nil {
		return false, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK, string(b)
}

// Kill ends the server and its wrapper at once, as a power cut of the process would.
func (s *Site) Kill() {
	if s.Cmd == nil {
		return
	}
	pid := s.Cmd.Process.Pid
	if s.Cmd.SysProcAttr.Setpgid {
		pid = -pid
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
	<-s.exited
	s.Cmd = nil
}

const stopWithin = 30 * time.Second

// Stop asks the server to end and waits. A server that doesn't end is killed.
func (s *Site) Stop() error {
	if s.Cmd == nil {
		return nil
	}
	if err := syscall.Kill(s.PID(), syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-s.exited:
		s.Cmd = nil
		if err != nil {
			return fmt.Errorf("the server ended with %w\n%s", err, s.Logs)
		}
		return nil
	case <-time.After(stopWithin):
		s.Kill()
		return fmt.Errorf("the server does not stop\n%s", s.Logs)
	}
}

// Wait waits until the server ends by itself, and says how.
func (s *Site) Wait() error {
	err := <-s.exited
	s.Cmd = nil
	return err
}

// PID is the server's own process, below a wrapper if there is one.
func (s *Site) PID() int {
	pid := s.Cmd.Process.Pid
	if s.Cmd.Path == s.Bin {
		return pid
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil {
		var child int
		if n, _ := fmt.Sscan(string(b), &child); n == 1 {
			return child
		}
	}
	return pid
}

// Bootstrap is the environment's bootstrap string.
func (s *Site) Bootstrap() (string, error) {
	ap, err := netip.ParseAddrPort(s.Addr)
	if err != nil {
		return "", err
	}
	return identity.Bootstrap{Host: ap.Addr().String(), Port: ap.Port(), Env: s.Name, Genesis: s.Genesis}.String(), nil
}

// Connect trusts the environment by its bootstrap string.
func (s *Site) Connect(ctx context.Context) error {
	boot, err := s.Bootstrap()
	if err != nil {
		return err
	}
	s.Trust, err = client.Bootstrap(ctx, boot, client.Options{})
	return err
}

// Dial makes a client with a session, or without one if that is nil. Every call is a single attempt: a
// test wants to see what the server answered.
func (s *Site) Dial(session *client.Session) (*client.Client, error) {
	o := client.Options{Attempts: 1, CallTimeout: 20 * time.Second}
	if session != nil {
		o.Credentials = session.Credentials()
	}
	return client.Dial(s.Trust, o)
}

// Signer signs as a person, as package client wants it.
func (s *Site) Signer(person string) func(namespace string, text []byte) (string, error) {
	return func(namespace string, text []byte) (string, error) {
		sig, err := sshsig.Sign(s.People[person], namespace, text)
		return string(sig), err
	}
}

// Login logs a person in.
func (s *Site) Login(ctx context.Context, person string) (*client.Session, error) {
	c, err := s.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Login(ctx, person, s.Signer(person))
}

// Token admits a machine of a name.
func (s *Site) Token(ctx context.Context, admin *client.Client, name string) (jointoken.Token, error) {
	tok, err := jointoken.New(s.Genesis)
	if err != nil {
		return tok, err
	}
	_, err = admin.Attestation.CreateJoinToken(ctx, &bailmentv1.CreateJoinTokenRequest{Id: tok.ID(), PublicKey: tok.PublicKey(), Name: name})
	return tok, err
}

// Join attests a machine with a token, with a new session key.
func (s *Site) Join(ctx context.Context, tok jointoken.Token) (*client.Session, error) {
	a, err := jointoken.NewAttester(tok)
	if err != nil {
		return nil, err
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	c, err := s.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Attest(ctx, jointoken.Name, a, key, "test")
}

// Node admits and attests a machine.
func (s *Site) Node(ctx context.Context, admin *client.Client, name string) (*client.Session, error) {
	tok, err := s.Token(ctx, admin, name)
	if err != nil {
		return nil, err
	}
	return s.Join(ctx, tok)
}

// Workload attests a process on a node, as the named workload.
func (s *Site) Workload(ctx context.Context, node *client.Session, name string) (*client.Session, error) {
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	c, err := s.Dial(node)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.AttestWorkload(ctx, map[string]any{}, name, key)
}
