package agent

import (
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/agent/workload"
)

// BenchmarkWhoAsks is what an agent pays to know who asks, from the connection to the moment before an answer is written. The
// executable is known already if this test is not root's and its binary is: what root may change is never remembered for root.
func BenchmarkWhoAsks(b *testing.B) {
	m := newMeasurer()
	i, err := workload.New(workload.Config{Measure: m.measureProcess})
	if err != nil {
		b.Fatal(err)
	}
	defer i.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fds[1])
	f := os.NewFile(uintptr(fds[0]), "")
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	var before time.Duration
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n == 0 {
			before = used()
		}
		p, err := i.Open(c.(*net.UnixConn))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Claims(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := p.Same(); err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
	b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(len(m.known)), "remembered")
}
