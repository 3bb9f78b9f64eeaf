package archtest

import (
	"go/ast"
	"path"
	"slices"
	"strings"
)

// verifiers are the packages in which evidence is judged. What they say must follow from their input alone, or a judgement could not
// be repeated, and a server in another place would come to another one.
const verifiers = "internal/attest/..."

// Outside is what files of these packages may have of the world outside: the machine's half of a method, which makes the evidence. A clock
// is not among it for any.
var Outside = map[string]string{
	"internal/attest/aws/attester.go":      "net/http",
	"internal/attest/azure/attester.go":    "net/http",
	"internal/attest/ci/github.go":         "net/http",
	"internal/attest/gcp/gcp.go":           "net/http",
	"internal/attest/jointoken/token.go":   "crypto/rand",
	"internal/attest/metadata/metadata.go": "net net/http",
	"internal/attest/platform/attester.go": "net net/http os/exec",
	"internal/attest/tpm/attester.go":      "os",
	"internal/attest/tpm/device.go":        "os",
	"internal/attest/tsm/tsm.go":           "crypto/rand os",
	"internal/attest/x509/keys.go":         "crypto/rand",
}

var (
	worldly = []string{"crypto/rand", "net", "net/http", "os", "os/exec", "syscall"}
	clocks  = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Sleep", "Tick"}
)

// CheckPure finds verifiers that look at the clock, at the machine, at the network, or at chance. Packages for tests, whose names end in
// "test", are no verifiers. An X.509 verification without its time looks at the clock by itself.
func CheckPure(pkgs []Package) []Finding {
	var out []Finding
	for _, p := range pkgs {
		base := path.Base(p.Path)
		if !matches(verifiers, p.Path) || base != "attest" && strings.HasSuffix(base, "test") {
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			for _, spec := range f.AST.Imports {
				if imp := importPath(spec); slices.Contains(worldly, imp) && !slices.Contains(strings.Fields(Outside[f.Path]), imp) {
					out = append(out, f.at(spec, "pure", "%s may not import %s: a verifier has its input, and nothing else", p.Path, imp)...)
				}
			}
			ast.Inspect(f.AST, func(n ast.Node) bool {
				out = append(out, f.clocks(n)...)
				return true
			})
		}
	}
	return out
}

func (f *File) clocks(n ast.Node) []Finding {
	switch n := n.(type) {
	case *ast.SelectorExpr:
		if isSelector(n, "time", clocks...) {
			return f.at(n, "pure", "time.%s: a verifier's time is its input's", n.Sel.Name)
		}
	case *ast.CompositeLit:
		if name, ok := n.Type.(*ast.SelectorExpr); ok && name.Sel.Name == "VerifyOptions" && !slices.ContainsFunc(n.Elts, isField("CurrentTime")) {
			return f.at(n, "pure", "VerifyOptions without CurrentTime look at the clock: a verifier's time is its input's")
		}
	}
	return nil
}

func isField(name string) func(ast.Expr) bool {
	return func(e ast.Expr) bool {
		kv, ok := e.(*ast.KeyValueExpr)
		if !ok {
			return false
		}
		id, ok := kv.Key.(*ast.Ident)
		return ok && id.Name == name
	}
}
