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
			files := exampleFiles(t)
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
