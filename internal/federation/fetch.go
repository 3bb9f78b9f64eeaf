// Package federation fetches the trust bundles of other trust domains from their bundle endpoints (SPIFFE_Federation),
// and keeps them current.
//
// Guaranteed: a bundle is taken from an endpoint only if that proved what the relation asks: by an X.509-SVID of exactly the
// ID named, under the authorities that are known so far (https_spiffe), or by a certificate for the URL's host (https_web);
// redirects are not followed; a fetch is bounded in time and size, there is one at a time for a relation, and a few for all;
// what can't be fetched or taken changes nothing: the last good bundle stays. Not guaranteed: that the other trust domain
// tells the truth about itself, which is what it is trusted for, or that a withdrawn authority of it is heard of before the
// next fetch.
//
// Its place: a mechanism. What is known and what is taken is its Source's business, which package server makes of
// package control. go-spiffe checks the SVID: crypto/tls can't compare a name that is a URI.
package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
)

// Profiles of an endpoint (SPIFFE_Federation §5.2).
const (
	ProfileSPIFFE = "https_spiffe"
	ProfileWeb    = "https_web"
)

// Endpoint is where and how a bundle is fetched.
type Endpoint struct {
	TrustDomain string
	URL         string
	Profile     string
	ID          string              // https_spiffe: the SPIFFE ID that the endpoint must prove
	ServerName  string              // https_spiffe: the TLS server name to ask for
	Known       []byte              // https_spiffe: the trust domain's bundle as it is known
	Roots       []*x509.Certificate // https_web: who may vouch for the endpoint; none: the machine's own roots
}

// Bounds of one fetch.
const (
	fetchTimeout   = 10 * time.Second
	dialTimeout    = 5 * time.Second
	maxHeaderBytes = 16 << 10
)

// Fetch gets the document of an endpoint and reads it. Reasons: unreachable, not-authentic (the endpoint did not prove
// itself), too-large, foreign-bundle (it answered with something else than a bundle of the trust domain). The texts of
// errors hold nothing that the endpoint said.
func Fetch(ctx context.Context, e Endpoint) ([]byte, *spiffe.Bundle, error) {
	cfg, err := e.tls()
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSClientConfig: cfg, TLSHandshakeTimeout: dialTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes, DisableKeepAlives: true, DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL, nil)
	if err != nil {
		return nil, nil, problem.New(problem.ReasonInvalid, "the bundle endpoint's URL can't be asked")
	}
	req.Header.Set("Accept", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, e.failed(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, nil, problem.New(problem.ReasonForeignBundle, "the bundle endpoint of %s answered with status %d", e.TrustDomain, res.StatusCode)
	}
	doc, err := io.ReadAll(io.LimitReader(res.Body, spiffe.MaxBundle+1))
	if err != nil {
		return nil, nil, e.failed(ctx, err)
	}
	if len(doc) > spiffe.MaxBundle {
		return nil, nil, problem.New(problem.ReasonTooLarge, "the bundle of %s has more than %d bytes", e.TrustDomain, spiffe.MaxBundle)
	}
	b, err := spiffe.Parse(e.TrustDomain, doc)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.ReasonForeignBundle, "the bundle of %s", e.TrustDomain)
	}
	return doc, b, nil
}

// tls is how the endpoint must prove itself. There is no resumption, which would skip that.
func (e Endpoint) tls() (*tls.Config, error) {
	switch e.Profile {
	case ProfileSPIFFE:
		known, err := spiffe.Parse(e.TrustDomain, e.Known)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonForeignBundle, "the known bundle of %s", e.TrustDomain)
		}
		domain, err := spiffeid.TrustDomainFromString(e.TrustDomain)
		if err != nil {
			return nil, problem.New(problem.ReasonInvalid, "the name of the trust domain")
		}
		id, err := spiffeid.FromString(e.ID)
		if err != nil {
			return nil, problem.New(problem.ReasonInvalid, "the SPIFFE ID of the endpoint of %s", e.TrustDomain)
		}
		cfg := tlsconfig.TLSClientConfig(x509bundle.FromX509Authorities(domain, known.Authorities), tlsconfig.AuthorizeID(id))
		cfg.MinVersion, cfg.ServerName = tls.VersionTLS12, e.ServerName
		return cfg, nil
	case ProfileWeb:
		cfg := &tls.Config{MinVersion: tls.VersionTLS12}
		if len(e.Roots) > 0 {
			cfg.RootCAs = x509.NewCertPool()
			for _, c := range e.Roots {
				cfg.RootCAs.AddCert(c)
			}
		}
		return cfg, nil
	}
	return nil, problem.New(problem.ReasonUnsupported, "the endpoint of %s has an unknown profile", e.TrustDomain)
}

// failed says what went wrong in words of ours: an error of TLS may quote the certificate that was shown.
func (e Endpoint) failed(ctx context.Context, err error) error {
	var network *net.OpError
	var lookup *net.DNSError
	switch {
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		return problem.New(problem.ReasonUnreachable, "the bundle endpoint of %s didn't answer in time", e.TrustDomain)
	case errors.As(err, &lookup):
		return problem.New(problem.ReasonUnreachable, "the host of the bundle endpoint of %s is not found", e.TrustDomain)
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return problem.New(problem.ReasonUnreachable, "the bundle endpoint of %s can't be reached, or ended the connection", e.TrustDomain)
	}
	who := "a server of the host in its URL"
	if e.Profile == ProfileSPIFFE {
		who = e.ID
	}
	return problem.New(problem.ReasonNotAuthentic, "the bundle endpoint of %s did not prove that it is %s", e.TrustDomain, who).
		WithFix("compare the other trust domain's bundle out of band; if it is another one, have it approved in federation/")
}
