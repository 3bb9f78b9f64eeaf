package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// Ceilings (ANCHORS §4 rule 6). They make us think; they don't forbid: an exception is one line.
// Tests are exempt, since a table of cases is long and not hard.
const (
	MaxFileLines    = 800
	MaxFuncLines    = 80
	MaxIfaceMethods = 5
	MaxPackageLines = 3000
	MinPackageDoc   = 80 // bytes: shorter than this says nothing
)

// vague names say where code was put, not what it knows.
var vague = []string{"util", "utils", "common", "helper", "helpers", "core", "types", "models", "model", "misc", "shared", "base", "lib"}

// CheckNames finds packages named for a layer or a convenience.
func CheckNames(pkgs []Package) []Finding {
	var out []Finding
	for _, p := range pkgs {
		for segment := range strings.SplitSeq(p.Path, "/") {
			if slices.Contains(vague, segment) {
				out = append(out, Finding{"package-name", p.Path, 0, fmt.Sprintf("%q names no knowledge", segment)})
			}
		}
	}
	return out
}

// CheckComments finds packages without a package comment in the form that godoc expects.
func CheckComments(pkgs []Package) []Finding {
	var out []Finding
	for _, p := range pkgs {
		doc, hasCode, name := "", false, ""
		for _, f := range p.Files {
			hasCode = hasCode || !f.Test
		}
		generated := true
		for _, f := range p.Files {
			generated = generated && f.Generated
			// A package of tests only is described in one of them.
			if f.AST.Doc != nil && (!f.Test || !hasCode) {
				doc, name = doc+f.AST.Doc.Text(), strings.TrimSuffix(f.AST.Name.Name, "_test")
			}
		}
		switch {
		case generated:
		case doc == "":
			out = append(out, Finding{"package-comment", p.Path, 0, "no package comment"})
		case name != "main" && !strings.HasPrefix(doc, "Package "+name+" "):
			out = append(out, Finding{"package-comment", p.Path, 0, "the package comment does not begin with \"Package " + name + " \""})
		case len(doc) < MinPackageDoc:
			out = append(out, Finding{"package-comment", p.Path, 0, "the package comment does not say what is guaranteed, what is not, and its place"})
		}
	}
	return out
}

// CheckCeilings finds what has grown too large.
func CheckCeilings(pkgs []Package) []Finding {
	var out []Finding
	for _, p := range pkgs {
		total, excused := 0, false
		for _, f := range p.Files {
			if f.Test || f.Generated {
				continue
			}
			total += f.Lines
			clause := f.line(f.AST.Package)
			if f.Lines > MaxFileLines && !f.excused("file-lines", 1, clause) {
				out = append(out, Finding{"file-lines", f.Path, 0, fmt.Sprintf("%d lines (ceiling %d)", f.Lines, MaxFileLines)})
			}
			out = append(out, f.checkDecls()...)
		}
		if total <= MaxPackageLines {
			continue
		}
		for _, f := range p.Files {
			excused = excused || f.excused("package-lines", 1, f.line(f.AST.Package))
		}
		if !excused {
			out = append(out, Finding{"package-lines", p.Path, 0, fmt.Sprintf("%d lines (ceiling %d)", total, MaxPackageLines)})
		}
	}
	return out
}

func (f *File) checkDecls() []Finding {
	var out []Finding
	for _, d := range f.AST.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			lines := f.line(d.End()) - f.line(d.Pos()) + 1
			if lines > MaxFuncLines && !f.excused("func-lines", f.docStart(d.Doc, d), f.line(d.Pos())) {
				out = append(out, Finding{"func-lines", f.Path, f.line(d.Pos()), fmt.Sprintf("%s has %d lines (ceiling %d)", d.Name.Name, lines, MaxFuncLines)})
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if ts, ok := s.(*ast.TypeSpec); ok && d.Tok == token.TYPE {
					out = append(out, f.checkIface(d, ts)...)
				}
			}
		}
	}
	return out
}

func (f *File) checkIface(d *ast.GenDecl, ts *ast.TypeSpec) []Finding {
	iface, ok := ts.Type.(*ast.InterfaceType)
	if !ok {
		return nil
	}
	methods := 0
	for _, m := range iface.Methods.List {
		methods += len(m.Names) // embedded interfaces are counted where they are declared
	}
	from := f.docStart(d.Doc, d)
	if ts.Doc != nil {
		from = f.line(ts.Doc.Pos())
	}
	if methods <= MaxIfaceMethods || f.excused("iface-methods", from, f.line(ts.Pos())) {
		return nil
	}
	return []Finding{{"iface-methods", f.Path, f.line(ts.Pos()), fmt.Sprintf("%s has %d methods (ceiling %d)", ts.Name.Name, methods, MaxIfaceMethods)}}
}

func (f *File) docStart(doc *ast.CommentGroup, n ast.Node) int {
	if doc != nil {
		return f.line(doc.Pos())
	}
	return f.line(n.Pos()) - 1
}
