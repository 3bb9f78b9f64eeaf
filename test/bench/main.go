// Command bench measures the real server over TLS on this machine, beside a minimal Go TLS server in
// the same run: secret reads and writes, X.509 issue, logins, revocation, start with many secrets.
// Everything that the product checks and limits is on, each read's entry is durable before its answer,
// and a sample of the answers' receipts is verified. `make bench` runs it; docs/benchmarks.md keeps a run.
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/verify"
)

const clients = 64

func main() {
	minimal := flag.String("minimal", "", "internal: be the minimal server on this address")
	minimalCert := flag.String("minimal-cert", "", "internal: where it writes its certificate")
	bin := flag.String("bin", "bin/bailment", "the server's binary")
	dir := flag.String("dir", "", "directory on the disk to measure; default: a temporary one")
	each := flag.Duration("d", 5*time.Second, "length of one run")
	only := flag.String("only", "", "measure only rows whose name matches this regular expression")
	many := flag.Int("secrets", 100_000, "secrets for the start measurement")
	leases := flag.Int("leases", 100_000, "leases for the revocation measurement")
	flag.Parse()
	var err error
	if *minimal != "" {
		err = minimalServer(*minimal, *minimalCert)
	} else {
		err = run(context.Background(), *bin, *dir, *only, *each, *many, *leases)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //arch:allow exit: a main package of its own
	}
}

// bench is one run of all measurements.
type bench struct {
	s     *site.Site
	admin *client.Client
	alice *client.Session
	nodes []*client.Session
	min   func() []*worker
	minPD int
	each  time.Duration
	only  *regexp.Regexp
}

func run(ctx context.Context, bin, dir, only string, each time.Duration, many, leases int) error {
	rows, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if dir == "" {
		tmp, err := os.MkdirTemp("", "bailment-bench")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	s, err := newSite(ctx, dir, bin)
	if err != nil {
		return err
	}
	defer s.Kill()
	if err := s.Start(); err != nil {
		return err
	}
	if err := s.Connect(ctx); err != nil {
		return err
	}
	idle := rssOf(s.PID())
	b := &bench{s: s, each: each, only: rows}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	cmd, workers, err := startMinimal(dir)
	if err != nil {
		return err
	}
	defer func() { _ = cmd.Process.Kill() }()
	b.min, b.minPD = workers, cmd.Process.Pid
	b.head(bin, idle)
	if err := b.table(); err != nil {
		return err
	}
	for _, m := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"login", b.logins},
		{"push", b.push},
		{"pushed to an agent", b.pushed},
		{"agent", b.agents},
		{"start small", b.startSmall},
		{"start with many", func(ctx context.Context) error { return b.startWith(ctx, many) }},
		{"revocation", func(ctx context.Context) error { return b.revocation(ctx, leases) }},
	} {
		if !b.only.MatchString(m.name) {
			continue
		}
		if err := m.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

func (b *bench) prepare(ctx context.Context) error {
	var err error
	if b.alice, err = b.s.Login(ctx, "alice"); err != nil {
		return err
	}
	if b.admin, err = b.s.Dial(b.alice); err != nil {
		return err
	}
	value := make([]byte, 1024)
	_, _ = rand.Read(value) // never fails (Go 1.24)
	for i := range clients {
		if _, err := b.admin.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: fmt.Sprintf("app/s%d", i), Value: value}); err != nil {
			return err
		}
		node, err := b.s.Node(ctx, b.admin, fmt.Sprintf("n%d", i))
		if err != nil {
			return err
		}
		b.nodes = append(b.nodes, node)
	}
	return nil
}

func (b *bench) head(bin string, idle int64) {
	size := int64(0)
	if info, err := os.Stat(bin); err == nil {
		size = info.Size()
	}
	fmt.Printf("machine: %s, %d cores, %s, %s\n", cpuModel(), runtime.NumCPU(), runtime.Version(), kernel())
	fmt.Printf("binary: %.1f MiB; resident when idle after the start: %.1f MiB\n\n", float64(size)/(1<<20), float64(idle)/(1<<20))
	fmt.Printf("| what | clients | req/s | ratio | p50 | p99 | server CPU each | resident |\n|---|---|---|---|---|---|---|---|\n")
}

// row measures a target between two runs of the yardstick.
func (b *bench) row(name string, workers []*worker, check func(int, []byte) error) error {
	if !b.only.MatchString(name) {
		return nil
	}
	before, err := measure("minimal TLS server", b.minPD, b.min(), b.each/2, nil)
	if err != nil {
		return err
	}
	r, err := measure(name, b.s.PID(), workers, b.each, check)
	if err != nil {
		return err
	}
	after, err := measure("minimal TLS server", b.minPD, b.min(), b.each/2, nil)
	if err != nil {
		return err
	}
	yard := (before.rate() + after.rate()) / 2
	fmt.Printf("| %s | %d | %.0f | %.2f | %s | %s | %d µs | %.0f MiB |\n", name, r.clients, r.rate(), r.rate()/yard, short(r.percentile(0.5)), short(r.percentile(0.99)), r.cpuEach().Microseconds(), float64(r.rss)/(1<<20))
	fmt.Printf("| – minimal TLS server beside it | 64 | %.0f | 1 | %s | %s | %d µs | |\n", yard, short(after.percentile(0.5)), short(after.percentile(0.99)), after.cpuEach().Microseconds())
	return nil
}

func short(d time.Duration) string {
	if d < time.Millisecond {
		return fmt.Sprintf("%d µs", d.Microseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

const procedures = "/bailment.v1."

func (b *bench) workers(n int, session func(i int) *client.Session, path, contentType string, body func(i, n int) []byte) []*worker {
	out := make([]*worker, n)
	for i := range out {
		seq := 0
		var last, built []byte
		out[i] = &worker{addr: b.s.Addr, tls: tlsOf(b.s, session(i)), next: func() []byte {
			seq++
			// The same body again is not built again: what the client spends, the server does not have.
			if now := body(i, seq); built == nil || !bytes.Equal(now, last) {
				last, built = now, request(envName, procedures+path, contentType, now)
			}
			return built
		}}
	}
	return out
}

func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // a message of ours
	}
	return b
}

func (b *bench) table() error {
	node := func(i int) *client.Session { return b.nodes[i] }
	get := func(receiptEvery int) func(i, n int) []byte {
		plain, receipt := make([][]byte, clients), make([][]byte, clients)
		for i := range clients {
			plain[i] = encode(&bailmentv1.GetRequest{Secret: fmt.Sprintf("app/s%d", i)})
			receipt[i] = encode(&bailmentv1.GetRequest{Secret: fmt.Sprintf("app/s%d", i), Receipt: true})
		}
		return func(i, n int) []byte {
			if receiptEvery > 0 && n%receiptEvery == 501%receiptEvery {
				return receipt[i]
			}
			return plain[i]
		}
	}
	receipt := func(_ int, body []byte) error {
		var m bailmentv1.GetResponse
		if err := proto.Unmarshal(body, &m); err != nil {
			return err
		}
		if len(m.Value) != 1024 {
			return fmt.Errorf("a value of %d bytes", len(m.Value))
		}
		if len(m.Receipt) == 0 {
			return fmt.Errorf("no receipt")
		}
		_, err := verify.VerifyReceipt(m.Receipt, b.s.Trust.CheckpointKeys...)
		return err
	}
	if err := b.row("secret read, 1 KiB", b.workers(clients, node, "SecretService/Get", "application/proto", get(1000)), receipt); err != nil {
		return err
	}
	if err := b.row("secret read, 1 KiB, a receipt with each", b.workers(clients, node, "SecretService/Get", "application/proto", get(1)), receipt); err != nil {
		return err
	}
	json := func(i, _ int) []byte { return fmt.Appendf(nil, `{"secret":"app/s%d"}`, i) }
	if err := b.row("secret read, 1 KiB, JSON", b.workers(clients, node, "SecretService/Get", "application/json", json), nil); err != nil {
		return err
	}
	if err := b.row("secret read, 1 KiB, one client", b.workers(1, node, "SecretService/Get", "application/proto", get(0)), nil); err != nil {
		return err
	}
	value := make([]byte, 1024)
	_, _ = rand.Read(value) // never fails (Go 1.24)
	put := func(i, _ int) []byte {
		return encode(&bailmentv1.PutRequest{Secret: fmt.Sprintf("app/w%d", i), Value: value})
	}
	alice := func(int) *client.Session { return b.alice }
	if err := b.row("secret write, 1 KiB", b.workers(clients, alice, "SecretService/Put", "application/proto", put), nil); err != nil {
		return err
	}
	csrs := make([][]byte, clients)
	for i := range csrs {
		key, err := client.NewKey()
		if err != nil {
			return err
		}
		if csrs[i], err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
			return err
		}
	}
	issue := func(i, _ int) []byte { return encode(&bailmentv1.AttestWorkloadRequest{Workload: "api", Csr: csrs[i]}) }
	return b.row("workload attested, X.509-SVID issued", b.workers(clients, node, "AttestationService/AttestWorkload", "application/proto", issue), nil)
}

// startWith writes many secrets and measures from the process's start to the first read.
func (b *bench) startWith(ctx context.Context, many int) error {
	value := []byte("a value of forty bytes, like many others")
	errs := make(chan error, clients)
	for i := range clients {
		go func() {
			c, err := b.s.Dial(b.alice)
			if err != nil {
				errs <- err
				return
			}
			defer c.Close()
			for n := i; n < many; n += clients {
				if _, err := c.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: fmt.Sprintf("other/s%d", n), Value: value}); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			return err
		}
	}
	return b.starts(fmt.Sprintf("%d secrets and 1,000 grants", many), b.s, b.nodes[0])
}

// startSmall measures an environment with a handful of grants.
func (b *bench) startSmall(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "bailment-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := site.New(ctx, site.Options{Name: envName, Bin: b.s.Bin, Dir: dir})
	if err != nil {
		return err
	}
	defer s.Kill()
	if err := s.Start(); err != nil {
		return err
	}
	if err := s.Connect(ctx); err != nil {
		return err
	}
	alice, err := s.Login(ctx, "alice")
	if err != nil {
		return err
	}
	admin, err := s.Dial(alice)
	if err != nil {
		return err
	}
	defer admin.Close()
	if _, err := admin.Secrets.Put(ctx, &bailmentv1.PutRequest{Secret: "app/s0", Value: []byte("a value")}); err != nil {
		return err
	}
	node, err := s.Node(ctx, admin, "n0")
	if err != nil {
		return err
	}
	api, err := s.Workload(ctx, node, "api")
	if err != nil {
		return err
	}
	return b.starts("a small environment", s, api)
}

// starts measures from the process's start to the first read.
func (b *bench) starts(with string, s *site.Site, reader *client.Session) error {
	for _, how := range []string{"after a graceful stop", "after a kill"} {
		if how == "after a kill" {
			s.Kill()
		} else if err := s.Stop(); err != nil {
			return err
		}
		began := time.Now()
		if err := s.Launch(); err != nil {
			return err
		}
		get := request(envName, procedures+"SecretService/Get", "application/proto", encode(&bailmentv1.GetRequest{Secret: "app/s0"}))
		w := &worker{addr: s.Addr, tls: tlsOf(s, reader), next: func() []byte { return get }}
		for {
			if err := w.dial(); err == nil {
				if _, err := w.once(); err == nil {
					break
				}
			}
			if time.Since(began) > time.Minute {
				return fmt.Errorf("no read after the start: %s", s.Logs)
			}
			<-time.After(time.Millisecond)
		}
		fmt.Printf("start to first read with %s, %s: %s; resident %.0f MiB\n", with, how, short(time.Since(began)), float64(rssOf(s.PID()))/(1<<20))
		w.conn.Close()
	}
	return nil
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	b, _ := os.ReadFile(filepath.Join("/proc/sys/kernel", "osrelease"))
	return "Linux " + strings.TrimSpace(string(b))
}
