package policy

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Any file either compiles or gives findings with places; nothing panics; the findings are plain
// text; the same bytes give the same answer.
func FuzzBundle(f *testing.F) {
	for path, data := range exampleFiles(f) {
		f.Add(path, data)
	}
	cases, err := filepath.Glob("testdata/findings/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range cases {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		_, names, files := readArchive(data)
		for _, n := range names {
			if n != "want" && !strings.HasPrefix(n, "-") {
				f.Add(n, []byte(files[n]))
			}
		}
	}
	example := exampleFiles(f)
	f.Fuzz(func(t *testing.T, path string, data []byte) {
		files := maps.Clone(example)
		files[path] = data
		program, err := compileFiles(files)
		again, err2 := compileFiles(files)
		if (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
			t.Fatalf("%v, then %v", err, err2)
		}
		if err == nil {
			program.Decide(&Input{Action: ReadSecret, Identity: "/human/alice", Secret: "db/password", Assurance: identity.Key})
			again.Explain(&Input{Action: ReadSecret, Identity: "/workload/payments-api", Secret: "db/password"})
			return
		}
		var list Findings
		if errors.As(err, &list) {
			if len(list) == 0 || len(list) > MaxFindings+1 {
				t.Fatalf("%d findings", len(list))
			}
			for _, x := range list {
				if x.Pos.File == "" || x.Message == "" || strings.ContainsAny(x.String(), "\n\r\x1b\u202e") {
					t.Fatalf("finding %q", x.String())
				}
			}
		} else if problem.KindOf(err) != problem.Invalid {
			t.Fatalf("an error of kind %v: %v", problem.KindOf(err), err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	m, err := BuildManifest(exampleFiles(f), founding)
	if err != nil {
		f.Fatal(err)
	}
	next, err := BuildManifest(Files{"a b.md": nil}, Header{"x", Digest{1}, 2, m.Digest()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Text())
	f.Add(next.Text())
	f.Add([]byte(manifestVersion + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseManifest(text)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Text(), text) {
			t.Fatalf("printed %q, read %q", m.Text(), text)
		}
		list := m.Files()
		for i := range list {
			if validFilePath(list[i].Path) != nil || i > 0 && list[i-1].Path >= list[i].Path {
				t.Fatalf("path %q", list[i].Path)
			}
		}
	})
}

// Any condition is refused when it is compiled, or can be evaluated without a panic, to true,
// false or an error, the same every time.
func FuzzCEL(f *testing.F) {
	for _, s := range []string{
		`claims.uid == 1000`, `claims.a.b.startsWith("x") || "b" in claims.l`, `has(claims.x) && claims.x > 1.5`,
		`identity.segments.exists(s, s == "x")`, `time > timestamp("2026-01-01T00:00:00Z")`, `assurance >= level.key`,
		`node.path.matches("^/node/.*$")`, `claims.l.map(x, x + 1)[0] == 2`, `size(claims) > 0 ? true : node_claims.x == 1`,
		`claims.s + "x" == "y"`, `duration("1h") < duration("2h") && claims.x == 1`, `-claims.x == -9223372036854775808`, `claims.x / 0 == 1`, `nope(`, `[1, "a"][claims.x] == dyn(1)`,
	} {
		f.Add(s)
	}
	in := benchInput(f)
	in.Claims = mustClaims(f, map[string]any{"x": 1, "s": "text", "l": []any{1, "b"}, "m": map[string]any{"k": 2.5}})
	f.Fuzz(func(t *testing.T, expression string) {
		s, err := grantScope()
		if err != nil {
			t.Fatal(err)
		}
		c, issues := s.compile(expression)
		if (c == nil) != (len(issues) > 0) {
			t.Fatalf("condition %v, issues %v", c, issues)
		}
		if c == nil {
			return
		}
		one, err1 := c.holds(&vars{in: in, prog: &Program{}})
		two, err2 := c.holds(&vars{in: in, prog: &Program{}})
		if one != two || (err1 == nil) != (err2 == nil) {
			t.Fatalf("%v %v, then %v %v", one, err1, two, err2)
		}
	})
}
