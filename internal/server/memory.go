package server

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"sync"

	"github.com/bailment/bailment/internal/hardening"
)

// What lives is small and each request leaves some kilobytes behind, so at Go's default the collector runs twenty
// times a second under load, which is a tenth of the CPU. Five times the live heap runs it a quarter as often.
// That is too much memory when more lives, so the factor falls to Go's own, 2, as the heap comes to smallHeap. It never
// falls below but for a really large heap (a million leases fit into 1 GiB so), and then by a fixed factor: a limit that does not
// move with what lives makes the collector run without end above it.
const (
	generous  = 400 // percent of what lives that may be allocated until the next collection
	usual     = 100
	sparing   = 50
	smallHeap = 96 << 20
	largeHeap = 256 << 20
)

// pacePercent is the collector's pace for what lives, stacks included. It is a pure function, for its test.
func pacePercent(heap, stacks uint64) int {
	lives := max(heap+stacks, 1)
	if lives > largeHeap {
		return sparing
	}
	room := float64(smallHeap) - float64(lives)
	return int(math.Max(usual, math.Min(generous, 100*room/float64(lives))))
}

// tuneMemory gives back what opening took, and sets the collector's pace after each collection unless the operator
// has set one (GOGC, GOMEMLIMIT). What it returns ends that and puts back what was there.
func tuneMemory() (stop func()) {
	hardening.Trim()
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	p := &pace{samples: []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}}
	p.collected()
	return p.stop
}

// pace sets the collector's pace by what the last collection found alive.
type pace struct {
	mu      sync.Mutex
	samples []runtimemetrics.Sample
	before  int // the pace that was there
	percent int // ours; 0: not set yet
	stopped bool
}

// cycle is garbage from the start, so that its cleanup tells that a collection ended.
type cycle struct{ _ *cycle }

func (p *pace) collected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	runtimemetrics.Read(p.samples)
	percent := pacePercent(p.samples[0].Value.Uint64(), p.samples[1].Value.Uint64())
	// Setting it stops the world for a moment: not for what makes no difference.
	if off := percent - p.percent; off*10 > p.percent || -off*10 > p.percent {
		before := debug.SetGCPercent(percent)
		if p.percent == 0 {
			p.before = before
		}
		p.percent = percent
	}
	runtime.AddCleanup(new(cycle), (*pace).collected, p)
}

func (p *pace) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	debug.SetGCPercent(p.before)
}
