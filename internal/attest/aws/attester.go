package aws

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/attest/metadata"
	"github.com/bailment/bailment/internal/problem"
)

// Paths and headers of the metadata service, version 2. Version 1 answers a plain GET, so that a web server which can be made to fetch an
// address gives the document away; it is never used.
const (
	tokenPath    = "/latest/api/token"
	documentPath = "/latest/dynamic/instance-identity/rsa2048"
	headerTTL    = "X-aws-ec2-metadata-token-ttl-seconds"
	headerToken  = "X-aws-ec2-metadata-token"
	tokenSeconds = "60"
	maxToken     = 1024
)

type attester struct{ service *metadata.Service }

// NewAttester makes the machine's half; the endpoint may be empty (metadata.New).
func NewAttester(endpoint string) (attest.Attester, error) {
	s, err := metadata.New(endpoint)
	if err != nil {
		return nil, err
	}
	return attester{s}, nil
}

// Attest asks for the signed document anew each time. Nothing of the binding but its method is in the evidence.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	token, err := a.service.Ask(ctx, http.MethodPut, tokenPath, nil, map[string]string{headerTTL: tokenSeconds})
	if err != nil {
		return nil, err
	}
	if !isToken(token) {
		return nil, problem.New(problem.ReasonInvalid, "the instance metadata service gives no session token")
	}
	text, err := a.service.Ask(ctx, http.MethodGet, documentPath, nil, map[string]string{headerToken: string(token)})
	if err != nil {
		return nil, err
	}
	ber := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(ber, bytes.TrimSpace(text)) // it has line breaks, which the decoder passes over
	if err != nil {
		return nil, problem.New(problem.ReasonInvalid, "the instance metadata service gives no signed document")
	}
	signed, err := cms.Rewrite(ber[:n])
	if err != nil {
		return nil, err
	}
	signed.Certificates = nil // the verifier has its own
	der, err := signed.Encode()
	if err != nil {
		return nil, err
	}
	return attest.EncodeEvidence(evidence{Signed: der})
}

// isToken keeps what could not be a header's value out of one.
func isToken(token []byte) bool {
	if len(token) == 0 || len(token) > maxToken {
		return false
	}
	for _, c := range token {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}
