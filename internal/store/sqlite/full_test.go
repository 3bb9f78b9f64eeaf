package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/store"
)

// fillUp appends until it fails, checks the failure's class, and returns the acknowledged size.
func fillUp(t *testing.T, s *Store) uint64 {
	t.Helper()
	ctx := context.Background()
	for range 10000 {
		head := s.head
		err := s.Append(ctx, fill(head, 16, 4000))
		if err == nil {
			continue
		}
		if errors.Is(err, store.ErrFatal) { // a checkpoint between two batches met it first
			if !errors.Is(err, store.ErrFull) {
				t.Fatalf("full, and fatal with %v", err)
			}
			return head.Size
		}
		if !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrNotDone) == errors.Is(err, store.ErrUnknown) {
			t.Fatalf("full: %v", err)
		}
		if _, err := s.Head(ctx); !errors.Is(err, store.ErrFatal) || !errors.Is(err, store.ErrFull) {
			t.Fatalf("after it: %v", err)
		}
		return head.Size
	}
	t.Fatal("it never got full")
	return 0
}

// reopened checks what a full store holds once there is room again.
func reopened(t *testing.T, dir string, acked uint64) {
	t.Helper()
	s := mustOpen(t, dir)
	if n := checkCopy(t, s); n != acked && n != acked+16 {
		t.Fatalf("%d entries, acknowledged were %d", n, acked)
	}
	appendN(t, s, 3, 100)
	must(t, s.Close())
}

// A full file system: ENOSPC from a small tmpfs.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m,mode=0700"); err != nil {
		//arch:allow skip: without privileges nothing can be mounted; TestFileSizeLimit covers the class there
		t.Skipf("needs the right to mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	sub := filepath.Join(dir, "s")
	s := mustCreate(t, sub)
	acked := fillUp(t, s)
	s.Close()
	// Still full: it opens and serves what it has, or says why not.
	ballast := filepath.Join(dir, "ballast")
	must(t, writeAll(ballast))
	if s, err := Open(context.Background(), sub); err == nil {
		if err := s.Append(context.Background(), fill(s.head, 16, 30000)); !errors.Is(err, store.ErrFull) {
			t.Errorf("append to a full disk: %v", err)
		}
		s.Close()
	} else if !errors.Is(err, store.ErrFull) {
		t.Errorf("open on a full disk: %v", err)
	}
	must(t, os.Remove(ballast))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=9m"))
	reopened(t, sub, acked)
}

// writeAll fills what is left of the file system.
func writeAll(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 4096)); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// The process's file size limit: EFBIG, which SQLite hides behind an I/O error. In a process of its
// own, because the limit can't be raised again.
func TestFileSizeLimit(t *testing.T) {
	if dir := os.Getenv("SQLITE_TEST_LIMIT"); dir != "" {
		s := mustCreate(t, dir)
		must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 2 << 20, Max: 2 << 20}))
		fmt.Printf("acked=%d\n", fillUp(t, s))
		os.Exit(0) // without Close: the limit would be in its way
	}
	dir := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(os.Args[0], "-test.run", "^TestFileSizeLimit$", "-test.v")
	cmd.Env = append(os.Environ(), "SQLITE_TEST_LIMIT="+dir)
	out, err := cmd.CombinedOutput()
	i := bytes.Index(out, []byte("acked="))
	if err != nil || i < 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	var acked uint64
	_, err = fmt.Sscanf(string(out[i:]), "acked=%d", &acked)
	must(t, err)
	reopened(t, dir, acked)
}

// One batch, one sync: counted by the kernel. Skips only without strace.
func TestOneSyncPerBatch(t *testing.T) {
	const batches = 200
	if dir := os.Getenv("SQLITE_TEST_SYNCS"); dir != "" {
		s := mustOpen(t, dir)
		appendN(t, s, 1, 600) // the log's first frame also syncs its header
		must(t, os.WriteFile(filepath.Join(dir, "begin"), nil, 0o600))
		for range batches {
			b := fill(s.head, 64, 600)
			s.wal.pages = 0 // no checkpoint: it is not part of a batch
			must(t, s.Append(context.Background(), b))
		}
		must(t, os.WriteFile(filepath.Join(dir, "end"), nil, 0o600))
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("needs strace: run scripts/deps")
	}
	dir := filepath.Join(t.TempDir(), "s")
	must(t, mustCreate(t, dir).Close())
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(strace, "-f", "-y", "-o", log, "-e", "trace=fsync,fdatasync,sync_file_range,openat,pwrite64", os.Args[0], "-test.run", "^TestOneSyncPerBatch$")
	cmd.Env = append(os.Environ(), "SQLITE_TEST_SYNCS="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("strace can't trace here: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(log)
	must(t, err)
	_, after, ok1 := strings.Cut(string(raw), "/begin\"")
	during, _, ok2 := strings.Cut(after, "/end\"")
	if !ok1 || !ok2 {
		t.Fatal("the log has no marks")
	}
	syncs, writes := 0, 0
	for line := range strings.Lines(during) {
		switch {
		case strings.Contains(line, "sync") && strings.Contains(line, walName):
			syncs++
		case strings.Contains(line, "sync") && strings.Contains(line, dbName):
			t.Errorf("a batch synced the database: %s", line)
		case strings.Contains(line, "pwrite64("):
			writes++
		}
	}
	want := batches
	if syncPragma != "FULL" {
		want = 0
	}
	if syncs != want {
		t.Errorf("%d syncs of the log for %d batches", syncs, batches)
	}
	t.Logf("%d batches of 64 entries: %d syncs, %d writes", batches, syncs, writes)
}
