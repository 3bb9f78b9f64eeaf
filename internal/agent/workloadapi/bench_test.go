package workloadapi_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// cpu is what this process has used, in ns.
func cpu(tb testing.TB) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkFetch is one FetchX509SVID, from the call to its end, as every kind of client makes it: over a connection that it has
// already. The CPU is that of client and server together. The budget of the server is 200 µs of CPU, and 10,000 a second.
func BenchmarkFetch(b *testing.B) {
	h := newHouse(b, nil)
	for name, clients := range map[string]int{"1": 1, "16": 16} {
		b.Run(name, func(b *testing.B) {
			apis := make([]workload.SpiffeWorkloadAPIClient, clients)
			for i := range apis {
				apis[i] = workload.NewSpiffeWorkloadAPIClient(h.dial(b))
				fetch(b, apis[i])
			}
			b.ReportAllocs()
			before := cpu(b)
			b.ResetTimer()
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			for _, api := range apis {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						fetch(b, api)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1e3, "cpu-µs/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "fetches/s")
		})
	}
}

func fetch(tb testing.TB, api workload.SpiffeWorkloadAPIClient) {
	ctx, cancel := context.WithCancel(secured(context.Background()))
	defer cancel()
	s, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		tb.Error(err)
	}
}

// BenchmarkConnect is what a process costs that connects, fetches once, and goes.
func BenchmarkConnect(b *testing.B) {
	h := newHouse(b, nil)
	before := cpu(b)
	for b.Loop() {
		c, err := grpc.NewClient(h.addr(), grpc.WithTransportCredentials(plain()))
		if err != nil {
			b.Fatal(err)
		}
		fetch(b, workload.NewSpiffeWorkloadAPIClient(c))
		c.Close()
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1e3, "cpu-µs/op")
}

// BenchmarkFloor is an empty call of the same kind that gRPC refuses at once: what the protocol alone costs.
func BenchmarkFloor(b *testing.B) {
	h := newHouse(b, nil)
	c := h.dial(b)
	before := cpu(b)
	for b.Loop() {
		_ = c.Invoke(b.Context(), "/x/y", &workload.X509SVIDRequest{}, &workload.X509SVIDResponse{})
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1e3, "cpu-µs/op")
}
