// Package examples holds bundles that are complete and valid, as a start for one's own and for
// tests. It guarantees that each compiles, and that no weaker rule passes its tests; it does not
// guarantee that its keys are anybody's. It is a leaf: files only.
package examples

import "embed"

// FS holds each example as a directory by its name: "payments", "ci", "estate".
//
//go:embed all:payments all:ci all:estate
var FS embed.FS
