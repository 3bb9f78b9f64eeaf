package faults

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/test/site/sitetest"
	"github.com/bailment/bailment/verify"
)

func verifiers(t testing.TB, trust *client.Trust) []note.Verifier {
	t.Helper()
	var out []note.Verifier
	for _, k := range trust.CheckpointKeys {
		v, err := verify.ParseVerifier(k)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// syscalls of a trace that matter: what is written to the log, what is synced, what is answered.
var (
	walWrite  = regexp.MustCompile(`pwrite64\(\d+<[^>]*store\.db-wal>.*= (-?\d+)`)
	walSync   = regexp.MustCompile(`f(?:data)?sync\(\d+<[^>]*store\.db-wal>\)\s*= (-?\d+)`)
	sockWrite = regexp.MustCompile(`(?:write|sendto|writev|sendmsg)\(\d+<(?:TCP|socket):[^>]*>.*= (\d+)`)
	resumed   = regexp.MustCompile(`^(\d+) .*<\.\.\. (\w+) resumed>(.*)$`)
	cut       = regexp.MustCompile(`^(\d+) (.*) <unfinished \.\.\.>$`)
)

// event is one finished system call, in the order of finishing, except that an answer counts when it begins.
type event struct {
	kind string // write, sync, answer
	line string
}

// readTrace joins what strace split, and keeps what matters.
func readTrace(t testing.TB, path string) []event {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []event
	pending := map[string]string{}
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 1<<20), 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if m := cut.FindStringSubmatch(line); m != nil {
			pending[m[1]] = m[2]
			// An answer leaves when the call begins, not when it returns.
			if sockWrite.MatchString(m[2] + ") = 1") {
				out = append(out, event{"answer", line})
			}
			continue
		}
		begun := ""
		if m := resumed.FindStringSubmatch(line); m != nil {
			begun = pending[m[1]]
			delete(pending, m[1])
			line = m[1] + " " + begun + m[3]
		}
		switch {
		case walWrite.MatchString(line):
			out = append(out, event{"write", line})
		case walSync.MatchString(line):
			if strings.HasSuffix(line, "= 0") {
				out = append(out, event{"sync", line})
			}
		case begun == "" && sockWrite.MatchString(line):
			out = append(out, event{"answer", line})
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// early lists the answers that left before the writes since the last answer were synced, or without any.
func early(events []event) []string {
	var out []string
	wrote, dirty := false, false
	for _, e := range events {
		switch e.kind {
		case "write":
			wrote, dirty = true, true
		case "sync":
			dirty = false
		case "answer":
			if !wrote || dirty {
				out = append(out, e.line)
			}
			wrote = false
		}
	}
	return out
}

// traced runs one client in a closed loop against a traced server and returns the events of that loop.
func traced(t *testing.T, tags string) []event {
	t.Helper()
	s := newSite(t, tags, "")
	trace := filepath.Join(t.TempDir(), "trace")
	s.Start("strace", "-f", "-y", "-s", "0", "-e", "signal=none", "-e", "trace=pwrite64,fsync,fdatasync,write,writev,sendto,sendmsg", "-o", trace)
	s.Connect()
	admin := s.Dial(s.Login())
	put := func(i int) {
		_, err := admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: fmt.Sprintf("app/s%d", i%4), Value: []byte(sitetest.Random())})
		s.Check(err)
	}
	put(0) // the connection is up
	reader := s.Dial(s.Workload(admin, "n1"))
	_, err := reader.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: "app/s0"})
	s.Check(err)
	before := len(readTrace(t, trace))
	const loops = 60
	for i := range loops {
		put(i)
		_, err := reader.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: "app/s0"})
		s.Check(err)
	}
	// The last answer before the loop may be written down late: the loop begins with its first write.
	events := readTrace(t, trace)[before:]
	for len(events) > 0 && events[0].kind == "answer" {
		events = events[1:]
	}
	s.Kill()
	answers := 0
	for _, e := range events {
		if e.kind == "answer" {
			answers++
		}
	}
	if answers < 2*loops-1 {
		t.Fatalf("the trace has %d answers to %d requests: it does not show what it should", answers, 2*loops)
	}
	return events
}

// TestAnswersFollowSyncs: below the page cache, each acknowledgement's socket write comes after a
// successful sync of its batch.
func TestAnswersFollowSyncs(t *testing.T) {
	if bad := early(traced(t, "")); len(bad) > 0 {
		t.Fatalf("%d answers left before their batch was synced, the first:\n%s", len(bad), bad[0])
	}
}

// The planted builds must be caught by the very same test.
func TestPlantedBuildsAreCaught(t *testing.T) {
	for _, tags := range []string{"planted_nosync", "planted_earlyack"} {
		t.Run(tags, func(t *testing.T) {
			if bad := early(traced(t, tags)); len(bad) == 0 {
				t.Fatal("the test finds nothing wrong with it")
			}
		})
	}
}
