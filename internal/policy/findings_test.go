package policy

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

var update = flag.Bool("update", false, "rewrite the expected findings; read the difference")

// readArchive splits a txtar file: a comment, then files under "-- NAME --" lines.
func readArchive(data []byte) (comment string, names []string, files map[string]string) {
	files = map[string]string{}
	current := &comment
	var sections []*string
	for line := range strings.SplitAfterSeq(string(data), "\n") {
		trimmed := strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(trimmed, "-- ") && strings.HasSuffix(trimmed, " --") {
			names = append(names, trimmed[3:len(trimmed)-3])
			current = new(string)
			sections = append(sections, current)
			continue
		}
		*current += line
	}
	for i, name := range names {
		files[name] = *sections[i]
	}
	return comment, names, files
}

// Each case is the example bundle, with the files of the archive put over it ("-- -NAME --" takes
// one away), and the findings that must come out, all of them and in this order.
func TestFindings(t *testing.T) {
	cases, err := filepath.Glob("testdata/findings/*.txt")
	if err != nil || len(cases) < 40 {
		t.Fatalf("only %d cases: %v", len(cases), err)
	}
	for _, name := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			comment, names, archive := readArchive(data)
			files := bare(t)
			for _, n := range names {
				if gone, ok := strings.CutPrefix(n, "-"); ok {
					delete(files, gone)
				} else if n != "want" {
					files[n] = []byte(strings.NewReplacer("<TAB>", "\t", "<RLO>", "\u202e", "<CR>", "\r", "<BAD>", "\xff").Replace(archive[n]))
				}
			}
			got := ""
			if _, err := compileFiles(files); err != nil {
				var list Findings
				if !errors.As(err, &list) || !problem.Is(err, problem.ReasonBundleInvalid) {
					t.Fatalf("the error holds no findings: %v", err)
				}
				got = list.Error() + "\n"
			}
			mustBeLess(t, files, got)
			if *update {
				i := bytes.Index(data, []byte("-- want --\n"))
				if err := os.WriteFile(name, append(data[:i:i], "-- want --\n"+got...), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != archive["want"] {
				t.Errorf("%sgot:\n%swant:\n%s", comment, got, archive["want"])
			}
		})
	}
}

// mustBeLess checks that a bundle which was accepted has some of the findings of a new one, and none of its own.
func mustBeLess(t *testing.T, files Files, all string) {
	t.Helper()
	b, err := Load(files)
	if err == nil {
		_, err = CompileAccepted(b)
	}
	var list Findings
	if err != nil && !errors.As(err, &list) {
		t.Fatalf("the error holds no findings: %v", err)
	}
	for _, f := range list {
		if !strings.Contains(all, f.String()+"\n") {
			t.Errorf("only of one that was accepted: %s", f)
		}
	}
}

// A release that looks closer at what is only imprudent opens an environment with such a bundle: it is read as ever, and decides as
// it did. What can't be carried out has its findings all the same.
func TestAcceptedBundle(t *testing.T) {
	for name, accepted := range map[string]bool{"ci-trust": true, "ci-claims": true, "identity-overlap": true, "identity-paths": false, "cel-type": false} {
		data, err := os.ReadFile("testdata/findings/" + name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		files := bare(t)
		_, names, archive := readArchive(data)
		for _, n := range names {
			if n != "want" {
				files[n] = []byte(archive[n])
			}
		}
		b, err := Load(files)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Compile(b); err == nil {
			t.Errorf("%s is accepted anew", name)
		}
		if p, err := CompileAccepted(b); (err == nil) != accepted || accepted && p == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
