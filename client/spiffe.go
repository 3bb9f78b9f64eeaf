package client

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/problem"
)

// JWT is a JWT-SVID of the session's identity. The token is a secret: who has it is, to its audience, the identity. It is not revoked
// by itself: it ends, after minutes.
type JWT struct {
	Token    string
	Identity string // SPIFFE ID
	Issued   time.Time
	Expires  time.Time
	Index    uint64 // of its entry, which its claim jti names
}

// IssueJWT asks for a JWT-SVID for the session's own identity, for 1 to 8 audiences. ttl is the longest life that is wanted; 0: as long
// as the bundle allows. Errors: audience-not-allowed, no-identity (persons have none), and those of sessions.
func (c *Client) IssueJWT(ctx context.Context, audience []string, ttl time.Duration) (*JWT, error) {
	r := &v1.IssueJWTRequest{Audience: audience}
	if ttl != 0 {
		r.Ttl = durationpb.New(ttl)
	}
	res, err := c.Spiffe.IssueJWT(ctx, r)
	if err != nil {
		return nil, err
	}
	if res.Token == "" || res.Expires == nil {
		return nil, problem.New(problem.ReasonInternal, "the server gave no token")
	}
	return &JWT{Token: res.Token, Identity: res.Identity, Issued: res.Issued.AsTime(), Expires: res.Expires.AsTime(), Index: res.Entry.GetIndex()}, nil
}

// TrustBundles are what a session is told to trust: documents in the SPIFFE bundle format, one for each trust domain. They must not be
// merged: each vouches for its own trust domain only.
type TrustBundles struct {
	Control   uint64              // Watch's control index that they are of: ask again when it rises
	Own       []byte              // of the environment itself
	Federated map[string][]byte   // by trust domain
	Workloads map[string][]string // for a node: paths of the workloads that it may speak for → the trust domains that each federates with
}

// TrustBundles asks for the trust bundles of the session's identity, and of the workloads that it may speak for.
func (c *Client) TrustBundles(ctx context.Context) (*TrustBundles, error) {
	res, err := c.Spiffe.GetTrustBundles(ctx, &v1.GetTrustBundlesRequest{})
	if err != nil {
		return nil, err
	}
	out := &TrustBundles{Control: res.Control, Own: res.Own, Federated: make(map[string][]byte), Workloads: make(map[string][]string)}
	domains := make(map[string]string)
	for _, f := range res.Federated {
		domains[f.Federation] = f.TrustDomain
		out.Federated[f.TrustDomain] = f.Bundle
	}
	for _, w := range res.Workloads {
		names := []string{}
		for _, f := range w.Federations {
			if d, ok := domains[f]; ok { // otherwise nothing is known of it yet
				names = append(names, d)
			}
		}
		out.Workloads[w.Workload] = names
	}
	return out, nil
}
