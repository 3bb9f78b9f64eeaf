package workloadapi_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/problem"
)

// One user's calls end at a bound, and the room comes back when they end.
func TestTooManyCalls(t *testing.T) {
	h := newHouse(t, func(c *workloadapi.Config) { c.Limits.CallsPerUser = 3 })
	api := workload.NewSpiffeWorkloadAPIClient(h.dial(t))
	open := func() (context.CancelFunc, error) {
		ctx, cancel := context.WithCancel(secured(t.Context()))
		s, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return cancel, err
	}
	var ends []context.CancelFunc
	for range 3 {
		end, err := open()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	end, err := open()
	end()
	want(t, "the fourth", err, codes.ResourceExhausted, "too many calls")
	// Another connection of the same user has no room of its own.
	_, err = workload.NewSpiffeWorkloadAPIClient(h.dial(t)).FetchJWTSVID(secured(t.Context()), &workload.JWTSVIDRequest{Audience: []string{"a"}})
	want(t, "another connection", err, codes.ResourceExhausted, "too many calls")
	for _, end := range ends {
		end()
	}
	eventually(t, "room", func() bool {
		end, err := open()
		end()
		return err == nil
	})
}

// A user's identities end at a bound: those that nobody uses make room, those in use don't.
func TestTooManyIdentities(t *testing.T) {
	h := newHouse(t, func(c *workloadapi.Config) { c.Limits.IdentitiesPerUser = 2 })
	be := func(n int) { h.with(func() { h.claims = map[string]any{"n": int64(n)} }) }
	for n := range 5 {
		be(n)
		if _, err := h.client(t).FetchX509SVID(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := h.Identities(); n > 2 {
		t.Errorf("%d identities", n)
	}
	for n := range 2 {
		be(10 + n)
		watch(t, h.client(t))
	}
	be(20)
	_, err := h.client(t).FetchX509SVID(t.Context())
	want(t, "the third that is in use", err, codes.ResourceExhausted, problem.ReasonLimit)
}

// A user who makes up ever new kinds of processes is slowed down.
func TestNewIdentitiesAreRationed(t *testing.T) {
	h := newHouse(t, nil)
	h.set(func() { h.refuse = refused() })
	limited := 0
	for n := range 200 {
		h.with(func() { h.claims = map[string]any{"n": int64(n)} })
		c := workload.NewSpiffeWorkloadAPIClient(h.dial(t))
		_, err := c.FetchJWTSVID(secured(t.Context()), &workload.JWTSVIDRequest{Audience: []string{"a"}})
		if err != nil && strings.Contains(describe(err), string(problem.ReasonRateLimited)) {
			limited++
		}
	}
	if n := h.attested.Load(); n > 160 || limited < 40 {
		t.Errorf("%d attestations, %d calls limited", n, limited)
	}
}

// What is too large, unknown, or no gRPC at all, is refused, and the server goes on.
func TestHostileBytes(t *testing.T) {
	h := newHouse(t, nil)
	c := h.dial(t)
	ctx := secured(t.Context())
	large := &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: strings.Repeat("a", 200<<10)}
	_, err := workload.NewSpiffeWorkloadAPIClient(c).ValidateJWTSVID(ctx, large)
	want(t, "a large message", err, codes.ResourceExhausted, "larger than max")
	for _, method := range []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/SpiffeWorkloadAPI/Other", "/x/y",
		"/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", "/SpiffeWorkloadAPI/FetchWITBundles",
	} {
		s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		if err == nil {
			_ = s.SendMsg(&emptypb.Empty{})
			_ = s.CloseSend()
			err = s.RecvMsg(&emptypb.Empty{})
		}
		want(t, method, err, codes.Unimplemented, "")
	}
	for name, text := range map[string]string{
		"HTTP/1.1": "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "TLS": "\x16\x03\x01\x00\x05hello", "preface only": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"huge frame": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01",
	} {
		raw, err := net.Dial("unix", h.socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(raw, text)
		_ = raw.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, raw); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
		raw.Close()
	}
	if _, err := h.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Error(err)
	}
}

// A server that stops says so to whoever watches, and does not wait for who does not read.
func TestStop(t *testing.T) {
	h := newHouse(t, nil)
	h.set(func() { h.refuse = nil })
	api := workload.NewSpiffeWorkloadAPIClient(h.dial(t))
	s, err := api.FetchX509SVID(secured(t.Context()), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	h.stop()
	_, err = s.Recv()
	want(t, "a stream of a server that stops", err, codes.Unavailable, problem.ReasonStopping)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("stopping took %s", d)
	}
}

// Everything at once, for the race detector: fetches, streams that come and go, refusals, changes of bundles.
func TestTogether(t *testing.T) {
	h := newHouse(t, nil)
	h.set(func() { h.ttl = 2 * time.Second })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		c := h.client(t)
		api := workload.NewSpiffeWorkloadAPIClient(h.dial(t))
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.FetchX509Context(ctx)
				short, end := context.WithTimeout(secured(ctx), 20*time.Millisecond)
				if s, err := api.FetchX509SVID(short, &workload.X509SVIDRequest{}); err == nil {
					for err == nil {
						_, err = s.Recv()
					}
				}
				_, _ = api.FetchJWTSVID(short, &workload.JWTSVIDRequest{Audience: []string{"a"}})
				end()
			}
		})
	}
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			h.set(func() {
				h.refuse = [...]error{nil, nil, away(), held()}[n%4]
				h.noToken = [...]error{nil, away(), refused()}[n%3]
			})
			h.Look()
			if n%5 == 0 {
				h.rotateJWT(t, "k")
			}
			h.RefreshBundles()
			t := time.NewTimer(7 * time.Millisecond)
			select {
			case <-t.C:
			case <-ctx.Done():
			}
		}
	})
	wg.Wait()
	h.set(func() { h.refuse, h.noToken = nil, nil })
	h.Look()
	if _, err := h.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Error(err)
	}
}
