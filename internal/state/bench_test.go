package state

import (
	"bytes"
	"fmt"
	"testing"
)

// BenchmarkRestore reads the snapshot of 100,000 secrets and as many leases: what a start waits for.
func BenchmarkRestore(b *testing.B) {
	const rows = 100_000
	s := New()
	for i := range rows {
		path, lease := fmt.Sprintf("other/s%d", i), uint64(i)+1
		s.Secrets.set(path, &Secret{Path: path, Current: 1, Last: 1, Versions: []*Version{{Number: 1, Sealed: lease, State: Current, Created: 1_790_000_000_000, By: "/human/alice"}}})
		l := &Lease{ID: lease, Identity: "/workload/api", Node: "/node/web-1", Session: 9, Root: 7, Secret: path, Version: 1, Purpose: "runtime", Grant: "api", Created: 1_790_000_000_000, Expires: 1_790_000_060_000, Max: 1_790_000_360_000}
		s.Leases.set(lease, l)
		s.LeaseOf.set(LeaseKey(l.Identity, l.Node, l.Secret, l.Version, l.Purpose), lease)
	}
	var w bytes.Buffer
	if err := s.Snapshot(&w); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(w.Len()))
	for b.Loop() {
		if _, err := Restore(w.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}
