package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/problem"
)

func start(t *testing.T, leaf func(*clienttest.Server) clienttest.Leaf) *clienttest.Server {
	t.Helper()
	s, err := clienttest.New(clienttest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var lf clienttest.Leaf
	if leaf != nil {
		lf = leaf(s)
	}
	if err := s.Serve(l, lf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func wantReason(t *testing.T, err error, r problem.Reason) {
	t.Helper()
	if !problem.Is(err, r) {
		t.Fatalf("got %v, want reason %s", err, r)
	}
	if p := problem.As(err); p.Kind != r.Kind() || p.WayOut() == "" {
		t.Fatalf("%v has kind %s and way out %q", err, p.Kind, p.WayOut())
	}
}

func TestBootstrap(t *testing.T) {
	other, err := clienttest.New(clienttest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	root := func(s *clienttest.Server) clienttest.Leaf { return clienttest.Leaf{CA: other.CA, CAKey: other.CAKey} }
	for name, c := range map[string]struct {
		leaf   func(*clienttest.Server) clienttest.Leaf
		string func(string) string
		reason problem.Reason
	}{
		"right":          {},
		"wrong genesis":  {string: func(b string) string { return flip(b) }, reason: problem.ReasonNotAuthentic},
		"swapped CA":     {leaf: root, reason: problem.ReasonNotAuthentic},
		"wrong name":     {string: func(b string) string { return strings.Replace(b, "/test.example#", "/best.example#", 1) }, reason: problem.ReasonNotAuthentic},
		"other DNS name": {leaf: func(*clienttest.Server) clienttest.Leaf { return clienttest.Leaf{DNS: "other.example"} }, reason: problem.ReasonNotAuthentic},
		"a workload":     {leaf: func(*clienttest.Server) clienttest.Leaf { return clienttest.Leaf{Path: "/workload/x"} }, reason: problem.ReasonNotAuthentic},
		"expired": {leaf: func(*clienttest.Server) clienttest.Leaf {
			return clienttest.Leaf{NotAfter: time.Now().Add(-time.Minute)}
		}, reason: problem.ReasonNotAuthentic},
		"no root shown": {leaf: func(*clienttest.Server) clienttest.Leaf { return clienttest.Leaf{NoRoot: true} }, reason: problem.ReasonNotAuthentic},
		"true root shown by a liar": {leaf: func(s *clienttest.Server) clienttest.Leaf {
			return clienttest.Leaf{CA: other.CA, CAKey: other.CAKey, Root: s.CA}
		}, reason: problem.ReasonNotAuthentic},
		"not a string": {string: func(string) string { return "bailment1:x" }, reason: problem.ReasonInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, c.leaf)
			b := s.Bootstrap
			if c.string != nil {
				b = c.string(b)
			}
			trust, err := client.Bootstrap(t.Context(), b, client.Options{})
			if c.reason != "" {
				wantReason(t, err, c.reason)
				if trust != nil {
					t.Fatal("a trust came with the error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if trust.Environment != s.Name || trust.Genesis != s.Genesis || trust.BootstrapString() != b || trust.Offline || trust.CheckpointKeys[0] != s.VKey {
				t.Fatalf("got %+v", trust)
			}
			offline, err := client.TrustFromGenesis(b, s.Document)
			if err != nil || offline.CheckpointKeys[0] != s.VKey || !offline.Offline {
				t.Fatalf("offline: %+v, %v", offline, err)
			}
			saveAndLoad(t, trust)
		})
	}
}

func flip(b string) string {
	last := "0"
	if strings.HasSuffix(b, "0") {
		last = "1"
	}
	return b[:len(b)-1] + last
}

func saveAndLoad(t *testing.T, trust *client.Trust) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trust.json")
	if err := trust.Save(path); err != nil {
		t.Fatal(err)
	}
	again, err := client.LoadTrust(path)
	if err != nil || again.Genesis != trust.Genesis || !again.CA.Equal(trust.CA) || len(again.CheckpointKeys) != len(trust.CheckpointKeys) {
		t.Fatalf("%+v, %v", again, err)
	}
	if _, err := again.Matches(flip(trust.BootstrapString())); !problem.Is(err, problem.ReasonWrongEnvironment) {
		t.Fatalf("another genesis: %v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text   string
		perm   os.FileMode
		reason problem.Reason
	}{
		"document changed": {strings.Replace(string(text), "development", "productions", 1), 0o600, problem.ReasonNotAuthentic},
		"unknown field":    {strings.Replace(string(text), `"format"`, `"insecure":true,"format"`, 1), 0o600, problem.ReasonInvalid},
		"other format":     {strings.Replace(string(text), "trust v1", "trust v9", 1), 0o600, problem.ReasonUnknownVersion},
		"writable":         {string(text), 0o666, problem.ReasonPermissions},
		"truncated":        {string(text[:len(text)/2]), 0o600, problem.ReasonInvalid},
		"foreign key":      {strings.Replace(string(text), `"bailment/test`, `"bailment/best`, 1), 0o600, problem.ReasonNotAuthentic},
	} {
		p := filepath.Join(t.TempDir(), "t.json")
		if err := os.WriteFile(p, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, c.perm); err != nil {
			t.Fatal(err)
		}
		_, err := client.LoadTrust(p)
		if !problem.Is(err, c.reason) {
			t.Errorf("%s: got %v, want %s", name, err, c.reason)
		}
		if fix := problem.As(err).WayOut(); name == "truncated" && !strings.Contains(fix, "remove it") {
			t.Errorf("%s: the way out of a damaged file is %q", name, fix)
		}
	}
	if _, err := client.LoadTrust(path + "x"); !problem.Is(err, problem.ReasonNotFound) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

// listen answers every connection with f.
func listen(t *testing.T, f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
	return "bailment1:" + l.Addr().String() + "/test.example#" + strings.Repeat("ab", 32)
}

func TestBootstrapOfWhatIsNoServer(t *testing.T) {
	garbage := listen(t, func(c net.Conn) { _, _ = io.WriteString(c, "220 mail.example ESMTP ready, and some more\r\n") })
	_, err := client.Bootstrap(t.Context(), garbage, client.Options{})
	wantReason(t, err, problem.ReasonNotAuthentic)

	// A server that is over a limit of connections resets: it has no other word before the handshake.
	for name, end := range map[string]func(net.Conn){
		"closed": func(net.Conn) {},
		"reset":  func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) },
	} {
		_, err = client.Bootstrap(t.Context(), listen(t, end), client.Options{})
		wantReason(t, err, problem.ReasonUnreachable)
		if fix := problem.As(err).WayOut(); !strings.Contains(fix, "source_connections") || !strings.Contains(fix, "bailment_connections_refused_total") {
			t.Errorf("%s: the way out is %q", name, fix)
		}
	}

	silent := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = client.Bootstrap(ctx, silent, client.Options{})
	wantReason(t, err, problem.ReasonUnreachable)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, err = client.Bootstrap(t.Context(), "bailment1:"+addr+"/test.example#"+strings.Repeat("ab", 32), client.Options{})
	wantReason(t, err, problem.ReasonUnreachable)
}

// bubble runs f with a fake server in a synctest bubble.
func bubble(t *testing.T, c clienttest.Config, f func(t *testing.T, s *clienttest.Server, p *clienttest.Pipe, trust *client.Trust)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := clienttest.New(c)
		if err != nil {
			t.Fatal(err)
		}
		p := clienttest.NewPipe()
		if err := s.Serve(p, clienttest.Leaf{}); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		trust, err := client.Bootstrap(t.Context(), s.Bootstrap, client.Options{Dialer: p.Dial})
		if err != nil {
			t.Fatal(err)
		}
		f(t, s, p, trust)
	})
}

func dial(t *testing.T, trust *client.Trust, o client.Options) *client.Client {
	t.Helper()
	c, err := client.Dial(trust, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func enrol(t *testing.T, s *clienttest.Server, c *client.Client) *client.Session {
	t.Helper()
	tok, err := s.Token("web-1")
	if err != nil {
		t.Fatal(err)
	}
	a, err := jointoken.NewAttester(tok)
	if err != nil {
		t.Fatal(err)
	}
	key, err := client.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	x, err := c.Attest(t.Context(), jointoken.Name, a, key, "v")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestSessions(t *testing.T) {
	s := start(t, nil)
	trust, err := client.Bootstrap(t.Context(), s.Bootstrap, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	open := dial(t, trust, client.Options{})
	node := enrol(t, s, open)
	if node.Path() != "/node/join-token/web-1" || !node.Live(time.Now()) || !node.RenewAfter.Before(node.Expires) || node.LifetimeEnd.IsZero() {
		t.Fatalf("got %+v", node)
	}
	path := filepath.Join(t.TempDir(), "session.json")
	if err := node.Save(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	node, err = client.LoadSession(path, trust)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := client.NewKey()
	next, err := open.Renew(t.Context(), node, key, "v")
	if err != nil || next.Identity != node.Identity || next.Index <= node.Index {
		t.Fatalf("renew: %+v, %v", next, err)
	}
	for _, h2 := range []bool{false, true} {
		c := dial(t, trust, client.Options{Credentials: next.Credentials(), HTTP2: h2})
		key, _ = client.NewKey()
		w, err := c.AttestWorkload(t.Context(), map[string]any{"unix": map[string]any{"uid": 1000}}, "/workload/pay", key)
		if err != nil || w.Path() != "/workload/pay" {
			t.Fatalf("workload: %+v, %v", w, err)
		}
	}
	person, err := open.Login(t.Context(), "alice", func(ns string, text []byte) (string, error) { return "signed " + ns + "\n" + string(text), nil })
	if err != nil || person.Path() != "/human/alice" {
		t.Fatalf("login: %+v, %v", person, err)
	}
	chain, pemKey, err := person.PEM()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(chain, pemKey); err != nil {
		t.Fatal(err)
	}
	// A session of another environment is refused where it is loaded.
	foreign := start(t, nil)
	ft, err := client.Bootstrap(t.Context(), foreign.Bootstrap, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.LoadSession(path, ft)
	wantReason(t, err, problem.ReasonNotAuthentic)
}

// A connection belongs to a session, so that a new session must not use the old one's.
func TestCredentialsRotate(t *testing.T) {
	s := start(t, nil)
	trust, err := client.Bootstrap(t.Context(), s.Bootstrap, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	open := dial(t, trust, client.Options{})
	var current atomic.Pointer[client.Session]
	c := dial(t, trust, client.Options{Credentials: func() (*tls.Certificate, error) {
		if x := current.Load(); x != nil {
			return &x.Certificate, nil
		}
		return nil, client.ErrNoSession
	}})
	get := func() error {
		_, err := c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a"})
		return err
	}
	wantReason(t, get(), problem.ReasonNoSession)
	node := enrol(t, s, open)
	current.Store(node)
	wantReason(t, get(), problem.ReasonNoGrant)
	s.Hold(node.Path(), true)
	wantReason(t, get(), problem.ReasonHeld)
	person, err := open.Login(t.Context(), "bob", func(ns string, text []byte) (string, error) { return "signed " + ns + "\n" + string(text), nil })
	if err != nil {
		t.Fatal(err)
	}
	current.Store(person)
	wantReason(t, get(), problem.ReasonNoGrant)
}

func TestRepetition(t *testing.T) {
	const get, list, challenge = bailmentv1connect.SecretServiceGetProcedure, bailmentv1connect.SecretServiceListProcedure, bailmentv1connect.AttestationServiceChallengeProcedure
	bubble(t, clienttest.Config{}, func(t *testing.T, s *clienttest.Server, p *clienttest.Pipe, trust *client.Trust) {
		open := dial(t, trust, client.Options{Dialer: p.Dial})
		defer open.Close()
		node := enrol(t, s, open)
		c := dial(t, trust, client.Options{Dialer: p.Dial, Credentials: node.Credentials()})
		defer c.Close()
		s.Put("a", []byte("v"))
		fails := 0
		failing := func(n int, err error) {
			fails = n
			s.Before(func(string) error {
				if fails > 0 {
					fails--
					return err
				}
				return nil
			})
		}
		stopping := problem.New(problem.ReasonStopping, "stopping")
		calls := func(name string, f func()) int { before := s.Calls(name); f(); return s.Calls(name) - before }

		failing(2, stopping)
		if n := calls(challenge, func() {
			if _, err := c.Attestation.Challenge(t.Context(), &v1.ChallengeRequest{}); err != nil {
				t.Error(err)
			}
		}); n != 3 {
			t.Errorf("a harmless call was made %d times, want 3", n)
		}
		failing(1, stopping)
		if n := calls(get, func() {
			_, err := c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a"})
			wantReason(t, err, problem.ReasonStopping)
		}); n != 1 {
			t.Errorf("a call without a key was made %d times", n)
		}
		failing(1, stopping)
		if n := calls(get, func() {
			if _, err := c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a", IdempotencyKey: "k"}); err != nil {
				t.Error(err)
			}
		}); n != 2 {
			t.Errorf("a call with a key was made %d times, want 2", n)
		}
		failing(9, problem.New(problem.ReasonHeld, "held"))
		if n := calls(challenge, func() {
			_, err := c.Attestation.Challenge(t.Context(), &v1.ChallengeRequest{})
			wantReason(t, err, problem.ReasonHeld)
		}); n != 1 {
			t.Errorf("a refused call was made %d times", n)
		}
		failing(1, problem.New(problem.ReasonRateLimited, "slowly").WithRetryAfter(3*time.Second))
		begin := time.Now()
		if _, err := c.Attestation.Challenge(t.Context(), &v1.ChallengeRequest{}); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d < 3*time.Second || d > 4*time.Second {
			t.Errorf("Retry-After of 3 s was waited for %s", d)
		}
		failing(9, problem.New(problem.ReasonRateLimited, "slowly").WithRetryAfter(time.Hour))
		_, err := c.Attestation.Challenge(t.Context(), &v1.ChallengeRequest{})
		wantReason(t, err, problem.ReasonRateLimited)
		if problem.As(err).RetryAfter != time.Hour {
			t.Errorf("Retry-After got lost: %v", problem.As(err).RetryAfter)
		}
		failing(0, nil)
		lostReply(t, s, c)
		p.Down(errors.New("no route"))
		c.Close()
		_, err = c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a"})
		wantReason(t, err, problem.ReasonUnreachable) // nothing was sent: not an unknown outcome
	})
}

// lostReply: an effect whose answer is lost is never called undone.
func lostReply(t *testing.T, s *clienttest.Server, c *client.Client) {
	t.Helper()
	lost := 1
	s.Lose(func(procedure string) bool { lost--; return lost >= 0 })
	_, err := c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a"})
	wantReason(t, err, problem.ReasonUnknownOutcome)
	lost = 1
	if _, err := c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a", IdempotencyKey: "k2"}); err != nil {
		t.Errorf("with a key: %v", err)
	}
	lost = 0
	_, err = c.Secrets.List(t.Context(), &v1.ListSecretsRequest{}) // the fake does not implement it
	wantReason(t, err, problem.ReasonUnsupported)
}

func TestDeadline(t *testing.T) {
	bubble(t, clienttest.Config{}, func(t *testing.T, s *clienttest.Server, p *clienttest.Pipe, trust *client.Trust) {
		c := dial(t, trust, client.Options{Dialer: p.Dial, CallTimeout: 5 * time.Second})
		defer c.Close()
		block := make(chan struct{})
		s.Before(func(string) error { <-block; return nil })
		begin := time.Now()
		_, err := c.Attestation.Challenge(t.Context(), &v1.ChallengeRequest{})
		wantReason(t, err, problem.ReasonUnreachable)
		_, err = c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "a"})
		wantReason(t, err, problem.ReasonUnknownOutcome)
		if d := time.Since(begin); d != 10*time.Second {
			t.Errorf("two calls of 5 s took %s", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = c.Attestation.Challenge(ctx, &v1.ChallengeRequest{})
		wantReason(t, err, problem.ReasonCanceled)
		close(block)
	})
}

func TestAnswerOverTheLimit(t *testing.T) {
	s := start(t, nil)
	trust, err := client.Bootstrap(t.Context(), s.Bootstrap, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	node := enrol(t, s, dial(t, trust, client.Options{}))
	s.Put("big", make([]byte, 64<<10))
	c := dial(t, trust, client.Options{Credentials: node.Credentials(), MaxResponse: 1 << 10})
	_, err = c.Secrets.Get(t.Context(), &v1.GetRequest{Secret: "big"})
	wantReason(t, err, problem.ReasonTooLarge)
}

// A terminal is not told to do things by a server's text.
func TestTextsAreCleaned(t *testing.T) {
	s := start(t, nil)
	trust, err := client.Bootstrap(t.Context(), s.Bootstrap, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Before(func(string) error { return problem.New(problem.ReasonHeld, "\x1b[2Jheld\u202e") })
	_, err = dial(t, trust, client.Options{}).Attestation.Challenge(t.Context(), &v1.ChallengeRequest{})
	if p := problem.As(err); p.Reason != problem.ReasonHeld || strings.ContainsAny(p.Message, "\x1b\u202e") {
		t.Fatalf("%q", p.Message)
	}
}

func TestJitter(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 200 {
		d := client.Jitter(time.Second)
		if d < time.Second/2 || d > time.Second {
			t.Fatalf("%s", d)
		}
		seen[d] = true
	}
	if len(seen) < 100 {
		t.Fatalf("only %d values", len(seen))
	}
}

var _ client.Attester = attest.Attester(nil)
