package server_test

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/server/servertest"
)

// frame is an HTTP/2 frame (RFC 9113 §4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[5:], stream)
	return append(b, payload...)
}

const (
	frameData, frameHeaders, frameReset, frameSettings = 0, 1, 3, 4
	endStream, endHeaders, ack                         = 1, 4, 1
)

// parked is a client that asks over HTTP/2 and has room for no byte of an answer.
type parked struct {
	conn                   net.Conn
	headers, ended, resets atomic.Int64
	closed                 chan struct{}
}

// park opens a connection with a window of 0 and asks for path that many times at once.
func park(t *testing.T, h *servertest.House, cert *tls.Certificate, path string, times int) *parked {
	t.Helper()
	return parkAs(t, h, cert, path, "application/json", "{}", times)
}

func parkAs(t *testing.T, h *servertest.House, cert *tls.Certificate, path, contentType, body string, times int) *parked {
	t.Helper()
	cfg := h.TLS(cert)
	cfg.NextProtos = []string{"h2"}
	c, err := tls.Dial("tcp", h.Server.Addr(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &parked{conn: c, closed: make(chan struct{})}
	t.Cleanup(func() { c.Close(); <-p.closed })
	out := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	out = append(out, frame(frameSettings, 0, 0, []byte{0, 4, 0, 0, 0, 0})...) // SETTINGS_INITIAL_WINDOW_SIZE = 0
	for i := range times {
		id := uint32(2*i + 1)
		out = append(out, headers(h, id, path, contentType)...)
		out = append(out, frame(frameData, endStream, id, []byte(body))...)
	}
	_, err = c.Write(out)
	go p.read() // it acknowledges settings, which must come after the preface
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// headers begin a request.
func headers(h *servertest.House, stream uint32, path, contentType string) []byte {
	var fields []byte
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", path}, {":authority", h.Name}, {"content-type", contentType}} {
		fields = append(append(fields, 0, byte(len(f[0]))), f[0]...) // literal, not indexed (RFC 7541 §6.2.2)
		fields = append(append(fields, byte(len(f[1]))), f[1]...)
	}
	return frame(frameHeaders, endHeaders, stream, fields)
}

func (p *parked) read() {
	defer close(p.closed)
	head := make([]byte, 9)
	for {
		if _, err := io.ReadFull(p.conn, head); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, p.conn, int64(head[0])<<16|int64(head[1])<<8|int64(head[2])); err != nil {
			return
		}
		switch {
		case head[3] == frameHeaders && head[4]&endStream != 0:
			p.ended.Add(1)
		case head[3] == frameHeaders:
			p.headers.Add(1)
		case head[3] == frameReset:
			p.resets.Add(1)
		case head[3] == frameSettings && head[4]&ack == 0:
			_, _ = p.conn.Write(frame(frameSettings, ack, 0, nil)) // the server may be gone
		}
	}
}

// metric is one value of /metrics.
func metric(t *testing.T, h *servertest.House, name string) int {
	t.Helper()
	_, body := get(t, http.DefaultClient, h.OpsURL()+"/metrics")
	_, rest, ok := strings.Cut(body, "\n"+name+" ")
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	text, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(v)
}

const (
	getEnvironment = "/bailment.v1.EnvironmentService/GetEnvironment"
	listChanges    = "/bailment.v1.ChangeService/ListChanges"
	inFlight       = "bailment_requests_in_flight"
)

// An answer that nobody takes counts until it is gone, and a stranger has few of them, for a short time.
func TestParkedAnswers(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.UnprovedRequests, c.Limits.UnprovedStreams = 80, 4
		c.Timeouts.UnprovedWrite = time.Second
	}})
	alice := h.Login("alice")
	within(t, "all is quiet", func() bool { return metric(t, h, inFlight) == 0 })
	var all []*parked
	for range 4 {
		all = append(all, park(t, h, nil, getEnvironment, 16))
	}
	sum := func(of func(p *parked) int64) (n int) {
		for _, p := range all {
			n += int(of(p))
		}
		return n
	}
	// Four of a connection are open, ten of the source (an eighth), and the others were refused: in words, which
	// are parked for a moment, or by a status.
	within(t, "all are answered", func() bool {
		return sum(func(p *parked) int64 { return p.headers.Load() + p.ended.Load() }) == 64
	})
	if n := metric(t, h, inFlight); n < 1 || n > 10 {
		t.Errorf("%d requests in flight, want 10 at most, and those that are parked", n)
	}
	byConnection, bySource := metric(t, h, `bailment_requests_refused_total{limit="unproved-connection"}`), metric(t, h, `bailment_requests_refused_total{limit="unproved-source"}`)
	if byConnection == 0 || bySource == 0 || byConnection+bySource < 54 {
		t.Errorf("%d and %d refusals", byConnection, bySource)
	}
	// Who proved an identity has room beside them, from the same address.
	if _, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{}); err != nil {
		t.Error(err)
	}
	// Nobody waits for them for long: the time for a whole answer is 40 s.
	began := time.Now()
	within(t, "they are broken off", func() bool { return metric(t, h, inFlight) == 0 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("they were there for %s", took)
	}
	within(t, "each stream was reset", func() bool {
		return sum(func(p *parked) int64 { return p.headers.Load() }) <= sum(func(p *parked) int64 { return p.resets.Load() })
	})
}

// Those with an identity are bounded too: in all, and by source.
func TestOpenRequests(t *testing.T) {
	for limit, configure := range map[string]func(*config.Limits){
		"total":  func(l *config.Limits) { l.OpenRequests = 6 },
		"source": func(l *config.Limits) { l.SourceOpenRequests = 6 },
	} {
		t.Run(limit, func(t *testing.T) {
			h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { configure(&c.Limits) }})
			alice := h.Login("alice")
			within(t, "all is quiet", func() bool { return metric(t, h, inFlight) == 0 })
			p := park(t, h, alice.Cert, listChanges, 16)
			within(t, "6 have room, and 10 have none", func() bool {
				return p.headers.Load() >= 6 && metric(t, h, fmt.Sprintf("bailment_requests_refused_total{limit=%q}", limit)) == 10
			})
			if n := metric(t, h, inFlight); n != 6 {
				t.Errorf("%d requests in flight, want 6", n)
			}
			_, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{})
			if got := servertest.ProblemOf(err); got == nil || got.Reason != "overloaded" || got.RetryAfter.AsDuration() <= 0 {
				t.Errorf("got %v", err)
			}
			p.conn.Close()
			within(t, "there is room again", func() bool {
				_, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{})
				return err == nil
			})
		})
	}
}

// from is an HTTP client of one of loopback's other addresses.
func from(t *testing.T, h *servertest.House, address string) *http.Client {
	t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	tr := &http.Transport{TLSClientConfig: h.TLS(nil), DialContext: d.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Few sources that hold every place keep nobody out, and don't push out who proved an identity.
func TestHeldConnections(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Limits.Connections, c.Limits.SourceConnections = 16, 8 }})
	alice := h.Login("alice")
	watch, err := h.Node("web-1").Watch.Watch(t.Context(), &pb.WatchRequest{})
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	for i := range 16 {
		if code, _ := get(t, from(t, h, fmt.Sprintf("127.0.1.%d", 1+i/8)), h.URL()+"/livez"); code != http.StatusOK {
			t.Fatal(code)
		}
	}
	if n := metric(t, h, "bailment_connections"); n > 16 {
		t.Errorf("%d connections", n)
	}
	bob := h.Login("bob") // over connections that are new
	for _, s := range []*servertest.Session{alice, bob} {
		if _, err := s.Change.ListChanges(t.Context(), &pb.ListChangesRequest{}); err != nil {
			t.Error(err)
		}
	}
	if n := metric(t, h, `bailment_connections_broken_off_total{why="room"}`); n < 4 {
		t.Errorf("%d made room", n)
	}
	if n := metric(t, h, `bailment_connections_refused_total{limit="total"}`); n != 0 {
		t.Errorf("%d were refused", n)
	}
	// The watch is still there: it hears of the stop.
	stopped := make(chan error, 1)
	go func() { stopped <- h.Stop() }()
	if watch.Receive() || servertest.Reason(watch.Err()) != "stopping" {
		t.Errorf("the watch ended with %v", watch.Err())
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// A connection that proved nothing is not kept while it is without a request; one that did is.
func TestIdleStrangers(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Timeouts.UnprovedIdle = 300 * time.Millisecond }})
	alice := h.Login("alice")
	if _, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{}); err != nil {
		t.Fatal(err)
	}
	p := park(t, h, nil, "", 0)
	<-p.closed
	within(t, "alice's is left", func() bool { return metric(t, h, "bailment_connections") == 1 })
	if n := metric(t, h, `bailment_connections_broken_off_total{why="idle"}`); n < 1 {
		t.Errorf("%d were idle", n)
	}
}

// Who takes no answer does not make a stop slow, or failed.
func TestStopBreaksOff(t *testing.T) {
	var log lockedBuffer
	h := servertest.Start(t, servertest.Options{
		Logger:    slog.New(slog.NewTextHandler(&log, nil)),
		Configure: func(c *config.Server) { c.Timeouts.UnprovedWrite, c.Timeouts.Shutdown = time.Minute, time.Minute },
	})
	alice := h.Login("alice")
	within(t, "all is quiet", func() bool { return metric(t, h, inFlight) == 0 })
	stops := 0
	stop := func(most time.Duration) {
		t.Helper()
		began := time.Now()
		if err := h.Stop(); err != nil {
			t.Errorf("the stop failed: %v", err)
		}
		if took := time.Since(began); took > most {
			t.Errorf("the stop took %s", took)
		}
		stops++
		if strings.Count(log.String(), "were broken off") != stops {
			t.Error("the log does not tell")
		}
	}
	stranger := park(t, h, nil, getEnvironment, 1)
	within(t, "it is parked", func() bool { return stranger.headers.Load() == 1 })
	stop(4 * time.Second)
	h.Begin()
	insider := park(t, h, alice.Cert, listChanges, 1)
	within(t, "it is parked", func() bool { return insider.headers.Load() == 1 })
	stop(12 * time.Second)
}

// What the server itself does not finish in its time is an error.
func TestStopThatBreaksWork(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) { c.Timeouts.Shutdown = 300 * time.Millisecond }})
	alice := h.Login("alice")
	release := blocked(t, h)
	go func() {
		_, _ = alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte("x")})
	}()
	within(t, "it is under way", func() bool { return h.Env().Ledger().QueueLength() == 1 })
	time.AfterFunc(time.Second, release) // the environment closes when its ledger is free
	if err := h.Stop(); err == nil || !strings.Contains(err.Error(), "1 requests were broken off") {
		t.Errorf("got %v", err)
	}
}

// A handshake is small, however large a client makes its certificate: what is kept of one that is still coming is bounded. What is
// no handshake is not concerned.
func TestHandshakesAreSmall(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	large := tls.Certificate{Certificate: [][]byte{make([]byte, 200<<10)}, PrivateKey: alice.Cert.PrivateKey}
	cfg := h.TLS(nil)
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &large, nil }
	if c, err := tls.Dial("tcp", h.Server.Addr(), cfg); err == nil { // the client's part is over before the server has read it
		_, err = c.Read(make([]byte, 1))
		c.Close()
		if err == nil {
			t.Fatal("it was taken")
		}
	}
	within(t, "it is broken off while it comes", func() bool { return metric(t, h, `bailment_connections_broken_off_total{why="size"}`) == 1 })
	for _, http2 := range []bool{false, true} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/bailment.v1.SecretService/Put", strings.NewReader(strings.Repeat(" ", 1000<<10)+"{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Long", strings.Repeat("x", 12<<10))
		res, err := h.Client(alice.Cert, http2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.Contains(string(body), "a value has 1 to") {
			t.Errorf("a large first request: %.200s, %v", body, err)
		}
	}
}

// A few sources whose requests never end keep nobody out who comes from elsewhere to prove an identity.
func TestSlowStrangersMakeRoom(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.UnprovedRequests = 16
		c.Timeouts.Read, c.Timeouts.UnprovedIdle = time.Minute, time.Minute
	}})
	var held []*tls.Conn
	for i := range 16 { // two of each of eight sources: all that there is
		d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/2))}}, Config: h.TLS(nil)}
		c, err := d.DialContext(t.Context(), "tcp", h.Server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c.(*tls.Conn))
		if _, err := fmt.Fprintf(c, "POST /bailment.v1.AttestationService/Login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "all places are taken", func() bool { return metric(t, h, inFlight) == 16 })
	for range 5 {
		if _, err := h.TryLogin("alice"); err != nil {
			t.Fatal(err)
		}
	}
	if n := metric(t, h, `bailment_requests_refused_total{limit="unproved-room"}`); n < 1 || n > 14 {
		t.Errorf("%d made room", n)
	}
	// Who made room is told why.
	told := make(chan string, len(held))
	for _, c := range held {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		go func() {
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			told <- string(b[:n])
		}()
	}
	if text := <-told; !strings.Contains(text, "did not arrive in time") {
		t.Errorf("%q", text)
	}
	within(t, "all others have their place", func() bool { return metric(t, h, inFlight) <= 16 })
}
