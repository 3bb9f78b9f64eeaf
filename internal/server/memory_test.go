package server

import (
	"runtime"
	runtimemetrics "runtime/metrics"
	"testing"
	"time"
)

func TestPacePercent(t *testing.T) {
	const mib = 1 << 20
	for _, x := range []struct {
		heap, stacks uint64
		want         int
	}{
		{0, 0, generous}, {19 * mib, 0, generous}, {24 * mib, 0, 300}, {20 * mib, 4 * mib, 300}, {48 * mib, 0, usual}, {128 * mib, 0, usual}, {256 * mib, 0, usual}, {257 * mib, 0, sparing}, {4096 * mib, 0, sparing},
	} {
		if got := pacePercent(x.heap, x.stacks); got != x.want {
			t.Errorf("%d MiB live and %d MiB of stacks: %d %%, want %d", x.heap/mib, x.stacks/mib, got, x.want)
		}
	}
}

// kept is what lives during a test: a variable of a function would be garbage after its last use.
var kept, dropped [][]byte

// What lives may outgrow what is expected of it: the collector then runs as often as anywhere, and not
// without end. A soft limit of 128 MiB makes hundreds of collections of this.
func TestCollectorDoesNotThrash(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	stop := tuneMemory()
	defer stop()
	const block, live, made = 1 << 20, 192, 1024
	defer func() { kept, dropped = nil, nil }()
	for range live {
		kept = append(kept, make([]byte, block))
	}
	// The pace follows each collection, a moment later.
	paced := []runtimemetrics.Sample{{Name: "/gc/gogc:percent"}}
	for deadline := time.Now().Add(10 * time.Second); paced[0].Value.Kind() == runtimemetrics.KindBad || paced[0].Value.Uint64() != usual; runtimemetrics.Read(paced) {
		if time.Now().After(deadline) {
			t.Fatalf("the pace is %d, not %d", paced[0].Value.Uint64(), usual)
		}
		runtime.GC()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	turn := time.NewTicker(time.Millisecond)
	defer turn.Stop()
	for i := range made {
		dropped = append(dropped[:0], make([]byte, block))
		if i%4 == 0 {
			<-turn.C // the collector's, on a machine that is busy: nothing else here takes any time
		}
	}
	runtime.ReadMemStats(&after)
	n := after.NumGC - before.NumGC
	t.Logf("%d MiB allocated beside %d MiB that live: %d collections, %d MiB from the system", made, live, n, after.Sys>>20)
	if most := uint32(made/live + 4); n > most {
		t.Errorf("%d collections, want at most %d", n, most)
	}
	if heap := after.HeapSys - after.HeapReleased; heap > 4*live*block {
		t.Errorf("%d MiB of heap for %d MiB that live", heap>>20, live)
	}
}
