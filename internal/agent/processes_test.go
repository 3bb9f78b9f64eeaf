package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/client/clienttest"
	"github.com/bailment/bailment/internal/agent"
	"github.com/bailment/bailment/internal/attest/jointoken"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server/servertest"
)

const attestWorkload = bailmentv1connect.AttestationServiceAttestWorkloadProcedure

// serveWorkloads runs a real agent with a Workload API's socket, and returns its address.
func serveWorkloads(t testing.TB, bootstrap, token string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "run", "spiffe.sock")
	a, err := agent.New(agent.Config{
		Bootstrap: bootstrap, StateDir: filepath.Join(dir, "state"), WorkloadAPI: socket, Method: jointoken.Name,
		Needs: map[string]string{jointoken.NeedToken: path}, Methods: methods.All(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	end := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for a.Status().State != string(agent.Ready) || !a.Status().Watching {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%+v", a.Status())
		}
	}
	return "unix://" + socket
}

// fake is a fake server with an agent.
func fake(t testing.TB, c clienttest.Config) (*clienttest.Server, string) {
	t.Helper()
	s, err := clienttest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	tok, err := s.Token("web-1")
	if err != nil {
		t.Fatal(err)
	}
	return s, serveWorkloads(t, s.Bootstrap, tok.Reveal())
}

func workloads(t testing.TB, addr string) *spiffe.Client {
	t.Helper()
	c, err := spiffe.New(t.Context(), spiffe.WithAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ends is a watcher that keeps what it was told.
type ends struct {
	mu   sync.Mutex
	got  []*spiffe.X509Context
	errs []error
	at   time.Time // of the first error
}

func (e *ends) OnX509ContextUpdate(c *spiffe.X509Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.got = append(e.got, c)
}

func (e *ends) OnX509ContextWatchError(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.errs) == 0 {
		e.at = time.Now()
	}
	e.errs = append(e.errs, err)
}

func (e *ends) count() (int, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.got), len(e.errs)
}

func watchX509(t *testing.T, c *spiffe.Client) *ends {
	t.Helper()
	w := new(ends)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.WatchX509Context(ctx, w) }()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the first SVID", func() bool { n, _ := w.count(); return n == 1 })
	return w
}

// Who asks is who the kernel says, and its executable is measured; its ID is no part of what processes share an identity by.
func TestWorkloadAPIClaims(t *testing.T) {
	s, addr := fake(t, clienttest.Config{})
	x, err := workloads(t, addr).FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := x.DefaultSVID()
	if _, _, err := x509svid.Verify(v.Certificates, x.Bundles); err != nil || v.ID.String() != "spiffe://test.example/workload/app" {
		t.Errorf("%s: %v", v.ID, err)
	}
	claims := s.Claims()[0]
	u, p := claims["unix"].(map[string]any), claims["process"].(map[string]any)
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(exe)
	if u["uid"] != float64(os.Getuid()) || p["sha256"] != hex.EncodeToString(digest[:]) || p["digest_source"] != "measured" || p["pid"] != nil {
		t.Errorf("%v", claims)
	}
	// Another user's process, or another program, is not this one.
	s.Refuse(func(c map[string]any, _ string) error {
		if c["unix"].(map[string]any)["uid"] != float64(os.Getuid()+1) {
			return problem.New(problem.ReasonNoIdentity, "another user")
		}
		return nil
	})
	s.Hold("/workload/other", true) // news, after which everything is looked at again
	eventually(t, "the refusal", func() bool {
		_, err := workloads(t, addr).FetchX509SVID(t.Context())
		return status.Code(err) == codes.PermissionDenied && strings.Contains(err.Error(), "another user")
	})
}

// A hold on the workload, or on the machine, reaches an open stream within a second; lifted, the SVID comes back.
func TestWorkloadAPIRevocation(t *testing.T) {
	for _, held := range []string{"/workload/app", nodeOf} {
		t.Run(held, func(t *testing.T) {
			s, addr := fake(t, clienttest.Config{})
			w := watchX509(t, workloads(t, addr))
			began := time.Now()
			s.Hold(held, true)
			eventually(t, "the end of the stream", func() bool { _, n := w.count(); return n > 0 })
			if status.Code(w.errs[0]) != codes.PermissionDenied || !strings.Contains(w.errs[0].Error(), string(problem.ReasonHeld)) {
				t.Errorf("%v", w.errs[0])
			}
			if d := w.at.Sub(began); d > time.Second {
				t.Errorf("after %s", d)
			} else {
				t.Logf("after %s", d)
			}
			s.Hold(held, false)
			eventually(t, "the SVID's return", func() bool { n, _ := w.count(); return n > 1 })
		})
	}
}

const nodeOf = "/node/join-token/web-1"

// Without its server, an agent goes on with what is valid, and says of the rest that it is not available.
func TestWorkloadAPIOutage(t *testing.T) {
	s, addr := fake(t, clienttest.Config{})
	c := workloads(t, addr)
	v, err := c.FetchX509SVID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Before(func(string) error { return problem.New(problem.ReasonStore, "the store is away") })
	s.Hold("/workload/other", true)
	n := s.Calls(attestWorkload)
	eventually(t, "a try", func() bool {
		w, err := c.FetchX509SVID(t.Context())
		if err != nil || !w.Certificates[0].Equal(v.Certificates[0]) {
			t.Fatalf("a valid SVID was lost: %v", err)
		}
		return s.Calls(attestWorkload) > n
	})
	// Another program than this one has no SVID yet.
	out, err := other(t, addr, "fetch").CombinedOutput()
	if !strings.Contains(string(out), "Unavailable") {
		t.Errorf("%v: %s", err, out)
	}
}

// SVIDs are rotated under mTLS between two workloads of a real agent, without a failed handshake.
func TestWorkloadAPIRotation(t *testing.T) {
	_, addr := fake(t, clienttest.Config{SessionTTL: 4 * time.Second})
	source, err := spiffe.NewX509Source(t.Context(), spiffe.WithClientOptions(spiffe.WithAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	first, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for eventual := time.Now().Add(20 * time.Second); ; n++ {
		if err := handshake(source); err != nil {
			t.Fatalf("handshake %d: %v", n, err)
		}
		v, err := source.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if !v.Certificates[0].Equal(first.Certificates[0]) && time.Now().After(first.Certificates[0].NotAfter) {
			break
		}
		if time.Now().After(eventual) {
			t.Fatal("no rotation")
		}
	}
	t.Logf("%d handshakes", n)
}

// handshake is one of mutual TLS, over a pipe.
func handshake(s *spiffe.X509Source) error {
	return handshakeOf(tlsconfig.MTLSServerConfig(s, s, tlsconfig.AuthorizeAny()), tlsconfig.MTLSClientConfig(s, s, tlsconfig.AuthorizeAny()))
}

// handshakeOf ends when both sides accepted the other: a client hears of its refusal with the first byte that it reads.
func handshakeOf(server, client *tls.Config) error {
	left, right := net.Pipe()
	defer left.Close()
	done := make(chan error, 1)
	go func() {
		c := tls.Server(right, server)
		_, err := c.Write([]byte("x"))
		_ = right.Close()
		done <- err
	}()
	_, err := io.ReadFull(tls.Client(left, client), make([]byte, 1))
	_ = left.Close()
	return errors.Join(err, <-done)
}

// other is this test's program as another one: a copy of its file, so that its digest is another.
func other(t *testing.T, addr, role string) *exec.Cmd {
	t.Helper()
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, append(exe, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path)
	c.Env = append(os.Environ(), "WORKLOAD_ROLE="+role, "SPIFFE_ENDPOINT_SOCKET="+addr)
	return c
}

// beWorkload is what this program does as another one.
func beWorkload(role string) {
	switch role {
	case "fetch":
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		v, err := spiffe.FetchX509SVID(ctx)
		if err != nil {
			fmt.Fprintln(os.Stdout, err)
			os.Exit(1)
		}
		fmt.Fprintln(os.Stdout, v.ID)
		os.Exit(0)
	case "connect":
		connectAndHand()
	}
}

// connectAndHand connects to the socket, hands the connection to its parent as its standard output, and is gone.
func connectAndHand() {
	c, err := net.Dial("unix", strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://"))
	if err != nil {
		os.Exit(1)
	}
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		os.Exit(1)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.Sendmsg(1, []byte("x"), unix.UnixRights(int(fd)), nil, 0) })
	if err != nil {
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is told to go
	os.Exit(0)
}

// A connection whose process is gone is nobody's: who got it from there is not the one that connected.
func TestWorkloadAPIProcessGone(t *testing.T) {
	s, addr := fake(t, clienttest.Config{})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "")
	child := other(t, addr, "connect")
	child.Stdout = theirs
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fds[0], make([]byte, 1), oob, 0)
	unix.Close(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatal(messages, err)
	}
	got, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(got[0]), "")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := spiffe.New(t.Context(), spiffe.WithAddr("unix:///given"), spiffe.WithDialOptions(dialed(conn)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// While it lives, what it passed on is its own to pass on.
	if _, err := c.FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	before := len(s.Claims())
	if _, err := c.FetchX509SVID(t.Context()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("after its end: %v", err)
	}
	if len(s.Claims()) != before {
		t.Error("the environment was asked for a process that is gone")
	}
}

// A real server, a real agent, the common client: an identity, a refusal when the bundle has no rule any more.
func TestWorkloadAPIWithServer(t *testing.T) {
	h := servertest.Start(t, servertest.Options{})
	alice := h.Login("alice")
	tok := h.Token(alice, "web-1")
	addr := serveWorkloads(t, h.Bootstrap(), tok.Reveal())
	x, err := workloads(t, addr).FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := x.DefaultSVID()
	if id, _, err := x509svid.Verify(v.Certificates, x.Bundles); err != nil || id.String() != "spiffe://servertest/workload/app" {
		t.Errorf("%s, %v", id, err)
	}
	out, err := other(t, addr, "fetch").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("spiffe://servertest/workload/app")) {
		t.Errorf("%v: %s", err, out)
	}
}

// BenchmarkWorkloadAPI is a fetch from a real agent, who looks at the process each time: one after the other, and sixteen at a time. The
// CPU is that of both sides.
func BenchmarkWorkloadAPI(b *testing.B) {
	_, addr := fake(b, clienttest.Config{})
	c, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	api := workload.NewSpiffeWorkloadAPIClient(c)
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	fetch := func() error {
		ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(b.Context(), "workload.spiffe.io", "true"))
		defer cancel()
		s, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	if err := fetch(); err != nil { // the first one is measured, attested and connected
		b.Fatal(err)
	}
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			before := used()
			var left, failed atomic.Int64
			left.Store(int64(b.N))
			var all sync.WaitGroup
			b.ResetTimer()
			for range clients {
				all.Go(func() {
					for left.Add(-1) >= 0 {
						if fetch() != nil {
							failed.Add(1)
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
			if n := failed.Load(); n > 0 {
				b.Fatalf("%d of %d fetches failed", n, b.N)
			}
			b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "fetches/s")
		})
	}
}

// dialed has gRPC use a connection that there is already.
func dialed(c net.Conn) grpc.DialOption {
	return grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return c, nil })
}
