//go:build planted_nosync

package sqlite

// syncPragma is a planted fault: with this build tag nothing is synced, and the tests that pull
// the plug (test/faults) must notice. It is never part of a release.
const syncPragma = "OFF"
