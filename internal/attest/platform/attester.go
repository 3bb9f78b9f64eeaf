package platform

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/problem"
)

// Source gets a token for an audience from the platform. It shows nothing of what it holds in its errors.
type Source func(ctx context.Context, audience string) ([]byte, error)

// getTime is how long a platform may take to give a token.
const getTime = 20 * time.Second

// attester makes evidence of a token.
type attester struct {
	name   string
	bound  Binding
	source Source
}

// NewAttester makes the machine's half of a method. A token that can't be good is not sent: it says what to configure instead.
func NewAttester(name string, bound Binding, source Source) attest.Attester {
	return attester{name, bound, source}
}

// Attest gets a token for this binding.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, a.name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, getTime)
	defer cancel()
	audience := a.bound.Audience(b)
	token, err := a.source(ctx, audience)
	if err != nil {
		return nil, err
	}
	defer clear(token)
	token = bytes.TrimSpace(token)
	claims, err := jwt.Unverified(token)
	if err != nil {
		return nil, err
	}
	// A token for somebody else could be used there by whoever sees it here.
	if err := jwt.CheckAudience(claims["aud"], audience); err != nil {
		return nil, problem.As(err).WithFix("have the platform make the token with the audience %s", audience)
	}
	return attest.EncodeUpTo(maxEvidence, evidence{string(token)})
}

// Given is a Source of a token that the platform handed over beforehand, for whatever audience. It refuses at once what is no token.
func Given(token []byte) (Source, error) {
	token = bytes.TrimSpace(token)
	if _, err := jwt.Unverified(token); err != nil {
		return nil, err
	}
	return func(context.Context, string) ([]byte, error) { return bytes.Clone(token), nil }, nil
}

// Address reads the URL of a platform's service: https, or http to the addresses that are the machine's own or its link's (loopback,
// 169.254.0.0/16) and to the names given. It is the agent's configuration, so the error may be shown; it shows nothing of it all the same.
func Address(text []byte, names ...string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(string(text)))
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return nil, problem.New(problem.ReasonInvalid, "the platform's address is not a URL without user and fragment")
	}
	switch ip := net.ParseIP(u.Hostname()); {
	case u.Scheme == "https":
		return u, nil
	case u.Scheme != "http":
	case ip != nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast()):
		return u, nil
	case ip == nil:
		for _, n := range names {
			if u.Hostname() == n {
				return u, nil
			}
		}
	}
	return nil, problem.New(problem.ReasonInvalid, "the platform's address must begin with https://: what it gives is a credential")
}

// Get asks a platform over HTTP, which answers 200 and a body of at most 64 KiB. It follows no redirect: the request carries a credential.
// proxy may be nil.
func Get(ctx context.Context, where *url.URL, header http.Header, proxy func(*http.Request) (*url.URL, error)) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, nil, problem.New(problem.ReasonInvalid, "the platform's address can't be asked")
	}
	request.Header = header
	client := http.Client{
		Transport:     &http.Transport{Proxy: proxy, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 32 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err // without the URL, whose query may be a capability
		}
		return nil, nil, problem.Wrap(err, problem.ReasonUnreachable, "ask the platform for a token")
	}
	defer response.Body.Close()
	const most = 64 << 10
	body, err := io.ReadAll(io.LimitReader(response.Body, most+1))
	switch {
	case err != nil:
		return nil, nil, problem.Wrap(err, problem.ReasonUnreachable, "read the platform's answer")
	case response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests:
		return nil, nil, problem.New(problem.ReasonUnreachable, "the platform answered with status %d", response.StatusCode)
	case response.StatusCode != http.StatusOK:
		return nil, nil, problem.New(problem.ReasonNotProved, "the platform gives no token: status %d", response.StatusCode).
			WithFix("see in the method's README what the platform must allow first")
	case len(body) > most:
		return nil, nil, problem.New(problem.ReasonTooLarge, "the platform's answer has more than %d bytes", most)
	}
	return body, response.Header, nil
}

// Command is a Source that runs a program of the platform, without a shell; arguments may depend on the audience. What it prints to
// standard output is the token. What it prints to standard error is dropped: it may hold one.
func Command(program string, arguments func(audience string) []string) (Source, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "the program that gives the platform's tokens is not there").
			WithFix("run this inside of a job, or name the program in the configuration")
	}
	return func(ctx context.Context, audience string) ([]byte, error) {
		c := exec.CommandContext(ctx, path, arguments(audience)...)
		c.WaitDelay = time.Second
		out := limited{most: jwt.MaxToken + 1}
		c.Stdout = &out
		if err := c.Run(); err != nil {
			clear(out.b)
			return nil, problem.New(problem.ReasonNotProved, "the program that gives the platform's tokens failed or took too long").
				WithFix("run it by hand in a job to see why: %s", program)
		}
		return out.b, nil
	}, nil
}

// limited keeps the first bytes that are written to it, and lets the rest go.
type limited struct {
	b    []byte
	most int
}

func (l *limited) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), l.most-len(l.b))]...)
	return len(p), nil
}

// Require refuses a token that lacks one of the claims without which its identity would be none.
func Require(claims map[string]any, names ...string) error {
	for _, name := range names {
		if text, ok := claims[name].(string); !ok || text == "" {
			return problem.New(problem.ReasonTokenInvalid, "the token lacks %q, or it is not a text", name)
		}
	}
	return nil
}

// Contradicts is the refusal of a token whose claims say different things.
func Contradicts(what, with string) error {
	return problem.New(problem.ReasonTokenInvalid, "the token's %s contradicts its %s", what, with)
}
