package notify

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime/quotedprintable"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

// house is an environment, and whom it tells.
type house struct {
	mu      sync.Mutex
	targets []policy.Notify
	missed  []*state.Entry // from index 100 on
	counts  map[string]int
	counted chan string // "target outcome"
	logged  bytes.Buffer
	next    uint64
	kept    *kept // nil: nothing outlasts the notifier
	broken  bool  // entries can't be read
}

// kept is a cursor in memory.
type kept struct {
	mu    sync.Mutex
	next  uint64
	known bool
}

func (k *kept) Load() (uint64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.next, k.known
}

func (k *kept) Save(next uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next, k.known = next, true
	return nil
}

func (h *house) cursor() Cursor {
	if h.kept == nil {
		return nil
	}
	return h.kept
}

func (h *house) Next() uint64 { return h.next }

func (h *house) About() About { return proposed("it was us") }

func (h *house) Targets() []policy.Notify {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.targets
}

func (h *house) set(targets ...policy.Notify) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.targets = targets
}

func (h *house) Entries(_ context.Context, from, to uint64, fn func(uint64, *state.Entry)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken {
		return errors.New("the store is busy")
	}
	for i := from; i < min(to, 100+uint64(len(h.missed))); i++ {
		h.mu.Unlock()
		fn(i, h.missed[i-100])
		h.mu.Lock()
	}
	return nil
}

func newHouse(targets ...policy.Notify) *house {
	return &house{targets: targets, counts: make(map[string]int), counted: make(chan string, 4096)}
}

// start runs a notifier until the test ends.
func (h *house) start(t *testing.T, cfg Config) *Notifier {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Waits == nil {
		cfg.Waits = []time.Duration{time.Millisecond, time.Millisecond}
	}
	cfg.Logger = slog.New(slog.NewTextHandler(&h.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.Counted = func(target, outcome string) { h.counted <- target + " " + outcome }
	n := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.Run(ctx, h, h.cursor()) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return n
}

// expect takes the next outcomes, in this order.
func (h *house) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-h.counted:
			if got != w {
				t.Fatalf("%s, and not %s; log: %s", got, w, h.logged.String())
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nothing, and not %s", w)
		}
	}
}

func proposal(index uint64) (uint64, *state.Entry) {
	return index, &state.Entry{Time: state.At(at), Event: &state.ChangeProposed{Action: "hold.lift", Actor: state.Actor{Identity: "/human/alice"}}}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// hook is a webhook with a certificate of its own.
func hook(t *testing.T, name string, handler http.HandlerFunc) (*httptest.Server, policy.Notify) {
	t.Helper()
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, policy.Notify{Name: name, On: policy.Topics, URL: srv.URL + "/told", Roots: []*x509.Certificate{srv.Certificate()}}
}

func TestWebhook(t *testing.T) {
	bodies := make(chan []byte, 1)
	_, target := hook(t, "hook", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/told" || r.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(http.StatusBadRequest)
		}
		bodies <- b
	})
	other := target
	other.Name, other.On = "not-this", []policy.Topic{policy.TopicRevocation}
	h := newHouse(other, target)
	h.start(t, Config{Allow: loopback}).Entered(proposal(97))
	h.expect(t, "hook told")
	var m Message
	if err := json.Unmarshal(<-bodies, &m); err != nil || m.Entry != 97 || m.Event != policy.TopicProposed || m.By != "/human/alice" {
		t.Errorf("%v %+v", err, m)
	}
}

// Whatever is wrong with a webhook, it is not told, and the log has neither its address nor its certificate.
func TestWebhookRefusals(t *testing.T) {
	reached := make(chan string, 16)
	aim, _ := hook(t, "aim", func(http.ResponseWriter, *http.Request) { reached <- "the redirection's aim" })
	answer := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", aim.URL)
			w.WriteHeader(code)
		}
	}
	busy := []string{"x retried", "x retried", "x failed"}
	for name, x := range map[string]struct {
		handler http.HandlerFunc
		spoil   func(*policy.Notify, *Config)
		want    []string
		log     string
	}{
		"a loopback address": {answer(200), func(_ *policy.Notify, c *Config) { c.Allow = nil }, []string{"x failed"}, errPrivate.Error()},
		"a name that leads there": {answer(200), func(n *policy.Notify, c *Config) {
			n.URL, c.Allow = strings.Replace(n.URL, "127.0.0.1", "localhost", 1), nil
		}, []string{"x failed"}, errPrivate.Error()},
		"another network is allowed": {answer(200), func(_ *policy.Notify, c *Config) { c.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }, []string{"x failed"}, errPrivate.Error()},
		"other roots":                {answer(200), func(n *policy.Notify, _ *Config) { n.Roots = nil }, busy, errCertificate.Error()},
		"moved":                      {answer(302), nil, []string{"x failed"}, "status 302"},
		"moved for ever":             {answer(308), nil, []string{"x failed"}, "status 308"},
		"not found":                  {answer(404), nil, []string{"x failed"}, "status 404"},
		"too many":                   {answer(429), nil, busy, "status 429"},
		"out of order":               {answer(503), nil, busy, "status 503"},
		"never answers":              {silent, func(_ *policy.Notify, c *Config) { c.Timeout = 50 * time.Millisecond }, busy, errUnreachable.Error()},
		"an endless answer":          {endless, nil, []string{"x told"}, "attempts=1"},
		"an endless header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}, nil, busy, errUnreachable.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			_, target := hook(t, "x", x.handler)
			cfg := Config{Allow: loopback}
			if x.spoil != nil {
				x.spoil(&target, &cfg)
			}
			h := newHouse(target)
			h.start(t, cfg).Entered(proposal(1))
			h.expect(t, x.want...)
			if log := h.logged.String(); !strings.Contains(log, x.log) || strings.Contains(log, "127.0.0.1") || strings.Contains(log, "localhost") || strings.Contains(log, "/told") {
				t.Errorf("the log: %s", log)
			}
		})
	}
	select {
	case who := <-reached:
		t.Errorf("%s was reached", who)
	default:
	}
}

func silent(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // before that the server does not notice that the client is gone
	<-r.Context().Done()
	panic(http.ErrAbortHandler) // a handler that returns answers 200, which a client that is hanging up may still read
}

func endless(w http.ResponseWriter, _ *http.Request) {
	for {
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, x := range []struct {
		addr string
		want bool
	}{
		{"8.8.8.8", true},
		{"2606:4700::1111", true},
		{"127.0.0.1", false},
		{"::1", false},
		{"::ffff:127.0.0.1", false},
		{"::127.0.0.1", false},
		{"0.0.0.0", false},
		{"::", false},
		{"10.0.0.1", false},
		{"172.16.0.1", false},
		{"172.32.0.1", true},
		{"192.168.1.1", false},
		{"::ffff:192.168.1.1", false},
		{"169.254.169.254", false},
		{"fe80::1%eth0", false},
		{"fd00:ec2::254", false},
		{"100.100.100.200", false},
		{"192.0.0.192", false},
		{"198.18.0.1", false},
		{"224.0.0.1", false},
		{"255.255.255.255", false},
		{"240.0.0.1", false},
		{"64:ff9b::7f00:1", false},
		{"2002:7f00:1::1", false},
		{"2001::1", false},
		{"ff02::1", false},
		{"fec0::1", false},
		{"2001:db8::1", false},
		{"0.1.2.3", false},
	} {
		if got := permitted(netip.MustParseAddr(x.addr), nil); got != x.want {
			t.Errorf("%s: %v", x.addr, got)
		}
		if !permitted(netip.MustParseAddr(x.addr), []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}) {
			t.Errorf("%s is refused although it is allowed", x.addr)
		}
	}
	if permitted(netip.Addr{}, nil) {
		t.Error("no address")
	}
}

// One that is slow holds up no other, and what waits for it is bounded.
func TestSlowTarget(t *testing.T) {
	release := make(chan struct{})
	began := make(chan struct{}, maxWaiting+1)
	_, slow := hook(t, "slow", func(http.ResponseWriter, *http.Request) {
		began <- struct{}{}
		<-release
	})
	t.Cleanup(func() { close(release) })
	_, quick := hook(t, "quick", func(http.ResponseWriter, *http.Request) {})
	h := newHouse(slow, quick)
	n := h.start(t, Config{Allow: loopback})
	n.Entered(proposal(1))
	<-began
	h.expect(t, "quick told")
	for i := range uint64(maxWaiting) {
		n.Entered(proposal(2 + i))
	}
	quicks, dropped := 0, 0
	for quicks < maxWaiting || dropped == 0 {
		switch got := <-h.counted; got {
		case "quick told":
			quicks++
		case "slow dropped":
			dropped++
		default:
			t.Fatal(got)
		}
	}
	if dropped != 1 {
		t.Errorf("%d dropped", dropped)
	}
}

// The committer is never held up: what nobody takes is read back, once each, in order.
func TestEnteredNeverBlocks(t *testing.T) {
	var got []uint64
	var mu sync.Mutex
	_, target := hook(t, "hook", func(_ http.ResponseWriter, r *http.Request) {
		var m Message
		_ = json.NewDecoder(r.Body).Decode(&m)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, m.Entry)
	})
	h := newHouse()
	n := New(Config{Allow: loopback, Timeout: time.Minute, Logger: slog.New(slog.DiscardHandler), Counted: func(target, outcome string) { h.counted <- target + " " + outcome }})
	for i := range uint64(maxInbox + 10) { // nobody is to be told of these
		_, e := proposal(0)
		h.missed = append(h.missed, e)
		n.Entered(100+i, e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { n.Run(ctx, quietUntil{h, 100 + maxInbox, target}, nil) })
	for range 10 {
		h.expect(t, "hook told")
	}
	cancel()
	running.Wait()
	mu.Lock()
	defer mu.Unlock()
	for i, entry := range got {
		if entry != 100+maxInbox+uint64(i) {
			t.Fatalf("told of %v", got)
		}
	}
}

// quietUntil is a house that has somebody to be told from a read of an entry on.
type quietUntil struct {
	*house
	from   uint64
	target policy.Notify
}

func (q quietUntil) Entries(ctx context.Context, from, to uint64, fn func(uint64, *state.Entry)) error {
	if from >= q.from {
		q.set(q.target)
	}
	return q.house.Entries(ctx, from, to, fn)
}

// What was not told when a notifier stopped is told by the next one, and what was told is not.
func TestRestart(t *testing.T) {
	var up bool
	var mu sync.Mutex
	told := map[uint64]int{}
	_, target := hook(t, "hook", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !up {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var m Message
		_ = json.NewDecoder(r.Body).Decode(&m)
		told[m.Entry]++
	})
	set := func(to bool) {
		mu.Lock()
		defer mu.Unlock()
		up = to
	}
	h := newHouse(target)
	h.kept = &kept{next: 100, known: true}
	enter := func(n *Notifier, count int) {
		for range count {
			_, e := proposal(0)
			h.mu.Lock()
			h.missed = append(h.missed, e)
			h.next++
			index := h.next - 1
			h.mu.Unlock()
			n.Entered(index, e)
		}
	}
	run := func(during func(n *Notifier)) {
		t.Helper()
		n := New(Config{Allow: loopback, Timeout: time.Minute, Waits: []time.Duration{time.Hour}, Logger: slog.New(slog.DiscardHandler), Counted: func(target, outcome string) { h.counted <- target + " " + outcome }})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { n.Run(ctx, h, h.kept) })
		during(n)
		cancel()
		running.Wait()
	}
	h.next = 100
	set(true)
	run(func(n *Notifier) {
		enter(n, 2)
		h.expect(t, "hook told", "hook told")
		set(false)
		enter(n, 3) // the first is being tried, the others wait
		h.expect(t, "hook retried")
	})
	if next, _ := h.kept.Load(); next != 102 {
		t.Errorf("told until %d", next)
	}
	set(true)
	run(func(*Notifier) { h.expect(t, "hook told", "hook told", "hook told") })
	run(func(n *Notifier) {
		enter(n, 1)
		h.expect(t, "hook told")
	})
	if next, _ := h.kept.Load(); next != 106 {
		t.Errorf("told until %d", next)
	}
	// A ledger that is shorter than it was: an older copy. It is not waited for.
	h.kept.next = 500
	run(func(n *Notifier) {
		enter(n, 1)
		h.expect(t, "hook told")
	})
	for i := uint64(100); i < 107; i++ {
		if told[i] != 1 {
			t.Errorf("of %d %d times", i, told[i])
		}
	}
}

// What was committed without anybody being told of it then is read back.
func TestReadBack(t *testing.T) {
	_, target := hook(t, "hook", func(http.ResponseWriter, *http.Request) {})
	h := newHouse(target)
	for range 3 {
		_, e := proposal(0)
		h.missed = append(h.missed, e)
	}
	n := h.start(t, Config{Allow: loopback})
	n.Entered(99, &state.Entry{Event: &state.SecretReleased{}})
	n.Entered(103, &state.Entry{Event: &state.SecretReleased{}})
	h.expect(t, "hook told", "hook told", "hook told")
}

// Who is told no more learns of the bundle that did it; who is told anew, from it on.
func TestTargetsThatChange(t *testing.T) {
	_, old := hook(t, "old", func(http.ResponseWriter, *http.Request) {})
	_, moved := hook(t, "moved", func(http.ResponseWriter, *http.Request) {})
	_, stays := hook(t, "stays", func(http.ResponseWriter, *http.Request) {})
	h := newHouse(old, moved, stays)
	n := h.start(t, Config{Allow: loopback})
	seen := func(want map[string]int) {
		t.Helper()
		got, all := map[string]int{}, 0
		for _, k := range want {
			all += k
		}
		for range all {
			got[<-h.counted]++
		}
		for who, k := range want {
			if got[who] != k {
				t.Errorf("%v, and not %v", got, want)
			}
		}
	}
	n.Entered(proposal(1))
	seen(map[string]int{"old told": 1, "moved told": 1, "stays told": 1})
	elsewhere := moved
	elsewhere.URL += "/elsewhere"
	h.set(elsewhere, stays)
	n.Entered(2, &state.Entry{Time: state.At(at), Event: &state.BundleInForce{Change: 1, How: state.ByChange}})
	seen(map[string]int{"old told": 1, "moved told": 2, "stays told": 1})
	n.Entered(proposal(3))
	seen(map[string]int{"moved told": 1, "stays told": 1})
}

// The usual attempts, over minutes; and a stop in between ends it.
func TestAttempts(t *testing.T) {
	for _, stop := range []time.Duration{0, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			h := newHouse(policy.Notify{Name: "x", On: policy.Topics, To: []string{"ops@example.org"}})
			h.logged.Grow(1 << 10)
			n := New(Config{Mail: []string{"/nowhere/sendmail"}, Timeout: time.Second, Logger: slog.New(slog.DiscardHandler), Counted: func(_, outcome string) { h.counts[outcome]++ }})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			start := time.Now()
			_, e := proposal(1)
			m, _ := Of(h.About(), 1, e)
			if stop > 0 {
				time.AfterFunc(stop, cancel)
			}
			n.tell(ctx, letterTo{h.targets[0], m})
			switch took := time.Since(start); {
			case stop == 0 && (took != 456*time.Second || h.counts[Retried] != 5 || h.counts[Failed] != 1):
				t.Errorf("%v after %s", h.counts, took)
			case stop > 0 && (took != stop || h.counts[Retried] != 3 || h.counts[Dropped] != 1):
				t.Errorf("%v after %s", h.counts, took)
			}
		})
	}
}

// script is a mail command.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sendmail")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMail(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("BAILMENT_SOMETHING", "of the server's")
	path := script(t, `cat > "$1/mail" && printf '%s\n' "$@" > "$1/args" && env > "$1/env"`)
	to := []string{"ops@example.org", "bob@example.org"}
	h := newHouse(policy.Notify{Name: "ops", On: policy.Topics, To: to})
	h.start(t, Config{Mail: []string{path, dir, "-t; touch " + dir + "/shell"}, From: "bailment@example.org"}).Entered(97, &state.Entry{Time: state.At(at), Event: &state.ChangeRejected{
		Change: 7, Reason: "a\nBcc: all@example.org\r\n.\r\nSubject: ü $(touch " + dir + "/shell)", Actor: state.Actor{Identity: "/human/alice\nBcc: x@example.org"},
	}})
	h.expect(t, "ops told")
	sent, err := os.ReadFile(filepath.Join(dir, "mail"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := mail.ReadMessage(bytes.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	list, err := m.Header.AddressList("To")
	if err != nil || len(list) != 2 || list[0].Address != to[0] || list[1].Address != to[1] {
		t.Errorf("%v %v", list, err)
	}
	for key, want := range map[string]string{
		"From": "bailment@example.org", "Subject": "[payments] change.rejected: change 7 by /human/alice.Bcc: x@example.org", "Bcc": "", "Auto-Submitted": "auto-generated",
		"Message-Id": "<ops.97." + strings.Repeat("ab", 32) + "@payments>", "Date": "Sun, 22 Nov 2026 12:00:00 +0000",
	} {
		if got := m.Header.Get(key); got != want {
			t.Errorf("%s: %q", key, got)
		}
	}
	if len(m.Header) != 9 {
		t.Errorf("the header has more than it should: %v", m.Header)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil || !strings.Contains(string(body), "bailment change show 7") || !strings.Contains(string(body), `"a·Bcc: all@example.org··.··Subject: ü `) {
		t.Errorf("%v %s", err, body)
	}
	for line := range strings.SplitSeq(string(sent), "\n") {
		if line == "." || len(line) > 76 && strings.Contains(line, "=") || strings.Contains(line, "\r") {
			t.Errorf("a line that programs trip over: %q", line)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "shell")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a shell read it")
	}
	args, _ := os.ReadFile(filepath.Join(dir, "args"))
	env, _ := os.ReadFile(filepath.Join(dir, "env"))
	if string(args) != dir+"\n-t; touch "+dir+"/shell\n" || bytes.Contains(env, []byte("BAILMENT")) || !bytes.Contains(env, []byte("PATH=")) {
		t.Errorf("arguments %q, environment %q", args, env)
	}
}

func TestMailFails(t *testing.T) {
	dir := t.TempDir()
	target := policy.Notify{Name: "x", On: policy.Topics, To: []string{"ops@example.org"}}
	for name, x := range map[string]struct {
		cfg  Config
		want []string
		log  string
	}{
		"no command":    {Config{}, []string{"x failed"}, errNoCommand.Error()},
		"is not there":  {Config{Mail: []string{dir + "/none"}}, []string{"x retried", "x retried", "x failed"}, errCommand.Error()},
		"fails":         {Config{Mail: []string{script(t, "echo secret >&2; exit 75")}}, []string{"x retried", "x retried", "x failed"}, "code 75"},
		"reads nothing": {Config{Mail: []string{script(t, "exec <&-; exit 0")}}, []string{"x told"}, ""},
		"never ends":    {Config{Mail: []string{script(t, "sleep 1000 & wait")}, Timeout: 100 * time.Millisecond}, []string{"x retried", "x retried", "x failed"}, errCommand.Error()},
		"endless words": {Config{Mail: []string{script(t, "cat > /dev/null; head -c 10000000 /dev/zero")}}, []string{"x told"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(target)
			h.start(t, x.cfg).Entered(proposal(1))
			h.expect(t, x.want...)
			if log := h.logged.String(); !strings.Contains(log, x.log) || strings.Contains(log, "secret") {
				t.Errorf("the log: %s", log)
			}
		})
	}
}
