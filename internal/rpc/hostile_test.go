package rpc_test

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/seal"
	"github.com/bailment/bailment/internal/server/servertest"
)

// frames puts each message behind its prefix of flags and length.
func frames(flags byte, messages ...[]byte) []byte {
	var out []byte
	for _, m := range messages {
		out = append(out, flags)
		out = binary.BigEndian.AppendUint32(out, uint32(len(m)))
		out = append(out, m...)
	}
	return out
}

// Whatever can't be read, in whatever form, is refused with a reason and a way out, is accounted for, and leaves nothing of itself
// in the server: a stranger's megabytes and a caller's value alike.
func TestNothingIsKeptOfWhatIsRefused(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	const size = 900 << 10
	evidence := append(binary.AppendUvarint([]byte{3<<3 | 2}, size), bytes.Repeat([]byte{'A'}, size)...)
	malformed := append(bytes.Clone(evidence), 0xff)
	brokenJSON := append([]byte(`{"evidence":"`), bytes.Repeat([]byte{'A'}, size)...)
	type row struct {
		name, contentType string
		header            http.Header
		body              []byte
	}
	var rows []row
	for _, x := range []struct {
		codec     string
		malformed []byte
		fine      []byte
	}{{"proto", malformed, evidence}, {"json", brokenJSON, []byte("{}")}, {"json; charset=utf-8", brokenJSON, []byte("{}")}} {
		rows = append(rows,
			row{"malformed", "application/" + x.codec, nil, x.malformed},
			row{"malformed, by connect", "application/" + x.codec, http.Header{"Content-Encoding": {"identity"}}, x.malformed},
			row{"trailing bytes", "application/" + x.codec, nil, append(bytes.Clone(x.fine), 0xff, 0xff)},
			row{"compressed", "application/" + x.codec, http.Header{"Content-Encoding": {"gzip"}}, x.malformed},
			row{"another version", "application/" + x.codec, http.Header{"Connect-Protocol-Version": {"7"}}, x.malformed},
			row{"a stream's form", "application/connect+" + x.codec, nil, frames(0, x.malformed)},
		)
		for _, protocol := range []string{"application/grpc+", "application/grpc-web+"} {
			rows = append(rows,
				row{"malformed", protocol + x.codec, nil, frames(0, x.malformed)},
				row{"malformed, and a second", protocol + x.codec, nil, frames(0, x.malformed, []byte{0xff})},
				row{"two malformed", protocol + x.codec, nil, frames(0, x.malformed[:size/2], x.malformed[:size/3])},
				row{"fine, and a second", protocol + x.codec, nil, frames(0, x.fine, x.fine[:2])},
				row{"fine, and a byte", protocol + x.codec, nil, append(frames(0, x.fine), 0)},
				row{"no message", protocol + x.codec, nil, nil},
				row{"cut off", protocol + x.codec, nil, frames(0, x.malformed)[:size/2]},
				row{"compressed message", protocol + x.codec, nil, frames(1, x.malformed)},
				row{"another flag", protocol + x.codec, nil, frames(0x80, x.malformed)},
				row{"compressed stream", protocol + x.codec, http.Header{"Grpc-Encoding": {"gzip"}}, frames(0, x.malformed)},
			)
		}
	}
	rows = append(rows, row{"of no form", "text/plain", nil, malformed}, row{"without a type", "", nil, malformed})
	client := h.Client(nil, true)
	send := func(x row) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL()+"/bailment.v1.AttestationService/Attest", bytes.NewReader(x.body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range x.header {
			req.Header[k] = v
		}
		req.Header.Set("Content-Type", x.contentType)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		told := fmt.Sprint(string(b), res.Header, res.Trailer)
		if !strings.Contains(told, "invalid_argument") && res.Header.Get("Grpc-Status")+res.Trailer.Get("Grpc-Status") != "3" {
			t.Errorf("%s, %s: %.300s", x.name, x.contentType, told)
		}
		// The detail: in JSON readable, else in Grpc-Status-Details-Bin.
		if !strings.Contains(told, `"reason":`) && len(res.Header.Get("Grpc-Status-Details-Bin")+res.Trailer.Get("Grpc-Status-Details-Bin")) < 60 {
			t.Errorf("%s, %s: no detail: %.300s", x.name, x.contentType, told)
		}
		if strings.Contains(told, "AAAA") && !strings.Contains(told, "Details-Bin") {
			t.Errorf("%s, %s: quoted: %.300s", x.name, x.contentType, told)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, x := range rows {
		send(x) // what connections and pools need, they have after this
	}
	before := heap()
	const times = 6
	for range times {
		for _, x := range rows {
			send(x)
		}
	}
	if grown := int64(heap()) - int64(before); grown > 4*size {
		t.Errorf("%d refused requests left %d bytes", times*len(rows), grown)
	}
	runtime.KeepAlive(rows) // so that what they take is the same before and after
	// What came as far as its method is accounted for as an attestation by a method that is not known.
	request, proof := sums(t, h, "request"), sums(t, h, "unknown")
	if n := request["invalid"] + request["unsupported"] + proof["invalid"] + proof["unsupported"]; n != uint64((1+times)*len(rows)) {
		t.Errorf("%d requests, accounted: %v, %v", (1+times)*len(rows), request, proof)
	}
}

// Who fails to prove himself, or something else, keeps nobody out who shares his address.
func TestForgedProofsKeepOutNobodyElse(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.UnprovedAttempts = config.Rate{PerSecond: 0.001, Burst: 3}
	}})
	alice := h.Login("alice")
	token := h.Token(alice, "web-1")
	node := h.Node("web-2")
	stranger := h.Clients(nil)
	ctx := t.Context()
	challenge := func() []byte {
		c, err := stranger.Attestation.Challenge(ctx, &pb.ChallengeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return c.Challenge
	}
	_, csr, err := servertest.Key()
	if err != nil {
		t.Fatal(err)
	}
	other, err := jointoken.New(h.Genesis)
	if err != nil {
		t.Fatal(err)
	}
	for name, forge := range map[string]func() error{
		"challenges of nobody": func() error {
			_, err := stranger.Attestation.Login(ctx, &pb.LoginRequest{Challenge: make([]byte, 56), Person: "alice", Csr: csr})
			return err
		},
		"logins of nobody": func() error {
			_, err := stranger.Attestation.Login(ctx, &pb.LoginRequest{Challenge: challenge(), Person: "mallory", Csr: csr})
			return err
		},
		"logins of bob": func() error {
			_, err := stranger.Attestation.Login(ctx, &pb.LoginRequest{Challenge: challenge(), Person: "bob", Csr: csr})
			return err
		},
		"tokens of nobody": func() error { _, err := h.Join(other); return err },
		"renewals of nobody": func() error {
			_, err := stranger.Attestation.Renew(ctx, &pb.RenewRequest{Challenge: challenge(), Certificate: []byte("x"), Csr: csr})
			return err
		},
		"renewals of alice": func() error {
			_, err := stranger.Attestation.Renew(ctx, &pb.RenewRequest{Challenge: challenge(), Certificate: alice.Cert.Certificate[0], Csr: csr})
			return err
		},
	} {
		for range 8 {
			if forge() == nil {
				t.Fatalf("%s: believed", name)
			}
		}
	}
	if _, err := h.TryLogin("bob"); servertest.Reason(err) != "rate-limited" {
		t.Errorf("whose proofs were forged is not limited, so this tests nothing: %v", err)
	}
	if _, err := h.TryLogin("alice"); err != nil {
		t.Errorf("a login: %v", err)
	}
	if _, err := h.Join(token); err != nil {
		t.Errorf("an attestation: %v", err)
	}
	if err := renew(t, h, node, challenge()); err != nil {
		t.Errorf("a renewal: %v", err)
	}
}

// renew has a node renew its session by possession, over a connection without a certificate.
func renew(t *testing.T, h *servertest.House, node *servertest.Session, challenge []byte) error {
	t.Helper()
	key, csr, err := servertest.Key()
	if err != nil {
		t.Fatal(err)
	}
	thumb, err := seal.Thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(attest.Binding{Method: control.RenewalMethod, Genesis: h.Genesis, Nonce: challenge, SessionKey: thumb}.Message())
	sig, err := node.Cert.PrivateKey.(crypto.Signer).Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Clients(nil).Attestation.Renew(t.Context(), &pb.RenewRequest{Challenge: challenge, Certificate: node.Cert.Certificate[0], Signature: sig, Csr: csr})
	return err
}

// Strangers who announce much and send little can't stop those who have a session, nor those at other addresses for long.
func TestStrangersDoNotFillTheMemory(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.RequestMemory, c.Limits.BundleBytes = 4<<20, 1<<20
	}})
	alice := h.Login("alice")
	for range 24 {
		c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(nil))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "POST /bailment.v1.AttestationService/Attest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", 1<<20, strings.Repeat(" ", 600<<10)); err != nil {
			break // it was refused while it was sending
		}
	}
	for range 3 {
		put(t, alice, "app/password", strings.Repeat("x", 60<<10))
	}
	code, _, body := post(t, h.Client(alice.Cert, true), h.URL()+"/bailment.v1.SecretService/Put", "application/json", bytes.NewReader(bytes.Repeat([]byte(" "), 1<<20)))
	if strings.Contains(body, "overloaded") {
		t.Fatalf("%d %s", code, body)
	}
	within(t, "some are refused", func() bool { return sums(t, h, "request")["overloaded"] > 0 })
}

// The room and the time of a bundle are for who may propose one.
func TestBundleLimitsAreForProposers(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice, app := h.Login("alice"), h.App("web-1")
	big := bytes.Repeat([]byte(" "), 2<<20)
	for name, x := range map[string]struct {
		s      *servertest.Session
		reason string
	}{"who may": {alice, "invalid"}, "who may not": {app, "duty"}} {
		_, _, body := post(t, h.Client(x.s.Cert, true), h.URL()+"/bailment.v1.ChangeService/Propose", "application/json", bytes.NewReader(big))
		if !strings.Contains(body, `"reason":"`+x.reason+`"`) {
			t.Errorf("%s: %s", name, body)
		}
	}
}

// A value that its reader takes no notice of is not sent after its time: its stream ends, and the failed delivery is counted.
func TestValueDoesNotWaitForTheReader(t *testing.T) {
	for name, size := range map[string]int{"small": 6, "larger than any buffer": 20_000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := servertest.Start(t, servertest.Options{})
			put(t, h.Login("alice"), "app/password", strings.Repeat("v", size))
			cfg := h.TLS(h.App("web-1").Cert)
			cfg.NextProtos = []string{"h2"}
			c, err := tls.Dial("tcp", h.Server.Addr(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			write := func(b []byte) {
				if _, err := c.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			var headers []byte // RFC 7541, section 6.2.2: literals without indexing
			for _, kv := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", "/bailment.v1.SecretService/Get"}, {":authority", "x"}, {"content-type", "application/json"}} {
				headers = append(headers, 0, byte(len(kv[0])))
				headers = append(headers, kv[0]...)
				headers = append(headers, byte(len(kv[1])))
				headers = append(headers, kv[1]...)
			}
			const data, head, reset, settings, window = 0, 1, 3, 4, 8
			write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
			write(frame2(settings, 0, 0, []byte{0, 4, 0, 0, 0, 0})) // an initial window of nothing
			write(append(frame2(head, 4, 1, headers), frame2(data, 1, 1, []byte(`{"secret":"app/password"}`))...))
			began := time.Now()
			for {
				var h [9]byte
				if _, err := io.ReadFull(c, h[:]); err != nil {
					t.Fatal(err)
				}
				payload := make([]byte, int(h[0])<<16|int(h[1])<<8|int(h[2]))
				if _, err := io.ReadFull(c, payload); err != nil {
					t.Fatal(err)
				}
				switch {
				case h[3] == settings && h[4]&1 == 0:
					write(frame2(settings, 1, 0, nil))
				case h[3] == data && len(payload) > 0:
					t.Fatalf("%q left after %s", payload, time.Since(began))
				}
				if h[3] == reset {
					break
				}
			}
			if d := time.Since(began); d > 7*time.Second {
				t.Errorf("it waited for %s", d)
			}
			write(append(frame2(window, 0, 1, []byte{0, 1, 0, 0}), frame2(window, 0, 0, []byte{0, 1, 0, 0})...))
			within(t, "it is counted", func() bool {
				return strings.Contains(metrics(t, h), "bailment_deliveries_failed_total 1")
			})
		})
	}
}

// frame2 is a frame of HTTP/2 (RFC 9113, section 4.1).
func frame2(typ, flags byte, stream uint32, payload []byte) []byte {
	out := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), typ, flags}
	return append(binary.BigEndian.AppendUint32(out, stream), payload...)
}

func metrics(t *testing.T, h *servertest.House) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.OpsURL()+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tickets keeps whatever ticket a server gives, for any server.
type tickets struct{ last *tls.ClientSessionState }

func (k *tickets) Get(string) (*tls.ClientSessionState, bool) { return k.last, k.last != nil }
func (k *tickets) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		k.last = s
	}
}

// Nothing but the key itself proves a key: no connection is resumed, neither in its own environment nor in another one of the
// same server.
func TestNoTicketIsAProof(t *testing.T) {
	data := t.TempDir()
	first := servertest.Start(t, servertest.Options{Name: "first", Data: data})
	cert := first.Login("alice").Cert
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	second := servertest.Start(t, servertest.Options{Name: "second", Data: data, Configure: func(c *config.Server) { c.Environments = []string{"second"} }})
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	first.Begin() // serves both: each is a directory of the same data
	roots := x509.NewCertPool()
	for _, name := range first.Server.Environments() {
		roots.AddCert(first.Server.Environment(name).Certificates()[0])
	}
	cache := &tickets{}
	for i, name := range []string{"first", "first", "second"} {
		cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: name, RootCAs: roots, ClientSessionCache: cache}
		if i == 0 {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		c, err := tls.Dial("tcp", first.Server.Addr(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "POST /bailment.v1.ChangeService/ListChanges HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if proved := res.StatusCode == http.StatusOK; proved != (i == 0) || c.ConnectionState().DidResume {
			t.Errorf("connection %d, to %s: %s, resumed: %v", i, name, res.Status, c.ConnectionState().DidResume)
		}
		c.Close()
	}
}

// A body that is none gets a refusal, or no answer at all; never one that looks like success.
func TestUnreadableBody(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	app := h.App("web-1")
	const head = "POST /bailment.v1.SecretService/Get HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	ask := func(request string, closing bool) (string, error) {
		c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(app.Cert))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if closing {
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		b, err := io.ReadAll(c)
		return string(b), err
	}
	for name, body := range map[string]string{
		"a chunk of no size": "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "a chunk of another size": "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
	} {
		answer, err := ask(head+body, false)
		if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 400") || !strings.Contains(answer, `"reason":"invalid"`) {
			t.Errorf("%s: %v %s", name, err, answer)
		}
	}
	if answer, err := ask(head+"Content-Length: 100\r\n\r\n{", true); answer != "" || (err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && isTimeout(err)) {
		t.Errorf("broken off: %v %q", err, answer)
	}
	within(t, "each is counted as what it was", func() bool {
		m := metrics(t, h)
		return strings.Contains(m, `bailment_requests_total{code="canceled",method="Get",service="Secret"} 1`) &&
			strings.Contains(m, `bailment_requests_total{code="invalid_argument",method="Get",service="Secret"} 2`)
	})
	if got := sums(t, h, "request"); got["invalid"] != 2 {
		t.Errorf("accounted: %v", got)
	}
}

// A wrong verb counts against its sender's limit like any other request.
func TestWrongVerbIsLimited(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.SourceRequests = config.Rate{PerSecond: 0.01, Burst: 3}
	}})
	client := h.Client(nil, true)
	var codes []int
	for range 5 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, h.URL()+"/bailment.v1.SecretService/Get", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		codes = append(codes, res.StatusCode)
		if res.StatusCode == http.StatusMethodNotAllowed && res.Header.Get("Allow") != http.MethodPost {
			t.Error("it does not say what is allowed")
		}
	}
	if fmt.Sprint(codes) != "[405 405 405 429 429]" {
		t.Errorf("%v", codes)
	}
	if got := sums(t, h, "request"); got["unsupported"] != 3 || got["rate-limited"] != 2 {
		t.Errorf("accounted: %v", got)
	}
}

// A stranger who uses up what his address has leaves those who proved themselves at the same address theirs.
func TestProvedCallersHaveTheirOwnRate(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Limits.SourceRequests = config.Rate{PerSecond: 0.01, Burst: 20}
	}})
	alice := h.Login("alice")
	stranger := h.Clients(nil)
	var err error
	for range 30 {
		_, err = stranger.Attestation.Challenge(t.Context(), &pb.ChallengeRequest{})
	}
	want(t, err, connect.CodeResourceExhausted, "rate-limited")
	if _, err := alice.Change.ListChanges(t.Context(), &pb.ListChangesRequest{}); err != nil {
		t.Fatal(err)
	}
}

// A connection that nobody used is no refused request, and one whose request came too slowly is.
func TestUnusedConnectionIsNoRefusal(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Configure: func(c *config.Server) {
		c.Timeouts.ReadHeader, c.Timeouts.Read, c.Timeouts.Idle = 100*time.Millisecond, 200*time.Millisecond, time.Second
	}})
	for _, protocol := range []string{"http/1.1", "h2"} {
		cfg := h.TLS(nil)
		cfg.NextProtos = []string{protocol}
		c, err := tls.Dial("tcp", h.Server.Addr(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if protocol == "h2" {
			if _, err := c.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame2(4, 0, 0, nil)...)); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Errorf("%s: an unused connection is never closed", protocol)
		}
		c.Close()
	}
	within(t, "both are closed", func() bool { return strings.Contains(metrics(t, h), "bailment_connections 0") })
	if got := sums(t, h, "request"); len(got) != 0 {
		t.Fatalf("unused connections are accounted for: %v", got)
	}
	c, err := tls.Dial("tcp", h.Server.Addr(), h.TLS(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /bail"); err != nil {
		t.Fatal(err)
	}
	within(t, "a slow one is accounted for", func() bool { return sums(t, h, "request")["too-slow"] == 1 })
}

// A refusal says where it was entered, and a question that was refused is counted.
func TestRefusalsAreAccountedFor(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice, app := h.Login("alice"), h.App("web-1")
	size := h.Env().Ledger().Size()
	_, err := app.Secret.Get(t.Context(), &pb.GetRequest{Secret: "elsewhere/password"})
	if p := want(t, err, connect.CodePermissionDenied, "no-grant"); p.Entry.GetIndex() != size {
		t.Errorf("entered at %d, and the answer says %v", size, p.Entry)
	}
	if _, err := alice.Revocation.Revoke(t.Context(), &pb.RevokeRequest{Scope: "identity:/workload/app", Reason: "a test"}); err != nil {
		t.Fatal(err)
	}
	_, err = app.Secret.List(t.Context(), &pb.ListSecretsRequest{})
	want(t, err, connect.CodePermissionDenied, "cutoff")
	_, err = app.Explain.Explain(t.Context(), &pb.ExplainRequest{Action: "read", Secret: "app/password"})
	want(t, err, connect.CodePermissionDenied, "cutoff")
	if got := sums(t, h, "identity"); got["cutoff"] != 2 {
		t.Errorf("accounted: %v", got)
	}
}
