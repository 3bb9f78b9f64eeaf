package metadata_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/attest/metadata"
	"github.com/bailment/bailment/internal/problem"
)

func TestNewRefuses(t *testing.T) {
	for _, base := range []string{
		"169.254.169.254", "https://169.254.169.254", "http://", "http://metadata.canary.internal", "http://localhost", "http://127.0.0.1/canary",
		"http://127.0.0.1?canary", "http://127.0.0.1?", "http://canary@127.0.0.1", "http://127.0.0.1#canary", "http://127.0.0.1:canary", "http:127.0.0.1", "ftp://127.0.0.1", "\x00canary",
	} {
		if _, err := metadata.New(base); !problem.Is(err, problem.ReasonInvalid) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", base, err)
		}
	}
	for _, base := range []string{"", metadata.LinkLocal, "http://127.0.0.1:80", "http://[fd00:ec2::254]", "http://[fd00:ec2::254]:80"} {
		if _, err := metadata.New(base); err != nil {
			t.Errorf("%s: %v", base, err)
		}
	}
}

func TestAsk(t *testing.T) {
	// Were it used, nothing would be reached.
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /token", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Ask") != "yes" || r.URL.RawQuery != "a=b+c" {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write([]byte("answer"))
	})
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/token")
			w.WriteHeader(code)
			_, _ = w.Write([]byte("canary"))
		}
	}
	mux.HandleFunc("/gone", status(http.StatusGone))
	mux.HandleFunc("/busy", status(http.StatusTooManyRequests))
	mux.HandleFunc("/broken", status(http.StatusInternalServerError))
	mux.HandleFunc("/moved", status(http.StatusFound))
	mux.HandleFunc("/forbidden", status(http.StatusForbidden))
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, metadata.MaxAnswer+1)) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("canary"))
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	s, err := metadata.New(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Ask(context.Background(), http.MethodPut, "/token", url.Values{"a": {"b c"}}, map[string]string{"X-Ask": "yes"})
	if err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
	for path, want := range map[string]problem.Reason{
		"/gone": problem.ReasonUnreachable, "/busy": problem.ReasonUnreachable, "/broken": problem.ReasonUnreachable, "/cut": problem.ReasonUnreachable,
		"/moved": problem.ReasonInvalid, "/forbidden": problem.ReasonInvalid, "/nothing": problem.ReasonInvalid, "/large": problem.ReasonTooLarge,
	} {
		if _, err := s.Ask(context.Background(), http.MethodGet, path, nil, nil); !problem.Is(err, want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Ask(ctx, http.MethodGet, "/token", nil, nil); !problem.Is(err, problem.ReasonCanceled) {
		t.Errorf("cancelled: %v", err)
	}
	server.Close()
	if _, err := s.Ask(context.Background(), http.MethodGet, "/token", nil, nil); !problem.Is(err, problem.ReasonUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}
