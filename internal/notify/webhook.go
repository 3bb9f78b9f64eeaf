package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"

	"github.com/bailment/bailment/internal/policy"
)

// What can go wrong with a webhook, in words of ours: errors of net/http quote the URL, and those of TLS the certificate.
var (
	errPrivate     = errors.New("its address is not a public one, and not among notify.allow")
	errUnreachable = errors.New("it can't be reached, or didn't answer in time")
	errNotFound    = errors.New("its host is not found")
	errCertificate = errors.New("it did not prove to be the host in its URL")
)

// permanent is an error that another try won't mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Bounds of an answer. It is not looked at, but for its status.
const (
	maxHeaderBytes = 16 << 10
	maxBody        = 16 << 10
)

// post tells a webhook.
func (n *Notifier) post(ctx context.Context, t policy.Notify, m *Message) error {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(t.Roots) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		for _, c := range t.Roots {
			cfg.RootCAs.AddCert(c)
		}
	}
	// The address is judged when it is dialled: what a name meant when somebody looked at it before says nothing.
	dialer := &net.Dialer{Timeout: n.cfg.Timeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil || !permitted(at.Addr(), n.cfg.Allow) {
			return errPrivate
		}
		return nil
	}}
	// No proxy of the process's environment: it would be asked for addresses that are judged nowhere.
	transport := &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: cfg, TLSHandshakeTimeout: n.cfg.Timeout, MaxResponseHeaderBytes: maxHeaderBytes, DisableKeepAlives: true, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, bytes.NewReader(m.JSON()))
	if err != nil {
		return permanent{errors.New("its URL can't be asked")}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "bailment")
	res, err := client.Do(req)
	if err != nil {
		return webhookError(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxBody)) // it is not wanted, and some receivers complain when nobody reads
	switch c := res.StatusCode; {
	case c >= 200 && c < 300:
		return nil
	case c == http.StatusRequestTimeout, c == http.StatusTooEarly, c == http.StatusTooManyRequests, c >= 500:
		return fmt.Errorf("it answered with status %d", c)
	default: // a redirection, too: who follows it tells whom nobody approved
		return permanent{fmt.Errorf("it answered with status %d", c)}
	}
}

func webhookError(err error) error {
	var (
		lookup *net.DNSError
		cert   *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, errPrivate):
		return permanent{errPrivate}
	case errors.As(err, &cert):
		return errCertificate
	case errors.As(err, &lookup):
		return errNotFound
	}
	return errUnreachable
}

// special are networks of global scope by their form that are none for a webhook (IANA's special-purpose registries): what leads inside of
// a site, or into IPv4 by another door.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("3fff::/20"),
}

// global is what IPv6 has of addresses that are routed everywhere (RFC 4291 §2.4).
var global = netip.MustParsePrefix("2000::/3")

// permitted says whether a webhook may be at an address: a public one, or one of a network that the server's configuration names.
func permitted(a netip.Addr, allow []netip.Prefix) bool {
	a = a.Unmap().WithZone("")
	for _, p := range allow {
		if p.Contains(a) {
			return true
		}
	}
	if !a.IsValid() || a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || (a.Is6() && !global.Contains(a)) {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
