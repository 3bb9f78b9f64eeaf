package rpc_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/server/servertest"
)

func decodeJSON(t *testing.T, r io.Reader, m proto.Message) {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
}

// Ten megabytes, announced and not announced, over both versions of HTTP.
func TestOversized(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	big := bytes.Repeat([]byte("x"), 10<<20)
	for _, x := range []struct {
		name  string
		http2 bool
		body  func() io.Reader
	}{
		{"HTTP/1.1, announced", false, func() io.Reader { return bytes.NewReader(big) }},
		{"HTTP/1.1, chunked", false, func() io.Reader { return io.MultiReader(bytes.NewReader(big)) }},
		{"HTTP/2, announced", true, func() io.Reader { return bytes.NewReader(big) }},
		{"HTTP/2, not announced", true, func() io.Reader { return io.MultiReader(bytes.NewReader(big)) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			code, _, body := post(t, h.Client(alice.Cert, x.http2), h.URL()+"/bailment.v1.SecretService/Put", "application/json", x.body())
			if code != http.StatusBadRequest || !strings.Contains(body, `"reason":"too-large"`) {
				t.Fatalf("%d %s", code, body)
			}
		})
	}
	if got := sums(t, h, "request"); got["too-large"] != 4 {
		t.Fatalf("accounted: %v", got)
	}
	put(t, alice, "app/password", "the server still answers")
}

// Requests that arrive share a memory; who comes when it is full is told to come again.
func TestRequestMemory(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.RequestMemory, c.Limits.BundleBytes, c.Limits.RequestBytes = 1<<20, 1<<20, 1<<20
	}})
	alice := h.Login("alice")
	client := h.Client(alice.Cert, true)
	// The first sends most of its body and waits. If the second was quicker to fill the memory, it is the first that is refused: once more.
	first := make(chan string, 1)
	begin := func() *io.PipeWriter {
		pr, pw := io.Pipe()
		go func() {
			_, _, body := postQuietly(client, h.URL()+"/bailment.v1.SecretService/Put", pr)
			first <- body
		}()
		_, _ = pw.Write(bytes.Repeat([]byte(" "), 700<<10)) // fails if it is refused
		return pw
	}
	pw := begin()
	within(t, "the second is refused", func() bool {
		select {
		case body := <-first:
			if !strings.Contains(body, "overloaded") {
				t.Fatal(body)
			}
			pw = begin()
		default:
		}
		code, header, body := post(t, client, h.URL()+"/bailment.v1.SecretService/Put", "application/json", bytes.NewReader(bytes.Repeat([]byte(" "), 800<<10)))
		return code == http.StatusTooManyRequests && strings.Contains(body, `"reason":"overloaded"`) && header.Get("Retry-After") == "1"
	})
	_, _ = pw.Write([]byte(`{"secret":"app/password","value":"eA=="}`))
	_ = pw.Close()
	if body := <-first; !strings.Contains(body, `"version":"1"`) {
		t.Fatal(body)
	}
	code, _, body := post(t, client, h.URL()+"/bailment.v1.SecretService/Put", "application/json", bytes.NewReader(bytes.Repeat([]byte(" "), 800<<10)))
	if code != http.StatusBadRequest || strings.Contains(body, "overloaded") {
		t.Fatalf("memory was not given back: %d %s", code, body)
	}
}

func postQuietly(c *http.Client, url string, body io.Reader) (int, http.Header, string) {
	res, err := c.Post(url, "application/json", body)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(b)
}

// A client that sends a byte now and then is cut off after the time that a whole request has, and
// nobody else waits for it.
func TestSlowClient(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Timeouts.ReadHeader, c.Timeouts.Read = time.Second, 2*time.Second // long enough for whom a busy machine holds up
	}})
	put(t, h.Login("alice"), "app/password", "sesame")
	app := h.App("web-1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()

	slow := func(head string) (answer string, err error) {
		c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(app.Cert))
		if err != nil {
			return "", err
		}
		defer c.Close()
		if _, err := io.WriteString(c, head); err != nil {
			return "", err
		}
		end := make(chan struct{})
		defer close(end)
		go func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					if _, err := c.Write([]byte("x")); err != nil {
						return
					}
				case <-end:
					return
				}
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(15 * time.Second))
		b, err := io.ReadAll(bufio.NewReader(c))
		return string(b), err
	}
	line := "POST /bailment.v1.SecretService/Get HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := slow(line + "X-Slow: "); isTimeout(err) {
				t.Error("a slow header was never cut off")
			}
		})
		wg.Go(func() {
			b, err := slow(line + "Content-Length: 1000\r\n\r\n{")
			if isTimeout(err) {
				t.Error("a slow body was never cut off")
			}
			if b != "" && !strings.Contains(b, "resource_exhausted") {
				t.Errorf("a slow body was answered %q", b)
			}
		})
	}
	slowOnes := make(chan struct{})
	go func() { wg.Wait(); close(slowOnes) }()
	reads, worst := 0, time.Duration(0)
	for open := true; open; {
		select {
		case <-slowOnes:
			open = false
		default:
		}
		began := time.Now()
		if _, err := app.Secret.Get(ctx, &pb.GetRequest{Secret: "app/password"}); err != nil {
			t.Fatal(err)
		}
		reads, worst = reads+1, max(worst, time.Since(began))
	}
	t.Logf("%d reads beside 16 slow clients, the slowest %s", reads, worst)
	if reads < 5 || worst > 2*time.Second {
		t.Errorf("the others were slowed down: %d reads, the slowest %s", reads, worst)
	}
	within(t, "16 slow ones are accounted for", func() bool { return sums(t, h, "request")["too-slow"] >= 16 })
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func TestRates(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.IdentityRequests = config.Rate{PerSecond: 0.01, Burst: 5}
		c.Limits.UnprovedAttempts = config.Rate{PerSecond: 0.01, Burst: 3}
	}})
	alice, bob := h.Login("alice"), h.Login("bob")
	for range 5 {
		if _, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{})
	p := want(t, err, connect.CodeResourceExhausted, "rate-limited")
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Meta().Get("Retry-After") != "100" || p.RetryAfter.AsDuration() < 90*time.Second {
		t.Fatalf("retry after %v, detail %s", ce.Meta(), p.RetryAfter.AsDuration())
	}
	// The same identity over a new connection has the same allowance; another has its own.
	_, err = h.Clients(alice.Cert).Change.ListChanges(t.Context(), &pb.ListChangesRequest{})
	want(t, err, connect.CodeResourceExhausted, "rate-limited")
	if _, err := bob.Change.ListChanges(t.Context(), &pb.ListChangesRequest{}); err != nil {
		t.Fatal(err)
	}
	// Failed proofs are limited, and only those were counted: the logins above were not.
	for range 3 {
		_, err := h.TryLogin("mallory")
		want(t, err, connect.CodeUnauthenticated, "bad-signature")
	}
	_, err = h.TryLogin("mallory")
	want(t, err, connect.CodeResourceExhausted, "rate-limited")
	if got, proofs := sums(t, h, "request"), sums(t, h, "login"); got["rate-limited"] != 2 || proofs["rate-limited"] != 1 || proofs["bad-signature"] != 3 {
		t.Fatalf("accounted: %v, %v", got, proofs)
	}
}

func TestSourceRate(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.SourceRequests = config.Rate{PerSecond: 0.01, Burst: 3}
	}})
	c := h.Clients(nil)
	for range 3 {
		if _, err := c.Attestation.Challenge(t.Context(), &pb.ChallengeRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.Attestation.Challenge(t.Context(), &pb.ChallengeRequest{})
	want(t, err, connect.CodeResourceExhausted, "rate-limited")
	_, err = h.Clients(nil, connect.WithGRPC()).Attestation.Challenge(t.Context(), &pb.ChallengeRequest{})
	want(t, err, connect.CodeResourceExhausted, "rate-limited")
}

// makeToken is a request that goes through the door and gets in nobody's way.
func makeToken(t *testing.T, h *servertest.House, by *servertest.Session) error {
	tok, err := jointoken.New(h.Genesis)
	if err != nil {
		return err
	}
	_, err = by.Attestation.CreateJoinToken(t.Context(), &pb.CreateJoinTokenRequest{Id: tok.ID(), PublicKey: tok.PublicKey(), Name: "x"})
	return err
}

// A full queue refuses at once, and does not make anybody wait.
func TestQueueFull(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Limits.Queue = 4 }})
	alice := h.Login("alice")
	release := blocked(t, h)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := makeToken(t, h, alice); err != nil {
				t.Error(err)
			}
		})
	}
	within(t, "four wait", func() bool { return h.Env().Ledger().QueueLength() == 4 })
	_, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte("x")})
	p := want(t, err, connect.CodeResourceExhausted, "overloaded")
	if p.RetryAfter.AsDuration() <= 0 {
		t.Fatal("it does not say when to come again")
	}
	release()
	wg.Wait()
}

func TestStreamsOfAnIdentity(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Limits.IdentityStreams = 2 }})
	node := h.Node("web-1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open := func() (*connect.ServerStreamForClient[pb.WatchEvent], error) {
		w, err := node.Watch.Watch(ctx, &pb.WatchRequest{})
		if err == nil && !w.Receive() {
			err = w.Err()
		}
		return w, err
	}
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err != nil {
		t.Fatal(err)
	}
	_, err = open()
	want(t, err, connect.CodeResourceExhausted, "limit")
	_ = first.Close()
	within(t, "a closed stream makes room", func() bool { _, err := open(); return err == nil })
}

// Whoever waits for nothing keeps nothing: connections are bounded, per source and in all.
func TestConnectionLimits(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Limits.SourceConnections = 3 }})
	var held []*tls.Conn
	for i := range 3 {
		c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(nil))
		if err != nil {
			t.Fatal(i, err)
		}
		held = append(held, c)
	}
	if c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(nil)); err == nil {
		c.Close()
		t.Fatal("a fourth connection was taken")
	}
	held[0].Close()
	within(t, "a closed connection makes room", func() bool {
		c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(nil))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	for _, c := range held {
		c.Close()
	}
}

// What is under way when the server is told to stop gets its answer; streams are told; then nobody is taken.
func TestGracefulStop(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice, node := h.Login("alice"), h.Node("web-1")
	w, err := node.Watch.Watch(t.Context(), &pb.WatchRequest{})
	if err != nil || !w.Receive() {
		t.Fatal(err, w.Err())
	}
	release := blocked(t, h)
	answered := make(chan error, 8)
	tokens := h.Env().State().Tokens.Len()
	for range cap(answered) {
		go func() { answered <- makeToken(t, h, alice) }()
	}
	within(t, "they are under way", func() bool { return h.Env().Ledger().QueueLength() == cap(answered) })
	addr := h.Server.Addr()
	stopped := make(chan error, 1)
	go func() { stopped <- h.Stop() }()
	w.Receive()
	want(t, w.Err(), connect.CodeUnavailable, "stopping")
	release()
	for range cap(answered) {
		if err := <-answered; err != nil {
			t.Fatalf("a request under way was lost: %v", err)
		}
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if c, err := tls.Dial("tcp", addr, h.TLS(nil)); err == nil {
		c.Close()
		t.Fatal("a stopped server was reached")
	}
	h.Begin()
	if got := h.Env().State().Tokens.Len(); got != tokens+cap(answered) {
		t.Fatalf("%d tokens after the restart, want %d", got, tokens+cap(answered))
	}
}
