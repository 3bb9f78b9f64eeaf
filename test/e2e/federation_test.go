package e2e

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
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
	"github.com/bailment/bailment/test/site/sitetest"
)

// realm is an environment with its server, and a machine with its agent, all processes of their own. This test is a workload there.
type realm struct {
	*sitetest.Site
	admin *client.Client
	agent *site.Agent
	home  string // of alice's command line
}

func newRealm(t *testing.T, name string) *realm {
	t.Helper()
	s := newSite(t, site.Options{Name: name})
	s.Start()
	s.Connect()
	r := &realm{Site: s, admin: s.Dial(s.Login()), home: t.TempDir()}
	r.agent = s.Agent(r.admin, "web-1")
	key := filepath.Join(r.home, "key")
	s.Check(s.KeyFile("alice", key))
	r.run("login", "alice", "-i", key)
	return r
}

func (r *realm) run(args ...string) {
	r.T.Helper()
	if out := cli(r.T, r.Site.Site, r.home, "", args...); out.exit != 0 {
		r.T.Fatalf("%q ended with %d\n%s", args, out.exit, out.stderr)
	}
}

func (r *realm) app() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + r.Name + "/workload/api")
}

func (r *realm) options() spiffe.ClientOption { return spiffe.WithAddr("unix://" + r.agent.SPIFFE) }

func (r *realm) source() *spiffe.X509Source {
	r.T.Helper()
	x, err := spiffe.NewX509Source(r.T.Context(), spiffe.WithClientOptions(r.options()))
	r.Check(err)
	r.T.Cleanup(func() { _ = x.Close() })
	return x
}

// bundleOf is the environment's trust bundle, as it serves it to everybody.
func bundleOf(r *sitetest.Site) []byte {
	r.T.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(r.Trust.CA)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: r.Name, MinVersion: tls.VersionTLS13}}}
	defer c.CloseIdleConnections()
	resp, err := c.Get("https://" + r.Addr + "/spiffe/bundle")
	r.Check(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r.Check(err)
	return bytes.TrimSpace(b)
}

const (
	anyNode  = "nodes: ['/node/join-token/*']}"
	relation = "federation/other.yaml"
)

// federate has the environment's workload know another environment, by a bundle that came another way.
func (r *realm) federate(other *realm, pinned []byte) {
	r.T.Helper()
	r.Change(r.admin, func(files policy.Files) {
		files[relation] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Federation\nmetadata: {name: other}\nspec:\n  trustDomain: %s\n  endpoint: {url: 'https://%s/spiffe/bundle', profile: https_spiffe, id: 'spiffe://%[1]s/server/s1'}\n  bundle: '%[3]s'\n", other.Name, other.Addr, pinned)
		files["identities/all.yaml"] = bytes.Replace(files["identities/all.yaml"], []byte(anyNode), []byte(strings.TrimSuffix(anyNode, "}")+", federatesWith: [other]}"), 1)
	})
}

// part takes the relation out of the bundle again.
func (r *realm) part() {
	r.T.Helper()
	r.Change(r.admin, func(files policy.Files) {
		delete(files, relation)
		files["identities/all.yaml"] = bytes.Replace(files["identities/all.yaml"], []byte(", federatesWith: [other]"), nil, 1)
	})
}

// handshake authenticates both ends to each other over loopback.
func handshake(server, client *tls.Config) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			t := tls.Server(c, server)
			_, err = t.Write([]byte("x"))
			_ = t.Close()
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
		_ = c.Close()
	}
	return errors.Join(err, <-done)
}

func (r *realm) eventually(what string, ok func() bool) {
	r.T.Helper()
	end := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-end:
			r.T.Fatalf("waited in vain for %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// knows is how many authorities of another environment a workload here believes.
func (r *realm) knows(x *spiffe.X509Source, other *realm) int {
	b, err := x.GetX509BundleForTrustDomain(other.app().TrustDomain())
	if err != nil {
		return 0
	}
	return len(b.X509Authorities())
}

// Workloads of two environments authenticate each other by what the common client library gets from the agents: while the keys of both
// are rotated, while one server is away and the other is started again, and no longer than the bundle says.
func TestFederation(t *testing.T) {
	east, west := newRealm(t, "east.example"), newRealm(t, "west.example")
	se, sw := east.source(), west.source()
	server := tlsconfig.MTLSServerConfig(sw, sw, tlsconfig.AuthorizeID(east.app()))
	client := tlsconfig.MTLSClientConfig(se, se, tlsconfig.AuthorizeID(west.app()))
	if handshake(server, client) == nil {
		t.Fatal("strangers authenticated each other")
	}
	// What is pinned is old by the time that it is approved.
	pinned := bundleOf(west.Site)
	west.run("key", "rotate", "ca")
	east.federate(west, pinned)
	west.federate(east, bundleOf(east.Site))
	east.eventually("the two to know each other", func() bool { return handshake(server, client) == nil })
	east.eventually("the bundle that is served", func() bool { return east.knows(se, west) == 2 })

	stop := handshakes(t, server, client)
	before, err := se.GetX509SVID()
	east.Check(err)
	east.run("key", "rotate", "ca")
	east.Change(east.admin, func(files policy.Files) { // which has every SVID issued anew
		files["secrets/all.yaml"] = append(bytes.Clone(files["secrets/all.yaml"]), "# once more\n"...)
	})
	east.eventually("an SVID of the new CA", func() bool {
		v, err := se.GetX509SVID()
		return err == nil && !v.Certificates[0].Equal(before.Certificates[0]) && strings.HasSuffix(v.Certificates[0].Issuer.CommonName, "CA 2")
	})
	west.Kill()
	east.Stop()
	east.Start()
	east.Check(east.agent.Connected(t.Context()))
	if n := east.knows(se, west); n != 2 {
		t.Errorf("after a restart, %d authorities of one that can't be asked are believed", n)
	}
	fresh := east.source()
	if n := east.knows(fresh, west); n != 2 {
		t.Errorf("a new workload believes %d authorities", n)
	}
	west.Start()
	west.Check(west.agent.Connected(t.Context()))
	stop()

	east.admin, west.admin = east.Dial(east.Login()), west.Dial(west.Login())
	east.part()
	east.eventually("a refusal", func() bool { return handshake(server, client) != nil })
	if n := east.knows(se, west); n != 0 {
		t.Errorf("%d authorities are believed of an environment that is none of the bundle's", n)
	}
	healthy(t, east.Site.Site)
	healthy(t, west.Site.Site)
}

// handshakes makes one after the other until it is stopped, and never fewer than enough. None may fail.
func handshakes(t *testing.T, server, client *tls.Config) (stop func()) {
	t.Helper()
	const enough = 50 // of which most come while things change, on any host
	var n atomic.Int64
	failed := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(failed)
		for ctx.Err() == nil || n.Load() < enough {
			if err := handshake(server, client); err != nil {
				failed <- err
				return
			}
			n.Add(1)
		}
	}()
	t.Cleanup(cancel)
	return func() {
		t.Helper()
		cancel()
		if err := <-failed; err != nil {
			t.Errorf("handshake %d: %v", n.Load()+1, err)
		}
		t.Logf("%d handshakes", n.Load())
	}
}

// Tokens of before and after a rotation of their keys are valid to whoever asks the agent, or has the keys from it.
func TestTokens(t *testing.T) {
	r := newRealm(t, "east.example")
	jwts, err := spiffe.NewJWTSource(t.Context(), spiffe.WithClientOptions(r.options()))
	r.Check(err)
	t.Cleanup(func() { _ = jwts.Close() })
	var tokens []*jwtsvid.SVID
	keys := map[string]bool{}
	for i := range 3 {
		if i > 0 {
			r.run("key", "rotate", "jwt")
		}
		v, err := jwts.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: fmt.Sprintf("audience-%d", i)})
		r.Check(err)
		if v.ID != r.app() {
			t.Errorf("%s", v.ID)
		}
		tokens = append(tokens, v)
		header, _, _ := strings.Cut(v.Marshal(), ".")
		keys[header] = true
		for j, old := range tokens {
			audience := []string{fmt.Sprintf("audience-%d", j)}
			r.eventually("the keys", func() bool {
				_, err := jwtsvid.ParseAndValidate(old.Marshal(), jwts, audience)
				return err == nil
			})
			if _, err := jwtsvid.ParseAndValidate(old.Marshal(), jwts, []string{"another"}); err == nil {
				t.Error("a token is valid to another audience")
			}
		}
	}
	if len(keys) != 3 {
		t.Errorf("three keys in a row signed with %d", len(keys))
	}
	healthy(t, r.Site.Site)
}
