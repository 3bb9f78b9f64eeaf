package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/localapi"
	"github.com/bailment/bailment/internal/agent/workload"
	"github.com/bailment/bailment/internal/problem"
)

// program makes a file and opens it.
func program(t *testing.T, path, content string) *os.File {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A path is told only if it leads the agent to the very file that the descriptor is open on. The digest is told in any case.
func TestPathIsConfirmed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "payments-db")
	m := newMeasurer()
	f := program(t, path, "one")
	look := func() executable {
		t.Helper()
		e, err := m.measure(t.Context(), 1000, f, localapi.Exe{Path: path})
		if err != nil || e.source != sourceMeasured || len(e.digest) != 64 {
			t.Fatalf("%+v, %v", e, err)
		}
		return e
	}
	if e := look(); e.path != path {
		t.Errorf("the path of a file where it is: %q", e.path)
	}
	program(t, filepath.Join(dir, "new"), "two")
	if err := os.Rename(filepath.Join(dir, "new"), path); err != nil {
		t.Fatal(err)
	}
	if e := look(); e.path != "" {
		t.Errorf("the path of a file that was replaced: %q", e.path)
	}
	// The kernel calls it "… (deleted)" now: somebody may have a file of that name.
	program(t, path+" (deleted)", "one")
	if e := look(); e.path != "" {
		t.Errorf("the path of a deleted file: %q", e.path)
	}
	// Who says it himself is not believed.
	e, err := m.measure(t.Context(), 1000, nil, localapi.Exe{Path: path, SHA256: look().digest})
	if err != nil || e != (executable{path, look().digest, sourceClaimed}) {
		t.Errorf("%+v, %v", e, err)
	}
}

// A large file is refused before anything is read, however little of it there is on the disk.
func TestMeasuringLargeFiles(t *testing.T) {
	f := program(t, filepath.Join(t.TempDir(), "sparse"), "")
	if err := os.Truncate(f.Name(), maxExecutable+1); err != nil {
		t.Fatal(err)
	}
	m := newMeasurer()
	_, err := m.measure(t.Context(), 1000, f, localapi.Exe{Path: f.Name()})
	if p := problem.As(err); p.Reason != problem.ReasonInvalid || p.WayOut() == problem.ReasonInvalid.Fix() {
		t.Errorf("%v", err)
	}
	if len(m.all) != 0 || len(m.users) != 0 {
		t.Error("a turn was taken")
	}
}

// A user waits for his own measurements, and for nobody else's: also if a file system lets them hang.
func TestMeasuringTakesTurns(t *testing.T) {
	m := newMeasurer()
	m.all = make(chan struct{}, 1)
	leave, err := m.enter(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	f := program(t, filepath.Join(t.TempDir(), "app"), "x")
	gone, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range 20 {
		waiting.Go(func() {
			if _, err := m.measure(gone, 1000, f, localapi.Exe{Path: f.Name()}); !errors.Is(err, context.Canceled) {
				t.Errorf("a second measurement of one user: %v", err)
			}
		})
	}
	for {
		m.mu.Lock()
		n := m.users[1000].users
		m.mu.Unlock()
		if n == 21 {
			break
		}
	}
	if _, err := m.measure(t.Context(), 1001, f, localapi.Exe{Path: f.Name()}); err != nil {
		t.Errorf("another user: %v", err)
	}
	cancel()
	waiting.Wait()
	leave()
	if _, err := m.measure(t.Context(), 1000, f, localapi.Exe{Path: f.Name()}); err != nil {
		t.Errorf("the user, later: %v", err)
	}
	// All together.
	m.all <- struct{}{}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.measure(short, 1002, f, localapi.Exe{Path: f.Name()}); !problem.Is(err, problem.ReasonOverloaded) {
		t.Errorf("while all measure: %v", err)
	}
	if len(m.users) != 0 {
		t.Errorf("%d users are left", len(m.users))
	}
}

// What is remembered is what only root can have changed, and never for a file that changed since.
func TestRememberedDigests(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: what belongs to somebody else can't be made, so only what must not be remembered is looked at")
	}
	m := newMeasurer()
	f := program(t, filepath.Join(t.TempDir(), "app"), "one")
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		uid  uint32
		mode uint32
		want bool
	}{
		"root's own":          {0, unix.S_IFREG | 0o755, true},
		"another user's":      {1000, unix.S_IFREG | 0o755, false},
		"writable by a group": {0, unix.S_IFREG | 0o775, false},
		"writable by all":     {0, unix.S_IFREG | 0o757, false},
	} {
		s := st
		s.Uid, s.Mode = c.uid, c.mode
		if got := onlyRoots(int(f.Fd()), &s); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	// It was changed just now: its times may not show the next change.
	if _, err := m.measure(t.Context(), 1000, f, localapi.Exe{Path: f.Name()}); err != nil || len(m.known) != 0 {
		t.Errorf("%d remembered, %v", len(m.known), err)
	}
	state := stateOf(&st)
	m.keep(state, "digest")
	if d, ok := m.recall(state); !ok || d != "digest" {
		t.Errorf("%q, %v", d, ok)
	}
	for name, change := range map[string]func(*fileState){
		"size": func(s *fileState) { s.size++ }, "ctime": func(s *fileState) { s.ctime.Nsec++ }, "mtime": func(s *fileState) { s.mtime.Nsec++ },
		"inode": func(s *fileState) { s.ino++ }, "device": func(s *fileState) { s.dev++ },
	} {
		other := state
		change(&other)
		if _, ok := m.recall(other); ok {
			t.Errorf("recalled with another %s", name)
		}
	}
	m.known[state] = knownDigest{"digest", time.Now().Add(-time.Second)}
	if _, ok := m.recall(state); ok {
		t.Error("recalled after its time")
	}
	for i := range 3 * maxDigest {
		state.ino = uint64(i)
		m.keep(state, "")
	}
	if len(m.known) > maxDigest {
		t.Errorf("%d remembered", len(m.known))
	}
}

// Of a process the file that it executes is measured: what isn't to be known of it is no refusal, what changes is.
func TestMeasuringProcesses(t *testing.T) {
	m := newMeasurer()
	dir := t.TempDir()
	path := filepath.Join(dir, "app")
	f := program(t, path, "one")
	opens := func(path string) func(int) (*os.File, error) {
		return func(flags int) (*os.File, error) { return os.OpenFile(path, flags, 0) }
	}
	e, err := m.measureProcess(t.Context(), 1000, opens(f.Name()))
	if err != nil || e.Path != f.Name() || e.Source != workload.SourceMeasured || e.SHA256 != fmt.Sprintf("%x", sha256.Sum256([]byte("one"))) {
		t.Errorf("%+v, %v", e, err)
	}
	if err := os.Truncate(f.Name(), maxExecutable+1); err != nil {
		t.Fatal(err)
	}
	if e, err := m.measureProcess(t.Context(), 1000, opens(f.Name())); err != nil || e != (workload.Executable{Source: workload.SourceUnavailable}) {
		t.Errorf("a large one: %+v, %v", e, err)
	}
	if _, err := m.measureProcess(t.Context(), 1000, opens(dir)); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("a directory: %v", err)
	}
	var opened []*os.File
	if _, err := m.measureProcess(t.Context(), 1000, func(flags int) (*os.File, error) {
		f, err := os.OpenFile(path, flags, 0)
		opened = append(opened, f)
		return f, err
	}); err != nil || len(opened) != 2 {
		t.Errorf("opened %d times, %v", len(opened), err)
	}
	for _, f := range opened {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a file stays open: %v", err)
		}
	}
	denied := func(int) (*os.File, error) { return nil, unix.EACCES }
	if _, err := m.measureProcess(t.Context(), 1000, denied); !errors.Is(err, unix.EACCES) {
		t.Errorf("denied: %v", err)
	}
	// A file system that lets the opening hang has its own user wait, and nobody else.
	stuck := make(chan struct{})
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	m = newMeasurer()
	m.all = make(chan struct{}, 1)
	if _, err := m.measureProcess(short, 1000, func(flags int) (*os.File, error) {
		if flags&unix.O_PATH != 0 {
			return os.OpenFile(f.Name(), flags, 0)
		}
		<-stuck
		return nil, unix.EIO
	}); !problem.Is(err, problem.ReasonOverloaded) {
		t.Errorf("stuck: %v", err)
	}
	again, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.measureProcess(again, 1000, opens(f.Name())); !problem.Is(err, problem.ReasonOverloaded) {
		t.Errorf("the same user: %v", err)
	}
	if _, err := m.measureProcess(t.Context(), 1001, opens(f.Name())); err != nil {
		t.Errorf("another user: %v", err)
	}
	close(stuck)
	if _, err := m.measureProcess(t.Context(), 1000, opens(f.Name())); err != nil {
		t.Errorf("the user, later: %v", err)
	}
}

// BenchmarkMeasureProcess is what a process costs whose executable was measured before.
func BenchmarkMeasureProcess(b *testing.B) {
	m := newMeasurer()
	path, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.measureProcess(b.Context(), 1000, func(flags int) (*os.File, error) { return os.OpenFile(path, flags, 0) }); err != nil {
			b.Fatal(err)
		}
	}
}
