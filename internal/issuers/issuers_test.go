package issuers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/issuers"
	"github.com/bailment/bailment/internal/problem"
)

// key makes a public key with that ID.
func key(t *testing.T, id string) jose.JSONWebKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return jose.JSONWebKey{Key: k.Public(), KeyID: id, Use: "sig", Algorithm: "ES256"}
}

// site is an issuer's web site: what it answers can be changed, and it counts.
type site struct {
	mu        sync.Mutex
	discovery string // "": the right one
	keys      string
	control   string
	status    int
	redirect  string
	hold      chan struct{}
	arrived   chan struct{} // told of each request that is held

	asked, keysAsked atomic.Int64
	url              string
}

func (s *site) set(change func(*site)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	s.mu.Lock()
	discovery, keys, control, status, redirect, hold, arrived := s.discovery, s.keys, s.control, s.status, s.redirect, s.hold, s.arrived
	s.mu.Unlock()
	if arrived != nil {
		arrived <- struct{}{}
	}
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case redirect != "":
		http.Redirect(w, r, redirect, http.StatusFound)
	case status != 0:
		w.WriteHeader(status)
	case r.URL.Path == "/tenant/.well-known/openid-configuration":
		if discovery == "" {
			discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url+"/tenant", s.url+"/keys")
		}
		fmt.Fprint(w, discovery)
	case r.URL.Path == "/keys":
		s.keysAsked.Add(1)
		w.Header().Set("Cache-Control", control)
		fmt.Fprint(w, keys)
	default:
		http.NotFound(w, r)
	}
}

func set(t *testing.T, keys ...jose.JSONWebKey) string {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// start runs a real issuer over TLS on the loopback.
func start(t *testing.T, ids ...string) (*site, authority.Authority) {
	t.Helper()
	s := new(site)
	keys := make([]jose.JSONWebKey, len(ids))
	for i, id := range ids {
		keys[i] = key(t, id)
	}
	s.keys = set(t, keys...)
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(t.Output(), "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	s.url = server.URL
	return s, authority.Authority{Name: "corp", Issuer: server.URL + "/tenant", Certificates: []*x509.Certificate{server.Certificate()}}
}

func open(t *testing.T, cfg issuers.Config) *issuers.Keys {
	t.Helper()
	k := issuers.New(cfg)
	t.Cleanup(k.Close)
	return k
}

func TestDiscovery(t *testing.T) {
	s, a := start(t, "one", "two")
	k := open(t, issuers.Config{})
	for range 3 {
		got, err := k.Find(t.Context(), a, "two")
		if err != nil || len(got.Key("two")) != 1 || len(got.Keys) != 2 {
			t.Fatalf("%v, %v", got, err)
		}
	}
	if n := s.asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
	a.KeysURL = s.url + "/keys"
	s.set(func(s *site) { s.discovery = "not asked for" })
	if _, err := k.Find(t.Context(), a, "one"); err != nil {
		t.Error(err)
	}
	if n := s.asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
}

func TestPinnedAsksNobody(t *testing.T) {
	s, a := start(t, "one")
	a.Keys = &jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key(t, "pinned")}}
	got, err := open(t, issuers.Config{}).Find(t.Context(), a, "one")
	if err != nil || got != a.Keys || s.asked.Load() != 0 {
		t.Errorf("%v, %v, asked %d times", got, err, s.asked.Load())
	}
}

// TestRefused: each of these answers must be refused, and by its own fault only.
func TestRefused(t *testing.T) {
	big := strings.Repeat(" ", 600<<10)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := start(t, "one")
	for name, change := range map[string]func(*site, *authority.Authority){
		"another issuer": func(s *site, _ *authority.Authority) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url, s.url+"/keys")
		},
		"the issuer and a slash": func(s *site, _ *authority.Authority) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url+"/tenant/", s.url+"/keys")
		},
		"members in another case": func(s *site, _ *authority.Authority) {
			s.discovery = fmt.Sprintf(`{"Issuer":%q,"JWKS_URI":%q}`, s.url+"/tenant", s.url+"/keys")
		},
		"keys over http": func(s *site, _ *authority.Authority) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url+"/tenant", strings.Replace(s.url, "https", "http", 1)+"/keys")
		},
		"keys with a user": func(s *site, _ *authority.Authority) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url+"/tenant", strings.Replace(s.url, "https://", "https://u@", 1)+"/keys")
		},
		"keys in a file": func(s *site, _ *authority.Authority) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, s.url+"/tenant")
		},
		"no keys' address":     func(s *site, _ *authority.Authority) { s.discovery = fmt.Sprintf(`{"issuer":%q}`, s.url+"/tenant") },
		"discovery not JSON":   func(s *site, _ *authority.Authority) { s.discovery = "<html>" },
		"discovery too large":  func(s *site, _ *authority.Authority) { s.discovery = big },
		"keys too large":       func(s *site, _ *authority.Authority) { s.keys = big + s.keys },
		"keys not JSON":        func(s *site, _ *authority.Authority) { s.keys = "[" },
		"keys not a list":      func(s *site, _ *authority.Authority) { s.keys = `{"keys":{}}` },
		"no keys":              func(s *site, _ *authority.Authority) { s.keys = `{"keys":[]}` },
		"too many keys":        func(s *site, _ *authority.Authority) { s.keys = `{"keys":[` + strings.Repeat(`{},`, 64) + `{}]}` },
		"symmetric keys only":  func(s *site, _ *authority.Authority) { s.keys = `{"keys":[{"kty":"oct","kid":"one","k":"AAAA"}]}` },
		"a private key":        func(s *site, _ *authority.Authority) { s.keys = set(t, jose.JSONWebKey{Key: private, KeyID: "one"}) },
		"an encryption key":    func(s *site, _ *authority.Authority) { k := key(t, "one"); k.Use = "enc"; s.keys = set(t, k) },
		"not found":            func(s *site, _ *authority.Authority) { s.status = http.StatusNotFound },
		"no content":           func(s *site, _ *authority.Authority) { s.status = http.StatusNoContent },
		"a redirect elsewhere": func(s *site, _ *authority.Authority) { s.redirect = other.url + "/keys" },
		"a redirect to itself": func(s *site, _ *authority.Authority) { s.redirect = s.url + "/keys" },
		"other roots":          func(_ *site, a *authority.Authority) { a.Certificates = []*x509.Certificate{selfSigned(t, nil).Leaf} },
		"the system's roots":   func(_ *site, a *authority.Authority) { a.Certificates = nil },
		"an issuer over http":  func(_ *site, a *authority.Authority) { a.Issuer = strings.Replace(a.Issuer, "https", "http", 1) },
		"keys' URL over http": func(s *site, a *authority.Authority) {
			a.KeysURL = strings.Replace(s.url, "https", "http", 1) + "/keys"
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, a := start(t, "one")
			change(s, &a)
			if _, err := open(t, issuers.Config{}).Find(t.Context(), a, "one"); !problem.Is(err, problem.ReasonNoKeys) {
				t.Error(err)
			}
		})
	}
	if n := other.asked.Load(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
}

func TestUselessKeysAreLeftOut(t *testing.T) {
	s, a := start(t)
	good, err := json.Marshal(key(t, "one"))
	if err != nil {
		t.Fatal(err)
	}
	s.keys = `{"keys":[{"kty":"new","kid":"n"},{"kty":"RSA","kid":"weak","n":"AQAB","e":"AQAB"},` + string(good) + `]}`
	got, err := open(t, issuers.Config{}).Find(t.Context(), a, "")
	if err != nil || len(got.Keys) != 1 || got.Keys[0].KeyID != "one" {
		t.Errorf("%v, %v", got, err)
	}
}

// TestProxyIsNotUsed: whoever sets the environment must not choose who is asked.
func TestProxyIsNotUsed(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("ALL_PROXY", "http://127.0.0.1:1")
	_, a := start(t, "one")
	if _, err := open(t, issuers.Config{}).Find(t.Context(), a, "one"); err != nil {
		t.Error(err)
	}
}

func TestSingleFlight(t *testing.T) {
	s, a := start(t, "one")
	s.hold = make(chan struct{})
	k := open(t, issuers.Config{})
	canceled, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := k.Find(canceled, a, "one"); first <- err }()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := k.Find(t.Context(), a, "one"); err != nil {
				t.Error(err)
			}
		})
	}
	// Who began the fetch goes away; it is everybody's.
	cancel()
	if err := <-first; !problem.Is(err, problem.ReasonNoKeys) {
		t.Error(err)
	}
	close(s.hold)
	all.Wait()
	if n := s.asked.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestClosed(t *testing.T) {
	s, a := start(t, "one")
	s.hold, s.arrived = make(chan struct{}), make(chan struct{}, 1)
	k := issuers.New(issuers.Config{})
	done := make(chan error, 1)
	go func() { _, err := k.Find(t.Context(), a, "one"); done <- err }()
	<-s.arrived
	k.Close()
	if err := <-done; err == nil {
		t.Error("keys without a fetch")
	}
	if _, err := k.Find(t.Context(), a, "one"); !problem.Is(err, problem.ReasonStopping) {
		t.Error(err)
	}
}

// selfSigned makes a certificate for issuer.example, valid in a bubble's year 2000 and now.
func selfSigned(t *testing.T, names []string) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: leaf}
}

// pipes is a network within a bubble: its connections are in memory, so that a bubble's clock can go on.
type pipes struct {
	conns chan net.Conn
	down  atomic.Bool
	once  sync.Once
	done  chan struct{}

	mu   sync.Mutex
	ends []net.Conn
}

// sever ends every connection without a farewell: crypto/tls writes one that nobody reads, within a lock of http.Server, and who waits
// for a lock keeps the clock of the bubble from going on.
func (p *pipes) sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.ends {
		_ = c.Close() // a pipe's never fails
	}
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if p.down.Load() {
		return nil, fmt.Errorf("the network is down")
	}
	ours, theirs := net.Pipe()
	p.mu.Lock()
	p.ends = append(p.ends, ours, theirs)
	p.mu.Unlock()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// bubble runs f in a bubble of time beside an issuer.
func bubble(t *testing.T, f func(t *testing.T, s *site, p *pipes, k *issuers.Keys, a authority.Authority)) {
	synctest.Test(t, func(t *testing.T) {
		cert := selfSigned(t, []string{"issuer.example"})
		s := &site{url: "https://issuer.example", keys: set(t, key(t, "one"))}
		p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		server := &http.Server{Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.ServeTLS(p, "", "") }()
		k := issuers.New(issuers.Config{Dial: p.dial})
		defer func() { k.Close(); p.sever(); server.Close(); <-ended; wait(time.Minute) }() // crypto/tls takes seconds to say farewell
		f(t, s, p, k, authority.Authority{Name: "corp", Issuer: s.url + "/tenant", Certificates: []*x509.Certificate{cert.Leaf}})
	})
}

func mustFind(t *testing.T, k *issuers.Keys, a authority.Authority, id string) *jose.JSONWebKeySet {
	t.Helper()
	got, err := k.Find(t.Context(), a, id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// wait lets the bubble's time pass.
func wait(d time.Duration) { <-time.After(d) }

func TestAges(t *testing.T) {
	for control, want := range map[string]time.Duration{
		"":                             10 * time.Minute,
		"max-age=0":                    time.Minute,
		"public, max-age=1800":         30 * time.Minute,
		"max-age=99999, must-revalid":  time.Hour,
		`Max-Age="120"`:                2 * time.Minute,
		"no-store":                     time.Minute,
		"max-age=-1":                   10 * time.Minute,
		"max-age=99999999999999999999": 10 * time.Minute,
	} {
		t.Run(control, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site, _ *pipes, k *issuers.Keys, a authority.Authority) {
				s.control = control
				mustFind(t, k, a, "one")
				wait(want - time.Second)
				mustFind(t, k, a, "one")
				if n := s.keysAsked.Load(); n != 1 {
					t.Errorf("asked %d times before the end", n)
				}
				wait(2 * time.Second)
				mustFind(t, k, a, "one")
				if n := s.keysAsked.Load(); n != 2 {
					t.Errorf("asked %d times after the end", n)
				}
			})
		})
	}
}

// TestUnknownKeys: a stranger who makes up key IDs drives one fetch in 30 seconds, and a rotation is seen within them.
func TestUnknownKeys(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, _ *pipes, k *issuers.Keys, a authority.Authority) {
		mustFind(t, k, a, "one")
		for i := range 290 {
			mustFind(t, k, a, fmt.Sprintf("made up %d", i))
			wait(100 * time.Millisecond)
		}
		if n := s.keysAsked.Load(); n != 1 {
			t.Errorf("asked %d times within 30 seconds", n)
		}
		s.set(func(s *site) { s.keys = set(t, key(t, "two")) })
		wait(time.Second)
		got := mustFind(t, k, a, "two")
		if len(got.Key("two")) != 1 || len(got.Key("one")) != 0 {
			t.Error("the rotation was not seen, or a withdrawn key was kept")
		}
		if n := s.keysAsked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestUnreachable(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, p *pipes, k *issuers.Keys, a authority.Authority) {
		mustFind(t, k, a, "one")
		p.down.Store(true)
		wait(23 * time.Hour)
		mustFind(t, k, a, "one")
		mustFind(t, k, a, "two")
		wait(2 * time.Hour)
		if _, err := k.Find(t.Context(), a, "one"); !problem.Is(err, problem.ReasonNoKeys) {
			t.Errorf("after a day: %v", err)
		}
		p.down.Store(false)
		wait(30 * time.Second)
		mustFind(t, k, a, "one")
	})
}

// TestFailureIsNotRepeated: an issuer that fails is not asked more often than once in five seconds.
func TestFailureIsNotRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, _ *pipes, k *issuers.Keys, a authority.Authority) {
		s.set(func(s *site) { s.status = http.StatusInternalServerError })
		for range 40 {
			if _, err := k.Find(t.Context(), a, "one"); !problem.Is(err, problem.ReasonNoKeys) {
				t.Fatal(err)
			}
			wait(100 * time.Millisecond)
		}
		if n := s.asked.Load(); n != 1 {
			t.Errorf("asked %d times in four seconds", n)
		}
		s.set(func(s *site) { s.status = 0 })
		wait(2 * time.Second)
		mustFind(t, k, a, "one")
	})
}

// TestBadAnswerKeepsGood: what an issuer breaks is not taken over.
func TestBadAnswerKeepsGood(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, _ *pipes, k *issuers.Keys, a authority.Authority) {
		mustFind(t, k, a, "one")
		s.set(func(s *site) { s.keys = `{"keys":[]}` })
		wait(time.Hour)
		if got := mustFind(t, k, a, "one"); len(got.Key("one")) != 1 {
			t.Error("the last good keys are gone")
		}
	})
}

func TestSlowIssuer(t *testing.T) {
	bubble(t, func(t *testing.T, s *site, _ *pipes, k *issuers.Keys, a authority.Authority) {
		s.hold = make(chan struct{})
		begun := time.Now()
		if _, err := k.Find(t.Context(), a, "one"); !problem.Is(err, problem.ReasonNoKeys) {
			t.Error(err)
		}
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("it took %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wait(5 * time.Second)
		begun = time.Now()
		if _, err := k.Find(ctx, a, "one"); !problem.Is(err, problem.ReasonNoKeys) {
			t.Error(err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// TestIssuersAreApart: other roots are another issuer, even of the same name.
func TestIssuersAreApart(t *testing.T) {
	s, a := start(t, "one")
	k := open(t, issuers.Config{})
	mustFind(t, k, a, "one")
	b := a
	b.Certificates = []*x509.Certificate{selfSigned(t, nil).Leaf}
	if _, err := k.Find(t.Context(), b, "one"); !problem.Is(err, problem.ReasonNoKeys) {
		t.Errorf("keys of one authority's issuer were given for another's: %v", err)
	}
	if n := s.keysAsked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestBounded(t *testing.T) {
	var asked atomic.Int64
	k := open(t, issuers.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		asked.Add(1)
		return nil, fmt.Errorf("down")
	}})
	for i := range 1000 {
		a := authority.Authority{Name: "corp", Issuer: fmt.Sprintf("https://%d.example", i)}
		if _, err := k.Find(t.Context(), a, ""); !problem.Is(err, problem.ReasonNoKeys) {
			t.Fatal(err)
		}
	}
	if n := k.Len(); n > 256 {
		t.Errorf("%d issuers are kept", n)
	}
}
