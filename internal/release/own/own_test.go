package own

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOwnIsThisProgram(t *testing.T) {
	s, err := Own("1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if s.Digest != sha256.Sum256(program) || s.Version != "1.0.0" || s.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Fatalf("%+v", s)
	}
}

func TestWhereTheManifestIs(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	write(t, program, "program")
	for name, c := range map[string]struct {
		beside, shared      map[string]string
		manifest, signature string
	}{
		"nowhere": {nil, nil, "", ""},
		"beside":  {map[string]string{release.ManifestName: "m", release.SignatureName: "s"}, nil, "m", "s"},
		"shared":  {nil, map[string]string{release.ManifestName: "m", release.SignatureName: "s"}, "m", "s"},
		"both": {
			map[string]string{release.ManifestName: "m", release.SignatureName: "s"},
			map[string]string{release.ManifestName: "m2", release.SignatureName: "s2"},
			"m", "s",
		},
		"without signature": {map[string]string{release.ManifestName: "m"}, nil, "", ""},
		// The halves of two releases are not one release.
		"halves": {map[string]string{release.ManifestName: "m"}, map[string]string{release.SignatureName: "s"}, "", ""},
	} {
		beside, shared := t.TempDir(), t.TempDir()
		for dir, files := range map[string]map[string]string{beside: c.beside, shared: c.shared} {
			for file, text := range files {
				write(t, filepath.Join(dir, file), text)
			}
		}
		s, err := read("1.0.0", program, beside, shared)
		if err != nil || string(s.Manifest) != c.manifest || string(s.Signature) != c.signature || s.Digest != sha256.Sum256([]byte("program")) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

func TestOwnRefuses(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	write(t, program, "program")
	for name, c := range map[string]struct {
		make func(dir string)
		want problem.Reason
	}{
		"empty": {func(dir string) { write(t, filepath.Join(dir, release.ManifestName), "") }, problem.ReasonTooLarge},
		"large": {func(dir string) {
			write(t, filepath.Join(dir, release.ManifestName), string(make([]byte, release.MaxManifest+1)))
		}, problem.ReasonTooLarge},
		"a directory": {func(dir string) { os.Mkdir(filepath.Join(dir, release.ManifestName), 0o700) }, problem.ReasonInvalid},
		"a pipe":      {func(dir string) { syscall.Mkfifo(filepath.Join(dir, release.ManifestName), 0o600) }, problem.ReasonInvalid},
		"a loop":      {func(dir string) { os.Symlink(release.ManifestName, filepath.Join(dir, release.ManifestName)) }, problem.ReasonInvalid},
		"a large signature": {func(dir string) {
			write(t, filepath.Join(dir, release.ManifestName), "m")
			write(t, filepath.Join(dir, release.SignatureName), string(bytes.Repeat([]byte("s"), sshsig.MaxSignature+1)))
		}, problem.ReasonTooLarge},
	} {
		dir := t.TempDir()
		c.make(dir)
		if s, err := read("1.0.0", program, dir); !problem.Is(err, c.want) || s.Digest != [32]byte{} {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if _, err := read("1.0.0", program+"-gone"); !problem.Is(err, problem.ReasonInvalid) {
		t.Error("no program:", err)
	}
}

func TestReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		change func(path, dir string)
		want   bool
	}{
		"nothing":                   {func(string, string) {}, false},
		"another file":              {func(path, _ string) { write(t, path+".new", "other"); os.Rename(path+".new", path) }, true},
		"the same bytes, anew":      {func(path, _ string) { os.Remove(path); write(t, path, "program") }, true},
		"removed":                   {func(path, _ string) { os.Remove(path) }, false},
		"its manifest":              {func(_, dir string) { write(t, filepath.Join(dir, release.ManifestName), "m2") }, true},
		"its signature":             {func(_, dir string) { write(t, filepath.Join(dir, release.SignatureName), "s2") }, true},
		"without manifest":          {func(_, dir string) { os.Remove(filepath.Join(dir, release.ManifestName)) }, true},
		"a manifest nobody can use": {func(_, dir string) { write(t, filepath.Join(dir, release.ManifestName), "") }, false},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "program")
		write(t, path, "program")
		write(t, filepath.Join(dir, release.ManifestName), "m")
		write(t, filepath.Join(dir, release.SignatureName), "s")
		runs := filepath.Join(t.TempDir(), "runs") // as the kernel's link: the file, whatever became of its name
		if err := os.Link(path, runs); err != nil {
			t.Fatal(err)
		}
		s, err := read("1.0.0", runs, dir)
		if err != nil {
			t.Fatal(err)
		}
		c.change(path, dir)
		if got := replaced(s, runs, path, dir); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	s, err := Own("1.0.0")
	if err != nil || Replaced(s)() {
		t.Errorf("this program is replaced (%v)", err)
	}
}
