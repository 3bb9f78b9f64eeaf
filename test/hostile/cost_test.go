package hostile

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/tls"
	cx509 "crypto/x509"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/gcp"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/attest/tpm"
	"github.com/bailment/bailment/internal/attest/x509"
	"github.com/bailment/bailment/internal/issuers"
	"github.com/bailment/bailment/internal/rpc"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/state"
	"github.com/bailment/bailment/internal/store"
)

// burst are limits under which one subject fails so often, and then not again.
func burst(n int) func(*rpc.Limits) {
	return func(l *rpc.Limits) { l.UnprovedRate, l.UnprovedBurst = 0.001, n }
}

// sums are what was counted of a method, by reason.
func (h *house) sums(method string) map[string]uint64 {
	h.T.Helper()
	h.must(h.Env.FlushDenials(context.Background()))
	out := map[string]uint64{}
	h.must(h.Env.Ledger().Entries(context.Background(), 0, 1<<20, func(_ uint64, e store.Entry) error {
		x, err := state.Decode(e.Body)
		if err != nil {
			return err
		}
		if d, ok := x.Event.(*state.DenialsSummed); ok && d.Method == method {
			out[d.Reason] += d.Count
		}
		return nil
	}))
	return out
}

// Who fails stops being verified; whoever else comes from the same address does not. And those who fail under ever new names have a
// bound together, so that one address can't have the server verify without end.
func TestFailuresKeepNobodyOut(t *testing.T) {
	k := certificates(t, nil)
	h := newHouse(t, options{files: files([]kit{k}), limits: burst(3)})
	garbage := []byte(`{"chain":["AAAA"],"signature":"AAAA"}`)
	counter := &h.work[x509.Name].verified

	one := h.begin(x509.Name)
	var reasons []string
	for range 8 {
		one = h.again(x509.Name, one)
		_, err := h.send(x509.Name, one, garbage)
		reasons = append(reasons, servertest.Reason(err))
	}
	if want := slices.Concat(slices.Repeat([]string{"bad-chain"}, 3), slices.Repeat([]string{"rate-limited"}, 5)); !slices.Equal(reasons, want) || counter.Load() != 3 {
		t.Errorf("%v, verified %d times", reasons, counter.Load())
	}
	machine := h.begin(x509.Name)
	res, err := h.send(x509.Name, machine, k.good(h, machine.binding))
	if err != nil {
		t.Fatalf("the machine beside it: %v", err)
	}

	// Ever new keys: more than one key has, and not without end.
	counter.Store(0)
	limited := 0
	for range 100 {
		x := h.begin(x509.Name)
		if _, err := h.send(x509.Name, x, garbage); servertest.Reason(err) == "rate-limited" {
			limited++
		}
	}
	if n := counter.Load(); n < 20 || n > 48 || limited != 100-int(n) {
		t.Errorf("verified %d times, limited %d times", n, limited)
	}
	// What is about something else is not among them: nor is a machine on its own connection.
	alice := h.Login("alice")
	if _, err := h.TryJoin(h.Token(alice, "web-2", time.Hour), machine.key); servertest.Reason(err) == "rate-limited" {
		t.Error("a join token is kept out")
	}
	h.client = servertest.NewClients(h.as(&tls.Certificate{Certificate: res.Chain, PrivateKey: machine.key}), h.url)
	again := h.begin(x509.Name)
	if _, err := h.send(x509.Name, again, k.good(h, again.binding)); err != nil {
		t.Errorf("the machine's next proof, over its own connection: %v", err)
	}
	if h.Env.State().Holds.Len() != 0 {
		t.Error("somebody is held")
	}
	if got := h.sums(x509.Name); got["rate-limited"] != uint64(5+limited) || len(got) != 2 {
		t.Errorf("accounted: %v", got)
	}
}

// Those who fail at the same time fail one after the other, too: what is being verified counts until it is known to be good.
func TestFailuresAtOnce(t *testing.T) {
	k := certificates(t, nil)
	h := newHouse(t, options{files: files([]kit{k}), limits: burst(3)})
	w := h.work[x509.Name]
	w.gate = make(chan struct{})
	x := h.begin(x509.Name)
	good := h.begin(x509.Name)
	const all = 20
	var answered atomic.Int64
	var group sync.WaitGroup
	for range all {
		group.Go(func() {
			_, _ = h.send(x509.Name, x, []byte(`{"chain":["AAAA"],"signature":"AAAA"}`))
			answered.Add(1)
		})
	}
	for deadline := time.Now().Add(20 * time.Second); answered.Load()+w.verified.Load() < all; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("they don't arrive")
		}
	}
	if n := w.verified.Load(); n != 3 {
		t.Errorf("%d are verified at once", n)
	}
	close(w.gate)
	group.Wait()
	// What turned out good is given back.
	for range 6 {
		good = h.again(x509.Name, good)
		if _, err := h.send(x509.Name, good, k.good(h, good.binding)); err != nil {
			t.Error(err)
		}
	}
}

// as is an HTTP client with a certificate.
func (h *house) as(cert *tls.Certificate) *http.Client {
	roots := cx509.NewCertPool()
	roots.AddCert(h.Env.Certificates()[0])
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: h.Env.Name(), Time: h.Now, Certificates: []tls.Certificate{*cert},
	}, ForceAttemptHTTP2: true}
	h.T.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// A dry run and an offer cost as much when they succeed, and nothing of them is spent: so they count then, too.
func TestDryRunsAndOffersAreLimited(t *testing.T) {
	machines := certificates(t, nil)
	tpms := chips(t)
	h := newHouse(t, options{files: files([]kit{machines, tpms}), limits: burst(3)})
	x := h.begin(x509.Name)
	good := machines.good(h, x.binding)
	for i := range 6 {
		_, err := h.client.Attestation.Appraise(t.Context(), &pb.AttestRequest{Method: x509.Name, Challenge: x.challenge, Evidence: good, Csr: x.csr})
		if limited := servertest.Reason(err) == "rate-limited"; (err != nil) != (i >= 3) || limited != (i >= 3) {
			t.Errorf("dry run %d: %v", i, err)
		}
	}
	if n := h.work[x509.Name].verified.Load(); n != 3 {
		t.Errorf("%d dry runs were verified", n)
	}

	offered := &h.work[tpm.Name].offered
	ask := func(hello []byte) string {
		_, err := h.client.Attestation.Challenge(t.Context(), &pb.ChallengeRequest{Method: tpm.Name, Hello: hello})
		if err == nil {
			return ""
		}
		return servertest.Reason(err)
	}
	b := h.begin(tpm.Name).binding
	fields, _ := members(t, tpms.good(h, b))
	offered.Store(0)
	for what, hello := range map[string][]byte{"": fields["hello"], "invalid": []byte(`{"ek":"AAAA"}`)} {
		var got []string
		for range 6 {
			got = append(got, ask(hello))
		}
		if want := slices.Concat(slices.Repeat([]string{what}, 3), slices.Repeat([]string{"rate-limited"}, 3)); !slices.Equal(got, want) {
			t.Errorf("offers: %v", got)
		}
	}
	if n := offered.Load(); n != 6 {
		t.Errorf("%d offers were made", n)
	}
	offered.Store(0)
	for i := range 200 {
		ask([]byte(`{"ek":"` + strings.Repeat("A", 4*i) + `"}`))
	}
	if n := offered.Load(); n > 48 {
		t.Errorf("%d offers were made to hellos that were made up", n)
	}
	if got := h.sums(tpm.Name); got["invalid"] == 0 || got["rate-limited"] == 0 {
		t.Errorf("accounted: %v", got)
	}
	h.begin(tpm.Name) // plain challenges are taken as before
}

// Large evidence is as dear as it is large.
func TestLargeEvidenceCountsMore(t *testing.T) {
	tpms := chips(t)
	h := newHouse(t, options{files: files([]kit{tpms}), limits: burst(20)})
	x := h.begin(tpm.Name)
	large := append([]byte(`{"x":"`), bytes.Repeat([]byte("A"), 600<<10)...)
	for range 8 {
		x = h.again(tpm.Name, x)
		_, _ = h.send(tpm.Name, x, large)
	}
	if n := h.work[tpm.Name].verified.Load(); n == 0 || n > 2 {
		t.Errorf("%d large evidences were looked at, of which each counts for ten", n)
	}
}

// Evidence beyond its method's size is refused before anything is read of it; and a request of a megabyte has its place in the memory for
// requests, or waits outside.
func TestSizes(t *testing.T) {
	kits := []kit{certificates(t, nil), chips(t)}
	h := newHouse(t, options{files: files(append(kits, tokens(t)...)), limits: func(l *rpc.Limits) { l.RequestMemory = 4 << 20 }})
	for _, m := range methods.All() {
		most := m.MaxEvidence
		if most == 0 {
			most = attest.MaxEvidence
		}
		want := "too-large"
		x := h.begin(m.Name)
		_, err := h.send(m.Name, x, append([]byte(`{"token":"`), bytes.Repeat([]byte("A"), most)...))
		if got := servertest.Reason(err); got != want {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	// Strangers of one source have an eighth, or one whole request: a second one of a megabyte at the same time has no room.
	begun := make(chan struct{})
	body := &stalled{begun: begun, rest: make(chan struct{})}
	done := make(chan struct{})
	client := h.as(&tls.Certificate{})
	go func() {
		defer close(done)
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, h.url+"/bailment.v1.AttestationService/Attest", body)
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/json")
		if res, err := client.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-begun
	deadline := time.Now().Add(10 * time.Second)
	for {
		x := h.begin(tpm.Name)
		_, err := h.send(tpm.Name, x, bytes.Repeat([]byte(" "), 900<<10))
		if servertest.Reason(err) == "overloaded" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the second large request: %v", err)
		}
	}
	close(body.rest)
	<-done
}

// stalled is a body that stops short of its end.
type stalled struct {
	sent  int
	begun chan struct{}
	rest  chan struct{}
}

func (s *stalled) Read(p []byte) (int, error) {
	if s.sent == 900<<10 {
		close(s.begun)
		<-s.rest
		return 0, net.ErrClosed
	}
	n := min(len(p), 900<<10-s.sent)
	for i := range p[:n] {
		p[i] = ' '
	}
	s.sent += n
	return n, nil
}

// A stranger who makes up the IDs of keys, or whole issuers, has nobody ask the issuer again and again.
func TestStrangersDriveNoIssuer(t *testing.T) {
	f := platformtest.Of(t, gcp.Method(), jose.ES256, time.Now(), attest.Binding{})
	var asked atomic.Int64
	var issuer *httptest.Server
	issuer = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if strings.HasSuffix(r.URL.Path, "openid-configuration") {
			_ = json.NewEncoder(w).Encode(map[string]any{"issuer": issuer.URL, "jwks_uri": issuer.URL + "/keys"})
			return
		}
		_ = json.NewEncoder(w).Encode(f.Issuer.Keys())
	}))
	t.Cleanup(issuer.Close)
	keys := issuers.New(issuers.Config{})
	t.Cleanup(keys.Close)
	k := kit{method: gcp.Name, spec: "  issuer: \"" + issuer.URL + "\"\n" + specPEM(issuer.Certificate())}
	h := newHouse(t, options{files: files([]kit{k}), issuers: keys})
	token := func(b attest.Binding, header map[string]any, change map[string]any) []byte {
		g := f.Target
		g.Binding = b
		claims := jwttest.With(g.Claims, map[string]any{"iss": issuer.URL, "aud": g.Audience(b)})
		return jwttest.Evidence(f.Issuer.SignWith(jwttest.With(claims, change), header))
	}
	own := h.begin(gcp.Name)
	if _, err := h.send(gcp.Name, own, token(own.binding, nil, nil)); err != nil {
		t.Fatal(err)
	}
	first := asked.Load()
	if first != 2 {
		t.Fatalf("the issuer was asked %d times for its document and its keys", first)
	}
	got := map[string]int{}
	for i := range 50 {
		x := h.begin(gcp.Name)
		_, err := h.send(gcp.Name, x, token(x.binding, map[string]any{"kid": strings.Repeat("k", i+1)}, nil))
		got[servertest.Reason(err)]++
		_, err = h.send(gcp.Name, x, token(x.binding, nil, map[string]any{"iss": issuer.URL + "/" + strings.Repeat("x", i)}))
		got[servertest.Reason(err)]++
	}
	if want := map[string]int{"token-invalid": 50, "unknown-issuer": 50}; !maps.Equal(got, want) {
		t.Errorf("refused: %v", got)
	}
	if n := asked.Load() - first; n > 2 {
		t.Errorf("strangers had the issuer asked %d times", n)
	}
	last := h.begin(gcp.Name)
	if _, err := h.send(gcp.Name, last, token(last.binding, nil, nil)); err != nil {
		t.Errorf("the machine, after them: %v", err)
	}
}

// However much strangers send, the ledger grows by a sum for each method and reason in a minute.
func TestLedgerGrowsByTheMinute(t *testing.T) {
	k := certificates(t, nil)
	h := newHouse(t, options{files: files([]kit{k})})
	other := issue(t, "x", ecKey(t, elliptic.P256()), nil, nil)
	before := h.Env.State().Next
	began := h.Now().Truncate(time.Minute)
	x := h.begin(x509.Name)
	for i := range 300 {
		_, _ = h.send(x509.Name, x, [][]byte{nil, []byte(`{"chain":["AAAA"],"signature":"AAAA"}`), encode(t, map[string]any{"chain": [][]byte{other.cert.Raw}, "signature": []byte{}})}[i%3])
	}
	if n := h.Env.State().Next; n != before {
		t.Errorf("%d entries while it went on", n-before)
	}
	got := h.sums(x509.Name)
	minutes := uint64(h.Now().Truncate(time.Minute).Sub(began)/time.Minute) + 1
	if n := h.Env.State().Next - before; n > minutes*uint64(len(got)) || got["invalid"]+got["bad-chain"]+got["bad-proof"] != 300 {
		t.Errorf("%d entries in %d minutes, of %v", n, minutes, got)
	}
}
