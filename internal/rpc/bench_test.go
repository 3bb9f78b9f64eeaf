package rpc_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/server/servertest"
)

// BenchmarkGet is a read of 1 KiB over TLS and HTTP/1.1, with 64 keep-alive clients on their own connections.
// Client and server share the process; test/bench measures the server by itself.
func BenchmarkGet(b *testing.B) {
	h := servertest.Start(b, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.IdentityRequests, c.Limits.SourceRequests = config.Rate{PerSecond: 1e6, Burst: 1e6}, config.Rate{PerSecond: 1e6, Burst: 1e6}
	}})
	alice := h.Login("alice")
	if _, err := alice.Secret.Put(b.Context(), &pb.PutRequest{Secret: "app/password", Value: bytes.Repeat([]byte("x"), 1024)}); err != nil {
		b.Fatal(err)
	}
	app := h.App("web-1")
	body, err := proto.Marshal(&pb.GetRequest{Secret: "app/password"})
	if err != nil {
		b.Fatal(err)
	}
	client := h.Client(app.Cert, false)
	url := h.URL() + "/bailment.v1.SecretService/Get"
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			res, err := client.Post(url, "application/proto", bytes.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
				b.Error(res.Status, err)
			}
			res.Body.Close()
		}
	})
}
