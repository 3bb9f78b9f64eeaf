package canary

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

func value(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// Every form of a value is found wherever it stands, in the sink where it was.
func TestLookFindsEachForm(t *testing.T) {
	for _, v := range [][]byte{value(24), value(25), value(26), value(1024), []byte("correct horse battery staple & \"more\" <of> it\n")} {
		text, _ := json.Marshal(string(v))
		for name, form := range map[string]string{
			"raw": string(v), "hex": hex.EncodeToString(v), "base64": base64.StdEncoding.EncodeToString(v), "base64 for URLs": base64.URLEncoding.EncodeToString(v),
			"JSON": string(text), "URL": url.QueryEscape(string(v)),
		} {
			for _, before := range []string{"", "x", strings.Repeat("lorem ipsum ", 100)} {
				w := New()
				w.Seed(v)
				if !w.Look(Log, []byte(before+form+" and after it")) || w.Found()[Log] != 1 || w.Found()[Wire] != 0 {
					t.Errorf("a value of %d bytes as %s after %d bytes is not found", len(v), name, len(before))
				}
			}
		}
	}
}

func TestLookFindsNothingElse(t *testing.T) {
	w := New()
	for range kept {
		w.Seed(value(64))
	}
	w.Seed([]byte("too short"))
	for range 200 {
		if w.Look(Ledger, value(4096)) {
			t.Fatal("random bytes hold a value")
		}
	}
	if w.Look(Log, []byte("too short")) || w.Look(Log, nil) || len(w.Found()) != 0 {
		t.Error("what can't be a value was found")
	}
	var none *Watch
	none.Seed(value(64))
	if none.Look(Log, value(64)) || none.Found() != nil {
		t.Error("a nil Watch does something")
	}
}

// Memory is bounded: the oldest values are forgotten, the newest are known, and later ones are sampled.
func TestWatchForgets(t *testing.T) {
	w := New()
	old := value(64)
	w.Seed(old)
	for range kept * (sample + 2) {
		w.Seed(value(64))
	}
	if w.Look(Log, old) {
		t.Error("the oldest value is still known")
	}
	if n := len(w.tags); n > kept*6 {
		t.Errorf("%d tags", n)
	}
	last := value(64)
	for range sample {
		w.Seed(last)
	}
	if !w.Look(Log, last) {
		t.Error("a value that is handed out again and again is not known")
	}
}

// A leak in any place of a log line is withheld, whatever the handler behind; good lines pass unchanged.
func TestHandlerWithholds(t *testing.T) {
	v := value(40)
	form := hex.EncodeToString(v)
	for name, leak := range map[string]func(*slog.Logger){
		"the message":            func(l *slog.Logger) { l.Info("got " + form) },
		"an attribute":           func(l *slog.Logger) { l.Info("got", "value", form) },
		"bytes":                  func(l *slog.Logger) { l.Info("got", "value", v) },
		"an error":               func(l *slog.Logger) { l.Info("got", "err", errors.New(form)) },
		"a struct":               func(l *slog.Logger) { l.Info("got", "x", struct{ A string }{form}) },
		"a group":                func(l *slog.Logger) { l.Info("got", slog.Group("g", "value", form)) },
		"an attribute for later": func(l *slog.Logger) { l.With("value", form).WithGroup("g").Info("got") },
	} {
		w := New()
		w.Seed(v)
		var out bytes.Buffer
		log := slog.New(w.Handler(slog.NewJSONHandler(&out, nil)))
		leak(log)
		if strings.Contains(out.String(), form) || strings.Contains(out.String(), base64.StdEncoding.EncodeToString(v)) || w.Found()[Log] == 0 {
			t.Errorf("%s: the log has %s, found %v", name, &out, w.Found())
		}
		out.Reset()
		log.With("a", 1).WithGroup("g").Info("good", "b", "two")
		if !strings.Contains(out.String(), `"msg":"good","a":1,"g":{"b":"two"}`) {
			t.Errorf("a good line became %s", &out)
		}
	}
	var none *Watch
	if h := slog.NewTextHandler(io.Discard, nil); none.Handler(h) != slog.Handler(h) {
		t.Error("a nil Watch wraps")
	}
}

// Who may write a value takes nothing from the log and the metrics by writing their own words as one.
func TestValuesLikeTheSinksOwnWords(t *testing.T) {
	const text = "# HELP bailment_invariant_violations_total Violations.\nbailment_invariant_violations_total{invariant=\"revoked\"} 0\nbailment_requests_total 7\n"
	w := New()
	if got := w.Metrics([]byte(text)); string(got) != text {
		t.Fatalf("%s", got)
	}
	for _, line := range strings.Split(text, "\n")[:3] {
		w.Seed([]byte(line))
	}
	if got := w.Metrics([]byte(text)); string(got) != text || w.Found()[Metric] == 0 {
		t.Errorf("%s, found %v", got, w.Found())
	}
	leak := value(32)
	w.Seed(leak)
	if got := w.Metrics([]byte(text + "bailment_x{a=\"" + hex.EncodeToString(leak) + "\"} 1\nbailment_y 2\n")); string(got) != text+"bailment_y 2\n" {
		t.Errorf("%s", got)
	}
	lines := []byte("first line of a value\nsecond line of a value\n")
	w.Seed(lines)
	if got := w.Metrics(append([]byte(text), lines...)); got != nil {
		t.Errorf("%s", got)
	}

	var out bytes.Buffer
	log := slog.New(w.Handler(slog.NewJSONHandler(&out, nil)))
	w.Seed([]byte("an invariant was violated"))
	w.Seed([]byte("spiffe://test.example/node/join-token/web-1"))
	log.Warn("an invariant was violated", "invariant", "revoked", "identity", "spiffe://test.example/node/join-token/web-1", "entry", 7)
	for _, want := range []string{`"level":"ERROR"`, `"invariant":"revoked"`, `"entry":7`, `"msg":"` + withheld, `"identity":"` + withheld} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is not in %s", want, &out)
		}
	}
	out.Reset()
	log.With("identity", "spiffe://test.example/node/join-token/web-1", "server", "s1").Info("started")
	if !strings.Contains(out.String(), `"server":"s1"`) || strings.Contains(out.String(), "spiffe") {
		t.Errorf("%s", &out)
	}
	out.Reset()
	log.Info("two", "a", "first line of a value", "b\nsecond", "line of a value")
	log.Info("first line of a value\nsecond line of a", " value", 1)
	if strings.Contains(out.String(), "second line of a") {
		t.Errorf("%s", &out)
	}
}

func FuzzLook(f *testing.F) {
	w := New()
	v := []byte("a value that is long enough to be looked for")
	w.Seed(v)
	f.Add([]byte("some text"), 3)
	f.Fuzz(func(t *testing.T, text []byte, at int) {
		if at < 0 || at > len(text) {
			return
		}
		leak := append(append(append([]byte(nil), text[:at]...), v...), text[at:]...)
		if !w.Look(Log, leak) {
			t.Errorf("not found in %q", leak)
		}
	})
}

func BenchmarkLook(b *testing.B) {
	w := New()
	for range kept {
		w.Seed(value(64))
	}
	text := value(700)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		w.Look(Ledger, text)
	}
}

func BenchmarkSeed(b *testing.B) {
	w := New()
	v := value(1024)
	b.ReportAllocs()
	for b.Loop() {
		w.Seed(v)
	}
}
