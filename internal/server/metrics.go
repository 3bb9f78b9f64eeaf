package server

import (
	"context"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/bailment/bailment/internal/invariant"
	"github.com/bailment/bailment/internal/rpc"
)

// metrics are the server's, in a registry of their own.
type metrics struct {
	registry *prometheus.Registry

	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	inFlight    prometheus.Gauge
	open        prometheus.Gauge
	refused     *prometheus.CounterVec
	broken      *prometheus.CounterVec
	turned      *prometheus.CounterVec
	handshakes  *prometheus.CounterVec
	panics      prometheus.Counter
	undelivered prometheus.Counter
	violations  *prometheus.CounterVec
	notices     *prometheus.CounterVec
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_requests_total", Help: "Requests by their method and the code they ended with.",
		}, []string{"service", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bailment_request_seconds", Help: "From a request's header to the end of its answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"service", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "bailment_requests_in_flight", Help: "Requests whose answer was not taken yet, streams too."}),
		open:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "bailment_connections", Help: "Open connections."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_connections_refused_total", Help: "Connections reset at once, by the limit that they were over.",
		}, []string{"limit"}),
		broken: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_connections_broken_off_total", Help: "Connections closed before their client did: to make room for a new one, idle without a proved identity, too much before the first request, or too slow when the server stopped.",
		}, []string{"why"}),
		turned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_requests_refused_total", Help: "Requests refused because there were too many at a time, by the limit that they were over.",
		}, []string{"limit"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_handshakes_refused_total", Help: "Connections that never came to a request, by the reason.",
		}, []string{"reason"}),
		panics:      prometheus.NewCounter(prometheus.CounterOpts{Name: "bailment_panics_total", Help: "Methods that panicked; expected 0."}),
		undelivered: prometheus.NewCounter(prometheus.CounterOpts{Name: "bailment_deliveries_failed_total", Help: "Releases that were entered and whose value could not be sent."}),
		violations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_invariant_violations_total", Help: "Violations found by the running checks; expected 0.",
		}, []string{"invariant"}),
		notices: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bailment_notifications_total", Help: "Attempts to tell a target of the bundle's notify, by their outcome: told, retried, failed for good, dropped.",
		}, []string{"environment", "target", "outcome"}),
	}
	for _, x := range invariant.Table { // each is there from the start with 0, so that its absence is seen
		m.violations.WithLabelValues(string(x.Name))
	}
	for _, reason := range []string{"total", "source", "rate"} {
		m.refused.WithLabelValues(reason)
	}
	for _, why := range []string{brokenRoom, brokenIdle, brokenStop, brokenSize} {
		m.broken.WithLabelValues(why)
	}
	for _, limit := range []string{"total", "source", "identity", "unproved", "unproved-source", "unproved-connection", "unproved-room"} {
		m.turned.WithLabelValues(limit)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "bailment_build_info", Help: "1, with what is running as labels.",
		ConstLabels: prometheus.Labels{"version": version, "go": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.requests, m.seconds, m.inFlight, m.open, m.refused, m.broken, m.turned, m.handshakes, m.panics, m.undelivered, m.violations, m.notices, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// violated counts a violated invariant. A name outside of the table is counted as it is: that is a defect,
// and no reason to lose a violation.
func (m *metrics) violated(invariant string) { m.violations.WithLabelValues(invariant).Inc() }

func (m *metrics) connected(delta int)            { m.open.Add(float64(delta)) }
func (m *metrics) connectionRefused(limit string) { m.refused.WithLabelValues(limit).Inc() }
func (m *metrics) connectionBroken(why string)    { m.broken.WithLabelValues(why).Inc() }
func (m *metrics) requestOpen(delta int)          { m.inFlight.Add(float64(delta)) }
func (m *metrics) requestRefused(limit string)    { m.turned.WithLabelValues(limit).Inc() }
func (m *metrics) HandshakeRefused(reason string) { m.handshakes.WithLabelValues(reason).Inc() }
func (m *metrics) Panicked()                      { m.panics.Inc() }
func (m *metrics) DeliveryFailed()                { m.undelivered.Inc() }
func (m *metrics) meter(service, method string) rpc.Meter {
	return &meter{metrics: m, service: service, method: method, seconds: m.seconds.WithLabelValues(service, method), ok: m.requests.WithLabelValues(service, method, "ok")}
}

// meter measures one method. What nearly every request needs was looked up before.
type meter struct {
	*metrics
	service, method string
	seconds         prometheus.Observer
	ok              prometheus.Counter
	codes           sync.Map // code -> prometheus.Counter
}

func (m *meter) Ended(code string, took time.Duration) {
	m.seconds.Observe(took.Seconds())
	if code == "ok" {
		m.ok.Inc()
		return
	}
	c, found := m.codes.Load(code)
	if !found {
		c, _ = m.codes.LoadOrStore(code, m.requests.WithLabelValues(m.service, m.method, code))
	}
	c.(prometheus.Counter).Inc()
}

// environments reads each environment's own counters when somebody scrapes.
type environments struct {
	server *Server
	descs  map[string]*prometheus.Desc
}

// environmentMetrics is the one table of what is read of an environment.
var environmentMetrics = []struct {
	name, help string
	labels     []string
	kind       prometheus.ValueType
}{
	{"bailment_ready", "1 if the environment accepts requests.", nil, prometheus.GaugeValue},
	{"bailment_entropy_healthy", "1 if the random source passes its tests.", nil, prometheus.GaugeValue},
	{"bailment_queue_length", "Requests that wait for the ledger.", nil, prometheus.GaugeValue},
	{"bailment_queue_refused_total", "Requests refused because the queue was full.", nil, prometheus.CounterValue},
	{"bailment_ledger_size", "Entries of the ledger.", nil, prometheus.GaugeValue},
	{"bailment_ledger_bytes", "Bytes of the store on disk.", nil, prometheus.GaugeValue},
	{"bailment_ledger_entries_total", "Entries written since the start; by bailment_ledger_batches_total, the entries of a batch.", nil, prometheus.CounterValue},
	{"bailment_ledger_batches_total", "Batches made durable since the start.", nil, prometheus.CounterValue},
	{"bailment_ledger_body_bytes_total", "Bytes of entries' bodies written since the start.", nil, prometheus.CounterValue},
	{"bailment_ledger_reloads_total", "Times that the store was opened again after a failed write.", nil, prometheus.CounterValue},
	{"bailment_ledger_panics_total", "Proposals that panicked or could not be applied; expected 0.", nil, prometheus.CounterValue},
	{"bailment_denials_total", "Refusals that were counted instead of entered one by one.", nil, prometheus.CounterValue},
	{"bailment_snapshot_age_entries", "Entries since the last state root, which the next start replays.", nil, prometheus.GaugeValue},
	{"bailment_certificate_not_after_seconds", "When a certificate ends, as Unix time.", []string{"certificate"}, prometheus.GaugeValue},
	{"bailment_sessions", "Sessions that are kept in the state.", nil, prometheus.GaugeValue},
	{"bailment_leases", "Leases that are kept in the state.", nil, prometheus.GaugeValue},
	{"bailment_secrets", "Secrets.", nil, prometheus.GaugeValue},
	{"bailment_generation", "Number of the bundle's coming into force.", nil, prometheus.GaugeValue},
	{"bailment_quarter_releases", "Releases of secrets in this quarter of a year (UTC), all and by break-glass grants: the share of the second is what the alarm is about.", []string{"by"}, prometheus.GaugeValue},
	{"bailment_break_glass_openings", "Openings of break-glass grants in this quarter of a year (UTC).", nil, prometheus.GaugeValue},
	{"bailment_break_glass_open", "Break-glass grants that are open now.", nil, prometheus.GaugeValue},
	{"bailment_break_glass_unreviewed", "Openings that nobody reviewed yet; the next one takes approvals until it is 0.", nil, prometheus.GaugeValue},
	{"bailment_break_glass_alarm", "1 from when releases by break-glass grants reached the alarming share until the quarter's end.", nil, prometheus.GaugeValue},
}

// watch registers the environments of an opened server.
func (m *metrics) watch(s *Server) {
	c := &environments{server: s, descs: make(map[string]*prometheus.Desc)}
	for _, x := range environmentMetrics {
		c.descs[x.name] = prometheus.NewDesc(x.name, x.help, append([]string{"environment"}, x.labels...), nil)
	}
	m.registry.MustRegister(c)
}

// Describe is prometheus.Collector's.
func (c *environments) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

// sizeWithin bounds how long a scrape waits for the store's size.
const sizeWithin = time.Second

// Collect is prometheus.Collector's.
func (c *environments) Collect(out chan<- prometheus.Metric) {
	for name, x := range c.server.sites {
		env, st := x.env, x.env.State()
		log := env.Ledger()
		stats := log.Stats()
		ctx, cancel := context.WithTimeout(context.Background(), sizeWithin)
		bytes, err := log.Store().Size(ctx)
		err = log.Failed(err)
		cancel()
		values := map[string]float64{
			"bailment_ready": truth(env.Ready() == nil), "bailment_entropy_healthy": truth(c.server.source.Healthy() == nil),
			"bailment_queue_length": float64(log.QueueLength()), "bailment_queue_refused_total": float64(stats.Refused.Load()),
			"bailment_ledger_size": float64(log.Size()), "bailment_ledger_entries_total": float64(stats.Entries.Load()),
			"bailment_ledger_batches_total": float64(stats.Batches.Load()), "bailment_ledger_body_bytes_total": float64(stats.BodySize.Load()),
			"bailment_ledger_reloads_total": float64(stats.Reloads.Load()), "bailment_ledger_panics_total": float64(stats.Panics.Load()),
			"bailment_denials_total": float64(env.Denials()), "bailment_snapshot_age_entries": float64(st.Next - st.Root.Index),
			"bailment_sessions": float64(st.Sessions.Len()), "bailment_leases": float64(st.Leases.Len()),
			"bailment_secrets": float64(st.Secrets.Len()), "bailment_generation": float64(st.Generation),
		}
		quarter, open, unreviewed := env.Quarter()
		values["bailment_break_glass_openings"], values["bailment_break_glass_alarm"] = float64(quarter.Openings), truth(quarter.Alarmed)
		values["bailment_break_glass_open"], values["bailment_break_glass_unreviewed"] = float64(open), float64(unreviewed)
		for by, n := range map[string]int{"all": quarter.Releases, "break-glass": quarter.Glass} {
			out <- prometheus.MustNewConstMetric(c.descs["bailment_quarter_releases"], prometheus.GaugeValue, float64(n), name, by)
		}
		if err == nil {
			values["bailment_ledger_bytes"] = float64(bytes)
		}
		for _, m := range environmentMetrics {
			if v, ok := values[m.name]; ok {
				out <- prometheus.MustNewConstMetric(c.descs[m.name], m.kind, v, name)
			}
		}
		ends := c.descs["bailment_certificate_not_after_seconds"]
		for i, cert := range env.Certificates() {
			out <- prometheus.MustNewConstMetric(ends, prometheus.GaugeValue, float64(cert.NotAfter.Unix()), name, "ca/"+strconv.Itoa(i+1))
		}
		if cert := x.current.Load(); cert != nil {
			out <- prometheus.MustNewConstMetric(ends, prometheus.GaugeValue, float64(cert.Leaf.NotAfter.Unix()), name, "server")
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
