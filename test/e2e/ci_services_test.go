package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	bailmentv1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
	"github.com/bailment/bailment/internal/attest/platform/platformtest"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
)

// issuers are CI services as a server meets them: each with a discovery document and keys, over TLS by a CA of its own, and a place where its
// jobs get tokens. What they give has the shapes that the services document.
type issuers struct {
	t    *testing.T
	url  string
	pem  []byte // the CA
	mu   sync.Mutex
	keys []*jwttest.Issuer // published; the last one signs
	made int
	// asked counts what was asked for, by path.
	asked map[string]int
}

func newIssuers(t *testing.T) *issuers {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	i := &issuers{t: t, asked: map[string]int{}}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the issuers' CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	server := httptest.NewUnstartedServer(i)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	i.url = server.URL
	i.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	i.rotate("key-1", "key-2")
	return i
}

// rotate publishes new keys instead of all that there were. The first of them signs.
func (i *issuers) rotate(ids ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = nil
	for _, id := range ids {
		k := jwttest.New(i.t, i.url, jose.ES256)
		k.KeyID = id
		i.keys = append(i.keys, k)
	}
}

// withdraw takes the key that signs away: the next one signs.
func (i *issuers) withdraw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = i.keys[1:]
}

// ServeHTTP serves /METHOD/.well-known/openid-configuration, /METHOD/keys and /METHOD/token?audience=….
func (i *issuers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked[r.URL.Path]++
	set := jose.JSONWebKeySet{}
	for _, k := range i.keys {
		set.Keys = append(set.Keys, k.JWK())
	}
	i.mu.Unlock()
	method, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch what {
	case ".well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.of(method), "jwks_uri": i.of(method) + "/keys"})
	case "keys":
		_ = json.NewEncoder(w).Encode(set)
	case "token":
		if r.Header.Get("Authorization") != "Bearer "+requestWord {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		token := i.token(method, r.URL.Query().Get("audience"))
		if method == "github" {
			_ = json.NewEncoder(w).Encode(map[string]any{"count": 1, "value": token})
			return
		}
		fmt.Fprintln(w, token)
	default:
		http.NotFound(w, r)
	}
}

func (i *issuers) of(method string) string { return i.url + "/" + method }

// token is a new one of a service's first shape.
func (i *issuers) token(method, audience string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.made++
	now := time.Now()
	return string(i.keys[0].Sign(jwttest.With(platformtest.Shapes(i.t, method)[0].Claims, map[string]any{
		"iss": i.of(method), "aud": audience, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprint("job-", i.made),
	})))
}

func (i *issuers) count(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// services are the CI services, and the identity that the bundle gives to a job of each.
var services = []struct{ method, path, identity string }{
	{"github", "/ci/github/{claims.repository_owner_id}/{claims.repository_id}", "/ci/github/65/74"},
	{"gitlab", "/ci/gitlab/{claims.namespace_id}/{claims.project_id}", "/ci/gitlab/72/20"},
	{"buildkite", "/ci/buildkite/{claims.organization_id}/{claims.pipeline_id}", "/ci/buildkite/f892efa9-103e-4d28-97a1-3b8616a0994d/0184990a-4782-42b5-afc1-16715b10b1a0"},
	{"circleci", "/ci/circleci/{claims.org_id}/{claims.project_id}", "/ci/circleci/8b1a9953-c461-4c29-b6c8-1d3f1e1a2b3c/76543210-ba98-4edc-a210-edcba0987654"},
	{"k8s-job", "/ci/k8s-job/{claims.namespace}/{claims.service_account}", "/ci/k8s-job/ci/builder"},
	{"oidc", "/ci/oidc/{claims.claims.pipeline}", "/ci/oidc/7"},
}

// files are what a bundle says of the services: nothing but their addresses, and the CA behind these.
func (i *issuers) files() policy.Files {
	out := policy.Files{
		"grants/ci.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata: {name: ci-reads}
spec: {actions: [secret.read], identities: ['/ci/*'], secrets: ['ci/*'], purposes: [runtime], assurance: token}
---
apiVersion: bailment/v1
kind: Grant
metadata: {name: write-ci}
spec: {actions: [secret.write], identities: [/human/alice], secrets: ['ci/*']}
`),
		"secrets/ci.yaml": []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: ci/*}\nspec: {type: opaque}\n"),
	}
	for _, s := range services {
		out["authorities/"+s.method+".yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Authority\nmetadata: {name: %s}\nspec:\n  method: %s\n  issuer: %s\n  pem: %q\n", s.method, s.method, i.of(s.method), i.pem)
		out["identities/"+s.method+".yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: %s-jobs}\nspec: {method: %s, authority: %s, path: '%s'}\n", s.method, s.method, s.method, s.path)
	}
	return out
}

// job is the environment of a job of a service, as its runner makes it.
func (i *issuers) job(method, audience string) []string {
	i.t.Helper()
	dir := i.t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		i.t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			i.t.Fatal(err)
		}
		return path
	}
	ca := file("ca.pem", string(i.pem), 0o600)
	// program is one of a service that prints a token for the audience that it was given in its own way.
	program := func(name, audience string) string {
		return file(name, fmt.Sprintf("#!/bin/sh\nset -eu\n%s\nexec curl -sSf -G --cacert %q -H 'Authorization: Bearer %s' --data-urlencode \"audience=$audience\" %q\n", audience, ca, requestWord, i.of(method)+"/token"), 0o700)
	}
	path := "PATH=" + dir + ":" + os.Getenv("PATH")
	switch method {
	case "github":
		// GitHub's certificate is one that the system trusts.
		return []string{path, "SSL_CERT_FILE=" + ca, "GITHUB_ACTIONS=true", "ACTIONS_ID_TOKEN_REQUEST_URL=" + i.of(method) + "/token?api-version=2.0", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=" + requestWord}
	case "gitlab":
		return []string{path, "GITLAB_CI=true", "BAILMENT_ID_TOKEN=" + i.token(method, audience)}
	case "buildkite":
		program("buildkite-agent", `test "$1 $2 $3 $5 $6 $7" = "oidc request-token --audience --lifetime 300 --claim"; audience=$4`)
		return []string{path, "BUILDKITE=true"}
	case "circleci":
		program("circleci", `test "$1 $2 $3 $4" = "run oidc get --claims"; audience=${5#'{"aud":"'}; audience=${audience%'"}'}`)
		return []string{path, "CIRCLECI=true"}
	case "k8s-job":
		return []string{path, "KUBERNETES_SERVICE_HOST=10.0.0.1", "BAILMENT_ID_TOKEN_FILE=" + file("token", i.token(method, audience), 0o644)}
	}
	return []string{path, "BAILMENT_ID_TOKEN_COMMAND=" + program("get-token", `test "$1" = print; audience=$2`) + " print"}
}

// A job of each service gets its secret by a token that the server checks with keys which it finds by discovery, and goes on doing so when the
// issuers change their keys: with the next one published before, and, where they didn't, as soon as it may ask again.
func TestCIServices(t *testing.T) {
	t.Parallel()
	i := newIssuers(t)
	j := &jobs{Site: newSite(t, site.Options{Extra: i.files()})}
	j.Start()
	j.Connect()
	j.admin = j.Dial(j.Login())
	_, err := j.admin.Secrets.Put(t.Context(), &bailmentv1.PutRequest{Secret: "ci/deploy", Value: []byte(deployKey)})
	j.Check(err)
	boot, err := j.Bootstrap()
	j.Check(err)
	audience := attest.Binding{Genesis: j.Genesis}.EnvironmentAudience()
	run := func(method string) error {
		step := j.step(append(i.job(method, audience), "BAILMENT_BOOTSTRAP="+boot, "GORACE=atexit_sleep_ms=0"),
			`bailment ci run --secret ci/deploy=KEY -- bash -c 'test "$KEY" = `+deployKey+`; test -z "${BAILMENT_ID_TOKEN-}${ACTIONS_ID_TOKEN_REQUEST_TOKEN-}"; echo it works'`)
		return step.Wait()
	}
	all := func(when string) {
		t.Helper()
		for n, s := range services {
			if err := run(s.method); err != nil {
				t.Fatalf("%s, %s: %v\n%s", s.method, when, err, j.text())
			}
			log := j.text()
			if !strings.Contains(log, "this job is "+s.identity+" (") || !strings.Contains(log, "it works") || !strings.Contains(log, "gave everything back") {
				t.Errorf("%s, %s: %s", s.method, when, log)
			}
			if strings.Contains(strings.ReplaceAll(log, "::add-mask::"+deployKey+"\n", ""), deployKey) || strings.Contains(log, requestWord) {
				t.Errorf("%s, %s: %s", s.method, when, log)
			}
			if !j.givenBack(s.identity) {
				t.Errorf("%s, %s: %v, %s", s.method, when, j.leases(s.identity), j.session(s.identity))
			}
			t.Logf("%d. %s, %s: %s", n+1, s.method, when, lastLine(log))
		}
	}
	all("with the issuer's keys")
	i.withdraw()
	all("with the key that was published before it signed")
	for _, s := range services {
		if n := i.count("/" + s.method + "/keys"); n != 1 {
			t.Errorf("%s was asked %d times for its keys", s.method, n)
		}
	}
	// Nobody knows this key, and whoever makes one up has the issuer asked once in half a minute.
	i.rotate("key-3")
	began, tick := time.Now(), time.NewTicker(2*time.Second)
	defer tick.Stop()
	for ; ; <-tick.C {
		err := run("github")
		if err == nil {
			break
		}
		if !strings.Contains(j.text(), "token-invalid") || time.Since(began) > time.Minute {
			t.Fatalf("%v\n%s", err, j.text())
		}
	}
	t.Logf("a key that was not published before: jobs were refused for %s, until the server asked again", time.Since(began).Round(time.Second))
	if n := i.count("/github/keys"); n != 2 {
		t.Errorf("the issuer was asked %d times for its keys", n)
	}
	healthy(t, j.Site.Site)
}
