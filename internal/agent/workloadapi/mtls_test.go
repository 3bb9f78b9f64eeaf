package workloadapi_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/bailment/bailment/internal/agent/workloadapi"
)

// sourceOf is the common client's source of SVIDs and bundles.
func sourceOf(t testing.TB, h *house) *spiffe.X509Source {
	t.Helper()
	s, err := spiffe.NewX509Source(t.Context(), spiffe.WithClientOptions(spiffe.WithAddr(h.addr())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// echo serves TLS and repeats lines, until the test ends.
func echo(t *testing.T, source interface {
	x509svid.Source
	x509bundle.Source
}, peer spiffeid.ID,
) net.Addr {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(peer)))
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return l.Addr()
}

// line sends a line and reads it again.
func line(c net.Conn, r *bufio.Reader, text string) error {
	if _, err := fmt.Fprintln(c, text); err != nil {
		return err
	}
	got, err := r.ReadString('\n')
	if err == nil && got != text+"\n" {
		err = fmt.Errorf("%q came back", got)
	}
	return err
}

// Workloads of two environments that know each other's bundles authenticate each other; SVIDs and an authority are rotated
// meanwhile, and no handshake fails, nor an open connection.
func TestRotationUnderLoad(t *testing.T) {
	a, b := newHouse(t, nil), newHouse(t, nil)
	b.set(func() {
		b.name = "other.example"
	})
	other := newEnvironment(t, "other.example")
	b.set(func() { b.ca, b.caKey, b.roots = other.ca, other.caKey, other.roots })
	for _, h := range []*house{a, b} {
		h.set(func() { h.ttl = 3 * time.Second })
	}
	a.set(func() { a.foreign = []workloadapi.Bundle{{TrustDomain: b.name, X509: b.roots}} })
	b.set(func() { b.foreign = []workloadapi.Bundle{{TrustDomain: a.name, X509: a.roots}} })
	a.RefreshBundles()
	b.RefreshBundles()
	for _, h := range []*house{a, b} {
		c := h.client(t)
		eventually(t, "the other's bundle", func() bool {
			x, err := c.FetchX509Bundles(t.Context())
			return err == nil && x.Len() == 2 && x.Bundles()[0].TrustDomain() != x.Bundles()[1].TrustDomain()
		})
	}
	sa, sb := sourceOf(t, a), sourceOf(t, b)
	ida, idb := spiffeid.RequireFromString("spiffe://test.example/workload/app"), spiffeid.RequireFromString("spiffe://other.example/workload/app")
	addr := echo(t, sb, ida)
	config := tlsconfig.MTLSClientConfig(sa, sa, tlsconfig.AuthorizeID(idb))
	long, err := tls.Dial("tcp", addr.String(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	lines := bufio.NewReader(long)
	first := long.ConnectionState().PeerCertificates[0]

	// An authority is added before anything is signed by it.
	next := newEnvironment(t, "test.example")
	a.set(func() { a.roots = append(a.roots, next.ca.Raw) })
	b.set(func() { b.foreign = []workloadapi.Bundle{{TrustDomain: a.name, X509: a.roots}} })
	a.RefreshBundles()
	b.RefreshBundles()
	eventually(t, "the next authority", func() bool {
		x, err := sb.GetX509BundleForTrustDomain(ida.TrustDomain())
		return err == nil && x.HasX509Authority(next.ca)
	})
	a.set(func() { a.ca, a.caKey = next.ca, next.caKey })
	a.Look()

	var handshakes atomic.Int64
	serials := make(map[string]bool)
	end := time.Now().Add(5 * time.Second)
	for time.Now().Before(end) {
		c, err := tls.Dial("tcp", addr.String(), config)
		if err != nil {
			t.Fatalf("handshake %d: %v", handshakes.Load(), err)
		}
		if err := line(c, bufio.NewReader(c), "hello"); err != nil {
			t.Fatalf("handshake %d: %v", handshakes.Load(), err)
		}
		serials[c.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		c.Close()
		if handshakes.Add(1)%20 == 0 {
			if err := line(long, lines, "still here"); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d handshakes over %d SVIDs of the server", handshakes.Load(), len(serials))
	if len(serials) < 3 || !time.Now().After(first.NotAfter) {
		t.Errorf("%d SVIDs: there was no rotation", len(serials))
	}
	v, err := sa.GetX509SVID()
	if err != nil || v.Certificates[0].CheckSignatureFrom(next.ca) != nil {
		t.Errorf("the next authority signs nothing: %v", err)
	}
	// Who is not the one that is expected is refused.
	_, err = tls.Dial("tcp", addr.String(), tlsconfig.MTLSClientConfig(sa, sa, tlsconfig.AuthorizeID(ida)))
	if err == nil {
		t.Error("another identity than the expected one was accepted")
	}
}
