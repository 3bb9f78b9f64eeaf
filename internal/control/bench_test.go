package control_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
	"github.com/bailment/bailment/internal/seal"
)

// BenchmarkGet is a secret read with everything on but the network: session, decision, decryption, entry, sync.
func BenchmarkGet(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			w := controltest.New(b, controltest.Options{})
			alice := w.Login("alice")
			node := w.Node(alice, "web-1")
			actors := make([]controltest.Actor, clients)
			for i := range actors {
				actors[i] = w.Workload(node, "")
				w.Put(alice, fmt.Sprintf("db/s%d", i), string(make([]byte, 1024)))
			}
			b.ReportAllocs()
			run(b, clients, func(i int) error {
				out, err := w.Env.Get(context.Background(), actors[i].Caller, control.GetRequest{Secret: fmt.Sprintf("db/s%d", i)})
				if err == nil {
					out.Value.Wipe()
				}
				return err
			})
		})
	}
}

// BenchmarkPut is a write of 1 KiB.
func BenchmarkPut(b *testing.B) {
	w := controltest.New(b, controltest.Options{})
	alice := w.Login("alice")
	value := seal.NewSecret(make([]byte, 1024))
	b.ReportAllocs()
	run(b, 64, func(i int) error {
		_, err := w.Env.Put(context.Background(), alice.Caller, control.PutRequest{Secret: fmt.Sprintf("node/s%d", i), Value: value})
		return err
	})
}

func run(b *testing.B, clients int, do func(i int) error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}
