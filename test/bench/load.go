package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// worker is one keep-alive connection that sends prepared requests. It is lean on purpose: client and
// server share the machine's cores, and what the client spends the server does not have.
type worker struct {
	addr string
	tls  *tls.Config
	next func() []byte // the whole request, header and body
	conn *tls.Conn
	br   *bufio.Reader
}

func (w *worker) dial() error {
	raw, err := net.DialTimeout("tcp", w.addr, 10*time.Second)
	if err != nil {
		return err
	}
	w.conn = tls.Client(raw, w.tls)
	w.br = bufio.NewReaderSize(w.conn, 8<<10)
	return w.conn.Handshake()
}

// once sends one request and reads its answer; body is valid until the next call.
func (w *worker) once() (body []byte, err error) {
	if _, err := w.conn.Write(w.next()); err != nil {
		return nil, err
	}
	length, ok, chunked := -1, false, false
	for first := true; ; first = false {
		line, err := w.br.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if first {
			ok = bytes.HasPrefix(line, []byte("HTTP/1.1 200"))
		}
		if len(line) <= 2 {
			break
		}
		if name, value, found := bytes.Cut(line, []byte(":")); found && bytes.EqualFold(name, []byte("content-length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return nil, err
			}
		} else if found && bytes.EqualFold(name, []byte("transfer-encoding")) {
			chunked = bytes.Contains(value, []byte("chunked"))
		}
	}
	if chunked {
		return w.chunks(ok)
	}
	if length < 0 {
		return nil, errors.New("an answer without a length")
	}
	if length <= w.br.Size() {
		if body, err = w.br.Peek(length); err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("answered: %.300s", body)
		}
		_, err = w.br.Discard(length)
		return body, err
	}
	_, err = io.CopyN(io.Discard, w.br, int64(length))
	return nil, err
}

// chunks reads a chunked body (RFC 9112 §7.1).
func (w *worker) chunks(ok bool) ([]byte, error) {
	var body []byte
	for {
		line, err := w.br.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 24)
		if err != nil {
			return nil, err
		}
		at := len(body)
		body = append(body, make([]byte, n+2)...)
		if _, err := io.ReadFull(w.br, body[at:]); err != nil {
			return nil, err
		}
		body = body[:at+int(n)]
		if n > 0 {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("answered: %.300s", body)
		}
		return body, nil
	}
}

// request is an HTTP/1.1 POST, ready to be sent.
func request(host, path, contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nConnect-Protocol-Version: 1\r\nContent-Length: %d\r\n\r\n%s", path, host, contentType, len(body), body)
}

// result is one measured run.
type result struct {
	name    string
	clients int
	n       int
	took    time.Duration
	lat     []time.Duration // sorted
	cpu     time.Duration   // of the server
	rss     int64           // bytes, of the server, at the end
}

func (r result) rate() float64 { return float64(r.n) / r.took.Seconds() }

func (r result) cpuEach() time.Duration {
	if r.n == 0 {
		return 0
	}
	return r.cpu / time.Duration(r.n)
}

func (r result) percentile(p float64) time.Duration {
	if len(r.lat) == 0 {
		return 0
	}
	return r.lat[min(len(r.lat)-1, int(float64(len(r.lat))*p))]
}

// measure runs the workers in closed loops for a while. check looks at a sample of the answers.
func measure(name string, pid int, workers []*worker, d time.Duration, check func(i int, body []byte) error) (result, error) {
	for _, w := range workers {
		if err := w.dial(); err != nil {
			return result{}, fmt.Errorf("%s: %w", name, err)
		}
		defer w.conn.Close()
	}
	var (
		wg    sync.WaitGroup
		fail  atomic.Pointer[error]
		mu    sync.Mutex
		all   []time.Duration
		start = make(chan struct{})
		stop  atomic.Bool
	)
	for i, w := range workers {
		wg.Go(func() {
			lat := make([]time.Duration, 0, 1<<16)
			<-start
			for n := 0; !stop.Load(); n++ {
				t := time.Now()
				body, err := w.once()
				if err == nil && check != nil && n%1000 == 500 {
					err = check(i, body)
				}
				if err != nil {
					err = fmt.Errorf("%s: %w", name, err)
					fail.Store(&err)
					return
				}
				lat = append(lat, time.Since(t))
			}
			mu.Lock()
			all = append(all, lat...)
			mu.Unlock()
		})
	}
	cpu := cpuOf(pid)
	began := time.Now()
	close(start)
	<-time.After(d)
	stop.Store(true)
	wg.Wait()
	r := result{name: name, clients: len(workers), n: len(all), took: time.Since(began), cpu: cpuOf(pid) - cpu, rss: rssOf(pid)}
	if err := fail.Load(); err != nil {
		return r, *err
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	r.lat = all
	return r, nil
}

// cpuOf is the CPU time that a process has used (proc(5), stat fields 14 and 15).
func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	sys, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+sys) * (time.Second / 100)
}

// rssOf is the resident memory of a process in bytes.
func rssOf(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
