package archtest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/archtest"
)

const root = "../.."

func load(t *testing.T) []archtest.Package {
	t.Helper()
	pkgs, err := archtest.Load(root)
	if err != nil {
		t.Fatal(err)
	}
	// A loader that finds nothing would make every rule pass.
	found := map[string]bool{}
	for _, p := range pkgs {
		found[p.Path] = true
	}
	for _, must := range []string{"internal/archtest", "internal/problem", "internal/attest/x509"} {
		if !found[must] {
			t.Fatalf("the loader didn't find %s among %d packages", must, len(pkgs))
		}
	}
	return pkgs
}

func report(t *testing.T, findings []archtest.Finding) {
	t.Helper()
	for _, f := range findings {
		t.Error(f)
	}
}

func TestTable(t *testing.T) { report(t, archtest.CheckTable(table)) }

func TestModule(t *testing.T) { report(t, archtest.Check(load(t), module, table)) }

// What may be used of the world is used: who no longer needs it has no right to it left.
func TestOutsideIsUsed(t *testing.T) {
	left := map[string]bool{}
	for file, imports := range archtest.Outside {
		for imp := range strings.FieldsSeq(imports) {
			left[file+" "+imp] = true
		}
	}
	for _, p := range load(t) {
		for _, f := range p.Files {
			for _, spec := range f.AST.Imports {
				delete(left, f.Path+" "+strings.Trim(spec.Path.Value, `"`))
			}
		}
	}
	for right := range left {
		t.Errorf("%s: is not imported there", right)
	}
}

func TestMap(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	report(t, archtest.CheckMap(string(text), load(t)))
}
