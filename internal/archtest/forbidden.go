package archtest

import (
	"go/ast"
	"slices"
	"strings"
)

// printers are the packages that may write to standard output: the command line, and what
// generates documents at build time.
var printers = []string{"test/bench", "internal/cli/...", "cmd/..."}

// CheckForbidden finds what no code of the house does. Generated files are exempt.
func CheckForbidden(pkgs []Package) []Finding {
	var out []Finding
	for _, p := range pkgs {
		for _, f := range p.Files {
			if f.Generated {
				continue
			}
			out = append(out, f.forbiddenImports()...)
			out = append(out, f.forbiddenDecls()...)
			bubbles := f.bubbles()
			ast.Inspect(f.AST, func(n ast.Node) bool {
				out = append(out, f.forbiddenNode(p.Path, n, bubbles)...)
				return true
			})
		}
	}
	return out
}

func (f *File) forbiddenImports() []Finding {
	var out []Finding
	for _, spec := range f.AST.Imports {
		imp := importPath(spec)
		if !f.Test && (imp == "math/rand" || imp == "math/rand/v2") {
			out = append(out, f.at(spec, "math-rand", "%s is guessable: use crypto/rand", imp)...)
		}
		if spec.Name != nil && spec.Name.Name == "_" && imp != "embed" && !f.Test {
			out = append(out, f.at(spec, "side-effect", "import of %s for its side effect: use one visible table", imp)...)
		}
	}
	return out
}

func (f *File) forbiddenDecls() []Finding {
	var out []Finding
	for _, d := range f.AST.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			out = append(out, f.at(fn, "init", "init hides the wiring: use one visible table")...)
		}
	}
	return out
}

// bubbles are the function literals given to synctest.Test, where sleeping takes no time.
func (f *File) bubbles() []ast.Node {
	var out []ast.Node
	ast.Inspect(f.AST, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && isSelector(call.Fun, "synctest", "Test") {
			out = append(out, call)
		}
		return true
	})
	return out
}

func isSelector(e ast.Expr, pkg string, names ...string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == pkg && slices.Contains(names, sel.Sel.Name)
}

func (f *File) forbiddenNode(pkg string, n ast.Node, bubbles []ast.Node) []Finding {
	switch n := n.(type) {
	case *ast.Ident:
		if n.Name == "InsecureSkipVerify" {
			return f.at(n, "insecure", "there is no insecure option: pin what is expected instead")
		}
	case *ast.SelectorExpr:
		return f.forbiddenUse(pkg, n, bubbles)
	case *ast.CallExpr:
		if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "print" || id.Name == "println") {
			return f.at(n, "print", "%s is for debugging", id.Name)
		}
	}
	return nil
}

// forbiddenUse looks at uses, not at calls, so that passing time.Sleep on is found too.
func (f *File) forbiddenUse(pkg string, sel *ast.SelectorExpr, bubbles []ast.Node) []Finding {
	in := func(patterns ...string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
	}
	inBubble := slices.ContainsFunc(bubbles, func(b ast.Node) bool { return b.Pos() <= sel.Pos() && sel.End() <= b.End() })
	if f.Test {
		switch {
		case isSelector(sel, "time", "Sleep") && !inBubble:
			return f.at(sel, "sleep", "time.Sleep in a test: wait for the event, or use testing/synctest")
		case strings.HasPrefix(sel.Sel.Name, "Skip") && isTestVar(sel) || isSelector(sel, "testing", "Short"):
			return f.at(sel, "skip", "a skipped test proves nothing: install what it needs (scripts/deps)")
		}
		return nil
	}
	switch {
	case isSelector(sel, "fmt", "Print", "Printf", "Println") && !in(printers...):
		return f.at(sel, "print", "fmt.%s outside of the command line", sel.Sel.Name)
	case isSelector(sel, "os", "Exit") && !in("cmd/..."):
		return f.at(sel, "exit", "os.Exit outside of cmd: return an error")
	case isSelector(sel, "log", "Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln", "Print", "Printf", "Println"):
		return f.at(sel, "log", "log.%s: return an error, or use slog", sel.Sel.Name)
	case isSelector(sel, "syscall", "Exit"):
		return f.at(sel, "exit", "syscall.Exit: return an error")
	}
	return nil
}

func isTestVar(sel *ast.SelectorExpr) bool {
	id, ok := sel.X.(*ast.Ident)
	return ok && slices.Contains([]string{"t", "b", "f", "tb", "rt"}, id.Name) && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name)
}
