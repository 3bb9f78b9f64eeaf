package job

import (
	"context"
	"crypto/rand"
	"encoding/json"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Question is what Whoami asks about.
type Question struct {
	Bootstrap string
	Method    string
	Attester  attest.Attester
	// Offline: the server is not asked.
	Offline bool
}

// Answer is what a job is, by its token and by the server. It never holds the token.
type Answer struct {
	Method   string
	Audience string         // that the token has
	Claims   map[string]any // what the token says; nothing of it is checked here
	Server   *v1.AppraiseResponse
}

// AudienceFor is the audience that a platform must be told which fixes it in the job's definition, by a bootstrap string.
func AudienceFor(bootstrap string) (string, error) {
	b, err := identity.ParseBootstrap(bootstrap)
	if err != nil {
		return "", problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	return attest.Binding{Genesis: b.Genesis}.EnvironmentAudience(), nil
}

// Whoami gets a token as Run does, and says what it says and, unless it is Offline, what the server would make of it. Nothing is opened: a token of single use
// stays unused.
func Whoami(ctx context.Context, q Question) (*Answer, error) {
	b, err := identity.ParseBootstrap(q.Bootstrap)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInvalid, "the bootstrap string")
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	looking := &looking{Attester: q.Attester}
	a := &Answer{Method: q.Method}
	if q.Offline {
		thumb, err := attest.Thumbprint(key.Public())
		if err != nil {
			return nil, err
		}
		// No server gave this challenge; the audiences of jobs' tokens don't depend on it.
		binding := attest.Binding{Method: q.Method, Genesis: b.Genesis, Nonce: make([]byte, attest.MinNonce), SessionKey: thumb}
		rand.Read(binding.Nonce) // it never fails (crypto/rand, Go 1.24)
		if _, err := looking.Attest(ctx, binding); err != nil {
			return nil, err
		}
	} else {
		t, err := client.Bootstrap(ctx, q.Bootstrap, client.Options{})
		if err != nil {
			return nil, err
		}
		c, err := client.Dial(t, client.Options{})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if a.Server, err = c.Appraise(ctx, q.Method, looking, key); err != nil {
			a.read(looking.token)
			return a, err
		}
	}
	a.read(looking.token)
	return a, nil
}

// read shows what a token says. A method whose evidence is no token shows nothing.
func (a *Answer) read(token string) {
	claims, err := jwt.Unverified([]byte(token))
	if err != nil {
		return
	}
	a.Claims = claims
	a.Audience, _ = claims["aud"].(string)
}

// looking is an attester whose evidence is looked at.
type looking struct {
	attest.Attester
	token string
}

func (l *looking) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	evidence, err := l.Attester.Attest(ctx, b)
	var is struct {
		Token string `json:"token"`
	}
	if err == nil && json.Unmarshal(evidence, &is) == nil {
		l.token = is.Token
	}
	return evidence, err
}
