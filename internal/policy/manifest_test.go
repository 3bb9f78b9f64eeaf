package policy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/bailment/bailment/internal/problem"
)

var founding = Header{Environment: "payments-dev", Version: 1}

func TestManifestText(t *testing.T) {
	m, err := BuildManifest(Files{"b.yaml": []byte("b"), "a/x y.yaml": nil, "a.md": []byte("a")}, founding)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("bailment manifest v1\nenvironment payments-dev\ngenesis -\nversion 1\nprevious -\n\n"+
		"%x  1  a.md\n%x  0  a/x y.yaml\n%x  1  b.yaml\n", sha256.Sum256([]byte("a")), sha256.Sum256(nil), sha256.Sum256([]byte("b")))
	if string(m.Text()) != want {
		t.Errorf("got\n%swant\n%s", m.Text(), want)
	}
	if m.Digest() != Digest(sha256.Sum256([]byte(want))) {
		t.Error("the digest is not the text's")
	}
	next, err := BuildManifest(Files{"b.yaml": []byte("b")}, Header{"payments-dev", Digest{1}, 2, m.Digest()})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(next.Text()), "\ngenesis 01"+strings.Repeat("0", 62)+"\nversion 2\nprevious "+m.Digest().String()+"\n\n") {
		t.Errorf("%s", next.Text())
	}
	for _, m := range []*Manifest{m, next} {
		again, err := ParseManifest(m.Text())
		if err != nil || again.Header() != m.Header() || !bytes.Equal(again.Text(), m.Text()) || again.Digest() != m.Digest() {
			t.Errorf("%v", err)
		}
	}
	for _, h := range []Header{
		{"", Digest{}, 1, Digest{}},
		{"x", Digest{}, 0, Digest{}},
		{"x", Digest{1}, 1, Digest{}},
		{"x", Digest{}, 2, Digest{1}},
		{"x", Digest{1}, 2, Digest{}},
		{"x", Digest{}, 1, Digest{1}},
	} {
		if _, err := BuildManifest(Files{"a": nil}, h); err == nil {
			t.Errorf("accepted %+v", h)
		}
	}
}

// Every change of a byte of the text is refused, or gives another manifest with another digest;
// never the same meaning under another text.
func TestManifestIsStrict(t *testing.T) {
	m, err := BuildManifest(Files{"a/b.yaml": []byte("x"), "c.yaml": []byte("y")}, founding)
	if err != nil {
		t.Fatal(err)
	}
	text := string(m.Text())
	line := fmt.Sprintf("%x  1  c.yaml\n", sha256.Sum256([]byte("y")))
	for name, bad := range map[string]string{
		"empty":            "",
		"version":          strings.Replace(text, "v1", "v2", 1),
		"no end":           strings.TrimSuffix(text, "\n"),
		"two ends":         text + "\n",
		"crlf":             strings.ReplaceAll(text, "\n", "\r\n"),
		"leading zero":     strings.Replace(text, "version 1", "version 01", 1),
		"plus":             strings.Replace(text, "version 1", "version +1", 1),
		"version without":  strings.Replace(text, "version 1", "version 2", 1),
		"upper case":       strings.Replace(text, line, strings.ToUpper(line[:64])+line[64:], 1),
		"size zero":        strings.Replace(text, "  1  c", "  01  c", 1),
		"negative size":    strings.Replace(text, "  1  c", "  -1  c", 1),
		"huge":             strings.Replace(text, "  1  c", "  99999999999  c", 1),
		"one space":        strings.Replace(text, "  1  c", "  1 c", 1),
		"three spaces":     strings.Replace(text, "  1  c", "  1   c", 1),
		"twice":            text + line,
		"order":            strings.Replace(text, line, "", 1) + strings.Replace(line, "c.yaml", "0.yaml", 1),
		"parent":           strings.Replace(text, "c.yaml", "../c.yaml", 1),
		"absolute":         strings.Replace(text, "c.yaml", "/c.yaml", 1),
		"hidden":           strings.Replace(text, "c.yaml", "c/.x", 1),
		"control":          strings.Replace(text, "c.yaml", "c\x1b.yaml", 1),
		"right-to-left":    strings.Replace(text, "c.yaml", "c\u202e.yaml", 1),
		"backslash":        strings.Replace(text, "c.yaml", "c\\x.yaml", 1),
		"no files":         text[:strings.Index(text, "\n\n")+2],
		"extra header":     strings.Replace(text, "\n\n", "\nnote x\n\n", 1),
		"header order":     strings.Replace(text, "genesis -\nversion 1", "version 1\ngenesis -", 1),
		"environment":      strings.Replace(text, "payments-dev", "Payments", 1),
		"genesis":          strings.Replace(text, "genesis -", "genesis "+strings.Repeat("0", 64), 1),
		"previous, no sha": strings.Replace(text, "previous -", "previous "+strings.Repeat("1", 64), 1),
	} {
		if bad == text {
			t.Fatalf("%s: the case changes nothing", name)
		}
		if _, err := ParseManifest([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for i := range text {
		bad := []byte(text)
		bad[i] ^= 1
		if got, err := ParseManifest(bad); err == nil && (!bytes.Equal(got.Text(), bad) || got.Digest() == m.Digest()) {
			t.Errorf("byte %d changed, and the manifest is the same", i)
		}
	}
	if _, err := ParseManifest(make([]byte, MaxManifest+1)); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("huge: %v", err)
	}
}

func TestManifestFetch(t *testing.T) {
	files := exampleFiles(t)
	m, err := BuildManifest(files, founding)
	if err != nil {
		t.Fatal(err)
	}
	blobs := map[Digest][]byte{}
	for _, data := range files {
		blobs[sha256.Sum256(data)] = data
	}
	get := func(d Digest) ([]byte, error) {
		if b, ok := blobs[d]; ok {
			return b, nil
		}
		return nil, fs.ErrNotExist
	}
	got, err := m.Fetch(get)
	if err != nil || m.Verify(got) != nil {
		t.Fatal(err)
	}
	mustCompile(t, got)

	first := m.Files()[0]
	blobs[first.Digest] = append([]byte("x"), blobs[first.Digest]...)
	if _, err := m.Fetch(get); !problem.Is(err, problem.ReasonTampered) {
		t.Errorf("changed: %v", err)
	}
	delete(blobs, first.Digest)
	if _, err := m.Fetch(get); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for name, change := range map[string]func(Files){
		"missing": func(f Files) { delete(f, first.Path) },
		"changed": func(f Files) { f[first.Path] = []byte("x") },
		"extra":   func(f Files) { f["grants/zz.yaml"] = nil },
		"renamed": func(f Files) { f["zz"] = f[first.Path]; delete(f, first.Path) },
	} {
		other := maps.Clone(files)
		change(other)
		if m.Verify(other) == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("environment.yaml", "x")
	write("README.md", "y")
	write(".git/config", "z")
	write("grants/.hidden.yaml", "z")
	files, err := ReadFiles(os.DirFS(dir))
	if err != nil || len(files) != 2 || string(files["README.md"]) != "y" {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "grants/link.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "secrets")); err != nil {
		t.Fatal(err)
	}
	write("grants/two  spaces.yaml", "")
	var list Findings
	if _, err := ReadFiles(os.DirFS(dir)); !errors.As(err, &list) || len(list) != 3 || !strings.Contains(list[0].Message, "symbolic link") {
		t.Errorf("%v", err)
	}
	if _, err := ReadFiles(os.DirFS(filepath.Join(dir, "none"))); err == nil {
		t.Error("a missing directory is a bundle")
	}
	big := fstest.MapFS{}
	for i := range 5 {
		big[fmt.Sprintf("%d.md", i)] = &fstest.MapFile{Data: make([]byte, MaxBytes/4)}
	}
	if _, err := ReadFiles(big); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("too many bytes: %v", err)
	}
	many := fstest.MapFS{}
	for i := range MaxFiles + 1 {
		many[fmt.Sprintf("grants/%d.md", i)] = &fstest.MapFile{}
	}
	if _, err := ReadFiles(many); !problem.Is(err, problem.ReasonTooLarge) {
		t.Errorf("too many files: %v", err)
	}
}
