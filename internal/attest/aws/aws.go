// Package aws is the attestation method "aws": an EC2 instance shows its instance identity document, signed by AWS.
//
// Guaranteed: the document was signed, with RSA of 2048 bits or more and a digest that is not broken, by a certificate that the bundle pins
// for just that region; it says when the instance was started, and that is not longer ago than the authority allows; and whoever shows the
// same instance's document again with another session key is told apart (Result.Once, for ever).
//
// Not guaranteed: that the machine which shows it is the instance. AWS gives the same document to every process of the instance for as
// long as it runs, bound to nothing that we choose: neither challenge nor environment nor session key (Method.Unbound). So this is trust on
// first use, and its assurance is that of a single-use token. README.md says more.
//
// The document is taken from inside its signature; the loose one, which could differ, is never asked for. It is one method of package
// attest, and imports it and what is below.
package aws

import (
	"time"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/cms"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first part of its anchors ("aws:AUTHORITY") and single uses ("aws:ACCOUNT/REGION/INSTANCE").
const Name = "aws"

// DefaultMaxAge is how long after an instance was started its document is taken, where the authority doesn't say. It is time enough to
// boot and install an agent, and short for somebody who finds an old copy in a log.
const DefaultMaxAge = 10 * time.Minute

// maxSkew is how far AWS's clock may be ahead of ours.
const maxSkew = time.Minute

// NeedEndpoint is where the metadata service is.
const NeedEndpoint = "endpoint"

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name:   Name,
		Proves: "that AWS signed, for the region whose certificate the bundle pins, that this EC2 instance exists and was started lately; the first key that shows it is the instance",
		DoesNotProve: "that the machine which shows the document is the instance: AWS binds it to neither challenge, environment nor session key, " +
			"so whoever has a copy and is first takes the instance's place, and the second one is the alarm",
		Assurance: identity.Token,
		Unbound:   true,
		Shared:    true,
		Machine:   []string{"account_id", "region", "instance_id"},
		Renewal:   attest.Renewal{Kind: attest.RenewByPossession, HardLifetime: true},
		Verify:    Verify,
		Params: func(all []authority.Authority) (any, error) {
			regions, err := RegionsOf(all)
			return Params{Regions: regions}, err
		},
		Needs: []attest.Need{{
			Name: NeedEndpoint, Optional: true, Literal: true,
			Doc: "http:// and the IP address of the metadata service, if it is not the link-local 169.254.169.254 (http://[fd00:ec2::254] where there is IPv6 only)",
		}},
		NewAttester: func(m attest.Material) (attest.Attester, error) { return NewAttester(string(m[NeedEndpoint])) },
	}
}

// Params is what Verify needs of the environment: the regions of the bundle in force.
type Params struct {
	Regions *Regions
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Signed []byte `json:"signed"` // CMS SignedData in the one encoding of package cms, the document inside, without certificates
}

// Verify is the verifier; its Params are of type Params. It looks at nothing of Binding but the method: there is nothing to compare.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.Begin[Params](in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	if params.Regions == nil {
		return attest.Result{}, problem.New(problem.ReasonInternal, "verifier of aws got no regions")
	}
	var ev evidence
	if err := attest.DecodeEvidence(in.Evidence, &ev); err != nil {
		return attest.Result{}, err
	}
	signed, err := cms.Parse(ev.Signed)
	if err != nil {
		return attest.Result{}, err
	}
	if len(signed.Certificates) > 0 {
		// AWS sends none, and none that comes along would be believed.
		return attest.Result{}, problem.New(problem.ReasonInvalid, "the signed document brings certificates: those of the bundle count")
	}
	signer, err := params.Regions.signerOf(signed, in.Now)
	if err != nil {
		return attest.Result{}, err
	}
	doc, err := parseDocument(signed.Content)
	if err != nil {
		return attest.Result{}, err
	}
	if doc.Region != signer.region {
		return attest.Result{}, problem.New(problem.ReasonBadChain, "the document is signed by the certificate of another region than the one it names")
	}
	if err := checkAge(doc, signer.maxAge, in.Now); err != nil {
		return attest.Result{}, err
	}
	return result(doc, signer)
}

func checkAge(doc document, maxAge time.Duration, now time.Time) error {
	switch started := doc.started; {
	case started.After(now.Add(maxSkew)):
		return problem.New(problem.ReasonNotYetValid, "the instance was started in the future, by the document")
	case started.Before(now.Add(-maxAge)):
		return problem.New(problem.ReasonEvidenceExpired, "the instance was started more than %s ago", maxAge).
			WithFix("stop and start the instance, which gives it a new document, or raise maxAge of this authority in the bundle")
	}
	return nil
}

func result(doc document, signer *signer) (attest.Result, error) {
	claims := map[string]any{
		"authority":         signer.authority,
		"account_id":        doc.AccountID,
		"region":            doc.Region,
		"availability_zone": doc.AvailabilityZone,
		"instance_id":       doc.InstanceID,
		"instance_type":     doc.InstanceType,
		"image_id":          doc.ImageID,
		"private_ip":        doc.PrivateIP,
		"architecture":      doc.Architecture,
		"pending_time":      doc.started.Format(time.RFC3339),
	}
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	return attest.Result{
		Claims:    claims,
		Assurance: identity.Token,
		Anchor:    Anchor(signer.authority),
		Once:      Name + ":" + doc.AccountID + "/" + doc.Region + "/" + doc.InstanceID,
		Key:       signer.key,
	}, nil
}

// Anchor is what a revocation names to reach everything that came from one authority.
func Anchor(authority string) string { return Name + ":" + authority }
