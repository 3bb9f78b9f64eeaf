package job

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

// TokenSource gets a job's token from its platform. Its errors never hold the token, nor the right to get one.
type TokenSource interface {
	// Token gets a token for an audience. A source whose token's audience is fixed gives that one.
	Token(ctx context.Context, audience string) (string, error)
	// Fixed reports whether it is the same token each time.
	Fixed() bool
}

// Limits of what a platform says.
const (
	maxToken      = 16 << 10
	maxAnswer     = 64 << 10
	tokenTimeout  = 15 * time.Second
	tokenAttempts = 4
	firstBackoff  = 250 * time.Millisecond
)

// Claims is what a token says, of which nothing is checked but that the token has the form of one. It is for people, and for not sending a
// token that was meant for somebody else.
type Claims map[string]any

// ReadClaims reads the claims of a token. Its error holds nothing of it.
func ReadClaims(token string) (Claims, error) {
	bad := func() error {
		return problem.New(problem.ReasonTokenInvalid, "what the platform gave is no ID token (three parts with dots between)").
			WithFix("check that the variable or file holds the ID token itself, and nothing besides")
	}
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return nil, bad()
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, bad()
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var c Claims
	if err := d.Decode(&c); err != nil || c == nil {
		return nil, bad()
	}
	return c, nil
}

// For reports whether a token's audience is that one and no other.
func (c Claims) For(audience string) bool {
	switch aud := c["aud"].(type) {
	case string:
		return aud == audience
	case []any:
		return len(aud) == 1 && aud[0] == audience
	}
	return false
}

// attester makes evidence of a platform's tokens: the evidence is the token.
type attester struct {
	platform *Platform
	audience string // instead of the one that the binding has; empty: that
}

// AudienceOf is the audience that a platform's token must have for a binding.
func (p *Platform) AudienceOf(b attest.Binding) string {
	if p.Audience == AudienceKey {
		return b.KeyAudience()
	}
	return b.EnvironmentAudience()
}

// Attest gets a token for the binding, and refuses to show one that was meant for somebody else.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	token, _, err := a.token(ctx, b)
	return []byte(token), err
}

func (a attester) token(ctx context.Context, b attest.Binding) (string, Claims, error) {
	audience := a.audience
	if audience == "" {
		audience = a.platform.AudienceOf(b)
	}
	token, err := a.platform.Token.Token(ctx, audience)
	if err != nil {
		return "", nil, err
	}
	claims, err := ReadClaims(token)
	if err != nil {
		return "", nil, err
	}
	if !claims.For(audience) {
		return "", claims, problem.New(problem.ReasonAudience, "the token that %s gave this job is for another audience than %s, so it is not shown to the server", a.platform.Title, audience).
			WithFix("have the job's token made for exactly that audience (`bailment ci audience` prints it), or give the one that the bundle expects with --audience")
	}
	return token, claims, nil
}

// requestSource asks the address that GitHub gives to a job (GitHub Docs, "OpenID Connect reference", and package @actions/core, getIDToken).
type requestSource struct {
	url    *url.URL
	bearer string
	client *http.Client
}

func newRequestSource(address, bearer string) (TokenSource, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, problem.New(problem.ReasonInvalid, "%s is not an address with https", githubURL).WithFix("leave the variable as the runner set it")
	}
	return &requestSource{url: u, bearer: bearer, client: &http.Client{
		// The platform's certificate is checked by the machine's roots, and the request goes by the runner's proxy if it has one.
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: tokenTimeout}).DialContext, TLSHandshakeTimeout: tokenTimeout, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       tokenTimeout,
	}}, nil
}

func (s *requestSource) Fixed() bool { return false }

func (s *requestSource) Token(ctx context.Context, audience string) (string, error) {
	wait := firstBackoff
	for attempt := 1; ; attempt++ {
		token, again, err := s.ask(ctx, audience)
		if err == nil || !again || attempt == tokenAttempts || !pause(ctx, wait) {
			return token, err
		}
		wait *= 2
	}
}

// ask asks once, and says whether asking again may help.
func (s *requestSource) ask(ctx context.Context, audience string) (token string, again bool, err error) {
	u := *s.url
	q := u.Query()
	q.Set("audience", audience)
	u.RawQuery = q.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", false, problem.New(problem.ReasonInternal, "making the request for a token")
	}
	r.Header.Set("Authorization", "Bearer "+s.bearer)
	r.Header.Set("Accept", "application/json")
	res, err := s.client.Do(r)
	if err != nil {
		return "", true, problem.New(problem.ReasonUnreachable, "asking %s for a token: %s", s.url.Host, without(err)).
			WithFix("check that the runner reaches that host, and GitHub's status")
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	defer clear(text)
	var answer struct {
		Value string `json:"value"`
	}
	switch {
	case err != nil:
		return "", true, problem.New(problem.ReasonUnreachable, "the token's answer was cut short")
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests:
		return "", true, problem.New(problem.ReasonUnreachable, "%s gives no token at the moment (%s)", s.url.Host, res.Status)
	case res.StatusCode != http.StatusOK:
		return "", false, problem.New(problem.ReasonNotProved, "%s gives this job no token (%s)", s.url.Host, res.Status).
			WithFix("check the job's `permissions: id-token: write`")
	case json.Unmarshal(text, &answer) != nil || answer.Value == "":
		return "", false, problem.New(problem.ReasonTokenInvalid, "the answer of %s holds no token", s.url.Host)
	}
	return answer.Value, false, nil
}

// without is an error's text without the address, whose query may be a right too.
func without(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err.Error()
	}
	return "it failed"
}

// commandSource runs the platform's own program, whose standard output is the token.
type commandSource struct {
	title   string
	command func(audience string) []string
}

func (commandSource) Fixed() bool { return false }

func (s commandSource) Token(ctx context.Context, audience string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	args := s.command(audience)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout = &limited{to: &out, left: maxAnswer}
	err := cmd.Run()
	defer clear(out.Bytes())
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", problem.New(problem.ReasonNotProved, "%s's program %s, which gets tokens, is not here", s.title, args[0]).
			WithFix("run it in the job itself, not in a container without that program, or hand the token over with --token-env or --token-file")
	case err != nil:
		// What it said may hold anything, and stays inside.
		return "", problem.New(problem.ReasonNotProved, "%s gave this job no token: `%s` failed", s.title, strings.Join(args[:len(args)-1], " ")).
			WithFix("run that command in the job to see what it says")
	}
	return strings.TrimSpace(out.String()), nil
}

// limited drops what is over a limit: no token is that long.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	l.to.Write(b[:n])
	return len(b), nil
}

// variableSource is a token that the platform put into the environment.
type variableSource struct{ value string }

func (variableSource) Fixed() bool { return true }

func (s variableSource) Token(context.Context, string) (string, error) {
	return strings.TrimSpace(s.value), nil
}

// fileSource is a token in a file, which the platform may replace (a projected service-account token is).
type fileSource struct{ path string }

// Fixed is true although the file may be replaced: from one replacement to the next it is.
func (fileSource) Fixed() bool { return true }

func (s fileSource) Token(context.Context, string) (string, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonNotProved, "reading the token").WithFix("check --token-file")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+2))
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonNotProved, "reading the token")
	}
	return strings.TrimSpace(string(text)), nil
}

// pause reports whether all of d passed.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
