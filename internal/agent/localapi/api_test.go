package localapi_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/problem"
)

const good = `{"exe":{"path":"/usr/bin/app","sha256":"` + "abababababababababababababababababababababababababababababababab" + `"},"workload":"/workload/pay","secrets":[{"name":"db/password"},{"name":"db/password","purpose":"migrate"}],"receipts":true}`

func TestParseOpen(t *testing.T) {
	r, err := localapi.ParseOpen([]byte(good))
	if err != nil || r.Secrets[0].Purpose != "runtime" || r.Secrets[1].Purpose != "migrate" || !r.Receipts {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, text := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "text": `"x"`, "number": "1", "twice": good + good, "trailing": good + " x",
		"letter case":      strings.Replace(good, `"exe"`, `"EXE"`, 1),
		"unknown key":      strings.Replace(good, `"receipts"`, `"root"`, 1),
		"key twice":        strings.Replace(good, `"receipts":true`, `"receipts":true,"receipts":false`, 1),
		"inner key twice":  strings.Replace(good, `"purpose":"migrate"`, `"purpose":"migrate","purpose":"x"`, 1),
		"null inside":      strings.Replace(good, `true`, `null`, 1),
		"relative exe":     strings.Replace(good, `/usr/bin`, `usr/bin`, 1),
		"no exe":           `{"secrets":[]}`,
		"escape in exe":    strings.Replace(good, `/usr/bin/app`, `/usr/\u001b[2J`, 1),
		"short digest":     strings.Replace(good, `abab`, `ab`, 1),
		"upper digest":     strings.Replace(good, `abab`, `ABab`, 1),
		"a node":           strings.Replace(good, `/workload/pay`, `/node/x`, 1),
		"workload with ..": strings.Replace(good, `/workload/pay`, `/workload/../node/x`, 1),
		"bad secret":       strings.Replace(good, `db/password`, `/db//password`, 1),
		"same twice":       strings.Replace(good, `migrate`, `runtime`, 1),
		"bad purpose":      strings.Replace(good, `migrate`, `Mi grate`, 1),
		"too many":         `{"exe":{"path":"/x"},"secrets":[` + strings.TrimSuffix(strings.Repeat(`{"name":"a"},`, 65), ",") + `]}`,
		"lease alone":      strings.Replace(good, `"name":"db/password"}`, `"name":"db/password","lease":7}`, 1),
		"lease of one":     strings.Replace(good, `"name":"db/password"}`, `"name":"db/password","lease":7,"version":1}`, 1),
		"lease of another": strings.Replace(good, `"migrate"}`, `"migrate","lease":7,"version":1}`, 1),
		"negative lease":   `{"exe":{"path":"/x"},"secrets":[{"name":"a","lease":-7,"version":1}]}`,
		"deep":             strings.Repeat(`{"exe":`, 100),
	} {
		if _, err := localapi.ParseOpen([]byte(text)); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := localapi.ParseOpen(make([]byte, localapi.MaxRequest+1)); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzParseOpen(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"exe":{"path":"/x"}}`))
	f.Add([]byte(`{"exe":{"path":"/x"},"secrets":[{"name":"a","lease":18446744073709551615,"version":2}]}`))
	f.Add([]byte(`{"exe":{"path":"/x"},"secrets":[{"name":"a","purpose":"b"}],"exe":{}}`))
	f.Add([]byte(`{"run":"00112233445566778899aabbccddeeff"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := localapi.ParseClose(text); err == nil && len(c.Run) != 32 {
			t.Fatalf("%q", c.Run)
		}
		r, err := localapi.ParseOpen(text)
		if err != nil {
			if p := problem.As(err); p.Kind != problem.Invalid {
				t.Fatalf("%v", err)
			}
			return
		}
		if len(r.Secrets) > localapi.MaxSecrets || r.Exe.Path[0] != '/' {
			t.Fatalf("%+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		s, err := localapi.ParseOpen(again)
		if err != nil {
			// Re-encoding escapes what need not be, and defaults are filled in: it may only become too large.
			if !problem.Is(err, problem.ReasonTooLarge) {
				t.Fatalf("%s: %v", again, err)
			}
			return
		}
		if len(r.Secrets) == 0 {
			r.Secrets, s.Secrets = nil, nil
		}
		if !reflect.DeepEqual(r, s) {
			t.Fatalf("%+v became %+v", r, s)
		}
	})
}

// One descriptor is kept, others are closed: nobody can fill the agent's table.
func TestDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := localapi.Listen(path, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn := in.(*localapi.Conn)
	if conn.Peer.UID != uint32(os.Getuid()) || conn.Peer.PID != int32(os.Getpid()) {
		t.Errorf("%+v", conn.Peer)
	}
	groups, err := os.Getgroups()
	if err != nil || len(groups) != len(conn.Peer.Groups) {
		t.Errorf("groups %v, the kernel says %v", groups, conn.Peer.Groups)
	}
	before := descriptors(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	buf := make([]byte, 8)
	for range 50 {
		if _, _, err := out.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(fd, fd, fd), nil); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || n != 1 {
			t.Fatal(n, err)
		}
	}
	if n := descriptors(t) - before; n > 2 {
		t.Errorf("%d descriptors more after 150 were sent", n)
	}
	f := conn.File()
	if f == nil || conn.File() != nil {
		t.Error("want exactly one descriptor")
	}
	f.Close()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := localapi.Listen(path, 1, 1); err == nil {
		t.Error("a socket that answers was replaced")
	}
}

// Who can't ask is told which socket it was, and what helps: a request can't be corrected that never was one.
func TestUnanswered(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for socket, want := range map[string]problem.Reason{
		filepath.Join(dir, "missing"): problem.ReasonNoAgent, stale: problem.ReasonNoAgent, filepath.Join(dir, strings.Repeat("s", 108)): problem.ReasonInvalid,
	} {
		_, err := (&localapi.Client{Socket: socket}).Status(t.Context())
		if p := problem.As(err); p.Reason != want || !strings.Contains(p.Message, socket) || p.WayOut() == problem.ReasonInvalid.Fix() {
			t.Errorf("%s: %v; try: %s", socket, err, p.WayOut())
		}
	}
	p := localapi.Unanswered("/run/x/agent.sock", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.EACCES)})
	if p.Reason != problem.ReasonPermissions || !strings.Contains(p.Message, "/run/x/agent.sock") || !strings.Contains(p.WayOut(), "chmod a+x /run/x") {
		t.Errorf("%v; try: %s", p, p.WayOut())
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestConnectionLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := localapi.Listen(path, 10, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if _, err := conns[2].Read(make([]byte, 1)); err == nil {
		t.Error("a third connection of one user was kept")
	}
	first := <-accepted
	first.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-accepted
	if (<-accepted) == nil {
		t.Error("no room after one left")
	}
	// What a dead agent left behind is replaced; what is no socket is not.
	stale := filepath.Join(t.TempDir(), "stale")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	again, err := localapi.Listen(stale, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localapi.Listen(stale, 1, 1); err == nil {
		t.Error("a file was replaced")
	}
}
