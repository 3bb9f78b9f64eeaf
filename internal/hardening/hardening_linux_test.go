package hardening

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const mode = "BAILMENT_TEST_HARDENING"

// TestMain is also the child process: its mode says what it does, its output what it saw.
func TestMain(m *testing.M) {
	switch os.Getenv(mode) {
	case "":
		os.Exit(m.Run())
	case "plain-abort":
		unix.Kill(unix.Getpid(), unix.SIGABRT)
		select {}
	case "abort":
		Harden(slog.New(slog.DiscardHandler))
		unix.Kill(unix.Getpid(), unix.SIGABRT)
		select {}
	case "limited":
		unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16})
		dropIPCLock()
		report()
	case "softly limited":
		unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 16, Max: unix.RLIM_INFINITY})
		dropIPCLock()
		report()
	default:
		report()
	}
}

func dropIPCLock() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	unix.Capget(&header, &data[0])
	data[0].Effective &^= 1 << unix.CAP_IPC_LOCK
	unix.Capset(&header, &data[0])
}

type childReport struct {
	Report
	Log                       string
	Dumpable                  int
	CoreLimit                 uint64
	CouldLift                 bool // the child was given no hard limit on locked memory
	Locked, Idle, Busy, After int  // KiB
}

// report hardens, grows and shrinks the heap as a server would, and prints what came of it.
func report() {
	var log bytes.Buffer
	r := childReport{Report: Harden(slog.New(slog.NewTextHandler(&log, nil)))}
	r.Log = log.String()
	r.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	r.CoreLimit = max(limit.Cur, limit.Max)
	unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit)
	r.CouldLift = limit.Max == unix.RLIM_INFINITY
	r.Idle, r.Locked = status("VmRSS:"), status("VmLck:")
	heap := make([][]byte, 100)
	for i := range heap {
		heap[i] = bytes.Repeat([]byte{1}, 1<<20)
	}
	r.Busy = status("VmRSS:")
	clear(heap)
	debug.FreeOSMemory()
	r.After = status("VmRSS:")
	json.NewEncoder(os.Stdout).Encode(r)
}

// status reads a line of /proc/self/status, through a descriptor: the process isn't dumpable any more.
func status(field string) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return -1
}

func child(t *testing.T, what string) childReport {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), mode+"="+what)
	out, err := cmd.Output()
	var r childReport
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatalf("%s: %v: %s", what, err, out)
	}
	return r
}

func TestHarden(t *testing.T) {
	r := child(t, "report")
	if !r.CoreDumpsOff || r.CoreDumpsWhy != "" || r.Dumpable != 0 || r.CoreLimit != 0 {
		t.Errorf("core dumps: %+v", r)
	}
	if r.MemoryLocked != (r.MemoryWhy == "") || r.MemoryLocked != (r.Locked > 0) || r.MemoryLocked != (r.Log == "") {
		t.Errorf("memory: %+v", r)
	}
	if r.Idle > 40<<10 {
		t.Errorf("idle at %d KiB", r.Idle)
	}
	// Locked memory must still go back to the system.
	if r.Busy < 100<<10 || r.After > r.Busy/2 && !raceDetector {
		t.Errorf("memory isn't returned: idle %d, busy %d, after %d KiB", r.Idle, r.Busy, r.After)
	}
	t.Logf("locked %v (%s), VmLck %d, idle %d, busy %d, after %d KiB", r.MemoryLocked, r.MemoryWhy, r.Locked, r.Idle, r.Busy, r.After)
}

// Under a hard limit the lock is left alone, with a reason, and the process goes on growing.
func TestHardenUnderALimit(t *testing.T) {
	r := child(t, "limited")
	if r.MemoryLocked || r.Locked != 0 || !strings.Contains(r.MemoryWhy, "64 KiB") || !strings.Contains(r.Log, "CAP_IPC_LOCK") {
		t.Errorf("%+v", r)
	}
	if !r.CoreDumpsOff || r.Busy < 100<<10 {
		t.Errorf("the rest isn't done: %+v", r)
	}
}

// A soft limit alone is lifted.
func TestHardenLiftsASoftLimit(t *testing.T) {
	r := child(t, "softly limited")
	// Where the test may not give its child such a limit, the child must see the hard one instead.
	if r.MemoryLocked != r.CouldLift || r.MemoryLocked != (r.Locked > 0) {
		t.Errorf("%+v", r)
	}
	t.Logf("the child could lift its limit: %v", r.CouldLift)
}

// TestNoCore shows that SIGABRT leaves no core file, in a setting where without Harden it does.
func TestNoCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	cores := func(what string) (status string, dumped bool, files []string) {
		dir := t.TempDir()
		cmd := exec.Command("/bin/sh", "-c", "ulimit -c unlimited 2>/dev/null; exec "+os.Args[0])
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), mode+"="+what, "GOTRACEBACK=crash")
		cmd.Stderr = io.Discard
		err := cmd.Run()
		ws, ok := cmd.ProcessState.Sys().(interface{ CoreDump() bool })
		if err == nil || !ok {
			t.Fatalf("%s: the child didn't die: %v", what, err)
		}
		files, _ = filepath.Glob(filepath.Join(dir, "*"))
		return cmd.ProcessState.String(), ws.CoreDump(), files
	}
	state, dumped, files := cores("abort")
	if dumped || len(files) != 0 || !strings.Contains(state, "abort") {
		t.Errorf("hardened: %s, dumped %v, files %v", state, dumped, files)
	}
	// The control: where the system writes cores to the working directory, the plain child has one.
	state, dumped, files = cores("plain-abort")
	if p := strings.TrimSpace(string(pattern)); !strings.ContainsAny(p, "|/") && p != "" {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Fatal(err)
		}
		if limit.Max > 0 && (!dumped || len(files) == 0) {
			t.Errorf("the control left no core, so the test shows nothing: %s, dumped %v, files %v", state, dumped, files)
		}
	}
	for _, f := range files {
		os.Remove(f) // half a GB of address space, though sparse
	}
}
