package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/test/site"
)

const envName = "bench.example"

// All limits are on; those on one source and one node are wide, since the whole load comes from one here.
const limits = "limits: {source_connections: 4096, source_handshakes: 100000/s 100000, source_requests: 1000000/s 1000000, identity_requests: 1000000/s 1000000, identity_sessions: 1000000/s 1000000}\n"

func newSite(ctx context.Context, dir, bin string) (*site.Site, error) {
	return site.New(ctx, site.Options{Name: envName, Bin: bin, Dir: dir, Config: limits, Extra: bundle()})
}

// batches are purposes, to make many leases with few secrets.
func batches() []string {
	out := make([]string, 30)
	for i := range out {
		out[i] = fmt.Sprintf("batch-%d", i)
	}
	return out
}

// bundle has a thousand grants that do not match beside those that do, as a real one would.
func bundle() policy.Files {
	var grants strings.Builder
	grants.WriteString("apiVersion: bailment/v1\nkind: Grant\nmetadata: {name: write}\nspec: {actions: [secret.write, secret.list], identities: [/human/alice], secrets: ['*']}\n---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: read}\nspec: {actions: [secret.read], identities: ['/node/join-token/*'], secrets: ['app/*'], purposes: [runtime, " + strings.Join(batches(), ", ") + "], when: 'claims.name.startsWith(\"n\") && identity.env == \"" + envName + "\"'}\n")
	for i := range 1000 {
		fmt.Fprintf(&grants, "---\napiVersion: bailment/v1\nkind: Grant\nmetadata: {name: other-%d}\nspec: {actions: [secret.read], identities: [/node/join-token/other-%d], secrets: [other/s%d], purposes: [runtime]}\n", i, i, i)
	}
	return policy.Files{
		"environment.yaml": []byte("apiVersion: bailment/v1\nkind: Environment\nmetadata: {name: " + envName + "}\nspec:\n  class: development\n  approvals: {required: 0}\n  sessions: {operator: 12h, node: 12h, workload: 1h}\n  revocation: {blastLimit: 1000000}\n  limits: {versionsPerSecret: 20, secrets: 1000000}\n"),
		"grants/all.yaml":  []byte(grants.String()),
		"secrets/all.yaml": []byte("apiVersion: bailment/v1\nkind: Secret\nmetadata: {name: app/*}\nspec: {type: opaque}\n---\napiVersion: bailment/v1\nkind: Secret\nmetadata: {name: other/*}\nspec: {type: opaque}\n"),
	}
}

// tlsOf is the configuration of a connection with a session.
func tlsOf(s *site.Site, session *client.Session) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.Trust.CA)
	return &tls.Config{RootCAs: pool, ServerName: envName, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{session.Certificate}}
}
