package ci

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/problem"
)

// OIDCName is the method of any service that gives its jobs ID tokens.
const OIDCName = "oidc"

// Limits on the claims of a service that is not known.
const (
	maxOtherClaims = 64
	maxOtherName   = 64
)

// OIDC is the method's row. A token is bound to the session key where a program can ask for one with any audience, else to its first user.
func OIDC() attest.Method {
	return platform.Platform{
		Name:   OIDCName,
		Proves: "a token that the issuer made for this subject, for this session key, or for this environment and used by no other",
		DoesNotProve: "what the claims mean: that is the issuer's to say. Of a token for the environment only, that the session key is the " +
			"one it was made for: then the assurance is `token`",
		Bindings:    []platform.Binding{platform.ToKey, platform.ToEnvironment},
		Renewal:     byPossession,
		MaxLifetime: 24 * time.Hour,
		Claims:      oidcClaims,
		Needs: []attest.Need{
			{Name: NeedToken, Optional: true, Secret: true, Doc: "an ID token whose audience is bailment:v1:GENESIS"},
			{Name: NeedCommand, Optional: true, Literal: true, Doc: "instead of it, a program that prints one for the audience that is its last argument; words are parted by spaces"},
		},
		NewAttester: newOIDC,
	}.Method()
}

func newOIDC(m attest.Material) (attest.Attester, error) {
	command := strings.Fields(string(m[NeedCommand]))
	switch {
	case len(command) > 0 && len(m[NeedToken]) > 0:
		return nil, problem.New(problem.ReasonInvalid, "a token and a program that gives one are too much: the program binds to the session key")
	case len(command) > 0:
		return program(OIDCName, command[0], func(audience string) []string { return append(slices.Clone(command[1:]), audience) })(nil)
	case len(m[NeedToken]) > 0:
		return givenToken(OIDCName)(m)
	}
	return nil, problem.New(problem.ReasonInvalid, "attestation method %s needs %q or %q", OIDCName, NeedToken, NeedCommand)
}

// oidcClaims are all claims that are texts, whole numbers, true or false, or lists of these, under "claims". Others are left out, so that a
// rule which reads one fits nothing. What RFC 7519 §4.1 registers was checked, and is not repeated.
func oidcClaims(token jwt.Token) (map[string]any, error) {
	if token.Subject == "" {
		return nil, problem.New(problem.ReasonTokenInvalid, "the token has no subject")
	}
	out := map[string]any{}
	for _, name := range slices.Sorted(maps.Keys(token.Claims)) {
		switch name {
		case "iss", "sub", "aud", "exp", "nbf", "iat", "jti":
			continue
		}
		if name == "" || len(name) > maxOtherName || attest.CheckClaimText(name) != nil {
			continue
		}
		value, ok := other(token.Claims, name)
		if !ok {
			continue
		}
		if len(out) == maxOtherClaims {
			return nil, problem.New(problem.ReasonTooLarge, "the token has more than %d claims", maxOtherClaims)
		}
		out[name] = value
	}
	return map[string]any{"claims": out}, nil
}

func other(claims map[string]any, name string) (any, bool) {
	if _, ok := claims[name].([]any); ok {
		list, err := jwt.List(claims, name)
		return list, err == nil
	}
	if claims[name] == nil {
		return nil, false
	}
	return jwt.Text(claims[name])
}
