package server

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The watchdog is fed three times in its period, for as long as it runs.
func TestWatchdogPace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "30000000") // as in packaging/systemd
	synctest.Test(t, func(t *testing.T) {
		var s Server // serves no environment, so every ledger answers
		// heard are the signs that came; a mark of ours ends them, since there is no waiting for nothing.
		heard := func() int {
			mark, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer mark.Close()
			if _, err := mark.Write([]byte("mark")); err != nil {
				t.Fatal(err)
			}
			for n, b := 0, make([]byte, 100); ; n++ {
				k, err := c.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				switch text := string(b[:k]); {
				case text == "mark":
					return n
				case !strings.HasPrefix(text, "WATCHDOG=1") && (n > 0 || text != "READY=1"):
					t.Fatalf("it said %q", text)
				}
			}
		}
		stop := s.notifyReady(t.Context())
		synctest.Wait()
		if n := heard(); n != 1 {
			t.Errorf("%d signs at the start, want READY=1", n)
		}
		for range 5 {
			time.Sleep(time.Minute + time.Second)
			synctest.Wait()
			if n := heard(); n != 6 {
				t.Errorf("%d signs of life in a minute, want 6", n)
			}
			time.Sleep(9 * time.Second) // to the next one's, and not beyond
			synctest.Wait()
			if n := heard(); n != 1 {
				t.Errorf("%d signs of life in the rest of 70 s, want 1", n)
			}
		}
		stop()
		s.background.Wait()
		time.Sleep(time.Minute)
		if n := heard(); n != 0 {
			t.Errorf("%d signs of life after the end", n)
		}
	})
}
