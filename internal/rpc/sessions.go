package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
)

// environments answers what anybody may ask.
type environments struct{ *API }

func (s environments) GetEnvironment(ctx context.Context, _ *pb.GetEnvironmentRequest) (*pb.GetEnvironmentResponse, error) {
	env := callOf(ctx).conn.site.Env
	st := env.State()
	g := env.GenesisEntry()
	out := &pb.GetEnvironmentResponse{
		Name: st.Env.Name, Class: st.Env.Class, GenesisDocument: g.Document, CaChain: env.CAChain(), CheckpointKeys: env.CheckpointKeys(),
		Checkpoint: string(env.Ledger().Checkpoint()), Generation: st.Generation, Bundle: st.Bundle.String(), ServerVersion: s.o.Version,
	}
	for _, x := range g.Signatures {
		out.GenesisSignatures = append(out.GenesisSignatures, &pb.Signature{Person: x.Person, Key: x.Key, Sshsig: x.SSHSIG})
	}
	for _, m := range env.Methods() {
		out.AttestationMethods = append(out.AttestationMethods, m.Name)
	}
	return out, nil
}

// attestations opens and ends sessions.
type attestations struct{ *API }

func (s attestations) Challenge(ctx context.Context, r *pb.ChallengeRequest) (*pb.ChallengeResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	b, expires, err := env.Challenge()
	if err != nil {
		return nil, err
	}
	genesis := env.Genesis()
	out := &pb.ChallengeResponse{Challenge: b, Expires: stamp(expires), Genesis: genesis[:]}
	if r.Method == "" && len(r.Hello) == 0 {
		return out, nil
	}
	// An offer costs a chain and an encryption, to whomever it is made, and nothing of it is spent: so each counts.
	c.proof = accountUnknown
	if m, err := env.Methods().Find(r.Method); err == nil {
		c.proof = m.Name
	}
	a, err := env.OfferAttempt(r.Method, r.Hello)
	if err := s.attempt(c, len(r.Hello))(a, err); err != nil {
		return nil, err
	}
	c.tried(true)
	out.Offer, err = env.Offer(ctx, r.Method, b, r.Hello)
	return out, err
}

func (s attestations) Attest(ctx context.Context, r *pb.AttestRequest) (*pb.SessionResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	// A stranger's word does not become the name of an account unless it is the name of a method.
	if m, err := env.Methods().Find(r.Method); err == nil {
		c.proof = m.Name
	}
	ask := askOf(r)
	if err := s.attempt(c, len(r.Evidence))(env.AttestAttempt(ask)); err != nil {
		return nil, err
	}
	return opened(env)(env.Attest(ctx, ask))
}

func askOf(r *pb.AttestRequest) control.AttestRequest {
	return control.AttestRequest{Method: r.Method, Challenge: r.Challenge, Evidence: r.Evidence, CSR: r.Csr, Agent: statementOf(r.Agent, r.AgentVersion)}
}

// statementOf is what an agent says of itself. One that says its version only is no release.
func statementOf(a *pb.AgentStatement, version string) *release.Statement {
	if a == nil && version == "" {
		return nil
	}
	out := &release.Statement{Version: version}
	if a != nil {
		out.Version, out.Platform, out.Manifest, out.Signature = a.Version, a.Platform, a.Manifest, []byte(a.Signature)
		if len(a.Digest) == len(out.Digest) {
			out.Digest = [32]byte(a.Digest)
		}
	}
	return out
}

func (s attestations) Appraise(ctx context.Context, r *pb.AttestRequest) (*pb.AppraiseResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if m, err := env.Methods().Find(r.Method); err == nil {
		c.proof = m.Name
	}
	ask := askOf(r)
	if err := s.attempt(c, len(r.Evidence))(env.AttestAttempt(ask)); err != nil {
		return nil, err
	}
	c.tried(true) // it spends neither the challenge nor the evidence, so it could be asked again and again
	a, err := env.Appraise(ctx, ask)
	if err != nil {
		return nil, err
	}
	out := &pb.AppraiseResponse{Method: a.Method, Assurance: a.Assurance, Anchor: a.Anchor, Rule: a.Rule, Once: a.Once, Used: a.Used}
	if out.Claims, err = structpb.NewStruct(a.Claims); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "encoding the claims")
	}
	if a.Identity != (identity.ID{}) {
		out.Identity = a.Identity.String()
	}
	if p := a.Problem; p != nil {
		out.Reason, out.Message, out.Fix = string(p.Reason), p.Message, p.WayOut()
	}
	return out, nil
}

func (s attestations) GetIdentity(ctx context.Context, r *pb.GetIdentityRequest) (*pb.GetIdentityResponse, error) {
	c := callOf(ctx)
	x, err := c.conn.site.Env.ShowIdentity(ctx, c.conn.caller, r.Identity)
	if err != nil {
		return nil, err
	}
	out := &pb.GetIdentityResponse{
		Info: infoOf(x.IdentityView), Once: x.Once, Enrolment: x.Root, Session: x.Session, Enrolled: millis(x.Enrolled), Decommissioned: x.Gone,
		Workloads: x.Workloads,
	}
	if out.Claims, err = structpb.NewStruct(x.Claims); err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "encoding the claims")
	}
	if h := x.Hold; h != nil {
		out.Why, out.Hold, out.HoldScope = h.Reason, h.Index, h.Scope
	}
	return out, nil
}

func infoOf(x control.IdentityView) *pb.IdentityInfo {
	return &pb.IdentityInfo{
		Identity: x.Path, Method: x.Method, Assurance: x.Assurance, State: x.State, FirstSeen: millis(x.First), LastSeen: millis(x.Last),
		SessionExpires: stamp(x.Expires), LifetimeEnd: millis(x.Lifetime), Counter: x.Counter, Anchor: x.Anchor,
		Agent: agentOf(x.Claims),
	}
}

// agentOf is what the claims say of a machine's agent; nil: nothing.
func agentOf(claims map[string]any) *pb.AgentInfo {
	agent, ok := claims[policy.ClaimAgent].(map[string]any)
	if !ok {
		return nil
	}
	text := func(name string) string { s, _ := agent[name].(string); return s }
	return &pb.AgentInfo{Version: text("version"), State: text("state"), Evidence: text("evidence"), Signer: text("signer")}
}

func (s attestations) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.SessionResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	ask := control.RenewRequest{Challenge: r.Challenge, Certificate: r.Certificate, Signature: r.Signature, CSR: r.Csr, Agent: statementOf(r.Agent, r.AgentVersion)}
	if err := s.attempt(c, 0)(env.RenewAttempt(ask)); err != nil {
		return nil, err
	}
	return opened(env)(env.Renew(ctx, ask))
}

func (s attestations) Login(ctx context.Context, r *pb.LoginRequest) (*pb.SessionResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	ask := control.LoginRequest{Challenge: r.Challenge, Person: r.Person, SSHSIG: r.Sshsig, CSR: r.Csr}
	if err := s.attempt(c, 0)(env.LoginAttempt(ask)); err != nil {
		return nil, err
	}
	return opened(env)(env.Login(ctx, ask))
}

// What attempts count.
const (
	// crowded is how many subjects' failures together a crowd may have, at one source. With the default limits those are about as many
	// attempts as one source may make connections.
	crowded = 16
	// dear is how many bytes of evidence count as one more attempt: much is dearer to look at than little.
	dear = 64 << 10
)

// attempt limits failed proofs before they are verified, by what they are to prove and where they come from: so nobody's
// failures keep out somebody else at the same address, and an identity's own connection is nobody's address. size is how many bytes
// are to be looked at.
func (s attestations) attempt(c *call, size int) func(control.Attempt, error) error {
	return func(a control.Attempt, err error) error {
		if err != nil {
			return err
		}
		from, _ := c.conn.asker()
		from = c.conn.site.name + " " + from + " "
		c.cost = min(1+size/dear, s.attempts.burst)
		about := []*tally{s.attempts.of(from + a.Subject)}
		if a.Crowd != "" {
			about = append(about, s.crowds.of(from+a.Crowd))
		}
		for _, t := range about {
			wait, ok := t.begin(c.cost)
			if !ok {
				c.tried(false)
				return slowDownFor(wait, "failed attempts from %s", c.conn.source)
			}
			c.tries = append(c.tries, t)
		}
		return nil
	}
}

// tried says, once, whether the attempt counts.
func (c *call) tried(counts bool) {
	for _, t := range c.tries {
		t.end(c.cost, counts)
	}
	c.tries = nil
}

func (s attestations) AttestWorkload(ctx context.Context, r *pb.AttestWorkloadRequest) (*pb.SessionResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	return opened(env)(env.AttestWorkload(ctx, c.conn.caller, control.WorkloadRequest{Claims: r.Claims.AsMap(), Want: r.Workload, CSR: r.Csr}))
}

func (s attestations) Logout(ctx context.Context, _ *pb.LogoutRequest) (*pb.LogoutResponse, error) {
	c := callOf(ctx)
	return &pb.LogoutResponse{}, c.conn.site.Env.Logout(ctx, c.conn.caller)
}

func (s attestations) CreateJoinToken(ctx context.Context, r *pb.CreateJoinTokenRequest) (*pb.CreateJoinTokenResponse, error) {
	c := callOf(ctx)
	env := c.conn.site.Env
	if r.Ttl != nil && r.Ttl.CheckValid() != nil {
		return nil, problem.New(problem.ReasonInvalid, "the lifetime is not a duration")
	}
	expires, proof, err := env.CreateToken(ctx, c.conn.caller, control.TokenRequest{ID: r.Id, Public: r.PublicKey, Name: r.Name, TTL: r.Ttl.AsDuration(), Key: r.IdempotencyKey})
	if err != nil {
		return nil, err
	}
	return &pb.CreateJoinTokenResponse{Expires: stamp(expires), Entry: proved(env, proof)}, nil
}

func (s attestations) ListIdentities(ctx context.Context, r *pb.ListIdentitiesRequest) (*pb.ListIdentitiesResponse, error) {
	c := callOf(ctx)
	all, next, err := c.conn.site.Env.ListIdentities(ctx, c.conn.caller, r.Prefix, control.Page{After: r.PageToken, Size: int(r.PageSize)})
	if err != nil {
		return nil, err
	}
	out := &pb.ListIdentitiesResponse{NextPageToken: next}
	for _, x := range all {
		out.Identities = append(out.Identities, infoOf(x))
	}
	return out, nil
}

// opened makes the answer to whatever opened a session.
func opened(env *control.Environment) func(*control.Opened, error) (*pb.SessionResponse, error) {
	return func(o *control.Opened, err error) (*pb.SessionResponse, error) {
		if err != nil {
			return nil, err
		}
		return &pb.SessionResponse{
			Identity: o.Identity.String(), Chain: o.Chain, Expires: stamp(o.Expires), RenewAfter: stamp(o.Renew), Entry: entry(env, o.Index),
			Assurance: o.Assurance, LifetimeEnd: stamp(o.Lifetime),
		}, nil
	}
}
