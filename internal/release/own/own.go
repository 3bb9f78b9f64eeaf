// Package own reads what this program can say of itself: its digest, and the release manifest that was installed with it.
//
// Guaranteed: the digest is of the executable that runs, by the kernel's link to it, also after the file's name was given to a newer
// one; files are read up to their limits. Not guaranteed: that anything of it is true. A program that lies would say the same; see
// package release.
//
// Its place is beside release, which judges what it reads. It is asked once, when a role starts: an upgrade replaces the manifest beside
// a running program, and the new one says nothing of the old program. Replaced says that this has happened.
package own

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

// Shared is where a package installs the manifest of the one release that the machine has.
const Shared = "/usr/share/bailment"

// executable is the running program's file, whatever became of its name.
const executable = "/proc/self/exe"

// Own is this program's statement; version is what it was built as. The manifest is looked for beside the executable, and then in
// Shared: the first place that has one counts, and a manifest without a signature is none. The statement is complete without a manifest; an
// error says that something is there and can't be read, or that the executable can't.
//
// It reads the whole executable, which takes some ten milliseconds.
func Own(version string) (release.Statement, error) {
	path, err := os.Executable()
	if err != nil {
		return release.Statement{}, problem.Local(err, "find this program's file")
	}
	return read(version, executable, filepath.Dir(path), Shared)
}

// Replaced gives a function that reports whether what is installed now is not what runs: the program's name is another file's, or the
// manifest that Own would find is not the one that s has. It reads no more than the manifest. What can't be told is not replaced.
func Replaced(s release.Statement) func() bool {
	path, err := os.Executable()
	if err != nil {
		return func() bool { return false }
	}
	return func() bool { return replaced(s, executable, path, filepath.Dir(path), Shared) }
}

func replaced(s release.Statement, program, path string, places ...string) bool {
	runs, err := os.Stat(program)
	if err != nil {
		return false
	}
	installed, err := os.Stat(path)
	if err != nil {
		return false // removed, which a restart would not mend
	}
	if !os.SameFile(runs, installed) {
		return true
	}
	var now release.Statement
	return find(&now, places) == nil && !(bytes.Equal(now.Manifest, s.Manifest) && bytes.Equal(now.Signature, s.Signature))
}

func read(version, program string, places ...string) (release.Statement, error) {
	s := release.Statement{Version: version, Platform: runtime.GOOS + "/" + runtime.GOARCH}
	f, err := os.Open(program)
	if err != nil {
		return release.Statement{}, problem.Local(err, "open this program's file")
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return release.Statement{}, problem.Local(err, "read this program's file")
	}
	s.Digest = [32]byte(h.Sum(nil))
	if err := find(&s, places); err != nil {
		return release.Statement{}, err
	}
	return s, nil
}

// find reads the manifest of the first place that has one.
func find(s *release.Statement, places []string) error {
	for _, dir := range places {
		manifest, err := readFile(filepath.Join(dir, release.ManifestName), release.MaxManifest)
		if err != nil {
			return err
		}
		if manifest == nil {
			continue
		}
		signature, err := readFile(filepath.Join(dir, release.SignatureName), sshsig.MaxSignature)
		if err != nil {
			return err
		}
		if signature != nil {
			s.Manifest, s.Signature = manifest, signature
		}
		return nil
	}
	return nil
}

// readFile gives nil for a file that isn't there.
func readFile(path string, most int) ([]byte, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, problem.Local(err, "look for the release manifest")
	}
	// Opening a pipe would wait for somebody to write.
	if !st.Mode().IsRegular() {
		return nil, problem.New(problem.ReasonInvalid, "%s is not a regular file", path).WithFix("install the release's own file there, or remove it")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, problem.Local(err, "open the release manifest")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, problem.Local(err, "read the release manifest")
	}
	if len(data) > most || len(data) == 0 {
		return nil, problem.New(problem.ReasonTooLarge, "%s is empty, or has more than %d bytes", path, most).
			WithFix("install the release's own file there, or remove it")
	}
	return data, nil
}
