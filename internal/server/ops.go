package server

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"github.com/bailment/bailment/internal/canary"
	"github.com/bailment/bailment/internal/config"
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

// opsLimits bound the connections of the plain listener. Nobody proves anything there, so they make room for each other; and all come
// from this machine, which is one source.
var opsLimits = config.Limits{Connections: 64, SourceConnections: 64, SourceHandshakes: config.Rate{PerSecond: 1e6, Burst: 1e6}}

// uncounted is for the plain listener, whose connections are not the API's.
type uncounted struct{}

func (uncounted) connected(int)            {}
func (uncounted) connectionRefused(string) {}
func (uncounted) connectionBroken(string)  {}

// opsHandler is the plain listener's: it is on a loopback address, and tells of all environments.
func (s *Server) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", livez)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { s.readyz(w, s.Environments()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(watched{s}, promhttp.HandlerOpts{MaxRequestsInFlight: 4, DisableCompression: true}))
	return mux
}

// watched leaves out the metrics that would show a secret value. Only a label can: all else is numbers and this program's own text, and
// who may write a secret must not make the operators blind by writing a piece of that.
type watched struct{ server *Server }

// Gather is prometheus.Gatherer's.
func (g watched) Gather() ([]*dto.MetricFamily, error) {
	all, err := g.server.metrics.registry.Gather()
	for _, f := range all {
		f.Metric = slices.DeleteFunc(f.Metric, g.shows)
	}
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return len(f.Metric) == 0 }), err
}

func (g watched) shows(m *dto.Metric) bool {
	for _, l := range m.Label {
		v := l.GetValue()
		if _, ours := g.server.sites[v]; !ours && v != g.server.o.Version && g.server.silence.Look(canary.Metric, []byte(v)) {
			return true
		}
	}
	return false
}

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
	return s.document(environment, r)
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
