package control_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/control/controltest"
)

// cpu reports what the process itself spent, which other programs on the machine don't change much.
func cpu(b *testing.B) func() {
	spent := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began := spent()
	return func() { b.ReportMetric(float64((spent()-began).Microseconds())/float64(b.N), "cpu-µs/op") }
}

// What a JWT-SVID costs, durable and in the ledger before it is signed. Beside it: an X.509-SVID for a workload.
func BenchmarkIssueJWT(b *testing.B) {
	w := controltest.New(b, controltest.Options{Openings: control.Openings{PerSecond: 1e9, Burst: 1e9}})
	node := w.Node(w.Login("alice"), "web-1")
	api := w.Workload(node, "")
	b.Run("jwt", func(b *testing.B) {
		defer cpu(b)()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := w.Env.IssueJWT(b.Context(), api.Caller, control.JWTRequest{Audience: []string{"reports"}}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	_, csr := controltest.Key(b)
	b.Run("x509", func(b *testing.B) {
		defer cpu(b)()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := w.Env.AttestWorkload(b.Context(), node.Caller, control.WorkloadRequest{Claims: map[string]any{"unix": map[string]any{"uid": 1000}}, CSR: csr}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}
