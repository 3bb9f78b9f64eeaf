package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/problem"
)

// tlsFor is a TLS client's configuration with a session, or without.
func (h *hostile) tlsFor(x *client.Session) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(h.Trust.CA)
	c := &tls.Config{RootCAs: pool, ServerName: h.Name, MinVersion: tls.VersionTLS13}
	if x != nil {
		c.Certificates = []tls.Certificate{x.Certificate}
	}
	return c
}

// post sends a body as it is, and gives the answer's status and text.
func (h *hostile) post(t *testing.T, x *client.Session, method string, header http.Header, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: h.tlsFor(x)}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+h.Addr+"/bailment.v1."+method, strings.NewReader(body))
	h.Check(err)
	req.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// wire are the attacks below the protocol.
func (h *hostile) wire(t *testing.T) {
	t.Run("JSON that is not the message's", h.badJSON)
	t.Run("headers over the limit", func(t *testing.T) {
		status, _ := h.post(t, h.api, "SecretService/Get", http.Header{"X-Large": {strings.Repeat("x", 64<<10)}}, `{"secret":"app/s0"}`)
		if status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("status %d", status)
		}
	})
	t.Run("methods and paths that there aren't", func(t *testing.T) {
		for _, path := range []string{"SecretService/../../Get", "SecretService/Nonsense", "NonsenseService/Get", "SecretService/Get/x", "SecretService/Get%00"} {
			if status, _ := h.post(t, h.api, path, nil, `{"secret":"app/s0"}`); status != http.StatusNotFound && status != http.StatusBadRequest {
				t.Errorf("%s: status %d", path, status)
			}
		}
	})
	t.Run("what is not TLS 1.3 to this environment", h.badTLS)
	t.Run("a byte a second", h.slow)
	t.Run("many streams over one connection", h.manyStreams)
}

// wireAccounts is what the ledger must say of them.
func (h *hostile) wireAccounts() []attack {
	return []attack{
		{name: "malformed JSON", reason: problem.ReasonInvalid, account: "request"},
		{name: "a slow client", reason: problem.ReasonTooSlow, account: "request"},
		{name: "a flood of logins", reason: problem.ReasonRateLimited, account: "login"},
	}
}

func (h *hostile) badJSON(t *testing.T) {
	const deep = 100_000
	for name, body := range map[string]string{
		"an unknown field":        `{"secret":"app/s0","sudo":true}`,
		"a field twice":           `{"secret":"app/s0","secret":"app/s1"}`,
		"a field of another kind": `{"secret":["app/s0"]}`,
		"no JSON":                 `{"secret":`,
		"two messages":            `{"secret":"app/s0"}{"secret":"app/s0"}`,
		"an array":                `[]`,
		"bad UTF-8":               "{\"secret\":\"\xff\"}",
		"a number too large":      `{"secret":"app/s0","version":"99999999999999999999999"}`,
		"deep nesting":            `{"secret":` + strings.Repeat("[", deep) + strings.Repeat("]", deep) + `}`,
		"deep unknown nesting":    `{"x":` + strings.Repeat(`{"x":`, deep) + `1` + strings.Repeat(`}`, deep) + `}`,
	} {
		status, answer := h.post(t, h.api, "SecretService/Get", nil, body)
		if status != http.StatusBadRequest || !strings.Contains(answer, `"reason":"invalid"`) {
			t.Errorf("%s: %d %.300s", name, status, answer)
		}
	}
	claims := `{"workload":"api","claims":` + strings.Repeat(`{"a":`, 5000) + `1` + strings.Repeat(`}`, 5000) + `}`
	if status, answer := h.post(t, h.web, "AttestationService/AttestWorkload", nil, claims); status != http.StatusBadRequest {
		t.Errorf("deep claims: %d %.300s", status, answer)
	}
}

// badTLS: garbage, plain HTTP, an older TLS, an unknown name and none. The server closes; nobody waits.
func (h *hostile) badTLS(t *testing.T) {
	for name, first := range map[string][]byte{
		"garbage":                     bytes.Repeat([]byte{0xff, 0x00, 0x13, 0x37}, 4096),
		"plain HTTP":                  []byte("POST /bailment.v1.SecretService/Get HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a record that promises much": {0x16, 0x03, 0x01, 0xff, 0xff},
		"nothing":                     nil,
	} {
		c, err := net.Dial("tcp", h.Addr)
		h.Check(err)
		h.Check(c.SetDeadline(time.Now().Add(10 * time.Second)))
		_, _ = c.Write(first) // it may be reset already
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Errorf("%s: the server did not close the connection", name)
		}
		c.Close()
	}
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.2":          func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
		"an unknown name":  func(c *tls.Config) { c.ServerName = "elsewhere.example" },
		"no name":          func(c *tls.Config) { c.ServerName = "127.0.0.1" },
		"another protocol": func(c *tls.Config) { c.NextProtos = []string{"acme-tls/1"} },
	} {
		conf := h.tlsFor(h.api)
		change(conf)
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", h.Addr, conf)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls: ") {
			t.Errorf("%s: not refused by the server: %v", name, err)
		}
	}
	// A certificate without its key: a TLS 1.3 client learns it when it reads.
	key, err := client.NewKey()
	h.Check(err)
	stolen := *h.api
	stolen.Certificate.PrivateKey = key
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", h.Addr, h.tlsFor(&stolen))
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: ") {
		t.Errorf("a certificate without its key: %v", err)
	}
	if !strings.Contains(get(t, h.Site.Site, "/metrics"), `bailment_handshakes_refused_total{reason="unknown-environment"} `) {
		t.Error("an unknown name is not counted")
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return err != nil && errors.As(err, &n) && n.Timeout()
}

// slow: handshake, header and body that trickle in are cut off in their time; the body's sender is told why.
func (h *hostile) slow(t *testing.T) {
	const most = 8 * time.Second // limits are 1 s and 2 s
	var wg sync.WaitGroup
	for name, x := range map[string]struct {
		tls    bool
		begin  string
		answer string
	}{
		"handshake": {false, "", ""},
		"header":    {true, "POST /bailment.v1.SecretService/Get HTTP/1.1\r\n", ""},
		"body":      {true, "POST /bailment.v1.SecretService/Get HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", `"reason":"too-slow"`},
	} {
		for range 8 {
			wg.Go(func() {
				began := time.Now()
				raw, err := net.Dial("tcp", h.Addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer raw.Close()
				c := raw
				if x.tls {
					c = tls.Client(raw, h.tlsFor(h.api))
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go trickle(ctx, c, x.begin)
				_ = c.SetReadDeadline(time.Now().Add(2 * most))
				answer, err := io.ReadAll(bufio.NewReader(c))
				if isTimeout(err) || time.Since(began) > most {
					t.Errorf("%s: not cut off after %s", name, time.Since(began))
				}
				if !strings.Contains(string(answer), x.answer) {
					t.Errorf("%s: answered %q (%v)", name, answer, err)
				}
			})
		}
	}
	wg.Wait()
}

// trickle sends a beginning, and then a byte at a time.
func trickle(ctx context.Context, c net.Conn, begin string) {
	if _, err := c.Write([]byte(begin)); err != nil {
		return
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := c.Write([]byte{0x16}); err != nil {
				return
			}
		}
	}
}

// manyStreams: HTTP/2 requests beyond the connection's limit wait and are answered; watches beyond the
// identity's limit are refused with their reason.
func (h *hostile) manyStreams(t *testing.T) {
	// A connection whose first request is late is closed, here after a second already; on a busy machine that is soon, so it may be made again.
	c, err := client.Dial(h.Trust, client.Options{Attempts: 3, MaxConns: 1, HTTP2: true, CallTimeout: 20 * time.Second, Credentials: h.api.Credentials()})
	h.Check(err)
	defer c.Close()
	var wg sync.WaitGroup
	for range 600 {
		wg.Go(func() {
			if _, err := c.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: "app/s0"}); err != nil {
				t.Errorf("one of many requests over one connection: %v", err)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	refused := 0
	for range 40 {
		s, err := c.Watching.Watch(ctx, &bailmentv1.WatchRequest{})
		if err == nil && !s.Receive() {
			err = s.Err()
		}
		if err == nil {
			continue
		}
		if refused++; !problem.Is(err, problem.ReasonLimit) {
			t.Errorf("a watch too many: %v", err)
		}
	}
	if refused != 40-16 {
		t.Errorf("%d of 40 watches were refused; 16 are allowed", refused)
	}
}

// flood: bad logins of one source are limited soon. Its good requests, and everybody else's, go on.
func (h *hostile) flood(t *testing.T) {
	const source, most = "127.0.0.9", 400
	c := dialFrom(t, h.Site.Site, source, nil)
	good := dialFrom(t, h.Site.Site, source, h.api)
	bad, err := h.signedLogin(t.Context(), c, ceremony.Scope{Environment: h.Name, Genesis: h.other.Genesis}, "bob")
	h.Check(err)
	var limited, judged atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range most / 8 {
				_, err := c.Attestation.Login(t.Context(), bad)
				switch {
				case problem.Is(err, problem.ReasonRateLimited):
					limited.Add(1)
					if problem.As(err).RetryAfter <= 0 {
						t.Error("it does not say when to try again")
					}
				case problem.Is(err, problem.ReasonSignature):
					judged.Add(1)
				default:
					t.Errorf("a bad login: %v", err)
				}
				if _, err := good.Secrets.Get(t.Context(), &bailmentv1.GetRequest{Secret: "app/s0"}); err != nil {
					t.Errorf("a read from the source of bad logins: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if limited.Load() == 0 || judged.Load() < 50 {
		t.Errorf("of %d bad logins %d were judged and %d limited", most, judged.Load(), limited.Load())
	}
	t.Logf("%d judged, %d limited", judged.Load(), limited.Load())
	if _, err := h.Site.Site.Login(t.Context(), "alice"); err != nil {
		t.Errorf("a login from another source: %v", err)
	}
}
