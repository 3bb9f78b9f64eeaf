package server

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bailment/bailment/internal/problem"
)

// health is the answer of /readyz.
type health struct {
	Ready        bool                 `json:"ready"`
	Environments map[string]condition `json:"environments"`
}

// condition is that of one environment.
type condition struct {
	Ready   bool   `json:"ready"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	Fix     string `json:"fix,omitempty"`
}

// opsHandler is the plain listener's: it is on a loopback address, and tells of all environments.
func (s *Server) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", livez)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { s.readyz(w, s.Environments()) })
	metrics := promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, DisableCompression: true})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		page := watchedWriter{ResponseWriter: w, status: http.StatusOK}
		metrics.ServeHTTP(&page, r)
		text := s.silence.Metrics(page.text.Bytes())
		if text == nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(page.status)
		_, _ = w.Write(text) // the client may be gone
	})
	return mux
}

// watchedWriter keeps an answer back until it was looked through for secret values.
type watchedWriter struct {
	http.ResponseWriter
	status int
	text   bytes.Buffer
}

func (w *watchedWriter) WriteHeader(status int)      { w.status = status }
func (w *watchedWriter) Write(p []byte) (int, error) { return w.text.Write(p) }

// plain is what the API's port answers besides methods: health, of the connection's environment only.
func (s *Server) plain(environment string, r *http.Request) http.HandlerFunc {
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return nil
	case r.URL.Path == "/livez":
		return livez
	case r.URL.Path == "/readyz":
		return func(w http.ResponseWriter, _ *http.Request) { s.readyz(w, []string{environment}) }
	}
	return nil
}

func livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // the client may be gone
}

func (s *Server) readyz(w http.ResponseWriter, names []string) {
	h := health{Ready: true, Environments: make(map[string]condition)}
	for _, name := range names {
		c := s.conditionOf(name)
		h.Environments[name] = c
		h.Ready = h.Ready && c.Ready
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(h) // the client may be gone
}

func (s *Server) conditionOf(name string) condition {
	var err error
	switch x := s.sites[name]; {
	case s.stopping.Load():
		err = problem.New(problem.ReasonStopping, "the server is stopping")
	case x == nil:
		err = problem.New(problem.ReasonStarting, "the environment is not open")
	default:
		err = x.env.Ready()
	}
	if err == nil {
		return condition{Ready: true}
	}
	p := problem.As(err)
	c := condition{Reason: string(p.Reason), Message: p.Message, Fix: p.WayOut()}
	if p.Inside() {
		c.Message = "see the server's log"
	}
	return c
}
