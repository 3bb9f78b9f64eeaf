// Package metadata asks a cloud's instance metadata service: plain HTTP to an address that only the machine itself can reach.
//
// Guaranteed: what is asked goes to the one address that was given, an IP address and not a name that somebody could answer for; never
// through a proxy, whatever the environment says, since then the proxy's machine would be described; no redirect is followed; and what
// comes back is bounded in size and time.
//
// Not guaranteed: that a metadata service answers there. Whoever can give this machine that address on its network can answer; so what is
// believed of the answers is what they prove by signatures.
//
// Its place: below the methods of attestation of clouds, on the machine's side; it imports leaves only.
package metadata

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/bailment/bailment/internal/problem"
)

// LinkLocal is where the clouds' services are.
const LinkLocal = "http://169.254.169.254"

// MaxAnswer is the most bytes of an answer.
const MaxAnswer = 64 << 10

const (
	dialTimeout = 2 * time.Second // it is on the machine's own host
	timeout     = 10 * time.Second
)

// Service is one metadata service. It is safe for concurrent use.
type Service struct {
	base   string
	client *http.Client
}

// New makes a service from "http://ADDRESS" or "http://ADDRESS:PORT", with an IP address; empty: LinkLocal. Its error doesn't show what
// was given.
func New(base string) (*Service, error) {
	if base == "" {
		base = LinkLocal
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return nil, badEndpoint()
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		return nil, badEndpoint()
	}
	return &Service{base: u.Scheme + "://" + u.Host, client: &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			Proxy:             nil,
			DialContext:       (&net.Dialer{Timeout: dialTimeout}).DialContext,
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func badEndpoint() error {
	return problem.New(problem.ReasonInvalid, "the metadata service's endpoint must be http:// and an IP address, with a port or without")
}

// Ask asks for a path, which begins with "/", and gives the answer's body. Anything but 200 is a failure; its message holds the status and
// nothing of the body. A failure is unreachable, which passes, or invalid where the service says that what was asked for is not there or
// not allowed.
func (s *Service) Ask(ctx context.Context, method, path string, query url.Values, header map[string]string) ([]byte, error) {
	to := s.base + path
	if len(query) > 0 {
		to += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, to, nil)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "ask the metadata service")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, problem.Wrap(ctx.Err(), problem.ReasonCanceled, "ask the metadata service")
		}
		return nil, unreachable(err, "the instance metadata service can't be reached")
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
	case code == http.StatusTooManyRequests, code == http.StatusGone, code >= 500: // 410 is Azure's "not yet"
		return nil, unreachable(nil, "the instance metadata service is not ready (HTTP status %d)", code)
	default:
		return nil, problem.New(problem.ReasonInvalid, "the instance metadata service refuses %s (HTTP status %d)", path, code).
			WithFix("check that this machine runs in that cloud, and that the metadata service and what is asked of it are enabled for it")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return nil, unreachable(err, "the instance metadata service's answer broke off")
	}
	if len(body) > MaxAnswer {
		return nil, problem.New(problem.ReasonTooLarge, "the instance metadata service answers with more than %d bytes", MaxAnswer)
	}
	return body, nil
}

func unreachable(cause error, format string, args ...any) error {
	p := problem.New(problem.ReasonUnreachable, format, args...)
	p.Err = cause
	return p.WithFix("check that this machine runs in that cloud and that its metadata service is enabled; it is asked again")
}
