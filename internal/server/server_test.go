package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/keyring/holders"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server"
	"github.com/bailment/bailment/internal/server/servertest"
	"github.com/bailment/bailment/internal/store"
	"github.com/bailment/bailment/internal/store/sqlite"
)

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestHandOverAndRestart(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte("sesame")}); err != nil {
		t.Fatal(err)
	}
	app := h.App("web-1")
	for range 2 {
		got, err := h.Clients(app.Cert).Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"})
		if err != nil || string(got.Value) != "sesame" {
			t.Fatal(got, err)
		}
		if err := h.Stop(); err != nil {
			t.Fatal(err)
		}
		h.Begin()
	}
}

// The metrics are what Prometheus can parse, and what the design names is among them.
func TestMetrics(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	if _, err := alice.Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"}); err == nil {
		t.Fatal("alice read a secret")
	}
	code, body := get(t, http.DefaultClient, h.OpsURL()+"/metrics")
	if code != http.StatusOK {
		t.Fatal(code)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"bailment_requests_total", "bailment_request_seconds", "bailment_requests_in_flight", "bailment_connections", "bailment_connections_refused_total",
		"bailment_ready", "bailment_entropy_healthy", "bailment_queue_length", "bailment_ledger_size", "bailment_ledger_bytes", "bailment_ledger_batches_total",
		"bailment_ledger_entries_total", "bailment_ledger_reloads_total", "bailment_denials_total", "bailment_snapshot_age_entries",
		"bailment_certificate_not_after_seconds", "bailment_build_info", "process_resident_memory_bytes", "go_goroutines",
	} {
		if families[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
	violations := families["bailment_invariant_violations_total"].GetMetric()
	if len(violations) != 12 {
		t.Errorf("%d invariants, want 12", len(violations))
	}
	for _, m := range violations {
		if m.GetCounter().GetValue() != 0 {
			t.Errorf("%v", m)
		}
	}
	if len(families["bailment_certificate_not_after_seconds"].GetMetric()) != 2 {
		t.Error("the CA's and the server's certificates are not both there")
	}
	for _, line := range []string{
		`bailment_requests_total{code="ok",method="Login",service="Attestation"} 1`,
		`bailment_requests_total{code="permission_denied",method="Get",service="Secret"} 1`,
		`bailment_ready{environment="servertest"} 1`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("there is no line %s", line)
		}
	}
}

func TestHealth(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	for url, c := range map[string]*http.Client{h.OpsURL(): http.DefaultClient, h.URL(): h.Client(nil, true)} {
		if code, body := get(t, c, url+"/livez"); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %s", url, code, body)
		}
		if code, body := get(t, c, url+"/readyz"); code != http.StatusOK || !strings.Contains(body, `"ready":true`) {
			t.Errorf("%s: %d %s", url, code, body)
		}
	}
}

// fullStore is a store whose disk is full while it is told so.
type fullStore struct {
	store.Store
	full *atomic.Bool
}

func (s fullStore) Append(ctx context.Context, b *store.Batch) error {
	if s.full.Load() {
		_ = s.Store.Close() // fatal from here on, as the contract says
		return errors.Join(store.ErrNotDone, store.ErrFull, errors.New("/srv/insides/ledger.db: INSERT failed"))
	}
	return s.Store.Append(ctx, b)
}

// A full disk refuses clearly, is seen from outside, and is over when there is room.
func TestDiskFull(t *testing.T) {
	var full atomic.Bool
	log := &lockedBuffer{}
	h := servertest.Start(t, servertest.Options{Logger: slog.New(slog.NewTextHandler(log, nil)), OpenStore: func(ctx context.Context, dir string) (store.Store, error) {
		if full.Load() {
			return nil, fmt.Errorf("%w: /srv/insides/ledger.db can't be opened", store.ErrFull)
		}
		st, err := sqlite.Open(ctx, dir)
		return fullStore{st, &full}, err
	}})
	alice := h.Login("alice")
	write := func() error {
		_, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte("x")})
		return err
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	err := write()
	if connect.CodeOf(err) != connect.CodeUnavailable || servertest.Reason(err) != "store-full" {
		t.Fatalf("got %v (%s)", err, servertest.Reason(err))
	}
	quiet := func(told string) {
		if strings.Contains(told, "insides") || strings.Contains(told, "INSERT") {
			t.Errorf("the insides are told: %s", told)
		}
	}
	quiet(fmt.Sprint(err, servertest.ProblemOf(err)))
	within(t, "later requests are refused alike", func() bool {
		err := write()
		quiet(fmt.Sprint(err, servertest.ProblemOf(err)))
		return servertest.Reason(err) == "store-full"
	})
	if !strings.Contains(log.String(), "/srv/insides/ledger.db") {
		t.Errorf("the log does not say why:\n%s", log)
	}
	within(t, "not ready", func() bool {
		code, body := get(t, http.DefaultClient, h.OpsURL()+"/readyz")
		var got struct {
			Ready        bool
			Environments map[string]struct{ Reason, Fix string }
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		quiet(body)
		e := got.Environments[h.Name]
		return code == http.StatusServiceUnavailable && !got.Ready && e.Reason == "store-full" && e.Fix != ""
	})
	if code, _ := get(t, http.DefaultClient, h.OpsURL()+"/livez"); code != http.StatusOK {
		t.Fatal("a full disk is no reason to be restarted")
	}
	full.Store(false)
	within(t, "it recovers", func() bool { return write() == nil })
	within(t, "ready again", func() bool { code, _ := get(t, http.DefaultClient, h.OpsURL()+"/readyz"); return code == http.StatusOK })
}

func TestDataDirectoryIsLocked(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	second, err := server.New(h.Config(), server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = second.Open(t.Context())
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(problem.As(err).WayOut(), "another server") || problem.As(err).Kind == problem.Internal {
		t.Fatal(err)
	}
	h.Login("alice") // the first is as it was
}

func TestWhatCannotBeOpened(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	open := func(change func(*config.Server)) error {
		cfg := h.Config()
		change(&cfg)
		s, err := server.New(cfg, server.Options{})
		if err != nil {
			return err
		}
		if err := s.Open(t.Context()); err != nil {
			return err
		}
		return s.Close()
	}
	key := filepath.Join(h.Data, h.Name, server.RootKeyFile)
	for _, x := range []struct {
		name   string
		change func(*config.Server)
		reason problem.Reason
	}{
		{"as it is", func(*config.Server) {}, ""},
		{"an empty data directory", func(c *config.Server) { c.Data = t.TempDir() }, problem.ReasonInvalid},
		{"no data directory", func(c *config.Server) { c.Data = "/nonexistent" }, problem.ReasonInvalid},
		{"an environment that isn't there", func(c *config.Server) { c.Environments = []string{"missing"} }, problem.ReasonNotFound},
		{"a port in use", func(c *config.Server) {
			l := newListener(t)
			c.Listen = l
		}, problem.ReasonInvalid},
		{"a root key that others can read", func(*config.Server) { chmod(t, key, 0o644) }, problem.ReasonPermissions},
		{"as it was", func(*config.Server) { chmod(t, key, 0o600) }, ""},
		{"under another name", func(c *config.Server) {
			if err := os.Rename(filepath.Join(h.Data, h.Name), filepath.Join(h.Data, "other")); err != nil {
				t.Fatal(err)
			}
		}, problem.ReasonWrongEnvironment},
	} {
		err := open(x.change)
		switch {
		case x.reason == "" && err != nil:
			t.Errorf("%s: %v", x.name, err)
		case x.reason != "" && (err == nil || problem.As(err).Reason != x.reason || problem.As(err).WayOut() == ""):
			t.Errorf("%s: got %v, want %s", x.name, err, x.reason)
		}
	}
	if err := os.Rename(filepath.Join(h.Data, "other"), filepath.Join(h.Data, h.Name)); err != nil {
		t.Fatal(err)
	}
}

// The certificate is changed at once when the CA was, and clients that know only genesis still trust it.
func TestCertificateFollowsTheCA(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	if _, err := alice.Key.RotateKey(t.Context(), &pb.RotateKeyRequest{Kind: "ca"}); err != nil {
		t.Fatal(err)
	}
	within(t, "a certificate of the new CA", func() bool {
		c := h.Client(nil, false)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.URL()+"/livez", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return strings.HasSuffix(res.TLS.PeerCertificates[0].Issuer.CommonName, "CA 2")
	})
	h.Login("alice")
}

// A hold on everything must not keep the server from starting: somebody has to be able to lift it.
func TestStartsUnderAHoldOnEverything(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	if _, err := h.Login("alice").Revocation.Revoke(t.Context(), &pb.RevokeRequest{Scope: "everything"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	h.Begin()
	h.Login("alice")
}

// Values are in no log line, at any level.
func TestLogIsSilent(t *testing.T) {
	const canary = "canary-5f2c81aa9e"
	var log lockedBuffer
	h := servertest.Start(t, servertest.Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	alice := h.Login("alice")
	if _, err := alice.Secret.Put(t.Context(), &pb.PutRequest{Secret: "app/password", Value: []byte(canary)}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.App("web-1").Secret.Get(t.Context(), &pb.GetRequest{Secret: "app/password"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); strings.Contains(text, canary) || !strings.Contains(text, "the server answers") {
		t.Fatal(text)
	}
}

// The kinds that a configuration may name are those that there are.
func TestHolderKinds(t *testing.T) {
	for _, k := range holders.Kinds() {
		if _, err := config.ParseServer("x", []byte("root_holders: {a: {kind: "+k.Name+"}}")); err != nil {
			t.Errorf("%s can't be configured: %v", k.Name, err)
		}
	}
}
