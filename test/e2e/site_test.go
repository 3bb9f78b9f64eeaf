package e2e

import (
	"bytes"
	"context"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/keyring/file"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

var builder sitetest.Builder

func TestMain(m *testing.M) { os.Exit(builder.Main(m)) }

func newSite(t testing.TB, o site.Options) *sitetest.Site {
	t.Helper()
	o.Bin = builder.Binary(t, "")
	return sitetest.New(t, o)
}

// inside opens the environment in this process, by a clock of its own, while no server runs on it. It is
// how a test comes by what only another time or another copy of the ledger gives.
func inside(t testing.TB, s *site.Site, now func() time.Time, do func(context.Context, *control.Environment)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	holder, err := file.Open(filepath.Join(s.Dir(), "root.key"))
	must(err)
	src, err := seal.NewSource(nil)
	must(err)
	env, err := control.Open(t.Context(), control.Config{
		OpenStore: func(ctx context.Context) (store.Store, error) { return sqlite.Open(ctx, s.Dir()) },
		Holder:    holder, Source: src, Methods: methods.All(), Now: now, ServerID: "s1",
	})
	must(err)
	do(t.Context(), env)
	must(env.Close(context.Background()))
}

// entries reads the whole ledger as an auditor.
func entries(t testing.TB, c *client.Client) (decoded []*state.Entry, bodies [][]byte) {
	t.Helper()
	for {
		page, err := c.Ledger.GetEntries(t.Context(), &bailmentv1.GetEntriesRequest{From: uint64(len(bodies)), Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Entries) == 0 {
			return decoded, bodies
		}
		for _, e := range page.Entries {
			x, err := state.Decode(e.Body)
			if err != nil {
				t.Fatal(err)
			}
			decoded, bodies = append(decoded, x), append(bodies, e.Body)
		}
	}
}

// command is one run of the command line as its user sees it.
type command struct {
	stdout, stderr string
	exit           int
}

// cli runs the binary with an environment of its own.
func cli(t testing.TB, s *site.Site, home, stdin string, args ...string) command {
	t.Helper()
	boot, err := s.Bootstrap()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), s.Bin, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "BAILMENT_HOME=" + home, "BAILMENT_BOOTSTRAP=" + boot, "BAILMENT_AGENT=" + filepath.Join(home, "agent.sock"), "GORACE=atexit_sleep_ms=0"}
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return command{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// get reads a page of the operations listener.
func get(t testing.TB, s *site.Site, path string) string {
	t.Helper()
	resp, err := http.Get("http://" + s.Ops + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// healthy: nothing that must not be was counted.
func healthy(t testing.TB, s *site.Site) {
	t.Helper()
	seen := 0
	for line := range strings.Lines(get(t, s, "/metrics")) {
		for _, name := range []string{"bailment_invariant_violations_total{", "bailment_panics_total ", "bailment_ledger_panics_total{"} {
			if strings.HasPrefix(line, name) {
				seen++
				if !strings.HasSuffix(line, " 0\n") {
					t.Errorf("%s", line)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d metrics were looked at", seen)
	}
}

// from makes connections of a loopback address, which is a source of its own to the server.
func from(ip string) func(context.Context, string, string) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 5 * time.Second}
	return d.DialContext
}

// dialFrom is Dial from another source.
func dialFrom(t testing.TB, s *site.Site, ip string, session *client.Session) *client.Client {
	t.Helper()
	o := client.Options{Attempts: 1, CallTimeout: 20 * time.Second, Dialer: from(ip)}
	if session != nil {
		o.Credentials = session.Credentials()
	}
	c, err := client.Dial(s.Trust, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// copyTree copies the regular files of a tree: an agent's has a socket.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
