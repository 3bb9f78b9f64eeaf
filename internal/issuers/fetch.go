package issuers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/authority"
)

// Limits on what an issuer may answer.
const (
	maxDiscovery = 64 << 10
	maxHeaders   = 32 << 10
	maxURL       = 2048
)

// wellKnown is where OpenID Connect Discovery 1.0 §4 has an issuer's document: behind the whole issuer, its path included.
const wellKnown = "/.well-known/openid-configuration"

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// fetch asks an issuer for its keys, and says how long they may be kept.
func fetch(ctx context.Context, dial dialer, a authority.Authority) (*jose.JSONWebKeySet, time.Duration, error) {
	client := clientFor(dial, a)
	where := a.KeysURL
	if where == "" {
		var err error
		if where, err = discover(ctx, client, a.Issuer); err != nil {
			return nil, 0, fmt.Errorf("the issuer's discovery document: %w", err)
		}
	}
	body, header, err := get(ctx, client, where, authority.MaxKeySet)
	if err != nil {
		return nil, 0, fmt.Errorf("the issuer's keys: %w", err)
	}
	set, err := authority.ParseKeys(body)
	if err != nil {
		return nil, 0, fmt.Errorf("the issuer's keys: %w", err)
	}
	return set, keep(header), nil
}

// clientFor makes a client for one fetch. It has no proxy (HTTPS_PROXY would let the environment choose who is asked), follows no redirect
// and keeps no connection; HTTP/1.1 is enough for two requests in an hour.
func clientFor(dial dialer, a authority.Authority) *http.Client {
	var roots *x509.CertPool // nil: the system's
	if len(a.Certificates) > 0 {
		roots = x509.NewCertPool()
		for _, c := range a.Certificates {
			roots.AddCert(c)
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            dial,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeaders,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// discover gives where an issuer says that its keys are (RFC 8414 §3.3: "issuer" MUST be identical, or the document is not to be used).
func discover(ctx context.Context, client *http.Client, issuer string) (string, error) {
	if err := checkURL(issuer); err != nil {
		return "", err
	}
	body, _, err := get(ctx, client, strings.TrimSuffix(issuer, "/")+wellKnown, maxDiscovery)
	if err != nil {
		return "", err
	}
	return keysOf(body, issuer)
}

// keysOf reads a discovery document of that issuer.
func keysOf(document []byte, issuer string) (string, error) {
	// A map, since a struct's fields would be filled from names in any letter case.
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return "", errors.New("it is not a JSON object")
	}
	var said, where string
	if json.Unmarshal(members["issuer"], &said) != nil || json.Unmarshal(members["jwks_uri"], &where) != nil {
		return "", errors.New(`it lacks "issuer" or "jwks_uri"`)
	}
	if said != issuer {
		return "", errors.New("it is of another issuer")
	}
	// The host may be another one (Google's is): the document is the issuer's own word.
	return where, checkURL(where)
}

// checkURL refuses what is not plainly an https URL.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxURL || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return errors.New("the URL is not an https one without user and fragment")
	}
	return nil
}

func get(ctx context.Context, client *http.Client, where string, most int64) ([]byte, http.Header, error) {
	if err := checkURL(where); err != nil {
		return nil, nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, nil, errors.New("the URL is not one that can be asked")
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the answer is status %d, not 200", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, most+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(body)) > most {
		return nil, nil, fmt.Errorf("the answer has more than %d bytes", most)
	}
	return body, response.Header, nil
}

// keep is how long an answer is good by its Cache-Control (RFC 9111 §5.2.2), within our own bounds.
func keep(header http.Header) time.Duration {
	for _, directive := range strings.Split(header.Get("Cache-Control"), ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(key) {
		case "no-store", "no-cache":
			return shortest
		case "max-age":
			seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
			if err != nil {
				return usual
			}
			return min(max(time.Duration(seconds)*time.Second, shortest), longest)
		}
	}
	return usual
}
