package job

import (
	"context"
	"crypto"
	"time"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Question is what Whoami asks about.
type Question struct {
	Bootstrap string
	Platform  *Platform
	Audience  string // instead of the one that binds the token; may be empty
	Version   string
	// Attest asks the server too: with a token that is the same each time, no other run of this job gets a session with it then.
	Attest bool
}

// Answer is what a job is, by its platform and by the server. It never holds the token.
type Answer struct {
	Platform string    `json:"platform"`
	Method   string    `json:"method"`
	Audience string    `json:"audience"` // that a token must have here
	Single   bool      `json:"single"`   // the platform gives the same token each time
	Claims   Claims    `json:"claims"`   // what the token says; nothing of it is checked here
	Problem  string    `json:"problem"`  // why the token would not be shown to the server
	Identity string    `json:"identity"` // that the server gives; empty: it was not asked
	Strength string    `json:"assurance"`
	Expires  time.Time `json:"expires"` // of the session, had it not been given back
}

// AudienceFor is the audience that a platform with a fixed audience must be told, by a bootstrap string.
func AudienceFor(bootstrap string) (string, error) {
	b, err := identity.ParseBootstrap(bootstrap)
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	return attest.Binding{Genesis: b.Genesis}.EnvironmentAudience(), nil
}

// Whoami gets a token as Run does, and says what it says. Asked to, it attests with it, and gives the session back at once.
func Whoami(ctx context.Context, q Question) (*Answer, error) {
	b, err := identity.ParseBootstrap(q.Bootstrap)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	binding := attest.Binding{Genesis: b.Genesis}
	if binding.SessionKey, err = attest.Thumbprint(key.Public()); err != nil {
		return nil, err
	}
	a := &Answer{Platform: q.Platform.Name, Method: q.Platform.Method, Audience: q.Audience, Single: q.Platform.Token.Fixed()}
	if a.Audience == "" {
		a.Audience = q.Platform.AudienceOf(binding)
	}
	token, claims, err := attester{q.Platform, q.Audience}.token(ctx, binding)
	a.Claims = claims
	switch {
	case problem.Is(err, problem.ReasonAudience):
		a.Problem = problem.As(err).Message
		return a, err
	case err != nil:
		return nil, err
	}
	if q.Attest {
		err = a.ask(ctx, q, token, key)
	}
	return a, err
}

// evidence is evidence that there is already.
type evidence []byte

func (e evidence) Attest(context.Context, attest.Binding) ([]byte, error) { return e, nil }

func (a *Answer) ask(ctx context.Context, q Question, token string, key crypto.Signer) error {
	t, err := client.Bootstrap(ctx, q.Bootstrap, client.Options{})
	if err != nil {
		return err
	}
	open, err := client.Dial(t, client.Options{})
	if err != nil {
		return err
	}
	defer open.Close()
	s, err := open.Attest(ctx, q.Platform.Method, evidence(token), key, q.Version)
	if err != nil {
		return err
	}
	a.Identity, a.Strength, a.Expires = s.Identity, s.Assurance, s.Expires
	c, err := client.Dial(t, client.Options{Credentials: s.Credentials()})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Attestation.Logout(ctx, &v1.LogoutRequest{})
	return err
}
