package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/sshsig"
)

func newListener(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// founding is a valid InitOptions.
func founding(t *testing.T, data string) server.InitOptions {
	t.Helper()
	people := make(servertest.People)
	for _, name := range []string{"alice", "bob"} {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if people[name], err = ssh.NewSignerFromKey(key); err != nil {
			t.Fatal(err)
		}
	}
	return server.InitOptions{
		Data: data, Files: servertest.Bundle("founded", people),
		Sign: func(_ context.Context, namespace, text string) (string, string, error) {
			sig, err := sshsig.Sign(people["alice"], namespace, []byte(text))
			return "alice", string(sig), err
		},
	}
}

func TestInit(t *testing.T) {
	data := filepath.Join(t.TempDir(), "a", "data")
	got, err := server.Init(t.Context(), founding(t, data))
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "founded" || got.Class != "development" || got.Genesis == [32]byte{} || got.Dir != filepath.Join(data, "founded") {
		t.Fatalf("%+v", got)
	}
	for path, mode := range map[string]os.FileMode{got.Dir: 0o700, got.RootKey: 0o600} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
	}
	before, err := os.ReadFile(got.RootKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Init(t.Context(), founding(t, data)); !problem.Is(err, problem.ReasonExists) {
		t.Fatalf("founded twice: %v", err)
	}
	if after, err := os.ReadFile(got.RootKey); err != nil || !bytes.Equal(before, after) {
		t.Fatal("the second init touched the root key")
	}
}

// Whatever goes wrong, nothing is left that looks like an environment, and the next try works.
func TestInitFails(t *testing.T) {
	data := t.TempDir()
	boom := errors.New("the key was not touched")
	const signer = "'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'"
	for name, c := range map[string]struct {
		want  problem.Reason
		spoil func(*server.InitOptions)
	}{
		"nobody signs": {problem.ReasonInternal, func(o *server.InitOptions) {
			o.Sign = func(context.Context, string, string) (string, string, error) { return "", "", boom }
		}},
		"a stranger signs": {problem.ReasonSignature, func(o *server.InitOptions) {
			o.Sign = func(context.Context, string, string) (string, string, error) { return "mallory", "x", nil }
		}},
		"a bundle that does not compile": {problem.ReasonBundleInvalid, func(o *server.InitOptions) { o.Files["x.yaml"] = []byte("kind: Nothing\n") }},
		"a production environment with a key in a file": {problem.ReasonDevelopmentOnly, func(o *server.InitOptions) {
			o.Files["environment.yaml"] = bytes.Replace(o.Files["environment.yaml"], []byte("class: development\n  approvals:\n    required: 0"), []byte("class: production\n  agents: {signers: ["+signer+"]}\n  approvals:\n    required: 1"), 1)
		}},
		"an unknown holder": {problem.ReasonInvalid, func(o *server.InitOptions) { o.Holder = config.RootHolder{Kind: "tea"} }},
	} {
		t.Run(name, func(t *testing.T) {
			o := founding(t, data)
			c.spoil(&o)
			if _, err := server.Init(t.Context(), o); err == nil || problem.As(err).Reason != c.want {
				t.Fatalf("got %v, want %s", err, c.want)
			}
			left, err := os.ReadDir(data)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range left {
				if d.IsDir() {
					t.Errorf("%s is left", d.Name())
				}
			}
		})
	}
	if _, err := server.Init(t.Context(), founding(t, data)); err != nil {
		t.Fatal(err)
	}
}

// A panic stands for a crash at the worst moment: everything is made, and nothing has its name yet.
func TestInitInterrupted(t *testing.T) {
	data := t.TempDir()
	o := founding(t, data)
	o.Sign = func(context.Context, string, string) (string, string, error) { panic("power cut") }
	func() {
		defer func() { _ = recover() }()
		_, _ = server.Init(t.Context(), o)
	}()
	if _, err := os.Stat(filepath.Join(data, ".init-founded", server.RootKeyFile)); err != nil {
		t.Fatalf("the crash left nothing, so this tests nothing: %v", err)
	}
	s, err := server.New(config.Server{Data: data}, server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(t.Context()); err == nil || !strings.Contains(problem.As(err).WayOut(), "bailment init") {
		t.Fatalf("half an environment was served: %v", err)
	}
	if _, err := server.Init(t.Context(), founding(t, data)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(data, ".init-founded")); !os.IsNotExist(err) {
		t.Fatalf("the interrupted one is still there: %v", err)
	}
}

func TestInitIsAloneAndCareful(t *testing.T) {
	data := t.TempDir()
	f, err := os.OpenFile(filepath.Join(data, ".init.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Init(t.Context(), founding(t, data)); !problem.Is(err, problem.ReasonConflict) {
		t.Fatalf("two at a time: %v", err)
	}
	f.Close()
	if err := os.MkdirAll(filepath.Join(data, "founded", "somebody's"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Init(t.Context(), founding(t, data)); !problem.Is(err, problem.ReasonExists) {
		t.Fatalf("founded over somebody's files: %v", err)
	}
	var bundle policy.Files
	if _, err := server.Init(t.Context(), server.InitOptions{Data: data, Files: bundle}); !problem.Is(err, problem.ReasonBundleInvalid) {
		t.Fatalf("founded without a bundle: %v", err)
	}
}
