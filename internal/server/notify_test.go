package server_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ledger"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/state"
)

// blocked stops the ledger's committer until the returned function is called.
func blocked(t *testing.T, h *servertest.House) (release func()) {
	t.Helper()
	in, out := make(chan struct{}), make(chan struct{})
	go func() {
		_, _, _ = ledger.Commit(context.Background(), h.Env().Ledger(), func(*state.State, ledger.At) (ledger.Draft, struct{}, error) {
			close(in)
			<-out
			return ledger.Draft{}, struct{}{}, nil
		})
	}()
	<-in
	release = sync.OnceFunc(func() { close(out) })
	t.Cleanup(release)
	return release
}

// systemd is what a service is told by the environment, and a socket that hears what it says (sd_notify(3)).
func systemd(t *testing.T, watchdog time.Duration) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	return c
}

func hear(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 4096)
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// systemd hears that the server answers, that it lives as long as its ledger does, and that it stops.
func TestNotify(t *testing.T) {
	c := systemd(t, 150*time.Millisecond)
	var log lockedBuffer
	h := servertest.Start(t, servertest.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if got := hear(t, c); got != "READY=1" {
		t.Fatalf("first it said %q", got)
	}
	began := time.Now()
	for range 4 {
		if got := hear(t, c); got != "WATCHDOG=1" {
			t.Fatalf("it said %q", got)
		}
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("four signs of life in %s, want one in 50 ms", took)
	}
	// A ledger that does not answer is no life, whatever else works.
	release := blocked(t, h)
	silence := func() int { return strings.Count(log.String(), "a ledger does not answer") }
	within(t, "it notices", func() bool { return silence() >= 1 })
	for pending := true; pending; { // what was said before
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Read(make([]byte, 100))
		pending = err == nil
	}
	seen := silence()
	within(t, "it goes on to notice", func() bool { return silence() >= seen+3 })
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("it said something (%d bytes) while its ledger did not answer", n)
	}
	release()
	if got := hear(t, c); got != "WATCHDOG=1" {
		t.Errorf("it said %q", got)
	}
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	last := ""
	for last != "STOPPING=1" {
		if last = hear(t, c); last != "STOPPING=1" && last != "WATCHDOG=1" {
			t.Fatalf("it said %q", last)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("it said something (%d bytes) after its end", n)
	}
}

// Without a watchdog, or with one that is another process's, there is nothing to feed.
func TestNotifyWithoutWatchdog(t *testing.T) {
	for name, set := range map[string]func(t *testing.T){
		"none":               func(t *testing.T) { t.Setenv("WATCHDOG_USEC", "") },
		"of another process": func(t *testing.T) { t.Setenv("WATCHDOG_PID", "1") },
		"not a time":         func(t *testing.T) { t.Setenv("WATCHDOG_USEC", "soon") },
	} {
		t.Run(name, func(t *testing.T) {
			c := systemd(t, 30*time.Millisecond)
			set(t)
			h := servertest.Start(t, servertest.Options{})
			if got := hear(t, c); got != "READY=1" {
				t.Fatalf("first it said %q", got)
			}
			if err := h.Stop(); err != nil {
				t.Fatal(err)
			}
			if got := hear(t, c); got != "STOPPING=1" {
				t.Fatalf("then it said %q", got)
			}
		})
	}
}
