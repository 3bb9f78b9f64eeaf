package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

// execute runs a program in dir, with git kept from the settings of whoever runs the tests, and with variables besides those of the process.
func execute(t testing.TB, dir string, env []string, name string, args ...string) (output string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), gitEnv...)
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// gitEnv makes commits the same for everybody.
var gitEnv = []string{
	"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
	"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_AUTHOR_DATE=2026-11-22T12:00:00Z",
	"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org", "GIT_COMMITTER_DATE=2026-11-22T12:00:00Z",
}

func mustRun(t testing.TB, dir string, env []string, name string, args ...string) string {
	t.Helper()
	out, err := execute(t, dir, env, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

// sourceTree is this working tree with what is not committed, committed, in a repository of its own.
func sourceTree(t *testing.T, at string) {
	t.Helper()
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	listed, err := exec.CommandContext(t.Context(), "git", "-C", repo, "ls-files", "-z", "-co", "--exclude-standard").Output()
	if err != nil {
		t.Fatal("git ls-files:", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(listed), "\x00"), "\x00") {
		from, to := filepath.Join(repo, name), filepath.Join(at, name)
		st, err := os.Lstat(from)
		if os.IsNotExist(err) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, st.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, at, nil, "git", "init", "-q")
	mustRun(t, at, nil, "git", "add", "-A")
	mustRun(t, at, nil, "git", "commit", "-q", "-m", "as it is")
}

func releaseKey(t *testing.T, path string) ssh.PublicKey {
	t.Helper()
	mustRun(t, filepath.Dir(path), nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "check", "-f", path)
	text, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := sshsig.ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const here = runtime.GOOS + "/" + runtime.GOARCH

// What one commit gives in two directories is the same to the last byte, verifies with a public tool and with ours, and a binary or a manifest
// with a flipped bit doesn't. The build cache is shared, so what is compiled twice here is little: `make release-check` does without it.
func TestReleaseIsReproducible(t *testing.T) {
	dir := t.TempDir()
	key := releaseKey(t, filepath.Join(dir, "key"))
	env := []string{"VERSION=1.4.0", "PLATFORMS=" + here, "RELEASE_KEY=" + filepath.Join(dir, "key")}
	short, long := filepath.Join(dir, "a"), filepath.Join(dir, "another", "directory", "with", "a", "longer", "path")
	sourceTree(t, short)
	mustRun(t, dir, nil, "git", "clone", "-q", short, long)
	compiled(t)
	mustRun(t, long, env, "scripts/release")
	made := filepath.Join(long, "dist", "1.4.0")
	// Twice more, elsewhere, with another signer: the same manifest.
	checked := mustRun(t, short, append([]string{"SHARED_CACHE=yes"}, env...), "scripts/release-check", filepath.Join(made, release.ManifestName))
	for _, want := range []string{"== the same, to the last byte", "Good \"release@bailment\" signature", "incorrect signature", "is the manifest of this source"} {
		if !strings.Contains(checked, want) {
			t.Errorf("release-check does not say %q:\n%s", want, checked)
		}
	}

	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(made, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	text, signature := read(release.ManifestName), read(release.SignatureName)
	m, by, err := release.Verify(text, signature, []ssh.PublicKey{key})
	if err != nil || !sshsig.SameKey(by, key) || m.Version.String() != "1.4.0" || len(m.Files) < 4 {
		t.Fatalf("%+v, %v", m, err)
	}
	if out, err := execute(t, long, env, "scripts/release"); err == nil || !strings.Contains(out, "is there already") {
		t.Errorf("a second release with the number was made: %s", out)
	}

	unpacked := t.TempDir()
	mustRun(t, unpacked, nil, "tar", "--strip-components=1", "-xzf", filepath.Join(made, "bailment-1.4.0-"+runtime.GOOS+"-"+runtime.GOARCH+".tar.gz"))
	binary := filepath.Join(unpacked, release.Program)
	said := mustRun(t, unpacked, nil, binary, "version", "-o", "json", "--verify", "--signer", sshsig.Fingerprint(key))
	var view struct {
		Version string
		Release struct {
			Signer string
			Listed bool `json:"signer_listed"`
		}
	}
	if err := json.Unmarshal([]byte(said), &view); err != nil || view.Version != "1.4.0" || view.Release.Signer != sshsig.Fingerprint(key) || !view.Release.Listed {
		t.Errorf("%s, %v", said, err)
	}
	refused := func(name string, want problem.Reason, args ...string) {
		t.Helper()
		out, err := execute(t, unpacked, nil, binary, append([]string{"version", "--verify"}, args...)...)
		if err == nil || !strings.Contains(out, "reason: "+string(want)) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	releaseKey(t, filepath.Join(unpacked, "stranger"))
	refused("another signer", problem.ReasonAgentUnsigned, "--signer", filepath.Join(unpacked, "stranger.pub"))

	// A bit that the program doesn't use: its last byte belongs to the section headers' table of the file.
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	program[len(program)-1] ^= 1
	overwrite(t, binary, program, 0o755)
	refused("a flipped bit of the binary", problem.ReasonAgentUnknown, "--signer", sshsig.Fingerprint(key))
	overwrite(t, filepath.Join(unpacked, release.ManifestName), bytes.Replace(text, []byte("protocol 1"), []byte("protocol 2"), 1), 0o644)
	refused("a changed manifest", problem.ReasonAgentUnsigned)
}

// overwrite replaces the file, which may be one that runs.
func overwrite(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// What would make a release of something else than the commit is refused before anything is compiled.
func TestReleaseRefuses(t *testing.T) {
	tree := t.TempDir()
	for name, text := range map[string]string{"scripts/release": "", "LICENSE": "x\n"} {
		if text == "" {
			data, err := os.ReadFile(filepath.Join("../..", name))
			if err != nil {
				t.Fatal(err)
			}
			text = string(data)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, tree, nil, "git", "init", "-q")
	mustRun(t, tree, nil, "git", "add", "-A")
	mustRun(t, tree, nil, "git", "commit", "-q", "-m", "x")
	for name, c := range map[string]struct {
		env  []string
		args []string
		want string
	}{
		"no key":        {[]string{"VERSION=1.4.0", "RELEASE_KEY="}, nil, "no key to sign with"},
		"no version":    {[]string{"VERSION=", "RELEASE_KEY=k"}, nil, "has no tag"},
		"a v before it": {[]string{"VERSION=v1.4.0", "RELEASE_KEY=k"}, nil, "is not a version"},
		"a path":        {[]string{"VERSION=../1.4.0", "RELEASE_KEY=k"}, nil, "is not a version"},
		"an argument":   {[]string{"VERSION=1.4.0", "RELEASE_KEY=k"}, []string{"--force"}, "takes no argument"},
	} {
		if out, err := execute(t, tree, c.env, "scripts/release", c.args...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "LICENSE"), []byte("y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := execute(t, tree, nil, "scripts/release", "--unsigned"); err == nil || !strings.Contains(out, "not committed") {
		t.Errorf("a changed tree: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(tree, "dist")); err == nil {
		t.Error("something was made")
	}
}

// compiling is whether the build cache has what a release needs, which has other flags than the tests' binary: once, before what has a
// limit of time.
var compiling sync.Once

func compiled(t *testing.T) {
	t.Helper()
	compiling.Do(func() {
		tree := filepath.Join(t.TempDir(), "tree")
		sourceTree(t, tree)
		mustRun(t, tree, []string{"VERSION=0.0.1", "PLATFORMS=" + here}, "scripts/release", "--unsigned")
	})
}

// source is a working tree to make releases in.
func source(t *testing.T, _ string) reader {
	t.Helper()
	dir := t.TempDir()
	sourceTree(t, filepath.Join(dir, "tree"))
	compiled(t)
	return reader{dir: dir, prelude: standIns + "\ncd tree\n", env: append(append(goEnv(t), gitEnv...), "PLATFORMS="+here)}
}

// download is a directory with a release's archive and its signer's public key.
func download(t *testing.T, _ string) reader {
	t.Helper()
	compiled(t)
	dir, tree, root := t.TempDir(), filepath.Join(t.TempDir(), "tree"), t.TempDir()
	sourceTree(t, tree)
	releaseKey(t, filepath.Join(dir, "release-key"))
	mustRun(t, tree, []string{"VERSION=1.4.0", "PLATFORMS=" + here, "DIST=" + dir, "RELEASE_KEY=" + filepath.Join(dir, "release-key")}, "scripts/release")
	archive := "bailment-1.4.0-" + runtime.GOOS + "-" + runtime.GOARCH + ".tar.gz"
	if err := os.Rename(filepath.Join(dir, "1.4.0", archive), filepath.Join(dir, archive)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "usr", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	return reader{
		dir: dir, prelude: standIns,
		env: append(append(goEnv(t), gitEnv...), "ROOT="+root, "SOURCE="+tree, "PLATFORMS="+here),
		replace: strings.NewReplacer(" /usr/", " "+root+"/usr/",
			"linux-amd64", runtime.GOOS+"-"+runtime.GOARCH, "linux/amd64", here),
	}
}

// goEnv keeps the Go command's caches, which are below the home directory that the page's reader has another of.
func goEnv(t *testing.T) []string {
	t.Helper()
	var env []string
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY"} {
		env = append(env, name+"="+strings.TrimSpace(mustRun(t, ".", nil, "go", "env", name)))
	}
	return env
}
