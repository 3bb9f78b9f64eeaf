package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// made is a directory as scripts/release leaves it before packing.
func made(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "linux_amd64", "bailment"), "program for amd64")
	write(t, filepath.Join(dir, "linux_arm64", "bailment"), "program for arm64")
	write(t, filepath.Join(dir, "any", "LICENSE"), "license")
	if err := run(manifestArgs(dir), io.Discard); err != nil {
		t.Fatal(err)
	}
	seed := sha256.Sum256([]byte("bailment test key release"))
	key, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := sshsig.Sign(key, release.Namespace, read(t, filepath.Join(dir, release.ManifestName)))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, release.SignatureName), string(sig))
	return dir
}

func manifestArgs(dir string) []string {
	return []string{"manifest", "--version", "1.4.0", "--commit", strings.Repeat("ab", 20), "--date", "2026-11-22T12:00:00Z", "--go", "go1.26.8", dir}
}

const amd64, arm64 = "bailment-1.4.0-linux-amd64.tar.gz", "bailment-1.4.0-linux-arm64.tar.gz"

func TestPackIsDeterministic(t *testing.T) {
	first, second := made(t), made(t)
	var said bytes.Buffer
	for _, dir := range []string{first, second} {
		if err := run([]string{"pack", dir}, &said); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{release.ManifestName, release.SignatureName, amd64, arm64} {
		if !bytes.Equal(read(t, filepath.Join(first, name)), read(t, filepath.Join(second, name))) {
			t.Errorf("%s differs", name)
		}
	}
	if !strings.Contains(said.String(), amd64+"\n"+arm64+"\nrelease 1.4.0, signed by SHA256:") {
		t.Errorf("%s", &said)
	}
}

func TestArchiveHasWhatTheManifestNames(t *testing.T) {
	dir := made(t)
	if err := run([]string{"pack", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(read(t, filepath.Join(dir, arm64))))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1795348800 || h.Mode&^0o755 != 0 {
			t.Errorf("%+v", h)
		}
		if h.Name == "bailment-1.4.0-linux-arm64/bailment" {
			if data, err := io.ReadAll(r); err != nil || string(data) != "program for arm64" || h.Mode != 0o755 {
				t.Errorf("%q, %o, %v", data, h.Mode, err)
			}
		}
	}
	const top = "bailment-1.4.0-linux-arm64/"
	if want := []string{top, top + "LICENSE", top + "bailment", top + "bailment.manifest", top + "bailment.manifest.sig"}; !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		change func(t *testing.T, dir string)
		want   problem.Reason
	}{
		"nothing":         {[]string{}, nil, problem.ReasonInvalid},
		"another verb":    {[]string{"sign"}, nil, problem.ReasonInvalid},
		"no directory":    {[]string{"pack"}, nil, problem.ReasonInvalid},
		"unknown flag":    {[]string{"pack", "--force", "x"}, nil, problem.ReasonInvalid},
		"no version":      {[]string{"manifest", "x"}, nil, problem.ReasonInvalid},
		"no date":         {[]string{"manifest", "--version", "1.0.0", "x"}, nil, problem.ReasonInvalid},
		"nothing to pack": {[]string{"pack", "nowhere"}, nil, problem.ReasonInvalid},
		"a changed program": {nil, func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "linux_amd64", "bailment"), "program for amd63")
		}, problem.ReasonTampered},
		"a program gone": {nil, func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "linux_amd64", "bailment")) }, problem.ReasonInvalid},
		"no signature":   {nil, func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, release.SignatureName)) }, problem.ReasonInvalid},
		"a changed manifest": {nil, func(t *testing.T, dir string) {
			path := filepath.Join(dir, release.ManifestName)
			write(t, path, strings.Replace(string(read(t, path)), "1.4.0", "1.4.1", 1))
		}, problem.ReasonSignature},
	} {
		args := c.args
		if args == nil {
			dir := made(t)
			c.change(t, dir)
			args = []string{"pack", dir}
		}
		if err := run(args, io.Discard); !problem.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What isn't a release's file can't be named, and so not be packed.
	dir := made(t)
	write(t, filepath.Join(dir, "any", ".hidden"), "x")
	if err := run(manifestArgs(dir), io.Discard); !problem.Is(err, problem.ReasonInvalid) {
		t.Error(err)
	}
}
