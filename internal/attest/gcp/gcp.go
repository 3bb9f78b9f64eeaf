// Package gcp is the attestation method "gcp": an instance of Google Compute Engine proves what it is by an identity token of its metadata
// server, asked for this very challenge.
//
// Guaranteed: Google's issuer signed the token for an instance (its claim "google.compute_engine" is there: the same issuer signs for
// service accounts and people, whose tokens have any audience that they like, but not this), and its audience names the challenge, the
// environment and the session key, so that it can be neither replayed nor relayed.
//
// Not guaranteed: which program on the instance asked. Whoever reaches the metadata server gets a token: a container, a request that some
// service of the instance can be made to send. README.md says more.
//
// Its place: a method of package attest, by way of package platform.
package gcp

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/attest/platform"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name.
const Name = "gcp"

// NeedMetadata is where the metadata server is.
const NeedMetadata = "metadata"

const (
	metadataHost = "metadata.google.internal"
	identityPath = "/computeMetadata/v1/instance/service-accounts/default/identity"
	// flavor is the header that the server asks for, so that a request which a browser or a careless proxy makes is refused, and that
	// it answers with, so that it is known to be it.
	flavor, flavorValue = "Metadata-Flavor", "Google"
)

// maxLifetime is what Google documents: an hour.
const maxLifetime = time.Hour

// Method is the method's row of the table.
func Method() attest.Method {
	return platform.Platform{
		Name:         Name,
		Proves:       "something on this instance of this project asked Google's metadata server for this challenge and session key",
		DoesNotProve: "which program on the instance asked, what was booted there, or that the disk is the one it was",
		Bindings:     []platform.Binding{platform.ToChallenge},
		Renewal:      attest.Renewal{Kind: attest.RenewByEvidence},
		Machine:      []string{"project_number", "instance_id"},
		MaxLifetime:  maxLifetime,
		Claims:       claims,
		Needs: []attest.Need{{
			Name: NeedMetadata, Optional: true, Literal: true,
			Doc: "address of the metadata server; without it http://" + metadataHost,
		}},
		NewAttester: newAttester,
	}.Method()
}

func newAttester(m attest.Material) (attest.Attester, error) {
	where := &url.URL{Scheme: "http", Host: metadataHost}
	if len(m[NeedMetadata]) > 0 {
		var err error
		if where, err = platform.Address(m[NeedMetadata], metadataHost); err != nil {
			return nil, err
		}
	}
	source := func(ctx context.Context, audience string) ([]byte, error) {
		ask := where.JoinPath(identityPath)
		ask.RawQuery = url.Values{"audience": {audience}, "format": {"full"}, "licenses": {"TRUE"}}.Encode()
		// No proxy: it would be another machine that asks.
		body, header, err := platform.Get(ctx, ask, http.Header{flavor: {flavorValue}}, nil)
		if err != nil {
			return nil, err
		}
		if header.Get(flavor) != flavorValue {
			return nil, problem.New(problem.ReasonNotProved, "what answered is not Google's metadata server").WithFix("run this on an instance of Compute Engine")
		}
		return body, nil
	}
	return platform.NewAttester(Name, platform.ToChallenge, source), nil
}

// claims reads the claim "google.compute_engine", which tokens of format "full" have.
func claims(token jwt.Token) (map[string]any, error) {
	google, err := jwt.Object(token.Claims, "google")
	if err != nil {
		return nil, err
	}
	engine, err := jwt.Object(google, "compute_engine")
	if err != nil {
		return nil, err
	}
	if engine == nil {
		return nil, problem.New(problem.ReasonTokenInvalid, "the token is not one of an instance")
	}
	out, err := jwt.Pick(engine, "project_id", "project_number", "zone", "instance_id", "instance_name", "instance_creation_timestamp")
	if err != nil {
		return nil, err
	}
	account, err := jwt.Pick(token.Claims, "email", "email_verified", "azp")
	if err != nil {
		return nil, err
	}
	// An address that Google has not verified is somebody's word.
	if account["email_verified"] != "true" {
		account["email"] = ""
	}
	out["service_account"], out["service_account_id"] = account["email"], account["azp"]
	if out["licenses"], err = jwt.List(engine, "license_id"); err != nil {
		return nil, err
	}
	return out, platform.Require(out, "project_id", "project_number", "zone", "instance_id")
}
