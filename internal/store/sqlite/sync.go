//go:build !planted_nosync

package sqlite

// syncPragma is PRAGMA synchronous: FULL syncs the write-ahead log at every commit, which is what
// "durable when Append returns" rests on.
const syncPragma = "FULL"
