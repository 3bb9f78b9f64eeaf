// Package kubelet asks the kubelet of this machine which pod a container belongs to.
//
// Guaranteed: over HTTPS it talks to nobody but the holder of a certificate from the authorities that it was given, for the
// name that it was given; the service-account token goes nowhere else. Redirects are not followed and proxies not used. A pod
// is told only if pod and container both are the ones that were asked for, exactly one container fits, and the kubelet says that it
// runs. An answer is at most a second old when it is used. However many ask, one question is under way at a time.
//
// Not guaranteed: that the kubelet says the truth: whoever is root on its machine, or has its key, can say anything, and its
// read-only port (plain HTTP) answers with whatever process listens there, which is why it is used only if it is configured by name. What is in a
// pod (labels, images, service account) is what the cluster's API server let somebody write.
//
// Its place: a leaf below workload, which knows from the cgroup which pod and container are meant.
package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// Config of a Client.
type Config struct {
	Address string // https://HOST:PORT, or http://HOST:PORT with a loopback address for the read-only port
	Token   string // file with the service-account token, read for each question, because it is rotated; for https only
	CA      string // file with the certificates (PEM) that the kubelet's certificate is from, or that certificate; for https only
	Node    string // name of this node: the kubelet's certificate is for it, and so are the pods; empty: the address's host, and any
}

// Times and bounds.
const (
	maxAge   = time.Second            // of an answer that is used
	pause    = 250 * time.Millisecond // between questions about a container that is not listed yet
	patience = 10 * time.Second       // for it; the kubelet looks at its containers once a second or later
	timeout  = 5 * time.Second        // of one question
	maxToken = 16 << 10               // bytes
	maxCA    = 256 << 10              // bytes
)

// Client asks one kubelet. It is safe for concurrent use.
type Client struct {
	cfg   Config
	url   string
	plain bool

	mu     sync.Mutex
	list   podList
	asked  time.Time // when list was asked for
	flight *flight   // under way; nil: none
	failed *flight   // the last one, if it failed

	trust     sync.Mutex
	ca        string // what http trusts
	transport *http.Transport
}

// flight is a question under way.
type flight struct {
	began time.Time
	done  chan struct{}
	list  podList
	err   error
}

// Check says what is wrong with a configuration, or nil. It looks at no file.
func (c Config) Check() error {
	u, err := url.Parse(c.Address)
	if err != nil || u.Port() == "" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("the address is not https://HOST:PORT")
	}
	switch u.Scheme {
	case "https":
		if !filepath.IsAbs(c.Token) || !filepath.IsAbs(c.CA) {
			return errors.New("https needs the absolute paths of a token file and a CA file")
		}
	case "http":
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			return errors.New("http, the read-only port, is taken on a loopback address only")
		}
		if c.Token != "" || c.CA != "" {
			return errors.New("http takes no token, which it would tell to whoever listens there, and no CA")
		}
	default:
		return errors.New("the address is not https://HOST:PORT")
	}
	return nil
}

// New makes a client; it asks nothing yet.
func New(cfg Config) (*Client, error) {
	if err := cfg.Check(); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the kubelet").WithFix("correct `kubelet` in the agent's configuration")
	}
	return &Client{cfg: cfg, url: cfg.Address + "/pods", plain: strings.HasPrefix(cfg.Address, "http://")}, nil
}

// Close drops idle connections.
func (c *Client) Close() {
	c.trust.Lock()
	defer c.trust.Unlock()
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// Find tells which pod and container a process is in, by the pod's UID and the container's ID as its cgroup names them. A container
// that is not listed yet is waited for, until ctx ends and at most 10 s: the kubelet learns of it after it has started.
//
// The error's reason is unreachable if the kubelet gives no answer, pod-unknown if it lists no such running container.
func (c *Client) Find(ctx context.Context, podUID, containerID string) (Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	k := key{podUID, containerID}
	answered := false
	for newer := time.Now().Add(-maxAge); ; answered = true {
		list, asked, err := c.listed(ctx, newer)
		switch {
		case err != nil && answered && ctx.Err() != nil:
			// It answered, and not what was hoped for: that the time is over while it is asked again changes nothing.
			return Pod{}, unknown()
		case err != nil:
			return Pod{}, err
		}
		if p := list[k]; p != nil && (c.cfg.Node == "" || p.Node == c.cfg.Node) {
			return *p, nil
		}
		next := time.NewTimer(time.Until(asked.Add(pause)))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return Pod{}, unknown()
		}
		newer = time.Now()
	}
}

func unknown() error {
	return problem.New(problem.ReasonPodUnknown, "the kubelet lists no running container for this process")
}

// listed is an answer to a question that was asked at newer or later.
func (c *Client) listed(ctx context.Context, newer time.Time) (podList, time.Time, error) {
	for {
		c.mu.Lock()
		if c.list != nil && !c.asked.Before(newer) {
			defer c.mu.Unlock()
			return c.list, c.asked, nil
		}
		// Who asks again at once what just failed, and anybody may, learns nothing new and costs the kubelet nothing.
		if f := c.failed; f != nil && time.Since(f.began) < pause {
			defer c.mu.Unlock()
			return nil, time.Time{}, f.err
		}
		f := c.flight
		if f == nil {
			f = &flight{began: time.Now(), done: make(chan struct{})}
			c.flight = f
			go c.fly(f)
		}
		c.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, time.Time{}, problem.Wrap(ctx.Err(), problem.ReasonUnreachable, "asking the kubelet").WithFix(wayOut)
		}
		if f.err != nil {
			return nil, time.Time{}, f.err
		}
		if !f.began.Before(newer) {
			return f.list, f.began, nil
		}
	}
}

const wayOut = "check `kubelet` in the agent's configuration, that the kubelet runs, and that the service account may get nodes/proxy (or nodes/pods)"

// fly asks, for all that wait: not with the context of one of them.
func (c *Client) fly(f *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	f.list, f.err = c.ask(ctx)
	if f.err != nil {
		f.err = problem.Wrap(f.err, problem.ReasonUnreachable, "asking the kubelet").WithFix(wayOut)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight, c.failed = nil, nil; f.err == nil {
		c.list, c.asked = f.list, f.began
	} else {
		c.list, c.failed = nil, f // what can't be asked again isn't known any more
	}
	close(f.done)
}

func (c *Client) ask(ctx context.Context) (podList, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return nil, errors.New("the address is of no use")
	}
	req.Header.Set("Accept", "application/json")
	transport, err := c.trusting()
	if err != nil {
		return nil, err
	}
	if !c.plain {
		token, err := readFile(c.cfg.Token, maxToken)
		if err != nil {
			return nil, fmt.Errorf("reading the token: %w", err)
		}
		bearer := strings.TrimSpace(string(token))
		clear(token)
		if bearer == "" || strings.ContainsFunc(bearer, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, errors.New("the token file holds no token")
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	// RoundTrip and not a client: no redirect is followed, so the token stays with the kubelet.
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("the connection failed: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
		return nil, fmt.Errorf("it answers with status %d", res.StatusCode)
	}
	return parsePods(res.Body)
}

// trusting is the transport for the CA file as it is now: kubelets' certificates are rotated, and their authorities too.
func (c *Client) trusting() (*http.Transport, error) {
	var ca []byte
	if !c.plain {
		var err error
		if ca, err = readFile(c.cfg.CA, maxCA); err != nil {
			return nil, fmt.Errorf("reading the CA: %w", err)
		}
	}
	c.trust.Lock()
	defer c.trust.Unlock()
	if c.transport != nil && c.ca == string(ca) {
		return c.transport, nil
	}
	t := &http.Transport{
		// The machine's proxy settings don't matter for a service on it.
		Proxy:       nil,
		DialContext: (&net.Dialer{Timeout: timeout}).DialContext, MaxIdleConns: 1, MaxConnsPerHost: 2, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: 16 << 10,
	}
	if !c.plain {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			return nil, errors.New("the CA file holds no certificate")
		}
		// A kubelet's tlsMinVersion may be set to 1.2, and its highest may not: Go takes the better one that both have.
		t.TLSClientConfig = &tls.Config{RootCAs: pool, ServerName: c.cfg.Node, MinVersion: tls.VersionTLS12}
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	c.ca, c.transport = string(ca), t
	return t, nil
}

// readFile reads a small file. The error names no content.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		clear(data)
		return nil, fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return data, nil
}
