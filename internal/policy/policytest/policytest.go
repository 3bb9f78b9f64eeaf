// Package policytest reads and compiles bundles for the tests of packages above policy.
package policytest

import (
	"io/fs"

	"github.com/bailment/bailment/examples"
	"github.com/bailment/bailment/internal/policy"
)

// T is a test, or a property's.
type T interface {
	Helper()
	Fatal(args ...any)
}

// Example reads one of the examples. The files are the caller's.
func Example(t T, name string) policy.Files {
	t.Helper()
	sub, err := fs.Sub(examples.FS, name)
	if err != nil {
		t.Fatal(err)
	}
	files, err := policy.ReadFiles(sub)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Compile compiles files as a new bundle.
func Compile(t T, files policy.Files) *policy.Program {
	t.Helper()
	b, err := policy.Load(files)
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Compile(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
