// Package sitetest is package site for tests: the same site, whose failures are the test's, and which is
// gone when the test ends.
//
// Guaranteed: no server process and no binary outlives the test. Not guaranteed: a Site's methods may be
// called from the test's own goroutine only, since they end the test when they fail; what they return may
// be used anywhere.
//
// It is for the tests of this module only.
package sitetest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
)

// Builder builds the real binary once for each set of tags. The zero value is not usable: Main sets it up.
type Builder struct {
	mu    sync.Mutex
	dir   string
	built map[string]string
}

// Main is for a TestMain: it runs the tests and removes what was built for them.
func (b *Builder) Main(m *testing.M) int {
	var err error
	if b.dir, err = os.MkdirTemp("", "bailment-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	b.built = make(map[string]string)
	defer os.RemoveAll(b.dir)
	return m.Run()
}

// Binary is the path of the binary with these build tags.
func (b *Builder) Binary(t testing.TB, tags string) string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if bin, ok := b.built[tags]; ok {
		return bin
	}
	bin := filepath.Join(b.dir, "bailment-"+tags)
	cmd := exec.Command("go", "build", "-tags", tags, "-o", bin, "github.com/bailment/bailment/cmd/bailment")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building with tags %q: %v\n%s", tags, err, out)
	}
	b.built[tags] = bin
	return bin
}

// Site is a site of a test.
type Site struct {
	*site.Site
	T testing.TB
}

// New founds a site, in a temporary directory unless the options name one.
func New(t testing.TB, o site.Options) *Site {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	x, err := site.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Kill)
	return &Site{Site: x, T: t}
}

// Check ends the test if there is an error.
func (s *Site) Check(err error) {
	s.T.Helper()
	if err != nil {
		s.T.Fatal(err)
	}
}

// Start runs the server and waits until it is ready.
func (s *Site) Start(wrap ...string) {
	s.T.Helper()
	s.Check(s.Site.Start(wrap...))
}

// Stop stops the server gracefully.
func (s *Site) Stop() {
	s.T.Helper()
	s.Check(s.Site.Stop())
}

// Connect trusts the environment by its bootstrap string.
func (s *Site) Connect() {
	s.T.Helper()
	s.Check(s.Site.Connect(s.T.Context()))
}

// Dial makes a client, closed when the test ends. session may be nil.
func (s *Site) Dial(session *client.Session) *client.Client {
	s.T.Helper()
	c, err := s.Site.Dial(session)
	s.Check(err)
	s.T.Cleanup(c.Close)
	return c
}

// Login logs alice in.
func (s *Site) Login() *client.Session {
	s.T.Helper()
	return s.LoginAs("alice")
}

// LoginAs logs a person in.
func (s *Site) LoginAs(person string) *client.Session {
	s.T.Helper()
	x, err := s.Site.Login(s.T.Context(), person)
	s.Check(err)
	return x
}

// Token admits a machine of a name.
func (s *Site) Token(admin *client.Client, name string) jointoken.Token {
	s.T.Helper()
	x, err := s.Site.Token(s.T.Context(), admin, name)
	s.Check(err)
	return x
}

// Node admits and attests a machine.
func (s *Site) Node(admin *client.Client, name string) *client.Session {
	s.T.Helper()
	x, err := s.Site.Node(s.T.Context(), admin, name)
	s.Check(err)
	return x
}

// Workload admits a machine and attests a process on it as the workload api.
func (s *Site) Workload(admin *client.Client, node string) *client.Session {
	s.T.Helper()
	x, err := s.Site.Workload(s.T.Context(), s.Node(admin, node), "api")
	s.Check(err)
	return x
}

// Agent admits a machine, and starts its agent in a directory of its own. It returns when the agent is told of changes.
func (s *Site) Agent(admin *client.Client, name string) *site.Agent {
	s.T.Helper()
	a, err := s.NewAgent(s.T.TempDir(), s.Token(admin, name))
	s.Check(err)
	s.Check(a.Start())
	s.T.Cleanup(a.Kill)
	s.Check(a.Connected(s.T.Context()))
	return a
}

// Change brings a change of the bundle into force.
func (s *Site) Change(admin *client.Client, edit func(policy.Files)) {
	s.T.Helper()
	s.Check(s.Site.Change(s.T.Context(), admin, edit))
}

// Random is a value that nothing else has.
func Random() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return hex.EncodeToString(b)
}
