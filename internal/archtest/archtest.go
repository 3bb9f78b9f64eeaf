// Package archtest holds the rules of the house (DESIGN.md §14) that a compiler doesn't check: which
// package may import which, how large things may grow, what no code may do, and that ARCHITECTURE.md
// tells the truth. Its tests run the rules over the whole module, so they run with `go test ./...`.
//
// Guaranteed: each rule is a pure function over parsed files, and has a unit test with a planted
// violation that it must find; an exception stands where the violation is, with its reason, and one
// that excuses nothing is itself a finding. Not guaranteed: anything that needs types. The rules see
// syntax, so somebody who renames an import to get round one will succeed, and be seen in review.
//
// It is used by its own tests only, and imports only the standard library.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Package is one directory with Go files.
type Package struct {
	Path  string // relative to the module's root, with slashes
	Files []*File
}

// File is one parsed Go file.
type File struct {
	Path      string // relative to the module's root, with slashes
	Test      bool   // its name ends in _test.go
	Generated bool   // by the usual comment; generated files are exempt from all but the import rules
	Lines     int
	AST       *ast.File

	fset   *token.FileSet
	allows []*allow
}

// Finding is one violation.
type Finding struct {
	Rule string // the name that an exception gives
	Path string // of the file, or the package
	Line int    // 0: the whole of it
	Text string
}

func (f Finding) String() string {
	at := f.Path
	if f.Line > 0 {
		at += ":" + strconv.Itoa(f.Line)
	}
	return fmt.Sprintf("%s: %s (%s)", at, f.Text, f.Rule)
}

// Parse makes a File of source text.
func Parse(name string, src []byte) (*File, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &File{
		Path: name, Test: strings.HasSuffix(name, "_test.go"), Generated: ast.IsGenerated(tree),
		Lines: strings.Count(string(src), "\n"), AST: tree, fset: fset,
	}
	f.allows = allowsIn(f)
	return f, nil
}

// Load parses every package below root, but not other modules, testdata, and what begins with '.' or '_'.
func Load(root string) ([]Package, error) {
	byDir := make(map[string][]*File)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			return skipDir(p, rel, d.Name())
		}
		if path.Ext(rel) != ".go" {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := Parse(rel, src)
		if err != nil {
			return err
		}
		byDir[path.Dir(rel)] = append(byDir[path.Dir(rel)], f)
		return nil
	})
	pkgs := make([]Package, 0, len(byDir))
	for dir, files := range byDir {
		pkgs = append(pkgs, Package{dir, files})
	}
	slices.SortFunc(pkgs, func(a, b Package) int { return strings.Compare(a.Path, b.Path) })
	return pkgs, err
}

func skipDir(p, rel, name string) error {
	if rel == "." {
		return nil
	}
	if name == "testdata" || name == "vendor" || name[0] == '.' || name[0] == '_' {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

func (f *File) line(p token.Pos) int { return f.fset.Position(p).Line }

// at makes a finding at a node, unless an exception on that line or the one above excuses it.
func (f *File) at(n ast.Node, rule, format string, args ...any) []Finding {
	line := f.line(n.Pos())
	if f.excused(rule, line-1, line) {
		return nil
	}
	return []Finding{{rule, f.Path, line, fmt.Sprintf(format, args...)}}
}

// Check runs all rules. The unused exceptions come last, when every rule had its chance to use them.
func Check(pkgs []Package, module string, table []Row) []Finding {
	var out []Finding
	out = append(out, CheckImports(pkgs, module, table)...)
	out = append(out, CheckNames(pkgs)...)
	out = append(out, CheckComments(pkgs)...)
	out = append(out, CheckCeilings(pkgs)...)
	out = append(out, CheckForbidden(pkgs)...)
	out = append(out, CheckPure(pkgs)...)
	return append(out, CheckAllows(pkgs)...)
}
