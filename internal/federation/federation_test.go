package federation

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
)

// ca is a certificate authority of a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, domain string) ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA " + rand.Text()}, NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}}, KeyUsage: x509.KeyUsageCertSign,
	}
	return ca{certificate(t, tmpl, tmpl, key, key), key}
}

func certificate(t *testing.T, tmpl, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// server is a certificate for an endpoint: an SVID of an ID, or one for 127.0.0.1.
func (c ca) server(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if id == "" {
		tmpl.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	} else {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	leaf := certificate(t, tmpl, c.cert, key, c.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func (c ca) bundle(t *testing.T) []byte {
	t.Helper()
	doc, err := (&spiffe.Bundle{Authorities: []*x509.Certificate{c.cert}, RefreshHint: time.Minute}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func endpoint(t *testing.T, cert tls.Certificate, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL + "/bundle"
}

func says(doc []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(doc) }
}

// An endpoint is believed if it proves what the relation asks, and nothing else.
func TestFetch(t *testing.T) {
	const domain, id = "east.example", "spiffe://east.example/bundles"
	east, later, other := newCA(t, domain), newCA(t, domain), newCA(t, "other.example")
	web, otherWeb := newCA(t, "web.example"), newCA(t, "web.example")
	mine := east.server(t, id)
	closed := httptest.NewServer(nil)
	closed.Close()
	plain := httptest.NewServer(says(east.bundle(t)))
	t.Cleanup(plain.Close)
	redirect := endpoint(t, mine, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bundle" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		_, _ = w.Write(later.bundle(t))
	})
	spiffeEnd := func(url string) Endpoint {
		return Endpoint{TrustDomain: domain, URL: url, Profile: ProfileSPIFFE, ID: id, ServerName: domain, Known: east.bundle(t)}
	}
	webEnd := func(url string, roots ...*x509.Certificate) Endpoint {
		return Endpoint{TrustDomain: domain, URL: url, Profile: ProfileWeb, Roots: roots}
	}
	stale := spiffeEnd(endpoint(t, later.server(t, id), says(later.bundle(t))))
	for name, x := range map[string]struct {
		e    Endpoint
		want problem.Reason // empty: taken
	}{
		"proved by its SVID":              {spiffeEnd(endpoint(t, mine, says(later.bundle(t)))), ""},
		"proved by its name":              {webEnd(endpoint(t, web.server(t, ""), says(later.bundle(t))), web.cert), ""},
		"another ID":                      {spiffeEnd(endpoint(t, east.server(t, "spiffe://east.example/workload/api"), says(later.bundle(t)))), problem.ReasonNotAuthentic},
		"another trust domain's ID":       {spiffeEnd(endpoint(t, east.server(t, "spiffe://other.example/bundles"), says(later.bundle(t)))), problem.ReasonNotAuthentic},
		"an authority not known":          {stale, problem.ReasonNotAuthentic},
		"no SVID":                         {spiffeEnd(endpoint(t, east.server(t, ""), says(later.bundle(t)))), problem.ReasonNotAuthentic},
		"another web root":                {webEnd(endpoint(t, otherWeb.server(t, ""), says(later.bundle(t))), web.cert), problem.ReasonNotAuthentic},
		"no root of the machine's":        {webEnd(endpoint(t, web.server(t, ""), says(later.bundle(t)))), problem.ReasonNotAuthentic},
		"an SVID where a name is asked":   {webEnd(endpoint(t, web.server(t, id), says(later.bundle(t))), web.cert), problem.ReasonNotAuthentic},
		"the wrong trust domain's bundle": {spiffeEnd(endpoint(t, mine, says(other.bundle(t)))), problem.ReasonForeignBundle},
		"not a bundle":                    {spiffeEnd(endpoint(t, mine, says([]byte("<html>")))), problem.ReasonForeignBundle},
		"an error":                        {spiffeEnd(endpoint(t, mine, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })), problem.ReasonForeignBundle},
		"a redirect":                      {spiffeEnd(redirect), problem.ReasonForeignBundle},
		"oversize":                        {spiffeEnd(endpoint(t, mine, says(bytes.Repeat([]byte{' '}, spiffe.MaxBundle+1)))), problem.ReasonTooLarge},
		"a cut answer": {spiffeEnd(endpoint(t, mine, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("{"))
		})), problem.ReasonUnreachable},
		"nobody there":         {spiffeEnd("https" + closed.URL[len("http"):]), problem.ReasonUnreachable},
		"no TLS":               {spiffeEnd("https" + plain.URL[len("http"):]), problem.ReasonNotAuthentic},
		"no profile":           {Endpoint{TrustDomain: domain, URL: "https://127.0.0.1:1"}, problem.ReasonUnsupported},
		"nothing known":        {Endpoint{TrustDomain: domain, URL: "https://127.0.0.1:1", Profile: ProfileSPIFFE, ID: id}, problem.ReasonForeignBundle},
		"no such trust domain": {Endpoint{TrustDomain: "Not A Name", Profile: ProfileSPIFFE, ID: id, Known: []byte(`{"keys":[]}`)}, problem.ReasonInvalid},
	} {
		doc, b, err := Fetch(t.Context(), x.e)
		switch {
		case x.want == "" && (err != nil || !bytes.Equal(doc, later.bundle(t)) && len(b.Authorities) != 1):
			t.Errorf("%s: %v", name, err)
		case x.want != "" && !problem.Is(err, x.want):
			t.Errorf("%s: %v, want %s", name, err, x.want)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Fetch(gone, stale); !problem.Is(err, problem.ReasonUnreachable) {
		t.Errorf("given up: %v", err)
	}
}

// source plays the environment.
type source struct {
	mu        sync.Mutex
	relations []Relation
	listErr   error
	took      []string
	refuse    error
}

func (s *source) Relations(context.Context) ([]Relation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.relations, s.listErr
}

func (s *source) Refreshed(_ context.Context, name string, _ [32]byte, doc []byte) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return false, s.refuse
	}
	s.took = append(s.took, name+" "+string(doc))
	return true, nil
}

func (s *source) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// fetches counts them, and says how many were under way at a time for one name and for all.
type fetches struct {
	mu          sync.Mutex
	n           map[string]int
	now, most   int
	each        map[string]int
	twice       bool
	fail        error
	hint, takes time.Duration
}

func (f *fetches) fetch(ctx context.Context, e Endpoint) ([]byte, *spiffe.Bundle, error) {
	f.mu.Lock()
	f.n[e.TrustDomain]++
	f.now++
	f.each[e.TrustDomain]++
	f.most = max(f.most, f.now)
	f.twice = f.twice || f.each[e.TrustDomain] > 1
	takes, fail, hint := f.takes, f.fail, f.hint
	f.mu.Unlock()
	wait := time.NewTimer(takes)
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
	f.each[e.TrustDomain]--
	if fail != nil {
		return nil, nil, fail
	}
	return []byte("doc"), &spiffe.Bundle{RefreshHint: hint}, nil
}

func (f *fetches) count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n[name]
}

func (f *fetches) set(g func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g()
}

func keepOver(t *testing.T, s *source, f *fetches) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		Keep(ctx, Options{Source: s, Logger: slog.New(slog.DiscardHandler), Fetch: f.fetch})
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		if f.now != 0 {
			t.Errorf("%d fetches are left", f.now)
		}
	})
}

func newFetches() *fetches { return &fetches{n: map[string]int{}, each: map[string]int{}} }

func TestKeepHonoursHints(t *testing.T) {
	for _, x := range []struct {
		hint  time.Duration
		after time.Duration
		least int
		most  int
	}{
		{0, time.Hour, 12, 15},                   // five minutes, less up to a tenth
		{time.Second, time.Hour, 55, 70},         // not more often than each minute
		{1000 * time.Hour, 72 * time.Hour, 4, 4}, // at least daily
		{10 * time.Minute, time.Hour, 6, 8},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, f := &source{relations: []Relation{{Name: "a", Endpoint: Endpoint{TrustDomain: "a"}}}}, newFetches()
			f.hint = x.hint
			keepOver(t, s, f)
			pass(x.after)
			if n := f.count("a"); n < x.least || n > x.most {
				t.Errorf("hint %s: %d fetches in %s, want %d to %d", x.hint, n, x.after, x.least, x.most)
			}
		})
	}
}

// pass lets time pass in a bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestKeepRetriesAndHearsOfChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := &source{listErr: errors.New("not now")}, newFetches()
		f.fail = problem.New(problem.ReasonUnreachable, "nobody there")
		keepOver(t, s, f)
		pass(time.Minute)
		s.change(func() { s.listErr, s.relations = nil, []Relation{{Name: "a", Endpoint: Endpoint{TrustDomain: "a"}}} })
		pass(lookEvery + time.Second)
		if f.count("a") != 1 {
			t.Fatalf("a relation that was approved is fetched %d times within %s", f.count("a"), lookEvery)
		}
		pass(time.Hour)
		if n := f.count("a"); n < 14 || n > 25 {
			t.Fatalf("%d attempts in an hour of failures", n)
		}
		// A relation that was approved anew is not made to wait for the old one's failures.
		n := f.count("a")
		f.set(func() { f.fail = nil })
		s.change(func() { s.relations = []Relation{{Name: "a", Pin: [32]byte{1}, Endpoint: Endpoint{TrustDomain: "a"}}} })
		pass(lookEvery + time.Second)
		if f.count("a") != n+1 || len(s.took) != 1 {
			t.Fatalf("%d more, took %d", f.count("a")-n, len(s.took))
		}
		// What can't be taken is asked for again when it may be.
		s.change(func() { s.refuse = problem.New(problem.ReasonRateLimited, "later").WithRetryAfter(20 * time.Minute) })
		pass(6 * time.Minute)
		n = f.count("a")
		pass(15 * time.Minute)
		if f.count("a") != n {
			t.Fatal("it did not wait as long as it was told")
		}
		s.change(func() { s.relations = nil })
		pass(time.Hour)
		n = f.count("a")
		pass(24 * time.Hour)
		if f.count("a") != n {
			t.Fatal("a relation that is over is fetched")
		}
	})
}

func TestKeepIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := &source{}, newFetches()
		f.takes = 30 * time.Second
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			s.relations = append(s.relations, Relation{Name: name, Endpoint: Endpoint{TrustDomain: name}})
		}
		keepOver(t, s, f)
		pass(time.Hour)
		if f.most != atATime || f.twice {
			t.Fatalf("%d at a time, one twice: %v", f.most, f.twice)
		}
		for _, r := range s.relations {
			if f.count(r.Name) < 9 {
				t.Errorf("%s was fetched %d times in an hour", r.Name, f.count(r.Name))
			}
		}
	})
}
