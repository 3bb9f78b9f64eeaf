package archtest_test

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/archtest"
)

const doc = "// Package x is a package whose comment is long enough to say what it guarantees and what it doesn't, and where it stands.\n"

// source makes packages of "path/file.go" → text.
func source(t *testing.T, files map[string]string) []archtest.Package {
	t.Helper()
	var pkgs []archtest.Package
	for name, text := range files {
		f, err := archtest.Parse(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(pkgs, func(p archtest.Package) bool { return p.Path == path.Dir(name) })
		if i < 0 {
			i = len(pkgs)
			pkgs = append(pkgs, archtest.Package{Path: path.Dir(name)})
		}
		pkgs[i].Files = append(pkgs[i].Files, f)
	}
	return pkgs
}

var planted = []archtest.Row{
	{"a", "", "example.org/ext"},
	{"b/...", "a", ""},
	{"x", "a b/...", "example.org/ext example.org/other/deep"},
	{"cmd/tool", "x", ""},
	{"internal/cli", "x", ""},
	{"internal/attest/...", "", ""},
}

func lines(n int) string { return strings.Repeat("//\n", n) }

// TestPlanted: every rule finds its planted violation, and nothing else; and leaves the good alone.
func TestPlanted(t *testing.T) {
	longFunc := func(above string) string {
		return doc + "package x\n\n" + above + "func f() {\n" + strings.Repeat("\tg()\n", archtest.MaxFuncLines-1) + "}\n"
	}
	iface := func(above string) string {
		return doc + "package x\n\n" + above + "type I interface {\n\tA()\n\tB()\n\tC()\n\tD()\n\tE()\n\tF()\n}\n"
	}
	code := func(imports, body string) string {
		out := doc + "package x\n\n"
		for i := range strings.FieldsSeq(imports) {
			out += "import \"" + i + "\"\n"
		}
		return out + "\n" + body + "\n"
	}
	const good = doc + "package x\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string // the rules found, sorted; "" is none
	}{
		"good":                         {map[string]string{"x/x.go": good}, ""},
		"allowed imports":              {map[string]string{"x/x.go": code("fmt m/a m/b m/b/c example.org/ext example.org/ext/sub example.org/other/deep", "")}, ""},
		"import upwards":               {map[string]string{"a/a.go": code("m/x", "")}, "import"},
		"import within a tree":         {map[string]string{"b/c/b.go": code("m/b/d", "")}, ""},
		"import not named":             {map[string]string{"cmd/tool/x.go": code("m/a", "")}, "import"},
		"foreign module":               {map[string]string{"x/x.go": code("example.org/else", "")}, "import"},
		"foreign module, like prefix":  {map[string]string{"x/x.go": code("example.org/extra", "")}, "import"},
		"parent of a foreign module":   {map[string]string{"x/x.go": code("example.org/other", "")}, "import"},
		"cgo":                          {map[string]string{"x/x.go": code("C", "")}, "import"},
		"import excused":               {map[string]string{"a/a.go": doc + "package x\n\nimport _x \"m/x\" //arch:allow import: for a reason\n"}, ""},
		"tests import freely":          {map[string]string{"a/a.go": good, "a/a_test.go": "package x\n\nimport \"m/x\"\n"}, ""},
		"package without row":          {map[string]string{"y/x.go": good}, "import"},
		"vague name":                   {map[string]string{"b/util/x.go": good}, "package-name"},
		"vague name inside":            {map[string]string{"b/common/z/x.go": good}, "package-name"},
		"no package comment":           {map[string]string{"x/x.go": "package x\n"}, "package-comment"},
		"detached package comment":     {map[string]string{"x/x.go": strings.TrimSuffix(doc, "\n") + "\n\npackage x\n"}, "package-comment"},
		"package comment by form":      {map[string]string{"x/x.go": strings.Replace(doc, "Package x", "This", 1) + "package x\n"}, "package-comment"},
		"empty package comment":        {map[string]string{"x/x.go": "// Package x does x.\npackage x\n"}, "package-comment"},
		"comment in the test only":     {map[string]string{"x/x.go": "package x\n", "x/x_test.go": good}, "package-comment"},
		"package of tests":             {map[string]string{"x/x_test.go": strings.Replace(good, "package x", "package x_test", 1)}, ""},
		"package of tests, no comment": {map[string]string{"x/x_test.go": "package x_test\n"}, "package-comment"},
		"long file":                    {map[string]string{"x/x.go": good + lines(archtest.MaxFileLines)}, "file-lines"},
		"long file excused":            {map[string]string{"x/x.go": "//arch:allow file-lines: a table\n\n" + good + lines(archtest.MaxFileLines)}, ""},
		"excused too low":              {map[string]string{"x/x.go": good + "\n//arch:allow file-lines: a table\n" + lines(archtest.MaxFileLines)}, "allow file-lines"},
		"long test file":               {map[string]string{"x/x.go": good, "x/x_test.go": "package x\n" + lines(archtest.MaxFileLines)}, ""},
		"largest file":                 {map[string]string{"x/x.go": good + lines(archtest.MaxFileLines-2)}, ""},
		"large package":                {map[string]string{"x/1.go": good + lines(790), "x/2.go": good + lines(790), "x/3.go": good + lines(790), "x/4.go": good + lines(790)}, "package-lines"},
		"large package excused":        {map[string]string{"x/1.go": "//arch:allow package-lines: why\n\n" + good + lines(780), "x/2.go": good + lines(790), "x/3.go": good + lines(790), "x/4.go": good + lines(790)}, ""},
		"long function":                {map[string]string{"x/x.go": longFunc("")}, "func-lines"},
		"long function excused":        {map[string]string{"x/x.go": longFunc("// f does.\n//\n//arch:allow func-lines: one protocol, told in order\n")}, ""},
		"excused without reason":       {map[string]string{"x/x.go": longFunc("//arch:allow func-lines:\n")}, "allow func-lines"},
		"excused for another rule":     {map[string]string{"x/x.go": longFunc("//arch:allow file-lines: no\n")}, "allow func-lines"},
		"exception without use":        {map[string]string{"x/x.go": good + "\n//arch:allow func-lines: no\nfunc f() {}\n"}, "allow"},
		"wide interface":               {map[string]string{"x/x.go": iface("")}, "iface-methods"},
		"wide interface excused":       {map[string]string{"x/x.go": iface("//arch:allow iface-methods: generated shape\n")}, ""},
		"math/rand":                    {map[string]string{"x/x.go": code("math/rand", "")}, "math-rand"},
		"math/rand/v2":                 {map[string]string{"x/x.go": code("math/rand/v2", "")}, "math-rand"},
		"math/rand in a test":          {map[string]string{"x/x.go": good, "x/x_test.go": "package x\n\nimport \"math/rand\"\n"}, ""},
		"InsecureSkipVerify":           {map[string]string{"x/x.go": code("crypto/tls", "var c = tls.Config{InsecureSkipVerify: true}")}, "insecure"},
		"InsecureSkipVerify by field":  {map[string]string{"x/x.go": code("crypto/tls", "func f(c *tls.Config) { c.InsecureSkipVerify = true }")}, "insecure"},
		"InsecureSkipVerify in a test": {map[string]string{"x/x.go": good, "x/x_test.go": code("crypto/tls", "var c = tls.Config{InsecureSkipVerify: true}")}, "insecure"},
		"init":                         {map[string]string{"x/x.go": code("", "func init() {}")}, "init"},
		"method called init":           {map[string]string{"x/x.go": code("", "type T int\n\nfunc (T) init() {}")}, ""},
		"side-effect import":           {map[string]string{"x/x.go": doc + "package x\n\nimport _ \"image/png\"\n"}, "side-effect"},
		"embed":                        {map[string]string{"x/x.go": doc + "package x\n\nimport _ \"embed\"\n"}, ""},
		"fmt.Println":                  {map[string]string{"x/x.go": code("fmt", "func f() { fmt.Println() }")}, "print"},
		"fmt.Printf passed on":         {map[string]string{"x/x.go": code("fmt", "var f = fmt.Printf")}, "print"},
		"fmt.Fprintln":                 {map[string]string{"x/x.go": code("fmt", "func f() { fmt.Fprintln(nil) }")}, ""},
		"fmt.Println in cli":           {map[string]string{"internal/cli/x.go": code("fmt", "func f() { fmt.Println() }")}, ""},
		"println":                      {map[string]string{"x/x.go": code("", "func f() { println(1) }")}, "print"},
		"os.Exit":                      {map[string]string{"x/x.go": code("os", "func f() { os.Exit(1) }")}, "exit"},
		"os.Exit in cli":               {map[string]string{"internal/cli/x.go": code("os", "func f() { os.Exit(1) }")}, "exit"},
		"os.Exit in cmd":               {map[string]string{"cmd/tool/x.go": code("os", "func f() { os.Exit(1) }")}, ""},
		"log.Fatal":                    {map[string]string{"x/x.go": code("log", "func f() { log.Fatal(1) }")}, "log"},
		"sleep in a test":              {map[string]string{"x/x.go": good, "x/x_test.go": code("time", "func f() { time.Sleep(1) }")}, "sleep"},
		"sleep in a bubble":            {map[string]string{"x/x.go": good, "x/x_test.go": code("time testing/synctest", "func f() { synctest.Test(nil, func(t *T) { time.Sleep(1) }) }")}, ""},
		"sleep beside a bubble":        {map[string]string{"x/x.go": good, "x/x_test.go": code("time testing/synctest", "func f() { synctest.Test(nil, func(t *T) { })\n time.Sleep(1) }")}, "sleep"},
		"sleep excused":                {map[string]string{"x/x.go": good, "x/x_test.go": code("time", "func f() {\n\ttime.Sleep(1) //arch:allow sleep: called in a bubble only\n}")}, ""},
		"t.Skip":                       {map[string]string{"x/x.go": good, "x/x_test.go": code("testing", "func f(t *testing.T) { t.Skip() }")}, "skip"},
		"t.Skipf in a helper":          {map[string]string{"x/x.go": good, "x/x_test.go": code("testing", "func f(tb testing.TB) { tb.Skipf(\"\") }")}, "skip"},
		"testing.Short":                {map[string]string{"x/x.go": good, "x/x_test.go": code("testing", "func f() { if testing.Short() { return } }")}, "skip"},
		"a verifier's clock":           {map[string]string{"internal/attest/m/m.go": code("time", "func f() { time.Now() }")}, "pure"},
		"a clock passed on":            {map[string]string{"internal/attest/m/m.go": code("time", "var since = time.Since")}, "pure"},
		"a clock in the contract":      {map[string]string{"internal/attest/a.go": code("time", "var c = time.NewTimer")}, "pure"},
		"a clock of the machine's":     {map[string]string{"internal/attest/tpm/device.go": code("os time", "func f() { time.Now() }")}, "pure"},
		"a clock that is given":        {map[string]string{"internal/attest/m/m.go": code("time", "func f(now time.Time) bool { return now.After(time.Unix(0, 0)) }")}, ""},
		"a clock excused":              {map[string]string{"internal/attest/m/m.go": code("time", "func f() {\n\ttime.Now() //arch:allow pure: why\n}")}, ""},
		"a clock elsewhere":            {map[string]string{"x/x.go": code("time", "func f() { time.Now() }")}, ""},
		"a verifier's network":         {map[string]string{"internal/attest/m/m.go": code("net/http", "")}, "pure"},
		"a verifier's socket":          {map[string]string{"internal/attest/m/deep/m.go": code("net", "")}, "pure"},
		"a verifier's files":           {map[string]string{"internal/attest/m/m.go": code("os", "")}, "pure"},
		"a verifier's chance":          {map[string]string{"internal/attest/m/m.go": code("crypto/rand", "")}, "pure"},
		"addresses are values":         {map[string]string{"internal/attest/m/m.go": code("net/netip net/url", "")}, ""},
		"the machine's half":           {map[string]string{"internal/attest/tpm/device.go": code("os", "")}, ""},
		"more than its half":           {map[string]string{"internal/attest/tpm/device.go": code("net/http", "")}, "pure"},
		"beside the machine's half":    {map[string]string{"internal/attest/tpm/quote.go": code("os", "")}, "pure"},
		"a verifier's tests":           {map[string]string{"internal/attest/m/m.go": good, "internal/attest/m/m_test.go": code("os time", "func f() { time.Now() }")}, ""},
		"a package for tests":          {map[string]string{"internal/attest/m/mtest/m.go": code("os time", "func f() { time.Now() }")}, ""},
		"a chain, now":                 {map[string]string{"internal/attest/m/m.go": code("crypto/x509", "var o = x509.VerifyOptions{Roots: nil}")}, "pure"},
		"a chain, then":                {map[string]string{"internal/attest/m/m.go": code("crypto/x509", "func f(t T) any { return x509.VerifyOptions{CurrentTime: t} }")}, ""},
		"generated":                    {map[string]string{"b/x.go": "// Code generated by x. DO NOT EDIT.\n\npackage x\n\nimport \"fmt\"\n\nfunc init() { fmt.Println() }\n" + lines(900)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var rules []string
			for _, f := range archtest.Check(source(t, c.files), "m", planted) {
				rules = append(rules, f.Rule)
			}
			slices.Sort(rules)
			if got := strings.Join(slices.Compact(rules), " "); got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}

func TestPlantedTables(t *testing.T) {
	for name, c := range map[string]struct {
		table []archtest.Row
		want  int
	}{
		"good":             {planted, 0},
		"twice":            {[]archtest.Row{{"a", "", ""}, {"a", "", ""}}, 1},
		"covered by tree":  {[]archtest.Row{{"a/...", "", ""}, {"a/b", "", ""}}, 1},
		"upwards":          {[]archtest.Row{{"a", "b", ""}, {"b", "", ""}}, 1},
		"itself":           {[]archtest.Row{{"a", "a", ""}}, 1},
		"its own tree":     {[]archtest.Row{{"a/b", "", ""}, {"a/c", "a/...", ""}}, 1},
		"unknown":          {[]archtest.Row{{"a", "z", ""}}, 1},
		"tree above, part": {[]archtest.Row{{"a/...", "", ""}, {"b", "a/c", ""}}, 0},
	} {
		if got := archtest.CheckTable(c.table); len(got) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPlantedMaps(t *testing.T) {
	pkgs := []archtest.Package{{Path: "a"}, {Path: "b/c"}}
	row := func(names ...string) (out string) {
		for _, n := range names {
			out += fmt.Sprintf("| `%s` | what it knows |\n", n)
		}
		return out
	}
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"good":               {"# Map\n" + row("a", "b/..."), 0},
		"one missing":        {row("a"), 1},
		"one too many":       {row("a", "b/c", "z"), 1},
		"listed twice":       {row("a", "a", "b/c"), 1},
		"named in the prose": {row("a") + "and `b/c`\n", 1},
		"too long":           {row("a", "b/c") + strings.Repeat("\n", archtest.MaxMapLines), 1},
	} {
		if got := archtest.CheckMap(c.text, pkgs); len(got) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestLoadLeavesOutOtherModules(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"a/a.go", "a/testdata/b.go", ".git/c.go", "_x/d.go", "tools/e.go", "tools/sub/f.go"} {
		p := filepath.Join(dir, filepath.FromSlash(f))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("package x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "tools", "go.mod"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	pkgs, err := archtest.Load(dir)
	if err != nil || len(pkgs) != 1 || pkgs[0].Path != "a" {
		t.Fatalf("%v, %v", pkgs, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "bad.go"), []byte("pack"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := archtest.Load(dir); err == nil {
		t.Fatal("a file that can't be parsed went unnoticed")
	}
}
