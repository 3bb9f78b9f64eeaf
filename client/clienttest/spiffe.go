package clienttest

import (
	"context"
	"crypto"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/spiffe"
)

// tokenTTL is how long the fake's JWT-SVIDs live.
const tokenTTL = 5 * time.Minute

// federations are what a fake's own trust bundle has beside its CA, and whose bundles its workloads get.
type federations struct {
	tokens  []spiffe.TokenKey
	signer  crypto.Signer
	foreign []*v1.ForeignBundle
	told    map[string][]string // paths of workloads → names of federations
}

// RotateTokens has JWT-SVIDs signed by a new key from now on. The former ones stay in the trust bundle.
func (s *Server) RotateTokens(key crypto.Signer) error {
	pkix, err := spiffe.MarshalTokenKey(key.Public())
	if err != nil {
		return err
	}
	k, err := spiffe.ParseTokenKey(pkix)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.federations.tokens = append(s.state.federations.tokens, k)
	s.state.federations.signer = key
	s.news()
	return nil
}

// Federate has a workload told of another trust domain's bundle, which replaces a former one of that domain.
func (s *Server) Federate(workload, trustDomain string, bundle []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.state.federations
	if f.told == nil {
		f.told = make(map[string][]string)
	}
	f.told[workload] = append(f.told[workload], trustDomain)
	f.foreign = append(f.foreign, &v1.ForeignBundle{Federation: trustDomain, TrustDomain: trustDomain, Bundle: bundle})
	s.news()
}

// TrustBundle is the environment's own trust bundle, in the SPIFFE bundle format.
func (s *Server) TrustBundle() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trustBundle()
}

func (s *Server) trustBundle() ([]byte, error) {
	b := spiffe.Bundle{Tokens: s.state.federations.tokens}
	b.Authorities = append(b.Authorities, s.CA)
	return b.Marshal()
}

type spiffes struct {
	bailmentv1connect.UnimplementedSpiffeServiceHandler
	s *Server
}

func (h spiffes) IssueJWT(ctx context.Context, r *v1.IssueJWTRequest) (*v1.IssueJWTResponse, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, true)
	if err != nil {
		return nil, err
	}
	for _, a := range r.Audience {
		if err := spiffe.ValidAudience(a); err != nil {
			return nil, problem.Wrap(err, problem.ReasonInvalid, "an audience")
		}
	}
	f := s.state.federations
	if f.signer == nil {
		return nil, problem.New(problem.ReasonNoIdentity, "no key for tokens")
	}
	now := time.Now().Truncate(time.Second)
	id := s.id(x.path).String()
	token, err := spiffe.Sign(f.signer, f.tokens[len(f.tokens)-1].ID, spiffe.Claims{
		Subject: id, Audience: r.Audience, Issuer: "https://" + s.Name, Issued: now, Expires: now.Add(tokenTTL), ID: "0.1",
	})
	if err != nil {
		return nil, err
	}
	return &v1.IssueJWTResponse{
		Token: token, Identity: id, Issued: timestamppb.New(now), Expires: timestamppb.New(now.Add(tokenTTL)), Entry: &v1.EntryRef{Index: s.state.next()},
	}, nil
}

func (h spiffes) GetTrustBundles(ctx context.Context, _ *v1.GetTrustBundlesRequest) (*v1.GetTrustBundlesResponse, error) {
	s := h.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.caller(ctx, true); err != nil {
		return nil, err
	}
	own, err := s.trustBundle()
	if err != nil {
		return nil, err
	}
	out := &v1.GetTrustBundlesResponse{Control: s.state.control, Own: own, Federated: s.state.federations.foreign}
	for path, names := range s.state.federations.told {
		out.Workloads = append(out.Workloads, &v1.WorkloadFederation{Workload: path, Federations: names})
	}
	return out, nil
}
