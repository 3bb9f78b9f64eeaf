package server_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/ceremony"
	ours "github.com/bailment/bailment/internal/federation"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/server/servertest"
)

// with adds files to the default bundle.
func with(extra policy.Files) func(string, servertest.People) policy.Files {
	return func(name string, p servertest.People) policy.Files {
		files := servertest.Bundle(name, p)
		for path, data := range extra {
			files[path] = data
		}
		return files
	}
}

func environmentOf(name, spiffe string) []byte {
	return fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: %s}\nspec:\n  class: development\n  approvals: {required: 0}\n  spiffe: %s\n", name, spiffe)
}

// Anybody gets the documents that tell whom to trust: go-spiffe's bundle endpoint client by https_spiffe, and whoever knows
// OpenID Connect.
func TestDocumentsForOthers(t *testing.T) {
	const name = "localhost" // so that the URL's host is the name to ask for
	var logged bytes.Buffer
	h := servertest.Start(t, servertest.Options{Name: name, Logger: slog.New(slog.NewTextHandler(&locked{w: &logged}, &slog.HandlerOptions{Level: slog.LevelDebug})), Files: with(policy.Files{"environment.yaml": environmentOf(name, `{refreshHint: 2m, jwt: {issuer: "https://oidc.example/e"}}`)})})
	app := h.App("web-1")
	issued, err := app.Spiffe.IssueJWT(t.Context(), &pb.IssueJWTRequest{Audience: []string{"sts.example"}})
	if err != nil {
		t.Fatal(err)
	}
	domain := spiffeid.RequireTrustDomainFromString(name)
	known := spiffebundle.FromX509Authorities(domain, h.Env().Certificates()[:1])
	_, port, err := net.SplitHostPort(h.Server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + net.JoinHostPort(name, port)
	fetched, err := federation.FetchBundle(t.Context(), domain, url+"/spiffe/bundle", federation.WithSPIFFEAuth(known, spiffeid.RequireFromString("spiffe://localhost/server/test")))
	if err != nil {
		t.Fatal(err)
	}
	if hint, ok := fetched.RefreshHint(); !ok || hint != 2*time.Minute {
		t.Fatalf("refresh hint %s", hint)
	}
	if _, ok := fetched.SequenceNumber(); !ok || len(fetched.X509Authorities()) != 1 {
		t.Fatal("no sequence number, or not one authority")
	}
	if _, err := jwtsvid.ParseAndValidate(issued.Token, fetched, []string{"sts.example"}); err != nil {
		t.Fatal(err)
	}
	// The endpoint is not just anybody of the trust domain.
	if _, err := federation.FetchBundle(t.Context(), domain, url+"/spiffe/bundle", federation.WithSPIFFEAuth(known, spiffeid.RequireFromString("spiffe://localhost/server/other"))); err == nil {
		t.Fatal("another ID was taken")
	}

	c := h.Client(nil, false)
	get := func(path, tag string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tag != "" {
			req.Header.Set("If-None-Match", tag)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, body
	}
	res, body := get("/.well-known/openid-configuration", "")
	var discovery struct {
		Issuer     string   `json:"issuer"`
		Keys       string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := json.Unmarshal(body, &discovery); err != nil || discovery.Issuer != "https://oidc.example/e" || discovery.Keys != "https://oidc.example/e/keys" || discovery.Algorithms[0] != "ES256" {
		t.Fatalf("%v %s", err, body)
	}
	if cc := res.Header.Get("Cache-Control"); cc != "public, max-age=60" || res.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("headers %v", res.Header)
	}
	if again, body := get("/.well-known/openid-configuration", res.Header.Get("ETag")); again.StatusCode != http.StatusNotModified || len(body) != 0 {
		t.Fatalf("with its tag: %d %s", again.StatusCode, body)
	}
	_, body = get(strings.TrimPrefix(discovery.Keys, discovery.Issuer), "")
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(body, &keys); err != nil {
		t.Fatal(err)
	}
	tok, err := jwt.ParseSigned(issued.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := tok.Claims(keys, &claims); err != nil {
		t.Fatal(err)
	}
	if err := claims.Validate(jwt.Expected{Issuer: discovery.Issuer, AnyAudience: jwt.Audience{"sts.example"}, Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if claims.Subject != "spiffe://localhost/workload/app" {
		t.Fatal(claims.Subject)
	}
	// The token is a secret: a refusal that quotes it doesn't reach the log, and its entry hasn't got it.
	if _, err := app.Spiffe.IssueJWT(t.Context(), &pb.IssueJWTRequest{Audience: []string{issued.Token}}); servertest.Reason(err) != "invalid" {
		t.Fatal(err)
	}
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	if signature := issued.Token[strings.LastIndexByte(issued.Token, '.')+1:]; bytes.Contains(logged.Bytes(), []byte(signature)) {
		t.Fatal("the token was logged")
	}
	h.Begin()
	// Nothing is there to post to, and an environment without an issuer has no discovery document.
	if res, err := c.Post(h.URL()+"/spiffe/bundle", "application/json", strings.NewReader("{}")); err != nil || res.StatusCode != http.StatusNotFound {
		t.Fatal(res.StatusCode, err)
	} else {
		_ = res.Body.Close()
	}
	plain := servertest.Start(t, servertest.Options{})
	c, h = plain.Client(nil, false), plain
	if res, _ := get("/.well-known/openid-configuration", ""); res.StatusCode != http.StatusNotFound {
		t.Fatalf("without an issuer: %d", res.StatusCode)
	}
	if res, body := get("/keys", ""); res.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != `{"keys":[]}` {
		t.Fatalf("without a token so far: %d %s", res.StatusCode, body)
	}
}

// locked is a writer for several.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// side is a workload of one environment, with the bundles that it was told.
type side struct {
	svid    *x509svid.SVID
	bundles *spiffebundle.Set
}

func sideOf(t *testing.T, h *servertest.House, s *servertest.Session) side {
	t.Helper()
	var certs []*x509.Certificate
	for _, der := range s.Cert.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	x := side{svid: &x509svid.SVID{ID: spiffeid.RequireFromString(s.Identity), Certificates: certs, PrivateKey: s.Cert.PrivateKey.(crypto.Signer)}, bundles: spiffebundle.NewSet()}
	r, err := s.Spiffe.GetTrustBundles(t.Context(), &pb.GetTrustBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	add := func(domain string, doc []byte) {
		b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(domain), doc)
		if err != nil {
			t.Fatal(err)
		}
		x.bundles.Add(b)
	}
	add(h.Name, r.Own)
	for _, f := range r.Federated {
		add(f.TrustDomain, f.Bundle)
	}
	return x
}

// handshake has two workloads prove themselves to each other by mTLS.
func handshake(t *testing.T, server, client side) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	_ = a.SetDeadline(deadline) // a pipe has deadlines
	_ = b.SetDeadline(deadline)
	s := tls.Server(a, tlsconfig.MTLSServerConfig(server.svid, server.bundles, tlsconfig.AuthorizeID(client.svid.ID)))
	c := tls.Client(b, tlsconfig.MTLSClientConfig(client.svid, client.bundles, tlsconfig.AuthorizeID(server.svid.ID)))
	var wg sync.WaitGroup
	wg.Go(func() {
		if serverErr = s.HandshakeContext(t.Context()); serverErr == nil {
			_, serverErr = s.Write([]byte{1})
		}
		_ = a.Close()
	})
	wg.Go(func() {
		if clientErr = c.HandshakeContext(t.Context()); clientErr == nil {
			_, clientErr = io.ReadFull(c, make([]byte, 1))
		}
		_ = b.Close()
	})
	wg.Wait()
	return serverErr, clientErr
}

// relation is a federation with another house, and a workload that uses it.
func relation(name, url, doc string) policy.Files {
	return policy.Files{
		"federation/" + name + ".yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Federation\nmetadata: {name: %s}\nspec:\n  trustDomain: %s.example\n  endpoint: {url: %q, profile: https_spiffe, id: \"spiffe://%s.example/server/test\"}\n  bundle: |\n    %s\n",
			name, name, url+"/spiffe/bundle", name, strings.TrimSpace(doc)),
		"identities/fed.yaml": fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: fed}\nspec: {method: workload, path: /workload/fed, nodes: [/node/join-token/*], federatesWith: [%s]}\n", name),
	}
}

// Two environments federate through their bundle endpoints, and their workloads authenticate each other; also after one has rotated its CA
// and taken the old one out.
func TestFederation(t *testing.T) {
	east := servertest.Start(t, servertest.Options{Name: "east.example"})
	doc, err := east.Env().TrustBundle()
	if err != nil {
		t.Fatal(err)
	}
	west := servertest.Start(t, servertest.Options{Name: "west.example", Files: with(relation("east", east.URL(), string(doc)))})
	if doc, err = west.Env().TrustBundle(); err != nil {
		t.Fatal(err)
	}
	bring(t, east, relation("west", west.URL(), string(doc)))

	alice := east.Login("alice")
	eastNode, westNode := east.Node("e-1"), west.Node("w-1")
	workload := func(h *servertest.House, node *servertest.Session, want string) *servertest.Session {
		t.Helper()
		s, err := h.Workload(node, want, map[string]any{"unix": map[string]any{"uid": float64(1000)}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	meet := func(what string, a, b side) {
		t.Helper()
		for _, p := range [][2]side{{a, b}, {b, a}} {
			if serverErr, clientErr := handshake(t, p[0], p[1]); serverErr != nil || clientErr != nil {
				t.Fatalf("%s: %v, %v", what, serverErr, clientErr)
			}
		}
	}
	fedWest := sideOf(t, west, workload(west, westNode, "/workload/fed"))
	fedEast := sideOf(t, east, workload(east, eastNode, "/workload/fed"))
	meet("as pinned", fedEast, fedWest)
	if _, clientErr := handshake(t, fedEast, sideOf(t, west, workload(west, westNode, "/workload/app"))); clientErr == nil {
		t.Fatal("who federates with nobody takes a foreign workload")
	}

	// East rotates: west hears of it through the endpoint, told by its own control index.
	watch, err := westNode.Watch.Watch(t.Context(), &pb.WatchRequest{Since: west.Env().State().Control})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Close() }()
	if _, err := alice.Key.RotateKey(t.Context(), &pb.RotateKeyRequest{Kind: "ca"}); err != nil {
		t.Fatal(err)
	}
	renewed := sideOf(t, east, workload(east, eastNode, "/workload/fed"))
	meet("the new SVID, and the old bundle", renewed, fedWest)
	refresh(t, west)
	told := sideOf(t, west, workload(west, westNode, "/workload/fed"))
	b, err := told.bundles.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("east.example"))
	if err != nil || len(b.X509Authorities()) != 2 {
		t.Fatalf("west knows %v (%v)", b, err)
	}
	for watch.Receive() {
		if watch.Msg().Control >= west.Env().State().Control {
			break
		}
	}
	if watch.Err() != nil {
		t.Fatal(watch.Err())
	}
	meet("the old SVID, and the new bundle", fedEast, told)
	meet("both new", renewed, told)

	// The first CA of east is in wrong hands.
	if _, err := alice.Spiffe.WithdrawKey(t.Context(), &pb.WithdrawKeyRequest{Key: "ca/1", Compromised: true, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	home := sideOf(t, east, workload(east, eastNode, "/workload/fed"))
	if _, clientErr := handshake(t, fedEast, home); clientErr == nil {
		t.Fatal("what the withdrawn CA signed is taken at home")
	}
	meet("after the withdrawal", home, told)
}

// refresh fetches what a relation's endpoint says now, by the functions that the server's loop uses, without its patience.
func refresh(t *testing.T, h *servertest.House) {
	t.Helper()
	all, err := h.Env().Relations(t.Context())
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	for _, r := range all {
		doc, _, err := ours.Fetch(t.Context(), ours.Endpoint{
			TrustDomain: r.TrustDomain, URL: r.URL, Profile: r.Profile, ID: r.EndpointID, ServerName: r.ServerName, Known: r.Document, Roots: r.Roots,
		})
		if err != nil {
			t.Fatal(err)
		}
		if took, err := h.Env().Refreshed(t.Context(), r.Name, r.Pin, doc); err != nil || !took {
			t.Fatal(took, err)
		}
	}
}

// bring brings files into force, as alice.
func bring(t *testing.T, h *servertest.House, extra policy.Files) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	alice := h.Login("alice")
	now, err := alice.Change.GetBundle(t.Context(), &pb.GetBundleRequest{})
	must(err)
	base, err := policy.ParseManifest([]byte(now.Manifest))
	must(err)
	before, by := make(policy.Files), make(map[policy.Digest][]byte)
	for _, b := range now.Files {
		by[sha256.Sum256(b)] = b
	}
	for _, f := range base.Files() {
		before[f.Path] = by[f.Digest]
	}
	files := with(extra)(h.Name, h.People)
	m, err := policy.BuildManifest(files, policy.Header{Environment: h.Name, Genesis: h.Genesis, Version: base.Header().Version + 1, Previous: base.Digest()})
	must(err)
	nonce := func() string { return fmt.Sprintf("%x", sha256.Sum256([]byte(rand.Text())))[:32] }
	text := ceremony.Change{
		Scope: ceremony.Scope{Environment: h.Name, Genesis: h.Genesis}, Action: "bundle",
		Base: base.Digest().String(), New: m.Digest().String(), Role: ceremony.Proposer, Person: "alice",
		Nonce: nonce(), Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Second), Reason: "a test",
	}
	text.Rollback, err = policy.RollbackDigest(m, before, files, nil)
	must(err)
	ask := &pb.ProposeRequest{
		Action: "bundle", Manifest: string(m.Text()), Text: text.Text(), Expires: timestamppb.New(text.Expires), Reason: text.Reason,
		Signature:         &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
		ManifestSignature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceBundle, string(m.Text()))},
	}
	for _, b := range files {
		ask.Files = append(ask.Files, b)
	}
	p, err := alice.Change.Propose(t.Context(), ask)
	must(err)
	text.Role, text.Number, text.Nonce = ceremony.Approver, p.Change, nonce()
	_, err = alice.Change.Approve(t.Context(), &pb.ApproveRequest{
		Change: p.Change, Text: text.Text(), Signature: &pb.Signature{Sshsig: h.Sign("alice", ceremony.NamespaceChange, text.Text())},
	})
	must(err)
}

// The server fetches by itself: what it was told at its founding is older than what the endpoint says.
func TestServerFetches(t *testing.T) {
	east := servertest.Start(t, servertest.Options{Name: "east.example"})
	doc, err := east.Env().TrustBundle()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := east.Login("alice").Key.RotateKey(t.Context(), &pb.RotateKeyRequest{Kind: "ca"}); err != nil {
		t.Fatal(err)
	}
	west := servertest.Start(t, servertest.Options{Name: "west.example", Files: with(relation("east", east.URL(), string(doc)))})
	watch, err := west.Node("w-1").Watch.Watch(t.Context(), &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Close() }()
	for {
		all, err := west.Env().Relations(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if all[0].Index != 0 {
			return
		}
		if !watch.Receive() {
			t.Fatal(watch.Err())
		}
	}
}
