package archtest

import (
	"fmt"
	"go/ast"
	"slices"
	"strconv"
	"strings"
)

// Row says what one package, or one tree of packages ("api/..."), may import outside of its tests.
// Rows stand from the bottom of the house to its top, and a row may name only rows above it, so
// that arrows can only go down.
type Row struct {
	Package  string
	Imports  string // of this module, separated by spaces; "x/..." is the whole tree
	External string // of other modules, by prefix, separated by spaces; the standard library is free
}

func matches(pattern, pkg string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == tree || strings.HasPrefix(pkg, tree+"/")
	}
	return pattern == pkg
}

func rowOf(table []Row, pkg string) (Row, bool) {
	for _, r := range table {
		if matches(r.Package, pkg) {
			return r, true
		}
	}
	return Row{}, false
}

// CheckTable finds what is wrong with the table itself: a row twice, or an arrow that goes up.
func CheckTable(table []Row) []Finding {
	var out []Finding
	for i, r := range table {
		if _, twice := rowOf(table[:i], r.Package); twice {
			out = append(out, Finding{"import-table", r.Package, 0, "has two rows"})
		}
		for imp := range strings.FieldsSeq(r.Imports) {
			below := slices.ContainsFunc(table[:i], func(b Row) bool { return b.Package == imp || matches(imp, b.Package) || matches(b.Package, imp) })
			// A tree may be named whole by its own root's row only below it.
			if !below || matches(imp, r.Package) {
				out = append(out, Finding{"import-table", r.Package, 0, "may import " + imp + ", which is not below it"})
			}
		}
	}
	return out
}

// CheckImports finds packages without a row, and imports that their row doesn't have. Tests may
// import what they like: they look from outside.
func CheckImports(pkgs []Package, module string, table []Row) []Finding {
	var out []Finding
	for _, p := range pkgs {
		row, ok := rowOf(table, p.Path)
		if !ok {
			out = append(out, Finding{"import", p.Path, 0, "this package has no row in the import table"})
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			for _, spec := range f.AST.Imports {
				if why := row.forbids(importPath(spec), module, p.Path); why != "" {
					out = append(out, f.at(spec, "import", "%s", why)...)
				}
			}
		}
	}
	return out
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return p
}

// forbids says why the row forbids an import, or "".
func (r Row) forbids(imp, module, from string) string {
	if imp == "C" {
		return "cgo: the binary is static, and what C does no rule sees"
	}
	if local, ok := strings.CutPrefix(imp, module+"/"); ok {
		inTree := strings.HasSuffix(r.Package, "/...") && matches(r.Package, local)
		for allowed := range strings.FieldsSeq(r.Imports) {
			inTree = inTree || matches(allowed, local)
		}
		if inTree {
			return ""
		}
		return fmt.Sprintf("%s may not import %s", from, local)
	}
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		return "" // the standard library
	}
	for allowed := range strings.FieldsSeq(r.External) {
		if imp == allowed || strings.HasPrefix(imp, allowed+"/") {
			return ""
		}
	}
	return fmt.Sprintf("%s may not import %s", from, imp)
}
