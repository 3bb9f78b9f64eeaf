package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/url"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/attest/metadata"
	"github.com/bailment/bailment/internal/problem"
)

// Paths and versions of the metadata service.
const (
	documentPath    = "/metadata/attested/document"
	documentVersion = "2020-09-01"
	tokenPath       = "/metadata/identity/oauth2/token"
	tokenVersion    = "2018-02-01"
)

type attester struct {
	service        *metadata.Service
	tenant, client string
	chain          [][]byte
}

// NewAttester makes the machine's half. All may be empty: endpoint as for metadata.New, tenant for no token, client for the machine's own
// managed identity, chain for none but what Azure sends.
func NewAttester(endpoint, tenant, client string, chain []byte) (attest.Attester, error) {
	s, err := metadata.New(endpoint)
	if err != nil {
		return nil, err
	}
	if tenant != "" && !guid.MatchString(tenant) {
		return nil, problem.New(problem.ReasonInvalid, "the tenant must be given by its ID, in lower case")
	}
	if client != "" && (tenant == "" || !guid.MatchString(client)) {
		return nil, problem.New(problem.ReasonInvalid, "the managed identity must be given by its client ID, in lower case, and with a tenant")
	}
	ders, err := chainOf(chain)
	if err != nil {
		return nil, err
	}
	return attester{s, tenant, client, ders}, nil
}

func chainOf(text []byte) ([][]byte, error) {
	bad := func(what string) error { return problem.New(problem.ReasonInvalid, "the chain's file %s", what) }
	var out [][]byte
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		block, after := pem.Decode(rest)
		// pem.Decode skips what it can't read, and would drop a damaged certificate silently.
		if block == nil || block.Type != "CERTIFICATE" || !bytes.HasPrefix(rest, []byte("-----BEGIN ")) || bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN ")) != 1 {
			return nil, bad("holds something besides PEM blocks of certificates")
		}
		if len(out) == cms.MaxCertificates-1 {
			return nil, bad("holds too many certificates")
		}
		out, rest = append(out, block.Bytes), bytes.TrimSpace(after)
	}
	if len(out) == 0 {
		return nil, nil
	}
	if _, err := parseChain(out); err != nil {
		return nil, bad("holds a certificate that the server would refuse")
	}
	return out, nil
}

// Attest asks for a document with this binding's nonce, and for a token if there is a tenant.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	document, err := a.document(ctx, nonceOf(b))
	if err != nil {
		return nil, err
	}
	ev := evidence{Document: document}
	if a.tenant != "" {
		if ev.Token, err = a.token(ctx, Resource(a.tenant, b.Genesis)); err != nil {
			return nil, err
		}
	}
	return attest.EncodeEvidence(ev)
}

func (a attester) document(ctx context.Context, nonce string) ([]byte, error) {
	text, err := a.ask(ctx, documentPath, url.Values{"api-version": {documentVersion}, "nonce": {nonce}})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Encoding  string `json:"encoding"`
		Signature string `json:"signature"`
	}
	if json.Unmarshal(text, &answer) != nil || answer.Encoding != "pkcs7" {
		return nil, noDocument()
	}
	ber, err := base64.StdEncoding.DecodeString(answer.Signature)
	if err != nil {
		return nil, noDocument()
	}
	signed, err := cms.Rewrite(ber)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(signed.Content)
	if err != nil {
		return nil, err
	}
	if doc.Nonce != nonce {
		// The service says of itself that it may answer from a cache.
		return nil, problem.New(problem.ReasonUnreachable, "the instance metadata service gave a document that was made for another challenge").
			WithFix("it is asked again; if it stays so, its cache or something between is broken")
	}
	signed.Certificates = ordered(signed, a.chain)
	return signed.Encode()
}

func noDocument() error {
	return problem.New(problem.ReasonInvalid, "the instance metadata service gives no attested document in PKCS #7")
}

// ordered puts the signer's certificate first, and what the configuration knows behind what came along.
func ordered(s *cms.Signed, more [][]byte) [][]byte {
	var out [][]byte
	add := func(der []byte) {
		for _, have := range out {
			if bytes.Equal(have, der) {
				return
			}
		}
		out = append(out, der)
	}
	for _, der := range s.Certificates {
		if certs, err := parseChain([][]byte{der}); err == nil && s.IsSigner(certs[0]) {
			add(der)
		}
	}
	for _, der := range append(s.Certificates, more...) {
		add(der)
	}
	return out
}

func (a attester) token(ctx context.Context, resource string) (string, error) {
	q := url.Values{"api-version": {tokenVersion}, "resource": {resource}}
	if a.client != "" {
		q.Set("client_id", a.client)
	}
	text, err := a.ask(ctx, tokenPath, q)
	if err != nil {
		if p := problem.As(err); p.Reason == problem.ReasonInvalid {
			return "", p.WithFix("assign a managed identity to this machine, and register an application with the ID URI %s in the tenant", resource)
		}
		return "", err
	}
	defer clear(text)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(text, &answer) != nil || answer.AccessToken == "" {
		return "", problem.New(problem.ReasonInvalid, "the instance metadata service gives no token")
	}
	return answer.AccessToken, nil
}

func (a attester) ask(ctx context.Context, path string, q url.Values) ([]byte, error) {
	return a.service.Ask(ctx, http.MethodGet, path, q, map[string]string{"Metadata": "true"})
}
