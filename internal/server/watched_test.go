package server

import (
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/bailment/bailment/internal/canary"
)

// A metric whose label shows a value is left out and counted; the others stay, also of its family.
func TestMetricsWithhold(t *testing.T) {
	s := &Server{metrics: newMetrics("v1"), silence: canary.New()}
	value := strings.Repeat("0123456789abcdef", 3)
	s.metrics.violated("about " + value)
	count := func() (n int) {
		all, err := watched{s}.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if f.GetName() == "bailment_invariant_violations_total" {
				n += len(f.Metric)
			}
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if strings.Contains(l.GetValue(), value) && s.silence.Found()[canary.Metric] > 0 {
						t.Errorf("%s shows it", f.GetName())
					}
				}
			}
		}
		return n
	}
	before := count()
	s.silence.Seed([]byte(value))
	if after := count(); after != before-1 || s.silence.Found()[canary.Metric] != 1 {
		t.Errorf("%d of %d are left, found %v", after, before, s.silence.Found())
	}
}

// The version is this program's own, whatever somebody makes a value.
func TestMetricsKeepTheVersion(t *testing.T) {
	const version = "v0.1.0-0.20260102030405-0123456789ab"
	s := &Server{metrics: newMetrics(version), silence: canary.New(), o: Options{Version: version}}
	s.silence.Seed([]byte(version))
	all, err := watched{s}.Gather()
	if err != nil || !slices.ContainsFunc(all, func(f *dto.MetricFamily) bool { return f.GetName() == "bailment_build_info" }) || s.silence.Found()[canary.Metric] != 0 {
		t.Errorf("it is gone: found %v, %v", s.silence.Found(), err)
	}
}
