//go:build race

package hardening

// The race detector keeps shadow memory several times the heap and never gives it back, so what
// the kernel counts says nothing about the heap. The figures are checked in a run without it.
const raceDetector = true
