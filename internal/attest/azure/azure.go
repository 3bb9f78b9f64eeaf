// Package azure is the attestation method "azure": a virtual machine shows the attested document that Azure signed for this challenge, and,
// where the bundle names a tenant, a token of its managed identity.
//
// Guaranteed: the document's signer has a certificate for metadata.azure.com (or the same of a national cloud) that chains to an authority
// of the bundle; the document is bound to this challenge, environment and session key by 128 bits of their digest, which are its nonce; it
// was made lately, and is not over. Where the bundle names tenants, there is a token too, which one of them issued for this environment
// (its audience) to a managed identity, and it names a machine of the document's subscription.
//
// Not guaranteed: that document and token are of one machine, only that they are of one subscription: Azure has nothing in both that says
// more. And every process of the machine that can reach its metadata service can ask for both. README.md says more.
//
// It is one method of package attest, and imports it and what is below.
package azure

import (
	"encoding/hex"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first part of its anchors ("azure:AUTHORITY").
const Name = "azure"

// DefaultMaxAge is how long ago a document may have been made, where the authority doesn't say. A challenge of ours lives as long.
const DefaultMaxAge = 5 * time.Minute

const (
	maxSkew = time.Minute
	// maxTokenLife is a day, which is how long tokens of managed identities live, and the minutes by which they are dated back.
	maxTokenLife = 25 * time.Hour
	maxToken     = 8 << 10
)

// What an agent may be given for this method.
const (
	NeedEndpoint = "endpoint"
	NeedTenant   = "tenant"
	NeedClient   = "client"
	NeedChain    = "chain"
)

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name: Name,
		Proves: "that Azure signed, for this challenge, environment and session key, the ID and subscription of the virtual machine that asked; " +
			"and, where the bundle names a tenant, that a managed identity of the tenant is assigned to a machine of that subscription",
		DoesNotProve: "that document and token are of the same machine of the subscription, which process of the machine asked, or what runs on it",
		Assurance:    identity.Platform,
		Shared:       true,
		Machine:      []string{"subscription_id", "vm_id"},
		Renewal:      attest.Renewal{Kind: attest.RenewByEvidence},
		Verify:       Verify,
		Params: func(all []authority.Authority) (any, error) {
			a, err := AuthoritiesOf(all)
			return Params{Authorities: a}, err
		},
		Issuer: issuerOf,
		Needs: []attest.Need{
			{
				Name: NeedEndpoint, Optional: true, Literal: true,
				Doc: "http:// and the IP address of the metadata service, if it is not the link-local 169.254.169.254",
			},
			{Name: NeedTenant, Optional: true, Literal: true, Doc: "ID of the Entra tenant for whose managed identity a token is shown; without it, none is"},
			{Name: NeedClient, Optional: true, Literal: true, Doc: "client ID of the managed identity, if it is not the machine's own or the machine has several"},
			{Name: NeedChain, Optional: true, Doc: "PEM of the CA certificates between Azure's metadata certificate and the bundle's authority, up to 7, if the authority pins no issuing CA"},
		},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			return NewAttester(string(m[NeedEndpoint]), string(m[NeedTenant]), string(m[NeedClient]), m[NeedChain])
		},
	}
}

// Params is what Verify needs of the environment: the authorities of the bundle in force.
type Params struct {
	Authorities *Authorities
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Document []byte `json:"document"` // CMS SignedData in the one encoding of package cms; its certificates: the signer's first, then its issuers'
	Token    string `json:"token"`    // or empty
}

// nonceOf is what a machine asks Azure to put into the document: 128 bits of the binding's digest. It has 32 characters, which is the most
// that the metadata service takes (REST specification of InstanceMetadataService, Attested_GetDocument).
func nonceOf(b attest.Binding) string {
	d := b.Digest()
	return hex.EncodeToString(d[:16])
}

// Resource is the application ID URI for which a machine asks its token: an application of the tenant must be registered under it. It is
// of a form that Entra allows in every tenant (api://TENANT/TEXT), and names the environment, so that no other takes the token.
func Resource(tenant string, genesis [32]byte) string {
	return "api://" + tenant + "/bailment-" + hex.EncodeToString(genesis[:])
}

// issuerOf says whose keys the token needs. Evidence without a token needs none, and its issuer is empty, which is that of no authority.
func issuerOf(data []byte) (attest.TokenHead, error) {
	ev, err := decode(data)
	if err != nil || ev.Token == "" {
		return attest.TokenHead{}, err
	}
	head, _, err := jwt.Head([]byte(ev.Token))
	return head, err
}

func decode(data []byte) (evidence, error) {
	var ev evidence
	if err := attest.DecodeEvidence(data, &ev); err != nil {
		return evidence{}, err
	}
	if len(ev.Token) > maxToken {
		return evidence{}, problem.New(problem.ReasonTooLarge, "the token has more than %d bytes", maxToken)
	}
	return ev, nil
}

// Verify is the verifier; its Params are of type Params.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.Begin[Params](in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	if params.Authorities == nil {
		return attest.Result{}, problem.New(problem.ReasonInternal, "verifier of azure got no authorities")
	}
	ev, err := decode(in.Evidence)
	if err != nil {
		return attest.Result{}, err
	}
	signed, err := cms.Parse(ev.Document)
	if err != nil {
		return attest.Result{}, err
	}
	signer, err := params.Authorities.signerOf(signed, in.Now)
	if err != nil {
		return attest.Result{}, err
	}
	doc, err := parseDocument(signed.Content)
	if err != nil {
		return attest.Result{}, err
	}
	if doc.Nonce != nonceOf(in.Binding) {
		return attest.Result{}, problem.New(problem.ReasonBadProof, "the document was not made for this challenge, environment and session key")
	}
	if err := checkAge(doc, signer.maxAge, in.Now); err != nil {
		return attest.Result{}, err
	}
	vm, err := params.Authorities.machineOf(ev.Token, in)
	if err != nil {
		return attest.Result{}, err
	}
	return result(doc, signer, vm)
}

func checkAge(doc document, maxAge time.Duration, now time.Time) error {
	switch {
	case doc.created.After(now.Add(maxSkew)):
		return problem.New(problem.ReasonNotYetValid, "the document is from the future")
	case !now.Before(doc.expires):
		return problem.New(problem.ReasonEvidenceExpired, "the document is over since %s", doc.expires.Format(time.RFC3339))
	case doc.created.Before(now.Add(-maxAge)):
		return problem.New(problem.ReasonEvidenceExpired, "the document was made more than %s ago", maxAge)
	}
	return nil
}

// machine is what a token says; all of it is empty where the bundle names no tenant.
type machine struct {
	authority, tenant, object, client, identity string
	resource                                    resource
	expires                                     time.Time
}

// machineOf checks the token, which must be there exactly when the bundle names an issuer of tokens.
func (a *Authorities) machineOf(token string, in attest.Input) (machine, error) {
	switch {
	case len(a.issuers) == 0 && token == "":
		return machine{}, nil
	case len(a.issuers) == 0:
		return machine{}, problem.New(problem.ReasonIssuer, "there is a token, and no authority of the bundle for azure names an issuer")
	case token == "":
		return machine{}, problem.New(problem.ReasonTokenInvalid, "there is no token, and the bundle asks for one of a managed identity").
			WithFix("give the agent the tenant's ID, and the machine a managed identity")
	}
	head, _, err := jwt.Head([]byte(token))
	if err != nil {
		return machine{}, err
	}
	by, ok := a.issuers[head.Issuer]
	if !ok {
		return machine{}, problem.New(problem.ReasonIssuer, "no authority of the bundle for azure names the token's issuer")
	}
	t, err := jwt.Verify([]byte(token), keysOf(by, in), jwt.Expect{
		Issuer: by.issuer, Audience: Resource(by.tenant, in.Binding.Genesis), Now: in.Now, Skew: maxSkew, MaxLifetime: maxTokenLife,
	})
	if err != nil {
		return machine{}, err
	}
	return readToken(t, by)
}

func keysOf(by *issuer, in attest.Input) *jose.JSONWebKeySet {
	if by.keys != nil {
		return by.keys
	}
	return in.Keys
}

func result(doc document, signer *signer, vm machine) (attest.Result, error) {
	if vm.authority != "" && vm.resource.subscription != doc.SubscriptionID {
		return attest.Result{}, problem.New(problem.ReasonBadProof, "document and token are of different subscriptions, so of different machines")
	}
	claims := map[string]any{
		"authority":       signer.authority,
		"vm_id":           doc.VMID,
		"subscription_id": doc.SubscriptionID,
		"sku":             doc.SKU,
		"license_type":    doc.LicenseType,
		"plan":            map[string]any{"name": doc.Plan.Name, "product": doc.Plan.Product, "publisher": doc.Plan.Publisher},
		"token": map[string]any{
			"authority": vm.authority, "tenant_id": vm.tenant, "object_id": vm.object, "client_id": vm.client, "identity": vm.identity,
			"resource_group": vm.resource.group, "resource_type": vm.resource.kind, "resource_name": vm.resource.name,
		},
	}
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	return attest.Result{
		Claims: claims, Assurance: identity.Platform, Anchor: Anchor(signer.authority), Key: signer.key,
		// The document's own end, which is seconds to hours away, is when it may no longer be shown; what is derived from it is renewed by
		// a new one. A token's end is that of the managed identity's word.
		NotAfter: vm.expires,
	}, nil
}

// Anchor is what a revocation names to reach everything that came from one authority.
func Anchor(authority string) string { return Name + ":" + authority }
