// Package storetest is the storage contract of package store, executable: what any engine must
// pass (Run), and a wrapper that fails on purpose (Faulty) for the tests of whoever uses a store.
//
// Guaranteed: each sentence of store.go that can be observed through the interface has a case
// here, and the suite has itself been shown to fail on engines that break them (mutants_test.go of
// store/sqlite). Not covered: power cuts and single system calls, which test/faults pulls, since
// no engine can be asked for them in a common way.
package storetest

import (
	"context"
	"testing"

	"github.com/bailment/bailment/internal/store"
)

// Site is a place for one store, and the means to break it. Methods fail the test by the
// testing.TB that the Factory got, where they have no error to return.
type Site interface {
	// Create makes the store and opens it; Open opens it after Close or Crash.
	Create(ctx context.Context) (store.Store, error)
	Open(ctx context.Context) (store.Store, error)
	// Crash ends a handle as kill -9 would: nothing of what it still holds in memory is written.
	// The handle is not used again; Open then finds what was on disk.
	Crash(s store.Store)
	// FailWrite makes the n-th (from 1) statement which handles of this Site send to the database
	// to write, from now on, fail once: instead of being done, or after it was done. Beginning
	// and committing count as such statements. The result tells whether it came to that; calling
	// it again, or FailWrite with n = 0, disarms. A Site that can't do it returns nil.
	FailWrite(n int, after bool) (fired func() bool)
}

// Factory makes an empty Site, which lives as long as the test.
type Factory func(t testing.TB) Site

// Case is one case of the suite.
type Case struct {
	Name string
	Run  func(t testing.TB, site Site)
}

// Run runs the suite.
func Run(t *testing.T, f Factory) {
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			c.Run(t, f(t))
		})
	}
}

// Cases lists the suite, cheap cases first.
func Cases() []Case {
	return []Case{
		{"CreateAndOpenAreDifferent", testCreateOpen},
		{"EmptyStoreHasNothing", testEmpty},
		{"EverythingComesBack", testRoundTrip},
		{"TimeIsKept", testTime},
		{"ConflictWritesNothing", testConflict},
		{"InvalidBatchWritesNothing", testInvalid},
		{"BlobsAreIdempotent", testBlobs},
		{"KeysAreReplaced", testKeys},
		{"RewrapChangesTheWrapOnly", testRewrap},
		{"ShredRemoves", testShred},
		{"WipeRemovesAll", testWipe},
		{"RedactKeepsTheCommitment", testRedact},
		{"RedactedEntriesAreTaken", testRedactedEntries},
		{"CheckpointNewestWins", testCheckpoint},
		{"SnapshotsKeepTwo", testSnapshots},
		{"EntriesInPages", testEntriesPaging},
		{"EntriesCallbackMayUseTheStore", testEntriesReentrant},
		{"HashesInAnyOrder", testHashes},
		{"SealedUnderInPages", testSealedUnder},
		{"ContextsBoundWaiting", testContexts},
		{"ClosedHandleIsFatal", testClosed},
		{"SizeGrows", testSize},
		{"CrashLosesNothing", testCrash},
		{"RacingAppendsOneWins", testRace},
		{"ReadersSeeWholeBatches", testReaders},
		{"RandomLife", testRandom},
		{"FailedAppend", testFailedAppend},
		{"FailedPutCheckpoint", testFailedCheckpoint},
		{"FailedPutSnapshot", testFailedSnapshot},
		{"BigBatch", testBigBatch},
	}
}

// create makes the site's store and closes it with the test.
func create(t testing.TB, site Site) store.Store {
	t.Helper()
	s, err := site.Create(context.Background())
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// open opens the site's store and closes it with the test.
func open(t testing.TB, site Site) store.Store {
	t.Helper()
	s, err := site.Open(context.Background())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// reopen closes and opens.
func reopen(t testing.TB, site Site, s store.Store) store.Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return open(t, site)
}
