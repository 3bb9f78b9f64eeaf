package kubelet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

const (
	token = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
	uid   = "8dd5a3a8-0b8b-4e5f-9d2b-0f5a4d0e6c11"
)

func id(two string) string { return strings.Repeat(two+"11223344556677", 4) }

// authority signs certificates of kubelets.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node-1-ca@1790000000"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) leaf(t *testing.T, name string, ips ...net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "system:node:" + name}, DNSNames: []string{name}, IPAddresses: ips,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// fake is a kubelet's server: TLS, bearer tokens, GET /pods, and 401, 403 and 404 as the kubelet has them.
type fake struct {
	t    *testing.T
	ca   *authority
	http *httptest.Server
	dir  string
	cfg  Config

	mu     sync.Mutex
	body   []byte
	token  string
	asked  int
	status int           // 0: as it should be
	wait   chan struct{} // nil: answer at once
	seen   []string      // authorization headers
}

func recorded(t testing.TB) []byte {
	t.Helper()
	body, err := os.ReadFile("testdata/pods.json")
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, ca: newAuthority(t), dir: t.TempDir(), body: recorded(t), token: token}
	f.http = httptest.NewUnstartedServer(f)
	f.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.http.TLS = &tls.Config{Certificates: []tls.Certificate{f.ca.leaf(t, "node-1")}, MinVersion: tls.VersionTLS12}
	f.http.StartTLS()
	t.Cleanup(f.http.Close)
	f.cfg = Config{Address: f.http.URL, Token: f.file("token", []byte(token+"\n")), CA: f.file("ca.crt", f.ca.pem), Node: "node-1"}
	return f
}

func (f *fake) file(name string, content []byte) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked++
	f.seen = append(f.seen, r.Header.Get("Authorization"))
	body, status, wait, token := f.body, f.status, f.wait, f.token
	f.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case status != 0:
		w.Header().Set("Location", "https://127.0.0.1:1/pods")
		w.WriteHeader(status)
	case r.Method != http.MethodGet || r.URL.Path != "/pods":
		http.NotFound(w, r)
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "Unauthorized")
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}
}

func (f *fake) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fake) client() *Client {
	f.t.Helper()
	c, err := New(f.cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

func reason(t *testing.T, what string, err error, want problem.Reason) {
	t.Helper()
	if !problem.Is(err, want) {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// soon bounds how long a container is waited for.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestFind(t *testing.T) {
	f := newFake(t)
	c := f.client()
	p, err := c.Find(t.Context(), uid, id("bb"))
	if err != nil {
		t.Fatal(err)
	}
	if p.Namespace != "payments" || p.Name != "db-0" || p.UID != uid || p.ServiceAccount != "db" || p.Node != "node-1" || p.Container != "main" || p.Terminating ||
		p.Image != "registry.example/payments/db:7" || !strings.HasPrefix(p.ImageID, "registry.example/payments/db@sha256:22") || p.Labels["app.kubernetes.io/name"] != "db" || len(p.Labels) != 3 {
		t.Errorf("%+v", p)
	}
	// From here on the answer stays new, however slow this machine is.
	c.mu.Lock()
	c.asked = time.Now().Add(time.Hour)
	c.mu.Unlock()
	p, err = c.Find(t.Context(), uid, id("dd"))
	if err != nil || p.Container != "debugger-x2" {
		t.Errorf("an ephemeral container: %+v, %v", p, err)
	}
	p, err = c.Find(t.Context(), "a1b2c3d4e5f60718293a4b5c6d7e8f90", id("ee"))
	if err != nil || p.Name != "kube-proxy-node-1" || p.ServiceAccount != "" {
		t.Errorf("a static pod: %+v, %v", p, err)
	}
	p, err = c.Find(t.Context(), "0b8b8dd5-a3a8-4e5f-9d2b-0f5a4d0e6c22", id("ff"))
	if err != nil || !p.Terminating {
		t.Errorf("a pod that is being deleted: %+v, %v", p, err)
	}
	if n := f.count(); n != 1 {
		t.Errorf("%d questions for what one answer holds", n)
	}
	for what, k := range map[string]key{
		"another pod's container":   {"0b8b8dd5-a3a8-4e5f-9d2b-0f5a4d0e6c22", id("bb")},
		"one that has ended":        {uid, id("aa")},
		"one that waits":            {uid, id("cc")},
		"one in a pod that is over": {"0b8b8dd5-a3a8-4e5f-9d2b-0f5a4d0e6c33", id("00")},
		"the pod's sandbox":         {uid, id("99")},
		"a part of an ID":           {uid, id("bb")[:12]},
		"nothing":                   {"", ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := c.Find(ctx, k.pod, k.container)
		cancel()
		reason(t, what, err, problem.ReasonPodUnknown)
	}
}

// A container that has just started is not listed yet.
func TestFindWaits(t *testing.T) {
	f := newFake(t)
	f.change(func() { f.body = []byte(`{"kind":"PodList","apiVersion":"v1","metadata":{},"items":null}`) })
	c := f.client()
	began := time.Now()
	_, err := c.Find(soon(t), uid, id("bb"))
	reason(t, "never listed", err, problem.ReasonPodUnknown)
	if n, most := f.count(), int(time.Since(began)/pause)+1; n < 2 || n > most {
		t.Errorf("%d questions, want 2 to %d", n, most)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Find(t.Context(), uid, id("bb"))
		done <- err
	}()
	f.change(func() { f.body = recorded(t) })
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Find(ctx, uid, id("99")); err == nil {
		t.Error("found for nobody")
	}
}

// However many ask, one question is under way; and none that is over is believed for more than a second.
func TestOneQuestionAtATime(t *testing.T) {
	f := newFake(t)
	f.wait = make(chan struct{})
	c := f.client()
	var all sync.WaitGroup
	gone, cancel := context.WithCancel(t.Context())
	asking := make(chan struct{}, 50)
	for i := range 50 {
		ctx := t.Context()
		if i%2 == 0 {
			ctx = gone
		}
		all.Go(func() {
			asking <- struct{}{}
			if _, err := c.Find(ctx, uid, id("bb")); (err != nil) != (ctx == gone) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	for range 50 {
		<-asking
	}
	cancel() // who goes takes the answer from nobody
	for f.count() == 0 {
		c.mu.Lock()
		flying := c.flight != nil
		c.mu.Unlock()
		if !flying {
			break
		}
	}
	close(f.wait)
	all.Wait()
	if n := f.count(); n > 2 { // two if somebody came more than a second after the first
		t.Errorf("%d questions", n)
	}
	c.mu.Lock()
	c.asked = time.Now().Add(-maxAge - time.Millisecond)
	c.mu.Unlock()
	f.change(func() { f.body = []byte(`{"kind":"PodList","items":[]}`) })
	_, err := c.Find(soon(t), uid, id("bb"))
	reason(t, "a pod that was deleted", err, problem.ReasonPodUnknown)
}

func TestKubeletIsAway(t *testing.T) {
	other := newAuthority(t)
	for name, spoil := range map[string]func(f *fake){
		"another token":         func(f *fake) { f.token = "other" },
		"forbidden":             func(f *fake) { f.status = http.StatusForbidden },
		"a redirect":            func(f *fake) { f.status = http.StatusFound },
		"an error":              func(f *fake) { f.status = http.StatusInternalServerError },
		"another authority":     func(f *fake) { f.cfg.CA = f.file("other.crt", other.pem) },
		"another node's name":   func(f *fake) { f.cfg.Node = "node-2" },
		"no name for an IP":     func(f *fake) { f.cfg.Node = "" },
		"no CA file":            func(f *fake) { f.cfg.CA += "x" },
		"no certificate":        func(f *fake) { f.cfg.CA = f.cfg.Token },
		"a large CA file":       func(f *fake) { f.cfg.CA = f.file("big", bytes.Repeat([]byte("\n"), maxCA+1)) },
		"no token file":         func(f *fake) { f.cfg.Token += "x" },
		"an empty token":        func(f *fake) { f.cfg.Token = f.file("none", []byte("\n")) },
		"a token in two lines":  func(f *fake) { f.cfg.Token = f.file("two", []byte("a\r\nX-Y: b")) },
		"a large token":         func(f *fake) { f.cfg.Token = f.file("big", bytes.Repeat([]byte("a"), maxToken+1)) },
		"no JSON":               func(f *fake) { f.body = []byte("<html>") },
		"another kind":          func(f *fake) { f.body = []byte(`{"kind":"NodeList","items":[]}`) },
		"no list":               func(f *fake) { f.body = []byte(`{"kind":"PodList"}`) },
		"cut short":             func(f *fake) { f.body = f.body[:len(f.body)/2] },
		"something behind it":   func(f *fake) { f.body = append(f.body, f.body...) },
		"two lists":             func(f *fake) { f.body = []byte(`{"kind":"PodList","items":[],"items":[]}`) },
		"a pod of another type": func(f *fake) { f.body = []byte(`{"kind":"PodList","items":[{"metadata":{"name":7}}]}`) },
		"nobody there":          func(f *fake) { f.http.Close() },
	} {
		f := newFake(t)
		spoil(f)
		c := f.client()
		_, err := c.Find(t.Context(), uid, id("bb"))
		reason(t, name, err, problem.ReasonUnreachable)
		if p := problem.As(err); p.WayOut() == problem.ReasonUnreachable.Fix() || strings.Contains(p.Error(), token) {
			t.Errorf("%s: %v; %s", name, p, p.WayOut())
		}
		// Asking again at once costs the kubelet nothing.
		n := f.count()
		for range 20 {
			_, err = c.Find(t.Context(), uid, id("bb"))
			reason(t, name, err, problem.ReasonUnreachable)
		}
		if m := f.count(); m > n+3 {
			t.Errorf("%s: asked %d times more", name, m-n)
		}
	}
}

func TestSlowKubelet(t *testing.T) {
	f := newFake(t)
	f.wait = make(chan struct{})
	defer close(f.wait)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := f.client().Find(ctx, uid, id("bb"))
	reason(t, "it does not answer", err, problem.ReasonUnreachable)
}

// Tokens and authorities are rotated while the agent runs.
func TestRotation(t *testing.T) {
	f := newFake(t)
	c := f.client()
	find := func() error {
		c.mu.Lock()
		c.list, c.failed = nil, nil
		c.mu.Unlock()
		_, err := c.Find(t.Context(), uid, id("bb"))
		return err
	}
	if err := find(); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.token = "another" })
	f.file("token", []byte("another"))
	if err := find(); err != nil {
		t.Error(err)
	}
	f.file("ca.crt", newAuthority(t).pem)
	reason(t, "the authority is another", find(), problem.ReasonUnreachable)
	f.file("ca.crt", append(newAuthority(t).pem, f.ca.pem...))
	if err := find(); err != nil {
		t.Error(err)
	}
}

// The kubelet's own certificate can be the anchor, as with one that it signed itself.
func TestPinnedCertificate(t *testing.T) {
	f := newFake(t)
	f.cfg.CA = f.file("leaf.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.http.TLS.Certificates[0].Certificate[0]}))
	if _, err := f.client().Find(t.Context(), uid, id("bb")); err != nil {
		t.Error(err)
	}
}

func TestOtherNode(t *testing.T) {
	f := newFake(t)
	f.body = bytes.ReplaceAll(f.body, []byte(`"nodeName":"node-1"`), []byte(`"nodeName":"node-9"`))
	_, err := f.client().Find(soon(t), uid, id("bb"))
	reason(t, "a pod of another node", err, problem.ReasonPodUnknown)
}

// The read-only port gets no token, whatever it answers.
func TestReadOnlyPort(t *testing.T) {
	f := newFake(t)
	f.token = ""
	plain := httptest.NewServer(f)
	defer plain.Close()
	f.cfg = Config{Address: plain.URL}
	if _, err := f.client().Find(t.Context(), uid, id("bb")); err != nil {
		t.Error(err)
	}
	for _, h := range f.seen {
		if h != "" {
			t.Error("a token went over plain HTTP")
		}
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct {
		cfg Config
		ok  bool
	}{
		"https":               {Config{Address: "https://127.0.0.1:10250", Token: "/t", CA: "/c"}, true},
		"https by name":       {Config{Address: "https://node-1:10250", Token: "/t", CA: "/c", Node: "node-1"}, true},
		"read-only":           {Config{Address: "http://127.0.0.1:10255"}, true},
		"read-only, IPv6":     {Config{Address: "http://[::1]:10255"}, true},
		"read-only elsewhere": {Config{Address: "http://192.0.2.1:10255"}, false},
		"read-only by name":   {Config{Address: "http://localhost:10255"}, false},
		"token over http":     {Config{Address: "http://127.0.0.1:10255", Token: "/t"}, false},
		"CA over http":        {Config{Address: "http://127.0.0.1:10255", CA: "/c"}, false},
		"no token":            {Config{Address: "https://127.0.0.1:10250", CA: "/c"}, false},
		"no CA":               {Config{Address: "https://127.0.0.1:10250", Token: "/t"}, false},
		"relative":            {Config{Address: "https://127.0.0.1:10250", Token: "t", CA: "/c"}, false},
		"no port":             {Config{Address: "https://127.0.0.1", Token: "/t", CA: "/c"}, false},
		"a path":              {Config{Address: "https://127.0.0.1:10250/pods", Token: "/t", CA: "/c"}, false},
		"a password":          {Config{Address: "https://a:b@127.0.0.1:10250", Token: "/t", CA: "/c"}, false},
		"another scheme":      {Config{Address: "unix://127.0.0.1:1", Token: "/t", CA: "/c"}, false},
		"nothing":             {Config{}, false},
	} {
		_, err := New(c.cfg)
		if (err == nil) != c.ok || err != nil && !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// list makes a list of one pod, which fn changes first.
func list(t *testing.T, fn func(p *pod)) []byte {
	t.Helper()
	var p pod
	p.Metadata.Name, p.Metadata.Namespace, p.Metadata.UID = "a", "b", "c"
	p.Status.Phase = "Running"
	s := status{Name: "main", ContainerID: "containerd://x"}
	s.State.Running = &struct{}{}
	p.Status.ContainerStatuses = []status{s}
	fn(&p)
	text, err := json.Marshal(map[string]any{"kind": "PodList", "items": []any{&p}})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestParsePods(t *testing.T) {
	for name, c := range map[string]struct {
		fn   func(p *pod)
		want int
	}{
		"a pod":               {func(*pod) {}, 1},
		"no name":             {func(p *pod) { p.Metadata.Name = "" }, 0},
		"no UID":              {func(p *pod) { p.Metadata.UID = "" }, 0},
		"a name in disguise":  {func(p *pod) { p.Metadata.Name = "a\u202eb" }, 0},
		"a long namespace":    {func(p *pod) { p.Metadata.Namespace = strings.Repeat("a", maxText+1) }, 0},
		"a label in disguise": {func(p *pod) { p.Metadata.Labels = map[string]string{"a": "\x1b[2J"} }, 0},
		"a long image":        {func(p *pod) { p.Status.ContainerStatuses[0].Image = strings.Repeat("a", maxText+1) }, 0},
		"failed":              {func(p *pod) { p.Status.Phase = "Failed" }, 0},
		"unknown":             {func(p *pod) { p.Status.Phase = "" }, 0},
		"no runtime":          {func(p *pod) { p.Status.ContainerStatuses[0].ContainerID = "x" }, 0},
		"not running":         {func(p *pod) { p.Status.ContainerStatuses[0].State.Running = nil }, 0},
		"an init container": {func(p *pod) {
			p.Status.Phase, p.Status.InitContainerStatuses, p.Status.ContainerStatuses = "Pending", p.Status.ContainerStatuses, nil
		}, 1},
		"one ID twice": {func(p *pod) {
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, p.Status.ContainerStatuses[0])
		}, 0},
		"too many containers": {func(p *pod) {
			for range maxContainers {
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, status{Name: "y"})
			}
		}, 0},
	} {
		l, err := parsePods(bytes.NewReader(list(t, c.fn)))
		n := 0
		for _, p := range l {
			if p != nil {
				n++
			}
		}
		if err != nil || n != c.want {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	var many []any
	for range maxPods + 1 {
		many = append(many, map[string]any{})
	}
	text, err := json.Marshal(map[string]any{"kind": "PodList", "items": many})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parsePods(bytes.NewReader(text)); err != errShape {
		t.Errorf("too many pods: %v", err)
	}
	endless := io.MultiReader(strings.NewReader(`{"kind":"PodList","metadata":"`), spaces{})
	if _, err := parsePods(endless); err != errLarge {
		t.Errorf("an endless answer: %v", err)
	}
}

type spaces struct{}

func (spaces) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func FuzzPods(f *testing.F) {
	f.Add(recorded(f))
	f.Add([]byte(`{"kind":"PodList","items":null}`))
	f.Add([]byte(`{"items":[{"metadata":{"uid":"a","name":"b","namespace":"c"},"status":{"phase":"Running","containerStatuses":[{"name":"m","containerID":"x://y","state":{"running":{}}}]}}],"kind":"PodList"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := parsePods(bytes.NewReader(text))
		if err != nil && l != nil {
			t.Error("pods of a list that is none")
		}
		for k, p := range l {
			if p != nil && (k.pod != p.UID || k.container == "" || !shown(p.Namespace, p.Name, p.UID, p.Container)) {
				t.Errorf("%+v", p)
			}
		}
	})
}
