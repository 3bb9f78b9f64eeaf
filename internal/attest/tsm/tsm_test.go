package tsm

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

// fake is configfs-tsm as the kernel documents it: a new directory has its files at once, inblob can only be written, outblob only be
// read, and removing the directory removes all.
type fake struct {
	mu     sync.Mutex
	blobs  map[string][]byte
	aux    bool
	failAt string // the operation that fails
	err    error
	left   int
}

func (f *fake) fail(op string) error {
	if op == f.failAt {
		return f.err
	}
	return nil
}

func (f *fake) Mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("mkdir"); err != nil {
		return err
	}
	if _, ok := f.blobs[name]; ok {
		return fs.ErrExist
	}
	f.blobs[name] = nil
	f.left++
	return nil
}

func (f *fake) Write(name string, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, ok := strings.CutSuffix(name, "/inblob")
	if _, there := f.blobs[dir]; !ok || !there {
		return fs.ErrNotExist
	}
	f.blobs[dir] = bytes.Clone(data)
	return f.fail("write")
}

func (f *fake) Read(name string, _ int) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, file, _ := strings.Cut(name, "/")
	in, there := f.blobs[dir]
	if !there || file == "auxblob" && !f.aux {
		return nil, fs.ErrNotExist
	}
	if err := f.fail(file); err != nil {
		return nil, err
	}
	return append([]byte(file+":"), in...), nil
}

func (f *fake) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.blobs, name)
	f.left--
	return f.fail("remove")
}

func TestReport(t *testing.T) {
	for _, aux := range []bool{false, true} {
		f := &fake{blobs: map[string][]byte{}, aux: aux}
		folder := &Folder{f}
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				data := [DataSize]byte{byte(i)}
				r, err := folder.Report(t.Context(), data)
				if err != nil || string(r.Out) != "outblob:"+string(data[:]) || (r.Aux != nil) != aux || !strings.HasPrefix(r.Provider, "provider:") {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
		wg.Wait()
		if f.left != 0 || len(f.blobs) != 0 {
			t.Errorf("%d questions are left", f.left)
		}
	}
}

func TestReportFails(t *testing.T) {
	for _, op := range []string{"mkdir", "write", "outblob", "auxblob", "provider", "remove"} {
		for err, want := range map[error]problem.Reason{fs.ErrPermission: problem.ReasonPermissions, errors.New("EIO"): problem.ReasonUnsupported} {
			f := &fake{blobs: map[string][]byte{}, aux: true, failAt: op, err: err}
			r, got := (&Folder{f}).Report(t.Context(), [DataSize]byte{})
			if !problem.Is(got, want) || r.Out != nil || f.left != 0 {
				t.Errorf("%s fails: %+v, %v, %d left", op, r, got, f.left)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := &fake{blobs: map[string][]byte{}}
	if _, err := (&Folder{f}).Report(ctx, [DataSize]byte{}); !problem.Is(err, problem.ReasonCanceled) || f.left != 0 {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "canary")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(dir, "canary-5b1e")} {
		if _, err := Open(path); !problem.Is(err, problem.ReasonUnsupported) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// The operations on files, on an ordinary directory: what differs from configfs is that its files must be made first.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	d := disk(dir)
	if err := d.Mkdir("a"); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("a/inblob", []byte("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made: %v", err)
	}
	path := filepath.Join(dir, "a", "inblob")
	if err := os.WriteFile(path, []byte("12345678"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Write("a/inblob", []byte("abcd")); err != nil {
		t.Fatal(err)
	}
	if data, err := d.Read("a/inblob", 8); err != nil || string(data) != "abcd5678" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := d.Read("a/inblob", 7); err == nil {
		t.Error("more was read than wanted")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove("a"); err != nil {
		t.Error(err)
	}
}
