package client_test

import (
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/server/servertest"
)

// A program gets its token and its bundles from a real server.
func TestSPIFFE(t *testing.T) {
	h := servertest.Start(t, servertest.Options{Files: func(name string, p servertest.People) policy.Files {
		files := servertest.Bundle(name, p)
		files["federation/partner.yaml"] = []byte("apiVersion: bailment/v1\nkind: Federation\nmetadata: {name: partner}\nspec:\n  trustDomain: partner.example\n  endpoint: {url: \"https://127.0.0.1:1/bundle\", profile: https_web}\n  bundle: '{\"keys\":[]}'\n")
		files["identities/fed.yaml"] = []byte("apiVersion: bailment/v1\nkind: Identity\nmetadata: {name: fed}\nspec: {method: workload, path: /workload/fed, nodes: [/node/join-token/*], federatesWith: [partner]}\n")
		return files
	}})
	trust, err := client.TrustFromGenesis(h.Bootstrap(), h.Env().GenesisEntry().Document)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(s *servertest.Session) *client.Client {
		t.Helper()
		c, err := client.Dial(trust, client.Options{Credentials: (&client.Session{Certificate: *s.Cert}).Credentials()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	node := h.Node("web-1")
	work, err := h.Workload(node, "/workload/fed", map[string]any{"unix": map[string]any{"uid": float64(1000)}})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(work)
	out, err := c.IssueJWT(t.Context(), []string{"reports"}, 30*time.Second)
	if err != nil || out.Identity != work.Identity || out.Expires.Sub(out.Issued) > 30*time.Second || out.Index == 0 {
		t.Fatal(out, err)
	}
	bundles, err := c.TrustBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(h.Name), bundles.Own)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(out.Token, own, []string{"reports"}); err != nil {
		t.Fatal(err)
	}
	if len(bundles.Federated) != 1 || len(bundles.Federated["partner.example"]) == 0 || len(bundles.Workloads) != 0 || bundles.Control != h.Env().State().Control {
		t.Fatalf("%+v", bundles)
	}
	all, err := dial(node).TrustBundles(t.Context())
	if err != nil || !slices.Equal(all.Workloads["/workload/fed"], []string{"partner.example"}) || len(all.Workloads["/workload/app"]) != 0 {
		t.Fatalf("%v %+v", err, all)
	}
	if _, err := dial(h.Login("alice")).IssueJWT(t.Context(), []string{"reports"}, 0); !problem.Is(err, problem.ReasonNoIdentity) {
		t.Fatal(err)
	}
	if _, err := c.IssueJWT(t.Context(), nil, 0); !problem.Is(err, problem.ReasonInvalid) {
		t.Fatal(err)
	}
}
