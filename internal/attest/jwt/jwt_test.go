package jwt_test

import (
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/jwt/jwttest"
)

const (
	issuerURL = "https://token.example.com"
	audience  = "bailment:v1:01"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func expect() jwt.Expect {
	return jwt.Expect{Issuer: issuerURL, Audience: audience, Now: now, Skew: jwt.MaxSkew, MaxLifetime: time.Hour}
}

func claims() map[string]any {
	return map[string]any{
		"iss": issuerURL, "aud": audience, "sub": "job", "jti": "1", "iat": now.Add(-time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(),
		"exp": now.Add(10 * time.Minute).Unix(),
	}
}

func TestAlgorithms(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.EdDSA,
	} {
		issuer := jwttest.New(t, issuerURL, alg)
		token := issuer.Sign(claims())
		got, err := jwt.Verify(token, issuer.Keys(), expect())
		if err != nil {
			t.Errorf("%s: %v", alg, err)
			continue
		}
		if got.ID != "1" || got.Subject != "job" || got.Algorithm != string(alg) || !got.Expires.Equal(now.Add(10*time.Minute)) || got.Unique == [32]byte{} || got.Key == [32]byte{} {
			t.Errorf("%s: %+v", alg, got)
		}
		head, named, err := jwt.Head(token)
		if err != nil || named != string(alg) || head.Issuer != issuerURL || head.KeyID != "key-1" {
			t.Errorf("%s: %+v, %s, %v", alg, head, named, err)
		}
	}
}
