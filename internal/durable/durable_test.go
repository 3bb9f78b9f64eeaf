package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	for _, c := range []struct {
		data string
		perm fs.FileMode
	}{{"one", 0o600}, {"", 0o600}, {"two, longer", 0o644}, {"3", 0o666}} {
		if err := WriteFile(path, []byte(c.data), c.perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.data {
			t.Fatalf("read %q, %v; want %q", got, err, c.data)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != c.perm {
			t.Fatalf("mode %v, %v; want %v", st.Mode(), err, c.perm)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestWriteFileFailureLeavesTheOldFileAndNoOther(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub")
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("x"), 0o600); err == nil { // a directory can't be replaced
		t.Fatal("replaced a directory")
	}
	if err := WriteFile(filepath.Join(dir, "absent", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no directory: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestWriteFileReplacesALinkInsteadOfFollowingIt(t *testing.T) {
	dir := t.TempDir()
	victim, link := filepath.Join(dir, "victim"), filepath.Join(dir, "link")
	if err := os.WriteFile(victim, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(victim); string(got) != "old" {
		t.Fatalf("the link was followed: %q", got)
	}
}

func TestWriteFileIsSeenWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<15)
	if err := WriteFile(path, a, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(done)
		for i := range 50 {
			data := a
			if i%2 == 0 {
				data = b
			}
			if err := WriteFile(path, data, 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, a) && !bytes.Equal(got, b) {
			t.Fatalf("saw a part: %d bytes, %v", len(got), err)
		}
	}
	wg.Wait()
}

func TestCreateExclusive(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		wg.Go(func() {
			err := CreateExclusive(path, fmt.Append(nil, i), 0o600)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, fs.ErrExist) {
				t.Errorf("loser: %v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Fatalf("%d calls made the file", won)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	if err := CreateExclusive(dangling, nil, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("dangling link: %v", err)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := MkdirAll(deep, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(deep)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"file", "file/x"} {
		if err := MkdirAll(filepath.Join(dir, bad), 0o700); err == nil {
			t.Errorf("made %s", bad)
		}
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := WriteFile(from, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rename(from, to); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 1 || got[0] != "b" {
		t.Fatalf("names %v", got)
	}
	if err := Rename(to, filepath.Join(t.TempDir(), "b")); err == nil {
		t.Fatal("renamed across directories")
	}
}

// The kernel's view of the order: contents synced, then the name, then the directory. It runs
// this test binary again under strace, because nothing else can see a missing fsync.
func TestOrderOfSyscalls(t *testing.T) {
	if dir := os.Getenv("DURABLE_TEST_DIR"); dir != "" {
		if err := WriteFile(filepath.Join(dir, "w"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CreateExclusive(filepath.Join(dir, "c"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := MkdirAll(filepath.Join(dir, "d", "e"), 0o700); err != nil {
			t.Fatal(err)
		}
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("needs strace: run scripts/deps")
	}
	dir := t.TempDir()
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(strace, "-f", "-y", "-o", log,
		"-e", "trace=write,fsync,rename,renameat,renameat2,link,linkat,mkdir,mkdirat",
		os.Args[0], "-test.run", "^TestOrderOfSyscalls$")
	cmd.Env = append(os.Environ(), "DURABLE_TEST_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("strace can't trace here: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	name := regexp.MustCompile(`(write|fsync|rename|link|mkdir)(?:at2?)?\(`)
	for line := range strings.Lines(string(raw)) {
		m := name.FindStringSubmatch(line)
		if m == nil || !strings.Contains(line, dir) {
			continue
		}
		what := m[1]
		if what == "fsync" && !strings.Contains(line, ".tmp-") {
			what = "fsyncdir"
		}
		got = append(got, what)
	}
	want := "write fsync rename fsyncdir write fsync link fsyncdir mkdir fsyncdir mkdir fsyncdir"
	if strings.Join(got, " ") != want {
		t.Fatalf("order:\n got %s\nwant %s\n%s", strings.Join(got, " "), want, raw)
	}
}
